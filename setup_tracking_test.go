package audit_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/hindsight-go/audit"
	"github.com/hindsight-go/audit/audittest"
	"github.com/hindsight-go/audit/capture"
	"github.com/hindsight-go/audit/internal/faulttest"
)

// Somebody reads a table in a long transaction, or writes to it. An ALTER of ours
// waits behind him only a moment, since everybody else waits behind the ALTER.
func TestApplicationNeverQueuesBehindAnAlter(t *testing.T) {
	t.Parallel()
	for name, hold := range map[string]string{
		"a reader": "SELECT count(*) FROM held",
		"a writer": "INSERT INTO held VALUES (0, 'open')",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			db := audittest.NewDatabase(t)
			a := audittest.Open(t, db, audit.Config{RefreshInterval: 100 * time.Millisecond})
			mustStart(t, a)
			db.Exec(t, "BEGIN; CREATE TABLE held (id int PRIMARY KEY, task text); CREATE TABLE free (id int PRIMARY KEY); LOCK held IN ACCESS SHARE MODE")
			holder := db.Connect(t)
			// The tables appear with a lock on one of them.
			db.Exec(t, "COMMIT")
			tx, err := holder.Begin(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			// It may have joined by now, which the writer has to be ready for.
			if _, err := tx.Exec(t.Context(), "ALTER TABLE held REPLICA IDENTITY DEFAULT; "); err != nil {
				t.Fatal(err)
			}
			_ = tx.Rollback(t.Context())
			a.Stop(t)
			db.Exec(t, "ALTER TABLE held REPLICA IDENTITY DEFAULT; ALTER TABLE free REPLICA IDENTITY DEFAULT")
			db.Exec(t, "ALTER PUBLICATION audit SET TABLE "+orDummy(t, db))
			if tx, err = holder.Begin(t.Context()); err != nil {
				t.Fatal(err)
			}
			if _, err := tx.Exec(t.Context(), hold); err != nil {
				t.Fatal(err)
			}

			started := make(chan error, 1)
			go func() { started <- a.Client.Start(context.WithoutCancel(t.Context())) }()
			t.Cleanup(func() { a.Stop(t) })
			app := db.Connect(t)
			var slowest time.Duration
			n, deadline := 0, time.NewTimer(3*time.Second)
			for done := false; !done; n++ {
				began := time.Now()
				if _, err := app.Exec(t.Context(), "INSERT INTO held VALUES ($1, 'app')", n+1); err != nil {
					t.Fatalf("the application's INSERT: %v", err)
				}
				if _, err := app.Exec(t.Context(), "UPDATE held SET task = 'app, too' WHERE id = $1", n+1); err != nil {
					t.Fatalf("the application's UPDATE: %v", err)
				}
				slowest = max(slowest, time.Since(began))
				select {
				case <-deadline.C:
					done = true
				default:
				}
			}
			t.Logf("%d times two statements while capture tried to get its lock; the slowest took %s", n, slowest)
			// Behind a waiting ALTER it would have been as long as the holder is there,
			// which is for good. Twice our lock_timeout, and much for the machine.
			if slowest > 10*time.Second {
				t.Errorf("the application had to wait %s", slowest)
			}
			if n < 2 {
				t.Errorf("the application could do only %d statements", n)
			}
			if hold[0] == 'S' {
				// The slot does not wait for readers: capture runs, all but this table.
				if err := <-started; err != nil {
					t.Fatal(err)
				}
				pending := ""
				for _, table := range statusOf(t, a).Tables {
					if table.Table == "held" && table.Pending != nil {
						pending = table.Pending.Error()
					}
				}
				if !strings.Contains(pending, "55P03") {
					t.Errorf("status does not say that the table waits for a lock: %q", pending)
				}
				if err := a.Client.Refresh(t.Context()); err == nil || !strings.Contains(err.Error(), "held") {
					t.Errorf("Refresh returned %v, which does not name the table", err)
				}
			}
			if err := tx.Commit(t.Context()); err != nil {
				t.Fatal(err)
			}
			if hold[0] != 'S' {
				if err := <-started; err != nil {
					t.Fatal(err)
				}
			}
			faulttest.Poll(t, faulttest.Patience, "the table joins", func() error {
				if err := a.Client.Refresh(t.Context()); err != nil {
					return err
				}
				if !slices.ContainsFunc(statusOf(t, a).Tables, func(s audit.TableStatus) bool {
					return s.Table == "held" && s.Pending == nil && s.Until == 0
				}) {
					return errors.New("it is not tracked")
				}
				return nil
			})
			before := audittest.Value[string](t, db, "SELECT pg_current_wal_insert_lsn()::text")
			db.Exec(t, "INSERT INTO held VALUES (-1, 'tracked')")
			a.Sync(t)
			if keys := keysInHistory(t, db, "held"); len(keys) == 0 || keys[len(keys)-1] != "-1" {
				t.Errorf("history has the keys %v", keys)
			}
			// Coverage may not claim what was written before.
			if !audittest.Value[bool](t, db, `
				SELECT from_position <= $1::text::pg_lsn
					AND (SELECT count(*) FROM held) - 1 <= (SELECT count(DISTINCT primary_key) FROM audit.changes WHERE "table" = 'held')
						+ (SELECT count(*) FROM held WHERE task LIKE 'app%' OR task = 'open')
				FROM audit.coverage WHERE "table" = 'held' AND until_position IS NULL`, before) {
				t.Error("coverage begins after the table was reported as tracked")
			}
			a.Check(t)
		})
	}
}

