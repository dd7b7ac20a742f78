package audit_test

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/hindsight-go/audit"
)

const claimText = "(claims to be of a revert)"

// A context that claims to be of a revert is shown as a claim, in whatever form: one with
// an id that nobody knows, and one with that of a revert which another transaction is.
func TestRevert_ClaimIsShownAsClaim(t *testing.T) {
	t.Parallel()
	u := newUndo(t, balances)
	u.by(t, "ann", "r", "UPDATE account SET balance = 90 WHERE id = 1")
	undone := apply(t, u.Client.RevertRequest("r"))
	for n, id := range []string{"f00d", undone.ID, ""} {
		forgery := forged(id, audit.Unit{Kind: "request", ID: "r"}, "")
		forgery.RequestID = "forged"
		u.as(t, forgery, "UPDATE account SET balance = balance + 1 WHERE id = "+[]string{"2", "3", "4"}[n])
	}
	u.Sync(t)
	claims := 0
	for c, err := range u.Client.Changes().Reverts().All(t.Context()) {
		if err != nil {
			t.Fatal(err)
		}
		text, err := json.Marshal(c)
		if err != nil {
			t.Fatal(err)
		}
		var back audit.Change
		if err := json.Unmarshal(text, &back); err != nil {
			t.Fatal(err)
		}
		_, isRevert := c.Revert()
		_, wasRevert := back.Revert()
		if isClaim := c.TransactionID != undone.TransactionID; isRevert == isClaim || wasRevert == isClaim || c.RevertClaimed != isClaim ||
			strings.Contains(c.String(), claimText) != isClaim || strings.Contains(string(text), `"revertClaimed":true`) != isClaim {
			t.Errorf("a change of transaction %d (the revert's is %d): %s, %s", c.TransactionID, undone.TransactionID, c, text)
		} else if isClaim {
			claims++
		}
	}
	if claims != 3 {
		t.Errorf("there are %d claims", claims)
	}
	for r, err := range u.Client.Changes().Requests(t.Context()) {
		if err != nil || r.RevertClaimed != (r.ID == "forged") {
			t.Errorf("the request is %+v, %v", r, err)
		}
	}
	u.by(t, "ann", "two", "UPDATE account SET balance = 7 WHERE id = 2")
	u.as(t, forged(undone.ID, audit.Unit{Kind: "request", ID: "two"}, ""), "UPDATE account SET balance = 8 WHERE id = 2")
	conflict := u.refused(t, u.Client.RevertRequest("two")).Conflicts[0]
	if !strings.Contains(conflict.String(), claimText) || !conflict.Change.RevertClaimed {
		t.Errorf("the conflict is %s", conflict)
	}
	plan, err := u.Client.RevertRequest("two").OnConflict(audit.Cascade).Plan(t.Context())
	if err != nil || len(plan.Cascaded) != 1 || !plan.Cascaded[0].RevertClaimed || !strings.Contains(plan.String(), claimText) {
		t.Errorf("the plan is %s, %v", plan, err)
	}
}

// What claims to be of a revert of ours is somebody's work, also where that revert is
// done again.
func TestRevert_ClaimOfOurRevertIsLaterWork(t *testing.T) {
	t.Parallel()
	u := newUndo(t, balances)
	u.by(t, "ann", "r", "INSERT INTO account VALUES (5, 5)")
	u.by(t, "bob", "b", "UPDATE account SET balance = 6 WHERE id = 5")
	undone := apply(t, u.Client.RevertRequest("b"))
	u.as(t, forged(undone.ID, audit.Unit{Kind: "request", ID: "b"}, ""), "UPDATE account SET note = 'theirs' WHERE id = 5")
	again := apply(t, u.Client.Redo(undone.ID))
	apply(t, u.Client.Redo(again.ID))
	wantConflicts(t, u.Client.RevertRequest("r"), "column changed public.account[5] note")
}
