package audit

import (
	"database/sql/driver"
	"encoding/json"
	"errors"
	"maps"
	"math"
	"reflect"
	"slices"
	"strings"
	"time"

	"github.com/hindsight-go/audit/internal/rowimage"
)

// maxRowForms bounds the rows that a filter compares with.
const maxRowForms = 64

var errManyForms = errors.New("too many values whose form depends on the type of the column: give them as the text that PostgreSQL prints")

// rowForms are the JSON objects that an image contains one of, if it contains the
// columns of value.
func rowForms(value any) ([]string, error) {
	columns, ok := columnsOf(reflect.ValueOf(value))
	if !ok {
		document, err := filterObject(value)
		return []string{document}, err
	}
	rows := []string{"{"}
	for _, name := range slices.Sorted(maps.Keys(columns)) {
		if strings.IndexByte(name, 0) >= 0 {
			return nil, errNUL
		}
		documents, err := memberForms(columns[name])
		if err != nil {
			return nil, err
		}
		var longer []string
		for _, row := range rows {
			if row != "{" {
				row += ","
			}
			for _, document := range documents {
				longer = append(longer, row+string(rowimage.Quote(name))+":"+document)
			}
		}
		if rows = longer; len(rows) > maxRowForms {
			return nil, errManyForms
		}
	}
	for i := range rows {
		rows[i] += "}"
	}
	return rows, nil
}

// memberForms are the forms of one column of a row.
func memberForms(value any) ([]string, error) {
	plain, err := plainValue(value)
	if err != nil {
		return nil, err
	}
	switch v := reflect.ValueOf(plain); v.Kind() {
	case reflect.Float32, reflect.Float64:
		if math.IsNaN(v.Float()) || math.IsInf(v.Float(), 0) || v.Float() == 0 && math.Signbit(v.Float()) {
			break // they are texts
		}
		return floatTexts(v.Float(), v.Type().Bits()), nil
	case reflect.String:
		if _, isValuer := value.(driver.Valuer); isValuer {
			break // a decimal, perhaps
		}
		if _, isNumber := plain.(json.Number); isNumber {
			break
		}
		return jsonForm(plain)
	case reflect.Bool, reflect.Map,
		reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64,
		reflect.Uint, reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64:
		if _, isDuration := plain.(time.Duration); isDuration {
			break
		}
		return jsonForm(plain)
	}
	f, err := imageForms(value)
	return f.documentsOf(value), err
}

func jsonForm(value any) ([]string, error) {
	document, err := filterJSON(value)
	return []string{document}, err
}

// columnsOf takes a map with string keys, or a struct, apart into its columns. It
// reports false for everything that writes its JSON by itself.
func columnsOf(v reflect.Value) (map[string]any, bool) {
	for v.Kind() == reflect.Pointer && !v.IsNil() {
		v = v.Elem()
	}
	if !v.IsValid() || v.Type().Implements(reflect.TypeFor[json.Marshaler]()) || reflect.PointerTo(v.Type()).Implements(reflect.TypeFor[json.Marshaler]()) {
		return nil, false
	}
	columns := map[string]any{}
	switch {
	case v.Kind() == reflect.Map && v.Type().Key().Kind() == reflect.String && !v.IsNil():
		for entry := v.MapRange(); entry.Next(); {
			columns[entry.Key().String()] = entry.Value().Interface()
		}
	case v.Kind() == reflect.Struct && !rowimage.IsValueType(v.Type()):
		addFields(columns, v)
	default:
		return nil, false
	}
	return columns, true
}

// addFields adds the fields of a struct under the names that encoding/json gives them,
// those of embedded structs last.
func addFields(columns map[string]any, v reflect.Value) {
	var embedded []reflect.Value
	for i := range v.NumField() {
		field, value := v.Type().Field(i), v.Field(i)
		tag := field.Tag.Get("json")
		name, options, _ := strings.Cut(tag, ",")
		if inner, is := rowimage.EmbeddedStruct(field); is && name == "" {
			if value.Kind() == reflect.Pointer {
				value = value.Elem()
			}
			if value.IsValid() && inner.Kind() == reflect.Struct {
				embedded = append(embedded, value)
			}
			continue
		}
		if !field.IsExported() || tag == "-" || leftOut(options, value) {
			continue
		}
		if name == "" {
			name = field.Name
		}
		if _, taken := columns[name]; !taken {
			columns[name] = value.Interface()
		}
	}
	for _, value := range embedded {
		addFields(columns, value)
	}
}

// leftOut reports whether encoding/json leaves the field out because of its tag.
func leftOut(options string, v reflect.Value) bool {
	for option := range strings.SplitSeq(options, ",") {
		switch option {
		case "omitempty":
			switch v.Kind() {
			case reflect.Array, reflect.Map, reflect.Slice, reflect.String:
				return v.Len() == 0
			case reflect.Struct:
				return false
			}
			return v.IsZero()
		case "omitzero":
			if zero, ok := v.Interface().(interface{ IsZero() bool }); ok {
				return zero.IsZero()
			}
			return v.IsZero()
		}
	}
	return false
}
