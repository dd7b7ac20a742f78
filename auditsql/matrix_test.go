package auditsql_test

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/hindsight-go/audit"
	"github.com/hindsight-go/audit/audittest"
)

// querier is what *sql.DB, *sql.Conn and *sql.Tx have in common.
type querier interface {
	ExecContext(ctx context.Context, query string, args ...any) (sql.Result, error)
	QueryContext(ctx context.Context, query string, args ...any) (*sql.Rows, error)
	QueryRowContext(ctx context.Context, query string, args ...any) *sql.Row
	PrepareContext(ctx context.Context, query string) (*sql.Stmt, error)
}

// writer writes one row in one of the ways that database/sql has.
type writer struct {
	name  string
	write func(ctx context.Context, q querier, cell string, id int) error
}

func oneRow(result sql.Result, err error) error {
	if err != nil {
		return err
	}
	if n, err := result.RowsAffected(); err != nil || n != 1 {
		return fmt.Errorf("%d rows affected: %w", n, err)
	}
	return nil
}

func theRow(rows *sql.Rows, err error, id int) error {
	if err != nil {
		return err
	}
	defer func() { _ = rows.Close() }()
	n := 0
	for rows.Next() {
		var got int
		if err := rows.Scan(&got); err != nil || got != id {
			return fmt.Errorf("got %d: %w", got, err)
		}
		n++
	}
	if err := rows.Err(); err != nil || n != 1 {
		return fmt.Errorf("%d rows: %w", n, err)
	}
	return rows.Close()
}

func theValue(row *sql.Row, id int) error {
	var got int
	if err := row.Scan(&got); err != nil {
		return err
	}
	if got != id {
		return fmt.Errorf("got %d", got)
	}
	return nil
}

// prepared prepares a statement for the time of a call.
func prepared(ctx context.Context, q querier, query string, use func(*sql.Stmt) error) (err error) {
	stmt, err := q.PrepareContext(ctx, query)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, stmt.Close()) }()
	return use(stmt)
}

var writers = []writer{
	{"exec", func(ctx context.Context, q querier, cell string, id int) error {
		return oneRow(q.ExecContext(ctx, insert, cell, id))
	}},
	{"exec without arguments", func(ctx context.Context, q querier, cell string, id int) error {
		return oneRow(q.ExecContext(ctx, fmt.Sprintf("INSERT INTO todo VALUES ('%s', %d, 'x')", cell, id)))
	}},
	{"query", func(ctx context.Context, q querier, cell string, id int) error {
		rows, err := q.QueryContext(ctx, insert+" RETURNING id", cell, id)
		return theRow(rows, err, id)
	}},
	{"query without arguments", func(ctx context.Context, q querier, cell string, id int) error {
		rows, err := q.QueryContext(ctx, fmt.Sprintf("INSERT INTO todo VALUES ('%s', %d, 'x') RETURNING id", cell, id))
		return theRow(rows, err, id)
	}},
	{"query row", func(ctx context.Context, q querier, cell string, id int) error {
		return theValue(q.QueryRowContext(ctx, insert+" RETURNING id", cell, id), id)
	}},
	{"query closed early", func(ctx context.Context, q querier, cell string, id int) error {
		rows, err := q.QueryContext(ctx, "WITH x AS ("+insert+" RETURNING id) SELECT id FROM x, generate_series(1, 3)", cell, id)
		if err != nil {
			return err
		}
		rows.Next()
		return rows.Close()
	}},
	{"query without rows", func(ctx context.Context, q querier, cell string, id int) error {
		rows, err := q.QueryContext(ctx, insert, cell, id)
		if err != nil {
			return err
		}
		if rows.Next() {
			return errors.New("a row")
		}
		return errors.Join(rows.Err(), rows.Close())
	}},
	{"prepared exec", func(ctx context.Context, q querier, cell string, id int) error {
		return prepared(ctx, q, insert, func(stmt *sql.Stmt) error { return oneRow(stmt.ExecContext(ctx, cell, id)) })
	}},
	{"prepared exec without arguments", func(ctx context.Context, q querier, cell string, id int) error {
		return prepared(ctx, q, fmt.Sprintf("INSERT INTO todo VALUES ('%s', %d, 'x')", cell, id), func(stmt *sql.Stmt) error { return oneRow(stmt.ExecContext(ctx)) })
	}},
	{"prepared query", func(ctx context.Context, q querier, cell string, id int) error {
		return prepared(ctx, q, insert+" RETURNING id", func(stmt *sql.Stmt) error {
			rows, err := stmt.QueryContext(ctx, cell, id)
			return theRow(rows, err, id)
		})
	}},
	{"prepared query row", func(ctx context.Context, q querier, cell string, id int) error {
		return prepared(ctx, q, insert+" RETURNING id", func(stmt *sql.Stmt) error { return theValue(stmt.QueryRowContext(ctx, cell, id), id) })
	}},
}

