package store

import (
	"encoding/binary"
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"

	"github.com/hindsight-go/audit/internal/wal"
)

var (
	null      = wal.Datum{State: wal.Null}
	unchanged = wal.Datum{State: wal.Unchanged}
)

func value(text string) wal.Datum { return wal.Datum{State: wal.Text, Text: []byte(text)} }

// todo is a table of (id int, title text, done bool) with the key (id).
func todo(key ...int) *wal.Relation {
	return &wal.Relation{
		OID: 7, Schema: "public", Table: "todo", ReplicaIdentity: 'f', Key: key,
		Columns: []wal.Column{
			{Name: "id", TypeOID: 23, Identity: true, Kind: wal.Kind{Base: wal.Number}},
			{Name: `the "title"`, TypeOID: 25, Kind: wal.Kind{}},
			{Name: "done", TypeOID: 16, Kind: wal.Kind{Base: wal.Bool}},
		},
	}
}

// fields takes a tuple of a binary COPY apart. NULL is "-".
func fields(t *testing.T, row []byte) []string {
	t.Helper()
	n := binary.BigEndian.Uint16(row)
	row = row[2:]
	var out []string
	for range n {
		size := int32(binary.BigEndian.Uint32(row))
		row = row[4:]
		if size < 0 {
			out = append(out, "-")
			continue
		}
		out = append(out, string(row[:size]))
		row = row[size:]
	}
	if len(row) != 0 {
		t.Errorf("%d bytes behind the tuple", len(row))
	}
	return out
}

// encode returns the fields that differ from row to row: operation, key, previous
// key, before, after, context, defect.
func encode(t *testing.T, e *encoder, p *relationPlan, r *wal.Row, stamp stampField) []string {
	t.Helper()
	prefix := []byte{0, copyFields}
	for range 6 {
		prefix = appendField(prefix, "tx")
	}
	all := fields(t, e.row(nil, prefix, p, r, 3, &stamp))
	if len(all) != copyFields || all[6] != "public" || all[7] != "todo" || all[8] != "\x00\x00\x00\x03" {
		t.Fatalf("fields %q", all)
	}
	return all[9:]
}

func TestRowsAreEncoded(t *testing.T) {
	t.Parallel()
	none := stampField{field: appendNull(nil)}
	for name, c := range map[string]struct {
		relation *wal.Relation
		row      wal.Row
		stamp    stampField
		want     []string
	}{
		"insert": {
			todo(0),
			wal.Row{Operation: wal.Insert, New: wal.Tuple{value("1"), value("a\nb"), value("t")}},
			newStampField([]byte(`{"n":1}`), 7, 100),
			[]string{"CREATE", "1", "-", "\x01{}", `` + "\x01" + `{"id":1,"the \"title\"":"a\nb","done":true}`, "\x01" + `{"n":1}`, "-"},
		},
		"update": {
			todo(0),
			wal.Row{Operation: wal.Update, Old: wal.Tuple{value("1"), value("long"), null}, New: wal.Tuple{value("1"), unchanged, value("f")}},
			none,
			[]string{"UPDATE", "1", "-", "\x01" + `{"id":1,"the \"title\"":"long","done":null}`, "\x01" + `{"id":1,"the \"title\"":"long","done":false}`, "-", "-"},
		},
		"update of the key": {
			todo(0),
			wal.Row{Operation: wal.Update, Old: wal.Tuple{value("1"), null, null}, New: wal.Tuple{value("2"), null, null}},
			none,
			[]string{"UPDATE", "2", "1", "\x01" + `{"id":1,"the \"title\"":null,"done":null}`, "\x01" + `{"id":2,"the \"title\"":null,"done":null}`, "-", "-"},
		},
		"update with the key of the old row": {
			todo(0),
			wal.Row{Operation: wal.Update, OldIsKey: true, Old: wal.Tuple{value("1"), null, null}, New: wal.Tuple{value("2"), unchanged, null}},
			none,
			[]string{"UPDATE", "2", "1", "\x01" + `{"id":1}`, "\x01" + `{"id":2,"the \"title\"":null,"done":null}`, "-", "-"},
		},
		"update without the old row": {
			todo(0),
			wal.Row{Operation: wal.Update, New: wal.Tuple{value("1"), unchanged, value("t")}},
			none,
			[]string{"UPDATE", "1", "-", "\x01{}", "\x01" + `{"id":1,"done":true}`, "-", "-"},
		},
		"delete": {
			todo(0),
			wal.Row{Operation: wal.Delete, Old: wal.Tuple{value("1"), value(""), null}},
			none,
			[]string{"DELETE", "1", "-", "\x01" + `{"id":1,"the \"title\"":"","done":null}`, "\x01{}", "-", "-"},
		},
		"truncate": {todo(0), wal.Row{Operation: wal.Truncate}, none, []string{"TRUNCATE", "-", "-", "\x01{}", "\x01{}", "-", "-"}},
		"no key": {
			todo(),
			wal.Row{Operation: wal.Delete, Old: wal.Tuple{null, null, null}},
			none,
			[]string{"DELETE", "-", "-", "\x01" + `{"id":null,"the \"title\"":null,"done":null}`, "\x01{}", "-", "-"},
		},
		"a key of two columns, in its own order": {
			todo(1, 0),
			wal.Row{Operation: wal.Insert, New: wal.Tuple{value("1"), value(`"x"`), null}},
			none,
			[]string{"CREATE", `["\"x\"","1"]`, "-", "\x01{}", "\x01" + `{"id":1,"the \"title\"":"\"x\"","done":null}`, "-", "-"},
		},
		"bytes that are no UTF-8, and a bad context": {
			todo(1),
			wal.Row{Operation: wal.Insert, New: wal.Tuple{value("1"), value("\xff"), null}},
			newStampField([]byte("x"), 1, 100),
			[]string{
				"CREATE", `\xff`, "-", "\x01{}", "\x01" + `{"id":1,"the \"title\"":"\\xff","done":null}`, "-",
				`context is not JSON (1 bytes); after: column "the \"title\"" is not valid UTF-8 and is kept as the hexadecimal digits of its bytes`,
			},
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c.row.Relation = c.relation
			got := encode(t, &encoder{limit: MaxImage}, newRelationPlan(c.relation, c.relation.Key, CautionNone), &c.row, c.stamp)
			if diff := cmp.Diff(c.want, got); diff != "" {
				t.Errorf("fields (-want +got):\n%s", diff)
			}
		})
	}
}

