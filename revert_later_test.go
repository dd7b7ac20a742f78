package audit_test

import (
	"context"
	"errors"
	"testing"

	"github.com/hindsight-go/audit"
)

// by runs statements in one transaction, in the name of a user and a request.
func (u *undo) by(t *testing.T, user, request string, statements ...string) {
	t.Helper()
	u.as(t, audit.Context{UserID: user, RequestID: request}, statements...)
}

// refused fails the test unless Abort stops at a conflict, and writes nothing.
func (u *undo) refused(t *testing.T, r audit.Reversal) *audit.ConflictError {
	t.Helper()
	now := u.state(t)
	_, err := r.Apply(t.Context())
	var blocked *audit.ConflictError
	if !errors.As(err, &blocked) {
		t.Fatalf("Abort gives %v\n%v", err, u.state(t))
	}
	u.want(t, "Abort wrote something", now)
	return blocked
}

// A row that the unit made is not removed over what somebody else has done to it, in
// whatever column, and whether or not the value still tells.
func TestRevert_LaterWorkOnARowToBeRemoved(t *testing.T) {
	t.Parallel()
	for name, h := range map[string]struct {
		later    []string // each as DDL of nobody, or of user bob in request r2
		conflict string
		kept     string
	}{
		"ColumnAddedSince": {
			[]string{"ALTER TABLE note ADD COLUMN extra text", "UPDATE note SET extra = 'bob' WHERE id = 9"},
			"column changed public.note[9] extra", "(SELECT extra = 'bob' FROM note WHERE id = 9)",
		},
		"ColumnAddedWithDefault": {
			[]string{"ALTER TABLE note ADD COLUMN extra int NOT NULL DEFAULT 7", "UPDATE note SET extra = 8 WHERE id = 9"},
			"column changed public.note[9] extra", "(SELECT extra = 8 FROM note WHERE id = 9)",
		},
		"ChangedAndChangedBack": {
			[]string{"UPDATE note SET body = 'bob' WHERE id = 9", "UPDATE note SET body = 'ann' WHERE id = 9"},
			"column changed public.note[9] body", "EXISTS (SELECT FROM note WHERE id = 9)",
		},
		"DeletedAndMadeAnew": {
			[]string{"DELETE FROM note WHERE id = 9", "INSERT INTO note VALUES (9, 'ann')"},
			"row created again public.note[9]", "EXISTS (SELECT FROM note WHERE id = 9)",
		},
		"ColumnRenamed": {
			[]string{"ALTER TABLE note RENAME COLUMN body TO text", "UPDATE note SET text = 'bob' WHERE id = 9"},
			"column changed public.note[9] text", "(SELECT text = 'bob' FROM note WHERE id = 9)",
		},
		"DefaultSetSince": {
			[]string{"ALTER TABLE note ADD COLUMN extra int DEFAULT 1", "ALTER TABLE note ALTER extra SET DEFAULT 2", "UPDATE note SET extra = 2 WHERE id = 9"},
			"column changed public.note[9] extra", "(SELECT extra = 2 FROM note WHERE id = 9)",
		},
		"AddedToAnImageThatLacksIt": {
			[]string{"ALTER TABLE note ADD COLUMN extra text", "UPDATE note SET extra = 'bob', id = 10 WHERE id = 9"},
			"row gone public.note[9]", "EXISTS (SELECT FROM note WHERE id = 10)",
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			u := newUndo(t, "CREATE TABLE note (id int PRIMARY KEY, body text)")
			u.by(t, "ann", "r1", "INSERT INTO note VALUES (9, 'ann')")
			for _, sql := range h.later {
				u.Sync(t)
				u.by(t, "bob", "r2", sql)
			}
			wantConflicts(t, u.Client.RevertRequest("r1"), h.conflict)
			for _, c := range u.refused(t, u.Client.RevertRequest("r1")).Conflicts {
				if c.Change == nil || c.Change.Context.User() != "bob" {
					t.Errorf("%s: is not told to be bob's", c)
				}
			}
			apply(t, u.Client.RevertRequest("r1").OnConflict(audit.Skip))
			u.holds(t, h.kept)
		})
	}
}

