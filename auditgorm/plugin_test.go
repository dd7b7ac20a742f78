package auditgorm_test

import (
	"context"
	"database/sql"
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"gorm.io/driver/postgres"
	"gorm.io/gorm"

	"github.com/hindsight-go/audit"
	"github.com/hindsight-go/audit/auditgorm"
	"github.com/hindsight-go/audit/auditsql"
	"github.com/hindsight-go/audit/audittest"
)

// A DB without the plugin has no contexts, which is what it is for.
func TestUse_WithoutItNothingIsStamped(t *testing.T) {
	t.Parallel()
	a := audittest.New(t, audit.Config{}, todoSQL)
	db := open(t, postgres.Open(a.URL()), gorm.Config{})
	write := func() { must(t, db.WithContext(by(t.Context(), "ann")).Create(&Todo{Task: "Sleep"}).Error) }
	write()
	use(t, db)
	write()
	if diff := cmp.Diff([]string{"CREATE Sleep", "CREATE Sleep by ann"}, history(t, a)); diff != "" {
		t.Error(diff)
	}
}

func TestWrites_Modes(t *testing.T) {
	t.Parallel()
	for name, config := range modes {
		for _, simple := range []bool{false, true} {
			t.Run(map[bool]string{false: name, true: name + ", simple protocol"}[simple], func(t *testing.T) {
				t.Parallel()
				a := audittest.New(t, audit.Config{}, todoSQL)
				db := open(t, postgres.New(postgres.Config{DSN: a.URL(), PreferSimpleProtocol: simple}), config)
				plugin := use(t, db)
				want := writeInAllWays(t, db)
				if diff := cmp.Diff(want, history(t, a)); diff != "" {
					t.Error(diff)
				}
				if stats := plugin.Stats(); stats.Lost+stats.Cut != 0 || stats.Without != 1 {
					t.Errorf("%+v", stats)
				}
			})
		}
	}
}

// writeInAllWays writes, and returns the history of it.
func writeInAllWays(t *testing.T, db *gorm.DB) []string {
	t.Helper()
	as := func(user string) *gorm.DB { return db.WithContext(by(t.Context(), user)) }
	todo := Todo{Task: "create"}
	must(t, as("ann").Create(&todo).Error)
	must(t, as("bob").Model(&todo).Update("task", "update").Error)
	todo.Task = "save"
	must(t, as("cat").Save(&todo).Error)
	must(t, as("ann").Delete(&todo).Error)
	must(t, as("bob").Exec("INSERT INTO todos (task) VALUES (?)", "exec").Error)
	var id int64
	must(t, as("cat").Raw("INSERT INTO todos (task) VALUES (?) RETURNING id", "raw").Scan(&id).Error)
	must(t, as("ann").Raw("INSERT INTO todos (task) VALUES (?) RETURNING id", "row").Row().Scan(&id))
	must(t, db.Create(&Todo{Task: "nobody"}).Error)
	must(t, as("bob").Transaction(func(tx *gorm.DB) error {
		must(t, tx.Create(&Todo{Task: "outer"}).Error)
		err := tx.WithContext(by(t.Context(), "cat")).Transaction(func(tx *gorm.DB) error {
			must(t, tx.Create(&Todo{Task: "rolled back"}).Error)
			return errors.New("no")
		})
		if err == nil {
			t.Error("the inner transaction did not fail")
		}
		must(t, tx.WithContext(by(t.Context(), "cat")).Transaction(func(tx *gorm.DB) error {
			return tx.Create(&Todo{Task: "inner"}).Error
		}))
		return tx.Exec("INSERT INTO todos (task) VALUES ('outer again')").Error
	}))
	begun := as("ann").Begin()
	must(t, begun.Session(&gorm.Session{PrepareStmt: true}).Create(&Todo{Task: "begun"}).Error)
	must(t, begun.Commit().Error)
	session := as("bob").Session(&gorm.Session{PrepareStmt: true, SkipDefaultTransaction: true})
	for range 2 {
		must(t, session.Create(&Todo{Task: "session"}).Error)
	}
	lost := as("cat").Begin()
	must(t, lost.Create(&Todo{Task: "lost"}).Error)
	must(t, lost.Rollback().Error)
	must(t, db.Raw("SELECT count(*) FROM todos").Scan(&id).Error)
	return []string{
		"CREATE create by ann", "UPDATE update by bob", "UPDATE save by cat", "DELETE save by ann",
		"CREATE exec by bob", "CREATE raw by cat", "CREATE row by ann", "CREATE nobody",
		"CREATE outer by bob", "CREATE inner by cat", "CREATE outer again by bob",
		"CREATE begun by ann", "CREATE session by bob", "CREATE session by bob",
	}
}

