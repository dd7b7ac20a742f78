package audit_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"regexp"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hindsight-go/audit"
	"github.com/hindsight-go/audit/audittest"
	"github.com/hindsight-go/audit/internal/faulttest"
)

// Where a server says that a message stands need not be where its stream has it: what the
// answer says here is far before, or behind, everything.
func TestSync_AnswerOfTheServerIsNotBelieved(t *testing.T) {
	t.Parallel()
	for name, digit := range map[string]byte{"before": '0', "behind": 'F'} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			db := audittest.NewDatabase(t)
			db.Exec(t, todoTable)
			capturing := audittest.Open(t, db, audit.Config{})
			mustStart(t, capturing)
			var lies atomic.Int32
			proxy := faulttest.NewProxy(t, db.URL())
			answered := regexp.MustCompile(`(?s)` + regexp.QuoteMeta(db.Name()) + `\x00\x00\x00.[0-9A-F]+/`)
			proxy.Rewrite(func(answer []byte) {
				for _, at := range answered.FindAllIndex(answer, -1) {
					lies.Add(1)
					lsn := at[0] + len(db.Name()) + 4 // behind its length
					for i := lsn; i < lsn+int(answer[lsn-1]); i++ {
						if answer[i] != '/' {
							answer[i] = digit
						}
					}
				}
			})
			lied := openClient(t, audit.Config{SourceURL: proxy.URL(), StoreURL: db.URL()})
			for n := range 5 {
				db.Exec(t, "INSERT INTO todo VALUES ($1, 'x')", n)
				if err := lied.Sync(t.Context()); err != nil {
					t.Fatal(err)
				}
				if got := audittest.Value[int](t, db, "SELECT count(*) FROM audit.changes"); got != 2*n+1 {
					t.Errorf("%d changes are stored, want %d", got, 2*n+1)
				}
				mark := fmt.Sprint("mark ", n)
				if _, err := lied.Mark(t.Context(), mark); err != nil {
					t.Fatal(err)
				}
				db.Exec(t, "UPDATE todo SET task = 'y' WHERE id = $1", n)
				if got, err := capturing.Client.AtMark(mark).Table("todo").Where("task = 'x'").Count(t.Context()); got != 1 || err != nil {
					t.Errorf("at the mark %d rows are new, %v, want 1", got, err)
				}
			}
			if lies.Load() == 0 {
				t.Error("no answer was changed")
			}
		})
	}
}

// A barrier that went down in a gap is written again.
func TestSync_BarrierInAGap(t *testing.T) {
	ownStore(t, "a second client comes as the superuser, which Start refuses")
	t.Parallel()
	db := audittest.NewDatabase(t)
	db.Exec(t, todoTable)
	a := audittest.Open(t, db, audit.Config{})
	mustStart(t, a)
	other := openClient(t, audit.Config{SourceURL: db.URL()})
	if err := other.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	a.Sync(t)
	// The store cannot be written: what comes now waits, and goes with the slot.
	blocker := db.Connect(t)
	if _, err := blocker.Exec(t.Context(), "BEGIN; LOCK TABLE audit.checkpoints IN SHARE MODE"); err != nil {
		t.Fatal(err)
	}
	synced := make(chan error, 2)
	for _, c := range []*audit.Client{a.Client, other} {
		go func() { synced <- c.Sync(t.Context()) }()
	}
	faulttest.Poll(t, faulttest.Patience, "the slot is dropped", func() error {
		_, err := blocker.Exec(t.Context(), "SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE slot_name = (SELECT slot FROM audit.checkpoints)")
		if err != nil {
			return err
		}
		conn := db.Connect(t)
		defer func() { _ = conn.Close(t.Context()) }()
		tag, err := conn.Exec(t.Context(), "SELECT pg_drop_replication_slot(slot) FROM audit.checkpoints WHERE EXISTS (SELECT FROM pg_replication_slots WHERE slot_name = slot AND NOT active)")
		if err == nil && tag.RowsAffected() == 0 {
			err = errors.New("it is in use")
		}
		return err
	})
	if _, err := blocker.Exec(t.Context(), "ROLLBACK"); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := <-synced; err != nil {
			t.Error(err)
		}
	}
}

