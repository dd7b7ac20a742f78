package audittest

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/hindsight-go/audit/internal/pgserver"
)

// namePrefix begins the names of all databases that this package makes, and
// the application names of the sessions that vouch for them.
const namePrefix = "audit_test_"

// leased marks the names of databases on a given server, for which a session
// vouches. Others are never swept: they go with their server, and if a test
// gives that to another process by AUDIT_TEST_DATABASE_URL, they are in use.
const leased = "l"

// leasedPattern is what the whole name of such a database looks like. It is
// strict, since what matches it may be dropped.
const leasedPattern = "^" + namePrefix + leased + "[0-9]+_[0-9a-f]{8}_[0-9]+$"

// The SQLSTATEs that dropping has to expect.
const (
	noSuchDatabase = "3D000"
	noSuchObject   = "42704"
	objectInUse    = "55006"
)

// maintain runs do on a session from which databases are made and dropped.
// Each time it is a new one: it costs a few milliseconds, and tests that run
// in parallel do not wait for each other.
func (s *Server) maintain(ctx context.Context, do func(*pgx.Conn) error) error {
	conn, err := pgx.Connect(ctx, s.pg.MaintenanceDSN())
	if err != nil {
		return fmt.Errorf("connect: %w", err)
	}
	defer closeSession(conn)
	return do(conn)
}

// create clones a database that nobody is connected to: one with sessions on it cannot be
// cloned, and template0 never has any.
func (s *Server) create(ctx context.Context, name, template string) error {
	sql := "CREATE DATABASE " + quote(name) + " TEMPLATE " + quote(template)
	if s.pg.Kind() != pgserver.Given && s.pg.Version() >= 150000 {
		// The default since 15 writes all of the template to the WAL, 4 MB
		// that every slot of every other test would have to read.
		sql += " STRATEGY file_copy"
	}
	return s.maintain(ctx, func(conn *pgx.Conn) error {
		_, err := conn.Exec(ctx, sql)
		return err
	})
}

func (s *Server) drop(ctx context.Context, name string) error {
	return s.maintain(ctx, func(conn *pgx.Conn) error { return dropDatabase(ctx, conn, name) })
}

// dropDatabase drops a database and what stands in the way of that: sessions,
// and replication slots, which DROP DATABASE does not drop even with FORCE.
func dropDatabase(ctx context.Context, conn *pgx.Conn, name string) error {
	// A capture that still runs would be back with a new session, and use its
	// slot again, as soon as its old session ends.
	_, err := conn.Exec(ctx, "ALTER DATABASE "+quote(name)+" WITH ALLOW_CONNECTIONS false")
	if hasCode(err, noSuchDatabase) {
		return nil // The test has dropped it, which it may.
	}
	if err != nil {
		return fmt.Errorf("close database to new sessions: %w", err)
	}

	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for {
		left, err := dropSlots(ctx, conn, name)
		if err != nil {
			return err
		}
		if left == 0 {
			break
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("wait for %d replication slots to become inactive: %w", left, ctx.Err())
		case <-tick.C:
		}
	}
	_, err = conn.Exec(ctx, "DROP DATABASE IF EXISTS "+quote(name)+" WITH (FORCE)")
	return err
}

// dropSlots ends the sessions on a database and drops the slots that are not
// in use. It returns how many are left, since a session takes its time to end.
func dropSlots(ctx context.Context, conn *pgx.Conn, database string) (left int, err error) {
	const terminate = `
		SELECT pg_catalog.pg_terminate_backend(pid)
		FROM pg_catalog.pg_stat_activity
		WHERE datname = $1 AND pid <> pg_catalog.pg_backend_pid()
		UNION ALL
		SELECT pg_catalog.pg_terminate_backend(active_pid)
		FROM pg_catalog.pg_replication_slots
		WHERE database = $1 AND active_pid IS NOT NULL`
	if _, err := conn.Exec(ctx, terminate, database); err != nil {
		return 0, fmt.Errorf("end sessions: %w", err)
	}
	rows, err := conn.Query(ctx, "SELECT slot_name::text FROM pg_catalog.pg_replication_slots WHERE database = $1", database)
	if err != nil {
		return 0, fmt.Errorf("list replication slots: %w", err)
	}
	slots, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		return 0, fmt.Errorf("list replication slots: %w", err)
	}
	for _, slot := range slots {
		_, err := conn.Exec(ctx, "SELECT pg_catalog.pg_drop_replication_slot($1)", slot)
		switch {
		case err == nil, hasCode(err, noSuchObject): // A temporary one goes with its session.
		case hasCode(err, objectInUse):
			left++
		default:
			return 0, fmt.Errorf("drop replication slot: %w", err)
		}
	}
	return left, nil
}

// join opens the session that vouches for our databases on a given server, and
// drops the databases of those who are gone.
func (s *Server) join(ctx context.Context) error {
	config, err := pgx.ParseConfig(s.pg.MaintenanceDSN())
	if err != nil {
		return err
	}
	config.RuntimeParams["application_name"] = namePrefix + s.run
	s.lease, err = pgx.ConnectConfig(ctx, config)
	if err != nil {
		return err
	}
	return s.sweep(ctx)
}

// sweep drops databases that were left behind by processes that were killed.
// On a server that lives on, their slots would hold WAL back until its disk is
// full. A process opens its session before its first database and keeps it, so
// a database in the statement's snapshot without a session at the time the
// sessions are read, which is later, has no process. Only our role's databases
// are looked at: of other roles' sessions the names may be hidden.
func (s *Server) sweep(ctx context.Context) error {
	const orphans = `
		SELECT d.datname::text
		FROM pg_catalog.pg_database AS d
		WHERE d.datname::text ~ $1
		  AND pg_catalog.pg_get_userbyid(d.datdba) = current_user
		  AND NOT EXISTS (
		    SELECT FROM pg_catalog.pg_stat_activity AS a
		    WHERE pg_catalog.starts_with(d.datname::text, a.application_name || '_'))`
	return s.maintain(ctx, func(conn *pgx.Conn) error {
		rows, err := conn.Query(ctx, orphans, leasedPattern)
		if err != nil {
			return fmt.Errorf("look for orphans: %w", err)
		}
		names, err := pgx.CollectRows(rows, pgx.RowTo[string])
		if err != nil {
			return fmt.Errorf("look for orphans: %w", err)
		}
		for _, name := range names {
			if err := dropDatabase(ctx, conn, name); err != nil && !hasCode(err, noSuchDatabase) {
				return fmt.Errorf("drop orphan: %w", err)
			}
		}
		return nil
	})
}

func (s *Server) close() error {
	if s.lease != nil {
		closeSession(s.lease)
	}
	return s.pg.Close()
}

func quote(name string) string { return pgx.Identifier{name}.Sanitize() }

func hasCode(err error, code string) bool {
	var pgErr *pgconn.PgError
	return errors.As(err, &pgErr) && pgErr.Code == code
}
