package auditpgx_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/hindsight-go/audit"
	"github.com/hindsight-go/audit/auditpgx"
	"github.com/hindsight-go/audit/audittest"
)

// proofs numbers the rows by which connections are known to stamp.
var proofs atomic.Int32

// revocable is a database in which the right to stamp comes and goes.
type revocable struct {
	*audittest.Database
	function string
}

// newRevocable makes a database of a server of its own, where the role app may
// use the table todo and nothing is public.
func newRevocable(t *testing.T) revocable {
	t.Helper()
	db := audittest.NewServer(t, audittest.ServerOptions{}).NewDatabase(t)
	// It has one more argument from 17 on.
	function := audittest.Value[string](t, db, `SELECT format('pg_catalog.%I(%s)', proname, oidvectortypes(proargtypes))
		FROM pg_proc WHERE proname = 'pg_logical_emit_message' AND proargtypes[2] = 'text'::regtype`)
	db.Exec(t, todoSQL+"; CREATE ROLE app LOGIN; GRANT ALL ON todo TO app; REVOKE EXECUTE ON FUNCTION "+function+" FROM PUBLIC")
	return revocable{db, function}
}

func (db revocable) grant(t *testing.T) {
	t.Helper()
	db.Exec(t, "GRANT EXECUTE ON FUNCTION "+db.function+" TO app")
}

func (db revocable) revoke(t *testing.T) {
	t.Helper()
	db.Exec(t, "REVOKE EXECUTE ON FUNCTION "+db.function+" FROM app")
}

// asApp connects a pool of one connection that runs as app.
func asApp(t *testing.T, db revocable, mode pgx.QueryExecMode) *pgxpool.Pool {
	t.Helper()
	return newPool(t, db.Database, func(c *pgxpool.Config) {
		c.MaxConns = 1
		c.ConnConfig.DefaultQueryExecMode = mode
		c.AfterConnect = func(ctx context.Context, conn *pgx.Conn) error {
			_, err := conn.Exec(ctx, "SET ROLE app")
			return err
		}
	})
}

// revoked returns a DB of one connection that has stamped, in every way that is
// told from others, and from which the right to do so was taken since. It asks
// for each stamp anew.
func revoked(t *testing.T, db revocable, mode pgx.QueryExecMode) *auditpgx.DB {
	t.Helper()
	q := auditpgx.Config{Logger: slog.New(slog.DiscardHandler)}.Wrap(asApp(t, db, mode))
	q.SetPatience(0)
	db.grant(t)
	for range 3 {
		if _, err := q.Exec(by(t.Context(), "ann"), insert, "proof", proofs.Add(1)); err != nil {
			t.Fatal(err)
		}
	}
	if stats := q.Stats(); stats.Stamped != 3 {
		t.Fatalf("%+v", stats)
	}
	db.revoke(t)
	return q
}

// TestRevokedRightHurtsNoWrite takes the right to stamp away from connections
// that have stamped.
func TestRevokedRightHurtsNoWrite(t *testing.T) {
	t.Parallel()
	db := newRevocable(t)
	for _, mode := range modes {
		q := revoked(t, db, mode)
		for _, w := range writers() {
			for _, s := range scenarios() {
				cell := mode.String() + w.name + s.name
				before := q.Stats()
				write := func(ctx context.Context, q auditpgx.Querier, id int) error { return w.write(ctx, q, cell, id) }
				if err := s.run(t.Context(), q, write); err != nil {
					t.Errorf("%s, %s, %s: %v", mode, w.name, s.name, err)
				}
				if stats := q.Stats(); stats.Stamped != before.Stamped || s.name != "without context" && stats.Lost == before.Lost {
					t.Errorf("%s, %s, %s: %+v", mode, w.name, s.name, stats)
				}
				if n := audittest.Value[int](t, db.Database, "SELECT count(*) FROM todo WHERE cell = $1", cell); n != len(s.want) {
					t.Errorf("%s, %s, %s: %d rows, want %d", mode, w.name, s.name, n, len(s.want))
				}
			}
		}
		q.Close()
	}
}

