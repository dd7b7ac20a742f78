package auditui

import (
	"net/http"
	"net/url"
	"time"

	"github.com/hindsight-go/audit"
)

// revertsView is the list of reverts.
type revertsView struct {
	Reverts       []revertLine
	Older, Newest string
}

type revertLine struct {
	At       time.Time
	ID, Link string
	Of       string
	OfLink   string
	User     string
	Reason   string
	Partial  bool
	Claimed  bool
	Changes  int64
	Tables   []string
}

// revertsOnPage is how many reverts a page lists.
const revertsOnPage = 25

func (q *request) revertsPage() error {
	q.loadStatus()
	ctx, cancel := q.context(q.cfg.Timeout)
	defer cancel()
	all, err := q.changes()
	if err != nil {
		return err
	}
	after := audit.Cursor(q.query.Get("after"))
	page, err := all.Reverts().After(after).TransactionsPage(ctx, revertsOnPage)
	if err != nil {
		return err
	}
	var view revertsView
	for _, t := range page.Transactions {
		change, err := all.InDatabase(t.Database).AtPosition(audit.Position{LSN: t.Position, Sequence: t.First}).First(ctx)
		if err != nil {
			return err
		}
		line := q.revertLine(&change)
		line.Changes, line.Tables = t.Total(), t.Tables
		view.Reverts = append(view.Reverts, line)
	}
	if page.More {
		view.Older = "?" + url.Values{"after": {string(page.Next)}}.Encode()
	}
	if after != "" {
		view.Newest = "?"
	}
	return q.render(http.StatusOK, "reverts", "reverts", "Reverts", View{Page: "reverts", Rows: len(view.Reverts)}, view)
}

// revertLine is what the change of a revert says of it.
func (q *request) revertLine(c *audit.Change) revertLine {
	line := revertLine{At: c.CommittedAt, User: c.Context.User(), Claimed: c.RevertClaimed}
	q.users[line.User] = true
	r, ok := c.Revert()
	if !ok {
		return line
	}
	line.ID, line.Link, line.Reason, line.Partial = r.ID, q.link("reverts", []string{r.ID}, nil), visible(r.Reason), r.Partial
	line.Of = visible(r.Of.String())
	line.OfLink = q.unitLink(r.Of)
	return line
}

// unitLink is the page of what was reverted, if it has one.
func (q *request) unitLink(of audit.Unit) string {
	switch of.Kind {
	case "request", "transaction", "trace", "revert":
		return q.link(of.Kind+"s", []string{of.ID}, nil)
	case "change":
		if position, err := audit.ParsePosition(of.ID); err == nil {
			return q.link("changes", []string{positionSegment(position)}, nil)
		}
	}
	return ""
}

// revertView is one revert.
type revertView struct {
	unitView
	Line revertLine
	Redo string
	// Redone are the reverts of this one.
	Redone []revertLine
}

func (q *request) revertPage() error {
	q.loadStatus()
	id := q.segment("id", 1)
	all, err := q.changes()
	if err != nil {
		return err
	}
	if id == "" {
		return errNoPage
	}
	of := all.InRevert(id)
	view := revertView{unitView: unitView{Kind: "revert", ID: id}}
	if err := q.fillUnit(&view.unitView, of); err != nil {
		return err
	}
	ctx, cancel := q.context(q.cfg.Timeout)
	defer cancel()
	change, err := of.OldestFirst().First(ctx)
	if err != nil {
		return err
	}
	view.Line = q.revertLine(&change)
	redone, err := all.RevertsOf(audit.Unit{Kind: "revert", ID: id}).Limit(revertsOnPage).TransactionsPage(ctx, revertsOnPage)
	if err != nil {
		return err
	}
	for _, t := range redone.Transactions {
		later, err := all.InDatabase(t.Database).AtPosition(audit.Position{LSN: t.Position, Sequence: t.First}).First(ctx)
		if err != nil {
			return err
		}
		view.Redone = append(view.Redone, q.revertLine(&later))
	}
	if q.access.Revert && !view.Line.Claimed {
		view.Redo = q.link("undo", nil, url.Values{"unit": {"revert"}, "id": {id}})
	}
	var tables []string
	for _, t := range view.Tables {
		tables = append(tables, t.Name)
	}
	q.tables = tables
	return q.render(http.StatusOK, "revert", "reverts", "Revert "+id, View{Page: "revert", Tables: tables, Unit: id, Rows: int(view.Total)}, view)
}
