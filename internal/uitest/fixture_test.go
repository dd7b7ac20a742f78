package uitest

import (
	"context"
	"fmt"
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

// shop is a database with a history.
type shop struct {
	*audittest.Audited
	conn *pgx.Conn
}

const schema = `
	CREATE TABLE product (id int PRIMARY KEY, name text, price numeric);
	CREATE TABLE orders (id int PRIMARY KEY, product int REFERENCES product, state text);
	CREATE TABLE staff (id int PRIMARY KEY, phone text);
	INSERT INTO product SELECT i, 'product ' || i, i FROM generate_series(1, 20) i`

func newShop(t *testing.T, statements ...string) *shop {
	t.Helper()
	s := &shop{Audited: audittest.New(t, audit.Config{Environment: "test", Logger: slog.New(slog.DiscardHandler)}, append([]string{schema}, statements...)...)}
	conn, err := pgx.Connect(t.Context(), s.URL())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close(context.WithoutCancel(t.Context())) })
	s.conn = conn
	return s
}

// write runs statements in one transaction with a context, and waits until history has it.
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
	s.Sync(t)
	return id
}

func by(user, request string) audit.Context {
	return audit.Context{UserID: user, RequestID: request, Endpoint: "POST /" + request}
}

// everything is an Access to all there is.
func everything(*http.Request) (auditui.Access, error) {
	return auditui.Access{User: "boss", Values: true, Export: true, Revert: true}, nil
}

func (s *shop) handler(t *testing.T, cfg auditui.Config) http.Handler {
	t.Helper()
	return handlerOf(t, s.Client, cfg)
}

func handlerOf(t *testing.T, client *audit.Client, cfg auditui.Config) http.Handler {
	t.Helper()
	if cfg.Access == nil {
		cfg.Access = everything
	}
	if cfg.Timeout == 0 {
		cfg.Timeout = 30 * time.Second
	}
	if cfg.SearchTime == 0 {
		cfg.SearchTime = 30 * time.Second
	}
	cfg.Logger = slog.New(slog.DiscardHandler)
	ui, err := auditui.New(client, cfg)
	if err != nil {
		t.Fatal(err)
	}
	return ui
}

// serve serves the UI under a prefix, and returns its address.
func (s *shop) serve(t *testing.T, cfg auditui.Config) string {
	t.Helper()
	return serve(t, http.StripPrefix("/audit", s.handler(t, cfg))) + "/audit/"
}

func serve(t *testing.T, handler http.Handler) string {
	t.Helper()
	server := httptest.NewServer(handler)
	t.Cleanup(func() {
		server.CloseClientConnections()
		server.Close()
	})
	return server.URL
}

func segment(p audit.Position) string {
	return strings.NewReplacer("/", ".", "#", ".").Replace(p.String())
}

// positions are the changes that a list shows.
func (b *tab) positions() []string {
	b.t.Helper()
	return eval[[]string](b, `[...document.querySelectorAll('tr[data-line] a.open')].map((a) => a.href.split('/').pop())`)
}

func list(t *testing.T, q audit.Query) []string {
	t.Helper()
	changes, err := q.List(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	segments := []string{}
	for _, c := range changes {
		segments = append(segments, segment(c.Position))
	}
	return segments
}

// large makes a history of n changes that are older than what was captured.
func (s *shop) large(t *testing.T, n int) {
	t.Helper()
	s.Exec(t, fmt.Sprintf(`
		INSERT INTO audit.changes (position, sequence, committed_at, transaction_id, database, schema, "table", primary_key, operation, before, after, context, environment, queued_at)
		SELECT '0/100000'::pg_lsn + (n / 3) * 8, n %% 3 + 1, now() - (%[1]d - n) * interval '2 s', 10 + n / 3, current_database(), 'public', 'past_' || n %% 20,
			(n::bigint * 7919 %% 20000)::text, 'UPDATE', jsonb_build_object('id', n, 'state', 'new', 'filler', repeat('y', 60)), jsonb_build_object('id', n, 'state', '=paid', 'filler', repeat('x', 60)),
			CASE WHEN n %% 10 > 0 THEN jsonb_build_object('userId', (n %% 1009)::text, 'requestId', 'request-' || n / 12, 'traceId', 'trace-' || n / 40, 'endpoint', 'POST /e' || n %% 10, 'worker', 'w' || n %% 7) END, 'test', now()
		FROM generate_series(0, %[1]d - 1) AS n`, n))
	s.Exec(t, "VACUUM ANALYZE audit.changes")
}
