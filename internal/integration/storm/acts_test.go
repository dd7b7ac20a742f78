package storm_test

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/lib/pq"

	"github.com/hindsight-go/audit"
	"github.com/hindsight-go/audit/auditsql"
)

// nobody is whose rows are that are written without a context.
const nobody = "nobody"

const insert = "INSERT INTO todo VALUES ($1, $2)"

func by(ctx context.Context, who string) context.Context {
	return audit.WithContext(ctx, audit.Context{UserID: who})
}

// querier is what *sql.DB, *sql.Conn and *sql.Tx have in common.
type querier interface {
	ExecContext(ctx context.Context, query string, args ...any) (sql.Result, error)
	QueryContext(ctx context.Context, query string, args ...any) (*sql.Rows, error)
	QueryRowContext(ctx context.Context, query string, args ...any) *sql.Row
	PrepareContext(ctx context.Context, query string) (*sql.Stmt, error)
}

// worker performs one act.
type worker struct {
	db     *sql.DB
	pq     bool
	random *rand.Rand
	cell   string
	n      int // writes so far
	lost   *atomic.Uint64
}

// next returns whose the next rows are.
func (w *worker) next() string {
	w.n++
	return fmt.Sprintf("%s %d", w.cell, w.n)
}

// write writes rows in one of the ways, under a context of their own.
func (w *worker) write(ctx context.Context, q querier) error {
	who := w.next()
	return ways[w.random.IntN(len(ways))](by(ctx, who), q, who)
}

func (w *worker) read(ctx context.Context, q querier) error {
	var n int
	return q.QueryRowContext(ctx, "SELECT count(*) FROM todo WHERE who = $1", w.cell).Scan(&n)
}

// in runs a function in a transaction, and once more if the server asks for that.
func (w *worker) in(ctx context.Context, options *sql.TxOptions, do func(tx *sql.Tx) error) error {
	for {
		tx, err := w.db.BeginTx(ctx, options)
		if err != nil {
			return err
		}
		if err = do(tx); err == nil {
			err = tx.Commit()
		} else {
			err = errors.Join(err, tx.Rollback())
		}
		if state := code(err); state != "40001" && state != "40P01" {
			return err
		}
	}
}

// ways are how rows are written, with what they share: a ctx, and whose they are.
var ways = []func(ctx context.Context, q querier, who string) error{
	func(ctx context.Context, q querier, who string) error {
		_, err := q.ExecContext(ctx, insert, who, 1)
		return err
	},
	func(ctx context.Context, q querier, who string) error { // no arguments
		_, err := q.ExecContext(ctx, "INSERT INTO todo VALUES ("+pq.QuoteLiteral(who)+", 2)")
		return err
	},
	func(ctx context.Context, q querier, who string) error { // several statements in a string
		name := pq.QuoteLiteral(who)
		_, err := q.ExecContext(ctx, "INSERT INTO todo VALUES ("+name+", 3); SELECT 1; INSERT INTO todo SELECT "+name+", 4")
		return err
	},
	func(ctx context.Context, q querier, who string) error {
		return readAll(q.QueryContext(ctx, insert+" RETURNING n", who, 5))
	},
	func(ctx context.Context, q querier, who string) error { // more rows than one
		return readAll(q.QueryContext(ctx, "INSERT INTO todo SELECT $1, i FROM generate_series(10, 19) i RETURNING n", who))
	},
	func(ctx context.Context, q querier, who string) error { // rows that nobody reads
		rows, err := q.QueryContext(ctx, insert+" RETURNING n", who, 6)
		if err != nil {
			return err
		}
		return errors.Join(rows.Close(), rows.Err())
	},
	func(ctx context.Context, q querier, who string) error {
		var n int
		return q.QueryRowContext(ctx, insert+" RETURNING n", who, 7).Scan(&n)
	},
	func(ctx context.Context, q querier, who string) error { // prepared under no context
		stmt, err := q.PrepareContext(context.WithoutCancel(context.Background()), insert)
		if err != nil {
			return err
		}
		_, err = stmt.ExecContext(ctx, who, 8)
		return errors.Join(err, stmt.Close())
	},
	func(ctx context.Context, q querier, who string) error { // prepared under another
		stmt, err := q.PrepareContext(by(ctx, "who prepared"), insert+" RETURNING n")
		if err != nil {
			return err
		}
		return errors.Join(readAll(stmt.QueryContext(ctx, who, 9)), stmt.Close())
	},
	func(ctx context.Context, q querier, who string) error { // written by a SELECT
		return readAll(q.QueryContext(ctx, "WITH w AS ("+insert+" RETURNING n) SELECT n FROM w", who, 20))
	},
}

func readAll(rows *sql.Rows, err error) error {
	if err != nil {
		return err
	}
	n := 0
	for rows.Next() {
		n++
	}
	if err := errors.Join(rows.Err(), rows.Close()); err != nil {
		return err
	}
	if n == 0 {
		return errors.New("no rows")
	}
	return nil
}

// act is what a goroutine does in a round.
type act struct {
	name string
	ofPq bool // what only lib/pq can
	do   func(ctx context.Context, w *worker) error
}

