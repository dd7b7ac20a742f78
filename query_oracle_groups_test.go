package audit_test

import (
	"fmt"
	"slices"
	"testing"

	"github.com/hindsight-go/audit"
)

// dimensionSQL is the value of a group by each dimension; %s is the zone.
var dimensionSQL = map[audit.Dimension]string{
	audit.PerTable:       `c.schema || '.' || c."table"`,
	audit.PerOperation:   `c.operation`,
	audit.PerUser:        userSQL,
	audit.PerTenant:      memberSQL("tenant"),
	audit.PerRequest:     requestSQL,
	audit.PerTrace:       memberSQL("traceId", "trace_id"),
	audit.PerEndpoint:    memberSQL("endpoint"),
	audit.PerWorker:      memberSQL("worker"),
	audit.PerTransaction: `c.transaction_id::text`,
	audit.PerDatabase:    `c.database`,
	audit.PerEnvironment: `nullif(c.environment, '')`,
	audit.PerDay:         `(c.committed_at AT TIME ZONE '%s')::date::text`,
}

func (o *oracle) checkAggregates(t *testing.T, q asked) {
	t.Helper()
	for _, by := range []audit.Dimension{
		audit.PerTable, audit.PerOperation, audit.PerUser, audit.PerTenant, audit.PerRequest, audit.PerTrace, audit.PerEndpoint,
		audit.PerWorker, audit.PerTransaction, audit.PerDatabase, audit.PerEnvironment, audit.PerDay,
	} {
		value := dimensionSQL[by]
		if by == audit.PerDay {
			value = fmt.Sprintf(value, q.zone)
		}
		want := o.lines(t, `SELECT coalesce(`+value+`, '(unknown)') || ' ' || count(*) || ' ' || extract(epoch FROM min(c.committed_at))::bigint || ' ' || extract(epoch FROM max(c.committed_at))::bigint
			FROM `+q.changes(false)+` GROUP BY `+value)
		groups, err := q.query.CountBy(t.Context(), by)
		got := []string{}
		for i, g := range groups {
			if !g.Known {
				g.Value = "(unknown)"
			}
			got = append(got, fmt.Sprint(g.Value, " ", g.Changes, " ", g.First.Unix(), " ", g.Last.Unix()))
			if i > 0 && (by == audit.PerDay && g.Value <= groups[i-1].Value || by != audit.PerDay && g.Changes > groups[i-1].Changes) {
				t.Errorf("CountBy %v of %s is out of order", by, q.name)
			}
		}
		slices.Sort(want)
		slices.Sort(got)
		q.agree(t, "CountBy "+by.String(), want, got, err)
	}
	for _, every := range []audit.Bucket{audit.EveryHour, audit.EveryDay, audit.EveryWeek, audit.EveryMonth} {
		want := o.lines(t, fmt.Sprintf(`SELECT extract(epoch FROM date_trunc('%[1]s', c.committed_at, '%[2]s'))::bigint || ' ' ||
				concat_ws(' ', count(*) FILTER (WHERE operation = 'CREATE'), count(*) FILTER (WHERE operation = 'UPDATE'),
				count(*) FILTER (WHERE operation = 'DELETE'), count(*) FILTER (WHERE operation = 'TRUNCATE'))
			FROM %[3]s GROUP BY date_trunc('%[1]s', c.committed_at, '%[2]s') ORDER BY date_trunc('%[1]s', c.committed_at, '%[2]s')`, every, q.zone, q.changes(false)))
		steps, err := q.query.Trend(t.Context(), every)
		got := []string{}
		for i, s := range steps {
			if s.Total() > 0 {
				got = append(got, fmt.Sprint(s.Start.Unix(), " ", s.Creates, " ", s.Updates, " ", s.Deletes, " ", s.Truncates))
			}
			if i > 0 && !s.Start.Equal(steps[i-1].End) {
				t.Errorf("Trend of %s has a hole before %v", q.name, s.Start)
			}
		}
		q.agree(t, "Trend "+every.String(), want, got, err)
	}
}

