package audit

import (
	"context"

	"github.com/hindsight-go/audit/internal/history"
)

// stampContext is what the revert stamps: the context of whoever does it, and what
// it is.
func (a *applier) stampContext(ctx context.Context) context.Context {
	extra := map[string]any{
		revertMember: true, revertIDName: a.id, revertHash: a.plan.Hash,
		revertOfName: a.r.unit.stamped(),
	}
	if a.r.reason != "" {
		extra[revertWhyName] = clip(a.r.reason, reasonBytes)
	}
	if a.r.key != "" {
		extra[revertKeyName] = a.r.key
	}
	if a.isPartial() {
		extra[revertPartial] = true
	}
	return WithContext(ctx, Context{UserID: a.r.actor, Extra: extra})
}

// reasonBytes is how much of a reason is recorded.
const reasonBytes = 2000

// isPartial reports whether the revert leaves out a part of the unit.
func (a *applier) isPartial() bool {
	return a.plan.Skipped > 0 || a.r.columns != nil || a.r.except != nil || a.r.exceptTables != nil || a.r.exceptUsers != nil
}

// stampOr stamps the context that ctx carries, or else content.
func stampOr(ctx context.Context, tx Execer, content string) error {
	own, err := StampContent(ctx)
	if err != nil {
		return err
	}
	if own != nil {
		content = string(own)
	}
	_, err = tx.Exec(ctx, stampSQL, StampPrefix, content)
	return history.OpError("stamp context", err)
}
