package audit_test

import (
	"context"
	"errors"
	"strings"
	"testing"

	"github.com/hindsight-go/audit"
	"github.com/hindsight-go/audit/audittest"
	"github.com/hindsight-go/audit/internal/faulttest"
)

// tenant makes a role that may make schemas and tables, and returns what begins a
// session that acts as it.
func tenant(t *testing.T, db *audittest.Database) func() func(sql string) {
	t.Helper()
	role := "tenant_" + db.Name()
	db.Exec(t, "CREATE ROLE "+role)
	t.Cleanup(func() { db.Exec(t, "DROP OWNED BY "+role+" CASCADE; DROP ROLE "+role) })
	db.Exec(t, "GRANT CREATE ON DATABASE "+db.Name()+" TO "+role+"; GRANT CREATE ON SCHEMA public TO "+role)
	return func() func(sql string) {
		conn := db.Connect(t)
		if _, err := conn.Exec(t.Context(), "SET ROLE "+role); err != nil {
			t.Fatal(err)
		}
		return func(sql string) {
			t.Helper()
			if _, err := conn.Exec(t.Context(), sql); err != nil {
				t.Fatalf("%s: %v", sql, err)
			}
		}
	}
}

// Whoever owns the schema of the trigger's function could put code of his own there,
// which the next superuser who alters anything would run.
func TestTrace_SchemaOfAStranger(t *testing.T) {
	t.Parallel()
	db := audittest.NewDatabase(t)
	db.Exec(t, todoTable)
	as := tenant(t, db)()
	as("CREATE SCHEMA audit_ddl")
	as("CREATE FUNCTION audit_ddl.trace_ddl() RETURNS event_trigger LANGUAGE plpgsql AS 'BEGIN END'")
	a := audittest.Open(t, db, audit.Config{})
	mustStart(t, a)
	if n := audittest.Value[int](t, db, "SELECT count(*)::int FROM pg_event_trigger"); n != 0 {
		t.Errorf("%d event triggers run a stranger's function", n)
	}
	script, err := a.Client.SetupSQL(t.Context(), "postgres")
	if err != nil {
		t.Fatal(err)
	}
	_, script, _ = strings.Cut(script, "-- Optional")
	if _, err := db.Connect(t).Exec(t.Context(), "-- Optional"+script); err == nil || !strings.Contains(err.Error(), "no superuser") {
		t.Errorf("the script of a DBA: %v", err)
	}
}

// Temporary tables come before the catalog unless a search_path says otherwise.
func TestTrace_TemporaryCatalogRunsNothing(t *testing.T) {
	t.Parallel()
	db := audittest.NewDatabase(t)
	db.Exec(t, todoTable+"; CREATE TABLE seen (who text); GRANT ALL ON seen TO PUBLIC")
	a := audittest.Open(t, db, audit.Config{})
	mustStart(t, a)
	if n := audittest.Value[int](t, db, "SELECT count(*)::int FROM pg_event_trigger"); n != 3 {
		t.Fatalf("%d event triggers", n)
	}
	session := tenant(t, db)
	as := session()
	as(`CREATE FUNCTION public.tell(oid) RETURNS oid LANGUAGE plpgsql AS $$ BEGIN INSERT INTO public.seen VALUES (current_user); RETURN $1; END $$`)
	as("CREATE TABLE public.own (id int PRIMARY KEY)")
	as = session() // which has no plans yet
	as("CREATE TEMP TABLE ddl_token AS SELECT 'known'::text AS token")
	as("CREATE TEMP VIEW pg_inherits AS SELECT public.tell(inhrelid) AS inhrelid, inhparent FROM (SELECT * FROM pg_catalog.pg_inherits UNION ALL SELECT 'public.own'::regclass, 'public.own'::regclass, 1, false) i")
	as("ALTER TABLE public.own ADD COLUMN v int")
	if who := audittest.Value[string](t, db, "SELECT coalesce(string_agg(DISTINCT who, ','), '') FROM seen"); who != "" {
		t.Errorf("code of a tenant ran as %s", who)
	}
}

// A message that does not know the token says nothing about a table.
func TestTrace_ForgedStructure(t *testing.T) {
	t.Parallel()
	db := audittest.NewDatabase(t)
	db.Exec(t, todoTable+"; INSERT INTO todo VALUES (1, 'one')")
	a := audittest.Open(t, db, audit.Config{})
	mustStart(t, a)
	then := here(t, a)
	db.Exec(t, "UPDATE todo SET task = 'uno'")
	conn := db.Connect(t)
	for _, token := range []string{"", "x"} {
		for _, dropped := range []string{"true", "false"} {
			if _, err := conn.Exec(t.Context(), `SELECT pg_logical_emit_message(true, prefix, json_build_object('token', $1::text, 'table',
				json_build_object('oid', 'todo'::regclass::oid::bigint, 'schema', 'public', 'table', 'todo', 'dropped', $2::text = 'true'))::text)
				FROM unnest(ARRAY['audit_ddl', '_bemi_ddl']) prefix`, token, dropped); err != nil {
				t.Fatal(err)
			}
		}
	}
	for _, content := range []string{"", "{", `{"table": {}}`, `{"table": null}`, `[]`, "null"} {
		if _, err := conn.Exec(t.Context(), "SELECT pg_logical_emit_message(true, prefix, $1) FROM unnest(ARRAY['audit_ddl', '_bemi_ddl']) prefix", content); err != nil {
			t.Fatal(err)
		}
	}
	db.Exec(t, "UPDATE todo SET task = 'eins'")
	for want, point := range map[string]audit.Point{"one": then, "eins": here(t, a)} {
		row, err := point.Row(t.Context(), "todo", 1)
		if err != nil || row["task"] != want {
			t.Errorf("%s: %v, %v, want %s", point, row, err, want)
		}
	}
}

