package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/hindsight-go/audit"
)

// howWasIt asks for the past: of one row, and of the whole table.
func howWasIt(ctx context.Context, out io.Writer) error {
	deletion, err := audit.Changes().ForTable("todo").ForRow(27).First(ctx)
	if err != nil {
		return err
	}
	var lost todo
	if err := audit.BeforeRequest(deletion.Context.RequestID).Load(ctx, &lost, 27); err != nil {
		return err
	}
	fmt.Fprintf(out, "\nHow was todo 27, before user %s deleted it?\n  %q, completed: %t\n", deletion.Context.User(), lost.Task, lost.IsCompleted)

	code, err := audit.Changes().InRequest("req-3").First(ctx)
	if err != nil {
		return err
	}
	var todos []todo
	if err := audit.AsOf(code.CommittedAt).Table("todo").OrderBy("id").List(ctx, &todos); err != nil {
		return err
	}
	fmt.Fprintf(out, "And the whole list, as of the moment when todo 28 had been made?\n")
	for _, t := range todos {
		fmt.Fprintf(out, "  %d %q, completed: %t\n", t.ID, t.Task, t.IsCompleted)
	}
	return nil
}

// undoIt takes a whole request back, and then takes that back.
func undoIt(ctx context.Context, out io.Writer, db *pgxpool.Pool) error {
	// An undo is a change like any other: it has a context, and is in the history.
	ctx = audit.WithContext(ctx, audit.Context{UserID: support})
	plan, err := audit.RevertRequest("req-5").Reason("deleted by mistake").Plan(ctx)
	if err != nil {
		return err
	}
	fmt.Fprintf(out, "\nUndo it. The plan, which writes nothing:\n%s", indent(plan))
	result, err := plan.Apply(ctx)
	if err != nil {
		return err
	}
	if err := printTodos(ctx, out, db, "Done. The todos are now"); err != nil {
		return err
	}
	if _, err := audit.Redo(result.ID).Apply(ctx); err != nil {
		return err
	}
	return printTodos(ctx, out, db, "And after a redo, which undoes the undo,")
}

// whoIsInTheWay undoes a request on whose rows somebody has worked since.
func whoIsInTheWay(ctx context.Context, out io.Writer) error {
	split, err := audit.Changes().ForTable("todo").ForRow(30).First(ctx)
	if err != nil {
		return err
	}
	_, err = audit.RevertRequest(split.Context.RequestID).Apply(ctx)
	var conflict *audit.ConflictError
	if !errors.As(err, &conflict) {
		return fmt.Errorf("the split was undone over the mend of todo 29: %w", err)
	}
	fmt.Fprintln(out, "\nUndo the split as well? Somebody has worked on its rows since, so nothing is written:")
	for _, c := range conflict.Conflicts {
		fmt.Fprintf(out, "  %s\n", c)
	}
	return nil
}

// printTodos prints what is in the table now.
func printTodos(ctx context.Context, out io.Writer, db *pgxpool.Pool, title string) error {
	rows, err := db.Query(ctx, "SELECT * FROM todo ORDER BY id")
	if err != nil {
		return fmt.Errorf("read todos: %w", err)
	}
	todos, err := pgx.CollectRows(rows, pgx.RowToStructByName[todo])
	if err != nil {
		return fmt.Errorf("read todos: %w", err)
	}
	var names []string
	for _, t := range todos {
		names = append(names, fmt.Sprintf("%d %q", t.ID, t.Task))
	}
	fmt.Fprintf(out, "%s %s.\n", title, strings.Join(names, ", "))
	return nil
}

// indent sets a text off by two spaces.
func indent(text fmt.Stringer) string {
	return "  " + strings.ReplaceAll(strings.TrimSpace(text.String()), "\n", "\n  ") + "\n"
}
