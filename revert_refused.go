package audit

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/hindsight-go/audit/internal/pgcatalog"
)

// unchecked is a column as one of the type that its domain is over, if that has conditions:
// what is compared need not meet them.
func (t *target) unchecked(at int) *pgcatalog.Column {
	for _, c := range t.Checks {
		if c.DomainBase != "" && c.Columns[0] == t.Columns.List[at].Name {
			bare := t.Columns.List[at]
			bare.TypeName = c.DomainBase
			return &bare
		}
	}
	return &t.Columns.List[at]
}

// refusedValues finds values that the table does not take any more, or not beside those that
// others have put into other columns: NULL where a column is NOT NULL now, and what a
// constraint forbids. A trigger BEFORE the statement may mend them, but not what the type
// itself refuses.
func (p *planner) refusedValues(ctx context.Context, g *group) (found []Conflict, err error) {
	if g.action == Delete {
		return nil, nil
	}
	mended := g.table.Triggers && !p.r.noTriggers
	for _, r := range g.rows {
		for i := range r.cells {
			c := &r.cells[i]
			if column := &g.table.Columns.List[c.column]; column.NotNull && !mended && c.restore.known && c.restore.text == nil && !column.Generated {
				found = append(found, r.refusal("", column.Name))
			}
		}
	}
	var parts, calling []string
	var checks []*pgcatalog.Check
	s := g.stageArrays()
	for i := range g.table.Checks {
		c := &g.table.Checks[i]
		part := ""
		switch {
		case c.Expression == "":
			if g.action == Create && !mended && !g.touches(c.Columns) {
				for _, r := range g.rows { // the column is newer than they are
					found = append(found, r.refusal("", c.Columns...))
				}
			}
		case !g.touches(c.Columns):
		case c.DomainBase != "":
			at := g.table.Columns.Index[c.Columns[0]]
			part = fmt.Sprintf(`SELECT v."~n", %d FROM (SELECT s.n AS "~n", s.r%d::%s AS value FROM %s WHERE %s) AS v WHERE (%s) IS FALSE`,
				len(checks), at, c.DomainBase, s.from, g.has(slices.Index(g.columns, at)), c.Expression)
		case !mended:
			part = fmt.Sprintf(`SELECT "~n", %d FROM %s AS new WHERE (%s) IS FALSE`, len(checks), g.future(s, c.Columns), c.Expression)
		}
		if part == "" {
			continue
		}
		checks = append(checks, c)
		if c.CallsOthers {
			calling = append(calling, part)
		} else {
			parts = append(parts, part)
		}
	}
	ask := func(parts []string) error {
		rows, err := p.tx.Query(ctx, strings.Join(parts, " UNION ALL ")+" ORDER BY 1, 2", s.args...)
		if err != nil {
			return err
		}
		var refused []Conflict
		var n, k int32
		_, err = pgx.ForEachRow(rows, []any{&n, &k}, func() error {
			refused = append(refused, g.rows[n].refusal(checks[k].Name, checks[k].Columns...))
			return nil
		})
		if err == nil {
			found = append(found, refused...)
		}
		return err
	}
	if len(parts) > 0 {
		if err := ask(parts); err != nil {
			return nil, g.inspectError(err, true)
		}
	}
	for _, part := range calling {
		if err := p.tried(ctx, func() error { return ask([]string{part}) }); err != nil {
			return nil, g.inspectError(err, true)
		}
	}
	for i := range found {
		p.budget.spend(found[i].bytes())
	}
	return found, p.budget.err()
}

// tried does something that runs functions of the application, which may not work here:
// they find their tables by the application's search_path, or raise errors. Then nothing
// was done: the server decides when the rows are written.
func (p *planner) tried(ctx context.Context, do func() error) error {
	const savepoint = "audit_revert_checks"
	if _, err := p.tx.Exec(ctx, "SAVEPOINT "+savepoint); err != nil {
		return err
	}
	if err := do(); err != nil {
		var refusal *pgconn.PgError
		if !errors.As(err, &refusal) || ctx.Err() != nil || refusal.Code == "57014" {
			return err
		}
		if _, err := p.tx.Exec(ctx, "ROLLBACK TO SAVEPOINT "+savepoint); err != nil {
			return err
		}
	}
	_, err := p.tx.Exec(ctx, "RELEASE SAVEPOINT "+savepoint)
	return err
}

// refusal makes the conflict about values of the row that the table does not take.
func (r *netRow) refusal(constraint string, columns ...string) Conflict {
	c := r.conflict(ValueRefused)
	c.Constraint, c.stays, c.origin.columns = constraint, true, columns
	if len(columns) == 1 {
		c.Column = columns[0]
		if cell := r.cell(r.table.Columns.Index[c.Column]); cell != nil {
			c.Restore = cell.restore.pointer()
			if r.action == Update {
				live := cell.seen()
				c.Live = live.pointer()
			}
		}
	}
	return c
}

// refusalText says what the table does not take, and what can be done.
func (c *Conflict) refusalText() string {
	what := ": the column is NOT NULL, and would have no value"
	if c.Constraint != "" {
		what = fmt.Sprintf(": %s does not take what would be restored", printable(c.Constraint))
	}
	if c.row != nil && c.row.action == Update && c.Column != "" {
		return what + fmt.Sprintf("; Except(%q) leaves it as it is", c.Column)
	}
	return what + "; Skip leaves the row as it is"
}
