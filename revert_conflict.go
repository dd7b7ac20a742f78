package audit

import (
	"encoding/json"
	"fmt"
	"strings"
)

// Resolution says what becomes of a conflict. Each of them is also a [Policy],
// for all conflicts alike.
type Resolution int

const (
	// Abort writes nothing at all; the [*ConflictError] lists every conflict. It is
	// the default.
	Abort Resolution = iota
	// Skip leaves the rows that are in conflict as they are, and reverts the rest.
	Skip
	// CascadeRequests is Cascade, but reverts the whole requests that are in the way:
	// all transactions of each. A change without a request id takes its transaction
	// along.
	CascadeRequests
	// Cascade reverts the later transactions that are in the way as well, each of them
	// whole: a part of one would leave somebody's work half done. The plan lists them in
	// [Plan.Cascaded]. What history does not know yet cannot be reverted, and remains a
	// conflict.
	Cascade
	// Overwrite restores what the selection changed over what others did to it
	// later. Columns that the selection did not change stay as they are even then.
	// A unique value that somebody else has now, or a parent that is gone, remains a
	// conflict; rows that reference one to be removed are left to their foreign key
	// if it has an action (CASCADE, SET NULL, SET DEFAULT).
	Overwrite
)

func (r Resolution) String() string {
	switch r {
	case Abort:
		return "Abort"
	case Skip:
		return "Skip"
	case CascadeRequests:
		return "CascadeRequests"
	case Cascade:
		return "Cascade"
	case Overwrite:
		return "Overwrite"
	}
	return fmt.Sprintf("Resolution(%d)", int(r))
}

// cascades reports whether what is in the way is reverted, too.
func (r Resolution) cascades() bool { return r == Cascade || r == CascadeRequests }

// Policy decides what becomes of conflicts: [Abort], [Skip], [CascadeRequests],
// [Cascade], [Overwrite], or a [Resolve] that is asked for each.
type Policy interface {
	resolve(c Conflict) Resolution
}

func (r Resolution) resolve(Conflict) Resolution { return r }

// Resolve is a [Policy] that decides on each conflict by itself. It is called in
// the order of the conflicts, from one goroutine, and while rows may be locked:
// it should not take long. Anything but a resolution is [Abort]. Where the conflicts of one row are decided upon
// differently, Abort wins over Skip, Skip over the
// cascades, those over Overwrite.
type Resolve func(Conflict) Resolution

func (r Resolve) resolve(c Conflict) Resolution { return r(c) }

// ConflictKind says in what way later work is in the way of a revert.
type ConflictKind int

const (
	// ColumnChanged is a column that the selection changed and that was changed
	// again later. A row that is to be removed has one for each column that was
	// changed since.
	ColumnChanged ConflictKind = iota + 1
	// ColumnInterleaved is a column that the selection changed more than once, and
	// that somebody else changed in between: what they wrote is gone already, and
	// what was there before the selection is older than it.
	ColumnInterleaved
	// ColumnGone is a column that the selection changed and that was dropped.
	ColumnGone
	// RowGone is a row that is to be put back to what it was, or to be removed, and
	// that is not there any more under the key that the selection left it with:
	// somebody else has removed it, or given it another key. In a table without a
	// primary key it is also one that nobody knows the whereabouts of.
	RowGone
	// RowRecreated is a row that is to be put back, and that somebody else has made
	// anew meanwhile, be it with the same values, or one that is to be removed and
	// was removed and made anew.
	RowRecreated
	// UniqueTaken is a unique value, or a range under an exclusion constraint, that
	// is to be restored and that another row has now.
	UniqueTaken
	// Referenced is a row that is to be removed, or whose key is to be changed back,
	// and that other rows now reference.
	Referenced
	// ParentMissing is a row that is to reference another one again, which is not
	// there any more.
	ParentMissing
	// ValueReturned is a column that holds again what it held before the selection,
	// through somebody's later change: that is their work, and not an undo.
	ValueReturned
	// ValueRefused is a value, or several of a row, that the table does not take any more:
	// NULL in a column that is NOT NULL now, or what a CHECK constraint or a domain forbids,
	// be it that this is newer or that others have changed another column since.
	ValueRefused
)

var conflictNames = map[ConflictKind]string{
	ColumnChanged: "column changed", ColumnInterleaved: "column changed in between", ColumnGone: "column gone",
	RowGone: "row gone", RowRecreated: "row created again", UniqueTaken: "unique value taken",
	Referenced: "row referenced", ParentMissing: "parent missing", ValueReturned: "value came back", ValueRefused: "value refused",
}

