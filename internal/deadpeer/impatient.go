package deadpeer

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
)

const (
	// ConnectTimeout bounds making a connection, unless the connection string says
	// otherwise.
	ConnectTimeout = 10 * time.Second
	// AnswerTimeout is how long a statement of capture may take. The connection may be
	// alive as far as the kernels know, and whoever is behind it may not be.
	AnswerTimeout = 20 * time.Second
)

type impatientKey struct{}

// Impatient makes every statement with the context that it returns an error if it takes
// longer than AnswerTimeout, on connections that have a [Tracer].
func Impatient(ctx context.Context) context.Context {
	return context.WithValue(ctx, impatientKey{}, true)
}

// Patient is for statements that take as long as they take.
func Patient(ctx context.Context) context.Context {
	return context.WithValue(ctx, impatientKey{}, false)
}

// Bound is for what goes around a Tracer: it bounds one step.
func Bound(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeoutCause(ctx, AnswerTimeout, errSilent)
}

var errSilent = fmt.Errorf("deadpeer: the server has not answered within %s: %w", AnswerTimeout, context.DeadlineExceeded)

type cancelKey struct{}

// Tracer bounds statements whose context is impatient.
type Tracer struct{}

var (
	_ pgx.QueryTracer = Tracer{}
	_ pgx.BatchTracer = Tracer{}
)

func begin(ctx context.Context) context.Context {
	if impatient, _ := ctx.Value(impatientKey{}).(bool); !impatient {
		return ctx
	}
	bounded, cancel := Bound(ctx)
	return context.WithValue(bounded, cancelKey{}, cancel)
}

func end(ctx context.Context) {
	if cancel, ok := ctx.Value(cancelKey{}).(context.CancelFunc); ok {
		cancel()
	}
}

// TraceQueryStart begins the time of a statement.
func (Tracer) TraceQueryStart(ctx context.Context, _ *pgx.Conn, _ pgx.TraceQueryStartData) context.Context {
	return begin(ctx)
}

// TraceQueryEnd ends it.
func (Tracer) TraceQueryEnd(ctx context.Context, _ *pgx.Conn, _ pgx.TraceQueryEndData) { end(ctx) }

// TraceBatchStart begins the time of a batch.
func (Tracer) TraceBatchStart(ctx context.Context, _ *pgx.Conn, _ pgx.TraceBatchStartData) context.Context {
	return begin(ctx)
}

// TraceBatchQuery does nothing.
func (Tracer) TraceBatchQuery(context.Context, *pgx.Conn, pgx.TraceBatchQueryData) {}

// TraceBatchEnd ends it.
func (Tracer) TraceBatchEnd(ctx context.Context, _ *pgx.Conn, _ pgx.TraceBatchEndData) { end(ctx) }
