package audit_test

import (
	"errors"
	"testing"

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
