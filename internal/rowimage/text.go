package rowimage

import (
	"bytes"
	"encoding/json"
	"strconv"
	"unicode/utf16"
	"unicode/utf8"

	"github.com/jackc/pgx/v5/pgtype"

	"github.com/hindsight-go/audit/internal/pgcatalog"
	"github.com/hindsight-go/audit/internal/wal"
	"github.com/hindsight-go/audit/store"
)

// EachMember calls yield for every column of the image with its value as JSON.
// Name and value belong to the image, or to a copy where the name has escapes.
// It reports whether the image is what it has to be: an object out of jsonb.
func EachMember(im []byte, yield func(name, value []byte)) bool {
	i := skipSpace(im, 0)
	if i >= len(im) || im[i] != '{' {
		return false
	}
	i = skipSpace(im, i+1)
	if i < len(im) && im[i] == '}' {
		return true
	}
	for i < len(im) && im[i] == '"' {
		end := skipString(im, i)
		if end < i+2 {
			return false // it ends behind the quote
		}
		name := im[i+1 : end-1]
		if bytes.IndexByte(name, '\\') >= 0 {
			name = appendUnquoted(nil, im[i:end])
		}
		i = skipSpace(im, end)
		if i >= len(im) || im[i] != ':' {
			return false
		}
		i = skipSpace(im, i+1)
		if end = skipValue(im, i); end == i {
			return false
		}
		yield(name, im[i:end])
		i = skipSpace(im, end)
		if i >= len(im) {
			return false
		}
		if im[i] == '}' {
			return true
		}
		i = skipSpace(im, i+1)
	}
	return false
}

func skipSpace(b []byte, i int) int {
	for i < len(b) && (b[i] == ' ' || b[i] == '\n' || b[i] == '\t' || b[i] == '\r') {
		i++
	}
	return i
}

// skipString returns the index behind the string that begins at i.
func skipString(b []byte, i int) int {
	for i++; i < len(b); i++ {
		switch b[i] {
		case '\\':
			i++
		case '"':
			return i + 1
		}
	}
	return len(b)
}

// skipValue returns the index behind the value that begins at i.
func skipValue(b []byte, i int) int {
	depth := 0
	for i < len(b) {
		switch b[i] {
		case '"':
			if i = skipString(b, i); depth == 0 {
				return i
			}
			continue
		case '{', '[':
			depth++
		case '}', ']':
			if depth == 0 {
				return i
			}
			if depth--; depth == 0 {
				return i + 1
			}
		case ',', ' ', '\n', '\t', '\r':
			if depth == 0 {
				return i
			}
		}
		i++
	}
	return len(b)
}

// appendUnquoted appends the content of a JSON string.
func appendUnquoted(dst, quoted []byte) []byte {
	content := quoted[1 : len(quoted)-1]
	for i := 0; i < len(content); i++ {
		c := content[i]
		if c != '\\' || i+1 >= len(content) {
			dst = append(dst, c)
			continue
		}
		i++
		switch content[i] {
		case 'n':
			dst = append(dst, '\n')
		case 't':
			dst = append(dst, '\t')
		case 'r':
			dst = append(dst, '\r')
		case 'b':
			dst = append(dst, '\b')
		case 'f':
			dst = append(dst, '\f')
		case 'u':
			r := hexRune(content, i+1)
			i += 4
			if utf16.IsSurrogate(r) && i+6 < len(content) && content[i+1] == '\\' && content[i+2] == 'u' {
				r = utf16.DecodeRune(r, hexRune(content, i+3))
				i += 6
			}
			dst = utf8.AppendRune(dst, r)
		default:
			dst = append(dst, content[i])
		}
	}
	return dst
}

func hexRune(b []byte, at int) rune {
	if at+4 > len(b) {
		return utf8.RuneError
	}
	n, err := strconv.ParseUint(string(b[at:at+4]), 16, 16)
	if err != nil {
		return utf8.RuneError
	}
	return rune(n)
}

