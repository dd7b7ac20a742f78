package auditsql_test

import (
	"context"
	"database/sql"
	"fmt"
	"net"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5"

	"github.com/hindsight-go/audit"
	"github.com/hindsight-go/audit/auditsql"
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

// during returns how many there are while do runs.
func (c *trips) during(t *testing.T, do func() error) int {
	t.Helper()
	c.mu.Lock()
	n := c.n
	c.mu.Unlock()
	if err := do(); err != nil {
		t.Fatal(err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.n - n
}

// counted opens a database of one connection, with or without stamps.
func (d aDriver) counted(t *testing.T, database *audittest.Database, wrap bool) (*sql.DB, *trips) {
	t.Helper()
	var counts trips
	config := parse(t, database, func(c *pgx.ConnConfig) {
		dial := c.DialFunc
		c.DialFunc = func(ctx context.Context, network, addr string) (net.Conn, error) {
			conn, err := dial(ctx, network, addr)
			return countedConn{conn, &counts}, err
		}
	})
	connector := d.connector(config)
	if wrap {
		connector = auditsql.Wrap(connector)
	}
	db := openDB(t, connector)
	db.SetMaxOpenConns(1)
	if err := db.PingContext(t.Context()); err != nil {
		t.Fatal(err)
	}
	return db, &counts
}

// shapes are how often, and in what, a writer writes.
var shapes = map[string]func(ctx context.Context, db *sql.DB, write writing) error{
	"alone": func(ctx context.Context, db *sql.DB, write writing) error { return write(ctx, db, 1) },
	"transaction": func(ctx context.Context, db *sql.DB, write writing) error {
		return transact(ctx, db, func(tx *sql.Tx) error { return in(ctx, tx, write, "-----", 1) })
	},
	"transaction by statements": func(ctx context.Context, db *sql.DB, write writing) error {
		return onConn(ctx, db, func(conn *sql.Conn) error {
			return firstOf(run(ctx, conn, "BEGIN"), in(ctx, conn, write, "--", 1), run(ctx, conn, "SAVEPOINT x"),
				in(ctx, conn, write, "-", 3), run(ctx, conn, "ROLLBACK TO x"), in(ctx, conn, write, "-", 4), run(ctx, conn, "COMMIT"))
		})
	},
	"reading": func(ctx context.Context, db *sql.DB, _ writing) error {
		return transact(ctx, db, func(tx *sql.Tx) error {
			return firstOf(run(ctx, tx, "SELECT 1", "SET LOCAL work_mem = '4MB'"), theValue(tx.QueryRowContext(ctx, "SELECT $1::int", 7), 7))
		})
	},
}

func firstOf(errs ...error) error {
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}

func TestRoundTripsAreThoseOfTheStatementAlone(t *testing.T) {
	t.Parallel()
	database := audittest.NewDatabase(t)
	database.Exec(t, todoSQL)
	for _, d := range drivers {
		plain, plainTrips := d.counted(t, database, false)
		wrapped, wrappedTrips := d.counted(t, database, true)
		cell := 0
		for _, w := range writers {
			for shape, do := range shapes {
				measure := func(ctx context.Context, db *sql.DB, counts *trips) (n int) {
					for range 3 { // The first times, statements are prepared.
						cell++
						write := func(ctx context.Context, q querier, id int) error {
							return w.write(ctx, q, fmt.Sprint(d.name, cell), id)
						}
						n = counts.during(t, func() error { return do(ctx, db, write) })
					}
					return n
				}
				with, without := measure(by(t.Context(), "ann"), wrapped, wrappedTrips), measure(t.Context(), plain, plainTrips)
				if want := without + moreTrips(d, shape); with != want {
					t.Errorf("%s, %s, %s: %d round trips with a stamp, %d without", d.name, w.name, shape, with, without)
				}
				if with, without := measure(t.Context(), wrapped, wrappedTrips), measure(t.Context(), plain, plainTrips); with != without {
					t.Errorf("%s, %s, %s, no context: %d round trips, %d unwrapped", d.name, w.name, shape, with, without)
				}
			}
		}
	}
}

// moreTrips is how many more the package documentation admits.
func moreTrips(d aDriver, shape string) int {
	stamps := map[string]int{"alone": 1, "transaction": 1, "transaction by statements": 2}[shape]
	switch {
	case d.hide == nil || stamps == 0:
		return 0
	case d.name != bare.name && shape == "alone":
		return 2 // BEGIN with the stamp, and COMMIT
	case d.name != bare.name:
		return stamps
	}
	// Each of the statements is prepared, run and closed.
	if shape == "alone" {
		return 3 * 3
	}
	return stamps * 3 * 3
}

func TestFirstUseTakesNoMoreRoundTrips(t *testing.T) {
	t.Parallel()
	database := audittest.NewDatabase(t)
	database.Exec(t, todoSQL)
	got, want := map[string]int{}, map[string]int{}
	cell := 0
	for _, w := range writers {
		for shape, do := range map[string]func(context.Context, *sql.DB, writing) error{
			"alone":   shapes["alone"],
			"reading": shapes["reading"],
			"once in a transaction": func(ctx context.Context, db *sql.DB, write writing) error {
				return transact(ctx, db, func(tx *sql.Tx) error { return write(ctx, tx, 1) })
			},
		} {
			for into, wrap := range map[*map[string]int]bool{&want: false, &got: true} {
				db, counts := ofPgx.counted(t, database, wrap)
				cell++
				write := func(ctx context.Context, q querier, id int) error { return w.write(ctx, q, fmt.Sprint(cell), id) }
				(*into)[w.name+", "+shape] = counts.during(t, func() error { return do(by(t.Context(), "ann"), db, write) })
				_ = db.Close()
			}
		}
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

// TestRoundTripsOfStatementsKept runs statements that are prepared once.
func TestRoundTripsOfStatementsKept(t *testing.T) {
	t.Parallel()
	a := audittest.New(t, audit.Config{}, todoSQL)
	for _, d := range drivers {
		if d.hide != nil {
			continue
		}
		db, counts := d.counted(t, a.Database, true)
		stmt, err := db.PrepareContext(t.Context(), insert)
		if err != nil {
			t.Fatal(err)
		}
		ctx := by(t.Context(), "ann")
		for id := range 5 {
			n := counts.during(t, func() error {
				_, err := stmt.ExecContext(ctx, d.name, id)
				return err
			})
			// With the second stamp the stamp is prepared.
			if n > 1 && (id != 1 || n > 2) {
				t.Errorf("%s: %d round trips for run %d", d.name, n, id)
			}
		}
		if err := stmt.Close(); err != nil {
			t.Error(err)
		}
	}
}
