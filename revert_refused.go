package audit

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/hindsight-go/audit/capture"
	"github.com/hindsight-go/audit/internal/pgcatalog"
)

// check is a condition on the values of a row: a CHECK constraint, or one of a domain.
type check struct {
	name string
	// expression is empty for a column that is NOT NULL and has no default.
	expression string
	columns    []string
	// base is the type that VALUE has in the expression of a domain; empty: it is a
	// constraint of the table.
	base string
	// calls tells that it calls functions or operators that are not the server's own.
	calls bool
}

// callsOthers reports of a constraint k that it calls what is not the server's own, of which
// no dependencies are recorded.
const callsOthers = `EXISTS (SELECT FROM pg_catalog.pg_depend own WHERE own.classid = 'pg_catalog.pg_constraint'::pg_catalog.regclass AND own.objid = k.oid
				AND own.refclassid IN ('pg_catalog.pg_proc'::pg_catalog.regclass, 'pg_catalog.pg_operator'::pg_catalog.regclass))`

// readChecks finds the conditions that rows have to meet. Those over whole rows, system
// columns and generated columns are left to the server.
func readChecks(ctx context.Context, db capture.Querier, oids []uint32, all map[uint32]*constraints) error {
	rows, err := db.Query(ctx, `
		WITH RECURSIVE domains (relid, attnum, attname, oid, base, nulls) AS (
			SELECT a.attrelid, a.attnum, a.attname, t.oid, t.typbasetype, NOT t.typnotnull
			FROM pg_catalog.pg_attribute a
			JOIN pg_catalog.pg_type t ON t.oid = a.atttypid
			WHERE a.attrelid = ANY($1::oid[]) AND a.attnum > 0 AND NOT a.attisdropped AND a.attgenerated = '' AND t.typtype = 'd'
			UNION ALL
			SELECT d.relid, d.attnum, d.attname, t.oid, t.typbasetype, NOT t.typnotnull
			FROM domains d
			JOIN pg_catalog.pg_type t ON t.oid = d.base
			WHERE t.typtype = 'd'),
		bases AS (SELECT d.relid, d.attnum, d.base FROM domains d JOIN pg_catalog.pg_type t ON t.oid = d.base WHERE t.typtype <> 'd')
		SELECT k.conrelid, k.conname::text, pg_catalog.pg_get_expr(k.conbin, k.conrelid),
			array(SELECT a.attname::text FROM pg_catalog.pg_attribute a WHERE a.attrelid = k.conrelid AND a.attnum = ANY(k.conkey)), '', `+callsOthers+`
		FROM pg_catalog.pg_constraint k
		WHERE k.conrelid = ANY($1::oid[]) AND k.contype = 'c' AND coalesce((pg_catalog.to_jsonb(k) ->> 'conenforced')::bool, true) AND k.conkey IS NOT NULL
		  AND NOT EXISTS (SELECT FROM unnest(k.conkey) n LEFT JOIN pg_catalog.pg_attribute a ON a.attrelid = k.conrelid AND a.attnum = n
				WHERE n <= 0 OR a.attgenerated <> '')
		UNION ALL
		SELECT d.relid, c.name, c.expression, ARRAY[d.attname::text], pg_catalog.format_type(b.base, -1), c.calls
		FROM domains d
		JOIN bases b ON b.relid = d.relid AND b.attnum = d.attnum,
		LATERAL (
			SELECT k.conname::text, pg_catalog.pg_get_expr(k.conbin, 0), `+callsOthers+` FROM pg_catalog.pg_constraint k WHERE k.contypid = d.oid AND k.contype = 'c'
			UNION ALL SELECT '', 'VALUE IS NOT NULL', false WHERE NOT d.nulls) AS c (name, expression, calls)
		UNION ALL
		SELECT a.attrelid, '', '', ARRAY[a.attname::text], '', false
		FROM pg_catalog.pg_attribute a
		JOIN pg_catalog.pg_type t ON t.oid = a.atttypid
		WHERE a.attrelid = ANY($1::oid[]) AND a.attnum > 0 AND NOT a.attisdropped AND a.attnotnull
		  AND NOT a.atthasdef AND a.attidentity = '' AND a.attgenerated = '' AND t.typdefault IS NULL
		ORDER BY 1, 2`, oids)
	if err != nil {
		return err
	}
	var oid uint32
	var c check
	_, err = pgx.ForEachRow(rows, []any{&oid, &c.name, &c.expression, &c.columns, &c.base, &c.calls}, func() error {
		all[oid].checks = append(all[oid].checks, c)
		c = check{}
		return nil
	})
	return err
}

// unchecked is a column as one of the type that its domain is over, if that has conditions:
// what is compared need not meet them.
func (t *target) unchecked(at int) *pgcatalog.Column {
	for _, c := range t.checks {
		if c.base != "" && c.columns[0] == t.Columns.List[at].Name {
			bare := t.Columns.List[at]
			bare.TypeName = c.base
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
	mended := g.table.triggers && !p.r.noTriggers
	for _, r := range g.rows {
		for i := range r.cells {
			c := &r.cells[i]
			if column := &g.table.Columns.List[c.column]; column.NotNull && !mended && c.restore.known && c.restore.text == nil && !column.Generated {
				found = append(found, r.refusal("", column.Name))
			}
		}
	}
	var parts, calling []string
	var checks []*check
	s := g.stageArrays()
	for i := range g.table.checks {
		c := &g.table.checks[i]
		part := ""
		switch {
		case c.expression == "":
			if g.action == Create && !mended && !g.touches(c.columns) {
				for _, r := range g.rows { // the column is newer than they are
					found = append(found, r.refusal("", c.columns...))
				}
			}
		case !g.touches(c.columns):
		case c.base != "":
			at := g.table.Columns.Index[c.columns[0]]
			part = fmt.Sprintf(`SELECT v."~n", %d FROM (SELECT s.n AS "~n", s.r%d::%s AS value FROM %s WHERE %s) AS v WHERE (%s) IS FALSE`,
				len(checks), at, c.base, s.from, g.has(slices.Index(g.columns, at)), c.expression)
		case !mended:
			part = fmt.Sprintf(`SELECT "~n", %d FROM %s AS new WHERE (%s) IS FALSE`, len(checks), g.future(s, c.columns), c.expression)
		}
		if part == "" {
			continue
		}
		checks = append(checks, c)
		if c.calls {
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
			refused = append(refused, g.rows[n].refusal(checks[k].name, checks[k].columns...))
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
