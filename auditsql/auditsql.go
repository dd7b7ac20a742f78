package auditsql

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"io"
	"log/slog"

	"github.com/jackc/pgx/v5/stdlib"

	"github.com/hindsight-go/audit"
	"github.com/hindsight-go/audit/internal/stamp"
)

// Config says how to stamp. Its zero value is what [Open], [OpenDB] and [Wrap]
// use.
type Config struct {
	// Prefix is the prefix of the messages. Default: audit.StampPrefix. It has to
	// be the ContextPrefix of the client that captures.
	Prefix string

	// Identity lets the database add what it knows by itself: session user,
	// application name and client address, as the member "db" of the context,
	// which the application's own claims cannot forge. It costs the server a few
	// microseconds a stamp. Through a pooler, name and address are the pooler's.
	// Default: off.
	Identity bool

	// Logger is told of contexts that were lost, and of writes without one, each at
	// most once a minute. Default: slog.Default().
	Logger *slog.Logger

	// Context tells the context of a write whose ctx has none, in programs that do not
	// pass the ctx of the request down to the database, and whether there is one. It is
	// asked for each statement that writes, by the goroutine that runs it, and has to
	// be safe for concurrent use. What ctx says goes before it.
	// Default: none.
	Context func() (audit.Context, bool)
}

// Wrap returns a [*Connector] over connector. One that is a *Connector already
// is returned as it is.
func (c Config) Wrap(connector driver.Connector) driver.Connector {
	s := stamp.New(c.Prefix, c.Identity, c.Logger)
	s.Ask = c.Context
	return wrap(connector, s)
}

// OpenDB is sql.OpenDB of the wrapped connector.
func (c Config) OpenDB(connector driver.Connector) *sql.DB { return sql.OpenDB(c.Wrap(connector)) }

// Open is sql.Open with connections that stamp. The driver is one that is
// registered under driverName: "pgx" of pgx/stdlib, "postgres" of lib/pq. As with
// sql.Open, nothing is connected yet.
func (c Config) Open(driverName, dataSourceName string) (*sql.DB, error) {
	connector, err := find(driverName, dataSourceName)
	if err != nil {
		return nil, err
	}
	return c.OpenDB(connector), nil
}

// standard is what the package-level functions use, so that their counts add up.
var standard = stamp.New("", false, nil)

// Wrap returns a [*Connector] over connector, with the defaults of [Config]. One
// that is a *Connector already is returned as it is.
func Wrap(connector driver.Connector) driver.Connector { return wrap(connector, standard) }

// OpenDB is sql.OpenDB of the wrapped connector, with the defaults of [Config].
func OpenDB(connector driver.Connector) *sql.DB { return sql.OpenDB(Wrap(connector)) }

// Open is sql.Open with connections that stamp, with the defaults of [Config].
// See [Config.Open].
func Open(driverName, dataSourceName string) (*sql.DB, error) {
	connector, err := find(driverName, dataSourceName)
	if err != nil {
		return nil, err
	}
	return OpenDB(connector), nil
}

// find returns the connector that sql.Open would use.
func find(driverName, dataSourceName string) (driver.Connector, error) {
	// Only a DB tells which driver a name stands for.
	db, err := sql.Open(driverName, dataSourceName)
	if err != nil {
		return nil, err
	}
	named := db.Driver()
	if err := db.Close(); err != nil {
		return nil, err
	}
	if d, ok := named.(driver.DriverContext); ok {
		return d.OpenConnector(dataSourceName)
	}
	return dsnConnector{named, dataSourceName}, nil
}

// dsnConnector is the connector of a driver that has none of its own.
type dsnConnector struct {
	driver driver.Driver
	dsn    string
}

func (c dsnConnector) Connect(context.Context) (driver.Conn, error) { return c.driver.Open(c.dsn) }
func (c dsnConnector) Driver() driver.Driver                        { return c.driver }

// Stats counts what became of contexts.
type Stats struct {
	// Stamped is the number of stamps that the server took. Some of them were
	// rolled back later, with what they were for.
	Stamped uint64 `json:"stamped"`
	// Cut is the number of stamps with members left out since they are no JSON.
	Cut uint64 `json:"cut"`
	// Lost is the number of statements that were run without the context they
	// should have had.
	Lost uint64 `json:"lost"`
	// Without is the number of statements that write and whose ctx had no context, in
	// transactions without a stamp.
	Without uint64 `json:"without"`
}

// DefaultStats counts what became of the contexts that went through [Open],
// [OpenDB] and [Wrap], all together. It is safe for concurrent use.
func DefaultStats() Stats { return Stats(standard.Stats()) }

// Connector makes connections that stamp. It is what [Wrap] and [Config.Wrap]
// return. All its methods are safe for concurrent use.
type Connector struct {
	connector driver.Connector
	s         *stamp.Stamper
}

func wrap(connector driver.Connector, s *stamp.Stamper) driver.Connector {
	if c, ok := connector.(*Connector); ok {
		return c
	}
	return &Connector{connector, s}
}

// Connect is Connect of the wrapped connector.
func (c *Connector) Connect(ctx context.Context) (driver.Conn, error) {
	conn, err := c.connector.Connect(ctx)
	if err != nil {
		return nil, err
	}
	if pgx, ok := conn.(*stdlib.Conn); ok {
		return newPgxConn(pgx, c.s), nil
	}
	return newConn(conn, c.s), nil
}

// Driver returns the driver of the wrapped connector, which does not stamp.
func (c *Connector) Driver() driver.Driver { return c.connector.Driver() }

// Close closes the wrapped connector, if that can be closed. Closing the DB does
// that.
func (c *Connector) Close() error {
	if closer, ok := c.connector.(io.Closer); ok {
		return closer.Close()
	}
	return nil
}

// Stats counts what became of the contexts that went through the connector. Those
// of the package-level [Wrap] count together, those of a [Config] by themselves.
func (c *Connector) Stats() Stats { return Stats(c.s.Stats()) }

// Unwrap returns the driver's own connection, which does not stamp, for one that
// was given by sql.Conn.Raw. A connection that is not from this package is
// returned as it is.
//
//	err := conn.Raw(func(c any) error {
//		return copyRows(auditsql.Unwrap(c).(*stdlib.Conn).Conn())
//	})
func Unwrap(driverConn any) any {
	if c, ok := driverConn.(interface{ unwrap() driver.Conn }); ok {
		return c.unwrap()
	}
	return driverConn
}

// Execer is what [Stamps] needs: *sql.DB, *sql.Conn and *sql.Tx have it.
type Execer interface {
	ExecContext(ctx context.Context, query string, args ...any) (sql.Result, error)
}

// Stamps reports whether what is written through db is stamped by this package,
// whatever else its connections are wrapped with. Where it is not, that takes a round
// trip, of a comment, and else none. The error is that of running it on db.
func Stamps(ctx context.Context, db Execer) (bool, error) {
	result, err := db.ExecContext(ctx, stamp.Question)
	if err != nil {
		return false, err
	}
	// Drivers that do not tell it of a comment, as lib/pq, do not stamp.
	n, err := result.RowsAffected()
	return err == nil && n == stamp.Answer, nil
}

// AsWrite returns a ctx in which every statement counts as one that changes
// rows. It is for a SELECT that calls a function that writes. It is the same as
// auditpgx.AsWrite.
func AsWrite(ctx context.Context) context.Context { return stamp.AsWrite(ctx) }
