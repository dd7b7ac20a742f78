package audit_test

import (
	"context"
	"fmt"
	"net/http"
	"time"

	"github.com/hindsight-go/audit"
)

type exampleTodo struct {
	ID   int64
	Task string
	Done bool
}

// TableName is for types that are not named as their table.
func (exampleTodo) TableName() string { return "todo" }

// The new row of a change, as the program's own type.
func ExampleAfter() {
	client, err := todoHistory()
	fatal(err)
	for change, err := range client.Changes().InRequest("req-1").OldestFirst().All(context.Background()) {
		fatal(err)
		todo, err := audit.After[exampleTodo](change)
		fatal(err)
		fmt.Println(todo.ID, todo.Task)
	}
	// Output:
	// 26 Sleep
	// 27 Eat
}

// A table before a request: all of it, and some of its rows.
func ExampleListAsOf() {
	client, err := todoHistory()
	fatal(err)
	ctx := context.Background()

	todos, err := audit.ListAsOf[exampleTodo](ctx, client.BeforeRequest("req-4"))
	fatal(err)
	fmt.Println(len(todos))

	open, err := audit.ListAsOf[exampleTodo](ctx, client.BeforeRequest("req-4").Table("todo").Where("NOT done").OrderBy("id"))
	fatal(err)
	fmt.Println(open)
	// Output:
	// 3
	// [{27 Eat false} {28 Code false}]
}

// The versions of a row, as the program's own type.
func ExampleHistoryOf() {
	client, err := todoHistory()
	fatal(err)
	versions, err := audit.HistoryOf[exampleTodo](context.Background(), client.History("todo", 26))
	fatal(err)
	for _, v := range versions {
		fmt.Println(v.Value.Task, v.Value.Done, "since", v.Change.Context.Endpoint)
	}
	// Output:
	// Sleep false since POST /todo
	// Sleep true since PATCH /todo/{id}
}

// The changes whose context holds something of the program's own.
func ExampleQuery_WhereContext() {
	client, err := todoHistory()
	fatal(err)
	n, err := client.Changes().WhereContext(map[string]any{"endpoint": "POST /todo"}).Count(context.Background())
	fatal(err)
	fmt.Println(n)
	// Output: 3
}

// A probe beside the program's own routes.
func ExampleClient_Health() {
	client, err := todoHistory()
	fatal(err)
	mux := http.NewServeMux()
	mux.Handle("GET /healthz/history", client.Health())
}

// What may pass is tried again.
func ExampleIsRetryable() {
	client, err := todoHistory()
	fatal(err)
	ctx := context.Background()
	var todos []exampleTodo
	for wait := 50 * time.Millisecond; ; wait *= 2 {
		todos, err = audit.ListAsOf[exampleTodo](ctx, client.Now())
		if !audit.IsRetryable(err) || wait > time.Minute {
			break
		}
		select {
		case <-ctx.Done():
		case <-time.After(wait):
		}
	}
	fatal(err)
	fmt.Println(len(todos))
	// Output: 2
}
