package audit

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"
)

// ExportFormat is a file format of [Query.Export].
type ExportFormat int

// The formats.
const (
	// JSONL is one JSON object a line, the form of [Change.MarshalJSON].
	JSONL ExportFormat = iota + 1
	// CSV is RFC 4180 with a header line of the column names of the store. NULL is
	// an empty field and an empty text a quoted one, images and context are JSON,
	// times RFC 3339 in UTC. It reads back with COPY ... (FORMAT csv, HEADER).
	CSV
	// SpreadsheetCSV is CSV for spreadsheets: a field that one would take for a
	// formula, since it begins with one of = + - @ or a control character, has an
	// apostrophe before it. It does not read back as it was.
	SpreadsheetCSV

	// headerless is added to a format of which the header line is left out.
	headerless ExportFormat = 1 << 8
)

// WithoutHeader is the format without its header line, to go on with a file. Of JSONL,
// which has none, it is the same.
func (f ExportFormat) WithoutHeader() ExportFormat { return f | headerless }

// exportChunk is how much an export gathers before it writes.
const exportChunk = 64 << 10

// ExportError is returned by [Query.Export] when it ends before its end. What it says is
// what the writer took, and so where to go on: cut the file off behind Bytes, and export
// the same query After(Next), and where Bytes is not 0, [ExportFormat.WithoutHeader]. Of a
// query with a Limit, [ExportError.Rest] makes what is left.
type ExportError struct {
	// Changes is how many changes were written as a whole.
	Changes int64
	// Bytes is how many bytes the writer took up to the end of the last whole line,
	// that of the header included. There may be a part of a line behind it.
	Bytes int64
	// Next continues behind the last change that was written as a whole. It is empty if
	// there is none and the query was not continued itself.
	Next Cursor

	cause error
}

func (e *ExportError) Error() string {
	return fmt.Sprintf("audit: export changes: after %d whole changes in %d bytes: %v", e.Changes, e.Bytes, e.cause)
}

// Rest returns the query that gives what is left of q, the one that was exported: behind
// Next, and its Limit less Changes. It reports false if nothing is left.
func (e *ExportError) Rest(q Query) (Query, bool) {
	q = q.After(e.Next)
	if q.limit == 0 {
		return q, true
	}
	left := int64(q.limit) - e.Changes
	if left <= 0 {
		return q, false
	}
	return q.Limit(int(left)), true
}

// Unwrap returns what the writer, the store or ctx said.
func (e *ExportError) Unwrap() error { return e.cause }

// Export writes the changes that the query gives to w, cursor and Limit included, and
// returns how many it wrote as a whole, also with an error. It streams: memory does not
// grow with the number of changes.
//
// The error is a [*ExportError], which tells where to go on, unless the query itself is
// wrong. A program that died in the midst of an export finds the place in the file: the
// last whole line of JSONL is a [Change] for [Query.CursorAfter], and so is the last whole
// record of CSV by its position, sequence and database.
func (q Query) Export(ctx context.Context, w io.Writer, format ExportFormat) (int64, error) {
	e := exporter{w: w, query: q}
	switch format &^ headerless {
	case JSONL:
		e.append = appendJSONLine
	case CSV:
		e.append = appendCSVLine
	case SpreadsheetCSV:
		e.append = appendSpreadsheetLine
	default:
		q = q.refuse("Export", "the format is none of JSONL, CSV and SpreadsheetCSV", nil)
	}
	if _, err := q.pages(); err != nil {
		return 0, err
	}
	if q.cursor != nil {
		e.next = q.cursor.encode()
	}
	if format == CSV || format == SpreadsheetCSV {
		e.buffer = appendCSVRecord(e.buffer, csvHeader)
		e.header = len(e.buffer)
	}
	err := e.run(ctx)
	if err != nil {
		err = &ExportError{Changes: e.changes, Bytes: e.bytes, Next: e.next, cause: err}
	}
	return e.changes, err
}

// exporter writes whole lines in chunks, and knows how many of them the writer took.
type exporter struct {
	w      io.Writer
	query  Query
	append func([]byte, Change) ([]byte, error)

	buffer []byte
	header int // how long the header line at the beginning of the buffer is
	lines  []exportLine

	changes int64
	bytes   int64
	next    Cursor
}

// exportLine is a change in the buffer: its place in history, and where its line ends.
type exportLine struct {
	at  mark
	end int
}

func (e *exporter) run(ctx context.Context) error {
	for change, err := range e.query.All(ctx) {
		if err == nil {
			e.buffer, err = e.append(e.buffer, change)
		}
		if err == nil {
			e.lines = append(e.lines, exportLine{markOf(change), len(e.buffer)})
			if len(e.buffer) < exportChunk {
				continue
			}
			err = e.flush()
			if err == nil {
				continue
			}
			return err
		}
		e.cut()
		if flushErr := e.flush(); flushErr != nil {
			return flushErr
		}
		return err
	}
	return e.flush()
}