// orDummy names a table to leave in the publication.
func orDummy(t *testing.T, db *audittest.Database) string {
	t.Helper()
	db.Exec(t, "CREATE TABLE dummy (id int PRIMARY KEY)")
	return "dummy"
}

// Making the slot waits for everybody who writes. That ends with the context,
// and the error says who it was.
func TestSlotCreationSaysWhoIsInTheWay(t *testing.T) {
	t.Parallel()
	server := audittest.NewServer(t, audittest.ServerOptions{})
	for name, patience := range map[string]time.Duration{"short": 0, "long": 5 * time.Second} {
		for _, plain := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s plain role %t", name, plain), func(t *testing.T) {
				db := server.NewDatabase(t)
				db.Exec(t, gapTable+"; CREATE TABLE elsewhere (id int)")
				config := audit.Config{SourceURL: db.URL(), Tables: []string{"public.todo"}}
				if plain {
					role := newRole(t, db, "REPLICATION")
					config.SourceURL = asRole(t, db, role)
					db.Exec(t, "GRANT CREATE ON DATABASE "+db.Name()+" TO "+role+"; ALTER TABLE todo OWNER TO "+role)
				}
				conn := db.Connect(t)
				tx, err := conn.Begin(t.Context())
				if err != nil {
					t.Fatal(err)
				}
				if _, err := tx.Exec(t.Context(), "INSERT INTO elsewhere VALUES (1)"); err != nil {
					t.Fatal(err)
				}
				client := openClient(t, config)
				ctx, cancel := context.WithTimeout(t.Context(), patience)
				defer cancel()
				ended := context.DeadlineExceeded
				if name == "short" {
					// As soon as it waits, and so before it had its first look around.
					ctx, cancel = context.WithCancel(t.Context())
					defer cancel()
					ended = context.Canceled
					go faulttest.Poll(t, faulttest.Patience, "the slot being made", func() error {
						if audittest.Value[bool](t, db, `SELECT EXISTS (SELECT FROM pg_stat_activity WHERE datname = current_database() AND state = 'active' AND query LIKE 'SELECT lsn%pg_create_logical%')`) {
							cancel()
							return nil
						}
						return errors.New("nobody makes one")
					})
				}
				began := time.Now()
				err = client.Start(ctx)
				var blocked *capture.SlotBlockedError
				if !errors.As(err, &blocked) || !errors.Is(err, ended) {
					t.Fatalf("Start returned %v, want a *SlotBlockedError", err)
				}
				if after := time.Since(began); after > patience+time.Minute {
					t.Errorf("Start returned after %s", after)
				}
				pid := int(conn.PgConn().PID())
				if !slices.ContainsFunc(blocked.Blockers, func(b capture.Blocker) bool { return b.PID == pid }) {
					t.Errorf("the error does not name process %d: %v", pid, err)
				}
				if err := tx.Commit(t.Context()); err != nil {
					t.Fatal(err)
				}
				// Nothing of the attempt is in the way of the next.
				faulttest.Poll(t, faulttest.Patience, "start", func() error { return client.Start(context.WithoutCancel(t.Context())) })
				if err := client.Stop(t.Context()); err != nil {
					t.Error(err)
				}
				if n := audittest.Value[int](t, db, "SELECT count(*) FROM pg_replication_slots WHERE database = current_database()"); n != 1 {
					t.Errorf("there are %d slots", n)
				}
			})
		}
	}
}

