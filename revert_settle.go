package audit

import (
	"context"
	"fmt"
	"slices"
)

// rowConflicts lists what is wrong between the rows and the live ones, and marks
// the rows that need nothing to be done.
func (p *planner) rowConflicts() []Conflict {
	leaving := leavingKeys(p.rows)
	var found []Conflict
	for _, r := range p.rows {
		found = append(found, r.conflicts(leaving[r.table][joinKey(r.key)])...)
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
			leaving[r.table][joinKey(r.key)] = true
		}
	}
	return leaving
}

// conflicts lists those of one row. leaving tells that the live row under its key
// is one that the revert takes away from there.
func (r *netRow) conflicts(leaving bool) []Conflict {
	var found []Conflict
	add := func(kind ConflictKind, change func(*Conflict)) {
		c := Conflict{Kind: kind, RowRef: r.ref(), row: r, origin: conflictOrigin{
			oid: r.table.oid, schema: r.table.schema, table: r.table.name, key: r.key, after: r.first(), ownRow: true,
		}}
		if r.table.keyless {
			c.origin.key = nil
		}
		change(&c)
		found = append(found, c)
	}
	switch r.action {
	case Create:
		switch {
		case r.missing:
		case leaving:
			r.missing, r.done = true, false
			r.forgetLive()
		case !r.done || r.recreated:
			r.done = false
			add(RowRecreated, func(c *Conflict) { c.origin.made = true })
			return found
		}
		if r.recreated || r.again {
			add(RowRecreated, func(c *Conflict) { c.origin.made = true })
		}
	case Delete:
		if r.table.keyless && r.missing && !r.gone {
			add(RowGone, func(c *Conflict) { c.origin.gone, c.stays = true, true })
			return found
		}
		if r.missing || r.displaced {
			r.done = true
			if r.missing && !r.table.keyless {
				// History tells a row that was removed from one that the role may not see.
				add(RowGone, func(c *Conflict) {
					c.origin.moved, c.origin.unseen = !r.table.hidden, r.table.hidden
					c.origin.gone, c.stays = c.origin.unseen, c.origin.unseen
				})
			}
			return found
		}
	case Update:
		if r.missing || r.displaced {
			r.missing = true
			r.forgetLive()
			add(RowGone, func(c *Conflict) { c.origin.gone, c.stays = true, r.table.keyless && !r.gone })
			return found
		}
		if r.done && !r.recreated {
			return nil
		}
		if r.recreated {
			r.done = false
			add(RowRecreated, func(c *Conflict) { c.origin.made = true })
		}
	}
	for _, lost := range r.lost {
		add(ColumnGone, func(c *Conflict) { c.Column, c.Restore, c.origin.key = lost.name, lost.restore.pointer(), nil })
	}
	if r.action == Create {
		return found
	}
	for i := range r.cells {
		c := &r.cells[i]
		name := r.table.columns.list[c.column].name
		if c.interleaved && !r.done {
			add(ColumnInterleaved, func(k *Conflict) {
				live := c.seen()
				k.Column, k.Restore, k.Live, k.origin.columns = name, c.restore.pointer(), live.pointer(), []string{name}
			})
		} else if c.live != nil && !c.already {
			add(ColumnChanged, func(k *Conflict) {
				k.Column, k.Restore, k.Live, k.origin.columns = name, c.restore.pointer(), c.live.pointer(), []string{name}
			})
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
	asked := make([]conflictOrigin, len(found)) // looking uses them up
	for i := range found {
		asked[i] = found[i].origin
	}
	if err := p.findOrigins(ctx, found); err != nil {
		return false, false, err
	}
	if err := p.findLate(ctx, found, asked); err != nil {
		return false, false, err
	}
	if err := p.spendOn(found); err != nil {
		return false, false, err
	}
	// A row that was to be removed and is gone is done with, unless it was only given
	// another key, or may not be seen.
	found = slices.DeleteFunc(found, func(c Conflict) bool {
		return c.origin.moved && c.Change == nil || c.origin.unseen && c.Change != nil && c.Change.Operation == Delete
	})
	for i := range found {
		o := &found[i].origin
		found[i].row.done = found[i].row.done && !o.moved && !o.unseen
	}
	var extra []Position
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
		case c.Resolution == Cascade && byRow[c.row] == Cascade && !c.blocked:
			extra = append(extra, c.origin.later...)
			p.cascaded = append(p.cascaded, *c)
		}
	}
	// Conflicts of a row that is skipped do not stand in the way.
	for i := range p.conflicts {
		if p.conflicts[i].row.skipped {
			p.conflicts[i].blocked = false
		}
	}
	before := len(p.sel.extra)
	p.sel.extra = append(p.sel.extra, extra...)
	slices.SortFunc(p.sel.extra, Position.Compare)
	p.sel.extra = slices.Compact(p.sel.extra)
	return len(p.sel.extra) > before, true, nil
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

// findLate looks once more, in the places that were asked for at first, for what took
// rows away that were to be removed, when history has all that is committed: somebody
// may have done it just now, while this waited for a lock.
func (p *planner) findLate(ctx context.Context, found []Conflict, asked []conflictOrigin) error {
	var late []Conflict
	var at []int
	for i, c := range found {
		if (c.origin.moved || c.origin.unseen) && c.Change == nil {
			c.origin = asked[i]
			late, at = append(late, c), append(at, i)
		}
	}
	if len(late) == 0 || p.r.asStored {
		return nil
	}
	if err := p.client.awaitCapture(ctx, func(reason error, detail string) error {
		return &HistoryError{Asked: "Now()", Reason: reason, Detail: detail}
	}); err != nil {
		return err
	}
	if err := p.findOrigins(ctx, late); err != nil {
		return err
	}
	for i := range late {
		found[at[i]] = late[i]
	}
	return nil
}

// blocks tells that the conflict stands in the way of the whole revert.
func (c *Conflict) blocks() bool {
	switch c.Resolution {
	case Skip:
		return false
	case Cascade:
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
	m, err := p.atlas.at(ctx, last.Schema, last.Table, last.Position.LSN)
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
		if raw != nil && !r.table.columns.list[at].derived && r.cell(at) == nil {
			r.cells = append(r.cells, cell{column: at, restore: reader.datum(raw, m.at[at])})
		}
	}
	r.key = r.restoredKey()
	r.action, r.existed, r.exists = Create, true, false
	return nil
}
