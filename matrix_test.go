package audit_test

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/hindsight-go/audit"
	"github.com/hindsight-go/audit/audittest"
)

// What differs between the versions of the server. The rest of the tests is the
// same for all; AUDIT_PG_BIN chooses the server.

// imagesOf returns the images after each change of a table, in history's order.
func imagesOf(t *testing.T, db *audittest.Database, table string) []string {
	t.Helper()
	return audittest.Value[[]string](t, db, `
		SELECT coalesce(array_agg(after::text ORDER BY position, sequence), '{}') FROM audit.changes WHERE "table" = $1`, table)
}

// PostgreSQL 18 refuses an UPDATE of a table with a full replica identity whose
// stored generated columns are not published. Earlier servers do not send them.
func TestStoredGeneratedColumnNeverFailsAnUpdate(t *testing.T) {
	t.Parallel()
	a := audittest.New(t, audit.Config{RefreshInterval: 50 * time.Millisecond},
		"CREATE TABLE priced (id int PRIMARY KEY, net int, gross int GENERATED ALWAYS AS (net * 2) STORED)",
		"CREATE TABLE keyless (net int, gross int GENERATED ALWAYS AS (net * 2) STORED)")
	a.Exec(t, "INSERT INTO priced VALUES (1, 10); UPDATE priced SET net = 11; DELETE FROM priced")
	a.Exec(t, "INSERT INTO keyless VALUES (10); UPDATE keyless SET net = 11; DELETE FROM keyless")
	a.Exec(t, "CREATE TABLE grown (id int PRIMARY KEY, net int)")
	if err := a.Client.Refresh(t.Context()); err != nil {
		t.Fatal(err)
	}
	a.Exec(t, "INSERT INTO grown VALUES (1, 10)")
	a.Exec(t, "ALTER TABLE grown ADD gross int GENERATED ALWAYS AS (net * 2) STORED")
	a.Exec(t, "UPDATE grown SET net = 11; DELETE FROM grown")
	a.Sync(t)
	want := []string{`{"id": 1, "net": 10}`, `{"id": 1, "net": 11}`, `{}`}
	if a.Server().Version() >= 180000 {
		want = []string{`{"id": 1, "net": 10, "gross": 20}`, `{"id": 1, "net": 11, "gross": 22}`, `{}`}
	}
	if diff := cmp.Diff(want, imagesOf(t, a.Database, "priced")); diff != "" {
		t.Errorf("the images (-want +got):\n%s", diff)
	}
	for _, table := range []string{"keyless", "grown"} {
		if n := len(imagesOf(t, a.Database, table)); n != 3 {
			t.Errorf("table %s has %d changes in history, want 3", table, n)
		}
	}
}

// Virtual generated columns came with 18, which cannot publish them, and refuses
// every UPDATE of a table that has one and a full replica identity.
func TestVirtualGeneratedColumnNeverFailsAnUpdate(t *testing.T) {
	t.Parallel()
	db := audittest.NewDatabase(t)
	if db.Server().Version() < 180000 {
		return // There are none.
	}
	db.Exec(t, "CREATE TABLE priced (id int PRIMARY KEY, net int, gross int GENERATED ALWAYS AS (net * 2) VIRTUAL)")
	db.Exec(t, "CREATE TABLE keyless (net int, gross int GENERATED ALWAYS AS (net * 2) VIRTUAL)")
	db.Exec(t, "CREATE TABLE grown (id int PRIMARY KEY, net int)")
	a := audittest.Open(t, db, audit.Config{RefreshInterval: 50 * time.Millisecond})
	mustStart(t, a)
	conn := db.Connect(t)
	for _, sql := range []string{
		"INSERT INTO priced VALUES (1, 10)", "UPDATE priced SET net = 11", "DELETE FROM priced",
		"INSERT INTO keyless VALUES (10)", "UPDATE keyless SET net = 11", "DELETE FROM keyless",
		"INSERT INTO grown VALUES (1, 10)", "ALTER TABLE grown ADD gross int GENERATED ALWAYS AS (net * 2) VIRTUAL",
	} {
		if _, err := conn.Exec(t.Context(), sql); err != nil {
			t.Errorf("the application's %q: %v", sql, err)
		}
	}
	if err := a.Client.Refresh(t.Context()); err != nil {
		t.Errorf("refresh: %v", err)
	}
	for _, sql := range []string{"UPDATE grown SET net = 11", "DELETE FROM grown"} {
		if _, err := conn.Exec(t.Context(), sql); err != nil {
			t.Errorf("the application's %q: %v", sql, err)
		}
	}
	a.Sync(t)
	for _, table := range []string{"priced", "grown"} {
		if diff := cmp.Diff([]string{`{"id": 1, "net": 10}`, `{"id": 1, "net": 11}`, `{}`}, imagesOf(t, db, table)); diff != "" {
			t.Errorf("the images of %s (-want +got):\n%s", table, diff)
		}
	}
	// What cannot be had without breaking the application is not claimed to be.
	for _, table := range statusOf(t, a).Tables {
		if table.Table == "keyless" && table.Pending == nil && len(imagesOf(t, db, "keyless")) != 3 {
			t.Errorf("status says that a table without a key is tracked from %s, and its history is not whole", table.From)
		}
	}
}

// A table in a publication of somebody else's is as it was for him.
func TestOtherPublicationsAreLeftAlone(t *testing.T) {
	ownStore(t, "it drops the store")
	t.Parallel()
	db := audittest.NewDatabase(t)
	db.Exec(t, gapTable+"; CREATE PUBLICATION theirs FOR ALL TABLES")
	db.Exec(t, "SELECT pg_create_logical_replication_slot('theirs_"+db.Name()+"', 'pgoutput')")
	a := audittest.Open(t, db, audit.Config{})
	mustStart(t, a)
	db.Exec(t, "INSERT INTO todo VALUES (1, 'x'); UPDATE todo SET task = 'y'")
	a.Check(t)
	if n := len(keysInHistory(t, db, "todo")); n != 2 {
		t.Errorf("history has %d changes, want 2", n)
	}
	if n := audittest.Value[int](t, db, `SELECT count(*) FROM audit.changes WHERE schema = 'audit'`); n != 0 {
		t.Errorf("%d changes of the store itself are in history", n)
	}
	a.Stop(t)
	if err := a.Client.Uninstall(t.Context()); err != nil {
		t.Fatal(err)
	}
	if n := audittest.Value[int](t, db, "SELECT count(*) FROM pg_publication, pg_replication_slots WHERE pubname = 'theirs' AND slot_name = 'theirs_' || current_database()"); n != 1 {
		t.Error("the other publication or its slot is gone")
	}
}
