package redact

import (
	"bytes"
	"encoding/json"
	"net/url"
	"regexp"
	"strings"
)

// userinfo is the password in a URL.
var userinfo = regexp.MustCompile(`(?i)\b([a-z][a-z0-9+.-]*://[^\s/?#@:]*):[^\s/?#]*@`)

// text returns a text with what is named like a secret in it taken out: a text
// can be a body of JSON, the query of a URL or a URL with a password. A text in
// which nothing is taken out stays byte for byte.
func (r Redactor) text(text string) string {
	if kept, ok := r.document(text); ok {
		return kept
	}
	return r.query(userinfo.ReplaceAllString(text, "${1}:"+Mark+"@"))
}

// document reads text as a JSON object or array. It reports false if it is none.
func (r Redactor) document(text string) (string, bool) {
	trimmed := strings.TrimSpace(text)
	if trimmed == "" || trimmed[0] != '{' && trimmed[0] != '[' {
		return "", false
	}
	decoder := json.NewDecoder(strings.NewReader(text))
	decoder.UseNumber()
	var whole any
	if err := decoder.Decode(&whole); err != nil || decoder.More() {
		return "", false
	}
	before, err := json.Marshal(whole)
	if err != nil {
		return "", false
	}
	after, err := json.Marshal(r.value(whole))
	if err != nil {
		return "", false
	}
	if bytes.Equal(before, after) {
		return text, true
	}
	return string(after), true
}

// query takes secrets out of what stands in text as name=value, between the
// marks of a URL or a form.
func (r Redactor) query(text string) string {
	if !strings.Contains(text, "=") {
		return text
	}
	var b strings.Builder
	for len(text) > 0 {
		end := strings.IndexAny(text, "?&;# \t\r\n")
		if end < 0 {
			end = len(text)
		}
		pair := text[:end]
		if name, _, found := strings.Cut(pair, "="); found && r.secret(unescaped(name)) {
			pair = name + "=" + Mark
		}
		b.WriteString(pair)
		if end < len(text) {
			b.WriteByte(text[end])
			end++
		}
		text = text[end:]
	}
	return b.String()
}

func unescaped(name string) string {
	if plain, err := url.QueryUnescape(name); err == nil {
		return plain
	}
	return name
}
