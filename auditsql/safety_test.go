package auditsql_test

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/stdlib"

	"github.com/hindsight-go/audit"
	"github.com/hindsight-go/audit/auditsql"
	"github.com/hindsight-go/audit/audittest"
)

// The arguments of the function differ between versions of PostgreSQL.
const (
	revokeSQL = `DO $$ DECLARE f regprocedure; BEGIN
		FOR f IN SELECT oid FROM pg_proc WHERE proname = 'pg_logical_emit_message' LOOP
			EXECUTE format('REVOKE EXECUTE ON FUNCTION %s FROM PUBLIC', f);
		END LOOP; END $$`
	grantSQL = `DO $$ DECLARE f regprocedure; BEGIN
		FOR f IN SELECT oid FROM pg_proc WHERE proname = 'pg_logical_emit_message' LOOP
			EXECUTE format('GRANT EXECUTE ON FUNCTION %s TO PUBLIC', f);
		END LOOP; END $$`
)

// TestRefusedStampsHurtNoWrite runs every way of writing as a role that may not
// stamp, and takes the right away in the middle, too.
func TestRefusedStampsHurtNoWrite(t *testing.T) {
	t.Parallel()
	server := audittest.NewServer(t, audittest.ServerOptions{})
	database := server.NewDatabase(t)
	database.Exec(t, todoSQL+"; CREATE ROLE app LOGIN; GRANT ALL ON todo TO app")
	database.Exec(t, revokeSQL)
	var want []string
	for _, d := range []aDriver{ofPgx, other, fields} {
		for i, w := range writers {
			if i%4 != 0 {
				continue // each cell takes a connection of its own
			}
			for _, s := range scenarios {
				config := parse(t, database, func(c *pgx.ConnConfig) { c.RuntimeParams["role"] = "app" })
				// A new connection for each, since a refusal is remembered.
				connector := auditsql.Config{Logger: slog.New(slog.DiscardHandler)}.Wrap(d.connector(config)).(*auditsql.Connector)
				db := sql.OpenDB(connector)
				cell := d.name + ", " + w.name + ", " + s.name
				write := func(ctx context.Context, q querier, id int) error { return w.write(ctx, q, cell, id) }
				if err := errors.Join(s.run(t.Context(), db, write), db.Close()); err != nil {
					t.Errorf("%s: %v", cell, err)
				}
				if stats := connector.Stats(); s.name != "without context" && stats.Lost == 0 || stats.Stamped != 0 {
					t.Errorf("%s: %+v", cell, stats)
				}
				want = append(want, fmt.Sprintf("%s: %d rows", cell, len(s.want)))
			}
		}
	}
	got := audittest.Value[[]string](t, database, "SELECT array_agg(cell || ': ' || n || ' rows') FROM (SELECT cell, count(*) AS n FROM todo GROUP BY cell) c")
	slices.Sort(want)
	slices.Sort(got)
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

// TestRightThatIsTakenAway refuses stamps to connections that have stamped.
func TestRightThatIsTakenAway(t *testing.T) {
	t.Parallel()
	server := audittest.NewServer(t, audittest.ServerOptions{})
	database := server.NewDatabase(t)
	database.Exec(t, todoSQL+`; CREATE ROLE app LOGIN; GRANT ALL ON todo TO app`)
	for _, d := range drivers {
		database.Exec(t, grantSQL)
		config := parse(t, database, func(c *pgx.ConnConfig) { c.RuntimeParams["role"] = "app" })
		connector := auditsql.Config{Logger: slog.New(slog.DiscardHandler)}.Wrap(d.connector(config)).(*auditsql.Connector)
		db := openDB(t, connector)
		db.SetMaxOpenConns(1)
		for i, w := range writers {
			if err := w.write(by(t.Context(), "ann"), db, d.name, i); err != nil {
				t.Fatal(err)
			}
		}
		database.Exec(t, revokeSQL)
		err := transact(by(t.Context(), "ann"), db, func(tx *sql.Tx) error {
			return errors.Join(in(t.Context(), tx, func(ctx context.Context, q querier, id int) error {
				return writers[id%len(writers)].write(ctx, q, d.name, 100+id)
			}, "abc", 0))
		})
		if err != nil {
			t.Errorf("%s: %v", d.name, err)
		}
		if stats := connector.Stats(); stats.Lost != 3 || stats.Stamped != uint64(len(writers)) {
			t.Errorf("%s: %+v", d.name, stats)
		}
	}
}

func TestUnwritableMembersAreLeftOut(t *testing.T) {
	t.Parallel()
	a := audittest.New(t, audit.Config{}, todoSQL)
	ctx := audit.WithContext(t.Context(), audit.Context{
		UserID: "ann", Params: map[string]any{"file": make(chan int), "name": "x"}, Extra: map[string]any{"callback": func() {}, "plan": "pro"},
	})
	want := audit.Context{UserID: "ann", Params: map[string]any{"name": "x"}, Extra: map[string]any{"plan": "pro"}, Truncated: []string{"callback", "params.file"}}
	for _, d := range drivers {
		connector := auditsql.Config{Logger: slog.New(slog.DiscardHandler)}.Wrap(d.connector(parse(t, a.Database, nil))).(*auditsql.Connector)
		db := openDB(t, connector)
		err := errors.Join(writers[0].write(ctx, db, d.name, 1), transact(ctx, db, func(tx *sql.Tx) error { return writers[0].write(t.Context(), tx, d.name, 2) }))
		if err != nil {
			t.Errorf("%s: %v", d.name, err)
		}
		if diff := cmp.Diff(auditsql.Stats{Stamped: 2, Cut: 2}, connector.Stats()); diff != "" {
			t.Errorf("%s: %s", d.name, diff)
		}
	}
	a.Sync(t)
	for change, err := range a.Client.Changes().All(t.Context()) {
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(want, change.Context); diff != "" {
			t.Error(diff)
		}
	}
}

// TestLossIsLoggedOnce loses contexts and looks what the log says.
func TestLossIsLoggedOnce(t *testing.T) {
	t.Parallel()
	database := audittest.NewDatabase(t)
	database.Exec(t, todoSQL)
	for _, d := range []aDriver{ofPgx, other} {
		var log strings.Builder
		connector := auditsql.Config{Logger: slog.New(slog.NewTextHandler(&log, nil))}.Wrap(d.connector(parse(t, database, nil))).(*auditsql.Connector)
		db := openDB(t, connector)
		for range 3 {
			if err := run(by(t.Context(), "secret"), db, "DO $$ BEGIN DELETE FROM todo; END $$"); err != nil {
				t.Fatal(err)
			}
		}
		if n := strings.Count(log.String(), "a write goes without its audit context"); n != 1 || connector.Stats().Lost != 3 || strings.Contains(log.String(), "secret") {
			t.Errorf("%s: %+v, logged: %s", d.name, connector.Stats(), log.String())
		}
	}
}

func TestCancelledContextWritesNothing(t *testing.T) {
	t.Parallel()
	database := audittest.NewDatabase(t)
	database.Exec(t, todoSQL)
	for _, d := range drivers {
		db, _ := d.open(t, parse(t, database, nil))
		for i, w := range writers {
			ctx, cancel := context.WithCancel(by(t.Context(), "ann"))
			cancel()
			if err := w.write(ctx, db, d.name, i); !errors.Is(err, context.Canceled) {
				t.Errorf("%s, %s: %v", d.name, w.name, err)
			}
			tx, err := db.BeginTx(t.Context(), nil)
			if err != nil {
				t.Fatal(err)
			}
			if err := w.write(ctx, tx, d.name, i); !errors.Is(err, context.Canceled) {
				t.Errorf("%s, %s in a transaction: %v", d.name, w.name, err)
			}
			_ = tx.Rollback() // some drivers have closed the connection
		}
		if n := db.Stats().InUse; n != 0 {
			t.Errorf("%s: %d connections leaked", d.name, n)
		}
	}
	if n := audittest.Value[int](t, database, "SELECT count(*) FROM todo"); n != 0 {
		t.Errorf("%d rows", n)
	}
}

// TestCancelledWhileItWaits cancels a write that waits for a lock.
func TestCancelledWhileItWaits(t *testing.T) {
	t.Parallel()
	database := audittest.NewDatabase(t)
	database.Exec(t, todoSQL+"; INSERT INTO todo VALUES ('c', 1)")
	holder := database.Connect(t)
	if _, err := holder.Exec(t.Context(), "BEGIN; LOCK TABLE todo"); err != nil {
		t.Fatal(err)
	}
	for _, d := range []aDriver{ofPgx, other} {
		db, _ := d.open(t, parse(t, database, func(c *pgx.ConnConfig) { c.RuntimeParams["application_name"] = d.name }))
		ctx, cancel := context.WithCancel(by(t.Context(), "ann"))
		failed := make(chan error)
		go func() {
			_, err := db.ExecContext(ctx, "UPDATE todo SET task = $1", "x")
			failed <- err
		}()
		waiting := func() bool {
			return audittest.Value[bool](t, database, "SELECT EXISTS (SELECT FROM pg_stat_activity WHERE application_name = $1 AND wait_event_type = 'Lock')", d.name)
		}
		for !waiting() {
			if t.Context().Err() != nil {
				t.Fatal("never waits")
			}
		}
		cancel()
		if err := <-failed; !errors.Is(err, context.Canceled) {
			t.Errorf("%s: %v", d.name, err)
		}
	}
	if _, err := holder.Exec(t.Context(), "ROLLBACK"); err != nil {
		t.Fatal(err)
	}
	for _, d := range []aDriver{ofPgx, other} {
		db, _ := d.open(t, parse(t, database, nil))
		if err := oneRow(db.ExecContext(by(t.Context(), "ann"), "UPDATE todo SET task = $1 WHERE task IS NULL RETURNING 1", nil)); err != nil {
			t.Errorf("%s: %v", d.name, err)
		}
	}
}

// readSome writes 60 rows and reads back some of them.
func readSome(ctx context.Context, db *sql.DB, cell string, limit int) (err error) {
	rows, err := db.QueryContext(ctx, "INSERT INTO todo SELECT $1, n, repeat('x', 20000) FROM generate_series(1, 60) n RETURNING id, task", cell)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, rows.Close()) }()
	n := 0
	for n < limit && rows.Next() {
		var id int
		var task string
		if err := rows.Scan(&id, &task); err != nil || id != n+1 || len(task) != 20000 {
			return fmt.Errorf("row %d is %d: %w", n, id, err)
		}
		n++
	}
	if more := rows.Next(); more == (limit == 60) {
		return fmt.Errorf("after %d rows: %t", n, more)
	}
	return rows.Err()
}

