package audit

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/hindsight-go/audit/internal/pgcatalog"
	"github.com/hindsight-go/audit/internal/wal"
)

// contentSQL is the text of a value, NULL for NULL. What a json value means is
// compared, since that is what an image keeps of it, and never what is equal by a
// column's collation.
func contentSQL(column *pgcatalog.Column, value string) string {
	text := "pg_catalog.concat(" + value + ")"
	if column.Kind.Base == wal.JSON {
		text = fmt.Sprintf(`CASE WHEN pg_catalog.strpos(%[1]s, '\u0000') > 0 THEN %[1]s ELSE pg_catalog.concat(%[1]s::pg_catalog.jsonb) END`, text)
	}
	return "(CASE WHEN " + value + " IS NOT DISTINCT FROM NULL THEN NULL ELSE " + text + ` END) COLLATE pg_catalog."C"`
}

// contentsSQL is what a row holds in the columns of a mask, as an array of texts:
// value gives the SQL of each column's value.
func (t *target) contentsSQL(mask string, value func(at int, column *pgcatalog.Column) string) string {
	var texts []string
	for at := range t.Columns.List {
		if mask[at] == '1' {
			column := &t.Columns.List[at]
			texts = append(texts, contentSQL(column, value(at, column)))
		}
	}
	return "ARRAY[" + strings.Join(texts, ", ") + "]::pg_catalog.text[]"
}

// placesSQL finds a live row for each of those staged, with the same contents. Of
// rows with equal contents the first gets the first. Rows that are taken already
// are left out.
func (t *target) placesSQL(mask string, from string, taken int, lock, retyped bool) string {
	live := t.contentsSQL(mask, func(_ int, c *pgcatalog.Column) string { return pgcatalog.ColumnIdent("t", c.Name) })
	staged := t.contentsSQL(mask, func(at int, c *pgcatalog.Column) string {
		if c.HasSeveralTexts(retyped) {
			return fmt.Sprintf("s.w%d::%s", at, c.TypeName)
		}
		return fmt.Sprintf("s.w%d", at)
	})
	sql := fmt.Sprintf(`
		WITH wanted AS (
			SELECT w.n, w.whole, pg_catalog.row_number() OVER (PARTITION BY w.whole ORDER BY w.n) AS nth
			FROM (SELECT s.n, %s AS whole FROM %s) AS w),
		live AS (
			SELECT l.part, l.place, l.whole, pg_catalog.row_number() OVER (PARTITION BY l.whole ORDER BY l.part, l.place) AS nth
			FROM (SELECT t.tableoid AS part, t.ctid AS place, %s AS whole FROM %s AS t) AS l
			WHERE l.whole IN (SELECT wanted.whole FROM wanted)
			  AND (l.part, l.place) NOT IN (SELECT x.part::pg_catalog.oid, x.place::pg_catalog.tid FROM unnest($%d::text[], $%d::text[]) AS x (part, place)))
		SELECT wanted.n, `, staged, from, live, t.from(), taken, taken+1)
	const joined = "FROM wanted JOIN live ON live.whole = wanted.whole AND live.nth = wanted.nth"
	if !lock {
		return sql + "ARRAY[live.part::pg_catalog.text, live.place::pg_catalog.text] " + joined
	}
	// One that was changed while its lock was waited for is compared once more.
	return sql + fmt.Sprintf(`ARRAY[t.tableoid::pg_catalog.text, t.ctid::pg_catalog.text] %s
		JOIN %s AS t ON t.tableoid = live.part AND t.ctid = live.place AND %s = live.whole
		ORDER BY t.tableoid, t.ctid
		FOR UPDATE OF t`, joined, t.from(), live)
}

