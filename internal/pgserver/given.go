package pgserver

import (
	"context"
	"fmt"
	"net/url"
	"strings"

	"github.com/jackc/pgx/v5"
)

// given is a server that someone else runs.
type given struct{ base string }

// useGiven checks that the server of the environment can do what tests need.
// It is better to say here that wal_level is wrong than to have every test of
// capture fail in its own way.
func useGiven(ctx context.Context, dsn string) (*Server, error) {
	conn, err := pgx.Connect(ctx, dsn)
	if err != nil {
		return nil, fmt.Errorf("pgserver: connect to the server of %s: %w", EnvDatabaseURL, err)
	}
	defer conn.Close(ctx)

	var (
		version   int
		walLevel  string
		mayCreate bool
	)
	const query = `
		SELECT pg_catalog.current_setting('server_version_num')::int,
		       pg_catalog.current_setting('wal_level'),
		       (SELECT rolcreatedb OR rolsuper FROM pg_catalog.pg_roles WHERE rolname = current_user)`
	if err := conn.QueryRow(ctx, query).Scan(&version, &walLevel, &mayCreate); err != nil {
		return nil, fmt.Errorf("pgserver: check the server of %s: %w", EnvDatabaseURL, err)
	}
	switch {
	case version/10000 < MinMajor:
		return nil, &UnsuitableError{
			Problem: fmt.Sprintf("is PostgreSQL %d", version/10000),
			Hint:    fmt.Sprintf("use %d or newer", MinMajor),
		}
	case walLevel != "logical":
		return nil, &UnsuitableError{
			Problem: "has wal_level = " + walLevel,
			Hint:    "run ALTER SYSTEM SET wal_level = logical and restart it",
		}
	case !mayCreate:
		return nil, &UnsuitableError{
			Problem: "does not let its role create databases",
			Hint:    "run ALTER ROLE ... CREATEDB REPLICATION as a superuser",
		}
	}
	return &Server{kind: Given, host: given{base: dsn}, version: version}, nil
}

// dsn keeps everything that the given connection string says but the database.
func (g given) dsn(database string) string {
	if !strings.HasPrefix(g.base, "postgres://") && !strings.HasPrefix(g.base, "postgresql://") {
		// In the keyword form the last mention of a keyword wins.
		quoted := strings.NewReplacer(`\`, `\\`, `'`, `\'`).Replace(database)
		return g.base + " dbname='" + quoted + "'"
	}
	u, err := url.Parse(g.base)
	if err != nil {
		return g.base // It was connected to, so it does parse.
	}
	u.Path = "/" + database
	u.RawPath = ""
	if q := u.Query(); q.Has("dbname") || q.Has("database") {
		// As a parameter it would win over the path.
		q.Del("dbname")
		q.Del("database")
		u.RawQuery = q.Encode()
	}
	return u.String()
}

func (g given) maintenanceDSN() string { return g.base }

func (given) log() string  { return "" }
func (given) close() error { return nil }
