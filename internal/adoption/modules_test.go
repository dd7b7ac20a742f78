package adoption

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// modulesAtMost is how many modules a program may have in its graph for importing
// the SDK, itself included.
const modulesAtMost = 40

// TestAdoption_Modules counts the modules of a program that imports the packages
// which do not need another library.
func TestAdoption_Modules(t *testing.T) {
	t.Parallel()
	root, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	write := func(name, content string) {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("go.mod", "module example.com/importer\n\ngo 1.25.0\n\nrequire github.com/hindsight-go/audit v0.0.0\n\nreplace github.com/hindsight-go/audit => "+root+"\n")
	write("main.go", `package main

import (
	_ "github.com/hindsight-go/audit"
	_ "github.com/hindsight-go/audit/audithttp"
	_ "github.com/hindsight-go/audit/auditpgx"
	_ "github.com/hindsight-go/audit/auditsql"
	_ "github.com/hindsight-go/audit/auditui"
)

func main() {}
`)
	run := func(args ...string) string {
		t.Helper()
		cmd := exec.CommandContext(t.Context(), "go", args...)
		cmd.Dir = dir
		cmd.Env = append(os.Environ(), "GOFLAGS=-mod=mod", "GOWORK=off")
		var stderr strings.Builder
		cmd.Stderr = &stderr
		out, err := cmd.Output()
		if err != nil {
			t.Fatalf("go %s: %v\n%s", strings.Join(args, " "), err, &stderr)
		}
		return strings.TrimSpace(string(out))
	}
	run("mod", "tidy")
	modules := strings.Split(run("list", "-m", "all"), "\n")
	t.Logf("%d modules", len(modules))
	if len(modules) > modulesAtMost {
		t.Errorf("a program that imports the SDK has %d modules, want at most %d:\n%s", len(modules), modulesAtMost, strings.Join(modules, "\n"))
	}
	for _, m := range modules {
		if strings.Contains(m, "docker") || strings.Contains(m, "testcontainers") {
			t.Errorf("%s comes with the SDK", m)
		}
	}
}
