package audit_test

import (
	"errors"
	"fmt"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5"

	"github.com/hindsight-go/audit"
)

// pair is what a unit did, and what happened later. In statements, # stands for the tens
// of the ids, which each pair has for itself. Each of the later steps is a request of its
// own, by somebody else unless it begins with "ann: ", or UNDO and REDO of the unit, or
// UNDO of the later step before it ("UNDO LATER").
type pair struct {
	unit, event string
	did, then   []string
	// merged is the row with the unit undone and the other work kept, where there is such
	// a thing and it does not come of the later work alone.
	merged string
}

const (
	updates = "changes a column"
	inserts = "makes a row"
	deletes = "removes a row"
	rekeys  = "gives a row another key"
	refers  = "references another row"
	frees   = "gives up a unique value"
)

var (
	setA   = []string{"UPDATE thing SET a = 'unit' WHERE id = #0"}
	insert = []string{"INSERT INTO thing VALUES (#5, '#:blue', 'unit', 'unit', #0)"}
	remove = []string{"DELETE FROM thing WHERE id = #0"}
	rekey  = []string{"UPDATE thing SET id = #1 WHERE id = #0"}
	refer  = []string{"UPDATE thing SET parent = #1 WHERE id = #0"}
	free   = []string{"UPDATE thing SET code = '#:green' WHERE id = #0"}
	remake = "DELETE FROM thing WHERE id = #0; INSERT INTO thing VALUES (#0, '#:red', 'theirs', 'theirs', #0)"
)

