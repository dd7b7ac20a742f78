package audit

import (
	"context"
	"fmt"
	"slices"

	sq "github.com/Masterminds/squirrel"
	"github.com/jackc/pgx/v5"
)

// rowConflicts lists what is wrong between the rows and the live ones, and marks
// the rows that need nothing to be done.
func (p *planner) rowConflicts() []Conflict {
	leaving := leavingKeys(p.rows)
	var found []Conflict
	for _, r := range p.rows {
		found = append(found, r.conflicts(leaving[r.table][r.liveText()])...)
	}
	return found
}

// leavingKeys are the keys of the live rows that a revert takes away from there.
func leavingKeys(rows []*netRow) map[*target]map[string]bool {
	leaving := make(map[*target]map[string]bool)
	for _, r := range rows {
		if !r.missing && !r.displaced && (r.action == Delete || r.keyChanges()) {
			if leaving[r.table] == nil {
				leaving[r.table] = make(map[string]bool)
			}
			leaving[r.table][r.liveText()] = true
		}
	}
	return leaving
}

// conflicts lists those of one row. leaving tells that the live row under its key
// is one that the revert takes away from there.
func (r *netRow) conflicts(leaving bool) []Conflict {
	switch r.action {
	case Create:
		return r.conflictsToPutBack(leaving)
	case Delete:
		return r.conflictsToRemove()
	case Update:
		return r.conflictsToRestore()
	}
	return nil
}

// conflict makes a conflict about the row itself.
func (r *netRow) conflict(kind ConflictKind) Conflict {
	c := Conflict{Kind: kind, RowRef: r.ref(), row: r, origin: conflictOrigin{
		oid: r.table.OID, schema: r.table.Schema, table: r.table.Name, key: r.key, after: r.first(), ownRow: true,
	}}
	if r.table.keyless {
		c.origin.key = nil
	}
	return c
}

// columnConflict makes a conflict about a column of the row.
func (r *netRow) columnConflict(kind ConflictKind, column int, restore, live datum) Conflict {
	c := r.conflict(kind)
	c.Column = r.table.Columns.List[column].Name
	c.Restore, c.Live, c.origin.columns = restore.pointer(), live.pointer(), []string{c.Column}
	return c
}

// lostConflicts lists the columns that are gone.
func (r *netRow) lostConflicts() (found []Conflict) {
	for _, lost := range r.lost {
		c := r.conflict(ColumnGone)
		c.Column, c.Restore, c.origin.key = lost.name, lost.restore.pointer(), nil
		found = append(found, c)
	}
	return found
}

// conflictsToPutBack lists those of a row that the selection removed.
func (r *netRow) conflictsToPutBack(leaving bool) []Conflict {
	if r.later.undone { // and what became of it then is not the selection's doing
		r.done = true
		return nil
	}
	remade := func() Conflict {
		c := r.conflict(RowRecreated)
		c.origin.made = true
		return c
	}
	switch {
	case r.missing:
	case leaving:
		r.missing, r.done = true, false
		r.forgetLive()
	default:
		r.done = r.done && !r.recreated
		return []Conflict{remade()}
	}
	var found []Conflict
	if r.recreated || r.again {
		found = append(found, remade())
	}
	return append(found, r.lostConflicts()...)
}

// conflictsToRemove lists those of a row that the selection made. All that others
// have done to it would go with it.
func (r *netRow) conflictsToRemove() []Conflict {
	if r.missing || r.displaced || r.later.elsewhere {
		r.done = true
		if r.later.undone {
			return nil
		}
		// Where it may only be hidden, history tells whether it was removed.
		c := r.conflict(RowGone)
		c.origin.gone, c.origin.unseen = true, r.table.RowSecurity && !r.table.keyless
		c.stays = r.table.keyless && !r.gone
		return []Conflict{c}
	}
	if r.later.undone { // somebody else has made another one
		r.done = true
		return nil
	}
	var found []Conflict
	if r.later.remade {
		c := r.conflict(RowRecreated)
		c.origin.made = true
		found = append(found, c)
	}
	found = append(found, r.lostConflicts()...)
	for at := range r.table.Columns.List {
		c := r.cell(at)
		switch {
		case r.table.leaves(at), slices.Contains(r.later.ours, at):
		case c != nil && c.live != nil:
			found = append(found, r.columnConflict(ColumnChanged, at, datum{}, *c.live))
		case slices.ContainsFunc(r.unknown, func(u liveColumn) bool { return u.column == at }):
			i := slices.IndexFunc(r.unknown, func(u liveColumn) bool { return u.column == at })
			found = append(found, r.columnConflict(ColumnChanged, at, datum{}, r.unknown[i].live))
		case slices.Contains(r.later.touched, at) && !r.later.remade:
			var live datum
			if c != nil {
				live = c.expect
			}
			found = append(found, r.columnConflict(ColumnChanged, at, datum{}, live))
		}
	}
	return found
}

