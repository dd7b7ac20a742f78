package audit_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/hindsight-go/audit"
)

func TestCountBy(t *testing.T) {
	t.Parallel()
	h := newHistory(t)
	h.store(t,
		change(1, 1, with(`{"userId": 1, "endpoint": "POST /todo"}`)),
		change(61, 1, with(`{"user_id": "1"}`), in("billing", "in.voices")),
		change(62, 1, did(audit.Create)))
	changes := h.client.Changes()
	for by, want := range map[audit.Dimension][]audit.Group{
		audit.PerTable: {{Value: "public.todo", Known: true, Changes: 2}, {Value: `billing."in.voices"`, Known: true, Changes: 1}},
		audit.PerUser:  {{Value: "1", Known: true, Changes: 2}, {Changes: 1}},
		audit.PerOperation: {
			{Value: "UPDATE", Known: true, Changes: 2}, {Value: "CREATE", Known: true, Changes: 1},
		},
		audit.PerHour: {
			{Value: "2024-01-10T00:00Z", Known: true, Changes: 1}, {Value: "2024-01-10T01:00Z", Known: true, Changes: 2},
		},
		audit.PerDay:         {{Value: "2024-01-10", Known: true, Changes: 3}},
		audit.PerEndpoint:    {{Changes: 2}, {Value: "POST /todo", Known: true, Changes: 1}},
		audit.PerDatabase:    {{Value: "shop", Known: true, Changes: 3}},
		audit.PerEnvironment: {{Changes: 3}},
		audit.PerRequest:     {{Changes: 3}},
		audit.PerTrace:       {{Changes: 3}},
		audit.PerWorker:      {{Changes: 3}},
		audit.PerTenant:      {{Changes: 3}},
		audit.PerTransaction: {{Value: "1001", Known: true, Changes: 1}, {Value: "1061", Known: true, Changes: 1}, {Value: "1062", Known: true, Changes: 1}},
	} {
		got, err := changes.CountBy(t.Context(), by)
		if diff := cmp.Diff(want, got, cmpopts.IgnoreFields(audit.Group{}, "First", "Last")); err != nil || diff != "" {
			t.Errorf("%s: %v %s", by, err, diff)
		}
	}
	got, err := changes.CountBy(t.Context(), audit.PerUser)
	if err != nil || !got[0].First.Equal(epoch.Add(time.Minute)) || !got[0].Last.Equal(epoch.Add(61*time.Minute)) {
		t.Errorf("%+v, %v", got, err)
	}
	got, err = changes.Limit(2).CountBy(t.Context(), audit.PerUser)
	if err != nil || len(got) != 2 || got[0].Changes != 1 {
		t.Errorf("of the last two: %+v, %v", got, err)
	}
}

func TestTrendHasNoHoles(t *testing.T) {
	t.Parallel()
	h := newHistory(t)
	h.store(t, change(0, 1), change(1, 1, did(audit.Create)), change(60*24*2, 1), change(60*24*31, 1))
	changes := h.client.Changes()
	day := func(n int) time.Time { return epoch.AddDate(0, 0, n) }

	steps, err := changes.Until(day(10)).Trend(t.Context(), audit.EveryDay)
	if err != nil || len(steps) != 10 {
		t.Fatalf("%d steps, %v", len(steps), err)
	}
	want := audit.Step{Start: day(0), End: day(1), Counts: audit.Counts{Creates: 1, Updates: 1}}
	if diff := cmp.Diff(want, steps[0]); diff != "" || steps[1].Total() != 0 || steps[2].Updates != 1 {
		t.Error(diff, steps)
	}
	for bucket, n := range map[audit.Bucket]int{audit.EveryMinute: 24*60*31 + 1, audit.EveryHour: 24*31 + 1, audit.EveryDay: 32, audit.EveryWeek: 5, audit.EveryMonth: 2} {
		steps, err := changes.Trend(t.Context(), bucket)
		if err != nil || len(steps) != n {
			t.Errorf("%s: %d steps, not %d: %v", bucket, len(steps), n, err)
			continue
		}
		total := int64(0)
		for _, s := range steps {
			total += s.Total()
		}
		if total != 4 {
			t.Errorf("%s: %d changes", bucket, total)
		}
	}
	weeks, err := changes.Trend(t.Context(), audit.EveryWeek)
	if err != nil || weeks[0].Start.Weekday() != time.Monday || weeks[0].Updates != 2 {
		t.Errorf("%+v, %v", weeks, err)
	}
	steps, err = changes.Since(time.Now().Add(-3*time.Hour)).Trend(t.Context(), audit.EveryHour)
	if err != nil || len(steps) < 4 || len(steps) > 5 {
		t.Errorf("the last three hours: %d steps, %v", len(steps), err)
	}
	if _, err := changes.Since(epoch).Trend(t.Context(), audit.EveryMinute); err == nil {
		t.Error("years of minutes")
	}
}

