package pgcatalog_test

import (
	"testing"

	"github.com/hindsight-go/audit/internal/pgcatalog"
)

// Every name that can be written is read back as it was, and nothing else is taken for a name.
func FuzzParseName(f *testing.F) {
	for _, name := range []string{"todo", "app.todo", `"a.b"."c""d"`, `"`, "a.b.c", "", ".", `a"b`, `"a"b`, "a.", "\x00", `"` + "\x00" + `"`} {
		f.Add(name)
	}
	f.Fuzz(func(t *testing.T, text string) {
		name, err := pgcatalog.ParseName(text)
		if err != nil {
			return
		}
		again, err := pgcatalog.ParseName(pgcatalog.Qualified(name.Schema, name.Table))
		if err != nil || again != name {
			t.Errorf("%q is %+v, and read back %+v: %v", text, name, again, err)
		}
	})
}

func TestQuoteIdent(t *testing.T) {
	t.Parallel()
	for name, want := range map[string]string{"todo": "todo", "a_1": "a_1", "1a": `"1a"`, "A": `"A"`, `a"b`: `"a""b"`, "a b": `"a b"`} {
		if got := pgcatalog.QuoteIdent(name); got != want {
			t.Errorf("%q is written %s, want %s", name, got, want)
		}
	}
}
