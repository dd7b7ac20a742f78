package audit_test

import (
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/hindsight-go/audit"
)

// later is one thing that somebody does after a request, with what that means for
// reverting the request.
type later struct {
	request   []string
	statement string
	conflicts []string
	// skipped is what is left of the request's work under Skip, in SQL that gives
	// true.
	skipped string
	// cascade reports whether Cascade leads back to where all began.
	cascade bool
	// overwritten is what holds under Overwrite, or empty if it cannot be had.
	overwritten string
}

var laterWork = map[string]later{
	"SameColumn": {
		request:     []string{"UPDATE customer SET city = 'Bonn' WHERE id IN (1, 2)"},
		statement:   "UPDATE customer SET city = 'Kyiv', name = 'Anna' WHERE id = 1",
		conflicts:   []string{"column changed public.customer[1] city"},
		skipped:     "(SELECT city = 'Kyiv' FROM customer WHERE id = 1) AND (SELECT city = 'Oslo' FROM customer WHERE id = 2)",
		cascade:     true,
		overwritten: "(SELECT city = 'Rome' AND name = 'Anna' FROM customer WHERE id = 1) AND (SELECT city = 'Oslo' FROM customer WHERE id = 2)",
	},
	"RowGone": {
		request:     []string{"UPDATE customer SET city = 'Bonn' WHERE id IN (1, 3)"},
		statement:   "DELETE FROM customer WHERE id = 3",
		conflicts:   []string{"row gone public.customer[3]"},
		skipped:     "NOT EXISTS (SELECT FROM customer WHERE id = 3) AND (SELECT city = 'Rome' FROM customer WHERE id = 1)",
		cascade:     true,
		overwritten: "(SELECT city IS NULL AND name = 'Cyd' FROM customer WHERE id = 3)",
	},
	"RowRecreated": {
		request:     []string{"DELETE FROM customer WHERE id = 3", "UPDATE customer SET city = 'Bonn' WHERE id = 1"},
		statement:   "INSERT INTO customer VALUES (3, 'Someone else', 'Lima')",
		conflicts:   []string{"row created again public.customer[3]"},
		skipped:     "(SELECT name = 'Someone else' FROM customer WHERE id = 3) AND (SELECT city = 'Rome' FROM customer WHERE id = 1)",
		cascade:     true,
		overwritten: "(SELECT name = 'Cyd' AND city IS NULL FROM customer WHERE id = 3)",
	},
	"NewRowChanged": {
		request:     []string{"INSERT INTO customer VALUES (4, 'Dan', 'Rome')", "UPDATE customer SET city = 'Bonn' WHERE id = 1"},
		statement:   "UPDATE customer SET city = 'Lima' WHERE id = 4",
		conflicts:   []string{"column changed public.customer[4] city"},
		skipped:     "(SELECT city = 'Lima' FROM customer WHERE id = 4) AND (SELECT city = 'Rome' FROM customer WHERE id = 1)",
		cascade:     true,
		overwritten: "NOT EXISTS (SELECT FROM customer WHERE id = 4)",
	},
	"NewRowReferenced": {
		request:   []string{"INSERT INTO customer VALUES (4, 'Dan', 'Rome')", "UPDATE customer SET city = 'Bonn' WHERE id = 1"},
		statement: "INSERT INTO orders VALUES (40, 4, 1, 'for Dan')",
		conflicts: []string{"row referenced public.customer[4]"},
		skipped:   "EXISTS (SELECT FROM customer WHERE id = 4) AND (SELECT city = 'Rome' FROM customer WHERE id = 1)",
		cascade:   true,
	},
	"ParentMissing": {
		request:   []string{"DELETE FROM orders WHERE id IN (10, 12)"},
		statement: "DELETE FROM customer WHERE id = 1",
		conflicts: []string{"parent missing public.orders[10]"},
		skipped:   "NOT EXISTS (SELECT FROM orders WHERE id = 10) AND EXISTS (SELECT FROM orders WHERE id = 12)",
		cascade:   true,
	},
	"UniqueTaken": {
		request:   []string{"UPDATE account SET email = 'new@x' WHERE id = 1", "UPDATE account SET email = 'other@x' WHERE id = 2"},
		statement: "INSERT INTO account VALUES (3, 'ANN@x')",
		conflicts: []string{"unique value taken public.account[1]"},
		skipped:   "(SELECT email = 'new@x' FROM account WHERE id = 1) AND (SELECT email = 'bob@x' FROM account WHERE id = 2)",
		cascade:   true,
	},
}

const accounts = `
	CREATE TABLE account (id int PRIMARY KEY, email text);
	CREATE UNIQUE INDEX account_email ON account (lower(email)) WHERE email <> '';
	INSERT INTO account VALUES (1, 'ann@x'), (2, 'bob@x');`

