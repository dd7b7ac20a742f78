package rowimage

import (
	"bytes"
	"encoding/json"
	"reflect"
	"strconv"
	"strings"
)

// assignKind reads a value into a type that has no method for it.
func assignKind(raw json.RawMessage, dst reflect.Value, column string) error {
	if IsNull(raw) {
		switch dst.Kind() {
		case reflect.Slice, reflect.Map, reflect.Interface:
			dst.SetZero()
			return nil
		}
		return misfit(column, dst.Type(), "NULL does not fit; use a pointer")
	}
	switch dst.Kind() {
	case reflect.String:
		dst.SetString(RawText(raw))
		return nil
	case reflect.Bool:
		return assignBool(raw, dst, column)
	case reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64:
		return assignInt(raw, dst, column)
	case reflect.Uint, reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64, reflect.Uintptr:
		return assignUint(raw, dst, column)
	case reflect.Float32, reflect.Float64:
		return assignFloat(raw, dst, column)
	case reflect.Slice, reflect.Array:
		return assignList(raw, dst, column)
	case reflect.Map, reflect.Struct, reflect.Interface:
		return assignDocument(raw, dst, column)
	default:
		return misfit(column, dst.Type(), "no value fits into a type of this kind")
	}
}

func assignBool(raw json.RawMessage, dst reflect.Value, column string) error {
	switch RawText(raw) {
	case "true", "t":
		dst.SetBool(true)
	case "false", "f":
		dst.SetBool(false)
	default:
		return misfit(column, dst.Type(), "the value is no boolean")
	}
	return nil
}

// wholeDigits returns the digits of a whole number, also of one that numeric
// writes with a fraction of zeros.
func wholeDigits(raw json.RawMessage) string {
	text := RawText(raw)
	whole, fraction, found := strings.Cut(text, ".")
	if found && strings.Trim(fraction, "0") == "" {
		return whole
	}
	return text
}

func assignInt(raw json.RawMessage, dst reflect.Value, column string) error {
	n, err := strconv.ParseInt(wholeDigits(raw), 10, dst.Type().Bits())
	if err != nil {
		return misfitNumber(raw, dst, column)
	}
	dst.SetInt(n)
	return nil
}

func assignUint(raw json.RawMessage, dst reflect.Value, column string) error {
	n, err := strconv.ParseUint(wholeDigits(raw), 10, dst.Type().Bits())
	if err != nil {
		return misfitNumber(raw, dst, column)
	}
	dst.SetUint(n)
	return nil
}

func assignFloat(raw json.RawMessage, dst reflect.Value, column string) error {
	text := RawText(raw)
	switch text {
	case "NaN", "Infinity", "-Infinity":
	default:
		if !isNumber(raw) {
			return misfitNumber(raw, dst, column)
		}
	}
	f, err := strconv.ParseFloat(text, dst.Type().Bits())
	if err != nil {
		return misfitNumber(raw, dst, column)
	}
	dst.SetFloat(f)
	return nil
}

func misfitNumber(raw json.RawMessage, dst reflect.Value, column string) error {
	if isNumber(raw) {
		return misfit(column, dst.Type(), "the number does not fit; use a wider type, json.Number or string")
	}
	return misfit(column, dst.Type(), "the value is no number")
}

// assignList reads arrays into slices and arrays, and bytea, text and json into
// []byte.
func assignList(raw json.RawMessage, dst reflect.Value, column string) error {
	t := dst.Type()
	if t.Kind() == reflect.Slice && t.Elem().Kind() == reflect.Uint8 {
		dst.SetBytes(bytesOf(raw))
		return nil
	}
	elements, err := listElements(raw)
	if err != nil {
		return misfit(column, t, "%s", err)
	}
	if t.Kind() == reflect.Array {
		if t.Elem().Kind() == reflect.Uint8 && raw[0] != '[' {
			return misfit(column, t, "the type reads no text by itself")
		}
		if len(elements) != t.Len() {
			return misfit(column, t, "the array has %d elements", len(elements))
		}
	} else {
		dst.Set(reflect.MakeSlice(t, len(elements), len(elements)))
	}
	for i, element := range elements {
		if err := assign(element, dst.Index(i), column); err != nil {
			return err
		}
	}
	return nil
}

func bytesOf(raw json.RawMessage) []byte {
	if raw[0] != '"' {
		return bytes.Clone(raw)
	}
	text := RawText(raw)
	if decoded, ok := hexBytes(text); ok {
		return decoded
	}
	return []byte(text)
}

// listElements takes a JSON array or a PostgreSQL array literal apart.
func listElements(raw json.RawMessage) ([]json.RawMessage, error) {
	if raw[0] == '"' {
		if text := documentOf(raw); text[0] != '"' {
			raw = text
		}
	}
	switch raw[0] {
	case '[':
		var elements []json.RawMessage
		err := json.Unmarshal(raw, &elements)
		return elements, err
	case '"':
		return ParseArray(RawText(raw))
	default:
		return nil, errNoArray
	}
}

// assignDocument reads a json or jsonb value by encoding/json.
func assignDocument(raw json.RawMessage, dst reflect.Value, column string) error {
	text := documentOf(raw)
	if text[0] == '"' && dst.Kind() != reflect.Interface {
		return misfit(column, dst.Type(), "the value is text; give the type a Scan or UnmarshalText method, or use the type of pgtype")
	}
	if dst.Kind() == reflect.Interface && dst.NumMethod() > 0 {
		return misfit(column, dst.Type(), "an interface with methods cannot be filled")
	}
	decoder := json.NewDecoder(bytes.NewReader(text))
	decoder.UseNumber()
	if err := decoder.Decode(dst.Addr().Interface()); err != nil {
		return &MisfitError{Column: column, Type: dst.Type(), Reason: "the JSON does not fit", Cause: err}
	}
	return nil
}
