package audit_test

import (
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/hindsight-go/audit"
)

// randomBagStatement is one on a table without a key, of which many rows are equal.
func randomBagStatement(random *rand.Rand) string {
	n, m, word := random.IntN(3), random.IntN(3), []string{"'a'", "'b'", "NULL"}[random.IntN(3)]
	one := fmt.Sprintf("ctid = (SELECT ctid FROM a ORDER BY n, w OFFSET %d LIMIT 1)", random.IntN(6))
	statements := []string{
		fmt.Sprintf("INSERT INTO a VALUES (%d, %s)", n, word),
		fmt.Sprintf("INSERT INTO a VALUES (%d, %s), (%d, %s)", n, word, m, word),
		fmt.Sprintf("INSERT INTO a SELECT * FROM a ORDER BY n, w LIMIT %d", 1+random.IntN(2)),
		fmt.Sprintf("UPDATE a SET n = %d WHERE n = %d", m, n),
		fmt.Sprintf("UPDATE a SET w = %s WHERE %s", word, one),
		fmt.Sprintf("UPDATE a SET n = %d, w = %s WHERE %s", n, word, one),
		fmt.Sprintf("UPDATE a SET n = %d WHERE %s", m, one),
		fmt.Sprintf("DELETE FROM a WHERE n = %d AND w = %s", n, word),
		"DELETE FROM a WHERE " + one,
	}
	if random.IntN(40) == 0 {
		return "TRUNCATE a"
	}
	return statements[random.IntN(len(statements))]
}

// Every revert is the state before, every redo the state after, whatever the rows
// have in common.
func TestRandomWorkWithoutAKeyIsUndoneExactly(t *testing.T) {
	t.Parallel()
	random := seeded(t)
	for range 4 {
		u := newUndo(t, "CREATE TABLE a (n int, w text); INSERT INTO a SELECT i % 3, CASE WHEN i % 4 > 0 THEN 'a' END FROM generate_series(1, 8) i")
		u.baseline(t)
		var requests [][]string
		states := [][]string{u.state(t)}
		for i := range 12 {
			statements := []string{fmt.Sprintf("INSERT INTO a VALUES (%d, NULL)", random.IntN(3))}
			for range random.IntN(6) {
				statements = append(statements, randomBagStatement(random))
			}
			u.request(t, fmt.Sprint(i), statements...)
			requests, states = append(requests, statements), append(states, u.state(t))
		}
		for i := len(requests) - 1; i >= 0; i-- {
			revert := u.Client.RevertRequest(fmt.Sprint(i))
			result := apply(t, revert)
			u.want(t, fmt.Sprintf("after the revert of %q", requests[i]), states[i])
			if result.ID != "" {
				redo := apply(t, u.Client.Redo(result.ID))
				u.want(t, fmt.Sprintf("after the redo of %q", requests[i]), states[i+1])
				if redo.ID != "" { // else the revert had only exchanged equal rows
					apply(t, u.Client.Redo(redo.ID))
				}
				u.want(t, fmt.Sprintf("after the revert of the redo of %q", requests[i]), states[i])
			}
			if t.Failed() {
				return
			}
		}
	}
}

// bagOf is how many rows of each number a table has.
type bagOf map[int]int

func (u *undo) numbers(t *testing.T) bagOf {
	t.Helper()
	bag := bagOf{}
	for _, line := range u.state(t) {
		var n int
		if _, err := fmt.Sscanf(line, "a (%d)", &n); err != nil {
			t.Fatal(err)
		}
		bag[n]++
	}
	return bag
}

// bagWork is a request in the model: what it made of the rows, each by itself.
type bagWork struct {
	before, after bagOf
	// put counts the rows that it gave a number, taken those that had it. deleted
	// are those that it deleted.
	put, taken, deleted bagOf
}

