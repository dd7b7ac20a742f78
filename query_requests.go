package audit

import (
	"context"
	"fmt"
	"iter"
	"slices"
	"strings"
	"time"

	sq "github.com/Masterminds/squirrel"
	"github.com/jackc/pglogrepl"
	"github.com/jackc/pgx/v5"

	"github.com/hindsight-go/audit/internal/history"
	"github.com/hindsight-go/audit/internal/pgcatalog"
)

const (
	// How many changes are looked at to find the next requests: few at first, since
	// all changes of a request that is found are counted.
	walkFirst = 64
	walkPage  = 512
)

// Request is what one request of the application did, as far as the query
// matches it.
type Request struct {
	// ID is the request's id, as [Query.InRequest] takes it.
	ID string `json:"id"`
	// Context is that of the first change.
	Context Context `json:"context"`
	// RevertClaimed reports that the first change only claims to be of a revert: see
	// [Change.RevertClaimed].
	RevertClaimed bool `json:"revertClaimed,omitempty"`
	// StartedAt and EndedAt are the commit times of the first and the last change.
	StartedAt time.Time `json:"startedAt"`
	EndedAt   time.Time `json:"endedAt"`
	// Counts says how many changes matched, by operation.
	Counts
	// Tables lists their tables, sorted, in the form that ForTable reads.
	Tables []string `json:"tables"`
	// Origins says who made them, and where: those with the most changes first, at most
	// 1,000. An id is a claim: more than one user may have stamped it.
	Origins []Origin `json:"origins"`
}

// Requests returns the requests that made the matching changes, reading ahead in
// pages: by their last change, the latest first, or with OldestFirst by their
// first change. Changes without a request id are passed over. Limit counts
// requests. A list that begins with the newest shows history as of its
// beginning, so that a request that goes on meanwhile is not lost from it.
//
// Each pair is a value and nil, or a zero value and an error; after an error the
// sequence ends. Each range runs the query again.
func (q Query) Requests(ctx context.Context) iter.Seq2[Request, error] {
	return func(yield func(Request, error) bool) {
		w, err := q.requestWalk(ctx, false)
		if err != nil {
			yield(Request{}, err)
			return
		}
		for n := 0; !w.done; {
			found, err := w.next(ctx)
			if err != nil {
				yield(Request{}, err)
				return
			}
			for _, f := range found {
				if !yield(f.request, nil) {
					return
				}
				if n++; n == q.limit {
					return
				}
			}
		}
	}
}

// RequestPage is a part of the list of requests. See [Page].
type RequestPage struct {
	Requests []Request `json:"requests"`
	Next     Cursor    `json:"next,omitempty"`
	More     bool      `json:"more"`
	// Previous leads to the page before this one, in the same order. It is empty where the
	// list begins.
	Previous Cursor `json:"previous,omitempty"`
	// Partial and SearchedTo are those of a [Page]. Only [Query.RequestsPageWithin] gives
	// such pages.
	Partial    bool      `json:"partial,omitempty"`
	SearchedTo time.Time `json:"searchedTo,omitzero"`
}

// RequestsPage returns the next size requests, from 1 to 10,000, or behind the Previous of
// a page, those before it. A Limit of the query is not regarded.
func (q Query) RequestsPage(ctx context.Context, size int) (RequestPage, error) {
	return q.requestsPage(ctx, "RequestsPage", size, 0)
}

// RequestsPageWithin is [Query.RequestsPage] for somebody who waits: it looks for requests
// as [Query.PageWithin] does for changes.
func (q Query) RequestsPageWithin(ctx context.Context, size int, budget time.Duration) (RequestPage, error) {
	if budget <= 0 {
		q = q.refuse("RequestsPageWithin", "the budget must be positive", nil)
	}
	return q.requestsPage(ctx, "RequestsPageWithin", size, budget)
}

