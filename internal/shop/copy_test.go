package shop_test

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5"
)

// row is the texts of a row's columns, NULL as "<null>".
type row map[string]string

// copied is all rows of all tables: by the table and by uid, an identity that no
// statement of the story touches, or in a table without a key by what they hold and their
// number among those that hold the same.
type copied map[string]map[string]row

// computed are the columns that a trigger or the server computes, by tables: what they
// have to hold, sums says.
var computed = map[string][]string{
	"purchase": {"lines", "total", "updated_at"},
	"product":  {"sold", "words", "gross"},
	"manual":   {"words"},
	"line":     {"amount"},
}

// sums finds rows whose computed columns are not what they have to be.
const sums = `
	SELECT 'purchase ' || id FROM purchase p WHERE (lines, total) <> (SELECT count(*), coalesce(sum(quantity * net), 0) FROM line WHERE purchase = p.id)
	UNION ALL SELECT 'sold ' || id FROM product p WHERE sold <> (SELECT coalesce(sum(quantity), 0) FROM line WHERE product = p.id)
	UNION ALL SELECT 'words ' || id FROM product WHERE words <> to_tsvector('simple', name || ' ' || coalesce(about, ''))
	UNION ALL SELECT 'gross ' || id FROM product WHERE gross <> round(net * 1.19, 2)
	UNION ALL SELECT 'manual ' || product FROM manual WHERE words <> to_tsvector('simple', body)
	UNION ALL SELECT 'ticket ' || coalesce(id, ticket) FROM ticket FULL JOIN open_ticket ON ticket = id WHERE id IS NULL OR ticket IS NULL`

