package audit_test

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/sdk/metric"
	"go.opentelemetry.io/otel/sdk/metric/metricdata"

	"github.com/hindsight-go/audit"
	"github.com/hindsight-go/audit/audittest"
	"github.com/hindsight-go/audit/capture"
	"github.com/hindsight-go/audit/internal/faulttest"
	"github.com/hindsight-go/audit/internal/telemetry"
)

// expectCapturing writes a row and checks that it is in history.
func expectCapturing(t *testing.T, a *audittest.Audited, id int) {
	t.Helper()
	a.Exec(t, "INSERT INTO todo VALUES ($1, 'x')", id)
	a.Sync(t)
	if n := audittest.Value[int](t, a.Database, `SELECT count(*) FROM audit.changes WHERE "table" = 'todo' AND primary_key = $1::int::text`, id); n != 1 {
		t.Errorf("row %d is %d times in history, want once", id, n)
	}
}

func TestStopBeforeStartAndTwice(t *testing.T) {
	t.Parallel()
	db := audittest.NewDatabase(t)
	db.Exec(t, gapTable)
	a := audittest.Open(t, db, audit.Config{})
	stop := func(what string) {
		t.Helper()
		if err := a.Client.Stop(t.Context()); err != nil {
			t.Errorf("%s: %v", what, err)
		}
	}
	stop("before Start")
	mustStart(t, a)
	expectCapturing(t, a, 1)
	var wg sync.WaitGroup
	for range 5 {
		wg.Go(func() { stop("concurrently") })
	}
	wg.Wait()
	stop("once more")
	if s := statusOf(t, a); s.State != capture.Stopped || s.Err != nil {
		t.Errorf("afterwards capture is %s, error %v", s.State, s.Err)
	}
	if err := a.Client.Refresh(t.Context()); err == nil {
		t.Error("Refresh of a stopped client succeeded")
	}
}

func TestStartTwiceAndConcurrently(t *testing.T) {
	t.Parallel()
	db := audittest.NewDatabase(t)
	db.Exec(t, gapTable)
	a := audittest.Open(t, db, audit.Config{})
	var wg sync.WaitGroup
	for range 5 {
		wg.Go(func() {
			if err := a.Client.Start(context.WithoutCancel(t.Context())); err != nil {
				t.Errorf("start: %v", err)
			}
		})
	}
	wg.Wait()
	mustStart(t, a)
	expectCapturing(t, a, 1)
	if n := audittest.Value[int](t, db, "SELECT count(*) FROM pg_stat_replication WHERE application_name = 'audit capture' AND pid IN (SELECT active_pid FROM pg_replication_slots WHERE slot_name = $1)", slotOf(db)); n != 1 {
		t.Errorf("%d sessions stream", n)
	}
}

// What was written between two lives is captured in the second.
func TestStartStopStart(t *testing.T) {
	t.Parallel()
	db := audittest.NewDatabase(t)
	db.Exec(t, gapTable)
	a := audittest.Open(t, db, audit.Config{})
	for life := range 5 {
		mustStart(t, a)
		expectCapturing(t, a, 2*life)
		a.Stop(t)
		db.Exec(t, "INSERT INTO todo VALUES ($1, 'between')", 2*life+1)
	}
	mustStart(t, a)
	a.Check(t)
	if n := len(keysInHistory(t, db, "todo")); n != 10 {
		t.Errorf("history has %d changes, want 10", n)
	}
	if s := statusOf(t, a); len(s.Gaps) > 0 {
		t.Errorf("there are gaps: %v", s.Gaps)
	}
}

// Stop stores and confirms what was read: the next start reads nothing twice, and
// the server keeps no WAL for it.
func TestStopConfirmsWhatWasRead(t *testing.T) {
	t.Parallel()
	db := audittest.NewDatabase(t)
	db.Exec(t, gapTable)
	a := audittest.Open(t, db, audit.Config{})
	mustStart(t, a)
	db.Exec(t, "INSERT INTO todo SELECT n, 'x' FROM generate_series(1, 20000) n")
	a.Sync(t)
	a.Stop(t)
	waitInactive(t, db)
	if !audittest.Value[bool](t, db, "SELECT confirmed_flush_lsn = position FROM pg_replication_slots, audit.checkpoints WHERE slot_name = $1", slotOf(db)) {
		t.Error("the slot is not confirmed up to the checkpoint")
	}
}

