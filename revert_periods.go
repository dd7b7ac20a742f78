package audit

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/hindsight-go/audit/internal/pgcatalog"
)

// A foreign key with a PERIOD has no one parent: the periods of all rows with the other
// columns have to cover that of the referencing row together.

// periods are the rows that a PERIOD can be covered by: those that are there and stay,
// and those that the revert brings. Their values are parameters of a statement.
type periods struct {
	f       *pgcatalog.ForeignKey
	leaving string // a condition on the live row p
	coming  []string
}

// periods adds what coveredSQL needs to the parameters of a stage, with coming that of
// the rows that the revert brings, too.
func (p *planner) periods(f *pgcatalog.ForeignKey, s *stage, coming bool) *periods {
	q := &periods{f: f, leaving: "false"}
	if len(f.ParentKey) > 0 {
		keys := make([][]string, len(f.ParentKey))
		for _, r := range p.live[p.atlas.targets[f.ParentOID]] {
			if !p.leaves(r, f) {
				continue
			}
			key := r.key
			if r.printed != nil {
				key = r.printed
			}
			for i := range keys {
				keys[i] = append(keys[i], key[i])
			}
		}
		texts, params := make([]string, len(keys)), make([]string, len(keys))
		for i, name := range f.ParentKey {
			s.args = append(s.args, keys[i])
			texts[i], params[i] = "pg_catalog.concat("+pgcatalog.ColumnIdent("p", name)+")", fmt.Sprintf("$%d::text[]", len(s.args))
		}
		q.leaving = fmt.Sprintf("(%s) IN (SELECT * FROM unnest(%s))", strings.Join(texts, ", "), strings.Join(params, ", "))
	}
	if !coming {
		return q
	}
	for _, g := range p.comingParents(f) {
		parents := g.stageArraysBehind(len(s.args))
		s.args = append(s.args, parents.args...)
		q.coming = append(q.coming, g.future(parents, f.References))
	}
	return q
}

// coveredSQL is the condition that the period of a row is covered by theirs.
func (q *periods) coveredSQL(child string) string {
	period := func(alias string) string { return pgcatalog.ColumnIdent(alias, q.f.References[len(q.f.References)-1]) }
	parts := []string{fmt.Sprintf("SELECT %s FROM %s AS p WHERE %s AND NOT (%s)", period("p"), q.f.ParentIdent(), q.f.Match("p", child), q.leaving)}
	for _, from := range q.coming {
		parts = append(parts, fmt.Sprintf("SELECT %s FROM %s AS p WHERE %s", period("p"), from, q.f.Match("p", child)))
	}
	return fmt.Sprintf("coalesce(%s OPERATOR(pg_catalog.<@) (SELECT pg_catalog.range_agg(y.r) FROM (%s) AS y (r)), false)",
		pgcatalog.ColumnIdent(child, q.f.Columns[len(q.f.Columns)-1]), strings.Join(parts, " UNION ALL "))
}

// orphansOfPeriods is orphans for a foreign key with a PERIOD.
func (p *planner) orphansOfPeriods(ctx context.Context, g *group, f *pgcatalog.ForeignKey) (found []orphan, err error) {
	s := g.stageArrays()
	future := g.future(s, f.Columns)
	texts, given := f.Texts("x")
	rows, err := p.tx.Query(ctx, fmt.Sprintf(`SELECT x."~n", %s FROM %s AS x WHERE %s AND NOT %s`,
		texts, future, given, p.periods(f, s, false).coveredSQL("x")), s.args...)
	if err != nil {
		return nil, err
	}
	var o orphan
	_, err = pgx.ForEachRow(rows, []any{&o.n, &o.values}, func() error {
		if g.action != Update || g.rows[o.n].changes(f.Columns) {
			found = append(found, o)
			p.budget.spend(entryBytes + keyBytes(o.values))
		}
		o = orphan{}
		return p.budget.err()
	})
	return found, err
}

// restorePeriods tells which rows are covered once the revert has brought what it does.
func (p *planner) restorePeriods(ctx context.Context, g *group, f *pgcatalog.ForeignKey, rows []*netRow, covered func(*netRow, Operation)) error {
	coming := p.comingParents(f)
	if len(coming) == 0 {
		return nil
	}
	how := Update
	if slices.ContainsFunc(coming, func(g *group) bool { return g.action == Create }) {
		how = Create
	}
	for _, part := range g.part(rows).chunks() {
		s := part.stageArrays()
		future := part.future(s, f.Columns)
		result, err := p.tx.Query(ctx, fmt.Sprintf(`SELECT x."~n" FROM %s AS x WHERE %s`, future, p.periods(f, s, true).coveredSQL("x")), s.args...)
		if err != nil {
			return err
		}
		var n int32
		if _, err := pgx.ForEachRow(result, []any{&n}, func() error { covered(part.rows[n], how); return nil }); err != nil {
			return err
		}
	}
	return nil
}
