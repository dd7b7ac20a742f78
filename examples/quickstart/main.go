// Command quickstart is the program of the README: it makes a table, writes to
// it in somebody's name, and asks the history what was done.
//
//	DATABASE_URL=postgres://... go run ./examples/quickstart
package main

import (
	"context"
	"fmt"
	"log"
	"os"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/hindsight-go/audit"
	"github.com/hindsight-go/audit/auditpgx"
)

func main() {
	if err := run(context.Background(), os.Getenv("DATABASE_URL")); err != nil {
		log.Fatal(err)
	}
}

func run(ctx context.Context, url string) error {
	pool, err := pgxpool.New(ctx, url)
	if err != nil {
		return err
	}
	defer pool.Close()
	if _, err := pool.Exec(ctx, "CREATE TABLE IF NOT EXISTS todo (id bigint PRIMARY KEY, task text)"); err != nil {
		return err
	}

	// Open checks the configuration; Start checks the database, sets up what is
	// missing there, and then captures in the background.
	client, err := audit.Open(ctx, audit.Config{SourceURL: url, Tables: []string{"public.*"}})
	if err != nil {
		return err
	}
	defer client.Close()
	if err := client.Start(ctx); err != nil {
		return err
	}

	// Write as ever, through the wrapped pool, and say in ctx on whose behalf.
	db := auditpgx.Wrap(pool)
	ctx = audit.WithContext(ctx, audit.Context{UserID: 187234, RequestID: "req-1", Endpoint: "POST /todo"})
	_, err = db.Exec(ctx, "INSERT INTO todo VALUES (26, 'Sleep') ON CONFLICT (id) DO UPDATE SET task = 'Sleep more'")
	if err != nil {
		return err
	}

	// Changes are there within milliseconds; Sync waits until those committed so
	// far are.
	if err := client.Sync(ctx); err != nil {
		return err
	}
	for change, err := range client.Changes().ForTable("todo").ByUser(187234).All(ctx) {
		if err != nil {
			return err
		}
		fmt.Println(change)
	}
	return client.Stop(ctx)
}