// cut leaves out of the buffer what is no whole line.
func (e *exporter) cut() {
	end := e.header
	if n := len(e.lines); n > 0 {
		end = e.lines[n-1].end
	}
	e.buffer = e.buffer[:end]
}

// flush writes the buffer and counts the lines that went out as a whole.
func (e *exporter) flush() error {
	if len(e.buffer) == 0 {
		return nil
	}
	n, err := e.w.Write(e.buffer)
	if n < 0 || n > len(e.buffer) { // nothing can be told
		n, err = 0, fmt.Errorf("%T.Write returned an invalid count", e.w)
	}
	if err == nil && n < len(e.buffer) {
		err = io.ErrShortWrite
	}
	whole := 0
	if n >= e.header {
		whole = e.header
	}
	for _, line := range e.lines {
		if line.end > n {
			break
		}
		whole = line.end
		e.changes++
		e.next = cursor{e.query.changesKind(), []mark{line.at}}.encode()
	}
	e.bytes += int64(whole)
	e.buffer, e.header, e.lines = e.buffer[:0], 0, e.lines[:0]
	return err
}

func appendJSONLine(dst []byte, c Change) ([]byte, error) {
	var b bytes.Buffer
	encoder := json.NewEncoder(&b)
	encoder.SetEscapeHTML(false)
	err := encoder.Encode(c)
	return append(dst, b.Bytes()...), err
}

var csvHeader = fieldsOfCSV(
	"position", "sequence", "committed_at", "transaction_id", "database", "schema", "table",
	"primary_key", "previous_key", "operation", "before", "after", "context",
	"environment", "defect", "queued_at", "created_at",
)

// csvField is a field of a CSV file: nil is NULL.
type csvField *string

func fieldsOfCSV(texts ...string) []csvField {
	fields := make([]csvField, len(texts))
	for i := range texts {
		fields[i] = &texts[i]
	}
	return fields
}

func appendCSVLine(dst []byte, c Change) ([]byte, error) {
	return appendCSVRecord(dst, csvFields(c)), nil
}

func appendSpreadsheetLine(dst []byte, c Change) ([]byte, error) {
	fields := csvFields(c)
	for _, field := range fields {
		if field != nil {
			*field = withoutFormula(*field)
		}
	}
	return appendCSVRecord(dst, fields), nil
}

func csvFields(c Change) []csvField {
	moment := func(t time.Time) string { return t.UTC().Format(time.RFC3339Nano) }
	fields := fieldsOfCSV(
		string(appendLSN(nil, c.Position.LSN)), strconv.Itoa(c.Position.Sequence), moment(c.CommittedAt),
		strconv.FormatUint(c.TransactionID, 10), c.Database, c.Schema, c.Table,
		c.PrimaryKey, c.PreviousKey, string(c.Operation), c.Before.String(), c.After.String(), string(c.RawContext),
		c.Environment, c.Defect, moment(c.QueuedAt), moment(c.CreatedAt),
	)
	for i, known := range map[int]bool{
		7: c.HasKey, 8: c.KeyChanged, 12: c.Stamped, 13: c.Environment != "", 14: c.Defect != "",
	} {
		if !known {
			fields[i] = nil
		}
	}
	return fields
}

// appendCSVRecord appends a line in the form that COPY reads: a field in quotes is never
// NULL, and an empty one without them is.
func appendCSVRecord(dst []byte, fields []csvField) []byte {
	for i, field := range fields {
		if i > 0 {
			dst = append(dst, ',')
		}
		switch {
		case field == nil:
		case *field == "" || strings.ContainsAny(*field, "\",\r\n") || *field == `\.`:
			dst = append(dst, '"')
			dst = append(dst, strings.ReplaceAll(*field, `"`, `""`)...)
			dst = append(dst, '"')
		default:
			dst = append(dst, *field...)
		}
	}
	return append(dst, '\n')
}

// withoutFormula puts an apostrophe before what a spreadsheet would compute. The
// wide forms of the signs count as well, and blanks before them are passed over.
func withoutFormula(field string) string {
	trimmed := strings.TrimLeftFunc(field, func(r rune) bool { return unicode.IsSpace(r) || unicode.Is(unicode.Cf, r) })
	first, _ := utf8.DecodeRuneInString(trimmed)
	begin, _ := utf8.DecodeRuneInString(field)
	if field != "" && (unicode.IsControl(begin) || trimmed != "" && strings.ContainsRune("=+-@＝＋－＠", first)) {
		return "'" + field
	}
	return field
}
