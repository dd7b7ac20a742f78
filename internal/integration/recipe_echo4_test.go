package integration_test

import (
	"net/http"
	"testing"

	"github.com/labstack/echo/v4"

	"github.com/hindsight-go/audit/audithttp"
	"github.com/hindsight-go/audit/auditpgx"
)

// echo4Audit makes a middleware of echo 4 from one of audithttp. In echo the
// route is known before the middlewares of Use run (not those of Pre).
func echo4Audit(config audithttp.Config) echo.MiddlewareFunc {
	wrap := echo.WrapMiddleware(config.Middleware)
	return func(next echo.HandlerFunc) echo.HandlerFunc {
		handler := wrap(next)
		return func(c echo.Context) error {
			c.Request().Pattern = c.Path()
			return handler(c)
		}
	}
}

// echo4Service is a service on echo 4.
func echo4Service(db *auditpgx.DB) http.Handler {
	router := echo.New()
	router.Use(echo4Audit(audithttp.Config{
		User: func(r *http.Request) any { user, _, _ := r.BasicAuth(); return user },
	}))

	router.PUT("/todo/:id", func(c echo.Context) error {
		_, err := db.Exec(c.Request().Context(), "UPDATE todo SET task = 'Eat' WHERE id = $1", c.Param("id"))
		return err
	})
	router.Group("/api").DELETE("/todo/:id", func(c echo.Context) error {
		_, err := db.Exec(c.Request().Context(), "DELETE FROM todo WHERE id = $1", c.Param("id"))
		return err
	})
	return router
}

func TestEcho4Recipe(t *testing.T) {
	t.Parallel()
	a, db := newService(t)
	expectContexts(t, a, echo4Service(db), "PUT /todo/:id", "DELETE /api/todo/:id")
}
