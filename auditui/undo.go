package auditui

import (
	"context"
	"errors"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"

	"github.com/hindsight-go/audit"
)

// checkedConflicts is how many changes behind conflicts are looked up for somebody who may
// not see everything.
const checkedConflicts = 200

// errPartly is for what somebody may see a part of only.
var errPartly = errors.New("auditui: a part of it is outside of what may be seen")

// resolutions are the choices about conflicts, as addresses have them.
var resolutions = []struct {
	name       string
	resolution audit.Resolution
	all, one   string
}{
	{"abort", audit.Abort, "do nothing while there are conflicts", "decide later"},
	{"skip", audit.Skip, "leave rows in conflict as they are", "leave the row as it is"},
	{"overwrite", audit.Overwrite, "overwrite later work", "overwrite the later work"},
	{"cascade", audit.Cascade, "undo the later transactions, too", "undo the later transaction, too"},
	{"requests", audit.CascadeRequests, "undo the later requests, too", "undo the later request, too"},
}

func resolutionOf(name string) (audit.Resolution, bool) {
	for _, r := range resolutions {
		if r.name == name {
			return r.resolution, true
		}
	}
	return audit.Abort, false
}

// undoMembers are the members of an address that make a plan.
func undoMember(name string) bool {
	return slices.Contains([]string{"unit", "id", "table", "key", "to", "across", "policy", "except"}, name) || strings.HasPrefix(name, "c.")
}

// undoQuery is the address of the plan, without anything else.
func (q *request) undoQuery() url.Values {
	values := make(url.Values)
	for name, v := range q.query {
		if undoMember(name) {
			values[name] = slices.DeleteFunc(slices.Clone(v), func(s string) bool { return s == "" })
		}
	}
	return values
}

// asked is a revert that an address asks for.
type asked struct {
	audit.Reversal
	kind, id string
	redo     bool
}

// askedFor reads the revert of the address. What is outside of what somebody may see is
// refused before anything of it is looked at.
func (q *request) askedFor(ctx context.Context) (*asked, error) {
	a := &asked{kind: q.query.Get("unit"), id: q.query.Get("id")}
	switch a.kind {
	case "request", "trace", "transaction", "revert", "change":
		if err := q.within(ctx, a); err != nil {
			return nil, err
		}
	}
	switch a.kind {
	case "request":
		a.Reversal = q.client.RevertRequest(a.id)
	case "trace":
		a.Reversal = q.client.RevertTrace(a.id)
	case "transaction":
		number, err := strconv.ParseUint(a.id, 10, 64)
		if err != nil {
			return nil, errNoPage
		}
		a.Reversal = q.client.RevertTransaction(number)
	case "revert":
		a.Reversal, a.redo = q.client.Redo(a.id), true
	case "change":
		position, err := parsePosition(a.id)
		if err != nil {
			return nil, errNoPage
		}
		a.Reversal = q.client.RevertChange(position)
	case "row", "tables":
		if err := q.askedForState(ctx, a); err != nil {
			return nil, err
		}
	default:
		return nil, errNoPage
	}
	a.Reversal = a.MaxRows(q.cfg.MaxRevertRows).OnConflict(audit.Resolve(q.resolve))
	if except := slices.DeleteFunc(slices.Clone(q.query["except"]), func(s string) bool { return s == "" }); len(except) > 0 {
		a.Reversal = a.Except(except...)
	}
	if q.query.Get("across") != "" {
		a.Reversal = a.AcrossUsers()
	}
	return a, nil
}

