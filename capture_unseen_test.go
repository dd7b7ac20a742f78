package audit_test

import (
	"context"
	"errors"
	"testing"

	"github.com/hindsight-go/audit"
	"github.com/hindsight-go/audit/audittest"
	"github.com/hindsight-go/audit/internal/faulttest"
)

// What is written to a partition before it has joined is not in the stream where there
// are no event triggers. Coverage does not claim it, whatever capture was doing meanwhile.
func TestCoverage_PartitionWrittenToBeforeItJoined(t *testing.T) {
	t.Parallel()
	const made = "CREATE TABLE part_1 PARTITION OF part FOR VALUES IN (1); INSERT INTO part SELECT i, 1 FROM generate_series(100, 109) i"
	for name, test := range map[string]struct {
		stopped bool   // there is nobody who captures, and then another instance
		made    string // what is written without having joined
		between string // while the partition joins
		never   bool   // it cannot be tracked as it is
	}{
		"holder lives":                            {made: made},
		"holder is killed":                        {made: made, stopped: true},
		"another partition comes while it joins":  {made: made, between: "CREATE TABLE part_2 PARTITION OF part FOR VALUES IN (2)"},
		"partition is dropped while it joins":     {made: made, between: "DROP TABLE part_1"},
		"root is dropped while it joins":          {made: made, between: "DROP TABLE part"},
		"root leaves the patterns while it joins": {made: made, between: "ALTER TABLE part RENAME TO left_out"},
		"partition is unlogged":                   {made: "CREATE UNLOGGED TABLE part_1 PARTITION OF part FOR VALUES IN (1); INSERT INTO part SELECT i, 1 FROM generate_series(100, 109) i", never: true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			db, store := audittest.NewDatabase(t), audittest.NewDatabase(t)
			db.Exec(t, "CREATE TABLE part (id int, k int, PRIMARY KEY (id, k)) PARTITION BY LIST (k); CREATE TABLE part_0 PARTITION OF part FOR VALUES IN (0)")
			cfg := audit.Config{StoreURL: store.URL(), Tables: []string{"public.part*"}, NoEventTrigger: true, RefreshInterval: -1}
			a := audittest.Open(t, db, cfg)
			mustStart(t, a)
			t.Cleanup(func() { a.Stop(t) })
			db.Exec(t, "INSERT INTO part VALUES (1, 0)")
			a.Sync(t)
			if test.stopped {
				killed, cancel := context.WithCancel(t.Context())
				cancel()
				_ = a.Client.Stop(killed) // which says that it was abrupt
			}
			db.Exec(t, test.made)
			lost, want := positionOf(t, db), int64(11)
			db.Exec(t, "INSERT INTO part VALUES (2, 0)")
			switch {
			case test.stopped:
				a = audittest.Open(t, db, cfg)
				mustStart(t, a)
				t.Cleanup(func() { a.Stop(t) })
			case test.between != "":
				stuck := store.Connect(t)
				for _, sql := range []string{"BEGIN", "LOCK TABLE audit.replica_identities IN EXCLUSIVE MODE"} {
					if _, err := stuck.Exec(t.Context(), sql); err != nil {
						t.Fatal(err)
					}
				}
				refreshed := make(chan error, 1)
				go func() { refreshed <- a.Client.Refresh(t.Context()) }()
				faulttest.Poll(t, faulttest.Patience, "the refresh waits", func() error {
					if !audittest.Value[bool](t, store, "SELECT EXISTS (SELECT FROM pg_locks WHERE relation = 'audit.replica_identities'::regclass AND NOT granted)") {
						return errors.New("it does not")
					}
					return nil
				})
				db.Exec(t, test.between)
				if _, err := stuck.Exec(t.Context(), "ROLLBACK"); err != nil {
					t.Fatal(err)
				}
				<-refreshed // whether it was content is not the question
			}
			for range 2 {
				if err := a.Client.Refresh(t.Context()); err != nil {
					t.Fatal(err)
				}
			}
			a.Sync(t)
			if n, err := a.Client.AtPosition(lost).Table("part").Count(t.Context()); !refused(err) && (n != want || err != nil) {
				t.Errorf("%d rows where there were %d, %v", n, want, err)
			}
			if covers(t, store, "part", lost) {
				t.Errorf("coverage claims %s, of which rows are missing; it is %s", lost, coverageOf(t, store))
			}
		})
	}
}

// covers reports whether the history claims to have all of a table at a position.
func covers(t *testing.T, store *audittest.Database, table string, at audit.Position) bool {
	t.Helper()
	return audittest.Value[bool](t, store, `
		SELECT EXISTS (SELECT FROM audit.coverage WHERE "table" = $1 AND from_position <= $2::text::pg_lsn AND (until_position IS NULL OR until_position >= $2::text::pg_lsn))`,
		table, at.LSN.String())
}

