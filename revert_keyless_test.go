package audit_test

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/hindsight-go/audit"
)

func TestRevertWithoutAKey(t *testing.T) {
	t.Parallel()
	const bag = "CREATE TABLE a (n int, w text); INSERT INTO a VALUES (1, 'x'), (1, 'x'), (2, NULL), (3, ''), (3, NULL);"
	for name, c := range map[string]struct {
		setup   string
		request []string
	}{
		"Insert":               {bag, []string{"INSERT INTO a VALUES (1, 'x'), (9, 'new'), (9, 'new')"}},
		"Update":               {bag, []string{"UPDATE a SET w = 'changed' WHERE n = 2"}},
		"UpdateOfEqualRows":    {bag, []string{"UPDATE a SET w = 'changed' WHERE n = 1"}},
		"UpdateToAnEqualRow":   {bag, []string{"UPDATE a SET w = NULL, n = 2 WHERE n = 3"}},
		"Delete":               {bag, []string{"DELETE FROM a WHERE n = 3"}},
		"DeleteOneOfTwo":       {bag, []string{"DELETE FROM a WHERE ctid = (SELECT min(ctid) FROM a WHERE n = 1)"}},
		"Truncate":             {bag, []string{"INSERT INTO a VALUES (1, 'x'), (5, 'five')", "UPDATE a SET n = 7 WHERE n = 2", "DELETE FROM a WHERE w = ''", "TRUNCATE a", "INSERT INTO a VALUES (1, 'x')"}},
		"TwiceInOneTransction": {bag, []string{"TRUNCATE a", "INSERT INTO a VALUES (1, 'x'), (8, 'eight')", "TRUNCATE a"}},
		"Chains": {bag, []string{
			"INSERT INTO a VALUES (4, 'made')", "UPDATE a SET n = n + 1", "UPDATE a SET w = 'w' WHERE n = 4",
			"DELETE FROM a WHERE n = 3", "INSERT INTO a VALUES (3, NULL)", "UPDATE a SET n = n - 1 WHERE n > 1", "DELETE FROM a WHERE n = 1 AND w = 'x'",
		}},
		"ThereAndBack": {bag, []string{"UPDATE a SET n = n + 10", "UPDATE a SET n = n - 10", "INSERT INTO a VALUES (0, '')"}},
		"Partitioned": {
			`CREATE TABLE a (n int, region text) PARTITION BY LIST (region);
			CREATE TABLE a_east PARTITION OF a FOR VALUES IN ('east'); CREATE TABLE a_west PARTITION OF a FOR VALUES IN ('west');
			INSERT INTO a VALUES (1, 'east'), (1, 'west'), (1, 'west')`,
			[]string{"UPDATE a SET region = 'west' WHERE region = 'east'", "UPDATE a SET n = 2 WHERE region = 'west'", "INSERT INTO a VALUES (3, 'east')"},
		},
		"UniqueIndexSwapped": {
			"CREATE TABLE a (n int NOT NULL UNIQUE, w text); INSERT INTO a VALUES (1, 'x'), (2, 'y')",
			[]string{"UPDATE a SET n = n + 10", "UPDATE a SET n = 13 - n"},
		},
		"ReferencesAParent": {
			"CREATE TABLE p (id int PRIMARY KEY); CREATE TABLE a (p int REFERENCES p ON UPDATE CASCADE ON DELETE CASCADE, w text); INSERT INTO p VALUES (1), (2); INSERT INTO a VALUES (1, 'x'), (1, 'x'), (2, NULL)",
			[]string{"UPDATE p SET id = 3 WHERE id = 1", "UPDATE a SET w = 'changed' WHERE p = 3", "DELETE FROM p WHERE id = 2", "INSERT INTO p VALUES (4)", "INSERT INTO a VALUES (4, 'new')"},
		},
		"ParentChangesOnly": {
			"CREATE TABLE p (id int PRIMARY KEY); CREATE TABLE a (p int REFERENCES p ON UPDATE CASCADE, w text); INSERT INTO p VALUES (1); INSERT INTO a VALUES (1, 'x'), (1, 'y')",
			[]string{"UPDATE p SET id = 3 WHERE id = 1"},
		},
		"ReferencedByItsUniqueColumn": {
			"CREATE TABLE a (n int UNIQUE, w text); CREATE TABLE c (id int PRIMARY KEY, a int REFERENCES a (n)); INSERT INTO a VALUES (1, 'x'), (2, 'y'); INSERT INTO c VALUES (1, 1)",
			[]string{"INSERT INTO a VALUES (3, 'z')", "UPDATE c SET a = 3", "DELETE FROM a WHERE n = 1"},
		},
		"OddNamesAndGenerated": {
			`CREATE TABLE "Odd ""name" ("from" text, "n" int GENERATED ALWAYS AS IDENTITY, twice int GENERATED ALWAYS AS (length("from")) STORED); INSERT INTO "Odd ""name" VALUES ('a'), ('b'), ('b')`,
			[]string{`UPDATE "Odd ""name" SET "from" = 'it''s \' WHERE "from" = 'b'`, `DELETE FROM "Odd ""name" WHERE "from" = 'a'`},
		},
		"ValuesOfManyTypes": {
			`CREATE TABLE a (id numeric, f float8, b bytea, j jsonb, jj json, ts timestamptz, arr float4[], r int4range, c char(5), x xml, big text, p point);
			INSERT INTO a VALUES (1.50, 'NaN', '\x00ff', '{"a": [1, null]}', '{"a" :  1}', '2020-01-01 00:00:00.000001+00', ARRAY[1.5, NULL, 'NaN'], '[1,5)', 'x', '<a/>', repeat('abc', 20000), '(1,2)'),
				(1.500, '-Infinity', '', 'null', 'null', 'infinity', '{}', 'empty', '', NULL, NULL, NULL)`,
			[]string{"UPDATE a SET id = 2 WHERE b = ''", "UPDATE a SET f = 1e-300 WHERE b <> ''", "INSERT INTO a (jj) VALUES ('{}')"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			u := newUndo(t, c.setup)
			u.baseline(t)
			u.roundTrip(t, c.request...)
		})
	}
}

