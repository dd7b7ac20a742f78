package main

import (
	"encoding/json"
	"maps"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/jackc/pgx/v5/pgtype"

	"github.com/hindsight-go/audit"
)

// masked stands for a value that is not to be shown.
const masked = "***"

// lineValue is how much of a value a line shows.
const lineValue = 60

// imageValue is a value of an image for the eye: a text as it is where nothing can
// be misread, NULL, or ? for one that is not known.
func (a *app) imageValue(raw json.RawMessage, limit int) string {
	switch {
	case raw == nil:
		return "?"
	case string(raw) == "null":
		return "NULL"
	case a.flags.noValues:
		return masked
	}
	var text string
	if raw[0] == '"' && json.Unmarshal(raw, &text) == nil {
		return shortText(text, limit)
	}
	return shortRaw(string(raw), limit)
}

// shortText quotes a text where it would be misread, and cuts it.
func shortText(text string, limit int) string {
	ambiguous := text == "" || text == "NULL" || text == "?" || text == masked || strings.TrimSpace(text) != text ||
		strings.ContainsAny(text, ",→\"") || printable(text) != text
	cut := shortRaw(text, limit)
	if ambiguous {
		rest := ""
		if cut != text {
			rest = "…"
		}
		return strconv.Quote(strings.TrimSuffix(cut, "…")) + rest
	}
	return cut
}

// shortRaw cuts a text behind a number of bytes, between two runes.
func shortRaw(text string, limit int) string {
	if limit <= 0 || len(text) <= limit {
		return text
	}
	for limit > 0 && !utf8.RuneStart(text[limit]) {
		limit--
	}
	return text[:limit] + "…"
}

// diffText is what changed, in a line.
func (a *app) diffText(operation audit.Operation, diff []audit.ColumnChange) string {
	parts := make([]string, len(diff))
	for i, d := range diff {
		name := printable(d.Column) + ": "
		switch operation {
		case audit.Create:
			parts[i] = name + a.imageValue(d.New, lineValue)
		case audit.Delete:
			parts[i] = name + a.imageValue(d.Old, lineValue)
		default:
			parts[i] = name + a.imageValue(d.Old, lineValue) + " → " + a.imageValue(d.New, lineValue)
		}
	}
	return strings.Join(parts, ", ")
}

// tableName is a name as the argument of a command line, without the schema where that
// is public.
func tableName(name string) string {
	return word(strings.TrimPrefix(name, "public."))
}

// keyText is a key as the arguments of a command line.
func keyText(parts []string) string {
	words := make([]string, len(parts))
	for i, part := range parts {
		words[i] = word(part)
	}
	return strings.Join(words, " ")
}

// who is the user of a change.
func who(c audit.Change) string {
	if user := c.Context.User(); user != "" {
		return printable(user)
	}
	return "-"
}

// where is the place in the program.
func where(c audit.Change) string {
	switch {
	case !c.Stamped:
		return "(no context)"
	case c.Context.Endpoint != "":
		return printable(c.Context.Endpoint)
	case c.Context.Worker != "":
		return "worker " + printable(c.Context.Worker)
	}
	return "-"
}

// shown is a change as it may be given out: with --no-values, without values.
func (a *app) shown(c audit.Change) audit.Change {
	if !a.flags.noValues {
		return c
	}
	c.Before, c.After = maskImage(c.Before), maskImage(c.After)
	c.Context.Params, c.Context.SQL, c.Context.Extra = nil, "", nil
	var members map[string]json.RawMessage
	if c.RawContext != nil {
		c.RawContext = json.RawMessage("{}")
		if text, err := json.Marshal(c.Context); err == nil && json.Unmarshal(text, &members) == nil {
			c.RawContext = text
		}
	}
	return c
}

// maskImage keeps the names of the columns.
func maskImage(image audit.Image) audit.Image {
	if image.IsEmpty() {
		return image
	}
	values := make(map[string]string)
	for _, name := range image.Columns() {
		values[name] = masked
	}
	text, err := json.Marshal(values)
	if err != nil {
		return nil
	}
	return text
}

// jsonNumber is what JSON takes for a number.
var jsonNumber = regexp.MustCompile(`^-?(0|[1-9]\d*)(\.\d+)?([eE][+-]?\d+)?$`)

// sqlJSON is a value in PostgreSQL's text form as JSON: numbers and booleans as such,
// documents as they stand, all else as text.
func sqlJSON(oid uint32, text []byte) json.RawMessage {
	if text == nil {
		return json.RawMessage("null")
	}
	switch oid {
	case pgtype.BoolOID:
		return json.RawMessage(map[string]string{"t": "true", "f": "false"}[string(text)])
	case pgtype.Int2OID, pgtype.Int4OID, pgtype.Int8OID, pgtype.NumericOID, pgtype.Float4OID, pgtype.Float8OID, pgtype.OIDOID:
		if jsonNumber.Match(text) {
			return json.RawMessage(text)
		}
	case pgtype.JSONOID, pgtype.JSONBOID:
		if json.Valid(text) {
			return json.RawMessage(text)
		}
	}
	quoted, err := marshal(strings.ToValidUTF8(string(text), "\uFFFD"), "")
	if err != nil {
		return json.RawMessage("null")
	}
	return quoted
}

// ordered is an object of JSON whose members keep their order, and may have one name.
type ordered struct {
	names  []string
	values []json.RawMessage
}

// MarshalJSON writes the members.
func (o ordered) MarshalJSON() ([]byte, error) {
	var b strings.Builder
	b.WriteByte('{')
	for i, name := range o.names {
		if i > 0 {
			b.WriteByte(',')
		}
		text, err := marshal(name, "")
		if err != nil {
			return nil, err
		}
		b.Write(text)
		b.WriteByte(':')
		b.Write(o.values[i])
	}
	b.WriteByte('}')
	return []byte(b.String()), nil
}

// sqlValue is a value as PostgreSQL prints it, nil for NULL.
func (a *app) sqlValue(value *string) string {
	switch {
	case value == nil:
		return "NULL"
	case a.flags.noValues:
		return masked
	}
	return shortText(*value, lineValue)
}

// maskDocument masks the values in a plan or in conflicts that were read from JSON.
func maskDocument(value any, keyless map[string]bool) any {
	switch v := value.(type) {
	case []any:
		for i := range v {
			v[i] = maskDocument(v[i], keyless)
		}
	case map[string]any:
		if table, ok := v["table"].(string); ok && keyless[table] && v["key"] != nil {
			v["key"] = []string{masked}
		}
		for _, name := range slices.Collect(maps.Keys(v)) {
			switch inner := v[name].(type) {
			case string:
				if name == "live" || name == "restore" {
					v[name] = masked
				}
			case map[string]any:
				switch name {
				case "before", "after":
					for column := range inner {
						inner[column] = masked
					}
				case "context":
					delete(inner, "params")
					delete(inner, "SQL")
				default:
					v[name] = maskDocument(inner, keyless)
				}
			default:
				v[name] = maskDocument(inner, keyless)
			}
		}
	}
	return value
}
