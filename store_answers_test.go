package audit_test

import (
	"testing"

	"github.com/hindsight-go/audit"
	"github.com/hindsight-go/audit/audittest"
)

// What the store answers in the midst of a batch is read there: neither side waits
// for the other to listen.
func TestWriter_ManyAnswersInOneTransaction(t *testing.T) {
	t.Parallel()
	const rows = 30_000
	a := audittest.New(t, audit.Config{}, "CREATE TABLE todo (id int PRIMARY KEY, task text)")
	a.Exec(t, "INSERT INTO todo SELECT n, 'x' FROM generate_series(1, $1::int) n", rows)
	a.Exec(t, "BEGIN; ALTER TABLE todo REPLICA IDENTITY DEFAULT; UPDATE todo SET task = 'y'; COMMIT")
	a.Sync(t)
	if n := audittest.Value[int](t, a.Database, "SELECT count(*) FROM audit.changes WHERE operation = 'UPDATE' AND before ->> 'task' = 'x' AND defect IS NULL"); n != rows {
		t.Errorf("%d of %d changes were completed", n, rows)
	}
}
