package audit

import (
	"context"
	"fmt"
	"slices"

	sq "github.com/Masterminds/squirrel"
	"github.com/jackc/pgx/v5"

	"github.com/hindsight-go/audit/store"
)

// maxCascades bounds how often a cascade may find that what it added was itself
// followed by later work.
const maxCascades = 100

// planner makes a plan.
type planner struct {
	client *Client
	r      Reversal
	// tx is the transaction on the source that the live rows are looked at in.
	tx pgx.Tx
	// lock tells that the rows are locked when they are looked at, and that
	// temporary tables may be made.
	lock     bool
	database string
	facts    *store.Facts
	through  *LSN // of a revert to a moment

	atlas    *atlas
	sel      selection
	selected map[Position]bool
	// firstSelected and lastSelected bound the selection.
	firstSelected, lastSelected Position
	changes                     int
	rows                        []*netRow
	lastKeys                    map[*netRow][]string // of rows to be put back, those that they had last
	dropped                     []Position           // selected changes that came to nothing
	groups                      []*group
	conflicts                   []Conflict
	cascaded                    []Conflict
	known                       map[string]int // conflicts of this round, by what they are about

	live         map[*target]map[string]*netRow
	restored     map[*foreignKey]map[string]Operation
	parked       []parking
	leaving      []link // references to keys that change
	coming       []link // references of rows to be updated, to rows that come back
	deletesLast  bool
	updatesFirst bool
	insertsFirst bool
	steps        []step
}

// newPlanner prepares a plan: everything about history that has to be known, and
// waits until the store holds what was committed.
func (c *Client) newPlanner(ctx context.Context, r Reversal) (*planner, error) {
	p := &planner{client: c, r: r}
	var err error
	if p.database, err = c.databaseName(ctx); err != nil {
		return nil, err
	}
	if !r.asStored {
		fail := func(reason error, detail string) error {
			return &HistoryError{Asked: "Now()", Reason: reason, Detail: detail + "; AsStored reverts what history knows"}
		}
		if err := c.awaitCapture(ctx, fail); err != nil {
			return nil, err
		}
	}
	if p.facts, err = c.freshFacts(ctx, p.database); err != nil {
		return nil, err
	}
	p.sel = selection{query: r.query, database: p.database}
	if r.to != nil {
		t, err := c.travel(ctx, *r.to)
		if err != nil {
			return nil, err
		}
		if err := p.coveredSince(t.through); err != nil {
			return nil, err
		}
		p.through = &t.through
		p.sel.after = &t.through
		if r.row != nil {
			p.sel.truncated = r.tables[0]
		}
	}
	return p, nil
}

// coveredSince refuses to go back to a moment if history misses something since:
// of any of the tables, by the names that they have now.
func (p *planner) coveredSince(through LSN) error {
	if horizon := p.facts.Horizon; through < horizon.Position {
		return &HistoryError{
			Table: p.r.tables[0], Asked: p.r.to.String(), Reason: ErrPastRetention, Detail: "changes since were dropped",
			Earliest: Position{LSN: horizon.Position}, EarliestTime: horizon.Time.UTC(),
		}
	}
	for _, gap := range p.facts.Gaps {
		if gap.To > through {
			return &HistoryError{Table: p.r.tables[0], Asked: p.r.to.String(), Reason: ErrInGap, Detail: "changes since are not known", Earliest: Position{LSN: gap.To}, EarliestTime: gap.ToTime}
		}
	}
	for _, table := range p.r.tables {
		name, err := parseTable(table)
		if err != nil {
			return &FilterError{Filter: "ForTable", Reason: err.Error(), cause: err}
		}
		known, since := false, LSN(0)
		for _, v := range p.facts.Coverage {
			if v.Table != name.table || name.schema != "" && v.Schema != name.schema {
				continue
			}
			known = true
			if v.Until == 0 {
				since = max(since, v.From)
			}
		}
		switch {
		case !known:
			return &HistoryError{Table: table, Asked: p.r.to.String(), Reason: ErrNotTracked}
		case since == 0:
			return &HistoryError{Table: table, Asked: p.r.to.String(), Reason: ErrNotTracked, Detail: "there is no such table any more"}
		case since > through:
			return &HistoryError{Table: table, Asked: p.r.to.String(), Reason: ErrBeforeHistory, Earliest: Position{LSN: since}}
		}
	}
	return nil
}

