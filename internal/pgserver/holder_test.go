//go:build unix

package pgserver_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/hindsight-go/audit/internal/pgserver"
)

// What audittest/auditcontainer starts in a container, these tests start as a
// private cluster: the conversation of the two programs is the same, and so is
// what becomes of the server when one of them dies.

// cluster is a private cluster in the place of a container.
type cluster struct{ *pgserver.Server }

func (c cluster) DSN() string { return c.Server.DSN("postgres") }

func startCluster(ctx context.Context, request pgserver.ContainerRequest) (pgserver.RunningContainer, error) {
	switch request.Image {
	case "no engine":
		return nil, &pgserver.NoContainersError{Problem: "no container engine"}
	case "no image":
		return nil, &pgserver.StartError{Op: "start container", Log: "manifest unknown", Err: errors.New("not found")}
	}
	if begun, ok := strings.CutPrefix(request.Image, "slow "); ok {
		if err := os.WriteFile(begun, nil, 0o600); err != nil {
			return nil, err
		}
		<-ctx.Done()
		return nil, ctx.Err()
	}
	s, err := pgserver.Start(ctx, pgserver.Options{Own: true})
	if err != nil {
		return nil, err
	}
	return cluster{s}, nil
}

// holding is a command that plays the program which holds the container.
func holding(ctx context.Context) *exec.Cmd {
	cmd := exec.CommandContext(ctx, os.Args[0])
	cmd.Env = append(os.Environ(), childEnv+"=hold")
	return cmd
}

// holdChild is that program.
func holdChild() error {
	return pgserver.HoldContainer(context.Background(), os.Stdin, os.Stdout, startCluster)
}

// heldChild is a program that uses a held server until it is killed.
func heldChild() error {
	running, err := pgserver.StartHeld(context.Background(), holding(context.Background()), "postgres")
	if err != nil {
		return err
	}
	fmt.Println(running.DSN())
	select {}
}

func TestHeldContainer(t *testing.T) {
	t.Parallel()
	cmd := holding(t.Context())
	running, err := pgserver.StartHeld(t.Context(), cmd, "postgres")
	if err != nil {
		t.Fatal(err)
	}
	if got := query(t, running.DSN(), "SELECT current_setting('wal_level')"); got != "logical" {
		t.Errorf("wal_level is %q", got)
	}
	for range 2 {
		if log := running.Log(); !strings.Contains(log, "ready to accept connections") {
			t.Errorf("the log is %q", log)
		}
	}
	dir := query(t, running.DSN(), "SHOW data_directory")
	if err := running.Close(); err != nil {
		t.Error(err)
	}
	if !gone(dir) {
		t.Error("Close returned before the server was gone")
	}
	if running.Log() != "" {
		t.Error("there is a log of what is gone")
	}
}

func TestHeldContainer_ProgramIsKilled(t *testing.T) {
	t.Parallel()
	cmd := exec.CommandContext(t.Context(), os.Args[0])
	cmd.Env = append(os.Environ(), childEnv+"=held")
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	dsn, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	dir := query(t, strings.TrimSpace(dsn), "SHOW data_directory")
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait()
	eventually(t, "the server of the dead program is gone", func() bool { return gone(dir) })
}

func TestHeldContainer_DoesNotStart(t *testing.T) {
	t.Parallel()
	_, err := pgserver.StartHeld(t.Context(), holding(t.Context()), "no engine")
	if none, ok := as[*pgserver.NoContainersError](err); !ok || none.Error() != "no container engine" {
		t.Errorf("error %v, want a NoContainersError", err)
	}

	_, err = pgserver.StartHeld(t.Context(), holding(t.Context()), "no image")
	if start, ok := as[*pgserver.StartError](err); !ok || start.Log != "manifest unknown" || !strings.Contains(err.Error(), "not found") {
		t.Errorf("error %v, want the StartError of the program", err)
	}

	// What go run says when it cannot build the program.
	broken := exec.CommandContext(t.Context(), "/bin/sh", "-c", "echo no network >&2; exit 1")
	_, err = pgserver.StartHeld(t.Context(), broken, "postgres")
	if _, ok := as[*pgserver.NoContainersError](err); !ok || !strings.Contains(err.Error(), "no network") {
		t.Errorf("error %v, want a NoContainersError with what the command said", err)
	}
}

func TestHeldContainer_StartEndsWithItsContext(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithCancel(t.Context())
	cmd := holding(t.Context())
	begun := filepath.Join(t.TempDir(), "begun")
	ended := make(chan error, 1)
	go func() {
		_, err := pgserver.StartHeld(ctx, cmd, "slow "+begun)
		ended <- err
	}()
	eventually(t, "the program starts the container", func() bool { return !gone(begun) })
	cancel()
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Errorf("error %v, want that of the context", err)
	}
	// The program sees the end of its input and ends by itself.
	eventually(t, "the program ended", func() bool { return !running(cmd.Process.Pid) })
}

func TestModuleBeside(t *testing.T) {
	t.Parallel()
	here, err := filepath.Abs("container.go")
	if err != nil {
		t.Fatal(err)
	}
	dir, err := pgserver.ModuleBeside(here)
	if want := filepath.Join(filepath.Dir(here), "../../audittest/auditcontainer"); err != nil || dir != want {
		t.Errorf("in the repository: %q, error %v, want %q", dir, err, want)
	}
	// Where go keeps what it has downloaded there are no nested modules, and -trimpath
	// leaves no directory to look in.
	downloaded := t.TempDir() + "/audit@v1.0.0/internal/pgserver/container.go"
	for _, file := range []string{downloaded, "github.com/hindsight-go/audit/internal/pgserver/container.go", ""} {
		_, err := pgserver.ModuleBeside(file)
		if none, ok := as[*pgserver.NoContainersError](err); !ok || !strings.Contains(none.Problem, "does not import "+pgserver.ContainerModule) {
			t.Errorf("%q: error %v, want one that names the import", file, err)
		}
	}
}
