package auditpgx_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/hindsight-go/audit"
	"github.com/hindsight-go/audit/auditpgx"
	"github.com/hindsight-go/audit/audittest"
)

// outcome is what a caller can see of a call.
func outcome(tag pgconn.CommandTag, err error) string {
	var pgErr *pgconn.PgError
	if errors.As(err, &pgErr) {
		return fmt.Sprintf("%s|%s|%s|position %d", tag, err, pgErr.Code, pgErr.Position)
	}
	return fmt.Sprintf("%s|%v", tag, err)
}

// TestStatementsFareAsWithoutUs runs each statement with and without a wrapper,
// from the same state, and compares all there is to see.
func TestStatementsFareAsWithoutUs(t *testing.T) {
	t.Parallel()
	db := audittest.NewDatabase(t)
	db.Exec(t, todoSQL+`;
		CREATE TABLE parent (id int PRIMARY KEY);
		CREATE TABLE child (id int REFERENCES parent DEFERRABLE INITIALLY DEFERRED);
		CREATE PROCEDURE commits() LANGUAGE plpgsql AS $$ BEGIN INSERT INTO todo VALUES ('p', 1); COMMIT; DELETE FROM todo; COMMIT; END $$;
		CREATE FUNCTION add(c text, i int) RETURNS int LANGUAGE sql AS $$ INSERT INTO todo VALUES (c, i) RETURNING id $$`)
	const returning = `INSERT INTO todo VALUES ($1, 1), ($1, 2)
		RETURNING id, cell, NULL, 1.50, '\xff00'::bytea, ARRAY[id, NULL], '(1,2)'::point, DATE '2024-02-29', '{"a": 1}'::jsonb, ROW(id, cell), 'x'::"char"`
	type statement struct {
		sql  string
		args []any
	}
	statements := []statement{
		{"INSERT INTO todo VALUES ('a', 1), ('a', 2)", nil},
		{"INSERT INTO todo VALUES ($1, 1), ($1, 2)", []any{"a"}},
		{"INSERT INTO todo VALUES ($1, 1), ($1, 1)", []any{"a"}},
		{"INSERT INTO todo VALUES ('a', 1), ('a', 1)", nil},
		{"INSERT INTO todo VALUES ($1, 1), ($1)", []any{"a"}},
		{"INSERT INTO todo VALUS ($1)", []any{"a"}},
		{"INSERT INTO todo VALUS (1)", nil},
		{"INSERT INTO todo VALUES ($1, 1) 'open", []any{"a"}},
		{"INSERT INTO nothing VALUES ($1)", []any{"a"}},
		{"INSERT INTO nothing VALUES (1)", nil},
		{"INSERT INTO todo VALUES ('a', 'x')", nil},
		{"INSERT INTO todo VALUES ('ä', $1::int)", []any{"x"}},
		{"INSERT INTO todo VALUES ($1, $2)", []any{"a"}},
		{"INSERT INTO todo VALUES ($1)", []any{struct{}{}}},
		{"INSERT INTO todo VALUES ('a', 1); UPDATE todo SET id = 7; SELECT 1", nil},
		{"INSERT INTO todo VALUES ('a', 1); SELECT 1/0", nil},
		{"BEGIN; INSERT INTO todo VALUES ('a', 1); COMMIT; INSERT INTO todo VALUES ('a', 1)", nil},
		{"INSERT INTO todo VALUES ('a', 1) -- comment", nil},
		{"/* comment ' */ (WITH x AS (DELETE FROM todo RETURNING 1) SELECT * FROM x)", nil},
		{"UPDATE todo SET id = id + $1", []any{1}},
		{"INSERT INTO child VALUES ($1)", []any{1}},
		{"INSERT INTO child VALUES (1)", nil},
		{"CALL commits()", nil},
		{"CALL commits()", []any{pgx.QueryExecModeExec}},
		{"DO $$ BEGIN INSERT INTO todo VALUES ('d', 1); COMMIT; END $$", nil},
		{"SELECT add('s', 1)", nil},
		{"SELECT add($1, 1)", []any{"s"}},
		{"VACUUM todo", nil},
		{"CREATE INDEX CONCURRENTLY ON todo (id)", nil},
		{"REINDEX TABLE CONCURRENTLY todo", nil},
		{"ALTER SYSTEM RESET work_mem", nil},
		{"CREATE TABLE more AS SELECT * FROM todo", nil},
		{"SELECT * INTO more FROM todo", nil},
		{"EXPLAIN (ANALYZE, COSTS OFF, TIMING OFF, SUMMARY OFF, BUFFERS OFF) INSERT INTO todo VALUES ('a', 1)", nil},
		{"SAVEPOINT x", nil},
		{"RELEASE SAVEPOINT audit_stamp", nil},
		{"TRUNCATE todo, parent CASCADE", nil},
		{"COPY todo TO '/nowhere/at/all'", nil},
		{"COPY todo FROM '/nowhere/at/all'", nil},
		{"prepared", []any{"a"}},
		{"preparedWithout", nil},
		{"preparedCall", nil},
		{"noSuchName", nil},
		{"", nil},
		{";", nil},
		{"INSERT INTO todo VALUES (@c, 1)", []any{pgx.NamedArgs{"c": "a"}}},
		{"INSERT INTO todo VALUES ('a', 1); DELETE FROM todo", []any{pgx.NamedArgs{}}},
		{"INSERT INTO todo VALUES (@c, 1)", []any{pgx.StrictNamedArgs{"d": "a"}}},
		{"INSERT INTO todo VALUES ($1, 1)", []any{pgx.QueryExecModeExec, "a"}},
		{"INSERT INTO todo VALUES ($1, 1), ($1, 1)", []any{pgx.QueryExecModeExec, "a"}},
		{"INSERT INTO todo VALUES ($1, 1), ($1, 1)", []any{pgx.QueryExecModeSimpleProtocol, "a"}},
		{returning, []any{"a"}},
		{returning, []any{pgx.QueryExecModeSimpleProtocol, "a"}},
		{returning, []any{pgx.QueryExecModeExec, pgx.QueryResultFormats{pgx.TextFormatCode}, "a"}},
		{"INSERT INTO todo SELECT $1, n FROM generate_series(1, 2000) n RETURNING 1 / (1500 - id)", []any{"a"}},
		{"INSERT INTO todo SELECT $1, n FROM generate_series(1, 2000) n RETURNING 1 / (1500 - id)", []any{pgx.QueryExecModeSimpleProtocol, "a"}},
		{"INSERT INTO todo VALUES ($1, 1)", []any{pgx.QueryExecMode(77), "a"}},
		{"INSERT INTO todo VALUES ('a', 1)", []any{pgx.QueryExecModeDescribeExec}},
	}
	ctx := by(t.Context(), "ann")
	for _, mode := range modes {
		config, err := pgx.ParseConfig(db.URL())
		if err != nil {
			t.Fatal(err)
		}
		config.DefaultQueryExecMode = mode
		conns := map[bool]*pgx.Conn{}
		connect := func(wrap bool) *pgx.Conn {
			if conn := conns[wrap]; conn != nil && !conn.IsClosed() {
				return conn
			}
			raw, err := pgx.ConnectConfig(t.Context(), config)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = raw.Close(context.Background()) })
			for name, sql := range map[string]string{"prepared": "INSERT INTO todo VALUES ($1, 1)", "preparedWithout": "DELETE FROM todo", "preparedCall": "CALL commits()"} {
				if _, err := raw.Prepare(t.Context(), name, sql); err != nil {
					t.Fatal(err)
				}
			}
			conns[wrap] = raw
			return raw
		}
		run := func(s statement, begin string, query, wrap bool) []string {
			raw := connect(wrap)
			if _, err := raw.Exec(t.Context(), "DELETE FROM todo; DELETE FROM parent; DELETE FROM child; DROP TABLE IF EXISTS more; DROP INDEX IF EXISTS todo_id_idx;"+begin); err != nil {
				t.Fatal(err)
			}
			var q auditpgx.Querier = raw
			if wrap {
				q = auditpgx.WrapConn(raw)
			}
			var seen []string
			if query {
				rows, _ := q.Query(ctx, s.sql, s.args...)
				var fields []string
				for rows.Next() {
					if fields == nil {
						for _, f := range rows.FieldDescriptions() {
							fields = append(fields, fmt.Sprint(f.Name, f.DataTypeOID, f.Format))
						}
					}
					values, err := rows.Values()
					seen = append(seen, fmt.Sprint(values, err))
				}
				rows.Close()
				seen = append(seen, fmt.Sprint(fields), outcome(rows.CommandTag(), rows.Err()))
			} else {
				seen = append(seen, outcome(q.Exec(ctx, s.sql, s.args...)))
			}
			seen = append(seen, string(raw.PgConn().TxStatus()))
			if begin != "" {
				tag, err := raw.Exec(t.Context(), "COMMIT")
				seen = append(seen, outcome(tag, err))
			}
			rows, _ := raw.Query(t.Context(), "SELECT cell || id FROM todo ORDER BY 1")
			left, err := pgx.CollectRows(rows, pgx.RowTo[string])
			return append(seen, fmt.Sprint(left, err))
		}
		for _, s := range statements {
			for _, begin := range []string{"", "BEGIN", "BEGIN READ ONLY"} {
				for _, query := range []bool{false, true} {
					plain, wrapped := run(s, begin, query, false), run(s, begin, query, true)
					if diff := cmp.Diff(plain, wrapped); diff != "" {
						t.Errorf("%s, %q (%v) after %q, query %v: %s", mode, s.sql, s.args, begin, query, diff)
					}
				}
			}
		}
	}
}