func (q Query) requestsPage(ctx context.Context, method string, size int, budget time.Duration) (RequestPage, error) {
	if size < 1 || size > maxPage {
		q = q.refuse(method, "the size must be from 1 to 10,000", nil)
	}
	back := q.cursor != nil && (q.cursor.kind == newestRequestsBack || q.cursor.kind == oldestRequestsBack)
	w, err := q.requestWalk(ctx, back)
	if err != nil {
		return RequestPage{}, err
	}
	found, reached, err := w.search(ctx, size+1, budget)
	if err != nil {
		return RequestPage{}, err
	}
	more := len(found) > size
	found = found[:min(len(found), size)]
	if back {
		slices.Reverse(found)
	}
	page := RequestPage{More: back || more}
	if q.cursor != nil && !back {
		page.Next = q.cursor.encode()
	}
	for _, f := range found {
		page.Requests = append(page.Requests, f.request)
		page.Next = w.cursorAt(f.at, false)
	}
	if len(found) > 0 && (back && more || !back && q.cursor != nil) {
		page.Previous = w.cursorAt(found[0].at, true)
	}
	if reached == nil {
		return page, nil
	}
	page.Partial, page.SearchedTo = true, reached.at.UTC()
	if back {
		page.Previous = w.cursorAt(reached.mark, true)
	} else {
		page.Next, page.More = w.cursorAt(reached.mark, false), true
	}
	return page, nil
}

// requestWalker walks the changes in the order of the query. A request is found at
// its outermost change, the last or, oldest first, the first; where it turns up
// again it is known by having another change farther out. So a cursor needs to
// remember nothing but a place.
type requestWalker struct {
	client *Client
	query  Query
	after  *mark
	// horizon is how far history reached when the list began: a request that goes
	// on would move away from the walk. Only for newest first.
	horizon pglogrepl.LSN
	// back walks against the order of the query. What is found is in the order of the walk.
	back bool
	// until bounds the walk to a part of history.
	until *mark
	done  bool
	size  int // how many changes are looked at next
	// recent holds requests that were met lately, so that a large one is counted
	// only once. Forgetting one costs time, not correctness.
	recent []string
}

type foundRequest struct {
	request Request
	at      mark
}

func (q Query) requestWalk(ctx context.Context, back bool) (*requestWalker, error) {
	client, err := q.ready()
	if err != nil {
		return nil, err
	}
	newest, oldest := newestRequests, oldestRequests
	if back {
		newest, oldest = newestRequestsBack, oldestRequestsBack
	}
	from, err := q.continueFrom(newest, oldest)
	if err != nil {
		return nil, err
	}
	w := &requestWalker{client: client, query: q, size: walkFirst, back: back}
	if from != nil {
		w.after = &from.marks[0]
	}
	switch {
	case q.oldest:
	case from != nil:
		w.horizon = from.marks[1].position.LSN
	default:
		w.horizon, err = client.newestPosition(ctx)
	}
	return w, err
}

// newestPosition returns the position of the last change stored, 0 without any.
func (c *Client) newestPosition(ctx context.Context) (pglogrepl.LSN, error) {
	statement := `
		SELECT c.position
		FROM ` + c.history.Relation("changes") + ` AS c
		ORDER BY c.position DESC
		LIMIT 1`
	found, err := collect(ctx, c, "list requests", sq.Expr(statement), pgx.RowTo[lsnText])
	if err != nil || len(found) == 0 {
		return 0, err
	}
	return pglogrepl.LSN(found[0]), nil
}

// cursorAt is the cursor of what comes behind a place, or before it.
func (w *requestWalker) cursorAt(at mark, back bool) Cursor {
	c := cursor{newestRequests, []mark{at, {position: Position{LSN: w.horizon}}}}
	if w.query.oldest {
		c = cursor{oldestRequests, []mark{at}}
	}
	switch {
	case back && w.query.oldest:
		c.kind = oldestRequestsBack
	case back:
		c.kind = newestRequestsBack
	}
	return c.encode()
}

// walked is the query in the order of the walk.
func (w *requestWalker) walked() Query {
	q := w.query
	q.oldest = q.oldest != w.back
	return q
}

