package auditgorm_test

import (
	"context"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/stdlib"
	"github.com/lib/pq"
	"gorm.io/driver/postgres"
	"gorm.io/gorm"

	"github.com/hindsight-go/audit/audittest"
)

// trips counts round trips: how often the client sends after it has received.
type trips struct {
	mu        sync.Mutex
	n         int  // guarded by mu
	answering bool // guarded by mu: the last thing was an answer
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

func (c *trips) count() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.n
}

// openCounted opens GORM over a single connection of which the round trips are counted.
func openCounted(t *testing.T, database *audittest.Database, simple bool, config gorm.Config) (*gorm.DB, *trips) {
	t.Helper()
	counts := &trips{}
	parsed, err := pgx.ParseConfig(database.URL())
	must(t, err)
	dial := parsed.DialFunc
	parsed.DialFunc = func(ctx context.Context, network, addr string) (net.Conn, error) {
		conn, err := dial(ctx, network, addr)
		return countedConn{conn, counts}, err
	}
	if simple {
		parsed.DefaultQueryExecMode = pgx.QueryExecModeSimpleProtocol
	}
	name := stdlib.RegisterConnConfig(parsed)
	t.Cleanup(func() { stdlib.UnregisterConnConfig(name) })
	db := open(t, postgres.New(postgres.Config{DriverName: "pgx", DSN: name}), config)
	pool, err := db.DB()
	must(t, err)
	pool.SetMaxOpenConns(1)
	return db, counts
}

// Dial and DialTimeout are of pq.Dialer.
func (c *trips) Dial(network, addr string) (net.Conn, error) { return c.DialTimeout(network, addr, 0) }

func (c *trips) DialTimeout(network, addr string, timeout time.Duration) (net.Conn, error) {
	conn, err := (&net.Dialer{Timeout: timeout}).DialContext(context.Background(), network, addr)
	return countedConn{conn, c}, err
}

// openCountedPQ is openCounted over lib/pq.
func openCountedPQ(t *testing.T, database *audittest.Database, config gorm.Config) (*gorm.DB, *trips) {
	t.Helper()
	counts := &trips{}
	connector, err := pq.NewConnector(database.URL())
	must(t, err)
	connector.Dialer(counts)
	pool := openPool(t, connector)
	pool.SetMaxOpenConns(1)
	return open(t, postgres.New(postgres.Config{Conn: pool}), config), counts
}

// A stamped write takes no more round trips than one without the plugin, once a
// connection has prepared what it runs. In a transaction GORM prepares each time what it
// has prepared outside of this one, so there it takes less.
func TestRoundTrips(t *testing.T) {
	t.Parallel()
	database := audittest.NewDatabase(t)
	database.Exec(t, todoSQL)
	for name, config := range modes {
		for _, simple := range []bool{false, true} {
			bare, bareTrips := openCounted(t, database, simple, config)
			db, stampedTrips := openCounted(t, database, simple, config)
			plugin := use(t, db)
			want, got := tripsOf(t, bare, bareTrips), tripsOf(t, db, stampedTrips)
			for act, n := range got {
				if n > want[act] || n == 0 {
					t.Errorf("%s, simple protocol %v: %s takes %d round trips, without the plugin %d", name, simple, act, n, want[act])
				}
			}
			if stats := plugin.Stats(); stats.Stamped != 6*4 {
				t.Errorf("%s, simple protocol %v: %+v", name, simple, stats)
			}
		}
	}
}

// Over lib/pq a lone write takes two more, for the transaction around it, and a
// transaction one, for the stamp. Where GORM has prepared a statement before, that is
// prepared again, which takes another two.
func TestRoundTrips_OtherDriver(t *testing.T) {
	t.Parallel()
	database := audittest.NewDatabase(t)
	database.Exec(t, todoSQL)
	for name, config := range modes {
		bare, bareTrips := openCountedPQ(t, database, config)
		db, stampedTrips := openCountedPQ(t, database, config)
		plugin := use(t, db)
		want, got := tripsOf(t, bare, bareTrips), tripsOf(t, db, stampedTrips)
		for act, n := range got {
			most := want[act]
			switch act {
			case "find":
			case "exec", "raw":
				most += 2
			case "transaction":
				most++
			default:
				most++
				if config.SkipDefaultTransaction {
					most++
				}
			}
			if config.PrepareStmt {
				most += 2
			}
			if n > most || n == 0 {
				t.Errorf("%s: %s takes %d round trips, without the plugin %d", name, act, n, want[act])
			}
		}
		if stats := plugin.Stats(); stats.Stamped != 6*4 {
			t.Errorf("%s: %+v", name, stats)
		}
	}
}

// tripsOf does things four times, and returns what the last time took.
func tripsOf(t *testing.T, db *gorm.DB, counts *trips) map[string]int {
	t.Helper()
	took := map[string]int{}
	db = db.WithContext(by(t.Context(), "ann"))
	for range 4 {
		todo := Todo{Task: "create"}
		for _, act := range []struct {
			name string
			do   func() error
		}{
			{"create", func() error { return db.Create(&todo).Error }},
			{"update", func() error { return db.Model(&todo).Update("task", "update").Error }},
			{"exec", func() error { return db.Exec("UPDATE todos SET task = 'exec' WHERE id = ?", todo.ID).Error }},
			{"raw", func() error {
				return db.Raw("UPDATE todos SET task = 'raw' WHERE id = ? RETURNING id", todo.ID).Scan(&todo.ID).Error
			}},
			{"find", func() error { return db.First(&todo, todo.ID).Error }},
			{"transaction", func() error {
				return db.Transaction(func(tx *gorm.DB) error {
					must(t, tx.Model(&todo).Update("task", "first").Error)
					return tx.Model(&todo).Update("task", "second").Error
				})
			}},
			{"delete", func() error { return db.Delete(&todo).Error }},
		} {
			before := counts.count()
			must(t, act.do())
			took[act.name] = counts.count() - before
		}
	}
	return took
}
