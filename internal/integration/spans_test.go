package integration_test

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
	"go.opentelemetry.io/otel/trace"

	"github.com/hindsight-go/audit"
	"github.com/hindsight-go/audit/audittest"
)

// spanSecret is the value that rows have and spans must not.
const spanSecret = "4711-8-15-secret"

// traced is an audited database whose client makes spans.
type traced struct {
	*audittest.Audited
	exporter *tracetest.InMemoryExporter
	tracer   trace.Tracer
}

func newTraced(t *testing.T, schema string) traced {
	t.Helper()
	exporter := tracetest.NewInMemoryExporter()
	provider := sdktrace.NewTracerProvider(sdktrace.WithSyncer(exporter))
	return traced{audittest.New(t, audit.Config{TracerProvider: provider}, schema), exporter, provider.Tracer("host")}
}

// spans returns those of a name that are over, and fails if any span has a value of a row.
func (a traced) spans(t *testing.T, name string) (found tracetest.SpanStubs) {
	t.Helper()
	for _, s := range a.exporter.GetSpans() {
		if text := fmt.Sprintf("%s %v %v %v", s.Name, s.Attributes, s.Events, s.Status); strings.Contains(text, spanSecret) {
			t.Errorf("a span has a value of a row: %s", text)
		}
		if s.Name == name {
			found = append(found, s)
		}
	}
	return found
}

func attributesOf(s tracetest.SpanStub) map[string]string {
	attrs := make(map[string]string)
	for _, a := range s.Attributes {
		attrs[string(a.Key)] = a.Value.String()
	}
	return attrs
}

func TestSpans_OfQuestionsAboutThePast(t *testing.T) {
	t.Parallel()
	a := newTraced(t, "CREATE TABLE card (id text PRIMARY KEY, number text); INSERT INTO card VALUES ('"+spanSecret+"', '"+spanSecret+"')")
	a.Exec(t, "UPDATE card SET number = number || '!'")
	a.Sync(t)
	now := a.Client.Now()
	ctx, parent := a.tracer.Start(t.Context(), "request")
	var rows []map[string]any
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Error(err)
		}
	}
	_, err := now.Row(ctx, "card", spanSecret)
	must(err)
	must(now.Table("card").List(ctx, &rows))
	for _, err := range now.Table("card").All(ctx) {
		must(err)
		break // is no error of the span
	}
	_, err = now.Table("card").Count(ctx)
	must(err)
	must(now.View(ctx, func(tx pgx.Tx) error {
		var n int
		return tx.QueryRow(ctx, "SELECT count(*) FROM card").Scan(&n)
	}))
	_, err = a.Client.History("card", spanSecret).List(ctx)
	must(err)
	_, err = now.Blame(ctx, "card", spanSecret)
	must(err)
	before := a.Client.BeforeTransaction(a.lastTransaction(t))
	_, err = a.Client.DiffBetween(before, now).List(ctx)
	must(err)
	_, err = now.Into("then").Run(ctx)
	must(err)
	must(a.Client.Baseline(ctx, nil))
	parent.End()

	for name, want := range map[string]struct {
		number     int
		collection string
		returned   string
	}{
		"audit.past.row": {1, "card", ""}, "audit.past.rows": {2, "card", "1"}, "audit.past.count": {1, "card", ""}, "audit.past.view": {1, "", ""},
		"audit.past.history": {1, "card", "2"}, "audit.past.blame": {1, "card", ""}, "audit.past.diff": {1, "", ""},
		"audit.past.fork": {1, "", ""}, "audit.past.baseline": {1, "", ""},
	} {
		found := a.spans(t, name)
		if len(found) != want.number {
			t.Errorf("%d spans %s, want %d", len(found), name, want.number)
		}
		for _, s := range found {
			attrs := attributesOf(s)
			if attrs["db.collection.name"] != want.collection || attrs["db.response.returned_rows"] != want.returned || attrs["db.system.name"] != "postgresql" {
				t.Errorf("%s has the attributes %v", name, attrs)
			}
			if s.Parent.SpanID() != parent.SpanContext().SpanID() {
				t.Errorf("%s is not a child of the caller's span", name)
			}
			if s.Status.Code == codes.Error || s.EndTime.Before(s.StartTime) {
				t.Errorf("%s: %v", name, s.Status)
			}
		}
	}
}

