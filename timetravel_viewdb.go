package audit

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"io"
	"strings"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgtype"

	"github.com/hindsight-go/audit/internal/history"
)

// ViewDB is [Point.View] for code over database/sql, and so for GORM, ent, bun and
// sqlx:
//
//	err := audit.AsOf(t).ViewDB(ctx, func(db *sql.DB) error {
//		return db.QueryRowContext(ctx, "SELECT count(*) FROM todo").Scan(&n)
//	})
//
// All of db's connections are the view's one, so everything sees the same moment. A
// query's rows are read into memory before the first is given out. An error of a query
// does not end what is around it; a transaction begun on db is one in name only, since
// there is nothing to commit. Placeholders are PostgreSQL's, $1. db is closed when
// ViewDB returns.
func (p Point) ViewDB(ctx context.Context, fn func(db *sql.DB) error) error {
	return p.View(ctx, func(tx pgx.Tx) error {
		c := &viewConnector{tx: tx}
		db := sql.OpenDB(c)
		defer func() {
			_ = db.Close()
			c.mu.Lock()
			c.tx = nil
			c.mu.Unlock()
		}()
		return fn(db)
	})
}

// viewConnector is a view as a source of connections.
type viewConnector struct {
	mu sync.Mutex
	tx pgx.Tx // guarded by mu: one query at a time; nil when the view has ended
}

var (
	_ driver.Connector         = (*viewConnector)(nil)
	_ driver.QueryerContext    = viewConn{}
	_ driver.ExecerContext     = viewConn{}
	_ driver.ConnBeginTx       = viewConn{}
	_ driver.NamedValueChecker = viewConn{}
)

func (c *viewConnector) Connect(context.Context) (driver.Conn, error) { return viewConn{c}, nil }
func (c *viewConnector) Driver() driver.Driver                        { return viewDriver{} }

// viewDriver is there because database/sql asks for one.
type viewDriver struct{}

func (viewDriver) Open(string) (driver.Conn, error) {
	return nil, errors.New("audit: a view of the past is opened by Point.ViewDB")
}

// viewConn is one of the connections, which are all the same.
type viewConn struct{ view *viewConnector }

func (c viewConn) Prepare(query string) (driver.Stmt, error) { return viewStmt{c, query}, nil }
func (viewConn) Close() error                                { return nil }

// Begin begins nothing: there is nothing to commit.
func (viewConn) Begin() (driver.Tx, error)                                    { return viewNoTx{}, nil }
func (viewConn) BeginTx(context.Context, driver.TxOptions) (driver.Tx, error) { return viewNoTx{}, nil }

// CheckNamedValue leaves all values to pgx.
func (viewConn) CheckNamedValue(value *driver.NamedValue) error {
	if value.Name != "" {
		return errors.New("audit: a view of the past takes $1 for parameters, not names")
	}
	return nil
}

func (c viewConn) QueryContext(ctx context.Context, query string, args []driver.NamedValue) (driver.Rows, error) {
	result := &viewRows{}
	err := c.nested(ctx, func(tx pgx.Tx) error { return result.read(ctx, tx, query, args) })
	if err != nil {
		return nil, err
	}
	return result, nil
}

func (c viewConn) ExecContext(ctx context.Context, query string, args []driver.NamedValue) (driver.Result, error) {
	var n int64
	err := c.nested(ctx, func(tx pgx.Tx) error {
		tag, err := tx.Exec(ctx, query, values(args)...)
		n = tag.RowsAffected()
		return err
	})
	if err != nil {
		return nil, err
	}
	return driver.RowsAffected(n), nil
}

// nested runs do in a savepoint.
func (c viewConn) nested(ctx context.Context, do func(tx pgx.Tx) error) error {
	c.view.mu.Lock()
	defer c.view.mu.Unlock()
	if c.view.tx == nil {
		return pgx.ErrTxClosed
	}
	return pgx.BeginFunc(ctx, c.view.tx, do)
}