func (l later) happen(t *testing.T) (*undo, []string) {
	t.Helper()
	u := newUndo(t, shop, accounts)
	before := u.state(t)
	u.request(t, "first", l.request...)
	u.as(t, audit.Context{UserID: "bob", RequestID: "second"}, l.statement)
	return u, before
}

func TestLaterWorkIsInConflict(t *testing.T) {
	t.Parallel()
	for name, l := range laterWork {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			u, _ := l.happen(t)
			now := u.state(t)
			revert := u.Client.RevertRequest("first")
			wantConflicts(t, revert, l.conflicts...)

			_, err := revert.Apply(t.Context())
			var blocked *audit.ConflictError
			if !errors.As(err, &blocked) {
				t.Fatalf("Abort gives %v", err)
			}
			u.want(t, "Abort wrote something", now)
			for _, c := range blocked.Conflicts {
				if c.Change == nil || c.Change.Context.RequestID != "second" || c.Change.Context.User() != "bob" {
					t.Errorf("%s: is not told to be of the second request", c)
				}
			}
		})
	}
}

func TestSkipLeavesWhatIsInConflict(t *testing.T) {
	t.Parallel()
	for name, l := range laterWork {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			u, _ := l.happen(t)
			result := apply(t, u.Client.RevertRequest("first").OnConflict(audit.Skip))
			if result.Skipped != 1 {
				t.Errorf("%d rows skipped", result.Skipped)
			}
			u.holds(t, l.skipped)
		})
	}
}

func TestCascadeRevertsLaterWorkAsWell(t *testing.T) {
	t.Parallel()
	for name, l := range laterWork {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			u, before := l.happen(t)
			plan, err := u.Client.RevertRequest("first").OnConflict(audit.Cascade).Plan(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			if len(plan.Cascaded) != 1 || plan.Cascaded[0].Context.RequestID != "second" {
				t.Errorf("the cascade takes in %v", plan.Cascaded)
			}
			result, err := plan.Apply(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			u.want(t, "after the cascade", before)
			if result.Plan.Skipped != 0 {
				t.Errorf("%d rows skipped", result.Skipped)
			}
		})
	}
}

func TestOverwriteRestoresNevertheless(t *testing.T) {
	t.Parallel()
	for name, l := range laterWork {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			u, _ := l.happen(t)
			now := u.state(t)
			_, err := u.Client.RevertRequest("first").OnConflict(audit.Overwrite).Apply(t.Context())
			var blocked *audit.ConflictError
			switch {
			case l.overwritten != "" && err != nil:
				t.Fatal(err)
			case l.overwritten != "":
				u.holds(t, l.overwritten)
			case !errors.As(err, &blocked):
				t.Errorf("what cannot be overwritten gives %v", err)
			default:
				u.want(t, "something was written", now)
			}
		})
	}
}

func (u *undo) holds(t *testing.T, condition string) {
	t.Helper()
	var holds *bool
	if err := u.conn.QueryRow(t.Context(), "SELECT "+condition).Scan(&holds); err != nil {
		t.Fatal(err)
	}
	if holds == nil || !*holds {
		t.Errorf("does not hold: %s\n%s", condition, strings.Join(u.state(t), "\n"))
	}
}

func TestResolveDecidesOnEachConflict(t *testing.T) {
	t.Parallel()
	u := newUndo(t, shop)
	u.request(t, "first", "UPDATE customer SET city = 'Bonn'")
	u.as(t, audit.Context{UserID: "bob", RequestID: "second"}, "UPDATE customer SET city = 'Kyiv' WHERE id IN (1, 2)")
	var asked []string
	policy := audit.Resolve(func(c audit.Conflict) audit.Resolution {
		asked = append(asked, c.Key[0])
		if c.Key[0] == "1" {
			return audit.Overwrite
		}
		return audit.Skip
	})
	result := apply(t, u.Client.RevertRequest("first").OnConflict(policy))
	u.holds(t, "(SELECT array_agg(coalesce(city, '-') ORDER BY id) = '{Rome,Kyiv,-}' FROM customer)")
	if diff := cmp.Diff([]string{"1", "2"}, asked); diff != "" {
		t.Error(diff)
	}
	if result.Updated != 2 || result.Skipped != 1 {
		t.Errorf("%d updated, %d skipped", result.Updated, result.Skipped)
	}
}

