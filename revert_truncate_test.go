package audit_test

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/hindsight-go/audit"
)

// baseline has history know all tables whole.
func (u *undo) baseline(t *testing.T) {
	t.Helper()
	u.Sync(t)
	if err := u.Client.Baseline(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
}

func TestRevertTruncate(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		setup   string
		request []string
	}{
		"Table": {
			"CREATE TABLE a (id int PRIMARY KEY, n text); INSERT INTO a VALUES (1, 'x'), (2, NULL), (3, '')",
			[]string{"TRUNCATE a"},
		},
		"CascadeToChildren": {
			shop,
			[]string{"TRUNCATE customer CASCADE"},
		},
		"BetweenOtherChangesOfTheSameRows": {
			"CREATE TABLE a (id int PRIMARY KEY, n text); INSERT INTO a VALUES (1, 'x'), (2, 'y'), (3, 'z')",
			[]string{
				"UPDATE a SET n = 'changed before' WHERE id = 1", "DELETE FROM a WHERE id = 2", "INSERT INTO a VALUES (4, 'made before')", "UPDATE a SET id = 5 WHERE id = 3",
				"TRUNCATE a",
				"INSERT INTO a VALUES (1, 'made again'), (6, 'made behind'), (3, 'z')", "UPDATE a SET n = 'changed behind' WHERE id = 6",
			},
		},
		"TwiceInOneTransaction": {
			"CREATE TABLE a (id int PRIMARY KEY, n text); INSERT INTO a VALUES (1, 'x'), (2, 'y')",
			[]string{"TRUNCATE a", "INSERT INTO a VALUES (1, 'between'), (7, 'between')", "TRUNCATE a", "INSERT INTO a VALUES (2, 'behind')"},
		},
		"Partitioned": {
			`CREATE TABLE a (id int, region text, n int, PRIMARY KEY (id, region)) PARTITION BY LIST (region);
			CREATE TABLE a_east PARTITION OF a FOR VALUES IN ('east'); CREATE TABLE a_west PARTITION OF a FOR VALUES IN ('west');
			INSERT INTO a VALUES (1, 'east', 1), (1, 'west', 2), (2, 'west', 3)`,
			[]string{"TRUNCATE a", "INSERT INTO a VALUES (1, 'west', 9)"},
		},
		"OddNames": {
			`CREATE SCHEMA app; CREATE TABLE app."Select ""x"".y" ("ID" int, "from" text, "a.b" text, PRIMARY KEY ("from", "ID"));
			INSERT INTO app."Select ""x"".y" VALUES (1, 'a', '"b"'), (2, 'c,d', E'\\')`,
			[]string{`TRUNCATE app."Select ""x"".y"`},
		},
		"GeneratedAndIdentity": {
			"CREATE TABLE a (id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, n int, twice int GENERATED ALWAYS AS (n * 2) STORED); INSERT INTO a (n) VALUES (1), (NULL)",
			[]string{"UPDATE a SET n = 5 WHERE id = 1", "TRUNCATE a RESTART IDENTITY"},
		},
		"ValuesOfManyTypes": {
			`CREATE TABLE a (id numeric PRIMARY KEY, f float8, b bytea, j jsonb, ts timestamptz, arr text[], r int4range, c char(5), big text);
			INSERT INTO a VALUES (1.50, 'NaN', '\x00ff', '{"a": [1, null]}', '2020-01-01 00:00:00.000001+00', ARRAY['a,b', NULL, '"'], '[1,5)', 'x', repeat('abc', 20000)),
				(2, '-Infinity', '', 'null', 'infinity', '{}', 'empty', '', NULL)`,
			[]string{"UPDATE a SET f = 0, ts = '-infinity' WHERE id = 2", "TRUNCATE a"},
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

// A table that was empty when its tracking began is known whole without more.
func TestRevertTruncateOfATableKnownSinceItWasEmpty(t *testing.T) {
	t.Parallel()
	u := newUndo(t, "CREATE TABLE a (id int PRIMARY KEY, n text)")
	u.request(t, "fill", "INSERT INTO a SELECT i, 'row ' || i FROM generate_series(1, 3000) i")
	u.request(t, "change", "UPDATE a SET n = 'changed' WHERE id % 7 = 0", "DELETE FROM a WHERE id % 5 = 0", "UPDATE a SET id = -id WHERE id % 11 = 0")
	u.roundTrip(t, "TRUNCATE a")
}

// What history does not know whole is refused, with what can be done about it.
func TestRevertTruncateOfATableThatHistoryDoesNotKnowWhole(t *testing.T) {
	t.Parallel()
	u := newUndo(t, shop)
	u.request(t, "r", "UPDATE customer SET city = 'Bern' WHERE id = 1", "TRUNCATE orders")
	_, err := u.Client.RevertRequest("r").Plan(t.Context())
	var refused *audit.UnrevertableError
	var history *audit.HistoryError
	if !errors.As(err, &refused) || !errors.As(err, &history) || !errors.Is(err, audit.ErrIncomplete) {
		t.Fatalf("%v", err)
	}
	if refused.Table != "public.orders" || refused.Position.Sequence == 0 {
		t.Errorf("it is about %s at %s", refused.Table, refused.Position)
	}
	for _, advice := range []string{"Client.Baseline", "Operations"} {
		if !strings.Contains(err.Error(), advice) {
			t.Errorf("no word of %s: %v", advice, err)
		}
	}
	// The rest of it, as advised.
	apply(t, u.Client.Revert(u.Client.Changes().InRequest("r").Operations(audit.Create, audit.Update, audit.Delete)))
	u.want(t, "after the revert of the rest", []string{"customer (1,Ann,Rome)", "customer (2,Bob,Oslo)", "customer (3,Cyd,)"})
}

// After a gap that the table's past cannot be told across.
func TestRevertTruncateBehindAnEarlierTruncate(t *testing.T) {
	t.Parallel()
	u := newUndo(t, shop)
	u.request(t, "first", "TRUNCATE orders")
	u.request(t, "fill", "INSERT INTO orders VALUES (1, 1, 1, 'kept'), (2, 2, 2, NULL)")
	u.roundTrip(t, "TRUNCATE orders")
}

func TestRevertTruncateOfOnePartitionIsRefused(t *testing.T) {
	t.Parallel()
	u := newUndo(t, `CREATE TABLE a (id int, region text) PARTITION BY LIST (region);
		CREATE TABLE a_east PARTITION OF a FOR VALUES IN ('east'); CREATE TABLE a_west PARTITION OF a FOR VALUES IN ('west');
		INSERT INTO a VALUES (1, 'east'), (1, 'west')`)
	u.baseline(t)
	u.request(t, "r", "TRUNCATE a_east")
	_, err := u.Client.RevertRequest("r").Plan(t.Context())
	var refused *audit.UnrevertableError
	if !errors.As(err, &refused) || !strings.Contains(err.Error(), "only one partition") {
		t.Errorf("%v", err)
	}
}

func TestRevertTruncateAfterTheColumnsHaveChanged(t *testing.T) {
	t.Parallel()
	u := newUndo(t, "CREATE TABLE a (id int PRIMARY KEY, n text, gone text, kind int)", "INSERT INTO a VALUES (1, 'x', NULL, 1), (2, 'y', NULL, 2)")
	u.baseline(t)
	u.request(t, "r", "TRUNCATE a")
	u.Exec(t, "ALTER TABLE a RENAME n TO name")
	u.Exec(t, "ALTER TABLE a DROP gone")
	u.Exec(t, "ALTER TABLE a ADD added text DEFAULT 'new'")
	u.Exec(t, "ALTER TABLE a ALTER kind TYPE text USING kind::text")
	u.Exec(t, "ALTER TABLE a RENAME TO b")
	result := apply(t, u.Client.RevertRequest("r"))
	u.want(t, "after the revert", []string{"b (1,x,1,new)", "b (2,y,2,new)"})
	apply(t, u.Client.Redo(result.ID))
	u.want(t, "after the redo", nil)
}

// A value of a column that is gone is a conflict, as it is with a DELETE.
func TestRevertTruncateAfterAColumnWithValuesWasDropped(t *testing.T) {
	t.Parallel()
	u := newUndo(t, "CREATE TABLE a (id int PRIMARY KEY, n text)", "INSERT INTO a VALUES (1, 'x'), (2, NULL)")
	u.baseline(t)
	u.request(t, "r", "TRUNCATE a")
	u.Exec(t, "ALTER TABLE a DROP n")
	wantConflicts(t, u.Client.RevertRequest("r"), "column gone public.a[1] n")
	apply(t, u.Client.RevertRequest("r").OnConflict(audit.Overwrite))
	u.want(t, "after the revert", []string{"a (1)", "a (2)"})
}

func TestRevertTruncateAfterLaterWork(t *testing.T) {
	t.Parallel()
	newOne := func(t *testing.T) *undo {
		t.Helper()
		u := newUndo(t, shop+"ALTER TABLE customer ADD UNIQUE (name)")
		u.baseline(t)
		u.request(t, "r", "TRUNCATE customer CASCADE")
		u.as(t, audit.Context{UserID: "bob", RequestID: "later"}, "INSERT INTO customer VALUES (1, 'Eve', 'Bonn'), (9, 'Bob', NULL), (3, 'Cyd', NULL)")
		return u
	}
	t.Run("Abort", func(t *testing.T) {
		t.Parallel()
		u := newOne(t)
		before := u.state(t)
		_, err := u.Client.RevertRequest("r").Apply(t.Context())
		var blocked *audit.ConflictError
		if !errors.As(err, &blocked) {
			t.Fatal(err)
		}
		u.want(t, "after the refusal", before)
		wantConflicts(t, u.Client.RevertRequest("r"), "row created again public.customer[1]", "unique value taken public.customer[2]", "row created again public.customer[3]")
		for _, c := range blocked.Conflicts {
			if c.Change == nil || c.Change.Context.RequestID != "later" {
				t.Errorf("it does not say who is behind: %s", c)
			}
		}
	})
	t.Run("Skip", func(t *testing.T) {
		t.Parallel()
		u := newOne(t)
		apply(t, u.Client.RevertRequest("r").OnConflict(audit.Skip))
		u.want(t, "after the revert", []string{"customer (1,Eve,Bonn)", "customer (3,Cyd,)", "customer (9,Bob,)", "orders (10,1,9.50,)"})
	})
	t.Run("Overwrite", func(t *testing.T) {
		t.Parallel()
		u := newOne(t)
		u.request(t, "more", "DELETE FROM customer WHERE id = 9")
		apply(t, u.Client.RevertRequest("r").OnConflict(audit.Overwrite))
		u.want(t, "after the revert", []string{
			"customer (1,Ann,Rome)", "customer (2,Bob,Oslo)", "customer (3,Cyd,)",
			"orders (10,1,9.50,)", "orders (11,2,20.00,rush)", `orders (12,2,0.00,"")`,
		})
	})
	t.Run("Cascade", func(t *testing.T) {
		t.Parallel()
		u := newOne(t)
		apply(t, u.Client.RevertRequest("r").OnConflict(audit.Cascade))
		u.want(t, "after the revert", []string{
			"customer (1,Ann,Rome)", "customer (2,Bob,Oslo)", "customer (3,Cyd,)",
			"orders (10,1,9.50,)", "orders (11,2,20.00,rush)", `orders (12,2,0.00,"")`,
		})
	})
}

// The later TRUNCATE of somebody else is what is behind a row that is gone, and a
// cascade takes it back.
func TestRevertOfARowThatWasTruncatedLater(t *testing.T) {
	t.Parallel()
	u := newUndo(t, shop)
	u.baseline(t)
	before := u.state(t)
	u.request(t, "r", "UPDATE orders SET note = 'changed' WHERE id = 10", "INSERT INTO orders VALUES (13, 1, 1, 'new')")
	u.as(t, audit.Context{UserID: "bob", RequestID: "later"}, "TRUNCATE orders")
	wantConflicts(t, u.Client.RevertRequest("r"), "row gone public.orders[10]", "row gone public.orders[13]")
	plan, err := u.Client.RevertRequest("r").Plan(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if c := plan.Conflicts[0]; c.Change == nil || c.Change.Operation != audit.Truncate || c.Change.Context.RequestID != "later" {
		t.Errorf("behind it is %v", c)
	}
	plan, err = u.Client.RevertRequest("r").OnConflict(audit.Cascade).Plan(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if len(plan.Cascaded) != 1 || plan.Inserts != 3 {
		t.Fatalf("it cascades to %v:\n%s", plan.Cascaded, plan)
	}
	if _, err := plan.Apply(t.Context()); err != nil {
		t.Fatal(err)
	}
	u.want(t, "after the cascade", before)
}

// One TRUNCATE by its position, out of a transaction that did more.
func TestRevertOneTruncateOfATransaction(t *testing.T) {
	t.Parallel()
	u := newUndo(t, "CREATE TABLE a (id int PRIMARY KEY, n text); INSERT INTO a VALUES (1, 'x'), (2, 'y'), (3, 'z')")
	u.baseline(t)
	u.request(t, "r", "UPDATE a SET n = 'changed' WHERE id = 1", "DELETE FROM a WHERE id = 2", "INSERT INTO a VALUES (4, 'made')", "UPDATE a SET id = 5 WHERE id = 3", "TRUNCATE a")
	u.Sync(t)
	change, err := u.Client.Changes().InRequest("r").Operations(audit.Truncate).First(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	apply(t, u.Client.RevertChange(change.Position))
	u.want(t, "the table just before the TRUNCATE", []string{"a (1,changed)", "a (4,made)", "a (5,z)"})
}

func TestRevertSeveralTruncatesAtOnce(t *testing.T) {
	t.Parallel()
	u := newUndo(t, shop)
	u.baseline(t)
	u.request(t, "others", "UPDATE orders SET note = 'kept' WHERE id = 10")
	before := u.state(t)
	for i := range 3 {
		u.as(t, audit.Context{UserID: "carl"}, "TRUNCATE orders", fmt.Sprintf("INSERT INTO orders VALUES (10, 1, %d, NULL), (%d, 1, 1, NULL)", i, 20+i))
	}
	after := u.state(t)
	result := apply(t, u.Client.Revert(u.Client.Changes().ForTable("orders").ByUser("carl")))
	u.want(t, "after the revert", before)
	apply(t, u.Client.Redo(result.ID))
	u.want(t, "after the redo", after)
}

func TestRevertTablesOverATruncate(t *testing.T) {
	t.Parallel()
	u := newUndo(t, shop)
	u.baseline(t)
	u.request(t, "a", "UPDATE orders SET note = 'before' WHERE id = 10")
	to := here(t, u.Audited)
	before := u.state(t)
	u.request(t, "b", "UPDATE orders SET note = 'between' WHERE id = 11", "DELETE FROM orders WHERE id = 12")
	u.request(t, "c", "TRUNCATE orders")
	u.request(t, "d", "INSERT INTO orders VALUES (10, 1, 77, 'new'), (14, 1, 1, NULL)")
	u.request(t, "e", "TRUNCATE orders")
	u.request(t, "f", "INSERT INTO orders VALUES (11, 2, 20, 'rush')")
	apply(t, u.Client.RevertTables(to, "orders"))
	u.want(t, "after the revert", before)
	plan, err := u.Client.RevertTables(to, "orders").Plan(t.Context())
	if err != nil || !plan.Empty() {
		t.Errorf("once more: %v, %v", plan, err)
	}
}

// Only that row comes back, and of the others nothing has to be known.
func TestRevertRowOverATruncate(t *testing.T) {
	t.Parallel()
	u := newUndo(t, shop)
	u.request(t, "a", "UPDATE orders SET note = 'known' WHERE id IN (10, 11)")
	to := here(t, u.Audited)
	u.request(t, "b", "UPDATE orders SET note = 'between' WHERE id = 11", "UPDATE orders SET id = 110 WHERE id = 10")
	u.request(t, "c", "UPDATE orders SET total = 5 WHERE id = 110", "TRUNCATE orders")
	for _, r := range []audit.Reversal{u.Client.RevertRow(to, "orders", 11), u.Client.RevertRow(to, "public.orders", 10)} {
		plan, err := r.Plan(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if _, err := plan.Apply(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	u.want(t, "after the reverts", []string{
		"customer (1,Ann,Rome)", "customer (2,Bob,Oslo)", "customer (3,Cyd,)",
		"orders (10,1,5.00,known)", "orders (11,2,20.00,known)",
	})
	_, err := u.Client.RevertRow(to, "orders", 12).Plan(t.Context())
	var refused *audit.UnrevertableError
	if !errors.As(err, &refused) {
		t.Errorf("a row that history does not know: %v", err)
	}
}

// Rows that the selection took away are more than their columns: none of them
// comes back. Those that it made anew get their columns back.
func TestRevertColumnsOverATruncate(t *testing.T) {
	t.Parallel()
	u := newUndo(t, "CREATE TABLE a (id int PRIMARY KEY, n text, m int); INSERT INTO a VALUES (1, 'x', 1), (2, 'y', 2)")
	u.baseline(t)
	u.request(t, "r", "UPDATE a SET n = 'changed'", "TRUNCATE a", "INSERT INTO a VALUES (1, 'again', 9), (3, 'new', 3)")
	apply(t, u.Client.RevertRequest("r").Columns("n"))
	u.want(t, "after the revert", []string{"a (1,x,9)", "a (3,new,3)"})
}

// The cap holds before all rows were read.
func TestRevertTruncateStopsAtMaxRows(t *testing.T) {
	t.Parallel()
	u := newUndo(t, "CREATE TABLE a (id int PRIMARY KEY, n text)")
	u.request(t, "fill", "INSERT INTO a SELECT i, repeat('x', 500) FROM generate_series(1, 20000) i")
	u.request(t, "r", "TRUNCATE a")
	_, err := u.Client.RevertRequest("r").MaxRows(10).Plan(t.Context())
	var tooMany *audit.TooManyRowsError
	if !errors.As(err, &tooMany) || tooMany.Max != 10 {
		t.Fatalf("%v", err)
	}
	if _, err := u.Client.RevertRequest("r").MaxRows(20000).Plan(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// Sequences are not a part of any row: they stay where TRUNCATE has put them.
func TestRevertTruncateRestartIdentityLeavesTheSequence(t *testing.T) {
	t.Parallel()
	u := newUndo(t, "CREATE TABLE a (id int GENERATED BY DEFAULT AS IDENTITY PRIMARY KEY, n text); INSERT INTO a (n) VALUES ('x'), ('y')")
	u.baseline(t)
	u.request(t, "r", "TRUNCATE a RESTART IDENTITY")
	apply(t, u.Client.RevertRequest("r"))
	u.want(t, "after the revert", []string{"a (1,x)", "a (2,y)"})
	var next int
	if err := u.conn.QueryRow(t.Context(), "SELECT nextval('a_id_seq')").Scan(&next); err != nil || next != 1 {
		t.Errorf("the sequence gives %d, %v", next, err)
	}
}

// Many reverts of TRUNCATEs at one time, with more of them than connections.
func TestManyRevertsOfTruncatesAtOnce(t *testing.T) {
	t.Parallel()
	u := newUndo(t, shop)
	u.baseline(t)
	u.request(t, "r", "TRUNCATE customer CASCADE")
	failed := make(chan error, 12)
	for range cap(failed) {
		go func() {
			plan, err := u.Client.RevertRequest("r").Plan(t.Context())
			if err == nil && plan.Inserts != 6 {
				err = fmt.Errorf("%s", plan)
			}
			failed <- err
		}()
	}
	for range cap(failed) {
		if err := <-failed; err != nil {
			t.Error(err)
		}
	}
}

// What a plan says of a TRUNCATE reads like the rows that it puts back.
func TestPlanOfATruncateInWords(t *testing.T) {
	t.Parallel()
	u := newUndo(t, "CREATE TABLE a (id int PRIMARY KEY, n text); INSERT INTO a VALUES (1, 'x')")
	u.baseline(t)
	u.request(t, "r", "TRUNCATE a")
	plan, err := u.Client.RevertRequest("r").Plan(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	want := "revert request r: 1 changes: 1 rows to insert, 0 to update, 0 to delete, 0 already reverted, 0 skipped\n" +
		"  + public.a[1] id: \"1\", n: \"x\"\n"
	if diff := cmp.Diff(want, plan.String()); diff != "" {
		t.Error(diff)
	}
	sql := strings.Split(plan.SQL(), "\n")
	if !slices.Contains(sql, `INSERT INTO "public"."a" ("id", "n") OVERRIDING SYSTEM VALUE VALUES ('1', 'x');`) {
		t.Errorf("%q", sql)
	}
}
