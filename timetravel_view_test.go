package audit_test

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/hindsight-go/audit"
	"github.com/hindsight-go/audit/audittest"
)

// viewed answers one question in a view.
func viewed[T any](ctx context.Context, p audit.Point, sql string, args ...any) (v T, err error) {
	err = p.View(ctx, func(tx pgx.Tx) error { return tx.QueryRow(ctx, sql, args...).Scan(&v) })
	return v, err
}

func wantViewed[T comparable](t *testing.T, p audit.Point, want T, sql string, args ...any) {
	t.Helper()
	if got, err := viewed[T](t.Context(), p, sql, args...); err != nil || got != want {
		t.Errorf("%s: %v, want %v: %v", sql, got, want, err)
	}
}

func wantViewError(t *testing.T, p audit.Point, part, sql string, args ...any) {
	t.Helper()
	var refused *audit.ViewError
	got, err := viewed[any](t.Context(), p, sql, args...)
	if !errors.As(err, &refused) || !strings.Contains(err.Error(), part) {
		t.Errorf("%s: %v, %v; want a ViewError with %q", sql, got, err, part)
	}
}

// A table that came later is in nobody's way who asks for another of its name.
func TestView_NamesakeOfAnotherSchema(t *testing.T) {
	t.Parallel()
	parts := "CREATE TABLE %[1]s.todo (id int PRIMARY KEY) PARTITION BY RANGE (id); CREATE TABLE %[1]s.todo_1 PARTITION OF %[1]s.todo FOR VALUES FROM (0) TO (50); INSERT INTO %[1]s.todo SELECT generate_series(1, 3)"
	a := audittest.New(t, audit.Config{}, "CREATE SCHEMA shop", fmt.Sprintf(parts, "shop"))
	then := here(t, a)
	a.Exec(t, "CREATE SCHEMA archive; "+fmt.Sprintf(parts, "archive"))
	refresh(t, a)
	wantViewed(t, then, 3, "SELECT count(*)::int FROM shop.todo")
	wantViewed(t, then.SearchPath("shop"), 3, "SELECT count(*)::int FROM todo")
	if n, err := then.Table("shop.todo").Where("true").Count(t.Context()); n != 3 || err != nil {
		t.Errorf("%d rows: %v", n, err)
	}
	if got, err := viewed[int](t.Context(), then, "SELECT count(*)::int FROM archive.todo"); !refused(err) {
		t.Errorf("of a table that was not there: %d, %v", got, err)
	}
}