var pairs = []pair{
	{updates, "nothing", setA, nil, ""},
	{updates, "somebody changes the column", setA, []string{"UPDATE thing SET a = 'later' WHERE id = #0"}, ""},
	{updates, "the same user changes the column in another request", setA, []string{"ann: UPDATE thing SET a = 'later' WHERE id = #0"}, ""},
	{updates, "somebody changes the column and another", setA, []string{"UPDATE thing SET a = 'later', b = 'later' WHERE id = #0"}, "thing[0 red old later 0]"},
	{updates, "somebody changes the column to what it was before", setA, []string{"UPDATE thing SET a = 'old' WHERE id = #0"}, ""},
	{updates, "somebody changes the column, and changes it to what the unit left", setA, []string{"UPDATE thing SET a = 'later' WHERE id = #0", "UPDATE thing SET a = 'unit' WHERE id = #0"}, ""},
	{updates, "somebody changes the column, which we revert", setA, []string{"UPDATE thing SET a = 'later' WHERE id = #0", "UNDO LATER"}, ""},
	{updates, "somebody changes another column", setA, []string{"UPDATE thing SET b = 'later' WHERE id = #0"}, ""},
	{updates, "somebody removes the row", setA, []string{"DELETE FROM thing WHERE id = #0"}, ""},
	{updates, "somebody removes the row, which we revert", setA, []string{"DELETE FROM thing WHERE id = #0", "UNDO LATER"}, ""},
	{updates, "somebody removes the row and makes it anew", setA, []string{remake}, "thing[0 red old theirs 0]"},
	{updates, "somebody removes the row and makes it anew, with what the unit left", setA, []string{"DELETE FROM thing WHERE id = #0; INSERT INTO thing VALUES (#0, '#:red', 'unit', 'theirs', #0)"}, "thing[0 red old theirs 0]"},
	{updates, "somebody gives the row another key, and another row its key", setA, []string{"UPDATE thing SET id = #1 WHERE id = #0; INSERT INTO thing VALUES (#0, '#:blue', 'unit', 'theirs', #0)"}, ""},
	{updates, "somebody gives the row another key", setA, []string{"UPDATE thing SET id = #1 WHERE id = #0"}, ""},
	{updates, "the column is dropped", []string{"UPDATE gone SET a = 'unit' WHERE id = #0"}, []string{"ALTER TABLE gone DROP IF EXISTS a"}, ""},
	{updates, "we revert the unit", setA, []string{"UNDO"}, ""},
	{updates, "we revert the unit, then somebody changes the column", setA, []string{"UNDO", "UPDATE thing SET a = 'later' WHERE id = #0"}, ""},
	{updates, "we revert the unit and redo it", setA, []string{"UNDO", "REDO"}, ""},
	{updates, "we revert the unit and redo it, then somebody changes the column", setA, []string{"UNDO", "REDO", "UPDATE thing SET a = 'later' WHERE id = #0"}, ""},
	{"changes a column twice", "somebody changes it in between", []string{"UPDATE thing SET a = 'first' WHERE id = #0", "BETWEEN UPDATE thing SET a = 'later' WHERE id = #0", "UPDATE thing SET a = 'unit' WHERE id = #0"}, nil, ""},

	{inserts, "nothing", insert, nil, ""},
	{inserts, "somebody changes a column", insert, []string{"UPDATE thing SET a = 'later' WHERE id = #5"}, ""},
	{inserts, "somebody changes a column, and changes it back", insert, []string{"UPDATE thing SET a = 'later' WHERE id = #5", "UPDATE thing SET a = 'unit' WHERE id = #5"}, ""},
	{inserts, "somebody changes a column, which we revert", insert, []string{"UPDATE thing SET a = 'later' WHERE id = #5", "UNDO LATER"}, ""},
	{inserts, "somebody removes the row", insert, []string{"DELETE FROM thing WHERE id = #5"}, ""},
	{inserts, "somebody removes the row and makes it anew", insert, []string{"DELETE FROM thing WHERE id = #5; INSERT INTO thing VALUES (#5, '#:blue', 'theirs', 'theirs', #0)"}, ""},
	{inserts, "somebody gives the row another key", insert, []string{"UPDATE thing SET id = #6 WHERE id = #5"}, ""},
	{inserts, "somebody gives the row another key, and another row its key", insert, []string{"UPDATE thing SET id = #6 WHERE id = #5; INSERT INTO thing VALUES (#5, '#:green', 'unit', 'theirs', #0)"}, ""},
	{inserts, "somebody references the row", insert, []string{"INSERT INTO child VALUES (#0, #5)"}, ""},
	{inserts, "we revert the unit, then somebody makes another row with the key", insert, []string{"UNDO", "INSERT INTO thing VALUES (#5, '#:blue', 'theirs', 'theirs', #0)"}, ""},

	{deletes, "nothing", remove, nil, ""},
	{deletes, "somebody makes the row anew, as it was", remove, []string{"INSERT INTO thing VALUES (#0, '#:red', 'old', 'old', #0)"}, ""},
	{deletes, "somebody makes the row anew, with other values", remove, []string{"INSERT INTO thing VALUES (#0, '#:red', 'theirs', 'theirs', #0)"}, ""},
	{deletes, "somebody makes the row anew and removes it", remove, []string{"INSERT INTO thing VALUES (#0, '#:red', 'theirs', 'theirs', #0)", "DELETE FROM thing WHERE id = #0"}, ""},
	{deletes, "another row gets its unique value", remove, []string{"INSERT INTO thing VALUES (#7, '#:red', 'theirs', 'theirs', #0)"}, ""},
	{deletes, "somebody removes the row that it referenced", remove, []string{"DELETE FROM base WHERE id = #0"}, ""},
	{deletes, "we revert the unit, then somebody removes the row", remove, []string{"UNDO", "DELETE FROM thing WHERE id = #0"}, ""},

	{rekeys, "nothing", rekey, nil, ""},
	{rekeys, "somebody changes a column", rekey, []string{"UPDATE thing SET a = 'later' WHERE id = #1"}, "thing[0 red later old 0]"},
	{rekeys, "another row gets the key that it had", rekey, []string{"INSERT INTO thing VALUES (#0, '#:blue', 'theirs', 'theirs', #0)"}, ""},
	{rekeys, "somebody gives the row a third key", rekey, []string{"UPDATE thing SET id = #2 WHERE id = #1"}, ""},
	{rekeys, "somebody removes the row, which we revert", rekey, []string{"DELETE FROM thing WHERE id = #1", "UNDO LATER"}, ""},
	{rekeys, "somebody removes the row and makes another with the key", rekey, []string{"DELETE FROM thing WHERE id = #1; INSERT INTO thing VALUES (#1, '#:blue', 'theirs', 'theirs', #0)"}, ""},
	{rekeys, "somebody gives the row a third key, and another row this one", rekey, []string{"UPDATE thing SET id = #2 WHERE id = #1; INSERT INTO thing VALUES (#1, '#:blue', 'theirs', 'theirs', #0)"}, ""},
	{rekeys, "somebody references the row", rekey, []string{"INSERT INTO child VALUES (#0, #1)"}, ""},
	{refers, "somebody removes the row that it referenced before", refer, []string{"DELETE FROM base WHERE id = #0"}, ""},
	{frees, "another row gets the value", free, []string{"INSERT INTO thing VALUES (#7, '#:red', 'theirs', 'theirs', #0)"}, ""},
}

