package faulttest

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/hindsight-go/audit/audittest"
)

// loadSchema makes the tables of the load, and the control: a log that triggers
// write in the same transactions. It is outside of schema public, so it is not
// tracked.
//
// The name of the triggers comes before that of the foreign key's, so that the
// log has a parent's DELETE before its children's, as the WAL has.
const loadSchema = `
CREATE TABLE account (id bigint PRIMARY KEY, owner text, balance numeric NOT NULL, note text, tags text[], extra jsonb);
CREATE TABLE entry (account_id bigint REFERENCES account ON DELETE CASCADE ON UPDATE CASCADE, n int, amount numeric, PRIMARY KEY (account_id, n));
CREATE TABLE bare (n int, filler text);
CREATE TABLE pulse (id int PRIMARY KEY, n bigint NOT NULL);

CREATE SCHEMA control;
CREATE SEQUENCE control.ids START 1000;
CREATE TABLE control.log (
	ordinal bigint GENERATED ALWAYS AS IDENTITY, xid bigint NOT NULL DEFAULT pg_current_xact_id()::text::bigint,
	tbl text NOT NULL, op text NOT NULL, before jsonb NOT NULL, after jsonb NOT NULL,
	marker text DEFAULT nullif(current_setting('control.marker', true), ''));
CREATE FUNCTION control.write() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
	INSERT INTO control.log (tbl, op, before, after) VALUES (TG_TABLE_NAME,
		CASE TG_OP WHEN 'INSERT' THEN 'CREATE' ELSE TG_OP END,
		CASE WHEN TG_OP IN ('UPDATE', 'DELETE') THEN to_jsonb(OLD) ELSE '{}' END,
		CASE WHEN TG_OP IN ('INSERT', 'UPDATE') THEN to_jsonb(NEW) ELSE '{}' END);
	RETURN NULL;
END $$;
DO $$
DECLARE t text;
BEGIN
	FOREACH t IN ARRAY ARRAY['account', 'entry', 'bare', 'pulse'] LOOP
		EXECUTE format('CREATE TRIGGER "A_control" AFTER INSERT OR UPDATE OR DELETE ON %I FOR EACH ROW EXECUTE FUNCTION control.write()', t);
		EXECUTE format('CREATE TRIGGER "A_control_truncate" AFTER TRUNCATE ON %I FOR EACH STATEMENT EXECUTE FUNCTION control.write()', t);
	END LOOP;
END $$;
INSERT INTO pulse VALUES (1, 0);
INSERT INTO account SELECT n, 'owner ' || n, 100, NULL, '{}', '{}' FROM generate_series(1, 50) n`

// Load writes concurrently to a database, and has a control of what it wrote.
type Load struct {
	db        *audittest.Database
	seed      uint64
	stop      context.CancelFunc
	writers   sync.WaitGroup
	committed atomic.Int64
	throttle  time.Duration
}

// NewLoad makes the tables of the load. Capture has to begin before Run.
func NewLoad(t testing.TB, db *audittest.Database, seed uint64) *Load {
	t.Helper()
	db.Exec(t, loadSchema)
	db.Exec(t, "TRUNCATE control.log")
	return &Load{db: db, seed: seed}
}

// Throttle makes every writer pause so long after each transaction.
func (l *Load) Throttle(d time.Duration) { l.throttle = d }

// Run starts so many writers. They go on through restarts of the server, until
// Stop or the end of the test.
func (l *Load) Run(t testing.TB, writers int) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	l.stop = cancel
	t.Cleanup(l.Stop)
	for n := range writers {
		l.writers.Go(func() {
			w := &writer{load: l, name: n, rand: rand.New(rand.NewPCG(l.seed, uint64(n)))} //nolint:gosec // It is to be repeatable.
			w.run(ctx)
		})
	}
}

// Stop ends the writers and waits for them.
func (l *Load) Stop() {
	if l.stop != nil {
		l.stop()
	}
	l.writers.Wait()
}

// Committed counts the transactions whose commit was confirmed.
func (l *Load) Committed() int64 { return l.committed.Load() }

type writer struct {
	load   *Load
	name   int
	rand   *rand.Rand
	conn   *pgx.Conn
	serial int
}

func (w *writer) run(ctx context.Context) {
	defer w.disconnect()
	for ctx.Err() == nil {
		err := w.transaction(ctx)
		var pgErr *pgconn.PgError
		switch {
		case err == nil:
			w.load.committed.Add(1)
		case errors.As(err, &pgErr) && (pgErr.Code == "40P01" || pgErr.Code == "23505" || pgErr.Code == "23503"):
			// A deadlock, a key taken by another writer: rolled back.
		default:
			// The server is away. Whether the commit was done, the control says.
			w.disconnect()
			wait(ctx, 20*time.Millisecond)
		}
		wait(ctx, w.load.throttle)
	}
}

