package audit_test

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/hindsight-go/audit"
	"github.com/hindsight-go/audit/audittest"
	"github.com/hindsight-go/audit/capture"
	"github.com/hindsight-go/audit/internal/faulttest"
)

// The store goes away in mid-run, for a while. The application notices nothing,
// and nothing is lost.
func TestStoreThatIsAwayForAWhile(t *testing.T) {
	t.Parallel()
	log := faulttest.NewLog(t)
	source := audittest.NewDatabase(t)
	store := audittest.NewServer(t, audittest.ServerOptions{}).NewDatabase(t)
	source.Exec(t, gapTable)
	a := audittest.Open(t, source, audit.Config{StoreURL: store.URL(), Logger: log.Logger()})
	mustStart(t, a)
	source.Exec(t, "INSERT INTO todo VALUES (1, 'hush')")
	a.Sync(t)

	store.Server().StopImmediate(t)
	source.Exec(t, "INSERT INTO todo SELECT n, 'hush' FROM generate_series(2, 1000) n")
	s := awaitState(t, a, capture.Retrying)
	if s.Err == nil {
		t.Error("status does not say why capture retries")
	}
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	if err := a.Client.Sync(ctx); !errors.Is(err, context.DeadlineExceeded) && err == nil {
		t.Errorf("Sync returned %v while the store was away", err)
	}
	source.Exec(t, "UPDATE todo SET task = 'hush hush' WHERE id <= 10")

	store.Server().StartAgain(t)
	syncAgain(t, a)
	if n := audittest.Value[int](t, store, "SELECT count(*) FROM audit.changes"); n != 1010 {
		t.Errorf("history has %d changes, want 1010", n)
	}
	if n := audittest.Value[int](t, store, "SELECT count(DISTINCT (position, sequence)) FROM audit.changes"); n != 1010 {
		t.Errorf("history has %d different changes, want 1010", n)
	}
	if s := statusOf(t, a); s.State != capture.Streaming || s.Err != nil || len(s.Gaps) > 0 {
		t.Errorf("afterwards capture is %s, error %v, gaps %v", s.State, s.Err, s.Gaps)
	}
	expectNoneOf(t, "the log", log.Text(), "hush")
}

// The store does not answer and does not hang up, for longer than the server
// waits for a replication connection that says nothing. The connection to the
// source outlives that: what is behind is the store.
func TestStoreThatHangsDoesNotCostTheReplicationConnection(t *testing.T) {
	t.Parallel()
	source := audittest.NewDatabase(t)
	store := audittest.NewServer(t, audittest.ServerOptions{}).NewDatabase(t)
	proxy := faulttest.NewProxy(t, store.URL())
	source.Exec(t, "CREATE TABLE big (id int PRIMARY KEY, filler text)")
	a := audittest.Open(t, source, audit.Config{StoreURL: proxy.URL()})
	mustStart(t, a)
	a.Sync(t)
	sender := func() int {
		return audittest.Value[int](t, source, "SELECT coalesce(max(active_pid), 0) FROM pg_replication_slots WHERE slot_name = $1", slotOf(source))
	}
	before := sender()

	proxy.Freeze()
	// More than fits into the buffers on the way.
	for range 10 {
		source.Exec(t, "INSERT INTO big SELECT n, repeat(md5(n::text), 10) FROM generate_series((SELECT count(*) + 1 FROM big), (SELECT count(*) + 10000 FROM big)) n")
	}
	faulttest.Pause(t, 25*time.Second)
	if now := sender(); now != before {
		t.Errorf("the slot's reader was process %d and is %d now: the connection was lost", before, now)
	}
	proxy.Thaw()
	a.Sync(t)
	if n := audittest.Value[int](t, store, "SELECT count(*) FROM audit.changes"); n != 100_000 {
		t.Errorf("history has %d changes, want 100000", n)
	}
}

// A full disk, a store that has become read-only, a constraint that somebody put
// there: nothing about the data is wrong, so capture waits until it is over.
func TestStoreThatTakesNothingForAWhile(t *testing.T) {
	t.Parallel()
	for name, code := range map[string]string{
		"disk full": "53100", "out of memory": "53200", "too many connections": "53300",
		"read-only": "25006", "a constraint": "23514", "no right": "42501", "an internal error": "XX000", "a lock": "55P03",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			log := faulttest.NewLog(t)
			source := audittest.NewDatabase(t)
			store := audittest.NewDatabase(t)
			source.Exec(t, gapTable)
			a := audittest.Open(t, source, audit.Config{StoreURL: store.URL(), Logger: log.Logger()})
			mustStart(t, a)
			relent := refuse(t, store, code, "true")
			source.Exec(t, "INSERT INTO todo VALUES (1, 'hush'); INSERT INTO todo VALUES (2, 'hush')")
			s := awaitState(t, a, capture.Retrying)
			expectNoneOf(t, "the status", everyText(s.Err), "hush")
			source.Exec(t, "INSERT INTO todo VALUES (3, 'hush')")
			relent()
			a.Sync(t)
			if diff := cmp.Diff([]string{"1", "2", "3"}, keysInHistory(t, store, "todo")); diff != "" {
				t.Errorf("history (-want +got):\n%s", diff)
			}
			if bent := audittest.Value[[]string](t, store, `
				SELECT coalesce(array_agg(concat_ws(' ', primary_key, defect, after)), '{}') FROM audit.changes
				WHERE defect IS NOT NULL OR after <> jsonb_build_object('id', primary_key::int, 'task', 'hush')`); len(bent) > 0 {
				t.Errorf("changes that are not as they were: %q", bent)
			}
			expectNoneOf(t, "the log", log.Text(), "hush")
		})
	}
}

