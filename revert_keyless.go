package audit

import (
	"encoding/binary"
	"encoding/json"
	"slices"

	"github.com/hindsight-go/audit/internal/pgcatalog"
	"github.com/hindsight-go/audit/internal/rowimage"
	"github.com/hindsight-go/audit/internal/wal"
)

// A row of a table without a primary key is told apart by all that it holds, and
// equal rows are interchangeable: the table is a bag of rows. In the collapse a
// row is followed by its contents. Before the live rows are looked at, a live row
// with the same contents is found for each, and its place, (tableoid, ctid), is
// its key from there on. That holds while the rows are locked, or within one
// snapshot; a plan that is applied later finds them anew.

// nowhere is the key of a row that has no place in the live table.
var nowhere = []string{"0", "(0,0)"}

// byPlace gives a table without a primary key that of its rows' places.
func (t *target) byPlace() {
	t.keyless = true
	t.Key = []string{"tableoid", "ctid"}
	t.Columns = pgcatalog.NewColumns(append(slices.Clip(t.Columns.List),
		pgcatalog.Column{Name: "tableoid", TypeOID: 26, TypeName: "pg_catalog.oid", Generated: true, NotNull: true},
		pgcatalog.Column{Name: "ctid", TypeOID: 27, TypeName: "pg_catalog.tid", Generated: true, NotNull: true}))
}

// placeOps are the equality operators of oid and tid.
var placeOps = []string{"OPERATOR(pg_catalog.=)", "OPERATOR(pg_catalog.=)"}

// contents is the bag of the rows of one table in the collapse.
type contents struct {
	// masks are the sets of columns that images have had. One that was added in the
	// midst of the selection is not in the older ones.
	masks []string
	// rows are those that are there at this point, by what they hold, gone those
	// that the selection found and took away, by what they held before it.
	rows, gone map[string][]*netRow
}

// maskOf says which columns are known.
func maskOf(size int, known func(at int) bool) string {
	mask := make([]byte, size)
	for at := range mask {
		mask[at] = '0'
		if known(at) {
			mask[at] = '1'
		}
	}
	return string(mask)
}

// within reports whether all columns of a mask are in another one.
func within(mask, of string) bool {
	for at := range mask {
		if mask[at] == '1' && of[at] != '1' {
			return false
		}
	}
	return true
}

// appendContent adds a value to the text of a row's contents.
func appendContent(b []byte, kind wal.Kind, d datum) []byte {
	if d.text == nil {
		return append(b, 'n')
	}
	text := rowimage.Canonical(kind, d.text)
	b = binary.AppendUvarint(append(b, 'v'), uint64(len(text)))
	return append(b, text...)
}

// textOfImage is the text of what an image holds in the columns of a mask.
func (c *collapse) textOfImage(m *imageMap, values []json.RawMessage, mask string) string {
	c.spare = append(c.spare[:0], mask...)
	defer c.forget(c.arena, c.budget.spent) // nobody keeps what is added
	for at, raw := range values {
		if mask[at] == '1' {
			c.spare = appendContent(c.spare, m.at[at].kind, c.datum(raw, m.at[at]))
		}
	}
	return string(c.spare)
}

// textOfRow is the text of values of a row.
func textOfRow(t *target, values []datum) string {
	mask := maskOf(len(values), func(at int) bool { return values[at].known })
	b := []byte(mask)
	for at, d := range values {
		if d.known {
			b = appendContent(b, t.Columns.List[at].Kind, d)
		}
	}
	return string(b)
}

func (c *collapse) maskOf(m *imageMap, values []json.RawMessage) string {
	return maskOf(len(values), func(at int) bool { return values[at] != nil && !m.target.Columns.List[at].Generated })
}

// pop takes the last of the rows under a text.
func pop(rows map[string][]*netRow, text string) *netRow {
	list := rows[text]
	if len(list) == 0 {
		return nil
	}
	r := list[len(list)-1]
	if rows[text] = list[:len(list)-1]; len(list) == 1 {
		delete(rows, text)
	}
	return r
}

// leave takes a row with the contents of an image out of the bag, or nil.
func (c *collapse) leave(b *contents, m *imageMap, values []json.RawMessage) *netRow {
	whole := c.maskOf(m, values)
	if r := pop(b.rows, c.textOfImage(m, values, whole)); r != nil {
		return r
	}
	for _, mask := range b.masks {
		if mask != whole && within(mask, whole) {
			if r := pop(b.rows, c.textOfImage(m, values, mask)); r != nil {
				return r
			}
		}
	}
	return nil
}

// stay puts a row with the contents of an image into the bag.
func (c *collapse) stay(b *contents, m *imageMap, r *netRow, values []json.RawMessage) {
	c.keepWhole(m, r, values)
	b.put(r, c.maskOf(m, values), c.textOfImage(m, values, c.maskOf(m, values)))
}

func (c *collapse) keepWhole(m *imageMap, r *netRow, values []json.RawMessage) {
	for _, d := range r.whole {
		c.release(d)
	}
	c.budget.spend((len(values) - len(r.whole)) * datumBytes)
	r.whole = make([]datum, len(values))
	for at, raw := range values {
		if raw != nil && !m.target.Columns.List[at].Generated {
			r.whole[at] = c.datum(raw, m.at[at])
		}
	}
}

func (b *contents) put(r *netRow, mask, text string) {
	if !slices.Contains(b.masks, mask) {
		b.masks = append(b.masks, mask)
	}
	b.rows[text] = append(b.rows[text], r)
}

func newContents() *contents {
	return &contents{rows: make(map[string][]*netRow), gone: make(map[string][]*netRow)}
}

// takeContents adds a change of a row that has no key.
func (c *collapse) takeContents(m *imageMap, ch *selectedChange) error {
	b := c.bags[m.target]
	if b == nil {
		b = newContents()
		c.bags[m.target] = b
	}
	enter := func() (*netRow, error) {
		r, err := c.enter(m, "", ch)
		if err == nil {
			r.key = nowhere
		}
		return r, err
	}
	var r *netRow
	var err error
	switch ch.operation {
	case Create:
		// Of a row that the selection took away, and one that it made the same, nothing
		// remains.
		if r = pop(b.gone, c.textOfImage(m, c.after, c.maskOf(m, c.after))); r == nil {
			if r, err = enter(); err != nil {
				return err
			}
		}
		c.expectAll(m, r, c.after)
	default:
		if r = c.leave(b, m, c.before); r == nil {
			if r, err = enter(); err != nil {
				return err
			}
			r.existed = true
		}
	}
	r.positions = append(r.positions, ch.position)
	r.exists = ch.operation != Delete
	if ch.operation == Delete {
		c.vacate(m, r)
		if r.existed {
			text := textOfRow(m.target, r.original())
			b.gone[text] = append(b.gone[text], r)
		}
		return nil
	}
	if ch.operation == Update {
		c.complete()
		c.alter(m, r)
	}
	c.stay(b, m, r, c.after)
	return nil
}

// original is the row as it was before the selection, of one that is taken away.
func (r *netRow) original() []datum {
	values := make([]datum, len(r.table.Columns.List))
	for _, c := range r.cells {
		values[c.column] = c.restore
	}
	return values
}

// description stands for the key of a row that has none: what it holds, for people.
func (r *netRow) description() []string {
	values := r.whole
	if r.action == Create {
		values = r.original()
	}
	var key []string
	for at, d := range values {
		switch {
		case r.table.Columns.List[at].Generated || !d.known:
		case d.text == nil:
			key = append(key, "NULL")
		default:
			key = append(key, clip(string(d.text), lineValue))
		}
	}
	return key
}
