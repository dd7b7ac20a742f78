package auditpgx

import (
	"context"
	"errors"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/hindsight-go/audit/internal/sqltext"
	"github.com/hindsight-go/audit/internal/stamp"
)

// exec is Exec.
func (r runner) exec(ctx context.Context, sql string, args []any) (pgconn.CommandTag, error) {
	c, content := r.prepare(ctx, false, sql, args)
	if content == nil {
		return r.execNative(ctx, c)
	}
	switch {
	case c.sd != nil && c.text.Copies == sqltext.CopyOut:
		return r.execSimple(ctx, c, content) // it has no arguments
	case c.sd != nil:
	case c.named && (c.unfitForPipeline() || r.status() == 'T' || !c.isDefault(r.state()) || c.mode == pgx.QueryExecModeSimpleProtocol):
		// The name of a prepared statement, which only pgx can look up.
		if err := r.aloneOrLost(ctx, c, content); err != nil {
			return pgconn.CommandTag{}, err
		}
		return r.execNative(ctx, c)
	case c.named:
		return r.execBatch(ctx, c, content)
	case c.mode == pgx.QueryExecModeSimpleProtocol || len(c.args) == 0:
		return r.execSimple(ctx, c, content)
	case !isExtended(c.mode):
		return r.execNative(ctx, c) // pgx says what is wrong
	}
	sent, err := r.sendPipeline(ctx, c, content)
	switch {
	case err != nil:
		return pgconn.CommandTag{}, err
	case sent == nil:
		return r.execNative(ctx, c)
	case sent.err != nil:
		return pgconn.CommandTag{}, sent.err
	}
	tag, err := sent.reader.Close()
	if closeErr := sent.finish(tag, err); err == nil {
		err = closeErr
	}
	return tag, err
}

// prepare looks at a call and decides what to stamp it with, if at all.
func (r runner) prepare(ctx context.Context, isQuery bool, sql string, args []any) (call, []byte) {
	text := r.s.Parse(sql)
	if !stamp.InContext(ctx) || !stamp.Wants(ctx, text) || r.status() == 'E' {
		return call{original: sql, options: args, given: args, text: text}, nil
	}
	c := parseCall(ctx, r.q.Conn(), isQuery, sql, args)
	if c.err != nil {
		c.text = text
		return c, nil
	}
	if c.rewritten {
		text = r.s.Parse(c.sql)
	}
	c.named = text.Class == sqltext.Unknown
	c.text = r.lookUp(ctx, c.sql, text)
	return c, r.due(ctx, c.text)
}

// aloneOrLost stamps with a round trip of its own where there is a transaction to
// stamp.
func (r runner) aloneOrLost(ctx context.Context, c call, content []byte) error {
	switch {
	case r.status() == 'T':
		return r.alone(ctx, content)
	case c.unfitForPipeline():
		r.s.Lose(ctx, errCopiesOut)
	default:
		r.s.Lose(ctx, errNoSimple)
	}
	return nil
}

func (r runner) execNative(ctx context.Context, c call) (pgconn.CommandTag, error) {
	tag, err := r.q.Exec(ctx, c.original, c.native()...)
	r.ranText(c.original, c.text)
	return tag, err
}

// ran takes note of a statement that went to pgx as it is.
func (r runner) ran(sql string) { r.ranText(sql, r.s.Parse(sql)) }

// ranText takes note of a text that may have ended transactions by itself, stamped,
// or changed what is prepared.
func (r runner) ranText(sql string, text sqltext.Text) {
	if text.Prepares {
		r.state().names = nil
	}
	if r.tx != nil && (text.Ends || text.Class == sqltext.Unknown || strings.Contains(sql, "pg_logical_emit_message")) {
		r.tx.forget()
	}
}

// execSimple puts the stamp before the statement in one simple query, which is
// how pgx sends a statement without arguments, too. There may be several
// statements in it: it goes behind those that begin or set up a transaction.
func (r runner) execSimple(ctx context.Context, c call, content []byte) (pgconn.CommandTag, error) {
	s := r.pending(content)
	at := c.text.First
	if at > 0 && s.guarded && len(c.args) > 0 {
		r.s.Lose(ctx, errControl) // what is left could not be run again
		return r.execNative(ctx, c)
	}
	prefix := r.text(s)
	tag, err := r.sendSimple(ctx, c, at, prefix)
	switch {
	case err == nil:
		r.took(s)
		r.ranText(c.sql, c.text)
		return tag, nil
	case s.status == 'I' && r.status() == 'I' && mustBeAlone(err):
		r.s.Lose(ctx, err)
	case r.isSimpleRefusal(ctx, err):
		if err := r.undo(ctx, s, err); err != nil {
			return pgconn.CommandTag{}, err
		}
		if s.guarded {
			c.sql = c.sql[at:] // the savepoint is behind the rest
		}
	default:
		shift(err, c.sql[:at], prefix)
		return tag, err
	}
	tag, err = r.sendSimple(ctx, c, 0, "")
	r.ranText(c.sql, c.text)
	return tag, err
}

