package audit_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"sync"

	"github.com/jackc/pgx/v5"

	"github.com/hindsight-go/audit"
	"github.com/hindsight-go/audit/audittest"
)

// todoHistory is a todo list with a history, for the examples to ask: three
// todos were made, one was completed, one was deleted, and one was mended in
// psql, without context.
var todoHistory = sync.OnceValues(func() (*audit.Client, error) {
	client, _, err := newTodoHistory(context.Background())
	return client, err
})

// newTodoHistory is a todo list like that for an example that writes. It goes away with
// the process.
func newTodoHistory(ctx context.Context) (*audit.Client, *pgx.Conn, error) {
	database, err := audittest.StartDatabase(ctx)
	if err != nil {
		return nil, nil, err
	}
	db, err := pgx.Connect(ctx, database.URL())
	if err != nil {
		return nil, nil, err
	}
	if _, err := db.Exec(ctx, "CREATE TABLE todo (id bigint PRIMARY KEY, task text NOT NULL, done boolean NOT NULL DEFAULT false)"); err != nil {
		return nil, nil, err
	}
	client, err := audit.Open(ctx, audit.Config{SourceURL: database.URL(), Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		return nil, nil, err
	}
	if err := client.Start(ctx); err != nil {
		return nil, nil, err
	}
	for _, step := range []struct {
		user              any
		request, endpoint string
		sql               string
	}{
		{187234, "req-1", "POST /todo", "INSERT INTO todo VALUES (26, 'Sleep'), (27, 'Eat')"},
		{187234, "req-2", "POST /todo", "INSERT INTO todo VALUES (28, 'Code')"},
		{187234, "req-3", "PATCH /todo/{id}", "UPDATE todo SET done = true WHERE id = 26"},
		{42, "req-4", "DELETE /todo/{id}", "DELETE FROM todo WHERE id = 27"},
		{nil, "", "", "UPDATE todo SET task = 'Code less' WHERE id = 28"},
	} {
		ctx := audit.WithContext(ctx, audit.Context{UserID: step.user, RequestID: step.request, Endpoint: step.endpoint})
		err := pgx.BeginFunc(ctx, db, func(tx pgx.Tx) error {
			if err := audit.Stamp(ctx, tx); err != nil {
				return err
			}
			_, err := tx.Exec(ctx, step.sql)
			return err
		})
		if err != nil {
			return nil, nil, err
		}
	}
	return client, db, client.Sync(ctx)
}

// fatal ends the examples. In a program errors are returned, not fatal.
func fatal(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// From an empty database to the first answer.
func Example() {
	ctx := context.Background()
	database, err := audittest.StartDatabase(ctx) // or a database of yours
	fatal(err)
	defer database.Close()
	db, err := pgx.Connect(ctx, database.URL())
	fatal(err)
	defer db.Close(ctx)
	_, err = db.Exec(ctx, "CREATE TABLE todo (id bigint PRIMARY KEY, task text)")
	fatal(err)

	client, err := audit.Open(ctx, audit.Config{
		SourceURL: database.URL(),
		Tables:    []string{"public.*", "!public.sessions"},
		Logger:    slog.New(slog.DiscardHandler),
	})
	fatal(err)
	defer client.Close()
	fatal(client.Start(ctx))

	ctx = audit.WithContext(ctx, audit.Context{UserID: 187234, Endpoint: "POST /todo"})
	fatal(pgx.BeginFunc(ctx, db, func(tx pgx.Tx) error {
		if err := audit.Stamp(ctx, tx); err != nil {
			return err
		}
		_, err := tx.Exec(ctx, "INSERT INTO todo VALUES (26, 'Sleep')")
		return err
	}))

	fatal(client.Sync(ctx))
	change, err := client.Changes().ForTable("todo").ForRow(26).First(ctx)
	fatal(err)
	fmt.Println(change.Operation, change.TableName(), change.After, "by", change.Context.User())
	fatal(client.Stop(ctx))
	// Output: CREATE public.todo {"id": 26, "task": "Sleep"} by 187234
}

func ExampleQuery_All() {
	client, err := todoHistory()
	fatal(err)
	ctx := context.Background()

	changes := client.Changes().ForTable("todo").OldestFirst()
	for change, err := range changes.ByUser(187234).All(ctx) {
		fatal(err)
		fmt.Println(change.Operation, change.PrimaryKey, change.Context.Endpoint)
	}
	// Output:
	// CREATE 26 POST /todo
	// CREATE 27 POST /todo
	// CREATE 28 POST /todo
	// UPDATE 26 PATCH /todo/{id}
}

// The history of one row, by its primary key.
func ExampleQuery_ForRow() {
	client, err := todoHistory()
	fatal(err)
	changes, err := client.Changes().ForTable("public.todo").ForRow(27).OldestFirst().List(context.Background())
	fatal(err)
	for _, change := range changes {
		fmt.Println(change.Operation, change.Row(), "by", change.Context.User())
	}
	// Output:
	// CREATE {"id": 27, "done": false, "task": "Eat"} by 187234
	// DELETE {"id": 27, "done": false, "task": "Eat"} by 42
}

// What was written without the application saying anything: in psql, by a
// migration, by code without instrumentation.
func ExampleQuery_WithoutContext() {
	client, err := todoHistory()
	fatal(err)
	change, err := client.Changes().WithoutContext().First(context.Background())
	fatal(err)
	fmt.Println(change.TableName(), change.PrimaryKey, change.Diff())
	// Output: public.todo 28 [task: "Code" -> "Code less"]
}

func ExampleQuery_CountBy() {
	client, err := todoHistory()
	fatal(err)
	users, err := client.Changes().CountBy(context.Background(), audit.PerUser)
	fatal(err)
	for _, user := range users {
		if !user.Known {
			user.Value = "(unknown)"
		}
		fmt.Println(user.Value, user.Changes)
	}
	// Output:
	// 187234 4
	// 42 1
	// (unknown) 1
}

// Pages for a user interface: the cursor is safe in a URL.
func ExampleQuery_Page() {
	client, err := todoHistory()
	fatal(err)
	ctx := context.Background()

	var at audit.Cursor // the beginning
	for {
		page, err := client.Changes().Operations(audit.Create).OldestFirst().After(at).Page(ctx, 2)
		fatal(err)
		for _, change := range page.Changes {
			fmt.Print(change.PrimaryKey, " ")
		}
		fmt.Println("more:", page.More)
		if !page.More {
			break
		}
		at = page.Next
	}
	// Output:
	// 26 27 more: true
	// 28 more: false
}

// A live tail. A program that keeps the cursor of the last event it handled
// goes on behind it after a restart.
func ExampleQuery_Watch() {
	client, err := todoHistory()
	fatal(err)
	longAgo, err := client.Changes().OldestFirst().First(context.Background())
	fatal(err)

	var last audit.Cursor
	for event, err := range client.Changes().Since(longAgo.CommittedAt).Limit(2).Watch(context.Background()) {
		fatal(err)
		fmt.Println(event.Operation, event.PrimaryKey)
		last = event.Cursor
	}
	for event, err := range client.Changes().After(last).Limit(1).Watch(context.Background()) {
		fatal(err)
		fmt.Println(event.Operation, event.PrimaryKey)
	}
	// Output:
	// CREATE 26
	// CREATE 27
	// CREATE 28
}

func ExampleQuery_Export() {
	client, err := todoHistory()
	fatal(err)
	var csv strings.Builder
	n, err := client.Changes().Operations(audit.Delete).Export(context.Background(), &csv, audit.CSV)
	fatal(err)
	lines := strings.Split(strings.TrimSpace(csv.String()), "\n")
	fmt.Println(n, "change in", len(lines), "lines, header included")
	// Output: 1 change in 2 lines, header included
}

// What is wrong with a configuration is said all at once.
func ExampleConfigError() {
	_, err := audit.Open(context.Background(), audit.Config{Tables: []string{"a.b.c"}, Slot: "My-Slot"})
	var first *audit.ConfigError
	fmt.Println(errors.As(err, &first), first.Field)
	fmt.Println(err)
	// Output:
	// true SourceURL
	// audit: Config.SourceURL: is empty: give a connection string such as postgres://user@host:5432/database
	// audit: Config.Slot: "My-Slot": the name of a slot has only lower-case letters, digits and underscores
	// audit: Config.Tables: table pattern "a.b.c": it has more than two parts; quote a name that holds a dot; write schema.table, for instance public.*, billing.invoices, !public.sessions
}
