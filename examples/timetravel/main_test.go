package main

import (
	"bytes"
	"context"
	"os"
	"regexp"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestTellsThePastOfTheShop(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	want, err := os.ReadFile("testdata/output.golden")
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	if err := run(ctx, &out); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), out.String()); diff != "" {
		t.Errorf("the program printed something else (-want +got):\n%s", diff)
	}
}

// What the guide shows is what runs here.
func TestTheGuideShowsThisProgram(t *testing.T) {
	t.Parallel()
	guide, err := os.ReadFile("../../docs/timetravel.md")
	if err != nil {
		t.Fatal(err)
	}
	program, err := os.ReadFile("main.go")
	if err != nil {
		t.Fatal(err)
	}
	blocks := regexp.MustCompile("(?s)```go\n(.*?)```").FindAllSubmatch(guide, -1)
	if len(blocks) < 5 {
		t.Fatalf("only %d pieces of code in the guide", len(blocks))
	}
	for _, block := range blocks {
		if !bytes.Contains(program, block[1]) {
			t.Errorf("this is not in main.go:\n%s", block[1])
		}
	}
}
