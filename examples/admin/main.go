// Command admin lists what a user did lately, shows what undoing one of these
// requests would do and who is in the way, asks, undoes it, and redoes it if it
// was a mistake.
//
//	go run ./examples/admin                                 # a throwaway database
//	go run ./examples/admin -url postgres://... -user 187234  # yours, while your program captures
//
// Without -url it needs nothing but Go and PostgreSQL's server binaries or a
// container engine, as examples/todo does.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"

	"github.com/jackc/pgx/v5"

	"github.com/hindsight-go/audit"
	"github.com/hindsight-go/audit/audittest"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	url := flag.String("url", "", "the source database; none: a throwaway one with a story in it")
	user := flag.String("user", clumsy, "whose requests to list")
	admin := flag.String("admin", "admin", "who you are")
	flag.Parse()
	if err := run(ctx, *url, *user, *admin, os.Stdin, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "admin:", err)
		stop()
		os.Exit(1)
	}
}

// run is the program.
func run(ctx context.Context, url, user, admin string, in io.Reader, out io.Writer) (err error) {
	demo := url == ""
	if demo {
		database, failed := audittest.StartDatabase(ctx)
		if failed != nil {
			return failed
		}
		defer func() { err = errors.Join(err, database.Close()) }()
		url = database.URL()
	}
	history, err := audit.Open(ctx, audit.Config{SourceURL: url, Tables: []string{"public.*"}, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		return err
	}
	defer history.Close()
	if demo {
		if err := tellStory(ctx, url, history); err != nil {
			return err
		}
	}
	// Whoever undoes something is in history like everybody else.
	ctx = audit.WithContext(ctx, audit.Context{UserID: admin, Worker: "admin"})
	return newSession(history, in, out).run(ctx, user)
}

// The people of the story.
const (
	clumsy  = "187234" // archives the wrong customer
	careful = "42"     // goes on working
)

// tellStory sets up what there is to undo: a request that archived a customer with
// all orders, and somebody who worked on one of them later.
func tellStory(ctx context.Context, url string, history *audit.Client) error {
	db, err := pgx.Connect(ctx, url)
	if err != nil {
		return fmt.Errorf("connect: %w", err)
	}
	defer func() { _ = db.Close(ctx) }()
	if _, err := db.Exec(ctx, `
		CREATE TABLE customer (id int PRIMARY KEY, name text, state text);
		CREATE TABLE orders (id int PRIMARY KEY, customer int REFERENCES customer, state text);
		INSERT INTO customer VALUES (1, 'Ann', 'active'), (2, 'Bob', 'active');
		INSERT INTO orders VALUES (10, 1, 'paid'), (11, 2, 'paid'), (12, 2, 'open'), (13, 2, 'cart')`); err != nil {
		return fmt.Errorf("create tables: %w", err)
	}
	if err := history.Start(ctx); err != nil {
		return err
	}
	for _, w := range []struct{ user, request, endpoint, sql string }{
		{clumsy, "req-1", "PATCH /customer/1", "UPDATE customer SET name = 'Anne' WHERE id = 1"},
		{clumsy, "req-2", "POST /customer/2/archive", "UPDATE customer SET state = 'archived' WHERE id = 2"},
		{clumsy, "req-2", "POST /customer/2/archive", "UPDATE orders SET state = 'closed' WHERE customer = 2 AND state <> 'cart'"},
		{clumsy, "req-2", "POST /customer/2/archive", "DELETE FROM orders WHERE id = 13"},
		{careful, "req-3", "POST /order/11/refund", "UPDATE orders SET state = 'refunded' WHERE id = 11"},
	} {
		ctx := audit.WithContext(ctx, audit.Context{UserID: w.user, RequestID: w.request, Endpoint: w.endpoint})
		err := pgx.BeginFunc(ctx, db, func(tx pgx.Tx) error {
			if err := audit.Stamp(ctx, tx); err != nil {
				return err
			}
			_, err := tx.Exec(ctx, w.sql)
			return err
		})
		if err != nil {
			return fmt.Errorf("%s: %w", w.request, err)
		}
	}
	return history.Sync(ctx)
}
