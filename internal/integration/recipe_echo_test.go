package integration_test

import (
	"net/http"
	"testing"

	"github.com/labstack/echo/v5"

	"github.com/hindsight-go/audit/audithttp"
	"github.com/hindsight-go/audit/auditpgx"
)

// echoService is a service on echo 5, which takes a middleware of net/http as it
// is and tells it the route.
func echoService(db *auditpgx.DB) http.Handler {
	router := echo.New()
	router.Use(echo.WrapMiddleware(audithttp.Config{
		User: func(r *http.Request) any { user, _, _ := r.BasicAuth(); return user },
	}.Middleware))

	router.PUT("/todo/:id", func(c *echo.Context) error {
		_, err := db.Exec(c.Request().Context(), "UPDATE todo SET task = 'Eat' WHERE id = $1", c.Param("id"))
		return err
	})
	router.Group("/api").DELETE("/todo/:id", func(c *echo.Context) error {
		_, err := db.Exec(c.Request().Context(), "DELETE FROM todo WHERE id = $1", c.Param("id"))
		return err
	})
	return router
}

func TestEchoRecipe(t *testing.T) {
	t.Parallel()
	a, db := newService(t)
	expectContexts(t, a, echoService(db), "PUT /todo/:id", "DELETE /api/todo/:id")
}