// Also when the server is still sending: what nobody reads any more does not cost what
// was confirmed.
func TestStopConfirmsWhatWasReadWhileOthersWrite(t *testing.T) {
	t.Parallel()
	db := audittest.NewDatabase(t)
	db.Exec(t, gapTable)
	a := audittest.Open(t, db, audit.Config{})
	for round := range 5 {
		mustStart(t, a)
		written := make(chan error, 1)
		conn := db.Connect(t)
		go func() {
			_, err := conn.Exec(t.Context(), fmt.Sprintf(`DO $$ BEGIN FOR i IN 1..300 LOOP
				INSERT INTO todo SELECT %d + i * 100 + n, repeat('x', 1000) FROM generate_series(1, 50) n; COMMIT; END LOOP; END $$`, round*1_000_000))
			written <- err
		}()
		faulttest.Poll(t, faulttest.Patience, "something is stored", func() error {
			if audittest.Value[int](t, db, "SELECT count(*) FROM audit.changes WHERE primary_key::int > $1", round*1_000_000) == 0 {
				return errors.New("nothing is there")
			}
			return nil
		})
		a.Stop(t)
		waitInactive(t, db)
		if !audittest.Value[bool](t, db, "SELECT confirmed_flush_lsn = position FROM pg_replication_slots, audit.checkpoints WHERE slot_name = $1", slotOf(db)) {
			t.Errorf("round %d: the slot is not confirmed up to the checkpoint", round)
		}
		if err := <-written; err != nil {
			t.Fatal(err)
		}
	}
	mustStart(t, a)
	a.Check(t)
}

// Stop with a context that has ended is the abrupt way, and says so.
func TestStopWithoutTimeIsAbrupt(t *testing.T) {
	t.Parallel()
	db := audittest.NewDatabase(t)
	db.Exec(t, gapTable)
	a := audittest.Open(t, db, audit.Config{})
	mustStart(t, a)
	db.Exec(t, "INSERT INTO todo SELECT n, 'x' FROM generate_series(1, 50000) n")
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := a.Client.Stop(ctx); err != nil && (!errors.Is(err, context.Canceled) || !strings.Contains(err.Error(), "stop capture")) {
		t.Errorf("Stop returned %v", err)
	}
	mustStart(t, a)
	a.Check(t)
	if n := len(keysInHistory(t, db, "todo")); n != 50000 {
		t.Errorf("history has %d changes, want 50000", n)
	}
}

// ours returns the goroutines that run code of the client, capture or the store.
func ours() []string {
	buf := make([]byte, 4<<20)
	buf = buf[:runtime.Stack(buf, true)]
	var found []string
	for _, stack := range strings.Split(string(buf), "\n\n") {
		for _, mark := range []string{"hindsight-go/audit.(*", "hindsight-go/audit/capture.", "hindsight-go/audit/store.", "pgxpool.(*Pool)"} {
			if strings.Contains(stack, mark) && !strings.Contains(stack, "audit_test.ours") {
				found = append(found, stack)
				break
			}
		}
	}
	return found
}

