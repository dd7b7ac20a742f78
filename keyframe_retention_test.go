package audit_test

import (
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/hindsight-go/audit"
	"github.com/hindsight-go/audit/audittest"
	"github.com/hindsight-go/audit/store"
)

// age makes the history of today as if it had been made so many days earlier.
func age(t *testing.T, a *audittest.Audited, days int) {
	t.Helper()
	a.Sync(t)
	a.Exec(t, fmt.Sprintf("SELECT audit.ensure_partition(now() - n * interval '1 day') FROM generate_series(1, %d, 20) n", days+20))
	a.Exec(t, fmt.Sprintf("UPDATE audit.changes SET committed_at = committed_at - interval '%d days' WHERE committed_at > now() - interval '1 day'", days))
	a.Exec(t, fmt.Sprintf("UPDATE audit.commit_times SET committed_at = committed_at - interval '%d days' WHERE committed_at > now() - interval '1 day'", days))
}

// months is a retention that none of the tests' own work is past of.
const months = 35 * 24 * time.Hour

// retained prepares tables that history knows whole by a baseline, with changes that are
// past their retention, and returns what they hold.
func retained(t *testing.T, tables int) (*audittest.Audited, func(t *testing.T)) {
	t.Helper()
	var setup []string
	for n := range tables {
		setup = append(setup, fmt.Sprintf("CREATE TABLE t_%d (id int PRIMARY KEY, v text, n int GENERATED ALWAYS AS (id * 2) STORED); INSERT INTO t_%[1]d SELECT n, 'old' FROM generate_series(1, 2500) n", n))
	}
	a := audittest.New(t, audit.Config{Retention: months}, setup...)
	if err := a.Client.Baseline(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	for n := range tables {
		a.Exec(t, fmt.Sprintf(`UPDATE t_%d SET v = 'new' WHERE id %% 2 = 0; DELETE FROM t_%[1]d WHERE id %% 7 = 0; UPDATE t_%[1]d SET id = id + 10000 WHERE id < 20;
			INSERT INTO t_%[1]d SELECT n, 'came' FROM generate_series(5001, 6500) n`, n))
	}
	age(t, a, 100)
	want := make([]string, tables)
	const digest = "SELECT count(*) || ' ' || sum(id) || ' ' || sum(n) || ' ' || count(*) FILTER (WHERE v = 'new') || ' ' || count(*) FILTER (WHERE v = 'old') FROM t_%d"
	for n := range tables {
		want[n] = audittest.Value[string](t, a.Database, fmt.Sprintf(digest, n))
	}
	return a, func(t *testing.T) {
		t.Helper()
		if n := audittest.Value[int](t, a.Database, "SELECT count(*)::int FROM audit.changes WHERE committed_at < now() - interval '70 days'"); n != 0 {
			t.Errorf("%d changes are past their retention", n)
		}
		then := here(t, a)
		for n := range tables {
			a.Exec(t, fmt.Sprintf("TRUNCATE t_%d", n))
		}
		got := make([]string, tables)
		for n := range tables {
			var rows []struct {
				ID int
				V  string
				N  int
			}
			if err := then.Table(fmt.Sprintf("t_%d", n)).List(t.Context(), &rows); err != nil {
				t.Fatal(err)
			}
			var ids, ns, changed, old int
			for _, r := range rows {
				ids, ns = ids+r.ID, ns+r.N
				switch r.V {
				case "new":
					changed++
				case "old":
					old++
				}
			}
			got[n] = fmt.Sprint(len(rows), " ", ids, " ", ns, " ", changed, " ", old)
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("the tables as of then (-want +got):\n%s", diff)
		}
	}
}

// Of instances that maintain at one time, one does, and none takes away what another
// carries along.
func TestRetention_InstancesAtOnce(t *testing.T) {
	t.Parallel()
	a, check := retained(t, 12)
	clients := []*audit.Client{a.Client}
	for range 3 {
		clients = append(clients, openClient(t, audit.Config{SourceURL: a.URL(), Retention: months}))
	}
	for range 3 {
		var all sync.WaitGroup
		for _, c := range clients {
			all.Go(func() {
				if err := audit.KeepPartitions(t.Context(), c); err != nil {
					t.Error(err)
				}
			})
		}
		all.Wait()
	}
	if n := audittest.Value[int](t, a.Database, "SELECT count(*) FROM audit.keyframes"); n != 12 {
		t.Errorf("there are %d keyframes, want 12", n)
	}
	check(t)
}

// Whoever holds the lock maintains, and nobody else; it is a lock that takes the owner.
func TestRetention_LockHeld(t *testing.T) {
	t.Parallel()
	a, check := retained(t, 1)
	conn := a.Connect(t)
	if _, err := conn.Exec(t.Context(), "BEGIN; LOCK TABLE audit.retention IN SHARE UPDATE EXCLUSIVE MODE"); err != nil {
		t.Fatal(err)
	}
	before := audittest.Value[int](t, a.Database, "SELECT count(*) FROM audit.changes")
	if err := audit.KeepPartitions(t.Context(), a.Client); err != nil {
		t.Error(err)
	}
	if n := audittest.Value[int](t, a.Database, "SELECT count(*) FROM audit.changes"); n != before {
		t.Errorf("%d of %d changes are left, while somebody else has the lock", n, before)
	}
	if _, err := conn.Exec(t.Context(), "ROLLBACK"); err != nil {
		t.Fatal(err)
	}
	if err := audit.KeepPartitions(t.Context(), a.Client); err != nil {
		t.Error(err)
	}
	check(t)
}

// A program may end at any place: what is left is neither wrong nor in the way.
func TestRetention_EndsBetweenCarryAndDrop(t *testing.T) {
	t.Parallel()
	for name, end := range map[string]func(t *testing.T, a *audittest.Audited){
		"before the drop": func(t *testing.T, a *audittest.Audited) {
			t.Helper()
			conn := a.Connect(t)
			if _, err := conn.Exec(t.Context(), "BEGIN; LOCK TABLE audit.changes IN ACCESS SHARE MODE"); err != nil {
				t.Fatal(err)
			}
			if err := audit.KeepPartitions(t.Context(), a.Client); err == nil || !strings.Contains(err.Error(), "lock timeout") {
				t.Fatalf("nothing may be dropped while somebody reads it: %v", err)
			}
			if _, err := conn.Exec(t.Context(), "ROLLBACK"); err != nil {
				t.Fatal(err)
			}
			// It is taken up later, when more is past its retention.
			a.Exec(t, "UPDATE t_0 SET v = v WHERE id = 5001")
			age(t, a, 100)
		},
		"behind the drop": func(t *testing.T, a *audittest.Audited) {
			t.Helper()
			a.Exec(t, "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'the end'; END $$; CREATE TRIGGER refuse BEFORE DELETE ON audit.keyframes EXECUTE FUNCTION refuse()")
			if err := audit.KeepPartitions(t.Context(), a.Client); err == nil || !strings.Contains(err.Error(), "the end") {
				t.Fatalf("the end was to come: %v", err)
			}
			a.Exec(t, "DROP TRIGGER refuse ON audit.keyframes; DROP FUNCTION refuse")
		},
		"in the midst of the rows": func(t *testing.T, a *audittest.Audited) {
			t.Helper()
			a.Exec(t, "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN IF NEW.ordinal > 1500 THEN RAISE EXCEPTION 'the end'; END IF; RETURN NEW; END $$; CREATE TRIGGER refuse BEFORE INSERT ON audit.keyframe_rows FOR EACH ROW EXECUTE FUNCTION refuse()")
			if err := audit.KeepPartitions(t.Context(), a.Client); err == nil || !strings.Contains(err.Error(), "the end") {
				t.Fatalf("the end was to come: %v", err)
			}
			a.Exec(t, "DROP TRIGGER refuse ON audit.keyframe_rows; DROP FUNCTION refuse")
			if n := audittest.Value[int](t, a.Database, "SELECT count(*) FROM audit.keyframes WHERE NOT complete"); n != 0 {
				t.Errorf("%d keyframes were begun and left, which the next Baseline would go on with", n)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			a, check := retained(t, 2)
			end(t, a)
			if err := audit.KeepPartitions(t.Context(), a.Client); err != nil {
				t.Error(err)
			}
			if n := audittest.Value[int](t, a.Database, "SELECT count(*) FROM audit.keyframes"); n != 2 {
				t.Errorf("there are %d keyframes, want 2", n)
			}
			check(t)
		})
	}
}

// openStore opens the history of a client below it.
func openStore(t *testing.T, a *audittest.Audited) *store.Store {
	t.Helper()
	pool, err := pgxpool.New(t.Context(), a.URL())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(pool.Close)
	return store.New(pool, "audit", store.Roles{})
}

// A keyframe of history that went while it was read, because its maker was frozen for
// longer than the lock is, is none.
func TestRetention_HistoryGoesWhileItIsRead(t *testing.T) {
	t.Parallel()
	for name, goes := range map[string]string{
		"history":      "SELECT audit.drop_before(now() - interval '40 days')",
		"the keyframe": "DELETE FROM audit.keyframes",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			a, _ := retained(t, 1)
			history := openStore(t, a)
			base := audittest.Value[int64](t, a.Database, "SELECT id FROM audit.keyframes")
			f := store.Frame{Database: a.Name(), Schema: "public", Table: "t_0", RelationID: 1, Position: 1}
			_, err := history.WriteFrame(t.Context(), f, &store.FrameBase{Keyframe: base}, func(w *store.FrameWriter) error {
				a.Exec(t, goes)
				return w.Write(store.FrameRow{Key: "1", HasKey: true, Image: []byte(`{}`)})
			})
			if !errors.Is(err, store.ErrFrameBase) {
				t.Errorf("WriteFrame returned %v", err)
			}
			if n := audittest.Value[int](t, a.Database, "SELECT count(*) FROM audit.keyframes WHERE relation_id = 1"); n != 0 {
				t.Errorf("there are %d keyframes of it", n)
			}
		})
	}
}

