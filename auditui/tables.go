package auditui

import (
	"cmp"
	"context"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/hindsight-go/audit"
)

const (
	// pastRows is how many rows of a table a page shows, mostPastRows if it is asked for
	// more.
	pastRows     = 100
	mostPastRows = 1_000
	// comparedRows is how many rows that differ from now a page of a table looks at.
	comparedRows = 10_000
)

// tablesView is the list of tables.
type tablesView struct {
	Tables []tableLine
	Marks  []markLine
}

type markLine struct {
	Name, Position string
	At             time.Time
	Link           string
}

func (q *request) tablesPage() error {
	q.loadStatus()
	if q.status == nil {
		return q.statusUnknown()
	}
	var view tablesView
	full := statusView{}
	q.fillTables(&full)
	view.Tables = full.Tables
	ctx, cancel := q.context(q.cfg.Timeout)
	defer cancel()
	marks, err := q.client.Marks(ctx)
	if err != nil {
		return err
	}
	for _, m := range marks {
		view.Marks = append(view.Marks, markLine{Name: m.Name, Position: m.Position.LSN.String(), At: m.MarkedAt})
	}
	return q.render(http.StatusOK, "tables", "tables", "Tables", View{}, view)
}

// tableView is a table at a moment, or what differs between two.
type tableView struct {
	Table string
	AsOf  string
	From  string
	To    string
	// Compared reports whether two moments are compared.
	Compared bool
	Keep     map[string]string
	// At is the position that the moment means, and CommittedTo up to where the answer
	// knows everything.
	At      string
	Columns []string
	Rows    []pastRow
	Cut     bool
	More    string
	Differs []diffLine
	// Differing counts the rows that are not as they are now, or between the two moments.
	Differing   int
	DiffCut     bool
	DiffProblem string
	Marks       []markLine
	Slider      *timeSlider
	Previous    string
	Next        string
	CompareNow  string
	Restore     string
	// Hidden reports whether rows are left out that whoever asks may not see.
	Hidden  bool
	Changes string
	// Withheld are columns that history does not store.
	Withheld []string
	Since    time.Time
}

// pastRow is a row as it was.
type pastRow struct {
	Key, Link string
	Values    []value
	// Now is "changed" or "gone" if the row is not so now.
	Now string
}

// diffLine is a row that differs.
type diffLine struct {
	Key, Link string
	Operation string
	Columns   []columnView
	More      int
}

// timeSlider goes from when the table is tracked until now, in milliseconds: a history of
// less than a second has moments to look at, too.
type timeSlider struct {
	From, To  time.Time
	FromMilli int64
	ToMilli   int64
	AtMilli   int64
	Marks     []tick
	Gaps      []gapSpan
	ViewWidth int
}

type gapSpan struct{ X, Width int }

func (q *request) tablePage() error {
	q.loadStatus()
	if !q.rowPages() {
		return errNoPage
	}
	table, err := q.table(q.segment("table", 1))
	if err != nil {
		return err
	}
	view := tableView{Table: table, Keep: q.keep(), AsOf: q.query.Get("as-of"), From: q.query.Get("from"), To: q.query.Get("to")}
	view.Changes = q.base() + "?" + url.Values{"table": {table}}.Encode()
	view.Compared = q.query.Has("from")
	ctx, cancel := q.context(q.cfg.RevertTimeout)
	defer cancel()
	kind := "table"
	if view.Compared {
		kind = "difference"
		err = q.fillDifference(ctx, &view)
	} else {
		err = q.fillPast(ctx, &view)
	}
	if err != nil {
		return err
	}
	if err := q.fillMarks(ctx, &view); err != nil {
		return err
	}
	title := table
	return q.render(http.StatusOK, "table", "tables", title, View{Page: kind, Tables: []string{table}, Rows: len(view.Rows) + len(view.Differs)}, view)
}

