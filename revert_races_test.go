package audit_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/hindsight-go/audit"
	"github.com/hindsight-go/audit/internal/faulttest"
)

// What others do to the rows of a revert, and to those around them, while it waits
// for their locks is seen when it gets them: nothing of it is lost.
func TestWhileTheRevertWaits(t *testing.T) {
	t.Parallel()
	const schema = `
		CREATE TABLE a (id int PRIMARY KEY, email text UNIQUE, n int); CREATE TABLE b (id int PRIMARY KEY, a int REFERENCES a ON DELETE CASCADE ON UPDATE CASCADE);
		INSERT INTO a VALUES (1, 'ann', 1), (2, 'bob', 2), (3, 'cyd', 3); INSERT INTO b VALUES (1, 1)`
	for name, h := range map[string]struct {
		request, others []string
		// through reports whether the revert may go through nevertheless: the row replaced has
		// the value that the request left, and history may not know yet that it is another.
		through bool
		holds   string
	}{
		"ReferencedMeanwhile":   {[]string{"INSERT INTO a VALUES (4, 'dan', 4)"}, []string{"INSERT INTO b VALUES (2, 4)"}, false, "EXISTS (SELECT FROM b WHERE a = 4)"},
		"DeletedMeanwhile":      {[]string{"UPDATE a SET n = 10 WHERE id = 2"}, []string{"DELETE FROM a WHERE id = 2"}, false, "NOT EXISTS (SELECT FROM a WHERE id = 2)"},
		"DeletedAsWell":         {[]string{"INSERT INTO a VALUES (4, 'dan', 4)", "UPDATE a SET n = 10 WHERE id = 2"}, []string{"DELETE FROM a WHERE id = 4"}, false, "(SELECT n = 10 FROM a WHERE id = 2)"},
		"CreatedAgainMeanwhile": {[]string{"DELETE FROM a WHERE id = 3"}, []string{"INSERT INTO a VALUES (3, 'new', 0)"}, false, "(SELECT email = 'new' FROM a WHERE id = 3)"},
		"ReplacedMeanwhile":     {[]string{"UPDATE a SET n = 10 WHERE id = 3"}, []string{"DELETE FROM a WHERE id = 3", "INSERT INTO a VALUES (3, 'other', 10)"}, true, "(SELECT email = 'other' FROM a WHERE id = 3)"},
		"KeyMovedMeanwhile":     {[]string{"UPDATE a SET n = 10 WHERE id = 3"}, []string{"UPDATE a SET id = 30 WHERE id = 3"}, false, "(SELECT n = 10 FROM a WHERE id = 30)"},
		"KeyMovedAway":          {[]string{"INSERT INTO a VALUES (4, 'dan', 4)"}, []string{"UPDATE a SET id = 40 WHERE id = 4"}, false, "EXISTS (SELECT FROM a WHERE id = 40)"},
		"ValueTakenMeanwhile":   {[]string{"UPDATE a SET email = 'ann2' WHERE id = 1"}, []string{"UPDATE a SET email = 'ann' WHERE id = 2"}, false, "(SELECT email = 'ann' FROM a WHERE id = 2)"},
		"ValueOfADeletedRow":    {[]string{"DELETE FROM a WHERE id = 3"}, []string{"INSERT INTO a VALUES (9, 'cyd', 0)"}, false, "EXISTS (SELECT FROM a WHERE id = 9)"},
		"ParentDeleted":         {[]string{"DELETE FROM b"}, []string{"DELETE FROM a WHERE id = 1"}, false, "NOT EXISTS (SELECT FROM a WHERE id = 1)"},
		"ParentMoved":           {[]string{"DELETE FROM b"}, []string{"UPDATE a SET id = 10 WHERE id = 1"}, false, "EXISTS (SELECT FROM a WHERE id = 10)"},
		"OtherColumn":           {[]string{"UPDATE a SET n = 10 WHERE id = 3"}, []string{"UPDATE a SET email = 'kept' WHERE id = 3"}, true, "(SELECT email = 'kept' AND n = 3 FROM a WHERE id = 3)"},
		"RolledBack":            {[]string{"UPDATE a SET n = 10 WHERE id = 3"}, []string{"UPDATE a SET n = 11 WHERE id = 3", "DELETE FROM a WHERE id = 3"}, true, "(SELECT n = 3 FROM a WHERE id = 3)"},
		"ConstraintAdded":       {[]string{"UPDATE a SET n = 10 WHERE id = 3"}, []string{"ALTER TABLE a ADD CHECK (n > 5) NOT VALID"}, false, "(SELECT n = 10 FROM a WHERE id = 3)"},
		"ColumnDropped":         {[]string{"UPDATE a SET n = 10 WHERE id = 3"}, []string{"ALTER TABLE a DROP n"}, false, "EXISTS (SELECT FROM a WHERE id = 3)"},
		"TableTruncated":        {[]string{"UPDATE a SET n = 10 WHERE id = 3"}, []string{"TRUNCATE a CASCADE"}, false, "NOT EXISTS (SELECT FROM a)"},
		"TableDropped":          {[]string{"UPDATE a SET n = 10 WHERE id = 3"}, []string{"DROP TABLE a CASCADE"}, false, "to_regclass('a') IS NULL"},
	} {
		for _, planned := range []bool{false, true} {
			if planned && !slices.Contains([]string{"ReferencedMeanwhile", "CreatedAgainMeanwhile", "KeyMovedAway", "ValueTakenMeanwhile", "ParentDeleted", "RolledBack"}, name) {
				continue // others are planned in TestStalePlanIsRefused and TestRowChangedWhileTheRevertWaitsForIt
			}
			t.Run(name+map[bool]string{true: "/Planned", false: "/AtOnce"}[planned], func(t *testing.T) {
				t.Parallel()
				u := newUndo(t, schema)
				u.request(t, "first", h.request...)
				revert := u.Client.RevertRequest("first")
				do := func() (*audit.Result, error) { return revert.Apply(t.Context()) }
				if planned {
					plan, err := revert.Plan(t.Context())
					if err != nil {
						t.Fatal(err)
					}
					do = func() (*audit.Result, error) { return plan.Apply(t.Context()) }
				}
				// What is inserted is waited for when it is referenced, or in the way of an
				// insert; in any case the table is held.
				tx := u.holding(t, append([]string{"LOCK TABLE a IN EXCLUSIVE MODE"}, h.others...)...)
				done := inBackground(do)
				u.awaitLock(t)
				end := tx.Commit
				if name == "RolledBack" {
					end = tx.Rollback
				}
				if err := end(t.Context()); err != nil {
					t.Fatal(err)
				}
				err := <-done
				var stale *audit.StaleError
				var blocked *audit.ConflictError
				typed := errors.As(err, &stale) || errors.As(err, &blocked) || refusedByTheSource(err)
				if strings.Contains(h.others[0], "DROP") { // of schema changes the server's own word is enough
					typed = err != nil
				}
				if h.through && err != nil && !typed || !h.through && !typed {
					t.Errorf("the revert gives %v", err)
				}
				if err == nil || !h.through {
					u.holds(t, h.holds)
				}
			})
		}
	}
}

