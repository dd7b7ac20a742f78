package audit_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/hindsight-go/audit"
	"github.com/hindsight-go/audit/audittest"
)

// Whatever was done since, tables go back to any moment that history covers, and
// from there to where they were.
func TestTablesGoBackToAMoment(t *testing.T) {
	t.Parallel()
	random := seeded(t)
	u := newUndo(t, family)
	states := [][]string{u.state(t)}
	moments := []audit.Point{u.Client.AtPosition(u.position(t))}
	var requests []string
	for i := range 12 {
		statements := randomRequest(random)
		requests = append(requests, strings.Join(statements, "; "))
		u.request(t, fmt.Sprint("r", i), statements...)
		states, moments = append(states, u.state(t)), append(moments, u.Client.AtPosition(u.position(t)))
	}
	last := states[len(states)-1]
	for range 5 {
		i := random.IntN(len(moments))
		result := apply(t, u.Client.RevertTables(moments[i], "parent", "child"))
		u.want(t, fmt.Sprintf("back over %q", requests[i:]), states[i])
		if result.ID != "" {
			apply(t, u.Client.Redo(result.ID))
		}
		u.want(t, fmt.Sprintf("forth again over %q", requests[i:]), last)
	}
}

func TestARowGoesBackToAMoment(t *testing.T) {
	t.Parallel()
	u := newUndo(t, `CREATE TABLE line (a int, b text, n int, t text, PRIMARY KEY (b, a));
		INSERT INTO line VALUES (1, 'x', 1, 'one'), (2, 'x', 2, 'two'), (3, 'x', 3, 'three')`)
	before := u.state(t)
	u.Sync(t)
	begin := u.Client.AtPosition(u.position(t))
	u.request(t, "first", "UPDATE line SET n = 10 WHERE a = 1", "DELETE FROM line WHERE a = 2", "INSERT INTO line VALUES (4, 'x', 4, 'four')")
	u.request(t, "second", "UPDATE line SET n = 11 WHERE a = 1", "INSERT INTO line VALUES (2, 'x', 0, 'other')", "UPDATE line SET t = 'vier' WHERE a = 4")
	for a := 1; a <= 4; a++ {
		apply(t, u.Client.RevertRow(begin, "line", "x", a))
	}
	u.want(t, "all rows are back", before)
	if result := apply(t, u.Client.RevertRow(begin, "line", "x", 3)); result.ID != "" {
		t.Errorf("a row that nobody touched: %+v", result)
	}
}

// A moment from which on history misses something is refused.
func TestWhereHistoryMissesSomethingNothingGoesBack(t *testing.T) {
	t.Parallel()
	for name, h := range map[string]struct {
		since  string
		reason error
		holds  string
	}{
		"Renamed":   {"ALTER TABLE customer RENAME TO client; ALTER TABLE orders RENAME TO customer; ALTER TABLE client RENAME TO orders; UPDATE orders SET city = 'x'; UPDATE customer SET note = 'x'", audit.ErrBeforeHistory, "(SELECT bool_and(city = 'x') FROM orders)"},
		"Recreated": {"DROP TABLE orders; CREATE TABLE orders (id int PRIMARY KEY, note text); INSERT INTO orders VALUES (1, 'new')", audit.ErrBeforeHistory, "EXISTS (SELECT FROM orders)"},
		"Untracked": {"CREATE SCHEMA other; CREATE TABLE other.orders2 (id int PRIMARY KEY)", audit.ErrNotTracked, "true"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			u := newUndo(t, shop)
			u.request(t, "first", "UPDATE customer SET city = 'Bonn'")
			u.Sync(t)
			begin := u.Client.AtPosition(u.position(t))
			for _, sql := range strings.Split(h.since, "; ") {
				u.Exec(t, sql)
			}
			if err := u.Client.Refresh(t.Context()); err != nil {
				t.Fatal(err)
			}
			tables := []string{"customer", "orders"}
			if name == "Untracked" {
				tables = []string{"other.orders2"}
			}
			var history *audit.HistoryError
			if _, err := u.Client.RevertTables(begin, tables...).Apply(t.Context()); !errors.As(err, &history) || !errors.Is(err, h.reason) {
				t.Errorf("the revert gives %v", err)
			}
			u.holds(t, h.holds)
		})
	}
}

// What a request did while nobody captured is not there to be reverted: half of a
// request is not taken for the whole.
func TestRequestAcrossAGapIsRefused(t *testing.T) {
	t.Parallel()
	u := newUndo(t, shop)
	u.request(t, "first", "UPDATE customer SET city = 'Bonn' WHERE id = 1")
	u.Sync(t)
	from := u.position(t)
	u.request(t, "other", "UPDATE customer SET city = 'Kyiv' WHERE id = 3")
	u.Sync(t)
	to := u.position(t)
	u.request(t, "first", "UPDATE customer SET city = 'Bonn' WHERE id = 2")
	u.Sync(t)
	u.Exec(t, fmt.Sprintf(`INSERT INTO audit.gaps (database, from_position, to_position, from_time, to_time, reason)
		VALUES (current_database(), '%s', '%s', now(), now(), 'made by a test')`, from.LSN, to.LSN))
	revert := u.Client.RevertRequest("first")
	if _, err := revert.Plan(t.Context()); !errors.Is(err, audit.ErrInGap) {
		t.Errorf("the plan gives %v", err)
	}
	if _, err := revert.Apply(t.Context()); !errors.Is(err, audit.ErrInGap) {
		t.Errorf("the revert gives %v", err)
	}
	apply(t, revert.AsStored())
	u.holds(t, "(SELECT array_agg(city ORDER BY id) = '{Rome,Oslo,Kyiv}' FROM customer)")
	// Behind the gap all is well.
	apply(t, u.Client.RevertTables(u.Client.AtPosition(to), "customer"))
	u.Exec(t, "DELETE FROM audit.gaps")
}

// A moment before the table was tracked is refused, by whatever it is told: changes from
// between are not in history.
func TestRevert_ToAMomentBeforeTracking(t *testing.T) {
	t.Parallel()
	u := newUndo(t, shop)
	before := must(audit.ParsePosition(audittest.Value[string](t, u.Database, "SELECT '0/1'::pg_lsn::text")))
	u.request(t, "first", "UPDATE customer SET city = 'Bonn'")
	u.Sync(t)
	for name, moment := range map[string]audit.Point{
		"a day ago": u.Client.AsOf(time.Now().Add(-24 * time.Hour)), "a year ago": u.Client.AsOf(time.Now().AddDate(-1, 0, 0)),
		"long before the Unix epoch": u.Client.AsOf(time.Date(1800, 1, 1, 0, 0, 0, 0, time.UTC)), "position": u.Client.AtPosition(before),
	} {
		for what, revert := range map[string]audit.Reversal{"RevertTables": u.Client.RevertTables(moment, "customer"), "RevertRow": u.Client.RevertRow(moment, "customer", 1)} {
			plan, err := revert.Plan(t.Context())
			if !errors.Is(err, audit.ErrBeforeHistory) {
				t.Errorf("%s to %s: %v, %v", what, name, plan, err)
			}
		}
	}
}
