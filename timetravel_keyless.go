package audit

import (
	"bytes"
	"context"

	"github.com/jackc/pgx/v5"

	"github.com/hindsight-go/audit/internal/history"
	"github.com/hindsight-go/audit/internal/rowimage"
)

// keylessRows is rows for a table without a key. Its rows can be told apart only
// by what they hold, so the table is a bag of rows: changes put rows in and take
// rows out, in any order.
func (p *pastTable) keylessRows(ctx context.Context, b base, s *snapshot, yield func(values [][]byte) error) error {
	bag, err := p.bag(ctx, b, s)
	if err != nil {
		return err
	}
	derived, flush := p.deriving(ctx, func(_ string, values [][]byte) error { return yield(values) })
	take := func(joined bool) func(_ string, values [][]byte, missing []int) error {
		return func(_ string, values [][]byte, missing []int) error {
			if len(missing) > 0 {
				return p.unknown(missing)
			}
			if n := bag[p.rowText(values)]; n != nil && n.more < 0 {
				n.more++
				return nil
			}
			switch {
			case joined:
				return nil // it came with the partition
			case b.kind == baseLive && !p.computed:
				return yield(values) // which has its generated columns
			}
			return derived("", values)
		}
	}
	if b.kind == baseLive && len(p.joined) > 0 {
		if err := p.liveRows(ctx, s, true, take(true)); err != nil {
			return err
		}
	}
	if err := p.baseRows(ctx, b, s, take(false)); err != nil {
		return err
	}
	for _, n := range bag {
		if n.more < 0 {
			return p.refuse(ErrIncomplete, "history takes rows away that the table does not hold", 0)
		}
		if n.more > 0 {
			if err := p.came(n.last); err != nil {
				return err
			}
		}
		for range n.more {
			if err := derived("", cloneValues(n.values)); err != nil {
				return err
			}
		}
	}
	return flush()
}

// bagged is how many more rows of one content there were than the base has.
type bagged struct {
	values [][]byte
	more   int
	// last is the position of the last change that found such a row.
	last LSN
}

// bag adds up what lies between the base and the moment. Of a live base, changes
// that its snapshot does not show are not to be undone, and those in the moment
// that it does not show are to be done.
func (p *pastTable) bag(ctx context.Context, b base, s *snapshot) (map[string]*bagged, error) {
	bag := make(map[string]*bagged)
	add := func(e event, n int) error {
		if e.image.IsEmpty() {
			return nil
		}
		values, missing := p.read(e)
		if len(missing) > 0 {
			return p.unknown(missing)
		}
		key := p.rowText(values)
		if bag[key] == nil {
			bag[key] = &bagged{values: values}
		}
		bag[key].more += n
		if n > 0 {
			bag[key].last = max(bag[key].last, e.position)
		}
		return nil
	}
	from, to, sign := p.through, b.position, 1
	if b.forward(p) {
		from, to, sign = b.position, p.through, -1
		if b.kind == baseEmpty {
			from--
		}
	}
	for _, span := range p.names {
		err := p.keylessChanges(ctx, side{from: max(from, span.from), to: min(to, span.to)}, span, nil, func(before, after event) error {
			switch {
			case s != nil && !s.sees(before.xid), b.kind == baseEmpty && before.position == b.position && before.sequence < b.sequence:
				return nil
			}
			if err := add(before, sign); err != nil {
				return err
			}
			return add(after, -sign)
		})
		if err != nil {
			return nil, err
		}
		if s == nil || len(s.hidden) == 0 {
			continue
		}
		err = p.keylessChanges(ctx, side{from: span.from, to: min(p.through, span.to)}, span, s.hidden, func(before, after event) error {
			if err := add(before, -1); err != nil {
				return err
			}
			return add(after, 1)
		})
		if err != nil {
			return nil, err
		}
	}
	return bag, nil
}

// keylessChanges reads changes as what was before and after each; of the given transactions only,
// if there are some.
func (p *pastTable) keylessChanges(ctx context.Context, s side, span nameSpan, of []uint64, yield func(before, after event) error) error {
	if s.from >= s.to {
		return nil
	}
	rows, err := p.client.history.StoreLong.Query(ctx, `
		SELECT c.position, c.sequence, c.transaction_id, c.before, c.after, c.defect
		FROM `+p.client.history.Relation("changes")+` c
		WHERE c."table" = $1 AND c.schema = $2 AND c.database = $3
		  AND c.position > $4 AND c.position <= $5 AND c.operation <> 'TRUNCATE'`+span.within()+`
		  AND ($6::bigint[] IS NULL OR c.transaction_id = ANY ($6))`,
		span.name, span.schema, p.database, s.from.String(), s.to.String(), of)
	if err != nil {
		return history.OpError("read changes", err)
	}
	var lsn lsnText
	var sequence int
	var xid int64
	var before, after []byte
	var remarks *string
	_, err = pgx.ForEachRow(rows, []any{&lsn, &sequence, &xid, &before, &after, &remarks}, func() error {
		e := event{position: LSN(lsn), sequence: sequence, xid: uint64(xid)}
		old, new := e, e
		old.image, old.defects = bytes.Clone(before), rowimage.ReadDefects(remarks, "before")
		new.image, new.defects = bytes.Clone(after), rowimage.ReadDefects(remarks, "after")
		return yield(old, new)
	})
	return history.OpError("read changes", err)
}
