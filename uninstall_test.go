package audit_test

import (
	"errors"
	"net/url"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/hindsight-go/audit"
	"github.com/hindsight-go/audit/audittest"
	"github.com/hindsight-go/audit/capture"
	"github.com/hindsight-go/audit/internal/faulttest"
)

// traces is everything that audit leaves in a database.
func traces(t *testing.T, db *audittest.Database) map[string][]string {
	t.Helper()
	found := map[string][]string{}
	for what, sql := range map[string]string{
		"replica identities": `SELECT array_agg(relname::text || ' ' || relreplident::text ORDER BY relname) FROM pg_class WHERE relkind IN ('r', 'p') AND relnamespace = 'public'::regnamespace`,
		"publications":       `SELECT array_agg(pubname::text) FROM pg_publication`,
		"schemas":            `SELECT array_agg(nspname::text) FROM pg_namespace WHERE nspname LIKE 'audit%'`,
		"slots":              `SELECT array_agg(slot_name::text) FROM pg_replication_slots WHERE database = current_database()`,
	} {
		found[what] = audittest.Value[[]string](t, db, sql)
	}
	return found
}

func TestUninstallPutsReplicaIdentitiesBack(t *testing.T) {
	ownStore(t, "it drops the store")
	t.Parallel()
	db := audittest.NewDatabase(t)
	db.Exec(t, `
		CREATE TABLE plain (id int PRIMARY KEY);
		CREATE TABLE nothing (id int); ALTER TABLE nothing REPLICA IDENTITY NOTHING;
		CREATE TABLE by_index (id int NOT NULL UNIQUE); ALTER TABLE by_index REPLICA IDENTITY USING INDEX by_index_id_key;
		CREATE TABLE already (id int); ALTER TABLE already REPLICA IDENTITY FULL;
		CREATE TABLE parted (id int PRIMARY KEY) PARTITION BY RANGE (id);
		CREATE TABLE parted_1 PARTITION OF parted FOR VALUES FROM (0) TO (10)`)
	before := traces(t, db)
	a := audittest.Open(t, db, audit.Config{})
	if err := a.Client.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	db.Exec(t, "CREATE TABLE later (id int PRIMARY KEY)")
	if err := a.Client.Refresh(t.Context()); err != nil {
		t.Fatal(err)
	}
	a.Stop(t)
	if err := a.Client.Uninstall(t.Context()); err != nil {
		t.Fatal(err)
	}
	db.Exec(t, "DROP TABLE later")
	if diff := cmp.Diff(before, traces(t, db)); diff != "" {
		t.Errorf("uninstalled, the database is not what it was (-before +after):\n%s", diff)
	}
}

func TestSetupErrorIsAScriptThatMakesTheSourceReady(t *testing.T) {
	t.Parallel()
	db := audittest.NewServer(t, audittest.ServerOptions{}).NewDatabase(t)
	db.Exec(t, `
		CREATE TABLE todo (id int PRIMARY KEY, task text, upper text GENERATED ALWAYS AS (upper(task)) STORED);
		CREATE TABLE note (id int PRIMARY KEY);
		CREATE ROLE program LOGIN`)
	client, err := audit.Open(t.Context(), audit.Config{SourceURL: urlAs(db, "program")})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(client.Close)
	var missing *capture.SetupError
	if err := client.Start(t.Context()); !errors.As(err, &missing) {
		t.Fatalf("start without any right: %v", err)
	}
	db.Exec(t, missing.SQL())
	if err := client.Start(t.Context()); err != nil {
		t.Fatalf("start after running the script: %v", err)
	}
	db.Exec(t, "INSERT INTO todo VALUES (1, 'sleep'); UPDATE todo SET task = 'eat'; INSERT INTO note VALUES (1)")
	if err := client.Sync(t.Context()); err != nil {
		t.Fatal(err)
	}
	if n, err := client.Changes().Count(t.Context()); err != nil || n != 3 {
		t.Errorf("%d changes, want 3; %v", n, err)
	}
}

// urlAs is the database's connection string for another role.
func urlAs(db *audittest.Database, role string) string {
	u, err := url.Parse(db.URL())
	if err != nil {
		panic(err)
	}
	u.User = url.User(role)
	return u.String()
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