// The trigger's function cannot fail what fires it, whatever was done to it.
func TestTrace_NeverFailsDDL(t *testing.T) {
	t.Parallel()
	for name, harm := range map[string]string{
		"no token":        "DELETE FROM audit_ddl.ddl_token",
		"several tokens":  "INSERT INTO audit_ddl.ddl_token VALUES ('x'), ('y')",
		"no token table":  "DROP TABLE audit_ddl.ddl_token",
		"another's table": "ALTER TABLE audit_ddl.ddl_token RENAME token TO word",
		"no members":      "DROP TABLE audit_ddl.ddl_members",
		"no publication":  "DROP PUBLICATION audit",
		"history is gone": "DROP SCHEMA audit CASCADE",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			db := audittest.NewDatabase(t)
			db.Exec(t, todoTable+"; "+partedTable)
			a := audittest.Open(t, db, audit.Config{})
			mustStart(t, a)
			a.Stop(t)
			db.Exec(t, harm)
			for _, sql := range []string{
				"ALTER TABLE todo ADD COLUMN note text", "CREATE TABLE other (id int PRIMARY KEY, parent int)", "ALTER TABLE todo RENAME TO done",
				"ALTER TABLE done RENAME COLUMN task TO name", "CREATE TYPE mood AS ENUM ('good')", "CREATE TEMP TABLE temporary (id int)",
				"CREATE TABLE parted_2 PARTITION OF parted DEFAULT", "INSERT INTO parted VALUES (11, 'x')", "UPDATE parted SET v = 'y'", "ALTER TABLE parted DETACH PARTITION parted_2", "DROP TABLE parted_2", "DROP TABLE other", "DROP TYPE mood",
			} {
				db.Exec(t, sql)
			}
		})
	}
}

// A look into a partition that was attached runs no policy of whoever owns it.
func TestLook_RunsNoPolicyOfAStranger(t *testing.T) {
	t.Parallel()
	db := audittest.NewServer(t, audittest.ServerOptions{}).NewDatabase(t)
	role := newRole(t, db, "REPLICATION")
	db.Exec(t, `CREATE TABLE seen (who text); GRANT ALL ON seen TO PUBLIC;
		CREATE TABLE parted (id int PRIMARY KEY, v int) PARTITION BY RANGE (id);
		CREATE TABLE parted_1 PARTITION OF parted FOR VALUES FROM (0) TO (100);
		GRANT CREATE ON DATABASE `+db.Name()+" TO "+role+"; ALTER TABLE parted OWNER TO "+role+"; ALTER TABLE parted_1 OWNER TO "+role)
	client := openClient(t, audit.Config{SourceURL: asRole(t, db, role), Tables: []string{"public.parted"}, RefreshInterval: -1})
	if err := client.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = client.Stop(context.WithoutCancel(t.Context())) })
	as := tenant(t, db)()
	as("CREATE TABLE public.own (id int PRIMARY KEY, v int)")
	as(`CREATE FUNCTION public.tell() RETURNS bool LANGUAGE plpgsql AS $$ BEGIN INSERT INTO public.seen VALUES (current_user); RETURN true; END $$`)
	as("INSERT INTO public.own VALUES (101, 1)")
	as("ALTER TABLE public.own ENABLE ROW LEVEL SECURITY")
	as("ALTER TABLE public.own REPLICA IDENTITY FULL")
	as("CREATE POLICY p ON public.own USING (public.tell())")
	as("GRANT SELECT ON public.own TO " + role)
	db.Exec(t, "DELETE FROM seen; ALTER TABLE parted ATTACH PARTITION own FOR VALUES FROM (100) TO (200); ALTER PUBLICATION audit ADD TABLE own")
	faulttest.Poll(t, faulttest.Patience, "the partition is looked at", func() error {
		if err := client.Refresh(t.Context()); err != nil {
			return err
		}
		if audittest.Value[int](t, db, "SELECT count(*)::int FROM audit.relations WHERE \"table\" = 'parted' AND attached") == 0 {
			return errors.New("nobody did")
		}
		return nil
	})
	if who := audittest.Value[string](t, db, "SELECT coalesce(string_agg(DISTINCT who, ','), '') FROM seen"); who != "" {
		t.Errorf("code of a tenant ran as %s", who)
	}
}
