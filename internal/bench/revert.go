package main

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/hindsight-go/audit"
)

// largeWork is work on all rows of item, and what undoes it by hand: $history stands for
// the changes of its request, as c.
type largeWork struct {
	name, prepare, sql, byHand string
}

var largeWorks = []largeWork{
	{name: "updated rows in one transaction", sql: work, byHand: workByHand},
	{name: "deleted rows", sql: "DELETE FROM item", byHand: `
		INSERT INTO item SELECT (jsonb_populate_record(NULL::item, c.before)).* FROM $history`},
	{name: "rows with another key", sql: "UPDATE item SET id = id + 10000000", byHand: `
		UPDATE item i SET id = (c.before ->> 'id')::bigint FROM $history AND i.id = c.primary_key::bigint`},
	{
		name: "updated rows of a table with a trigger", sql: work, byHand: workByHand,
		prepare: `
			CREATE FUNCTION touch() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN NEW.updated := clock_timestamp(); RETURN NEW; END $$;
			CREATE TRIGGER touch BEFORE UPDATE ON item FOR EACH ROW EXECUTE FUNCTION touch()`,
	},
}

// work is what is done to all rows of item.
const (
	work       = "UPDATE item SET price = price + 1, title = 'changed', updated = now()"
	workByHand = `
		UPDATE item i
		SET price = (c.before ->> 'price')::numeric, title = c.before ->> 'title', updated = (c.before ->> 'updated')::timestamptz
		FROM $history AND i.id = c.primary_key::bigint`
)

// revert measures the undo of one transaction that has changed 100,000 rows against the
// statement that would do the same from history by hand, and the undo of a request of
// 5 rows with a large history in the store.
func revert(ctx context.Context, b *bench) error {
	client, err := b.capturing(ctx)
	if err != nil {
		return err
	}
	defer client.Close()
	n := b.n(100_000)
	if err := b.exec(ctx, "INSERT INTO item "+rows(1, n)); err != nil {
		return err
	}
	if err := b.noise(ctx, client, b.n(5_000_000)); err != nil {
		return err
	}
	if err := b.smallReverts(ctx, client); err != nil {
		return err
	}
	if err := b.revertMemory(ctx, client, n); err != nil {
		return err
	}
	for _, w := range largeWorks {
		if err := b.exec(ctx, w.prepare); err != nil {
			return err
		}
		if err := b.largeReverts(ctx, client, n, w); err != nil {
			return fmt.Errorf("%s: %w", w.name, err)
		}
	}
	return nil
}

// largeReverts measures the undo of work on all n rows of item.
func (b *bench) largeReverts(ctx context.Context, client *audit.Client, n int, w largeWork) error {
	var byHand, undone []time.Duration
	for i := range 3 {
		request := fmt.Sprintf("%s-%d", w.name, i)
		if err := b.asRequest(ctx, request, w.sql); err != nil {
			return err
		}
		if err := settled(ctx, client); err != nil {
			return err
		}
		var phases phases
		began := time.Now()
		result, err := client.RevertRequest(request).MaxRows(n).Progress(phases.note).Apply(ctx)
		if err != nil {
			return err
		}
		undone = append(undone, time.Since(began))
		b.printf("undo %d: %s (%s)\n", i+1, time.Since(began).Round(time.Millisecond), phases.since(began))
		if done := result.Inserted + result.Updated + result.Deleted; done != n {
			return fmt.Errorf("%d of %d rows were restored", done, n)
		}
		if err := b.asRequest(ctx, "again-"+request, w.sql); err != nil {
			return err
		}
		if err := settled(ctx, client); err != nil {
			return err
		}
		history := fmt.Sprintf(`audit.changes c WHERE c.context @> '{"requestId": "again-%s"}'`, request)
		began = time.Now()
		if err := b.exec(ctx, strings.ReplaceAll(w.byHand, "$history", history)); err != nil {
			return err
		}
		byHand = append(byHand, time.Since(began))
		b.printf("by hand %d: %s\n", i+1, time.Since(began).Round(time.Millisecond))
		if err := client.Sync(ctx); err != nil {
			return err
		}
	}
	b.printf("undo of %d %s: %s; by hand from history: %s; ratio %.2f (medians of 3)\n",
		n, w.name, middle(undone), middle(byHand), float64(middle(undone))/float64(middle(byHand)))
	return nil
}

// settled waits until capture has nothing to do: after the change itself, it has
// to read over what the store wrote for that, in the same WAL.
func settled(ctx context.Context, client *audit.Client) error {
	for range 2 {
		if err := client.Sync(ctx); err != nil {
			return err
		}
	}
	return nil
}

