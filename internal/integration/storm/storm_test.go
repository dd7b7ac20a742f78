package storm_test

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"regexp"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/jackc/pgx/v5/stdlib"
	"github.com/lib/pq"

	"github.com/hindsight-go/audit/auditsql"
	"github.com/hindsight-go/audit/audittest"
	"github.com/hindsight-go/audit/internal/faulttest"
)

// mode is a driver, and a way of it to run statements.
type mode struct {
	name      string
	ofPq      bool
	connector func(t *testing.T, url string) driver.Connector
}

func modes() []mode {
	all := []mode{
		{name: "pgx over a pool", connector: poolConnector},
		{name: "pq", ofPq: true, connector: pqConnector("")},
		{name: "pq, binary parameters", ofPq: true, connector: pqConnector("&binary_parameters=yes")},
	}
	for _, of := range []pgx.QueryExecMode{
		pgx.QueryExecModeCacheStatement, pgx.QueryExecModeCacheDescribe, pgx.QueryExecModeDescribeExec,
		pgx.QueryExecModeExec, pgx.QueryExecModeSimpleProtocol,
	} {
		all = append(all, mode{name: "pgx, " + of.String(), connector: func(t *testing.T, url string) driver.Connector {
			t.Helper()
			config, err := pgx.ParseConfig(url)
			if err != nil {
				t.Fatal(err)
			}
			config.DefaultQueryExecMode = of
			return stdlib.GetConnector(*config)
		}})
	}
	return all
}

