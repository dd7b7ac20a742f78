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

// The live rows say what is there, history says whose it is. Of each row that is not
// just as the selection left it, that is to be removed, or that one of our reverts
// has touched since, the changes behind the selection are followed: what is still in
// force of the selection, and what others have done.

// rowHistory is what became of one row since the selection began.
type rowHistory struct {
	row *netRow
	key string // where the row is at this point
	// moved are the keys that it was given, the ones that it has lost again included:
	// it may have been written to under any of them.
	moved []string
	// presence tells whether there is a row, columns holds the values of those that
	// matter.
	presence *levels
	columns  map[int]*levels
	// left are the columns as they were when the row went away, absent as they were
	// when reverts put it back.
	left, absent []rowLevels
	// over tells that another row of the selection has the key from here on.
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

// later is what the changes behind the selection have made of a row.
type later struct {
	// undone tells that nothing of what the selection did to the row is in force.
	undone bool
	// remade tells that others have removed the row and made it anew.
	remade bool
	// touched are the columns of a row to be removed that others have written to.
	touched []int
}

// traceLater finds out whose the values are in the rows that are not just as the
// selection left them. If the live rows are ahead of history, it waits for that once.
func (p *planner) traceLater(ctx context.Context) error {
	for try := 0; ; try++ {
		behind, err := p.traceRows(ctx)
		if err != nil || !behind || try > 0 || p.r.asStored {
			p.forgetUntouched(err)
			return err
		}
		if err := p.client.awaitCapture(ctx, p.notNow); err != nil {
			return err
		}
		if err := p.findReverts(ctx); err != nil {
			return err
		}
	}
}

// forgetUntouched drops the unknown columns of rows that nobody has written to: the
// columns were filled when they were added. Without waiting that cannot be told.
func (p *planner) forgetUntouched(err error) {
	if err != nil || p.r.asStored {
		return
	}
	for _, r := range p.rows {
		if len(r.unknown) > 0 && !r.table.keyless {
			r.unknown = slices.DeleteFunc(r.unknown, func(u liveColumn) bool { return !slices.Contains(r.later.touched, u.column) })
		}
	}
}

func (p *planner) notNow(reason error, detail string) error {
	return &HistoryError{Asked: "Now()", Reason: reason, Detail: detail}
}

// traceRows follows the rows that have to be, and tells whether history is behind
// the live rows.
func (p *planner) traceRows(ctx context.Context) (behind bool, err error) {
	byTable := make(map[*target][]*netRow)
	var order []*target
	for _, r := range p.rows {
		if r.action == "" || r.table.keyless || !p.mayHaveLater(r) {
			continue
		}
		if byTable[r.table] == nil {
			order = append(order, r.table)
		}
		byTable[r.table] = append(byTable[r.table], r)
	}
	for _, t := range order {
		truncations, err := p.truncationsOf(ctx, t)
		if err != nil {
			return false, err
		}
		for part := range slices.Chunk(byTable[t], originChunk) {
			if part, err = p.withLater(ctx, t, part, truncations); err != nil {
				return false, err
			}
			histories, err := p.trace(ctx, t, part, truncations)
			if err != nil {
				return false, err
			}
			for _, h := range histories {
				behind = h.conclude() || behind
			}
		}
	}
	return behind, p.keylessLater(ctx)
}

// mayHaveLater reports whether the live row alone does not say what is to be done to
// it.
func (p *planner) mayHaveLater(r *netRow) bool { return r.action == Delete || p.mustTrace(r) }

// mustTrace reports whether history has to say what is to be done to a row.
func (p *planner) mustTrace(r *netRow) bool {
	switch {
	case r.recreated, r.displaced, len(r.unknown) > 0, p.touchedByReverts(r):
		return true
	case r.action == Create:
		return !r.missing
	}
	return r.missing || slices.ContainsFunc(r.cells, func(c cell) bool { return c.live != nil || c.interleaved })
}

// withLater leaves out the rows that need not be traced, and of which history has
// nothing behind the selection. Most rows are so.
func (p *planner) withLater(ctx context.Context, t *target, rows []*netRow, truncations []Change) ([]*netRow, error) {
	keys := make(map[string]Position)
	for _, r := range rows {
		if !p.mustTrace(r) {
			keys[store.KeyText(p.lastKey(r)...)] = r.last()
			if r.rawKey != "" {
				keys[r.rawKey] = r.last()
			}
		}
	}
	if len(keys) == 0 {
		return rows, nil
	}
	walk := &historyWalk{p: p, table: t}
	found, err := collectAll(ctx, p.client, "find later changes", walk.changes(keys, "DISTINCT wanted.key"), pgx.RowTo[string])
	if err != nil {
		return nil, err
	}
	later := make(map[string]bool, len(found))
	for _, key := range found {
		later[key] = true
	}
	return slices.DeleteFunc(slices.Clone(rows), func(r *netRow) bool {
		return !p.mustTrace(r) && !later[store.KeyText(p.lastKey(r)...)] && !later[r.rawKey] &&
			!slices.ContainsFunc(truncations, func(c Change) bool { return c.Position.Compare(r.last()) > 0 })
	}), nil
}

// findReverts reads which reverts of ours there were since the selection began, and
// which of the rows in question they wrote to.
func (p *planner) findReverts(ctx context.Context) error {
	p.reverts, p.reverted = make(map[string]store.Revert), make(map[tableName]map[string]bool)
	if len(p.rows) == 0 {
		return nil
	}
	entries, err := p.client.history.RevertsSince(ctx, p.database, p.firstSelected.LSN)
	if err != nil || len(entries) == 0 {
		return wrap("look for reverts", err)
	}
	var documents []string
	var transactions []int64
	for _, entry := range entries {
		p.reverts[entry.ID] = entry
		document, err := filterJSON(map[string]any{revertIDName: entry.ID})
		if err != nil {
			return wrap("look for reverts", err)
		}
		if p.r.unit != (Unit{Kind: "revert", ID: entry.ID}) { // else all of it is selected
			documents, transactions = append(documents, document), append(transactions, int64(entry.TransactionID))
		}
	}
	known := make(map[tableName]bool)
	var schemas, tables []string
	for _, t := range p.atlas.targets {
		for _, name := range p.namesOf(&conflictOrigin{oid: t.oid, schema: t.schema, table: t.name}) {
			if !known[name] {
				known[name] = true
				schemas, tables = append(schemas, name.schema), append(tables, name.table)
			}
		}
	}
	sql := sq.StatementBuilder.PlaceholderFormat(sq.Dollar).Select("c.schema", `c."table"`, "c.primary_key", "coalesce(c.previous_key, c.primary_key)").Suffix(`
		FROM unnest(?::text[], ?::bigint[]) AS wanted (document, transaction_id), LATERAL (
			SELECT c.schema, c."table", c.primary_key, c.previous_key
			FROM `+p.client.table("changes")+` AS c
			WHERE c.context IS NOT NULL AND c.context @> wanted.document::jsonb AND c.transaction_id = wanted.transaction_id
			  AND c.database = ? AND c.position >= ?::pg_lsn AND c.primary_key IS NOT NULL
			  AND (c.schema, c."table") IN (SELECT * FROM unnest(?::text[], ?::text[]))
			OFFSET 0) AS c`, documents, transactions, p.database, p.firstSelected.LSN.String(), schemas, tables)
	_, err = collectAll(ctx, p.client, "look for reverts", sql, func(row pgx.CollectableRow) (none struct{}, err error) {
		var name tableName
		var key, previous string
		if err := row.Scan(&name.schema, &name.table, &key, &previous); err != nil {
			return none, err
		}
		keys := p.reverted[name]
		if keys == nil {
			keys = make(map[string]bool)
			p.reverted[name] = keys
		}
		if !keys[key] {
			p.budget.spend(entryBytes + headerBytes + len(key))
		}
		keys[key], keys[previous] = true, true
		return none, p.budget.err()
	})
	return err
}

// touchedByReverts tells that a revert of ours has written to the row since the
// selection began.
func (p *planner) touchedByReverts(r *netRow) bool {
	if len(p.reverted) == 0 {
		return false
	}
	for _, name := range p.namesOf(&conflictOrigin{oid: r.table.oid, schema: r.table.schema, table: r.table.name}) {
		keys := p.reverted[name]
		if keys[store.KeyText(r.key...)] || keys[store.KeyText(p.lastKey(r)...)] || keys[store.KeyText(r.restoredKey()...)] || r.rawKey != "" && keys[r.rawKey] {
			return true
		}
	}
	return false
}

// ours returns the revert that made a change, if that is one of ours: the register
// knows it, and its transaction.
func (p *planner) ours(c *Change) *PastRevert {
	past, ok := c.Revert()
	if !ok {
		return nil
	}
	entry, known := p.reverts[past.ID]
	if !known || entry.TransactionID != c.TransactionID {
		return nil
	}
	past.Of = Unit{Kind: entry.UnitKind, ID: entry.UnitID}
	return &past
}

// trace follows rows of one table. Where a row goes on under a key that was not
// looked for, it begins again with that key, too.
func (p *planner) trace(ctx context.Context, t *target, rows []*netRow, truncations []Change) ([]*rowHistory, error) {
	keys := make(map[string]Position) // and behind which position changes under them matter
	want := func(key string, behind Position) {
		if before, ok := keys[key]; key != "" && (!ok || behind.Compare(before) < 0) {
			keys[key] = behind
		}
	}
	for _, r := range rows {
		want(r.firstKey, r.traceBehind())
		want(r.rawKey, r.traceBehind())
	}
	for range maxCascades {
		walk := &historyWalk{p: p, table: t, truncations: truncations, index: make(map[string][]*rowHistory), reader: newCollapse(p.atlas, 0, nil, unlimited())}
		for _, r := range rows {
			walk.begin(r)
		}
		if err := walk.read(ctx, keys); err != nil {
			return nil, err
		}
		known := len(keys)
		for _, h := range walk.all {
			for _, key := range h.moved {
				want(key, h.row.traceBehind())
			}
		}
		if len(keys) == known {
			return walk.all, nil
		}
	}
	return nil, &UnrevertableError{Table: t.label(), Reason: "a row has been given another key more often than can be followed"}
}

// traceBehind is the position behind which the changes of the row are read.
func (r *netRow) traceBehind() Position {
	first := r.first()
	return Position{LSN: first.LSN, Sequence: first.Sequence - 1}
}

// truncationsOf lists the TRUNCATEs of a table since the selection began, oldest
// first. Of one partition it is not known which rows were in it.
func (p *planner) truncationsOf(ctx context.Context, t *target) ([]Change, error) {
	var names []string
	for _, name := range p.namesOf(&conflictOrigin{oid: t.oid, schema: t.schema, table: t.name}) {
		names = append(names, qualifiedName(name.schema, name.table))
	}
	q := Query{client: p.client}.InDatabase(p.database).ForTable(names...).Operations(Truncate).OldestFirst()
	q = q.filter(sq.Expr("c.position >= ?::pg_lsn", p.firstSelected.LSN.String()))
	changes, err := q.List(ctx)
	return slices.DeleteFunc(changes, func(c Change) bool { return truncatesPart(&c.Defect) }), err
}

// historyWalk goes through the changes of rows, oldest first.
type historyWalk struct {
	p           *planner
	table       *target
	truncations []Change
	all         []*rowHistory
	index       map[string][]*rowHistory // by where the rows are at this point
	raw         map[string][]*rowHistory // by the keys that the table had before it got another primary key
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
	for _, name := range w.p.namesOf(&conflictOrigin{oid: w.table.oid, schema: w.table.schema, table: w.table.name}) {
		for _, column := range []string{"primary_key", "previous_key"} {
			parts = append(parts, `(SELECT c.* FROM `+w.p.client.table("changes")+` AS c
				WHERE c."table" = ? AND c.schema = ? AND c.database = ? AND c.`+column+` = wanted.key
				  AND c.position >= wanted.position::pg_lsn AND (c.position > wanted.position::pg_lsn OR c.sequence > wanted.sequence)
				OFFSET 0)`)
			args = append(args, name.table, name.schema, w.p.database)
		}
	}
	return sq.StatementBuilder.PlaceholderFormat(sq.Dollar).Select(columns).Suffix(`
		FROM unnest(?::text[], ?::text[], ?::int[]) AS wanted (key, position, sequence), LATERAL (`+strings.Join(parts, " UNION ALL ")+`) AS c
		`+order, args...)
}

// take applies a change to the rows that it is about.
func (w *historyWalk) take(ctx context.Context, c *Change) error {
	m, err := w.p.atlas.at(ctx, c.Schema, c.Table, c.Position.LSN)
	if err != nil || m.target != w.table {
		return err
	}
	w.reader.read(m, &selectedChange{operation: c.Operation, before: c.Before, after: c.After, defect: c.Defect})
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
	from := key
	if previous != "" {
		from = previous
	}
	staying := slices.Clone(index[from])
	if from != key {
		for _, h := range slices.Clone(index[key]) {
			w.truncate(h, c.Position)
			if h.presence.top().value == rowGone { // another row has come there
				h.apply(w, m, Create, writing)
			}
		}
	}
	for _, h := range staying {
		w.truncate(h, c.Position)
		if h.over || !h.apply(w, m, c.Operation, writing) || from == key {
			continue
		}
		index[from] = slices.DeleteFunc(slices.Clone(index[from]), func(o *rowHistory) bool { return o == h })
		index[key] = append(index[key], h)
		h.key, h.moved = key, append(h.moved, key)
	}
	return nil
}

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

// owns tells that a change is one of those that the row is made of.
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

// follows tells that it matters who writes to a column of the row.
func (h *rowHistory) follows(at int) bool {
	r := h.row
	return !r.table.columns.list[at].derived && (r.action == Delete || r.action == Update && r.cell(at) != nil)
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
	if op == Create && levels.top().value == value && by.by != writtenBySelection {
		return // as it was when the row went away
	}
	levels.write(value, by)
}

// conclude notes on the row what its history says, and tells whether the live row is
// ahead of that.
func (h *rowHistory) conclude() (behind bool) {
	r := h.row
	r.later = later{}
	gone := h.presence.top().value == rowGone
	behind = gone != r.missing && h.key == store.KeyText(r.key...)
	switch r.action {
	case Create:
		r.later.undone = h.presence.undone()
	case Delete:
		r.later.undone = h.presence.undone()
		r.later.remade = !gone && h.presence.others()
		behind = behind || len(r.unknown) > 0
		for at := range r.table.columns.list {
			if levels := h.columns[at]; levels != nil && levels.others() {
				r.later.touched = append(r.later.touched, at)
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

// keylessLater notes of rows without a key whether a revert of ours was the last that
// changed them.
func (p *planner) keylessLater(ctx context.Context) error {
	if len(p.reverts) == 0 {
		return nil
	}
	byLast := make(map[Position][]*netRow)
	var last []Position
	for _, rows := range keylessRows(p.rows) {
		for _, r := range rows {
			if len(r.trail) > 0 {
				at := r.trail[len(r.trail)-1]
				byLast[at], last = append(byLast[at], r), append(last, at)
			}
		}
	}
	slices.SortFunc(last, Position.Compare)
	changes, err := p.changesAt(ctx, slices.Compact(last))
	if err != nil {
		return err
	}
	for i := range changes {
		if p.ours(&changes[i]) == nil {
			continue
		}
		for _, r := range byLast[changes[i].Position] {
			r.later.undone = true
		}
	}
	return nil
}
