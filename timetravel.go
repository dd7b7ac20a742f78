package audit

import (
	"context"
	"fmt"
	"slices"
	"time"
)

// Point is a moment of the source's history, and the past as it was then:
//
//	err := audit.AsOf(lastTuesday).Load(ctx, &todo, 26)
//	err := audit.BeforeRequest(id).Table("todo").List(ctx, &todos)
//	err := audit.AtMark("before the import").View(ctx, func(tx pgx.Tx) error { ... })
//
// However it is given, a Point means one position in commit order, the same cut
// through every table: a transaction is in it whole or not at all. Of two times
// the later one sees everything that the earlier one sees. The same Point gives
// the same answer for good, except [Now].
//
// A Point is an immutable value; its methods may be called concurrently. What
// cannot be answered truly is a [*HistoryError], never a wrong answer.
type Point struct {
	client *Client // nil: the default client at the time of the terminal method
	err    error
	kind   pointKind
	time   time.Time
	lsn    LSN
	id     uint64
	name   string

	report  *Completeness
	columns []string
	lax     bool
	live    []string
	schemas []string
	search  strategy
}

type pointKind int

const (
	pointUnset pointKind = iota
	pointAsOf
	pointBefore
	pointPosition
	pointBeforeTransaction
	pointAfterTransaction
	pointBeforeRequest
	pointAfterRequest
	pointMark
	pointNow
)

// AsOf is the moment t: everything that had been committed until then, t itself
// included, by the clock of the source. Commit times can run backwards against
// commit order by some milliseconds; a transaction counts by the latest commit
// time up to it. t must not be in the source's future.
func AsOf(t time.Time) Point { return Point{kind: pointAsOf, time: t} }

// Before is the moment just before t.
func Before(t time.Time) Point { return Point{kind: pointBefore, time: t} }

// AtPosition is the moment when the transaction at p had been committed. A
// transaction is seen whole: the position's Sequence plays no part.
func AtPosition(p Position) Point { return Point{kind: pointPosition, lsn: p.LSN} }

// BeforeTransaction is the moment just before the transaction with the given id
// (Change.TransactionID) was committed.
func BeforeTransaction(id uint64) Point { return Point{kind: pointBeforeTransaction, id: id} }

// AfterTransaction is the moment when the transaction with the given id had been
// committed.
func AfterTransaction(id uint64) Point { return Point{kind: pointAfterTransaction, id: id} }

// BeforeRequest is the moment just before the first change of a request.
func BeforeRequest(id string) Point { return Point{kind: pointBeforeRequest, name: id} }

// AfterRequest is the moment when the last change of a request had been
// committed. What others committed between its first and its last change is in
// it, too.
func AfterRequest(id string) Point { return Point{kind: pointAfterRequest, name: id} }

// AtMark is the moment that [Client.Mark] gave the name.
func AtMark(name string) Point { return Point{kind: pointMark, name: name} }

// Now is the moment of the call: it sees everything that was committed before.
func Now() Point { return Point{kind: pointNow} }

// AsOf is [AsOf] of the client's history.
func (c *Client) AsOf(t time.Time) Point { return AsOf(t).of(c) }

// Before is [Before] of the client's history.
func (c *Client) Before(t time.Time) Point { return Before(t).of(c) }

// AtPosition is [AtPosition] of the client's history.
func (c *Client) AtPosition(p Position) Point { return AtPosition(p).of(c) }

// BeforeTransaction is [BeforeTransaction] of the client's history.
func (c *Client) BeforeTransaction(id uint64) Point { return BeforeTransaction(id).of(c) }

// AfterTransaction is [AfterTransaction] of the client's history.
func (c *Client) AfterTransaction(id uint64) Point { return AfterTransaction(id).of(c) }

// BeforeRequest is [BeforeRequest] of the client's history.
func (c *Client) BeforeRequest(id string) Point { return BeforeRequest(id).of(c) }

// AfterRequest is [AfterRequest] of the client's history.
func (c *Client) AfterRequest(id string) Point { return AfterRequest(id).of(c) }

// AtMark is [AtMark] of the client's history.
func (c *Client) AtMark(name string) Point { return AtMark(name).of(c) }

// Now is [Now] of the client's history.
func (c *Client) Now() Point { return Now().of(c) }

func (p Point) of(c *Client) Point {
	p.client = c
	return p
}

