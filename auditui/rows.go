package auditui

import (
	"context"
	"errors"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/hindsight-go/audit"
)

// mostVersions is how many versions of a row a page shows.
const mostVersions = 200

// rowView is the page of one row.
type rowView struct {
	Table, Key string
	Keep       map[string]string
	Versions   []versionView
	// Cut reports whether there are older versions than those.
	Cut bool
	// At is the version that is shown, With the one that it is compared with.
	At, With *versionView
	Previous string
	Next     string
	Columns  []rowColumn
	// BlameProblem is why it is not known who set the columns.
	BlameProblem string
	Asked        string
	AtNewest     bool
	All          string
	Restore      string
	Outside      string
	Track        *track
}

// rowColumn is a column of a version: what it was in the other one, and who set it.
type rowColumn struct {
	Name    string
	Was, Is value
	Changed bool
	// Set is the change that gave the value, nil if it was there when tracking began.
	Set *changeView
}

// versionView is a version in the timeline.
type versionView struct {
	Index       int
	ID, Link    string
	From, Until time.Time
	Exists      bool
	AfterGap    bool
	First       bool
	Change      *changeView
	On          bool

	version *audit.RowVersion
}

// track is the slider, drawn.
type track struct {
	Width int
	Ticks []tick
	Gaps  []int
	Last  int
}

type tick struct {
	X      int
	Exists bool
	On     bool
	Label  string
	Link   string
}

// How the slider is drawn: it has the scale of a range with as many stops.
const (
	trackWidth  = 1000
	trackMargin = 8
)

func (q *request) rowPage() error {
	q.loadStatus()
	if !q.rowPages() {
		return errNoPage
	}
	table, err := q.table(q.segment("table", 1))
	if err != nil {
		return err
	}
	key := q.segment("key", 2)
	ctx, cancel := q.context(q.cfg.Timeout)
	defer cancel()
	if key == "" || !q.mayRow(ctx, table, key) {
		return errNoPage
	}
	if err := q.mayAskForKey(table); err != nil {
		return err
	}
	versions, parts, err := q.versions(ctx, table, key)
	if err != nil {
		return err
	}
	if len(versions) == 0 {
		return errNoPage
	}
	view := rowView{Table: table, Key: key, Keep: q.keep(), All: q.base() + "?" + url.Values{"table": {table}, "key": {key}}.Encode()}
	if len(versions) > mostVersions {
		versions, view.Cut = versions[len(versions)-mostVersions:], true
	}
	if err := q.fillVersions(&view, versions); err != nil {
		return err
	}
	if err := q.chooseVersions(ctx, &view, parts); err != nil {
		return err
	}
	q.fillColumns(ctx, &view, parts)
	view.Track = drawTrack(view.Versions)
	if q.cfg.Links.Row != nil {
		view.Outside = webLink(q.cfg.Links.Row(table, key))
	}
	if q.access.Revert && !view.AtNewest {
		view.Restore = q.link("undo", nil, url.Values{"unit": {"row"}, "table": {table}, "key": {key}, "to": {q.restorePoint(&view)}})
	}
	return q.render(http.StatusOK, "row", "changes", table+" "+key, View{Page: "row", Tables: []string{table}, Key: key, Rows: len(view.Versions)}, view)
}

// versions reads the versions of a row, and returns the parts of its key.
func (q *request) versions(ctx context.Context, table, key string) ([]audit.RowVersion, []any, error) {
	several, one := keyParts(key)
	if several != nil {
		versions, err := q.client.History(table, several...).Limit(mostVersions + 1).List(ctx)
		var filter *audit.FilterError
		if !errors.As(err, &filter) {
			return versions, several, err
		}
	}
	versions, err := q.client.History(table, one...).Limit(mostVersions + 1).List(ctx)
	return versions, one, err
}

