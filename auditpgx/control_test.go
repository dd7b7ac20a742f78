package auditpgx_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5"

	"github.com/hindsight-go/audit"
	"github.com/hindsight-go/audit/auditpgx"
	"github.com/hindsight-go/audit/audittest"
)

// isolations are texts that set up a transaction and write in it. Each tells the
// isolation level that it wrote under as the task of its row.
var isolations = []struct {
	name, sql string
	stamped   bool
}{
	{"SET TRANSACTION", "BEGIN; SET TRANSACTION ISOLATION LEVEL SERIALIZABLE; INSERT INTO todo VALUES ('%s', 1, current_setting('transaction_isolation')); COMMIT", true},
	{"BEGIN ISOLATION LEVEL", "BEGIN ISOLATION LEVEL SERIALIZABLE; INSERT INTO todo VALUES ('%s', 1, current_setting('transaction_isolation')); COMMIT", true},
	{"SET LOCAL", "BEGIN; SET LOCAL transaction_isolation = 'serializable'; INSERT INTO todo VALUES ('%s', 1, current_setting('transaction_isolation')); COMMIT", true},
	{"START TRANSACTION and LOCK", "START TRANSACTION ISOLATION LEVEL SERIALIZABLE; LOCK TABLE todo; INSERT INTO todo VALUES ('%s', 1, current_setting('transaction_isolation')); COMMIT", true},
	{"no BEGIN", "SET TRANSACTION ISOLATION LEVEL SERIALIZABLE; INSERT INTO todo VALUES ('%s', 1, current_setting('transaction_isolation'))", true},
	{"behind an end", "COMMIT; BEGIN ISOLATION LEVEL SERIALIZABLE; INSERT INTO todo VALUES ('%s', 1, current_setting('transaction_isolation')); COMMIT", false},
}

// TestIsolation_SetInTheTextOfAWrite runs texts that set up their transaction.
func TestIsolation_SetInTheTextOfAWrite(t *testing.T) {
	t.Parallel()
	a := audittest.New(t, audit.Config{}, todoSQL)
	want := map[string]string{}
	for _, mode := range modes {
		for _, as := range []string{"", "as a write"} {
			ctx := by(t.Context(), "ann")
			if as != "" {
				ctx = auditpgx.AsWrite(ctx)
			}
			for _, i := range isolations {
				cell := fmt.Sprint(mode, " ", i.name, " ", as)
				raw := connectMode(t, a.Database, mode, nil)
				conn := auditpgx.Config{Logger: slog.New(slog.DiscardHandler)}.WrapConn(raw)
				if _, err := conn.Exec(ctx, fmt.Sprintf(i.sql, cell)); err != nil {
					t.Errorf("%s: %v", cell, err)
				}
				if status := raw.PgConn().TxStatus(); status != 'I' {
					t.Errorf("%s: the connection is left in %c", cell, status)
				}
				want[cell] = "serializable by ann"
				stats := auditpgx.Stats{Stamped: 1}
				if !i.stamped {
					want[cell], stats = "serializable by ", auditpgx.Stats{Lost: 1}
				}
				if diff := cmp.Diff(stats, conn.Stats()); diff != "" {
					t.Errorf("%s: %s", cell, diff)
				}
				_ = raw.Close(ctx)
			}
		}
	}
	if diff := cmp.Diff(want, tasksBy(t, a)); diff != "" {
		t.Error(diff)
	}
}

// tasksBy returns the task of each cell, and who wrote it.
func tasksBy(t *testing.T, a *audittest.Audited) map[string]string {
	t.Helper()
	a.Sync(t)
	got := map[string]string{}
	for change, err := range a.Client.Changes().ForTable("todo").All(t.Context()) {
		if err != nil {
			t.Fatal(err)
		}
		var row struct{ Cell, Task string }
		if err := change.DecodeAfter(&row); err != nil {
			t.Fatal(err)
		}
		got[row.Cell] = row.Task + " by " + change.Context.User()
	}
	return got
}

