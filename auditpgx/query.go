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
	st := r.state()
	switch {
	case class == unknown && (st.mode == pgx.QueryExecModeSimpleProtocol || !c.isDefault(st)):
		// The name of a prepared statement, which only pgx can look up.
		if err := r.aloneOrLost(ctx, content); err != nil {
			return failedRows{err: err}, err
		}
		return r.queryNative(ctx, c)
	case c.isDefault(st):
		return r.queryBatch(ctx, c, content)
	case r.status() != 'I':
		if err := r.alone(ctx, content); err != nil {
			return failedRows{err: err}, err
		}
		return r.queryNative(ctx, c)
	case c.mode == pgx.QueryExecModeSimpleProtocol:
		return r.querySimple(ctx, c, content)
	}
	return r.queryPipeline(ctx, c, content)
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
		results.traced(pgconn.CommandTag{}, err)
		if s.status == 'I' && mustBeAlone(err) {
			r.s.lose(ctx, err)
			return r.queryNative(ctx, c)
		}
		err = plain(err)
		return failedRows{err: err}, err
	}
	// From here on pgx tells the tracer of queries when the rows are closed.
	return &stampedRows{Rows: rows, conn: r.q.Conn(), finish: func(error) error { return plain(results.Close()) }}, nil
}

// maxDescriptions bounds the descriptions kept for a connection.
const maxDescriptions = 256

// describe returns the description of a statement that is called in another way
// than the connection's default, for which pgx's own caches do not serve. The
// first time costs a round trip, as it does without us.
func (r runner) describe(ctx context.Context, c call) (*pgconn.StatementDescription, error) {
	st := r.state()
	if sd := st.descriptions[c.sql]; sd != nil && c.mode != pgx.QueryExecModeDescribeExec {
		return sd, nil
	}
	sd, err := r.q.Conn().Prepare(ctx, "", c.sql)
	if err != nil {
		return nil, err
	}
	if st.descriptions == nil || len(st.descriptions) >= maxDescriptions {
		st.descriptions = map[string]*pgconn.StatementDescription{}
	}
	st.descriptions[c.sql] = sd
	return sd, nil
}

// queryPipeline runs a stamp and a statement that asks for an execution mode or
// for formats of its own, outside a transaction.
func (r runner) queryPipeline(ctx context.Context, c call, content []byte) (pgx.Rows, error) {
	conn := r.q.Conn()
	tracer := conn.Config().Tracer
	ended := func(pgconn.CommandTag, error) {}
	if tracer != nil {
		ctx = tracer.TraceQueryStart(ctx, conn, pgx.TraceQueryStartData{SQL: c.original, Args: c.native()})
		ended = func(tag pgconn.CommandTag, err error) {
			tracer.TraceQueryEnd(ctx, conn, pgx.TraceQueryEndData{CommandTag: tag, Err: err})
		}
	}
	failed := func(err error) (pgx.Rows, error) {
		delete(r.state().descriptions, c.sql)
		ended(pgconn.CommandTag{}, err)
		return failedRows{err: err}, err
	}
	var builder pgx.ExtendedQueryBuilder
	var oids []uint32
	formats := []int16(c.formats)
	if c.mode == pgx.QueryExecModeExec {
		if err := builder.Build(conn.TypeMap(), nil, c.args); err != nil {
			return failed(err)
		}
		formats = builder.ResultFormats
	} else {
		sd, err := r.describe(ctx, c)
		if err != nil {
			return failed(err)
		}
		if len(sd.ParamOIDs) != len(c.args) {
			return failed(fmt.Errorf("expected %d arguments, got %d", len(sd.ParamOIDs), len(c.args)))
		}
		if err := builder.Build(conn.TypeMap(), sd, c.args); err != nil {
			return failed(err)
		}
		oids = sd.ParamOIDs
		switch {
		case c.byOID != nil:
			formats = make([]int16, len(sd.Fields))
			for i := range formats {
				formats[i] = c.byOID[sd.Fields[i].DataTypeOID]
			}
		case formats == nil:
			formats = builder.ResultFormats
		}
	}
	s := r.stamp(content)
	pipeline := conn.PgConn().StartPipeline(ctx)
	pipeline.SendQueryParams(r.s.sql, [][]byte{[]byte(r.s.prefix), s.content}, []uint32{pgtype.TextOID, pgtype.TextOID}, nil, nil)
	pipeline.SendQueryParams(c.sql, builder.ParamValues, oids, builder.ParamFormats, formats)
	err := pipeline.Sync()
	if err == nil {
		_, err = readResult(pipeline, func(rr *pgconn.ResultReader) error {
			_, err := rr.Close()
			return err
		})
	}
	if err != nil {
		_ = pipeline.Close() // the same
		if !r.isRefusal(ctx, err) {
			return failed(err)
		}
		if err := r.undo(ctx, s, err); err != nil {
			return failed(err)
		}
		ended(pgconn.CommandTag{}, nil)
		return r.queryNative(ctx, c)
	}
	r.took(s)
	reader, err := readResult(pipeline, func(*pgconn.ResultReader) error { return nil })
	if err != nil {
		_ = pipeline.Close() // the same
		return failed(err)
	}
	rows := &stampedRows{Rows: pgx.RowsFromResultReader(conn.TypeMap(), reader), conn: conn}
	rows.finish = func(err error) error {
		closeErr := pipeline.Close()
		if err == nil {
			err = closeErr
		}
		if err != nil {
			delete(r.state().descriptions, c.sql)
		}
		ended(rows.Rows.CommandTag(), err)
		return closeErr
	}
	return rows, nil
}

// readResult gives the next result of a pipeline to read.
func readResult(pipeline *pgconn.Pipeline, read func(*pgconn.ResultReader) error) (*pgconn.ResultReader, error) {
	result, err := pipeline.GetResults()
	if err != nil {
		return nil, err
	}
	reader, ok := result.(*pgconn.ResultReader)
	if !ok {
		return nil, fmt.Errorf("auditpgx: unexpected result %T", result)
	}
	return reader, read(reader)
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
