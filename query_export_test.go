package audit_test

import (
	"bytes"
	"context"
	"encoding/csv"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"

	"github.com/hindsight-go/audit"
	"github.com/hindsight-go/audit/audittest"
)

// exportHistory has changes of all sizes, with keys that are NULL, empty, or hold what
// CSV has to quote.
func exportHistory(t *testing.T) (*history, int) {
	t.Helper()
	h := newHistory(t)
	var changes []audit.Change
	for n := range 300 {
		c := change(n, 1, key([]string{"", `\.`, "a,b", "line\nbreak", `"`, "plain"}[n%6]), with(fmt.Sprintf(`{"userId": %d, "note": "a\n\"b\",c"}`, n)))
		if n%7 == 0 {
			did(audit.Truncate)(&c)
			c.PrimaryKey, c.Stamped = "", false
		}
		if n%5 == 0 {
			c.PreviousKey, c.KeyChanged = "", true
		}
		c.Before = audit.Image(fmt.Sprintf(`{"text": %q}`, strings.Repeat("x", n*n%3000)))
		changes = append(changes, c)
	}
	h.store(t, changes...)
	return h, len(changes)
}

var errKilled = errors.New("killed")

// mortal is a file whose n-th write, or the one that reaches a size, goes only as far as
// part of it.
type mortal struct {
	bytes.Buffer
	writes int // how many are taken as a whole
	part   int // in how many parts of which the first is taken, the next goes
}

func (m *mortal) Write(p []byte) (int, error) {
	if m.writes--; m.writes >= 0 {
		return m.Buffer.Write(p)
	}
	n, _ := m.Buffer.Write(p[:len(p)*m.part/3])
	return n, errKilled
}

// An export that ends at any of its writes, before, in the midst of and behind it, goes
// on where its error says, and the file holds the whole, once.
func TestExport_ResumedAfterEveryWrite(t *testing.T) {
	t.Parallel()
	h, size := exportHistory(t)
	for _, format := range []audit.ExportFormat{audit.JSONL, audit.CSV, audit.SpreadsheetCSV} {
		for _, q := range []audit.Query{h.client.Changes(), h.client.Changes().OldestFirst()} {
			var whole bytes.Buffer
			if n, err := q.Export(t.Context(), &whole, format); err != nil || int(n) != size {
				t.Fatalf("%d, %v", n, err)
			}
			failures := 0
			for writes := 0; ; writes++ {
				resumed := 0
				for part := range 4 {
					file := &mortal{writes: writes, part: part}
					n, err := q.Export(t.Context(), file, format)
					if err == nil {
						continue
					}
					resumed++
					var cut *audit.ExportError
					if !errors.As(err, &cut) || !errors.Is(err, errKilled) || cut.Changes != n {
						t.Fatalf("%d, %v", n, err)
					}
					file.Truncate(int(cut.Bytes))
					next := format
					if cut.Bytes > 0 {
						next = format.WithoutHeader()
					}
					rest, err := q.After(cut.Next).Export(t.Context(), &file.Buffer, next)
					if err != nil || int(n+rest) != size || !bytes.Equal(file.Bytes(), whole.Bytes()) {
						t.Fatalf("format %d, write %d, part %d: %d and %d changes, %v", format, writes, part, n, rest, err)
					}
				}
				failures += resumed
				if resumed == 0 {
					break
				}
			}
			if failures < 8 {
				t.Errorf("only %d failures were tried", failures)
			}
		}
	}
}

// What is left of a query with a Limit is less than that.
func TestExport_ResumedWithLimit(t *testing.T) {
	t.Parallel()
	h, _ := exportHistory(t)
	q := h.client.Changes().OldestFirst().Limit(200)
	var whole bytes.Buffer
	if _, err := q.Export(t.Context(), &whole, audit.CSV); err != nil {
		t.Fatal(err)
	}
	ended := false
	for writes, more := 0, true; more; writes++ {
		more = false
		for part := range 4 {
			file := &mortal{writes: writes, part: part}
			_, err := q.Export(t.Context(), file, audit.CSV)
			var cut *audit.ExportError
			if !errors.As(err, &cut) {
				continue
			}
			more = true
			file.Truncate(int(cut.Bytes))
			format := audit.CSV
			if cut.Bytes > 0 {
				format = format.WithoutHeader()
			}
			if rest, left := cut.Rest(q); left {
				_, err = rest.Export(t.Context(), &file.Buffer, format)
			} else {
				ended, err = true, nil
			}
			if err != nil || !bytes.Equal(file.Bytes(), whole.Bytes()) {
				t.Errorf("write %d, part %d: %d lines, %v", writes, part, bytes.Count(file.Bytes(), []byte("\n")), err)
			}
		}
	}
	if !ended {
		t.Error("no export died behind its last change")
	}
}

