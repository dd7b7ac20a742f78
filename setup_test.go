package audit_test

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5"

	"github.com/hindsight-go/audit"
	"github.com/hindsight-go/audit/audittest"
	"github.com/hindsight-go/audit/capture"
	"github.com/hindsight-go/audit/internal/faulttest"
)

// setupTables are tables of every kind of replica identity, quoted names and
// partitions, as an application may have them before it meets this package.
const setupTables = `
CREATE TABLE todo (id int PRIMARY KEY, task text);
CREATE TABLE bare (n int);
CREATE TABLE nothing (id int PRIMARY KEY); ALTER TABLE nothing REPLICA IDENTITY NOTHING;
CREATE TABLE indexed (id int PRIMARY KEY, code text NOT NULL); CREATE UNIQUE INDEX "Odd index" ON indexed (code);
ALTER TABLE indexed REPLICA IDENTITY USING INDEX "Odd index";
CREATE TABLE full_already (id int PRIMARY KEY); ALTER TABLE full_already REPLICA IDENTITY FULL;
CREATE TABLE "Odd.Name ""x""" (id int PRIMARY KEY);
CREATE TABLE parted (id int, day date, PRIMARY KEY (id, day)) PARTITION BY RANGE (day);
CREATE TABLE parted_1 PARTITION OF parted FOR VALUES FROM ('2024-01-01') TO ('2025-01-01');
CREATE TABLE parted_bare (id int) PARTITION BY LIST (id);
CREATE TABLE parted_bare_1 PARTITION OF parted_bare FOR VALUES IN (1);
ALTER TABLE parted_bare_1 REPLICA IDENTITY NOTHING;
CREATE UNLOGGED TABLE unlogged (id int PRIMARY KEY)`

// writeSetupTables changes something in every table, as the application does.
const writeSetupTables = `
INSERT INTO todo VALUES (1, 'x'); UPDATE todo SET task = 'y';
INSERT INTO bare VALUES (1); UPDATE bare SET n = 2; DELETE FROM bare;
INSERT INTO nothing VALUES (1); UPDATE nothing SET id = 2;
INSERT INTO indexed VALUES (1, 'a'); UPDATE indexed SET code = 'b'; DELETE FROM indexed;
INSERT INTO full_already VALUES (1); UPDATE full_already SET id = 2;
INSERT INTO "Odd.Name ""x""" VALUES (1); UPDATE "Odd.Name ""x""" SET id = 2;
INSERT INTO parted VALUES (1, '2024-05-05'); UPDATE parted SET id = 2; DELETE FROM parted;
INSERT INTO parted_bare VALUES (1); UPDATE parted_bare SET id = 1; DELETE FROM parted_bare;
INSERT INTO unlogged VALUES (1); UPDATE unlogged SET id = 2`

// client opens a client that the test closes.
func openClient(t *testing.T, cfg audit.Config) *audit.Client {
	t.Helper()
	client, err := audit.Open(t.Context(), cfg)
	if err != nil {
		t.Fatalf("open client: %v", err)
	}
	t.Cleanup(client.Close)
	return client
}

// serverProgram finds a program of PostgreSQL's: beside the server's binaries, or
// on PATH. It returns an empty path if there is none.
func serverProgram(db *audittest.Database, name string) string {
	if bin := db.Server().BinDir(); bin != "" {
		// postgres may be a link into the directory where the others are.
		if server, err := filepath.EvalSymlinks(filepath.Join(bin, "postgres")); err == nil {
			bin = filepath.Dir(server)
		}
		if path, err := exec.LookPath(filepath.Join(bin, name)); err == nil {
			return path
		}
	}
	path, err := exec.LookPath(name)
	if err != nil {
		return ""
	}
	return path
}

