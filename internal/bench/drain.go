package main

import (
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/jackc/pglogrepl"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/hindsight-go/audit"
)

// shape is a backlog of a certain kind.
type shape struct {
	name    string
	changes int
	write   func(ctx context.Context, b *bench, n int) error
}

var shapes = []shape{
	{"inserts, 1000 a transaction", 1_000_000, func(ctx context.Context, b *bench, n int) error {
		for i := 0; i < n; i += 1000 {
			if err := b.exec(ctx, "INSERT INTO item "+rows(i+1, min(i+1000, n))); err != nil {
				return err
			}
		}
		return nil
	}},
	{"updates, 10 a transaction", 300_000, func(ctx context.Context, b *bench, n int) error {
		return b.exec(ctx, fmt.Sprintf(`DO $$ BEGIN FOR i IN 0 .. %d LOOP
			UPDATE item SET stock = stock + 1, updated = clock_timestamp() WHERE id BETWEEN i * 10 + 1 AND i * 10 + 10; COMMIT; END LOOP; END $$`, n/10-1))
	}},
	{"updates, 1 a transaction", 100_000, func(ctx context.Context, b *bench, n int) error {
		return b.exec(ctx, fmt.Sprintf(`DO $$ BEGIN FOR i IN 1 .. %d LOOP
			UPDATE item SET stock = stock + 1, updated = clock_timestamp() WHERE id = i; COMMIT; END LOOP; END $$`, n))
	}},
}

// drain measures how fast a prepared backlog becomes history, against a bare
// COPY of the very same rows into the same indexed table by one connection, and
// against reading the decoded stream and throwing it away.
func drain(ctx context.Context, b *bench) error {
	if err := b.exec(ctx, table, "SET synchronous_commit = off"); err != nil {
		return err
	}
	client, err := b.open(ctx)
	if err != nil {
		return err
	}
	defer client.Close()
	file, err := os.CreateTemp("", "audit-bench-*.copy")
	if err != nil {
		return err
	}
	defer func() { _ = os.Remove(file.Name()) }()
	b.printf("%-28s %9s | %9s %9s %9s | %8s %8s | %s\n", "shape", "changes", "decode/s", "COPY/s", "drain/s", "/COPY", "/decode", "CPU in us a change")
	for _, s := range shapes {
		n := b.n(s.changes)
		// What the last shape wrote into the history is in the WAL as well: it
		// must not count against this one.
		if err := b.catchUp(ctx, client); err != nil {
			return err
		}
		if err := b.exec(ctx, "TRUNCATE audit.changes"); err != nil {
			return err
		}
		if err := s.write(ctx, b, n); err != nil {
			return err
		}
		if err := b.exec(ctx, "CHECKPOINT"); err != nil {
			return err
		}
		decode, err := b.decode(ctx)
		if err != nil {
			return fmt.Errorf("decode: %w", err)
		}
		used, began := cpu(), time.Now()
		if err := client.Start(ctx); err != nil {
			return err
		}
		if err := client.Sync(ctx); err != nil {
			return err
		}
		drained := time.Since(began)
		used = cpu() - used
		sender, writer, err := b.serverCPU(ctx)
		if err != nil {
			return err
		}
		var stored int
		if err := b.conn.QueryRow(ctx, "SELECT count(*) FROM audit.changes").Scan(&stored); err != nil {
			return err
		}
		if stored != n {
			return fmt.Errorf("%s: stored %d changes of %d", s.name, stored, n)
		}
		if err := client.Stop(ctx); err != nil {
			return err
		}
		copied, err := b.bareCopy(ctx, file)
		if err != nil {
			return fmt.Errorf("bare copy: %w", err)
		}
		rate := func(d time.Duration) float64 { return float64(n) / d.Seconds() }
		b.printf("%-28s %9d | %9.0f %9.0f %9.0f | %8.2f %8.2f | %.2f client, %.2f walsender, %.2f writer\n", s.name, n,
			rate(decode), rate(copied), rate(drained), copied.Seconds()/drained.Seconds(), decode.Seconds()/drained.Seconds(), used.Seconds()*1e6/float64(n), sender.Seconds()*1e6/float64(n), writer.Seconds()*1e6/float64(n))
	}
	return nil
}

// serverCPU returns the processor time that the walsender and the writer's
// backend have used since they began.
func (b *bench) serverCPU(ctx context.Context) (sender, writer time.Duration, err error) {
	for name, used := range map[string]*time.Duration{"audit capture": &sender, "audit writer": &writer} {
		var pid int
		if err := b.conn.QueryRow(ctx, "SELECT pid FROM pg_stat_activity WHERE application_name = $1", name).Scan(&pid); err != nil {
			return 0, 0, fmt.Errorf("find %s: %w", name, err)
		}
		if *used, err = processCPU(pid); err != nil {
			return 0, 0, err
		}
	}
	return sender, writer, nil
}

