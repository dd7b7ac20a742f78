package integration_test

import (
	"context"
	"errors"
	"testing"

	"github.com/jmoiron/sqlx"

	"github.com/hindsight-go/audit"
	"github.com/hindsight-go/audit/auditsql"
	"github.com/hindsight-go/audit/audittest"
)

type sqlxTodo struct {
	ID   int64
	Task string
	Done bool
}

// TestSQLX writes in the ways of sqlx, over both drivers.
func TestSQLX(t *testing.T) {
	t.Parallel()
	for _, driver := range bothDrivers() {
		t.Run(driver.name, func(t *testing.T) {
			t.Parallel()
			a := audittest.New(t, audit.Config{}, schemaSQL)
			tell(t, a, sqlx.NewDb(driver.open(t, a.URL(), ignore), "postgres"), append(sqlxWrites(), sqlxTransactions()...))
		})
	}
}

func sqlxWrites() []step[*sqlx.DB] {
	return []step[*sqlx.DB]{
		{"create", func(ctx context.Context, db *sqlx.DB) error {
			_, err := db.NamedExecContext(by(ctx, "ann"), "INSERT INTO users (name) VALUES (:name)", map[string]any{"name": "Ann"})
			_, without := db.ExecContext(ctx, "INSERT INTO users (name) VALUES ($1)", "Bob")
			return errors.Join(err, without)
		}, []string{"CREATE users[1] Ann by ann", "CREATE users[2] Bob"}},
		{"bulk create", func(ctx context.Context, db *sqlx.DB) error {
			_, err := db.NamedExecContext(by(ctx, "bob"), "INSERT INTO todos (task) VALUES (:task)", []sqlxTodo{{Task: "Sleep"}, {Task: "Eat"}, {Task: "Code"}})
			return err
		}, []string{"CREATE todos[1] Sleep by bob", "CREATE todos[2] Eat by bob", "CREATE todos[3] Code by bob"}},
		{"named query", func(ctx context.Context, db *sqlx.DB) error {
			rows, err := db.NamedQueryContext(by(ctx, "ann"), "UPDATE todos SET done = :done WHERE id = :id RETURNING id, task, done", sqlxTodo{ID: 1, Done: true})
			if err != nil {
				return err
			}
			defer func() { _ = rows.Close() }()
			var todo sqlxTodo
			for rows.Next() {
				err = errors.Join(err, rows.StructScan(&todo))
			}
			if todo != (sqlxTodo{1, "Sleep", true}) {
				err = errors.Join(err, errors.New("another todo"))
			}
			return errors.Join(err, rows.Err())
		}, []string{"UPDATE todos[1] done false -> true by ann"}},
		{"select with a write in it", func(ctx context.Context, db *sqlx.DB) error {
			var ids []int64
			return db.SelectContext(by(ctx, "bob"), &ids, "WITH gone AS (DELETE FROM todos WHERE id = $1 RETURNING id) SELECT id FROM gone", 3)
		}, []string{"DELETE todos[3] Code by bob"}},
		{"list of values", func(ctx context.Context, db *sqlx.DB) error {
			query, args, err := sqlx.In("UPDATE todos SET done = NOT done WHERE id IN (?)", []int{1, 2})
			if err != nil {
				return err
			}
			_, err = db.ExecContext(by(ctx, "cat"), db.Rebind(query), args...)
			return err
		}, []string{"UPDATE todos[1] done true -> false by cat", "UPDATE todos[2] done false -> true by cat"}},
		{"upsert", func(ctx context.Context, db *sqlx.DB) error {
			_, err := db.NamedExecContext(by(ctx, "dan"), "INSERT INTO todos (task) VALUES (:task) ON CONFLICT (cell, task) DO UPDATE SET done = false", []sqlxTodo{{Task: "Eat"}, {Task: "Rest"}})
			return err
		}, []string{"UPDATE todos[2] done true -> false by dan", "CREATE todos[5] Rest by dan"}},
	}
}

func sqlxTransactions() []step[*sqlx.DB] {
	return []step[*sqlx.DB]{
		{"prepared for many transactions", func(ctx context.Context, db *sqlx.DB) error {
			stmt, err := db.PrepareNamedContext(ctx, "UPDATE todos SET done = :done WHERE id = :id")
			if err != nil {
				return err
			}
			defer func() { _ = stmt.Close() }()
			for _, user := range []string{"ann", "bob"} {
				tx, begun := db.BeginTxx(ctx, nil)
				if begun != nil {
					return begun
				}
				inTx := tx.NamedStmtContext(ctx, stmt) //nolint:sqlclosecheck // ends with the transaction
				_, done := inTx.ExecContext(by(ctx, user), sqlxTodo{ID: 1, Done: user == "ann"})
				err = errors.Join(err, done, tx.Commit())
			}
			return err
		}, []string{"UPDATE todos[1] done false -> true by ann", "UPDATE todos[1] done true -> false by bob"}},
		{"a connection of its own", func(ctx context.Context, db *sqlx.DB) error {
			conn, err := db.Connx(ctx)
			if err != nil {
				return err
			}
			_, first := conn.ExecContext(by(ctx, "cat"), "DELETE FROM todos WHERE id = 5")
			_, second := conn.ExecContext(ctx, "DELETE FROM todos WHERE id = 2")
			return errors.Join(first, second, conn.Close())
		}, []string{"DELETE todos[5] Rest by cat", "DELETE todos[2] Eat"}},
		{"select of a function that writes", func(ctx context.Context, db *sqlx.DB) error {
			_, err := db.ExecContext(ctx, "CREATE FUNCTION finish(id bigint) RETURNS bigint LANGUAGE sql AS 'UPDATE public.todos SET done = NOT done WHERE id = $1 RETURNING id'")
			var id int64
			return errors.Join(err,
				db.GetContext(auditsql.AsWrite(by(ctx, "ann")), &id, "SELECT finish($1)", 1),
				db.GetContext(by(ctx, "bob"), &id, "SELECT finish($1)", 1)) // looks like a read
		}, []string{"UPDATE todos[1] done false -> true by ann", "UPDATE todos[1] done true -> false"}},
		{"several statements in one string", func(ctx context.Context, db *sqlx.DB) error {
			_, err := db.ExecContext(by(ctx, "dan"), "INSERT INTO users (name) VALUES ('Cat'); UPDATE todos SET done = true; DELETE FROM users WHERE id = 2")
			return err
		}, []string{"CREATE users[3] Cat by dan", "UPDATE todos[1] done false -> true by dan", "DELETE users[2] Bob by dan"}},
	}
}
