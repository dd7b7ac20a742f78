// Package auditecho puts what a request to echo 5 says about itself into the audit context:
// request id, route, trace, and, where asked for, user, address and parameters. It is
// package audithttp as a middleware of echo 5.
//
//	router := echo.New()
//	router.Use(auditecho.Middleware(auditecho.Config{
//		User: func(c *echo.Context) any { return c.Get("user") },
//	}))
//
// The endpoint is method and route, "PUT /todo/:id", with the prefixes of groups. A
// request that no route is for has the path, or the route of RouteNotFound.
//
// Handlers give c.Request().Context() to the database.
// For echo 4 there is package auditecho4.
//
// An authentication that comes behind says who it is by itself:
//
//	ctx := audit.WithContext(c.Request().Context(), audit.Context{UserID: id})
//	c.SetRequest(c.Request().WithContext(ctx))
package auditecho
