package audit

import (
	"bytes"
	"context"
	"encoding/json"
	"slices"

	"github.com/hindsight-go/audit/store"
)

// datum is a value in PostgreSQL's text format. A nil text is NULL, if known.
type datum struct {
	text  []byte
	known bool
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
	// restore is what was there before the selection, expect what it left there,
	// live what is there now, where that is something else.
	restore, expect, live datum
	// already tells that the live value is the one to be restored.
	already bool
	// interleaved tells that somebody else changed it between two of the selected
	// changes.
	interleaved bool
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
	// positions are those of the selected changes, in order.
	positions []Position
	// displaced tells that the row was deleted by somebody else in between, and
	// recreated that it was made anew by somebody else.
	displaced, recreated bool
	// beneath is the row that had the key before, and may have it still where keys
	// are DEFERRABLE.
	beneath *netRow
	// lost are the changed columns that are not there any more.
	lost []lostColumn
	// retyped tells that one of the values is of a type that the column no longer
	// has.
	retyped bool

	// whole is what the selection left of the row, of a table without a key or with
	// one that is DEFERRABLE.
	whole []datum
	// Of a table without a key: whole is also what others have made of it, trail what they did to it later. gone tells that
	// they deleted it, again that a revert has put an equal row back.
	trail       []Position
	gone, again bool

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

// keyChanges tells that restoring the row changes its key.
func (r *netRow) keyChanges() bool {
	return r.action == Update && !slices.Equal(r.key, r.restoredKey())
}

// selectedChange is a change as the collapse reads it. Its bytes are only valid
// until the next one is read.
type selectedChange struct {
	position      Position
	schema, table string
	key, previous []byte // nil: none
	operation     Operation
	before, after Image
	defect        string
}

// collapse puts the selected changes together, oldest first, to what they did to
// each row.
type collapse struct {
	atlas   *atlas
	limit   int
	columns []string // if not nil, the only ones that count
	// row is the key of the only row whose truncation counts, if not nil.
	row     []any
	rows    []*netRow
	index   map[*target]map[string]*netRow // by the key that the row has at this point
	bags    map[*target]*contents          // of the tables without a key
	changes int
	// dropped are the selected changes that came to nothing.
	dropped []Position

	before, after []json.RawMessage // scratch, by column
	lost          map[string][2]json.RawMessage
	arena, spare  []byte
}

func newCollapse(a *atlas, limit int, columns []string) *collapse {
	return &collapse{atlas: a, limit: limit, columns: columns, index: make(map[*target]map[string]*netRow), bags: make(map[*target]*contents), lost: make(map[string][2]json.RawMessage)}
}

// keep copies what has to outlive the change.
func (c *collapse) keep(b []byte) []byte {
	if cap(c.arena)-len(c.arena) < len(b) {
		c.arena = make([]byte, 0, max(64<<10, len(b)))
	}
	start := len(c.arena)
	c.arena = append(c.arena, b...)
	return c.arena[start:len(c.arena):len(c.arena)]
}

// datum makes a value of an image's JSON.
func (c *collapse) datum(raw json.RawMessage, column imageColumn) datum {
	if raw == nil {
		return datum{}
	}
	if isNull(raw) {
		return datum{known: true}
	}
	if bytes.Equal(raw, jsonNull) {
		return datum{text: []byte("null"), known: true}
	}
	if cap(c.arena)-len(c.arena) < len(raw)+16 {
		c.arena = make([]byte, 0, max(64<<10, 2*len(raw)+16))
	}
	start := len(c.arena)
	c.arena = appendSQLText(c.arena, column.kind, raw)
	text := c.arena[start:len(c.arena):len(c.arena)]
	if text == nil {
		text = []byte{}
	}
	return datum{text: text, known: true}
}

// add takes the next change.
func (c *collapse) add(ctx context.Context, ch *selectedChange) error {
	m, err := c.atlas.at(ctx, ch.schema, ch.table, ch.position.LSN)
	if err != nil {
		return err
	}
	c.changes++
	if ch.operation == Truncate {
		return c.truncated(ctx, ch)
	}
	return c.take(m, ch)
}

// take adds a change of a row.
func (c *collapse) take(m *imageMap, ch *selectedChange) (err error) {
	refuse := func(reason string) error {
		return &UnrevertableError{Table: qualifiedName(ch.schema, ch.table), Position: ch.position, Reason: reason}
	}
	c.read(m, ch)
	if m.target.keyless {
		if ch.operation != Create && !c.knows(m, c.before) {
			return refuse("history does not know the whole row before the change, which tells it apart in a table without a primary key (REPLICA IDENTITY)")
		}
		return c.takeContents(m, ch)
	}
	keyText, previous := string(ch.key), string(ch.previous)
	if !m.keyed || ch.key == nil {
		row, old := c.after, c.before
		if ch.operation == Delete {
			row = c.before
		}
		var ok bool
		if keyText, ok = c.keyOf(m, row); !ok {
			return refuse("the table has another primary key now, and history does not know its value in this change")
		}
		previous = ""
		if ch.operation == Update {
			if previous, ok = c.keyOf(m, old); !ok || previous == keyText {
				previous = ""
			}
		}
	}
	index := c.index[m.target]
	if index == nil {
		index = make(map[string]*netRow)
		c.index[m.target] = index
	}
	switch ch.operation {
	case Create:
		err = c.created(m, index, keyText, ch)
	case Update:
		if !c.knows(m, c.before) {
			return refuse("history does not know the row before the change, since the table did not log its old rows then (REPLICA IDENTITY)")
		}
		err = c.updated(m, index, keyText, previous, ch)
	case Delete:
		if !c.knows(m, c.before) {
			return refuse("history does not know the whole row that was deleted, since the table did not log its old rows then (REPLICA IDENTITY)")
		}
		err = c.deleted(m, index, keyText, ch)
	}
	return err
}

// read takes the images apart, by the columns of the target.
func (c *collapse) read(m *imageMap, ch *selectedChange) {
	size := len(m.target.columns.list)
	if cap(c.before) < size {
		c.before, c.after = make([]json.RawMessage, size), make([]json.RawMessage, size)
	}
	c.before, c.after = c.before[:size], c.after[:size]
	clear(c.before)
	clear(c.after)
	clear(c.lost)
	fill := func(im Image, into []json.RawMessage, side int) {
		im.eachMember(func(name, value []byte) {
			column, ok := m.columns[string(name)]
			switch {
			case !ok || column.at < 0:
				pair := c.lost[string(name)]
				pair[side] = value
				c.lost[string(name)] = pair
			default:
				into[column.at] = value
			}
		})
	}
	fill(ch.before, c.before, 0)
	fill(ch.after, c.after, 1)
	if ch.defect != "" {
		c.mend(m, readDefects(&ch.defect, "before"), c.before)
		c.mend(m, readDefects(&ch.defect, "after"), c.after)
	}
}

// jsonNull stands for the null of JSON, which an image has as NULL.
var jsonNull = json.RawMessage("\x00null")

// complete fills in toasted values that stayed as they were.
func (c *collapse) complete() {
	for at := range c.after {
		if c.after[at] == nil {
			c.after[at] = c.before[at]
		}
	}
}

// mend puts in what an image does not say as it is, and takes out what nobody
// knows.
func (c *collapse) mend(m *imageMap, defects []defect, values []json.RawMessage) {
	for _, d := range defects {
		column, ok := m.columns[d.column]
		switch {
		case !ok || column.at < 0:
		case d.value != nil:
			values[column.at] = jsonNull
		case len(m.target.key) > 0 && bytes.Equal(c.before[column.at], c.after[column.at]):
			// It was not changed, so nothing is made of it.
		default:
			values[column.at] = nil
		}
	}
}

// keyOf makes the text of the key of now out of an image.
func (c *collapse) keyOf(m *imageMap, values []json.RawMessage) (string, bool) {
	parts := make([]string, len(m.target.keyAt))
	for i, at := range m.target.keyAt {
		if values[at] == nil || isNull(values[at]) {
			return "", false
		}
		parts[i] = string(appendSQLText(nil, m.target.columns.list[at].kind, values[at]))
	}
	return store.KeyText(parts...), true
}

// knows tells that an image has every column that the version of the table had,
// but for those that the server computes.
func (c *collapse) knows(m *imageMap, values []json.RawMessage) bool {
	for _, at := range m.required {
		if values[at] == nil {
			return false
		}
	}
	return true
}

// wanted tells that a column is to be reverted: the server does not compute it,
// and Columns does not leave it out.
func (c *collapse) wanted(t *target, at int) bool {
	column := &t.columns.list[at]
	return !column.derived && (c.columns == nil || slices.Contains(c.columns, column.name))
}

func (c *collapse) enter(m *imageMap, key string, ch *selectedChange) (*netRow, error) {
	if len(c.rows) >= c.limit {
		return nil, &TooManyRowsError{Max: c.limit}
	}
	r := &netRow{table: m.target}
	c.rows = append(c.rows, r)
	c.place(r, m, key)
	return r, nil
}

// place says where the row is now.
func (c *collapse) place(r *netRow, m *imageMap, key string) {
	if len(m.target.key) == 1 {
		r.key = []string{key}
	} else {
		r.key = splitKey(key)
	}
}

func (c *collapse) created(m *imageMap, index map[string]*netRow, key string, ch *selectedChange) error {
	r := index[key]
	if r != nil && r.exists {
		// Somebody else must have deleted it in between.
		r.displaced = true
		r = nil
	}
	if r == nil {
		var err error
		if r, err = c.enter(m, key, ch); err != nil {
			return err
		}
		index[key] = r
	}
	r.exists = true
	r.positions = append(r.positions, ch.position)
	c.expectAll(m, r, c.after)
	if m.target.deferrable {
		c.keepWhole(m, r, c.after)
	}
	return nil
}

// expectAll says that the selection left the whole row as in the image.
func (c *collapse) expectAll(m *imageMap, r *netRow, image []json.RawMessage) {
	if r.cells == nil {
		r.cells = make([]cell, 0, len(image))
	}
	for at, raw := range image {
		if raw == nil || m.target.columns.list[at].derived {
			continue
		}
		r.retyped = r.retyped || m.at[at].retyped
		value := c.datum(raw, m.at[at])
		if cell := r.cell(at); cell != nil {
			cell.expect = value
			continue
		}
		r.cells = append(r.cells, cell{column: at, expect: value})
	}
}

func (c *collapse) updated(m *imageMap, index map[string]*netRow, key, previous string, ch *selectedChange) error {
	from := key
	if ch.previous != nil || previous != "" {
		from = previous
	}
	r := c.under(m, index, from, ch)
	if r == nil {
		var err error
		if r, err = c.enter(m, from, ch); err != nil {
			return err
		}
		r.existed = true
	}
	if !r.exists && len(r.positions) > 0 {
		// The selection had deleted it: somebody else made it anew.
		r.recreated = true
		c.expectAll(m, r, c.before)
	}
	r.exists = true
	r.positions = append(r.positions, ch.position)
	if from != key {
		if index[from] == r {
			delete(index, from)
		}
		if other := index[key]; other != nil && other.exists {
			other.displaced = true
			r.beneath = other
		}
		c.place(r, m, key)
	}
	index[key] = r
	c.alter(m, r)
	if m.target.deferrable {
		c.keepWhole(m, r, c.after)
	}
	return nil
}

// under returns the row that a change is of, by its key. Where that is DEFERRABLE,
// two rows can have one key in the midst of a transaction: what they hold tells
// which of them it is.
func (c *collapse) under(m *imageMap, index map[string]*netRow, key string, ch *selectedChange) *netRow {
	r := index[key]
	if r == nil || !m.target.deferrable || r.last().LSN != ch.position.LSN || c.holds(m, r) {
		return r
	}
	if r = r.beneath; r != nil {
		r.displaced = false
	}
	return r
}

// holds tells that the selection left a row as the change found it.
func (c *collapse) holds(m *imageMap, r *netRow) bool {
	used := c.arena
	defer func() { c.arena = used }() // nobody keeps what is added
	for at, d := range r.whole {
		if raw := c.before[at]; raw != nil && d.known && !d.equal(c.datum(raw, m.at[at])) {
			return false
		}
	}
	return true
}

// alter notes what an UPDATE did to the columns of a row.
func (c *collapse) alter(m *imageMap, r *netRow) {
	for at := range c.before {
		b, a := c.before[at], c.after[at]
		if a == nil || b != nil && bytes.Equal(a, b) {
			continue
		}
		c.change(m, r, at, b, a)
	}
	for name, sides := range c.lost {
		if sides[1] != nil && !bytes.Equal(sides[0], sides[1]) {
			c.lose(r, name, sides[0])
		}
	}
}

// change notes that a column went from one value to another.
func (c *collapse) change(m *imageMap, r *netRow, at int, before, after json.RawMessage) {
	if r.existed && !c.wanted(m.target, at) {
		return
	}
	if m.target.columns.list[at].derived {
		return
	}
	column := m.at[at]
	r.retyped = r.retyped || column.retyped
	from, to := c.datum(before, column), c.datum(after, column)
	known := r.cell(at)
	if known == nil {
		r.cells = append(r.cells, cell{column: at, restore: from, expect: to})
		return
	}
	if known.expect.known && !known.expect.equal(from) {
		known.interleaved = true
	}
	known.expect = to
}

// lose notes a change of a column that is gone.
func (c *collapse) lose(r *netRow, name string, before json.RawMessage) {
	if !r.existed || c.columns != nil && !slices.Contains(c.columns, name) ||
		slices.ContainsFunc(r.lost, func(l lostColumn) bool { return l.name == name }) {
		return
	}
	lost := lostColumn{name: name}
	if before != nil && !isNull(before) {
		lost.restore = datum{text: c.keep([]byte(rawText(before))), known: true}
	}
	r.lost = append(r.lost, lost)
}

func (c *collapse) deleted(m *imageMap, index map[string]*netRow, key string, ch *selectedChange) error {
	r := c.under(m, index, key, ch)
	if r == nil {
		var err error
		if r, err = c.enter(m, key, ch); err != nil {
			return err
		}
		r.existed = true
		r.cells = make([]cell, 0, len(c.before))
	} else if !r.exists {
		r.recreated = true
	}
	if now := index[key]; now == nil || now == r || !m.target.deferrable {
		index[key] = r
	}
	r.exists = false
	r.positions = append(r.positions, ch.position)
	c.vacate(m, r)
	return nil
}

// vacate notes what a DELETE took away with a row.
func (c *collapse) vacate(m *imageMap, r *netRow) {
	for at, raw := range c.before {
		if raw == nil || m.target.columns.list[at].derived {
			continue
		}
		r.retyped = r.retyped || m.at[at].retyped
		value := c.datum(raw, m.at[at])
		known := r.cell(at)
		switch {
		case known == nil:
			r.cells = append(r.cells, cell{column: at, restore: value})
		case known.expect.known:
			known.interleaved = known.interleaved || !known.expect.equal(value)
			if !known.restore.known {
				known.restore = value
			}
			known.expect = datum{}
		}
	}
	for name, sides := range c.lost {
		if sides[0] != nil && !isNull(sides[0]) {
			c.lose(r, name, sides[0])
		}
	}
}

// finish drops what came to nothing.
func (c *collapse) finish() []*netRow {
	return slices.DeleteFunc(c.rows, func(r *netRow) bool {
		dropped := c.settle(r)
		if dropped {
			c.dropped = append(c.dropped, r.positions...)
		}
		return dropped
	})
}

// settle says what is to be done to a row, or that nothing is.
func (c *collapse) settle(r *netRow) (dropped bool) {
	switch {
	case !r.existed && !r.exists: // made and removed by the selection itself
		return !r.displaced
	case c.columns != nil && r.existed != r.exists:
		return true // more than columns: see Reversal.Columns
	case r.existed && r.exists:
		r.cells = slices.DeleteFunc(r.cells, func(k cell) bool {
			return !c.wanted(r.table, k.column) || !k.interleaved && (!k.restore.known || k.restore.equal(k.expect))
		})
		r.action = Update
		return len(r.cells) == 0 && len(r.lost) == 0 && !r.recreated && !r.displaced
	case r.existed:
		r.action = Create
	default:
		r.action = Delete
	}
	return false
}
