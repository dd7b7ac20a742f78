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
	for name, order := range map[string]string{"before its rows": "%[1]s; %[2]s", "behind them": "%[2]s; %[1]s", "among them": "%[2]s; %[1]s; INSERT INTO todo SELECT n, 0 FROM generate_series(2001, 2500) n"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			longOverManyRows(t, order)
		})
	}
}

func longOverManyRows(t *testing.T, order string) {
	t.Helper()
	a := audittest.New(t, audit.Config{MaxContextBytes: 8 << 10}, "CREATE TABLE todo (id int PRIMARY KEY, n int)")
	stamp := fmt.Sprintf(`SELECT pg_logical_emit_message(true, 'audit', '{"userId": "u", "requestId": "r", "sql": "%s"}')`, strings.Repeat("x", 7<<10))
	a.Exec(t, "BEGIN; "+fmt.Sprintf(order, stamp, "INSERT INTO todo SELECT n, 0 FROM generate_series(1, 2000) n")+"; COMMIT")
	a.Exec(t, `BEGIN; SELECT pg_logical_emit_message(true, 'audit', '{"requestId": "short"}'); UPDATE todo SET n = 1; COMMIT`)
	a.Sync(t)
	rows := audittest.Value[int](t, a.Database, "SELECT count(*)::int FROM todo")
	if n := audittest.Value[int](t, a.Database, "SELECT sum(length(context::text))::int FROM audit.changes WHERE operation = 'CREATE'"); n > 65*(8<<10)+rows*1024 || n < 60*(7<<10) {
		t.Errorf("the contexts of %d rows take %d bytes", rows, n)
	}
	if n := audittest.Value[int](t, a.Database, "SELECT count(*) FROM audit.changes WHERE context ->> 'requestId' = 'r' AND context ->> 'userId' = 'u'"); n != rows {
		t.Errorf("%d of %d changes say who made them", n, rows)
	}
	if cut, whole := audittest.Value[int](t, a.Database, "SELECT count(*) FROM audit.changes WHERE defect LIKE 'context of % cut down%'"),
		audittest.Value[int](t, a.Database, "SELECT count(*) FROM audit.changes WHERE context ? 'sql'"); cut+whole != rows || whole < 60 {
		t.Errorf("%d contexts are whole, %d say that they were cut down", whole, cut)
	}
	if n := audittest.Value[int](t, a.Database, "SELECT count(*) FROM audit.changes WHERE context ->> 'requestId' = 'short' AND defect IS NULL"); n != rows {
		t.Errorf("%d of %d short contexts are whole", n, rows)
	}
}
