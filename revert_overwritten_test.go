package audit_test

import (
	"testing"

	"github.com/hindsight-go/audit"
)

// What Overwrite has written over is out of force in that cell, until the revert that did
// it is undone: by itself it is in no later undo's way, nor undone once more there. In the
// other cells of its transaction, it stays in force.
func TestRevert_CascadeAfterOverwrite(t *testing.T) {
	t.Parallel()
	const (
		first   = "UPDATE account SET balance = 110 WHERE id = 1"
		ann     = "UPDATE account SET balance = balance - 10 WHERE id = 1"
		bob     = "UPDATE account SET balance = balance - 20 WHERE id = 1; UPDATE account SET balance = balance + 20 WHERE id = 2"
		cyd     = "UPDATE account SET balance = balance + 5 WHERE id = 1; UPDATE account SET balance = balance - 5 WHERE id = 3"
		overAll = "(SELECT array_agg(balance ORDER BY id) FROM account WHERE id <= 3) = "
	)
	for name, h := range map[string]struct {
		later    bool // cyd's transaction, behind the Overwrite
		undo     func(u *undo, overwrote string) audit.Reversal
		cascaded int
		holds    string
	}{
		// 110 is what the Overwrite has put back, over bob's 80.
		"OverwrittenUnit":      {false, func(u *undo, _ string) audit.Reversal { return u.Client.RevertRequest("bob") }, 0, "'{110,100,100}'"},
		"OverwrittenUnitLater": {true, func(u *undo, _ string) audit.Reversal { return u.Client.RevertRequest("bob") }, 0, "'{115,100,95}'"},
		"Again":                {true, func(u *undo, _ string) audit.Reversal { return u.Client.RevertRequest("ann") }, 0, "'{115,120,95}'"},
		"Overwriting":          {false, func(u *undo, id string) audit.Reversal { return u.Client.Redo(id) }, 0, "'{80,120,100}'"},
		"OverwritingLater":     {true, func(u *undo, id string) audit.Reversal { return u.Client.Redo(id) }, 2, "'{80,120,100}'"},
		"Beneath":              {false, func(u *undo, _ string) audit.Reversal { return u.Client.RevertRequest("first") }, 0, "'{100,120,100}'"},
		// Of those behind it, only cyd's work is in force there: bob's half that is left stays.
		"BeneathLater": {true, func(u *undo, _ string) audit.Reversal { return u.Client.RevertRequest("first") }, 2, "'{100,120,100}'"},
		"Later":        {true, func(u *undo, _ string) audit.Reversal { return u.Client.RevertRequest("cyd") }, 0, "'{110,120,100}'"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			u := newUndo(t, balances)
			u.by(t, "first", "first", first)
			u.by(t, "ann", "ann", ann)
			u.as(t, audit.Context{UserID: "bob", RequestID: "bob"}, splitSQL(bob)...)
			over := apply(t, u.Client.RevertRequest("ann").OnConflict(audit.Overwrite))
			u.holds(t, overAll+"'{110,120,100}'")
			if h.later {
				u.as(t, audit.Context{UserID: "cyd", RequestID: "cyd"}, splitSQL(cyd)...)
			}
			result := apply(t, h.undo(u, over.ID).OnConflict(audit.Cascade))
			if n := len(result.Plan.Cascaded); n != h.cascaded {
				t.Errorf("%d changes are cascaded, want %d: %s", n, h.cascaded, result.Plan)
			}
			u.holds(t, overAll+h.holds)
		})
	}
	// Once the Overwrite is undone, what it wrote over is in the way again, whole.
	t.Run("UndoneOverwrite", func(t *testing.T) {
		t.Parallel()
		u := newUndo(t, balances)
		u.by(t, "ann", "ann", ann)
		u.as(t, audit.Context{UserID: "bob", RequestID: "bob"}, splitSQL(bob)...)
		over := apply(t, u.Client.RevertRequest("ann").OnConflict(audit.Overwrite))
		apply(t, u.Client.Redo(over.ID))
		wantConflicts(t, u.Client.RevertRequest("ann"), "column changed public.account[1] balance")
		apply(t, u.Client.RevertRequest("ann").OnConflict(audit.Cascade))
		u.holds(t, overAll+"'{100,100,100}'")
	})
}
