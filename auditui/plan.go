package auditui

import (
	"context"
	"errors"
	"slices"
	"strings"

	"github.com/hindsight-go/audit"
)

const (
	// plannedRows is how many rows and conflicts of a plan a page shows.
	plannedRows = 200
	// mostScript is how large a script may be to be shown.
	mostScript = 256 << 10
)

// undoView is a plan, and the form that carries it out.
type undoView struct {
	Redo  bool
	Of    string
	Back  string
	Plan  *audit.Plan
	Rows  []plannedView
	More  int
	Count int

	Conflicts     []conflictView
	MoreConflicts int
	Blocked       int
	Cascaded      []changeView
	MoreCascaded  int
	Choice        string
	Choices       []choice
	Columns       []columnChoice

	Origins []audit.Origin
	// Several is what is said where several users are in the unit, Across the address
	// that says that all of them are meant.
	Several, Across string
	Unrestored      []audit.UnrestoredColumn
	Already         string
	AlreadyBy       *audit.PastRevert
	SQL             string
	SQLHidden       string

	// The form.
	Query, Token, Hash, Key, Shown, Need, Expires string
	Reason                                        string
	Applicable                                    bool
	Problem                                       string
	// Stale reports whether this plan takes the place of one that is no longer true, Gone how
	// many rows and conflicts of that one are not in this one.
	Stale     bool
	StaleText string
	Gone      int
	// Members are what the form that changes the plan keeps.
	Members []member
}

type member struct{ Name, Value string }

type choice struct {
	Value, Text string
	On          bool
}

type columnChoice struct {
	Name string
	Out  bool
}

// plannedView is what is done to a row.
type plannedView struct {
	Action, Outcome string
	Table, Key      string
	KeyHidden       bool
	RowLink         string
	Columns         []columnView
	// Fresh reports whether the plan before this one did not say so.
	Fresh bool

	digest string
}

// conflictView is what is in the way.
type conflictView struct {
	ID, Kind         string
	Table, Key       string
	KeyHidden        bool
	RowLink          string
	Column           string
	Constraint       string
	Restore, Live    value
	HasValues        bool
	Other, OtherLink string
	Change           *changeView
	Resolution       string
	Blocked          bool
	Choices          []choice
	Fresh            bool
	Explanation      string
}

// showPlan makes the page of the plan as it is now.
func (q *request) showPlan(ctx context.Context, code int, view *undoView) error {
	a, err := q.askedFor(ctx)
	if err != nil {
		return err
	}
	plan, err := a.Plan(ctx)
	if err != nil {
		return err
	}
	if err := q.planWithin(ctx, a, plan); err != nil {
		return err
	}
	if err := q.fillPlan(ctx, view, a, plan); err != nil {
		return err
	}
	var tables []string
	for _, row := range view.Rows {
		tables = appendNew(tables, row.Table)
	}
	title := "Undo " + a.kind
	if a.redo {
		title = "Redo"
	}
	return q.render(code, "undo", "reverts", title, View{Page: "undo", Tables: tables, Unit: a.id, Rows: len(view.Rows)}, view)
}

func (q *request) fillPlan(ctx context.Context, view *undoView, a *asked, plan *audit.Plan) error {
	view.Plan, view.Redo, view.Of = plan, a.redo, visible(plan.Of.String())
	view.Count = plan.Inserts + plan.Updates + plan.Deletes
	view.Origins, view.Unrestored = plan.Origins, plan.Unrestored
	for _, o := range plan.Origins {
		q.users[o.User] = true
	}
	was := make(map[string]bool)
	for _, digest := range strings.Split(view.Shown, ",") {
		was[digest] = digest != ""
	}
	if err := q.fillPlannedRows(ctx, view, plan, was); err != nil {
		return err
	}
	if err := q.fillConflicts(ctx, view, plan, was); err != nil {
		return err
	}
	for _, still := range was {
		if still && view.Stale {
			view.Gone++
		}
	}
	for i := range plan.Cascaded {
		if i == plannedRows {
			view.MoreCascaded = len(plan.Cascaded) - i
			break
		}
		view.Cascaded = append(view.Cascaded, q.changeView(&plan.Cascaded[i], shownColumns, shortValue))
	}
	if err := plan.Refused(); err != nil {
		view.Several = q.explain(err).Text
		across := q.undoQuery()
		across.Set("across", "1")
		view.Across = "?" + across.Encode()
	}
	if plan.Already != nil {
		view.AlreadyBy, view.Already = plan.Already, q.link("reverts", []string{plan.Already.ID}, nil)
		q.users[plan.Already.User] = true
	}
	q.fillChoices(view)
	view.Applicable = view.Blocked == 0 && view.Several == "" && plan.Already == nil && !plan.Empty()
	if view.Applicable {
		q.fillScript(view, plan)
		q.sign(view, plan)
	}
	return nil
}

