package docs

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/hindsight-go/audit"
	"github.com/hindsight-go/audit/auditpgx"
	"github.com/hindsight-go/audit/audittest"
)

// The recipes of docs/cookbook.md.

// restoreCustomer brings a deleted row back.
func restoreCustomer(ctx context.Context, client *audit.Client, id int) error {
	deletion, err := client.Changes().ForTable("customer").ForRow(id).Operations(audit.Delete).First(ctx)
	if err != nil {
		return err // audit.ErrNotFound: nobody has deleted it
	}
	_, err = client.RevertTransaction(deletion.TransactionID).Reason("restored by support").Apply(ctx)
	return err
}

const printedByRestore = `
Bob is back, with 1 order
`

func TestRestoreADeletedRow(t *testing.T) {
	t.Parallel()
	s := newShop(t)
	ctx := audit.WithContext(t.Context(), audit.Context{UserID: "support"})
	if err := restoreCustomer(ctx, s.client, 8); err != nil {
		t.Fatal(err)
	}
	var name string
	var orders int
	if err := s.db.QueryRow(ctx, "SELECT name, (SELECT count(*) FROM orders WHERE customer_id = 8) FROM customer WHERE id = 8").Scan(&name, &orders); err != nil {
		t.Fatal(err)
	}
	wantPrinted(t, printedByRestore, fmt.Sprintln(name, "is back, with", orders, "order"))
}

// feed writes what a tenant's people have done lately, a page at a time.
func feed(w io.Writer, r *http.Request, client *audit.Client, tenant string) error {
	page, err := client.Changes().ByTenant(tenant).After(audit.Cursor(r.URL.Query().Get("after"))).RequestsPage(r.Context(), 50)
	if err != nil {
		return err // a *audit.CursorError: the parameter is no cursor
	}
	for _, request := range page.Requests {
		fmt.Fprintf(w, "%s: %d changes in %s, by %s\n", request.Context.Endpoint, request.Total(), strings.Join(request.Tables, ", "), request.Context.User())
	}
	if page.More {
		fmt.Fprintf(w, "older: ?after=%s\n", page.Next)
	}
	return nil
}

const printedByFeed = `
PUT /product/{id}: 1 changes in public.product, by u-42
DELETE /customer/{id}: 3 changes in public.customer, public.orders, by u-17
PUT /product/{id}: 1 changes in public.product, by u-17
`

func TestActivityFeedOfATenant(t *testing.T) {
	t.Parallel()
	s := newShop(t)
	var out strings.Builder
	if err := feed(&out, httptest.NewRequestWithContext(t.Context(), http.MethodGet, "/feed", nil), s.client, "acme"); err != nil {
		t.Fatal(err)
	}
	wantPrinted(t, printedByFeed, out.String())
}

// whoSetThePrice says who gave a product the price that it has, and lists all prices.
func whoSetThePrice(ctx context.Context, out io.Writer, client *audit.Client, id int) error {
	columns, err := client.Blame(ctx, "product", id)
	if err != nil {
		return err
	}
	for _, column := range columns {
		if column.Column == "price" && column.Change != nil { // nil: from before tracking began
			fmt.Fprintf(out, "%s, set by %s in %s\n", column.Value, column.Change.Context.User(), column.Change.Context.RequestID)
		}
	}
	for change, err := range client.Changes().ForTable("product").ForRow(id).Changed("price").All(ctx) {
		if err != nil {
			return err
		}
		fmt.Fprintln(out, change.Context.User(), change.Diff())
	}
	return nil
}

const printedByWhoSetThePrice = `
39.00, set by u-42 in req-3
u-42 [price: 32.00 -> 39.00]
u-17 [price: 30.00 -> 32.00]
`

func TestWhoSetThisPrice(t *testing.T) {
	t.Parallel()
	s := newShop(t)
	var out strings.Builder
	if err := whoSetThePrice(t.Context(), &out, s.client, 1); err != nil {
		t.Fatal(err)
	}
	wantPrinted(t, printedByWhoSetThePrice, out.String())
}

