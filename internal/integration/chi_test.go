package integration_test

import (
	"net/http"
	"testing"

	"github.com/go-chi/chi/v5"

	"github.com/hindsight-go/audit/audithttp"
	"github.com/hindsight-go/audit/auditpgx"
)

// chiService is a service on chi. The middlewares of a chi router run before the
// route is known, so audithttp asks the router for it.
func chiService(db *auditpgx.DB) http.Handler {
	router := chi.NewRouter()
	router.Use(audithttp.Config{
		Pattern: func(r *http.Request) string {
			return router.Find(chi.NewRouteContext(), r.Method, r.URL.Path)
		},
		User: func(r *http.Request) any { user, _, _ := r.BasicAuth(); return user },
	}.Middleware)

	router.Put("/todo/{id}", func(w http.ResponseWriter, r *http.Request) {
		if _, err := db.Exec(r.Context(), "UPDATE todo SET task = 'Eat' WHERE id = $1", chi.URLParam(r, "id")); err != nil {
			http.Error(w, "the todo was not changed", http.StatusInternalServerError)
		}
	})
	router.Route("/api", func(router chi.Router) {
		router.Delete("/todo/{id}", func(w http.ResponseWriter, r *http.Request) {
			if _, err := db.Exec(r.Context(), "DELETE FROM todo WHERE id = $1", chi.URLParam(r, "id")); err != nil {
				http.Error(w, "the todo was not deleted", http.StatusInternalServerError)
			}
		})
	})
	return router
}

func TestChi(t *testing.T) {
	t.Parallel()
	a, db := newService(t)
	expectContexts(t, a, chiService(db), "PUT /todo/{id}", "DELETE /api/todo/{id}")
}
