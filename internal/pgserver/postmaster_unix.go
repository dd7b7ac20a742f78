//go:build unix

package pgserver

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// pollInterval is how often a starting server is looked at.
const pollInterval = 5 * time.Millisecond

// postmaster is one run of the server.
type postmaster struct {
	cmd *exec.Cmd
	// done is closed when the process has ended and has been waited for.
	done chan struct{}
}

// launch runs the server once, until it is ready or has failed.
func (c *cluster) launch(ctx context.Context) error {
	out, err := os.OpenFile(c.logFile(), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer out.Close()
	p := &postmaster{cmd: c.command("postgres", "-D", c.dataDir()), done: make(chan struct{})}
	p.cmd.Stdout, p.cmd.Stderr = out, out
	if err := p.cmd.Start(); err != nil {
		return err
	}
	told := c.guardian.tell(p.cmd.Process.Pid)
	c.current.Store(p)
	go func() {
		_ = p.cmd.Wait() // How it ended is in its log.
		_ = c.guardian.tell(0)
		c.current.Store(nil)
		close(p.done)
	}()
	if told != nil {
		// Without a guardian it must not run.
		return errors.Join(told, p.stop(ctx, syscall.SIGQUIT))
	}
	if err := c.untilReady(ctx, p); err != nil {
		return errors.Join(err, p.stop(context.WithoutCancel(ctx), syscall.SIGQUIT))
	}
	return nil
}

// untilReady waits until the server has written to its lock file that it
// accepts connections.
func (c *cluster) untilReady(ctx context.Context, p *postmaster) error {
	tick := time.NewTicker(pollInterval)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return fmt.Errorf("wait until ready: %w", ctx.Err())
		case <-p.done:
			return fmt.Errorf("the server ended: %s", p.cmd.ProcessState)
		case <-tick.C:
		}
		if c.lockSaysReady(p.cmd.Process.Pid) {
			return nil
		}
	}
}

// lockSaysReady reads postmaster.pid: the process id is its first line, the
// state its eighth. The id is compared since a killed server leaves its file.
func (c *cluster) lockSaysReady(pid int) bool {
	content, err := os.ReadFile(filepath.Join(c.dataDir(), "postmaster.pid"))
	if err != nil {
		return false
	}
	lines := strings.Split(string(content), "\n")
	return len(lines) >= 8 && lines[0] == strconv.Itoa(pid) && strings.TrimSpace(lines[7]) == "ready"
}

// stop sends a signal to the server and waits for its end. When ctx ends
// first, the server is made to end.
func (p *postmaster) stop(ctx context.Context, sig syscall.Signal) error {
	// Process.Signal, unlike kill(2), does not hit a stranger who has got the
	// id of a process that has ended.
	if err := p.cmd.Process.Signal(sig); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("signal server: %w", err)
	}
	select {
	case <-p.done:
		return nil
	case <-ctx.Done():
	}
	_ = p.cmd.Process.Signal(syscall.SIGQUIT)
	timer := time.AfterFunc(5*time.Second, func() { _ = p.cmd.Process.Kill() })
	defer timer.Stop()
	<-p.done
	return fmt.Errorf("wait for the server to stop, until it was stopped in immediate mode: %w", ctx.Err())
}