// What history does not know, since nobody had captured it when the table changed, is
// not removed either: a column that the image lacks and that holds something.
func TestRevert_RemovalOfARowWithAColumnThatHistoryLacks(t *testing.T) {
	t.Parallel()
	for name, h := range map[string]struct {
		since    []string
		conflict []string
	}{
		"AddedAndSet":       {[]string{"ALTER TABLE note ADD COLUMN extra text", "UPDATE note SET extra = 'bob'"}, []string{"column changed public.note[9] extra"}},
		"RenamedAndSet":     {[]string{"ALTER TABLE note RENAME COLUMN body TO text", "UPDATE note SET text = 'bob'"}, []string{"column changed public.note[9] text"}},
		"DefaultUntouched":  {[]string{"ALTER TABLE note ADD COLUMN extra int DEFAULT 7, ADD COLUMN at timestamptz NOT NULL DEFAULT now()"}, nil},
		"ReplacedAndFilled": {[]string{"ALTER TABLE note DROP COLUMN body, ADD COLUMN body text", "UPDATE note SET body = 'ann'"}, []string{"column changed public.note[9] body"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			u := newUndo(t, "CREATE TABLE note (id int PRIMARY KEY, body text)")
			u.by(t, "ann", "r1", "INSERT INTO note VALUES (9, 'ann')")
			u.Sync(t)
			u.Stop(t)
			for _, sql := range h.since {
				u.Exec(t, sql)
			}
			r := u.Client.RevertRequest("r1").AsStored()
			wantConflicts(t, r, h.conflict...)
			if h.conflict != nil {
				_ = u.refused(t, r)
			} else {
				apply(t, r)
				u.holds(t, "NOT EXISTS (SELECT FROM note)")
			}
			if err := u.Client.Start(context.WithoutCancel(t.Context())); err != nil { // for the check at the end
				t.Fatal(err)
			}
		})
	}
}

// Where history is waited for, it tells whether anybody has written to a column that was
// filled when it was added.
func TestRevert_RemovalOfARowWithAColumnFilledByItsDefault(t *testing.T) {
	t.Parallel()
	u := newUndo(t, "CREATE TABLE note (id int PRIMARY KEY, body text)")
	u.by(t, "ann", "r1", "INSERT INTO note VALUES (9, 'ann')")
	u.by(t, "ann", "r2", "INSERT INTO note VALUES (10, 'ann')")
	u.Exec(t, "ALTER TABLE note ADD COLUMN ticket uuid DEFAULT gen_random_uuid(), ADD COLUMN twice int GENERATED ALWAYS AS (id * 2) STORED")
	u.by(t, "bob", "r3", "UPDATE note SET ticket = gen_random_uuid() WHERE id = 10")
	wantConflicts(t, u.Client.RevertRequest("r1"))
	wantConflicts(t, u.Client.RevertRequest("r2"), "column changed public.note[10] ticket")
	apply(t, u.Client.RevertRequest("r1"))
	u.holds(t, "(SELECT array_agg(id) = '{10}' FROM note)")
}

const balances = `
	CREATE TABLE account (id int PRIMARY KEY, balance int NOT NULL, note text);
	INSERT INTO account VALUES (1, 100), (2, 100), (3, 100), (4, 100);`

func transfer(from, to, amount string) []string {
	return []string{
		"UPDATE account SET balance = balance - " + amount + " WHERE id = " + from,
		"UPDATE account SET balance = balance + " + amount + " WHERE id = " + to,
	}
}

// A value that came back through somebody's later work is that work, not an undo.
func TestRevert_ValueThatCameBackThroughLaterWork(t *testing.T) {
	t.Parallel()
	const sum = "(SELECT sum(balance) = 400 FROM account)"
	u := newUndo(t, balances)
	before := u.state(t)
	u.by(t, "ann", "t1", transfer("1", "2", "10")...)
	u.by(t, "bob", "t2", transfer("3", "1", "10")...)
	revert := u.Client.RevertRequest("t1")
	wantConflicts(t, revert, "value came back public.account[1] balance")
	blocked := u.refused(t, revert)
	if c := blocked.Conflicts[0]; c.Change == nil || c.Change.Context.RequestID != "t2" {
		t.Errorf("%s: is not told to be of t2", c)
	}
	u.holds(t, sum)
	if result, err := revert.OnConflict(audit.Skip).DryRun(t.Context()); err != nil || result.Updated != 1 || result.Skipped != 1 {
		t.Errorf("Skip gives %+v, %v", result, err)
	}
	if result, err := revert.OnConflict(audit.Overwrite).DryRun(t.Context()); err != nil || result.Updated != 1 || result.Unchanged != 1 {
		t.Errorf("Overwrite gives %+v, %v", result, err)
	}
	apply(t, revert.OnConflict(audit.Cascade))
	u.want(t, "after the cascade", before)
}

