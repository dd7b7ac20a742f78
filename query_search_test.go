package audit_test

import (
	"slices"
	"testing"
	"time"

	"github.com/hindsight-go/audit"
)

// insertMany stores 12,000 changes of several tables and transactions, one of which is
// larger than what a search looks at first. Few of them changed the column rare.
func insertMany(t *testing.T, h *history) {
	t.Helper()
	h.db.Exec(t, `
		INSERT INTO audit.changes (position, sequence, committed_at, transaction_id, database, schema, "table",
			primary_key, operation, before, after, context, environment, defect, queued_at)
		SELECT '0/1000000'::pg_lsn + u.tx * 64, n - u.first + 1, timestamptz '2024-01-10 00:00+00' + u.tx * interval '5 min', 1000 + u.tx,
			'shop', 'public', CASE WHEN n % 500 = 3 THEN 'small' ELSE 'large' END, n::text, CASE WHEN n = 40 THEN 'DELETE' ELSE 'UPDATE' END,
			jsonb_build_object('id', n, 'rare', 1), jsonb_build_object('id', n, 'rare', CASE WHEN n IN (5, 4095, 4096, 4097, 5003, 11990) THEN 2 ELSE 1 END),
			CASE WHEN n <> 7 THEN '{"userId": "1"}'::jsonb END, CASE WHEN n = 9 THEN 'test' ELSE 'production' END, CASE WHEN n = 11 THEN 'cut' END, now()
		FROM generate_series(0, 11999) AS n
		CROSS JOIN LATERAL (SELECT CASE WHEN n BETWEEN 3000 AND 8999 THEN 3000 ELSE n END AS tx, CASE WHEN n BETWEEN 3000 AND 8999 THEN 3000 ELSE n END AS first) AS u`)
}