func TestRefusedStampsHurtNoWrite(t *testing.T) {
	t.Parallel()
	db := newRevocable(t)
	for _, mode := range modes {
		q := auditpgx.Config{Logger: slog.New(slog.DiscardHandler)}.Wrap(asApp(t, db, mode))
		q.SetPatience(0) // as if each were the first of its connection
		for _, w := range writers() {
			for _, s := range scenarios() {
				before := q.Stats()
				cell := mode.String() + w.name + s.name
				write := func(ctx context.Context, q auditpgx.Querier, id int) error { return w.write(ctx, q, cell, id) }
				if err := s.run(t.Context(), q, write); err != nil {
					t.Errorf("%s, %s, %s: %v", mode, w.name, s.name, err)
				}
				if stats := q.Stats(); s.name != "without context" && stats.Lost == before.Lost || stats.Stamped != 0 {
					t.Errorf("%s, %s, %s: %+v", mode, w.name, s.name, stats)
				}
				if n := audittest.Value[int](t, db.Database, "SELECT count(*) FROM todo WHERE cell = $1", cell); n != len(s.want) {
					t.Errorf("%s, %s, %s: %d rows, want %d", mode, w.name, s.name, n, len(s.want))
				}
			}
		}
		q.Close()
	}
}

func TestUnwritableMembersAreLeftOut(t *testing.T) {
	t.Parallel()
	a := audittest.New(t, audit.Config{}, todoSQL)
	config := auditpgx.Config{}
	db := config.Wrap(newPool(t, a.Database, nil))
	ctx := audit.WithContext(t.Context(), audit.Context{
		UserID: "ann", RequestID: "r1",
		Params: map[string]any{"file": make(chan int), "name": "x"},
		Extra:  map[string]any{"callback": func() {}, "plan": "pro"},
	})
	if _, err := db.Exec(ctx, insert, "c", 1); err != nil {
		t.Fatal(err)
	}
	ctx = audit.WithContext(t.Context(), audit.Context{UserID: make(chan int), RequestID: "r2"})
	if _, err := db.Exec(ctx, insert, "c", 2); err != nil {
		t.Fatal(err)
	}
	a.Sync(t)
	changes, err := a.Client.Changes().OldestFirst().List(t.Context())
	if err != nil || len(changes) != 2 {
		t.Fatal(changes, err)
	}
	want := []audit.Context{
		{UserID: "ann", RequestID: "r1", Params: map[string]any{"name": "x"}, Extra: map[string]any{"plan": "pro"}, Truncated: []string{"callback", "params.file"}},
		{RequestID: "r2", Truncated: []string{"userId"}},
	}
	if diff := cmp.Diff(want, []audit.Context{changes[0].Context, changes[1].Context}); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff(auditpgx.Stats{Stamped: 2, Cut: 2}, db.Stats()); diff != "" {
		t.Error(diff)
	}
}

