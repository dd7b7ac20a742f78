package auditui

import (
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/hindsight-go/audit"
)

// How much of a value is on a page: in a line of a list, and where it is the subject.
const (
	shortValue = 160
	longValue  = 4_000
)

// value is a value as a page shows it. Every value that leaves goes through one of the
// functions that make it.
type value struct {
	// Kind is "text", "null", "empty", "none" where there is no row, "unknown" where
	// history does not know it, "withheld" where history does not store it, and "hidden"
	// or "masked" where whoever asks may not see it.
	Kind string
	Text string
	// Size is how many bytes there are, if Text is only the beginning of them.
	Size int
	// Link leads to all of it.
	Link string
}

// columnView is a column with one value, or with an old and a new one.
type columnView struct {
	Name     string
	Old, New value
}

// hiding says why a value must not be shown, or "".
func (q *request) hiding(table, column string) string {
	switch {
	case !q.access.Values:
		return "hidden"
	case q.cfg.Mask != nil && q.cfg.Mask(table, column):
		return "masked"
	}
	return ""
}

// value makes what a page shows of a value in an image, nil if the image has none.
func (q *request) value(table, column string, raw json.RawMessage, policy audit.ColumnPolicy, longest int) value {
	switch kind := q.hiding(table, column); {
	case raw == nil:
		return value{Kind: "none"}
	case kind != "":
		return value{Kind: kind}
	case policy != "" && policy != audit.KeepColumn:
		return value{Kind: "withheld", Text: plainText(raw)}
	case string(raw) == "null":
		return value{Kind: "null"}
	}
	return textValue(plainText(raw), longest)
}

func textValue(text string, longest int) value {
	switch {
	case text == "":
		return value{Kind: "empty"}
	case len(text) <= longest:
		return value{Kind: "text", Text: visible(text)}
	}
	cut := longest
	for cut > 0 && !utf8.RuneStart(text[cut]) {
		cut--
	}
	return value{Kind: "text", Text: visible(text[:cut]), Size: len(text)}
}

// plainText is the content of a string, and the JSON of anything else.
func plainText(raw json.RawMessage) string {
	var text string
	if len(raw) > 0 && raw[0] == '"' && json.Unmarshal(raw, &text) == nil {
		return text
	}
	return string(raw)
}

// visible replaces what would make a text look like another: control characters, and
// those that turn the direction of what follows.
func visible(text string) string {
	if !strings.ContainsFunc(text, deceptive) {
		return text
	}
	var b strings.Builder
	for _, r := range text {
		if deceptive(r) {
			fmt.Fprintf(&b, "⟨U+%04X⟩", r)
		} else {
			b.WriteRune(r)
		}
	}
	return b.String()
}

func deceptive(r rune) bool {
	return r < ' ' && r != '\n' && r != '\t' || r >= 0x7f && r < 0xa0 || r >= 0x202a && r <= 0x202e || r >= 0x2066 && r <= 0x2069
}

// diff are the columns that a change changed, and how many more there are than fit.
func (q *request) diff(c *audit.Change, most, longest int) (columns []columnView, more int) {
	all := c.Diff()
	if len(all) > most {
		more = len(all) - most
		all = all[:most]
	}
	table := c.TableName()
	for _, d := range all {
		columns = append(columns, columnView{
			Name: d.Column,
			Old:  q.value(table, d.Column, d.Old, c.Withheld[d.Column], longest),
			New:  q.value(table, d.Column, d.New, c.Withheld[d.Column], longest),
		})
	}
	return columns, more
}

// changeView is a change as a line of a list.
type changeView struct {
	Link, Position string
	At             time.Time
	Operation      string
	Table, Key     string
	// KeyHidden reports whether the key holds a value that is masked.
	KeyHidden bool
	RowLink   string
	// Database is that of the change, if it is another than the client's.
	Database                     string
	User                         string
	Endpoint, Worker             string
	Request, RequestLink         string
	Transaction, TransactionLink string
	Stamped                      bool
	Columns                      []columnView
	More                         int
	Defect                       string
	Revert, RevertLink           string
	Claimed                      bool
}

// changes makes the lines of a list. What whoever asks may not see is left out: the query
// has left it out already, and this is the lock behind the lock.
func (q *request) changeViews(changes []audit.Change, most, longest int) []changeView {
	views := make([]changeView, 0, len(changes))
	for i := range changes {
		if q.mayTable(changes[i].TableName()) {
			views = append(views, q.changeView(&changes[i], most, longest))
		}
	}
	return views
}

