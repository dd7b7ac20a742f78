package audit_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgtype"

	"github.com/hindsight-go/audit"
)

func TestWithContextMerges(t *testing.T) {
	t.Parallel()
	ctx := audit.WithContext(t.Context(), audit.Context{
		UserID: 7, RequestID: "r1", Endpoint: "POST /todo", Params: map[string]any{"a": 1, "b": 1}, Extra: map[string]any{"x": 1},
	})
	inner := audit.WithContext(ctx, audit.Context{UserID: "", RequestID: "r2", Worker: "mail", Params: map[string]any{"b": 2}})
	got, ok := audit.FromContext(inner)
	want := audit.Context{
		UserID: 7, RequestID: "r2", Endpoint: "POST /todo", Worker: "mail",
		Params: map[string]any{"a": 1, "b": 2}, Extra: map[string]any{"x": 1},
	}
	if diff := cmp.Diff(want, got); !ok || diff != "" {
		t.Error(ok, diff)
	}
	if outer, _ := audit.FromContext(ctx); outer.RequestID != "r1" || outer.Params["b"] != 1 {
		t.Errorf("the outer context changed: %+v", outer)
	}
	got.Params["a"] = "mine"
	if again, _ := audit.FromContext(inner); again.Params["a"] != 1 {
		t.Error("FromContext hands out its own map")
	}
	if empty := audit.WithContext(t.Context(), audit.Context{}); empty != t.Context() {
		t.Error("an empty Context makes a new ctx")
	}
	if c, ok := audit.FromContext(t.Context()); ok || !c.IsZero() {
		t.Error("a plain ctx carries a Context")
	}
}

type userNumber int64

// String is for logs: what is stamped is the number.
func (u userNumber) String() string { return fmt.Sprintf("user-%d", int64(u)) }

type composedUser struct{ realm, name string }

func (u composedUser) String() string { return u.realm + "/" + u.name }

func TestContextOfEveryKindOfUser(t *testing.T) {
	t.Parallel()
	u := uuid.MustParse("6ba7b810-9dad-11d1-80b4-00c04fd430c8")
	for _, test := range []struct {
		id   any
		json string
		text string
	}{
		{"ann", `"ann"`, "ann"},
		{42, `42`, "42"},
		{uint64(math.MaxUint64), `18446744073709551615`, "18446744073709551615"},
		{float64(187234), `187234`, "187234"},
		{1e21, `1000000000000000000000`, "1000000000000000000000"},
		{json.Number("42"), `42`, "42"},
		{userNumber(5), `5`, "5"},
		{composedUser{"corp", "ann"}, `"corp/ann"`, "corp/ann"},
		{u, `"6ba7b810-9dad-11d1-80b4-00c04fd430c8"`, u.String()},
		{&u, `"6ba7b810-9dad-11d1-80b4-00c04fd430c8"`, u.String()},
		{[16]byte(u), `"6ba7b810-9dad-11d1-80b4-00c04fd430c8"`, u.String()},
		{pgtype.UUID{Bytes: u, Valid: true}, `"6ba7b810-9dad-11d1-80b4-00c04fd430c8"`, u.String()},
		{pgtype.Int8{Int64: 9, Valid: true}, `"9"`, "9"},
	} {
		c := audit.Context{UserID: test.id}
		text, err := json.Marshal(c)
		if err != nil || string(text) != `{"userId":`+test.json+`}` {
			t.Errorf("%T: %s, %v", test.id, text, err)
		}
		if c.User() != test.text {
			t.Errorf("%T: User() = %q", test.id, c.User())
		}
		var back audit.Context
		if err := json.Unmarshal(text, &back); err != nil || back.User() != test.text {
			t.Errorf("%T: read back as %q, %v", test.id, back.User(), err)
		}
	}
}

type secretive struct{}

func (secretive) MarshalJSON() ([]byte, error) { return nil, errors.New("hunter2") }

type panicking struct{}

func (panicking) MarshalJSON() ([]byte, error) { panic("hunter2") }

