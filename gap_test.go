package audit_test

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/hindsight-go/audit"
	"github.com/hindsight-go/audit/audittest"
	"github.com/hindsight-go/audit/capture"
	"github.com/hindsight-go/audit/internal/faulttest"
)

// slotOf is the name of the slot of a client on db with the default schema.
func slotOf(db *audittest.Database) string { return "audit_" + db.Name() }

// keysInHistory returns the keys of a table's changes, in history's order.
func keysInHistory(t *testing.T, db *audittest.Database, table string) []string {
	t.Helper()
	return audittest.Value[[]string](t, db, `
		SELECT coalesce(array_agg(primary_key ORDER BY position, sequence), '{}') FROM audit.changes WHERE "table" = $1`, table)
}

func mustStart(t *testing.T, a *audittest.Audited) {
	t.Helper()
	if err := a.Client.Start(context.WithoutCancel(t.Context())); err != nil {
		t.Fatalf("start capture: %v", err)
	}
	t.Cleanup(func() { a.Stop(t) })
}

func statusOf(t *testing.T, a *audittest.Audited) audit.Status {
	t.Helper()
	s, err := a.Client.Status(t.Context())
	if err != nil {
		t.Fatalf("status: %v", err)
	}
	return s
}

// expectGap checks that there is exactly one gap, whose reason holds a word, and
// that it ends where streaming went on.
func expectGap(t *testing.T, a *audittest.Audited, word string) audit.Gap {
	t.Helper()
	s := statusOf(t, a)
	if len(s.Gaps) != 1 {
		t.Fatalf("there are %d gaps, want 1: %+v", len(s.Gaps), s.Gaps)
	}
	g := s.Gaps[0]
	if !strings.Contains(g.Reason, word) {
		t.Errorf("the gap's reason is %q and does not say %q", g.Reason, word)
	}
	if g.From >= g.To || g.To > s.Position {
		t.Errorf("the gap goes from %s to %s, the history to %s", g.From, g.To, s.Position)
	}
	return g
}

// waitInactive waits until the server has noticed that nobody reads from the slot.
func waitInactive(t *testing.T, db *audittest.Database) {
	t.Helper()
	faulttest.Poll(t, faulttest.Patience, "the slot is let go", func() error {
		if audittest.Value[bool](t, db, "SELECT active FROM pg_replication_slots WHERE slot_name = $1", slotOf(db)) {
			return errors.New("it is active")
		}
		return nil
	})
}

// syncAgain is Sync for a moment when connections of the pool may have died.
func syncAgain(t *testing.T, a *audittest.Audited) {
	t.Helper()
	faulttest.Poll(t, faulttest.Patience, "sync", func() error {
		ctx, cancel := context.WithTimeout(t.Context(), faulttest.Patience)
		defer cancel()
		return a.Client.Sync(ctx)
	})
}

const gapTable = "CREATE TABLE todo (id int PRIMARY KEY, task text)"