// What the store refused is written with less and less.
func TestCautionLeavesOutWhatWasRefused(t *testing.T) {
	t.Parallel()
	rel := todo(0)
	rel.Columns[1].Kind = wal.Kind{Base: wal.JSONB}
	row := &wal.Row{Operation: wal.Insert, Relation: rel, New: wal.Tuple{value("1"), value(`[1]`), value("t")}}
	for caution, want := range map[Caution]string{
		CautionNone:    `{"id":1,"the \"title\"":[1],"done":true}`,
		CautionIsolate: `{"id":1,"the \"title\"":[1],"done":true}`,
		CautionText:    `{"id":1,"the \"title\"":"[1]","done":true}`,
		CautionContext: `{"id":1,"the \"title\"":[1],"done":true}`,
		CautionBare:    `{}`,
	} {
		got := encode(t, &encoder{caution: caution, limit: MaxImage}, newRelationPlan(rel, rel.Key, caution), row, stampField{field: appendNull(nil)})
		if got[4] != "\x01"+want || got[1] != "1" || (got[6] == "-") == (caution == CautionBare) {
			t.Errorf("caution %d: key %s, image %q, defect %q", caution, got[1], got[4], got[6])
		}
	}
}

func TestContextsAreMadeFit(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		content, want string
		defect        bool
	}{
		{`{"a":1}`, `{"a":1}`, false},
		{`[]`, `[]`, false},
		{`{"user_id":"` + strings.Repeat("u", 2000) + `","a":1}`, `{"a":1}`, true},
		{`{"deep":{"userId":"` + strings.Repeat("u", 2000) + `"}}`, `{"deep":{"userId":"` + strings.Repeat("u", 2000) + `"}}`, false},
		{`{"requestId":"r","params":{"x":"` + strings.Repeat("y", 5000) + `"},"n":12345678901234567890.10}`, `{"n":12345678901234567890.10,"requestId":"r"}`, true},
		{`{"params":{"x":"` + strings.Repeat("y", 5000) + `"}}`, "", true},
		{`["` + strings.Repeat("y", 5000) + `"]`, "", true},
	} {
		got := newStampField([]byte(c.content), len(c.content), 4000)
		want := appendNull(nil)
		if c.want != "" {
			want = appendJSONBField(nil, []byte(c.want))
		}
		if string(got.field) != string(want) || (got.defect != "") != c.defect {
			t.Errorf("%.60s: %.100q with defect %q", c.content, got.field, got.defect)
		}
	}
}

func FuzzContexts(f *testing.F) {
	for _, s := range []string{"{}", `{"userId":1}`, "[1]", "x", `{"a":"\u0000"}`, `{"a":{"b":"` + strings.Repeat("c", 200) + `"},"d":"e"}`} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, content []byte) {
		got := newStampField(content, len(content), 100)
		size := int32(binary.BigEndian.Uint32(got.field))
		if size < 0 {
			if got.defect == "" {
				t.Errorf("%q is left out without a defect", content)
			}
			return
		}
		text := got.field[5:]
		if int(size) != len(text)+1 || got.field[4] != 1 || !json.Valid(text) || !utf8.Valid(text) || text[0] == '"' {
			t.Errorf("%q is written as %q", content, got.field)
		}
		if got.defect == "" && string(text) != string(content) {
			t.Errorf("%q is stored as %q without a defect", content, text)
		}
	})
}

