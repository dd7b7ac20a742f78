package audit

import (
	"bytes"
	"context"
	"encoding/json"
	"slices"
	"strings"

	sq "github.com/Masterminds/squirrel"
	"github.com/jackc/pgx/v5"

	"github.com/hindsight-go/audit/store"
)

// rowHistory is what became of one row since the selection began.
type rowHistory struct {
	row *netRow
	key string // where the row is at this point
	// moved are the keys that it was given, the ones that it has lost again included:
	// it may have been written to under any of them.
	moved []string
	// movedAt is where it was given the last of them.
	movedAt Position
	// presence reports whether there is a row, columns holds the values of those that
	// matter.
	presence *levels
	columns  map[int]*levels
	// left are the columns as they were when the row went away, absent as they were
	// when reverts put it back.
	left, absent []rowLevels
	// guest is the presence as it was before another row was given the key of this one,
	// which is gone; nil if there is none.
	guest *levels
	// over reports whether another row of the selection has the key from here on.
	over        bool
	truncations int // how many of those were applied
}

// rowLevels are the levels of a row's columns at a change.
type rowLevels struct {
	by      *writing
	columns map[int]*levels
}

const (
	rowThere = "+"
	rowGone  = "-"
)

// historyWalk goes through the changes of rows, oldest first.
type historyWalk struct {
	p           *planner
	table       *target
	truncations []Change
	all         []*rowHistory
	index       map[string][]*rowHistory // by where the rows are at this point
	raw         map[string][]*rowHistory // by the keys that the table had before it got another primary key
	old         map[string]string        // what keys were before a column of them got another type
	reader      *collapse
}

// begin puts a row where the selection found it.
func (w *historyWalk) begin(r *netRow) {
	h := &rowHistory{row: r, key: r.firstKey, columns: make(map[int]*levels)}
	before := rowThere
	if !r.existed {
		before = rowGone
	}
	h.presence = newLevels(before)
	w.all = append(w.all, h)
	w.index[h.key] = append(w.index[h.key], h)
	if r.oldKey != "" {
		if w.old == nil {
			w.old = make(map[string]string)
		}
		w.old[store.KeyText(r.key...)] = r.oldKey
	}
	if r.rawKey != "" {
		if w.raw == nil {
			w.raw = make(map[string][]*rowHistory)
		}
		w.raw[r.rawKey] = append(w.raw[r.rawKey], h)
	}
}

// levelText is a value as levels compare it.
func levelText(d datum) string {
	switch {
	case !d.known:
		return ""
	case d.text == nil:
		return "n"
	}
	return "v" + string(d.text)
}

// read reads the changes under some keys, each from behind a position.
func (w *historyWalk) read(ctx context.Context, keys map[string]Position) error {
	var last Position
	_, err := collectAll(ctx, w.p.client, "find later changes", w.changes(keys, strings.Join(changeColumns, ", ")), func(row pgx.CollectableRow) (none struct{}, err error) {
		change, err := scanChange(row)
		if err != nil || change.Position == last { // it is there for either of its keys
			return none, err
		}
		last = change.Position
		return none, w.take(ctx, &change)
	})
	if err != nil {
		return err
	}
	for _, h := range w.all {
		w.truncate(h, Position{LSN: maxLSN})
	}
	return nil
}