// askedForState reads a revert to what a row or a table was.
func (q *request) askedForState(ctx context.Context, a *asked) error {
	if !q.rowPages() {
		return errNoPage
	}
	table, err := q.table(q.query.Get("table"))
	if err != nil {
		return err
	}
	to, err := q.moment(q.query.Get("to"))
	if err != nil {
		return err
	}
	// A plan back to a moment that history cannot tell would lead to another one.
	for _, err := range to.Table(table).Limit(1).All(ctx) {
		if err != nil {
			return err
		}
	}
	if a.kind == "tables" {
		if q.access.Scope != nil {
			return errNoPage // rows of others are in it
		}
		a.Reversal = q.client.RevertTables(to, table)
		return nil
	}
	if err := q.mayAskForKey(table); err != nil {
		return err
	}
	key := q.query.Get("key")
	if key == "" || !q.mayRow(ctx, table, key) {
		return errNoPage
	}
	several, one := keyParts(key)
	a.Reversal = q.client.RevertRow(to, table, one...)
	if several != nil {
		// Which of the two it is, the number of columns of the key tells.
		var filter *audit.FilterError
		if _, err := q.client.History(table, several...).Limit(1).List(ctx); !errors.As(err, &filter) {
			a.Reversal = q.client.RevertRow(to, table, several...)
		}
	}
	return nil
}

// restricted reports whether whoever asks may see a part of history only.
func (q *request) restricted() bool { return q.access.Tables != nil || q.access.Scope != nil }

// within refuses what somebody may not see all of. History only grows, so what is counted
// after a plan was made holds for that plan.
func (q *request) within(ctx context.Context, a *asked) error {
	if !q.restricted() || a.kind == "row" || a.kind == "tables" {
		return nil
	}
	narrow := func(all audit.Query) (audit.Query, error) {
		if a.kind != "change" {
			return q.unitOf(all, a.kind, a.id)
		}
		position, err := parsePosition(a.id)
		if err != nil || position.Sequence == 0 {
			return all, errNoPage
		}
		return q.inDatabase(all).AtPosition(position), nil
	}
	visible, err := q.changes()
	if err != nil {
		return err
	}
	mine, err := narrow(visible)
	if err != nil {
		return err
	}
	whole, err := narrow(q.client.Changes())
	if err != nil {
		return err
	}
	seen, err := mine.Count(ctx)
	if err != nil {
		return err
	}
	all, err := whole.Count(ctx)
	switch {
	case err != nil:
		return err
	case seen == 0:
		return errNoPage
	case seen != all:
		return errPartly
	}
	return nil
}

// planWithin refuses a plan that shows or touches what somebody may not see: later work of
// others in its way, or taken along.
func (q *request) planWithin(ctx context.Context, a *asked, plan *audit.Plan) error {
	if !q.restricted() {
		return nil
	}
	if err := q.within(ctx, a); err != nil {
		return err
	}
	for row := range plan.Rows() {
		if !q.mayTable(row.Table) {
			return errPartly
		}
	}
	visible, err := q.changes()
	if err != nil {
		return err
	}
	behind := make(map[audit.Position]bool)
	for i := range plan.Conflicts {
		c := &plan.Conflicts[i]
		if c.Other != nil && !q.mayTable(c.Other.Table) || c.Change == nil && q.access.Scope != nil {
			return errPartly
		}
		if c.Change != nil {
			behind[c.Change.Position] = true
		}
	}
	for i := range plan.Cascaded {
		behind[plan.Cascaded[i].Position] = true
	}
	if len(behind) > checkedConflicts {
		return errPartly
	}
	for position := range behind {
		n, err := q.inDatabase(visible).AtPosition(position).Count(ctx)
		if err != nil {
			return err
		}
		if n == 0 {
			return errPartly
		}
	}
	return nil
}

// resolve decides on a conflict as the address says: on this one, or on all.
func (q *request) resolve(c audit.Conflict) audit.Resolution {
	if r, ok := resolutionOf(q.query.Get("c." + q.conflictID(&c))); ok {
		return r
	}
	r, _ := resolutionOf(q.query.Get("policy"))
	return r
}

func (q *request) undoPage() error {
	if !q.access.Revert {
		return errNoPage
	}
	q.loadStatus()
	ctx, cancel := q.context(q.cfg.RevertTimeout)
	defer cancel()
	return q.showPlan(ctx, http.StatusOK, &undoView{Reason: q.query.Get("reason")})
}
