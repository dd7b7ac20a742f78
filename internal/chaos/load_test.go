//go:build unix

package chaos_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/hindsight-go/audit/audittest"
	"github.com/hindsight-go/audit/internal/faulttest"
)

// loadSchema makes the tables, as the program's role, which owns them.
const loadSchema = `
SET ROLE program;
CREATE TABLE public.account (id bigint PRIMARY KEY, owner text, balance numeric NOT NULL, note text, tags text[], extra jsonb);
CREATE TABLE public.bare (n bigint, filler text);
CREATE TABLE public.pulse (id int PRIMARY KEY, n bigint NOT NULL);
CREATE TABLE public.probe (id bigint PRIMARY KEY, said text);
CREATE TABLE public.part (id bigint, k int, v text, PRIMARY KEY (id, k)) PARTITION BY LIST (k);
CREATE TABLE public.part_0 PARTITION OF public.part FOR VALUES IN (0);
CREATE TABLE public.part_1 PARTITION OF public.part FOR VALUES IN (1);
INSERT INTO public.pulse VALUES (1, 0);
INSERT INTO public.account SELECT n, 'owner ' || n, 100, NULL, '{}', '{}' FROM generate_series(1, 40) n;
INSERT INTO public.part SELECT n, n % 2, 'old' FROM generate_series(1, 20) n;
RESET ROLE;
CREATE SCHEMA harness;
CREATE TABLE harness.fate (writer int, serial int, PRIMARY KEY (writer, serial));`

// lastingTables are there from the beginning to the end.
var lastingTables = []string{"account", "bare", "pulse", "probe", "part"}

// load is the writers and the migrations.
type load struct {
	db      *audittest.Database
	journal *journal
	seed    uint64
	pace    time.Duration

	// standstill is held by a transaction for reading, and for writing by who needs that
	// there is none.
	standstill sync.RWMutex
	lo, hi     atomic.Int64 // the partitions that there are, hi excluded
	migrations atomic.Int64
	refused    atomic.Int64 // migrations that a lock was in the way of
	ids        atomic.Int64
	workers    sync.WaitGroup
}

func newLoad(t testing.TB, db *audittest.Database, seed uint64, pace time.Duration) *load {
	t.Helper()
	db.Exec(t, loadSchema)
	l := &load{db: db, journal: &journal{}, seed: seed, pace: pace}
	l.hi.Store(2)
	l.ids.Store(1000)
	return l
}

func (l *load) session(writer int) *session {
	return &session{url: l.db.URL(), journal: l.journal, writer: writer}
}

// run starts writers and one that migrates. They go on through everything until ctx ends.
func (l *load) run(ctx context.Context, writers int) {
	for n := range writers {
		l.workers.Go(func() {
			w := &writer{load: l, session: l.session(n), rand: rand.New(rand.NewPCG(l.seed, uint64(n)))} //nolint:gosec // It is to be repeatable.
			defer w.session.close()
			for ctx.Err() == nil {
				if err := w.transaction(ctx); err != nil {
					w.session.close()
					wait(ctx, 50*time.Millisecond)
				}
				wait(ctx, l.pace)
			}
		})
	}
	l.workers.Go(func() { l.migrate(ctx) })
}

type writer struct {
	load    *load
	session *session
	rand    *rand.Rand
	mine    int64 // rows of bare so far
}

func (w *writer) transaction(ctx context.Context) error {
	w.load.standstill.RLock()
	defer w.load.standstill.RUnlock()
	// A transaction that has begun is ended, so that its fate is known.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Minute)
	defer cancel()
	return w.session.transact(ctx, func(a *act) error {
		request := ""
		if w.rand.IntN(5) > 0 {
			request = fmt.Sprintf("w%d-%d", w.session.writer, w.session.serial)
			if err := a.exec("SELECT pg_logical_emit_message(true, 'audit', jsonb_build_object('requestId', $1::text, 'userId', 'u1')::text)", request); err != nil {
				return err
			}
		}
		a.request = request
		// Ascending, so that writers never wait for each other in a circle.
		id := int64(1 + w.rand.IntN(10))
		for range 1 + w.rand.IntN(4) {
			if err := w.step(a, id); err != nil {
				return err
			}
			id += int64(1 + w.rand.IntN(8))
		}
		if w.rand.IntN(3) == 0 {
			// Last, since it makes the transactions take turns.
			if err := w.update(a, "pulse", "id = 1", "n = n + 1"); err != nil {
				return err
			}
		}
		if w.rand.IntN(12) == 0 {
			return errRollback
		}
		return nil
	})
}

