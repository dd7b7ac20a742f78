package auditcontainer_test

import (
	"encoding/json"
	"errors"
	"io"
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"

	_ "github.com/hindsight-go/audit/audittest/auditcontainer"
	"github.com/hindsight-go/audit/internal/pgserver"
)

// onlyContainers leaves a container as the only way to a server.
func onlyContainers(t *testing.T) {
	t.Helper()
	t.Setenv(pgserver.EnvDatabaseURL, "")
	t.Setenv(pgserver.EnvBinDir, "")
	t.Setenv(pgserver.EnvImage, pgserver.DefaultImage)
}

// noEngine points the client at an engine that is not there.
func noEngine(t *testing.T) {
	t.Helper()
	t.Setenv("DOCKER_HOST", "unix:///nowhere/docker.sock")
}

func TestContainer(t *testing.T) {
	onlyContainers(t)
	s, err := pgserver.Start(t.Context(), pgserver.Options{Settings: map[string]string{"cluster_name": "it's"}})
	if none := (*pgserver.NotFoundError)(nil); errors.As(err, &none) {
		t.Skipf("there is no container engine: %v", err)
	}
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if s.Kind() != pgserver.Container {
		t.Errorf("the server is a %s one", s.Kind())
	}
	conn, err := pgx.Connect(t.Context(), s.DSN("postgres"))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(t.Context())
	for setting, want := range map[string]string{"wal_level": "logical", "cluster_name": "it's", "fsync": "off"} {
		var got string
		if err := conn.QueryRow(t.Context(), "SELECT current_setting($1)", setting).Scan(&got); err != nil || got != want {
			t.Errorf("%s is %q, error %v, want %q", setting, got, err, want)
		}
	}
	if !strings.Contains(s.Log(), "ready to accept connections") {
		t.Error("the log does not say that the server is ready")
	}
	for range 2 {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	}
}

func TestImportRegisters(t *testing.T) {
	onlyContainers(t)
	noEngine(t)
	t.Setenv("PATH", "/nowhere") // What is not registered would be run by the go command.
	t.Setenv("HOME", t.TempDir())
	_, err := pgserver.Start(t.Context(), pgserver.Options{})
	none := (*pgserver.NotFoundError)(nil)
	if !errors.As(err, &none) {
		t.Fatalf("error %v, want a NotFoundError", err)
	}
	if !strings.Contains(err.Error(), "container "+pgserver.DefaultImage+": no container engine") {
		t.Errorf("the engine was not asked:\n%v", err)
	}
}

// The program, as the tests of the repository's root run it, says why there is
// no container and ends.
func TestHold_NoEngine(t *testing.T) {
	noEngine(t)
	cmd := exec.CommandContext(t.Context(), "go", "run", "./internal/hold")
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(in, `{"start":{"image":"`+pgserver.DefaultImage+`","command":["postgres"]}}`+"\n"); err != nil {
		t.Fatal(err)
	}
	var reply struct {
		NoContainers bool
		Error        string
	}
	if err := json.NewDecoder(out).Decode(&reply); err != nil {
		t.Fatal(err)
	}
	if !reply.NoContainers || !strings.Contains(reply.Error, "no container engine") {
		t.Errorf("the reply is %+v, want that there is no container engine", reply)
	}
	if err := cmd.Wait(); err != nil {
		t.Errorf("the program ended with %v", err)
	}
}
