package audit_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/hindsight-go/audit"
	"github.com/hindsight-go/audit/audittest"
	"github.com/hindsight-go/audit/capture"
	"github.com/hindsight-go/audit/internal/faulttest"
	"github.com/hindsight-go/audit/store"
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

// Uninstall takes away everything, and puts everything back.
func TestUninstallLeavesNoTrace(t *testing.T) {
	ownStore(t, "it drops the store")
	t.Parallel()
	for name, remove := range map[string]func(t *testing.T, a *audittest.Audited){
		"Uninstall": func(t *testing.T, a *audittest.Audited) {
			t.Helper()
			if err := a.Client.Uninstall(t.Context()); err != nil {
				t.Fatal(err)
			}
		},
		"UninstallSQL": func(t *testing.T, a *audittest.Audited) {
			t.Helper()
			source, history, err := a.Client.UninstallSQL(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			waitInactive(t, a.Database)
			for _, sql := range append(source, history...) {
				a.Exec(t, sql)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			db := audittest.NewDatabase(t)
			db.Exec(t, setupTables)
			catalog, schema := faulttest.Catalog(t, db.URL()), dump(t, db)
			a := audittest.Open(t, db, audit.Config{RefreshInterval: 100 * time.Millisecond})
			mustStart(t, a)
			db.Exec(t, writeSetupTables)
			// Tables that join and change while capture runs, too.
			db.Exec(t, "CREATE TABLE later (id int PRIMARY KEY); CREATE TABLE passing (id int PRIMARY KEY); ALTER TABLE later REPLICA IDENTITY NOTHING")
			if err := a.Client.Refresh(t.Context()); err != nil {
				t.Fatal(err)
			}
			db.Exec(t, "ALTER TABLE todo RENAME TO done; DROP TABLE passing")
			a.Check(t)
			a.Stop(t)
			// A second life changes nothing about what was there before the first.
			mustStart(t, a)
			a.Stop(t)
			db.Exec(t, "ALTER TABLE done RENAME TO todo")
			if got := audittest.Value[string](t, db, "SELECT relreplident::text FROM pg_class WHERE relname = 'later'"); got != "f" {
				t.Errorf("the replica identity of a table that joined is %q", got)
			}
			remove(t, a)
			if got := audittest.Value[string](t, db, "SELECT relreplident::text FROM pg_class WHERE relname = 'later'"); got != "n" {
				t.Errorf("the replica identity of a table that joined later is %q, it was NOTHING", got)
			}
			db.Exec(t, "DROP TABLE later")
			if diff := cmp.Diff(catalog, faulttest.Catalog(t, db.URL())); diff != "" {
				t.Errorf("the catalog (-before +after):\n%s", diff)
			}
			if diff := cmp.Diff(schema, dump(t, db)); diff != "" {
				t.Errorf("the dump (-before +after):\n%s", diff)
			}
			// And once more, from nothing.
			if err := a.Client.Uninstall(t.Context()); err != nil {
				t.Errorf("a second Uninstall: %v", err)
			}
			mustStart(t, a)
			a.Check(t)
		})
	}
}

// A store may live in schema public of a database that has other tenants.
func TestUninstallOfAStoreInPublicSparesTheOthers(t *testing.T) {
	t.Parallel()
	source, shared := audittest.NewDatabase(t), audittest.NewDatabase(t)
	source.Exec(t, gapTable)
	shared.Exec(t, "CREATE TABLE precious (id int); INSERT INTO precious VALUES (1); CREATE FUNCTION helper() RETURNS int LANGUAGE sql AS 'SELECT 1'; CREATE VIEW glance AS SELECT * FROM precious")
	catalog := faulttest.Catalog(t, shared.URL())
	a := audittest.Open(t, source, audit.Config{StoreURL: shared.URL(), Schema: "public", Tables: []string{"public.*"}})
	// The schema of the store is never tracked, and here it has the name of the
	// one that holds the application's tables, in another database.
	mustStart(t, a)
	source.Exec(t, "INSERT INTO todo VALUES (1, 'x')")
	a.Sync(t)
	if n := audittest.Value[int](t, shared, "SELECT count(*) FROM changes"); n != 1 {
		t.Errorf("SELECT FROM changes finds %d changes, want 1", n)
	}
	a.Stop(t)
	if err := a.Client.Uninstall(t.Context()); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(catalog, faulttest.Catalog(t, shared.URL())); diff != "" {
		t.Errorf("the store's database (-before +after):\n%s", diff)
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

// Somebody reads a table in a long transaction, or writes to it. An ALTER of ours
// waits behind him only a moment, since everybody else waits behind the ALTER.
func TestApplicationNeverQueuesBehindAnAlter(t *testing.T) {
	t.Parallel()
	for name, hold := range map[string]string{
		"a reader": "SELECT count(*) FROM held",
		"a writer": "INSERT INTO held VALUES (0, 'open')",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			db := audittest.NewDatabase(t)
			a := audittest.Open(t, db, audit.Config{RefreshInterval: 100 * time.Millisecond})
			mustStart(t, a)
			db.Exec(t, "BEGIN; CREATE TABLE held (id int PRIMARY KEY, task text); CREATE TABLE free (id int PRIMARY KEY); LOCK held IN ACCESS SHARE MODE")
			holder := db.Connect(t)
			// The tables appear with a lock on one of them.
			db.Exec(t, "COMMIT")
			tx, err := holder.Begin(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			// It may have joined by now, which the writer has to be ready for.
			if _, err := tx.Exec(t.Context(), "ALTER TABLE held REPLICA IDENTITY DEFAULT; "); err != nil {
				t.Fatal(err)
			}
			_ = tx.Rollback(t.Context())
			a.Stop(t)
			db.Exec(t, "ALTER TABLE held REPLICA IDENTITY DEFAULT; ALTER TABLE free REPLICA IDENTITY DEFAULT")
			db.Exec(t, "ALTER PUBLICATION audit SET TABLE "+orDummy(t, db))
			if tx, err = holder.Begin(t.Context()); err != nil {
				t.Fatal(err)
			}
			if _, err := tx.Exec(t.Context(), hold); err != nil {
				t.Fatal(err)
			}

			started := make(chan error, 1)
			go func() { started <- a.Client.Start(context.WithoutCancel(t.Context())) }()
			t.Cleanup(func() { a.Stop(t) })
			app := db.Connect(t)
			var slowest time.Duration
			n, deadline := 0, time.NewTimer(3*time.Second)
			for done := false; !done; n++ {
				began := time.Now()
				if _, err := app.Exec(t.Context(), "INSERT INTO held VALUES ($1, 'app')", n+1); err != nil {
					t.Fatalf("the application's INSERT: %v", err)
				}
				if _, err := app.Exec(t.Context(), "UPDATE held SET task = 'app, too' WHERE id = $1", n+1); err != nil {
					t.Fatalf("the application's UPDATE: %v", err)
				}
				slowest = max(slowest, time.Since(began))
				select {
				case <-deadline.C:
					done = true
				default:
				}
			}
			t.Logf("%d times two statements while capture tried to get its lock; the slowest took %s", n, slowest)
			// Behind a waiting ALTER it would have been as long as the holder is there,
			// which is for good. Twice our lock_timeout, and much for the machine.
			if slowest > 10*time.Second {
				t.Errorf("the application had to wait %s", slowest)
			}
			if n < 2 {
				t.Errorf("the application could do only %d statements", n)
			}
			if hold[0] == 'S' {
				// The slot does not wait for readers: capture runs, all but this table.
				if err := <-started; err != nil {
					t.Fatal(err)
				}
				pending := ""
				for _, table := range statusOf(t, a).Tables {
					if table.Table == "held" && table.Pending != nil {
						pending = table.Pending.Error()
					}
				}
				if !strings.Contains(pending, "55P03") {
					t.Errorf("status does not say that the table waits for a lock: %q", pending)
				}
				if err := a.Client.Refresh(t.Context()); err == nil || !strings.Contains(err.Error(), "held") {
					t.Errorf("Refresh returned %v, which does not name the table", err)
				}
			}
			if err := tx.Commit(t.Context()); err != nil {
				t.Fatal(err)
			}
			if hold[0] != 'S' {
				if err := <-started; err != nil {
					t.Fatal(err)
				}
			}
			faulttest.Poll(t, faulttest.Patience, "the table joins", func() error {
				if err := a.Client.Refresh(t.Context()); err != nil {
					return err
				}
				if !slices.ContainsFunc(statusOf(t, a).Tables, func(s audit.TableStatus) bool {
					return s.Table == "held" && s.Pending == nil && s.Until == 0
				}) {
					return errors.New("it is not tracked")
				}
				return nil
			})
			before := audittest.Value[string](t, db, "SELECT pg_current_wal_insert_lsn()::text")
			db.Exec(t, "INSERT INTO held VALUES (-1, 'tracked')")
			a.Sync(t)
			if keys := keysInHistory(t, db, "held"); len(keys) == 0 || keys[len(keys)-1] != "-1" {
				t.Errorf("history has the keys %v", keys)
			}
			// Coverage may not claim what was written before.
			if !audittest.Value[bool](t, db, `
				SELECT from_position <= $1::text::pg_lsn
					AND (SELECT count(*) FROM held) - 1 <= (SELECT count(DISTINCT primary_key) FROM audit.changes WHERE "table" = 'held')
						+ (SELECT count(*) FROM held WHERE task LIKE 'app%' OR task = 'open')
				FROM audit.coverage WHERE "table" = 'held' AND until_position IS NULL`, before) {
				t.Error("coverage begins after the table was reported as tracked")
			}
			a.Check(t)
		})
	}
}

// orDummy names a table to leave in the publication.
func orDummy(t *testing.T, db *audittest.Database) string {
	t.Helper()
	db.Exec(t, "CREATE TABLE dummy (id int PRIMARY KEY)")
	return "dummy"
}

// Making the slot waits for everybody who writes. That ends with the context,
// and the error says who it was.
func TestSlotCreationSaysWhoIsInTheWay(t *testing.T) {
	t.Parallel()
	server := audittest.NewServer(t, audittest.ServerOptions{})
	for name, patience := range map[string]time.Duration{"short": 0, "long": 5 * time.Second} {
		for _, plain := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s plain role %t", name, plain), func(t *testing.T) {
				db := server.NewDatabase(t)
				db.Exec(t, gapTable+"; CREATE TABLE elsewhere (id int)")
				config := audit.Config{SourceURL: db.URL(), Tables: []string{"public.todo"}}
				if plain {
					role := newRole(t, db, "REPLICATION")
					config.SourceURL = asRole(t, db, role)
					db.Exec(t, "GRANT CREATE ON DATABASE "+db.Name()+" TO "+role+"; ALTER TABLE todo OWNER TO "+role)
				}
				conn := db.Connect(t)
				tx, err := conn.Begin(t.Context())
				if err != nil {
					t.Fatal(err)
				}
				if _, err := tx.Exec(t.Context(), "INSERT INTO elsewhere VALUES (1)"); err != nil {
					t.Fatal(err)
				}
				client := openClient(t, config)
				ctx, cancel := context.WithTimeout(t.Context(), patience)
				defer cancel()
				ended := context.DeadlineExceeded
				if name == "short" {
					// As soon as it waits, and so before it had its first look around.
					ctx, cancel = context.WithCancel(t.Context())
					defer cancel()
					ended = context.Canceled
					go faulttest.Poll(t, faulttest.Patience, "the slot being made", func() error {
						if audittest.Value[bool](t, db, `SELECT EXISTS (SELECT FROM pg_stat_activity WHERE datname = current_database() AND state = 'active' AND query LIKE 'SELECT lsn%pg_create_logical%')`) {
							cancel()
							return nil
						}
						return errors.New("nobody makes one")
					})
				}
				began := time.Now()
				err = client.Start(ctx)
				var blocked *capture.SlotBlockedError
				if !errors.As(err, &blocked) || !errors.Is(err, ended) {
					t.Fatalf("Start returned %v, want a *SlotBlockedError", err)
				}
				if after := time.Since(began); after > patience+time.Minute {
					t.Errorf("Start returned after %s", after)
				}
				pid := int(conn.PgConn().PID())
				if !slices.ContainsFunc(blocked.Blockers, func(b capture.Blocker) bool { return b.PID == pid }) {
					t.Errorf("the error does not name process %d: %v", pid, err)
				}
				if err := tx.Commit(t.Context()); err != nil {
					t.Fatal(err)
				}
				// Nothing of the attempt is in the way of the next.
				faulttest.Poll(t, faulttest.Patience, "start", func() error { return client.Start(context.WithoutCancel(t.Context())) })
				if err := client.Stop(t.Context()); err != nil {
					t.Error(err)
				}
				if n := audittest.Value[int](t, db, "SELECT count(*) FROM pg_replication_slots WHERE database = current_database()"); n != 1 {
					t.Errorf("there are %d slots", n)
				}
			})
		}
	}
}

