package docs

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// lines is code by its lines, wherever it stands: without indentation and the columns
// of gofmt, and with a line break at both ends.
func lines(code string) string {
	split := strings.Split(strings.TrimSpace(code), "\n")
	for i, line := range split {
		split[i] = strings.Join(strings.Fields(line), " ")
	}
	return "\n" + strings.Join(split, "\n") + "\n"
}

// standsIn reports whether one of the texts has all parts of a quotation, in this order.
// A line of three dots stands between parts.
func standsIn(texts []string, quotation string) bool {
	parts := strings.Split(lines(quotation), "\n...\n")
	for _, text := range texts {
		found := true
		for _, part := range parts {
			_, text, found = strings.Cut(text, lines(part))
			if !found {
				break
			}
			text = "\n" + text
		}
		if found {
			return true
		}
	}
	return false
}

// Go that people copy from the documents is Go that is compiled and run.
func TestGoStandsInProgramsAndTests(t *testing.T) {
	t.Parallel()
	tested := regexp.MustCompile(`_test\.go$|^examples/`)
	var files []string
	for path, text := range readAll(t, ".go") {
		if tested.MatchString(path) {
			files = append(files, lines(text))
		}
	}
	for _, blocks := range documents(t) {
		for _, b := range of(blocks, "go") {
			if !standsIn(files, b.text) {
				t.Errorf("%s: no program and no test has\n%s", b, b.text)
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
		if strings.HasPrefix(path, "internal/integration/") {
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
