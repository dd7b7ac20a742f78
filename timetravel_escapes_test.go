package audit_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/hindsight-go/audit"
	"github.com/hindsight-go/audit/audittest"
)

// escapeSetup makes every way known to us in which a query can come to a table
// other than by its plain name.
var escapeSetup = []string{
	`CREATE SCHEMA billing; CREATE SCHEMA plain; CREATE SCHEMA tools;
	CREATE TABLE todo (id int PRIMARY KEY, task text NOT NULL, owner int NOT NULL);
	INSERT INTO todo SELECT n, 'task', n FROM generate_series(1, 3) n;
	CREATE TABLE owner (id int PRIMARY KEY, name text NOT NULL);
	INSERT INTO owner SELECT n, 'name' FROM generate_series(1, 9) n;
	CREATE TABLE billing.todo (id int PRIMARY KEY);
	INSERT INTO billing.todo VALUES (1), (2);
	CREATE TABLE plain.settings (id int PRIMARY KEY);
	INSERT INTO plain.settings VALUES (1);
	CREATE TABLE log (line text);
	INSERT INTO log VALUES ('a'), ('a'), ('b');
	CREATE TABLE part (k int, n int, PRIMARY KEY (k, n)) PARTITION BY LIST (k);
	CREATE TABLE part_1 PARTITION OF part FOR VALUES IN (1);
	CREATE TABLE part_2 PARTITION OF part FOR VALUES IN (2);
	INSERT INTO part VALUES (1, 1), (1, 2), (1, 3), (2, 1);`,
	`CREATE VIEW v_todo AS SELECT * FROM todo;
	CREATE VIEW v_again AS SELECT owner FROM v_todo;
	CREATE VIEW tools.todo_count AS SELECT count(*) AS n FROM public.todo;
	CREATE MATERIALIZED VIEW m_todo AS SELECT * FROM todo;
	CREATE VIEW v_of_m AS SELECT * FROM m_todo;`,
	// Functions.
	`CREATE FUNCTION tools.f_inner() RETURNS bigint LANGUAGE sql AS 'SELECT count(*) FROM public.todo';
	CREATE FUNCTION f_sql_plain() RETURNS bigint STABLE LANGUAGE sql AS 'SELECT count(*) FROM todo';
	CREATE FUNCTION f_sql_qualified() RETURNS bigint STABLE LANGUAGE sql AS 'SELECT count(*) FROM public.todo';
	CREATE FUNCTION f_inlined() RETURNS SETOF int STABLE LANGUAGE sql AS 'SELECT id FROM public.todo';
	CREATE FUNCTION f_inlined_plain() RETURNS SETOF int STABLE LANGUAGE sql AS 'SELECT id FROM todo';
	CREATE FUNCTION f_atomic() RETURNS bigint STABLE LANGUAGE sql BEGIN ATOMIC SELECT count(*) FROM todo; END;
	CREATE FUNCTION f_atomic_set() RETURNS SETOF int VOLATILE LANGUAGE sql BEGIN ATOMIC SELECT id FROM todo; END;
	CREATE FUNCTION f_immutable() RETURNS bigint IMMUTABLE LANGUAGE plpgsql AS 'BEGIN RETURN (SELECT count(*) FROM public.todo); END';
	CREATE FUNCTION f_immutable_plain() RETURNS bigint IMMUTABLE LANGUAGE plpgsql AS 'BEGIN RETURN (SELECT count(*) FROM todo); END';
	CREATE FUNCTION f_immutable_sql() RETURNS bigint IMMUTABLE LANGUAGE sql AS 'SELECT count(*) FROM public.todo';
	CREATE FUNCTION f_plpgsql() RETURNS bigint LANGUAGE plpgsql AS 'BEGIN RETURN (SELECT count(*) FROM todo); END';
	CREATE FUNCTION f_path() RETURNS bigint LANGUAGE plpgsql SET search_path = public AS 'BEGIN RETURN (SELECT count(*) FROM todo); END';
	CREATE FUNCTION f_path_temp() RETURNS bigint LANGUAGE plpgsql SET search_path = public, pg_temp AS 'BEGIN RETURN (SELECT count(*) FROM todo); END';
	CREATE FUNCTION f_set() RETURNS bigint LANGUAGE plpgsql AS 'BEGIN PERFORM set_config(''search_path'', ''public'', true); RETURN (SELECT count(*) FROM todo); END';
	CREATE FUNCTION f_set_plainly() RETURNS bigint LANGUAGE plpgsql AS 'BEGIN SET LOCAL search_path = public, pg_temp; RETURN (SELECT count(*) FROM todo); END';
	CREATE FUNCTION f_execute() RETURNS bigint LANGUAGE plpgsql AS 'DECLARE n bigint; BEGIN EXECUTE ''SELECT count(*) FROM pub'' || ''lic.to'' || ''do'' INTO n; RETURN n; END';
	CREATE FUNCTION f_definer() RETURNS bigint LANGUAGE sql SECURITY DEFINER AS 'SELECT count(*) FROM public.todo';
	CREATE FUNCTION f_outer() RETURNS bigint LANGUAGE sql AS 'SELECT tools.f_inner()';
	CREATE FUNCTION f_outer_atomic() RETURNS bigint LANGUAGE sql BEGIN ATOMIC SELECT tools.f_inner(); END;
	CREATE FUNCTION f_xml() RETURNS bigint LANGUAGE plpgsql AS 'BEGIN RETURN (xpath(''//n/text()'', query_to_xml(''SELECT count(*) AS n FROM pub'' || ''lic.todo'', true, true, '''')))[1]::text::bigint; END';
	CREATE FUNCTION "F Odd"() RETURNS bigint LANGUAGE sql AS 'SELECT count(*) FROM public.todo';
	CREATE FUNCTION f_quoted() RETURNS bigint LANGUAGE sql AS 'SELECT count(*) FROM public."todo"';
	CREATE FUNCTION f_unicode() RETURNS bigint LANGUAGE sql AS 'SELECT count(*) FROM public.U&"t\006Fdo"';
	CREATE FUNCTION f_composite(todo) RETURNS bigint STABLE LANGUAGE plpgsql AS 'BEGIN RETURN (SELECT count(*) FROM public.todo); END';
	CREATE FUNCTION f_settings() RETURNS bigint LANGUAGE plpgsql AS 'BEGIN RETURN (SELECT count(*) FROM plain.settings); END';
	CREATE FUNCTION f_through_view() RETURNS bigint LANGUAGE plpgsql AS 'BEGIN RETURN (SELECT n FROM tools.todo_count); END';
	CREATE FUNCTION f_inherit() RETURNS bigint LANGUAGE plpgsql AS 'BEGIN RETURN (SELECT count(*) FROM part_1); END';
	CREATE FUNCTION f_default(n bigint DEFAULT f_plpgsql()) RETURNS bigint LANGUAGE sql AS 'SELECT n';
	CREATE FUNCTION f_default_qualified(n bigint DEFAULT tools.f_inner()) RETURNS bigint LANGUAGE sql AS 'SELECT n';
	CREATE FUNCTION f_log() RETURNS bigint LANGUAGE plpgsql AS 'BEGIN RETURN (SELECT count(*) FROM log); END';`,
	`CREATE VIEW v_function AS SELECT f_sql_qualified() AS n;
	CREATE VIEW v_immutable AS SELECT f_immutable() AS n;`,
}

