package auditgrpc_test

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
	"go.opentelemetry.io/otel/trace"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/hindsight-go/audit"
	"github.com/hindsight-go/audit/auditgrpc"
)

func unary(config auditgrpc.Config) []grpc.UnaryServerInterceptor {
	return []grpc.UnaryServerInterceptor{auditgrpc.UnaryServerInterceptor(config)}
}

func stream(config auditgrpc.Config) []grpc.StreamServerInterceptor {
	return []grpc.StreamServerInterceptor{auditgrpc.StreamServerInterceptor(config)}
}

// call is the ctx of a call by somebody with an id and a trace of their own.
func call(ctx context.Context, user, id string) context.Context {
	return metadata.AppendToOutgoingContext(ctx, "x-request-id", id, "traceparent", traceparent, "user", user)
}

func TestContext_OfCalls(t *testing.T) {
	t.Parallel()
	config := auditgrpc.Config{User: user}
	a, conn := newService(t, unary(config), stream(config))
	first, err := callAdd(call(t.Context(), "ann", "request-1"), conn, "Sleep")
	must(t, err)
	streamed, err := callAddAll(call(t.Context(), "bob", "request-2"), conn, "Code", "Walk")
	must(t, err)
	// Whoever says nothing gets an id, and what is no id is not kept.
	second, err := callAdd(metadata.AppendToOutgoingContext(t.Context(), "x-request-id", "no id; DROP"), conn, "Rest")
	must(t, err)
	for _, id := range []string{first, streamed, second} {
		if len(id) != 36 {
			t.Errorf("request id %q", id)
		}
	}
	said := func(id string) map[string]any {
		return map[string]any{"clientRequestId": id, "clientTraceId": traceID, "clientSpanId": spanID}
	}
	added := audit.Context{UserID: "bob", RequestID: streamed, Endpoint: addAll, Extra: said("request-2")}
	want := []audit.Context{
		{UserID: "ann", RequestID: first, Endpoint: add, Extra: said("request-1")},
		added, added,
		{RequestID: second, Endpoint: add},
	}
	if diff := cmp.Diff(want, contexts(t, a)); diff != "" {
		t.Error(diff)
	}
}

func TestContext_AllThatIsAskedFor(t *testing.T) {
	t.Parallel()
	config := auditgrpc.Config{
		RequestIDKey:   "X-Correlation-Id",
		TrustRequestID: func(ctx context.Context) bool { from, ok := peer.FromContext(ctx); return ok && from.Addr != nil },
		User:           func(context.Context) any { return 187234 },
		Params: func(_ context.Context, request any) map[string]any {
			return map[string]any{
				"task": request.(*wrapperspb.StringValue).GetValue(), "password": "hunter2",
				"diagnosis": "flu", "cookie_jar_id": 7,
			}
		},
		Redact: []string{"diagnosis"}, Allow: []string{"cookie_jar_id"},
		RemoteAddress: true, UserAgent: true,
	}
	a, conn := newService(t, unary(config), nil)
	ctx := metadata.AppendToOutgoingContext(t.Context(), "x-correlation-id", "believed", "traceparent", traceparent)
	var header metadata.MD
	must(t, conn.Invoke(ctx, add, wrapperspb.String("Sleep"), new(wrapperspb.StringValue), grpc.Header(&header)))
	if ids := header.Get("x-correlation-id"); len(ids) != 1 || ids[0] != "believed" {
		t.Errorf("header %v", header)
	}
	got := contexts(t, a)[0]
	agent, _ := got.Extra["userAgent"].(string)
	if !strings.HasPrefix(agent, "todo-app grpc-go/") {
		t.Errorf("user agent %q", agent)
	}
	delete(got.Extra, "userAgent")
	want := audit.Context{
		UserID: int64(187234), RequestID: "believed", Endpoint: add, TraceID: traceID, SpanID: spanID,
		Params: map[string]any{"task": "Sleep", "password": "[redacted]", "diagnosis": "[redacted]", "cookie_jar_id": json.Number("7")},
		Extra:  map[string]any{"remoteAddress": "127.0.0.1"},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

// What interceptors further out have said stays: a request id, a span of this process.
func TestContext_OfInterceptorsOutside(t *testing.T) {
	t.Parallel()
	span := trace.NewSpanContext(trace.SpanContextConfig{TraceID: trace.TraceID{1}, SpanID: trace.SpanID{2}})
	outside := func(ctx context.Context, request any, _ *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
		ctx = audit.WithContext(trace.ContextWithSpanContext(ctx, span), audit.Context{RequestID: "outer", Tenant: "acme"})
		return handler(ctx, request)
	}
	a, conn := newService(t, append([]grpc.UnaryServerInterceptor{outside}, unary(auditgrpc.Config{User: user})...), nil)
	id, err := callAdd(call(t.Context(), "ann", "request-1"), conn, "Sleep")
	must(t, err)
	want := []audit.Context{{
		UserID: "ann", Tenant: "acme", RequestID: "outer", Endpoint: add,
		TraceID: span.TraceID().String(), SpanID: span.SpanID().String(),
	}}
	if diff := cmp.Diff(want, contexts(t, a)); diff != "" || id != "outer" {
		t.Error(id, diff)
	}
}

// Calls side by side, some of which panic or are cancelled, share connections and never a
// context.
func TestStorm_NoContextIsMixedUp(t *testing.T) {
	t.Parallel()
	config := auditgrpc.Config{User: user}
	recovers := func(ctx context.Context, request any, _ *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (_ any, err error) {
		defer func() {
			if recover() != nil {
				err = status.Error(codes.Internal, "panic")
			}
		}()
		return handler(ctx, request)
	}
	a, conn := newService(t, append([]grpc.UnaryServerInterceptor{recovers}, unary(config)...), stream(config))
	var wg sync.WaitGroup
	for i := range 40 {
		wg.Go(func() {
			for j := range 10 {
				name := fmt.Sprintf("user%d.%d", i, j)
				ctx := call(t.Context(), name, name)
				var err error
				switch j % 4 {
				case 0:
					_, err = callAdd(ctx, conn, name)
				case 1:
					_, err = callAddAll(ctx, conn, name, name)
				case 2:
					if _, panicked := callAdd(ctx, conn, "panic"); status.Code(panicked) != codes.Internal {
						err = panicked
					}
				case 3:
					ended, end := context.WithCancel(ctx)
					go end()
					_, _ = callAddAll(ended, conn, name) // it may be through or not
				}
				if err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	a.Sync(t)
	n := 0
	for change, err := range a.Client.Changes().All(t.Context()) {
		must(t, err)
		n++
		task, _ := change.Row().Text("task")
		name := change.Context.User()
		if task != name && task != "panic" || change.Context.Extra["clientRequestId"] != name || len(change.Context.RequestID) != 36 {
			t.Errorf("%s: %+v", task, change.Context)
		}
	}
	if n < 40*(3+3*2+2) {
		t.Errorf("%d changes", n)
	}
}