// sendSimple runs a statement in the simple protocol, with others put in.
func (r runner) sendSimple(ctx context.Context, c call, at int, prefix string) (tag pgconn.CommandTag, err error) {
	sql := c.sql[:at] + prefix + c.sql[at:]
	if len(c.args) > 0 {
		// Only pgx can put them into the text.
		c.options = append(c.options, pgx.QueryExecModeSimpleProtocol)
		tag, err = r.q.Exec(ctx, c.original, c.with(sql)...)
		return withoutStamp(tag, err, prefix), err
	}
	ctx, traced := r.traceQuery(ctx, c)
	results := r.q.Conn().PgConn().Exec(ctx, sql)
	var tags []pgconn.CommandTag
	for results.NextResult() {
		tag, _ = results.ResultReader().Close() // results has the error
		tags = append(tags, tag)
	}
	err = results.Close()
	own := 1
	if strings.HasPrefix(prefix, guard) {
		own = 3
	}
	if bare := withoutStamp(tag, err, prefix); bare != tag {
		tag = bare
		if before := len(tags) - 1 - own; before >= 0 {
			tag = tags[before]
		}
	}
	traced(tag, err)
	return tag, err
}

// withoutStamp takes off the tag of what stood before a statement that failed.
func withoutStamp(tag pgconn.CommandTag, err error, prefix string) pgconn.CommandTag {
	if name := tag.String(); err != nil && prefix != "" && (name == "SELECT 1" || name == "RELEASE") {
		return pgconn.CommandTag{}
	}
	return tag
}

// isSimpleRefusal is isRefusal where the answer does not tell which statement
// it is to.
func (r runner) isSimpleRefusal(ctx context.Context, err error) bool {
	var pgErr *pgconn.PgError
	return errors.As(err, &pgErr) && strings.Contains(pgErr.Message, "pg_logical_emit_message") && r.isStampRefusal(ctx, err)
}

// execBatch runs a stamp and a statement as one batch.
func (r runner) execBatch(ctx context.Context, c call, content []byte) (tag pgconn.CommandTag, err error) {
	results, s, err := r.sendPair(ctx, c, content)
	if results == nil {
		if err != nil {
			return tag, err
		}
		return r.execNative(ctx, c)
	}
	tag, err = results.Exec()
	if closeErr := results.Close(); err == nil {
		err = closeErr
	}
	results.traced(tag, err)
	if s.status == 'I' && mustBeAlone(err) {
		r.s.Lose(ctx, err)
		return r.execNative(ctx, c)
	}
	return tag, plain(err)
}

// oneResult is the rest of a batch whose stamp is through.
type oneResult struct {
	pgx.BatchResults
	traced func(pgconn.CommandTag, error)
	before string // what the server was sent before the statement, in one string with it
}

// sendPair sends a stamp and a statement and reads the answer to the stamp. If
// the server refused the stamp, there are no results and no error, and the
// connection is as before.
func (r runner) sendPair(ctx context.Context, c call, content []byte) (*oneResult, pending, error) {
	results, s, err := r.trySendPair(ctx, c, content)
	if results == nil && s.deallocated {
		// pgx has forgotten the stamp by now.
		results, s, err = r.trySendPair(ctx, c, content)
	}
	return results, s, err
}

func (r runner) trySendPair(ctx context.Context, c call, content []byte) (*oneResult, pending, error) {
	s := r.pending(content)
	queries := r.queries(s)
	before := ""
	if c.mode == pgx.QueryExecModeSimpleProtocol {
		// One string of it all, as pgx joins it. It must be known what comes
		// before the statement.
		for _, q := range queries {
			if len(q.Arguments) > 0 {
				q.SQL, q.Arguments = r.literal(s), nil
			}
			before += q.SQL + "\n;"
		}
	}
	batch := &pgx.Batch{QueuedQueries: queries}
	batch.Queue(c.sql, c.args...)
	traceCtx, traced := r.trace(ctx, c)
	br := r.q.SendBatch(traceCtx, batch)
	for range queries {
		_, err := br.Exec()
		if err == nil {
			continue
		}
		_ = br.Close() // the same
		if isDeallocated(err) {
			s.deallocated = true
			traced(pgconn.CommandTag{}, err)
			return nil, s, plain(err)
		}
		if !r.isRefusal(ctx, err) {
			shift(err, "", before)
			traced(pgconn.CommandTag{}, err)
			return nil, s, plain(err)
		}
		traced(pgconn.CommandTag{}, nil)
		return nil, s, r.undo(ctx, s, err)
	}
	r.took(s)
	return &oneResult{br, traced, before}, s, nil
}

// trace tells a tracer that knows no batches of the statement.
func (r runner) trace(ctx context.Context, c call) (context.Context, func(pgconn.CommandTag, error)) {
	if r.state().tracesBatches {
		return ctx, func(pgconn.CommandTag, error) {}
	}
	return r.traceQuery(ctx, c)
}

// traceQuery tells the tracer of a statement, as pgx does.
func (r runner) traceQuery(ctx context.Context, c call) (context.Context, func(pgconn.CommandTag, error)) {
	tracer := r.state().tracer
	if tracer == nil {
		return ctx, func(pgconn.CommandTag, error) {}
	}
	conn := r.q.Conn()
	ctx = tracer.TraceQueryStart(ctx, conn, pgx.TraceQueryStartData{SQL: c.original, Args: c.given})
	return ctx, func(tag pgconn.CommandTag, err error) {
		tracer.TraceQueryEnd(ctx, conn, pgx.TraceQueryEndData{CommandTag: tag, Err: plain(err)})
	}
}