const escapeNow = `
	INSERT INTO todo VALUES (4, 'late', 4), (5, 'late', 5);
	UPDATE todo SET task = 'changed' WHERE id = 1;
	INSERT INTO billing.todo SELECT generate_series(3, 7);
	INSERT INTO plain.settings VALUES (2);
	INSERT INTO log VALUES ('a'), ('c');
	INSERT INTO part VALUES (1, 4), (2, 2), (2, 3);
	UPDATE owner SET name = 'changed' WHERE id = 9;
	REFRESH MATERIALIZED VIEW m_todo;`

// otherNames call functions by another name than theirs.
const otherNames = `
	CREATE FUNCTION f_left(int, int) RETURNS bigint LANGUAGE plpgsql AS 'BEGIN RETURN (SELECT count(*) FROM public.todo); END';
	CREATE OPERATOR === (LEFTARG = int, RIGHTARG = int, FUNCTION = f_left);
	CREATE TYPE counted AS (n bigint);
	CREATE FUNCTION f_cast(int) RETURNS counted LANGUAGE plpgsql AS 'BEGIN RETURN row((SELECT count(*) FROM public.todo))::counted; END';
	CREATE CAST (int AS counted) WITH FUNCTION f_cast(int) AS IMPLICIT;
	CREATE FUNCTION f_counted(counted) RETURNS bigint LANGUAGE sql AS 'SELECT $1.n';
	CREATE FUNCTION f_step(bigint, int) RETURNS bigint LANGUAGE plpgsql AS 'BEGIN RETURN (SELECT count(*) FROM public.todo); END';
	CREATE AGGREGATE a_count (int) (SFUNC = f_step, STYPE = bigint, INITCOND = 0);
	CREATE FUNCTION f_few(bigint) RETURNS boolean LANGUAGE plpgsql AS 'BEGIN RETURN (SELECT count(*) FROM public.todo) = $1; END';
	CREATE DOMAIN few AS bigint CHECK (f_few(VALUE));`

