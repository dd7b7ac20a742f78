package capture_test

import (
	"strings"
	"testing"

	"github.com/hindsight-go/audit/capture"
)

func TestPatterns_Machinery(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		patterns, schema, table string
		track, machinery        bool
	}{
		{"public.*", "public", "river_job", false, true},
		{"public.*", "public", "river_gauge", true, false},
		{"*.*", "jobs", "river_job", false, true},
		{"public.*", "public", "schema_migrations", false, true},
		{"public.*", "public", "SequelizeMeta", false, true},
		{"public.*", "public", "sequelizemeta", true, false},
		{"public.*", "app", "river_job", false, false},
		{"public.*|public.river_job", "public", "river_job", true, false},
		{"public.*|public.river_*", "public", "river_client_queue", true, false},
		{"public.*|public.river_job", "public", "river_leader", false, true},
		{"public.*|public.river_job|!public.river_job", "public", "river_job", false, false},
		{"*.*", "pgboss", "job", false, true},
		{"pgboss.*", "pgboss", "job", true, false},
		{"*.job", "pgboss", "job", false, true},
		{"pgboss.*", "pgboss", "schema_migrations", false, true},
		{"public.*", "public", "todo", true, false},
	} {
		patterns, err := capture.ParsePatterns(strings.Split(c.patterns, "|"))
		if err != nil {
			t.Fatal(err)
		}
		patterns = append(patterns, capture.Machinery()...)
		track, _ := patterns.Match(c.schema, c.table)
		if machinery := patterns.Machinery(c.schema, c.table); track != c.track || machinery != c.machinery {
			t.Errorf("%s on %s.%s: tracked %v, machinery %v", c.patterns, c.schema, c.table, track, machinery)
		}
	}
}
