package audit_test

import (
	"errors"
	"fmt"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5"

	"github.com/hindsight-go/audit"
	"github.com/hindsight-go/audit/audittest"
)

// textRows returns the rows of a table as it was, each as one string, sorted.
func textRows(t *testing.T, table audit.PastTable) []string {
	t.Helper()
	rows := []string{}
	for row, err := range table.All(t.Context()) {
		if err != nil {
			t.Fatalf("read the past: %v", err)
		}
		rows = append(rows, rowText(row.RawValues()))
	}
	slices.Sort(rows)
	return rows
}

func rowText(values [][]byte) string {
	text := ""
	for _, v := range values {
		if v == nil {
			text += "~|"
		} else {
			text += string(v) + "|"
		}
	}
	return text
}

// allWays returns a table's rows as it was, by every way to ask for them.
func allWays(t *testing.T, p audit.Point, table string) map[string][]string {
	t.Helper()
	view := []string{}
	err := p.View(t.Context(), func(tx pgx.Tx) error {
		rows, err := tx.Query(t.Context(), "SELECT * FROM "+table, pgx.QueryResultFormats{pgx.TextFormatCode})
		if err != nil {
			return err
		}
		for rows.Next() {
			view = append(view, rowText(rows.RawValues()))
		}
		return rows.Err()
	})
	if err != nil {
		t.Errorf("view: %v", err)
	}
	slices.Sort(view)
	return map[string][]string{
		"scan":  textRows(t, audit.Searching(p, true).Table(table)),
		"probe": textRows(t, audit.Searching(p, false).Table(table)),
		"view":  view,
	}
}

func wantAllWays(t *testing.T, p audit.Point, table string, want ...string) {
	t.Helper()
	want = append([]string{}, want...)
	slices.Sort(want)
	for way, got := range allWays(t, p, table) {
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", way, diff)
		}
	}
}

// Under a deferrable key two rows may have one key in the middle of a statement.
func TestKeysThatAreExchangedUnderADeferrableConstraint(t *testing.T) {
	t.Parallel()
	for name, exchange := range map[string]string{
		"shift":             "UPDATE item SET id = id + 1",
		"shift back":        "UPDATE item SET id = id - 1",
		"reverse":           "UPDATE item SET id = 4 - id",
		"insert and delete": "SET CONSTRAINTS ALL DEFERRED; INSERT INTO item VALUES (2, 'new'); DELETE FROM item WHERE name = 'b'",
		"one by one":        "SET CONSTRAINTS ALL DEFERRED; UPDATE item SET id = 2 WHERE name = 'a'; UPDATE item SET name = 'a2' WHERE name = 'a'; UPDATE item SET id = 1 WHERE name = 'b'",
		"there and back":    "SET CONSTRAINTS ALL DEFERRED; UPDATE item SET id = 2 WHERE name = 'a'; UPDATE item SET id = 1 WHERE name = 'a'",
		"delete the comer":  "SET CONSTRAINTS ALL DEFERRED; UPDATE item SET id = 2 WHERE name = 'a'; DELETE FROM item WHERE name = 'a'",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			a := audittest.New(t, audit.Config{}, `CREATE TABLE item (id int PRIMARY KEY DEFERRABLE, name text);
				INSERT INTO item VALUES (1, 'a'), (2, 'b'), (3, 'c')`)
			before := here(t, a)
			a.Exec(t, exchange)
			after := here(t, a)
			now := audittest.Value[[]string](t, a.Database, "SELECT array_agg(id || '|' || name || '|' ORDER BY 1) FROM item")
			// Everything is in history now, so that both directions are asked.
			a.Exec(t, "UPDATE item SET name = name || '!'")
			end := audittest.Value[[]string](t, a.Database, "SELECT array_agg(id || '|' || name || '|' ORDER BY 1) FROM item")
			wantAllWays(t, before, "item", "1|a|", "2|b|", "3|c|")
			wantAllWays(t, after, "item", now...)
			wantAllWays(t, a.Client.Now(), "item", end...)
			for id, name := range []string{"a", "b", "c"} {
				row, err := before.Row(t.Context(), "item", id+1)
				if err != nil || row["name"] != name {
					t.Errorf("row %d: %v, %v", id+1, row, err)
				}
			}
			for _, want := range now {
				var id int
				var name string
				if _, err := fmt.Sscanf(want, "%d|%1s", &id, &name); err != nil {
					t.Fatal(err)
				}
				row, err := after.Row(t.Context(), "item", id)
				if err != nil || row["name"].(string)[:1] != name {
					t.Errorf("row %d after: %v, %v, want %s", id, row, err, want)
				}
			}
		})
	}
}

