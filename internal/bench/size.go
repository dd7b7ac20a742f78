package main

import (
	"context"
	"fmt"

	"github.com/hindsight-go/audit"
)

// sizeShapes are tables of rows of different width, with what is done to each row.
var sizeShapes = []struct{ name, table, insert string }{
	{"narrow: id, 20 characters, boolean", "CREATE TABLE item (id bigint PRIMARY KEY, task text, done boolean)", "SELECT i, 'Item number ' || lpad(i::text, 8, '0'), false FROM generate_series(1, %d) i"},
	{"12 columns", table, ""},
	{
		"wide: 2,000 characters of text", "CREATE TABLE item (id bigint PRIMARY KEY, body text, updated timestamptz)",
		"SELECT i, (SELECT string_agg(md5((i * 100 + j)::text), ' ') FROM generate_series(1, 60) j), now() FROM generate_series(1, %d) i",
	},
}

// perRequest is how many rows a request of the benchmark changes.
const perRequest = 5

// size measures what a change takes in the history and in the WAL, by the width of the row
// and by the operation: without a context, and in requests of five changes, each with a
// context of its own.
func size(ctx context.Context, b *bench) error {
	n := b.n(20_000)
	if err := b.exec(ctx, "SET synchronous_commit = off"); err != nil {
		return err
	}
	b.printf("bytes a change: %-20s %6s %9s %9s %7s %7s %7s %11s %11s %9s\n", "rows", "row", "operation", "context", "heap", "index", "total", "WAL before", "source WAL", "store WAL")
	for _, shape := range sizeShapes {
		for _, stamped := range []bool{false, true} {
			if err := b.sizeOf(ctx, shape.name, shape.table, shape.insert, stamped, n); err != nil {
				return fmt.Errorf("%s: %w", shape.name, err)
			}
		}
	}
	return nil
}

// requests does a statement in requests, each stamped in a transaction of its own.
const requests = `DO $$ BEGIN
	FOR i IN 0 .. %d LOOP
		PERFORM pg_logical_emit_message(true, 'audit', format('{"userId": "%%s", "requestId": "%%s", "endpoint": "POST /item/{id}"}', 187234 + i %% 100, gen_random_uuid()));
		%s AND id BETWEEN %d * i + 1 AND %d * (i + 1);
		COMMIT;
	END LOOP;
END $$`

func (b *bench) sizeOf(ctx context.Context, name, table, insert string, stamped bool, n int) error {
	rowsSQL := rows(1, n)
	if insert != "" {
		rowsSQL = fmt.Sprintf(insert, n)
	}
	if err := b.exec(ctx, table, "CREATE TABLE source_rows (LIKE item INCLUDING INDEXES)", "INSERT INTO source_rows "+rowsSQL); err != nil {
		return err
	}
	var width float64
	if err := b.conn.QueryRow(ctx, "SELECT avg(length(r::text)) FROM source_rows r").Scan(&width); err != nil {
		return err
	}
	second := ""
	if err := b.conn.QueryRow(ctx, "SELECT attname FROM pg_attribute WHERE attrelid = 'item'::regclass AND attnum = 2").Scan(&second); err != nil {
		return err
	}
	acts := []struct {
		name, sql string
		before    int64 // WAL without capture
	}{
		{name: "INSERT", sql: "INSERT INTO item SELECT * FROM source_rows WHERE true"},
		{name: "UPDATE", sql: fmt.Sprintf("UPDATE item SET %[1]s = %[1]s || '!' WHERE true", second)},
		{name: "DELETE", sql: "DELETE FROM item WHERE true"},
	}
	each := func(from, to int64) int64 { return (to - from) / int64(n) }
	for i := range acts {
		if err := b.exec(ctx, "CHECKPOINT"); err != nil {
			return err
		}
		from, err := b.walPosition(ctx)
		if err != nil {
			return err
		}
		if err := b.exec(ctx, acts[i].sql); err != nil {
			return err
		}
		to, err := b.walPosition(ctx)
		if err != nil {
			return err
		}
		acts[i].before = each(from, to)
	}
	client, err := b.open(ctx)
	if err != nil {
		return err
	}
	defer client.Close()
	if err := client.Start(ctx); err != nil {
		return err
	}
	for _, act := range acts {
		if err := b.exec(ctx, "CHECKPOINT"); err != nil {
			return err
		}
		before, err := b.historySize(ctx, client)
		if err != nil {
			return err
		}
		sql, said := act.sql, "none"
		if stamped {
			sql, said = fmt.Sprintf(requests, n/perRequest-1, act.sql, perRequest, perRequest), "109"
		}
		if err := b.exec(ctx, sql); err != nil {
			return err
		}
		written, err := b.walPosition(ctx)
		if err != nil {
			return err
		}
		after, err := b.historySize(ctx, client)
		if err != nil {
			return err
		}
		// In one transaction the store begins when the source has ended; else they write together.
		source, store := fmt.Sprint(each(before.wal, written)), fmt.Sprint(each(written, after.wal))
		if stamped {
			source, store = "", fmt.Sprintf("both %d", each(before.wal, after.wal))
		}
		heap, index := each(before.heap, after.heap), each(before.index, after.index)
		b.printf("%-36s %6.0f %9s %9s %7d %7d %7d %11d %11s %9s\n", name, width, act.name, said, heap, index, heap+index, act.before, source, store)
	}
	if err := client.Stop(ctx); err != nil {
		return err
	}
	if err := client.Uninstall(ctx); err != nil {
		return err
	}
	return b.exec(ctx, "DROP TABLE item, source_rows")
}

// historySize is what the history takes, once everything is in it.
type historySize struct{ heap, index, wal int64 }

func (b *bench) historySize(ctx context.Context, client *audit.Client) (s historySize, err error) {
	if err := client.Sync(ctx); err != nil {
		return s, err
	}
	err = b.conn.QueryRow(ctx, `
		SELECT sum(pg_table_size(relid))::bigint, sum(pg_indexes_size(relid))::bigint
		FROM pg_partition_tree('audit.changes') WHERE isleaf`).Scan(&s.heap, &s.index)
	if err != nil {
		return s, err
	}
	s.wal, err = b.walPosition(ctx)
	return s, err
}

func (b *bench) walPosition(ctx context.Context) (position int64, err error) {
	err = b.conn.QueryRow(ctx, "SELECT (pg_current_wal_insert_lsn() - '0/0'::pg_lsn)::bigint").Scan(&position)
	return position, err
}
