package audittest_test

import (
	"testing"

	"github.com/hindsight-go/audit"
	"github.com/hindsight-go/audit/audittest"
)

func TestStatesOfADatabase(t *testing.T) {
	t.Parallel()
	a := audittest.New(t, audit.Config{}, "CREATE TABLE parent (id int PRIMARY KEY); CREATE TABLE child (id serial PRIMARY KEY, parent int REFERENCES parent)")
	states := a.States("parent", "child")
	holds := func(want string) {
		t.Helper()
		if got := audittest.Value[string](t, a.Database, "SELECT (SELECT count(*) FROM parent) || ' ' || (SELECT count(*) FROM child)"); got != want {
			t.Errorf("the tables have %s rows, not %s", got, want)
		}
	}
	states.Checkpoint(t, "empty")
	a.Exec(t, "INSERT INTO parent VALUES (1), (2); INSERT INTO child (parent) VALUES (1), (2)")
	states.Checkpoint(t, "two")
	a.Exec(t, "DELETE FROM child WHERE parent = 1; DELETE FROM parent WHERE id = 1; INSERT INTO parent VALUES (3)")
	states.Rollback(t, "two")
	holds("2 2")
	states.Rollback(t, "empty")
	holds("0 0")
	states.RollForward(t)
	holds("2 2")
	states.RollForward(t)
	holds("2 1")
	states.Rollback(t, "empty")
	states.Rollback(t, "empty") // nothing to do
	holds("0 0")
}
