package auditpgx

import (
	"context"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/hindsight-go/audit/internal/stamp"
)

// Conn is a connection that stamps. Like a *pgx.Conn it is for one goroutine at a
// time.
type Conn struct {
	conn    *pgx.Conn // nil if released
	s       *stamp.Stamper
	release func() // nil if it is the caller's own, or released
}

func newConn(conn *pgx.Conn, s *stamp.Stamper) *Conn { return &Conn{conn: conn, s: s} }

// open returns the connection. A released one may be somebody else's by now, in the
// midst of a transaction. As in pgxpool using it is a fault of the program, so it
// panics.
func (c *Conn) open() *pgx.Conn {
	if c.conn == nil {
		panic("auditpgx: Conn used after Release")
	}
	return c.conn
}

func (c *Conn) runner() runner { return runner{s: c.s, q: lone{c.open()}} }

// Exec is Exec of *pgx.Conn.
func (c *Conn) Exec(ctx context.Context, sql string, args ...any) (pgconn.CommandTag, error) {
	ctx, ok := c.s.Enter(ctx, sql, false)
	if !ok {
		tag, err := c.open().Exec(ctx, sql, args...)
		c.runner().ran(sql)
		return tag, err
	}
	return c.runner().exec(ctx, sql, args)
}

// Query is Query of *pgx.Conn.
func (c *Conn) Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error) {
	ctx, ok := c.s.Enter(ctx, sql, false)
	if !ok {
		rows, err := c.open().Query(ctx, sql, args...)
		c.runner().ran(sql)
		return rows, err
	}
	return c.runner().query(ctx, sql, args)
}

// QueryRow is QueryRow of *pgx.Conn.
func (c *Conn) QueryRow(ctx context.Context, sql string, args ...any) pgx.Row {
	ctx, ok := c.s.Enter(ctx, sql, false)
	if !ok {
		row := c.open().QueryRow(ctx, sql, args...)
		c.runner().ran(sql)
		return row
	}
	rows, _ := c.runner().query(ctx, sql, args) //nolint:sqlclosecheck // Scan closes them and gives the error
	return row{rows}
}

// SendBatch is SendBatch of *pgx.Conn.
func (c *Conn) SendBatch(ctx context.Context, b *pgx.Batch) pgx.BatchResults {
	ctx, _ = enterBatch(ctx, c.s, b, false)
	return c.runner().batch(ctx, b)
}

// CopyFrom is CopyFrom of *pgx.Conn. With a context to stamp, and outside a
// transaction, it is a transaction of its own, which takes more round trips.
func (c *Conn) CopyFrom(ctx context.Context, table pgx.Identifier, columns []string, rows pgx.CopyFromSource) (int64, error) {
	ctx, ok := c.s.Enter(ctx, stamp.CopyFrom, false)
	if !ok {
		return c.open().CopyFrom(ctx, table, columns, rows)
	}
	return c.runner().copyFrom(ctx, table, columns, rows)
}

// Begin begins a transaction that stamps.
func (c *Conn) Begin(ctx context.Context) (pgx.Tx, error) { return c.BeginTx(ctx, pgx.TxOptions{}) }

// BeginTx begins a transaction that stamps.
func (c *Conn) BeginTx(ctx context.Context, options pgx.TxOptions) (pgx.Tx, error) {
	tx, err := c.open().BeginTx(ctx, options)
	if err != nil {
		return nil, err
	}
	return begun(tx, c.s, options), nil
}

// Prepare is Prepare of *pgx.Conn.
func (c *Conn) Prepare(ctx context.Context, name, sql string) (*pgconn.StatementDescription, error) {
	sd, err := c.open().Prepare(ctx, name, sql)
	c.runner().prepared(name, sql, err)
	return sd, err
}

// Ping is Ping of *pgx.Conn.
func (c *Conn) Ping(ctx context.Context) error { return c.open().Ping(ctx) }

// Conn returns the connection of pgx, which does not stamp. What is known of prepared
// statements is forgotten, since it may be used to prepare others.
func (c *Conn) Conn() *pgx.Conn {
	conn := c.open()
	stateOf(conn).names = nil
	return conn
}

// Release gives a connection that was acquired from a [DB] back. For others, and
// the second time, it does nothing. The other methods panic behind it, but for Close
// and Stats: the connection may be somebody else's by then.
func (c *Conn) Release() {
	if c.release != nil {
		c.release()
		c.release, c.conn = nil, nil
	}
}

// Close closes the connection. One that was acquired from a [DB] is released as
// well.
func (c *Conn) Close(ctx context.Context) error {
	if c.conn == nil {
		return nil
	}
	err := c.conn.Close(ctx)
	c.Release()
	return err
}

// Stats counts what became of the contexts that went through the DB or the
// Config that the connection is from.
func (c *Conn) Stats() Stats { return Stats(c.s.Stats()) }
