package audit_test

import (
	"database/sql"
	"database/sql/driver"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"math/big"
	"net/netip"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgtype"

	"github.com/hindsight-go/audit"
	"github.com/hindsight-go/audit/audittest"
)

// money is a type of an application's: it has a Value method and no other.
type money struct{ cents int64 }

func (m money) Value() (driver.Value, error) {
	return fmt.Sprintf("%d.%02d", m.cents/100, m.cents%100), nil
}

// document is one that has its JSON from a Value method.
type document struct{ text string }

func (d document) Value() (driver.Value, error) { return []byte(d.text), nil }

func pointer[T any](v T) *T { return &v }

// filterValue is a value of Go for a column of a type, with what stands there.
type filterValue struct {
	name, column, literal string
	value                 any
	noKey                 bool // the type is not one for keys
}

func filterValues() []filterValue {
	moment := time.Date(2024, 2, 3, 4, 5, 6, 700_000_000, time.FixedZone("", 3600))
	number := func(text string) (n pgtype.Numeric) {
		if err := n.Scan(text); err != nil {
			panic(err)
		}
		return n
	}
	id := [16]byte{0x12, 0x3e, 0x45, 0x67, 0xe8, 0x9b, 0x12, 0xd3, 0xa4, 0x56, 0x42, 0x66, 0x14, 0x17, 0x40, 0x00}
	return []filterValue{
		{"int", "int", "5", 5, false},
		{"*int64", "bigint", "5", pointer(int64(5)), false},
		{"sql.NullInt64", "bigint", "5", sql.NullInt64{Int64: 5, Valid: true}, false},
		{"*sql.NullInt32", "int", "5", &sql.NullInt32{Int32: 5, Valid: true}, false},
		{"sql.Null[int]", "int", "5", sql.Null[int]{V: 5, Valid: true}, false},
		{"[16]byte", "uuid", "123e4567-e89b-12d3-a456-426614174000", id, false},
		{"pgtype.Int4", "int", "5", pgtype.Int4{Int32: 5, Valid: true}, false},
		{"*pgtype.Int8", "bigint", "5", &pgtype.Int8{Int64: 5, Valid: true}, false},
		{"uint8", "smallint", "5", uint8(5), false},
		{"*big.Int", "numeric", "123456789012345678901", func() any { n, _ := new(big.Int).SetString("123456789012345678901", 10); return n }(), false},
		{"*big.Rat", "numeric", "1.25", big.NewRat(5, 4), false},
		{"whole *big.Rat", "numeric", "7", big.NewRat(14, 2), false},
		{"*big.Float", "numeric", "1.25", big.NewFloat(1.25), false},
		{"pgtype.Numeric", "numeric", "1.50", number("1.50"), false},
		{"pgtype.Numeric NaN", "numeric", "NaN", number("NaN"), false},
		{"pgtype.Float8", "float8", "1.5", pgtype.Float8{Float64: 1.5, Valid: true}, false},
		{"sql.NullFloat64", "float8", "1e+300", sql.NullFloat64{Float64: 1e300, Valid: true}, false},
		{"money", "numeric", "12.30", money{1230}, false},
		{"json.Number", "numeric", "12.30", json.Number("12.30"), false},
		{"sql.NullBool", "bool", "true", sql.NullBool{Bool: true, Valid: true}, false},
		{"pgtype.Bool", "bool", "false", pgtype.Bool{Valid: true}, false},
		{"sql.NullString", "text", "it's", sql.NullString{String: "it's", Valid: true}, false},
		{"pgtype.Text", "text", "12", pgtype.Text{String: "12", Valid: true}, false},
		{"pgtype.UUID", "uuid", "123e4567-e89b-12d3-a456-426614174000", pgtype.UUID{Bytes: id, Valid: true}, false},
		{"time.Time", "timestamptz", "2024-02-03 04:05:06.7+01", moment, false},
		{"sql.NullTime", "timestamptz", "2024-02-03 04:05:06.7+01", sql.NullTime{Time: moment, Valid: true}, false},
		{"pgtype.Timestamptz", "timestamptz", "2024-02-03 04:05:06.7+01", pgtype.Timestamptz{Time: moment, Valid: true}, false},
		{"pgtype.Timestamptz infinity", "timestamptz", "infinity", pgtype.Timestamptz{InfinityModifier: pgtype.Infinity, Valid: true}, false},
		{"pgtype.Timestamp", "timestamp", "2024-02-03 03:05:06.7", pgtype.Timestamp{Time: moment.UTC(), Valid: true}, false},
		{"pgtype.Date", "date", "2024-02-03", pgtype.Date{Time: time.Date(2024, 2, 3, 0, 0, 0, 0, time.UTC), Valid: true}, false},
		{"date before Christ", "date", "0044-03-15 BC", time.Date(-43, 3, 15, 0, 0, 0, 0, time.UTC), false},
		{"time before Christ", "timestamptz", "0044-03-15 12:00:00+00 BC", time.Date(-43, 3, 15, 12, 0, 0, 0, time.UTC), false},
		{"pgtype.Time", "time", "04:05:06.7", pgtype.Time{Microseconds: ((4*60+5)*60+6)*1e6 + 700_000, Valid: true}, false},
		{"pgtype.Interval", "interval", "1 year 2 mons -3 days +04:05:06.5", pgtype.Interval{Months: 14, Days: -3, Microseconds: ((4*60+5)*60+6)*1e6 + 500_000, Valid: true}, false},
		{"pgtype.Interval back and forth", "interval", "-1 years -2 mons +3 days -04:05:06", pgtype.Interval{Months: -14, Days: 3, Microseconds: -((4*60+5)*60 + 6) * 1e6, Valid: true}, false},
		{"pgtype.Interval of nothing", "interval", "0", pgtype.Interval{Valid: true}, false},
		{"pgtype.Interval of a day", "interval", "1 day", pgtype.Interval{Days: 1, Valid: true}, false},
		{"pgtype.Interval of 1000 hours", "interval", "1000:00:00.000001", pgtype.Interval{Microseconds: 3600*1000*1e6 + 1, Valid: true}, false},
		{"time.Duration", "interval", "-01:30:00", -90 * time.Minute, false},
		{"time.Duration in a bigint", "bigint", "90000000000", 90 * time.Second, false},
		{"[]byte", "bytea", `\x0102ff`, []byte{1, 2, 255}, false},
		{"sql.Null[[]byte]", "bytea", `\x0102ff`, sql.Null[[]byte]{V: []byte{1, 2, 255}, Valid: true}, false},
		{"netip.Addr", "inet", "192.0.2.1", netip.MustParseAddr("192.0.2.1"), false},
		{"netip.Prefix of a network", "cidr", "192.0.2.0/24", netip.MustParsePrefix("192.0.2.0/24"), false},
		{"netip.Prefix of a host", "inet", "192.0.2.1", netip.MustParsePrefix("192.0.2.1/32"), false},
		{"pgtype.Bits", "varbit", "10100", pgtype.Bits{Bytes: []byte{0b10100000}, Len: 5, Valid: true}, false},
		{"pgtype.Range", "int4range", "[1,5)", pgtype.Range[pgtype.Int4]{
			Lower: pgtype.Int4{Int32: 1, Valid: true}, Upper: pgtype.Int4{Int32: 5, Valid: true},
			LowerType: pgtype.Inclusive, UpperType: pgtype.Exclusive, Valid: true,
		}, true},
		{"[]int", "int[]", "{1,2}", []int{1, 2}, true},
		{"[]sql.NullInt64", "int[]", "{1,NULL}", []sql.NullInt64{{Int64: 1, Valid: true}, {}}, true},
		{"[]pgtype.Numeric", "numeric[]", "{1.50}", []pgtype.Numeric{number("1.50")}, true},
		{"[]time.Time", "date[]", "{2024-02-03}", []time.Time{time.Date(2024, 2, 3, 0, 0, 0, 0, time.UTC)}, true},
		{"jsonb of a map", "jsonb", `{"a": [1, "x"]}`, map[string]any{"a": []any{1, "x"}}, true},
		{"jsonb of a Valuer", "jsonb", `{"a": 1}`, document{`{"a":1}`}, true},
		{"json.RawMessage", "json", `{"a": 1}`, json.RawMessage(`{"a":1.0}`), true},
	}
}

