package auditconnect_test

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"sync"
	"testing"

	"connectrpc.com/connect"
	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/hindsight-go/audit"
	"github.com/hindsight-go/audit/auditconnect"
	"github.com/hindsight-go/audit/audithttp"
)

func said(id string) map[string]any {
	return map[string]any{"clientRequestId": id, "clientTraceId": traceID, "clientSpanId": spanID}
}

// In all protocols of Connect.
func TestContext_OfCalls(t *testing.T) {
	t.Parallel()
	for name, options := range map[string][]connect.ClientOption{
		"connect": nil, "gRPC": {connect.WithGRPC()}, "gRPC-Web": {connect.WithGRPCWeb()}, "JSON": {connect.WithProtoJSON()},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newService(t, nil, auditconnect.NewInterceptor(auditconnect.Config{User: user}), options...)
			first, err := s.callAdd(t.Context(), "ann", "request-1", "Sleep")
			must(t, err)
			streamed, err := s.callAddAll(t.Context(), "bob", "request-2", "Code", "Walk")
			must(t, err)
			// An error, and one that is the same for all calls, says the id, too.
			failed, err := s.callAdd(t.Context(), "cat", "request-3", "error")
			if connect.CodeOf(err) != connect.CodeInvalidArgument || len(errShared.Meta()) > 0 {
				t.Errorf("error %v, %v", err, errShared.Meta())
			}
			for _, id := range []string{first, streamed, failed} {
				if len(id) != 36 {
					t.Errorf("request id %q", id)
				}
			}
			added := audit.Context{UserID: "bob", RequestID: streamed, Endpoint: addAll, Extra: said("request-2")}
			want := []audit.Context{
				{UserID: "ann", RequestID: first, Endpoint: add, Extra: said("request-1")},
				added, added,
				{UserID: "cat", RequestID: failed, Endpoint: add, Extra: said("request-3")},
			}
			if diff := cmp.Diff(want, contexts(t, s.a)); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestContext_AllThatIsAskedFor(t *testing.T) {
	t.Parallel()
	s := newService(t, nil, auditconnect.NewInterceptor(auditconnect.Config{
		TrustRequestID: func(_ context.Context, peer connect.Peer) bool { return strings.HasPrefix(peer.Addr, "127.0.0.1:") },
		Params: func(_ context.Context, request connect.AnyRequest) map[string]any {
			return map[string]any{
				"task": request.Any().(*wrapperspb.StringValue).GetValue(), "password": "hunter2",
				"diagnosis": "flu", "cookie_jar_id": 7,
			}
		},
		Redact: []string{"diagnosis"}, Allow: []string{"cookie_jar_id"},
		RemoteAddress: true, UserAgent: true,
	}))
	id, err := s.callAdd(t.Context(), "ann", "believed", "Sleep")
	must(t, err)
	got := contexts(t, s.a)[0]
	if agent, _ := got.Extra["userAgent"].(string); !strings.HasPrefix(agent, "connect-go/") {
		t.Errorf("user agent %q", agent)
	}
	delete(got.Extra, "userAgent")
	want := audit.Context{
		RequestID: "believed", Endpoint: add, TraceID: traceID, SpanID: spanID,
		Params: map[string]any{"task": "Sleep", "password": "[redacted]", "diagnosis": "[redacted]", "cookie_jar_id": json.Number("7")},
		Extra:  map[string]any{"remoteAddress": "127.0.0.1"},
	}
	if diff := cmp.Diff(want, got); diff != "" || id != "believed" {
		t.Error(id, diff)
	}
}

// Behind audithttp the request is one, with one id, which the interceptor knows more of.
func TestContext_BehindAudithttp(t *testing.T) {
	t.Parallel()
	s := newService(t, audithttp.Config{RemoteAddress: true}.Middleware, auditconnect.NewInterceptor(auditconnect.Config{User: user}))
	id, err := s.callAdd(t.Context(), "ann", "request-1", "Sleep")
	must(t, err)
	extra := said("request-1")
	extra["remoteAddress"] = "127.0.0.1"
	want := []audit.Context{{UserID: "ann", RequestID: id, Endpoint: add, Extra: extra}}
	if diff := cmp.Diff(want, contexts(t, s.a)); diff != "" {
		t.Error(diff)
	}
}

// Calls side by side, some of which fail, panic or are cancelled, never share a context.
func TestStorm_NoContextIsMixedUp(t *testing.T) {
	t.Parallel()
	s := newService(t, nil, auditconnect.NewInterceptor(auditconnect.Config{User: user}))
	var wg sync.WaitGroup
	for i := range 40 {
		wg.Go(func() {
			for j := range 10 {
				name := fmt.Sprintf("user%d.%d", i, j)
				var err error
				switch j % 5 {
				case 0:
					_, err = s.callAdd(t.Context(), name, name, name)
				case 1:
					_, err = s.callAddAll(t.Context(), name, name, name, name)
				case 2:
					if _, panicked := s.callAdd(t.Context(), name, name, "panic"); connect.CodeOf(panicked) != connect.CodeInternal {
						err = fmt.Errorf("panic: %w", panicked)
					}
				case 3:
					if _, failed := s.callAdd(t.Context(), name, name, "error"); connect.CodeOf(failed) != connect.CodeInvalidArgument {
						err = fmt.Errorf("error: %w", failed)
					}
				case 4:
					ended, end := context.WithCancel(t.Context())
					go end()
					_, _ = s.callAddAll(ended, name, name, name) // it may be through or not
				}
				if err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	s.a.Sync(t)
	n := 0
	for change, err := range s.a.Client.Changes().All(t.Context()) {
		must(t, err)
		n++
		task, _ := change.Row().Text("task")
		name := change.Context.User()
		if task != name && task != "panic" && task != "error" || change.Context.Extra["clientRequestId"] != name || len(change.Context.RequestID) != 36 {
			t.Errorf("%s: %+v", task, change.Context)
		}
	}
	if n < 40*2*(1+2+1+1) {
		t.Errorf("%d changes", n)
	}
}
