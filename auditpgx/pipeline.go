package auditpgx

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"

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
	if c.mode == pgx.QueryExecModeExec {
		if err := e.builder.Build(conn.TypeMap(), nil, c.args); err != nil {
			return nil, err
		}
		e.formats = e.builder.ResultFormats
		return e, nil
	}
	sd, err := r.describe(ctx, c)
	if err != nil {
		return nil, err
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
	if c.mode == pgx.QueryExecModeCacheStatement {
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
			if err := conn.Deallocate(ctx, old.Name); err != nil {
				return nil, err
			}
		}
		if sd := st.prepared.get(c.sql); sd != nil {
			if _, traced := st.tracer.(pgx.PrepareTracer); traced {
				return sd, nil
			}
			// It is known to pgx, too, so this asks the server only if somebody
			// deallocated it since.
			return conn.Prepare(ctx, sd.Name, c.sql)
		}
		sum := sha256.Sum256([]byte(c.sql))
		sd, err := conn.Prepare(ctx, "auditpgx_"+hex.EncodeToString(sum[:16]), c.sql)
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

// invalidate drops what is known of a statement after an error that may come from
// its age: a table that was altered, a statement that was deallocated.
func (r runner) invalidate(sql string, err error) {
	var pgErr *pgconn.PgError
	if !errors.As(err, &pgErr) {
		return
	}
	switch {
	case strings.HasPrefix(pgErr.Code, "42"), pgErr.Code == "0A000", pgErr.Code == "26000", pgErr.Code == "08P01", pgErr.Code == "22P03":
		st := r.state()
		st.prepared.drop(sql)
		st.described.drop(sql)
	}
}

// queryPipeline sends a stamp and a statement together.
func (r runner) queryPipeline(ctx context.Context, c call, content []byte) (pgx.Rows, error) {
	conn := r.q.Conn()
	ctx, traced := r.traceQuery(ctx, c)
	failed := func(err error) (pgx.Rows, error) {
		r.invalidate(c.sql, err)
		traced(pgconn.CommandTag{}, err)
		return failedRows{err: err}, err
	}
	e, err := r.encode(ctx, c)
	if err != nil {
		return failed(err)
	}
	s := r.stamp(content)
	prepared, err := r.preparedStamp(ctx, c)
	if err != nil {
		return failed(err)
	}
	pipeline := conn.PgConn().StartPipeline(ctx)
	if err := r.sendStamp(pipeline, s, prepared, e); err != nil {
		_ = pipeline.Close() // the same
		if !r.isRefusal(ctx, err) {
			return failed(err)
		}
		if err := r.undo(ctx, s, err); err != nil {
			return failed(err)
		}
		traced(pgconn.CommandTag{}, nil)
		return r.queryNative(ctx, c)
	}
	r.took(s)
	reader, err := nextResult(pipeline)
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
		r.invalidate(c.sql, err)
		traced(rows.CommandTag(), err)
		return closeErr
	}
	return rows, nil
}

// stampName is under which the stamp is prepared.
func (s *stamper) stampName() string {
	if s.sql == identitySQL {
		return "auditpgx_stamp_identity"
	}
	return "auditpgx_stamp"
}

// preparedStamp returns the prepared stamp, or nil if it is to be sent as text:
// where nothing is prepared, and the first time on a connection, which may be
// the only one. It is prepared with the second, for one round trip in the life of
// the connection.
func (r runner) preparedStamp(ctx context.Context, c call) (*pgconn.StatementDescription, error) {
	st := r.state()
	if _, traced := st.tracer.(pgx.PrepareTracer); traced || c.mode != pgx.QueryExecModeCacheStatement || !st.proven {
		return nil, nil
	}
	// If it is prepared this asks nobody: pgx keeps it by name, and forgets it
	// when the caller deallocates.
	return r.q.Conn().Prepare(ctx, r.s.stampName(), r.s.sql)
}

// sendStamp sends a stamp and a statement and reads the answer to the stamp.
func (r runner) sendStamp(pipeline *pgconn.Pipeline, s stamp, prepared *pgconn.StatementDescription, e *encoded) error {
	results := 1
	if s.guarded {
		pipeline.SendQueryParams(guard, nil, nil, nil, nil)
		results = 3
	}
	values := [][]byte{r.s.prefixBytes, s.content}
	if prepared != nil {
		pipeline.SendQueryStatement(prepared, values, nil, nil)
	} else {
		pipeline.SendQueryParams(r.s.sql, values, []uint32{pgtype.TextOID, pgtype.TextOID}, nil, nil)
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

// cache holds descriptions of statements by their text. When it is full it
// drops one that was not used since it was put in or last looked at.
type cache struct {
	limit int
	known map[string]*cached
	queue []string // the texts in known, the next to be looked at first
	gone  []*pgconn.StatementDescription
}

type cached struct {
	sd   *pgconn.StatementDescription
	used bool
}

func (c *cache) get(sql string) *pgconn.StatementDescription {
	entry := c.known[sql]
	if entry == nil {
		return nil
	}
	entry.used = true
	return entry.sd
}

func (c *cache) put(sql string, sd *pgconn.StatementDescription) {
	if c.known == nil {
		c.known = map[string]*cached{}
	}
	for len(c.queue) >= c.limit {
		oldest := c.queue[0]
		c.queue = c.queue[1:]
		if entry := c.known[oldest]; entry.used {
			entry.used = false
			c.queue = append(c.queue, oldest)
			continue
		}
		c.forget(oldest)
	}
	c.known[sql] = &cached{sd: sd}
	c.queue = append(c.queue, sql)
}

func (c *cache) drop(sql string) {
	if c.known[sql] == nil {
		return
	}
	for i, text := range c.queue {
		if text == sql {
			c.queue = append(c.queue[:i:i], c.queue[i+1:]...)
			break
		}
	}
	c.forget(sql)
}

func (c *cache) forget(sql string) {
	c.gone = append(c.gone, c.known[sql].sd)
	delete(c.known, sql)
}

// dropped returns what was dropped since it was asked last.
func (c *cache) dropped() []*pgconn.StatementDescription {
	gone := c.gone
	c.gone = nil
	return gone
}