// AppendText appends the value of an image in PostgreSQL's text format: what
// the type's input function reads. It is the inverse of what the store wrote,
// and must not be given the null of JSON, which stands for NULL.
func AppendText(dst []byte, kind wal.Kind, raw []byte) []byte {
	if len(raw) == 0 {
		return dst
	}
	switch {
	case kind.Base == wal.JSONB:
		return append(dst, raw...)
	case kind.Base == wal.JSON:
		if raw[0] == '"' {
			if content := appendUnquoted(nil, raw); store.IsExactText(content) {
				return append(dst, content...)
			}
		}
		return append(dst, raw...)
	case raw[0] == '"':
		return appendUnquoted(dst, raw)
	case raw[0] == '[':
		delimiter := kind.Delimiter
		if delimiter == 0 {
			delimiter = ','
		}
		return appendArrayText(dst, delimiter, raw)
	case string(raw) == "true", string(raw) == "false":
		return append(dst, raw[0])
	}
	return append(dst, raw...)
}

// appendArrayText writes a JSON array as PostgreSQL's array literal.
func appendArrayText(dst []byte, delimiter byte, raw []byte) []byte {
	dst = append(dst, '{')
	i := skipSpace(raw, 1)
	for n := 0; i < len(raw) && raw[i] != ']'; n++ {
		if n > 0 {
			dst = append(dst, delimiter)
		}
		end := skipValue(raw, i)
		value := raw[i:end]
		switch {
		case string(value) == "null":
			dst = append(dst, "NULL"...)
		case value[0] == '[':
			dst = appendArrayText(dst, delimiter, value)
		case value[0] == '"':
			dst = appendElement(dst, delimiter, appendUnquoted(nil, value))
		default:
			dst = AppendText(dst, wal.Kind{}, value)
		}
		if i = skipSpace(raw, end); i < len(raw) && raw[i] == ',' {
			i = skipSpace(raw, i+1)
		}
	}
	return append(dst, '}')
}

// appendElement writes an element of an array as the server would, which quotes
// only where it has to: the text of a value is to be the same wherever it comes
// from.
func appendElement(dst []byte, delimiter byte, element []byte) []byte {
	if len(element) > 0 && !bytes.EqualFold(element, []byte("NULL")) && !bytes.ContainsAny(element, "{}\"\\ \t\n\r\v\f"+string(delimiter)) {
		return append(dst, element...)
	}
	dst = append(dst, '"')
	for _, c := range element {
		if c == '"' || c == '\\' {
			dst = append(dst, '\\')
		}
		dst = append(dst, c)
	}
	return append(dst, '"')
}

// floatSQLText writes a float as the server would: jsonb writes all the zeros of
// 1e300. What is no number is a string there.
func floatSQLText(raw []byte, bits int) []byte {
	if raw[0] == '"' {
		return appendUnquoted(nil, raw)
	}
	f, err := strconv.ParseFloat(string(raw), bits)
	if err != nil {
		return bytes.Clone(raw)
	}
	return []byte(FloatText(f, bits))
}

// sqlText is the text of a value that is not NULL, as the server prints it.
func sqlText(oid uint32, kind wal.Kind, raw []byte) []byte {
	switch oid {
	case pgtype.Float4OID:
		return floatSQLText(raw, 32)
	case pgtype.Float8OID:
		return floatSQLText(raw, 64)
	}
	return AppendText(make([]byte, 0, len(raw)), kind, raw)
}

// Texts reads an image as one value in PostgreSQL's text format for each
// column, where index says under which name the image has which: nil is NULL.
// missing are the columns that the image does not know and has to.
func Texts(im []byte, columns []pgcatalog.Column, index map[string]int) (values [][]byte, missing []int) {
	values = make([][]byte, len(columns))
	seen := make([]bool, len(columns))
	EachMember(im, func(name, value []byte) {
		i, ok := index[string(name)]
		if !ok {
			return
		}
		seen[i] = true
		if !IsNull(json.RawMessage(value)) {
			values[i] = sqlText(columns[i].TypeOID, columns[i].Kind, value)
		}
	})
	for i, ok := range seen {
		if !ok && !columns[i].Generated {
			missing = append(missing, i)
		}
	}
	return values, missing
}
