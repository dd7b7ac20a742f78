package rowimage

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

// Options is what is known of the columns of an image.
type Options struct {
	// TypeOf returns the type of a column, if it is known; nil knows none.
	TypeOf func(column string) (Type, bool)
	// Withheld reports whether a value is not the column's; nil says of none.
	Withheld func(column string) bool
}

func (c Options) isWithheld(column string) bool { return c.Withheld != nil && c.Withheld(column) }

// Decode reads an image into what dst points to: columns whose types are given by pgx's
// rules, and the others by their shape. What does not fit is a misfit.
func Decode(image []byte, dst any, known Options) error {
	v, err := Destination(dst)
	if err != nil {
		return err
	}
	switch v.Kind() {
	case reflect.Struct:
		return decodeStruct(image, v, known)
	case reflect.Map:
		return decodeMap(image, v, known)
	default:
		return &MisfitError{Reason: fmt.Sprintf("the destination must point to a struct or a map, not to %s", v.Type())}
	}
}

// Destination returns what dst points to, making the pointers on the way.
func Destination(dst any) (reflect.Value, error) {
	v := reflect.ValueOf(dst)
	if v.Kind() != reflect.Pointer || v.IsNil() {
		return v, &MisfitError{Reason: fmt.Sprintf("the destination must be a non-nil pointer, not %T", dst)}
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

func decodeMap(image []byte, v reflect.Value, known Options) error {
	t := v.Type()
	if t.Key().Kind() != reflect.String {
		return &MisfitError{Reason: fmt.Sprintf("the keys of %s are no strings", t)}
	}
	if v.IsNil() {
		v.Set(reflect.MakeMap(t))
	}
	m := TypeMaps.Get().(*pgtype.Map)
	defer TypeMaps.Put(m)
	for _, member := range Members(image) {
		element := reflect.New(t.Elem()).Elem()
		if known.isWithheld(member.Name) {
			if err := assign(member.Value, element, member.Name); err != nil {
				continue // a map of numbers has no place for it
			}
		} else if err := member.read(m, known, element); err != nil {
			return err
		}
		v.SetMapIndex(reflect.ValueOf(member.Name).Convert(t.Key()), element)
	}
	return nil
}

func decodeStruct(image []byte, v reflect.Value, known Options) error {
	fields := FieldsOf(v.Type())
	m := TypeMaps.Get().(*pgtype.Map)
	defer TypeMaps.Put(m)
	list := Members(image)
	names := make([]string, len(list))
	for i, member := range list {
		names[i] = member.Name
	}
	indexes := fields.Match(names)
	for i, member := range list {
		if indexes[i] == nil || known.isWithheld(member.Name) {
			continue
		}
		field, err := FieldByIndex(v, indexes[i], member.Name)
		if err != nil {
			return err
		}
		if err := member.read(m, known, field); err != nil {
			return err
		}
	}
	return nil
}

// read reads the column into dst, which can be set.
func (c Member) read(m *pgtype.Map, known Options, dst reflect.Value) error {
	if known.TypeOf != nil {
		if t, ok := known.TypeOf(c.Name); ok {
			if text, ok := t.text(c.Value); ok {
				return ScanColumn(m, c.Name, t.Under(), text, dst)
			}
		}
	}
	return assign(c.Value, dst, c.Name)
}

// DecodeValue reads one value into what dst points to.
func DecodeValue(raw json.RawMessage, dst any, column string) error {
	v := reflect.ValueOf(dst)
	if v.Kind() != reflect.Pointer || v.IsNil() {
		return &MisfitError{Column: column, Reason: fmt.Sprintf("the destination must be a non-nil pointer, not %T", dst)}
	}
	return assign(raw, v.Elem(), column)
}

// MisfitError is returned for a value that its destination does not take.
type MisfitError struct {
	// Column is the column, or empty if the destination as a whole is wrong.
	Column string
	// Type is the Go type that was to receive the value, nil if there was none.
	Type reflect.Type
	// Reason says what is wrong, without the value.
	Reason string
	Cause  error
}

func (e *MisfitError) Error() string { return e.Reason }

func (e *MisfitError) Unwrap() error { return e.Cause }

func misfit(column string, t reflect.Type, format string, args ...any) error {
	return &MisfitError{Column: column, Type: t, Reason: fmt.Sprintf(format, args...)}
}

// assign reads a JSON value of an image into dst, which can be set.
func assign(raw json.RawMessage, dst reflect.Value, column string) error {
	if done, err := assignKnown(raw, dst, column); done {
		return err
	}
	if dst.Kind() == reflect.Pointer {
		if IsNull(raw) {
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
	case *any:
		v, err := ParseJSON(raw)
		*p = v
		return true, asMisfit(err, column, dst.Type(), "no JSON")
	case *[16]byte:
		if !IsNull(raw) && raw[0] == '"' && scanAs(RawText(raw), p, pgtype.UUIDOID) == nil {
			return true, nil
		}
	case *time.Time:
		return true, assignTime(raw, p, column)
	case *time.Duration:
		return true, assignDuration(raw, p, column)
	case *json.Number:
		if IsNull(raw) {
			return true, misfit(column, dst.Type(), "NULL does not fit; use a pointer")
		}
		if !isNumber(raw) {
			return true, misfit(column, dst.Type(), "the value is no number")
		}
		*p = json.Number(RawText(raw))
		return true, nil
	}
	return false, nil
}

// isNumber reports whether raw is a JSON number, bare or in a string.
func isNumber(raw json.RawMessage) bool {
	text := RawText(raw)
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
	if IsNull(raw) {
		return false, nil
	}
	if u, ok := target.(encoding.TextUnmarshaler); ok && raw[0] != '{' && raw[0] != '[' {
		err := u.UnmarshalText([]byte(RawText(raw)))
		return true, asMisfit(err, column, dst.Type(), "its UnmarshalText refuses the value")
	}
	if u, ok := target.(json.Unmarshaler); ok {
		err := u.UnmarshalJSON(documentOf(raw))
		return true, asMisfit(err, column, dst.Type(), "its UnmarshalJSON refuses the value")
	}
	return false, nil
}

func asMisfit(err error, column string, t reflect.Type, reason string) error {
	if err == nil {
		return nil
	}
	var known *MisfitError
	if errors.As(err, &known) {
		return err
	}
	return &MisfitError{Column: column, Type: t, Reason: reason, Cause: err}
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
	return asMisfit(first, column, t, "its Scan refuses the value")
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
		return textForms(RawText(raw))
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
