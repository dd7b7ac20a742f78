package audit

import (
	"bytes"
	"context"
	"encoding/json"
	"slices"

	"github.com/hindsight-go/audit/internal/pgcatalog"
	"github.com/hindsight-go/audit/internal/rowimage"
)

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
	foreign       bool  // the images have a column that the version has not
	changed       []int // scratch, columns
	arena, spare  []byte
	slabs         slabs
	budget        *budget
}

func newCollapse(a *atlas, limit int, columns []string, b *budget) *collapse {
	return &collapse{atlas: a, limit: limit, columns: columns, budget: b, index: make(map[*target]map[string]*netRow), bags: make(map[*target]*contents), lost: make(map[string][2]json.RawMessage)}
}

// add takes the next change.
func (c *collapse) add(ctx context.Context, ch *selectedChange) error {
	m, err := c.atlas.at(ctx, ch.schema, ch.table, ch.position)
	if err != nil {
		return err
	}
	c.changes++
	c.budget.spend(positionBytes)
	if err := c.budget.err(); err != nil {
		return err
	}
	if ch.operation == Truncate {
		return c.truncated(ctx, ch)
	}
	return c.take(m, ch)
}

// take adds a change of a row.
func (c *collapse) take(m *imageMap, ch *selectedChange) (err error) {
	refuse := func(reason string) error {
		return &UnrevertableError{Table: pgcatalog.Qualified(ch.schema, ch.table), Position: ch.position, Reason: reason}
	}
	c.read(m, ch)
	if c.foreign {
		return refuse(foreignReason)
	}
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

// wanted reports whether a column is to be reverted: the server does not compute it,
// and Columns does not leave it out.
func (c *collapse) wanted(t *target, at int) bool {
	return !t.Columns.List[at].Generated && !t.leaves(at) && (c.columns == nil || t.isNamed(at, c.columns))
}

func (c *collapse) enter(m *imageMap, key string, ch *selectedChange) (*netRow, error) {
	if len(c.rows) >= c.limit {
		return nil, &TooManyRowsError{Max: c.limit}
	}
	size := min(slabRows, len(c.rows)+1)
	r := &take(&c.slabs.rows, 1, size)[0]
	r.table = m.target
	r.positions = take(&c.slabs.positions, 1, size)[:0]
	c.rows = append(c.rows, r)
	c.place(r, m, key)
	r.firstKey = key
	if !m.keyed {
		r.rawKey = string(ch.key)
	}
	c.budget.spend(rowBytes + 2*len(key))
	return r, c.budget.err()
}

// place says where the row is now.
func (c *collapse) place(r *netRow, m *imageMap, key string) {
	if len(m.target.Key) == 1 {
		r.key = take(&c.slabs.keys, 1, min(slabRows, len(c.rows)))
		r.key[0] = key
	} else {
		r.key = splitKey(key)
	}
	r.keyMap = nil
	if slices.ContainsFunc(m.target.keyAt, func(at int) bool { return m.at[at].as != 0 }) {
		r.keyMap = m
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
	if m.target.Deferrable {
		c.keepWhole(m, r, c.after)
	}
	return nil
}

// expectAll says that the selection left the whole row as in the image.
func (c *collapse) expectAll(m *imageMap, r *netRow, image []json.RawMessage) {
	c.room(r, len(image))
	for at, raw := range image {
		if raw == nil || m.target.Columns.List[at].Generated {
			continue
		}
		r.retyped = r.retyped || m.at[at].as != 0
		value := c.datum(raw, m.at[at])
		if cell := r.cell(at); cell != nil {
			c.release(cell.expect)
			cell.expect = value
			continue
		}
		c.addCell(r, cell{column: at, expect: value})
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
	if m.target.Deferrable {
		c.keepWhole(m, r, c.after)
	}
	return nil
}

// under returns the row that a change is of, by its key. Where that is DEFERRABLE,
// two rows can have one key in the midst of a transaction: what they hold tells
// which of them it is.
func (c *collapse) under(m *imageMap, index map[string]*netRow, key string, ch *selectedChange) *netRow {
	r := index[key]
	if r == nil || !m.target.Deferrable || r.last().LSN != ch.position.LSN || c.holds(m, r) {
		return r
	}
	if r = r.beneath; r != nil {
		r.displaced = false
	}
	return r
}

// holds reports whether the selection left a row as the change found it.
func (c *collapse) holds(m *imageMap, r *netRow) bool {
	for at, d := range r.whole {
		if raw := c.before[at]; raw != nil && d.known && !c.is(d, raw, m.at[at]) {
			return false
		}
	}
	return true
}

// is compares a value with that of an image, of which nothing is kept.
func (c *collapse) is(d datum, raw json.RawMessage, column imageColumn) bool {
	defer c.forget(c.arena, c.budget.spent)
	return d.equal(c.datum(raw, column))
}

// alter notes what an UPDATE did to the columns of a row.
func (c *collapse) alter(m *imageMap, r *netRow) {
	c.changed = c.changed[:0]
	for at, a := range c.after {
		if b := c.before[at]; a != nil && (b == nil || !bytes.Equal(a, b)) {
			c.changed = append(c.changed, at)
		}
	}
	c.room(r, len(c.changed))
	for _, at := range c.changed {
		c.change(m, r, at, c.before[at], c.after[at])
	}
	for name, sides := range c.lost {
		if sides[1] != nil && !bytes.Equal(sides[0], sides[1]) {
			c.lose(r, name, sides[0])
		}
	}
}

// change notes that a column went from one value to another.
func (c *collapse) change(m *imageMap, r *netRow, at int, before, after json.RawMessage) {
	if m.target.Columns.List[at].Generated {
		return
	}
	if r.existed && !c.wanted(m.target, at) {
		// If the row is removed afterwards, it comes back with what there was at first:
		// a counter would be that of a row whose counted rows were removed before it.
		m.target.noteLeft(at)
		if m.target.isVersion(at) {
			return
		}
	}
	column := m.at[at]
	r.retyped = r.retyped || column.as != 0
	known := r.cell(at)
	if known == nil {
		c.addCell(r, cell{column: at, restore: c.datum(before, column), expect: c.datum(after, column)})
		return
	}
	if known.expect.known && !c.is(known.expect, before, column) {
		known.interleaved = true
	}
	c.release(known.expect)
	known.expect = c.datum(after, column)
}

// lose notes a change of a column that is gone.
func (c *collapse) lose(r *netRow, name string, before json.RawMessage) {
	if !r.existed || r.table.leavesLost(name) || c.columns != nil && !slices.Contains(c.columns, name) ||
		slices.ContainsFunc(r.lost, func(l lostColumn) bool { return l.name == name }) {
		return
	}
	lost := lostColumn{name: name}
	if before != nil && !rowimage.IsNull(before) {
		lost.restore = datum{text: c.keep([]byte(rowimage.RawText(before))), known: true}
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
	} else if !r.exists {
		r.recreated = true
	}
	if now := index[key]; now == nil || now == r || !m.target.Deferrable {
		index[key] = r
	}
	r.exists = false
	r.positions = append(r.positions, ch.position)
	c.vacate(m, r)
	return nil
}

// vacate notes what a DELETE took away with a row.
func (c *collapse) vacate(m *imageMap, r *netRow) {
	c.room(r, len(c.before))
	for at, raw := range c.before {
		if raw == nil || m.target.Columns.List[at].Generated {
			continue
		}
		r.retyped = r.retyped || m.at[at].as != 0
		value := c.datum(raw, m.at[at])
		known := r.cell(at)
		switch {
		case known == nil:
			if len(r.positions) > 1 { // the selection has given out others since the row was so
				value = m.target.countedOn(at, value)
			}
			c.addCell(r, cell{column: at, restore: value})
			continue
		case known.expect.known:
			known.interleaved = known.interleaved || !known.expect.equal(value)
			c.release(known.expect)
			known.expect = datum{}
			if !known.restore.known {
				known.restore = value
				continue
			}
		}
		c.release(value)
	}
	for name, sides := range c.lost {
		if sides[0] != nil && !rowimage.IsNull(sides[0]) {
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
