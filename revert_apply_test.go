package audit_test

import (
	"context"
	"encoding/json"
	"errors"
	"strings"
	"sync"
	"testing"

	"github.com/hindsight-go/audit"
)

func TestPlanWritesNothingAndSaysEverything(t *testing.T) {
	t.Parallel()
	u := newUndo(t, shop)
	u.request(t, "first", "UPDATE customer SET city = NULL WHERE id = 1", "DELETE FROM orders WHERE id = 11", `INSERT INTO customer VALUES (4, 'D''an\', '')`)
	u.request(t, "second", "UPDATE orders SET note = 'x'")
	now := u.state(t)
	plan, err := u.Client.RevertRequest("first").Plan(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	u.want(t, "the plan wrote something", now)
	if plan.Inserts != 1 || plan.Updates != 1 || plan.Deletes != 1 || plan.Changes != 3 || plan.Empty() {
		t.Errorf("the plan counts %+v", plan)
	}
	for _, want := range []string{`~ public.customer[1] city: NULL -> "Rome"`, `+ public.orders[11] id: "11", customer: "2", total: "20.00", note: "rush"`, `- public.customer[4] id: "4", name: "D'an\\", city: ""`} {
		if !strings.Contains(plan.String(), want) {
			t.Errorf("the plan does not say %s:\n%s", want, plan)
		}
	}
	var document struct {
		Of   audit.Unit
		Hash string
		Rows []struct {
			Table, Action, Outcome string
			Key                    []string
		}
	}
	text, err := json.Marshal(plan)
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(text, &document); err != nil {
		t.Fatal(err)
	}
	if document.Hash != plan.Hash || document.Of.ID != "first" || len(document.Rows) != 3 || document.Rows[0].Action != "UPDATE" || document.Rows[0].Outcome != "reverted" {
		t.Errorf("as JSON: %s", text)
	}
}

func TestPlanAsSQLDoesTheSame(t *testing.T) {
	t.Parallel()
	u := newUndo(t, shop)
	before := u.state(t)
	u.request(t, "first", "UPDATE customer SET city = NULL WHERE id = 1", "DELETE FROM orders WHERE id = 11", `INSERT INTO customer VALUES (4, 'D''an\', '')`, "UPDATE orders SET customer = 4 WHERE id = 12")
	plan, err := u.Client.RevertRequest("first").Plan(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	u.Exec(t, plan.SQL())
	u.want(t, "after the script", before)
}

// The revert is told from all other changes, and who did it and why.
func TestRevertIsInHistory(t *testing.T) {
	t.Parallel()
	u := newUndo(t, shop)
	u.request(t, "first", "UPDATE customer SET city = 'Bonn'")
	ctx := audit.WithContext(t.Context(), audit.Context{UserID: "root", RequestID: "admin-1"})
	result, err := u.Client.RevertRequest("first").Reason("it was a mistake").Apply(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if err := u.Client.WaitFor(t.Context(), result.Token); err != nil {
		t.Fatal(err)
	}
	for name, q := range map[string]audit.Query{
		"Reverts": u.Client.Changes().Reverts(), "InRevert": u.Client.Changes().InRevert(result.ID),
		"RevertsOf": u.Client.Changes().RevertsOf(audit.Unit{Kind: "request", ID: "first"}), "InRequest": u.Client.Changes().InRequest("admin-1"),
	} {
		changes, err := q.List(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if len(changes) != 3 {
			t.Errorf("%s: %d changes", name, len(changes))
			continue
		}
		past, ok := changes[0].Revert()
		if !ok || past.ID != result.ID || past.Of != (audit.Unit{Kind: "request", ID: "first"}) || past.Reason != "it was a mistake" || past.User != "root" || past.TransactionID != result.TransactionID || past.Partial {
			t.Errorf("%s: the change is of %+v", name, past)
		}
	}
	first, err := u.Client.Changes().InRequest("first").First(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, ok := first.Revert(); ok {
		t.Error("the original counts as a revert")
	}
}

func TestTheSameUnitTwiceIsReportedNotRepeated(t *testing.T) {
	t.Parallel()
	u := newUndo(t, shop)
	before := u.state(t)
	u.request(t, "first", "UPDATE customer SET city = 'Bonn'")
	after := u.state(t)
	revert := u.Client.RevertRequest("first").Actor(7)
	first := apply(t, revert)
	second := apply(t, revert)
	if second.Already == nil || second.Already.ID != first.ID || second.Already.User != "7" || second.ID != "" || second.Updated != 0 || second.Token != "" {
		t.Errorf("the second revert: %+v, by %+v", second, second.Already)
	}
	plan, err := revert.Plan(t.Context())
	if err != nil || plan.Already == nil || plan.Already.ID != first.ID {
		t.Errorf("the plan knows of %+v, %v", plan.Already, err)
	}
	redo := apply(t, u.Client.Redo(first.ID))
	u.want(t, "after the redo", after)
	if apply(t, u.Client.Redo(first.ID)).Already.ID != redo.ID {
		t.Error("the second redo does not name the first")
	}
	third := apply(t, revert)
	if third.Already != nil {
		t.Error("what was redone cannot be reverted again")
	}
	u.want(t, "after the second revert", before)
}

// A request that goes on after it was reverted can be reverted again.
func TestWhatAUnitDoesLaterIsNotReverted(t *testing.T) {
	t.Parallel()
	u := newUndo(t, shop)
	before := u.state(t)
	u.request(t, "first", "UPDATE customer SET city = 'Bonn'")
	apply(t, u.Client.RevertRequest("first"))
	u.request(t, "first", "UPDATE customer SET name = 'X'")
	if again := apply(t, u.Client.RevertRequest("first").OnConflict(audit.Overwrite)); again.Already != nil || again.Updated != 3 {
		t.Errorf("the second revert: %+v", again)
	}
	u.want(t, "after the second revert", before)
}

func TestIdempotencyKeyMakesItHappenOnce(t *testing.T) {
	t.Parallel()
	u := newUndo(t, shop)
	u.request(t, "first", "UPDATE customer SET city = 'Bonn' WHERE id = 1")
	u.request(t, "second", "UPDATE customer SET city = 'Kyiv' WHERE id = 2")
	results := make([]*audit.Result, 4)
	var group sync.WaitGroup
	for i := range results {
		group.Go(func() {
			unit := []string{"first", "second"}[i%2]
			var err error
			if results[i], err = u.Client.RevertRequest(unit).IdempotencyKey("click").Apply(t.Context()); err != nil {
				t.Error(err)
			}
		})
	}
	group.Wait()
	did := 0
	for _, r := range results {
		if r != nil && r.Already == nil {
			did++
		}
	}
	if did != 1 {
		t.Errorf("%d of 4 did something", did)
	}
}

func TestDryRunDoesEverythingAndLeavesNothing(t *testing.T) {
	t.Parallel()
	u := newUndo(t, shop, "CREATE TABLE app_log (n int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, what text)")
	u.request(t, "first", "DELETE FROM orders WHERE id = 10", "UPDATE customer SET city = 'X' WHERE id = 2")
	now := u.state(t)
	result, err := u.Client.RevertRequest("first").DryRun(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if !result.DryRun || result.Inserted != 1 || result.Updated != 1 || result.Token != "" {
		t.Errorf("the result is %+v", result)
	}
	u.want(t, "the dry run left something", now)
	u.Exec(t, "ALTER TABLE orders ADD CHECK (total > 10) NOT VALID")
	var refused *audit.ConflictError
	if _, err := u.Client.RevertRequest("first").DryRun(t.Context()); !errors.As(err, &refused) || refused.Conflicts[0].Constraint != "orders_total_check" {
		t.Errorf("a constraint added since gives %v", err)
	}
}

func TestStalePlanIsRefused(t *testing.T) {
	t.Parallel()
	for name, meanwhile := range map[string]string{
		"Changed":   "UPDATE customer SET city = 'Lima' WHERE id = 1",
		"Deleted":   "DELETE FROM customer WHERE id = 3",
		"Recreated": "INSERT INTO orders VALUES (10, 1, 1, '')",
		"NewRow":    "UPDATE customer SET name = 'changed' WHERE id = 4",
		"Cascading": "INSERT INTO visit VALUES (1, 4)",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			u := newUndo(t, shop, "CREATE TABLE visit (id int PRIMARY KEY, customer int REFERENCES customer ON DELETE CASCADE)")
			u.request(t, "first", "UPDATE customer SET city = 'Bonn'", "DELETE FROM orders WHERE id = 10", "INSERT INTO customer VALUES (4, 'D', '')")
			plan, err := u.Client.RevertRequest("first").Plan(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			u.Exec(t, meanwhile)
			now := u.state(t)
			var stale *audit.StaleError
			if _, err := plan.Apply(t.Context()); !errors.As(err, &stale) || len(stale.Key) != 1 {
				t.Errorf("applying the plan gives %v", err)
			}
			if _, err := u.Client.RevertRequest("first").OnConflict(audit.Overwrite).IfHash(plan.Hash).Apply(t.Context()); !errors.As(err, &stale) {
				t.Errorf("applying by its hash gives %v", err)
			}
			u.want(t, "a stale plan wrote something", now)
		})
	}
}

// What the plan does not touch may change.
func TestPlanHoldsWhileOtherThingsChange(t *testing.T) {
	t.Parallel()
	u := newUndo(t, shop)
	u.request(t, "first", "UPDATE customer SET city = 'Bonn'")
	plan, err := u.Client.RevertRequest("first").Plan(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	u.Exec(t, "UPDATE customer SET name = 'changed'")
	if _, err := u.Client.RevertRequest("first").IfHash(plan.Hash).DryRun(t.Context()); err != nil {
		t.Error(err)
	}
	if _, err := plan.Apply(t.Context()); err != nil {
		t.Fatal(err)
	}
	u.holds(t, "(SELECT bool_and(name = 'changed' AND city IS DISTINCT FROM 'Bonn') FROM customer)")
}

// A row that somebody holds is waited for, and then looked at again.
func TestRowChangedWhileTheRevertWaitsForIt(t *testing.T) {
	t.Parallel()
	for name, work := range map[string]struct {
		statement string
		conflict  bool
	}{
		"Changed":     {"UPDATE customer SET city = 'Lima' WHERE id = 2", true},
		"Deleted":     {"DELETE FROM customer WHERE id = 3", true},
		"OtherColumn": {"UPDATE customer SET name = 'kept' WHERE id = 2", false},
		"OnlyLocked":  {"SELECT FROM customer WHERE id = 2 FOR UPDATE", false},
	} {
		for _, planned := range []bool{false, true} {
			t.Run(name+map[bool]string{true: "/AfterPlan", false: "/AtOnce"}[planned], func(t *testing.T) {
				t.Parallel()
				u := newUndo(t, shop)
				u.request(t, "first", "UPDATE customer SET city = 'Bonn'")
				plan, err := u.Client.RevertRequest("first").Plan(t.Context())
				if err != nil {
					t.Fatal(err)
				}
				do := u.Client.RevertRequest("first").Apply
				if planned {
					do = plan.Apply
				}
				tx := u.holding(t, work.statement)
				done := inBackground(func() (*audit.Result, error) { return do(t.Context()) })
				u.awaitLock(t)
				if err := tx.Commit(t.Context()); err != nil {
					t.Fatal(err)
				}
				err = <-done
				var stale *audit.StaleError
				var blocked *audit.ConflictError
				switch {
				case !work.conflict && err != nil:
					t.Error(err)
				case work.conflict && planned && !errors.As(err, &stale), work.conflict && !planned && !errors.As(err, &blocked):
					t.Errorf("the revert gives %v", err)
				}
				if work.conflict {
					u.holds(t, "(SELECT city = 'Bonn' FROM customer WHERE id = 1)")
				}
				u.holds(t, "NOT EXISTS (SELECT FROM customer WHERE id = 2 AND name <> 'kept' AND name <> 'Bob')")
			})
		}
	}
}

// History that is behind cannot lead to anything being overwritten: the live row
// decides.
func TestUncapturedWorkIsNotOverwritten(t *testing.T) {
	t.Parallel()
	u := newUndo(t, shop)
	u.request(t, "first", "UPDATE customer SET city = 'Bonn'", "INSERT INTO customer VALUES (4, 'Dan', '')", "DELETE FROM orders WHERE id = 10")
	u.Sync(t)
	u.Stop(t)
	u.request(t, "second", "UPDATE customer SET city = 'Lima' WHERE id = 1", "UPDATE customer SET city = 'x' WHERE id = 4", "INSERT INTO orders VALUES (10, 2, 5, 'new')")
	now := u.state(t)
	var behind *audit.HistoryError
	if _, err := u.Client.RevertRequest("first").Apply(t.Context()); !errors.As(err, &behind) || !errors.Is(err, audit.ErrNotCaptured) {
		t.Errorf("while nobody captures: %v", err)
	}
	revert := u.Client.RevertRequest("first").AsStored()
	wantConflicts(t, revert, "column changed public.customer[1] city", "column changed public.customer[4] city", "row created again public.orders[10]")
	for _, policy := range []audit.Policy{audit.Abort, audit.Cascade} {
		var blocked *audit.ConflictError
		if _, err := revert.OnConflict(policy).Apply(t.Context()); !errors.As(err, &blocked) || len(blocked.Conflicts) != 3 || blocked.Conflicts[0].Change != nil {
			t.Errorf("%v gives %v", policy, err)
		}
		u.want(t, "something was written", now)
	}
	apply(t, revert.OnConflict(audit.Skip))
	u.holds(t, "(SELECT array_agg(coalesce(city, '-') ORDER BY id) = '{Lima,Oslo,-,x}' FROM customer) AND (SELECT note = 'new' FROM orders WHERE id = 10)")
	if err := u.Client.Start(context.WithoutCancel(t.Context())); err != nil { // for the check at the end
		t.Fatal(err)
	}
}

func TestRefusesToRevertEverything(t *testing.T) {
	t.Parallel()
	u := newUndo(t, shop)
	u.request(t, "first", "UPDATE customer SET city = 'Bonn'")
	changes := u.Client.Changes()
	for name, r := range map[string]audit.Reversal{
		"NoFilter": u.Client.Revert(changes), "Limit": u.Client.Revert(changes.ForTable("customer").Limit(1)),
		"NoColumn": u.Client.RevertRequest("first").Columns(), "NoRows": u.Client.RevertRequest("first").MaxRows(0),
		"NoPolicy": u.Client.RevertRequest("first").OnConflict(nil), "NoPosition": u.Client.RevertChange(audit.Position{LSN: 5}),
		"NoFunction": u.Client.RevertRequest("first").OnConflict(audit.Resolve(nil)), "Zero": audit.Reversal{}.MaxRows(10),
		"WrongColumn": u.Client.RevertRequest("first").Columns("city", "ctiy"),
	} {
		var refused *audit.RevertError
		if _, err := r.Plan(t.Context()); !errors.As(err, &refused) {
			t.Errorf("%s: %v", name, err)
		}
		if _, err := r.Apply(t.Context()); !errors.As(err, &refused) {
			t.Errorf("%s: %v", name, err)
		}
	}
	var refused *audit.RevertError
	var read audit.Plan // as one is that was read from JSON
	if _, err := read.Apply(t.Context()); !errors.As(err, &refused) || read.SQL() != "" || !strings.HasPrefix(read.String(), "revert") {
		t.Errorf("a plan that nobody made: %v", err)
	}
	var filter *audit.FilterError
	now := u.Client.Now()
	for method, r := range map[string]audit.Reversal{
		"RevertRequest": u.Client.RevertRequest(""), "RevertTrace": u.Client.RevertTrace(""), "Redo": u.Client.Redo(""),
		"RevertRow": u.Client.RevertRow(now, "", 1), "RevertTables": u.Client.RevertTables(now, ""),
	} {
		if _, err := r.Plan(t.Context()); !errors.As(err, &filter) || !strings.HasPrefix(err.Error(), "audit: "+method+": ") {
			t.Errorf("%s of nothing: %v", method, err)
		}
	}
	if _, err := u.Client.RevertRequest("none").Plan(t.Context()); !errors.Is(err, audit.ErrNothingSelected) {
		t.Errorf("an unknown request: %v", err)
	}
	var many *audit.TooManyRowsError
	if _, err := u.Client.RevertRequest("first").MaxRows(2).Apply(t.Context()); !errors.As(err, &many) || many.Max != 2 {
		t.Errorf("three rows where two may be: %v", err)
	}
	if _, err := audit.RevertRequest("x").Plan(t.Context()); !errors.Is(err, audit.ErrNoDefaultClient) && !errors.Is(err, audit.ErrNothingSelected) {
		t.Errorf("without a client: %v", err)
	}
}

func TestEveryUnit(t *testing.T) {
	t.Parallel()
	u := newUndo(t, shop)
	before := u.state(t)
	begin := u.Client.AtPosition(u.position(t))
	u.as(t, audit.Context{UserID: 7, RequestID: "r", TraceID: "t"}, "UPDATE customer SET city = 'Bonn' WHERE id = 1")
	u.Sync(t)
	change, err := u.Client.Changes().InRequest("r").First(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	units := map[string]audit.Reversal{
		"RevertTransaction": u.Client.RevertTransaction(change.TransactionID), "RevertTrace": u.Client.RevertTrace("t"),
		"RevertChange": u.Client.RevertChange(change.Position), "RevertRow": u.Client.RevertRow(begin, "customer", 1),
		"RevertTables": u.Client.RevertTables(begin, "customer", "public.orders"),
		"Revert":       u.Client.Revert(u.Client.Changes().ByUser(7).ForTable("customer")),
	}
	for name, r := range units {
		result := apply(t, r)
		u.want(t, name, before)
		if result.Updated != 1 {
			t.Errorf("%s: %d updated", name, result.Updated)
		}
		apply(t, u.Client.Redo(result.ID))
		u.holds(t, "(SELECT city = 'Bonn' FROM customer WHERE id = 1)")
	}
	// Back to a moment is whatever happened since, reverts included.
	if result := apply(t, units["RevertTables"]); result.Updated != 1 {
		t.Errorf("%+v", result)
	}
	if result := apply(t, units["RevertTables"]); result.Updated != 0 || result.Already != nil || result.ID != "" {
		t.Errorf("once more: %+v", result)
	}
	u.want(t, "in the end", before)
}

func (u *undo) position(t *testing.T) audit.Position {
	t.Helper()
	var text string
	if err := u.conn.QueryRow(t.Context(), "SELECT pg_current_wal_insert_lsn()::text").Scan(&text); err != nil {
		t.Fatal(err)
	}
	p, err := audit.ParsePosition(text)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// Progress and large reverts: more rows than go into one statement.
func TestManyRows(t *testing.T) {
	t.Parallel()
	u := newUndo(t, "CREATE TABLE item (id int PRIMARY KEY, a text, b numeric, parent int REFERENCES item)",
		"INSERT INTO item SELECT i, E'a\\\\\\t' || i, i / 7.0, nullif(i - 1, 0) FROM generate_series(1, 5000) i")
	var steps []audit.Progress
	before := u.state(t)
	u.request(t, "first", "UPDATE item SET a = NULL, b = b + 1 WHERE id % 2 = 0", "UPDATE item SET a = 'odd' WHERE id % 2 = 1", "INSERT INTO item SELECT i, 'n', 1, i - 1 FROM generate_series(5001, 9000) i")
	after := u.state(t)
	result := apply(t, u.Client.RevertRequest("first").Progress(func(p audit.Progress) { steps = append(steps, p) }))
	u.want(t, "after the revert", before)
	if result.Updated != 5000 || result.Deleted != 4000 {
		t.Errorf("%+v", result)
	}
	if last := steps[len(steps)-1]; last.Step != "apply" || last.Done != 9000 || last.Total != 9000 || last.Table != "public.item" {
		t.Errorf("the last of %d steps is %+v", len(steps), last)
	}
	apply(t, u.Client.Redo(result.ID))
	u.want(t, "after the redo", after)
}
