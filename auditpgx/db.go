package auditpgx

import (
	"context"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/hindsight-go/audit/internal/stamp"
)

// Querier is what a [DB], a [Conn], a [Tx] and everything of pgx that runs
// statements have in common. It is a superset of the DBTX that sqlc generates.
type Querier interface {
	Exec(ctx context.Context, sql string, args ...any) (pgconn.CommandTag, error)
	Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error)
	QueryRow(ctx context.Context, sql string, args ...any) pgx.Row
	SendBatch(ctx context.Context, b *pgx.Batch) pgx.BatchResults
	CopyFrom(ctx context.Context, table pgx.Identifier, columns []string, rows pgx.CopyFromSource) (int64, error)
	Begin(ctx context.Context) (pgx.Tx, error)
}

var (
	_ Querier = (*DB)(nil)
	_ Querier = (*Conn)(nil)
	_ Querier = (*Tx)(nil)
	_ Querier = (*pgxpool.Pool)(nil)
)

// DB is a pool that stamps. All its methods are safe for concurrent use.
type DB struct {
	pool *pgxpool.Pool
	s    *stamp.Stamper
}

// passes reports whether a statement goes to the pool as it is. One that prepares
// others does not: it has to be noted at its connection.
func (db *DB) passes(ctx context.Context, sql string) (context.Context, bool) {
	ctx, ok := db.s.Enter(ctx, sql, false)
	text := db.s.Parse(sql)
	return ctx, !text.Prepares && (!ok || !stamp.Wants(ctx, text))
}

// Exec is Exec of *pgxpool.Pool.
func (db *DB) Exec(ctx context.Context, sql string, args ...any) (pgconn.CommandTag, error) {
	ctx, passes := db.passes(ctx, sql)
	if passes {
		return db.pool.Exec(ctx, sql, args...)
	}
	conn, err := db.pool.Acquire(ctx)
	if err != nil {
		return pgconn.CommandTag{}, err
	}
	defer conn.Release()
	return db.on(conn).exec(ctx, sql, args)
}

func (db *DB) on(conn *pgxpool.Conn) runner { return runner{s: db.s, q: lone{conn.Conn()}} }

// Query is Query of *pgxpool.Pool.
func (db *DB) Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error) {
	ctx, passes := db.passes(ctx, sql)
	if passes {
		return db.pool.Query(ctx, sql, args...)
	}
	return db.query(ctx, sql, args)
}

// query is Query of what does not pass.
func (db *DB) query(ctx context.Context, sql string, args []any) (pgx.Rows, error) {
	conn, err := db.pool.Acquire(ctx)
	if err != nil {
		return failedRows{err: err}, err
	}
	rows, err := db.on(conn).query(ctx, sql, args)
	if err != nil {
		rows.Close()
		conn.Release()
		return failedRows{err: err}, err
	}
	return &pooledRows{Rows: rows, conn: conn}, nil
}

// QueryRow is QueryRow of *pgxpool.Pool.
func (db *DB) QueryRow(ctx context.Context, sql string, args ...any) pgx.Row {
	ctx, passes := db.passes(ctx, sql)
	if passes {
		return db.pool.QueryRow(ctx, sql, args...)
	}
	rows, _ := db.query(ctx, sql, args) //nolint:sqlclosecheck // Scan closes them and gives the error
	return row{rows}
}

// SendBatch is SendBatch of *pgxpool.Pool.
func (db *DB) SendBatch(ctx context.Context, b *pgx.Batch) pgx.BatchResults {
	ctx, ok := enterBatch(ctx, db.s, b, false)
	if !ok && !prepares(db.s, b) {
		br := db.pool.SendBatch(ctx, b)
		if br.Tx() == nil {
			return br
		}
		return &batchResults{BatchResults: br, runner: runner{s: db.s}}
	}
	conn, err := db.pool.Acquire(ctx)
	if err != nil {
		return pgx.FailedBatchResults(b, err)
	}
	return &pooledBatch{BatchResults: db.on(conn).batch(ctx, b), conn: conn}
}

