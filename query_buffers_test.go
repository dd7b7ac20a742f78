package audit_test

import (
	"encoding/json"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hindsight-go/audit"
	"github.com/hindsight-go/audit/internal/faulttest"
)

// observed is what the server did for the statements of a client.
type observed struct {
	mu    sync.Mutex
	plans []plan // guarded by mu
}

// explained has the client of the history tell what its statements do.
func (h *history) explained(t *testing.T) *observed {
	t.Helper()
	o := &observed{}
	err := audit.Explain(t.Context(), h.client, func(notice string) {
		_, text, found := strings.Cut(notice, "plan:")
		var logged struct{ Plan plan }
		if !found || json.Unmarshal([]byte(text), &logged) != nil {
			return
		}
		o.mu.Lock()
		defer o.mu.Unlock()
		o.plans = append(o.plans, logged.Plan)
	})
	if err != nil {
		t.Fatal(err)
	}
	return o
}

// blocks returns how many buffers were touched since the last call, and by what.
func (o *observed) blocks(t *testing.T) (int, []plan) {
	t.Helper()
	o.mu.Lock()
	defer o.mu.Unlock()
	n, plans := 0, o.plans
	for _, p := range plans {
		n += p.Hit + p.Read
	}
	if len(plans) == 0 {
		t.Error("no plan was seen")
	}
	o.plans = nil
	return n, plans
}

// unplanned is a history of which the planner knows nothing, with entries that the
// context's index has still to sort in: as just after a large import. Twelve changes are
// of one request, three of one transaction.
func unplanned(t *testing.T, changes int) *history {
	t.Helper()
	h := newHistory(t)
	h.db.Exec(t, fmt.Sprintf(`
		ALTER TABLE audit.changes_of_1 SET (autovacuum_enabled = off);
		ALTER TABLE audit.changes_of_2 SET (autovacuum_enabled = off);
		INSERT INTO audit.changes (position, sequence, committed_at, transaction_id, database, schema, "table",
			primary_key, operation, before, after, context, queued_at)
		SELECT '0/1000000'::pg_lsn + n / 3 * 64, n %% 3 + 1, timestamptz '2024-01-10 00:00+00' + n * interval '50 days' / %[1]d, 1000 + n / 3,
			'shop', 'public', 'table_' || n %% 20, (n * 7919::bigint %% 20000)::text, 'UPDATE',
			jsonb_build_object('id', n, 'state', 'new'), jsonb_build_object('id', n, 'state', 'paid', 'filler', repeat('x', 40)),
			CASE WHEN n %% 10 > 0 THEN jsonb_build_object('userId', n %% 1009, 'requestId', 'request-' || n / 12, 'endpoint', 'POST /e' || n %% 10) END,
			now()
		FROM generate_series(0, %[1]d - 1) AS n`, changes))
	return h
}

// What a page of requests touches goes by the page, not by the history, whatever the
// planner knows and however much the index of contexts has still to sort in.
func TestRequestsPage_WithoutStatistics(t *testing.T) {
	t.Parallel()
	h := unplanned(t, 50_000)
	o := h.explained(t)
	q := h.client.Changes()
	for name, q := range map[string]audit.Query{
		"newest first": q,
		"oldest first": q.OldestFirst(),
		"of a user":    q.ByUser(7),
		"of a table":   q.ForTable("table_3"),
	} {
		var at audit.Cursor
		for range 3 {
			page, err := q.After(at).RequestsPage(t.Context(), 20)
			if err != nil || len(page.Requests) == 0 {
				t.Fatalf("%s: %d requests, %v", name, len(page.Requests), err)
			}
			at = page.Next
			read, plans := o.blocks(t)
			t.Logf("%s: %d blocks in %d statements", name, read, len(plans))
			if read > 20*200 {
				t.Errorf("%s: %d blocks for a page of 20 requests: %v", name, read, plans)
			}
		}
	}
}

// questionChangesEnv sets the size of the history of TestQuestions_Buffers.
const questionChangesEnv = "AUDIT_TEST_QUESTION_CHANGES"

