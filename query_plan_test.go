package audit_test

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/hindsight-go/audit"
)

// plan is what EXPLAIN says of a node.
type plan struct {
	NodeType string  `json:"Node Type"`
	Relation string  `json:"Relation Name"`
	Hit      int     `json:"Shared Hit Blocks"`
	Read     int     `json:"Shared Read Blocks"`
	Rows     float64 `json:"Actual Rows"`
	Plans    []plan  `json:"Plans"`
}

func (p plan) nodes() []plan {
	all := []plan{p}
	for _, child := range p.Plans {
		all = append(all, child.nodes()...)
	}
	return all
}

func (p plan) String() string {
	var names []string
	for _, node := range p.nodes() {
		names = append(names, strings.TrimSpace(node.NodeType+" "+node.Relation))
	}
	return fmt.Sprintf("%s (%d blocks, %v rows)", strings.Join(names, " > "), p.Hit+p.Read, p.Rows)
}

// TestQueriesUseTheIndexes looks at the plans over 200,000 changes in two
// partitions: nothing may read a partition from end to end, and what is read has
// to be in proportion to what is given.
func TestQueriesUseTheIndexes(t *testing.T) {
	t.Parallel()
	h := newHistory(t)
	h.db.Exec(t, `
		INSERT INTO audit.changes (position, sequence, committed_at, transaction_id, database, schema, "table",
			primary_key, previous_key, operation, before, after, context, environment, queued_at)
		SELECT '0/1000000'::pg_lsn + (n / 3) * 64, n % 3 + 1, timestamptz '2024-01-10 00:00+00' + n * interval '17 s', 1000 + n / 3,
			'shop', 'public', 'table_' || n % 20, (n * 7919 % 20000)::text, CASE WHEN n % 1000 = 0 THEN '7' END, 'UPDATE',
			jsonb_build_object('id', n, 'state', 'new'), jsonb_build_object('id', n, 'state', 'paid', 'filler', repeat('x', 40)),
			CASE WHEN n % 10 > 0 THEN jsonb_build_object('userId', n % 1009, 'requestId', 'request-' || n / 12, 'traceId', 'trace-' || n / 40,
				'endpoint', CASE WHEN n % 50000 = 1 THEN 'GET /rare' ELSE 'POST /e' || n % 10 END) END,
			CASE WHEN n % 3 > 0 THEN 'production' ELSE 'staging' END, now()
		FROM generate_series(0, 199999) AS n`)
	// As autovacuum would: it empties the pending list of the GIN index, and
	// summarizes the BRIN index.
	h.db.Exec(t, "VACUUM ANALYZE audit.changes")

	changes := h.client.Changes()
	middle := epoch.Add(20 * 24 * time.Hour)
	after := func(n int) audit.Cursor {
		return changes.CursorAfter(change(0, 1, func(c *audit.Change) { c.Position.LSN += at(n, 0).LSN - at(0, 0).LSN }))
	}
	afterOldest := changes.OldestFirst().CursorAfter(change(60000, 1))
	for name, test := range map[string]struct {
		query  audit.Query
		blocks int
	}{
		"newest":             {changes, 200},
		"newest, next page":  {changes.After(after(20000)), 200},
		"oldest":             {changes.OldestFirst(), 200},
		"watch":              {changes.InDatabase("shop").OldestFirst().After(afterOldest), 200},
		"watch a table":      {changes.InDatabase("shop").ForTable("table_3").OldestFirst().After(afterOldest), 300},
		"user":               {changes.ByUser(7), 300},
		"user, next page":    {changes.ByUser(7).After(after(20000)), 300},
		"unknown user":       {changes.ByUser("nobody"), 50},
		"table":              {changes.ForTable("table_3"), 300},
		"qualified table":    {changes.ForTable("public.table_3"), 300},
		"unknown table":      {changes.ForTable("nowhere"), 50},
		"user in a table":    {changes.ForTable("table_3").ByUser(7), 1500},
		"row":                {changes.ForTable("table_3").ForRow(7919 * 3 % 20000), 300},
		"row of a new key":   {changes.ForTable("table_0").ForRow(7), 500},
		"request":            {changes.InRequest("request-9000"), 200},
		"unknown request":    {changes.InRequest("none"), 100},
		"trace":              {changes.InTrace("trace-3"), 200},
		"endpoint":           {changes.ByEndpoint("POST /e3"), 1500},
		"transaction":        {changes.InTransaction(41000), 400},
		"time range":         {changes.Between(middle, middle.Add(time.Hour)), 3000},
		"narrow time range":  {changes.Between(middle, middle.Add(time.Minute)), 3000},
		"since":              {changes.Since(epoch.Add(39 * 24 * time.Hour)), 300},
		"table in time":      {changes.ForTable("table_3").Since(middle), 300},
		"request and table":  {changes.ForTable("table_3").InRequest("request-9000"), 300},
		"position":           {changes.AtPosition(at(40000, 0)), 100},
		"no such operation":  {changes.Operations(audit.Delete), 150},
		"none of operations": {changes.Operations(audit.Delete, audit.Truncate), 150},
		"an operation":       {changes.Operations(audit.Update), 200},
		"no environment":     {changes.InEnvironment("none"), 150},
		"without context":    {changes.WithoutContext(), 300},
		"defects":            {changes.WithDefect(), 50},
		"request until then": {changes.InRequest("request-100").Until(middle), 200},
	} {
		statement, args, err := test.query.Statement(50)
		if err != nil {
			t.Fatal(err)
		}
		root := h.explain(t, statement, args)
		checkPlan(t, name, root, test.blocks)
		// Three changes make a transaction: finding as many of them reads more.
		if statement, args, err = test.query.TransactionStatement(50); err == nil {
			checkPlan(t, "transactions of "+name, h.explain(t, statement, args), 4*test.blocks)
		}
	}
}

// explain runs a statement and returns what it did.
func (h *history) explain(t *testing.T, statement string, args []any) plan {
	t.Helper()
	conn := h.db.Connect(t)
	var text []byte
	if err := conn.QueryRow(t.Context(), "EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) "+statement, args...).Scan(&text); err != nil {
		t.Fatalf("%v\n%s", err, statement)
	}
	if err := conn.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	var explained []struct{ Plan plan }
	if err := json.Unmarshal(text, &explained); err != nil {
		t.Fatal(err)
	}
	return explained[0].Plan
}

func checkPlan(t *testing.T, name string, root plan, blocks int) {
	t.Helper()
	t.Logf("%s: %v", name, root)
	for _, node := range root.nodes() {
		if node.NodeType == "Seq Scan" && node.Relation != "changes_of_3" {
			t.Errorf("%s reads all of %s: %v", name, node.Relation, root)
		}
	}
	if read := root.Hit + root.Read; read > blocks {
		t.Errorf("%s reads %d blocks, more than %d: %v", name, read, blocks, root)
	}
}
