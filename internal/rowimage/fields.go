package rowimage

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

// Fields are the fields of a struct that columns go to, the outer ones first.
type Fields []structField

type structField struct {
	name   string // by tag, or its own
	exact  bool   // a db tag: nothing but the very name
	tagged bool
	index  []int
}

// rank is how well the column goes to the field: 0 not at all.
func (f structField) rank(column, folded string) int {
	switch {
	case f.exact && f.name == column:
		return 3
	case f.exact:
		return 0
	case f.name == column:
		return 2
	case foldName(f.name) == folded:
		return 1
	}
	return 0
}

// Match returns the index of the field for each column, nil where there is none. Of
// several columns for one field, the one that goes best with it has it.
func (f Fields) Match(columns []string) [][]int {
	indexes := make([][]int, len(columns))
	claims := make([]struct{ column, rank int }, len(f))
	for i, column := range columns {
		n, rank := f.find(column)
		if rank == 0 || claims[n].rank >= rank {
			continue
		}
		if claims[n].rank > 0 {
			indexes[claims[n].column] = nil
		}
		indexes[i], claims[n].column, claims[n].rank = f[n].index, i, rank
	}
	return indexes
}

// find returns which field a column goes to, of the outermost that go with it the best,
// and how well the two go together: 0 not at all.
func (f Fields) find(column string) (best, rank int) {
	folded := foldName(column)
	for i, field := range f {
		if rank > 0 && len(field.index) > len(f[best].index) {
			break
		}
		if r := field.rank(column, folded); r > rank {
			best, rank = i, r
		}
	}
	return best, rank
}

// foldName makes UserID, userId and user_id the same.
func foldName(name string) string {
	return strings.ToLower(strings.ReplaceAll(name, "_", ""))
}

// fieldCache holds the structFields of each reflect.Type that was decoded into.
var fieldCache sync.Map

// FieldsOf returns the fields of a struct type that columns go to, remembered by type.
func FieldsOf(t reflect.Type) Fields {
	if cached, ok := fieldCache.Load(t); ok {
		return cached.(Fields)
	}
	cached, _ := fieldCache.LoadOrStore(t, collectFields(t))
	return cached.(Fields)
}

// collectFields walks the struct level by level. An outer field hides one of the same
// name in an embedded struct, as in Go, whichever of them has a tag.
func collectFields(t reflect.Type) Fields {
	var fields Fields
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
				name, tag, skip := columnOf(field)
				if skip {
					continue
				}
				if inner, embedded := EmbeddedStruct(field); embedded && tag == "" {
					next = append(next, level{inner, index})
					continue
				}
				if !field.IsExported() {
					continue
				}
				hidden := slices.ContainsFunc(fields, func(outer structField) bool {
					return len(outer.index) < len(index) && foldName(outer.name) == foldName(name)
				})
				if !hidden {
					fields = append(fields, structField{name, tag == "db", tag != "", index})
				}
			}
		}
	}
	return fields
}

// columnOf returns the column that a field is tagged or named for, and by which tag. A
// field tagged "-" is skipped.
func columnOf(field reflect.StructField) (name, tag string, skip bool) {
	for _, key := range []string{"db", "json"} {
		value, _, _ := strings.Cut(field.Tag.Get(key), ",")
		if value == "-" {
			return "", "", true
		}
		if value != "" {
			return value, key, false
		}
	}
	return field.Name, "", false
}

// EmbeddedStruct reports whether the fields of an embedded struct count as the
// outer one's own. time.Time and the like, which are values, do not.
func EmbeddedStruct(field reflect.StructField) (reflect.Type, bool) {
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
	if t.Kind() != reflect.Struct || IsValueType(t) {
		return nil, false
	}
	return t, true
}

// FieldByIndex is reflect.Value.FieldByIndex that makes embedded pointers.
func FieldByIndex(v reflect.Value, index []int, column string) (reflect.Value, error) {
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

// IsValueType reports whether a struct is one value and no row of fields.
func IsValueType(t reflect.Type) bool {
	p := reflect.PointerTo(t)
	return t == reflect.TypeFor[time.Time]() ||
		p.Implements(reflect.TypeFor[sql.Scanner]()) ||
		p.Implements(reflect.TypeFor[encoding.TextUnmarshaler]())
}

// Others returns the names of the columns that fields are for, but for those
// whose index is taken.
func (f Fields) Others(taken map[string]bool) []string {
	var names []string
	for _, field := range f {
		if taken[fmt.Sprint(field.index)] {
			continue
		}
		if field.tagged {
			names = append(names, field.name)
		} else {
			names = append(names, foldName(field.name))
		}
	}
	slices.Sort(names)
	return names
}
