package auditsql_test

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"log/slog"
	"reflect"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/hindsight-go/audit"
	"github.com/hindsight-go/audit/auditsql"
	"github.com/hindsight-go/audit/audittest"
)

// oddDriver is a driver that has other interfaces than that of pgx.
type oddDriver struct {
	name string
	hide func(hiddenConn) driver.Conn
}

var oddDrivers = []oddDriver{
	{"only Exec", func(c hiddenConn) driver.Conn {
		return struct {
			driver.Conn
			driver.ExecerContext
		}{c, c}
	}},
	{"only Query", func(c hiddenConn) driver.Conn {
		return struct {
			driver.Conn
			driver.QueryerContext
		}{c, c}
	}},
	{"Exec and Query without ctx", func(c hiddenConn) driver.Conn { return agedConn{c.Conn, c} }},
	{"skips what has arguments", func(c hiddenConn) driver.Conn { return skippingConn{c} }},
	{"checks values", func(c hiddenConn) driver.Conn { return checkingConn{c} }},
	{"converts columns", func(c hiddenConn) driver.Conn { return convertingConn{c.Conn} }},
	{"several results", func(c hiddenConn) driver.Conn { return splittingConn{c} }},
	{"rows without types", func(c hiddenConn) driver.Conn { return untypedConn{c} }},
}

// agedConn is from before there was ctx.
type agedConn struct {
	driver.Conn
	on hiddenConn
}

func (c agedConn) Exec(query string, args []driver.Value) (driver.Result, error) {
	return c.on.ExecContext(context.Background(), query, named(args))
}

func (c agedConn) Query(query string, args []driver.Value) (driver.Rows, error) {
	return c.on.QueryContext(context.Background(), query, named(args))
}

// skippingConn wants statements with arguments to be prepared.
type skippingConn struct{ hiddenConn }

func (c skippingConn) ExecContext(ctx context.Context, query string, args []driver.NamedValue) (driver.Result, error) {
	if len(args) > 0 {
		return nil, driver.ErrSkip
	}
	return c.hiddenConn.ExecContext(ctx, query, args)
}

func (c skippingConn) QueryContext(ctx context.Context, query string, args []driver.NamedValue) (driver.Rows, error) {
	if len(args) > 0 {
		return nil, driver.ErrSkip
	}
	return c.hiddenConn.QueryContext(ctx, query, args)
}

// checkingConn changes texts, drops booleans and leaves the rest to database/sql.
type checkingConn struct{ hiddenConn }

func (c checkingConn) CheckNamedValue(value *driver.NamedValue) error {
	switch v := value.Value.(type) {
	case string:
		value.Value = "checked " + v
		return nil
	case bool:
		return driver.ErrRemoveArgument
	}
	return driver.ErrSkip
}

// convertingConn has statements that convert.
type convertingConn struct{ driver.Conn }

func (c convertingConn) Prepare(query string) (driver.Stmt, error) {
	prepared, err := c.Conn.Prepare(query)
	if err != nil {
		return nil, err
	}
	return convertingStmt{prepared}, nil
}

type convertingStmt struct{ driver.Stmt }

func (s convertingStmt) Exec(args []driver.Value) (driver.Result, error) {
	return s.Stmt.(driver.StmtExecContext).ExecContext(context.Background(), named(args))
}

func (s convertingStmt) Query(args []driver.Value) (driver.Rows, error) {
	return s.Stmt.(driver.StmtQueryContext).QueryContext(context.Background(), named(args))
}

func (convertingStmt) ColumnConverter(int) driver.ValueConverter { return converter{} }

type converter struct{}

func (converter) ConvertValue(v any) (driver.Value, error) {
	if _, ok := v.(struct{}); ok {
		return "converted", nil
	}
	return driver.DefaultParameterConverter.ConvertValue(v)
}

// splittingConn gives a result for each statement of a text.
type splittingConn struct{ hiddenConn }

func (c splittingConn) QueryContext(ctx context.Context, query string, args []driver.NamedValue) (driver.Rows, error) {
	rows := &splitRows{texts: strings.Split(query, ";"), run: func(text string) (driver.Rows, error) { return c.hiddenConn.QueryContext(ctx, text, args) }}
	if err := rows.NextResultSet(); err != nil {
		return nil, err
	}
	return rows, nil
}

type splitRows struct {
	driver.Rows
	texts []string
	run   func(string) (driver.Rows, error)
}

func (r *splitRows) HasNextResultSet() bool { return len(r.texts) > 0 }

func (r *splitRows) NextResultSet() error {
	if r.Rows != nil {
		if err := r.Rows.Close(); err != nil {
			return err
		}
	}
	text := r.texts[0]
	r.texts = r.texts[1:]
	rows, err := r.run(text)
	if err == nil {
		r.Rows = rows
	}
	return err
}

// untypedConn has rows with nothing but values, which it uses again.
type untypedConn struct{ hiddenConn }

func (c untypedConn) QueryContext(ctx context.Context, query string, args []driver.NamedValue) (driver.Rows, error) {
	rows, err := c.hiddenConn.QueryContext(ctx, query, args)
	if err != nil {
		return nil, err
	}
	return &untypedRows{Rows: rows}, nil
}

type untypedRows struct {
	driver.Rows
	buffer [64]byte
}

func (r *untypedRows) Next(dest []driver.Value) error {
	err := r.Rows.Next(dest)
	for i := range dest {
		if text, ok := dest[i].(string); ok {
			dest[i] = r.buffer[:copy(r.buffer[:], text)]
		}
	}
	return err
}

