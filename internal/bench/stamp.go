package main

import (
	"cmp"
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"net"
	"slices"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/jackc/pgx/v5/stdlib"

	"github.com/hindsight-go/audit"
	"github.com/hindsight-go/audit/auditpgx"
	"github.com/hindsight-go/audit/auditsql"
)

const (
	stampTable = "CREATE TABLE todo (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, task text NOT NULL, done boolean NOT NULL DEFAULT false)"
	stampWrite = "INSERT INTO todo (task) VALUES ($1)"
	stampRead  = "SELECT task FROM todo WHERE id = $1"
	// slice is for how long one side runs before it is the other's turn.
	slice = 10 * time.Millisecond
	// parts is in how many parts a run is looked at, for the range of its ratio.
	parts = 5
)

// stamp measures what the stamp of a context costs the writes it goes with: the
// same writes with a context and without, in turns of some 10 ms, so that noise
// of the machine hits both. Each side has one connection. They do not wait for
// the disk at first, which leaves the stamp nothing to hide behind, and then
// they do.
func stamp(ctx context.Context, b *bench) error {
	if err := b.exec(ctx, stampTable, "INSERT INTO todo (task) SELECT 'Sleep' FROM generate_series(1, 1000)"); err != nil {
		return err
	}
	b.printf("%-26s %-6s %8s %8s %5s %11s %12s %12s %11s\n", "what", "sync", "plain/s", "stamp/s", "ratio", "range", "server CPU", "client CPU", "trips")
	for _, commit := range []string{"off", "on"} {
		for _, shape := range stampShapes() {
			if err := b.stampOf(ctx, shape, commit); err != nil {
				return fmt.Errorf("%s: %w", shape.name, err)
			}
			if err := b.exec(ctx, "DELETE FROM todo WHERE id > 1000", "VACUUM todo"); err != nil {
				return err
			}
		}
	}
	return nil
}

// stampOf measures one way to write.
func (b *bench) stampOf(ctx context.Context, shape stampShape, commit string) error {
	versions := []*version{nil, &thisVersion}
	if earlierVersion != nil {
		versions = append(versions, earlierVersion)
	}
	var sides []*side
	for _, v := range versions {
		s, err := newSide(ctx, b.url, commit, shape, v)
		if err != nil {
			return err
		}
		defer s.close()
		sides = append(sides, s)
	}
	if err := compare(b.n(300_000)/1000, sides...); err != nil {
		return err
	}
	b.tell(shape.name, commit, sides[0], sides[1])
	if earlierVersion != nil {
		b.tell("  before", commit, sides[0], sides[2])
		middle, least, most := ratio(sides[1], sides[2])
		b.printf("  time of after to before %7s %9s %8.2f %5.2f-%5.2f\n", "", "", middle, least, most)
	}
	return nil
}

// version is a state of the wrappers.
type version struct {
	ofPool      func(*pgxpool.Pool) auditpgx.Querier
	ofConnector func(driver.Connector) driver.Connector
	with        func(context.Context) context.Context // a ctx with a context to stamp
}

var thisVersion = version{
	ofPool:      func(pool *pgxpool.Pool) auditpgx.Querier { return auditpgx.Wrap(pool) },
	ofConnector: auditsql.Wrap,
	with: func(ctx context.Context) context.Context {
		return audit.WithContext(ctx, audit.Context{
			UserID: 187234, RequestID: "5f1c8a52-6c3b-4d53-9a53-9d3f5a1c2b3e", Endpoint: "POST /todo/{id}",
			TraceID: "4bf92f3577b34da6a3ce929d0e0e4736", SpanID: "00f067aa0ba902b7",
		})
	},
}

// earlierVersion is that of an earlier commit, which takes its turns, too. It is nil
// but in what command against builds.
var earlierVersion *version

// stampShape is a way to write.
type stampShape struct {
	name string
	open opener
}

// opener connects, for a version of the wrappers or, if that is nil, without them.
type opener func(ctx context.Context, config *pgx.ConnConfig, v *version) (work func(context.Context) error, pid int, done func(), err error)

