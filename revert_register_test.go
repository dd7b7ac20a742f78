package audit_test

import (
	"errors"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/hindsight-go/audit"
)

// forged is a context that claims to be of a revert.
func forged(id string, of audit.Unit, key string) audit.Context {
	return audit.Context{UserID: "mallory", Extra: map[string]any{"revert": true, "revertId": id, "revertOf": of, "revertKey": key}}
}

// A context that claims to be of a revert does not keep anybody from reverting.
func TestRevert_ForgedClaim(t *testing.T) {
	t.Parallel()
	unit := audit.Unit{Kind: "request", ID: "r"}
	for name, revert := range map[string]func(r audit.Reversal) audit.Reversal{
		"OfTheUnit": func(r audit.Reversal) audit.Reversal { return r },
		"OfTheKey":  func(r audit.Reversal) audit.Reversal { return r.IdempotencyKey("click") },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			u := newUndo(t, balances)
			u.by(t, "ann", "r", "UPDATE account SET balance = 90 WHERE id = 1")
			u.as(t, forged("f00d", unit, "click"), "UPDATE account SET note = 'x' WHERE id = 4")
			result := apply(t, revert(u.Client.RevertRequest("r")))
			if result.Already != nil || result.Updated != 1 {
				t.Errorf("the revert gives %+v", result)
			}
			again := apply(t, revert(u.Client.RevertRequest("r")))
			if again.Already == nil || again.Already.ID != result.ID {
				t.Errorf("the second revert gives %+v", again)
			}
			u.holds(t, "(SELECT balance = 100 FROM account WHERE id = 1)")
		})
	}
}

// A value that a forged revert wrote is somebody's work.
func TestRevert_ForgedClaimIsLaterWork(t *testing.T) {
	t.Parallel()
	u := newUndo(t, balances)
	u.by(t, "ann", "r", "UPDATE account SET balance = 90 WHERE id = 1", "INSERT INTO account VALUES (5, 5)")
	u.as(t, forged("f00d", audit.Unit{Kind: "request", ID: "r"}, ""), "UPDATE account SET balance = 100 WHERE id = 1", "DELETE FROM account WHERE id = 5")
	wantConflicts(t, u.Client.RevertRequest("r"), "value came back public.account[1] balance", "row gone public.account[5]")
}

// Redo knows reverts from the register, and takes nothing with it that claims to be a
// part of one.
func TestRevert_RedoOfAForgedRevert(t *testing.T) {
	t.Parallel()
	u := newUndo(t, balances)
	unit := audit.Unit{Kind: "request", ID: "r"}
	u.as(t, forged("f00d", unit, ""), "UPDATE account SET note = 'forged' WHERE id = 4")
	u.Sync(t)
	if _, err := u.Client.Redo("f00d").Plan(t.Context()); !errors.Is(err, audit.ErrNothingSelected) {
		t.Errorf("the redo of a forged revert gives %v", err)
	}
	u.by(t, "ann", "r", "UPDATE account SET balance = 90 WHERE id = 1")
	undone := apply(t, u.Client.RevertRequest("r"))
	u.as(t, forged(undone.ID, unit, ""), "UPDATE account SET note = 'joined' WHERE id = 3")
	redone := apply(t, u.Client.Redo(undone.ID))
	if redone.Updated != 1 {
		t.Errorf("the redo gives %+v", redone)
	}
	u.holds(t, "(SELECT balance = 90 FROM account WHERE id = 1) AND (SELECT note = 'joined' FROM account WHERE id = 3)")
}

// A revert that was registered and rolled back did not happen.
func TestRevert_RolledBackByItsCaller(t *testing.T) {
	t.Parallel()
	u := newUndo(t, balances)
	u.by(t, "ann", "r", "UPDATE account SET balance = 90 WHERE id = 1")
	for _, commit := range []bool{false, true} {
		tx, err := u.conn.Begin(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		result, err := u.Client.RevertRequest("r").IdempotencyKey("click").ApplyTx(t.Context(), tx)
		if err != nil || result.Already != nil || result.Updated != 1 {
			t.Fatalf("the revert gives %+v, %v", result, err)
		}
		end := tx.Rollback
		if commit {
			end = tx.Commit
		}
		if err := end(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if again := apply(t, u.Client.RevertRequest("r")); again.Already == nil {
		t.Errorf("the last revert gives %+v", again)
	}
}

// A cascade reverts whole units of others.
func TestRevert_CascadeOfWholeUnits(t *testing.T) {
	t.Parallel()
	for name, h := range map[string]struct {
		policy audit.Resolution
		listed int
		holds  string
	}{
		"Transactions": {audit.Cascade, 2, "(SELECT array_agg(balance ORDER BY id) = '{100,100,100,93,107}' FROM account)"},
		"Requests":     {audit.CascadeRequests, 4, "(SELECT array_agg(balance ORDER BY id) = '{100,100,100,100,100}' FROM account)"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			u := newUndo(t, balances, "INSERT INTO account VALUES (5, 100)")
			u.by(t, "ann", "t1", transfer("1", "2", "50")...)
			u.by(t, "bob", "t2", transfer("3", "1", "20")...)
			u.by(t, "bob", "t2", transfer("4", "5", "7")...)
			plan, err := u.Client.RevertRequest("t1").OnConflict(h.policy).Plan(t.Context())
			if err != nil || len(plan.Cascaded) != h.listed {
				t.Fatalf("the plan is %s, %v", plan, err)
			}
			result, err := plan.Apply(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			u.holds(t, h.holds)
			apply(t, u.Client.Redo(result.ID))
			u.holds(t, "(SELECT array_agg(balance ORDER BY id) = '{70,150,80,93,107}' FROM account)")
		})
	}
}

// What a later transaction did to other tables goes with it, rows without a key and
// later work upon it included.
func TestRevert_CascadeTakesOtherTablesAlong(t *testing.T) {
	t.Parallel()
	u := newUndo(t, balances, "CREATE TABLE ledger (account int, amount int)")
	before := u.state(t)
	u.by(t, "ann", "t1", transfer("1", "2", "50")...)
	u.by(t, "bob", "t2", append(transfer("3", "1", "20"), "INSERT INTO ledger VALUES (1, 20)")...)
	u.by(t, "cyd", "t3", transfer("3", "4", "5")...)
	apply(t, u.Client.RevertRequest("t1").OnConflict(audit.Cascade))
	u.want(t, "after the cascade", before)
	var n int
	if err := u.conn.QueryRow(t.Context(), "SELECT count(*) FROM ledger").Scan(&n); err != nil && !errors.Is(err, pgx.ErrNoRows) || n != 0 {
		t.Errorf("%d entries, %v", n, err)
	}
}