// What needs a table with a key, and not a view, gets one.
func TestView_QueriesThatNeedATable(t *testing.T) {
	t.Parallel()
	a := audittest.New(t, audit.Config{}, `
		CREATE TABLE customer (id int PRIMARY KEY, name text, city text);
		CREATE TABLE orders (id int PRIMARY KEY, customer int REFERENCES customer, total numeric);
		INSERT INTO customer SELECT n, 'name ' || n, 'city' FROM generate_series(1, 5) n;
		INSERT INTO orders SELECT n, n % 5 + 1, n FROM generate_series(1, 20) n;
		CREATE VIEW spent AS SELECT c.id, c.name, sum(o.total) AS total FROM customer c JOIN orders o ON o.customer = c.id GROUP BY c.id;
		CREATE FUNCTION label(customer) RETURNS text LANGUAGE sql AS $$SELECT $1.name || '!'$$`)
	then := here(t, a)
	const grouped = "SELECT string_agg(x, ',' ORDER BY x) FROM (SELECT c.name || count(*) AS x FROM customer c JOIN orders o ON o.customer = c.id GROUP BY c.id) t"
	const view = "SELECT string_agg(name || total, ',' ORDER BY id) FROM spent"
	want := map[string]string{}
	for _, sql := range []string{grouped, view} {
		want[sql] = audittest.Value[string](t, a.Database, sql)
		wantViewed(t, then, want[sql], sql)
	}
	a.Exec(t, "UPDATE customer SET name = 'changed' WHERE id < 3; DELETE FROM orders WHERE id > 15; INSERT INTO customer VALUES (6, 'new', 'x')")
	a.Sync(t)
	for _, sql := range []string{grouped, view} {
		wantViewed(t, then, want[sql], sql)
	}
	wantViewed(t, then, want[grouped], strings.ReplaceAll(grouped, "FROM customer c", "FROM public.customer c"))
	wantViewed(t, then, int64(5), "SELECT count(*) FROM customer TABLESAMPLE BERNOULLI (100)")
	wantViewed(t, then, "name 1!", "SELECT label(ROW(c.*)::public.customer) FROM customer c WHERE id = 1")
	wantViewError(t, then, "ROW(t.*)", "SELECT label(c) FROM customer c WHERE id = 1")
	wantViewError(t, then, "ROW(t.*)", "SELECT c.label FROM customer c WHERE id = 1")
	err := then.View(t.Context(), func(tx pgx.Tx) error {
		// All in one view: the view first, then what makes a table of what it reads.
		for _, sql := range []string{"SELECT count(*)::text FROM customer", view, grouped, view} {
			var got string
			if err := tx.QueryRow(t.Context(), sql).Scan(&got); err != nil || want[sql] != "" && got != want[sql] {
				return fmt.Errorf("%s: %s: %w", sql, got, err)
			}
		}
		nested, err := tx.Begin(t.Context())
		if err != nil {
			return err
		}
		var got string
		if err := nested.QueryRow(t.Context(), "SELECT count(*)::text FROM orders o GROUP BY o.customer LIMIT 1").Scan(&got); err != nil || got != "4" {
			return fmt.Errorf("nested: %s: %w", got, err)
		}
		return nested.Rollback(t.Context())
	})
	if err != nil {
		t.Error(err)
	}
	// Where a row stands is not in history, in whatever form the table is.
	for _, sql := range []string{"SELECT ctid::text FROM customer LIMIT 1", "SELECT tableoid::text FROM customer c LIMIT 1", "SELECT min(c.xmin::text) FROM customer c JOIN orders o ON o.customer = c.id GROUP BY c.id LIMIT 1"} {
		wantViewError(t, then, "is not in history", sql)
	}
}

func TestView_Explain(t *testing.T) {
	t.Parallel()
	a := audittest.New(t, audit.Config{}, todoTable, "INSERT INTO todo VALUES (1, 'a'), (2, 'b')")
	then := here(t, a)
	a.Exec(t, "UPDATE todo SET task = 'c'")
	a.Sync(t)
	for _, sql := range []string{"EXPLAIN SELECT * FROM todo", "EXPLAIN (ANALYZE, COSTS OFF) SELECT * FROM public.todo WHERE id = 1", "explain analyze verbose SELECT 1"} {
		if got, err := viewed[string](t.Context(), then, sql); err != nil || got == "" {
			t.Errorf("%s: %v", sql, err)
		}
	}
	for _, sql := range []string{"EXPLAIN ANALYZE DELETE FROM todo", "EXPLAIN ANALYZE WITH d AS (DELETE FROM todo RETURNING id) SELECT * FROM d", "EXPLAIN ANALYZE SELECT pg_advisory_lock(1)"} {
		wantViewError(t, then, "", sql)
	}
}

