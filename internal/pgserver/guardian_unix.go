//go:build unix

package pgserver

import (
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"sync"
	"syscall"
	"time"
)

// guardian is a small process that ends the server and removes its directory
// when we are gone, whatever we die of: return, os.Exit, panic, Ctrl-C, the
// time limit of go test, kill -9. No code of ours runs in most of those cases,
// so it has to be another process, and the one thing that the kernel does for
// the dead is to close their files. The guardian reads from a pipe of which
// only we hold the other end, and acts when it reads the end of file.
//
// The rest follows from that. The pipe's end is closed on exec, so no child of
// ours keeps it open. The guardian has a session of its own and ignores the
// signals of a terminal or an impatient build machine, as it is there to
// outlive us. It holds none of our files, or go test would wait for it.
// Through the pipe it is told which process to end, one id a line, so that it
// works before there is a postmaster.pid, too.
type guardian struct {
	cmd *exec.Cmd

	// mu guards pipe against two writers, and against writing after release.
	mu   sync.Mutex
	pipe *os.File
}

// guardianScript gets the directory as $1. Shell, since /bin/sh is everywhere
// and starts in a millisecond; our own binary may be anything.
//
// A server told to quit is given ten seconds. One that was killed leaves its
// lock file, and in it the id of a System V memory segment that nobody else
// would free. The directory is removed until it stays away, since a process
// that is about to die may yet create a file in it. If no process was named,
// one may have been started that there was no time to name, such as an initdb
// which makes the directory anew; that is waited for half a second.
const guardianScript = `
trap '' HUP INT QUIT TERM
pause() { sleep 0.05 2>/dev/null || sleep 1; }
alive() {
	kill -0 "$1" 2>/dev/null || return 1
	case $(cat "/proc/$1/stat" 2>/dev/null) in *") Z "*) return 1 ;; esac
	return 0
}
pid=0
while read -r line; do pid=$line; done
if [ "$pid" -gt 1 ]; then
	kill -QUIT "-$pid" 2>/dev/null
	n=0
	while alive "$pid" && [ $n -lt 200 ]; do pause; n=$((n+1)); done
	kill -KILL "-$pid" 2>/dev/null
fi
lock=$1/data/postmaster.pid
if [ -s "$lock" ]; then
	segment=$(sed -n '7s/.*[[:space:]]\([0-9][0-9]*\)[[:space:]]*$/\1/p' "$lock" 2>/dev/null)
	[ -n "$segment" ] && ipcrm -m "$segment" 2>/dev/null
fi
n=0
away=0
[ "$pid" -gt 1 ] || away=-10
while [ $n -lt 100 ]; do
	rm -rf "$1" 2>/dev/null
	[ -e "$1" ] || away=$((away+1))
	[ $away -gt 0 ] && break
	pause
	n=$((n+1))
done
`

// guardians keeps every guardian in use reachable. If the garbage collector
// took one, it would close the pipe, and the server of a program that kept
// nothing but the connection string would vanish.
var guardians sync.Map

// watch starts a guardian for dir, which need not exist yet.
func watch(dir string) (*guardian, error) {
	read, write, err := os.Pipe()
	if err != nil {
		return nil, fmt.Errorf("make guardian's pipe: %w", err)
	}
	defer read.Close()
	cmd := exec.Command("/bin/sh", "-c", guardianScript, "audit-pg-guardian", dir) //nolint:noctx // It outlives every context.
	cmd.Dir = "/"
	cmd.Stdin = read
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		write.Close()
		return nil, fmt.Errorf("start guardian: %w", err)
	}
	g := &guardian{cmd: cmd, pipe: write}
	guardians.Store(g, nil)
	return g, nil
}

// tell names the process to end, the leader of its group; 0 for none.
func (g *guardian) tell(pid int) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.pipe == nil {
		return nil
	}
	if _, err := g.pipe.WriteString(strconv.Itoa(pid) + "\n"); err != nil {
		return fmt.Errorf("tell guardian: %w", err)
	}
	return nil
}

// dismiss ends the guardian without its having done anything.
func (g *guardian) dismiss() {
	g.mu.Lock()
	defer g.mu.Unlock()
	defer guardians.Delete(g)
	_ = g.cmd.Process.Kill()
	_ = g.cmd.Wait()
	_ = g.pipe.Close()
	g.pipe = nil
}

// release lets the guardian do its work, and waits for it.
func (g *guardian) release() error {
	g.mu.Lock()
	pipe := g.pipe
	g.pipe = nil
	g.mu.Unlock()
	if pipe == nil {
		return nil
	}
	defer guardians.Delete(g)
	pipe.Close()
	// The script is bounded by itself; this bounds a shell that hangs.
	timer := time.AfterFunc(time.Minute, func() { _ = g.cmd.Process.Kill() })
	defer timer.Stop()
	if err := g.cmd.Wait(); err != nil {
		return fmt.Errorf("wait for guardian: %w", err)
	}
	return nil
}
