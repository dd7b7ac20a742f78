// Command todo is a small todo service with a history. It serves HTTP from
// PostgreSQL through pgx, is used by a scripted client of its own, and then asks
// the history who did what and how it was before, undoes a request, and takes
// that back. The pool is wrapped by auditpgx and the handlers by audithttp; that
// is all the code that says who.
//
//	go run ./examples/todo
//	go run ./examples/todo -ui    # and then look at it in the browser
//
// It needs nothing but Go and PostgreSQL's server binaries: the database is a throwaway one that is gone when the program ends.
// To have it made on a server of yours, name that in AUDIT_TEST_DATABASE_URL.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/signal"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/hindsight-go/audit"
	"github.com/hindsight-go/audit/audithttp"
	"github.com/hindsight-go/audit/auditpgx"
	"github.com/hindsight-go/audit/audittest"
	"github.com/hindsight-go/audit/auditui"
)

func main() {
	inBrowser := flag.Bool("ui", false, "serve the story to the browser until Ctrl-C")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx, os.Stdout, *inBrowser); err != nil {
		fmt.Fprintln(os.Stderr, "todo:", err)
		stop()
		os.Exit(1)
	}
}

// run is the program: a database, the history of it, the service, and two people
// who use it.
func run(ctx context.Context, out io.Writer, inBrowser bool) (err error) {
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
		SourceURL:   database.URL(),
		Tables:      []string{"public.*"},
		Environment: "example",
		Logger:      slog.New(slog.DiscardHandler), // for a clean picture
	})
	if err != nil {
		return err
	}
	defer history.Close()
	if err := history.Start(ctx); err != nil {
		return err
	}
	audit.SetDefault(history)

	// What the service writes through db is stamped with what the middleware
	// knows of the request.
	db := auditpgx.Wrap(pool)
	handler := audithttp.Config{
		User:           userOf,
		TrustRequestID: func(*http.Request) bool { return true }, // all clients are our own
	}.Middleware((&service{db: db}).routes())

	address, stop, err := serve(ctx, handler)
	if err != nil {
		return err
	}
	defer stop()
	for _, v := range aDay {
		if _, err := v.pay(ctx, address); err != nil {
			return err
		}
	}

	// Everything committed so far is in the history when Sync returns.
	if err := history.Sync(ctx); err != nil {
		return err
	}
	if err := printTable(ctx, out, pool, changesSQL); err != nil {
		return err
	}
	if err := tellStory(ctx, out, pool, address); err != nil {
		return err
	}
	if !inBrowser {
		fmt.Fprintln(out, "\nTo see all this in the browser: go run ./examples/todo -ui")
		return history.Stop(ctx)
	}
	return show(ctx, out, history)
}

// show serves the history to the browser until ctx ends.
func show(ctx context.Context, out io.Writer, history *audit.Client) error {
	ui, err := auditui.New(history, auditui.Config{
		// Whoever can reach this program may do anything: it is a database of its own, and
		// listens on this machine only.
		Access: func(*http.Request) (auditui.Access, error) {
			return auditui.Access{User: "you", Values: true, Export: true, Revert: true}, nil
		},
	})
	if err != nil {
		return err
	}
	address, stop, err := serve(ctx, ui)
	if err != nil {
		return err
	}
	defer stop()
	fmt.Fprintf(out, "\nAll this is at %s/ until Ctrl-C.\n", address)
	<-ctx.Done()
	return history.Stop(context.WithoutCancel(ctx))
}

// serve runs a handler on a free port until stop is called.
func serve(ctx context.Context, handler http.Handler) (address string, stop func(), err error) {
	var config net.ListenConfig
	listener, err := config.Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return "", nil, fmt.Errorf("listen: %w", err)
	}
	server := &http.Server{Handler: handler, ReadHeaderTimeout: 5 * time.Second}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_ = server.Serve(listener) // http.ErrServerClosed, once stop was called
	}()
	return "http://" + listener.Addr().String(), func() {
		_ = server.Close()
		<-ended
	}, nil
}
