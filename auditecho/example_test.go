package auditecho_test

import (
	"github.com/labstack/echo/v5"

	"github.com/hindsight-go/audit/auditecho"
)

func Example() {
	router := echo.New()
	router.Use(auditecho.Middleware(auditecho.Config{
		User: func(c *echo.Context) any { return c.Get("user") },
	}))
	// Output:
}
