package audit

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/hindsight-go/audit/internal/history"
	"github.com/hindsight-go/audit/internal/rowimage"
)

// event is what a change says of one row: the image that holds on the side of the
// change that was asked for.
type event struct {
	position LSN
	sequence int
	xid      uint64
	key      string
	// image is the row; nil says that there was none.
	image Image
	// keyImage is an image that has the row's key, if image has not.
	keyImage Image
	// defects are what image does not say as it is.
	defects []rowimage.Defect
}

// truncatesPart tells from the store's remarks that a TRUNCATE was one of a single
// partition.
func truncatesPart(remarks *string) bool {
	return remarks != nil && strings.Contains(*remarks, "only the partition ")
}

// read reads the image of an event as one text for each column of then. missing
// are the columns that it does not know.
func (p *pastTable) read(e event) (values [][]byte, missing []int) {
	index := p.versionAt(e.position, e.sequence)
	values, missing = rowimage.Texts(e.image, p.columns.List, index)
	for _, d := range e.defects {
		i, ok := index[d.Column]
		switch {
		case !ok:
		case d.Value != nil:
			values[i] = d.Value
		default:
			missing = append(missing, i)
		}
	}
	return values, missing
}

// strategy is how the changes on one side of a moment are looked for. Both give
// the same answer.
type strategy int

const (
	// searchAuto counts, and chooses.
	searchAuto strategy = iota
	// searchScan reads the changes in order, and keeps the first of each row. Its
	// cost grows with the changes on that side.
	searchScan
	// searchProbe asks the index for each row that history knows. Its cost grows
	// with the rows.
	searchProbe
)

// probeCost is what looking up a row by the index costs, in changes read in
// order.
const probeCost = 5

// choose counts the changes of a table in (from, to], but no further than where
// the answer is clear.
func (p *pastTable) choose(ctx context.Context, span nameSpan, from, to LSN) (strategy, error) {
	if p.point.search != searchAuto || len(p.key) == 0 {
		return max(p.point.search, searchScan), nil
	}
	rows := int64(2000)
	if p.live != nil {
		// Nothing that takes a lock: a TRUNCATE that waits for this snapshot would have it.
		var estimate float64
		err := p.client.history.Source.QueryRow(ctx, `
			SELECT coalesce(sum(greatest(c.reltuples, c.relpages, pg_catalog.pg_stat_get_live_tuples(c.oid))), 0)::float8
			FROM pg_catalog.pg_class c
			WHERE c.oid = $1 OR c.oid IN (SELECT relid FROM pg_catalog.pg_partition_tree($1) WHERE isleaf)`, p.oid).Scan(&estimate)
		if err != nil {
			return 0, history.OpError("estimate rows", err)
		}
		rows = max(rows, int64(estimate))
	}
	var n int64
	err := p.client.history.Store.QueryRow(ctx, `
		SELECT count(*)
		FROM (SELECT FROM `+p.client.history.Relation("changes")+` c
			WHERE c."table" = $1 AND c.position > $2 AND c.position <= $3
			LIMIT $4) counted`, span.name, from.String(), to.String(), rows*probeCost).Scan(&n)
	if err != nil {
		return 0, history.OpError("count changes", err)
	}
	if n < rows*probeCost {
		return searchScan, nil
	}
	return searchProbe, nil
}

// side says on which side of the moment events are looked for.
type side struct {
	from, to LSN // positions in (from, to]
	// newest reports whether the last change of each row counts, and the row after it;
	// else the first, and the row before it.
	newest bool
}

// order is the SQL order in which the event that counts comes first.
func (s side) order() string {
	if s.newest {
		return "c.position DESC, c.sequence DESC"
	}
	return "c.position, c.sequence"
}

// orderInIndex is order for one row's changes, told as the index of rows has them.
func (s side) orderInIndex() string {
	if s.newest {
		return "c.primary_key DESC, c.position DESC, c.sequence DESC"
	}
	return "c.primary_key, c.position, c.sequence"
}

// images are the columns that hold the row and, where that is not there, its key.
// A row that a change made has no image before it, and one that it deleted none
// after it.
func (s side) images() string {
	if s.newest {
		return `CASE WHEN c.operation <> 'DELETE' THEN c.after END,
			CASE WHEN c.operation = 'DELETE' OR c.previous_key IS NOT NULL THEN c.before END`
	}
	return `CASE WHEN c.operation <> 'CREATE' THEN c.before END,
			CASE WHEN c.operation = 'CREATE' OR c.previous_key IS NOT NULL THEN c.after END`
}

