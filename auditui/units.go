package auditui

import (
	"cmp"
	"context"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/hindsight-go/audit"
)

// requestsView is the list of requests.
type requestsView struct {
	filterView
	Requests []requestLine
	listPages
}

// requestLine is a request in the list.
type requestLine struct {
	ID, Link       string
	Started, Ended time.Time
	Users          []string
	Endpoints      []string
	Counts         audit.Counts
	Tables         []string
}

func (q *request) requestsPage() error {
	q.loadStatus()
	var view requestsView
	code, err := q.fillFilter(&view.filterView, func(f filter) error { return q.fillRequests(&view, f) })
	if err != nil {
		return err
	}
	return q.render(code, "requests", "requests", "Requests", View{Page: "requests", Rows: len(view.Requests)}, view)
}

func (q *request) fillRequests(view *requestsView, f filter) error {
	matching, err := q.matching(f)
	if err != nil {
		return err
	}
	ctx, cancel := q.context(q.cfg.Timeout)
	defer cancel()
	before, after := audit.Cursor(q.query.Get("before")), audit.Cursor(q.query.Get("after"))
	page, err := matching.After(cmp.Or(before, after)).RequestsPageWithin(ctx, pageSize, q.searchTime())
	if err != nil {
		return err
	}
	for _, r := range page.Requests {
		line := requestLine{ID: r.ID, Link: q.link("requests", []string{r.ID}, nil), Started: r.StartedAt, Ended: r.EndedAt, Counts: r.Counts, Tables: r.Tables}
		for _, o := range r.Origins {
			q.users[o.User] = true
			line.Users = appendNew(line.Users, o.User)
			line.Endpoints = appendNew(line.Endpoints, o.Endpoint)
		}
		view.Requests = append(view.Requests, line)
	}
	view.linkRequests(q, page, before != "")
	if before != "" || after != "" {
		view.Newest = q.with()
	}
	return nil
}

// linkRequests links the pages before and behind this one.
func (view *requestsView) linkRequests(q *request, page audit.RequestPage, upwards bool) {
	older, newer := page.More && page.Next != "", page.Previous != ""
	switch {
	case page.Partial && upwards:
		view.searchFurther(q, page.SearchedTo, page.Previous, upwards)
		newer = false
	case page.Partial:
		view.searchFurther(q, page.SearchedTo, page.Next, upwards)
		older = false
	}
	if older {
		view.Older = q.with("after", string(page.Next))
	}
	if newer {
		view.Newer = q.with("before", string(page.Previous))
	}
}

func appendNew(list []string, item string) []string {
	if item == "" || slices.Contains(list, item) {
		return list
	}
	return append(list, item)
}

// unitView is a request, a transaction or a trace: what it did, table by table.
type unitView struct {
	Kind, ID  string
	First     changeView
	Users     []audit.Group
	Endpoints []audit.Group
	Tables    []unitTable
	Total     int64
	// Mixed reports whether more than one user or endpoint is in it.
	Mixed         bool
	Older, Newest string
	Undo          string
	Outside       string
	Reverts       []changeView
}

// unitTable is the part of a unit in one table.
type unitTable struct {
	Name    string
	Total   int64
	Changes []changeView
	Link    string
}

// unitOf is the query of a unit, by the kind and the id that an address has.
func (q *request) unitOf(all audit.Query, kind, id string) (audit.Query, error) {
	switch kind {
	case "request":
		return all.InRequest(id), nil
	case "trace":
		return all.InTrace(id), nil
	case "revert":
		return all.InRevert(id), nil
	case "transaction":
		number, err := strconv.ParseUint(id, 10, 64)
		if err != nil || number > 1<<63-1 {
			return all, errNoPage
		}
		return q.inDatabase(all).InTransaction(number), nil
	}
	return all, errNoPage
}

// unitKinds are the units that have a page, by the first part of its path.
var unitKinds = map[string]string{"requests": "request", "transactions": "transaction", "traces": "trace"}

func (q *request) unitPage() error {
	q.loadStatus()
	kind := unitKinds[strings.Split(strings.TrimPrefix(q.r.URL.Path, "/"), "/")[0]]
	id := q.segment("id", 1)
	all, err := q.changes()
	if err != nil {
		return err
	}
	if id == "" {
		return errNoPage
	}
	of, err := q.unitOf(all, kind, id)
	if err != nil {
		return err
	}
	view := unitView{Kind: kind, ID: id}
	if err := q.fillUnit(&view, of); err != nil {
		return err
	}
	if q.access.Revert && q.elsewhere(q.query.Get("database")) == nil || q.access.Revert && q.query.Get("database") == "" {
		view.Undo = q.link("undo", nil, url.Values{"unit": {kind}, "id": {id}})
	}
	switch {
	case kind == "request" && q.cfg.Links.Request != nil:
		view.Outside = webLink(q.cfg.Links.Request(id))
	case kind == "trace" && q.cfg.Links.Trace != nil:
		view.Outside = webLink(q.cfg.Links.Trace(id))
	}
	var tables []string
	for _, t := range view.Tables {
		tables = append(tables, t.Name)
	}
	q.tables = tables
	title := strings.ToUpper(kind[:1]) + kind[1:] + " " + id
	return q.render(http.StatusOK, "unit", "requests", title, View{Page: kind, Tables: tables, Unit: id, Rows: int(view.Total)}, view)
}

// fillUnit reads who is in a unit, and a page of its changes.
func (q *request) fillUnit(view *unitView, of audit.Query) error {
	ctx, cancel := q.context(q.cfg.Timeout)
	defer cancel()
	after := audit.Cursor(q.query.Get("after"))
	page, err := of.OldestFirst().After(after).Page(ctx, pageSize)
	if err != nil {
		return err
	}
	if len(page.Changes) == 0 {
		return errNoPage
	}
	var tables []audit.Group
	if err := q.countUnit(ctx, of, view, &tables); err != nil {
		return err
	}
	lines := q.changeViews(page.Changes, 2*shownColumns, shortValue)
	for _, g := range tables {
		part := unitTable{Name: g.Value, Total: g.Changes}
		for _, line := range lines {
			if line.Table == g.Value {
				part.Changes = append(part.Changes, line)
			}
		}
		if len(part.Changes) > 0 {
			view.Tables = append(view.Tables, part)
		}
	}
	if len(lines) > 0 {
		view.First = lines[0]
	}
	if page.More {
		view.Older = q.here("after", string(page.Next))
	}
	return nil
}

// countUnit counts the changes of a unit by table, user and endpoint.
func (q *request) countUnit(ctx context.Context, of audit.Query, view *unitView, tables *[]audit.Group) error {
	var counting sync.WaitGroup
	var errs [3]error
	counting.Go(func() { *tables, errs[0] = of.CountBy(ctx, audit.PerTable) })
	counting.Go(func() { view.Users, errs[1] = of.CountBy(ctx, audit.PerUser) })
	counting.Go(func() { view.Endpoints, errs[2] = of.CountBy(ctx, audit.PerEndpoint) })
	counting.Wait()
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	for _, g := range *tables {
		view.Total += g.Changes
	}
	view.Mixed = len(view.Users) > 1 || len(view.Endpoints) > 1
	for _, g := range view.Users {
		q.users[g.Value] = true
	}
	return nil
}