// search looks for so many requests, with a budget in one part of history after another. It
// returns how far it came if it ended early.
func (w *requestWalker) search(ctx context.Context, want int, budget time.Duration) (found []foundRequest, reached *searchEnd, err error) {
	part := &pages{client: w.client, query: w.walked(), after: w.after}
	begun, looked := time.Now(), 0
	for window := firstWindow; ; {
		var end *searchEnd
		if budget > 0 && w.query.scans && !w.query.rare {
			if end, err = part.windowEnd(ctx, window); err != nil {
				return nil, nil, err
			}
		}
		w.until, w.done = nil, false
		if end != nil {
			w.until = &end.mark
		}
		for !w.done && len(found) < want {
			next, err := w.next(ctx)
			if err != nil {
				return nil, nil, err
			}
			found = append(found, next...)
		}
		if len(found) >= want || end == nil {
			return found[:min(len(found), want)], nil, nil
		}
		w.after, part.after = &end.mark, &end.mark
		looked += window
		if window = nextWindow(window, looked, time.Since(begun), budget); window == 0 {
			return found, end, nil
		}
	}
}

// within leaves out what came after the list began.
func (w *requestWalker) within(b sq.SelectBuilder) sq.SelectBuilder {
	if w.query.oldest {
		return b
	}
	return b.Where(sq.Expr("c.position <= ?::pg_lsn", w.horizon.String()))
}

// next looks at some more changes and returns the requests found at them.
func (w *requestWalker) next(ctx context.Context) ([]foundRequest, error) {
	request, walked := requestMember.sql(), w.walked()
	b := w.within(walked.from(w.client, "c.position", "c.sequence", "c.database", request)).
		Where("c.context IS NOT NULL").
		Where(request + " IS NOT NULL").
		Where(sq.Expr(request+" <> ALL (?::text[])", append([]string{}, w.recent...))).
		OrderBy(walked.order()).Limit(uint64(w.size))
	if w.after != nil {
		b = b.Where(w.after.compared(walked.beyond()))
	}
	if w.until != nil {
		b = b.Where(w.until.compared(walked.upTo()))
	}
	var candidates []foundRequest
	seen := make(map[string]bool)
	met, err := collect(ctx, w.client, "list requests", b, func(row pgx.CollectableRow) (m mark, err error) {
		var lsn lsnText
		var id string
		err = row.Scan(&lsn, &m.position.Sequence, &m.database, &id)
		m.position.LSN = pglogrepl.LSN(lsn)
		if seen[id] && w.back { // it is found at the last of its changes that the walk meets
			candidates = slices.DeleteFunc(candidates, func(c foundRequest) bool { return c.request.ID == id })
		}
		if !seen[id] || w.back {
			seen[id] = true
			candidates = append(candidates, foundRequest{Request{ID: id}, m})
		}
		return m, err
	})
	if err != nil {
		return nil, err
	}
	w.done = len(met) < w.size
	w.size = min(2*w.size, walkPage)
	if len(met) == 0 {
		return nil, nil
	}
	w.after = &met[len(met)-1]
	if !w.back { // that way, a request comes before its place
		for _, candidate := range candidates {
			w.recent = append(w.recent, candidate.request.ID)
		}
		w.recent = w.recent[max(0, len(w.recent)-walkPage):]
	}
	return w.describe(ctx, candidates)
}

// describe counts the changes of the candidates and leaves out those that have a
// change farther out than where they were met.
func (w *requestWalker) describe(ctx context.Context, candidates []foundRequest) ([]foundRequest, error) {
	statement, args, err := w.counts(candidates)
	if err != nil {
		return nil, history.OpError("list requests", err)
	}
	dropped := make([]bool, len(candidates))
	_, err = collect(ctx, w.client, "list requests", sq.Expr(statement, args...), func(row pgx.CollectableRow) (struct{}, error) {
		var (
			index          int
			schema, table  string
			operation      Operation
			count, farther int64
			first, last    time.Time
			origin         Origin
		)
		if err := row.Scan(&index, &schema, &table, &operation, &count, &farther, &first, &last, &origin.User, &origin.Endpoint, &origin.Worker, &origin.Environment); err != nil {
			return struct{}{}, err
		}
		found := &candidates[index-1]
		dropped[index-1] = dropped[index-1] || farther > 0
		request := &found.request
		request.Tables = append(request.Tables, pgcatalog.Qualified(schema, table))
		request.add(operation, count)
		origin.Changes = count
		request.Origins = append(request.Origins, origin)
		if request.StartedAt.IsZero() || first.Before(request.StartedAt) {
			request.StartedAt = first.UTC()
		}
		if last.After(request.EndedAt) {
			request.EndedAt = last.UTC()
		}
		return struct{}{}, nil
	})
	if err != nil {
		return nil, err
	}
	kept := candidates[:0]
	for i, candidate := range candidates {
		if !dropped[i] && candidate.request.Total() > 0 {
			candidate.request.Origins = mergeOrigins(candidate.request.Origins)
			candidate.request.Tables = slices.Compact(slices.Sorted(slices.Values(candidate.request.Tables)))
			kept = append(kept, candidate)
		}
	}
	return kept, w.addContexts(ctx, kept)
}

