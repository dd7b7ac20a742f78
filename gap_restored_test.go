package audit_test

import (
	"errors"
	"fmt"
	"os"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/hindsight-go/audit"
	"github.com/hindsight-go/audit/audittest"
	"github.com/hindsight-go/audit/capture"
	"github.com/hindsight-go/audit/internal/faulttest"
)

// A cluster is recognized by its system identifier, whatever URL leads to it.
func TestAnotherClusterBehindTheSameURLIsRefused(t *testing.T) {
	t.Parallel()
	storeServer := audittest.NewServer(t, audittest.ServerOptions{})
	store := storeServer.NewDatabase(t)
	first := audittest.NewDatabase(t)
	first.Exec(t, gapTable)
	a := audittest.Open(t, first, audit.Config{StoreURL: store.URL()})
	mustStart(t, a)
	first.Exec(t, "INSERT INTO todo VALUES (1, 'first')")
	a.Sync(t)
	a.Stop(t)

	// The other cluster has a database of the same name, with the same tables.
	other := storeServer.NewDatabase(t)
	other.Exec(t, "CREATE DATABASE "+first.Name())
	url := storeServer.URL(first.Name())
	client, err := audit.Open(t.Context(), audit.Config{SourceURL: url, StoreURL: store.URL(), Tables: []string{"*.*"}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(client.Close)
	conn := faulttest.Connect(t, url)
	if _, err := conn.Exec(t.Context(), gapTable); err != nil {
		t.Fatal(err)
	}
	before := faulttest.Catalog(t, url)
	var mismatch *capture.SourceMismatchError
	if err := client.Start(t.Context()); !errors.As(err, &mismatch) {
		t.Errorf("Start returned %v, want a *SourceMismatchError", err)
	}
	if diff := cmp.Diff(before, faulttest.Catalog(t, url)); diff != "" {
		t.Errorf("Start made something on the other cluster (-before +after):\n%s", diff)
	}
	if n := audittest.Value[int](t, store, "SELECT count(*) FROM audit.gaps"); n != 0 {
		t.Errorf("%d gaps were recorded", n)
	}
}

// A server that was restored from an older copy has forgotten what history
// knows: going on there would skip what it writes next.
func TestServerRestoredToAnEarlierStateIsRefused(t *testing.T) {
	t.Parallel()
	store := audittest.NewServer(t, audittest.ServerOptions{}).NewDatabase(t)
	server := audittest.NewServer(t, audittest.ServerOptions{})
	source := server.NewDatabase(t)
	source.Exec(t, gapTable)
	a := audittest.Open(t, source, audit.Config{StoreURL: store.URL()})
	mustStart(t, a)
	source.Exec(t, "INSERT INTO todo VALUES (1, 'in the backup')")
	a.Sync(t)

	server.StopImmediate(t)
	backup := server.DataDir() + ".backup"
	copyDir(t, server.DataDir(), backup)
	server.StartAgain(t)
	source.Exec(t, "INSERT INTO todo SELECT n, 'not in the backup' FROM generate_series(2, 2000) n")
	syncAgain(t, a)
	server.StopImmediate(t)
	if err := os.RemoveAll(server.DataDir()); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(backup, server.DataDir()); err != nil {
		t.Fatal(err)
	}
	server.StartAgain(t)

	// The client that has run all the while finds out by itself.
	faulttest.Poll(t, faulttest.Patience, "capture stops", func() error {
		s, err := a.Client.Status(t.Context())
		var mismatch *capture.SourceMismatchError
		if s.State != capture.Failed || !errors.As(s.Err, &mismatch) {
			return fmt.Errorf("it is %s: %w", s.State, errors.Join(err, s.Err))
		}
		return nil
	})
	again := audittest.Open(t, source, audit.Config{StoreURL: store.URL()})
	var mismatch *capture.SourceMismatchError
	if err := again.Client.Start(t.Context()); !errors.As(err, &mismatch) {
		t.Errorf("Start returned %v, want a *SourceMismatchError", err)
	}
	if n := audittest.Value[int](t, store, "SELECT count(*) FROM audit.changes"); n != 2000 {
		t.Errorf("history has %d changes, want the 2000 of before", n)
	}
}

// The same, but nobody looks before the restored server has written past what
// history knows. Its timeline tells.
func TestServerRestoredAndWrittenToIsRefused(t *testing.T) {
	t.Parallel()
	store := audittest.NewServer(t, audittest.ServerOptions{}).NewDatabase(t)
	server := audittest.NewServer(t, audittest.ServerOptions{})
	source := server.NewDatabase(t)
	source.Exec(t, gapTable)
	a := audittest.Open(t, source, audit.Config{StoreURL: store.URL()})
	mustStart(t, a)
	source.Exec(t, "INSERT INTO todo VALUES (1, 'in the backup')")
	a.Sync(t)
	a.Stop(t)

	server.StopImmediate(t)
	backup := server.DataDir() + ".backup"
	copyDir(t, server.DataDir(), backup)
	server.StartAgain(t)
	mustStart(t, a)
	source.Exec(t, "INSERT INTO todo SELECT n, 'not in the backup' FROM generate_series(2, 500) n")
	syncAgain(t, a)
	a.Stop(t)
	reached := statusOf(t, a).Position
	server.StopImmediate(t)
	if err := os.RemoveAll(server.DataDir()); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(backup, server.DataDir()); err != nil {
		t.Fatal(err)
	}
	promote(t, source)
	faulttest.Poll(t, faulttest.Patience, "the restored server writes past history's end", func() error {
		source.Exec(t, "INSERT INTO todo SELECT coalesce(max(id), 0) + n, 'another past' FROM todo, generate_series(1, 1000) n GROUP BY n")
		if !audittest.Value[bool](t, source, "SELECT pg_current_wal_flush_lsn() > $1::text::pg_lsn + 1000000", reached.String()) {
			return errors.New("not yet")
		}
		return nil
	})
	again := audittest.Open(t, source, audit.Config{StoreURL: store.URL()})
	var mismatch *capture.SourceMismatchError
	if err := again.Client.Start(t.Context()); !errors.As(err, &mismatch) {
		t.Errorf("Start returned %v, want a *SourceMismatchError", err)
	}
	if n := audittest.Value[int](t, store, "SELECT count(*) FROM audit.changes"); n != 500 {
		t.Errorf("history has %d changes, want the 500 of before", n)
	}
}

// A standby that has everything takes over: that is another timeline, too, and
// history goes on.
func TestFailoverGoesOn(t *testing.T) {
	t.Parallel()
	store := audittest.NewServer(t, audittest.ServerOptions{}).NewDatabase(t)
	server := audittest.NewServer(t, audittest.ServerOptions{})
	source := server.NewDatabase(t)
	source.Exec(t, gapTable)
	a := audittest.Open(t, source, audit.Config{StoreURL: store.URL()})
	mustStart(t, a)
	source.Exec(t, "INSERT INTO todo VALUES (1, 'before')")
	a.Sync(t)
	a.Stop(t)
	source.Exec(t, "INSERT INTO todo VALUES (2, 'before, not captured')")
	server.StopImmediate(t)
	promote(t, source)
	source.Exec(t, "INSERT INTO todo VALUES (3, 'after')")
	again := audittest.Open(t, source, audit.Config{StoreURL: store.URL()})
	mustStart(t, again)
	syncAgain(t, again)
	if diff := cmp.Diff([]string{"1", "2", "3"}, keysInHistory(t, store, "todo")); diff != "" {
		t.Errorf("history (-want +got):\n%s", diff)
	}
	if s := statusOf(t, again); len(s.Gaps) > 0 {
		t.Errorf("there are gaps: %v", s.Gaps)
	}
	// A second start finds the checkpoint on the new timeline.
	again.Stop(t)
	source.Exec(t, "INSERT INTO todo VALUES (4, 'later')")
	mustStart(t, again)
	syncAgain(t, again)
	if diff := cmp.Diff([]string{"1", "2", "3", "4"}, keysInHistory(t, store, "todo")); diff != "" {
		t.Errorf("history (-want +got):\n%s", diff)
	}
}
