package audit_test

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/hindsight-go/audit"
	"github.com/hindsight-go/audit/audittest"
)

// kindOfType is a type with values of it, as literals without their quotes.
type kindOfType struct {
	name   string
	values []string
	bare   bool // no array, domain or composite of it can be made
}

// controls is every character that JSON escapes and some that it need not.
var controls = func() string {
	var b strings.Builder
	for c := rune(1); c <= 0xA1; c++ {
		b.WriteRune(c)
	}
	return b.String() + "\u2028\u2029\ufeff\ufffd\U0010ffff"
}()

// strings that arrays, composites, ranges and JSON quote, each in its own way.
var quotable = []string{
	"", " ", "NULL", "null", "a,b", "{", "}", "{}", "()", "(a,b)", "[1,2)", `"`, `""`, `\`, `\\`, `\"`, "'", "a;b", " padded ", "\t", "\n",
	"true", "1", "-0", "NaN", `{"a": 1}`, "[]", "ünïcode", "列", "😀", "e\u0301", controls,
}

var builtinTypes = []kindOfType{
	{name: "bool", values: []string{"t", "f"}},
	{name: "int2", values: []string{"0", "-32768", "32767"}},
	{name: "int4", values: []string{"0", "-2147483648", "2147483647"}},
	{name: "int8", values: []string{"0", "-9223372036854775808", "9223372036854775807", "9007199254740993"}},
	{name: "oid", values: []string{"0", "4294967295"}},
	{name: "float4", values: []string{"0", "-0", "1", "-1.5", "NaN", "Infinity", "-Infinity", "3.4028235e38", "1e-45", "1.17549435e-38", "0.1", "16777217"}},
	{name: "float8", values: []string{"0", "-0", "1", "-1.5", "NaN", "Infinity", "-Infinity", "1.7976931348623157e308", "5e-324", "2.2250738585072014e-308", "0.1", "0.30000000000000004", "1e15", "1e16", "123456789012345680000"}},
	{name: "numeric", values: []string{
		"0", "0.00", "1.10", "-1.10", "NaN", "Infinity", "-Infinity", "12345678901234567890123456789012345678", "0.00000000000000000000000000000000000001",
		"1" + strings.Repeat("0", 999), strings.Repeat("9", 500) + "." + strings.Repeat("123456789", 55) + "0", "1e-400", "-" + strings.Repeat("9", 20000),
	}},
	{name: "numeric(12,4)", values: []string{"1.1", "-0.0001", "0", "NaN"}},
	{name: "money", values: []string{"0", "-92233720368547758.08", "92233720368547758.07", "1234.56"}},
	{name: "text", values: quotable},
	{name: "varchar(300)", values: quotable},
	{name: "char(5)", values: []string{"", "a", "ab   ", `a"\`, "é", "'{},"}},
	{name: `"char"`, values: []string{"", "a", " ", `"`, `\`, ",", "'", "\x01", "~"}},
	{name: "name", values: []string{"", "a", "NULL", `a "b" \ c`, strings.Repeat("n", 63)}},
	{name: "bytea", values: []string{`\x`, `\x00`, `\x00ff5c22`, `\x` + strings.Repeat("deadbeef", 3000)}},
	{name: "date", values: []string{"2024-02-29", "0001-01-01", "4713-01-01 BC", "0044-03-15 BC", "5874897-12-31", "infinity", "-infinity", "1999-12-31"}},
	{name: "time", values: []string{"00:00:00", "24:00:00", "23:59:59.999999", "12:34:56.7"}},
	{name: "time(2)", values: []string{"12:34:56.789"}},
	{name: "timetz", values: []string{"00:00:00+00", "24:00:00+05:45", "23:59:59.999999-15:59:59", "12:00:00+15:59:59"}},
	{name: "timestamp", values: []string{"2024-02-29 23:59:59.999999", "294276-12-31 23:59:59.999999", "4713-01-01 00:00:00 BC", "infinity", "-infinity", "0044-03-15 12:00:00.000001 BC", "10000-01-01"}},
	{name: "timestamptz", values: []string{"2024-02-29 23:59:59.999999+00", "294276-12-31 23:59:59.999999+00", "4713-01-01 00:00:00+00 BC", "infinity", "-infinity", "1890-01-01 00:00:00+05:41:16", "2024-03-31 01:30:00+00"}},
	{name: "interval", values: []string{
		"0", "1 year 2 mons 3 days 04:05:06.789", "-1 year -2 mons -3 days -04:05:06.789", "-1 year +2 mons -3 days +04:05:06", "1 mon -1 day",
		"-1 day +00:00:01", "00:00:00.000001", "-00:00:00.000001", "178000000 years", "-178000000 years", "2147483647 days", "2147483647:59:59.999999", "-13 mons",
	}},
	{name: "uuid", values: []string{"00000000-0000-0000-0000-000000000000", "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11"}},
	{name: "inet", values: []string{"192.168.0.1", "192.168.0.1/24", "::1", "2001:db8::ff00:42:8329/64", "0.0.0.0/0", "::ffff:1.2.3.4"}},
	{name: "cidr", values: []string{"192.168.0.0/24", "10.0.0.0/8", "2001:db8::/32", "0.0.0.0/0"}},
	{name: "macaddr", values: []string{"08:00:2b:01:02:03"}},
	{name: "macaddr8", values: []string{"08:00:2b:01:02:03:04:05"}},
	{name: "bit(5)", values: []string{"10101", "00000"}},
	{name: "varbit", values: []string{"", "1", "0000000000000000000000000000000000000000000000000000000000000000000000001"}},
	{name: "point", values: []string{"(1.5,-0)", "(NaN,Infinity)", "(0.1,1e300)"}},
	{name: "line", values: []string{"{1,-1,0}", "{0.1,2,3}"}},
	{name: "lseg", values: []string{"[(0,0),(1.1,-1)]"}},
	{name: "box", values: []string{"(1,1),(0,0)", "(0.30000000000000004,2),(-1,-2)"}},
	{name: "path", values: []string{"((0,0),(1,1),(2,0))", "[(0,0),(1,1)]"}},
	{name: "polygon", values: []string{"((0,0),(1,1),(2,0))"}},
	{name: "circle", values: []string{"<(1,2),3>", "<(0.1,0.2),0>"}},
	{name: "tsvector", values: []string{"", "a fat cat", "'a':1A,3B 'it''s':2 '\\\\':4", `'" , { }':1`}},
	{name: "tsquery", values: []string{"", "fat & (rat | !cat)", "'it''s':AB <-> b:*", `'a\\b'`}},
	{name: "xml", values: []string{"", "<a/>", `<a b="c &amp; d">é &lt; "q" \ </a>`, `<?xml version="1.0"?><a>x</a>`, "text only <b/>", "<a>\n\t</a>"}},
	{name: "json", values: nil}, // by itself below, and here inside of others
	{name: "jsonb", values: []string{`{"a": [1, 2.50, {"b": null}], "z": "\"\\\n\u0001"}`, "[]", "{}", `"string"`, `""`, "1.10", "-0.0", "true", "[null]", "12345678901234567890.123456789", `"{\"a\": 1}"`, `{"": {"": ""}}`, strings.Repeat("[", 1000) + strings.Repeat("]", 1000)}},
	{name: "jsonpath", values: []string{"$", `$.a[*] ? (@.b == "x")`, `strict $."quo\"te"`}},
	{name: "int4range", values: []string{"empty", "[1,10)", "(,)", "[5,)"}},
	{name: "int8range", values: []string{"[-9223372036854775808,9223372036854775807)"}},
	{name: "numrange", values: []string{"[1.10,2.20]", "(NaN,)", "[0,Infinity]"}},
	{name: "daterange", values: []string{"[2024-01-01,2024-02-01)", "[0044-03-15 BC,infinity)", "[-infinity,infinity]"}},
	{name: "tsrange", values: []string{`["2024-01-01 00:00:00","294276-12-31 23:59:59.999999"]`, "empty"}},
	{name: "tstzrange", values: []string{`["2024-01-01 00:00:00+00",infinity)`, "(,)"}},
	{name: "int4multirange", values: []string{"{}", "{[1,3),[5,7)}"}},
	{name: "nummultirange", values: []string{"{[1.10,2.20],(3,)}"}},
	{name: "datemultirange", values: []string{"{[2024-01-01,2024-02-01),[2025-01-01,)}"}},
	{name: "tsmultirange", values: []string{`{["2024-01-01 00:00:00","2024-01-02 00:00:00"]}`}},
	{name: "tstzmultirange", values: []string{`{["2024-01-01 00:00:00+00",infinity)}`}},
	{name: "pg_lsn", values: []string{"0/0", "FFFFFFFF/FFFFFFFF"}},
	{name: "xid", values: []string{"0", "4294967295"}},
	{name: "xid8", values: []string{"0", "18446744073709551615"}},
	{name: "cid", values: []string{"7"}},
	{name: "tid", values: []string{"(0,1)", "(4294967295,65535)"}},
	{name: "txid_snapshot", values: []string{"10:20:10,14,15"}},
	{name: "pg_snapshot", values: []string{"10:20:10,14,15", "1:1:"}},
	{name: "int2vector", values: []string{"", "1", "1 -2 3"}, bare: true},
	{name: "oidvector", values: []string{"", "1", "1 2 4294967295"}, bare: true},
	{name: "refcursor", values: []string{"", "a cursor"}},
	{name: "regclass", values: []string{"pg_class", `kinds."Odd Table"`}},
	{name: "regtype", values: []string{"int4", "kinds.mood", "_int4"}},
	{name: "regproc", values: []string{"now", "kinds.odd"}},
	{name: "regprocedure", values: []string{"abs(integer)", "kinds.odd(kinds.mood)"}},
	{name: "regnamespace", values: []string{"pg_catalog", "kinds"}},
	{name: "regrole", values: []string{"pg_monitor"}},
	{name: "regconfig", values: []string{"english"}},
}

// madeTypes are what the statements of makeTypes make.
var madeTypes = []kindOfType{
	{name: "kinds.mood", values: []string{"sad", "so, so", `"ha\ppy"`, "NULL", "'", "😀", ""}},
	{name: "kinds.amount", values: []string{"1.10", "0.00"}},
	{name: "kinds.label", values: quotable},
	{name: "kinds.flag", values: []string{"t", "f"}},
	{name: "kinds.counts", values: []string{"{}", "{1,NULL,-3}", "[0:1]={1,2}", "{{1,2},{3,4}}"}},
	{name: "kinds.labels", values: []string{`{}`, `{a,"NULL",NULL,"","a,b","{}","\"\\"}`}},
	{name: "kinds.document", values: []string{`{"a": 1.10}`, "[1]", `"x"`}},
	{name: "kinds.documents", values: []string{`{"{\"a\": 1}","[1,2]",NULL,"null"}`}},
	{name: "kinds.moods", values: []string{`{}`, `{sad,NULL,"so, so","\"ha\\ppy\""}`}},
	{name: "kinds.spot", values: []string{`(1,"a,b",sad)`, "(,,)", `(-1,"(""q"",\\)","so, so")`, `(0,"",)`}},
	{name: "kinds.place", values: []string{`("(1,a,sad)","{1,2,NULL}","{""(2,b,)"",NULL}","{""a"": 1.10}")`, "(,,,)"}},
	{name: "kinds.checked", values: []string{`(1,"a,b",sad)`}},
	{name: "kinds.span", values: []string{"empty", "[a,b)", `["a b",)`, `["a,\"b\\",z]`}},
	{name: "kinds.amountspan", values: []string{"[1.10,2.20)"}},
	{name: "kinds.spanmultirange", values: []string{"{}", "{[a,b),[c,d]}"}},
}

// contribTypes are those of extensions, which have the names of their types.
var contribTypes = []kindOfType{
	{name: "hstore", values: []string{"", `"a"=>"1", "b"=>NULL`, `"quo\"te\\"=>"=>,'", "NULL"=>"NULL"`}},
	{name: "citext", values: quotable[:20]},
	{name: "ltree", values: []string{"", "top.a_1.b"}},
	{name: "cube", values: []string{"(1, 2),(3, 4)", "(0.5)"}},
}

const makeTypes = `
	CREATE SCHEMA kinds;
	CREATE SCHEMA ctl;
	CREATE TYPE kinds.mood AS ENUM ('sad', 'so, so', '"ha\ppy"', 'NULL', '''', '😀', '');
	CREATE FUNCTION kinds.odd(kinds.mood) RETURNS int LANGUAGE sql AS 'SELECT 1';
	CREATE TABLE kinds."Odd Table" ();
	CREATE DOMAIN kinds.amount AS numeric(10, 2) CHECK (VALUE >= 0);
	CREATE DOMAIN kinds.label AS text;
	CREATE DOMAIN kinds.flag AS bool;
	CREATE DOMAIN kinds.counts AS int[];
	CREATE DOMAIN kinds.labels AS text[];
	CREATE DOMAIN kinds.document AS jsonb;
	CREATE DOMAIN kinds.documents AS jsonb[];
	CREATE DOMAIN kinds.moods AS kinds.mood[];
	CREATE TYPE kinds.spot AS (x int, name text, mood kinds.mood);
	CREATE TYPE kinds.place AS (spot kinds.spot, counts int[], spots kinds.spot[], document jsonb);
	CREATE DOMAIN kinds.checked AS kinds.spot CHECK ((VALUE).x > 0);
	CREATE TYPE kinds.span AS RANGE (SUBTYPE = text, MULTIRANGE_TYPE_NAME = kinds.spanmultirange);
	CREATE TYPE kinds.amountspan AS RANGE (SUBTYPE = numeric);`

// columns of the tables that makeTable makes: the type itself, a domain over it,
// its array, the domain's array, a composite with both, and its array.
var typeColumns = []string{"v", "d", "a", "da", "c", "ca"}

// makeTable returns what makes the table of a type, public.kN, and its values
// in ctl.kN. There are an empty array, one of two dimensions, one with explicit
// bounds and one of everything.
func (k kindOfType) makeTable(n int) string {
	var b strings.Builder
	literal := func(s string) string { return "E'" + strings.NewReplacer(`\`, `\\`, `'`, `\'`).Replace(s) + "'" }
	var values []string
	for i, v := range k.values {
		values = append(values, fmt.Sprintf("(%d, %s::%s)", i+1, literal(v), k.name))
	}
	values = append(values, fmt.Sprintf("(%d, NULL)", len(k.values)+1))
	fmt.Fprintf(&b, "CREATE TABLE ctl.values%d (id int, v %s); INSERT INTO ctl.values%d VALUES %s;", n, k.name, n, strings.Join(values, ", "))
	if k.bare {
		fmt.Fprintf(&b, "CREATE TABLE k%d (id int PRIMARY KEY, v %s);", n, k.name)
		fmt.Fprintf(&b, "CREATE TABLE ctl.k%d AS SELECT * FROM ctl.values%d;", n, n)
		return b.String()
	}
	fmt.Fprintf(&b, `
		CREATE DOMAIN kinds.d%[1]d AS %[2]s;
		CREATE TYPE kinds.c%[1]d AS (v %[2]s, a %[2]s[], d kinds.d%[1]d);
		CREATE TABLE k%[1]d (id int PRIMARY KEY, v %[2]s, d kinds.d%[1]d, a %[2]s[], da kinds.d%[1]d[], c kinds.c%[1]d, ca kinds.c%[1]d[]);
		CREATE TABLE ctl.k%[1]d AS
		WITH everything AS (SELECT array_agg(v::text ORDER BY id)::%[2]s[] AS a, (count(*) + 4)::text AS upto FROM ctl.values%[1]d),
		variants AS (
			SELECT id, v, CASE id %% 5
				WHEN 0 THEN NULL
				WHEN 1 THEN (SELECT a FROM everything)
				WHEN 2 THEN '{}'
				WHEN 3 THEN (SELECT ('[5:' || upto || ']=' || a::text)::%[2]s[] FROM everything)
				ELSE ARRAY[ARRAY[v::text, NULL], ARRAY[v::text, v::text]]::%[2]s[] END AS a
			FROM ctl.values%[1]d)
		SELECT id, v, v::kinds.d%[1]d AS d, a, a::kinds.d%[1]d[] AS da,
			ROW(v, a, v)::kinds.c%[1]d AS c, ARRAY[ROW(v, a, v)::kinds.c%[1]d, NULL, ROW(NULL, NULL, NULL)::kinds.c%[1]d] AS ca
		FROM variants;`, n, k.name)
	return b.String()
}

// hostile settings of the database, and of the role in it, would each change the
// text of a value.
func hostile(db *audittest.Database) []string {
	var sql []string
	for name, value := range map[string]string{
		"datestyle": "German, DMY", "intervalstyle": "sql_standard", "timezone": "Asia/Kathmandu", "extra_float_digits": "0", "bytea_output": "escape",
	} {
		sql = append(sql, fmt.Sprintf("ALTER DATABASE %s SET %s = '%s'", db.Name(), name, value))
	}
	for name, value := range map[string]string{
		"client_encoding": "LATIN1", "datestyle": "SQL, MDY", "intervalstyle": "iso_8601", "extra_float_digits": "-15",
		"quote_all_identifiers": "on", "backslash_quote": "off", "standard_conforming_strings": "off",
	} {
		sql = append(sql, fmt.Sprintf("ALTER ROLE CURRENT_USER IN DATABASE %s SET %s = '%s'", db.Name(), name, value))
	}
	return append(sql, fmt.Sprintf("ALTER ROLE CURRENT_USER IN DATABASE %s SET search_path = kinds, public", db.Name()))
}

func TestEveryTypeComesBackAsItWas(t *testing.T) {
	t.Parallel()
	for name, settings := range map[string]func(*audittest.Database) []string{
		"as installed":      func(*audittest.Database) []string { return nil },
		"database defaults": func(db *audittest.Database) []string { return hostile(db)[:5] },
		"role defaults":     hostile,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			db := audittest.NewDatabase(t)
			db.Exec(t, makeTypes)
			types := append(append([]kindOfType(nil), builtinTypes...), madeTypes...)
			if db.Server().Version() >= 150000 {
				types = append(types, kindOfType{name: "numeric(3,-2)", values: []string{"99900", "0"}})
			}
			for _, k := range contribTypes {
				// Packages of the server without its extensions are common.
				if audittest.Value[bool](t, db, "SELECT EXISTS (SELECT FROM pg_available_extensions WHERE name = $1)", k.name) {
					db.Exec(t, "CREATE EXTENSION "+k.name)
					types = append(types, k)
				} else {
					t.Logf("the server has no extension %s", k.name)
				}
			}
			for n, k := range types {
				db.Exec(t, k.makeTable(n))
			}
			for _, sql := range settings(db) {
				db.Exec(t, sql)
			}
			cfg := audit.Config{Tables: []string{"public.*"}}
			a := capturing(t, db, cfg)

			conn := a.Connect(t)
			exec := func(sql string) {
				t.Helper()
				if _, err := conn.PgConn().Exec(t.Context(), sql).ReadAll(); err != nil {
					t.Fatalf("%s: %v", sql, err)
				}
			}
			// Values are compared by what their output function gives, which is what
			// any client is shown: xml loses a needless declaration in it.
			check := func(k kindOfType, n int, operation, side, control string) {
				t.Helper()
				columns := typeColumns
				if k.bare {
					columns = []string{"v"}
				}
				for _, c := range columns {
					var rows int
					var different string
					err := conn.QueryRow(t.Context(), fmt.Sprintf(`
						SELECT count(*), coalesce(string_agg(format('row %%s: restored %%s, was %%s, image %%s, defect %%s', l.id, left(p.%[1]s::text, 200), left(l.%[1]s::text, 200), left((ch.%[2]s -> '%[1]s')::text, 200), ch.defect), E'\n')
							FILTER (WHERE format('%%L', p.%[1]s) <> format('%%L', l.%[1]s) OR NOT ch.%[2]s ? '%[1]s' OR ch.defect IS NOT NULL), '')
						FROM audit.changes ch
						CROSS JOIN LATERAL jsonb_populate_record(NULL::public.k%[3]d, ch.%[2]s) p
						JOIN %[4]s l ON l.id::text = ch.primary_key
						WHERE ch."table" = 'k%[3]d' AND ch.operation = '%[5]s'`, c, side, n, control, operation)).Scan(&rows, &different)
					switch {
					case err != nil:
						t.Errorf("%s, %s, %s of column %s: %v", k.name, operation, side, c, err)
					case rows != len(k.values)+1:
						t.Errorf("%s, %s, %s of column %s: %d rows of %d are in history", k.name, operation, side, c, rows, len(k.values)+1)
					case different != "":
						t.Errorf("%s, %s, %s of column %s:\n%s", k.name, operation, side, c, different)
					}
				}
			}
			for n := range types {
				exec(fmt.Sprintf("INSERT INTO public.k%[1]d SELECT * FROM ctl.k%[1]d", n))
			}
			for n, k := range types {
				columns := strings.Join(typeColumns, ", ")
				if k.bare {
					columns = "v"
				}
				exec(fmt.Sprintf(`
					CREATE TABLE ctl.next%[1]d AS SELECT id %% %[2]d + 1 AS id, %[3]s FROM ctl.k%[1]d;
					UPDATE public.k%[1]d SET (%[3]s) = (SELECT %[3]s FROM ctl.next%[1]d c WHERE c.id = public.k%[1]d.id);
					DELETE FROM public.k%[1]d`, n, len(k.values)+1, columns))
			}
			a.Sync(t)
			// What is compared is text: it has to show everything.
			exec("SET extra_float_digits = 3")
			for n, k := range types {
				check(k, n, "CREATE", "after", fmt.Sprintf("ctl.k%d", n))
				check(k, n, "UPDATE", "before", fmt.Sprintf("ctl.k%d", n))
				check(k, n, "UPDATE", "after", fmt.Sprintf("ctl.next%d", n))
				check(k, n, "DELETE", "before", fmt.Sprintf("ctl.next%d", n))
			}
		})
	}
}

// documents are values of type json, and whether embedding them in an image
// would lose something, so that they have to be kept as a string of their text.
var documents = []struct {
	text  string
	exact bool
}{
	{`{"a": 1}`, false},
	{` { "b" : [ 1 , 2 ] , "a" : "\u00e9\ud83d\ude00" } `, false},
	{`[]`, false},
	{`{}`, false},
	{`1.10`, false},
	{`true`, false},
	{`"text"`, false},
	{`""`, false},
	{`12345678901234567890123456789012345678901234567890.10`, false},
	{`"{\"a\": 1}"`, false},
	{`"not JSON: {"`, false},
	{`[{"a": 1}, {"a": 2}]`, false},
	{`{"a": {"a": 1}}`, false},
	{strings.Repeat("[", 200) + strings.Repeat("]", 200), false},
	{`{"a": 1, "a": 2}`, true},
	{`{"x": [{"a": 1, "\u0061": 2}]}`, true},
	{`"\u0000"`, true},
	{`{"\u0000": 1}`, true},
	{`["\ud800"]`, true},
	{`"\udc00\ud800"`, true},
	{`1e100000`, true},
	{`[1e-100000]`, true},
	{strings.Repeat("9", 100000), true},
	{`null`, true},
	{` null`, true},
	{strings.Repeat("[", 3000) + strings.Repeat("]", 3000), true},
	// Strings that would be mistaken for a text kept as it is.
	{`"{\"a\": 1, \"a\": 2}"`, true},
	{`"\"\\u0000\""`, true},
	{`"null"`, true},
	{`"\"null\""`, true},
}

func TestJSONIsKeptWithoutLoss(t *testing.T) {
	t.Parallel()
	a := audittest.New(t, audit.Config{}, "CREATE DOMAIN doc AS json", "CREATE TABLE ctl (id int PRIMARY KEY, v json, d doc)")
	conn := a.Connect(t)
	for i, d := range documents {
		if _, err := conn.Exec(t.Context(), "INSERT INTO ctl VALUES ($1, $2::text::json, $2::text::json)", i, d.text); err != nil {
			t.Fatalf("%.100s: %v", d.text, err)
		}
	}
	if _, err := conn.Exec(t.Context(), "INSERT INTO ctl VALUES (-1, NULL, NULL)"); err != nil {
		t.Fatal(err)
	}
	a.Exec(t, "UPDATE ctl SET id = id + 1000")
	a.Exec(t, "DELETE FROM ctl")
	a.Sync(t)
	for change, err := range a.Client.Changes().ForTable("ctl").OldestFirst().All(context.WithoutCancel(t.Context())) {
		if err != nil {
			t.Fatal(err)
		}
		if change.Defect != "" {
			t.Errorf("%s has the defect %s", change.PrimaryKey, change.Defect)
		}
		for side, image := range map[string]audit.Image{"before": change.Before, "after": change.After} {
			if image.IsEmpty() {
				continue
			}
			var id int
			if err := image.Scan("id", &id); err != nil {
				t.Fatal(err)
			}
			for _, column := range []string{"v", "d"} {
				raw, _ := image.Get(column)
				if id%1000 == 999 || id == -1 {
					if string(raw) != "null" {
						t.Errorf("NULL is %s", raw)
					}
					continue
				}
				d := documents[id%1000]
				at := fmt.Sprintf("%s of %s %.60s", side, change.Operation, d.text)
				var content string
				isText := json.Unmarshal(raw, &content) == nil
				switch {
				case d.exact && (!isText || content != d.text):
					t.Errorf("%s: the image holds %.100s, want the exact text", at, raw)
				case !d.exact && !sameJSON(t, string(raw), d.text):
					t.Errorf("%s: the image holds %.100s, want the same JSON", at, raw)
				}
				// What a reader is given is the document.
				var got struct{ V, D json.RawMessage }
				decode := change.DecodeAfter
				if side == "before" {
					decode = change.DecodeBefore
				}
				if err := decode(&got); err != nil {
					t.Errorf("%s: %v", at, err)
				} else if !sameJSON(t, string(got.V), d.text) || !sameJSON(t, string(got.D), d.text) {
					t.Errorf("%s: it is read as %.100s and %.100s", at, got.V, got.D)
				}
			}
		}
	}
	if n := audittest.Value[int](t, a.Database, "SELECT count(*) FROM audit.changes"); n != 3*(len(documents)+1) {
		t.Errorf("history has %d changes", n)
	}
}

// sameJSON compares without regard to space and to the order of members.
func sameJSON(t *testing.T, a, b string) bool {
	t.Helper()
	if strings.TrimSpace(a) == strings.TrimSpace(b) {
		return true
	}
	decode := func(s string) (v any) {
		decoder := json.NewDecoder(strings.NewReader(s))
		decoder.UseNumber()
		if err := decoder.Decode(&v); err != nil {
			t.Errorf("%.100s: %v", s, err)
		}
		return v
	}
	return cmp.Equal(decode(a), decode(b))
}

// The null of jsonb cannot be told from NULL in an image: it has to be said.
func TestJSONBNullIsSaidToBeOne(t *testing.T) {
	t.Parallel()
	a := audittest.New(t, audit.Config{}, "CREATE TABLE todo (id int PRIMARY KEY, v jsonb)")
	a.Exec(t, "INSERT INTO todo VALUES (1, 'null'), (2, NULL), (3, '\"null\"'), (4, '[null]'); UPDATE todo SET v = NULL WHERE id = 1")
	tell(t, a, "operation, primary_key, before -> 'v', after -> 'v', defect",
		`CREATE 1 null after: column "v" is the null of JSON, not NULL`, `CREATE 2 null`, `CREATE 3 "null"`, `CREATE 4 [null]`,
		`UPDATE 1 null null before: column "v" is the null of JSON, not NULL`)
}

// In a SQL_ASCII database a text may be any bytes. They are kept, with a defect,
// and capture goes on.
func TestBytesThatAreNotUTF8(t *testing.T) {
	t.Parallel()
	db := databaseIn(t, "SQL_ASCII")
	db.Exec(t, "CREATE TABLE todo (id text PRIMARY KEY, title text, tags text[], doc json)")
	a := audittest.Open(t, db, audit.Config{})
	if err := a.Client.Start(context.WithoutCancel(t.Context())); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { a.Stop(t) })
	a.Exec(t, `
		INSERT INTO todo VALUES ('1', convert_from('\x61ff62', 'SQL_ASCII'), ARRAY['a', convert_from('\xfe', 'SQL_ASCII')], '{"a": "\u00e9"}');
		UPDATE todo SET title = 'é';
		INSERT INTO todo VALUES (convert_from('\xff', 'SQL_ASCII'), '2');
		INSERT INTO todo VALUES ('3', '3')`)
	a.Sync(t)
	const not = "is not valid UTF-8 and is kept as the hexadecimal digits of its bytes"
	tell(t, a, "operation, before ->> 'title', after ->> 'title', after -> 'doc', after -> 'tags', defect",
		`CREATE \x61ff62 {"a": "é"} "\\x7b612cfe7d" after: column "title" `+not+`; after: column "tags" `+not,
		`UPDATE \x61ff62 é {"a": "é"} "\\x7b612cfe7d" before: column "title" `+not+`; before: column "tags" `+not+`; after: column "tags" `+not,
		`CREATE 2 null null after: column "id" `+not,
		`CREATE 3 null null`)
}

// The same where the store is in UTF-8 and would refuse such bytes.
func TestBytesThatAreNotUTF8InAStoreThatIs(t *testing.T) {
	t.Parallel()
	source, history := databaseIn(t, "SQL_ASCII"), audittest.NewDatabase(t)
	source.Exec(t, "CREATE TABLE todo (id text PRIMARY KEY); CREATE TABLE pair (a text, b int, PRIMARY KEY (a, b))")
	a := audittest.Open(t, source, audit.Config{StoreURL: history.URL()})
	if err := a.Client.Start(context.WithoutCancel(t.Context())); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { a.Stop(t) })
	a.Exec(t, `
		INSERT INTO todo VALUES ('é'), (convert_from('\xff', 'SQL_ASCII'));
		INSERT INTO pair VALUES (convert_from('\xff', 'SQL_ASCII'), 1);
		UPDATE pair SET a = 'a'`)
	a.Sync(t)
	got := audittest.Value[[]string](t, history, `
		SELECT array_agg(concat_ws(' ', operation, primary_key, previous_key, after, defect IS NULL) ORDER BY position, sequence) FROM audit.changes`)
	want := []string{
		`CREATE é {"id": "é"} t`, `CREATE \xff {"id": "\\xff"} f`,
		`CREATE ["\\xff","1"] {"a": "\\xff", "b": 1} f`, `UPDATE ["a","1"] ["\\xff","1"] {"a": "a", "b": 1} f`,
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("history (-want +got):\n%s", diff)
	}
}
