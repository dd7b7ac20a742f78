package audithttp

import (
	"bytes"
	"encoding/json"
	"net/url"
	"slices"
	"strings"
)

// Redacted stands where a value was taken out.
const Redacted = "[redacted]"

// secretNames are redacted always.
var secretNames = []string{
	"password", "passwd", "pwd", "passphrase", "new_password", "old_password", "current_password", "password_confirmation",
	"secret", "client_secret", "token", "access_token", "refresh_token", "id_token", "csrf_token", "authenticity_token",
	"authorization", "proxy_authorization", "cookie", "set_cookie", "session", "session_id", "api_key", "x_api_key",
	"private_key", "credential", "credentials", "otp", "pin", "ssn", "credit_card", "card_number", "cvv", "cvc", "iban",
}

// redactor is the set of names to redact, in their plain form.
type redactor map[string]bool

// alwaysRedacted is shared by those who add no names of their own.
var alwaysRedacted = newRedactor(secretNames)

func newRedactor(names []string) redactor {
	r := redactor{}
	for _, name := range names {
		r[plainName(name)] = true
	}
	return r
}

func (c Config) redactor() redactor {
	if len(c.Redact) == 0 {
		return alwaysRedacted
	}
	return newRedactor(slices.Concat(secretNames, c.Redact))
}

var plain = strings.NewReplacer("_", "", "-", "", " ", "")

func plainName(name string) string { return plain.Replace(strings.ToLower(name)) }

func (r redactor) params(params map[string]any) map[string]any {
	if params == nil {
		return nil
	}
	kept := make(map[string]any, len(params))
	for name, value := range params {
		if r[plainName(name)] {
			kept[name] = Redacted
			continue
		}
		kept[name] = r.value(value)
	}
	return kept
}

// value returns a copy of value with what is named like a secret taken out.
func (r redactor) value(value any) any {
	switch value := value.(type) {
	case nil, bool, string, json.Number,
		int, int8, int16, int32, int64, uint, uint8, uint16, uint32, uint64, float32, float64:
		return value
	case map[string]any:
		return r.params(value)
	case []any:
		kept := make([]any, len(value))
		for i := range value {
			kept[i] = r.value(value[i])
		}
		return kept
	case map[string]string:
		kept := make(map[string]any, len(value))
		for name, text := range value {
			kept[name] = text
		}
		return r.params(kept)
	case url.Values:
		return r.lists(value)
	case map[string][]string:
		return r.lists(value)
	}
	return r.viaJSON(value)
}

func (r redactor) lists(lists map[string][]string) any {
	kept := make(map[string]any, len(lists))
	for name, list := range lists {
		if len(list) == 1 {
			kept[name] = list[0]
			continue
		}
		kept[name] = append([]string(nil), list...)
	}
	return r.params(kept)
}

// viaJSON looks into structs and other types of the application as what they are
// in JSON. A value that is no JSON stays: it is left out when the context is
// stamped.
func (r redactor) viaJSON(value any) (kept any) {
	defer func() {
		if recover() != nil {
			kept = value
		}
	}()
	text, err := json.Marshal(value)
	if err != nil {
		return value
	}
	decoder := json.NewDecoder(bytes.NewReader(text))
	decoder.UseNumber()
	if err := decoder.Decode(&kept); err != nil {
		return value
	}
	switch kept.(type) {
	case map[string]any, []any:
		return r.value(kept)
	}
	return kept
}
