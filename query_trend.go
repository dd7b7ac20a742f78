package audit

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
)

// Bucket is the width of the steps of a [Query.Trend].
type Bucket int

// The widths. They follow the calendar in UTC; weeks begin on Monday.
const (
	EveryMinute Bucket = iota + 1
	EveryHour
	EveryDay
	EveryWeek
	EveryMonth
)

// maxTrend bounds the steps of a trend, empty ones included.
const maxTrend = 100_000

var bucketNames = map[Bucket]string{
	EveryMinute: "minute", EveryHour: "hour", EveryDay: "day", EveryWeek: "week", EveryMonth: "month",
}

// String returns the name of the width: "hour".
func (b Bucket) String() string {
	if name, ok := bucketNames[b]; ok {
		return name
	}
	return fmt.Sprintf("Bucket(%d)", int(b))
}

// start returns the beginning of the bucket that holds t.
func (b Bucket) start(t time.Time) time.Time {
	t = t.UTC()
	year, month, day := t.Date()
	switch b {
	case EveryMinute:
		return time.Date(year, month, day, t.Hour(), t.Minute(), 0, 0, time.UTC)
	case EveryHour:
		return time.Date(year, month, day, t.Hour(), 0, 0, 0, time.UTC)
	case EveryWeek:
		return time.Date(year, month, day-(int(t.Weekday())+6)%7, 0, 0, 0, 0, time.UTC)
	case EveryMonth:
		return time.Date(year, month, 1, 0, 0, 0, 0, time.UTC)
	default:
		return time.Date(year, month, day, 0, 0, 0, 0, time.UTC)
	}
}

// next returns the beginning of the bucket behind the one that begins at t.
func (b Bucket) next(t time.Time) time.Time {
	switch b {
	case EveryMinute:
		return t.Add(time.Minute)
	case EveryHour:
		return t.Add(time.Hour)
	case EveryWeek:
		return t.AddDate(0, 0, 7)
	case EveryMonth:
		return t.AddDate(0, 1, 0)
	default:
		return t.AddDate(0, 0, 1)
	}
}

// Step is one step of a [Query.Trend]: the changes committed from Start
// (included) until End (left out).
type Step struct {
	Start, End time.Time
	Counts
}

// Counts is the number of changes by what they did.
type Counts struct {
	Creates, Updates, Deletes, Truncates int64
}

// Total is the number of all changes.
func (o Counts) Total() int64 { return o.Creates + o.Updates + o.Deletes + o.Truncates }

func (o *Counts) add(operation Operation, n int64) {
	switch operation {
	case Create:
		o.Creates += n
	case Update:
		o.Updates += n
	case Delete:
		o.Deletes += n
	case Truncate:
		o.Truncates += n
	}
}

// Trend counts the changes that the query gives, cursor and Limit included, over
// time. The steps follow one another without a gap, empty ones included: from
// Since or, without it, the first change, until Until or, without it, the last
// change, or now where Since was given. There are none if there is nothing to
// begin with. More than 100,000 steps are refused.
func (q Query) Trend(ctx context.Context, every Bucket) ([]Step, error) {
	if _, ok := bucketNames[every]; !ok {
		q = q.refuse("Trend", every.String()+" is none of the widths", nil)
	}
	client, source, err := q.source("c.committed_at", "c.operation")
	if err != nil {
		return nil, err
	}
	step := fmt.Sprintf("date_trunc('%s', c.committed_at AT TIME ZONE 'UTC')", every)
	b := source(step+" AS step", "c.operation", "count(*)").GroupBy("step", "c.operation").OrderBy("step")
	type count struct {
		start     time.Time
		operation Operation
		n         int64
	}
	counts, err := collect(ctx, client, "count changes over time", b, func(row pgx.CollectableRow) (c count, err error) {
		err = row.Scan(&c.start, &c.operation, &c.n)
		return c, err
	})
	if err != nil {
		return nil, err
	}
	var first, last time.Time
	if len(counts) > 0 {
		first, last = counts[0].start, counts[len(counts)-1].start
	}
	steps, err := q.emptySteps(every, first, last)
	for i := 0; len(counts) > 0 && i < len(steps); {
		if !counts[0].start.UTC().Equal(steps[i].Start) {
			i++
			continue
		}
		steps[i].add(counts[0].operation, counts[0].n)
		counts = counts[1:]
	}
	return steps, err
}

// emptySteps lays out the steps; first and last are those of the changes.
func (q Query) emptySteps(every Bucket, first, last time.Time) ([]Step, error) {
	if !q.since.IsZero() {
		first = q.since
		if q.until.IsZero() && last.Before(time.Now()) {
			last = time.Now()
		}
	}
	if !q.until.IsZero() {
		last = q.until.Add(-time.Microsecond)
	}
	if first.IsZero() {
		return nil, nil
	}
	var steps []Step
	for at := every.start(first); !at.After(last); {
		if len(steps) == maxTrend {
			return nil, &FilterError{Filter: "Trend", Reason: "more than 100,000 steps: take a wider bucket or a narrower window"}
		}
		next := every.next(at)
		steps = append(steps, Step{Start: at, End: next})
		at = next
	}
	return steps, nil
}
