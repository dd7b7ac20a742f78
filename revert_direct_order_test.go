package audit_test

import (
	"fmt"
	"testing"

	"github.com/hindsight-go/audit"
)

// A selection that is read as it lies in the store comes out as one that is sorted,
// with truncations in its midst, and with several processes reading it.
func TestUndoToAMomentOfChangesOutOfOrder(t *testing.T) {
	t.Parallel()
	for _, rows := range []int{1, 1000} {
		t.Run(fmt.Sprint(rows), func(t *testing.T) {
			t.Parallel()
			u := newUndo(t, "CREATE TABLE item (id int PRIMARY KEY, v int); CREATE TABLE other (id int PRIMARY KEY, v int)")
			audit.DirectRows(u.Client, rows)
			u.Exec(t, `DO $$ DECLARE s text; BEGIN
				FOREACH s IN ARRAY ARRAY['parallel_setup_cost = 0', 'parallel_tuple_cost = 0', 'min_parallel_table_scan_size = 0', 'min_parallel_index_scan_size = 0'] LOOP
					EXECUTE format('ALTER DATABASE %I SET ', current_database()) || s;
				END LOOP; END $$`)
			u.request(t, "setup", "INSERT INTO item SELECT i, i FROM generate_series(1, 50) i", "INSERT INTO other SELECT i, i FROM generate_series(1, 50) i")
			if err := u.Client.Sync(t.Context()); err != nil {
				t.Fatal(err)
			}
			changes, err := u.Client.Changes().Limit(1).List(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			to := u.Client.AtPosition(changes[0].Position)
			before := u.state(t)
			u.request(t, "work", "UPDATE item SET v = v + 1", "UPDATE other SET v = v + 1", "UPDATE item SET id = -id WHERE id % 2 = 0")
			u.request(t, "more", "UPDATE other SET v = v * 2 WHERE id < 30", "UPDATE item SET v = v * 2")
			u.Exec(t, "UPDATE audit.changes SET queued_at = queued_at WHERE operation = 'UPDATE' AND primary_key::int % 3 = 0")
			apply(t, u.Client.RevertTables(to, "item", "other"))
			u.want(t, "after the revert", before)

			u.request(t, "truncate", "DELETE FROM item WHERE id < 10", "TRUNCATE item", "INSERT INTO item VALUES (1, 100)", "TRUNCATE other")
			u.Exec(t, "UPDATE audit.changes SET queued_at = queued_at WHERE operation = 'DELETE'")
			apply(t, u.Client.RevertTables(to, "item", "other"))
			u.want(t, "after the revert of the truncation", before)
			u.Check(t)
		})
	}
}
