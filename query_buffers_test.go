package audit_test

import (
	"encoding/json"
	"strings"
	"sync"
	"testing"

	"github.com/hindsight-go/audit"
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
// context's index has still to sort in: as just after a large import.
func unplanned(t *testing.T) *history {
	t.Helper()
	h := newHistory(t)
	h.db.Exec(t, `
		ALTER TABLE audit.changes_of_1 SET (autovacuum_enabled = off);
		ALTER TABLE audit.changes_of_2 SET (autovacuum_enabled = off);
		INSERT INTO audit.changes (position, sequence, committed_at, transaction_id, database, schema, "table",
			primary_key, operation, before, after, context, queued_at)
		SELECT '0/1000000'::pg_lsn + n / 3 * 64, n % 3 + 1, timestamptz '2024-01-10 00:00+00' + n * interval '60 s', 1000 + n / 3,
			'shop', 'public', 'table_' || n % 20, (n * 7919 % 20000)::text, 'UPDATE',
			jsonb_build_object('id', n, 'state', 'new'), jsonb_build_object('id', n, 'state', 'paid', 'filler', repeat('x', 40)),
			CASE WHEN n % 10 > 0 THEN jsonb_build_object('userId', n % 1009, 'requestId', 'request-' || n / 12, 'endpoint', 'POST /e' || n % 10) END,
			now()
		FROM generate_series(0, 49999) AS n`)
	return h
}

// What a page of requests touches goes by the page, not by the history, whatever the
// planner knows and however much the index of contexts has still to sort in.
func TestRequestsPage_WithoutStatistics(t *testing.T) {
	t.Parallel()
	h := unplanned(t)
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