// findPlaces finds places for rows that have none, by what they hold.
func (t *target) findPlaces(ctx context.Context, tx pgx.Tx, rows []*netRow, taken [][]string, lock bool) error {
	byMask := make(map[string][]*netRow)
	var masks []string
	for _, r := range rows {
		mask := maskOf(len(r.whole), func(at int) bool { return r.whole[at].known })
		if byMask[mask] == nil {
			masks = append(masks, mask)
		}
		byMask[mask] = append(byMask[mask], r)
	}
	// Those that say most come first: the others take what is left.
	slices.SortStableFunc(masks, func(a, b string) int { return strings.Count(b, "1") - strings.Count(a, "1") })
	for _, mask := range masks {
		left := byMask[mask]
		for len(left) > 0 {
			found, err := t.findPlacesOf(ctx, tx, mask, left, taken, lock)
			if err != nil {
				return err
			}
			for _, r := range found {
				taken = append(taken, r.key)
			}
			left = slices.DeleteFunc(slices.Clone(left), func(r *netRow) bool { return !r.placeless() })
			if !lock || len(found) == 0 {
				break
			}
			// Some were changed in between, perhaps, and others are like them.
		}
	}
	return nil
}

// placeless reports whether no live row is known that the row stands for.
func (r *netRow) placeless() bool { return slices.Equal(r.key, nowhere) }

func (t *target) findPlacesOf(ctx context.Context, tx pgx.Tx, mask string, rows []*netRow, taken [][]string, lock bool) (found []*netRow, err error) {
	numbers := make([]int32, len(rows))
	names, params := []string{"n"}, []string{"$1::int4[]"}
	args := []any{numbers}
	for i := range rows {
		numbers[i] = int32(i)
	}
	for at := range mask {
		if mask[at] != '1' {
			continue
		}
		values := make([]*string, len(rows))
		for i, r := range rows {
			values[i] = r.whole[at].pointer()
		}
		args = append(args, values)
		names, params = append(names, fmt.Sprintf("w%d", at)), append(params, fmt.Sprintf("$%d::text[]", len(args)))
	}
	parts, places := make([]string, len(taken)), make([]string, len(taken))
	for i, key := range taken {
		parts[i], places[i] = key[0], key[1]
	}
	from := fmt.Sprintf("unnest(%s) AS s (%s)", strings.Join(params, ", "), strings.Join(names, ", "))
	retyped := slices.ContainsFunc(rows, func(r *netRow) bool { return r.retyped })
	sql := t.placesSQL(mask, from, len(args)+1, lock, retyped)
	of := &group{table: t, rows: rows}
	result, err := tx.Query(ctx, sql, append(args, parts, places)...)
	if err != nil {
		return nil, of.inspectError(err, retyped)
	}
	var n int32
	var key []string
	_, err = pgx.ForEachRow(result, []any{&n, &key}, func() error {
		rows[n].key = slices.Clone(key)
		found = append(found, rows[n])
		key = nil
		return nil
	})
	return found, of.inspectError(err, retyped)
}

// places finds the live rows that the rows of tables without a key stand for.
func (p *planner) places(ctx context.Context) error {
	for t, rows := range keylessRows(p.rows) {
		var standing, missing, back []*netRow
		for _, r := range rows {
			if r.action == Create {
				back = append(back, r)
				continue
			}
			standing = append(standing, r)
		}
		if err := t.findPlaces(ctx, p.tx, standing, nil, p.lock); err != nil {
			return err
		}
		var taken [][]string
		for _, r := range standing {
			if r.placeless() {
				missing = append(missing, r)
			} else {
				taken = append(taken, r.key)
			}
		}
		if err := p.follow(ctx, t, missing); err != nil {
			return err
		}
		if err := t.findPlaces(ctx, p.tx, missing, taken, p.lock); err != nil {
			return err
		}
		if err := p.findPutBack(ctx, t, back); err != nil {
			return err
		}
	}
	return nil
}

// keylessRows are those rows that something is to be done to, by table.
func keylessRows(rows []*netRow) map[*target][]*netRow {
	byTable := make(map[*target][]*netRow)
	for _, r := range rows {
		if r.table.keyless && r.action != "" {
			byTable[r.table] = append(byTable[r.table], r)
		}
	}
	return byTable
}

