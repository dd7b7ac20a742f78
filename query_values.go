package audit

import (
	"database/sql/driver"
	"encoding"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"reflect"
	"strconv"
	"strings"
	"time"
)

// wrap adds the operation to an error and keeps nil.
func wrap(operation string, err error) error {
	if err == nil {
		return nil
	}
	if isRowSecurity(err) {
		return fmt.Errorf("%w (%s: %w)", ErrRowSecurity, operation, err)
	}
	if isUndefined(err) {
		return fmt.Errorf("%w (%s: %w)", ErrNoHistory, operation, err)
	}
	return fmt.Errorf("audit: %s: %w", operation, err)
}

func indirect(v reflect.Value) reflect.Value {
	for v.Kind() == reflect.Pointer || v.Kind() == reflect.Interface {
		v = v.Elem()
	}
	return v
}

var (
	errNilValue  = errors.New("the value is nil")
	errNotFinite = errors.New("the number is not finite")
	errNUL       = errors.New("the value holds a NUL byte, which no text in PostgreSQL can")
)

// idText returns the text of an identifier as JSON's ->> gives it back: the
// digits of an integer, the text of everything else.
func idText(value any) (string, error) {
	if value == nil {
		return "", errNilValue
	}
	v := reflect.ValueOf(value)
	if v.Kind() == reflect.Pointer && v.IsNil() {
		return "", errNilValue
	}
	if m, ok := value.(encoding.TextMarshaler); ok {
		text, err := m.MarshalText()
		return string(text), err
	}
	if text, done, err := basicText(indirect(v)); done {
		return text, err
	}
	if s, ok := value.(fmt.Stringer); ok {
		return s.String(), nil
	}
	if text, ok := uuidText(indirect(v)); ok {
		return text, nil
	}
	if valuer, ok := value.(driver.Valuer); ok {
		if plain, err := valuer.Value(); err == nil && plain != nil {
			if text, done, err := basicText(reflect.ValueOf(plain)); done {
				return text, err
			}
		}
	}
	return "", fmt.Errorf("a %T has no text: use a string, an integer or a type with a MarshalText or String method", value)
}

// basicText is the text of strings, integers and floats of any named type. A
// float is what an integer becomes on its way through JSON: a token's subject.
func basicText(v reflect.Value) (text string, done bool, err error) {
	switch v.Kind() {
	case reflect.String:
		return v.String(), true, nil
	case reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64:
		return strconv.FormatInt(v.Int(), 10), true, nil
	case reflect.Uint, reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64:
		return strconv.FormatUint(v.Uint(), 10), true, nil
	case reflect.Float32, reflect.Float64:
		if math.IsNaN(v.Float()) || math.IsInf(v.Float(), 0) {
			return "", true, errNotFinite
		}
		return strconv.FormatFloat(v.Float(), 'f', -1, v.Type().Bits()), true, nil
	}
	return "", false, nil
}

// uuidText is the text of a UUID that is no more than its 16 bytes.
func uuidText(v reflect.Value) (string, bool) {
	if v.Kind() != reflect.Array || v.Len() != 16 || v.Type().Elem().Kind() != reflect.Uint8 {
		return "", false
	}
	var b [16]byte
	reflect.Copy(reflect.ValueOf(&b).Elem(), v)
	digits := hex.EncodeToString(b[:])
	return strings.Join([]string{digits[:8], digits[8:12], digits[12:16], digits[16:20], digits[20:]}, "-"), true
}

// columnTexts returns the texts under which PostgreSQL may print a value of Go:
// one, or several for a time, whose text depends on the type of the column.
func columnTexts(value any) ([]string, error) {
	one := func(text string, err error) ([]string, error) {
		if err == nil && strings.IndexByte(text, 0) >= 0 {
			err = errNUL
		}
		return []string{text}, err
	}
	v := reflect.ValueOf(value)
	if value == nil || v.Kind() == reflect.Pointer && v.IsNil() {
		return nil, errNilValue
	}
	switch value := value.(type) {
	case time.Time:
		return timeTexts(value), nil
	case *time.Time:
		return timeTexts(*value), nil
	case []byte:
		return one(`\x`+hex.EncodeToString(value), nil)
	case encoding.TextMarshaler:
		text, err := value.MarshalText()
		return one(string(text), err)
	case driver.Valuer:
		plain, err := value.Value()
		if err != nil {
			return nil, err
		}
		if _, again := plain.(driver.Valuer); again {
			return nil, fmt.Errorf("the Value method of %T gives no plain value", value)
		}
		return columnTexts(plain)
	}
	v = indirect(v)
	switch v.Kind() {
	case reflect.Bool:
		return []string{map[bool]string{true: "t", false: "f"}[v.Bool()]}, nil
	case reflect.Float32, reflect.Float64:
		return one(floatText(v.Float(), v.Type().Bits()), nil)
	}
	return one(idText(value))
}

