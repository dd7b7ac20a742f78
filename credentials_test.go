package audit_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/hindsight-go/audit"
	"github.com/hindsight-go/audit/audittest"
	"github.com/hindsight-go/audit/capture"
	"github.com/hindsight-go/audit/internal/faulttest"
)

// A password changes while capture runs, as tokens do every quarter of an hour.
func TestBeforeConnect_PasswordChangesWhileCaptureRuns(t *testing.T) {
	t.Parallel()
	server := audittest.NewServer(t, audittest.ServerOptions{})
	db := server.NewDatabase(t)
	db.Exec(t, gapTable+"; CREATE ROLE tokens SUPERUSER LOGIN PASSWORD 'first-secret'")
	hba := filepath.Join(server.DataDir(), "pg_hba.conf")
	rules, err := os.ReadFile(hba)
	if err != nil {
		t.Fatal(err)
	}
	rules = append([]byte("local all tokens scram-sha-256\nhost all tokens all scram-sha-256\n"), rules...)
	if err := os.WriteFile(hba, rules, 0o600); err != nil {
		t.Fatal(err)
	}
	db.Exec(t, "SELECT pg_reload_conf()")
	u, err := url.Parse(asRole(t, db, "tokens"))
	if err != nil {
		t.Fatal(err)
	}
	var password atomic.Value
	password.Store("first-secret")
	var dialed atomic.Int64
	log := faulttest.NewLog(t)
	a := &audittest.Audited{Database: db}
	a.Client = openClient(t, audit.Config{
		SourceURL: u.String(), Logger: log.Logger(),
		BeforeConnect: func(_ context.Context, config *pgconn.Config) error {
			token, _ := password.Load().(string)
			if token == "" {
				return errors.New("no token today")
			}
			config.Password = token
			dial := config.DialFunc
			config.DialFunc = func(ctx context.Context, network, address string) (net.Conn, error) {
				dialed.Add(1)
				return dial(ctx, network, address)
			}
			return nil
		},
	})
	faulttest.Poll(t, faulttest.Patience, "start", func() error { return a.Client.Start(context.WithoutCancel(t.Context())) })
	expectCapturing(t, a, 1)
	for id, token := range map[int]string{2: "wrong", 3: ""} {
		db.Exec(t, fmt.Sprintf("ALTER ROLE tokens PASSWORD 'secret-%d'", id))
		password.Store(token)
		db.Exec(t, "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'tokens'")
		log.Wait(t, map[bool]string{false: "28P01", true: "no token today"}[token == ""], 1)
		password.Store(fmt.Sprintf("secret-%d", id))
		faulttest.Poll(t, faulttest.Patience, "capture goes on", func() error {
			s, err := a.Client.Status(t.Context())
			if err != nil || s.State != capture.Streaming {
				return fmt.Errorf("it is %s: %w", s.State, errors.Join(err, s.Err))
			}
			return nil
		})
		db.Exec(t, "INSERT INTO todo VALUES ($1, 'x')", id)
		syncAgain(t, a)
	}
	changes, err := a.Client.Changes().ForTable("todo").List(t.Context())
	if err != nil || len(changes) != 3 {
		t.Fatalf("%d changes, %v", len(changes), err)
	}
	if _, err := a.Client.RevertTransaction(changes[0].TransactionID).Apply(t.Context()); err != nil {
		t.Errorf("revert: %v", err)
	}
	if text := log.Text(); strings.Contains(text, "first-secret") || strings.Contains(text, "secret-2") {
		t.Error("the log has a password")
	}
	if dialed.Load() == 0 {
		t.Error("the dialer was not asked")
	}
}