var byOtherNames = []question{
	{name: "operator", want: 3, sql: "SELECT 1 === 1"},
	{name: "operator with its schema", want: 3, sql: "SELECT 1 OPERATOR(public.===) 1"},
	{name: "cast", want: 3, sql: "SELECT (1::counted).n"},
	{name: "implicit cast", want: 3, sql: "SELECT f_counted(1)"},
	{name: "aggregate", want: 3, sql: "SELECT a_count(1)"},
	{name: "aggregate as a window", want: 3, sql: "SELECT a_count(1) OVER ()"},
	{name: "domain", want: 3, sql: "SELECT 5::few"},
}

// question is a query whose answer as of the moment is known. It may be refused,
// but for those that must be answered, and never answered with another value.
type question struct {
	name string
	want int64
	must bool
	sql  string
	args []any
	ask  func(ctx context.Context, tx pgx.Tx) (int64, error)
}

func (q question) answer(ctx context.Context, tx pgx.Tx) (n int64, err error) {
	if q.ask != nil {
		return q.ask(ctx, tx)
	}
	err = tx.QueryRow(ctx, q.sql, q.args...).Scan(&n)
	return n, err
}

// scan is tx.QueryRow for one number.
func scan(ctx context.Context, tx interface {
	QueryRow(ctx context.Context, sql string, args ...any) pgx.Row
}, sql string, args ...any,
) (n int64, err error) {
	err = tx.QueryRow(ctx, sql, args...).Scan(&n)
	return n, err
}

const countTodo = "SELECT count(*) FROM todo"

