package audit_test

import (
	"errors"
	"net/url"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/hindsight-go/audit"
	"github.com/hindsight-go/audit/audittest"
)

// policied makes a history that a role may read, but for the changes of one user.
func policied(t *testing.T) (a *audittest.Audited, then audit.Point, reader *audit.Client) {
	t.Helper()
	a = audittest.New(t, audit.Config{Tables: []string{"public.*"}}, todoTable, "INSERT INTO todo VALUES (1, 'first'), (2, 'second'), (3, 'third')")
	then = here(t, a)
	a.Exec(t, "UPDATE todo SET task = 'changed' WHERE id = 1")
	a.Exec(t, `BEGIN; SELECT pg_logical_emit_message(true, 'audit', '{"userId": "secret", "requestId": "r"}'); UPDATE todo SET task = 'hidden' WHERE id IN (2, 3); COMMIT`)
	a.Exec(t, `BEGIN; SELECT pg_logical_emit_message(true, 'audit', '{"requestId": "r"}'); UPDATE todo SET is_completed = true WHERE id = 3; COMMIT`)
	a.Sync(t)
	role := newRole(t, a.Database, "PASSWORD 'reader'")
	a.Exec(t, `GRANT USAGE ON SCHEMA audit TO `+role+`;
		GRANT SELECT ON audit.changes, audit.checkpoints, audit.commit_times, audit.relations, audit.coverage, audit.gaps, audit.barriers, audit.clock_jumps, audit.retention, audit.marks, audit.keyframes, audit.keyframe_rows TO `+role+`;
		GRANT SELECT ON todo TO `+role+`;
		ALTER TABLE audit.changes ENABLE ROW LEVEL SECURITY;
		CREATE POLICY few ON audit.changes FOR SELECT TO `+role+` USING (context ->> 'userId' IS DISTINCT FROM 'secret')`)
	u, err := url.Parse(a.URL())
	if err != nil {
		t.Fatal(err)
	}
	u.User = url.UserPassword(role, "reader")
	reader, err = audit.Open(t.Context(), audit.Config{SourceURL: u.String()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(reader.Close)
	return a, then, reader
}

// A role that sees a part of the changes lists that part, and is told no past and
// plans no revert that was computed from it.
func TestRowSecurity_PartOfHistoryIsNoPast(t *testing.T) {
	ownStore(t, "a policy on the store applies to the writer, which Start refuses")
	t.Parallel()
	a, then, reader := policied(t)
	if n, err := reader.Changes().Count(t.Context()); err != nil || n != 2 {
		t.Errorf("the role lists %d changes, want 2: %v", n, err)
	}
	if changes, err := reader.Changes().List(t.Context()); err != nil || len(changes) != 2 {
		t.Errorf("the role lists %d changes, want 2: %v", len(changes), err)
	}
	at := must(then.Resolve(t.Context())).Position
	past := reader.AtPosition(at)
	for name, err := range map[string]error{
		"Row":   second(past.Row(t.Context(), "todo", 2)),
		"Count": second(past.Table("todo").Where("task = 'second'").Count(t.Context())),
		"List": func() error {
			var rows []map[string]any
			return past.Table("todo").List(t.Context(), &rows)
		}(),
		"View": past.View(t.Context(), func(tx pgx.Tx) error {
			return second(scan(t.Context(), tx, "SELECT count(*) FROM todo WHERE task = 'second'"))
		}),
		"History":       second(reader.History("todo", 3).List(t.Context())),
		"BeforeRequest": second(reader.BeforeRequest("r").Resolve(t.Context())),
		"Plan":          second(reader.RevertRequest("r").Plan(t.Context())),
	} {
		if !errors.Is(err, audit.ErrRowSecurity) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if n, err := a.Client.AtPosition(at).Table("todo").Where("task = 'second'").Count(t.Context()); err != nil || n != 1 {
		t.Errorf("the owner counts %d, want 1: %v", n, err)
	}
}

// second drops the value.
func second[T any](_ T, err error) error { return err }

// A table with a policy is refused to the role it hides rows from, by the same error.
func TestRowSecurity_PartOfATableIsNoPast(t *testing.T) {
	t.Parallel()
	a, then, reader := policied(t)
	a.Exec(t, `ALTER TABLE audit.changes DISABLE ROW LEVEL SECURITY; ALTER TABLE todo ENABLE ROW LEVEL SECURITY; CREATE POLICY few ON todo USING (id < 3)`)
	past := reader.AtPosition(must(then.Resolve(t.Context())).Position)
	if _, err := past.Table("todo").Count(t.Context()); !errors.Is(err, audit.ErrRowSecurity) {
		t.Errorf("Count: %v", err)
	}
	if _, err := past.Table("todo").Limit(3).Count(t.Context()); !errors.Is(err, audit.ErrRowSecurity) {
		t.Errorf("Count with a limit: %v", err)
	}
}
