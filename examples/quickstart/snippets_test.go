package main

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// blocks returns the code blocks of a language in a document.
func blocks(t *testing.T, document, language string) []string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(root, document))
	if err != nil {
		t.Fatal(err)
	}
	var found []string
	for _, block := range regexp.MustCompile("(?ms)^ *```"+language+"\n(.*?)^ *```").FindAllStringSubmatch(string(text), -1) {
		found = append(found, block[1])
	}
	if len(found) == 0 {
		t.Fatalf("%s has no block of %s", document, language)
	}
	return found
}

// unindented is code by its lines, wherever it stands.
func unindented(code string) string {
	lines := strings.Split(strings.TrimSpace(code), "\n")
	for i, line := range lines {
		lines[i] = strings.TrimSpace(line)
	}
	return "\n" + strings.Join(lines, "\n") + "\n"
}

// Go that people copy from the guides is Go that is compiled and run.
func TestGoOfTheGuidesStandsInProgramsAndTests(t *testing.T) {
	t.Parallel()
	tested := regexp.MustCompile(`_test\.go$|/examples/`)
	var files []string
	for path, text := range readAll(t, ".go") {
		if tested.MatchString(path) {
			files = append(files, unindented(text))
		}
	}
	for _, document := range []string{"README.md", "docs/context.md", "docs/quickstart.md"} {
		for _, block := range blocks(t, document, "go") {
			if !standsIn(files, strings.Split(block, "...\n")) {
				t.Errorf("%s: no program and no test has\n%s", document, block)
			}
		}
	}
}

// The lines that open a library over a *sql.DB are those of its tests.
func TestLibrariesAreOpenedAsInTheirTests(t *testing.T) {
	t.Parallel()
	guide, err := os.ReadFile(filepath.Join(root, "docs/context.md"))
	if err != nil {
		t.Fatal(err)
	}
	var tests strings.Builder
	for path, text := range readAll(t, "_test.go") {
		if strings.Contains(path, "internal/integration/") {
			tests.WriteString(text)
		}
	}
	rows := regexp.MustCompile("(?m)^\\| (\\w+) \\| `([^`]*db[^`]*\\))` \\|").FindAllStringSubmatch(string(guide), -1)
	if len(rows) != 4 {
		t.Fatalf("%d libraries, want sqlx, GORM, ent and bun", len(rows))
	}
	for _, row := range rows {
		if !strings.Contains(tests.String(), row[2]) {
			t.Errorf("%s is opened by no test with %s", row[1], row[2])
		}
	}
}

// standsIn reports whether one of the files has all parts, in this order.
func standsIn(files, parts []string) bool {
	for _, file := range files {
		found := true
		for _, part := range parts {
			_, file, found = strings.Cut(file, unindented(part))
			if !found {
				break
			}
			file = "\n" + file
		}
		if found {
			return true
		}
	}
	return false
}