// TestRevokedInMidTransaction takes the right away between two stamps of one
// transaction, and behind reads.
func TestRevokedInMidTransaction(t *testing.T) {
	t.Parallel()
	db := newRevocable(t)
	for _, mode := range modes {
		q := revoked(t, db, mode)
		for _, w := range writers() {
			cell := mode.String() + w.name
			t.Run(cell, func(t *testing.T) {
				ann, bob := by(t.Context(), "ann"), by(t.Context(), "bob")
				db.grant(t)
				err := pgx.BeginFunc(ann, q, func(tx pgx.Tx) error {
					err := w.write(ann, tx, cell, 1)
					db.revoke(t)
					return errors.Join(err, w.write(bob, tx, cell, 2), w.write(ann, tx, cell, 3))
				})
				if err != nil {
					t.Errorf("between two writes: %v", err)
				}
				err = pgx.BeginTxFunc(ann, q, pgx.TxOptions{IsoLevel: pgx.RepeatableRead}, func(tx pgx.Tx) error {
					const count = "SELECT count(*) FROM todo WHERE cell = $1"
					var before, after int
					err := tx.QueryRow(ann, count, cell).Scan(&before)
					db.Exec(t, insert, cell, 4) // the snapshot is to stay as it is
					err = errors.Join(err, w.write(ann, tx, cell, 5), tx.QueryRow(ann, count, cell).Scan(&after))
					if before != 3 || after != 4 {
						err = errors.Join(err, fmt.Errorf("%d rows before the write and %d behind it", before, after))
					}
					return err
				})
				if err != nil {
					t.Errorf("behind a read: %v", err)
				}
				if n := audittest.Value[int](t, db.Database, "SELECT count(*) FROM todo WHERE cell = $1", cell); n != 5 {
					t.Errorf("%d rows", n)
				}
			})
		}
		q.Close()
	}
}

// TestRevokedRightLeavesTheTransactionAsItWasBegun looks at what a transaction
// is after its first stamp was refused.
func TestRevokedRightLeavesTheTransactionAsItWasBegun(t *testing.T) {
	t.Parallel()
	db := newRevocable(t)
	q := revoked(t, db, pgx.QueryExecModeCacheStatement)
	ctx := by(t.Context(), "ann")
	is := func(tx pgx.Tx) string {
		var text string
		err := tx.QueryRow(ctx, `SELECT concat_ws(' ', current_setting('transaction_isolation'), current_setting('transaction_read_only'),
			current_setting('transaction_deferrable'), current_setting('audit_test.local', true))`).Scan(&text)
		if err != nil {
			t.Error(err)
		}
		return text
	}
	id := 0
	put := func(tx pgx.Tx) {
		id++
		if _, err := tx.Exec(ctx, insert, "c", id); err != nil {
			t.Error(err)
		}
	}
	for _, options := range []pgx.TxOptions{
		{},
		{IsoLevel: pgx.Serializable, DeferrableMode: pgx.Deferrable},
		{IsoLevel: pgx.RepeatableRead, AccessMode: pgx.ReadWrite},
		{BeginQuery: "BEGIN ISOLATION LEVEL SERIALIZABLE; SET LOCAL audit_test.local = 'x'"},
	} {
		without, err := q.Pool().BeginTx(ctx, options)
		if err != nil {
			t.Fatal(err)
		}
		want := is(without)
		_ = without.Rollback(ctx)
		for _, how := range []string{"begun", "wrapped", "by hand"} {
			var tx pgx.Tx
			switch how {
			case "begun":
				tx, err = q.BeginTx(ctx, options)
			default:
				tx, err = q.Pool().BeginTx(ctx, options)
			}
			if err != nil {
				t.Fatal(err)
			}
			switch how {
			case "wrapped":
				tx = auditpgx.WrapTx(tx)
				put(tx)
			case "by hand":
				id++
				if _, err := auditpgx.WrapConn(tx.Conn()).Exec(ctx, insert, "c", id); err != nil {
					t.Error(err)
				}
			default:
				put(tx)
			}
			if got := is(tx); got != want {
				t.Errorf("%s with %+v: the transaction is %q, want %q", how, options, got, want)
			}
			if err := tx.Commit(ctx); err != nil {
				t.Error(err)
			}
		}
	}
	if n := audittest.Value[int](t, db.Database, "SELECT count(*) FROM todo WHERE cell = 'c'"); n != id {
		t.Errorf("%d rows, want %d", n, id)
	}
}

