package auditpgx_test

import (
	"context"
	"net"
	"runtime"
	"sync/atomic"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/hindsight-go/audit"
	"github.com/hindsight-go/audit/auditpgx"
	"github.com/hindsight-go/audit/audittest"
)

// A clock says little of some microseconds on a machine that does other work. What a
// stamp sends, receives and allocates is the same on every machine.
func TestStamp_Costs(t *testing.T) {
	db := audittest.NewDatabase(t)
	db.Exec(t, "CREATE TABLE todo (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, task text)")
	written := audit.WithContext(t.Context(), audit.Context{UserID: 187234, RequestID: "5f1c8a52-6c3b-4d53-9a53-9d3f5a1c2b3e", Endpoint: "POST /todo/{id}"})
	content, err := audit.StampContent(written)
	if err != nil {
		t.Fatal(err)
	}
	const sql = "INSERT INTO todo (task) VALUES ($1)"
	bare, stamped := newMeter(t, db, nil), newMeter(t, db, func(pool *pgxpool.Pool) auditpgx.Querier { return auditpgx.Wrap(pool) })
	for _, shape := range []struct {
		name  string
		write func(ctx context.Context, q auditpgx.Querier) error
		limit cost // besides the content
	}{
		{"lone INSERT", func(ctx context.Context, q auditpgx.Querier) error {
			_, err := q.Exec(ctx, sql, "Sleep")
			return err
		}, cost{sent: 33, received: 39, allocations: 21, allocated: 900}},
		{"transaction of 6", func(ctx context.Context, q auditpgx.Querier) error {
			return pgx.BeginFunc(ctx, q, func(tx pgx.Tx) error {
				for range 6 {
					if _, err := tx.Exec(ctx, sql, "Sleep"); err != nil {
						return err
					}
				}
				return nil
			})
		}, cost{sent: 33, received: 39, allocations: 29, allocated: 1250}},
		{"batch of 100", func(ctx context.Context, q auditpgx.Querier) error {
			var batch pgx.Batch
			for range 100 {
				batch.Queue(sql, "Sleep")
			}
			return q.SendBatch(ctx, &batch).Close()
		}, cost{sent: 100, received: 39, allocations: 22, allocated: 5500}},
	} {
		without, with := bare.cost(t, written, shape.write), stamped.cost(t, written, shape.write)
		more := cost{with.sent - without.sent - len(content), with.received - without.received, with.allocations - without.allocations, with.allocated - without.allocated}
		t.Logf("%s: %+v without, %+v more with a stamp of %d bytes", shape.name, without, more, len(content))
		if more.sent > shape.limit.sent || more.received > shape.limit.received || more.allocations > shape.limit.allocations || more.allocated > shape.limit.allocated {
			t.Errorf("%s: a stamp costs %+v, more than %+v", shape.name, more, shape.limit)
		}
	}
}

// cost is that of one operation, in bytes and allocations.
type cost struct{ sent, received, allocations, allocated int }

// meter measures what goes through one connection.
type meter struct {
	q              auditpgx.Querier
	sent, received atomic.Int64
}

func newMeter(t *testing.T, db *audittest.Database, wrap func(*pgxpool.Pool) auditpgx.Querier) *meter {
	t.Helper()
	m := &meter{}
	pool := newPool(t, db, func(c *pgxpool.Config) {
		dial := c.ConnConfig.DialFunc
		c.MaxConns = 1
		c.ConnConfig.DialFunc = func(ctx context.Context, network, addr string) (net.Conn, error) {
			conn, err := dial(ctx, network, addr)
			return meteredConn{conn, m}, err
		}
	})
	m.q = pool
	if wrap != nil {
		m.q = wrap(pool)
	}
	return m
}

func (m *meter) cost(t *testing.T, ctx context.Context, write func(context.Context, auditpgx.Querier) error) cost {
	t.Helper()
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1))
	const n = 200
	var before, after runtime.MemStats
	for i := range n + 10 {
		if i == 10 { // prepared by now
			m.sent.Store(0)
			m.received.Store(0)
			runtime.ReadMemStats(&before)
		}
		if err := write(ctx, m.q); err != nil {
			t.Fatal(err)
		}
	}
	runtime.ReadMemStats(&after)
	each := func(all int64) int { return int((all + n/2) / n) }
	return cost{each(m.sent.Load()), each(m.received.Load()), each(int64(after.Mallocs - before.Mallocs)), each(int64(after.TotalAlloc - before.TotalAlloc))}
}

type meteredConn struct {
	net.Conn
	meter *meter
}

func (c meteredConn) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	c.meter.received.Add(int64(n))
	return n, err
}

func (c meteredConn) Write(b []byte) (int, error) {
	n, err := c.Conn.Write(b)
	c.meter.sent.Add(int64(n))
	return n, err
}