func (q *request) changeView(c *audit.Change, most, longest int) changeView {
	v := changeView{
		Position: c.Position.String(), At: c.CommittedAt, Operation: string(c.Operation), Table: c.TableName(),
		Key: c.PrimaryKey, Endpoint: c.Context.Endpoint, Worker: c.Context.Worker, User: c.Context.User(),
		Request: c.Context.RequestID, Transaction: strconv.FormatUint(c.TransactionID, 10), Stamped: c.Stamped, Defect: c.Defect, Claimed: c.RevertClaimed,
	}
	where := q.elsewhere(c.Database)
	if where != nil {
		v.Database = c.Database
	}
	v.Link = q.link("changes", []string{positionSegment(c.Position)}, where)
	v.TransactionLink = q.link("transactions", []string{v.Transaction}, q.elsewhere(c.Database))
	if v.Request != "" {
		v.RequestLink = q.link("requests", []string{v.Request}, nil)
	}
	if v.KeyHidden = c.HasKey && q.keyMasked(c); v.KeyHidden {
		v.Key = ""
	}
	if c.HasKey && !v.KeyHidden && where == nil && q.rowPages() {
		v.RowLink = q.link("rows", []string{v.Table, c.PrimaryKey}, nil)
	}
	if r, ok := c.Revert(); ok {
		v.Revert, v.RevertLink = r.ID, q.link("reverts", []string{r.ID}, nil)
	}
	v.Columns, v.More = q.diff(c, most, longest)
	q.users[v.User] = true
	return v
}

// elsewhere is what an address needs for a change of another database than the client's.
func (q *request) elsewhere(database string) map[string][]string {
	if q.status == nil || q.status.Database == "" || q.status.Database == database {
		return nil
	}
	return map[string][]string{"database": {database}}
}

// keyMasked reports whether the key of a change shows a value that is masked. An image
// does not say which columns are the key's, so values tell.
func (q *request) keyMasked(c *audit.Change) bool {
	if q.cfg.Mask == nil {
		return false
	}
	parts := append(c.KeyParts(), c.PreviousKeyParts()...)
	parts = append(parts, c.PrimaryKey, c.PreviousKey)
	for _, image := range []audit.Image{c.Before, c.After} {
		for _, column := range image.Columns() {
			if !q.cfg.Mask(c.TableName(), column) {
				continue
			}
			text, ok := image.Text(column)
			for _, part := range parts {
				if ok && part == text {
					return true
				}
			}
		}
	}
	return false
}

// positionSegment is a position as a segment of a path, which holds no slash, and which
// does not look like a date.
func positionSegment(p audit.Position) string {
	return strings.NewReplacer("/", ".", "#", ".").Replace(p.String())
}

// parsePosition reads a position, in the form of positionSegment or of its String.
func parsePosition(text string) (audit.Position, error) {
	if parts := strings.Split(text, "."); len(parts) == 2 || len(parts) == 3 {
		text = parts[0] + "/" + parts[1]
		if len(parts) == 3 {
			text += "#" + parts[2]
		}
	}
	return audit.ParsePosition(text)
}

func utcText(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	return t.UTC().Format("2006-01-02 15:04:05.000 UTC")
}

func isoText(t time.Time) string { return t.UTC().Format(time.RFC3339Nano) }

// groupedNumber is a number with a comma between thousands.
func groupedNumber(n any) string {
	text := fmt.Sprint(n)
	for i := len(text) - 3; i > 0; i -= 3 {
		text = text[:i] + "," + text[i:]
	}
	return text
}

// byteText is a number of bytes for people.
func byteText(n any) string {
	var size float64
	switch n := n.(type) {
	case int:
		size = float64(n)
	case int64:
		size = float64(n)
	}
	for _, unit := range []string{"bytes", "kB", "MB", "GB"} {
		if size < 1024 {
			return strconv.FormatFloat(size, 'f', min(1, len(unit)&2/2), 64) + " " + unit
		}
		size /= 1024
	}
	return strconv.FormatFloat(size, 'f', 1, 64) + " TB"
}

// sqlValue makes what a page shows of a value as PostgreSQL prints it, nil for NULL.
func (q *request) sqlValue(table, column string, text *string, longest int) value {
	switch kind := q.hiding(table, column); {
	case kind != "":
		return value{Kind: kind}
	case text == nil:
		return value{Kind: "null"}
	}
	return textValue(*text, longest)
}