func TestPageWithin(t *testing.T) {
	t.Parallel()
	h := newHistory(t)
	insertMany(t, h)
	all := h.client.Changes()
	for name, q := range map[string]audit.Query{
		"a column":                    all.Changed("rare"),
		"a column, oldest first":      all.Changed("rare").OldestFirst(),
		"a column of a table":         all.ForTable("small").Changed("rare"),
		"a column to a value":         all.ChangedTo("rare", 2).OldestFirst(),
		"nothing":                     all.Changed("none"),
		"an environment":              all.InEnvironment("test"),
		"an operation":                all.Operations(audit.Delete),
		"no context":                  all.WithoutContext(),
		"another user":                all.NotUser("1"),
		"another table, oldest first": all.NotTable("large").Changed("rare").OldestFirst(),
	} {
		want, err := q.List(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if len(want) == 0 && name != "nothing" {
			t.Errorf("%s: there is nothing to find", name)
		}
		for _, size := range []int{2, 50} {
			// Without time, a page looks at the first part and says how far that was.
			var got []audit.Change
			var page audit.Page
			partial := 0
			for at := audit.Cursor(""); ; at = page.Next {
				page, err = q.After(at).PageWithin(t.Context(), size, time.Nanosecond)
				if err != nil {
					t.Fatal(err)
				}
				got = append(got, page.Changes...)
				if page.Partial {
					if partial++; !page.More || page.Next == at || page.SearchedTo.Before(epoch) || len(page.Changes) > size {
						t.Fatalf("%s: a part of %d changes, more %v, up to %v", name, len(page.Changes), page.More, page.SearchedTo)
					}
				} else if !page.SearchedTo.IsZero() {
					t.Errorf("%s: a page that is whole reaches to %v", name, page.SearchedTo)
				}
				if !page.More {
					break
				}
			}
			if !slices.Equal(places(got), places(want)) {
				t.Errorf("%s by %d: parts give %v, want %v", name, size, places(got), places(want))
			}
			if partial == 0 && name != "a column of a table" { // of which there are few changes
				t.Errorf("%s by %d: all of it was looked at in no time", name, size)
			}
			// With time, it is the page that Page gives.
			page, err = q.PageWithin(t.Context(), size, time.Hour)
			if err != nil {
				t.Fatal(err)
			}
			ordinary, err := q.Page(t.Context(), size)
			if err != nil {
				t.Fatal(err)
			}
			if page.Partial || page.More != ordinary.More || page.Next != ordinary.Next || !slices.Equal(places(page.Changes), places(ordinary.Changes)) {
				t.Errorf("%s by %d: with time %v, more %v; want %v, more %v", name, size, places(page.Changes), page.More, places(ordinary.Changes), ordinary.More)
			}
		}
	}
	// What an index finds is whole, however little time there is.
	for name, q := range map[string]audit.Query{"everything": all, "a table": all.ForTable("small"), "a defect": all.WithDefect(), "a row": all.ForTable("large").ForRow(5).Changed("rare")} {
		if page, err := q.PageWithin(t.Context(), 50, time.Nanosecond); err != nil || page.Partial || len(page.Changes) == 0 {
			t.Errorf("%s: %d changes, partial %v, %v", name, len(page.Changes), page.Partial, err)
		}
	}
	for _, wrong := range []func() (audit.Page, error){
		func() (audit.Page, error) { return all.PageWithin(t.Context(), 50, 0) },
		func() (audit.Page, error) { return all.Changed("rare").PageWithin(t.Context(), 0, time.Second) },
		func() (audit.Page, error) { return all.Changed("").PageWithin(t.Context(), 5, time.Second) },
	} {
		if _, err := wrong(); err == nil {
			t.Error("a page that cannot be had gives no error")
		}
	}
}

// Pages of requests lead forwards and back to the same list, however the changes of requests
// lie among each other, and in parts as well as whole.
func TestRequestsPage_BackAndWithin(t *testing.T) {
	t.Parallel()
	h := newHistory(t)
	// Request r has changes at up to three places that lie far apart.
	h.db.Exec(t, `
		INSERT INTO audit.changes (position, sequence, committed_at, transaction_id, database, schema, "table", primary_key, operation, before, after, context, queued_at)
		SELECT '0/1000000'::pg_lsn + n * 64, 1, timestamptz '2024-01-10 00:00+00' + n * interval '5 min', 1000 + n, 'shop', 'public', 'todo', n::text, 'UPDATE',
			jsonb_build_object('id', n, 'rare', 1), jsonb_build_object('id', n, 'rare', 1 + (n % 701 = 3)::int),
			CASE WHEN n % 5 > 0 THEN jsonb_build_object('requestId', 'r' || (n % 97) * (n / 4000) + n / 3000) END, now()
		FROM generate_series(0, 11999) AS n`)
	all := h.client.Changes()
	ids := func(requests []audit.Request) (ids []string) {
		for _, r := range requests {
			ids = append(ids, r.ID)
		}
		return ids
	}
	for name, q := range map[string]audit.Query{
		"newest first": all, "oldest first": all.OldestFirst(), "a rare column": all.Changed("rare"), "a rare column, oldest first": all.Changed("rare").OldestFirst(), "nothing": all.Changed("none"),
	} {
		var want []string
		for r, err := range q.Requests(t.Context()) {
			if err != nil {
				t.Fatal(err)
			}
			want = append(want, r.ID)
		}
		for _, budget := range []time.Duration{0, time.Nanosecond} {
			read := func(at audit.Cursor) audit.RequestPage {
				t.Helper()
				page, err := q.After(at).RequestsPage(t.Context(), 7)
				if budget > 0 {
					page, err = q.After(at).RequestsPageWithin(t.Context(), 7, budget)
				}
				if err != nil {
					t.Fatal(err)
				}
				if page.Partial != !page.SearchedTo.IsZero() || page.Partial && budget == 0 {
					t.Errorf("%s: partial %v, up to %v", name, page.Partial, page.SearchedTo)
				}
				return page
			}
			page := read("")
			if page.Previous != "" {
				t.Errorf("%s: there is a page before the first", name)
			}
			got := ids(page.Requests)
			for page.More {
				page = read(page.Next)
				got = append(got, ids(page.Requests)...)
			}
			if !slices.Equal(got, want) {
				t.Errorf("%s within %v: forwards %d requests %v, want %d %v", name, budget, len(got), got, len(want), want)
			}
			got = ids(page.Requests)
			for page.Previous != "" {
				page = read(page.Previous)
				got = append(ids(page.Requests), got...)
				if !page.More {
					t.Errorf("%s: there is nothing behind a page before another", name)
				}
			}
			if len(page.Requests) > 0 && !slices.Equal(got, want) {
				t.Errorf("%s within %v: back %d requests %v, want %d %v", name, budget, len(got), got, len(want), want)
			}
		}
	}
	page, err := all.RequestsPage(t.Context(), 5)
	if err != nil {
		t.Fatal(err)
	}
	page, err = all.After(page.Next).RequestsPage(t.Context(), 5)
	if err != nil {
		t.Fatal(err)
	}
	for _, err := range all.After(page.Previous).Requests(t.Context()) {
		if err == nil {
			t.Error("Requests goes on from a page before another")
		}
		break
	}
}