// Capture is behind when Apply gets its lock: what moved the row away is waited for
// and found nevertheless.
func TestKeyMovedAwayBehindCapture(t *testing.T) {
	t.Parallel()
	u := newUndo(t, shop)
	u.request(t, "first", "INSERT INTO customer VALUES (4, 'Dan', NULL)")
	if err := u.Client.Sync(t.Context()); err != nil {
		t.Fatal(err)
	}
	tx := u.holding(t, "UPDATE customer SET id = 40 WHERE id = 4")
	done := inBackground(func() (*audit.Result, error) { return u.Client.RevertRequest("first").Apply(t.Context()) })
	u.awaitLock(t)
	if err := u.Client.Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	conn := u.Connect(t)
	var stopped time.Time
	if err := conn.QueryRow(t.Context(), "SELECT clock_timestamp()").Scan(&stopped); err != nil {
		t.Fatal(err)
	}
	if err := tx.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	u.await(t, "SELECT EXISTS (SELECT FROM pg_stat_activity WHERE datname = current_database() AND query LIKE '%pg_logical_emit_message(true, $1, %' AND query_start > $1)", stopped)
	if err := u.Client.Start(context.WithoutCancel(t.Context())); err != nil {
		t.Fatal(err)
	}
	var blocked *audit.ConflictError
	if err := <-done; !errors.As(err, &blocked) || len(blocked.Conflicts) != 1 || blocked.Conflicts[0].Kind != audit.RowGone {
		t.Errorf("the revert gives %v", err)
	}
	u.holds(t, "EXISTS (SELECT FROM customer WHERE id = 40)")
}

