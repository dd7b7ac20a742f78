package audit

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"hash"
	"iter"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"
)

// Plan is what a revert would do, and what is in its way. It was true when it was
// made; [Plan.Apply] carries out just this, or refuses if the live rows are no
// longer the same. A Plan is not changed by anything and may be read from several
// goroutines.
type Plan struct {
	// Of is what is reverted.
	Of Unit
	// Hash stands for what would be done to which rows. Another plan with the same
	// hash does the same; see [Reversal.IfHash].
	Hash string
	// Changes is how many changes were selected, First and Last are the first and
	// the last of them.
	Changes     int
	First, Last Position
	// Origins says who made these changes, and where: those with the most changes first,
	// at most 1,000. See [Reversal.AcrossUsers].
	Origins []Origin
	// Inserts, Updates and Deletes count the rows that would be put back, restored
	// and removed. Unchanged counts those that are already as they would be
	// restored, Skipped those that the policy leaves alone.
	Inserts, Updates, Deletes, Unchanged, Skipped int
	// Unrestored are the columns that the selection changed and that are left as they
	// are, because of Config.NeverRestored and Config.VersionColumns, or because triggers
	// set them.
	Unrestored []UnrestoredColumn
	// Conflicts are those with later work, with what the policy decided on each.
	Conflicts []Conflict
	// Cascaded are the later changes that [Cascade] and [CascadeRequests] revert as
	// well, oldest first: all of each transaction or request.
	Cascaded []Change
	// Already is the revert that has reverted the same thing before, if there was
	// one that has not been reverted itself. Apply then does nothing.
	Already *PastRevert

	p *planner
}

// PastRevert is a revert that happened before.
type PastRevert struct {
	// ID is what [Redo] and [Query.InRevert] take.
	ID string `json:"id"`
	// Of is what it reverted.
	Of Unit `json:"of"`
	// Position, TransactionID and CommittedAt are those of its transaction.
	Position      Position  `json:"position"`
	TransactionID uint64    `json:"transactionId"`
	CommittedAt   time.Time `json:"committedAt"`
	// User is who did it, Reason why.
	User   string `json:"user,omitempty"`
	Reason string `json:"reason,omitempty"`
	// Partial reports whether it left something out: rows that were skipped, or all but
	// some columns.
	Partial bool `json:"partial,omitempty"`
}

// Blocked returns the conflicts that keep the plan from being applied.
func (p *Plan) Blocked() []Conflict {
	var blocked []Conflict
	for _, c := range p.Conflicts {
		if c.blocked {
			blocked = append(blocked, c)
		}
	}
	return blocked
}

// Empty reports whether there is nothing to do.
func (p *Plan) Empty() bool { return p.Inserts+p.Updates+p.Deletes == 0 }

// Apply carries the plan out, in one transaction. It returns a [*StaleError] if
// the live rows are no longer what the plan saw, a [*ConflictError] if there
// are conflicts in its way, and what Refused returns. A plan may be applied once; see [Result.Already].
func (p *Plan) Apply(ctx context.Context) (*Result, error) {
	if err := p.ready(); err != nil {
		return nil, err
	}
	return p.p.client.applyRevert(ctx, p.p.r, p, false)
}

// DryRun does all that Apply does, triggers and constraints included, and rolls
// it back.
func (p *Plan) DryRun(ctx context.Context) (*Result, error) {
	if err := p.ready(); err != nil {
		return nil, err
	}
	return p.p.client.applyRevert(ctx, p.p.r, p, true)
}

// ApplyTx carries the plan out in the caller's transaction. See
// [Reversal.ApplyTx].
func (p *Plan) ApplyTx(ctx context.Context, tx pgx.Tx) (*Result, error) {
	if err := p.ready(); err != nil {
		return nil, err
	}
	return p.p.client.applyRevertIn(ctx, tx, p.p.r, p)
}

// ready refuses a plan that was read from JSON, say: it has no rows.
func (p *Plan) ready() error {
	if p.p == nil {
		return &RevertError{Method: "Plan", Reason: "only a plan that Reversal.Plan has returned can be applied: make a new one, and give IfHash the hash of this one"}
	}
	return p.p.client.open()
}

// PlannedRow is what a plan would do to one row.
type PlannedRow struct {
	RowRef
	// Action is [Create] to insert the row again, [Update] to restore columns of
	// it, [Delete] to remove it.
	Action Operation `json:"action"`
	// Columns are the columns of it that are written; all of them for Create and
	// Delete.
	Columns []PlannedColumn `json:"columns"`
	// Outcome says whether it is done at all.
	Outcome Outcome `json:"outcome"`
}

