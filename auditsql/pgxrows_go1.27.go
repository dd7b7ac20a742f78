//go:build go1.27

package auditsql

import (
	"database/sql"
	"database/sql/driver"
	"errors"
	"reflect"
	"sync"
	"time"

	"github.com/jackc/pgx/v5/pgtype"
)

var _ driver.RowsColumnScanner = (*pgxRows)(nil)

// NextRow is NextRow of stdlib.
func (r *pgxRows) NextRow() error { return r.next() }

// ScanColumn is ScanColumn of stdlib: what database/sql knows how to assign it assigns,
// and pgx scans into everything else: slices, maps, ranges and types of its own.
func (r *pgxRows) ScanColumn(scanCtx driver.ScanContext, index int, dest any) error {
	if dest == nil {
		return errors.New("destination not a pointer")
	}
	target := reflect.ValueOf(dest)
	if target.Kind() == reflect.Pointer && target.IsNil() {
		return errors.New("destination pointer is nil")
	}
	if !isOfSQL(target.Type()) {
		column := r.columns[index]
		return r.types.Scan(column.DataTypeOID, column.Format, r.rows.RawValues()[index], dest)
	}
	value, err := r.value(index)
	if err != nil {
		return err
	}
	return sql.ConvertAssign(scanCtx, dest, value)
}

// ofSQL remembers what isOfSQL says, a bool by reflect.Type.
var ofSQL sync.Map

// isOfSQL reports whether database/sql assigns to a destination of a type. It is decided
// by the type alone: to try and then do otherwise would call code of the user twice.
func isOfSQL(destination reflect.Type) bool {
	if known, ok := ofSQL.Load(destination); ok {
		return known.(bool)
	}
	is := assignsTo(destination)
	ofSQL.Store(destination, is)
	return is
}

var (
	scanner = reflect.TypeFor[sql.Scanner]()
	// natives are how types say that pgx knows better, a slice of bytes though they may be.
	natives = []reflect.Type{reflect.TypeFor[pgtype.ArraySetter](), reflect.TypeFor[pgtype.BytesScanner]()}
)

func assignsTo(t reflect.Type) bool {
	// type P *P has no end. Only types with a name can do that.
	seen := make(map[reflect.Type]bool)
	for {
		if t.Implements(scanner) {
			return true
		}
		for _, native := range natives {
			if t.Implements(native) {
				return false
			}
		}
		if t.Kind() != reflect.Pointer {
			return isScalar(t)
		}
		if t.Name() != "" && seen[t] {
			return false
		}
		seen[t] = true
		t = t.Elem()
	}
}

func isScalar(t reflect.Type) bool {
	switch t.Kind() {
	case reflect.Bool, reflect.String, reflect.Interface, reflect.Float32, reflect.Float64,
		reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64,
		reflect.Uint, reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64:
		return true
	case reflect.Slice:
		return t.Elem().Kind() == reflect.Uint8
	case reflect.Struct:
		return t.ConvertibleTo(reflect.TypeFor[time.Time]())
	default:
		return false
	}
}