// conflictsToRestore lists those of a row that the selection changed, and leaves out
// the columns that reverts of ours have restored.
func (r *netRow) conflictsToRestore() []Conflict {
	switch {
	case r.later.undone:
		r.done = true
		return nil
	case r.missing, r.displaced, r.later.elsewhere, r.later.remade && r.keyChanges():
		r.missing = true
		r.forgetLive()
		c := r.conflict(RowGone)
		c.origin.gone, c.stays = true, r.table.keyless && !r.gone
		return []Conflict{c}
	}
	var found []Conflict
	if r.recreated {
		r.done = false
		c := r.conflict(RowRecreated)
		c.origin.made = true
		found = append(found, c)
	}
	found = append(found, r.lostConflicts()...)
	r.cells = slices.DeleteFunc(r.cells, func(c cell) bool { return c.undone })
	r.done = r.done || len(r.cells) == 0 // all of its columns are gone
	for i := range r.cells {
		c := &r.cells[i]
		switch {
		case c.interleaved && !r.done:
			found = append(found, r.columnConflict(ColumnInterleaved, c.column, c.restore, c.seen()))
		case c.live != nil && c.already:
			found = append(found, r.columnConflict(ValueReturned, c.column, c.restore, *c.live))
		case c.live != nil:
			found = append(found, r.columnConflict(ColumnChanged, c.column, c.restore, *c.live))
		case c.unclear, r.later.remade && !c.undone:
			found = append(found, r.columnConflict(ColumnChanged, c.column, c.restore, c.expect))
		}
	}
	return found
}

func (r *netRow) forgetLive() {
	for i := range r.cells {
		r.cells[i].live, r.cells[i].already = nil, false
	}
}

// subject tells the conflicts of a plan apart.
func (c *Conflict) subject() string { return fmt.Sprintf("%p %s", c.row, c.about()) }

// about tells apart what conflicts are about, also in two plans.
func (c *Conflict) about() string {
	other := ""
	if c.Other != nil {
		other = c.Other.identity()
	}
	return fmt.Sprintf("%d %q %q %q %q", c.Kind, c.identity(), c.Column, c.Constraint, other)
}

// settle finds out who is behind conflicts, has the policy decide, and follows
// its decisions. more tells that a cascade has added to the selection, fresh that
// there were conflicts that were not known yet.
func (p *planner) settle(ctx context.Context, found []Conflict) (more, fresh bool, err error) {
	found = slices.DeleteFunc(found, func(c Conflict) bool {
		_, known := p.known[c.subject()]
		return known
	})
	if len(found) == 0 {
		return false, false, nil
	}
	if err := p.findOrigins(ctx, found); err != nil {
		return false, false, err
	}
	if err := p.spendOn(found); err != nil {
		return false, false, err
	}
	for i := range found {
		if c := &found[i]; c.origin.unseen && c.Change != nil {
			c.origin.unseen = false // it is gone, and not only hidden
		}
		p.keepInForce(&found[i])
		found[i].stays = found[i].stays || found[i].origin.unseen
	}
	var transactions, requests []Position
	byRow := make(map[*netRow]Resolution)
	for i := range found {
		c := &found[i]
		c.Resolution = p.r.decide(*c)
		c.blocked = c.blocks()
		if worst, ok := byRow[c.row]; !ok || c.Resolution < worst {
			byRow[c.row] = c.Resolution
		}
		p.known[c.subject()] = len(p.conflicts)
		p.conflicts = append(p.conflicts, *c)
	}
	for i := range found {
		c := &found[i]
		switch {
		case byRow[c.row] == Skip:
			c.row.skipped = true
		case c.Resolution.cascades() && byRow[c.row].cascades() && !c.blocked:
			if c.Resolution == CascadeRequests {
				requests = append(requests, c.origin.later...)
			} else {
				transactions = append(transactions, c.origin.later...)
			}
			p.cascaded = append(p.cascaded, *c)
		}
	}
	// Conflicts of a row that is skipped do not stand in the way.
	for i := range p.conflicts {
		if p.conflicts[i].row.skipped {
			p.conflicts[i].blocked = false
		}
	}
	extra, err := p.wholeUnits(ctx, transactions, requests)
	if err != nil {
		return false, false, err
	}
	before := len(p.sel.extra)
	p.sel.extra = append(p.sel.extra, extra...)
	slices.SortFunc(p.sel.extra, Position.Compare)
	p.sel.extra = slices.Compact(p.sel.extra)
	return len(p.sel.extra) > before, true, nil
}

