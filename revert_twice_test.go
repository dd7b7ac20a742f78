package audit_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/hindsight-go/audit"
	"github.com/hindsight-go/audit/audittest"
)

// equalValues are values that are one for a unique index, whatever they print.
var equalValues = map[string]struct {
	before       string // makes what the type needs
	kind, index  string
	first, other string // equal values
	else1, else2 string // others, also from each other
	since        int    // the version of PostgreSQL that has it first
}{
	"Numeric":         {kind: "numeric", index: "UNIQUE INDEX u ON a (v)", first: "1.0", other: "1.00", else1: "2", else2: "3"},
	"Float":           {kind: "float8", index: "UNIQUE INDEX u ON a (v)", first: "0", other: "-0", else1: "2", else2: "3"},
	"Interval":        {kind: "interval", index: "UNIQUE INDEX u ON a (v)", first: "1 day", other: "24:00:00", else1: "2 days", else2: "3 days"},
	"Char":            {kind: "bpchar", index: "UNIQUE INDEX u ON a (v)", first: "a", other: "a  ", else1: "b", else2: "c"},
	"Array":           {kind: "numeric[]", index: "UNIQUE INDEX u ON a (v)", first: "{1.0}", other: "{1.00}", else1: "{2}", else2: "{3}"},
	"Citext":          {before: "CREATE EXTENSION citext", kind: "citext", index: "UNIQUE INDEX u ON a (v)", first: "Foo", other: "fOO", else1: "bar", else2: "baz"},
	"Collation":       {before: "CREATE COLLATION loose (provider = icu, locale = 'und-u-ks-level2', deterministic = false)", kind: "text COLLATE loose", index: "UNIQUE INDEX u ON a (v)", first: "Foo", other: "fOO", else1: "bar", else2: "baz"},
	"Expression":      {kind: "text", index: "UNIQUE INDEX u ON a (lower(v))", first: "Foo", other: "fOO", else1: "bar", else2: "baz"},
	"ColumnAndOther":  {kind: "text", index: "UNIQUE INDEX u ON a ((n / 10), v)", first: "x", other: "x", else1: "y", else2: "z"},
	"Partial":         {kind: "text", index: "UNIQUE INDEX u ON a (v) WHERE n > 0 AND v <> 'free'", first: "x", other: "x", else1: "y", else2: "z"},
	"Hash":            {kind: "int", index: "INDEX h ON a (n); ALTER TABLE a ADD EXCLUDE USING hash (v WITH =)", first: "1", other: "1", else1: "2", else2: "3"},
	"Ranges":          {kind: "int4range", index: "INDEX h ON a (n); ALTER TABLE a ADD EXCLUDE USING gist (v WITH &&)", first: "[1,5)", other: "[4,9)", else1: "[20,30)", else2: "[30,40)"},
	"RangesOfNumbers": {kind: "int", index: "INDEX h ON a (n); ALTER TABLE a ADD EXCLUDE USING gist (int4range(v - 1, v + 1) WITH &&) WHERE (n > 0)", first: "5", other: "6", else1: "20", else2: "30"},
	"NullsToo":        {kind: "int", index: "UNIQUE INDEX u ON a (v, w) NULLS NOT DISTINCT", first: "1", other: "1", else1: "2", else2: "3", since: 15},
	"Deferrable":      {kind: "numeric", index: "INDEX h ON a (n); ALTER TABLE a ADD UNIQUE (v) DEFERRABLE", first: "1.0", other: "1.00", else1: "2", else2: "3"},
}

