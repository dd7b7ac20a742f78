package audit_test

import (
	"errors"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/hindsight-go/audit"
	"github.com/hindsight-go/audit/audittest"
	"github.com/hindsight-go/audit/internal/faulttest"
)

// A partition is published and described in one transaction. One that is dropped before
// capture comes to its rows is not to be found in the catalog any more, and its rows have
// to go under the root's name nevertheless, also where setting up got stuck behind
// publishing it.
func TestPartitions_DroppedBeforeTheyWereLookedAt(t *testing.T) {
	t.Parallel()
	for name, alter := range map[string]string{
		"dropped":  "DROP TABLE parted_2",
		"detached": "ALTER TABLE parted DETACH PARTITION parted_2; DROP TABLE parted_2",
		"moved":    "ALTER TABLE parted DETACH PARTITION parted_2; ALTER TABLE parted_2 RENAME TO elsewhere; DROP TABLE elsewhere",
		"root too": "DROP TABLE parted",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			db, store := audittest.NewDatabase(t), audittest.NewDatabase(t)
			db.Exec(t, partedTable)
			a := audittest.Open(t, db, audit.Config{StoreURL: store.URL(), NoEventTrigger: true})
			mustStart(t, a)
			t.Cleanup(func() { a.Stop(t) })
			stuck := store.Connect(t)
			for _, sql := range []string{"BEGIN", "LOCK TABLE audit.coverage IN EXCLUSIVE MODE"} {
				if _, err := stuck.Exec(t.Context(), sql); err != nil {
					t.Fatal(err)
				}
			}
			db.Exec(t, "CREATE TABLE parted_2 PARTITION OF parted FOR VALUES FROM (10) TO (20)")
			faulttest.Poll(t, faulttest.Patience, "the partition is published", func() error {
				if audittest.Value[int](t, db, "SELECT count(*)::int FROM pg_publication_rel WHERE prrelid = 'parted_2'::regclass") == 0 {
					return errors.New("it is not")
				}
				return nil
			})
			db.Exec(t, "INSERT INTO parted VALUES (11, 'a'); UPDATE parted SET v = 'b' WHERE id = 11; "+alter)
			if _, err := stuck.Exec(t.Context(), "ROLLBACK"); err != nil {
				t.Fatal(err)
			}
			a.Sync(t)
			if n := audittest.Value[int](t, store, `SELECT count(*)::int FROM audit.changes WHERE "table" = 'parted' AND primary_key = '11'`); n != 2 {
				t.Errorf("%d changes of parted, want 2; all are of %s", n, audittest.Value[string](t, store, `SELECT string_agg("table" || ' ' || coalesce(primary_key, '?'), ', ') FROM audit.changes`))
			}
		})
	}
}

// What was told of a partition lies in a gap: it is told again behind that, before the rows of
// the partition, which is gone when capture comes to them.
func TestPartitions_ToldInAGap(t *testing.T) {
	t.Parallel()
	db, store := audittest.NewDatabase(t), audittest.NewDatabase(t)
	db.Exec(t, partedTable)
	proxy := faulttest.NewProxy(t, db.URL())
	client := openClient(t, audit.Config{SourceURL: proxy.URL(), StoreURL: store.URL(), Tables: []string{"public.*"}, NoEventTrigger: true, RefreshInterval: -1})
	if err := client.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := client.Sync(t.Context()); err != nil {
		t.Fatal(err)
	}
	read := make(chan struct{})
	proxy.Rewrite(func(answer []byte) {
		if len(answer) > 0 && answer[0] == 'd' { // the stream
			<-read
		}
	})
	db.Exec(t, "CREATE TABLE parted_2 PARTITION OF parted FOR VALUES FROM (10) TO (20)")
	if err := client.Refresh(t.Context()); err != nil {
		t.Fatal(err)
	}
	db.Exec(t, "SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE database = current_database() AND active")
	faulttest.Poll(t, faulttest.Patience, "the slot is dropped", func() error {
		_, err := db.Connect(t).Exec(t.Context(), "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE database = current_database()")
		return err
	})
	proxy.Rewrite(func([]byte) {})
	close(read)
	faulttest.Poll(t, faulttest.Patience, "the root is told of with its new part", func() error {
		if err := client.Sync(t.Context()); err != nil {
			return err
		}
		oid := audittest.Value[int64](t, db, "SELECT 'parted_2'::regclass::oid::bigint")
		if !audittest.Value[bool](t, store, "SELECT EXISTS (SELECT FROM audit.gaps) AND EXISTS (SELECT FROM audit.relations WHERE \"table\" = 'parted' AND $1 = ANY (parts))", oid) {
			return errors.New("it is not")
		}
		return nil
	})
	db.Exec(t, "BEGIN; INSERT INTO parted VALUES (11, 'a'); DROP TABLE parted_2; COMMIT")
	if err := client.Sync(t.Context()); err != nil {
		t.Fatal(err)
	}
	if of := audittest.Value[string](t, store, `SELECT coalesce(string_agg("table", ' '), '') FROM audit.changes`); of != "parted" {
		t.Errorf("the change is of %q, want parted", of)
	}
}

