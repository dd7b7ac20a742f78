package main

import (
	"context"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/hindsight-go/audit/audittest"
)

func TestRunsTwiceOnADatabaseOfYours(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	db := audittest.NewDatabase(t)
	for range 2 {
		if err := run(ctx, db.URL()); err != nil {
			t.Fatal(err)
		}
	}
	got := audittest.Value[[]string](t, db, `SELECT array_agg(operation || ' ' || (after ->> 'task') || ' by ' || (context ->> 'userId') ORDER BY position) FROM audit.changes`)
	if want := "CREATE Sleep by 187234; UPDATE Sleep more by 187234"; strings.Join(got, "; ") != want {
		t.Errorf("history: %q, want %s", got, want)
	}
}

// What people paste is what the test above has run.
func TestStandsInTheReadme(t *testing.T) {
	t.Parallel()
	program, err := os.ReadFile("main.go")
	if err != nil {
		t.Fatal(err)
	}
	_, body, found := strings.Cut(string(program), "package main")
	if !found {
		t.Fatal("main.go has no package clause")
	}
	for _, file := range []string{"../../README.md", "../../docs/quickstart.md"} {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if !strings.Contains(string(text), "```go\npackage main"+body+"```") {
			t.Errorf("%s does not hold the program as it is in examples/quickstart/main.go", file)
		}
	}
}
