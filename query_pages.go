package audit

import (
	"context"
	"errors"
	"iter"
	"slices"
	"time"

	sq "github.com/Masterminds/squirrel"
	"github.com/jackc/pglogrepl"
	"github.com/jackc/pgx/v5"

	"github.com/hindsight-go/audit/internal/history"
)

const (
	// An iterator reads small pages at first, since many are left early, and
	// larger ones as it goes on.
	firstPage   = 64
	largestPage = 1024
	// pageBytes is how many bytes of rows a page is meant to hold at most.
	pageBytes = 4 << 20

	// maxPage bounds what a caller may ask for as one page.
	maxPage = 10_000
)

// Page is a part of an answer, for user interfaces and APIs that show one part
// at a time.
type Page struct {
	Changes []Change `json:"changes"`
	// Next continues behind the last of Changes. At the end it stays where it is,
	// so that with OldestFirst it can be asked again for what came meanwhile. It
	// is empty only if the query was not continued and found nothing.
	Next Cursor `json:"next,omitempty"`
	// More reports whether there was more when the page was read, or may have been where
	// it is Partial.
	More bool `json:"more"`
	// Partial reports that not all of history was looked at: there may be more behind Next,
	// however few Changes there are. Only [Query.PageWithin] gives such pages.
	Partial bool `json:"partial,omitempty"`
	// SearchedTo is the commit time of the last change that was looked at. It is zero
	// unless the page is Partial.
	SearchedTo time.Time `json:"searchedTo,omitzero"`
	// Warnings says what makes the page less than it seems. See [Query.Warnings].
	Warnings []error `json:"warnings,omitempty"`
}

// Page returns the next size changes, from 1 to 10,000. A Limit of the query
// is not regarded.
func (q Query) Page(ctx context.Context, size int) (Page, error) {
	if size < 1 || size > maxPage {
		q = q.refuse("Page", "the size must be from 1 to 10,000", nil)
	}
	q.limit = 0
	p, err := q.pages()
	if err != nil {
		return Page{}, err
	}
	changes, err := p.read(ctx, size+1)
	if err != nil {
		return Page{}, err
	}
	return q.page(ctx, changes, size)
}

// page makes a page of the changes read, one more than fit on it if there are more.
func (q Query) page(ctx context.Context, changes []Change, size int) (page Page, err error) {
	page = Page{Changes: changes, More: len(changes) > size}
	if page.More {
		page.Changes = changes[:size:size]
	}
	switch {
	case len(page.Changes) > 0:
		page.Next = cursor{q.changesKind(), []mark{markOf(page.Changes[len(page.Changes)-1])}}.encode()
	case q.cursor != nil:
		page.Next = q.cursor.encode()
	}
	if len(page.Changes) == 0 || len(q.tables) > 0 {
		page.Warnings, err = q.Warnings(ctx)
	}
	return page, err
}

func (q Query) changesKind() cursorKind {
	if q.oldest {
		return oldestChanges
	}
	return newestChanges
}

// CursorAfter returns the cursor that continues this query behind a change that
// All, List or First gave.
func (q Query) CursorAfter(change Change) Cursor {
	return cursor{q.changesKind(), []mark{markOf(change)}}.encode()
}

// All returns the changes one by one, reading ahead in pages, so that any number
// of them takes little memory and leaving the loop early costs nothing. No
// connection is held while the loop's body runs. Changes that are stored during
// the loop may or may not be among those that follow.
//
// Each pair is a value and nil, or a zero value and an error; after an error the
// sequence ends. Each range runs the query again.
func (q Query) All(ctx context.Context) iter.Seq2[Change, error] {
	return func(yield func(Change, error) bool) {
		p, err := q.pages()
		if err != nil {
			yield(Change{}, err)
			return
		}
		for !p.done {
			changes, err := p.next(ctx)
			if err != nil {
				yield(Change{}, err)
				return
			}
			for _, change := range changes {
				if !yield(change, nil) {
					return
				}
			}
		}
	}
}

// List returns all changes that match, in memory: mind Limit. The slice is nil
// if there are none; [Query.Warnings] tells whether that may be due to a name.
func (q Query) List(ctx context.Context) ([]Change, error) {
	var changes []Change
	for change, err := range q.All(ctx) {
		if err != nil {
			return nil, err
		}
		changes = append(changes, change)
	}
	return changes, nil
}

// First returns the first change in the query's order, which is the newest
// unless OldestFirst was asked for. It returns [ErrNotFound] if none matches, as an
// [*UnknownNameError] where the history knows nothing of a name in the query.
func (q Query) First(ctx context.Context) (Change, error) {
	change, err := q.first(ctx)
	if errors.Is(err, ErrNotFound) {
		warnings, err := q.Warnings(ctx)
		if err != nil {
			return Change{}, err
		}
		if i := slices.IndexFunc(warnings, isUnknownName); i >= 0 {
			return Change{}, warnings[i]
		}
	}
	return change, err
}

// first is First without a look at the names.
func (q Query) first(ctx context.Context) (Change, error) {
	for change, err := range q.Limit(1).All(ctx) {
		return change, err
	}
	return Change{}, ErrNotFound
}

