package audit_test

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"go.opentelemetry.io/otel/sdk/metric"
	"go.opentelemetry.io/otel/sdk/metric/metricdata"

	"github.com/hindsight-go/audit"
	"github.com/hindsight-go/audit/audittest"
	"github.com/hindsight-go/audit/internal/faulttest"
)

// blind bounds how long capture may take a connection for alive that leads nowhere.
const blind = 60 * time.Second

// openAt captures until the test ends.
func openAt(t *testing.T, cfg audit.Config) {
	t.Helper()
	client, err := audit.Open(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(client.Close)
	if err := client.Start(context.WithoutCancel(t.Context())); err != nil {
		t.Fatalf("start capture: %v", err)
	}
}

func waitRow(t *testing.T, store *audittest.Database, id int) {
	t.Helper()
	faulttest.Poll(t, blind, fmt.Sprintf("row %d is in history", id), func() error {
		if audittest.Value[int](t, store, "SELECT count(*) FROM audit.changes WHERE primary_key = $1::int::text", id) != 1 {
			return errors.New("it is not")
		}
		return nil
	})
}

// A replication connection through which nothing comes any more is noticed by
// asking who holds the slot.
func TestDeadPeer_Replication(t *testing.T) {
	t.Parallel()
	db := audittest.NewDatabase(t)
	db.Exec(t, gapTable)
	proxy := faulttest.NewProxy(t, db.URL())
	openAt(t, audit.Config{SourceURL: proxy.URL(), StoreURL: db.URL()})
	db.Exec(t, "INSERT INTO todo VALUES (1, 'x')")
	waitRow(t, db, 1)
	t.Cleanup(proxy.Cut) // so that closing does not wait for what is frozen
	proxy.FreezeOpen()
	db.Exec(t, "INSERT INTO todo VALUES (2, 'x')")
	waitRow(t, db, 2)
}

// So is one to the store, in the midst of whatever it is at.
func TestDeadPeer_Store(t *testing.T) {
	t.Parallel()
	db, store := audittest.NewDatabase(t), audittest.NewDatabase(t)
	db.Exec(t, gapTable)
	proxy := faulttest.NewProxy(t, store.URL())
	openAt(t, audit.Config{SourceURL: db.URL(), StoreURL: proxy.URL()})
	db.Exec(t, "INSERT INTO todo VALUES (1, 'x')")
	waitRow(t, store, 1)
	t.Cleanup(proxy.Cut) // so that closing does not wait for what is frozen
	proxy.FreezeOpen()
	db.Exec(t, "INSERT INTO todo VALUES (2, 'x')")
	waitRow(t, store, 2)
}

// A store that is at work for long is not taken for dead.
func TestDeadPeer_SlowStoreIsAlive(t *testing.T) {
	t.Parallel()
	db, store := audittest.NewDatabase(t), audittest.NewDatabase(t)
	db.Exec(t, gapTable)
	logged := faulttest.NewLog(t)
	openAt(t, audit.Config{SourceURL: db.URL(), StoreURL: store.URL(), Logger: logged.Logger()})
	store.Exec(t, `CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM pg_sleep(35); RETURN NEW; END $$;
		CREATE TRIGGER slow BEFORE UPDATE ON audit.checkpoints FOR EACH ROW WHEN (NEW.changes > OLD.changes) EXECUTE FUNCTION slow()`)
	db.Exec(t, "INSERT INTO todo VALUES (1, 'x')")
	waitRow(t, store, 1)
	if n := logged.Count("was interrupted"); n > 0 {
		t.Errorf("capture was interrupted %d times", n)
	}
	store.Exec(t, "DROP TRIGGER slow ON audit.checkpoints")
}

// The gauge of retained WAL goes on while the store is away: that is when the alerts
// on it have to fire.
func TestGauges_StoreAway(t *testing.T) {
	t.Parallel()
	db, store := audittest.NewDatabase(t), audittest.NewDatabase(t)
	db.Exec(t, gapTable)
	proxy := faulttest.NewProxy(t, store.URL())
	reader := metric.NewManualReader()
	openAt(t, audit.Config{SourceURL: db.URL(), StoreURL: proxy.URL(), MeterProvider: metric.NewMeterProvider(metric.WithReader(reader))})
	proxy.Freeze()
	proxy.Cut()
	const written = 20_000_000
	for range 20 {
		db.Exec(t, "SELECT pg_logical_emit_message(false, 'x', repeat('x', 1000000))")
	}
	faulttest.Poll(t, faulttest.Patience, "audit.slot.retained grows", func() error {
		var data metricdata.ResourceMetrics
		if err := reader.Collect(t.Context(), &data); err != nil {
			return err
		}
		for _, scope := range data.ScopeMetrics {
			for _, m := range scope.Metrics {
				if gauge, ok := m.Data.(metricdata.Gauge[int64]); ok && m.Name == "audit.slot.retained" && gauge.DataPoints[0].Value >= written {
					return nil
				}
			}
		}
		return errors.New("it does not")
	})
	proxy.Thaw()
}
