package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/hindsight-go/audit"
)

const (
	fewTables  = 10
	manyTables = 10_000
	tablesRows = 10
)

// tables measures what it costs to watch over many tables: the processor time of the
// program and of the server while nothing is written, and while one table is. Beside it
// stand the time that Start takes, when the tables are new and when they are known, and one
// row as of now.
func tables(ctx context.Context, b *bench) error {
	watched := time.Duration(b.scale * float64(time.Minute))
	watched = max(watched, 20*time.Second)
	b.printf("%7s %-22s %10s %10s\n", "tables", "over "+watched.String(), "program", "server")
	for _, n := range []int{fewTables, max(fewTables*2, int(manyTables*b.scale))} {
		if err := b.tablesOf(ctx, n, watched); err != nil {
			return fmt.Errorf("%d tables: %w", n, err)
		}
	}
	return nil
}

func (b *bench) tablesOf(ctx context.Context, n int, watched time.Duration) error {
	prepared, err := b.makeTables(ctx, n)
	if err != nil {
		return err
	}
	open := func() (*audit.Client, time.Duration, error) {
		client, err := audit.Open(ctx, audit.Config{SourceURL: b.url, Tables: []string{"public.*"}})
		if err != nil {
			return nil, 0, err
		}
		begun := time.Now()
		if err := client.Start(ctx); err != nil {
			client.Close()
			return nil, 0, err
		}
		return client, time.Since(begun), nil
	}
	client, first, err := open()
	if err != nil {
		return err
	}
	defer func() { client.Close() }()
	if err := b.tracked(ctx, client, n); err != nil {
		return err
	}
	if err := client.Stop(ctx); err != nil {
		return err
	}
	client.Close()
	client, second, err := open()
	if err != nil {
		return err
	}
	b.printf("%7d Start %s (%d of the tables were published before, by SQL), %s (all are known)\n", n, first.Round(10*time.Millisecond), prepared, second.Round(10*time.Millisecond))
	// The first look of a capture is a whole one, which comes within two seconds.
	pause(ctx, 5*time.Second)
	var locked *audit.SetupLockedError
	for err = client.Refresh(ctx); errors.As(err, &locked); err = client.Refresh(ctx) { // that look goes on
		pause(ctx, time.Second)
	}
	if err != nil {
		return err
	}
	for _, state := range []struct {
		name string
		do   func(ctx context.Context) error
	}{
		{"idle", func(ctx context.Context) error { pause(ctx, watched); return ctx.Err() }},
		{"20 writes a second", func(ctx context.Context) error { return b.writeSlowly(ctx, watched) }},
	} {
		program, server, err := b.cpuOf(ctx, state.do)
		if err != nil {
			return err
		}
		share := func(used time.Duration) string { return fmt.Sprintf("%.2f %%", 100*used.Seconds()/watched.Seconds()) }
		b.printf("%7d %-22s %10s %10s\n", n, state.name, share(program), share(server))
	}
	took := make([]time.Duration, 0, 50)
	for range cap(took) {
		begun := time.Now()
		if _, err := client.Now().Table("t_1").Row(ctx, 1); err != nil {
			return err
		}
		took = append(took, time.Since(begun))
	}
	slices.Sort(took)
	b.printf("%7d one row as of now: p50 %s, worst %s\n", n, took[len(took)/2].Round(10*time.Microsecond), took[len(took)-1].Round(10*time.Microsecond))
	return client.Stop(ctx)
}

