package audit_test

import (
	"errors"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/hindsight-go/audit"
	"github.com/hindsight-go/audit/audittest"
	"github.com/hindsight-go/audit/internal/faulttest"
)

// What is missing is said without being made, and the SQL is enough for Start.
func TestCheck_SaysWhatStartWouldAndChangesNothing(t *testing.T) {
	t.Parallel()
	db := audittest.NewDatabase(t)
	db.Exec(t, setupTables)
	client := openClient(t, audit.Config{SourceURL: asRole(t, db, newRole(t, db, ""))})
	before := faulttest.Catalog(t, db.URL())
	var missing, missed *audit.SetupError
	if err := client.Check(t.Context()); !errors.As(err, &missing) {
		t.Fatalf("Check: %v, want a *SetupError", err)
	}
	if diff := cmp.Diff(before, faulttest.Catalog(t, db.URL())); diff != "" {
		t.Errorf("Check has changed the catalog (-before +after):\n%s", diff)
	}
	if err := client.Start(t.Context()); !errors.As(err, &missed) || missed.Error() != missing.Error() {
		t.Errorf("Check said\n%v\nand Start\n%v", missing, missed)
	}
	db.Exec(t, missing.SQL())
	if err := client.Check(t.Context()); err != nil {
		t.Errorf("Check after its SQL: %v", err)
	}
}

func TestCheck_BesideCapture(t *testing.T) {
	t.Parallel()
	a := audittest.New(t, audit.Config{}, todoTable)
	client := openClient(t, audit.Config{SourceURL: a.URL(), Tables: []string{"*.*"}})
	if err := client.Check(t.Context()); err != nil {
		t.Error(err)
	}
	client.Close()
	if err := client.Check(t.Context()); !errors.Is(err, audit.ErrClosed) {
		t.Errorf("Check after Close: %v, want ErrClosed", err)
	}
}

func TestPastTable_One(t *testing.T) {
	t.Parallel()
	a := audittest.New(t, audit.Config{}, `CREATE TABLE point (x int, y int, raw bytea, at timestamptz, PRIMARY KEY (x, y))`,
		`INSERT INTO point VALUES (1, 2, '\x00ff', NULL)`)
	before := here(t, a)
	a.Exec(t, "UPDATE point SET at = '2024-01-02 03:04:05+00', raw = NULL")
	row, err := before.Table("point").One(t.Context(), 1, 2)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for i, field := range row.FieldDescriptions() {
		value := "NULL"
		if text := row.RawValues()[i]; text != nil {
			value = string(text)
		}
		got = append(got, field.Name+" "+value)
	}
	if diff := cmp.Diff([]string{"x 1", "y 2", `raw \x00ff`, "at NULL"}, got); diff != "" || row.PrimaryKey() != `["1","2"]` {
		t.Errorf("row %s (-want +got):\n%s", row.PrimaryKey(), diff)
	}
	if _, err := before.Table("point").One(t.Context(), 1, 3); !errors.Is(err, audit.ErrNoRow) {
		t.Errorf("a row that is not there: %v, want ErrNoRow", err)
	}
}