// The operators of an index say which rows of a plan cannot both be there: the plan names
// the one that cannot have its value back, whatever the values print.
func TestRevert_EqualValuesOfTwoRowsOfThePlan(t *testing.T) {
	t.Parallel()
	for name, h := range equalValues {
		for how, steps := range map[string][3]string{
			// The first of the unit, what somebody did in between, and the second.
			"Removed": {"DELETE FROM a WHERE id = 1", "UPDATE a SET v = '%[2]s' WHERE id = 2", "DELETE FROM a WHERE id = 2"},
			"Changed": {"UPDATE a SET v = '%[4]s' WHERE id = 1", "UPDATE a SET v = '%[2]s' WHERE id = 2", "UPDATE a SET v = '%[3]s' WHERE id = 2"},
			"Both":    {"UPDATE a SET v = '%[4]s' WHERE id = 1", "UPDATE a SET v = '%[2]s' WHERE id = 2", "DELETE FROM a WHERE id = 2"},
		} {
			if how != "Removed" && name != "Numeric" && name != "Partial" && name != "Ranges" {
				continue
			}
			t.Run(name+how, func(t *testing.T) {
				t.Parallel()
				db := audittest.NewDatabase(t)
				if db.Server().Version()/10000 < h.since || name == "Citext" && !audittest.Value[bool](t, db, "SELECT EXISTS (SELECT FROM pg_available_extensions WHERE name = 'citext')") {
					return // this server does not have it
				}
				db.Exec(t, h.before+fmt.Sprintf("; CREATE TABLE a (id int PRIMARY KEY, n int, w int, v %s); CREATE %s; INSERT INTO a VALUES (1, 11, NULL, '%s'), (2, 12, NULL, '%s')", h.kind, h.index, h.first, h.else1))
				a := audittest.Open(t, db, audit.Config{Tables: []string{"public.*"}})
				mustStart(t, a)
				t.Cleanup(func() { a.Stop(t) })
				u := &undo{Audited: a, conn: a.Connect(t)}
				fill := func(sql string) string {
					return fmt.Sprintf(sql+"%.0[1]s%.0[2]s%.0[3]s%.0[4]s", h.first, h.other, h.else1, h.else2)
				}
				before := u.state(t)
				u.by(t, "ann", "r", fill(steps[0]))
				u.by(t, "bob", "b", fill(steps[1]))
				u.by(t, "ann", "r", fill(steps[2]))
				revert := u.Client.RevertRequest("r")
				for _, c := range u.refused(t, revert).Conflicts {
					if c.Kind != audit.UniqueTaken || c.String() == "" || c.Change == nil || c.Change.Context.UserID != "bob" || c.RowRef.String() != "public.a[1]" || c.Other.String() != "public.a[2]" {
						t.Errorf("the conflict is %s", c)
					}
				}
				_ = u.refused(t, revert.OnConflict(audit.Overwrite))
				apply(t, revert.OnConflict(audit.Cascade))
				u.want(t, "after the cascade", before)
			})
		}
	}
}

// An index that is newer than what the unit removed: both rows cannot come back.
func TestRevert_IndexIsNewerThanTheRows(t *testing.T) {
	t.Parallel()
	for name, index := range map[string]string{
		"Texts": "CREATE UNIQUE INDEX ON a (v)", "Expression": "CREATE UNIQUE INDEX ON a (lower(v))", "Partial": "CREATE UNIQUE INDEX ON a (v) WHERE id > 0",
		"Many": "CREATE UNIQUE INDEX ON a (upper(v)); CREATE UNIQUE INDEX ON a (id, v)",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			u := newUnchecked(t, "CREATE TABLE a (id int PRIMARY KEY, v text); INSERT INTO a SELECT n, 'v' || n FROM generate_series(1, 4000) n; INSERT INTO a VALUES (5001, 'v7'), (5002, 'v7'), (5003, NULL), (5004, NULL)")
			u.request(t, "r", "DELETE FROM a WHERE id <> 1")
			u.Sync(t)
			u.Exec(t, index)
			wantConflicts(t, u.Client.RevertRequest("r"), "unique value taken public.a[5001]", "unique value taken public.a[7]")
			apply(t, u.Client.RevertRequest("r").OnConflict(audit.Skip))
			u.holds(t, "(SELECT count(*) = 4002 FROM a) AND (SELECT count(*) = 1 FROM a WHERE v = 'v7')")
		})
	}
}

// Many rows under a constraint that only compares each row with all others are left to
// the server, which names the constraint.
func TestRevert_ManyRowsUnderAnExclusion(t *testing.T) {
	t.Parallel()
	u := newUnchecked(t, "CREATE TABLE a (id int PRIMARY KEY, v int4range); INSERT INTO a SELECT n, int4range(n * 10, n * 10 + 5) FROM generate_series(1, 3500) n; INSERT INTO a VALUES (4000, '[11,12)')")
	u.request(t, "r", "DELETE FROM a")
	u.Sync(t)
	u.Exec(t, "ALTER TABLE a ADD CONSTRAINT apart EXCLUDE USING gist (v WITH &&)")
	_, err := u.Client.RevertRequest("r").Apply(t.Context())
	if err == nil || !strings.Contains(err.Error(), `constraint "apart" is violated`) {
		t.Errorf("the revert gives %v", err)
	}
}
