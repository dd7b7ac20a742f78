package audithttp_test

import (
	"bufio"
	"fmt"
	"math"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"regexp"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"go.opentelemetry.io/otel/trace"

	"github.com/hindsight-go/audit"
	"github.com/hindsight-go/audit/audithttp"
)

// serve runs a request through a middleware and returns the context that the
// handler saw.
func serve(c audithttp.Config, r *http.Request) (audit.Context, *httptest.ResponseRecorder) {
	var seen audit.Context
	w := httptest.NewRecorder()
	c.Middleware(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		seen, _ = audit.FromContext(r.Context())
	})).ServeHTTP(w, r)
	return seen, w
}

// anybody is believed.
func anybody(*http.Request) bool { return true }

func TestRequestIDIsTakenOrMade(t *testing.T) {
	t.Parallel()
	version7 := regexp.MustCompile(`^[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$`)
	for id, taken := range map[string]bool{
		"5f1c":                   true,
		"a/b+c=:d.e_f-g@h":       true,
		strings.Repeat("x", 128): true,
		strings.Repeat("x", 129): false,
		"":                       false,
		"a b":                    false,
		"a\"b":                   false,
		"'; DROP TABLE todo; --": false,
		"\u00e4":                 false,
		"a\x00":                  false,
		"<script>":               false,
	} {
		r := httptest.NewRequest("GET", "/", nil)
		r.Header["X-Request-Id"] = []string{id}
		seen, w := serve(audithttp.Config{TrustRequestID: anybody}, r)
		if taken != (seen.RequestID == id) || !taken && !version7.MatchString(seen.RequestID) {
			t.Errorf("%q: the request id is %q", id, seen.RequestID)
		}
		if got := w.Header().Get("X-Request-Id"); got != seen.RequestID {
			t.Errorf("%q: returned %q, stamped %q", id, got, seen.RequestID)
		}
	}
	seen := map[string]bool{}
	for range 1000 {
		c, _ := serve(audithttp.Config{}, httptest.NewRequest("GET", "/", nil))
		seen[c.RequestID] = true
	}
	if len(seen) != 1000 {
		t.Errorf("%d different ids of 1000", len(seen))
	}
	r := httptest.NewRequest("GET", "/", nil)
	r.Header.Set("Correlation", "c1")
	c, w := serve(audithttp.Config{RequestIDHeader: "correlation", TrustRequestID: anybody}, r)
	if c.RequestID != "c1" || w.Header().Get("Correlation") != "c1" {
		t.Errorf("own header: %+v, %v", c, w.Header())
	}
	if c, _ := serve(audithttp.Config{NewRequestID: func() string { return "mine" }}, httptest.NewRequest("GET", "/", nil)); c.RequestID != "mine" {
		t.Errorf("own ids: %q", c.RequestID)
	}
}