var escapes = []question{
	{name: "plain name", want: 3, must: true, sql: countTodo},
	{name: "join", want: 3, must: true, sql: "SELECT count(*) FROM todo JOIN owner ON owner.id = todo.owner"},
	{name: "values of a changed row", want: 3, must: true, sql: "SELECT count(*) FROM todo WHERE task = 'task'"},
	{name: "qualified", want: 3, must: true, sql: "SELECT count(*) FROM public.todo"},
	{name: "qualified in a join with the plain name", want: 3, sql: "SELECT count(*) FROM todo JOIN public.todo t USING (id)"},
	{name: "ONLY", want: 3, must: true, sql: "SELECT count(*) FROM ONLY todo"},
	{name: "ONLY qualified", want: 3, sql: "SELECT count(*) FROM ONLY public.todo"},
	{name: "TABLE", want: 3, must: true, sql: "WITH t AS (TABLE todo) SELECT count(*) FROM t"},
	{name: "with the name of the database", want: 3, ask: func(ctx context.Context, tx pgx.Tx) (int64, error) {
		var database string
		if err := tx.QueryRow(ctx, "SELECT current_database()").Scan(&database); err != nil {
			return 0, err
		}
		return scan(ctx, tx, "SELECT count(*) FROM "+pgx.Identifier{database, "public", "todo"}.Sanitize())
	}},
	{name: "alias that looks like another table", want: 3, sql: "SELECT count(*) FROM public.todo owner"},
	{name: "view", want: 3, must: true, sql: "SELECT count(*) FROM v_todo"},
	{name: "view over a view", want: 6, must: true, sql: "SELECT sum(owner) FROM v_again"},
	{name: "view in another schema", want: 3, sql: "SELECT n FROM tools.todo_count"},
	{name: "view by its plain name from another schema", want: 3, sql: "SELECT n FROM todo_count"},
	{name: "view by its qualified name", want: 3, sql: "SELECT count(*) FROM public.v_todo"},
	{name: "materialized view", want: 3, sql: "SELECT count(*) FROM m_todo"},
	{name: "view over a materialized view", want: 3, sql: "SELECT count(*) FROM v_of_m"},
	{name: "view over a function", want: 3, sql: "SELECT n FROM v_function"},
	{name: "view over an immutable function", want: 3, sql: "SELECT n FROM v_immutable"},
	{name: "sql function", want: 3, must: true, sql: "SELECT f_sql_plain()"},
	{name: "sql function, qualified", want: 3, sql: "SELECT f_sql_qualified()"},
	{name: "sql function, inlined", want: 3, sql: "SELECT count(*) FROM f_inlined()"},
	{name: "sql function, inlined, plain", want: 3, must: true, sql: "SELECT count(*) FROM f_inlined_plain()"},
	{name: "atomic sql function", want: 3, sql: "SELECT f_atomic()"},
	{name: "atomic sql function of a set", want: 3, sql: "SELECT count(*) FROM f_atomic_set()"},
	{name: "immutable function", want: 3, sql: "SELECT f_immutable()"},
	{name: "immutable function, plain", want: 3, sql: "SELECT f_immutable_plain()"},
	{name: "immutable sql function", want: 3, sql: "SELECT f_immutable_sql()"},
	{name: "plpgsql function", want: 3, must: true, sql: "SELECT f_plpgsql()"},
	{name: "function with a search_path", want: 3, sql: "SELECT f_path()"},
	{name: "function with a search_path and pg_temp last", want: 3, sql: "SELECT f_path_temp()"},
	{name: "function that calls set_config", want: 3, sql: "SELECT f_set()"},
	{name: "function that sets its search_path", want: 3, sql: "SELECT f_set_plainly()"},
	{name: "function with EXECUTE", want: 3, sql: "SELECT f_execute()"},
	{name: "SECURITY DEFINER", want: 3, sql: "SELECT f_definer()"},
	{name: "function in a function", want: 3, sql: "SELECT f_outer()"},
	{name: "function in an atomic function", want: 3, sql: "SELECT f_outer_atomic()"},
	{name: "query_to_xml in a function", want: 3, sql: "SELECT f_xml()"},
	{name: "function of an odd name", want: 3, sql: `SELECT "F Odd"()`},
	{name: "quoted table in a function", want: 3, sql: "SELECT f_quoted()"},
	{name: "table with a Unicode escape in a function", want: 3, sql: "SELECT f_unicode()"},
	{name: "function in attribute notation", want: 3, sql: "SELECT todo.f_composite FROM todo LIMIT 1"},
	{name: "function over an untracked table", want: 1, sql: "SELECT f_settings()"},
	{name: "function over a view", want: 3, sql: "SELECT f_through_view()"},
	{name: "function over a partition", want: 3, sql: "SELECT f_inherit()"},
	{name: "default of an argument", want: 3, sql: "SELECT f_default()"},
	{name: "default of an argument, qualified", want: 3, sql: "SELECT f_default_qualified()"},
	{name: "function over a table without a key", want: 3, must: true, sql: "SELECT f_log()"},
	{name: "function in FROM", want: 3, sql: "SELECT n FROM f_sql_qualified() n"},
	{name: "function in WHERE", want: 3, sql: "SELECT f FROM generate_series(1, 9) f WHERE f = f_sql_qualified()"},
	{name: "function in ORDER BY", want: 3, sql: "SELECT 3 FROM generate_series(1, 9) f ORDER BY f_definer() + f LIMIT 1"},
	{name: "function with its schema", want: 3, sql: "SELECT public.f_sql_qualified()"},
	{name: "function with blanks", want: 3, sql: "SELECT f_sql_qualified  /* a */ ()"},
	{name: "query_to_xml", want: 3, sql: "SELECT (xpath('//n/text()', query_to_xml('SELECT count(*) AS n FROM public.todo', true, true, '')))[1]::text::bigint"},
	{name: "table_to_xml", want: 3, sql: "SELECT count(*) FROM unnest(xpath('//id', table_to_xml('public.todo'::regclass, true, false, '')))"},
	{name: "schema_to_xml", want: 3, sql: "SELECT count(*) FROM unnest(xpath('//todo', schema_to_xml('public', true, false, '')))"},
	{name: "ts_stat", want: 3, sql: "SELECT ndoc FROM ts_stat('SELECT to_tsvector(''simple'', ''x'') FROM public.todo')"},
	{name: "plain name in ts_stat", want: 3, sql: "SELECT ndoc FROM ts_stat('SELECT to_tsvector(''simple'', ''x'') FROM todo')"},
	{name: "partitioned table", want: 4, must: true, sql: "SELECT count(*) FROM part"},
	{name: "partitioned table, pruned", want: 3, must: true, sql: "SELECT count(*) FROM part WHERE k = $1", args: []any{1}},
	{name: "partitioned table, pruned, qualified", want: 3, sql: "SELECT count(*) FROM public.part WHERE k = $1", args: []any{1}},
	{name: "partitioned table, pruned to one, simple protocol", want: 3, sql: "SELECT count(*) FROM public.part WHERE k = $1", args: []any{pgx.QueryExecModeSimpleProtocol, 1}},
	{name: "partition by name", want: 3, sql: "SELECT count(*) FROM part_1"},
	{name: "partition by name, pruned away for NULL", want: 3, sql: "SELECT count(*) FROM part_1 WHERE n > $1", args: []any{0}},
	{name: "a condition on a parameter", want: 3, sql: "SELECT count(*) FROM public.todo WHERE $1 = 1", args: []any{1}},
	{name: "a branch on a parameter", want: 3, sql: "SELECT count(*) FROM public.todo WHERE $1 = 1 UNION ALL SELECT 0 WHERE $1 <> 1", args: []any{1}},
	{name: "a branch on a parameter over the plain name", want: 3, must: true, sql: "SELECT n FROM (SELECT count(*) AS n, 1 AS k FROM todo UNION ALL SELECT 0, 2) t WHERE k = $1", args: []any{1}},
	{name: "CASE on a parameter", want: 3, sql: "SELECT CASE WHEN $1 = 1 THEN (SELECT count(*) FROM public.todo) ELSE 0 END", args: []any{1}},
	{name: "coalesce on a parameter", want: 3, sql: "SELECT coalesce($1::bigint, (SELECT count(*) FROM public.todo))", args: []any{nil}},
	{name: "LIMIT of a parameter", want: 3, sql: "SELECT count(*) FROM (SELECT FROM public.todo LIMIT $1) t", args: []any{100}},
	{name: "CTE", want: 3, must: true, sql: "WITH t AS (SELECT * FROM todo) SELECT count(*) FROM t"},
	{name: "CTE of the table's name", want: 3, sql: "WITH todo AS (SELECT * FROM public.todo) SELECT count(*) FROM todo"},
	{name: "materialized CTE", want: 3, must: true, sql: "WITH t AS MATERIALIZED (SELECT * FROM todo) SELECT count(*) FROM t"},
	{name: "recursive CTE", want: 3, must: true, sql: "WITH RECURSIVE t (id) AS (SELECT 1 UNION ALL SELECT todo.id FROM t JOIN todo ON todo.id = t.id + 1) SELECT count(*) FROM t"},
	{name: "subquery in SELECT", want: 3, must: true, sql: "SELECT (SELECT count(*) FROM todo)"},
	{name: "subquery in SELECT, qualified", want: 3, sql: "SELECT (SELECT count(*) FROM public.todo)"},
	{name: "subquery in WHERE", want: 3, must: true, sql: "SELECT count(*) FROM owner WHERE id IN (SELECT owner FROM todo)"},
	{name: "subquery in WHERE, qualified", want: 3, sql: "SELECT count(*) FROM owner WHERE id IN (SELECT owner FROM public.todo)"},
	{name: "ARRAY of a subquery", want: 3, must: true, sql: "SELECT cardinality(ARRAY (SELECT id FROM todo))"},
	{name: "LATERAL", want: 3, must: true, sql: "SELECT count(*) FROM owner CROSS JOIN LATERAL (SELECT FROM todo WHERE todo.owner = owner.id) t"},
	{name: "set operation", want: 3, must: true, sql: "SELECT count(*) FROM (SELECT id FROM todo UNION SELECT id FROM todo EXCEPT SELECT 0) t"},
	{name: "set operation, qualified", want: 3, sql: "SELECT count(*) FROM (SELECT id FROM todo UNION SELECT id FROM public.todo) t"},
	{name: "window", want: 3, must: true, sql: "SELECT count(*) OVER () FROM todo LIMIT 1"},
	{name: "grouping sets", want: 3, must: true, sql: "SELECT max(n) FROM (SELECT count(*) AS n FROM todo GROUP BY ROLLUP (task)) t"},
	{name: "TABLESAMPLE", want: 3, sql: "SELECT count(*) FROM todo TABLESAMPLE SYSTEM (100)"},
	{name: "TABLESAMPLE, qualified", want: 3, sql: "SELECT count(*) FROM public.todo TABLESAMPLE SYSTEM (100)"},
	{name: "index-only scan", want: 3, sql: "SELECT count(id) FROM public.todo WHERE id > 0"},
	{name: "TID scan", want: 1, sql: "SELECT count(*) FROM public.todo WHERE ctid = '(0,1)'"},
	{name: "min of the index", want: 3, sql: "SELECT max(id) FROM public.todo"},
	{name: "min of the index by the plain name", want: 3, must: true, sql: "SELECT max(id) FROM todo"},
	{name: "untracked table", want: 1, sql: "SELECT count(*) FROM plain.settings"},
	{name: "another schema's table of the name", want: 2, must: true, sql: "SELECT count(*) FROM billing.todo"},
	{name: "another schema's table, its columns with the table", want: 3, must: true, sql: "SELECT sum(billing.todo.id) FROM billing.todo WHERE todo.id < 9"},
	{name: "another schema's table, with an alias", want: 3, must: true, sql: "SELECT sum(b.id) FROM billing.todo b JOIN todo ON todo.id = b.id"},
	{name: "another schema's table in a join with the plain name", want: 2, must: true, sql: "SELECT count(*) FROM todo t, billing.todo WHERE t.id = todo.id"},
	{name: "table without a key", want: 3, must: true, sql: "SELECT count(*) FROM log"},
	{name: "table without a key, qualified", want: 3, sql: "SELECT count(*) FROM public.log"},
	{name: "the temporary tables themselves", want: 3, sql: "SELECT count(*) FROM todo JOIN pg_temp.todo t USING (id)"},
	{name: "catalog", want: 1, must: true, sql: "SELECT count(*) FROM pg_catalog.pg_class WHERE oid = 'public.todo'::regclass"},
	{name: "information_schema", want: 3, must: true, sql: "SELECT count(*) FROM information_schema.columns WHERE table_schema = 'public' AND table_name = 'todo'"},
	{name: "DELETE in a CTE", want: 3, sql: "WITH gone AS (DELETE FROM public.todo RETURNING id) SELECT count(*) FROM gone"},
	{name: "INSERT in a CTE", want: 3, sql: "WITH n AS (INSERT INTO owner SELECT id + 100, 'x' FROM public.todo RETURNING id) SELECT count(*) FROM n"},
	{name: "INSERT in a CTE beside the plain name", want: 3, sql: "WITH n AS (INSERT INTO owner VALUES (100, 'x')) SELECT count(*) FROM todo"},
	{name: "FOR UPDATE", want: 3, sql: "SELECT count(*) FROM (SELECT FROM todo FOR UPDATE) t"},
	{name: "FOR UPDATE, qualified", want: 3, sql: "SELECT count(*) FROM (SELECT FROM public.todo FOR UPDATE) t"},
	{name: "several statements", want: 3, sql: "SELECT 1; SELECT count(*) FROM public.todo"},
	{name: "several statements, simple protocol", want: 3, sql: "SELECT count(*) FROM public.todo; SELECT count(*) FROM public.todo", args: []any{pgx.QueryExecModeSimpleProtocol}},
	{name: "comment that hides", want: 3, sql: "SELECT count(*) FROM /* todo */ public.todo -- todo"},
	{name: "set_config and a function", want: 3, sql: "SELECT f_plpgsql() FROM (SELECT set_config('search_path', 'public, pg_temp', true) OFFSET 0) s"},
}

