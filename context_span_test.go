package audit_test

import (
	"context"
	"testing"

	"go.opentelemetry.io/otel/trace"

	"github.com/hindsight-go/audit"
)

// TestFromSpan_LocalSpansOnly takes the ids of a span of ours, and not of one that was
// only extracted from a request.
func TestFromSpan_LocalSpansOnly(t *testing.T) {
	t.Parallel()
	if c := audit.FromSpan(t.Context()); !c.IsZero() {
		t.Errorf("without a span: %+v", c)
	}
	for _, remote := range []bool{false, true} {
		span := trace.NewSpanContext(trace.SpanContextConfig{TraceID: trace.TraceID{1}, SpanID: trace.SpanID{2}, Remote: remote})
		ctx := trace.ContextWithSpanContext(context.Background(), span)
		c, _ := audit.FromContext(audit.WithContext(ctx, audit.FromSpan(ctx)))
		if (c.TraceID == span.TraceID().String() && c.SpanID == span.SpanID().String()) == remote {
			t.Errorf("remote %v: %+v", remote, c)
		}
	}
}
