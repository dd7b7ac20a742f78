package integration_test

import (
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/gin-gonic/gin"
	"github.com/go-chi/chi/v5"
	"github.com/labstack/echo/v4"

	"github.com/hindsight-go/audit"
	"github.com/hindsight-go/audit/audittest"
	"github.com/hindsight-go/audit/auditui"
)

// The recipes of docs/ui.md for mounting the UI in other routers.
func TestUI_InRouters(t *testing.T) {
	t.Parallel()
	a := audittest.New(t, audit.Config{}, "CREATE TABLE todo (id int PRIMARY KEY)")
	a.Exec(t, "INSERT INTO todo VALUES (26)")
	a.Sync(t)
	ui, err := auditui.New(a.Client, auditui.Config{Access: func(r *http.Request) (auditui.Access, error) {
		return auditui.Access{User: "42", Values: true, Revert: true}, nil
	}})
	if err != nil {
		t.Fatal(err)
	}
	gin.SetMode(gin.ReleaseMode)
	for name, router := range map[string]func() http.Handler{
		"chi": func() http.Handler {
			requireLogin := func(next http.Handler) http.Handler { return next }
			router := chi.NewRouter()
			router.With(requireLogin).Mount("/admin/audit", http.StripPrefix("/admin/audit", ui))
			router.Get("/admin/audit", func(w http.ResponseWriter, r *http.Request) {
				http.Redirect(w, r, "/admin/audit/", http.StatusMovedPermanently)
			})
			return router
		},
		"gin": func() http.Handler {
			requireLogin := func(c *gin.Context) { c.Next() }
			engine := gin.New()
			engine.Any("/admin/audit/*path", requireLogin, gin.WrapH(http.StripPrefix("/admin/audit", ui)))
			return engine
		},
		"echo": func() http.Handler {
			requireLogin := func(next echo.HandlerFunc) echo.HandlerFunc { return next }
			e := echo.New()
			e.Any("/admin/audit/*", echo.WrapHandler(http.StripPrefix("/admin/audit", ui)), requireLogin)
			return e
		},
	} {
		server := httptest.NewServer(router())
		t.Cleanup(server.Close)
		for path, want := range map[string]string{
			"/admin/audit/": "public.todo", "/admin/audit/assets/ui.css": "color-scheme", "/admin/audit/rows/public.todo/26": "Version 1 of 1",
			"/admin/audit/requests/a%2Fb": "Not here", "/admin/audit/tables/%22todo%22": "Not here",
		} {
			request, err := http.NewRequestWithContext(t.Context(), http.MethodGet, server.URL+path, nil)
			if err != nil {
				t.Fatal(err)
			}
			response, err := http.DefaultClient.Do(request)
			if err != nil {
				t.Fatal(err)
			}
			body, err := io.ReadAll(response.Body)
			_ = response.Body.Close()
			if err != nil || !strings.Contains(string(body), want) {
				t.Errorf("%s: %s: %d lacks %q: %.300s", name, path, response.StatusCode, want, body)
			}
		}
		response, err := http.Post(server.URL+"/admin/audit/undo?unit=request&id=x", "application/x-www-form-urlencoded", nil) //nolint:noctx // A test.
		if err != nil {
			t.Fatal(err)
		}
		_ = response.Body.Close()
		if response.StatusCode != http.StatusForbidden {
			t.Errorf("%s: a form without a signature: %d, want 403", name, response.StatusCode)
		}
	}
}