// The same of rows: one that somebody else removed, or put back, is not undone by us.
func TestRevert_RowThatCameBackThroughLaterWork(t *testing.T) {
	t.Parallel()
	for name, h := range map[string]struct{ first, later, conflict string }{
		"Removed":        {"INSERT INTO account VALUES (5, 7)", "DELETE FROM account WHERE id = 5", "row gone public.account[5]"},
		"PutBack":        {"DELETE FROM account WHERE id = 4", "INSERT INTO account VALUES (4, 100)", "row created again public.account[4]"},
		"Truncated":      {"INSERT INTO account VALUES (5, 7)", "TRUNCATE account", "row gone public.account[5]"},
		"NullCameBack":   {"UPDATE account SET note = 'x' WHERE id = 1", "UPDATE account SET note = NULL WHERE id = 1", "value came back public.account[1] note"},
		"OverADetour":    {"UPDATE account SET balance = 90 WHERE id = 1", "UPDATE account SET balance = 50; UPDATE account SET balance = 100", "value came back public.account[1] balance"},
		"AnotherKey":     {"INSERT INTO account VALUES (5, 7)", "UPDATE account SET id = 6 WHERE id = 5", "row gone public.account[5]"},
		"WithTheSameKey": {"UPDATE account SET id = 9 WHERE id = 1", "UPDATE account SET id = 1 WHERE id = 9", "row gone public.account[9]"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			u := newUndo(t, balances)
			u.by(t, "ann", "r1", h.first, "UPDATE account SET note = 'r1' WHERE id = 3")
			u.by(t, "bob", "r2", h.later)
			if h.later == "TRUNCATE account" {
				u.by(t, "bob", "r2", "INSERT INTO account VALUES (3, 100, 'r1')")
			}
			found := conflicts(t, u.Client.RevertRequest("r1"))
			if len(found) == 0 || found[0] != h.conflict && found[len(found)-1] != h.conflict {
				t.Errorf("conflicts are %q", found)
			}
			_ = u.refused(t, u.Client.RevertRequest("r1"))
		})
	}
}

// A redo that did not come through Redo counts as well: the rows decide whether there
// is anything left to do.
func TestRevert_AlreadyOnlyIfNothingIsLeftToDo(t *testing.T) {
	t.Parallel()
	for name, redo := range map[string]func(t *testing.T, u *undo, undone *audit.Result) audit.Reversal{
		"Redo": func(_ *testing.T, u *undo, r *audit.Result) audit.Reversal { return u.Client.Redo(r.ID) },
		"RevertTransaction": func(_ *testing.T, u *undo, r *audit.Result) audit.Reversal {
			return u.Client.RevertTransaction(r.TransactionID)
		},
		"Query": func(_ *testing.T, u *undo, r *audit.Result) audit.Reversal {
			return u.Client.Revert(u.Client.Changes().InRevert(r.ID))
		},
		"RequestOfTheUndo": func(_ *testing.T, u *undo, _ *audit.Result) audit.Reversal { return u.Client.RevertRequest("undo") },
		"Tables": func(_ *testing.T, u *undo, _ *audit.Result) audit.Reversal {
			return u.Client.RevertTables(u.Client.AfterRequest("r"), "account")
		},
		"Row": func(_ *testing.T, u *undo, _ *audit.Result) audit.Reversal {
			return u.Client.RevertRow(u.Client.AfterRequest("r"), "account", 1)
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			u := newUndo(t, balances)
			before := u.state(t)
			u.by(t, "ann", "r", "UPDATE account SET balance = 90 WHERE id = 1")
			after := u.state(t)
			ctx := audit.WithContext(t.Context(), audit.Context{UserID: "ann", RequestID: "undo"})
			undone, err := u.Client.RevertRequest("r").Apply(ctx)
			if err != nil {
				t.Fatal(err)
			}
			u.want(t, "after the undo", before)
			again := apply(t, u.Client.RevertRequest("r"))
			if again.Already == nil || again.Already.ID != undone.ID || again.ID != "" {
				t.Errorf("the second undo gives %+v", again)
			}
			apply(t, redo(t, u, undone))
			u.want(t, "after the redo", after)
			third := apply(t, u.Client.RevertRequest("r"))
			if third.Already != nil || third.Updated != 1 {
				t.Errorf("the third undo gives %+v", third)
			}
			u.want(t, "after the third undo", before)
		})
	}
}

