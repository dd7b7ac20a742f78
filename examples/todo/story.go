package main

import (
	"context"
	"fmt"
	"io"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/hindsight-go/audit"
)

// tellStory asks the history what people ask of it.
func tellStory(ctx context.Context, out io.Writer, db *pgxpool.Pool, address string) error {
	for _, chapter := range []func(context.Context, io.Writer) error{whereIsMyTodo, whatDidTheyDo, whatChanged, whoIsBusy} {
		if err := chapter(ctx, out); err != nil {
			return err
		}
	}
	if err := whatWasThatRequest(ctx, out, address); err != nil {
		return err
	}
	// At night, somebody mends a row in psql: no program, no context.
	if _, err := db.Exec(ctx, "UPDATE todo SET task = 'Write less code' WHERE id = 29"); err != nil {
		return fmt.Errorf("mend row: %w", err)
	}
	if err := audit.Sync(ctx); err != nil {
		return err
	}
	for _, chapter := range []func(context.Context, io.Writer) error{whoWasThat, howWasIt} {
		if err := chapter(ctx, out); err != nil {
			return err
		}
	}
	if err := undoIt(ctx, out, db); err != nil {
		return err
	}
	return whoIsInTheWay(ctx, out)
}

// whereIsMyTodo prints the history of one row.
func whereIsMyTodo(ctx context.Context, out io.Writer) error {
	fmt.Fprintln(out, "\nUser 187234 misses todo 27. Its history:")
	for change, err := range audit.Changes().ForTable("todo").ForRow(27).OldestFirst().All(ctx) {
		if err != nil {
			return err
		}
		task, _ := change.Row().Text("task")
		fmt.Fprintf(out, "  %-6s %q by user %s at %s, in request %s\n",
			change.Operation, task, change.Context.User(), change.Context.Endpoint, change.Context.RequestID)
	}
	return nil
}

// whatDidTheyDo prints what one user changed, transaction by transaction.
func whatDidTheyDo(ctx context.Context, out io.Writer) error {
	fmt.Fprintln(out, "\nWhat else has user 42 done?")
	for tx, err := range audit.Changes().ByUser(42).Transactions(ctx) {
		if err != nil {
			return err
		}
		fmt.Fprintf(out, "  transaction %d: %d change(s) to %v at %s\n", tx.ID, tx.Total(), tx.Tables, tx.Context.Endpoint)
	}
	return nil
}

// whatChanged takes one change apart, and reads the row into a struct.
func whatChanged(ctx context.Context, out io.Writer) error {
	change, err := audit.Changes().ForTable("todo").ChangedTo("is_completed", true).First(ctx)
	if err != nil {
		return err
	}
	var done todo
	if err := change.DecodeAfter(&done); err != nil {
		return err
	}
	fmt.Fprintf(out, "\nThe last todo to be completed was %d, %q:\n", done.ID, done.Task)
	for _, column := range change.Diff() {
		fmt.Fprintf(out, "  %s\n", column)
	}
	return nil
}

// whoIsBusy counts.
func whoIsBusy(ctx context.Context, out io.Writer) error {
	fmt.Fprintln(out, "\nChanges by endpoint:")
	groups, err := audit.Changes().InEnvironment("example").CountBy(ctx, audit.PerEndpoint)
	if err != nil {
		return err
	}
	for _, group := range groups {
		fmt.Fprintf(out, "  %-24s %d\n", group.Value, group.Changes)
	}
	return nil
}

// whatWasThatRequest makes a request without an id, and looks it up by the one
// that the answer carries.
func whatWasThatRequest(ctx context.Context, out io.Writer, address string) error {
	split := visit{owner, "", "POST", "/todo/28/split", `[{"task": "Write code"}, {"task": "Test code"}]`}
	requestID, err := split.pay(ctx, address)
	if err != nil {
		return err
	}
	if err := audit.Sync(ctx); err != nil {
		return err
	}
	fmt.Fprintln(out, "\nThe answer to a request carried an X-Request-Id. What did that request do?")
	for change, err := range audit.Changes().InRequest(requestID).OldestFirst().All(ctx) {
		if err != nil {
			return err
		}
		task, _ := change.Row().Text("task")
		fmt.Fprintf(out, "  %-6s %s[%s] %q at %s\n",
			change.Operation, change.TableName(), change.PrimaryKey, task, change.Context.Endpoint)
	}
	return nil
}

// whoWasThat finds what no program has put its name to.
func whoWasThat(ctx context.Context, out io.Writer) error {
	fmt.Fprintln(out, "\nChanges that came without context, as auditors ask for:")
	changes, err := audit.Changes().WithoutContext().List(ctx)
	if err != nil {
		return err
	}
	for _, change := range changes {
		fmt.Fprintf(out, "  %s %s[%s] %v\n", change.Operation, change.TableName(), change.PrimaryKey, change.Diff())
	}
	return nil
}
