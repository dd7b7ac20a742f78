package audit_test

import (
	"slices"
	"strings"
	"testing"

	"github.com/hindsight-go/audit"
)

// applied is a revert that was committed.
type applied struct {
	what   string
	policy audit.Resolution
	result *audit.Result
	// selection finds the changes that it was to revert; selected are these, and
	// those that a cascade has added.
	selection audit.Query
	selected  map[audit.Position]bool
}

// written is a value that a change has given to a column.
type written struct {
	by    audit.Position
	value string
}

// ledger goes through history in commit order and knows who wrote what is there.
// Where it comes to a revert, it looks at what that has overwritten.
type ledger struct {
	w       *realm
	reverts map[string]*applied
	// cells are all values that the columns under a key have had, by row and column;
	// those of rows and columns that nobody has written to are not in it. A key is
	// the row, for reverts as well: one that is made anew goes on with it.
	cells map[string]map[string][]written
	// past is what has happened to a row, for people.
	past map[string][]string
	// gone are the changes that took rows away from their keys.
	gone map[string][]audit.Position
	// renamed and removed are what the revert at hand has done to rows that others
	// may reference.
	at               audit.Position
	renamed, removed map[string]string
}

// checkLosses fails the test if one of the reverts has overwritten anything that it
// was not to overwrite by its policy.
func (w *realm) checkLosses(t *testing.T, reverts []*applied) {
	t.Helper()
	w.Sync(t)
	l := newLedger(w)
	for _, r := range reverts {
		l.reverts[r.result.ID] = r
		r.find(t)
	}
	seen := 0
	for change, err := range w.Client.Changes().OldestFirst().All(t.Context()) {
		if err != nil {
			t.Fatal(err)
		}
		if past, ok := change.Revert(); ok {
			r, ok := l.reverts[past.ID]
			if !ok {
				t.Fatalf("nobody knows of the revert %s", past.ID)
			}
			seen++
			r.selected[change.Position] = true // what it does in two steps is its own
			l.check(t, r, change)
		}
		l.take(t, change)
	}
	t.Logf("%d changes of %d reverts looked at", seen, len(reverts))
}

func newLedger(w *realm) *ledger {
	return &ledger{
		w: w, reverts: make(map[string]*applied), cells: make(map[string]map[string][]written),
		gone: make(map[string][]audit.Position), past: make(map[string][]string),
	}
}

// find finds what is selected.
func (r *applied) find(t *testing.T) {
	t.Helper()
	r.selected = make(map[audit.Position]bool)
	for change, err := range r.selection.All(t.Context()) {
		if err != nil {
			t.Fatal(err)
		}
		r.selected[change.Position] = true
	}
	for _, change := range r.result.Plan.Cascaded {
		r.selected[change.Position] = true
	}
}

// take notes what a change has written.
func (l *ledger) take(t *testing.T, c audit.Change) {
	t.Helper()
	table := l.w.table(t, c.TableName())
	row := rowName(table, c.KeyParts())
	l.past[row] = append(l.past[row], c.String())
	if c.KeyChanged {
		old := rowName(table, c.PreviousKeyParts())
		l.past[row] = append(l.past[old], l.past[row]...)
		l.join(row, old)
		l.gone[old] = append(l.gone[old], c.Position)
	}
	if c.Operation == audit.Delete {
		l.gone[row] = append(l.gone[row], c.Position)
		return
	}
	if l.cells[row] == nil {
		l.cells[row] = make(map[string][]written)
	}
	after := imageValues(c.After)
	columns := make([]string, 0, 8)
	for _, d := range c.Diff() {
		columns = append(columns, d.Column)
	}
	if c.Operation == audit.Create {
		columns = table.columns()
	}
	for _, column := range columns {
		l.cells[row][column] = append(l.cells[row][column], written{c.Position, after[column]})
	}
}

// join has a row that got another key take what was written to it along.
func (l *ledger) join(row, old string) {
	if l.cells[row] == nil {
		l.cells[row] = make(map[string][]written)
	}
	for column, values := range l.cells[old] {
		l.cells[row][column] = append(slices.Clone(l.cells[row][column]), values...)
	}
}

func (t *realmTable) columns() []string {
	columns := append(t.key(), "a", "b")
	if t.unique {
		columns = append(columns, "u")
	}
	for _, l := range t.links {
		columns = append(columns, l.columns()...)
	}
	return columns
}

// check looks at a change that a revert has made, before it is taken.
func (l *ledger) check(t *testing.T, r *applied, c audit.Change) {
	t.Helper()
	if l.at.LSN != c.Position.LSN {
		l.at, l.renamed, l.removed = c.Position, make(map[string]string), make(map[string]string)
	}
	table := l.w.table(t, c.TableName())
	row := rowName(table, c.KeyParts())
	before, after := imageValues(c.Before), imageValues(c.After)
	columns := make([]string, 0, 8)
	switch c.Operation {
	case audit.Create:
		if !slices.ContainsFunc(l.gone[row], func(p audit.Position) bool { return r.selected[p] }) && r.policy != audit.Overwrite {
			t.Errorf("%v of %s puts %s back, which somebody else removed: %s\n%s", r.policy, r.what, row, c, strings.Join(l.past[row], "\n"))
		}
		return
	case audit.Delete:
		l.removed[row] = row
		columns = table.columns()
	default:
		for _, d := range c.Diff() {
			columns = append(columns, d.Column)
		}
		if c.KeyChanged {
			old := rowName(table, c.PreviousKeyParts())
			l.renamed[old] = row
			row = old
		}
	}
	for _, column := range columns {
		if !l.mayWrite(r, row, column, before[column]) && !l.followed(r, table, column, before, after) {
			t.Errorf("%v of %s overwrites %s of %s, which somebody else wrote: %s\n%s", r.policy, r.what, column, row, c, strings.Join(l.past[row], "\n"))
		}
	}
}

// mayWrite reports whether the revert may write over the value of a column: it is one
// that the selection has left there, or, for Overwrite, the selection has written
// to the column at all.
func (l *ledger) mayWrite(r *applied, row, column, value string) bool {
	if r.policy == audit.Overwrite && slices.ContainsFunc(l.gone[row], func(p audit.Position) bool { return r.selected[p] }) {
		return true // the selection removed a row of that key, and somebody else made one
	}
	return slices.ContainsFunc(l.cells[row][column], func(w written) bool {
		return r.selected[w.by] && (r.policy == audit.Overwrite || w.value == value)
	})
}

// followed reports whether the server has written the column because of its foreign key:
// it goes with a key that is changed, and Overwrite leaves to it what references a
// row that is removed.
func (l *ledger) followed(r *applied, table *realmTable, column string, before, after map[string]string) bool {
	for _, link := range table.links {
		from, to := link.target(before), link.target(after)
		switch {
		case from == "":
		case len(after) == 0: // the row was deleted with the one that it references
			if r.policy == audit.Overwrite && l.removed[from] != "" {
				return true
			}
		case !slices.Contains(link.columns(), column):
		case link.onUpdate == "CASCADE" && to != "" && l.renamed[from] == to:
			return true
		case r.policy == audit.Overwrite && l.removed[from] != "":
			return true
		}
	}
	return false
}
