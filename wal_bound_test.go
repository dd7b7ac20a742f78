package audit_test

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/hindsight-go/audit"
	"github.com/hindsight-go/audit/audittest"
	"github.com/hindsight-go/audit/internal/faulttest"
)

func warned(s audit.Status, code audit.WarningCode) bool {
	return slices.ContainsFunc(s.Warnings, func(w audit.Warning) bool { return w.Code == code })
}

// A slot without a bound stops the source one day: Start says so, or refuses.
func TestWALBound_Unbounded(t *testing.T) {
	t.Parallel()
	server := audittest.NewServer(t, audittest.ServerOptions{})
	db := server.NewDatabase(t)
	db.Exec(t, gapTable)
	strict := audittest.Open(t, db, audit.Config{RequireWALBound: true})
	var setup *audit.SetupError
	if err := strict.Client.Start(t.Context()); !errors.As(err, &setup) || !strings.Contains(setup.SQL(), "max_slot_wal_keep_size") {
		t.Fatalf("Start returned %v, want a *SetupError that sets the bound", err)
	}
	if n := audittest.Value[int](t, db, "SELECT count(*) FROM pg_replication_slots"); n != 0 {
		t.Errorf("there are %d slots nevertheless", n)
	}
	log := faulttest.NewLog(t)
	a := audittest.Open(t, db, audit.Config{Logger: log.Logger()})
	mustStart(t, a)
	log.Wait(t, "max_slot_wal_keep_size is -1", 1)
	if s := statusOf(t, a); !warned(s, audit.WarningWALUnbounded) || s.Slot.BoundBytes != -1 || s.Slot.SafeBytes != -1 {
		t.Errorf("status is %+v", s)
	}
	a.Stop(t)

	db.Exec(t, "ALTER SYSTEM SET max_slot_wal_keep_size = '1GB'")
	db.Exec(t, "SELECT pg_reload_conf()")
	faulttest.Poll(t, faulttest.Patience, "strict start", func() error { return strict.Client.Start(t.Context()) })
	if s := statusOf(t, strict); len(s.Warnings) != 0 || s.Slot.BoundBytes != 1<<30 || s.Slot.SafeBytes <= 0 {
		t.Errorf("status is %+v", s)
	}
	strict.Stop(t)
}

// From 18 on the server may give up a slot that is idle.
func TestWALBound_IdleTimeoutIsNamed(t *testing.T) {
	t.Parallel()
	server := audittest.NewServer(t, audittest.ServerOptions{Settings: map[string]string{"max_slot_wal_keep_size": "1GB"}})
	db := server.NewDatabase(t)
	db.Exec(t, gapTable)
	a := audittest.Open(t, db, audit.Config{})
	mustStart(t, a)
	if s := statusOf(t, a); len(s.Warnings) != 0 {
		t.Errorf("warnings are %v", s.Warnings)
	}
	if server.Version() < 180000 {
		return
	}
	db.Exec(t, "ALTER SYSTEM SET idle_replication_slot_timeout = '2d'")
	db.Exec(t, "SELECT pg_reload_conf()")
	faulttest.Poll(t, faulttest.Patience, "the warning", func() error {
		s := statusOf(t, a)
		if warned(s, audit.WarningIdleSlot) && strings.Contains(s.Warnings[0].Text, "48h0m0s") {
			return nil
		}
		return fmt.Errorf("warnings are %v", s.Warnings)
	})
}