// findAgain finds the rows of a plan that was made before.
func findAgain(ctx context.Context, tx pgx.Tx, rows []*netRow) error {
	for t, all := range keylessRows(rows) {
		standing := slices.DeleteFunc(all, func(r *netRow) bool { return r.action == Create })
		for _, r := range standing {
			r.key = nowhere
		}
		if err := t.findPlaces(ctx, tx, standing, nil, true); err != nil {
			return err
		}
	}
	return nil
}

// doPlaced runs a statement on rows that are found by their place. An UPDATE moves
// them: the steps that follow have to know where.
func (a *applier) doPlaced(ctx context.Context, s *step, staged *stage) error {
	g := s.group
	moved, err := g.execPlaced(ctx, a.tx, staged)
	if err != nil {
		return err
	}
	if err := a.env.pinned(ctx, a.tx); err != nil {
		return err
	}
	var left []*netRow
	places := make(map[string][]string)
	for i, r := range g.rows {
		if moved[i] == nil {
			left = append(left, r)
		} else {
			places[joinKey(r.key)] = moved[i]
		}
	}
	if g.action == Update && s.side {
		a.moveRows(g.table, places)
	}
	if g.action == Update && !s.side && g.table.Triggers && !a.r.noTriggers {
		if err := a.noteAdjusted(ctx, g, moved); err != nil {
			return err
		}
	}
	if len(left) == 0 {
		return nil
	}
	return a.finishPlaced(ctx, g, left)
}

// noteAdjusted notes the rows of an UPDATE in which triggers have put something
// else than what was restored.
func (a *applier) noteAdjusted(ctx context.Context, g *group, moved [][]string) error {
	written := &group{table: g.table, action: Update}
	refs := make(map[*netRow]RowRef)
	for i, r := range g.rows {
		if moved[i] == nil {
			continue
		}
		w := &netRow{table: r.table, action: Update, key: moved[i]}
		for _, c := range r.cells {
			w.cells = append(w.cells, cell{column: c.column, restore: c.restore, expect: c.restore})
		}
		refs[w] = r.ref()
		written.rows = append(written.rows, w)
	}
	written.settle()
	for _, part := range written.chunks() {
		if err := part.inspect(ctx, a.tx, part.stageArrays(), false, unlimited()); err != nil {
			return err
		}
		for _, w := range part.rows {
			d := AdjustedRow{RowRef: refs[w]}
			for i := range w.cells {
				if w.missing || w.cells[i].live != nil {
					d.Columns = append(d.Columns, w.table.Columns.List[w.cells[i].column].Name)
				}
			}
			if len(d.Columns) > 0 {
				a.result.Adjusted = append(a.result.Adjusted, d)
			}
		}
	}
	return nil
}

// finishInsert makes sure that rows were put back. Where they are is not known:
// behind triggers, those are noted of which none has the contents.
func (a *applier) finishInsert(ctx context.Context, g *group, inserted int) error {
	if !g.table.Triggers || a.r.noTriggers {
		if inserted != len(g.rows) {
			return &StaleError{Table: g.table.label(), Reason: "has rows that the server did not insert"}
		}
		return nil
	}
	probes := make([]*netRow, len(g.rows))
	for i, r := range g.rows {
		probes[i] = &netRow{table: r.table, key: nowhere, whole: r.original(), retyped: r.retyped}
	}
	if err := g.table.findPlaces(ctx, a.tx, probes, nil, false); err != nil {
		return err
	}
	for i, probe := range probes {
		if probe.placeless() {
			a.result.Adjusted = append(a.result.Adjusted, AdjustedRow{RowRef: g.rows[i].ref()})
		}
	}
	return nil
}

