package audit_test

import (
	"errors"
	"strings"
	"testing"

	"github.com/hindsight-go/audit"
	"github.com/hindsight-go/audit/audittest"
)

// A request gave a row another key and removed it: it comes back under its first
// key, which somebody else may have by then, and whoever has the other is left
// alone.
func TestRowThatWasRenamedAndRemoved(t *testing.T) {
	t.Parallel()
	const schema = "CREATE TABLE a (id int PRIMARY KEY, n int); INSERT INTO a VALUES (1, 1), (2, 2)"
	for name, later := range map[string]struct {
		statement string
		conflicts []string
	}{
		"FirstKeyTaken": {"INSERT INTO a VALUES (1, 7)", []string{"row created again public.a[1]"}},
		"OtherKeyTaken": {"INSERT INTO a VALUES (10, 7)", nil},
		"RestoredSince": {"INSERT INTO a VALUES (1, 1)", []string{"row created again public.a[1]"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			u := newUndo(t, schema)
			u.request(t, "first", "UPDATE a SET id = 10 WHERE id = 1", "DELETE FROM a WHERE id = 10")
			u.as(t, audit.Context{UserID: "bob", RequestID: "second"}, later.statement)
			revert := u.Client.RevertRequest("first")
			wantConflicts(t, revert, later.conflicts...)
			_, err := revert.Apply(t.Context())
			var blocked *audit.ConflictError
			switch {
			case later.conflicts == nil && err != nil:
				t.Error(err)
			case later.conflicts == nil:
				u.holds(t, "EXISTS (SELECT FROM a WHERE id = 1 AND n = 1)")
			case !errors.As(err, &blocked):
				t.Errorf("the revert gives %v", err)
			case blocked.Conflicts[0].Change == nil || blocked.Conflicts[0].Change.Context.RequestID != "second":
				t.Errorf("%s: is not told to be of the second request", blocked.Conflicts[0])
			}
		})
	}
}

// What is in the way was done to a row before somebody gave it another key: who did
// it is found, and a cascade takes both.
func TestLaterWorkOnARowThatWasRenamedSince(t *testing.T) {
	t.Parallel()
	for name, h := range map[string]struct {
		request   []string
		conflicts []string
	}{
		"Referenced":    {[]string{"INSERT INTO a VALUES (9, 9)"}, []string{"row referenced public.a[9]"}},
		"UniqueTaken":   {[]string{"UPDATE b SET u = NULL WHERE id = 1"}, []string{"unique value taken public.b[1]"}},
		"ColumnChanged": {[]string{"INSERT INTO b VALUES (4, NULL, NULL)"}, []string{"row gone public.b[4]"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			u := newUndo(t, `CREATE TABLE a (id int PRIMARY KEY, n int); INSERT INTO a VALUES (1, 1);
				CREATE TABLE b (id int PRIMARY KEY, a int REFERENCES a ON UPDATE CASCADE, u int UNIQUE);
				INSERT INTO b VALUES (1, NULL, 7), (3, NULL, NULL)`)
			before := u.state(t)
			u.request(t, "first", h.request...)
			u.as(t, audit.Context{UserID: "bob", RequestID: "second"}, `UPDATE b SET a = (SELECT max(id) FROM a), u = CASE WHEN EXISTS (SELECT FROM b WHERE u = 7) THEN 8 ELSE 7 END
				WHERE id = (SELECT max(id) FROM b)`)
			u.as(t, audit.Context{UserID: "cyd", RequestID: "third"}, "UPDATE b SET id = id + 10 WHERE id = (SELECT max(id) FROM b)")
			u.as(t, audit.Context{UserID: "cyd", RequestID: "fourth"}, "UPDATE b SET id = id + 10 WHERE id = (SELECT max(id) FROM b)")
			revert := u.Client.RevertRequest("first")
			wantConflicts(t, revert, h.conflicts...)
			apply(t, revert.OnConflict(audit.Cascade))
			u.want(t, "after the cascade", before)
		})
	}
}

// A cascade takes what made a row reference the one that the selection had made, also
// where somebody gave that other keys twice.
func TestCascadeOverKeysThatChangedTwice(t *testing.T) {
	t.Parallel()
	u := newUndo(t, `CREATE TABLE a (id int PRIMARY KEY); INSERT INTO a VALUES (1);
		CREATE TABLE b (id int PRIMARY KEY, a int REFERENCES a ON UPDATE CASCADE); INSERT INTO b VALUES (1, 1)`)
	u.request(t, "first", "INSERT INTO a VALUES (9)")
	u.request(t, "second", "UPDATE b SET a = 9")
	u.request(t, "third", "UPDATE a SET id = 10 WHERE id = 9")
	u.request(t, "fourth", "UPDATE b SET id = 2")
	u.request(t, "fifth", "UPDATE a SET id = 11 WHERE id = 10")
	apply(t, u.Client.RevertRequest("first").OnConflict(audit.Cascade))
	u.holds(t, "(SELECT array_agg(id) = '{1}' FROM a) AND (SELECT a = 1 FROM b)")
}

