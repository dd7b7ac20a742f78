package audit

import (
	"context"
	"fmt"
	"slices"
	"time"

	sq "github.com/Masterminds/squirrel"
	"github.com/jackc/pgx/v5"

	"github.com/hindsight-go/audit/internal/history"
	"github.com/hindsight-go/audit/internal/pgcatalog"
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
	// lock reports whether the rows are locked when they are looked at, and that
	// temporary tables may be made.
	lock     bool
	database string
	facts    *store.Facts
	through  *LSN // of a revert to a moment
	budget   *budget

	atlas    *atlas
	sel      selection
	selected map[Position]bool
	// firstSelected and lastSelected bound the selection.
	firstSelected, lastSelected Position
	changes                     int
	origins                     []Origin
	refused                     *SeveralUsersError // what keeps the plan from being applied
	collapsed                   bool               // rows are what the selection did, and nothing was done to them
	rows                        []*netRow
	lastKeys                    map[*netRow][]string // of rows to be put back, those that they had last
	dropped                     []Position           // selected changes that came to nothing
	groups                      []*group
	conflicts                   []Conflict
	cascaded                    []Conflict
	known                       map[string]int // conflicts of this round, by what they are about
	// reverts are the registered reverts since the selection began, by their ids, and
	// reverted the rows that they wrote to.
	reverts  map[string]store.Revert
	reverted map[pgcatalog.Name]map[string]bool

	live         map[*target]map[string]*netRow
	restored     map[*pgcatalog.ForeignKey]map[string]Operation
	parked       []parking
	leaving      []link // references to keys that change
	coming       []link // references of rows to be updated, to rows that come back
	waiting      []link // references of rows to be updated, to rows that are removed
	deletesLast  bool
	updatesFirst bool
	insertsFirst bool
	steps        []step
}