func TestTransactions(t *testing.T) {
	t.Parallel()
	h := newHistory(t)
	user := func(n int) func(*audit.Change) { return with(fmt.Sprintf(`{"userId": %d}`, n)) }
	h.store(t,
		change(1, 1), change(1, 2, user(1)), change(1, 3, user(2), in("billing", "invoices"), did(audit.Delete)), change(1, 4, user(1), did(audit.Create)),
		change(2, 1), change(3, 1, user(1)))
	want := []audit.Transaction{
		{
			ID: 1003, Position: at(3, 0).LSN, Database: "shop", First: 1, Last: 1, Context: audit.Context{UserID: int64(1)}, Stamped: true,
			CommittedAt: epoch.Add(3 * time.Minute), Counts: audit.Counts{Updates: 1}, Tables: []string{"public.todo"},
		},
		{
			ID: 1002, Position: at(2, 0).LSN, Database: "shop", First: 1, Last: 1,
			CommittedAt: epoch.Add(2 * time.Minute), Counts: audit.Counts{Updates: 1}, Tables: []string{"public.todo"},
		},
		{
			ID: 1001, Position: at(1, 0).LSN, Database: "shop", First: 1, Last: 4, Context: audit.Context{UserID: int64(1)}, Stamped: true,
			CommittedAt: epoch.Add(time.Minute), Counts: audit.Counts{Creates: 1, Updates: 2, Deletes: 1}, Tables: []string{"billing.invoices", "public.todo"},
		},
	}
	var got []audit.Transaction
	for transaction, err := range h.client.Changes().Transactions(t.Context()) {
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, transaction)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	page, err := h.client.Changes().TransactionsPage(t.Context(), 2)
	if diff := cmp.Diff(want[:2], page.Transactions); err != nil || diff != "" || !page.More {
		t.Error(err, diff, page.More)
	}
	page, err = h.client.Changes().After(page.Next).TransactionsPage(t.Context(), 2)
	if diff := cmp.Diff(want[2:], page.Transactions); err != nil || diff != "" || page.More {
		t.Error(err, diff, page.More)
	}
	page, err = h.client.Changes().ByUser(2).TransactionsPage(t.Context(), 2)
	if err != nil || len(page.Transactions) != 1 || page.Transactions[0].Total() != 1 || page.Transactions[0].First != 3 || page.Transactions[0].Context.User() != "2" {
		t.Errorf("of one user: %+v, %v", page, err)
	}
}

func TestRequests(t *testing.T) {
	t.Parallel()
	h := newHistory(t)
	request := func(id string) func(*audit.Change) {
		return with(fmt.Sprintf(`{"requestId": %q, "userId": %q}`, id, "user of "+id))
	}
	h.store(t,
		change(1, 1, request("a")), change(2, 1, request("b"), did(audit.Create)), change(3, 1, request("a"), in("billing", "invoices")),
		change(4, 1), change(5, 1, request("c")), change(5, 2, request("b")))
	minutes := func(n time.Duration) time.Time { return epoch.Add(n * time.Minute) }
	a := audit.Request{ID: "a", StartedAt: minutes(1), EndedAt: minutes(3), Counts: audit.Counts{Updates: 2}, Tables: []string{"billing.invoices", "public.todo"}}
	b := audit.Request{ID: "b", StartedAt: minutes(2), EndedAt: minutes(5), Counts: audit.Counts{Creates: 1, Updates: 1}, Tables: []string{"public.todo"}}
	c := audit.Request{ID: "c", StartedAt: minutes(5), EndedAt: minutes(5), Counts: audit.Counts{Updates: 1}, Tables: []string{"public.todo"}}
	for _, r := range []*audit.Request{&a, &b, &c} {
		r.Context = audit.Context{RequestID: r.ID, UserID: "user of " + r.ID}
		r.Origins = []audit.Origin{{User: "user of " + r.ID, Changes: r.Total()}}
	}
	newest, oldest := h.client.Changes(), h.client.Changes().OldestFirst()
	for _, test := range []struct {
		query audit.Query
		want  []audit.Request
	}{{newest, []audit.Request{b, c, a}}, {oldest, []audit.Request{a, b, c}}} {
		for size := 1; size <= 4; size++ {
			var got []audit.Request
			for next := audit.Cursor(""); ; {
				page, err := test.query.After(next).RequestsPage(t.Context(), size)
				if err != nil || len(page.Requests) > size {
					t.Fatal(len(page.Requests), err)
				}
				got, next = append(got, page.Requests...), page.Next
				if !page.More {
					break
				}
			}
			if diff := cmp.Diff(test.want, got); diff != "" {
				t.Errorf("pages of %d: %s", size, diff)
			}
		}
	}
	// A request that goes on while the list is read stays in it.
	first, err := newest.RequestsPage(t.Context(), 1)
	if err != nil {
		t.Fatal(err)
	}
	h.store(t, change(6, 1, request("a")))
	rest, err := newest.After(first.Next).RequestsPage(t.Context(), 5)
	if diff := cmp.Diff([]audit.Request{c, a}, rest.Requests); err != nil || diff != "" {
		t.Error(err, diff)
	}
	n := 0
	for range newest.ForTable("todo").Limit(2).Requests(t.Context()) {
		n++
	}
	if n != 2 {
		t.Errorf("%d requests with a limit of 2", n)
	}
}

func TestRequestsOfManyChanges(t *testing.T) {
	t.Parallel()
	h := newHistory(t)
	var all []audit.Change
	for n := range 1500 {
		id := "large"
		if n%100 == 0 {
			id = fmt.Sprint("small-", n)
		}
		all = append(all, change(n, 1, with(fmt.Sprintf(`{"requestId": %q}`, id))))
	}
	h.store(t, all...)
	for _, q := range []audit.Query{h.client.Changes(), h.client.Changes().OldestFirst()} {
		seen := map[string]int64{}
		for request, err := range q.Requests(t.Context()) {
			if err != nil {
				t.Fatal(err)
			}
			if seen[request.ID] != 0 {
				t.Errorf("%s twice", request.ID)
			}
			seen[request.ID] = request.Total()
		}
		if len(seen) != 16 || seen["large"] != 1485 {
			t.Errorf("%d requests, the large one of %d changes", len(seen), seen["large"])
		}
	}
}
