package audit_test

import (
	"errors"
	"testing"

	"github.com/hindsight-go/audit"
)

const versioned = `
	CREATE TABLE page (id int PRIMARY KEY, title text, body text, updated_at timestamptz NOT NULL DEFAULT 'epoch', lock_version int NOT NULL DEFAULT 0);
	CREATE TABLE job (id int PRIMARY KEY, page int);
	INSERT INTO page VALUES (1, 'old', 'body')`

// Columns that are left out are neither restored nor in conflict.
func TestRevert_ExceptColumns(t *testing.T) {
	t.Parallel()
	u := openUndo(t, audit.Config{NeverRestored: []string{}, VersionColumns: []string{}}, versioned)
	u.by(t, "ann", "r1", "UPDATE page SET title = 'new', updated_at = '2020-01-01Z', lock_version = 1", "INSERT INTO page VALUES (2, 'mine')")
	u.by(t, "bob", "r2", "UPDATE page SET body = 'bob', updated_at = '2020-01-02Z', lock_version = 2 WHERE id = 1", "UPDATE page SET lock_version = 1 WHERE id = 2")
	wantConflicts(t, u.Client.RevertRequest("r1"),
		"column changed public.page[1] lock_version", "column changed public.page[1] updated_at", "column changed public.page[2] lock_version")
	revert := u.Client.RevertRequest("r1").Except("updated_at", "lock_version")
	wantConflicts(t, revert)
	result := apply(t, revert)
	if result.Updated != 1 || result.Deleted != 1 {
		t.Errorf("%+v", result)
	}
	u.holds(t, "(SELECT title = 'old' AND body = 'bob' AND lock_version = 2 AND updated_at = '2020-01-02Z' FROM page WHERE id = 1) AND NOT EXISTS (SELECT FROM page WHERE id = 2)")
	var refused *audit.RevertError
	if _, err := revert.Except("no_such").Plan(t.Context()); !errors.As(err, &refused) || refused.Method != "Except" {
		t.Errorf("a column that there is not gives %v", err)
	}
}

// Rows that come back do so whole.
func TestRevert_ExceptColumnsOfARowThatComesBack(t *testing.T) {
	t.Parallel()
	u := newUndo(t, versioned, "UPDATE page SET lock_version = 7")
	before := u.state(t)
	u.by(t, "ann", "r1", "DELETE FROM page")
	apply(t, u.Client.RevertRequest("r1").Except("lock_version"))
	u.want(t, "after the revert", before)
}

// A table that is left out keeps what the unit did to it, and what others did since is
// not in the way. The unit is the same.
func TestRevert_ExceptTable(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"job", "public.job"} {
		u := newUndo(t, versioned)
		u.by(t, "ann", "r1", "UPDATE page SET title = 'new'", "INSERT INTO job VALUES (1, 1)")
		u.by(t, "worker", "r2", "DELETE FROM job")
		wantConflicts(t, u.Client.RevertRequest("r1"), "row gone public.job[1]")
		result := apply(t, u.Client.RevertRequest("r1").ExceptTable(name))
		u.holds(t, "(SELECT title = 'old' FROM page)")
		if result.Of != (audit.Unit{Kind: "request", ID: "r1"}) {
			t.Errorf("the unit is %s", result.Of)
		}
		if again := apply(t, u.Client.RevertRequest("r1").ExceptTable(name)); again.Already == nil {
			t.Errorf("the second revert gives %+v", again)
		}
		n, err := u.Client.Changes().InRequest("r1").NotTable(name).Count(t.Context())
		if err != nil || n != 1 {
			t.Errorf("NotTable counts %d, %v", n, err)
		}
	}
}