// build makes the plan against the live rows.
func (p *planner) build(ctx context.Context) (*Plan, error) {
	for range maxCascades {
		again, err := p.round(ctx)
		if err != nil {
			return nil, err
		}
		if !again {
			return p.finish(ctx)
		}
	}
	return nil, &UnrevertableError{Table: p.rows[0].table.label(), Reason: "the cascade does not come to an end: what it reverts is changed on and on"}
}

// finish orders the statements, and makes the Plan.
func (p *planner) finish(ctx context.Context) (*Plan, error) {
	plan := p.plan()
	if len(plan.Blocked()) > 0 {
		return plan, nil
	}
	var err error
	if p.steps, err = p.order(); err != nil {
		return nil, err
	}
	plan.Cascaded, err = p.changesAt(ctx, p.sel.extra)
	return plan, err
}

// changesAt reads the changes at some positions, oldest first.
func (p *planner) changesAt(ctx context.Context, at []Position) ([]Change, error) {
	if len(at) == 0 {
		return nil, nil
	}
	positions, sequences := make([]string, len(at)), make([]int, len(at))
	for i, position := range at {
		positions[i], sequences[i] = position.LSN.String(), position.Sequence
	}
	b := Query{}.from(p.client, changeColumns...).
		Join("unnest(?::text[], ?::integer[]) AS wanted (at, ordinal) ON c.position = wanted.at::pg_lsn AND c.sequence = wanted.ordinal", positions, sequences).
		Where(sq.Expr("c.database = ?", p.database)).
		OrderBy("c.position", "c.sequence")
	return collect(ctx, p.client, "read changes", b, scanChange)
}

// round makes a plan for the selection as it is, and tells whether a cascade has
// added to that.
func (p *planner) round(ctx context.Context) (again bool, err error) {
	if err := p.collapse(ctx); err != nil {
		return false, err
	}
	p.conflicts, p.known = nil, make(map[string]int)
	if err := p.inspectAll(ctx); err != nil {
		return false, err
	}
	more, _, err := p.settle(ctx, p.rowConflicts())
	if err != nil || more {
		return more, err
	}
	if err := p.overwrite(ctx); err != nil {
		return false, err
	}
	for {
		p.restored = nil
		found, err := p.structure(ctx)
		if err != nil {
			return false, err
		}
		more, fresh, err := p.settle(ctx, found)
		if err != nil || more {
			return more, err
		}
		if !fresh {
			return false, nil
		}
	}
}

// collapse reads the selection and puts it together.
func (p *planner) collapse(ctx context.Context) error {
	p.atlas = newAtlas(p.client, p.tx, p.facts)
	c := newCollapse(p.atlas, p.r.limit(), p.r.columns)
	c.row = p.r.row
	p.selected = make(map[Position]bool)
	p.firstSelected, p.lastSelected = Position{}, Position{}
	err := p.sel.each(ctx, p.client, func(change *selectedChange) error {
		if p.firstSelected.IsZero() {
			p.firstSelected = change.position
		}
		p.lastSelected = change.position
		if err := c.add(ctx, change); err != nil {
			return err
		}
		if c.changes%10_000 == 0 {
			p.r.report(Progress{Step: "select", Done: c.changes})
		}
		return nil
	})
	if err != nil {
		return err
	}
	if c.changes == 0 {
		if p.r.unit.repeatable() {
			p.rows = nil
			return nil
		}
		return fmt.Errorf("audit: revert %s: %w", p.r.unit, ErrNothingSelected)
	}
	if err := p.whole(); err != nil {
		return err
	}
	p.changes = c.changes
	p.r.report(Progress{Step: "select", Done: c.changes, Total: c.changes})
	p.rows, p.lastKeys = c.finish(), make(map[*netRow][]string)
	p.dropped = c.dropped
	for _, r := range p.rows {
		if r.action == Create { // it comes back under the key that it had at first
			p.lastKeys[r] = r.key
			r.key = r.restoredKey()
		}
		if err := p.checkRow(r); err != nil {
			return err
		}
	}
	return p.client.describeTargets(ctx, p.tx, p.atlas.targets)
}

