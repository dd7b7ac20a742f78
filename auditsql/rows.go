package auditsql

import (
	"bytes"
	"context"
	"database/sql/driver"
	"errors"
	"io"
	"reflect"
)

// aheadBytes is how much of the rows of a statement is read ahead, in bytes. A
// statement on its own is done, and holds no locks, as soon as the server could
// send all of its rows; a transaction around it holds them until it is committed.
// So it is committed as soon as all rows are here, unless they are more than what
// buffers between server and driver would hold anyway.
const aheadBytes = 1 << 20

// rows are the rows of a statement that runs in a transaction of ours, which is
// over when the rows are.
type rows struct {
	rows driver.Rows
	conn *conn
	ctx  context.Context //nolint:containedctx // the statement's, for its COMMIT
	info []columnInfo

	ahead [][]driver.Value
	end   error // what comes after ahead; nil if there is more to be read
	over  bool  // the transaction was ended
	err   error // what COMMIT said
}

// columnInfo is what a driver says about the type of a column.
type columnInfo struct {
	name              string
	scan              reflect.Type
	database          string
	length            int64
	hasLength         bool
	nullable, hasNull bool
	precision, scale  int64
	hasPrecision      bool
}

// newRows reads ahead. What failed before there was any row fails the query.
func newRows(ctx context.Context, c *conn, native driver.Rows) (driver.Rows, error) {
	r := &rows{rows: native, conn: c, ctx: ctx}
	r.describe()
	for size := 0; size < aheadBytes && r.end == nil; {
		row := make([]driver.Value, len(r.info))
		if r.end = native.Next(row); r.end != nil {
			break
		}
		size += keep(row)
		r.ahead = append(r.ahead, row)
	}
	if r.end != nil && !r.HasNextResultSet() {
		r.finish(r.end)
		if r.err != nil && len(r.ahead) == 0 {
			return nil, r.err
		}
	}
	return r, nil
}

// describe reads what is known of the columns, since the driver's rows may be
// closed when it is asked for.
func (r *rows) describe() {
	names := r.rows.Columns()
	r.info = make([]columnInfo, len(names))
	for i, name := range names {
		column := columnInfo{name: name, scan: reflect.TypeFor[any]()}
		if d, ok := r.rows.(driver.RowsColumnTypeScanType); ok {
			column.scan = d.ColumnTypeScanType(i)
		}
		if d, ok := r.rows.(driver.RowsColumnTypeDatabaseTypeName); ok {
			column.database = d.ColumnTypeDatabaseTypeName(i)
		}
		if d, ok := r.rows.(driver.RowsColumnTypeLength); ok {
			column.length, column.hasLength = d.ColumnTypeLength(i)
		}
		if d, ok := r.rows.(driver.RowsColumnTypeNullable); ok {
			column.nullable, column.hasNull = d.ColumnTypeNullable(i)
		}
		if d, ok := r.rows.(driver.RowsColumnTypePrecisionScale); ok {
			column.precision, column.scale, column.hasPrecision = d.ColumnTypePrecisionScale(i)
		}
		r.info[i] = column
	}
}

// keep copies what the driver may use again, and returns the size of it all.
func keep(row []driver.Value) int {
	size := 0
	for i, value := range row {
		switch v := value.(type) {
		case []byte:
			row[i] = bytes.Clone(v)
			size += len(v)
		case string:
			size += len(v)
		}
		size += 16
	}
	return size
}

// finish closes the driver's rows and ends the transaction. The error is what the
// rows ended with.
func (r *rows) finish(end error) {
	if r.over {
		return
	}
	r.over = true
	err := r.rows.Close()
	if !errors.Is(end, io.EOF) {
		err = end
	}
	if err != nil {
		_ = r.conn.rollback(r.ctx) // the rows have the error
	} else {
		err = r.conn.commit(r.ctx)
	}
	r.end, r.err = io.EOF, err
	if err != nil {
		r.end = err
	}
}

// Columns is of driver.Rows.
func (r *rows) Columns() []string {
	names := make([]string, len(r.info))
	for i, column := range r.info {
		names[i] = column.name
	}
	return names
}

// Next is of driver.Rows. After the last row it also gives the error of what is
// checked at the end of the transaction.
func (r *rows) Next(dest []driver.Value) error {
	if len(r.ahead) > 0 {
		copy(dest, r.ahead[0])
		r.ahead = r.ahead[1:]
		return nil
	}
	if r.end != nil {
		return r.end
	}
	err := r.rows.Next(dest)
	if err == nil {
		return nil
	}
	r.end = err
	if !r.HasNextResultSet() {
		r.finish(err)
	}
	return r.end
}

// Close is of driver.Rows.
func (r *rows) Close() error {
	r.ahead = nil
	r.finish(io.EOF)
	return r.err
}

// HasNextResultSet is of driver.RowsNextResultSet.
func (r *rows) HasNextResultSet() bool {
	d, ok := r.rows.(driver.RowsNextResultSet)
	return ok && !r.over && d.HasNextResultSet()
}

// NextResultSet is of driver.RowsNextResultSet.
func (r *rows) NextResultSet() error {
	d, ok := r.rows.(driver.RowsNextResultSet)
	if !ok || r.over {
		return io.EOF
	}
	if err := d.NextResultSet(); err != nil {
		r.finish(err)
		return r.end
	}
	r.ahead, r.end = nil, nil
	r.describe()
	return nil
}

// ColumnTypeScanType is of driver.RowsColumnTypeScanType.
func (r *rows) ColumnTypeScanType(index int) reflect.Type { return r.info[index].scan }

// ColumnTypeDatabaseTypeName is of driver.RowsColumnTypeDatabaseTypeName.
func (r *rows) ColumnTypeDatabaseTypeName(index int) string { return r.info[index].database }

// ColumnTypeLength is of driver.RowsColumnTypeLength.
func (r *rows) ColumnTypeLength(index int) (length int64, ok bool) {
	return r.info[index].length, r.info[index].hasLength
}

// ColumnTypeNullable is of driver.RowsColumnTypeNullable.
func (r *rows) ColumnTypeNullable(index int) (nullable, ok bool) {
	return r.info[index].nullable, r.info[index].hasNull
}

// ColumnTypePrecisionScale is of driver.RowsColumnTypePrecisionScale.
func (r *rows) ColumnTypePrecisionScale(index int) (precision, scale int64, ok bool) {
	return r.info[index].precision, r.info[index].scale, r.info[index].hasPrecision
}
