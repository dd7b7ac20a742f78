package audit

import (
	"context"
	"errors"
	"fmt"
	"slices"

	sq "github.com/Masterminds/squirrel"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgtype"

	"github.com/hindsight-go/audit/internal/pgcatalog"
	"github.com/hindsight-go/audit/internal/wal"
	"github.com/hindsight-go/audit/store"
)

// directRows is from how many rows on a revert is first tried with statements that
// compare and write at once, or put back without comparing. For fewer, locking them in the
// order of their keys first costs nothing, and never meets another revert halfway.
const directRows = 500

// errDiffers ends a direct attempt: some row is not as it is expected.
var errDiffers = errors.New("audit: a row is not as expected")

// direct tries to write without looking first: one INSERT for each table and set of
// columns, of rows that are put back, and one UPDATE for each table, of the rows that are as
// the selection left them, or as the plan saw them. That is all there is to a revert if all
// rows are so and the server takes them: what depends on them, its constraints tell. Else it
// leaves the transaction as it was, for the revert to look at the rows one by one.
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
		if !a.plain(groupRows(p.rows), len(p.rows)) {
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
	}
	if plan.Already != nil || len(plan.Blocked()) > 0 || !a.plainPlan(plan) {
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
	if replaced, err := p.replaced(ctx, plan.p.rows); replaced || err != nil {
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

// laterRead is how many changes behind the selection are read for each of its rows, to
// know whether one of them was removed or renamed since.
const laterRead = 10

// replaced reports whether a row that would be restored was removed since, or given another key,
// so that the one under its key is another, or that there are too many later changes to
// tell. The row itself may hold just what the selection left.
func (p *planner) replaced(ctx context.Context, rows []*netRow) (bool, error) {
	type wanted struct {
		behind LSN
		keys   map[string]bool
	}
	tables := make(map[*target]*wanted)
	for _, r := range rows {
		if r.action != Update {
			continue
		}
		w := tables[r.table]
		if w == nil {
			w = &wanted{behind: maxLSN, keys: make(map[string]bool)}
			tables[r.table] = w
		}
		w.behind = min(w.behind, r.last().LSN)
		for _, key := range []string{store.KeyText(p.lastKey(r)...), r.rawKey, r.oldKey} {
			w.keys[key] = true
		}
	}
	for t, w := range tables {
		for _, name := range p.namesOf(&conflictOrigin{oid: t.OID, schema: t.Schema, table: t.Name}) {
			limit := laterRead * len(rows)
			sql := sq.StatementBuilder.PlaceholderFormat(sq.Dollar).Select("c.operation", "coalesce(c.primary_key, '')", "coalesce(c.previous_key, '')").
				From(p.client.history.Relation("changes")+" AS c").
				Where(`c."table" = ? AND c.schema = ? AND c.database = ? AND c.position > ?::pg_lsn`, name.Table, name.Schema, p.database, w.behind.String()).
				Limit(uint64(limit))
			read, found := 0, false
			_, err := collectAll(ctx, p.client, "look for rows that were replaced", sql, func(row pgx.CollectableRow) (none struct{}, err error) {
				var operation, key, previous string
				if err := row.Scan(&operation, &key, &previous); err != nil {
					return none, err
				}
				read++
				switch Operation(operation) {
				case Truncate:
					found = true
				case Delete:
					found = found || w.keys[key]
				default:
					found = found || previous != "" && w.keys[previous]
				}
				return none, nil
			})
			if err != nil || found || read == limit {
				return true, err
			}
		}
	}
	return false, nil
}

// isForAnotherWay reports whether the ordinary way may do better, or knows better what to
// say.
func isForAnotherWay(err error) bool {
	var pg *pgconn.PgError
	return errors.Is(err, errDiffers) || errors.As(err, &pg) && !isTransient(pg.Code)
}

// plainPlan reports whether a plan, of many rows, only has statements of which PostgreSQL itself
// tells whether they find all as the plan saw it.
func (a *applier) plainPlan(p *Plan) bool {
	groups := make([]*group, len(p.p.steps))
	for i, s := range p.p.steps {
		if s.side {
			return false
		}
		groups[i] = s.group
	}
	return a.plain(groups, p.Inserts+p.Updates+p.Deletes)
}

// plain tells the same of groups, which have to have all of the rows.
func (a *applier) plain(groups []*group, rows int) bool {
	found := 0
	for _, g := range groups {
		switch {
		case !g.plain(), !a.isEnforced(g.table) && (g.action == Create || g.isDependedOn()):
			return false
		case g.table.Triggers && (len(groups) > 1 || !a.env.printsAlike(g)):
			return false // a trigger may write to the rows of another statement
		}
		found += len(g.rows)
	}
	return found > 0 && found == rows && rows >= a.client.directRows
}

// isEnforced reports whether the server refuses whatever would violate a foreign key of the
// table, from it or to it.
func (a *applier) isEnforced(t *target) bool {
	return !t.Unenforced && a.env.home[triggerRole] != "replica"
}

// plain reports whether the rows are put back or restored, and that the server would refuse what
// other rows stand in the way of, instead of doing something to those.
func (g *group) plain() bool {
	t := g.table
	if g.action == Delete || t.keyless || t.Triggers && g.action == Create {
		return false
	}
	if t.Deferrable && (g.action == Create || g.touches(t.Key)) { // two rows can have one key for a moment
		return false
	}
	if slices.ContainsFunc(t.Children, func(f *pgcatalog.ForeignKey) bool {
		return f.OnUpdate != "a" && f.OnUpdate != "r" && g.action == Update && g.touches(f.References)
	}) {
		return false
	}
	for _, at := range g.columns {
		if c := &t.Columns.List[at]; g.action == Update && c.Kind.Base == wal.JSON && c.TypeOID != pgtype.JSONBOID {
			return false
		}
	}
	return !slices.ContainsFunc(g.rows, func(r *netRow) bool {
		return r.retyped || r.missing && g.action != Create || r.recreated || r.displaced || r.again || len(r.lost) > 0 ||
			slices.ContainsFunc(r.cells, func(c cell) bool {
				return !c.restore.known || g.action == Update && (c.interleaved || !c.seen().known)
			})
	})
}

// isDependedOn reports whether anything else depends on the columns that are restored.
func (g *group) isDependedOn() bool {
	return slices.ContainsFunc(g.columns, func(at int) bool { return g.table.dependsOn(g.table.Columns.List[at].Name) })
}

// dependsOn reports whether a key, a reference, a unique index or an exclusion constraint
// is about the column.
func (t *target) dependsOn(column string) bool {
	return slices.Contains(t.Key, column) ||
		slices.ContainsFunc(t.Parents, func(f *pgcatalog.ForeignKey) bool { return slices.Contains(f.Columns, column) }) ||
		slices.ContainsFunc(t.Children, func(f *pgcatalog.ForeignKey) bool { return slices.Contains(f.References, column) }) ||
		slices.ContainsFunc(t.Unique, func(u *pgcatalog.UniqueIndex) bool { return slices.Contains(u.Columns, column) })
}

// doGuarded puts rows back, or restores those of a step that are as expected, and gives
// errDiffers if not all of them are. Where there are no triggers that would look for the
// application's settings, texts are compared with ours; functions in constraints and
// generated columns find what they name.
func (a *applier) doGuarded(ctx context.Context, g *group, staged *stage) error {
	settings, sql := a.env.guarded, ""
	switch {
	case g.action == Create:
		settings, sql = a.env.theirs, g.insertSQL(staged)
	case g.table.Triggers:
		settings, sql = a.env.theirs, g.guardedSQL(staged)
	default:
		sql = g.guardedSQL(staged)
	}
	if err := a.env.set(ctx, a.tx, settings); err != nil {
		return err
	}
	tag, err := a.tx.Exec(ctx, sql, staged.args...)
	if err != nil {
		return g.applyError(err)
	}
	if int(tag.RowsAffected()) != len(g.rows) {
		return errDiffers
	}
	if err := a.env.pinned(ctx, a.tx); err != nil || !g.table.Triggers {
		return err
	}
	return a.noteEarly(ctx, g, staged)
}

// printsAlike reports whether the values of a group's columns print under the application's
// settings as under ours.
func (e *environment) printsAlike(g *group) bool {
	return e.theirs["datestyle"] == e.pins["datestyle"] && e.theirs["timezone"] == e.pins["timezone"] &&
		e.theirs["intervalstyle"] == e.pins["intervalstyle"] && e.theirs["bytea_output"] == e.pins["bytea_output"] &&
		e.theirs["extra_float_digits"] == e.pins["extra_float_digits"] ||
		!slices.ContainsFunc(g.columns, func(at int) bool { return !g.table.Columns.List[at].PrintsWithoutSettings() })
}

// guardedSQL is updateSQL for those rows that are as expected.
func (g *group) guardedSQL(s *stage) string {
	sql := g.updateSQL(s)
	for i, at := range g.columns {
		c := &g.table.Columns.List[at]
		condition := sameSQL(c, pgcatalog.ColumnIdent("t", c.Name), fmt.Sprintf("s.e%d", at), false)
		if !g.uniform {
			condition = "(NOT " + g.has(i) + " OR " + condition + ")"
		}
		sql += " AND " + condition + " IS TRUE" // without it, the texts would be hashed like a key
	}
	return sql
}
