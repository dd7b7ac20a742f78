package auditsql

import (
	"bytes"
	"context"
	"database/sql/driver"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/hindsight-go/audit/internal/sqltext"
	"github.com/hindsight-go/audit/internal/stamp"
)

// session is what is known of the session of a connection. Like the connection,
// it is for one goroutine at a time.
type session struct {
	state   sqltext.Session // Idle or InTransaction
	known   bool            // whether state holds
	held    []byte          // the content of the last stamp in the open transaction, nil if there is none
	begun   begun
	refused time.Time // when the server refused a stamp last
	broken  bool      // the connection is not to be used again
}

// cleanupTimeout bounds what has to be done after a ctx has ended.
const cleanupTimeout = 5 * time.Second

var (
	errProcedure  = errors.New("auditsql: CALL and DO outside a transaction may commit in their middle and cannot be stamped")
	errControl    = errors.New("auditsql: statements that begin, end or set up a transaction among others cannot be stamped")
	errBehind     = errors.New("auditsql: what follows the end of a transaction in one text cannot be stamped")
	errCopy       = errors.New("auditsql: a COPY that is prepared outside a transaction cannot be stamped")
	errCommitLost = errors.New("auditsql: the connection was lost at COMMIT: the statement may have been committed or not")
	errRefused    = errors.New("auditsql: the server refused an earlier stamp on this connection")
)

const (
	guard   = "SAVEPOINT audit_stamp"
	unguard = "RELEASE SAVEPOINT audit_stamp"
	backout = "ROLLBACK TO SAVEPOINT audit_stamp"
)

// opened takes note of a transaction that BeginTx began.
func (s *session) opened(b begun) {
	s.state, s.known, s.held, s.begun = sqltext.InTransaction, true, nil, b
}

// ended takes note of the end of one, with the error that it ended with.
func (s *session) ended(err error) error {
	s.state, s.known, s.held, s.begun = sqltext.Idle, err == nil, nil, begun{}
	return err
}

// unsure forgets what the connection may have done behind our back.
func (s *session) unsure() { s.known, s.held = false, nil }

// inTransaction reports whether a transaction is open. It has to be known.
func (s *session) inTransaction() bool { return s.state == sqltext.InTransaction }

// ran takes note of what the driver ran.
func (s *session) ran(text sqltext.Text, err error) {
	switch {
	case errors.Is(err, driver.ErrSkip):
	case text.Leaves != sqltext.AsItWas && err == nil:
		s.state, s.known, s.held = text.Leaves, true, nil
	case text.Leaves != sqltext.AsItWas, text.Class == sqltext.Unknown && err == nil:
		// Something failed on the way, or the name of a prepared statement ran.
		s.unsure()
	case text.Ends:
		s.held = nil
	}
}

// due returns the content to stamp for a text, or nil. An error is what the statement
// would have met as well. It is not run to find out: what stopped the look may be gone, and
// then it would go without its stamp.
func (c *conn) due(ctx context.Context, text sqltext.Text) ([]byte, error) {
	ctx = c.begun.in(ctx)
	if !stamp.Wants(ctx, text) {
		return nil, nil
	}
	ctx, said := c.s.Asked(ctx)
	if !said {
		if c.held == nil && stamp.IsWrite(text) {
			c.s.Without(ctx)
		}
		return nil, nil
	}
	content := c.s.Content(ctx)
	if content == nil {
		return nil, nil
	}
	if err := c.look(ctx); err != nil {
		if isFatal(ctx, err) {
			return nil, err
		}
		c.s.Lose(ctx, err)
		return nil, nil
	}
	if c.inTransaction() && stamp.WantsBehind(ctx, text) {
		c.s.Lose(ctx, errBehind)
		if text.Late {
			return nil, nil
		}
	}
	var why error
	switch {
	case c.inTransaction() && bytes.Equal(c.held, content):
		return nil, nil
	case !c.inTransaction() && text.Class == sqltext.Procedure:
		why = errProcedure
	case !c.inTransaction() && (text.Leaves != sqltext.AsItWas || text.Ends),
		text.First > 0: // a stamp would come before what has to be first
		why = errControl
	case time.Since(c.refused) < c.s.Patience:
		why = errRefused
	default:
		return content, nil
	}
	c.s.Lose(ctx, why)
	return nil, nil
}

