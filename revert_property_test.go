package audit_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5"

	"github.com/hindsight-go/audit"
	"github.com/hindsight-go/audit/internal/faulttest"
)

// world is a random schema with foreign keys, and random work in it.
type world struct {
	*rand.Rand
	*undo
	tables int
	parent []int // of each table; -1: none
	unique []bool
	next   int // the next key, the same for all tables
	// keysStay leaves out changes of keys, which the model of conflicts does not
	// follow.
	keysStay bool
}

func newWorld(t *testing.T, seed uint64) *world {
	t.Helper()
	t.Logf("seed %d", seed)
	w := &world{Rand: rand.New(rand.NewPCG(seed, 7))}
	w.tables = 2 + w.IntN(3)
	var setup []string
	for i := range w.tables {
		parent := w.IntN(i+2) - 1 // itself is one of them
		columns := "id int PRIMARY KEY, a int, b text, c numeric"
		if parent >= 0 {
			action := []string{"", "ON DELETE CASCADE", "ON DELETE SET NULL", "ON UPDATE CASCADE", "DEFERRABLE"}[w.IntN(5)]
			columns += fmt.Sprintf(", parent int REFERENCES t%d %s", parent, action)
		}
		unique := w.IntN(2) == 0
		if unique {
			columns += ", u int UNIQUE"
		}
		w.parent, w.unique = append(w.parent, parent), append(w.unique, unique)
		setup = append(setup, fmt.Sprintf("CREATE TABLE t%d (%s)", i, columns))
	}
	for i := range w.tables {
		for range 6 {
			w.next++
			setup = append(setup, fmt.Sprintf("INSERT INTO t%d (id, a, b, c) VALUES (%d, %d, 'b%d', %d.50)", i, w.next, w.IntN(5), w.IntN(5), w.IntN(5)))
		}
	}
	t.Log(strings.Join(setup, "\n"))
	w.undo = newUndo(t, setup...).direct(seed)
	return w
}

// statement is some write, which may well be refused.
func (w *world) statement() string {
	table := w.IntN(w.tables)
	id := 1 + w.IntN(w.next)
	switch w.IntN(10) {
	case 0, 1, 2:
		w.next++
		columns, values := "id, a, b", fmt.Sprintf("%d, %d, 'n%d'", w.next, w.IntN(5), w.IntN(5))
		if w.parent[table] >= 0 && w.IntN(3) > 0 {
			columns += ", parent"
			values += fmt.Sprintf(", (SELECT id FROM t%d WHERE id <> %d ORDER BY (id * 7919) %% 101 LIMIT 1)", w.parent[table], w.next)
		}
		return fmt.Sprintf("INSERT INTO t%d (%s) VALUES (%s)", table, columns, values)
	case 3:
		return fmt.Sprintf("DELETE FROM t%d WHERE id IN (%d, %d, %d)", table, id, id+1, id+2)
	case 4:
		if w.unique[table] {
			return fmt.Sprintf("UPDATE t%d SET u = %d WHERE id = %d", table, w.IntN(4), id)
		}
		fallthrough
	case 5:
		if w.parent[table] >= 0 {
			return fmt.Sprintf("UPDATE t%d SET parent = (SELECT min(id) FROM t%d WHERE id > %d) WHERE id %% 5 = %d", table, w.parent[table], w.IntN(w.next), w.IntN(5))
		}
		fallthrough
	case 6:
		if w.keysStay {
			return fmt.Sprintf("UPDATE t%d SET b = NULL WHERE id = %d", table, id)
		}
		w.next++
		return fmt.Sprintf("UPDATE t%d SET id = %d WHERE id = %d", table, w.next, id)
	default:
		set := []string{fmt.Sprintf("a = %d", w.IntN(5)), fmt.Sprintf("b = 'u%d'", w.IntN(5)), "c = NULL", "c = coalesce(c, 0) + 0.25"}
		w.Shuffle(len(set), func(i, j int) { set[i], set[j] = set[j], set[i] })
		if strings.HasPrefix(set[0], "c") && strings.HasPrefix(set[1], "c") {
			set = set[1:]
		}
		return fmt.Sprintf("UPDATE t%d SET %s, %s WHERE id %% 4 = %d", table, set[0], "b = 'x'", w.IntN(4))
	}
}

