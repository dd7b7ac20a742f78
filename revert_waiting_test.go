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

// A revert that another one has overtaken, while it waited for its rows, knows it as one
// of ours: nothing is left to do, and nothing is in the way.
func TestRevert_OvertakenByAnotherRevert(t *testing.T) {
	t.Parallel()
	u := newUndo(t, shop)
	before := u.state(t)
	u.request(t, "first", "UPDATE customer SET city = 'Bonn' WHERE id = 1")
	u.Sync(t)
	var transaction uint64
	for c, err := range u.Client.Changes().InRequest("first").All(t.Context()) {
		if err != nil {
			t.Fatal(err)
		}
		transaction = c.TransactionID
	}
	tx := u.holding(t, "SELECT FROM customer WHERE id = 1 FOR UPDATE")
	done := inBackground(func() (*audit.Result, error) { return u.Client.RevertRequest("first").Apply(t.Context()) })
	u.awaitLock(t)
	if _, err := u.Client.RevertTransaction(transaction).ApplyTx(t.Context(), tx); err != nil {
		t.Fatal(err)
	}
	if err := tx.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := <-done; err != nil {
		t.Errorf("the one that waited gives %v", err)
	}
	u.want(t, "after both", before)
}
