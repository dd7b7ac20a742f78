package audit

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/hindsight-go/audit/internal/history"
	"github.com/hindsight-go/audit/internal/pgcatalog"
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

// active reports whether there is something to be done to the row.
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

// changes reports whether the revert gives one of the columns another value.
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

// touches reports whether any row of the group has a cell of one of the columns.
func (g *group) touches(columns []string) bool {
	return slices.ContainsFunc(g.columns, func(at int) bool {
		return slices.Contains(columns, g.table.Columns.List[at].Name)
	})
}

// referenced finds rows that reference those which are to be removed, or to be
// given another key.
func (p *planner) referenced(ctx context.Context, g *group) ([]Conflict, error) {
	var found []Conflict
	for _, f := range g.table.Children {
		if g.action == Create || g.action == Update && !g.touches(f.References) {
			continue
		}
		s := g.stageArrays()
		on := make([]string, len(f.Columns))
		for i := range f.Columns {
			on[i] = fmt.Sprintf("%s %s %s", pgcatalog.ColumnIdent("t", f.References[i]), f.Operator(i), pgcatalog.ColumnIdent("c", f.Columns[i]))
		}
		covered := "false"
		if f.Period {
			covered = p.periods(f, s, true).coveredSQL("c")
		}
		rows, err := p.tx.Query(ctx, fmt.Sprintf(`
			SELECT s.n, %s, %s
			FROM %s
			JOIN %s AS t ON %s
			JOIN %s AS c ON %s`,
			pgcatalog.KeyArray("c", f.ChildKey), covered, s.from, g.table.from(), g.table.on(), f.ChildIdent(), strings.Join(on, " AND ")), s.args...)
		if err != nil {
			return nil, history.OpError("look for references", err)
		}
		var n int32
		var key []string
		var stays bool
		_, err = pgx.ForEachRow(rows, []any{&n, &key, &stays}, func() error {
			r := g.rows[n]
			child := p.inPlan(f.ChildOID, key)
			switch {
			case g.action == Update && !r.changes(f.References):
			case child != nil && (child.action == Delete || child.changes(f.Columns)):
				p.leave(r, child, f)
			case stays, g.action == Update && f.OnUpdate == "c" && !p.r.noTriggers: // goes along
			default:
				other := p.otherKey(f.ChildOID, key)
				found = append(found, Conflict{
					Kind: Referenced, RowRef: r.ref(), Constraint: f.Name, Other: &RowRef{Table: f.ChildName(), Key: other},
					row: r, origin: conflictOrigin{oid: f.ChildOID, schema: f.ChildSchema, table: f.ChildTable, key: other, columns: f.Columns},
					stays: g.action != Delete || f.OnDelete == "a" || f.OnDelete == "r" || p.r.noTriggers, // nor does the foreign key act then
				})
				p.budget.spend(found[len(found)-1].bytes())
			}
			key = nil
			return p.budget.err()
		})
		if err != nil {
			return nil, history.OpError("look for references", err)
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
		value = fmt.Sprintf("CASE WHEN %s THEN s.r%d::%s ELSE %s END", g.has(i), at, column.TypeName, pgcatalog.ColumnIdent("t", name))
	case g.action == Update:
		value = pgcatalog.ColumnIdent("t", name)
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

// derivedAmong reports whether the server computes one of the columns.
func (g *group) derivedAmong(columns []string) bool {
	return slices.ContainsFunc(columns, func(name string) bool { return g.table.Columns.List[g.table.Columns.Index[name]].Generated })
}

// uniqueTaken finds rows whose restored values another row has now. Rows that the
// revert itself takes out of the way are none, but have to go first.
func (p *planner) uniqueTaken(ctx context.Context, g *group) ([]Conflict, error) {
	var found []Conflict
	for _, u := range g.table.Unique {
		if g.action == Delete || g.action == Update && !g.touches(u.Columns) {
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
func (g *group) holdersSQL(u *pgcatalog.UniqueIndex) string {
	s := g.stageArrays()
	values, match := make([]string, len(u.Expressions)), make([]string, len(u.Expressions))
	null, matchNull := make([]string, len(u.Expressions)), make([]string, len(u.Expressions))
	for i, e := range u.Expressions {
		values[i] = fmt.Sprintf(`%s AS "~%d"`, e, i)
		match[i] = fmt.Sprintf(`w."~%d" %s h."~%d"`, i, u.Operators[i], i)
		null[i] = fmt.Sprintf(`w."~%d" IS NULL`, i)
		matchNull[i] = fmt.Sprintf(`(%s OR w."~%d" IS NULL AND h."~%d" IS NULL)`, match[i], i, i)
	}
	where := ""
	if u.Predicate != "" {
		where = " WHERE " + u.Predicate
	}
	from := fmt.Sprintf(`
		SELECT w."~n", h."~key"
		FROM (SELECT "~n", %[1]s FROM %[2]s AS new%[3]s) w
		JOIN (SELECT %[4]s AS "~key", %[1]s FROM %[5]s AS h%[3]s) h ON `,
		strings.Join(values, ", "), g.future(s, u.Columns), where, pgcatalog.KeyArray("h", g.table.Key), g.table.from())
	sql := from + strings.Join(match, " AND ")
	if u.NullsNotDistinct {
		// Apart from the others, for which there are better joins.
		sql += " UNION ALL " + from + "(" + strings.Join(null, " OR ") + ") AND " + strings.Join(matchNull, " AND ")
	}
	return sql
}

// taken judges a live row that has the value which r is to have.
func (p *planner) taken(g *group, u *pgcatalog.UniqueIndex, r *netRow, holder []string) *Conflict {
	if g.action == Update && (joinKey(holder) == r.liveText() || !r.changes(u.Columns)) {
		return nil
	}
	other := p.live[g.table][joinKey(holder)]
	switch {
	case other != nil && other.action == Delete, other != nil && other.changes(u.Columns):
		if u.Deferrable {
			// Two rows may have one key then, but a statement finds them by it.
			p.updatesFirst = p.updatesFirst || u.Primary && g.action == Create && other.action == Update
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
		Kind: UniqueTaken, RowRef: r.ref(), Constraint: u.Name, Other: &RowRef{Table: g.table.label(), Key: holder},
		row: r, stays: true,
		origin: conflictOrigin{oid: g.table.OID, schema: g.table.Schema, table: g.table.Name, key: holder, columns: u.Columns},
	}
}
