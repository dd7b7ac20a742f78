//go:build unix

package faulttest

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/hindsight-go/audit/audittest"
)

// peerPort is in a directory of its own.
const peerPort = 6432

// Run runs a program until the test ends: as whoever may use the given sockets, or else
// as nobody, where we are root, which servers refuse to be. The directory will be theirs.
func Run(t testing.TB, sockets, dir, program string, args ...string) {
	t.Helper()
	command := exec.Command(program, args...) //nolint:noctx // ended below
	command.Stderr = os.Stderr
	if os.Geteuid() == 0 {
		uid, gid := owner(t, sockets)
		command.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}}
		if err := os.Chown(dir, uid, gid); err != nil {
			t.Fatal(err)
		}
	}
	if err := command.Start(); err != nil {
		t.Fatalf("start %s: %v", program, err)
	}
	t.Cleanup(func() {
		_ = command.Process.Signal(syscall.SIGQUIT)
		_ = command.Wait()
	})
}

func owner(t testing.TB, sockets string) (uid, gid int) {
	t.Helper()
	if info, err := os.Stat(sockets); err == nil {
		if stat, ok := info.Sys().(*syscall.Stat_t); ok && stat.Uid != 0 {
			return int(stat.Uid), int(stat.Gid)
		}
	}
	account, err := user.Lookup("nobody")
	if err != nil {
		t.Fatal(err)
	}
	uid, _ = strconv.Atoi(account.Uid)
	gid, _ = strconv.Atoi(account.Gid)
	return uid, gid
}

// PgBouncer is the program of that name, which Debian and others have as a package.
type PgBouncer struct {
	program string
	// KnowsPrepared reports whether it follows prepared statements in transaction mode, as
	// from 1.21 on.
	KnowsPrepared bool
}

// FindPgBouncer finds the program; the test fails without it.
func FindPgBouncer(t testing.TB) PgBouncer {
	t.Helper()
	program, err := exec.LookPath("pgbouncer")
	if err != nil {
		program = "/usr/sbin/pgbouncer" // not on everybody's path
	}
	out, err := exec.CommandContext(t.Context(), program, "--version").Output()
	if err != nil {
		t.Fatalf("find pgbouncer (apt-get install pgbouncer): %v", err)
	}
	var major, minor int
	if _, err := fmt.Sscanf(string(out), "PgBouncer %d.%d", &major, &minor); err != nil {
		t.Fatalf("%q: %v", out, err)
	}
	return PgBouncer{program: program, KnowsPrepared: major > 1 || minor >= 21}
}

// Start starts a pooler in transaction mode with two connections to the server, and
// returns how to connect to it. Settings are further lines of its configuration.
func (p PgBouncer) Start(t testing.TB, db *audittest.Database, settings ...string) *pgx.ConnConfig {
	t.Helper()
	config, err := pgx.ParseConfig(db.URL())
	if err != nil {
		t.Fatal(err)
	}
	dir, err := os.MkdirTemp("/tmp", "pgb")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	server := fmt.Sprintf("host=%s port=%d user=%s dbname=%s", config.Host, config.Port, config.User, config.Database)
	if config.Password != "" {
		server += " password='" + strings.ReplaceAll(config.Password, "'", "''") + "'"
	}
	lines := append([]string{
		"[databases]", config.Database + " = " + server, "[pgbouncer]", "listen_addr =", "unix_socket_dir = " + dir,
		"listen_port = " + strconv.Itoa(peerPort), "auth_type = any", "pool_mode = transaction", "default_pool_size = 2", "max_client_conn = 100",
	}, settings...)
	ini := filepath.Join(dir, "pgbouncer.ini")
	if err := os.WriteFile(ini, []byte(strings.Join(lines, "\n")+"\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	Run(t, config.Host, dir, p.program, "-q", ini)
	config.Host, config.Port, config.Fallbacks = dir, peerPort, nil
	awaitPeer(t, config, "SELECT")
	return config
}

// StartStandby starts a hot standby of the database's server, which is a server of its
// own, and returns how to connect to it. The database has a table of the given name.
func StartStandby(t testing.TB, db *audittest.Database, table string) *pgx.ConnConfig {
	t.Helper()
	config, err := pgx.ParseConfig(db.URL())
	if err != nil {
		t.Fatal(err)
	}
	primary := config.Copy()
	dir, err := os.MkdirTemp("/tmp", "standby")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	// A copy of the files of a server that is not running.
	data := filepath.Join(dir, "data")
	db.Server().StopImmediate(t)
	if out, err := exec.CommandContext(t.Context(), "cp", "-a", db.Server().DataDir(), data).CombinedOutput(); err != nil {
		t.Fatalf("copy: %v: %s", err, out)
	}
	for _, stale := range []string{"postmaster.pid", "postmaster.opts"} {
		if err := os.Remove(filepath.Join(data, stale)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(data, "standby.signal"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	db.Server().StartAgain(t)
	Run(t, primary.Host, dir, filepath.Join(db.Server().BinDir(), "postgres"), "-D", data, "-c", "listen_addresses=", "-c", "unix_socket_directories="+dir,
		"-c", fmt.Sprintf("primary_conninfo=host=%s port=%d user=%s", primary.Host, primary.Port, primary.User),
		"-c", "hot_standby=on", "-c", "logging_collector=off", "-c", "log_min_messages=panic")
	config.Host, config.Fallbacks = dir, nil
	awaitPeer(t, config, "SELECT FROM "+table)
	return config
}

func awaitPeer(t testing.TB, config *pgx.ConnConfig, query string) {
	t.Helper()
	Poll(t, Patience, "a server that answers", func() error {
		conn, err := pgconn.ConnectConfig(t.Context(), &config.Config)
		if err != nil {
			return err
		}
		defer func() { _ = conn.Close(context.WithoutCancel(t.Context())) }()
		_, err = conn.Exec(t.Context(), query).ReadAll()
		return err
	})
}
