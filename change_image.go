package audit

import (
	"bytes"
	"encoding/json"
	"fmt"
	"slices"
)

// Image is a version of a row: a JSON object of its columns by name.
//
// Values keep their exact SQL meaning. Booleans are true and false. Integers,
// oid, float and numeric are JSON numbers with the exact digits; NaN, the
// infinities and the negative zero are strings. A jsonb value stands as it is,
// and so does a json value, unless that would lose something (a repeated key, a
// \u0000, a lone surrogate): it is then a string of its exact text. Arrays of
// built-in types are JSON arrays if their subscripts begin at 1. Everything
// else is a string of PostgreSQL's text output, dates and times in ISO style
// and UTC, bytea in hex.
//
// A column that is not in the image is unknown, which is not the same as NULL.
type Image []byte

// IsEmpty reports whether the image has no columns, as before a CREATE.
func (im Image) IsEmpty() bool {
	trimmed := bytes.TrimSpace(im)
	return len(trimmed) == 0 || len(trimmed) >= 2 && trimmed[0] == '{' && len(bytes.TrimSpace(trimmed[1:len(trimmed)-1])) == 0
}

// Has reports whether the image knows the column, NULL included.
func (im Image) Has(column string) bool {
	_, has := im.Get(column)
	return has
}

// Get returns the column's value as JSON and whether the image knows the
// column. NULL is the JSON null.
func (im Image) Get(column string) (json.RawMessage, bool) {
	for _, member := range im.members() {
		if member.name == column {
			return member.value, true
		}
	}
	return nil, false
}

// Text returns the column's value as text: a string's content, and the JSON of
// anything else. It reports false for NULL and for a column that the image does
// not know.
func (im Image) Text(column string) (string, bool) {
	raw, has := im.Get(column)
	if !has || isNull(raw) {
		return "", false
	}
	return rawText(raw), true
}

// Scan reads one column into the value that dst points to, by the rules of
// [Image.Decode].
func (im Image) Scan(column string, dst any) error {
	raw, has := im.Get(column)
	if !has {
		return &DecodeError{Column: column, Reason: "the image does not know the column"}
	}
	return decodeInto(raw, dst, column)
}

// Columns returns the names of the columns that the image knows, sorted. (The
// order of the table's columns is not kept in an image.)
func (im Image) Columns() []string {
	members := im.members()
	names := make([]string, len(members))
	for i, member := range members {
		names[i] = member.name
	}
	return names
}

// String returns the image as JSON text.
func (im Image) String() string {
	if len(im) == 0 {
		return "{}"
	}
	return string(im)
}

// MarshalJSON returns the image itself, {} if it is nil.
func (im Image) MarshalJSON() ([]byte, error) {
	if len(im) == 0 {
		return []byte("{}"), nil
	}
	return im, nil
}

// UnmarshalJSON keeps a copy of a JSON object. A null is an empty image.
func (im *Image) UnmarshalJSON(text []byte) error {
	text = bytes.TrimSpace(text)
	if string(text) == "null" {
		*im = Image("{}")
		return nil
	}
	if len(text) == 0 || text[0] != '{' {
		return &DecodeError{Reason: "an image is a JSON object"}
	}
	*im = slices.Clone(text)
	return nil
}

type imageMember struct {
	name  string
	value json.RawMessage
}

// members returns the columns sorted by name. What is not a JSON object has
// none: images come out of jsonb, so that cannot be.
func (im Image) members() []imageMember {
	decoder := json.NewDecoder(bytes.NewReader(im))
	if token, err := decoder.Token(); err != nil || token != json.Delim('{') {
		return nil
	}
	var members []imageMember
	for decoder.More() {
		token, err := decoder.Token()
		if err != nil {
			return nil
		}
		name, _ := token.(string)
		var value json.RawMessage
		if err := decoder.Decode(&value); err != nil {
			return nil
		}
		members = append(members, imageMember{name, value})
	}
	slices.SortStableFunc(members, func(a, b imageMember) int {
		return bytes.Compare([]byte(a.name), []byte(b.name))
	})
	return members
}

func isNull(raw json.RawMessage) bool { return string(raw) == "null" }

// rawText is the text of a JSON value: what stands in a string, else the JSON.
func rawText(raw json.RawMessage) string {
	if len(raw) > 0 && raw[0] == '"' {
		var text string
		if json.Unmarshal(raw, &text) == nil {
			return text
		}
	}
	return string(raw)
}

var (
	_ fmt.Stringer     = Image(nil)
	_ json.Marshaler   = Image(nil)
	_ json.Unmarshaler = (*Image)(nil)
)
