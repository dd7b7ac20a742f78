package auditui

import (
	"context"
	"errors"
	"net/http"
	"strings"

	"github.com/hindsight-go/audit"
)

// mostReason bounds the reason of a revert, mostForm the form that asks for one.
const (
	mostReason = 2_000
	mostForm   = 1 << 20
)

// applyPage carries out the plan that was shown, or shows what it has become.
func (q *request) applyPage() error {
	if !q.access.Revert {
		return errNoPage
	}
	q.r.Body = http.MaxBytesReader(q.w, q.r.Body, mostForm)
	if err := q.r.ParseForm(); err != nil {
		return &requestError{"The form is damaged."}
	}
	q.loadStatus()
	form := q.r.PostForm
	if !storable(form) {
		return &requestError{"The form is damaged."}
	}
	hash, ok := q.signed(form)
	if !ok {
		return errForm
	}
	// Whoever pressed the button has decided, and does not undecide it by going away.
	ctx, cancel := context.WithTimeoutCause(context.WithoutCancel(q.r.Context()), q.cfg.RevertTimeout, errTimeout)
	defer cancel()
	view := &undoView{Reason: strings.TrimSpace(form.Get("reason"))}
	switch {
	case view.Reason == "":
		view.Problem = "Say why: the reason stands in the history."
	case len(view.Reason) > mostReason:
		view.Problem = "The reason is too long."
	case form.Get("need") != "" && strings.TrimSpace(form.Get("confirm")) != form.Get("need"):
		view.Problem = "To confirm, type the number of rows: " + form.Get("need") + "."
	}
	if view.Problem != "" {
		return q.showPlan(ctx, http.StatusUnprocessableEntity, view)
	}
	a, err := q.askedFor(ctx)
	if err != nil {
		return err
	}
	// What whoever asks may see may have become less since the plan was shown.
	if q.restricted() {
		plan, err := a.Plan(ctx)
		if err != nil {
			return err
		}
		if err := q.planWithin(ctx, a, plan); err != nil {
			return err
		}
	}
	result, err := a.Actor(q.access.User).Reason(view.Reason).IfHash(hash).IdempotencyKey(form.Get("key")).Apply(ctx)
	var stale *audit.StaleError
	var conflict *audit.ConflictError
	switch {
	case errors.As(err, &stale), errors.As(err, &conflict):
		view.Stale, view.Shown = true, form.Get("shown")
		return q.showPlan(ctx, http.StatusConflict, view)
	case err != nil:
		return err
	}
	return q.applied(ctx, result)
}

// applied leads to the revert in the history, once it is there.
func (q *request) applied(ctx context.Context, result *audit.Result) error {
	id := result.ID
	if result.Already != nil {
		id = result.Already.ID
	}
	if id == "" {
		return q.showPlan(ctx, http.StatusOK, &undoView{Problem: "There was nothing to do."})
	}
	waiting, cancel := context.WithTimeout(ctx, q.cfg.Timeout)
	defer cancel()
	to := q.link("reverts", []string{id}, nil)
	if err := q.client.WaitFor(waiting, result.Token); err != nil {
		return q.render(http.StatusOK, "done", "reverts", "Done", View{}, doneView{ID: id, Link: to, Rows: result.Inserted + result.Updated + result.Deleted})
	}
	q.w.Header().Set("Location", to)
	q.sent = true
	q.w.WriteHeader(http.StatusSeeOther)
	return nil
}

// doneView is a revert that history does not have yet.
type doneView struct {
	ID, Link string
	Rows     int
}
