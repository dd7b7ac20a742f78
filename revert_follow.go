package audit

import (
	"context"
	"slices"
	"strconv"

	"github.com/hindsight-go/audit/internal/pgcatalog"
)

// follow finds out what others have done, behind the selection, to rows that do not
// stand where it left them: where they stand now, or that they were deleted.
func (p *planner) follow(ctx context.Context, t *target, rows []*netRow) error {
	if len(rows) == 0 {
		return nil
	}
	waiting := slices.Clone(rows)
	slices.SortStableFunc(waiting, func(a, b *netRow) int { return a.last().Compare(b.last()) })
	reader := newCollapse(p.atlas, 0, nil, p.budget)
	b := newContents()
	return p.laterChanges(ctx, t, waiting[0].last(), Query{}, func(m *imageMap, ch *selectedChange) error {
		for len(waiting) > 0 && waiting[0].last().Compare(ch.position) < 0 {
			r := waiting[0]
			mask := maskOf(len(r.whole), func(at int) bool { return r.whole[at].known })
			b.put(r, mask, textOfRow(t, r.whole))
			waiting = waiting[1:]
		}
		if ch.operation == Truncate {
			if !truncatesPart(&ch.defect) {
				b.truncate(ch.position)
			}
			return nil
		}
		if ch.operation == Create || len(b.rows) == 0 {
			return nil
		}
		reader.read(m, ch)
		r := reader.leave(b, m, reader.before)
		if r == nil {
			return nil
		}
		r.trail = append(r.trail, ch.position)
		if ch.operation == Delete {
			r.gone = true
			return nil
		}
		reader.complete()
		reader.stay(b, m, r, reader.after)
		return nil
	})
}

// truncate takes note that all rows are gone.
func (b *contents) truncate(at Position) {
	for _, list := range b.rows {
		for _, r := range list {
			r.trail, r.gone = append(r.trail, at), true
		}
	}
	clear(b.rows)
}

// laterChanges calls yield for the changes of a table behind a position that are
// not selected, oldest first.
func (p *planner) laterChanges(ctx context.Context, t *target, after Position, q Query, yield func(*imageMap, *selectedChange) error) error {
	names := p.namesOf(&conflictOrigin{oid: t.OID, schema: t.Schema, table: t.Name})
	qualified := make([]string, len(names))
	for i, name := range names {
		qualified[i] = pgcatalog.Qualified(name.Schema, name.Table)
	}
	s := selection{query: q.ForTable(qualified...), database: p.database, sorted: true}
	return s.read(ctx, p.client, p.client.history.StoreLong, Position{LSN: after.LSN, Sequence: after.Sequence + 1}, func(ch *selectedChange) error {
		if p.isSelected(ch.position) {
			return nil
		}
		m, err := p.atlas.at(ctx, ch.schema, ch.table, ch.position)
		if err != nil || m.target != t {
			return err
		}
		if err := yield(m, ch); err != nil {
			return err
		}
		return p.budget.err()
	})
}