// fillPast reads the table at the moment, and marks what is not so now.
func (q *request) fillPast(ctx context.Context, view *tableView) error {
	point, err := q.moment(view.AsOf)
	if err != nil {
		return err
	}
	limit := pastRows
	if n, err := strconv.Atoi(q.query.Get("rows")); err == nil && n > limit {
		limit = min(n, mostPastRows)
	}
	differs := map[string]audit.Operation{}
	if view.AsOf != "" && view.AsOf != "now" {
		differs, err = q.differing(ctx, view, point)
		if err != nil {
			view.DiffProblem = q.explain(err).Text
		}
	}
	// The position is taken from the answer: the one that a time before the history
	// resolves to has an answer, and the time has none.
	var resolved audit.Completeness
	for row, err := range point.Report(&resolved).Table(view.Table).Limit(limit + 1).All(ctx) {
		if err != nil {
			return err
		}
		if len(view.Rows) == limit {
			view.Cut = true
			if limit < mostPastRows {
				view.More = q.here("rows", strconv.Itoa(mostPastRows))
			}
			break
		}
		q.addPastRow(ctx, view, row, differs)
	}
	view.At, view.Withheld = resolved.Position.LSN.String(), resolved.Withheld
	slices.SortStableFunc(view.Rows, func(a, b pastRow) int { return compareKeys(a.Key, b.Key) })
	if view.AsOf != "" && view.AsOf != "now" {
		view.CompareNow = q.here("from", view.AsOf, "to", "now", "as-of", "")
	}
	return q.stepMoments(ctx, view, resolved.Position)
}

func (q *request) addPastRow(ctx context.Context, view *tableView, row audit.PastRow, differs map[string]audit.Operation) {
	key := row.PrimaryKey()
	if q.access.RowAllowed != nil && !q.mayRow(ctx, view.Table, key) {
		view.Hidden = true
		return
	}
	fields, texts := row.FieldDescriptions(), row.RawValues()
	if view.Columns == nil {
		for _, field := range fields {
			view.Columns = append(view.Columns, field.Name)
		}
	}
	line, parts := pastRow{Key: key}, []string{key}
	several, _ := keyParts(key)
	for _, part := range several {
		parts = append(parts, part.(string))
	}
	for i, field := range fields {
		var text *string
		if texts[i] != nil {
			s := string(texts[i])
			text = &s
			if slices.Contains(parts, s) && q.cfg.Mask != nil && q.cfg.Mask(view.Table, field.Name) {
				line.Key = ""
			}
		}
		line.Values = append(line.Values, q.sqlValue(view.Table, field.Name, text, shortValue))
	}
	if line.Key != "" {
		line.Link = q.link("rows", []string{view.Table, key}, nil)
	}
	switch differs[key] {
	case audit.Update:
		line.Now = "changed"
	case audit.Delete:
		line.Now = "gone"
	}
	view.Rows = append(view.Rows, line)
}

// differing are the rows that are not as they are now, by key.
func (q *request) differing(ctx context.Context, view *tableView, from audit.Point) (map[string]audit.Operation, error) {
	differs := make(map[string]audit.Operation)
	for d, err := range q.client.DiffBetween(from, q.client.Now()).Tables(view.Table).All(ctx) {
		if err != nil {
			return differs, err
		}
		if view.Differing == comparedRows {
			view.DiffCut = true
			break
		}
		if q.access.RowAllowed != nil && !q.mayRow(ctx, view.Table, d.PrimaryKey) {
			continue
		}
		view.Differing++
		if d.PrimaryKey != "" {
			differs[d.PrimaryKey] = d.Operation
		}
	}
	return differs, nil
}

// fillDifference reads which rows differ between two moments.
func (q *request) fillDifference(ctx context.Context, view *tableView) error {
	from, err := q.moment(view.From)
	if err != nil {
		return err
	}
	to, err := q.moment(view.To)
	if err != nil {
		return err
	}
	for d, err := range q.client.DiffBetween(from, to).Tables(view.Table).All(ctx) {
		if err != nil {
			return err
		}
		if q.access.RowAllowed != nil && !q.mayRow(ctx, view.Table, d.PrimaryKey) || !q.mayTable(d.TableName()) {
			view.Hidden = true
			continue
		}
		if view.Differing == comparedRows {
			view.DiffCut = true
			break
		}
		view.Differing++
		if len(view.Differs) < mostPastRows {
			view.Differs = append(view.Differs, q.diffLine(&d))
		}
	}
	slices.SortStableFunc(view.Differs, func(a, b diffLine) int { return compareKeys(a.Key, b.Key) })
	if q.access.Revert && q.access.Scope == nil && view.Differing > 0 && (view.To == "" || view.To == "now") {
		view.Restore = q.link("undo", nil, url.Values{"unit": {"tables"}, "table": {view.Table}, "to": {view.From}})
	}
	return nil
}