// cutConn loses its connection at a statement of its choice.
type cutConn struct {
	hiddenConn
	on  *stdlib.Conn
	cut *atomic.Value // the text at which to cut, a string
}

func (c cutConn) ExecContext(ctx context.Context, query string, args []driver.NamedValue) (driver.Result, error) {
	if text := c.cut.Load().(string); text != "" && strings.Contains(query, text) {
		c.cut.Store("")
		_ = c.on.Conn().Close(context.Background()) // what comes of it is seen below
	}
	return c.hiddenConn.ExecContext(ctx, query, args)
}

// TestLostConnectionsAreReplaced cuts connections before each of the statements
// that a write takes. database/sql tries again, since nothing has happened, and
// the row is there once; but for COMMIT, of which nobody knows whether it has.
func TestLostConnectionsAreReplaced(t *testing.T) {
	t.Parallel()
	a := audittest.New(t, audit.Config{}, todoSQL)
	want := map[string][]string{}
	for _, at := range []string{"BEGIN", "INSERT", "COMMIT", "pg_logical_emit_message"} {
		var cut atomic.Value
		cut.Store("")
		c := other
		c.hide = func(conn *stdlib.Conn) driver.Conn { return cutConn{hidden(conn).(hiddenConn), conn, &cut} }
		db, _ := c.open(t, parse(t, a.Database, nil))
		for id := range 3 {
			cut.Store(at)
			err := writers[0].write(by(t.Context(), "ann"), db, at, id)
			if at == "COMMIT" && (err == nil || errors.Is(err, driver.ErrBadConn)) || at != "COMMIT" && err != nil {
				t.Errorf("%s: %v", at, err)
			}
		}
		if at == "COMMIT" {
			continue
		}
		want[at] = []string{"0 ann", "1 ann", "2 ann"}
	}
	if diff := cmp.Diff(want, whoWrote(t, a)); diff != "" {
		t.Error(diff)
	}
}