// Two rows of one transaction may have the same key for a while.
func TestRevertWithADeferrableKey(t *testing.T) {
	t.Parallel()
	for name, request := range map[string][]string{
		"Swap":             {"UPDATE a SET id = 3 - id WHERE id < 3"},
		"Shift":            {"UPDATE a SET id = id + 1"},
		"SwapOfChanged":    {"UPDATE a SET n = n || '!'", "UPDATE a SET id = 4 - id"},
		"SwapThenTruncate": {"UPDATE a SET id = 3 - id WHERE id < 3", "SET CONSTRAINTS ALL IMMEDIATE", "TRUNCATE a", "INSERT INTO a VALUES (1, 'z')"},
		"MoveThenDelete":   {"UPDATE a SET id = 2 WHERE n = 'x'", "DELETE FROM a WHERE n = 'y'"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			u := newUndo(t, `CREATE TABLE a (id int PRIMARY KEY DEFERRABLE INITIALLY DEFERRED, n text); ALTER TABLE a REPLICA IDENTITY FULL;
				INSERT INTO a VALUES (1, 'x'), (2, 'y'), (3, 'z')`)
			u.baseline(t)
			u.roundTrip(t, request...)
			// The check of every test does not know of such keys.
			u.Exec(t, "UPDATE a SET n = n")
		})
	}
}

// visits is a table without a key, with two rows that are equal.
const visits = `
	CREATE TABLE visit (page text, hits int, note text);
	INSERT INTO visit VALUES ('home', 1, NULL), ('home', 1, NULL), ('shop', 5, 'x'), ('help', 7, NULL);`

// later is work of somebody else.
func (u *undo) later(t *testing.T, statements ...string) {
	t.Helper()
	u.as(t, audit.Context{UserID: "bob", RequestID: "later"}, statements...)
}

