package audit

import (
	"encoding/json"
	"slices"

	"github.com/hindsight-go/audit/internal/rowimage"
)

// ColumnChange is one column of a [Change.Diff].
type ColumnChange struct {
	Column string `json:"column"`
	// Old and New are the values as JSON; NULL is the JSON null. Nil means that
	// there was no row or that history does not know the value.
	Old json.RawMessage `json:"old,omitempty"`
	New json.RawMessage `json:"new,omitempty"`
}

// String returns the change as "name: old -> new".
func (c ColumnChange) String() string {
	return printable(c.Column) + ": " + valueText(c.Old, 0) + " -> " + valueText(c.New, 0)
}

// Diff returns the columns that the change changed, sorted by name: every
// column of a CREATE (Old nil) and of a DELETE (New nil), and the columns of an
// UPDATE whose values differ. Values are compared as PostgreSQL compares jsonb,
// so 1.0 and 1.00 are the same.
//
// A column of an UPDATE of which only the new value is known counts as changed,
// with Old nil: the table did not log its old rows. One of which only the old
// value is known does not: the new row left it alone.
func (c Change) Diff() []ColumnChange {
	before, after := rowimage.Members(c.Before), rowimage.Members(c.After)
	changes := make([]ColumnChange, 0, max(len(before), len(after)))
	for len(before) > 0 || len(after) > 0 {
		switch {
		case len(after) == 0 || len(before) > 0 && before[0].Name < after[0].Name:
			if c.Operation != Update {
				changes = append(changes, ColumnChange{Column: before[0].Name, Old: before[0].Value})
			}
			before = before[1:]
		case len(before) == 0 || after[0].Name < before[0].Name:
			changes = append(changes, ColumnChange{Column: after[0].Name, New: after[0].Value})
			after = after[1:]
		default:
			if !rowimage.Equal(before[0].Value, after[0].Value) {
				changes = append(changes, ColumnChange{Column: after[0].Name, Old: before[0].Value, New: after[0].Value})
			}
			before, after = before[1:], after[1:]
		}
	}
	return changes
}

// Changed reports whether the change changed any of the columns, in the sense
// of [Change.Diff].
func (c Change) Changed(columns ...string) bool {
	return slices.ContainsFunc(c.Diff(), func(d ColumnChange) bool {
		return slices.Contains(columns, d.Column)
	})
}
