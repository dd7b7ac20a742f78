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

// The time of the soft deletion stands in the golden file as one run had it.
var deletedAt = regexp.MustCompile(`"20\d\d-\d\d-\d\d \d\d:\d\d:\d\d[.\d]*\+00"`)

func TestPrintsTheHistory(t *testing.T) {
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
	got := deletedAt.ReplaceAllString(out.String(), `"2024-01-02 03:04:05+00"`)
	if diff := cmp.Diff(string(want), got); diff != "" {
		t.Errorf("the program printed something else (-want +got):\n%s", diff)
	}
}