type writing = func(ctx context.Context, q querier, id int) error

// scenario is a course that writes can take.
type scenario struct {
	name string
	run  func(ctx context.Context, db *sql.DB, write writing) error
	want []string // the rows and who made them
}

// in runs writes with the ids from a number on; each is by the user that a
// letter names, or by none.
func in(ctx context.Context, q querier, write writing, users string, from int) error {
	for i, user := range users {
		c := ctx
		if user != '-' {
			c = by(ctx, string(user))
		}
		if err := write(c, q, from+i); err != nil {
			return err
		}
	}
	return nil
}

var errRollback = errors.New("roll back")

// beginner is what begins transactions.
type beginner interface {
	BeginTx(ctx context.Context, options *sql.TxOptions) (*sql.Tx, error)
}

// transact runs do in a transaction, and rolls it back if do wants that.
func transact(ctx context.Context, b beginner, do func(*sql.Tx) error) error {
	tx, err := b.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	if err := do(tx); err != nil {
		rollbackErr := tx.Rollback()
		if errors.Is(err, errRollback) {
			return rollbackErr
		}
		return errors.Join(err, rollbackErr)
	}
	return tx.Commit()
}

// run runs statements.
func run(ctx context.Context, q querier, statements ...string) error {
	for _, statement := range statements {
		if _, err := q.ExecContext(ctx, statement); err != nil {
			return fmt.Errorf("%s: %w", statement, err)
		}
	}
	return nil
}

// onConn runs do on a connection.
func onConn(ctx context.Context, db *sql.DB, do func(*sql.Conn) error) error {
	conn, err := db.Conn(ctx)
	if err != nil {
		return err
	}
	return errors.Join(do(conn), conn.Close())
}

func isCode(err error, want string) error {
	if code(err) != want {
		return fmt.Errorf("not SQLSTATE %s: %w", want, err)
	}
	return nil
}

