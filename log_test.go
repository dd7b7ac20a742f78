package audit_test

import (
	"bytes"
	"context"
	"encoding/json"
	"log/slog"
	"os"
	"strings"
	"testing"
	"testing/slogtest"

	"github.com/google/go-cmp/cmp"

	"github.com/hindsight-go/audit"
)

// logged is what a handler of JSON wrote, without time, level and message.
func logged(t *testing.T, log func(*slog.Logger), wrap func(slog.Handler) slog.Handler) map[string]any {
	t.Helper()
	var out bytes.Buffer
	log(slog.New(wrap(slog.NewJSONHandler(&out, nil))))
	var line map[string]any
	if err := json.Unmarshal(out.Bytes(), &line); err != nil {
		t.Fatalf("%v: %s", err, out.String())
	}
	for _, name := range []string{slog.TimeKey, slog.LevelKey, slog.MessageKey} {
		delete(line, name)
	}
	return line
}

func plainHandler(h slog.Handler) slog.Handler { return h }

const loggedSecret = "4711-8-15"

func TestLogValue_ContextWithoutWhatUsersType(t *testing.T) {
	t.Parallel()
	c := audit.Context{
		UserID: 187234, Tenant: "acme", RequestID: "req-1", TraceID: "t", SpanID: "s", Endpoint: "POST /todo", Worker: "w",
		SQL:    "UPDATE card SET number = '" + loggedSecret + "'",
		Params: map[string]any{"card": loggedSecret}, Extra: map[string]any{"note": loggedSecret},
	}
	got := logged(t, func(l *slog.Logger) { l.Info("", "context", c) }, plainHandler)
	want := map[string]any{"context": map[string]any{
		"userId": "187234", "tenant": "acme", "requestId": "req-1", "traceId": "t", "spanId": "s", "endpoint": "POST /todo", "worker": "w",
	}}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	if got := logged(t, func(l *slog.Logger) { l.Info("", "context", audit.Context{}) }, plainHandler); len(got) != 0 {
		t.Errorf("an empty context is logged as %v", got)
	}
}

func TestLogValue_ChangeWithoutValues(t *testing.T) {
	t.Parallel()
	var c audit.Change
	text := `{"position":"0/1A2B3C8","sequence":3,"committedAt":"2026-11-26T01:24:03.5Z","transactionId":7,"database":"shop","schema":"public",
		"table":"card","primaryKey":"` + loggedSecret + `","previousKey":"` + loggedSecret + `","operation":"UPDATE",
		"before":{"number":"` + loggedSecret + `"},"after":{"number":"` + loggedSecret + `"},
		"context":{"userId":"u-1","requestId":"req-1","params":{"number":"` + loggedSecret + `"}},"withheld":{"pin":"exclude"},"environment":"test","defect":"cut"}`
	if err := json.Unmarshal([]byte(text), &c); err != nil {
		t.Fatal(err)
	}
	want := map[string]any{
		"position": "0/1A2B3C8#3", "operation": "UPDATE", "table": "public.card", "database": "shop", "committedAt": "2026-11-26T01:24:03.5Z",
		"environment": "test", "defect": "cut", "context": map[string]any{"userId": "u-1", "requestId": "req-1"},
	}
	for name, value := range map[string]any{"change": c, "event": audit.Event{Change: c, Cursor: "c"}, "pointer": &c} {
		got := logged(t, func(l *slog.Logger) { l.Info("", "value", value) }, plainHandler)
		if diff := cmp.Diff(map[string]any{"value": want}, got); diff != "" {
			t.Errorf("%s: %s", name, diff)
		}
		var out bytes.Buffer
		slog.New(slog.NewTextHandler(&out, nil)).Info("", "value", value)
		if strings.Contains(out.String(), loggedSecret) {
			t.Errorf("%s: a value of the row is in the log: %s", name, out.String())
		}
	}
	unstamped := audit.Change{Operation: audit.Delete, Schema: "public", Table: "card"}
	got := logged(t, func(l *slog.Logger) { l.Info("", "change", unstamped) }, plainHandler)["change"].(map[string]any)
	if got["stamped"] != false || got["context"] != nil {
		t.Errorf("a change without context is logged as %v", got)
	}
}

