package audit_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/hindsight-go/audit"
	"github.com/hindsight-go/audit/audittest"
	"github.com/hindsight-go/audit/capture"
	"github.com/hindsight-go/audit/internal/faulttest"
)

// traced runs a test with event triggers and without.
func traced(t *testing.T, test func(t *testing.T, cfg audit.Config, traced bool)) {
	t.Helper()
	for name, without := range map[string]bool{"event triggers": false, "no event triggers": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			test(t, audit.Config{RefreshInterval: -1, NoEventTrigger: without}, !without)
		})
	}
}

// acts runs statements as the application, none of which may fail.
func acts(t *testing.T, db *audittest.Database, statements ...string) {
	t.Helper()
	conn := db.Connect(t)
	for _, sql := range statements {
		if _, err := conn.Exec(t.Context(), sql); err != nil {
			t.Errorf("the application's %q: %v", sql, err)
		}
	}
}

const partedTable = `CREATE TABLE parted (id int PRIMARY KEY, v text) PARTITION BY RANGE (id); CREATE TABLE parted_1 PARTITION OF parted FOR VALUES FROM (0) TO (10)`

// spans counts the spans in which history covers a table.
func spans(t *testing.T, a *audittest.Audited, table string) int {
	t.Helper()
	return audittest.Value[int](t, a.Database, `SELECT count(*) FROM audit.coverage WHERE "table" = $1`, table)
}

// A root in the publication would publish each new partition at once, and without a key
// no UPDATE of one would pass, until the next look at the earliest.
func TestHost_PartitionedTableLosesItsKey(t *testing.T) {
	t.Parallel()
	traced(t, func(t *testing.T, cfg audit.Config, traced bool) {
		t.Helper()
		a := audittest.New(t, cfg, partedTable)
		acts(t, a.Database, "INSERT INTO parted VALUES (1, 'a')",
			"BEGIN", "ALTER TABLE parted DROP CONSTRAINT parted_pkey", "CREATE TABLE parted_2 PARTITION OF parted FOR VALUES FROM (10) TO (20)",
			"INSERT INTO parted VALUES (11, 'b')", "UPDATE parted SET v = upper(v)", "DELETE FROM parted WHERE id = 11", "COMMIT",
			"CREATE TABLE parted_3 PARTITION OF parted FOR VALUES FROM (20) TO (30)", "INSERT INTO parted VALUES (21, 'c')", "UPDATE parted SET v = v || '!'", "DELETE FROM parted WHERE id = 21",
			"CREATE TABLE far (v text, id int NOT NULL)", "INSERT INTO far VALUES ('d', 31)", "ALTER TABLE parted ATTACH PARTITION far FOR VALUES FROM (30) TO (40)", "UPDATE parted SET v = 'x' WHERE id = 31")
		a.Sync(t)
		got := audittest.Value[int](t, a.Database, `SELECT count(*) FROM audit.changes WHERE "table" = 'parted'`)
		if want := map[bool]int{true: 10, false: 3}[traced]; got != want {
			t.Errorf("history has %d changes, want %d", got, want)
		}
		refresh(t, a)
		if n := spans(t, a, "parted"); traced && n != 1 || !traced && n != 2 {
			t.Errorf("covered in %d spans", n)
		}
	})
}

// A partition that was made before anything is written to it costs no coverage, with
// event triggers or without; one that was written to first does without.
func TestHost_PartitionMadeAhead(t *testing.T) {
	t.Parallel()
	traced(t, func(t *testing.T, cfg audit.Config, traced bool) {
		t.Helper()
		a := audittest.New(t, cfg, partedTable+"; CREATE TABLE bare (id int) PARTITION BY RANGE (id)")
		acts(t, a.Database, "CREATE TABLE parted_2 PARTITION OF parted FOR VALUES FROM (10) TO (20)", "CREATE TABLE bare_1 PARTITION OF bare DEFAULT")
		refresh(t, a)
		acts(t, a.Database, "INSERT INTO parted VALUES (1, 'a'), (11, 'b')", "INSERT INTO bare VALUES (1)", "UPDATE bare SET id = 2")
		tell(t, a, `operation, "table", primary_key`, "CREATE parted 1", "CREATE parted 11", "CREATE bare", "UPDATE bare")
		refresh(t, a)
		for _, table := range []string{"parted", "bare"} {
			if n := spans(t, a, table); n != 1 {
				t.Errorf("%s is covered in %d spans, want 1", table, n)
			}
		}
		acts(t, a.Database, "CREATE TABLE parted_3 PARTITION OF parted FOR VALUES FROM (20) TO (30)", "INSERT INTO parted VALUES (21, 'c')", "TRUNCATE parted_3")
		refresh(t, a)
		if n := spans(t, a, "parted"); traced && n != 1 || !traced && n != 2 {
			t.Errorf("a partition that was written to and emptied: parted is covered in %d spans", n)
		}
		// Taken out by somebody and put in again, it has missed something.
		acts(t, a.Database, "ALTER PUBLICATION audit DROP TABLE parted_1", "INSERT INTO parted VALUES (2, 'd')", "ALTER TABLE parted ADD COLUMN w int")
		before := spans(t, a, "parted")
		refresh(t, a)
		if n := spans(t, a, "parted"); n != before+1 {
			t.Errorf("a partition that was taken out: parted is covered in %d spans, want %d", n, before+1)
		}
		a.Sync(t)
	})
}

