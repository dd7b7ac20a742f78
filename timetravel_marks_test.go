package audit_test

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/hindsight-go/audit"
	"github.com/hindsight-go/audit/audittest"
)

// Marks are listed with the position that AtMark resolves to, and rows of the past know
// their key in the form that history has it.
func TestMarks_AndKeysOfPastRows(t *testing.T) {
	t.Parallel()
	a := audittest.New(t, audit.Config{}, `
		CREATE TABLE one (id int PRIMARY KEY, v text);
		CREATE TABLE two (b text, a int, v text, PRIMARY KEY (a, b));
		CREATE TABLE none (v text)`)
	if marks, err := a.Client.Marks(t.Context()); err != nil || len(marks) != 0 {
		t.Fatalf("marks of a history without any: %v, %v", marks, err)
	}
	for _, name := range []string{"first", "second"} {
		a.Exec(t, "INSERT INTO one VALUES ("+map[string]string{"first": "1", "second": "2"}[name]+")")
		if _, err := a.Client.Mark(t.Context(), name); err != nil {
			t.Fatal(err)
		}
	}
	a.Exec(t, `INSERT INTO two VALUES ('x,"y', 7, 'v')`)
	a.Exec(t, `INSERT INTO none VALUES ('v')`)
	a.Sync(t)

	marks, err := a.Client.Marks(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, m := range marks {
		names = append(names, m.Name)
		at, err := a.Client.AtMark(m.Name).Resolve(t.Context())
		if err != nil || at.Position != m.Position || m.MarkedAt.IsZero() {
			t.Errorf("mark %s is at %v since %v, and AtMark resolves to %v, %v", m.Name, m.Position, m.MarkedAt, at.Position, err)
		}
	}
	if diff := cmp.Diff([]string{"second", "first"}, names); diff != "" {
		t.Errorf("marks (-want +got):\n%s", diff)
	}

	change, err := a.Client.Changes().ForTable("two").First(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	now := a.Client.Now()
	for name, c := range map[string]struct {
		table audit.PastTable
		want  string
	}{
		"one column":                   {now.Table("one").Where("id = 2"), "2"},
		"several columns":              {now.Table("two"), change.PrimaryKey},
		"no key":                       {now.Table("none"), ""},
		"all columns of the key":       {now.Columns("a", "b").Table("two"), change.PrimaryKey},
		"a part of the key's columns":  {now.Columns("b", "v").Table("two"), ""},
		"rows that the server filters": {now.Table("two").OrderBy("v").Limit(1), change.PrimaryKey},
	} {
		for row, err := range c.table.All(t.Context()) {
			if err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			if got := row.PrimaryKey(); got != c.want {
				t.Errorf("%s: the key is %q, want %q", name, got, c.want)
			}
		}
	}
}
