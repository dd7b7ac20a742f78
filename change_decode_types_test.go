package audit_test

import (
	"database/sql"
	"encoding/json"
	"fmt"
	"math/big"
	"net/netip"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgtype"

	"github.com/hindsight-go/audit"
	"github.com/hindsight-go/audit/audittest"
)

// decodedValues are values of PostgreSQL by type, a NULL beside each.
var decodedValues = [][2]string{
	{"boolean", "true"},
	{"smallint", "-7"},
	{"integer", "42"},
	{"bigint", "9007199254740993"},
	{"real", "1.5"},
	{"double precision", "1e300"},
	{"double precision", "NaN"},
	{"numeric", "1.00"},
	{"numeric", "12345678901234567890.5"},
	{"numeric", "NaN"},
	{"text", "hello"},
	{"text", "null"},
	{"text", `{"a":1,"a":2}`},
	{"text", "2024-01-02 03:04:05+00"},
	{"text", `\x0102`},
	{"varchar(9)", "1.5"},
	{"char(4)", "ab"},
	{"bytea", `\x0102ff`},
	{"uuid", "123e4567-e89b-12d3-a456-426614174000"},
	{"date", "2024-01-02"},
	{"date", "infinity"},
	{"time", "04:05:06.7"},
	{"timestamp", "2024-01-02 03:04:05.123456"},
	{"timestamptz", "2024-01-02 03:04:05.123456+00"},
	{"timestamptz", "infinity"},
	{"interval", "1 mon"},
	{"interval", "-1 day 02:03:04.5"},
	{"inet", "192.0.2.1"},
	{"cidr", "192.0.2.0/24"},
	{"int4range", "[1,5)"},
	{"integer[]", "{1,2,3}"},
	{"integer[]", "{{1,2},{3,4}}"},
	{"integer[]", "[5:6]={1,2}"},
	{"text[]", `{a,NULL,"NULL","b c"}`},
	{"date[]", "{2024-01-02}"},
	{"jsonb", `[1, 2, 3]`},
	{"jsonb", `{"a": "b"}`},
	{"jsonb", `"text"`},
	{"json", `{"a":1,"a":2}`},
	{"json", `7`},
	{"point", "(1,2)"},
	{"mood", "sad"},
	{"mood[]", "{sad,happy}"},
	{"amount", "1.50"},
	{"pair", `(1,"a b")`},
}

var decodedInto = []reflect.Type{
	reflect.TypeFor[any](), reflect.TypeFor[bool](), reflect.TypeFor[int](), reflect.TypeFor[int32](), reflect.TypeFor[uint64](), reflect.TypeFor[float64](),
	reflect.TypeFor[string](), reflect.TypeFor[*string](), reflect.TypeFor[[]byte](), reflect.TypeFor[json.RawMessage](), reflect.TypeFor[time.Time](),
	reflect.TypeFor[*time.Time](), reflect.TypeFor[time.Duration](), reflect.TypeFor[[16]byte](), reflect.TypeFor[netip.Addr](), reflect.TypeFor[netip.Prefix](),
	reflect.TypeFor[[]int](), reflect.TypeFor[[][]int](), reflect.TypeFor[[]string](), reflect.TypeFor[[]*string](), reflect.TypeFor[[]time.Time](),
	reflect.TypeFor[map[string]any](), reflect.TypeFor[struct{ A string }](), reflect.TypeFor[json.Number](), reflect.TypeFor[big.Int](),
	reflect.TypeFor[sql.NullInt64](), reflect.TypeFor[sql.NullString](), reflect.TypeFor[sql.NullTime](), reflect.TypeFor[sql.Null[[]byte]](), reflect.TypeFor[sql.Null[string]](),
	reflect.TypeFor[pgtype.Numeric](), reflect.TypeFor[pgtype.Int4](), reflect.TypeFor[pgtype.Text](), reflect.TypeFor[pgtype.UUID](), reflect.TypeFor[pgtype.Interval](),
	reflect.TypeFor[pgtype.Time](), reflect.TypeFor[pgtype.Date](), reflect.TypeFor[pgtype.Timestamptz](), reflect.TypeFor[pgtype.Range[pgtype.Int4]](),
	reflect.TypeFor[pgtype.Array[string]](), reflect.TypeFor[pgtype.Array[*string]](), reflect.TypeFor[pgtype.Point](),
}