var acts = []act{
	{name: "lone writes", do: func(ctx context.Context, w *worker) error {
		return errors.Join(w.write(ctx, w.db), w.read(ctx, w.db), w.write(ctx, w.db))
	}},
	{name: "without context", do: func(ctx context.Context, w *worker) error {
		return errors.Join(w.write(ctx, w.db), ways[w.random.IntN(len(ways)-3)](ctx, w.db, nobody), w.read(ctx, w.db))
	}},
	{name: "transaction in a string", do: func(ctx context.Context, w *worker) error {
		who := w.next()
		name := pq.QuoteLiteral(who)
		if w.pq {
			// Documented: it is counted as lost.
			w.lost.Add(1)
			name = pq.QuoteLiteral(nobody)
		}
		_, err := w.db.ExecContext(by(ctx, who), "BEGIN; INSERT INTO todo VALUES ("+name+", 30); INSERT INTO todo VALUES ("+name+", 31); COMMIT")
		return err
	}},
	{name: "transaction", do: func(ctx context.Context, w *worker) error {
		return w.in(ctx, nil, func(tx *sql.Tx) error {
			return errors.Join(w.read(ctx, tx), w.write(ctx, tx), w.write(ctx, tx), w.read(ctx, tx), w.write(ctx, tx))
		})
	}},
	{name: "serializable", do: func(ctx context.Context, w *worker) error {
		levels := []sql.IsolationLevel{sql.LevelReadCommitted, sql.LevelRepeatableRead, sql.LevelSerializable}
		return w.in(ctx, &sql.TxOptions{Isolation: levels[w.random.IntN(len(levels))]}, func(tx *sql.Tx) error {
			return errors.Join(w.write(ctx, tx), w.read(ctx, tx), w.write(ctx, tx))
		})
	}},
	{name: "context of BeginTx", do: func(ctx context.Context, w *worker) error {
		who := w.next()
		return w.in(by(ctx, who), nil, func(tx *sql.Tx) error {
			_, err := tx.Exec(insert, who, 40) //nolint:noctx // that is what is tested
			_, again := tx.ExecContext(ctx, insert, who, 41)
			return errors.Join(err, again, w.write(ctx, tx))
		})
	}},
	{name: "read only", do: func(ctx context.Context, w *worker) error {
		who := w.next()
		return w.in(by(ctx, who), &sql.TxOptions{ReadOnly: true}, func(tx *sql.Tx) error {
			if err := w.read(ctx, tx); err != nil {
				return err
			}
			if w.random.IntN(2) == 0 {
				return nil
			}
			if _, err := tx.ExecContext(ctx, "SAVEPOINT refused"); err != nil {
				return err
			}
			if _, err := tx.ExecContext(by(ctx, who), insert, who, 50); code(err) != "25006" {
				return fmt.Errorf("a write where only reads are allowed: %w", err)
			}
			_, err := tx.ExecContext(ctx, "ROLLBACK TO refused")
			return errors.Join(err, w.read(ctx, tx))
		})
	}},
	{name: "rolled back", do: func(ctx context.Context, w *worker) error {
		err := w.in(ctx, nil, func(tx *sql.Tx) error { return errors.Join(w.write(ctx, tx), errGivenUp) })
		if !errors.Is(err, errGivenUp) {
			return err
		}
		return w.write(ctx, w.db)
	}},
	{name: "savepoints", do: func(ctx context.Context, w *worker) error {
		return w.in(ctx, nil, func(tx *sql.Tx) error {
			exec := func(ctx context.Context, query string, args ...any) error {
				_, err := tx.ExecContext(ctx, query, args...)
				return err
			}
			first, second := w.next(), w.next()
			return errors.Join(
				exec(by(ctx, first), insert, first, 60), exec(ctx, "SAVEPOINT a"), exec(by(ctx, second), insert, second, 61),
				exec(ctx, "ROLLBACK TO a"), exec(by(ctx, second), insert, second, 62), exec(ctx, "RELEASE a"),
				exec(ctx, "SAVEPOINT b"), w.write(ctx, tx), exec(ctx, "ROLLBACK TO b"), exec(by(ctx, first), insert, first, 63), w.write(ctx, tx))
		})
	}},
	{name: "failed and gone on", do: func(ctx context.Context, w *worker) error {
		return w.in(ctx, nil, func(tx *sql.Tx) error {
			if err := w.write(ctx, tx); err != nil {
				return err
			}
			if _, err := tx.ExecContext(ctx, "SAVEPOINT a"); err != nil {
				return err
			}
			if _, err := tx.ExecContext(by(ctx, w.next()), "INSERT INTO todo SELECT $1, 1 / $2", w.cell, 0); code(err) != "22012" {
				return fmt.Errorf("a division by zero: %w", err)
			}
			_, err := tx.ExecContext(ctx, "ROLLBACK TO a")
			return errors.Join(err, w.write(ctx, tx))
		})
	}},
	{name: "connection of its own", do: func(ctx context.Context, w *worker) error {
		conn, err := w.db.Conn(ctx)
		if err != nil {
			return err
		}
		err = errors.Join(w.write(ctx, conn), w.read(ctx, conn))
		tx, begun := conn.BeginTx(ctx, nil)
		if begun != nil {
			return errors.Join(err, begun, conn.Close())
		}
		return errors.Join(err, w.write(ctx, tx), tx.Commit(), w.write(ctx, conn), conn.Close())
	}},
	{name: "statement of the database", do: func(ctx context.Context, w *worker) error {
		stmt, err := w.db.PrepareContext(ctx, insert)
		if err != nil {
			return err
		}
		for range 3 {
			who := w.next()
			if _, err := stmt.ExecContext(by(ctx, who), who, 70); err != nil {
				return errors.Join(err, stmt.Close())
			}
		}
		err = w.in(ctx, nil, func(tx *sql.Tx) error {
			who := w.next()
			_, err := tx.StmtContext(ctx, stmt).ExecContext(by(ctx, who), who, 71)
			return errors.Join(err, w.write(ctx, tx))
		})
		return errors.Join(err, stmt.Close())
	}},
	{name: "COPY", ofPq: true, do: func(ctx context.Context, w *worker) error {
		return w.in(ctx, nil, func(tx *sql.Tx) error {
			return errors.Join(w.write(ctx, tx), w.copyRows(ctx, tx), w.copyRows(ctx, tx), w.write(ctx, tx))
		})
	}},
	{name: "driver.ErrBadConn", do: func(ctx context.Context, w *worker) error {
		// A connection that is bad goes back to the pool, where somebody meets it.
		conn, err := w.db.Conn(ctx)
		if err != nil {
			return err
		}
		err = conn.Raw(func(c any) error {
			if c, ok := c.(interface{ Conn() *pgx.Conn }); ok {
				return c.Conn().Close(ctx)
			}
			auditsql.Unwrap(c).(*fragileConn).bad = true
			return nil
		})
		return errors.Join(err, conn.Close(), w.write(ctx, w.db), w.write(ctx, w.db))
	}},
	{name: "terminated", do: func(ctx context.Context, w *worker) error {
		who := w.next()
		conn, err := w.db.Conn(ctx)
		if err != nil {
			return err
		}
		_, err = conn.ExecContext(by(ctx, who), "INSERT INTO todo SELECT $1, 80 FROM (SELECT pg_terminate_backend(pg_backend_pid())) x", who)
		closed := conn.Close()
		if err == nil {
			return errors.New("the connection outlived its end")
		}
		if closed != nil && !errors.Is(closed, driver.ErrBadConn) && !errors.Is(closed, sql.ErrConnDone) {
			return closed
		}
		return w.write(ctx, w.db)
	}},
	{name: "cancelled", do: func(ctx context.Context, w *worker) error {
		who := w.next()
		short, cancel := context.WithTimeout(by(ctx, who), time.Duration(w.random.IntN(8_000))*time.Microsecond)
		defer cancel()
		_, err := w.db.ExecContext(short, "INSERT INTO todo SELECT $1, 90 FROM (SELECT pg_sleep(0.004)) x", who)
		return errors.Join(unlessCancelled(err), w.write(ctx, w.db))
	}},
	{name: "cancelled transaction", do: func(ctx context.Context, w *worker) error {
		short, cancel := context.WithTimeout(ctx, time.Duration(w.random.IntN(20_000))*time.Microsecond)
		defer cancel()
		tx, err := w.db.BeginTx(short, nil)
		if err != nil {
			return errors.Join(unlessCancelled(err), w.write(ctx, w.db))
		}
		for range 3 {
			if err := w.write(short, tx); err != nil {
				return errors.Join(unlessCancelled(err), unlessCancelled(tx.Rollback()), w.write(ctx, w.db))
			}
		}
		return errors.Join(unlessCancelled(tx.Commit()), w.write(ctx, w.db))
	}},
}

