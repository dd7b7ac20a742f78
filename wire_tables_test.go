package audit_test

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5"

	"github.com/hindsight-go/audit"
	"github.com/hindsight-go/audit/audittest"
	"github.com/hindsight-go/audit/store"
)

func TestPartitionsStandUnderTheirRootsName(t *testing.T) {
	t.Parallel()
	a := audittest.New(t, audit.Config{}, `
		CREATE TABLE todo (id int, region text, title text, PRIMARY KEY (id, region)) PARTITION BY LIST (region);
		CREATE TABLE todo_eu PARTITION OF todo FOR VALUES IN ('eu');
		CREATE TABLE todo_us PARTITION OF todo FOR VALUES IN ('us') PARTITION BY RANGE (id);
		CREATE TABLE todo_us_1 PARTITION OF todo_us FOR VALUES FROM (0) TO (100);
		CREATE SCHEMA far;
		CREATE TABLE far.other (title text, gone int, region text NOT NULL, id int NOT NULL);
		ALTER TABLE far.other DROP COLUMN gone;
		ALTER TABLE todo ATTACH PARTITION far.other DEFAULT`)
	a.Exec(t, `
		INSERT INTO todo VALUES (1, 'eu', 'a'), (2, 'us', 'b'), (3, 'xx', 'c');
		INSERT INTO todo_us_1 VALUES (4, 'us', 'd');
		UPDATE todo SET title = upper(title);
		UPDATE todo SET region = 'us' WHERE id = 1;
		DELETE FROM far.other`)
	tell(t, a, `operation, schema, "table", primary_key, before ->> 'title', after ->> 'title', defect`,
		`CREATE public todo ["1","eu"] a`, `CREATE public todo ["2","us"] b`, `CREATE public todo ["3","xx"] c`,
		`CREATE public todo ["4","us"] d`,
		`UPDATE public todo ["1","eu"] a A`, `UPDATE public todo ["2","us"] b B`, `UPDATE public todo ["4","us"] d D`, `UPDATE public todo ["3","xx"] c C`,
		`DELETE public todo ["1","eu"] A`, `CREATE public todo ["1","us"] A`,
		`DELETE public todo ["3","xx"] C`)
}

func TestPartitionMadeLaterIsCapturedFromItsFirstRow(t *testing.T) {
	t.Parallel()
	a := audittest.New(t, byHand, `
		CREATE TABLE todo (id int PRIMARY KEY, title text) PARTITION BY RANGE (id);
		CREATE TABLE todo_1 PARTITION OF todo FOR VALUES FROM (0) TO (10)`)
	a.Exec(t, `
		CREATE TABLE todo_2 PARTITION OF todo FOR VALUES FROM (10) TO (20);
		INSERT INTO todo VALUES (10, 'a'), (11, 'b')`)
	a.Exec(t, `
		UPDATE todo SET title = 'A' WHERE id = 10;
		DELETE FROM todo WHERE id = 11`)
	a.Sync(t)
	refresh(t, a)
	a.Exec(t, "UPDATE todo SET title = 'AA'")
	tell(t, a, `operation, "table", primary_key, before, after, defect`,
		`CREATE todo 10 {} {"id": 10, "title": "a"}`, `CREATE todo 11 {} {"id": 11, "title": "b"}`,
		`UPDATE todo 10 {"id": 10, "title": "a"} {"id": 10, "title": "A"}`, `DELETE todo 11 {"id": 11, "title": "b"} {}`,
		`UPDATE todo 10 {"id": 10, "title": "A"} {"id": 10, "title": "AA"}`)
	if got := audittest.Value[string](t, a.Database, "SELECT relreplident::text FROM pg_class WHERE relname = 'todo_2'"); got != "f" {
		t.Errorf("the replica identity of the new partition is %s", got)
	}
}