// A table made while capture runs is tracked soon, and at once for those who ask.
func TestNewTablesJoinByThemselves(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		interval time.Duration
		ask      func(t *testing.T, a *audittest.Audited)
	}{
		"within the interval": {200 * time.Millisecond, func(*testing.T, *audittest.Audited) {}},
		"by Refresh": {-1, func(t *testing.T, a *audittest.Audited) {
			t.Helper()
			if err := a.Client.Refresh(t.Context()); err != nil {
				t.Error(err)
			}
		}},
		"by a message": {-1, func(t *testing.T, a *audittest.Audited) {
			t.Helper()
			a.Exec(t, "SELECT pg_logical_emit_message(false, 'audit_refresh', '')")
		}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			a := audittest.New(t, audit.Config{RefreshInterval: test.interval})
			a.Exec(t, "CREATE TABLE later (id int PRIMARY KEY); CREATE TABLE keyless (n int)")
			test.ask(t, a)
			faulttest.Poll(t, faulttest.Patience, "the tables join", func() error {
				if n := audittest.Value[int](t, a.Database, "SELECT count(*) FROM audit.coverage WHERE \"table\" IN ('later', 'keyless') AND until_position IS NULL"); n != 2 {
					return fmt.Errorf("%d of 2 are tracked", n)
				}
				return nil
			})
			a.Exec(t, "INSERT INTO later VALUES (1); INSERT INTO keyless VALUES (1)")
			a.Exec(t, "UPDATE later SET id = 2; UPDATE keyless SET n = 2; DELETE FROM keyless")
			a.Sync(t)
			if got := len(keysOrNone(t, a.Database, "later")) + len(keysOrNone(t, a.Database, "keyless")); got != 5 {
				t.Errorf("history has %d changes, want 5", got)
			}
		})
	}
}

