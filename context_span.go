package audit

import (
	"context"

	"go.opentelemetry.io/otel/trace"
)

// FromSpan returns a Context with TraceID and SpanID of the OpenTelemetry span that is
// active in ctx, for [WithContext]. It is empty if there is none, or if the span is one
// that was only extracted from what a stranger sent.
func FromSpan(ctx context.Context) Context {
	span := trace.SpanContextFromContext(ctx)
	if !span.IsValid() || span.IsRemote() {
		return Context{}
	}
	return Context{TraceID: span.TraceID().String(), SpanID: span.SpanID().String()}
}
