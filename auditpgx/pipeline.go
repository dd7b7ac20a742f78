package auditpgx

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgtype"
)

// A statement with arguments is not sent with its stamp as a pgx.Batch but by a
// pipeline of our own: a batch whose arguments cannot be encoded closes the
// connection, and there are no execution modes and result formats in it.

// encoded is a statement with its arguments, ready to be sent.
type encoded struct {
	sql     string
	sd      *pgconn.StatementDescription // nil if it is not prepared
	builder pgx.ExtendedQueryBuilder
	oids    []uint32
	formats []int16
}

func (e *encoded) send(pipeline *pgconn.Pipeline) {
	if e.sd != nil {
		pipeline.SendQueryStatement(e.sd, e.builder.ParamValues, e.builder.ParamFormats, e.formats)
		return
	}
	pipeline.SendQueryParams(e.sql, e.builder.ParamValues, e.oids, e.builder.ParamFormats, e.formats)
}

// encode prepares or describes the statement, as its mode asks for, and encodes
// its arguments.
func (r runner) encode(ctx context.Context, c call) (*encoded, error) {
	conn := r.q.Conn()
	e := &encoded{sql: c.sql}
	if c.mode == pgx.QueryExecModeExec && c.sd == nil {
		if err := e.builder.Build(conn.TypeMap(), nil, c.args); err != nil {
			return nil, err
		}
		e.formats = e.builder.ResultFormats
		return e, nil
	}
	sd := c.sd
	if sd == nil {
		var err error
		if sd, err = r.describe(ctx, c); err != nil {
			return nil, err
		}
	}
	if c.isQuery && len(sd.ParamOIDs) != len(c.args) {
		return nil, fmt.Errorf("expected %d arguments, got %d", len(sd.ParamOIDs), len(c.args))
	}
	if err := e.builder.Build(conn.TypeMap(), sd, c.args); err != nil {
		return nil, err
	}
	e.oids = sd.ParamOIDs
	switch {
	case c.byOID != nil:
		e.formats = make([]int16, len(sd.Fields))
		for i := range e.formats {
			e.formats[i] = c.byOID[sd.Fields[i].DataTypeOID]
		}
	case c.formats != nil:
		e.formats = c.formats
	default:
		e.formats = e.builder.ResultFormats
	}
	if c.sd != nil || sd.Name != "" {
		e.sd = sd
	}
	return e, nil
}

// describe returns the description of a statement. Where it is not known that is
// a round trip, as it is in pgx.
func (r runner) describe(ctx context.Context, c call) (*pgconn.StatementDescription, error) {
	conn, st := r.q.Conn(), r.state()
	switch c.mode {
	case pgx.QueryExecModeCacheStatement:
		if st.prepared.limit <= 0 {
			return nil, errors.New("cannot use QueryExecModeCacheStatement with disabled statement cache")
		}
		for _, old := range st.prepared.dropped() {
			if old.Name == "" {
				continue
			}
			if err := conn.Deallocate(ctx, old.Name); err != nil {
				return nil, err
			}
		}
		if sd := st.prepared.get(c.sql); sd != nil {
			if sd.Name == "" {
				return sd, nil
			}
			// It is known to pgx, too, so this asks the server only if somebody
			// deallocated it since.
			return conn.Prepare(ctx, sd.Name, c.sql)
		}
		name := ""
		if _, traced := st.tracer.(pgx.PrepareTracer); !traced {
			sum := sha256.Sum256([]byte(c.sql))
			name = "auditpgx_" + hex.EncodeToString(sum[:16])
		} // else the tracer would see pgx being asked, each time
		sd, err := conn.Prepare(ctx, name, c.sql)
		if err == nil {
			st.prepared.put(c.sql, sd)
		}
		return sd, err
	case pgx.QueryExecModeCacheDescribe:
		if st.described.limit <= 0 {
			return nil, errors.New("cannot use QueryExecModeCacheDescribe with disabled description cache")
		}
		st.described.dropped()
		if sd := st.described.get(c.sql); sd != nil {
			return sd, nil
		}
		sd, err := conn.Prepare(ctx, "", c.sql)
		if err == nil {
			st.described.put(c.sql, sd)
		}
		return sd, err
	default:
		return conn.Prepare(ctx, "", c.sql)
	}
}

// invalidate drops what is known of a statement after any error, as pgx does: it may
// come from a table that was altered since, and not all of those come from the server.
func (r runner) invalidate(sql string, err error) {
	if err == nil {
		return
	}
	st := r.state()
	st.prepared.drop(sql)
	st.described.drop(sql)
}

// sent is a statement that was sent behind a stamp, which is through.
type sent struct {
	runner   runner
	sql      string
	pipeline *pgconn.Pipeline
	reader   *pgconn.ResultReader
	err      error // the server's, before there was anything to read
	traced   func(pgconn.CommandTag, error)
}

// finish ends the pipeline and returns the error that comes behind the
// statement's own, as that of a constraint that is checked at commit.
func (sent *sent) finish(tag pgconn.CommandTag, err error) error {
	closeErr := sent.pipeline.Close()
	if err == nil {
		err = closeErr
	}
	sent.runner.invalidate(sent.sql, err)
	sent.traced(tag, err)
	return closeErr
}