const pairTables = `
	CREATE TABLE base (id int PRIMARY KEY, name text);
	CREATE TABLE thing (id int PRIMARY KEY, code text UNIQUE, a text, b text, parent int REFERENCES base);
	CREATE TABLE child (id int PRIMARY KEY, thing int REFERENCES thing);
	CREATE TABLE gone (id int PRIMARY KEY, a text, b text)`

// pairState is what the tables hold of one pair, in words that are the same for all.
const pairState = `
	SELECT coalesce(string_agg(line, ' ' ORDER BY line), '')
	FROM (SELECT format('base[%s %s]', id % 10, name) FROM base WHERE id / 10 = $1
		UNION ALL SELECT format('thing[%s %s %s %s %s]', id % 10, split_part(code, ':', 2), a, b, parent % 10) FROM thing WHERE id / 10 = $1
		UNION ALL SELECT format('child[%s %s]', id % 10, thing % 10) FROM child WHERE id / 10 = $1
		UNION ALL SELECT 'gone' || (to_jsonb(gone) - 'id')::text FROM gone WHERE id / 10 = $1) AS lines (line)`

// pairStory is one pair in the database.
type pairStory struct {
	*undo
	pair
	n             int
	before, after string // the unit
	now           string // after what happened later
	// kept is what the later work makes of the state before the unit, or empty.
	kept    string
	reverts []string
}

func (s *pairStory) sql(statement string) string {
	return strings.ReplaceAll(statement, "#", fmt.Sprint(s.n))
}

func (s *pairStory) state(t *testing.T, tx pgx.Tx) string {
	t.Helper()
	row := s.conn.QueryRow
	if tx != nil {
		row = tx.QueryRow
	}
	var state string
	if err := row(t.Context(), pairState, s.n).Scan(&state); err != nil {
		t.Fatal(err)
	}
	return state
}

func (s *pairStory) unitID() string { return fmt.Sprintf("unit %d", s.n) }

// begin makes the rows that there are before the unit.
func (s *pairStory) begin(t *testing.T) {
	t.Helper()
	s.by(t, "zoe", "", s.sql("INSERT INTO base VALUES (#0, 'p'), (#1, 'q')"), s.sql("INSERT INTO thing VALUES (#0, '#:red', 'old', 'old', #0)"), s.sql("INSERT INTO gone (id, b) VALUES (#0, 'old')"))
}

// tell carries the story out. Of its twin, in which the unit did nothing, it takes what
// the later work makes of that.
func (s *pairStory) tell(t *testing.T) {
	t.Helper()
	s.begin(t)
	s.before = s.state(t, nil)
	for _, statement := range s.did {
		if between, ok := strings.CutPrefix(statement, "BETWEEN "); ok {
			s.by(t, "bob", fmt.Sprintf("between %d", s.n), s.sql(between))
			continue
		}
		s.by(t, "ann", s.unitID(), s.sql(statement))
	}
	s.after = s.state(t, nil)
	for i, step := range s.then {
		request := fmt.Sprintf("later %d %d", s.n, i)
		switch step {
		case "UNDO":
			s.reverts = append(s.reverts, apply(t, s.Client.RevertRequest(s.unitID())).ID)
		case "REDO":
			s.reverts = append(s.reverts, apply(t, s.Client.Redo(s.reverts[len(s.reverts)-1])).ID)
		case "UNDO LATER":
			apply(t, s.Client.RevertRequest(fmt.Sprintf("later %d %d", s.n, i-1)))
		default:
			user := "bob"
			if rest, ok := strings.CutPrefix(step, "ann: "); ok {
				user, step = "ann", rest
			}
			s.by(t, user, request, strings.Split(s.sql(step), "; ")...)
		}
	}
	s.now = s.state(t, nil)
	s.kept = s.twin(t)
}

// twin is the state after the later steps without the unit, where they can be had.
func (s *pairStory) twin(t *testing.T) string {
	t.Helper()
	twin := &pairStory{undo: s.undo, n: s.n + 500}
	twin.begin(t)
	for i, step := range s.then {
		if strings.HasPrefix(step, "UNDO") || step == "REDO" || i+1 < len(s.then) && s.then[i+1] == "UNDO LATER" {
			continue
		}
		for statement := range strings.SplitSeq(twin.sql(strings.TrimPrefix(step, "ann: ")), "; ") {
			if _, err := s.conn.Exec(t.Context(), statement); err != nil {
				return ""
			}
		}
	}
	return twin.state(t, nil)
}

