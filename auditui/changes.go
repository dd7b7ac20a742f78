package auditui

import (
	"context"
	"errors"
	"net/http"
	"net/url"
	"slices"
	"sync"
	"time"

	"github.com/hindsight-go/audit"
)

const (
	// pageSize is how many lines a list has.
	pageSize = 50
	// countedChanges is how far the lines of a list are counted.
	countedChanges = 10_000
	// shownColumns is how many columns of a change a line shows.
	shownColumns = 6
)

// changesView is the list of changes.
type changesView struct {
	filterView
	Changes []changeView
	listPages
	// Count is how many changes there are, Capped that there are more, Counted that it is
	// known at all.
	Count           int64
	Capped, Counted bool
	Trend           *trendView
	Warnings        []string
	CSV, JSONL      string
	Tail            string
}

func (q *request) changesPage() error {
	q.loadStatus()
	var view changesView
	code, err := q.fillFilter(&view.filterView, func(f filter) error { return q.fillChanges(&view, f) })
	if err != nil {
		return err
	}
	return q.render(code, "changes", "changes", "Changes", View{Page: "changes", Tables: tablesOf(view.Changes), Rows: len(view.Changes)}, view)
}

func tablesOf(changes []changeView) []string {
	var tables []string
	for i := range changes {
		tables = append(tables, changes[i].Table)
	}
	slices.Sort(tables)
	return slices.Compact(tables)
}

// fillChanges reads a page of the list, and beside it counts what there is, which may
// take too long without taking the list along.
func (q *request) fillChanges(view *changesView, f filter) error {
	matching, err := q.matching(f)
	if err != nil {
		return err
	}
	ctx, cancel := q.context(q.cfg.Timeout)
	defer cancel()
	counting, stopCounting := context.WithTimeout(ctx, q.cfg.SearchTime)
	var counted sync.WaitGroup
	defer counted.Wait()
	defer stopCounting()
	var trend []audit.Step
	var trendErr error
	counted.Go(func() { trend, trendErr = steps(counting, matching) })

	before, after := audit.Cursor(q.query.Get("before")), audit.Cursor(q.query.Get("after"))
	page, err := readPage(ctx, matching, before, after, q.searchTime())
	if err != nil {
		return err
	}
	view.Changes = q.changeViews(page.Changes, shownColumns, shortValue)
	view.Warnings = q.warnings(f, page.Warnings)
	q.linkPages(view, matching, page, before, after)
	if whole := before == "" && after == "" && !page.More; whole {
		view.Count, view.Counted = int64(len(page.Changes)), true
	}
	if page.Partial || len(page.Changes) == 0 {
		stopCounting() // there is nothing to count, or nobody knows how much
	}
	counted.Wait()
	if trendErr == nil && !page.Partial {
		view.fillTrend(q, trend)
	}
	if q.access.Export {
		view.CSV = q.link("export", nil, withFormat(q.filters(), "csv"))
		view.JSONL = q.link("export", nil, withFormat(q.filters(), "jsonl"))
	}
	view.Tail = q.link("tail", nil, q.filters())
	return nil
}

func withFormat(filters url.Values, format string) url.Values {
	filters.Set("format", format)
	return filters
}

// readPage reads the page behind one place, or the one before another: that is the one
// behind it in the opposite order.
func readPage(ctx context.Context, matching audit.Query, before, after audit.Cursor, searching time.Duration) (audit.Page, error) {
	if before == "" {
		return matching.After(after).PageWithin(ctx, pageSize, searching)
	}
	page, err := matching.OldestFirst().After(before).PageWithin(ctx, pageSize, searching)
	slices.Reverse(page.Changes)
	return page, err
}

// linkPages links the pages before and behind this one. Cursors are places in one order,
// so that of the opposite order is made anew.
func (q *request) linkPages(view *changesView, matching audit.Query, page audit.Page, before, after audit.Cursor) {
	if before != "" || after != "" {
		view.Newest = q.with()
	}
	if page.Partial {
		view.searchFurther(q, page.SearchedTo, page.Next, before != "")
	}
	if len(page.Changes) == 0 {
		return
	}
	first, last := page.Changes[0], page.Changes[len(page.Changes)-1]
	if before != "" || page.More && !page.Partial {
		view.Older = q.with("after", string(matching.CursorAfter(last)))
	}
	if before != "" && page.More && !page.Partial || before == "" && after != "" {
		view.Newer = q.with("before", string(matching.OldestFirst().CursorAfter(first)))
	}
}