func values(args []driver.NamedValue) []any {
	list := make([]any, len(args))
	for i, arg := range args {
		list[i] = arg.Value
	}
	return list
}

type viewNoTx struct{}

func (viewNoTx) Commit() error   { return nil }
func (viewNoTx) Rollback() error { return nil }

// viewStmt is a query for later: pgx prepares what is worth it.
type viewStmt struct {
	conn  viewConn
	query string
}

func (viewStmt) Close() error  { return nil }
func (viewStmt) NumInput() int { return -1 }

func (s viewStmt) CheckNamedValue(value *driver.NamedValue) error {
	return s.conn.CheckNamedValue(value)
}

// Exec and Query are for database/sql of long ago, which had no context.
func (s viewStmt) Exec([]driver.Value) (driver.Result, error) { return nil, driver.ErrSkip }
func (s viewStmt) Query([]driver.Value) (driver.Rows, error)  { return nil, driver.ErrSkip }

func (s viewStmt) ExecContext(ctx context.Context, args []driver.NamedValue) (driver.Result, error) {
	return s.conn.ExecContext(ctx, s.query, args)
}

func (s viewStmt) QueryContext(ctx context.Context, args []driver.NamedValue) (driver.Rows, error) {
	return s.conn.QueryContext(ctx, s.query, args)
}

// viewRows are the rows of a query.
type viewRows struct {
	names, types []string
	rows         [][]driver.Value
}

func (r *viewRows) Columns() []string                           { return r.names }
func (r *viewRows) ColumnTypeDatabaseTypeName(index int) string { return r.types[index] }
func (r *viewRows) Close() error                                { return nil }

func (r *viewRows) Next(dest []driver.Value) error {
	if len(r.rows) == 0 {
		return io.EOF
	}
	copy(dest, r.rows[0])
	r.rows = r.rows[1:]
	return nil
}

func (r *viewRows) read(ctx context.Context, tx pgx.Tx, query string, args []driver.NamedValue) error {
	rows, err := tx.Query(ctx, query, append([]any{pgx.QueryResultFormats{pgx.TextFormatCode}}, values(args)...)...)
	if err != nil {
		return err
	}
	defer rows.Close()
	m := rows.Conn().TypeMap()
	fields := rows.FieldDescriptions()
	for _, f := range fields {
		r.names = append(r.names, f.Name)
		name := ""
		if known, ok := m.TypeForOID(f.DataTypeOID); ok {
			name = strings.ToUpper(known.Name)
		}
		r.types = append(r.types, name)
	}
	for rows.Next() {
		row := make([]driver.Value, len(fields))
		for i, raw := range rows.RawValues() {
			if row[i], err = driverValue(m, fields[i].DataTypeOID, raw); err != nil {
				return history.OpError("read column "+fields[i].Name, err)
			}
		}
		r.rows = append(r.rows, row)
	}
	return rows.Err()
}

// driverValue is a value in one of the few types that database/sql takes, as pgx's
// own driver gives it.
func driverValue(m *pgtype.Map, oid uint32, raw []byte) (driver.Value, error) {
	if raw == nil {
		return nil, nil
	}
	switch oid {
	case pgtype.BoolOID:
		return scanned[bool](m, oid, raw)
	case pgtype.ByteaOID:
		return scanned[[]byte](m, oid, raw)
	case pgtype.Int2OID, pgtype.Int4OID, pgtype.Int8OID, pgtype.OIDOID:
		return scanned[int64](m, oid, raw)
	case pgtype.Float4OID, pgtype.Float8OID:
		return scanned[float64](m, oid, raw)
	case pgtype.DateOID, pgtype.TimestampOID, pgtype.TimestamptzOID:
		if !strings.HasSuffix(string(raw), "infinity") {
			return scanned[time.Time](m, oid, raw)
		}
	}
	return string(raw), nil
}

func scanned[T any](m *pgtype.Map, oid uint32, raw []byte) (driver.Value, error) {
	var v T
	err := m.Scan(oid, pgtype.TextFormatCode, raw, &v)
	return v, err
}
