package auditui_test

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/hindsight-go/audit"
	"github.com/hindsight-go/audit/audittest"
	"github.com/hindsight-go/audit/auditui"
)

// shop is a database with a history, and what writes to it.
type shop struct {
	*audittest.Audited
	conn *pgx.Conn
}

const shopSchema = `
	CREATE TABLE product (id int PRIMARY KEY, name text, price numeric, secret text);
	CREATE TABLE orders (id int PRIMARY KEY, product int REFERENCES product, state text, tenant text);
	CREATE TABLE staff (id int PRIMARY KEY, iban text)`

// newShop makes a database in which a few people have worked.
func newShop(t *testing.T, statements ...string) *shop {
	t.Helper()
	s := &shop{Audited: audittest.New(t, audit.Config{
		Environment: "test", Columns: []audit.ColumnRule{{Columns: "staff.iban", Policy: audit.KeepColumn}, {Columns: "product.secret", Policy: audit.KeepColumn}},
	}, append([]string{shopSchema}, statements...)...)}
	conn, err := pgx.Connect(t.Context(), s.URL())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close(context.WithoutCancel(t.Context())) })
	s.conn = conn
	return s
}

// write runs statements in one transaction with a context, and returns its id.
func (s *shop) write(t *testing.T, who audit.Context, statements ...string) (id uint64) {
	t.Helper()
	ctx := t.Context()
	if !who.IsZero() {
		ctx = audit.WithContext(ctx, who)
	}
	err := pgx.BeginFunc(ctx, s.conn, func(tx pgx.Tx) error {
		if err := audit.Stamp(ctx, tx); err != nil {
			return err
		}
		for _, statement := range statements {
			if _, err := tx.Exec(ctx, statement); err != nil {
				return err
			}
		}
		return tx.QueryRow(ctx, "SELECT pg_current_xact_id()::text::bigint").Scan(&id)
	})
	if err != nil {
		t.Fatal(err)
	}
	return id
}

// site is a UI that is served.
type site struct {
	t      *testing.T
	url    string
	log    *strings.Builder
	client *http.Client
}

// everything is an Access to all there is.
func everything(*http.Request) (auditui.Access, error) {
	return auditui.Access{User: "boss", Values: true, Export: true, Revert: true}, nil
}

func (s *shop) serve(t *testing.T, cfg auditui.Config) *site {
	t.Helper()
	return serveClient(t, s.Client, cfg)
}

func serveClient(t *testing.T, client *audit.Client, cfg auditui.Config) *site {
	t.Helper()
	if cfg.Access == nil {
		cfg.Access = everything
	}
	if cfg.Timeout == 0 {
		cfg.Timeout = 20 * time.Second
	}
	if cfg.SearchTime == 0 {
		cfg.SearchTime = 20 * time.Second
	}
	log := new(strings.Builder)
	cfg.Logger = slog.New(slog.NewTextHandler(log, nil))
	ui, err := auditui.New(client, cfg)
	if err != nil {
		t.Fatal(err)
	}
	server := httptest.NewServer(http.StripPrefix("/admin", ui))
	t.Cleanup(server.Close)
	return &site{t, server.URL + "/admin", log, &http.Client{CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}}
}

// answer is what the UI answered.
type answer struct {
	code   int
	body   string
	header http.Header
}

func (s *site) get(path string) answer {
	s.t.Helper()
	request, err := http.NewRequestWithContext(s.t.Context(), http.MethodGet, s.url+path, nil)
	if err != nil {
		s.t.Fatal(err)
	}
	return s.do(request)
}

func (s *site) do(request *http.Request) answer {
	s.t.Helper()
	response, err := s.client.Do(request)
	if err != nil {
		s.t.Fatal(err)
	}
	defer func() { _ = response.Body.Close() }()
	body, err := io.ReadAll(response.Body)
	if err != nil {
		s.t.Fatal(err)
	}
	return answer{response.StatusCode, string(body), response.Header}
}

// page is a page that has to be there.
func (s *site) page(path string) string {
	s.t.Helper()
	a := s.get(path)
	if a.code != http.StatusOK {
		s.t.Fatalf("GET %s: %d\n%s\nlog:\n%s", path, a.code, a.body, s.log)
	}
	return a.body
}

// wantIn checks that a page has texts in it.
func wantIn(t *testing.T, page string, texts ...string) {
	t.Helper()
	for _, text := range texts {
		if !strings.Contains(page, text) {
			t.Errorf("the page lacks %q:\n%s", text, excerpt(page))
		}
	}
}

// wantNotIn checks that a page has none of the texts in it.
func wantNotIn(t *testing.T, page string, texts ...string) {
	t.Helper()
	for _, text := range texts {
		if strings.Contains(page, text) {
			at := strings.Index(page, text)
			t.Errorf("the page has %q in it: %s", text, page[max(0, at-200):min(len(page), at+200)])
		}
	}
}

// excerpt is the part of a page that it is about.
func excerpt(page string) string {
	if _, rest, ok := strings.Cut(page, "<main"); ok {
		page = rest
	}
	if _, rest, ok := strings.Cut(page, `<div class="summary">`); ok {
		page = rest
	}
	page, _, _ = strings.Cut(page, "</main>")
	return page[:min(len(page), 4000)]
}

// lines counts the lines of a list.
func lines(page string) int { return strings.Count(page, "<tr data-line>") }

func by(user, request, endpoint string) audit.Context {
	return audit.Context{UserID: user, RequestID: request, Endpoint: endpoint}
}

func positionOf(c audit.Change) string {
	return strings.NewReplacer("/", ".", "#", ".").Replace(c.Position.String())
}

func first(t *testing.T, q audit.Query) audit.Change {
	t.Helper()
	c, err := q.First(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func insertProducts(n int) string {
	return fmt.Sprintf("INSERT INTO product SELECT i, 'product ' || i, i, 's3cret-' || i FROM generate_series(1, %d) i", n)
}