// What happens to the slot while capture is stopped, and a change is made that
// nobody can ever read.
func TestSlotThatWasTamperedWithLeavesAGap(t *testing.T) {
	t.Parallel()
	for name, tamper := range map[string]struct {
		do   func(t *testing.T, db *audittest.Database)
		word string
	}{
		"dropped": {func(t *testing.T, db *audittest.Database) {
			t.Helper()
			waitInactive(t, db)
			db.Exec(t, "SELECT pg_drop_replication_slot($1)", slotOf(db))
			db.Exec(t, "INSERT INTO todo VALUES (2, 'lost')")
		}, "gone"},
		"recreated": {func(t *testing.T, db *audittest.Database) {
			t.Helper()
			waitInactive(t, db)
			db.Exec(t, "SELECT pg_drop_replication_slot($1)", slotOf(db))
			db.Exec(t, "INSERT INTO todo VALUES (2, 'lost')")
			db.Exec(t, "SELECT pg_create_logical_replication_slot($1, 'pgoutput')", slotOf(db))
		}, "recreated or moved"},
		"advanced": {func(t *testing.T, db *audittest.Database) {
			t.Helper()
			db.Exec(t, "INSERT INTO todo VALUES (2, 'lost')")
			waitInactive(t, db)
			db.Exec(t, "SELECT pg_replication_slot_advance($1, pg_current_wal_lsn())", slotOf(db))
		}, "recreated or moved"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			db := audittest.NewDatabase(t)
			db.Exec(t, gapTable)
			a := audittest.Open(t, db, audit.Config{})
			mustStart(t, a)
			db.Exec(t, "INSERT INTO todo VALUES (1, 'before')")
			a.Sync(t)
			a.Stop(t)
			tamper.do(t, db)

			careful := audittest.Open(t, db, audit.Config{OnGap: audit.StopAtGap})
			var gap *audit.GapError
			if err := careful.Client.Start(t.Context()); !errors.As(err, &gap) {
				t.Errorf("StopAtGap: Start returned %v, want a *GapError", err)
			}
			if s := statusOf(t, careful); len(s.Gaps) != 0 {
				t.Errorf("StopAtGap: a gap was recorded and passed: %+v", s.Gaps)
			}

			mustStart(t, a)
			db.Exec(t, "INSERT INTO todo VALUES (3, 'behind')")
			a.Sync(t)
			if diff := cmp.Diff([]string{"1", "3"}, keysInHistory(t, db, "todo")); diff != "" {
				t.Errorf("history (-want +got):\n%s", diff)
			}
			g := expectGap(t, a, tamper.word)
			if g.FromTime.IsZero() || g.ToTime.Before(g.FromTime) {
				t.Errorf("the gap is from %s to %s", g.FromTime, g.ToTime)
			}
		})
	}
}

// The same while capture runs, as far as the server lets it be done: the session
// is ended, and the slot is gone before the next one.
func TestSlotDroppedUnderTheReaderLeavesAGap(t *testing.T) {
	t.Parallel()
	for _, policy := range []audit.GapPolicy{audit.ContinueAfterGap, audit.StopAtGap} {
		t.Run(fmt.Sprint(policy), func(t *testing.T) {
			t.Parallel()
			db := audittest.NewDatabase(t)
			db.Exec(t, gapTable)
			a := audittest.Open(t, db, audit.Config{OnGap: policy})
			mustStart(t, a)
			db.Exec(t, "INSERT INTO todo VALUES (1, 'before')")
			a.Sync(t)
			dropSlotUnderReader(t, db)
			db.Exec(t, "INSERT INTO todo VALUES (2, 'perhaps lost')")
			if policy == audit.StopAtGap {
				faulttest.Poll(t, faulttest.Patience, "capture stops", func() error {
					s := statusOf(t, a)
					var gap *audit.GapError
					if s.State != capture.Failed || !errors.As(s.Err, &gap) {
						return fmt.Errorf("it is %s: %w", s.State, s.Err)
					}
					return nil
				})
				if err := a.Client.Sync(t.Context()); err == nil {
					t.Error("Sync succeeded though capture has failed")
				}
				return
			}
			a.Sync(t)
			db.Exec(t, "INSERT INTO todo VALUES (3, 'behind')")
			a.Sync(t)
			expectGap(t, a, "gone")
			keys := keysInHistory(t, db, "todo")
			if keys[0] != "1" || keys[len(keys)-1] != "3" {
				t.Errorf("history has the keys %v", keys)
			}
		})
	}
}

// dropSlotUnderReader ends the session that reads from the slot and drops it
// before the reader is back.
func dropSlotUnderReader(t *testing.T, db *audittest.Database) {
	t.Helper()
	faulttest.Poll(t, faulttest.Patience, "drop the slot under the reader", func() error {
		db.Exec(t, "SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE slot_name = '"+slotOf(db)+"' AND active")
		conn := db.Connect(t)
		defer func() { _ = conn.Close(t.Context()) }()
		_, err := conn.Exec(t.Context(), "SELECT pg_drop_replication_slot($1)", slotOf(db))
		return err
	})
}

