package audit_test

import (
	"errors"
	"math"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/hindsight-go/audit"
)

// Times that PostgreSQL has no number for are before, or after, everything.
func TestWindow_TimesBeyondPostgreSQL(t *testing.T) {
	t.Parallel()
	h := newHistory(t)
	h.store(t, change(1, 1), change(2, 1))
	q := h.client.Changes()
	both := []string{"2#1", "1#1"}
	for name, far := range map[string]time.Time{
		"the last of Go":         time.Unix(math.MaxInt64-62135596801, 999999999),
		"year 292277026596":      time.Date(292277026596, 1, 1, 0, 0, 0, 0, time.UTC),
		"year 294277":            time.Date(294277, 1, 1, 0, 0, 0, 0, time.UTC),
		"the last of PostgreSQL": time.Date(294276, 12, 31, 23, 59, 59, 999_999_000, time.UTC),
		"the last microseconds":  time.Date(294276, 12, 31, 23, 59, 59, 999_999_999, time.UTC),
		"year 9999 of others":    time.Date(9999, 12, 31, 23, 59, 59, 0, time.UTC),
		"wrapped around":         time.Unix(1<<62, 0),
	} {
		for filter, test := range map[string]struct {
			query audit.Query
			want  []string
		}{
			"Until":   {q.Until(far), both},
			"Since":   {q.Since(far), nil},
			"Between": {q.Between(time.Time{}, far), both},
			"oldest":  {q.Between(time.Time{}, far).OldestFirst(), []string{"1#1", "2#1"}},
		} {
			got, err := test.query.List(t.Context())
			if diff := cmp.Diff(test.want, places(got)); err != nil || diff != "" {
				t.Errorf("%s, %s: %v %s", filter, name, err, diff)
			}
			if n, err := test.query.Count(t.Context()); err != nil || int(n) != len(test.want) {
				t.Errorf("%s, %s: %d, %v", filter, name, n, err)
			}
		}
	}
	for name, early := range map[string]time.Time{
		"the first of Go":         time.Unix(math.MinInt64, 0),
		"year -300000":            time.Date(-300000, 1, 1, 0, 0, 0, 0, time.UTC),
		"the first of PostgreSQL": time.Date(-4713, 11, 24, 0, 0, 0, 0, time.UTC),
		"just before":             time.Date(-4713, 11, 23, 23, 59, 59, 999_999_999, time.UTC),
		"year 1":                  time.Date(1, 1, 1, 0, 0, 0, 1, time.UTC),
	} {
		for filter, test := range map[string]struct {
			query audit.Query
			want  []string
		}{
			"Since": {q.Since(early), both},
			"Until": {q.Until(early), nil},
		} {
			got, err := test.query.List(t.Context())
			if diff := cmp.Diff(test.want, places(got)); err != nil || diff != "" {
				t.Errorf("%s, %s: %v %s", filter, name, err, diff)
			}
		}
	}
}

// Windows that have nothing in common hold nothing. One that ends before it begins is a
// mistake.
func TestWindow_Disjoint(t *testing.T) {
	t.Parallel()
	h := newHistory(t)
	h.store(t, change(1, 1, with(`{"requestId": "a"}`)), change(2, 1), change(3, 1))
	day := func(n int) time.Time { return epoch.AddDate(0, 0, n) }
	q := h.client.Changes()
	for name, q := range map[string]audit.Query{
		"two windows":     q.Between(day(0), day(1)).Between(day(2), day(3)),
		"the other order": q.Between(day(2), day(3)).Between(day(0), day(1)),
		"since and until": q.Since(day(1)).Until(day(0)),
		"touching":        q.Between(day(0), day(1)).Between(day(1), day(2)),
		"an instant":      q.Between(day(0), day(0)),
	} {
		if got, err := q.List(t.Context()); err != nil || len(got) != 0 {
			t.Errorf("%s: %v, %v", name, places(got), err)
		}
		if n, err := q.Count(t.Context()); err != nil || n != 0 {
			t.Errorf("%s: %d, %v", name, n, err)
		}
		if _, err := q.First(t.Context()); !errors.Is(err, audit.ErrNotFound) {
			t.Errorf("%s: %v", name, err)
		}
		if steps, err := q.Trend(t.Context(), audit.EveryHour); err != nil || len(steps) != 0 {
			t.Errorf("%s: %d steps, %v", name, len(steps), err)
		}
		if page, err := q.RequestsPage(t.Context(), 1); err != nil || len(page.Requests) != 0 || page.More {
			t.Errorf("%s: %v, %v", name, page, err)
		}
		if groups, err := q.CountBy(t.Context(), audit.PerDay); err != nil || len(groups) != 0 {
			t.Errorf("%s: %v, %v", name, groups, err)
		}
	}
	var refused *audit.FilterError
	if _, err := q.Between(day(1), day(0)).List(t.Context()); !errors.As(err, &refused) || refused.Filter != "Between" {
		t.Error(err)
	}
}

func TestInEnvironment_None(t *testing.T) {
	t.Parallel()
	h := newHistory(t)
	h.store(t, change(1, 1), change(2, 1, func(c *audit.Change) { c.Environment = "production" }))
	h.db.Exec(t, "UPDATE audit.changes SET environment = '' WHERE position = '"+at(1, 1).LSN.String()+"'")
	h.store(t, change(3, 1))
	q := h.client.Changes()
	if keys := keysOf(t, q.InEnvironment("")); keys != "3 1" {
		t.Errorf("finds %q", keys)
	}
	if keys := keysOf(t, q.InEnvironment("production")); keys != "2" {
		t.Errorf("finds %q", keys)
	}
	groups, err := q.CountBy(t.Context(), audit.PerEnvironment)
	if err != nil || len(groups) != 2 || groups[0].Known || groups[0].Changes != 2 {
		t.Errorf("%+v, %v", groups, err)
	}
}

// A null that was stamped is not the absence of a stamp.
func TestChange_NullContext(t *testing.T) {
	t.Parallel()
	h := newHistory(t)
	h.store(t, change(1, 1), change(2, 1, with(`{}`)), change(3, 1, with(`[]`)))
	h.db.Exec(t, "UPDATE audit.changes SET context = 'null' WHERE position = '"+at(3, 1).LSN.String()+"'")
	changes, err := h.client.Changes().OldestFirst().List(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for i, want := range []struct {
		stamped bool
		raw     string
	}{{false, ""}, {true, "{}"}, {true, "null"}} {
		if c := changes[i]; c.Stamped != want.stamped || string(c.RawContext) != want.raw {
			t.Errorf("%d: stamped %t, %q", i, c.Stamped, c.RawContext)
		}
		text, err := changes[i].MarshalJSON()
		if err != nil {
			t.Fatal(err)
		}
		var back audit.Change
		if err := back.UnmarshalJSON(text); err != nil {
			t.Fatal(err)
		}
		if back.Stamped != want.stamped || string(back.RawContext) != want.raw {
			t.Errorf("%d: read back: stamped %t, %q", i, back.Stamped, back.RawContext)
		}
	}
	// None of them says anything.
	if n, err := h.client.Changes().WithoutContext().Count(t.Context()); err != nil || n != 3 {
		t.Errorf("%d without context, %v", n, err)
	}
}
