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