// From the moment a table is published its UPDATE and DELETE need a replica
// identity, or they fail in the application.
func TestPublishingNeverMakesAnUpdateFail(t *testing.T) {
	t.Parallel()
	a := audittest.New(t, audit.Config{RefreshInterval: 20 * time.Millisecond})
	conn := a.Connect(t)
	for n := range 30 {
		table := fmt.Sprintf("keyless_%d", n)
		a.Exec(t, fmt.Sprintf("CREATE TABLE %s (n int); INSERT INTO %[1]s VALUES (0)", table))
		for range 15 {
			if _, err := conn.Exec(t.Context(), "UPDATE "+table+" SET n = n + 1"); err != nil {
				t.Fatalf("the application's UPDATE: %v", err)
			}
		}
		if n%3 == 0 {
			if _, err := conn.Exec(t.Context(), fmt.Sprintf("CREATE TABLE p_%d (n int) PARTITION BY LIST (n); CREATE TABLE p_%[1]d_1 PARTITION OF p_%[1]d DEFAULT; INSERT INTO p_%[1]d VALUES (1)", n)); err != nil {
				t.Fatal(err)
			}
			for range 10 {
				if _, err := conn.Exec(t.Context(), fmt.Sprintf("UPDATE p_%d SET n = n + 1", n)); err != nil {
					t.Fatalf("the application's UPDATE of a partitioned table: %v", err)
				}
			}
			// A partition that comes later is published with its root at once.
			if _, err := conn.Exec(t.Context(), fmt.Sprintf("CREATE TABLE p_%d_2 PARTITION OF p_%[1]d FOR VALUES IN (1000); INSERT INTO p_%[1]d VALUES (1000); UPDATE p_%[1]d SET n = 1000 WHERE n = 1000", n)); err != nil {
				t.Fatalf("the application's UPDATE of a new partition: %v", err)
			}
		}
	}
	if err := a.Client.Refresh(t.Context()); err != nil {
		t.Error(err)
	}
}

