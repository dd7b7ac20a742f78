package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/hindsight-go/audit"
)

const (
	watchers    = 1000
	watchRounds = 5
	watchPause  = 5 * time.Millisecond
)

// watch measures from the return of COMMIT to the moment a watch in the same program has
// the change, by one watch of everything, and by a thousand, each with another filter, of
// which every change matches one. They take turns.
func watch(ctx context.Context, b *bench) error {
	client, err := b.capturing(ctx)
	if err != nil {
		return err
	}
	defer client.Close()
	writes := b.n(5_000) / watchRounds
	kinds := []struct {
		name    string
		queries func() []audit.Query
	}{
		{"one", func() []audit.Query { return []audit.Query{client.Changes().ForTable("item")} }},
		{"1,000 by row", func() []audit.Query {
			return different(func(n int) audit.Query { return client.Changes().ForTable("item").ForRow(n + 1) })
		}},
		{"1,000 by a value", func() []audit.Query {
			return different(func(n int) audit.Query {
				return client.Changes().ForTable("item").WhereAfter(map[string]any{"id": n + 1})
			})
		}},
		{"1,000 only SQL knows", func() []audit.Query {
			return different(func(n int) audit.Query {
				return client.Changes().ForTable("item").WhereContext(map[string]any{"item": n + 1})
			})
		}},
	}
	if err := b.exec(ctx, "INSERT INTO item "+rows(1, watchers)); err != nil {
		return err
	}
	if err := client.Sync(ctx); err != nil {
		return err
	}
	took := make([][]time.Duration, len(kinds))
	for range watchRounds {
		for i, kind := range kinds {
			round, err := b.watchRound(ctx, kind.queries(), writes)
			if err != nil {
				return fmt.Errorf("%s: %w", kind.name, err)
			}
			took[i] = append(took[i], round...)
		}
	}
	b.printf("%-20s %9s %9s %7s\n", "watches", "p50", "p99", "ratio")
	for i, kind := range kinds {
		slices.Sort(took[i])
		p50 := took[i][len(took[i])/2]
		b.printf("%-20s %9s %9s %7.2f\n", kind.name, p50.Round(10*time.Microsecond), took[i][len(took[i])*99/100].Round(10*time.Microsecond),
			p50.Seconds()/took[0][len(took[0])/2].Seconds())
	}
	return nil
}

func different(query func(n int) audit.Query) []audit.Query {
	queries := make([]audit.Query, watchers)
	for n := range queries {
		queries[n] = query(n)
	}
	return queries
}

// watchRound updates one row after the other and returns how long each took to be seen.
func (b *bench) watchRound(ctx context.Context, queries []audit.Query, writes int) ([]time.Duration, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	seen := make(chan time.Time, 16)
	failed := make(chan error, len(queries))
	var running sync.WaitGroup
	for _, q := range queries {
		running.Go(func() {
			for _, err := range q.Watch(ctx) {
				if err != nil {
					if !errors.Is(err, context.Canceled) {
						failed <- err
					}
					return
				}
				seen <- time.Now()
			}
		})
	}
	defer running.Wait()
	defer cancel()
	// A watch begins with what is stored from now on, which each has to know first.
	pause := time.NewTimer(2 * time.Second)
	select {
	case <-pause.C:
	case err := <-failed:
		return nil, err
	}
	var took []time.Duration
	for n := range writes {
		id := n%watchers + 1
		if err := b.exec(ctx, fmt.Sprintf(`
			WITH stamp AS MATERIALIZED (SELECT pg_logical_emit_message(true, 'audit', '{"item": %d}'))
			UPDATE item SET stock = stock + 1 FROM stamp WHERE id = %[1]d`, id)); err != nil {
			return nil, err
		}
		committed := time.Now()
		select {
		case at := <-seen:
			took = append(took, at.Sub(committed))
		case err := <-failed:
			return nil, err
		case <-time.After(30 * time.Second):
			return nil, errors.New("a change was not seen within 30 s")
		}
		pause.Reset(watchPause)
		<-pause.C
	}
	return took, nil
}