// fillVersions makes the timeline. A row that was in a table which may not be seen is not
// shown at all.
func (q *request) fillVersions(view *rowView, versions []audit.RowVersion) error {
	for i := range versions {
		v := &versions[i]
		line := versionView{
			Index: i, ID: versionID(v), From: v.FromTime, Until: v.UntilTime, Exists: v.Exists(), AfterGap: v.AfterGap,
			First: v.From.IsZero(), version: v,
		}
		line.Link = "?" + url.Values{"v": {line.ID}}.Encode()
		if with := q.query.Get("with"); with != "" {
			line.Link += "&" + url.Values{"with": {with}}.Encode()
		}
		for name, number := range map[string]string{"table": "~1", "key": "~2"} {
			if q.r.PathValue(name) == "~" {
				line.Link += "&" + url.Values{number: {q.query.Get(number)}}.Encode()
			}
		}
		if v.Change != nil {
			if !q.mayTable(v.Change.TableName()) {
				return errNoPage
			}
			change := q.changeView(v.Change, shownColumns, shortValue)
			line.Change = &change
		}
		view.Versions = append(view.Versions, line)
	}
	return nil
}

// versionID names a version in an address.
func versionID(v *audit.RowVersion) string {
	if v.From.IsZero() {
		return "start"
	}
	return positionSegment(v.From)
}

// chooseVersions finds the version that the address asks for, by its name or by a moment,
// and the one that it is compared with.
func (q *request) chooseVersions(ctx context.Context, view *rowView, parts []any) error {
	find := func(id string) *versionView {
		for i := range view.Versions {
			if view.Versions[i].ID == id {
				return &view.Versions[i]
			}
		}
		return nil
	}
	last := &view.Versions[len(view.Versions)-1]
	view.At = last
	switch asked := q.query.Get("at"); {
	case q.query.Has("v"):
		if view.At = find(q.query.Get("v")); view.At == nil {
			return errNoPage
		}
	case asked != "":
		view.Asked = asked
		at, err := q.versionAt(ctx, view, asked, parts)
		if err != nil {
			return err
		}
		view.At = at
	}
	if id := q.query.Get("with"); id != "" {
		if view.With = find(id); view.With == nil {
			return errNoPage
		}
	} else if i := view.At.Index; i > 0 {
		view.With = &view.Versions[i-1]
	}
	view.At.On = true
	view.AtNewest = view.At == last
	if i := view.At.Index; i > 0 {
		view.Previous = view.Versions[i-1].Link
	}
	if i := view.At.Index; i+1 < len(view.Versions) {
		view.Next = view.Versions[i+1].Link
	}
	return nil
}

// versionAt is the version that the row had at a moment. What history cannot tell of that
// moment is an error, also if there is a version before it.
func (q *request) versionAt(ctx context.Context, view *rowView, asked string, parts []any) (*versionView, error) {
	point, err := q.moment(asked)
	if err != nil {
		return nil, err
	}
	var resolved audit.Completeness
	if _, err := point.Report(&resolved).Blame(ctx, view.Table, parts...); err != nil && !errors.Is(err, audit.ErrNoRow) {
		return nil, err
	}
	var found *versionView
	for i := range view.Versions {
		if view.Versions[i].version.From.LSN <= resolved.Position.LSN {
			found = &view.Versions[i]
		}
	}
	if found == nil {
		return nil, audit.ErrNoRow
	}
	return found, nil
}

