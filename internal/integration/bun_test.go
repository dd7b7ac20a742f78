package integration_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/uptrace/bun"

	"github.com/hindsight-go/audit"
	"github.com/hindsight-go/audit/audittest"
)

type bunUser struct {
	bun.BaseModel `bun:"table:users"`

	ID   int64 `bun:",pk,autoincrement"`
	Name string
}

type bunTodo struct {
	bun.BaseModel `bun:"table:todos"`

	ID        int64 `bun:",pk,autoincrement"`
	Cell      string
	Task      string
	Done      bool
	UserID    *int64
	DeletedAt time.Time `bun:",soft_delete,nullzero"`
}

type bunWatcher struct {
	bun.BaseModel `bun:"table:todo_watchers"`

	TodoID int64 `bun:",pk"`
	UserID int64 `bun:",pk"`
}

// bunHooked is a todo that makes a user when it is made.
type bunHooked struct {
	bun.BaseModel `bun:"table:todos"`

	ID   int64 `bun:",pk,autoincrement"`
	Task string
}

var _ bun.AfterInsertHook = (*bunHooked)(nil)

// AfterInsert is called for the query, whose models the receiver is not.
func (*bunHooked) AfterInsert(ctx context.Context, query *bun.InsertQuery) error {
	h := query.GetModel().Value().(*bunHooked)
	_, err := query.DB().NewInsert().Model(&bunUser{Name: "hook of " + h.Task}).Exec(ctx)
	return err
}

// TestBun writes in the ways of bun, over both drivers.
func TestBun(t *testing.T) {
	t.Parallel()
	for _, driver := range bothDrivers() {
		t.Run(driver.name, func(t *testing.T) {
			t.Parallel()
			a := audittest.New(t, audit.Config{}, schemaSQL)
			tell(t, a, openBun(driver.open(t, a.URL(), ignore)), append(bunWrites(), bunTransactions()...))
		})
	}
}

