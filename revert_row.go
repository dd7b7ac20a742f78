package audit

import (
	"bytes"
	"slices"
)

// datum is a value in PostgreSQL's text format. A nil text is NULL, if known.
type datum struct {
	text  []byte
	known bool
	// as is the number of the type that its column had, 0 for that of now.
	as uint16
}

func (d datum) equal(o datum) bool {
	return d.known == o.known && (d.text == nil) == (o.text == nil) && bytes.Equal(d.text, o.text)
}

// pointer returns the value for people: nil for NULL and for the unknown.
func (d datum) pointer() *string {
	if d.text == nil {
		return nil
	}
	s := string(d.text)
	return &s
}

// cell is a column of a row that the selection changed.
type cell struct {
	column int // in the target's columns
	// restore is what was there before the selection, expect what it left there.
	restore, expect datum
	// live is what is there now, where that is something else; nil for most.
	live *datum
	// already reports whether the live value is the one to be restored.
	already bool
	// interleaved reports whether somebody else changed it between two of the selected
	// changes.
	interleaved bool
	// undone reports whether a revert of ours has taken away what the selection wrote.
	undone bool
	// unclear reports whether a revert of something else has put there what the selection
	// had left.
	unclear bool
}

// netRow is what the selection did to one row, from its first change of it to its
// last.
type netRow struct {
	table *target
	// key is where the selection left the row, or had it last.
	key []string
	// existed and exists tell whether there was a row before the selection and
	// after it.
	existed, exists bool
	cells           []cell
	// firstKey is the text of the key under which the selection met the row first,
	// rawKey what history has instead, where the table had another primary key then.
	firstKey, rawKey string
	// oldKey is the text that key has in the history before a column of it got another
	// type, where that is another.
	oldKey string
	// keyMap is where the key was read, until it is converted in keyed, if it has a
	// column that had another type.
	keyMap *imageMap
	keyed  []datum
	// positions are those of the selected changes, in order.
	positions []Position
	// displaced reports whether the row was deleted by somebody else in between, and
	// recreated that it was made anew by somebody else.
	displaced, recreated bool
	// beneath is the row that had the key before, and may have it still where keys
	// are DEFERRABLE.
	beneath *netRow
	// lost are the changed columns that are not there any more.
	lost []lostColumn
	// printed is the key as the live row prints it, where equal keys may print otherwise.
	printed []string
	// retyped reports whether one of the values is of a type that the column no longer
	// has, and has not been converted.
	retyped bool

	// whole is what the selection left of the row, of a table without a key or with
	// one that is DEFERRABLE.
	whole []datum
	// Of a table without a key, whole is also what others have made of it. trail is
	// what they did to it later, gone tells that they deleted it, again that a revert
	// has put an equal row back.
	trail       []Position
	gone, again bool

	// later is what happened to it behind the selection.
	later later
	// unknown are the columns of a row to be removed of which history knows nothing,
	// and that hold something else than they would without anybody's doing.
	unknown []liveColumn

	// What became of it against the live rows.
	action  Operation // empty: nothing to do
	missing bool      // there is no live row
	skipped bool
	done    bool // the live row is already as it would be restored
	// parkedKey is the key that the row has for a moment while the revert is
	// applied; nil for nearly all.
	parkedKey []string
	// parkedWhole is what a row without a key holds for that moment.
	parkedWhole []datum
}

// liveColumn is a column of a live row.
type liveColumn struct {
	column int
	live   datum
}

type lostColumn struct {
	name    string
	restore datum
}

func (r *netRow) first() Position { return r.positions[0] }
func (r *netRow) last() Position  { return r.positions[len(r.positions)-1] }

func (r *netRow) ref() RowRef {
	if r.table.keyless {
		return RowRef{Table: r.table.label(), Key: r.description()}
	}
	return RowRef{Table: r.table.label(), Key: r.key}
}

// cell returns the cell of a column, or nil.
func (r *netRow) cell(column int) *cell {
	// Cells are few, or in the order of the columns.
	if column < len(r.cells) && r.cells[column].column == column {
		return &r.cells[column]
	}
	for i := range r.cells {
		if r.cells[i].column == column {
			return &r.cells[i]
		}
	}
	return nil
}

// restoredKey is the key that the row had before the selection.
func (r *netRow) restoredKey() []string {
	key := slices.Clone(r.key)
	for i, at := range r.table.keyAt {
		if c := r.cell(at); c != nil && c.restore.known && i < len(key) {
			key[i] = string(c.restore.text)
		}
	}
	return key
}

// liveText is the key as the live row prints it.
func (r *netRow) liveText() string {
	if r.printed != nil && !r.missing {
		return joinKey(r.printed)
	}
	return joinKey(r.key)
}

// keyChanges reports whether restoring the row changes its key.
func (r *netRow) keyChanges() bool {
	return r.action == Update && !slices.Equal(r.key, r.restoredKey())
}
