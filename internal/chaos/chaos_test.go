//go:build unix

package chaos_test

import (
	"cmp"
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/hindsight-go/audit"
	"github.com/hindsight-go/audit/internal/faulttest"
)

const (
	secondsEnv = "AUDIT_TEST_CHAOS_SECONDS"
	strikesEnv = "AUDIT_TEST_CHAOS_STRIKES"
	seedEnv    = "AUDIT_TEST_CHAOS_SEED"
	kindsEnv   = "AUDIT_TEST_CHAOS_KINDS"

	// againBound is within which time after a strike new writes are in history again.
	againBound = 60 * time.Second
	// saidBound is within which time an operator is told of a strike that keeps new
	// writes out of history for longer than that.
	saidBound = 30 * time.Second
	// aftermath is how long a server's restart may still fail somebody's writes.
	aftermath = 10 * time.Second
)

// outcome is what came of one strike.
type outcome struct {
	strike
	began, ended time.Time
	again        time.Duration // from its end, or that of the last that came with it, until new writes were in history
	over         time.Time     // when they were
	said         [ways]time.Duration
	text         string // the first that was said
}

const unsaid = time.Duration(-1)

// listen finds out what was said of it.
func (o *outcome) listen(w *world) {
	for n := range o.said {
		o.said[n] = unsaid
	}
	for _, i := range w.instances {
		for _, s := range i.sayings(o.began) {
			if d := s.at.Sub(o.began); o.said[s.way] == unsaid || d < o.said[s.way] {
				if o.said[s.way] = d; s.way == byStatus {
					o.text = s.text
				}
			}
		}
	}
}

// allSaid is when Status, log and metrics had said it, or unsaid.
func (o *outcome) allSaid() time.Duration {
	if slices.Contains(o.said[:], unsaid) {
		return unsaid
	}
	return slices.Max(o.said[:])
}

// Whatever is struck at, history is exact in the end but for gaps that it names, new
// writes are in it soon again, operators are told, and no write of others fails.
func TestChaos(t *testing.T) {
	t.Parallel()
	seed := faulttest.EnvNumber(t, seedEnv, rand.Uint64()) //nolint:gosec // It is to be repeatable.
	t.Logf("seed: %s=%d", seedEnv, seed)
	w := newWorld(t, seed, 20*time.Millisecond)
	t.Logf("event triggers: %t, disk of its own: %t", w.traced, w.disk != nil)
	loadCtx, endLoad := context.WithCancel(context.Background())
	t.Cleanup(func() { endLoad(); w.load.workers.Wait() })
	w.load.run(loadCtx, 3)

	outcomes, truths := w.strikeAll(t)
	endLoad()
	w.load.workers.Wait()
	w.finishCheck(t, outcomes, truths)
}

// strikeAll strikes until the time, or the number, is up.
func (w *world) strikeAll(t *testing.T) (outcomes []*outcome, truths []truth) {
	t.Helper()
	w.length = time.Duration(faulttest.EnvNumber(t, secondsEnv, 6)) * time.Second //nolint:gosec // It is small.
	until := time.Now().Add(w.length)
	most := int(faulttest.EnvNumber(t, strikesEnv, 1<<20)) //nolint:gosec // It is small.
	choice := chosen(t)
	w.untilCaptured(t, againBound)
	remembered := time.Now()
	for time.Now().Before(until) && len(outcomes) < most && !t.Failed() {
		var these []*outcome
		for {
			s := choice[w.rand.IntN(len(choice))]
			o := &outcome{strike: s, began: time.Now()}
			t.Logf("%s %s", o.began.Format(time.TimeOnly), s.kind)
			s.do(t, w)
			o.ended = time.Now()
			these = append(these, o)
			if w.rand.IntN(4) > 0 { // now and then the next comes before all is well again
				break
			}
		}
		again := w.untilCaptured(t, againBound)
		w.probes.close()
		pause(t, 600*time.Millisecond) // for the answers under way
		for _, o := range these {
			o.again, o.over = again, time.Now()
			o.listen(w)
		}
		outcomes = append(outcomes, these...)
		if time.Since(remembered) > 10*time.Second && len(truths) < 40 {
			if k, err := w.remember(t.Context()); err == nil {
				truths, remembered = append(truths, k), time.Now()
			}
		}
	}
	return outcomes, truths
}

func chosen(t *testing.T) (choice []strike) {
	t.Helper()
	kinds := os.Getenv(kindsEnv)
	for _, s := range strikes() {
		if kinds == "" || slices.ContainsFunc(strings.Split(kinds, ","), func(k string) bool { return strings.Contains(s.kind, strings.TrimSpace(k)) }) {
			choice = append(choice, slices.Repeat([]strike{s}, s.weight)...)
		}
	}
	if len(choice) == 0 {
		t.Fatalf("%s=%q names no strike", kindsEnv, kinds)
	}
	return choice
}

