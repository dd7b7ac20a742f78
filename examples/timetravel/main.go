// Command timetravel is a shop that looks at its own past: a price list goes
// wrong under one request, and the rows, the tables and the queries of the time
// before are still there.
//
//	go run ./examples/timetravel
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
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/hindsight-go/audit"
	"github.com/hindsight-go/audit/audittest"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "timetravel:", err)
		stop()
		os.Exit(1)
	}
}

const schema = `
	CREATE TABLE products (id int PRIMARY KEY, name text NOT NULL, price numeric(8,2) NOT NULL);
	CREATE TABLE stock (product_id int PRIMARY KEY REFERENCES products ON DELETE CASCADE, pieces int NOT NULL);
	INSERT INTO products VALUES (1, 'Kettle', 30), (2, 'Teapot', 45), (3, 'Cup', 8);
	INSERT INTO stock VALUES (1, 10), (2, 4), (3, 100)`

type product struct {
	ID    int     `db:"id"`
	Name  string  `db:"name"`
	Price float64 `db:"price"`
}

func run(ctx context.Context, out io.Writer) (err error) {
	database, err := audittest.StartDatabase(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, database.Close()) }()
	db, err := pgx.Connect(ctx, database.URL())
	if err != nil {
		return err
	}
	defer func() { _ = db.Close(ctx) }()
	if _, err := db.Exec(ctx, schema); err != nil {
		return err
	}
	client, err := audit.Open(ctx, audit.Config{SourceURL: database.URL(), Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		return err
	}
	defer client.Close()
	if err := client.Start(ctx); err != nil {
		return err
	}
	audit.SetDefault(client)

	if _, err := audit.Mark(ctx, "opening"); err != nil {
		return err
	}
	if err := request(ctx, db, "req-1", "anna", "UPDATE products SET price = 32 WHERE id = 1"); err != nil {
		return err
	}
	var noon time.Time // by the database's clock, which is the one that counts
	if err := db.QueryRow(ctx, "SELECT clock_timestamp()").Scan(&noon); err != nil {
		return err
	}
	if err := request(ctx, db, "req-2", "bob", "UPDATE products SET price = price * 100; DELETE FROM products WHERE id = 2"); err != nil {
		return err
	}
	for _, chapter := range []func() error{
		func() error { return theRow(ctx, out, noon) },
		func() error { return theTable(ctx, out) },
		func() error { return theQuery(ctx, out) },
		func() error { return theStory(ctx, out) },
	} {
		if err := chapter(); err != nil {
			return err
		}
	}
	return client.Stop(ctx)
}

// request is what a handler does: one transaction, which says who and why.
func request(ctx context.Context, db *pgx.Conn, id, user, sql string) error {
	ctx = audit.WithContext(ctx, audit.Context{UserID: user, RequestID: id})
	return pgx.BeginFunc(ctx, db, func(tx pgx.Tx) error {
		if err := audit.Stamp(ctx, tx); err != nil {
			return err
		}
		_, err := tx.Exec(ctx, sql, pgx.QueryExecModeSimpleProtocol)
		return err
	})
}

// theRow loads a row that is gone, as it was at noon, and sees that it is gone.
func theRow(ctx context.Context, out io.Writer, noon time.Time) error {
	var teapot product
	if err := audit.AsOf(noon).Load(ctx, &teapot, 2); err != nil {
		return err
	}
	fmt.Fprintf(out, "At noon there was a %s for %.2f.\n", teapot.Name, teapot.Price)
	if err := audit.Now().Load(ctx, &teapot, 2); !errors.Is(err, audit.ErrNoRow) {
		return fmt.Errorf("the teapot is still there: %w", err)
	}
	fmt.Fprintln(out, "Now there is none.")
	return nil
}

// theTable lists the prices before the request that spoiled them.
func theTable(ctx context.Context, out io.Writer) error {
	var products []product
	if err := audit.BeforeRequest("req-2").Table("products").OrderBy("id").List(ctx, &products); err != nil {
		return err
	}
	fmt.Fprintln(out, "\nBefore request req-2:")
	for _, p := range products {
		fmt.Fprintf(out, "  %d %-6s %6.2f\n", p.ID, p.Name, p.Price)
	}
	return nil
}

// theQuery asks what the stock was worth, at two moments, by the same query.
func theQuery(ctx context.Context, out io.Writer) error {
	fmt.Fprintln(out, "\nThe stock was worth:")
	for _, moment := range []audit.Point{audit.AtMark("opening"), audit.Now()} {
		err := moment.View(ctx, func(tx pgx.Tx) error {
			var worth string
			err := tx.QueryRow(ctx, "SELECT sum(price * pieces) FROM products JOIN stock ON product_id = id").Scan(&worth)
			fmt.Fprintf(out, "  %-17s %s\n", moment, worth)
			return err
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// theStory tells how a row came to be what it is, and who set which column.
func theStory(ctx context.Context, out io.Writer) error {
	fmt.Fprintln(out, "\nThe kettle's prices:")
	for version, err := range audit.History("products", 1).All(ctx) {
		if err != nil {
			return err
		}
		price, _ := version.Row.Text("price")
		if version.Change == nil {
			fmt.Fprintf(out, "  %7s from the beginning\n", price)
			continue
		}
		fmt.Fprintf(out, "  %7s by %s in %s\n", price, version.Change.Context.User(), version.Change.Context.RequestID)
	}
	blame, err := audit.Blame(ctx, "products", 1)
	if err != nil {
		return err
	}
	fmt.Fprintln(out, "\nWho set its columns:")
	for _, column := range blame {
		who := "nobody since the beginning"
		if column.Change != nil {
			who = column.Change.Context.User()
		}
		fmt.Fprintf(out, "  %-6s %s\n", column.Column, who)
	}
	return nil
}
