package auditpgx

import (
	"context"
	"fmt"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgtype"
)

// query is Query.
func (r runner) query(ctx context.Context, sql string, args []any) (pgx.Rows, error) {
	c, class, content := r.prepare(ctx, true, sql, args)
	if content == nil {
		return r.queryNative(ctx, c)
	}
	simple := c.mode == pgx.QueryExecModeSimpleProtocol
	switch {
	case class == unknown && (simple || !c.isDefault(r.state()) || r.status() == 'T'):
		// The name of a prepared statement, which only pgx can look up.
		if err := r.aloneOrLost(ctx, content); err != nil {
			return failedRows{err: err}, err
		}
		return r.queryNative(ctx, c)
	case class == unknown, simple && c.isDefault(r.state()):
		return r.queryBatch(ctx, c, content)
	case simple && r.status() == 'T':
		if err := r.alone(ctx, content); err != nil {
			return failedRows{err: err}, err
		}
		return r.queryNative(ctx, c)
	case simple:
		return r.querySimple(ctx, c, content)
	case !isExtended(c.mode):
		return r.queryNative(ctx, c) // pgx says what is wrong
	}
	return r.queryPipeline(ctx, c, content)
}

func isExtended(mode pgx.QueryExecMode) bool {
	switch mode {
	case pgx.QueryExecModeCacheStatement, pgx.QueryExecModeCacheDescribe, pgx.QueryExecModeDescribeExec, pgx.QueryExecModeExec:
		return true
	}
	return false
}

func (r runner) queryNative(ctx context.Context, c call) (pgx.Rows, error) {
	rows, err := r.q.Query(ctx, c.original, c.native()...)
	r.ran(c.original)
	return rows, err
}

// querySimple puts the stamp behind the statement, since pgx gives the rows of
// the first. As the only stamp of its transaction it holds for all changes.
func (r runner) querySimple(ctx context.Context, c call, content []byte) (pgx.Rows, error) {
	if !r.state().proven {
		// Once its rows are read the statement cannot be run again, so a refusal
		// has to be known before. Alone, the stamp is of no effect.
		if err := r.alone(ctx, content); err != nil {
			return failedRows{err: err}, err
		}
		if r.state().refused {
			return r.queryNative(ctx, c)
		}
	}
	rows, err := r.q.Query(ctx, c.original, c.with(c.sql+"\n;"+r.s.text(content))...)
	if err != nil {
		return rows, err
	}
	return &stampedRows{Rows: rows, conn: r.q.Conn(), finish: func(err error) error {
		if err == nil {
			r.s.stamped.Add(1)
		}
		return nil
	}}, nil
}

// queryBatch runs a stamp and a statement as one batch.
func (r runner) queryBatch(ctx context.Context, c call, content []byte) (pgx.Rows, error) {
	results, s, err := r.sendPair(ctx, c, content)
	if results == nil {
		if err != nil {
			return failedRows{err: err}, err
		}
		return r.queryNative(ctx, c)
	}
	rows, err := results.Query()
	if err != nil {
		_ = results.Close() // the same
		shift(err, results.before)
		results.traced(pgconn.CommandTag{}, err)
		if s.status == 'I' && mustBeAlone(err) {
			r.s.lose(ctx, err)
			return r.queryNative(ctx, c)
		}
		err = plain(err)
		return failedRows{err: err}, err
	}
	// From here on pgx tells the tracer of queries when the rows are closed.
	return &stampedRows{Rows: rows, conn: r.q.Conn(), finish: func(err error) error {
		shift(err, results.before)
		return plain(results.Close())
	}}, nil
}

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
