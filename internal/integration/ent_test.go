package integration_test

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"testing"
	"time"

	entsql "entgo.io/ent/dialect/sql"

	"github.com/hindsight-go/audit"
	"github.com/hindsight-go/audit/audittest"
	"github.com/hindsight-go/audit/internal/integration/ent"
	"github.com/hindsight-go/audit/internal/integration/ent/hook"
	"github.com/hindsight-go/audit/internal/integration/ent/todo"
	"github.com/hindsight-go/audit/internal/integration/ent/user"
)

// TestEnt writes in the ways of ent, over both drivers.
func TestEnt(t *testing.T) {
	t.Parallel()
	for _, driver := range bothDrivers() {
		t.Run(driver.name, func(t *testing.T) {
			t.Parallel()
			a := audittest.New(t, audit.Config{}, schemaSQL)
			client := openEnt(driver.open(t, a.URL(), ignore))
			client.Todo.Use(
				hook.On(softDelete, ent.OpDelete|ent.OpDeleteOne),
				hook.On(userForHooked, ent.OpCreate))
			tell(t, a, client, append(entWrites(), entTransactions()...))
		})
	}
}

// forGood in a context says that todos are really to be deleted.
type forGood struct{}

// softDelete makes an update of a deletion.
func softDelete(next ent.Mutator) ent.Mutator {
	return hook.TodoFunc(func(ctx context.Context, m *ent.TodoMutation) (ent.Value, error) {
		if ctx.Value(forGood{}) != nil {
			return next.Mutate(ctx, m)
		}
		m.SetOp(ent.OpUpdate)
		m.SetDeletedAt(time.Now())
		return m.Client().Mutate(ctx, m)
	})
}

// userForHooked makes a user when a todo Hooked or Fail is made, and then fails
// for Fail.
func userForHooked(next ent.Mutator) ent.Mutator {
	return hook.TodoFunc(func(ctx context.Context, m *ent.TodoMutation) (ent.Value, error) {
		value, err := next.Mutate(ctx, m)
		task, _ := m.Task()
		if err != nil || task != "Hooked" && task != "Fail" {
			return value, err
		}
		if err := m.Client().User.Create().SetName("hook of " + task).Exec(ctx); err != nil {
			return nil, err
		}
		if task == "Fail" {
			return nil, errHook
		}
		return value, nil
	})
}

