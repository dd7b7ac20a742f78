package auditsql

import (
	"database/sql/driver"
	"fmt"
	"io"
	"math"
	"reflect"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgtype"
)

// formats asks for what stdlib asks for: binary for the types that database/sql
// has types for.
var formats = pgx.QueryResultFormatsByOID{
	pgtype.BoolOID: pgx.BinaryFormatCode, pgtype.ByteaOID: pgx.BinaryFormatCode,
	pgtype.Int2OID: pgx.BinaryFormatCode, pgtype.Int4OID: pgx.BinaryFormatCode, pgtype.Int8OID: pgx.BinaryFormatCode,
	pgtype.OIDOID: pgx.BinaryFormatCode, pgtype.XIDOID: pgx.BinaryFormatCode, pgtype.CIDOID: pgx.BinaryFormatCode,
	pgtype.Float4OID: pgx.BinaryFormatCode, pgtype.Float8OID: pgx.BinaryFormatCode,
	pgtype.DateOID: pgx.BinaryFormatCode, pgtype.TimestampOID: pgx.BinaryFormatCode, pgtype.TimestamptzOID: pgx.BinaryFormatCode,
}

// pgxRows are the rows of a statement that was stamped. stdlib makes its own
// only from what it has sent by itself, so these do what those do.
type pgxRows struct {
	rows    pgx.Rows
	types   *pgtype.Map
	columns []pgconn.FieldDescription
	decode  []decoder
	ahead   bool // Next was called already
	more    bool // and what it said
}

// newPgxRows reads up to the first row, as stdlib does: before that there may be
// no columns.
func newPgxRows(types *pgtype.Map, rows pgx.Rows) (*pgxRows, error) {
	r := &pgxRows{rows: rows, types: types, ahead: true, more: rows.Next()}
	if err := rows.Err(); err != nil {
		rows.Close()
		return nil, err
	}
	r.columns = rows.FieldDescriptions()
	return r, nil
}

// Columns is of driver.Rows.
func (r *pgxRows) Columns() []string {
	names := make([]string, len(r.columns))
	for i, column := range r.columns {
		names[i] = column.Name
	}
	return names
}

// Close is of driver.Rows.
func (r *pgxRows) Close() error {
	r.rows.Close()
	return r.rows.Err()
}

// Next is of driver.Rows.
func (r *pgxRows) Next(dest []driver.Value) error {
	if err := r.next(); err != nil {
		return err
	}
	for i := range r.rows.RawValues() {
		var err error
		if dest[i], err = r.value(i); err != nil {
			return fmt.Errorf("convert field %d failed: %w", i, err)
		}
	}
	return nil
}

// next goes to the next row.
func (r *pgxRows) next() error {
	if !r.ahead {
		r.more = r.rows.Next()
	}
	r.ahead = false
	if r.more {
		return nil
	}
	if err := r.rows.Err(); err != nil {
		return err
	}
	return io.EOF
}

// value returns the value of a column as database/sql is to have it.
func (r *pgxRows) value(index int) (driver.Value, error) {
	if r.decode == nil {
		r.decode = make([]decoder, len(r.columns))
		for i, column := range r.columns {
			r.decode[i] = newDecoder(r.types, column)
		}
	}
	raw := r.rows.RawValues()[index]
	if raw == nil {
		return nil, nil
	}
	return r.decode[index](raw)
}

// decoder makes the value of a column that is not NULL.
type decoder func(raw []byte) (driver.Value, error)