// fillPlannedRows shows the rows, those that matter first.
func (q *request) fillPlannedRows(ctx context.Context, view *undoView, plan *audit.Plan, was map[string]bool) error {
	columns := make(map[string]bool)
	var digests []string
	for row := range plan.Rows() {
		if row.Action == audit.Update {
			for _, c := range row.Columns {
				columns[c.Column] = true
			}
		}
		if len(view.Rows) == plannedRows {
			view.More++
			continue
		}
		line, err := q.plannedRow(ctx, row)
		if err != nil {
			return err
		}
		line.Fresh = view.Stale && !was[line.digest]
		was[line.digest] = false
		digests = append(digests, line.digest)
		view.Rows = append(view.Rows, line)
	}
	for _, name := range q.query["except"] {
		if name != "" {
			columns[name] = true
		}
	}
	for name := range columns {
		view.Columns = append(view.Columns, columnChoice{name, slices.Contains(q.query["except"], name)})
	}
	slices.SortFunc(view.Columns, func(a, b columnChoice) int { return strings.Compare(a.Name, b.Name) })
	view.Shown = strings.Join(digests, ",")
	return nil
}

func (q *request) plannedRow(ctx context.Context, row audit.PlannedRow) (plannedView, error) {
	line := plannedView{Action: string(row.Action), Outcome: string(row.Outcome), Table: row.Table}
	parts := []string{row.Table, string(row.Action), string(row.Outcome)}
	parts = append(parts, row.Key...)
	for _, c := range row.Columns {
		v := columnView{Name: c.Column, Old: value{Kind: "none"}, New: value{Kind: "none"}}
		if row.Action != audit.Create {
			v.Old = q.sqlValue(row.Table, c.Column, c.Live, shortValue)
		}
		if row.Action != audit.Delete {
			v.New = q.sqlValue(row.Table, c.Column, c.Restore, shortValue)
		}
		line.Columns = append(line.Columns, v)
		parts = append(parts, c.Column, textOrNull(c.Live), textOrNull(c.Restore))
	}
	line.digest = q.digest(parts...)
	var err error
	line.Key, line.KeyHidden, line.RowLink, err = q.rowKey(ctx, row.RowRef)
	return line, err
}

func textOrNull(text *string) string {
	if text == nil {
		return "null"
	}
	return "=" + *text
}

// rowKey is the key of a row in a plan, whether it is hidden, and the address of the row.
// The key of a row in a table without one is made of its values.
func (q *request) rowKey(ctx context.Context, row audit.RowRef) (key string, hidden bool, link string, err error) {
	if len(row.Key) == 0 {
		return "", false, "", nil
	}
	keyed, shown, err := q.keyOf(ctx, row.Table)
	if err != nil {
		return "", false, "", err
	}
	if !shown {
		return "", true, "", nil
	}
	key = visible(strings.Join(row.Key, ", "))
	if len(key) > shortValue {
		key = textValue(key, shortValue).Text + "…"
	}
	if keyed && q.rowPages() {
		whole := row.Key[0]
		if len(row.Key) > 1 {
			whole = keyJSON(row.Key)
		}
		link = q.link("rows", []string{row.Table, whole}, nil)
	}
	return key, false, link, nil
}

// tableKey is what is known of the key of a table.
type tableKey struct{ keyed, shown bool }

// keyOf reports whether a table has a key, and whether keys of it may be shown: any change
// of it tells.
func (q *request) keyOf(ctx context.Context, table string) (keyed, shown bool, err error) {
	if known, ok := q.keys[table]; ok {
		return known.keyed, known.shown, nil
	}
	change, err := q.client.Changes().ForTable(table).Operations(audit.Create, audit.Update, audit.Delete).First(ctx)
	known := tableKey{}
	switch {
	case errors.Is(err, audit.ErrNotFound):
	case err != nil:
		return false, false, err
	default:
		known.keyed = change.HasKey
		known.shown = change.HasKey && !q.keyMasked(&change) || !change.HasKey && q.access.Values && q.cfg.Mask == nil
	}
	if q.keys == nil {
		q.keys = make(map[string]tableKey)
	}
	q.keys[table] = known
	return known.keyed, known.shown, nil
}