// label is what the store's remarks call the image that counts.
func (s side) label() string {
	if s.newest {
		return "after"
	}
	return "before"
}

// clip returns the part of the side that a name's time covers.
func (s side) clip(span nameSpan) (from, to LSN) { return max(s.from, span.from), min(s.to, span.to) }

// events calls yield for the event that counts of each row with a change on the
// side. Rows are told apart by their key; a table without one has no such events.
func (p *pastTable) events(ctx context.Context, s side, yield func(event) error) error {
	seen := make(map[string]struct{})
	once := func(e event) error {
		if _, ok := seen[e.key]; ok {
			return nil
		}
		seen[e.key] = struct{}{}
		return yield(e)
	}
	spans := slices.Clone(p.names)
	if s.newest {
		slices.Reverse(spans)
	}
	for _, span := range spans {
		from, to := s.clip(span)
		if from >= to {
			continue
		}
		if p.isDeferrable() {
			if err := p.deferrableEvents(ctx, span, side{from, to, s.newest}, seen, yield); err != nil {
				return err
			}
			continue
		}
		search, err := p.choose(ctx, span, from, to)
		if err != nil {
			return err
		}
		read := p.scanEvents
		if search == searchProbe {
			read = p.probeEvents
		}
		if err := read(ctx, span, side{from, to, s.newest}, once); err != nil {
			return err
		}
	}
	return nil
}

// scanEvents reads the changes in order.
func (p *pastTable) scanEvents(ctx context.Context, span nameSpan, s side, once func(event) error) error {
	rows, err := p.client.history.StoreLong.Query(ctx, `
		SELECT c.position, c.sequence, c.transaction_id, c.primary_key, c.previous_key, `+s.images()+`, c.defect
		FROM `+p.client.history.Relation("changes")+` c
		WHERE c."table" = $1 AND c.schema = $2 AND c.database = $3
		  AND c.position > $4 AND c.position <= $5 AND c.primary_key IS NOT NULL`+span.within()+`
		ORDER BY `+s.order(), span.name, span.schema, p.database, s.from.String(), s.to.String())
	if err != nil {
		return history.OpError("read changes", err)
	}
	return eachEvent(rows, s, once)
}

// eachEvent turns each change into what it says of the row under its key, and of
// the one under the key that it had before.
func eachEvent(rows pgx.Rows, s side, yield func(event) error) error {
	defer rows.Close()
	for rows.Next() {
		c, previous, err := scanEvent(rows, s)
		if err != nil {
			return history.OpError("read changes", err)
		}
		for _, e := range split(c, previous, s) {
			if err := yield(e); err != nil {
				return err
			}
		}
	}
	return history.OpError("read changes", rows.Err())
}

// split takes a change of the key apart: on the one side of it the row is there
// under the one key, on the other under the other.
func split(c event, previous *string, s side) []event {
	if previous == nil {
		return []event{c}
	}
	here, there := c, c
	there.key = *previous
	if s.newest {
		// c.image is the row after, under its key; before it was under the other.
		there.image, there.keyImage = nil, c.keyImage
		return []event{here, there}
	}
	here.image, here.keyImage = nil, c.keyImage
	return []event{there, here}
}

func scanEvent(rows pgx.Rows, s side) (event, *string, error) {
	var e event
	var lsn lsnText
	var xid int64
	var key, previous, remarks *string
	var image, keyImage []byte
	if err := rows.Scan(&lsn, &e.sequence, &xid, &key, &previous, &image, &keyImage, &remarks); err != nil {
		return e, nil, err
	}
	e.position, e.xid, e.image, e.keyImage = LSN(lsn), uint64(xid), image, keyImage
	e.key, e.defects = text(key), rowimage.ReadDefects(remarks, s.label())
	return e, previous, nil
}