func TestEndpointIsThePattern(t *testing.T) {
	t.Parallel()
	var seen string
	note := http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		c, _ := audit.FromContext(r.Context())
		seen = c.Endpoint
	})
	inner := http.NewServeMux()
	inner.Handle("PUT /user/{name}", note)
	mux := http.NewServeMux()
	mux.Handle("POST /todo/{id}", note)
	mux.Handle("GET /todo/{id}", note)
	mux.Handle("/any/{rest...}", note)
	mux.Handle("DELETE example.org/x", note)
	mux.Handle("GET /panel/{id}", audithttp.Middleware(note))
	mux.Handle("/api/", http.StripPrefix("/api", audithttp.Middleware(inner)))
	wrapped := func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { next.ServeHTTP(w, r) })
	}
	for name, handler := range map[string]http.Handler{
		"around the mux":      audithttp.Middleware(mux),
		"with another inside": audithttp.Config{Routes: mux}.Middleware(wrapped(mux)),
	} {
		for request, want := range map[string]string{
			"POST /todo/26":               "POST /todo/{id}",
			"GET /todo/27?x=y":            "GET /todo/{id}",
			"HEAD /todo/27":               "HEAD /todo/{id}",
			"PATCH /any/a/b":              "PATCH /any/{rest...}",
			"GET /panel/3":                "GET /panel/{id}",
			"DELETE http://example.org/x": "DELETE example.org/x",
			"PUT /api/user/ann":           "PUT /user/{name}",
			"GET /nowhere":                "",
		} {
			seen = ""
			method, target, _ := strings.Cut(request, " ")
			handler.ServeHTTP(httptest.NewRecorder(), httptest.NewRequest(method, target, nil))
			if seen != want {
				t.Errorf("%s, %s: %q, want %q", name, request, seen, want)
			}
		}
	}
	// A router of another kind.
	foreign := audithttp.Config{Routes: mux, Pattern: func(r *http.Request) string {
		if r.URL.Path == "/todo/26" {
			return "/todo/:id"
		}
		return ""
	}}.Middleware(note)
	for request, want := range map[string]string{
		"POST /todo/26": "POST /todo/:id",
		"POST /todo/27": "POST /todo/{id}",
		"GET /nowhere":  "GET /nowhere",
	} {
		method, target, _ := strings.Cut(request, " ")
		foreign.ServeHTTP(httptest.NewRecorder(), httptest.NewRequest(method, target, nil))
		if seen != want {
			t.Errorf("told by Pattern, %s: %q, want %q", request, seen, want)
		}
	}
	inside := http.NewServeMux()
	inside.Handle("GET /todo/{id}", audithttp.Middleware(note))
	inside.ServeHTTP(httptest.NewRecorder(), httptest.NewRequest("GET", "/todo/1", nil))
	if seen != "GET /todo/{id}" {
		t.Errorf("inside the mux: %q", seen)
	}
	audithttp.Middleware(note).ServeHTTP(httptest.NewRecorder(), httptest.NewRequest("GET", "/todo/1?a=b", nil))
	if seen != "GET /todo/1" {
		t.Errorf("without patterns: %q", seen)
	}
}

func TestTrace(t *testing.T) {
	t.Parallel()
	const traceID, spanID = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
	for header, taken := range map[string]bool{
		"00-" + traceID + "-" + spanID + "-01":                  true,
		" 00-" + traceID + "-" + spanID + "-00 ":                true,
		"01-" + traceID + "-" + spanID + "-01-more":             true,
		"00-" + traceID + "-" + spanID + "-01-more":             false,
		"01-" + traceID + "-" + spanID + "-01more":              false,
		"ff-" + traceID + "-" + spanID + "-01":                  false,
		"00-" + strings.ToUpper(traceID) + "-" + spanID + "-01": false,
		"00-" + strings.Repeat("0", 32) + "-" + spanID + "-01":  false,
		"00-" + traceID + "-" + strings.Repeat("0", 16) + "-01": false,
		"00-" + traceID + "-" + spanID:                          false,
		"00_" + traceID + "-" + spanID + "-01":                  false,
		"'--":                                                   false,
		"":                                                      false,
	} {
		r := httptest.NewRequest("GET", "/", nil)
		r.Header.Set("traceparent", header)
		c, _ := serve(audithttp.Config{TrustRequestID: anybody}, r)
		want := []string{"", ""}
		if taken {
			want = []string{traceID, spanID}
		}
		if diff := cmp.Diff(want, []string{c.TraceID, c.SpanID}); diff != "" {
			t.Errorf("%q: %s", header, diff)
		}
	}
	r := httptest.NewRequest("GET", "/", nil)
	r.Header.Set("traceparent", "00-"+traceID+"-"+spanID+"-01")
	span := trace.NewSpanContext(trace.SpanContextConfig{TraceID: trace.TraceID{1}, SpanID: trace.SpanID{2}})
	c, _ := serve(audithttp.Config{}, r.WithContext(trace.ContextWithSpanContext(r.Context(), span)))
	if c.TraceID != span.TraceID().String() || c.SpanID != span.SpanID().String() {
		t.Errorf("with a span: %+v", c)
	}
}

