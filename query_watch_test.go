package audit_test

import (
	"context"
	"errors"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5"

	"github.com/hindsight-go/audit"
	"github.com/hindsight-go/audit/audittest"
	"github.com/hindsight-go/audit/internal/faulttest"
)

// watch collects the events of a query until there are n of them.
func watch(t *testing.T, q audit.Query, n int) (events []audit.Event) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	for event, err := range q.Limit(n).Watch(ctx) {
		if err != nil {
			t.Fatalf("after %d of %d events: %v", len(events), n, err)
		}
		events = append(events, event)
	}
	return events
}

func changesOf(events []audit.Event) (changes []audit.Change) {
	for _, event := range events {
		changes = append(changes, event.Change)
	}
	return changes
}

func TestWatchGivesEveryChangeOnce(t *testing.T) {
	t.Parallel()
	h := newHistory(t)
	h.store(t, change(1, 1))
	const total = 600
	started := make(chan struct{})
	done := make(chan []audit.Event)
	go func() {
		var events []audit.Event
		ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
		defer cancel()
		// A change that is in the store when the watch begins tells that it has.
		for event, err := range h.client.Changes().Since(epoch).Limit(total + 1).Watch(ctx) {
			if err != nil {
				t.Errorf("after %d events: %v", len(events), err)
				break
			}
			if events = append(events, event); len(events) == 1 {
				close(started)
			}
		}
		done <- events
	}()
	<-started
	want := []audit.Change{change(1, 1)}
	for n := 2; len(want) <= total; n++ {
		batch := []audit.Change{change(n, 1), change(n, 2), change(n, 3)}
		h.store(t, batch...)
		want = append(want, batch...)
		if n > 20 { // then one large transaction
			batch = nil
			for sequence := 1; len(want)+len(batch) <= total; sequence++ {
				batch = append(batch, change(n+1, sequence))
			}
			h.store(t, batch...)
			want = append(want, batch...)
		}
	}
	if diff := cmp.Diff(places(want), places(changesOf(<-done))); diff != "" {
		t.Error(diff)
	}
}

func TestWatchBeginsNow(t *testing.T) {
	t.Parallel()
	h := newHistory(t)
	h.store(t, change(1, 1))
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	for event, err := range h.client.Changes().Watch(ctx) {
		if !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("%v, %v", event, err)
		}
	}
}

func TestWatchContinuesFromAnyCursor(t *testing.T) {
	t.Parallel()
	h := newHistory(t)
	archived := func(c *audit.Change) { c.Database = "archive" }
	var all []audit.Change
	for n := range 4 {
		// Positions of the two sources have nothing to do with each other.
		all = append(all, change(n, 1), change(n, 2), change(100+n, 1, archived))
	}
	h.store(t, all...)
	whole := watch(t, h.client.Changes().Since(time.Time{}), len(all))
	for i, event := range whole[:len(whole)-1] {
		rest := watch(t, h.client.Changes().After(event.Cursor), len(whole)-i-1)
		if diff := cmp.Diff(places(changesOf(whole[i+1:])), places(changesOf(rest))); diff != "" {
			t.Errorf("from event %d: %s", i, diff)
		}
	}
	// What comes later in either source is not lost, whatever its position.
	last := whole[len(whole)-1].Cursor
	h.store(t, change(4, 1), change(104, 1, archived))
	more := watch(t, h.client.Changes().After(last), 2)
	if diff := cmp.Diff([]string{"104#1", "4#1"}, places(changesOf(more))); diff != "" {
		t.Error(diff)
	}
	page, err := h.client.Changes().OldestFirst().Page(t.Context(), 2)
	if err != nil {
		t.Fatal(err)
	}
	var cursorErr *audit.CursorError
	for _, err := range h.client.Changes().After(page.Next).Watch(t.Context()) {
		if !errors.As(err, &cursorErr) {
			t.Errorf("a page's cursor with two sources: %v", err)
		}
		break
	}
}

func TestWatchContinuesFromAPage(t *testing.T) {
	t.Parallel()
	h := newHistory(t)
	h.store(t, change(1, 1), change(1, 2), change(2, 1))
	page, err := h.client.Changes().OldestFirst().Page(t.Context(), 1)
	if err != nil {
		t.Fatal(err)
	}
	got := watch(t, h.client.Changes().After(page.Next), 2)
	if diff := cmp.Diff([]string{"1#2", "2#1"}, places(changesOf(got))); diff != "" {
		t.Error(diff)
	}
}

