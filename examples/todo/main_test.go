package main

import (
	"bufio"
	"bytes"
	"context"
	"io"
	"net/http"
	"os"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// What differs from run to run stands in the golden file as one run had it.
var (
	committedAt   = regexp.MustCompile(`20\d\d-\d\d-\d\d \d\d:\d\d:\d\d\+00`)
	transactionID = regexp.MustCompile(`transaction \d+`)
	position      = regexp.MustCompile(`[0-9A-F]+/[0-9A-F]+#`)
)

// Not in parallel, as the next one: each program makes its client that of audit.Changes.
//
//nolint:paralleltest // As it says.
func TestPrintsTheFiveRowsAndTheStory(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	want, err := os.ReadFile("testdata/output.golden")
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	if err := run(ctx, &out, false); err != nil {
		t.Fatal(err)
	}
	got := committedAt.ReplaceAllString(out.String(), "2024-01-02 03:04:05+00")
	got = transactionID.ReplaceAllString(got, "transaction 731")
	got = position.ReplaceAllString(got, "0/1559D20#")
	if diff := cmp.Diff(string(want), got); diff != "" {
		t.Errorf("the program printed something else (-want +got):\n%s", diff)
	}
}

// With -ui the story can be looked at in a browser until the program is told to end.
//
//nolint:paralleltest // See above.
func TestShowsTheStoryInTheBrowser(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	out, in := io.Pipe()
	done := make(chan error, 1)
	go func() {
		err := run(ctx, in, true)
		_ = in.Close()
		done <- err
	}()
	lines := bufio.NewScanner(out)
	for lines.Scan() {
		address, found := strings.CutPrefix(lines.Text(), "All this is at ")
		if !found {
			continue
		}
		address, _, _ = strings.Cut(address, " ")
		for page, want := range map[string]string{"": "todo", "rows/public.todo/29": "Write less code"} {
			request, err := http.NewRequestWithContext(ctx, http.MethodGet, address+page, nil)
			if err != nil {
				t.Fatal(err)
			}
			response, err := http.DefaultClient.Do(request)
			if err != nil {
				t.Fatal(err)
			}
			body, err := io.ReadAll(response.Body)
			_ = response.Body.Close()
			if err != nil || response.StatusCode != http.StatusOK || !strings.Contains(string(body), want) {
				t.Errorf("%s answers %s, %v, without %q", address+page, response.Status, err, want)
			}
		}
		cancel()
	}
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// cells are those of the five rows of a table, as psql prints it.
func cells(t *testing.T, file string) [][]string {
	t.Helper()
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var rows [][]string
	for _, line := range regexp.MustCompile(`(?m)^ \d+ +\| todo .*$`).FindAllString(string(text), -1) {
		row := strings.Split(line, "|")
		for i := range row {
			row[i] = strings.TrimSpace(row[i])
		}
		rows = append(rows, row)
	}
	if len(rows) != 5 {
		t.Fatalf("%s has %d rows, not 5", file, len(rows))
	}
	return rows
}

// What the README shows is what the program prints, but for contexts that are
// too long for it.
func TestTheFiveRowsStandInTheReadme(t *testing.T) {
	t.Parallel()
	const context = 5
	got := cells(t, "../../README.md")
	for i, want := range cells(t, "testdata/output.golden") {
		if begin, long := strings.CutSuffix(got[i][context], ", ...}"); long && strings.HasPrefix(want[context], begin) {
			got[i][context] = want[context]
		}
		if diff := cmp.Diff(want, got[i]); diff != "" {
			t.Errorf("row %d (-printed +README):\n%s", i+1, diff)
		}
	}
}
