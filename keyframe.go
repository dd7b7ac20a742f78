package audit

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/hindsight-go/audit/internal/history"
	"github.com/hindsight-go/audit/internal/pgcatalog"
	"github.com/hindsight-go/audit/store"
)

// BaselineOptions says what to take a baseline of.
type BaselineOptions struct {
	// Tables are the tables. Default: all that are tracked.
	Tables []string
	// Progress, if set, is called after every few thousand rows and at the end of
	// each table, from the goroutine that called Baseline.
	Progress func(BaselineProgress)
}

// BaselineProgress is how far a baseline has come.
type BaselineProgress struct {
	// Table is the table being read, Rows how many of its rows are stored.
	Table string `json:"table"`
	Rows  int64  `json:"rows"`
	// Done reports whether the table is complete.
	Done bool `json:"done"`
}

// Baseline stores all rows of tables as they are at the moment of the call, in
// the store. History needs it only of tables that may be truncated or dropped:
// all else is told from the live table. From then on the table's past can be
// rebuilt without it, forwards from the baseline.
//
// It costs the space of the rows once more. A call that was interrupted is taken
// up by the next one where it ended, at the moment of the first call; tables
// without a key begin anew. Retention carries baselines along. It returns a
// [*HistoryError] for a table that is not tracked.
func (c *Client) Baseline(ctx context.Context, options *BaselineOptions) (err error) {
	ctx, span := c.span(ctx, spanBaseline)
	defer func() { span.end(err) }()
	if options == nil {
		options = &BaselineOptions{}
	}
	if err := c.open(); err != nil {
		return err
	}
	t, err := c.travel(ctx, c.Now())
	if err != nil {
		return err
	}
	names := options.Tables
	if names == nil {
		names = t.trackedNow()
	}
	for _, name := range names {
		if err := c.baseline(ctx, t, name, options.Progress); err != nil {
			return err
		}
	}
	c.history.Forget()
	return nil
}

// trackedNow returns the tables that are tracked at the moment.
func (t *travel) trackedNow() []string {
	var names []string
	for _, cov := range t.facts.Coverage {
		if cov.Until == 0 && cov.From <= t.through {
			names = append(names, pgcatalog.Qualified(cov.Schema, cov.Table))
		}
	}
	slices.Sort(names)
	return names
}

// frame is a keyframe in the making.
type frame struct {
	store.Frame
	past     *pastTable
	progress func(BaselineProgress)
}

func (c *Client) baseline(ctx context.Context, t *travel, name string, progress func(BaselineProgress)) error {
	now := *t
	past, err := now.table(ctx, name)
	if err != nil {
		return err
	}
	begun, err := c.history.Records.BeginFrame(ctx, store.Frame{Database: t.database, Schema: past.schema, Table: past.name, RelationID: past.oid, Position: now.through})
	if err != nil {
		return history.OpError("begin baseline", err)
	}
	if begun.Position != now.through || begun.Schema != past.schema || begun.Table != past.name {
		// One that was interrupted: at its own moment.
		earlier := now
		earlier.point = AtPosition(Position{LSN: begun.Position}).of(c)
		earlier.through, earlier.same = begun.Position, begun.Position
		past, err = earlier.table(ctx, pgcatalog.Qualified(begun.Schema, begun.Table))
		if err == nil {
			_, err = past.base(ctx)
		}
		if err != nil {
			// Its moment cannot be told any more: from the beginning, then.
			if dropErr := c.history.Records.DropFrame(ctx, begun.ID); dropErr != nil {
				return history.OpError("begin baseline", dropErr)
			}
			return c.baseline(ctx, t, name, progress)
		}
	}
	f := &frame{Frame: begun, past: past, progress: progress}
	if err := f.write(ctx); err != nil {
		return history.OpError("take baseline of "+past.qualified(), err)
	}
	return nil
}

// frameRows is how many rows are stored in one transaction.
const frameRows = 5000

// write stores the rows that are still missing.
func (f *frame) write(ctx context.Context) error {
	if len(f.past.key) == 0 {
		return f.writeWhole(ctx)
	}
	for {
		n, err := f.writeSome(ctx)
		if err != nil {
			return err
		}
		f.report(n < frameRows)
		if n < frameRows {
			return f.past.client.history.Records.CompleteFrame(ctx, f.Frame)
		}
	}
}