// findPutBack finds rows to be put back of which an equal one was put back already,
// by a revert of something that they were a part of, and is there. Whether that
// was this row cannot be told, if others were like it.
func (p *planner) findPutBack(ctx context.Context, t *target, rows []*netRow) error {
	if len(rows) == 0 {
		return nil
	}
	wanted := make(map[string][]*netRow)
	first := rows[0].last()
	for _, r := range rows {
		r.whole = r.original()
		text := textOfRow(t, r.whole)
		wanted[text] = append(wanted[text], r)
		if r.last().Compare(first) < 0 {
			first = r.last()
		}
	}
	put := make(map[string][]Position)
	reader := newCollapse(p.atlas, 0, nil, p.budget)
	err := p.laterChanges(ctx, t, first, Query{}.Reverts(), func(m *imageMap, ch *selectedChange) error {
		if ch.operation == Truncate {
			clear(put)
			return nil
		}
		reader.read(m, ch)
		reader.complete()
		if ch.operation != Create {
			text := reader.textOfImage(m, reader.before, reader.maskOf(m, reader.before))
			if n := len(put[text]); n > 0 {
				put[text] = put[text][:n-1]
			}
		}
		if ch.operation != Delete {
			if text := reader.textOfImage(m, reader.after, reader.maskOf(m, reader.after)); wanted[text] != nil {
				put[text] = append(put[text], ch.position)
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	var probes, probed []*netRow
	for text, positions := range put {
		pairs, err := p.putBackBy(ctx, wanted[text], positions)
		if err != nil {
			return err
		}
		for _, r := range pairs {
			probed = append(probed, r)
			probes = append(probes, &netRow{table: t, key: nowhere, whole: r.whole, retyped: r.retyped})
		}
	}
	if err := t.findPlaces(ctx, p.tx, probes, nil, false); err != nil {
		return err
	}
	for i, r := range probed {
		r.again = !probes[i].placeless()
	}
	return nil
}

// putBackBy returns those of some equal rows that the changes of reverts may have
// put back.
func (p *planner) putBackBy(ctx context.Context, rows []*netRow, at []Position) (found []*netRow, err error) {
	if len(at) == 0 {
		return nil, nil
	}
	for _, r := range rows {
		at = append(at, r.last())
	}
	slices.SortFunc(at, Position.Compare)
	changes, err := p.changesAt(ctx, slices.Compact(at))
	if err != nil {
		return nil, err
	}
	byPosition := make(map[Position]Change, len(changes))
	for _, change := range changes {
		byPosition[change.Position] = change
	}
	for _, change := range changes {
		past := p.ours(&change)
		if past == nil || p.isSelected(change.Position) {
			continue
		}
		for _, r := range rows {
			if len(r.trail) > 0 {
				continue
			}
			covers, err := p.covers(ctx, past.Of, byPosition[r.last()], 0)
			if err != nil {
				return nil, err
			}
			if covers {
				r.trail = []Position{change.Position}
				found = append(found, r)
				break
			}
		}
	}
	return found, nil
}

// covers reports whether a change may be a part of a unit. A revert of a revert has done
// again what that had undone.
func (p *planner) covers(ctx context.Context, unit Unit, change Change, depth int) (bool, error) {
	switch unit.Kind {
	case "request":
		return change.Context.RequestID == unit.ID, nil
	case "transaction":
		return strconv.FormatUint(change.TransactionID, 10) == unit.ID, nil
	case "trace":
		return change.Context.TraceID == unit.ID, nil
	case "change":
		return change.Position.String() == unit.ID, nil
	case "revert":
	default:
		return true, nil // it cannot be told
	}
	if past, ok := change.Revert(); ok && past.ID == unit.ID {
		return true, nil
	}
	undone, found, err := p.client.history.Records.Revert(ctx, p.database, unit.ID)
	if err != nil || !found || undone.UnitKind != "revert" || depth > 1000 {
		return false, err
	}
	redone, found, err := p.client.history.Records.Revert(ctx, p.database, undone.UnitID)
	if err != nil || !found {
		return false, err
	}
	return p.covers(ctx, Unit{Kind: redone.UnitKind, ID: redone.UnitID}, change, depth+1)
}

// otherKey is the key of another row, to be told and to be looked for: the place
// of a row without one is neither.
func (p *planner) otherKey(oid uint32, key []string) []string {
	if t := p.atlas.targets[oid]; t != nil && t.keyless {
		return nil
	}
	return slices.Clone(key)
}

// keylessOrigins finds the changes behind conflicts about rows without a key.
func (p *planner) keylessOrigins(ctx context.Context, conflicts []Conflict) error {
	var wanted []Position
	for i := range conflicts {
		if c := &conflicts[i]; c.row.table.keyless && c.origin.ownRow {
			wanted = append(wanted, c.row.trail...)
		}
	}
	slices.SortFunc(wanted, Position.Compare)
	changes, err := p.changesAt(ctx, slices.Compact(wanted))
	if err != nil {
		return err
	}
	at := make(map[Position]*Change, len(changes))
	for i := range changes {
		at[changes[i].Position] = &changes[i]
	}
	for i := range conflicts {
		c := &conflicts[i]
		if !c.row.table.keyless || !c.origin.ownRow {
			continue
		}
		for _, position := range c.row.trail {
			change := at[position]
			switch {
			case change == nil:
			case change.Operation == Truncate, c.Kind == RowRecreated:
				c.Change, c.origin.later = change, []Position{position}
			default:
				c.consider(change, false)
			}
		}
	}
	return nil
}

// rebuildContents makes a whole row to be inserted of one that somebody deleted.
func (r *netRow) rebuildContents() {
	for at, d := range r.whole {
		if d.known && r.cell(at) == nil {
			r.cells = append(r.cells, cell{column: at, restore: d})
		}
	}
	r.action, r.existed, r.exists = Create, true, false
}
