package integration_test

import (
	"context"
	"database/sql"
	sqldriver "database/sql/driver"
	"errors"
	"fmt"
	"sync/atomic"
	"testing"

	"github.com/jmoiron/sqlx"
)

// subject is what the matrix tests.
type subject struct {
	name    string
	session session
}

func subjects(t *testing.T, d driver, url string) []subject {
	t.Helper()
	db := d.open(t, url, ignore)
	var all []subject
	for _, list := range [][]subject{
		sqlSubjects(t, db), sqlxSubjects(db), gormSubjects(t, db), entSubjects(db), bunSubjects(db),
	} {
		all = append(all, list...)
	}
	return all
}

// savepoint runs fn between savepoints made in SQL, for libraries without any.
func savepoint(exec func(sql string) error, fn func() error) error {
	name := fmt.Sprintf("s%d", savepoints.Add(1))
	if err := exec("SAVEPOINT " + name); err != nil {
		return err
	}
	if err := fn(); err != nil {
		return errors.Join(err, exec("ROLLBACK TO SAVEPOINT "+name))
	}
	return exec("RELEASE SAVEPOINT " + name)
}

var savepoints atomic.Int64

// sqlQuerier is what a pool, a connection and a transaction of database/sql have
// in common.
type sqlQuerier interface {
	ExecContext(ctx context.Context, query string, args ...any) (sql.Result, error)
	QueryContext(ctx context.Context, query string, args ...any) (*sql.Rows, error)
	QueryRowContext(ctx context.Context, query string, args ...any) *sql.Row
	PrepareContext(ctx context.Context, query string) (*sql.Stmt, error)
}

type sqlBeginner interface {
	BeginTx(ctx context.Context, opts *sql.TxOptions) (*sql.Tx, error)
}

// sqlSession is database/sql with a way of writing.
type sqlSession struct {
	q   sqlQuerier
	way func(ctx context.Context, q sqlQuerier, cell, task string) error
}

func (s sqlSession) write(ctx context.Context, cell, task string) error {
	return s.way(ctx, s.q, cell, task)
}

func (s sqlSession) inTx(ctx context.Context, fn func(session) error) error {
	pool, ok := s.q.(sqlBeginner)
	if !ok {
		return savepoint(func(sql string) error { _, err := s.q.ExecContext(ctx, sql); return err }, func() error { return fn(s) })
	}
	tx, err := pool.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	if err := fn(sqlSession{tx, s.way}); err != nil {
		return errors.Join(err, ended(tx.Rollback()))
	}
	return tx.Commit()
}

// ended lets pass that a transaction was over before it was rolled back, since
// its context was cancelled.
func ended(err error) error {
	if errors.Is(err, sql.ErrTxDone) {
		return nil
	}
	return err
}

const (
	insertSQL    = "INSERT INTO todos (cell, task) VALUES ($1, $2)"
	returningSQL = insertSQL + " RETURNING task"
)

func oneRow(result sql.Result, err error) error {
	if err != nil {
		return err
	}
	n, err := result.RowsAffected()
	if err == nil && n != 1 {
		return fmt.Errorf("%d rows affected", n)
	}
	return err
}

func scanTask(row *sql.Row, task string) error {
	var got string
	err := row.Scan(&got)
	if err == nil && got != task {
		return fmt.Errorf("returned %q", got)
	}
	return err
}

func sqlSubjects(t *testing.T, db *sql.DB) []subject {
	t.Helper()
	stmt, err := db.PrepareContext(t.Context(), insertSQL)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = stmt.Close() })
	list := []subject{
		{"database/sql, exec", sqlSession{db, func(ctx context.Context, q sqlQuerier, cell, task string) error {
			return oneRow(q.ExecContext(ctx, insertSQL, cell, task))
		}}},
		{"database/sql, exec without arguments", sqlSession{db, func(ctx context.Context, q sqlQuerier, cell, task string) error {
			return oneRow(q.ExecContext(ctx, fmt.Sprintf("INSERT INTO todos (cell, task) VALUES ('%s', '%s')", cell, task)))
		}}},
		{"database/sql, query row", sqlSession{db, func(ctx context.Context, q sqlQuerier, cell, task string) error {
			return scanTask(q.QueryRowContext(ctx, returningSQL, cell, task), task)
		}}},
		{"database/sql, query", sqlSession{db, queryWay}},
		{"database/sql, prepared each time", sqlSession{db, preparedWay}},
		{"database/sql, prepared once", sqlSession{db, func(ctx context.Context, q sqlQuerier, cell, task string) error {
			s := stmt
			if tx, ok := q.(*sql.Tx); ok {
				s = tx.StmtContext(ctx, stmt) //nolint:sqlclosecheck // ends with the transaction
			}
			return oneRow(s.ExecContext(ctx, cell, task))
		}}},
	}
	list = append(list, subject{"database/sql, transactions by hand", handSession{db: db}})
	if isPQ(db) {
		list = append(list, subject{"database/sql, copy in", sqlSession{db, copyWay}})
	}
	return list
}

