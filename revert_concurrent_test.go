package audit_test

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/hindsight-go/audit"
	"github.com/hindsight-go/audit/internal/faulttest"
)

// realmRoundsEnv makes the tests of undo in random schemas look at more of them.
const realmRoundsEnv = "AUDIT_TEST_UNDO_ROUNDS"

// realmSeeds are the seeds of some random schemas.
func realmSeeds(t *testing.T, n uint64) []uint64 {
	t.Helper()
	return seeds(t, int(faulttest.EnvNumber(t, realmRoundsEnv, n)))
}

// committed is one transaction of a realm's history, with the states around it.
type committed struct {
	audit.Transaction
	footprint     *footprint
	before, after []string
}

func (c committed) revert(w *realm) audit.Reversal {
	return w.Client.RevertRequest(c.Context.RequestID)
}

// history lists what was committed since a moment, in commit order.
func (w *realm) history(t *testing.T, since audit.Position) []committed {
	t.Helper()
	w.Sync(t)
	var all []committed
	for tx, err := range w.Client.Changes().OldestFirst().Transactions(t.Context()) {
		if err != nil {
			t.Fatal(err)
		}
		if tx.Position <= since.LSN {
			continue
		}
		all = append(all, committed{Transaction: tx, footprint: w.footprint(t, tx)})
	}
	for i := range all {
		all[i].before = w.past(t, w.Client.BeforeTransaction(all[i].ID))
		all[i].after = w.past(t, w.Client.AfterTransaction(all[i].ID))
		if i > 0 && !slices.Equal(all[i-1].after, all[i].before) {
			t.Fatalf("the past after %s is not that before %s", all[i-1].Context.RequestID, all[i].Context.RequestID)
		}
	}
	return all
}

// redone is a revert that can be taken back.
type redone struct {
	id string
	of committed
}

// undoOne reverts one transaction, or redoes it, and looks whether the live rows and
// history are as they should be then.
func (w *realm) undoOne(t *testing.T, what string, r audit.Reversal, want []string) *audit.Result {
	t.Helper()
	result, err := r.Apply(t.Context())
	if err != nil {
		plan, _ := r.Plan(t.Context()) // for people; the error is the other one
		t.Fatalf("%s: %v\n%s", what, errors.Join(err, errors.Unwrap(err)), plan)
	}
	if result.Already != nil {
		t.Fatalf("%s: taken for reverted already by %s", what, result.Already.ID)
	}
	if diff := cmp.Diff(want, w.live(t)); diff != "" {
		t.Fatalf("%s (-want +got):\n%s\n%s", what, diff, result.Plan)
	}
	if result.ID == "" {
		return result
	}
	w.checkToken(t, result)
	return result
}

// checkToken makes sure that the past as of a revert's token is the live rows.
func (w *realm) checkToken(t *testing.T, result *audit.Result) {
	t.Helper()
	if err := w.Client.WaitFor(t.Context(), result.Token); err != nil {
		t.Fatal(err)
	}
	at, err := audit.ParsePosition(string(result.Token))
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(w.live(t), w.past(t, w.Client.AtPosition(at))); diff != "" {
		t.Fatalf("the past as of the token of revert %s is not the live rows (-live +past):\n%s", result.ID, diff)
	}
}