// The application's owner changes his tables while they are tracked; none of it
// needs us.
func TestApplicationsDDLGoesOnWorking(t *testing.T) {
	t.Parallel()
	db := audittest.NewDatabase(t)
	db.Exec(t, "CREATE TABLE todo (id int PRIMARY KEY, task text)")
	role := newRole(t, db, "")
	db.Exec(t, "GRANT CREATE ON SCHEMA public TO "+role+"; ALTER TABLE todo OWNER TO "+role)
	a := audittest.Open(t, db, audit.Config{RefreshInterval: 50 * time.Millisecond})
	mustStart(t, a)
	conn := faulttest.Connect(t, asRole(t, db, role))
	for _, sql := range []string{
		"INSERT INTO todo VALUES (1, 'x')",
		"ALTER TABLE todo ADD COLUMN note text DEFAULT 'n'", "UPDATE todo SET note = 'm'",
		"ALTER TABLE todo DROP CONSTRAINT todo_pkey", "UPDATE todo SET task = 'without a key'", "DELETE FROM todo",
		"INSERT INTO todo VALUES (2, 'x', 'y')", "ALTER TABLE todo ADD PRIMARY KEY (id)", "ALTER TABLE todo RENAME task TO title",
		"ALTER TABLE todo ALTER title TYPE varchar(50)", "UPDATE todo SET title = 't'", "ALTER TABLE todo DROP COLUMN note",
		// SET UNLOGGED is the one thing that PostgreSQL refuses for a published table.
		"CREATE TABLE another (id int PRIMARY KEY)", "INSERT INTO another VALUES (1)", "DROP TABLE another", "TRUNCATE todo",
		"ALTER TABLE todo RENAME TO done", "INSERT INTO done VALUES (3, 'x')", "VACUUM FULL done", "UPDATE done SET title = 'v'",
		"DROP TABLE done",
	} {
		if _, err := conn.Exec(t.Context(), sql); err != nil {
			t.Errorf("the application's %q: %v", sql, err)
		}
	}
	a.Sync(t)
	if s := statusOf(t, a); s.State != capture.Streaming {
		t.Errorf("capture is %s: %v", s.State, s.Err)
	}
}

