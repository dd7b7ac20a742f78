package audit

import (
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

// Reverts keeps the changes that were made by reverts, as far as their contexts say: a
// claim that anybody can stamp, which [Change.RevertClaimed] tells. [Result.Already] and [Redo] go by the store's register.
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

// Revert reports whether the change was made by a revert, and by which. Of one that only
// claims to be ([Change.RevertClaimed]) it reports false.
func (c Change) Revert() (PastRevert, bool) {
	if c.RevertClaimed || !claimsRevert(&c.Context) {
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
