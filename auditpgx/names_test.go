package auditpgx_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/hindsight-go/audit"
	"github.com/hindsight-go/audit/auditpgx"
	"github.com/hindsight-go/audit/audittest"
)

// TestNames_ReadsStayReads runs reads by the names of their prepared statements, and
// looks whether they became transactions that write.
func TestNames_ReadsStayReads(t *testing.T) {
	t.Parallel()
	db := audittest.NewDatabase(t)
	db.Exec(t, todoSQL)
	ctx := by(t.Context(), "ann")
	for _, mode := range modes {
		raw := connectMode(t, db, mode, nil)
		conn := auditpgx.Config{}.WrapConn(raw)
		if _, err := conn.Prepare(ctx, "known", "SELECT count(*) FROM todo"); err != nil {
			t.Fatal(err)
		}
		if _, err := raw.Prepare(ctx, "told by the server", "SELECT count(*) FROM todo"); err != nil {
			t.Fatal(err)
		}
		if _, err := raw.Exec(ctx, `PREPARE of_sql AS SELECT count(*) FROM todo; PREPARE "Of SQL" (int) AS SELECT $1`); err != nil {
			t.Fatal(err)
		}
		for _, sql := range []string{"known", "told by the server", "EXECUTE of_sql", `EXECUTE "Of SQL" (1)`} {
			var n int
			if err := conn.QueryRow(ctx, sql).Scan(&n); err != nil {
				t.Errorf("%s, %s: %v", mode, sql, err)
			}
			if _, err := conn.Exec(ctx, sql); err != nil {
				t.Errorf("%s, %s: %v", mode, sql, err)
			}
			var b pgx.Batch
			b.Queue(sql)
			if err := conn.SendBatch(ctx, &b).Close(); err != nil && mode != pgx.QueryExecModeSimpleProtocol {
				t.Errorf("%s, %s, batch: %v", mode, sql, err)
			}
			err := pgx.BeginFunc(ctx, conn, func(tx pgx.Tx) error {
				if err := tx.QueryRow(ctx, sql).Scan(&n); err != nil {
					return err
				}
				var id *string
				err := tx.QueryRow(ctx, "SELECT pg_current_xact_id_if_assigned()::text").Scan(&id)
				if err == nil && id != nil {
					err = errors.New("the transaction writes")
				}
				return err
			})
			if err != nil {
				t.Errorf("%s, %s: %v", mode, sql, err)
			}
		}
		if diff := cmp.Diff(auditpgx.Stats{}, conn.Stats()); diff != "" {
			t.Errorf("%s: %s", mode, diff)
		}
	}
}

