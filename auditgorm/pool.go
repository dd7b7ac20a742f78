package auditgorm

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"runtime"
	"sync"
	"sync/atomic"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/stdlib"

	"github.com/hindsight-go/audit/auditsql"
)

// pool is a gorm.ConnPool and gorm.TxBeginner over the pool that GORM has, which goes
// on being that of db.DB(), with its connections, limits and end.
type pool struct {
	bare     *sql.DB
	stamping *sql.DB     // borrows each connection from bare and keeps none
	stamped  atomic.Bool // bare turned out to stamp by itself
	asked    atomic.Bool // whether it does is known
}

func newPool(connections *auditsql.Connector, bare *sql.DB) *pool {
	p := &pool{bare: bare, stamping: sql.OpenDB(&connector{bare: bare, connections: connections})}
	p.stamping.SetMaxIdleConns(-1)
	// It has a goroutine, and nobody who closes it.
	runtime.AddCleanup(p, func(db *sql.DB) { _ = db.Close() }, p.stamping)
	return p
}

// db returns the pool to write through. The first time it finds out whether that of GORM
// stamps by itself. Unless there is an answer, what follows meets the same error.
func (p *pool) db(ctx context.Context) *sql.DB {
	if !p.asked.Load() {
		if stamped, err := stamps(ctx, p.bare); err == nil {
			p.stamped.Store(stamped)
			p.asked.Store(true)
		}
	}
	if p.stamped.Load() {
		return p.bare
	}
	return p.stamping
}

// stamps is auditsql.Stamps that does not ask a connection of pgx, which never does.
func stamps(ctx context.Context, db *sql.DB) (stamped bool, err error) {
	conn, err := db.Conn(ctx)
	if err != nil {
		return false, err
	}
	defer func() { _ = conn.Close() }()
	bare := false
	err = conn.Raw(func(c any) error { _, bare = c.(*stdlib.Conn); return nil })
	if err != nil || bare {
		return false, err
	}
	return auditsql.Stamps(ctx, conn)
}

// PrepareContext is of gorm.ConnPool.
func (p *pool) PrepareContext(ctx context.Context, query string) (*sql.Stmt, error) {
	return p.db(ctx).PrepareContext(ctx, query)
}

// ExecContext is of gorm.ConnPool.
func (p *pool) ExecContext(ctx context.Context, query string, args ...any) (sql.Result, error) {
	return p.db(ctx).ExecContext(ctx, query, args...)
}

// QueryContext is of gorm.ConnPool.
func (p *pool) QueryContext(ctx context.Context, query string, args ...any) (*sql.Rows, error) {
	return p.db(ctx).QueryContext(ctx, query, args...)
}

// QueryRowContext is of gorm.ConnPool.
func (p *pool) QueryRowContext(ctx context.Context, query string, args ...any) *sql.Row {
	return p.db(ctx).QueryRowContext(ctx, query, args...)
}

// BeginTx is of gorm.TxBeginner. Programs expect a *sql.Tx as the ConnPool of a
// transaction.
func (p *pool) BeginTx(ctx context.Context, options *sql.TxOptions) (*sql.Tx, error) {
	return p.db(ctx).BeginTx(ctx, options)
}

// GetDBConn is of gorm.GetDBConnector.
func (p *pool) GetDBConn() (*sql.DB, error) { return p.bare, nil }

// Ping is what gorm.Open looks for.
func (p *pool) Ping() error { return p.bare.Ping() } //nolint:noctx // GORM gives none

// connector makes connections that stamp out of those of a pool.
type connector struct {
	bare        *sql.DB
	connections *auditsql.Connector

	once   sync.Once // makes caches and mode
	caches bool      // the pool's connections are pgx's and cache statements
	mode   pgx.QueryExecMode
}

// ourDriver is the driver of a pool, by which those of ours are known.
type ourDriver struct{ driver.Driver }

// Driver is of driver.Connector.
func (c *connector) Driver() driver.Driver { return ourDriver{c.bare.Driver()} }

// lentKey is the key of the driver.Conn in the ctx of a Connect of lent.
type lentKey struct{}

// lent is a connector whose connection is in the ctx. With it an auditsql.Connector
// wraps connections that were made elsewhere.
type lent struct{}

func (lent) Connect(ctx context.Context) (driver.Conn, error) {
	return ctx.Value(lentKey{}).(driver.Conn), nil
}

func (lent) Driver() driver.Driver { return nil }

// Connect is of driver.Connector.
func (c *connector) Connect(ctx context.Context) (driver.Conn, error) {
	stamping, lease, err := c.lend(ctx)
	if err != nil {
		return nil, err
	}
	return &conn{stampingConn: stamping, lease: lease, of: c}, nil
}

// lend takes a connection from the pool, and makes one that stamps out of it. The
// driver's connection is used beyond Raw, but only as long as it is lent: nobody else has
// it meanwhile.
func (c *connector) lend(ctx context.Context) (stampingConn, *sql.Conn, error) {
	lease, err := c.bare.Conn(ctx)
	if err != nil {
		return nil, nil, err
	}
	var bare driver.Conn
	err = lease.Raw(func(conn any) error { bare = conn.(driver.Conn); return nil })
	if err != nil {
		_ = lease.Close() // err says more
		return nil, nil, err
	}
	c.once.Do(func() {
		if conn, ok := bare.(*stdlib.Conn); ok {
			config := conn.Conn().Config()
			c.caches, c.mode = config.StatementCacheCapacity > 0, config.DefaultQueryExecMode
		}
	})
	wrapped, err := c.connections.Connect(context.WithValue(ctx, lentKey{}, bare))
	stamping, ok := wrapped.(stampingConn)
	if err == nil && !ok {
		err = fmt.Errorf("auditgorm: cannot stamp through a connection of type %T", bare)
	}
	if err != nil {
		_ = lease.Close() // err says more
		return nil, nil, err
	}
	return stamping, lease, nil
}