// A query in a view is answered with the past, or refused: whatever way it takes
// to a table.
func TestNoQueryOfAViewSeesThePresent(t *testing.T) {
	t.Parallel()
	a := audittest.New(t, audit.Config{Tables: []string{"public.*", "billing.*"}}, escapeSetup...)
	then := here(t, a)
	// Plans of before are in the sessions that views get.
	for _, name := range []string{"f_plpgsql", "f_log", "f_immutable_plain", "f_sql_plain"} {
		if err := then.View(t.Context(), func(tx pgx.Tx) error { _, err := scan(t.Context(), tx, "SELECT "+name+"()"); return err }); err != nil {
			t.Logf("%s: %v", name, err)
		}
	}
	a.Exec(t, escapeNow)
	later := here(t, a)
	answerTruly(t, then, later, escapesWith(t.Context()))
	// Behind those that must be answered: with such things about, little is.
	a.Exec(t, otherNames)
	answerTruly(t, then, later, byOtherNames)
}

func answerTruly(t *testing.T, then, later audit.Point, questions []question) {
	t.Helper()
	for _, q := range questions {
		t.Run(strings.ReplaceAll(q.name, " ", "_"), func(t *testing.T) {
			if q.must {
				// In the same sessions, at another point.
				_ = later.View(t.Context(), func(tx pgx.Tx) error { _, _ = q.answer(t.Context(), tx); return nil })
			}
			var n int64
			err := then.View(t.Context(), func(tx pgx.Tx) (err error) {
				n, err = q.answer(t.Context(), tx)
				return err
			})
			switch {
			case err != nil && q.must:
				t.Errorf("it was refused: %v", err)
			case err == nil && n != q.want:
				t.Errorf("it gave %d, want %d", n, q.want)
			case err != nil:
				t.Logf("refused: %v", err)
			}
		})
	}
}

