// Command bench measures what the documentation claims about capture, as ratios
// against a baseline in the same run: go run ./internal/bench drain, latency,
// memory, source, stamp, watch, tables or size. It starts a PostgreSQL server of its own, with fsync on.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"runtime"
	"runtime/pprof"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/hindsight-go/audit"
	"github.com/hindsight-go/audit/internal/pgserver"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Stdout, os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

var benchmarks = map[string]func(ctx context.Context, b *bench) error{
	"drain": drain, "latency": latency, "memory": memory, "source": source, "revert": revert, "stamp": stamp, "watch": watch, "tables": tables, "size": size,
}

// bench is one benchmark's surroundings.
type bench struct {
	out    io.Writer
	server *pgserver.Server
	url    string
	conn   *pgx.Conn
	scale  float64
}

func run(ctx context.Context, out io.Writer, args []string) error {
	flags := flag.NewFlagSet("bench", flag.ContinueOnError)
	scale := flags.Float64("scale", 1, "part of the full size to run, for a quick look")
	profile := flags.String("cpuprofile", "", "write a processor profile of this process to a file")
	if err := flags.Parse(args); err != nil {
		return err
	}
	measure := benchmarks[flags.Arg(0)]
	if measure == nil {
		return errors.New("name a benchmark: drain, latency, memory, source, revert, stamp, watch, tables or size")
	}
	slog.SetDefault(slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn})))
	server, err := pgserver.Start(ctx, pgserver.Options{Durable: true, Settings: map[string]string{
		"shared_buffers": "512MB", "max_wal_size": "8GB", "checkpoint_timeout": "30min", "autovacuum": "off",
	}})
	if err != nil {
		return err
	}
	defer func() { _ = server.Close() }()
	b := &bench{out: out, server: server, url: server.DSN("postgres"), scale: *scale}
	if b.conn, err = pgx.Connect(ctx, b.url); err != nil {
		return err
	}
	b.printf("PostgreSQL %d.%d, %s, %d CPUs, scale %g\n", server.Version()/10000, server.Version()%10000, runtime.Version(), runtime.NumCPU(), *scale)
	if *profile != "" {
		file, err := os.Create(*profile)
		if err != nil {
			return err
		}
		if err := pprof.StartCPUProfile(file); err != nil {
			return err
		}
		defer pprof.StopCPUProfile()
	}
	return measure(ctx, b)
}

func (b *bench) printf(format string, args ...any) { _, _ = fmt.Fprintf(b.out, format, args...) }

func (b *bench) exec(ctx context.Context, statements ...string) error {
	for _, sql := range statements {
		if _, err := b.conn.Exec(ctx, sql); err != nil {
			return fmt.Errorf("%.80s: %w", sql, err)
		}
	}
	return nil
}

func (b *bench) n(full int) int { return max(1000, int(float64(full)*b.scale)) }

// table is what is written: 12 columns, about 250 bytes a row.
const table = `CREATE TABLE item (
	id bigint PRIMARY KEY, sku text NOT NULL, title text NOT NULL, body text NOT NULL, price numeric(12,2) NOT NULL,
	stock integer NOT NULL, active boolean NOT NULL, weight double precision NOT NULL, tag uuid NOT NULL,
	note text, created timestamptz NOT NULL, updated timestamptz NOT NULL)`

// rows makes rows of item for the ids between two bounds.
func rows(from, to int) string {
	return fmt.Sprintf(`SELECT i, 'SKU-' || i, 'Item number ' || i || ' of the catalogue', repeat('lorem ipsum ', 8) || i, (i %% 100000) / 100.0,
		i %% 1000, i %% 2 = 0, i * 0.001, gen_random_uuid(), NULL, '2024-01-01'::timestamptz + i * interval '1 second', now()
		FROM generate_series(%d, %d) i`, from, to)
}

func (b *bench) open(ctx context.Context) (*audit.Client, error) {
	return audit.Open(ctx, audit.Config{SourceURL: b.url, Tables: []string{"public.item"}, RefreshInterval: -1})
}

// capturing makes the table and starts to capture it.
func (b *bench) capturing(ctx context.Context) (*audit.Client, error) {
	if err := b.exec(ctx, table); err != nil {
		return nil, err
	}
	client, err := b.open(ctx)
	if err != nil {
		return nil, err
	}
	if err := client.Start(ctx); err != nil {
		client.Close()
		return nil, err
	}
	return client, nil
}

// cpu returns the processor time this process has used.
func cpu() time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// processCPU returns the processor time of another process. It is that of its only
// thread, as a backend has.
func processCPU(pid int) (time.Duration, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/schedstat", pid))
	if err != nil {
		return 0, err
	}
	var nanoseconds int64
	if _, err := fmt.Sscan(string(text), &nanoseconds); err != nil {
		return 0, fmt.Errorf("/proc/%d/schedstat: %w", pid, err)
	}
	return time.Duration(nanoseconds), nil
}