func TestParamsAreRedacted(t *testing.T) {
	t.Parallel()
	type card struct {
		Number string `json:"card_number"`
		Owner  string `json:"owner"`
	}
	channel := make(chan int)
	given := map[string]any{
		"task": "Sleep", "n": 7, "nil": nil, "Password": "p", "api-key": "k", "my_field": "m",
		"deep":   map[string]any{"list": []any{map[string]any{"ACCESS_TOKEN": "t", "ok": true}}, "myField": "m"},
		"form":   url.Values{"pwd": {"p"}, "a": {"1"}, "b": {"1", "2"}},
		"header": map[string]string{"Authorization": "Bearer x", "Accept": "*/*"},
		"card":   card{"4111", "ann"}, "cards": []card{{"4112", "bob"}}, "pointer": &card{"4113", "eve"},
		"channel": channel, "nan": math.NaN(), "tokens": 3,
	}
	r := httptest.NewRequest("GET", "/", nil)
	c, _ := serve(audithttp.Config{
		Params: func(*http.Request) map[string]any { return given },
		Redact: []string{"MyField"},
	}, r)
	const gone = audithttp.Redacted
	want := map[string]any{
		"task": "Sleep", "n": 7, "nil": nil, "Password": gone, "api-key": gone, "my_field": gone,
		"deep":   map[string]any{"list": []any{map[string]any{"ACCESS_TOKEN": gone, "ok": true}}, "myField": gone},
		"form":   map[string]any{"pwd": gone, "a": "1", "b": []any{"1", "2"}},
		"header": map[string]any{"Authorization": gone, "Accept": "*/*"},
		"card":   map[string]any{"card_number": gone, "owner": "ann"}, "cards": []any{map[string]any{"card_number": gone, "owner": "bob"}},
		"pointer": map[string]any{"card_number": gone, "owner": "eve"}, "tokens": gone,
	}
	if c.Params["channel"] != channel {
		t.Error("what is no JSON is not left to the stamp")
	}
	delete(c.Params, "channel")
	delete(c.Params, "nan")
	if diff := cmp.Diff(want, c.Params); diff != "" {
		t.Error(diff)
	}
	if given["Password"] != "p" || given["card"] != (card{"4111", "ann"}) {
		t.Error("the application's own values were changed")
	}
}

func TestContextIsMerged(t *testing.T) {
	t.Parallel()
	config := audithttp.Config{
		User:          func(r *http.Request) any { user, _, _ := r.BasicAuth(); return user },
		RemoteAddress: true,
		UserAgent:     true,

		TrustRequestID: anybody,
	}
	r := httptest.NewRequest("POST", "/todo", nil)
	r.RemoteAddr = "[2001:db8::1]:4711"
	r.Header.Set("User-Agent", strings.Repeat("a", 300))
	r.Header.Set("X-Request-Id", "r1")
	r.SetBasicAuth("ann", "secret")
	outer := audit.Context{Tenant: "acme", UserID: "nobody", Extra: map[string]any{"plan": "pro"}}
	c, _ := serve(config, r.WithContext(audit.WithContext(r.Context(), outer)))
	want := audit.Context{
		UserID: "ann", Tenant: "acme", RequestID: "r1", Endpoint: "POST /todo",
		Extra: map[string]any{"plan": "pro", "remoteAddress": "2001:db8::1", "userAgent": strings.Repeat("a", 256)},
	}
	if diff := cmp.Diff(want, c); diff != "" {
		t.Error(diff)
	}
	inner, w := serve(audithttp.Config{}, r.WithContext(audit.WithContext(r.Context(), audit.Context{RequestID: "outer"})))
	if inner.RequestID != "outer" || w.Header().Get("X-Request-Id") != "outer" {
		t.Errorf("nested: %+v, %v", inner, w.Header())
	}
}