// finishCheck compares everything, once nobody writes any more.
func (w *world) finishCheck(t *testing.T, outcomes []*outcome, truths []truth) {
	t.Helper()
	w.untilCaptured(t, againBound)
	cfg := programConfig{SourceURL: asProgram(t, w.source.URL()), StoreURL: asProgram(t, w.store.URL()), PasswordFile: w.passwordFile}.audit()
	client, err := audit.Open(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	ctx, cancel := context.WithTimeout(t.Context(), againBound)
	defer cancel()
	if err := client.Sync(ctx); err != nil {
		t.Fatalf("sync: %v; %s", err, w.lastWords())
	}
	w.untilTracked(t)
	c := &comparison{journal: w.load.journal.transactions()}
	var gaps []gapRecord
	c.history, gaps, c.spans = history(t, w.store)
	for _, g := range gaps {
		c.holes = append(c.holes, g.hole)
	}
	problems := c.problems()
	counts, text := tally(problems)
	if len(problems) > 0 {
		t.Errorf("history is not what was written: %v%s", counts, text)
	}
	last, err := w.remember(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	refusals := make(map[string]int)
	toldOf := checkPast(t, client, last, true, len(gaps) > 0, refusals)
	for _, k := range truths {
		toldOf += checkPast(t, client, k, false, true, refusals)
	}
	changes := 0
	for _, h := range c.history {
		changes += len(h.entries)
	}
	excused := 0
	for _, j := range c.journal {
		if c.excused(j) {
			excused++
		}
	}
	if len(c.history) < 50 {
		t.Errorf("history has only %d transactions: nothing was tested", len(c.history))
	}
	t.Logf("%d strikes; %d transactions committed, %d with %d changes in history, %d in %d gaps; %d migrations, %d refused by locks; the past of %d tables as it was, refused: %v",
		len(outcomes), len(c.journal), len(c.history), changes, excused, len(gaps), w.load.migrations.Load(), w.load.refused.Load(), toldOf, refusals)
	w.judge(t, outcomes, problems, gaps)
}

// row is a line of the table of a run.
type row struct {
	kind                        string
	number, lost, doubled, gaps int
	again, said                 time.Duration
	heard                       int
	failed                      map[string]int
}

// judge holds each strike against what is promised, and prints the table.
func (w *world) judge(t *testing.T, outcomes []*outcome, problems []problem, gaps []gapRecord) {
	t.Helper()
	rows := make(map[string]*row)
	latest := func(at time.Time) *outcome {
		var found *outcome
		for _, o := range outcomes {
			if !o.began.After(at) {
				found = o
			}
		}
		return found
	}
	for _, o := range outcomes {
		r := rows[o.kind]
		if r == nil {
			r = &row{kind: o.kind, failed: make(map[string]int)}
			rows[o.kind] = r
		}
		r.number++
		r.again = max(r.again, o.again)
		all := o.allSaid()
		if all != unsaid {
			r.heard++
			r.said = max(r.said, all)
		}
		if out := o.ended.Add(o.again).Sub(o.began); out > saidBound && !o.silent && (all == unsaid || all > saidBound) {
			t.Errorf("%s at %s: nothing new was in history for %s, and an operator heard of it after %v (Status, log, metrics)", o.kind, o.began.Format(time.TimeOnly), out, o.said)
		}
	}
	for _, p := range problems {
		if o := latest(p.at); o != nil {
			switch p.what {
			case "lost", "different":
				rows[o.kind].lost++
			case "doubled", "foreign":
				rows[o.kind].doubled++
			}
		}
	}
	for _, g := range gaps {
		mayBe := slices.ContainsFunc(outcomes, func(o *outcome) bool {
			return o.gap && !o.began.After(g.At) && g.At.Before(o.over.Add(aftermath))
		})
		if !mayBe {
			t.Errorf("a gap was recorded at %s that no strike explains: %s", g.At.Format(time.TimeOnly), g.Reason)
		}
		if o := latest(g.At); o != nil {
			rows[o.kind].gaps++
		}
	}
	for _, f := range w.load.journal.failures() {
		down := slices.ContainsFunc(outcomes, func(o *outcome) bool {
			return o.sourceDown && f.at.After(o.began) && f.at.Before(o.ended.Add(aftermath))
		})
		if code := f.code; !down || code != "connection" && !strings.HasPrefix(code, "57P0") && !strings.HasPrefix(code, "08") {
			t.Errorf("a write failed at %s with %s, which no strike explains: %s", f.at.Format(time.TimeOnly), f.code, f.text)
		}
		if o := latest(f.at); o != nil {
			rows[o.kind].failed[f.code]++
		}
	}
	var b strings.Builder
	b.WriteString("\n| strike | number | in history again, worst | said by Status, log and metrics: how often, worst | lost | doubled | gaps | host writes failed |\n|---|---|---|---|---|---|---|---|\n")
	for _, s := range strikes() {
		r := rows[s.kind]
		if r == nil {
			continue
		}
		var failed []string
		for code, n := range r.failed {
			failed = append(failed, fmt.Sprintf("%d x %s", n, code))
		}
		slices.SortFunc(failed, cmp.Compare[string])
		said := "-"
		if r.heard > 0 {
			said = fmt.Sprintf("%d, %.1f s", r.heard, r.said.Seconds())
		}
		fmt.Fprintf(&b, "| %s | %d | %.1f s | %s | %d | %d | %d | %s |\n", r.kind, r.number, r.again.Seconds(), said, r.lost, r.doubled, r.gaps, cmp.Or(strings.Join(failed, ", "), "0"))
	}
	t.Log(b.String())
}
