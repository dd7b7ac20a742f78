package auditsql_test

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/stdlib"

	"github.com/hindsight-go/audit"
	"github.com/hindsight-go/audit/auditsql"
	"github.com/hindsight-go/audit/audittest"
)

const todoSQL = `CREATE TABLE todo (cell text, id int, task text, PRIMARY KEY (cell, id))`

const insert = "INSERT INTO todo VALUES ($1, $2, 'x')"

func by(ctx context.Context, user string) context.Context {
	return audit.WithContext(ctx, audit.Context{UserID: user})
}

// code returns the SQLSTATE of an error.
func code(err error) string {
	var pgErr *pgconn.PgError
	if errors.As(err, &pgErr) {
		return pgErr.Code
	}
	var fielded fieldError
	if errors.As(err, &fielded) {
		return fielded.Field('C')
	}
	return ""
}

// parse reads how to connect to a database.
func parse(t testing.TB, db *audittest.Database, change func(*pgx.ConnConfig)) *pgx.ConnConfig {
	t.Helper()
	config, err := pgx.ParseConfig(db.URL())
	if err != nil {
		t.Fatal(err)
	}
	if change != nil {
		change(config)
	}
	return config
}

// aDriver is a driver, made of that of pgx.
type aDriver struct {
	name string
	hide func(*stdlib.Conn) driver.Conn // nil if it is that of pgx itself
	mode pgx.QueryExecMode
}

var (
	ofPgx  = aDriver{name: "pgx"}
	other  = aDriver{name: "another driver", hide: hidden}
	fields = aDriver{name: "a driver with fields in errors", hide: func(c *stdlib.Conn) driver.Conn { return fieldsConn{hidden(c).(hiddenConn)} }}
	bare   = aDriver{name: "a driver without extras", hide: func(c *stdlib.Conn) driver.Conn { return bareConn{c} }}
)

// drivers are all drivers and modes of them that make a difference.
var drivers = []aDriver{
	ofPgx, other, bare,
	{name: "pgx, cache describe", mode: pgx.QueryExecModeCacheDescribe},
	{name: "pgx, exec", mode: pgx.QueryExecModeExec},
	{name: "pgx, simple", mode: pgx.QueryExecModeSimpleProtocol},
}

// connector returns a connector of the driver that does not stamp.
func (d aDriver) connector(config *pgx.ConnConfig) driver.Connector {
	if d.mode != 0 {
		config.DefaultQueryExecMode = d.mode
	}
	c := stdlib.GetConnector(*config)
	if d.hide == nil {
		return c
	}
	return hiding{c, d.hide}
}

// open opens a database that stamps.
func (d aDriver) open(t testing.TB, config *pgx.ConnConfig) (*sql.DB, *auditsql.Connector) {
	t.Helper()
	connector := auditsql.Config{}.Wrap(d.connector(config)).(*auditsql.Connector)
	return openDB(t, connector), connector
}

func openDB(t testing.TB, connector driver.Connector) *sql.DB {
	t.Helper()
	db := sql.OpenDB(connector)
	t.Cleanup(func() { _ = db.Close() })
	return db
}

// hiding is a connector whose connections do not show what they are.
type hiding struct {
	driver.Connector
	hide func(*stdlib.Conn) driver.Conn
}

func (h hiding) Connect(ctx context.Context) (driver.Conn, error) {
	conn, err := h.Connector.Connect(ctx)
	if err != nil {
		return nil, err
	}
	return h.hide(conn.(*stdlib.Conn)), nil
}

// hiddenConn has what a connection of pgx has.
type hiddenConn struct {
	driver.Conn
	driver.ExecerContext
	driver.QueryerContext
	driver.ConnPrepareContext
	driver.ConnBeginTx
	driver.Pinger
	driver.SessionResetter
	driver.NamedValueChecker
}

func hidden(c *stdlib.Conn) driver.Conn { return hiddenConn{c, c, c, c, c, c, c, c} }

// fieldError is an error as some drivers have it.
type fieldError struct{ of *pgconn.PgError }

func (e fieldError) Error() string { return e.of.Error() }

func (e fieldError) Field(name byte) string {
	return map[byte]string{'C': e.of.Code, 'M': e.of.Message}[name]
}

// fieldsConn has such errors, as far as statements are not prepared.
type fieldsConn struct{ hiddenConn }

func (c fieldsConn) ExecContext(ctx context.Context, query string, args []driver.NamedValue) (driver.Result, error) {
	result, err := c.hiddenConn.ExecContext(ctx, query, args)
	return result, fielded(err)
}

func (c fieldsConn) QueryContext(ctx context.Context, query string, args []driver.NamedValue) (driver.Rows, error) {
	rows, err := c.hiddenConn.QueryContext(ctx, query, args)
	return rows, fielded(err)
}

func fielded(err error) error {
	var pgErr *pgconn.PgError
	if errors.As(err, &pgErr) {
		return fieldError{pgErr}
	}
	return err
}

// bareConn has what every connection must have, and nothing else.
type bareConn struct{ on *stdlib.Conn }

func (c bareConn) Close() error              { return c.on.Close() }
func (c bareConn) Begin() (driver.Tx, error) { return c.on.Begin() }

func (c bareConn) Prepare(query string) (driver.Stmt, error) {
	prepared, err := c.on.Prepare(query)
	if err != nil {
		return nil, err
	}
	return bareStmt{prepared.(*stdlib.Stmt)}, nil
}

// bareStmt is the statement that goes with it.
type bareStmt struct{ of *stdlib.Stmt }

func (s bareStmt) Close() error  { return s.of.Close() }
func (s bareStmt) NumInput() int { return s.of.NumInput() }

func (s bareStmt) Exec(args []driver.Value) (driver.Result, error) {
	return s.of.ExecContext(context.Background(), named(args))
}

func (s bareStmt) Query(args []driver.Value) (driver.Rows, error) {
	return s.of.QueryContext(context.Background(), named(args))
}

func named(args []driver.Value) []driver.NamedValue {
	list := make([]driver.NamedValue, len(args))
	for i, arg := range args {
		list[i] = driver.NamedValue{Ordinal: i + 1, Value: arg}
	}
	return list
}