// A table without a key is where publishing can break the application: a new
// partition of a published root has no replica identity.
func TestPartitionedTableWithoutKeyNeverFailsAnUpdate(t *testing.T) {
	t.Parallel()
	traced(t, func(t *testing.T, cfg audit.Config, traced bool) {
		t.Helper()
		a := audittest.New(t, cfg, `
			CREATE TABLE log (id int, what text) PARTITION BY RANGE (id);
			CREATE TABLE log_1 PARTITION OF log FOR VALUES FROM (0) TO (10)`)
		acts(t, a.Database, "INSERT INTO log VALUES (1, 'a')", "CREATE TABLE log_2 PARTITION OF log FOR VALUES FROM (10) TO (20)",
			"INSERT INTO log VALUES (10, 'b')", "UPDATE log SET what = what || '!'")
		refresh(t, a)
		acts(t, a.Database, "UPDATE log SET what = upper(what)", "UPDATE log SET id = 12 WHERE id = 1", "DELETE FROM log WHERE id = 10")
		want := []string{
			`CREATE log {} {"id": 1, "what": "a"}`,
			`CREATE log {} {"id": 10, "what": "b"}`,
			`UPDATE log {"id": 1, "what": "a"} {"id": 1, "what": "a!"}`,
			`UPDATE log {"id": 10, "what": "b"} {"id": 10, "what": "b!"}`,
			`UPDATE log {"id": 1, "what": "a!"} {"id": 1, "what": "A!"}`,
			`UPDATE log {"id": 10, "what": "b!"} {"id": 10, "what": "B!"}`,
			`DELETE log {"id": 1, "what": "A!"} {}`, `CREATE log {} {"id": 12, "what": "A!"}`,
			`DELETE log {"id": 10, "what": "B!"} {}`,
		}
		if !traced { // what was written before the partition joined is not there, and coverage says so
			want = slices.Delete(slices.Delete(want, 3, 4), 1, 2)
		}
		tell(t, a, `operation, "table", primary_key, before, after, defect`, want...)
		if n := spans(t, a, "log"); traced && n != 1 || !traced && n != 2 {
			t.Errorf("log is covered in %d spans", n)
		}
	})
}

// TRUNCATE in history says that the whole table is empty. It may not say so when
// only a partition is.
func TestTruncateOfPartitions(t *testing.T) {
	t.Parallel()
	for name, columns := range map[string]string{"with key": "id int PRIMARY KEY", "without key": "id int"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			a := audittest.New(t, audit.Config{}, `
				CREATE TABLE todo (`+columns+`) PARTITION BY RANGE (id);
				CREATE TABLE todo_1 PARTITION OF todo FOR VALUES FROM (0) TO (10);
				CREATE TABLE todo_2 PARTITION OF todo FOR VALUES FROM (10) TO (20);
				INSERT INTO todo VALUES (1), (11)`)
			a.Exec(t, "TRUNCATE todo")
			a.Exec(t, "INSERT INTO todo VALUES (2), (12)")
			lines := told(t, a, `operation, "table", after, defect`)
			truncates := 0
			for _, line := range lines {
				if line == "TRUNCATE todo {}" {
					truncates++
				}
			}
			if truncates == 0 || len(lines) != truncates+2 {
				t.Errorf("history of a whole TRUNCATE: %q", lines)
			}
			a.Exec(t, "TRUNCATE todo_1")
			a.Exec(t, "INSERT INTO todo VALUES (3)")
			lines = told(t, a, `operation, "table", after, defect`)[len(lines):]
			for _, line := range lines {
				if line == "TRUNCATE todo {}" {
					t.Errorf("history says that the whole table was truncated: %q", lines)
				}
			}
			if !slices.Contains(lines, `TRUNCATE todo {} only the partition "public"."todo_1" was truncated`) {
				t.Errorf("history of a TRUNCATE of one partition: %q", lines)
			}
			a.Exec(t, "TRUNCATE todo")
		})
	}
}

func TestTableWithoutKey(t *testing.T) {
	t.Parallel()
	a := audittest.New(t, audit.Config{}, "CREATE TABLE log (id int, what text)", "INSERT INTO log VALUES (0, 'old')")
	a.Exec(t, `
		INSERT INTO log VALUES (1, 'a'), (1, 'a');
		UPDATE log SET what = 'b' WHERE id = 1;
		DELETE FROM log;
		CREATE TABLE empty ()`)
	refresh(t, a)
	a.Exec(t, "INSERT INTO empty DEFAULT VALUES; DELETE FROM empty")
	tell(t, a, `operation, coalesce(primary_key, '-'), coalesce(previous_key, '-'), before, after, defect`,
		`CREATE - - {} {"id": 1, "what": "a"}`, `CREATE - - {} {"id": 1, "what": "a"}`,
		`UPDATE - - {"id": 1, "what": "a"} {"id": 1, "what": "b"}`, `UPDATE - - {"id": 1, "what": "a"} {"id": 1, "what": "b"}`,
		`DELETE - - {"id": 0, "what": "old"} {}`, `DELETE - - {"id": 1, "what": "b"} {}`, `DELETE - - {"id": 1, "what": "b"} {}`,
		`CREATE - - {} {}`, `DELETE - - {} {}`)
}

