package auditpgx_test

import (
	"context"
	"errors"
	"fmt"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5"

	"github.com/hindsight-go/audit"
	"github.com/hindsight-go/audit/auditpgx"
	"github.com/hindsight-go/audit/audittest"
)

// What follows is of the form that sqlc generates with sql_package pgx/v5, with
// the DBTX of ExampleWrap.

func NewQueries(db DBTX) *Queries { return &Queries{db: db} }

type Queries struct{ db DBTX }

func (q *Queries) WithTx(tx pgx.Tx) *Queries { return &Queries{db: tx} }

type Todo struct {
	Cell string
	ID   int32
	Task *string
}

const addTodo = `-- name: AddTodo :exec
INSERT INTO todo (cell, id, task) VALUES ($1, $2, $3)
`

func (q *Queries) AddTodo(ctx context.Context, arg Todo) error {
	_, err := q.db.Exec(ctx, addTodo, arg.Cell, arg.ID, arg.Task)
	return err
}

const createTodo = `-- name: CreateTodo :one
INSERT INTO todo (cell, id, task) VALUES ($1, $2, $3) RETURNING cell, id, task
`

func (q *Queries) CreateTodo(ctx context.Context, arg Todo) (Todo, error) {
	row := q.db.QueryRow(ctx, createTodo, arg.Cell, arg.ID, arg.Task)
	var i Todo
	err := row.Scan(&i.Cell, &i.ID, &i.Task)
	return i, err
}

const createTodos = `-- name: CreateTodos :many
INSERT INTO todo (cell, id) SELECT $1, unnest($2::int[]) RETURNING cell, id, task
`

func (q *Queries) CreateTodos(ctx context.Context, cell string, ids []int32) ([]Todo, error) {
	rows, err := q.db.Query(ctx, createTodos, cell, ids)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	var items []Todo
	for rows.Next() {
		var i Todo
		if err := rows.Scan(&i.Cell, &i.ID, &i.Task); err != nil {
			return nil, err
		}
		items = append(items, i)
	}
	if err := rows.Err(); err != nil {
		return nil, err
	}
	return items, nil
}

type AddTodosBatchResults struct {
	br     pgx.BatchResults
	tot    int
	closed bool
}

func (q *Queries) AddTodosBatch(ctx context.Context, arg []Todo) *AddTodosBatchResults {
	batch := &pgx.Batch{}
	for _, a := range arg {
		vals := []interface{}{a.Cell, a.ID, a.Task}
		batch.Queue(addTodo, vals...)
	}
	br := q.db.SendBatch(ctx, batch)
	return &AddTodosBatchResults{br, len(arg), false}
}

func (b *AddTodosBatchResults) Exec(f func(int, error)) {
	defer func() { _ = b.br.Close() }()
	for t := 0; t < b.tot; t++ {
		if b.closed {
			if f != nil {
				f(t, errors.New("batch already closed"))
			}
			continue
		}
		_, err := b.br.Exec()
		if f != nil {
			f(t, err)
		}
	}
}

func (q *Queries) CopyTodos(ctx context.Context, arg []Todo) (int64, error) {
	return q.db.CopyFrom(ctx, []string{"todo"}, []string{"cell", "id", "task"}, pgx.CopyFromSlice(len(arg), func(i int) ([]any, error) {
		return []any{arg[i].Cell, arg[i].ID, arg[i].Task}, nil
	}))
}

func generatedWriters() []writer {
	todo := func(cell string, id int) Todo { return Todo{Cell: cell, ID: int32(id)} }
	return []writer{
		{"generated :exec", func(ctx context.Context, q auditpgx.Querier, cell string, id int) error {
			return NewQueries(q).AddTodo(ctx, todo(cell, id))
		}},
		{"generated :one", func(ctx context.Context, q auditpgx.Querier, cell string, id int) error {
			got, err := NewQueries(q).CreateTodo(ctx, todo(cell, id))
			if err == nil && got != todo(cell, id) {
				return fmt.Errorf("got %v", got)
			}
			return err
		}},
		{"generated :many", func(ctx context.Context, q auditpgx.Querier, cell string, id int) error {
			got, err := NewQueries(q).CreateTodos(ctx, cell, []int32{int32(id)})
			if err == nil && (len(got) != 1 || got[0] != todo(cell, id)) {
				return fmt.Errorf("got %v", got)
			}
			return err
		}},
		{"generated :batchexec", func(ctx context.Context, q auditpgx.Querier, cell string, id int) (failed error) {
			NewQueries(q).AddTodosBatch(ctx, []Todo{todo(cell, id)}).Exec(func(_ int, err error) { failed = errors.Join(failed, err) })
			return failed
		}},
		{"generated :copyfrom", func(ctx context.Context, q auditpgx.Querier, cell string, id int) error {
			n, err := NewQueries(q).CopyTodos(ctx, []Todo{todo(cell, id)})
			if err == nil && n != 1 {
				return fmt.Errorf("copied %d", n)
			}
			return err
		}},
	}
}

// TestGeneratedCodeTakesDBConnAndTx uses generated code as programs do, with its
// own WithTx.
func TestGeneratedCodeTakesDBConnAndTx(t *testing.T) {
	t.Parallel()
	a := audittest.New(t, audit.Config{}, todoSQL)
	db := auditpgx.Wrap(newPool(t, a.Database, nil))
	queries := NewQueries(db)
	ann, bob := by(t.Context(), "ann"), by(t.Context(), "bob")
	err := queries.AddTodo(ann, Todo{Cell: "c", ID: 1})
	err = errors.Join(err, db.AcquireFunc(ann, func(conn *auditpgx.Conn) error {
		return NewQueries(conn).AddTodo(bob, Todo{Cell: "c", ID: 2})
	}))
	tx, txErr := db.Begin(ann)
	if txErr != nil {
		t.Fatal(txErr)
	}
	inTx := queries.WithTx(tx)
	_, manyErr := inTx.CreateTodos(ann, "c", []int32{3, 4})
	_, copyErr := inTx.CopyTodos(bob, []Todo{{Cell: "c", ID: 5}, {Cell: "c", ID: 6}})
	if err = errors.Join(err, manyErr, copyErr, tx.Commit(ann)); err != nil {
		t.Fatal(err)
	}
	want := []string{"1 ann", "2 bob", "3 ann", "4 ann", "5 bob", "6 bob"}
	if diff := cmp.Diff(want, whoWrote(t, a)); diff != "" {
		t.Error(diff)
	}
}

// whoWrote returns the changes of todo, oldest first: the id and the user, if
// there is one.
func whoWrote(t *testing.T, a *audittest.Audited) (got []string) {
	t.Helper()
	a.Sync(t)
	for change, err := range a.Client.Changes().OldestFirst().All(t.Context()) {
		if err != nil {
			t.Fatal(err)
		}
		text := change.KeyParts()[1]
		if change.Stamped {
			text += " " + change.Context.User()
		}
		got = append(got, text)
	}
	return got
}