// TestRevokedRightInBatches sends batches that begin and end transactions by
// themselves, and compares all their results with those of pgx.
func TestRevokedRightInBatches(t *testing.T) {
	t.Parallel()
	db := newRevocable(t)
	for _, mode := range modes {
		q := revoked(t, db, mode)
		before := q.Stats()
		compareBatches(t, db.Database, q)
		if stats := q.Stats(); stats.Lost < before.Lost+uint64(3*len(batches)) || stats.Stamped != before.Stamped {
			t.Errorf("%s: %+v", mode, stats)
		}
		q.Close()
	}
}

// TestRefusalIsNotForever grants the right to a connection that was refused.
func TestRefusalIsNotForever(t *testing.T) {
	t.Parallel()
	db := newRevocable(t)
	q := revoked(t, db, pgx.QueryExecModeCacheStatement)
	q.SetPatience(time.Hour)
	put := func(id int) {
		if _, err := q.Exec(by(t.Context(), "ann"), insert, "c", id); err != nil {
			t.Fatal(err)
		}
	}
	put(1)
	db.grant(t)
	put(2)
	if diff := cmp.Diff(auditpgx.Stats{Stamped: 3, Lost: 2}, q.Stats()); diff != "" {
		t.Errorf("before: %s", diff)
	}
	q.SetPatience(0)
	put(3)
	if diff := cmp.Diff(auditpgx.Stats{Stamped: 4, Lost: 2}, q.Stats()); diff != "" {
		t.Errorf("after: %s", diff)
	}
}

// TestRoleWithoutTheRight takes on a role in a transaction that may not stamp.
func TestRoleWithoutTheRight(t *testing.T) {
	t.Parallel()
	db := newRevocable(t)
	ctx := audit.WithContext(t.Context(), audit.Context{UserID: "ann"})
	for _, mode := range modes {
		q := auditpgx.Config{Logger: slog.New(slog.DiscardHandler)}.Wrap(newPool(t, db.Database, func(c *pgxpool.Config) {
			c.MaxConns = 1
			c.ConnConfig.DefaultQueryExecMode = mode
		}))
		q.SetPatience(0)
		for i, w := range writers() {
			for j, become := range []string{"SET LOCAL ROLE app", "SELECT set_config('role', 'app', true)"} {
				cell := fmt.Sprint(mode, i, j)
				if err := w.write(ctx, q, cell, 1); err != nil { // as the owner
					t.Errorf("%s, %s: %v", mode, w.name, err)
				}
				err := pgx.BeginFunc(ctx, q, func(tx pgx.Tx) error {
					_, err := tx.Exec(ctx, become)
					return errors.Join(err, w.write(ctx, tx, cell, 2), w.write(ctx, tx, cell, 3))
				})
				if err != nil {
					t.Errorf("%s, %s, %s: %v", mode, w.name, become, err)
				}
			}
		}
		q.Close()
	}
	if n, want := audittest.Value[int](t, db.Database, "SELECT count(*) FROM todo"), 3*2*len(writers())*len(modes); n != want {
		t.Errorf("%d rows, want %d", n, want)
	}
}
