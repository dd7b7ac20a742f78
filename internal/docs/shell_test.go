package docs

import (
	"bytes"
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/hindsight-go/audit/audittest"
)

// shellRule says what becomes of a command of a document.
type shellRule struct {
	command *regexp.Regexp
	// as is what is run in the directory of the document; empty if nothing is.
	as string
	// look looks at a command that is not run there.
	look func(t *testing.T, b block, match []string)
	// reason says why a command can be neither run nor looked at.
	reason string
}

// module makes a module of the document's use the SDK as it is here. What the module
// proxy would be asked for is in the cache: the SDK itself needs it.
const module = `go mod edit -require=github.com/hindsight-go/audit@v0.0.0 -replace=github.com/hindsight-go/audit="$SDK" && cp "$SDK/go.sum" .`

var shellRules = []shellRule{
	{command: regexp.MustCompile(`^(mkdir |cd [a-z]+$|go mod init |go run \.$|psql )`), as: "$0"},
	{command: regexp.MustCompile(`^go get github\.com/hindsight-go/audit$`), as: module},
	{command: regexp.MustCompile(`^go get github\.com/hindsight-go/audit/([a-z/]+)$`), look: hasModule},
	{command: regexp.MustCompile(`^export DATABASE_URL=`), as: "true"}, // it is that of the test's database

	// In the repository.
	{command: regexp.MustCompile(`^go run \./(examples/[a-z]+)( -ui)?$`), look: hasTests},
	{command: regexp.MustCompile(`^cd (examples/[a-z]+) && go run \.$`), look: hasTests},
	{command: regexp.MustCompile(`^(make [a-z-]+.*)$`), look: hasTarget},
	{command: regexp.MustCompile(`^go test \./\.\.\.$|^cd (.+) && go test \./\.\.\.$`), look: hasModule},
	{command: regexp.MustCompile(`^(?:[A-Z_]+=\S+ )*go test -run '?(\w+)'? .*\.$`), look: hasTest},
	{command: regexp.MustCompile(`^(go doc .*)$`), look: isDocumented},
	{command: regexp.MustCompile(`^golangci-lint run|^gofmt -l \.$|^\.ci/run$`), reason: "the build machine runs it: .ci/run"},

	// What cannot be run here.
	{command: regexp.MustCompile(`^docker (run|rm|build) `), reason: "takes a container engine"},
	{command: regexp.MustCompile(`^git clone https://github\.com/hindsight-go/audit`), reason: "takes the network"},
	{command: regexp.MustCompile(`^go install github\.com/hindsight-go/audit/([a-z/]+)@latest$`), look: hasModule},
	{command: regexp.MustCompile(`^(aws|gcloud|az|neonctl|supabase) `), reason: "takes an account with the service"},
	{command: regexp.MustCompile(`^kubectl `), reason: "takes a cluster"},
}

// ruleOf returns the rule for a command.
func ruleOf(command string) (shellRule, []string) {
	for _, rule := range shellRules {
		if match := rule.command.FindStringSubmatch(command); match != nil {
			return rule, match
		}
	}
	return shellRule{}, nil
}

// commands returns the commands of a block, without comments, each with its lines that go on.
func commands(b block) []string {
	var found []string
	for _, line := range strings.Split(strings.ReplaceAll(b.text, "\\\n", " "), "\n") {
		line, _, _ = strings.Cut(line, " #")
		if line = strings.TrimSpace(line); line != "" && !strings.HasPrefix(line, "#") {
			found = append(found, line)
		}
	}
	return found
}

// runs reports whether something of a block is run.
func runs(b block) bool {
	for _, command := range commands(b) {
		if rule, _ := ruleOf(command); rule.as != "" && rule.as != "true" {
			return true
		}
	}
	return false
}

// Every command of a document is run, or looked at, or is known not to run here.
func TestShellRuns(t *testing.T) {
	t.Parallel()
	for document, blocks := range documents(t) {
		var script strings.Builder
		script.WriteString("set -e\n")
		programs := 0
		var output string
		for i, b := range blocks {
			if b.language == "go" && strings.HasPrefix(b.text, "package main\n") {
				// Where the commands before it have led.
				script.WriteString("cat > main.go <<'END OF PROGRAM'\n" + b.text + "END OF PROGRAM\n")
				programs++
			}
			if b.language != "sh" {
				continue
			}
			for _, command := range commands(b) {
				rule, match := ruleOf(command)
				switch {
				case match == nil:
					t.Errorf("%s: no test knows the command %q: see shellRules", b, command)
				case rule.look != nil:
					rule.look(t, b, match)
				case rule.as != "":
					script.WriteString(strings.ReplaceAll(rule.as, "$0", command) + "\n")
				}
			}
			if runs(b) && i+1 < len(blocks) && (blocks[i+1].language == "" || blocks[i+1].language == "text") {
				output = blocks[i+1].text
			}
		}
		if programs == 0 {
			continue
		}
		t.Run(document, func(t *testing.T) {
			t.Parallel()
			printed := runShell(t, script.String())
			if output != "" && !isPrinted([]string{strings.TrimSpace(stable(printed))}, output) {
				t.Errorf("%s says that it prints\n%sand it printed\n%s", document, output, printed)
			}
		})
	}
}

