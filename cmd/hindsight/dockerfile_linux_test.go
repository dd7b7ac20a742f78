package main

import (
	"context"
	"debug/elf"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/hindsight-go/audit/audittest"
)

// dockerfile is what of deploy/Dockerfile says how the program is built and run.
type dockerfile struct {
	build    string
	env      []string
	command  []string
	uid, gid uint32
}

func readDockerfile(t *testing.T) (d dockerfile) {
	t.Helper()
	text, err := os.ReadFile("../../deploy/Dockerfile")
	if err != nil {
		t.Fatal(err)
	}
	one := func(form string) string {
		t.Helper()
		match := regexp.MustCompile(`(?m)^` + form + `$`).FindStringSubmatch(string(text))
		if match == nil {
			t.Fatalf("the Dockerfile has no line like %s", form)
		}
		return match[1]
	}
	d.build = one(`RUN (.*)`)
	d.env = strings.Fields(one(`ENV (.*)`))
	if _, err := fmt.Sscanf(one(`USER (.*)`), "%d:%d", &d.uid, &d.gid); err != nil {
		t.Fatal(err)
	}
	for _, part := range []string{one(`ENTRYPOINT (.*)`), one(`CMD (.*)`)} {
		var words []string
		if err := json.Unmarshal([]byte(part), &words); err != nil {
			t.Fatal(err)
		}
		d.command = append(d.command, words...)
	}
	return d
}

// overTCP is a connection string for a program that sees no socket in a directory.
func overTCP(t *testing.T, dsn string) string {
	t.Helper()
	config, err := pgx.ParseConfig(dsn)
	if err != nil {
		t.Fatal(err)
	}
	network, address := pgconn.NetworkAddress(config.Host, config.Port)
	listener, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = listener.Close() })
	go func() {
		for {
			client, err := listener.Accept()
			if err != nil {
				return
			}
			server, err := (&net.Dialer{}).DialContext(context.WithoutCancel(t.Context()), network, address)
			if err != nil {
				_ = client.Close()
				continue
			}
			for _, ends := range [][2]net.Conn{{client, server}, {server, client}} {
				go func() {
					_, _ = io.Copy(ends[0], ends[1])
					_ = ends[0].Close()
				}()
			}
		}
	}()
	u := url.URL{Scheme: "postgres", User: url.UserPassword(config.User, config.Password), Host: listener.Addr().String(), Path: config.Database, RawQuery: "sslmode=disable"}
	return u.String()
}

// There need be no container engine: the program is built by the command of the Dockerfile, and
// run as the image would, by nobody and in a root directory that holds nothing else.
func TestDockerfile_BuildsAndRunsTheSidecar(t *testing.T) {
	t.Parallel()
	if testing.Short() {
		t.Skip("it builds the program")
	}
	d := readDockerfile(t)
	root, err := os.MkdirTemp("", "hindsight-image-") // below t.TempDir nobody may look
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(root) })
	if err := os.Chmod(root, 0o755); err != nil { //nolint:gosec // The root directory of an image is for everybody.
		t.Fatal(err)
	}
	program := filepath.Join(root, d.command[0])
	build := exec.CommandContext(t.Context(), "sh", "-c", strings.Replace(d.build, "-o "+d.command[0], "-o "+program, 1)) //nolint:gosec // It is ours.
	build.Dir = "../.."
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%s: %v\n%s", d.build, err, out)
	}
	binary, err := elf.Open(program)
	if err != nil {
		t.Fatal(err)
	}
	defer binary.Close()
	for _, p := range binary.Progs {
		if p.Type == elf.PT_INTERP {
			t.Error("the program is not static")
		}
	}
	db := audittest.NewDatabase(t)
	db.Exec(t, itemTable)
	run := exec.CommandContext(t.Context(), program, d.command[1:]...) //nolint:gosec // It is ours.
	if os.Getuid() == 0 {
		run.Path = d.command[0]
		run.Dir = "/"
		run.SysProcAttr = &syscall.SysProcAttr{Chroot: root, Credential: &syscall.Credential{Uid: d.uid, Gid: d.gid}}
	} else {
		t.Log("not in a root directory of its own: that takes root")
	}
	run.Env = append(d.env, "DATABASE_URL="+overTCP(t, db.URL()), "HINDSIGHT_LISTEN=127.0.0.1:0")
	said := newLines()
	run.Stdout, run.Stderr = said, said
	if err := run.Start(); err != nil {
		t.Fatal(err)
	}
	page := "http://" + said.await(t, `http://(\S+)/metrics`)[1]
	untilPage(t, page+"/metrics", "\naudit_streaming 1\n")
	db.Exec(t, "INSERT INTO item VALUES (1, 'x')")
	untilPage(t, page+"/metrics", "\naudit_changes_total 1\n")
	if err := run.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := run.Wait(); err != nil {
		t.Errorf("stopped as containers are: %v\n%s", err, said)
	}
}
