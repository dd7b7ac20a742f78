package audit

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"
)

// structure finds the conflicts that are about other rows than the one to be
// reverted: references, parents, unique values. It looks at the rows that are
// still to be reverted, and takes into account what becomes of the others among
// them.
func (p *planner) structure(ctx context.Context) ([]Conflict, error) {
	p.parked, p.deletesLast, p.updatesFirst, p.insertsFirst = nil, false, false, false
	p.leaving, p.coming, p.waiting = nil, nil, nil
	p.live = make(map[*target]map[string]*netRow)
	for _, r := range p.rows {
		if r.active() && r.action != Create {
			index := p.live[r.table]
			if index == nil {
				index = make(map[string]*netRow)
				p.live[r.table] = index
			}
			index[r.liveText()] = r
		}
	}
	defer func(spent int64) { p.budget.spent = spent }(p.budget.spent) // settle counts those that are new
	var found []Conflict
	groups := groupRows(p.activeRows())
	for _, g := range groups {
		for _, part := range g.chunks() {
			conflicts, err := p.refusedValues(ctx, part)
			if err != nil {
				return nil, err
			}
			found = append(found, conflicts...)
		}
	}
	if len(found) > 0 {
		return found, p.budget.err() // the rows cannot be compared with others as long as they are not values
	}
	for _, g := range groups {
		for _, part := range g.chunks() {
			for _, check := range []func(context.Context, *group) ([]Conflict, error){p.referenced, p.parentMissing, p.uniqueTaken} {
				conflicts, err := check(ctx, part)
				if err != nil {
					return nil, err
				}
				found = append(found, conflicts...)
			}
		}
	}
	twice, err := p.uniqueTwice(ctx)
	if err != nil {
		return nil, err
	}
	return append(found, twice...), p.budget.err()
}

// active tells that there is something to be done to the row.
func (r *netRow) active() bool { return r.action != "" && !r.skipped && !r.done }

func (p *planner) activeRows() []*netRow {
	rows := make([]*netRow, 0, len(p.rows))
	for _, r := range p.rows {
		if r.active() {
			rows = append(rows, r)
		}
	}
	return rows
}

// joinKey makes one text of the texts of a key.
func joinKey(key []string) string { return strings.Join(key, "\x00") }

// changes tells that the revert gives one of the columns another value.
func (r *netRow) changes(columns []string) bool {
	for _, name := range columns {
		at, ok := r.table.Columns.Index[name]
		if !ok {
			continue
		}
		if c := r.cell(at); c != nil && c.restore.known && !c.restore.equal(c.seen()) {
			return true
		}
	}
	return false
}

// touches tells that any row of the group has a cell of one of the columns.
func (g *group) touches(columns []string) bool {
	return slices.ContainsFunc(g.columns, func(at int) bool {
		return slices.Contains(columns, g.table.Columns.List[at].Name)
	})
}

// referenced finds rows that reference those which are to be removed, or to be
// given another key.
func (p *planner) referenced(ctx context.Context, g *group) ([]Conflict, error) {
	var found []Conflict
	for _, f := range g.table.children {
		if g.action == Create || g.action == Update && !g.touches(f.refs) {
			continue
		}
		s := g.stageArrays()
		on := make([]string, len(f.columns))
		for i := range f.columns {
			on[i] = fmt.Sprintf("%s %s %s", columnIdent("t", f.refs[i]), f.op(i), columnIdent("c", f.columns[i]))
		}
		covered := "false"
		if f.period {
			covered = p.periods(f, s, true).coveredSQL("c")
		}
		rows, err := p.tx.Query(ctx, fmt.Sprintf(`
			SELECT s.n, %s, %s
			FROM %s
			JOIN %s AS t ON %s
			JOIN %s AS c ON %s`,
			keyArray("c", f.fromKey), covered, s.from, g.table.from(), g.table.on(), f.fromIdent(), strings.Join(on, " AND ")), s.args...)
		if err != nil {
			return nil, wrap("look for references", err)
		}
		var n int32
		var key []string
		var stays bool
		_, err = pgx.ForEachRow(rows, []any{&n, &key, &stays}, func() error {
			r := g.rows[n]
			child := p.inPlan(f.from, key)
			switch {
			case g.action == Update && !r.changes(f.refs):
			case child != nil && (child.action == Delete || child.changes(f.columns)):
				p.leave(r, child, f)
			case stays, g.action == Update && f.onUpdate == "c" && !p.r.noTriggers: // goes along
			default:
				other := p.otherKey(f.from, key)
				found = append(found, Conflict{
					Kind: Referenced, RowRef: r.ref(), Constraint: f.name, Other: &RowRef{Table: f.child(), Key: other},
					row: r, origin: conflictOrigin{oid: f.from, schema: f.fromSchema, table: f.fromName, key: other, columns: f.columns},
					stays: g.action != Delete || f.onDelete == "a" || f.onDelete == "r" || p.r.noTriggers, // nor does the foreign key act then
				})
				p.budget.spend(found[len(found)-1].bytes())
			}
			key = nil
			return p.budget.err()
		})
		if err != nil {
			return nil, wrap("look for references", err)
		}
	}
	return found, nil
}

// inPlan returns the row with a key of a table if the revert does something to it.
func (p *planner) inPlan(oid uint32, key []string) *netRow {
	t := p.atlas.targets[oid]
	if t == nil || len(key) == 0 {
		return nil
	}
	return p.live[t][joinKey(key)]
}