// work runs statements in one transaction in the name of a request; those that the
// server refuses leave no trace.
func (w *world) work(t *testing.T, request string, n int) {
	t.Helper()
	ctx := audit.WithContext(t.Context(), audit.Context{UserID: "ann", RequestID: request})
	err := pgx.BeginFunc(ctx, w.conn, func(tx pgx.Tx) error {
		if err := audit.Stamp(ctx, tx); err != nil {
			return err
		}
		for range n {
			sql := w.statement()
			err := pgx.BeginFunc(ctx, tx, func(nested pgx.Tx) error {
				_, err := nested.Exec(ctx, sql)
				return err
			})
			if err == nil {
				t.Logf("%s: %s", request, sql)
			}
		}
		_, err := tx.Exec(ctx, "SET CONSTRAINTS ALL IMMEDIATE")
		return err
	})
	if err != nil {
		t.Logf("%s is void: %v", request, err)
	}
}

// revert applies a revert of a request; one that changed nothing has nothing to
// revert.
func (w *world) revert(t *testing.T, r audit.Reversal) (*audit.Result, bool) {
	t.Helper()
	result, err := r.Apply(t.Context())
	if errors.Is(err, audit.ErrNothingSelected) {
		return nil, false
	}
	if err != nil {
		var blocked *audit.ConflictError
		if errors.As(err, &blocked) {
			t.Fatalf("%v\n%s", err, lines(blocked.Conflicts))
		}
		t.Fatal(err, errors.Unwrap(err))
	}
	return result, true
}

func seeds(t *testing.T, n int) []uint64 {
	t.Helper()
	base := faulttest.EnvNumber(t, undoSeedEnv, 20261121)
	t.Logf("seeds from %s=%d on", undoSeedEnv, base)
	all := make([]uint64, n)
	for i := range all {
		all[i] = base + uint64(i)
	}
	return all
}

// Reverting the last request gives the state before it, redo that after it, and
// reverting all requests from the last to the first where it all began.
func TestRevertOfRandomRequests(t *testing.T) {
	t.Parallel()
	for i, seed := range seeds(t, 4) {
		t.Run(fmt.Sprint(i), func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, seed)
			states := [][]string{w.state(t)}
			const requests = 8
			for n := range requests {
				w.work(t, fmt.Sprint("r", n), 1+w.IntN(6))
				after := w.state(t)
				if result, did := w.revert(t, w.Client.RevertRequest(fmt.Sprint("r", n))); did && result.ID != "" {
					w.want(t, fmt.Sprintf("seed %d: after the revert of request %d", seed, n), states[n])
					w.revert(t, w.Client.Redo(result.ID))
				}
				w.want(t, fmt.Sprintf("seed %d: after the redo of request %d", seed, n), after)
				states = append(states, after)
				if t.Failed() {
					return
				}
			}
			for n := requests - 1; n >= 0; n-- {
				w.revert(t, w.Client.RevertRequest(fmt.Sprint("r", n)))
				w.want(t, fmt.Sprintf("seed %d: after the revert of requests from %d on", seed, n), states[n])
				if t.Failed() {
					return
				}
			}
		})
	}
}

