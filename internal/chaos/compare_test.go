//go:build unix

package chaos_test

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/hindsight-go/audit"
)

// told is a transaction as history tells it.
type told struct {
	xid       int64
	position  audit.LSN
	sequences []int
	entries   []entry
}

// hole is a recorded gap, span a stretch in which a table is covered, to its end or, with
// until 0, to now.
type (
	hole struct{ from, to audit.LSN }
	span struct{ from, until audit.LSN }
)

// problem is something that history has wrong.
type problem struct {
	what string // lost, doubled, foreign, different, order, position, gap
	at   time.Time
	text string
}

// comparison is a journal, and a history in the order of its positions.
type comparison struct {
	journal []*written
	history []told
	holes   []hole
	spans   map[string][]span
}

// excused reports whether a transaction may be missing since it can lie in a gap.
func (c *comparison) excused(w *written) bool {
	return slices.ContainsFunc(c.holes, func(h hole) bool { return w.after < h.to && w.until > h.from })
}

func (c *comparison) covered(table string, w *written) bool {
	return slices.ContainsFunc(c.spans[table], func(s span) bool { return s.from <= w.after && (s.until == 0 || s.until >= w.until) })
}

// problems returns all that is wrong.
func (c *comparison) problems() (all []problem) {
	note := func(what string, at time.Time, format string, args ...any) {
		all = append(all, problem{what, at, fmt.Sprintf(format, args...)})
	}
	byXID := make(map[int64]*written)
	for _, w := range c.journal {
		byXID[w.xid] = w
	}
	seen := make(map[int64]*told)
	serials := make(map[int]int)
	beat, beatAt := int64(0), audit.LSN(0)
	for i := range c.history {
		h := &c.history[i]
		w := byXID[h.xid]
		if w == nil {
			note("foreign", time.Time{}, "transaction %d at %s never committed; its first change is %+v", h.xid, h.position, h.entries[0])
			continue
		}
		if seen[h.xid] != nil {
			note("doubled", w.at, "transaction %d stands at %s and at %s", h.xid, seen[h.xid].position, h.position)
		}
		seen[h.xid] = h
		if h.position < w.after || h.position >= w.until {
			note("position", w.at, "transaction %d stands at %s and committed between %s and %s", h.xid, h.position, w.after, w.until)
		}
		if slices.ContainsFunc(c.holes, func(g hole) bool { return g.from <= h.position && h.position < g.to }) {
			note("gap", w.at, "transaction %d at %s lies in a recorded gap", h.xid, h.position)
		}
		if serials[w.writer] >= w.serial {
			note("order", w.at, "transaction %d of writer %d comes behind %d of it", w.serial, w.writer, serials[w.writer])
		}
		serials[w.writer] = w.serial
		for n, sequence := range h.sequences {
			if sequence != n+1 {
				note("different", w.at, "change %d of transaction %d has number %d", n+1, h.xid, sequence)
				break
			}
		}
		for _, e := range h.entries {
			if e.Table != "pulse" {
				continue
			}
			var n int64
			if _, err := fmt.Sscanf(e.After, `{"n": %d`, &n); err != nil {
				note("different", w.at, "transaction %d has a pulse that is %s", h.xid, e.After)
			}
			// Covered all the way from the beat before.
			covered := slices.ContainsFunc(c.spans["pulse"], func(s span) bool { return s.from <= min(beatAt, w.after) && (s.until == 0 || s.until >= w.until) })
			gap := slices.ContainsFunc(c.holes, func(g hole) bool { return beatAt < g.to && h.position > g.from }) || !covered
			if n != beat+1 && (n <= beat || !gap) && beat != 0 {
				note("order", w.at, "pulse %d comes behind %d", n, beat)
			}
			beat, beatAt = n, h.position
		}
	}
	for _, w := range c.journal {
		c.transaction(w, seen[w.xid], note)
	}
	return all
}

// transaction compares what a writer has written with what is told of it. What a table
// did before it was covered may be there or not.
func (c *comparison) transaction(w *written, h *told, note func(string, time.Time, string, ...any)) {
	var rest []entry
	if h != nil {
		rest = h.entries
	}
	excused := c.excused(w)
	missing := 0
	var first entry
	for _, e := range w.entries {
		if len(rest) > 0 && rest[0] == e {
			rest = rest[1:]
			continue
		}
		if c.covered(e.Table, w) && (!excused || h != nil) {
			if missing++; missing == 1 {
				first = e
			}
		}
	}
	switch {
	case h == nil && missing > 0:
		note("lost", w.at, "transaction %d of writer %d, between %s and %s, with %d changes of covered tables; the first is %+v", w.xid, w.writer, w.after, w.until, missing, first)
	case missing > 0:
		next := "nothing more"
		if len(rest) > 0 {
			next = fmt.Sprintf("%+v", rest[0])
		}
		note("different", w.at, "transaction %d at %s lacks %d of %d changes, the first is\n    %+v\n  and there is\n    %s", w.xid, h.position, missing, len(w.entries), first, next)
	case len(rest) > 0:
		note("doubled", w.at, "transaction %d at %s has %d changes more than it made, the first is %+v", w.xid, h.position, len(rest), rest[0])
	}
}

