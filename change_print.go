package audit

import (
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/hindsight-go/audit/internal/rowimage"
)

// lineValue is how many bytes of a value a one-line form shows.
const lineValue = 40

// String returns the change in one line:
//
//	16/B374D848#3 2024-01-02T03:04:05.123456Z UPDATE public.todo[26] completed: false -> true by 187234 in request 5f1c
//
// It shows row values, each cut to some 40 bytes: mind where it is printed. Control
// characters and what else cannot be seen is quoted, here and in the form of %+v. The
// form is for people and may change between versions; see [Change.MarshalJSON]
// for one that does not.
func (c Change) String() string {
	var b strings.Builder
	c.writeHead(&b)
	for i, d := range c.Diff() {
		if i > 0 {
			b.WriteByte(',')
		}
		b.WriteByte(' ')
		c.writeColumn(&b, d, lineValue)
	}
	c.writeSource(&b)
	return b.String()
}

// Format makes %v and %s print the line of [Change.String], %+v a form of
// several lines with whole values, and %#v Go syntax.
func (c Change) Format(f fmt.State, verb rune) {
	switch {
	case verb == 'v' && f.Flag('#'):
		type plain Change
		_, _ = fmt.Fprintf(f, "%#v", plain(c))
	case verb == 'v' && f.Flag('+'):
		_, _ = io.WriteString(f, c.block())
	case verb == 'v', verb == 's':
		_, _ = io.WriteString(f, c.String())
	case verb == 'q':
		_, _ = fmt.Fprintf(f, "%q", c.String())
	default:
		_, _ = fmt.Fprintf(f, "%%!%c(audit.Change=%s)", verb, c.String())
	}
}

// block is the form of several lines.
func (c Change) block() string {
	var b strings.Builder
	c.writeHead(&b)
	c.writeSource(&b)
	for _, d := range c.Diff() {
		b.WriteString("\n    ")
		c.writeColumn(&b, d, 0)
	}
	if c.KeyChanged {
		b.WriteString("\n    (key was " + printable(c.PreviousKey) + ")")
	}
	fmt.Fprintf(&b, "\n    transaction %d of database %s", c.TransactionID, printable(c.Database))
	if c.Environment != "" {
		b.WriteString(", environment " + printable(c.Environment))
	}
	if c.Stamped {
		b.WriteString("\n    context " + printableJSON(string(c.RawContext)))
	}
	if c.Defect != "" {
		b.WriteString("\n    defect: " + printable(c.Defect))
	}
	return b.String()
}

func (c Change) writeHead(b *strings.Builder) {
	fmt.Fprintf(b, "%s %s %s %s", c.Position, c.CommittedAt.UTC().Format(time.RFC3339Nano), c.Operation, printable(c.TableName()))
	if c.HasKey {
		fmt.Fprintf(b, "[%s]", printableKey(c.KeyParts()))
	}
}

func (c Change) writeSource(b *strings.Builder) {
	if !c.Stamped {
		b.WriteString(" (no context)")
		return
	}
	if user := c.Context.User(); user != "" {
		b.WriteString(" by " + printable(user))
	}
	switch {
	case c.Context.Endpoint != "":
		b.WriteString(" at " + printable(c.Context.Endpoint))
	case c.Context.Worker != "":
		b.WriteString(" at worker " + printable(c.Context.Worker))
	}
	if c.Context.RequestID != "" {
		b.WriteString(" in request " + printable(c.Context.RequestID))
	}
	if c.RevertClaimed {
		b.WriteString(" (claims to be of a revert)")
	}
}

func (c Change) writeColumn(b *strings.Builder, d ColumnChange, limit int) {
	b.WriteString(printable(d.Column) + ": ")
	switch c.Operation {
	case Create:
		b.WriteString(valueText(d.New, limit))
	case Delete:
		b.WriteString(valueText(d.Old, limit))
	default:
		b.WriteString(valueText(d.Old, limit) + " -> " + valueText(d.New, limit))
	}
}

// valueText is a value for the eye: JSON, NULL, or ? for unknown.
func valueText(raw json.RawMessage, limit int) string {
	switch {
	case raw == nil:
		return "?"
	case rowimage.IsNull(raw):
		return "NULL"
	case limit > 0 && len(raw) > limit:
		cut := limit
		for cut > 0 && !utf8.RuneStart(raw[cut]) {
			cut--
		}
		return printableJSON(string(raw[:cut])) + "…"
	}
	return printableJSON(string(raw))
}
