package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/hindsight-go/audit/internal/pgserver"
)

// suites are the tests of a package each.
var suites = []suite{
	{name: "pgx", module: "github.com/jackc/pgx/v5", wrap: "Wrap", stamped: "Stamped", setup: pgxSetup, env: pgxEnv, slow: "TestRawValuesUnderlyingMemoryReused"},
	{name: "pgxpool", module: "github.com/jackc/pgx/v5", dir: "pgxpool", wrap: "Wrap", stamped: "Stamped", setup: pgxSetup, env: pgxEnv},
	{name: "stdlib", module: "github.com/jackc/pgx/v5", dir: "stdlib", wrap: "WrapStdlib", stamped: "SQLStamped", setup: pgxSetup, env: pgxEnv},
	{name: "pq", module: "github.com/lib/pq", wrap: "Wrap", stamped: "SQLStamped", env: pqEnv, skip: "TestConnectorWith(Notice|Notification)Handler|TestNoticeHandler|TestUnexpectedEOF"},
	{name: "sqlx", module: "github.com/jmoiron/sqlx", driver: "github.com/lib/pq", wrap: "Wrap", stamped: "SQLStamped", env: sqlxEnv},
}

// suite is the tests of one package.
type suite struct {
	name    string
	module  string
	dir     string // of the package in the module
	driver  string // the module whose copy has the hooks, if it is another
	wrap    string // what is called to go through the wrappers
	stamped string // what says how much was stamped
	setup   string // SQL that prepares the database
	// skip are tests that take a connection for one of the driver's own type, or talk to a
	// server that they made up, which knows their texts only.
	skip string
	slow string // tests of a minute that -short leaves out
	env  func(dsn pgserverDSN) []string
}

// The peers need connections by the dozen, and each test of pgxpool a pool.
var serverSettings = map[string]string{"max_prepared_transactions": "10"}

// limit bounds a run: a test that hangs is a difference, too.
const limit = 3 * time.Minute

// pgxSetup is testsetup/postgresql_setup.sql of pgx, for one database.
const pgxSetup = `CREATE EXTENSION hstore; CREATE EXTENSION ltree; CREATE DOMAIN uint64 AS numeric(20,0)`

// makeRoles makes the roles of which the tests of pgx and lib/pq take it that they
// are there.
func makeRoles(ctx context.Context, server *pgserver.Server) error {
	conn, err := pgx.Connect(ctx, server.MaintenanceDSN())
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close(ctx) }()
	for _, role := range []string{"pgqo", "pqgo", "pgx_md5", `" tricky, ' } "" \ test user "`} {
		if _, err := conn.Exec(ctx, "CREATE ROLE "+role+" SUPERUSER LOGIN PASSWORD 'secret'"); err != nil {
			return fmt.Errorf("create role: %w", err)
		}
	}
	return nil
}

// pgserverDSN is a connection string in parts.
type pgserverDSN struct{ text, host, user, database string }

func pgxEnv(dsn pgserverDSN) []string { return []string{"PGX_TEST_DATABASE=" + dsn.text} }

func pqEnv(dsn pgserverDSN) []string {
	return []string{"PGHOST=" + dsn.host, "PGUSER=" + dsn.user, "PGDATABASE=" + dsn.database, "PGSSLMODE=disable"}
}

// sqlxEnv leaves out the other databases that sqlx is tested with.
func sqlxEnv(dsn pgserverDSN) []string {
	return []string{"SQLX_POSTGRES_DSN=" + dsn.text, "SQLX_MYSQL_DSN=skip", "SQLX_SQLITE_DSN=skip", "PGSSLMODE=disable"}
}

func (s suite) path(dir string) string { return filepath.Join(copyOf(dir, s.module), s.dir) }

func (s suite) binary(dir string) string { return filepath.Join(dir, s.name+".test") }

// writeLastTest puts a test behind all others, see through/last_test.go.txt.
func (s suite) writeLastTest(dir string) error {
	text, err := through.ReadFile("through/last_test.go.txt")
	if err != nil {
		return err
	}
	hooks := cmp.Or(s.driver, s.module)
	content := strings.NewReplacer("PACKAGE", s.name, "MODULE", hooks, "WRAP", s.wrap, "STAMPED", s.stamped).Replace(string(text))
	return write(filepath.Join(s.path(dir), "zz_peers_test.go"), content)
}

func (s suite) build(ctx context.Context, dir string) error {
	_, err := goCommand(ctx, s.path(dir), "test", "-c", "-mod=mod", "-vet=off", "-o", s.binary(dir), ".")
	if err != nil {
		return fmt.Errorf("build the tests of %s: %w", s.name, err)
	}
	return nil
}

// runOnce runs the tests of a suite in a database of their own.
func (b *bench) runOnce(ctx context.Context, s suite, mode, pattern string) (outcome, error) {
	dsn, err := b.makeDatabase(ctx, s)
	if err != nil {
		return outcome{}, err
	}
	begun := time.Now()
	args := []string{"tool", "test2json", "-t", s.binary(b.dir), "-test.v=test2json", "-test.count=1", "-test.timeout=" + limit.String()}
	if pattern != "" {
		args = append(args, "-test.run="+pattern)
	}
	skip := s.skip
	if b.short && s.slow != "" {
		skip = strings.TrimPrefix(skip+"|"+s.slow, "|")
	}
	if skip != "" {
		args = append(args, "-test.skip="+skip)
	}
	cmd := exec.CommandContext(ctx, "go", args...)
	cmd.Dir = s.path(b.dir)
	cmd.Env = append(os.Environ(), s.env(dsn)...)
	if mode != "bare" {
		cmd.Env = append(cmd.Env, "AUDIT_PEERS_MODE="+mode)
	}
	printed, err := cmd.Output()
	var failed *exec.ExitError
	if err != nil && !errors.As(err, &failed) {
		return outcome{}, err
	}
	o, err := readOutcome(printed)
	o.took = time.Since(begun)
	if pattern == "" && err == nil && o.results["TestPeersStamped"] != "pass" {
		o.early = true
		err = errors.New("the tests ended before the last, or nothing was stamped: " + o.end())
	}
	delete(o.results, "TestPeersStamped")
	return o, err
}

// makeDatabase makes a database, which goes with the server.
func (b *bench) makeDatabase(ctx context.Context, s suite) (pgserverDSN, error) {
	b.mu.Lock()
	b.made++
	name := fmt.Sprintf("%s_%d", s.name, b.made)
	b.mu.Unlock()
	if err := execute(ctx, b.server.MaintenanceDSN(), "CREATE DATABASE "+name); err != nil {
		return pgserverDSN{}, err
	}
	text := b.server.DSN(name)
	if s.setup != "" {
		if err := execute(ctx, text, s.setup); err != nil {
			return pgserverDSN{}, fmt.Errorf("set up the database of %s: %w", s.name, err)
		}
	}
	config, err := pgx.ParseConfig(text)
	if err != nil {
		return pgserverDSN{}, err
	}
	host := config.Host
	if u, err := url.Parse(text); err == nil && u.Query().Get("host") != "" {
		host = u.Query().Get("host")
	}
	return pgserverDSN{text: text, host: host, user: config.User, database: name}, nil
}

func execute(ctx context.Context, dsn, sql string) error {
	conn, err := pgx.Connect(ctx, dsn)
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close(ctx) }()
	_, err = conn.Exec(ctx, sql)
	return err
}
