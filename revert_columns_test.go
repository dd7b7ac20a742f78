package audit_test

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/hindsight-go/audit"
	"github.com/hindsight-go/audit/audittest"
)

// alteredColumns are tables whose columns were renamed, dropped or made anew around a
// request. Rows are compared by the numbers of their columns, so renaming changes
// nothing of them.
var alteredColumns = map[string]struct {
	setup   string // beside a
	request []string
	later   []string
	// overwritten are the rows in the end where the conflicts are overwritten; nil: as
	// before the request, without a conflict.
	overwritten []string
	conflicts   []string
	// unclear allows a refusal where nobody has seen what was done.
	unclear bool
}{
	"Renamed":        {later: []string{"ALTER TABLE a RENAME x TO z"}},
	"RenamedKey":     {later: []string{"ALTER TABLE a RENAME id TO key"}},
	"Swapped":        {later: []string{"ALTER TABLE a RENAME x TO t", "ALTER TABLE a RENAME y TO x", "ALTER TABLE a RENAME t TO y"}, unclear: true},
	"SwappedAtOnce":  {later: []string{"DO $$ BEGIN ALTER TABLE a RENAME x TO t; ALTER TABLE a RENAME y TO x; ALTER TABLE a RENAME t TO y; END $$"}, unclear: true},
	"SwappedWithKey": {later: []string{"ALTER TABLE a RENAME id TO t", "ALTER TABLE a RENAME n TO id", "ALTER TABLE a RENAME t TO n"}, unclear: true},
	"ReplacedKey": {
		later:   []string{"ALTER TABLE a DROP CONSTRAINT a_pkey", "ALTER TABLE a RENAME id TO old", "ALTER TABLE a RENAME n TO id", "ALTER TABLE a ADD PRIMARY KEY (id)"},
		unclear: true,
	},
	"Replaced": {
		later:       []string{"ALTER TABLE a DROP x", "ALTER TABLE a ADD x text"},
		conflicts:   []string{"column gone public.a[1] x", "column gone public.a[2] x"},
		overwritten: []string{"a (1,y1,10,)", "a (2,y2,20,)", "a (3,y3,30,)"}, unclear: true,
	},
	"NameGivenToAnother": {
		later:       []string{"ALTER TABLE a DROP x", "ALTER TABLE a RENAME y TO x"},
		conflicts:   []string{"column gone public.a[1] x", "column gone public.a[2] x"},
		overwritten: []string{"a (1,y1,10)", "a (2,y2,20)", "a (3,y3,30)"}, unclear: true,
	},
	"RenamedAndReplaced": {
		later:       []string{"ALTER TABLE a RENAME x TO old", "ALTER TABLE a ADD x text"},
		overwritten: []string{"a (1,x1,y1,10,)", "a (2,x2,y2,20,)", "a (3,x3,y3,30,)"}, unclear: true,
	},
	"RenamedAndRetyped": {later: []string{"ALTER TABLE a RENAME x TO z", "ALTER TABLE a ALTER z TYPE varchar(30)"}, unclear: true},
	"SwappedInTheRequest": {
		request: []string{
			"UPDATE a SET x = 'new' WHERE id = 1", "ALTER TABLE a RENAME x TO t", "ALTER TABLE a RENAME y TO x", "ALTER TABLE a RENAME t TO y",
			"UPDATE a SET x = 'newer' WHERE id = 3", "DELETE FROM a WHERE id = 2",
		},
		unclear: true,
	},
	"RenamedInTheRequest": {
		request: []string{"UPDATE a SET x = 'new' WHERE id = 1", "ALTER TABLE a RENAME x TO z", "UPDATE a SET z = 'newer', y = 'new' WHERE id = 1", "DELETE FROM a WHERE id = 2"},
		unclear: true,
	},
	"RenamedThereAndBack": {
		request: []string{"ALTER TABLE a RENAME x TO t", "ALTER TABLE a RENAME y TO x", "DELETE FROM a WHERE id = 2", "ALTER TABLE a RENAME x TO y", "ALTER TABLE a RENAME t TO x", "UPDATE a SET x = 'new' WHERE id = 1"},
		unclear: true,
	},
	"TableReplaced": {
		later:       []string{"ALTER TABLE a RENAME TO b", "CREATE TABLE a (LIKE b INCLUDING ALL)", "INSERT INTO a VALUES (1, 'new', 'q', 1)"},
		overwritten: []string{"a (1,new,q,1)", "b (1,x1,y1,10)", "b (2,x2,y2,20)", "b (3,x3,y3,30)"}, unclear: true,
	},
	"TablesSwapped": {
		setup:       "CREATE TABLE b (LIKE a INCLUDING ALL); INSERT INTO b VALUES (1, 'new', 'q', 1)",
		later:       []string{"ALTER TABLE a RENAME TO t", "ALTER TABLE b RENAME TO a", "ALTER TABLE t RENAME TO b"},
		overwritten: []string{"a (1,new,q,1)", "b (1,x1,y1,10)", "b (2,x2,y2,20)", "b (3,x3,y3,30)"}, unclear: true,
	},
	"ReferenceRenamed": {
		setup:   "CREATE TABLE b (id int PRIMARY KEY, a int REFERENCES a); INSERT INTO b VALUES (1, 2)",
		request: []string{"DELETE FROM b", "DELETE FROM a WHERE id = 2"},
		later:   []string{"ALTER TABLE b RENAME a TO parent", "ALTER TABLE a RENAME id TO key"},
	},
	"UniqueRenamed": {
		setup:   "ALTER TABLE a ADD UNIQUE (x)",
		request: []string{"UPDATE a SET x = 'free' WHERE id = 1", "UPDATE a SET x = 'x1' WHERE id = 2"},
		later:   []string{"ALTER TABLE a RENAME x TO z"},
	},
}

