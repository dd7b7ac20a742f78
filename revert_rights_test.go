package audit_test

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/hindsight-go/audit"
	"github.com/hindsight-go/audit/audittest"
)

// asRole runs a revert in a transaction of a role's, and rolls it back unless it went
// well.
func (u *undo) asRole(t *testing.T, role string, r audit.Reversal) (result *audit.Result, err error) {
	t.Helper()
	err = pgx.BeginFunc(t.Context(), u.Connect(t), func(tx pgx.Tx) (err error) {
		if _, err = tx.Exec(t.Context(), "SET LOCAL ROLE "+role); err != nil {
			return err
		}
		result, err = r.ApplyTx(t.Context(), tx)
		return err
	})
	return result, err
}

// What the caller's role may not do is refused as a whole, with an error of one
// type and the server's words behind it.
func TestApplyTxMayDoWhatTheRoleMay(t *testing.T) {
	t.Parallel()
	db := audittest.NewDatabase(t)
	db.Exec(t, shop)
	role := newRole(t, db, "")
	a := capturing(t, db, audit.Config{Tables: []string{"public.*"}})
	u := &undo{Audited: a, conn: a.Connect(t)}
	u.request(t, "first", "UPDATE customer SET city = 'Bonn' WHERE id = 1")
	for _, h := range []struct {
		grant string
		works bool
	}{
		{"SELECT 1", false},
		{"GRANT SELECT ON customer TO %s", false},
		{"GRANT UPDATE (name) ON customer TO %s", false},
		{"REVOKE SELECT ON customer FROM %s; GRANT SELECT (id, city), UPDATE (city) ON customer TO %[1]s", true},
	} {
		grant := h.grant
		if strings.Contains(grant, "%") {
			grant = fmt.Sprintf(grant, role)
		}
		u.Exec(t, grant)
		now := u.state(t)
		var refused *audit.ApplyError
		switch result, err := u.asRole(t, role, u.Client.RevertRequest("first")); {
		case h.works && (err != nil || result.Updated != 1):
			t.Errorf("after %q: %v", grant, err)
		case !h.works && (!errors.As(err, &refused) || refused.Table != "public.customer" || !strings.HasSuffix(err.Error(), "the role lacks a privilege, or a policy of row-level security forbids it")):
			t.Errorf("after %q: %v", grant, err)
		case !h.works:
			u.want(t, "something was written", now)
		}
	}
	u.holds(t, "(SELECT city = 'Rome' FROM customer WHERE id = 1)")
}

// Triggers are only off for roles that may turn them off.
func TestWithoutTriggersIsForRolesThatMay(t *testing.T) {
	t.Parallel()
	db := audittest.NewDatabase(t)
	db.Exec(t, shop)
	role := newRole(t, db, "")
	a := capturing(t, db, audit.Config{Tables: []string{"public.*"}})
	u := &undo{Audited: a, conn: a.Connect(t)}
	u.Exec(t, "GRANT ALL ON customer, orders TO "+role)
	u.request(t, "first", "UPDATE customer SET city = 'Bonn' WHERE id = 1")
	now := u.state(t)
	var refused *audit.ApplyError
	if _, err := u.asRole(t, role, u.Client.RevertRequest("first").WithoutTriggers()); !errors.As(err, &refused) || !strings.Contains(err.Error(), "session_replication_role") {
		t.Errorf("the revert gives %v", err)
	}
	u.want(t, "something was written", now)
	if _, err := u.asRole(t, role, u.Client.RevertRequest("first")); err != nil {
		t.Error(err)
	}
}

// tenants has rows of two tenants, of whom the role sees but one, the owner of the
// tables included.
const tenants = `
	CREATE TABLE a (id int PRIMARY KEY, tenant text, n int); CREATE TABLE b (id int PRIMARY KEY, tenant text, a int REFERENCES a ON DELETE CASCADE);
	INSERT INTO a VALUES (1, 'mine', 1), (2, 'theirs', 2);
	ALTER TABLE a ENABLE ROW LEVEL SECURITY; ALTER TABLE a FORCE ROW LEVEL SECURITY; ALTER TABLE b ENABLE ROW LEVEL SECURITY; ALTER TABLE b FORCE ROW LEVEL SECURITY;
	CREATE POLICY seen ON a USING (tenant = 'mine') WITH CHECK (tenant = 'mine' AND n < 100); CREATE POLICY seen ON b USING (tenant = 'mine')`

func newTenants(t *testing.T) (*undo, string) {
	t.Helper()
	db := audittest.NewDatabase(t)
	db.Exec(t, tenants)
	role := newRole(t, db, "")
	a := capturing(t, db, audit.Config{Tables: []string{"public.*"}})
	db.Exec(t, fmt.Sprintf("ALTER TABLE a OWNER TO %s; ALTER TABLE b OWNER TO %[1]s", role))
	return &undo{Audited: a, conn: a.Connect(t)}, role
}

