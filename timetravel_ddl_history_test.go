package audit_test

import (
	"errors"
	"maps"
	"slices"
	"testing"

	"github.com/hindsight-go/audit"
)

// comparedKeys is of how many rows of a table the history is asked for.
const comparedKeys = 4

// compareHistories asks for the history of rows, and who gave them their values: what
// is said of the moment of a copy is what it has. Copies from before the table was
// altered cannot be compared by column.
func compareHistories(t *testing.T, copies []copied, told *verdict) {
	t.Helper()
	last := copies[len(copies)-1]
	for _, name := range slices.Sorted(maps.Keys(last.tables)) {
		keys := make(map[string][]any)
		for _, c := range slices.Backward(copies) { // deleted rows have a history, too
			if c.tables[name].structure == last.tables[name].structure {
				maps.Copy(keys, c.tables[name].keys)
			}
		}
		for _, key := range slices.Sorted(maps.Keys(keys))[:min(comparedKeys, len(keys))] {
			compareVersions(t, copies, name, keys[key], key, told)
		}
	}
	for _, c := range copies {
		for _, name := range slices.Sorted(maps.Keys(c.tables)) {
			keys := c.tables[name].keys
			for _, key := range slices.Sorted(maps.Keys(keys))[:min(comparedKeys, len(keys))] {
				c.compareBlame(t, copies, name, key, told)
			}
		}
	}
}

// told counts a refusal, and reports whether there is nothing to compare.
func (v *verdict) failed(t *testing.T, what string, made bool, err error) bool {
	t.Helper()
	var unread *audit.FilterError
	switch {
	case err == nil:
		v.equal++
		return false
	case refused(err):
		v.refused++
	case !errors.As(err, &unread) || !made: // a key of a type that was altered is no value of the type of now
		t.Errorf("%s: %v", what, err)
	}
	return true
}

// compareVersions looks whether the version that was in force at a copy is what the
// copy has.
func compareVersions(t *testing.T, copies []copied, name string, key []any, text string, told *verdict) {
	t.Helper()
	last := copies[len(copies)-1].tables[name]
	versions, err := copies[0].client.History(name, key...).List(t.Context())
	if told.failed(t, "history of "+name+" "+text, last.made, err) {
		return
	}
	for _, c := range copies {
		at := c.position
		i := slices.IndexFunc(versions, func(v audit.RowVersion) bool {
			return v.From.LSN <= at.LSN && (v.Until.IsZero() || at.LSN < v.Until.LSN)
		})
		if c.tables[name].structure != last.structure || last.made || keyMoved(versions) {
			continue
		}
		if i >= 0 && !sameSince(copies, name, versions[i].From.LSN, at.LSN) {
			continue // the version is told by the names of when it began
		}
		past, err := audit.RawRow(t.Context(), c.point.Table(name), key...)
		switch {
		case err != nil && !errors.Is(err, audit.ErrNoRow):
			continue // refused, or no key of then
		case i < 0 || !versions[i].Exists():
			if !errors.Is(err, audit.ErrNoRow) {
				t.Errorf("history of %s %s has no version at %q, where there is a row", name, text, c.step)
			}
		case errors.Is(err, audit.ErrNoRow):
			t.Errorf("history of %s %s has a version at %q, where there is no row: %s", name, text, c.step, versions[i].Row)
		default:
			is := audit.RowImage(past)
			for _, column := range versions[i].Row.Columns() {
				was, _ := versions[i].Row.Get(column)
				if now, ok := is.Get(column); ok && !audit.SameJSON(was, now) {
					t.Errorf("history of %s %s says at %q that %s was %s, not %s", name, text, c.step, column, was, now)
				}
			}
		}
	}
}

// sameSince reports whether a table was not altered from before one position to another.
func sameSince(copies []copied, name string, from, to audit.LSN) bool {
	structure := ""
	for _, c := range slices.Backward(copies) {
		if c.position.LSN > to {
			continue
		}
		if structure == "" {
			structure = c.tables[name].structure
		}
		if c.tables[name].structure != structure {
			return false
		}
		if c.position.LSN < from {
			return true
		}
	}
	return from == 0
}

// keyMoved reports whether the row had other keys, under which a copy may have another row.
func keyMoved(versions []audit.RowVersion) bool {
	return slices.ContainsFunc(versions, func(v audit.RowVersion) bool { return v.Change != nil && v.Change.KeyChanged })
}

// compareBlame looks whether the columns have their values since the changes that are
// said to have given them.
func (c copied) compareBlame(t *testing.T, copies []copied, name, key string, told *verdict) {
	t.Helper()
	table := c.tables[name]
	blames, err := c.point.Blame(t.Context(), name, table.keys[key]...)
	if told.failed(t, "blame of "+name+" "+key+" at "+c.step, table.made, err) {
		return
	}
	past, err := audit.RawRow(t.Context(), c.point.Table(name), table.keys[key]...)
	if err != nil {
		t.Errorf("row %s of %s at %q: %v, but who gave it its values is told", key, name, c.step, err)
		return
	}
	image, since := audit.RowImage(past), uint64(0)
	at := uint64(c.position.LSN)
	from := func(b audit.ColumnBlame) uint64 {
		if b.Change == nil {
			return 0
		}
		return uint64(b.Change.Position.LSN)
	}
	for i, b := range blames {
		if value, _ := image.Get(b.Column); !audit.SameJSON(value, b.Value) || b.Column != table.columns[i] {
			t.Errorf("blame of %s %s at %q: %s is %s, want %s", name, key, c.step, b.Column, b.Value, value)
		}
		if from(b) > at {
			t.Errorf("blame of %s %s at %q: %s is said to be set later", name, key, c.step, b.Column)
		}
		if slices.Contains(table.key, i) {
			since = max(since, from(b))
		}
	}
	for _, other := range copies {
		then := uint64(other.position.LSN)
		if then < since || then > at || other.tables[name].structure != table.structure || table.made {
			continue
		}
		if _, err := audit.RawRow(t.Context(), other.point.Table(name), table.keys[key]...); err != nil && !errors.Is(err, audit.ErrNoRow) {
			continue // what was before it was tracked is not told
		}
		cells := other.tables[name].cells[key]
		for i, b := range blames {
			if from(b) <= then && (cells == nil || cells[i] != table.cells[key][i]) {
				t.Errorf("blame of %s %s at %q: %s is said to be set before %q, where it is not so", name, key, c.step, b.Column, other.step)
			}
		}
	}
}
