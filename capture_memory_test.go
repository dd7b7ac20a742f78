package audit_test

import (
	"errors"
	"fmt"
	"syscall"
	"testing"

	"github.com/hindsight-go/audit"
	"github.com/hindsight-go/audit/audittest"
	"github.com/hindsight-go/audit/internal/faulttest"
)

// startProgram starts a program that captures in a database of a server of its
// own, and returns how much memory it has taken so far.
func startProgram(t *testing.T, tables ...string) (*audittest.Database, *faulttest.Program, int) {
	t.Helper()
	server := audittest.NewServer(t, audittest.ServerOptions{})
	db := server.NewDatabase(t)
	for _, sql := range tables {
		db.Exec(t, sql)
	}
	p := faulttest.StartProgram(t, faulttest.ProgramConfig{Name: "memory", SourceURL: db.URL()})
	p.WaitStarted(t)
	db.Exec(t, "INSERT INTO todo (id) VALUES (-1)")
	waitStored(t, db, -1)
	return db, p, p.PeakMemory(t)
}

// waitStored returns when the row of todo with that key is in history.
func waitStored(t *testing.T, db *audittest.Database, id int) {
	t.Helper()
	faulttest.Poll(t, faulttest.Patience, fmt.Sprintf("row %d is in history", id), func() error {
		if audittest.Value[int](t, db, "SELECT count(*) FROM audit.changes WHERE primary_key = $1::int::text", id) == 0 {
			return errors.New("it is not")
		}
		return nil
	})
}

// Anybody who may log in can put a message of a gigabyte into the stream. It costs
// the program no memory, whatever its prefix is.
func TestMemory_LargeMessages(t *testing.T) {
	t.Parallel()
	const size = 64 << 20
	const bound = 16 << 20
	db, p, before := startProgram(t, "CREATE TABLE todo (id int PRIMARY KEY)")
	id := 0
	for _, transactional := range []bool{true, false} {
		for _, prefix := range []string{"'x'", "'audit'", "'_bemi'", "'audit_sync'", "'audit_refresh'", fmt.Sprintf("repeat('x', %d)", size)} {
			id++
			db.Exec(t, fmt.Sprintf(`
				BEGIN;
				INSERT INTO todo VALUES (%d);
				SELECT pg_logical_emit_message(%t, %s, '{"requestId": "r1", "params": "' || repeat('x', %d) || '"}');
				COMMIT`, id, transactional, prefix, size))
			waitStored(t, db, id)
			if peak := p.PeakMemory(t); peak-before > bound {
				t.Fatalf("a message of %d MiB with prefix %.20s, transactional %t, took %d MiB", size>>20, prefix, transactional, (peak-before)>>20)
			}
		}
	}
	// Of a context the beginning is kept.
	for _, of := range []int{2, 3} {
		got := audittest.Value[string](t, db, "SELECT concat(context, ' ', defect) FROM audit.changes WHERE primary_key = $1::int::text", of)
		want := fmt.Sprintf(`{"requestId": "r1"} context of %d bytes cut down to its short members`, size+len(`{"requestId": "r1", "params": ""}`))
		if got != want {
			t.Errorf("the change under context %d has %q, want %q", of, got, want)
		}
	}
}

// So it is with a row: its large values are left out before they are read.
func TestMemory_LargeRows(t *testing.T) {
	t.Parallel()
	const size = 300_000_000
	const bound = 16 << 20
	db, p, before := startProgram(t, "CREATE TABLE todo (body text, id int PRIMARY KEY, note text)", "ALTER TABLE todo ALTER body SET STORAGE EXTERNAL")
	db.Exec(t, fmt.Sprintf("INSERT INTO todo VALUES (repeat('x', %d), 1, 'n1')", size))
	db.Exec(t, "UPDATE todo SET note = 'n2' WHERE id = 1")
	db.Exec(t, "DELETE FROM todo WHERE id = 1")
	db.Exec(t, "INSERT INTO todo VALUES ('short', 2, 'n3')")
	waitStored(t, db, 2)
	if peak := p.PeakMemory(t); peak-before > bound {
		t.Errorf("rows of %d MiB took %d MiB", size>>20, (peak-before)>>20)
	}
	left := fmt.Sprintf(`: column "body" left out: with its %d bytes the row is larger than what is kept of one`, size)
	a := audittest.Open(t, db, audit.Config{})
	tell(t, a, "operation, primary_key, before, after, defect", "CREATE -1 {} "+`{"id": -1, "body": null, "note": null}`,
		`CREATE 1 {} {"id": 1, "note": "n1"} after`+left,
		`UPDATE 1 {"id": 1, "note": "n1"} {"id": 1, "note": "n2"} before`+left+`; after`+left,
		`DELETE 1 {"id": 1, "note": "n2"} {} before`+left,
		`CREATE 2 {} {"id": 2, "body": "short", "note": "n3"}`)
}

// Many rows, each as large as is kept, are in memory one at a time.
func TestMemory_ManyRowsAtTheBound(t *testing.T) {
	t.Parallel()
	db, p, before := startProgram(t, "CREATE TABLE todo (id int PRIMARY KEY, body text)")
	db.Exec(t, "INSERT INTO todo SELECT n, repeat('x', 15 << 20) FROM generate_series(1, 30) n")
	waitStored(t, db, 30)
	if peak := p.PeakMemory(t); peak-before > 6*16<<20 {
		t.Errorf("30 rows of 15 MiB took %d MiB", (peak-before)>>20)
	}
	if n := audittest.Value[int](t, db, "SELECT count(*) FROM audit.changes WHERE length(after ->> 'body') = 15 << 20 AND defect IS NULL"); n != 30 {
		t.Errorf("%d of 30 rows are whole", n)
	}
}

// A context that comes after each of many transactions' rows is an UPDATE of them
// when the batch ends: it must not gather.
func TestMemory_LateContexts(t *testing.T) {
	t.Parallel()
	db, p, before := startProgram(t, "CREATE TABLE todo (id int PRIMARY KEY)")
	p.Signal(t, syscall.SIGSTOP)
	db.Exec(t, `DO $$ BEGIN FOR i IN 1..3000 LOOP
		INSERT INTO todo VALUES (i);
		PERFORM pg_logical_emit_message(true, 'audit', jsonb_build_object('params', repeat('x', 60000), 'n', i)::text);
		COMMIT; END LOOP; END $$`)
	p.Signal(t, syscall.SIGCONT)
	waitStored(t, db, 3000)
	if peak := p.PeakMemory(t); peak-before > 48<<20 {
		t.Errorf("3000 contexts of 60 KB took %d MiB", (peak-before)>>20)
	}
	if n := audittest.Value[int](t, db, "SELECT count(*) FROM audit.changes WHERE context ->> 'n' = primary_key"); n != 3000 {
		t.Errorf("%d of 3000 changes have their context", n)
	}
}
