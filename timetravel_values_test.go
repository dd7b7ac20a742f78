package audit_test

import (
	"errors"
	"strings"
	"testing"

	"github.com/hindsight-go/audit"
	"github.com/hindsight-go/audit/audittest"
)

// A past value that its type of today refuses is told as it was, or refused by the
// name of its column; the value itself is in no error.
func TestPast_ValuesThatTheTypeOfTodayRefuses(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct{ setup, column, alter string }{
		"domain with a new CHECK":     {"CREATE DOMAIN d AS text", "d", "UPDATE x SET v = 'ok'; ALTER DOMAIN d ADD CHECK (VALUE = 'ok')"},
		"domain that became NOT NULL": {"CREATE DOMAIN d AS text", "d", "UPDATE x SET v = 'ok'; ALTER DOMAIN d SET NOT NULL"},
		"domain of a domain":          {"CREATE DOMAIN e AS varchar(20); CREATE DOMAIN d AS e", "d", "UPDATE x SET v = 'ok'; ALTER DOMAIN e ADD CHECK (VALUE = 'ok')"},
		"enum label renamed":          {"CREATE TYPE d AS ENUM ('s3cret', 'other', 'ok')", "d", "UPDATE x SET v = 'ok'; ALTER TYPE d RENAME VALUE 's3cret' TO 'renamed'"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			value := "'s3cret'"
			if strings.Contains(c.column, "[]") {
				value = "'{s3cret}'"
			}
			null := "NULL"
			a := audittest.New(t, audit.Config{}, c.setup, "CREATE TABLE x (id int PRIMARY KEY, v "+c.column+"); INSERT INTO x VALUES (1, "+value+"), (2, "+null+")")
			then := here(t, a)
			a.Exec(t, c.alter)
			a.Sync(t)
			answered := 0
			for method, ask := range terminals(then, "x") {
				err := ask(t.Context())
				if err == nil {
					answered++
					continue
				}
				var history *audit.HistoryError
				if !errors.As(err, &history) || !strings.Contains(err.Error(), `"v"`) || strings.Contains(err.Error(), "s3cret") {
					t.Errorf("%s: %v", method, err)
				}
			}
			if strings.HasPrefix(name, "domain") && answered != len(terminals(then, "x")) {
				t.Errorf("%d methods answered", answered)
			}
			if strings.HasPrefix(name, "domain") {
				wantViewed(t, then, int64(1), "SELECT count(*) FROM x WHERE v = 's3cret'")
				wantViewed(t, then, int64(1), "SELECT count(*) FROM x WHERE v IS NULL")
			}
			if n, err := then.Columns("id").Table("x").OrderBy("id").Count(t.Context()); err != nil || n != 2 {
				t.Errorf("without the column: %d: %v", n, err)
			}
		})
	}
}
