package audit_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/hindsight-go/audit"
	"github.com/hindsight-go/audit/audittest"
	"github.com/hindsight-go/audit/capture"
	"github.com/hindsight-go/audit/internal/faulttest"
)

// Whoever may log in may take any advisory lock.
func TestSetupLock_StrangerHoldsAdvisoryLocks(t *testing.T) {
	t.Parallel()
	db := audittest.NewServer(t, audittest.ServerOptions{}).NewDatabase(t)
	db.Exec(t, gapTable)
	stranger := faulttest.Connect(t, asRole(t, db, newRole(t, db, "")))
	// What the locks on setting up, migrating and making partitions once were.
	for _, lock := range []int64{0x617564697473, 0x6175646974, 418278533492} {
		if _, err := stranger.Exec(t.Context(), "SELECT pg_advisory_lock($1)", lock); err != nil {
			t.Fatal(err)
		}
	}
	a := audittest.Open(t, db, audit.Config{RefreshInterval: -1})
	ctx, cancel := context.WithTimeout(t.Context(), faulttest.Patience)
	defer cancel()
	if err := a.Client.Start(ctx); err != nil {
		t.Fatal(err)
	}
	db.Exec(t, "CREATE TABLE later (id int PRIMARY KEY)")
	if err := a.Client.Refresh(ctx); err != nil {
		t.Error(err)
	}
	expectCapturing(t, a, 1)
}

// A role that reads the history can lock nothing of it that is in the way.
func TestSetupLock_ReadersAreNotInTheWay(t *testing.T) {
	t.Parallel()
	db := audittest.NewServer(t, audittest.ServerOptions{}).NewDatabase(t)
	db.Exec(t, gapTable)
	a := audittest.Open(t, db, audit.Config{RefreshInterval: -1})
	mustStart(t, a)
	role := newRole(t, db, "")
	db.Exec(t, "GRANT USAGE ON SCHEMA audit TO "+role+"; GRANT SELECT ON ALL TABLES IN SCHEMA audit TO "+role)
	reader := faulttest.Connect(t, asRole(t, db, role))
	for _, sql := range []string{
		"LOCK TABLE audit.schema_migrations IN SHARE ROW EXCLUSIVE MODE",
		"SELECT * FROM audit.schema_migrations FOR UPDATE",
	} {
		if _, err := reader.Exec(t.Context(), "BEGIN; "+sql); !isSQLState(err, "42501") {
			t.Errorf("%s: %v, want 42501", sql, err)
		}
		_, _ = reader.Exec(t.Context(), "ROLLBACK")
	}
	// What pg_dump does.
	if _, err := reader.Exec(t.Context(), "BEGIN; LOCK TABLE audit.schema_migrations, audit.changes IN ACCESS SHARE MODE"); err != nil {
		t.Fatal(err)
	}
	if err := a.Client.Refresh(t.Context()); err != nil {
		t.Error(err)
	}
	expectCapturing(t, a, 1)
}

// While somebody holds the lock, new tables are not tracked, and everybody says who.
func TestSetupLock_HolderIsNamed(t *testing.T) {
	ownStore(t, "what a superuser's session does is hidden from the writer")
	t.Parallel()
	server := audittest.NewServer(t, audittest.ServerOptions{Settings: map[string]string{"max_prepared_transactions": "5", "max_slot_wal_keep_size": "1GB"}})
	const lock = "LOCK TABLE audit.schema_migrations IN SHARE ROW EXCLUSIVE MODE"
	for name, hold := range map[string]func(t *testing.T, db *audittest.Database) (who string, release func()){
		"session": func(t *testing.T, db *audittest.Database) (string, func()) {
			t.Helper()
			conn := faulttest.Connect(t, db.URL()+"&application_name=migration%20tool")
			if _, err := conn.Exec(t.Context(), "BEGIN; "+lock); err != nil {
				t.Fatal(err)
			}
			return fmt.Sprintf("pid %d (user postgres, application \"migration tool\", idle in transaction", conn.PgConn().PID()), func() {
				if _, err := conn.Exec(t.Context(), "ROLLBACK"); err != nil {
					t.Error(err)
				}
			}
		},
		"prepared transaction": func(t *testing.T, db *audittest.Database) (string, func()) {
			t.Helper()
			db.Exec(t, "BEGIN; "+lock+"; PREPARE TRANSACTION 'forgotten'")
			return `prepared transaction "forgotten" of postgres`, func() { db.Exec(t, "ROLLBACK PREPARED 'forgotten'") }
		},
	} {
		t.Run(name, func(t *testing.T) {
			db := server.NewDatabase(t)
			db.Exec(t, gapTable)
			log := faulttest.NewLog(t)
			a := audittest.Open(t, db, audit.Config{RefreshInterval: 100 * time.Millisecond, Logger: log.Logger()})
			mustStart(t, a)
			who, release := hold(t, db)
			db.Exec(t, "CREATE TABLE later (id int PRIMARY KEY)")
			// A refresh of the client's own may be first in the queue.
			var locked *audit.SetupLockedError
			faulttest.Poll(t, faulttest.Patience, "Refresh names "+who, func() error {
				err := a.Client.Refresh(t.Context())
				if !errors.As(err, &locked) || !strings.Contains(err.Error(), who) {
					return fmt.Errorf("it returned %w", err)
				}
				return nil
			})
			faulttest.Poll(t, faulttest.Patience, "status says so", func() error {
				s := statusOf(t, a)
				if len(s.Warnings) != 1 || s.Warnings[0].Code != audit.WarningSetupWaits || !strings.Contains(s.Warnings[0].Text, who) {
					return fmt.Errorf("warnings are %v", s.Warnings)
				}
				for _, table := range s.Tables {
					if table.Table == "later" && errors.As(table.Pending, &locked) {
						return nil
					}
				}
				return fmt.Errorf("tables are %v", s.Tables)
			})
			log.Wait(t, strings.ReplaceAll(who, `"`, `\"`)[:12], 1)
			expectCapturing(t, a, 1) // what is tracked goes on

			// Another instance starts up to the same lock.
			other := audittest.Open(t, db, audit.Config{})
			ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
			defer cancel()
			if err := other.Client.Start(ctx); !errors.As(err, &locked) || !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), who) {
				t.Errorf("Start returned %v, want a *SetupLockedError that names %s", err, who)
			}
			release()
			faulttest.Poll(t, faulttest.Patience, "the table joins", func() error {
				s := statusOf(t, a)
				if len(s.Warnings) != 0 {
					return fmt.Errorf("warnings are %v", s.Warnings)
				}
				for _, table := range s.Tables {
					if table.Table == "later" && table.Pending == nil {
						return nil
					}
				}
				return fmt.Errorf("tables are %v", s.Tables)
			})
			if err := other.Client.Start(context.WithoutCancel(t.Context())); err != nil {
				t.Error(err)
			}
			other.Stop(t)
		})
	}
}