// runShell runs a script in a directory of its own, with a database.
func runShell(t *testing.T, script string) string {
	t.Helper()
	sdk, err := filepath.Abs(root)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	command := exec.CommandContext(ctx, "bash", "-c", script)
	command.Dir = t.TempDir()
	command.Env = append(os.Environ(), "SDK="+sdk, "DATABASE_URL="+audittest.NewDatabase(t).URL(), "GOFLAGS=-mod=mod", "GOWORK=off")
	var out bytes.Buffer
	command.Stdout, command.Stderr = &out, &out
	if err := command.Run(); err != nil {
		t.Fatalf("%v in\n%s\nwhich printed\n%s", err, script, out.String())
	}
	return out.String()
}

// hasTests looks for the tests of an example program.
func hasTests(t *testing.T, b block, match []string) {
	t.Helper()
	if _, err := os.Stat(filepath.Join(root, match[1], "main_test.go")); err != nil {
		t.Errorf("%s: %s is run by no test", b, match[1])
	}
}

// hasModule looks for a package or module of the repository.
func hasModule(t *testing.T, b block, match []string) {
	t.Helper()
	found, err := filepath.Glob(filepath.Join(root, match[1], "*.go"))
	if modules, _ := filepath.Glob(filepath.Join(root, match[1], "go.mod")); err != nil || len(found)+len(modules) == 0 {
		t.Errorf("%s: there is no package %s", b, match[1])
	}
}

// hasTarget asks make what it would do.
func hasTarget(t *testing.T, b block, match []string) {
	t.Helper()
	command := exec.CommandContext(t.Context(), "bash", "-c", strings.Replace(match[1], "make ", "make -n ", 1))
	command.Dir = root
	if out, err := command.CombinedOutput(); err != nil {
		t.Errorf("%s: %s: %v\n%s", b, match[1], err, out)
	}
}

// hasTest looks for a test of the root package.
func hasTest(t *testing.T, b block, match []string) {
	t.Helper()
	for path, text := range readAll(t, "_test.go") {
		if !strings.Contains(path, "/") && strings.Contains(text, "func "+match[1]) {
			return
		}
	}
	t.Errorf("%s: no test has a name that begins with %s", b, match[1])
}

// isDocumented runs go doc.
func isDocumented(t *testing.T, b block, match []string) {
	t.Helper()
	command := exec.CommandContext(t.Context(), "bash", "-c", strings.ReplaceAll(match[1], "github.com/hindsight-go/audit", "."))
	command.Dir = root
	if out, err := command.CombinedOutput(); err != nil {
		t.Errorf("%s: %s: %v\n%s", b, match[1], err, out)
	}
}

var inlineCommand = regexp.MustCompile("`((?:make|go run|go test|go doc) [^`]+)`")

// Commands in running text are commands of the documents, too.
func TestCommandsInTextExist(t *testing.T) {
	t.Parallel()
	n := 0
	for path, text := range readAll(t, ".md") {
		if path != "README.md" && filepath.Dir(path) != "docs" {
			continue
		}
		for _, match := range inlineCommand.FindAllStringSubmatch(text, -1) {
			n++
			lookAtInline(t, path, match[1])
		}
	}
	if n < 10 {
		t.Errorf("only %d commands", n)
	}
}

func lookAtInline(t *testing.T, document, command string) {
	t.Helper()
	b := block{document: document}
	words := strings.Fields(command)
	switch {
	case words[0] == "make":
		hasTarget(t, b, []string{command, command})
	case words[0] == "go" && words[1] == "doc":
		isDocumented(t, b, []string{command, command})
	default: // go run and go test name packages
		for _, word := range words[2:] {
			if name, isPath := strings.CutPrefix(word, "./"); isPath && name != "..." {
				if found, _ := filepath.Glob(filepath.Join(root, name, "*.go")); len(found) == 0 {
					t.Errorf("%s: %s: there is no package %s", document, command, word)
				}
			}
		}
	}
}
