package audit_test

import (
	"encoding/json"
	"slices"
	"strings"
	"testing"

	"github.com/hindsight-go/audit"
)

// footprint is what a transaction has touched, as far as others can build on it or
// stand in its way.
type footprint struct {
	// cells are the columns that it changed, rows their rows. Of those in moved it
	// made, removed or renamed the row itself.
	cells, rows, moved map[string]bool
	// refs are the rows that its rows came to reference, or did until then.
	refs map[string]bool
	// values are the unique values that it gave to rows or took from them.
	values map[string]bool
}

func newFootprint() *footprint {
	return &footprint{
		cells: make(map[string]bool), rows: make(map[string]bool), moved: make(map[string]bool),
		refs: make(map[string]bool), values: make(map[string]bool),
	}
}

// meets reports whether of two transactions the later one may build on the other.
func (f *footprint) meets(o *footprint) bool {
	share := func(a, b map[string]bool) bool {
		for name := range a {
			if b[name] {
				return true
			}
		}
		return false
	}
	return share(f.cells, o.cells) || share(f.moved, o.rows) || share(f.rows, o.moved) ||
		share(f.refs, o.moved) || share(f.moved, o.refs) || share(f.values, o.values)
}

func (w *realm) table(t *testing.T, name string) *realmTable {
	t.Helper()
	i := slices.IndexFunc(w.tables, func(table *realmTable) bool { return "public."+table.name == name })
	if i < 0 {
		t.Fatalf("there is no table %s", name)
	}
	return w.tables[i]
}

func (w *realm) footprint(t *testing.T, tx audit.Transaction) *footprint {
	t.Helper()
	f := newFootprint()
	for change, err := range w.Client.Changes().InTransaction(tx.ID).OldestFirst().All(t.Context()) {
		if err != nil {
			t.Fatal(err)
		}
		f.add(w.table(t, change.TableName()), change)
	}
	return f
}

func (f *footprint) add(t *realmTable, c audit.Change) {
	row := rowName(t, c.KeyParts())
	f.rows[row] = true
	if c.Operation != audit.Update {
		f.moved[row] = true
	}
	if c.KeyChanged {
		old := rowName(t, c.PreviousKeyParts())
		f.rows[old], f.moved[old], f.moved[row] = true, true, true
	}
	for _, d := range c.Diff() {
		f.cells[row+" "+d.Column] = true
	}
	for _, image := range []audit.Image{c.Before, c.After} {
		values := imageValues(image)
		for _, l := range t.links {
			if ref := l.target(values); ref != "" && (c.Operation != audit.Update || c.Changed(l.columns()...)) {
				f.refs[ref] = true
			}
		}
		if u, ok := values["u"]; ok && u != "" && (c.Operation != audit.Update || c.Changed("u")) {
			f.values[t.name+" "+u] = true
		}
	}
}

func rowName(t *realmTable, key []string) string { return t.name + "[" + strings.Join(key, ",") + "]" }

// target names the row that a row with these values references, or is empty.
func (l *realmLink) target(values map[string]string) string {
	key := make([]string, 0, 2)
	for _, column := range l.columns() {
		if values[column] == "" {
			return ""
		}
		key = append(key, values[column])
	}
	return rowName(l.parent, key)
}

// imageValues are the columns of an image as text; NULL is the empty text, which no
// realm writes.
func imageValues(image audit.Image) map[string]string {
	var raw map[string]json.RawMessage
	_ = json.Unmarshal(image, &raw) // of an image, always an object
	values := make(map[string]string, len(raw))
	for name, value := range raw {
		if string(value) != "null" {
			values[name] = strings.Trim(string(value), `"`)
		}
	}
	return values
}
