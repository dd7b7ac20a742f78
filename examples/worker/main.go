// Command worker is a background job with a history. A request puts jobs into a
// queue; a worker does them later, some only at the second attempt. What the
// worker writes says which worker it was, which attempt, and on behalf of which
// request and user.
//
//	go run ./examples/worker
//
// It needs nothing but Go and PostgreSQL's server binaries: the database is a throwaway one that is gone when the program ends.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/hindsight-go/audit"
	"github.com/hindsight-go/audit/auditpgx"
	"github.com/hindsight-go/audit/audittest"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "worker:", err)
		stop()
		os.Exit(1)
	}
}

// run is the program: a request, the worker, and what the history says of them.
func run(ctx context.Context, out io.Writer) (err error) {
	database, err := audittest.StartDatabase(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, database.Close()) }()

	pool, err := pgxpool.New(ctx, database.URL())
	if err != nil {
		return fmt.Errorf("connect: %w", err)
	}
	defer pool.Close()
	if _, err := pool.Exec(ctx, schema); err != nil {
		return fmt.Errorf("create tables: %w", err)
	}
	history, err := audit.Open(ctx, audit.Config{
		SourceURL: database.URL(),
		Logger:    slog.New(slog.DiscardHandler), // for a clean picture
	})
	if err != nil {
		return err
	}
	defer history.Close()
	if err := history.Start(ctx); err != nil {
		return err
	}

	// In a web server, audithttp makes this context of the request.
	db := auditpgx.Wrap(pool)
	request := audit.WithContext(ctx, audit.Context{UserID: 187234, RequestID: "req-7", Endpoint: "POST /bills"})
	for _, customer := range []string{"acme", "globex", "initech"} {
		if err := enqueue(request, db, job{Customer: customer, Cents: 4200}); err != nil {
			return err
		}
	}
	billing := &worker{name: "billing", db: db, charge: new(provider).charge}
	if err := billing.work(ctx); err != nil {
		return err
	}

	if err := history.Sync(ctx); err != nil {
		return err
	}
	fmt.Fprintln(out, "All that request req-7 has set off:")
	if err := printChanges(ctx, out, history.Changes().InRequest("req-7")); err != nil {
		return err
	}
	fmt.Fprintln(out, "\nWhat did the worker do at a second attempt?")
	second := map[string]any{"attempt": 2}
	if err := printChanges(ctx, out, history.Changes().ByWorker("billing").WhereContext(second)); err != nil {
		return err
	}
	return history.Stop(ctx)
}

func printChanges(ctx context.Context, out io.Writer, changes audit.Query) error {
	for change, err := range changes.OldestFirst().All(ctx) {
		if err != nil {
			return err
		}
		row := change.Row()
		customer, _ := row.Text("customer")
		state, _ := row.Text("state")
		if failure, ok := row.Text("failure"); ok {
			state += ": " + failure
		}
		who := fmt.Sprintf("by %s at %s", change.Context.User(), change.Context.Endpoint)
		if change.Context.Worker != "" {
			who += fmt.Sprintf(", worker %s, attempt %v", change.Context.Worker, change.Context.Extra["attempt"])
		}
		fmt.Fprintf(out, "  %-6s %-10s %-7s %-27s %s\n", change.Operation, change.Table+"["+change.PrimaryKey+"]", customer, state, who)
	}
	return nil
}
