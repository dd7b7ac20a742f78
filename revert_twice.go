package audit

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/hindsight-go/audit/internal/pgcatalog"
)

// compareAll is how many rows of a plan are compared with each other, each with all, where
// there is no faster way: by the operators of an exclusion constraint, say. Of more, it is
// the server that finds out.
const compareAll = 3000

// uniqueTwice finds rows that are to have one value of a unique index both: they had it
// one after the other, and somebody gave it to the second in between, or the index was
// made since. The first one cannot have it back.
func (p *planner) uniqueTwice(ctx context.Context) ([]Conflict, error) {
	byTable := make(map[*target][]*netRow)
	var tables []*target
	for _, r := range p.rows {
		if !r.active() || r.table.keyless || r.action == Delete || len(r.table.Unique) == 0 {
			continue
		}
		if byTable[r.table] == nil {
			tables = append(tables, r.table)
		}
		byTable[r.table] = append(byTable[r.table], r)
	}
	var found []Conflict
	for _, t := range tables {
		for _, u := range t.Unique {
			pairs, err := p.twice(ctx, u, byTable[t])
			if err != nil {
				return nil, err
			}
			for _, pair := range pairs {
				first, second := pair[0], pair[1]
				c := Conflict{
					Kind: UniqueTaken, RowRef: first.ref(), Constraint: u.Name, Other: &RowRef{Table: t.label(), Key: second.key},
					row: first, stays: true,
					origin: conflictOrigin{oid: t.OID, schema: t.Schema, table: t.Name, key: second.key, columns: u.Columns},
				}
				p.budget.spend(c.bytes())
				found = append(found, c)
			}
		}
	}
	return found, p.budget.err()
}

// twice pairs each of the rows with the next one that is to have the same value.
func (p *planner) twice(ctx context.Context, u *pgcatalog.UniqueIndex, all []*netRow) (pairs [][2]*netRow, err error) {
	byTexts := u.ByTexts(all[0].table.Columns)
	rows := make([]*netRow, 0, len(all))
	for _, r := range all {
		if r.action == Create || r.changes(u.Columns) {
			rows = append(rows, r)
			// A column that is not restored has the value of the live row.
			byTexts = byTexts && (r.action == Create || r.sets(u.Columns))
		}
	}
	if len(rows) < 2 {
		return nil, nil
	}
	slices.SortStableFunc(rows, func(a, b *netRow) int { return a.first().Compare(b.first()) })
	if !byTexts {
		return p.twiceByOperators(ctx, u, rows)
	}
	holders := make(map[string]*netRow)
	for _, r := range rows {
		values, ok := r.restoredValues(u.Columns)
		if !ok {
			continue
		}
		text := joinKey(values)
		if first := holders[text]; first != nil {
			pairs = append(pairs, [2]*netRow{first, r})
		}
		holders[text] = r
	}
	return pairs, nil
}

// sets reports whether the revert sets all of the columns that are not in the key.
func (r *netRow) sets(columns []string) bool {
	return !slices.ContainsFunc(columns, func(name string) bool {
		return r.cell(r.table.Columns.Index[name]) == nil && !slices.Contains(r.table.Key, name)
	})
}

// twiceByOperators has the operators of the index say which values are one: equal values
// may print otherwise, and an index may be over expressions, or some of the rows.
func (p *planner) twiceByOperators(ctx context.Context, u *pgcatalog.UniqueIndex, rows []*netRow) (pairs [][2]*netRow, err error) {
	isEqual := !slices.ContainsFunc(u.Operators, func(op string) bool { return !strings.HasSuffix(op, ".=)") })
	if !isEqual && len(rows) > compareAll {
		return nil, nil
	}
	place := make(map[*netRow]int, len(rows))
	for i, r := range rows {
		place[r] = i
	}
	var futures []string
	var args []any
	for _, g := range groupRows(rows) {
		g.only(u.Columns)
		s := g.stageArraysBehind(len(args))
		places := make([]int32, len(g.rows))
		for i, r := range g.rows {
			places[i] = int32(place[r])
		}
		args = append(append(args, s.args...), places)
		futures = append(futures, fmt.Sprintf(`SELECT ($%d::int4[])["~n" + 1] AS "~place", f.* FROM %s AS f`, len(args), g.future(s, u.Columns)))
	}
	found, err := p.tx.Query(ctx, twiceSQL(u, strings.Join(futures, " UNION ALL "), len(rows)), args...)
	if err == nil {
		var first, second int32
		_, err = pgx.ForEachRow(found, []any{&first, &second}, func() error {
			pairs = append(pairs, [2]*netRow{rows[first], rows[second]})
			return nil
		})
	}
	return pairs, groupRows(rows[:1])[0].inspectError(err, true)
}

// only leaves just some of the columns in the group: those that any of its rows has.
func (g *group) only(columns []string) {
	g.columns = slices.DeleteFunc(g.columns, func(at int) bool { return !slices.Contains(columns, g.table.Columns.List[at].Name) })
	g.uniform = !slices.ContainsFunc(g.rows, func(r *netRow) bool {
		return slices.ContainsFunc(g.columns, func(at int) bool { return r.cell(at) == nil })
	})
}

// twiceSQL pairs the places of rows that are to have one value of the index.
func twiceSQL(u *pgcatalog.UniqueIndex, futures string, rows int) string {
	values, match := make([]string, len(u.Expressions)), make([]string, len(u.Expressions))
	null, matchNull := make([]string, len(u.Expressions)), make([]string, len(u.Expressions))
	for i, e := range u.Expressions {
		values[i] = fmt.Sprintf(`%s AS "~%d"`, e, i)
		match[i] = fmt.Sprintf(`a."~%d" %s b."~%d"`, i, u.Operators[i], i)
		null[i] = fmt.Sprintf(`a."~%[1]d" IS NULL AND b."~%[1]d" IS NULL`, i)
		matchNull[i] = fmt.Sprintf("(%s OR %s)", match[i], null[i])
	}
	where := ""
	if u.Predicate != "" {
		where = " WHERE " + u.Predicate
	}
	pairs := `SELECT a."~place" AS n, b."~place" AS m FROM wanted a JOIN wanted b ON b."~place" > a."~place" AND `
	sql := pairs + strings.Join(match, " AND ")
	if u.NullsNotDistinct && rows <= compareAll {
		sql += " UNION ALL " + pairs + "(" + strings.Join(null, " OR ") + ") AND " + strings.Join(matchNull, " AND ")
	}
	return fmt.Sprintf(`
		WITH wanted AS MATERIALIZED (SELECT "~place", %s FROM (%s) AS new%s)
		SELECT n, min(m) FROM (%s) AS pairs GROUP BY n ORDER BY n`, strings.Join(values, ", "), futures, where, sql)
}
