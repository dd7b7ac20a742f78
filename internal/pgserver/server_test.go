//go:build unix

package pgserver_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/hindsight-go/audit/internal/pgserver"
)

// needPrivate skips a test of private clusters where there are only containers.
// On a build machine that has to have been decided.
func needPrivate(t *testing.T) {
	t.Helper()
	switch {
	case pgserver.Installed(t.Context()):
	case os.Getenv("CI") != "" && os.Getenv(pgserver.EnvImage) == "":
		t.Fatal("PostgreSQL is not installed")
	default:
		t.Skip("PostgreSQL is not installed, or a container was asked for")
	}
}

// startPrivate starts a private cluster and closes it when the test ends.
func startPrivate(t *testing.T, opts pgserver.Options) *pgserver.Server {
	t.Helper()
	needPrivate(t)
	opts.Own = true
	s, err := pgserver.Start(t.Context(), opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

func query(t *testing.T, dsn, sql string) string {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), dsn)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(t.Context())
	var text string
	if err := conn.QueryRow(t.Context(), sql).Scan(&text); err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
	return text
}

func execute(t *testing.T, dsn, sql string) {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), dsn)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(t.Context())
	if _, err := conn.Exec(t.Context(), sql); err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
}

// as finds an error of a type, as errors.AsType of Go 1.26 does.
func as[E error](err error) (E, bool) {
	var e E
	ok := errors.As(err, &e)
	return e, ok
}

// eventually polls until cond holds.
func eventually(t *testing.T, what string, cond func() bool) {
	t.Helper()
	deadline := time.After(30 * time.Second)
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for !cond() {
		select {
		case <-deadline:
			t.Fatalf("not within 30 s: %s", what)
		case <-tick.C:
		}
	}
}

func gone(path string) bool {
	_, err := os.Lstat(path)
	return errors.Is(err, os.ErrNotExist)
}

// running says whether a process is alive. One that has ended and that nobody
// has waited for is not.
func running(pid int) bool {
	if errors.Is(syscall.Kill(pid, 0), syscall.ESRCH) {
		return false
	}
	stat, err := os.ReadFile(filepath.Join("/proc", itoa(pid), "stat"))
	return err != nil || !strings.Contains(string(stat), ") Z ")
}

