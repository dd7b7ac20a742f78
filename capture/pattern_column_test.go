package capture_test

import (
	"errors"
	"testing"

	"github.com/hindsight-go/audit/capture"
)

func TestColumnPattern_Match(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		pattern, schema, table, column string
		want                           bool
	}{
		{"*.updated_at", "public", "page", "updated_at", true},
		{"*.updated_at", "app", "page", "updated_at2", false},
		{"*.updated_at", "public", "page", "Updated_at", false},
		{"page.*_count", "any", "page", "view_count", true},
		{"page.*_count", "any", "pages", "view_count", false},
		{" billing.page.views ", "billing", "page", "views", true},
		{"billing.page.views", "public", "page", "views", false},
		{`"a.b"."c""d"."*"`, "a.b", `c"d`, "*", true},
		{`*."*"`, "a", "b", "c", false},
	} {
		p, err := capture.ParseColumnPattern(c.pattern)
		if err != nil {
			t.Fatal(err)
		}
		if got := p.Match(c.schema, c.table, c.column); got != c.want || p.String() != c.pattern {
			t.Errorf("%s on %s.%s.%s: %v", p, c.schema, c.table, c.column, got)
		}
	}
	for _, text := range []string{"", "updated_at", "a.b.c.d", "a..b", `"a`, `"a"b.c`, ".", "a."} {
		_, err := capture.ParseColumnPattern(text)
		var problem *capture.ColumnPatternError
		if !errors.As(err, &problem) || problem.Pattern != text {
			t.Errorf("%q gives %v", text, err)
		}
	}
}