func TestContextNamesWhatCannotBeWritten(t *testing.T) {
	t.Parallel()
	for key, c := range map[string]audit.Context{
		"userId":           {UserID: struct{ Name string }{"hunter2"}},
		"params.file":      {Params: map[string]any{"file": make(chan int), "name": "hunter2"}},
		"params.rate":      {Params: map[string]any{"rate": math.Inf(1)}},
		"params.x":         {Params: map[string]any{"x": secretive{}}},
		"params.y":         {Params: map[string]any{"y": panicking{}}},
		"callback":         {Extra: map[string]any{"callback": func() {}}},
		"params.nilOfKind": {Params: map[string]any{"nilOfKind": map[struct{}]string{}}},
	} {
		_, err := c.MarshalJSON()
		var contextErr *audit.ContextError
		if !errors.As(err, &contextErr) || contextErr.Key != key {
			t.Errorf("%s: %v", key, err)
			continue
		}
		if strings.Contains(err.Error(), "hunter2") || !strings.Contains(err.Error(), key) {
			t.Errorf("%s: %v", key, err)
		}
	}
}

func TestContextOfOtherClients(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]audit.Context{
		`{"user_id": 7, "request_id": "r", "trace_id": "t", "span_id": "s"}`: {UserID: int64(7), RequestID: "r", TraceID: "t", SpanID: "s"},
		`{"userId": null, "user_id": "7"}`:                                   {UserID: "7"},
		`{"userId": "a", "user_id": "b"}`:                                    {UserID: "a", Extra: map[string]any{"user_id": "b"}},
		`{"userId": {"id": 1}, "requestId": 5, "endpoint": ["x"]}`: {RequestID: "5", Extra: map[string]any{
			"userId": map[string]any{"id": json.Number("1")}, "endpoint": []any{"x"},
		}},
		`{"userId": 12345678901234567890123}`:     {UserID: json.Number("12345678901234567890123")},
		`{"SQL": "SELECT 1", "params": {"a": 1}}`: {SQL: "SELECT 1", Params: map[string]any{"a": json.Number("1")}},
		`{"params": [1]}`:                         {Extra: map[string]any{"params": []any{json.Number("1")}}},
		`[1, 2]`:                                  {},
		`{}`:                                      {},
	} {
		var got audit.Context
		if err := json.Unmarshal([]byte(text), &got); err != nil {
			t.Errorf("%s: %v", text, err)
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s: %s", text, diff)
		}
	}
}

// recorder is a transaction that keeps what it was sent.
type recorder struct {
	sql  string
	args []any
	err  error
}

func (r *recorder) Exec(_ context.Context, sql string, args ...any) (pgconn.CommandTag, error) {
	r.sql, r.args = sql, args
	return pgconn.CommandTag{}, r.err
}

func stamped(t *testing.T, c audit.Context) (content string, members map[string]any) {
	t.Helper()
	var r recorder
	if err := audit.Stamp(audit.WithContext(t.Context(), c), &r); err != nil {
		t.Fatal(err)
	}
	content = r.args[1].(string)
	if err := json.Unmarshal([]byte(content), &members); err != nil {
		t.Fatalf("%v in %.200s", err, content)
	}
	return content, members
}

func TestStamp(t *testing.T) {
	t.Parallel()
	var r recorder
	if err := audit.Stamp(t.Context(), &r); err != nil || r.sql != "" {
		t.Errorf("without a context: %v, %q", err, r.sql)
	}
	ctx := audit.WithContext(t.Context(), audit.Context{UserID: 1, Extra: map[string]any{"userId": "shadow", "plan": "pro"}})
	if err := audit.Stamp(ctx, &r); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]any{"audit", `{"userId":1,"plan":"pro"}`}, r.args); diff != "" {
		t.Error(diff)
	}
	refused := errors.New("refused")
	if err := audit.Stamp(ctx, &recorder{err: refused}); !errors.Is(err, refused) {
		t.Errorf("the error of the transaction: %v", err)
	}
	r = recorder{}
	var contextErr *audit.ContextError
	if err := audit.Stamp(audit.WithContext(ctx, audit.Context{UserID: make(chan int)}), &r); !errors.As(err, &contextErr) || r.sql != "" {
		t.Errorf("an unwritable context: %v, %q", err, r.sql)
	}
}