// TestNames_WritesAreStamped runs writes by name, also where a name that was known to
// read was prepared anew.
func TestNames_WritesAreStamped(t *testing.T) {
	t.Parallel()
	a := audittest.New(t, audit.Config{}, todoSQL)
	ctx := by(t.Context(), "ann")
	const read, write = "SELECT $1::text, $2::int, ''", "INSERT INTO todo VALUES ($1, $2, '')"
	want := map[string]string{}
	for _, mode := range modes {
		raw := connectMode(t, a.Database, mode, nil)
		conn := auditpgx.Config{Logger: slog.New(slog.DiscardHandler)}.WrapConn(raw)
		run := func(q auditpgx.Querier, cell string) error {
			_, err := q.Exec(ctx, "ps", cell, 1)
			if mode != pgx.QueryExecModeSimpleProtocol {
				want[cell] = " by ann"
			}
			return err
		}
		must := func(err error) {
			t.Helper()
			if err != nil {
				t.Errorf("%s: %v", mode, err)
			}
		}
		prepare := func(sql string) {
			t.Helper()
			_, err := conn.Prepare(ctx, "ps", sql)
			must(err)
		}
		prepare(read)
		_, err := conn.Exec(ctx, "ps", "x", 1)
		must(err)
		must(conn.Conn().Deallocate(ctx, "ps"))
		prepare(write)
		must(run(conn, fmt.Sprint(mode, " prepared anew")))

		must(conn.Conn().DeallocateAll(ctx))
		_, err = conn.Conn().Prepare(ctx, "ps", read)
		must(err)
		_, err = conn.Exec(ctx, "ps", "x", 1) // asks
		must(err)
		native := conn.Conn()
		must(native.Deallocate(ctx, "ps"))
		_, err = native.Prepare(ctx, "ps", write)
		must(err)
		must(run(conn, fmt.Sprint(mode, " prepared anew by pgx")))
		must(pgx.BeginFunc(ctx, conn, func(tx pgx.Tx) error { return run(tx, fmt.Sprint(mode, " in a transaction")) }))

		_, err = conn.Exec(ctx, "PREPARE of_sql AS SELECT 1")
		must(err)
		_, err = conn.Exec(ctx, "EXECUTE of_sql")
		must(err)
		cell := fmt.Sprint(mode, " by SQL")
		_, err = conn.Exec(ctx, "DEALLOCATE of_sql; PREPARE of_sql AS INSERT INTO todo VALUES ('"+cell+"', 1, '')")
		must(err)
		_, err = conn.Exec(ctx, "EXECUTE of_sql")
		must(err)
		want[cell] = " by ann"
	}
	got := tasksBy(t, a)
	for cell := range got {
		if want[cell] == "" { // by name in the simple protocol, where nothing can be put before it
			delete(got, cell)
		}
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

// TestNames_PreparedAnewUnseen prepares under a name that was known to read what writes,
// in ways in which nothing is stamped.
func TestNames_PreparedAnewUnseen(t *testing.T) {
	t.Parallel()
	a := audittest.New(t, audit.Config{}, todoSQL)
	ann, nobody := by(t.Context(), "ann"), t.Context()
	anew := func(cell string) []string {
		name := pgx.Identifier{cell}.Sanitize()
		return []string{"DEALLOCATE " + name, "PREPARE " + name + " AS INSERT INTO todo VALUES ('" + cell + "', 1, '')", "EXECUTE " + name}
	}
	each := func(ctx context.Context, run func(context.Context, string) error) func(string) error {
		return func(cell string) error {
			sql := anew(cell)
			return errors.Join(run(ctx, sql[0]), run(ctx, sql[1]), run(ann, sql[2]))
		}
	}
	batch := func(ctx context.Context, q auditpgx.Querier) func(string) error {
		return func(cell string) error {
			var b pgx.Batch
			sql := anew(cell)
			b.Queue(sql[0])
			b.Queue(sql[1])
			err := q.SendBatch(ctx, &b).Close()
			_, err2 := q.Exec(ann, sql[2])
			return errors.Join(err, err2)
		}
	}
	exec := func(q auditpgx.Querier) func(context.Context, string) error {
		return func(ctx context.Context, sql string) error {
			_, err := q.Exec(ctx, sql)
			return err
		}
	}
	query := func(q auditpgx.Querier) func(context.Context, string) error {
		return func(ctx context.Context, sql string) error {
			rows, err := q.Query(ctx, sql)
			if err != nil {
				return err
			}
			rows.Close()
			return rows.Err()
		}
	}
	row := func(q auditpgx.Querier) func(context.Context, string) error {
		return func(ctx context.Context, sql string) error {
			if err := q.QueryRow(ctx, sql).Scan(); !errors.Is(err, pgx.ErrNoRows) {
				return err
			}
			return nil
		}
	}
	inTx := func(q auditpgx.Querier, run func(auditpgx.Querier) error) error {
		return pgx.BeginFunc(ann, q, func(tx pgx.Tx) error { return run(tx) })
	}
	want := map[string]string{}
	for _, mode := range modes {
		pool := newPool(t, a.Database, func(c *pgxpool.Config) {
			c.MaxConns, c.ConnConfig.DefaultQueryExecMode = 1, mode
		})
		db, conn := auditpgx.Wrap(pool), auditpgx.WrapConn(connectMode(t, a.Database, mode, nil))
		for name, way := range map[string]func(cell string) error{
			"DB.Exec":                          each(ann, exec(db)),
			"DB.Exec without a context":        each(nobody, exec(db)),
			"DB.Query":                         each(ann, query(db)),
			"DB.Query without a context":       each(nobody, query(db)),
			"DB.QueryRow":                      each(ann, row(db)),
			"DB.QueryRow without a context":    each(nobody, row(db)),
			"DB.SendBatch":                     batch(ann, db),
			"DB.SendBatch without a context":   batch(nobody, db),
			"Conn.Exec without a context":      each(nobody, exec(conn)),
			"Conn.Query without a context":     each(nobody, query(conn)),
			"Conn.QueryRow without a context":  each(nobody, row(conn)),
			"Conn.SendBatch":                   batch(ann, conn),
			"Conn.SendBatch without a context": batch(nobody, conn),
			"Tx.SendBatch": func(cell string) error {
				return inTx(conn, func(tx auditpgx.Querier) error { return batch(ann, tx)(cell) })
			},
			"one text": func(cell string) error {
				return exec(db)(ann, strings.Join(anew(cell), ";"))
			},
			"one batch": func(cell string) error {
				var b pgx.Batch
				for _, sql := range anew(cell) {
					b.Queue(sql)
				}
				return db.SendBatch(ann, &b).Close()
			},
		} {
			if name == "one batch" && mode != pgx.QueryExecModeSimpleProtocol {
				continue // the server describes it before it runs
			}
			cell := fmt.Sprint(mode, " ", name)
			var q auditpgx.Querier = conn
			if strings.HasPrefix(name, "DB") || strings.HasPrefix(name, "one") {
				q = db
			}
			name := pgx.Identifier{cell}.Sanitize()
			_, err := q.Exec(ann, "PREPARE "+name+" AS SELECT 1")
			_, err2 := q.Exec(ann, "EXECUTE "+name) // known to read
			if err := errors.Join(err, err2, way(cell)); err != nil {
				t.Errorf("%s: %v", cell, err)
			}
			want[cell] = " by ann"
		}
	}
	if diff := cmp.Diff(want, tasksBy(t, a)); diff != "" {
		t.Error(diff)
	}
}
