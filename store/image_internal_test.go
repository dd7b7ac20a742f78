package store

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"reflect"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"

	"github.com/hindsight-go/audit/internal/wal"
)

func TestValuesAreWrittenAsJSON(t *testing.T) {
	t.Parallel()
	number, text, boolean := wal.Kind{Base: wal.Number}, wal.Kind{}, wal.Kind{Base: wal.Bool}
	array := func(elem wal.Base) wal.Kind { return wal.Kind{Base: wal.Array, Elem: elem, Delimiter: ','} }
	for _, c := range []struct {
		kind wal.Kind
		text string
		want string
	}{
		{text, "", `""`},
		{text, "it's \"quoted\" \\", `"it's \"quoted\" \\"`},
		{text, "\x01\b\t\n\v\f\r\x1f\x7f", "\"\\u0001\\u0008\\t\\n\\u000b\\u000c\\r\\u001f\x7f\""},
		{text, "</script>\u2028é😀", "\"</script>\u2028é😀\""},
		{boolean, "t", "true"},
		{boolean, "f", "false"},
		{number, "1.10", "1.10"},
		{number, "-0.5", "-0.5"},
		{number, "0", "0"},
		{number, "1e+22", "1e+22"},
		{number, "-0", `"-0"`},
		{number, "NaN", `"NaN"`},
		{number, "Infinity", `"Infinity"`},
		{number, "-Infinity", `"-Infinity"`},
		{wal.Kind{Base: wal.JSONB}, `{"a": 1.10}`, `{"a": 1.10}`},
		{wal.Kind{Base: wal.JSON}, ` {"a":1} `, ` {"a":1} `},
		{wal.Kind{Base: wal.JSON}, `{"a":1,"a":2}`, `"{\"a\":1,\"a\":2}"`},
		{wal.Kind{Base: wal.JSON}, "null", `"null"`},
		{array(wal.Number), "{}", "[]"},
		{array(wal.Number), "{1,NULL,-0,NaN}", `[1,null,"-0","NaN"]`},
		{array(wal.Number), "{{1,2},{3,4}}", "[[1,2],[3,4]]"},
		{array(wal.Number), "[0:1]={1,2}", `"[0:1]={1,2}"`},
		{array(wal.Bool), "{t,f,NULL}", "[true,false,null]"},
		{array(wal.String), `{a,"NULL",NULL,"","a,b","{}","\"\\","null"}`, `["a","NULL",null,"","a,b","{}","\"\\","null"]`},
		{array(wal.String), "{{{a}}}", `[[["a"]]]`},
		{wal.Kind{Base: wal.Array, Delimiter: ';'}, "{(1,1),(0,0);(2,2),(0,0)}", `["(1,1),(0,0)","(2,2),(0,0)"]`},
	} {
		got, valid := appendValue([]byte("before"), c.kind, []byte(c.text))
		if string(got) != "before"+c.want || !valid {
			t.Errorf("%v %q: %s, valid %v; want %s", c.kind, c.text, got, valid, c.want)
		}
	}
}