// lastTransaction is the transaction of the latest change.
func (a traced) lastTransaction(t *testing.T) uint64 {
	t.Helper()
	change, err := a.Client.Changes().First(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return change.TransactionID
}

func TestSpans_OfErrorsHaveTheKindAndNoText(t *testing.T) {
	t.Parallel()
	a := newTraced(t, "CREATE TABLE card (id text PRIMARY KEY, number text); INSERT INTO card VALUES ('"+spanSecret+"', '"+spanSecret+"')")
	ctx := t.Context()
	now := a.Client.Now()
	for name, test := range map[string]struct {
		span, kind string
		do         func() error
	}{
		"no row":       {"audit.past.row", "ErrNoRow", func() error { _, err := now.Row(ctx, "card", spanSecret+"?"); return err }},
		"no table":     {"audit.past.rows", "ErrNotTracked", func() error { return now.Table("nothing").List(ctx, &[]map[string]any{}) }},
		"a callback's": {"audit.past.view", "*errors.errorString", func() error { return now.View(ctx, func(pgx.Tx) error { return errors.New(spanSecret) }) }},
		"the server's": {"audit.past.view", "22P02", func() error {
			return now.View(ctx, func(tx pgx.Tx) error { return tx.QueryRow(ctx, "SELECT number::int FROM card").Scan(new(int)) })
		}},
		"before history":         {"audit.past.rows", "ErrBeforeHistory", func() error { return a.Client.AsOf(time.Unix(1e9, 0)).Table("card").List(ctx, &[]map[string]any{}) }},
		"a value that is no int": {"audit.past.rows", "*audit.DecodeError", func() error { return now.Table("card").List(ctx, &[]struct{ ID, Number int }{}) }},
		"nothing to revert":      {"audit.revert.plan", "ErrNothingSelected", func() error { _, err := a.Client.RevertRequest(spanSecret).Plan(ctx); return err }},
	} {
		a.exporter.Reset()
		if err := test.do(); err == nil {
			t.Fatalf("%s: no error", name)
		}
		found := a.spans(t, test.span)
		if len(found) != 1 {
			t.Errorf("%s: %d spans %s", name, len(found), test.span)
			continue
		}
		s := found[0]
		if got := attributesOf(s)["error.type"]; got != test.kind || s.Status.Code != codes.Error || s.Status.Description != test.kind {
			t.Errorf("%s: error.type %q, status %v, want %s", name, got, s.Status, test.kind)
		}
		if len(s.Events) != 1 || s.Events[0].Name != "exception" || !slices.Contains(s.Events[0].Attributes, attribute.String("exception.type", test.kind)) {
			t.Errorf("%s: events %v", name, s.Events)
		}
	}
}

func TestSpans_OfReverts(t *testing.T) {
	t.Parallel()
	a := newTraced(t, "CREATE TABLE card (id int PRIMARY KEY, number text); INSERT INTO card VALUES (1, 'a'), (2, 'b')")
	a.Exec(t, "UPDATE card SET number = '"+spanSecret+"'")
	a.Sync(t)
	ctx, parent := a.tracer.Start(t.Context(), "request")
	revert := a.Client.RevertTransaction(a.lastTransaction(t))
	plan, err := revert.Plan(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := plan.DryRun(ctx); err != nil {
		t.Fatal(err)
	}
	result, err := revert.Apply(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if err := a.Client.WaitFor(ctx, result.Token); err != nil {
		t.Fatal(err)
	}
	parent.End()
	for name, want := range map[string]map[string]string{
		"audit.revert.plan":    {"audit.revert.changes": "2", "audit.revert.updates": "2", "audit.revert.conflicts": "0"},
		"audit.revert.dry_run": {"audit.revert.updates": "2", "audit.revert.already": "false"},
		"audit.revert.apply":   {"audit.revert.updates": "2", "audit.revert.id": result.ID},
	} {
		found := a.spans(t, name)
		if len(found) != 1 {
			t.Errorf("%d spans %s", len(found), name)
			continue
		}
		attrs := attributesOf(found[0])
		for key, value := range want {
			if attrs[key] != value {
				t.Errorf("%s: %s is %q, want %q", name, key, attrs[key], value)
			}
		}
		if found[0].Parent.SpanID() != parent.SpanContext().SpanID() {
			t.Errorf("%s is not a child of the caller's span", name)
		}
	}
}

func TestSpans_OfCapture(t *testing.T) {
	t.Parallel()
	a := newTraced(t, "CREATE TABLE card (id int PRIMARY KEY, number text)")
	// The store refuses what it has no room for: a batch that fails, and is tried again.
	a.Exec(t, `ALTER TABLE audit.changes ADD CONSTRAINT full_up CHECK (primary_key <> '3')`)
	a.Exec(t, "INSERT INTO card VALUES (1, '"+spanSecret+"'), (2, '"+spanSecret+"')")
	a.Sync(t)
	a.Exec(t, "INSERT INTO card VALUES (3, '"+spanSecret+"')")
	deadline := time.Now().Add(30 * time.Second)
	failed := func() (failed tracetest.SpanStubs) {
		for _, s := range a.spans(t, "audit.capture.batch") {
			if s.Status.Code == codes.Error {
				failed = append(failed, s)
			}
		}
		return failed
	}
	for len(failed()) == 0 && time.Now().Before(deadline) {
		<-time.After(10 * time.Millisecond)
	}
	if f := failed(); len(f) == 0 {
		t.Error("no span of the batch that the store refused")
	} else if kind := attributesOf(f[0])["error.type"]; kind != "23514" {
		t.Errorf("error.type %q, want 23514", kind)
	}
	a.Exec(t, `ALTER TABLE audit.changes DROP CONSTRAINT full_up`)
	a.Sync(t)
	changes := 0
	for _, s := range a.spans(t, "audit.capture.batch") {
		for _, attr := range s.Attributes {
			if attr.Key == "audit.changes" && s.Status.Code != codes.Error {
				changes += int(attr.Value.AsInt64())
			}
		}
		if s.Parent.IsValid() || !s.EndTime.After(s.StartTime) && s.Status.Code != codes.Error {
			t.Errorf("a batch has the parent %v, from %s to %s", s.Parent, s.StartTime, s.EndTime)
		}
	}
	if changes != 3 {
		t.Errorf("the spans of batches have %d changes, want 3", changes)
	}
}