// CopyFrom is CopyFrom of *pgxpool.Pool. With a context to stamp it is a
// transaction of its own, which takes more round trips.
func (db *DB) CopyFrom(ctx context.Context, table pgx.Identifier, columns []string, rows pgx.CopyFromSource) (int64, error) {
	ctx, ok := db.s.Enter(ctx, stamp.CopyFrom, false)
	if !ok {
		return db.pool.CopyFrom(ctx, table, columns, rows)
	}
	conn, err := db.pool.Acquire(ctx)
	if err != nil {
		return 0, err
	}
	defer conn.Release()
	return db.on(conn).copyFrom(ctx, table, columns, rows)
}

// Begin begins a transaction that stamps.
func (db *DB) Begin(ctx context.Context) (pgx.Tx, error) { return db.BeginTx(ctx, pgx.TxOptions{}) }

// BeginTx begins a transaction that stamps.
func (db *DB) BeginTx(ctx context.Context, options pgx.TxOptions) (pgx.Tx, error) {
	tx, err := db.pool.BeginTx(ctx, options)
	if err != nil {
		return nil, err
	}
	return begun(tx, db.s, options), nil
}

// Acquire takes a connection that stamps out of the pool. Release it.
func (db *DB) Acquire(ctx context.Context) (*Conn, error) {
	conn, err := db.pool.Acquire(ctx)
	if err != nil {
		return nil, err
	}
	c := newConn(conn.Conn(), db.s)
	c.release = conn.Release
	return c, nil
}

// AcquireFunc calls fn with a connection that stamps, for the time of the call.
func (db *DB) AcquireFunc(ctx context.Context, fn func(*Conn) error) error {
	conn, err := db.Acquire(ctx)
	if err != nil {
		return err
	}
	defer conn.Release()
	return fn(conn)
}

// Ping is Ping of *pgxpool.Pool.
func (db *DB) Ping(ctx context.Context) error { return db.pool.Ping(ctx) }

// Close closes the pool.
func (db *DB) Close() { db.pool.Close() }

// Pool returns the pool of pgx, which does not stamp.
func (db *DB) Pool() *pgxpool.Pool { return db.pool }

// Stats counts what became of contexts. The DBs, Conns and transactions of the
// package-level functions count together, those of a [Config] by themselves.
func (db *DB) Stats() Stats { return Stats(db.s.Stats()) }

// pooledRows are rows that release their connection when they are closed.
type pooledRows struct {
	pgx.Rows
	conn *pgxpool.Conn // nil when released
}

func (r *pooledRows) Close() {
	r.Rows.Close()
	r.release()
}

// release gives the connection back. pgxpool closes one that is still busy.
func (r *pooledRows) release() {
	if r.conn != nil {
		r.conn.Release()
		r.conn = nil
	}
}

func (r *pooledRows) Next() bool {
	if r.Rows.Next() {
		return true
	}
	r.Close()
	return false
}

// Scan releases the connection also if a Scanner of the caller panics.
func (r *pooledRows) Scan(dest ...any) error {
	panicked := true
	defer func() {
		if panicked {
			r.release()
		}
	}()
	err := r.Rows.Scan(dest...)
	panicked = false
	if err != nil {
		r.Close()
	}
	return err
}

func (r *pooledRows) Values() ([]any, error) {
	values, err := r.Rows.Values()
	if err != nil {
		r.Close()
	}
	return values, err
}

// pooledBatch releases its connection when it is closed, or when the transaction
// that it began is over.
type pooledBatch struct {
	pgx.BatchResults
	conn *pgxpool.Conn // nil when released
}

func (b *pooledBatch) Close() error {
	err := b.BatchResults.Close()
	if b.conn == nil {
		return err
	}
	if tx, ok := b.Tx().(*Tx); ok && !tx.closed && b.conn.Conn().PgConn().TxStatus() != 'I' {
		tx.done = b.release
		return err
	}
	b.release()
	return err
}

func (b *pooledBatch) release() {
	if b.conn != nil {
		b.conn.Release()
		b.conn = nil
	}
}
