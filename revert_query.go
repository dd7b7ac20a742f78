package audit

import (
	"context"
	"encoding/json"

	sq "github.com/Masterminds/squirrel"
)

// What a revert stamps beside the context of whoever does it.
const (
	revertMember  = "revert"     // true
	revertIDName  = "revertId"   // the revert's own id
	revertOfName  = "revertOf"   // a Unit
	revertWhyName = "reason"     // what Reason was given
	revertKeyName = "revertKey"  // the idempotency key
	revertHash    = "planHash"   // Plan.Hash
	revertPartial = "incomplete" // true if rows were skipped, or columns left out
)

// Reverts keeps the changes that were made by reverts.
func (q Query) Reverts() Query {
	q.rare = true
	return q.filter(sq.Expr(`(c.context IS NOT NULL AND c.context @> ?::jsonb)`, `{"`+revertMember+`":true}`))
}

// InRevert keeps the changes that the revert with this id made: the ID of its
// [Result].
func (q Query) InRevert(id string) Query {
	q.rare = true
	return q.withMember("InRevert", contextMember{revertIDName}, id)
}

// RevertsOf keeps the changes of those reverts that reverted this: for instance
// RevertsOf(audit.Unit{Kind: "request", ID: id}).
func (q Query) RevertsOf(unit Unit) Query {
	document, err := filterJSON(map[string]any{revertMember: true, revertOfName: unit.stamped()})
	if err != nil {
		return q.refuseFor("RevertsOf", err)
	}
	q.rare = true
	return q.filter(sq.Expr(`(c.context IS NOT NULL AND c.context @> ?::jsonb)`, document))
}

// Revert reports whether the change was made by a revert, and by which.
func (c Change) Revert() (PastRevert, bool) {
	if on, _ := c.Context.Extra[revertMember].(bool); !on {
		return PastRevert{}, false
	}
	r := PastRevert{
		Position: Position{LSN: c.Position.LSN}, TransactionID: c.TransactionID, CommittedAt: c.CommittedAt, User: c.Context.User(),
	}
	r.ID, _ = c.Context.Extra[revertIDName].(string)
	r.Reason, _ = c.Context.Extra[revertWhyName].(string)
	r.Partial, _ = c.Context.Extra[revertPartial].(bool)
	if of, err := json.Marshal(c.Context.Extra[revertOfName]); err == nil {
		_ = json.Unmarshal(of, &r.Of) // as much of it as there is
	}
	return r, true
}

// alreadyReverted looks for a revert of the same unit, or with the same key, that
// holds.
func (p *planner) alreadyReverted(ctx context.Context) (*PastRevert, error) {
	if p.r.key != "" {
		q := Query{client: p.client}.InDatabase(p.database).withMember("IdempotencyKey", contextMember{revertKeyName}, p.r.key)
		past, err := p.latest(ctx, q)
		if past != nil || err != nil {
			return past, err
		}
	}
	if p.r.unit.repeatable() {
		return nil, nil
	}
	past, err := p.standing(ctx, p.r.unit, 0)
	if past == nil || err != nil || past.Partial || p.lastSelected.LSN > past.Position.LSN {
		return nil, err
	}
	return past, nil
}

// latest returns the last revert that a query finds.
func (p *planner) latest(ctx context.Context, q Query) (*PastRevert, error) {
	q.rare = true
	for change, err := range q.Limit(1).All(ctx) {
		if err != nil {
			return nil, err
		}
		if past, ok := change.Revert(); ok {
			return &past, nil
		}
	}
	return nil, nil
}

// standing returns the last revert of a unit, unless that was itself reverted.
func (p *planner) standing(ctx context.Context, unit Unit, depth int) (*PastRevert, error) {
	past, err := p.latest(ctx, Query{client: p.client}.InDatabase(p.database).RevertsOf(unit))
	if past == nil || err != nil || depth > 1000 {
		return nil, err
	}
	redone, err := p.standing(ctx, Unit{Kind: "revert", ID: past.ID}, depth+1)
	if redone != nil || err != nil {
		return nil, err
	}
	return past, nil
}
