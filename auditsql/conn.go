package auditsql

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"

	"github.com/hindsight-go/audit/internal/sqltext"
	"github.com/hindsight-go/audit/internal/stamp"
)

// conn is a connection of a driver of which nothing is known but that it is for
// PostgreSQL. Which transaction is open is followed by the calls and by the words
// of the statements.
//
// Where the driver leaves out an interface of database/sql/driver, conn does what
// database/sql does in its place. What it must not even offer is in the types
// that newConn returns.
type conn struct {
	conn driver.Conn
	s    *stamp.Stamper
	session
}

// newConn wraps a connection. The result can Exec and Query if the driver can,
// since database/sql treats arguments in another way where it has to prepare.
func newConn(driverConn driver.Conn, s *stamp.Stamper) driver.Conn {
	c := &conn{conn: driverConn, s: s, session: session{state: sqltext.Idle, known: true}}
	_, execs := driverConn.(driver.ExecerContext)
	if !execs {
		_, execs = driverConn.(driver.Execer) //nolint:staticcheck // drivers still have it
	}
	_, queries := driverConn.(driver.QueryerContext)
	if !queries {
		_, queries = driverConn.(driver.Queryer) //nolint:staticcheck // drivers still have it
	}
	switch {
	case execs && queries:
		return struct {
			*conn
			execer
			queryer
		}{c, execer{c}, queryer{c}}
	case execs:
		return struct {
			*conn
			execer
		}{c, execer{c}}
	case queries:
		return struct {
			*conn
			queryer
		}{c, queryer{c}}
	}
	return c
}

// execer is the ExecContext of a connection.
type execer struct{ on *conn }

// ExecContext is of driver.ExecerContext.
func (e execer) ExecContext(ctx context.Context, query string, args []driver.NamedValue) (driver.Result, error) {
	if isQuestion(query) {
		return answer{}, nil
	}
	return e.on.exec(ctx, e.on.s.Parse(query), func(ctx context.Context) (driver.Result, error) {
		return e.on.nativeExec(ctx, query, args)
	})
}

// queryer is the QueryContext of a connection.
type queryer struct{ on *conn }

// QueryContext is of driver.QueryerContext.
func (q queryer) QueryContext(ctx context.Context, query string, args []driver.NamedValue) (driver.Rows, error) {
	return q.on.query(ctx, q.on.s.Parse(query), func(ctx context.Context) (driver.Rows, error) {
		return q.on.nativeQuery(ctx, query, args)
	})
}

// nativeExec is Exec of the driver.
func (c *conn) nativeExec(ctx context.Context, query string, args []driver.NamedValue) (driver.Result, error) {
	switch d := c.conn.(type) {
	case driver.ExecerContext:
		return d.ExecContext(ctx, query, args)
	case driver.Execer: //nolint:staticcheck // drivers still have it
		list, err := unnamed(ctx, args)
		if err != nil {
			return nil, err
		}
		return d.Exec(query, list)
	}
	return nil, driver.ErrSkip
}

// nativeQuery is Query of the driver.
func (c *conn) nativeQuery(ctx context.Context, query string, args []driver.NamedValue) (driver.Rows, error) {
	switch d := c.conn.(type) {
	case driver.QueryerContext:
		return d.QueryContext(ctx, query, args)
	case driver.Queryer: //nolint:staticcheck // drivers still have it
		list, err := unnamed(ctx, args)
		if err != nil {
			return nil, err
		}
		return d.Query(query, list)
	}
	return nil, driver.ErrSkip
}

// unnamed returns the arguments for a driver that knows neither names nor ctx.
func unnamed(ctx context.Context, args []driver.NamedValue) ([]driver.Value, error) {
	list := make([]driver.Value, len(args))
	for i, arg := range args {
		if arg.Name != "" {
			return nil, errors.New("sql: driver does not support the use of Named Parameters")
		}
		list[i] = arg.Value
	}
	return list, ctx.Err()
}

func (c *conn) unwrap() driver.Conn {
	c.unsure()
	return c.conn
}

