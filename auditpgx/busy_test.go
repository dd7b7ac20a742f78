package auditpgx_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/hindsight-go/audit/auditpgx"
	"github.com/hindsight-go/audit/audittest"
)

// TestConn_UsedWhileRowsAreOpen writes in all ways while a query's rows are open, and
// compares what is said with pgx.
func TestConn_UsedWhileRowsAreOpen(t *testing.T) {
	t.Parallel()
	db := audittest.NewDatabase(t)
	db.Exec(t, todoSQL)
	ctx := by(t.Context(), "ann")
	for _, mode := range modes {
		for _, inTx := range []bool{false, true} {
			said := func(wrap bool) map[string]string {
				raw := connectMode(t, db, mode, nil)
				var q auditpgx.Querier = raw
				if wrap {
					q = auditpgx.WrapConn(raw)
				}
				if inTx {
					tx, err := q.Begin(ctx)
					if err != nil {
						t.Fatal(err)
					}
					q = tx
				}
				list := map[string]string{}
				note := func(way string, err error) {
					if err == nil {
						err = pgx.ErrNoRows
					}
					list[way] = err.Error()
				}
				warm, _ := q.Query(ctx, insert+" RETURNING id", "warm"+mode.String(), 1)
				warm.Close()
				_, _ = q.Exec(ctx, insert, "warm"+mode.String(), 2)
				_, _ = q.Exec(ctx, insert, "warm"+mode.String(), 3)
				rows, err := q.Query(ctx, "SELECT n FROM generate_series(1, 1000) n")
				if err != nil || !rows.Next() {
					t.Fatal(err)
				}
				_, err = q.Exec(ctx, insert, "busy", 1)
				note("exec", err)
				_, err = q.Exec(ctx, "INSERT INTO todo VALUES ('busy', 2)")
				note("exec without arguments", err)
				_, err = q.Exec(ctx, "DELETE FROM todo WHERE cell = $1", "new")
				note("a new statement", err)
				_, err = q.Exec(ctx, "aName")
				note("a name", err)
				late, err := q.Query(ctx, insert+" RETURNING id", "busy", 3)
				note("query", err)
				late.Close()
				var b pgx.Batch
				b.Queue(insert, "busy", 4)
				note("batch", q.SendBatch(ctx, &b).Close())
				_, err = q.CopyFrom(ctx, pgx.Identifier{"todo"}, []string{"cell", "id"}, pgx.CopyFromRows([][]any{{"busy", 5}}))
				note("copy", err)
				n := 1
				for rows.Next() {
					n++
				}
				list["rows"] = fmt.Sprint(n, rows.Err())
				_ = raw.Close(ctx)
				return list
			}
			want, got := said(false), said(true)
			for way, text := range got {
				// What pgx says around it depends on what it has cached, and it may spoil the rows.
				if want[way] != text && !strings.Contains(text, "conn busy") && text != "1000 <nil>" {
					t.Errorf("%s, in a transaction %v, %s: %q, bare %q", mode, inTx, way, text, want[way])
				}
			}
			db.Exec(t, "TRUNCATE todo")
		}
	}
}

// TestWrapTx_Twice wraps what is wrapped.
func TestWrapTx_Twice(t *testing.T) {
	t.Parallel()
	db := audittest.NewDatabase(t)
	db.Exec(t, todoSQL)
	ctx := by(t.Context(), "ann")
	q := auditpgx.Config{}.Wrap(newPool(t, db, nil))
	err := pgx.BeginFunc(ctx, q, func(tx pgx.Tx) error {
		_, err := auditpgx.WrapTx(auditpgx.WrapTx(tx)).Exec(ctx, insert, "c", 1)
		if err != nil {
			return err
		}
		return pgx.BeginFunc(ctx, auditpgx.Config{}.WrapTx(tx), func(tx pgx.Tx) error {
			_, err := auditpgx.WrapTx(tx).Exec(ctx, insert, "c", 2)
			return err
		})
	})
	if err != nil {
		t.Error(err)
	}
	if n := q.Stats().Stamped; n != 1 {
		t.Errorf("%d stamps", n)
	}
	var b pgx.Batch
	b.BeginTx(pgx.TxOptions{})
	b.Queue(insert, "c", 3)
	br := q.SendBatch(ctx, &b)
	tx := auditpgx.WrapTx(br.Tx())
	if err := br.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := tx.Exec(ctx, insert, "c", 4); err != nil {
		t.Error(err)
	}
	if err := tx.Commit(ctx); err != nil {
		t.Error(err)
	}
	if n := audittest.Value[int](t, db, "SELECT count(*) FROM todo"); n != 4 || q.Pool().Stat().AcquiredConns() != 0 {
		t.Errorf("%d rows, %d connections", n, q.Pool().Stat().AcquiredConns())
	}
}

// TestQuery_ErrorIsMetInTheRows looks where an error of the server is met: as in pgx not
// by Query itself, if the statement is sent in the extended protocol.
func TestQuery_ErrorIsMetInTheRows(t *testing.T) {
	t.Parallel()
	db := audittest.NewDatabase(t)
	db.Exec(t, todoSQL+"; INSERT INTO todo VALUES ('c', 1, 'x')")
	ctx := by(t.Context(), "ann")
	for _, mode := range modes {
		for _, sql := range []string{insert, insert + " RETURNING 1", "INSERT INTO todo SELECT $1, $2 / 0", "INSERT INTO nothing VALUES ($1, $2)"} {
			said := func(q auditpgx.Querier) (list []bool) {
				rows, err := q.Query(ctx, sql, "c", 1)
				rows.Close()
				list = append(list, err != nil, rows.Err() != nil)
				return append(list, q.QueryRow(ctx, sql, "c", 1).Scan(new(int)) != nil)
			}
			raw := connectMode(t, db, mode, nil)
			if diff := cmp.Diff(said(raw), said(auditpgx.WrapConn(raw))); diff != "" {
				t.Errorf("%s, %s: %s", mode, sql, diff)
			}
			q := auditpgx.Wrap(newPool(t, db, func(c *pgxpool.Config) { c.MaxConns, c.ConnConfig.DefaultQueryExecMode = 1, mode }))
			if diff := cmp.Diff(said(q.Pool()), said(q)); diff != "" {
				t.Errorf("%s, %s, a pool: %s", mode, sql, diff)
			}
			if n := q.Pool().Stat().AcquiredConns(); n != 0 {
				t.Errorf("%s, %s: %d connections are kept", mode, sql, n)
			}
			q.Close()
		}
	}
}
