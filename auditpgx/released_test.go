package auditpgx_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/hindsight-go/audit/auditpgx"
	"github.com/hindsight-go/audit/audittest"
)

// panics reports whether a function does.
func panics(run func()) (did bool) {
	defer func() { did = recover() != nil }()
	run()
	return false
}

// connUses are what can be done with a connection.
func connUses(ctx context.Context) map[string]func(*auditpgx.Conn) {
	return map[string]func(*auditpgx.Conn){
		"exec":           func(c *auditpgx.Conn) { _, _ = c.Exec(ctx, insert, "late", 1) },
		"exec, no stamp": func(c *auditpgx.Conn) { _, _ = c.Exec(context.WithoutCancel(context.Background()), insert, "late", 2) },
		"query":          func(c *auditpgx.Conn) { _, _ = c.Query(ctx, insert+" RETURNING 1", "late", 3) }, //nolint:sqlclosecheck // it panics
		"query row":      func(c *auditpgx.Conn) { _ = c.QueryRow(ctx, insert, "late", 4) },
		"batch":          func(c *auditpgx.Conn) { b := &pgx.Batch{}; b.Queue(insert, "late", 5); _ = c.SendBatch(ctx, b).Close() },
		"copy": func(c *auditpgx.Conn) {
			_, _ = c.CopyFrom(ctx, pgx.Identifier{"todo"}, []string{"cell", "id"}, pgx.CopyFromRows([][]any{{"late", 6}}))
		},
		"begin":           func(c *auditpgx.Conn) { _, _ = c.Begin(ctx) },
		"prepare":         func(c *auditpgx.Conn) { _, _ = c.Prepare(ctx, "late", insert) },
		"ping":            func(c *auditpgx.Conn) { _ = c.Ping(ctx) },
		"the native conn": func(c *auditpgx.Conn) { _, _ = c.Conn().Exec(ctx, insert, "late", 7) },
	}
}

// TestConn_UsedAfterRelease uses a connection that was given back, and that somebody
// else has by then.
func TestConn_UsedAfterRelease(t *testing.T) {
	t.Parallel()
	db := audittest.NewDatabase(t)
	db.Exec(t, todoSQL)
	q := auditpgx.Wrap(newPool(t, db, func(c *pgxpool.Config) { c.MaxConns = 1 }))
	ctx := by(t.Context(), "ann")
	for name, use := range connUses(ctx) {
		conn, err := q.Acquire(ctx)
		if err != nil {
			t.Fatal(err)
		}
		conn.Release()
		conn.Release()
		var kept *auditpgx.Conn
		if err := q.AcquireFunc(ctx, func(c *auditpgx.Conn) error { kept = c; return nil }); err != nil {
			t.Fatal(err)
		}
		tx, err := q.Begin(by(t.Context(), "bob"))
		if err != nil {
			t.Fatal(err)
		}
		if !panics(func() { use(conn) }) {
			t.Errorf("%s: nothing was said", name)
		}
		if !panics(func() { use(kept) }) {
			t.Errorf("%s on that of AcquireFunc: nothing was said", name)
		}
		if err := conn.Close(ctx); err != nil {
			t.Error(err)
		}
		if err := tx.Commit(ctx); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	if n := audittest.Value[int](t, db, "SELECT count(*) FROM todo"); n != 0 {
		t.Errorf("%d rows in somebody else's transactions", n)
	}
}

// TestTx_NestedUsedAfterTheOuter uses a nested transaction when the one around it is
// over, and its connection is somebody else's.
func TestTx_NestedUsedAfterTheOuter(t *testing.T) {
	t.Parallel()
	db := audittest.NewDatabase(t)
	db.Exec(t, todoSQL)
	q := auditpgx.Wrap(newPool(t, db, func(c *pgxpool.Config) { c.MaxConns = 1 }))
	ctx := by(t.Context(), "ann")
	for _, depth := range []int{1, 2} {
		tx, err := q.Begin(ctx)
		if err != nil {
			t.Fatal(err)
		}
		nested := tx
		for range depth {
			if nested, err = nested.Begin(ctx); err != nil {
				t.Fatal(err)
			}
		}
		if err := tx.Commit(ctx); err != nil {
			t.Fatal(err)
		}
		other, err := q.Begin(by(t.Context(), "bob"))
		if err != nil {
			t.Fatal(err)
		}
		_, execErr := nested.Exec(ctx, insert, "late", depth)
		_, queryErr := nested.Query(ctx, insert+" RETURNING 1", "late", depth+10) //nolint:sqlclosecheck // it fails
		_, copyErr := nested.CopyFrom(ctx, pgx.Identifier{"todo"}, []string{"cell", "id"}, pgx.CopyFromRows([][]any{{"late", depth + 20}}))
		b := &pgx.Batch{}
		b.Queue(insert, "late", depth+30)
		for i, err := range []error{execErr, queryErr, copyErr, nested.SendBatch(ctx, b).Close()} {
			if !errors.Is(err, pgx.ErrTxClosed) {
				t.Errorf("depth %d, way %d: %v", depth, i, err)
			}
		}
		if err := other.Commit(ctx); err != nil {
			t.Fatal(err)
		}
	}
	if n := audittest.Value[int](t, db, "SELECT count(*) FROM todo"); n != 0 {
		t.Errorf("%d rows in somebody else's transactions", n)
	}
}

// bomb is a Scanner that panics.
type bomb struct{}

func (bomb) Scan(any) error { panic("a scanner that panics") }

// TestScan_PanicGivesTheConnectionBack lets Scan panic, with a context and without,
// on a pool that has one connection only.
func TestScan_PanicGivesTheConnectionBack(t *testing.T) {
	t.Parallel()
	db := audittest.NewDatabase(t)
	db.Exec(t, todoSQL)
	q := auditpgx.Wrap(newPool(t, db, func(c *pgxpool.Config) { c.MaxConns = 1 }))
	scans := map[string]func(ctx context.Context, sql string, dest any){
		"query row": func(ctx context.Context, sql string, dest any) { _ = q.QueryRow(ctx, sql).Scan(dest) },
		"rows that the caller does not close": func(ctx context.Context, sql string, dest any) {
			rows, err := q.Query(ctx, sql)
			if err != nil {
				t.Error(err)
				return
			}
			if rows.Next() {
				_ = rows.Scan(dest)
			}
		},
		"the native pool": func(ctx context.Context, sql string, dest any) { _ = q.Pool().QueryRow(ctx, sql).Scan(dest) },
	}
	for how, scan := range scans {
		for what, dest := range map[string]any{"typed nil": (*int)(nil), "a scanner": &bomb{}} {
			for i, sql := range []string{"SELECT 1", "INSERT INTO todo VALUES (gen_random_uuid(), 1) RETURNING 1"} {
				for said, ctx := range map[string]context.Context{"without context": t.Context(), "with a context": by(t.Context(), "ann"), "as a write": auditpgx.AsWrite(by(t.Context(), "ann"))} {
					if how == "rows that the caller does not close" && (i == 0 && said != "as a write" || said == "without context") {
						continue // pgx does not, either
					}
					_ = panics(func() { scan(ctx, sql, dest) })
					within, cancel := context.WithTimeout(t.Context(), time.Minute)
					if err := q.Ping(within); err != nil {
						t.Fatalf("%s, %s, %s, %s: the connection is gone: %v", how, what, sql, said, err)
					}
					cancel()
				}
			}
		}
	}
}
