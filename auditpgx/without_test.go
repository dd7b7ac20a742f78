package auditpgx_test

import (
	"bytes"
	"context"
	"log/slog"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/hindsight-go/audit"
	"github.com/hindsight-go/audit/auditpgx"
	"github.com/hindsight-go/audit/audittest"
)

// TestContext_OfAProgramThatPassesNone writes in all ways with a ctx that has no
// context, through a Config that tells one.
func TestContext_OfAProgramThatPassesNone(t *testing.T) {
	t.Parallel()
	a := audittest.New(t, audit.Config{}, todoSQL)
	want := map[string]string{}
	n := 0
	for _, mode := range modes {
		asked := 0
		q := auditpgx.Config{Context: func() (audit.Context, bool) {
			asked++
			return audit.Context{UserID: "asked"}, true
		}}.WrapConn(connectMode(t, a.Database, mode, nil))
		put := func(ctx context.Context, q auditpgx.Querier, w writer, user string) {
			t.Helper()
			n++
			cell := mode.String() + " " + w.name + " " + user + " " + string(rune('a'+n%26))
			if err := w.write(ctx, q, cell, n); err != nil {
				t.Errorf("%s: %v", cell, err)
			}
			want[cell] = user
		}
		for _, w := range writers() {
			put(t.Context(), q, w, "asked")
			put(by(t.Context(), "ann"), q, w, "ann")
			err := pgx.BeginFunc(t.Context(), q, func(tx pgx.Tx) error {
				put(t.Context(), tx, w, "asked")
				return nil
			})
			if err != nil {
				t.Error(err)
			}
		}
		before := asked
		var one int
		if err := q.QueryRow(t.Context(), "SELECT 1").Scan(&one); err != nil || asked != before {
			t.Errorf("asked for a read: %v", err)
		}
		if stats := q.Stats(); stats.Lost != 0 || stats.Without != 0 {
			t.Errorf("%s: %+v", mode, stats)
		}
	}
	a.Sync(t)
	got := map[string]string{}
	for change, err := range a.Client.Changes().All(t.Context()) {
		if err != nil {
			t.Fatal(err)
		}
		got[change.KeyParts()[0]] = change.Context.User()
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

// worker does one item at a time.
type worker struct{ item atomic.Pointer[audit.Context] }

func (w *worker) Context() (audit.Context, bool) {
	if item := w.item.Load(); item != nil {
		return *item, true
	}
	return audit.Context{}, false
}

// TestContext_OfAWorker asks the worker whose item it is at.
func TestContext_OfAWorker(t *testing.T) {
	t.Parallel()
	a := audittest.New(t, audit.Config{}, todoSQL)
	pool, err := pgxpool.New(t.Context(), a.URL())
	if err != nil {
		t.Fatal(err)
	}
	defer pool.Close()
	current := &worker{}
	db := auditpgx.Config{Context: current.Context}.Wrap(pool)
	for i, user := range []string{"ann", "", "bob"} {
		current.item.Store(nil)
		if user != "" {
			current.item.Store(&audit.Context{UserID: user})
		}
		if _, err := db.Exec(context.Background(), insert, user, i); err != nil {
			t.Fatal(err)
		}
	}
	a.Sync(t)
	for change, err := range a.Client.Changes().All(t.Context()) {
		if err != nil {
			t.Fatal(err)
		}
		if user := change.KeyParts()[0]; change.Context.User() != user {
			t.Errorf("the item of %q is by %q", user, change.Context.User())
		}
	}
	if stats := db.Stats(); stats.Without != 1 {
		t.Errorf("%+v, want one write without a context", stats)
	}
}

// TestWithout_WritesAreCountedAndTold writes with a ctx that has no context.
func TestWithout_WritesAreCountedAndTold(t *testing.T) {
	t.Parallel()
	db := audittest.NewDatabase(t)
	db.Exec(t, todoSQL)
	var log bytes.Buffer
	config := auditpgx.Config{
		Logger:  slog.New(slog.NewTextHandler(&log, nil)),
		Context: func() (audit.Context, bool) { return audit.Context{}, false },
	}
	q := config.Wrap(newPool(t, db, nil))
	var writes uint64
	for _, w := range writers() {
		if err := w.write(t.Context(), q, w.name, 1); err != nil {
			t.Fatal(err)
		}
		writes++
	}
	// Of a transaction, what no stamp covers.
	err := pgx.BeginFunc(t.Context(), q, func(tx pgx.Tx) error {
		for i, ctx := range []context.Context{t.Context(), by(t.Context(), "ann"), t.Context()} {
			if _, err := tx.Exec(ctx, insert, "covered", i); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	writes++
	for _, sql := range []string{"SELECT 1", "BEGIN; COMMIT", "SET work_mem = '4MB'", ""} {
		if _, err := q.Exec(t.Context(), sql); err != nil {
			t.Error(err)
		}
	}
	if diff := cmp.Diff(auditpgx.Stats{Stamped: 1, Without: writes}, q.Stats()); diff != "" {
		t.Error(diff)
	}
	if n := strings.Count(log.String(), "without an audit context"); n != 1 {
		t.Errorf("told %d times: %s", n, log.String())
	}
}
