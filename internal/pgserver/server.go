package pgserver

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strconv"
	"strings"

	"github.com/jackc/pgx/v5"
)

// The environment variables that [Start] reads; the package documentation says
// what each does.
const (
	EnvDatabaseURL = "AUDIT_TEST_DATABASE_URL"
	EnvBinDir      = "AUDIT_PG_BIN"
	EnvImage       = "AUDIT_PG_IMAGE"
)

// MinMajor is the oldest major version that is taken: 14 is the first whose
// logical replication sends messages, and without those there is no context.
const MinMajor = 14

// Options says what kind of server is wanted. The zero value is the fastest
// server there is.
type Options struct {
	// Own asks for a server that nobody else uses, so the server of
	// AUDIT_TEST_DATABASE_URL is passed over. Settings and Durable imply it:
	// neither can be had from a server that is already running.
	Own bool

	// Settings are further configuration parameters, by name. They win over
	// those that Start sets.
	Settings map[string]string

	// Durable turns fsync on. The default is off: a throwaway server that
	// survives a power failure serves nobody. The crash of the server itself is
	// survived either way. Benchmarks want it on.
	Durable bool

	// Logger gets a few messages at level debug. Nil means slog.Default().
	Logger *slog.Logger
}

// Kind says where a server comes from.
type Kind string

// The kinds of server.
const (
	// Given is the server of AUDIT_TEST_DATABASE_URL.
	Given Kind = "given"
	// Private is a cluster that this process made and controls.
	Private Kind = "private"
	// Container runs in a container that this process started.
	Container Kind = "container"
)

// Server is a running PostgreSQL server. Its methods may be called from
// several goroutines.
type Server struct {
	kind    Kind
	host    host
	version int
}

// host is a place where a server runs.
type host interface {
	dsn(database string) string
	maintenanceDSN() string
	log() string
	close() error
}

// controlled is a host whose server process is ours to stop and start.
type controlled interface {
	host
	restart(ctx context.Context) error
	stopImmediate(ctx context.Context) error
	kill(ctx context.Context) error
	startAgain(ctx context.Context) error
	pid() int
	dataDir() string
	binDir() string
}

// Start finds a server, starting one if need be, and returns when it accepts
// connections. The package documentation gives the order of the search. ctx
// bounds the start only; the server runs until Close, or until the process
// ends.
func Start(ctx context.Context, opts Options) (*Server, error) {
	opts.Logger = cmp.Or(opts.Logger, slog.Default())
	own := opts.Own || opts.Durable || len(opts.Settings) > 0
	var attempts []Attempt

	switch dsn := os.Getenv(EnvDatabaseURL); {
	case dsn == "":
		attempts = append(attempts, Attempt{EnvDatabaseURL, "not set"})
	case own:
		attempts = append(attempts, Attempt{EnvDatabaseURL, "passed over, since a server of one's own was asked for"})
	default:
		return useGiven(ctx, dsn)
	}

	image := os.Getenv(EnvImage)
	if image == "" || os.Getenv(EnvBinDir) != "" {
		installed, tried, err := findInstalled(ctx)
		attempts = append(attempts, tried...)
		if installed == nil && ctx.Err() != nil { // a search that was cut short has found nothing out
			return nil, fmt.Errorf("pgserver: look for a server: %w", ctx.Err())
		}
		if err != nil {
			return nil, &NotFoundError{Attempts: attempts, Err: err}
		}
		if installed != nil {
			opts.Logger.DebugContext(ctx, "pgserver: starting private cluster", "bin", installed.dir, "major", installed.major)
			c, err := startCluster(ctx, *installed, opts)
			if err != nil {
				return nil, err
			}
			return ready(ctx, Private, c)
		}
	}

	image = cmp.Or(image, DefaultImage)
	opts.Logger.DebugContext(ctx, "pgserver: starting container", "image", image)
	c, err := startContainer(ctx, image, opts)
	if none := (*NoContainersError)(nil); errors.As(err, &none) {
		attempts = append(attempts, Attempt{"container " + image, strings.ReplaceAll(none.Error(), "\n", "; ")})
		return nil, &NotFoundError{Attempts: attempts, Err: err}
	}
	if err != nil {
		return nil, err
	}
	return ready(ctx, Container, c)
}

