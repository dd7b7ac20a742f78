package store

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/hindsight-go/audit/internal/deadpeer"
)

const (
	// setupLease is how long the server lets a holder of the set-up lock be silent.
	// One that is frozen, or whose host is gone, loses the lock after it.
	setupLease = 20 * time.Second
	// setupRenewal is how often a holder speaks up.
	setupRenewal = 4 * time.Second
	// setupTry is how long one attempt waits in the queue for the lock.
	setupTry = time.Second
)

// LockHolder is a session, or a prepared transaction, that holds a lock.
type LockHolder struct {
	PID             int // 0 of a prepared transaction
	User            string
	ApplicationName string
	State           string
	// Age is that of its transaction, 0 if the server does not tell.
	Age time.Duration
	// GID is the name of a prepared transaction, else empty.
	GID string
}

func (h LockHolder) String() string {
	if h.GID != "" {
		return fmt.Sprintf("prepared transaction %q of %s, %s old (ROLLBACK PREPARED or COMMIT PREPARED ends it)", h.GID, h.User, h.Age.Round(time.Second))
	}
	return fmt.Sprintf("pid %d (user %s, application %q, %s for %s)", h.PID, h.User, h.ApplicationName, h.State, h.Age.Round(time.Second))
}

// SetupLockedError is returned when somebody else holds the lock under which tables
// join and slots are made, for longer than one waits for it. It names the holders,
// if they have not ended meanwhile.
type SetupLockedError struct {
	Schema  string // of the store
	Waited  time.Duration
	Holders []LockHolder
	// Cause is why waiting has ended: 55P03 of the server, or the error of a context.
	Cause error
}

func (e *SetupLockedError) Error() string {
	who := make([]string, len(e.Holders))
	for i, h := range e.Holders {
		who[i] = h.String()
	}
	if len(who) == 0 {
		who = []string{"another call on this client, or a session that has ended"}
	}
	return fmt.Sprintf("store: setting up waits for the lock on %s.schema_migrations, which is held by %s", e.Schema, strings.Join(who, "; "))
}

// Unwrap returns the cause.
func (e *SetupLockedError) Unwrap() error { return e.Cause }

// SetupHolder is an instance that has set up a database, and may say what is covered of it
// until another does. An instance that lost the lock and set up again is another, too.
type SetupHolder struct {
	Database string
	token    string
}

// ErrSetupTaken is returned where an instance says what is covered after it has lost the
// lock on setting up, and another has set up since.
var ErrSetupTaken = errors.New("store: another instance has set up meanwhile")

// fenced names the error of a function of the store that refuses a holder.
func fenced(err error) error {
	if isCode(err, "AU003") {
		return fmt.Errorf("%w: %w", ErrSetupTaken, err)
	}
	return err
}

// LockSetup takes the lock under which one instance at a time sets up a database: a lock on
// a table of the store, so that only who may write the history can be in the way. It
// waits for it for up to patience, telling waits of the holders about every second,
// and then returns a *SetupLockedError.
//
// The lock is a lease: a holder that is silent for 20 seconds loses it. locked ends
// when the lock is lost, and is what to work with until release. What is said of coverage
// is said in the name of holder, which the store refuses as soon as another instance has the
// lock, whether this one knows of that or not.
func (s *Store) LockSetup(ctx context.Context, database string, patience time.Duration, waits func(*SetupLockedError)) (locked context.Context, holder SetupHolder, release func(), err error) {
	conn, err := s.pool.Acquire(ctx)
	if err != nil {
		return nil, holder, nil, fmt.Errorf("connect to the store: %w", err)
	}
	begun := time.Now()
	for {
		err := s.tryLock(ctx, conn, "setup")
		if err == nil {
			break
		}
		_, _ = conn.Exec(ctx, "ROLLBACK")
		if !isCode(err, "55P03") && ctx.Err() == nil {
			conn.Release()
			return nil, holder, nil, fmt.Errorf("lock %s.schema_migrations: %w", s.name, err)
		}
		held := s.setupLocked(ctx, time.Since(begun), err)
		if ctx.Err() != nil || time.Since(begun) >= patience {
			conn.Release()
			return nil, holder, nil, held
		}
		waits(held)
	}
	if holder, err = s.takeSetup(ctx, conn, database); err != nil {
		_, _ = conn.Exec(ctx, "ROLLBACK")
		conn.Release()
		return nil, holder, nil, err
	}
	locked, unlock := hold(ctx, conn)
	return locked, holder, func() {
		if !unlock() { // what was sent in its name may be on the way still
			s.forgetHolder(database)
		}
	}, nil
}