// The server gives up a slot that holds back too much WAL.
func TestInvalidatedSlotLeavesAGap(t *testing.T) {
	t.Parallel()
	server := audittest.NewServer(t, audittest.ServerOptions{Settings: map[string]string{
		"max_slot_wal_keep_size": "1MB", "max_wal_size": "32MB", "min_wal_size": "32MB", "wal_keep_size": "0",
	}})
	db := server.NewDatabase(t)
	db.Exec(t, gapTable)
	a := audittest.Open(t, db, audit.Config{})
	mustStart(t, a)
	db.Exec(t, "INSERT INTO todo VALUES (1, 'before')")
	a.Sync(t)
	a.Stop(t)
	db.Exec(t, "INSERT INTO todo VALUES (2, 'lost')")
	faulttest.Poll(t, faulttest.Patience, "the slot is lost", func() error {
		db.Exec(t, "SELECT pg_switch_wal() FROM (SELECT pg_logical_emit_message(false, 'noise', repeat('x', 1000))) x")
		db.Exec(t, "CHECKPOINT")
		status := audittest.Value[string](t, db, "SELECT wal_status FROM pg_replication_slots WHERE slot_name = $1", slotOf(db))
		if status != "lost" {
			return fmt.Errorf("it is %s", status)
		}
		return nil
	})
	if s := statusOf(t, a); s.Slot.Status != "lost" {
		t.Errorf("status says that the slot is %q", s.Slot.Status)
	}
	mustStart(t, a)
	db.Exec(t, "INSERT INTO todo VALUES (3, 'behind')")
	a.Sync(t)
	expectGap(t, a, "invalidated")
	if diff := cmp.Diff([]string{"1", "3"}, keysInHistory(t, db, "todo")); diff != "" {
		t.Errorf("history (-want +got):\n%s", diff)
	}
}

// unlessThere lets a statement be late: a refresh may have put right already what
// it puts right.
func unlessThere(sql string) string {
	return "DO $$ BEGIN " + sql + "; EXCEPTION WHEN duplicate_object THEN NULL; END $$"
}

// Somebody drops the publication under the live slot, or makes another in its
// place. Whatever is not in history afterwards lies in a gap, or outside of what
// coverage claims.
func TestPublicationTamperedWithIsNoSilentHole(t *testing.T) {
	t.Parallel()
	for name, statements := range map[string][]string{
		"dropped":                     {"DROP PUBLICATION audit", "INSERT INTO todo VALUES (2, 'x')"},
		"recreated empty":             {"DROP PUBLICATION audit; CREATE PUBLICATION audit", "INSERT INTO todo VALUES (2, 'x')"},
		"recreated after a write":     {"DROP PUBLICATION audit", "INSERT INTO todo VALUES (2, 'x')", unlessThere("CREATE PUBLICATION audit FOR TABLE todo")},
		"recreated with another":      {"DROP PUBLICATION audit; CREATE PUBLICATION audit FOR TABLE other", "INSERT INTO todo VALUES (2, 'x')"},
		"table taken out":             {"ALTER PUBLICATION audit DROP TABLE todo", "INSERT INTO todo VALUES (2, 'x')"},
		"table taken out and put in":  {"ALTER PUBLICATION audit DROP TABLE todo", "INSERT INTO todo VALUES (2, 'x')", unlessThere("ALTER PUBLICATION audit ADD TABLE todo")},
		"only inserts published":      {"ALTER PUBLICATION audit SET (publish = 'insert')", "UPDATE todo SET task = 'x' WHERE id = 1"},
		"rows filtered by a tampered": {"ALTER PUBLICATION audit DROP TABLE todo; ALTER PUBLICATION audit ADD TABLE todo WHERE (id = 1)", "INSERT INTO todo VALUES (2, 'x')"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			db := audittest.NewDatabase(t)
			if strings.HasPrefix(name, "rows filtered") && db.Server().Version() < 150000 {
				return // row filters came with 15
			}
			db.Exec(t, gapTable+"; CREATE TABLE other (id int PRIMARY KEY)")
			a := audittest.Open(t, db, audit.Config{RefreshInterval: 200 * time.Millisecond})
			mustStart(t, a)
			db.Exec(t, "INSERT INTO todo VALUES (1, 'before')")
			a.Sync(t)
			var lost string // where in the WAL the change is that may be lost
			for _, sql := range statements {
				db.Exec(t, sql)
				if strings.HasPrefix(sql, "INSERT") || strings.HasPrefix(sql, "UPDATE") {
					lost = audittest.Value[string](t, db, "SELECT pg_current_wal_insert_lsn()::text")
				}
			}
			// Afterwards, tracking is as it was.
			id := 10
			faulttest.Poll(t, 15*time.Second, "the table is captured again", func() error {
				id++
				db.Exec(t, "INSERT INTO todo VALUES ($1, 'behind')", id)
				db.Exec(t, "UPDATE todo SET task = 'behind, too' WHERE id = $1", id)
				a.Sync(t)
				if n := audittest.Value[int](t, db, `SELECT count(*) FROM audit.changes WHERE "table" = 'todo' AND primary_key = $1::int::text`, id); n != 2 {
					return fmt.Errorf("history has %d changes of row %d, want 2", n, id)
				}
				return nil
			})
			// Whoever puts the table back himself is found out by the next look.
			faulttest.Poll(t, 15*time.Second, "the hole is known", func() error {
				held := audittest.Value[bool](t, db, `
				SELECT EXISTS (SELECT FROM audit.changes WHERE "table" = 'todo' AND after ->> 'task' = 'x')`)
				excused := audittest.Value[bool](t, db, `
				SELECT EXISTS (SELECT FROM audit.gaps WHERE from_position <= $1::text::pg_lsn AND to_position >= $1::text::pg_lsn)
					OR NOT EXISTS (SELECT FROM audit.coverage WHERE "table" = 'todo' AND from_position <= $1::text::pg_lsn
						AND (until_position IS NULL OR until_position >= $1::text::pg_lsn))`, lost)
				if !held && !excused {
					return fmt.Errorf("the change at %s is lost, and neither a gap nor coverage says so", lost)
				}
				return nil
			})
		})
	}
}

