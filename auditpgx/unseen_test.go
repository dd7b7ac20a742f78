package auditpgx_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5"

	"github.com/hindsight-go/audit"
	"github.com/hindsight-go/audit/auditpgx"
	"github.com/hindsight-go/audit/audittest"
)

// TestTx_WritesBehindAnUnseenRollback goes back to a savepoint in ways that take no
// call of Rollback, and writes on.
func TestTx_WritesBehindAnUnseenRollback(t *testing.T) {
	t.Parallel()
	a := audittest.New(t, audit.Config{}, todoSQL)
	want := map[string]string{}
	ways := map[string]func(ctx context.Context, tx pgx.Tx) error{
		"the native connection": func(ctx context.Context, tx pgx.Tx) error {
			_, err := tx.Conn().Exec(ctx, "ROLLBACK TO s")
			return err
		},
		"a prepared name": func(ctx context.Context, tx pgx.Tx) error {
			_, err := tx.Exec(ctx, "back")
			return err
		},
		"a prepared name, without a context": func(_ context.Context, tx pgx.Tx) error {
			_, err := tx.Exec(context.Background(), "back")
			return err
		},
		"a prepared name in a query": func(_ context.Context, tx pgx.Tx) error {
			rows, err := tx.Query(context.Background(), "back")
			rows.Close()
			return err
		},
		"a prepared name in a batch": func(ctx context.Context, tx pgx.Tx) error {
			var b pgx.Batch
			b.Queue("back")
			return tx.SendBatch(ctx, &b).Close()
		},
		"a prepared name in a batch without a context": func(_ context.Context, tx pgx.Tx) error {
			var b pgx.Batch
			b.Queue("back")
			return tx.SendBatch(context.Background(), &b).Close()
		},
	}
	for _, mode := range modes {
		raw := connectMode(t, a.Database, mode, nil)
		if _, err := raw.Prepare(t.Context(), "back", "ROLLBACK TO SAVEPOINT s"); err != nil {
			t.Fatal(err)
		}
		conn := auditpgx.WrapConn(raw)
		for name, back := range ways {
			cell := fmt.Sprint(mode, " ", name)
			if mode == pgx.QueryExecModeSimpleProtocol && name[:len("a prep")] == "a prep" && len(name) > len("a prepared name in a b") {
				continue // a batch of one string knows no names
			}
			ctx := by(t.Context(), "ann")
			err := pgx.BeginFunc(ctx, conn, func(tx pgx.Tx) error {
				kept := tx
				_, err := tx.Exec(ctx, "SAVEPOINT s")
				_, err2 := tx.Exec(ctx, insert, cell, 1)
				err3 := back(ctx, kept)
				_, err4 := tx.Exec(ctx, insert, cell, 2)
				return errors.Join(err, err2, err3, err4)
			})
			if err != nil {
				t.Errorf("%s: %v", cell, err)
			}
			want[cell] = "x by ann"
		}
		// One that was kept from before.
		cell := fmt.Sprint(mode, " kept")
		ctx := by(t.Context(), "ann")
		err := pgx.BeginFunc(ctx, conn, func(tx pgx.Tx) error {
			kept := tx.Conn()
			_, err := tx.Exec(ctx, "SAVEPOINT s")
			_, err2 := tx.Exec(ctx, insert, cell, 1)
			_, err3 := kept.Exec(ctx, "ROLLBACK TO s")
			_, err4 := tx.Exec(ctx, insert, cell, 2)
			return errors.Join(err, err2, err3, err4)
		})
		if err != nil {
			t.Errorf("%s: %v", cell, err)
		}
		want[cell] = "x by ann"
	}
	if diff := cmp.Diff(want, tasksBy(t, a)); diff != "" {
		t.Error(diff)
	}
}

// TestText_WritesBehindACommitAreCounted runs texts that end a transaction and write
// on: what cannot be stamped is counted.
func TestText_WritesBehindACommitAreCounted(t *testing.T) {
	t.Parallel()
	a := audittest.New(t, audit.Config{}, todoSQL)
	put := func(cell string) string { return "INSERT INTO todo VALUES ('" + cell + "', 1, 'x'); " }
	for i, mode := range modes {
		want := map[string]string{}
		conn := auditpgx.Config{Logger: slog.New(slog.DiscardHandler)}.WrapConn(connectMode(t, a.Database, mode, nil))
		ctx := by(t.Context(), "ann")
		cell := func(text int, which string) string {
			want[fmt.Sprint(i, text, which)] = map[string]string{"first": "x by ann", "behind": "x by "}[which]
			return fmt.Sprint(i, text, which)
		}
		for text, sql := range []string{
			put(cell(0, "first")) + "COMMIT; " + put(cell(0, "behind")),
			"BEGIN; " + put(cell(1, "first")) + "COMMIT; " + put(cell(1, "behind")),
			"BEGIN; " + put(cell(2, "first")) + "COMMIT; SELECT 1; BEGIN; " + put(cell(2, "behind")) + "COMMIT",
		} {
			if _, err := conn.Exec(ctx, sql); err != nil {
				t.Errorf("%s, %d: %v", mode, text, err)
			}
		}
		if diff := cmp.Diff(auditpgx.Stats{Stamped: 3, Lost: 3}, conn.Stats()); diff != "" {
			t.Errorf("%s: %s", mode, diff)
		}
		got := tasksBy(t, a)
		for cell := range got {
			if want[cell] == "" {
				delete(got, cell) // of another mode
			}
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s: %s", mode, diff)
		}
	}
}

// TestStatements_ThatHideAWrite runs statements whose first word is not that of a
// write.
func TestStatements_ThatHideAWrite(t *testing.T) {
	t.Parallel()
	db := audittest.NewDatabase(t)
	db.Exec(t, todoSQL+"; INSERT INTO todo VALUES ('a', 1, 'x')")
	for sql, stamped := range map[string]uint64{
		"CREATE TABLE made AS SELECT * FROM todo":                                                         1,
		"CREATE UNLOGGED TABLE IF NOT EXISTS made (cell) WITH (fillfactor = 50) AS SELECT cell FROM todo": 1,
		"EXPLAIN ANALYZE CREATE TABLE made AS SELECT * FROM todo":                                         1,
		"EXPLAIN (ANALYZE) SELECT * INTO made FROM todo":                                                  1,
		"COPY (DELETE FROM todo RETURNING *) TO STDOUT":                                                   1,
		"CREATE TABLE made (n int GENERATED ALWAYS AS (1) STORED)":                                        0,
		"CREATE VIEW made AS SELECT 1":                                                                    0,
		"CREATE MATERIALIZED VIEW made AS SELECT 1":                                                       0,
		"COPY (SELECT * FROM todo) TO STDOUT":                                                             0,
		"CREATE FUNCTION made() RETURNS int AS 'SELECT 1' LANGUAGE sql":                                   0,
	} {
		raw := connectMode(t, db, pgx.QueryExecModeCacheStatement, nil)
		conn := auditpgx.Config{}.WrapConn(raw)
		ctx := by(t.Context(), "ann")
		tx, err := conn.Begin(ctx)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := tx.Exec(ctx, sql); err != nil {
			t.Errorf("%s: %v", sql, err)
		}
		if n := conn.Stats().Stamped; n != stamped {
			t.Errorf("%s: %d stamps", sql, n)
		}
		_ = tx.Rollback(ctx)
		_ = raw.Close(ctx)
	}
}
