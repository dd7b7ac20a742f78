package integration_test

import (
	"context"
	"database/sql"
	"errors"
	"testing"

	"entgo.io/ent/dialect"
	entsql "entgo.io/ent/dialect/sql"
	"github.com/uptrace/bun"
	"github.com/uptrace/bun/dialect/pgdialect"
	"gorm.io/driver/postgres"
	"gorm.io/gorm"
	"gorm.io/gorm/logger"

	"github.com/hindsight-go/audit/internal/integration/ent"
)

// gormSession is GORM.
type gormSession struct{ db *gorm.DB }

func (s gormSession) write(ctx context.Context, cell, task string) error {
	return s.db.WithContext(ctx).Create(&gormTodo{Cell: cell, Task: task}).Error
}

func (s gormSession) inTx(ctx context.Context, fn func(session) error) error {
	return s.db.WithContext(ctx).Transaction(func(tx *gorm.DB) error { return fn(gormSession{tx}) })
}

// gormRawSession is GORM with SQL of the application's own.
type gormRawSession struct{ gormSession }

func (s gormRawSession) write(ctx context.Context, cell, task string) error {
	var id int64
	return s.db.WithContext(ctx).Raw("INSERT INTO todos (cell, task) VALUES (?, ?) RETURNING id", cell, task).Scan(&id).Error
}

func (s gormRawSession) inTx(ctx context.Context, fn func(session) error) error {
	return s.gormSession.inTx(ctx, func(tx session) error { return fn(gormRawSession{tx.(gormSession)}) })
}

// gormModes are the configurations of GORM that change how it writes.
var gormModes = map[string]gorm.Config{
	"gorm":                             {},
	"gorm, prepared":                   {PrepareStmt: true},
	"gorm, no transactions of its own": {SkipDefaultTransaction: true},
	"gorm, prepared, no transaction of its own": {PrepareStmt: true, SkipDefaultTransaction: true},
}

func openGORM(t *testing.T, db *sql.DB, config gorm.Config) *gorm.DB {
	t.Helper()
	config.Logger = logger.Discard
	g, err := gorm.Open(postgres.New(postgres.Config{Conn: db}), &config)
	if err != nil {
		t.Fatal(err)
	}
	return g
}

func gormSubjects(t *testing.T, db *sql.DB) []subject {
	t.Helper()
	var list []subject
	for name, config := range gormModes {
		s := gormSession{openGORM(t, db, config)}
		list = append(list, subject{name, s}, subject{name + ", raw", gormRawSession{s}})
	}
	return list
}

// entSession is ent.
type entSession struct {
	client *ent.Client
	tx     *ent.Tx // nil outside a transaction
}

func (s entSession) write(ctx context.Context, cell, task string) error {
	return s.client.Todo.Create().SetCell(cell).SetTask(task).Exec(ctx)
}

func (s entSession) inTx(ctx context.Context, fn func(session) error) error {
	if s.tx != nil {
		return savepoint(func(sql string) error { _, err := s.tx.ExecContext(ctx, sql); return err }, func() error { return fn(s) })
	}
	tx, err := s.client.Tx(ctx)
	if err != nil {
		return err
	}
	if err := fn(entSession{tx.Client(), tx}); err != nil {
		return errors.Join(err, ended(tx.Rollback()))
	}
	return tx.Commit()
}

func openEnt(db *sql.DB) *ent.Client {
	return ent.NewClient(ent.Driver(entsql.OpenDB(dialect.Postgres, db)))
}

func entSubjects(db *sql.DB) []subject {
	return []subject{{"ent", entSession{client: openEnt(db)}}}
}

// bunSession is bun.
type bunSession struct{ db bun.IDB }

func (s bunSession) write(ctx context.Context, cell, task string) error {
	_, err := s.db.NewInsert().Model(&bunTodo{Cell: cell, Task: task}).Exec(ctx)
	return err
}

func (s bunSession) inTx(ctx context.Context, fn func(session) error) error {
	return s.db.RunInTx(ctx, nil, func(_ context.Context, tx bun.Tx) error { return fn(bunSession{tx}) })
}

// bunRawSession is bun with SQL of the application's own, and nothing returned.
type bunRawSession struct{ bunSession }

func (s bunRawSession) write(ctx context.Context, cell, task string) error {
	return oneRow(s.db.NewRaw("INSERT INTO todos (cell, task) VALUES (?, ?)", cell, task).Exec(ctx))
}

func (s bunRawSession) inTx(ctx context.Context, fn func(session) error) error {
	return s.bunSession.inTx(ctx, func(tx session) error { return fn(bunRawSession{tx.(bunSession)}) })
}

func openBun(db *sql.DB) *bun.DB { return bun.NewDB(db, pgdialect.New()) }

func bunSubjects(db *sql.DB) []subject {
	s := bunSession{openBun(db)}
	return []subject{{"bun", s}, {"bun, raw", bunRawSession{s}}}
}