// update changes the one row, if there is one, that a condition names.
func (w *writer) update(a *act, table, condition, set string, args ...any) error {
	var before string
	keys := args[:strings.Count(condition, "$")]
	err := a.conn.QueryRow(a.ctx, fmt.Sprintf("SELECT to_jsonb(t)::text FROM public.%s t WHERE %s FOR UPDATE", table, condition), keys...).Scan(&before)
	if errors.Is(err, pgx.ErrNoRows) {
		return nil
	}
	if err != nil {
		return err
	}
	args = append(args[:len(args):len(args)], before)
	return a.write(table, "UPDATE", fmt.Sprintf("UPDATE public.%s t SET %s WHERE %s RETURNING $%d::text, to_jsonb(t)::text", table, set, condition, len(args)), args...)
}

func (w *writer) remove(a *act, table, condition string, args ...any) error {
	return a.write(table, "DELETE", fmt.Sprintf("DELETE FROM public.%s t WHERE %s RETURNING to_jsonb(t)::text, '{}'", table, condition), args...)
}

func (w *writer) step(a *act, id int64) error {
	bare := int64(w.session.writer+1) * 1_000_000
	switch w.rand.IntN(11) {
	case 0, 1:
		return a.write("account", "CREATE", `
			INSERT INTO public.account AS t (id, owner, balance, note, tags, extra) VALUES ($1, 'new', $2::int, NULL, ARRAY['a b', 'c"d', NULL], '{"x": [1, 2.50, "ж"]}')
			RETURNING '{}', to_jsonb(t)::text`, w.load.ids.Add(1), w.rand.IntN(1000))
	case 2, 3:
		return w.update(a, "account", "t.id = $1", "balance = t.balance + 1.10", id)
	case 4: // a value that is stored out of line
		return w.update(a, "account", "t.id = $1", "note = (SELECT string_agg(md5(i::text || $2::text), '') FROM generate_series(1, 120) i)", id, w.rand.IntN(1000))
	case 5: // and stays where it is
		return w.update(a, "account", "t.id = $1", "owner = 'owner ' || $2::text", id, w.rand.IntN(1000))
	case 6: // another key, of a row that nobody else takes
		mine := w.load.ids.Add(1)
		if err := a.write("account", "CREATE", "INSERT INTO public.account AS t (id, owner, balance) VALUES ($1, 'short', 0) RETURNING '{}', to_jsonb(t)::text", mine); err != nil {
			return err
		}
		if err := w.update(a, "account", "t.id = $1", "id = t.id + 1000000", mine); err != nil {
			return err
		}
		if w.rand.IntN(2) == 0 {
			return nil
		}
		return w.remove(a, "account", "t.id = $1", mine+1_000_000)
	case 7:
		n := int64(5)
		if w.rand.IntN(10) == 0 {
			n = 600
		}
		w.mine += n
		return a.write("bare", "CREATE", "INSERT INTO public.bare AS t SELECT n, 'row' FROM generate_series($1::bigint, $2::bigint) n RETURNING '{}', to_jsonb(t)::text", bare+w.mine-n+1, bare+w.mine)
	case 8:
		n := bare + 1 + w.rand.Int64N(w.mine+1)
		if w.rand.IntN(2) == 0 {
			return w.remove(a, "bare", "t.n = $1", n)
		}
		return w.update(a, "bare", "t.n = $1", "filler = 'updated ' || $2::text", n, w.rand.IntN(1000))
	case 9: // a savepoint that is rolled back, with what was written in it
		if err := a.exec("SAVEPOINT s"); err != nil {
			return err
		}
		if err := a.exec("UPDATE public.account SET owner = 'never' WHERE id = $1", id); err != nil {
			return err
		}
		if err := a.exec("ROLLBACK TO s"); err != nil {
			return err
		}
		return w.update(a, "account", "t.id = $1", "owner = 'after savepoint'", id)
	default:
		lo, hi := w.load.lo.Load(), w.load.hi.Load()
		k := lo + w.rand.Int64N(hi-lo)
		return a.write("part", "CREATE", "INSERT INTO public.part AS t VALUES ($1, $2::int, repeat('v', $3::int)) RETURNING '{}', to_jsonb(t)::text", w.load.ids.Add(1), k, w.rand.IntN(50))
	}
}