func TestRevert_AlteredColumns(t *testing.T) {
	t.Parallel()
	for name, h := range alteredColumns {
		for _, traced := range []bool{true, false} {
			for _, behind := range []bool{false, true} {
				t.Run(fmt.Sprintf("%s,traced=%t,behind=%t", name, traced, behind), func(t *testing.T) {
					t.Parallel()
					db := audittest.NewDatabase(t)
					db.Exec(t, "CREATE TABLE a (id int PRIMARY KEY, x text, y text, n int NOT NULL UNIQUE); INSERT INTO a VALUES (1, 'x1', 'y1', 10), (2, 'x2', 'y2', 20), (3, 'x3', 'y3', 30)")
					if h.setup != "" {
						db.Exec(t, h.setup)
					}
					a := audittest.Open(t, db, audit.Config{Tables: []string{"public.*"}, NoEventTrigger: !traced, RefreshInterval: -1})
					mustStart(t, a)
					t.Cleanup(func() { a.Stop(t) })
					u := &undo{Audited: a, conn: a.Connect(t)}
					before := u.state(t)
					act := func() {
						request := h.request
						if request == nil {
							request = []string{"UPDATE a SET x = 'new' WHERE id = 1", "DELETE FROM a WHERE id = 2", "INSERT INTO a VALUES (4, 'x4', 'y4', 40)"}
						}
						u.request(t, "first", request...)
						if !behind {
							u.Sync(t)
						}
						for _, sql := range h.later {
							u.Exec(t, sql)
						}
					}
					if behind {
						restart(t, a, act)
					} else {
						act()
					}
					u.Sync(t)
					refresh(t, a)
					u.Sync(t)
					mayRefuse := h.unclear && (behind || !traced)
					r := u.Client.RevertRequest("first")
					if now := u.state(t); mayRefuse {
						if _, err := r.Plan(t.Context()); err != nil {
							var refused *audit.UnrevertableError
							var unknown *audit.HistoryError
							if !errors.As(err, &refused) && !errors.As(err, &unknown) {
								t.Errorf("the plan gives %v", err)
							}
							t.Logf("refused: %v", err)
							u.want(t, "after the refusal", now)
							return
						}
					}
					if h.conflicts != nil {
						wantConflicts(t, r, h.conflicts...)
						r = r.OnConflict(audit.Overwrite)
					}
					apply(t, r)
					want := h.overwritten
					if want == nil {
						want = before
					}
					state := u.state(t)
					slices.SortFunc(state, strings.Compare)
					if diff := cmp.Diff(want, state); diff != "" {
						t.Errorf("after the revert (-want +got):\n%s", diff)
					}
				})
			}
		}
	}
}

