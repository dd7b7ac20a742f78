package audit_test

import (
	"errors"
	"strings"
	"testing"

	"github.com/hindsight-go/audit"
)

// Where triggers are off, so are the actions of foreign keys: what references a row to be
// removed is in the way of Overwrite, too.
func TestRevert_OverwriteOfAReferencedRowWithoutTriggers(t *testing.T) {
	t.Parallel()
	for name, h := range map[string]struct{ action, request, later, conflict string }{
		"DeleteCascade": {"ON DELETE CASCADE", "INSERT INTO p VALUES (9, 9)", "INSERT INTO c VALUES (1, 9)", "row referenced public.p[9]"},
		"DeleteSetNull": {"ON DELETE SET NULL", "INSERT INTO p VALUES (9, 9)", "INSERT INTO c VALUES (1, 9)", "row referenced public.p[9]"},
		"UpdateCascade": {"ON UPDATE CASCADE", "UPDATE p SET id = 9 WHERE id = 1", "INSERT INTO c VALUES (1, 9)", "row referenced public.p[9]"},
		"Deferrable":    {"ON DELETE CASCADE DEFERRABLE INITIALLY DEFERRED", "INSERT INTO p VALUES (9, 9)", "INSERT INTO c VALUES (1, 9)", "row referenced public.p[9]"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			u := newUndo(t, "CREATE TABLE p (id int PRIMARY KEY, n int); CREATE TABLE c (id int PRIMARY KEY, p int REFERENCES p "+h.action+"); INSERT INTO p VALUES (1, 1)")
			u.request(t, "first", h.request)
			u.as(t, audit.Context{UserID: "bob", RequestID: "later"}, h.later)
			now := u.state(t)
			r := u.Client.RevertRequest("first").WithoutTriggers().OnConflict(audit.Overwrite)
			wantConflicts(t, r, h.conflict)
			var blocked *audit.ConflictError
			if _, err := r.Apply(t.Context()); !errors.As(err, &blocked) {
				t.Errorf("the revert gives %v", err)
			}
			u.want(t, "after that", now)
			// The triggers of the foreign key do it.
			apply(t, u.Client.RevertRequest("first").OnConflict(audit.Overwrite))
		})
	}
}

// A table whose key is another column since goes back to a moment at which this had no
// value only without it.
func TestRevert_TablesBackOverASwapOfTheKey(t *testing.T) {
	t.Parallel()
	for name, h := range map[string]struct {
		setup, work, swap string
	}{
		"Int": {
			"CREATE TABLE a (id int PRIMARY KEY, n text); INSERT INTO a VALUES (1, 'one'), (2, 'two'), (3, 'three')",
			"ALTER TABLE a ADD new bigint", "ALTER TABLE a DROP CONSTRAINT a_pkey; ALTER TABLE a RENAME id TO old; ALTER TABLE a RENAME new TO id; ALTER TABLE a ALTER id SET NOT NULL; ALTER TABLE a ADD PRIMARY KEY (id)",
		},
		"OldColumnDropped": {
			"CREATE TABLE a (id int PRIMARY KEY, n text); INSERT INTO a VALUES (1, 'one'), (2, 'two'), (3, 'three')",
			"ALTER TABLE a ADD new bigint", "ALTER TABLE a DROP CONSTRAINT a_pkey; ALTER TABLE a DROP id; ALTER TABLE a RENAME new TO id; ALTER TABLE a ADD PRIMARY KEY (id)",
		},
		"OfTwoColumns": {
			"CREATE TABLE a (id int, n text, k int DEFAULT 0, PRIMARY KEY (k, id)); INSERT INTO a VALUES (1, 'one'), (2, 'two'), (3, 'three')",
			"ALTER TABLE a ADD new bigint", "ALTER TABLE a DROP CONSTRAINT a_pkey; ALTER TABLE a RENAME id TO old; ALTER TABLE a RENAME new TO id; ALTER TABLE a ADD PRIMARY KEY (k, id)",
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			u := newUnchecked(t, h.setup)
			begin := u.position(t)
			u.request(t, "work", "UPDATE a SET n = 'deux' WHERE id = 2", "DELETE FROM a WHERE id = 3")
			u.Exec(t, h.work)
			filling := u.position(t)
			u.request(t, "fill", "UPDATE a SET new = id * 10")
			u.Exec(t, h.swap)
			u.Sync(t)
			now := u.state(t)
			key := []any{10}
			if name == "OfTwoColumns" {
				key = []any{0, 10}
			}
			for what, r := range map[string]audit.Reversal{
				"tables": u.Client.RevertTables(u.Client.AtPosition(begin), "public.a"),
				"row":    u.Client.RevertRow(u.Client.AtPosition(begin), "public.a", key...),
				"fill":   u.Client.RevertRequest("fill"),
				"since":  u.Client.RevertTables(u.Client.AtPosition(filling), "public.a"),
			} {
				for _, policy := range []audit.Policy{audit.Abort, audit.Overwrite} {
					var refused *audit.UnrevertableError
					if _, err := r.OnConflict(policy).Apply(t.Context()); !errors.As(err, &refused) || !strings.Contains(err.Error(), "key") || refused.Table != "public.a" {
						t.Errorf("%s: the revert gives %v", what, err)
					}
				}
				u.want(t, "after that", now)
			}
			if name == "Int" { // the filling did nothing else
				apply(t, u.Client.RevertTables(u.Client.AtPosition(filling), "public.a").Except("id"))
				u.want(t, "without the key", now)
			}
		})
	}
}
