package auditsql

import (
	"context"
	"database/sql/driver"

	"github.com/hindsight-go/audit/internal/sqltext"
)

// stmt is a prepared statement of a driver of which nothing is known.
type stmt struct {
	stmt driver.Stmt
	conn *conn
	text sqltext.Text
}

// columnConverter has another name than its method.
type columnConverter = driver.ColumnConverter //nolint:staticcheck // drivers still have it

// newStmt wraps a statement. The result converts columns if that of the driver
// does.
func newStmt(c *conn, prepared driver.Stmt, text sqltext.Text) driver.Stmt {
	s := &stmt{prepared, c, text}
	if converter, ok := prepared.(driver.ColumnConverter); ok { //nolint:staticcheck // drivers still have it
		return struct {
			*stmt
			columnConverter
		}{s, converter}
	}
	return s
}

// Close is of driver.Stmt.
func (s *stmt) Close() error { return s.stmt.Close() }

// NumInput is of driver.Stmt.
func (s *stmt) NumInput() int { return s.stmt.NumInput() }

// CheckNamedValue is of driver.NamedValueChecker. Without one of the statement
// that of the connection counts.
func (s *stmt) CheckNamedValue(value *driver.NamedValue) error {
	if d, ok := s.stmt.(driver.NamedValueChecker); ok {
		return d.CheckNamedValue(value)
	}
	return s.conn.CheckNamedValue(value)
}

// Exec is of driver.Stmt.
func (s *stmt) Exec(args []driver.Value) (driver.Result, error) {
	return s.stmt.Exec(args) //nolint:staticcheck // nobody calls it, since there is ExecContext
}

// Query is of driver.Stmt.
func (s *stmt) Query(args []driver.Value) (driver.Rows, error) {
	return s.stmt.Query(args) //nolint:staticcheck // nobody calls it, since there is QueryContext
}

// ExecContext is of driver.StmtExecContext.
func (s *stmt) ExecContext(ctx context.Context, args []driver.NamedValue) (driver.Result, error) {
	if s.text.Copies == sqltext.CopyFrom {
		return s.nativeExec(ctx, args) // was stamped before it was prepared
	}
	return s.conn.exec(ctx, s.text, func(ctx context.Context) (driver.Result, error) { return s.nativeExec(ctx, args) })
}

func (s *stmt) nativeExec(ctx context.Context, args []driver.NamedValue) (driver.Result, error) {
	if d, ok := s.stmt.(driver.StmtExecContext); ok {
		return d.ExecContext(ctx, args)
	}
	list, err := unnamed(ctx, args)
	if err != nil {
		return nil, err
	}
	return s.stmt.Exec(list) //nolint:staticcheck // drivers still have it
}

// QueryContext is of driver.StmtQueryContext.
func (s *stmt) QueryContext(ctx context.Context, args []driver.NamedValue) (driver.Rows, error) {
	if s.text.Copies == sqltext.CopyFrom {
		return s.nativeQuery(ctx, args)
	}
	return s.conn.query(ctx, s.text, func(ctx context.Context) (driver.Rows, error) { return s.nativeQuery(ctx, args) })
}

func (s *stmt) nativeQuery(ctx context.Context, args []driver.NamedValue) (driver.Rows, error) {
	if d, ok := s.stmt.(driver.StmtQueryContext); ok {
		return d.QueryContext(ctx, args)
	}
	list, err := unnamed(ctx, args)
	if err != nil {
		return nil, err
	}
	return s.stmt.Query(list) //nolint:staticcheck // drivers still have it
}
