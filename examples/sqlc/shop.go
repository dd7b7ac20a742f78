package main

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/hindsight-go/audit"
	"github.com/hindsight-go/audit/auditpgx"
	"github.com/hindsight-go/audit/examples/sqlc/shop"
)

// aDayInTheShop writes in every way that sqlc knows.
func aDayInTheShop(ctx context.Context, out io.Writer, db *auditpgx.DB) error {
	queries := shop.New(db)

	// :copyfrom, by a job at night.
	night := audit.WithContext(ctx, audit.Context{Worker: "import"})
	_, err := queries.ImportProducts(night, []shop.ImportProductsParams{
		{Sku: "cup", Name: "Cup", Stock: 40},
		{Sku: "pot", Name: "Teapot", Stock: 3},
	})
	if err != nil {
		return fmt.Errorf("import products: %w", err)
	}

	// :one, :batchexec and :execrows, in one transaction.
	ada := audit.WithContext(ctx, audit.Context{UserID: "ada", Endpoint: "POST /orders"})
	order, err := placeOrder(ada, db, "ada", shop.AddLinesParams{Sku: "cup", Quantity: 6}, shop.AddLinesParams{Sku: "pot", Quantity: 1})
	if err != nil {
		return err
	}

	// A transaction that fails takes its stamp along.
	bob := audit.WithContext(ctx, audit.Context{UserID: "bob", Endpoint: "POST /orders"})
	_, err = placeOrder(bob, db, "bob", shop.AddLinesParams{Sku: "pot", Quantity: 10})
	if refused := (*pgconn.PgError)(nil); !errors.As(err, &refused) || refused.ConstraintName != "products_stock_check" {
		return fmt.Errorf("bob's order: %w, want it refused for the stock", err)
	}

	// :one, an upsert on its own.
	clerk := audit.WithContext(ctx, audit.Context{UserID: "clerk", Endpoint: "PUT /products/{sku}"})
	_, err = queries.SaveProduct(clerk, shop.SaveProductParams{Sku: "pot", Name: "Teapot, green", Stock: 12})
	if err != nil {
		return fmt.Errorf("save product: %w", err)
	}

	// :exec, with what the database deletes in its wake.
	ada = audit.WithContext(ctx, audit.Context{UserID: "ada", Endpoint: "DELETE /orders/{id}"})
	if err := queries.DeleteOrder(ada, order); err != nil {
		return fmt.Errorf("delete order: %w", err)
	}

	// :many only reads, so nothing is stamped.
	products, err := queries.ListProducts(clerk)
	if err != nil {
		return fmt.Errorf("list products: %w", err)
	}
	fmt.Fprintln(out, "In the evening the shop has:")
	for _, product := range products {
		fmt.Fprintf(out, "  %2d %s\n", product.Stock, product.Name)
	}
	return nil
}

// placeOrder writes an order, its lines and what they take from the stock.
func placeOrder(ctx context.Context, db *auditpgx.DB, customer string, lines ...shop.AddLinesParams) (id int64, err error) {
	err = pgx.BeginFunc(ctx, db, func(tx pgx.Tx) error {
		queries := shop.New(tx)
		if id, err = queries.CreateOrder(ctx, customer); err != nil {
			return fmt.Errorf("create order: %w", err)
		}
		for i := range lines {
			lines[i].OrderID = id
		}
		var failed error
		queries.AddLines(ctx, lines).Exec(func(_ int, err error) { failed = errors.Join(failed, err) })
		if failed != nil {
			return fmt.Errorf("add lines: %w", failed)
		}
		for _, line := range lines {
			if _, err := queries.TakeFromStock(ctx, shop.TakeFromStockParams{Sku: line.Sku, Quantity: line.Quantity}); err != nil {
				return fmt.Errorf("take from stock: %w", err)
			}
		}
		return nil
	})
	return id, err
}