func TestKeyTexts(t *testing.T) {
	t.Parallel()
	long := strings.Repeat("k", 2001)
	for _, c := range []struct {
		parts []string
		want  string
	}{
		{[]string{"1"}, "1"},
		{[]string{""}, ""},
		{[]string{`["a","b"]`}, `["a","b"]`},
		{[]string{"a", "b"}, `["a","b"]`},
		{[]string{`"`, `\`, "\n"}, `["\"","\\","\n"]`},
		{[]string{strings.Repeat("k", 2000)}, strings.Repeat("k", 2000)},
		{[]string{long}, "sha256:"},
		{[]string{long, "1"}, "sha256:"},
	} {
		got := KeyText(c.parts...)
		if got != c.want && (c.want != "sha256:" || !strings.HasPrefix(got, c.want) || len(got) != 7+64) {
			t.Errorf("key of %.60q is %.60q, want %.60q", c.parts, got, c.want)
		}
	}
	if KeyText(long) == KeyText(long+"k") || KeyText(long, "a") == KeyText(long, "b") {
		t.Error("two long keys have one text")
	}
}

// Keys of as many parts have one text only if they are equal.
func FuzzKeyText(f *testing.F) {
	f.Add("a", "b", "a", "c")
	f.Add(`","`, "", "", `","`)
	f.Add("\xff", "1", `\xff`, "1")
	f.Fuzz(func(t *testing.T, a, b, c, d string) {
		for _, s := range []string{a, b, c, d} {
			if !utf8.ValidString(s) || strings.Contains(s, "\x00") {
				return
			}
		}
		if one, two := KeyText(a, b), KeyText(c, d); (one == two) != (a == c && b == d) {
			t.Errorf("%q, %q and %q, %q: %q and %q", a, b, c, d, one, two)
		}
		if one, two := KeyText(a), KeyText(c); (one == two) != (a == c) {
			t.Errorf("%q and %q: %q and %q", a, c, one, two)
		}
		if len(a)+len(b) < 100 {
			var parts []string
			if err := json.Unmarshal([]byte(KeyText(a, b)), &parts); err != nil || !cmp.Equal(parts, []string{a, b}) {
				t.Errorf("%q, %q is %q: %v", a, b, KeyText(a, b), err)
			}
		}
	})
}

// wide is a table of twelve columns of the usual kinds, and a row of it.
func wide() (*wal.Relation, *wal.Row) {
	rel := &wal.Relation{OID: 7, Schema: "public", Table: "todo", Key: []int{0}}
	kinds := []wal.Kind{{Base: wal.Number}, {}, {Base: wal.Bool}, {Base: wal.JSON}, {Base: wal.JSONB}, {Base: wal.Array, Elem: wal.String, Delimiter: ','}}
	texts := []string{"123456", "twenty bytes of \"text\"", "t", `{"a": 1, "b": [2, 3]}`, `{"a": 1}`, `{a,"b c",NULL}`}
	var old, fresh wal.Tuple
	for i := range 12 {
		rel.Columns = append(rel.Columns, wal.Column{Name: fmt.Sprint("column_", i), Kind: kinds[i%len(kinds)]})
		old = append(old, value(texts[i%len(texts)]))
		fresh = append(fresh, value(texts[i%len(texts)]))
	}
	fresh[1] = unchanged
	return rel, &wal.Row{Operation: wal.Update, Relation: rel, Old: old, New: fresh}
}

// A row costs no memory of its own.
func TestRowsAreEncodedWithoutAllocation(t *testing.T) {
	rel, row := wide()
	plan, stamp, e := newRelationPlan(rel, rel.Key, CautionNone), newStampField([]byte(`{"userId":1}`), 12, 1000), &encoder{limit: MaxImage}
	prefix := make([]byte, 100)
	buf := make([]byte, 0, 64<<10)
	for _, operation := range []wal.Operation{wal.Insert, wal.Update, wal.Delete} {
		r := *row
		r.Operation = operation
		switch operation {
		case wal.Insert:
			r.Old, r.New = nil, row.Old
		case wal.Delete:
			r.New = nil
		}
		allocations := testing.AllocsPerRun(100, func() { buf = e.row(buf[:0], prefix, plan, &r, 1, &stamp) })
		if allocations != 0 {
			t.Errorf("%c: %v allocations", operation, allocations)
		}
	}
}

func BenchmarkEncodeRow(b *testing.B) {
	rel, row := wide()
	plan, stamp, e := newRelationPlan(rel, rel.Key, CautionNone), newStampField([]byte(`{"userId":1}`), 12, 1000), &encoder{limit: MaxImage}
	prefix := make([]byte, 100)
	buf := e.row(make([]byte, 0, 64<<10), prefix, plan, row, 1, &stamp)
	b.SetBytes(int64(len(buf)))
	b.ReportAllocs()
	for b.Loop() {
		buf = e.row(buf[:0], prefix, plan, row, 1, &stamp)
	}
}
