package auditgrpc_test

import (
	"context"
	"errors"
	"io"
	"net"
	"testing"

	"github.com/jackc/pgx/v5/pgxpool"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
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

// todos is a service of one unary method and one that takes a stream.
type todos struct{ db *auditpgx.DB }

func (s *todos) add(ctx context.Context, task *wrapperspb.StringValue) (*emptypb.Empty, error) {
	_, err := s.db.Exec(ctx, "INSERT INTO todo (task) VALUES ($1)", task.GetValue())
	if task.GetValue() == "panic" {
		panic("a handler panics")
	}
	return &emptypb.Empty{}, err
}

func (s *todos) addAll(stream grpc.ServerStream) error {
	for {
		task := new(wrapperspb.StringValue)
		if err := stream.RecvMsg(task); errors.Is(err, io.EOF) {
			return stream.SendMsg(&emptypb.Empty{})
		} else if err != nil {
			return err
		}
		if _, err := s.add(stream.Context(), task); err != nil {
			return err
		}
	}
}

// desc is what protoc-gen-go-grpc makes of a service.
var desc = grpc.ServiceDesc{
	ServiceName: "todo.v1.Todos",
	HandlerType: (*any)(nil),
	Methods: []grpc.MethodDesc{{
		MethodName: "Add",
		Handler: func(server any, ctx context.Context, decode func(any) error, intercept grpc.UnaryServerInterceptor) (any, error) { //nolint:revive // the order is gRPC's
			task := new(wrapperspb.StringValue)
			if err := decode(task); err != nil {
				return nil, err
			}
			info := &grpc.UnaryServerInfo{Server: server, FullMethod: add}
			return intercept(ctx, task, info, func(ctx context.Context, task any) (any, error) {
				return server.(*todos).add(ctx, task.(*wrapperspb.StringValue))
			})
		},
	}},
	Streams: []grpc.StreamDesc{{
		StreamName:    "AddAll",
		ClientStreams: true,
		Handler:       func(server any, stream grpc.ServerStream) error { return server.(*todos).addAll(stream) },
	}},
}

// newService runs the service with interceptors over a database with a history, and
// connects to it.
func newService(t *testing.T, unary []grpc.UnaryServerInterceptor, stream []grpc.StreamServerInterceptor) (*audittest.Audited, *grpc.ClientConn) {
	t.Helper()
	a := audittest.New(t, audit.Config{}, "CREATE TABLE todo (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, task text)")
	pool, err := pgxpool.New(t.Context(), a.URL())
	must(t, err)
	t.Cleanup(pool.Close)
	server := grpc.NewServer(grpc.ChainUnaryInterceptor(unary...), grpc.ChainStreamInterceptor(stream...))
	server.RegisterService(&desc, &todos{auditpgx.Wrap(pool)})
	listener, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
	must(t, err)
	ended := make(chan error, 1)
	go func() { ended <- server.Serve(listener) }()
	t.Cleanup(func() {
		server.Stop()
		if err := <-ended; err != nil {
			t.Errorf("serve: %v", err)
		}
	})
	conn, err := grpc.NewClient(listener.Addr().String(), grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithUserAgent("todo-app"))
	must(t, err)
	t.Cleanup(func() { _ = conn.Close() })
	return a, conn
}

// user is whom the metadata of a call name.
func user(ctx context.Context) any {
	if values := metadata.ValueFromIncomingContext(ctx, "user"); len(values) > 0 {
		return values[0]
	}
	return nil
}

// callAdd makes a unary call and returns the request id in the header of the answer.
func callAdd(ctx context.Context, conn *grpc.ClientConn, task string) (string, error) {
	var header metadata.MD
	err := conn.Invoke(ctx, add, wrapperspb.String(task), new(emptypb.Empty), grpc.Header(&header))
	return last(header), err
}

// callAddAll makes a call with a stream.
func callAddAll(ctx context.Context, conn *grpc.ClientConn, tasks ...string) (string, error) {
	stream, err := conn.NewStream(ctx, &desc.Streams[0], addAll)
	if err != nil {
		return "", err
	}
	for _, task := range tasks {
		if err := stream.SendMsg(wrapperspb.String(task)); err != nil {
			break // RecvMsg says why
		}
	}
	if err := errors.Join(stream.CloseSend(), stream.RecvMsg(new(emptypb.Empty))); err != nil {
		return "", err
	}
	header, err := stream.Header()
	return last(header), err
}

func last(header metadata.MD) string {
	if ids := header.Get("x-request-id"); len(ids) == 1 {
		return ids[0]
	}
	return ""
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
