package audit_test

import (
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/hindsight-go/audit"
)

// holding runs statements in a transaction of another session that stays open.
func (u *undo) holding(t *testing.T, statements ...string) pgx.Tx {
	t.Helper()
	tx, err := u.Connect(t).Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, sql := range statements {
		if _, err := tx.Exec(t.Context(), sql); err != nil {
			t.Fatalf("%s: %v", sql, err)
		}
	}
	return tx
}

// inBackground begins something that will have to wait.
func inBackground(do func() (*audit.Result, error)) <-chan error {
	done := make(chan error, 1)
	go func() {
		_, err := do()
		done <- err
	}()
	return done
}

// awaitLock waits until somebody waits for a lock.
func (u *undo) awaitLock(t *testing.T) {
	t.Helper()
	u.await(t, "SELECT EXISTS (SELECT FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock')")
}

// await waits until a query says true.
func (u *undo) await(t *testing.T, sql string, args ...any) {
	t.Helper()
	conn := u.Connect(t)
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(30 * time.Second); ; <-tick.C {
		var so bool
		if err := conn.QueryRow(t.Context(), sql, args...).Scan(&so); err != nil {
			t.Fatal(err)
		}
		if so {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("this does not become true: %s", sql)
		}
	}
}