func stampShapes() []stampShape {
	transaction := func(statements ...string) func(context.Context, auditpgx.Querier) error {
		return func(ctx context.Context, q auditpgx.Querier) error {
			return pgx.BeginFunc(ctx, q, func(tx pgx.Tx) error {
				for _, sql := range statements {
					if _, err := tx.Exec(ctx, sql, stampArgument(sql)); err != nil {
						return err
					}
				}
				return nil
			})
		}
	}
	sqlTransaction := func(statements ...string) func(context.Context, *sql.DB) error {
		return func(ctx context.Context, db *sql.DB) error {
			tx, err := db.BeginTx(ctx, nil)
			if err != nil {
				return err
			}
			for _, sql := range statements {
				if _, err := tx.ExecContext(ctx, sql, stampArgument(sql)); err != nil {
					return errors.Join(err, tx.Rollback())
				}
			}
			return tx.Commit()
		}
	}
	six := slices.Repeat([]string{stampWrite}, 6)
	tasks := slices.Repeat([]string{"Sleep"}, 100)
	return []stampShape{
		{"pgx, lone INSERT", throughPgx(func(ctx context.Context, q auditpgx.Querier) error {
			_, err := q.Exec(ctx, stampWrite, "Sleep")
			return err
		})},
		{"pgx, 6 INSERTs", throughPgx(transaction(six...))},
		{"pgx, SELECT and INSERT", throughPgx(transaction(stampRead, stampWrite))},
		{"pgx, batch of 100", throughPgx(func(ctx context.Context, q auditpgx.Querier) error {
			var batch pgx.Batch
			for _, task := range tasks {
				batch.Queue(stampWrite, task)
			}
			return q.SendBatch(ctx, &batch).Close()
		})},
		{"sql, lone INSERT", throughSQL(func(ctx context.Context, db *sql.DB) error {
			_, err := db.ExecContext(ctx, stampWrite, "Sleep")
			return err
		})},
		{"sql, 6 INSERTs", throughSQL(sqlTransaction(six...))},
		{"sql, SELECT and INSERT", throughSQL(sqlTransaction(stampRead, stampWrite))},
		{"sql, 100 rows", throughSQL(func(ctx context.Context, db *sql.DB) error {
			_, err := db.ExecContext(ctx, "INSERT INTO todo (task) SELECT unnest($1::text[])", tasks)
			return err
		})},
	}
}

func stampArgument(sql string) any {
	if sql == stampRead {
		return 1
	}
	return "Sleep"
}

func throughPgx(work func(context.Context, auditpgx.Querier) error) opener {
	return func(ctx context.Context, conn *pgx.ConnConfig, v *version) (func(context.Context) error, int, func(), error) {
		config, err := pgxpool.ParseConfig(conn.ConnString())
		if err != nil {
			return nil, 0, nil, err
		}
		config.ConnConfig = conn
		config.MaxConns = 1
		pool, err := pgxpool.NewWithConfig(ctx, config)
		if err != nil {
			return nil, 0, nil, err
		}
		var q auditpgx.Querier = pool
		if v != nil {
			q = v.ofPool(pool)
		}
		var pid int
		err = pool.QueryRow(ctx, "SELECT pg_backend_pid()").Scan(&pid)
		return func(ctx context.Context) error { return work(ctx, q) }, pid, pool.Close, err
	}
}

func throughSQL(work func(context.Context, *sql.DB) error) opener {
	return func(ctx context.Context, conn *pgx.ConnConfig, v *version) (func(context.Context) error, int, func(), error) {
		var connector driver.Connector = stdlib.GetConnector(*conn)
		if v != nil {
			connector = v.ofConnector(connector)
		}
		db := sql.OpenDB(connector)
		db.SetMaxOpenConns(1)
		var pid int
		err := db.QueryRowContext(ctx, "SELECT pg_backend_pid()").Scan(&pid)
		return func(ctx context.Context) error { return work(ctx, db) }, pid, func() { _ = db.Close() }, err
	}
}

// side is one of those that take turns.
type side struct {
	work  func() error
	pid   int
	close func()
	trips turns

	took           []time.Duration // of each turn
	n              int             // operations, in all turns
	client, server time.Duration   // processor time, in all turns
	sent           int             // round trips, in all turns
}