// steps counts the newest changes over time: by the hour, and where they are of a few
// hours only, by the minute.
func steps(ctx context.Context, matching audit.Query) ([]audit.Step, error) {
	newest := matching.NewestFirst().Limit(countedChanges + 1)
	byHour, err := newest.Trend(ctx, audit.EveryHour)
	var filter *audit.FilterError
	switch {
	case errors.As(err, &filter):
		return newest.Trend(ctx, audit.EveryMonth)
	case err == nil && len(byHour) > 0 && len(byHour) <= 3:
		return newest.Trend(ctx, audit.EveryMinute)
	}
	return byHour, err
}

// warnings are those of a query in words. For somebody who may see a part, what is not to be
// seen is as unknown as what is not there.
func (q *request) warnings(f filter, of []error) (texts []string) {
	if q.restricted() && q.status == nil {
		return nil
	}
	if q.restricted() {
		known := slices.ContainsFunc(q.status.Tables, func(t audit.TableStatus) bool {
			name := tableName(t.Schema, t.Table)
			return q.mayTable(name) && (name == f.Table || t.Table == f.Table || tableName("", t.Table) == f.Table)
		})
		if f.Table != "" && !known {
			texts = append(texts, "The history knows no table "+visible(f.Table)+".")
		}
		return texts
	}
	for _, warning := range of {
		texts = append(texts, warningText(warning))
	}
	return texts
}

// warningText is a warning of a query in words.
func warningText(warning error) string {
	var unknown *audit.UnknownNameError
	var renamed *audit.RenamedTableError
	switch {
	case errors.As(warning, &unknown):
		return "The history knows no " + unknown.Kind + " " + visible(unknown.Name) + "."
	case errors.As(warning, &renamed):
		text := "The table " + visible(renamed.Table) + " has had other names, and has changes under these:"
		for _, name := range renamed.Others {
			text += " " + visible(name)
		}
		return text + "."
	}
	return warning.Error()
}

// trendView is a histogram.
type trendView struct {
	Bars      []trendBar
	From, To  time.Time
	Width     string
	Complete  bool
	ViewWidth int
	Most      int64
}

type trendBar struct {
	X, Y, Height, Width int
	N                   int64
	From, Until         time.Time
	Link                string
}

// How a histogram is drawn.
const (
	mostBars    = 60
	barWidth    = 10
	trendHeight = 40
)

// fillTrend makes bars of steps, several steps to a bar where there are many.
func (view *changesView) fillTrend(q *request, steps []audit.Step) {
	var total int64
	for _, s := range steps {
		total += s.Total()
	}
	if !view.Counted {
		view.Count, view.Capped, view.Counted = min(total, countedChanges), total > countedChanges, true
	}
	if total == 0 {
		return
	}
	merged := (len(steps) + mostBars - 1) / mostBars
	t := &trendView{From: steps[0].Start, To: steps[len(steps)-1].End}
	for at := 0; at < len(steps); at += merged {
		part := steps[at:min(at+merged, len(steps))]
		bar := trendBar{From: part[0].Start, Until: part[len(part)-1].End, Width: barWidth - 1, X: len(t.Bars) * barWidth}
		for _, s := range part {
			bar.N += s.Total()
		}
		t.Most = max(t.Most, bar.N)
		bar.Link = q.with("from", isoText(bar.From), "until", isoText(bar.Until))
		t.Bars = append(t.Bars, bar)
	}
	for i := range t.Bars {
		bar := &t.Bars[i]
		bar.Height = int(bar.N * trendHeight / t.Most)
		if bar.N > 0 {
			bar.Height = max(bar.Height, 2)
		}
		bar.Y = trendHeight - bar.Height
	}
	t.ViewWidth = len(t.Bars) * barWidth
	view.Trend = t
}