const ofDecodedTypes = `
	CREATE TYPE mood AS ENUM ('sad', 'happy');
	CREATE DOMAIN amount AS numeric(12,2);
	CREATE TYPE pair AS (a int, b text);`

// TestDecode_ChangeLoadAndPgxAgree reads every value into every type of Go: from a change,
// from the past, and with pgx from the row itself. The three give the same or none does.
func TestDecode_ChangeLoadAndPgxAgree(t *testing.T) {
	t.Parallel()
	var ddl, writes strings.Builder
	ddl.WriteString(ofDecodedTypes)
	for i, v := range decodedValues {
		fmt.Fprintf(&ddl, "CREATE TABLE d%d (id int PRIMARY KEY, c %s);", i, v[0])
		fmt.Fprintf(&writes, "INSERT INTO d%d VALUES (1, '%s'), (2, NULL);", i, strings.ReplaceAll(v[1], "'", "''"))
	}
	db := audittest.NewDatabase(t)
	db.Exec(t, ddl.String())
	a := audittest.Open(t, db, audit.Config{Tables: []string{"public.*"}}) // whose end is not checked by jsonb_populate_record, which has no repeated keys
	mustStart(t, a)
	a.Exec(t, writes.String())
	mark, err := a.Client.Mark(t.Context(), "written")
	if err != nil {
		t.Fatal(err)
	}
	conn := a.Connect(t)
	defer conn.Close(t.Context())
	pairs, fit := 0, 0
	for i, v := range decodedValues {
		table := fmt.Sprintf("d%d", i)
		past := map[int]audit.PastRow{}
		for row, err := range a.Client.AtPosition(mark).Table(table).All(t.Context()) {
			var values map[string]any
			if err != nil || row.Decode(&values) != nil {
				t.Fatal(err)
			}
			past[int(values["id"].(int32))] = row
		}
		for id := 1; id <= 2; id++ {
			change, err := a.Client.Changes().ForTable(table).ForRow(id).First(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			for _, into := range decodedInto {
				name := fmt.Sprintf("%s %q into %v", v[0], v[1], into)
				if id == 2 {
					name = fmt.Sprintf("%s NULL into %v", v[0], into)
				}
				fields := reflect.StructOf([]reflect.StructField{
					{Name: "ID", Type: reflect.TypeFor[int](), Tag: `db:"id"`}, {Name: "C", Type: into, Tag: `db:"c"`},
				})
				ofChange, ofPast, ofRow := reflect.New(fields), reflect.New(fields), reflect.New(fields)
				changeErr, pastErr := change.DecodeAfter(ofChange.Interface()), past[id].Decode(ofPast.Interface())
				rowErr := conn.QueryRow(t.Context(), "SELECT id, c FROM "+table+" WHERE id = $1", pgx.QueryResultFormats{pgx.TextFormatCode}, id).
					Scan(ofRow.Elem().Field(0).Addr().Interface(), ofRow.Elem().Field(1).Addr().Interface())
				if pairs++; rowErr == nil {
					fit++
				}
				if id == 2 { // of NULL, pgx says now this and now that where the types do not go together
					rowErr, ofRow = pastErr, ofPast
					if nullable(into) != (pastErr == nil) {
						t.Errorf("%s: %v", name, pastErr)
					}
				}
				if v[0] == "amount" { // the server tells pgx of the type below a domain
					rowErr, ofRow = pastErr, ofPast
				}
				if (changeErr == nil) != (pastErr == nil) || (changeErr == nil) != (rowErr == nil) {
					t.Errorf("%s: of the change %v, of the past %v, of pgx %v", name, changeErr, pastErr, rowErr)
					continue
				}
				if rowErr != nil {
					continue
				}
				for from, got := range map[string]reflect.Value{"change": ofChange, "past": ofPast} {
					if diff := cmp.Diff(ofRow.Elem().Field(1).Interface(), got.Elem().Field(1).Interface(), sameValues); diff != "" {
						t.Errorf("%s: the %s and pgx differ: %s", name, from, diff)
					}
				}
			}
		}
	}
	t.Logf("%d pairs, %d of which fit", pairs, fit)
}

// nullable reports whether a type has a value for NULL.
func nullable(t reflect.Type) bool {
	switch t.Kind() {
	case reflect.Pointer, reflect.Slice, reflect.Map, reflect.Interface:
		return true
	}
	valid := false
	if t.Kind() == reflect.Struct {
		_, valid = t.FieldByName("Valid")
	}
	return valid || t.PkgPath() == "net/netip"
}

var sameValues = cmp.Options{
	cmpopts.EquateComparable(netip.Addr{}, netip.Prefix{}), cmpopts.EquateNaNs(),
	cmp.Comparer(func(a, b *big.Int) bool { return a == b || a != nil && b != nil && a.Cmp(b) == 0 }),
	cmp.Comparer(func(a, b big.Int) bool { return a.Cmp(&b) == 0 }),
}

// A value is read by the type that its column had when the change was made.
func TestDecode_TypesOfThen(t *testing.T) {
	t.Parallel()
	a := audittest.New(t, audit.Config{Tables: []string{"public.*"}}, "CREATE TABLE r (id int PRIMARY KEY, v int)")
	a.Exec(t, "INSERT INTO r VALUES (1, 5)")
	a.Sync(t)
	if _, err := a.Client.Changes().List(t.Context()); err != nil { // what is known now is not all
		t.Fatal(err)
	}
	a.Exec(t, "ALTER TABLE r ALTER v TYPE text USING v::text, ADD d date")
	a.Exec(t, "INSERT INTO r VALUES (2, '6', '2024-01-02')")
	a.Sync(t)
	var got []any
	for change, err := range a.Client.Changes().ForTable("r").Operations(audit.Create).OldestFirst().All(t.Context()) {
		if err != nil {
			t.Fatal(err)
		}
		var row map[string]any
		if err := change.DecodeAfter(&row); err != nil {
			t.Fatal(err)
		}
		got = append(got, change.Types["v"].Name, row["v"], row["d"])
	}
	want := []any{"integer", int32(5), nil, "text", "6", time.Date(2024, 1, 2, 0, 0, 0, 0, time.UTC)}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

// What stands in a domain over an array or a document is not known by the domain's name, and
// goes by its shape.
func TestDecode_DomainsOverLists(t *testing.T) {
	t.Parallel()
	a := audittest.New(t, audit.Config{Tables: []string{"public.*"}}, `
		CREATE DOMAIN document AS jsonb; CREATE DOMAIN numbers AS int[];
		CREATE TABLE r (id int PRIMARY KEY, d document, n numbers)`)
	a.Exec(t, `INSERT INTO r VALUES (1, '[1, 2]', '{3,4}')`)
	a.Sync(t)
	change, err := a.Client.Changes().First(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var row struct{ D, N []int }
	if err := change.DecodeAfter(&row); err != nil || !cmp.Equal(row.D, []int{1, 2}) || !cmp.Equal(row.N, []int{3, 4}) {
		t.Errorf("%v, %v", row, err)
	}
}

// What was exported knows no types.
func TestDecode_ChangeFromJSON(t *testing.T) {
	t.Parallel()
	a := audittest.New(t, audit.Config{Tables: []string{"public.*"}}, "CREATE TABLE r (id int PRIMARY KEY, v text)")
	a.Exec(t, `INSERT INTO r VALUES (1, 'null')`)
	a.Sync(t)
	change, err := a.Client.Changes().First(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	text, err := json.Marshal(change)
	if err != nil {
		t.Fatal(err)
	}
	var exported audit.Change
	if err := json.Unmarshal(text, &exported); err != nil || exported.Types != nil {
		t.Fatal(err, exported.Types)
	}
	var row map[string]any
	if err := exported.DecodeAfter(&row); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(map[string]any{"id": json.Number("1"), "v": "null"}, row); diff != "" {
		t.Error(diff)
	}
}
