package main

import (
	"context"
	"slices"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
)

// latency measures from the return of COMMIT to the moment another connection
// finds the change by a query, at 500 single-row transactions a second.
func latency(ctx context.Context, b *bench) error {
	client, err := b.capturing(ctx)
	if err != nil {
		return err
	}
	defer client.Close()
	n := b.n(10_000)
	committed := make([]time.Time, n+1)
	var mu sync.Mutex
	failed := make(chan error, 1)
	go func() {
		tick := time.NewTicker(2 * time.Millisecond)
		defer tick.Stop()
		for i := 1; i <= n; i++ {
			if err := b.exec(ctx, "INSERT INTO item "+rows(i, i)); err != nil {
				failed <- err
				return
			}
			mu.Lock()
			committed[i] = time.Now()
			mu.Unlock()
			<-tick.C
		}
		failed <- nil
	}()
	conn, err := pgx.Connect(ctx, b.url)
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close(ctx) }()
	latencies := make([]time.Duration, 0, n)
	last := "0/0"
	began := time.Now()
	poll := time.NewTicker(500 * time.Microsecond)
	defer poll.Stop()
	for len(latencies) < n {
		rows, err := conn.Query(ctx, `SELECT position::text, primary_key::int FROM audit.changes WHERE position > $1::text::pg_lsn ORDER BY position`, last)
		if err != nil {
			return err
		}
		var ids []int
		var id int
		_, err = pgx.ForEachRow(rows, []any{&last, &id}, func() error { ids = append(ids, id); return nil })
		if err != nil {
			return err
		}
		now := time.Now()
		mu.Lock()
		for _, id := range ids {
			// History can have it before the writer's own COMMIT has returned.
			latencies = append(latencies, max(0, now.Sub(committed[id])))
			if committed[id].IsZero() {
				latencies[len(latencies)-1] = 0
			}
		}
		mu.Unlock()
		<-poll.C
	}
	if err := <-failed; err != nil {
		return err
	}
	slices.Sort(latencies)
	at := func(p float64) time.Duration {
		return latencies[int(p*float64(len(latencies)-1))].Round(10 * time.Microsecond)
	}
	b.printf("%d transactions in %s (%.0f/s); commit to queryable: p50 %s, p90 %s, p99 %s, max %s\n", n, time.Since(began).Round(time.Millisecond),
		float64(n)/time.Since(began).Seconds(), at(0.5), at(0.9), at(0.99), at(1))
	return nil
}