// countsSQL are the counts of a group of changes.
const countsSQL = `concat_ws(' ', count(*) FILTER (WHERE operation = 'CREATE'), count(*) FILTER (WHERE operation = 'UPDATE'),
	count(*) FILTER (WHERE operation = 'DELETE'), count(*) FILTER (WHERE operation = 'TRUNCATE'),
	extract(epoch FROM min(c.committed_at))::bigint, extract(epoch FROM max(c.committed_at))::bigint, count(DISTINCT (c.schema, c."table")))`

func (o *oracle) checkTransactions(t *testing.T, q asked) {
	t.Helper()
	want := o.lines(t, fmt.Sprintf(`SELECT c.position || ' ' || c.database || ' ' || min(c.transaction_id) || ' ' || min(c.sequence) || ' ' || max(c.sequence) || ' ' ||
			concat_ws(' ', count(*) FILTER (WHERE operation = 'CREATE'), count(*) FILTER (WHERE operation = 'UPDATE'),
			count(*) FILTER (WHERE operation = 'DELETE'), count(*) FILTER (WHERE operation = 'TRUNCATE'), count(DISTINCT (c.schema, c."table")))
		FROM %[1]s GROUP BY c.position, c.database ORDER BY c.position %[2]s, c.database COLLATE "C" %[2]s`, q.changes(true), q.down))
	line := func(x audit.Transaction) string {
		return fmt.Sprint(x.Position, " ", x.Database, " ", x.ID, " ", x.First, " ", x.Last, " ", x.Creates, " ", x.Updates, " ", x.Deletes, " ", x.Truncates, " ", len(x.Tables))
	}
	all, paged := []string{}, []string{}
	for x, err := range q.query.Transactions(t.Context()) {
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, line(x))
	}
	q.agree(t, "Transactions", cut(want, q.limit), all, nil)
	size := 1 + o.IntN(100)
	for page, at := (audit.TransactionPage{More: true}), q.query; page.More; at = at.After(page.Next) {
		var err error
		if page, err = at.TransactionsPage(t.Context(), size); err != nil {
			t.Fatal(err)
		}
		for _, x := range page.Transactions {
			paged = append(paged, line(x))
		}
	}
	q.agree(t, "TransactionsPage", want, paged, nil)
}

func (o *oracle) checkRequests(t *testing.T, q asked) {
	t.Helper()
	want := o.lines(t, `SELECT id || ' ' || counts FROM (
			SELECT `+requestSQL+` AS id, min(c.place) AS place, `+countsSQL+` AS counts FROM `+q.changes(true)+` GROUP BY 1
		) AS r WHERE id IS NOT NULL ORDER BY place`)
	line := func(r audit.Request) string {
		return fmt.Sprint(r.ID, " ", r.Creates, " ", r.Updates, " ", r.Deletes, " ", r.Truncates, " ", r.StartedAt.Unix(), " ", r.EndedAt.Unix(), " ", len(r.Tables))
	}
	all, paged := []string{}, []string{}
	for r, err := range q.query.Requests(t.Context()) {
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, line(r))
	}
	q.agree(t, "Requests", cut(want, q.limit), all, nil)
	size := 1 + o.IntN(5)
	for page, at := (audit.RequestPage{More: true}), q.query; page.More; at = at.After(page.Next) {
		var err error
		if page, err = at.RequestsPage(t.Context(), size); err != nil {
			t.Fatal(err)
		}
		for _, r := range page.Requests {
			paged = append(paged, line(r))
		}
	}
	q.agree(t, "RequestsPage", want, paged, nil)
}

// cut returns the lines within a limit.
func cut(lines []string, limit int) []string {
	if limit == 0 {
		return lines
	}
	return lines[:min(limit, len(lines))]
}