func TestPrivateServer(t *testing.T) {
	t.Parallel()
	s := startPrivate(t, pgserver.Options{Settings: map[string]string{
		"max_slot_wal_keep_size": "77MB",
		"cluster_name":           `it's a 'test' \ `,
	}})

	dsn := s.DSN("postgres")
	for setting, want := range map[string]string{
		"wal_level":              "logical",
		"fsync":                  "off",
		"synchronous_commit":     "on",
		"max_slot_wal_keep_size": "77MB",
		"cluster_name":           `it's a 'test' \ `,
		"listen_addresses":       "",
		"server_encoding":        "UTF8",
		"server_version_num":     itoa(s.Version()),
		"data_directory":         s.DataDir(),
	} {
		if got := query(t, dsn, "SELECT current_setting('"+setting+"')"); got != want {
			t.Errorf("%s is %q, want %q", setting, got, want)
		}
	}
	// Settings that came from the command line could not be changed.
	execute(t, dsn, "ALTER SYSTEM SET max_slot_wal_keep_size = '88MB'")
	execute(t, dsn, "SELECT pg_reload_conf()")
	eventually(t, "ALTER SYSTEM takes effect", func() bool {
		return query(t, dsn, "SELECT current_setting('max_slot_wal_keep_size')") == "88MB"
	})

	if !running(s.PID()) {
		t.Errorf("no process has the id %d", s.PID())
	}
	if _, err := os.Stat(filepath.Join(s.BinDir(), "postgres")); err != nil {
		t.Error(err)
	}
	if !strings.Contains(s.Log(), "ready to accept connections") {
		t.Errorf("the log does not say that the server is ready:\n%s", s.Log())
	}

	pid := s.PID()
	for range 2 {
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if running(pid) || !gone(filepath.Dir(s.DataDir())) {
		t.Error("Close left the process or the directory behind")
	}
	if !strings.Contains(s.Log(), "ready to accept connections") {
		t.Error("the log is gone after Close")
	}
	if err := s.StartAgain(t.Context()); !isClosed(err) {
		t.Errorf("StartAgain after Close: %v, want a ClosedError", err)
	}
}

func isClosed(err error) bool {
	_, ok := as[*pgserver.ClosedError](err)
	return ok
}

func TestDurableServerSyncs(t *testing.T) {
	t.Parallel()
	s := startPrivate(t, pgserver.Options{Durable: true})
	for _, setting := range []string{"fsync", "synchronous_commit"} {
		if got := query(t, s.DSN("postgres"), "SELECT current_setting('"+setting+"')"); got != "on" {
			t.Errorf("%s is %s, want on", setting, got)
		}
	}
}

func TestServerComesBack(t *testing.T) {
	t.Parallel()
	s := startPrivate(t, pgserver.Options{})
	dsn := s.DSN("postgres")
	execute(t, dsn, "CREATE TABLE kept (n int)")

	for name, bounce := range map[string]func(context.Context) error{
		"restart": s.Restart,
		"immediate stop": func(ctx context.Context) error {
			// Twice, since stopping what is stopped is no error.
			return errors.Join(s.StopImmediate(ctx), s.StopImmediate(ctx), down(s), s.StartAgain(ctx), s.StartAgain(ctx))
		},
		"kill": func(ctx context.Context) error {
			return errors.Join(s.Kill(ctx), down(s), s.StartAgain(ctx))
		},
		"a kill by someone else": func(ctx context.Context) error {
			if err := syscall.Kill(s.PID(), syscall.SIGKILL); err != nil {
				return err
			}
			eventually(t, "the server is seen to be gone", func() bool { return s.PID() == 0 })
			return s.StartAgain(ctx)
		},
	} {
		// A session that is open has its process, which a kill leaves to find
		// out for itself that it is an orphan.
		conn, err := pgx.Connect(t.Context(), dsn)
		if err != nil {
			t.Fatal(err)
		}
		before := s.PID()
		execute(t, dsn, "INSERT INTO kept VALUES (1)")
		rows := query(t, dsn, "SELECT count(*)::text FROM kept")
		if err := bounce(t.Context()); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if s.PID() == before || s.PID() == 0 || s.DSN("postgres") != dsn {
			t.Errorf("%s: process %d after %d, DSN %s", name, s.PID(), before, s.DSN("postgres"))
		}
		if got := query(t, dsn, "SELECT count(*)::text FROM kept"); got != rows {
			t.Errorf("%s: %s rows, want %s", name, got, rows)
		}
		_ = conn.Close(t.Context())
	}
}

// down is an error unless the server is.
func down(s *pgserver.Server) error {
	if s.PID() != 0 {
		return errors.New("the server is running")
	}
	return nil
}

func TestServerThatDoesNotStartShowsItsLog(t *testing.T) {
	t.Parallel()
	needPrivate(t)
	_, err := pgserver.Start(t.Context(), pgserver.Options{Settings: map[string]string{"work_mem": "lots"}})
	startErr, ok := as[*pgserver.StartError](err)
	if !ok {
		t.Fatalf("error %v, want a StartError", err)
	}
	if !strings.Contains(startErr.Log, "work_mem") || !strings.Contains(err.Error(), "work_mem") {
		t.Errorf("the error does not show the log: %v", err)
	}
}

func TestStartStopsWithItsContext(t *testing.T) {
	t.Parallel()
	needPrivate(t)
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	began := time.Now()
	s, err := pgserver.Start(ctx, pgserver.Options{Own: true})
	if err == nil {
		_ = s.Close()
		t.Skip("the server was faster")
	}
	if !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("error %v, want that of the context", err)
	}
	if took := time.Since(began); took > 15*time.Second {
		t.Errorf("it took %s", took)
	}
}

// However early the context ends, the error is that of the context.
func TestStartEndsWhereItsContextEnds(t *testing.T) {
	t.Parallel()
	needPrivate(t)
	for _, after := range []time.Duration{0, time.Millisecond, 5 * time.Millisecond, 20 * time.Millisecond} {
		ctx, cancel := context.WithTimeout(t.Context(), after)
		s, err := pgserver.Start(ctx, pgserver.Options{Own: true})
		cancel()
		if err == nil {
			_ = s.Close()
			t.Errorf("a server started within %s", after)
		} else if !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("after %s: error %v, want that of the context", after, err)
		}
	}
}

// The tests from here on change the environment, so they do not run in
// parallel with anything.

