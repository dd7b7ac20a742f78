package audit

import (
	"context"
	"slices"

	sq "github.com/Masterminds/squirrel"

	"github.com/hindsight-go/audit/internal/history"
	"github.com/hindsight-go/audit/store"
)

// The applier registers each revert in the store before it can be committed. What a
// change's context says of reverts is a claim: anybody who may write to a tracked
// table can make it.

// register enters the revert.
func (a *applier) register(ctx context.Context) error {
	of := a.r.unit.stamped()
	who, _ := FromContext(ctx)
	return a.client.history.Records.RegisterRevert(ctx, a.p.database, store.Revert{
		ID: a.id, TransactionID: a.result.TransactionID, UnitKind: of.Kind, UnitID: of.ID, Key: a.r.key,
		Partial: a.isPartial(), User: who.User(), Reason: clip(a.r.reason, reasonBytes),
	})
}

// alreadyReverted returns the revert that has undone the unit, or had the same key, if
// nothing is left to be done: the rows decide that, not the register.
func (p *planner) alreadyReverted(ctx context.Context, plan *Plan) (*PastRevert, error) {
	past, err := p.pastWithKey(ctx)
	if past != nil || err != nil {
		return past, err
	}
	if !plan.Empty() || plan.Skipped > 0 || len(plan.Conflicts) > 0 {
		return nil, nil
	}
	return p.pastOfUnit(ctx)
}

// pastWithKey returns the last revert with the idempotency key.
func (p *planner) pastWithKey(ctx context.Context) (*PastRevert, error) {
	if p.r.key == "" {
		return nil, nil
	}
	entries, err := p.client.history.Records.RevertsWithKey(ctx, p.database, p.r.key)
	if err != nil {
		return nil, history.OpError("look for reverts", err)
	}
	return p.client.lastRevert(ctx, p.database, entries)
}

// pastOfUnit returns the last revert of the unit.
func (p *planner) pastOfUnit(ctx context.Context) (*PastRevert, error) {
	if p.r.unit.repeatable() {
		return nil, nil
	}
	unit := p.r.unit.stamped()
	entries, err := p.client.history.Records.RevertsOf(ctx, p.database, unit.Kind, unit.ID)
	if err != nil {
		return nil, history.OpError("look for reverts", err)
	}
	return p.client.lastRevert(ctx, p.database, entries)
}

// lastRevert returns the last of some registered reverts that was committed.
func (c *Client) lastRevert(ctx context.Context, database string, entries []store.Revert) (*PastRevert, error) {
	for _, entry := range slices.Backward(entries) {
		past, err := c.pastRevert(ctx, database, entry)
		if past != nil || err != nil {
			return past, err
		}
	}
	return nil, nil
}

// pastRevert returns a registered revert as history has it, or nil if it was not
// committed as far as is known.
func (c *Client) pastRevert(ctx context.Context, database string, entry store.Revert) (*PastRevert, error) {
	of := Unit{Kind: entry.UnitKind, ID: entry.UnitID}
	document, err := filterJSON(map[string]any{revertIDName: entry.ID})
	if err != nil {
		return nil, history.OpError("look for reverts", err)
	}
	q := Query{client: c}.InDatabase(database).InTransaction(entry.TransactionID).
		filter(sq.Expr(`(c.context IS NOT NULL AND c.context @> ?::jsonb)`, document)).Limit(1)
	q.rare = true
	for change, err := range q.All(ctx) {
		if err != nil {
			return nil, err
		}
		if past, ok := change.Revert(); ok {
			past.Of = of
			return &past, nil
		}
	}
	if entry.Done == 0 {
		return nil, nil
	}
	return &PastRevert{
		ID: entry.ID, Of: of, Position: Position{LSN: entry.Done}, TransactionID: entry.TransactionID,
		User: entry.User, Reason: entry.Reason, Partial: entry.Partial,
	}, nil
}
