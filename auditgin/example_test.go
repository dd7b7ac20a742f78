package auditgin_test

import (
	"github.com/gin-gonic/gin"

	"github.com/hindsight-go/audit/auditgin"
)

func Example() {
	router := gin.New()
	router.Use(auditgin.Middleware(auditgin.Config{
		User: func(c *gin.Context) any { return c.GetString("user") },
	}))
	// Output:
}