// A policy's WITH CHECK refuses what its USING lets be seen.
func TestPolicyThatForbidsTheRestoredRow(t *testing.T) {
	t.Parallel()
	for name, request := range map[string]string{
		"Update": "UPDATE a SET n = 1 WHERE id = 3", "UpdateOfTheTenant": "UPDATE a SET tenant = 'mine' WHERE id = 2", "Insert": "DELETE FROM a WHERE id = 3",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			u, role := newTenants(t)
			u.Exec(t, "INSERT INTO a VALUES (3, 'mine', 1000)")
			u.request(t, "first", request)
			now := u.state(t)
			var refused *audit.ApplyError
			if _, err := u.asRole(t, role, u.Client.RevertRequest("first")); !errors.As(err, &refused) || refused.Table != "public.a" {
				t.Errorf("the revert gives %v", err)
			}
			u.want(t, "something was written", now)
		})
	}
}

// A row that was made and cannot be seen is not taken for one that is gone.
func TestHiddenRowThatWouldBeRemoved(t *testing.T) {
	t.Parallel()
	u, role := newTenants(t)
	u.request(t, "first", "INSERT INTO a VALUES (3, 'mine', 3), (4, 'theirs', 4)")
	var blocked *audit.ConflictError
	_, err := u.asRole(t, role, u.Client.RevertRequest("first"))
	if !errors.As(err, &blocked) || len(blocked.Conflicts) != 1 || blocked.Conflicts[0].Kind != audit.RowGone ||
		!strings.Contains(blocked.Conflicts[0].String(), "row-level security") {
		t.Fatalf("the revert gives %v", err)
	}
	// What is left out is said, and whoever may see it can remove it yet.
	result, err := u.asRole(t, role, u.Client.RevertRequest("first").OnConflict(audit.Skip))
	if err != nil || result.Deleted != 1 || result.Skipped != 1 || result.Unchanged != 0 {
		t.Fatalf("Skip gives %+v, %v", result, err)
	}
	if again := apply(t, u.Client.RevertRequest("first")); again.Already != nil {
		t.Error("the rest counts as reverted already")
	}
	u.holds(t, "NOT EXISTS (SELECT FROM a WHERE id > 2)")
}

// Rows that cannot be seen are deleted by a cascade, as by any DELETE of the role:
// that is what docs/revert.md says. Whoever sees them is told first.
func TestHiddenRowThatReferencesOneToBeRemoved(t *testing.T) {
	t.Parallel()
	u, role := newTenants(t)
	u.request(t, "first", "INSERT INTO a VALUES (3, 'mine', 3)")
	u.request(t, "second", "INSERT INTO b VALUES (1, 'theirs', 3)")
	wantConflicts(t, u.Client.RevertRequest("first"), "row referenced public.a[3]")
	if _, err := u.asRole(t, role, u.Client.RevertRequest("first")); err != nil {
		t.Error(err)
	}
	u.holds(t, "NOT EXISTS (SELECT FROM b)")
}

// The role of SourceURL needs to read and write the tables, and nothing else.
func TestRevertAsAPlainRole(t *testing.T) {
	t.Parallel()
	db := audittest.NewDatabase(t)
	db.Exec(t, shop+"REVOKE TEMPORARY ON DATABASE "+db.Name()+" FROM PUBLIC")
	role := newRole(t, db, "")
	a := capturing(t, db, audit.Config{Tables: []string{"public.*"}})
	u := &undo{Audited: a, conn: a.Connect(t)}
	u.Exec(t, "GRANT SELECT, INSERT, UPDATE, DELETE ON customer, orders TO "+role+"; INSERT INTO customer SELECT i, 'x' FROM generate_series(10, 3000) i")
	before := u.state(t)
	u.request(t, "small", "UPDATE customer SET city = 'Bonn' WHERE id < 4", "DELETE FROM orders WHERE id = 10", "INSERT INTO customer VALUES (5, 'new', '')")
	u.request(t, "large", "UPDATE customer SET city = 'Kyiv' WHERE id > 5")
	client, err := audit.Open(t.Context(), audit.Config{SourceURL: asRole(t, db, role), StoreURL: db.URL(), Tables: []string{"public.*"}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(client.Close)
	for _, id := range []string{"small", "large"} {
		plan, err := client.RevertRequest(id).Plan(t.Context())
		if err != nil {
			t.Fatalf("%s: %v", id, err)
		}
		if _, err := plan.Apply(t.Context()); err != nil {
			t.Errorf("%s: %v", id, errors.Join(err, errors.Unwrap(err)))
		}
	}
	if !slices.Equal(before, u.state(t)) {
		t.Error("not all rows are back")
	}
}
