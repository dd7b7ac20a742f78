// Package auditgrpc puts what a call of gRPC says about itself into the audit context:
// request id, method, trace, and, where asked for, user, address and parameters. What is
// written with the call's context.Context is then stamped with it, by package auditpgx
// for instance.
//
//	config := auditgrpc.Config{
//		User: func(ctx context.Context) any { return session(ctx).UserID },
//	}
//	server := grpc.NewServer(
//		grpc.ChainUnaryInterceptor(authenticate, auditgrpc.UnaryServerInterceptor(config)),
//		grpc.ChainStreamInterceptor(authenticateStream, auditgrpc.StreamServerInterceptor(config)),
//	)
//
// The endpoint is the full method, "/todo.v1.Todos/Rename". It is package audithttp for
// gRPC, and means the same by the same names: a request id is made, and sent back in the
// header, whatever the caller has sent; what that was stands beside it.
//
// A stream is one call: all that its handler writes has the same context. A handler that
// does things for several users in one stream says so itself, message by message, with
// audit.WithContext.
//
// An authentication goes before the interceptor, or says the user itself with
// audit.WithContext. Nothing goes out with the calls that a program makes itself.
package auditgrpc