func poolConnector(t *testing.T, url string) driver.Connector {
	t.Helper()
	config, err := pgxpool.ParseConfig(url)
	if err != nil {
		t.Fatal(err)
	}
	config.MaxConns = connections
	pool, err := pgxpool.NewWithConfig(context.WithoutCancel(t.Context()), config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(pool.Close)
	return stdlib.GetPoolConnector(pool)
}

func pqConnector(parameters string) func(*testing.T, string) driver.Connector {
	return func(t *testing.T, url string) driver.Connector {
		t.Helper()
		connector, err := pq.NewConnector(url + parameters)
		if err != nil {
			t.Fatal(err)
		}
		return fragile{connector}
	}
}

// pqConn is what connections of lib/pq have.
type pqConn interface {
	driver.Conn
	driver.ExecerContext
	driver.QueryerContext
	driver.ConnPrepareContext
	driver.ConnBeginTx
	driver.Pinger
	driver.SessionResetter
	driver.Validator
	driver.NamedValueChecker
}

// fragile makes connections that can be made bad.
type fragile struct{ driver.Connector }

func (f fragile) Connect(ctx context.Context) (driver.Conn, error) {
	conn, err := f.Connector.Connect(ctx)
	if err != nil {
		return nil, err
	}
	return &fragileConn{pqConn: conn.(pqConn)}, nil
}

// fragileConn says driver.ErrBadConn to the next that it is asked, once it is bad.
type fragileConn struct {
	pqConn
	bad bool
}

func (c *fragileConn) ExecContext(ctx context.Context, query string, args []driver.NamedValue) (driver.Result, error) {
	if c.bad {
		return nil, driver.ErrBadConn
	}
	return c.pqConn.ExecContext(ctx, query, args)
}

func (c *fragileConn) QueryContext(ctx context.Context, query string, args []driver.NamedValue) (driver.Rows, error) {
	if c.bad {
		return nil, driver.ErrBadConn
	}
	return c.pqConn.QueryContext(ctx, query, args)
}

func (c *fragileConn) PrepareContext(ctx context.Context, query string) (driver.Stmt, error) {
	if c.bad {
		return nil, driver.ErrBadConn
	}
	return c.pqConn.PrepareContext(ctx, query)
}

func (c *fragileConn) BeginTx(ctx context.Context, options driver.TxOptions) (driver.Tx, error) {
	if c.bad {
		return nil, driver.ErrBadConn
	}
	return c.pqConn.BeginTx(ctx, options)
}

const (
	goroutines  = 200
	rounds      = 8
	connections = 4 // of each mode
)

// Hundreds of goroutines write in every way and mode of database/sql at once, each under a
// context of its own, with reads, rollbacks, lost connections and cancelled contexts in
// between: in the write-ahead log every row stands behind its own stamp, and those that
// were written without one behind none.
func TestStorm_ThroughDatabaseSQL(t *testing.T) {
	t.Parallel()
	db := audittest.NewDatabase(t)
	db.Exec(t, "CREATE TABLE todo (who text, n int)")
	decoded := faulttest.NewDecoded(t, db)
	all := modes()
	pools := make([]*sql.DB, len(all))
	for i, m := range all {
		pools[i] = auditsql.OpenDB(m.connector(t, db.URL()))
		pools[i].SetMaxOpenConns(connections)
		t.Cleanup(func() { _ = pools[i].Close() })
	}
	var lost atomic.Uint64
	// One round of every act in every mode, so that none is left to chance, and then any.
	var once sync.WaitGroup
	for i, m := range all {
		for _, a := range acts {
			once.Go(func() { perform(t, m, pools[i], &lost, a, rand.New(rand.NewPCG(15, uint64(i))), "once") }) //nolint:gosec // It is to be repeatable.
		}
	}
	once.Wait()
	var storm sync.WaitGroup
	for g := range goroutines {
		storm.Go(func() {
			random := rand.New(rand.NewPCG(16, uint64(g))) //nolint:gosec // It is to be repeatable.
			for round := range rounds {
				i := random.IntN(len(all))
				perform(t, all[i], pools[i], &lost, acts[random.IntN(len(acts))], random, fmt.Sprintf("%d-%d", g, round))
			}
		})
	}
	storm.Wait()
	checkLog(t, decoded)
	if stats := auditsql.DefaultStats(); stats.Lost != lost.Load() {
		t.Errorf("%+v, want %d lost", stats, lost.Load())
	}
}

func perform(t *testing.T, m mode, db *sql.DB, lost *atomic.Uint64, a act, random *rand.Rand, cell string) {
	t.Helper()
	if a.ofPq && !m.ofPq {
		return
	}
	w := &worker{db: db, pq: m.ofPq, random: random, lost: lost, cell: cell + ", " + m.name + ", " + a.name}
	err := a.do(t.Context(), w)
	if errors.Is(err, driver.ErrBadConn) || errors.Is(err, sql.ErrConnDone) {
		return // database/sql gives up when it is given bad connections again and again
	}
	if err != nil {
		t.Errorf("%s: %s: %s: %v", cell, m.name, a.name, err)
	}
}

// checkLog compares each row with the stamp that counts for it.
func checkLog(t *testing.T, decoded *faulttest.Decoded) {
	t.Helper()
	rows, without, who := 0, 0, regexp.MustCompile(`who\[text\]:'([^']*)'`)
	decoded.Rows(t, func(_, _, row, stamp string) {
		m := who.FindStringSubmatch(row)
		if m == nil {
			t.Fatalf("a row of nobody: %s", row)
		}
		rows++
		if m[1] == nobody {
			if without++; stamp != "" {
				t.Errorf("a row without context is under %q", stamp)
			}
			return
		}
		var by struct {
			UserID string `json:"userId"`
		}
		if err := json.Unmarshal([]byte(stamp), &by); err != nil || by.UserID != m[1] {
			t.Errorf("a row of %q is under %q", m[1], stamp)
		}
	})
	if rows < goroutines*rounds || without == 0 {
		t.Errorf("%d rows in the log, %d of them without context", rows, without)
	}
	t.Logf("%d rows, %d of them without context", rows, without)
}

// code returns the SQLSTATE of an error of either driver.
func code(err error) string {
	var coded interface{ SQLState() string }
	if errors.As(err, &coded) {
		return coded.SQLState()
	}
	return ""
}
