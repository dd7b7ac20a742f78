package audit_test

import (
	"errors"
	"testing"

	"github.com/hindsight-go/audit"
)

// A request gave a row another key and removed it: it comes back under its first
// key, which somebody else may have by then, and whoever has the other is left
// alone.
func TestRowThatWasRenamedAndRemoved(t *testing.T) {
	t.Parallel()
	const schema = "CREATE TABLE a (id int PRIMARY KEY, n int); INSERT INTO a VALUES (1, 1), (2, 2)"
	for name, later := range map[string]struct {
		statement string
		conflicts []string
	}{
		"FirstKeyTaken": {"INSERT INTO a VALUES (1, 7)", []string{"row created again public.a[1]"}},
		"OtherKeyTaken": {"INSERT INTO a VALUES (10, 7)", nil},
		"RestoredSince": {"INSERT INTO a VALUES (1, 1)", nil},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			u := newUndo(t, schema)
			u.request(t, "first", "UPDATE a SET id = 10 WHERE id = 1", "DELETE FROM a WHERE id = 10")
			u.as(t, audit.Context{UserID: "bob", RequestID: "second"}, later.statement)
			revert := u.Client.RevertRequest("first")
			wantConflicts(t, revert, later.conflicts...)
			_, err := revert.Apply(t.Context())
			var blocked *audit.ConflictError
			switch {
			case later.conflicts == nil && err != nil:
				t.Error(err)
			case later.conflicts == nil:
				u.holds(t, "EXISTS (SELECT FROM a WHERE id = 1 AND n = 1)")
			case !errors.As(err, &blocked):
				t.Errorf("the revert gives %v", err)
			case blocked.Conflicts[0].Change == nil || blocked.Conflicts[0].Change.Context.RequestID != "second":
				t.Errorf("%s: is not told to be of the second request", blocked.Conflicts[0])
			}
		})
	}
}