// digest is bytes under a name of the application's.
type digest []byte

// literal is what has its value as PostgreSQL reads it, as pq.Array does.
type literal string

func (l literal) Value() (driver.Value, error) { return string(l), nil }

// valuesOfDrivers are values whose form in the column is that which drivers make of them.
func valuesOfDrivers() []filterValue {
	east := time.FixedZone("", 3600)
	day := time.Date(2024, 2, 3, 0, 0, 0, 0, east)
	moment := time.Date(2024, 2, 3, 4, 5, 6, 0, east)
	link, err := url.Parse("https://example.com/a")
	if err != nil {
		panic(err)
	}
	int4 := func(n int32) pgtype.Int4 { return pgtype.Int4{Int32: n, Valid: true} }
	return []filterValue{
		{"named bytes", "bytea", `\x0102`, digest{1, 2}, false},
		{"sql.RawBytes", "bytea", `\x0102`, sql.RawBytes{1, 2}, false},
		{"Stringer", "text", "https://example.com/a", link, true},
		{"pgtype.Float4", "real", "0.1", pgtype.Float4{Float32: 0.1, Valid: true}, false},
		{"sql.Null[float32]", "real", "0.1", sql.Null[float32]{V: 0.1, Valid: true}, false},
		{"negative zero", "float8", "-0", math.Copysign(0, -1), false},
		{"literal of texts", "text[]", `{a,NULL,"NULL"}`, literal(`{"a",NULL,"NULL"}`), true},
		{"literal of numbers", "numeric[]", "{{1.5},{2}}", literal("{{1.50},{2}}"), true},
		{"literal of booleans", "bool[]", "{t,f}", literal("{t,f}"), true},
		{"empty literal", "int[]", "{}", literal("{}"), true},
		{"pgtype.Array", "int[]", "{{1,2},{3,NULL}}", pgtype.Array[*int]{
			Elements: []*int{pointer(1), pointer(2), pointer(3), nil}, Dims: []pgtype.ArrayDimension{{Length: 2, LowerBound: 1}, {Length: 2, LowerBound: 1}}, Valid: true,
		}, true},
		{"number in bytes", "numeric", "1.50", document{"1.5"}, true},
		{"text in bytes", "text", "abc", document{"abc"}, false},
		{"jsonb string in bytes", "jsonb", `"x"`, document{`"x"`}, true},
		{"repeated key in bytes", "json", `{"a":1,"a":2}`, document{`{"a":1,"a":2}`}, true},
		{"repeated key, raw", "json", `{"a":1,"a":2}`, json.RawMessage(`{"a":1,"a":2}`), true},
		{"day of a zone", "date", "2024-02-03", day, false},
		{"pgtype.Date of a zone", "date", "2024-02-03", pgtype.Date{Time: day, Valid: true}, false},
		{"*pgtype.Date at noon", "date", "2024-02-03", &pgtype.Date{Time: day.Add(12 * time.Hour), Valid: true}, false},
		{"pgtype.Date infinity", "date", "-infinity", pgtype.Date{InfinityModifier: pgtype.NegativeInfinity, Valid: true}, false},
		{"time of a zone", "timestamp", "2024-02-03 04:05:06", moment, false},
		{"pgtype.Timestamp of a zone", "timestamp", "2024-02-03 04:05:06", pgtype.Timestamp{Time: moment, Valid: true}, false},
		{"*pgtype.Time", "time", "04:05:06", &pgtype.Time{Microseconds: ((4*60+5)*60 + 6) * 1e6, Valid: true}, false},
		{"range of times", "tstzrange", "[2024-02-03 04:05:06+01,)", pgtype.Range[pgtype.Timestamptz]{
			Lower: pgtype.Timestamptz{Time: moment, Valid: true}, LowerType: pgtype.Inclusive, UpperType: pgtype.Unbounded, Valid: true,
		}, true},
		{"range of dates", "daterange", "[2024-02-03,2024-02-04)", pgtype.Range[pgtype.Date]{
			Lower: pgtype.Date{Time: day, Valid: true}, Upper: pgtype.Date{Time: day.AddDate(0, 0, 1), Valid: true}, LowerType: pgtype.Inclusive, UpperType: pgtype.Exclusive, Valid: true,
		}, true},
		{"multirange", "int4multirange", "{[1,5),[7,9)}", pgtype.Multirange[pgtype.Range[pgtype.Int4]]{
			{Lower: int4(1), Upper: int4(5), LowerType: pgtype.Inclusive, UpperType: pgtype.Exclusive, Valid: true},
			{Lower: int4(7), Upper: int4(9), LowerType: pgtype.Inclusive, UpperType: pgtype.Exclusive, Valid: true},
		}, true},
	}
}