// pages reads the changes of a query page by page, each from behind the last
// change of the one before (keyset), never by counting.
type pages struct {
	client *Client
	query  Query
	size   int   // of the next page
	left   int   // of the limit; -1 without
	after  *mark // the last change read
	// fenced reports whether the filters leave few changes, so that they should be
	// found by their own index and sorted. The planner has poor statistics about
	// contexts and would rather walk the whole history in order, in the hope of
	// meeting enough of them soon.
	fenced bool
	// end bounds a walk in order to where the changes are, until one to a part of history.
	end   *pglogrepl.LSN
	until *mark
	done  bool
	// shared reads a page for several who want the same, or is nil.
	shared func(ctx context.Context, statement sq.Sqlizer, fetch func(context.Context) ([]Change, error)) ([]Change, error)
}

func (q Query) pages() (*pages, error) {
	client, err := q.ready()
	if err != nil {
		return nil, err
	}
	from, err := q.continueFrom(newestChanges, oldestChanges)
	if err != nil {
		return nil, err
	}
	p := &pages{client: client, query: q, size: firstPage, left: -1, fenced: q.rare}
	if from != nil {
		p.after = &from.marks[0]
	}
	if q.limit > 0 {
		p.left = q.limit
	}
	return p, nil
}

// next reads a page and decides on the size of the one after it.
func (p *pages) next(ctx context.Context) ([]Change, error) {
	size := p.size
	if p.left >= 0 {
		size = min(size, p.left)
	}
	changes, err := p.read(ctx, size)
	if err != nil {
		return nil, err
	}
	if len(changes) < size {
		p.done = true
	}
	if p.left >= 0 {
		p.left -= len(changes)
		p.done = p.done || p.left == 0
	}
	if !p.done {
		p.size = nextSize(size, changes)
		err = p.unfence(ctx)
	}
	return changes, err
}

// nextSize grows the pages by powers of two, so that there are few different
// statements, as long as they hold little.
func nextSize(size int, changes []Change) int {
	held := 0
	for i := range changes {
		held += len(changes[i].Before) + len(changes[i].After) + len(changes[i].RawContext) + 256
	}
	average := held/max(len(changes), 1) + 1
	next := 1
	for next*2 <= min(largestPage, pageBytes/average, max(size, 1)*4) {
		next *= 2
	}
	return next
}

// read reads the next changes, size of them unless there are fewer.
func (p *pages) read(ctx context.Context, size int) ([]Change, error) {
	read := collect[Change]
	if p.query.whole {
		read = collectAll[Change]
	}
	statement := p.statement(size)
	fetch := func(ctx context.Context) ([]Change, error) {
		changes, err := read(ctx, p.client, "read changes", statement, scanChange)
		if err == nil && len(changes) > 0 {
			err = p.client.describeColumns(ctx, changes)
		}
		if err == nil {
			err = p.client.markClaims(ctx, changes)
		}
		return changes, err
	}
	var changes []Change
	var err error
	if p.shared != nil && !p.query.whole {
		changes, err = p.shared(ctx, statement, fetch)
	} else {
		changes, err = fetch(ctx)
	}
	if n := len(changes); n > 0 {
		last := markOf(changes[n-1])
		p.after = &last
	}
	return changes, err
}

func (p *pages) statement(size int) sq.SelectBuilder {
	b := p.bounded(p.query.from(p.client, changeColumns...))
	if p.fenced {
		// OFFSET 0 keeps the planner from looking through the subquery.
		inner := p.bounded(p.query.from(p.client, "c.*")).Suffix("OFFSET 0")
		b = sq.StatementBuilder.PlaceholderFormat(sq.Dollar).Select(changeColumns...).FromSelect(inner, "c")
	}
	return b.OrderBy(p.query.order()).Limit(uint64(size))
}

// bounded adds where the page begins, and the end if it is known.
func (p *pages) bounded(b sq.SelectBuilder) sq.SelectBuilder {
	if p.after != nil {
		b = b.Where(p.after.compared(p.query.beyond()))
	}
	if p.until != nil {
		b = b.Where(p.until.compared(p.query.upTo()))
	}
	if p.end != nil {
		comparison := ">="
		if p.query.oldest {
			comparison = "<="
		}
		b = b.Where(sq.Expr(`c.position `+comparison+` ?::pg_lsn`, p.end.String()))
	}
	return b
}

// unfence ends the sorting of everything for each page when a full page has
// shown that there is more than a little: from here the changes are walked in
// order, up to the last of them.
func (p *pages) unfence(ctx context.Context) error {
	if !p.fenced || p.size < largestPage {
		return nil
	}
	far := "min"
	if p.query.oldest {
		far = "max"
	}
	inner := p.bounded(p.query.from(p.client, "c.position")).Suffix("OFFSET 0")
	b := sq.StatementBuilder.PlaceholderFormat(sq.Dollar).Select(far+"(c.position)").FromSelect(inner, "c")
	read := collect[*string]
	if p.query.whole {
		read = collectAll[*string]
	}
	ends, err := read(ctx, p.client, "read changes", b, pgx.RowTo[*string])
	if err != nil {
		return err
	}
	p.fenced = false
	if len(ends) == 1 && ends[0] != nil {
		end, err := parseLSN(*ends[0])
		if err != nil {
			return history.OpError("read changes", err)
		}
		p.end = &end
	}
	return nil
}
