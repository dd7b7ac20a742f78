package capture_test

import (
	"errors"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/hindsight-go/audit/capture"
)

func TestPatternsMatch(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		patterns      string
		schema, table string
		track, named  bool
	}{
		{"public.*", "public", "todo", true, false},
		{"public.*", "Public", "todo", false, false},
		{"public.*", "public", "", true, false},
		{"*.*", "any", "thing", true, false},
		{"todo", "public", "todo", true, true},
		{"todo", "other", "todo", false, false},
		{"billing.invoices", "billing", "invoices", true, true},
		{"billing.invoices", "billing", "invoices2", false, false},
		{"billing.inv*", "billing", "invoices", true, false},
		{"*.*_log", "a", "b_log", true, false},
		{"*.*_log", "a", "b_logs", false, false},
		{"a*c.x*z", "abc", "x.y.z", true, false},
		{"public.*|!public.sessions", "public", "sessions", false, false},
		{"!public.sessions|public.*", "public", "sessions", false, false},
		{"public.*|!public.s*|public.sessions", "public", "sessions", false, false},
		{"public.*|public.todo", "public", "todo", true, true},
		{" public . todo ", "public", "todo", false, false},
		{" public.todo ", "public", "todo", true, true},
		{`"Odd.Schema"."a b"`, "Odd.Schema", "a b", true, true},
		{`"a""b"."*"`, `a"b`, "*", true, true},
		{`"a""b"."*"`, `a"b`, "c", false, false},
		{`!"x"."y"|*.*`, "x", "y", false, false},
		// What path.Match treats in its own way stands for itself.
		{"public.a[1]*", "public", "a[1]x", true, false},
		{"public.a?c*", "public", "abc", false, false},
		{"public.a?c*", "public", "a?c", true, false},
		{"public.a/b*", "public", "a/bc", true, false},
		{"public.*", "public", "a/b", true, false},
		{`public.a\b*`, "public", `a\bc`, true, false},
		{"public.[*", "public", "[x", true, false},
		{"列.*", "列", "😀", true, false},
	} {
		patterns, err := capture.ParsePatterns(strings.Split(c.patterns, "|"))
		if err != nil {
			t.Errorf("%s: %v", c.patterns, err)
			continue
		}
		if track, named := patterns.Match(c.schema, c.table); track != c.track || named != c.named {
			t.Errorf("%s on %q.%q: tracked %v, named %v; want %v, %v", c.patterns, c.schema, c.table, track, named, c.track, c.named)
		}
	}
}

func TestPatternsThatCannotBeRead(t *testing.T) {
	t.Parallel()
	for _, text := range []string{"", " ", "!", ".", "a.", ".a", "a.b.c", `"a`, `"a"b`, `a"b`, `""`, `"".a`, `a.""`, `"a".`, `"a"."b".`, "!!a..b"} {
		_, err := capture.ParsePattern(text)
		var problem *capture.PatternError
		if !errors.As(err, &problem) || problem.Pattern != text || !strings.Contains(err.Error(), "public.*") {
			t.Errorf("%q: error %v, want a *PatternError that says how it is done", text, err)
		}
	}
}

// Any names, quoted as SQL does it, make a pattern of exactly that table.
func FuzzPatternOfQuotedNames(f *testing.F) {
	for _, name := range []string{"todo", "Odd.Name", `quo"te`, "*", "!", " ", "[a-z]", `\`, "a\x00b", "列"} {
		f.Add("public", name)
		f.Add(name, "todo")
	}
	f.Fuzz(func(t *testing.T, schema, table string) {
		if schema == "" || table == "" || strings.Contains(schema+table, "\x00") {
			return // no names
		}
		text := pgx.Identifier{schema, table}.Sanitize()
		p, err := capture.ParsePattern(text)
		if err != nil {
			t.Fatalf("%s: %v", text, err)
		}
		if !p.Literal() || p.Schema.Text != schema || p.Table.Text != table || p.Exclude || p.String() != text {
			t.Errorf("%s is read as %+v", text, p)
		}
		patterns := capture.Patterns{p}
		if track, named := patterns.Match(schema, table); !track || !named {
			t.Errorf("%s does not match its own table", text)
		}
		for _, other := range [][2]string{{schema + "x", table}, {schema, table + "x"}, {table + ".", schema}} {
			if track, _ := patterns.Match(other[0], other[1]); track && other != [2]string{schema, table} {
				t.Errorf("%s matches %q", text, other)
			}
		}
	})
}

// Whatever the text: an error or a pattern, never a panic.
func FuzzPattern(f *testing.F) {
	for _, text := range []string{"public.*", "!a.b", `"a""b"."c"`, "*.*", `"`, "a.b.c", "[", `\`} {
		f.Add(text, "public", "todo")
	}
	f.Fuzz(func(t *testing.T, text, schema, table string) {
		p, err := capture.ParsePattern(text)
		if err != nil {
			return
		}
		track, named := capture.Patterns{p}.Match(schema, table)
		if named && !track || track && p.Exclude {
			t.Errorf("%q on %q.%q: tracked %v, named %v", text, schema, table, track, named)
		}
		if track && p.Literal() && (schema != p.Schema.Text || table != p.Table.Text) {
			t.Errorf("%q, which names one table, matches %q.%q", text, schema, table)
		}
	})
}