// What the selection changed twice, with somebody else in between, is no longer
// what it was before the selection.
func TestWorkInBetweenIsInConflict(t *testing.T) {
	t.Parallel()
	u := newUndo(t, shop)
	u.request(t, "first", "UPDATE customer SET city = 'A' WHERE id = 1")
	u.request(t, "second", "UPDATE customer SET city = 'B' WHERE id = 1")
	u.request(t, "first", "UPDATE customer SET city = 'C' WHERE id = 1")
	wantConflicts(t, u.Client.RevertRequest("first"), "column changed in between public.customer[1] city")
	before := u.state(t)
	if _, err := u.Client.RevertRequest("first").OnConflict(audit.Skip).Apply(t.Context()); err != nil {
		t.Fatal(err)
	}
	u.want(t, "Skip wrote something", before)
	apply(t, u.Client.RevertRequest("first").OnConflict(audit.Cascade))
	u.holds(t, "(SELECT city = 'Rome' FROM customer WHERE id = 1)")
}

// Somebody else has restored a part of it by hand. Whether that was meant as an undo,
// the policy has to say.
func TestRevert_PartRestoredByHand(t *testing.T) {
	t.Parallel()
	u := newUndo(t, shop)
	before := u.state(t)
	u.request(t, "first", "UPDATE customer SET city = 'Bonn'", "DELETE FROM orders WHERE id = 10", "INSERT INTO customer VALUES (4, 'Dan', '')")
	u.request(t, "second", "UPDATE customer SET city = 'Rome' WHERE id = 1", "INSERT INTO orders VALUES (10, 1, 9.50, NULL)", "DELETE FROM customer WHERE id = 4")
	revert := u.Client.RevertRequest("first")
	wantConflicts(t, revert, "value came back public.customer[1] city", "row created again public.orders[10]", "row gone public.customer[4]")
	for policy, skipped := range map[audit.Resolution]int{audit.Skip: 3, audit.Overwrite: 0} {
		result, err := revert.OnConflict(policy).DryRun(t.Context())
		if err != nil || result.Skipped != skipped || result.Unchanged != 3-skipped || result.Updated != 2 {
			t.Errorf("%v gives %+v, %v", policy, result, err)
		}
	}
	apply(t, revert.OnConflict(audit.Overwrite))
	u.want(t, "after the revert", before)
}

func TestColumnsLimitsTheRevert(t *testing.T) {
	t.Parallel()
	u := newUndo(t, shop)
	u.request(t, "first", "UPDATE customer SET city = 'Bonn', name = 'X' WHERE id = 1", "INSERT INTO customer VALUES (4, 'Dan', '')")
	u.request(t, "second", "UPDATE customer SET name = 'Y' WHERE id = 1")
	apply(t, u.Client.RevertRequest("first").Columns("city"))
	u.holds(t, "(SELECT city = 'Rome' AND name = 'Y' FROM customer WHERE id = 1) AND EXISTS (SELECT FROM customer WHERE id = 4)")
}

// A row that is skipped keeps its key: another one that was to come back under it is
// skipped as well.
func TestSkippedRowKeepsItsKey(t *testing.T) {
	t.Parallel()
	u := newUndo(t, "CREATE TABLE a (id int PRIMARY KEY, n int); INSERT INTO a VALUES (1, 1), (2, 2), (3, 3)")
	u.request(t, "first", "DELETE FROM a WHERE id = 1", "UPDATE a SET id = 1, n = 7 WHERE id = 2", "UPDATE a SET n = 7 WHERE id = 3")
	u.request(t, "second", "UPDATE a SET n = 8 WHERE id = 1")
	revert := u.Client.RevertRequest("first")
	wantConflicts(t, revert.OnConflict(audit.Skip), "column changed public.a[1] n", "unique value taken public.a[1]")
	if result := apply(t, revert.OnConflict(audit.Skip)); result.Skipped != 2 || result.Updated != 1 {
		t.Errorf("%d rows skipped, %d updated", result.Skipped, result.Updated)
	}
	u.holds(t, "(SELECT array_agg(id || ' ' || n ORDER BY id) = '{1 8,3 3}' FROM a)")
}

// Of one row there can be any number of conflicts, which take memory as well.
func TestConflictsCountTowardsMaxMemory(t *testing.T) {
	t.Parallel()
	u := newUndo(t, "CREATE TABLE p (id int PRIMARY KEY, n int); CREATE TABLE c (id int PRIMARY KEY, p int REFERENCES p)")
	u.request(t, "first", "INSERT INTO p VALUES (1, 1)")
	u.request(t, "second", "INSERT INTO c SELECT i, 1 FROM generate_series(1, 3000) i")
	var large *audit.TooLargeError
	if _, err := u.Client.RevertRequest("first").MaxMemory(1 << 20).Plan(t.Context()); !errors.As(err, &large) {
		t.Errorf("the plan gives %v", err)
	}
	plan, err := u.Client.RevertRequest("first").Plan(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if len(plan.Conflicts) != 3000 || plan.Conflicts[0].Change == nil || plan.Conflicts[0].Change.Context.RequestID != "second" {
		t.Errorf("%d conflicts", len(plan.Conflicts))
	}
}