// probeEvents asks the index for each key that history knows of the table, from
// one key to the next. A planner without statistics would read the table's changes in
// order for each key, since "primary_key = key ORDER BY position" has it look for an
// index by position: hence the key as a range, and first in the order, which leaves one
// index that gives it.
func (p *pastTable) probeEvents(ctx context.Context, span nameSpan, s side, once func(event) error) error {
	moved, err := p.moves(ctx, span, s)
	if err != nil {
		return err
	}
	changes := p.client.history.Relation("changes")
	rows, err := p.client.history.StoreLong.Query(ctx, `
		WITH RECURSIVE keys (key) AS (
			(SELECT c.primary_key FROM `+changes+` c
			 WHERE c."table" = $1 AND c.primary_key IS NOT NULL
			 ORDER BY c.primary_key
			 LIMIT 1)
			UNION ALL
			SELECT (SELECT c.primary_key FROM `+changes+` c
				WHERE c."table" = $1 AND c.primary_key > keys.key
				ORDER BY c.primary_key
				LIMIT 1)
			FROM keys
			WHERE keys.key IS NOT NULL)
		SELECT c.*
		FROM keys
		CROSS JOIN LATERAL (
			SELECT c.position, c.sequence, c.transaction_id, c.primary_key, c.previous_key, `+s.images()+`, c.defect
			FROM `+changes+` c
			WHERE c."table" = $1 AND c.primary_key >= keys.key AND c.primary_key <= keys.key AND c.schema = $2 AND c.database = $3
			  AND c.position > $4 AND c.position <= $5`+span.within()+`
			ORDER BY `+s.orderInIndex()+`
			LIMIT 1) c
		WHERE keys.key IS NOT NULL`, span.name, span.schema, p.database, s.from.String(), s.to.String())
	if err != nil {
		return history.OpError("read changes", err)
	}
	defer rows.Close()
	for rows.Next() {
		c, previous, err := scanEvent(rows, s)
		if err != nil {
			return history.OpError("read changes", err)
		}
		// What it says of its former key is among the moves.
		e := split(c, previous, s)[0]
		if previous != nil && !s.newest {
			e = split(c, previous, s)[1]
		}
		if m, ok := moved[e.key]; ok {
			delete(moved, e.key)
			if m.before(e) != s.newest {
				e = m
			}
		}
		if err := once(e); err != nil {
			return err
		}
	}
	if err := rows.Err(); err != nil {
		return history.OpError("read changes", err)
	}
	for _, e := range moved {
		if err := once(e); err != nil {
			return err
		}
	}
	return nil
}

func (e event) before(o event) bool {
	if e.position != o.position {
		return e.position < o.position
	}
	return e.sequence < o.sequence
}

// moves returns, for each key that a row on the side had before its key was
// changed, the event of that which counts.
func (p *pastTable) moves(ctx context.Context, span nameSpan, s side) (map[string]event, error) {
	rows, err := p.client.history.StoreLong.Query(ctx, `
		SELECT c.position, c.sequence, c.transaction_id, c.primary_key, c.previous_key, `+s.images()+`, c.defect
		FROM `+p.client.history.Relation("changes")+` c
		WHERE c."table" = $1 AND c.previous_key IS NOT NULL AND c.schema = $2 AND c.database = $3
		  AND c.position > $4 AND c.position <= $5`+span.within()+`
		ORDER BY `+s.order(), span.name, span.schema, p.database, s.from.String(), s.to.String())
	if err != nil {
		return nil, history.OpError("read changes of keys", err)
	}
	moved := make(map[string]event)
	err = eachEvent(rows, s, func(e event) error {
		if _, ok := moved[e.key]; !ok {
			moved[e.key] = e
		}
		return nil
	})
	return moved, err
}

// truncation is a TRUNCATE of the table.
type truncation struct {
	position LSN
	sequence int
	// partial reports whether only a partition was emptied.
	partial bool
}

// truncations returns all TRUNCATEs of the table that history knows, oldest
// first. They have no key, which finds them among the rows that have.
func (p *pastTable) truncations(ctx context.Context) ([]truncation, error) {
	var where []string
	args := []any{p.database}
	for _, span := range p.names {
		n := len(args)
		where = append(where, fmt.Sprintf(`c."table" = $%d AND c.schema = $%d AND c.position > $%d AND c.position <= $%d`, n+1, n+2, n+3, n+4)+span.within())
		args = append(args, span.name, span.schema, span.from.String(), span.to.String())
	}
	rows, err := p.client.history.StoreLong.Query(ctx, `
		SELECT c.position, c.sequence, coalesce(c.defect LIKE '%only the partition %', false)
		FROM `+p.client.history.Relation("changes")+` c
		WHERE c.database = $1 AND c.primary_key IS NULL AND c.operation = 'TRUNCATE' AND (`+strings.Join(where, " OR ")+`)
		ORDER BY c.position, c.sequence`, args...)
	if err != nil {
		return nil, history.OpError("look for truncations", err)
	}
	all, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (t truncation, err error) {
		var lsn lsnText
		err = row.Scan(&lsn, &t.sequence, &t.partial)
		t.position = LSN(lsn)
		return t, err
	})
	return all, history.OpError("look for truncations", err)
}
