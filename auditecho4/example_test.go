package auditecho4_test

import (
	"github.com/labstack/echo/v4"

	"github.com/hindsight-go/audit/auditecho4"
)

func Example() {
	router := echo.New()
	router.Use(auditecho4.Middleware(auditecho4.Config{
		User: func(c echo.Context) any { return c.Get("user") },
	}))
	// Output:
}