// However a client ends, its goroutines end. This test does not run in parallel:
// it looks at all goroutines of the process.
func TestNoGoroutineIsLeftBehind(t *testing.T) { //nolint:paralleltest // It looks at all goroutines.
	server := audittest.NewServer(t, audittest.ServerOptions{})
	if left := ours(); len(left) > 0 {
		t.Fatalf("there are goroutines already:\n%s", strings.Join(left, "\n\n"))
	}
	open := func(t *testing.T) (*audittest.Database, *audit.Client) {
		t.Helper()
		db := server.NewDatabase(t)
		db.Exec(t, gapTable)
		return db, openClient(t, audit.Config{SourceURL: db.URL()})
	}
	start := func(t *testing.T, ctx context.Context, c *audit.Client) {
		t.Helper()
		if err := c.Start(ctx); err != nil {
			t.Fatal(err)
		}
	}
	for name, live := range map[string]func(t *testing.T){
		"opened and closed": func(t *testing.T) {
			t.Helper()
			_, c := open(t)
			c.Close()
		},
		"stopped and closed twice": func(t *testing.T) {
			t.Helper()
			db, c := open(t)
			start(t, t.Context(), c)
			db.Exec(t, "INSERT INTO todo VALUES (1, 'x')")
			if err := errors.Join(c.Sync(t.Context()), c.Stop(t.Context())); err != nil {
				t.Error(err)
			}
			c.Close()
			c.Close()
			if err := c.Start(t.Context()); err == nil {
				t.Error("Start of a closed client succeeded")
			}
			if err := c.Sync(t.Context()); err == nil {
				t.Error("Sync of a closed client succeeded")
			}
		},
		"closed while it runs, several at once": func(t *testing.T) {
			t.Helper()
			db, c := open(t)
			start(t, t.Context(), c)
			db.Exec(t, "INSERT INTO todo SELECT n, 'x' FROM generate_series(1, 50000) n")
			var wg sync.WaitGroup
			for range 3 {
				wg.Go(c.Close)
			}
			wg.Wait()
		},
		"closed while somebody waits for it": func(t *testing.T) {
			t.Helper()
			_, c := open(t)
			start(t, t.Context(), c)
			if err := c.Stop(t.Context()); err != nil {
				t.Error(err)
			}
			ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
			defer cancel()
			if err := c.Sync(ctx); err == nil {
				t.Error("Sync succeeded though nobody captures")
			}
			c.Close()
		},
		"closed while it waits for the slot": func(t *testing.T) {
			t.Helper()
			db, c := open(t)
			start(t, t.Context(), c)
			second := openClient(t, audit.Config{SourceURL: db.URL()})
			start(t, t.Context(), second)
			second.Close()
			c.Close()
		},
		"closed while it starts": func(t *testing.T) {
			t.Helper()
			db, c := open(t)
			tx, err := db.Connect(t).Begin(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			if _, err := tx.Exec(t.Context(), "INSERT INTO todo VALUES (1, 'x')"); err != nil {
				t.Fatal(err)
			}
			defer func() { _ = tx.Rollback(t.Context()) }()
			ended := make(chan error, 1)
			go func() { ended <- c.Start(context.WithoutCancel(t.Context())) }()
			faulttest.Poll(t, faulttest.Patience, "Start waits for the slot", func() error {
				if audittest.Value[bool](t, db, "SELECT EXISTS (SELECT FROM pg_stat_activity WHERE query LIKE '%pg_create_logical_replication_slot%' AND wait_event_type = 'Lock')") {
					return nil
				}
				return errors.New("it does not wait")
			})
			began := time.Now()
			c.Close()
			if after := time.Since(began); after > time.Minute {
				t.Errorf("Close took %s", after)
			}
			if err := <-ended; err == nil {
				t.Error("Start succeeded though the client was closed")
			}
		},
		"its context ended": func(t *testing.T) {
			t.Helper()
			_, c := open(t)
			ctx, cancel := context.WithCancel(t.Context())
			start(t, ctx, c)
			cancel()
			c.Close()
		},
		"Start failed": func(t *testing.T) {
			t.Helper()
			db := server.NewDatabase(t)
			c := openClient(t, audit.Config{SourceURL: db.URL(), Tables: []string{"public.absent"}})
			if err := c.Start(t.Context()); err == nil {
				t.Error("Start succeeded")
			}
			c.Close()
		},
		"the server was away": func(t *testing.T) {
			t.Helper()
			_, c := open(t)
			start(t, t.Context(), c)
			server.StopImmediate(t)
			c.Close()
			server.StartAgain(t)
		},
	} {
		t.Run(name, func(t *testing.T) { //nolint:paralleltest // It looks at all goroutines.
			live(t)
			faulttest.Poll(t, faulttest.Patience, "goroutines end", func() error {
				if left := ours(); len(left) > 0 {
					return fmt.Errorf("%d are left:\n%s", len(left), strings.Join(left, "\n\n"))
				}
				return nil
			})
		})
	}
}

// Whoever calls Sync sees what was committed before, also in a program that does
// not capture itself.
func TestSyncIsABarrierForEverybody(t *testing.T) {
	t.Parallel()
	a := audittest.New(t, audit.Config{}, gapTable)
	reader := audittest.Open(t, a.Database, audit.Config{})
	var wg sync.WaitGroup
	for n := range 4 {
		conn := a.Connect(t)
		wg.Go(func() {
			for round := range 40 {
				id := n*1000 + round
				if _, err := conn.Exec(t.Context(), "INSERT INTO todo VALUES ($1, 'x')", id); err != nil {
					t.Error(err)
					return
				}
				client := a.Client
				if round%2 == 0 {
					client = reader.Client
				}
				if err := client.Sync(t.Context()); err != nil {
					t.Error(err)
					return
				}
				var found int
				if err := conn.QueryRow(t.Context(), `SELECT count(*) FROM audit.changes WHERE "table" = 'todo' AND primary_key = $1::int::text`, id).Scan(&found); err != nil || found != 1 {
					t.Errorf("after Sync row %d is %d times in history, error %v", id, found, err)
				}
			}
		})
	}
	wg.Wait()
}

// While nobody captures, Sync and Mark say so at once.
func TestSync_NoInstanceCaptures(t *testing.T) {
	t.Parallel()
	for name, before := range map[string]func(t *testing.T, a *audittest.Audited){
		"never started": func(*testing.T, *audittest.Audited) {},
		"stopped": func(t *testing.T, a *audittest.Audited) {
			t.Helper()
			mustStart(t, a)
			a.Sync(t)
			a.Stop(t)
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			db := audittest.NewDatabase(t)
			db.Exec(t, gapTable)
			a := audittest.Open(t, db, audit.Config{})
			before(t, a)
			ctx, cancel := context.WithTimeout(t.Context(), faulttest.Patience)
			defer cancel()
			_, markErr := a.Client.Mark(ctx, "m")
			for what, err := range map[string]error{"sync": a.Client.Sync(ctx), "mark": markErr} {
				if !errors.Is(err, audit.ErrNotRunning) || !strings.Contains(err.Error(), slotOf(db)) {
					t.Errorf("%s returned %v, want that nobody captures, and the slot's name", what, err)
				}
			}
			// Of a client that does not capture itself, while another does.
			mustStart(t, audittest.Open(t, db, audit.Config{}))
			a.Sync(t)
		})
	}
}

