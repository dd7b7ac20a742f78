package auditpgx

import (
	"context"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// query is Query.
func (r runner) query(ctx context.Context, sql string, args []any) (pgx.Rows, error) {
	c, content := r.prepare(ctx, true, sql, args)
	if content == nil {
		return r.queryNative(ctx, c)
	}
	if c.text.First > 0 || c.text.Ends {
		// pgx gives the rows of the first of several statements.
		r.s.Lose(ctx, errControl)
		return r.queryNative(ctx, c)
	}
	simple := c.mode == pgx.QueryExecModeSimpleProtocol
	switch {
	case c.unfitForPipeline():
		if err := r.aloneOrLost(ctx, c, content); err != nil {
			return failedRows{err: err}, err
		}
		return r.queryNative(ctx, c)
	case c.sd != nil:
	case c.named && (simple || !c.isDefault(r.state()) || r.status() == 'T'):
		// The name of a prepared statement, which only pgx can look up.
		if err := r.aloneOrLost(ctx, c, content); err != nil {
			return failedRows{err: err}, err
		}
		return r.queryNative(ctx, c)
	case c.named, simple && c.isDefault(r.state()):
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
	r.ranText(c.original, c.text)
	return rows, err
}

// querySimple puts the stamp behind the statement, since pgx gives the rows of
// the first. As the only stamp of its transaction it holds for all changes. A
// refusal takes the statement along, so nobody may have seen its rows by then:
// they are read to their end first.
func (r runner) querySimple(ctx context.Context, c call, content []byte) (pgx.Rows, error) {
	s := r.pending(content)
	rows, err := r.q.Query(ctx, c.original, c.with(c.sql+"\n;"+r.s.Text(s.content))...)
	if err != nil {
		return rows, err
	}
	read := readAll(rows, r.q.Conn())
	switch {
	case read.end == nil:
		r.took(s)
	case r.isSimpleRefusal(ctx, read.end):
		if err := r.undo(ctx, s, read.end); err != nil {
			return failedRows{err: err}, err
		}
		return r.queryNative(ctx, c)
	}
	return read, nil
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
		shift(err, "", results.before)
		results.traced(pgconn.CommandTag{}, err)
		if s.status == 'I' && mustBeAlone(err) {
			r.s.Lose(ctx, err)
			return r.queryNative(ctx, c)
		}
		err = plain(err)
		return failedRows{err: err}, err
	}
	// From here on pgx tells the tracer of queries when the rows are closed.
	return &stampedRows{Rows: rows, conn: r.q.Conn(), finish: func(err error) error {
		shift(err, "", results.before)
		return plain(results.Close())
	}}, nil
}
