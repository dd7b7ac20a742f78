package integration_test

import (
	"net/http"
	"net/http/httptest"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/hindsight-go/audit"
	"github.com/hindsight-go/audit/auditpgx"
	"github.com/hindsight-go/audit/audittest"
)

const (
	traceID     = "4bf92f3577b34da6a3ce929d0e0e4736"
	spanID      = "00f067aa0ba902b7"
	traceparent = "00-" + traceID + "-" + spanID + "-01"
)

// newService gives an audited database with a todo in it, and a pool that stamps.
func newService(t *testing.T) (*audittest.Audited, *auditpgx.DB) {
	t.Helper()
	a := audittest.New(t, audit.Config{}, "CREATE TABLE todo (id bigint PRIMARY KEY, task text)", "INSERT INTO todo VALUES (26, 'Sleep')")
	pool, err := pgxpool.New(t.Context(), a.URL())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(pool.Close)
	return a, auditpgx.Wrap(pool)
}

// contexts are those of all changes, in commit order.
func contexts(t *testing.T, a *audittest.Audited) []audit.Context {
	t.Helper()
	a.Sync(t)
	var list []audit.Context
	for change, err := range a.Client.Changes().OldestFirst().All(t.Context()) {
		if err != nil {
			t.Fatal(err)
		}
		list = append(list, change.Context)
	}
	return list
}

// request makes a request of Ann's to a handler and expects it to be answered
// with 200 and with a request id, which it returns: not the one that it has sent.
func request(t *testing.T, h http.Handler, method, path, id string) string {
	t.Helper()
	r := httptest.NewRequestWithContext(t.Context(), method, path, nil)
	r.Header.Set("X-Request-Id", id)
	r.Header.Set("Traceparent", traceparent)
	r.SetBasicAuth("ann", "secret")
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	made := w.Header().Get("X-Request-Id")
	if w.Code != http.StatusOK || made == "" || made == id {
		t.Errorf("%s %s: %d, %s, request id %q", method, path, w.Code, w.Body, made)
	}
	return made
}

// sent is what a stranger says of a request.
func sent(id string) map[string]any {
	return map[string]any{"clientRequestId": id, "clientTraceId": traceID, "clientSpanId": spanID}
}

// expectContexts makes two requests and compares what their changes carry.
func expectContexts(t *testing.T, a *audittest.Audited, h http.Handler, first, second string) {
	t.Helper()
	put := request(t, h, "PUT", "/todo/26", "request-1")
	removal := request(t, h, "DELETE", "/api/todo/26", "request-2")
	want := []audit.Context{
		{UserID: "ann", RequestID: put, Endpoint: first, Extra: sent("request-1")},
		{UserID: "ann", RequestID: removal, Endpoint: second, Extra: sent("request-2")},
	}
	if diff := cmp.Diff(want, contexts(t, a)); diff != "" {
		t.Error(diff)
	}
}