// A key that is equal to the database, but not by its text, is the row's.
func TestARowIsFoundByAnyTextOfItsKey(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		typ, key string
		ask      any
	}{
		"numeric":                {"numeric", "1.00", "1"},
		"numeric of more digits": {"numeric", "1", "1.000"},
		"number for numeric":     {"numeric", "1.0", 1},
		"char":                   {"char(5)", "ab", "ab"},
		"char, padded":           {"char(5)", "ab", "ab   "},
		"name":                   {"name", "ab", "ab"},
		"varchar":                {"varchar(5)", "ab", "ab"},
		"interval":               {"interval", "1 day", "24:00:00"},
		"timestamptz":            {"timestamptz", "2024-02-03 04:05:06+00", "2024-02-03 05:05:06+01"},
		"float":                  {"float8", "0", "-0"},
		"float of digits":        {"float4", "0.1", 0.1},
		"bytea":                  {"bytea", `\xab01`, []byte{0xab, 1}},
		"inet":                   {"inet", "10.0.0.1", "10.0.0.1/32"},
		"uuid":                   {"uuid", "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11", "A0EEBC99-9C0B-4EF8-BB6D-6BB9BD380A11"},
		"boolean":                {"boolean", "true", true},
		"boolean text":           {"boolean", "true", "yes"},
		"enum":                   {"mood", "glad", "glad"},
		"domain":                 {"positive", "7", "07"},
		"domain over numeric":    {"amount", "7.0", 7},
		"jsonb":                  {"jsonb", `{"b":1,"a":2}`, `{"a": 2, "b": 1.0}`},
		"time":                   {"timetz", "12:00:00+00", "12:00:00+00"},
		"collation":              {"text COLLATE ignores_case", "Ab", "aB"},
		"array":                  {"int[]", "{1,2}", "{ 1, 2 }"},
		"citext-like range":      {"int4range", "[1,3)", "[1,2]"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			a := audittest.New(t, audit.Config{}, `CREATE TYPE mood AS ENUM ('glad'); CREATE DOMAIN positive AS int CHECK (VALUE > 0); CREATE DOMAIN amount AS numeric NOT NULL;
				CREATE COLLATION ignores_case (provider = icu, locale = 'und-u-ks-level2', deterministic = false);
				CREATE TABLE item (id `+test.typ+` PRIMARY KEY, state text NOT NULL)`)
			a.Exec(t, "INSERT INTO item VALUES ('"+test.key+"', 'old')")
			old := here(t, a)
			a.Exec(t, "UPDATE item SET state = 'new'")
			before := here(t, a)
			check := func(p audit.Point, want string) {
				t.Helper()
				row, err := p.Row(t.Context(), "item", test.ask)
				if err != nil || row["state"] != want {
					t.Errorf("%v, %v, want state %s", row, err, want)
				}
			}
			check(old, "old")
			check(before, "new")
			check(a.Client.Now(), "new")
			a.Exec(t, "DELETE FROM item")
			after := here(t, a)
			check(old, "old")
			check(before, "new")
			if row, err := after.Row(t.Context(), "item", test.ask); !errors.Is(err, audit.ErrNoRow) {
				t.Errorf("deleted: %v, %v", row, err)
			}
			a.Exec(t, "INSERT INTO item VALUES ('"+test.key+"', 'again')")
			check(old, "old")
			if row, err := after.Row(t.Context(), "item", test.ask); !errors.Is(err, audit.ErrNoRow) {
				t.Errorf("deleted: %v, %v", row, err)
			}
			check(a.Client.Now(), "again")
			wantState(t, old, "old")
			wantState(t, before, "new")
		})
	}
}