func (f *frame) report(done bool) {
	if f.progress != nil {
		f.progress(BaselineProgress{Table: f.past.qualified(), Rows: f.Rows, Done: done})
	}
}

// writeSome stores the next rows in the order of the key.
func (f *frame) writeSome(ctx context.Context) (int, error) {
	past := f.past
	query := PastTable{point: past.point.of(past.client), name: past.qualified(), limit: frameRows}
	query.point.columns = nil
	var key, bound []string
	var args []any
	for i, at := range past.keyAt {
		c := past.columns.List[at]
		key = append(key, pgx.Identifier{c.Name}.Sanitize())
		if f.LastKey != nil {
			bound = append(bound, fmt.Sprintf("$%d::text::%s", i+1, c.TypeName))
			args = append(args, f.LastKey[i])
		}
	}
	query.order = strings.Join(key, ", ")
	if f.LastKey != nil {
		query = query.Where("("+query.order+") > ("+strings.Join(bound, ", ")+")", args...)
	}
	var rows []store.FrameRow
	err := query.read(ctx, func(row PastRow) error {
		rows = append(rows, store.FrameRow{Key: row.table.keyText(row.values), HasKey: true, Image: row.table.frameImage(row.values)})
		f.LastKey = f.LastKey[:0]
		for _, at := range row.table.keyAt {
			f.LastKey = append(f.LastKey, string(row.values[at]))
		}
		return nil
	})
	if err != nil {
		return 0, err
	}
	if len(rows) == 0 {
		return 0, nil
	}
	if err := past.client.history.Records.AppendFrame(ctx, f.Frame, rows); err != nil {
		return 0, err
	}
	f.Rows += int64(len(rows))
	return len(rows), nil
}

// writeWhole stores all rows in one transaction: without a key there is no place
// to go on from.
func (f *frame) writeWhole(ctx context.Context) error {
	n, err := f.past.client.history.Records.WriteFrame(ctx, f.Frame, nil, func(w *store.FrameWriter) error {
		return f.past.rows(ctx, func(values [][]byte) error { return w.Write(store.FrameRow{Image: f.past.frameImage(values)}) })
	})
	if err != nil {
		return err
	}
	f.Rows = n
	f.report(true)
	return nil
}

// Baseline is Client.Baseline on the default client.
func Baseline(ctx context.Context, options *BaselineOptions) error {
	return withDefault(func(c *Client) error { return c.Baseline(ctx, options) })
}

// noteEmpty records that a table is known whole, since it is empty: all that will
// ever be in it is going to be in history. The lock that makes that certain is
// taken only if it is to be had at once, and only on a table without a page.
func (c *Client) noteEmpty(ctx context.Context, database, schema, table string, oid uint32) error {
	var pages int64
	err := c.history.Source.QueryRow(ctx, `
		SELECT coalesce(sum(pg_catalog.pg_relation_size(t.relid)), 1)::bigint
		FROM (SELECT $1::oid AS relid UNION SELECT p.relid FROM pg_catalog.pg_partition_tree($1::oid) p) t`, oid).Scan(&pages)
	if err != nil || pages > 0 {
		return history.OpError("look whether the table is empty", err)
	}
	ident := pgx.Identifier{schema, table}.Sanitize()
	var empty bool
	var here LSN
	err = pgx.BeginFunc(ctx, c.history.Source, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, "LOCK TABLE "+ident+" IN SHARE MODE NOWAIT"); err != nil {
			return err
		}
		return tx.QueryRow(ctx, "SELECT NOT EXISTS (SELECT FROM "+ident+"), pg_catalog.pg_current_wal_insert_lsn()::text").Scan(&empty, &here)
	})
	if history.IsCode(err, "55P03", "42P01", "42501") {
		return nil // somebody is at it, or it is gone, or not ours to lock: no harm
	}
	if err != nil || !empty {
		return history.OpError("look whether the table is empty", err)
	}
	_, err = c.history.Records.WriteFrame(ctx, store.Frame{Database: database, Schema: schema, Table: table, RelationID: oid, Position: here}, nil,
		func(*store.FrameWriter) error { return nil })
	return history.OpError("note that the table is empty", err)
}

