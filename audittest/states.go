package audittest

import (
	"context"
	"fmt"
	"testing"

	"github.com/hindsight-go/audit"
)

// States are named states of a database under test: what its tracked tables hold
// at one moment, to come back to. They are no copies: going back reverts what was
// written since, so it takes as long as that was much, and works while other
// sessions are connected.
//
// A States is for one goroutine, and so is its database while it goes back or
// forward.
type States struct {
	a      *Audited
	tables []string
	marked map[string]audit.Position
	undone []string // ids of the reverts that RollForward takes back, the last one last
}

// States returns an empty set of states of the tables, which must have primary
// keys.
func (a *Audited) States(tables ...string) *States {
	return &States{a: a, tables: tables, marked: make(map[string]audit.Position)}
}

// Checkpoint gives the present state a name; a name may be given again.
func (s *States) Checkpoint(t testing.TB, name string) {
	t.Helper()
	s.a.Sync(t)
	text := Value[string](t, s.a.Database, "SELECT pg_current_wal_insert_lsn()::text")
	position, err := audit.ParsePosition(text)
	if err != nil {
		t.Fatalf("checkpoint %q: %v", name, err)
	}
	s.marked[name] = position
}

// Rollback puts the tables back to what they were at the checkpoint. Sequences
// stay where they are.
func (s *States) Rollback(t testing.TB, name string) {
	t.Helper()
	position, ok := s.marked[name]
	if !ok {
		t.Fatalf("roll back to %q: there is no such checkpoint", name)
	}
	result, err := s.a.Client.RevertTables(s.a.Client.AtPosition(position), s.tables...).
		AllColumns().Reason("roll back to " + name).MaxRows(10_000_000).Apply(context.WithoutCancel(t.Context()))
	if err != nil {
		t.Fatalf("roll back to %q: %v", name, err)
	}
	if result.ID != "" {
		s.undone = append(s.undone, result.ID)
	}
}

// RollForward takes the last Rollback back. What was written since that Rollback
// stays where it is in nobody's way, and fails the test where it is.
func (s *States) RollForward(t testing.TB) {
	t.Helper()
	if err := s.rollForward(context.WithoutCancel(t.Context())); err != nil {
		t.Fatalf("roll forward: %v", err)
	}
}

func (s *States) rollForward(ctx context.Context) error {
	if len(s.undone) == 0 {
		return fmt.Errorf("nothing was rolled back")
	}
	last := s.undone[len(s.undone)-1]
	if _, err := s.a.Client.Redo(last).AllColumns().MaxRows(10_000_000).Apply(ctx); err != nil {
		return err
	}
	s.undone = s.undone[:len(s.undone)-1]
	return nil
}
