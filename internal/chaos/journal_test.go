//go:build unix

package chaos_test

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/hindsight-go/audit"
)

// entry is one change as its writer knows it, or as history tells it.
type entry struct {
	Table, Op     string
	Before, After string // jsonb as text
	Request       string
}

// written is a transaction that its writer has committed.
type written struct {
	writer, serial int
	xid            int64
	// It committed behind after and not behind until.
	after, until audit.LSN
	at           time.Time
	entries      []entry
}

// journal is what was committed. It shares nothing with what captures.
type journal struct {
	mu  sync.Mutex
	all []*written // guarded by mu
	// failed are the writes that failed, by SQLSTATE, with the strikes under way.
	failed []failure // guarded by mu
}

type failure struct {
	at   time.Time
	code string // SQLSTATE, or "connection"
	text string
}

func (j *journal) add(w *written) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.all = append(j.all, w)
}

func (j *journal) fail(err error) {
	f := failure{at: time.Now(), code: "connection", text: err.Error()}
	var pgErr *pgconn.PgError
	if errors.As(err, &pgErr) {
		f.code = pgErr.Code
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	j.failed = append(j.failed, f)
}

func (j *journal) transactions() []*written {
	j.mu.Lock()
	defer j.mu.Unlock()
	return append([]*written(nil), j.all...)
}

func (j *journal) failures() []failure {
	j.mu.Lock()
	defer j.mu.Unlock()
	return append([]failure(nil), j.failed...)
}

// session is a connection of a writer, which it makes anew after errors.
type session struct {
	url     string
	journal *journal
	writer  int
	serial  int
	conn    *pgx.Conn
}

func (s *session) connect(ctx context.Context) error {
	if s.conn != nil && !s.conn.IsClosed() {
		return nil
	}
	config, err := pgx.ParseConfig(s.url)
	if err != nil {
		return err
	}
	// Statements are not prepared, since migrations change what they return.
	config.DefaultQueryExecMode = pgx.QueryExecModeExec
	s.conn, err = pgx.ConnectConfig(ctx, config)
	return err
}

func (s *session) close() {
	if s.conn == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	_ = s.conn.Close(ctx) // The session is given up, whatever it was at.
	s.conn = nil
}

// act is a transaction in the making.
type act struct {
	ctx     context.Context //nolint:containedctx // Of one transaction.
	conn    *pgx.Conn
	written *written
	request string
}

// write runs a statement that returns the tables' rows before and after, and notes them.
func (a *act) write(table, op, sql string, args ...any) error {
	rows, err := a.conn.Query(a.ctx, sql, args...)
	if err != nil {
		return err
	}
	var before, after string
	_, err = pgx.ForEachRow(rows, []any{&before, &after}, func() error {
		a.written.entries = append(a.written.entries, entry{Table: table, Op: op, Before: before, After: after, Request: a.request})
		return nil
	})
	return err
}

func (a *act) exec(sql string, args ...any) error {
	_, err := a.conn.Exec(a.ctx, sql, args...)
	return err
}

var errRollback = errors.New("rolled back on purpose")

// transact runs a transaction and enters it into the journal once it has committed. An
// error is of something that was rolled back, which the journal counts unless the writer
// wanted it.
func (s *session) transact(ctx context.Context, do func(*act) error) error {
	if err := s.connect(ctx); err != nil {
		if ctx.Err() == nil {
			s.journal.fail(err)
		}
		return err
	}
	s.serial++
	a := &act{ctx: ctx, conn: s.conn, written: &written{writer: s.writer, serial: s.serial}}
	err := s.attempt(ctx, a, do)
	var doubt *doubtError
	switch {
	case err == nil, errors.As(err, &doubt):
		return err
	case errors.Is(err, errRollback):
		return nil
	}
	if ctx.Err() == nil {
		s.journal.fail(err)
	}
	if s.conn.PgConn().TxStatus() != 'I' {
		if _, err := s.conn.Exec(ctx, "ROLLBACK"); err != nil {
			s.close()
		}
	}
	return err
}

func (s *session) attempt(ctx context.Context, a *act, do func(*act) error) error {
	if err := a.exec("BEGIN"); err != nil {
		return err
	}
	if err := s.conn.QueryRow(ctx, "INSERT INTO harness.fate VALUES ($1, $2) RETURNING pg_current_xact_id()::text::bigint", s.writer, s.serial).Scan(&a.written.xid); err != nil {
		return err
	}
	if err := do(a); err != nil {
		if errors.Is(err, errRollback) {
			if _, err := s.conn.Exec(ctx, "ROLLBACK"); err != nil {
				return err
			}
		}
		return err
	}
	if err := s.conn.QueryRow(ctx, "SELECT pg_current_wal_insert_lsn()::text").Scan(&a.written.after); err != nil {
		return err
	}
	a.written.at = time.Now()
	if _, err := s.conn.Exec(ctx, "COMMIT"); err != nil {
		var pgErr *pgconn.PgError
		if errors.As(err, &pgErr) && pgErr.Severity != "FATAL" {
			return err // the server says no
		}
		s.journal.fail(err)
		s.close()
		return s.resolve(a.written, err)
	}
	if err := s.conn.QueryRow(ctx, "SELECT pg_current_wal_insert_lsn()::text").Scan(&a.written.until); err != nil {
		s.close()
		return s.resolve(a.written, err)
	}
	s.journal.add(a.written)
	return nil
}

// doubtError is returned of a transaction whose fate was found out afterwards.
type doubtError struct{ cause error }

func (e *doubtError) Error() string { return "outcome was unknown: " + e.cause.Error() }
func (e *doubtError) Unwrap() error { return e.cause }

// resolve finds out whether a transaction has committed whose COMMIT was not answered. It
// does so even if the run ends meanwhile, since the journal has to be whole. Its row tells:
// a server that crashed gives the ids of transactions that it has forgotten to others.
func (s *session) resolve(w *written, cause error) error {
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Minute)
	defer cancel()
	for ctx.Err() == nil {
		var over, committed bool
		err := s.connect(ctx)
		if err == nil {
			err = s.conn.QueryRow(ctx, `
				SELECT $1 >= pg_snapshot_xmax(now)::text::bigint OR coalesce(pg_xact_status($1::text::xid8), '') <> 'in progress', pg_current_wal_insert_lsn()::text
				FROM pg_current_snapshot() now`, w.xid).Scan(&over, &w.until)
		}
		if err == nil && over { // in this order: what is over now was visible before
			err = s.conn.QueryRow(ctx, "SELECT EXISTS (SELECT FROM harness.fate WHERE writer = $1 AND serial = $2)", w.writer, w.serial).Scan(&committed)
		}
		switch {
		case err != nil:
			s.close()
		case committed:
			s.journal.add(w)
			return &doubtError{cause}
		case over:
			return &doubtError{cause}
		}
		wait(ctx, 50*time.Millisecond)
	}
	panic(fmt.Sprintf("nobody knows whether transaction %d has committed: %v", w.xid, cause))
}