// takeSetup makes this instance the one that set up a database last, if it is not, while
// conn has the lock.
func (s *Store) takeSetup(ctx context.Context, conn *pgxpool.Conn, database string) (SetupHolder, error) {
	s.mu.Lock()
	holder := s.holders[database]
	s.mu.Unlock()
	if holder.token != "" {
		if held, err := s.HoldsSetup(ctx, holder); held || err != nil {
			return holder, err
		}
	}
	holder = SetupHolder{Database: database, token: rand.Text()}
	if _, err := s.pool.Exec(ctx, "SELECT "+s.schema+".take_setup($1, $2)", database, holder.token); err != nil {
		return holder, fmt.Errorf("take over setting up of %q: %w", database, err)
	}
	// Only if the lock is there still was it there when the place was taken.
	bound, cancel := deadpeer.Bound(ctx)
	defer cancel()
	if _, err := conn.Exec(bound, "SELECT"); err != nil {
		return holder, fmt.Errorf("lock %s.schema_migrations: %w", s.name, err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.holders[database] = holder
	return holder, nil
}

func (s *Store) forgetHolder(database string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.holders, database)
}

// HoldsSetup reports whether nobody else has set up a database since a holder has.
func (s *Store) HoldsSetup(ctx context.Context, holder SetupHolder) (held bool, err error) {
	err = s.pool.QueryRow(ctx, "SELECT EXISTS (SELECT FROM "+s.schema+".setup_holders WHERE database = $1 AND holder = $2)", holder.Database, holder.token).Scan(&held)
	if err != nil {
		return false, fmt.Errorf("look who has set up %q: %w", holder.Database, err)
	}
	return held, nil
}

// ErrRetentionLocked is returned while somebody else drops what is past its retention.
var ErrRetentionLocked = errors.New("store: another instance drops history past its retention")

// LockRetention takes the lock under which one instance at a time carries keyframes along
// and drops history, a lease as that of LockSetup, or returns ErrRetentionLocked.
func (s *Store) LockRetention(ctx context.Context) (locked context.Context, release func(), err error) {
	conn, err := s.pool.Acquire(ctx)
	if err != nil {
		return nil, nil, fmt.Errorf("connect to the store: %w", err)
	}
	if err := s.tryLock(ctx, conn, "retention"); err != nil {
		_, _ = conn.Exec(ctx, "ROLLBACK")
		conn.Release()
		if isCode(err, "55P03") {
			return nil, nil, ErrRetentionLocked
		}
		return nil, nil, fmt.Errorf("lock %s.retention: %w", s.name, err)
	}
	locked, unlock := hold(ctx, conn)
	return locked, func() { unlock() }, nil
}

// hold keeps the lock that a connection has until unlock, which reports whether it was not
// lost by then.
func hold(ctx context.Context, conn *pgxpool.Conn) (locked context.Context, unlock func() (kept bool)) {
	locked, lose := context.WithCancelCause(ctx)
	done := make(chan struct{})
	renewed := make(chan struct{})
	go func() {
		defer close(renewed)
		renew(locked, conn, done, lose)
	}()
	return locked, func() bool {
		close(done)
		<-renewed
		lose(context.Canceled)
		end, cancel := context.WithTimeout(context.WithoutCancel(ctx), setupRenewal)
		defer cancel()
		defer conn.Release()
		if _, err := conn.Exec(end, "COMMIT"); err != nil {
			_ = conn.Conn().Close(end) // which unlocks as well
			return false
		}
		return true
	}
}

func (s *Store) tryLock(ctx context.Context, conn *pgxpool.Conn, purpose string) error {
	ctx, cancel := deadpeer.Bound(ctx)
	defer cancel()
	_, err := conn.Conn().PgConn().Exec(ctx, fmt.Sprintf(`
		BEGIN;
		SET LOCAL application_name = 'audit %s';
		SET LOCAL lock_timeout = %d;
		SET LOCAL idle_in_transaction_session_timeout = %d;
		SELECT %s.hold_lock('%s')`,
		purpose, setupTry.Milliseconds(), setupLease.Milliseconds(), s.schema, purpose)).ReadAll()
	return err
}

// renew keeps the server from ending an idle transaction.
func renew(locked context.Context, conn *pgxpool.Conn, done <-chan struct{}, lose context.CancelCauseFunc) {
	tick := time.NewTicker(setupRenewal)
	defer tick.Stop()
	for {
		select {
		case <-done:
			return
		case <-locked.Done():
			return
		case <-tick.C:
		}
		short, cancel := context.WithTimeout(locked, setupLease-2*setupRenewal)
		_, err := conn.Exec(short, "SELECT")
		cancel()
		if err != nil {
			lose(fmt.Errorf("store: the lock on setting up was lost: %w", err))
			return
		}
	}
}

// setupLocked says who holds the lock.
func (s *Store) setupLocked(ctx context.Context, waited time.Duration, cause error) *SetupLockedError {
	if ctx.Err() != nil {
		cause = ctx.Err()
	}
	e := &SetupLockedError{Schema: s.name, Waited: waited, Cause: cause}
	short, cancel := context.WithTimeout(context.WithoutCancel(ctx), setupTry)
	defer cancel()
	rows, err := s.pool.Query(short, `
		SELECT coalesce(l.pid, 0), coalesce(a.usename, p.owner, ''), coalesce(a.application_name, ''), coalesce(a.state, ''),
			coalesce(extract(epoch FROM pg_catalog.clock_timestamp() - coalesce(a.xact_start, p.prepared)), 0)::float8, coalesce(p.gid, '')
		FROM pg_catalog.pg_locks l
		LEFT JOIN pg_catalog.pg_stat_activity a ON a.pid = l.pid
		LEFT JOIN pg_catalog.pg_locks x ON l.pid IS NULL AND x.pid IS NULL AND x.locktype = 'transactionid' AND x.virtualtransaction = l.virtualtransaction
		LEFT JOIN pg_catalog.pg_prepared_xacts p ON p.transaction = x.transactionid
		WHERE l.locktype = 'relation' AND l.granted
			AND l.database = (SELECT d.oid FROM pg_catalog.pg_database d WHERE d.datname = current_database())
			AND l.relation = (SELECT c.oid FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace WHERE n.nspname = $1 AND c.relname = 'schema_migrations')
			AND l.mode NOT IN ('AccessShareLock', 'RowShareLock')
		ORDER BY 5 DESC
		LIMIT 5`, s.name)
	if err != nil {
		return e
	}
	defer rows.Close()
	for rows.Next() {
		var h LockHolder
		var seconds float64
		if rows.Scan(&h.PID, &h.User, &h.ApplicationName, &h.State, &seconds, &h.GID) == nil {
			h.Age = time.Duration(seconds * float64(time.Second))
			e.Holders = append(e.Holders, h)
		}
	}
	return e
}

func isCode(err error, codes ...string) bool {
	var pgErr *pgconn.PgError
	if !errors.As(err, &pgErr) {
		return false
	}
	for _, code := range codes {
		if pgErr.Code == code {
			return true
		}
	}
	return false
}