// stampingConn is what all connections of auditsql have.
type stampingConn interface {
	driver.Conn
	driver.ConnBeginTx
	driver.ConnPrepareContext
	driver.NamedValueChecker
	driver.Pinger
}

// conn is a connection that stamps, on lease.
type conn struct {
	stampingConn
	lease *sql.Conn
	of    *connector
	used  bool // something depends on the connection: a transaction, a statement, rows
	dead  bool // the driver said driver.ErrBadConn
}

// first runs what may be the first thing on c. When the driver says that the connection
// was dead before, and so nothing was sent, it goes on to the next: database/sql makes a
// new connection after two dead ones, but of our pool, for which each is a new one. It
// has no more dead ones to offer than are open.
func first[T any](ctx context.Context, c *conn, run func(stampingConn) (T, error)) (T, error) {
	for left := -1; ; left-- {
		result, err := run(c.stampingConn)
		if !errors.Is(err, driver.ErrBadConn) {
			c.used = c.used || !errors.Is(err, driver.ErrSkip)
			return result, err
		}
		c.dead = true
		if left < 0 {
			left = c.of.bare.Stats().OpenConnections
		}
		if c.used || left == 0 {
			return result, err
		}
		c.giveBack()
		stamping, lease, err := c.of.lend(ctx)
		if err != nil {
			return result, err
		}
		c.stampingConn, c.lease, c.dead = stamping, lease, false
	}
}

// BeginTx is of driver.ConnBeginTx.
func (c *conn) BeginTx(ctx context.Context, options driver.TxOptions) (driver.Tx, error) {
	return first(ctx, c, func(on stampingConn) (driver.Tx, error) { return on.BeginTx(ctx, options) })
}

// ExecContext is of driver.ExecerContext.
func (c *conn) ExecContext(ctx context.Context, query string, args []driver.NamedValue) (driver.Result, error) {
	return first(ctx, c, func(on stampingConn) (driver.Result, error) {
		if execer, ok := on.(driver.ExecerContext); ok {
			return execer.ExecContext(ctx, query, args)
		}
		return nil, driver.ErrSkip
	})
}

// QueryContext is of driver.QueryerContext.
func (c *conn) QueryContext(ctx context.Context, query string, args []driver.NamedValue) (driver.Rows, error) {
	return first(ctx, c, func(on stampingConn) (driver.Rows, error) {
		if queryer, ok := on.(driver.QueryerContext); ok {
			return queryer.QueryContext(ctx, query, args)
		}
		return nil, driver.ErrSkip
	})
}

// PrepareContext is of driver.ConnPrepareContext. The connection goes back before the
// statement is run again, so it is left to the connection's cache to keep what is
// prepared.
func (c *conn) PrepareContext(ctx context.Context, query string) (driver.Stmt, error) {
	if !c.of.caches || query == "" {
		return first(ctx, c, func(on stampingConn) (driver.Stmt, error) { return on.PrepareContext(ctx, query) })
	}
	s := &stmt{conn: c, query: query}
	if c.of.mode != pgx.QueryExecModeCacheStatement {
		s.mode = []driver.NamedValue{{Value: pgx.QueryExecModeCacheStatement}}
	}
	return s, nil
}

// IsValid is of driver.Validator. What is not valid is closed, and so given back,
// rather than kept.
func (c *conn) IsValid() bool { return false }

// Close is of driver.Conn. It gives the connection back.
func (c *conn) Close() error {
	c.giveBack()
	return nil
}

// giveBack gives the connection back, or has it closed.
func (c *conn) giveBack() {
	v, ok := c.stampingConn.(driver.Validator)
	if c.dead || ok && !v.IsValid() {
		_ = c.lease.Raw(func(any) error { return driver.ErrBadConn }) // has it closed
	}
	_ = c.lease.Close() // it is given back, or was closed
}

// stmt is a statement that pgx prepares when it is run.
type stmt struct {
	conn  *conn
	query string
	mode  []driver.NamedValue
}

// Close is of driver.Stmt.
func (s *stmt) Close() error { return nil }

// NumInput is of driver.Stmt.
func (s *stmt) NumInput() int { return -1 }

// Exec is of driver.Stmt.
func (s *stmt) Exec([]driver.Value) (driver.Result, error) { return nil, driver.ErrSkip }

// Query is of driver.Stmt.
func (s *stmt) Query([]driver.Value) (driver.Rows, error) { return nil, driver.ErrSkip }

// ExecContext is of driver.StmtExecContext.
func (s *stmt) ExecContext(ctx context.Context, args []driver.NamedValue) (driver.Result, error) {
	return s.conn.ExecContext(ctx, s.query, s.inMode(args))
}

// QueryContext is of driver.StmtQueryContext.
func (s *stmt) QueryContext(ctx context.Context, args []driver.NamedValue) (driver.Rows, error) {
	return s.conn.QueryContext(ctx, s.query, s.inMode(args))
}

// inMode puts the mode before the arguments, where pgx looks for it.
func (s *stmt) inMode(args []driver.NamedValue) []driver.NamedValue {
	if s.mode == nil {
		return args
	}
	return append(s.mode[:1:1], args...)
}