// Anybody who may log in can write such messages: they cost their own record, and are
// known by nobody.
func TestSync_MessagesOfStrangers(t *testing.T) {
	t.Parallel()
	a := audittest.New(t, audit.Config{}, todoTable)
	for _, content := range []string{"", "x", "'); DROP TABLE audit.changes; --", "0123456789abcdef0123456789abcdeF", "0123456789abcdef0123456789abcdef0"} {
		a.Exec(t, "SELECT pg_logical_emit_message(true, 'audit_sync', $1::text)", content)
	}
	for range 2 { // one may be there twice
		a.Exec(t, "SELECT pg_logical_emit_message(true, 'audit_sync', '0123456789abcdef0123456789abcdef')")
	}
	a.Sync(t)
	if n := audittest.Value[int](t, a.Database, "SELECT count(*) FROM audit.barriers WHERE nonce LIKE '%0123456789abcdef%'"); n != 1 {
		t.Errorf("%d messages of strangers are kept, want 1", n)
	}
}

// A trial that fails for another reason does not say that the server does not decode.
func TestStart_WALLevelOfAnotherNameAndNoSlotLeft(t *testing.T) {
	t.Parallel()
	db := audittest.NewServer(t, audittest.ServerOptions{Settings: map[string]string{"max_replication_slots": "1"}}).NewDatabase(t)
	db.Exec(t, todoTable+"; SELECT pg_create_physical_replication_slot('taken')")
	proxy := faulttest.NewProxy(t, db.URL())
	proxy.Rewrite(func(answer []byte) {
		for at := bytes.Index(answer, []byte("logical")); at >= 0; at = bytes.Index(answer, []byte("logical")) {
			copy(answer[at:], "decoded")
		}
	})
	client := openClient(t, audit.Config{SourceURL: proxy.URL(), StoreURL: db.URL()})
	err := client.Start(t.Context())
	if err == nil || strings.Contains(err.Error(), "wal_level is") || !strings.Contains(err.Error(), "all 1 replication slots are in use") {
		t.Errorf("Start: %v, want that no slot is left, and nothing of wal_level", err)
	}
}

// Whether a server decodes its WAL is tried, where its wal_level has a name of its own.
func TestStart_WALLevelOfAnotherName(t *testing.T) {
	t.Parallel()
	db := audittest.NewDatabase(t)
	db.Exec(t, todoTable)
	proxy := faulttest.NewProxy(t, db.URL())
	proxy.Rewrite(func(answer []byte) {
		for at := bytes.Index(answer, []byte("logical")); at >= 0; at = bytes.Index(answer, []byte("logical")) {
			copy(answer[at:], "decoded")
		}
	})
	// A transaction that a slot would have to wait for.
	writer := db.Connect(t)
	if _, err := writer.Exec(t.Context(), "BEGIN; INSERT INTO todo VALUES (1, 'x')"); err != nil {
		t.Fatal(err)
	}
	client := openClient(t, audit.Config{SourceURL: proxy.URL(), StoreURL: db.URL()})
	short, cancel := context.WithTimeout(t.Context(), 15*time.Second)
	defer cancel()
	var setup *audit.SetupError
	if err := client.Start(short); errors.As(err, &setup) {
		t.Errorf("Start while a transaction is open: %v", err)
	}
	if _, err := writer.Exec(t.Context(), "COMMIT"); err != nil {
		t.Fatal(err)
	}
	if err := client.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	db.Exec(t, "INSERT INTO todo VALUES (2, 'y')")
	if err := client.Sync(t.Context()); err != nil {
		t.Error(err)
	}
	if err := client.Stop(t.Context()); err != nil {
		t.Error(err)
	}
	if n := audittest.Value[int](t, db, "SELECT count(*) FROM pg_replication_slots WHERE slot_name LIKE 'audit_trial%'"); n != 0 {
		t.Errorf("%d slots of the trial are left", n)
	}
}