// Tables that were tracked on their own, and those that stop being, go on.
func TestHost_PartitionsComeAndGo(t *testing.T) {
	t.Parallel()
	traced(t, func(t *testing.T, cfg audit.Config, _ bool) {
		t.Helper()
		a := audittest.New(t, cfg, partedTable+"; CREATE TABLE own (id int PRIMARY KEY, v text)")
		acts(t, a.Database, "INSERT INTO own VALUES (11, 'a')", "ALTER TABLE parted ATTACH PARTITION own FOR VALUES FROM (10) TO (20)",
			"UPDATE parted SET v = 'b'", "INSERT INTO parted VALUES (1, 'x')")
		refresh(t, a)
		acts(t, a.Database, "UPDATE parted SET v = 'c' WHERE id = 11", "ALTER TABLE parted DETACH PARTITION parted_1", "UPDATE parted_1 SET v = 'y'", "DELETE FROM parted_1")
		refresh(t, a)
		if n := spans(t, a, "parted"); n != 1 {
			t.Errorf("parted is covered in %d spans, want 1", n)
		}
		if n := len(told(t, a, "operation")); n != 6 {
			t.Errorf("history has %d changes, want 6", n)
		}
	})
}

// PostgreSQL 18 refuses UPDATEs of what is published in full and has a virtual column.
func TestHost_VirtualColumn(t *testing.T) {
	t.Parallel()
	db := audittest.NewDatabase(t)
	if db.Server().Version() < 180000 {
		return // they came with 18
	}
	db.Exec(t, "CREATE TABLE todo (id int PRIMARY KEY, v int); CREATE TABLE bare (id int, v int); CREATE TABLE parted (id int PRIMARY KEY, v int) PARTITION BY RANGE (id); CREATE TABLE part PARTITION OF parted DEFAULT")
	a := audittest.Open(t, db, audit.Config{RefreshInterval: -1})
	mustStart(t, a)
	for _, table := range []string{"todo", "bare", "parted"} {
		acts(t, db, "INSERT INTO "+table+" VALUES (1, 1)", "BEGIN", "ALTER TABLE "+table+" ADD COLUMN twice int GENERATED ALWAYS AS (v * 2) VIRTUAL",
			"UPDATE "+table+" SET v = 2", "DELETE FROM "+table, "COMMIT", "INSERT INTO "+table+" VALUES (2, 2)", "UPDATE "+table+" SET v = 3")
	}
	acts(t, db, "ALTER TABLE todo DROP CONSTRAINT todo_pkey", "UPDATE todo SET v = 4")
	if err := a.Client.Refresh(t.Context()); err != nil {
		t.Error(err)
	}
	a.Sync(t)
}