// Of two that revert the same at once, one does it, and the other says so.
func TestTheSameRevertTwiceAtOnce(t *testing.T) {
	t.Parallel()
	for name, h := range map[string]struct {
		revert func(*undo, int) audit.Reversal
		tx     bool
	}{
		"Unit":     {func(u *undo, _ int) audit.Reversal { return u.Client.RevertRequest("first") }, false},
		"UnitInTx": {func(u *undo, _ int) audit.Reversal { return u.Client.RevertRequest("first") }, true},
		"Key": {func(u *undo, i int) audit.Reversal {
			return u.Client.RevertRequest([]string{"first", "second"}[i]).IdempotencyKey("k")
		}, false},
		"KeyInTx": {func(u *undo, i int) audit.Reversal {
			return u.Client.RevertRequest([]string{"first", "second"}[i]).IdempotencyKey("k")
		}, true},
		"UnitThenWithAKey": {func(u *undo, i int) audit.Reversal {
			return u.Client.RevertRequest("first").IdempotencyKey(fmt.Sprint("k", i))
		}, false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			u := newUndo(t, shop)
			u.request(t, "first", "UPDATE customer SET city = 'Bonn' WHERE id < 3")
			u.request(t, "second", "UPDATE customer SET city = 'Kyiv' WHERE id = 3")
			// Both have begun before either can go on.
			tx := u.holding(t, "SELECT FROM customer FOR UPDATE")
			var results [2]*audit.Result
			var done []<-chan error
			for i := range results {
				done = append(done, inBackground(func() (_ *audit.Result, err error) {
					if !h.tx {
						results[i], err = h.revert(u, i).Apply(t.Context())
						return nil, err
					}
					return nil, pgx.BeginFunc(t.Context(), u.Connect(t), func(tx pgx.Tx) error {
						results[i], err = h.revert(u, i).ApplyTx(t.Context(), tx)
						return err
					})
				}))
			}
			u.awaitWaiting(t, 2)
			if err := tx.Commit(t.Context()); err != nil {
				t.Fatal(err)
			}
			for _, d := range done {
				if err := <-d; err != nil {
					t.Fatal(err)
				}
			}
			i := slices.IndexFunc(results[:], func(r *audit.Result) bool { return r.Already == nil })
			if i < 0 || results[1-i].Already == nil || results[1-i].Already.ID != results[i].ID || results[i].ID == "" || results[1-i].ID != "" {
				t.Errorf("one did %+v, the other %+v", results[0], results[1])
			}
		})
	}
}

// awaitWaiting waits until so many sessions wait for locks.
func (u *undo) awaitWaiting(t *testing.T, n int) {
	t.Helper()
	conn := u.Connect(t)
	faulttest.Poll(t, faulttest.Patience, "sessions that wait for locks", func() error {
		var waiting int
		if err := conn.QueryRow(t.Context(), "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'").Scan(&waiting); err != nil {
			return err
		}
		if waiting != n {
			return fmt.Errorf("%d sessions wait, want %d", waiting, n)
		}
		return nil
	})
}

// Reverts whose rows overlap, in another order: each of them happens whole or not
// at all, and a deadlock is told as what it is.
func TestOverlappingRevertsAtOnce(t *testing.T) {
	t.Parallel()
	u := newUndo(t, "CREATE TABLE a (id int PRIMARY KEY, x int, y int, z int); CREATE TABLE b (id int PRIMARY KEY, x int, y int, z int); INSERT INTO a SELECT i, 0, 0, 0 FROM generate_series(1, 200) i; INSERT INTO b TABLE a").direct(0)
	before := u.state(t)
	for i, column := range []string{"x", "y", "z"} {
		tables := []string{"a", "b"}
		if i%2 == 1 {
			slices.Reverse(tables)
		}
		for _, table := range tables {
			u.request(t, column, fmt.Sprintf("UPDATE %s SET %s = 1", table, column))
		}
	}
	for range 5 {
		var done []<-chan error
		for _, column := range []string{"x", "y", "z"} {
			done = append(done, inBackground(func() (*audit.Result, error) { return u.Client.RevertRequest(column).Apply(t.Context()) }))
		}
		again := false
		for _, d := range done {
			var pg *pgconn.PgError
			if err := <-d; errors.As(err, &pg) && pg.Code == "40P01" {
				again = true
			} else if err != nil {
				t.Fatal(err)
			}
		}
		if !again {
			break
		}
	}
	u.want(t, "after the reverts", before)
}