// The same, of a row that references itself and was removed in the end.
func TestCascadeOverARowThatReferencedItself(t *testing.T) {
	t.Parallel()
	u := newUndo(t, "CREATE TABLE a (id int PRIMARY KEY, a int REFERENCES a DEFERRABLE); INSERT INTO a VALUES (1, NULL), (2, 1)")
	before := u.state(t)
	u.request(t, "first", "UPDATE a SET id = 10 WHERE id = 2")
	u.request(t, "second", "UPDATE a SET id = 20 WHERE id = 10")
	u.request(t, "third", "UPDATE a SET a = 20 WHERE id = 20", "DELETE FROM a WHERE id = 20")
	apply(t, u.Client.RevertRequest("first").OnConflict(audit.Cascade))
	u.want(t, "after the cascade", before)
}

// A row that would come back references one that is there, and that the same revert
// takes away from there.
func TestParentThatTheRevertTakesAway(t *testing.T) {
	t.Parallel()
	for name, request := range map[string]string{"Renamed": "UPDATE a SET id = 2", "Removed": "INSERT INTO a VALUES (2)"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			u := newUndo(t, "CREATE TABLE a (id int PRIMARY KEY); INSERT INTO a VALUES (1); CREATE TABLE b (id int PRIMARY KEY, a int REFERENCES a); INSERT INTO b VALUES (1, NULL)")
			before := u.state(t)
			u.as(t, audit.Context{UserID: "ann", RequestID: "first"}, request)
			u.as(t, audit.Context{UserID: "bob", RequestID: "second"}, "UPDATE b SET a = 2")
			u.as(t, audit.Context{UserID: "ann", RequestID: "third"}, "DELETE FROM b")
			revert := u.Client.Revert(u.Client.Changes().ByUser("ann"))
			wantConflicts(t, revert, "parent missing public.b[1]")
			apply(t, revert.OnConflict(audit.Cascade))
			u.want(t, "after the cascade", before)
		})
	}
}

