package audit

import (
	"slices"

	"github.com/hindsight-go/audit/internal/pgcatalog"
)

// link is the reference of a row through a foreign key that has to go before
// something else is done, or that can only come after it.
type link struct {
	row *netRow
	key *pgcatalog.ForeignKey
	// together reports whether the key changes in the same statement.
	together bool
}

// leave notes that a live row in the plan references one that is to be removed, or
// to be given another key, and does no longer when all is done.
func (p *planner) leave(parent, child *netRow, f *pgcatalog.ForeignKey) {
	if parent.action == Delete {
		if child.action == Update {
			p.deletesLast = true
			p.waiting = append(p.waiting, link{child, f, false})
		}
		return
	}
	switch {
	case f.ChildOID == f.ParentOID && child.action == Update:
		p.leaving = append(p.leaving, link{child, f, true})
	case f.OnUpdate == "c" && goesAlong(f, parent, child):
	case f.OnUpdate == "c", f.OnUpdate == "n":
		// The server writes to all columns of the reference, the revert may restore
		// some of them.
		if child.action == Update && slices.ContainsFunc(f.Columns, func(name string) bool { return !child.changes([]string{name}) }) {
			p.leaving = append(p.leaving, link{child, f, false})
		}
	case f.OnUpdate == "a" && f.Deferrable: // RESTRICT is never deferred
	default:
		p.leaving = append(p.leaving, link{child, f, false})
	}
}

// deleteFirst empties the references to rows that are removed, instead of removing these
// last, where another row is to have what they hold.
func (p *planner) deleteFirst() {
	needed := slices.ContainsFunc(p.parked, func(k parking) bool { return k.row.action == Delete })
	if !p.deletesLast || !needed || slices.ContainsFunc(p.waiting, func(l link) bool { return l.loose() < 0 }) {
		return
	}
	p.leaving = append(p.leaving, p.waiting...)
	p.deletesLast = false
}

// goesAlong reports whether a row is to reference another one by the key that this is to
// have, as it does by the key that this has now.
func goesAlong(f *pgcatalog.ForeignKey, parent, child *netRow) bool {
	for i, name := range f.Columns {
		ref := f.References[i]
		if child.changes([]string{name}) != parent.changes([]string{ref}) {
			return false
		}
		if !child.changes([]string{name}) {
			continue
		}
		c, p := child.cell(child.table.Columns.Index[name]), parent.cell(parent.table.Columns.Index[ref])
		if !c.restore.equal(p.restore) {
			return false
		}
	}
	return true
}

// come notes that a row is to reference one that the revert brings back, which has
// to be there first.
func (p *planner) come(action Operation, child *netRow, f *pgcatalog.ForeignKey, how Operation) {
	switch {
	case f.Deferrable || action == how && (action == Create || f.ChildOID == f.ParentOID):
	case action == Create:
		p.updatesFirst = true
	default:
		p.insertsFirst = p.insertsFirst || how == Create
		p.coming = append(p.coming, link{child, f, false})
	}
}

// postpone splits an UPDATE into one without the references that can only be set
// when everything else is done, and one that sets them. Either may be nil.
func (g *group) postpone(coming []link) (update, relink *group) {
	late := make(map[*netRow][]int)
	for _, l := range coming {
		for _, name := range l.key.Columns {
			if !slices.Contains(g.table.Key, name) {
				late[l.row] = append(late[l.row], g.table.Columns.Index[name])
			}
		}
	}
	update, relink = &group{table: g.table, action: Update}, &group{table: g.table, action: Update}
	for _, r := range g.rows {
		first := *r
		first.cells = nil
		then := &netRow{table: r.table, key: r.restoredKey(), action: Update, positions: r.positions}
		for _, c := range r.cells {
			if slices.Contains(late[r], c.column) {
				then.cells = append(then.cells, cell{column: c.column, restore: c.restore})
			} else {
				first.cells = append(first.cells, c)
			}
		}
		if len(first.cells) > 0 {
			update.rows = append(update.rows, &first)
		}
		if len(then.cells) > 0 {
			relink.rows = append(relink.rows, then)
		}
	}
	return update.unlessEmpty(), relink.unlessEmpty()
}

func (g *group) unlessEmpty() *group {
	if len(g.rows) == 0 {
		return nil
	}
	g.settle()
	return g
}

// loosen returns UPDATEs that empty references to keys that change, before
// anything else is done. Where such a reference cannot be NULL, the rows that have
// it are to be updated before those that they reference.
func (p *planner) loosen(postponed bool) (steps []step, childrenFirst bool) {
	groups := make(map[*target]*group)
	empty := make(map[*netRow]*netRow)
	for _, l := range p.leaving {
		if l.row.action == Delete && !p.deletesLast || l.together && !(postponed && p.comes(l)) {
			continue
		}
		at := l.loose()
		if at < 0 {
			childrenFirst = childrenFirst || l.row.action == Update
			continue
		}
		g := groups[l.row.table]
		if g == nil {
			g = &group{table: l.row.table, action: Update}
			groups[l.row.table] = g
			steps = append(steps, step{group: g, side: true})
		}
		r := empty[l.row]
		if r == nil {
			r = &netRow{table: l.row.table, key: l.row.key, action: Update, positions: l.row.positions}
			g.rows, empty[l.row] = append(g.rows, r), r
		}
		if r.cell(at) == nil {
			r.cells = append(r.cells, cell{column: at, restore: datum{known: true}})
		}
	}
	for _, s := range steps {
		s.group.settle()
	}
	return steps, childrenFirst
}

// comes reports whether the reference may be set later than in the statement that
// updates its row.
func (p *planner) comes(l link) bool {
	return slices.ContainsFunc(p.coming, func(c link) bool { return c.row == l.row && c.key == l.key })
}

// loose chooses the column that is emptied, which for a row that stays has to be
// one that is set again; -1 if there is none.
func (l link) loose() int {
	t := l.row.table
	for _, name := range l.key.Columns {
		at := t.Columns.Index[name]
		c := &t.Columns.List[at]
		if !c.NotNull && !c.Generated && (l.row.action == Delete || l.row.changes([]string{name})) {
			return at
		}
	}
	return -1
}