// Until when a table was published outlives who saw it: what somebody else takes out of
// the publication after the holder has gone is refused from there on, and not before.
func TestCoverage_TakenOutBetweenHolders(t *testing.T) {
	t.Parallel()
	for name, harm := range map[string]string{
		"publication dropped": "DROP PUBLICATION audit",
		"table taken out":     "ALTER PUBLICATION audit DROP TABLE part_0",
		"partition made":      "CREATE TABLE part_1 PARTITION OF part FOR VALUES IN (1); INSERT INTO part VALUES (100, 1)",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			db := audittest.NewDatabase(t)
			db.Exec(t, "CREATE TABLE part (id int, k int, PRIMARY KEY (id, k)) PARTITION BY LIST (k); CREATE TABLE part_0 PARTITION OF part FOR VALUES IN (0)")
			start := func() *audittest.Audited {
				a := audittest.Open(t, db, audit.Config{Tables: []string{"public.part*"}, NoEventTrigger: true, RefreshInterval: -1})
				mustStart(t, a)
				t.Cleanup(func() { a.Stop(t) })
				return a
			}
			a := start()
			db.Exec(t, "INSERT INTO part VALUES (1, 0)")
			a.Sync(t)
			seen := positionOf(t, db)
			db.Exec(t, "INSERT INTO part VALUES (2, 0)")
			a.Stop(t)
			a = start() // and looks
			killed, cancel := context.WithCancel(t.Context())
			cancel()
			_ = a.Client.Stop(killed) // which says that it was abrupt
			db.Exec(t, harm)
			db.Exec(t, "INSERT INTO part VALUES (3, 0)")
			lost := positionOf(t, db)
			a = start()
			db.Exec(t, "INSERT INTO part VALUES (4, 0)")
			syncAgain(t, a)
			if n, err := a.Client.AtPosition(seen).Table("part").Count(t.Context()); name == "partition made" && (n != 1 || err != nil) {
				t.Errorf("%d rows before, %v", n, err)
			}
			if !covers(t, db, "part", seen) {
				t.Errorf("coverage does not claim %s, when all was well; it is %s", seen, coverageOf(t, db))
			}
			if covers(t, db, "part", lost) {
				t.Errorf("coverage claims %s; it is %s", lost, coverageOf(t, db))
			}
		})
	}
}

// A transaction is in the WAL before others see what it did, by as much as the flush or a
// standby takes. A look in between does not see the partition that it made, and whose
// rows are not in the stream: they are not claimed because of that look.
func TestCoverage_LookBetweenCommitAndVisible(t *testing.T) {
	t.Parallel()
	server := audittest.NewServer(t, audittest.ServerOptions{Settings: map[string]string{"synchronous_commit": "local"}})
	db, store := server.NewDatabase(t), audittest.NewDatabase(t)
	db.Exec(t, "CREATE TABLE part (id int, k int, PRIMARY KEY (id, k)) PARTITION BY LIST (k); CREATE TABLE part_0 PARTITION OF part FOR VALUES IN (0)")
	a := audittest.Open(t, db, audit.Config{StoreURL: store.URL(), NoEventTrigger: true, RefreshInterval: -1})
	mustStart(t, a)
	t.Cleanup(func() { a.Stop(t) })
	db.Exec(t, "INSERT INTO part VALUES (1, 0)")
	a.Sync(t)
	writer := db.Connect(t)
	db.Exec(t, "ALTER SYSTEM SET synchronous_standby_names = 'nobody'")
	db.Exec(t, "SELECT pg_reload_conf()")
	if _, err := writer.Exec(t.Context(), "SET synchronous_commit = on; BEGIN; CREATE TABLE part_1 PARTITION OF part FOR VALUES IN (1); INSERT INTO part VALUES (2, 1)"); err != nil {
		t.Fatal(err)
	}
	committed := make(chan error, 1)
	go func() {
		_, err := writer.Exec(context.WithoutCancel(t.Context()), "COMMIT")
		committed <- err
	}()
	faulttest.Poll(t, faulttest.Patience, "the commit waits for a standby", func() error {
		if !audittest.Value[bool](t, db, "SELECT EXISTS (SELECT FROM pg_stat_activity WHERE wait_event = 'SyncRep')") {
			return errors.New("it does not")
		}
		return nil
	})
	lost := positionOf(t, db)
	for range 2 {
		refresh(t, a)
	}
	db.Exec(t, "ALTER SYSTEM RESET synchronous_standby_names")
	db.Exec(t, "SELECT pg_reload_conf()")
	if err := <-committed; err != nil {
		t.Fatal(err)
	}
	refresh(t, a)
	a.Sync(t)
	if n, err := a.Client.AtPosition(lost).Table("part").Count(t.Context()); !refused(err) && (n != 2 || err != nil) {
		t.Errorf("%d rows where there were 2, %v", n, err)
	}
	if covers(t, store, "part", lost) {
		t.Errorf("coverage claims %s; it is %s", lost, coverageOf(t, store))
	}
}

func positionOf(t *testing.T, db *audittest.Database) audit.Position {
	t.Helper()
	return must(audit.ParsePosition(audittest.Value[string](t, db, "SELECT pg_current_wal_insert_lsn()::text")))
}

func coverageOf(t *testing.T, store *audittest.Database) string {
	t.Helper()
	return audittest.Value[string](t, store, `SELECT string_agg(from_position || ' to ' || coalesce(until_position::text, 'now'), ', ' ORDER BY from_position) FROM audit.coverage`)
}