// A program that died knows nothing but the file.
func TestExport_ResumedFromTheFile(t *testing.T) {
	t.Parallel()
	h, size := exportHistory(t)
	q := h.client.Changes()
	var whole bytes.Buffer
	if _, err := q.Export(t.Context(), &whole, audit.JSONL); err != nil {
		t.Fatal(err)
	}
	var table bytes.Buffer
	if _, err := q.Export(t.Context(), &table, audit.CSV); err != nil {
		t.Fatal(err)
	}
	for _, at := range []int{0, 1, 500, whole.Len() / 3, whole.Len() / 2, whole.Len() - 1, whole.Len()} {
		file := bytes.NewBuffer(bytes.Clone(whole.Bytes()[:at]))
		file.Truncate(bytes.LastIndexByte(file.Bytes(), '\n') + 1)
		var after audit.Cursor
		lines := bytes.Split(bytes.TrimSuffix(file.Bytes(), []byte("\n")), []byte("\n"))
		if last := lines[len(lines)-1]; len(last) > 0 {
			var c audit.Change
			if err := json.Unmarshal(last, &c); err != nil {
				t.Fatal(err)
			}
			after = q.CursorAfter(c)
		}
		if _, err := q.After(after).Export(t.Context(), file, audit.JSONL); err != nil || !bytes.Equal(file.Bytes(), whole.Bytes()) {
			t.Errorf("JSONL cut at %d: %v", at, err)
		}
	}
	for _, at := range []int{table.Len() / 4, table.Len() / 2, table.Len() - 1} {
		var last audit.Change
		end := int64(0)
		records := csv.NewReader(bytes.NewReader(table.Bytes()[:at]))
		for n := 0; ; n++ {
			record, err := records.Read()
			if err != nil || len(record) < 17 || table.Bytes()[records.InputOffset()-1] != '\n' {
				break
			}
			end = records.InputOffset()
			if n == 0 {
				continue
			}
			if last.Position, err = audit.ParsePosition(record[0] + "#" + record[1]); err != nil {
				t.Fatal(err)
			}
			last.Database = record[4]
		}
		file := bytes.NewBuffer(bytes.Clone(table.Bytes()[:end]))
		if _, err := q.After(q.CursorAfter(last)).Export(t.Context(), file, audit.CSV.WithoutHeader()); err != nil || !bytes.Equal(file.Bytes(), table.Bytes()) {
			t.Errorf("CSV cut at %d of %d changes: %v", at, size, err)
		}
	}
}

// A query that ends in the midst of its pages says what was written as well.
func TestExport_QueryFails(t *testing.T) {
	t.Parallel()
	h, size := exportHistory(t)
	var whole, file bytes.Buffer
	if _, err := h.client.Changes().Export(t.Context(), &whole, audit.JSONL); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	n, err := h.client.Changes().Export(ctx, writerFunc(func(p []byte) (int, error) { cancel(); return file.Write(p) }), audit.JSONL)
	var cut *audit.ExportError
	if !errors.As(err, &cut) || !errors.Is(err, context.Canceled) || n == 0 || int(n) >= size {
		t.Fatalf("%d, %v", n, err)
	}
	if int(n) != bytes.Count(file.Bytes(), []byte("\n")) || cut.Bytes != int64(file.Len()) {
		t.Errorf("%d changes in %d bytes, the file has %d lines in %d", n, cut.Bytes, bytes.Count(file.Bytes(), []byte("\n")), file.Len())
	}
	if _, err := h.client.Changes().After(cut.Next).Export(t.Context(), &file, audit.JSONL); err != nil || !bytes.Equal(file.Bytes(), whole.Bytes()) {
		t.Error(err)
	}
	// Before the first write, and with a writer that lies.
	for name, w := range map[string]io.Writer{
		"nothing": writerFunc(func([]byte) (int, error) { return 0, errKilled }),
		"short":   writerFunc(func(p []byte) (int, error) { return 1, nil }),
		"liar":    writerFunc(func(p []byte) (int, error) { return len(p) + 1, nil }),
	} {
		n, err := h.client.Changes().Export(t.Context(), w, audit.CSV)
		if !errors.As(err, &cut) || n != 0 || cut.Bytes != 0 || cut.Next != "" {
			t.Errorf("%s: %d, %v", name, n, err)
		}
	}
	var refused *audit.FilterError
	if _, err := h.client.Changes().Limit(0).Export(t.Context(), &file, audit.CSV); !errors.As(err, &refused) || errors.As(err, &cut) {
		t.Error(err)
	}
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(p []byte) (int, error) { return f(p) }

// What CSV says reads back with COPY, NULL and empty texts included.
func TestExport_CSVReadsBack(t *testing.T) {
	t.Parallel()
	h, size := exportHistory(t)
	var table bytes.Buffer
	if _, err := h.client.Changes().Export(t.Context(), &table, audit.CSV); err != nil {
		t.Fatal(err)
	}
	h.db.Exec(t, `CREATE TABLE audit.back (LIKE audit.changes)`)
	conn := h.db.Connect(t)
	defer conn.Close(t.Context())
	const columns = `position, sequence, committed_at, transaction_id, database, schema, "table", primary_key, previous_key, operation, before, after, context, environment, defect, queued_at, created_at`
	if _, err := conn.PgConn().CopyFrom(t.Context(), &table, "COPY audit.back ("+columns+") FROM STDIN (FORMAT csv, HEADER)"); err != nil {
		t.Fatal(err)
	}
	different := audittest.Value[int](t, h.db, `SELECT count(*)::int FROM (
		(SELECT `+columns+` FROM audit.back EXCEPT ALL SELECT `+columns+` FROM audit.changes)
		UNION ALL (SELECT `+columns+` FROM audit.changes EXCEPT ALL SELECT `+columns+` FROM audit.back)) AS d`)
	if n := audittest.Value[int](t, h.db, "SELECT count(*)::int FROM audit.back"); n != size || different != 0 {
		t.Errorf("%d rows of %d, %d different", n, size, different)
	}
}
