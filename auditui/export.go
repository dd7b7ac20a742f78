package auditui

import (
	"encoding/csv"
	"encoding/json"
	"errors"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/hindsight-go/audit"
)

// stream takes a place among the streams, and returns what gives it back.
func (q *request) stream() (release func(), err error) {
	select {
	case q.streams <- struct{}{}:
		return func() { <-q.streams }, nil
	default:
		return nil, errBusy
	}
}

// export streams the changes of a filter as a file. What somebody may not see in a page is
// not in the file either.
func (q *request) export() error {
	if !q.access.Export {
		return errNoPage
	}
	q.loadStatus()
	matching, err := q.filtered()
	if err != nil {
		return err
	}
	format := q.query.Get("format")
	if format != "csv" && format != "jsonl" {
		return &requestError{"The format is csv or jsonl."}
	}
	release, err := q.stream()
	if err != nil {
		return err
	}
	defer release()
	// An error of the query shows before the file begins.
	ctx, cancel := q.context(q.cfg.Timeout)
	_, err = matching.Page(ctx, 1)
	cancel()
	if err != nil {
		return err
	}
	q.view(View{Page: "export", Tables: q.tables})
	header := q.w.Header()
	header.Set("Content-Disposition", `attachment; filename="changes.`+format+`"`)
	header.Set("Content-Type", map[string]string{"csv": "text/csv; charset=utf-8", "jsonl": "application/jsonl; charset=utf-8"}[format])
	q.sent = true
	if q.r.Method == http.MethodHead {
		return nil
	}
	err = q.writeExport(matching, format)
	if err != nil && q.r.Context().Err() == nil {
		q.cfg.Logger.ErrorContext(q.r.Context(), "auditui: an export ended early", "kind", errorKind(err))
	}
	if err != nil {
		panic(http.ErrAbortHandler) // the file must not look whole
	}
	return nil
}

// exportColumns is the header of a CSV file.
var exportColumns = []string{
	"committed_at", "position", "sequence", "transaction_id", "database", "schema", "table", "primary_key", "operation",
	"user", "tenant", "request", "trace", "endpoint", "worker", "environment", "before", "after", "defect",
}

// exportIdle is how long whoever reads an export may take for a piece of it.
const exportIdle = time.Minute

func (q *request) writeExport(matching audit.Query, format string) error {
	control := http.NewResponseController(q.w)
	lines := csv.NewWriter(q.w)
	if format == "csv" {
		if err := lines.Write(exportColumns); err != nil {
			return err
		}
	}
	n := 0
	for change, err := range matching.All(q.r.Context()) {
		if err != nil {
			return err
		}
		if !q.mayTable(change.TableName()) {
			continue
		}
		if n%256 == 0 {
			// A server without deadlines has none to set.
			if err := control.SetWriteDeadline(time.Now().Add(exportIdle)); err != nil && !errors.Is(err, http.ErrNotSupported) {
				return err
			}
		}
		n++
		q.cover(&change)
		if format == "csv" {
			err = lines.Write(spreadsheetRecord(&change))
		} else {
			err = writeLine(q.w, change)
		}
		if err != nil {
			return err
		}
	}
	lines.Flush()
	return lines.Error()
}

func writeLine(w http.ResponseWriter, change audit.Change) error {
	text, err := json.Marshal(change)
	if err != nil {
		return err
	}
	_, err = w.Write(append(text, '\n'))
	return err
}

// spreadsheetRecord is a change as a line of CSV. What a spreadsheet would take for a
// formula has an apostrophe before it.
func spreadsheetRecord(c *audit.Change) []string {
	record := []string{
		c.CommittedAt.Format(time.RFC3339Nano), c.Position.LSN.String(), strconv.Itoa(c.Position.Sequence), strconv.FormatUint(c.TransactionID, 10),
		c.Database, c.Schema, c.Table, c.PrimaryKey, string(c.Operation),
		c.Context.User(), c.Context.Tenant, c.Context.RequestID, c.Context.TraceID, c.Context.Endpoint, c.Context.Worker, c.Environment,
		c.Before.String(), c.After.String(), c.Defect,
	}
	for i, field := range record {
		if field != "" && (strings.ContainsRune("=+-@", rune(field[0])) || field[0] < ' ') {
			record[i] = "'" + field
		}
	}
	return record
}

// cover replaces in a change what whoever asks may not see.
func (q *request) cover(c *audit.Change) {
	if q.access.Values && q.cfg.Mask == nil {
		return
	}
	masked := q.keyMasked(c)
	c.Before, c.After = q.coverImage(c, c.Before), q.coverImage(c, c.After)
	if masked {
		c.PrimaryKey, c.PreviousKey, c.HasKey, c.KeyChanged = "", "", false, false
	}
	// Statements, parameters and what else there is may hold values.
	x := c.Context
	c.Context = audit.Context{UserID: x.UserID, Tenant: x.Tenant, RequestID: x.RequestID, TraceID: x.TraceID, SpanID: x.SpanID, Endpoint: x.Endpoint, Worker: x.Worker}
	c.RawContext = nil
	if c.Stamped {
		c.RawContext, _ = json.Marshal(c.Context) // ids and names: nothing that fails
	}
}

// coverImage is the image with the values that may not be seen replaced by why.
func (q *request) coverImage(c *audit.Change, image audit.Image) audit.Image {
	if image.IsEmpty() {
		return image
	}
	covered := make(map[string]json.RawMessage)
	for _, column := range image.Columns() {
		raw, _ := image.Get(column)
		if kind := q.hiding(c.TableName(), column); kind != "" {
			raw = json.RawMessage(`"` + kind + `"`)
		}
		covered[column] = raw
	}
	text, err := json.Marshal(covered)
	if err != nil {
		return audit.Image("{}")
	}
	return text
}
