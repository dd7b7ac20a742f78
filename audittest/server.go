package audittest

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/hindsight-go/audit/internal/pgserver"
)

// startTimeout bounds the start of a server. A container whose image has to be
// fetched takes the longest.
const startTimeout = 5 * time.Minute

// logExcerpt is how much of its server's log a failed test shows.
const logExcerpt = 16 << 10

// ServerOptions says what is wanted of a server. The zero value is the fastest
// server there is.
type ServerOptions struct {
	// Settings are configuration parameters by name, for instance
	// "max_slot_wal_keep_size": "1MB".
	Settings map[string]string

	// Durable turns fsync on, for benchmarks that shall mean something. Default:
	// off. The crash of the server is survived either way, only that of the
	// machine is not.
	Durable bool

	// Logger gets a few messages at level debug. Nil means slog.Default().
	Logger *slog.Logger
}

// Server is a PostgreSQL server for tests.
type Server struct {
	pg *pgserver.Server

	// run is part of the names of all databases that this process makes on the
	// server, and made counts them.
	run  string
	made atomic.Int64

	// template makes the database with an empty store that others are cloned from, once.
	template func() (string, error)

	// shared is set on the server of the whole test process, which no test may
	// stop under the others.
	shared bool

	// lease is a session on a given server that says that run is alive, and is
	// never used again: see sweep.
	lease *pgx.Conn
}

// sharedServers are the ones that [NewDatabase] uses.
var sharedServers pool

// testsPerServer is how many tests use a shared server before another is started,
// and maxSharedServers how many there are at most. Tests on one server are in each
// other's way: a slot is made only once all transactions of the server that are open
// have ended, and every slot reads the changes of all databases.
const (
	testsPerServer   = 2
	maxSharedServers = 8
)

// pool is the shared servers of a test process. They are never closed: they end with
// the process, and there is no last test that could close them. The start does not
// depend on the context of the test that happens to be first.
type pool struct {
	mu      sync.Mutex
	servers []*sharedServer
}

// sharedServer is one of them, and the tests that use it.
type sharedServer struct {
	start func() (*Server, error)
	// databases counts, by the test's name, the databases that are there.
	databases map[string]int
}

// server gives the server for the next database of a test, which is the one of its
// other databases. The caller gives it back with release.
func (p *pool) server(test string) (s *Server, release func(), err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	var chosen *sharedServer
	for _, s := range p.servers {
		if s.databases[test] > 0 {
			chosen = s
			break
		}
		if chosen == nil || len(s.databases) < len(chosen.databases) {
			chosen = s
		}
	}
	if chosen == nil || chosen.databases[test] == 0 && len(chosen.databases) >= testsPerServer && p.mayGrow() {
		chosen = &sharedServer{start: sync.OnceValues(startShared), databases: make(map[string]int)}
		p.servers = append(p.servers, chosen)
	}
	chosen.databases[test]++
	p.mu.Unlock()
	s, err = chosen.start()
	p.mu.Lock()
	return s, func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		if chosen.databases[test]--; chosen.databases[test] == 0 {
			delete(chosen.databases, test)
		}
	}, err
}

// mayGrow reports whether another server may be started: one that is given is the
// only one, and a container is too much to have several.
func (p *pool) mayGrow() bool {
	if len(p.servers) >= maxSharedServers {
		return false
	}
	for _, s := range p.servers {
		if started, err := s.start(); err != nil || started.pg.Kind() != pgserver.Private {
			return false
		}
	}
	return true
}

func startShared() (*Server, error) {
	ctx, cancel := context.WithTimeout(context.Background(), startTimeout)
	defer cancel()
	s, err := startServer(ctx, pgserver.Options{})
	if err != nil {
		return nil, err
	}
	s.shared = true
	return s, nil
}

