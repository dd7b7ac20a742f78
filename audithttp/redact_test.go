package audithttp_test

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/hindsight-go/audit/audithttp"
)

// redacted returns the params and the user that a request with these gets.
func redacted(t *testing.T, config audithttp.Config, params map[string]any) map[string]any {
	t.Helper()
	config.Params = func(*http.Request) map[string]any { return params }
	c, _ := serve(config, httptest.NewRequest("POST", "/", nil))
	return c.Params
}

// TestRedact_CorpusOfNames puts a secret under each name, in each shape that
// params come in, and looks for it in all that is kept.
func TestRedact_CorpusOfNames(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile("../internal/secretname/testdata/secret.txt")
	if err != nil {
		t.Fatal(err)
	}
	const secret = "hunter2"
	n := 0
	for name := range strings.Lines(string(text)) {
		if name = strings.TrimSpace(name); name == "" || strings.HasPrefix(name, "# ") {
			continue
		}
		n++
		body, err := json.Marshal(map[string]any{"deep": []any{map[string]any{name: secret}}, "kept": 1})
		if err != nil {
			t.Fatal(err)
		}
		query := url.Values{name: {secret}, "kept": {"1"}}.Encode()
		kept := redacted(t, audithttp.Config{}, map[string]any{
			name: secret, "map": map[string]any{"list": []any{map[string]string{name: secret}}},
			"form": url.Values{name: {secret, secret}}, "header": http.Header{name: {secret}},
			"body": string(body), "bytes": body, "raw": json.RawMessage(body),
			"query": query, "uri": "/login?" + query, "typed": []map[string]any{{name: secret}},
		})
		got, err := json.Marshal(kept)
		if err != nil {
			t.Fatal(err)
		}
		if strings.Contains(string(got), secret) {
			t.Errorf("%q is kept: %s", name, got)
		}
		if _, isText := kept["bytes"].(string); !isText {
			t.Errorf("%q: bytes are kept as %v", name, kept["bytes"])
		}
		if uri, _ := kept["uri"].(string); !strings.Contains(uri, "kept=1") || !strings.HasPrefix(uri, "/login?") {
			t.Errorf("%q: the rest of the URI is gone: %s", name, uri)
		}
	}
	if n < 100 {
		t.Fatalf("only %d names", n)
	}
}

func TestRedact_TextsWithoutSecretsStay(t *testing.T) {
	t.Parallel()
	for _, text := range []string{
		"", "{", "[1, 2", "{\"a\":  1.10, \"a\": 2}", "[]", "a=b&c=d", "?x=1&&y", "E = mc^2", "https://example.com/a:b@c?d=e#f",
		"mailto:ann@example.com", "max_tokens=7", "{\"token_count\": 3}", "100%=yes", "{} {}", "null",
	} {
		if diff := cmp.Diff(map[string]any{"text": text}, redacted(t, audithttp.Config{}, map[string]any{"text": text})); diff != "" {
			t.Error(diff)
		}
	}
}

func TestRedact_PasswordInURL(t *testing.T) {
	t.Parallel()
	got := redacted(t, audithttp.Config{}, map[string]any{"target": "copy postgres://ann:hunter2@db:5432/shop?sslmode=off to redis://:hunter3@cache"})
	want := map[string]any{"target": "copy postgres://ann:[redacted]@db:5432/shop?sslmode=off to redis://:[redacted]@cache"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

func TestRedact_AllowAndMoreNames(t *testing.T) {
	t.Parallel()
	config := audithttp.Config{Redact: []string{"diagnosis", "MyField", "--"}, Allow: []string{"Cookie-Jar-ID", "my_field"}}
	got := redacted(t, config, map[string]any{
		"patientDiagnosis": "x", "diagnoses": "kept", "cookie_jar_id": 7, "cookie_jar": "x", "MyField": "kept", "other_my_field": "x",
		"cookieJarId": map[string]any{"password": "x"}, "": "kept", "--": "kept",
	})
	const gone = audithttp.Redacted
	want := map[string]any{
		"patientDiagnosis": gone, "diagnoses": "kept", "cookie_jar_id": 7, "cookie_jar": gone, "MyField": "kept", "other_my_field": gone,
		"cookieJarId": map[string]any{"password": gone}, "": "kept", "--": "kept",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

type userNumber int

func (n userNumber) MarshalText() ([]byte, error) { return fmt.Appendf(nil, "user-%d", int(n)), nil }

func TestRedact_UserIsARecord(t *testing.T) {
	t.Parallel()
	type record struct {
		Name         string
		PasswordHash string
	}
	for _, c := range []struct{ user, want any }{
		{&record{"ann", "$2a$10$hunter2"}, map[string]any{"Name": "ann", "PasswordHash": audithttp.Redacted}},
		{userNumber(7), userNumber(7)},
		{"ann", "ann"},
		{int64(7), int64(7)},
	} {
		config := audithttp.Config{User: func(*http.Request) any { return c.user }}
		said, _ := serve(config, httptest.NewRequest("GET", "/", nil))
		if diff := cmp.Diff(c.want, said.UserID); diff != "" {
			t.Error(diff)
		}
	}
}