// What comes for a month that is past its retention, from a capture that is far behind
// say, is not dropped unless it was carried along.
func TestRetention_LateChanges(t *testing.T) {
	t.Parallel()
	a, check := retained(t, 1)
	history := openStore(t, a)
	before := audittest.Value[int](t, a.Database, "SELECT count(*) FROM audit.changes")
	dropped, err := history.DropBefore(t.Context(), time.Now().Add(-months), 1)
	if !errors.Is(err, store.ErrHorizonMoved) || len(dropped) > 0 {
		t.Errorf("DropBefore dropped %v and returned %v", dropped, err)
	}
	if n := audittest.Value[int](t, a.Database, "SELECT count(*) FROM audit.changes"); n != before {
		t.Errorf("%d of %d changes are left", n, before)
	}
	if err := audit.KeepPartitions(t.Context(), a.Client); err != nil {
		t.Error(err)
	}
	// The month is made again, and goes again.
	a.Exec(t, "SELECT audit.ensure_partition(now() - interval '100 days')")
	if err := audit.KeepPartitions(t.Context(), a.Client); err != nil {
		t.Error(err)
	}
	check(t)
}

// Two baselines of one moment are one.
func TestBaseline_TwiceAtOneMoment(t *testing.T) {
	t.Parallel()
	a := audittest.New(t, audit.Config{}, todoTable, "INSERT INTO todo VALUES (1, 'x')", "CREATE TABLE bare (id int)", "INSERT INTO bare VALUES (1), (1)")
	for range 2 {
		if err := a.Client.Baseline(t.Context(), nil); err != nil {
			t.Fatal(err)
		}
	}
	n := audittest.Value[int](t, a.Database, "SELECT count(*) - count(DISTINCT (relation_id, position)) FROM audit.keyframes")
	if n != 0 {
		t.Errorf("%d keyframes are there twice", n)
	}
	then := here(t, a)
	a.Exec(t, "TRUNCATE todo, bare")
	for table, want := range map[string]int64{"todo": 1, "bare": 2} {
		if got, err := then.Table(table).Count(t.Context()); got != want || err != nil {
			t.Errorf("%s had %d rows, %v, want %d", table, got, err, want)
		}
	}
}

