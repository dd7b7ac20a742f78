package audit

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestScanSQL_LexicalRules(t *testing.T) {
	t.Parallel()
	for sql, want := range map[string]string{
		`SELECT a.b FROM "T""x" -- c` + "\nWHERE x": `select a . b from T"x where x`,
		`f /* a /* b */ c */ (1)`:                   `f ( 1 )`,
		`E'a\'b' 'a''b' $x$ y $x$ $$ z $$ $1`:       `E'a\'b' 'a''b' $x$ y $x$ $$ z $$ $1`,
		`U&"t\006Fdo" u&'x'`:                        `todo u&'x'`,
		`1..10 1.5e3 a$b ä`:                         `1 . . 10 1.5e3 a$b ä`,
		`'open`:                                     `'open`,
	} {
		var got []string
		for _, token := range scanSQL(sql) {
			got = append(got, token.text)
		}
		if diff := cmp.Diff(want, strings.Join(got, " ")); diff != "" {
			t.Errorf("%s (-want +got):\n%s", sql, diff)
		}
	}
}

func FuzzScanSQL(f *testing.F) {
	for _, seed := range []string{`SELECT 'a' FROM "b" /* c */ -- d`, `$a$ x $a$ $1 U&"\0061"`, `E'\'`, `/*`, `"`, `1..2`} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, sql string) {
		end := 0
		for _, token := range scanSQL(sql) {
			if token.begin < end || token.end <= token.begin || token.end > len(sql) {
				t.Fatalf("%q: token at %d to %d, behind %d", sql, token.begin, token.end, end)
			}
			end = token.end
		}
	})
}
