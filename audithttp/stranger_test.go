package audithttp_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"net/http"
	"net/http/httptest"
	"testing"

	"github.com/google/go-cmp/cmp"
	"go.opentelemetry.io/otel/trace"

	"github.com/hindsight-go/audit"
	"github.com/hindsight-go/audit/audithttp"
	"github.com/hindsight-go/audit/auditpgx"
	"github.com/hindsight-go/audit/audittest"
)

const (
	victimTrace  = "4bf92f3577b34da6a3ce929d0e0e4736"
	victimSpan   = "00f067aa0ba902b7"
	victimParent = "00-" + victimTrace + "-" + victimSpan + "-01"
)

// TestStranger_RepeatsTheIDsOfAVictim sends the request id and the trace of somebody
// else, whose signed contract must stay when the stranger's request is undone.
func TestStranger_RepeatsTheIDsOfAVictim(t *testing.T) {
	t.Parallel()
	a := audittest.New(t, audit.Config{}, "CREATE TABLE contract (name text PRIMARY KEY)")
	conn := auditpgx.WrapConn(a.Connect(t))
	handler := audithttp.Middleware(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		if _, err := conn.Exec(r.Context(), "INSERT INTO contract VALUES ($1)", r.URL.Query().Get("name")); err != nil {
			t.Error(err)
		}
	}))
	send := func(name, id string) (made string) {
		r := httptest.NewRequest(http.MethodPost, "/contract?name="+name, nil)
		if id != "" {
			r.Header.Set("X-Request-Id", id)
			r.Header.Set("Traceparent", victimParent)
		}
		w := httptest.NewRecorder()
		handler.ServeHTTP(w, r)
		return w.Header().Get("X-Request-Id")
	}
	victim := send("victim", "")
	stranger := send("stranger", victim)
	if stranger == victim {
		t.Error("the stranger has got the id of the victim")
	}
	a.Sync(t)
	if n, err := a.Client.Changes().InTrace(victimTrace).Count(t.Context()); err != nil || n != 0 {
		t.Errorf("%d changes in the trace of a header, %v", n, err)
	}
	for name, value := range map[string]string{"clientRequestId": victim, "clientTraceId": victimTrace, "clientSpanId": victimSpan} {
		if n, err := a.Client.Changes().WhereContext(map[string]any{name: value}).Count(t.Context()); err != nil || n != 1 {
			t.Errorf("%s finds %d changes, %v", name, n, err)
		}
	}
	if _, err := a.Client.RevertRequest(stranger).Apply(t.Context()); err != nil {
		t.Fatal(err)
	}
	if left := audittest.Value[string](t, a.Database, "SELECT string_agg(name, ' ') FROM contract"); left != "victim" {
		t.Errorf("there is %q", left)
	}
}

// TestTrustRequestID_Gateway believes those whom the callback believes, and nobody else.
func TestTrustRequestID_Gateway(t *testing.T) {
	t.Parallel()
	config := audithttp.Config{TrustRequestID: func(r *http.Request) bool { return r.RemoteAddr == "10.0.0.1:1" }}
	for _, c := range []struct {
		name, from, id string
		trusted        bool
	}{
		{"the gateway", "10.0.0.1:1", "r1", true},
		{"a stranger", "10.0.0.2:1", "r1", false},
		{"the gateway with an id that is none", "10.0.0.1:1", "<script>", false},
	} {
		r := httptest.NewRequest(http.MethodGet, "/", nil)
		r.RemoteAddr = c.from
		r.Header.Set("X-Request-Id", c.id)
		r.Header.Set("Traceparent", victimParent)
		seen, w := serve(config, r)
		if (seen.RequestID == c.id) != c.trusted || w.Header().Get("X-Request-Id") != seen.RequestID {
			t.Errorf("%s: request id %q", c.name, seen.RequestID)
		}
		if believed := c.from == "10.0.0.1:1"; (seen.TraceID == victimTrace) != believed || (seen.Extra["clientTraceId"] == victimTrace) == believed {
			t.Errorf("%s: %+v", c.name, seen)
		}
	}
	// A propagator alone makes no span of ours.
	remote := trace.NewSpanContext(trace.SpanContextConfig{TraceID: trace.TraceID{1}, SpanID: trace.SpanID{2}, Remote: true})
	ctx := trace.ContextWithRemoteSpanContext(context.Background(), remote)
	seen, _ := serve(audithttp.Config{}, httptest.NewRequest(http.MethodGet, "/", nil).WithContext(ctx))
	if seen.TraceID != "" || seen.Extra["clientTraceId"] != remote.TraceID().String() {
		t.Errorf("a propagated span: %+v", seen)
	}
}

// TestTrustRequestID_ClientCertificate believes who has shown a certificate.
func TestTrustRequestID_ClientCertificate(t *testing.T) {
	t.Parallel()
	config := audithttp.Config{
		TrustRequestID: func(r *http.Request) bool { return r.TLS != nil && len(r.TLS.VerifiedChains) > 0 },
	}
	for name, c := range map[string]struct {
		state *tls.ConnectionState
		taken bool
	}{
		"plain":       {nil, false},
		"TLS":         {&tls.ConnectionState{}, false},
		"certificate": {&tls.ConnectionState{VerifiedChains: [][]*x509.Certificate{{{}}}}, true},
	} {
		r := httptest.NewRequest(http.MethodGet, "/", nil)
		r.TLS = c.state
		r.Header.Set("X-Request-Id", "r1")
		if seen, _ := serve(config, r); (seen.RequestID == "r1") != c.taken {
			t.Errorf("%s: request id %q", name, seen.RequestID)
		}
	}
}

// TestEndpoint_Procedures looks at endpoints whose route says too little.
func TestEndpoint_Procedures(t *testing.T) {
	t.Parallel()
	inner := http.NewServeMux()
	inner.HandleFunc("POST /api/todo/{id}", func(http.ResponseWriter, *http.Request) {})
	mux := http.NewServeMux()
	var endpoint string
	handler := http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		c, _ := audit.FromContext(r.Context())
		endpoint = c.Endpoint
	})
	mux.Handle("/todo.v1.TodoService/", handler)
	mux.Handle("/", handler)
	mux.Handle("/api/", inner)
	mux.Handle("/graphql", handler)
	mux.Handle("/other/", http.StripPrefix("/other", handler))
	inner.Handle("/api/mounted/{name}", handler)
	config := audithttp.Config{Endpoint: func(r *http.Request) string { return r.Header.Get("Operation") }}
	got := map[string]string{}
	for _, path := range []string{"/todo.v1.TodoService/Rename", "/unregistered.Service/Do", "/api/mounted/x", "/other/deep/er", "/graphql", "/plain", "/a.b/1"} {
		r := httptest.NewRequest(http.MethodPost, path, nil)
		if path == "/graphql" {
			r.Header.Set("Operation", "mutation RenameTodo")
		}
		endpoint = ""
		config.Middleware(mux).ServeHTTP(httptest.NewRecorder(), r)
		got[path] = endpoint
	}
	want := map[string]string{
		"/todo.v1.TodoService/Rename": "/todo.v1.TodoService/Rename", "/unregistered.Service/Do": "/unregistered.Service/Do",
		"/api/mounted/x": "POST /api/mounted/{name}", "/other/deep/er": "POST /other/deep/er",
		"/graphql": "mutation RenameTodo", "/plain": "POST /plain", "/a.b/1": "POST /a.b/1",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}