// TestFilters_ValuesOfGo and its neighbour write each value to a column and to a key, and asks for it by
// every filter that takes one.
func TestFilters_ValuesOfGo(t *testing.T) {
	t.Parallel()
	testFilterValues(t, filterValues())
}

func TestFilters_ValuesOfDrivers(t *testing.T) {
	t.Parallel()
	testFilterValues(t, valuesOfDrivers())
}

func testFilterValues(t *testing.T, values []filterValue) {
	t.Helper()
	var ddl, writes strings.Builder
	for i, v := range values {
		literal := "'" + strings.ReplaceAll(v.literal, "'", "''") + "'"
		fmt.Fprintf(&writes, "INSERT INTO v%d VALUES (1, %s), (2, NULL);", i, literal)
		fmt.Fprintf(&ddl, "CREATE TABLE v%d (id int PRIMARY KEY, v %s);", i, v.column)
		if !v.noKey {
			fmt.Fprintf(&ddl, "CREATE TABLE k%d (v %s PRIMARY KEY);", i, v.column)
			fmt.Fprintf(&writes, "INSERT INTO k%d VALUES (%s);", i, literal)
		}
	}
	db := audittest.NewDatabase(t)
	db.Exec(t, ddl.String())
	a := audittest.Open(t, db, audit.Config{Tables: []string{"public.*"}}) // whose end is not checked by jsonb_populate_record, which has no repeated keys
	mustStart(t, a)
	a.Exec(t, writes.String())
	a.Sync(t)
	for i, v := range values {
		q := a.Client.Changes().ForTable(fmt.Sprintf("v%d", i))
		type row struct {
			V any `json:"v"`
		}
		for name, q := range map[string]audit.Query{
			"ChangedTo":              q.ChangedTo("v", v.value),
			"WhereAfter of a map":    q.WhereAfter(map[string]any{"v": v.value}),
			"WhereAfter of a struct": q.WhereAfter(row{v.value}),
		} {
			if keys := keysOf(t, q); keys != "1" {
				t.Errorf("%s of %s in a %s finds %q", name, v.name, v.column, keys)
			}
		}
		if v.noKey {
			continue
		}
		if n, err := a.Client.Changes().ForTable(fmt.Sprintf("k%d", i)).ForRow(v.value).Count(t.Context()); err != nil || n != 1 {
			t.Errorf("ForRow of %s in a %s finds %d: %v", v.name, v.column, n, err)
		}
	}
}