var scenarios = []scenario{
	{"autocommit", func(ctx context.Context, db *sql.DB, write writing) error {
		return in(ctx, db, write, "ab-a", 1)
	}, []string{"1 a", "2 b", "3", "4 a"}},
	{"autocommit on a connection", func(ctx context.Context, db *sql.DB, write writing) error {
		return onConn(ctx, db, func(conn *sql.Conn) error { return in(ctx, conn, write, "ab-a", 1) })
	}, []string{"1 a", "2 b", "3", "4 a"}},
	{"transaction", func(ctx context.Context, db *sql.DB, write writing) error {
		return transact(ctx, db, func(tx *sql.Tx) error { return in(ctx, tx, write, "aaa", 1) })
	}, []string{"1 a", "2 a", "3 a"}},
	{"without context", func(ctx context.Context, db *sql.DB, write writing) error {
		return transact(ctx, db, func(tx *sql.Tx) error { return in(ctx, tx, write, "--", 1) })
	}, []string{"1", "2"}},
	{"the context of the transaction stands in", func(ctx context.Context, db *sql.DB, write writing) error {
		return errors.Join(
			transact(by(ctx, "a"), db, func(tx *sql.Tx) error { return in(ctx, tx, write, "-b-", 1) }),
			transact(ctx, db, func(tx *sql.Tx) error { return in(ctx, tx, write, "-", 4) }),
			in(ctx, db, write, "-", 5))
	}, []string{"1 a", "2 b", "3 a", "4", "5"}},
	{"context changed in mid-transaction", func(ctx context.Context, db *sql.DB, write writing) error {
		return transact(ctx, db, func(tx *sql.Tx) error { return in(ctx, tx, write, "abbac-", 1) })
	}, []string{"1 a", "2 b", "3 b", "4 a", "5 c", "6 c"}},
	{"rolled back", func(ctx context.Context, db *sql.DB, write writing) error {
		return errors.Join(
			transact(ctx, db, func(tx *sql.Tx) error { return errors.Join(in(ctx, tx, write, "aa", 1), errRollback) }),
			in(ctx, db, write, "b-", 3))
	}, []string{"3 b", "4"}},
	{"nested", func(ctx context.Context, db *sql.DB, write writing) error {
		return transact(ctx, db, func(tx *sql.Tx) error {
			return errors.Join(
				run(ctx, tx, "SAVEPOINT x"), in(ctx, tx, write, "a", 1), run(ctx, tx, "RELEASE SAVEPOINT x"),
				in(ctx, tx, write, "a", 2),
				run(ctx, tx, "SAVEPOINT x"), in(ctx, tx, write, "b", 3), run(ctx, tx, "RELEASE x"),
				in(ctx, tx, write, "b", 4))
		})
	}, []string{"1 a", "2 a", "3 b", "4 b"}},
	{"rolled-back savepoint took the stamp", func(ctx context.Context, db *sql.DB, write writing) error {
		return transact(ctx, db, func(tx *sql.Tx) error {
			return errors.Join(
				run(ctx, tx, "SAVEPOINT x"), in(ctx, tx, write, "aa", 1), run(ctx, tx, "ROLLBACK TO SAVEPOINT x"),
				in(ctx, tx, write, "a", 3))
		})
	}, []string{"3 a"}},
	{"rolled-back savepoint took a change of context", func(ctx context.Context, db *sql.DB, write writing) error {
		return transact(ctx, db, func(tx *sql.Tx) error {
			return errors.Join(
				in(ctx, tx, write, "a", 1),
				run(ctx, tx, "SAVEPOINT x", "SAVEPOINT y"), in(ctx, tx, write, "b", 2), run(ctx, tx, "RELEASE SAVEPOINT y"),
				in(ctx, tx, write, "b", 3), run(ctx, tx, "rollback work to x"),
				in(ctx, tx, write, "ab", 4))
		})
	}, []string{"1 a", "4 a", "5 b"}},
	{"statement failed in a savepoint", func(ctx context.Context, db *sql.DB, write writing) error {
		return transact(ctx, db, func(tx *sql.Tx) error {
			err := errors.Join(run(ctx, tx, "SAVEPOINT x"), in(ctx, tx, write, "b", 1), run(ctx, tx, "RELEASE SAVEPOINT x", "SAVEPOINT y"))
			return errors.Join(err,
				isCode(in(ctx, tx, write, "a", 1), "23505"), run(ctx, tx, "ROLLBACK TO SAVEPOINT y"),
				in(ctx, tx, write, "a", 2))
		})
	}, []string{"1 b", "2 a"}},
	{"statement failed alone", func(ctx context.Context, db *sql.DB, write writing) error {
		return errors.Join(
			in(ctx, db, write, "a", 1),
			isCode(in(ctx, db, write, "b", 1), "23505"),
			in(ctx, db, write, "-b", 2))
	}, []string{"1 a", "2", "3 b"}},
	{"aborted transaction", func(ctx context.Context, db *sql.DB, write writing) error {
		return errors.Join(
			transact(ctx, db, func(tx *sql.Tx) error {
				return errors.Join(
					in(ctx, tx, write, "a", 1),
					isCode(in(ctx, tx, write, "a", 1), "23505"),
					isCode(in(ctx, tx, write, "b", 2), "25P02"), errRollback)
			}),
			in(ctx, db, write, "b", 3))
	}, []string{"3 b"}},
	{"transaction by statements", func(ctx context.Context, db *sql.DB, write writing) error {
		return onConn(ctx, db, func(conn *sql.Conn) error {
			return errors.Join(
				run(ctx, conn, "BEGIN"), in(ctx, conn, write, "aab", 1), run(ctx, conn, "COMMIT"),
				in(ctx, conn, write, "-c", 4),
				run(ctx, conn, "START TRANSACTION"), in(ctx, conn, write, "c", 6), run(ctx, conn, "ROLLBACK"),
				run(ctx, conn, "BEGIN"), in(ctx, conn, write, "c", 7), run(ctx, conn, "COMMIT AND CHAIN"),
				in(ctx, conn, write, "c", 8), run(ctx, conn, "END"))
		})
	}, []string{"1 a", "2 a", "3 b", "4", "5 c", "7 c", "8 c"}},
	{"transaction by statements that failed", func(ctx context.Context, db *sql.DB, write writing) error {
		return onConn(ctx, db, func(conn *sql.Conn) error {
			return errors.Join(
				run(ctx, conn, "BEGIN"), isCode(run(ctx, conn, "COMMIT PREPARED 'x'"), "25001"), isCode(in(ctx, conn, write, "a", 1), "25P02"), run(ctx, conn, "ROLLBACK"),
				in(ctx, conn, write, "a", 2),
				run(ctx, conn, "BEGIN", "SAVEPOINT x"), isCode(run(ctx, conn, "ROLLBACK TO y"), "3B001"), run(ctx, conn, "ROLLBACK TO x"),
				in(ctx, conn, write, "b", 3), run(ctx, conn, "COMMIT"),
				in(ctx, conn, write, "a", 4))
		})
	}, []string{"2 a", "3 b", "4 a"}},
}

