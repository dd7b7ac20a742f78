package auditgorm_test

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"testing"

	"github.com/google/go-cmp/cmp"
	"gorm.io/driver/postgres"
	"gorm.io/gorm"

	"github.com/hindsight-go/audit"
	"github.com/hindsight-go/audit/audittest"
)

// die fills a pool with idle connections, and has the server end them.
func die(t *testing.T, database *audittest.Database, pool *sql.DB, n int) {
	t.Helper()
	pool.SetMaxIdleConns(-1) // what has died before is not to be among them
	pool.SetMaxIdleConns(n)
	var conns []*sql.Conn
	for range n {
		conn, err := pool.Conn(t.Context())
		must(t, err)
		conns = append(conns, conn)
	}
	for _, conn := range conns {
		var pid int
		must(t, conn.QueryRowContext(t.Context(), "SELECT pg_backend_pid()").Scan(&pid))
		must(t, conn.Close())
		end(t, database, pid)
	}
	if idle := pool.Stats().Idle; idle != n {
		t.Fatalf("%d idle connections", idle)
	}
}

// end ends a process of the server, and waits until it is gone, and its socket with it.
func end(t *testing.T, database *audittest.Database, pid int) {
	t.Helper()
	if !audittest.Value[bool](t, database, "SELECT pg_terminate_backend($1, 30000)", pid) {
		t.Fatal("a connection goes on")
	}
}

// However many connections have died, a statement gets to one that lives, as it does
// without the plugin.
func TestDeadConnections(t *testing.T) {
	t.Parallel()
	for _, driverName := range []string{"pgx", "postgres", "hidden"} {
		for name, config := range modes {
			t.Run(driverName+", "+name, func(t *testing.T) {
				t.Parallel()
				a := audittest.New(t, audit.Config{}, todoSQL)
				connector := connectorOf(t, driverName, a.URL())
				if driverName == "hidden" {
					connector = hiding{connector}
				}
				pool := openPool(t, connector)
				db := open(t, postgres.New(postgres.Config{Conn: pool}), config)
				plugin := use(t, db)
				db = db.WithContext(by(t.Context(), "ann"))
				var want []string
				for _, act := range []struct {
					name string
					do   func(task string) error
				}{
					{"create", func(task string) error { return db.Create(&Todo{Task: task}).Error }},
					{"exec", func(task string) error { return db.Exec("INSERT INTO todos (task) VALUES (?)", task).Error }},
					{"raw", func(task string) error {
						return db.Raw("INSERT INTO todos (task) VALUES (?) RETURNING id", task).Scan(new(int64)).Error
					}},
					{"transaction", func(task string) error {
						return db.Transaction(func(tx *gorm.DB) error { return tx.Create(&Todo{Task: task}).Error })
					}},
				} {
					must(t, act.do(act.name+" before"))
					die(t, a.Database, pool, 5)
					if err := act.do(act.name + " behind"); err != nil {
						t.Errorf("%s: %v", act.name, err)
					}
					want = append(want, "CREATE "+act.name+" before by ann", "CREATE "+act.name+" behind by ann")
				}
				die(t, a.Database, pool, 5)
				must(t, db.Find(new([]Todo)).Error)
				if diff := cmp.Diff(want, history(t, a)); diff != "" {
					t.Error(diff)
				}
				if stats := plugin.Stats(); stats.Stamped != 8 || stats.Lost != 0 {
					t.Errorf("%+v", stats)
				}
				if stats := pool.Stats(); stats.InUse != 0 {
					t.Errorf("%+v", stats)
				}
			})
		}
	}
}

// A transaction whose connection dies does not go on upon another.
func TestDeadConnections_InATransaction(t *testing.T) {
	t.Parallel()
	for _, driverName := range []string{"pgx", "postgres"} {
		for name, config := range modes {
			database := audittest.NewDatabase(t)
			database.Exec(t, todoSQL)
			db := open(t, postgres.New(postgres.Config{DriverName: driverName, DSN: database.URL()}), config)
			use(t, db)
			err := db.WithContext(by(t.Context(), "ann")).Transaction(func(tx *gorm.DB) error {
				must(t, tx.Create(&Todo{Task: "before"}).Error)
				var pid int
				must(t, tx.Raw("SELECT pg_backend_pid()").Scan(&pid).Error)
				end(t, database, pid)
				for i := range 3 {
					if err := tx.Create(&Todo{Task: fmt.Sprint("behind", i)}).Error; err == nil {
						t.Errorf("%s, %s: no error", driverName, name)
					}
				}
				return nil
			})
			if err == nil {
				t.Errorf("%s, %s: no error of COMMIT", driverName, name)
			}
			if n := audittest.Value[int](t, database, "SELECT count(*) FROM todos"); n != 0 {
				t.Errorf("%s, %s: %d rows", driverName, name, n)
			}
		}
	}
}

// stillborn is a connector whose connections are dead from the start.
type stillborn struct {
	driver.Connector
	made *int
}

type stillbornConn struct{ driver.Conn }

func (stillbornConn) ExecContext(context.Context, string, []driver.NamedValue) (driver.Result, error) {
	return nil, driver.ErrBadConn
}

func (s stillborn) Connect(ctx context.Context) (driver.Conn, error) {
	*s.made++
	conn, err := s.Connector.Connect(ctx)
	return stillbornConn{conn}, err
}

// Where no connection lives that is said, soon.
func TestDeadConnections_All(t *testing.T) {
	t.Parallel()
	database := audittest.NewDatabase(t)
	database.Exec(t, todoSQL)
	made := 0
	pool := openPool(t, stillborn{connectorOf(t, "postgres", database.URL()), &made})
	db := open(t, postgres.New(postgres.Config{Conn: pool}), gorm.Config{})
	use(t, db)
	err := db.WithContext(by(t.Context(), "ann")).Exec("INSERT INTO todos (task) VALUES ('exec')").Error
	if !errors.Is(err, driver.ErrBadConn) {
		t.Errorf("error %v", err)
	}
	// Three are to ask whether they stamp; then two each of the three times of database/sql.
	if made > 9 {
		t.Errorf("%d connections", made)
	}
	if stats := pool.Stats(); stats.InUse != 0 || stats.OpenConnections != 0 {
		t.Errorf("%+v", stats)
	}
}