// prospective is the SQL of a column's value as the revert will leave it, with its
// name; t is the live row, where there is one.
func (g *group) prospective(name string) string {
	at := g.table.Columns.Index[name]
	column := &g.table.Columns.List[at]
	i := slices.Index(g.columns, at)
	value := "NULL::" + column.TypeName
	switch {
	case i >= 0 && g.uniform:
		value = fmt.Sprintf("s.r%d::%s", at, column.TypeName)
	case i >= 0 && g.action == Update:
		value = fmt.Sprintf("CASE WHEN %s THEN s.r%d::%s ELSE %s END", g.has(i), at, column.TypeName, columnIdent("t", name))
	case g.action == Update:
		value = columnIdent("t", name)
	}
	if column.Nondeterministic {
		value = "(" + value + ") COLLATE " + column.Collation
	}
	return value + " AS " + pgx.Identifier{name}.Sanitize()
}

// future is a subquery of the rows as the revert will leave them, with some of
// their columns and their number as "~n".
func (g *group) future(s *stage, columns []string) string {
	values := make([]string, len(columns))
	for i, name := range columns {
		values[i] = g.prospective(name)
	}
	from := s.from
	if g.action == Update {
		from += " JOIN " + g.table.from() + " AS t ON " + g.table.on()
	}
	return fmt.Sprintf(`(SELECT s.n AS "~n", %s FROM %s)`, strings.Join(values, ", "), from)
}

// lastKey is the key under which history has the last of the row.
func (p *planner) lastKey(r *netRow) []string {
	if key, ok := p.lastKeys[r]; ok {
		return key
	}
	return r.key
}

// derivedAmong tells that the server computes one of the columns.
func (g *group) derivedAmong(columns []string) bool {
	return slices.ContainsFunc(columns, func(name string) bool { return g.table.Columns.List[g.table.Columns.Index[name]].Generated })
}

// uniqueTaken finds rows whose restored values another row has now. Rows that the
// revert itself takes out of the way are none, but have to go first.
func (p *planner) uniqueTaken(ctx context.Context, g *group) ([]Conflict, error) {
	var found []Conflict
	for _, u := range g.table.unique {
		if g.action == Delete || g.action == Update && !g.touches(u.columns) {
			continue
		}
		rows, err := p.tx.Query(ctx, g.holdersSQL(u), g.stageArrays().args...)
		if err != nil {
			return nil, g.inspectError(err, true)
		}
		var n int32
		var key []string
		_, err = pgx.ForEachRow(rows, []any{&n, &key}, func() error {
			if c := p.taken(g, u, g.rows[n], slices.Clone(key)); c != nil {
				found = append(found, *c)
				p.budget.spend(c.bytes())
			}
			key = nil
			return p.budget.err()
		})
		if err != nil {
			return nil, g.inspectError(err, true)
		}
	}
	return found, nil
}

// holdersSQL finds the live rows that have what rows of the group are to have.
func (g *group) holdersSQL(u *uniqueIndex) string {
	s := g.stageArrays()
	values, match := make([]string, len(u.expressions)), make([]string, len(u.expressions))
	null, matchNull := make([]string, len(u.expressions)), make([]string, len(u.expressions))
	for i, e := range u.expressions {
		values[i] = fmt.Sprintf(`%s AS "~%d"`, e, i)
		match[i] = fmt.Sprintf(`w."~%d" %s h."~%d"`, i, u.ops[i], i)
		null[i] = fmt.Sprintf(`w."~%d" IS NULL`, i)
		matchNull[i] = fmt.Sprintf(`(%s OR w."~%d" IS NULL AND h."~%d" IS NULL)`, match[i], i, i)
	}
	where := ""
	if u.predicate != "" {
		where = " WHERE " + u.predicate
	}
	from := fmt.Sprintf(`
		SELECT w."~n", h."~key"
		FROM (SELECT "~n", %[1]s FROM %[2]s AS new%[3]s) w
		JOIN (SELECT %[4]s AS "~key", %[1]s FROM %[5]s AS h%[3]s) h ON `,
		strings.Join(values, ", "), g.future(s, u.columns), where, keyArray("h", g.table.Key), g.table.from())
	sql := from + strings.Join(match, " AND ")
	if u.nulls {
		// Apart from the others, for which there are better joins.
		sql += " UNION ALL " + from + "(" + strings.Join(null, " OR ") + ") AND " + strings.Join(matchNull, " AND ")
	}
	return sql
}

// taken judges a live row that has the value which r is to have.
func (p *planner) taken(g *group, u *uniqueIndex, r *netRow, holder []string) *Conflict {
	if g.action == Update && (joinKey(holder) == r.liveText() || !r.changes(u.columns)) {
		return nil
	}
	other := p.live[g.table][joinKey(holder)]
	switch {
	case other != nil && other.action == Delete, other != nil && other.changes(u.columns):
		if u.deferrable {
			// Two rows may have one key then, but a statement finds them by it.
			p.updatesFirst = p.updatesFirst || u.primary && g.action == Create && other.action == Update
			return nil
		}
		if g.action == Create && other.action == Update {
			p.updatesFirst = true
		}
		p.park(other, u, g.action)
		return nil
	case g.action == Create && !r.missing && joinKey(holder) == r.liveText():
		return nil // the row itself, created again: a conflict of its own
	}
	holder = p.otherKey(g.table.OID, holder)
	return &Conflict{
		Kind: UniqueTaken, RowRef: r.ref(), Constraint: u.name, Other: &RowRef{Table: g.table.label(), Key: holder},
		row: r, stays: true,
		origin: conflictOrigin{oid: g.table.OID, schema: g.table.Schema, table: g.table.Name, key: holder, columns: u.columns},
	}
}
