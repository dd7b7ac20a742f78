package audit_test

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5"

	"github.com/hindsight-go/audit"
)

func (w *realm) state(t *testing.T, tx querier) realmState {
	t.Helper()
	state := make(realmState)
	for _, table := range w.tables {
		rows, err := tx.Query(t.Context(), "SELECT to_jsonb(whole)::text FROM "+table.name+" whole")
		if err != nil {
			t.Fatal(err)
		}
		texts, err := pgx.CollectRows(rows, pgx.RowTo[string])
		if err != nil {
			t.Fatal(err)
		}
		for _, text := range texts {
			row, key := imageValues(audit.Image(text)), []string(nil)
			for _, column := range table.key() {
				key = append(key, row[column])
			}
			state[rowName(table, key)] = row
		}
	}
	return state
}

// attempt applies a revert in a transaction that is rolled back, and returns what
// the tables hold then.
func (w *realm) attempt(t *testing.T, r audit.Reversal) (realmState, *audit.Result, error) {
	t.Helper()
	tx, err := w.conn.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	result, failed := r.ApplyTx(t.Context(), tx)
	var state realmState
	if tx.Conn().PgConn().TxStatus() == 'T' {
		state = w.state(t, tx)
	}
	if err := tx.Rollback(t.Context()); err != nil {
		t.Fatal(err)
	}
	return state, result, failed
}

// Of every request of a history of concurrent ones, the plan lists just the
// conflicts that a model finds. Abort writes nothing then, Skip undoes just the
// rest, and Overwrite changes no column that the request had not changed.
func TestPoliciesAgainstAModel(t *testing.T) {
	t.Parallel()
	for i, seed := range realmSeeds(t, 3) {
		t.Run(fmt.Sprint(i), func(t *testing.T) {
			t.Parallel()
			w := newRealm(t, seed)
			since := w.position(t)
			w.work(t, 4, 4)
			requests := w.requests(t, since)
			live := w.state(t, w.conn)
			inConflict := 0
			for _, request := range requests {
				if w.checkPolicies(t, request, live) {
					inConflict++
				}
				if t.Failed() {
					return
				}
			}
			t.Logf("%d of %d requests are in conflict", inConflict, len(requests))
		})
	}
}

func (w *realm) checkPolicies(t *testing.T, request string, live realmState) (inConflict bool) {
	t.Helper()
	revert := w.Client.RevertRequest(request)
	p := &prophecy{w: w, nets: w.nets(t, request), live: live, later: laterWorkOn(t, w.Client, request)}
	p.rows()
	p.structure()
	plan, err := revert.Plan(t.Context())
	if err != nil {
		t.Fatalf("%s: %v", request, err)
	}
	fail := func(policy audit.Resolution, what string, args ...any) {
		t.Helper()
		t.Errorf("%v of %s: "+what+"\n%s\n%s", append(append([]any{policy, request}, args...), plan, lines(plan.Conflicts))...)
	}
	want := slices.Compact(slices.Sorted(slices.Values(p.found)))
	if diff := cmp.Diff(want, slices.Compact(conflicts(t, revert))); diff != "" {
		fail(audit.Abort, "conflicts (-model +plan):\n%s", diff)
		return true
	}
	got, _, err := w.attempt(t, revert)
	var blocked *audit.ConflictError
	switch {
	case len(want) > 0 && (!errors.As(err, &blocked) || !cmp.Equal(live, got)):
		fail(audit.Abort, "it writes, and gives %v", err)
	case len(want) == 0 && err != nil:
		fail(audit.Abort, "%v", errors.Join(err, errors.Unwrap(err)))
	case len(want) == 0:
		if diff := cmp.Diff(p.outcome(), got); diff != "" {
			fail(audit.Abort, "the outcome (-model +tables):\n%s", diff)
		}
	}
	if len(want) > 0 {
		w.checkSkip(t, p, revert, fail)
		w.checkOverwrite(t, p, revert, fail)
		w.checkCascade(t, p, request, revert, fail)
	}
	return len(want) > 0
}

// checkSkip has the model skip what is in conflict, and what depends on that, and
// compares the outcome.
func (w *realm) checkSkip(t *testing.T, p *prophecy, revert audit.Reversal, fail func(audit.Resolution, string, ...any)) {
	t.Helper()
	for _, n := range p.nets {
		n.skipped = n.blocked
	}
	for hit := p.structure(); len(hit) > 0; hit = p.structure() {
		for _, n := range hit {
			n.skipped = true
		}
	}
	got, result, err := w.attempt(t, revert.OnConflict(audit.Skip))
	if err != nil {
		fail(audit.Skip, "%v", errors.Join(err, errors.Unwrap(err)))
		return
	}
	if diff := cmp.Diff(p.outcome(), got); diff != "" {
		fail(audit.Skip, "the outcome (-model +tables):\n%s\n%s", diff, lines(result.Plan.Conflicts))
	}
}

// checkOverwrite makes sure that only what the request had changed is changed, and
// what foreign keys do about rows that are removed or renamed.
func (w *realm) checkOverwrite(t *testing.T, p *prophecy, revert audit.Reversal, fail func(audit.Resolution, string, ...any)) {
	t.Helper()
	got, result, err := w.attempt(t, revert.OnConflict(audit.Overwrite))
	var blocked *audit.ConflictError
	if errors.As(err, &blocked) {
		if !cmp.Equal(p.live, got) {
			fail(audit.Overwrite, "it has written, and gives %v", err)
		}
		return
	}
	var refused *audit.ApplyError
	if errors.As(err, &refused) {
		return // a foreign key would take what another one holds
	}
	if err != nil {
		fail(audit.Overwrite, "%v", errors.Join(err, errors.Unwrap(err)))
		return
	}
	touched, taken := make(map[string]*netChange), make(map[string]bool)
	for _, n := range p.nets {
		touched[n.from], touched[n.to] = n, n
	}
	delete(touched, "")
	for name := range p.live {
		taken[name] = got[name] == nil
	}
	for name, row := range p.live {
		n := touched[name]
		now := got[name]
		if n != nil && n.renames() && n.before != nil && name == n.to {
			now = got[n.from]
		}
		if n != nil && (n.before == nil || n.after == nil) || maps.Equal(row, now) {
			continue
		}
		for column, value := range row {
			if now[column] != value && (n == nil || !n.changed(column)) && !w.led(p, name, column, row, taken, now == nil) {
				fail(audit.Overwrite, "%s of %s was %q and is %q:\n%s", column, name, value, now[column], lines(result.Plan.Conflicts))
			}
		}
	}
}

// led reports whether a row has lost, or changed, what references a row that is not
// there any more: with it, if the whole row is gone.
func (w *realm) led(p *prophecy, name, column string, row map[string]string, taken map[string]bool, gone bool) bool {
	return slices.ContainsFunc(w.tables, func(t *realmTable) bool {
		return strings.HasPrefix(name, t.name+"[") && slices.ContainsFunc(t.links, func(l *realmLink) bool {
			return taken[l.target(row)] && (gone || slices.Contains(l.columns(), column))
		})
	})
}
