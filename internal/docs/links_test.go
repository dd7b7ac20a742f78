package docs

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// What the FAQ quotes from other programs.
var foreign = regexp.MustCompile(`cannot update table|is used by an active`)

// The FAQ is found by the text of an error, so it has to be that text.
func TestFAQQuotesErrorsAsTheyAre(t *testing.T) {
	t.Parallel()
	var code strings.Builder
	for path, text := range readAll(t, ".go") {
		if !strings.HasSuffix(path, "_test.go") {
			code.WriteString(strings.ReplaceAll(text, `\"`, `"`))
		}
	}
	faq, err := os.ReadFile(filepath.Join(root, "docs/troubleshooting.md"))
	if err != nil {
		t.Fatal(err)
	}
	quotes := regexp.MustCompile("(?m)^(?:## |- )`([^`]+)`").FindAllStringSubmatch(string(faq), -1)
	if len(quotes) < 25 {
		t.Fatalf("only %d errors in the FAQ", len(quotes))
	}
	for _, quote := range quotes {
		if foreign.MatchString(quote[1]) {
			continue
		}
		// Names and layers are put together at run time.
		for _, part := range regexp.MustCompile(`…|: `).Split(quote[1], -1) {
			if part = strings.Trim(part, ` :,.(/"`); !strings.Contains(code.String(), part) {
				t.Errorf("FAQ: %q: the code has no error with %q", quote[1], part)
			}
		}
	}
}

var (
	link    = regexp.MustCompile(`\]\(([^)#:\s]*)(#[^)\s]+)?\)`)
	heading = regexp.MustCompile(`(?m)^#+ (.+)$`)
)

func TestLinksOfTheDocumentsLeadSomewhere(t *testing.T) {
	t.Parallel()
	documents := readAll(t, ".md")
	anchors := func(path string) map[string]bool {
		found := map[string]bool{}
		for _, h := range heading.FindAllStringSubmatch(documents[path], -1) {
			words := regexp.MustCompile(`[^\p{L}\p{N} _-]`).ReplaceAllString(strings.ToLower(h[1]), "")
			found["#"+strings.ReplaceAll(words, " ", "-")] = true
		}
		return found
	}
	for path, text := range documents {
		for _, l := range link.FindAllStringSubmatch(text, -1) {
			target := path
			if l[1] != "" {
				target = filepath.Join(filepath.Dir(path), l[1])
			}
			if _, err := os.Stat(filepath.Join(root, target)); err != nil {
				t.Errorf("%s: the link to %s leads nowhere", path, l[1])
				continue
			}
			if l[2] != "" && !anchors(target)[l[2]] {
				t.Errorf("%s: %s has no heading %s", path, target, l[2])
			}
		}
	}
}