// changeDetail is the page of one change.
type changeDetail struct {
	Change  changeView
	Columns []sideBySide
	Context []contextLine
	// Neighbours are the other changes of the transaction, around this one.
	Neighbours         []changeView
	Previous, Next     string
	QueuedAt, StoredAt time.Time
	Environment        string
	PreviousKey        string
	Database           string
	Undo               string
	Outside, TraceLink string
	LogLink            string
	Trace              string
}

// sideBySide is a column before and after a change.
type sideBySide struct {
	Name          string
	Before, After value
	Changed       bool
}

type contextLine struct{ Name, Value string }

// one reads the change that the address names.
func (q *request) one(ctx context.Context) (audit.Change, audit.Query, error) {
	position, err := parsePosition(q.segment("position", 1))
	if err != nil || position.Sequence == 0 {
		return audit.Change{}, audit.Query{}, errNoPage
	}
	all, err := q.changes()
	if err != nil {
		return audit.Change{}, all, err
	}
	all = q.inDatabase(all)
	change, err := all.AtPosition(position).First(ctx)
	if err == nil && !q.mayTable(change.TableName()) {
		err = errNoPage
	}
	return change, all, err
}

// inDatabase narrows a query to the source that the address names, or to the client's own:
// positions and transactions mean something within one.
func (q *request) inDatabase(all audit.Query) audit.Query {
	switch name := q.query.Get("database"); {
	case name != "":
		return all.InDatabase(name)
	case q.status != nil && q.status.Database != "":
		return all.InDatabase(q.status.Database)
	}
	return all
}

// neighbours is how many changes of the transaction the page of a change shows before
// and behind it.
const neighbours = 10

func (q *request) changePage() error {
	q.loadStatus()
	ctx, cancel := q.context(q.cfg.Timeout)
	defer cancel()
	change, all, err := q.one(ctx)
	if err != nil {
		return err
	}
	table := change.TableName()
	q.tables = []string{table}
	view := changeDetail{
		Change: q.changeView(&change, 0, 0), Columns: q.sideBySide(&change), Context: q.contextLines(&change),
		QueuedAt: change.QueuedAt, StoredAt: change.CreatedAt, Environment: change.Environment, Database: change.Database, Trace: change.Context.TraceID,
	}
	if change.KeyChanged && !view.Change.KeyHidden {
		view.PreviousKey = change.PreviousKey
	}
	if view.Trace != "" {
		view.TraceLink = q.link("traces", []string{view.Trace}, nil)
	}
	q.outside(&view, &change)
	// Sequences tell the place of a change in its transaction, which may be a large one.
	of := all.InTransaction(change.TransactionID)
	before, err := of.After(of.CursorAfter(change)).Limit(neighbours).List(ctx)
	if err != nil {
		return err
	}
	forward := of.OldestFirst()
	behind, err := forward.After(forward.CursorAfter(change)).Limit(neighbours).List(ctx)
	if err != nil {
		return err
	}
	slices.Reverse(before)
	if len(before) > 0 {
		view.Previous = q.link("changes", []string{positionSegment(before[len(before)-1].Position)}, q.elsewhere(change.Database))
	}
	if len(behind) > 0 {
		view.Next = q.link("changes", []string{positionSegment(behind[0].Position)}, q.elsewhere(change.Database))
	}
	view.Neighbours = q.changeViews(append(before, behind...), shownColumns, shortValue)
	if q.access.Revert && q.elsewhere(change.Database) == nil {
		view.Undo = q.link("undo", nil, url.Values{"unit": {"change"}, "id": {change.Position.String()}})
	}
	return q.render(http.StatusOK, "change", "changes", "Change "+view.Change.Position, View{Page: "change", Tables: []string{table}, Key: change.PrimaryKey, Rows: 1}, view)
}