// promote makes a server that is down come up as a standby does that takes over
// from its primary: on a timeline of its own.
func promote(t *testing.T, db *audittest.Database) {
	t.Helper()
	server := db.Server()
	// The file has to be the server's, as those around it are.
	template := filepath.Join(server.DataDir(), "PG_VERSION")
	if out, err := exec.CommandContext(t.Context(), "cp", "-a", template, filepath.Join(server.DataDir(), "standby.signal")).CombinedOutput(); err != nil {
		t.Fatalf("make standby.signal: %v: %s", err, out)
	}
	server.StartAgain(t)
	if !audittest.Value[bool](t, db, "SELECT pg_promote()") {
		t.Fatal("the standby was not promoted")
	}
	if !audittest.Value[bool](t, db, "SELECT NOT pg_is_in_recovery() AND substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8) = '00000002'") {
		t.Fatal("the server is not on timeline 2")
	}
}

// copyDir copies a data directory with its owner.
func copyDir(t *testing.T, from, to string) {
	t.Helper()
	if out, err := exec.CommandContext(t.Context(), "cp", "-a", from, to).CombinedOutput(); err != nil {
		t.Fatalf("copy data directory: %v: %s", err, out)
	}
	// A server that was stopped at once leaves this behind.
	if err := os.Remove(filepath.Join(to, "postmaster.pid")); err != nil && !errors.Is(err, fs.ErrNotExist) {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(to) })
}

// The server may forget WAL only after the store has what it held.
func TestSlotIsNeverConfirmedBeyondTheCheckpoint(t *testing.T) {
	t.Parallel()
	db := audittest.NewDatabase(t)
	load := faulttest.NewLoad(t, db, 2)
	a := audittest.Open(t, db, audit.Config{Tables: []string{"public.*"}})
	mustStart(t, a)
	load.Run(t, 2)
	for range 200 {
		// The slot first: the checkpoint read after it can only be further.
		confirmed := audittest.Value[string](t, db, "SELECT confirmed_flush_lsn::text FROM pg_replication_slots WHERE slot_name = $1", slotOf(db))
		if !audittest.Value[bool](t, db, "SELECT position >= $1::text::pg_lsn FROM audit.checkpoints", confirmed) {
			t.Fatalf("the slot is confirmed up to %s, beyond the checkpoint", confirmed)
		}
	}
	load.Stop()
	a.Check(t)
}

