//go:build unix

package auditsql_test

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/hindsight-go/audit"
	"github.com/hindsight-go/audit/audittest"
	"github.com/hindsight-go/audit/internal/faulttest"
)

// TestThroughPgBouncer needs the program pgbouncer, which Debian and others have
// as a package of that name.
func TestThroughPgBouncer(t *testing.T) {
	t.Parallel()
	// The modes that go with a pooler that does not know prepared statements.
	for _, d := range []aDriver{
		{name: "pgx", mode: pgx.QueryExecModeExec},
		{name: "another driver", hide: hidden, mode: pgx.QueryExecModeSimpleProtocol},
	} {
		t.Run(d.name, func(t *testing.T) {
			t.Parallel()
			a := audittest.New(t, audit.Config{}, todoSQL)
			config := startPgBouncer(t, a.Database)
			db, connector := d.open(t, config)
			db.SetMaxOpenConns(12)
			serveMany(t, db, nil, 1000)
			if stats := connector.Stats(); stats.Lost != 0 {
				t.Errorf("%+v", stats)
			}
			checkUsers(t, a)
		})
	}
}

// startPgBouncer starts a pooler in transaction mode with two connections to the
// server, and returns how to connect to it.
func startPgBouncer(t *testing.T, db *audittest.Database) *pgx.ConnConfig {
	t.Helper()
	program, err := exec.LookPath("pgbouncer")
	if err != nil {
		program = "/usr/sbin/pgbouncer" // not on everybody's path
	}
	config := parse(t, db, nil)
	dir, err := os.MkdirTemp("/tmp", "pgb")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	const port = 6432 // in a directory of its own
	server := fmt.Sprintf("host=%s port=%d user=%s dbname=%s", config.Host, config.Port, config.User, config.Database)
	if config.Password != "" {
		server += " password='" + strings.ReplaceAll(config.Password, "'", "''") + "'"
	}
	ini := filepath.Join(dir, "pgbouncer.ini")
	text := fmt.Sprintf(`[databases]
%s = %s
[pgbouncer]
listen_addr =
unix_socket_dir = %s
listen_port = %d
auth_type = any
pool_mode = transaction
default_pool_size = 2
ignore_startup_parameters = extra_float_digits
`, config.Database, server, dir, port)
	if err := os.WriteFile(ini, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	command := exec.Command(program, "-q", ini) //nolint:noctx // ended below
	command.Stderr = os.Stderr
	runAsOwner(t, command, config.Host, dir)
	if err := command.Start(); err != nil {
		t.Fatalf("start pgbouncer (install the package of that name): %v", err)
	}
	t.Cleanup(func() {
		_ = command.Process.Kill()
		_ = command.Wait()
	})
	config.Host, config.Port, config.Fallbacks = dir, port, nil
	faulttest.Poll(t, faulttest.Patience, "a pooler that answers", func() error {
		conn, err := pgx.ConnectConfig(t.Context(), config)
		if err != nil {
			return err
		}
		return conn.Close(t.Context())
	})
	return config
}

// runAsOwner lets a command run as whoever may use the sockets of a server, or
// else as nobody, where we are root, which a pooler refuses to be. The directory
// will be theirs.
func runAsOwner(t *testing.T, command *exec.Cmd, sockets, dir string) {
	t.Helper()
	if os.Geteuid() != 0 {
		return
	}
	nobody, err := user.Lookup("nobody")
	if err != nil {
		t.Fatal(err)
	}
	uid, uidErr := strconv.Atoi(nobody.Uid)
	gid, gidErr := strconv.Atoi(nobody.Gid)
	if err := errors.Join(uidErr, gidErr); err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(sockets); err == nil {
		if stat, ok := info.Sys().(*syscall.Stat_t); ok && stat.Uid != 0 {
			uid, gid = int(stat.Uid), int(stat.Gid)
		}
	}
	command.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}}
	if err := os.Chown(dir, uid, gid); err != nil {
		t.Fatal(err)
	}
}