// Columns are named as they are now, or as they were then where no other has the name.
func TestRevert_ColumnsByTheirFormerNames(t *testing.T) {
	t.Parallel()
	for name, h := range map[string]struct {
		later string
		of    func(audit.Reversal) audit.Reversal
		holds string
	}{
		"ColumnsOfThen":   {"ALTER TABLE a RENAME x TO z", func(r audit.Reversal) audit.Reversal { return r.Columns("x") }, "a (1,x1,new)"},
		"ColumnsOfNow":    {"ALTER TABLE a RENAME x TO z", func(r audit.Reversal) audit.Reversal { return r.Columns("z") }, "a (1,x1,new)"},
		"ExceptOfThen":    {"ALTER TABLE a RENAME x TO z", func(r audit.Reversal) audit.Reversal { return r.Except("x") }, "a (1,new,y1)"},
		"ColumnsSwapped":  {"ALTER TABLE a RENAME x TO t; ALTER TABLE a RENAME y TO x; ALTER TABLE a RENAME t TO y", func(r audit.Reversal) audit.Reversal { return r.Columns("x") }, "a (1,new,y1)"},
		"ExceptOfSwapped": {"ALTER TABLE a RENAME x TO t; ALTER TABLE a RENAME y TO x; ALTER TABLE a RENAME t TO y", func(r audit.Reversal) audit.Reversal { return r.Except("x") }, "a (1,x1,new)"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			u := newUnchecked(t, "CREATE TABLE a (id int PRIMARY KEY, x text, y text); INSERT INTO a VALUES (1, 'x1', 'y1')")
			u.request(t, "first", "UPDATE a SET x = 'new', y = 'new'")
			u.Exec(t, h.later)
			apply(t, h.of(u.Client.RevertRequest("first")))
			u.want(t, "after the revert", []string{h.holds})
		})
	}
}

// Tables and rows go back to a moment by the columns of then, too, and forth again.
func TestRevert_TablesBackOverSwappedColumns(t *testing.T) {
	t.Parallel()
	for name, keyless := range map[string]string{"Keyed": "PRIMARY KEY", "Keyless": ""} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			u := newUnchecked(t, "CREATE TABLE a (id int "+keyless+", x text, y text); INSERT INTO a VALUES (1, 'x1', 'y1'), (2, 'x2', 'y2')")
			before, begin := u.state(t), u.position(t)
			u.request(t, "first", "UPDATE a SET x = 'new' WHERE id = 1", "ALTER TABLE a RENAME x TO t", "ALTER TABLE a RENAME y TO x", "ALTER TABLE a RENAME t TO y",
				"DELETE FROM a WHERE id = 2", "UPDATE a SET x = 'newer' WHERE id = 1", "INSERT INTO a VALUES (3, 'x3', 'y3')")
			after := u.state(t)
			result := apply(t, u.Client.RevertTables(u.Client.AtPosition(begin), "public.a"))
			u.want(t, "after the revert", before)
			u.Exec(t, "ALTER TABLE a RENAME x TO t; ALTER TABLE a RENAME y TO x; ALTER TABLE a RENAME t TO y")
			apply(t, u.Client.Redo(result.ID))
			u.want(t, "after the redo", after)
			if keyless != "" {
				apply(t, u.Client.RevertRow(u.Client.AtPosition(begin), "public.a", 1))
				u.want(t, "after the revert of a row", []string{before[0], after[1]})
			}
		})
	}
}