// Coverage of a table that is renamed, moved, dropped and made again says what
// history holds under which name.
func TestCoverageFollowsATable(t *testing.T) {
	t.Parallel()
	a := audittest.New(t, audit.Config{Tables: []string{"public.*", "!public.hidden"}, RefreshInterval: -1}, gapTable, "CREATE SCHEMA attic")
	refresh := func() {
		t.Helper()
		if err := a.Client.Refresh(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	// tracked returns the tables that coverage says are tracked, and fails if one
	// is so twice.
	tracked := func() []string {
		t.Helper()
		names := []string{}
		for _, table := range statusOf(t, a).Tables {
			if table.Until == 0 && table.Pending == nil {
				names = append(names, table.Schema+"."+table.Table)
			}
		}
		slices.Sort(names)
		return names
	}
	expect := func(what string, want ...string) {
		t.Helper()
		refresh()
		if diff := cmp.Diff(want, tracked(), cmp.Transformer("nil", func(s []string) []string { return append([]string{}, s...) })); diff != "" {
			t.Errorf("%s: tables tracked (-want +got):\n%s", what, diff)
		}
	}
	expect("at first", "public.todo")
	a.Exec(t, "ALTER TABLE todo RENAME TO done")
	expect("renamed", "public.done")
	a.Exec(t, "ALTER TABLE done RENAME TO todo")
	expect("renamed back", "public.todo")
	a.Exec(t, "DROP TABLE todo")
	expect("dropped")
	a.Exec(t, gapTable)
	expect("made again", "public.todo")
	// Dropped and made again between two looks.
	a.Exec(t, "DROP TABLE todo; "+gapTable)
	expect("exchanged", "public.todo")
	a.Exec(t, "INSERT INTO todo VALUES (1, 'x')")
	a.Sync(t)
	if !audittest.Value[bool](t, a.Database, `
		SELECT count(*) = 1 FROM audit.coverage v, audit.changes c
		WHERE v."table" = 'todo' AND c."table" = 'todo' AND c.position >= v.from_position AND (v.until_position IS NULL OR c.position < v.until_position)`) {
		t.Error("the change behind the exchange is not covered exactly once")
	}
	a.Exec(t, "ALTER TABLE todo RENAME TO hidden")
	expect("renamed to a name that is excluded")
	a.Exec(t, "ALTER TABLE hidden RENAME TO todo")
	expect("renamed back from it", "public.todo")
	a.Exec(t, "ALTER TABLE todo SET SCHEMA attic")
	expect("moved to a schema that is not tracked")
	a.Exec(t, gapTable+"; INSERT INTO attic.todo VALUES (5, 'x')")
	expect("another takes its name", "public.todo")
	// Every stay of a table in coverage ends after it began, and none overlaps
	// another under the same name.
	if n := audittest.Value[int](t, a.Database, `
		SELECT count(*) FROM audit.coverage a LEFT JOIN audit.coverage b
			ON a.schema = b.schema AND a."table" = b."table" AND a.ctid <> b.ctid
			AND a.from_position < coalesce(b.until_position, 'FFFFFFFF/FFFFFFFF') AND b.from_position < coalesce(a.until_position, 'FFFFFFFF/FFFFFFFF')
		WHERE a.until_position < a.from_position OR b.schema IS NOT NULL`); n != 0 {
		t.Errorf("%d stays in coverage overlap or are reversed", n)
	}
}

// A table that the configuration names no longer is left alone from then on.
func TestTableTakenOutOfTheConfigurationLeaves(t *testing.T) {
	t.Parallel()
	db := audittest.NewDatabase(t)
	db.Exec(t, "CREATE TABLE todo (id int PRIMARY KEY); CREATE TABLE session (id int PRIMARY KEY, code int NOT NULL); CREATE UNIQUE INDEX by_code ON session (code); ALTER TABLE session REPLICA IDENTITY USING INDEX by_code")
	a := audittest.Open(t, db, audit.Config{})
	mustStart(t, a)
	db.Exec(t, "INSERT INTO session VALUES (1, 1); INSERT INTO todo VALUES (1)")
	a.Sync(t)
	a.Stop(t)

	b := audittest.Open(t, db, audit.Config{Tables: []string{"*.*", "!public.session"}})
	mustStart(t, b)
	db.Exec(t, "INSERT INTO session VALUES (2, 2); INSERT INTO todo VALUES (2)")
	b.Sync(t)
	b.Stop(t)
	if diff := cmp.Diff([]string{"1"}, keysInHistory(t, db, "session")); diff != "" {
		t.Errorf("history of the table that left (-want +got):\n%s", diff)
	}
	if got := audittest.Value[string](t, db, "SELECT relreplident::text FROM pg_class WHERE relname = 'session'"); got != "i" {
		t.Errorf("its replica identity is %q, it was that of an index", got)
	}
	if n := audittest.Value[int](t, db, "SELECT count(*) FROM pg_publication_tables WHERE tablename = 'session'"); n != 0 {
		t.Error("it is published")
	}
	if n := audittest.Value[int](t, db, `SELECT count(*) FROM audit.coverage WHERE "table" = 'session' AND until_position IS NULL`); n != 0 {
		t.Error("coverage says that it is tracked")
	}
	// And comes back.
	mustStart(t, a)
	db.Exec(t, "INSERT INTO session VALUES (3, 3)")
	a.Check(t)
	if diff := cmp.Diff([]string{"1", "3"}, keysInHistory(t, db, "session")); diff != "" {
		t.Errorf("history of the table that is back (-want +got):\n%s", diff)
	}
	if !audittest.Value[bool](t, db, `
		SELECT count(*) = 2 AND bool_or(until_position IS NULL) AND bool_and(until_position IS NULL OR until_position < (SELECT max(from_position) FROM audit.coverage WHERE "table" = 'session'))
		FROM audit.coverage WHERE "table" = 'session'`) {
		t.Error("coverage does not tell of two stays")
	}
}

// Whoever asks at the same time gets the same answer, and each table joins once.
func TestConcurrentRefreshes(t *testing.T) {
	t.Parallel()
	a := audittest.New(t, audit.Config{RefreshInterval: 20 * time.Millisecond})
	other := audittest.Open(t, a.Database, audit.Config{})
	mustStart(t, other)
	var wg sync.WaitGroup
	for round := range 5 {
		for n := range 5 {
			a.Exec(t, fmt.Sprintf("CREATE TABLE t_%d_%d (id int PRIMARY KEY)", round, n))
		}
		for n := range 6 {
			client := a.Client
			if n%2 == 1 {
				client = other.Client
			}
			wg.Go(func() {
				ctx, cancel := context.WithTimeout(t.Context(), faulttest.Patience)
				defer cancel()
				if err := client.Refresh(ctx); err != nil {
					t.Errorf("refresh: %v", err)
				}
			})
		}
		wg.Wait()
	}
	if n := audittest.Value[int](t, a.Database, "SELECT count(*) FROM audit.coverage WHERE until_position IS NULL"); n != 25 {
		t.Errorf("coverage has %d open stays, want 25", n)
	}
	if n := audittest.Value[int](t, a.Database, "SELECT count(*) FROM audit.coverage"); n != 25 {
		t.Errorf("coverage has %d stays, want 25", n)
	}
}

// Nobody but the owner may change what was recorded, whatever he was given in
// advance.
func TestHistoryIsAppendOnly(t *testing.T) {
	ownStore(t, "the rights of a store with roles are tested by TestLeastRights_AttacksOnWhatIsStored")
	t.Parallel()
	db := audittest.NewDatabase(t)
	db.Exec(t, gapTable)
	role := newRole(t, db, "")
	db.Exec(t, fmt.Sprintf("ALTER DEFAULT PRIVILEGES GRANT ALL ON TABLES TO %s, PUBLIC; ALTER DEFAULT PRIVILEGES GRANT ALL ON FUNCTIONS TO %[1]s; ALTER DEFAULT PRIVILEGES GRANT ALL ON SCHEMAS TO %[1]s", role))
	a := audittest.Open(t, db, audit.Config{})
	mustStart(t, a)
	t.Cleanup(func() { db.Exec(t, fmt.Sprintf("ALTER DEFAULT PRIVILEGES REVOKE ALL ON TABLES FROM %s", role)) })
	db.Exec(t, "INSERT INTO todo VALUES (1, 'x')")
	a.Sync(t)
	// A partition that comes later, too.
	db.Exec(t, "SELECT audit.ensure_partition(now() + interval '400 days')")
	conn := faulttest.Connect(t, asRole(t, db, role))
	tables := audittest.Value[[]string](t, db, `
		SELECT array_agg(c.oid::regclass::text ORDER BY 1) FROM pg_class c WHERE c.relnamespace = 'audit'::regnamespace AND c.relkind IN ('r', 'p')`)
	if len(tables) < 10 {
		t.Errorf("the store has only the tables %v", tables)
	}
	for _, table := range tables {
		for _, right := range []string{"INSERT", "UPDATE", "DELETE", "TRUNCATE", "REFERENCES", "TRIGGER"} {
			var has bool
			if err := conn.QueryRow(t.Context(), "SELECT has_table_privilege($1, $2)", table, right).Scan(&has); err != nil {
				t.Fatal(err)
			}
			if has {
				t.Errorf("role with default privileges has %s on %s", right, table)
			}
		}
	}
	for _, sql := range []string{
		"UPDATE audit.changes SET after = '{}'", "DELETE FROM audit.changes", "TRUNCATE audit.changes",
		"SELECT audit.drop_before(now() + interval '10 years')", "SELECT audit.ensure_partition(now() + interval '10 years')",
		"SELECT audit.advance('" + db.Name() + "', 1, '0/0', '0/0', now(), 0)",
		"DROP TABLE audit.changes", "ALTER TABLE audit.changes ADD COLUMN x int", "INSERT INTO audit.gaps SELECT 'x', '0/0', '0/1', now(), now(), 'x'",
	} {
		var denied *pgconn.PgError
		if _, err := conn.Exec(t.Context(), sql); !errors.As(err, &denied) || denied.Code != "42501" {
			t.Errorf("%s: %v, want that it is not permitted", sql, err)
		}
	}
	// Functions are the owner's, and not for everybody.
	if functions := audittest.Value[[]string](t, db, `
		SELECT coalesce(array_agg(p.oid::regprocedure::text), '{}') FROM pg_proc p
		WHERE p.pronamespace = 'audit'::regnamespace AND (has_function_privilege('pg_monitor', p.oid, 'EXECUTE') OR has_function_privilege($1::name, p.oid, 'EXECUTE'))`, role); len(functions) > 0 {
		t.Errorf("everybody may execute %v", functions)
	}
	a.Check(t)
}

// Retention drops whole months, and only those that are over.
func TestRetentionDropsPartitions(t *testing.T) {
	t.Parallel()
	db := audittest.NewDatabase(t)
	db.Exec(t, gapTable)
	a := audittest.Open(t, db, audit.Config{})
	mustStart(t, a)
	db.Exec(t, "INSERT INTO todo VALUES (1, 'x')")
	a.Sync(t)
	a.Stop(t)
	partitions := func() []string {
		return audittest.Value[[]string](t, db, "SELECT array_agg(c.relname::text ORDER BY 1) FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid WHERE i.inhparent = 'audit.changes'::regclass")
	}
	now := partitions()
	if len(now) < 2 {
		t.Errorf("the months to come have no partitions: %v", now)
	}
	// Changes of long ago, as if they had been captured then.
	db.Exec(t, "SELECT audit.ensure_partition(now() - n * interval '1 month') FROM generate_series(1, 14) n")
	db.Exec(t, `
		INSERT INTO audit.changes (position, sequence, committed_at, transaction_id, database, schema, "table", primary_key, operation, before, after, queued_at)
		SELECT '0/1'::pg_lsn + n, 1, now() - n * interval '1 month', n, current_database(), 'public', 'former', n::text, 'CREATE', '{}', '{}', now() FROM generate_series(1, 14) n`)

	keeper := audittest.Open(t, db, audit.Config{Retention: 90 * 24 * time.Hour})
	mustStart(t, keeper)
	faulttest.Poll(t, faulttest.Patience, "retention", func() error {
		if audittest.Value[bool](t, db, "SELECT EXISTS (SELECT FROM audit.retention)") {
			return nil
		}
		return errors.New("nothing was dropped")
	})
	horizon := audittest.Value[time.Time](t, db, "SELECT max(until_time) FROM audit.retention")
	if keep := time.Now().Add(-90 * 24 * time.Hour); horizon.After(keep) || horizon.Before(keep.AddDate(0, -1, -1)) {
		t.Errorf("history was dropped up to %s, it is kept from %s", horizon, keep)
	}
	if n := audittest.Value[int](t, db, "SELECT count(*) FROM audit.changes WHERE committed_at < $1", horizon); n != 0 {
		t.Errorf("%d changes from before the horizon are there", n)
	}
	if n := audittest.Value[int](t, db, "SELECT count(*) FROM audit.changes WHERE committed_at >= $1", horizon); n < 3 {
		t.Errorf("only %d changes are left", n)
	}
	dropped := audittest.Value[[]string](t, db, "SELECT array_agg(partition ORDER BY 1) FROM audit.retention")
	left := partitions()
	for _, name := range dropped {
		if slices.Contains(left, name) {
			t.Errorf("partition %s is noted as dropped and there", name)
		}
	}
	if len(dropped)+len(left) != 14+len(now) {
		t.Errorf("%d partitions were dropped and %d are left, of %d", len(dropped), len(left), 14+len(now))
	}
	keeper.Check(t)
}

// A partition of a month is made when something of that month comes, whatever
// the session thinks of time, and twice is once.
func TestPartitionOfAnyMonth(t *testing.T) {
	t.Parallel()
	a := audittest.New(t, audit.Config{})
	for _, month := range []string{"2000-01-31 23:59:59.999999+00", "2024-12-31 23:00:00-02", "2024-02-29 12:00:00+00", "9999-12-31 00:00:00+00", "10000-01-01 00:00:00+00"} {
		a.Exec(t, "SET timezone = 'Asia/Kolkata'; SET datestyle = 'SQL, DMY'")
		for range 2 {
			a.Exec(t, "SELECT audit.ensure_partition('"+month+"')")
		}
		a.Exec(t, "RESET timezone; RESET datestyle")
		a.Exec(t, `
			INSERT INTO audit.changes (position, sequence, committed_at, transaction_id, database, schema, "table", operation, before, after, queued_at)
			VALUES ('0/1', 1, $1::text::timestamptz, 1, 'another', 'public', 'x', 'CREATE', '{}', '{}', now())`, month)
	}
	if n := audittest.Value[int](t, a.Database, "SELECT count(*) FROM audit.changes WHERE database = 'another'"); n != 5 {
		t.Errorf("%d changes went into partitions, want 5", n)
	}
	// Concurrently, too.
	var wg sync.WaitGroup
	for range 6 {
		conn := a.Connect(t)
		wg.Go(func() {
			if _, err := conn.Exec(t.Context(), "SELECT audit.ensure_partition('2010-05-05'::timestamptz + n * interval '1 month') FROM generate_series(1, 6) n"); err != nil {
				t.Errorf("make partitions: %v", err)
			}
		})
	}
	wg.Wait()
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

func TestMigrations(t *testing.T) {
	t.Parallel()
	pool := func(t *testing.T, db *audittest.Database) *pgxpool.Pool {
		t.Helper()
		pool, err := pgxpool.New(t.Context(), db.URL())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(pool.Close)
		return pool
	}
	t.Run("concurrently and again", func(t *testing.T) {
		t.Parallel()
		db := audittest.NewDatabase(t)
		var wg sync.WaitGroup
		for range 8 {
			history := store.New(pool(t, db), "audit", store.Roles{})
			wg.Go(func() {
				if err := history.Migrate(t.Context()); err != nil {
					t.Errorf("migrate: %v", err)
				}
			})
		}
		wg.Wait()
		before := dump(t, db)
		if err := store.New(pool(t, db), "audit", store.Roles{}).Migrate(t.Context()); err != nil {
			t.Error(err)
		}
		if diff := cmp.Diff(before, dump(t, db)); diff != "" {
			t.Errorf("the second time something changed:\n%s", diff)
		}
	})
	t.Run("by script is the same", func(t *testing.T) {
		t.Parallel()
		migrated, scripted := audittest.NewDatabase(t), audittest.NewDatabase(t)
		if err := store.New(pool(t, migrated), `odd "schema"`, store.Roles{}).Migrate(t.Context()); err != nil {
			t.Fatal(err)
		}
		script, err := store.SetupSQL(store.Setup{Schema: `odd "schema"`, Roles: store.Roles{Writer: "postgres"}, Database: "odd"})
		if err != nil {
			t.Fatal(err)
		}
		scripted.Exec(t, script)
		if diff := cmp.Diff(dump(t, migrated), dump(t, scripted)); diff != "" {
			t.Errorf("migrated and scripted differ:\n%s", diff)
		}
	})
	t.Run("a dump can be restored", func(t *testing.T) {
		t.Parallel()
		a := audittest.New(t, audit.Config{}, gapTable)
		a.Exec(t, "INSERT INTO todo VALUES (1, 'x')")
		a.Sync(t)
		restored := audittest.NewDatabase(t)
		pgDump, psql := serverProgram(a.Database, "pg_dump"), serverProgram(a.Database, "psql")
		if pgDump == "" || psql == "" {
			t.Skip("there is no pg_dump and psql beside the server's binaries or on PATH")
		}
		script, err := exec.CommandContext(t.Context(), pgDump, "--schema=audit", "--dbname="+a.URL()).CombinedOutput() //nolint:gosec // It is pg_dump.
		if err != nil {
			if strings.Contains(string(script), "server version mismatch") {
				t.Skip("there is no pg_dump for this server")
			}
			t.Fatalf("dump: %v: %s", err, script)
		}
		restore := exec.CommandContext(t.Context(), psql, "-q", "-v", "ON_ERROR_STOP=1", restored.URL()) //nolint:gosec // It is psql.
		restore.Stdin = bytes.NewReader(script)
		if out, err := restore.CombinedOutput(); err != nil {
			t.Fatalf("restore: %v: %s", err, out)
		}
		if n := audittest.Value[int](t, restored, "SELECT count(*) FROM audit.changes"); n != 1 {
			t.Errorf("the restored history has %d changes, want 1", n)
		}
		if err := store.New(pool(t, restored), "audit", store.Roles{}).Migrate(t.Context()); err != nil {
			t.Errorf("migrate what was restored: %v", err)
		}
	})
	t.Run("by a newer program", func(t *testing.T) {
		t.Parallel()
		db := audittest.NewDatabase(t)
		history := store.New(pool(t, db), "audit", store.Roles{})
		if err := history.Migrate(t.Context()); err != nil {
			t.Fatal(err)
		}
		db.Exec(t, "INSERT INTO audit.schema_migrations (version, name) VALUES (9999, 'from the future')")
		var newer *store.NewerSchemaError
		if err := history.Migrate(t.Context()); !errors.As(err, &newer) {
			t.Errorf("Migrate returned %v, want a *NewerSchemaError", err)
		}
		before := faulttest.Catalog(t, db.URL())
		db.Exec(t, gapTable)
		client := openClient(t, audit.Config{SourceURL: db.URL()})
		if err := client.Start(t.Context()); !errors.As(err, &newer) {
			t.Errorf("Start returned %v, want a *NewerSchemaError", err)
		}
		db.Exec(t, "DROP TABLE todo")
		if diff := cmp.Diff(before, faulttest.Catalog(t, db.URL())); diff != "" {
			t.Errorf("Start made something (-before +after):\n%s", diff)
		}
	})
	t.Run("rolled back if it fails", func(t *testing.T) {
		t.Parallel()
		db := audittest.NewDatabase(t)
		// Something in the way of the migration.
		db.Exec(t, "CREATE SCHEMA audit; CREATE VIEW audit.gaps AS SELECT 1")
		before := dump(t, db)
		if err := store.New(pool(t, db), "audit", store.Roles{}).Migrate(t.Context()); err == nil {
			t.Fatal("Migrate succeeded")
		}
		if diff := cmp.Diff(before, dump(t, db)); diff != "" {
			t.Errorf("half of a migration is there:\n%s", diff)
		}
		db.Exec(t, "DROP VIEW audit.gaps")
		if err := store.New(pool(t, db), "audit", store.Roles{}).Migrate(t.Context()); err != nil {
			t.Error(err)
		}
	})
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
