package audit_test

import (
	"errors"
	"net/url"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/hindsight-go/audit"
	"github.com/hindsight-go/audit/audittest"
	"github.com/hindsight-go/audit/capture"
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
