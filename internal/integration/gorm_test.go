package integration_test

import (
	"context"
	"errors"
	"strings"
	"testing"

	"gorm.io/driver/postgres"
	"gorm.io/gorm"
	"gorm.io/gorm/clause"
	"gorm.io/gorm/logger"

	"github.com/hindsight-go/audit"
	"github.com/hindsight-go/audit/auditgorm"
	"github.com/hindsight-go/audit/audittest"
)

type gormUser struct {
	ID    int64
	Name  string
	Todos []gormTodo `gorm:"foreignKey:UserID"`
}

func (gormUser) TableName() string { return "users" }

type gormTodo struct {
	ID        int64
	Cell      string
	Task      string
	Done      bool
	UserID    *int64
	DeletedAt gorm.DeletedAt
	Watchers  []gormUser `gorm:"many2many:todo_watchers;joinForeignKey:todo_id;joinReferences:user_id"`
}

func (gormTodo) TableName() string { return "todos" }

// gormHooked is a todo that makes a user when it is made, unless it is to fail.
type gormHooked struct {
	ID   int64
	Task string
}

func (gormHooked) TableName() string { return "todos" }

var errHook = errors.New("the hook fails")

func (h gormHooked) AfterCreate(tx *gorm.DB) error {
	if err := tx.Create(&gormUser{Name: "hook of " + h.Task}).Error; err != nil {
		return err
	}
	if strings.HasPrefix(h.Task, "Fail") {
		return errHook
	}
	return nil
}

// TestGORM writes in the ways of GORM, in its modes, over both drivers.
func TestGORM(t *testing.T) {
	t.Parallel()
	for _, driver := range bothDrivers() {
		for mode, config := range gormModes {
			t.Run(driver.name+", "+mode, func(t *testing.T) {
				t.Parallel()
				a := audittest.New(t, audit.Config{}, schemaSQL)
				config.TranslateError = true
				tell(t, a, openGORM(t, driver.open(t, a.URL(), ignore), config), gormSteps(config.SkipDefaultTransaction))
			})
		}
	}
}

// TestGORMPlugin writes in the same ways with the plugin over what GORM opens by itself.
func TestGORMPlugin(t *testing.T) {
	t.Parallel()
	for mode, config := range gormModes {
		t.Run(mode, func(t *testing.T) {
			t.Parallel()
			a := audittest.New(t, audit.Config{}, schemaSQL)
			config.TranslateError, config.Logger = true, logger.Discard
			db, err := gorm.Open(postgres.Open(a.URL()), &config)
			if err != nil {
				t.Fatal(err)
			}
			if err := db.Use(auditgorm.New(auditgorm.Config{})); err != nil {
				t.Fatal(err)
			}
			pool, err := db.DB()
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = pool.Close() })
			tell(t, a, db, gormSteps(config.SkipDefaultTransaction))
		})
	}
}

func gormSteps(skipsTransactions bool) []step[*gorm.DB] {
	return append(gormWrites(), gormHooks(skipsTransactions)...)
}

