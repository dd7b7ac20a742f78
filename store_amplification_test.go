package audit_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/hindsight-go/audit"
	"github.com/hindsight-go/audit/audittest"
)

// A long context is stored with every change it covers, but not without a bound.
func TestContext_LongOverManyRows(t *testing.T) {
	t.Parallel()
	a := audittest.New(t, audit.Config{MaxContextBytes: 8 << 10}, "CREATE TABLE todo (id int PRIMARY KEY, n int)")
	long := strings.Repeat("x", 7<<10)
	a.Exec(t, fmt.Sprintf(`BEGIN; SELECT pg_logical_emit_message(true, 'audit', '{"userId": "u", "requestId": "r", "sql": "%s"}'); INSERT INTO todo SELECT n, 0 FROM generate_series(1, 2000) n; COMMIT`, long))
	a.Exec(t, `BEGIN; SELECT pg_logical_emit_message(true, 'audit', '{"requestId": "short"}'); UPDATE todo SET n = 1; COMMIT`)
	a.Sync(t)
	if n := audittest.Value[int](t, a.Database, "SELECT sum(length(context::text))::int FROM audit.changes WHERE operation = 'CREATE'"); n > 65*(8<<10)+2000*1024 || n < 60*(7<<10) {
		t.Errorf("the contexts of 2,000 rows take %d bytes", n)
	}
	if n := audittest.Value[int](t, a.Database, "SELECT count(*) FROM audit.changes WHERE context ->> 'requestId' = 'r' AND context ->> 'userId' = 'u'"); n != 2000 {
		t.Errorf("%d of 2,000 changes say who made them", n)
	}
	if cut, whole := audittest.Value[int](t, a.Database, "SELECT count(*) FROM audit.changes WHERE defect LIKE 'context of % cut down%'"),
		audittest.Value[int](t, a.Database, "SELECT count(*) FROM audit.changes WHERE context ? 'sql'"); cut+whole != 2000 || whole < 60 {
		t.Errorf("%d contexts are whole, %d say that they were cut down", whole, cut)
	}
	if n := audittest.Value[int](t, a.Database, "SELECT count(*) FROM audit.changes WHERE context ->> 'requestId' = 'short' AND defect IS NULL"); n != 2000 {
		t.Errorf("%d of 2,000 short contexts are whole", n)
	}
}
