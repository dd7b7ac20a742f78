package auditgorm_test

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5/stdlib"
	"github.com/lib/pq"
	"gorm.io/driver/postgres"
	"gorm.io/gorm"

	"github.com/hindsight-go/audit"
	"github.com/hindsight-go/audit/audittest"
)

func connectorOf(t testing.TB, driverName, url string) driver.Connector {
	t.Helper()
	if driverName == "pgx" {
		connector, err := stdlib.GetDefaultDriver().(driver.DriverContext).OpenConnector(url)
		must(t, err)
		return connector
	}
	connector, err := pq.NewConnector(url)
	must(t, err)
	return connector
}

func openPool(t testing.TB, connector driver.Connector) *sql.DB {
	t.Helper()
	pool := sql.OpenDB(connector)
	t.Cleanup(func() { _ = pool.Close() })
	return pool
}

// hiding is a connector whose connections do not show what they are.
type hiding struct{ driver.Connector }

func (h hiding) Connect(ctx context.Context) (driver.Conn, error) {
	conn, err := h.Connector.Connect(ctx)
	if err != nil {
		return nil, err
	}
	c := conn.(interface {
		driver.ExecerContext
		driver.QueryerContext
		driver.ConnPrepareContext
		driver.ConnBeginTx
		driver.Pinger
		driver.SessionResetter
		driver.NamedValueChecker
	})
	return struct {
		driver.Conn
		driver.ExecerContext
		driver.QueryerContext
		driver.ConnPrepareContext
		driver.ConnBeginTx
		driver.Pinger
		driver.SessionResetter
		driver.NamedValueChecker
	}{conn, c, c, c, c, c, c, c}, nil
}

// Over another driver as well, that GORM opens by its name.
func TestWrites_OtherDriver(t *testing.T) {
	t.Parallel()
	for name, config := range extremes {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			a := audittest.New(t, audit.Config{}, todoSQL)
			db := open(t, postgres.New(postgres.Config{DriverName: "postgres", DSN: a.URL()}), config)
			plugin := use(t, db)
			if diff := cmp.Diff(writeInAllWays(t, db), history(t, a)); diff != "" {
				t.Error(diff)
			}
			if stats := plugin.Stats(); stats.Lost+stats.Cut != 0 {
				t.Errorf("%+v", stats)
			}
		})
	}
}

// sessions is how many connections a database has from elsewhere.
const sessions = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid() AND backend_type = 'client backend'"

// The pool of db.DB() is the same one, with its limits and its end.
func TestUse_PoolStaysTheSame(t *testing.T) {
	t.Parallel()
	for name, config := range extremes {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			database := audittest.NewDatabase(t)
			database.Exec(t, todoSQL)
			db := open(t, postgres.Open(database.URL()), config)
			before, err := db.DB()
			must(t, err)
			before.SetMaxOpenConns(3)
			use(t, db)
			after, err := db.DB()
			must(t, err)
			if before != after {
				t.Error("db.DB() is another pool")
			}
			after.SetMaxIdleConns(2)
			// One connection is enough for one thing after another, and is kept.
			ctx := by(t.Context(), "ann")
			for range 5 {
				must(t, db.WithContext(ctx).Create(&Todo{Task: "Sleep"}).Error)
			}
			if stats := after.Stats(); stats.OpenConnections != 1 || stats.InUse != 0 || stats.MaxIdleClosed != 0 || stats.MaxOpenConnections != 3 {
				t.Errorf("%+v", stats)
			}
			must(t, after.Close())
			deadline := time.Now().Add(10 * time.Second)
			for audittest.Value[int](t, database, sessions) > 0 {
				if time.Now().After(deadline) {
					t.Fatal("connections are left")
				}
			}
			if err := db.WithContext(ctx).Create(&Todo{Task: "Sleep"}).Error; err == nil || err.Error() != "sql: database is closed" {
				t.Errorf("after Close: %v", err)
			}
		})
	}
}

