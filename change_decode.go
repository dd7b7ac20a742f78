package audit

import (
	"bytes"
	"database/sql"
	"encoding"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5/pgtype"
)

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
func (im Image) Decode(dst any) error { return im.decode(dst, nil, nil) }

// decode reads the columns whose types are given by pgx's rules, and the others by their
// shape.
func (im Image) decode(dst any, types map[string]ColumnType, withheld map[string]ColumnPolicy) error {
	v, err := destination(dst)
	if err != nil {
		return err
	}
	switch v.Kind() {
	case reflect.Struct:
		return im.decodeStruct(v, types, withheld)
	case reflect.Map:
		return im.decodeMap(v, types, withheld)
	default:
		return &DecodeError{Reason: fmt.Sprintf("the destination must point to a struct or a map, not to %s", v.Type())}
	}
}

// destination returns what dst points to, making the pointers on the way.
func destination(dst any) (reflect.Value, error) {
	v := reflect.ValueOf(dst)
	if v.Kind() != reflect.Pointer || v.IsNil() {
		return v, &DecodeError{Reason: fmt.Sprintf("the destination must be a non-nil pointer, not %T", dst)}
	}
	v = v.Elem()
	for v.Kind() == reflect.Pointer {
		if v.IsNil() {
			v.Set(reflect.New(v.Type().Elem()))
		}
		v = v.Elem()
	}
	return v, nil
}

func (im Image) decodeMap(v reflect.Value, types map[string]ColumnType, withheld map[string]ColumnPolicy) error {
	t := v.Type()
	if t.Key().Kind() != reflect.String {
		return &DecodeError{Reason: fmt.Sprintf("the keys of %s are no strings", t)}
	}
	if v.IsNil() {
		v.Set(reflect.MakeMap(t))
	}
	m := typeMaps.Get().(*pgtype.Map)
	defer typeMaps.Put(m)
	for _, member := range im.members() {
		element := reflect.New(t.Elem()).Elem()
		if withheld[member.name] != "" {
			if err := assign(member.value, element, member.name); err != nil {
				continue // a map of numbers has no place for it
			}
		} else if err := member.read(m, types, element); err != nil {
			return err
		}
		v.SetMapIndex(reflect.ValueOf(member.name).Convert(t.Key()), element)
	}
	return nil
}

func (im Image) decodeStruct(v reflect.Value, types map[string]ColumnType, withheld map[string]ColumnPolicy) error {
	fields := fieldsOf(v.Type())
	m := typeMaps.Get().(*pgtype.Map)
	defer typeMaps.Put(m)
	members := im.members()
	names := make([]string, len(members))
	for i, member := range members {
		names[i] = member.name
	}
	indexes := fields.match(names)
	for i, member := range members {
		if indexes[i] == nil || withheld[member.name] != "" {
			continue
		}
		field, err := fieldByIndex(v, indexes[i], member.name)
		if err != nil {
			return err
		}
		if err := member.read(m, types, field); err != nil {
			return err
		}
	}
	return nil
}

// read reads the column into dst, which can be set.
func (c imageMember) read(m *pgtype.Map, types map[string]ColumnType, dst reflect.Value) error {
	if known, ok := types[c.name]; ok {
		if text, ok := known.text(c.value); ok {
			return scanColumn(m, c.name, known.under(), text, dst)
		}
	}
	return assign(c.value, dst, c.name)
}

// decodeInto reads one value into what dst points to.
func decodeInto(raw json.RawMessage, dst any, column string) error {
	v := reflect.ValueOf(dst)
	if v.Kind() != reflect.Pointer || v.IsNil() {
		return &DecodeError{Column: column, Reason: fmt.Sprintf("the destination must be a non-nil pointer, not %T", dst)}
	}
	return assign(raw, v.Elem(), column)
}

func misfit(column string, t reflect.Type, format string, args ...any) error {
	return &DecodeError{Column: column, Type: t, Reason: fmt.Sprintf(format, args...)}
}

// assign reads a JSON value of an image into dst, which can be set.
func assign(raw json.RawMessage, dst reflect.Value, column string) error {
	if done, err := assignKnown(raw, dst, column); done {
		return err
	}
	if dst.Kind() == reflect.Pointer {
		if isNull(raw) {
			dst.SetZero()
			return nil
		}
		target := reflect.New(dst.Type().Elem())
		if err := assign(raw, target.Elem(), column); err != nil {
			return err
		}
		dst.Set(target)
		return nil
	}
	if done, err := assignByMethod(raw, dst, column); done {
		return err
	}
	return assignKind(raw, dst, column)
}

