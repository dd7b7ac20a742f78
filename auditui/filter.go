package auditui

import (
	"errors"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/hindsight-go/audit"
)

// filter is what the address of a list asks for.
type filter struct {
	Operations            []string
	Table, Key            string
	Environment           string
	User, Tenant          string
	Request, Trace        string
	Endpoint, Worker      string
	Column, Value         string
	From, Until           string
	Transaction, Database string
	NoContext, Defects    bool
	HasEnvironment        bool
	HasValue              bool
	from, until           time.Time
}

// operations are those of a form, in its order.
var operations = []audit.Operation{audit.Create, audit.Update, audit.Delete, audit.Truncate}

// filterNames are the members of an address that are filters, in the order of chips.
var filterNames = []string{
	"op", "table", "key", "env", "user", "tenant", "request", "trace", "endpoint", "worker",
	"column", "value", "from", "until", "tx", "database", "nocontext", "defects",
}

// filter reads the filters of the address.
func (q *request) filter() (filter, error) {
	get := func(name string) string { return strings.TrimSpace(q.query.Get(name)) }
	f := filter{
		Table: get("table"), Key: q.query.Get("key"), Environment: get("env"), User: get("user"), Tenant: get("tenant"),
		Request: get("request"), Trace: get("trace"), Endpoint: get("endpoint"), Worker: get("worker"),
		Column: get("column"), Value: q.query.Get("value"), From: get("from"), Until: get("until"),
		Transaction: get("tx"), Database: get("database"), NoContext: get("nocontext") != "", Defects: get("defects") != "",
	}
	f.HasValue = f.Value != ""
	for _, op := range q.query["op"] {
		if op != "" {
			f.Operations = append(f.Operations, op)
		}
	}
	var err error
	if f.from, err = parseTime(f.From); err != nil {
		return f, err
	}
	if f.until, err = parseTime(f.Until); err != nil {
		return f, err
	}
	q.from, q.until = f.from, f.until
	if f.Table != "" {
		q.tables = []string{f.Table}
	}
	return f, nil
}

// filterView is what the pages of lists show of their filter.
type filterView struct {
	Filter filter
	// Problem is what is wrong with the filter.
	Problem    string
	Operations []operationChoice
	Tables     []string
	Chips      []chip
	// Saved is the query of the address, as a saved filter keeps it.
	Saved string
}

type operationChoice struct {
	Name string
	On   bool
}

// fillFilter reads the filter, fills the list with it, and says beside the filter what is
// wrong with that.
func (q *request) fillFilter(view *filterView, fill func(filter) error) (code int, err error) {
	view.Chips, view.Tables, view.Saved = q.chips(), q.knownTables(), q.filters().Encode()
	view.Filter, err = q.filter()
	if err == nil {
		err = fill(view.Filter)
	}
	for _, op := range operations {
		view.Operations = append(view.Operations, operationChoice{string(op), slices.Contains(view.Filter.Operations, string(op))})
	}
	if view.Problem = q.explainFilter(err); view.Problem != "" {
		return http.StatusBadRequest, nil
	}
	return http.StatusOK, err
}

// listPages lead from a page of a list to others.
type listPages struct {
	// Older and Newer lead on, Newest to the beginning; empty where there is nothing.
	Older, Newer, Newest string
	// Searched is up to when the list was looked through, and Further the address that
	// looks on; zero and empty where all of it was.
	Searched time.Time
	Further  string
	// Upwards reports whether newer ones were looked for.
	Upwards bool
}

// searchFurther says how far a list was looked through, and leads on from there.
func (l *listPages) searchFurther(q *request, to time.Time, next audit.Cursor, upwards bool) {
	direction := "after"
	if upwards {
		direction = "before"
	}
	l.Searched, l.Upwards, l.Further = to, upwards, q.with(direction, string(next), "further", "1")
}

// searchTime is for how long a list looks for what no index finds. Whoever asks for more
// knows that it takes a while.
func (q *request) searchTime() time.Duration {
	if q.query.Has("further") {
		return q.cfg.Timeout * 3 / 4
	}
	return q.cfg.SearchTime
}

