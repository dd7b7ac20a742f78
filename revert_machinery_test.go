package audit_test

import (
	"testing"

	"github.com/hindsight-go/audit"
	"github.com/hindsight-go/audit/internal/faulttest"
)

const queued = `
	CREATE TABLE page (id int PRIMARY KEY, title text);
	CREATE TABLE river_job (id int PRIMARY KEY, state text);
	CREATE TABLE goose_db_version (id int PRIMARY KEY);
	CREATE SCHEMA pgboss; CREATE TABLE pgboss.job (id int PRIMARY KEY, state text);
	CREATE TABLE river_gauge (id int PRIMARY KEY, level int)`

// A request that enqueued a job is undone, whatever the queue has made of the job since.
func TestRevert_RequestThatEnqueuedAJob(t *testing.T) {
	t.Parallel()
	log := faulttest.NewLog(t)
	u := openUndo(t, audit.Config{Tables: []string{"*.*"}, Logger: log.Logger()}, queued)
	u.by(t, "ann", "r1", "INSERT INTO page VALUES (1, 'new')", "INSERT INTO river_job VALUES (1, 'available')", "INSERT INTO pgboss.job VALUES (1, 'created')",
		"INSERT INTO river_gauge VALUES (1, 1)")
	u.by(t, "worker", "job", "UPDATE river_job SET state = 'completed'", "DELETE FROM pgboss.job", "INSERT INTO goose_db_version VALUES (1)")
	result := apply(t, u.Client.RevertRequest("r1"))
	if result.Deleted != 2 {
		t.Errorf("%+v", result)
	}
	u.holds(t, "NOT EXISTS (SELECT FROM page) AND NOT EXISTS (SELECT FROM river_gauge) AND (SELECT state = 'completed' FROM river_job)")
	if log.Count(`tables="[pgboss.job public.goose_db_version public.river_job]"`) != 1 {
		t.Error("the log does not name the tables")
	}
}

// Whoever names such a table has it tracked.
func TestRevert_QueueThatIsNamed(t *testing.T) {
	t.Parallel()
	u := openUndo(t, audit.Config{Tables: []string{"*.*", "public.river_job", "pgboss.*"}}, queued)
	u.by(t, "ann", "r1", "INSERT INTO river_job VALUES (1, 'available')", "INSERT INTO pgboss.job VALUES (1, 'created')", "INSERT INTO goose_db_version VALUES (1)")
	u.by(t, "worker", "job", "UPDATE river_job SET state = 'completed'")
	wantConflicts(t, u.Client.RevertRequest("r1"), "column changed public.river_job[1] state")
	if result := apply(t, u.Client.RevertRequest("r1").ExceptTable("river_job")); result.Deleted != 1 {
		t.Errorf("%+v", result)
	}
}
