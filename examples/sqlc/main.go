// Command sqlc shows generated code with a history: the package shop is what sqlc
// makes of schema.sql and query.sql, and nobody has touched it. It is given an
// auditpgx.DB instead of a pool, and all that it writes is stamped: statements,
// batches, copies, transactions.
//
//	go run ./examples/sqlc
//
// It needs nothing but Go and PostgreSQL's server binaries: the database is a throwaway one that is gone when the program ends.
package main

import (
	"context"
	_ "embed"
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

//go:generate go run github.com/sqlc-dev/sqlc/cmd/sqlc@v1.31.1 generate

//go:embed schema.sql
var schema string

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "sqlc:", err)
		stop()
		os.Exit(1)
	}
}

// run is the program: a shop, a day in it, and what the history says of it.
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

	if err := aDayInTheShop(ctx, out, auditpgx.Wrap(pool)); err != nil {
		return err
	}

	// Everything committed so far is in the history when Sync returns.
	if err := history.Sync(ctx); err != nil {
		return err
	}
	if err := printHistory(ctx, out, history); err != nil {
		return err
	}
	return history.Stop(ctx)
}

// printHistory prints who did what, transaction by transaction.
func printHistory(ctx context.Context, out io.Writer, history *audit.Client) error {
	var last uint64
	for change, err := range history.Changes().OldestFirst().All(ctx) {
		if err != nil {
			return err
		}
		if change.TransactionID != last {
			last = change.TransactionID
			printWho(out, change.Context)
		}
		if change.Operation == audit.Update {
			fmt.Fprintf(out, "  UPDATE %s %s: %v\n", change.Table, change.PrimaryKey, change.Diff())
			continue
		}
		fmt.Fprintf(out, "  %s %s %s\n", change.Operation, change.Table, change.Row())
	}
	return nil
}

func printWho(out io.Writer, who audit.Context) {
	if who.Worker != "" {
		fmt.Fprintf(out, "\nworker %s:\n", who.Worker)
		return
	}
	fmt.Fprintf(out, "\n%s by %s:\n", who.Endpoint, who.User())
}
