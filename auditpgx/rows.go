package auditpgx

import (
	"bytes"
	"errors"
	"fmt"
	"slices"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgtype"
)

// stampedRows are the rows of a statement that was not sent alone.
type stampedRows struct {
	pgx.Rows
	conn   *pgx.Conn
	finish func(err error) error // ends what the statement was sent in
	closed bool
	err    error
}

func (r *stampedRows) Close() {
	r.Rows.Close()
	if r.closed {
		return
	}
	r.closed = true
	if r.finish != nil {
		r.err = r.finish(r.Rows.Err())
	}
}

func (r *stampedRows) Next() bool {
	if r.Rows.Next() {
		return true
	}
	r.Close()
	return false
}

// Scan closes the rows if it fails, as that of pgx does.
func (r *stampedRows) Scan(dest ...any) error {
	err := r.Rows.Scan(dest...)
	if err != nil {
		r.Close()
	}
	return err
}

// Err also tells of what failed after the last row: a constraint that is checked
// at commit.
func (r *stampedRows) Err() error {
	if err := r.Rows.Err(); err != nil {
		return err
	}
	return r.err
}

func (r *stampedRows) Conn() *pgx.Conn { return r.conn }

// failedRows are the rows of a query that failed before there were any.
type failedRows struct{ err error }

func (failedRows) Close()                                       {}
func (r failedRows) Err() error                                 { return r.err }
func (failedRows) CommandTag() pgconn.CommandTag                { return pgconn.CommandTag{} }
func (failedRows) FieldDescriptions() []pgconn.FieldDescription { return nil }
func (failedRows) Next() bool                                   { return false }
func (r failedRows) Scan(...any) error                          { return r.err }
func (r failedRows) Values() ([]any, error)                     { return nil, r.err }
func (failedRows) RawValues() [][]byte                          { return nil }
func (failedRows) Conn() *pgx.Conn                              { return nil }
func (failedRows) TypeMap() *pgtype.Map                         { return nil }

// readRows are rows that were read before the caller has them.
type readRows struct {
	conn   *pgx.Conn
	fields []pgconn.FieldDescription
	rows   [][][]byte
	tag    pgconn.CommandTag
	end    error // that of the statement, which is behind the rows

	next   int
	closed bool
	err    error
}

func readAll(rows pgx.Rows, conn *pgx.Conn) *readRows {
	read := &readRows{conn: conn, fields: slices.Clone(rows.FieldDescriptions())}
	for rows.Next() {
		values := make([][]byte, len(rows.RawValues()))
		for i, value := range rows.RawValues() {
			values[i] = bytes.Clone(value)
		}
		read.rows = append(read.rows, values)
	}
	rows.Close()
	read.tag, read.end = rows.CommandTag(), rows.Err()
	return read
}

func (r *readRows) Close() {
	if !r.closed {
		r.closed = true
		r.err = r.end
	}
}

func (r *readRows) Next() bool {
	if r.closed || r.next == len(r.rows) {
		r.Close()
		return false
	}
	r.next++
	return true
}

func (r *readRows) Err() error                                   { return r.err }
func (r *readRows) CommandTag() pgconn.CommandTag                { return r.tag }
func (r *readRows) FieldDescriptions() []pgconn.FieldDescription { return r.fields }
func (r *readRows) Conn() *pgx.Conn                              { return r.conn }
func (r *readRows) TypeMap() *pgtype.Map                         { return r.conn.TypeMap() }

func (r *readRows) RawValues() [][]byte {
	if r.next == 0 {
		return nil
	}
	return r.rows[r.next-1]
}

func (r *readRows) Scan(dest ...any) error {
	err := r.scan(dest)
	if err != nil && !r.closed {
		r.closed, r.err = true, err
	}
	return err
}

func (r *readRows) scan(dest []any) error {
	if len(dest) == 1 {
		if scanner, ok := dest[0].(pgx.RowScanner); ok {
			return scanner.ScanRow(r)
		}
	}
	return pgx.ScanRow(r.TypeMap(), r.fields, r.RawValues(), dest...)
}

func (r *readRows) Values() ([]any, error) {
	if r.closed {
		return nil, errors.New("rows is closed")
	}
	values := make([]any, len(r.fields))
	for i, text := range r.RawValues() {
		if text == nil {
			continue
		}
		values[i] = string(text) // the simple protocol has no other format
		if known, ok := r.TypeMap().TypeForOID(r.fields[i].DataTypeOID); ok {
			value, err := known.Codec.DecodeValue(r.TypeMap(), r.fields[i].DataTypeOID, pgx.TextFormatCode, text)
			if err != nil {
				r.closed, r.err = true, err
				return nil, err
			}
			values[i] = value
		}
	}
	return values, nil
}

// row is the first of rows.
type row struct{ rows pgx.Rows }

func (r row) Scan(dest ...any) error {
	if err := r.rows.Err(); err != nil {
		r.rows.Close()
		return err
	}
	for _, d := range dest {
		if _, ok := d.(*pgtype.DriverBytes); ok {
			r.rows.Close()
			return fmt.Errorf("cannot scan into *pgtype.DriverBytes from QueryRow")
		}
	}
	if !r.rows.Next() {
		r.rows.Close()
		if err := r.rows.Err(); err != nil {
			return err
		}
		return pgx.ErrNoRows
	}
	_ = r.rows.Scan(dest...) // Err has it
	r.rows.Close()
	return r.rows.Err()
}
