package auditpgx_test

import (
	"context"
	"fmt"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5"

	"github.com/hindsight-go/audit"
	"github.com/hindsight-go/audit/auditpgx"
	"github.com/hindsight-go/audit/audittest"
)

// connectMode connects to a database in a mode.
func connectMode(t *testing.T, db *audittest.Database, mode pgx.QueryExecMode, change func(*pgx.ConnConfig)) *pgx.Conn {
	t.Helper()
	config, err := pgx.ParseConfig(db.URL())
	if err != nil {
		t.Fatal(err)
	}
	config.DefaultQueryExecMode = mode
	if change != nil {
		change(config)
	}
	conn, err := pgx.ConnectConfig(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close(context.Background()) })
	return conn
}

// alterations change the type of a column behind statements that are known.
var alterations = []struct {
	name, from, to string
	before, after  any
}{
	{"an argument that no longer fits", "int", "bigint", 1, 1 << 40},
	{"a text out of range", "int", "bigint", "1", "1099511627776"},
	{"a text that is no number", "int", "text", "1", "one"},
	{"a precision that has grown", "numeric(3)", "numeric(9)", 1, 123456},
	{"another representation", "text", "int[]", "x", []int{1, 2}},
}

// TestColumnType_Changed runs a statement on a connection that knows it, before and
// after the type of its column changes.
func TestColumnType_Changed(t *testing.T) {
	t.Parallel()
	db := audittest.NewDatabase(t)
	ways := map[string]func(q auditpgx.Querier, ctx context.Context, table string, v any) error{
		"exec": func(q auditpgx.Querier, ctx context.Context, table string, v any) error {
			_, err := q.Exec(ctx, "INSERT INTO "+table+" VALUES ($1)", v)
			return err
		},
		"query": func(q auditpgx.Querier, ctx context.Context, table string, v any) error {
			rows, _ := q.Query(ctx, "INSERT INTO "+table+" VALUES ($1) RETURNING 1", v)
			_, err := pgx.CollectRows(rows, pgx.RowTo[int])
			return err
		},
	}
	n := 0
	for _, mode := range modes {
		for _, a := range alterations {
			for way, write := range ways {
				n++
				table := fmt.Sprint("tc", n)
				fares := func(q auditpgx.Querier) (list []string) {
					db.Exec(t, fmt.Sprintf("CREATE TABLE %s (n %s)", table, a.from))
					defer db.Exec(t, "DROP TABLE "+table)
					ctx := by(t.Context(), "ann")
					note := func(v any) { list = append(list, outcomeCode(write(q, ctx, table, v))) }
					note(a.before)
					note(a.before)
					db.Exec(t, fmt.Sprintf("DELETE FROM %s; ALTER TABLE %s ALTER n TYPE %s USING NULL", table, table, a.to))
					for range 3 {
						note(a.after)
					}
					return list
				}
				want := fares(connectMode(t, db, mode, nil))
				got := fares(auditpgx.WrapConn(connectMode(t, db, mode, nil)))
				if diff := cmp.Diff(want, got); diff != "" {
					t.Errorf("%s, %s, %s: %s", mode, way, a.name, diff)
				}
				if want[4] != "ok" && mode != pgx.QueryExecModeExec && mode != pgx.QueryExecModeSimpleProtocol {
					t.Errorf("%s, %s, %s: it fails bare: %v", mode, way, a.name, want)
				}
			}
		}
	}
}

// outcomeCode is whether a call went well, or how it failed.
func outcomeCode(err error) string {
	switch {
	case err == nil:
		return "ok"
	case code(err) != "":
		return code(err)
	}
	return "failed"
}

// TestColumnType_ChangedInATransaction looks at the statement behind a savepoint that
// took the error.
func TestColumnType_ChangedInATransaction(t *testing.T) {
	t.Parallel()
	a := audittest.New(t, audit.Config{}, "CREATE TABLE tc (n int)")
	conn := auditpgx.WrapConn(connectMode(t, a.Database, pgx.QueryExecModeCacheStatement, nil))
	ctx := by(t.Context(), "ann")
	put := func(q auditpgx.Querier, v any) error {
		_, err := q.Exec(ctx, "INSERT INTO tc VALUES ($1)", v)
		return err
	}
	if err := put(conn, 1); err != nil {
		t.Fatal(err)
	}
	a.Exec(t, "ALTER TABLE tc ALTER n TYPE bigint")
	err := pgx.BeginFunc(ctx, conn, func(tx pgx.Tx) error {
		if err := pgx.BeginFunc(ctx, tx, func(tx pgx.Tx) error { return put(tx, 1<<40) }); err == nil {
			t.Error("what pgx knows of the statement was not used")
		}
		return put(tx, 1<<40)
	})
	if err != nil {
		t.Error(err)
	}
	if n := audittest.Value[int](t, a.Database, "SELECT count(*) FROM tc"); n != 2 {
		t.Errorf("%d rows", n)
	}
}
