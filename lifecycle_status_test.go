package audit_test

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"go.opentelemetry.io/otel/sdk/metric"

	"github.com/hindsight-go/audit"
	"github.com/hindsight-go/audit/audittest"
	"github.com/hindsight-go/audit/capture"
	"github.com/hindsight-go/audit/internal/faulttest"
	"github.com/hindsight-go/audit/internal/telemetry"
)

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
