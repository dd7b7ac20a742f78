package audit

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"slices"

	"github.com/hindsight-go/audit/internal/rowimage"
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
	for _, member := range rowimage.Members(im) {
		if member.Name == column {
			return member.Value, true
		}
	}
	return nil, false
}

// Text returns the column's value as text: a string's content, and the JSON of
// anything else. It reports false for NULL and for a column that the image does
// not know.
func (im Image) Text(column string) (string, bool) {
	raw, has := im.Get(column)
	if !has || rowimage.IsNull(raw) {
		return "", false
	}
	return rowimage.RawText(raw), true
}

// Scan reads one column into the value that dst points to, by the rules of
// [Image.Decode].
func (im Image) Scan(column string, dst any) error {
	raw, has := im.Get(column)
	if !has {
		return &DecodeError{Column: column, Reason: "the image does not know the column"}
	}
	return decodeError(rowimage.DecodeValue(raw, dst, column))
}

// Decode reads the image into dst: a pointer to a struct, or a non-nil pointer
// to a map with string keys.
//
// A column goes to the struct's field whose db tag names it, else to the field whose json
// tag, else whose name is the same without regard to case and underscores (UserID takes
// user_id, and so does one tagged json:"userId"). Of several such columns a field takes the
// one of the very name. A field that has a tag goes by that alone, and db counts before
// json. Embedded structs count as if their fields stood in the outer one, and the outer
// field wins. Fields of no column and columns of no field are left alone: an image need not
// know every column.
//
// An image does not know the types of its columns, so what a value is shows in its form
// and in where it goes; [Change.DecodeAfter] knows them, and should be used where there
// is a Change.
// Numbers go into integers and floats only if they fit; into string,
// json.Number, big.Int and the like with every digit; into any as json.Number.
// NULL goes into pointers (nil), slices, maps, any and everything with a Scan
// method, and is an error elsewhere. Dates and times go into time.Time, in UTC
// where they have no zone; 'infinity' does not fit there and is an error (use
// pgtype.Timestamptz or string). Intervals go into time.Duration. Types with a Scan,
// UnmarshalText or UnmarshalJSON method are
// given the value in the form they read: pgtype, sql.Null, UUIDs, decimals.
// Arrays go into slices, and json columns into whatever encoding/json fits them
// into. Into any and json.RawMessage, a value goes as it stands in the image: a text is
// never taken for JSON.
//
// What does not fit is reported as a [*DecodeError]; dst may be partly written
// then.
func (im Image) Decode(dst any) error {
	return decodeError(rowimage.Decode(im, dst, rowimage.Options{}))
}

// decodeError makes the error that users know of a misfit.
func decodeError(err error) error {
	var m *rowimage.MisfitError
	if !errors.As(err, &m) {
		return err
	}
	return &DecodeError{Column: m.Column, Type: m.Type, Reason: m.Reason, cause: m.Cause}
}

// Columns returns the names of the columns that the image knows, sorted. (The
// order of the table's columns is not kept in an image.)
func (im Image) Columns() []string {
	known := rowimage.Members(im)
	names := make([]string, len(known))
	for i, member := range known {
		names[i] = member.Name
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

var (
	_ fmt.Stringer     = Image(nil)
	_ json.Marshaler   = Image(nil)
	_ json.Unmarshaler = (*Image)(nil)
)