// catchUp lets capture pass everything there is, and the slot let go of the WAL:
// a server that resumes reads from where the slot's restart_lsn is.
func (b *bench) catchUp(ctx context.Context, client *audit.Client) error {
	if err := client.Start(ctx); err != nil {
		return err
	}
	var here string
	if err := b.conn.QueryRow(ctx, "SELECT pg_current_wal_insert_lsn()::text").Scan(&here); err != nil {
		return err
	}
	for passed := false; !passed; {
		// Each checkpoint logs the running transactions, by which the slot moves.
		if err := b.exec(ctx, "CHECKPOINT"); err != nil {
			return err
		}
		if err := client.Sync(ctx); err != nil {
			return err
		}
		err := b.conn.QueryRow(ctx, "SELECT coalesce(bool_and(restart_lsn >= $1::text::pg_lsn), true) FROM pg_replication_slots", here).Scan(&passed)
		if err != nil {
			return err
		}
	}
	return client.Stop(ctx)
}

// bareCopy writes the history into a file and back into the emptied table.
func (b *bench) bareCopy(ctx context.Context, file *os.File) (time.Duration, error) {
	if err := file.Truncate(0); err != nil {
		return 0, err
	}
	if _, err := file.Seek(0, io.SeekStart); err != nil {
		return 0, err
	}
	const columns = `(position, committed_at, transaction_id, queued_at, database, environment, schema, "table", sequence, operation, primary_key, previous_key, before, after, context, defect)`
	conn, err := pgx.Connect(ctx, b.url)
	if err != nil {
		return 0, err
	}
	defer func() { _ = conn.Close(ctx) }()
	_, err = conn.PgConn().CopyTo(ctx, file, "COPY (SELECT "+columns[1:len(columns)-1]+" FROM audit.changes ORDER BY position, sequence) TO STDOUT (FORMAT binary)")
	if err != nil {
		return 0, err
	}
	if err := b.exec(ctx, "TRUNCATE audit.changes", "CHECKPOINT"); err != nil {
		return 0, err
	}
	if _, err := file.Seek(0, io.SeekStart); err != nil {
		return 0, err
	}
	began := time.Now()
	_, err = conn.PgConn().CopyFrom(ctx, file, "COPY audit.changes "+columns+" FROM STDIN (FORMAT binary)")
	return time.Since(began), err
}

// decode reads the slot's stream to the end of the log and confirms nothing.
func (b *bench) decode(ctx context.Context) (time.Duration, error) {
	var slot, end string
	err := b.conn.QueryRow(ctx, "SELECT slot_name, pg_current_wal_flush_lsn()::text FROM pg_replication_slots").Scan(&slot, &end)
	if err != nil {
		return 0, err
	}
	target, err := pglogrepl.ParseLSN(end)
	if err != nil {
		return 0, err
	}
	// A transaction behind the backlog, so that the stream says when it is over.
	if err := b.exec(ctx, "SELECT pg_logical_emit_message(true, 'bench', '')", "SELECT pg_switch_wal()"); err != nil {
		return 0, err
	}
	config, err := pgconn.ParseConfig(b.url)
	if err != nil {
		return 0, err
	}
	config.RuntimeParams["replication"] = "database"
	pg, err := pgconn.ConnectConfig(ctx, config)
	if err != nil {
		return 0, err
	}
	h, err := pg.Hijack()
	if err != nil {
		return 0, err
	}
	defer func() { _ = h.Conn.Close() }()
	sql := fmt.Sprintf(`START_REPLICATION SLOT "%s" LOGICAL 0/0 (proto_version '1', publication_names '"audit"', messages 'true')`, slot)
	message := append(binary.BigEndian.AppendUint32([]byte{'Q'}, uint32(len(sql)+5)), sql...)
	began := time.Now()
	if _, err := h.Conn.Write(append(message, 0)); err != nil {
		return 0, err
	}
	buf := make([]byte, 1<<20)
	from, to := 0, 0
	for {
		for to-from >= 5 {
			size := int(binary.BigEndian.Uint32(buf[from+1:])) + 1
			if to-from < size {
				break
			}
			m := buf[from : from+size]
			from += size
			switch {
			case m[0] == 'E':
				return 0, fmt.Errorf("server: %q", m[5:])
			case m[0] == 'd' && m[5] == 'w' && m[30] == 'C' && pglogrepl.LSN(binary.BigEndian.Uint64(m[40:])) > target:
				return time.Since(began), nil
			}
		}
		to = copy(buf, buf[from:to])
		from = 0
		n, err := h.Conn.Read(buf[to:])
		if err != nil {
			return 0, err
		}
		to += n
	}
}