// whole refuses a selection that reaches across a gap: what the unit did in the
// meantime would stay, without a word.
func (p *planner) whole() error {
	if p.r.asStored {
		return nil
	}
	for _, gap := range p.facts.Gaps {
		if gap.From <= p.lastSelected.LSN && gap.To > p.firstSelected.LSN {
			return fmt.Errorf("audit: revert %s: %w", p.r.unit, &HistoryError{
				Asked: "AtPosition(" + p.firstSelected.LSN.String() + ")", Reason: ErrInGap,
				Detail: "the selection reaches across the gap; AsStored reverts what history knows of it",
			})
		}
	}
	return nil
}

// checkRow refuses what no statement can do.
func (p *planner) checkRow(r *netRow) error {
	for _, c := range r.cells {
		column := &r.table.columns.list[c.column]
		if r.action == Update && column.identity == "a" && !c.restore.equal(c.expect) {
			return &UnrevertableError{
				Table: r.table.label(), Position: r.first(),
				Reason: fmt.Sprintf("column %q is GENERATED ALWAYS AS IDENTITY, which an UPDATE can only set to its default", column.name),
			}
		}
	}
	return nil
}

// isSelected tells that a change is one of those to be reverted.
func (p *planner) isSelected(position Position) bool {
	if len(p.selected) == 0 {
		for _, r := range p.rows {
			for _, at := range r.positions {
				p.selected[at] = true
			}
		}
		for _, at := range p.dropped {
			p.selected[at] = true
		}
	}
	return p.selected[position]
}

// inspectAll compares all rows with the live ones.
func (p *planner) inspectAll(ctx context.Context) error {
	if err := p.places(ctx); err != nil {
		return err
	}
	done := 0
	p.groups = groupRows(p.rows)
	for _, g := range p.groups {
		parts := g.chunks()
		for _, part := range parts {
			if err := part.inspect(ctx, p.tx, part.stageArrays(), p.lock); err != nil {
				return err
			}
			done += len(part.rows)
			p.r.report(Progress{Step: "compare", Table: g.table.label(), Done: done, Total: len(p.rows)})
		}
	}
	return nil
}

// rowConflicts lists what is wrong between the rows and the live ones, and marks
// the rows that need nothing to be done.
func (p *planner) rowConflicts() []Conflict {
	leaving := leavingKeys(p.rows)
	var found []Conflict
	for _, r := range p.rows {
		found = append(found, r.conflicts(leaving[r.table][joinKey(r.key)])...)
	}
	return found
}

// leavingKeys are the keys of the live rows that a revert takes away from there.
func leavingKeys(rows []*netRow) map[*target]map[string]bool {
	leaving := make(map[*target]map[string]bool)
	for _, r := range rows {
		if !r.missing && !r.displaced && (r.action == Delete || r.keyChanges()) {
			if leaving[r.table] == nil {
				leaving[r.table] = make(map[string]bool)
			}
			leaving[r.table][joinKey(r.key)] = true
		}
	}
	return leaving
}