// carryKeyframes makes keyframes at the position up to which retention is about to
// drop history, which it returns, of every table that history knows whole at it: what
// comes behind stays as exact as it was.
func (c *Client) carryKeyframes(ctx context.Context, before time.Time) (horizon LSN, err error) {
	horizon, err = c.history.Records.HorizonAt(ctx, before)
	if err != nil || horizon == 0 {
		return horizon, err
	}
	database, err := c.history.Database(ctx)
	if err != nil {
		return horizon, err
	}
	t := &travel{client: c, point: AtPosition(Position{LSN: horizon}).of(c), database: database, through: horizon, same: horizon}
	if t.facts, err = c.history.FreshFacts(ctx, database); err != nil {
		return horizon, err
	}
	for _, cov := range t.holding(t.facts.Coverage) {
		if err := t.carryKeyframe(ctx, cov); err != nil {
			return horizon, err
		}
	}
	return horizon, nil
}

func (t *travel) carryKeyframe(ctx context.Context, cov store.Coverage) error {
	past, err := t.tableOf(ctx, cov, t.client.history.FreshTable)
	if err != nil {
		var refusal *HistoryError
		if errors.As(err, &refusal) {
			return nil // there is nothing to carry
		}
		return err
	}
	truncations, err := past.truncations(ctx)
	if err != nil {
		return err
	}
	until := slices.IndexFunc(truncations, func(tr truncation) bool { return tr.position > t.through })
	if until < 0 {
		until = len(truncations)
	}
	b, ok := past.storedBase(truncations[:until], nil)
	if !ok || !b.forward(past) || b.position == t.through && b.kind == baseKeyframe {
		return nil
	}
	f := store.Frame{Database: t.database, Schema: past.schema, Table: past.name, RelationID: past.oid, Position: t.through}
	from := &store.FrameBase{Keyframe: b.keyframe, Horizon: t.facts.Horizon.Position}
	_, err = t.client.history.Records.WriteFrame(ctx, f, from, func(w *store.FrameWriter) error { return past.carry(ctx, b, w) })
	return history.OpError("carry "+past.qualified()+" along", err)
}

// carry writes the table as it was, from a base before the moment, a page of rows at a
// time: a table of any size takes no more memory than another. The rows of one without a
// key are counted in memory.
func (p *pastTable) carry(ctx context.Context, b base, w *store.FrameWriter) error {
	if !p.keyed(b) {
		return p.keylessRows(ctx, b, nil, func(values [][]byte) error { return w.Write(store.FrameRow{Image: p.frameImage(values)}) })
	}
	row := func(key string, values [][]byte) store.FrameRow {
		return store.FrameRow{Key: key, HasKey: true, Image: p.frameImage(values)}
	}
	derived, flush := p.deriving(ctx, func(key string, values [][]byte) error { return w.Write(row(key, values)) })
	err := p.touched(ctx, b, nil, func(row touchedRow) error {
		if row.values == nil {
			return w.Write(store.FrameRow{Key: row.key, HasKey: true})
		}
		return derived(row.key, row.values)
	})
	if err != nil {
		return err
	}
	if err := flush(); err != nil {
		return err
	}
	derived, flush = p.deriving(ctx, func(key string, values [][]byte) error { return w.WriteUnlessThere(row(key, values)) })
	err = p.baseRows(ctx, b, nil, func(key string, values [][]byte, missing []int) error {
		if len(missing) > 0 {
			if err := p.fill(ctx, key, values, missing); err != nil {
				return err
			}
		}
		return derived(key, values)
	})
	if err != nil {
		return err
	}
	return flush()
}

// dropKeyframes drops the keyframes that retention has left behind.
func (c *Client) dropKeyframes(ctx context.Context) error {
	database, err := c.history.Database(ctx)
	if err != nil {
		return err
	}
	return c.history.Records.DropFramesBefore(ctx, database)
}
