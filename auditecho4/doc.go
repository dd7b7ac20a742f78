// Package auditecho4 puts what a request to echo 4 says about itself into the audit context:
// request id, route, trace, and, where asked for, user, address and parameters. It is
// package audithttp as a middleware of echo 4.
//
//	router := echo.New()
//	router.Use(auditecho4.Middleware(auditecho4.Config{
//		User: func(c echo.Context) any { return c.Get("user") },
//	}))
//
// The endpoint is method and route, "PUT /todo/:id", with the prefixes of groups. A
// request that no route is for has the path, or the route of RouteNotFound.
//
// Handlers give c.Request().Context() to the database.
// For echo 5 there is package auditecho.
//
// An authentication that comes behind says who it is by itself:
//
//	ctx := audit.WithContext(c.Request().Context(), audit.Context{UserID: id})
//	c.SetRequest(c.Request().WithContext(ctx))
package auditecho4