// Sessions are used again: what was prepared and planned in them for one point is
// nothing to another.
func TestViewsOfManyPointsShareSessions(t *testing.T) {
	t.Parallel()
	a := audittest.New(t, audit.Config{}, todoTable, "INSERT INTO todo VALUES (1, 'first')",
		"CREATE FUNCTION tasks() RETURNS text LANGUAGE plpgsql AS 'BEGIN RETURN (SELECT string_agg(task, '','' ORDER BY id) FROM todo); END'",
		"CREATE FUNCTION whole() RETURNS SETOF todo STABLE LANGUAGE plpgsql AS 'BEGIN RETURN QUERY SELECT * FROM todo; END'",
		"CREATE VIEW upper_todo AS SELECT id, upper(task) AS task FROM todo")
	type version struct {
		point   audit.Point
		columns int
		tasks   string
	}
	versions := []version{{here(t, a), 3, "first"}}
	for _, v := range []struct {
		sql     string
		columns int
		tasks   string
	}{
		{"INSERT INTO todo VALUES (2, 'second')", 3, "first,second"},
		{"ALTER TABLE todo ADD COLUMN more int; UPDATE todo SET task = 'changed' WHERE id = 1", 4, "changed,second"},
		{"DELETE FROM todo WHERE id = 2", 4, "changed"},
		{"ALTER TABLE todo RENAME COLUMN more TO other; UPDATE todo SET other = 1", 4, "changed"},
		{"ALTER TABLE todo ALTER COLUMN id TYPE bigint; INSERT INTO todo VALUES (5, 'wide')", 4, "changed,wide"},
	} {
		if strings.Contains(v.sql, "TYPE") {
			a.Exec(t, "DROP VIEW upper_todo")
		}
		a.Exec(t, v.sql)
		versions = append(versions, version{here(t, a), v.columns, v.tasks})
	}
	for round := range 3 {
		for i, v := range versions {
			if round == 1 {
				v = versions[len(versions)-1-i]
			}
			err := v.point.View(t.Context(), func(tx pgx.Tx) error {
				rows, err := tx.Query(t.Context(), "SELECT * FROM todo ORDER BY id")
				if err != nil {
					return err
				}
				if n := len(rows.FieldDescriptions()); n != v.columns {
					t.Errorf("%s: %d columns, want %d", v.tasks, n, v.columns)
				}
				rows.Close()
				if err := rows.Err(); err != nil {
					return fmt.Errorf("SELECT *: %w", err)
				}
				for _, sql := range []string{"SELECT tasks()", "SELECT string_agg(task, ',' ORDER BY id) FROM todo WHERE id > $1::int - 100"} {
					var args []any
					if strings.Contains(sql, "$1") {
						args = append(args, 1)
					}
					var tasks string
					if err := tx.QueryRow(t.Context(), sql, args...).Scan(&tasks); err != nil || tasks != v.tasks {
						return fmt.Errorf("%s gave %s, want %s: %w", sql, tasks, v.tasks, err)
					}
				}
				return nil
			})
			if err != nil {
				t.Errorf("round %d, version %d: %v", round, i, err)
			}
		}
	}
}