func TestWatchSeesATransactionThatBeginsWhereTheCheckpointIs(t *testing.T) {
	t.Parallel()
	h := newHistory(t)
	h.store(t, change(1, 1)) // the checkpoint is 8 bytes behind
	adjacent := change(1, 1, func(c *audit.Change) { c.Position.LSN += 8 })
	first := watch(t, h.client.Changes().Since(epoch), 1)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	got := make(chan audit.Position, 1)
	go func() {
		for event := range h.client.Changes().ForTable("todo").After(first[0].Cursor).Watch(ctx) {
			got <- event.Position
			return
		}
	}()
	h.store(t, adjacent)
	if position := <-got; position != adjacent.Position {
		t.Errorf("got %v, want %v", position, adjacent.Position)
	}
}

func TestWatchPassesWhatItsFiltersLeaveOut(t *testing.T) {
	t.Parallel()
	h := newHistory(t)
	h.store(t, change(1, 1), change(2, 1, in("public", "users")), change(3, 1))
	got := watch(t, h.client.Changes().ForTable("users").Since(epoch), 1)
	if diff := cmp.Diff([]string{"2#1"}, places(changesOf(got))); diff != "" {
		t.Error(diff)
	}
	// The checkpoint moves without changes, as it does with keepalives.
	err := pgx.BeginFunc(t.Context(), h.db.Connect(t), func(tx pgx.Tx) error { return h.reach(t, tx, "shop", at(50, 1)) })
	if err != nil {
		t.Fatal(err)
	}
	h.store(t, change(60, 1, in("public", "users")))
	got = watch(t, h.client.Changes().ForTable("users").After(got[0].Cursor), 1)
	if diff := cmp.Diff([]string{"60#1"}, places(changesOf(got))); diff != "" {
		t.Error(diff)
	}
}

// However many watch, one asks the store whether there is anything new, and equal watches
// read it once.
func TestWatch_ManyOfOneClient(t *testing.T) {
	t.Parallel()
	const watches, changes = 200, 40
	a := audittest.New(t, audit.Config{}, "CREATE TABLE todo (id int PRIMARY KEY, task text)", "CREATE TABLE other (id int PRIMARY KEY)")
	a.Sync(t)
	since := time.Now().Add(-time.Hour)
	got := make([][]string, watches)
	var all sync.WaitGroup
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	for n := range watches {
		q := a.Client.Changes().ForTable("todo").Since(since)
		if n%2 == 1 {
			q = q.Operations(audit.Create)
		}
		if n%10 == 2 {
			q = a.Client.Changes().ForTable("todo").ForRow(n % changes).Since(since)
		}
		want := changes
		if n%10 == 2 {
			want = 1
		}
		all.Go(func() {
			for event, err := range q.Limit(want).Watch(ctx) {
				if err != nil {
					t.Errorf("watch %d: %v", n, err)
					return
				}
				got[n] = append(got[n], event.PrimaryKey)
				clear(event.After) // it is the watch's own
			}
		})
	}
	for n := range changes {
		a.Exec(t, "INSERT INTO todo VALUES ($1, 'x')", n)
		a.Exec(t, "INSERT INTO other VALUES ($1)", n)
	}
	all.Wait()
	for n, keys := range got {
		want := changes
		if n%10 == 2 {
			want = 1
		}
		if len(keys) != want {
			t.Errorf("watch %d has %d events, want %d", n, len(keys), want)
		}
		for i, key := range keys {
			if want > 1 && key != strconv.Itoa(i) {
				t.Fatalf("event %d of watch %d is of row %s", i, n, key)
			}
		}
	}
}

// Idle watches cost the store no more than one does.
func TestWatch_IdleCostsOnePoller(t *testing.T) {
	t.Parallel()
	db := audittest.NewServer(t, audittest.ServerOptions{}).NewDatabase(t)
	db.Exec(t, "CREATE TABLE todo (id int PRIMARY KEY)")
	a := audittest.Open(t, db, audit.Config{RefreshInterval: -1})
	mustStart(t, a)
	a.Sync(t)
	reader := openClient(t, audit.Config{SourceURL: db.URL()})
	scans := func() int64 {
		return audittest.Value[int64](t, db, "SELECT coalesce(sum(seq_scan + idx_scan), 0)::bigint FROM pg_stat_user_tables WHERE relname = 'checkpoints'")
	}
	count := func(watches int) int64 {
		ctx, cancel := context.WithCancel(t.Context())
		var all sync.WaitGroup
		for range watches {
			all.Go(func() {
				for _, err := range reader.Changes().ForTable("todo").Watch(ctx) {
					if err != nil && !errors.Is(err, context.Canceled) {
						t.Error(err)
					}
				}
			})
		}
		faulttest.Pause(t, time.Second)
		before := scans()
		faulttest.Pause(t, 4*time.Second)
		n := scans() - before
		cancel()
		all.Wait()
		return n
	}
	one, many := count(1), count(100)
	if many > 5*max(one, 20) {
		t.Errorf("in the same time one idle watch asked %d times, a hundred %d times", one, many)
	}
}