// Columns that a primary key only includes are no part of it.
func TestPrimaryKeyThatIncludesAColumn(t *testing.T) {
	t.Parallel()
	u := newUndo(t, `
		CREATE TABLE a (id int, n text, w text, PRIMARY KEY (id) INCLUDE (n));
		CREATE TABLE b (id int PRIMARY KEY, a int REFERENCES a);
		INSERT INTO a VALUES (1, 'x', 'old'); INSERT INTO b VALUES (10, 1)`)
	before := u.state(t)
	u.request(t, "first", "UPDATE a SET w = 'new'")
	u.request(t, "second", "UPDATE a SET n = 'y'")
	if err := u.Client.Sync(t.Context()); err != nil {
		t.Fatal(err)
	}
	changes, err := u.Client.Changes().ForTable("a").ForRow(1).List(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if len(changes) != 2 || changes[0].PrimaryKey != "1" || changes[0].KeyChanged {
		t.Errorf("the changes of the row are %v", changes)
	}
	wantConflicts(t, u.Client.RevertRequest("first"))
	apply(t, u.Client.RevertRequest("first"))
	apply(t, u.Client.RevertRequest("second"))
	u.want(t, "after both", before)
	u.request(t, "third", "DELETE FROM b", "DELETE FROM a")
	apply(t, u.Client.RevertRequest("third"))
	u.want(t, "after the third", before)
}

// Rows whose keys look the same when their parts are put together, and units that
// begin the same, are told apart.
func TestKeysAndUnitsThatLookTheSame(t *testing.T) {
	t.Parallel()
	u := newUndo(t, `
		CREATE TABLE a (id int PRIMARY KEY, n int);
		CREATE TABLE b (x text, y text, a int REFERENCES a, PRIMARY KEY (x, y))`)
	long := strings.Repeat("r", 600)
	u.request(t, long+"1", "INSERT INTO a VALUES (1, 1)")
	u.request(t, "later", "INSERT INTO b VALUES ('p,q', 'r', 1), ('p', 'q,r', 1)")
	wantConflicts(t, u.Client.RevertRequest(long+"1"), "row referenced public.a[1]", "row referenced public.a[1]")
	u.request(t, long+"2", "INSERT INTO a VALUES (2, 2)")
	apply(t, u.Client.RevertRequest(long+"2"))
	u.request(t, "away", "DELETE FROM b")
	result := apply(t, u.Client.RevertRequest(long+"1"))
	if result.Already != nil || result.Deleted != 1 {
		t.Errorf("the revert of the other request: %+v", result)
	}
	if again := apply(t, u.Client.RevertRequest(long+"1")); again.Already == nil || again.Already.ID != result.ID {
		t.Errorf("the second revert: %+v", again)
	}
}

// What gave a row another key, and removed it then, is undone once: the row is back under
// the key that it had, and the second undo knows it. Where another row of the request had that
// key, too, the second undo is refused, and never said to be done.
func TestRevert_KeyChangedThenRemoved(t *testing.T) {
	t.Parallel()
	const plain = "CREATE TABLE a (id int PRIMARY KEY, v text); INSERT INTO a VALUES (1, 'a'), (2, 'b')"
	for name, c := range map[string]struct {
		schema  string
		work    []string
		refused bool
	}{
		"once":             {work: []string{"UPDATE a SET id = 11 WHERE id = 1", "DELETE FROM a WHERE id = 11"}},
		"twice":            {work: []string{"UPDATE a SET id = 11, v = 'x' WHERE id = 1", "UPDATE a SET id = 12 WHERE id = 11", "DELETE FROM a WHERE id = 12"}},
		"there and back":   {work: []string{"UPDATE a SET id = 11 WHERE id = 1", "UPDATE a SET id = 1 WHERE id = 11", "DELETE FROM a WHERE id = 1"}},
		"another put":      {work: []string{"UPDATE a SET id = 11 WHERE id = 1", "DELETE FROM a WHERE id = 11", "INSERT INTO a VALUES (11, 'new')"}},
		"another moved to": {work: []string{"UPDATE a SET id = 11 WHERE id = 1", "DELETE FROM a WHERE id = 11", "UPDATE a SET id = 11 WHERE id = 2"}},
		"to another partition": {
			schema: "CREATE TABLE a (id int, p int, v text, PRIMARY KEY (id, p)) PARTITION BY LIST (p); CREATE TABLE a_1 PARTITION OF a FOR VALUES IN (1); CREATE TABLE a_2 PARTITION OF a FOR VALUES IN (2); INSERT INTO a VALUES (1, 1, 'a'), (2, 1, 'b')",
			work:   []string{"UPDATE a SET p = 2 WHERE id = 1", "DELETE FROM a WHERE id = 1"},
		},
		"with a child": {
			schema: plain + "; CREATE TABLE child (id int PRIMARY KEY, a int REFERENCES a ON UPDATE CASCADE ON DELETE CASCADE); INSERT INTO child VALUES (7, 1), (8, 2)",
			work:   []string{"UPDATE a SET id = 11 WHERE id = 1", "DELETE FROM a WHERE id = 11"},
		},
		"another put in its place": {work: []string{"UPDATE a SET id = 11 WHERE id = 1", "INSERT INTO a VALUES (1, 'c')", "DELETE FROM a WHERE id = 11"}, refused: true},
		"passed on":                {work: []string{"UPDATE a SET id = 11 WHERE id = 1", "UPDATE a SET id = 1 WHERE id = 2", "DELETE FROM a"}, refused: true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if c.schema == "" {
				c.schema = plain
			}
			u := newUndo(t, c.schema)
			held := func() string {
				return audittest.Value[string](t, u.Database, "SELECT coalesce(string_agg(a::text, ' ' ORDER BY id), '') FROM a")
			}
			before := held()
			u.request(t, "r", c.work...)
			after := held()
			for range 2 {
				undone, err := u.Client.RevertRequest("r").Apply(t.Context())
				if blocked := new(audit.ConflictError); c.refused && errors.As(err, &blocked) {
					return
				}
				if got := held(); err != nil || got != before {
					t.Fatalf("undone, there are %s, want %s: %v", got, before, err)
				}
				again, err := u.Client.RevertRequest("r").Apply(t.Context())
				if blocked := new(audit.ConflictError); !(c.refused && errors.As(err, &blocked)) && (err != nil || again.Already == nil) {
					t.Errorf("the second undo: %+v, %v", again, err)
				}
				apply(t, u.Client.Redo(undone.ID))
				if got := held(); got != after {
					t.Errorf("redone, there are %s, want %s", got, after)
				}
			}
		})
	}
}