// execPlaced runs the statement of a group and returns where each row is now; nil
// for those that it did not find.
func (g *group) execPlaced(ctx context.Context, tx pgx.Tx, staged *stage) ([][]string, error) {
	moved := make([][]string, len(g.rows))
	rows, err := tx.Query(ctx, g.writeSQL(staged)+" RETURNING s.n, ARRAY[t.tableoid::pg_catalog.text, t.ctid::pg_catalog.text]", staged.args...)
	if err != nil {
		return nil, g.applyError(err)
	}
	var n int32
	var key []string
	_, err = pgx.ForEachRow(rows, []any{&n, &key}, func() error {
		moved[n], key = slices.Clone(key), nil
		return nil
	})
	if err != nil {
		return nil, g.applyError(err)
	}
	return moved, nil
}

// moveRows gives the rows of all steps the places that they have now.
func (a *applier) moveRows(t *target, places map[string][]string) {
	for i := range a.p.steps {
		if a.p.steps[i].group.table != t {
			continue
		}
		for _, r := range a.p.steps[i].group.rows {
			if place, ok := places[joinKey(r.key)]; ok {
				r.key = place
			}
		}
	}
}

// finishPlaced deals with rows that were not where they had been locked: an action
// of a foreign key has taken them away or moved them, in this transaction. A
// trigger of the table may have said no to the statement.
func (a *applier) finishPlaced(ctx context.Context, g *group, left []*netRow) error {
	if g.action == Delete && slices.ContainsFunc(g.table.Parents, func(f *pgcatalog.ForeignKey) bool { return f.OnDelete == "c" }) {
		return nil
	}
	if g.action == Update && slices.ContainsFunc(g.table.Parents, func(f *pgcatalog.ForeignKey) bool { return f.OnUpdate == "c" }) {
		again := &group{table: g.table, action: Update}
		for _, r := range left {
			again.rows = append(again.rows, r.cascaded())
		}
		if err := g.table.findPlaces(ctx, a.tx, again.rows, nil, true); err != nil {
			return err
		}
		if !slices.ContainsFunc(again.rows, (*netRow).placeless) {
			again.settle()
			if err := a.env.application(ctx, a.tx); err != nil {
				return err
			}
			moved, err := again.execPlaced(ctx, a.tx, again.stageArrays())
			if err != nil {
				return err
			}
			if err := a.env.pinned(ctx, a.tx); err != nil {
				return err
			}
			if !slices.ContainsFunc(moved, func(place []string) bool { return place == nil }) {
				return nil
			}
		}
	}
	if g.table.Triggers && !a.r.noTriggers {
		for _, r := range left {
			a.result.Adjusted = append(a.result.Adjusted, AdjustedRow{RowRef: r.ref()})
		}
		return nil
	}
	return &StaleError{Table: g.table.label(), Reason: "has a row that was not there any more when it was to be written"}
}

// cascaded is the row as it is after its parent was given its key back, and has
// passed that on.
func (r *netRow) cascaded() *netRow {
	moved := *r
	moved.key, moved.whole = nowhere, slices.Clone(r.whole)
	for _, f := range r.table.Parents {
		if f.OnUpdate != "c" {
			continue
		}
		for _, name := range f.Columns {
			if c := r.cell(r.table.Columns.Index[name]); c != nil && c.restore.known {
				moved.whole[c.column] = c.restore
			}
		}
	}
	return &moved
}

// placeCondition is the SQL condition that finds just one row with the row's
// contents.
func (r *netRow) placeCondition() string {
	var same []string
	whole := r.whole
	if r.parkedWhole != nil {
		whole = r.parkedWhole
	}
	for at, d := range whole {
		if !d.known {
			continue
		}
		column := &r.table.Columns.List[at]
		live := pgcatalog.ColumnIdent("", column.Name)
		if d.text == nil {
			same = append(same, live+" IS NOT DISTINCT FROM NULL")
			continue
		}
		same = append(same, contentSQL(column, live)+" = "+contentSQL(column, sqlLiteral(d)+"::"+column.TypeName))
	}
	return fmt.Sprintf("(tableoid, ctid) = (SELECT tableoid, ctid FROM %s WHERE %s LIMIT 1)", r.table.from(), strings.Join(same, " AND "))
}