// changes selects the changes that gave rows a key, took it from them, or left it.
// Each key is looked up by itself: where the statistics of a partition are not there
// yet, the server reads the whole table for a list of keys.
func (w *historyWalk) changes(keys map[string]Position, columns string) sq.Sqlizer {
	texts, lsns, sequences := make([]string, 0, len(keys)), make([]string, 0, len(keys)), make([]int, 0, len(keys))
	for key, behind := range keys {
		texts, lsns, sequences = append(texts, key), append(lsns, behind.LSN.String()), append(sequences, behind.Sequence)
	}
	args := []any{texts, lsns, sequences}
	order := "ORDER BY c.position, c.sequence"
	if strings.HasPrefix(columns, "DISTINCT") {
		order = ""
	}
	var parts []string
	for _, name := range w.p.namesOf(&conflictOrigin{oid: w.table.OID, schema: w.table.Schema, table: w.table.Name}) {
		for _, column := range []string{"primary_key", "previous_key"} {
			parts = append(parts, `(SELECT c.* FROM `+w.p.client.history.Relation("changes")+` AS c
				WHERE c."table" = ? AND c.schema = ? AND c.database = ? AND c.`+column+` = wanted.key
				  AND c.position >= wanted.position::pg_lsn AND (c.position > wanted.position::pg_lsn OR c.sequence > wanted.sequence)
				OFFSET 0)`)
			args = append(args, name.Table, name.Schema, w.p.database)
		}
	}
	return sq.StatementBuilder.PlaceholderFormat(sq.Dollar).Select(columns).Suffix(`
		FROM unnest(?::text[], ?::text[], ?::int[]) AS wanted (key, position, sequence), LATERAL (`+strings.Join(parts, " UNION ALL ")+`) AS c
		`+order, args...)
}

// take applies a change to the rows that it is about.
func (w *historyWalk) take(ctx context.Context, c *Change) error {
	m, err := w.p.atlas.at(ctx, c.Schema, c.Table, c.Position)
	if err != nil || m.target != w.table {
		return err
	}
	w.reader.read(m, &selectedChange{operation: c.Operation, before: c.Before, after: c.After, defect: c.Defect})
	if w.reader.foreign {
		return &UnrevertableError{Table: w.table.label(), Position: c.Position, Reason: foreignReason}
	}
	w.reader.complete()
	key, previous := c.PrimaryKey, c.PreviousKey
	index := w.index
	if !m.keyed {
		var ok bool
		if key, ok = w.reader.keyOf(m, w.reader.image(c.Operation)); !ok {
			index, key = w.raw, c.PrimaryKey
		}
		if previous, ok = w.reader.keyOf(m, w.reader.before); !ok || previous == key || c.Operation != Update {
			previous = ""
		}
	}
	writing := &writing{change: *c, by: writtenByOther, revert: w.p.ours(c)}
	if writing.revert != nil {
		writing.by = writtenByRevert
	}
	w.p.markClaim(&writing.change) // else it would go with what it claims to be of
	if old, ok := w.old[key]; ok && index[key] == nil {
		key = old
	}
	if old, ok := w.old[previous]; ok && index[previous] == nil {
		previous = old
	}
	if c.Operation == Create && writing.revert != nil {
		w.bringBack(index, key, writing)
	}
	from := key
	if previous != "" {
		from = previous
	}
	staying := slices.Clone(index[from])
	if from != key {
		for _, h := range slices.Clone(index[key]) {
			w.truncate(h, c.Position)
			switch {
			case h.presence.top().value != rowGone:
			case w.p.isSelected(c.Position):
				h.apply(w, m, Create, writing)
			default:
				h.receive(writing)
			}
		}
	}
	for _, h := range staying {
		w.truncate(h, c.Position)
		if h.guest != nil && (from != key || c.Operation == Delete) {
			h.dismiss()
			continue
		}
		if h.over || !h.apply(w, m, c.Operation, writing) || from == key {
			continue
		}
		index[from] = slices.DeleteFunc(slices.Clone(index[from]), func(o *rowHistory) bool { return o == h })
		index[key] = append(index[key], h)
		h.key, h.moved, h.movedAt = key, append(h.moved, key), c.Position
	}
	return nil
}

