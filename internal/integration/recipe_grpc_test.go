package integration_test

import (
	"context"

	"github.com/google/uuid"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/trace"
	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"

	"github.com/hindsight-go/audit"
)

// unaryAudit puts what a call says about itself into its audit context. user
// tells who calls; an authentication goes before it in grpc.ChainUnaryInterceptor.
func unaryAudit(user func(context.Context) any) grpc.UnaryServerInterceptor {
	return func(ctx context.Context, request any, info *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
		return handler(withCall(ctx, info.FullMethod, user), request)
	}
}

// streamAudit is unaryAudit for streams. All that a stream's handler writes
// carries the context of the one call.
func streamAudit(user func(context.Context) any) grpc.StreamServerInterceptor {
	return func(server any, stream grpc.ServerStream, info *grpc.StreamServerInfo, handler grpc.StreamHandler) error {
		return handler(server, auditedStream{stream, withCall(stream.Context(), info.FullMethod, user)})
	}
}

// auditedStream is a stream with another context.
type auditedStream struct {
	grpc.ServerStream
	ctx context.Context //nolint:containedctx // a stream has its context with it
}

func (s auditedStream) Context() context.Context { return s.ctx }

// withCall returns ctx with request id, method, trace and user of a call. The
// request id is made, and returned in the header. What the metadata says stands beside
// it: whoever calls may say the id and the trace of somebody else.
func withCall(ctx context.Context, method string, user func(context.Context) any) context.Context {
	id := uuid.NewString()
	_ = grpc.SetHeader(ctx, metadata.Pairs("x-request-id", id)) // fails only outside a call

	said := audit.Context{RequestID: id, Endpoint: method, UserID: user(ctx), Extra: map[string]any{}}
	if theirs := incoming(ctx, "x-request-id"); theirs != "" && len(theirs) <= 128 {
		said.Extra["clientRequestId"] = theirs
	}
	carrier := propagation.MapCarrier{"traceparent": incoming(ctx, "traceparent")}
	if span := trace.SpanContextFromContext(ctx); span.IsValid() && !span.IsRemote() { // of otelgrpc, for instance
		said.TraceID, said.SpanID = span.TraceID().String(), span.SpanID().String()
	} else if span = trace.SpanContextFromContext(propagation.TraceContext{}.Extract(ctx, carrier)); span.IsValid() {
		said.Extra["clientTraceId"], said.Extra["clientSpanId"] = span.TraceID().String(), span.SpanID().String()
	}
	return audit.WithContext(ctx, said)
}

// incoming returns the first value of a key of the call's metadata, or "".
func incoming(ctx context.Context, key string) string {
	values := metadata.ValueFromIncomingContext(ctx, key)
	if len(values) == 0 {
		return ""
	}
	return values[0]
}
