package rowimage

import (
	"encoding/json"
	"slices"
	"strings"
)

// Equal compares as PostgreSQL's jsonb does: objects without order, numbers
// by value.
func Equal(a, b json.RawMessage) bool {
	if string(a) == string(b) {
		return true
	}
	x, errA := ParseJSON(a)
	y, errB := ParseJSON(b)
	return errA == nil && errB == nil && sameValue(x, y)
}

// ParseJSON reads a JSON value, with numbers as they are written.
func ParseJSON(raw json.RawMessage) (any, error) {
	decoder := json.NewDecoder(strings.NewReader(string(raw)))
	decoder.UseNumber()
	var v any
	err := decoder.Decode(&v)
	return v, err
}

func sameValue(a, b any) bool {
	switch a := a.(type) {
	case json.Number:
		b, ok := b.(json.Number)
		return ok && parseDecimal(string(a)) == parseDecimal(string(b))
	case []any:
		b, ok := b.([]any)
		return ok && slices.EqualFunc(a, b, sameValue)
	case map[string]any:
		b, ok := b.(map[string]any)
		if !ok || len(a) != len(b) {
			return false
		}
		for key, value := range a {
			other, has := b[key]
			if !has || !sameValue(value, other) {
				return false
			}
		}
		return true
	default:
		return a == b
	}
}

// decimal is a number without regard to how it is written: digits without zeros
// at either end, times ten to the exponent.
type decimal struct {
	negative bool
	digits   string
	exponent int
}

func parseDecimal(text string) decimal {
	var d decimal
	text, d.negative = strings.CutPrefix(text, "-")
	if i := strings.IndexAny(text, "eE"); i >= 0 {
		d.exponent = ParseExponent(text[i+1:])
		text = text[:i]
	}
	whole, fraction, _ := strings.Cut(text, ".")
	d.exponent -= len(fraction)
	digits := strings.TrimLeft(whole+fraction, "0")
	d.digits = strings.TrimRight(digits, "0")
	d.exponent += len(digits) - len(d.digits)
	if d.digits == "" {
		return decimal{}
	}
	return d
}

// ParseExponent saturates far outside anything that PostgreSQL stores.
func ParseExponent(text string) int {
	text = strings.TrimPrefix(text, "+")
	text, negative := strings.CutPrefix(text, "-")
	n := 0
	for _, c := range []byte(text) {
		n = min(n*10+int(c-'0'), 1<<30)
	}
	if negative {
		return -n
	}
	return n
}
