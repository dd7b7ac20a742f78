package audit

import (
	"context"
	"fmt"
	"strings"
	"time"

	sq "github.com/Masterminds/squirrel"
	"github.com/jackc/pgx/v5"

	"github.com/hindsight-go/audit/internal/pgcatalog"
)

// Dimension is what [Query.CountBy] counts by.
type Dimension int

// The dimensions. Days and hours are those of UTC, or of the zone of [Query.InZone].
const (
	PerTable Dimension = iota + 1
	PerOperation
	PerUser
	PerTenant
	PerRequest
	PerTrace
	PerEndpoint
	PerWorker
	PerTransaction
	PerDatabase
	PerEnvironment
	PerDay
	PerHour
)

// dimension is how a Dimension is computed. The texts of its expressions make
// up the value of a group.
type dimension struct {
	name  string
	exprs []string
	// Of a dimension of time: its width, and the layout of a group's value.
	every  Bucket
	layout string
}

var dimensions = map[Dimension]dimension{
	PerTable:       {name: "table", exprs: []string{"c.schema", `c."table"`}},
	PerOperation:   {name: "operation", exprs: []string{"c.operation"}},
	PerUser:        {name: "user", exprs: []string{userMember.sql()}},
	PerTenant:      {name: "tenant", exprs: []string{tenantMember.sql()}},
	PerRequest:     {name: "request", exprs: []string{requestMember.sql()}},
	PerTrace:       {name: "trace", exprs: []string{traceMember.sql()}},
	PerEndpoint:    {name: "endpoint", exprs: []string{endpointMember.sql()}},
	PerWorker:      {name: "worker", exprs: []string{workerMember.sql()}},
	PerTransaction: {name: "transaction", exprs: []string{"c.transaction_id::text"}},
	PerDatabase:    {name: "database", exprs: []string{"c.database"}},
	PerEnvironment: {name: "environment", exprs: []string{"nullif(c.environment, '')"}},
	PerDay:         {name: "day", every: EveryDay, layout: time.DateOnly},
	PerHour:        {name: "hour", every: EveryHour, layout: "2006-01-02T15:00Z07:00"},
}

// String returns the name of the dimension: "table".
func (d Dimension) String() string {
	if known, ok := dimensions[d]; ok {
		return known.name
	}
	return fmt.Sprintf("Dimension(%d)", int(d))
}

// Group is the changes that have one value in a [Dimension].
type Group struct {
	// Value is that value as text: a table in the form that ForTable reads, a day
	// as 2024-01-02, an hour as 2024-01-02T15:00Z or, of a zone, 2024-01-02T15:00+01:00.
	Value string `json:"value"`
	// Known is false for the changes that have no value there: made by nobody
	// known, at no endpoint.
	Known bool `json:"known"`
	// Changes is how many changes there are, First and Last the range of their
	// commit times.
	Changes int64     `json:"changes"`
	First   time.Time `json:"first"`
	Last    time.Time `json:"last"`
}

// Count returns how many changes the query gives, cursor and Limit included.
func (q Query) Count(ctx context.Context) (int64, error) {
	client, source, err := q.source("c.position")
	if err != nil {
		return 0, err
	}
	counts, err := collect(ctx, client, "count changes", source("count(*)"), pgx.RowTo[int64])
	if err != nil {
		return 0, err
	}
	return counts[0], nil
}

// CountBy counts the changes that the query gives, cursor and Limit included,
// by their value in a dimension: the largest group first, days and hours in the
// order of time. It lists every group there is; PerRequest and PerTransaction may
// be many.
func (q Query) CountBy(ctx context.Context, by Dimension) ([]Group, error) {
	known, ok := dimensions[by]
	if !ok {
		q = q.refuse("CountBy", by.String()+" is none of the dimensions", nil)
	}
	client, source, err := q.source("c.*")
	if err != nil {
		return nil, err
	}
	if known.layout != "" {
		return q.countByTime(ctx, client, known, source)
	}
	b := source("ARRAY["+strings.Join(known.exprs, ", ")+"] AS value", "count(*)", "min(c.committed_at)", "max(c.committed_at)").
		GroupBy(known.exprs...).OrderBy("count(*) DESC", "value")
	return collect(ctx, client, "count changes", b, func(row pgx.CollectableRow) (Group, error) {
		var g Group
		var values []*string
		err := row.Scan(&values, &g.Changes, &g.First, &g.Last)
		g.First, g.Last = g.First.UTC(), g.Last.UTC()
		switch {
		case err != nil:
		case len(values) == 2:
			g.Value, g.Known = pgcatalog.Qualified(text(values[0]), text(values[1])), true
		case len(values) == 1:
			g.Value, g.Known = text(values[0]), values[0] != nil
		}
		return g, err
	})
}

// countByTime counts the changes by the days or hours of the query's zone.
func (q Query) countByTime(ctx context.Context, client *Client, by dimension, source func(...string) sq.SelectBuilder) ([]Group, error) {
	zone := q.location()
	b := source(by.every.binned(zone)+" AS step", "count(*)", "min(c.committed_at)", "max(c.committed_at)").
		GroupBy("step").OrderBy("step")
	var groups []Group
	_, err := collect(ctx, client, "count changes", b, func(row pgx.CollectableRow) (struct{}, error) {
		var at time.Time
		g := Group{Known: true}
		if err := row.Scan(&at, &g.Changes, &g.First, &g.Last); err != nil {
			return struct{}{}, err
		}
		g.Value = at.In(zone).Format(by.layout)
		g.First, g.Last = g.First.UTC(), g.Last.UTC()
		if n := len(groups); n > 0 && groups[n-1].Value == g.Value {
			last := &groups[n-1]
			last.Changes += g.Changes
			last.Last = g.Last
			return struct{}{}, nil
		}
		groups = append(groups, g)
		return struct{}{}, nil
	})
	return groups, err
}

// source returns what an aggregate selects from: the changes that the filters
// leave, behind the cursor and within the limit, if there are such.
func (q Query) source(limited ...string) (*Client, func(columns ...string) sq.SelectBuilder, error) {
	p, err := q.pages()
	if err != nil {
		return nil, nil, err
	}
	return p.client, func(columns ...string) sq.SelectBuilder {
		if q.limit == 0 {
			return p.bounded(q.from(p.client, columns...))
		}
		inner := p.bounded(q.from(p.client, limited...)).OrderBy(q.order()).Limit(uint64(q.limit))
		return sq.StatementBuilder.PlaceholderFormat(sq.Dollar).Select(columns...).FromSelect(inner, "c")
	}, nil
}
