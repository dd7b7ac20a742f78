package auditsql

import (
	"context"

	"github.com/hindsight-go/audit"
	"github.com/hindsight-go/audit/internal/stamp"
)

// begun is the Context that a transaction was begun with. It stands in where a
// statement comes without one: tx.Exec has no ctx.
type begun struct{ values context.Context } //nolint:containedctx // holds nothing but the Context, never ends

func begunWith(ctx context.Context) begun {
	if !stamp.InContext(ctx) {
		return begun{}
	}
	c, _ := audit.FromContext(ctx)
	return begun{audit.WithContext(context.Background(), c)}
}

// in returns ctx with a Context, if there is one for it.
func (b begun) in(ctx context.Context) context.Context {
	if b.values == nil || stamp.InContext(ctx) {
		return ctx
	}
	return layered{ctx, b.values}
}

// layered is a ctx with the values of another below its own.
type layered struct {
	context.Context                 //nolint:containedctx // it is a ctx
	below           context.Context //nolint:containedctx // see begun
}

func (l layered) Value(key any) any {
	if value := l.Context.Value(key); value != nil {
		return value
	}
	return l.below.Value(key)
}