func entWrites() []step[*ent.Client] {
	return []step[*ent.Client]{
		{"create", func(ctx context.Context, db *ent.Client) error {
			return errors.Join(
				db.User.Create().SetName("Ann").Exec(by(ctx, "ann")),
				db.User.Create().SetName("Bob").Exec(ctx))
		}, []string{"CREATE users[1] Ann by ann", "CREATE users[2] Bob"}},
		{"bulk create", func(ctx context.Context, db *ent.Client) error {
			return db.Todo.CreateBulk(
				db.Todo.Create().SetTask("Sleep"), db.Todo.Create().SetTask("Eat"), db.Todo.Create().SetTask("Code"),
			).Exec(by(ctx, "bob"))
		}, []string{"CREATE todos[1] Sleep by bob", "CREATE todos[2] Eat by bob", "CREATE todos[3] Code by bob"}},
		{"create with an edge that is another table", func(ctx context.Context, db *ent.Client) error {
			return db.Todo.Create().SetTask("Watch").SetUserID(1).AddWatcherIDs(1).Exec(by(ctx, "cat"))
		}, []string{"CREATE todos[4] Watch by cat", "CREATE todo_watchers[4,1] by cat"}},
		{"update", func(ctx context.Context, db *ent.Client) error {
			return db.Todo.UpdateOneID(1).SetDone(true).Exec(by(ctx, "ann"))
		}, []string{"UPDATE todos[1] done false -> true by ann"}},
		{"update many", func(ctx context.Context, db *ent.Client) error {
			return db.Todo.Update().Where(todo.IDIn(2, 3)).SetDone(true).Exec(by(ctx, "bob"))
		}, []string{"UPDATE todos[2] done false -> true by bob", "UPDATE todos[3] done false -> true by bob"}},
		{"upsert", func(ctx context.Context, db *ent.Client) error {
			return db.Todo.CreateBulk(db.Todo.Create().SetTask("Eat").SetDone(false), db.Todo.Create().SetTask("Rest")).
				OnConflictColumns(todo.FieldCell, todo.FieldTask).UpdateNewValues().Exec(by(ctx, "cat"))
		}, []string{"UPDATE todos[2] done true -> false by cat", "CREATE todos[6] Rest by cat"}},
		{"upsert that does nothing", func(ctx context.Context, db *ent.Client) error {
			err := db.User.Create().SetName("Ann").
				OnConflict(entsql.ConflictColumns(user.FieldName), entsql.DoNothing()).Exec(by(ctx, "cat"))
			return expect(sql.ErrNoRows, err) // that is how ent says it
		}, nil},
		{"association writes", func(ctx context.Context, db *ent.Client) error {
			return errors.Join(
				db.User.UpdateOneID(1).AddTodoIDs(1, 2).Exec(by(ctx, "ann")),
				db.Todo.UpdateOneID(1).AddWatcherIDs(2).Exec(by(ctx, "bob")),
				db.Todo.UpdateOneID(4).AddWatcherIDs(2).Exec(ctx),
				db.Todo.UpdateOneID(4).RemoveWatcherIDs(1).Exec(by(ctx, "cat")),
				db.Todo.UpdateOneID(4).ClearWatchers().Exec(by(ctx, "dan")))
		}, []string{
			"UPDATE todos[1] user_id null -> 1 by ann", "UPDATE todos[2] user_id null -> 1 by ann",
			"CREATE todo_watchers[1,2] by bob",
			"CREATE todo_watchers[4,2]",
			"DELETE todo_watchers[4,1] by cat",
			"DELETE todo_watchers[4,2] by dan",
		}},
		{"soft delete", func(ctx context.Context, db *ent.Client) error {
			return db.Todo.DeleteOneID(6).Exec(by(ctx, "bob"))
		}, []string{"UPDATE todos[6] deleted_at by bob"}},
		{"delete for good", func(ctx context.Context, db *ent.Client) error {
			_, err := db.Todo.Delete().Where(todo.IDGTE(4)).Exec(context.WithValue(by(ctx, "bob"), forGood{}, true))
			return err
		}, []string{"DELETE todos[4] Watch by bob", "DELETE todos[6] Rest by bob"}},
		{"delete that cascades", func(ctx context.Context, db *ent.Client) error {
			return db.User.DeleteOneID(1).Exec(by(ctx, "cat"))
		}, []string{"DELETE users[1] Ann by cat", "DELETE todos[1] Sleep by cat", "DELETE todos[2] Eat by cat", "DELETE todo_watchers[1,2] by cat"}},
		{"raw SQL", func(ctx context.Context, db *ent.Client) error {
			_, err := db.ExecContext(by(ctx, "ann"), "UPDATE todos SET done = $1 WHERE id = $2", false, 3)
			if err != nil {
				return err
			}
			rows, err := db.QueryContext(by(ctx, "bob"), "UPDATE todos SET done = true RETURNING id")
			if err != nil {
				return err
			}
			defer func() { _ = rows.Close() }()
			id, err := entsql.ScanInt64(rows)
			if id != 3 {
				err = errors.Join(err, errors.New("another todo"))
			}
			return errors.Join(err, rows.Err())
		}, []string{"UPDATE todos[3] done true -> false by ann", "UPDATE todos[3] done false -> true by bob"}},
	}
}

func entTransactions() []step[*ent.Client] {
	// A hook of ent is not in a transaction unless the program makes one.
	return []step[*ent.Client]{
		{"hook", func(ctx context.Context, db *ent.Client) error {
			return db.Todo.Create().SetTask("Hooked").Exec(by(ctx, "ann"))
		}, []string{"CREATE todos[7] Hooked by ann", "CREATE users[4] hook of Hooked by ann"}},
		{"hook that fails", func(ctx context.Context, db *ent.Client) error {
			tx, err := db.Tx(ctx)
			if err != nil {
				return err
			}
			err = tx.Todo.Create().SetTask("Fail").Exec(by(ctx, "bob"))
			return errors.Join(expect(errHook, err), tx.Rollback())
		}, nil},
		{"error that ent knows", func(ctx context.Context, db *ent.Client) error {
			if err := db.User.Create().SetName("Bob").Exec(by(ctx, "bob")); !ent.IsConstraintError(err) {
				return fmt.Errorf("no violation of a constraint: %w", err)
			}
			return nil
		}, nil},
		{"transaction", func(ctx context.Context, db *ent.Client) error {
			tx, err := db.Tx(ctx)
			if err != nil {
				return err
			}
			return errors.Join(
				tx.Todo.Create().SetTask("First").Exec(by(ctx, "cat")),
				tx.Todo.UpdateOneID(3).SetDone(false).Exec(by(ctx, "dan")),
				tx.Commit())
		}, []string{"CREATE todos[9] First by cat", "UPDATE todos[3] done true -> false by dan"}},
	}
}