func wantState(t *testing.T, p audit.Point, want string) {
	t.Helper()
	for way, rows := range allWays(t, p, "item") {
		if len(rows) != 1 || rows[0][len(rows[0])-len(want)-1:] != want+"|" {
			t.Errorf("%s: %q, want one row of state %s", way, rows, want)
		}
	}
}

// What ALTER TYPE makes of a row that nobody touched is not what it was.
func TestARewrittenTableIsNotThePast(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct{ typ, value, alter string }{
		"timestamptz loses digits":   {"timestamptz", "2024-02-03 04:05:06.789+00", "timestamptz(0)"},
		"timestamp loses digits":     {"timestamp", "2024-02-03 04:05:06.789", "timestamp(0)"},
		"time loses digits":          {"time", "04:05:06.789", "time(0)"},
		"interval loses digits":      {"interval", "04:05:06.789", "interval(0)"},
		"interval loses fields":      {"interval", "1 day 04:05:06", "interval day to hour"},
		"numeric loses digits":       {"numeric", "1.25", "numeric(5,1)"},
		"numeric(n) loses digits":    {"numeric(6,3)", "1.250", "numeric(5,1)"},
		"char is padded":             {"char(3)", "ab", "char(6)"},
		"bit is padded":              {"bit(3)", "101", "bit(5) USING v::bit(5)"},
		"text is cut":                {"text", "abc", "varchar(2) USING left(v, 2)"},
		"varchar is cut":             {"varchar(9)", "abc", "varchar(2) USING left(v, 2)"},
		"bigint to int":              {"bigint", "5", "int"},
		"int to bigint":              {"int", "5", "bigint"},
		"text to int":                {"text", "05", "int USING v::int"},
		"json to jsonb":              {"json", `{"b": 1, "a": 1}`, "jsonb"},
		"text to json":               {"text", `{"b": 1, "a": 1}`, "json USING v::json"},
		"float8 to float4":           {"float8", "0.123456789012", "float4"},
		"timestamp to timestamptz":   {"timestamp", "2024-02-03 04:05:06", "timestamptz"},
		"array of numeric":           {"numeric[]", "{1.25}", "numeric(5,1)[]"},
		"array of timestamps":        {"timestamptz[]", `{"2024-02-03 04:05:06.789+00"}`, "timestamptz(0)[]"},
		"array of char":              {"char(3)[]", `{ab}`, "char(5)[]"},
		"varchar array":              {"varchar(3)[]", `{ab}`, "varchar(5)[]"},
		"domain over a timestamp":    {"timestamptz", "2024-02-03 04:05:06.789+00", "stamp"},
		"domain with another length": {"stamp6", "2024-02-03 04:05:06.789+00", "stamp"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			// What ALTER TABLE rewrites is not in the stream.
			a := unchecked(t, audit.Config{}, "CREATE DOMAIN stamp AS timestamptz(0); CREATE DOMAIN stamp6 AS timestamptz(6); CREATE TABLE item (id int PRIMARY KEY, v "+test.typ+", n int NOT NULL DEFAULT 0)",
				"INSERT INTO item VALUES (1, '"+test.value+"'), (2, '"+test.value+"')")
			a.Exec(t, "INSERT INTO item VALUES (3, '"+test.value+"'), (4, '"+test.value+"')")
			then := here(t, a)
			want := audittest.Value[string](t, a.Database, "SELECT v::text FROM item WHERE id = 1")
			if test.typ == "char(3)" {
				want += " "
			}
			a.Exec(t, "ALTER TABLE item ALTER COLUMN v TYPE "+test.alter)
			ask := func() {
				for way, table := range map[string]audit.PastTable{
					"scan": audit.Searching(then, true).Table("item"), "probe": audit.Searching(then, false).Table("item"), "sql": then.Table("item").Where("true"),
				} {
					n := 0
					for row, err := range table.All(t.Context()) {
						if errors.Is(err, audit.ErrIncomplete) {
							return
						}
						if err != nil {
							t.Fatalf("%s: %v", way, err)
						}
						if got := string(row.RawValues()[1]); got != want {
							t.Errorf("%s: row %s has %q, want %q", way, row.RawValues()[0], got, want)
						}
						n++
					}
					if n != 4 {
						t.Errorf("%s: %d rows, want 4", way, n)
					}
				}
			}
			ask()
			a.Exec(t, "UPDATE item SET n = 1 WHERE id IN (2, 4)")
			here(t, a)
			ask()
			for id := 1; id <= 4; id++ {
				p := then.Columns("v")
				var got string
				for row, err := range p.Table("item").Where("id = $1", id).All(t.Context()) {
					if err == nil {
						got = string(row.RawValues()[0])
					} else if errors.Is(err, audit.ErrIncomplete) {
						got = want
					} else {
						t.Error(err)
					}
				}
				if got != want {
					t.Errorf("row %d: %q, want %q", id, got, want)
				}
			}
		})
	}
}

