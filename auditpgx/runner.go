package auditpgx

import (
	"context"
	"errors"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/hindsight-go/audit/internal/sqltext"
	"github.com/hindsight-go/audit/internal/stamp"
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
	s  *stamp.Stamper
	q  session
	tx *txState // nil outside our own transactions
}

var (
	errProcedure = errors.New("auditpgx: CALL and DO outside a transaction may commit in their middle and cannot be stamped")
	errControl   = errors.New("auditpgx: a text that begins, ends or sets up a transaction cannot be stamped in this way of running it")
	errBehind    = errors.New("auditpgx: what follows the end of a transaction in one text cannot be stamped")
	errCopiesOut = errors.New("auditpgx: a COPY TO STDOUT that is given to Query, or prepared under a name, cannot be stamped outside a transaction")
	errNoSimple  = errors.New("auditpgx: the name of a prepared statement cannot be stamped in the simple protocol")
)

// status is the transaction status of the connection: I(dle), in T(ransaction),
// E(rror).
func (r runner) status() byte { return r.q.Conn().PgConn().TxStatus() }

func (r runner) state() *connState { return stateOf(r.q.Conn()) }

// due returns the content to stamp for a text, or nil.
func (r runner) due(ctx context.Context, text sqltext.Text) []byte {
	if !stamp.Wants(ctx, text) {
		return nil
	}
	if stamp.WantsBehind(ctx, text) {
		r.s.Lose(ctx, errBehind)
	}
	if text.Late {
		return nil
	}
	return r.dueAnyway(ctx, text.Class)
}

func (r runner) dueAnyway(ctx context.Context, c sqltext.Class) []byte {
	status := r.status()
	if status == 'E' || r.q.Conn().PgConn().IsBusy() {
		return nil // nothing can be written; pgx says so
	}
	content := r.s.Content(ctx)
	switch {
	case content == nil, status == 'T' && r.tx.holds(content):
		return nil
	case c == sqltext.Procedure && status == 'I':
		r.s.Lose(ctx, errProcedure)
		return nil
	case r.isRefused():
		r.s.Lose(ctx, errRefused)
		return nil
	}
	return content
}

// isRefused reports whether the server refused a stamp on this connection not long
// ago. It does not forever: rights are granted, and roles change.
func (r runner) isRefused() bool {
	at := r.state().refused
	return !at.IsZero() && time.Since(at) < r.s.Patience
}

// pending is a stamp about to be sent. The right to emit messages can be taken away
// at any time, or be missing to a role that the application takes on, and a
// statement that fails aborts its transaction. So each stamp is sent such that
// its failure can be undone:
//
//   - alone with its statement, by running the statement again;
//   - as the first of a transaction that we began, by going on in a new one,
//     since there is nothing in it;
//   - in every other transaction, by a savepoint. It is sent along.
type pending struct {
	content []byte
	guarded bool // by a savepoint
	status  byte // of the connection before

	deallocated bool // its prepared statement is gone
}

func (r runner) pending(content []byte) pending {
	status := r.status()
	return pending{content: content, guarded: status == 'T' && (r.tx == nil || r.tx.used), status: status}
}

const (
	guard   = "SAVEPOINT audit_stamp"
	unguard = "RELEASE SAVEPOINT audit_stamp"
	backout = "ROLLBACK TO SAVEPOINT audit_stamp"
)

// queries returns the stamp as the queries of a batch.
func (r runner) queries(s pending) []*pgx.QueuedQuery {
	query := &pgx.QueuedQuery{SQL: r.s.SQL(s.guarded), Arguments: []any{r.s.Prefix(), string(s.content)}}
	if !s.guarded {
		return []*pgx.QueuedQuery{query}
	}
	return []*pgx.QueuedQuery{{SQL: guard}, query, {SQL: unguard}}
}

// text returns the stamp as statements to be put before others.
func (r runner) text(s pending) string {
	if !s.guarded {
		return r.literal(s) + ";\n"
	}
	return guard + ";" + r.literal(s) + ";" + unguard + ";\n"
}

// literal returns the statement of a stamp without parameters.
func (r runner) literal(s pending) string {
	if s.guarded {
		return r.s.TextInSavepoint(s.content)
	}
	return r.s.Text(s.content)
}

// took takes note of a stamp that the server accepted.
func (r runner) took(s pending) {
	r.s.Took()
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
	if errors.As(err, &preparing) && !strings.HasPrefix(preparing.SQL(), r.s.SQL(false)) {
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
func (r runner) undo(ctx context.Context, s pending, cause error) error {
	r.s.Lose(ctx, cause)
	r.state().refused = time.Now()
	return r.backOut(ctx, s)
}

// backOut brings the connection back to where it was before a stamp that failed.
func (r runner) backOut(ctx context.Context, s pending) error {
	switch {
	case s.guarded:
		_, err := r.q.Exec(ctx, backout+";"+unguard)
		return err
	case s.status == 'I' && r.status() != 'I':
		_, err := r.q.Conn().Exec(ctx, "ROLLBACK")
		return err
	case s.status == 'T':
		// Not ROLLBACK AND CHAIN, which has forgotten the isolation level by then.
		_, err := r.q.Exec(ctx, r.tx.restart())
		return err
	}
	return nil
}

// isDeallocated reports whether a prepared statement is not there any more.
func isDeallocated(err error) bool {
	if err == nil {
		return false // without what errors.As allocates
	}
	var pgErr *pgconn.PgError
	return errors.As(err, &pgErr) && pgErr.Code == "26000"
}

// alone sends a stamp by itself into an open transaction.
func (r runner) alone(ctx context.Context, content []byte) error {
	s := r.pending(content)
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

// shift makes the position in an error count without what was put into the
// statement behind its beginning.
func shift(err error, beginning, added string) {
	var pgErr *pgconn.PgError
	from, n := int32(utf8.RuneCountInString(beginning)), int32(utf8.RuneCountInString(added))
	if errors.As(err, &pgErr) && pgErr.Position > from+n {
		pgErr.Position -= n
	}
}

// mustBeAlone reports whether the server refused to run a statement together
// with its stamp. Nothing of it has happened then.
func mustBeAlone(err error) bool {
	if err == nil {
		return false // without what errors.As allocates
	}
	var pgErr *pgconn.PgError
	return errors.As(err, &pgErr) && (pgErr.Code == "25001" || pgErr.Code == "2D000")
}
