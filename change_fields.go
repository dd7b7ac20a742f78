package audit

import (
	"database/sql"
	"encoding"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"sync"
	"time"
)

// structFields maps column names to the fields of a struct.
type structFields struct {
	tagged map[string][]int // by db or json tag
	named  map[string][]int // by name, folded
}

func (f *structFields) find(column string) ([]int, bool) {
	if index, ok := f.tagged[column]; ok {
		return index, true
	}
	index, ok := f.named[foldName(column)]
	return index, ok
}

// foldName makes UserID, userId and user_id the same.
func foldName(name string) string {
	return strings.ToLower(strings.ReplaceAll(name, "_", ""))
}

// fieldCache holds a *structFields for each reflect.Type that was decoded into.
var fieldCache sync.Map

func fieldsOf(t reflect.Type) *structFields {
	if cached, ok := fieldCache.Load(t); ok {
		return cached.(*structFields)
	}
	fields := &structFields{tagged: map[string][]int{}, named: map[string][]int{}}
	fields.collect(t)
	cached, _ := fieldCache.LoadOrStore(t, fields)
	return cached.(*structFields)
}

// collect walks the struct level by level, so that an outer field hides one of
// the same name in an embedded struct, as in Go.
func (f *structFields) collect(t reflect.Type) {
	type level struct {
		t     reflect.Type
		index []int
	}
	visited := map[reflect.Type]bool{}
	for next := []level{{t, nil}}; len(next) > 0; {
		current := next
		next = nil
		for _, l := range current {
			if visited[l.t] {
				continue
			}
			visited[l.t] = true
			for i := range l.t.NumField() {
				field := l.t.Field(i)
				index := append(slices.Clip(l.index), i)
				name, tagged, skip := columnOf(field)
				if skip {
					continue
				}
				if inner, embedded := embeddedStruct(field); embedded && !tagged {
					next = append(next, level{inner, index})
					continue
				}
				if !field.IsExported() {
					continue
				}
				f.add(name, tagged, index)
			}
		}
	}
}

func (f *structFields) add(name string, tagged bool, index []int) {
	into := f.named
	if tagged {
		into = f.tagged
	} else {
		name = foldName(name)
	}
	if _, taken := into[name]; !taken {
		into[name] = index
	}
}

// columnOf returns the column that a field is tagged or named for. A field
// tagged "-" is skipped.
func columnOf(field reflect.StructField) (name string, tagged, skip bool) {
	for _, key := range []string{"db", "json"} {
		tag, _, _ := strings.Cut(field.Tag.Get(key), ",")
		if tag == "-" {
			return "", false, true
		}
		if tag != "" {
			return tag, true, false
		}
	}
	return field.Name, false, false
}

// embeddedStruct reports whether the fields of an embedded struct count as the
// outer one's own. time.Time and the like, which are values, do not.
func embeddedStruct(field reflect.StructField) (reflect.Type, bool) {
	if !field.Anonymous {
		return nil, false
	}
	t := field.Type
	if t.Kind() == reflect.Pointer {
		if !field.IsExported() {
			return nil, false
		}
		t = t.Elem()
	}
	if t.Kind() != reflect.Struct || isValueType(t) {
		return nil, false
	}
	return t, true
}

// fieldByIndex is reflect.Value.FieldByIndex that makes embedded pointers.
func fieldByIndex(v reflect.Value, index []int, column string) (reflect.Value, error) {
	for n, i := range index {
		if n > 0 && v.Kind() == reflect.Pointer {
			if v.IsNil() {
				if !v.CanSet() {
					return v, misfit(column, v.Type(), "the embedded pointer cannot be set")
				}
				v.Set(reflect.New(v.Type().Elem()))
			}
			v = v.Elem()
		}
		v = v.Field(i)
	}
	return v, nil
}

// isValueType tells that a struct is one value and no row of fields.
func isValueType(t reflect.Type) bool {
	p := reflect.PointerTo(t)
	return t == reflect.TypeFor[time.Time]() ||
		p.Implements(reflect.TypeFor[sql.Scanner]()) ||
		p.Implements(reflect.TypeFor[encoding.TextUnmarshaler]())
}

// others returns the names of the columns that fields are for, but for those
// whose index is taken.
func (f *structFields) others(taken map[string]bool) []string {
	var names []string
	for _, fields := range []map[string][]int{f.tagged, f.named} {
		for name, index := range fields {
			if !taken[fmt.Sprint(index)] {
				names = append(names, name)
			}
		}
	}
	slices.Sort(names)
	return names
}
