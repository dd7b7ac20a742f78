package audit_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/hindsight-go/audit"
)

// workOfOthers is what others did to a row that a request has made or changed.
type workOfOthers struct {
	touched []string // columns, whatever they hold now
	remade  bool     // removed, and made anew
	gone    bool
}

// laterWorkOn follows the rows that a request has made or changed, by the names that they have in
// the end: "table[key]".
func laterWorkOn(t *testing.T, client *audit.Client, request string) map[string]*workOfOthers {
	t.Helper()
	rows := make(map[string]*workOfOthers)
	for c, err := range client.Changes().OldestFirst().All(t.Context()) {
		if err != nil {
			t.Fatal(err)
		}
		name := fmt.Sprintf("%s[%s]", c.Table, strings.Join(c.KeyParts(), ","))
		from := name
		if c.KeyChanged {
			from = fmt.Sprintf("%s[%s]", c.Table, strings.Join(c.PreviousKeyParts(), ","))
		}
		row, own := rows[from], c.Context.RequestID == request
		switch {
		case own && c.Operation == audit.Create:
			rows[name] = &workOfOthers{}
		case row == nil && own && c.Operation == audit.Update:
			rows[name] = &workOfOthers{}
		case row == nil:
		case c.Operation == audit.Delete:
			row.gone = true
		case c.Operation == audit.Create:
			row.remade, row.gone = row.gone, false
		case !own:
			for _, column := range c.Diff() {
				row.touched = append(row.touched, column.Column)
			}
		}
		if c.KeyChanged && row != nil {
			delete(rows, from)
			rows[name] = row
		}
	}
	for _, row := range rows {
		slices.Sort(row.touched)
		row.touched = slices.Compact(row.touched)
	}
	return rows
}
