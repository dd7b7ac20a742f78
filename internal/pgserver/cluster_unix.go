//go:build unix

package pgserver

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

const clustersSupported = true

const (
	superuser = "postgres"
	port      = "5432" // It is in the socket's name only.

	// socketLimit is the longest socket path: 104 bytes with the terminating
	// zero on macOS and BSD, 108 on Linux.
	socketLimit = 103
)

// cluster is a server of our own in a temporary directory:
//
//	data/          the data directory
//	server.log     what initdb and the server wrote
//	.s.PGSQL.5432  the socket
type cluster struct {
	installed installation
	account   account
	dir       string
	guardian  *guardian

	// current is the running postmaster, nil while there is none. It is atomic
	// so that pid does not wait for a restart under way.
	current atomic.Pointer[postmaster]

	// mu makes start, stop and close exclude each other, and guards the fields
	// below.
	mu      sync.Mutex
	closed  bool
	lastLog string
}

// startCluster makes a cluster and starts its server.
func startCluster(ctx context.Context, installed installation, opts Options) (host, error) {
	who, err := serverAccount()
	if err != nil {
		return nil, &StartError{Op: "choose user", Err: err}
	}
	dir, g, err := makeDirectory(who)
	if err != nil {
		return nil, &StartError{Op: "make directory", Err: err}
	}
	c := &cluster{installed: installed, account: who, dir: dir, guardian: g}
	if err := c.initialize(ctx, opts); err != nil {
		return nil, errors.Join(err, c.close())
	}
	if err := c.startAgain(ctx); err != nil {
		return nil, errors.Join(err, c.close())
	}
	return c, nil
}

// makeDirectory makes a directory that belongs to the server's user and whose
// path leaves room for the socket's name. TMPDIR may be long (macOS) or closed
// to that user (a home directory), hence the alternatives.
func makeDirectory(who account) (string, *guardian, error) {
	var problems []error
	for _, base := range []string{os.TempDir(), "/tmp", "/var/tmp"} {
		dir, g, err := makeDirectoryIn(base, who)
		if err == nil {
			return dir, g, nil
		}
		problems = append(problems, err)
	}
	return "", nil, errors.Join(problems...)
}

// makeDirectoryIn has the directory guarded before it makes it, so that there
// is no moment at which our death would leave it behind. The name is therefore
// chosen here, at random and not by looking for one that is free: what the
// guardian is going to remove must be ours.
func makeDirectoryIn(base string, who account) (string, *guardian, error) {
	if err := who.mayExecute(base); err != nil {
		return "", nil, err
	}
	dir, err := filepath.Abs(filepath.Join(base, "audit-pg-"+rand.Text()[:13]))
	if err != nil {
		return "", nil, err
	}
	if len(dir)+len("/.s.PGSQL."+port) > socketLimit {
		return "", nil, fmt.Errorf("%s is too long for a socket", dir)
	}
	g, err := watch(dir)
	if err != nil {
		return "", nil, err
	}
	if err := os.Mkdir(dir, 0o700); err != nil {
		g.dismiss()
		return "", nil, err
	}
	if err := who.own(dir); err != nil {
		return "", nil, errors.Join(err, g.release())
	}
	return dir, g, nil
}

// initialize runs initdb and writes the configuration. The settings go to the
// file and not to the command line, where ALTER SYSTEM could not change them.
func (c *cluster) initialize(ctx context.Context, opts Options) error {
	// C.UTF-8 knows the case of letters beyond ASCII and is not on every
	// system; initdb refuses an unknown locale before it does anything.
	var (
		out []byte
		err error
	)
	for _, locale := range []string{"C.UTF-8", "C"} {
		if out, err = c.initdb(ctx, locale); err == nil || ctx.Err() != nil {
			break
		}
	}
	if err != nil {
		return &StartError{Op: "initdb", Log: string(out), Err: errors.Join(err, ctx.Err())}
	}

	all := settings(opts)
	all["listen_addresses"] = ""
	all["port"] = port
	all["unix_socket_directories"] = c.dir
	// POSIX segments in /dev/shm would be left behind by a server that is
	// killed; files in the data directory go with it.
	if _, set := all["dynamic_shared_memory_type"]; !set {
		all["dynamic_shared_memory_type"] = "mmap"
	}
	conf, err := os.OpenFile(filepath.Join(c.dataDir(), "postgresql.conf"), os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		return &StartError{Op: "configure", Err: err}
	}
	_, err = conf.WriteString("\n" + configuration(all))
	if err := errors.Join(err, conf.Close()); err != nil {
		return &StartError{Op: "configure", Err: err}
	}
	return nil
}

func (c *cluster) initdb(ctx context.Context, locale string) ([]byte, error) {
	cmd := c.command("initdb",
		"--pgdata="+c.dataDir(), "--username="+superuser, "--auth=trust",
		"--encoding=UTF8", "--locale="+locale, "--no-sync", "--no-instructions")
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	// The whole group, since it is initdb's child that does the work.
	stop := context.AfterFunc(ctx, func() { _ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) })
	defer stop()
	told := c.guardian.tell(cmd.Process.Pid)
	err := cmd.Wait()
	return out.Bytes(), errors.Join(err, told, c.guardian.tell(0))
}