// The store is away, WAL gathers, and an instance gives the slot up before the disk is
// full: history has a gap, and says so.
func TestWALBound_MaxRetainedWAL(t *testing.T) {
	t.Parallel()
	store := audittest.NewServer(t, audittest.ServerOptions{})
	history := store.NewDatabase(t)
	db := audittest.NewServer(t, audittest.ServerOptions{}).NewDatabase(t)
	db.Exec(t, gapTable)
	log := faulttest.NewLog(t)
	a := audittest.Open(t, db, audit.Config{StoreURL: history.URL(), MaxRetainedWAL: 64 << 20, Logger: log.Logger()})
	mustStart(t, a)
	db.Exec(t, "INSERT INTO todo VALUES (1, 'before')")
	a.Sync(t)
	store.Kill(t)
	db.Exec(t, "INSERT INTO todo VALUES (2, 'lost')")
	db.Exec(t, "SELECT pg_logical_emit_message(false, 'x', repeat('x', 40000000)) FROM generate_series(1, 2)")
	log.Wait(t, "dropped the replication slot", 1)
	if n := audittest.Value[int](t, db, "SELECT count(*) FROM pg_replication_slots WHERE slot_name = $1", slotOf(db)); n != 0 {
		t.Error("the slot is there")
	}
	store.StartAgain(t)
	faulttest.Poll(t, faulttest.Patience, "the gap", func() error {
		s, err := a.Client.Status(t.Context())
		if err != nil {
			return err
		}
		if len(s.Gaps) != 1 {
			return fmt.Errorf("gaps are %v", s.Gaps)
		}
		return nil
	})
	db.Exec(t, "INSERT INTO todo VALUES (3, 'behind')")
	syncAgain(t, a)
	if n := audittest.Value[int](t, history, `SELECT count(*) FROM audit.changes WHERE primary_key = '3'`); n != 1 {
		t.Errorf("row 3 is %d times in history", n)
	}
}

// A database gets another name: its slot must not stay behind unread, nor its history
// end without a word.
func TestWALBound_DatabaseIsRenamed(t *testing.T) {
	t.Parallel()
	server := audittest.NewServer(t, audittest.ServerOptions{})
	admin := faulttest.Connect(t, server.URL("postgres"))
	exec := func(sql string) {
		t.Helper()
		if _, err := admin.Exec(t.Context(), sql); err != nil {
			t.Fatal(err)
		}
	}
	exec("CREATE DATABASE former")
	capture := func(database, slot string, sql string) error {
		client := openClient(t, audit.Config{SourceURL: server.URL(database), Slot: slot})
		defer client.Close()
		if err := client.Start(t.Context()); err != nil {
			return err
		}
		conn := faulttest.Connect(t, server.URL(database))
		defer func() { _ = conn.Close(t.Context()) }()
		if _, err := conn.Exec(t.Context(), sql); err != nil {
			return err
		}
		if err := client.Sync(t.Context()); err != nil {
			return err
		}
		return client.Stop(t.Context())
	}
	if err := capture("former", "", "CREATE TABLE todo (id int PRIMARY KEY)"); err != nil {
		t.Fatal(err)
	}
	if err := capture("former", "", "INSERT INTO todo VALUES (1)"); err != nil {
		t.Fatal(err)
	}
	conn := faulttest.Connect(t, server.URL("former"))
	if _, err := conn.Exec(t.Context(), "INSERT INTO todo VALUES (2)"); err != nil {
		t.Fatal(err)
	}
	_ = conn.Close(t.Context())
	faulttest.Poll(t, faulttest.Patience, "rename", func() error {
		_, err := admin.Exec(t.Context(), "ALTER DATABASE former RENAME TO latter")
		return err
	})
	var setup *audit.SetupError
	if err := capture("latter", "", ""); !errors.As(err, &setup) || !strings.Contains(err.Error(), `Config.Slot to "audit_former"`) {
		t.Fatalf("Start returned %v, want a *SetupError that names the slot", err)
	}
	if err := capture("latter", "audit_former", "INSERT INTO todo VALUES (3)"); err != nil {
		t.Fatal(err)
	}
	conn = faulttest.Connect(t, server.URL("latter"))
	var keys string
	if err := conn.QueryRow(t.Context(), `SELECT string_agg(database || primary_key, ' ' ORDER BY position, sequence) FROM audit.changes`).Scan(&keys); err != nil {
		t.Fatal(err)
	}
	if keys != "former1 latter2 latter3" {
		t.Errorf("history has %s", keys)
	}
}