func TestStampIsKeptSmall(t *testing.T) {
	t.Parallel()
	huge := strings.Repeat("é", 1<<20)
	for name, test := range map[string]struct {
		c    audit.Context
		want []any
	}{
		"params":  {audit.Context{UserID: 1, SQL: "SELECT 1", Params: map[string]any{"p": huge}, Extra: map[string]any{"x": 1}}, []any{"params"}},
		"SQL":     {audit.Context{UserID: 1, SQL: huge, Params: map[string]any{"p": 1}}, []any{"params", "SQL"}},
		"extra":   {audit.Context{UserID: 1, Extra: map[string]any{"x": huge}}, []any{"extra"}},
		"request": {audit.Context{UserID: 1, RequestID: huge, Endpoint: "POST /"}, []any{"requestId"}},
		"user":    {audit.Context{UserID: huge, Endpoint: "POST /"}, []any{"userId"}},
		"longish": {audit.Context{UserID: strings.Repeat("u", 5000), Endpoint: "POST /"}, []any{"userId"}},
	} {
		content, members := stamped(t, test.c)
		if len(content) > audit.MaxContextBytes {
			t.Errorf("%s: %d bytes", name, len(content))
		}
		if diff := cmp.Diff(test.want, members["truncated"]); diff != "" {
			t.Errorf("%s: %s", name, diff)
		}
		if members["userId"] == nil {
			t.Errorf("%s: the user is gone", name)
		}
		var back audit.Context
		if err := json.Unmarshal([]byte(content), &back); err != nil || len(back.Truncated) != len(test.want) {
			t.Errorf("%s: %v, %v", name, back.Truncated, err)
		}
	}
	names := make([]string, 20000)
	for i := range names {
		names[i] = strings.Repeat("n", 500)
	}
	if content, _ := stamped(t, audit.Context{UserID: 1, Truncated: names}); len(content) > audit.MaxContextBytes {
		t.Errorf("%d bytes of truncated names", len(content))
	}
}

