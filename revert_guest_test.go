package audit_test

import (
	"testing"

	"github.com/hindsight-go/audit"
)

// One of our reverts that gives another row the key of one that is gone has not brought
// that one back, nor has one that takes it away again removed it.
func TestRevert_KeyOfARemovedRowIsLent(t *testing.T) {
	t.Parallel()
	const schema = "CREATE TABLE a (id int PRIMARY KEY, v text); INSERT INTO a VALUES (1, 'one')"
	t.Run("Redo", func(t *testing.T) {
		t.Parallel()
		u := newUndo(t, schema)
		u.by(t, "ann", "moved", "UPDATE a SET id = 7 WHERE id = 1")
		u.by(t, "bob", "made", "INSERT INTO a VALUES (1, 'new')")
		end := u.state(t)
		made := apply(t, u.Client.RevertRequest("made"))
		moved := apply(t, u.Client.RevertRequest("moved"))
		wantConflicts(t, u.Client.Redo(made.ID), "row created again public.a[1]")
		apply(t, u.Client.Redo(moved.ID))
		if again := apply(t, u.Client.Redo(made.ID)); again.Inserted != 1 {
			t.Errorf("the redo gives %+v", again)
		}
		u.want(t, "after both redos", end)
	})
	t.Run("Undo", func(t *testing.T) {
		t.Parallel()
		u := newUndo(t, schema)
		u.by(t, "ann", "gone", "DELETE FROM a WHERE id = 1")
		u.by(t, "bob", "other", "INSERT INTO a VALUES (7, 'other')")
		u.by(t, "bob", "comes", "UPDATE a SET id = 1 WHERE id = 7")
		apply(t, u.Client.RevertRequest("comes"))
		back := apply(t, u.Client.RevertRequest("gone"))
		if back.Inserted != 1 {
			t.Errorf("the revert gives %+v", back)
		}
		u.want(t, "after the revert", []string{"a (1,one)", "a (7,other)"})
	})
	t.Run("Removed", func(t *testing.T) {
		t.Parallel()
		u := newUndo(t, schema)
		u.by(t, "ann", "gone", "DELETE FROM a WHERE id = 1")
		u.by(t, "bob", "other", "INSERT INTO a VALUES (7, 'other')")
		u.by(t, "bob", "comes", "UPDATE a SET id = 1 WHERE id = 7")
		comes := apply(t, u.Client.RevertRequest("comes"))
		apply(t, u.Client.Redo(comes.ID))
		wantConflicts(t, u.Client.RevertRequest("gone"), "row created again public.a[1]")
		u.by(t, "bob", "goes", "DELETE FROM a WHERE id = 1")
		if back := apply(t, u.Client.RevertRequest("gone").OnConflict(audit.Abort)); back.Inserted != 1 {
			t.Errorf("the revert gives %+v", back)
		}
	})
}