// What is not an array as the server writes them is kept as it stands.
func TestTextsThatAreNoArrays(t *testing.T) {
	t.Parallel()
	for _, text := range []string{
		"", "{", "}", "{,}", "{1,}", "{,1}", "{1,,2}", "{1}{2}", "{1}x", "{{1}{2}}", "{1{2}}", "{{1}2}", `{"a""b"}`, `{"a"b}`, `{a"b"}`, `{"a`, `{"a\`, "{a", "{{a}", `{a\b}`,
		"{}}", "{}{", "{},", "[1:2]={1,2}", "1", "{\xff}", "{\"\xff\"}",
	} {
		if got, ok := appendArray([]byte("x"), wal.Kind{Base: wal.Array, Delimiter: ','}, []byte(text)); ok {
			t.Errorf("%q is written as %s", text, got)
		}
	}
}

// asText is what a string of an image means: itself, or the bytes of its hex
// digits if it was not valid UTF-8.
func asText(t *testing.T, raw []byte, valid bool) string {
	t.Helper()
	var content string
	if err := json.Unmarshal(raw, &content); err != nil {
		t.Fatalf("%q is not a JSON string: %v", raw, err)
	}
	if valid {
		return content
	}
	digits, ok := strings.CutPrefix(content, `\x`)
	plain, err := hex.DecodeString(digits)
	if !ok || err != nil {
		t.Fatalf("%q are not the hex digits of bytes", content)
	}
	return string(plain)
}

func FuzzStrings(f *testing.F) {
	for _, s := range []string{"", "plain text of more than eight bytes", "seven..\"", "eight...\\", "\x00\x1f\x7f\x80", "é😀\u2028", "\xff", "abcdefgh\xed\xa0\x80", "\U0010ffff", "12345678\t12345678\n"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		out, valid := appendString([]byte(`{"a":`), text)
		raw, found := bytes.CutPrefix(out, []byte(`{"a":`))
		if !found || !json.Valid(raw) || !utf8.Valid(raw) {
			t.Fatalf("%q is written as %q", text, out)
		}
		if valid != utf8.Valid(text) {
			t.Errorf("%q: valid %v", text, valid)
		}
		if got := asText(t, raw, valid); got != string(text) {
			t.Errorf("%q comes back as %q", text, got)
		}
		// A value of type json keeps its meaning, whatever it is.
		out, _ = appendValue(nil, wal.Kind{Base: wal.JSON}, text)
		if !json.Valid(out) {
			t.Errorf("%q as json is written as %q", text, out)
		}
	})
}

// A reader tells a json value that was kept as its exact text from one that was
// embedded by keepsText of the content.
func FuzzJSONIsToldFromItsText(f *testing.F) {
	for _, s := range []string{`{"a":1,"a":2}`, `"{\"a\":1,\"a\":2}"`, `"\u0000"`, `"\"\\u0000\""`, "null", `"null"`, `"\"null\""`, "1e99999", `["\ud800"]`, `{"a":{"b":[1,2,"x"]}}`, "[[[[]]]]", `"x"`} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		if !json.Valid(text) || !utf8.Valid(text) {
			return
		}
		raw, _ := appendValue(nil, wal.Kind{Base: wal.JSON}, text)
		var content string
		if json.Unmarshal(raw, &content) == nil && bytes.TrimSpace(raw)[0] == '"' && keepsText([]byte(content)) && json.Valid([]byte(content)) {
			raw = []byte(content)
		}
		if !bytes.Equal(raw, text) {
			t.Errorf("%q is read as %q", text, raw)
		}
	})
}

// arrayText writes an array as the server does.
//
// Source: PostgreSQL, src/backend/utils/adt/arrayfuncs.c, array_out.
func arrayText(elements []string, delimiter byte) string {
	var parts []string
	for _, e := range elements {
		special := e == "" || strings.EqualFold(e, "NULL") || strings.ContainsAny(e, "{}\"\\ \t\n\r\v\f"+string(rune(delimiter)))
		if special {
			e = `"` + strings.NewReplacer(`\`, `\\`, `"`, `\"`).Replace(e) + `"`
		}
		parts = append(parts, e)
	}
	return "{" + strings.Join(parts, string(rune(delimiter))) + "}"
}

func FuzzArraysComeBack(f *testing.F) {
	f.Add("a", "", "NULL", `q"\`)
	f.Add("a,b", "{", "}", " ")
	f.Add("null", ";", "é😀", "\x01\n")
	f.Fuzz(func(t *testing.T, a, b, c, d string) {
		elements := []string{a, b, c, d}
		for _, e := range elements {
			if !utf8.ValidString(e) || strings.Contains(e, "\x00") {
				return
			}
		}
		for _, delimiter := range []byte{',', ';'} {
			kind := wal.Kind{Base: wal.Array, Delimiter: delimiter}
			one := arrayText(elements, delimiter)
			out, ok := appendArray(nil, kind, []byte(one))
			var got []string
			if err := json.Unmarshal(out, &got); !ok || err != nil {
				t.Fatalf("%q is written as %q, %v, %v", one, out, ok, err)
			}
			if diff := cmp.Diff(elements, got); diff != "" {
				t.Errorf("%q comes back changed (-want +got):\n%s", one, diff)
			}
			two := "{" + one + string(rune(delimiter)) + one + "}"
			out, ok = appendArray(nil, kind, []byte(two))
			var rows [][]string
			if err := json.Unmarshal(out, &rows); !ok || err != nil {
				t.Fatalf("%q is written as %q, %v, %v", two, out, ok, err)
			}
			if diff := cmp.Diff([][]string{elements, elements}, rows); diff != "" {
				t.Errorf("%q comes back changed (-want +got):\n%s", two, diff)
			}
		}
	})
}

// A type of somebody's own may write anything.
func FuzzArraysAreJSONOrNothing(f *testing.F) {
	for _, s := range []string{"{}", "{1,2}", "{{1},{2}}", `{"a\"b",NULL}`, "[0:1]={1,2}", "{,}", "{1}{", `{"a""b"}`, "{{}", "{}}"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		for _, delimiter := range []byte{',', ';'} {
			kind := wal.Kind{Base: wal.Array, Delimiter: delimiter}
			out, ok := appendArray([]byte("["), kind, text)
			if ok && !json.Valid(append(out, ']')) {
				t.Errorf("%q is written as %q", text, out)
			}
			if !ok && string(out[:1]) != "[" {
				t.Errorf("%q: what was before is %q", text, out)
			}
			value, _ := appendValue(nil, kind, text)
			if !json.Valid(value) {
				t.Errorf("%q is written as %q", text, value)
			}
		}
	})
}

// The word-wise search may stop early, never late.
func FuzzPlain8(f *testing.F) {
	f.Add(uint64(0))
	f.Add(binary.LittleEndian.Uint64([]byte("plain!~ ")))
	f.Add(binary.LittleEndian.Uint64([]byte(`seven..\`)))
	f.Fuzz(func(t *testing.T, x uint64) {
		var b [8]byte
		binary.LittleEndian.PutUint64(b[:], x)
		want := 8
		for i, c := range b {
			if c < 0x20 || c >= 0x80 || c == '"' || c == '\\' {
				want = i
				break
			}
		}
		if got := plain8(x); got > want {
			t.Errorf("%q: %d bytes are said to be plain, %d are", b, got, want)
		}
	})
}

func TestPlain8FindsEachByteAtEachPlace(t *testing.T) {
	t.Parallel()
	for place := range 8 {
		for c := range 256 {
			b := []byte("plain~! ")
			b[place] = byte(c)
			want := 8
			if c < 0x20 || c >= 0x80 || c == '"' || c == '\\' {
				want = place
			}
			if got := plain8(binary.LittleEndian.Uint64(b)); got != want {
				t.Errorf("byte %#x at %d: %d bytes are said to be plain, want %d", c, place, got, want)
			}
		}
	}
}

func TestWhatJSONBWouldRefuseOrLose(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		text   string
		embeds bool
	}{
		{`{"a":1,"b":{"a":1}}`, true},
		{`{"a":1,"\u0061":2}`, false},
		{`{"":1,"":2}`, false},
		{`"\u0000"`, false},
		{`"\\u0000"`, true},
		{`"\u0001"`, true},
		{`"\ud83d\ude00"`, true},
		{`"\ud83d"`, false},
		{`"\ud83d\u0041"`, false},
		{`"\ude00\ud83d"`, false},
		{`"\ud83d\ud83d\ude00"`, false},
		{"1e8000", true},
		{"1e8001", false},
		{"1e-8001", false},
		{"1E+99999999999999999999", false},
		{strings.Repeat("1", maxNumber), true},
		{strings.Repeat("1", maxNumber+1), false},
		{strings.Repeat("[", maxDepth) + strings.Repeat("]", maxDepth), true},
		{strings.Repeat("[", maxDepth+2) + strings.Repeat("]", maxDepth+2), false},
	} {
		facts, err := scanJSON([]byte(c.text))
		if err != nil || facts.embeds() != c.embeds {
			t.Errorf("%.60s: embeds %v, error %v; want %v", c.text, facts.embeds(), err, c.embeds)
		}
	}
}

func FuzzScanJSON(f *testing.F) {
	for _, s := range []string{
		"", " ", "{}", "[]", `{"a":1,"a":2}`, "01", "-", "-0", "1.", ".5", "1e", "1e+", "1E-5", "tru", "nul", "true false", `"\u12"`, `"\ud800"`, "\"\x00\"", `{"a"}`, `{"a":}`, "[1,]", `{"a":1,}`, "\ufeff{}", "\xff",
		strings.Repeat("[", 300) + strings.Repeat("]", 300), strings.Repeat("[", 300), `{"userId":"` + strings.Repeat("x", 1100) + `"}`,
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		facts, err := scanJSON(text)
		// encoding/json takes invalid UTF-8 in strings; PostgreSQL does not.
		if want := json.Valid(text) && utf8.Valid(text); (err == nil) != want {
			t.Fatalf("%q: error %v, is JSON: %v", text, err, want)
		}
		if err != nil {
			return
		}
		if top := bytes.TrimLeft(text, " \t\n\r")[0]; facts.top != top {
			t.Errorf("%q begins with %q", text, facts.top)
		}
		if top := json.NewDecoder(bytes.NewReader(text)); facts.top == '{' && !facts.refused {
			if got := duplicates(t, top); got != facts.duplicate {
				t.Errorf("%q: a repeated name is found: %v, is there: %v", text, facts.duplicate, got)
			}
		}
		if plain := withoutEscapes(text); !json.Valid(plain) || !utf8.Valid(plain) || !reflect.DeepEqual(decodeJSON(t, plain), decodeJSON(t, text)) {
			t.Errorf("%q without escapes is %q", text, plain)
		}
	})
}

func decodeJSON(t *testing.T, text []byte) (v any) {
	t.Helper()
	decoder := json.NewDecoder(bytes.NewReader(text))
	decoder.UseNumber()
	if err := decoder.Decode(&v); err != nil {
		t.Errorf("%q: %v", text, err)
	}
	return v
}

// duplicates reports whether any object of a text names a member twice.
func duplicates(t *testing.T, d *json.Decoder) bool {
	t.Helper()
	d.UseNumber()
	type level struct {
		seen map[string]bool // nil for an array
		key  bool
	}
	var open []level
	found := false
	for {
		token, err := d.Token()
		if err != nil {
			return found
		}
		if d, is := token.(json.Delim); is && (d == '}' || d == ']') {
			open = open[:len(open)-1]
			continue
		}
		if n := len(open) - 1; n >= 0 && open[n].seen != nil {
			if name, is := token.(string); open[n].key && is {
				found = found || open[n].seen[name]
				open[n].seen[name] = true
			}
			open[n].key = !open[n].key
		}
		switch token {
		case json.Delim('{'):
			open = append(open, level{seen: map[string]bool{}, key: true})
		case json.Delim('['):
			open = append(open, level{})
		}
	}
}
