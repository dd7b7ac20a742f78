//go:build unix

package pgserver_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/hindsight-go/audit/internal/pgserver"
)

// childEnv makes this test binary play the program that starts a server and
// then dies in the way that the variable's value says.
const childEnv = "PGSERVER_TEST_CHILD"

func TestMain(m *testing.M) {
	if how := os.Getenv(childEnv); how != "" {
		if err := child(how); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

func child(how string) error {
	switch how {
	case "hold":
		return holdChild()
	case "held":
		return heldChild()
	}
	s, err := pgserver.Start(context.Background(), pgserver.Options{Own: true})
	if err != nil {
		return err
	}
	if s.Kind() != pgserver.Private {
		return errors.New("no private cluster")
	}
	_, err = os.Stdout.WriteString(itoa(s.PID()) + " " + s.DataDir() + "\n")
	if err != nil {
		return err
	}
	// The collector must not be able to end the server of a program that has
	// forgotten all but its address.
	s = nil //nolint:ineffassign,wastedassign // It is the point.
	runtime.GC()
	runtime.GC()
	if _, err := bufio.NewReader(os.Stdin).ReadString('\n'); err != nil {
		return err
	}
	switch how {
	case "panic":
		panic("the child panics, as it should")
	case "return":
		return nil
	case "exit":
		os.Exit(3)
	}
	select {} // Until a signal comes.
}

func itoa(n int) string { return strconv.Itoa(n) }

func TestNothingOutlivesTheProgram(t *testing.T) {
	t.Parallel()
	for how, sig := range map[string]syscall.Signal{
		"kill":   syscall.SIGKILL,
		"int":    syscall.SIGINT,
		"term":   syscall.SIGTERM,
		"quit":   syscall.SIGQUIT,
		"hup":    syscall.SIGHUP,
		"panic":  0,
		"return": 0,
		"exit":   0,
	} {
		t.Run(how, func(t *testing.T) {
			t.Parallel()
			if sig != 0 && signal.Ignored(sig) {
				t.Skipf("this process ignores %s, as nohup has it, and so do its children", sig)
			}
			cmd, in, out := startChild(t, how, os.TempDir())
			line, err := out.ReadString('\n')
			if err != nil {
				t.Fatalf("the child did not start a server: %v", err)
			}
			var (
				pid int
				dir string
			)
			if _, err := fmt.Sscan(line, &pid, &dir); err != nil {
				t.Fatal(err)
			}
			if !running(pid) || gone(dir) {
				t.Fatal("the child's server is not there")
			}
			if _, err := in.WriteString("go\n"); err != nil {
				t.Fatal(err)
			}
			if sig != 0 {
				// To the whole group, as a terminal does it.
				if err := syscall.Kill(-cmd.Process.Pid, sig); err != nil {
					t.Fatal(err)
				}
			}
			_ = cmd.Wait()
			dir = filepath.Dir(dir)
			eventually(t, "the server has ended", func() bool { return !running(pid) })
			eventually(t, "the directory is removed", func() bool { return gone(dir) })
			eventually(t, "no process has to do with the directory", func() bool { return !mentioned(t, dir) })
		})
	}
}

// A program may die at any moment of the start as well: while initdb writes,
// or before the server has its lock file.
func TestNothingOutlivesAProgramKilledDuringTheStart(t *testing.T) {
	t.Parallel()
	for _, moment := range []string{"", "data", "data/PG_VERSION", "data/base/1", "data/postmaster.pid", "server.log"} {
		t.Run(filepath.Base("dir/"+moment), func(t *testing.T) {
			t.Parallel()
			base := openDir(t)
			cmd, _, _ := startChild(t, "kill", base)
			eventually(t, "the start has come to "+moment, func() bool {
				found, err := filepath.Glob(filepath.Join(base, "audit-pg-*", moment))
				return err == nil && len(found) > 0
			})
			if err := cmd.Process.Kill(); err != nil {
				t.Fatal(err)
			}
			_ = cmd.Wait()
			eventually(t, "the directory is removed and no process has to do with it", func() bool {
				left, err := os.ReadDir(base)
				return err == nil && len(left) == 0 && !mentioned(t, base)
			})
		})
	}
}

// startChild runs this test binary as a program that starts a server.
func startChild(t *testing.T, how, tempDir string) (*exec.Cmd, *os.File, *bufio.Reader) {
	t.Helper()
	needPrivate(t)
	inRead, inWrite, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	outRead, outWrite, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(os.Args[0]) //nolint:gosec,noctx // It is ourselves, and ends itself.
	cmd.Env = append(os.Environ(), childEnv+"="+how, "TMPDIR="+tempDir)
	cmd.Stdin, cmd.Stdout = inRead, outWrite
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	_ = inRead.Close()
	_ = outWrite.Close()
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = inWrite.Close()
		_ = outRead.Close()
	})
	return cmd, inWrite, bufio.NewReader(outRead)
}

// mentioned says whether a process has text in its command line.
func mentioned(t *testing.T, text string) bool {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), "ps", "-A", "-o", "args=").Output()
	if err != nil {
		t.Fatalf("ps: %v", err)
	}
	return strings.Contains(string(out), text)
}
