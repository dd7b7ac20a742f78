package audit

import (
	"bytes"
	"encoding/json"

	"github.com/hindsight-go/audit/internal/rowimage"
	"github.com/hindsight-go/audit/store"
)

// keep copies what has to outlive the change.
func (c *collapse) keep(b []byte) []byte {
	c.budget.spend(len(b))
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
	if rowimage.IsNull(raw) {
		return datum{known: true}
	}
	if bytes.Equal(raw, jsonNull) {
		return datum{text: []byte("null"), known: true, as: column.as}
	}
	if len(raw) > ownBytes {
		text := rowimage.AppendText(make([]byte, 0, len(raw)+16), column.kind, raw)
		c.budget.spend(cap(text))
		return datum{text: text, known: true, as: column.as}
	}
	if cap(c.arena)-len(c.arena) < 2*len(raw)+16 {
		c.arena = make([]byte, 0, 64<<10)
	}
	start := len(c.arena)
	c.arena = rowimage.AppendText(c.arena, column.kind, raw)
	text := c.arena[start:len(c.arena):len(c.arena)]
	if text == nil {
		text = []byte{}
	}
	c.budget.spend(len(text))
	return datum{text: text, known: true, as: column.as}
}

// release takes note that a value is not kept any longer. A small one lies among
// others, and goes when they do.
func (c *collapse) release(d datum) {
	if cap(d.text) > ownBytes {
		c.budget.spend(-cap(d.text))
	}
}

// forget takes back what was kept since the arena was so and that much was spent.
func (c *collapse) forget(arena []byte, spent int64) { c.arena, c.budget.spent = arena, spent }

// read takes the images apart, by the columns of the target.
func (c *collapse) read(m *imageMap, ch *selectedChange) {
	size := len(m.target.Columns.List)
	if cap(c.before) < size {
		c.before, c.after = make([]json.RawMessage, size), make([]json.RawMessage, size)
	}
	c.before, c.after = c.before[:size], c.after[:size]
	clear(c.before)
	clear(c.after)
	clear(c.lost)
	c.foreign = false
	fill := func(im Image, into []json.RawMessage, side int) {
		rowimage.EachMember(im, func(name, value []byte) {
			column, ok := m.columns[string(name)]
			c.foreign = c.foreign || !ok && m.versioned && !m.withheld[string(name)]
			switch {
			case m.withheld[string(name)]:
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
		c.mend(m, rowimage.ReadDefects(&ch.defect, "before"), c.before)
		c.mend(m, rowimage.ReadDefects(&ch.defect, "after"), c.after)
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
func (c *collapse) mend(m *imageMap, defects []rowimage.Defect, values []json.RawMessage) {
	for _, d := range defects {
		column, ok := m.columns[d.Column]
		switch {
		case !ok || column.at < 0:
		case d.Value != nil:
			values[column.at] = jsonNull
		case len(m.target.Key) > 0 && bytes.Equal(c.before[column.at], c.after[column.at]):
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
		if values[at] == nil || rowimage.IsNull(values[at]) {
			return "", false
		}
		parts[i] = string(rowimage.AppendText(nil, m.target.Columns.List[at].Kind, values[at]))
	}
	return store.KeyText(parts...), true
}

// knows reports whether an image has every column that the version of the table had,
// but for those that the server computes.
func (c *collapse) knows(m *imageMap, values []json.RawMessage) bool {
	for _, at := range m.required {
		if values[at] == nil {
			return false
		}
	}
	return true
}