// A table that was renamed goes by the name that it had, also where another has
// the name now.
func TestATableWhoseNameAnotherHasNow(t *testing.T) {
	t.Parallel()
	a := audittest.New(t, audit.Config{}, todoTable, "INSERT INTO todo VALUES (1, 'old'), (2, 'old')", "CREATE VIEW v_todo AS SELECT * FROM todo")
	a.Exec(t, "UPDATE todo SET task = 'changed' WHERE id = 1")
	then := here(t, a)
	// All in one transaction, as one does it.
	a.Exec(t, "BEGIN; ALTER TABLE todo RENAME TO todo_old; CREATE TABLE todo (id int PRIMARY KEY, task text NOT NULL, is_completed boolean NOT NULL DEFAULT false); INSERT INTO todo SELECT id + 10, task FROM todo_old; UPDATE todo_old SET task = 'left behind'; COMMIT")
	if err := a.Client.Refresh(t.Context()); err != nil {
		t.Fatal(err)
	}
	a.Exec(t, "INSERT INTO todo VALUES (20, 'new'); DELETE FROM todo_old WHERE id = 2")
	later := here(t, a)
	a.Exec(t, "DELETE FROM todo; DELETE FROM todo_old")
	wantAllWays(t, then, "todo", "1|changed|f|", "2|old|f|")
	wantAllWays(t, later, "todo", "11|changed|f|", "12|old|f|", "20|new|f|")
	wantAllWays(t, later, "todo_old", "1|left behind|f|")
	wantAllWays(t, a.Client.Now(), "todo")
	if row, err := then.Row(t.Context(), "todo", 1); err != nil || row["task"] != "changed" {
		t.Errorf("%v, %v", row, err)
	}
	if row, err := then.Row(t.Context(), "todo", 11); !errors.Is(err, audit.ErrNoRow) {
		t.Errorf("%v, %v", row, err)
	}
}
