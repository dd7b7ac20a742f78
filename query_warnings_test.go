package audit_test

import (
	"errors"
	"fmt"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/hindsight-go/audit"
	"github.com/hindsight-go/audit/audittest"
)

// warningsOf are the warnings about a query, as texts, and those of its page.
func warningsOf(t *testing.T, q audit.Query) []string {
	t.Helper()
	warnings, err := q.Warnings(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	got := []string{}
	for _, w := range warnings {
		var unknown *audit.UnknownNameError
		var renamed *audit.RenamedTableError
		switch {
		case errors.As(w, &unknown):
			got = append(got, "unknown "+unknown.Kind+" "+unknown.Name)
		case errors.As(w, &renamed):
			got = append(got, fmt.Sprint(renamed.Table, " was ", renamed.Others))
		default:
			t.Errorf("%T: %v", w, w)
		}
	}
	slices.Sort(got)
	return got
}

func TestWarnings_NamesThatHistoryNeverKnew(t *testing.T) {
	t.Parallel()
	a := audittest.New(t, audit.Config{Tables: []string{"public.*"}}, gapTable+`; CREATE TABLE quiet (id int PRIMARY KEY)`)
	a.Exec(t, "INSERT INTO todo VALUES (1, 'x')")
	a.Sync(t)
	q := a.Client.Changes()
	for name, test := range map[string]struct {
		query audit.Query
		want  []string
	}{
		"known":                      {q.ForTable("todo").Changed("task"), nil},
		"a typing error":             {q.ForTable("todos"), []string{"unknown table todos"}},
		"one of two":                 {q.ForTable("todo", "billing.todo"), []string{"unknown table billing.todo"}},
		"never changed, but tracked": {q.ForTable("quiet"), nil},
		"upper case":                 {q.ForTable("Todo"), []string{"unknown table Todo"}},
		"a column":                   {q.ForTable("todo").ChangedTo("tasks", "x"), []string{"unknown column tasks"}},
		"of another table":           {q.ForTable("quiet").Changed("task"), []string{"unknown column task"}},
		"of any table":               {q.Changed("task", "due"), []string{"unknown column due"}},
		"of a row":                   {q.WhereAfter(map[string]any{"id": 1, "owner": 2}), []string{"unknown column owner"}},
		"a user":                     {q.ByUser(7), []string{"unknown user 7"}},
		"no names":                   {q.InRequest("r"), nil},
	} {
		if diff := cmp.Diff(append([]string{}, test.want...), warningsOf(t, test.query)); diff != "" {
			t.Errorf("%s: %s", name, diff)
		}
	}
	page, err := q.ForTable("todos").Page(t.Context(), 10)
	var unknown *audit.UnknownNameError
	if err != nil || len(page.Warnings) != 1 || !errors.As(page.Warnings[0], &unknown) {
		t.Errorf("Page: %v, %v", page.Warnings, err)
	}
	if _, err := q.ForTable("todos").First(t.Context()); !errors.As(err, &unknown) || !errors.Is(err, audit.ErrNotFound) {
		t.Errorf("First: %v", err)
	}
	if _, err := q.ForTable("quiet").First(t.Context()); errors.As(err, &unknown) || !errors.Is(err, audit.ErrNotFound) {
		t.Errorf("First of a table without changes: %v", err)
	}
}

func TestWarnings_RenamedTable(t *testing.T) {
	t.Parallel()
	a := audittest.New(t, audit.Config{Tables: []string{"public.*"}}, gapTable)
	a.Exec(t, "INSERT INTO todo VALUES (1, 'x')")
	a.Sync(t)
	a.Exec(t, `ALTER TABLE todo RENAME TO "Task.s"`)
	if err := a.Client.Refresh(t.Context()); err != nil {
		t.Fatal(err)
	}
	a.Exec(t, `UPDATE "Task.s" SET task = 'y'`)
	a.Sync(t)
	q := a.Client.Changes()
	for name, test := range map[string]struct {
		query audit.Query
		want  []string
	}{
		"the new name": {q.ForTable(`"Task.s"`), []string{`"Task.s" was [public.todo]`}},
		"the old name": {q.ForTable("public.todo"), []string{`public.todo was [public."Task.s"]`}},
		"both":         {q.ForTable("todo", `"Task.s"`), nil},
	} {
		if diff := cmp.Diff(append([]string{}, test.want...), warningsOf(t, test.query)); diff != "" {
			t.Errorf("%s: %s", name, diff)
		}
	}
	page, err := q.ForTable(`"Task.s"`).Page(t.Context(), 10)
	if err != nil || len(page.Changes) != 1 || len(page.Warnings) != 1 {
		t.Errorf("%d changes, %v, %v", len(page.Changes), page.Warnings, err)
	}
}

// A role that may read the changes and nothing else gets them, without types and warnings.
func TestWarnings_RoleThatReadsOnlyChanges(t *testing.T) {
	t.Parallel()
	a := audittest.New(t, audit.Config{Tables: []string{"public.*"}}, gapTable)
	a.Exec(t, "INSERT INTO todo VALUES (1, 'x')")
	a.Sync(t)
	role := "reader_" + a.Name()
	a.Exec(t, fmt.Sprintf("CREATE ROLE %[1]s LOGIN; GRANT USAGE ON SCHEMA audit TO %[1]s; GRANT SELECT ON audit.changes TO %[1]s", role))
	t.Cleanup(func() { a.Exec(t, fmt.Sprintf("DROP OWNED BY %[1]s; DROP ROLE %[1]s", role)) })
	client, err := audit.Open(t.Context(), audit.Config{SourceURL: asRole(t, a.Database, role)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(client.Close)
	page, err := client.Changes().ForTable("todo").Page(t.Context(), 10)
	if err != nil || len(page.Changes) != 1 || page.Warnings != nil || page.Changes[0].Types != nil {
		t.Errorf("%+v, %v", page, err)
	}
	if _, err := client.Changes().ForTable("todos").First(t.Context()); !errors.Is(err, audit.ErrNotFound) {
		t.Error(err)
	}
}
