package audit

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/hindsight-go/audit/internal/wal"
)

// directRows is from how many rows on a revert is first tried with statements that
// compare and write at once. For fewer, locking them in the order of their keys
// first costs nothing, and never meets another revert halfway.
const directRows = 500

// errDiffers ends a direct attempt: some row is not as it is expected.
var errDiffers = errors.New("audit: a row is not as expected")

// direct tries to write without looking first: one UPDATE for each table, of the
// rows that are as the selection left them, or as the plan saw them. That is all
// there is to a revert if all rows are so, and only columns are restored that
// nothing else in the database depends on. Else it leaves the transaction as it was,
// for the revert to look at the rows one by one.
func (a *applier) direct(ctx context.Context, p *planner, plan *Plan) (done bool, err error) {
	if a.r.noTriggers {
		return false, nil
	}
	defer func() {
		if !done { // a plan that is blocked has none
			p.steps = nil
		}
	}()
	if plan == nil {
		if err := p.collapse(ctx); err != nil {
			return false, err
		}
		p.collapsed = true
		if !plain(groupRows(p.rows), len(p.rows), a.client.directRows) {
			return false, nil
		}
		if err := p.findReverts(ctx); err != nil {
			return false, err
		}
		if slices.ContainsFunc(p.rows, p.touchedByReverts) { // what the values mean, history tells
			return false, nil
		}
		if plan, err = p.finish(ctx); err != nil {
			return false, nil //nolint:nilerr // conflicts come first, and rows that are skipped
		}
	} else if plan.Already != nil || len(plan.Blocked()) > 0 || !plan.plain(a.client.directRows) {
		return false, nil
	}
	if a.r.hash != "" && a.r.hash != plan.Hash || plan.Refused() != nil {
		return false, nil
	}
	if past, err := p.pastWithKey(ctx); past != nil || err != nil {
		return false, err
	}
	if past, err := p.pastOfUnit(ctx); past != nil || err != nil {
		return false, err
	}
	before := *a
	a.p, a.plan, a.guarded = plan.p, plan, true
	a.result = &Result{Of: a.r.unit, Plan: plan, Unchanged: plan.Unchanged, Skipped: plan.Skipped}
	err = a.behindSavepoint(ctx, func() error { return a.write(ctx) }, isForAnotherWay)
	if err == nil || !isForAnotherWay(err) {
		return err == nil, err
	}
	stages := a.stages
	*a = before
	a.stages = stages
	return false, nil
}

// isForAnotherWay tells that the ordinary way may do better, or knows better what to
// say.
func isForAnotherWay(err error) bool {
	var pg *pgconn.PgError
	return errors.Is(err, errDiffers) || errors.As(err, &pg) && !isTransient(pg.Code)
}

// plain tells that a plan only restores columns of rows, many of them, on which
// nothing else depends, and of which PostgreSQL itself can tell whether they are as
// the plan saw them.
func (p *Plan) plain(atLeast int) bool {
	groups := make([]*group, len(p.p.steps))
	for i, s := range p.p.steps {
		if s.side {
			return false
		}
		groups[i] = s.group
	}
	return plain(groups, p.Inserts+p.Updates+p.Deletes, atLeast)
}

// plain tells the same of groups, which have to have all of the rows.
func plain(groups []*group, rows, atLeast int) bool {
	found := 0
	for _, g := range groups {
		if !g.plain() {
			return false
		}
		found += len(g.rows)
	}
	return found > 0 && found == rows && rows >= atLeast
}

func (g *group) plain() bool {
	t := g.table
	if g.action != Update || t.keyless || t.triggers {
		return false
	}
	for _, at := range g.columns {
		c := &t.columns.list[at]
		if c.kind.Base == wal.JSON && c.typeOID != jsonbOID || t.dependsOn(c.name) {
			return false
		}
	}
	return !slices.ContainsFunc(g.rows, func(r *netRow) bool {
		return r.retyped || r.missing || r.recreated || r.displaced || len(r.lost) > 0 ||
			slices.ContainsFunc(r.cells, func(c cell) bool { return c.interleaved || !c.restore.known || !c.seen().known })
	})
}

const jsonbOID = 3802

// dependsOn tells that a key, a reference, a unique index or an exclusion constraint
// is about the column.
func (t *target) dependsOn(column string) bool {
	return slices.Contains(t.key, column) ||
		slices.ContainsFunc(t.parents, func(f *foreignKey) bool { return slices.Contains(f.columns, column) }) ||
		slices.ContainsFunc(t.children, func(f *foreignKey) bool { return slices.Contains(f.refs, column) }) ||
		slices.ContainsFunc(t.unique, func(u *uniqueIndex) bool { return slices.Contains(u.columns, column) })
}

// doGuarded writes those rows of a step that are as expected, and gives errDiffers if
// not all of them are. There are no triggers that would look for the application's
// settings, and texts compare only with ours; but functions in constraints and
// generated columns find what they name.
func (a *applier) doGuarded(ctx context.Context, g *group, staged *stage) error {
	if err := a.env.set(ctx, a.tx, a.env.guarded); err != nil {
		return err
	}
	tag, err := a.tx.Exec(ctx, g.guardedSQL(staged), staged.args...)
	if err != nil {
		return g.applyError(err)
	}
	if int(tag.RowsAffected()) != len(g.rows) {
		return errDiffers
	}
	return a.env.pinned(ctx, a.tx)
}

// guardedSQL is updateSQL for those rows that are as expected.
func (g *group) guardedSQL(s *stage) string {
	sql := g.updateSQL(s)
	for i, at := range g.columns {
		c := &g.table.columns.list[at]
		condition := sameSQL(c, columnIdent("t", c.name), fmt.Sprintf("s.e%d", at), false)
		if !g.uniform {
			condition = "(NOT " + g.has(i) + " OR " + condition + ")"
		}
		sql += " AND " + condition + " IS TRUE" // without it, the texts would be hashed like a key
	}
	return sql
}