// timeTexts gives the text of a timestamptz, a timestamp and, at midnight, a
// date, in UTC as capture reads them.
func timeTexts(t time.Time) []string {
	t = t.UTC().Truncate(time.Microsecond)
	stamp := t.Format("2006-01-02 15:04:05.999999")
	texts := []string{stamp + "+00", stamp}
	if t.Equal(t.Truncate(24 * time.Hour)) {
		texts = append(texts, t.Format(time.DateOnly))
	}
	return texts
}

// floatText is the shortest text that reads back as the same float, with an
// exponent where PostgreSQL writes one.
func floatText(f float64, bits int) string {
	switch {
	case math.IsNaN(f):
		return "NaN"
	case math.IsInf(f, 1):
		return "Infinity"
	case math.IsInf(f, -1):
		return "-Infinity"
	}
	text := strconv.FormatFloat(f, 'e', -1, bits)
	digits := map[int]int{32: 6, 64: 15}[bits]
	if exponent, err := strconv.Atoi(text[strings.IndexByte(text, 'e')+1:]); err == nil && (exponent < -4 || exponent >= digits) {
		return text
	}
	return strconv.FormatFloat(f, 'f', -1, bits)
}

// imageValues returns the JSON values under which a value of Go may stand in an
// image, and the texts of those that are strings there.
func imageValues(value any) (documents []string, texts []string, err error) {
	v := reflect.ValueOf(value)
	if value == nil || v.Kind() == reflect.Pointer && v.IsNil() {
		return []string{"null"}, nil, nil
	}
	switch value := value.(type) {
	case json.Number:
		return []string{value.String()}, []string{value.String()}, nil
	case json.RawMessage:
		document, err := filterJSON(value)
		return []string{document}, nil, err
	}
	if _, isValuer := value.(driver.Valuer); isValuer {
		if plain, err := value.(driver.Valuer).Value(); err == nil && plain == nil {
			return []string{"null"}, nil, nil
		}
	}
	plain := indirect(v)
	switch plain.Kind() {
	case reflect.Bool:
		return []string{strconv.FormatBool(plain.Bool())}, nil, nil
	case reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64,
		reflect.Uint, reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64:
		text, _, err := basicText(plain)
		return []string{text}, []string{text}, err
	case reflect.Float32, reflect.Float64:
		text := floatText(plain.Float(), plain.Type().Bits())
		if f := plain.Float(); math.IsNaN(f) || math.IsInf(f, 0) {
			return nil, []string{text}, nil
		}
		return []string{text}, []string{text}, nil
	}
	if texts, err := columnTexts(value); err == nil {
		return nil, texts, nil
	} else if errors.Is(err, errNUL) {
		return nil, nil, err
	}
	document, err := filterJSON(value)
	return []string{document}, nil, err
}

// filterJSON marshals what a filter compares with. What jsonb cannot hold can
// match nothing, so it is refused rather than replaced.
func filterJSON(value any) (string, error) {
	text, err := json.Marshal(value)
	if err != nil {
		return "", fmt.Errorf("a %T cannot be written as JSON", value)
	}
	if hasBadEscape(text) {
		return "", errNUL
	}
	return string(text), nil
}

// filterObject is filterJSON for a containment, which needs an object.
func filterObject(value any) (string, error) {
	if c, ok := value.(Context); ok {
		text, err := c.MarshalJSON()
		return string(text), err
	}
	text, err := filterJSON(value)
	if err == nil && (len(text) == 0 || text[0] != '{') {
		err = fmt.Errorf("a %T is no JSON object: use a map or a struct", value)
	}
	return text, err
}
