package main

import (
	"bytes"
	"context"
	"io"
	"os"
	"regexp"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// position differs from run to run.
var position = regexp.MustCompile(`[0-9A-F]+/[0-9A-F]+#`)

// typist types a line when it is read from, which shows up like in a terminal.
type typist struct {
	lines []string
	echo  io.Writer
}

func (t *typist) Read(p []byte) (int, error) {
	if len(t.lines) == 0 {
		return 0, io.EOF
	}
	n := copy(p, t.lines[0]+"\n")
	t.lines = t.lines[1:]
	return t.echo.Write(p[:n])
}

// The administrator undoes a request in spite of a conflict, thinks better of it,
// and undoes it for good; what is done is not done twice, and what is left out is
// asked about again.
func TestUndoesAndRedoesARequest(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	want, err := os.ReadFile("testdata/output.golden")
	if err != nil {
		t.Fatal(err)
	}
	answers := []string{
		"req-9",
		"req-2", "n",
		"req-2", "y", "y", "y",
		"req-1", "y", "n",
		"req-1",
		"req-2", "y", "y", "n",
		"req-2", "y",
		"",
	}
	var out bytes.Buffer
	if err := run(ctx, "", clumsy, "root", &typist{answers, &out}, &out); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), position.ReplaceAllString(out.String(), "0/1A2B3C8#")); diff != "" {
		t.Errorf("the program printed something else (-want +got):\n%s", diff)
	}
}
