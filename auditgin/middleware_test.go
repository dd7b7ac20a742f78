package auditgin_test

import (
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"

	"github.com/gin-gonic/gin"
	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/hindsight-go/audit"
	"github.com/hindsight-go/audit/auditgin"
	"github.com/hindsight-go/audit/audithttp"
	"github.com/hindsight-go/audit/auditpgx"
	"github.com/hindsight-go/audit/audittest"
)

func init() { gin.SetMode(gin.ReleaseMode) }

// userOf is whom the login in front has found.
func userOf(c *gin.Context) any { return c.GetString("user") }

// newService is a service on gin. Each of its handlers writes.
func newService(db *auditpgx.DB, config auditgin.Config) http.Handler {
	router := gin.New()
	router.Use(gin.CustomRecoveryWithWriter(nil, func(c *gin.Context, _ any) { c.AbortWithStatus(http.StatusInternalServerError) }))
	router.Use(func(c *gin.Context) { c.Set("user", c.GetHeader("X-User")) })
	router.Use(auditgin.Middleware(config))

	write := func(c *gin.Context) {
		if _, err := db.Exec(c.Request.Context(), "INSERT INTO todo (task) VALUES ($1)", c.Param("id")); err != nil {
			c.AbortWithStatus(http.StatusInternalServerError)
		}
	}
	router.PUT("/todo/:id", write)
	router.POST("/todo/:id/", write)
	router.Group("/api").DELETE("/todo/:id", write)
	router.GET("/file/*path", write)
	router.PUT("/fail/:id", func(c *gin.Context) { write(c); c.AbortWithStatus(http.StatusTeapot) })
	router.PUT("/panic/:id", func(c *gin.Context) { write(c); panic("a handler panics") })
	router.NoRoute(write)
	return router
}

// serve gives an audited database, and the service over it behind a server that has
// routes of its own.
func serve(t *testing.T, config auditgin.Config) (*audittest.Audited, http.Handler) {
	t.Helper()
	a := audittest.New(t, audit.Config{}, "CREATE TABLE todo (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, task text)")
	pool, err := pgxpool.New(t.Context(), a.URL())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(pool.Close)
	mux := http.NewServeMux()
	mux.Handle("/", newService(auditpgx.Wrap(pool), config))
	return a, mux
}

// ask makes a request of a user to a handler and returns the answer and its request id.
func ask(ctx context.Context, h http.Handler, method, path, user, id string) (status int, requestID string) {
	r := httptest.NewRequestWithContext(ctx, method, path, nil)
	r.Header.Set("X-Request-Id", id)
	r.Header.Set("X-User", user)
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	return w.Code, w.Header().Get("X-Request-Id")
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

func TestEndpoint_IsTheRoute(t *testing.T) {
	t.Parallel()
	a, h := serve(t, auditgin.Config{User: userOf})
	var want []audit.Context
	for _, c := range []struct{ method, path, endpoint string }{
		{"PUT", "/todo/26", "PUT /todo/:id"},
		{"DELETE", "/api/todo/26", "DELETE /api/todo/:id"},
		{"POST", "/todo/26/", "POST /todo/:id/"}, // the end of no mount
		{"GET", "/file/a/b", "GET /file/*path"},
		{"PATCH", "/nowhere/26", "PATCH /nowhere/26"},
	} {
		status, id := ask(t.Context(), h, c.method, c.path, "ann", "request-1")
		if status != http.StatusOK && c.method != "PATCH" || len(id) != 36 {
			t.Errorf("%s %s: %d, request id %q", c.method, c.path, status, id)
		}
		want = append(want, audit.Context{UserID: "ann", RequestID: id, Endpoint: c.endpoint, Extra: map[string]any{"clientRequestId": "request-1"}})
	}
	if diff := cmp.Diff(want, contexts(t, a)); diff != "" {
		t.Error(diff)
	}
}

func TestConfig_OfHTTP(t *testing.T) {
	t.Parallel()
	a, h := serve(t, auditgin.Config{
		HTTP: audithttp.Config{
			TrustRequestID: func(*http.Request) bool { return true },
			User:           func(r *http.Request) any { return "http " + r.Header.Get("X-User") },
			Endpoint: func(r *http.Request) string {
				if r.Method == "DELETE" {
					return "mutation removeTodo"
				}
				return ""
			},
			RemoteAddress: true,
		},
		Params: func(c *gin.Context) map[string]any { return map[string]any{"id": c.Param("id"), "token": "hunter2"} },
	})
	ask(t.Context(), h, "PUT", "/todo/26", "ann", "believed-1")
	ask(t.Context(), h, "DELETE", "/api/todo/26", "ann", "believed-2")
	want := audit.Context{
		UserID: "http ann", RequestID: "believed-1", Endpoint: "PUT /todo/:id",
		Params: map[string]any{"id": "26", "token": "[redacted]"}, Extra: map[string]any{"remoteAddress": "192.0.2.1"},
	}
	second := want
	second.RequestID, second.Endpoint = "believed-2", "mutation removeTodo"
	if diff := cmp.Diff([]audit.Context{want, second}, contexts(t, a)); diff != "" {
		t.Error(diff)
	}
}

// A middleware of audithttp around the router has made the request id.
func TestContext_BehindAudithttp(t *testing.T) {
	t.Parallel()
	a, h := serve(t, auditgin.Config{User: userOf})
	_, id := ask(t.Context(), audithttp.Middleware(h), "PUT", "/todo/26", "ann", "request-1")
	want := []audit.Context{{UserID: "ann", RequestID: id, Endpoint: "PUT /todo/:id", Extra: map[string]any{"clientRequestId": "request-1"}}}
	if diff := cmp.Diff(want, contexts(t, a)); diff != "" {
		t.Error(diff)
	}
}

// Requests side by side, some of which fail, panic or are cancelled, never share a
// context, though the router uses what it has of one for another.
func TestStorm_NoContextIsMixedUp(t *testing.T) {
	t.Parallel()
	a, h := serve(t, auditgin.Config{User: userOf})
	var wg sync.WaitGroup
	for i := range 40 {
		wg.Go(func() {
			for j := range 15 {
				user := fmt.Sprintf("user%d.%d", i, j)
				ctx, path, want := t.Context(), "/todo/"+user, http.StatusOK
				switch j % 5 {
				case 0:
					path, want = "/panic/"+user, http.StatusInternalServerError
				case 1:
					path, want = "/fail/"+user, http.StatusTeapot
				case 2:
					var cancel context.CancelFunc
					ctx, cancel = context.WithCancel(ctx)
					go cancel()
					want = 0 // it may be through or not
				}
				if status, _ := ask(ctx, h, "PUT", path, user, user); want != 0 && status != want {
					t.Errorf("%s: %d", path, status)
				}
			}
		})
	}
	wg.Wait()
	a.Sync(t)
	n := 0
	for change, err := range a.Client.Changes().All(t.Context()) {
		if err != nil {
			t.Fatal(err)
		}
		n++
		task, _ := change.Row().Text("task")
		c := change.Context
		if c.User() != task || c.Extra["clientRequestId"] != task || len(c.RequestID) != 36 || !strings.HasSuffix(c.Endpoint, "/:id") {
			t.Errorf("%s: %+v", task, c)
		}
	}
	if n < 40*15*4/5 {
		t.Errorf("%d changes", n)
	}
}
