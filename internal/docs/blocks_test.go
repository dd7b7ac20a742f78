package docs

import (
	"encoding/json"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
)

// root is the root of the repository.
const root = "../.."

// block is a block of code in a document.
type block struct {
	document string // by its path from the root
	line     int    // of the fence
	language string
	text     string
}

func (b block) String() string { return fmt.Sprintf("%s:%d", b.document, b.line) }

// readAll returns the files of the repository with an ending, by their path from the
// root.
func readAll(t *testing.T, endings ...string) map[string]string {
	t.Helper()
	files := map[string]string{}
	err := filepath.WalkDir(root, func(path string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if entry.IsDir() {
			if entry.Name() == ".git" {
				return filepath.SkipDir
			}
			return nil
		}
		for _, ending := range endings {
			if strings.HasSuffix(path, ending) {
				text, err := os.ReadFile(path)
				name, _ := filepath.Rel(root, path)
				files[filepath.ToSlash(name)] = string(text)
				return err
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return files
}

var (
	documentsOnce sync.Once
	allBlocks     map[string][]block
)

// documents returns the blocks of every document: of those in the root and in docs.
func documents(t *testing.T) map[string][]block {
	t.Helper()
	documentsOnce.Do(func() {
		allBlocks = map[string][]block{}
		for path, text := range readAll(t, ".md") {
			if strings.HasPrefix(path, "docs/") || !strings.Contains(path, "/") {
				allBlocks[path] = blocksOf(t, path, text)
			}
		}
	})
	if len(allBlocks) < 12 {
		t.Fatalf("only %d documents", len(allBlocks))
	}
	return allBlocks
}

var fence = regexp.MustCompile("^( *)```([a-z]*)$")

// blocksOf takes the blocks out of a document. Their lines lose the indentation of the
// fence.
func blocksOf(t *testing.T, document, text string) []block {
	t.Helper()
	var found []block
	var open *block
	var indentation string
	for i, line := range strings.Split(text, "\n") {
		f := fence.FindStringSubmatch(line)
		switch {
		case f == nil && open != nil:
			open.text += strings.TrimPrefix(line, indentation) + "\n"
		case f == nil && strings.HasPrefix(strings.TrimSpace(line), "```"):
			t.Errorf("%s:%d: a fence that no test understands: %s", document, i+1, line)
		case f != nil && open == nil:
			open, indentation = &block{document: document, line: i + 1, language: f[2]}, f[1]
		case f != nil:
			found, open = append(found, *open), nil
		}
	}
	if open != nil {
		t.Errorf("%s: the block has no end", open)
	}
	return found
}

// of returns the blocks of a language.
func of(blocks []block, language string) []block {
	var found []block
	for _, b := range blocks {
		if b.language == language {
			found = append(found, b)
		}
	}
	return found
}

// configurations are how the names of files end that a document may quote.
var configurations = map[string][]string{"yaml": {".yaml", ".yml"}, "dockerfile": {"Dockerfile"}}

// A block of a language that nobody runs is one that nobody has run.
func TestEveryBlockHasATest(t *testing.T) {
	t.Parallel()
	for document, blocks := range documents(t) {
		for _, b := range blocks {
			switch b.language {
			case "go", "sql", "sh", "text", "": // by the tests of this package
			case "yaml", "dockerfile":
				// A quotation from a file of the repository, which is used.
				var files []string
				for _, text := range readAll(t, configurations[b.language]...) {
					files = append(files, lines(text))
				}
				if !standsIn(files, b.text) {
					t.Errorf("%s: no file of the repository has\n%s", b, b.text)
				}
			case "console": // by cmd/hindsight, which plays the README and docs
				if document != "README.md" && filepath.Dir(document) != "docs" {
					t.Errorf("%s: the tests of cmd/hindsight do not play this document", b)
				}
			case "json":
				if !json.Valid([]byte(b.text)) {
					t.Errorf("%s: this is not JSON", b)
				}
			default:
				t.Errorf("%s: no test knows what to do with blocks of %s: see the comment of package docs", b, b.language)
			}
		}
	}
}