// dump returns the schema of a database as pg_dump writes it. Where there is no
// pg_dump that is new enough, the catalog has to do.
func dump(t *testing.T, db *audittest.Database) string {
	t.Helper()
	catalog := strings.Join(faulttest.Catalog(t, db.URL()), "\n")
	path := serverProgram(db, "pg_dump")
	if path == "" {
		return catalog
	}
	out, err := exec.CommandContext(t.Context(), path, "--schema-only", "--dbname="+db.URL()).CombinedOutput() //nolint:gosec // It is pg_dump.
	if err != nil {
		if strings.Contains(string(out), "server version mismatch") {
			return catalog
		}
		t.Fatalf("pg_dump: %v: %s", err, out)
	}
	// Since the releases of August 2025 a dump has a random key in it.
	lines := slices.DeleteFunc(strings.Split(string(out), "\n"), func(line string) bool {
		return strings.HasPrefix(line, `\restrict`) || strings.HasPrefix(line, `\unrestrict`)
	})
	return strings.Join(lines, "\n")
}

// runScript runs a script as psql does, which commits after each statement; here
// it is after each paragraph.
func runScript(t *testing.T, db *audittest.Database, script string) {
	t.Helper()
	for n, paragraph := range strings.Split(script, "\n\n-- ") {
		if n > 0 {
			paragraph = "-- " + paragraph
		}
		db.Exec(t, paragraph)
	}
}

// A schema that a DBA has made for the store, with rights on it, is his.
func TestSchemaMadeByTheDBAIsUsed(t *testing.T) {
	t.Parallel()
	source, other := audittest.NewDatabase(t), audittest.NewDatabase(t)
	source.Exec(t, gapTable)
	other.Exec(t, "DO $$ BEGIN CREATE ROLE history_keeper LOGIN; EXCEPTION WHEN duplicate_object THEN END $$; REVOKE CREATE ON DATABASE \""+other.Name()+"\" FROM PUBLIC; CREATE SCHEMA hist AUTHORIZATION history_keeper")
	a := audittest.Open(t, source, audit.Config{StoreURL: asRole(t, other, "history_keeper"), Schema: "hist"})
	mustStart(t, a)
	source.Exec(t, "INSERT INTO todo VALUES (1, 'x')")
	a.Sync(t)
	if n := audittest.Value[int](t, other, "SELECT count(*) FROM hist.changes"); n != 1 {
		t.Errorf("history has %d changes, want 1", n)
	}
}

// newRole makes a role that may log in and nothing else. Roles belong to the
// whole server.
func newRole(t *testing.T, db *audittest.Database, options string) string {
	t.Helper()
	role := "r_" + db.Name()
	db.Exec(t, fmt.Sprintf("CREATE ROLE %s LOGIN %s; GRANT USAGE ON SCHEMA public TO %[1]s; REVOKE CREATE ON SCHEMA public FROM PUBLIC", role, options))
	t.Cleanup(func() { db.Exec(t, fmt.Sprintf("DROP OWNED BY %s; DROP ROLE %[1]s", role)) })
	return role
}

// A DBA runs the script once; the program's role then needs neither the tables
// nor any right but to replicate and to own its history.
func TestSetupSQLLetsAPlainRoleCapture(t *testing.T) {
	t.Parallel()
	server := audittest.NewServer(t, audittest.ServerOptions{})
	for _, ownStore := range []bool{false, true} {
		t.Run(fmt.Sprintf("store of its own %t", ownStore), func(t *testing.T) {
			t.Parallel()
			db := server.NewDatabase(t)
			history := db
			db.Exec(t, setupTables)
			role := newRole(t, db, "")
			cfg := audit.Config{SourceURL: asRole(t, db, role), Tables: []string{"public.*"}}
			if ownStore {
				history = server.NewDatabase(t)
				cfg.StoreURL = asRole(t, history, role)
				t.Cleanup(func() { history.Exec(t, "DROP OWNED BY "+role) })
			}
			client := openClient(t, cfg)
			before := faulttest.Catalog(t, db.URL())
			script, err := client.SetupSQL(t.Context(), role)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(before, faulttest.Catalog(t, db.URL())); diff != "" {
				t.Errorf("SetupSQL changed something (-before +after):\n%s", diff)
			}
			if ownStore {
				// The script is for two databases, and says where the second begins.
				source, rest, found := strings.Cut(script, "\n-- The store, in the store's database")
				if !found {
					t.Fatalf("the script does not say where the store's part begins:\n%s", script)
				}
				runScript(t, db, source)
				runScript(t, history, "--"+rest)
			} else {
				runScript(t, db, script)
			}
			if err := client.Start(t.Context()); err != nil {
				t.Fatalf("start as a plain role: %v\nafter the script:\n%s", err, script)
			}
			db.Exec(t, writeSetupTables)
			if err := client.Sync(t.Context()); err != nil {
				t.Fatal(err)
			}
			want := map[string]int{"todo": 2, "bare": 3, "nothing": 2, "indexed": 3, "full_already": 2, `Odd.Name "x"`: 2, "parted": 3, "parted_bare": 3}
			for table, n := range want {
				if got := len(keysOrNone(t, history, table)); got != n {
					t.Errorf("table %s has %d changes in history, want %d", table, got, n)
				}
			}
			if n := audittest.Value[int](t, history, "SELECT count(*) FROM audit.changes WHERE defect IS NOT NULL"); n != 0 {
				t.Errorf("%d changes have a defect", n)
			}
			// A later start finds all there.
			if err := client.Stop(t.Context()); err != nil {
				t.Fatal(err)
			}
			if err := client.Start(t.Context()); err != nil {
				t.Fatalf("start again: %v", err)
			}
			if err := client.Stop(t.Context()); err != nil {
				t.Fatal(err)
			}
		})
	}
}

