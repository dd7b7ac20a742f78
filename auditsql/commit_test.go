package auditsql_test

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/stdlib"

	"github.com/hindsight-go/audit/auditsql"
	"github.com/hindsight-go/audit/audittest"
)

// deafConn loses the answers to statements that hold a text: they are run, and the
// driver says that the connection was bad, as lib/pq does.
type deafConn struct {
	hiddenConn
	at   *atomic.Value
	lose func() // what else happens then, if it is not nil
}

func (c deafConn) ExecContext(ctx context.Context, query string, args []driver.NamedValue) (driver.Result, error) {
	result, err := c.hiddenConn.ExecContext(ctx, query, args)
	if text := c.at.Load().(string); text != "" && strings.Contains(query, text) {
		c.at.Store("")
		if c.lose != nil {
			c.lose()
		}
		return nil, driver.ErrBadConn
	}
	return result, err
}

// TestCommit_LostAnswer loses the answer to the COMMIT that we put behind a statement.
// database/sql runs again what fails with driver.ErrBadConn, which would be twice.
func TestCommit_LostAnswer(t *testing.T) {
	t.Parallel()
	server := audittest.NewDatabase(t)
	server.Exec(t, "CREATE TABLE todo (cell text)")
	var at atomic.Value
	at.Store("")
	d := other
	d.hide = func(c *stdlib.Conn) driver.Conn { return deafConn{hidden(c).(hiddenConn), &at, nil} }
	db, _ := d.open(t, parse(t, server, nil))
	ctx := by(t.Context(), "ann")
	ways := map[string]func(cell string) error{
		"exec": func(cell string) error {
			_, err := db.ExecContext(ctx, "INSERT INTO todo VALUES ($1)", cell)
			return err
		},
		"query": func(cell string) error {
			var got string
			return db.QueryRowContext(ctx, "INSERT INTO todo VALUES ($1) RETURNING cell", cell).Scan(&got)
		},
		"prepared": func(cell string) error {
			stmt, err := db.PrepareContext(ctx, "INSERT INTO todo VALUES ($1)")
			if err != nil {
				return err
			}
			defer func() { _ = stmt.Close() }()
			_, err = stmt.ExecContext(ctx, cell)
			return err
		},
	}
	for name, write := range ways {
		at.Store("COMMIT")
		err := write(name)
		if err == nil || errors.Is(err, driver.ErrBadConn) || !strings.Contains(err.Error(), "COMMIT") {
			t.Errorf("%s: %v", name, err)
		}
		if n := audittest.Value[int](t, server, "SELECT count(*) FROM todo WHERE cell = $1", name); n != 1 {
			t.Errorf("%s: %d rows", name, n)
		}
		if n := db.Stats().OpenConnections; n != 0 {
			t.Errorf("%s: %d connections are kept", name, n)
		}
		// What is lost before the COMMIT has not happened, and is run again.
		at.Store("BEGIN")
		if err := write(name + " before"); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if n := audittest.Value[int](t, server, "SELECT count(*) FROM todo WHERE cell = $1", name+" before"); n != 1 {
			t.Errorf("%s before: %d rows", name, n)
		}
	}
}

// TestCommit_LostAsCtxEnds ends the ctx while the COMMIT runs, which lib/pq gives up its
// connection for: the error is that of the ctx, too, as without us.
func TestCommit_LostAsCtxEnds(t *testing.T) {
	t.Parallel()
	server := audittest.NewDatabase(t)
	server.Exec(t, "CREATE TABLE todo (cell text)")
	var at atomic.Value
	at.Store("COMMIT")
	ctx, cancel := context.WithCancel(by(t.Context(), "ann"))
	defer cancel()
	d := other
	d.hide = func(c *stdlib.Conn) driver.Conn { return deafConn{hidden(c).(hiddenConn), &at, cancel} }
	db, _ := d.open(t, parse(t, server, nil))
	_, err := db.ExecContext(ctx, "INSERT INTO todo VALUES ('once')")
	if !errors.Is(err, context.Canceled) || errors.Is(err, driver.ErrBadConn) || !strings.Contains(err.Error(), "COMMIT") {
		t.Error(err)
	}
}

