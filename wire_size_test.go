package audit_test

import (
	"fmt"
	"testing"

	"github.com/hindsight-go/audit"
	"github.com/hindsight-go/audit/audittest"
)

// A row of more than the read buffer, which holds a megabyte, and of more than a
// chunk on the way to the store.
func TestLargeRows(t *testing.T) {
	t.Parallel()
	a := audittest.New(t, audit.Config{}, "CREATE TABLE todo (id int PRIMARY KEY, body text, more bytea)")
	sizes := []int{1, 1<<20 - 40, 1 << 20, 3 << 20, 10 << 20}
	var want []string
	for i, size := range sizes {
		a.Exec(t, "INSERT INTO todo VALUES ($1::int, repeat('é\"\\', $2::int / 4), 'x')", i, size)
		want = append(want, fmt.Sprintf("CREATE %d %d", i, size/4*3), fmt.Sprintf("CREATE %d 1", -i-1))
		a.Exec(t, "INSERT INTO todo VALUES ($1, 'x', 'x')", -i-1)
	}
	a.Exec(t, "UPDATE todo SET more = decode(repeat('00ff', 1000000), 'hex') WHERE id = 4")
	a.Exec(t, "DELETE FROM todo WHERE id = 4")
	want = append(want, fmt.Sprintf("UPDATE 4 %d", 10<<20/4*3), "DELETE 4")
	tell(t, a, "operation, primary_key, length(after ->> 'body'), defect", want...)
	intact := audittest.Value[bool](t, a.Database, `
		SELECT bool_and(c.after ->> 'body' = t.body)
		FROM todo t JOIN audit.changes c ON c.primary_key = t.id::text AND operation = 'CREATE'`)
	if !intact {
		t.Error("a stored value is not the row's")
	}
}

// What no jsonb holds is left out with a defect; the rest of the row and capture
// go on.
func TestValueTooLargeForAnImage(t *testing.T) {
	t.Parallel()
	if testing.Short() {
		t.Skip("needs a gigabyte of memory")
	}
	server := audittest.NewServer(t, audittest.ServerOptions{})
	db := server.NewDatabase(t)
	db.Exec(t, "CREATE TABLE todo (id int PRIMARY KEY, body text, note text)")
	a := capturing(t, db, audit.Config{MaxRowBytes: 200 << 20})
	for _, sql := range []string{
		"INSERT INTO todo VALUES (1, repeat('x', 220 << 20), 'large')",
		"UPDATE todo SET note = 'larger'",
		"DELETE FROM todo",
		"INSERT INTO todo VALUES (2, repeat('x', 199 << 20), 'fits')",
		"DELETE FROM todo",
		"INSERT INTO todo VALUES (3, repeat(E'\\x01', 190 << 20), 'grows when quoted')",
		"INSERT INTO todo VALUES (4, 'x', 'small')",
	} {
		a.Exec(t, sql)
		a.Sync(t)
	}
	const left = `column "body" left out: with its 230686720 bytes the row is larger than what is kept of one`
	tell(t, a, "operation, primary_key, before - 'body', after - 'body', length(after ->> 'body') >> 20, defect",
		`CREATE 1 {} {"id": 1, "note": "large"} after: `+left,
		`UPDATE 1 {"id": 1, "note": "large"} {"id": 1, "note": "larger"} before: `+left+`; after: `+left,
		`DELETE 1 {"id": 1, "note": "larger"} {} before: `+left,
		`CREATE 2 {} {"id": 2, "note": "fits"} 199`, `DELETE 2 {"id": 2, "note": "fits"} {}`,
		`CREATE 3 {} {"id": 3, "note": "grows when quoted"} after: column "body" left out: with its 199229440 bytes the row is larger than what is kept of one`,
		`CREATE 4 {} {"id": 4, "note": "small"} 0`)
}
