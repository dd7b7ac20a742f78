// Package redact takes out of what a request says the values whose names look like
// secrets.
package redact

import (
	"bytes"
	"encoding/json"
	"net/url"

	"github.com/hindsight-go/audit/internal/secretname"
)

// Mark stands where a value was taken out.
const Mark = "[redacted]"

// Redactor decides by a name whether the value under it is taken out.
type Redactor struct {
	more  []named
	allow []named
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

// New returns a Redactor that takes out more than what looks like a secret, under these
// names and those that have them as a part, and keeps what is allowed by its whole name.
func New(more, allow []string) Redactor {
	return Redactor{more: newNames(more), allow: newNames(allow)}
}

// secret reports whether the value under name is taken out. A name that the
// application allows is meant as a whole, one that it redacts also as a part.
func (r Redactor) secret(name string) bool {
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

// Params returns a copy of params with what is named like a secret taken out, at every
// depth.
func (r Redactor) Params(params map[string]any) map[string]any {
	if params == nil {
		return nil
	}
	kept := make(map[string]any, len(params))
	for name, value := range params {
		if r.secret(name) {
			kept[name] = Mark
			continue
		}
		kept[name] = r.value(value)
	}
	return kept
}

// value returns a copy of value with what is named like a secret taken out.
func (r Redactor) value(value any) any {
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
		return r.Params(value)
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
		return r.Params(kept)
	case url.Values:
		return r.lists(value)
	case map[string][]string:
		return r.lists(value)
	}
	return r.viaJSON(value)
}

// User returns a user as it is, but for one that JSON writes as an object or a
// list: a whole record of a user has a password's hash in it.
func (r Redactor) User(user any) any {
	switch kept := r.value(user).(type) {
	case map[string]any, []any:
		return kept
	}
	return user
}

func (r Redactor) lists(lists map[string][]string) any {
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
	return r.Params(kept)
}

// viaJSON looks into structs and other types of the application as what they are
// in JSON. A value that is no JSON stays: it is left out when the context is
// stamped.
func (r Redactor) viaJSON(value any) (kept any) {
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
