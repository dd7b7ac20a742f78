package audit

import (
	"context"
	"slices"

	"github.com/hindsight-go/audit/internal/history"
)

// different finds the rows of a group that are not as they were to be written. staged is
// where they were written from, nil if that is not there any more.
func (a *applier) different(ctx context.Context, g *group, staged *stage) ([]AdjustedRow, error) {
	want := &group{table: g.table, action: Update, rows: make([]*netRow, len(g.rows))}
	for i, r := range g.rows {
		w := &netRow{table: r.table, action: Update, key: r.key}
		if g.action != Delete {
			w.key = r.restoredKey()
			for _, c := range r.cells {
				w.cells = append(w.cells, cell{column: c.column, restore: c.restore, expect: c.restore})
			}
		}
		want.rows[i] = w
	}
	want.settle()
	var found []AdjustedRow
	parts, inputs := want.chunks(), g.writtenFrom(staged)
	if inputs != nil {
		parts = []*group{want}
	}
	for _, part := range parts {
		input := inputs
		if input == nil {
			input = part.stageArrays()
		}
		if err := part.inspect(ctx, a.tx, input, false, unlimited()); err != nil {
			return nil, err
		}
		for _, r := range part.rows {
			if g.action == Delete {
				if !r.missing {
					found = append(found, AdjustedRow{RowRef: r.ref()})
				}
				continue
			}
			d := AdjustedRow{RowRef: r.ref()}
			for i := range r.cells {
				if r.missing || r.cells[i].live != nil {
					d.Columns = append(d.Columns, r.table.Columns.List[r.cells[i].column].Name)
				}
			}
			if len(d.Columns) > 0 {
				found = append(found, d)
			}
		}
	}
	return found, nil
}

// noteEarly remembers which columns the triggers of a statement have set to
// something else at once: they have the last word there.
func (a *applier) noteEarly(ctx context.Context, g *group, staged *stage) error {
	found, err := a.different(ctx, g, staged)
	if err != nil {
		return err
	}
	if a.alone() {
		a.result.Adjusted = append(a.result.Adjusted, found...)
		return nil
	}
	if a.early == nil {
		a.early = make(map[string]map[string]bool)
	}
	for _, d := range found {
		columns := make(map[string]bool)
		for _, c := range d.Columns {
			columns[c] = true
		}
		a.early[d.RowRef.identity()] = columns
	}
	return nil
}

// check makes sure that the rows are as planned when everything is written. What
// triggers of other tables did to rows after these had been written, such as
// counting them, was undone by the statement of those rows already: it is put
// right once more.
func (a *applier) check(ctx context.Context) error {
	if a.hasTriggers() && !a.alone() {
		if err := a.correct(ctx); err != nil {
			return err
		}
	}
	if err := a.env.application(ctx, a.tx); err != nil {
		return err
	}
	if err := a.checkDeferred(ctx); err != nil {
		return err
	}
	if err := a.env.pinned(ctx, a.tx); err != nil {
		return err
	}
	if a.r.noTriggers {
		return a.validate(ctx)
	}
	return nil
}

// checkDeferred does what COMMIT would, so that a dry run does it, too, and triggers
// that are deferred find the application's settings. In a transaction of the
// caller's, only the constraints of our tables are our business.
func (a *applier) checkDeferred(ctx context.Context) error {
	if a.borrowed {
		return a.constraints(ctx, "IMMEDIATE", true)
	}
	_, err := a.tx.Exec(ctx, "SET CONSTRAINTS ALL IMMEDIATE")
	return a.p.steps[0].group.commitError(history.OpError("check deferred constraints", err))
}

// alone reports whether the revert is one statement that puts rows back or restores them:
// there is nothing after it that could change them.
func (a *applier) alone() bool {
	return len(a.p.steps) == 1 && a.p.steps[0].group.action != Delete && !a.p.steps[0].group.table.keyless
}

func (a *applier) hasTriggers() bool {
	return !a.r.noTriggers && slices.ContainsFunc(a.p.steps, func(s step) bool { return s.group.table.Triggers })
}

func (a *applier) correct(ctx context.Context) error {
	for _, s := range a.p.steps {
		g := s.group
		if s.final != nil {
			g = s.final
		}
		if s.side || g.table.keyless || g.action == Delete && !g.table.Triggers {
			continue
		}
		found, err := a.different(ctx, g, nil)
		if err != nil {
			return err
		}
		if g.action == Delete { // they did not want it to go
			a.result.Adjusted = append(a.result.Adjusted, found...)
			continue
		}
		fix, rows := &group{table: g.table, action: Update}, g.byKey()
		for _, d := range found {
			late := slices.DeleteFunc(slices.Clone(d.Columns), func(c string) bool { return a.early[d.RowRef.identity()][c] })
			if r := rows[joinKey(d.Key)]; r != nil && len(late) > 0 {
				fix.rows = append(fix.rows, r.only(late))
			}
		}
		if len(fix.rows) > 0 {
			fix.settle()
			if err := a.do(ctx, &step{group: fix, side: true}); err != nil {
				return err
			}
			if found, err = a.different(ctx, g, nil); err != nil {
				return err
			}
		}
		a.result.Adjusted = append(a.result.Adjusted, found...)
	}
	return nil
}

// byKey is the rows by the keys that they have when they are restored.
func (g *group) byKey() map[string]*netRow {
	rows := make(map[string]*netRow, len(g.rows))
	for _, r := range g.rows {
		rows[joinKey(r.restoredKey())] = r
	}
	return rows
}

// only is the restored row, with some of its columns to be restored again.
func (r *netRow) only(columns []string) *netRow {
	again := &netRow{table: r.table, key: r.restoredKey(), action: Update, positions: r.positions}
	for _, c := range r.cells {
		if slices.Contains(columns, r.table.Columns.List[c.column].Name) {
			again.cells = append(again.cells, cell{column: c.column, restore: c.restore})
		}
	}
	return again
}