// A table made while capture runs is tracked soon, and at once for those who ask.
func TestNewTablesJoinByThemselves(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		interval time.Duration
		ask      func(t *testing.T, a *audittest.Audited)
	}{
		"within the interval": {200 * time.Millisecond, func(*testing.T, *audittest.Audited) {}},
		"by Refresh": {-1, func(t *testing.T, a *audittest.Audited) {
			t.Helper()
			if err := a.Client.Refresh(t.Context()); err != nil {
				t.Error(err)
			}
		}},
		"by a message": {-1, func(t *testing.T, a *audittest.Audited) {
			t.Helper()
			a.Exec(t, "SELECT pg_logical_emit_message(false, 'audit_refresh', '')")
		}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			a := audittest.New(t, audit.Config{RefreshInterval: test.interval})
			a.Exec(t, "CREATE TABLE later (id int PRIMARY KEY); CREATE TABLE keyless (n int)")
			test.ask(t, a)
			faulttest.Poll(t, faulttest.Patience, "the tables join", func() error {
				if n := audittest.Value[int](t, a.Database, "SELECT count(*) FROM audit.coverage WHERE \"table\" IN ('later', 'keyless') AND until_position IS NULL"); n != 2 {
					return fmt.Errorf("%d of 2 are tracked", n)
				}
				return nil
			})
			a.Exec(t, "INSERT INTO later VALUES (1); INSERT INTO keyless VALUES (1)")
			a.Exec(t, "UPDATE later SET id = 2; UPDATE keyless SET n = 2; DELETE FROM keyless")
			a.Sync(t)
			if got := len(keysOrNone(t, a.Database, "later")) + len(keysOrNone(t, a.Database, "keyless")); got != 5 {
				t.Errorf("history has %d changes, want 5", got)
			}
		})
	}
}

// From the moment a table is published its UPDATE and DELETE need a replica
// identity, or they fail in the application.
func TestPublishingNeverMakesAnUpdateFail(t *testing.T) {
	t.Parallel()
	a := audittest.New(t, audit.Config{RefreshInterval: 20 * time.Millisecond})
	conn := a.Connect(t)
	for n := range 30 {
		table := fmt.Sprintf("keyless_%d", n)
		a.Exec(t, fmt.Sprintf("CREATE TABLE %s (n int); INSERT INTO %[1]s VALUES (0)", table))
		for range 15 {
			if _, err := conn.Exec(t.Context(), "UPDATE "+table+" SET n = n + 1"); err != nil {
				t.Fatalf("the application's UPDATE: %v", err)
			}
		}
		if n%3 == 0 {
			if _, err := conn.Exec(t.Context(), fmt.Sprintf("CREATE TABLE p_%d (n int) PARTITION BY LIST (n); CREATE TABLE p_%[1]d_1 PARTITION OF p_%[1]d DEFAULT; INSERT INTO p_%[1]d VALUES (1)", n)); err != nil {
				t.Fatal(err)
			}
			for range 10 {
				if _, err := conn.Exec(t.Context(), fmt.Sprintf("UPDATE p_%d SET n = n + 1", n)); err != nil {
					t.Fatalf("the application's UPDATE of a partitioned table: %v", err)
				}
			}
			// A partition that comes later is published with its root at once.
			if _, err := conn.Exec(t.Context(), fmt.Sprintf("CREATE TABLE p_%d_2 PARTITION OF p_%[1]d FOR VALUES IN (1000); INSERT INTO p_%[1]d VALUES (1000); UPDATE p_%[1]d SET n = 1000 WHERE n = 1000", n)); err != nil {
				t.Fatalf("the application's UPDATE of a new partition: %v", err)
			}
		}
	}
	if err := a.Client.Refresh(t.Context()); err != nil {
		t.Error(err)
	}
}

