package audittest_test

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/hindsight-go/audit/audittest"
)

// childEnv makes this test binary play a program that uses the package.
const childEnv = "AUDITTEST_TEST_CHILD"

func TestMain(m *testing.M) {
	if os.Getenv(childEnv) == "program" {
		if err := program(context.Background()); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

// program has a database with a slot on it, and waits to be killed.
func program(ctx context.Context) error {
	db, err := audittest.StartDatabase(ctx)
	if err != nil {
		return err
	}
	conn, err := pgx.Connect(ctx, db.URL())
	if err != nil {
		return err
	}
	if _, err := conn.Exec(ctx, "SELECT pg_create_logical_replication_slot($1, 'pgoutput')", db.Name()); err != nil {
		return err
	}
	if _, err := os.Stdout.WriteString(db.Name() + "\n"); err != nil {
		return err
	}
	_, err = bufio.NewReader(os.Stdin).ReadString('\n')
	return err
}

func TestDatabaseForAProgram(t *testing.T) {
	t.Parallel()
	db, err := audittest.StartDatabase(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	conn, err := pgx.Connect(t.Context(), db.URL())
	if err != nil {
		t.Fatal(err)
	}
	var level string
	if err := conn.QueryRow(t.Context(), "SHOW wal_level").Scan(&level); err != nil || level != "logical" {
		t.Errorf("wal_level is %q, error %v", level, err)
	}
	for range 2 {
		if err := db.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := pgx.Connect(t.Context(), db.URL()); err == nil {
		t.Error("the server is still there")
	}
}

func TestStartDatabaseHonoursItsContext(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := audittest.StartDatabase(ctx); err == nil {
		t.Error("it started with a context that had ended")
	}
}

// A test that finds no server must not look like one that passed.
func TestMissingServerFailsTheTest(t *testing.T) {
	t.Parallel()
	for _, ci := range []string{"true", ""} {
		cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestDatabasesAreIsolated$", "-test.v") //nolint:gosec // It is ourselves.
		cmd.Env = append(os.Environ(), "CI="+ci, "AUDIT_TEST_DATABASE_URL=", "AUDIT_PG_BIN=/nowhere")
		out, err := cmd.CombinedOutput()
		if err == nil || strings.Contains(string(out), "--- SKIP") {
			t.Errorf("CI=%q: the test passed or was skipped:\n%s", ci, out)
		}
		for _, want := range []string{"AUDIT_PG_BIN=/nowhere", "apt-get install postgresql"} {
			if !strings.Contains(string(out), want) {
				t.Errorf("CI=%q: the output does not say %q:\n%s", ci, want, out)
			}
		}
	}
}

// The environment is changed, so this test does not run in parallel.
func TestGivenServerIsLeftAsItWas(t *testing.T) {
	owner := audittest.NewServer(t, audittest.ServerOptions{})
	witness := owner.NewDatabase(t)
	witness.Exec(t, "CREATE DATABASE audit_test_of_mine")
	t.Setenv("AUDIT_TEST_DATABASE_URL", owner.URL("postgres"))

	db, err := audittest.StartDatabase(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if !exists(t, witness, db.Name()) {
		t.Fatal("the database is not on the given server")
	}

	// A program that is killed leaves its database and its slot behind, and the
	// next one removes them, but not what belongs to someone alive.
	cmd := exec.Command(os.Args[0]) //nolint:gosec,noctx // It is ourselves, and ends when its input does.
	cmd.Env = append(os.Environ(), childEnv+"=program")
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	orphan, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		t.Fatalf("the program did not start: %v", err)
	}
	orphan = strings.TrimSpace(orphan)
	if !exists(t, witness, orphan) || !exists(t, witness, db.Name()) {
		t.Fatal("the databases of two live programs are not both there")
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait()
	// The server takes a moment to see that the program's sessions are gone.
	eventually(t, "the program's sessions have ended", func() bool {
		return audittest.Value[int](t, witness,
			"SELECT count(*) FROM pg_stat_activity WHERE starts_with($1, application_name || '_') OR datname = $1", orphan) == 0
	})

	next, err := audittest.StartDatabase(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if exists(t, witness, orphan) || slots(t, witness, orphan) != 0 {
		t.Error("the database of the program that was killed is still there, or its slot")
	}
	for _, name := range []string{db.Name(), next.Name(), witness.Name(), "audit_test_of_mine"} {
		if !exists(t, witness, name) {
			t.Errorf("%s is gone", name)
		}
	}
	for _, d := range []*audittest.Database{db, next} {
		if err := d.Close(); err != nil {
			t.Error(err)
		}
		if exists(t, witness, d.Name()) {
			t.Errorf("%s outlives Close", d.Name())
		}
	}
}

func eventually(t *testing.T, what string, cond func() bool) {
	t.Helper()
	deadline := time.After(30 * time.Second)
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for !cond() {
		select {
		case <-deadline:
			t.Fatalf("not within 30 s: %s", what)
		case <-tick.C:
		}
	}
}