func TestUse_LeavesNoGoroutine(t *testing.T) {
	database := audittest.NewDatabase(t)
	database.Exec(t, todoSQL)
	opener := func() int {
		stacks := make([]byte, 1<<20)
		return strings.Count(string(stacks[:runtime.Stack(stacks, true)]), "database/sql.(*DB).connectionOpener(")
	}
	before := opener()
	func() {
		db, err := gorm.Open(postgres.Open(database.URL()), &gorm.Config{})
		must(t, err)
		use(t, db)
		must(t, db.WithContext(by(t.Context(), "ann")).Create(&Todo{Task: "Sleep"}).Error)
		pool, err := db.DB()
		must(t, err)
		must(t, pool.Close())
	}()
	deadline := time.Now().Add(10 * time.Second)
	for opener() > before {
		if time.Now().After(deadline) {
			t.Fatalf("%d goroutines, %d before", opener(), before)
		}
		runtime.GC()
	}
}

func TestOtherPools_Transaction(t *testing.T) {
	t.Parallel()
	for _, driverName := range []string{"pgx", "postgres"} {
		for _, prepared := range []bool{false, true} {
			a := audittest.New(t, audit.Config{}, todoSQL)
			tx, err := openPool(t, connectorOf(t, driverName, a.URL())).BeginTx(t.Context(), nil)
			must(t, err)
			db := open(t, postgres.New(postgres.Config{Conn: tx}), gorm.Config{})
			plugin := use(t, db)
			if prepared {
				db = db.Session(&gorm.Session{PrepareStmt: true})
			}
			must(t, db.WithContext(by(t.Context(), "ann")).Create(&Todo{Task: "create"}).Error)
			must(t, db.WithContext(by(t.Context(), "bob")).Exec("INSERT INTO todos (task) VALUES ('exec')").Error)
			must(t, db.WithContext(by(t.Context(), "cat")).Find(new([]Todo)).Error)
			must(t, tx.Commit())
			if diff := cmp.Diff([]string{"CREATE create by ann", "CREATE exec by bob"}, history(t, a)); diff != "" {
				t.Error(diff)
			}
			if stats := plugin.Stats(); stats.Stamped != 2 || stats.Lost != 0 {
				t.Errorf("%+v", stats)
			}
		}
	}
}

// In a transaction of others a stamp that is refused does not take the transaction along.
func TestOtherPools_RefusedStamp(t *testing.T) {
	t.Parallel()
	a := audittest.New(t, audit.Config{}, todoSQL)
	role := a.Name() + "_refused" // roles are of the whole server
	// PostgreSQL 17 has given it another parameter.
	a.Exec(t, `DO $$ DECLARE f regprocedure; BEGIN
		FOR f IN SELECT oid FROM pg_proc WHERE proname = 'pg_logical_emit_message' LOOP
			EXECUTE format('REVOKE EXECUTE ON FUNCTION %s FROM PUBLIC', f);
		END LOOP;
	END $$`)
	a.Exec(t, "CREATE ROLE "+role)
	t.Cleanup(func() {
		a.Exec(t, "DROP OWNED BY "+role)
		a.Exec(t, "DROP ROLE "+role)
	})
	a.Exec(t, "GRANT ALL ON todos TO "+role)
	tx, err := openPool(t, connectorOf(t, "pgx", a.URL())).BeginTx(t.Context(), nil)
	must(t, err)
	_, err = tx.ExecContext(t.Context(), "SET ROLE "+role)
	must(t, err)
	db := open(t, postgres.New(postgres.Config{Conn: tx}), gorm.Config{})
	plugin := use(t, db)
	must(t, db.WithContext(by(t.Context(), "ann")).Create(&Todo{Task: "create"}).Error)
	must(t, tx.Commit())
	if diff := cmp.Diff([]string{"CREATE create"}, history(t, a)); diff != "" {
		t.Error(diff)
	}
	if stats := plugin.Stats(); stats.Stamped != 0 || stats.Lost != 1 {
		t.Errorf("%+v", stats)
	}
}

// A transaction that has failed says to a statement what it would have said.
func TestOtherPools_FailedTransaction(t *testing.T) {
	t.Parallel()
	database := audittest.NewDatabase(t)
	database.Exec(t, todoSQL)
	tx, err := openPool(t, connectorOf(t, "pgx", database.URL())).BeginTx(t.Context(), nil)
	must(t, err)
	db := open(t, postgres.New(postgres.Config{Conn: tx}), gorm.Config{})
	plugin := use(t, db)
	ctx := by(t.Context(), "ann")
	_ = db.WithContext(ctx).Exec("INSERT INTO nowhere VALUES (1)")
	err = db.WithContext(ctx).Create(&Todo{Task: "create"}).Error
	if err == nil || !strings.Contains(err.Error(), "SQLSTATE 25P02") {
		t.Errorf("error %v", err)
	}
	if stats := plugin.Stats(); stats.Lost != 0 {
		t.Errorf("%+v", stats)
	}
	must(t, tx.Rollback())
	if err := db.WithContext(ctx).Create(&Todo{Task: "create"}).Error; !errors.Is(err, sql.ErrTxDone) {
		t.Errorf("error %v", err)
	}
}