// makeTables makes the tables that are missing, each with a key and a long text, and
// publishes most of them, as the script of SetupSQL does: to have each join by itself would
// take most of the time. It returns how many it has published.
func (b *bench) makeTables(ctx context.Context, n int) (published int, err error) {
	const atOnce = 100
	var traced bool
	if err := b.conn.QueryRow(ctx, "SELECT EXISTS (SELECT FROM pg_publication WHERE pubname = 'audit')").Scan(&traced); err != nil {
		return 0, err
	}
	if traced {
		if err := b.exec(ctx, "ALTER EVENT TRIGGER audit_ddl DISABLE"); err != nil {
			return 0, err
		}
	}
	for from := 1; from <= n; from += atOnce {
		var sql strings.Builder
		for i := from; i < min(from+atOnce, n+1); i++ {
			if traced && i <= fewTables {
				continue
			}
			fmt.Fprintf(&sql, "CREATE TABLE t_%d (id int PRIMARY KEY, name text, amount numeric, updated timestamptz DEFAULT now());\n", i)
			if traced && i > 2*fewTables {
				fmt.Fprintf(&sql, "ALTER TABLE t_%d REPLICA IDENTITY FULL; ALTER PUBLICATION audit ADD TABLE ONLY t_%[1]d;\n", i)
				published++
			}
		}
		if _, err := b.conn.PgConn().Exec(ctx, sql.String()).ReadAll(); err != nil {
			return 0, err
		}
	}
	if traced {
		if err := b.exec(ctx, "ALTER EVENT TRIGGER audit_ddl ENABLE ALWAYS"); err != nil {
			return 0, err
		}
	}
	return published, b.exec(ctx, fmt.Sprintf("INSERT INTO t_1 SELECT i, 'row ' || i, i FROM generate_series(1, %d) i ON CONFLICT DO NOTHING", tablesRows), "ANALYZE pg_catalog.pg_class", "ANALYZE pg_catalog.pg_attribute", "CHECKPOINT")
}

// tracked waits until all tables are.
func (b *bench) tracked(ctx context.Context, client *audit.Client, n int) error {
	for range 600 {
		var covered int
		if err := b.conn.QueryRow(ctx, "SELECT count(*) FROM audit.coverage WHERE until_position IS NULL").Scan(&covered); err != nil {
			return err
		}
		if covered == n {
			return client.Sync(ctx)
		}
		pause(ctx, time.Second)
	}
	return errors.New("the tables are not tracked within ten minutes")
}

func (b *bench) writeSlowly(ctx context.Context, during time.Duration) error {
	until := time.Now().Add(during)
	for i := 0; time.Now().Before(until); i++ {
		if err := b.exec(ctx, fmt.Sprintf("UPDATE t_1 SET amount = amount + 1 WHERE id = %d", i%tablesRows+1)); err != nil {
			return err
		}
		pause(ctx, 50*time.Millisecond)
	}
	return nil
}

// cpuOf returns the processor time that this process, and those of the server, use while
// something is done. That of processes which end meanwhile is left out.
func (b *bench) cpuOf(ctx context.Context, do func(ctx context.Context) error) (program, server time.Duration, err error) {
	before, err := b.processes()
	if err != nil {
		return 0, 0, err
	}
	program = -cpu()
	if err := do(ctx); err != nil {
		return 0, 0, err
	}
	program += cpu()
	after, err := b.processes()
	if err != nil {
		return 0, 0, err
	}
	for pid, used := range after {
		server += used - before[pid]
	}
	return program, server, nil
}

// processes returns the processor time that each process of the server has used.
func (b *bench) processes() (map[int]time.Duration, error) {
	stats, err := filepath.Glob("/proc/[0-9]*/stat")
	if err != nil {
		return nil, err
	}
	used := make(map[int]time.Duration)
	for _, path := range stats {
		text, err := os.ReadFile(path)
		if err != nil {
			continue // it has ended
		}
		// pid (name) state ppid
		_, rest, _ := strings.Cut(string(text), ") ")
		if fields := strings.Fields(rest); len(fields) < 2 || fields[1] != strconv.Itoa(b.server.PID()) {
			continue
		}
		pid, err := strconv.Atoi(filepath.Base(filepath.Dir(path)))
		if err != nil {
			return nil, err
		}
		if took, err := processCPU(pid); err == nil {
			used[pid] = took
		}
	}
	if len(used) == 0 {
		return nil, errors.New("no process of the server is to be seen in /proc")
	}
	return used, nil
}

func pause(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	}
}
