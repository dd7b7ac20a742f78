package store

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"math/bits"
	"unicode/utf8"

	"github.com/hindsight-go/audit/internal/wal"
)

// appendValue writes one value in PostgreSQL's text format as JSON, so that
// jsonb_populate_record of the image gives the value back. It reports whether
// the text was valid UTF-8; where it is not (a SQL_ASCII database), the bytes
// stand as a \x string of hexadecimal digits.
func appendValue(dst []byte, kind wal.Kind, text []byte) ([]byte, bool) {
	switch kind.Base {
	case wal.JSONB:
		return append(dst, text...), true
	case wal.JSON:
		if !keepsText(text) {
			return append(dst, text...), true
		}
	case wal.Array:
		if out, ok := appendArray(dst, kind, text); ok {
			return out, true
		}
	case wal.Number, wal.Bool, wal.String:
		return appendScalar(dst, kind.Base, text)
	}
	return appendString(dst, text)
}

// appendScalar is appendValue for what can be an element of an array.
func appendScalar(dst []byte, base wal.Base, text []byte) ([]byte, bool) {
	switch {
	case base == wal.Number && isNumber(text):
		return append(dst, text...), true
	case base == wal.Bool && string(text) == "t":
		return append(dst, "true"...), true
	case base == wal.Bool && string(text) == "f":
		return append(dst, "false"...), true
	}
	return appendString(dst, text)
}

// isNumber reports whether a number's text is a JSON number which numeric keeps as
// it is. NaN and the infinities are not; nor is a negative zero, whose sign
// numeric would drop.
func isNumber(text []byte) bool {
	if len(text) == 0 {
		return false
	}
	c := text[0]
	if c >= '1' && c <= '9' {
		return true
	}
	if c == '0' {
		return true
	}
	return c == '-' && len(text) > 1 && text[1] != 'I' && string(text) != "-0"
}

// keepsText reports whether a value of type json has to be kept as a JSON string of
// its exact text: embedding it would be refused by jsonb, lose a member, or, for
// the null of JSON, make it NULL.
//
// It is also true of a JSON string whose content is such a text. So a reader
// can tell the two apart: a string in the place of a json column is exact text
// if keepsText holds of its content, and else it is that string.
func keepsText(text []byte) bool {
	facts, err := scanJSON(text)
	if err != nil || !facts.embeds() || facts.top == 'n' {
		return true
	}
	if facts.top != '"' {
		return false
	}
	var content string
	if json.Unmarshal(text, &content) != nil {
		return true
	}
	inner, err := scanJSON([]byte(content))
	return err == nil && (!inner.embeds() || inner.top == 'n' || inner.top == '"' && keepsText([]byte(content)))
}

// IsExactText reports whether the content of a JSON string, which stands in an image in
// the place of a json column, is the exact text of the column's value; otherwise
// the column's value is that string.
func IsExactText(content []byte) bool {
	_, err := scanJSON(content)
	return err == nil && keepsText(content)
}

const hexDigits = "0123456789abcdef"

// appendHex writes a string of the hexadecimal digits of text.
func appendHex(dst, text []byte) []byte {
	dst = append(dst, `"\\x`...)
	dst = hex.AppendEncode(dst, text)
	return append(dst, '"')
}

// appendString writes text as a JSON string. It reports false if the text was
// not valid UTF-8 and is written as the hexadecimal digits of its bytes.
func appendString(dst, text []byte) ([]byte, bool) {
	begin := len(dst)
	dst = append(dst, '"')
	start, i := 0, 0
	checked := false
	for i < len(text) {
		// Eight bytes at a time while none of them needs attention.
		for i+8 <= len(text) {
			if skip := plain8(binary.LittleEndian.Uint64(text[i:])); skip < 8 {
				i += skip
				break
			}
			i += 8
		}
		if i >= len(text) {
			break
		}
		c := text[i]
		switch {
		case c >= utf8.RuneSelf:
			if !checked {
				if !utf8.Valid(text[i:]) {
					return appendHex(dst[:begin], text), false
				}
				checked = true
			}
			i++
			continue
		case c >= 0x20 && c != '"' && c != '\\':
			i++
			continue
		}
		dst = append(dst, text[start:i]...)
		switch c {
		case '"', '\\':
			dst = append(dst, '\\', c)
		case '\n':
			dst = append(dst, '\\', 'n')
		case '\r':
			dst = append(dst, '\\', 'r')
		case '\t':
			dst = append(dst, '\\', 't')
		default:
			dst = append(dst, '\\', 'u', '0', '0', hexDigits[c>>4], hexDigits[c&15])
		}
		i++
		start = i
	}
	dst = append(dst, text[start:]...)
	return append(dst, '"'), true
}

