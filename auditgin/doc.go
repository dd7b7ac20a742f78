// Package auditgin puts what a request to gin says about itself into the audit context:
// request id, route, trace, and, where asked for, user, address and parameters. It is
// package audithttp as a middleware of gin.
//
//	router := gin.New()
//	router.Use(auditgin.Middleware(auditgin.Config{
//		User: func(c *gin.Context) any { return c.GetString("user") },
//	}))
//
// The endpoint is method and route, "PUT /todo/:id", with the prefixes of groups. A
// request that no route is for has the path.
//
// Handlers give c.Request.Context() to the database. The *gin.Context by itself has
// its values only if the engine's ContextWithFallback is on.
//
// An authentication that comes behind says who it is by itself:
//
//	ctx := audit.WithContext(c.Request.Context(), audit.Context{UserID: id})
//	c.Request = c.Request.WithContext(ctx)
package auditgin