// Whatever ends a revert in its midst, nothing of it is written, its locks are
// given back and its session is gone.
func TestRevertThatIsCutOff(t *testing.T) {
	t.Parallel()
	for name, cut := range map[string]func(*testing.T, *undo, context.CancelFunc){
		"Cancelled": func(_ *testing.T, _ *undo, cancel context.CancelFunc) { cancel() },
		"Terminated": func(t *testing.T, u *undo, _ context.CancelFunc) {
			t.Helper()
			u.Exec(t, "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'")
		},
		"StatementCancelled": func(t *testing.T, u *undo, _ context.CancelFunc) {
			t.Helper()
			u.Exec(t, "SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'")
		},
	} {
		// The first statements are done when the revert waits in the second table.
		for point, lock := range map[string]string{
			"WhileItLocks":  "SELECT FROM orders FOR UPDATE",
			"WhileItWrites": "SELECT pg_advisory_xact_lock(77)",
		} {
			t.Run(name+point, func(t *testing.T) {
				t.Parallel()
				u := newUndo(t, shop, `CREATE FUNCTION wait() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM pg_advisory_xact_lock(77); RETURN NULL; END $$;
					CREATE TRIGGER wait AFTER UPDATE ON orders EXECUTE FUNCTION wait()`)
				u.request(t, "first", "UPDATE customer SET city = 'Bonn'", "UPDATE orders SET note = 'x'")
				now := u.state(t)
				tx := u.holding(t, lock)
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				done := inBackground(func() (*audit.Result, error) { return u.Client.RevertRequest("first").Apply(ctx) })
				u.awaitWaiting(t, 1)
				cut(t, u, cancel)
				err := <-done
				var pg *pgconn.PgError
				if err == nil || name == "Cancelled" && !errors.Is(err, context.Canceled) || name != "Cancelled" && !errors.As(err, &pg) {
					t.Errorf("the revert gives %v", err)
				}
				u.awaitWaiting(t, 0)
				if err := tx.Commit(t.Context()); err != nil {
					t.Fatal(err)
				}
				u.want(t, "something was written", now)
				u.Exec(t, "SET lock_timeout = '10s'; BEGIN; LOCK TABLE customer, orders; COMMIT; RESET lock_timeout")
				if result := apply(t, u.Client.RevertRequest("first")); result.Already != nil {
					t.Error("it counts as reverted")
				}
			})
		}
	}
}

// ApplyTx in whatever transaction and protocol the caller has.
func TestApplyTxInAnyTransaction(t *testing.T) {
	t.Parallel()
	for name, h := range map[string]struct {
		options pgx.TxOptions
		mode    pgx.QueryExecMode
		first   string
		code    string // of the error that it gives
	}{
		"RepeatableRead": {options: pgx.TxOptions{IsoLevel: pgx.RepeatableRead}},
		"Serializable":   {options: pgx.TxOptions{IsoLevel: pgx.Serializable}},
		"ReadOnly":       {options: pgx.TxOptions{AccessMode: pgx.ReadOnly}, code: "25006"},
		"Aborted":        {first: "SELECT 1 / 0", code: "25P02"},
		"SimpleProtocol": {mode: pgx.QueryExecModeSimpleProtocol},
		"Exec":           {mode: pgx.QueryExecModeExec},
		"CacheDescribe":  {mode: pgx.QueryExecModeCacheDescribe},
		"DescribeExec":   {mode: pgx.QueryExecModeDescribeExec},
		"BehindASnapshot": {
			options: pgx.TxOptions{IsoLevel: pgx.RepeatableRead}, first: "SELECT count(*) FROM public.customer", code: "40001",
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			u := newUndo(t, shop, "CREATE TABLE odd (id numeric(9,2), v text[], w jsonb, x bytea, y timestamptz, z float8, PRIMARY KEY (id, y)); INSERT INTO odd VALUES (1.50, '{a,NULL,\"b,\"}', '{\"a\": 1}', '\\x00ff', '2024-01-01', 'NaN')")
			before := u.state(t)
			u.request(t, "first", "UPDATE customer SET city = 'Bonn'", "DELETE FROM orders WHERE id = 10", "INSERT INTO customer VALUES (4, '', NULL)", "UPDATE odd SET v = NULL, w = NULL, x = NULL, z = 0, id = 2", "INSERT INTO odd VALUES (7, '{}', '[null]', '', 'infinity', '-0')")
			config, err := pgxpool.ParseConfig(u.URL())
			if err != nil {
				t.Fatal(err)
			}
			if h.mode != 0 {
				config.ConnConfig.DefaultQueryExecMode = h.mode
			}
			pool, err := pgxpool.NewWithConfig(t.Context(), config)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(pool.Close)
			err = pgx.BeginTxFunc(t.Context(), pool, h.options, func(tx pgx.Tx) error {
				if h.first != "" {
					_, _ = tx.Exec(t.Context(), h.first) // aborts the transaction, or takes a snapshot
				}
				if name == "BehindASnapshot" {
					u.request(t, "other", "UPDATE customer SET name = 'later' WHERE id = 1")
				}
				_, err := u.Client.RevertRequest("first").ApplyTx(t.Context(), tx)
				return err
			})
			var pg *pgconn.PgError
			switch {
			case h.code == "" && err != nil:
				t.Fatal(errors.Join(err, errors.Unwrap(err)))
			case h.code == "":
				u.want(t, "after the revert", before)
			case !errors.As(err, &pg) || pg.Code != h.code:
				t.Errorf("the revert gives %v", err)
			}
		})
	}
}