// TestConnectionsCanBeTakenOver hijacks and flushes through the middleware.
func TestConnectionsCanBeTakenOver(t *testing.T) {
	t.Parallel()
	mux := http.NewServeMux()
	mux.HandleFunc("GET /hijack", func(w http.ResponseWriter, r *http.Request) {
		conn, _, err := w.(http.Hijacker).Hijack()
		if err != nil {
			t.Error(err)
			return
		}
		defer func() { _ = conn.Close() }()
		_, _ = fmt.Fprintf(conn, "HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n%s", audithttp.RequestID(r.Context()))
	})
	flushed := make(chan struct{})
	mux.HandleFunc("GET /flush", func(w http.ResponseWriter, r *http.Request) {
		_, _ = fmt.Fprintln(w, "first")
		w.(http.Flusher).Flush()
		<-flushed // the client has the first line before the handler ends
	})
	server := httptest.NewServer(audithttp.Config{TrustRequestID: anybody}.Middleware(mux))
	t.Cleanup(server.Close)

	conn, err := new(net.Dialer).DialContext(t.Context(), "tcp", server.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	_, _ = fmt.Fprint(conn, "GET /hijack HTTP/1.1\r\nHost: x\r\nX-Request-Id: mine\r\n\r\n")
	var last string
	for scanner := bufio.NewScanner(conn); scanner.Scan(); {
		last = scanner.Text()
	}
	if last != "mine" {
		t.Errorf("hijacked: %q", last)
	}

	response, err := http.Get(server.URL + "/flush") //nolint:noctx // the server ends with the test
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = response.Body.Close() }()
	line, err := bufio.NewReader(response.Body).ReadString('\n')
	close(flushed)
	if line != "first\n" || err != nil || response.Header.Get("X-Request-Id") == "" {
		t.Errorf("flushed: %q, %v, %v", line, err, response.Header)
	}
}

func FuzzHeaders(f *testing.F) {
	f.Add("5f1c", "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01", "POST", "/todo/1")
	f.Add("", "-", "", "")
	f.Fuzz(func(t *testing.T, id, traceparent, method, path string) {
		r := httptest.NewRequest("GET", "/", nil)
		r.Method, r.URL.Path = method, path
		r.Header["X-Request-Id"] = []string{id}
		r.Header["Traceparent"] = []string{traceparent}
		var seen audit.Context
		mux := http.NewServeMux()
		mux.HandleFunc("/", func(_ http.ResponseWriter, r *http.Request) { seen, _ = audit.FromContext(r.Context()) })
		audithttp.Middleware(mux).ServeHTTP(httptest.NewRecorder(), r)
		if len(seen.RequestID) > 128 || len(seen.TraceID) != 0 && len(seen.TraceID) != 32 {
			t.Errorf("%+v", seen)
		}
	})
}

func ExampleConfig_Middleware() {
	mux := http.NewServeMux()
	mux.HandleFunc("POST /todo/{id}", func(_ http.ResponseWriter, r *http.Request) {
		// db.Exec(r.Context(), ...), with db from package auditpgx, stamps this:
		c, _ := audit.FromContext(r.Context())
		fmt.Println(c.UserID, c.RequestID, c.Endpoint, c.Params)
	})
	handler := audithttp.Config{
		User: func(r *http.Request) any { user, _, _ := r.BasicAuth(); return user },
		Params: func(r *http.Request) map[string]any {
			return map[string]any{"query": r.URL.Query()}
		},
		// A gateway that makes the ids is the only one that can connect.
		TrustRequestID: func(*http.Request) bool { return true },
	}.Middleware(mux)

	r := httptest.NewRequest("POST", "/todo/26?task=Sleep&token=abc", nil)
	r.Header.Set("X-Request-Id", "5f1c")
	r.SetBasicAuth("ann", "secret")
	handler.ServeHTTP(httptest.NewRecorder(), r)
	// Output: ann 5f1c POST /todo/{id} map[query:map[task:Sleep token:[redacted]]]
}
