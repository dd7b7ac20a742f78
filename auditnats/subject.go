package auditnats

import (
	"errors"
	"fmt"
	"strings"
	"unicode/utf8"
)

// Token returns a name as a token of a subject: what NATS does not take in one, or gives a
// meaning to, stands as % and two hexadecimal digits for each byte: white space and control
// characters, the dot, the wildcards * and >, the percent sign, and what is not UTF-8. Different names have
// different tokens. The empty name is "%".
func Token(name string) string {
	if name == "" {
		return "%"
	}
	valid := utf8.ValidString(name)
	var b strings.Builder
	for _, c := range []byte(name) {
		if c <= ' ' || c == 0x7f || strings.IndexByte(".*>%", c) >= 0 || c >= utf8.RuneSelf && !valid {
			fmt.Fprintf(&b, "%%%02X", c)
		} else {
			b.WriteByte(c)
		}
	}
	return b.String()
}

// validSubject says what is wrong with a subject to publish on, or nothing.
func validSubject(subject string) error {
	for token := range strings.SplitSeq(subject, ".") {
		switch {
		case token == "":
			return errors.New("has an empty token: subjects are tokens with dots between them")
		case token == "*" || token == ">":
			return errors.New("has a wildcard: messages have subjects without")
		case strings.ContainsFunc(token, func(r rune) bool { return r <= ' ' || r == 0x7f }):
			return errors.New("has white space or control characters: use Token for names")
		}
	}
	return nil
}

// matches reports whether a stream with such a subject takes messages on the other.
func matches(pattern, subject string) bool {
	patterns, tokens := strings.Split(pattern, "."), strings.Split(subject, ".")
	for i, p := range patterns {
		switch {
		case p == ">":
			return len(tokens) > i
		case i >= len(tokens) || p != "*" && p != tokens[i]:
			return false
		}
	}
	return len(patterns) == len(tokens)
}
