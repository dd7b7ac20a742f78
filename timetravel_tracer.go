package audit

import (
	"context"

	"github.com/jackc/pgx/v5"
)

// viewTracer keeps what runs on a view's connection itself, as tx.Conn() hands it
// out, from going past the guard. pgx has no other place to stand in the way.
type viewTracer struct{}

var (
	_ pgx.QueryTracer    = viewTracer{}
	_ pgx.BatchTracer    = viewTracer{}
	_ pgx.CopyFromTracer = viewTracer{}
	_ pgx.PrepareTracer  = viewTracer{}
)

// guardKey is the key of a view's guard in its connection's custom data, while the
// view is handed out.
const guardKey = "audit view"

type passKey struct{}

// pass marks what the guard has looked at, or does itself.
func pass(ctx context.Context) context.Context { return context.WithValue(ctx, passKey{}, true) }

// stop returns a context that has ended, for what nobody looked at.
func (viewTracer) stop(ctx context.Context, conn *pgx.Conn) context.Context {
	g, handedOut := conn.PgConn().CustomData()[guardKey].(*guard)
	if !handedOut || ctx.Value(passKey{}) != nil {
		return ctx
	}
	return stopped{ctx, g.refuse("", "it was sent on the connection itself: use the transaction's own methods")}
}

func (t viewTracer) TraceQueryStart(ctx context.Context, conn *pgx.Conn, _ pgx.TraceQueryStartData) context.Context {
	return t.stop(ctx, conn)
}

func (viewTracer) TraceQueryEnd(context.Context, *pgx.Conn, pgx.TraceQueryEndData) {}

func (t viewTracer) TraceBatchStart(ctx context.Context, conn *pgx.Conn, _ pgx.TraceBatchStartData) context.Context {
	return t.stop(ctx, conn)
}

func (viewTracer) TraceBatchQuery(context.Context, *pgx.Conn, pgx.TraceBatchQueryData) {}

func (viewTracer) TraceBatchEnd(context.Context, *pgx.Conn, pgx.TraceBatchEndData) {}

func (t viewTracer) TraceCopyFromStart(ctx context.Context, conn *pgx.Conn, _ pgx.TraceCopyFromStartData) context.Context {
	return t.stop(ctx, conn)
}

func (viewTracer) TraceCopyFromEnd(context.Context, *pgx.Conn, pgx.TraceCopyFromEndData) {}

func (t viewTracer) TracePrepareStart(ctx context.Context, conn *pgx.Conn, _ pgx.TracePrepareStartData) context.Context {
	return t.stop(ctx, conn)
}

func (viewTracer) TracePrepareEnd(context.Context, *pgx.Conn, pgx.TracePrepareEndData) {}

// stopped is a context that has ended for a reason of ours.
type stopped struct {
	context.Context //nolint:containedctx // it is one
	err             error
}

var closedChannel = func() chan struct{} {
	c := make(chan struct{})
	close(c)
	return c
}()

func (stopped) Done() <-chan struct{} { return closedChannel }
func (s stopped) Err() error          { return s.err }
