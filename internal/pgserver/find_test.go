//go:build unix

package pgserver_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/hindsight-go/audit/internal/pgserver"
)

// fakeInstallation makes a directory whose postgres says that it has a version.
func fakeInstallation(t *testing.T, dir, version string) string {
	t.Helper()
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	script := "#!/bin/sh\necho '" + version + "'\n"
	for _, name := range []string{"postgres", "initdb"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(script), 0o755); err != nil { //nolint:gosec // It is a program.
			t.Fatal(err)
		}
	}
	return dir
}

// openDir is a temporary directory that every user can enter, on the way to
// which there is no closed one.
func openDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("/tmp", "pgserver-test-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil { //nolint:gosec // That is the purpose.
		t.Fatal(err)
	}
	return dir
}

func TestFindTakesTheFirstThatServes(t *testing.T) {
	t.Parallel()
	root := openDir(t)
	v14 := fakeInstallation(t, root+"/lib/14/bin", "postgres (PostgreSQL) 14.1")
	v16 := fakeInstallation(t, root+"/lib/16/bin", "postgres (PostgreSQL) 16.3 (Debian 16.3-1.pgdg120+1)")
	v18 := fakeInstallation(t, root+"/other-18", "postgres (PostgreSQL) 18beta1")
	v9 := fakeInstallation(t, root+"/lib/9.6/bin", "postgres (PostgreSQL) 9.6.24")
	empty := root + "/empty"
	if err := os.Mkdir(empty, 0o755); err != nil { //nolint:gosec // Others have to enter it.
		t.Fatal(err)
	}
	patterns := []string{root + "/nothing/*", root + "/lib/*/bin", root + "/other-*"}
	linked := root + "/linked"
	if err := os.Mkdir(linked, 0o755); err != nil { //nolint:gosec // Others have to enter it.
		t.Fatal(err)
	}
	if err := os.Symlink(v14+"/postgres", linked+"/postgres"); err != nil {
		t.Fatal(err)
	}

	for name, tc := range map[string]struct {
		binDir, path string
		patterns     []string
		dir          string
		major        int
	}{
		"the variable wins over PATH and directories": {binDir: v14, path: v16, patterns: patterns, dir: v14, major: 14},
		"PATH wins over directories":                  {path: empty + ":" + v14, patterns: patterns, dir: v14, major: 14},
		"an old one on PATH is passed over":           {path: v9 + ":" + v16, patterns: patterns, dir: v16, major: 16},
		"a link on PATH is followed":                  {path: linked, patterns: patterns, dir: v14, major: 14},
		"the newest of the directories":               {path: empty, patterns: patterns, dir: v18, major: 18},
		"the newest within a pattern":                 {patterns: patterns[:2], dir: v16, major: 16},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir, major, _, err := pgserver.Find(t.Context(), tc.binDir, tc.path, tc.patterns)
			if err != nil {
				t.Fatal(err)
			}
			if dir != tc.dir || major != tc.major {
				t.Errorf("found %d in %s, want %d in %s", major, dir, tc.major, tc.dir)
			}
		})
	}
}

func TestFindSaysWhyEachPlaceDidNotServe(t *testing.T) {
	t.Parallel()
	root := openDir(t)
	old := fakeInstallation(t, root+"/old", "postgres (PostgreSQL) 9.6.24")
	strange := fakeInstallation(t, root+"/strange", "hello")
	closed := fakeInstallation(t, root+"/closed/bin", "postgres (PostgreSQL) 17.1")
	bare := fakeInstallation(t, root+"/bare", "postgres (PostgreSQL) 17.1")
	if err := os.Remove(bare + "/initdb"); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(root+"/closed", 0o600); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.Chmod(root+"/closed", 0o700) }) //nolint:gosec // Or it could not be removed.

	path := strings.Join([]string{old, strange, bare}, string(filepath.ListSeparator))
	dir, _, tried, err := pgserver.Find(t.Context(), "", path, []string{root + "/none-*"})
	if dir != "" || err != nil {
		t.Fatalf("found %q, error %v, want neither", dir, err)
	}
	all := (&pgserver.NotFoundError{Attempts: tried}).Error()
	for _, want := range []string{
		"AUDIT_PG_BIN: not set",
		old + ": is PostgreSQL 9, and 14 or newer is needed",
		strange + `: postgres --version says "hello"`,
		bare + ": no initdb in it",
		root + "/none-*: no postgres",
		"apt-get install postgresql",
	} {
		if !strings.Contains(all, want) {
			t.Errorf("the message does not say %q:\n%s", want, all)
		}
	}

	// Root looks into the closed directory and sees a server that the user who
	// has to run it cannot reach; anyone else sees nothing.
	_, _, tried, err = pgserver.Find(t.Context(), closed, "", nil)
	if err == nil || len(tried) != 1 {
		t.Fatalf("error %v, tried %v, want an error and one attempt", err, tried)
	}
	if os.Geteuid() == 0 && !strings.Contains(tried[0].Problem, root+"/closed is closed to") {
		t.Errorf("the problem is %q, want it to name the closed directory", tried[0].Problem)
	}
}

func TestGivenDSNKeepsAllButTheDatabase(t *testing.T) {
	t.Parallel()
	for base, want := range map[string]string{
		"postgres://u:p@h:5/old?sslmode=disable":     "postgres://u:p@h:5/new?sslmode=disable",
		"postgresql://h":                             "postgresql://h/new",
		"postgres://u@/old?host=%2Ftmp&dbname=older": "postgres://u@/new?host=%2Ftmp",
		"host=h dbname=old":                          "host=h dbname=old dbname='new'",
	} {
		if got := pgserver.GivenDSN(base, "new"); got != want {
			t.Errorf("GivenDSN(%q) = %q, want %q", base, got, want)
		}
	}
}

func TestConfigurationQuotes(t *testing.T) {
	t.Parallel()
	got := pgserver.Configuration(map[string]string{"b": `it's a \`, "a": ""})
	if want := "a = ''\nb = 'it''s a \\\\'\n"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}