// The application's owner changes his tables while they are tracked; none of it
// needs us.
func TestApplicationsDDLGoesOnWorking(t *testing.T) {
	t.Parallel()
	db := audittest.NewDatabase(t)
	db.Exec(t, "CREATE TABLE todo (id int PRIMARY KEY, task text)")
	role := newRole(t, db, "")
	db.Exec(t, "GRANT CREATE ON SCHEMA public TO "+role+"; ALTER TABLE todo OWNER TO "+role)
	a := audittest.Open(t, db, audit.Config{RefreshInterval: 50 * time.Millisecond})
	mustStart(t, a)
	conn := faulttest.Connect(t, asRole(t, db, role))
	for _, sql := range []string{
		"INSERT INTO todo VALUES (1, 'x')",
		"ALTER TABLE todo ADD COLUMN note text DEFAULT 'n'", "UPDATE todo SET note = 'm'",
		"ALTER TABLE todo DROP CONSTRAINT todo_pkey", "UPDATE todo SET task = 'without a key'", "DELETE FROM todo",
		"INSERT INTO todo VALUES (2, 'x', 'y')", "ALTER TABLE todo ADD PRIMARY KEY (id)", "ALTER TABLE todo RENAME task TO title",
		"ALTER TABLE todo ALTER title TYPE varchar(50)", "UPDATE todo SET title = 't'", "ALTER TABLE todo DROP COLUMN note",
		// SET UNLOGGED is the one thing that PostgreSQL refuses for a published table.
		"CREATE TABLE another (id int PRIMARY KEY)", "INSERT INTO another VALUES (1)", "DROP TABLE another", "TRUNCATE todo",
		"ALTER TABLE todo RENAME TO done", "INSERT INTO done VALUES (3, 'x')", "VACUUM FULL done", "UPDATE done SET title = 'v'",
		"DROP TABLE done",
	} {
		if _, err := conn.Exec(t.Context(), sql); err != nil {
			t.Errorf("the application's %q: %v", sql, err)
		}
	}
	a.Sync(t)
	if s := statusOf(t, a); s.State != capture.Streaming {
		t.Errorf("capture is %s: %v", s.State, s.Err)
	}
}

