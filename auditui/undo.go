package auditui

import (
	"context"
	"errors"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/hindsight-go/audit"
)

const (
	// plannedRows is how many rows and conflicts of a plan a page shows.
	plannedRows = 200
	// mostScript is how large a script may be to be shown.
	mostScript = 256 << 10
	// mostReason bounds the reason of a revert, mostForm the form that asks for one.
	mostReason = 2_000
	mostForm   = 1 << 20
	// checkedConflicts is how many changes behind conflicts are looked up for somebody who
	// may not see everything.
	checkedConflicts = 200
)

// errPartly is for what somebody may see a part of only.
var errPartly = errors.New("auditui: a part of it is outside of what may be seen")

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
	// Stale tells that this plan takes the place of one that is no longer true, Gone how
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
	// Fresh tells that the plan before this one did not say so.
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
	change, err := q.client.Changes().ForTable(table).First(ctx)
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

// overwrites reports whether later work is overwritten.
func overwrites(plan *audit.Plan) bool {
	return slices.ContainsFunc(plan.Conflicts, func(c audit.Conflict) bool { return c.Resolution == audit.Overwrite })
}

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
	if !q.signed(form) {
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
	result, err := a.Actor(q.access.User).Reason(view.Reason).IfHash(form.Get("hash")).IdempotencyKey(form.Get("key")).Apply(ctx)
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
