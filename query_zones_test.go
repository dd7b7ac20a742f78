package audit_test

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/hindsight-go/audit"
)

func zone(t *testing.T, name string) *time.Location {
	t.Helper()
	loc, err := time.LoadLocation(name)
	if err != nil {
		t.Fatal(err)
	}
	return loc
}

func TestCountBy_DaysOfAZone(t *testing.T) {
	t.Parallel()
	h := newHistory(t)
	utc := func(text string) func(*audit.Change) {
		return func(c *audit.Change) {
			at, err := time.Parse(time.RFC3339, text)
			if err != nil {
				t.Fatal(err)
			}
			c.CommittedAt = at
		}
	}
	h.store(t,
		change(1, 1, utc("2024-01-10T22:59:59Z")),
		change(2, 1, utc("2024-01-10T23:00:00Z")),
		change(3, 1, utc("2024-03-31T00:59:00Z")), // 01:59 in Berlin, before the clocks go forward
		change(4, 1, utc("2024-03-31T01:00:00Z")), // 03:00
		change(5, 1, utc("2024-03-31T21:59:00Z")),
		change(6, 1, utc("2024-03-31T22:00:00Z")))
	q := h.client.Changes()
	for name, test := range map[string]struct {
		query audit.Query
		by    audit.Dimension
		want  []string
	}{
		"days of UTC":    {q, audit.PerDay, []string{"2024-01-10 2", "2024-03-31 4"}},
		"days of Berlin": {q.InZone(zone(t, "Europe/Berlin")), audit.PerDay, []string{"2024-01-10 1", "2024-01-11 1", "2024-03-31 3", "2024-04-01 1"}},
		"hours of Berlin": {q.InZone(zone(t, "Europe/Berlin")), audit.PerHour, []string{
			"2024-01-10T23:00+01:00 1", "2024-01-11T00:00+01:00 1", "2024-03-31T01:00+01:00 1", "2024-03-31T03:00+02:00 1", "2024-03-31T23:00+02:00 1", "2024-04-01T00:00+02:00 1",
		}},
		"hours of Kathmandu": {q.InZone(zone(t, "Asia/Kathmandu")).Limit(2), audit.PerHour, []string{"2024-04-01T03:00+05:45 2"}},
		"an odd offset":      {q.InZone(time.FixedZone("", 60*60+1)), audit.PerDay, []string{"2024-01-11 2", "2024-03-31 4"}},
		"an odd offset west": {q.InZone(time.FixedZone("", -60)), audit.PerHour, []string{"2024-01-10T22:00-00:01 2", "2024-03-31T00:00-00:01 2", "2024-03-31T21:00-00:01 2"}},
		"an offset":          {q.InZone(time.FixedZone("", -90*60)), audit.PerDay, []string{"2024-01-10 2", "2024-03-30 2", "2024-03-31 2"}},
		"users are none":     {q.InZone(zone(t, "Europe/Berlin")), audit.PerOperation, []string{"UPDATE 6"}},
	} {
		groups, err := test.query.CountBy(t.Context(), test.by)
		var got []string
		for _, g := range groups {
			got = append(got, fmt.Sprintf("%s %d", g.Value, g.Changes))
			if !g.Known || g.First.After(g.Last) || g.First.Location() != time.UTC {
				t.Errorf("%s: %+v", name, g)
			}
		}
		if diff := cmp.Diff(test.want, got); err != nil || diff != "" {
			t.Errorf("%s: %v %s", name, err, diff)
		}
	}
	var refused *audit.FilterError
	if _, err := q.InZone(nil).CountBy(t.Context(), audit.PerDay); !errors.As(err, &refused) || refused.Filter != "InZone" {
		t.Error(err)
	}
}

// The zone of a program may be off from UTC by any seconds.
func TestTrend_OddOffsets(t *testing.T) {
	t.Parallel()
	h := newHistory(t)
	h.store(t, change(1, 1), change(2, 1), change(61, 1)) // minutes behind midnight
	for name, test := range map[string]struct {
		zone  *time.Location
		every audit.Bucket
		want  string
	}{
		"hours":   {time.FixedZone("", -90), audit.EveryHour, "23:00:00 1, 00:00:00 2"},
		"days":    {time.FixedZone("", -90), audit.EveryDay, "00:00:00 1, 00:00:00 2"},
		"minutes": {time.FixedZone("", 20), audit.EveryMinute, "00:01:00 1, 00:02:00 1"},
	} {
		steps, err := h.client.Changes().InZone(test.zone).Until(epoch.Add(62*time.Minute)).Trend(t.Context(), test.every)
		var got string
		for i, s := range steps {
			if i < strings.Count(test.want, ",")+1 {
				got += fmt.Sprintf(", %s %d", s.Start.Format(time.TimeOnly), s.Total())
			}
		}
		if want := ", " + test.want; err != nil || got != want || total(steps) != 3 {
			t.Errorf("%s: %q, %v", name, got, err)
		}
	}
}