func gormWrites() []step[*gorm.DB] {
	return []step[*gorm.DB]{
		{"create with associations", func(ctx context.Context, db *gorm.DB) error {
			return db.WithContext(by(ctx, "ann")).Create(&gormUser{Name: "Ann", Todos: []gormTodo{{Task: "Sleep"}, {Task: "Eat"}}}).Error
		}, []string{"CREATE users[1] Ann by ann", "CREATE todos[1] Sleep by ann", "CREATE todos[2] Eat by ann"}},
		{"bulk create", func(ctx context.Context, db *gorm.DB) error {
			return db.WithContext(by(ctx, "bob")).CreateInBatches([]gormTodo{{Task: "A"}, {Task: "B"}, {Task: "C"}}, 2).Error
		}, []string{"CREATE todos[3] A by bob", "CREATE todos[4] B by bob", "CREATE todos[5] C by bob"}},
		{"create without context", func(_ context.Context, db *gorm.DB) error {
			return db.Create(&gormUser{Name: "Bob"}).Error
		}, []string{"CREATE users[2] Bob"}},
		{"first or create", func(ctx context.Context, db *gorm.DB) error {
			var user gormUser
			db = db.WithContext(by(ctx, "cat"))
			return errors.Join(
				db.FirstOrCreate(&user, gormUser{Name: "Ann"}).Error,
				db.FirstOrCreate(new(gormUser), gormUser{Name: "Cat"}).Error)
		}, []string{"CREATE users[3] Cat by cat"}},
		{"update a column", func(ctx context.Context, db *gorm.DB) error {
			return db.WithContext(by(ctx, "ann")).Model(&gormTodo{ID: 1}).Update("done", true).Error
		}, []string{"UPDATE todos[1] done false -> true by ann"}},
		{"save", func(ctx context.Context, db *gorm.DB) error {
			var todo gormTodo
			if err := db.WithContext(ctx).First(&todo, 2).Error; err != nil {
				return err
			}
			todo.Task = "Eat well"
			return db.WithContext(by(ctx, "bob")).Save(&todo).Error
		}, []string{`UPDATE todos[2] task "Eat" -> "Eat well" by bob`}},
		{"update many", func(ctx context.Context, db *gorm.DB) error {
			return db.WithContext(by(ctx, "cat")).Model(&gormTodo{}).Where("id > ?", 3).Updates(map[string]any{"done": true}).Error
		}, []string{"UPDATE todos[4] done false -> true by cat", "UPDATE todos[5] done false -> true by cat"}},
		{"upsert", func(ctx context.Context, db *gorm.DB) error {
			db = db.WithContext(by(ctx, "ann")).Clauses(clause.OnConflict{
				Columns:   []clause.Column{{Name: "cell"}, {Name: "task"}},
				DoUpdates: clause.AssignmentColumns([]string{"done"}),
			})
			return db.Create([]gormTodo{{Task: "A", Done: true}, {Task: "D"}}).Error
		}, []string{"UPDATE todos[3] done false -> true by ann", "CREATE todos[7] D by ann"}},
		{"upsert that does nothing", func(ctx context.Context, db *gorm.DB) error {
			return db.WithContext(by(ctx, "ann")).Clauses(clause.OnConflict{DoNothing: true}).Create(&gormUser{Name: "Ann"}).Error
		}, nil},
		{"association writes", func(ctx context.Context, db *gorm.DB) error {
			var todo gormTodo
			if err := db.First(&todo, 1).Error; err != nil {
				return err
			}
			watchers := func(user string) *gorm.Association {
				return db.WithContext(by(ctx, user)).Model(&todo).Association("Watchers")
			}
			return errors.Join(
				watchers("ann").Append(&gormUser{ID: 2, Name: "Bob"}, &gormUser{ID: 3, Name: "Cat"}),
				watchers("bob").Delete(&gormUser{ID: 2}),
				watchers("cat").Replace(&gormUser{ID: 1, Name: "Ann"}),
				watchers("dan").Clear())
		}, []string{
			// GORM touches the owner, too.
			"UPDATE todos[1] by ann", "CREATE todo_watchers[1,2] by ann", "CREATE todo_watchers[1,3] by ann",
			"DELETE todo_watchers[1,2] by bob",
			"UPDATE todos[1] by cat", "CREATE todo_watchers[1,1] by cat", "DELETE todo_watchers[1,3] by cat",
			"DELETE todo_watchers[1,1] by dan",
		}},
		{"soft delete", func(ctx context.Context, db *gorm.DB) error {
			return db.WithContext(by(ctx, "bob")).Delete(&gormTodo{ID: 7}).Error
		}, []string{"UPDATE todos[7] deleted_at by bob"}},
		{"delete for good", func(ctx context.Context, db *gorm.DB) error {
			return db.WithContext(by(ctx, "bob")).Unscoped().Where("id >= ?", 5).Delete(&gormTodo{}).Error
		}, []string{"DELETE todos[5] C by bob", "DELETE todos[7] D by bob"}},
		{"raw SQL", func(ctx context.Context, db *gorm.DB) error {
			var ids []int64
			return errors.Join(
				db.WithContext(by(ctx, "ann")).Exec("UPDATE todos SET done = ? WHERE id = ?", false, 3).Error,
				db.WithContext(by(ctx, "bob")).Raw("DELETE FROM todos WHERE id = ? RETURNING id", 2).Scan(&ids).Error)
		}, []string{"UPDATE todos[3] done true -> false by ann", "DELETE todos[2] Eat well by bob"}},
		{"delete that cascades", func(ctx context.Context, db *gorm.DB) error {
			return db.WithContext(by(ctx, "cat")).Delete(&gormUser{ID: 1}).Error
		}, []string{"DELETE users[1] Ann by cat", "DELETE todos[1] Sleep by cat"}},
	}
}

func gormHooks(skipsTransactions bool) []step[*gorm.DB] {
	// Where GORM makes no transaction, what came before the failure stays.
	var failed []string
	if skipsTransactions {
		failed = []string{"CREATE todos[9] Fail by bob", "CREATE users[6] hook of Fail by bob"}
	}
	return []step[*gorm.DB]{
		{"hook", func(ctx context.Context, db *gorm.DB) error {
			return db.WithContext(by(ctx, "ann")).Create(&gormHooked{Task: "Hooked"}).Error
		}, []string{"CREATE todos[8] Hooked by ann", "CREATE users[5] hook of Hooked by ann"}},
		{"hook that fails", func(ctx context.Context, db *gorm.DB) error {
			return expect(errHook, db.WithContext(by(ctx, "bob")).Create(&gormHooked{Task: "Fail"}).Error)
		}, failed},
		{"hook that fails in a transaction", func(ctx context.Context, db *gorm.DB) error {
			return expect(errHook, db.WithContext(by(ctx, "bob")).Transaction(func(tx *gorm.DB) error {
				return tx.Create(&gormHooked{Task: "Fail again"}).Error
			}))
		}, nil},
		{"error that GORM translates", func(ctx context.Context, db *gorm.DB) error {
			return expect(gorm.ErrDuplicatedKey, db.WithContext(by(ctx, "bob")).Create(&gormUser{Name: "Bob"}).Error)
		}, nil},
		{"by hand", func(ctx context.Context, db *gorm.DB) error {
			tx := db.WithContext(by(ctx, "cat")).Begin()
			err := tx.Create(&gormTodo{Task: "First"}).Error
			tx.SavePoint("here")
			err = errors.Join(err, tx.Create(&gormTodo{Task: "Second"}).Error)
			tx.RollbackTo("here")
			return errors.Join(err, tx.WithContext(by(ctx, "dan")).Create(&gormTodo{Task: "Third"}).Error, tx.Commit().Error)
		}, []string{"CREATE todos[11] First by cat", "CREATE todos[13] Third by dan"}},
	}
}
