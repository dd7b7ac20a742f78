package docs

import (
	"context"
	"log/slog"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/hindsight-go/audit"
	"github.com/hindsight-go/audit/auditpgx"
	"github.com/hindsight-go/audit/audittest"
)

// shop is what the recipes of the cookbook are tried on: two customers of a tenant,
// products and orders, and a morning's work on them.
type shop struct {
	client *audit.Client
	db     *auditpgx.DB
}

const shopSQL = `
	CREATE TABLE customer (id int PRIMARY KEY, name text, state text NOT NULL DEFAULT 'active');
	CREATE TABLE orders (id int PRIMARY KEY, customer_id int REFERENCES customer ON DELETE CASCADE, state text, total numeric(10,2));
	CREATE TABLE product (id int PRIMARY KEY, name text, price numeric(10,2));
	INSERT INTO customer VALUES (7, 'Ann'), (8, 'Bob');
	INSERT INTO orders VALUES (11, 7, 'paid', 99.00), (12, 8, 'open', 7.25);
	INSERT INTO product VALUES (1, 'Kettle', 30), (2, 'Teapot', 45)`

// Order is a row of orders.
type Order struct {
	ID         int
	CustomerID int `db:"customer_id"`
	State      string
	Total      float64
}

// TableName tells where orders are.
func (Order) TableName() string { return "orders" }

// openShop opens the shop in a database and tracks it, with its morning.
func openShop(ctx context.Context, database *audittest.Database) (*shop, error) {
	pool, err := pgxpool.New(ctx, database.URL())
	if err != nil {
		return nil, err
	}
	if _, err := pool.Exec(ctx, shopSQL); err != nil {
		return nil, err
	}
	client, err := audit.Open(ctx, audit.Config{SourceURL: database.URL(), Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		return nil, err
	}
	if err := client.Start(ctx); err != nil {
		return nil, err
	}
	s := &shop{client: client, db: auditpgx.Wrap(pool)}
	for _, act := range []struct {
		user, request, endpoint string
		statements              []string
	}{
		{"u-17", "req-1", "PUT /product/{id}", []string{"UPDATE product SET price = 32 WHERE id = 1"}},
		{"u-17", "req-2", "DELETE /customer/{id}", []string{"UPDATE orders SET state = 'closed' WHERE id = 11", "DELETE FROM customer WHERE id = 8"}},
		{"u-42", "req-3", "PUT /product/{id}", []string{"UPDATE product SET price = 39 WHERE id = 1"}},
	} {
		ctx := audit.WithContext(ctx, audit.Context{UserID: act.user, Tenant: "acme", RequestID: act.request, Endpoint: act.endpoint})
		for _, sql := range act.statements {
			if _, err := s.db.Exec(ctx, sql); err != nil {
				return nil, err
			}
		}
	}
	return s, client.Sync(ctx)
}

// close closes it.
func (s *shop) close() {
	s.client.Close()
	s.db.Pool().Close()
}

// wantPrinted compares what a recipe prints with what its document says.
func wantPrinted(t *testing.T, want, got string) {
	t.Helper()
	if diff := cmp.Diff(strings.TrimSpace(want), strings.TrimSpace(got)); diff != "" {
		t.Errorf("printed (-document +recipe):\n%s", diff)
	}
}

// newShop is the shop of a test.
func newShop(t *testing.T) *shop {
	t.Helper()
	s, err := openShop(context.WithoutCancel(t.Context()), audittest.NewDatabase(t))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.close)
	return s
}
