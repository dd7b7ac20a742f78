package audit_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5"

	"github.com/hindsight-go/audit"
	"github.com/hindsight-go/audit/audittest"
)

// undo is an audited database whose state tests compare before and after.
type undo struct {
	*audittest.Audited
	conn *pgx.Conn
}

func newUndo(t *testing.T, setup ...string) *undo {
	t.Helper()
	a := audittest.New(t, audit.Config{Tables: []string{"public.*", "app.*"}}, setup...)
	return &undo{Audited: a, conn: a.Connect(t)}
}

// direct has every other seed try all reverts without looking first, however few
// their rows.
func (u *undo) direct(seed uint64) *undo {
	if seed%2 == 0 {
		audit.DirectRows(u.Client, 1)
	}
	return u
}

// shop is two tables with a foreign key between them.
const shop = `
	CREATE TABLE customer (id int PRIMARY KEY, name text NOT NULL, city text);
	CREATE TABLE orders (id int PRIMARY KEY, customer int NOT NULL REFERENCES customer, total numeric(10,2), note text);
	INSERT INTO customer VALUES (1, 'Ann', 'Rome'), (2, 'Bob', 'Oslo'), (3, 'Cyd', NULL);
	INSERT INTO orders VALUES (10, 1, 9.50, NULL), (11, 2, 20, 'rush'), (12, 2, 0.00, '');`

// request runs statements in one transaction, in the name of a request.
func (u *undo) request(t *testing.T, id string, statements ...string) {
	t.Helper()
	u.as(t, audit.Context{UserID: "ann", RequestID: id}, statements...)
}

func (u *undo) as(t *testing.T, who audit.Context, statements ...string) {
	t.Helper()
	ctx := audit.WithContext(t.Context(), who)
	err := pgx.BeginFunc(ctx, u.conn, func(tx pgx.Tx) error {
		if err := audit.Stamp(ctx, tx); err != nil {
			return err
		}
		for _, sql := range statements {
			if _, err := tx.Exec(ctx, sql); err != nil {
				return fmt.Errorf("%s: %w", sql, err)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// state is all rows of all tables that are tracked, as text.
func (u *undo) state(t *testing.T) []string {
	t.Helper()
	return allRows(t, u.conn)
}

func allRows(t *testing.T, conn *pgx.Conn) []string {
	t.Helper()
	ctx := context.WithoutCancel(t.Context())
	rows, err := conn.Query(ctx, `SELECT c.oid::regclass::text FROM pg_class c WHERE c.relkind IN ('r', 'p') AND NOT c.relispartition
		AND c.relnamespace::regnamespace::text IN ('public', 'app') ORDER BY 1`)
	if err != nil {
		t.Fatal(err)
	}
	tables, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		t.Fatal(err)
	}
	var lines []string
	for _, table := range tables {
		rows, err := conn.Query(ctx, fmt.Sprintf("SELECT '%s ' || whole::text FROM %s whole ORDER BY 1", table, table))
		if err != nil {
			t.Fatal(err)
		}
		more, err := pgx.CollectRows(rows, pgx.RowTo[string])
		if err != nil {
			t.Fatal(err)
		}
		lines = append(lines, more...)
	}
	return lines
}

func (u *undo) want(t *testing.T, what string, want []string) {
	t.Helper()
	if diff := cmp.Diff(want, u.state(t)); diff != "" {
		t.Errorf("%s (-want +got):\n%s", what, diff)
	}
}

// apply applies a revert and fails the test if that fails.
func apply(t *testing.T, r audit.Reversal) *audit.Result {
	t.Helper()
	result, err := r.Apply(t.Context())
	if err != nil {
		var blocked *audit.ConflictError
		if errors.As(err, &blocked) {
			t.Fatalf("%v\n%s", err, lines(blocked.Conflicts))
		}
		t.Fatal(errors.Join(err, errors.Unwrap(err)))
	}
	return result
}

func lines(conflicts []audit.Conflict) string {
	var b strings.Builder
	for _, c := range conflicts {
		b.WriteString(c.String() + "\n")
	}
	return b.String()
}

// conflicts plans a revert and names what is in its way: "kind table[key] column".
func conflicts(t *testing.T, r audit.Reversal) []string {
	t.Helper()
	plan, err := r.Plan(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, c := range plan.Conflicts {
		names = append(names, strings.TrimSpace(fmt.Sprintf("%s %s %s", c.Kind, c.RowRef, c.Column)))
	}
	slices.Sort(names)
	return names
}

func wantConflicts(t *testing.T, r audit.Reversal, want ...string) {
	t.Helper()
	slices.Sort(want)
	if diff := cmp.Diff(want, conflicts(t, r)); diff != "" {
		t.Errorf("conflicts (-want +got):\n%s", diff)
	}
}

// roundTrip does something in a request, reverts it, does it again and reverts
// that, and compares the states.
func (u *undo) roundTrip(t *testing.T, statements ...string) {
	t.Helper()
	before := u.state(t)
	u.request(t, "round trip", statements...)
	after := u.state(t)
	if slices.Equal(before, after) {
		t.Fatal("the request changed nothing")
	}
	result := apply(t, u.Client.RevertRequest("round trip"))
	u.want(t, "after the revert", before)
	plan, err := u.Client.Redo(result.ID).Plan(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	redo, err := plan.Apply(t.Context())
	if err != nil {
		t.Fatal(errors.Join(err, errors.Unwrap(err)))
	}
	u.want(t, "after the redo", after)
	apply(t, u.Client.Redo(redo.ID))
	u.want(t, "after the revert of the redo", before)
}