// Any request out of the middle of the others' work: nothing of theirs is lost, no
// conflict is missed, and none is made up.
func TestRandomLaterWorkWithoutAKeyIsNotLost(t *testing.T) {
	t.Parallel()
	random := seeded(t)
	undone, inConflict := 0, 0
	for range 3 {
		u := newUndo(t, "CREATE TABLE a (n int); INSERT INTO a SELECT i % 5 FROM generate_series(1, 12) i")
		u.baseline(t)
		var work []bagWork
		for i := range 14 {
			w := bagWork{before: u.numbers(t), put: bagOf{}, taken: bagOf{}, deleted: bagOf{}}
			now := maps.Clone(w.before)
			var statements []string
			for range 1 + random.IntN(2) {
				statements = append(statements, w.step(random, now))
			}
			u.request(t, fmt.Sprint(i), statements...)
			w.after = u.numbers(t)
			if diff := cmp.Diff(w.after, now); diff != "" {
				t.Fatalf("the model is another: %q\n%s", statements, diff)
			}
			work = append(work, w)
		}
		live := u.numbers(t)
		for i, w := range work {
			r := u.Client.RevertRequest(fmt.Sprint(i))
			plan, err := r.Plan(t.Context())
			if errors.Is(err, audit.ErrNothingSelected) {
				continue
			}
			if err != nil {
				t.Fatal(err)
			}
			what := fmt.Sprintf("request %d of %v: %v -> %v, live %v\n%s", i, len(work), w.before, w.after, live, plan)
			if blocked := len(plan.Blocked()) > 0; blocked {
				inConflict++
				if w.allThere(live) {
					t.Errorf("a conflict is made up: %s", what)
				}
			} else {
				undone++
				if plan.Unchanged == 0 && !w.mayBeUndone(live, work[i+1:]) {
					t.Errorf("a conflict is missed: %s", what)
				}
			}
			for _, policy := range []audit.Policy{audit.Abort, audit.Skip} {
				got := bagOf{}
				for _, line := range u.afterwards(t, r.OnConflict(policy)) {
					var n int
					_, _ = fmt.Sscanf(line, "a (%d)", &n)
					got[n]++
				}
				for n := range 6 {
					if lost := live[n] - got[n]; lost > w.put[n] {
						t.Errorf("%v: %d rows of %d are lost: %s", policy, lost, n, what)
					}
					if more := got[n] - live[n]; more > w.taken[n] {
						t.Errorf("%v: %d rows of %d are made: %s", policy, more, n, what)
					}
					if policy == audit.Skip || len(plan.Blocked()) > 0 {
						continue
					}
					// Some may have been undone by somebody else.
					e, d := w.before[n]-w.after[n], got[n]-live[n]
					if d < min(e, 0) || d > max(e, 0) || plan.Unchanged == 0 && d != e {
						t.Errorf("%d rows of %d, were %d: %s", got[n], n, live[n], what)
					}
				}
			}
		}
	}
	t.Logf("%d undone, %d in conflict", undone, inConflict)
	if undone == 0 || inConflict == 0 {
		t.Error("nothing was tried")
	}
}

// step is a random statement, done in the model as well.
func (w *bagWork) step(random *rand.Rand, now bagOf) string {
	n, m := random.IntN(5), random.IntN(5)
	move := func(n, count, to int) {
		if now[n] -= count; now[n] == 0 {
			delete(now, n)
		}
		w.taken[n] += count
		if to >= 0 && count > 0 {
			now[to] += count
			w.put[to] += count
		}
	}
	one := min(1, now[n])
	switch random.IntN(5) {
	case 0:
		w.put[n]++
		now[n]++
		return fmt.Sprintf("INSERT INTO a VALUES (%d)", n)
	case 1:
		move(n, one, -1)
		w.deleted[n] += one
		return fmt.Sprintf("DELETE FROM a WHERE ctid = (SELECT min(ctid) FROM a WHERE n = %d)", n)
	case 2:
		move(n, now[n], m)
		return fmt.Sprintf("UPDATE a SET n = %d WHERE n = %d", m, n)
	default:
		move(n, one, m)
		return fmt.Sprintf("UPDATE a SET n = %d WHERE ctid = (SELECT min(ctid) FROM a WHERE n = %d)", m, n)
	}
}

// allThere reports whether every row which the request put anywhere is to be found.
func (w *bagWork) allThere(live bagOf) bool {
	for n, count := range w.put {
		if live[n] < count {
			return false
		}
	}
	return true
}

// mayBeUndone reports whether what the request left is there, or was deleted later.
func (w *bagWork) mayBeUndone(live bagOf, later []bagWork) bool {
	deleted := 0 // of any number: others may have changed it before
	for _, l := range later {
		for _, count := range l.deleted {
			deleted += count
		}
	}
	for n := range 6 {
		if live[n]+deleted < w.after[n]-w.before[n] {
			return false
		}
	}
	return true
}
