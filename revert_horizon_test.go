package audit_test

import (
	"errors"
	"fmt"
	"testing"

	"github.com/hindsight-go/audit"
	"github.com/hindsight-go/audit/audittest"
)

// A table that was renamed or moved since a moment is refused by its new name and
// by its old one; undone by its request, it is found.
func TestTableRenamedSinceAMoment(t *testing.T) {
	t.Parallel()
	for name, h := range map[string]struct{ since, table string }{
		"Renamed": {"ALTER TABLE customer RENAME TO client", "client"}, "Moved": {"CREATE SCHEMA app; ALTER TABLE customer SET SCHEMA app", "app.customer"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			u := newUndo(t, shop)
			begin := u.Client.AtPosition(u.position(t))
			u.request(t, "first", "UPDATE customer SET city = 'Bonn'")
			u.Sync(t)
			u.Exec(t, h.since)
			u.request(t, "second", fmt.Sprintf("UPDATE %s SET name = 'x' WHERE id = 1", h.table))
			if err := u.Client.Refresh(t.Context()); err != nil {
				t.Fatal(err)
			}
			now := u.state(t)
			for _, table := range []string{"public.customer", h.table} {
				for _, revert := range []audit.Reversal{u.Client.RevertTables(begin, table), u.Client.RevertRow(begin, table, 1)} {
					var refused *audit.HistoryError
					if _, err := revert.Apply(t.Context()); !errors.As(err, &refused) {
						t.Errorf("by the name %s: %v", table, err)
					}
				}
			}
			u.want(t, "something was written", now)
			apply(t, u.Client.RevertRequest("first"))
			u.holds(t, fmt.Sprintf("(SELECT array_agg(coalesce(city, '-') ORDER BY id) = '{Rome,Oslo,-}' AND count(*) FILTER (WHERE name = 'x') = 1 FROM %s)", h.table))
		})
	}
}

// History in another database knows nothing of the source's transaction, and need
// not: what is undone and what is refused is the same.
func TestRevertWithAStoreOfItsOwn(t *testing.T) {
	t.Parallel()
	source, history := audittest.NewDatabase(t), audittest.NewDatabase(t)
	source.Exec(t, shop)
	a := audittest.Open(t, source, audit.Config{Tables: []string{"public.*"}, StoreURL: history.URL()})
	mustStart(t, a)
	t.Cleanup(func() { a.Stop(t) })
	u := &undo{Audited: a, conn: a.Connect(t)}
	u.roundTrip(t, "UPDATE customer SET city = 'Bonn'", "DELETE FROM orders WHERE id = 10", "INSERT INTO customer VALUES (4, 'Dan', NULL)")
	begin := u.Client.AtPosition(u.position(t))
	before := u.state(t)
	u.request(t, "first", "UPDATE customer SET city = 'Bonn' WHERE id = 1")
	u.request(t, "second", "UPDATE customer SET city = 'Kyiv' WHERE id = 1")
	wantConflicts(t, u.Client.RevertRequest("first"), "column changed public.customer[1] city")
	applyIn(t, u.Connect(t), u.Client.RevertRequest("second"))
	apply(t, u.Client.RevertTables(begin, "customer"))
	u.want(t, "back at the moment", before)
	if again := apply(t, u.Client.RevertRequest("second")); again.Already == nil {
		t.Error("the second revert of the same request does not know the first")
	}
}

// A table with a virtual column cannot log its old rows, so what they were is not
// in history: that is said, and nothing is half restored.
func TestTableWithAVirtualColumn(t *testing.T) {
	t.Parallel()
	if audittest.NewDatabase(t).Server().Version() < 180000 {
		return // there are none
	}
	u := newUndo(t, "CREATE TABLE a (id int PRIMARY KEY, n int, twice int GENERATED ALWAYS AS (n * 2) VIRTUAL); INSERT INTO a VALUES (1, 1), (2, 2)")
	u.request(t, "changed", "INSERT INTO a VALUES (3, 3)", "UPDATE a SET n = 3 WHERE id = 1", "DELETE FROM a WHERE id = 2")
	u.request(t, "made", "INSERT INTO a VALUES (4, 4)")
	now := u.state(t)
	var refused *audit.UnrevertableError
	if _, err := u.Client.RevertRequest("changed").Apply(t.Context()); !errors.As(err, &refused) {
		t.Errorf("the revert gives %v", err)
	}
	u.want(t, "something was written", now)
	apply(t, u.Client.RevertRequest("made"))
	u.holds(t, "NOT EXISTS (SELECT FROM a WHERE id = 4)")
}