// What a question touches goes by the changes that its answer is about: at most twelve
// buffers for each and five hundred to find them, in any history, with and without
// statistics. The table in docs/benchmarks.md is from this test.
func TestQuestions_Buffers(t *testing.T) {
	t.Parallel()
	size := int(faulttest.EnvNumber(t, questionChangesEnv, 40_000))
	h := unplanned(t, size)
	o := h.explained(t)
	ctx, q := t.Context(), h.client.Changes()
	middle := epoch.Add(25 * 24 * time.Hour)
	hour := size / (50 * 24)
	request := fmt.Sprintf("request-%d", size/24)
	changes := func(list []audit.Change, err error) (int, error) { return len(list), err }
	page := func(q audit.Query) func() (int, error) {
		return func() (int, error) { p, err := q.Page(ctx, 100); return changes(p.Changes, err) }
	}
	list := func(q audit.Query) func() (int, error) { return func() (int, error) { return changes(q.List(ctx)) } }
	requests := func(q audit.Query) func() (int, error) {
		return func() (int, error) { p, err := q.RequestsPage(ctx, 20); return len(p.Requests), err }
	}
	window := q.Between(middle, middle.Add(time.Hour))
	questions := []struct {
		name    string
		changes int // that the answer is about
		results int
		ask     func() (int, error)
	}{
		{"First", 1, 1, func() (int, error) { _, err := q.First(ctx); return 1, err }},
		{"Page(100)", 100, 100, page(q)},
		{"OldestFirst, Page(100)", 100, 100, page(q.OldestFirst())},
		{"After(the middle), Page(100)", 100, 100, page(q.After(q.CursorAfter(audit.Change{Position: at(size/6, 1), Database: "shop"})))},
		{"ForTable, Page(100)", 100, 100, page(q.ForTable("table_3"))},
		{"ForTable, ForRow, List", size / 20_000, size / 20_000, list(q.ForTable("table_3").ForRow(3757))},
		{"ByUser, Limit(20), List", 20, 20, list(q.ByUser(7).Limit(20))},
		{"InRequest, List", 12, 11, list(q.InRequest(request))}, // every tenth change has no context
		{"InRequest, Count", 12, 11, func() (int, error) { n, err := q.InRequest(request).Count(ctx); return int(n), err }},
		{"InTransaction, List", 3, 3, list(q.InTransaction(uint64(1000 + size/6)))},
		{"AtPosition, List", 3, 3, list(q.AtPosition(audit.Position{LSN: at(size/6, 0).LSN}))},
		{"Between (an hour), Count", hour, hour, func() (int, error) { n, err := window.Count(ctx); return int(n), err }},
		{"Between (an hour), CountBy(PerOperation)", hour, 1, func() (int, error) { g, err := window.CountBy(ctx, audit.PerOperation); return len(g), err }},
		{"Between (an hour), Trend(EveryMinute)", hour, 60, func() (int, error) { steps, err := window.Trend(ctx, audit.EveryMinute); return len(steps), err }},
		{"TransactionsPage(20)", 60, 20, func() (int, error) { p, err := q.TransactionsPage(ctx, 20); return len(p.Transactions), err }},
		{"RequestsPage(20)", 240, 20, requests(q)},
		{"OldestFirst, RequestsPage(20)", 240, 20, requests(q.OldestFirst())},
		{"ForTable, RequestsPage(20)", 240, 20, requests(q.ForTable("table_3"))},
	}
	for _, known := range []string{"without statistics", "after VACUUM ANALYZE"} {
		for _, question := range questions {
			if question.name == "InTransaction, List" && known == "without statistics" {
				continue // a BRIN index leads there, which is empty until VACUUM
			}
			if strings.HasPrefix(question.name, "Between") && known == "without statistics" && size > 2_000_000 {
				continue // an hour is taken for a part that is worth reading everything for
			}
			begun := time.Now()
			n, err := question.ask()
			if err != nil || max(n, question.results)-min(n, question.results) > 1 { // of a window, the edges
				t.Fatalf("%s: %d results, not %d: %v", question.name, n, question.results, err)
			}
			took := time.Since(begun)
			blocks, plans := o.blocks(t)
			t.Logf("| %s | %s | %d | %d | %v |", question.name, known, question.changes, blocks, took.Round(100*time.Microsecond))
			if blocks > 12*question.changes+500 {
				t.Errorf("%s, %s: %d buffers for an answer about %d changes: %v", question.name, known, blocks, question.changes, plans)
			}
		}
		h.db.Exec(t, "VACUUM ANALYZE audit.changes")
	}
}