// The store refuses a row for what is in it. That row is recorded without its
// images, with a defect that says so; those around it are as they were, though
// they were written to the store together.
func TestRowThatTheStoreRefuses(t *testing.T) {
	t.Parallel()
	for name, code := range map[string]string{"class 22": "22P02", "class 54": "54000"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			log := faulttest.NewLog(t)
			source := audittest.NewDatabase(t)
			store := audittest.NewDatabase(t)
			source.Exec(t, "CREATE TABLE todo (id int PRIMARY KEY, task text, tags text[])")
			a := audittest.Open(t, source, audit.Config{StoreURL: store.URL(), Logger: log.Logger()})
			mustStart(t, a)
			refuse(t, store, code, "NEW.after ->> 'task' = 'hush'")
			// Two such rows, each in the midst of others, so that they are read
			// from a backlog in one batch.
			a.Stop(t)
			for id := range 60 {
				task := "fine"
				if id == 20 || id == 45 {
					task = "hush"
				}
				source.Exec(t, "INSERT INTO todo VALUES ($1, $2, '{a,b}')", id, task)
			}
			mustStart(t, a)
			a.Sync(t)
			source.Exec(t, "INSERT INTO todo VALUES (100, 'fine', '{a,b}')")
			// One more, later: caution has to begin anew, and to end again.
			source.Exec(t, "INSERT INTO todo VALUES (101, 'hush', '{a,b}'); ")
			a.Sync(t)
			source.Exec(t, "INSERT INTO todo VALUES (102, 'fine', '{a,b}')")
			a.Sync(t)

			var want []string
			for id := range 60 {
				want = append(want, fmt.Sprint(id))
			}
			want = append(want, "100", "101", "102")
			if diff := cmp.Diff(want, keysInHistory(t, store, "todo")); diff != "" {
				t.Errorf("history (-want +got):\n%s", diff)
			}
			defective := audittest.Value[[]string](t, store, "SELECT array_agg(primary_key ORDER BY position) FROM audit.changes WHERE defect IS NOT NULL")
			if diff := cmp.Diff([]string{"20", "45", "101"}, defective); diff != "" {
				t.Errorf("changes with a defect (-want +got):\n%s", diff)
			}
			bent := audittest.Value[[]string](t, store, `
				SELECT coalesce(array_agg(primary_key ORDER BY position), '{}') FROM audit.changes
				WHERE defect IS NULL AND after <> jsonb_build_object('id', primary_key::int, 'task', 'fine', 'tags', '["a", "b"]'::jsonb)`)
			if len(bent) > 0 {
				t.Errorf("the images of %v suffered for the rows that were refused", bent)
			}
			expectNoneOf(t, "the log", log.Text(), "hush")
			s := statusOf(t, a)
			if s.State != capture.Streaming || s.Changes != int64(len(want)) {
				t.Errorf("capture is %s with %d changes, want %d", s.State, s.Changes, len(want))
			}
		})
	}
}

// A row that the store refuses whatever is left out of it stops capture from
// going on, since going on would be a hole; but it stays alive and tries.
func TestRowThatTheStoreRefusesInEveryForm(t *testing.T) {
	t.Parallel()
	log := faulttest.NewLog(t)
	source := audittest.NewDatabase(t)
	store := audittest.NewDatabase(t)
	source.Exec(t, gapTable)
	a := audittest.Open(t, source, audit.Config{StoreURL: store.URL(), Logger: log.Logger()})
	mustStart(t, a)
	relent := refuse(t, store, "22023", "NEW.primary_key = '2'")
	source.Exec(t, "INSERT INTO todo VALUES (1, 'x')")
	source.Exec(t, "INSERT INTO todo VALUES (2, 'x')")
	source.Exec(t, "INSERT INTO todo VALUES (3, 'x')")
	log.Wait(t, "the store refused data", 4)
	if s := awaitState(t, a, capture.Retrying); s.Err == nil {
		t.Error("status does not say why")
	}
	if keys := keysInHistory(t, store, "todo"); len(keys) > 1 {
		t.Errorf("history has %v: it went on behind the refused row", keys)
	}
	relent()
	a.Sync(t)
	want := []string{"1", "2", "3"}
	if len(statusOf(t, a).Gaps) == 1 { // the store relented too late
		want = []string{"1", "3"}
	}
	if diff := cmp.Diff(want, keysInHistory(t, store, "todo")); diff != "" {
		t.Errorf("history (-want +got):\n%s", diff)
	}
}