func (q *request) fillConflicts(ctx context.Context, view *undoView, plan *audit.Plan, was map[string]bool) error {
	blocked := make(map[string]bool)
	for _, c := range plan.Blocked() {
		blocked[q.conflictID(&c)] = true
		view.Blocked++
	}
	for i := range plan.Conflicts {
		if i == plannedRows {
			view.MoreConflicts = len(plan.Conflicts) - i
			break
		}
		c := &plan.Conflicts[i]
		line, err := q.conflict(ctx, c)
		if err != nil {
			return err
		}
		line.Blocked = blocked[line.ID]
		digest := q.digest("conflict", line.ID, textOrNull(c.Live))
		line.Fresh = view.Stale && !was[digest]
		was[digest] = false
		view.Shown += "," + digest
		view.Conflicts = append(view.Conflicts, line)
	}
	return nil
}

func (q *request) conflict(ctx context.Context, c *audit.Conflict) (conflictView, error) {
	line := conflictView{
		ID: q.conflictID(c), Kind: c.Kind.String(), Table: c.Table, Column: c.Column, Constraint: c.Constraint, Resolution: c.Resolution.String(),
		Explanation: conflictTexts[c.Kind],
	}
	// A conflict about several columns has values of all of them.
	if c.Column != "" || q.access.Values && q.cfg.Mask == nil {
		line.HasValues = c.Restore != nil || c.Live != nil || c.Column != ""
		line.Restore, line.Live = q.sqlValue(c.Table, c.Column, c.Restore, shortValue), q.sqlValue(c.Table, c.Column, c.Live, shortValue)
	}
	var err error
	if line.Key, line.KeyHidden, line.RowLink, err = q.rowKey(ctx, c.RowRef); err != nil {
		return line, err
	}
	if c.Other != nil {
		key, hidden, link, err := q.rowKey(ctx, *c.Other)
		if err != nil {
			return line, err
		}
		line.Other, line.OtherLink = c.Other.Table+" "+key, link
		if hidden || q.access.RowAllowed != nil {
			line.Other, line.OtherLink = c.Other.Table, ""
		}
	}
	if c.Change != nil {
		change := q.changeView(c.Change, shownColumns, shortValue)
		line.Change = &change
	}
	chosen := q.query.Get("c." + line.ID)
	for _, r := range resolutions {
		switch {
		case r.resolution == audit.Overwrite && slices.Contains([]audit.ConflictKind{audit.UniqueTaken, audit.ParentMissing, audit.ValueRefused, audit.ColumnGone}, c.Kind):
			continue // it would remain
		case (r.resolution == audit.Cascade || r.resolution == audit.CascadeRequests) && c.Change == nil:
			continue // what history does not know cannot be undone
		}
		line.Choices = append(line.Choices, choice{r.name, r.one, r.name == chosen})
	}
	return line, nil
}

// conflictTexts say what a conflict is, for people.
var conflictTexts = map[audit.ConflictKind]string{
	audit.ColumnChanged:     "somebody has changed this column since",
	audit.ColumnInterleaved: "somebody has changed this column in between",
	audit.ColumnGone:        "the column was dropped",
	audit.RowGone:           "the row is not there any more",
	audit.RowRecreated:      "the row was made anew since",
	audit.UniqueTaken:       "another row has this value now",
	audit.Referenced:        "another row needs this one now",
	audit.ParentMissing:     "the row that it needs is not there any more",
	audit.ValueReturned:     "somebody has put this value back since, which is their work",
	audit.ValueRefused:      "the table does not take this value any more",
}

func (q *request) fillChoices(view *undoView) {
	policy := q.query.Get("policy")
	for _, r := range resolutions {
		view.Choices = append(view.Choices, choice{r.name, r.all, r.name == policy || policy == "" && r.name == "abort"})
	}
	for _, name := range []string{"unit", "id", "table", "key", "to", "across"} {
		if v := q.query.Get(name); v != "" {
			view.Members = append(view.Members, member{name, v})
		}
	}
	view.Query = "?" + q.undoQuery().Encode()
}

// fillScript shows the plan as SQL, unless there is a value in it that may not be seen.
func (q *request) fillScript(view *undoView, plan *audit.Plan) {
	hidden := !q.access.Values || q.cfg.Mask != nil && len(plan.Cascaded) > 0
	if view.Count > plannedRows || view.More > 0 {
		view.SQLHidden = "The script is too long to be shown."
		return
	}
	if q.cfg.Mask != nil {
		for row := range plan.Rows() {
			hidden = hidden || slices.ContainsFunc(row.Columns, func(c audit.PlannedColumn) bool { return q.cfg.Mask(row.Table, c.Column) })
		}
		for table := range q.keys {
			hidden = hidden || !q.keys[table].shown
		}
	}
	if hidden {
		view.SQLHidden = "The script has values that you may not see."
		return
	}
	script := plan.SQL()
	if len(script) > mostScript {
		view.SQLHidden = "The script is too long to be shown."
		return
	}
	view.SQL = visible(script)
}