// explainFilter is what to say of an error that is about the filters themselves.
func (q *request) explainFilter(err error) string {
	var bad *requestError
	var filter *audit.FilterError
	if errors.As(err, &bad) || errors.As(err, &filter) {
		return q.explain(err).Text
	}
	return ""
}

// filtered are the changes that the address asks for.
func (q *request) filtered() (audit.Query, error) {
	f, err := q.filter()
	if err != nil {
		return audit.Query{}, err
	}
	return q.matching(f)
}

// matching are the changes that a filter leaves of those that whoever asks may see.
func (q *request) matching(f filter) (audit.Query, error) {
	all, err := q.changes()
	if err != nil {
		return all, err
	}
	return q.apply(f, all)
}

// parseTime reads a time as people and browsers write it, in UTC unless it says otherwise.
func parseTime(text string) (time.Time, error) {
	if text == "" {
		return time.Time{}, nil
	}
	for _, layout := range []string{
		time.RFC3339Nano, "2006-01-02T15:04:05.999999999", "2006-01-02T15:04", "2006-01-02 15:04:05.999999999Z07:00",
		"2006-01-02 15:04:05.999999999", "2006-01-02 15:04:05.999999999 UTC", "2006-01-02 15:04", time.DateOnly,
	} {
		if t, err := time.Parse(layout, text); err == nil {
			return t, nil
		}
	}
	return time.Time{}, &requestError{"A time has to look like 2024-01-31 12:30:00, in UTC, or like 2024-01-31T12:30:00+01:00."}
}

// apply narrows a query by the filter.
func (q *request) apply(f filter, to audit.Query) (audit.Query, error) {
	if len(f.Operations) > 0 {
		var wanted []audit.Operation
		for _, op := range f.Operations {
			wanted = append(wanted, audit.Operation(strings.ToUpper(op)))
		}
		to = to.Operations(wanted...)
	}
	if f.Table != "" {
		to = to.ForTable(f.Table)
	}
	if f.Key != "" {
		if err := q.mayAskForKey(f.Table); err != nil {
			return to, err
		}
		to = to.ForRow(f.Key)
	}
	for _, part := range []struct {
		value  string
		narrow func(string) audit.Query
	}{
		{f.Environment, func(s string) audit.Query { return to.InEnvironment(s) }},
		{f.User, func(s string) audit.Query { return to.ByUser(s) }},
		{f.Tenant, func(s string) audit.Query { return to.ByTenant(s) }},
		{f.Request, func(s string) audit.Query { return to.InRequest(s) }},
		{f.Trace, func(s string) audit.Query { return to.InTrace(s) }},
		{f.Endpoint, func(s string) audit.Query { return to.ByEndpoint(s) }},
		{f.Worker, func(s string) audit.Query { return to.ByWorker(s) }},
		{f.Database, func(s string) audit.Query { return to.InDatabase(s) }},
	} {
		if part.value != "" {
			to = part.narrow(part.value)
		}
	}
	if f.Transaction != "" {
		id, err := strconv.ParseUint(f.Transaction, 10, 64)
		if err != nil {
			return to, &requestError{"A transaction is a number."}
		}
		to = to.InTransaction(id)
	}
	to, err := q.applyColumn(f, to)
	if err != nil {
		return to, err
	}
	if f.NoContext {
		to = to.WithoutContext()
	}
	if f.Defects {
		to = to.WithDefect()
	}
	if !f.from.IsZero() && !f.until.IsZero() && f.until.Before(f.from) {
		return to, &requestError{"The time ends before it begins."}
	}
	if !f.from.IsZero() {
		to = to.Since(f.from)
	}
	if !f.until.IsZero() {
		to = to.Until(f.until)
	}
	return to, nil
}

