// Command ui is a small shop whose history is shown in a browser: two employees work, a
// few of their clicks go wrong, and whoever is logged in as support sees what happened and
// undoes it.
//
//	go run ./examples/ui
//
// It needs nothing but Go and PostgreSQL's server binaries: the
// database is a throwaway one that is gone when the program ends. It prints the address to
// open; -listen changes it, and -quiet leaves out the traffic in the background.
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
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	listen := flag.String("listen", "127.0.0.1:8080", "the address to serve on")
	quiet := flag.Bool("quiet", false, "nobody works in the background")
	flag.Parse()
	if err := run(ctx, *listen, *quiet, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "ui:", err)
		stop()
		os.Exit(1)
	}
}

// run is the program, until ctx ends.
func run(ctx context.Context, listen string, quiet bool, out io.Writer) (err error) {
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
	client, err := audit.Open(ctx, audit.Config{SourceURL: database.URL(), Environment: "example", Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		return err
	}
	defer client.Close()
	if err := client.Start(ctx); err != nil {
		return err
	}
	handler, err := routes(auditpgx.Wrap(pool), client)
	if err != nil {
		return err
	}
	listener, err := new(net.ListenConfig).Listen(ctx, "tcp", listen)
	if err != nil {
		return fmt.Errorf("listen: %w", err)
	}
	server := &http.Server{Handler: handler, ReadHeaderTimeout: 5 * time.Second}
	defer func() { _ = server.Close() }()
	failed := make(chan error, 1)
	go func() { failed <- server.Serve(listener) }()

	staff := &visitor{address: "http://" + listener.Addr().String()}
	if err := tellStory(ctx, staff, client); err != nil {
		return err
	}
	fmt.Fprintf(out, "The shop's history is at %s/ - log in as support.\n", staff.address)
	if !quiet {
		go work(ctx, staff)
	}
	select {
	case err := <-failed:
		return err
	case <-ctx.Done():
		return client.Stop(context.WithoutCancel(ctx))
	}
}

// routes are the shop, the login, and the history behind it.
func routes(db auditpgx.Querier, client *audit.Client) (http.Handler, error) {
	logins := newLogins()
	ui, err := auditui.New(client, auditui.Config{
		Access: logins.access,
		Mask:   func(table, column string) bool { return table == "public.customer" && column == "phone" },
		Names: func(_ context.Context, users []string) map[string]string {
			names := make(map[string]string)
			for _, id := range users {
				names[id] = people[id]
			}
			return names
		},
	})
	if err != nil {
		return nil, err
	}
	mux := http.NewServeMux()
	(&shop{db}).register(mux)
	logins.register(mux)
	mux.Handle("/history/", http.StripPrefix("/history", ui))
	return audithttp.Config{User: logins.user}.Middleware(mux), nil
}