func startServer(ctx context.Context, opts pgserver.Options) (*Server, error) {
	pg, err := pgserver.Start(ctx, opts)
	if err != nil {
		return nil, err
	}
	s := &Server{pg: pg, run: newRun()}
	s.template = sync.OnceValues(s.makeTemplate)
	if pg.Kind() == pgserver.Given {
		s.run = leased + s.run
		if err := s.join(ctx); err != nil {
			return nil, fmt.Errorf("audittest: join the given server: %w", err)
		}
	}
	return s, nil
}

// newRun names this use of a server, for which other processes may have a use
// at the same time, from other machines as well.
func newRun() string {
	random := make([]byte, 4)
	_, _ = rand.Read(random) // It never fails.
	return fmt.Sprintf("%d_%s", os.Getpid(), hex.EncodeToString(random))
}

// NewServer starts a server that belongs to the test, and removes it when the
// test ends. A test that fails shows the end of the server's log. The server
// of AUDIT_TEST_DATABASE_URL is not used for it.
func NewServer(t testing.TB, opts ServerOptions) *Server {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), startTimeout)
	defer cancel()
	s, err := startServer(ctx, pgserver.Options{
		Own:      true,
		Settings: opts.Settings,
		Durable:  opts.Durable,
		Logger:   opts.Logger,
	})
	if err != nil {
		t.Fatalf("start server: %v", err)
	}
	t.Cleanup(func() {
		if err := s.pg.Close(); err != nil {
			t.Errorf("close server: %v", err)
		}
		if t.Failed() {
			log := s.pg.Log()
			t.Logf("the server's log ends:\n%s", log[max(0, len(log)-logExcerpt):])
		}
	})
	return s
}

// URL is the connection string of a database on the server, "postgres" being
// the one that every server has. It stays the same over restarts.
func (s *Server) URL(database string) string { return s.pg.DSN(database) }

// Version is the server's version as in server_version_num: 150008 is 15.8.
func (s *Server) Version() int { return s.pg.Version() }

// Log is the end of the server's log, empty for the server of
// AUDIT_TEST_DATABASE_URL.
func (s *Server) Log() string { return s.pg.Log() }

// PID is the process id of the server's main process. It is 0 while the server
// is stopped, and always for one that is not a private cluster.
func (s *Server) PID() int { return s.pg.PID() }

// DataDir is the data directory of a private cluster.
func (s *Server) DataDir() string { return s.pg.DataDir() }

// BinDir is the directory of a private cluster's binaries, where psql, pg_dump
// and pgbench may be as well.
func (s *Server) BinDir() string { return s.pg.BinDir() }

// Restart stops the server in an orderly way and starts it again. Every
// connection to it ends.
func (s *Server) Restart(t testing.TB) {
	t.Helper()
	s.control(t, "restart", s.pg.Restart)
}

// StopImmediate stops the server at once and without a checkpoint, so that its
// next start goes through crash recovery. A server that is stopped stays so.
func (s *Server) StopImmediate(t testing.TB) {
	t.Helper()
	s.control(t, "stop", s.pg.StopImmediate)
}

// Kill ends the server's main process with SIGKILL, as a kernel does that is
// out of memory. A server that is stopped stays so.
func (s *Server) Kill(t testing.TB) {
	t.Helper()
	s.control(t, "kill", s.pg.Kill)
}

// StartAgain starts a server that was stopped or killed, and returns when it
// accepts connections. A server that runs stays so.
func (s *Server) StartAgain(t testing.TB) {
	t.Helper()
	s.control(t, "start", s.pg.StartAgain)
}

func (s *Server) control(t testing.TB, op string, do func(context.Context) error) {
	t.Helper()
	if s.shared {
		t.Fatalf("%s server: it is shared by all tests of the process; use audittest.NewServer", op)
	}
	// Not bound to the test's context: a cleanup function may need the server
	// up again.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), startTimeout)
	defer cancel()
	if err := do(ctx); err != nil {
		t.Fatalf("%s server: %v", op, err)
	}
}