// fillColumns compares the two versions, and says who set the columns.
func (q *request) fillColumns(ctx context.Context, view *rowView, parts []any) {
	at := view.At.version
	is := at.Row
	var was audit.Image
	if view.With != nil {
		was = view.With.version.Row
	}
	if at.Change != nil && is.IsEmpty() && view.With == nil {
		was = at.Change.Before
	}
	blame := q.blame(ctx, view, parts)
	names := append(is.Columns(), was.Columns()...)
	for _, name := range blame.order {
		if is.Has(name) {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	names = slices.Compact(names)
	slices.SortStableFunc(names, func(a, b string) int { return blame.place(a) - blame.place(b) })
	changed := make(map[string]bool)
	for _, d := range (audit.RowDiff{Operation: audit.Update, Before: was, After: is}).Diff() {
		changed[d.Column] = true
	}
	for _, name := range names {
		column := rowColumn{Name: name, Changed: changed[name] && !was.IsEmpty() && !is.IsEmpty(), Set: blame.set[name]}
		column.Is, column.Was = q.versionValue(view.Table, view.At, is, name), q.versionValue(view.Table, view.With, was, name)
		view.Columns = append(view.Columns, column)
	}
}

// versionValue is a value of a version. It is hidden if it is so under the name that the
// table has now, or under the one that it had then.
func (q *request) versionValue(table string, of *versionView, image audit.Image, column string) value {
	raw, ok := image.Get(column)
	if !ok && !image.IsEmpty() {
		return value{Kind: "unknown"}
	}
	var policy audit.ColumnPolicy
	if of != nil && of.version.Change != nil {
		policy = of.version.Change.Withheld[column]
		if kind := q.hiding(of.version.Change.TableName(), column); kind != "" && raw != nil {
			return value{Kind: kind}
		}
	}
	v := q.value(table, column, raw, policy, longValue)
	if v.Size > 0 && of != nil && of.version.Change != nil {
		v.Link = q.base() + "changes/" + positionSegment(of.version.From) + "/value?" + url.Values{"side": {"after"}, "column": {column}}.Encode()
	}
	return v
}

// blamed is who set the columns of a version.
type blamed struct {
	order []string
	set   map[string]*changeView
}

// place is the place of a column in the table; those that are not known come last.
func (b blamed) place(column string) int {
	if at := slices.Index(b.order, column); at >= 0 {
		return at
	}
	return len(b.order)
}

func (q *request) blame(ctx context.Context, view *rowView, parts []any) blamed {
	b := blamed{set: make(map[string]*changeView)}
	at := view.At.version
	if !at.Exists() {
		return b
	}
	point := q.client.Now()
	switch {
	case at.From.IsZero() && !view.AtNewest:
		return b // it was there when tracking began: nobody is known to have set anything
	case !view.AtNewest:
		if at.Until.LSN == at.From.LSN {
			view.BlameProblem = "The version did not outlive its transaction, so it never was a state of the row that others could see."
			return b
		}
		point = q.client.AtPosition(at.From)
	}
	columns, err := point.Blame(ctx, view.Table, parts...)
	if err != nil {
		view.BlameProblem = q.explain(err).Text
		return b
	}
	for _, c := range columns {
		b.order = append(b.order, c.Column)
		if c.Change != nil && q.mayTable(c.Change.TableName()) {
			change := q.changeView(c.Change, 0, 0)
			b.set[c.Column] = &change
		}
	}
	return b
}

// restorePoint is the moment to which a restore of the version goes back.
func (q *request) restorePoint(view *rowView) string {
	at := view.At.version
	if !at.From.IsZero() {
		return positionSegment(audit.Position{LSN: at.From.LSN})
	}
	for _, t := range q.status.Tables {
		if tableName(t.Schema, t.Table) == view.Table && t.From != 0 && t.Until == 0 {
			return positionSegment(audit.Position{LSN: t.From})
		}
	}
	return isoText(at.FromTime)
}

// drawTrack draws the versions as stops, in the scale of a range.
func drawTrack(versions []versionView) *track {
	t := &track{Width: trackWidth, Last: len(versions) - 1}
	step := 0.0
	if t.Last > 0 {
		step = float64(trackWidth-2*trackMargin) / float64(t.Last)
	}
	for i := range versions {
		v := &versions[i]
		x := trackMargin + int(float64(i)*step)
		label := utcText(v.From)
		if v.First {
			label = "tracked since " + label
		}
		if v.Change != nil {
			label += " " + strings.ToLower(v.Change.Operation)
		}
		t.Ticks = append(t.Ticks, tick{X: x, Exists: v.Exists, On: v.On, Label: label, Link: v.Link})
		if v.AfterGap {
			t.Gaps = append(t.Gaps, max(0, x-int(step/2)-4))
		}
	}
	return t
}