// conflicts lists those of one row. leaving tells that the live row under its key
// is one that the revert takes away from there.
func (r *netRow) conflicts(leaving bool) []Conflict {
	var found []Conflict
	add := func(kind ConflictKind, change func(*Conflict)) {
		c := Conflict{Kind: kind, RowRef: r.ref(), row: r, origin: conflictOrigin{
			oid: r.table.oid, schema: r.table.schema, table: r.table.name, key: r.key, after: r.first(), ownRow: true,
		}}
		if r.table.keyless {
			c.origin.key = nil
		}
		change(&c)
		found = append(found, c)
	}
	switch r.action {
	case Create:
		switch {
		case r.missing:
		case leaving:
			r.missing, r.done = true, false
			r.forgetLive()
		case !r.done || r.recreated:
			r.done = false
			add(RowRecreated, func(c *Conflict) { c.origin.made = true })
			return found
		}
		if r.recreated || r.again {
			add(RowRecreated, func(c *Conflict) { c.origin.made = true })
		}
	case Delete:
		if r.table.keyless && r.missing && !r.gone {
			add(RowGone, func(c *Conflict) { c.origin.gone, c.stays = true, true })
			return found
		}
		if r.missing || r.displaced {
			r.done = true
			if r.missing && !r.table.keyless {
				// History tells a row that was removed from one that the role may not see.
				add(RowGone, func(c *Conflict) {
					c.origin.moved, c.origin.unseen = !r.table.hidden, r.table.hidden
					c.origin.gone, c.stays = c.origin.unseen, c.origin.unseen
				})
			}
			return found
		}
	case Update:
		if r.missing || r.displaced {
			r.missing = true
			r.forgetLive()
			add(RowGone, func(c *Conflict) { c.origin.gone, c.stays = true, r.table.keyless && !r.gone })
			return found
		}
		if r.done && !r.recreated {
			return nil
		}
		if r.recreated {
			r.done = false
			add(RowRecreated, func(c *Conflict) { c.origin.made = true })
		}
	}
	for _, lost := range r.lost {
		add(ColumnGone, func(c *Conflict) { c.Column, c.Restore, c.origin.key = lost.name, lost.restore.pointer(), nil })
	}
	if r.action == Create {
		return found
	}
	for i := range r.cells {
		c := &r.cells[i]
		name := r.table.columns.list[c.column].name
		if c.interleaved && !r.done {
			add(ColumnInterleaved, func(k *Conflict) {
				live := c.seen()
				k.Column, k.Restore, k.Live, k.origin.columns = name, c.restore.pointer(), live.pointer(), []string{name}
			})
		} else if c.live.known && !c.already {
			add(ColumnChanged, func(k *Conflict) {
				k.Column, k.Restore, k.Live, k.origin.columns = name, c.restore.pointer(), c.live.pointer(), []string{name}
			})
		}
	}
	return found
}

func (r *netRow) forgetLive() {
	for i := range r.cells {
		r.cells[i].live, r.cells[i].already = datum{}, false
	}
}

// subject tells the conflicts of a plan apart.
func (c *Conflict) subject() string { return fmt.Sprintf("%p %s", c.row, c.about()) }

// about tells apart what conflicts are about, also in two plans.
func (c *Conflict) about() string {
	other := ""
	if c.Other != nil {
		other = c.Other.String()
	}
	return fmt.Sprintf("%d %q %q %q %q", c.Kind, c.RowRef.String(), c.Column, c.Constraint, other)
}

// settle finds out who is behind conflicts, has the policy decide, and follows
// its decisions. more tells that a cascade has added to the selection, fresh that
// there were conflicts that were not known yet.
func (p *planner) settle(ctx context.Context, found []Conflict) (more, fresh bool, err error) {
	found = slices.DeleteFunc(found, func(c Conflict) bool {
		_, known := p.known[c.subject()]
		return known
	})
	if len(found) == 0 {
		return false, false, nil
	}
	if err := p.findOrigins(ctx, found); err != nil {
		return false, false, err
	}
	if err := p.findLate(ctx, found); err != nil {
		return false, false, err
	}
	// A row that was to be removed and is gone is done with, unless it was only given
	// another key, or may not be seen.
	found = slices.DeleteFunc(found, func(c Conflict) bool {
		return c.origin.moved && c.Change == nil || c.origin.unseen && c.Change != nil && c.Change.Operation == Delete
	})
	for i := range found {
		o := &found[i].origin
		found[i].row.done = found[i].row.done && !o.moved && !o.unseen
	}
	var extra []Position
	byRow := make(map[*netRow]Resolution)
	for i := range found {
		c := &found[i]
		c.Resolution = p.r.decide(*c)
		c.blocked = c.blocks()
		if worst, ok := byRow[c.row]; !ok || c.Resolution < worst {
			byRow[c.row] = c.Resolution
		}
		p.known[c.subject()] = len(p.conflicts)
		p.conflicts = append(p.conflicts, *c)
	}
	for i := range found {
		c := &found[i]
		switch {
		case byRow[c.row] == Skip:
			c.row.skipped = true
		case c.Resolution == Cascade && byRow[c.row] == Cascade && !c.blocked:
			extra = append(extra, c.origin.later...)
			p.cascaded = append(p.cascaded, *c)
		}
	}
	// Conflicts of a row that is skipped do not stand in the way.
	for i := range p.conflicts {
		if p.conflicts[i].row.skipped {
			p.conflicts[i].blocked = false
		}
	}
	before := len(p.sel.extra)
	p.sel.extra = append(p.sel.extra, extra...)
	slices.SortFunc(p.sel.extra, Position.Compare)
	p.sel.extra = slices.Compact(p.sel.extra)
	return len(p.sel.extra) > before, true, nil
}