// What was undone and then written by somebody else is theirs: there is nothing left
// of the unit, whatever value stands there.
func TestRevert_LaterWorkOnWhatWasUndone(t *testing.T) {
	t.Parallel()
	for name, h := range map[string]struct{ first, later string }{
		"AnotherValue":  {"UPDATE account SET balance = 90 WHERE id = 1", "UPDATE account SET balance = 55 WHERE id = 1"},
		"TheSameValue":  {"UPDATE account SET balance = 90 WHERE id = 1", "UPDATE account SET balance = 90 WHERE id = 1"},
		"RemovedAgain":  {"DELETE FROM account WHERE id = 1", "DELETE FROM account WHERE id = 1"},
		"MadeAgain":     {"INSERT INTO account VALUES (7, 7)", "INSERT INTO account VALUES (7, 7)"},
		"RowGone":       {"UPDATE account SET balance = 90 WHERE id = 1", "DELETE FROM account WHERE id = 1"},
		"PutBackEdited": {"DELETE FROM account WHERE id = 1", "UPDATE account SET note = 'mine' WHERE id = 1"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			u := newUndo(t, balances)
			u.by(t, "ann", "r1", h.first)
			apply(t, u.Client.RevertRequest("r1"))
			u.by(t, "bob", "r2", h.later)
			now := u.state(t)
			result := apply(t, u.Client.RevertRequest("r1"))
			u.want(t, "the second undo wrote something", now)
			if result.Already == nil {
				t.Errorf("the second undo gives %+v", result)
			}
			apply(t, u.Client.RevertRequest("r2"))
		})
	}
}

// What a transaction of others has left as it was is nobody's work, nor is what a request
// of others has, once that is undone.
func TestRevert_LaterWorkThatCameToNothing(t *testing.T) {
	t.Parallel()
	for name, h := range map[string]struct {
		later     [][]string // transactions
		undone    bool
		conflicts []string
	}{
		"OneTransaction":        {later: [][]string{{"UPDATE account SET balance = 7 WHERE id = 5", "UPDATE account SET balance = 5 WHERE id = 5"}}},
		"OverThree":             {later: [][]string{{"UPDATE account SET balance = 7 WHERE id = 5", "UPDATE account SET balance = 8 WHERE id = 5", "UPDATE account SET balance = 5 WHERE id = 5"}}},
		"TwoTransactions":       {later: [][]string{{"UPDATE account SET balance = 7 WHERE id = 5"}, {"UPDATE account SET balance = 5 WHERE id = 5"}}, conflicts: []string{"column changed public.account[5] balance"}},
		"TwoTransactionsUndone": {later: [][]string{{"UPDATE account SET balance = 7 WHERE id = 5"}, {"UPDATE account SET balance = 5, note = 'bob' WHERE id = 5"}}, undone: true},
		"MoreThanThat":          {later: [][]string{{"UPDATE account SET balance = 7 WHERE id = 5", "UPDATE account SET balance = 5, note = 'bob' WHERE id = 5"}}, conflicts: []string{"column changed public.account[5] note"}},
		"RowAway":               {later: [][]string{{"DELETE FROM account WHERE id = 5", "INSERT INTO account VALUES (5, 5)"}}, conflicts: []string{"row created again public.account[5]"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			u := newUndo(t, balances)
			before := u.state(t)
			u.by(t, "ann", "r", "INSERT INTO account VALUES (5, 5)")
			for _, statements := range h.later {
				u.by(t, "bob", "b", statements...)
			}
			if h.undone {
				apply(t, u.Client.RevertRequest("b"))
			}
			wantConflicts(t, u.Client.RevertRequest("r"), h.conflicts...)
			if len(h.conflicts) == 0 {
				apply(t, u.Client.RevertRequest("r"))
				u.want(t, "after the revert", before)
			}
		})
	}
}
