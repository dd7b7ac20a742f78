package audit_test

import (
	"context"
	"errors"
	"testing"

	"github.com/hindsight-go/audit"
	"github.com/hindsight-go/audit/audittest"
	"github.com/hindsight-go/audit/capture"
	"github.com/hindsight-go/audit/internal/faulttest"
)

// What a framework's hook gives Start, or a deadline around the start-up, ends with
// the start-up. Capture goes on.
func TestStart_ContextOfTheStartUpEnds(t *testing.T) {
	t.Parallel()
	for name, bound := range map[string]func(context.Context) (context.Context, context.CancelFunc){
		"cancelled": context.WithCancel,
		"timeout": func(ctx context.Context) (context.Context, context.CancelFunc) {
			return context.WithTimeout(ctx, faulttest.Patience)
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			db := audittest.NewDatabase(t)
			db.Exec(t, gapTable)
			a := audittest.Open(t, db, audit.Config{})
			ctx, cancel := bound(t.Context())
			err := a.Client.Start(ctx)
			cancel()
			if err != nil {
				t.Fatal(err)
			}
			for id := range 3 {
				expectCapturing(t, a, id)
			}
			if s := statusOf(t, a); s.State != capture.Streaming || s.Err != nil {
				t.Errorf("capture is %s, error %v", s.State, s.Err)
			}
		})
	}
}

// A start-up that was cut short leaves nothing behind that captures, and the client
// starts again.
func TestStart_ContextHasEnded(t *testing.T) {
	t.Parallel()
	db := audittest.NewDatabase(t)
	db.Exec(t, gapTable)
	a := audittest.Open(t, db, audit.Config{})
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := a.Client.Start(ctx); !errors.Is(err, context.Canceled) {
		t.Fatalf("Start returned %v", err)
	}
	if s := statusOf(t, a); s.State != capture.Stopped || !errors.Is(s.Err, context.Canceled) {
		t.Errorf("capture is %s, error %v", s.State, s.Err)
	}
	mustStart(t, a)
	expectCapturing(t, a, 1)
}

func TestRun_ContextEnds(t *testing.T) {
	t.Parallel()
	db := audittest.NewDatabase(t)
	db.Exec(t, gapTable)
	a := audittest.Open(t, db, audit.Config{})
	ctx, cancel := context.WithCancel(t.Context())
	ran := make(chan error, 1)
	go func() { ran <- a.Client.Run(ctx) }()
	awaitState(t, a, capture.Streaming)
	db.Exec(t, "INSERT INTO todo SELECT n, 'x' FROM generate_series(1, 5000) n")
	a.Sync(t)
	cancel()
	if err := <-ran; err != nil {
		t.Errorf("Run returned %v", err)
	}
	waitInactive(t, db)
	if !audittest.Value[bool](t, db, "SELECT confirmed_flush_lsn = position FROM pg_replication_slots, audit.checkpoints WHERE slot_name = $1", slotOf(db)) {
		t.Error("the slot is not confirmed up to the checkpoint")
	}
	if s := statusOf(t, a); s.State != capture.Stopped || s.Err != nil {
		t.Errorf("capture is %s, error %v", s.State, s.Err)
	}
}

func TestRun_StopEndsIt(t *testing.T) {
	t.Parallel()
	db := audittest.NewDatabase(t)
	db.Exec(t, gapTable)
	a := audittest.Open(t, db, audit.Config{})
	ran := make(chan error, 1)
	go func() { ran <- a.Client.Run(t.Context()) }()
	awaitState(t, a, capture.Streaming)
	a.Stop(t)
	if err := <-ran; err != nil {
		t.Errorf("Run returned %v", err)
	}
}

// An end that nobody asked for is Run's error, and stays in Status. The client
// starts, and fails, again at once.
func TestRun_CaptureFails(t *testing.T) {
	t.Parallel()
	db := audittest.NewDatabase(t)
	db.Exec(t, gapTable)
	a := audittest.Open(t, db, audit.Config{OnGap: audit.StopAtGap})
	mustStart(t, a)
	expectCapturing(t, a, 1)
	a.Stop(t)
	waitInactive(t, db)
	db.Exec(t, "SELECT pg_drop_replication_slot($1)", slotOf(db))
	for range 3 {
		var gap *audit.GapError
		if err := a.Client.Run(t.Context()); !errors.As(err, &gap) {
			t.Fatalf("Run returned %v, want a *GapError", err)
		}
		if s := statusOf(t, a); !errors.As(s.Err, &gap) {
			t.Errorf("capture is %s, error %v", s.State, s.Err)
		}
	}
}