func TestRevertWithoutAKeyAfterLaterWork(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		request, later string
		conflicts      []string
		// What the table holds after each policy; nil where it is left as it is.
		abort, skip, cascade, overwrite []string
	}{
		"SameColumn": {
			request: "UPDATE visit SET hits = 6 WHERE page = 'shop'", later: "UPDATE visit SET hits = 9 WHERE page = 'shop'",
			conflicts: []string{"column changed public.visit[shop,9,x] hits"},
			cascade:   []string{"(help,7,)", "(home,1,)", "(home,1,)", "(shop,5,x)"},
			overwrite: []string{"(help,7,)", "(home,1,)", "(home,1,)", "(shop,5,x)"},
		},
		"OtherColumn": {
			request: "UPDATE visit SET hits = 6 WHERE page = 'shop'", later: "UPDATE visit SET note = 'kept' WHERE page = 'shop'",
			abort: []string{"(help,7,)", "(home,1,)", "(home,1,)", "(shop,5,kept)"},
		},
		"UpdatedThenDeleted": {
			request: "UPDATE visit SET hits = 6 WHERE page = 'shop'", later: "DELETE FROM visit WHERE page = 'shop'",
			conflicts: []string{"row gone public.visit[shop,6,x]"},
			cascade:   []string{"(help,7,)", "(home,1,)", "(home,1,)", "(shop,5,x)"},
			overwrite: []string{"(help,7,)", "(home,1,)", "(home,1,)", "(shop,5,x)"},
		},
		"UpdatedThenTruncated": {
			request: "UPDATE visit SET hits = 6 WHERE page = 'shop'", later: "TRUNCATE visit",
			conflicts: []string{"row gone public.visit[shop,6,x]"},
			cascade:   []string{"(help,7,)", "(home,1,)", "(home,1,)", "(shop,5,x)"},
			overwrite: []string{"(shop,5,x)"},
		},
		"InsertedThenDeleted": {
			request: "INSERT INTO visit VALUES ('new', 0, NULL)", later: "DELETE FROM visit WHERE page = 'new'",
			abort: []string{"(help,7,)", "(home,1,)", "(home,1,)", "(shop,5,x)"},
		},
		"InsertedThenChanged": {
			request: "INSERT INTO visit VALUES ('new', 0, NULL)", later: "UPDATE visit SET note = 'mine' WHERE page = 'new'",
			conflicts: []string{"column changed public.visit[new,0,mine] note"},
			cascade:   []string{"(help,7,)", "(home,1,)", "(home,1,)", "(shop,5,x)"},
			overwrite: []string{"(help,7,)", "(home,1,)", "(home,1,)", "(shop,5,x)"},
		},
		"AnEqualRowWasThere": {
			request: "INSERT INTO visit VALUES ('home', 1, NULL)", later: "DELETE FROM visit WHERE ctid = (SELECT max(ctid) FROM visit WHERE page = 'home')",
			abort: []string{"(help,7,)", "(home,1,)", "(shop,5,x)"},
		},
		"OneOfTwoEqualRowsChanged": {
			request: "UPDATE visit SET hits = 2 WHERE page = 'home'", later: "UPDATE visit SET hits = 3 WHERE ctid = (SELECT max(ctid) FROM visit WHERE page = 'home')",
			conflicts: []string{"column changed public.visit[home,3,NULL] hits"},
			skip:      []string{"(help,7,)", "(home,1,)", "(home,3,)", "(shop,5,x)"},
			cascade:   []string{"(help,7,)", "(home,1,)", "(home,1,)", "(shop,5,x)"},
			overwrite: []string{"(help,7,)", "(home,1,)", "(home,1,)", "(shop,5,x)"},
		},
		"ChangedBack": {
			request: "UPDATE visit SET hits = 6 WHERE page = 'shop'", later: "UPDATE visit SET hits = 5 WHERE page = 'shop'",
			abort: []string{"(help,7,)", "(home,1,)", "(home,1,)", "(shop,5,x)"},
		},
		"DeletedThenAnEqualRowMade": {
			request: "DELETE FROM visit WHERE page = 'shop'", later: "INSERT INTO visit VALUES ('shop', 5, 'x')",
			abort: []string{"(help,7,)", "(home,1,)", "(home,1,)", "(shop,5,x)", "(shop,5,x)"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			u := newUndo(t, visits)
			u.baseline(t)
			u.request(t, "r", c.request)
			u.later(t, c.later)
			live := u.state(t)
			wantConflicts(t, u.Client.RevertRequest("r"), c.conflicts...)
			for policy, want := range map[audit.Resolution][]string{audit.Abort: c.abort, audit.Skip: c.skip, audit.Cascade: c.cascade, audit.Overwrite: c.overwrite} {
				lines := live
				if want != nil {
					lines = nil
					for _, row := range want {
						lines = append(lines, "visit "+row)
					}
				} else if len(c.conflicts) == 0 {
					continue
				}
				if diff := cmp.Diff(lines, u.afterwards(t, u.Client.RevertRequest("r").OnConflict(policy))); diff != "" {
					t.Errorf("%s (-want +got):\n%s", policy, diff)
				}
			}
			plan, err := u.Client.RevertRequest("r").Plan(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			for _, k := range plan.Conflicts {
				if k.Change == nil || k.Change.Context.RequestID != "later" {
					t.Errorf("it does not say who is behind: %s", k)
				}
			}
		})
	}
}

// afterwards is the state that a revert leads to, or that is there if it is
// refused. It is undone.
func (u *undo) afterwards(t *testing.T, r audit.Reversal) []string {
	t.Helper()
	tx, err := u.conn.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = tx.Rollback(context.WithoutCancel(t.Context())) }()
	var blocked *audit.ConflictError
	if _, err := r.ApplyTx(t.Context(), tx); err != nil && !errors.As(err, &blocked) {
		t.Fatal(err)
	}
	return u.state(t)
}

