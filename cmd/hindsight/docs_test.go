package main

import (
	"os"
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
