package audittest

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/hindsight-go/audit/internal/pgserver"
)

// dropTimeout bounds the drop of a database, which waits for the sessions on
// it to end.
const dropTimeout = 30 * time.Second

// Database is a database that belongs to one test or one program. Its methods
// may be called from several goroutines.
type Database struct {
	server *Server
	name   string
	url    string
	// owner says that the server is there for this database only.
	owner bool

	// mu guards the fields below, and lets one statement at a time use conn.
	mu     sync.Mutex
	closed bool
	conn   *pgx.Conn
	// connPID is the server process that conn was made to: after a restart of
	// the server it is another, and conn is of no use any more.
	connPID int
}

// NewDatabase makes an empty database on one of the servers that the tests of the
// process share, and drops it when the test ends. All databases of a test are on the
// same server. It fails the test if there is no server to be had.
func NewDatabase(t testing.TB) *Database {
	t.Helper()
	return shared(t).NewDatabase(t)
}

// shared gives the server that the test's databases are on.
func shared(t testing.TB) *Server {
	t.Helper()
	s, release, err := sharedServers.server(t.Name())
	t.Cleanup(release)
	if err != nil {
		t.Fatalf("start server: %v", err)
	}
	return s
}

// NewDatabase makes an empty database on the server, and drops it when the
// test ends.
func (s *Server) NewDatabase(t testing.TB) *Database {
	t.Helper()
	return s.clone(t, "template0")
}

// clone makes a database from a template, and drops it when the test ends.
func (s *Server) clone(t testing.TB, template string) *Database {
	t.Helper()
	d, err := s.newDatabase(t.Context(), template)
	if err != nil {
		t.Fatalf("make database: %v", err)
	}
	t.Cleanup(func() {
		if err := d.Close(); err != nil {
			t.Errorf("drop database: %v", err)
		}
	})
	return d
}

// StartDatabase gives a program an empty database on a server of its own, or
// on that of AUDIT_TEST_DATABASE_URL. Close removes both, and so does the end
// of the program, however it comes. ctx bounds the start only.
func StartDatabase(ctx context.Context) (*Database, error) {
	s, err := startServer(ctx, pgserver.Options{})
	if err != nil {
		return nil, err
	}
	d, err := s.newDatabase(ctx, "template0")
	if err != nil {
		return nil, errors.Join(err, s.pg.Close())
	}
	d.owner = true
	return d, nil
}

func (s *Server) newDatabase(ctx context.Context, template string) (*Database, error) {
	name := fmt.Sprintf("%s%s_%d", namePrefix, s.run, s.made.Add(1))
	if err := s.create(ctx, name, template); err != nil {
		return nil, fmt.Errorf("audittest: create database: %w", err)
	}
	return &Database{server: s, name: name, url: s.pg.DSN(name)}, nil
}

// URL is the connection string of the database.
func (d *Database) URL() string { return d.url }

// Name is the database's name: lower case letters, digits and underscores, and
// unlike any other on the server.
func (d *Database) Name() string { return d.name }

// Server is the server that the database is on.
func (d *Database) Server() *Server { return d.server }

// Exec runs SQL and fails the test if it fails. Without arguments there may be
// several statements, which then are one transaction unless they say
// otherwise. All calls share one session, except that a restart of the server
// begins a new one.
func (d *Database) Exec(t testing.TB, sql string, args ...any) {
	t.Helper()
	if err := d.exec(testContext(t), sql, args); err != nil {
		t.Fatalf("execute %q: %v", sql, err)
	}
}

func (d *Database) exec(ctx context.Context, sql string, args []any) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	conn, err := d.session(ctx)
	if err != nil {
		return err
	}
	if len(args) == 0 {
		// The simple protocol is the one that takes several statements.
		_, err = conn.PgConn().Exec(ctx, sql).ReadAll()
	} else {
		_, err = conn.Exec(ctx, sql, args...)
	}
	return err
}

// Value runs a query for one row of one column and gives its value. It fails
// the test if the query fails or gives anything else.
func Value[T any](t testing.TB, d *Database, sql string, args ...any) T {
	t.Helper()
	d.mu.Lock()
	defer d.mu.Unlock()
	value, err := queryValue[T](testContext(t), d, sql, args)
	if err != nil {
		t.Fatalf("query %q: %v", sql, err)
	}
	return value
}

// queryValue runs with d.mu held.
func queryValue[T any](ctx context.Context, d *Database, sql string, args []any) (T, error) {
	var zero T
	conn, err := d.session(ctx)
	if err != nil {
		return zero, err
	}
	rows, err := conn.Query(ctx, sql, args...)
	if err != nil {
		return zero, err
	}
	return pgx.CollectExactlyOneRow(rows, pgx.RowTo[T])
}

// Connect opens a session of the test's own, and closes it when the test ends.
func (d *Database) Connect(t testing.TB) *pgx.Conn {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), d.url)
	if err != nil {
		t.Fatalf("connect: %v", err)
	}
	t.Cleanup(func() { closeSession(conn) })
	return conn
}

// testContext is the test's context without its end, so that cleanup functions
// can use the database, too.
func testContext(t testing.TB) context.Context { return context.WithoutCancel(t.Context()) }

// session gives the session that Exec and Value share. d.mu is held.
func (d *Database) session(ctx context.Context) (*pgx.Conn, error) {
	if d.closed {
		return nil, errors.New("audittest: the database is closed")
	}
	pid := d.server.pg.PID()
	if d.conn != nil && !d.conn.IsClosed() && d.connPID == pid {
		return d.conn, nil
	}
	if d.conn != nil {
		closeSession(d.conn)
		d.conn = nil
	}
	conn, err := pgx.Connect(ctx, d.url)
	if err != nil {
		return nil, fmt.Errorf("connect: %w", err)
	}
	d.conn, d.connPID = conn, pid
	return conn, nil
}

// closeSession closes a session and does not care how it takes it: whatever it
// did has been answered.
func closeSession(conn *pgx.Conn) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	_ = conn.Close(ctx)
}

// Close ends every session on the database and drops it with its replication
// slots. For a database of [StartDatabase] it removes the server, too. Tests
// need not call it. Closing twice is harmless.
func (d *Database) Close() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.closed {
		return nil
	}
	d.closed = true
	if d.conn != nil {
		closeSession(d.conn)
	}
	switch {
	case d.server.pg.Kind() == pgserver.Given, d.server.shared:
		ctx, cancel := context.WithTimeout(context.Background(), dropTimeout)
		defer cancel()
		if err := d.server.drop(ctx, d.name); err != nil {
			return fmt.Errorf("audittest: drop database: %w", err)
		}
	default:
		// A server of one test's or program's goes as a whole. It may be down.
	}
	if d.owner {
		return d.server.close()
	}
	return nil
}
