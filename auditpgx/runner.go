package auditpgx

import (
	"context"
	"errors"
	"strings"
	"unicode/utf8"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// session is what statements run on: a connection or a transaction of pgx.
type session interface {
	Exec(ctx context.Context, sql string, args ...any) (pgconn.CommandTag, error)
	Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error)
	SendBatch(ctx context.Context, b *pgx.Batch) pgx.BatchResults
	CopyFrom(ctx context.Context, table pgx.Identifier, columns []string, rows pgx.CopyFromSource) (int64, error)
	Conn() *pgx.Conn
}

// lone is a connection as a session.
type lone struct{ *pgxConn }

type pgxConn = pgx.Conn

func (l lone) Conn() *pgx.Conn { return l.pgxConn }

// runner runs one call.
type runner struct {
	s  *stamper
	q  session
	tx *txState // nil outside our own transactions
}

var (
	errProcedure = errors.New("auditpgx: CALL and DO outside a transaction may commit in their middle and cannot be stamped")
	errNoSimple  = errors.New("auditpgx: the name of a prepared statement cannot be stamped in the simple protocol")
)

// status is the transaction status of the connection: I(dle), in T(ransaction),
// E(rror).
func (r runner) status() byte { return r.q.Conn().PgConn().TxStatus() }

func (r runner) state() *connState { return stateOf(r.q.Conn()) }

// due returns the content to stamp for a statement of a class, or nil.
func (r runner) due(ctx context.Context, c class) []byte {
	if !wants(ctx, c) {
		return nil
	}
	return r.dueAnyway(ctx, c)
}

// wants reports whether a statement of the class is to be stamped at all.
func wants(ctx context.Context, c class) bool {
	return c >= write || ctx.Value(asWriteKey{}) != nil
}

func (r runner) dueAnyway(ctx context.Context, c class) []byte {
	status := r.status()
	if status == 'E' || r.q.Conn().PgConn().ParameterStatus("in_hot_standby") == "on" {
		return nil // nothing can be written
	}
	content := r.s.content(ctx)
	switch {
	case content == nil, status == 'T' && r.tx.holds(content):
		return nil
	case c == procedure && status == 'I':
		r.s.lose(ctx, errProcedure)
		return nil
	case r.state().refused:
		r.s.lose(ctx, errRefused)
		return nil
	}
	return content
}

// stamp is a stamp about to be sent.
type stamp struct {
	content []byte
	guarded bool // by a savepoint
	status  byte // of the connection before
}

func (r runner) stamp(content []byte) stamp {
	status := r.status()
	return stamp{content: content, guarded: status == 'T' && !r.state().proven, status: status}
}

const (
	guard   = "SAVEPOINT audit_stamp"
	unguard = "RELEASE SAVEPOINT audit_stamp"
	backout = "ROLLBACK TO SAVEPOINT audit_stamp"
)

// queries returns the stamp as the queries of a batch.
func (r runner) queries(s stamp) []*pgx.QueuedQuery {
	query := &pgx.QueuedQuery{SQL: r.s.sql, Arguments: []any{r.s.prefix, string(s.content)}}
	if !s.guarded {
		return []*pgx.QueuedQuery{query}
	}
	return []*pgx.QueuedQuery{{SQL: guard}, query, {SQL: unguard}}
}

// text returns the stamp as statements to be put before others.
func (r runner) text(s stamp) string {
	if !s.guarded {
		return r.s.text(s.content) + ";\n"
	}
	return guard + ";" + r.s.text(s.content) + ";" + unguard + ";\n"
}

// took takes note of a stamp that the server accepted.
func (r runner) took(s stamp) {
	r.s.stamped.Add(1)
	r.state().proven = true
	if s.status == 'T' {
		r.tx.add(s.content)
	}
}

// isRefusal reports whether an error that came in answer to a stamp is about the
// stamp. Otherwise it is what the statement would have met as well: the end of
// the connection, of ctx or of the server, or a statement that cannot be
// prepared, which is found out before the stamp runs.
func (r runner) isRefusal(ctx context.Context, err error) bool {
	if r.state().mode == pgx.QueryExecModeSimpleProtocol {
		return r.isSimpleRefusal(ctx, err) // batches are one string in it
	}
	return r.isStampRefusal(ctx, err)
}

func (r runner) isStampRefusal(ctx context.Context, err error) bool {
	var preparing pgx.ErrPreprocessingBatch
	if errors.As(err, &preparing) && preparing.SQL() != r.s.sql {
		return false
	}
	var pgErr *pgconn.PgError
	if !errors.As(err, &pgErr) || ctx.Err() != nil || r.q.Conn().IsClosed() {
		return false
	}
	switch {
	case strings.HasPrefix(pgErr.Code, "57"), strings.HasPrefix(pgErr.Code, "53"), strings.HasPrefix(pgErr.Code, "25P"):
		return false
	}
	return true
}

// undo brings the connection back to where it was before a stamp was refused.
// What follows is run without.
func (r runner) undo(ctx context.Context, s stamp, cause error) error {
	r.s.lose(ctx, cause)
	r.state().refused = true
	switch {
	case s.guarded:
		_, err := r.q.Exec(ctx, backout+";"+unguard)
		return err
	case s.status == 'I' && r.status() != 'I':
		_, err := r.q.Conn().Exec(ctx, "ROLLBACK")
		return err
	case s.status == 'T':
		return cause // the transaction is lost: it had accepted stamps before
	}
	return nil
}

