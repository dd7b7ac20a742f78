package audit

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
)

// Bucket is the width of the steps of a [Query.Trend].
type Bucket int

// The widths. They follow the calendar in UTC or the zone of [Query.InZone]; weeks begin
// on Monday.
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

// start returns the beginning of the bucket that holds t, in the zone of t.
func (b Bucket) start(t time.Time) time.Time {
	year, month, day := t.Date()
	intoMinute := time.Duration(t.Second())*time.Second + time.Duration(t.Nanosecond())
	switch b {
	case EveryMinute:
		return t.Add(-intoMinute)
	case EveryHour: // not by time.Date: an hour may come twice
		start := t.Add(-intoMinute - time.Duration(t.Minute())*time.Minute)
		if shift, _ := t.ZoneBounds(); start.Before(shift) { // by half an hour, in some places
			return shift
		}
		return start
	case EveryWeek:
		return startOfDay(year, month, day-(int(t.Weekday())+6)%7, t.Location())
	case EveryMonth:
		return startOfDay(year, month, 1, t.Location())
	default:
		return startOfDay(year, month, day, t.Location())
	}
}

// next returns the beginning of the bucket behind the one that begins at t.
func (b Bucket) next(t time.Time) time.Time {
	year, month, day := t.Date()
	switch b {
	case EveryMinute:
		return t.Add(time.Minute)
	case EveryHour:
		return t.Add(time.Hour - time.Duration(t.Minute())*time.Minute)
	case EveryWeek: // a week whose Monday was left out begins later
		return b.start(t.AddDate(0, 0, 7).Add(12 * time.Hour))
	case EveryMonth:
		return startOfDay(year, month+1, 1, t.Location())
	default:
		return startOfDay(year, month, day+1, t.Location())
	}
}

// slot is the width by which changes are counted for buckets of a zone. The zones of
// today are off from UTC by quarters of an hour, those of a program by any seconds.
func (b Bucket) slot(zone *time.Location) time.Duration {
	_, offset := time.Now().In(zone).Zone()
	width := 15 * time.Minute
	if b == EveryMinute {
		width = time.Minute
	}
	for rest := time.Duration(offset) * time.Second % width; rest != 0; {
		width, rest = rest.Abs(), width%rest
	}
	switch {
	case b == EveryMinute, zone != time.UTC:
		return width
	case b == EveryHour:
		return time.Hour
	}
	return 24 * time.Hour
}

// startOfDay returns the first moment of a day, or of the next where a zone left that
// day out. A day need not begin at midnight, and may have two of them.
func startOfDay(year int, month time.Month, day int, zone *time.Location) time.Time {
	const step = 15 * time.Minute
	date := time.Date(year, month, day, 0, 0, 0, 0, time.UTC)
	number := func(t time.Time) int { return t.Year()*10000 + int(t.Month())*100 + t.Day() }
	t, wanted := time.Date(year, month, day, 0, 0, 0, 0, zone), number(date)
	for number(t) < wanted {
		t = t.Add(step)
	}
	for number(t.Add(-step)) >= wanted {
		t = t.Add(-step)
	}
	return t
}

// InZone has days, hours and the steps of a [Query.Trend] be those of a zone, with its
// summer time. Without it they are those of UTC. Which changes a query gives is not
// touched by it.
func (q Query) InZone(zone *time.Location) Query {
	if zone == nil {
		return q.refuse("InZone", "the zone is nil", nil)
	}
	q.zone = zone
	return q
}

// location is the zone of the query's days.
func (q Query) location() *time.Location {
	if q.zone == nil {
		return time.UTC
	}
	return q.zone
}

// binned is the slot that a change was committed in, in SQL.
func (b Bucket) binned(zone *time.Location) string {
	return fmt.Sprintf("date_bin(interval '%d s', c.committed_at, timestamptz 'epoch')", int(b.slot(zone).Seconds()))
}

// Step is one step of a [Query.Trend]: the changes committed from Start
// (included) until End (left out).
type Step struct {
	Start time.Time `json:"start"`
	End   time.Time `json:"end"`
	Counts
}

// Counts is the number of changes by what they did.
type Counts struct {
	Creates   int64 `json:"creates"`
	Updates   int64 `json:"updates"`
	Deletes   int64 `json:"deletes"`
	Truncates int64 `json:"truncates"`
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
	zone := q.location()
	b := source(every.binned(zone)+" AS step", "c.operation", "count(*)").GroupBy("step", "c.operation").OrderBy("step")
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
	i := 0
	for _, c := range counts {
		for i < len(steps) && !c.start.Before(steps[i].End) {
			i++
		}
		if i < len(steps) {
			steps[i].add(c.operation, c.n)
		}
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
	if first.IsZero() || !q.until.IsZero() && !q.since.Before(q.until) {
		return nil, nil
	}
	var steps []Step
	for at := every.start(first.In(q.location())); !at.After(last); {
		if len(steps) == maxTrend {
			return nil, &FilterError{Filter: "Trend", Reason: "more than 100,000 steps: take a wider bucket or a narrower window"}
		}
		next := every.next(at)
		steps = append(steps, Step{Start: at, End: next})
		at = next
	}
	return steps, nil
}