// migrate alters tables all the while. It never waits long for a lock, as migrations
// should not.
func (l *load) migrate(ctx context.Context) {
	random := rand.New(rand.NewPCG(l.seed, 1<<20)) //nolint:gosec // It is to be repeatable.
	s := l.session(1000)
	defer s.close()
	for n := 0; ctx.Err() == nil; n++ {
		wait(ctx, time.Duration(300+random.IntN(1500))*time.Millisecond)
		if err := l.migration(ctx, s, random, n); err != nil {
			s.close()
		}
	}
}

func (l *load) migration(ctx context.Context, s *session, random *rand.Rand, n int) error {
	// Writers stand still while a partition goes, or they might want one that is gone.
	lo, hi := l.lo.Load(), l.hi.Load()
	kind := random.IntN(9)
	if kind == 8 {
		l.standstill.Lock()
		defer l.standstill.Unlock()
	} else { // nor is a table altered, or emptied, while what it holds is read
		l.standstill.RLock()
		defer l.standstill.RUnlock()
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Minute)
	defer cancel()
	if err := s.connect(ctx); err != nil {
		return err
	}
	ddl := func(statements ...string) error {
		sql := append([]string{"BEGIN", "SET LOCAL lock_timeout = '300ms'", "SET LOCAL ROLE program"}, statements...)
		_, err := s.conn.PgConn().Exec(ctx, strings.Join(append(sql, "COMMIT"), "; ")).ReadAll()
		if err != nil {
			l.refused.Add(1)
		} else {
			l.migrations.Add(1)
		}
		return err
	}
	switch kind {
	case 0:
		return ddl(fmt.Sprintf("ALTER TABLE public.account ADD added_%d text DEFAULT 'd%[1]d'", n))
	case 1:
		var column string
		err := s.conn.QueryRow(ctx, "SELECT coalesce(min(attname), '') FROM pg_attribute WHERE attrelid = 'public.account'::regclass AND attname LIKE 'added%' AND NOT attisdropped").Scan(&column)
		if err != nil || column == "" {
			return err
		}
		return ddl("ALTER TABLE public.account DROP " + column)
	case 2:
		return ddl(fmt.Sprintf("ALTER TABLE public.bare ADD IF NOT EXISTS extra int DEFAULT %d", n%3), "ALTER TABLE public.bare RENAME extra TO other")
	case 3:
		return ddl("ALTER TABLE public.bare DROP IF EXISTS extra, DROP IF EXISTS other")
	case 4, 5: // a table that comes, is written to, and may go
		name := fmt.Sprintf("made_%d", n)
		if err := ddl("CREATE TABLE public." + name + " (id int PRIMARY KEY, v text)"); err != nil {
			return err
		}
		for range 3 {
			id := int(l.ids.Add(1))
			if err := s.transact(ctx, func(a *act) error {
				return a.write(name, "CREATE", "INSERT INTO public."+name+" AS t VALUES ($1::int, 'made') RETURNING '{}', to_jsonb(t)::text", id)
			}); err != nil {
				return err
			}
		}
		if random.IntN(2) == 0 {
			return ddl("DROP TABLE public." + name)
		}
		return nil
	case 6:
		return s.transact(ctx, func(a *act) error {
			if err := a.exec("SET LOCAL lock_timeout = '300ms'"); err != nil {
				return err
			}
			if err := a.exec("TRUNCATE public.bare"); err != nil {
				l.refused.Add(1)
				return errRollback
			}
			a.written.entries = append(a.written.entries, entry{Table: "bare", Op: "TRUNCATE", Before: "{}", After: "{}"})
			return nil
		})
	case 7:
		if hi-lo > 4 {
			return nil
		}
		if err := ddl(fmt.Sprintf("CREATE TABLE IF NOT EXISTS public.part_%d PARTITION OF public.part FOR VALUES IN (%[1]d)", hi)); err != nil {
			return err
		}
		l.hi.Add(1)
		return nil
	default:
		if hi-lo < 3 {
			return nil
		}
		if err := ddl(fmt.Sprintf("DROP TABLE public.part_%d", lo)); err != nil {
			return err
		}
		l.lo.Add(1)
		return nil
	}
}

// pause is for who waits in a test.
func pause(t testing.TB, d time.Duration) { t.Helper(); faulttest.Pause(t, d) }