// nastyContexts are accepted by Go and refused, or worse, by a naive jsonb.
func nastyContexts() []audit.Context {
	deep := strings.Repeat(`[`, 9000) + strings.Repeat(`]`, 9000)
	return []audit.Context{
		{UserID: "nul\x00byte", RequestID: "\xff\xfe bad utf-8"},
		{Params: map[string]any{"nul": "\x00", "raw": json.RawMessage(`"\u0000 \ud800 \udc00\ud83d \ud83d\ude00"`)}},
		{Params: map[string]any{"\x00": "\x00\x00", "emoji": "\U0001F600", "quote": `"\`, "html": "<&>", "sep": "\u2028"}},
		{Params: map[string]any{"big": json.Number("1e200000"), "small": json.Number("-1e-200000"), "long": json.RawMessage("1" + strings.Repeat("0", 500))}},
		{Params: map[string]any{"deep": json.RawMessage(deep)}},
		{Params: map[string]any{"deep": json.RawMessage(`{"a":` + strings.Repeat(`{"]}\"":`, 500) + `1` + strings.Repeat(`}`, 500) + `}`)}},
		{SQL: "SELECT '\x00'; DROP TABLE x; -- */ /* $1 \\' ", Extra: map[string]any{"": map[string]any{"": nil}}},
		{Extra: map[string]any{"bytes": []byte{0, 1, 2}, "raw": json.RawMessage("\"\xff\""), "dup": json.RawMessage(`{"a":1,"a":2}`)}},
	}
}

func TestNastyContextsAreMadeSafe(t *testing.T) {
	t.Parallel()
	for _, c := range nastyContexts() {
		text, err := c.MarshalJSON()
		if err != nil {
			t.Errorf("%+v: %v", c, err)
			continue
		}
		checkSafe(t, text)
	}
}

// checkSafe fails for what jsonb would refuse. It is a second opinion: it works
// on decoded tokens and escapes, not as the writer does.
func checkSafe(t *testing.T, text []byte) {
	t.Helper()
	if !json.Valid(text) {
		t.Fatalf("not JSON: %.300q", text)
	}
	for _, c := range text {
		if c < 0x20 || c >= utf8.RuneSelf {
			t.Fatalf("byte %#x in %.300q", c, text)
		}
	}
	plain := strings.NewReplacer(`\\`, "", `\"`, "").Replace(string(text))
	for rest := plain; ; {
		_, after, found := strings.Cut(rest, `\u`)
		if !found {
			break
		}
		unit := after[:4]
		rest = after[4:]
		if unit == "0000" {
			t.Fatalf("a NUL in %.300q", text)
		}
		if unit[0] == 'd' && unit[1] >= 'c' {
			t.Fatalf("a lone low surrogate in %.300q", text)
		}
		if unit[0] == 'd' && unit[1] >= '8' {
			if !strings.HasPrefix(rest, `\ud`) || rest[3] < 'c' {
				t.Fatalf("a lone high surrogate in %.300q", text)
			}
			rest = rest[6:]
		}
	}
	decoder := json.NewDecoder(strings.NewReader(string(text)))
	decoder.UseNumber()
	depth := 0
	for {
		token, err := decoder.Token()
		if err != nil {
			return
		}
		switch token := token.(type) {
		case json.Delim:
			if token == '{' || token == '[' {
				depth++
			} else {
				depth--
			}
			if depth > 70 {
				t.Fatal("too deep")
			}
		case json.Number:
			if len(token) > 500 {
				t.Fatalf("a number of %d digits", len(token))
			}
			if _, exponent, found := strings.Cut(strings.ToLower(string(token)), "e"); found && len(strings.TrimLeft(exponent, "+-0")) > 4 {
				t.Fatalf("a number out of range: %.50s", token)
			}
		}
	}
}

func FuzzContextIsAcceptableToJSONB(f *testing.F) {
	for _, seed := range []string{`{"a":"\u0000\ud800"}`, `[1e99999]`, `"\ud83d\ude00"`, `{"a":{"b":[null,true,-0.0e-3]}}`, "\"\xff\"", `[[[[]]],{}]`} {
		f.Add(seed, "user\x00", "key\xff")
	}
	f.Fuzz(func(t *testing.T, raw, user, key string) {
		c := audit.Context{UserID: user, RequestID: raw, Params: map[string]any{key: raw}, Extra: map[string]any{key: user}}
		if json.Valid([]byte(raw)) {
			c.Params["raw"] = json.RawMessage(raw)
		}
		text, err := c.MarshalJSON()
		if err != nil {
			if json.Valid([]byte(raw)) {
				return // encoding/json refuses by depth
			}
			t.Fatal(err)
		}
		checkSafe(t, text)
		var back audit.Context
		if err := json.Unmarshal(text, &back); err != nil {
			t.Fatal(err)
		}
		// What was made safe once stays as it is.
		again, err := back.MarshalJSON()
		if err != nil {
			t.Fatal(err)
		}
		checkSafe(t, again)
		if content, err := audit.StampContent(audit.WithContext(t.Context(), c)); err != nil || len(content) > audit.MaxContextBytes {
			t.Fatalf("%d bytes, %v", len(content), err)
		}
	})
}

func ExampleWithContext() {
	ctx := audit.WithContext(context.Background(), audit.Context{UserID: 187234, Endpoint: "POST /todo"})
	ctx = audit.WithContext(ctx, audit.Context{RequestID: "5f1c"})

	content, err := audit.StampContent(ctx)
	fmt.Println(string(content), err)
	// Output: {"userId":187234,"requestId":"5f1c","endpoint":"POST /todo"} <nil>
}