func TestLogHandler_AddsRequestAndUser(t *testing.T) {
	t.Parallel()
	ctx := audit.WithContext(t.Context(), audit.Context{UserID: 42, RequestID: "req-1", Tenant: "acme"})
	for name, test := range map[string]struct {
		log  func(*slog.Logger)
		want map[string]any
	}{
		"both":        {func(l *slog.Logger) { l.InfoContext(ctx, "", "a", 1.0) }, map[string]any{"a": 1.0, "requestId": "req-1", "userId": "42"}},
		"without ctx": {func(l *slog.Logger) { l.Info("", "a", 1.0) }, map[string]any{"a": 1.0}},
		"user alone": {func(l *slog.Logger) {
			l.InfoContext(audit.WithContext(t.Context(), audit.Context{UserID: "u"}), "")
		}, map[string]any{"userId": "u"}},
		"below groups": {func(l *slog.Logger) {
			l.With("a", 1.0).WithGroup("g").With("b", 2.0).WithGroup("h").InfoContext(ctx, "", "c", 3.0)
		}, map[string]any{"a": 1.0, "requestId": "req-1", "userId": "42", "g": map[string]any{"b": 2.0, "h": map[string]any{"c": 3.0}}}},
		"the record's own": {func(l *slog.Logger) { l.InfoContext(ctx, "", "requestId", "mine") }, map[string]any{"requestId": "mine", "userId": "42"}},
		"the logger's own": {func(l *slog.Logger) {
			l.With("userId", "me").WithGroup("g").InfoContext(ctx, "", "b", 2.0)
		}, map[string]any{"requestId": "req-1", "userId": "me", "g": map[string]any{"b": 2.0}}},
		"the record's own, in a group without a name": {func(l *slog.Logger) {
			l.InfoContext(ctx, "", slog.Group("", slog.Group("", "userId", "mine")))
		}, map[string]any{"requestId": "req-1", "userId": "mine"}},
		"the logger's own, in a group without a name": {func(l *slog.Logger) {
			l.With(slog.Group("", "requestId", "mine")).InfoContext(ctx, "")
		}, map[string]any{"requestId": "mine", "userId": "42"}},
		"of the same name in a group": {func(l *slog.Logger) {
			l.WithGroup("g").InfoContext(ctx, "", "userId", "other")
		}, map[string]any{"requestId": "req-1", "userId": "42", "g": map[string]any{"userId": "other"}}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			twice := func(h slog.Handler) slog.Handler { return audit.NewLogHandler(audit.NewLogHandler(h)) }
			if diff := cmp.Diff(test.want, logged(t, test.log, twice)); diff != "" {
				t.Error(diff)
			}
		})
	}
}

type panickingID struct{}

func (panickingID) MarshalText() ([]byte, error) { panic("no text") }

func TestLogHandler_UserIDThatPanics(t *testing.T) {
	t.Parallel()
	ctx := audit.WithContext(t.Context(), audit.Context{UserID: panickingID{}, RequestID: "req-1"})
	got := logged(t, func(l *slog.Logger) { l.InfoContext(ctx, "") }, audit.NewLogHandler)
	if diff := cmp.Diff(map[string]any{"requestId": "req-1"}, got); diff != "" {
		t.Error(diff)
	}
}

// stampedHandler gives every record a ctx with a context.
type stampedHandler struct{ slog.Handler }

func (h stampedHandler) Handle(ctx context.Context, r slog.Record) error {
	return h.Handler.Handle(audit.WithContext(ctx, audit.Context{UserID: 42, RequestID: "req-1"}), r)
}

func (h stampedHandler) WithAttrs(attrs []slog.Attr) slog.Handler {
	return stampedHandler{h.Handler.WithAttrs(attrs)}
}

func (h stampedHandler) WithGroup(name string) slog.Handler {
	return stampedHandler{h.Handler.WithGroup(name)}
}

func TestLogHandler_PassesSlogtest(t *testing.T) {
	t.Parallel()
	for name, around := range map[string]func(slog.Handler) slog.Handler{
		"without context": plainHandler,
		"with context":    func(h slog.Handler) slog.Handler { return stampedHandler{h} },
	} {
		var out bytes.Buffer
		err := slogtest.TestHandler(around(audit.NewLogHandler(slog.NewJSONHandler(&out, nil))), func() (lines []map[string]any) {
			for line := range strings.Lines(out.String()) {
				var m map[string]any
				if err := json.Unmarshal([]byte(line), &m); err != nil {
					t.Fatal(err)
				}
				lines = append(lines, m)
			}
			return lines
		})
		if err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func ExampleNewLogHandler() {
	withoutTime := func(_ []string, a slog.Attr) slog.Attr {
		if a.Key == slog.TimeKey {
			return slog.Attr{}
		}
		return a
	}
	logger := slog.New(audit.NewLogHandler(slog.NewTextHandler(os.Stdout, &slog.HandlerOptions{ReplaceAttr: withoutTime})))

	ctx := audit.WithContext(context.Background(), audit.Context{UserID: 187234, RequestID: "req-1"})
	logger.InfoContext(ctx, "order shipped", "order", 11)
	// Output: level=INFO msg="order shipped" order=11 requestId=req-1 userId=187234
}