// outcome is what becomes of the rows under a policy, which is tried and taken back.
func (s *pairStory) outcome(t *testing.T, policy audit.Policy) string {
	t.Helper()
	tx, err := s.conn.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := tx.Rollback(t.Context()); err != nil {
			t.Error(err)
		}
	}()
	result, err := s.Client.RevertRequest(s.unitID()).OnConflict(policy).ApplyTx(t.Context(), tx)
	var blocked *audit.ConflictError
	if errors.As(err, &blocked) {
		if got := s.state(t, tx); got != s.now {
			t.Errorf("%s, %s: refused, and %s", s.unit, s.event, got)
		}
		return "refused"
	}
	if err != nil {
		t.Fatalf("%s, %s, %v: %v", s.unit, s.event, policy, err)
	}
	got := s.state(t, tx)
	switch {
	case result.Already != nil && got == s.now:
		return "already reverted"
	case got == s.now:
		return "left as it is"
	case got == s.before && s.now == s.after && len(result.Plan.Conflicts) == 0:
		return "undone"
	case got == s.before:
		return "as before both"
	case got == s.kept, got == s.mergedState() && len(result.Plan.Conflicts) == 0:
		return "undone, the later work kept"
	case got == s.mergedState():
		return "restored over it, the rest kept"
	}
	t.Errorf("%s, %s, %v: %s, before %s, now %s, kept %s", s.unit, s.event, policy, got, s.before, s.now, s.kept)
	return "?"
}

// mergedState is the state before the unit with the merged row in it.
func (s *pairStory) mergedState() string {
	return regexp.MustCompile(`thing\[.*?\]`).ReplaceAllString(s.before, s.merged)
}

// conflictTable is where the table stands in the docs.
const conflictTable = "docs/revert.md"

// Each pair of what a unit did and what happened later has the outcome that the docs say,
// under each policy. Run with -update to write the table.
func TestRevert_ConflictTable(t *testing.T) {
	t.Parallel()
	u := newUndo(t, pairTables)
	lines := []string{"| the unit | later | conflict | `Abort` | `Skip` | `Overwrite` | `Cascade` |", "|---|---|---|---|---|---|---|"}
	for i, p := range pairs {
		s := &pairStory{undo: u, pair: p, n: i + 1}
		s.tell(t)
		plan, err := u.Client.RevertRequest(s.unitID()).Plan(t.Context())
		if err != nil {
			t.Fatalf("%s, %s: %v", p.unit, p.event, err)
		}
		var kinds []string
		for _, c := range plan.Conflicts {
			kinds = append(kinds, c.Kind.String())
		}
		slices.Sort(kinds)
		cells := []string{p.unit, p.event, strings.Join(slices.Compact(kinds), ", ")}
		for _, policy := range []audit.Policy{audit.Abort, audit.Skip, audit.Overwrite, audit.Cascade} {
			cells = append(cells, s.outcome(t, policy))
		}
		if byRequest := s.outcome(t, audit.CascadeRequests); byRequest != cells[6] {
			t.Errorf("%s, %s: CascadeRequests gives %s", p.unit, p.event, byRequest)
		}
		lines = append(lines, strings.ReplaceAll("| "+strings.Join(cells, " | ")+" |", "|  |", "| |"))
	}
	wantInDocs(t, conflictTable, "conflict table", strings.Join(lines, "\n")+"\n")
}

// wantInDocs compares a part of a document, between two comments, with what it has to be.
func wantInDocs(t *testing.T, file, name, want string) {
	t.Helper()
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	begin, end := "<!-- begin "+name+" -->\n", "<!-- end "+name+" -->\n"
	head, rest, found := strings.Cut(string(text), begin)
	got, tail, ended := strings.Cut(rest, end)
	if !found || !ended {
		t.Fatalf("%s has no %s", file, name)
	}
	if *updateGolden {
		if err := os.WriteFile(file, []byte(head+begin+want+end+tail), 0o600); err != nil {
			t.Fatal(err)
		}
		return
	}
	if diff := cmp.Diff(got, want); diff != "" {
		t.Errorf("the %s in %s (-docs +is):\n%s", name, file, diff)
	}
}