func TestALabelOfAnEnumIsRenamed(t *testing.T) {
	t.Parallel()
	a := unchecked(t, audit.Config{}, "CREATE TYPE mood AS ENUM ('glad', 'sad'); CREATE TABLE item (id mood PRIMARY KEY, v mood, n int)", "INSERT INTO item VALUES ('glad', 'glad', 1)")
	a.Exec(t, "INSERT INTO item VALUES ('sad', 'glad', 1)")
	then := here(t, a)
	a.Exec(t, "UPDATE item SET n = 2")
	a.Exec(t, "ALTER TYPE mood RENAME VALUE 'glad' TO 'happy'")
	for _, table := range []audit.PastTable{then.Table("item"), then.Table("item").Where("true")} {
		n := 0
		for row, err := range table.All(t.Context()) {
			if err != nil {
				t.Logf("refused: %v", err)
				n = 2
				break
			}
			n++
			if string(row.RawValues()[2]) != "1" {
				t.Errorf("a row of now: %s", rowText(row.RawValues()))
			}
		}
		if n != 2 {
			t.Errorf("%d rows, want 2", n)
		}
	}
}

// The null of JSON is a value, and NULL is none.
func TestTheNullOfJSON(t *testing.T) {
	t.Parallel()
	a := audittest.New(t, audit.Config{}, "CREATE TABLE item (id int PRIMARY KEY, j json, b jsonb)", "INSERT INTO item VALUES (1, 'null', 'null'), (2, NULL, NULL)")
	then := here(t, a)
	a.Exec(t, "UPDATE item SET j = b, b = j")
	changed := here(t, a)
	a.Exec(t, "UPDATE item SET j = '1', b = '1'")
	for _, p := range []audit.Point{then, changed} {
		wantAllWays(t, p, "item", "1|null|null|", "2|~|~|")
		if row, err := p.Table("item").Where("id = 1 AND j IS NOT NULL AND b IS NOT NULL").Count(t.Context()); err != nil || row != 1 {
			t.Errorf("%d, %v", row, err)
		}
	}
}

// The server takes 1 for 1.00; history has the one text.
func TestHistoryAndBlameFindARowByAnyTextOfItsKey(t *testing.T) {
	t.Parallel()
	a := audittest.New(t, audit.Config{}, "CREATE TABLE item (k numeric PRIMARY KEY, v text)", "INSERT INTO item VALUES (1.00, 'old'), (2.0, 'quiet')")
	begin := here(t, a)
	a.Exec(t, "UPDATE item SET v = 'new' WHERE k = 1")
	blames, err := begin.Blame(t.Context(), "item", 1)
	if err != nil || len(blames) != 2 || string(blames[1].Value) != `"old"` || blames[1].Change != nil {
		t.Errorf("blamed %+v, %v", blames, err)
	}
	for key, want := range map[int]int{1: 2, 2: 1, 3: 0} {
		versions, err := a.Client.History("item", key).List(t.Context())
		if err != nil || len(versions) != want {
			t.Errorf("row %d has %d versions, want %d: %v", key, len(versions), want, err)
		}
	}
}