// alone sends a stamp by itself into an open transaction.
func (r runner) alone(ctx context.Context, content []byte) error {
	s := r.stamp(content)
	// Without arguments it is the simple protocol, one round trip in every mode.
	_, err := r.q.Exec(ctx, r.text(s))
	if err == nil {
		r.took(s)
		return nil
	}
	if r.isRefusal(ctx, err) {
		return r.undo(ctx, s, err)
	}
	return err
}

// plain takes off what pgx puts around the error of a statement only because it
// is in a batch.
func plain(err error) error {
	if preparing, ok := err.(pgx.ErrPreprocessingBatch); ok { //nolint:errorlint // only the outermost
		return preparing.Unwrap()
	}
	return err
}

// shift makes the position in an error count from behind what was put before the
// statement.
func shift(err error, prefix string) {
	var pgErr *pgconn.PgError
	if n := int32(utf8.RuneCountInString(prefix)); errors.As(err, &pgErr) && pgErr.Position > n {
		pgErr.Position -= n
	}
}

// mustBeAlone reports whether the server refused to run a statement together
// with its stamp. Nothing of it has happened then.
func mustBeAlone(err error) bool {
	var pgErr *pgconn.PgError
	return errors.As(err, &pgErr) && (pgErr.Code == "25001" || pgErr.Code == "2D000")
}

// exec is Exec.
func (r runner) exec(ctx context.Context, sql string, args []any) (pgconn.CommandTag, error) {
	c, class, content := r.prepare(ctx, false, sql, args)
	if content == nil {
		return r.execNative(ctx, c)
	}
	switch {
	case class == unknown && (r.status() == 'T' || !c.isDefault(r.state()) || c.mode == pgx.QueryExecModeSimpleProtocol):
		// The name of a prepared statement, which only pgx can look up.
		if err := r.aloneOrLost(ctx, content); err != nil {
			return pgconn.CommandTag{}, err
		}
		return r.execNative(ctx, c)
	case class == unknown:
		return r.execBatch(ctx, c, content)
	case c.mode == pgx.QueryExecModeSimpleProtocol || len(c.args) == 0:
		return r.execSimple(ctx, c, content)
	case !isExtended(c.mode):
		return r.execNative(ctx, c) // pgx says what is wrong
	}
	rows, err := r.queryPipeline(ctx, c, content)
	rows.Close()
	if err == nil {
		err = rows.Err()
	}
	return rows.CommandTag(), err
}

// prepare looks at a call and decides what to stamp it with, if at all.
func (r runner) prepare(ctx context.Context, isQuery bool, sql string, args []any) (call, class, []byte) {
	class := classify(sql)
	if !wants(ctx, class) || r.status() == 'E' {
		return call{original: sql, options: args, given: args}, class, nil
	}
	c := parseCall(ctx, r.q.Conn(), isQuery, sql, args)
	if c.err != nil {
		return c, class, nil
	}
	if c.rewritten {
		class = classify(c.sql)
	}
	return c, class, r.due(ctx, class)
}

// aloneOrLost stamps with a round trip of its own where there is a transaction to
// stamp.
func (r runner) aloneOrLost(ctx context.Context, content []byte) error {
	if r.status() == 'T' {
		return r.alone(ctx, content)
	}
	r.s.lose(ctx, errNoSimple)
	return nil
}

func (r runner) execNative(ctx context.Context, c call) (pgconn.CommandTag, error) {
	tag, err := r.q.Exec(ctx, c.original, c.native()...)
	r.ran(c.original)
	return tag, err
}

// ran takes note of a text that may have ended transactions by itself.
func (r runner) ran(sql string) {
	if r.tx != nil && endsTransaction(sql) {
		r.tx.forget()
	}
}

// execSimple puts the stamp before the statement in one simple query, which is
// how pgx sends a statement without arguments, too. There may be several
// statements in it.
func (r runner) execSimple(ctx context.Context, c call, content []byte) (pgconn.CommandTag, error) {
	s := r.stamp(content)
	prefix := r.text(s)
	c.options = append(c.options, pgx.QueryExecModeSimpleProtocol)
	tag, err := r.q.Exec(ctx, c.original, c.with(prefix+c.sql)...)
	switch {
	case err == nil:
		r.took(s)
		r.ran(c.sql)
		return tag, nil
	case s.status == 'I' && r.status() == 'I' && mustBeAlone(err):
		r.s.lose(ctx, err)
	case r.isSimpleRefusal(ctx, err):
		if err := r.undo(ctx, s, err); err != nil {
			return pgconn.CommandTag{}, err
		}
	default:
		shift(err, prefix)
		if name := tag.String(); name == "SELECT 1" || name == "RELEASE" {
			tag = pgconn.CommandTag{} // the stamp's
		}
		return tag, err
	}
	return r.q.Exec(ctx, c.original, c.with(c.sql)...)
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
		r.s.lose(ctx, err)
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
func (r runner) sendPair(ctx context.Context, c call, content []byte) (*oneResult, stamp, error) {
	s := r.stamp(content)
	queries := r.queries(s)
	before := ""
	if c.mode == pgx.QueryExecModeSimpleProtocol {
		// One string of it all, as pgx joins it. It must be known what comes
		// before the statement.
		for _, q := range queries {
			if q.SQL == r.s.sql {
				q.SQL, q.Arguments = r.s.text(content), nil
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
		if !r.isRefusal(ctx, err) {
			shift(err, before)
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
