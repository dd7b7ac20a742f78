package audit_test

import (
	"context"
	"errors"
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
			conflicts: []string{"row gone public.visit[new,0,NULL]"},
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
			conflicts: []string{"value came back public.visit[shop,5,x] hits"},
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
// rows that were put back are not put back once more.
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
	wantConflicts(t, r)
	before := u.state(t)
	if again := apply(t, r); again.Unchanged != 3 {
		t.Errorf("%d unchanged", again.Unchanged)
	}
	u.want(t, "once more", before)
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