// applyColumn narrows a query by a column and its value. Who may not see a value may not
// ask for it either.
func (q *request) applyColumn(f filter, to audit.Query) (audit.Query, error) {
	switch {
	case f.Column == "" && f.HasValue:
		return to, &requestError{"A value is one of a column: say which column, too."}
	case f.Column == "":
		return to, nil
	case !f.HasValue:
		return to.Changed(f.Column), nil
	case !q.access.Values:
		return to, &requestError{"You may not see values, and so cannot ask for one."}
	}
	if q.cfg.Mask == nil {
		return to.ChangedTo(f.Column, f.Value), nil
	}
	// The tables where the column is masked are left out of the answer, which says so
	// neither way.
	if q.status == nil {
		return to, errStatusUnknown
	}
	var open []string
	for _, table := range q.knownTables() {
		if !q.cfg.Mask(table, f.Column) {
			open = append(open, table)
		}
	}
	if len(open) == 0 {
		return to, &requestError{"The values of this column are masked, and so cannot be asked for."}
	}
	return to.ForTable(open...).ChangedTo(f.Column, f.Value), nil
}

// mayAskForKey refuses the keys of a table that are masked, whatever they are.
func (q *request) mayAskForKey(table string) error {
	if q.cfg.Mask == nil || table == "" {
		return nil
	}
	if q.status == nil {
		return errStatusUnknown
	}
	names := []string{table}
	for _, t := range q.status.Tables {
		if t.Table == table || tableName("", t.Table) == table {
			names = append(names, tableName(t.Schema, t.Table))
		}
	}
	ctx, cancel := q.context(q.cfg.Timeout)
	defer cancel()
	for _, name := range names {
		if !q.mayTable(name) {
			continue // what is said of it must be what is said of none
		}
		keyed, shown, err := q.keyOf(ctx, name)
		if err != nil {
			return err
		}
		if keyed && !shown {
			return &requestError{"The keys of this table are masked, and so cannot be asked for."}
		}
	}
	return nil
}

// knownTables are the tables of the history, sorted, that whoever asks may see.
func (q *request) knownTables() []string {
	var names []string
	if q.status == nil {
		return nil
	}
	for _, t := range q.status.Tables {
		if name := tableName(t.Schema, t.Table); q.mayTable(name) {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return slices.Compact(names)
}

// tableName is a name in the form that ForTable reads.
func tableName(schema, table string) string {
	return audit.Change{Schema: schema, Table: table}.TableName()
}

// mayTable reports whether the changes of a table may be seen.
func (q *request) mayTable(name string) bool {
	return q.access.Tables == nil || q.access.Tables(name)
}

// rowPages reports whether rows may be looked at.
func (q *request) rowPages() bool { return q.access.Scope == nil || q.access.RowAllowed != nil }

// changes begins every question about changes: with those that whoever asks may see.
func (q *request) changes() (audit.Query, error) {
	all := q.client.Changes()
	if q.access.Tables != nil {
		if q.status == nil {
			return all, errStatusUnknown
		}
		tables := q.knownTables()
		if len(tables) == 0 {
			return all, errNoPage
		}
		all = all.ForTable(tables...)
	}
	if q.access.Scope != nil {
		all = q.access.Scope(all)
	}
	return all, nil
}

// chip is a filter that is set, and the address without it.
type chip struct{ Name, Value, Without string }

var chipNames = map[string]string{
	"op": "operation", "env": "environment", "tx": "transaction", "nocontext": "without context", "defects": "with a defect", "column": "column changed",
	"value": "to", "from": "since", "until": "before",
}

func (q *request) chips() []chip {
	var chips []chip
	for _, name := range filterNames {
		for i, v := range q.query[name] {
			if v == "" {
				continue
			}
			without := q.filters()
			without[name] = slices.Delete(slices.Clone(q.query[name]), i, i+1)
			if name == "column" {
				without.Del("value")
			}
			c := chip{Name: name, Value: v, Without: "?" + without.Encode()}
			if words, ok := chipNames[name]; ok {
				c.Name = words
			}
			if name == "nocontext" || name == "defects" {
				c.Value = ""
			}
			chips = append(chips, c)
		}
	}
	return chips
}

// filters are the members of the address that are filters.
func (q *request) filters() url.Values {
	filters := make(url.Values)
	for _, name := range filterNames {
		for _, v := range q.query[name] {
			if v != "" {
				filters.Add(name, v)
			}
		}
	}
	return filters
}

// with is the address of this list with members replaced; places in it are dropped.
func (q *request) with(pairs ...string) string {
	values := q.filters()
	for i := 0; i+1 < len(pairs); i += 2 {
		values.Set(pairs[i], pairs[i+1])
	}
	return "?" + values.Encode()
}