// TestTrend_Zones takes places whose days are 23, 24, 25 or no hours long, or begin at
// one o'clock. Every change is in one step, and the steps follow one another.
func TestTrend_Zones(t *testing.T) {
	t.Parallel()
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	for name, when := range map[string]time.Time{
		"Europe/Berlin":       time.Date(2024, 3, 31, 0, 0, 0, 0, time.UTC),
		"America/New_York":    time.Date(2024, 11, 3, 0, 0, 0, 0, time.UTC),
		"America/Sao_Paulo":   time.Date(2018, 11, 4, 0, 0, 0, 0, time.UTC),  // a day without midnight
		"Pacific/Apia":        time.Date(2011, 12, 30, 0, 0, 0, 0, time.UTC), // a day that was not
		"Australia/Lord_Howe": time.Date(2024, 4, 7, 0, 0, 0, 0, time.UTC),   // half an hour twice
		"Asia/Kathmandu":      time.Date(2024, 1, 31, 0, 0, 0, 0, time.UTC),
		"UTC":                 time.Date(2024, 2, 29, 0, 0, 0, 0, time.UTC),
	} {
		t.Run(name, func(t *testing.T) {
			loc := zone(t, name)
			h := newHistory(t)
			h.db.Exec(t, "CREATE TABLE audit.others PARTITION OF audit.changes DEFAULT")
			var changes []audit.Change
			for n := range 40 {
				changes = append(changes, change(n, 1, func(c *audit.Change) {
					c.CommittedAt = when.Add(time.Duration(random.IntN(5*24*60)-2*24*60) * time.Minute)
				}))
			}
			h.store(t, changes...)
			q := h.client.Changes().InZone(loc)
			for _, bucket := range []audit.Bucket{audit.EveryMinute, audit.EveryHour, audit.EveryDay, audit.EveryWeek, audit.EveryMonth} {
				steps, err := q.Trend(t.Context(), bucket)
				if err != nil {
					t.Fatalf("%s: %v", bucket, err)
				}
				for i, s := range steps {
					var want int64
					for _, c := range changes {
						if !c.CommittedAt.Before(s.Start) && c.CommittedAt.Before(s.End) {
							want++
						}
					}
					if s.Total() != want || !s.Start.Before(s.End) || i > 0 && !s.Start.Equal(steps[i-1].End) {
						t.Errorf("%s: step %d of %v to %v has %d changes, not %d", bucket, i, s.Start, s.End, s.Total(), want)
					}
					if s.Start.Location() != loc {
						t.Errorf("%s: %v", bucket, s.Start)
					}
					if shift, _ := s.Start.ZoneBounds(); bucket == audit.EveryHour && s.Start.Minute() != 0 && !s.Start.Equal(shift) {
						t.Errorf("an hour begins at %v", s.Start)
					}
					if bucket == audit.EveryDay && i > 0 && (dayNumber(s.Start) <= dayNumber(steps[i-1].Start) || s.Start.Hour() > 1) {
						t.Errorf("days begin at %v and %v", steps[i-1].Start, s.Start)
					}
				}
				if counted := total(steps); counted != 40 {
					t.Errorf("%s: %d of 40 changes", bucket, counted)
				}
			}
			// The groups are the days on which there was something.
			days := map[string]int64{}
			for _, c := range changes {
				days[c.CommittedAt.In(loc).Format(time.DateOnly)]++
			}
			got := map[string]int64{}
			groups, err := q.CountBy(t.Context(), audit.PerDay)
			for _, g := range groups {
				got[g.Value] = g.Changes
			}
			if diff := cmp.Diff(days, got); err != nil || diff != "" {
				t.Errorf("%v %s", err, diff)
			}
		})
	}
}

func dayNumber(t time.Time) int { return t.Year()*10000 + int(t.Month())*100 + t.Day() }

func total(steps []audit.Step) (n int64) {
	for _, s := range steps {
		n += s.Total()
	}
	return n
}