func TestNothingFound(t *testing.T) {
	pgserver.SetUsualDirs(t, []string{"/nowhere/*/bin"})
	t.Setenv("PATH", "/nowhere")
	t.Setenv(pgserver.EnvDatabaseURL, "")
	t.Setenv(pgserver.EnvBinDir, "")
	t.Setenv(pgserver.EnvImage, "")
	_, err := pgserver.Start(t.Context(), pgserver.Options{})
	notFound, ok := as[*pgserver.NotFoundError](err)
	if !ok {
		t.Fatalf("error %v, want a NotFoundError", err)
	}
	if len(notFound.Attempts) != 5 {
		t.Errorf("%d attempts, want 5", len(notFound.Attempts))
	}
	for _, want := range []string{
		"AUDIT_TEST_DATABASE_URL: not set",
		"AUDIT_PG_BIN: not set",
		"PATH: no postgres",
		"/nowhere/*/bin: no postgres",
		"container " + pgserver.DefaultImage + ": audittest/auditcontainer is run by the go command, which is not on PATH",
		`import _ "github.com/hindsight-go/audit/audittest/auditcontainer"`,
		"apt-get install postgresql",
	} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("the message does not say %q:\n%v", want, err)
		}
	}
}

func TestVariableThatIsWrongIsNotPassedOver(t *testing.T) {
	t.Setenv(pgserver.EnvDatabaseURL, "")
	t.Setenv(pgserver.EnvBinDir, "/nowhere")
	_, err := pgserver.Start(t.Context(), pgserver.Options{})
	if _, ok := as[*pgserver.NotFoundError](err); !ok || !strings.Contains(err.Error(), "AUDIT_PG_BIN=/nowhere") {
		t.Errorf("error %v, want a NotFoundError that names the directory", err)
	}

	t.Setenv(pgserver.EnvDatabaseURL, "postgres://u:secret@127.0.0.1:1/x?connect_timeout=2")
	_, err = pgserver.Start(t.Context(), pgserver.Options{})
	if err == nil || !strings.Contains(err.Error(), pgserver.EnvDatabaseURL) {
		t.Errorf("error %v, want one that names the variable", err)
	}
	if err != nil && strings.Contains(err.Error(), "secret") {
		t.Errorf("the error gives the password away: %v", err)
	}
}

func TestGivenServer(t *testing.T) {
	owner := startPrivate(t, pgserver.Options{})
	execute(t, owner.DSN("postgres"), "CREATE DATABASE theirs")
	t.Setenv(pgserver.EnvDatabaseURL, owner.DSN("theirs"))

	s, err := pgserver.Start(t.Context(), pgserver.Options{})
	if err != nil {
		t.Fatal(err)
	}
	if s.Kind() != pgserver.Given || s.Version() != owner.Version() || s.PID() != 0 || s.DataDir() != "" {
		t.Errorf("server is %s, version %d, pid %d, data %q", s.Kind(), s.Version(), s.PID(), s.DataDir())
	}
	if got := query(t, s.MaintenanceDSN(), "SELECT current_database()"); got != "theirs" {
		t.Errorf("the maintenance database is %s, want theirs", got)
	}
	if got := query(t, s.DSN("postgres"), "SELECT current_database()"); got != "postgres" {
		t.Errorf("connected to %s, want postgres", got)
	}
	for name, do := range map[string]func(context.Context) error{
		"Restart": s.Restart, "StopImmediate": s.StopImmediate, "Kill": s.Kill, "StartAgain": s.StartAgain,
	} {
		if _, ok := as[*pgserver.NotPrivateError](do(t.Context())); !ok {
			t.Errorf("%s gives no NotPrivateError", name)
		}
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	if !running(owner.PID()) {
		t.Error("Close has stopped a server that is not ours")
	}

	own, err := pgserver.Start(t.Context(), pgserver.Options{Own: true})
	if err != nil {
		t.Fatal(err)
	}
	defer own.Close()
	if own.Kind() == pgserver.Given {
		t.Error("Own got the given server")
	}
}

func TestGivenServerThatWillNotDo(t *testing.T) {
	s := startPrivate(t, pgserver.Options{Settings: map[string]string{"wal_level": "replica"}})
	t.Setenv(pgserver.EnvDatabaseURL, s.DSN("postgres"))
	_, err := pgserver.Start(t.Context(), pgserver.Options{})
	if _, ok := as[*pgserver.UnsuitableError](err); !ok || !strings.Contains(err.Error(), "wal_level = replica") {
		t.Errorf("error %v, want an UnsuitableError about wal_level", err)
	}

	execute(t, s.DSN("postgres"), "ALTER SYSTEM SET wal_level = logical")
	if err := s.Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
	execute(t, s.DSN("postgres"), "CREATE ROLE small LOGIN")
	t.Setenv(pgserver.EnvDatabaseURL, strings.Replace(s.DSN("postgres"), "//postgres@", "//small@", 1))
	_, err = pgserver.Start(t.Context(), pgserver.Options{})
	if _, ok := as[*pgserver.UnsuitableError](err); !ok || !strings.Contains(err.Error(), "create databases") {
		t.Errorf("error %v, want an UnsuitableError about creating databases", err)
	}
}