func TestUse_WhatWasPreparedBefore(t *testing.T) {
	t.Parallel()
	a := audittest.New(t, audit.Config{}, todoSQL)
	db := open(t, postgres.Open(a.URL()), gorm.Config{PrepareStmt: true})
	write := func() { must(t, db.WithContext(by(t.Context(), "ann")).Create(&Todo{Task: "Sleep"}).Error) }
	write()
	use(t, db)
	write()
	write()
	if diff := cmp.Diff([]string{"CREATE Sleep", "CREATE Sleep by ann", "CREATE Sleep by ann"}, history(t, a)); diff != "" {
		t.Error(diff)
	}
}

// Sessions and DBs that were made of the DB before it used the plugin are stamped as well.
func TestUse_SessionsOfBefore(t *testing.T) {
	t.Parallel()
	for name, config := range map[string]gorm.Config{"plain": {}, "no transactions": {SkipDefaultTransaction: true}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			a := audittest.New(t, audit.Config{}, todoSQL)
			db := open(t, postgres.Open(a.URL()), config)
			session := db.WithContext(by(t.Context(), "ann"))
			use(t, db)
			must(t, session.Create(&Todo{Task: "create"}).Error)
			must(t, session.Exec("INSERT INTO todos (task) VALUES ('exec')").Error)
			must(t, session.Transaction(func(tx *gorm.DB) error { return tx.Create(&Todo{Task: "tx"}).Error }))
			if diff := cmp.Diff([]string{"CREATE create by ann", "CREATE exec by ann", "CREATE tx by ann"}, history(t, a)); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestUse_AsAPluginOfTheConfig(t *testing.T) {
	t.Parallel()
	a := audittest.New(t, audit.Config{}, todoSQL)
	plugin := auditgorm.New(auditgorm.Config{})
	db := open(t, postgres.Open(a.URL()), gorm.Config{Plugins: map[string]gorm.Plugin{plugin.Name(): plugin}})
	must(t, db.WithContext(by(t.Context(), "ann")).Create(&Todo{Task: "Sleep"}).Error)
	if diff := cmp.Diff([]string{"CREATE Sleep by ann"}, history(t, a)); diff != "" {
		t.Error(diff)
	}
	if err := db.Use(plugin); !errors.Is(err, gorm.ErrRegistered) {
		t.Errorf("used twice: %v", err)
	}
}

// Where the server is away, Use says nothing, and a write what it would have said.
func TestUse_WithoutAServer(t *testing.T) {
	t.Parallel()
	database := audittest.NewDatabase(t)
	database.Exec(t, todoSQL)
	gone := strings.Replace(database.URL(), database.Name(), database.Name()+"_gone", 1)
	db := open(t, postgres.Open(gone), gorm.Config{DisableAutomaticPing: true})
	bare := open(t, postgres.Open(gone), gorm.Config{DisableAutomaticPing: true})
	use(t, db)
	want := bare.WithContext(by(t.Context(), "ann")).Create(&Todo{Task: "Sleep"}).Error
	got := db.WithContext(by(t.Context(), "ann")).Create(&Todo{Task: "Sleep"}).Error
	if got == nil || want == nil || got.Error() != want.Error() {
		t.Errorf("%v, without the plugin %v", got, want)
	}
}

func TestConfig_ContextStandsIn(t *testing.T) {
	t.Parallel()
	a := audittest.New(t, audit.Config{}, todoSQL)
	db := open(t, postgres.Open(a.URL()), gorm.Config{})
	must(t, db.Use(auditgorm.New(auditgorm.Config{Context: func() (audit.Context, bool) { return audit.Context{UserID: "robot"}, true }})))
	must(t, db.Create(&Todo{Task: "Sleep"}).Error)
	must(t, db.WithContext(by(t.Context(), "ann")).Create(&Todo{Task: "Eat"}).Error)
	if diff := cmp.Diff([]string{"CREATE Sleep by robot", "CREATE Eat by ann"}, history(t, a)); diff != "" {
		t.Error(diff)
	}
}

// A pool that stamps by itself is not stamped twice.
func TestUse_PoolOfAuditsql(t *testing.T) {
	t.Parallel()
	for name, config := range extremes {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			a := audittest.New(t, audit.Config{}, todoSQL)
			connector := auditsql.Config{}.Wrap(connectorOf(t, "pgx", a.URL())).(*auditsql.Connector)
			// What wraps a driver for tracing hides what it wraps.
			pool := openPool(t, hiding{connector})
			db := open(t, postgres.New(postgres.Config{Conn: pool}), config)
			plugin := use(t, db)
			if diff := cmp.Diff(writeInAllWays(t, db), history(t, a)); diff != "" {
				t.Error(diff)
			}
			if stats := plugin.Stats(); stats != (auditsql.Stats{}) {
				t.Errorf("the plugin: %+v", stats)
			}
			if stats := connector.Stats(); stats.Stamped == 0 || stats.Lost != 0 || stats.Without != 1 {
				t.Errorf("the connector: %+v", stats)
			}
		})
	}
}

