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

// family is two tables with a foreign key between them, whose action a later
// child must not fall victim to.
const family = `
	CREATE TABLE parent (id int PRIMARY KEY, name text);
	CREATE TABLE child (id int PRIMARY KEY, parent int REFERENCES parent ON DELETE CASCADE, code int UNIQUE, note text);
	INSERT INTO parent SELECT i, 'p' || i FROM generate_series(1, 4) i;
	INSERT INTO child SELECT i, i % 4 + 1, i * 10, 'c' || i FROM generate_series(1, 6) i;`

// randomStatement is one that cannot fail, but may do nothing.
func randomStatement(random *rand.Rand) string {
	n, m, code := random.IntN(6)+1, random.IntN(9)+1, (random.IntN(9)+1)*10
	word := string(rune('a' + random.IntN(4)))
	statements := []string{
		fmt.Sprintf("INSERT INTO parent VALUES (%d, '%s') ON CONFLICT DO NOTHING", n, word),
		fmt.Sprintf("UPDATE parent SET name = '%s' WHERE id = %d", word, n),
		fmt.Sprintf("DELETE FROM parent WHERE id = %d", n),
		fmt.Sprintf("INSERT INTO child VALUES (%d, (SELECT max(id) FROM parent WHERE id <= %d), %d, '%s') ON CONFLICT DO NOTHING", m, n, code, word),
		fmt.Sprintf("UPDATE child SET note = '%s' WHERE id >= %d", word, m),
		fmt.Sprintf("UPDATE child SET code = NULL WHERE id = %d", m),
		fmt.Sprintf("UPDATE child SET code = %d WHERE id = %d AND NOT EXISTS (SELECT FROM child WHERE code = %d)", code, m, code),
		fmt.Sprintf("UPDATE child SET parent = (SELECT max(id) FROM parent WHERE id <= %d) WHERE id = %d", n, m),
		fmt.Sprintf("DELETE FROM child WHERE id = %d", m),
	}
	return statements[random.IntN(len(statements))]
}

func randomRequest(random *rand.Rand) []string {
	statements := make([]string, 1+random.IntN(5))
	for i := range statements {
		statements[i] = randomStatement(random)
	}
	return statements
}

// undoSeedEnv looks at other random histories than those that every run looks at.
const undoSeedEnv = "AUDIT_TEST_UNDO_SEED"

// seeded prints the seed of a test, which a failure can be repeated with.
func seeded(t *testing.T) *rand.Rand {
	t.Helper()
	seed := faulttest.EnvNumber(t, undoSeedEnv, 20261121)
	t.Logf("seed: %s=%d", undoSeedEnv, seed)
	return rand.New(rand.NewPCG(seed, 0))
}

// familyState is the rows of both tables, by "table[key]", each with its values by
// their columns.
type familyState map[string]map[string]string

