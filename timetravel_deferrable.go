package audit

import (
	"bytes"
	"context"
	"slices"

	"github.com/jackc/pgx/v5"

	"github.com/hindsight-go/audit/internal/history"
)

// isDeferrable reports whether two rows of the table may have had the same key in the
// midst of a transaction: UPDATE t SET id = id + 1 under a deferrable key. Then
// the first change that names a key need not be of the row that had it before.
func (p *pastTable) isDeferrable() bool { return p.live != nil && p.live.Deferrable }

// deferrableEvents is scanEvents for such a table: what a transaction says of a
// key counts when all of the transaction has been read.
func (p *pastTable) deferrableEvents(ctx context.Context, span nameSpan, s side, seen map[string]struct{}, yield func(event) error) error {
	type waiting struct {
		event
		contested bool
	}
	var at LSN
	pending := make(map[string]*waiting)
	flush := func() error {
		for _, w := range pending {
			e := w.event
			if w.contested {
				settled, ok, err := p.settle(ctx, span, s, e)
				if err != nil {
					return err
				}
				if !ok {
					delete(seen, e.key)
					continue
				}
				e = settled
			}
			if err := yield(e); err != nil {
				return err
			}
		}
		clear(pending)
		return nil
	}
	err := p.scanEvents(ctx, span, s, func(e event) error {
		if e.position != at {
			if err := flush(); err != nil {
				return err
			}
			at = e.position
		}
		if w, ok := pending[e.key]; ok {
			w.contested = w.contested || e.image != nil
			return nil
		}
		if _, ok := seen[e.key]; ok {
			return nil
		}
		seen[e.key] = struct{}{}
		if e.image == nil {
			pending[e.key] = &waiting{event: e}
			return nil
		}
		return yield(e)
	})
	if err != nil {
		return err
	}
	return flush()
}

// settle finds out which row really had the key of an event before, or after, its
// transaction, by following every row under the key through it. It reports false
// if the transaction says nothing of that: rows came and went, and another one may
// have had the key all the time.
func (p *pastTable) settle(ctx context.Context, span nameSpan, s side, e event) (event, bool, error) {
	rows, err := p.client.history.Store.Query(ctx, `
		SELECT coalesce(c.primary_key = $5, false) AND c.operation <> 'DELETE', coalesce(c.previous_key, c.primary_key) = $5 AND c.operation <> 'CREATE', c.before, c.after
		FROM `+p.client.history.Relation("changes")+` c
		WHERE c.position = $1 AND c."table" = $2 AND c.schema = $3 AND c.database = $4 AND (c.primary_key = $5 OR c.previous_key = $5)`+span.within()+`
		ORDER BY c.sequence`, e.position.String(), span.name, span.schema, p.database, e.key)
	if err != nil {
		return e, false, history.OpError("read changes of a key", err)
	}
	var passed []passage
	var arrives, leaves bool
	var before, after []byte
	if _, err := pgx.ForEachRow(rows, []any{&arrives, &leaves, &before, &after}, func() error {
		passed = append(passed, passage{leaves: leaves, arrives: arrives, before: bytes.Clone(before), after: bytes.Clone(after)})
		return nil
	}); err != nil {
		return e, false, history.OpError("read changes of a key", err)
	}
	if s.newest {
		// Read backwards, what arrived leaves.
		slices.Reverse(passed)
		for i, c := range passed {
			passed[i] = passage{leaves: c.arrives, arrives: c.leaves, before: c.after, after: c.before}
		}
	}
	image, stayed := original(passed)
	if image != nil {
		e.image, e.keyImage, e.defects = image, nil, nil
	}
	return e, image != nil || stayed, nil
}

// passage is what a change does to a key: a row leaves it, arrives at it, or both,
// which is to stay.
type passage struct {
	leaves, arrives bool
	before, after   Image
}

// original returns the row that had the key before the first passage, or nil, and
// whether one that arrived stayed: then nobody had it before.
func original(passed []passage) (row Image, stayed bool) {
	var arrived []Image
	for _, c := range passed {
		if c.leaves {
			at := slices.IndexFunc(arrived, func(im Image) bool { return bytes.Equal(im, c.before) })
			if at < 0 {
				return c.before, false
			}
			arrived = slices.Delete(arrived, at, at+1)
		}
		if c.arrives {
			arrived = append(arrived, c.after)
		}
	}
	return nil, len(arrived) > 0
}