// Queues take the *sql.Tx of a transaction to insert their jobs.
func TestTransaction_IsOfDatabaseSQL(t *testing.T) {
	t.Parallel()
	a, db, _ := newDB(t, gorm.Config{})
	must(t, db.WithContext(by(t.Context(), "ann")).Transaction(func(tx *gorm.DB) error {
		_, err := tx.Statement.ConnPool.(*sql.Tx).ExecContext(by(t.Context(), "bob"), "INSERT INTO todos (task) VALUES ('beside GORM')")
		return err
	}))
	if diff := cmp.Diff([]string{"CREATE beside GORM by bob"}, history(t, a)); diff != "" {
		t.Error(diff)
	}
}

// Migrations look into what the connection says of columns.
func TestMigrations(t *testing.T) {
	t.Parallel()
	for name, config := range modes {
		db := open(t, postgres.Open(audittest.NewDatabase(t).URL()), config)
		use(t, db)
		for range 2 {
			if err := db.WithContext(by(t.Context(), "ann")).AutoMigrate(&Todo{}); err != nil {
				t.Errorf("%s: %v", name, err)
			}
		}
		if types, err := db.Migrator().ColumnTypes(&Todo{}); err != nil || len(types) != 2 || types[0].DatabaseTypeName() != "int8" {
			t.Errorf("%s: %v, %v", name, types, err)
		}
	}
}

func TestUse_PoolThatIsNotKnown(t *testing.T) {
	t.Parallel()
	database := audittest.NewDatabase(t)
	pool := openPool(t, connectorOf(t, "pgx", database.URL()))
	db := open(t, postgres.New(postgres.Config{Conn: struct{ gorm.ConnPool }{pool}}), gorm.Config{})
	var unknown *auditgorm.PoolError
	if err := db.Use(auditgorm.New(auditgorm.Config{})); !errors.As(err, &unknown) || unknown.Type != "struct { gorm.ConnPool }" {
		t.Errorf("error %v", err)
	}
	must(t, db.Exec("SELECT 1").Error)
}

func TestDryRun(t *testing.T) {
	t.Parallel()
	a, db, plugin := newDB(t, gorm.Config{})
	ctx := by(context.Background(), "ann")
	must(t, db.WithContext(ctx).Session(&gorm.Session{DryRun: true}).Create(&Todo{Task: "Sleep"}).Error)
	if lines := history(t, a); len(lines) > 0 || plugin.Stats().Stamped > 0 {
		t.Errorf("%v, %+v", lines, plugin.Stats())
	}
}