// bringBack looks for a row that one of our reverts puts back under a key that it had
// before it went away: what is undone had given it another, and removed it then. Where
// another row of the selection had the key last, which of the two is back is not told.
func (w *historyWalk) bringBack(index map[string][]*rowHistory, key string, by *writing) {
	if len(index[key]) > 0 {
		return
	}
	for _, h := range w.all {
		n := len(h.left)
		if h.key == key || h.row.firstKey != key || h.guest != nil || n == 0 || h.presence.top().value != rowGone || !by.revert.Of.covers(&h.left[n-1].by.change) {
			continue
		}
		index[h.key] = slices.DeleteFunc(slices.Clone(index[h.key]), func(o *rowHistory) bool { return o == h })
		index[key] = append(index[key], h)
		h.key, h.over = key, false
	}
}

// receive notes that another row has been given the key of this one, which is gone. Also
// where one of our reverts did that, it has not brought this row back.
func (h *rowHistory) receive(by *writing) {
	other := *by
	other.by, other.revert = writtenByOther, nil
	h.guest = h.presence.clone()
	h.presence.write(rowThere, &other)
}

// dismiss notes that the other row has left again.
func (h *rowHistory) dismiss() { h.presence, h.guest = h.guest, nil }

// image is the side of the change that was read last which says what row it is of.
func (c *collapse) image(op Operation) []json.RawMessage {
	if op == Delete {
		return c.before
	}
	return c.after
}

// truncate applies the TRUNCATEs before a position.
func (w *historyWalk) truncate(h *rowHistory, before Position) {
	behind := h.row.traceBehind()
	for ; h.truncations < len(w.truncations); h.truncations++ {
		t := &w.truncations[h.truncations]
		if t.Position.Compare(before) >= 0 {
			return
		}
		if t.Position.Compare(behind) <= 0 || h.presence.top().value == rowGone {
			continue
		}
		if h.guest != nil {
			h.dismiss()
			continue
		}
		writing := &writing{change: *t, by: writtenByOther, revert: w.p.ours(t)}
		if writing.revert != nil {
			writing.by = writtenByRevert
		}
		if h.owns(t.Position) {
			writing.by = writtenBySelection
		}
		h.presence.write(rowGone, writing)
	}
}

// owns reports whether a change is one of those that the row is made of.
func (h *rowHistory) owns(at Position) bool {
	_, found := slices.BinarySearchFunc(h.row.positions, at, Position.Compare)
	return found
}

// apply applies a change to the row, and tells whether it was about it.
func (h *rowHistory) apply(w *historyWalk, m *imageMap, op Operation, by *writing) bool {
	if h.over {
		return false
	}
	if h.owns(by.change.Position) {
		own := *by
		own.by, own.revert = writtenBySelection, nil
		by = &own
	} else if w.p.isSelected(by.change.Position) {
		h.over = true // the selection did it to another row
		return false
	}
	there := h.presence.top().value == rowThere
	switch op {
	case Create:
		if !there && by.by == writtenByRevert {
			h.comeBack(by)
		}
		h.presence.write(rowThere, by)
	case Delete:
		if there {
			h.presence.write(rowGone, by)
			h.left = append(h.left, rowLevels{by, cloneLevels(h.columns)})
			h.leaveAgain(by)
		}
		return true
	default:
		if !there {
			h.presence.write(rowThere, by) // it is not known how
		}
	}
	for at, after := range w.reader.after {
		if after != nil && h.follows(at) {
			h.write(w.reader, m, at, w.reader.before[at], after, op, by)
		}
	}
	if by.by == writtenByRevert {
		for _, l := range h.columns {
			l.takeUnit(l.top().value, by) // in vain: what is undone had left there what it found
		}
	}
	return true
}

// comeBack gives a row that a revert puts back the columns that it had when it went
// away by what is reverted.
func (h *rowHistory) comeBack(by *writing) {
	h.absent = append(h.absent, rowLevels{by, cloneLevels(h.columns)})
	for _, left := range slices.Backward(h.left) {
		if by.revert.Of.covers(&left.by.change) {
			h.columns = cloneLevels(left.columns)
			return
		}
	}
}

