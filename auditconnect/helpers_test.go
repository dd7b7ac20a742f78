package auditconnect_test

import (
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"testing"

	"connectrpc.com/connect"
	"github.com/jackc/pgx/v5/pgxpool"
	"google.golang.org/protobuf/types/known/emptypb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/hindsight-go/audit"
	"github.com/hindsight-go/audit/auditpgx"
	"github.com/hindsight-go/audit/audittest"
)

const (
	add    = "/todo.v1.Todos/Add"
	addAll = "/todo.v1.Todos/AddAll"

	traceID     = "4bf92f3577b34da6a3ce929d0e0e4736"
	spanID      = "00f067aa0ba902b7"
	traceparent = "00-" + traceID + "-" + spanID + "-01"
)

// errShared is an error for all calls, as programs have them.
var errShared = connect.NewError(connect.CodeInvalidArgument, errors.New("no such task"))

// todos is a service of one unary method and one that takes a stream.
type todos struct{ db *auditpgx.DB }

func (s *todos) add(ctx context.Context, task string) error {
	_, err := s.db.Exec(ctx, "INSERT INTO todo (task) VALUES ($1)", task)
	switch task {
	case "panic":
		panic("a handler panics")
	case "error":
		return errShared
	}
	return err
}

func (s *todos) addOne(ctx context.Context, request *connect.Request[wrapperspb.StringValue]) (*connect.Response[emptypb.Empty], error) {
	return connect.NewResponse(&emptypb.Empty{}), s.add(ctx, request.Msg.GetValue())
}

func (s *todos) addAll(ctx context.Context, stream *connect.ClientStream[wrapperspb.StringValue]) (*connect.Response[emptypb.Empty], error) {
	for stream.Receive() {
		if err := s.add(ctx, stream.Msg().GetValue()); err != nil {
			return nil, err
		}
	}
	return connect.NewResponse(&emptypb.Empty{}), stream.Err()
}

// service is the service over a database with a history, and clients of it.
type service struct {
	a      *audittest.Audited
	one    *connect.Client[wrapperspb.StringValue, emptypb.Empty]
	stream *connect.Client[wrapperspb.StringValue, emptypb.Empty]
}

func newService(t *testing.T, around func(http.Handler) http.Handler, interceptor connect.Interceptor, options ...connect.ClientOption) *service {
	t.Helper()
	a := audittest.New(t, audit.Config{}, "CREATE TABLE todo (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, task text)")
	pool, err := pgxpool.New(t.Context(), a.URL())
	must(t, err)
	t.Cleanup(pool.Close)
	s := &todos{auditpgx.Wrap(pool)}
	with := connect.WithHandlerOptions(
		connect.WithRecover(func(context.Context, connect.Spec, http.Header, any) error {
			return connect.NewError(connect.CodeInternal, errors.New("panic"))
		}),
		connect.WithInterceptors(interceptor))
	// What protoc-gen-connect-go makes of a service.
	mux := http.NewServeMux()
	mux.Handle(add, connect.NewUnaryHandler(add, s.addOne, with))
	mux.Handle(addAll, connect.NewClientStreamHandler(addAll, s.addAll, with))
	var handler http.Handler = mux
	if around != nil {
		handler = around(mux)
	}
	server := httptest.NewUnstartedServer(handler)
	server.EnableHTTP2 = true
	server.StartTLS()
	t.Cleanup(server.Close)
	options = append(options, connect.WithInterceptors(interceptor)) // does nothing to calls of our own
	return &service{
		a:      a,
		one:    connect.NewClient[wrapperspb.StringValue, emptypb.Empty](server.Client(), server.URL+add, options...),
		stream: connect.NewClient[wrapperspb.StringValue, emptypb.Empty](server.Client(), server.URL+addAll, options...),
	}
}

// user is whom the header of a call names.
func user(_ context.Context, header http.Header) any { return header.Get("User") }

func say(header http.Header, user, id string) {
	header.Set("User", user)
	header.Set("X-Request-Id", id)
	header.Set("Traceparent", traceparent)
}

// callAdd makes a unary call and returns the request id in the header of the answer.
func (s *service) callAdd(ctx context.Context, user, id, task string) (string, error) {
	request := connect.NewRequest(wrapperspb.String(task))
	say(request.Header(), user, id)
	response, err := s.one.CallUnary(ctx, request)
	if err != nil {
		if of, ok := errors.AsType[*connect.Error](err); ok {
			return of.Meta().Get("X-Request-Id"), err
		}
		return "", err
	}
	return response.Header().Get("X-Request-Id"), nil
}

// callAddAll makes a call with a stream.
func (s *service) callAddAll(ctx context.Context, user, id string, tasks ...string) (string, error) {
	stream := s.stream.CallClientStream(ctx)
	say(stream.RequestHeader(), user, id)
	for _, task := range tasks {
		if err := stream.Send(wrapperspb.String(task)); err != nil {
			break // CloseAndReceive says why
		}
	}
	response, err := stream.CloseAndReceive()
	if err != nil {
		return "", err
	}
	return response.Header().Get("X-Request-Id"), nil
}

// contexts are those of all changes, in commit order.
func contexts(t *testing.T, a *audittest.Audited) []audit.Context {
	t.Helper()
	a.Sync(t)
	var list []audit.Context
	for change, err := range a.Client.Changes().OldestFirst().All(t.Context()) {
		must(t, err)
		list = append(list, change.Context)
	}
	return list
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