// Coverage of a table that is renamed, moved, dropped and made again says what
// history holds under which name.
func TestCoverageFollowsATable(t *testing.T) {
	t.Parallel()
	a := audittest.New(t, audit.Config{Tables: []string{"public.*", "!public.hidden"}, RefreshInterval: -1}, gapTable, "CREATE SCHEMA attic")
	refresh := func() {
		t.Helper()
		if err := a.Client.Refresh(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	// tracked returns the tables that coverage says are tracked, and fails if one
	// is so twice.
	tracked := func() []string {
		t.Helper()
		names := []string{}
		for _, table := range statusOf(t, a).Tables {
			if table.Until == 0 && table.Pending == nil {
				names = append(names, table.Schema+"."+table.Table)
			}
		}
		slices.Sort(names)
		return names
	}
	expect := func(what string, want ...string) {
		t.Helper()
		refresh()
		if diff := cmp.Diff(want, tracked(), cmp.Transformer("nil", func(s []string) []string { return append([]string{}, s...) })); diff != "" {
			t.Errorf("%s: tables tracked (-want +got):\n%s", what, diff)
		}
	}
	expect("at first", "public.todo")
	a.Exec(t, "ALTER TABLE todo RENAME TO done")
	expect("renamed", "public.done")
	a.Exec(t, "ALTER TABLE done RENAME TO todo")
	expect("renamed back", "public.todo")
	a.Exec(t, "DROP TABLE todo")
	expect("dropped")
	a.Exec(t, gapTable)
	expect("made again", "public.todo")
	// Dropped and made again between two looks.
	a.Exec(t, "DROP TABLE todo; "+gapTable)
	expect("exchanged", "public.todo")
	a.Exec(t, "INSERT INTO todo VALUES (1, 'x')")
	a.Sync(t)
	if !audittest.Value[bool](t, a.Database, `
		SELECT count(*) = 1 FROM audit.coverage v, audit.changes c
		WHERE v."table" = 'todo' AND c."table" = 'todo' AND c.position >= v.from_position AND (v.until_position IS NULL OR c.position < v.until_position)`) {
		t.Error("the change behind the exchange is not covered exactly once")
	}
	a.Exec(t, "ALTER TABLE todo RENAME TO hidden")
	expect("renamed to a name that is excluded")
	a.Exec(t, "ALTER TABLE hidden RENAME TO todo")
	expect("renamed back from it", "public.todo")
	a.Exec(t, "ALTER TABLE todo SET SCHEMA attic")
	expect("moved to a schema that is not tracked")
	a.Exec(t, gapTable+"; INSERT INTO attic.todo VALUES (5, 'x')")
	expect("another takes its name", "public.todo")
	// Every stay of a table in coverage ends after it began, and none overlaps
	// another under the same name.
	if n := audittest.Value[int](t, a.Database, `
		SELECT count(*) FROM audit.coverage a LEFT JOIN audit.coverage b
			ON a.schema = b.schema AND a."table" = b."table" AND a.ctid <> b.ctid
			AND a.from_position < coalesce(b.until_position, 'FFFFFFFF/FFFFFFFF') AND b.from_position < coalesce(a.until_position, 'FFFFFFFF/FFFFFFFF')
		WHERE a.until_position < a.from_position OR b.schema IS NOT NULL`); n != 0 {
		t.Errorf("%d stays in coverage overlap or are reversed", n)
	}
}

// A table that the configuration names no longer is left alone from then on.
func TestTableTakenOutOfTheConfigurationLeaves(t *testing.T) {
	t.Parallel()
	db := audittest.NewDatabase(t)
	db.Exec(t, "CREATE TABLE todo (id int PRIMARY KEY); CREATE TABLE session (id int PRIMARY KEY, code int NOT NULL); CREATE UNIQUE INDEX by_code ON session (code); ALTER TABLE session REPLICA IDENTITY USING INDEX by_code")
	a := audittest.Open(t, db, audit.Config{})
	mustStart(t, a)
	db.Exec(t, "INSERT INTO session VALUES (1, 1); INSERT INTO todo VALUES (1)")
	a.Sync(t)
	a.Stop(t)

	b := audittest.Open(t, db, audit.Config{Tables: []string{"*.*", "!public.session"}})
	mustStart(t, b)
	db.Exec(t, "INSERT INTO session VALUES (2, 2); INSERT INTO todo VALUES (2)")
	b.Sync(t)
	b.Stop(t)
	if diff := cmp.Diff([]string{"1"}, keysInHistory(t, db, "session")); diff != "" {
		t.Errorf("history of the table that left (-want +got):\n%s", diff)
	}
	if got := audittest.Value[string](t, db, "SELECT relreplident::text FROM pg_class WHERE relname = 'session'"); got != "i" {
		t.Errorf("its replica identity is %q, it was that of an index", got)
	}
	if n := audittest.Value[int](t, db, "SELECT count(*) FROM pg_publication_tables WHERE tablename = 'session'"); n != 0 {
		t.Error("it is published")
	}
	if n := audittest.Value[int](t, db, `SELECT count(*) FROM audit.coverage WHERE "table" = 'session' AND until_position IS NULL`); n != 0 {
		t.Error("coverage says that it is tracked")
	}
	// And comes back.
	mustStart(t, a)
	db.Exec(t, "INSERT INTO session VALUES (3, 3)")
	a.Check(t)
	if diff := cmp.Diff([]string{"1", "3"}, keysInHistory(t, db, "session")); diff != "" {
		t.Errorf("history of the table that is back (-want +got):\n%s", diff)
	}
	if !audittest.Value[bool](t, db, `
		SELECT count(*) = 2 AND bool_or(until_position IS NULL) AND bool_and(until_position IS NULL OR until_position < (SELECT max(from_position) FROM audit.coverage WHERE "table" = 'session'))
		FROM audit.coverage WHERE "table" = 'session'`) {
		t.Error("coverage does not tell of two stays")
	}
}

// Whoever asks at the same time gets the same answer, and each table joins once.
func TestConcurrentRefreshes(t *testing.T) {
	t.Parallel()
	a := audittest.New(t, audit.Config{RefreshInterval: 20 * time.Millisecond})
	other := audittest.Open(t, a.Database, audit.Config{})
	mustStart(t, other)
	var wg sync.WaitGroup
	for round := range 5 {
		for n := range 5 {
			a.Exec(t, fmt.Sprintf("CREATE TABLE t_%d_%d (id int PRIMARY KEY)", round, n))
		}
		for n := range 6 {
			client := a.Client
			if n%2 == 1 {
				client = other.Client
			}
			wg.Go(func() {
				ctx, cancel := context.WithTimeout(t.Context(), faulttest.Patience)
				defer cancel()
				if err := client.Refresh(ctx); err != nil {
					t.Errorf("refresh: %v", err)
				}
			})
		}
		wg.Wait()
	}
	if n := audittest.Value[int](t, a.Database, "SELECT count(*) FROM audit.coverage WHERE until_position IS NULL"); n != 25 {
		t.Errorf("coverage has %d open stays, want 25", n)
	}
	if n := audittest.Value[int](t, a.Database, "SELECT count(*) FROM audit.coverage"); n != 25 {
		t.Errorf("coverage has %d stays, want 25", n)
	}
}
