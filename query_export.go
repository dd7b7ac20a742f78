package audit

import (
	"bufio"
	"context"
	"encoding/csv"
	"encoding/json"
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
	// an empty field, images and context are JSON, times RFC 3339 in UTC. It reads
	// back with COPY ... (FORMAT csv, HEADER).
	CSV
	// SpreadsheetCSV is CSV for spreadsheets: a field that one would take for a
	// formula, since it begins with one of = + - @ or a control character, has an
	// apostrophe before it. It does not read back as it was.
	SpreadsheetCSV
)

// Export writes the changes that the query gives to w, cursor and Limit
// included, and returns how many it wrote, also with an error. It streams: memory
// does not grow with the number of changes. It may leave w in the middle of a
// line if it fails.
func (q Query) Export(ctx context.Context, w io.Writer, format ExportFormat) (int64, error) {
	buffered := bufio.NewWriterSize(w, 64<<10)
	var write func(Change) error
	var finish func() error
	switch format {
	case JSONL:
		encoder := json.NewEncoder(buffered)
		encoder.SetEscapeHTML(false)
		write = func(c Change) error { return encoder.Encode(c) }
		finish = buffered.Flush
	case CSV, SpreadsheetCSV:
		lines := csv.NewWriter(buffered)
		if q.err == nil {
			if err := lines.Write(csvHeader); err != nil {
				return 0, wrap("export changes", err)
			}
		}
		write = func(c Change) error {
			line := csvLine(c)
			if format == SpreadsheetCSV {
				for i := range line {
					line[i] = withoutFormula(line[i])
				}
			}
			return lines.Write(line)
		}
		finish = func() error {
			lines.Flush()
			if err := lines.Error(); err != nil {
				return err
			}
			return buffered.Flush()
		}
	default:
		q = q.refuse("Export", "the format is none of JSONL, CSV and SpreadsheetCSV", nil)
	}
	var written int64
	for change, err := range q.All(ctx) {
		if err != nil {
			return written, err
		}
		if err := write(change); err != nil {
			return written, wrap("export changes", err)
		}
		written++
	}
	return written, wrap("export changes", finish())
}

var csvHeader = []string{
	"position", "sequence", "committed_at", "transaction_id", "database", "schema", "table",
	"primary_key", "previous_key", "operation", "before", "after", "context",
	"environment", "defect", "queued_at", "created_at",
}

func csvLine(c Change) []string {
	moment := func(t time.Time) string { return t.UTC().Format(time.RFC3339Nano) }
	return []string{
		string(appendLSN(nil, c.Position.LSN)), strconv.Itoa(c.Position.Sequence), moment(c.CommittedAt),
		strconv.FormatUint(c.TransactionID, 10), c.Database, c.Schema, c.Table,
		c.PrimaryKey, c.PreviousKey, string(c.Operation), c.Before.String(), c.After.String(), string(c.RawContext),
		c.Environment, c.Defect, moment(c.QueuedAt), moment(c.CreatedAt),
	}
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
