package audit_test

import (
	"errors"
	"strings"
	"testing"

	"github.com/hindsight-go/audit"
)

// A constraint over two columns of which others have changed one: the plan names it and
// their change, and Cascade undoes that as well.
func TestRevert_ValueThatDoesNotFitTheirs(t *testing.T) {
	t.Parallel()
	u := newUndo(t, "CREATE TABLE stay (id int PRIMARY KEY, since int, until int, note text, CONSTRAINT lasts CHECK (since < until)); INSERT INTO stay VALUES (1, 1, 9), (2, 1, 9)")
	before := u.state(t)
	u.by(t, "ann", "r", "UPDATE stay SET until = 19")
	u.by(t, "bob", "b", "UPDATE stay SET note = 'bob' WHERE id = 1", "UPDATE stay SET since = 15 WHERE id = 1")
	revert := u.Client.RevertRequest("r")
	conflict := u.refused(t, revert).Conflicts[0]
	if conflict.Kind != audit.ValueRefused || conflict.Constraint != "lasts" || conflict.Change == nil || conflict.Change.Context.UserID != "bob" || !strings.Contains(conflict.String(), "lasts does not take") {
		t.Errorf("the conflict is %s", conflict)
	}
	_ = u.refused(t, revert.OnConflict(audit.Overwrite))
	skipped := apply(t, revert.OnConflict(audit.Skip))
	u.holds(t, "(SELECT array_agg(until ORDER BY id) = '{19,9}' FROM stay)")
	apply(t, u.Client.Redo(skipped.ID))
	apply(t, revert.OnConflict(audit.Cascade))
	u.want(t, "after the cascade", before)
}

// The plan says which column does not take NULL any more, and Except leaves it out. What
// a trigger may set is left to it.
func TestRevert_ColumnIsNotNullNow(t *testing.T) {
	t.Parallel()
	u := newUnchecked(t, "CREATE TABLE a (id int PRIMARY KEY, n int, s text); INSERT INTO a VALUES (1, 1, NULL)")
	u.request(t, "r", "UPDATE a SET n = 2, s = 'two'")
	u.Sync(t)
	u.Exec(t, "ALTER TABLE a ALTER s SET NOT NULL")
	conflict := u.refused(t, u.Client.RevertRequest("r")).Conflicts[0]
	if text := conflict.String(); !strings.HasPrefix(text, `public.a[1] s: value refused: the column is NOT NULL`) || !strings.Contains(text, `Except("s")`) {
		t.Errorf("the conflict is %s", text)
	}
	undone := apply(t, u.Client.RevertRequest("r").Except("s"))
	u.holds(t, "(SELECT n = 1 AND s = 'two' FROM a)")
	apply(t, u.Client.Redo(undone.ID))
	u.Exec(t, `CREATE FUNCTION fill() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN NEW.s := coalesce(NEW.s, 'filled'); RETURN NEW; END $$;
		CREATE TRIGGER fill BEFORE UPDATE ON a FOR EACH ROW EXECUTE FUNCTION fill()`)
	apply(t, u.Client.RevertRequest("r"))
	u.holds(t, "(SELECT n = 1 AND s = 'filled' FROM a)")
}

// A constraint that calls a function which does not work where plans are made, as it finds
// its tables by the application's search_path, is left to the server.
func TestRevert_ConstraintCallsFunction(t *testing.T) {
	t.Parallel()
	u := newUndo(t, `CREATE TABLE a (id int PRIMARY KEY, n int); INSERT INTO a VALUES (1, 1), (2, 2), (3, 3);
		CREATE FUNCTION few(int) RETURNS bool LANGUAGE plpgsql AS $$ BEGIN RETURN (SELECT count(*) < 4 FROM a) AND $1 <> 13; END $$;
		ALTER TABLE a ADD CONSTRAINT few CHECK (few(n))`)
	before := u.state(t)
	u.request(t, "r", "DELETE FROM a WHERE id = 3", "INSERT INTO a VALUES (4, 4)", "UPDATE a SET n = 9 WHERE id = 1")
	after := u.state(t)
	undone := apply(t, u.Client.RevertRequest("r"))
	u.want(t, "after the undo", before)
	apply(t, u.Client.Redo(undone.ID))
	u.want(t, "after the redo", after)
	u.Exec(t, "CREATE OR REPLACE FUNCTION few(int) RETURNS bool LANGUAGE plpgsql AS 'BEGIN RETURN (SELECT count(*) < 4 FROM a) AND $1 <> 1; END'")
	_, err := u.Client.RevertRequest("r").Apply(t.Context())
	var refused *audit.ApplyError
	if !errors.As(err, &refused) || refused.Constraint != "few" {
		t.Errorf("what the constraint forbids now: %v", err)
	}
	u.want(t, "after that", after)
}
