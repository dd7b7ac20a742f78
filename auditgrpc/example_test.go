package auditgrpc_test

import (
	"context"

	"google.golang.org/grpc"

	"github.com/hindsight-go/audit/auditgrpc"
)

// sessionOf stands for what an authentication has put into the ctx.
func sessionOf(context.Context) (session struct{ UserID string }) { return session }

func Example() {
	config := auditgrpc.Config{
		User: func(ctx context.Context) any { return sessionOf(ctx).UserID },
	}
	server := grpc.NewServer(
		grpc.ChainUnaryInterceptor(auditgrpc.UnaryServerInterceptor(config)),
		grpc.ChainStreamInterceptor(auditgrpc.StreamServerInterceptor(config)),
	)
	defer server.Stop()
	// Output:
}
