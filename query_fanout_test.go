package audit_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/hindsight-go/audit"
	"github.com/hindsight-go/audit/audittest"
	"github.com/hindsight-go/audit/internal/faulttest"
)

// watched is a query that is watched, and what came of it.
type watched struct {
	name  string
	query audit.Query

	mu  sync.Mutex
	got []audit.Event // guarded by mu
}

func (w *watched) count() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return len(w.got)
}

// moreConditions are such that the model does not know.
func (m *model) moreConditions(q audit.Query) (string, audit.Query) {
	switch m.IntN(10) {
	case 0:
		return "with context", q.WhereContext(map[string]any{"userId": pick[any](m, 1, "ann")})
	case 1:
		return "not user", q.NotUser(pick[any](m, 1, "ann", "none"))
	case 2:
		return "not table", q.NotTable(pick(m, "todo", "public.users"))
	case 3:
		return "after", q.WhereAfter(map[string]any{"state": pick(m, "new", "done")})
	case 4:
		return "with defect", q.WithDefect()
	case 5:
		return "without environment", q.InEnvironment("")
	case 6:
		return "odd user", q.ByUser(pick(m, `an"n`, `b\`, "ü", "an n"))
	default:
		return "odd tenant", q.ByTenant(pick(m, `an"n`, `b\`, "ü", "1", "1.0"))
	}
}

// TestWatch_RandomQueries watches random queries, some of them too slow to keep up: they
// get what List gives, each change once and in order.
func TestWatch_RandomQueries(t *testing.T) {
	t.Parallel()
	const size, watches = 4000, 80
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	m := &model{Rand: rand.New(rand.NewPCG(seed, 0))} //nolint:gosec // It is to be repeatable.
	m.fill(size)
	odd := []string{`{"userId": "an\"n"}`, `{"user_id": "b\\"}`, `{"userId": "\u00fc", "tenant": "\u00fc"}`, `{"userId": "an n", "tenant": 1}`, `{"tenant": "1"}`, `{"tenant": 1.0}`, `{"tenant": "an\"n"}`}
	for i := range m.changes {
		c := &m.changes[i]
		c.CommittedAt = epoch.Add(c.CommittedAt.Sub(epoch) / 10) // there are partitions for three months
		if m.IntN(10) == 0 {
			c.Stamped, c.RawContext = true, json.RawMessage(pick(m, odd...))
		}
		if m.IntN(20) == 0 {
			c.Defect = "odd"
		}
	}
	h := newHistory(t)
	h.store(t, m.changes[:200]...)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	gate := make(chan struct{})
	all := make([]*watched, watches)
	var running sync.WaitGroup
	for i := range all {
		w := &watched{query: h.client.Changes().Since(epoch.AddDate(-1, 0, 0))}
		for range m.IntN(3) {
			if m.IntN(2) == 0 {
				condition := m.condition()
				w.name, w.query = w.name+", "+condition.name, condition.apply(w.query)
			} else {
				name, query := m.moreConditions(w.query)
				w.name, w.query = w.name+", "+name, query
			}
		}
		all[i] = w
		running.Go(func() {
			for event, err := range w.query.Watch(ctx) {
				if err != nil {
					if !errors.Is(err, context.Canceled) {
						t.Errorf("%s: %v", w.name, err)
					}
					return
				}
				w.mu.Lock()
				w.got = append(w.got, event)
				n := len(w.got)
				w.mu.Unlock()
				if i%7 == 0 && n == 250 {
					select { // falls behind
					case <-gate:
					case <-ctx.Done():
					}
				}
			}
		})
	}
	for rest := m.changes[200:]; len(rest) > 0; {
		n := min(len(rest), 1+m.IntN(200))
		for n < len(rest) && rest[n].Position.LSN == rest[n-1].Position.LSN {
			n++ // transactions are stored whole
		}
		h.store(t, rest[:n]...)
		rest = rest[n:]
	}
	close(gate)
	for _, w := range all {
		want, err := w.query.OldestFirst().List(t.Context())
		if err != nil {
			t.Fatalf("%s: %v", w.name, err)
		}
		faulttest.Poll(t, 2*time.Minute, w.name, func() error {
			if n := w.count(); n < len(want) {
				return fmt.Errorf("%d events, want %d", n, len(want))
			}
			return nil
		})
		for _, database := range []string{"shop", "archive"} {
			if diff := cmp.Diff(textsOf(want, database), textsOf(givenTo(w), database)); diff != "" {
				t.Errorf("%s, %s: %s", w.name, database, diff)
			}
		}
	}
	cancel()
	running.Wait()
}

func givenTo(w *watched) []audit.Change {
	w.mu.Lock()
	defer w.mu.Unlock()
	var changes []audit.Change
	for _, event := range w.got {
		changes = append(changes, event.Change)
	}
	return changes
}

// textsOf is all that there is to a database's changes.
func textsOf(changes []audit.Change, database string) []string {
	texts := []string{}
	for _, c := range changes {
		if c.Database == database {
			texts = append(texts, fmt.Sprintf("%v %s %s %s %s %s", rowOf(c), c.Operation, c.Table, c.Before, c.After, c.RawContext))
		}
	}
	return texts
}

// TestWatch_CursorsOfGivenEvents continues behind any event that the tail has given.
func TestWatch_CursorsOfGivenEvents(t *testing.T) {
	t.Parallel()
	h := newHistory(t)
	h.store(t, change(1, 1))
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	const watches, changes = 20, 30
	var running sync.WaitGroup
	for n := range watches {
		q := h.client.Changes().Operations(audit.Update).Since(epoch.Add(-time.Duration(n) * time.Hour))
		running.Go(func() {
			var got []string
			for len(got) < changes {
				for event, err := range q.Watch(ctx) {
					if err != nil {
						t.Errorf("watch %d: %v", n, err)
						return
					}
					got = append(got, rowOf(event.Change))
					q = q.After(event.Cursor)
					if len(got)%(3+n) == 0 || len(got) == changes {
						break
					}
				}
			}
			if !slices.IsSorted(got) || len(slices.Compact(slices.Clone(got))) != changes {
				t.Errorf("watch %d: %s", n, strings.Join(got, ", "))
			}
		})
	}
	for n := 2; n <= changes; n++ {
		h.store(t, change(n, 1))
	}
	running.Wait()
}

// TestWatch_OneThatFails watches a query among others of which the server says that it
// cannot be: it fails, and the others go on.
func TestWatch_OneThatFails(t *testing.T) {
	t.Parallel()
	h := newHistory(t)
	h.store(t, change(1, 1))
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	var running sync.WaitGroup
	const changes = 5
	for n := range 10 {
		q := h.client.Changes().NotTable(fmt.Sprint("none", n))
		if n == 0 {
			q = h.client.Changes().ChangedTo("state", json.RawMessage("1e200000"))
		}
		q = q.Since(epoch.Add(-time.Hour)).Until(epoch.AddDate(1, 0, 0)).Limit(changes)
		if n == 0 {
			q = q.After(q.OldestFirst().CursorAfter(change(1, 1))) // it begins behind all that there is
		}
		running.Go(func() {
			got := 0
			for _, err := range q.OldestFirst().Watch(ctx) {
				if n == 0 && err != nil && !errors.Is(err, context.DeadlineExceeded) {
					return
				}
				if err != nil {
					t.Errorf("watch %d: %v", n, err)
					return
				}
				got++
			}
			if n == 0 || got != changes {
				t.Errorf("watch %d: %d changes", n, got)
			}
		})
	}
	for n := 2; n <= changes; n++ {
		h.store(t, change(n, 1))
	}
	running.Wait()
}

// TestWatch_ManyDifferent gives each of many watches the one row that it is for.
func TestWatch_ManyDifferent(t *testing.T) {
	t.Parallel()
	const watches = 200
	a := audittest.New(t, audit.Config{}, "CREATE TABLE todo (id int PRIMARY KEY, task text)")
	a.Sync(t)
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	var running sync.WaitGroup
	for n := range watches {
		q := a.Client.Changes().ForTable("todo").ForRow(n).Limit(1).Since(time.Now().Add(-time.Hour))
		if n%2 == 1 {
			q = a.Client.Changes().ChangedTo("task", fmt.Sprint("task ", n)).Limit(1).Since(time.Now().Add(-time.Hour))
		}
		running.Go(func() {
			for event, err := range q.Watch(ctx) {
				if err != nil || event.PrimaryKey != fmt.Sprint(n) {
					t.Errorf("watch %d: row %s, %v", n, event.PrimaryKey, err)
				}
			}
		})
	}
	for n := range watches {
		a.Exec(t, "INSERT INTO todo VALUES ($1, $2)", n, fmt.Sprint("task ", n))
	}
	running.Wait()
}
