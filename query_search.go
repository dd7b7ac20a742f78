package audit

import (
	"context"
	"slices"
	"time"

	sq "github.com/Masterminds/squirrel"
	"github.com/jackc/pglogrepl"
	"github.com/jackc/pgx/v5"
)

const (
	// A search looks at few changes at first, which is enough for most, and at many times
	// more as it goes on.
	firstWindow  = 4096
	windowGrowth = 4
)

// PageWithin is [Query.Page] for somebody who waits. No index tells which changes touched a
// column, so that a page of few such changes, or of none, takes a look at every change of
// the history. PageWithin looks at part after part of it, and ends when the next one would
// take it past about the budget. Such a page is Partial: SearchedTo says up to where it
// looked, and Next goes on from there. The first few thousand changes are looked at however
// long that takes. Filters that an index serves are answered whole.
func (q Query) PageWithin(ctx context.Context, size int, budget time.Duration) (Page, error) {
	if budget <= 0 {
		q = q.refuse("PageWithin", "the budget must be positive", nil)
	}
	if !q.scans || q.rare || q.err != nil || size < 1 || size > maxPage {
		return q.Page(ctx, size)
	}
	q.limit = 0
	p, err := q.pages()
	if err != nil {
		return Page{}, err
	}
	changes, reached, err := p.search(ctx, size+1, budget)
	if err != nil {
		return Page{}, err
	}
	page, err := q.page(ctx, changes, size)
	if err != nil || reached == nil {
		return page, err
	}
	page.Next = cursor{q.changesKind(), []mark{reached.mark}}.encode()
	page.More, page.Partial, page.SearchedTo = true, true, reached.at.UTC()
	return page, nil
}

// searchEnd is how far a part of history reaches, that place included.
type searchEnd struct {
	mark
	at time.Time
}

// search looks at part after part of history for so many changes. It returns how far it
// came if it ended early.
func (p *pages) search(ctx context.Context, want int, budget time.Duration) (found []Change, reached *searchEnd, err error) {
	begun, looked := time.Now(), 0
	for window := firstWindow; ; {
		p.until = nil
		end, err := p.windowEnd(ctx, window)
		if err != nil {
			return nil, nil, err
		}
		if end != nil {
			p.until = &end.mark
		}
		changes, err := p.read(ctx, want-len(found))
		if err != nil {
			return nil, nil, err
		}
		found = append(found, changes...)
		if len(found) == want || end == nil {
			return found, nil, nil
		}
		p.after = &end.mark
		looked += window
		if window == firstWindow && p.query.sparse {
			changes, done, err := p.readRest(ctx, want-len(found), budget/2)
			if err != nil || done {
				return append(found, changes...), nil, err
			}
		}
		if window = nextWindow(window, looked, time.Since(begun), budget); window == 0 {
			return found, end, nil
		}
	}
}

// readRest reads from all of history behind the first part. It is not done if that takes
// longer than some time: the few changes that an index would find are many, and lie far
// behind.
func (p *pages) readRest(ctx context.Context, want int, within time.Duration) (changes []Change, done bool, err error) {
	after := p.after
	p.until = nil
	bounded, cancel := context.WithTimeout(ctx, within)
	defer cancel()
	changes, err = p.read(bounded, want)
	if err != nil && bounded.Err() != nil && ctx.Err() == nil {
		p.after = after
		return nil, false, nil
	}
	return changes, true, err
}

// nextWindow is how many changes can be looked at in the time that is left, going by how
// long those so far have taken; 0 if it is not worth it.
func nextWindow(window, looked int, spent, budget time.Duration) int {
	left := float64(budget-spent) / float64(max(spent, time.Microsecond)) * float64(looked)
	next := int(min(left, float64(window*windowGrowth)))
	if next < firstWindow/windowGrowth {
		return 0
	}
	return next
}

// windowEnd is the place of the last of the next changes, or nil if there are fewer.
func (p *pages) windowEnd(ctx context.Context, changes int) (*searchEnd, error) {
	b := sq.StatementBuilder.PlaceholderFormat(sq.Dollar).
		Select("c.position", "c.sequence", "c.database", "c.committed_at").
		From(p.client.history.Relation("changes") + " AS c")
	for _, condition := range p.query.indexed {
		b = b.Where(condition)
	}
	b = p.bounded(b).OrderBy(p.query.order()).Offset(uint64(changes - 1)).Limit(1)
	read := collect[searchEnd]
	if p.query.whole {
		read = collectAll[searchEnd]
	}
	ends, err := read(ctx, p.client, "read changes", b, func(row pgx.CollectableRow) (end searchEnd, err error) {
		var lsn lsnText
		err = row.Scan(&lsn, &end.position.Sequence, &end.database, &end.at)
		end.position.LSN = pglogrepl.LSN(lsn)
		return end, err
	})
	if err != nil || len(ends) == 0 {
		return nil, err
	}
	return &ends[0], nil
}

// scanSparsely is scan for a condition that changes_time_idx finds a few changes by.
func (q Query) scanSparsely(condition sq.Sqlizer) Query {
	q.sparse = true
	return q.scan(condition)
}

// scan adds a condition that no index serves in the order of history.
func (q Query) scan(condition sq.Sqlizer) Query {
	q.where = append(slices.Clip(q.where), condition)
	q.scans = true
	return q
}