func TestCancelledContextWritesNothing(t *testing.T) {
	t.Parallel()
	db := audittest.NewDatabase(t)
	db.Exec(t, todoSQL)
	pool := newPool(t, db, nil)
	q := auditpgx.Wrap(pool)
	for i, w := range writers() {
		ctx, cancel := context.WithCancel(by(t.Context(), "ann"))
		cancel()
		if err := w.write(ctx, q, "c", i); !errors.Is(err, context.Canceled) {
			t.Errorf("%s: %v", w.name, err)
		}
		tx, err := q.Begin(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if err := w.write(ctx, tx, "c", i); !errors.Is(err, context.Canceled) {
			t.Errorf("%s in a transaction: %v", w.name, err)
		}
		_ = tx.Rollback(t.Context())
	}
	if n := audittest.Value[int](t, db, "SELECT count(*) FROM todo"); n != 0 {
		t.Errorf("%d rows", n)
	}
	if pool.Stat().AcquiredConns() != 0 {
		t.Errorf("%d connections leaked", pool.Stat().AcquiredConns())
	}
}

func TestClosedTransactionIsClosed(t *testing.T) {
	t.Parallel()
	db := audittest.NewDatabase(t)
	db.Exec(t, todoSQL)
	ctx := by(t.Context(), "ann")
	for _, w := range writers() {
		tx, err := auditpgx.Wrap(newPool(t, db, nil)).Begin(ctx)
		if err != nil {
			t.Fatal(err)
		}
		if err := tx.Commit(ctx); err != nil {
			t.Fatal(err)
		}
		if err := w.write(ctx, tx, "c", 1); !errors.Is(err, pgx.ErrTxClosed) {
			t.Errorf("%s: %v", w.name, err)
		}
		if err := tx.Rollback(ctx); !errors.Is(err, pgx.ErrTxClosed) {
			t.Error(err)
		}
	}
}