// ready asks the new server for its version, which also proves that it answers.
func ready(ctx context.Context, kind Kind, h host) (*Server, error) {
	s := &Server{kind: kind, host: h}
	version, err := serverVersion(ctx, s.MaintenanceDSN())
	if err != nil {
		startErr := &StartError{Op: "connect", Log: h.log(), Err: err}
		if closeErr := h.close(); closeErr != nil {
			return nil, fmt.Errorf("%w; then %w", startErr, closeErr)
		}
		return nil, startErr
	}
	s.version = version
	return s, nil
}

func serverVersion(ctx context.Context, dsn string) (int, error) {
	conn, err := pgx.Connect(ctx, dsn)
	if err != nil {
		return 0, err
	}
	defer conn.Close(ctx)
	var num string
	if err := conn.QueryRow(ctx, "SELECT pg_catalog.current_setting('server_version_num')").Scan(&num); err != nil {
		return 0, fmt.Errorf("read server_version_num: %w", err)
	}
	return strconv.Atoi(num)
}

// Kind says where the server comes from.
func (s *Server) Kind() Kind { return s.kind }

// DSN is the connection string of a database on this server, for pgx, psql and
// every other client. It stays the same over restarts.
func (s *Server) DSN(database string) string { return s.host.dsn(database) }

// MaintenanceDSN is the connection string of a database that is there from the
// start, to create others from: postgres, or what a given server's connection
// string names.
func (s *Server) MaintenanceDSN() string { return s.host.maintenanceDSN() }

// Version is the server's version as in server_version_num: 150008 is 15.8.
func (s *Server) Version() int { return s.version }

// Log is the end of the server's log, at most its last mebibyte. It is still
// there after Close. A given server's log is out of reach: it is empty.
func (s *Server) Log() string { return s.host.log() }

// BinDir is the directory of the server's binaries, empty unless the server is
// a private cluster.
func (s *Server) BinDir() string {
	if c, ok := s.host.(controlled); ok {
		return c.binDir()
	}
	return ""
}

// DataDir is the data directory, empty unless the server is a private cluster.
func (s *Server) DataDir() string {
	if c, ok := s.host.(controlled); ok {
		return c.dataDir()
	}
	return ""
}

// PID is the process id of the postmaster: 0 while it is stopped, and unless
// the server is a private cluster.
func (s *Server) PID() int {
	if c, ok := s.host.(controlled); ok {
		return c.pid()
	}
	return 0
}

// Restart stops the server in fast mode (sessions are ended, a checkpoint is
// written) and starts it again. A fast stop waits until every replication
// connection has been sent all the WAL there is; if that takes longer than ctx
// allows, the server is stopped in immediate mode and an error is returned.
func (s *Server) Restart(ctx context.Context) error {
	c, err := s.control("restart")
	if err != nil {
		return err
	}
	return c.restart(ctx)
}

// StopImmediate stops the server without a checkpoint, so that its next start
// goes through crash recovery. It does nothing to a server that is stopped.
func (s *Server) StopImmediate(ctx context.Context) error {
	c, err := s.control("stop")
	if err != nil {
		return err
	}
	return c.stopImmediate(ctx)
}

// Kill ends the postmaster with SIGKILL, as the kernel does when it is out of
// memory. It does nothing to a server that is stopped.
func (s *Server) Kill(ctx context.Context) error {
	c, err := s.control("kill")
	if err != nil {
		return err
	}
	return c.kill(ctx)
}

// StartAgain starts a server that was stopped, or died. It does nothing to one
// that runs.
func (s *Server) StartAgain(ctx context.Context) error {
	c, err := s.control("start")
	if err != nil {
		return err
	}
	return c.startAgain(ctx)
}

func (s *Server) control(op string) (controlled, error) {
	c, ok := s.host.(controlled)
	if !ok {
		return nil, &NotPrivateError{Op: op, Kind: s.kind}
	}
	return c, nil
}

// Close stops the server and removes everything it had on disk; a given server
// is left as it is. Closing twice is harmless.
func (s *Server) Close() error { return s.host.close() }

// logLimit is how much of a server's log is given at most.
const logLimit = 1 << 20