func (q *request) diffLine(d *audit.RowDiff) diffLine {
	table := d.TableName()
	// The key is hidden under the rules that it has as one of a change.
	c := audit.Change{Schema: d.Schema, Table: d.Table, PrimaryKey: d.PrimaryKey, HasKey: d.PrimaryKey != "", Operation: d.Operation, Before: d.Before, After: d.After}
	line := diffLine{Key: d.PrimaryKey, Operation: string(d.Operation)}
	if q.keyMasked(&c) {
		line.Key = ""
	}
	if line.Key != "" {
		line.Link = q.link("rows", []string{table, d.PrimaryKey}, nil)
	}
	line.Columns, line.More = q.diff(&c, 2*shownColumns, shortValue)
	return line
}

// compareKeys orders keys for people: numbers by value.
func compareKeys(a, b string) int {
	x, errX := strconv.ParseInt(a, 10, 64)
	y, errY := strconv.ParseInt(b, 10, 64)
	if errX == nil && errY == nil {
		return cmp.Compare(x, y)
	}
	return strings.Compare(a, b)
}

// here is the address of this page with members replaced, or removed if they are empty.
func (q *request) here(pairs ...string) string {
	values := make(url.Values)
	for name, v := range q.query {
		values[name] = v
	}
	for i := 0; i+1 < len(pairs); i += 2 {
		values.Set(pairs[i], pairs[i+1])
		if pairs[i+1] == "" {
			values.Del(pairs[i])
		}
	}
	return "?" + values.Encode()
}

// stepMoments links the moments just before the last change up to here, and at the next
// one.
func (q *request) stepMoments(ctx context.Context, view *tableView, at audit.Position) error {
	all, err := q.changes()
	if err != nil {
		return err
	}
	all = q.inDatabase(all).ForTable(view.Table)
	place := audit.Change{Position: audit.Position{LSN: at.LSN + 1}, Database: q.status.Database}
	last, err := all.After(all.CursorAfter(place)).Limit(1).List(ctx)
	if err != nil {
		return err
	}
	if len(last) == 1 && last[0].Position.LSN > 1 {
		view.Previous = q.here("as-of", positionSegment(audit.Position{LSN: last[0].Position.LSN - 1}), "rows", "")
	}
	forward := all.OldestFirst()
	place.Position = audit.Position{LSN: at.LSN, Sequence: 1<<31 - 1}
	next, err := forward.After(forward.CursorAfter(place)).Limit(1).List(ctx)
	if err != nil {
		return err
	}
	if len(next) == 1 {
		view.Next = q.here("as-of", positionSegment(audit.Position{LSN: next[0].Position.LSN}), "rows", "")
	}
	return nil
}

// fillMarks makes the list of marks and the slider over time.
func (q *request) fillMarks(ctx context.Context, view *tableView) error {
	marks, err := q.client.Marks(ctx)
	if err != nil {
		return err
	}
	for _, t := range q.status.Tables {
		if tableName(t.Schema, t.Table) == view.Table && !t.FromTime.IsZero() && (view.Since.IsZero() || t.FromTime.Before(view.Since)) {
			view.Since = t.FromTime
		}
	}
	for _, m := range marks {
		view.Marks = append(view.Marks, markLine{
			Name: m.Name, Position: m.Position.LSN.String(), At: m.MarkedAt, Link: q.here("as-of", "mark:"+m.Name, "from", "", "to", "", "rows", ""),
		})
	}
	if !view.Compared && !view.Since.IsZero() {
		view.Slider = q.timeSlider(view)
	}
	return nil
}

func (q *request) timeSlider(view *tableView) *timeSlider {
	now := time.Now().UTC()
	s := &timeSlider{From: view.Since, To: now, FromMilli: view.Since.UnixMilli() + 1, ToMilli: now.UnixMilli(), AtMilli: now.UnixMilli(), ViewWidth: trackWidth}
	span := max(s.ToMilli-s.FromMilli, 1)
	if t, err := parseTime(view.AsOf); err == nil && !t.IsZero() {
		s.AtMilli = t.UnixMilli()
	}
	x := func(t time.Time) int {
		return trackMargin + int((trackWidth-2*trackMargin)*max(0, min(span, t.UnixMilli()-s.FromMilli))/span)
	}
	for _, m := range view.Marks {
		s.Marks = append(s.Marks, tick{X: x(m.At), Label: "mark " + m.Name, Link: m.Link})
		if view.AsOf == "mark:"+m.Name {
			s.AtMilli = m.At.UnixMilli()
		}
	}
	for _, gap := range q.status.Gaps {
		if !gap.FromTime.IsZero() {
			s.Gaps = append(s.Gaps, gapSpan{x(gap.FromTime), max(x(gap.ToTime)-x(gap.FromTime), 4)})
		}
	}
	return s
}