// TestFailedCleanUpGivesUpTheConnection makes ROLLBACK fail: the connection must
// not go back into the pool with the transaction open.
func TestFailedCleanUpGivesUpTheConnection(t *testing.T) {
	t.Parallel()
	a := audittest.New(t, audit.Config{}, todoSQL)
	var cut atomic.Value
	cut.Store("")
	c := other
	c.hide = func(conn *stdlib.Conn) driver.Conn { return failingConn{hidden(conn).(hiddenConn), &cut} }
	db, _ := c.open(t, parse(t, a.Database, nil))
	cut.Store("ROLLBACK")
	if err := run(by(t.Context(), "ann"), db, "INSERT INTO todo VALUES ('c', 1/0)"); code(err) != "22012" {
		t.Error(err)
	}
	if n := db.Stats().OpenConnections; n != 0 {
		t.Errorf("%d connections are kept", n)
	}
	if err := writers[0].write(by(t.Context(), "bob"), db, "c", 1); err != nil {
		t.Error(err)
	}
	if diff := cmp.Diff(map[string][]string{"c": {"1 bob"}}, whoWrote(t, a)); diff != "" {
		t.Error(diff)
	}
}

// failingConn fails a statement of its choice without sending it.
type failingConn struct {
	hiddenConn
	at *atomic.Value
}

