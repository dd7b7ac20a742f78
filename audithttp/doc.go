// Package audithttp puts what an HTTP request says about itself into the audit
// context: request id, endpoint, trace, and, where asked for, user, address and
// parameters. What is written with the request's context.Context is then stamped
// with it, by package auditpgx for instance.
//
//	mux := http.NewServeMux()
//	mux.HandleFunc("POST /todo/{id}", update)
//	handler := audithttp.Config{
//		User: func(r *http.Request) any { return session(r).UserID },
//	}.Middleware(mux)
//
// # The endpoint
//
// It is the method and the pattern of the route: "POST /todo/{id}". A mux finds
// the pattern only when the request is in it, which is too late for a middleware
// around it. So if the next handler is an *http.ServeMux, or Config.Routes names
// the one further in, the middleware asks it beforehand. A middleware around a
// single route of a mux sees the pattern in the request. Where no pattern is to
// be had, the endpoint has the path of the URL.
//
// Middlewares may be nested, for a mux within a mux: the inner one keeps the
// request id and says the endpoint more precisely. Other routers tell theirs in
// Config.Pattern, or in the Pattern of the request if the middleware is behind
// the route.
//
// Frameworks whose middlewares are not those of net/http may call
// Config.Middleware once a request; it costs little.
//
// # What it leaves alone
//
// The http.ResponseWriter goes through as it is, so http.Flusher, http.Hijacker
// and http.ResponseController work. The body is not read.
//
// The next handler gets a copy of the request. What it learns goes back to the request
// outside when it returns or panics: the pattern and its path values, for who logs
// requests, and forms, whose temporary files the server removes.
package audithttp