func newSide(ctx context.Context, url, commit string, shape stampShape, v *version) (*side, error) {
	config, err := pgx.ParseConfig(url)
	if err != nil {
		return nil, err
	}
	s := &side{}
	config.RuntimeParams["synchronous_commit"] = commit
	dial := config.DialFunc
	config.DialFunc = func(ctx context.Context, network, addr string) (net.Conn, error) {
		conn, err := dial(ctx, network, addr)
		return countedConn{conn, &s.trips}, err
	}
	work, pid, done, err := shape.open(ctx, config, v)
	if v != nil {
		ctx = v.with(ctx)
	}
	s.work, s.pid, s.close = func() error { return work(ctx) }, pid, done
	return s, err
}

// compare lets the sides take turns of so many operations as the first one does in a
// slice.
func compare(rounds int, sides ...*side) error {
	rounds = max(2*parts, rounds-rounds%parts)
	for _, s := range sides {
		if err := s.turn(200); err != nil {
			return err
		}
	}
	n := max(2, int(float64(sides[0].n)*slice.Seconds()/sides[0].took[0].Seconds()))
	for _, s := range sides {
		s.took, s.n, s.client, s.sent = nil, 0, 0, 0
		used, err := processCPU(s.pid)
		if err != nil {
			return err
		}
		s.server = -used
	}
	for round := range rounds {
		// Whoever is second in one round is first in the next.
		for i := range sides {
			if err := sides[(round+i)%len(sides)].turn(n); err != nil {
				return err
			}
		}
	}
	for _, s := range sides {
		used, err := processCPU(s.pid)
		if err != nil {
			return err
		}
		s.server += used
	}
	return nil
}

func (s *side) turn(n int) error {
	used, sent, began := cpu(), s.trips.count(), time.Now()
	for range n {
		if err := s.work(); err != nil {
			return err
		}
	}
	s.took = append(s.took, time.Since(began))
	s.client += cpu() - used
	s.sent += s.trips.count() - sent
	s.n += n
	return nil
}

// ratio compares how much two sides do in the same time. It is the median of the ratios of
// neighbouring turns, which a pause of the machine does not move, and the range of
// their medians in the parts of the run.
func ratio(one, other *side) (middle, least, most float64) {
	ratios := make([]float64, len(one.took))
	for i := range ratios {
		ratios[i] = one.took[i].Seconds() / other.took[i].Seconds()
	}
	var medians []float64
	for part := range slices.Chunk(ratios, len(ratios)/parts) {
		medians = append(medians, median(part))
	}
	return median(ratios), slices.Min(medians), slices.Max(medians)
}

// tell prints a line.
func (b *bench) tell(name, commit string, plain, stamped *side) {
	middle, least, most := ratio(plain, stamped)
	rate := func(s *side) float64 { return float64(s.n) / float64(len(s.took)) / median(s.took).Seconds() }
	each := func(used time.Duration, s *side) float64 { return used.Seconds() * 1e6 / float64(s.n) }
	b.printf("%-26s %-6s %8.0f %8.0f %5.2f %5.2f-%5.2f %5.0f x%5.2f %5.0f x%5.2f %5.2f %5.2f\n", name, commit, rate(plain), rate(stamped),
		middle, least, most,
		each(plain.server, plain), stamped.server.Seconds()/plain.server.Seconds(),
		each(plain.client, plain), stamped.client.Seconds()/plain.client.Seconds(),
		float64(plain.sent)/float64(plain.n), float64(stamped.sent)/float64(stamped.n))
}

func median[T cmp.Ordered](values []T) T {
	sorted := slices.Sorted(slices.Values(values))
	return sorted[len(sorted)/2]
}

// turns counts round trips: how often the client sends after it has received.
type turns struct {
	mu        sync.Mutex
	n         int  // guarded by mu
	answering bool // guarded by mu: the last thing was an answer
}

func (t *turns) count() int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.n
}

type countedConn struct {
	net.Conn
	turns *turns
}

func (c countedConn) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	c.turns.mu.Lock()
	defer c.turns.mu.Unlock()
	c.turns.answering = c.turns.answering || n > 0
	return n, err
}

func (c countedConn) Write(b []byte) (int, error) {
	c.turns.mu.Lock()
	if c.turns.answering {
		c.turns.n++
		c.turns.answering = false
	}
	c.turns.mu.Unlock()
	return c.Conn.Write(b)
}