// look finds out whether a transaction is open, if that is not known. The answer
// is in how the server takes a savepoint.
func (c *conn) look(ctx context.Context) error {
	if c.known {
		return nil
	}
	err := c.run(ctx, guard, unguard)
	switch code := sqlState(err); {
	case err == nil, code == inFailedTransaction:
		c.state = sqltext.InTransaction
	case code == noTransaction:
		c.state = sqltext.Idle
	default:
		return err
	}
	c.known, c.held = true, nil
	return nil
}

// run runs statements of ours, in one round trip if the driver can.
func (c *conn) run(ctx context.Context, statements ...string) error {
	_, err := c.nativeExec(ctx, strings.Join(statements, ";"), nil)
	if !errors.Is(err, driver.ErrSkip) {
		return err
	}
	for _, statement := range statements {
		if err := c.runPrepared(ctx, statement); err != nil {
			return err
		}
	}
	return nil
}

func (c *conn) runPrepared(ctx context.Context, statement string) error {
	prepared, err := c.nativePrepare(ctx, statement)
	if err != nil {
		return err
	}
	s := stmt{stmt: prepared, conn: c}
	_, err = s.nativeExec(ctx, nil)
	return errors.Join(err, prepared.Close())
}

// stamp stamps, and reports whether it has begun a transaction for that. If the
// server refuses the stamp, that is no error. If there is one, it is what the
// statement would have met as well.
func (c *conn) stamp(ctx context.Context, text sqltext.Text, content []byte) (lone bool, err error) {
	if c.inTransaction() {
		// A stamp that fails must not take the transaction with it.
		err = c.run(ctx, guard, c.s.TextInSavepoint(content), unguard)
		if sqlState(err) == noTransaction {
			// Something unseen has ended it.
			c.state, c.held = sqltext.Idle, nil
			if content, err = c.due(ctx, text); content == nil {
				return false, err
			}
			return c.stamp(ctx, text, content)
		}
	} else {
		err = c.run(ctx, "BEGIN", c.s.Text(content))
		lone = true
	}
	switch {
	case err == nil:
		c.s.Took()
		c.held = content
		c.state = sqltext.InTransaction
		return lone, nil
	case !lone && sqlState(err) == inFailedTransaction:
		return false, nil // nothing can be written
	case isFatal(ctx, err):
		if lone {
			_ = c.rollback(ctx) // err says more
		}
		return false, err
	}
	c.s.Lose(ctx, err)
	if sqlState(err) != "" {
		c.refused = time.Now()
	}
	switch {
	case lone:
		return false, c.rollback(ctx)
	case sqlState(err) == "":
		// It is the driver that could not, with other rows still open for one. It
		// says so to the statement as well.
		c.unsure()
		return false, nil
	}
	return false, c.run(ctx, backout, unguard)
}

// stampCopy stamps a COPY that the driver begins by preparing it. Outside a
// transaction it cannot be stamped, nor can lib/pq run it.
func (c *conn) stampCopy(ctx context.Context, text sqltext.Text) error {
	content, err := c.due(ctx, text)
	if content == nil {
		return err
	}
	if !c.inTransaction() {
		c.s.Lose(ctx, errCopy)
		return nil
	}
	_, err = c.stamp(ctx, text, content)
	return err
}

// exec runs a statement with its stamp.
func (c *conn) exec(ctx context.Context, text sqltext.Text, run func(context.Context) (driver.Result, error)) (driver.Result, error) {
	result, lone, err := stamped(ctx, c, text, run)
	if lone && err == nil {
		err = c.commit(ctx)
	}
	if err != nil {
		return nil, err
	}
	return result, nil
}

