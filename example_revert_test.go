package audit_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"

	"github.com/jackc/pgx/v5"

	"github.com/hindsight-go/audit"
	"github.com/hindsight-go/audit/audittest"
)

// A request has completed every todo by mistake. One of them was reopened by hand
// since, which is not to be lost.
func ExampleRevertRequest() {
	ctx := context.Background()
	database, err := audittest.StartDatabase(ctx) // or a database of yours
	fatal(err)
	defer database.Close()
	db, err := pgx.Connect(ctx, database.URL())
	fatal(err)
	defer db.Close(ctx)
	_, err = db.Exec(ctx, `
		CREATE TABLE todo (id bigint PRIMARY KEY, task text, state text);
		INSERT INTO todo VALUES (26, 'Sleep', 'open'), (27, 'Eat', 'open'), (28, 'Code', 'done')`)
	fatal(err)
	client, err := audit.Open(ctx, audit.Config{SourceURL: database.URL(), Logger: slog.New(slog.DiscardHandler)})
	fatal(err)
	defer client.Close()
	fatal(client.Start(ctx))

	work := func(user, request, sql string) {
		ctx := audit.WithContext(ctx, audit.Context{UserID: user, RequestID: request})
		fatal(pgx.BeginFunc(ctx, db, func(tx pgx.Tx) error {
			if err := audit.Stamp(ctx, tx); err != nil {
				return err
			}
			_, err := tx.Exec(ctx, sql)
			return err
		}))
	}
	work("187234", "req-1", "UPDATE todo SET state = 'done' WHERE state <> 'done'")
	work("42", "req-2", "UPDATE todo SET state = 'later' WHERE id = 27")

	revert := client.RevertRequest("req-1")
	_, err = revert.Apply(ctx)
	var conflict *audit.ConflictError
	if errors.As(err, &conflict) {
		c := conflict.Conflicts[0]
		fmt.Printf("%s %s: would restore %s, is %s since %s by %s\n", c.RowRef, c.Column, *c.Restore, *c.Live, c.Change.Context.RequestID, c.Change.Context.User())
	}

	result, err := revert.OnConflict(audit.Skip).Reason("completed by mistake").Apply(ctx)
	fatal(err)
	fmt.Println(result.Updated, "reverted,", result.Skipped, "skipped")
	show := func() {
		var states []string
		fatal(db.QueryRow(ctx, "SELECT array_agg(task || ' ' || state ORDER BY id) FROM todo").Scan(&states))
		fmt.Println(states)
	}
	show()

	_, err = client.Redo(result.ID).Apply(ctx)
	fatal(err)
	show()
	fatal(client.Stop(ctx))
	// Output:
	// public.todo[27] state: would restore open, is later since req-2 by 42
	// 1 reverted, 1 skipped
	// [Sleep open Eat later Code done]
	// [Sleep done Eat later Code done]
}
