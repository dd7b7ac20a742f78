package audit

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/hindsight-go/audit/internal/history"
	"github.com/hindsight-go/audit/internal/pgcatalog"
)

// writeSQL is the statement that does what the group says to all of its rows.
func (g *group) writeSQL(s *stage) string {
	switch g.action {
	case Create:
		return g.insertSQL(s)
	case Delete:
		return fmt.Sprintf("DELETE FROM %s AS t USING %s WHERE %s", g.table.from(), s.from, g.table.on())
	default:
		return g.updateSQL(s)
	}
}

// insertSQL writes identity columns whatever they say, and leaves sequences alone.
func (g *group) insertSQL(s *stage) string {
	names, values := make([]string, len(g.columns)), make([]string, len(g.columns))
	for i, at := range g.columns {
		c := &g.table.Columns.List[at]
		names[i] = pgx.Identifier{c.Name}.Sanitize()
		values[i] = fmt.Sprintf("s.r%d::%s", at, c.TypeName)
	}
	return fmt.Sprintf("INSERT INTO %s (%s) OVERRIDING SYSTEM VALUE SELECT %s FROM %s ORDER BY s.n",
		g.table.Ident(), strings.Join(names, ", "), strings.Join(values, ", "), s.from)
}

func (g *group) updateSQL(s *stage) string {
	set := make([]string, len(g.columns))
	for i, at := range g.columns {
		c := &g.table.Columns.List[at]
		value := fmt.Sprintf("s.r%d::%s", at, c.TypeName)
		if !g.uniform {
			value = fmt.Sprintf("CASE WHEN %s THEN %s ELSE %s END", g.has(i), value, pgcatalog.ColumnIdent("t", c.Name))
		}
		set[i] = pgx.Identifier{c.Name}.Sanitize() + " = " + value
	}
	set = append(set, g.table.countOn("t")...)
	return fmt.Sprintf("UPDATE %s AS t SET %s FROM %s WHERE %s", g.table.from(), strings.Join(set, ", "), s.from, g.table.on())
}

// stage puts the rows of a step where its statement can join them. A role that may
// not make temporary tables gives them as parameters, however many they are.
func (a *applier) stage(ctx context.Context, g *group) (*stage, error) {
	if g.fits() {
		return g.stageArrays(), nil
	}
	var may bool
	if err := a.tx.QueryRow(ctx, "SELECT pg_catalog.has_database_privilege(pg_catalog.current_database(), 'TEMPORARY')").Scan(&may); err != nil {
		return nil, history.OpError("ask for privileges", err)
	}
	if !may {
		return g.stageArrays(), nil
	}
	a.stages++
	return g.stageTable(ctx, a.tx, fmt.Sprintf("audit_revert_%s_%d", a.id[:12], a.stages))
}

// do runs the statement of a step, in the application's environment: its triggers
// find what they look for.
func (a *applier) do(ctx context.Context, s *step) error {
	g := s.group
	staged, err := a.stage(ctx, g)
	if err != nil {
		return err
	}
	if a.guarded {
		return a.doGuarded(ctx, g, staged)
	}
	if err := a.env.application(ctx, a.tx); err != nil {
		return err
	}
	if g.table.keyless && g.action != Create {
		return a.doPlaced(ctx, s, staged)
	}
	tag, err := a.tx.Exec(ctx, g.writeSQL(staged), staged.args...)
	if err != nil {
		return g.applyError(err)
	}
	if err := a.env.pinned(ctx, a.tx); err != nil {
		return err
	}
	if g.table.keyless {
		return a.finishInsert(ctx, g, int(tag.RowsAffected()))
	}
	if int(tag.RowsAffected()) != len(g.rows) {
		// A foreign key's action may have done it already, or have moved the row.
		left, err := a.finishMoved(ctx, g)
		if err != nil {
			return err
		}
		if len(left) > 0 && a.p.takesAlong(g) {
			return &ApplyError{Table: g.table.label(), Action: g.action, cause: errTakenAlong}
		}
		if len(left) > 0 && !(g.table.Triggers && !a.r.noTriggers) {
			return &StaleError{Table: g.table.label(), Key: left[0].Key, Reason: "is not as it was written: a rule of the table, or a policy of row-level security, may keep it from that"}
		}
	}
	if g.table.Triggers && !a.r.noTriggers && g.action != Delete && !s.side {
		return a.noteEarly(ctx, g, staged)
	}
	return nil
}

// takesAlong reports whether a row that is removed may have taken rows of the group along,
// by a foreign key ON DELETE CASCADE: Overwrite removes what is referenced.
func (p *planner) takesAlong(g *group) bool {
	return g.action == Update && slices.ContainsFunc(g.table.Parents, func(f *pgcatalog.ForeignKey) bool {
		return f.OnDelete == "c" && slices.ContainsFunc(p.rows, func(r *netRow) bool { return r.active() && r.action == Delete && r.table.OID == f.ParentOID })
	})
}

