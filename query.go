package audit

import (
	"slices"
	"time"

	sq "github.com/Masterminds/squirrel"

	"github.com/hindsight-go/audit/internal/pgcatalog"
)

// Query asks the history for changes. It begins with [Changes], is narrowed by
// filters, and is answered by one of its terminal methods, which take a ctx:
//
//	for change, err := range audit.Changes().ForTable("todo").ByUser(id).All(ctx) {
//
// A Query is an immutable value: each method returns a new one, so that a base
// query can be kept, shared between goroutines and narrowed in several ways.
// All filters have to hold at once. A filter that is given something it cannot
// work with does not panic: the query keeps its first such error, and the
// terminal method returns it, a [*FilterError] or a [*CursorError].
//
// The newest changes come first unless [Query.OldestFirst] is asked for.
// "Newest" is by [Position], which is commit order; times play no part in it.
type Query struct {
	client *Client // nil: the default client at the time of the terminal method
	err    error
	where  []sq.Sqlizer
	// indexed are those conditions of where that an index serves in the order of history,
	// or that leave few changes; scans tells that there are others. See PageWithin.
	indexed []sq.Sqlizer
	scans   bool
	// sparse reports whether one of them may leave so few changes that an index finds them,
	// though not in that order: the planner knows.
	sparse bool
	tables []pgcatalog.Name
	users  []string // of ByUser, or a context
	// byClaim reports whether a filter asks for a request or a trace: whoever stamps its id
	// joins it.
	byClaim bool
	// columns are those that filters name.
	columns []string
	hasRow  bool
	dated   bool // Since was given, if only the zero time
	rare    bool // a filter that by its nature leaves few changes: see pages.fenced
	oldest  bool
	limit   int // 0: none
	cursor  *cursor
	since   time.Time
	until   time.Time
	zone    *time.Location // of days and hours; nil: UTC
	whole   bool           // the answer must not lack changes that row-level security hides
}

// wholly makes the query one whose answer something else is computed from.
func (q Query) wholly() Query {
	q.whole = true
	return q
}

// Changes begins a query on the default client. See [SetDefault].
func Changes() Query { return Query{} }

// Changes begins a query on the client's history.
func (c *Client) Changes() Query { return Query{client: c} }

// filter adds a condition that an index serves, or one on what an index finds.
func (q Query) filter(condition sq.Sqlizer) Query {
	q.where = append(slices.Clip(q.where), condition)
	q.indexed = append(slices.Clip(q.indexed), condition)
	return q
}

// refuse keeps the first error.
func (q Query) refuse(filter, reason string, cause error) Query {
	if q.err == nil {
		q.err = &FilterError{Filter: filter, Reason: reason, cause: cause}
	}
	return q
}

func (q Query) refuseFor(filter string, err error) Query {
	return q.refuse(filter, err.Error(), err)
}

// OldestFirst asks for the changes in commit order.
func (q Query) OldestFirst() Query {
	q.oldest = true
	return q
}

// NewestFirst asks for the changes against commit order. This is the default.
func (q Query) NewestFirst() Query {
	q.oldest = false
	return q
}

// Limit bounds the number of results: changes, or transactions and requests
// where those are asked for. It has to be at least 1; a later Limit replaces an
// earlier one.
func (q Query) Limit(n int) Query {
	if n < 1 {
		return q.refuse("Limit", "the limit must be at least 1", nil)
	}
	q.limit = n
	return q
}

// After continues behind the place where an earlier answer ended: the Next of a
// page, or the Cursor of an event. The query has to be of the same kind and
// order; that its filters are the same is up to the caller. An empty cursor is
// the beginning, so that a loop over pages can start with one.
func (q Query) After(at Cursor) Query {
	if at == "" {
		q.cursor = nil
		return q
	}
	parsed, err := parseCursor(at)
	if err != nil {
		if q.err == nil {
			q.err = err
		}
		return q
	}
	q.cursor = parsed
	return q
}

// ready returns the client to ask, or what is wrong with the query.
func (q Query) ready() (*Client, error) {
	if q.err != nil {
		return nil, q.err
	}
	if q.hasRow && len(q.tables) == 0 {
		return nil, &FilterError{Filter: "ForRow", Reason: "a key means nothing without a table: add ForTable"}
	}
	client := q.client
	if client == nil {
		client = defaultClient.Load()
	}
	if client == nil {
		return nil, ErrNoDefaultClient
	}
	return client, client.open()
}

// continueFrom returns the cursor if it is of the kind that the query can
// continue from.
func (q Query) continueFrom(newest, oldest cursorKind) (*cursor, error) {
	want := newest
	if q.oldest {
		want = oldest
	}
	if q.cursor == nil || q.cursor.kind == want {
		return q.cursor, nil
	}
	return nil, &CursorError{Reason: "it comes from " + q.cursor.kind.String() + ", and this query gives " + want.String()}
}

func (q Query) order() string {
	if q.oldest {
		return "c.position, c.sequence, c.database"
	}
	return "c.position DESC, c.sequence DESC, c.database DESC"
}

// beyond is the comparison that leads on in the query's order.
func (q Query) beyond() string {
	if q.oldest {
		return ">"
	}
	return "<"
}

// upTo is the comparison of what comes before a place in the query's order, the place
// included.
func (q Query) upTo() string {
	if q.oldest {
		return "<="
	}
	return ">="
}

// from selects columns of the changes that the filters leave.
func (q Query) from(c *Client, columns ...string) sq.SelectBuilder {
	return q.matching(sq.StatementBuilder.PlaceholderFormat(sq.Dollar).
		Select(columns...).
		From(c.history.Relation("changes") + " AS c"))
}

// matching adds the filters to what selects from changes AS c.
func (q Query) matching(b sq.SelectBuilder) sq.SelectBuilder {
	for _, condition := range q.where {
		b = b.Where(condition)
	}
	return b
}
