package auditsql_test

import (
	"context"
	"errors"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/hindsight-go/audit"
	"github.com/hindsight-go/audit/auditsql"
	"github.com/hindsight-go/audit/audittest"
)

// TestRowsHoldNoLocks writes the rows that a statement gives, from another
// connection while they are read, as workers do with jobs that they have taken.
func TestRowsHoldNoLocks(t *testing.T) {
	t.Parallel()
	a := audittest.New(t, audit.Config{}, todoSQL)
	want := map[string][]string{}
	for _, d := range drivers {
		db, _ := d.open(t, parse(t, a.Database, nil))
		ctx := by(t.Context(), "ann")
		rows, err := db.QueryContext(ctx, "INSERT INTO todo SELECT $1, n FROM generate_series(1, 3) n RETURNING id", d.name)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = rows.Close() }()
		for rows.Next() {
			var id int
			if err := rows.Scan(&id); err != nil {
				t.Fatal(err)
			}
			if err := oneRow(db.ExecContext(by(t.Context(), "bob"), "UPDATE todo SET task = 'taken' WHERE (cell, id) = ($1, $2)", d.name, id)); err != nil {
				t.Errorf("%s: %v", d.name, err)
			}
		}
		if err := rows.Err(); err != nil {
			t.Errorf("%s: %v", d.name, err)
		}
		want[d.name] = []string{"1 ann", "2 ann", "3 ann", "1 bob", "2 bob", "3 bob"}
	}
	if diff := cmp.Diff(want, whoWrote(t, a)); diff != "" {
		t.Error(diff)
	}
}

// TestManyRows reads more rows than are read ahead, to the end and not.
func TestManyRows(t *testing.T) {
	t.Parallel()
	a := audittest.New(t, audit.Config{}, todoSQL)
	for _, d := range []aDriver{ofPgx, other, bare} {
		db, connector := d.open(t, parse(t, a.Database, nil))
		for limit, cell := range map[int]string{60: d.name, 5: d.name + " early"} {
			if err := readSome(by(t.Context(), "ann"), db, cell, limit); err != nil {
				t.Errorf("%s: %v", cell, err)
			}
			// The connection is free, and in no transaction.
			if err := writers[0].write(by(t.Context(), "bob"), db, cell, 0); err != nil {
				t.Errorf("%s: %v", cell, err)
			}
		}
		if diff := cmp.Diff(auditsql.Stats{Stamped: 4}, connector.Stats()); diff != "" {
			t.Errorf("%s: %s", d.name, diff)
		}
	}
	for cell, changes := range whoWrote(t, a) {
		if len(changes) != 61 || changes[0] != "1 ann" || changes[59] != "60 ann" || changes[60] != "0 bob" {
			t.Errorf("%s: %d changes", cell, len(changes))
		}
	}
}

// TestRowsOfAnAbandonedQuery ends ctx while rows are read.
func TestRowsOfAnAbandonedQuery(t *testing.T) {
	t.Parallel()
	a := audittest.New(t, audit.Config{}, todoSQL)
	for _, d := range []aDriver{ofPgx, other} {
		db, _ := d.open(t, parse(t, a.Database, nil))
		ctx, cancel := context.WithCancel(by(t.Context(), "ann"))
		rows, err := db.QueryContext(ctx, "INSERT INTO todo VALUES ($1, 1), ($1, 2) RETURNING id", d.name)
		if err != nil || !rows.Next() {
			t.Fatal(err)
		}
		defer func() { _ = rows.Close() }()
		cancel()
		for rows.Next() {
			continue // until database/sql notices, or there are no more
		}
		if err := rows.Err(); err != nil && !errors.Is(err, context.Canceled) {
			t.Errorf("%s: %v", d.name, err)
		}
		if err := writers[0].write(by(t.Context(), "bob"), db, d.name, 3); err != nil {
			t.Errorf("%s: %v", d.name, err)
		}
		// The server had done all of it.
		if n := audittest.Value[int](t, a.Database, "SELECT count(*) FROM todo WHERE cell = $1", d.name); n != 3 {
			t.Errorf("%s: %d rows", d.name, n)
		}
	}
	for cell, changes := range whoWrote(t, a) {
		if diff := cmp.Diff([]string{"1 ann", "2 ann", "3 bob"}, changes); diff != "" {
			t.Errorf("%s: %s", cell, diff)
		}
	}
}
