package audit_test

import (
	"bytes"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"math/big"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgtype"

	"github.com/hindsight-go/audit"
	"github.com/hindsight-go/audit/internal/faulttest"
)

// oracleSecondsEnv sets for how long the oracle asks, and oracleSeedEnv repeats a run.
const (
	oracleSecondsEnv = "AUDIT_TEST_ORACLE_SECONDS"
	oracleSeedEnv    = "AUDIT_TEST_ORACLE_SEED"
)

// oracle asks random questions of a random history, each by the API and in SQL that was
// written for this test and shares nothing with what the API runs.
type oracle struct {
	model
	h    *history
	conn *pgx.Conn
}

// asked is a query of the API beside its SQL.
type asked struct {
	name  string
	query audit.Query
	where []string // conditions on audit.changes AS c
	after string   // the condition of a cursor, if there is one
	limit int
	down  string // DESC if the newest come first
	zone  string
}

// TestQueries_Oracle compares every terminal method under random filters, orders,
// limits, cursors and zones with SQL.
func TestQueries_Oracle(t *testing.T) {
	t.Parallel()
	seconds := uint64(20)
	if testing.Short() {
		seconds = 2
	}
	seed := faulttest.EnvNumber(t, oracleSeedEnv, rand.Uint64())
	t.Logf("%s=%d", oracleSeedEnv, seed)
	o := &oracle{model: model{Rand: rand.New(rand.NewPCG(seed, 1))}, h: newHistory(t)}
	o.fill(400)
	o.addOddities()
	o.h.store(t, o.changes...)
	o.conn = o.h.db.Connect(t)
	rounds := 0
	for end := time.Now().Add(time.Duration(faulttest.EnvNumber(t, oracleSecondsEnv, seconds)) * time.Second); time.Now().Before(end) && !t.Failed(); rounds++ {
		q := o.question()
		o.checkLists(t, q)
		o.checkAggregates(t, q)
		if q.after == "" {
			o.checkTransactions(t, q)
			o.checkRequests(t, q)
		}
	}
	t.Logf("%d questions", rounds)
}

// addOddities gives some changes what no well-behaved client sends.
func (o *oracle) addOddities() {
	for i := range o.changes {
		c := &o.changes[i]
		switch o.IntN(10) {
		case 0:
			with(pick(&o.model, `null`, `[]`, `["ann"]`, `{"userId": true, "user_id": 7.50}`, `{"userId": "", "user_id": "ann"}`,
				`{"requestId": "r1", "request_id": "r2"}`, `{"requestId": {"id": "r1"}}`, `{"userId": 1e3}`, `{"endpoint": 7, "tenant": null}`))(c)
		case 1:
			with(pick(&o.model, `{"tenant": "acme", "worker": "mail"}`, `{"tenant": 5, "worker": "\"q\""}`, `{"tenant": "5", "userId": 1}`))(c)
		case 2:
			c.Defect = "cut"
		}
	}
}

// memberSQL is the text of a context's member: of the first of its names that has one.
func memberSQL(names ...string) string {
	text := "NULL::text"
	for i := len(names) - 1; i >= 0; i-- {
		text = fmt.Sprintf(`CASE WHEN jsonb_typeof(c.context) = 'object' AND jsonb_typeof(c.context #> '{%[1]s}') IN ('number', 'string') AND length(c.context #>> '{%[1]s}') > 0
			THEN c.context #>> '{%[1]s}' ELSE %[2]s END`, names[i], text)
	}
	return "(" + text + ")"
}

var (
	userSQL    = memberSQL("userId", "user_id")
	requestSQL = memberSQL("requestId", "request_id")
)

func sqlText(text string) string { return "'" + strings.ReplaceAll(text, "'", "''") + "'" }