// wholeUnits lists all changes of the transactions, or requests, that some changes
// belong to: a part of somebody's unit is never reverted by itself.
func (p *planner) wholeUnits(ctx context.Context, transactions, requests []Position) (whole []Position, err error) {
	if len(transactions)+len(requests) == 0 {
		return nil, nil
	}
	lsns := make(map[LSN]bool)
	for _, at := range slices.Concat(transactions, requests) {
		lsns[at.LSN] = true
	}
	add := func(q Query) error {
		b := q.from(p.client, "c.position", "c.sequence").Where(sq.Expr("c.database = ?", p.database))
		_, err := collectAll(ctx, p.client, "find whole units", b, func(row pgx.CollectableRow) (none struct{}, err error) {
			var at Position
			if err := row.Scan(&at.LSN, &at.Sequence); err != nil {
				return none, err
			}
			whole = append(whole, at)
			p.budget.spend(positionBytes)
			return none, p.budget.err()
		})
		return err
	}
	changes, err := p.changesAt(ctx, requests)
	if err != nil {
		return nil, err
	}
	asked := make(map[string]bool)
	for i := range changes {
		id := changes[i].Context.RequestID
		if id == "" || asked[id] {
			continue
		}
		asked[id] = true
		request := Query{client: p.client}.InRequest(id)
		if err := add(request); err != nil {
			return nil, err
		}
		origins, err := p.originsOf(ctx, request)
		if err != nil {
			return nil, err
		}
		p.refuseSeveral(Unit{Kind: "request", ID: id}, origins)
	}
	texts := make([]string, 0, len(lsns))
	for lsn := range lsns {
		texts = append(texts, lsn.String())
	}
	return whole, add(Query{client: p.client}.filter(sq.Expr("c.position = ANY(?::text[]::pg_lsn[])", texts)))
}

// spendOn counts what conflicts take in memory: of one row, there can be any number.
func (p *planner) spendOn(found []Conflict) error {
	counted := make(map[*Change]bool)
	for i := range found {
		c := &found[i]
		p.budget.spend(c.bytes())
		if c.Change != nil && !counted[c.Change] {
			counted[c.Change] = true
			p.budget.spend(c.Change.bytes())
		}
	}
	return p.budget.err()
}

// blocks reports whether the conflict stands in the way of the whole revert.
func (c *Conflict) blocks() bool {
	switch c.Resolution {
	case Skip:
		return false
	case CascadeRequests, Cascade:
		return len(c.origin.later) == 0
	case Overwrite:
		return c.stays || c.Kind == RowGone && c.Change != nil && c.Change.KeyChanged
	default:
		return true
	}
}

// overwrite turns what is to be done to rows that are gone, or were made anew,
// into what restores them nevertheless.
func (p *planner) overwrite(ctx context.Context) error {
	for i := range p.conflicts {
		c := &p.conflicts[i]
		if c.blocked || c.Resolution != Overwrite || c.row.skipped {
			continue
		}
		switch {
		case c.Kind == RowRecreated && c.row.action == Create && !c.row.missing:
			c.row.action = Update
			c.row.cells = slices.DeleteFunc(c.row.cells, func(k cell) bool { return c.row.table.leaves(k.column) })
		case c.Kind == RowGone && c.row.action == Delete: // so be it
		case c.Kind == RowGone && c.row.table.keyless:
			c.row.rebuildContents()
		case c.Kind == RowGone:
			if err := p.rebuild(ctx, c); err != nil {
				return err
			}
		}
	}
	return nil
}

// rebuild makes a whole row to be inserted out of the last that history has of one
// that is gone, with the selection undone in it.
func (p *planner) rebuild(ctx context.Context, c *Conflict) error {
	r := c.row
	last := c.Change
	if last == nil || last.Operation != Delete {
		change, err := Query{client: p.client}.AtPosition(r.last()).InDatabase(p.database).First(ctx)
		if err != nil {
			return err
		}
		last = &change
	}
	m, err := p.atlas.at(ctx, last.Schema, last.Table, last.Position)
	if err != nil {
		return err
	}
	reader := newCollapse(p.atlas, 0, nil, p.budget)
	reader.read(m, &selectedChange{operation: last.Operation, before: last.Before, after: last.After, defect: last.Defect})
	reader.complete()
	values := reader.after
	if last.Operation == Delete {
		values = reader.before
	}
	if !reader.knows(m, values) {
		return &UnrevertableError{Table: r.table.label(), Position: last.Position, Reason: "history does not know the whole of the last that there was of a row that is gone"}
	}
	for at, raw := range values {
		if raw != nil && !r.table.Columns.List[at].Generated && r.cell(at) == nil {
			r.cells = append(r.cells, cell{column: at, restore: r.table.countedOn(at, reader.datum(raw, m.at[at]))})
			r.retyped = r.retyped || m.at[at].as != 0
		}
	}
	if err := p.convert(ctx, []*netRow{r}); err != nil {
		return err
	}
	r.key = r.restoredKey()
	r.action, r.existed, r.exists = Create, true, false
	return nil
}