// The same names work before a table changes and behind that, and mean what they
// mean to the application.
func TestView_NamesAndSearchPath(t *testing.T) {
	t.Parallel()
	a := audittest.New(t, audit.Config{}, `CREATE SCHEMA app; CREATE SCHEMA reporting;
		CREATE TABLE public.todo (id int PRIMARY KEY); INSERT INTO public.todo VALUES (1);
		CREATE TABLE app.todo (id int PRIMARY KEY); INSERT INTO app.todo VALUES (1), (2);
		CREATE TABLE app.lone (id int PRIMARY KEY); INSERT INTO app.lone VALUES (1), (2), (3);
		CREATE TABLE public.customer (id int PRIMARY KEY); INSERT INTO public.customer VALUES (1), (2), (3), (4);
		CREATE TABLE public.orders (id int PRIMARY KEY); INSERT INTO public.orders VALUES (1), (2), (3), (4), (5);
		CREATE VIEW reporting.customer AS SELECT id FROM public.orders;
		CREATE VIEW reporting.spent AS SELECT c.id FROM public.customer c JOIN reporting.customer USING (id)`)
	u, err := url.Parse(a.URL())
	if err != nil {
		t.Fatal(err)
	}
	query := u.Query()
	query.Set("search_path", "app")
	u.RawQuery = query.Encode()
	inApp, err := audit.Open(t.Context(), audit.Config{SourceURL: u.String(), Tables: []string{"*.*"}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(inApp.Close)
	then := here(t, a)
	position := must(then.Resolve(t.Context())).Position
	ask := func(when string) {
		for _, q := range []struct {
			point audit.Point
			want  int64
			table string
		}{
			{then, 1, "todo"},
			{then, 1, "public.todo"},
			{then, 2, "app.todo"},
			{then, 3, "app.lone"},
			{then, 4, "customer"},
			{then, 5, "reporting.customer"},
			{then, 4, "reporting.spent"},
			{inApp.AtPosition(position), 2, "todo"},
			{inApp.AtPosition(position), 3, "lone"},
			{inApp.AtPosition(position), 1, "public.todo"},
			{then.SearchPath("app"), 2, "todo"},
			{then.SearchPath("reporting", "public"), 5, "customer"},
			{then.SearchPath("reporting", "public"), 4, "public.customer"},
			{then.SearchPath("reporting", "public"), 4, "spent"},
		} {
			if got, err := viewed[int64](t.Context(), q.point, "SELECT count(*) FROM "+q.table); err != nil || got != q.want {
				t.Errorf("%s, %s: %d, want %d: %v", when, q.table, got, q.want, err)
			}
		}
		for _, missing := range []string{"lone", "spent"} {
			var pgErr *pgconn.PgError
			if _, err := viewed[int64](t.Context(), then, "SELECT count(*) FROM "+missing); !errors.As(err, &pgErr) || pgErr.Code != "42P01" {
				t.Errorf("%s, %s: %v", when, missing, err)
			}
		}
		for name, q := range map[string]audit.Point{"public": then, "app": inApp.AtPosition(position), "app by SearchPath": then.SearchPath("app")} {
			want := int64(2)
			if name == "public" {
				want = 1
			}
			for _, table := range []audit.PastTable{q.Table("todo"), q.Table("todo").Where("id > 0")} {
				if n, err := table.Count(t.Context()); err != nil || n != want {
					t.Errorf("%s, Table(todo) in %s: %d, want %d: %v", when, name, n, want, err)
				}
			}
		}
	}
	ask("before")
	for _, table := range []string{"public.todo", "app.todo", "app.lone", "public.customer", "public.orders"} {
		a.Exec(t, "INSERT INTO "+table+" VALUES (7), (8)")
	}
	a.Sync(t)
	ask("behind the change")
}

// Only what a query names is made ready.
func TestView_MakesWhatAQueryNames(t *testing.T) {
	t.Parallel()
	var setup []string
	for i := range 30 {
		setup = append(setup, fmt.Sprintf("CREATE TABLE t%d (id int PRIMARY KEY); INSERT INTO t%[1]d VALUES (1)", i))
	}
	a := audittest.New(t, audit.Config{}, append(setup, "CREATE VIEW two AS SELECT t1.id FROM t1 JOIN t2 USING (id)")...)
	then := here(t, a)
	for i := range 30 {
		a.Exec(t, fmt.Sprintf("INSERT INTO t%d VALUES (2)", i))
	}
	a.Sync(t)
	const made = "SELECT count(*) FROM pg_catalog.pg_class WHERE relnamespace = pg_catalog.pg_my_temp_schema() AND relkind = 'v'"
	err := then.View(t.Context(), func(tx pgx.Tx) error {
		for _, q := range []struct {
			sql  string
			want int64
		}{
			{made, 0},
			{"SELECT count(*) FROM t0", 1},
			{made, 1},
			{"SELECT count(*) FROM two", 1},
			{made, 4},
			{"SELECT count(*) FROM t0 JOIN t1 USING (id)", 1},
			{made, 4},
		} {
			if n, err := scan(t.Context(), tx, q.sql); err != nil || n != q.want {
				return fmt.Errorf("%s: %d, want %d: %w", q.sql, n, q.want, err)
			}
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
}

// The past is read with the rights of ReadURL's role.
func TestView_ReadURL(t *testing.T) {
	t.Parallel()
	a := audittest.New(t, audit.Config{Tables: []string{"public.*"}}, todoTable, "INSERT INTO todo VALUES (1, 'a')", "CREATE TABLE closed (id int PRIMARY KEY)")
	role := newRole(t, a.Database, "PASSWORD 'reader'")
	a.Exec(t, "GRANT SELECT ON todo TO "+role)
	u, err := url.Parse(a.URL())
	if err != nil {
		t.Fatal(err)
	}
	u.User = url.UserPassword(role, "reader")
	client, err := audit.Open(t.Context(), audit.Config{SourceURL: a.URL(), ReadURL: u.String()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(client.Close)
	then := client.AtPosition(must(here(t, a).Resolve(t.Context())).Position)
	a.Exec(t, "UPDATE todo SET task = 'b'; INSERT INTO closed VALUES (1)")
	a.Sync(t)
	wantViewed(t, then, role, "SELECT current_user::text")
	wantViewed(t, then, "a", "SELECT task FROM todo")
	if n, err := viewed[int64](t.Context(), then, "SELECT count(*) FROM closed"); err == nil {
		t.Errorf("the role read a table that it may not: %d", n)
	}
	if _, err := audit.Open(t.Context(), audit.Config{SourceURL: a.URL(), ReadURL: "postgres://%zz"}); err == nil || strings.Contains(err.Error(), "%zz") {
		t.Errorf("a bad ReadURL: %v", err)
	}
}

// What a partition was called is not in history: its name is refused wherever a query has
// it, since another may have had it.
func TestView_NamesOfPartitions(t *testing.T) {
	t.Parallel()
	a := audittest.New(t, audit.Config{}, `
		CREATE TABLE x (id int PRIMARY KEY); INSERT INTO x VALUES (1);
		CREATE TABLE t (id int, part int, PRIMARY KEY (id, part)) PARTITION BY LIST (part);
		CREATE TABLE t_1 PARTITION OF t FOR VALUES IN (1); CREATE TABLE t_2 PARTITION OF t FOR VALUES IN (2);
		INSERT INTO t VALUES (1, 1), (2, 2), (3, 2)`)
	a.Sync(t)
	then := a.Client.AtPosition(must(audit.ParsePosition(audittest.Value[string](t, a.Database, "SELECT pg_current_wal_insert_lsn()::text"))))
	a.Exec(t, "ALTER TABLE t_1 RENAME TO swap; ALTER TABLE t_2 RENAME TO t_1; ALTER TABLE swap RENAME TO t_2")
	a.Sync(t)
	for _, from := range []string{
		"FROM t_1", "FROM public.t_1", "FROM ONLY t_1", "FROM x, t_1", "FROM x, public.t_1 AS p", "FROM (x CROSS JOIN t_1)", "FROM (t_1 CROSS JOIN x)",
		"FROM x JOIN LATERAL (SELECT FROM t_1) l ON true", "FROM (TABLE t_1) l", "FROM t WHERE part IN (SELECT part FROM t_1)", "FROM t, t_1 WHERE t.id = t_1.id",
	} {
		var n int
		err := then.View(t.Context(), func(tx pgx.Tx) error {
			return tx.QueryRow(t.Context(), "SELECT count(*) "+from).Scan(&n)
		})
		if !refused(err) {
			t.Errorf("%s: %d, %v", from, n, err)
		}
	}
	var n int
	if err := then.View(t.Context(), func(tx pgx.Tx) error {
		return tx.QueryRow(t.Context(), "SELECT count(*) FROM t, x").Scan(&n)
	}); err != nil || n != 3 {
		t.Errorf("the whole table: %d, %v", n, err)
	}
}
