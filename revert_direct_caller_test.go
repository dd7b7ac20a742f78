package audit_test

import (
	"errors"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/hindsight-go/audit"
)

// A direct attempt that came to nothing leaves no subtransaction in the caller's
// transaction: some commands do not work in one, and the caller's own savepoints
// stay what they are.
func TestDirectUndoLeavesNoSavepoint(t *testing.T) {
	t.Parallel()
	u := newUndo(t, shop)
	audit.DirectRows(u.Client, 1)
	u.request(t, "work", "UPDATE customer SET city = 'Bonn'")
	u.request(t, "later", "UPDATE customer SET city = 'Kyiv' WHERE id = 1")
	now := u.state(t)
	err := pgx.BeginFunc(t.Context(), u.Connect(t), func(tx pgx.Tx) error {
		if _, err := tx.Exec(t.Context(), "SAVEPOINT sp_1"); err != nil {
			return err
		}
		if _, err := tx.Exec(t.Context(), "UPDATE orders SET note = 'mine'"); err != nil {
			return err
		}
		var blocked *audit.ConflictError
		if _, err := u.Client.RevertRequest("work").ApplyTx(t.Context(), tx); !errors.As(err, &blocked) {
			t.Errorf("the revert gives %v", err)
		}
		_, err := tx.Exec(t.Context(), "ROLLBACK TO SAVEPOINT sp_1; RELEASE SAVEPOINT sp_1")
		if err == nil {
			_, err = tx.Exec(t.Context(), "SELECT pg_catalog.pg_export_snapshot()")
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
	u.want(t, "the caller's savepoint did not take its work back", now)
	u.Check(t)
}