// counts is the statement that counts the changes of each candidate.
func (w *requestWalker) counts(candidates []foundRequest) (string, []any, error) {
	return w.lookUp(candidates, `
		SELECT at.index, c.schema, c."table", c.operation, count(*),
			count(*) FILTER (WHERE (c.position, c.sequence, c.database) `+w.farther()+` (at.position, at.sequence, at.database)),
			min(c.committed_at), max(c.committed_at), `+strings.Join(originColumns(), ", ")+`
		FROM (%s) AS at
		CROSS JOIN LATERAL (%s) AS c
		GROUP BY at.index, c.schema, c."table", c.operation, 9, 10, 11, 12`)
}

func (w *requestWalker) farther() string {
	if w.query.oldest {
		return "<"
	}
	return ">"
}

// addContexts reads the context of the first change of each request.
func (w *requestWalker) addContexts(ctx context.Context, found []foundRequest) error {
	if len(found) == 0 {
		return nil
	}
	statement, args, err := w.lookUp(found, `
		SELECT at.index, first.context, first.database, first.transaction_id
		FROM (%s) AS at
		CROSS JOIN LATERAL (
			SELECT c.context, c.database, c.transaction_id
			FROM (%s) AS c
			ORDER BY c.position, c.sequence
			LIMIT 1
		) AS first`)
	if err != nil {
		return history.OpError("list requests", err)
	}
	var claims []revertClaim
	claimed := make(map[int]revertClaim)
	_, err = collect(ctx, w.client, "list requests", sq.Expr(statement, args...), func(row pgx.CollectableRow) (struct{}, error) {
		var index int
		var raw []byte
		var database string
		var transaction int64
		err := row.Scan(&index, &raw, &database, &transaction)
		if err == nil {
			first := readContext(raw)
			found[index-1].request.Context = first
			if claimsRevert(&first) {
				claimed[index-1] = claimOf(database, uint64(transaction), &first)
				claims = append(claims, claimed[index-1])
			}
		}
		return struct{}{}, err
	})
	if err != nil {
		return err
	}
	registered, err := w.client.registeredClaims(ctx, claims)
	for i, claim := range claimed {
		found[i].request.RevertClaimed = !registered[claim]
	}
	return err
}

// lookUp puts together a statement over the changes of each candidate. The index of
// requests finds them, whatever the planner knows of the rest.
func (w *requestWalker) lookUp(candidates []foundRequest, format string) (string, []any, error) {
	ofRequest := sq.Select("c.*").From(w.client.history.Relation("changes") + " AS c").
		Where("c.context IS NOT NULL").
		Where(requestMember.sql() + " = at.id").
		Suffix("OFFSET 0")
	changes, args, err := w.within(w.query.matching(sq.Select("c.*").FromSelect(ofRequest, "c"))).ToSql()
	if err != nil {
		return "", nil, err
	}
	var ids, positions, databases []string
	var sequences []int
	for _, candidate := range candidates {
		ids = append(ids, candidate.request.ID)
		positions = append(positions, candidate.at.position.LSN.String())
		sequences = append(sequences, candidate.at.position.Sequence)
		databases = append(databases, candidate.at.database)
	}
	const at = `
		SELECT u.index, u.id, u.position::pg_lsn, u.sequence, u.database COLLATE "C" AS database
		FROM unnest(?::text[], ?::text[], ?::integer[], ?::text[])
			WITH ORDINALITY AS u (id, position, sequence, database, index)`
	args = append([]any{ids, positions, sequences, databases}, args...)
	statement, err := sq.Dollar.ReplacePlaceholders(fmt.Sprintf(format, at, changes))
	return statement, args, err
}
