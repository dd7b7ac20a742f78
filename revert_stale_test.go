package audit_test

import (
	"errors"
	"testing"

	"github.com/hindsight-go/audit"
)

// A plan whose rows are as they were can be out of date nevertheless: what depends
// on them, or has taken their place, is not to be lost either.
func TestPlanIsStaleWhenOthersDependOnItsRows(t *testing.T) {
	t.Parallel()
	const schema = `
		CREATE TABLE a (id int PRIMARY KEY, email text UNIQUE);
		CREATE TABLE b (id int PRIMARY KEY, a int REFERENCES a ON DELETE CASCADE);
		CREATE TABLE c (id int PRIMARY KEY, a int REFERENCES a ON DELETE SET NULL);
		INSERT INTO a VALUES (1, 'ann'), (2, 'bob'), (3, 'cyd');
		INSERT INTO b VALUES (1, 2);`
	for name, h := range map[string]struct{ request, meanwhile string }{
		"ChildThatWouldBeDeleted":  {"INSERT INTO a VALUES (9, 'new')", "INSERT INTO b VALUES (7, 9)"},
		"ChildThatWouldBeUnlinked": {"INSERT INTO a VALUES (9, 'new')", "INSERT INTO c VALUES (7, 9)"},
		"ValueTaken":               {"UPDATE a SET email = 'ann2' WHERE id = 1", "UPDATE a SET email = 'ann' WHERE id = 3"},
		"ValueOfADeletedRowTaken":  {"DELETE FROM a WHERE id = 3", "INSERT INTO a VALUES (4, 'cyd')"},
		"ParentRemoved":            {"DELETE FROM b WHERE id = 1", "DELETE FROM a WHERE id = 2"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			u := newUndo(t, schema)
			u.request(t, "first", h.request)
			plan, err := u.Client.RevertRequest("first").Plan(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			u.Exec(t, h.meanwhile)
			now := u.state(t)
			var stale *audit.StaleError
			if _, err := plan.Apply(t.Context()); !errors.As(err, &stale) || len(stale.Key) != 1 {
				t.Errorf("applying the plan gives %v", err)
			}
			u.want(t, "the plan wrote something", now)
			overwrite := u.Client.RevertRequest("first").OnConflict(audit.Overwrite).IfHash(plan.Hash)
			if _, err := overwrite.Apply(t.Context()); !errors.As(err, &stale) {
				t.Errorf("applying what was agreed to gives %v", err)
			}
			u.want(t, "the hash let something through", now)
			var blocked *audit.ConflictError
			if _, err := u.Client.RevertRequest("first").Apply(t.Context()); !errors.As(err, &blocked) {
				t.Errorf("applying anew gives %v", err)
			}
		})
	}
}

// A plan that has conflicts says so also when it is applied.
func TestPlanInConflictIsNotApplied(t *testing.T) {
	t.Parallel()
	u := newUndo(t, shop)
	u.request(t, "first", "UPDATE customer SET city = 'Bonn'")
	u.request(t, "second", "DELETE FROM customer WHERE id = 3", "UPDATE customer SET city = 'Kyiv' WHERE id = 1")
	now := u.state(t)
	plan, err := u.Client.RevertRequest("first").Plan(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var blocked *audit.ConflictError
	if _, err := plan.Apply(t.Context()); !errors.As(err, &blocked) || len(blocked.Conflicts) != 2 {
		t.Errorf("applying the plan gives %v", err)
	}
	u.want(t, "the plan wrote something", now)
}
