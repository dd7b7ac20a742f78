package auditui

import (
	"context"
	"encoding/json"
	"strings"

	"github.com/hindsight-go/audit"
)

// moment reads a moment of an address: "now" or nothing, "mark:" and a name, a position,
// or a time.
func (q *request) moment(text string) (audit.Point, error) {
	text = strings.TrimSpace(text)
	if text == "" || text == "now" {
		return q.client.Now(), nil
	}
	if name, ok := strings.CutPrefix(text, "mark:"); ok {
		return q.client.AtMark(name), nil
	}
	if position, err := parsePosition(text); err == nil {
		return q.client.AtPosition(position), nil
	}
	t, err := parseTime(text)
	if err != nil {
		return audit.Point{}, &requestError{"A moment is a time such as 2024-01-31 12:30:00 in UTC, a position such as 16/B374D848, mark: and the name of a mark, or now."}
	}
	return q.client.AsOf(t), nil
}

// table finds the table that an address names among those that whoever asks may see, and
// returns its whole name. A right to see a table is one by that name.
func (q *request) table(name string) (string, error) {
	if q.status == nil {
		return "", q.statusUnknown()
	}
	found := ""
	for _, t := range q.status.Tables {
		whole := tableName(t.Schema, t.Table)
		if whole != name && t.Table != name && tableName("", t.Table) != name {
			continue
		}
		if whole == name {
			found = whole
			break
		}
		if found != "" && found != whole {
			return "", &requestError{"There are several tables of this name: say in which schema."}
		}
		found = whole
	}
	if found == "" || !q.mayTable(found) {
		return "", errNoPage
	}
	q.tables = []string{found}
	return found, nil
}

// keep are the parts of the path that stand in the query, for the forms of a page.
func (q *request) keep() map[string]string {
	kept := make(map[string]string)
	for _, name := range []string{"~1", "~2"} {
		if q.query.Has(name) {
			kept[name] = q.query.Get(name)
		}
	}
	return kept
}

// statusUnknown is why it is not known how history stands.
func (q *request) statusUnknown() error {
	if q.statusErr != nil {
		return q.statusErr
	}
	return errStatusUnknown
}

// mayRow reports whether a row may be seen.
func (q *request) mayRow(ctx context.Context, table, key string) bool {
	return q.access.RowAllowed == nil || q.access.RowAllowed(ctx, table, key)
}

// keyParts takes the text of a key of several columns apart. The text of a key of one
// column may look the same, so both may have to be tried: the longer one first.
func keyParts(key string) (several []any, one []any) {
	one = []any{key}
	var texts []string
	if strings.HasPrefix(key, "[") && json.Unmarshal([]byte(key), &texts) == nil && len(texts) > 1 {
		for _, text := range texts {
			several = append(several, text)
		}
	}
	return several, one
}
