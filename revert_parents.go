package audit

import (
	"context"
	"fmt"
	"slices"

	"github.com/jackc/pgx/v5"

	"github.com/hindsight-go/audit/internal/pgcatalog"
)

// orphan is a row whose parent is not there to stay.
type orphan struct {
	n      int32
	values []string // by which it references its parent
	live   bool     // the parent is there, and the revert takes it away
}

// parentMissing finds rows that would reference one that is not there.
func (p *planner) parentMissing(ctx context.Context, g *group) ([]Conflict, error) {
	var found []Conflict
	for _, f := range g.table.Parents {
		if g.action == Delete || !g.touches(f.Columns) || g.derivedAmong(f.Columns) {
			continue
		}
		find := p.orphans
		if f.Period {
			find = p.orphansOfPeriods
		}
		orphans, err := find(ctx, g, f)
		if err != nil {
			return nil, g.inspectError(err, true)
		}
		restored, err := p.restorations(ctx, g, f, orphans)
		if err != nil {
			return nil, g.inspectError(err, true)
		}
		for i, o := range orphans {
			r := g.rows[o.n]
			if restored[i] != "" {
				p.come(g.action, r, f, restored[i])
				continue
			}
			c := Conflict{
				Kind: ParentMissing, RowRef: r.ref(), Constraint: f.Name, Other: &RowRef{Table: f.ParentName(), Key: o.values},
				row: r, stays: true, origin: p.parentOrigin(g, r, f, o.values),
			}
			if o.live { // it is the revert that takes it away
				c.origin = *c.origin.instead
			}
			found = append(found, c)
			p.budget.spend(c.bytes())
			if err := p.budget.err(); err != nil {
				return nil, err
			}
		}
	}
	return found, nil
}

// orphans finds the rows of a group that would reference none of the rows which are
// there and stay.
func (p *planner) orphans(ctx context.Context, g *group, f *pgcatalog.ForeignKey) (found []orphan, err error) {
	s := g.stageArrays()
	texts, given := f.Texts("x")
	sql := fmt.Sprintf(`
		SELECT x."~n", %s, NULL::text[]
		FROM %s AS x
		WHERE %s AND NOT EXISTS (SELECT FROM %s AS p WHERE %s)`, texts, g.future(s, f.Columns), given, f.ParentIdent(), f.Match("p", "x"))
	if p.parentsLeave(f) {
		sql = fmt.Sprintf(`
		SELECT x."~n", %s, CASE WHEN p.tableoid IS NOT NULL THEN %s END
		FROM %s AS x
		LEFT JOIN %s AS p ON %s
		WHERE %s`, texts, pgcatalog.KeyArray("p", f.ParentKey), g.future(s, f.Columns), f.ParentIdent(), f.Match("p", "x"), given)
	}
	rows, err := p.tx.Query(ctx, sql, s.args...)
	if err != nil {
		return nil, err
	}
	var o orphan
	var key []string
	_, err = pgx.ForEachRow(rows, []any{&o.n, &o.values, &key}, func() error {
		r := g.rows[o.n]
		o.live = key != nil
		if (!o.live || p.leaves(p.inPlan(f.ParentOID, key), f)) && (g.action != Update || r.changes(f.Columns)) {
			found = append(found, o)
			p.budget.spend(entryBytes + keyBytes(o.values))
		}
		o, key = orphan{}, nil
		return p.budget.err()
	})
	return found, err
}

// leaves reports whether the revert takes a live row away from where it is referenced.
func (p *planner) leaves(r *netRow, f *pgcatalog.ForeignKey) bool {
	return r != nil && !r.missing && (r.action == Delete || r.changes(f.References))
}

// parentsLeave reports whether the revert takes away any of the rows that can be referenced.
func (p *planner) parentsLeave(f *pgcatalog.ForeignKey) bool {
	for _, r := range p.live[p.atlas.targets[f.ParentOID]] {
		if p.leaves(r, f) {
			return true
		}
	}
	return false
}