// An instance that vanishes in the midst of setting up loses the lock.
func TestSetupLock_HolderVanishes(t *testing.T) {
	t.Parallel()
	db := audittest.NewServer(t, audittest.ServerOptions{}).NewDatabase(t)
	db.Exec(t, gapTable+"; CREATE TABLE elsewhere (id int)")
	writer := db.Connect(t)
	if _, err := writer.Exec(t.Context(), "BEGIN; INSERT INTO elsewhere VALUES (1)"); err != nil {
		t.Fatal(err)
	}
	proxy := faulttest.NewProxy(t, db.URL())
	vanishing := openClient(t, audit.Config{SourceURL: proxy.URL()})
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	started := make(chan error, 1)
	go func() { started <- vanishing.Start(ctx) }()
	faulttest.Poll(t, faulttest.Patience, "the slot being made", func() error {
		if audittest.Value[bool](t, db, `SELECT EXISTS (SELECT FROM pg_stat_activity WHERE datname = current_database() AND state = 'active' AND query LIKE 'SELECT lsn%pg_create_logical%')`) {
			return nil
		}
		return errors.New("nobody makes one")
	})
	proxy.Freeze()
	a := audittest.Open(t, db, audit.Config{})
	if _, err := writer.Exec(t.Context(), "COMMIT"); err != nil {
		t.Fatal(err)
	}
	mustStart(t, a)
	expectCapturing(t, a, 1)
	if s := statusOf(t, a); s.State != capture.Streaming {
		t.Errorf("capture is %s: %v", s.State, s.Err)
	}
	cancel()
	proxy.Cut()
	if err := <-started; err == nil {
		t.Error("the instance that vanished has started")
	}
}

// A prepared transaction keeps a slot from being made, and no session shows it.
func TestSlot_PreparedTransactionIsNamed(t *testing.T) {
	t.Parallel()
	server := audittest.NewServer(t, audittest.ServerOptions{Settings: map[string]string{"max_prepared_transactions": "5"}})
	db := server.NewDatabase(t)
	db.Exec(t, gapTable+"; CREATE TABLE elsewhere (id int)")
	db.Exec(t, "BEGIN; INSERT INTO elsewhere VALUES (1); PREPARE TRANSACTION 'it''s'")
	client := openClient(t, audit.Config{SourceURL: db.URL(), Tables: []string{"public.todo"}})
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	err := client.Start(ctx)
	var blocked *audit.SlotBlockedError
	if !errors.As(err, &blocked) || len(blocked.Blockers) != 1 || blocked.Blockers[0].GID != "it's" || !strings.Contains(err.Error(), `"it's"`) {
		t.Errorf("Start returned %v, want a *SlotBlockedError that names the transaction", err)
	}
	db.Exec(t, "ROLLBACK PREPARED 'it''s'")
	faulttest.Poll(t, faulttest.Patience, "start", func() error { return client.Start(context.WithoutCancel(t.Context())) })
	if err := client.Stop(t.Context()); err != nil {
		t.Error(err)
	}
}

func isSQLState(err error, code string) bool {
	var pgErr *pgconn.PgError
	return errors.As(err, &pgErr) && pgErr.Code == code
}
