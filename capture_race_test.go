package audit_test

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/hindsight-go/audit"
	"github.com/hindsight-go/audit/audittest"
	"github.com/hindsight-go/audit/capture"
	"github.com/hindsight-go/audit/internal/faulttest"
)

// countingSink counts the transactions that it is given.
type countingSink struct{ commits *int }

func (countingSink) Begin(capture.Transaction)    {}
func (s countingSink) Commit(capture.LSN)         { *s.commits++ }
func (countingSink) Structure(*capture.Structure) {}
func (countingSink) Relation(*capture.Relation)   {}
func (countingSink) Stamp([]byte, int)            {}
func (countingSink) Row(*capture.Row)             {}
func (countingSink) Barrier(string)               {}
func (countingSink) Advance(capture.LSN)          {}
func (countingSink) Flush()                       {}
func (countingSink) Finish()                      {}
func (countingSink) Full() bool                   { return false }
func (countingSink) Idle() bool                   { return true }
func (countingSink) Durable() capture.LSN         { return 0 }
func (countingSink) Err() error                   { return nil }
func (countingSink) Close()                       {}

// Between the look at the slot and its taking, anything can happen to it. Nothing is
// read from a slot that begins behind what the sink holds, nor on another timeline.
func TestReader_SlotChangesBeforeItIsTaken(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		strike   []string // $1 is the slot
		timeline int32
		want     func(error) bool
	}{
		"made anew": {
			[]string{"SELECT pg_drop_replication_slot($1)", "INSERT INTO todo VALUES (2, $1)", "SELECT pg_create_logical_replication_slot($1, 'pgoutput')"},
			0,
			func(err error) bool { var moved *capture.SlotMovedError; return errors.As(err, &moved) },
		},
		"advanced": {
			[]string{"INSERT INTO todo VALUES (2, $1)", "SELECT pg_replication_slot_advance($1, pg_current_wal_lsn())"},
			0,
			func(err error) bool { var moved *capture.SlotMovedError; return errors.As(err, &moved) },
		},
		"failover": {nil, 7, func(err error) bool { return errors.Is(err, capture.ErrTimeline) }},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			db := audittest.NewDatabase(t)
			db.Exec(t, gapTable+"; CREATE PUBLICATION audit FOR TABLE todo")
			slot := slotOf(db)
			from := audittest.Value[string](t, db, "SELECT lsn::text FROM pg_create_logical_replication_slot($1, 'pgoutput')", slot)
			t.Cleanup(func() {
				waitInactive(t, db)
				db.Exec(t, "SELECT pg_drop_replication_slot($1)", slot)
			})
			var position capture.LSN
			if err := position.Scan(from); err != nil {
				t.Fatal(err)
			}
			system := audittest.Value[string](t, db, "SELECT system_identifier::text FROM pg_control_system()")
			pool, err := pgxpool.New(t.Context(), db.URL())
			if err != nil {
				t.Fatal(err)
			}
			defer pool.Close()
			commits, ended := 0, make(chan error, 1)
			reader := capture.New(capture.Config{
				Connect: &pool.Config().ConnConfig.Config, Catalog: pool, Slot: slot, Publication: "audit",
				Prepare: func(context.Context) (capture.Resume, error) {
					for _, sql := range c.strike {
						db.Exec(t, sql, slot)
					}
					db.Exec(t, "INSERT INTO todo VALUES (3, 'behind')")
					return capture.Resume{Position: position, SystemIdentifier: system, Timeline: c.timeline}, nil
				},
				Open: func(context.Context, func()) (capture.Sink, capture.LSN, error) {
					return countingSink{&commits}, position, nil
				},
				Recover: func(_ context.Context, err error) error {
					ended <- err
					return capture.Permanent(err)
				},
			})
			timeout := time.AfterFunc(faulttest.Patience, reader.Stop)
			defer timeout.Stop()
			_ = reader.Run(t.Context()) // Recover has the error.
			select {
			case err := <-ended:
				if !c.want(err) {
					t.Errorf("the session ended with %v", err)
				}
			default:
				t.Error("the session went on")
			}
			if commits > 0 {
				t.Errorf("%d transactions were read behind a hole", commits)
			}
		})
	}
}

