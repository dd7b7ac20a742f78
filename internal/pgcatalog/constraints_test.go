package pgcatalog_test

import (
	"encoding/json"
	"flag"
	"os"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5"

	"github.com/hindsight-go/audit/audittest"
	"github.com/hindsight-go/audit/capture"
	"github.com/hindsight-go/audit/internal/pgcatalog"
)

var update = flag.Bool("update", false, "write the golden files anew")

// What the catalog says of tables, as SQL made them, is in a golden file: SQL in, constraints
// out.
func TestReadConstraints_Golden(t *testing.T) {
	t.Parallel()
	db := audittest.NewDatabase(t)
	sql, err := os.ReadFile("testdata/constraints.sql")
	if err != nil {
		t.Fatal(err)
	}
	db.Exec(t, string(sql))
	conn := db.Connect(t)
	rows, err := conn.Query(t.Context(), `
		SELECT c.oid, c.oid::regclass::text
		FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
		WHERE c.relkind IN ('r', 'p') AND NOT c.relispartition AND n.nspname IN ('public', 'elsewhere')`)
	if err != nil {
		t.Fatal(err)
	}
	names := make(map[uint32]string)
	var oid uint32
	var name string
	if _, err := pgx.ForEachRow(rows, []any{&oid, &name}, func() error {
		names[oid] = name
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	var oids []uint32
	for oid := range names {
		oids = append(oids, oid)
	}
	found, err := pgcatalog.ReadConstraints(t.Context(), conn, oids)
	if err != nil {
		t.Fatal(err)
	}
	got := make(map[string]*pgcatalog.Constraints)
	for oid, c := range found {
		for _, f := range slices.Concat(c.Parents, c.Children) {
			f.ChildOID, f.ParentOID = 0, 0 // of this run
		}
		got[names[oid]] = c
	}
	text, err := json.MarshalIndent(got, "", "\t")
	if err != nil {
		t.Fatal(err)
	}
	const golden = "testdata/constraints.json"
	if *update {
		if err := os.WriteFile(golden, append(text, '\n'), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), string(text)+"\n"); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
}

// A table is described as it is, in the order of its columns, and one that is gone by an error.
func TestDescribe(t *testing.T) {
	t.Parallel()
	db := audittest.NewDatabase(t)
	db.Exec(t, `CREATE TYPE mood AS ENUM ('sad', 'ok');
		CREATE TABLE "T" (gone int, b numeric(8, 2)[], a int GENERATED ALWAYS AS IDENTITY, m mood NOT NULL, g int GENERATED ALWAYS AS (a + 1) STORED, PRIMARY KEY (m, a));
		ALTER TABLE "T" DROP gone`)
	conn := db.Connect(t)
	kinds := capture.NewKinds(conn)
	oid := audittest.Value[uint32](t, db, `SELECT '"T"'::regclass::oid`)
	table, err := pgcatalog.Describe(t.Context(), conn, kinds, oid)
	if err != nil {
		t.Fatal(err)
	}
	if got := table.Columns.Names(); !slices.Equal(got, []string{"b", "a", "m", "g"}) || !slices.Equal(table.Key, []string{"m", "a"}) || !slices.Equal(table.KeyNumbers(), []int16{4, 3}) {
		t.Errorf("columns %q, key %q, %d", got, table.Key, table.KeyNumbers())
	}
	g := table.Columns.List[table.Columns.Index["g"]]
	if !g.Generated || g.Expression == "" || table.Ident() != `"public"."T"` || table.Columns.List[0].TypeName != "numeric(8,2)[]" || !slices.Equal(table.Columns.List[2].Labels, []string{"sad", "ok"}) {
		t.Errorf("%+v of %s", table.Columns.List, table.Ident())
	}
	db.Exec(t, `DROP TABLE "T"`)
	if _, err := pgcatalog.Describe(t.Context(), conn, kinds, oid); err != pgcatalog.ErrNoTable { //nolint:errorlint // It is returned as it is.
		t.Errorf("error %v, want ErrNoTable", err)
	}
}
