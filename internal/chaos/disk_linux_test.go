package chaos_test

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"syscall"
	"testing"
)

const ownMountsEnv = "AUDIT_CHAOS_OWN_MOUNTS"

// inOwnMounts runs this binary once more where it may mount, as root or in a namespace of
// a user's, and where what it mounts goes with it. It returns false where that process
// is this one, or cannot be had.
func inOwnMounts() (code int, done bool) {
	if os.Getenv(ownMountsEnv) != "" {
		return 0, false
	}
	runtime.LockOSThread()                          // the parent of the other process, whose death ends it
	cmd := exec.Command(os.Args[0], os.Args[1:]...) //nolint:gosec,noctx // It is ourselves.
	cmd.Env = append(os.Environ(), ownMountsEnv+"=1")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	attributes := &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Unshareflags: syscall.CLONE_NEWNS}
	if uid, gid := os.Getuid(), os.Getgid(); uid != 0 {
		attributes.Cloneflags = syscall.CLONE_NEWUSER
		attributes.UidMappings = []syscall.SysProcIDMap{{ContainerID: uid, HostID: uid, Size: 1}}
		attributes.GidMappings = []syscall.SysProcIDMap{{ContainerID: gid, HostID: gid, Size: 1}}
		attributes.AmbientCaps = []uintptr{21} // CAP_SYS_ADMIN
	}
	cmd.SysProcAttr = attributes
	if err := cmd.Start(); err != nil {
		return 0, false // the disk is filled otherwise then
	}
	err := cmd.Wait()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		fmt.Fprintln(os.Stderr, err)
		return 1, true
	}
	if code = cmd.ProcessState.ExitCode(); code < 0 {
		code = 1
	}
	return code, true
}

// disk is a file system of its own that can be made full.
type disk struct{ dir string }

const diskSize = 2 << 30 // of memory, only as far as it is used

// mountDisk mounts a file system that belongs to the owner of a file. It returns nil where
// nothing may be mounted.
func mountDisk(t testing.TB, owner string) *disk {
	t.Helper()
	var stat syscall.Stat_t
	if err := syscall.Stat(owner, &stat); err != nil {
		t.Fatal(err)
	}
	dir, err := os.MkdirTemp("/tmp", "chaos-disk")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.Remove(dir) })
	if os.Getenv(ownMountsEnv) == "" {
		return nil // it would stay there if this process were killed
	}
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, fmt.Sprintf("size=%d,mode=0700,uid=%d,gid=%d", diskSize, stat.Uid, stat.Gid)); err != nil {
		t.Logf("cannot mount: %v", err)
		return nil
	}
	t.Cleanup(func() { _ = syscall.Unmount(dir, syscall.MNT_DETACH) })
	return &disk{dir: dir}
}

// fill leaves the disk nothing; empty takes that back.
func (d *disk) fill() error {
	var s syscall.Statfs_t
	if err := syscall.Statfs(d.dir, &s); err != nil {
		return err
	}
	return d.resize((s.Blocks - s.Bfree) * uint64(s.Bsize)) //nolint:gosec // It is positive.
}

func (d *disk) empty() error { return d.resize(diskSize) }

func (d *disk) resize(bytes uint64) error {
	return syscall.Mount("tmpfs", d.dir, "tmpfs", syscall.MS_REMOUNT, fmt.Sprintf("size=%d", max(bytes, 4096)))
}
