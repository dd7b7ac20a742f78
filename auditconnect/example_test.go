package auditconnect_test

import (
	"context"
	"net/http"

	"connectrpc.com/connect"

	"github.com/hindsight-go/audit/auditconnect"
)

// sessionOf stands for what an authentication has put into the ctx.
func sessionOf(context.Context) (session struct{ UserID string }) { return session }

func Example() {
	server := new(todos)
	audited := auditconnect.NewInterceptor(auditconnect.Config{
		User: func(ctx context.Context, _ http.Header) any { return sessionOf(ctx).UserID },
	})
	mux := http.NewServeMux()
	mux.Handle(add, connect.NewUnaryHandler(add, server.addOne, connect.WithInterceptors(audited)))
	// Output:
}