// Of requests that ran at the same time, reverting the last to be committed gives
// the state before it, and redo that after it; reverting all from the last to the
// first leads to where all began; and so does any other order in which nothing is
// reverted before what builds on it. In none of them is anything in conflict.
func TestRevertOfConcurrentRequests(t *testing.T) {
	t.Parallel()
	for i, seed := range realmSeeds(t, 3) {
		t.Run(fmt.Sprint(i), func(t *testing.T) {
			t.Parallel()
			w := newRealm(t, seed)
			baseline, since := w.live(t), w.position(t)
			var quiet []audit.Position
			var states [][]string
			for range 3 {
				w.work(t, 4, 2)
				quiet, states = append(quiet, w.position(t)), append(states, w.live(t))
			}
			all := w.history(t, since)
			t.Logf("%d transactions", len(all))
			// What is known of the moments when nobody worked is known from the tables.
			for i, at := range quiet {
				if diff := cmp.Diff(states[i], w.past(t, w.Client.AtPosition(at))); diff != "" {
					t.Fatalf("the past of a quiet moment:\n%s", diff)
				}
			}
			w.revertTables(t, since, baseline)
			w.revertTables(t, quiet[0], states[0])
			undone := w.revertDown(t, all)
			if diff := cmp.Diff(baseline, w.live(t)); diff != "" {
				t.Fatalf("after the revert of everything:\n%s", diff)
			}
			for i, r := range slices.Backward(undone) {
				w.undoOne(t, fmt.Sprintf("redo %d of %s", i, r.of.Context.RequestID), w.Client.Redo(r.id), r.of.after)
			}
			w.revertInAnyOrder(t, all)
			if diff := cmp.Diff(baseline, w.live(t)); diff != "" {
				t.Fatalf("after the revert of everything in another order:\n%s", diff)
			}
		})
	}
}

// revertTables puts all tables back to a moment, looks, and takes that back.
func (w *realm) revertTables(t *testing.T, to audit.Position, want []string) {
	t.Helper()
	names := make([]string, len(w.tables))
	for i, table := range w.tables {
		names[i] = table.name
	}
	now := w.live(t)
	result := w.undoOne(t, "all tables to "+to.String(), w.Client.RevertTables(w.Client.AtPosition(to), names...), want)
	if result.ID != "" {
		w.undoOne(t, "all tables from "+to.String(), w.Client.Redo(result.ID), now)
	}
}

// revertDown reverts one request after the other, the last one first, some of them
// back and forth.
func (w *realm) revertDown(t *testing.T, all []committed) []redone {
	t.Helper()
	var undone []redone
	for i, c := range slices.Backward(all) {
		what := fmt.Sprintf("transaction %d, %s", i, c.Context.RequestID)
		result := w.undoOne(t, "revert of "+what, c.revert(w), c.before)
		if result.ID == "" { // a request that changed nothing in the end
			continue
		}
		if i%3 == len(all)%3 || i == len(all)-1 {
			redo := w.undoOne(t, "redo of "+what, w.Client.Redo(result.ID), c.after)
			result = w.undoOne(t, "revert of the redo of "+what, w.Client.Redo(redo.ID), c.before)
			// Its redo is one of a revert of a redo now.
		}
		undone = append(undone, redone{result.ID, c})
	}
	return undone
}

// revertInAnyOrder reverts all requests, each of them at some time after those that
// build on it.
func (w *realm) revertInAnyOrder(t *testing.T, all []committed) {
	t.Helper()
	random := rand.New(rand.NewPCG(w.seed, 13)) //nolint:gosec // It is to be repeatable.
	var order []string
	for left := slices.Clone(all); len(left) > 0; {
		var free []int
		for i := range left {
			if !slices.ContainsFunc(left[i+1:], func(later committed) bool { return left[i].footprint.meets(later.footprint) }) {
				free = append(free, i)
			}
		}
		i := free[random.IntN(len(free))] // the last one always is
		c := left[i]
		order = append(order, c.Context.RequestID)
		plan, err := c.revert(w).Plan(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if len(plan.Conflicts) > 0 {
			t.Fatalf("nothing that is left builds on %s, and it is in conflict, after the reverts of %s:\n%s", c.Context.RequestID, strings.Join(order, ", "), lines(plan.Conflicts))
		}
		if _, err := plan.Apply(t.Context()); err != nil {
			t.Fatalf("%s, after the reverts of %s: %v\n%s", c.Context.RequestID, strings.Join(order, ", "), errors.Join(err, errors.Unwrap(err)), plan)
		}
		left = slices.Delete(left, i, i+1)
	}
	t.Logf("reverted in the order %s", strings.Join(order, ", "))
}
