package rowimage

import (
	"database/sql"
	"errors"
	"net/netip"
	"reflect"
	"sync"

	"github.com/jackc/pgx/v5/pgtype"
)

// TypeMaps are for converting values. A map is not safe for concurrent use, and
// dear to make.
var TypeMaps = sync.Pool{New: func() any { return pgtype.NewMap() }}

// ScanColumn reads a column from PostgreSQL's text of its value, nil for NULL, into dst,
// which can be set.
func ScanColumn(m *pgtype.Map, column string, oid uint32, value []byte, dst reflect.Value) error {
	if into, ok := dst.Addr().Interface().(*any); ok {
		var err error
		*into, err = DefaultValue(m, column, oid, value)
		return err
	}
	return ScanText(m, column, oid, value, dst.Addr().Interface())
}

// DefaultValue is the value in the Go type that pgx gives it by default: nil for NULL, a
// string where pgx does not know the type.
func DefaultValue(m *pgtype.Map, column string, oid uint32, value []byte) (any, error) {
	if value == nil {
		return nil, nil
	}
	known, ok := m.TypeForOID(oid)
	if !ok {
		return string(value), nil
	}
	v, err := known.Codec.DecodeValue(m, oid, pgtype.TextFormatCode, value)
	if err != nil {
		return nil, &MisfitError{Column: column, Reason: "pgx cannot read the value", Cause: err}
	}
	return v, nil
}

// ScanText is scanColumn for a pointer, by pgx's rules alone.
func ScanText(m *pgtype.Map, column string, oid uint32, value []byte, dst any) error {
	err, reason := error(nil), "the value does not fit"
	if v := reflect.ValueOf(dst); value == nil && v.Kind() == reflect.Pointer && !v.IsNil() {
		err, reason = scanNull(v.Elem()), "NULL does not fit; use a pointer"
	} else {
		err = m.Scan(oid, pgtype.TextFormatCode, value, dst)
	}
	if err == nil {
		return nil
	}
	t := reflect.TypeOf(dst)
	if t != nil && t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	return &MisfitError{Column: column, Type: t, Reason: reason, Cause: err}
}

var errNull = errors.New("the type has no NULL")

// scanNull sets dst to NULL. That is not left to pgx, which tries all types that it knows
// in random order where dst does not go with the type of the column, and takes what the
// first says that does.
func scanNull(dst reflect.Value) error {
	if dst.Kind() == reflect.Pointer {
		dst.SetZero()
		return nil
	}
	switch null := dst.Addr().Interface().(type) {
	case sql.Scanner:
		return null.Scan(nil)
	case interface{ ScanNull() error }:
		return null.ScanNull()
	case interface {
		SetDimensions([]pgtype.ArrayDimension) error
	}:
		return null.SetDimensions(nil)
	case *netip.Addr, *netip.Prefix: // which have an invalid value
		dst.SetZero()
		return nil
	}
	switch dst.Kind() {
	case reflect.Slice, reflect.Map, reflect.Interface:
		dst.SetZero()
		return nil
	}
	return errNull
}
