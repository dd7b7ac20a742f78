// Package auditconnect puts what a call of Connect (connectrpc.com/connect) says about
// itself into the audit context: request id, procedure, trace, and, where asked for, user,
// address and parameters. What is written with the call's context.Context is then stamped
// with it, by package auditpgx for instance.
//
//	audited := auditconnect.NewInterceptor(auditconnect.Config{
//		User: func(ctx context.Context, _ http.Header) any { return authn.GetInfo(ctx) },
//	})
//	mux := http.NewServeMux()
//	mux.Handle(todov1connect.NewTodosHandler(server, connect.WithInterceptors(audited)))
//
// The endpoint is the procedure, "/todo.v1.Todos/Rename", whether the call came by
// Connect, gRPC or gRPC-Web. The interceptor is package audithttp for Connect, and means
// the same by the same names: a request id is made, and sent back in the header, whatever
// the caller has sent; what that was stands beside it. Behind a middleware of audithttp it
// keeps the request id of that.
//
// A stream is one call: all that its handler writes has the same context. A handler that
// does things for several users in one stream says so itself, message by message, with
// audit.WithContext.
//
// Calls that a program makes itself pass through the interceptor as they are.
package auditconnect
