package audit_test

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/hindsight-go/audit"
	"github.com/hindsight-go/audit/audittest"
	"github.com/hindsight-go/audit/internal/faulttest"
)

// wantRetryable asks about an error that a server gave.
func wantRetryable(t *testing.T, situation string, err error, want bool) {
	t.Helper()
	if err == nil {
		t.Errorf("%s: no error", situation)
	} else if got := audit.IsRetryable(err); got != want {
		t.Errorf("%s: retryable is %t, want %t: %v", situation, got, want, err)
	}
}

func TestIsRetryable_TransactionsInTheWay(t *testing.T) {
	t.Parallel()
	db := audittest.NewDatabase(t)
	db.Exec(t, "CREATE TABLE item (id int PRIMARY KEY, n int); INSERT INTO item VALUES (1, 0), (2, 0)")
	ctx := t.Context()
	one, two := db.Connect(t), db.Connect(t)
	exec := func(conn *pgx.Conn, sql string) error {
		_, err := conn.Exec(ctx, sql)
		return err
	}
	ok := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}

	ok(exec(one, "BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT FROM item"))
	ok(exec(two, "UPDATE item SET n = 1 WHERE id = 1"))
	wantRetryable(t, "serialization", exec(one, "UPDATE item SET n = 2 WHERE id = 1"), true)
	ok(exec(one, "ROLLBACK"))

	ok(exec(one, "BEGIN; UPDATE item SET n = 3 WHERE id = 1"))
	wantRetryable(t, "lock timeout", exec(two, "SET lock_timeout = '50ms'; UPDATE item SET n = 4 WHERE id = 1"), true)
	wantRetryable(t, "statement timeout", exec(two, "SET lock_timeout = 0; SET statement_timeout = '50ms'; UPDATE item SET n = 4 WHERE id = 1"), false)
	ok(exec(one, "ROLLBACK"))

	ok(exec(two, "SET statement_timeout = 0; SET deadlock_timeout = '10ms'"))
	ok(exec(one, "SET deadlock_timeout = '10s'; BEGIN; UPDATE item SET n = 3 WHERE id = 1"))
	ok(exec(two, "BEGIN; UPDATE item SET n = 3 WHERE id = 2"))
	waited := make(chan error, 1)
	go func() { waited <- exec(one, "UPDATE item SET n = 4 WHERE id = 2") }()
	faulttest.Poll(t, faulttest.Patience, "the first one waits", func() error {
		if audittest.Value[int](t, db, "SELECT count(*) FROM pg_locks WHERE NOT granted") == 0 {
			return errors.New("it does not")
		}
		return nil
	})
	wantRetryable(t, "deadlock", exec(two, "UPDATE item SET n = 4 WHERE id = 1"), true)
	ok(<-waited)
	ok(exec(one, "ROLLBACK"))
	ok(exec(two, "ROLLBACK"))

	wantRetryable(t, "unique violation", exec(one, "INSERT INTO item VALUES (1, 1)"), false)
	wantRetryable(t, "no such table", exec(one, "SELECT FROM nothing"), false)
	db.Exec(t, "SELECT pg_terminate_backend("+audittest.Value[string](t, db, "SELECT pid::text FROM pg_stat_activity WHERE datname = current_database() AND query LIKE '%FROM nothing%' AND pid <> pg_backend_pid()")+")")
	wantRetryable(t, "terminated", exec(one, "SELECT 1"), true)
	wantRetryable(t, "on the dead connection", exec(one, "SELECT 1"), true)
}

func TestIsRetryable_ThroughTheClient(t *testing.T) {
	t.Parallel()
	db := audittest.NewDatabase(t)
	db.Exec(t, gapTable)
	proxy := faulttest.NewProxy(t, db.URL())
	client, err := audit.Open(t.Context(), audit.Config{SourceURL: proxy.URL() + "&connect_timeout=2"})
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	ctx := t.Context()
	_, err = client.Status(ctx)
	if err != nil {
		t.Fatal(err)
	}
	proxy.Vanish()
	_, err = client.Status(ctx)
	wantRetryable(t, "a server that is away", err, true)
	proxy.Appear()

	elsewhere, err := audit.Open(ctx, audit.Config{SourceURL: strings.Replace(db.URL(), db.Name(), "nowhere", 1)})
	if err != nil {
		t.Fatal(err)
	}
	defer elsewhere.Close()
	wantRetryable(t, "a database that is not there", elsewhere.Start(ctx), false)

	a := audittest.Open(t, db, audit.Config{})
	mustStart(t, a)
	db.Exec(t, "INSERT INTO todo VALUES (1, 'x')")
	a.Sync(t)
	a.Stop(t)
	db.Exec(t, "UPDATE todo SET task = 'y'")
	_, err = a.Client.Now().Row(ctx, "todo", 1)
	wantRetryable(t, "nobody captures", err, true)
	_, err = a.Client.AsOf(time.Now().Add(time.Hour)).Row(ctx, "todo", 1)
	wantRetryable(t, "the future", err, false)
	_, err = a.Client.Changes().Limit(0).List(ctx)
	wantRetryable(t, "a wrong filter", err, false)
	ended, cancel := context.WithCancel(ctx)
	cancel()
	_, err = a.Client.Status(ended)
	wantRetryable(t, "a ctx that was ended", err, false)
	late, cancel := context.WithTimeout(ctx, time.Nanosecond)
	defer cancel()
	_, err = a.Client.Status(late)
	wantRetryable(t, "a ctx that has ended", err, false)

	// Setting up waits for a lock that somebody holds.
	holder := db.Connect(t)
	if _, err := holder.Exec(ctx, "BEGIN; LOCK TABLE audit.schema_migrations IN SHARE ROW EXCLUSIVE MODE"); err != nil {
		t.Fatal(err)
	}
	bounded, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	err = a.Client.Start(bounded)
	var locked *audit.SetupLockedError
	if !errors.As(err, &locked) {
		t.Errorf("with the lock held Start says %v", err)
	}
	wantRetryable(t, "a lock on setting up", err, true)
	if _, err := holder.Exec(ctx, "ROLLBACK"); err != nil {
		t.Fatal(err)
	}
	mustStart(t, a)

	client.Close()
	_, err = client.Status(ctx)
	wantRetryable(t, "a closed client", err, false)
}

// What a test cannot easily make a server say.
func TestIsRetryable_Codes(t *testing.T) {
	t.Parallel()
	for code, want := range map[string]bool{
		"53300": true, "57P03": true, "08006": true, "55006": true,
		"40002": false, "08P01": false, "28P01": false, "42501": false, "53100": false,
	} {
		wantRetryable(t, code, &pgconn.PgError{Code: code}, want)
	}
	wantRetryable(t, "refused certificate", &net.OpError{Op: "remote error", Err: tls.AlertError(42)}, false)
	wantRetryable(t, "reset", &net.OpError{Op: "read", Err: syscall.ECONNRESET}, true)
	if audit.IsRetryable(nil) {
		t.Error("no error is retryable")
	}
}
