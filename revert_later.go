package audit

import (
	"context"
	"slices"

	sq "github.com/Masterminds/squirrel"
	"github.com/jackc/pgx/v5"

	"github.com/hindsight-go/audit/internal/history"
	"github.com/hindsight-go/audit/internal/pgcatalog"
	"github.com/hindsight-go/audit/store"
)

// The live rows say what is there, history says whose it is. Of each row that is not
// just as the selection left it, that is to be removed, or that one of our reverts
// has touched since, the changes behind the selection are followed: what is still in
// force of the selection, and what others have done.

// later is what the changes behind the selection have made of a row.
type later struct {
	// undone reports whether nothing of what the selection did to the row is in force.
	undone bool
	// remade reports whether others have removed the row and made it anew.
	remade bool
	// elsewhere reports whether the row has another key by now, and another row the one that
	// it had.
	elsewhere bool
	// touched are the columns of a row to be removed that others have written to.
	touched []int
	// ours are those that hold what one of our reverts has left, and nobody else.
	ours []int
	// inForce is what is in force of others, by the columns of which history tells.
	inForce map[int]othersWork
}

// othersWork is where changes of others are that are in force in a column, oldest first, and
// the last of them; nil if there are none.
type othersWork struct {
	at   []Position
	last *Change
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
// it. One that holds what the selection left may be another one under the same key.
func (p *planner) mayHaveLater(r *netRow) bool { return r.action != Create || p.mustTrace(r) }

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
			for _, key := range []string{r.rawKey, r.oldKey} {
				if key != "" {
					keys[key] = r.last()
				}
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
		return !p.mustTrace(r) && !later[store.KeyText(p.lastKey(r)...)] && !later[r.rawKey] && !later[r.oldKey] &&
			!slices.ContainsFunc(truncations, func(c Change) bool { return c.Position.Compare(r.last()) > 0 })
	}), nil
}

// findReverts reads which reverts of ours there were since the selection began, and
// which of the rows in question they wrote to.
func (p *planner) findReverts(ctx context.Context) error {
	p.reverts, p.reverted = make(map[string]store.Revert), make(map[pgcatalog.Name]map[string]bool)
	if len(p.rows) == 0 {
		return nil
	}
	entries, err := p.client.history.Records.RevertsSince(ctx, p.database, p.firstSelected.LSN)
	if err != nil || len(entries) == 0 {
		return history.OpError("look for reverts", err)
	}
	var documents []string
	var transactions []int64
	for _, entry := range entries {
		p.reverts[entry.ID] = entry
		document, err := filterJSON(map[string]any{revertIDName: entry.ID})
		if err != nil {
			return history.OpError("look for reverts", err)
		}
		if p.r.unit != (Unit{Kind: "revert", ID: entry.ID}) { // else all of it is selected
			documents, transactions = append(documents, document), append(transactions, int64(entry.TransactionID))
		}
	}
	known := make(map[pgcatalog.Name]bool)
	var schemas, tables []string
	for _, t := range p.atlas.targets {
		for _, name := range p.namesOf(&conflictOrigin{oid: t.OID, schema: t.Schema, table: t.Name}) {
			if !known[name] {
				known[name] = true
				schemas, tables = append(schemas, name.Schema), append(tables, name.Table)
			}
		}
	}
	sql := sq.StatementBuilder.PlaceholderFormat(sq.Dollar).Select("c.schema", `c."table"`, "c.primary_key", "coalesce(c.previous_key, c.primary_key)").Suffix(`
		FROM unnest(?::text[], ?::bigint[]) AS wanted (document, transaction_id), LATERAL (
			SELECT c.schema, c."table", c.primary_key, c.previous_key
			FROM `+p.client.history.Relation("changes")+` AS c
			WHERE c.context IS NOT NULL AND c.context @> wanted.document::jsonb AND c.transaction_id = wanted.transaction_id
			  AND c.database = ? AND c.position >= ?::pg_lsn AND c.primary_key IS NOT NULL
			  AND (c.schema, c."table") IN (SELECT * FROM unnest(?::text[], ?::text[]))
			OFFSET 0) AS c`, documents, transactions, p.database, p.firstSelected.LSN.String(), schemas, tables)
	_, err = collectAll(ctx, p.client, "look for reverts", sql, func(row pgx.CollectableRow) (none struct{}, err error) {
		var name pgcatalog.Name
		var key, previous string
		if err := row.Scan(&name.Schema, &name.Table, &key, &previous); err != nil {
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

// touchedByReverts reports whether a revert of ours has written to the row since the
// selection began.
func (p *planner) touchedByReverts(r *netRow) bool {
	if len(p.reverted) == 0 {
		return false
	}
	for _, name := range p.namesOf(&conflictOrigin{oid: r.table.OID, schema: r.table.Schema, table: r.table.Name}) {
		keys := p.reverted[name]
		if keys[store.KeyText(r.key...)] || keys[store.KeyText(p.lastKey(r)...)] || keys[store.KeyText(r.restoredKey()...)] || r.rawKey != "" && keys[r.rawKey] || r.oldKey != "" && keys[r.oldKey] {
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
		if r.oldKey != "" {
			want(store.KeyText(r.key...), r.traceBehind())
		}
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
	for _, name := range p.namesOf(&conflictOrigin{oid: t.OID, schema: t.Schema, table: t.Name}) {
		names = append(names, pgcatalog.Qualified(name.Schema, name.Table))
	}
	q := Query{client: p.client}.InDatabase(p.database).ForTable(names...).Operations(Truncate).OldestFirst()
	q = q.filter(sq.Expr("c.position >= ?::pg_lsn", p.firstSelected.LSN.String()))
	changes, err := q.List(ctx)
	return slices.DeleteFunc(changes, func(c Change) bool { return truncatesPart(&c.Defect) }), err
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
