package audit_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/hindsight-go/audit"
	"github.com/hindsight-go/audit/audittest"
	"github.com/hindsight-go/audit/capture"
	"github.com/hindsight-go/audit/internal/faulttest"
)

// Making a slot waits for whoever writes. Stop does not.
func TestStop_WhileASlotIsMade(t *testing.T) {
	t.Parallel()
	db := audittest.NewServer(t, audittest.ServerOptions{}).NewDatabase(t)
	db.Exec(t, gapTable+"; CREATE TABLE elsewhere (id int)")
	a := audittest.Open(t, db, audit.Config{Tables: []string{"public.todo"}})
	mustStart(t, a)
	writer := db.Connect(t)
	if _, err := writer.Exec(t.Context(), "BEGIN; INSERT INTO elsewhere VALUES (1)"); err != nil {
		t.Fatal(err)
	}
	dropSlotUnderReader(t, db)
	faulttest.Poll(t, faulttest.Patience, "the slot being made", func() error {
		if audittest.Value[bool](t, db, `SELECT EXISTS (SELECT FROM pg_stat_activity WHERE datname = current_database() AND state = 'active' AND query LIKE 'SELECT lsn%pg_create_logical%')`) {
			return nil
		}
		return errors.New("nobody makes one")
	})
	ctx, cancel := context.WithTimeout(t.Context(), faulttest.Patience)
	defer cancel()
	if err := a.Client.Stop(ctx); err != nil {
		t.Errorf("Stop waited for the slot: %v", err)
	}
	if s := statusOf(t, a); s.State != capture.Stopped || s.Err != nil {
		t.Errorf("capture is %s: %v", s.State, s.Err)
	}
	if _, err := writer.Exec(t.Context(), "COMMIT"); err != nil {
		t.Fatal(err)
	}
	faulttest.Poll(t, faulttest.Patience, "start", func() error { return a.Client.Start(context.WithoutCancel(t.Context())) })
	expectCapturing(t, a, 1)
}

// atMessage does something in the midst of logging a message.
type atMessage struct {
	slog.Handler
	text string
	do   func()
}

func (h *atMessage) Handle(ctx context.Context, r slog.Record) error {
	if strings.Contains(r.Message, h.text) {
		h.do()
	}
	return h.Handler.Handle(ctx, r)
}

// A capture that has failed and is about to end is none that runs.
func TestStart_WhileAFailedCaptureEnds(t *testing.T) {
	t.Parallel()
	db := audittest.NewServer(t, audittest.ServerOptions{}).NewDatabase(t)
	db.Exec(t, gapTable)
	started := make(chan error, 1)
	handler := &atMessage{Handler: faulttest.NewLog(t).Logger().Handler(), text: "capture has ended"}
	a := audittest.Open(t, db, audit.Config{OnGap: audit.StopAtGap, Logger: slog.New(handler)})
	handler.do = func() {
		handler.do = func() {}
		go func() { started <- a.Client.Start(context.WithoutCancel(t.Context())) }()
		select { // it has the time to be wrong
		case err := <-started:
			started <- err
		case <-time.After(time.Second):
		}
	}
	mustStart(t, a)
	dropSlotUnderReader(t, db)
	var gap *audit.GapError
	if err := <-started; !errors.As(err, &gap) {
		t.Errorf("Start returned %v, want a *GapError", err)
	}
}

// The first Start after a failover knows on which timeline it is, before the control
// file does.
func TestStart_RightAfterAFailover(t *testing.T) {
	t.Parallel()
	server := audittest.NewServer(t, audittest.ServerOptions{Settings: map[string]string{"checkpoint_timeout": "1h"}})
	db := server.NewDatabase(t)
	db.Exec(t, gapTable)
	server.StopImmediate(t)
	promote(t, db)
	a := audittest.Open(t, db, audit.Config{})
	mustStart(t, a)
	if n := audittest.Value[int](t, db, "SELECT timeline FROM audit.checkpoints"); n != 2 {
		t.Errorf("the history begins on timeline %d, want 2", n)
	}
	expectCapturing(t, a, 1)
	a.Stop(t)
	db.Exec(t, "CHECKPOINT")
	mustStart(t, a)
	expectCapturing(t, a, 2)
}

// Somebody detaches a partition, to keep it, and it has its name still.
func TestPartition_NameIsTaken(t *testing.T) {
	t.Parallel()
	for name, taken := range map[string]string{
		"detached partition": "ALTER TABLE audit.changes DETACH PARTITION audit.%[1]s",
		"view":               "DROP TABLE audit.%[1]s; CREATE VIEW audit.%[1]s AS SELECT 1",
		"type":               "DROP TABLE audit.%[1]s; CREATE TYPE audit.%[1]s AS ENUM ('x')",
		"other's child":      "DROP TABLE audit.%[1]s; CREATE TABLE audit.%[1]s () INHERITS (audit.gaps)",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			db := audittest.NewDatabase(t)
			db.Exec(t, gapTable)
			a := audittest.Open(t, db, audit.Config{})
			mustStart(t, a)
			expectCapturing(t, a, 1)
			a.Stop(t)
			month := audittest.Value[string](t, db, "SELECT 'changes_' || to_char(now() AT TIME ZONE 'UTC', 'YYYY_MM')")
			db.Exec(t, fmt.Sprintf(taken, month))
			mustStart(t, a)
			expectCapturing(t, a, 2)
			// Retention knows it by its month.
			db.Exec(t, "SELECT audit.drop_before(now() + interval '2 months')")
			if n := audittest.Value[int](t, db, "SELECT count(*) FROM audit.retention WHERE partition = $1", month+"_2"); n != 1 {
				t.Error("retention does not drop the partition that got another name")
			}
		})
	}
}