// latestOf answers with the latest changes of a user.
func latestOf(w http.ResponseWriter, r *http.Request, client *audit.Client) {
	page, err := client.Changes().ByUser(r.PathValue("user")).Page(r.Context(), 20)
	if err != nil {
		http.Error(w, "history does not answer", http.StatusServiceUnavailable)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(page) // changes, more, and next: the cursor for After
}

func TestLatestChangesOfAUserAsJSON(t *testing.T) {
	t.Parallel()
	s := newShop(t)
	r := httptest.NewRequestWithContext(t.Context(), http.MethodGet, "/changes/u-42", nil)
	r.SetPathValue("user", "u-42")
	w := httptest.NewRecorder()
	latestOf(w, r, s.client)
	var page audit.Page
	if err := json.Unmarshal(w.Body.Bytes(), &page); err != nil || len(page.Changes) != 1 || page.Changes[0].Table != "product" {
		t.Errorf("%v\n%s", err, w.Body)
	}
}

// alert calls for every change that somebody has to know of, each once, also over restarts.
func alert(ctx context.Context, client *audit.Client, last audit.Cursor, page func(audit.Change), keep func(audit.Cursor) error) error {
	closed := client.Changes().ForTable("orders").ChangedTo("state", "closed")
	for event, err := range closed.After(last).Watch(ctx) {
		if err != nil {
			return err // audit.IsRetryable: the store is away, call again with the cursor that was kept
		}
		page(event.Change)
		if err := keep(event.Cursor); err != nil {
			return err
		}
	}
	return nil
}

func TestAlertOnAChange(t *testing.T) {
	t.Parallel()
	s := newShop(t)
	before, err := s.client.Changes().ForTable("product").OldestFirst().Page(t.Context(), 1)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	var paged []string
	var kept audit.Cursor
	// It is told of the change, and dies before it has kept where it was; then it lives.
	for _, err := range []error{errors.New("killed"), nil} {
		ctx, stop := context.WithCancel(ctx)
		got := alert(ctx, s.client, before.Next, func(c audit.Change) { paged = append(paged, c.PrimaryKey) }, func(c audit.Cursor) error {
			if err == nil {
				kept = c
				stop()
			}
			return err
		})
		if stop(); got == nil || err != nil && !errors.Is(got, err) {
			t.Errorf("alert: %v, want %v", got, err)
		}
	}
	if strings.Join(paged, " ") != "11 11" || kept == "" {
		t.Errorf("paged %v, kept %q", paged, kept)
	}
}

// createOrder is the code under test of the recipe for tests.
func createOrder(ctx context.Context, db auditpgx.Querier, id int) error {
	_, err := db.Exec(ctx, "INSERT INTO orders (id, state) VALUES ($1, 'open')", id)
	return err
}

func TestOrdersSayWhoMadeThem(t *testing.T) {
	a := audittest.New(t, audit.Config{}, "CREATE TABLE orders (id int PRIMARY KEY, state text)")
	ctx := audit.WithContext(t.Context(), audit.Context{UserID: "ann", Endpoint: "POST /order"})
	if err := createOrder(ctx, auditpgx.WrapConn(a.Connect(t)), 11); err != nil {
		t.Fatal(err)
	}
	a.Sync(t) // history has all that was committed

	change, err := a.Client.Changes().ForTable("orders").ForRow(11).First(t.Context())
	if err != nil || change.Operation != audit.Create || change.Context.User() != "ann" {
		t.Errorf("history has %v, %v", change, err)
	}
	// No code path forgets to say who.
	if n, err := a.Client.Changes().WithoutContext().Count(t.Context()); n != 0 || err != nil {
		t.Errorf("%d writes without context, %v", n, err)
	}
}