func TestOddDriversFareAsWithoutUs(t *testing.T) {
	t.Parallel()
	more := []statement{ // than there are in odd
		{"INSERT INTO todo VALUES ($1, 1)", []any{"a", true}},
		{"INSERT INTO todo VALUES ($1, 1) RETURNING cell; INSERT INTO todo VALUES ($1, 2), ($1, 3) RETURNING id, cell; SELECT 1 WHERE $1 = ''", []any{"a"}},
		{"INSERT INTO todo VALUES ('a', 1), ('b', 2), ('c', 3) RETURNING cell", nil},
	}
	for _, d := range oddDrivers {
		t.Run(d.name, func(t *testing.T) {
			t.Parallel()
			database := audittest.NewDatabase(t)
			database.Exec(t, oddSQL)
			open := func(wrap func(driver.Connector) driver.Connector) *sql.DB {
				c := other.connector(parse(t, database, nil)).(hiding)
				return openDB(t, wrap(odding{c, d.hide}))
			}
			plain := open(func(c driver.Connector) driver.Connector { return c })
			config := auditsql.Config{Logger: slog.New(slog.DiscardHandler)}
			wrapped := open(config.Wrap)
			direct := database.Connect(t)
			statements := more
			for _, s := range odd {
				// Unlike the server, the one that splits commits after each of several.
				if d.name != "several results" || !strings.Contains(s.sql, ";") {
					statements = append(statements, s)
				}
			}
			compareAll(t, direct, plain, wrapped, statements)
			for _, options := range []*sql.TxOptions{{Isolation: sql.LevelSerializable}, {ReadOnly: true}} {
				seen := func(db *sql.DB) string {
					tx, err := db.BeginTx(t.Context(), options)
					if err == nil {
						err = tx.Rollback()
					}
					return outcome(errors.Join(err, db.PingContext(t.Context())))
				}
				if diff := cmp.Diff(seen(plain), seen(wrapped)); diff != "" {
					t.Error(diff)
				}
			}
		})
	}
}

// odding is a connector of an odd driver.
type odding struct {
	hiding
	odd func(hiddenConn) driver.Conn
}

func (o odding) Connect(ctx context.Context) (driver.Conn, error) {
	conn, err := o.hiding.Connect(ctx)
	if err != nil {
		return nil, err
	}
	return o.odd(conn.(hiddenConn)), nil
}

// TestStampsOfOddDrivers looks whether they are stamped, too.
func TestStampsOfOddDrivers(t *testing.T) {
	t.Parallel()
	a := audittest.New(t, audit.Config{}, todoSQL)
	want := map[string][]string{}
	for _, d := range oddDrivers {
		c := other.connector(parse(t, a.Database, nil)).(hiding)
		db := openDB(t, auditsql.Wrap(odding{c, d.hide}))
		for _, w := range writers {
			cell := d.name + ", " + w.name
			err := errors.Join(
				w.write(by(t.Context(), "ann"), db, cell, 1),
				transact(by(t.Context(), "bob"), db, func(tx *sql.Tx) error { return w.write(t.Context(), tx, cell, 2) }))
			if err != nil {
				t.Errorf("%s: %v", cell, err)
			}
			if d.name == "checks values" && !strings.HasSuffix(w.name, "without arguments") {
				cell = "checked " + cell
			}
			want[cell] = []string{"1 ann", "2 bob"}
		}
	}
	if diff := cmp.Diff(want, whoWrote(t, a)); diff != "" {
		t.Error(diff)
	}
}

// TestInterfacesAreThoseOfTheDriver looks which interfaces there are where
// database/sql cannot be told by an error that there are none.
func TestInterfacesAreThoseOfTheDriver(t *testing.T) {
	t.Parallel()
	database := audittest.NewDatabase(t)
	database.Exec(t, todoSQL)
	has := func(c driver.Connector) map[string]bool {
		conn, err := c.Connect(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = conn.Close() })
		stmt, err := conn.Prepare("SELECT 1")
		if err != nil {
			t.Fatal(err)
		}
		_, execs := conn.(driver.ExecerContext)
		_, agedExecs := conn.(driver.Execer) //nolint:staticcheck // drivers still have it
		_, queries := conn.(driver.QueryerContext)
		_, agedQueries := conn.(driver.Queryer)      //nolint:staticcheck // drivers still have it
		_, converts := stmt.(driver.ColumnConverter) //nolint:staticcheck // drivers still have it
		return map[string]bool{"execs": execs || agedExecs, "queries": queries || agedQueries, "converts": converts}
	}
	kinds := map[string]bool{}
	check := func(name string, c driver.Connector) {
		got := has(c)
		if diff := cmp.Diff(got, has(auditsql.Wrap(c))); diff != "" {
			t.Errorf("%s: %s", name, diff)
		}
		kinds[fmt.Sprint(got)] = true
	}
	for _, d := range drivers {
		check(d.name, d.connector(parse(t, database, nil)))
	}
	for _, d := range oddDrivers {
		check(d.name, odding{other.connector(parse(t, database, nil)).(hiding), d.hide})
	}
	if len(kinds) != 5 {
		t.Errorf("looked at %v only", kinds)
	}
	if want, got := reflect.TypeOf(ofPgx.connector(parse(t, database, nil)).Driver()), reflect.TypeOf(auditsql.OpenDB(ofPgx.connector(parse(t, database, nil))).Driver()); want != got {
		t.Errorf("the driver is %s, not %s", got, want)
	}
}
