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

// run runs a pooler until the test ends. It refuses to be root: in our place it
// is whoever may use the server's sockets, or else nobody.
func run(t *testing.T, program, dir, ini, sockets string) {
	t.Helper()
	command := exec.Command(program, "-q", ini) //nolint:noctx // ended below
	command.Stderr = os.Stderr
	if os.Geteuid() == 0 {
		uid, gid := owner(t, sockets)
		command.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}}
		if err := os.Chown(dir, uid, gid); err != nil {
			t.Fatal(err)
		}
	}
	if err := command.Start(); err != nil {
		t.Fatalf("start pgbouncer: %v", err)
	}
	t.Cleanup(func() {
		_ = command.Process.Kill()
		_ = command.Wait()
	})
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
