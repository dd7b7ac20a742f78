//go:build unix

package pgserver

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"syscall"
)

// account is the user that runs the server. PostgreSQL refuses to run as root,
// and tests in containers and on build machines often are root.
type account struct {
	name string
	// cred is nil for ourselves.
	cred *syscall.Credential
}

// serverAccount gives ourselves, or for root the user postgres, else nobody.
func serverAccount() (account, error) {
	if os.Geteuid() != 0 {
		return account{name: "oneself"}, nil
	}
	for _, name := range []string{"postgres", "nobody"} {
		u, err := user.Lookup(name)
		if err != nil {
			continue
		}
		uid, uidErr := strconv.ParseUint(u.Uid, 10, 32)
		gid, gidErr := strconv.ParseUint(u.Gid, 10, 32)
		if uidErr != nil || gidErr != nil {
			continue
		}
		return account{name: name, cred: &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}}, nil
	}
	return account{}, errors.New("the server does not run as root, and there is neither a user postgres nor a user nobody to run it as")
}

// attributes gives the process attributes of a child that runs as the account
// in a session of its own: the terminal's Ctrl-C is meant for the program, and
// a server that gets it too stops under the program's hands.
func (a account) attributes() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setsid: true, Credential: a.cred}
}

// own gives a file to the account.
func (a account) own(path string) error {
	if a.cred == nil {
		return nil
	}
	return os.Chown(path, int(a.cred.Uid), int(a.cred.Gid))
}

// mayExecute says why the account cannot execute a file, or enter a directory.
// It looks at the permission bits of the path and of all directories above; a
// home directory that is closed to others is what usually stands in the way.
func (a account) mayExecute(path string) error {
	real, err := filepath.EvalSymlinks(path)
	if err != nil {
		return err
	}
	paths := []string{real}
	for dir := filepath.Dir(real); dir != paths[len(paths)-1]; dir = filepath.Dir(dir) {
		paths = append(paths, dir)
	}
	slices.Reverse(paths)
	for _, p := range paths {
		info, err := os.Stat(p)
		if err != nil {
			return err
		}
		if !a.executes(info) {
			return fmt.Errorf("%s is closed to %s, the user that has to run the server (chmod o+x helps)", p, a.name)
		}
	}
	return nil
}

func (a account) executes(info fs.FileInfo) bool {
	uid, gid := uint32(os.Geteuid()), uint32(os.Getegid())
	if a.cred != nil {
		uid, gid = a.cred.Uid, a.cred.Gid
	}
	stat, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return true // Nothing is known against it.
	}
	mode := info.Mode().Perm()
	switch {
	case stat.Uid == uid:
		return mode&0o100 != 0
	case stat.Gid == gid || a.cred == nil && ourGroup(stat.Gid):
		return mode&0o010 != 0
	default:
		return mode&0o001 != 0
	}
}

func ourGroup(gid uint32) bool {
	groups, err := os.Getgroups()
	return err == nil && slices.Contains(groups, int(gid))
}