// outside links what Config.Links knows of a change.
func (q *request) outside(view *changeDetail, c *audit.Change) {
	if q.cfg.Links.Row != nil && c.HasKey && !view.Change.KeyHidden {
		view.Outside = webLink(q.cfg.Links.Row(c.TableName(), c.PrimaryKey))
	}
	if q.cfg.Links.Request != nil && c.Context.RequestID != "" {
		view.LogLink = webLink(q.cfg.Links.Request(c.Context.RequestID))
	}
	if q.cfg.Links.Trace != nil && view.Trace != "" {
		view.TraceLink = webLink(q.cfg.Links.Trace(view.Trace))
	}
}

// webLink is an address that leads to a page, and nothing else.
func webLink(address string) string {
	u, err := url.Parse(address)
	if err != nil || u.Scheme != "" && u.Scheme != "http" && u.Scheme != "https" {
		return ""
	}
	return address
}

// sideBySide are all columns of a change, before and after.
func (q *request) sideBySide(c *audit.Change) []sideBySide {
	changed := make(map[string]bool)
	for _, d := range c.Diff() {
		changed[d.Column] = true
	}
	names := append(c.Before.Columns(), c.After.Columns()...)
	slices.Sort(names)
	names = slices.Compact(names)
	table := c.TableName()
	columns := make([]sideBySide, 0, len(names))
	for _, name := range names {
		column := sideBySide{Name: name, Changed: changed[name]}
		column.Before = q.side(c, c.Before, "before", table, name)
		column.After = q.side(c, c.After, "after", table, name)
		columns = append(columns, column)
	}
	return columns
}

func (q *request) side(c *audit.Change, image audit.Image, side, table, name string) value {
	raw, ok := image.Get(name)
	if !ok && !image.IsEmpty() {
		return value{Kind: "unknown"}
	}
	v := q.value(table, name, raw, c.Withheld[name], longValue)
	if v.Size > 0 {
		query := url.Values{"side": {side}, "column": {name}}
		for name, values := range q.elsewhere(c.Database) {
			query[name] = values
		}
		v.Link = q.base() + "changes/" + positionSegment(c.Position) + "/value?" + query.Encode()
	}
	return v
}

// contextLines is what the application said. Parameters and statements hold values.
func (q *request) contextLines(c *audit.Change) []contextLine {
	x := c.Context
	var lines []contextLine
	add := func(name, value string) {
		if value != "" {
			lines = append(lines, contextLine{name, visible(value)})
		}
	}
	add("tenant", x.Tenant)
	add("span", x.SpanID)
	for _, cut := range x.Truncated {
		add("left out, as the context was too large", cut)
	}
	switch {
	case len(x.Params) == 0 && x.SQL == "" && len(x.Extra) == 0:
	case !q.access.Values:
		add("statement, parameters and more", "hidden: you may not see values")
	case q.cfg.Mask != nil:
		add("statement, parameters and more", "hidden: they may hold masked values")
	default:
		add("statement", x.SQL)
		for _, part := range []struct {
			name    string
			members map[string]any
		}{{"parameters", x.Params}, {"more", x.Extra}} {
			if len(part.members) > 0 {
				add(part.name, jsonText(part.members))
			}
		}
	}
	return lines
}

// valueView is one value, whole.
type valueView struct {
	Change, Column, Side, Table string
	Value                       value
	Back                        string
	Bytes                       int
}

// valuePage shows all of a large value.
func (q *request) valuePage() error {
	q.loadStatus()
	ctx, cancel := q.context(q.cfg.Timeout)
	defer cancel()
	change, _, err := q.one(ctx)
	if err != nil {
		return err
	}
	image, side, column := change.After, q.query.Get("side"), q.query.Get("column")
	if side == "before" {
		image = change.Before
	}
	raw, ok := image.Get(column)
	if !ok {
		return errNoPage
	}
	table := change.TableName()
	q.tables = []string{table}
	v := q.value(table, column, raw, change.Withheld[column], 1<<30)
	return q.render(http.StatusOK, "value", "changes", "Value of "+column,
		View{Page: "value", Tables: []string{table}, Key: change.PrimaryKey, Rows: 1}, valueView{
			Change: change.Position.String(), Column: column, Side: side, Table: table, Value: v, Bytes: len(v.Text),
			Back: q.base() + "changes/" + positionSegment(change.Position),
		})
}