func queryWay(ctx context.Context, q sqlQuerier, cell, task string) error {
	rows, err := q.QueryContext(ctx, returningSQL, cell, task)
	if err != nil {
		return err
	}
	defer func() { _ = rows.Close() }()
	n := 0
	for rows.Next() {
		n++
	}
	if err := rows.Err(); err != nil {
		return err
	}
	if columns, err := rows.Columns(); n != 1 && err == nil {
		return fmt.Errorf("%d rows of %v", n, columns)
	}
	return rows.Close()
}

func preparedWay(ctx context.Context, q sqlQuerier, cell, task string) error {
	stmt, err := q.PrepareContext(ctx, returningSQL)
	if err != nil {
		return err
	}
	defer func() { _ = stmt.Close() }()
	return scanTask(stmt.QueryRowContext(ctx, cell, task), task)
}

// handSession begins and ends transactions in SQL, on a connection of its own.
type handSession struct {
	db   *sql.DB
	conn *sql.Conn // nil outside a transaction
}

func (s handSession) write(ctx context.Context, cell, task string) error {
	if s.conn == nil {
		return oneRow(s.db.ExecContext(ctx, insertSQL, cell, task))
	}
	return oneRow(s.conn.ExecContext(ctx, insertSQL, cell, task))
}

func (s handSession) inTx(ctx context.Context, fn func(session) error) (err error) {
	if s.conn != nil {
		return savepoint(func(sql string) error { _, err := s.conn.ExecContext(ctx, sql); return err }, func() error { return fn(s) })
	}
	conn, err := s.db.Conn(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, conn.Close()) }()
	if _, err := conn.ExecContext(ctx, "BEGIN; CREATE TEMPORARY TABLE hand () ON COMMIT DROP"); err != nil {
		return err
	}
	end := "COMMIT"
	if err = fn(handSession{s.db, conn}); err != nil {
		end = "ROLLBACK"
	}
	_, ended := conn.ExecContext(context.WithoutCancel(ctx), end)
	if errors.Is(err, context.Canceled) && errors.Is(ended, sqldriver.ErrBadConn) {
		return err
	}
	return errors.Join(err, ended)
}

// copyWay is COPY by lib/pq, which wants a transaction.
func copyWay(ctx context.Context, q sqlQuerier, cell, task string) (err error) {
	tx, ok := q.(*sql.Tx)
	if !ok {
		if tx, err = q.(sqlBeginner).BeginTx(ctx, nil); err != nil {
			return err
		}
		defer func() {
			if err != nil {
				err = errors.Join(err, ended(tx.Rollback()))
				return
			}
			err = tx.Commit()
		}()
	}
	stmt, err := tx.PrepareContext(ctx, "COPY todos (cell, task) FROM STDIN")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, stmt.Close()) }()
	if _, err := stmt.ExecContext(ctx, cell, task); err != nil {
		return err
	}
	_, err = stmt.ExecContext(ctx)
	return err
}

// sqlxSession is sqlx with a way of writing.
type sqlxSession struct {
	q   sqlx.ExtContext
	way func(ctx context.Context, q sqlx.ExtContext, todo map[string]any) error
}

func (s sqlxSession) write(ctx context.Context, cell, task string) error {
	return s.way(ctx, s.q, map[string]any{"cell": cell, "task": task})
}

func (s sqlxSession) inTx(ctx context.Context, fn func(session) error) error {
	db, ok := s.q.(*sqlx.DB)
	if !ok {
		return savepoint(func(sql string) error { _, err := s.q.ExecContext(ctx, sql); return err }, func() error { return fn(s) })
	}
	tx, err := db.BeginTxx(ctx, nil)
	if err != nil {
		return err
	}
	if err := fn(sqlxSession{tx, s.way}); err != nil {
		return errors.Join(err, ended(tx.Rollback()))
	}
	return tx.Commit()
}

const namedSQL = "INSERT INTO todos (cell, task) VALUES (:cell, :task)"

func sqlxSubjects(db *sql.DB) []subject {
	x := sqlx.NewDb(db, "postgres") // the name says how parameters are written
	return []subject{
		{"sqlx, named", sqlxSession{x, func(ctx context.Context, q sqlx.ExtContext, todo map[string]any) error {
			return oneRow(sqlx.NamedExecContext(ctx, q, namedSQL, todo))
		}}},
		{"sqlx, get", sqlxSession{x, func(ctx context.Context, q sqlx.ExtContext, todo map[string]any) error {
			var task string
			return sqlx.GetContext(ctx, q, &task, returningSQL, todo["cell"], todo["task"])
		}}},
		{"sqlx, prepared", sqlxSession{x, func(ctx context.Context, q sqlx.ExtContext, todo map[string]any) error {
			stmt, err := q.(interface {
				PrepareNamedContext(ctx context.Context, query string) (*sqlx.NamedStmt, error)
			}).PrepareNamedContext(ctx, namedSQL)
			if err != nil {
				return err
			}
			defer func() { _ = stmt.Close() }()
			return oneRow(stmt.ExecContext(ctx, todo))
		}}},
	}
}