// A database in which nothing happens may not make the cluster keep the WAL that
// others write.
func TestIdleDatabaseDoesNotHoldBackWAL(t *testing.T) {
	t.Parallel()
	const more = "INSERT INTO untracked SELECT n, repeat('x', 200) FROM generate_series(1, 10000) n"
	for name, test := range map[string]struct {
		elsewhere bool
		goingOn   bool // the writes do not stop
	}{
		"writes in another database go on":                     {true, true},
		"writes in another database stop":                      {true, false},
		"writes to a table that is not tracked go on":          {false, true},
		"writes to a table that is not tracked come to an end": {false, false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			// Of its own: what another test writes would help.
			server := audittest.NewServer(t, audittest.ServerOptions{})
			idle := server.NewDatabase(t)
			idle.Exec(t, gapTable)
			other := idle
			if test.elsewhere {
				other = server.NewDatabase(t)
			}
			other.Exec(t, "CREATE TABLE untracked (n int, filler text)")
			a := audittest.Open(t, idle, audit.Config{Tables: []string{"public.todo"}})
			mustStart(t, a)
			before := audittest.Value[string](t, idle, "SELECT pg_current_wal_lsn()::text")
			for range 8 {
				other.Exec(t, more)
			}
			const bound = 4 << 20
			here := audittest.Value[string](t, idle, "SELECT pg_current_wal_lsn()::text")
			written := audittest.Value[int64](t, idle, "SELECT ($1::text::pg_lsn - $2::text::pg_lsn)::bigint", here, before)
			if written < 4*bound {
				t.Fatalf("only %d bytes of WAL were written", written)
			}
			faulttest.Poll(t, faulttest.Patience, "the WAL is released", func() error {
				if test.goingOn {
					other.Exec(t, more)
				}
				// The record of running transactions that lets the server
				// release WAL is otherwise written every 15 seconds.
				idle.Exec(t, "CHECKPOINT")
				confirmed := audittest.Value[int64](t, idle, "SELECT ($1::text::pg_lsn - confirmed_flush_lsn)::bigint FROM pg_replication_slots WHERE slot_name = $2", here, slotOf(idle))
				kept := audittest.Value[int64](t, idle, "SELECT ($1::text::pg_lsn - restart_lsn)::bigint FROM pg_replication_slots WHERE slot_name = $2", here, slotOf(idle))
				if confirmed > bound || kept > bound {
					return fmt.Errorf("the slot is confirmed %d bytes behind, and %d bytes are kept", confirmed, kept)
				}
				return nil
			})
			a.Check(t)
		})
	}
}

// Somebody takes a table out of the publication, and the application keeps it
// locked, so that it cannot be put back at once. Coverage may not claim what was
// written meanwhile, however often capture has looked before it could.
func TestCoverageDoesNotClaimWhatATableMissedWhileLocked(t *testing.T) {
	t.Parallel()
	db := audittest.NewDatabase(t)
	db.Exec(t, gapTable)
	a := audittest.Open(t, db, audit.Config{RefreshInterval: -1})
	mustStart(t, a)
	db.Exec(t, "INSERT INTO todo VALUES (1, 'before')")
	a.Sync(t)
	db.Exec(t, "ALTER PUBLICATION audit DROP TABLE todo")
	holder := db.Connect(t)
	tx, err := holder.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := tx.Exec(t.Context(), "LOCK TABLE todo IN ROW EXCLUSIVE MODE"); err != nil {
		t.Fatal(err)
	}
	refused := func() {
		t.Helper()
		if err := a.Client.Refresh(t.Context()); err == nil {
			t.Fatal("the table was put back though it is locked")
		}
	}
	refused()
	db.Exec(t, "INSERT INTO todo VALUES (2, 'lost')")
	lost := audittest.Value[string](t, db, "SELECT pg_current_wal_insert_lsn()::text")
	refused()
	if err := tx.Rollback(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := a.Client.Refresh(t.Context()); err != nil {
		t.Fatal(err)
	}
	db.Exec(t, "INSERT INTO todo VALUES (3, 'behind')")
	a.Sync(t)
	if diff := cmp.Diff([]string{"1", "3"}, keysInHistory(t, db, "todo")); diff != "" {
		t.Errorf("history (-want +got):\n%s", diff)
	}
	if audittest.Value[bool](t, db, `
		SELECT EXISTS (SELECT FROM audit.coverage WHERE "table" = 'todo' AND from_position <= $1::text::pg_lsn
			AND (until_position IS NULL OR until_position >= $1::text::pg_lsn))`, lost) {
		t.Errorf("coverage claims the change at %s, which was never in the stream", lost)
	}
}