func familyOf(t *testing.T, db interface {
	Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error)
},
) familyState {
	t.Helper()
	rows, err := db.Query(t.Context(), `
		SELECT 'public.parent[' || id || ']', ARRAY['id', id::text, 'name', coalesce(name, 'NULL')] FROM public.parent
		UNION ALL
		SELECT 'public.child[' || id || ']', ARRAY['id', id::text, 'parent', coalesce(parent::text, 'NULL'), 'code', coalesce(code::text, 'NULL'), 'note', coalesce(note, 'NULL')] FROM public.child`)
	if err != nil {
		t.Fatal(err)
	}
	state := familyState{}
	var name string
	var pairs []string
	_, err = pgx.ForEachRow(rows, []any{&name, &pairs}, func() error {
		row := map[string]string{}
		for pair := range slices.Chunk(pairs, 2) {
			row[pair[0]] = pair[1]
		}
		state[name], pairs = row, nil
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return state
}

// undone is what a revert makes of a row, by the model: the live row with what the
// request changed in it put back, or nil for none. changed tells that there is
// something to do.
func undone(before, after, live map[string]string) (row map[string]string, changed bool) {
	switch {
	case before == nil:
		return nil, live != nil
	case after == nil:
		return before, !cmp.Equal(live, before)
	}
	row = map[string]string{}
	for column, value := range live {
		row[column] = value
		if before[column] != after[column] {
			row[column] = before[column]
		}
	}
	return row, live != nil && !cmp.Equal(row, live)
}

// familyConflicts are the conflicts that reverting a request has, computed from the
// states before it, after it and now.
func familyConflicts(before, after, live familyState, later map[string]*workOfOthers) []string {
	names := map[string]bool{}
	for _, state := range []familyState{before, after} {
		for name := range state {
			if !cmp.Equal(before[name], after[name]) {
				names[name] = true
			}
		}
	}
	var found []string
	add := func(kind, name, column string) {
		found = append(found, strings.TrimSpace(kind+" "+name+" "+column))
	}
	future := familyState{} // of the rows that the revert does something to
	active := map[string]bool{}
	// A row that somebody made anew under the key of one that the request deleted is
	// theirs: it stays where it is, with what it references and what it holds.
	theirs := map[string]bool{}
	for name := range names {
		b, a, l := before[name], after[name], live[name]
		row, changed := undone(b, a, l)
		switch {
		case a != nil && l == nil:
			add("row gone", name, "")
			continue
		case b != nil && a == nil && l != nil:
			add("row created again", name, "")
			theirs[name] = changed
		case a != nil && l != nil:
			for column, value := range l {
				work := later[strings.TrimPrefix(name, "public.")]
				switch {
				case b != nil && a[column] == b[column]:
				case b != nil && value != a[column] && value == b[column]:
					add("value came back", name, column)
				case value != a[column], b == nil && work != nil && !work.remade && slices.Contains(work.touched, column):
					add("column changed", name, column)
				}
				if b != nil && a[column] != b[column] && value == a[column] && work != nil && work.remade {
					add("column changed", name, column)
				}
				if b == nil && work != nil && work.remade {
					add("row created again", name, "")
				}
			}
		}
		if changed {
			future[name], active[name] = row, true
		}
	}
	for name := range active {
		row := future[name]
		number := strings.TrimSuffix(name[strings.Index(name, "[")+1:], "]")
		if strings.HasPrefix(name, "public.parent") {
			if row != nil {
				continue
			}
			for other, child := range live {
				if child["parent"] == number && (!active[other] || theirs[other] || future[other] != nil && future[other]["parent"] == number) {
					add("row referenced", name, "")
				}
			}
			continue
		}
		if row == nil {
			continue
		}
		parent := "public.parent[" + row["parent"] + "]"
		gains := live[name] == nil || before[name] == nil || after[name] == nil || live[name]["parent"] != row["parent"]
		if row["parent"] != "NULL" && gains && live[parent] == nil && future[parent] == nil {
			add("parent missing", name, "")
		}
		for other, holder := range live {
			if other == name || row["code"] == "NULL" || holder["code"] != row["code"] || live[name] != nil && live[name]["code"] == row["code"] && after[name] != nil {
				continue
			}
			if !active[other] || theirs[other] || future[other] != nil && future[other]["code"] == row["code"] {
				add("unique value taken", name, "")
			}
		}
	}
	slices.Sort(found)
	return slices.Compact(found)
}

// Of every request of a random history, the plan lists just the conflicts that a
// model finds; Abort writes nothing, and Skip never touches what came later.
func TestRevertAgainstAModel(t *testing.T) {
	t.Parallel()
	random := seeded(t)
	u := newUndo(t, family).direct(random.Uint64())
	states := []familyState{familyOf(t, u.conn)}
	var requests [][]string
	for range 25 {
		statements := randomRequest(random)
		u.request(t, fmt.Sprint("r", len(states)), statements...)
		states, requests = append(states, familyOf(t, u.conn)), append(requests, statements)
	}
	live := states[len(states)-1]
	inConflict := 0
	for i := 1; i < len(states); i++ {
		before, after := states[i-1], states[i]
		if cmp.Equal(before, after) {
			continue
		}
		what := fmt.Sprintf("request %d: %s, then %q", i, strings.Join(requests[i-1], "; "), requests[i:])
		revert := u.Client.RevertRequest(fmt.Sprint("r", i))
		want := familyConflicts(before, after, live, laterWorkOn(t, u.Client, fmt.Sprint("r", i)))
		if diff := cmp.Diff(want, slices.Compact(conflicts(t, revert))); diff != "" {
			t.Fatalf("%s\nconflicts (-want +got):\n%s", what, diff)
		}
		got, err := u.tryOut(t, revert)
		var blocked *audit.ConflictError
		switch {
		case len(want) > 0:
			inConflict++
			if !errors.As(err, &blocked) {
				t.Fatalf("%s: Abort gives %v", what, err)
			}
			if diff := cmp.Diff(live, got); diff != "" {
				t.Fatalf("%s\nAbort wrote something:\n%s", what, diff)
			}
		case err != nil:
			t.Fatalf("%s: %v", what, err)
		default:
			checkUndone(t, what, before, after, live, got, true)
		}
		if got, err = u.tryOut(t, revert.OnConflict(audit.Skip)); err != nil {
			t.Fatalf("%s: Skip gives %v", what, err)
		}
		checkUndone(t, what, before, after, live, got, false)
	}
	t.Logf("%d of %d requests in conflict", inConflict, len(requests))
}

// tryOut applies a revert and returns the state that it leads to, and undoes it.
func (u *undo) tryOut(t *testing.T, r audit.Reversal) (familyState, error) {
	t.Helper()
	tx, err := u.conn.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	_, failed := r.ApplyTx(t.Context(), tx)
	state := familyOf(t, tx)
	if err := tx.Rollback(t.Context()); err != nil {
		t.Fatal(err)
	}
	return state, failed
}

// checkUndone makes sure that every row is either as it was or as the model says
// that it is undone, whole, and that only rows without later work are undone.
func checkUndone(t *testing.T, what string, before, after, live, got familyState, all bool) {
	t.Helper()
	names := map[string]bool{}
	for _, state := range []familyState{before, after, live, got} {
		for name := range state {
			names[name] = true
		}
	}
	for name := range names {
		b, a, l, g := before[name], after[name], live[name], got[name]
		want := l
		if !cmp.Equal(b, a) {
			want, _ = undone(b, a, l)
			if a != nil && b != nil && l == nil {
				want = nil
			}
		}
		touched := !cmp.Equal(l, g)
		switch {
		case (all || touched) && !cmp.Equal(want, g):
			t.Fatalf("%s\n%s is %v, was %v, should be %v", what, name, g, l, want)
		case touched && a == nil && l != nil, touched && a != nil && l == nil:
			t.Fatalf("%s\n%s: what was made or removed later is lost: %v", what, name, g)
		}
		for column, value := range l {
			if a != nil && touched && value != a[column] && g[column] != value && (b == nil || value != b[column]) {
				t.Fatalf("%s\n%s.%s: a later write is lost", what, name, column)
			}
		}
	}
}
