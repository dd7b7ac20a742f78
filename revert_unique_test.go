package audit_test

import (
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/hindsight-go/audit"
)

// Two rows of one plan had a unique value one after the other, since somebody gave it to
// the second in between: both cannot have it back.
func TestRevert_UniqueValueOfTwoRowsOfThePlan(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		schema                 string
		first, between, second string
		conflict               string
		// What holds after Skip, and after Cascade.
		skipped, cascaded string
	}{
		"Deleted": {
			"CREATE TABLE a (id int PRIMARY KEY, u int UNIQUE); INSERT INTO a VALUES (1, 6), (2, 7)",
			"DELETE FROM a WHERE id = 1", "UPDATE a SET u = 6 WHERE id = 2", "UPDATE a SET u = NULL WHERE id = 2",
			"unique value taken public.a[1]",
			"(SELECT string_agg(id || ' ' || u, ',' ORDER BY id) FROM a) = '2 6'",
			"(SELECT string_agg(id || ' ' || u, ',' ORDER BY id) FROM a) = '1 6,2 7'",
		},
		"Updated": {
			"CREATE TABLE a (id int PRIMARY KEY, u text UNIQUE DEFERRABLE); INSERT INTO a VALUES (1, 'x'), (2, 'y')",
			"UPDATE a SET u = 'z' WHERE id = 1", "UPDATE a SET u = 'x' WHERE id = 2", "UPDATE a SET u = 'w' WHERE id = 2",
			"unique value taken public.a[1]",
			"(SELECT string_agg(id || ' ' || u, ',' ORDER BY id) FROM a) = '1 z,2 x'",
			"(SELECT string_agg(id || ' ' || u, ',' ORDER BY id) FROM a) = '1 x,2 y'",
		},
		"Composite": {
			`CREATE TABLE a (id int PRIMARY KEY, "B" int, u int, UNIQUE (u, "B")); INSERT INTO a VALUES (1, 1, 6), (2, 1, 7), (3, 2, 6)`,
			"DELETE FROM a WHERE id = 1", "UPDATE a SET u = 6 WHERE id = 2", "DELETE FROM a WHERE id IN (2, 3)",
			"unique value taken public.a[1]",
			"(SELECT string_agg(id || ' ' || u, ',' ORDER BY id) FROM a) = '2 6,3 6'",
			"(SELECT string_agg(id || ' ' || u, ',' ORDER BY id) FROM a) = '1 6,2 7,3 6'",
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			u := newUndo(t, c.schema)
			u.by(t, "ann", "r", c.first)
			u.by(t, "bob", "b", c.between)
			u.by(t, "ann", "r", c.second)
			revert := u.Client.RevertRequest("r")
			wantConflicts(t, revert, c.conflict)
			_ = u.refused(t, revert)
			_ = u.refused(t, revert.OnConflict(audit.Overwrite))
			undone := apply(t, revert.OnConflict(audit.Skip))
			u.holds(t, c.skipped)
			apply(t, u.Client.Redo(undone.ID))
			apply(t, revert.OnConflict(audit.Cascade))
			u.holds(t, c.cascaded)
		})
	}
}

// Overwrite removes a row that others reference by now, and by a foreign key that
// cascades a row that is to be put back with it: neither is done.
func TestRevert_OverwriteTakesARowOfThePlanAlong(t *testing.T) {
	t.Parallel()
	for name, schema := range map[string]string{
		"itself":  "CREATE TABLE a (id int PRIMARY KEY, b int, p int REFERENCES a ON DELETE CASCADE); INSERT INTO a VALUES (1, 1), (2, 2)",
		"chained": "CREATE TABLE a (id int PRIMARY KEY, b int, p int REFERENCES a ON DELETE CASCADE ON UPDATE CASCADE DEFERRABLE); INSERT INTO a VALUES (1, 1, NULL), (2, 2, 1)",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			u := newUndo(t, schema)
			u.by(t, "ann", "r", "INSERT INTO a VALUES (9, 9)")
			u.by(t, "ann", "r", "UPDATE a SET b = 20 WHERE id = 2")
			u.by(t, "bob", "b", "UPDATE a SET p = 9 WHERE id = 1")
			if name == "itself" {
				u.by(t, "bob", "c", "UPDATE a SET p = 1 WHERE id = 2")
			}
			before := u.state(t)
			var refused *audit.ApplyError
			_, err := u.Client.RevertRequest("r").OnConflict(audit.Overwrite).Apply(t.Context())
			if !errors.As(err, &refused) || !strings.Contains(err.Error(), "ON DELETE CASCADE") {
				t.Errorf("the revert gives %v", err)
			}
			if diff := cmp.Diff(before, u.state(t)); diff != "" {
				t.Errorf("it wrote:\n%s", diff)
			}
		})
	}
}