// queryPipeline runs a stamp and a statement together.
func (r runner) queryPipeline(ctx context.Context, c call, content []byte) (pgx.Rows, error) {
	sent, err := r.sendPipeline(ctx, c, content)
	switch {
	case err != nil:
		return failedRows{err: err}, err
	case sent == nil:
		return r.queryNative(ctx, c)
	case sent.err != nil:
		return failedRows{err: sent.err}, nil //nolint:nilerr // as in pgx, it is met in the rows
	}
	conn := r.q.Conn()
	rows := &stampedRows{Rows: pgx.RowsFromResultReader(conn.TypeMap(), sent.reader), conn: conn}
	rows.finish = func(err error) error { return sent.finish(rows.CommandTag(), err) }
	return rows, nil
}

// sendPipeline sends a stamp and a statement together. If the server refused the
// stamp, it returns nil and no error, and the connection is as before.
func (r runner) sendPipeline(ctx context.Context, c call, content []byte) (*sent, error) {
	ctx, traced := r.traceQuery(ctx, c)
	failed := func(err error) (*sent, error) {
		r.invalidate(c.sql, err)
		traced(pgconn.CommandTag{}, err)
		return nil, err
	}
	e, err := r.encode(ctx, c)
	if err != nil {
		return failed(err)
	}
	s := r.pending(content)
	prepared, err := r.preparedStamp(ctx, c, s)
	if err != nil {
		return failed(err)
	}
	conn := r.q.Conn()
	pipeline := conn.PgConn().StartPipeline(ctx)
	err = r.sendStamp(pipeline, s, prepared, e)
	if prepared != nil && isDeallocated(err) {
		_ = pipeline.Close() // the same
		if err := r.forgetPrepared(ctx, s); err != nil {
			return failed(err)
		}
		pipeline = conn.PgConn().StartPipeline(ctx)
		err = r.sendStamp(pipeline, s, nil, e)
	}
	if err != nil {
		_ = pipeline.Close() // the same
		if !r.isRefusal(ctx, err) {
			return failed(err)
		}
		if err := r.undo(ctx, s, err); err != nil {
			return failed(err)
		}
		traced(pgconn.CommandTag{}, nil)
		return nil, nil
	}
	r.took(s)
	reader, err := nextResult(pipeline)
	if err != nil {
		_ = pipeline.Close() // the same
		_, err = failed(err)
		return &sent{err: err}, nil
	}
	return &sent{runner: r, sql: c.sql, pipeline: pipeline, reader: reader, traced: traced}, nil
}

// preparedStamp returns the prepared stamp, or nil if it is to be sent as text:
// where nothing is prepared, and the first time on a connection, which may be
// the only one. It is prepared with the second, for one round trip in the life of
// the connection.
func (r runner) preparedStamp(ctx context.Context, c call, s pending) (*pgconn.StatementDescription, error) {
	st := r.state()
	if _, traced := st.tracer.(pgx.PrepareTracer); traced || c.mode != pgx.QueryExecModeCacheStatement || !st.proven {
		return nil, nil
	}
	// If it is prepared this asks nobody: pgx keeps it by name, and forgets it
	// when the caller deallocates.
	return r.q.Conn().Prepare(ctx, r.s.Name(s.guarded), r.s.SQL(s.guarded))
}

// forgetPrepared brings the connection back to where it was before a stamp whose
// prepared statement is gone, by DISCARD ALL for one, and has it sent as text.
func (r runner) forgetPrepared(ctx context.Context, s pending) error {
	if err := r.backOut(ctx, s); err != nil {
		return err
	}
	r.state().proven = false // it is prepared anew when it is needed twice
	return r.q.Conn().Deallocate(ctx, r.s.Name(s.guarded))
}

// sendStamp sends a stamp and a statement and reads the answer to the stamp.
func (r runner) sendStamp(pipeline *pgconn.Pipeline, s pending, prepared *pgconn.StatementDescription, e *encoded) error {
	results := 1
	if s.guarded {
		pipeline.SendQueryParams(guard, nil, nil, nil, nil)
		results = 3
	}
	values := [][]byte{[]byte(r.s.Prefix()), s.content}
	if prepared != nil {
		pipeline.SendQueryStatement(prepared, values, nil, nil)
	} else {
		pipeline.SendQueryParams(r.s.SQL(s.guarded), values, []uint32{pgtype.TextOID, pgtype.TextOID}, nil, nil)
	}
	if s.guarded {
		pipeline.SendQueryParams(unguard, nil, nil, nil, nil)
	}
	e.send(pipeline)
	if err := pipeline.Sync(); err != nil {
		return err
	}
	for range results {
		reader, err := nextResult(pipeline)
		if err != nil {
			return err
		}
		if _, err := reader.Close(); err != nil {
			return err
		}
	}
	return nil
}

// nextResult gives the next result of a pipeline to read.
func nextResult(pipeline *pgconn.Pipeline) (*pgconn.ResultReader, error) {
	result, err := pipeline.GetResults()
	if err != nil {
		return nil, err
	}
	reader, ok := result.(*pgconn.ResultReader)
	if !ok {
		return nil, fmt.Errorf("auditpgx: unexpected result %T", result)
	}
	return reader, nil
}
