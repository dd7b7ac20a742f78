package audit_test

import (
	"errors"
	"testing"

	"github.com/hindsight-go/audit"
)

// What counts is what a revert has to keep: of a row that was written often, that is
// what was there first and last.
func TestMaxMemoryIsNotUsedUpByOneRow(t *testing.T) {
	t.Parallel()
	for name, table := range map[string]string{"Key": "id int PRIMARY KEY, body text", "NoKey": "id int, body text", "Deferrable": "id int PRIMARY KEY DEFERRABLE, body text"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			u := newUndo(t, "CREATE TABLE hot ("+table+"); ALTER TABLE hot REPLICA IDENTITY FULL; INSERT INTO hot VALUES (1, '')")
			before := u.state(t)
			u.request(t, "work", "DO $$ BEGIN FOR i IN 1..100 LOOP UPDATE hot SET body = i || repeat('x', 50000); END LOOP; END $$",
				"DELETE FROM hot", "INSERT INTO hot VALUES (1, repeat('y', 50000))", "UPDATE hot SET body = repeat('z', 50000)")
			if _, err := u.Client.RevertRequest("work").MaxMemory(1 << 20).Apply(t.Context()); err != nil {
				t.Error(err)
			}
			u.want(t, "after the revert", before)
		})
	}
}

// A row that was changed before it was deleted takes as much as one that was only
// deleted.
func TestMaxMemoryCountsWideRows(t *testing.T) {
	t.Parallel()
	u := newUndo(t, `DO $$ BEGIN EXECUTE 'CREATE TABLE wide (id int PRIMARY KEY, ' || (SELECT string_agg('c' || i || ' int', ', ') FROM generate_series(1, 100) i) || ')'; END $$`,
		"INSERT INTO wide SELECT i FROM generate_series(1, 300) i")
	u.request(t, "delete", "DELETE FROM wide WHERE id <= 100")
	u.request(t, "both", "UPDATE wide SET c1 = 1 WHERE id BETWEEN 101 AND 200", "DELETE FROM wide WHERE id BETWEEN 101 AND 200")
	u.request(t, "bit by bit", "DO $$ BEGIN FOR i IN 1..100 LOOP EXECUTE 'UPDATE wide SET c' || i || ' = 1 WHERE id > 200'; END LOOP; END $$")
	for _, id := range []string{"delete", "both", "bit by bit"} {
		var large *audit.TooLargeError
		if _, err := u.Client.RevertRequest(id).MaxMemory(100 * 100 * 80).Plan(t.Context()); !errors.As(err, &large) {
			t.Errorf("%s: %v", id, err)
		}
		if _, err := u.Client.RevertRequest(id).MaxMemory(4 * 100 * 100 * 80).Plan(t.Context()); err != nil {
			t.Errorf("%s: %v", id, err)
		}
	}
}

// A plan says the same each time, also when it is carried out twice at once.
func TestMaxMemoryOfAPlanIsNotUsedUp(t *testing.T) {
	t.Parallel()
	u := newUndo(t, shop)
	u.request(t, "work", "UPDATE customer SET city = 'Bonn'")
	plan, err := u.Client.RevertRequest("work").MaxMemory(20_000).Plan(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	u.request(t, "later", "UPDATE customer SET city = repeat('x', 5000) WHERE id = 1")
	for range 5 {
		first := inBackground(func() (*audit.Result, error) { return plan.DryRun(t.Context()) })
		second := inBackground(func() (*audit.Result, error) { return plan.DryRun(t.Context()) })
		for _, done := range []<-chan error{first, second} {
			var stale *audit.StaleError
			if err := <-done; !errors.As(err, &stale) {
				t.Errorf("the plan gives %v", err)
			}
		}
	}
}

// That changes do not lie in the store as they came makes no more rows of them.
func TestMaxRowsOfChangesOutOfOrder(t *testing.T) {
	t.Parallel()
	u := newUndo(t, "CREATE TABLE moved (id int PRIMARY KEY, v text); INSERT INTO moved VALUES (1, 'a')")
	before := u.state(t)
	u.request(t, "work", "UPDATE moved SET v = 'b'", "UPDATE moved SET id = 2", "UPDATE moved SET v = 'c'")
	if err := u.Client.Sync(t.Context()); err != nil {
		t.Fatal(err)
	}
	// The one in the middle lies behind the others.
	u.Exec(t, "UPDATE audit.changes SET queued_at = queued_at WHERE previous_key IS NOT NULL")
	if _, err := u.Client.RevertRequest("work").MaxRows(1).Apply(t.Context()); err != nil {
		t.Error(err)
	}
	u.want(t, "after the revert", before)
	u.Check(t)
}