// A baseline has generated columns, also of rows that did not change since.
func TestBaseline_GeneratedColumns(t *testing.T) {
	t.Parallel()
	for name, key := range map[string]string{"with key": "PRIMARY KEY", "without key": ""} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			a := audittest.New(t, audit.Config{}, "CREATE TABLE g (id int "+key+", n int GENERATED ALWAYS AS (id * 2) STORED)", "INSERT INTO g SELECT generate_series(1, 1500)")
			if err := a.Client.Baseline(t.Context(), nil); err != nil {
				t.Fatal(err)
			}
			a.Exec(t, "INSERT INTO g VALUES (2000)")
			then := here(t, a)
			a.Exec(t, "TRUNCATE g")
			var rows []struct{ ID, N int }
			if err := then.Table("g").List(t.Context(), &rows); err != nil {
				t.Fatal(err)
			}
			if len(rows) != 1501 {
				t.Errorf("%d rows, want 1501", len(rows))
			}
			for _, r := range rows {
				if r.N != 2*r.ID {
					t.Errorf("row %d has n = %d", r.ID, r.N)
				}
			}
			if n, err := then.Table("g").Where("n = 2 * id AND n > 2000").Count(t.Context()); n != 501 || err != nil {
				t.Errorf("%d rows by a condition, %v, want 501", n, err)
			}
		})
	}
}