// leaveAgain takes back what a revert wrote when it put the row back, if that is undone.
func (h *rowHistory) leaveAgain(by *writing) {
	n := len(h.absent)
	if n == 0 || by.by != writtenByRevert {
		return
	}
	last := h.absent[n-1]
	if by.revert.Of.covers(&last.by.change) || by.revert.Of.repeatable() {
		h.columns, h.absent = last.columns, h.absent[:n-1]
	}
}

// follows reports whether it matters who writes to a column of the row.
func (h *rowHistory) follows(at int) bool {
	r := h.row
	return !r.table.Columns.List[at].Generated && (r.action == Delete || r.action == Update && r.cell(at) != nil)
}

// write notes what a change did to one column.
func (h *rowHistory) write(c *collapse, m *imageMap, at int, before, after json.RawMessage, op Operation, by *writing) {
	changed := op == Create || before == nil || !bytes.Equal(before, after)
	levels := h.columns[at]
	if !changed || levels == nil && by.by != writtenBySelection && h.row.action != Delete {
		return
	}
	text := func(raw json.RawMessage) string {
		defer c.forget(c.arena, c.budget.spent)
		return levelText(c.datum(raw, m.at[at]))
	}
	value := text(after)
	if levels == nil {
		levels = newLevels(text(before))
		h.columns[at] = levels
	}
	if by.by == writtenByOther && op != Create && levels.changedBack(value, by) {
		return
	}
	if op == Create && levels.top().value == value && by.by != writtenBySelection {
		return // as it was when the row went away
	}
	levels.write(value, by)
}

// isElsewhere reports whether the row was given another key behind the selection.
func (h *rowHistory) isElsewhere() bool {
	r := h.row
	return !h.over && h.movedAt.Compare(r.last()) > 0 && h.key != store.KeyText(r.key...) && h.key != r.oldKey && h.key != r.rawKey &&
		(r.printed == nil || h.key != store.KeyText(r.printed...))
}

// conclude notes on the row what its history says, and tells whether the live row is
// ahead of that.
func (h *rowHistory) conclude() (behind bool) {
	r := h.row
	r.later = later{inForce: make(map[int]othersWork, len(h.columns))}
	for at, levels := range h.columns {
		if work, ok := levels.othersWork(); ok {
			r.later.inForce[at] = work
		}
	}
	gone := h.presence.top().value == rowGone
	r.later.elsewhere = !gone && !r.missing && h.isElsewhere()
	r.later.remade = !gone && r.action == Delete && h.presence.others() || !gone && !h.over && r.action == Update && h.presence.othersBehind(r.last())
	behind = gone != r.missing && (h.key == store.KeyText(r.key...) || r.oldKey != "" && h.key == r.oldKey) || r.later.elsewhere
	switch r.action {
	case Create:
		r.later.undone = h.presence.undone()
	case Delete:
		r.later.undone = h.presence.undone()
		behind = behind || len(r.unknown) > 0
		for at := range r.table.Columns.List {
			levels := h.columns[at]
			switch {
			case levels == nil:
			case levels.others():
				r.later.touched = append(r.later.touched, at)
			case levels.top().by == writtenByRevert:
				if c := r.cell(at); c != nil && c.live != nil && levelText(*c.live) == levels.top().value {
					r.later.ours = append(r.later.ours, at)
				}
			}
		}
	default:
		r.later.undone = gone && h.presence.top().by == writtenByRevert
		all := len(r.cells) > 0
		for i := range r.cells {
			c := &r.cells[i]
			levels := h.columns[c.column]
			if levels == nil {
				all = false
				continue
			}
			c.undone = levels.undone()
			if top := levels.top(); c.undone && c.live == nil && top.by == writtenByRevert && !r.missing {
				// A revert has put the selection's value there, in undoing something else.
				c.undone, c.unclear = false, true
			}
			c.interleaved = c.interleaved && levels.others()
			all = all && c.undone
			behind = behind || !r.missing && levels.top().value != levelText(c.seen())
		}
		r.later.undone = r.later.undone || all
	}
	return behind
}