func TestStatusOfAClientThatWasNeverStarted(t *testing.T) {
	t.Parallel()
	db := audittest.NewDatabase(t)
	db.Exec(t, gapTable)
	reader := audittest.Open(t, db, audit.Config{})
	s := statusOf(t, reader)
	if s.State != capture.Stopped || s.Err != nil || s.Database != db.Name() || s.Slot.Name != slotOf(db) || s.Slot.Exists || s.SourcePosition == 0 || s.Position != 0 || len(s.Tables) != 0 {
		t.Errorf("before anything was captured: %+v", s)
	}
	a := audittest.Open(t, db, audit.Config{})
	mustStart(t, a)
	db.Exec(t, "INSERT INTO todo VALUES (1, 'x'), (2, 'x')")
	a.Sync(t)
	s = statusOf(t, reader)
	if s.State != capture.Stopped || s.Changes != 2 || !s.Slot.Exists || !s.Slot.Active || s.Slot.Status != "reserved" || s.Position == 0 || s.Position > s.SourcePosition || s.CommittedAt.IsZero() || time.Since(s.CommittedAt) > time.Minute {
		t.Errorf("while another captures: %+v", s)
	}
	if len(s.Tables) != 1 || s.Tables[0].Table != "todo" || s.Tables[0].From == 0 || s.Tables[0].FromTime.IsZero() || s.Tables[0].Until != 0 {
		t.Errorf("the tables are %+v", s.Tables)
	}
	if s := statusOf(t, a); s.State != capture.Streaming || s.LagBytes < 0 || s.LagBytes > 1<<20 {
		t.Errorf("of who captures: %+v", s)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if s, err := reader.Client.Status(ctx); err == nil || s.State != capture.Stopped {
		t.Errorf("with a context that has ended: %+v, error %v", s, err)
	}
}

// The package-level functions work on the default client. The default belongs to
// the whole process, so this test does not run in parallel.
func TestDefaultClient(t *testing.T) { //nolint:paralleltest // There is one default.
	ctx := t.Context()
	audit.SetDefault(nil)
	t.Cleanup(func() { audit.SetDefault(nil) })
	_, statusErr := audit.CurrentStatus(ctx)
	for name, err := range map[string]error{
		"Start": audit.Start(ctx), "Stop": audit.Stop(ctx), "Sync": audit.Sync(ctx), "Refresh": audit.Refresh(ctx), "CurrentStatus": statusErr,
	} {
		if !errors.Is(err, audit.ErrNoDefaultClient) {
			t.Errorf("%s without a default client returned %v", name, err)
		}
	}
	if audit.Default() != nil {
		t.Error("there is a default client")
	}

	db := audittest.NewDatabase(t)
	db.Exec(t, gapTable)
	a := audittest.Open(t, db, audit.Config{})
	audit.SetDefault(a.Client)
	if audit.Default() != a.Client {
		t.Error("Default is not what SetDefault set")
	}
	if err := audit.Start(ctx); err != nil {
		t.Fatal(err)
	}
	db.Exec(t, "INSERT INTO todo VALUES (1, 'x')")
	if err := errors.Join(audit.Refresh(ctx), audit.Sync(ctx)); err != nil {
		t.Error(err)
	}
	s, err := audit.CurrentStatus(ctx)
	if err != nil || s.State != capture.Streaming || s.Changes != 1 {
		t.Errorf("status: %+v, error %v", s, err)
	}
	if err := audit.Stop(ctx); err != nil {
		t.Error(err)
	}
	if s, err := audit.CurrentStatus(ctx); err != nil || s.State != capture.Stopped {
		t.Errorf("status after Stop: %+v, error %v", s, err)
	}
}

// What an operator wants to know is logged, once, and in words without values.
func TestEventsAreLogged(t *testing.T) {
	t.Parallel()
	log := faulttest.NewLog(t)
	db := audittest.NewDatabase(t)
	db.Exec(t, gapTable)
	a := audittest.Open(t, db, audit.Config{Logger: log.Logger(), RefreshInterval: 50 * time.Millisecond})
	mustStart(t, a)
	db.Exec(t, "INSERT INTO todo VALUES (1, 'hush')")
	db.Exec(t, "CREATE TABLE later (id int PRIMARY KEY)")
	log.Wait(t, `msg="audit: tracking" schema=public table=later`, 1)
	db.Exec(t, "DROP TABLE later")
	log.Wait(t, `msg="audit: table is not tracked any more; its history stays" schema=public table=later`, 1)
	db.Exec(t, "SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE slot_name = '"+slotOf(db)+"'")
	log.Wait(t, `level=WARN msg="audit: capture was interrupted and will be tried again"`, 1)
	log.Wait(t, `level=INFO msg="audit: capturing"`, 2)
	dropSlotUnderReader(t, db)
	log.Wait(t, `level=ERROR msg="audit: history has a gap"`, 1)
	a.Sync(t)
	for text, want := range map[string]int{
		`msg="audit: tracking" schema=public table=todo`:  1,
		`msg="audit: tracking" schema=public table=later`: 1,
		`msg="audit: history has a gap"`:                  1,
	} {
		if n := log.Count(text); n != want {
			t.Errorf("%q was logged %d times, want %d", text, n, want)
		}
	}
	expectNoneOf(t, "the log", log.Text(), "hush")
}

// A waiting instance says so once, not twice a second.
func TestWaitingInstanceIsQuiet(t *testing.T) {
	t.Parallel()
	log := faulttest.NewLog(t)
	a := audittest.New(t, audit.Config{}, gapTable)
	second := audittest.Open(t, a.Database, audit.Config{Logger: log.Logger()})
	mustStart(t, second)
	if s := statusOf(t, second); s.State != capture.Waiting {
		t.Errorf("the second instance is %s", s.State)
	}
	lines := strings.Count(log.Text(), "\n")
	faulttest.Pause(t, 3*time.Second)
	if more := strings.Count(log.Text(), "\n") - lines; more > 0 {
		t.Errorf("it logged %d lines while it waited", more)
	}
	if n := log.Count("another instance captures, this one waits"); n != 1 {
		t.Errorf("it said %d times that it waits", n)
	}
	// It flickers through starting; it may not show that.
	for range 200 {
		if s := statusOf(t, second); s.State != capture.Waiting {
			t.Fatalf("the waiting instance shows that it is %s", s.State)
		}
	}
}

// metricsOf returns what a client has measured, by name; of a counter its sum,
// of a gauge its last value, of a histogram how much it has counted.
func metricsOf(t *testing.T, reader metric.Reader) map[string]float64 {
	t.Helper()
	var all metricdata.ResourceMetrics
	if err := reader.Collect(t.Context(), &all); err != nil {
		t.Fatal(err)
	}
	values := make(map[string]float64)
	for _, scope := range all.ScopeMetrics {
		if scope.Scope.Name != "github.com/hindsight-go/audit" {
			t.Errorf("a metric has the scope %q", scope.Scope.Name)
		}
		for _, m := range scope.Metrics {
			if m.Description == "" || m.Unit == "" {
				t.Errorf("metric %s has the description %q and the unit %q", m.Name, m.Description, m.Unit)
			}
			switch data := m.Data.(type) {
			case metricdata.Sum[int64]:
				for _, p := range data.DataPoints {
					kind, _ := p.Attributes.Value(attribute.Key("kind"))
					if s := kind.AsString(); s != "" {
						values[m.Name+" "+s] += float64(p.Value)
					}
					values[m.Name] += float64(p.Value)
				}
			case metricdata.Gauge[int64]:
				for _, p := range data.DataPoints {
					values[m.Name] = float64(p.Value)
				}
			case metricdata.Gauge[float64]:
				for _, p := range data.DataPoints {
					values[m.Name] = p.Value
				}
			case metricdata.Histogram[float64]:
				for _, p := range data.DataPoints {
					values[m.Name] += float64(p.Count)
					if len(p.Bounds) == 0 || p.Bounds[0] > 0.01 {
						t.Errorf("metric %s, in %s, has the bounds %v", m.Name, m.Unit, p.Bounds)
					}
				}
			default:
				t.Errorf("metric %s is a %T", m.Name, m.Data)
			}
		}
	}
	return values
}

func TestMetrics(t *testing.T) {
	t.Parallel()
	reader := metric.NewManualReader()
	provider := metric.NewMeterProvider(metric.WithReader(reader))
	db := audittest.NewDatabase(t)
	db.Exec(t, gapTable)
	a := audittest.Open(t, db, audit.Config{MeterProvider: provider})
	mustStart(t, a)
	db.Exec(t, "INSERT INTO todo SELECT n, 'x' FROM generate_series(1, 25) n")
	a.Sync(t)
	values := metricsOf(t, reader)
	if values["audit.changes"] != 25 {
		t.Errorf("audit.changes is %v, want 25", values["audit.changes"])
	}
	if values["audit.batches"] < 1 || values["audit.batches"] != values["audit.batch.duration"] {
		t.Errorf("audit.batches is %v, audit.batch.duration has counted %v", values["audit.batches"], values["audit.batch.duration"])
	}
	for _, kind := range telemetry.ErrorKinds {
		if n, ok := values["audit.errors "+kind]; n != 0 || !ok {
			t.Errorf("audit.errors of the kind %s is %v, there %t: want 0, so that it is seen to rise", kind, n, ok)
		}
	}
	for _, m := range telemetry.All {
		if _, ok := values[m.Name]; !ok && m.Name != telemetry.SlotBound.Name && m.Name != telemetry.SlotSafe.Name {
			t.Errorf("there is no %s", m.Name)
		}
	}
	if values["audit.streaming"] != 1 {
		t.Errorf("audit.streaming is %v, want 1", values["audit.streaming"])
	}
	for _, gauge := range []string{"audit.lag.bytes", "audit.lag.time", "audit.slot.retained"} {
		if v, ok := values[gauge]; !ok || v < 0 {
			t.Errorf("%s is %v, there %t", gauge, v, ok)
		}
	}
	dropSlotUnderReader(t, db)
	a.Sync(t)
	values = metricsOf(t, reader)
	if values["audit.errors gap"] != 1 || values["audit.errors"] < 2 {
		t.Errorf("audit.errors is %v, of which gaps %v, want 1 gap and the interruption", values["audit.errors"], values["audit.errors gap"])
	}
	a.Stop(t)
	if n := metricsOf(t, reader)["audit.streaming"]; n != 0 {
		t.Errorf("audit.streaming is %v when capture has stopped, want 0", n)
	}
	a.Client.Close()
	if after := metricsOf(t, reader); after["audit.changes"] != values["audit.changes"] {
		t.Errorf("audit.changes is %v after Close, want %v", after["audit.changes"], values["audit.changes"])
	}
}

func TestQueryOfAStoreThatWasNeverSetUpSaysSo(t *testing.T) {
	ownStore(t, "its store is made before it is opened")
	t.Parallel()
	a := audittest.Open(t, audittest.NewDatabase(t), audit.Config{})
	if _, err := a.Client.Changes().List(t.Context()); !errors.Is(err, audit.ErrNoHistory) {
		t.Errorf("List returned %v, want ErrNoHistory", err)
	}
	for _, err := range a.Client.Changes().Watch(t.Context()) {
		if !errors.Is(err, audit.ErrNoHistory) {
			t.Errorf("Watch gave %v, want ErrNoHistory", err)
		}
	}
}