// plain8 returns how many of the eight bytes, from the lowest, are printable
// ASCII other than the quote and the backslash. It may stop early, never late.
func plain8(x uint64) int {
	const (
		ones  = 0x0101010101010101
		highs = 0x8080808080808080
	)
	low := (x - ones*0x20) & ^x                   // high bit where a byte < 0x20
	quote := x ^ ones*'"'                         // zero byte where a quote
	slash := x ^ ones*'\\'                        // zero byte where a backslash
	found := low | x                              // or not ASCII
	found |= (quote - ones) & ^quote              // zero byte
	found |= (slash - ones) & ^slash              // zero byte
	return bits.TrailingZeros64(found&highs) >> 3 // borrows reach upward only
}

// appendArray writes a PostgreSQL array literal as a JSON array. It gives up,
// and the text stays as it is, where JSON cannot say the same: explicit bounds.
func appendArray(dst []byte, kind wal.Kind, text []byte) ([]byte, bool) {
	if len(text) < 2 || text[0] != '{' {
		return dst, false
	}
	begin := len(dst)
	var scratch [64]byte
	depth := 0
	comma, ended := false, false // what stands before i: a comma, the end of an element
	for i := 0; i < len(text); {
		c := text[i]
		switch { // a type's text is what its author made it: trust no order
		case c == kind.Delimiter && !ended, c == '}' && comma, c != kind.Delimiter && c != '}' && ended:
			return dst[:begin], false
		}
		comma, ended = c == kind.Delimiter, c != kind.Delimiter && c != '{'
		switch {
		case c == '{':
			depth++
			dst = append(dst, '[')
			i++
		case c == '}':
			depth--
			dst = append(dst, ']')
			i++
			if depth == 0 {
				return dst, i == len(text)
			}
		case comma:
			dst = append(dst, ',')
			i++
		case c == '"':
			value, next, ok := quotedElement(scratch[:0], text, i+1)
			if !ok {
				return dst[:begin], false
			}
			if dst, ok = appendScalar(dst, kind.Elem, value); !ok {
				return dst[:begin], false
			}
			i = next
		default:
			end := i
			for end < len(text) && text[end] != kind.Delimiter && text[end] != '}' {
				if text[end] == '\\' || text[end] == '"' || text[end] == '{' {
					return dst[:begin], false
				}
				end++
			}
			value := text[i:end]
			if bytes.Equal(value, []byte("NULL")) {
				dst = append(dst, "null"...)
			} else {
				var ok bool
				if dst, ok = appendScalar(dst, kind.Elem, value); !ok {
					return dst[:begin], false
				}
			}
			i = end
		}
	}
	return dst[:begin], false
}

// quotedElement reads an array element from behind its opening quote.
func quotedElement(scratch, text []byte, i int) (value []byte, next int, ok bool) {
	value = scratch
	for i < len(text) {
		switch c := text[i]; c {
		case '"':
			return value, i + 1, true
		case '\\':
			i++
			if i == len(text) {
				return nil, i, false
			}
			value = append(value, text[i])
		default:
			value = append(value, c)
		}
		i++
	}
	return nil, i, false
}

// ImageWriter makes an image of a row from texts that did not come out of the
// stream. The zero value is ready; it is not safe for concurrent use.
type ImageWriter struct{ b []byte }

// Add adds a column with its value in PostgreSQL's text format, nil for NULL.
func (w *ImageWriter) Add(name string, kind wal.Kind, text []byte) {
	if len(w.b) == 0 {
		w.b = append(w.b, '{')
	} else {
		w.b = append(w.b, ',')
	}
	w.b, _ = appendString(w.b, []byte(name))
	w.b = append(w.b, ':')
	if text == nil {
		w.b = append(w.b, "null"...)
		return
	}
	w.b, _ = appendValue(w.b, kind, text)
}

// Bytes returns the image.
func (w *ImageWriter) Bytes() []byte {
	if len(w.b) == 0 {
		return []byte("{}")
	}
	return append(w.b, '}')
}