func newDecoder(types *pgtype.Map, column pgconn.FieldDescription) decoder {
	switch column.DataTypeOID {
	case pgtype.BoolOID:
		return decodes(types, column, same[bool])
	case pgtype.Int2OID:
		return decodes(types, column, func(n int16) (driver.Value, error) { return int64(n), nil })
	case pgtype.Int4OID:
		return decodes(types, column, func(n int32) (driver.Value, error) { return int64(n), nil })
	case pgtype.Int8OID:
		return decodes(types, column, same[int64])
	case pgtype.Float4OID:
		return decodes(types, column, func(f float32) (driver.Value, error) { return float64(f), nil })
	case pgtype.Float8OID:
		return decodes(types, column, same[float64])
	case pgtype.OIDOID, pgtype.XIDOID, pgtype.CIDOID:
		return decodes(types, column, pgtype.Uint32.Value)
	case pgtype.DateOID:
		return decodes(types, column, pgtype.Date.Value)
	case pgtype.TimestampOID:
		return decodes(types, column, pgtype.Timestamp.Value)
	case pgtype.TimestamptzOID:
		return decodes(types, column, pgtype.Timestamptz.Value)
	case pgtype.ByteaOID, pgtype.JSONOID, pgtype.JSONBOID, pgtype.XMLOID:
		return decodes(types, column, same[[]byte])
	}
	return decodes(types, column, same[string])
}

// decodes returns a decoder that scans a T and makes a value of it.
func decodes[T any](types *pgtype.Map, column pgconn.FieldDescription, value func(T) (driver.Value, error)) decoder {
	plan := types.PlanScan(column.DataTypeOID, column.Format, new(T))
	return func(raw []byte) (driver.Value, error) {
		var v T
		if err := plan.Scan(raw, &v); err != nil {
			return nil, err
		}
		return value(v)
	}
}

func same[T any](v T) (driver.Value, error) { return v, nil }

// ColumnTypeDatabaseTypeName is of driver.RowsColumnTypeDatabaseTypeName.
func (r *pgxRows) ColumnTypeDatabaseTypeName(index int) string {
	oid := r.columns[index].DataTypeOID
	if known, ok := r.types.TypeForOID(oid); ok {
		return strings.ToUpper(known.Name)
	}
	return strconv.FormatUint(uint64(oid), 10)
}

// modifierHeader is what a type modifier counts besides the length.
const modifierHeader = 4

// ColumnTypeLength is of driver.RowsColumnTypeLength.
func (r *pgxRows) ColumnTypeLength(index int) (int64, bool) {
	switch column := r.columns[index]; column.DataTypeOID {
	case pgtype.TextOID, pgtype.ByteaOID:
		return math.MaxInt64, true
	case pgtype.VarcharOID, pgtype.BPCharOID:
		return int64(column.TypeModifier - modifierHeader), true
	case pgtype.VarbitOID:
		return int64(column.TypeModifier), true
	}
	return 0, false
}

// ColumnTypePrecisionScale is of driver.RowsColumnTypePrecisionScale.
func (r *pgxRows) ColumnTypePrecisionScale(index int) (precision, scale int64, ok bool) {
	column := r.columns[index]
	if column.DataTypeOID != pgtype.NumericOID {
		return 0, 0, false
	}
	modifier := column.TypeModifier - modifierHeader
	return int64(modifier >> 16 & 0xffff), int64(modifier & 0xffff), true
}

// ColumnTypeScanType is of driver.RowsColumnTypeScanType.
func (r *pgxRows) ColumnTypeScanType(index int) reflect.Type {
	switch r.columns[index].DataTypeOID {
	case pgtype.BoolOID:
		return reflect.TypeFor[bool]()
	case pgtype.Int2OID:
		return reflect.TypeFor[int16]()
	case pgtype.Int4OID:
		return reflect.TypeFor[int32]()
	case pgtype.Int8OID:
		return reflect.TypeFor[int64]()
	case pgtype.Float4OID:
		return reflect.TypeFor[float32]()
	case pgtype.Float8OID, pgtype.NumericOID:
		return reflect.TypeFor[float64]()
	case pgtype.DateOID, pgtype.TimestampOID, pgtype.TimestamptzOID:
		return reflect.TypeFor[time.Time]()
	case pgtype.ByteaOID:
		return reflect.TypeFor[[]byte]()
	}
	return reflect.TypeFor[string]()
}