// String says which moment is meant, in the words of the function that made the
// Point.
func (p Point) String() string {
	switch p.kind {
	case pointAsOf:
		return "AsOf(" + p.time.UTC().Format(time.RFC3339Nano) + ")"
	case pointBefore:
		return "Before(" + p.time.UTC().Format(time.RFC3339Nano) + ")"
	case pointPosition:
		return "AtPosition(" + p.lsn.String() + ")"
	case pointBeforeTransaction:
		return fmt.Sprintf("BeforeTransaction(%d)", p.id)
	case pointAfterTransaction:
		return fmt.Sprintf("AfterTransaction(%d)", p.id)
	case pointBeforeRequest:
		return fmt.Sprintf("BeforeRequest(%q)", clip(p.name, 80))
	case pointAfterRequest:
		return fmt.Sprintf("AfterRequest(%q)", clip(p.name, 80))
	case pointMark:
		return fmt.Sprintf("AtMark(%q)", clip(p.name, 80))
	case pointNow:
		return "Now()"
	case pointUnset:
	}
	return "the zero Point"
}

// Report has every terminal method fill in into how complete its answer is, also
// when it returns an error, as far as that is known then. It must not be shared
// by calls that run at the same time.
func (p Point) Report(into *Completeness) Point {
	p.report = into
	return p
}

// Columns asks for some of the columns only. It is also the way around a column
// whose past is not known, see [ErrIncomplete].
func (p Point) Columns(names ...string) Point {
	p.columns = slices.Clone(names)
	return p
}

// Lax lets a struct have fields for which the past has no column, and lack fields
// for columns that it has. Without it, both are an error: a column that was not
// there yet would else look like one that was empty.
func (p Point) Lax() Point {
	p.lax = true
	return p
}

// WithLive lets a [Point.View] read the named tables as they are now, beside the
// others as they were: tables that are not tracked, because they never change.
func (p Point) WithLive(tables ...string) Point {
	p.live = append(slices.Clip(p.live), tables...)
	return p
}

// Completeness says what an answer about the past rests on.
type Completeness struct {
	// Position is what the Point resolved to: transactions that committed at or
	// before it are in the answer. [AtPosition] of it gives the answer again.
	Position Position `json:"position"`
	// CoveredFrom is the earliest position for which the same question has an
	// answer, CoveredFromTime the time from which the table is tracked.
	CoveredFrom     Position  `json:"coveredFrom"`
	CoveredFromTime time.Time `json:"coveredFromTime,omitzero"`
	// CoveredTo is up to where the store holds everything.
	CoveredTo Position `json:"coveredTo"`
	// Lag is how far behind the source's clock the store was when it was asked, in
	// commit time; 0 where the answer waited for everything.
	Lag time.Duration `json:"lag"`
	// Gaps are the holes in history, oldest first. None of them matters to the
	// answer, or there would have been an error.
	Gaps []Gap `json:"gaps,omitempty"`
	// Withheld are the columns of the table that the answer leaves out, sorted: history
	// does not store their values. See [Config.Columns].
	Withheld []string `json:"withheld,omitempty"`
}

// Resolve returns which position the Point means and how complete history is
// there, without asking for anything. CoveredFrom is that of the table covered
// for the longest time.
func (p Point) Resolve(ctx context.Context) (Completeness, error) {
	t, err := p.travel(ctx)
	if err != nil {
		return Completeness{}, err
	}
	return t.completeness(nil), nil
}

// ready returns the client to ask, or what is wrong with the Point.
func (p Point) ready() (*Client, error) {
	switch {
	case p.err != nil:
		return nil, p.err
	case p.kind == pointUnset:
		return nil, &PointError{Reason: "the zero Point is no moment: use AsOf, BeforeRequest or one of the other functions that make one"}
	case (p.kind == pointAsOf || p.kind == pointBefore) && p.time.IsZero():
		return nil, &PointError{Reason: "the time is zero"}
	case (p.kind == pointMark || p.kind == pointBeforeRequest || p.kind == pointAfterRequest) && p.name == "":
		return nil, &PointError{Reason: "the name is empty"}
	}
	client := p.client
	if client == nil {
		client = defaultClient.Load()
	}
	if client == nil {
		return nil, ErrNoDefaultClient
	}
	return client, client.open()
}

// PointError is returned when a [Point] was made of something that is no moment,
// or when the unit it was to be taken from is not in history.
type PointError struct {
	// Point is the point in words, where there is one.
	Point  string
	Reason string

	cause error
}

func (e *PointError) Error() string {
	if e.Point == "" {
		return "audit: " + e.Reason
	}
	return "audit: " + e.Point + ": " + e.Reason
}

// Unwrap returns the cause, [ErrNotFound] where there is nothing of the name.
func (e *PointError) Unwrap() error { return e.cause }