// Close is of driver.Conn.
func (c *conn) Close() error { return c.conn.Close() }

// Prepare is of driver.Conn.
func (c *conn) Prepare(query string) (driver.Stmt, error) {
	return c.PrepareContext(context.Background(), query)
}

// PrepareContext is of driver.ConnPrepareContext.
func (c *conn) PrepareContext(ctx context.Context, query string) (driver.Stmt, error) {
	if isQuestion(query) {
		return answer{}, nil
	}
	text := c.s.Parse(query)
	if text.Copies == sqltext.CopyFrom {
		// lib/pq begins to copy as soon as it prepares.
		if err := c.stampCopy(ctx, text); err != nil {
			return nil, err
		}
	}
	prepared, err := c.nativePrepare(ctx, query)
	if err != nil {
		return nil, err
	}
	return newStmt(c, prepared, text), nil
}

// nativePrepare is Prepare of the driver.
func (c *conn) nativePrepare(ctx context.Context, query string) (driver.Stmt, error) {
	if d, ok := c.conn.(driver.ConnPrepareContext); ok {
		return d.PrepareContext(ctx, query)
	}
	prepared, err := c.conn.Prepare(query)
	if err == nil && ctx.Err() != nil {
		_ = prepared.Close() // that ctx has ended is what matters
		return nil, ctx.Err()
	}
	return prepared, err
}

// Begin is of driver.Conn.
func (c *conn) Begin() (driver.Tx, error) {
	return c.BeginTx(context.Background(), driver.TxOptions{})
}

// BeginTx is of driver.ConnBeginTx.
func (c *conn) BeginTx(ctx context.Context, options driver.TxOptions) (driver.Tx, error) {
	begun, err := c.nativeBegin(ctx, options)
	if err != nil {
		return nil, err
	}
	c.session.opened(begunWith(ctx))
	return tx{begun, c}, nil
}

// nativeBegin is Begin of the driver.
func (c *conn) nativeBegin(ctx context.Context, options driver.TxOptions) (driver.Tx, error) {
	if d, ok := c.conn.(driver.ConnBeginTx); ok {
		return d.BeginTx(ctx, options)
	}
	switch {
	case options.Isolation != driver.IsolationLevel(sql.LevelDefault):
		return nil, errors.New("sql: driver does not support non-default isolation level")
	case options.ReadOnly:
		return nil, errors.New("sql: driver does not support read-only transactions")
	}
	begun, err := c.conn.Begin() //nolint:staticcheck // drivers still have it
	if err == nil && ctx.Err() != nil {
		_ = begun.Rollback() // that ctx has ended is what matters
		return nil, ctx.Err()
	}
	return begun, err
}

// tx is a transaction that BeginTx began.
type tx struct {
	tx   driver.Tx
	conn *conn
}

func (t tx) Commit() error { return t.conn.ended(t.tx.Commit()) }

func (t tx) Rollback() error { return t.conn.ended(t.tx.Rollback()) }

// Ping is of driver.Pinger.
func (c *conn) Ping(ctx context.Context) error {
	if d, ok := c.conn.(driver.Pinger); ok {
		return d.Ping(ctx)
	}
	return nil
}

// ResetSession is of driver.SessionResetter.
func (c *conn) ResetSession(ctx context.Context) error {
	if c.broken {
		return driver.ErrBadConn
	}
	if d, ok := c.conn.(driver.SessionResetter); ok {
		return d.ResetSession(ctx)
	}
	return nil
}

// IsValid is of driver.Validator.
func (c *conn) IsValid() bool {
	if d, ok := c.conn.(driver.Validator); ok && !d.IsValid() {
		return false
	}
	return !c.broken
}

// CheckNamedValue is of driver.NamedValueChecker.
func (c *conn) CheckNamedValue(value *driver.NamedValue) error {
	if d, ok := c.conn.(driver.NamedValueChecker); ok {
		return d.CheckNamedValue(value)
	}
	return driver.ErrSkip
}
