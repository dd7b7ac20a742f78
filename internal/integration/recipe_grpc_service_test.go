package integration_test

import (
	"context"
	"errors"
	"io"
	"net"
	"testing"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/test/bufconn"
	"google.golang.org/protobuf/types/known/emptypb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/hindsight-go/audit"
	"github.com/hindsight-go/audit/auditpgx"
)

// todos is a service of one unary method and one that takes a stream.
type todos struct{ db *auditpgx.DB }

func (s *todos) rename(ctx context.Context, task *wrapperspb.StringValue) (*emptypb.Empty, error) {
	_, err := s.db.Exec(ctx, "UPDATE todo SET task = $1 WHERE id = 26", task.GetValue())
	return &emptypb.Empty{}, err
}

func (s *todos) add(stream grpc.ServerStream) error {
	for id := 27; ; id++ {
		task := new(wrapperspb.StringValue)
		if err := stream.RecvMsg(task); errors.Is(err, io.EOF) {
			return stream.SendMsg(&emptypb.Empty{})
		} else if err != nil {
			return err
		}
		if _, err := s.db.Exec(stream.Context(), "INSERT INTO todo VALUES ($1, $2)", id, task.GetValue()); err != nil {
			return err
		}
	}
}

// todosDesc is what protoc-gen-go-grpc makes of a service.
var todosDesc = grpc.ServiceDesc{
	ServiceName: "todo.Todos",
	HandlerType: (*any)(nil),
	Methods: []grpc.MethodDesc{{
		MethodName: "Rename",
		Handler: func(server any, ctx context.Context, decode func(any) error, intercept grpc.UnaryServerInterceptor) (any, error) { //nolint:revive // the order is gRPC's
			task := new(wrapperspb.StringValue)
			if err := decode(task); err != nil {
				return nil, err
			}
			info := &grpc.UnaryServerInfo{Server: server, FullMethod: "/todo.Todos/Rename"}
			return intercept(ctx, task, info, func(ctx context.Context, task any) (any, error) {
				return server.(*todos).rename(ctx, task.(*wrapperspb.StringValue))
			})
		},
	}},
	Streams: []grpc.StreamDesc{{
		StreamName:    "Add",
		ClientStreams: true,
		Handler:       func(server any, stream grpc.ServerStream) error { return server.(*todos).add(stream) },
	}},
}

// dialTodos runs the service with the interceptors and connects to it.
func dialTodos(t *testing.T, db *auditpgx.DB) *grpc.ClientConn {
	t.Helper()
	user := func(ctx context.Context) any { return incoming(ctx, "user") }
	server := grpc.NewServer(grpc.ChainUnaryInterceptor(unaryAudit(user)), grpc.ChainStreamInterceptor(streamAudit(user)))
	server.RegisterService(&todosDesc, &todos{db})
	listener := bufconn.Listen(1 << 16)
	ended := make(chan error, 1)
	go func() { ended <- server.Serve(listener) }()
	t.Cleanup(func() {
		server.Stop()
		if err := <-ended; err != nil {
			t.Errorf("serve: %v", err)
		}
	})
	conn, err := grpc.NewClient("passthrough:todos",
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return listener.DialContext(ctx) }),
		grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return conn
}

func TestGRPCRecipe(t *testing.T) {
	t.Parallel()
	a, db := newService(t)
	conn := dialTodos(t, db)
	call := func(id string) context.Context {
		return metadata.AppendToOutgoingContext(t.Context(), "x-request-id", id, "traceparent", traceparent, "user", "ann")
	}

	var header metadata.MD
	err := conn.Invoke(call("request-1"), "/todo.Todos/Rename", wrapperspb.String("Eat"), new(emptypb.Empty), grpc.Header(&header))
	if err != nil {
		t.Fatal(err)
	}
	first := header.Get("x-request-id")
	if len(first) != 1 || len(first[0]) != 36 {
		t.Fatalf("the request id of the first call: %q", first)
	}

	stream, err := conn.NewStream(call("request-2"), &todosDesc.Streams[0], "/todo.Todos/Add")
	if err != nil {
		t.Fatal(err)
	}
	for _, task := range []string{"Code", "Walk"} {
		if err := stream.SendMsg(wrapperspb.String(task)); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(stream.CloseSend(), stream.RecvMsg(new(emptypb.Empty))); err != nil {
		t.Fatal(err)
	}

	// Whoever sends none is given one.
	if err := conn.Invoke(t.Context(), "/todo.Todos/Rename", wrapperspb.String("Rest"), new(emptypb.Empty), grpc.Header(&header)); err != nil {
		t.Fatal(err)
	}
	made := header.Get("x-request-id")
	if len(made) != 1 || len(made[0]) != 36 {
		t.Fatalf("the request id that was made: %q", made)
	}

	streamed, err := stream.Header()
	if err != nil {
		t.Fatal(err)
	}
	added := audit.Context{UserID: "ann", RequestID: streamed.Get("x-request-id")[0], Endpoint: "/todo.Todos/Add", Extra: sent("request-2")}
	want := []audit.Context{
		{UserID: "ann", RequestID: first[0], Endpoint: "/todo.Todos/Rename", Extra: sent("request-1")},
		added, added,
		{RequestID: made[0], Endpoint: "/todo.Todos/Rename"},
	}
	if diff := cmp.Diff(want, contexts(t, a)); diff != "" {
		t.Error(diff)
	}
}