func bunWrites() []step[*bun.DB] {
	return []step[*bun.DB]{
		{"create", func(ctx context.Context, db *bun.DB) error {
			_, err := db.NewInsert().Model(&bunUser{Name: "Ann"}).Exec(by(ctx, "ann"))
			_, without := db.NewInsert().Model(&bunUser{Name: "Bob"}).Exec(ctx)
			return errors.Join(err, without)
		}, []string{"CREATE users[1] Ann by ann", "CREATE users[2] Bob"}},
		{"bulk create", func(ctx context.Context, db *bun.DB) error {
			_, err := db.NewInsert().Model(&[]bunTodo{{Task: "Sleep"}, {Task: "Eat"}, {Task: "Code"}}).Exec(by(ctx, "bob"))
			return err
		}, []string{"CREATE todos[1] Sleep by bob", "CREATE todos[2] Eat by bob", "CREATE todos[3] Code by bob"}},
		{"update", func(ctx context.Context, db *bun.DB) error {
			_, err := db.NewUpdate().Model(&bunTodo{ID: 1, Done: true}).Column("done").WherePK().Exec(by(ctx, "ann"))
			return err
		}, []string{"UPDATE todos[1] done false -> true by ann"}},
		{"bulk update", func(ctx context.Context, db *bun.DB) error {
			todos := []bunTodo{{ID: 2, Done: true}, {ID: 3, Done: true}}
			_, err := db.NewUpdate().With("_data", db.NewValues(&todos)).Model((*bunTodo)(nil)).TableExpr("_data").
				Set("done = _data.done").Where("bun_todo.id = _data.id").Exec(by(ctx, "bob"))
			return err
		}, []string{"UPDATE todos[2] done false -> true by bob", "UPDATE todos[3] done false -> true by bob"}},
		{"upsert", func(ctx context.Context, db *bun.DB) error {
			_, err := db.NewInsert().Model(&[]bunTodo{{Task: "Eat"}, {Task: "Rest"}}).
				On("CONFLICT (cell, task) DO UPDATE").Set("done = EXCLUDED.done").Exec(by(ctx, "cat"))
			return err
		}, []string{"UPDATE todos[2] done true -> false by cat", "CREATE todos[5] Rest by cat"}},
		{"upsert that does nothing", func(ctx context.Context, db *bun.DB) error {
			_, err := db.NewInsert().Model(&bunUser{Name: "Ann"}).Ignore().Exec(by(ctx, "cat"))
			return err
		}, nil},
		{"association writes", func(ctx context.Context, db *bun.DB) error {
			_, err := db.NewInsert().Model(&[]bunWatcher{{TodoID: 1, UserID: 1}, {TodoID: 1, UserID: 2}}).Exec(by(ctx, "ann"))
			_, deleted := db.NewDelete().Model(&bunWatcher{TodoID: 1, UserID: 2}).WherePK().Exec(by(ctx, "bob"))
			return errors.Join(err, deleted)
		}, []string{"CREATE todo_watchers[1,1] by ann", "CREATE todo_watchers[1,2] by ann", "DELETE todo_watchers[1,2] by bob"}},
		{"soft delete", func(ctx context.Context, db *bun.DB) error {
			_, err := db.NewDelete().Model(&bunTodo{ID: 5}).WherePK().Exec(by(ctx, "bob"))
			return err
		}, []string{"UPDATE todos[5] deleted_at by bob"}},
		{"delete for good", func(ctx context.Context, db *bun.DB) error {
			_, err := db.NewDelete().Model(&bunTodo{ID: 5}).WherePK().ForceDelete().Exec(by(ctx, "bob"))
			return err
		}, []string{"DELETE todos[5] Rest by bob"}},
		{"delete that cascades", func(ctx context.Context, db *bun.DB) error {
			_, err := db.NewDelete().Model(&bunUser{ID: 1}).WherePK().Exec(by(ctx, "cat"))
			return err
		}, []string{"DELETE users[1] Ann by cat", "DELETE todo_watchers[1,1] by cat"}},
		{"truncate", func(ctx context.Context, db *bun.DB) error {
			_, err := db.NewTruncateTable().Model((*bunWatcher)(nil)).Exec(by(ctx, "dan"))
			return err
		}, []string{"TRUNCATE todo_watchers[] by dan"}},
		{"raw SQL", func(ctx context.Context, db *bun.DB) error {
			_, err := db.ExecContext(by(ctx, "ann"), "UPDATE todos SET done = ? WHERE id = ?", false, 3)
			var ids []int64
			raw := db.NewRaw("DELETE FROM todos WHERE id = ? RETURNING id", 2).Scan(by(ctx, "bob"), &ids)
			return errors.Join(err, raw)
		}, []string{"UPDATE todos[3] done true -> false by ann", "DELETE todos[2] Eat by bob"}},
	}
}

func bunTransactions() []step[*bun.DB] {
	return []step[*bun.DB]{
		{"hook", func(ctx context.Context, db *bun.DB) error {
			_, err := db.NewInsert().Model(&bunHooked{Task: "Hooked"}).Exec(by(ctx, "ann"))
			return err
		}, []string{"CREATE todos[6] Hooked by ann", "CREATE users[4] hook of Hooked by ann"}},
		{"transaction that ends in a panic", func(ctx context.Context, db *bun.DB) (err error) {
			defer func() {
				if recover() == nil {
					err = errors.New("the panic was lost")
				}
			}()
			return db.RunInTx(by(ctx, "bob"), nil, func(ctx context.Context, tx bun.Tx) error {
				if _, err := tx.NewInsert().Model(&bunTodo{Task: "Lost"}).Exec(ctx); err != nil {
					return err
				}
				panic("in the midst of it")
			})
		}, nil},
		{"nested transactions", func(ctx context.Context, db *bun.DB) error {
			return db.RunInTx(by(ctx, "cat"), nil, func(ctx context.Context, tx bun.Tx) error {
				_, first := tx.NewInsert().Model(&bunTodo{Task: "First"}).Exec(ctx)
				err := tx.RunInTx(by(ctx, "dan"), nil, func(ctx context.Context, tx bun.Tx) error {
					_, err := tx.NewInsert().Model(&bunTodo{Task: "Second"}).Exec(ctx)
					return errors.Join(err, errRollback)
				})
				_, third := tx.NewInsert().Model(&bunTodo{Task: "Third"}).Exec(ctx)
				return errors.Join(first, expect(errRollback, err), third)
			})
		}, []string{"CREATE todos[8] First by cat", "CREATE todos[10] Third by cat"}},
	}
}
