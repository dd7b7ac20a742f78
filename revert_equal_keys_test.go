package audit_test

import (
	"fmt"
	"testing"

	"github.com/hindsight-go/audit"
	"github.com/hindsight-go/audit/audittest"
)

// equalKeys are keys that are equal and print otherwise: the child's is that of its
// parent by the operator of the foreign key.
var equalKeys = map[string]struct {
	before             string // makes what the types need
	parent, child      string // types
	parentKey, hasKey  string // one value of the parent, and another that equals it
	otherKey, thirdKey string
	action             string
}{
	"Numeric":   {parent: "numeric", child: "numeric", parentKey: "1.0", hasKey: "1.00", otherKey: "2", thirdKey: "3"},
	"Integer":   {parent: "int", child: "int", parentKey: "1", hasKey: "1", otherKey: "2", thirdKey: "3"},
	"OtherType": {parent: "numeric", child: "int", parentKey: "1.0", hasKey: "1", otherKey: "2", thirdKey: "3"},
	"Float":     {parent: "float8", child: "float8", parentKey: "0", hasKey: "-0", otherKey: "2", thirdKey: "3"},
	"Interval":  {parent: "interval", child: "interval", parentKey: "1 day", hasKey: "24:00:00", otherKey: "2 days", thirdKey: "3 days"},
	"Char":      {parent: "char(5)", child: "char(7)", parentKey: "ab", hasKey: "ab", otherKey: "cd", thirdKey: "ef"},
	"Array":     {parent: "numeric[]", child: "numeric[]", parentKey: "{1.0}", hasKey: "{1.00}", otherKey: "{2}", thirdKey: "{3}"},
	"Citext":    {before: "CREATE EXTENSION citext", parent: "citext", child: "citext", parentKey: "Foo", hasKey: "fOO", otherKey: "bar", thirdKey: "baz"},
	"Collation": {
		before: "CREATE COLLATION loose (provider = icu, locale = 'und-u-ks-level2', deterministic = false)",
		parent: "text COLLATE loose", child: "text COLLATE loose", parentKey: "Foo", hasKey: "fOO", otherKey: "bar", thirdKey: "baz",
	},
	"Cascade": {parent: "numeric", child: "numeric", parentKey: "1.0", hasKey: "1.00", otherKey: "2", thirdKey: "3", action: "ON DELETE CASCADE ON UPDATE CASCADE"},
}

// The operator of the foreign key says which parent is a row's, never the text.
func TestRevert_EqualKeysThatPrintOtherwise(t *testing.T) {
	t.Parallel()
	for name, h := range equalKeys {
		for how, requests := range map[string][]string{
			"BothDeleted":    {"DELETE FROM c", "DELETE FROM p"},
			"ParentMoved":    {"UPDATE c SET p = NULL", "UPDATE p SET id = '%[3]s' WHERE n = 1", "DELETE FROM c"},
			"ChildMoved":     {"UPDATE c SET p = '%[4]s'", "DELETE FROM p WHERE n = 1"},
			"MadeAnew":       {"DELETE FROM c", "DELETE FROM p WHERE n = 1", "INSERT INTO p VALUES ('%[2]s', 7)", "INSERT INTO c VALUES (2, '%[2]s')"},
			"OnlyTheChild":   {"DELETE FROM c"},
			"ParentReplaced": {"UPDATE c SET p = NULL", "DELETE FROM p WHERE n = 1", "UPDATE p SET id = '%[2]s' WHERE n = 2"},
		} {
			t.Run(name+how, func(t *testing.T) {
				t.Parallel()
				db := audittest.NewDatabase(t)
				if h.before != "" {
					if name == "Citext" && !audittest.Value[bool](t, db, "SELECT EXISTS (SELECT FROM pg_available_extensions WHERE name = 'citext')") {
						return // this server has been built without it
					}
					db.Exec(t, h.before)
				}
				db.Exec(t, fmt.Sprintf(`CREATE TABLE p (id %[1]s PRIMARY KEY, n int); CREATE TABLE c (id int PRIMARY KEY, p %[2]s REFERENCES p %[3]s);
					INSERT INTO p VALUES ('%[4]s', 1), ('%[6]s', 2); INSERT INTO c VALUES (1, '%[5]s')`, h.parent, h.child, h.action, h.parentKey, h.hasKey, h.otherKey))
				a := audittest.Open(t, db, audit.Config{Tables: []string{"public.*"}})
				mustStart(t, a)
				t.Cleanup(func() { a.Stop(t) })
				u := &undo{Audited: a, conn: a.Connect(t)}
				var statements []string
				for _, sql := range requests {
					statements = append(statements, fmt.Sprintf(sql+"%.0[1]s%.0[2]s%.0[3]s%.0[4]s", h.parentKey, h.hasKey, h.thirdKey, h.otherKey))
				}
				wantConflicts(t, func() audit.Reversal { u.request(t, "probe", statements...); return u.Client.RevertRequest("probe") }())
				apply(t, u.Client.RevertRequest("probe"))
				u.roundTrip(t, statements...)
			})
		}
	}
}

// A parent that is equal is there, and one that others have taken away is not.
func TestRevert_EqualParentOfOthers(t *testing.T) {
	t.Parallel()
	u := newUnchecked(t, "CREATE TABLE p (id numeric PRIMARY KEY); CREATE TABLE c (id int PRIMARY KEY, p numeric REFERENCES p); INSERT INTO p VALUES (1.0), (2); INSERT INTO c VALUES (1, 1.00)")
	u.request(t, "child", "DELETE FROM c")
	u.as(t, audit.Context{UserID: "bob", RequestID: "parent"}, "UPDATE p SET id = 1.000 WHERE id = 1")
	wantConflicts(t, u.Client.RevertRequest("child"))
	u.as(t, audit.Context{UserID: "bob", RequestID: "gone"}, "DELETE FROM p WHERE id = 1")
	wantConflicts(t, u.Client.RevertRequest("child"), "parent missing public.c[1]")
	apply(t, u.Client.RevertRequest("gone"))
	apply(t, u.Client.RevertRequest("child"))
	u.want(t, "after the reverts", []string{"c (1,1.00)", "p (1.000)", "p (2)"})
}

// A key that prints otherwise in its new type is that of the same row.
func TestRevert_RetypedKey(t *testing.T) {
	t.Parallel()
	u := newUnchecked(t, `CREATE TABLE p (id numeric PRIMARY KEY, n text); CREATE TABLE c (id int PRIMARY KEY, p numeric REFERENCES p);
		INSERT INTO p VALUES (1, 'one'), (2, 'two'); INSERT INTO c VALUES (1, 1), (2, 2)`)
	u.request(t, "gone", "DELETE FROM c WHERE id = 1", "DELETE FROM p WHERE id = 1", "UPDATE p SET n = 'deux' WHERE id = 2", "INSERT INTO p VALUES (3, 'three')")
	u.Sync(t)
	u.Exec(t, "ALTER TABLE p ALTER id TYPE numeric(9,2)")
	u.request(t, "later", "UPDATE p SET n = 'drei' WHERE id = 3")
	wantConflicts(t, u.Client.RevertRequest("gone"), "column changed public.p[3.00] n")
	apply(t, u.Client.RevertRequest("gone").OnConflict(audit.Overwrite))
	u.holds(t, "(SELECT array_agg(p::text ORDER BY id) = '{\"(1.00,one)\",\"(2.00,two)\"}' FROM p) AND (SELECT count(*) = 2 FROM c)")
}