// TestAsWrite_LeavesTransactionControlAlone runs what controls transactions and
// sessions as writes.
func TestAsWrite_LeavesTransactionControlAlone(t *testing.T) {
	t.Parallel()
	a := audittest.New(t, audit.Config{}, todoSQL)
	want := map[string]string{}
	for _, mode := range modes {
		ctx := auditpgx.AsWrite(by(t.Context(), "ann"))
		raw := connectMode(t, a.Database, mode, nil)
		conn := auditpgx.Config{}.WrapConn(raw)
		const put = "INSERT INTO todo VALUES ($1, 1, current_setting('transaction_isolation'))"
		ways := map[string]func(cell string) error{
			"a statement of its own": func(cell string) error {
				return pgx.BeginFunc(ctx, conn, func(tx pgx.Tx) error {
					_, err := tx.Exec(ctx, "SET TRANSACTION ISOLATION LEVEL SERIALIZABLE")
					_, err2 := tx.Exec(ctx, put, cell)
					return errors.Join(err, err2)
				})
			},
			"behind LOCK": func(cell string) error {
				return pgx.BeginFunc(ctx, conn, func(tx pgx.Tx) error {
					_, err := tx.Exec(ctx, "LOCK TABLE todo IN ROW EXCLUSIVE MODE")
					_, err2 := tx.Exec(ctx, "SET TRANSACTION ISOLATION LEVEL SERIALIZABLE")
					_, err3 := tx.Exec(ctx, put, cell)
					return errors.Join(err, err2, err3)
				})
			},
			"by hand": func(cell string) error {
				for _, sql := range []string{"BEGIN", "SET TRANSACTION ISOLATION LEVEL SERIALIZABLE", "", "INSERT INTO todo VALUES ('" + cell + "', 1, current_setting('transaction_isolation'))", "COMMIT"} {
					if _, err := conn.Exec(ctx, sql); err != nil {
						return err
					}
				}
				return nil
			},
			"a batch": func(cell string) error {
				var b pgx.Batch
				b.BeginTx(pgx.TxOptions{IsoLevel: pgx.Serializable})
				b.Queue(put, cell)
				br := conn.SendBatch(ctx, &b)
				tx := br.Tx()
				if err := br.Close(); err != nil {
					return err
				}
				return tx.Commit(ctx)
			},
		}
		for name, write := range ways {
			cell := fmt.Sprint(mode, " ", name)
			if err := write(cell); err != nil {
				t.Errorf("%s: %v", cell, err)
				_, _ = raw.Exec(ctx, "ROLLBACK")
			}
			want[cell] = "serializable by ann"
		}
		before := conn.Stats()
		for _, sql := range []string{"", ";", "-- nothing", "DISCARD ALL", "SET work_mem = '4MB'", "SHOW work_mem", "COMMIT"} {
			bare, bareErr := raw.Exec(ctx, sql)
			tag, err := conn.Exec(ctx, sql)
			if outcome(tag, err) != outcome(bare, bareErr) {
				t.Errorf("%s, %q: %s, bare %s", mode, sql, outcome(tag, err), outcome(bare, bareErr))
			}
		}
		if diff := cmp.Diff(before, conn.Stats()); diff != "" {
			t.Errorf("%s: %s", mode, diff)
		}
		_ = raw.Close(ctx)
	}
	if diff := cmp.Diff(want, tasksBy(t, a)); diff != "" {
		t.Error(diff)
	}
}

// TestIsolation_RefusedStamp takes the right to stamp away from texts that set up
// their transaction.
func TestIsolation_RefusedStamp(t *testing.T) {
	t.Parallel()
	db := newRevocable(t)
	for _, mode := range modes {
		q := revoked(t, db, mode)
		for _, i := range isolations {
			cell := fmt.Sprint(mode, " ", i.name)
			before := q.Stats()
			if _, err := q.Exec(by(t.Context(), "ann"), fmt.Sprintf(i.sql, cell)); err != nil {
				t.Errorf("%s: %v", cell, err)
			}
			if stats := q.Stats(); stats.Lost != before.Lost+1 || stats.Stamped != before.Stamped {
				t.Errorf("%s: %+v", cell, stats)
			}
			if got := audittest.Value[string](t, db.Database, "SELECT string_agg(task, ' ') FROM todo WHERE cell = $1", cell); got != "serializable" {
				t.Errorf("%s: %s", cell, got)
			}
		}
		q.Close()
	}
}

// TestIsolation_SerializableBehindLock looks at what a transaction sees that locks a
// table before its first snapshot.
func TestIsolation_SerializableBehindLock(t *testing.T) {
	t.Parallel()
	db := audittest.NewDatabase(t)
	db.Exec(t, "CREATE TABLE counter (n int); INSERT INTO counter VALUES (0)")
	ctx := by(t.Context(), "ann")
	const each, many = 25, 4
	errs := make(chan error, many)
	for range many {
		conn := auditpgx.WrapConn(connectMode(t, db, pgx.QueryExecModeCacheStatement, nil))
		go func() {
			errs <- func(ctx context.Context) error {
				for range each {
					// A snapshot from before the lock would not be able to update.
					if _, err := conn.Exec(ctx, "BEGIN ISOLATION LEVEL REPEATABLE READ; LOCK TABLE counter; UPDATE counter SET n = n + 1; COMMIT"); err != nil {
						return err
					}
				}
				return nil
			}(ctx)
		}()
	}
	for range many {
		if err := <-errs; err != nil {
			t.Error(err)
		}
	}
	if n := audittest.Value[int](t, db, "SELECT n FROM counter"); n != each*many {
		t.Errorf("%d, want %d", n, each*many)
	}
}
