package audit

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/trace"

	"github.com/hindsight-go/audit/store"
)

// The names of spans, for Config.TracerProvider.
const (
	spanBatch = "audit.capture.batch"

	spanRow      = "audit.past.row"
	spanRows     = "audit.past.rows"
	spanCount    = "audit.past.count"
	spanView     = "audit.past.view"
	spanHistory  = "audit.past.history"
	spanBlame    = "audit.past.blame"
	spanDiff     = "audit.past.diff"
	spanFork     = "audit.past.fork"
	spanBaseline = "audit.past.baseline"

	spanPlan   = "audit.revert.plan"
	spanApply  = "audit.revert.apply"
	spanDryRun = "audit.revert.dry_run"
)

// span is one of ours, or none. Its attributes are numbers and names of tables, databases
// and errors: neither values of rows, nor keys, nor what a request is called.
type span struct{ trace.Span }

// span begins a span, if there is a tracer, as a child of that of ctx.
func (c *Client) span(ctx context.Context, name string, attrs ...attribute.KeyValue) (context.Context, span) {
	if c == nil || c.tracer == nil {
		return ctx, span{}
	}
	ctx, s := c.tracer.Start(ctx, name, trace.WithAttributes(attrs...), trace.WithAttributes(systemName))
	return ctx, span{s}
}

// span is that of the client which answers the Point.
func (p Point) span(ctx context.Context, name string, tables ...string) (context.Context, span) {
	client := p.client
	if client == nil {
		client = Default()
	}
	if client == nil || client.tracer == nil {
		return ctx, span{}
	}
	var attrs []attribute.KeyValue
	if len(tables) == 1 {
		attrs = append(attrs, attribute.String("db.collection.name", tables[0]))
	}
	return client.span(ctx, name, attrs...)
}

// systemName is the attribute that OpenTelemetry has for spans of databases.
var systemName = attribute.String("db.system.name", "postgresql")

// end ends the span; the attributes are for what succeeded.
func (s span) end(err error, attrs ...attribute.KeyValue) {
	if s.Span == nil {
		return
	}
	if err != nil {
		recordError(s.Span, err)
	} else {
		s.SetAttributes(attrs...)
	}
	s.End()
}

// recordError says of an error what kind it is. Its text may name a key, or quote what a
// callback has put into it: that is for whoever gets the error.
func recordError(s trace.Span, err error) {
	kind := errorKind(err)
	s.AddEvent("exception", trace.WithAttributes(attribute.String("exception.type", kind)))
	s.SetAttributes(attribute.String("error.type", kind))
	s.SetStatus(codes.Error, kind)
}

// errorKinds are the errors whose type says nothing.
var errorKinds = []struct {
	err  error
	name string
}{
	{ErrNoRow, "ErrNoRow"},
	{ErrNotTracked, "ErrNotTracked"},
	{ErrBeforeHistory, "ErrBeforeHistory"},
	{ErrPastRetention, "ErrPastRetention"},
	{ErrInGap, "ErrInGap"},
	{ErrFuture, "ErrFuture"},
	{ErrClockJumped, "ErrClockJumped"},
	{ErrNotCaptured, "ErrNotCaptured"},
	{ErrIncomplete, "ErrIncomplete"},
	{ErrUntrusted, "ErrUntrusted"},
	{ErrSchemaExists, "ErrSchemaExists"},
	{ErrNothingSelected, "ErrNothingSelected"},
	{ErrNotFound, "ErrNotFound"},
	{ErrNoHistory, "ErrNoHistory"},
	{ErrRowSecurity, "ErrRowSecurity"},
	{ErrStandby, "ErrStandby"},
	{ErrClosed, "ErrClosed"},
	{store.ErrFenced, "ErrFenced"},
	{context.Canceled, "context.Canceled"},
	{context.DeadlineExceeded, "context.DeadlineExceeded"},
}

// errorKind is the name of a sentinel, the SQLSTATE of a server's error, or else the type
// of the first error in the chain that has one of its own.
func errorKind(err error) string {
	for _, known := range errorKinds {
		if errors.Is(err, known.err) {
			return known.name
		}
	}
	if pg := (*pgconn.PgError)(nil); errors.As(err, &pg) {
		return pg.Code
	}
	for e := err; e != nil; e = errors.Unwrap(e) {
		t := reflect.TypeOf(e)
		for t.Kind() == reflect.Pointer {
			t = t.Elem()
		}
		if path := t.PkgPath(); path != "fmt" && path != "errors" {
			return fmt.Sprintf("%T", e)
		}
	}
	return fmt.Sprintf("%T", err)
}

// spanOfBatch is that of a store transaction, which is over.
func (c *Client) spanOfBatch(b store.Batch, err error) {
	if c.tracer == nil || b.Changes == 0 && err == nil {
		return // that nothing happened is stored now and then, too
	}
	now := time.Now()
	_, s := c.tracer.Start(context.Background(), spanBatch, trace.WithNewRoot(), trace.WithTimestamp(now.Add(-b.Duration)),
		trace.WithSpanKind(trace.SpanKindClient), trace.WithAttributes(systemName,
			attribute.Int64("audit.changes", b.Changes),
			attribute.Int64("audit.bytes", b.Bytes),
			attribute.String("audit.position", b.To.String())))
	if err != nil {
		recordError(s, err)
	}
	s.End(trace.WithTimestamp(now))
}

// attributes are what a span tells of a plan.
func (p *Plan) attributes() []attribute.KeyValue {
	if p == nil {
		return nil
	}
	return []attribute.KeyValue{
		attribute.Int("audit.revert.changes", p.Changes),
		attribute.Int("audit.revert.inserts", p.Inserts),
		attribute.Int("audit.revert.updates", p.Updates),
		attribute.Int("audit.revert.deletes", p.Deletes),
		attribute.Int("audit.revert.skipped", p.Skipped),
		attribute.Int("audit.revert.conflicts", len(p.Conflicts)),
	}
}

// attributes are what a span tells of a result.
func (r *Result) attributes() []attribute.KeyValue {
	if r == nil {
		return nil
	}
	return []attribute.KeyValue{
		attribute.String("audit.revert.id", r.ID),
		attribute.Int("audit.revert.inserts", r.Inserted),
		attribute.Int("audit.revert.updates", r.Updated),
		attribute.Int("audit.revert.deletes", r.Deleted),
		attribute.Int("audit.revert.skipped", r.Skipped),
		attribute.Bool("audit.revert.already", r.Already != nil),
	}
}

func rowsReturned(n int) attribute.KeyValue { return attribute.Int("db.response.returned_rows", n) }