func (c failingConn) ExecContext(ctx context.Context, query string, args []driver.NamedValue) (driver.Result, error) {
	if text := c.at.Load().(string); text != "" && strings.Contains(query, text) {
		return nil, errors.New("not today")
	}
	return c.hiddenConn.ExecContext(ctx, query, args)
}

// TestDriversThatCannotStamp fails stamps in the driver, which is no reason not to
// stamp what follows.
func TestDriversThatCannotStamp(t *testing.T) {
	t.Parallel()
	a := audittest.New(t, audit.Config{}, todoSQL)
	var fail atomic.Value
	c := other
	c.hide = func(conn *stdlib.Conn) driver.Conn { return failingConn{hidden(conn).(hiddenConn), &fail} }
	connector := auditsql.Config{Logger: slog.New(slog.DiscardHandler)}.Wrap(c.connector(parse(t, a.Database, nil))).(*auditsql.Connector)
	db := openDB(t, connector)
	db.SetMaxOpenConns(1)
	ctx := by(t.Context(), "ann")
	write := func(q querier, id int, text string) error {
		fail.Store(text)
		return writers[0].write(ctx, q, "c", id)
	}
	const stamp = "pg_logical_emit_message"
	err := errors.Join(
		write(db, 1, stamp), write(db, 2, ""),
		transact(t.Context(), db, func(tx *sql.Tx) error { return errors.Join(write(tx, 3, stamp), write(tx, 4, stamp)) }),
		transact(t.Context(), db, func(tx *sql.Tx) error { return errors.Join(write(tx, 5, stamp), write(tx, 6, "")) }),
		write(db, 7, ""))
	if err != nil {
		t.Error(err)
	}
	// Before the first stamp of a transaction, the first stamp holds.
	want := map[string][]string{"c": {"1", "2 ann", "3", "4", "5 ann", "6 ann", "7 ann"}}
	if diff := cmp.Diff(want, whoWrote(t, a)); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff(auditsql.Stats{Stamped: 3, Lost: 4}, connector.Stats()); diff != "" {
		t.Error(diff)
	}
}

// TestNoticesAreThoseOfTheStatement runs what fails in all places, and looks
// whether the server has anything to say about our own statements.
func TestNoticesAreThoseOfTheStatement(t *testing.T) {
	t.Parallel()
	database := audittest.NewDatabase(t)
	database.Exec(t, oddSQL)
	for _, d := range drivers {
		var notices []string
		db, connector := d.open(t, parse(t, database, func(c *pgx.ConnConfig) {
			c.OnNotice = func(_ *pgconn.PgConn, n *pgconn.Notice) { notices = append(notices, n.Message) }
		}))
		ctx := by(t.Context(), "ann")
		for statement, want := range map[string]string{
			"INSERT INTO child VALUES (1)": "23503", "INSERT INTO todo VALUES ('a', 1/0)": "22012", "INSERT INTO nothing VALUES (1)": "42P01",
		} {
			if err := isCode(run(ctx, db, statement), want); err != nil {
				t.Errorf("%s: %v", d.name, err)
			}
			err := transact(ctx, db, func(tx *sql.Tx) error {
				return errors.Join(isCode(run(ctx, tx, statement, "SET CONSTRAINTS ALL IMMEDIATE"), want), isCode(run(ctx, tx, statement), "25P02"), errRollback)
			})
			if err != nil {
				t.Errorf("%s: %v", d.name, err)
			}
		}
		if len(notices) != 0 || connector.Stats().Stamped == 0 {
			t.Errorf("%s: %+v, %v", d.name, connector.Stats(), notices)
		}
	}
}