func wait(ctx context.Context, d time.Duration) {
	if d <= 0 {
		return
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	}
}

func (w *writer) disconnect() {
	if w.conn == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	_ = w.conn.Close(ctx) // The session is given up, whatever it was at.
	w.conn = nil
}

var errWantRollback = errors.New("rolled back on purpose")

func (w *writer) transaction(ctx context.Context) error {
	if w.conn == nil {
		conn, err := pgx.Connect(ctx, w.load.db.URL())
		if err != nil {
			return err
		}
		w.conn = conn
	}
	w.serial++
	err := pgx.BeginFunc(ctx, w.conn, func(tx pgx.Tx) error {
		marker := ""
		if w.rand.IntN(4) > 0 {
			marker = fmt.Sprintf("w%d-%d", w.name, w.serial)
		}
		if _, err := tx.Exec(ctx, "SELECT set_config('control.marker', $1, true)", marker); err != nil {
			return err
		}
		late := w.rand.IntN(5) == 0
		stamp := func(now bool) error {
			if marker == "" || !now {
				return nil
			}
			_, err := tx.Exec(ctx, "SELECT pg_logical_emit_message(true, 'audit', jsonb_build_object('requestId', $1::text)::text)", marker)
			return err
		}
		if err := stamp(!late); err != nil {
			return err
		}
		for step := range 1 + w.rand.IntN(4) {
			if err := w.step(ctx, tx); err != nil {
				return err
			}
			if err := stamp(late && step == 0); err != nil {
				return err
			}
		}
		if w.rand.IntN(4) == 0 {
			// Last, since it makes the transactions take turns: its values rise
			// in commit order.
			if _, err := tx.Exec(ctx, "UPDATE pulse SET n = n + 1 WHERE id = 1"); err != nil {
				return err
			}
		}
		if w.rand.IntN(10) == 0 {
			return errWantRollback
		}
		return nil
	})
	if errors.Is(err, errWantRollback) {
		return nil
	}
	return err
}

// step writes something.
func (w *writer) step(ctx context.Context, tx pgx.Tx) error {
	id := w.rand.IntN(1200)
	exec := func(sql string, args ...any) error {
		_, err := tx.Exec(ctx, sql, args...)
		return err
	}
	switch w.rand.IntN(12) {
	case 0, 1:
		return exec(`INSERT INTO account VALUES (nextval('control.ids'), 'new', $1, NULL, ARRAY['a b', 'c"d'], '{"x": [1, 2.50]}')`, w.rand.IntN(1000))
	case 2, 3, 4:
		return exec("UPDATE account SET balance = balance + 1.10 WHERE id = $1", id%60)
	case 5:
		return exec(`INSERT INTO entry SELECT CASE WHEN $1 % 2 = 0 THEN 1 + $1 % 50 ELSE (SELECT max(id) FROM account) END, n, n FROM generate_series(1, 3) n
			ON CONFLICT (account_id, n) DO UPDATE SET amount = entry.amount + 1`, id)
	case 6: // one row, its children go with it
		return exec("DELETE FROM account WHERE id = (SELECT max(id) FROM account WHERE id > 1000)")
	case 7: // a value that is stored out of line
		return exec("UPDATE account SET note = (SELECT string_agg(md5(i::text || $1::text), '') FROM generate_series(1, 150) i) WHERE id = $1 % 10", id)
	case 8:
		if w.rand.IntN(8) == 0 {
			return exec("INSERT INTO bare SELECT n, repeat('f', 200) FROM generate_series(1, $1) n", 500+w.rand.IntN(2000))
		}
		return exec("INSERT INTO bare SELECT n, 'few' FROM generate_series(1, 20) n")
	case 9:
		if w.rand.IntN(12) == 0 {
			return exec("TRUNCATE bare")
		}
		return exec("UPDATE bare SET filler = 'updated' WHERE n = $1", id)
	case 10: // a savepoint that is rolled back, with what was written in it
		if err := exec("SAVEPOINT s"); err != nil {
			return err
		}
		if err := exec("UPDATE account SET owner = 'never' WHERE id = $1", id%50); err != nil {
			return err
		}
		if err := exec("ROLLBACK TO s"); err != nil {
			return err
		}
		return exec("UPDATE account SET owner = 'after savepoint' WHERE id = $1", id%50)
	default: // another key
		return exec("UPDATE account SET id = nextval('control.ids') WHERE id = (SELECT min(id) FROM account WHERE id > 1000)")
	}
}
