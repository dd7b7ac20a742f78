package audit_test

import (
	"context"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// escapesWith adds to the escapes those that take more than one statement.
func escapesWith(ctx context.Context) []question {
	return append(escapes,
		question{name: "set_config before", want: 3, ask: func(_ context.Context, tx pgx.Tx) (int64, error) {
			if _, err := scan(ctx, tx, countTodo); err != nil {
				return 0, err
			}
			if _, err := tx.Exec(ctx, "SELECT set_config('search_path', 'public, pg_temp', true)"); err != nil {
				return 0, err
			}
			return scan(ctx, tx, countTodo)
		}},
		question{name: "update of pg_settings", want: 3, ask: func(_ context.Context, tx pgx.Tx) (int64, error) {
			if _, err := scan(ctx, tx, countTodo); err != nil {
				return 0, err
			}
			if _, err := tx.Exec(ctx, "UPDATE pg_catalog.pg_settings SET setting = 'public, pg_temp' WHERE name = 'search_path'"); err != nil {
				return 0, err
			}
			return scan(ctx, tx, countTodo)
		}},
		question{name: "SET search_path", want: 3, ask: func(_ context.Context, tx pgx.Tx) (int64, error) {
			if _, err := tx.Exec(ctx, "SET LOCAL search_path = billing, pg_temp"); err != nil {
				return 0, err
			}
			return scan(ctx, tx, countTodo)
		}},
		question{name: "DISCARD", want: 3, ask: func(_ context.Context, tx pgx.Tx) (int64, error) {
			if _, err := tx.Exec(ctx, "DISCARD TEMP"); err != nil {
				return 0, err
			}
			return scan(ctx, tx, countTodo)
		}},
		question{name: "ROLLBACK as a statement", want: 3, ask: func(_ context.Context, tx pgx.Tx) (int64, error) {
			if _, err := tx.Exec(ctx, "ROLLBACK"); err != nil {
				return 0, err
			}
			return scan(ctx, tx, countTodo)
		}},
		question{name: "COPY TO", want: 3, ask: func(_ context.Context, tx pgx.Tx) (int64, error) {
			tag, err := tx.Exec(ctx, "COPY public.todo TO STDOUT")
			return tag.RowsAffected(), err
		}},
		question{name: "CopyFrom", want: 0, ask: func(_ context.Context, tx pgx.Tx) (int64, error) {
			return tx.CopyFrom(ctx, pgx.Identifier{"todo"}, []string{"id"}, pgx.CopyFromRows(nil))
		}},
		question{name: "cursor", want: 3, ask: func(_ context.Context, tx pgx.Tx) (int64, error) {
			if _, err := tx.Exec(ctx, "DECLARE c CURSOR FOR SELECT count(*) FROM public.todo"); err != nil {
				return 0, err
			}
			return scan(ctx, tx, "FETCH c")
		}},
		question{name: "prepared statement of SQL", want: 3, ask: func(_ context.Context, tx pgx.Tx) (int64, error) {
			if _, err := tx.Exec(ctx, "PREPARE p AS SELECT count(*) FROM public.todo"); err != nil {
				return 0, err
			}
			return scan(ctx, tx, "EXECUTE p")
		}},
		question{name: "CREATE TEMPORARY TABLE", want: 3, ask: func(_ context.Context, tx pgx.Tx) (int64, error) {
			if _, err := tx.Exec(ctx, "CREATE TEMPORARY TABLE mine AS SELECT * FROM public.todo"); err != nil {
				return 0, err
			}
			return scan(ctx, tx, "SELECT count(*) FROM mine")
		}},
		question{name: "SELECT INTO", want: 3, ask: func(_ context.Context, tx pgx.Tx) (int64, error) {
			if _, err := tx.Exec(ctx, "SELECT * INTO TEMPORARY mine FROM public.todo"); err != nil {
				return 0, err
			}
			return scan(ctx, tx, "SELECT count(*) FROM mine")
		}},
		question{name: "DO", want: 0, ask: func(_ context.Context, tx pgx.Tx) (int64, error) {
			_, err := tx.Exec(ctx, "DO 'BEGIN PERFORM set_config(''search_path'', ''public, pg_temp'', true); END'")
			if err != nil {
				return 0, err
			}
			n, err := scan(ctx, tx, countTodo)
			return n - 3, err
		}},
		question{name: "prepared", want: 3, must: true, ask: func(_ context.Context, tx pgx.Tx) (int64, error) {
			if _, err := tx.Prepare(ctx, "mine", countTodo); err != nil {
				return 0, err
			}
			return scan(ctx, tx, "mine")
		}},
		question{name: "prepared, qualified", want: 3, ask: func(_ context.Context, tx pgx.Tx) (int64, error) {
			if _, err := tx.Prepare(ctx, "other", "SELECT count(*) FROM public.todo"); err != nil {
				return 0, err
			}
			return scan(ctx, tx, "other")
		}},
		question{name: "batch", want: 3, must: true, ask: func(_ context.Context, tx pgx.Tx) (n int64, err error) {
			var b pgx.Batch
			b.Queue("SELECT count(*) FROM owner WHERE id = $1", 1)
			b.Queue("SELECT count(*) FROM todo WHERE id > @least", pgx.NamedArgs{"least": 0}).QueryRow(func(row pgx.Row) error { return row.Scan(&n) })
			return n, tx.SendBatch(ctx, &b).Close()
		}},
		question{name: "batch, qualified", want: 3, ask: func(_ context.Context, tx pgx.Tx) (n int64, err error) {
			var b pgx.Batch
			b.Queue(countTodo)
			b.Queue("SELECT count(*) FROM public.todo").QueryRow(func(row pgx.Row) error { return row.Scan(&n) })
			return n, tx.SendBatch(ctx, &b).Close()
		}},
		question{name: "named arguments", want: 3, must: true, ask: func(_ context.Context, tx pgx.Tx) (int64, error) {
			return scan(ctx, tx, "SELECT count(*) FROM todo WHERE id > @least", pgx.NamedArgs{"least": 0})
		}},
		question{name: "named arguments behind a mode", want: 3, must: true, ask: func(_ context.Context, tx pgx.Tx) (int64, error) {
			return scan(ctx, tx, "SELECT count(*) FROM todo WHERE id > @least", pgx.QueryExecModeExec, pgx.NamedArgs{"least": 0})
		}},
		question{name: "simple protocol", want: 3, must: true, ask: func(_ context.Context, tx pgx.Tx) (int64, error) {
			return scan(ctx, tx, "SELECT count(*) FROM todo WHERE id > $1", pgx.QueryExecModeSimpleProtocol, 0)
		}},
		question{name: "nested transaction", want: 3, must: true, ask: func(_ context.Context, tx pgx.Tx) (n int64, err error) {
			err = pgx.BeginFunc(ctx, tx, func(tx pgx.Tx) error {
				n, err = scan(ctx, tx, countTodo)
				return err
			})
			return n, err
		}},
		question{name: "nested transaction, rolled back", want: 3, must: true, ask: func(_ context.Context, tx pgx.Tx) (int64, error) {
			nested, err := tx.Begin(ctx)
			if err != nil {
				return 0, err
			}
			if n, err := scan(ctx, nested, countTodo); err != nil || n != 3 {
				return n, err
			}
			if err := nested.Rollback(ctx); err != nil {
				return 0, err
			}
			return scan(ctx, tx, countTodo)
		}},
		question{name: "nested transactions, the inner one kept and the outer rolled back", want: 3, must: true, ask: func(_ context.Context, tx pgx.Tx) (int64, error) {
			outer, err := tx.Begin(ctx)
			if err != nil {
				return 0, err
			}
			inner, err := outer.Begin(ctx)
			if err != nil {
				return 0, err
			}
			if n, err := scan(ctx, inner, countTodo); err != nil || n != 3 {
				return n, err
			}
			if err := errors.Join(inner.Commit(ctx), outer.Rollback(ctx)); err != nil {
				return 0, err
			}
			return scan(ctx, tx, countTodo)
		}},
		question{name: "after an error in a nested transaction", want: 3, must: true, ask: func(_ context.Context, tx pgx.Tx) (int64, error) {
			err := pgx.BeginFunc(ctx, tx, func(tx pgx.Tx) error {
				if _, err := scan(ctx, tx, countTodo); err != nil {
					return err
				}
				_, err := tx.Exec(ctx, "SELECT 1 / 0")
				return err
			})
			var divided *pgconn.PgError
			if !errors.As(err, &divided) || divided.Code != "22012" {
				return 0, fmt.Errorf("division by zero: %w", err)
			}
			return scan(ctx, tx, countTodo)
		}},
		question{name: "after ROLLBACK TO as a statement", want: 3, ask: func(_ context.Context, tx pgx.Tx) (int64, error) {
			if _, err := tx.Exec(ctx, "SAVEPOINT s"); err != nil {
				return 0, err
			}
			if n, err := scan(ctx, tx, countTodo); err != nil {
				return n, err
			}
			if _, err := tx.Exec(ctx, "ROLLBACK TO s"); err != nil {
				return 0, err
			}
			return scan(ctx, tx, countTodo)
		}},
		question{name: "after a refused query", want: 3, must: true, ask: func(_ context.Context, tx pgx.Tx) (int64, error) {
			for _, refused := range []string{
				"SELECT f_sql_qualified()", "SELECT 1; SELECT 2", "SET LOCAL search_path = public", "DELETE FROM todo",
				"INSERT INTO owner VALUES (1000, 'x')", "SELECT count(*) FROM settings", "LOCK TABLE todo", "SELECT f_execute()", "COPY todo TO STDOUT",
			} {
				if _, err := tx.Exec(ctx, refused); err == nil {
					return 0, fmt.Errorf("%s was not refused", refused)
				}
				if n, err := scan(ctx, tx, countTodo); err != nil || n != 3 {
					return n, fmt.Errorf("after %s: %w", refused, err)
				}
			}
			return scan(ctx, tx, countTodo)
		}},
		question{name: "the connection itself", want: 3, ask: func(_ context.Context, tx pgx.Tx) (int64, error) {
			conn := tx.Conn()
			if conn == nil {
				return 0, errors.New("there is none")
			}
			return scan(ctx, conn, countTodo)
		}},
		question{name: "a commit", want: 3, ask: func(_ context.Context, tx pgx.Tx) (int64, error) {
			if err := tx.Commit(ctx); err != nil {
				return 0, err
			}
			return scan(ctx, tx, countTodo)
		}},
		question{name: "a rollback", want: 3, must: true, ask: func(_ context.Context, tx pgx.Tx) (int64, error) {
			// The code of others ends what it takes for its own transaction.
			_ = tx.Rollback(ctx)
			return scan(ctx, tx, countTodo)
		}},
		question{name: "table twice in one query, filled by a function only", want: 6, must: true, ask: func(_ context.Context, tx pgx.Tx) (int64, error) {
			return scan(ctx, tx, "SELECT f_plpgsql() + (SELECT f_plpgsql())")
		}},
	)
}