// keysOf returns the keys of the rows that a query finds, or the error.
func keysOf(t *testing.T, q audit.Query) string {
	t.Helper()
	changes, err := q.List(t.Context())
	if err != nil {
		return err.Error()
	}
	var keys []string
	for _, c := range changes {
		keys = append(keys, c.PrimaryKey)
	}
	return strings.Join(keys, " ")
}

// What is NULL in Go is NULL, whatever carries it.
func TestChangedTo_Null(t *testing.T) {
	t.Parallel()
	h := newHistory(t)
	h.store(t, change(1, 1, func(c *audit.Change) { c.After = audit.Image(`{"v": null}`) }), change(2, 1, func(c *audit.Change) { c.After = audit.Image(`{"v": 0}`) }))
	for name, value := range map[string]any{
		"nil": nil, "*int": (*int)(nil), "sql.NullInt64": sql.NullInt64{}, "*sql.NullInt64": (*sql.NullInt64)(nil),
		"pgtype.Int4": pgtype.Int4{}, "sql.Null": sql.Null[string]{}, "pgtype.Numeric": pgtype.Numeric{}, "*big.Rat": (*big.Rat)(nil),
		"pgtype.Interval": pgtype.Interval{}, "pgtype.Time": pgtype.Time{}, "sql.Null of a Valuer": sql.Null[sql.NullInt64]{Valid: true},
	} {
		if keys := keysOf(t, h.client.Changes().ChangedTo("v", value)); keys != "1" {
			t.Errorf("%s finds %q", name, keys)
		}
		if keys := keysOf(t, h.client.Changes().WhereAfter(map[string]any{"v": value})); keys != "1" {
			t.Errorf("WhereAfter %s finds %q", name, keys)
		}
	}
}

// broken is a Valuer that fails.
type broken struct{}

func (broken) Value() (driver.Value, error) { return nil, errors.New("no value") }

func TestFilters_ValuesWithoutAForm(t *testing.T) {
	t.Parallel()
	h := newHistory(t)
	for name, value := range map[string]any{
		"a third": big.NewRat(1, 3), "broken": broken{}, "sql.Null of what no driver takes": sql.Null[[16]byte]{Valid: true}, "channel": make(chan int), "no number": json.Number("1; DROP"),
		"huge exponent": json.Number("1e999999999"), "infinite": new(big.Float).SetInf(true), "NUL": sql.NullString{String: "\x00", Valid: true},
	} {
		for filter, q := range map[string]audit.Query{
			"ChangedTo":  h.client.Changes().ChangedTo("v", value),
			"WhereAfter": h.client.Changes().WhereAfter(map[string]any{"v": value}),
		} {
			var refused *audit.FilterError
			n, err := q.Count(t.Context())
			if (err != nil || n != 0) && !errors.As(err, &refused) {
				t.Errorf("%s of %s: %d, %v", filter, name, n, err)
			}
			if err != nil && strings.Contains(err.Error(), "DROP") {
				t.Errorf("%s of %s tells the value: %v", filter, name, err)
			}
		}
	}
}