// What is not in history yet is not overwritten either, whatever the policy.
func TestRevertWithoutAKeyOfWorkThatWasNotCaptured(t *testing.T) {
	t.Parallel()
	u := newUndo(t, visits)
	u.request(t, "r", "UPDATE visit SET hits = 6 WHERE page = 'shop'", "INSERT INTO visit VALUES ('new', 0, NULL)", "UPDATE visit SET note = 'y' WHERE page = 'help'")
	u.Sync(t)
	u.Stop(t)
	u.later(t, "UPDATE visit SET hits = 9 WHERE page = 'shop'", "UPDATE visit SET note = 'mine' WHERE page = 'new'")
	live := u.state(t)
	r := u.Client.RevertRequest("r").AsStored()
	wantConflicts(t, r, "row gone public.visit[new,0,NULL]", "row gone public.visit[shop,6,x]")
	for _, policy := range []audit.Policy{audit.Abort, audit.Cascade, audit.Overwrite} {
		if diff := cmp.Diff(live, u.afterwards(t, r.OnConflict(policy))); diff != "" {
			t.Errorf("%v wrote something:\n%s", policy, diff)
		}
	}
	apply(t, r.OnConflict(audit.Skip))
	u.want(t, "Skip", []string{"visit (help,7,)", "visit (home,1,)", "visit (home,1,)", "visit (new,0,mine)", "visit (shop,9,x)"})
	if err := u.Client.Start(context.WithoutCancel(t.Context())); err != nil { // for the check at the end
		t.Fatal(err)
	}
}