// The comparison is what says whether the library is at fault, so it must see each fault.
func TestComparison_SeesEveryFault(t *testing.T) {
	t.Parallel()
	row := func(n int) entry {
		return entry{Table: "account", Op: "CREATE", Before: "{}", After: fmt.Sprintf(`{"id": %d}`, n)}
	}
	sound := func() *comparison {
		c := &comparison{spans: map[string][]span{"account": {{from: 1}}}}
		for n := 1; n <= 6; n++ {
			at := audit.LSN(n * 100)
			c.journal = append(c.journal, &written{writer: n % 2, serial: n, xid: int64(n), after: at, until: at + 50, entries: []entry{row(n), row(n + 100)}})
			c.history = append(c.history, told{xid: int64(n), position: at + 10, sequences: []int{1, 2}, entries: []entry{row(n), row(n + 100)}})
		}
		return c
	}
	for name, test := range map[string]struct {
		harm func(*comparison)
		want string
	}{
		"nothing":              {func(*comparison) {}, ""},
		"lost":                 {func(c *comparison) { c.history = slices.Delete(c.history, 2, 3) }, "lost"},
		"lost in a gap":        {func(c *comparison) { c.history = slices.Delete(c.history, 2, 3); c.holes = []hole{{300, 350}} }, ""},
		"lost beside a gap":    {func(c *comparison) { c.history = slices.Delete(c.history, 2, 3); c.holes = []hole{{350, 399}} }, "lost"},
		"there within a gap":   {func(c *comparison) { c.holes = []hole{{300, 350}} }, "gap"},
		"lost before coverage": {func(c *comparison) { c.history = c.history[1:]; c.spans["account"] = []span{{from: 150}} }, ""},
		"lost after coverage":  {func(c *comparison) { c.history = c.history[:5]; c.spans["account"] = []span{{from: 1, until: 600}} }, ""},
		"lost within coverage": {func(c *comparison) { c.history = c.history[:5]; c.spans["account"] = []span{{from: 1, until: 650}} }, "lost"},
		"row lost": {func(c *comparison) {
			c.history[3].entries = c.history[3].entries[1:]
			c.history[3].sequences = []int{1}
		}, "different"},
		"row lost beside a gap": {func(c *comparison) {
			c.history[3].entries = c.history[3].entries[1:]
			c.history[3].sequences = []int{1}
			c.holes = []hole{{440, 450}}
		}, "different"},
		"row doubled": {func(c *comparison) {
			c.history[3].entries = append(c.history[3].entries, row(104))
			c.history[3].sequences = []int{1, 2, 3}
		}, "doubled"},
		"value":        {func(c *comparison) { c.history[3].entries[1] = row(7) }, "different"},
		"rows swapped": {func(c *comparison) { slices.Reverse(c.history[3].entries) }, "different"},
		"number":       {func(c *comparison) { c.history[3].sequences[1] = 3 }, "different"},
		"doubled":      {func(c *comparison) { c.history = append(c.history, c.history[5]) }, "doubled"},
		"swapped":      {func(c *comparison) { c.history[1], c.history[3] = c.history[3], c.history[1] }, "order"},
		"position":     {func(c *comparison) { c.history[5].position = 700 }, "position"},
		"rolled back":  {func(c *comparison) { c.journal = c.journal[:5] }, "foreign"},
		"pulse": {func(c *comparison) {
			for n := range c.journal {
				e := entry{Table: "pulse", Op: "UPDATE", After: fmt.Sprintf(`{"n": %d}`, n+n/3)}
				c.journal[n].entries, c.history[n].entries = []entry{e}, []entry{e}
				c.history[n].sequences = []int{1}
			}
			c.spans["pulse"] = []span{{from: 1}}
		}, "order"},
		"pulse, covered anew": {func(c *comparison) {
			for n := range c.journal {
				e := entry{Table: "pulse", Op: "UPDATE", After: fmt.Sprintf(`{"n": %d}`, n+1)}
				c.journal[n].entries, c.history[n].entries = []entry{e}, []entry{e}
				c.history[n].sequences = []int{1}
			}
			c.history = slices.Delete(c.history, 2, 4)
			c.spans["pulse"] = []span{{from: 1, until: 290}, {from: 490}}
		}, ""},
	} {
		c := sound()
		test.harm(c)
		var got []string
		for _, p := range c.problems() {
			got = append(got, p.what)
		}
		if test.want == "" && len(got) > 0 || test.want != "" && !slices.Contains(got, test.want) {
			t.Errorf("%s: found %v, want %q", name, got, test.want)
		}
	}
}

// tally counts problems by what they are, and says the first few of each.
func tally(problems []problem) (counts map[string]int, text string) {
	counts = make(map[string]int)
	var b strings.Builder
	slices.SortStableFunc(problems, func(a, b problem) int { return cmp.Compare(a.what, b.what) })
	for _, p := range problems {
		if counts[p.what]++; counts[p.what] <= 4 {
			fmt.Fprintf(&b, "\n%s (written at %s): %.3000s", p.what, p.at.Format(time.TimeOnly), p.text)
		}
	}
	return counts, b.String()
}
