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

	"github.com/hindsight-go/audit/internal/rowimage"
)

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
	if _, isValuer := value.(driver.Valuer); isValuer {
		if plain, err := plainValue(value); err == nil && plain != nil {
			if _, again := plain.(driver.Valuer); !again {
				return idText(plain)
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

// filterJSON marshals what a filter compares with. What jsonb cannot hold can
// match nothing, so it is refused rather than replaced.
func filterJSON(value any) (string, error) {
	text, err := json.Marshal(value)
	if err != nil {
		return "", fmt.Errorf("a %T cannot be written as JSON", value)
	}
	if rowimage.HasBadEscape(text) {
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