// keysOrNone returns the keys of a table's changes, "" for those without one.
func keysOrNone(t *testing.T, db *audittest.Database, table string) []string {
	t.Helper()
	return audittest.Value[[]string](t, db, `
		SELECT coalesce(array_agg(coalesce(primary_key, '') ORDER BY position, sequence), '{}') FROM audit.changes WHERE "table" = $1`, table)
}

// The error of Start lists what a DBA has to run; run as it stands, it is enough.
func TestSetupErrorsSQLIsEnough(t *testing.T) {
	t.Parallel()
	for name, prepare := range map[string]string{
		"nothing is there":                         "SELECT 1",
		"the publication is there and not ours":    "CREATE PUBLICATION audit",
		"some tables are published already":        "CREATE PUBLICATION audit FOR TABLE todo; ALTER TABLE bare REPLICA IDENTITY FULL",
		"the publication has options of its own":   "CREATE PUBLICATION audit FOR TABLE todo WITH (publish = 'insert')",
		"the role may make a publication, no more": "GRANT CREATE ON DATABASE %[2]s TO %[1]s",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			db := audittest.NewDatabase(t)
			db.Exec(t, setupTables)
			role := newRole(t, db, "")
			if strings.Contains(prepare, "%") {
				prepare = fmt.Sprintf(prepare, role, db.Name())
			}
			db.Exec(t, prepare)
			client := openClient(t, audit.Config{SourceURL: asRole(t, db, role)})
			var missing *capture.SetupError
			if err := client.Start(t.Context()); !errors.As(err, &missing) {
				t.Fatalf("Start returned %v, want a *SetupError", err)
			}
			for _, want := range []string{"may not use replication slots", `"todo"`, `"bare"`, `"indexed"`, `"parted"`, `"parted_bare"`} {
				if want == `"todo"` && strings.HasPrefix(name, "some") {
					continue
				}
				if !strings.Contains(missing.Error(), want) {
					t.Errorf("the error does not name %s:\n%v", want, missing)
				}
			}
			script := missing.SQL()
			db.Exec(t, script)
			if err := client.Start(t.Context()); err != nil {
				t.Fatalf("Start after the script: %v\nthe script was:\n%s", err, script)
			}
			db.Exec(t, writeSetupTables)
			if err := client.Sync(t.Context()); err != nil {
				t.Fatal(err)
			}
			if n := audittest.Value[int](t, db, "SELECT count(*) FROM audit.changes"); n != 20 {
				t.Errorf("history has %d changes, want 20", n)
			}
			if err := client.Stop(t.Context()); err != nil {
				t.Fatal(err)
			}
		})
	}
}

