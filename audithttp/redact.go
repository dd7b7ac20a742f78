package audithttp

import (
	"bytes"
	"encoding/json"
	"net/url"

	"github.com/hindsight-go/audit/internal/secretname"
)

// Redacted stands where a value was taken out.
const Redacted = "[redacted]"

// redactor decides by a name whether the value under it is taken out.
type redactor struct {
	more  []named // Config.Redact
	allow []named // Config.Allow
}

// named is a name that the application gave, in its two forms.
type named struct {
	plain string
	words []string
}

func newNames(names []string) (list []named) {
	for _, name := range names {
		if n := (named{secretname.Plain(name), secretname.Split(name)}); n.plain != "" {
			list = append(list, n)
		}
	}
	return list
}

func (c Config) redactor() redactor {
	return redactor{more: newNames(c.Redact), allow: newNames(c.Allow)}
}

// secret reports whether the value under name is taken out. A name that the
// application allows is meant as a whole, one that it redacts also as a part.
func (r redactor) secret(name string) bool {
	plain, words := secretname.Plain(name), secretname.Split(name)
	for _, allowed := range r.allow {
		if plain == allowed.plain {
			return false
		}
	}
	for _, more := range r.more {
		if plain == more.plain || secretname.HasRow(words, more.words) {
			return true
		}
	}
	return secretname.Likely(name)
}

func (r redactor) params(params map[string]any) map[string]any {
	if params == nil {
		return nil
	}
	kept := make(map[string]any, len(params))
	for name, value := range params {
		if r.secret(name) {
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
	case string:
		return r.text(value)
	case []byte:
		// As JSON it would be in base64, in which a secret can still be read.
		if kept := r.text(string(value)); kept != string(value) {
			return kept
		}
		return value
	case nil, bool, json.Number,
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

// user returns a user as it is, but for one that JSON writes as an object or a
// list: a whole record of a user has a password's hash in it.
func (r redactor) user(user any) any {
	switch kept := r.value(user).(type) {
	case map[string]any, []any:
		return kept
	}
	return user
}

func (r redactor) lists(lists map[string][]string) any {
	kept := make(map[string]any, len(lists))
	for name, list := range lists {
		if len(list) == 1 {
			kept[name] = list[0]
			continue
		}
		texts := make([]any, len(list))
		for i := range list {
			texts[i] = list[i]
		}
		kept[name] = texts
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
	return r.value(kept)
}