// copyTables copies everything, without the tables in except and what is computed.
func copyTables(t *testing.T, tx pgx.Tx, except ...string) copied {
	t.Helper()
	rows, err := tx.Query(t.Context(), `
		SELECT c.relname, array_agg(a.attname::text ORDER BY a.attnum)
		FROM pg_class c
		JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
		WHERE c.relnamespace = 'public'::regnamespace AND c.relkind IN ('r', 'p') AND NOT c.relispartition
		GROUP BY c.oid, c.relname`)
	if err != nil {
		t.Fatal(err)
	}
	tables := make(map[string][]string)
	var name string
	var columns []string
	if _, err := pgx.ForEachRow(rows, []any{&name, &columns}, func() error {
		if !slices.Contains(except, name) {
			tables[name] = slices.DeleteFunc(columns, func(c string) bool { return slices.Contains(computed[name], c) })
		}
		columns = nil
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	all := make(copied)
	for name, columns := range tables {
		all[name] = copyTable(t, tx, name, columns)
	}
	return all
}

func copyTable(t *testing.T, tx pgx.Tx, name string, columns []string) map[string]row {
	t.Helper()
	texts := make([]string, len(columns))
	for i, c := range columns {
		ident := pgx.Identifier{c}.Sanitize()
		texts[i] = fmt.Sprintf("CASE WHEN %[1]s IS NOT DISTINCT FROM NULL THEN '<null>' ELSE concat(%[1]s) END", ident)
	}
	only := "ONLY "
	if name == "payment" {
		only = ""
	}
	rows, err := tx.Query(t.Context(), fmt.Sprintf("SELECT ARRAY[%s]::text[] FROM %s%s", strings.Join(texts, ", "), only, name))
	if err != nil {
		t.Fatal(err)
	}
	found, err := pgx.CollectRows(rows, pgx.RowTo[[]string])
	if err != nil {
		t.Fatal(err)
	}
	copies := make(map[string]row, len(found))
	for _, values := range found {
		r := make(row, len(columns))
		for i, c := range columns {
			r[c] = values[i]
		}
		key := r["uid"]
		if key == "" {
			n := 0
			for copies[numbered(r, n)] != nil {
				n++
			}
			key = numbered(r, n)
		}
		copies[key] = r
	}
	return copies
}

func (c copied) clone() copied {
	all := make(copied, len(c))
	for table, rows := range c {
		all[table] = make(map[string]row, len(rows))
		for uid, r := range rows {
			all[table][uid] = maps.Clone(r)
		}
	}
	return all
}

func (c copied) differs(other copied) bool { return !cmp.Equal(c, other) }

// followers are the references that follow their parent's key, ON UPDATE CASCADE.
var followers = []struct {
	table, parent string
	columns, refs []string
}{
	{"purchase", "customer", []string{"customer"}, []string{"id"}},
	{"booking", "customer", []string{"customer"}, []string{"id"}},
	{"wallet", "customer", []string{"customer"}, []string{"id"}},
	{"ticket", "customer", []string{"customer"}, []string{"id"}},
	{"category", "category", []string{"parent"}, []string{"code"}},
	{"product", "category", []string{"category"}, []string{"code"}},
	{"stock", "shelf", []string{"hall", "slot"}, []string{"hall", "slot"}},
}

// without is what there has to be when what was done between two copies is undone in a
// third: that alone, and nothing of what was done later. named is not empty if that
// cannot be, and tells why: a later change is in the way.
func without(before, after, now copied) (want copied, named string) {
	want = now.clone()
	for table := range now {
		if table == "visit" {
			if want[table], named = withoutAlike(before[table], after[table], now[table]); named != "" {
				return nil, named
			}
			continue
		}
		for _, uid := range slices.Sorted(maps.Keys(merged(before[table], after[table]))) {
			was, left, live := before[table][uid], after[table][uid], now[table][uid]
			switch {
			case cmp.Equal(was, left):
			case was == nil && !cmp.Equal(left, live):
				return nil, "made and changed since: " + table
			case was == nil:
				delete(want[table], uid)
			case left == nil && live != nil:
				return nil, "removed and there again: " + table
			case left == nil:
				want[table][uid] = maps.Clone(was)
			case live == nil:
				return nil, "changed and removed since: " + table
			default:
				for column := range was {
					if was[column] == left[column] {
						continue
					}
					if live[column] != left[column] {
						return nil, "changed twice: " + table + "." + column
					}
					want[table][uid][column] = was[column]
				}
			}
		}
	}
	for range 3 { // categories follow each other
		follow(want, now)
	}
	return want, ""
}

// withoutAlike is without for a table without a key: of rows that hold the same only their
// number is known, whichever of them a request made or removed.
func withoutAlike(before, after, now map[string]row) (want map[string]row, named string) {
	count := func(rows map[string]row) map[string][]row {
		alike := make(map[string][]row)
		for _, r := range rows {
			alike[fmt.Sprint(r)] = append(alike[fmt.Sprint(r)], r)
		}
		return alike
	}
	was, left, live := count(before), count(after), count(now)
	want = make(map[string]row)
	for _, all := range []map[string][]row{was, left, live} {
		for key, rows := range all {
			n := len(live[key]) + len(was[key]) - len(left[key])
			if n < 0 {
				return nil, "made and removed since: visit"
			}
			for i := range n {
				want[numbered(rows[0], i)] = rows[0]
			}
		}
	}
	return want, ""
}

// numbered is the key of a row without a key, the nth of those that hold the same.
func numbered(r row, n int) string { return fmt.Sprint(r, n) }

// follow gives references the keys that their parents have, where these had others.
func follow(want, now copied) {
	values := func(r row, columns []string) string {
		var parts []string
		for _, c := range columns {
			parts = append(parts, r[c])
		}
		return strings.Join(parts, ",")
	}
	for _, f := range followers {
		renamed := make(map[string]row)
		for uid, parent := range now[f.parent] {
			if r := want[f.parent][uid]; r != nil && values(r, f.refs) != values(parent, f.refs) {
				renamed[values(parent, f.refs)] = r
			}
		}
		for uid, r := range want[f.table] {
			if live := now[f.table][uid]; live != nil && values(r, f.columns) == values(live, f.columns) {
				if parent := renamed[values(r, f.columns)]; parent != nil {
					for i, c := range f.columns {
						r[c] = parent[f.refs[i]]
					}
				}
			}
		}
	}
}

func merged(a, b map[string]row) map[string]row {
	all := maps.Clone(a)
	if all == nil {
		all = make(map[string]row)
	}
	maps.Copy(all, b)
	return all
}
