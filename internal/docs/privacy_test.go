package docs

import (
	"context"
	"io"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/hindsight-go/audit"
	"github.com/hindsight-go/audit/audittest"
)

// whatThereIs writes what history has of a person.
func whatThereIs(ctx context.Context, w io.Writer, client *audit.Client, id int) error {
	for _, query := range []audit.Query{
		client.Changes().ForTable("customer").ForRow(id),
		client.Changes().ByUser(id),
	} {
		if _, err := query.Export(ctx, w, audit.JSONL); err != nil {
			return err
		}
	}
	return nil
}

// What docs/privacy.md says of erasing is played, and then nothing of the person is left
// in any table of the history, and the past is still told.
func TestAPersonIsErased(t *testing.T) {
	t.Parallel()
	a := newWorld(t, audittest.NewDatabase(t))
	if err := a.Client.Baseline(t.Context(), &audit.BaselineOptions{Tables: []string{"customer"}}); err != nil {
		t.Fatal(err)
	}
	marked, err := a.Client.Mark(t.Context(), "before the erasure")
	if err != nil {
		t.Fatal(err)
	}
	var before strings.Builder
	if err := whatThereIs(t.Context(), &before, a.Client, 7); err != nil || !strings.Contains(before.String(), "bob@example.com") {
		t.Fatalf("%v: %s", err, before.String())
	}
	personal := []string{"Bob", "bob@example.com", "555-0100", "555-0199", "187234"}
	if found := inHistory(t, a, personal); len(found) < len(personal)-1 {
		t.Fatalf("history has %v to begin with", found)
	}
	db := a.Connect(t)
	for _, b := range of(documents(t)["docs/privacy.md"], "sql") {
		if _, err := db.Exec(t.Context(), b.text, pgx.QueryExecModeSimpleProtocol); err != nil {
			t.Fatalf("%s: %v", b, err)
		}
		a.Sync(t)
	}
	if found := inHistory(t, a, personal); len(found) > 0 {
		t.Errorf("history still has %v", found)
	}
	row, err := a.Client.AtPosition(marked).Row(t.Context(), "customer", 7)
	if err != nil || row["name"] != "erased" || row["id"] == nil {
		t.Errorf("the past has %v, %v", row, err)
	}
}

// inHistory returns which of the texts stand in any table of the history.
func inHistory(t *testing.T, a *audittest.Audited, texts []string) []string {
	t.Helper()
	var found []string
	tables := audittest.Value[[]string](t, a.Database, "SELECT array_agg(tablename::text) FROM pg_tables WHERE schemaname = 'audit' AND tablename NOT LIKE 'changes\\_%'")
	for _, text := range texts {
		for _, table := range tables {
			n := audittest.Value[int](t, a.Database, "SELECT count(*)::int FROM audit."+pgx.Identifier{table}.Sanitize()+" r WHERE strpos(r::text, $1) > 0", text)
			if n > 0 {
				found = append(found, text)
				break
			}
		}
	}
	return found
}