// Whatever others did after a request, no policy but Overwrite loses any of it,
// and each conflict that the model knows is reported.
func TestNoLaterWorkIsLost(t *testing.T) {
	t.Parallel()
	for i, seed := range seeds(t, 4) {
		t.Run(fmt.Sprint(i), func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, seed)
			w.keysStay = true
			before := w.rows(t)
			w.work(t, "first", 5)
			middle := w.rows(t)
			w.work(t, "second", 3)
			after := w.rows(t)
			revert := w.Client.RevertRequest("first")
			plan, err := revert.Plan(t.Context())
			if errors.Is(err, audit.ErrNothingSelected) {
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			want := modelConflicts(before, middle, after)
			var got []string
			for _, c := range plan.Conflicts {
				if c.Kind == audit.ColumnChanged {
					got = append(got, c.RowRef.String()+" "+c.Column)
				}
			}
			slices.Sort(got)
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("seed %d: conflicts (-model +plan):\n%s\n%s", seed, diff, plan)
			}
			if _, err := revert.Apply(t.Context()); len(plan.Conflicts) > 0 && err == nil {
				t.Errorf("seed %d: Abort went on", seed)
			}
			if len(plan.Conflicts) > 0 {
				if diff := cmp.Diff(after, w.rows(t)); diff != "" {
					t.Errorf("seed %d: Abort wrote:\n%s", seed, diff)
				}
			}
			if _, err := revert.OnConflict(audit.Skip).Apply(t.Context()); err != nil {
				t.Fatalf("seed %d: Skip: %v", seed, err)
			}
			now := w.rows(t)
			for key, row := range after {
				for column, value := range row {
					if value != middle[key][column] && now[key][column] != value {
						t.Errorf("seed %d: Skip lost %s of %s: %q is %q", seed, column, key, value, now[key][column])
					}
				}
			}
		})
	}
}

// rows are all rows by table and key, with their columns as text.
func (w *world) rows(t *testing.T) map[string]map[string]string {
	t.Helper()
	ctx := context.WithoutCancel(t.Context())
	all := make(map[string]map[string]string)
	for i := range w.tables {
		rows, err := w.conn.Query(ctx, fmt.Sprintf("SELECT id::text, key, coalesce(value, 'NULL') FROM t%d r, jsonb_each_text(to_jsonb(r))", i))
		if err != nil {
			t.Fatal(err)
		}
		var id, column, value string
		_, err = pgx.ForEachRow(rows, []any{&id, &column, &value}, func() error {
			key := fmt.Sprintf("public.t%d[%s]", i, id)
			if all[key] == nil {
				all[key] = make(map[string]string)
			}
			all[key][column] = value
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	return all
}

// modelConflicts are the columns that the first request changed and the second
// changed again to something else than they were; in rows that the first made,
// every column that the second changed.
func modelConflicts(before, middle, after map[string]map[string]string) []string {
	var found []string
	for key, row := range middle {
		now, there := after[key]
		if !there {
			continue
		}
		for column, value := range row {
			was, had := before[key]
			switch {
			case now[column] == value:
			case !had || was[column] != value && now[column] != was[column]:
				found = append(found, key+" "+column)
			}
		}
	}
	slices.Sort(found)
	return found
}

// While reverts restore one column of rows, others count up another one of the
// same rows: no count is lost, and what a revert restored stays restored.
func TestRevertsBesideOtherWork(t *testing.T) {
	t.Parallel()
	const rows, rounds = 20, 15
	u := newUndo(t, fmt.Sprintf("CREATE TABLE a (id int PRIMARY KEY, word text, n int NOT NULL DEFAULT 0); INSERT INTO a SELECT i, 'good' FROM generate_series(1, %d) i", rows))
	stop := make(chan struct{})
	counted := make(chan int, 2)
	for worker := range 2 {
		conn := u.Connect(t)
		go func() {
			done := 0
			defer func() { counted <- done }()
			for {
				select {
				case <-stop:
					return
				default:
				}
				if _, err := conn.Exec(context.WithoutCancel(t.Context()), "UPDATE a SET n = n + 1 WHERE id = $1", 1+(done*7+worker)%rows); err != nil {
					t.Error(err)
					return
				}
				done++
			}
		}()
	}
	for i := range rounds {
		id := fmt.Sprint("r", i)
		u.request(t, id, "UPDATE a SET word = 'bad' WHERE id % 3 = 1")
		apply(t, u.Client.RevertRequest(id))
		u.holds(t, "(SELECT bool_and(word = 'good') FROM a)")
	}
	close(stop)
	total := <-counted + <-counted
	u.holds(t, fmt.Sprintf("(SELECT sum(n) = %d FROM a)", total))
}