// newPlanner prepares a plan: everything about history that has to be known, and
// waits until the store holds what was committed.
func (c *Client) newPlanner(ctx context.Context, r Reversal) (*planner, error) {
	p := &planner{client: c, r: r, budget: &budget{max: r.memory()}}
	var err error
	if p.database, err = c.history.Database(ctx); err != nil {
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
	if p.facts, err = c.history.FreshFacts(ctx, p.database); err != nil {
		return nil, err
	}
	if p.sel, err = p.selection(ctx); err != nil {
		return nil, err
	}
	if r.to != nil {
		t, err := c.travel(ctx, *r.to)
		if err != nil {
			return nil, err
		}
		if err := p.coveredSince(t); err != nil {
			return nil, err
		}
		p.through = &t.through
		p.sel.after = &t.through
		if r.row != nil {
			p.sel.truncated = r.tables[0]
			if err := p.sameKeySince(ctx, t); err != nil {
				return nil, err
			}
		}
	}
	return p, nil
}

// selection is what the unit selects. A revert is known from the register: what only
// claims to be a part of it is not.
func (p *planner) selection(ctx context.Context) (selection, error) {
	s := selection{query: p.r.query, database: p.database}
	if len(p.r.exceptTables) > 0 {
		s.query = s.query.NotTable(p.r.exceptTables...)
	}
	if len(p.r.exceptUsers) > 0 {
		s.query = s.query.NotUser(p.r.exceptUsers...)
	}
	if p.r.unit.Kind != "revert" {
		return s, nil
	}
	entry, found, err := p.client.history.Records.Revert(ctx, p.database, p.r.unit.ID)
	if err != nil {
		return s, history.OpError("look for the revert", err)
	}
	if !found {
		return s, fmt.Errorf("%w: the register has no %s", ErrNothingSelected, p.r.unit)
	}
	s.query = s.query.InTransaction(entry.TransactionID)
	return s, nil
}

// sameKeySince refuses to take one row of a table back to a moment at which the table
// had another primary key: its changes are not to be found by the key of now.
func (p *planner) sameKeySince(ctx context.Context, t *travel) error {
	past, err := t.table(ctx, p.r.tables[0])
	if err != nil || !past.turned(t.through, maxLSN) {
		return nil //nolint:nilerr // what is not known of the moment is not asked for
	}
	return &UnrevertableError{Table: past.qualified(), Reason: "the table had another primary key at the moment, by which the row's changes stand in history: take back the table with RevertTables"}
}

// coveredSince refuses to go back to a moment if history misses something since:
// of any of the tables, by the names that they have now.
func (p *planner) coveredSince(t *travel) error {
	through := t.through
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
		name, err := pgcatalog.ParseName(table)
		if err != nil {
			return &FilterError{Filter: "ForTable", Reason: err.Error(), cause: err}
		}
		known, since, sinceTime := false, LSN(0), time.Time{}
		for _, v := range p.facts.Coverage {
			if v.Table != name.Table || name.Schema != "" && v.Schema != name.Schema {
				continue
			}
			known = true
			if v.Until == 0 && v.From > since {
				since, sinceTime = v.From, v.FromTime.UTC()
			}
		}
		switch {
		case !known:
			return &HistoryError{Table: table, Asked: p.r.to.String(), Reason: ErrNotTracked}
		case since == 0:
			return &HistoryError{Table: table, Asked: p.r.to.String(), Reason: ErrNotTracked, Detail: "there is no such table any more"}
		case since > through, !t.at.IsZero() && t.at.Before(sinceTime): // until the first commit behind a time nothing was written that is known
			return &HistoryError{Table: table, Asked: p.r.to.String(), Reason: ErrBeforeHistory, Earliest: Position{LSN: since}, EarliestTime: sinceTime}
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
	if err := p.checkConverted(ctx); err != nil {
		return nil, err
	}
	plan := p.plan()
	if len(plan.Blocked()) > 0 {
		return plan, nil
	}
	var err error
	if p.steps, err = p.order(); err != nil {
		return nil, err
	}
	plan.Cascaded, err = p.changesAt(ctx, p.sel.extra)
	for i := range plan.Cascaded {
		p.markClaim(&plan.Cascaded[i])
	}
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
	return collectAll(ctx, p.client, "read changes", b, scanChange)
}

// round makes a plan for the selection as it is, and tells whether a cascade has
// added to that.
func (p *planner) round(ctx context.Context) (again bool, err error) {
	if !p.collapsed {
		if err := p.collapse(ctx); err != nil {
			return false, err
		}
	}
	p.collapsed = false
	p.conflicts, p.known = nil, make(map[string]int)
	if err := p.findReverts(ctx); err != nil {
		return false, err
	}
	if err := p.inspectAll(ctx); err != nil {
		return false, err
	}
	if p.lock { // others may have reverted something while this waited for the rows
		if err := p.findReverts(ctx); err != nil {
			return false, err
		}
	}
	if err := p.traceLater(ctx); err != nil {
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
	p.atlas.r = p.r
	c, err := p.read(ctx)
	if err != nil && !p.sel.inOrder() && p.tx.Conn().PgConn().TxStatus() == 'T' {
		// They are not in order, or what came of them may be due to that.
		p.sel.sorted = true
		c, err = p.read(ctx)
	}
	if err != nil {
		return err
	}
	if c.changes == 0 {
		if p.r.unit.repeatable() {
			p.rows = nil
			return nil
		}
		return fmt.Errorf("%w: revert %s", ErrNothingSelected, p.r.unit)
	}
	if err := p.whole(); err != nil {
		return err
	}
	p.changes = c.changes
	// Behind the changes themselves, which may get more meanwhile.
	if err := p.findUsers(ctx); err != nil {
		return err
	}
	p.r.report(Progress{Step: "select", Done: c.changes, Total: c.changes})
	if err := p.checkColumns(); err != nil {
		return err
	}
	p.rows, p.lastKeys = c.finish(), make(map[*netRow][]string)
	p.dropped = c.dropped
	if err := p.convert(ctx, p.rows); err != nil {
		return err
	}
	for _, r := range p.rows {
		if r.action == Create { // it comes back under the key that it had at first
			p.lastKeys[r] = r.storedKey()
			r.key = r.restoredKey()
		}
		if err := p.checkRow(r); err != nil {
			return err
		}
	}
	return p.client.describeTargets(ctx, p.tx, p.atlas.targets)
}

// read reads the selection.
func (p *planner) read(ctx context.Context) (*collapse, error) {
	c := newCollapse(p.atlas, p.r.limit(), p.r.columns, p.budget)
	c.row = p.r.row
	p.budget.spent = 0
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
	if err == nil {
		err = p.budget.err()
	}
	return c, err
}

// whole refuses a selection that reaches across a gap: what the unit did in the
// meantime would stay, without a word.
func (p *planner) whole() error {
	if p.r.asStored {
		return nil
	}
	for _, gap := range p.facts.Gaps {
		if gap.From <= p.lastSelected.LSN && gap.To > p.firstSelected.LSN {
			return &HistoryError{
				Asked: "AtPosition(" + p.firstSelected.LSN.String() + ")", Reason: ErrInGap,
				Detail: "what " + p.r.unit.String() + " changed reaches across the gap; AsStored reverts what history knows of it",
			}
		}
	}
	return nil
}

// checkColumns refuses to revert columns that none of the tables has or had: it would
// be nothing, without a word.
func (p *planner) checkColumns() error {
	known := make(map[string]bool)
	for _, t := range p.atlas.targets {
		for name := range t.Columns.Index {
			known[name] = true
		}
	}
	for _, m := range p.atlas.maps {
		for name := range m.columns {
			known[name] = true
		}
	}
	for method, names := range map[string][]string{"Columns": p.r.columns, "Except": p.r.except} {
		for _, name := range names {
			if !known[name] {
				return &RevertError{Method: method, Reason: fmt.Sprintf("none of the tables in the selection has a column %q", name)}
			}
		}
	}
	return nil
}

// checkRow refuses what no statement can do.
func (p *planner) checkRow(r *netRow) error {
	for _, c := range r.cells {
		column := &r.table.Columns.List[c.column]
		if r.action == Update && c.restore.known && c.restore.text == nil && slices.Contains(r.table.keyAt, c.column) && !r.table.keyless {
			return &UnrevertableError{
				Table: r.table.label(), Position: r.first(),
				Reason: fmt.Sprintf("column %q belongs to the primary key now, and had no value then; Except(%q) leaves it as it is", column.Name, column.Name),
			}
		}
		if r.action == Update && column.Identity == "a" && !c.restore.equal(c.expect) {
			return &UnrevertableError{
				Table: r.table.label(), Position: r.first(),
				Reason: fmt.Sprintf("column %q is GENERATED ALWAYS AS IDENTITY, which an UPDATE can only set to its default", column.Name),
			}
		}
	}
	return nil
}

// isSelected reports whether a change is one of those to be reverted.
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
			if err := part.inspect(ctx, p.tx, part.stageArrays(), p.lock, p.budget); err != nil {
				return err
			}
			if err := part.inspectUnknown(ctx, p.tx, p.budget); err != nil {
				return err
			}
			done += len(part.rows)
			p.r.report(Progress{Step: "compare", Table: g.table.label(), Done: done, Total: len(p.rows)})
		}
	}
	return nil
}

// planRevert makes a plan for people to look at: nothing is locked or written.
func (c *Client) planRevert(ctx context.Context, r Reversal) (plan *Plan, err error) {
	ctx, span := c.span(ctx, spanPlan)
	defer func() { span.end(err, plan.attributes()...) }()
	p, err := c.newPlanner(ctx, r)
	if err != nil {
		return nil, err
	}
	// The connection is held while others are used: one of c.source, of which there
	// are few, could wait for good for another of them.
	err = pgx.BeginTxFunc(ctx, c.history.SourceLong, pgx.TxOptions{IsoLevel: pgx.RepeatableRead, AccessMode: pgx.ReadOnly}, func(tx pgx.Tx) error {
		p.tx = tx
		if err := pinTexts(ctx, tx); err != nil {
			return err
		}
		plan, err = p.build(ctx)
		return err
	})
	if err != nil {
		return nil, err
	}
	plan.Already, err = p.alreadyReverted(ctx, plan)
	return plan, err
}
