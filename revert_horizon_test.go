package audit_test

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/hindsight-go/audit"
	"github.com/hindsight-go/audit/audittest"
)

// What retention has dropped cannot be undone: a moment before its horizon is
// refused, however it is given, and nothing is put back in part.
func TestMomentBeforeRetention(t *testing.T) {
	t.Parallel()
	db := audittest.NewDatabase(t)
	db.Exec(t, shop)
	a := audittest.Open(t, db, audit.Config{Tables: []string{"public.*"}, Retention: 24 * time.Hour})
	mustStart(t, a)
	t.Cleanup(func() { a.Stop(t) })
	u := &undo{Audited: a, conn: a.Connect(t)}
	begin := u.position(t)
	if _, err := u.Client.Mark(t.Context(), "long ago"); err != nil {
		t.Fatal(err)
	}
	u.request(t, "long ago", "UPDATE customer SET city = 'Bonn' WHERE id = 1", "DELETE FROM orders WHERE id = 12")
	u.request(t, "spread", "UPDATE customer SET name = 'X' WHERE id = 1")
	u.Sync(t)
	// History as if all this had been two months ago, and dropped since.
	u.Exec(t, "SELECT audit.ensure_partition(now() - interval '70 days')")
	u.Exec(t, "UPDATE audit.changes SET committed_at = committed_at - interval '70 days'")
	u.Exec(t, "UPDATE audit.commit_times SET committed_at = committed_at - interval '70 days'")
	if err := audit.KeepPartitions(t.Context(), u.Client); err != nil {
		t.Fatal(err)
	}
	u.request(t, "lately", "UPDATE customer SET city = 'Kyiv' WHERE id = 2", "DELETE FROM orders WHERE id = 10")
	u.request(t, "spread", "UPDATE customer SET name = 'X' WHERE id = 2")
	u.Sync(t)
	now := u.state(t)
	for what, to := range map[string]audit.Point{
		"Position": u.Client.AtPosition(begin), "Time": u.Client.AsOf(time.Now().AddDate(0, 0, -71)), "Mark": u.Client.AtMark("long ago"), "First": u.Client.AtPosition(audit.Position{LSN: 1}),
	} {
		for unit, revert := range map[string]audit.Reversal{
			"RevertTables": u.Client.RevertTables(to, "customer", "orders"), "RevertRow": u.Client.RevertRow(to, "customer", 2), "RowThatOnlyChangedThen": u.Client.RevertRow(to, "customer", 1),
		} {
			var refused *audit.HistoryError
			if _, err := revert.Plan(t.Context()); !errors.As(err, &refused) || !errors.Is(err, audit.ErrPastRetention) && !errors.Is(err, audit.ErrBeforeHistory) {
				t.Errorf("%s to %s: planning gives %v", unit, what, err)
			}
			if _, err := revert.Apply(t.Context()); !errors.As(err, &refused) {
				t.Errorf("%s to %s gives %v", unit, what, err)
			}
		}
	}
	u.want(t, "something was written", now)
	if _, err := u.Client.RevertRequest("long ago").Plan(t.Context()); !errors.Is(err, audit.ErrNothingSelected) {
		t.Errorf("a request that was dropped: %v", err)
	}
	late := u.Client.BeforeRequest("lately")
	apply(t, u.Client.RevertTables(late, "customer", "orders"))
	u.holds(t, "(SELECT city = 'Oslo' AND name = 'Bob' FROM customer WHERE id = 2) AND EXISTS (SELECT FROM orders WHERE id = 10) AND (SELECT city = 'Bonn' FROM customer WHERE id = 1)")
}

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

// A row that was made, and to which somebody else gave another key since, is still
// there: that is in conflict, not done.
func TestRowsThatMovedAway(t *testing.T) {
	t.Parallel()
	u := newUndo(t, "CREATE TABLE a (id int PRIMARY KEY, n int)")
	u.request(t, "first", "INSERT INTO a VALUES (1, 1), (2, 2), (3, 3)")
	u.request(t, "second", "UPDATE a SET id = 20 WHERE id = 2", "DELETE FROM a WHERE id = 3")
	now := u.state(t)
	wantConflicts(t, u.Client.RevertRequest("first"), "row gone public.a[2]", "row gone public.a[3]")
	var blocked *audit.ConflictError
	if _, err := u.Client.RevertRequest("first").Apply(t.Context()); !errors.As(err, &blocked) {
		t.Errorf("the revert gives %v", err)
	}
	u.want(t, "something was written", now)
	apply(t, u.Client.RevertRequest("first").OnConflict(audit.Cascade))
	u.holds(t, "NOT EXISTS (SELECT FROM a)")
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