// A number of Go is found as a text by the one filter, and not by the other, which
// compares rows.
func TestChangedTo_NumberInText(t *testing.T) {
	t.Parallel()
	h := newHistory(t)
	h.store(t, change(1, 1, func(c *audit.Change) { c.After = audit.Image(`{"v": "5"}`) }), change(2, 1, func(c *audit.Change) { c.After = audit.Image(`{"v": 5.0}`) }))
	q := h.client.Changes()
	for name, test := range map[string]struct {
		query audit.Query
		want  string
	}{
		"ChangedTo int":      {q.ChangedTo("v", 5), "2 1"},
		"ChangedTo string":   {q.ChangedTo("v", "5"), "2 1"},
		"ChangedTo Valuer":   {q.ChangedTo("v", pgtype.Int4{Int32: 5, Valid: true}), "2 1"},
		"ChangedTo zeros":    {q.ChangedTo("v", "05"), ""},
		"WhereAfter int":     {q.WhereAfter(map[string]int{"v": 5}), "2"},
		"WhereAfter string":  {q.WhereAfter(map[string]string{"v": "5"}), "1"},
		"WhereAfter Valuer":  {q.WhereAfter(map[string]any{"v": pgtype.Int4{Int32: 5, Valid: true}}), "2"},
		"WhereAfter decimal": {q.WhereAfter(map[string]any{"v": money{500}}), "2"},
	} {
		if keys := keysOf(t, test.query); keys != test.want {
			t.Errorf("%s finds %q", name, keys)
		}
	}
}

// embedded is a part of a row that several tables have.
type embedded struct {
	At      sql.NullTime `json:"at"`
	Version int          `json:"version"`
}

// A struct gives its columns under the names of encoding/json.
func TestWhereAfter_Structs(t *testing.T) {
	t.Parallel()
	h := newHistory(t)
	h.store(t, change(1, 1, func(c *audit.Change) {
		c.After = audit.Image(`{"id": 1, "at": "2024-01-02 03:04:05+00", "version": 7, "name": null}`)
	}))
	moment := sql.NullTime{Time: time.Date(2024, 1, 2, 3, 4, 5, 0, time.UTC), Valid: true}
	for name, test := range map[string]struct {
		row  any
		want string
	}{
		"embedded": {struct {
			ID int `json:"id"`
			embedded
		}{1, embedded{moment, 7}}, "1"},
		"embedded, another version": {struct{ embedded }{embedded{moment, 8}}, ""},
		"an outer field hides one": {struct {
			Version int `json:"version"`
			*embedded
		}{7, &embedded{moment, 8}}, "1"},
		"omitted": {struct {
			ID   int       `json:"id,omitempty"`
			Name string    `json:"name,omitempty"`
			Rest string    `json:"-"`
			At   time.Time `json:"at,omitzero"`
		}{Rest: "x"}, "1"},
		"NULL": {struct {
			Name sql.NullString `json:"name"`
		}{}, "1"},
		"a pointer to a map": {&map[string]any{"version": 7, "at": moment}, "1"},
		"raw":                {json.RawMessage(`{"version": 7}`), "1"},
	} {
		if keys := keysOf(t, h.client.Changes().WhereAfter(test.row)); keys != test.want {
			t.Errorf("%s finds %q", name, keys)
		}
	}
}

func TestByUser_Valuers(t *testing.T) {
	t.Parallel()
	h := newHistory(t)
	h.store(t, change(1, 1, with(`{"userId": 5}`)), change(2, 1, with(`{"userId": "5"}`)), change(3, 1, with(`{"userId": "ann"}`)))
	for name, id := range map[string]any{
		"sql.NullInt64": sql.NullInt64{Int64: 5, Valid: true}, "pgtype.Int4": pgtype.Int4{Int32: 5, Valid: true},
		"sql.Null": sql.Null[int]{V: 5, Valid: true}, "pgtype.Text": pgtype.Text{String: "5", Valid: true}, "*big.Int": big.NewInt(5),
		"sql.Null of a Valuer": sql.Null[sql.NullString]{V: sql.NullString{String: "5", Valid: true}, Valid: true},
	} {
		if keys := keysOf(t, h.client.Changes().ByUser(id)); keys != "2 1" {
			t.Errorf("%s finds %q", name, keys)
		}
	}
}