// finishMoved writes what is left of an UPDATE to rows that have their restored
// key already: undoing their parent's change of key has cascaded to them. It
// returns the rows that are not as they should be even then.
func (a *applier) finishMoved(ctx context.Context, g *group) ([]AdjustedRow, error) {
	left, err := a.different(ctx, g, nil)
	if err != nil || g.action != Update || len(left) == 0 {
		return left, err
	}
	moved, rows := &group{table: g.table, action: Update}, g.byKey()
	for _, d := range left {
		if r := rows[joinKey(d.Key)]; r != nil && !slices.Equal(r.liveKey(), d.Key) {
			moved.rows = append(moved.rows, r.only(d.Columns))
		}
	}
	if len(moved.rows) < len(left) {
		return left, nil
	}
	moved.settle()
	if err := a.do(ctx, &step{group: moved, side: true}); err != nil {
		return nil, err
	}
	return a.different(ctx, g, nil)
}

func (g *group) applyError(err error) error {
	var pg *pgconn.PgError
	if !errors.As(err, &pg) || isTransient(pg.Code) {
		return history.OpError("write "+g.table.label(), err)
	}
	if strings.HasPrefix(pg.Code, "22") && slices.ContainsFunc(g.rows, func(r *netRow) bool { return r.retyped }) {
		return g.inspectError(err, true)
	}
	return &ApplyError{Table: g.table.label(), Action: g.action, Constraint: pg.ConstraintName, cause: err}
}

// isTransient reports whether an error is not about what is written: the same may go well
// another time.
func isTransient(code string) bool {
	switch code {
	case "40001", "40P01", "57014", "55P03":
		return true
	}
	return strings.HasPrefix(code, "57P") || strings.HasPrefix(code, "08")
}

// isDataError reports whether a value cannot be had in a type.
func isDataError(err error) bool {
	var pg *pgconn.PgError
	return errors.As(err, &pg) && (strings.HasPrefix(pg.Code, "22") || pg.Code == "23514" || pg.Code == "42804" || pg.Code == "42846")
}

// constraints sets those constraints of the tables that can be deferred. With
// restore, those that are deferred by themselves are so again afterwards.
func (a *applier) constraints(ctx context.Context, mode string, restore bool) error {
	var all, deferred []string
	add := func(name string, initially bool) {
		if name == "" || slices.Contains(all, name) {
			return
		}
		all = append(all, name)
		if initially {
			deferred = append(deferred, name)
		}
	}
	for _, t := range a.p.atlas.targets {
		for _, f := range slices.Concat(t.Parents, t.Children) {
			if f.Deferrable {
				add(f.Constraint(), f.Deferred)
			}
		}
		for _, u := range t.Unique {
			if u.Deferrable {
				add(u.Constraint, u.Deferred)
			}
		}
	}
	if len(all) == 0 {
		return nil
	}
	if _, err := a.tx.Exec(ctx, "SET CONSTRAINTS "+strings.Join(all, ", ")+" "+mode); err != nil {
		return a.p.steps[0].group.commitError(history.OpError("check deferred constraints", err))
	}
	if restore && len(deferred) > 0 {
		_, err := a.tx.Exec(ctx, "SET CONSTRAINTS "+strings.Join(deferred, ", ")+" DEFERRED")
		return history.OpError("defer constraints", err)
	}
	return nil
}

// validate checks the foreign keys that were off.
func (a *applier) validate(ctx context.Context) error {
	checked := make(map[*pgcatalog.ForeignKey]bool)
	for _, t := range a.p.atlas.targets {
		for _, f := range slices.Concat(t.Parents, t.Children) {
			if checked[f] {
				continue
			}
			checked[f] = true
			_, given := f.Texts("c")
			there := fmt.Sprintf("EXISTS (SELECT FROM %s AS p WHERE %s)", f.ParentIdent(), f.Match("p", "c"))
			if f.Period {
				there = (&periods{f: f, leaving: "false"}).coveredSQL("c")
			}
			var violated bool
			err := a.tx.QueryRow(ctx, fmt.Sprintf("SELECT EXISTS (SELECT FROM %s AS c WHERE %s AND NOT %s)", f.ChildIdent(), given, there)).Scan(&violated)
			if err != nil {
				return history.OpError("check foreign keys", err)
			}
			if violated {
				return &ApplyError{Table: f.ChildName(), Action: Update, Constraint: f.Name, cause: errForeignKey}
			}
		}
	}
	return nil
}

var errForeignKey = errors.New("a row references one that is not there")

// isDenied reports whether the role may not do something.
func isDenied(err error) bool {
	var pg *pgconn.PgError
	return errors.As(err, &pg) && pg.Code == "42501"
}