// command prepares a binary of the server to run as the server's user, in an
// environment from which nobody's settings leak in.
func (c *cluster) command(name string, args ...string) *exec.Cmd {
	cmd := exec.Command(filepath.Join(c.installed.dir, name), args...) //nolint:noctx // The server outlives the context of its start.
	cmd.Dir = c.dir
	cmd.SysProcAttr = c.account.attributes()
	for _, kv := range os.Environ() {
		if !strings.HasPrefix(kv, "PG") && !strings.HasPrefix(kv, "LC_") && !strings.HasPrefix(kv, "LANG") {
			cmd.Env = append(cmd.Env, kv)
		}
	}
	cmd.Env = append(cmd.Env, "LC_ALL=C", "HOME="+c.dir)
	return cmd
}

// startAgain starts the server unless it runs, and returns when it accepts
// connections.
func (c *cluster) startAgain(ctx context.Context) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.start(ctx, "start")
}

// stillInUse is what a server says whose predecessor was killed, while the
// predecessor's last children are still dying.
const stillInUse = "is still in use"

func (c *cluster) start(ctx context.Context, op string) error {
	if c.closed {
		return &ClosedError{Op: op}
	}
	giveUp := time.Now().Add(30 * time.Second)
	for {
		if c.current.Load() != nil {
			return nil
		}
		logged := c.logSize()
		err := c.launch(ctx)
		if err == nil {
			return nil
		}
		log := c.readLog(logged)
		if ctx.Err() == nil && strings.Contains(log, stillInUse) && time.Now().Before(giveUp) {
			continue
		}
		return &StartError{Op: op, Log: log, Err: err}
	}
}

// end stops the server, if it runs, with a signal.
func (c *cluster) end(ctx context.Context, op string, sig syscall.Signal) error {
	if c.closed {
		return &ClosedError{Op: op}
	}
	p := c.current.Load()
	if p == nil {
		return nil
	}
	if err := p.stop(ctx, sig); err != nil {
		return &StartError{Op: op, Log: c.readLog(0), Err: err}
	}
	return nil
}

func (c *cluster) restart(ctx context.Context) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := c.end(ctx, "restart", syscall.SIGINT); err != nil {
		return err
	}
	return c.start(ctx, "restart")
}

func (c *cluster) stopImmediate(ctx context.Context) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.end(ctx, "stop", syscall.SIGQUIT)
}

func (c *cluster) kill(ctx context.Context) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.end(ctx, "kill", syscall.SIGKILL)
}

func (c *cluster) pid() int {
	if p := c.current.Load(); p != nil {
		return p.cmd.Process.Pid
	}
	return 0
}

func (c *cluster) dataDir() string { return filepath.Join(c.dir, "data") }
func (c *cluster) binDir() string  { return c.installed.dir }

func (c *cluster) dsn(database string) string {
	u := url.URL{
		Scheme: "postgres",
		User:   url.User(superuser),
		Path:   "/" + database,
		// The port is spelt out lest PGPORT decide.
		RawQuery: url.Values{"host": {c.dir}, "port": {port}, "sslmode": {"disable"}}.Encode(),
	}
	return u.String()
}

func (c *cluster) maintenanceDSN() string { return c.dsn("postgres") }

func (c *cluster) log() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return c.lastLog
	}
	return c.readLog(0)
}

// readLog gives the log from an offset, and of that at most the end.
func (c *cluster) readLog(offset int64) string {
	file, err := os.Open(c.logFile())
	if err != nil {
		return "" // Nothing was logged, or it is gone.
	}
	defer file.Close()
	offset = max(offset, c.logSize()-logLimit)
	content, err := io.ReadAll(io.NewSectionReader(file, offset, logLimit))
	if err != nil {
		return ""
	}
	return string(content)
}

func (c *cluster) logSize() int64 {
	info, err := os.Stat(c.logFile())
	if err != nil {
		return 0
	}
	return info.Size()
}

func (c *cluster) logFile() string { return filepath.Join(c.dir, "server.log") }

// close lets the guardian stop the server and remove the directory, so that
// there is one way to do it, and every use tests it.
func (c *cluster) close() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return nil
	}
	c.closed = true
	c.lastLog = c.readLog(0)
	p := c.current.Load()
	err := c.guardian.release()
	if err != nil && p != nil {
		// Someone has killed the guardian; then it is up to us.
		_ = p.cmd.Process.Kill()
	}
	if p != nil {
		<-p.done
	}
	// There is nothing left to remove unless the guardian did not get to it.
	if err := os.RemoveAll(c.dir); err != nil {
		return fmt.Errorf("pgserver: close: %w", err)
	}
	return nil
}