// restorations tells for each of the orphans how the revert itself brings its parent
// back, if it does.
func (p *planner) restorations(ctx context.Context, g *group, f *pgcatalog.ForeignKey, orphans []orphan) ([]Operation, error) {
	how := make([]Operation, len(orphans))
	byRow := make(map[*netRow]int)
	var left []*netRow
	for i, o := range orphans {
		if how[i] = p.restores(f, o.values); how[i] == "" || f.Period {
			byRow[g.rows[o.n]] = i
			left = append(left, g.rows[o.n])
		}
	}
	if len(left) == 0 {
		return how, nil
	}
	if f.Period {
		return how, p.restorePeriods(ctx, g, f, left, func(r *netRow, by Operation) { how[byRow[r]] = by })
	}
	for _, parents := range p.comingParents(f) {
		for _, part := range parents.chunks() {
			for _, children := range g.part(left).chunks() {
				x := children.stageArrays()
				q := part.stageArraysBehind(len(x.args))
				rows, err := p.tx.Query(ctx, fmt.Sprintf(`SELECT x."~n" FROM %s AS x JOIN %s AS p ON %s`,
					children.future(x, f.Columns), part.future(q, f.References), f.Match("p", "x")), slices.Concat(x.args, q.args)...)
				if err != nil {
					return nil, err
				}
				var n int32
				if _, err := pgx.ForEachRow(rows, []any{&n}, func() error { how[byRow[children.rows[n]]] = part.action; return nil }); err != nil {
					return nil, err
				}
			}
		}
	}
	return how, nil
}

// comingParents are the rows that the revert puts where they can be referenced.
func (p *planner) comingParents(f *pgcatalog.ForeignKey) []*group {
	var rows []*netRow
	for _, r := range p.rows {
		if r.table.OID == f.ParentOID && r.active() && (r.action == Create || r.action == Update && !r.missing && r.changes(f.References)) {
			rows = append(rows, r)
		}
	}
	return groupRows(rows)
}

// parentOrigin says where to look for what took a parent away, or else for what had
// the row reference it.
func (p *planner) parentOrigin(g *group, r *netRow, f *pgcatalog.ForeignKey, values []string) conflictOrigin {
	return conflictOrigin{
		oid: f.ParentOID, schema: f.ParentSchema, table: f.ParentTable, key: f.ParentKeyOf(values), gone: true,
		instead: &conflictOrigin{oid: g.table.OID, schema: g.table.Schema, table: g.table.Name, key: p.lastKey(r), columns: f.Columns},
	}
}

// restores tells how the revert itself brings back a row with just these texts in the
// referenced columns, if it does.
func (p *planner) restores(f *pgcatalog.ForeignKey, values []string) Operation {
	if p.restored == nil {
		p.restored = make(map[*pgcatalog.ForeignKey]map[string]Operation)
	}
	index, ok := p.restored[f]
	if !ok {
		index = make(map[string]Operation)
		for _, r := range p.rows {
			if r.table.OID == f.ParentOID && r.active() && (r.action == Create || r.action == Update && !r.missing) {
				if key, ok := r.restoredValues(f.References); ok {
					index[joinKey(key)] = r.action
				}
			}
		}
		p.restored[f] = index
	}
	return index[joinKey(values)]
}

// restoredValues returns what some columns will have, if the revert sets them.
func (r *netRow) restoredValues(columns []string) ([]string, bool) {
	values := make([]string, len(columns))
	for i, name := range columns {
		at := r.table.Columns.Index[name]
		c := r.cell(at)
		k := slices.Index(r.table.Key, name)
		switch {
		case c != nil && c.restore.known && c.restore.text != nil:
			values[i] = string(c.restore.text)
		case c == nil && k >= 0 && k < len(r.key):
			values[i] = r.key[k]
		default:
			return nil, false
		}
	}
	return values, true
}
