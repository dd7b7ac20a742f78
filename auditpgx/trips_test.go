package auditpgx_test

import (
	"context"
	"encoding/binary"
	"fmt"
	"net"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/hindsight-go/audit"
	"github.com/hindsight-go/audit/auditpgx"
	"github.com/hindsight-go/audit/audittest"
)

// trips counts round trips: how often the client sends after it has received.
// While it copies, a client sends and receives at once; then the answers count
// that end with ReadyForQuery.
type trips struct {
	mu        sync.Mutex
	n         int    // guarded by mu
	answering bool   // guarded by mu: the last thing was an answer
	ready     int    // guarded by mu: the number of ReadyForQuery
	header    []byte // guarded by mu: of the message being received
	rest      int    // guarded by mu: how much of it is to come
}

// received follows the messages of the server.
func (c *trips) received(b []byte) {
	for len(b) > 0 {
		if c.rest > 0 {
			n := min(c.rest, len(b))
			c.rest -= n
			b = b[n:]
			continue
		}
		c.header = append(c.header, b[0])
		b = b[1:]
		if len(c.header) == 5 {
			if c.header[0] == 'Z' {
				c.ready++
			}
			c.rest = int(binary.BigEndian.Uint32(c.header[1:])) - 4
			c.header = c.header[:0]
		}
	}
}

type countedConn struct {
	net.Conn
	trips *trips
}

func (c countedConn) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	c.trips.mu.Lock()
	defer c.trips.mu.Unlock()
	c.trips.answering = c.trips.answering || n > 0
	c.trips.received(b[:n])
	return n, err
}

func (c countedConn) Write(b []byte) (int, error) {
	c.trips.mu.Lock()
	if c.trips.answering {
		c.trips.n++
		c.trips.answering = false
	}
	c.trips.mu.Unlock()
	return c.Conn.Write(b)
}

func (c *trips) during(do func() error) (turns, answers int, err error) {
	c.mu.Lock()
	n, ready := c.n, c.ready
	c.mu.Unlock()
	err = do()
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.n - n, c.ready - ready, err
}

func counted(c *pgxpool.Config, trips *trips) {
	dial := c.ConnConfig.DialFunc
	c.MaxConns = 1
	c.ConnConfig.DialFunc = func(ctx context.Context, network, addr string) (net.Conn, error) {
		conn, err := dial(ctx, network, addr)
		return countedConn{conn, trips}, err
	}
}

func TestRoundTripsAreThoseOfTheStatementAlone(t *testing.T) {
	t.Parallel()
	a := audittest.New(t, audit.Config{}, todoSQL)
	for i, mode := range modes {
		var trips trips
		pool := newPool(t, a.Database, func(c *pgxpool.Config) {
			counted(c, &trips)
			c.ConnConfig.DefaultQueryExecMode = mode
		})
		config := auditpgx.Config{}
		db := config.Wrap(pool)
		if err := pool.Ping(t.Context()); err != nil {
			t.Fatal(err)
		}
		id := i * 10000
		for _, w := range writers() {
			one := func(ctx context.Context, q auditpgx.Querier) error {
				id++
				return w.write(ctx, q, w.name, id)
			}
			transaction := func(ctx context.Context, q auditpgx.Querier) error {
				return pgx.BeginFunc(ctx, q, func(tx pgx.Tx) error {
					for range 5 {
						if err := one(ctx, tx); err != nil {
							return err
						}
					}
					return nil
				})
			}
			for shape, run := range map[string]func(context.Context, auditpgx.Querier) error{"alone": one, "transaction": transaction} {
				name := fmt.Sprintf("%s, %s, %s", mode, w.name, shape)
				measure := func(ctx context.Context, q auditpgx.Querier) (n int) {
					for range 3 { // The first times, statements are prepared.
						turns, answers, err := trips.during(func() error { return run(ctx, q) })
						if err != nil {
							t.Fatalf("%s: %v", name, err)
						}
						if n = turns; copies(w.name) {
							n = answers
						}
					}
					return n
				}
				without := measure(t.Context(), pool)
				with := measure(by(t.Context(), "ann"), db)
				if with != without+knownTrips(mode, w.name, shape) {
					t.Errorf("%s: %d round trips with a stamp, %d without", name, with, without)
				}
			}
		}
		if stats := db.Stats(); stats.Lost != 0 || stats.Stamped == 0 {
			t.Errorf("%+v", stats)
		}
	}
}

func copies(writer string) bool { return writer == "copy" || writer == "generated :copyfrom" }

// knownTrips is how many more the package documentation admits.
func knownTrips(mode pgx.QueryExecMode, writer, shape string) int {
	switch {
	case copies(writer) && shape == "alone":
		return 2
	case copies(writer):
		return 1
	case shape == "alone":
		return 0
	}
	if mode != pgx.QueryExecModeSimpleProtocol && writer == "query in simple protocol" {
		return 1
	}
	return 0
}

func TestFirstUseTakesNoMoreRoundTrips(t *testing.T) {
	t.Parallel()
	a := audittest.New(t, audit.Config{}, todoSQL)
	measure := func(run func(auditpgx.Querier, context.Context) error, wrap bool) int {
		var trips trips
		pool := newPool(t, a.Database, func(c *pgxpool.Config) { counted(c, &trips) })
		if err := pool.Ping(t.Context()); err != nil {
			t.Fatal(err)
		}
		var q auditpgx.Querier = pool
		if wrap {
			q = auditpgx.Wrap(pool)
		}
		n, _, err := trips.during(func() error { return run(q, by(t.Context(), "ann")) })
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	id := 0
	lone := func(q auditpgx.Querier, ctx context.Context) error {
		id++
		_, err := q.Exec(ctx, insert, "first", id)
		return err
	}
	got, want := map[string]int{}, map[string]int{}
	for name, run := range map[string]func(auditpgx.Querier, context.Context) error{
		"alone": lone,
		"transaction": func(q auditpgx.Querier, ctx context.Context) error {
			return pgx.BeginFunc(ctx, q, func(tx pgx.Tx) error { return lone(tx, ctx) })
		},
	} {
		want[name], got[name] = measure(run, false), measure(run, true)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}