// Between two statements of ours, a name may become that of another table.
func TestHost_TableMadeAnewWhileItJoins(t *testing.T) {
	t.Parallel()
	for name, anew := range map[string]string{
		"dropped and made anew": "DROP TABLE made; CREATE TABLE made (id int)",
		"names exchanged":       "ALTER TABLE made RENAME TO old; ALTER TABLE other RENAME TO made",
		"of another schema":     "ALTER SCHEMA s RENAME TO s_old; CREATE SCHEMA s; CREATE TABLE s.made (id int)",
		"partitions":            "DROP TABLE parted; CREATE TABLE parted (id int) PARTITION BY RANGE (id); CREATE TABLE part PARTITION OF parted DEFAULT",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			db := audittest.NewDatabase(t)
			db.Exec(t, `CREATE TABLE made (id int); ALTER TABLE made REPLICA IDENTITY FULL; CREATE TABLE other (id int);
				CREATE SCHEMA s; CREATE TABLE s.made (id int); ALTER TABLE s.made REPLICA IDENTITY FULL;
				CREATE TABLE parted (id int) PARTITION BY RANGE (id); CREATE TABLE part PARTITION OF parted DEFAULT; ALTER TABLE part REPLICA IDENTITY FULL`)
			pool, err := pgxpool.New(t.Context(), db.URL())
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(pool.Close)
			patterns, err := capture.ParsePatterns([]string{"public.made", "public.parted", "s.made"})
			if err != nil {
				t.Fatal(err)
			}
			setup := &capture.Setup{DB: pool, Slot: db.Name(), Publication: "audit", Patterns: patterns, Logger: slog.New(slog.DiscardHandler)}
			if _, err := setup.EnsurePublication(t.Context(), db.Server().Version()); err != nil {
				t.Fatal(err)
			}
			once := false
			_, pending, err := setup.Join(t.Context(), func(context.Context, map[uint32]string) error {
				if !once {
					once = true
					db.Exec(t, anew)
				}
				return nil
			}, nil)
			if err != nil {
				t.Fatal(err)
			}
			acts(t, db, "INSERT INTO made VALUES (1); INSERT INTO s.made VALUES (1); INSERT INTO parted VALUES (1)",
				"UPDATE made SET id = 2", "UPDATE s.made SET id = 2", "UPDATE parted SET id = 2", "DELETE FROM made", "DELETE FROM parted")
			if len(pending) == 0 {
				t.Error("nothing is left to be tried again")
			}
			tracked, pending, err := setup.Join(t.Context(), func(context.Context, map[uint32]string) error { return nil }, nil)
			if err != nil || len(tracked) != 3 || len(pending) != 0 {
				t.Errorf("the next time: %d are tracked, %d wait, %v", len(tracked), len(pending), err)
			}
			acts(t, db, "UPDATE made SET id = 3; UPDATE s.made SET id = 3; UPDATE parted SET id = 3")
		})
	}
}

// The one statement that PostgreSQL refuses for a published table, and what to run first.
func TestHost_SetUnlogged(t *testing.T) {
	t.Parallel()
	traced(t, func(t *testing.T, cfg audit.Config, _ bool) {
		t.Helper()
		a := audittest.New(t, cfg, partedTable+"; CREATE TABLE todo (id int PRIMARY KEY)")
		conn := a.Connect(t)
		if _, err := conn.Exec(t.Context(), "ALTER TABLE todo SET UNLOGGED"); err == nil || !strings.Contains(err.Error(), "publication") {
			t.Errorf("SET UNLOGGED of a tracked table: %v: docs/operations.md says that it fails", err)
		}
		acts(t, a.Database, "BEGIN", "ALTER PUBLICATION audit DROP TABLE todo, parted_1", "ALTER TABLE todo SET UNLOGGED", "ALTER TABLE parted_1 SET UNLOGGED", "INSERT INTO todo VALUES (1)", "INSERT INTO parted VALUES (1, 'a')", "COMMIT")
		refresh(t, a)
		acts(t, a.Database, "UPDATE parted SET v = 'b'", "DELETE FROM todo")
		open := audittest.Value[int](t, a.Database, "SELECT count(*) FROM audit.coverage WHERE until_position IS NULL")
		if open != 0 {
			t.Errorf("%d tables are covered whose changes are not in the WAL", open)
		}
		said := false
		for _, table := range statusOf(t, a).Tables {
			said = said || table.Pending != nil && strings.Contains(table.Pending.Error(), "parted_1")
		}
		if !said {
			t.Error("Status does not say that a partition is unlogged")
		}
		acts(t, a.Database, "ALTER TABLE parted_1 SET LOGGED", "ALTER TABLE todo SET LOGGED")
		refresh(t, a)
		acts(t, a.Database, "UPDATE parted SET v = 'c'", "INSERT INTO todo VALUES (2)")
		if n := len(told(t, a, "operation")); n != 2 {
			t.Errorf("history has %d changes, want 2", n)
		}
	})
}