func (k ConflictKind) String() string {
	if name, ok := conflictNames[k]; ok {
		return name
	}
	return fmt.Sprintf("ConflictKind(%d)", int(k))
}

// MarshalText returns the kind's name.
func (k ConflictKind) MarshalText() ([]byte, error) { return []byte(k.String()), nil }

// RowRef names a row.
type RowRef struct {
	// Table is in the form that [Query.ForTable] reads, Key holds the texts of the
	// key's columns. In a table without a primary key it says, for people, what the
	// row holds: the texts of all columns, cut short, with NULL as such; it is empty
	// for rows that the revert does nothing to.
	Table string   `json:"table"`
	Key   []string `json:"key"`
}

// identity tells rows apart, also by keys whose parts have commas in them.
func (r RowRef) identity() string { return r.Table + "\x00" + joinKey(r.Key) }

func (r RowRef) String() string { return printable(r.Table) + "[" + printableKey(r.Key) + "]" }

// Conflict is one thing that stands between a row and what it was before the
// selection.
type Conflict struct {
	Kind ConflictKind `json:"kind"`
	// RowRef is the row that is to be reverted, by the key it has now, or had last.
	RowRef
	// Column is the column, for those kinds that are about one.
	Column string `json:"column,omitempty"`
	// Constraint is the constraint or unique index, for those kinds that are about
	// one.
	Constraint string `json:"constraint,omitempty"`
	// Restore is what would be restored and Live what is there now, as PostgreSQL
	// prints the column's value; nil is NULL, or that there is no row or value.
	Restore *string `json:"restore"`
	Live    *string `json:"live"`
	// Other is the row that has the unique value, references this one, or is the
	// parent that is missing.
	Other *RowRef `json:"other,omitempty"`
	// Change is the later change that is behind it: who, when, in which request. It
	// is nil where history does not know (yet).
	Change *Change `json:"change,omitempty"`
	// Resolution is what the policy decided.
	Resolution Resolution `json:"resolution"`

	row *netRow
	// stays reports whether Overwrite cannot do anything about it, blocked whether it stands
	// in the way of the whole revert.
	stays, blocked bool
	// origin finds the change behind the conflict.
	origin conflictOrigin
}

// MarshalText returns the resolution's name.
func (r Resolution) MarshalText() ([]byte, error) { return []byte(r.String()), nil }

// String returns the conflict in one line, with values cut short:
//
//	public.todo[26] task: column changed: would restore "Sleep", is "Eat", by UPDATE 0/1A2B3C8#1 by 42 in request r-9
func (c Conflict) String() string {
	var b strings.Builder
	b.WriteString(c.RowRef.String())
	if c.Column != "" {
		b.WriteString(" " + printable(c.Column))
	}
	b.WriteString(": " + c.Kind.String())
	switch c.Kind {
	case ColumnChanged, ColumnInterleaved, ValueReturned:
		b.WriteString(": would restore " + sqlValueText(c.Restore) + ", is " + sqlValueText(c.Live))
	case ColumnGone:
		b.WriteString(": cannot restore " + sqlValueText(c.Restore))
	case UniqueTaken:
		fmt.Fprintf(&b, ": %s: %s has it", printable(c.Constraint), c.Other)
	case Referenced:
		fmt.Fprintf(&b, ": by %s through %s", c.Other, printable(c.Constraint))
	case ParentMissing:
		fmt.Fprintf(&b, ": %s, which %s needs", c.Other, printable(c.Constraint))
	case ValueRefused:
		b.WriteString(c.refusalText())
	case RowGone, RowRecreated:
	}
	switch {
	case c.Change == nil && c.origin.unseen:
		b.WriteString(" (it may be there and hidden by row-level security: let a role revert that sees it)")
		return b.String()
	case c.Change == nil && c.Kind == ValueRefused:
		b.WriteString(" (the table or its types have been altered since)")
		return b.String()
	case c.Change == nil:
		b.WriteString(" (history does not say by which change)")
		return b.String()
	}
	b.WriteString(", by " + string(c.Change.Operation) + " " + c.Change.Position.String())
	c.Change.writeSource(&b)
	return b.String()
}

// sqlValueText is a value for the eye: quoted and cut short.
func sqlValueText(v *string) string {
	if v == nil {
		return "NULL"
	}
	text, err := json.Marshal(clip(*v, lineValue))
	if err != nil {
		return "?"
	}
	return printableJSON(string(text))
}
