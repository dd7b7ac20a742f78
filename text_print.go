package audit

import (
	"fmt"
	"strconv"
	"strings"
	"unicode/utf16"
	"unicode/utf8"
)

// Names, keys, users and values come from whoever writes to the source or sends
// a request. In a form for people they must not begin lines, move the cursor of a
// terminal or turn the direction of the text around it.

// printable returns a text as it is if all of it can be seen, and quoted as Go
// does otherwise.
func printable(text string) string {
	if canBeSeen(text) {
		return text
	}
	return strconv.Quote(text)
}

func canBeSeen(text string) bool {
	for i, r := range text {
		if !strconv.IsPrint(r) {
			return false
		}
		if r == utf8.RuneError {
			if _, size := utf8.DecodeRuneInString(text[i:]); size == 1 {
				return false
			}
		}
	}
	return true
}

// printableJSON returns JSON with escapes for what cannot be seen.
func printableJSON(text string) string {
	if canBeSeen(text) {
		return text
	}
	var b strings.Builder
	for _, r := range text {
		if strconv.IsPrint(r) {
			b.WriteRune(r)
			continue
		}
		for _, unit := range utf16.AppendRune(nil, r) {
			fmt.Fprintf(&b, `\u%04x`, unit)
		}
	}
	return b.String()
}

// printableKey returns the parts of a key as they stand in brackets.
func printableKey(parts []string) string {
	shown := make([]string, len(parts))
	for i, part := range parts {
		shown[i] = printable(part)
	}
	return strings.Join(shown, ",")
}
