package audit_test

import (
	"errors"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/hindsight-go/audit"
	"github.com/hindsight-go/audit/auditpgx"
)

func TestApplyTxJoinsTheCallersTransaction(t *testing.T) {
	t.Parallel()
	for name, wrap := range map[string]func(pgx.Tx) pgx.Tx{
		"Plain":   func(tx pgx.Tx) pgx.Tx { return tx },
		"Stamped": nil,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			u := newUndo(t, shop)
			u.request(t, "first", "UPDATE customer SET city = 'Bonn' WHERE id = 1")
			ctx := audit.WithContext(t.Context(), audit.Context{UserID: "root", RequestID: "admin"})
			conn := u.Connect(t)
			if _, err := conn.Exec(ctx, "SET timezone = 'Asia/Tokyo'; SET datestyle = 'German'; SET search_path = app, public"); err != nil {
				t.Fatal(err)
			}
			begin := func() (pgx.Tx, error) { return conn.Begin(ctx) }
			if wrap == nil {
				begin = func() (pgx.Tx, error) { return auditpgx.WrapConn(conn).Begin(ctx) }
			}
			tx, err := begin()
			if err != nil {
				t.Fatal(err)
			}
			if _, err := tx.Exec(ctx, "UPDATE public.customer SET name = 'before' WHERE id = 2"); err != nil {
				t.Fatal(err)
			}
			result, err := u.Client.RevertRequest("first").ApplyTx(ctx, tx)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := tx.Exec(ctx, "UPDATE public.customer SET name = 'after' WHERE id = 3"); err != nil {
				t.Fatal(err)
			}
			var settings string
			if err := tx.QueryRow(ctx, "SELECT concat_ws(' ', current_setting('timezone'), current_setting('datestyle'), current_setting('search_path'))").Scan(&settings); err != nil {
				t.Fatal(err)
			}
			if settings != "Asia/Tokyo German, DMY app, public" {
				t.Errorf("the settings are %s afterwards", settings)
			}
			if err := tx.Commit(ctx); err != nil {
				t.Fatal(err)
			}
			u.Sync(t)
			reverts, err := u.Client.Changes().Reverts().List(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			if len(reverts) != 1 || reverts[0].PrimaryKey != "1" || reverts[0].Context.RequestID != "admin" || result.TransactionID != reverts[0].TransactionID {
				t.Errorf("of the caller's transaction these count as the revert: %v", reverts)
			}
			all, err := u.Client.Changes().InTransaction(result.TransactionID).Count(t.Context())
			if err != nil || all != 3 {
				t.Errorf("the transaction has %d changes, %v", all, err)
			}
		})
	}
}

func TestApplyTxLeavesTheTransactionUsable(t *testing.T) {
	t.Parallel()
	u := newUndo(t, shop)
	u.request(t, "first", "UPDATE customer SET city = 'Bonn' WHERE id = 1")
	u.request(t, "second", "UPDATE customer SET city = 'Lima' WHERE id = 1")
	err := pgx.BeginFunc(t.Context(), u.conn, func(tx pgx.Tx) error {
		var blocked *audit.ConflictError
		if _, err := u.Client.RevertRequest("first").ApplyTx(t.Context(), tx); !errors.As(err, &blocked) {
			t.Errorf("the revert gives %v", err)
		}
		_, err := tx.Exec(t.Context(), "UPDATE customer SET name = 'still' WHERE id = 1")
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	u.holds(t, "(SELECT name = 'still' AND city = 'Lima' FROM customer WHERE id = 1)")
}

// Whoever commits in spite of an error does not commit half of a revert.
func TestApplyTxWritesAllOrNothing(t *testing.T) {
	t.Parallel()
	for name, h := range map[string]struct {
		later  string
		revert func(audit.Reversal) audit.Reversal
		stale  bool
	}{
		"Rule":    {"CREATE RULE r AS ON DELETE TO p DO INSTEAD NOTHING", func(r audit.Reversal) audit.Reversal { return r }, true},
		"Orphans": {"INSERT INTO c VALUES (2, 1)", func(r audit.Reversal) audit.Reversal { return r.OnConflict(audit.Overwrite).WithoutTriggers() }, false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			u := newUndo(t, "CREATE TABLE p (id int PRIMARY KEY); CREATE TABLE c (id int PRIMARY KEY, p int REFERENCES p ON DELETE CASCADE)")
			u.request(t, "first", "INSERT INTO p VALUES (1)", "INSERT INTO c VALUES (1, 1)")
			u.Exec(t, h.later)
			before := u.state(t)
			err := pgx.BeginFunc(t.Context(), u.conn, func(tx pgx.Tx) error {
				var stale *audit.StaleError
				var refused *audit.ConflictError
				if _, err := h.revert(u.Client.RevertRequest("first")).ApplyTx(t.Context(), tx); errors.As(err, &stale) != h.stale || errors.As(err, &refused) == h.stale {
					t.Errorf("the revert gives %v", err)
				}
				return nil
			})
			if err != nil {
				t.Fatal(err)
			}
			u.want(t, "after the commit", before)
		})
	}
}