// findLate looks once more for what took rows away that were to be removed, when
// history has all that is committed: somebody may have done it just now, while this
// waited for a lock.
func (p *planner) findLate(ctx context.Context, found []Conflict) error {
	var late []Conflict
	var at []int
	for i, c := range found {
		if (c.origin.moved || c.origin.unseen) && c.Change == nil {
			late, at = append(late, c), append(at, i)
		}
	}
	if len(late) == 0 || p.r.asStored {
		return nil
	}
	if err := p.client.awaitCapture(ctx, func(reason error, detail string) error {
		return &HistoryError{Asked: "Now()", Reason: reason, Detail: detail}
	}); err != nil {
		return err
	}
	if err := p.findOrigins(ctx, late); err != nil {
		return err
	}
	for i := range late {
		found[at[i]] = late[i]
	}
	return nil
}

// blocks tells that the conflict stands in the way of the whole revert.
func (c *Conflict) blocks() bool {
	switch c.Resolution {
	case Skip:
		return false
	case Cascade:
		return len(c.origin.later) == 0
	case Overwrite:
		return c.stays || c.Kind == RowGone && c.Change != nil && c.Change.KeyChanged
	default:
		return true
	}
}

// overwrite turns what is to be done to rows that are gone, or were made anew,
// into what restores them nevertheless.
func (p *planner) overwrite(ctx context.Context) error {
	for i := range p.conflicts {
		c := &p.conflicts[i]
		if c.blocked || c.Resolution != Overwrite || c.row.skipped {
			continue
		}
		switch {
		case c.Kind == RowRecreated && c.row.action == Create && !c.row.missing:
			c.row.action = Update
		case c.Kind == RowGone && c.row.table.keyless:
			c.row.rebuildContents()
		case c.Kind == RowGone:
			if err := p.rebuild(ctx, c); err != nil {
				return err
			}
		}
	}
	return nil
}

// rebuild makes a whole row to be inserted out of the last that history has of one
// that is gone, with the selection undone in it.
func (p *planner) rebuild(ctx context.Context, c *Conflict) error {
	r := c.row
	last := c.Change
	if last == nil || last.Operation != Delete {
		change, err := Query{client: p.client}.AtPosition(r.last()).InDatabase(p.database).First(ctx)
		if err != nil {
			return err
		}
		last = &change
	}
	image := last.After
	if last.Operation == Delete {
		image = last.Before
	}
	m, err := p.atlas.at(ctx, last.Schema, last.Table, last.Position.LSN)
	if err != nil {
		return err
	}
	keep := &collapse{}
	nulls := make(map[string]bool)
	for _, d := range readDefects(&last.Defect, map[bool]string{true: "before", false: "after"}[last.Operation == Delete]) {
		if d.value == nil {
			return &UnrevertableError{Table: r.table.label(), Position: last.Position, Reason: fmt.Sprintf("history does not hold the exact value of column %q, which is not valid UTF-8", d.column)}
		}
		nulls[d.column] = true
	}
	image.eachMember(func(name, value []byte) {
		column, ok := m.columns[string(name)]
		if nulls[string(name)] {
			value = jsonNull
		}
		if ok && column.at >= 0 && !r.table.columns.list[column.at].derived && r.cell(column.at) == nil {
			r.cells = append(r.cells, cell{column: column.at, restore: keep.datum(value, column)})
		}
	})
	r.key = r.restoredKey()
	r.action, r.existed, r.exists = Create, true, false
	return nil
}

// planRevert makes a plan for people to look at: nothing is locked or written.
func (c *Client) planRevert(ctx context.Context, r Reversal) (*Plan, error) {
	p, err := c.newPlanner(ctx, r)
	if err != nil {
		return nil, err
	}
	var plan *Plan
	// The connection is held while others are used: one of c.source, of which there
	// are few, could wait for good for another of them.
	err = pgx.BeginTxFunc(ctx, c.snapshots, pgx.TxOptions{IsoLevel: pgx.RepeatableRead, AccessMode: pgx.ReadOnly}, func(tx pgx.Tx) error {
		p.tx = tx
		plan, err = p.build(ctx)
		return err
	})
	if err != nil {
		return nil, err
	}
	plan.Already, err = p.alreadyReverted(ctx)
	return plan, err
}
