package rowimage_test

import (
	"encoding/json"
	"testing"

	"github.com/hindsight-go/audit/internal/rowimage"
)

// The columns of an object are those that encoding/json finds, with the same values, and
// nothing that is not an object makes the scanner read beyond its end.
func FuzzMembers(f *testing.F) {
	for _, image := range []string{
		`{}`, ` { "a" : 1 , "b":[1,{"c":"]}"}], "\u00e9\n\"" : "x\\" }`, `{"a":null,"a":2}`, `{"\ud83d\ude00":"\ud83d"}`,
		`{"a"`, `{"a":`, `{"a":1,`, `{"a":"\`, `[1]`, ``, `{"\u12`, `{"a":1}{`, `{"":{}}`,
	} {
		f.Add([]byte(image))
	}
	f.Fuzz(func(t *testing.T, image []byte) {
		members := rowimage.Members(image)
		var want map[string]json.RawMessage
		if json.Unmarshal(image, &want) != nil || want == nil {
			return
		}
		got := make(map[string]string)
		for i, m := range members {
			if i > 0 && m.Name < members[i-1].Name {
				t.Errorf("%q comes behind %q", m.Name, members[i-1].Name)
			}
			got[string(validUTF8(m.Name))] = string(m.Value) // the last of several
		}
		if len(got) != len(want) {
			t.Fatalf("%d columns of %s, want %d", len(got), image, len(want))
		}
		for name, value := range want {
			if got[name] != string(value) {
				t.Errorf("%q is %s, want %s", name, got[name], value)
			}
		}
	})
}

// validUTF8 is what encoding/json makes of a name.
func validUTF8(name string) []byte { return []byte(string([]rune(name))) }

func TestEqual(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		a, b string
		want bool
	}{
		{`1`, `1.00`, true},
		{`1e2`, `100`, true},
		{`-0`, `0`, true},
		{`1`, `"1"`, false},
		{`{"a":1,"b":2}`, `{"b":2.0,"a":1}`, true},
		{`[1,2]`, `[2,1]`, false},
		{`null`, `null`, true},
		{`null`, `0`, false},
		{`12345678901234567890.1`, `12345678901234567890.10`, true},
		{`12345678901234567890.1`, `12345678901234567890.2`, false},
		{`"a"`, `"a"`, true},
		{`{}`, `{"a":null}`, false},
	} {
		if got := rowimage.Equal([]byte(test.a), []byte(test.b)); got != test.want {
			t.Errorf("%s equal to %s: %t", test.a, test.b, got)
		}
	}
}
