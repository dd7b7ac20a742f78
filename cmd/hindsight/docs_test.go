package main

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

var (
	fence   = regexp.MustCompile("(?m)^```(.*)$")
	console = regexp.MustCompile("(?ms)^```console\n(.*?)^```$")
)

// Every block of the guide is played, from top to bottom in one database.
func TestDocs(t *testing.T) {
	t.Parallel()
	s := newStory(t)
	s.Exec(t, "CREATE TABLE invoices (id int PRIMARY KEY)") // by a migration, of which nobody was told
	s.document(t, "../../README.md", false)
	s.document(t, "../../docs/cli.md", true)
}

// Blocks of the console elsewhere are played as well, each document with a database of its own.
func TestDocs_OtherDocuments(t *testing.T) {
	t.Parallel()
	for _, name := range documents(t) {
		text, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		if !console.Match(text) || strings.HasSuffix(name, "README.md") || strings.HasSuffix(name, "cli.md") {
			continue
		}
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			newStory(t).document(t, name, false)
		})
	}
}

// documents are the README and what is in docs.
func documents(t *testing.T) []string {
	t.Helper()
	names, err := filepath.Glob("../../docs/*.md")
	if err != nil || len(names) < 10 {
		t.Fatal(names, err)
	}
	return append(names, "../../README.md")
}

var inlineCommand = regexp.MustCompile("`hindsight ([a-z][^`]*)`")

// A command that is named in running text is there, with its flags.
func TestDocs_CommandsInTextExist(t *testing.T) {
	t.Parallel()
	n := 0
	for _, name := range documents(t) {
		text, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		for _, match := range inlineCommand.FindAllStringSubmatch(string(text), -1) {
			n++
			words := strings.Fields(match[1])
			command, _, err := (&app{}).command().Find(words[:1])
			if err != nil || command.Name() != words[0] {
				t.Errorf("%s: `hindsight %s`: there is no command %s", name, match[1], words[0])
				continue
			}
			for _, word := range words[1:] {
				flag, long := strings.CutPrefix(word, "--")
				flag, _, _ = strings.Cut(flag, "=")
				if long && command.Flag(flag) == nil && command.InheritedFlags().Lookup(flag) == nil {
					t.Errorf("%s: `hindsight %s`: %s has no flag --%s", name, match[1], words[0], flag)
				}
			}
		}
	}
	if n < 10 {
		t.Errorf("only %d commands", n)
	}
}

// document plays the blocks of the console of a document; alone tells that it has no others.
func (s *story) document(t *testing.T, name string, alone bool) {
	t.Helper()
	text, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	blocks := console.FindAllString(string(text), -1)
	if fences := fence.FindAllString(string(text), -1); alone && len(fences) != 2*len(blocks) || len(blocks) == 0 {
		t.Fatalf("%s has %d fences and %d blocks of console: every block has to be played", name, len(fences), len(blocks))
	}
	played := console.ReplaceAllStringFunc(string(text), func(block string) string {
		script := console.FindStringSubmatch(block)[1]
		return "```console\n" + s.play(t, script) + "```"
	})
	if *update {
		if err := os.WriteFile(name, []byte(played), 0o600); err != nil {
			t.Fatal(err)
		}
		return
	}
	if diff := cmp.Diff(string(text), played); diff != "" {
		t.Errorf("%s (-want +got; write it anew with go test -update):\n%s", name, diff)
	}
}

// Every command and every flag of it is in the guide.
func TestDocsNameEveryCommand(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile("../../docs/cli.md")
	if err != nil {
		t.Fatal(err)
	}
	root := (&app{}).command()
	for _, c := range root.Commands() {
		if c.Hidden || c.Name() == "help" {
			continue
		}
		if !strings.Contains(string(text), "`hindsight "+c.Name()) && !strings.Contains(string(text), "$ hindsight "+c.Name()) && !strings.Contains(string(text), "`"+c.Name()+"`") {
			t.Errorf("docs/cli.md does not name %s", c.Name())
		}
	}
}