// filter is a random filter of the API with its condition.
func (o *oracle) filter() (name string, apply func(audit.Query) audit.Query, where string) {
	m := &o.model
	one := func(name, where string, apply func(audit.Query) audit.Query) (string, func(audit.Query) audit.Query, string) {
		return name, apply, where
	}
	times := epoch.Add(time.Duration(m.IntN(1200)) * time.Hour)
	later := times.Add(time.Duration(m.IntN(900)) * time.Hour)
	stamp := func(t time.Time) string { return "timestamptz " + sqlText(t.Format(time.RFC3339Nano)) }
	switch m.IntN(22) {
	case 0:
		table := pick(m, "todo", "users", "Odd Table", "none")
		return one("ForTable "+table, `c."table" = `+sqlText(table), func(q audit.Query) audit.Query { return q.ForTable(table) })
	case 1:
		return one("ForTable of two", `(c.schema, c."table") IN (('public', 'todo'), ('billing', 'Odd Table'))`,
			func(q audit.Query) audit.Query { return q.ForTable("public.todo", `billing."Odd Table"`) })
	case 2:
		row := pick(m, "1", "2", "9")
		value := pick[any](m, row, json.Number(row), sql.NullString{String: row, Valid: true}, pgtype.Text{String: row, Valid: true})
		return one(fmt.Sprintf("ForRow %T %s", value, row), `c."table" = 'todo' AND `+sqlText(row)+` IN (c.primary_key, coalesce(c.previous_key, c.primary_key))`,
			func(q audit.Query) audit.Query { return q.ForTable("todo").ForRow(value) })
	case 3:
		user := pick[any](m, 1, "1", "ann", "7.50", "true", sql.NullInt64{Int64: 1, Valid: true}, big.NewInt(1), "1000")
		text := fmt.Sprint(user)
		if _, ok := user.(sql.NullInt64); ok {
			text = "1"
		}
		return one(fmt.Sprintf("ByUser %T %s", user, text), userSQL+" = "+sqlText(text), func(q audit.Query) audit.Query { return q.ByUser(user) })
	case 4:
		id := pick(m, "r1", "r2", "7", "none")
		return one("InRequest "+id, requestSQL+" = "+sqlText(id), func(q audit.Query) audit.Query { return q.InRequest(id) })
	case 5:
		return one("InTrace t1", memberSQL("traceId", "trace_id")+" = 't1'", func(q audit.Query) audit.Query { return q.InTrace("t1") })
	case 6:
		value := pick(m, "GET /", "7")
		return one("ByEndpoint "+value, memberSQL("endpoint")+" = "+sqlText(value), func(q audit.Query) audit.Query { return q.ByEndpoint(value) })
	case 7:
		value := pick(m, "acme", "5")
		return one("ByTenant "+value, memberSQL("tenant")+" = "+sqlText(value), func(q audit.Query) audit.Query { return q.ByTenant(value) })
	case 8:
		value := pick(m, "mail", `"q"`)
		return one("ByWorker "+value, memberSQL("worker")+" = "+sqlText(value), func(q audit.Query) audit.Query { return q.ByWorker(value) })
	case 9:
		return one("WhereContext", `coalesce(jsonb_typeof(c.context) = 'object' AND c.context -> 'userId' = '1', false)`,
			func(q audit.Query) audit.Query { return q.WhereContext(map[string]any{"userId": 1}) })
	case 10:
		return one("WithoutContext", `coalesce(c.context::text, 'null') IN ('null', '{}')`, audit.Query.WithoutContext)
	case 11:
		return one("Operations", `c.operation IN ('UPDATE', 'TRUNCATE')`, func(q audit.Query) audit.Query { return q.Operations(audit.Update, audit.Truncate) })
	case 12:
		return one("Since "+stamp(times), "c.committed_at >= "+stamp(times), func(q audit.Query) audit.Query { return q.Since(times) })
	case 13:
		return one("Until "+stamp(later), "c.committed_at < "+stamp(later), func(q audit.Query) audit.Query { return q.Until(later) })
	case 14:
		return one("Between "+stamp(times)+" and "+stamp(later), "c.committed_at >= "+stamp(times)+" AND c.committed_at < "+stamp(later),
			func(q audit.Query) audit.Query { return q.Between(times, later) })
	case 15:
		c := pick(m, o.changes...)
		return one("InTransaction", fmt.Sprintf("c.transaction_id = %d", c.TransactionID), func(q audit.Query) audit.Query { return q.InTransaction(c.TransactionID) })
	case 16:
		p := pick(m, o.changes...).Position
		where := fmt.Sprintf("c.position = '%s'", p.LSN)
		if p.Sequence = p.Sequence * m.IntN(2); p.Sequence > 0 {
			where += fmt.Sprintf(" AND c.sequence = %d", p.Sequence)
		}
		return one("AtPosition "+p.String(), where, func(q audit.Query) audit.Query { return q.AtPosition(p) })
	case 17:
		environment, database := pick(m, "test", "production", ""), pick(m, "shop", "archive")
		return one("InEnvironment "+environment+" "+database, "coalesce(c.environment, '') = "+sqlText(environment)+" AND c.database = "+sqlText(database),
			func(q audit.Query) audit.Query { return q.InEnvironment(environment).InDatabase(database) })
	case 18:
		return one("WithDefect", "c.defect > ''", audit.Query.WithDefect)
	case 19:
		column := pick(m, "id", "state", "price", "none")
		return one("Changed "+column, fmt.Sprintf(`coalesce(c.before -> '%[1]s', '"absent"') <> coalesce(c.after -> '%[1]s', '"absent"') AND (c.after ? '%[1]s' OR c.operation <> 'UPDATE')`, column),
			func(q audit.Query) audit.Query { return q.Changed(column) })
	case 20:
		value := pick[any](m, 1, "1", sql.NullInt64{Int64: 1, Valid: true}, pgtype.Int4{Int32: 1, Valid: true}, big.NewRat(1, 1))
		return one(fmt.Sprintf("ChangedTo %T", value), `c.after -> 'price' IN ('1', '"1"') AND c.before -> 'price' IS DISTINCT FROM c.after -> 'price'`,
			func(q audit.Query) audit.Query { return q.ChangedTo("price", value) })
	default:
		return one("WhereBefore", `c.before -> 'state' = 'null' AND (c.before ->> 'id')::int = 2`, func(q audit.Query) audit.Query {
			return q.WhereBefore(map[string]any{"state": sql.NullString{}, "id": pgtype.Int8{Int64: 2, Valid: true}})
		})
	}
}

