package audit_test

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/hindsight-go/audit"
	"github.com/hindsight-go/audit/audittest"
)

// A function reads the past, by whatever way it comes to a table, or the query is
// refused.
func TestView_FunctionsInEveryNotation(t *testing.T) {
	t.Parallel()
	a := audittest.New(t, audit.Config{Tables: []string{"public.*", "s.*"}}, `CREATE SCHEMA s;
		CREATE TABLE o (id int PRIMARY KEY); INSERT INTO o VALUES (1), (2);
		CREATE TABLE s.o (id int PRIMARY KEY); INSERT INTO s.o VALUES (1);
		CREATE FUNCTION plain() RETURNS bigint LANGUAGE sql AS 'SELECT count(*) FROM o';
		CREATE FUNCTION pinned() RETURNS bigint LANGUAGE plpgsql SET search_path = public, pg_temp AS 'BEGIN RETURN plain(); END';
		CREATE FUNCTION pinned_first() RETURNS bigint LANGUAGE plpgsql SET search_path = pg_temp, public AS 'BEGIN RETURN plain(); END';
		CREATE FUNCTION elsewhere() RETURNS bigint LANGUAGE plpgsql SET search_path = s AS 'BEGIN RETURN (SELECT count(*) FROM o); END';
		CREATE FUNCTION outer_default() RETURNS bigint LANGUAGE plpgsql AS 'BEGIN RETURN with_default(); END';
		CREATE FUNCTION qualified() RETURNS bigint LANGUAGE plpgsql AS 'BEGIN RETURN (SELECT count(*) FROM public . o); END';
		CREATE FUNCTION with_default(n bigint DEFAULT qualified()) RETURNS bigint LANGUAGE sql AS 'SELECT n';
		CREATE FUNCTION comment() RETURNS bigint LANGUAGE plpgsql AS 'BEGIN RETURN qualified/* a */
		  -- b
		  (); END';
		CREATE FUNCTION present(o) RETURNS bigint LANGUAGE sql AS 'SELECT count(*) FROM public.o';
		CREATE FUNCTION attribute() RETURNS bigint LANGUAGE plpgsql AS 'BEGIN RETURN (SELECT (row(1)::public.o).present); END';
		CREATE FUNCTION step(bigint, int) RETURNS bigint LANGUAGE plpgsql AS 'BEGIN RETURN (SELECT count(*) FROM public.o); END';
		CREATE AGGREGATE steps (int) (SFUNC = step, STYPE = bigint, INITCOND = 0);
		CREATE FUNCTION plain_step(bigint, int) RETURNS bigint LANGUAGE plpgsql AS 'BEGIN RETURN (SELECT count(*) FROM o); END';
		CREATE AGGREGATE plain_steps (int) (SFUNC = plain_step, STYPE = bigint, INITCOND = 0);
		CREATE FUNCTION left_of(int, int) RETURNS bigint LANGUAGE plpgsql AS 'BEGIN RETURN (SELECT count(*) FROM public.o); END';
		CREATE OPERATOR <<<< (LEFTARG = int, RIGHTARG = int, FUNCTION = left_of);
		CREATE FUNCTION few(bigint) RETURNS boolean LANGUAGE plpgsql AS 'BEGIN RETURN (SELECT count(*) FROM public.o) = 2; END';
		CREATE DOMAIN fewer AS bigint CHECK (few(VALUE));
		CREATE FUNCTION takes(fewer) RETURNS bigint LANGUAGE plpgsql AS 'BEGIN RETURN 2; END';
		CREATE FUNCTION in_string() RETURNS text LANGUAGE sql AS $$SELECT 'FROM public.o; SET x; EXECUTE'::text$$;
		CREATE FUNCTION column_of_the_name() RETURNS bigint LANGUAGE sql AS 'SELECT 2::bigint AS o';
		CREATE FUNCTION do_it() RETURNS bigint LANGUAGE plpgsql AS $$BEGIN DO 'BEGIN PERFORM 1; END'; RETURN (SELECT count(*) FROM o); END$$;`)
	then := here(t, a)
	a.Exec(t, "INSERT INTO o VALUES (3), (4), (5); INSERT INTO s.o VALUES (2), (3)")
	a.Sync(t)
	for _, name := range []string{"plain", "pinned_first", "column_of_the_name"} {
		wantViewed(t, then, int64(2), "SELECT "+name+"()")
	}
	wantViewed(t, then, "FROM public.o; SET x; EXECUTE", "SELECT in_string()")
	for _, name := range []string{"pinned", "elsewhere", "with_default", "comment", "attribute", "outer_default", "do_it"} {
		wantViewError(t, then, "", "SELECT "+name+"()")
	}
	wantViewed(t, then, int64(2), "SELECT plain_steps(1)")
	wantViewed(t, then, int64(4), "SELECT (3 << 0) + 1::bigint")
	for _, expression := range []string{"steps(1)", "steps(1) OVER ()", "1 <<<< 2", "5::fewer", "takes(2)"} {
		wantViewError(t, then, "", "SELECT "+expression)
	}
	wantViewError(t, then, "", "SELECT qualified /* ( */ ()")
	wantViewError(t, then, "", "SELECT (row(1)::public.o).present")
	// A name of a prepared query is not the query of that text.
	err := then.View(t.Context(), func(tx pgx.Tx) error {
		const text = "SELECT qualified()"
		if _, err := tx.Prepare(t.Context(), text, "SELECT 2::bigint"); err != nil {
			return err
		}
		if n, err := scan(t.Context(), tx, text); err != nil || n != 2 {
			return fmt.Errorf("the prepared query: %d: %w", n, err)
		}
		for _, mode := range []pgx.QueryExecMode{pgx.QueryExecModeSimpleProtocol, pgx.QueryExecModeExec, pgx.QueryExecModeDescribeExec} {
			if n, err := scan(t.Context(), tx, text, mode); err == nil && n != 2 {
				return fmt.Errorf("mode %v gave %d", mode, n)
			}
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
}

// What a query would leave behind, or would do elsewhere, is refused, and the
// session is as it was before.
func TestView_EffectsAreRefused(t *testing.T) {
	t.Parallel()
	a := audittest.New(t, audit.Config{}, todoTable, "INSERT INTO todo VALUES (1, 'a')",
		"CREATE FUNCTION locks() RETURNS void LANGUAGE plpgsql AS 'BEGIN PERFORM pg_advisory_lock(7); END'")
	then := here(t, a)
	for _, sql := range []string{
		"SELECT pg_advisory_lock(7)", "SELECT locks()", "SELECT pg_try_advisory_lock(7)", "SELECT pg_terminate_backend(0)",
		"SELECT pg_create_physical_replication_slot('view_slot')", "SELECT pg_logical_emit_message(false, 'audit', '{}')",
		"SELECT lo_import('/etc/hostname')", "SELECT pg_read_file('PG_VERSION')", "SELECT pg_notify('a', 'b')", "SELECT setseed(0.5)",
		"SELECT pg_catalog.pg_advisory_lock (7)", `SELECT "pg_advisory_lock"(7)`, `SELECT U&"pg\005fadvisory_lock"(7)`,
		"SELECT txid_status(1) FROM (SELECT pg_advisory_lock(7) OFFSET 0) x", "SELECT count(*) FROM pg_logical_slot_peek_changes('x', NULL, NULL)",
	} {
		wantViewError(t, then, "effects", sql)
	}
	for _, sql := range []string{"SELECT random() < 2", "SELECT clock_timestamp() > now() - interval '1 hour'", "SELECT pg_relation_size('todo') >= 0", "SELECT count(*) > 0 FROM pg_settings", "SELECT count(*) > 0 FROM pg_stat_activity"} {
		wantViewed(t, then, true, sql)
	}
	if n := audittest.Value[int64](t, a.Database, "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND objid = 7"); n != 0 {
		t.Errorf("%d locks are left", n)
	}
}

// Code of another role does not run with the rights of who reads the past.
func TestPast_CodeOfOtherOwners(t *testing.T) {
	t.Parallel()
	a := audittest.New(t, audit.Config{Tables: []string{"public.*"}}, "CREATE TABLE taken (id int)")
	role := newRole(t, a.Database, "")
	a.Exec(t, fmt.Sprintf(`GRANT CREATE ON SCHEMA public TO %s; SET ROLE %[1]s;
		CREATE FUNCTION hostile(int) RETURNS int IMMUTABLE LANGUAGE plpgsql AS $$BEGIN EXECUTE 'ALTER ROLE %[1]s SUPERUSER'; RETURN $1; EXCEPTION WHEN OTHERS THEN RETURN $1; END$$;
		CREATE FUNCTION checks(text) RETURNS boolean LANGUAGE sql AS 'SELECT true';
		CREATE DOMAIN checked AS text CHECK (checks(VALUE));
		CREATE FUNCTION seizes(text) RETURNS boolean LANGUAGE plpgsql AS $$BEGIN EXECUTE 'ALTER ROLE %[1]s SUPERUSER'; RETURN true; EXCEPTION WHEN OTHERS THEN RETURN true; END$$;
		CREATE DOMAIN seizing AS text CHECK (seizes(VALUE));
		CREATE TYPE pair AS (a int, b seizing);
		CREATE DOMAIN seizing_n AS int CHECK (seizes(VALUE::text));
		CREATE TABLE keyed (id seizing_n PRIMARY KEY, n int); INSERT INTO keyed VALUES (1, 1), (2, 2);
		CREATE TABLE paired (id int PRIMARY KEY, p pair, l seizing[]); INSERT INTO paired VALUES (1, '(1,x)', '{x}'), (2, NULL, NULL);
		CREATE TABLE mine (id int PRIMARY KEY, note checked, twice int GENERATED ALWAYS AS (hostile(id)) STORED);
		CREATE INDEX ON mine (hostile(id));
		INSERT INTO mine VALUES (1, 'a'), (2, 'b');
		CREATE FUNCTION theirs() RETURNS bigint LANGUAGE sql AS 'SELECT count(*) FROM mine'; RESET ROLE;
		REVOKE CREATE ON SCHEMA public FROM %[1]s`, role))
	if err := a.Client.Refresh(t.Context()); err != nil {
		t.Fatal(err)
	}
	then := here(t, a)
	a.Exec(t, "SET ROLE "+role+"; UPDATE mine SET note = 'c'; UPDATE paired SET id = id + 10; UPDATE keyed SET n = 10; RESET ROLE")
	a.Sync(t)
	super := func(t *testing.T) {
		t.Helper()
		if audittest.Value[bool](t, a.Database, "SELECT rolsuper FROM pg_roles WHERE rolname = $1", role) {
			t.Fatal("the owner of the table is a superuser now")
		}
	}
	super(t)
	for _, table := range []string{"mine", "keyed", "paired"} {
		for method, ask := range terminals(then, table) {
			if err := ask(t.Context()); err != nil && !errors.Is(err, audit.ErrUntrusted) {
				t.Errorf("%s of %s: %v", method, table, err)
			}
			super(t)
		}
	}
	wantViewError(t, then, "TrustOwners", "SELECT theirs()")
	wantViewError(t, then, "TrustOwners", "SELECT hostile(1)")
	super(t)
	n, err := then.Columns("id", "note").Table("mine").Where("note = 'b'").Count(t.Context())
	if err != nil || n != 1 {
		t.Errorf("without the generated column: %d: %v", n, err)
	}
	trusting, err := audit.Open(t.Context(), audit.Config{SourceURL: a.URL(), TrustOwners: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(trusting.Close)
	a.Exec(t, "CREATE OR REPLACE FUNCTION hostile(int) RETURNS int IMMUTABLE LANGUAGE sql AS 'SELECT $1'")
	wantViewed(t, trusting.AtPosition(must(then.Resolve(t.Context())).Position), int64(2), "SELECT theirs()")
}

// Functions made at random of bodies, callees, paths and notations give what they
// gave at the moment, or are refused.
func TestView_RandomFunctions(t *testing.T) {
	t.Parallel()
	setup := []string{`CREATE SCHEMA s; CREATE TABLE a (id int PRIMARY KEY); CREATE TABLE s.b (id int PRIMARY KEY); CREATE TABLE s.a (id int PRIMARY KEY); CREATE TABLE c (id int);
		INSERT INTO a VALUES (1); INSERT INTO s.b VALUES (1), (2); INSERT INTO s.a VALUES (1), (2), (3), (4); INSERT INTO c SELECT generate_series(1, 8);
		CREATE VIEW v AS SELECT * FROM a; CREATE VIEW s.v AS SELECT * FROM s.b`}
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	pick := func(of ...string) string { return of[random.IntN(len(of))] }
	var names []string
	for i := range 60 {
		name := fmt.Sprintf("f%d", i)
		from := pick("a", "public.a", "s.b", "b", `"a"`, "s.a", "c", "public.c", "v", "s.v", "ONLY a", "(SELECT id FROM a) x", `U&"\0061"`, "pg_temp.a")
		body := "SELECT count(*) FROM " + from
		if len(names) > 0 && random.IntN(2) == 0 {
			body = "SELECT " + pick(names...) + pick("()", " ()", "/* x */()", "--\n()") + " + (" + body + ")"
		}
		path := pick("", "", "SET search_path = public", "SET search_path = public, pg_temp", "SET search_path = s, public", "SET search_path = pg_temp, s, public", "SET search_path = ''")
		switch random.IntN(4) {
		case 0:
			setup = append(setup, fmt.Sprintf("SET check_function_bodies = off; CREATE FUNCTION %s(n bigint DEFAULT (%s)) RETURNS bigint LANGUAGE sql %s AS 'SELECT n'", name, pick("1", "f0()"), path))
		case 1:
			setup = append(setup, fmt.Sprintf("SET check_function_bodies = off; CREATE FUNCTION %s() RETURNS bigint STABLE LANGUAGE sql %s AS $$%s$$", name, path, body))
		default:
			if i == 0 {
				body = "SELECT count(*) FROM public.a"
			}
			setup = append(setup, fmt.Sprintf("SET check_function_bodies = off; CREATE FUNCTION %s() RETURNS bigint LANGUAGE plpgsql %s AS $$BEGIN RETURN (%s); END$$", name, path, body))
		}
		if i == 0 && !strings.Contains(setup[len(setup)-1], "plpgsql") {
			setup[len(setup)-1] = "CREATE FUNCTION f0() RETURNS bigint LANGUAGE plpgsql AS 'BEGIN RETURN (SELECT count(*) FROM public.a); END'"
		}
		names = append(names, name)
	}
	a := audittest.New(t, audit.Config{Tables: []string{"public.*", "s.*"}}, setup...)
	then := here(t, a)
	want := make(map[string]int64)
	conn := a.Connect(t)
	for _, name := range names {
		if n, err := scan(t.Context(), conn, "SELECT "+name+"()"); err == nil {
			want[name] = n
		}
	}
	a.Exec(t, "INSERT INTO a SELECT generate_series(100, 115); INSERT INTO s.b SELECT generate_series(100, 131); INSERT INTO s.a SELECT generate_series(100, 163); INSERT INTO c SELECT generate_series(100, 227)")
	a.Sync(t)
	answered := 0
	for _, name := range names {
		n, err := viewed[int64](t.Context(), then, "SELECT "+name+"()")
		if w, ok := want[name]; err == nil && ok && n != w {
			t.Errorf("%s gave %d, want %d:\n%s", name, n, w, audittest.Value[string](t, a.Database, "SELECT pg_get_functiondef($1::regproc)", name))
		}
		if err == nil {
			answered++
		}
	}
	if answered == 0 {
		t.Error("none was answered")
	}
	t.Logf("%d of %d answered", answered, len(names))
}