var errGivenUp = errors.New("given up")

// copyRows copies rows as lib/pq does, with the context of whoever prepares it.
func (w *worker) copyRows(ctx context.Context, tx *sql.Tx) error {
	who := w.next()
	stmt, err := tx.PrepareContext(by(ctx, who), pq.CopyIn("todo", "who", "n"))
	if err != nil {
		return err
	}
	for n := range 5 {
		if _, err := stmt.ExecContext(ctx, who, 100+n); err != nil {
			return errors.Join(err, stmt.Close())
		}
	}
	_, err = stmt.ExecContext(ctx)
	return errors.Join(err, stmt.Close())
}

// unlessCancelled returns an error that does not come from the end of a ctx. The drivers
// say that in several ways, and close the connection for it.
func unlessCancelled(err error) error {
	if err == nil || errors.Is(err, context.DeadlineExceeded) || errors.Is(err, context.Canceled) ||
		errors.Is(err, sql.ErrTxDone) || errors.Is(err, driver.ErrBadConn) {
		return nil
	}
	if slices.Contains([]string{"57014", "25P02"}, code(err)) {
		return nil
	}
	for _, text := range []string{"i/o timeout", "conn closed", "use of closed network connection"} {
		if strings.Contains(err.Error(), text) {
			return nil
		}
	}
	return err
}