// A connection stamps in transactions, and counts what it could not stamp.
func TestOtherPools_Connection(t *testing.T) {
	t.Parallel()
	for _, driverName := range []string{"pgx", "postgres"} {
		a := audittest.New(t, audit.Config{}, todoSQL)
		db := open(t, postgres.New(postgres.Config{DriverName: driverName, DSN: a.URL()}), gorm.Config{})
		plugin := use(t, db)
		must(t, db.WithContext(by(t.Context(), "ann")).Connection(func(tx *gorm.DB) error {
			return errors.Join(
				tx.Exec("INSERT INTO todos (task) VALUES ('alone')").Error,
				tx.Transaction(func(tx *gorm.DB) error {
					return errors.Join(tx.Create(&Todo{Task: "inner"}).Error, tx.Exec("INSERT INTO todos (task) VALUES ('exec')").Error)
				}),
				tx.Create(&Todo{Task: "create"}).Error)
		}))
		if diff := cmp.Diff([]string{"CREATE alone", "CREATE inner by ann", "CREATE exec by ann", "CREATE create by ann"}, history(t, a)); diff != "" {
			t.Errorf("%s: %s", driverName, diff)
		}
		if stats := plugin.Stats(); stats.Stamped != 3 || stats.Lost != 1 {
			t.Errorf("%s: %+v", driverName, stats)
		}
	}
}

// What has no context is counted in pools of others, too.
func TestOtherPools_Without(t *testing.T) {
	t.Parallel()
	for _, driverName := range []string{"pgx", "postgres"} {
		database := audittest.NewDatabase(t)
		database.Exec(t, todoSQL)
		pool := openPool(t, connectorOf(t, driverName, database.URL()))
		tx, err := pool.BeginTx(t.Context(), nil)
		must(t, err)
		conn, err := pool.Conn(t.Context())
		must(t, err)
		for _, other := range []gorm.ConnPool{tx, conn} {
			db := open(t, postgres.New(postgres.Config{Conn: other}), gorm.Config{SkipDefaultTransaction: true})
			plugin := use(t, db)
			must(t, db.Create(&Todo{Task: "create"}).Error)
			must(t, db.Find(new([]Todo)).Error)
			if stats := plugin.Stats(); stats.Without != 1 || stats.Lost+stats.Stamped != 0 {
				t.Errorf("%s: %T: %+v", driverName, other, stats)
			}
		}
		must(t, errors.Join(tx.Commit(), conn.Close()))
	}
}

// Plugins choose other pools for a statement, and give the program one.
func TestOtherPools_ChosenForAStatement(t *testing.T) {
	t.Parallel()
	for name, config := range modes {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			a := audittest.New(t, audit.Config{}, todoSQL)
			db := open(t, postgres.Open(a.URL()), config)
			other := openPool(t, connectorOf(t, "pgx", a.URL()))
			var chosen gorm.ConnPool = other
			if config.PrepareStmt {
				chosen = gorm.NewPreparedStmtDB(other, 0, 0)
			}
			choose := func(tx *gorm.DB) { tx.Statement.ConnPool = chosen }
			must(t, errors.Join(
				db.Callback().Create().Before("*").Register("choose", choose),
				db.Callback().Raw().Before("*").Register("choose", choose)))
			plugin := use(t, db)
			ctx := by(t.Context(), "ann")
			must(t, db.WithContext(ctx).Create(&Todo{Task: "create"}).Error)
			must(t, db.WithContext(ctx).Exec("INSERT INTO todos (task) VALUES ('exec')").Error)
			if diff := cmp.Diff([]string{"CREATE create by ann", "CREATE exec by ann"}, history(t, a)); diff != "" {
				t.Error(diff)
			}
			if stats := plugin.Stats(); stats.Stamped != 2 || stats.Lost != 0 {
				t.Errorf("%+v", stats)
			}
			if other.Stats().OpenConnections != 1 {
				t.Errorf("the other pool was not used: %+v", other.Stats())
			}
		})
	}
}
