package audit_test

import (
	"context"
	"fmt"

	"github.com/jackc/pgx/v5"

	"github.com/hindsight-go/audit"
)

// A table, as of a time.
func ExampleClient_AsOf() {
	client, err := todoHistory()
	fatal(err)
	ctx := context.Background()
	made, err := client.Changes().ForTable("todo").ForRow(28).OldestFirst().First(ctx)
	fatal(err)

	type todo struct {
		ID   int64  `db:"id"`
		Task string `db:"task"`
		Done bool   `db:"done"`
	}
	var todos []todo
	err = client.AsOf(made.CommittedAt).Table("todo").OrderBy("id").List(ctx, &todos)
	fatal(err)
	fmt.Println(todos)
	// Output: [{26 Sleep false} {27 Eat false} {28 Code false}]
}

// A row that is gone, as it was before the request that deleted it.
func ExamplePoint_Load() {
	client, err := todoHistory()
	fatal(err)

	type todo struct { // of the table todo
		ID   int64  `db:"id"`
		Task string `db:"task"`
		Done bool   `db:"done"`
	}
	var lost todo
	err = client.BeforeRequest("req-4").Load(context.Background(), &lost, 27)
	fatal(err)
	fmt.Println(lost.Task)
	// Output: Eat
}

// Any query over the whole database, as of a moment, through the code that asks it today.
func ExamplePoint_View() {
	client, err := todoHistory()
	fatal(err)

	var open int
	err = client.BeforeRequest("req-3").View(context.Background(), func(tx pgx.Tx) error {
		return tx.QueryRow(context.Background(), "SELECT count(*) FROM todo WHERE NOT done").Scan(&open)
	})
	fatal(err)
	fmt.Println(open, "todos were open")
	// Output: 3 todos were open
}

// The versions of a row.
func ExampleClient_History() {
	client, err := todoHistory()
	fatal(err)
	for version, err := range client.History("todo", 27).All(context.Background()) {
		fatal(err)
		if !version.Exists() {
			fmt.Println("deleted by", version.Change.Context.User())
			continue
		}
		task, _ := version.Row.Text("task")
		fmt.Println(task, "by", version.Change.Context.User())
	}
	// Output:
	// Eat by 187234
	// deleted by 42
}

// Who gave each column of a row the value that it has.
func ExampleClient_Blame() {
	client, err := todoHistory()
	fatal(err)
	columns, err := client.Blame(context.Background(), "todo", 26)
	fatal(err)
	for _, column := range columns {
		fmt.Printf("%s = %s since %s\n", column.Column, column.Value, column.Change.Context.RequestID)
	}
	// Output:
	// id = 26 since req-1
	// task = "Sleep" since req-1
	// done = true since req-3
}

// What differs between two moments, whatever happened in between.
func ExampleClient_DiffBetween() {
	client, err := todoHistory()
	fatal(err)
	difference := client.DiffBetween(client.AfterRequest("req-2"), client.Now())
	for row, err := range difference.Tables("todo").All(context.Background()) {
		fatal(err)
		if row.Operation == audit.Update {
			fmt.Println(row.PrimaryKey, row.Diff())
			continue
		}
		fmt.Println(row.PrimaryKey, row.Operation, row.Before)
	}
	// Unordered output:
	// 26 [done: false -> true]
	// 27 DELETE {"id": 27, "done": false, "task": "Eat"}
	// 28 [task: "Code" -> "Code less"]
}

// A moment that is given a name, before something that may go wrong.
func ExampleClient_Mark() {
	ctx := context.Background()
	client, db, err := newTodoHistory(ctx)
	fatal(err)
	defer client.Close()

	_, err = client.Mark(ctx, "before the import")
	fatal(err)
	_, err = db.Exec(ctx, "DELETE FROM todo")
	fatal(err)

	n, err := client.AtMark("before the import").Table("todo").Count(ctx)
	fatal(err)
	fmt.Println(n, "todos were there")
	// Output: 2 todos were there
}

// What undoing a request would do, and who is in the way. Nothing is written.
func ExampleReversal_Plan() {
	client, err := todoHistory()
	fatal(err)
	ctx := context.Background()

	plan, err := client.RevertRequest("req-4").Plan(ctx)
	fatal(err)
	fmt.Print(plan)

	plan, err = client.RevertRequest("req-2").Plan(ctx)
	fatal(err)
	for _, conflict := range plan.Conflicts {
		fmt.Println("in the way:", conflict.RowRef, conflict.Kind)
	}
	// Output:
	// revert request req-4: 1 changes: 1 rows to insert, 0 to update, 0 to delete, 0 already reverted, 0 skipped
	//   + public.todo[27] id: "27", task: "Eat", done: "f"
	// in the way: public.todo[28] column changed
}

// Undo a request, in one transaction, and take that back.
func ExampleReversal_Apply() {
	ctx := context.Background()
	client, db, err := newTodoHistory(ctx)
	fatal(err)
	defer client.Close()
	count := func() (n int) {
		fatal(db.QueryRow(ctx, "SELECT count(*) FROM todo").Scan(&n))
		return n
	}

	// Who does it, and why, is in the history as well.
	ctx = audit.WithContext(ctx, audit.Context{UserID: "support"})
	result, err := client.RevertRequest("req-4").Reason("deleted by mistake").Apply(ctx)
	fatal(err)
	fmt.Println(result.Inserted, "row put back,", count(), "todos")

	_, err = client.Redo(result.ID).Apply(ctx)
	fatal(err)
	fmt.Println("redone,", count(), "todos")
	// Output:
	// 1 row put back, 3 todos
	// redone, 2 todos
}
