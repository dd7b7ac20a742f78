package docs

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/hindsight-go/audit"
	"github.com/hindsight-go/audit/audittest"
)

// discreet is a configuration that leaves tables and values out.
func discreet(url string, key []byte) audit.Config {
	return audit.Config{
		SourceURL: url,
		Tables:    []string{"public.*", "!public.sessions", "!public.*_cache"},
		Columns: []audit.ColumnRule{
			{Columns: "public.customer.iban", Policy: audit.MaskColumn},    // "***3000"
			{Columns: "public.customer.email", Policy: audit.DigestColumn}, // one sees that it changed
			{Columns: "*.ssn", Policy: audit.ExcludeColumn},
		},
		DigestKey: key,
	}
}

func TestLeaveOutTablesAndMaskColumns(t *testing.T) {
	t.Parallel()
	a := audittest.New(t, discreet("", []byte("0123456789abcdef")), `
		CREATE TABLE customer (id int PRIMARY KEY, iban text, email text, ssn text);
		CREATE TABLE sessions (id int PRIMARY KEY); CREATE TABLE page_cache (id int PRIMARY KEY)`)
	a.Exec(t, "INSERT INTO customer VALUES (7, 'DE89370400440532013000', 'ann@example.com', '078-05-1120')")
	a.Exec(t, "INSERT INTO sessions VALUES (1)")
	a.Exec(t, "INSERT INTO page_cache VALUES (1)")
	a.Sync(t)
	changes, err := a.Client.Changes().List(t.Context())
	if err != nil || len(changes) != 1 {
		t.Fatalf("%v, %v", changes, err)
	}
	row := string(changes[0].After)
	if !strings.Contains(row, `"***3000"`) || !strings.Contains(row, `"digest:`) || !strings.Contains(row, `"excluded"`) || strings.Contains(row, "ann@") {
		t.Errorf("history has %s", row)
	}
}

// two opens the histories of two databases, in one place.
func two(ctx context.Context, shopURL, billingURL, historyURL string) (shop, billing *audit.Client, err error) {
	shop, err = audit.Open(ctx, audit.Config{SourceURL: shopURL, StoreURL: historyURL})
	if err != nil {
		return nil, nil, err
	}
	billing, err = audit.Open(ctx, audit.Config{SourceURL: billingURL, StoreURL: historyURL})
	if err != nil {
		shop.Close()
		return nil, nil, err
	}
	return shop, billing, nil
}

// everywhere is what a user has changed, in whatever database.
func everywhere(ctx context.Context, client *audit.Client, user string) ([]audit.Change, error) {
	return client.Changes().ByUser(user).List(ctx) // InDatabase("billing") narrows it
}

func TestTwoDatabases(t *testing.T) {
	t.Parallel()
	history, first, second := audittest.NewDatabase(t), audittest.NewDatabase(t), audittest.NewDatabase(t)
	shop, billing, err := two(t.Context(), first.URL(), second.URL(), history.URL())
	if err != nil {
		t.Fatal(err)
	}
	for i, client := range []*audit.Client{shop, billing} {
		db := []*audittest.Database{first, second}[i]
		t.Cleanup(client.Close)
		db.Exec(t, "CREATE TABLE todo (id int PRIMARY KEY)")
		if err := client.Start(t.Context()); err != nil {
			t.Fatal(err)
		}
		db.Exec(t, `BEGIN; SELECT pg_logical_emit_message(true, 'audit', '{"userId": "ann"}'); INSERT INTO todo VALUES (26); COMMIT`)
		if err := client.Sync(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	changes, err := everywhere(t.Context(), shop, "ann")
	if err != nil || len(changes) != 2 || changes[0].Database == changes[1].Database {
		t.Errorf("%v, %v", changes, err)
	}
}

// orderOf is an order as it was a day ago.
func orderOf(ctx context.Context, client *audit.Client, yesterday time.Time, id int) (Order, error) {
	var order Order
	err := client.AsOf(yesterday).Load(ctx, &order, id)
	return order, err // audit.ErrNoRow: there was none; a *audit.HistoryError: history cannot tell
}

// ordersBefore are all orders as they were before a request.
func ordersBefore(ctx context.Context, client *audit.Client, request string) ([]Order, error) {
	paid := client.BeforeRequest(request).Table("orders").Where("state = $1", "paid").OrderBy("id")
	return audit.ListAsOf[Order](ctx, paid)
}

func TestRowsOfYesterday(t *testing.T) {
	t.Parallel()
	s := newShop(t)
	first, err := s.client.Changes().OldestFirst().First(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if order, err := orderOf(t.Context(), s.client, first.CommittedAt, 11); err != nil || order.State != "paid" {
		t.Errorf("%+v, %v", order, err)
	}
	if orders, err := ordersBefore(t.Context(), s.client, "req-2"); err != nil || len(orders) != 1 || orders[0].ID != 11 {
		t.Errorf("%+v, %v", orders, err)
	}
}