// TestEveryWayOfWriting runs every way of writing with every driver through every
// course that a transaction can take, and looks who made the rows.
func TestEveryWayOfWriting(t *testing.T) {
	t.Parallel()
	a := audittest.New(t, audit.Config{}, todoSQL)
	want := map[string][]string{}
	for _, d := range append(slices.Clone(drivers), fields) {
		db, connector := d.open(t, parse(t, a.Database, nil))
		for _, w := range writers {
			for _, s := range scenarios {
				cell := d.name + ", " + w.name + ", " + s.name
				write := func(ctx context.Context, q querier, id int) error { return w.write(ctx, q, cell, id) }
				if err := s.run(t.Context(), db, write); err != nil {
					t.Errorf("%s: %v", cell, err)
				}
				want[cell] = s.want
			}
		}
		if stats := connector.Stats(); stats.Lost != 0 || stats.Cut != 0 || stats.Stamped == 0 {
			t.Errorf("%s: %+v", d.name, stats)
		}
	}
	if diff := cmp.Diff(want, whoWrote(t, a)); diff != "" {
		t.Error(diff)
	}
}

// whoWrote returns the rows of each cell, in order, with their users.
func whoWrote(t *testing.T, a *audittest.Audited) map[string][]string {
	t.Helper()
	a.Sync(t)
	got := map[string][]string{}
	for change, err := range a.Client.Changes().OldestFirst().All(t.Context()) {
		if err != nil {
			t.Fatal(err)
		}
		key := change.KeyParts()
		text := key[1]
		if change.Stamped {
			text += " " + change.Context.User()
		}
		got[key[0]] = append(got[key[0]], text)
	}
	return got
}
