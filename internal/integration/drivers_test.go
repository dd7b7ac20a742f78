package integration_test

import (
	"context"
	"database/sql"
	sqldriver "database/sql/driver"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/jackc/pgx/v5/stdlib"
	"github.com/lib/pq"

	"github.com/hindsight-go/audit/auditsql"
)

// driver is a way to open a database: by the name of the driver, or by a
// connector that hands on what the server says beside results.
type driver struct {
	name      string
	driver    string
	connector func(t *testing.T, url string, notice func(string)) sqldriver.Connector
}

// drivers are those of pgx in all its modes, and of lib/pq.
func drivers() []driver {
	return []driver{
		{name: "pgx", driver: "pgx"},
		{name: "pq", driver: "postgres"},
		{name: "pgx, caching statements", connector: pgxConnector(pgx.QueryExecModeCacheStatement)},
		{name: "pgx, caching descriptions", connector: pgxConnector(pgx.QueryExecModeCacheDescribe)},
		{name: "pgx, executing", connector: pgxConnector(pgx.QueryExecModeExec)},
		{name: "pgx, simple protocol", connector: pgxConnector(pgx.QueryExecModeSimpleProtocol)},
		{name: "pgx over a pool", connector: poolConnector},
		{name: "pq by connector", connector: pqConnector("")},
		{name: "pq, binary parameters", connector: pqConnector("&binary_parameters=yes")},
	}
}

// bothDrivers are the two as most programs open them.
func bothDrivers() []driver { return drivers()[:2] }

func pgxConfig(t *testing.T, url string, mode pgx.QueryExecMode, notice func(string)) pgx.ConnConfig {
	t.Helper()
	config, err := pgx.ParseConfig(url)
	if err != nil {
		t.Fatal(err)
	}
	config.DefaultQueryExecMode = mode
	config.OnNotice = func(_ *pgconn.PgConn, n *pgconn.Notice) { notice(n.Message) }
	return *config
}

func pgxConnector(mode pgx.QueryExecMode) func(*testing.T, string, func(string)) sqldriver.Connector {
	return func(t *testing.T, url string, notice func(string)) sqldriver.Connector {
		t.Helper()
		return stdlib.GetConnector(pgxConfig(t, url, mode, notice))
	}
}

func poolConnector(t *testing.T, url string, notice func(string)) sqldriver.Connector {
	t.Helper()
	config, err := pgxpool.ParseConfig(url)
	if err != nil {
		t.Fatal(err)
	}
	config.ConnConfig.OnNotice = func(_ *pgconn.PgConn, n *pgconn.Notice) { notice(n.Message) }
	pool, err := pgxpool.NewWithConfig(context.WithoutCancel(t.Context()), config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(pool.Close)
	return stdlib.GetPoolConnector(pool)
}

func pqConnector(parameters string) func(*testing.T, string, func(string)) sqldriver.Connector {
	return func(t *testing.T, url string, notice func(string)) sqldriver.Connector {
		t.Helper()
		connector, err := pq.NewConnector(url + parameters)
		if err != nil {
			t.Fatal(err)
		}
		return pq.ConnectorWithNoticeHandler(connector, func(n *pq.Error) { notice(n.Message) })
	}
}

// open opens a database with connections that stamp: three, so that the contexts
// of many meet on them.
func (d driver) open(t *testing.T, url string, notice func(string)) *sql.DB {
	t.Helper()
	if d.driver == "" {
		return closing(t, auditsql.OpenDB(d.connector(t, url, notice)))
	}
	db, err := auditsql.Open(d.driver, url)
	if err != nil {
		t.Fatal(err)
	}
	return closing(t, db)
}

// openBare opens a database with connections that do not.
func (d driver) openBare(t *testing.T, url string, notice func(string)) *sql.DB {
	t.Helper()
	if d.driver == "" {
		return closing(t, sql.OpenDB(d.connector(t, url, notice)))
	}
	db, err := sql.Open(d.driver, url)
	if err != nil {
		t.Fatal(err)
	}
	return closing(t, db)
}

func closing(t *testing.T, db *sql.DB) *sql.DB {
	t.Helper()
	t.Cleanup(func() { _ = db.Close() })
	db.SetMaxOpenConns(3)
	return db
}

// isPQ reports whether the driver is lib/pq, which alone knows COPY.
func isPQ(db *sql.DB) bool {
	_, ok := db.Driver().(*pq.Driver)
	return ok
}

func ignore(string) {}