// Without event triggers, a partition that came, or one that somebody took out of the
// publication, is noticed by the next look. Until then nobody knows what was written to it,
// and the table's past is refused instead of told without.
func TestPartitions_UnpublishedIsRefused(t *testing.T) {
	t.Parallel()
	for name, sql := range map[string]string{
		"made":     "CREATE TABLE parted_2 PARTITION OF parted FOR VALUES FROM (10) TO (20); INSERT INTO parted VALUES (11, 'x')",
		"attached": "CREATE TABLE parted_2 (LIKE parted INCLUDING ALL); INSERT INTO parted_2 VALUES (11, 'x'); ALTER TABLE parted ATTACH PARTITION parted_2 FOR VALUES FROM (10) TO (20)",
		"nested":   "CREATE TABLE deep PARTITION OF parted FOR VALUES FROM (10) TO (20) PARTITION BY RANGE (id); CREATE TABLE deeper PARTITION OF deep DEFAULT; INSERT INTO parted VALUES (11, 'x')",
		"left":     "ALTER PUBLICATION audit DROP TABLE parted_1; UPDATE parted SET v = 'y' WHERE id = 1; INSERT INTO parted VALUES (2, 'x')",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			db, store := audittest.NewDatabase(t), audittest.NewDatabase(t)
			db.Exec(t, partedTable+"; INSERT INTO parted VALUES (1, 'a')")
			client := openClient(t, audit.Config{SourceURL: db.URL(), StoreURL: store.URL(), Tables: []string{"public.*"}, NoEventTrigger: true, RefreshInterval: -1})
			if err := client.Start(t.Context()); err != nil {
				t.Fatal(err)
			}
			if err := client.Sync(t.Context()); err != nil {
				t.Fatal(err)
			}
			questions := map[string]func() error{
				"Count": func() error {
					_, err := client.Now().Table("parted").Count(t.Context())
					return err
				},
				"View": func() error {
					return client.Now().View(t.Context(), func(tx pgx.Tx) error {
						_, err := tx.Exec(t.Context(), "SELECT count(*) FROM parted")
						return err
					})
				},
				"Key": func() error {
					_, err := client.Now().Table("parted").One(t.Context(), 1)
					return err
				},
				"Baseline": func() error { return client.Baseline(t.Context(), &audit.BaselineOptions{Tables: []string{"parted"}}) },
			}
			for name, ask := range questions {
				if err := ask(); err != nil {
					t.Errorf("%s before: %v", name, err)
				}
			}
			db.Exec(t, sql)
			for name, ask := range questions {
				var history *audit.HistoryError
				if err := ask(); !errors.As(err, &history) || !errors.Is(err, audit.ErrIncomplete) {
					t.Errorf("%s: %v, want it refused as incomplete", name, err)
				}
			}
			if err := client.Refresh(t.Context()); err != nil {
				t.Fatal(err)
			}
			want := audittest.Value[int64](t, db, "SELECT count(*) FROM parted")
			if got, err := client.Now().Table("parted").Count(t.Context()); err != nil || got != want {
				t.Errorf("%d rows behind the look, want %d: %v", got, want, err)
			}
		})
	}
}
