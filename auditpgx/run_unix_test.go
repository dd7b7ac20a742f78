//go:build unix

package auditpgx_test

import (
	"os"
	"os/exec"
	"os/user"
	"strconv"
	"syscall"
	"testing"
)

// run runs a program until the test ends.
func run(t *testing.T, sockets, dir, program string, args ...string) {
	t.Helper()
	command := exec.Command(program, args...) //nolint:noctx // ended below
	command.Stderr = os.Stderr
	as(t, command, sockets, dir)
	if err := command.Start(); err != nil {
		t.Fatalf("start %s: %v", program, err)
	}
	t.Cleanup(func() {
		_ = command.Process.Signal(syscall.SIGQUIT)
		_ = command.Wait()
	})
}

// as lets a command run as somebody else where we are root, which servers refuse
// to be: as whoever may use the given sockets, or else nobody. The directory
// will be theirs.
func as(t *testing.T, command *exec.Cmd, sockets, dir string) {
	t.Helper()
	if os.Geteuid() != 0 {
		return
	}
	uid, gid := owner(t, sockets)
	command.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}}
	if err := os.Chown(dir, uid, gid); err != nil {
		t.Fatal(err)
	}
}

func owner(t *testing.T, sockets string) (uid, gid int) {
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
