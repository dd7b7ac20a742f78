package audit_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hindsight-go/audit"
	"github.com/hindsight-go/audit/internal/faulttest"
)

// Many watches, with filters that only SQL understands, take a few statements for each
// change, which the server knows already: they are asked of together.
func TestWatch_StatementsOfMany(t *testing.T) {
	t.Parallel()
	const watches, round = 250, 10
	h := newHistory(t)
	h.store(t, change(1, 1))
	proxy := faulttest.NewProxy(t, h.db.URL())
	var statements, parsed atomic.Int64
	proxy.Rewrite(func(answer []byte) {
		statements.Add(int64(bytes.Count(answer, []byte("Z\x00\x00\x00\x05"))))
		parsed.Add(int64(bytes.Count(answer, []byte("1\x00\x00\x00\x04"))))
	})
	client := openClient(t, audit.Config{SourceURL: proxy.URL()})
	ctx, cancel := context.WithCancel(t.Context())
	var running sync.WaitGroup
	defer running.Wait()
	defer cancel()
	seen := make(chan int, 100*watches)
	for n := range watches {
		running.Go(func() {
			for event, err := range client.Changes().NotTable("none").WhereContext(map[string]any{"cart": n}).Watch(ctx) {
				if err != nil {
					if !errors.Is(err, context.Canceled) {
						t.Errorf("watch %d: %v", n, err)
					}
					return
				}
				var got struct{ Cart int }
				if err := json.Unmarshal(event.RawContext, &got); err != nil || got.Cart != n {
					t.Errorf("watch %d got %s, %v", n, event.RawContext, err)
				}
				seen <- n
			}
		})
	}
	next := 2
	faulttest.Poll(t, faulttest.Patience, "the watches share what is read", func() error {
		before, known := statements.Load(), parsed.Load()
		for i := range round {
			h.store(t, change(next, 1, func(c *audit.Change) {
				c.Stamped, c.RawContext = true, json.RawMessage(fmt.Sprintf(`{"cart": %d}`, i*watches/round))
			}))
			next++
			faulttest.Pause(t, 100*time.Millisecond)
		}
		took, anew := statements.Load()-before, parsed.Load()-known
		if took > 40*round || anew > 0 {
			return fmt.Errorf("%d changes took %d statements, %d of them parsed anew", round, took, anew)
		}
		return nil
	})
	// Each gets its own, and nobody another's.
	faulttest.Pause(t, time.Second)
	for len(seen) > 0 {
		<-seen
	}
	for n := range watches {
		h.store(t, change(next, 1, func(c *audit.Change) {
			c.Stamped, c.RawContext = true, json.RawMessage(fmt.Sprintf(`{"cart": %d, "other": %[1]d}`, n))
		}))
		next++
	}
	got := make(map[int]int)
	faulttest.Poll(t, faulttest.Patience, "each watch has its change", func() error {
		for len(seen) > 0 {
			got[<-seen]++
		}
		if len(got) < watches {
			return fmt.Errorf("%d of %d have", len(got), watches)
		}
		return nil
	})
	for n, times := range got {
		if times != 1 {
			t.Errorf("watch %d got its change %d times", n, times)
		}
	}
}