func TestKeyUpdateGivesThePreviousKey(t *testing.T) {
	t.Parallel()
	a := audittest.New(t, audit.Config{}, `
		CREATE TABLE todo (id int PRIMARY KEY DEFERRABLE INITIALLY DEFERRED, title text);
		CREATE TABLE pair (b text, a int, note text, PRIMARY KEY (a, b))`)
	a.Exec(t, `
		INSERT INTO todo VALUES (1, 'a'), (2, 'b');
		UPDATE todo SET id = 3 - id;
		UPDATE todo SET id = id;
		INSERT INTO pair VALUES ('x', 1, 'n');
		UPDATE pair SET b = 'y';
		UPDATE pair SET note = 'm';
		DELETE FROM pair`)
	tell(t, a, "operation, primary_key, previous_key, before ->> 'title'",
		"CREATE 1", "CREATE 2", "UPDATE 2 1 a", "UPDATE 1 2 b", "UPDATE 2 a", "UPDATE 1 b",
		`CREATE ["1","x"]`, `UPDATE ["1","y"] ["1","x"]`, `UPDATE ["1","y"]`, `DELETE ["1","y"]`)
}

// Keys hold anything; store.KeyText says how they are stored.
func TestKeysOfEveryKind(t *testing.T) {
	t.Parallel()
	texts := []string{"", " ", `a"b\c`, "tab\tline\nend", "😀 ünïcode", `["1","x"]`, "NULL", "{}", strings.Repeat("k", 2000), strings.Repeat("k", 2001), noise(2600)}
	a := audittest.New(t, audit.Config{}, `
		CREATE TABLE one (k text PRIMARY KEY);
		CREATE TABLE two (n numeric, k text, PRIMARY KEY (k, n));
		CREATE TABLE stamp (at timestamptz PRIMARY KEY, flag bool, ok bool)`)
	want := map[string]int{}
	conn := a.Connect(t)
	for _, k := range texts {
		if _, err := conn.Exec(t.Context(), "INSERT INTO one VALUES ($1)", k); err != nil {
			t.Fatal(err)
		}
		want["one "+store.KeyText(k)]++
		if len(k) < 2500 {
			if _, err := conn.Exec(t.Context(), "INSERT INTO two VALUES (1.10, $1)", k); err != nil {
				t.Fatal(err)
			}
			want["two "+store.KeyText(k, "1.10")]++
		}
	}
	a.Exec(t, "SET timezone = 'Asia/Kathmandu'; INSERT INTO stamp VALUES ('2024-02-29 23:59:59.123456+00')")
	want["stamp 2024-02-29 23:59:59.123456+00"]++
	got := map[string]int{}
	for _, line := range told(t, a, `"table", primary_key`) {
		got[line]++
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("keys (-want +got):\n%s", diff)
	}
}

// oddNames are names that only quoting makes possible.
var oddNames = []string{
	"Todo", "TODO", "select", "with space", " leading", "dot.ted", `quo"te`, `back\slash`, "it's", "semi;colon--", "$1", "{{schema}}",
	"ünïcode", "列", "😀", "*", "%s", "a,b", "(x)", "[1]", "tab\tname", "new\nline", strings.Repeat("n", 63), strings.Repeat("é", 31),
	"id", "image", "changes", "-- x", "/* x", "null", "1",
}

func TestOddNames(t *testing.T) {
	t.Parallel()
	ident := func(parts ...string) string { return pgx.Identifier(parts).Sanitize() }
	t.Run("tables and columns", func(t *testing.T) {
		t.Parallel()
		a := audittest.New(t, audit.Config{}, func() string {
			var b strings.Builder
			for _, name := range oddNames {
				fmt.Fprintf(&b, "CREATE TABLE %s (%s int PRIMARY KEY, \"value of\" text);", ident(name), ident(name))
			}
			return b.String()
		}())
		var want []string
		for i, name := range oddNames {
			a.Exec(t, fmt.Sprintf("INSERT INTO %[1]s VALUES (%[2]d, 'a'); UPDATE %[1]s SET \"value of\" = 'b'; DELETE FROM %[1]s; INSERT INTO %[1]s VALUES (0)", ident(name), i+1))
			for _, operation := range []string{"CREATE", "UPDATE", "DELETE"} {
				want = append(want, fmt.Sprintf("%s %s %d", operation, name, i+1))
			}
			want = append(want, fmt.Sprintf("CREATE %s 0", name))
		}
		tell(t, a, `operation, "table", primary_key`, want...)
		for i, name := range oddNames {
			image := audittest.Value[string](t, a.Database, `SELECT before FROM audit.changes WHERE "table" = $1 AND operation = 'UPDATE'`, name)
			var got map[string]any
			if err := json.Unmarshal([]byte(image), &got); err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(map[string]any{name: float64(i + 1), "value of": "a"}, got); diff != "" {
				t.Errorf("image in %q (-want +got):\n%s", name, diff)
			}
		}
		tables := audittest.Value[int](t, a.Database, `SELECT count(DISTINCT "table") FROM audit.coverage`)
		if tables != len(oddNames) {
			t.Errorf("%d tables are covered, want %d", tables, len(oddNames))
		}
	})
	t.Run("schemas and partitions", func(t *testing.T) {
		t.Parallel()
		var b strings.Builder
		for _, name := range oddNames {
			fmt.Fprintf(&b, `CREATE SCHEMA %[1]s;
				CREATE TABLE %[1]s.%[1]s (id int) PARTITION BY LIST (id);
				CREATE TABLE %[1]s.%[2]s PARTITION OF %[1]s.%[1]s DEFAULT;`, ident(name), ident("p"+name[:len(name)-len(name)/3]))
		}
		setup := strings.ToValidUTF8(b.String(), "")
		a := audittest.New(t, audit.Config{}, setup)
		var want []string
		for i, name := range oddNames {
			a.Exec(t, fmt.Sprintf("INSERT INTO %[1]s.%[1]s VALUES (%[2]d)", ident(name), i))
			want = append(want, fmt.Sprintf(`%s %s {"id": %d}`, name, name, i))
		}
		tell(t, a, `schema, "table", after`, want...)
	})
}