// phases are the ends of the steps of a revert.
type phases struct {
	names []string
	ends  []time.Time
}

func (p *phases) note(at audit.Progress) {
	if len(p.names) == 0 || p.names[len(p.names)-1] != at.Step {
		p.names, p.ends = append(p.names, at.Step), append(p.ends, time.Time{})
	}
	p.ends[len(p.ends)-1] = time.Now()
}

// since says how long each step took, and what came after the last.
func (p *phases) since(began time.Time) string {
	text := ""
	for i, name := range p.names {
		text += fmt.Sprintf("%s %s, ", name, p.ends[i].Sub(began).Round(time.Millisecond))
		began = p.ends[i]
	}
	return text + "commit " + time.Since(began).Round(time.Millisecond).String()
}

// revertMemory measures what the undo of n updated rows, and that of n deleted ones,
// takes of this process's memory.
func (b *bench) revertMemory(ctx context.Context, client *audit.Client, n int) error {
	for _, work := range []struct{ name, sql string }{
		{"updated", work}, {"deleted", "DELETE FROM item"},
	} {
		if err := b.asRequest(ctx, work.name, work.sql); err != nil {
			return err
		}
		if err := settled(ctx, client); err != nil {
			return err
		}
		before, peak, err := peakOf(func() error {
			_, err := client.RevertRequest(work.name).MaxRows(n).Apply(ctx)
			return err
		})
		if err != nil {
			return err
		}
		b.printf("undo of %d %s rows: resident memory %.1f MiB before, %.1f MiB at its peak, %.1f MiB more\n", n, work.name, before, peak, peak-before)
	}
	return nil
}

func middle(d []time.Duration) time.Duration {
	slices.Sort(d)
	return d[len(d)/2].Round(10 * time.Microsecond)
}

// noise fills the history with changes of other requests.
func (b *bench) noise(ctx context.Context, client *audit.Client, n int) error {
	if err := client.Sync(ctx); err != nil {
		return err
	}
	const part = 250_000
	for from := 0; from < n; from += part {
		err := b.exec(ctx, fmt.Sprintf(`
			INSERT INTO audit.changes (position, sequence, committed_at, transaction_id, database, schema, "table", primary_key, operation, before, after, context, queued_at)
			SELECT '0/1'::pg_lsn + i, 1, now(), 3, current_database(), 'public', 'item', (1000000 + i %% 100000)::text, 'UPDATE',
				jsonb_build_object('id', i, 'n', 1), jsonb_build_object('id', i, 'n', 2),
				jsonb_build_object('userId', i %% 1000, 'requestId', 'noise-' || i / 5), now()
			FROM generate_series(%d, %d) i`, from, min(from+part, n)-1))
		if err != nil {
			return err
		}
	}
	return b.exec(ctx, "ANALYZE audit.changes")
}

func (b *bench) asRequest(ctx context.Context, request, sql string) error {
	ctx = audit.WithContext(ctx, audit.Context{UserID: 1, RequestID: request})
	return pgx.BeginFunc(ctx, b.conn, func(tx pgx.Tx) error {
		if err := audit.Stamp(ctx, tx); err != nil {
			return err
		}
		_, err := tx.Exec(ctx, sql)
		return err
	})
}

// smallReverts measures plan, and plan and apply, of requests of 5 rows.
func (b *bench) smallReverts(ctx context.Context, client *audit.Client) error {
	var stored int64
	if err := b.conn.QueryRow(ctx, "SELECT count(*) FROM audit.changes").Scan(&stored); err != nil {
		return err
	}
	var plans, applies, both []time.Duration
	for i := range 200 {
		request := fmt.Sprintf("small-%d", i)
		if err := b.asRequest(ctx, request, fmt.Sprintf("UPDATE item SET price = price + 1, stock = 0 WHERE id BETWEEN %d AND %d", 5*i+1, 5*i+5)); err != nil {
			return err
		}
		if err := client.Sync(ctx); err != nil {
			return err
		}
		began := time.Now()
		plan, err := client.RevertRequest(request).Plan(ctx)
		if err != nil {
			return err
		}
		planned := time.Since(began)
		if _, err := plan.Apply(ctx); err != nil {
			return err
		}
		both = append(both, time.Since(began))
		plans, applies = append(plans, planned), append(applies, time.Since(began)-planned)
	}
	slices.Sort(both)
	b.printf("undo of a request of 5 rows with %d changes in the store: plan p50 %s, apply p50 %s, both p50 %s, p99 %s\n",
		stored, middle(plans), middle(applies), middle(both), both[len(both)*99/100].Round(10*time.Microsecond))
	return nil
}
