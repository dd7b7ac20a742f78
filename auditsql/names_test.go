package auditsql_test

import (
	"context"
	"database/sql"
	"errors"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5"

	"github.com/hindsight-go/audit"
	"github.com/hindsight-go/audit/auditsql"
	"github.com/hindsight-go/audit/audittest"
)

// TestNames_PreparedAnewUnseen prepares under a name that was known to read what writes,
// in ways in which nothing is stamped.
func TestNames_PreparedAnewUnseen(t *testing.T) {
	t.Parallel()
	a := audittest.New(t, audit.Config{}, todoSQL)
	ann, nobody := by(t.Context(), "ann"), t.Context()
	exec := func(ctx context.Context) func(*sql.Conn, string) error {
		return func(c *sql.Conn, sql string) error {
			_, err := c.ExecContext(ctx, sql)
			return err
		}
	}
	want := map[string]string{}
	for _, d := range drivers {
		db, _ := d.open(t, parse(t, a.Database, nil))
		c, err := db.Conn(ann)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = c.Close() }()
		raw := func(of func(any) any) func(*sql.Conn, string) error {
			return func(c *sql.Conn, sql string) error {
				return c.Raw(func(driverConn any) error {
					_, err := of(driverConn).(interface{ Conn() *pgx.Conn }).Conn().Exec(ann, sql)
					return err
				})
			}
		}
		ways := map[string]func(c *sql.Conn, sql string) error{
			"ExecContext":                   exec(ann),
			"ExecContext without a context": exec(nobody),
			"QueryContext": func(c *sql.Conn, sql string) error {
				rows, err := c.QueryContext(ann, sql)
				if err != nil {
					return err
				}
				defer func() { _ = rows.Close() }()
				for rows.Next() {
				}
				return rows.Err()
			},
			"a transaction": func(c *sql.Conn, sql string) error {
				tx, err := c.BeginTx(ann, nil)
				if err != nil {
					return err
				}
				_, err = tx.ExecContext(nobody, sql)
				return errors.Join(err, tx.Commit())
			},
		}
		if d.hide == nil {
			ways["Conn"] = raw(func(c any) any { return c })
			ways["Unwrap"] = raw(auditsql.Unwrap)
		}
		for name, run := range ways {
			cell := d.name + ": " + name
			quoted := pgx.Identifier{cell}.Sanitize()
			err := errors.Join(exec(ann)(c, "PREPARE "+quoted+" AS SELECT 1"), exec(ann)(c, "EXECUTE "+quoted), // known to read
				run(c, "DEALLOCATE "+quoted), run(c, "PREPARE "+quoted+" AS INSERT INTO todo VALUES ('"+cell+"', 1, 'x')"), exec(ann)(c, "EXECUTE "+quoted))
			if err != nil {
				t.Errorf("%s: %v", cell, err)
			}
			want[cell] = "x by ann"
		}
	}
	a.Sync(t)
	got := map[string]string{}
	for change, err := range a.Client.Changes().ForTable("todo").All(t.Context()) {
		if err != nil {
			t.Fatal(err)
		}
		var row struct{ Cell, Task string }
		if err := change.DecodeAfter(&row); err != nil {
			t.Fatal(err)
		}
		got[row.Cell] = row.Task + " by " + change.Context.User()
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}
