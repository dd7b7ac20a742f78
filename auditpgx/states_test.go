package auditpgx_test

import (
	"context"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/hindsight-go/audit"
	"github.com/hindsight-go/audit/auditpgx"
	"github.com/hindsight-go/audit/audittest"
)

// TestWhereNothingCanBeWritten compares what callers see of sessions that are
// read-only and of transactions that have failed.
func TestWhereNothingCanBeWritten(t *testing.T) {
	t.Parallel()
	db := audittest.NewDatabase(t)
	db.Exec(t, todoSQL)
	for _, mode := range modes {
		pool := newPool(t, db, func(c *pgxpool.Config) {
			c.ConnConfig.DefaultQueryExecMode = mode
			c.ConnConfig.RuntimeParams["default_transaction_read_only"] = "on"
		})
		config := auditpgx.Config{}
		wrapped := config.Wrap(pool)
		forced := auditpgx.AsWrite(by(t.Context(), "ann"))
		try := func(q auditpgx.Querier) (seen []string) {
			note := func(err error) { seen = append(seen, code(err)) }
			for _, w := range writers() {
				note(w.write(forced, q, "c", 1))
				note(pgx.BeginFunc(forced, q, func(tx pgx.Tx) error { return w.write(forced, tx, "c", 1) }))
				tx, err := q.Begin(forced)
				if err != nil {
					t.Fatal(err)
				}
				_, err = tx.Exec(forced, "SELECT 1/0")
				note(err)
				note(w.write(forced, tx, "c", 1))
				note(tx.Rollback(forced))
			}
			for range 2 {
				_, err := q.Exec(forced, "SELECT $1::int", 1)
				note(err)
				note(pgx.BeginFunc(forced, q, func(tx pgx.Tx) error {
					_, err := tx.Exec(forced, "EXPLAIN ANALYZE SELECT $1::int", 1)
					return err
				}))
			}
			return seen
		}
		if diff := cmp.Diff(try(pool), try(wrapped)); diff != "" {
			t.Errorf("%s: %s", mode, diff)
		}
		if n := wrapped.Stats().Lost; n != 0 {
			t.Errorf("%s: %d lost", mode, n)
		}
	}
}

// TestBatchThatBeginsATransaction goes on with the transaction that a batch
// began.
func TestBatchThatBeginsATransaction(t *testing.T) {
	t.Parallel()
	a := audittest.New(t, audit.Config{}, todoSQL)
	for i, mode := range modes {
		pool := newPool(t, a.Database, func(c *pgxpool.Config) { c.ConnConfig.DefaultQueryExecMode = mode })
		db := auditpgx.Wrap(pool)
		for j, first := range []context.Context{by(t.Context(), "ann"), t.Context()} {
			var batch pgx.Batch
			batch.BeginTx(pgx.TxOptions{})
			batch.Queue(insert, "c", 10*i+2*j)
			br := db.SendBatch(first, &batch)
			if _, err := br.Exec(); err != nil {
				t.Fatal(err)
			}
			if tag, err := br.Exec(); err != nil || tag.RowsAffected() != 1 {
				t.Fatal(tag, err)
			}
			tx := br.Tx()
			if err := br.Close(); err != nil {
				t.Fatal(err)
			}
			if _, err := tx.Exec(by(t.Context(), "bob"), insert, "c", 10*i+2*j+1); err != nil {
				t.Fatal(err)
			}
			if err := tx.Commit(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		if n := pool.Stat().AcquiredConns(); n != 0 {
			t.Errorf("%s: %d connections leaked", mode, n)
		}
	}
	a.Sync(t)
	changes, err := a.Client.Changes().OldestFirst().List(t.Context())
	if err != nil || len(changes) != 4*len(modes) {
		t.Fatal(len(changes), err)
	}
	for i, change := range changes {
		// Before the first stamp of a transaction, the first stamp holds.
		if want := []string{"ann", "bob", "bob", "bob"}[i%4]; change.Context.User() != want {
			t.Errorf("change %d is by %q, not by %q", i, change.Context.User(), want)
		}
	}
}