func TestGeneratedAndIdentityColumns(t *testing.T) {
	t.Parallel()
	a := audittest.New(t, audit.Config{}, `
		CREATE TABLE todo (
			id int PRIMARY KEY GENERATED ALWAYS AS IDENTITY,
			title text,
			size int GENERATED ALWAYS AS (length(title)) STORED,
			n serial)`)
	a.Exec(t, `
		INSERT INTO todo (title) VALUES ('abc');
		UPDATE todo SET title = 'abcdef';
		DELETE FROM todo WHERE size = 6;
		INSERT INTO todo (title) VALUES ('x')`)
	// Stored generated columns are not sent before PostgreSQL 18: unknown, not NULL.
	tell(t, a, `operation, primary_key, (before || after) - 'size', defect`,
		`CREATE 1 {"n": 1, "id": 1, "title": "abc"}`, `UPDATE 1 {"n": 1, "id": 1, "title": "abcdef"}`,
		`DELETE 1 {"n": 1, "id": 1, "title": "abcdef"}`, `CREATE 2 {"n": 2, "id": 2, "title": "x"}`)
	sizes := []string{"", "", "", ""}
	if a.Server().Version() >= 180000 {
		sizes = []string{"3", "3 6", "6", "1"}
	}
	tell(t, a, "before -> 'size', after -> 'size'", sizes...)
}

func TestRowsOfManyColumns(t *testing.T) {
	t.Parallel()
	var columns, values []string
	for i := range 1599 {
		columns = append(columns, fmt.Sprintf("c%d int", i))
		values = append(values, fmt.Sprint(i))
	}
	a := audittest.New(t, audit.Config{}, "CREATE TABLE wide (id int PRIMARY KEY, "+strings.Join(columns, ", ")+")")
	a.Exec(t, "INSERT INTO wide VALUES (1, "+strings.Join(values, ", ")+"); UPDATE wide SET c7 = -7")
	tell(t, a, `operation, before -> 'c1598', after -> 'c1598', after -> 'c7', (SELECT count(*) FROM jsonb_object_keys(after))`,
		"CREATE 1598 7 1600", "UPDATE 1598 1598 -7 1600")
}

// The root of a partitioned table keeps its replica identity, by which the server
// calls the old rows of its partitions keys.
func TestRowsOfPartitionsFromBeforeTrackingAreWhole(t *testing.T) {
	t.Parallel()
	a := audittest.New(t, audit.Config{}, `
		CREATE TABLE todo (id int PRIMARY KEY, title text, note text) PARTITION BY RANGE (id);
		CREATE TABLE todo_1 PARTITION OF todo FOR VALUES FROM (0) TO (10);
		INSERT INTO todo VALUES (1, 'a', 'x'), (2, 'b', NULL), (3, 'c', 'z')`)
	begin := here(t, a)
	a.Exec(t, "UPDATE todo SET title = upper(title) WHERE id = 1; DELETE FROM todo WHERE id = 2; UPDATE todo SET id = 4 WHERE id = 3")
	tell(t, a, `operation, primary_key, before, defect`,
		`UPDATE 1 {"id": 1, "note": "x", "title": "a"}`, `DELETE 2 {"id": 2, "note": null, "title": "b"}`, `UPDATE 4 {"id": 3, "note": "z", "title": "c"}`)
	n, err := begin.Table("todo").Where("title = lower(title)").Count(t.Context())
	if n != 3 || err != nil {
		t.Errorf("%d rows as they were, %v", n, err)
	}
}
