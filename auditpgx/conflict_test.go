package auditpgx_test

import (
	"context"
	"errors"
	"fmt"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/hindsight-go/audit/auditpgx"
	"github.com/hindsight-go/audit/audittest"
	"github.com/hindsight-go/audit/internal/faulttest"
)

// beginner is a pool, of pgx or ours.
type beginner interface {
	BeginTx(ctx context.Context, options pgx.TxOptions) (pgx.Tx, error)
}

// pair begins two transactions and runs a statement in both.
func pair(ctx context.Context, t *testing.T, q beginner, level pgx.TxIsoLevel, first string) (one, two pgx.Tx) {
	t.Helper()
	for _, tx := range []*pgx.Tx{&one, &two} {
		var err error
		if *tx, err = q.BeginTx(ctx, pgx.TxOptions{IsoLevel: level}); err != nil {
			t.Fatal(err)
		}
		if first == "" {
			continue
		}
		if _, err := (*tx).Exec(ctx, first); err != nil {
			t.Fatal(err)
		}
	}
	return one, two
}

// lockWaiters counts the sessions of the database that wait for a lock.
const lockWaiters = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"

// conflicts are ways in which two transactions get in each other's way. Each
// returns the SQLSTATEs that the caller sees.
var conflicts = map[string]func(ctx context.Context, t *testing.T, db *audittest.Database, q beginner) []string{
	"deadlock": func(ctx context.Context, t *testing.T, db *audittest.Database, q beginner) []string {
		t.Helper()
		// The second one looks for deadlocks at once, the first one never.
		one, two := pair(ctx, t, q, "", "")
		_, err := one.Exec(ctx, "SET LOCAL deadlock_timeout = '1h'")
		_, err2 := two.Exec(ctx, "SET LOCAL deadlock_timeout = '1ms'")
		_, err3 := one.Exec(ctx, "UPDATE todo SET task = 'a' WHERE id = $1", 1)
		_, err4 := two.Exec(ctx, "UPDATE todo SET task = 'b' WHERE id = $1", 2)
		if err := errors.Join(err, err2, err3, err4); err != nil {
			t.Fatal(err)
		}
		waits := make(chan error, 1)
		go func() {
			_, err := one.Exec(by(ctx, "bob"), "UPDATE todo SET task = 'a' WHERE id = $1", 2)
			waits <- err
		}()
		faulttest.Poll(t, faulttest.Patience, "a session that waits", func() error {
			if n := audittest.Value[int](t, db, lockWaiters); n != 1 {
				return fmt.Errorf("%d do", n)
			}
			return nil
		})
		_, err = two.Exec(by(ctx, "bob"), "UPDATE todo SET task = 'b' WHERE id = $1", 1)
		seen := []string{code(err), "rollback " + code(two.Rollback(ctx))}
		return append(seen, code(<-waits), "commit "+code(one.Commit(ctx)))
	},
	"update of a changed row": func(ctx context.Context, t *testing.T, _ *audittest.Database, q beginner) []string {
		t.Helper()
		one, two := pair(ctx, t, q, pgx.RepeatableRead, "SELECT count(*) FROM todo")
		_, err := one.Exec(ctx, "UPDATE todo SET task = 'a' WHERE id = $1", 1)
		seen := []string{code(err), code(one.Commit(ctx))}
		_, err = two.Exec(ctx, "UPDATE todo SET task = 'b' WHERE id = $1", 1)
		return append(seen, code(err), code(two.Rollback(ctx)))
	},
	"write skew": func(ctx context.Context, t *testing.T, _ *audittest.Database, q beginner) []string {
		t.Helper()
		one, two := pair(ctx, t, q, pgx.Serializable, "SELECT sum(id) FROM todo")
		_, err := one.Exec(ctx, "UPDATE todo SET task = 'a' WHERE id = $1", 1)
		_, err2 := two.Exec(ctx, "UPDATE todo SET task = 'b' WHERE id = $1", 2)
		return []string{code(err), code(err2), code(one.Commit(ctx)), code(two.Commit(ctx))}
	},
	"write skew found by a statement": func(ctx context.Context, t *testing.T, _ *audittest.Database, q beginner) []string {
		t.Helper()
		one, two := pair(ctx, t, q, pgx.Serializable, "SELECT sum(id) FROM todo")
		_, err := one.Exec(ctx, "UPDATE todo SET task = 'a' WHERE id = $1", 1)
		seen := []string{code(err), code(one.Commit(ctx))}
		var id int
		err = two.QueryRow(ctx, "UPDATE todo SET task = 'b' WHERE id = $1 RETURNING id", 2).Scan(&id)
		return append(seen, code(err), code(two.Commit(ctx)))
	},
	"lock timeout": func(ctx context.Context, t *testing.T, _ *audittest.Database, q beginner) []string {
		t.Helper()
		one, two := pair(ctx, t, q, "", "SET LOCAL lock_timeout = '10ms'")
		_, err := one.Exec(ctx, "UPDATE todo SET task = 'a' WHERE id = $1", 1)
		_, err2 := two.Exec(ctx, "UPDATE todo SET task = 'b' WHERE id = $1", 1)
		return []string{code(err), code(err2), code(two.Rollback(ctx)), code(one.Commit(ctx))}
	},
	"statement timeout": func(ctx context.Context, t *testing.T, _ *audittest.Database, q beginner) []string {
		t.Helper()
		one, two := pair(ctx, t, q, "", "SET LOCAL statement_timeout = '30ms'")
		_, err := two.Exec(ctx, "UPDATE todo SET task = 'b' FROM pg_sleep(60) WHERE id = $1", 1)
		_, err2 := one.Exec(ctx, "UPDATE todo SET task = 'a' WHERE id = $1", 1)
		return []string{code(err), code(two.Rollback(ctx)), code(err2), code(one.Commit(ctx))}
	},
	"deferred constraint": func(ctx context.Context, t *testing.T, _ *audittest.Database, q beginner) []string {
		t.Helper()
		one, two := pair(ctx, t, q, "", "")
		_, err := one.Exec(ctx, "INSERT INTO child VALUES ($1)", 7)
		_, err2 := two.Exec(ctx, "INSERT INTO child VALUES (8)")
		return []string{code(err), code(err2), code(one.Commit(ctx)), code(two.Commit(ctx))}
	},
}