// Who saw that a slot is lost does not drop the one that another instance has made
// in its place meanwhile.
func TestDropSlot_MadeAnewMeanwhile(t *testing.T) {
	t.Parallel()
	db := audittest.NewDatabase(t)
	pool, err := pgxpool.New(t.Context(), db.URL())
	if err != nil {
		t.Fatal(err)
	}
	defer pool.Close()
	setup := &capture.Setup{DB: pool, Slot: slotOf(db), Publication: "audit"}
	create := func() capture.Slot {
		t.Helper()
		db.Exec(t, "SELECT pg_create_logical_replication_slot($1, 'pgoutput')", slotOf(db))
		slot, err := setup.SlotState(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return slot
	}
	seen := create()
	db.Exec(t, "SELECT pg_drop_replication_slot($1)", slotOf(db))
	db.Exec(t, "CREATE TABLE todo (id int)")
	made := create()
	if err := setup.DropSlot(t.Context(), seen); err != nil {
		t.Errorf("drop the slot seen first: %v", err)
	}
	if _, err := setup.SlotState(t.Context()); err != nil {
		t.Errorf("the slot that was made meanwhile: %v", err)
	}
	if err := setup.DropSlot(t.Context(), made); err != nil {
		t.Errorf("drop: %v", err)
	}
	if _, err := setup.SlotState(t.Context()); !errors.Is(err, capture.ErrNoSlot) {
		t.Errorf("the slot is still there: %v", err)
	}
	if err := setup.DropSlot(t.Context(), made); err != nil {
		t.Errorf("drop what is gone: %v", err)
	}
}

// Several instances find the slot gone at the same time: one makes it anew, and one
// gap says what was lost.
func TestInstances_SlotDroppedUnderAll(t *testing.T) {
	t.Parallel()
	db := audittest.NewDatabase(t)
	db.Exec(t, gapTable)
	all := make([]*audittest.Audited, 3)
	for i := range all {
		all[i] = audittest.Open(t, db, audit.Config{})
		mustStart(t, all[i])
	}
	for round := 1; round <= 4; round++ {
		dropSlotUnderReader(t, db)
		db.Exec(t, "INSERT INTO todo VALUES ($1, 'perhaps lost')", -round)
		faulttest.Poll(t, faulttest.Patience, "capture goes on", func() error {
			if n := audittest.Value[int](t, db, "SELECT count(*) FROM audit.gaps"); n < round {
				return fmt.Errorf("there are %d gaps", n)
			}
			if !audittest.Value[bool](t, db, "SELECT count(*) = 1 AND bool_and(active) FROM pg_replication_slots WHERE slot_name = $1", slotOf(db)) {
				return errors.New("nobody streams")
			}
			return nil
		})
		db.Exec(t, "INSERT INTO todo VALUES ($1, 'behind')", round)
		all[0].Sync(t)
		if n := audittest.Value[int](t, db, `SELECT count(*) FROM audit.changes WHERE "table" = 'todo' AND primary_key = $1::int::text`, round); n != 1 {
			t.Errorf("round %d: the row behind the gap is %d times in history", round, n)
		}
	}
	if n := audittest.Value[int](t, db, "SELECT count(*) FROM audit.gaps"); n != 4 {
		t.Errorf("there are %d gaps, want one for each of 4 losses", n)
	}
}

// A publication that goes away is no silent hole where nobody looks for tables
// either. From PostgreSQL 18 on the server only warns.
func TestPublication_DroppedWithoutRefresh(t *testing.T) {
	t.Parallel()
	for name, strike := range map[string][]string{
		"dropped":             {"DROP PUBLICATION audit", "INSERT INTO todo VALUES (2, 'lost')"},
		"renamed":             {"ALTER PUBLICATION audit RENAME TO other", "INSERT INTO todo VALUES (2, 'lost')"},
		"dropped for a while": {"DROP PUBLICATION audit", "INSERT INTO todo VALUES (2, 'lost')", "CREATE PUBLICATION audit FOR TABLE todo WITH (publish_via_partition_root)"},
		"in one transaction":  {"BEGIN; DROP PUBLICATION audit; INSERT INTO todo VALUES (2, 'lost'); CREATE PUBLICATION audit FOR TABLE todo WITH (publish_via_partition_root); COMMIT"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			db := audittest.NewDatabase(t)
			db.Exec(t, gapTable)
			a := audittest.Open(t, db, audit.Config{RefreshInterval: -1})
			mustStart(t, a)
			db.Exec(t, "INSERT INTO todo VALUES (1, 'before')")
			a.Sync(t)
			for _, sql := range strike {
				db.Exec(t, sql)
			}
			id := 2
			faulttest.Poll(t, faulttest.Patience, "capture goes on", func() error {
				id++
				db.Exec(t, "INSERT INTO todo VALUES ($1, 'behind')", id)
				a.Sync(t)
				if audittest.Value[int](t, db, "SELECT count(*) FROM audit.changes WHERE primary_key = $1::int::text", id) == 0 {
					return errors.New("the row is not in history")
				}
				return nil
			})
			held := audittest.Value[int](t, db, "SELECT count(*) FROM audit.changes WHERE primary_key = '2'")
			if gaps := audittest.Value[int](t, db, "SELECT count(*) FROM audit.gaps"); held+gaps == 0 {
				t.Error("the row is not in history, and no gap says so")
			}
		})
	}
}
