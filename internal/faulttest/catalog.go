package faulttest

import (
	"context"
	"testing"

	"github.com/jackc/pgx/v5"
)

// Connect opens a session on a database, and closes it when the test ends.
func Connect(t testing.TB, url string) *pgx.Conn {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), url)
	if err != nil {
		t.Fatalf("connect: %v", err)
	}
	t.Cleanup(func() { _ = conn.Close(context.WithoutCancel(t.Context())) })
	return conn
}

// Catalog returns everything in a database that setting capture up could leave
// behind, a line for each thing: schemas and who may do what with them,
// relations with their replica identity and rights, functions, publications and
// their tables, slots, event triggers, types, comments and settings.
func Catalog(t testing.TB, url string) []string {
	t.Helper()
	conn := Connect(t, url)
	rows, err := conn.Query(t.Context(), `
		SELECT format('schema %s owner %s acl %s', nspname, pg_get_userbyid(nspowner), coalesce(nspacl, acldefault('n', nspowner)))
		FROM pg_namespace WHERE nspname !~ '^pg_' AND nspname <> 'information_schema'
		UNION ALL
		SELECT format('relation %s.%s kind %s identity %s owner %s acl %s options %s rls %s', n.nspname, c.relname, c.relkind,
			CASE c.relreplident WHEN 'i' THEN 'index ' || (SELECT indexrelid::regclass FROM pg_index WHERE indrelid = c.oid AND indisreplident) ELSE c.relreplident::text END,
			pg_get_userbyid(c.relowner), coalesce(c.relacl, acldefault(CASE c.relkind WHEN 'S' THEN 's'::"char" ELSE 'r' END, c.relowner)), c.reloptions, c.relrowsecurity)
		FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE n.nspname !~ '^pg_' AND n.nspname <> 'information_schema'
		UNION ALL
		SELECT format('column %s.%s %s', a.attrelid::regclass, a.attname, format_type(a.atttypid, a.atttypmod))
		FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid JOIN pg_namespace n ON n.oid = c.relnamespace
		WHERE n.nspname !~ '^pg_' AND n.nspname <> 'information_schema' AND a.attnum > 0 AND NOT a.attisdropped
		UNION ALL
		SELECT format('function %s.%s', n.nspname, p.oid::regprocedure)
		FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace WHERE n.nspname !~ '^pg_' AND n.nspname <> 'information_schema'
		UNION ALL
		SELECT format('trigger %s on %s', tgname, tgrelid::regclass) FROM pg_trigger WHERE NOT tgisinternal
		UNION ALL
		SELECT format('event trigger %s', evtname) FROM pg_event_trigger
		UNION ALL
		SELECT format('publication %s', pubname) FROM pg_publication
		UNION ALL
		SELECT format('publication %s of %s.%s', pubname, schemaname, tablename) FROM pg_publication_tables
		UNION ALL
		SELECT format('slot %s', slot_name) FROM pg_replication_slots WHERE database = current_database()
		UNION ALL
		SELECT format('extension %s', extname) FROM pg_extension
		UNION ALL
		SELECT format('setting %s %s %s', d.datname, s.setrole::regrole, s.setconfig)
		FROM pg_db_role_setting s JOIN pg_database d ON d.oid = s.setdatabase WHERE d.datname = current_database()
		UNION ALL
		SELECT format('default privileges %s %s %s', pg_get_userbyid(defaclrole), defaclobjtype, defaclacl) FROM pg_default_acl
		UNION ALL
		SELECT format('comment on %s: %s', coalesce(objoid::regclass::text, ''), description)
		FROM pg_description WHERE classoid = 'pg_class'::regclass AND objoid > 16383
		ORDER BY 1`)
	if err != nil {
		t.Fatalf("read catalog: %v", err)
	}
	lines, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		t.Fatalf("read catalog: %v", err)
	}
	return lines
}