// TestControl_TextsThatSetUpTransactions runs them through all drivers, as writes and not.
func TestControl_TextsThatSetUpTransactions(t *testing.T) {
	t.Parallel()
	server := audittest.NewDatabase(t)
	server.Exec(t, "CREATE TABLE todo (cell text)")
	const put = "INSERT INTO todo VALUES (current_setting('transaction_isolation'))"
	for _, d := range drivers {
		if d.name == bare.name {
			continue // it prepares, and so runs one statement at a time
		}
		db, connector := d.open(t, parse(t, server, nil))
		ctx := by(t.Context(), "ann")
		for _, ctx := range []context.Context{ctx, auditsql.AsWrite(ctx)} {
			before := connector.Stats()
			_, err := db.ExecContext(ctx, "BEGIN; SET TRANSACTION ISOLATION LEVEL SERIALIZABLE; "+put+"; COMMIT")
			inTx := func(texts ...string) error {
				tx, err := db.BeginTx(ctx, nil)
				if err != nil {
					return err
				}
				for _, text := range texts {
					_, one := tx.ExecContext(ctx, text)
					err = errors.Join(err, one)
				}
				return errors.Join(err, tx.Commit())
			}
			err2 := inTx("SET TRANSACTION ISOLATION LEVEL SERIALIZABLE", put)
			err3 := inTx("SET TRANSACTION ISOLATION LEVEL SERIALIZABLE; " + put)
			if err := errors.Join(err, err2, err3); err != nil {
				t.Errorf("%s: %v", d.name, err)
			}
			after := connector.Stats()
			if n := after.Stamped + after.Lost - before.Stamped - before.Lost; n != 3 {
				t.Errorf("%s: %d of 3 are counted: %+v", d.name, n, after)
			}
			if d.hide == nil && after.Lost != 0 {
				t.Errorf("%s: %+v", d.name, after)
			}
		}
	}
	if n := audittest.Value[int](t, server, "SELECT count(*) FILTER (WHERE cell <> 'serializable') FROM todo"); n != 0 {
		t.Errorf("%d rows were written in another isolation level", n)
	}
}

// TestRawConn_RollsBackUnseen goes back to a savepoint on the driver's own connection.
func TestRawConn_RollsBackUnseen(t *testing.T) {
	t.Parallel()
	server := audittest.NewDatabase(t)
	server.Exec(t, "CREATE TABLE todo (cell text)")
	db, connector := ofPgx.open(t, parse(t, server, nil))
	conn, err := db.Conn(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	ctx := by(t.Context(), "ann")
	err = conn.Raw(func(c any) error {
		_, err := c.(interface{ Conn() *pgx.Conn }).Conn().Prepare(ctx, "back", "ROLLBACK TO SAVEPOINT s")
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	tx, err := conn.BeginTx(ctx, nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, sql := range []string{"SAVEPOINT s", "INSERT INTO todo VALUES ('a')", "back", "INSERT INTO todo VALUES ('b')"} {
		if _, err := tx.ExecContext(ctx, sql); err != nil {
			t.Fatalf("%s: %v", sql, err)
		}
	}
	if err := tx.Commit(); err != nil {
		t.Fatal(err)
	}
	if n := connector.Stats().Stamped; n != 2 {
		t.Errorf("%d stamps", n)
	}
}

// cancelledConn cancels the first statement that holds a text, as pg_cancel_backend does.
type cancelledConn struct {
	hiddenConn
	at *atomic.Value
}

func (c cancelledConn) ExecContext(ctx context.Context, query string, args []driver.NamedValue) (driver.Result, error) {
	if text := c.at.Load().(string); text != "" && strings.Contains(query, text) {
		c.at.Store("")
		return nil, &pgconn.PgError{Severity: "ERROR", Code: "57014", Message: "canceling statement due to user request"}
	}
	return c.hiddenConn.ExecContext(ctx, query, args)
}

// TestRawConn_LookIsCancelled cancels what finds out whether a transaction is open, after
// the connection was used by itself: the write that it is for must not go without its stamp.
func TestRawConn_LookIsCancelled(t *testing.T) {
	t.Parallel()
	server := audittest.NewDatabase(t)
	server.Exec(t, "CREATE TABLE todo (cell text)")
	var at atomic.Value
	at.Store("")
	d := other
	d.hide = func(c *stdlib.Conn) driver.Conn { return cancelledConn{hidden(c).(hiddenConn), &at} }
	db, connector := d.open(t, parse(t, server, nil))
	ctx := by(t.Context(), "ann")
	const put = "INSERT INTO todo VALUES ('put')"
	ways := map[string]func(conn *sql.Conn) error{
		"exec": func(conn *sql.Conn) error {
			_, err := conn.ExecContext(ctx, put)
			return err
		},
		"query": func(conn *sql.Conn) error {
			return conn.QueryRowContext(ctx, put+" RETURNING 1").Scan(new(int))
		},
		"transaction": func(conn *sql.Conn) error {
			tx, err := conn.BeginTx(ctx, nil)
			if err != nil {
				return err
			}
			defer func() { _ = tx.Rollback() }()
			if err := conn.Raw(func(c any) error { _ = auditsql.Unwrap(c); return nil }); err != nil {
				return err
			}
			_, err = tx.ExecContext(ctx, put)
			return err
		},
	}
	for name, write := range ways {
		conn, err := db.Conn(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if err := conn.Raw(func(c any) error { _ = auditsql.Unwrap(c); return nil }); err != nil {
			t.Fatal(err)
		}
		at.Store("SAVEPOINT audit_stamp")
		if err := write(conn); code(err) != "57014" {
			t.Errorf("%s: %v", name, err)
		}
		if err := conn.Close(); err != nil {
			t.Error(err)
		}
	}
	if n := audittest.Value[int](t, server, "SELECT count(*) FROM todo"); n != 0 || connector.Stats().Stamped != 0 {
		t.Errorf("%d rows, %+v", n, connector.Stats())
	}
}
