package audit_test

import (
	"errors"
	"strings"
	"testing"

	"github.com/hindsight-go/audit"
)

// checkCascade makes sure that what a cascade overwrites is the request's or what
// the plan lists, and that all of the request is undone then.
func (w *realm) checkCascade(t *testing.T, p *prophecy, request string, revert audit.Reversal, fail func(audit.Resolution, string, ...any)) {
	t.Helper()
	got, result, err := w.attempt(t, revert.OnConflict(audit.Cascade))
	if err != nil {
		var blocked *audit.ConflictError
		if errors.As(err, &blocked) {
			fail(audit.Cascade, "%v\n%s\n%s", err, lines(blocked.Conflicts), w.pastOf(t, blocked.Conflicts))
			return
		}
		plan, _ := revert.OnConflict(audit.Cascade).Plan(t.Context()) // for people; the error is the other one
		fail(audit.Cascade, "%v\n%s", errors.Join(err, errors.Unwrap(err)), plan)
		return
	}
	l, r := w.ledgerOf(t, request, result)
	renamed := make(map[string]string)
	for row := range result.Plan.Rows() {
		l.renamedBy(t, row, renamed)
	}
	for name, row := range p.live {
		now, table := got[name], w.table(t, "public."+name[:strings.Index(name, "[")])
		if to := renamed[name]; to != "" {
			now = got[to]
		}
		for _, column := range table.columns() {
			followed := p.follow(name, row, renamed)[column] == now[column] && now != nil
			if now[column] != row[column] && !followed && !l.mayWrite(r, name, column, row[column]) {
				fail(audit.Cascade, "%s of %s was %q and is %q, of %d changes cascaded:\n%s", column, name, row[column], now[column], len(result.Plan.Cascaded), result.Plan)
			}
		}
	}
	for _, n := range p.nets {
		for _, column := range n.table.columns() {
			if n.before != nil && n.changed(column) && got[n.from][column] != n.before[column] {
				fail(audit.Cascade, "%s of %s is not as it was, but %q:\n%s", column, n.from, got[n.from][column], result.Plan)
			}
		}
	}
}

// pastOf is what has happened to the rows of conflicts, for people.
func (w *realm) pastOf(t *testing.T, conflicts []audit.Conflict) string {
	t.Helper()
	l, _ := w.ledgerOf(t, "none", &audit.Result{Plan: &audit.Plan{}})
	var past []string
	for _, c := range conflicts {
		past = append(past, l.past[rowName(w.table(t, c.Table), c.Key)]...)
		if c.Other != nil {
			past = append(past, l.past[rowName(w.table(t, c.Other.Table), c.Other.Key)]...)
		}
	}
	return strings.Join(past, "\n")
}

// ledgerOf knows who wrote what is there now.
func (w *realm) ledgerOf(t *testing.T, request string, result *audit.Result) (*ledger, *applied) {
	t.Helper()
	r := &applied{what: request, policy: audit.Cascade, result: result, selection: w.Client.Changes().InRequest(request)}
	r.find(t)
	l := newLedger(w)
	for change, err := range w.Client.Changes().OldestFirst().All(t.Context()) {
		if err != nil {
			t.Fatal(err)
		}
		l.take(t, change)
	}
	return l, r
}

// renamedBy notes the key that a plan gives a row.
func (l *ledger) renamedBy(t *testing.T, row audit.PlannedRow, renamed map[string]string) {
	t.Helper()
	if row.Action != audit.Update || row.Outcome != audit.Reverted {
		return
	}
	table := l.w.table(t, row.Table)
	key := append([]string(nil), row.Key...)
	for i, name := range table.key() {
		for _, c := range row.Columns {
			if c.Column == name && c.Restore != nil {
				key[i] = *c.Restore
			}
		}
	}
	if to := rowName(table, key); to != rowName(table, row.Key) {
		renamed[rowName(table, row.Key)] = to
	}
}

// A row that somebody made anew got another key from a change that the cascade
// reverts: what made it is found under the key that it had before, and reverted, too.
func TestCascadeFindsWhatMadeARowThatWasRenamed(t *testing.T) {
	t.Parallel()
	u := newUndo(t, `
		CREATE TABLE p (id int PRIMARY KEY);
		CREATE TABLE c (id int PRIMARY KEY, p int REFERENCES p, w text);
		INSERT INTO p VALUES (1), (7); INSERT INTO c VALUES (22, 1, 'old')`)
	before := u.state(t)
	u.request(t, "first", "DELETE FROM c WHERE id = 22", "UPDATE p SET id = 32 WHERE id = 7")
	u.request(t, "second", "INSERT INTO c VALUES (22, 32, 'new')")
	u.request(t, "third", "UPDATE c SET id = 65")
	apply(t, u.Client.RevertRequest("first").OnConflict(audit.Cascade))
	u.want(t, "after the cascade", before)
	u.Check(t)
}