// Many instances start at once on an empty database.
func TestManyInstancesStartAtOnce(t *testing.T) {
	t.Parallel()
	db := audittest.NewDatabase(t)
	db.Exec(t, setupTables)
	var wg sync.WaitGroup
	clients := make([]*audittest.Audited, 8)
	for n := range clients {
		clients[n] = audittest.Open(t, db, audit.Config{})
	}
	for _, a := range clients {
		wg.Go(func() {
			if err := a.Client.Start(context.WithoutCancel(t.Context())); err != nil {
				t.Errorf("start: %v", err)
			}
		})
	}
	wg.Wait()
	t.Cleanup(func() {
		for _, a := range clients {
			a.Stop(t)
		}
	})
	db.Exec(t, writeSetupTables)
	streaming := 0
	for _, a := range clients {
		a.Sync(t)
		if s := statusOf(t, a); s.State == capture.Streaming {
			streaming++
		} else if s.State != capture.Waiting && s.State != capture.Starting {
			t.Errorf("an instance is %s: %v", s.State, s.Err)
		}
	}
	if streaming != 1 {
		t.Errorf("%d instances stream, want 1", streaming)
	}
	if n := audittest.Value[int](t, db, "SELECT count(*) FROM audit.changes"); n != 20 {
		t.Errorf("history has %d changes, want 20", n)
	}
	if n := audittest.Value[int](t, db, "SELECT count(*) FROM audit.coverage"); n != 8 {
		t.Errorf("coverage has %d stays, want 8", n)
	}
	clients[0].Check(t)
}

// Everything the package runs has to be independent of what the role, the
// database and their owners have set.
func TestHostileSettingsOfRoleAndDatabase(t *testing.T) {
	ownStore(t, "the roles are made in a session of the hostile settings")
	t.Parallel()
	db := audittest.NewDatabase(t)
	db.Exec(t, gapTable+"; CREATE TABLE odd (id int PRIMARY KEY, at timestamptz, amount float8, raw bytea, wait interval)")
	// Functions and operators that would be found first.
	db.Exec(t, `CREATE SCHEMA trap;
		CREATE FUNCTION trap.coalesce_trap() RETURNS int LANGUAGE sql AS 'SELECT 1';
		CREATE FUNCTION trap.now() RETURNS timestamptz LANGUAGE sql AS $$SELECT '1999-01-01'::timestamptz$$;
		CREATE FUNCTION trap.current_setting(text) RETURNS text LANGUAGE sql AS $$SELECT '1'::text$$;
		CREATE TABLE trap.pg_class (oid int); CREATE TABLE trap.pg_publication (pubname text)`)
	for _, setting := range []string{
		"search_path = trap, pg_catalog, public", "timezone = 'Asia/Tokyo'", "datestyle = 'SQL, DMY'", "intervalstyle = 'iso_8601'", "extra_float_digits = -10",
		"bytea_output = 'escape'", "statement_timeout = '3s'", "idle_in_transaction_session_timeout = '2s'",
		"default_transaction_isolation = 'serializable'", "default_transaction_read_only = on", "standard_conforming_strings = off", "client_encoding = 'LATIN1'", "synchronous_commit = off",
		"row_security = off", "lock_timeout = '1ms'", "quote_all_identifiers = on", "default_tablespace = ''", "check_function_bodies = off",
	} {
		db.Exec(t, "ALTER DATABASE "+pgx.Identifier{db.Name()}.Sanitize()+" SET "+setting)
	}
	a := audittest.Open(t, db, audit.Config{Tables: []string{"public.*"}})
	mustStart(t, a)
	conn := db.Connect(t)
	for _, sql := range []string{
		// Each on its own: the first ones change how the last is read.
		"SET default_transaction_read_only = off", "SET standard_conforming_strings = on", "SET search_path = public", "SET lock_timeout = 0",
		`INSERT INTO odd VALUES (1, '2024-05-06 07:08:09.123456+00', 0.1::float8 + 0.2, '\x00ff', '1 year 2 days 3 hours')`,
	} {
		if _, err := conn.Exec(t.Context(), sql); err != nil {
			t.Fatal(err)
		}
	}
	a.Sync(t)
	got := audittest.Value[string](t, db, `SELECT after::text FROM audit.changes WHERE "table" = 'odd'`)
	want := `{"at": "2024-05-06 07:08:09.123456+00", "id": 1, "raw": "\\x00ff", "wait": "1 year 2 days 03:00:00", "amount": 0.30000000000000004}`
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("the image (-want +got):\n%s", diff)
	}
	a.Stop(t)
	if err := a.Client.Uninstall(t.Context()); err != nil {
		t.Errorf("uninstall: %v", err)
	}
}