// Two migrations at one time both publish partitions, which PostgreSQL has wait for each
// other from 15 on: the second does without.
func TestHost_MigrationsAtOnce(t *testing.T) {
	t.Parallel()
	a := audittest.New(t, audit.Config{RefreshInterval: -1}, partedTable+"; CREATE TABLE other (id int) PARTITION BY RANGE (id); CREATE TABLE other_1 PARTITION OF other FOR VALUES FROM (0) TO (10)")
	first, second := a.Connect(t), a.Connect(t)
	for _, act := range []struct {
		conn *pgx.Conn
		sql  string
	}{
		{second, "SET statement_timeout = '20s'; BEGIN; LOCK TABLE other IN ACCESS EXCLUSIVE MODE"},
		{first, "BEGIN; CREATE TABLE parted_2 PARTITION OF parted FOR VALUES FROM (10) TO (20)"},
		{second, "CREATE TABLE other_2 PARTITION OF other FOR VALUES FROM (10) TO (20); INSERT INTO other VALUES (11); UPDATE other SET id = 12; COMMIT"},
		{first, "LOCK TABLE other IN ACCESS EXCLUSIVE MODE; INSERT INTO parted VALUES (11, 'x'); COMMIT"},
	} {
		if _, err := act.conn.Exec(t.Context(), act.sql); err != nil {
			t.Fatalf("%s: %v", act.sql, err)
		}
	}
	refresh(t, a)
	acts(t, a.Database, "UPDATE parted SET v = 'y'", "UPDATE other SET id = 13")
	if n := audittest.Value[int](t, a.Database, "SELECT count(*) FROM pg_publication_tables WHERE pubname = 'audit'"); n != 4 {
		t.Errorf("%d partitions are published, want 4", n)
	}
	if n := spans(t, a, "parted"); n != 1 {
		t.Errorf("parted is covered in %d spans, want 1", n)
	}
	a.Sync(t)
}

// Tables join, whatever capture waits for.
func TestHost_RefreshDoesNotWaitForTheStream(t *testing.T) {
	t.Parallel()
	a := audittest.New(t, audit.Config{RefreshInterval: -1}, partedTable)
	blocker := a.Connect(t)
	if _, err := blocker.Exec(t.Context(), "BEGIN; LOCK TABLE audit.changes IN SHARE MODE"); err != nil {
		t.Fatal(err)
	}
	acts(t, a.Database, "INSERT INTO parted SELECT n % 10, 'x' FROM generate_series(1, 9) n", "CREATE TABLE bare (id int) PARTITION BY LIST (id)", "CREATE TABLE bare_1 PARTITION OF bare DEFAULT")
	refresh(t, a)
	acts(t, a.Database, "INSERT INTO bare VALUES (1)", "UPDATE bare SET id = 2", "DELETE FROM bare")
	if n := audittest.Value[int](t, a.Database, "SELECT count(*) FROM audit.changes"); n != 0 {
		t.Errorf("capture was to stand, and has stored %d changes", n)
	}
	if n := audittest.Value[int](t, a.Database, "SELECT count(*) FROM pg_publication_tables WHERE tablename = 'bare_1'"); n != 1 {
		t.Error("the new table has not joined")
	}
	if _, err := blocker.Exec(t.Context(), "ROLLBACK"); err != nil {
		t.Fatal(err)
	}
	faulttest.Poll(t, faulttest.Patience, "capture goes on", func() error {
		if n := len(told(t, a, "operation")); n != 12 {
			return fmt.Errorf("history has %d changes, want 12", n)
		}
		return nil
	})
}

// A program that is frozen while it has a table join, or whose host vanishes just then,
// holds the lock on that table. Others write to it again within seconds.
func TestHost_ProgramFreezesWhileATableJoins(t *testing.T) {
	t.Parallel()
	db := audittest.NewDatabase(t)
	proxy := faulttest.NewProxy(t, db.URL())
	client := openClient(t, audit.Config{SourceURL: proxy.URL(), StoreURL: audittest.NewDatabase(t).URL(), Tables: []string{"public.*"}, NoEventTrigger: true, RefreshInterval: -1})
	if err := client.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(proxy.Thaw) // before it is closed
	db.Exec(t, "CREATE TABLE late (id int PRIMARY KEY)")
	var once sync.Once
	proxy.Rewrite(func(answer []byte) {
		if bytes.Contains(answer, []byte("ALTER PUBLICATION\x00")) {
			once.Do(proxy.Freeze)
		}
	})
	go func() { _ = client.Refresh(t.Context()) }() // which is stuck
	faulttest.Poll(t, faulttest.Patience, "the table is locked", func() error {
		if !audittest.Value[bool](t, db, "SELECT EXISTS (SELECT FROM pg_locks WHERE relation = 'late'::regclass AND mode = 'AccessExclusiveLock' AND granted)") {
			return errors.New("it is not")
		}
		return nil
	})
	db.Exec(t, "SET lock_timeout = '15s'; INSERT INTO late VALUES (1)")
}