// TestConflictsSurfaceUnchanged compares what the caller sees of conflicts with
// what a caller of pgx sees, and looks that the same can be done again.
func TestConflictsSurfaceUnchanged(t *testing.T) {
	t.Parallel()
	for name, run := range conflicts {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			db := audittest.NewDatabase(t)
			db.Exec(t, todoSQL+`;
				INSERT INTO todo VALUES ('c', 1), ('c', 2);
				CREATE TABLE parent (id int PRIMARY KEY);
				CREATE TABLE child (id int REFERENCES parent DEFERRABLE INITIALLY DEFERRED)`)
			ctx := by(t.Context(), "ann")
			for _, mode := range modes {
				pool := newPool(t, db, func(c *pgxpool.Config) {
					c.MaxConns = 2
					c.ConnConfig.DefaultQueryExecMode = mode
				})
				config := auditpgx.Config{}
				wrapped := config.Wrap(pool)
				want := run(ctx, t, db, pool)
				for range 2 {
					if diff := cmp.Diff(want, run(ctx, t, db, wrapped)); diff != "" {
						t.Errorf("%s: %s", mode, diff)
					}
				}
				failed := false
				for _, state := range want {
					failed = failed || len(state) >= 5
				}
				if stats := wrapped.Stats(); !failed || stats.Lost != 0 || stats.Stamped == 0 {
					t.Errorf("%s: %+v, %q", mode, stats, want)
				}
				pool.Close()
			}
		})
	}
}

// TestCommitOfAFailedTransactionIsARollback commits what cannot be committed.
func TestCommitOfAFailedTransactionIsARollback(t *testing.T) {
	t.Parallel()
	db := audittest.NewDatabase(t)
	db.Exec(t, todoSQL)
	ctx := by(t.Context(), "ann")
	for i, mode := range modes {
		q := auditpgx.Wrap(newPool(t, db, func(c *pgxpool.Config) { c.ConnConfig.DefaultQueryExecMode = mode }))
		tx, err := q.Begin(ctx)
		if err != nil {
			t.Fatal(err)
		}
		_, err = tx.Exec(ctx, insert, "c", i)
		_, failed := tx.Exec(ctx, insert, "c", i)
		_, aborted := tx.Exec(by(ctx, "bob"), insert, "c", i+100)
		if err != nil || code(failed) != "23505" || code(aborted) != "25P02" {
			t.Errorf("%s: %v, %v, %v", mode, err, failed, aborted)
		}
		if err := tx.Commit(ctx); !errors.Is(err, pgx.ErrTxCommitRollback) {
			t.Errorf("%s: commit: %v", mode, err)
		}
	}
	if n := audittest.Value[int](t, db, "SELECT count(*) FROM todo"); n != 0 {
		t.Errorf("%d rows", n)
	}
}