func (o *oracle) question() asked {
	q := asked{query: o.h.client.Changes(), down: "DESC", where: []string{"true"}}
	var names []string
	for range o.IntN(4) {
		name, apply, where := o.filter()
		q.query, q.where, names = apply(q.query), append(q.where, "("+where+")"), append(names, name)
	}
	if o.IntN(2) == 0 {
		q.query, q.down, names = q.query.OldestFirst(), "", append(names, "OldestFirst")
	}
	q.zone = pick(&o.model, "UTC", "Europe/Berlin", "Asia/Kathmandu", "America/New_York")
	location, err := time.LoadLocation(q.zone)
	if err != nil {
		panic(err)
	}
	q.query = q.query.InZone(location)
	if o.IntN(3) == 0 {
		c := pick(&o.model, o.changes...)
		q.query, names = q.query.After(q.query.CursorAfter(c)), append(names, "After "+rowOf(c))
		q.after = fmt.Sprintf(`(c.position, c.sequence, c.database COLLATE "C") %s ('%s'::pg_lsn, %d, '%s')`,
			map[string]string{"DESC": "<", "": ">"}[q.down], c.Position.LSN, c.Position.Sequence, c.Database)
	}
	if o.IntN(3) == 0 {
		q.limit = 1 + o.IntN(30)
		q.query, names = q.query.Limit(q.limit), append(names, fmt.Sprint("Limit ", q.limit))
	}
	q.name = strings.Join(append(names, q.zone), ", ")
	return q
}

// order is the ORDER BY of the query.
func (q asked) order() string {
	return fmt.Sprintf(`c.position %[1]s, c.sequence %[1]s, c.database COLLATE "C" %[1]s`, q.down)
}

// changes selects those of the query, as c, with their place; limited if whole is false.
func (q asked) changes(whole bool) string {
	where := strings.Join(q.where, " AND ")
	if q.after != "" {
		where += " AND " + q.after
	}
	statement := "SELECT c.*, row_number() OVER (ORDER BY " + q.order() + ") AS place FROM audit.changes AS c WHERE " + where
	if q.limit > 0 && !whole {
		statement += fmt.Sprintf(" ORDER BY place LIMIT %d", q.limit)
	}
	return "(" + statement + ") AS c"
}

// lines runs SQL that gives one text a row.
func (o *oracle) lines(t *testing.T, statement string) []string {
	t.Helper()
	rows, _ := o.conn.Query(t.Context(), statement)
	lines, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		t.Fatalf("%v in %s", err, statement)
	}
	return append([]string{}, lines...)
}

// agree compares what the API gave with what SQL says.
func (q asked) agree(t *testing.T, terminal string, want, got []string, err error) {
	t.Helper()
	if diff := cmp.Diff(want, got); err != nil || diff != "" {
		t.Errorf("%s of %s: %v\n%s", terminal, q.name, err, diff)
	}
}

func (o *oracle) checkLists(t *testing.T, q asked) {
	t.Helper()
	const row = `SELECT c.position::text || '#' || c.sequence || ' ' || c.database FROM `
	want := o.lines(t, row+q.changes(false)+" ORDER BY place")
	changes, err := q.query.List(t.Context())
	q.agree(t, "List", want, rowsOf(changes), err)

	first, err := q.query.First(t.Context())
	if len(want) == 0 && !errors.Is(err, audit.ErrNotFound) || len(want) > 0 && (err != nil || rowOf(first) != want[0]) {
		t.Errorf("First of %s: %s, %v", q.name, rowOf(first), err)
	}
	if n, err := q.query.Count(t.Context()); err != nil || int(n) != len(want) {
		t.Errorf("Count of %s: %d, %v; want %d", q.name, n, err, len(want))
	}
	var file bytes.Buffer
	n, err := q.query.Export(t.Context(), &file, audit.JSONL)
	exported := []string{}
	for decoder := json.NewDecoder(&file); decoder.More(); {
		var c audit.Change
		if err := decoder.Decode(&c); err != nil {
			t.Fatal(err)
		}
		exported = append(exported, rowOf(c))
	}
	q.agree(t, "Export", want, exported, err)
	if int(n) != len(want) {
		t.Errorf("Export of %s counts %d, not %d", q.name, n, len(want))
	}

	whole, size := o.lines(t, row+q.changes(true)+" ORDER BY place"), 1+o.IntN(200)
	paged := []string{}
	for page, at := (audit.Page{More: true}), q.query; page.More; at = at.After(page.Next) {
		if page, err = at.Page(t.Context(), size); err != nil {
			t.Fatal(err)
		}
		paged = append(paged, rowsOf(page.Changes)...)
	}
	q.agree(t, "Page", whole, paged, nil)
}