// A part that was reverted under another name: rows that were removed stay so, and
// of rows that were put back nobody can say whether they are those.
func TestRevertWithoutAKeyOfWhatWasRevertedInPart(t *testing.T) {
	t.Parallel()
	u := newUndo(t, visits)
	u.request(t, "r", "INSERT INTO visit VALUES ('new', 0, NULL)", "UPDATE visit SET hits = 6 WHERE page = 'shop'", "DELETE FROM visit WHERE page = 'help'")
	u.Sync(t)
	change, err := u.Client.Changes().InRequest("r").First(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	result := apply(t, u.Client.RevertRequest("r"))
	u.Sync(t)
	r := u.Client.RevertTransaction(change.TransactionID)
	wantConflicts(t, r, "row created again public.visit[help,7,NULL]")
	before := u.state(t)
	skipped := apply(t, r.OnConflict(audit.Skip))
	if skipped.Unchanged != 2 || skipped.Skipped != 1 {
		t.Errorf("%d unchanged, %d skipped", skipped.Unchanged, skipped.Skipped)
	}
	u.want(t, "once more", before)
	twice := slices.Sorted(slices.Values(append(slices.Clone(before), "visit (help,7,)")))
	if diff := cmp.Diff(twice, u.afterwards(t, r.OnConflict(audit.Overwrite))); diff != "" {
		t.Errorf("Overwrite (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff(before, u.afterwards(t, r.OnConflict(audit.Cascade))); diff != "" {
		t.Errorf("Cascade (-want +got):\n%s", diff)
	}
	// Taken back and reverted anew, there is none.
	apply(t, u.Client.Redo(result.ID))
	u.Sync(t)
	apply(t, r)
	u.want(t, "reverted anew", before)
}

func TestRevertTablesWithoutAKey(t *testing.T) {
	t.Parallel()
	u := newUndo(t, visits)
	u.baseline(t)
	to := here(t, u.Audited)
	before := u.state(t)
	u.request(t, "a", "UPDATE visit SET hits = hits + 1", "DELETE FROM visit WHERE page = 'help'")
	u.later(t, "UPDATE visit SET note = 'later' WHERE hits = 2", "TRUNCATE visit", "INSERT INTO visit VALUES ('home', 1, NULL)")
	apply(t, u.Client.RevertTables(to, "visit"))
	u.want(t, "after the revert", before)
	plan, err := u.Client.RevertTables(to, "visit").Plan(t.Context())
	if err != nil || !plan.Empty() || len(plan.Conflicts) > 0 {
		t.Errorf("once more: %v, %v", plan, err)
	}
}

func TestRevertColumnsWithoutAKey(t *testing.T) {
	t.Parallel()
	u := newUndo(t, visits)
	u.request(t, "r", "UPDATE visit SET hits = hits + 1, note = 'r'", "INSERT INTO visit VALUES ('new', 0, NULL)", "DELETE FROM visit WHERE page = 'help'")
	apply(t, u.Client.RevertRequest("r").Columns("hits"))
	u.want(t, "after the revert", []string{"visit (home,1,r)", "visit (home,1,r)", "visit (new,0,)", "visit (shop,5,r)"})
}

// Rows that reference a row to be removed, and that have no key themselves.
func TestRevertOfAParentOfRowsWithoutAKey(t *testing.T) {
	t.Parallel()
	u := newUndo(t, "CREATE TABLE p (id int PRIMARY KEY); CREATE TABLE a (p int REFERENCES p ON DELETE CASCADE, w text); INSERT INTO p VALUES (1); INSERT INTO a VALUES (1, 'x')")
	before := u.state(t)
	u.request(t, "r", "INSERT INTO p VALUES (2)", "INSERT INTO a VALUES (2, 'y'), (2, 'y')", "DELETE FROM a WHERE p = 1")
	u.Sync(t)
	if diff := cmp.Diff(before, u.afterwards(t, u.Client.RevertRequest("r"))); diff != "" {
		t.Errorf("after the revert (-want +got):\n%s", diff)
	}
	u.later(t, "INSERT INTO a VALUES (2, 'later')", "DELETE FROM p WHERE id = 1")
	wantConflicts(t, u.Client.RevertRequest("r"), "row referenced public.p[2]", "parent missing public.a[1,x]")
}

// Between the plan and its Apply, rows may move; what matters is what they hold.
func TestPlanWithoutAKeyIsAppliedLater(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		meanwhile string
		stale     bool
	}{
		"Nothing":           {"SELECT 1", false},
		"RowsMoved":         {"UPDATE visit SET hits = hits", false},
		"TableRewritten":    {"VACUUM FULL visit", false},
		"OthersMade":        {"INSERT INTO visit VALUES ('home', 2, NULL)", false},
		"RowChanged":        {"UPDATE visit SET note = 'later' WHERE page = 'shop'", true},
		"OneOfTwoDeleted":   {"DELETE FROM visit WHERE ctid = (SELECT min(ctid) FROM visit WHERE page = 'home')", true},
		"ReplacedByAnEqual": {"WITH gone AS (DELETE FROM visit WHERE page = 'shop' RETURNING *) INSERT INTO visit SELECT * FROM gone", false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			u := newUndo(t, visits)
			before := u.state(t)
			u.request(t, "r", "UPDATE visit SET hits = hits + 1", "INSERT INTO visit VALUES ('new', 0, NULL)")
			plan, err := u.Client.RevertRequest("r").Plan(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			u.Exec(t, c.meanwhile)
			now := u.state(t)
			_, err = plan.Apply(t.Context())
			if c.stale {
				var stale *audit.StaleError
				if !errors.As(err, &stale) {
					t.Errorf("applying it gives %v", err)
				}
				u.want(t, "it wrote something", now)
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if name == "OthersMade" {
				before = append(before, "visit (home,2,)")
				slices.Sort(before)
			}
			u.want(t, "after it", before)
		})
	}
}

// A hash stands for what rows hold, not for where they are.
func TestHashOfAPlanWithoutAKey(t *testing.T) {
	t.Parallel()
	u := newUndo(t, visits)
	before := u.state(t)
	u.request(t, "r", "UPDATE visit SET hits = hits + 1")
	plan, err := u.Client.RevertRequest("r").Plan(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	u.Exec(t, "VACUUM FULL visit")
	apply(t, u.Client.RevertRequest("r").IfHash(plan.Hash))
	u.want(t, "after the revert", before)
}

func TestRowWithoutAKeyChangedWhileTheRevertWaitsForIt(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		work string
		done bool
	}{
		"Changed":           {"UPDATE visit SET hits = 100 WHERE page = 'shop'", false},
		"Deleted":           {"DELETE FROM visit WHERE page = 'shop'", false},
		"Moved":             {"UPDATE visit SET hits = hits WHERE page = 'shop'", true},
		"Locked":            {"SELECT FROM visit FOR UPDATE", true},
		"ReplacedByAnEqual": {"WITH gone AS (DELETE FROM visit WHERE page = 'shop' RETURNING *) INSERT INTO visit SELECT * FROM gone", true},
	} {
		for _, planned := range []bool{false, true} {
			t.Run(name+map[bool]string{true: "/AfterPlan", false: "/AtOnce"}[planned], func(t *testing.T) {
				t.Parallel()
				u := newUndo(t, visits)
				before := u.state(t)
				u.request(t, "r", "UPDATE visit SET hits = hits + 1")
				plan, err := u.Client.RevertRequest("r").Plan(t.Context())
				if err != nil {
					t.Fatal(err)
				}
				tx, err := u.conn.Begin(t.Context())
				if err != nil {
					t.Fatal(err)
				}
				if _, err := tx.Exec(t.Context(), c.work); err != nil {
					t.Fatal(err)
				}
				done := make(chan error, 1)
				go func() {
					var err error
					if planned {
						_, err = plan.Apply(t.Context())
					} else {
						_, err = u.Client.RevertRequest("r").Apply(t.Context())
					}
					done <- err
				}()
				u.awaitLock(t)
				if err := tx.Commit(t.Context()); err != nil {
					t.Fatal(err)
				}
				now := u.state(t)
				err = <-done
				if c.done {
					if err != nil {
						t.Fatal(err)
					}
					u.want(t, "after the revert", before)
					return
				}
				var stale *audit.StaleError
				var blocked *audit.ConflictError
				if planned && !errors.As(err, &stale) || !planned && !errors.As(err, &blocked) {
					t.Errorf("the revert gives %v", err)
				}
				u.want(t, "it wrote something", now)
			})
		}
	}
}

// The script changes just one row with each statement, equal ones or not.
func TestPlanWithoutAKeyAsSQL(t *testing.T) {
	t.Parallel()
	u := newUndo(t, `CREATE TABLE a (n int UNIQUE DEFERRABLE, f float8, j json, arr text[], w text);
		INSERT INTO a VALUES (1, 0.1, '{"a":1}', '{x,NULL}', 'it''s \'), (NULL, NULL, NULL, NULL, NULL), (NULL, NULL, NULL, NULL, NULL), (2, 'NaN', '[]', '{}', '')`)
	before := u.state(t)
	u.request(t, "r", "UPDATE a SET n = 3 - n WHERE n IS NOT NULL", "UPDATE a SET w = 'null' WHERE n IS NULL", "INSERT INTO a (w) VALUES ('null'), ('null')", "DELETE FROM a WHERE f = 'NaN'")
	plan, err := u.Client.RevertRequest("r").Plan(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	u.Exec(t, "SET DateStyle = 'German, DMY'; SET extra_float_digits = 0;"+plan.SQL())
	u.want(t, "after the script", before)
}

// What people see of a row without a key is what it holds.
func TestPlanWithoutAKeyInWords(t *testing.T) {
	t.Parallel()
	u := newUndo(t, visits)
	u.request(t, "r", "UPDATE visit SET hits = 6 WHERE page = 'shop'", "INSERT INTO visit VALUES ('"+strings.Repeat("long ", 100)+"', 1, NULL)", "DELETE FROM visit WHERE page = 'help'")
	plan, err := u.Client.RevertRequest("r").Plan(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		"  ~ public.visit[shop,6,x] hits: \"6\" -> \"5\"\n", "  + public.visit[help,7,NULL] page: \"help\", hits: \"7\", note: NULL\n", "  - public.visit[long long ",
	} {
		if !strings.Contains(plan.String(), want) {
			t.Errorf("no %q in\n%s", want, plan)
		}
	}
	if strings.Contains(plan.String(), "(0,") {
		t.Errorf("a place is shown:\n%s", plan)
	}
}

func TestRevertWithoutAKeyAfterTheColumnsHaveChanged(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		request, alter string
		want           []string
	}{
		"Added":   {"UPDATE a SET n = 5 WHERE n = 1", "ALTER TABLE a ADD extra int", []string{"a (1,x,)", "a (2,y,)", "a (2,y,)"}},
		"Renamed": {"UPDATE a SET n = 5 WHERE n = 2", "ALTER TABLE a RENAME n TO number", []string{"a (1,x)", "a (2,y)", "a (2,y)"}},
		"Table":   {"DELETE FROM a WHERE n = 2", "ALTER TABLE a RENAME TO b", []string{"b (1,x)", "b (2,y)", "b (2,y)"}},
		"Dropped": {"UPDATE a SET n = 5 WHERE n = 2", "ALTER TABLE a DROP w", []string{"a (1)", "a (2)", "a (2)"}},
		"Retyped": {"UPDATE a SET n = 5 WHERE n = 2", "ALTER TABLE a ALTER n TYPE numeric(9,2)", []string{"a (1.00,x)", "a (2.00,y)", "a (2.00,y)"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			u := newUndo(t, "CREATE TABLE a (n int, w text); INSERT INTO a VALUES (1, 'x'), (2, 'y'), (2, 'y')")
			u.request(t, "r", c.request)
			u.Sync(t)
			u.Exec(t, c.alter)
			apply(t, u.Client.RevertRequest("r"))
			u.want(t, "after the revert", c.want)
		})
	}
}

// A column that was added between two of the changes.
func TestRevertWithoutAKeyAcrossAnAddedColumn(t *testing.T) {
	t.Parallel()
	u := newUndo(t, "CREATE TABLE a (n int, w text); INSERT INTO a VALUES (1, 'x'), (2, 'y')")
	u.request(t, "r", "UPDATE a SET n = 10 WHERE n = 1", "INSERT INTO a VALUES (3, 'z')")
	u.Exec(t, "ALTER TABLE a ADD extra int")
	u.request(t, "r", "UPDATE a SET n = 11 WHERE n = 10", "UPDATE a SET extra = 8 WHERE n = 3", "DELETE FROM a WHERE n = 2")
	apply(t, u.Client.RevertRequest("r"))
	u.want(t, "after the revert", []string{"a (1,x,)", "a (2,y,)"})
}

func TestRevertWithoutAKeyWithTriggers(t *testing.T) {
	t.Parallel()
	u := newUndo(t, `CREATE TABLE a (n int, changed text);
		CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
			IF NEW.n = 13 THEN RETURN NULL; END IF;
			NEW.changed := 'by trigger'; RETURN NEW; END $$;
		INSERT INTO a VALUES (1, 'once'), (2, 'once'), (13, 'once')`)
	u.request(t, "r", "UPDATE a SET n = n + 100", "DELETE FROM a WHERE n = 102")
	u.Exec(t, "CREATE TRIGGER note BEFORE INSERT OR UPDATE ON a FOR EACH ROW EXECUTE FUNCTION note()")
	u.Exec(t, "UPDATE a SET changed = 'later' WHERE n = 101")
	result := apply(t, u.Client.RevertRequest("r"))
	u.want(t, "after the revert", []string{"a (1,\"by trigger\")", "a (113,once)", "a (2,\"by trigger\")"})
	var adjusted []string
	for _, row := range result.Adjusted {
		adjusted = append(adjusted, row.String())
	}
	// The one that the trigger would not let go, and the one that was put back.
	slices.Sort(adjusted)
	if diff := cmp.Diff([]string{"public.a[113,once]", "public.a[2,once]"}, adjusted); diff != "" {
		t.Errorf("adjusted (-want +got):\n%s", diff)
	}
}

func TestRevertWithoutAKeyStopsAtMaxRows(t *testing.T) {
	t.Parallel()
	u := newUndo(t, visits)
	u.request(t, "r", "UPDATE visit SET hits = hits + 1")
	var tooMany *audit.TooManyRowsError
	if _, err := u.Client.RevertRequest("r").MaxRows(3).Plan(t.Context()); !errors.As(err, &tooMany) {
		t.Errorf("%v", err)
	}
}

// randomBagStatement is one on a table without a key, of which many rows are equal.
func randomBagStatement(random *rand.Rand) string {
	n, m, word := random.IntN(3), random.IntN(3), []string{"'a'", "'b'", "NULL"}[random.IntN(3)]
	one := fmt.Sprintf("ctid = (SELECT ctid FROM a ORDER BY n, w OFFSET %d LIMIT 1)", random.IntN(6))
	statements := []string{
		fmt.Sprintf("INSERT INTO a VALUES (%d, %s)", n, word),
		fmt.Sprintf("INSERT INTO a VALUES (%d, %s), (%d, %s)", n, word, m, word),
		fmt.Sprintf("INSERT INTO a SELECT * FROM a ORDER BY n, w LIMIT %d", 1+random.IntN(2)),
		fmt.Sprintf("UPDATE a SET n = %d WHERE n = %d", m, n),
		fmt.Sprintf("UPDATE a SET w = %s WHERE %s", word, one),
		fmt.Sprintf("UPDATE a SET n = %d, w = %s WHERE %s", n, word, one),
		fmt.Sprintf("UPDATE a SET n = %d WHERE %s", m, one),
		fmt.Sprintf("DELETE FROM a WHERE n = %d AND w = %s", n, word),
		"DELETE FROM a WHERE " + one,
	}
	if random.IntN(40) == 0 {
		return "TRUNCATE a"
	}
	return statements[random.IntN(len(statements))]
}

// Every revert is the state before, every redo the state after, whatever the rows
// have in common.
func TestRandomWorkWithoutAKeyIsUndoneExactly(t *testing.T) {
	t.Parallel()
	random := seeded(t)
	for range 4 {
		u := newUndo(t, "CREATE TABLE a (n int, w text); INSERT INTO a SELECT i % 3, CASE WHEN i % 4 > 0 THEN 'a' END FROM generate_series(1, 8) i")
		u.baseline(t)
		var requests [][]string
		states := [][]string{u.state(t)}
		for i := range 12 {
			statements := []string{fmt.Sprintf("INSERT INTO a VALUES (%d, NULL)", random.IntN(3))}
			for range random.IntN(6) {
				statements = append(statements, randomBagStatement(random))
			}
			u.request(t, fmt.Sprint(i), statements...)
			requests, states = append(requests, statements), append(states, u.state(t))
		}
		for i := len(requests) - 1; i >= 0; i-- {
			revert := u.Client.RevertRequest(fmt.Sprint(i))
			result := apply(t, revert)
			u.want(t, fmt.Sprintf("after the revert of %q", requests[i]), states[i])
			if result.ID != "" {
				redo := apply(t, u.Client.Redo(result.ID))
				u.want(t, fmt.Sprintf("after the redo of %q", requests[i]), states[i+1])
				if redo.ID != "" { // else the revert had only exchanged equal rows
					apply(t, u.Client.Redo(redo.ID))
				}
				u.want(t, fmt.Sprintf("after the revert of the redo of %q", requests[i]), states[i])
			}
			if t.Failed() {
				return
			}
		}
	}
}

// bagOf is how many rows of each number a table has.
type bagOf map[int]int

func (u *undo) numbers(t *testing.T) bagOf {
	t.Helper()
	bag := bagOf{}
	for _, line := range u.state(t) {
		var n int
		if _, err := fmt.Sscanf(line, "a (%d)", &n); err != nil {
			t.Fatal(err)
		}
		bag[n]++
	}
	return bag
}

// bagWork is a request in the model: what it made of the rows, each by itself.
type bagWork struct {
	before, after bagOf
	// put counts the rows that it gave a number, taken those that had it. deleted
	// are those that it deleted.
	put, taken, deleted bagOf
}

// Any request out of the middle of the others' work: nothing of theirs is lost, no
// conflict is missed, and none is made up.
func TestRandomLaterWorkWithoutAKeyIsNotLost(t *testing.T) {
	t.Parallel()
	random := seeded(t)
	undone, inConflict := 0, 0
	for range 3 {
		u := newUndo(t, "CREATE TABLE a (n int); INSERT INTO a SELECT i % 5 FROM generate_series(1, 12) i")
		u.baseline(t)
		var work []bagWork
		for i := range 14 {
			w := bagWork{before: u.numbers(t), put: bagOf{}, taken: bagOf{}, deleted: bagOf{}}
			now := maps.Clone(w.before)
			var statements []string
			for range 1 + random.IntN(2) {
				statements = append(statements, w.step(random, now))
			}
			u.request(t, fmt.Sprint(i), statements...)
			w.after = u.numbers(t)
			if diff := cmp.Diff(w.after, now); diff != "" {
				t.Fatalf("the model is another: %q\n%s", statements, diff)
			}
			work = append(work, w)
		}
		live := u.numbers(t)
		for i, w := range work {
			r := u.Client.RevertRequest(fmt.Sprint(i))
			plan, err := r.Plan(t.Context())
			if errors.Is(err, audit.ErrNothingSelected) {
				continue
			}
			if err != nil {
				t.Fatal(err)
			}
			what := fmt.Sprintf("request %d of %v: %v -> %v, live %v\n%s", i, len(work), w.before, w.after, live, plan)
			if blocked := len(plan.Blocked()) > 0; blocked {
				inConflict++
				if w.allThere(live) {
					t.Errorf("a conflict is made up: %s", what)
				}
			} else {
				undone++
				if plan.Unchanged == 0 && !w.mayBeUndone(live, work[i+1:]) {
					t.Errorf("a conflict is missed: %s", what)
				}
			}
			for _, policy := range []audit.Policy{audit.Abort, audit.Skip} {
				got := bagOf{}
				for _, line := range u.afterwards(t, r.OnConflict(policy)) {
					var n int
					_, _ = fmt.Sscanf(line, "a (%d)", &n)
					got[n]++
				}
				for n := range 6 {
					if lost := live[n] - got[n]; lost > w.put[n] {
						t.Errorf("%v: %d rows of %d are lost: %s", policy, lost, n, what)
					}
					if more := got[n] - live[n]; more > w.taken[n] {
						t.Errorf("%v: %d rows of %d are made: %s", policy, more, n, what)
					}
					if policy == audit.Skip || len(plan.Blocked()) > 0 {
						continue
					}
					// Some may have been undone by somebody else.
					e, d := w.before[n]-w.after[n], got[n]-live[n]
					if d < min(e, 0) || d > max(e, 0) || plan.Unchanged == 0 && d != e {
						t.Errorf("%d rows of %d, were %d: %s", got[n], n, live[n], what)
					}
				}
			}
		}
	}
	t.Logf("%d undone, %d in conflict", undone, inConflict)
	if undone == 0 || inConflict == 0 {
		t.Error("nothing was tried")
	}
}

// step is a random statement, done in the model as well.
func (w *bagWork) step(random *rand.Rand, now bagOf) string {
	n, m := random.IntN(5), random.IntN(5)
	move := func(n, count, to int) {
		if now[n] -= count; now[n] == 0 {
			delete(now, n)
		}
		w.taken[n] += count
		if to >= 0 && count > 0 {
			now[to] += count
			w.put[to] += count
		}
	}
	one := min(1, now[n])
	switch random.IntN(5) {
	case 0:
		w.put[n]++
		now[n]++
		return fmt.Sprintf("INSERT INTO a VALUES (%d)", n)
	case 1:
		move(n, one, -1)
		w.deleted[n] += one
		return fmt.Sprintf("DELETE FROM a WHERE ctid = (SELECT min(ctid) FROM a WHERE n = %d)", n)
	case 2:
		move(n, now[n], m)
		return fmt.Sprintf("UPDATE a SET n = %d WHERE n = %d", m, n)
	default:
		move(n, one, m)
		return fmt.Sprintf("UPDATE a SET n = %d WHERE ctid = (SELECT min(ctid) FROM a WHERE n = %d)", m, n)
	}
}

// allThere tells that every row which the request put anywhere is to be found.
func (w *bagWork) allThere(live bagOf) bool {
	for n, count := range w.put {
		if live[n] < count {
			return false
		}
	}
	return true
}

// mayBeUndone tells that what the request left is there, or was deleted later.
func (w *bagWork) mayBeUndone(live bagOf, later []bagWork) bool {
	deleted := 0 // of any number: others may have changed it before
	for _, l := range later {
		for _, count := range l.deleted {
			deleted += count
		}
	}
	for n := range 6 {
		if live[n]+deleted < w.after[n]-w.before[n] {
			return false
		}
	}
	return true
}