// assignKnown handles types that have a meaning of their own here, before
// anything is asked of their methods.
func assignKnown(raw json.RawMessage, dst reflect.Value, column string) (bool, error) {
	switch p := dst.Addr().Interface().(type) {
	case *json.RawMessage: // what stands in a string may be a text, whatever it looks like
		*p = bytes.Clone(raw)
		return true, nil
	case *Image:
		*p = Image(bytes.Clone(documentOf(raw)))
		return true, nil
	case *any:
		v, err := parseJSON(raw)
		*p = v
		return true, asDecodeError(err, column, dst.Type(), "no JSON")
	case *[16]byte:
		if !isNull(raw) && raw[0] == '"' && scanAs(rawText(raw), p, pgtype.UUIDOID) == nil {
			return true, nil
		}
	case *time.Time:
		return true, assignTime(raw, p, column)
	case *time.Duration:
		return true, assignDuration(raw, p, column)
	case *json.Number:
		if isNull(raw) {
			return true, misfit(column, dst.Type(), "NULL does not fit; use a pointer")
		}
		if !isNumber(raw) {
			return true, misfit(column, dst.Type(), "the value is no number")
		}
		*p = json.Number(rawText(raw))
		return true, nil
	}
	return false, nil
}

// isNumber tells that raw is a JSON number, bare or in a string.
func isNumber(raw json.RawMessage) bool {
	text := rawText(raw)
	if text == "" || text[0] != '-' && (text[0] < '0' || text[0] > '9') {
		return false
	}
	return json.Valid([]byte(text))
}

// assignByMethod gives the value to a destination that can read it by itself.
func assignByMethod(raw json.RawMessage, dst reflect.Value, column string) (bool, error) {
	target := dst.Addr().Interface()
	if scanner, ok := target.(sql.Scanner); ok {
		return true, scanValue(raw, scanner, column, dst.Type())
	}
	if isNull(raw) {
		return false, nil
	}
	if u, ok := target.(encoding.TextUnmarshaler); ok && raw[0] != '{' && raw[0] != '[' {
		err := u.UnmarshalText([]byte(rawText(raw)))
		return true, asDecodeError(err, column, dst.Type(), "its UnmarshalText refuses the value")
	}
	if u, ok := target.(json.Unmarshaler); ok {
		err := u.UnmarshalJSON(documentOf(raw))
		return true, asDecodeError(err, column, dst.Type(), "its UnmarshalJSON refuses the value")
	}
	return false, nil
}

func asDecodeError(err error, column string, t reflect.Type, reason string) error {
	if err == nil {
		return nil
	}
	var known *DecodeError
	if errors.As(err, &known) {
		return err
	}
	return &DecodeError{Column: column, Type: t, Reason: reason, cause: err}
}

// scanValue offers a Scan method the forms in which database drivers would have
// given it the value, the most exact first.
func scanValue(raw json.RawMessage, scanner sql.Scanner, column string, t reflect.Type) error {
	var first error
	for _, form := range driverForms(raw) {
		err := scanner.Scan(form)
		if err == nil {
			return nil
		}
		if first == nil {
			first = err
		}
	}
	return asDecodeError(first, column, t, "its Scan refuses the value")
}

func driverForms(raw json.RawMessage) []any {
	switch raw[0] {
	case 'n':
		return []any{nil}
	case 't', 'f':
		return []any{raw[0] == 't', string(raw)}
	case '{', '[':
		return []any{bytes.Clone(raw), string(raw)}
	case '"':
		return textForms(rawText(raw))
	}
	text := string(raw)
	if n, err := strconv.ParseInt(text, 10, 64); err == nil {
		return []any{n, text, []byte(text)}
	}
	forms := []any{text}
	if f, err := strconv.ParseFloat(text, 64); err == nil {
		forms = append(forms, f)
	}
	return append(forms, []byte(text))
}

func textForms(text string) []any {
	var forms []any
	if decoded, ok := hexBytes(text); ok {
		forms = append(forms, decoded)
	}
	forms = append(forms, text, []byte(text))
	if t, err := parseTime(text); err == nil {
		forms = append(forms, t)
	}
	return forms
}

// hexBytes decodes PostgreSQL's hex form of bytea.
func hexBytes(text string) ([]byte, bool) {
	digits, found := strings.CutPrefix(text, `\x`)
	if !found {
		return nil, false
	}
	decoded, err := hex.DecodeString(digits)
	return decoded, err == nil
}