// query runs a statement with its stamp.
func (c *conn) query(ctx context.Context, text sqltext.Text, run func(context.Context) (driver.Rows, error)) (driver.Rows, error) {
	result, lone, err := stamped(ctx, c, text, run)
	if err != nil {
		return nil, err
	}
	if lone {
		return newRows(ctx, c, result)
	}
	return result, nil
}

// stamped runs a statement with its stamp and reports whether that has begun a
// transaction, which is then to be committed.
func stamped[T any](ctx context.Context, c *conn, text sqltext.Text, run func(context.Context) (T, error)) (result T, lone bool, err error) {
	content, err := c.due(ctx, text)
	if err == nil && content != nil {
		lone, err = c.stamp(ctx, text, content)
	}
	if err != nil {
		return result, false, err
	}
	result, err = run(ctx)
	if !lone {
		c.ran(text, err)
		return result, false, err
	}
	if err == nil {
		return result, true, nil
	}
	if failed := c.rollback(ctx); failed == nil && mustBeAlone(err) {
		c.s.Lose(ctx, err)
		result, err = run(ctx)
		c.ran(text, err)
	}
	return result, false, err
}

// commit commits a transaction that was begun for a stamp. Once the statement is
// through, the end of ctx is no reason to take it back.
func (c *conn) commit(ctx context.Context) error {
	commitCtx := ctx
	if ctx.Err() != nil {
		var cancel context.CancelFunc
		commitCtx, cancel = context.WithTimeout(context.WithoutCancel(ctx), cleanupTimeout)
		defer cancel()
	}
	err := c.run(commitCtx, "COMMIT")
	if err == nil || sqlState(err) != "" {
		// A COMMIT that the server answers ends the transaction in any case.
		_ = c.ended(nil)
		return err
	}
	_ = c.rollback(ctx) // whatever comes of it, the error is that of COMMIT
	if errors.Is(err, driver.ErrBadConn) {
		// database/sql would run the statement again, which may have been committed.
		c.broken = true
		if ctx.Err() != nil {
			return fmt.Errorf("%w: %w", errCommitLost, ctx.Err()) // for which drivers give up connections
		}
		return errCommitLost
	}
	return err
}

// rollback takes back a transaction that was begun for a stamp. If that fails the
// connection is not used again, and the server takes it back.
func (c *conn) rollback(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanupTimeout)
	defer cancel()
	err := c.run(ctx, "ROLLBACK")
	c.broken = c.broken || err != nil
	return c.ended(err)
}

const (
	noTransaction       = "25P01"
	inFailedTransaction = "25P02"
)

// sqlState returns the SQLSTATE of an error, or "" if it has none. The errors of
// pgx and lib/pq have it as a method, those of bun's pgdriver among their fields.
func sqlState(err error) string {
	var coded interface{ SQLState() string }
	if errors.As(err, &coded) {
		return coded.SQLState()
	}
	var fielded interface{ Field(name byte) string }
	if errors.As(err, &fielded) {
		return fielded.Field('C')
	}
	return ""
}

// isFatal reports whether an error that came in answer to a stamp is what the
// statement would have met as well: the end of the connection, of ctx or of the
// server. Otherwise it is about the stamp.
func isFatal(ctx context.Context, err error) bool {
	if ctx.Err() != nil || errors.Is(err, driver.ErrBadConn) {
		return true
	}
	switch code := sqlState(err); {
	case strings.HasPrefix(code, "08"), strings.HasPrefix(code, "53"), strings.HasPrefix(code, "57"):
		return true
	}
	return false
}

// mustBeAlone reports whether the server refused to run a statement together
// with its stamp. Nothing of it has happened then.
func mustBeAlone(err error) bool {
	code := sqlState(err)
	return code == "25001" || code == "2D000"
}
