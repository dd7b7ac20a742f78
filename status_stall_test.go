package audit_test

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/hindsight-go/audit"
	"github.com/hindsight-go/audit/audittest"
	"github.com/hindsight-go/audit/internal/faulttest"
)

// While the instance that captures is cut off and can say nothing, one that waits says that
// it makes no progress; and no more of it once somebody captures.
func TestStatus_HolderStalls(t *testing.T) {
	t.Parallel()
	db := audittest.NewServer(t, audittest.ServerOptions{Settings: map[string]string{"max_slot_wal_keep_size": "4GB"}}).NewDatabase(t)
	db.Exec(t, gapTable+"; CREATE TABLE other (v text)")
	store := audittest.NewDatabase(t)
	proxy := faulttest.NewProxy(t, store.URL())
	holder := openClient(t, audit.Config{SourceURL: db.URL(), StoreURL: proxy.URL(), Tables: []string{"public.todo"}})
	if err := holder.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	waiting := openClient(t, audit.Config{SourceURL: db.URL(), StoreURL: store.URL(), Tables: []string{"public.todo"}})
	if err := waiting.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	warned := func() bool {
		t.Helper()
		s, err := waiting.Status(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return slices.ContainsFunc(s.Warnings, func(w audit.Warning) bool { return w.Code == audit.WarningHolderStalls })
	}
	write := func() {
		db.Exec(t, "INSERT INTO other SELECT repeat(md5(i::text), 20) FROM generate_series(1, 2000) i; UPDATE todo SET task = task || 'x'")
	}
	write()
	if warned() {
		t.Error("the holder is said to stall, and does not")
	}
	proxy.Freeze()
	faulttest.Poll(t, faulttest.Patience, "the waiting instance says that the holder stalls, or captures itself", func() error {
		write()
		if !warned() {
			return fmt.Errorf("it does not")
		}
		return nil
	})
	holder.Close()
	faulttest.Poll(t, faulttest.Patience, "somebody captures, and nobody is said to stall", func() error {
		if warned() {
			return fmt.Errorf("it is said")
		}
		faulttest.Pause(t, 100*time.Millisecond)
		return nil
	})
}