// PlannedColumn is a column of a [PlannedRow], with values as PostgreSQL prints
// them; nil is NULL, or that there is no row.
type PlannedColumn struct {
	Column  string  `json:"column"`
	Live    *string `json:"live"`
	Restore *string `json:"restore"`
}

// Outcome is what becomes of a row in a revert.
type Outcome string

// The outcomes.
const (
	// Reverted rows are put back to what they were.
	Reverted Outcome = "reverted"
	// AlreadyReverted rows are what they were, without any doing.
	AlreadyReverted Outcome = "already reverted"
	// Skipped rows are left alone because of a conflict.
	Skipped Outcome = "skipped"
	// InConflict are those that keep the plan from being applied.
	InConflict Outcome = "in conflict"
)

// Rows returns what the plan does to each row, in the order in which the selection
// first touched them.
func (p *Plan) Rows() iter.Seq[PlannedRow] {
	return func(yield func(PlannedRow) bool) {
		if p.p == nil {
			return
		}
		blocked := make(map[*netRow]bool)
		for _, c := range p.Conflicts {
			blocked[c.row] = blocked[c.row] || c.blocked
		}
		for _, r := range p.p.rows {
			if !yield(r.planned(blocked[r])) {
				return
			}
		}
	}
}

func (r *netRow) planned(blocked bool) PlannedRow {
	row := PlannedRow{RowRef: r.ref(), Action: r.action, Outcome: r.outcome()}
	if blocked {
		row.Outcome = InConflict
	}
	for i := range r.cells {
		c := &r.cells[i]
		column := PlannedColumn{Column: r.table.Columns.List[c.column].Name}
		live := c.seen()
		if r.action != Create {
			column.Live = live.pointer()
		}
		if r.action != Delete {
			column.Restore = c.restore.pointer()
		}
		row.Columns = append(row.Columns, column)
	}
	return row
}

func (r *netRow) outcome() Outcome {
	switch {
	case r.skipped:
		return Skipped
	case r.done:
		return AlreadyReverted
	}
	return Reverted
}

// plan makes the Plan of what was found out.
func (p *planner) plan() *Plan {
	for i := range p.conflicts {
		if c := p.conflicts[i].Change; c != nil {
			p.markClaim(c)
		}
	}
	plan := &Plan{
		Of: p.r.unit, Changes: p.changes, First: p.firstSelected, Last: p.lastSelected, Origins: p.origins,
		Conflicts: append(p.cascaded, p.conflicts...), p: p,
	}
	if p.atlas != nil {
		plan.Unrestored = p.atlas.unrestoredColumns()
	}
	digest := &digester{hash: sha256.New()}
	for _, r := range p.rows {
		switch {
		case r.skipped:
			plan.Skipped++
			continue
		case r.done:
			plan.Unchanged++
			continue
		case r.action == Create:
			plan.Inserts++
		case r.action == Delete:
			plan.Deletes++
		default:
			plan.Updates++
		}
		digest.add(r)
	}
	// What a policy goes over is a part of what was agreed to.
	about := make([]string, len(p.conflicts))
	for i := range p.conflicts {
		about[i] = p.conflicts[i].about()
	}
	slices.Sort(about)
	for _, text := range about {
		digest.buffer = append(digest.buffer, text...)
	}
	plan.Hash = digest.sum()
	return plan
}

// digester makes the hash of a plan.
type digester struct {
	hash   hash.Hash
	buffer []byte
	table  *target
	ident  string // of table
}

// add adds what is done to the row, and what is there now.
func (d *digester) add(r *netRow) {
	if d.table != r.table {
		d.table, d.ident = r.table, r.table.Ident()
	}
	d.text(d.ident)
	d.text(string(r.action))
	if r.table.keyless {
		d.text(textOfRow(r.table, r.whole))
	} else {
		for _, k := range r.key {
			d.text(k)
		}
	}
	for i := range r.cells {
		c := &r.cells[i]
		name := r.table.Columns.List[c.column].Name
		if r.action == Delete && r.table.leaves(c.column) {
			continue
		}
		d.text(name)
		d.value(c.restore.text)
		d.value(c.seen().text)
	}
	if len(d.buffer) > 32<<10 {
		d.flush()
	}
}

func (d *digester) text(s string) {
	d.buffer = append(binary.BigEndian.AppendUint32(d.buffer, uint32(len(s))), s...)
}

// value tells NULL from an empty text.
func (d *digester) value(text []byte) {
	size := uint32(len(text))
	if text == nil {
		size = 1<<32 - 1
	}
	d.buffer = append(binary.BigEndian.AppendUint32(d.buffer, size), text...)
}

func (d *digester) flush() {
	_, _ = d.hash.Write(d.buffer)
	d.buffer = d.buffer[:0]
}

func (d *digester) sum() string {
	d.flush()
	return hex.EncodeToString(d.hash.Sum(nil)[:16])
}
