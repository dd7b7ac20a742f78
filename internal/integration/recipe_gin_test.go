package integration_test

import (
	"net/http"
	"testing"

	"github.com/gin-gonic/gin"

	"github.com/hindsight-go/audit/audithttp"
	"github.com/hindsight-go/audit/auditpgx"
)

// ginAudit makes a middleware of gin from one of audithttp. In gin the route is
// known before the middlewares run.
func ginAudit(config audithttp.Config) gin.HandlerFunc {
	return func(c *gin.Context) {
		c.Request.Pattern = c.FullPath()
		config.Middleware(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
			c.Request = r
			c.Next()
		})).ServeHTTP(c.Writer, c.Request)
	}
}

// ginService is a service on gin. The context for the database is that of
// c.Request: a *gin.Context has none of its values, unless the engine's
// ContextWithFallback is on.
func ginService(db *auditpgx.DB) http.Handler {
	router := gin.New()
	router.Use(ginAudit(audithttp.Config{
		User: func(r *http.Request) any { user, _, _ := r.BasicAuth(); return user },
	}))

	router.PUT("/todo/:id", func(c *gin.Context) {
		if _, err := db.Exec(c.Request.Context(), "UPDATE todo SET task = 'Eat' WHERE id = $1", c.Param("id")); err != nil {
			c.AbortWithStatus(http.StatusInternalServerError)
		}
	})
	router.Group("/api").DELETE("/todo/:id", func(c *gin.Context) {
		if _, err := db.Exec(c.Request.Context(), "DELETE FROM todo WHERE id = $1", c.Param("id")); err != nil {
			c.AbortWithStatus(http.StatusInternalServerError)
		}
	})
	return router
}

func TestGinRecipe(t *testing.T) {
	t.Parallel()
	a, db := newService(t)
	expectContexts(t, a, ginService(db), "PUT /todo/:id", "DELETE /api/todo/:id")
}