// TestRawConnections uses what sql.Conn.Raw gives.
func TestRawConnections(t *testing.T) {
	t.Parallel()
	a := audittest.New(t, audit.Config{}, todoSQL)
	want := map[string][]string{}
	for _, d := range []aDriver{ofPgx, other} {
		db, _ := d.open(t, parse(t, a.Database, nil))
		err := onConn(t.Context(), db, func(conn *sql.Conn) error {
			ctx := by(t.Context(), "ann")
			raw := func(statement string) error {
				return conn.Raw(func(c any) error {
					switch native := auditsql.Unwrap(c).(type) {
					case *stdlib.Conn:
						_, err := native.Conn().Exec(t.Context(), statement)
						return err
					case hiddenConn:
						_, err := native.ExecContext(t.Context(), statement, nil)
						return err
					default:
						return fmt.Errorf("%T", native)
					}
				})
			}
			return errors.Join(
				writers[0].write(ctx, conn, d.name, 1),
				raw("BEGIN"), // behind our back
				writers[0].write(ctx, conn, d.name, 2), raw("SAVEPOINT x"), writers[0].write(by(ctx, "bob"), conn, d.name, 3), raw("ROLLBACK TO x"),
				writers[0].write(by(ctx, "bob"), conn, d.name, 4), raw("ROLLBACK; BEGIN"),
				writers[0].write(by(ctx, "bob"), conn, d.name, 5), raw("COMMIT"),
				writers[0].write(ctx, conn, d.name, 6))
		})
		if err != nil {
			t.Errorf("%s: %v", d.name, err)
		}
		want[d.name] = []string{"1 ann", "5 bob", "6 ann"}
	}
	if diff := cmp.Diff(want, whoWrote(t, a)); diff != "" {
		t.Error(diff)
	}
	// The connection of pgx can be had as from one that is not wrapped.
	db, _ := ofPgx.open(t, parse(t, a.Database, nil))
	err := onConn(t.Context(), db, func(conn *sql.Conn) error {
		return conn.Raw(func(c any) error { return c.(interface{ Conn() *pgx.Conn }).Conn().Ping(t.Context()) })
	})
	if err != nil {
		t.Error(err)
	}
	if got := auditsql.Unwrap(7); got != 7 {
		t.Error(got)
	}
}

// unregistered is a driver that opens connections by itself.
type bareDriver struct{}

func (bareDriver) Open(dsn string) (driver.Conn, error) {
	conn, err := stdlib.GetDefaultDriver().Open(dsn)
	if err != nil {
		return nil, err
	}
	return bareConn{conn.(*stdlib.Conn)}, nil
}

func TestOpenFindsTheDriver(t *testing.T) {
	t.Parallel()
	sql.Register("auditsql_bare", bareDriver{})
	a := audittest.New(t, audit.Config{}, todoSQL)
	before := auditsql.DefaultStats()
	want := map[string][]string{}
	for _, name := range []string{"pgx", "pgx/v5", "auditsql_bare"} {
		for i, open := range []func(string, string) (*sql.DB, error){auditsql.Open, auditsql.Config{}.Open} {
			db, err := open(name, a.URL())
			if err != nil {
				t.Fatal(err)
			}
			if err := errors.Join(writers[0].write(by(t.Context(), "ann"), db, name, i), db.Close()); err != nil {
				t.Error(name, err)
			}
		}
		want[name] = []string{"0 ann", "1 ann"}
	}
	if diff := cmp.Diff(want, whoWrote(t, a)); diff != "" {
		t.Error(diff)
	}
	if n := auditsql.DefaultStats().Stamped - before.Stamped; n < 3 {
		t.Errorf("%d stamps", n)
	}
	_, wantErr := sql.Open("nosuchdriver", "")
	if _, err := auditsql.Open("nosuchdriver", ""); err == nil || err.Error() != wantErr.Error() {
		t.Error(err)
	}
	connector := auditsql.Wrap(ofPgx.connector(parse(t, a.Database, nil)))
	if auditsql.Wrap(connector) != connector {
		t.Error("wrapped twice")
	}
}
