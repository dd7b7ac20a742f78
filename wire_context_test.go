package audit_test

import (
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5"

	"github.com/hindsight-go/audit"
	"github.com/hindsight-go/audit/audittest"
)

func TestSeveralContextsInOneTransactionReachTheirRows(t *testing.T) {
	t.Parallel()
	a := audittest.New(t, audit.Config{}, "CREATE TABLE todo (id int PRIMARY KEY)", "CREATE TABLE note (id int PRIMARY KEY)")
	a.Exec(t, `
		BEGIN;
		INSERT INTO todo VALUES (1);
		INSERT INTO note VALUES (1);
		SELECT pg_logical_emit_message(true, 'audit', '{"n": 1, "who": "it''s \\ \"quoted\""}');
		INSERT INTO todo VALUES (2);
		SELECT pg_logical_emit_message(true, 'audit', '{"n": 2}');
		SELECT pg_logical_emit_message(true, 'audit', '{"n": 3}');
		UPDATE todo SET id = id + 10;
		SELECT pg_logical_emit_message(true, 'audit', '{}');
		DELETE FROM note;
		COMMIT`)
	a.Exec(t, "INSERT INTO todo VALUES (3)")
	tell(t, a, `sequence, operation, "table", context`,
		`1 CREATE todo {"n": 1, "who": "it's \\ \"quoted\""}`,
		`2 CREATE note {"n": 1, "who": "it's \\ \"quoted\""}`,
		`3 CREATE todo {"n": 1, "who": "it's \\ \"quoted\""}`,
		`4 UPDATE todo {"n": 3}`, `5 UPDATE todo {"n": 3}`,
		`6 DELETE note {}`,
		`1 CREATE todo`)
}

// The rows before the message are on their way to the store when it comes.
func TestContextAfterManyRowsReachesThemAll(t *testing.T) {
	t.Parallel()
	a := audittest.New(t, audit.Config{}, "CREATE TABLE todo (id int PRIMARY KEY, title text)")
	a.Exec(t, `
		BEGIN;
		INSERT INTO todo SELECT n, repeat('x', 100) FROM generate_series(1, 20000) n;
		SELECT pg_logical_emit_message(true, 'audit', '{"n": 1}');
		INSERT INTO todo VALUES (0, '');
		COMMIT;
		INSERT INTO todo VALUES (-1, '')`)
	a.Sync(t)
	got := audittest.Value[string](t, a.Database, `SELECT count(*) FILTER (WHERE context = '{"n": 1}') || ' ' || count(*) FILTER (WHERE context IS NULL) FROM audit.changes`)
	if got != "20001 1" {
		t.Errorf("with and without the context: %s", got)
	}
}

func TestMessagesThatAreNotContextsAreIgnored(t *testing.T) {
	t.Parallel()
	a := audittest.New(t, audit.Config{}, "CREATE TABLE todo (id int PRIMARY KEY)")
	a.Exec(t, `
		BEGIN;
		SELECT pg_logical_emit_message(false, 'audit', '{"n": "not transactional"}');
		SELECT pg_logical_emit_message(false, '_bemi', '{"n": "not transactional"}');
		SELECT pg_logical_emit_message(true, '_bemi_heartbeat', '{"n": "heartbeat"}');
		SELECT pg_logical_emit_message(true, 'auditor', '{"n": "foreign"}');
		SELECT pg_logical_emit_message(true, 'AUDIT', '{"n": "foreign"}');
		SELECT pg_logical_emit_message(true, 'audi', '{"n": "foreign"}');
		SELECT pg_logical_emit_message(true, '', '{"n": "foreign"}');
		SELECT pg_logical_emit_message(true, 'audit_of_others', 'not even JSON');
		SELECT pg_logical_emit_message(true, repeat('p', 100000), '\xff00'::bytea);
		INSERT INTO todo VALUES (1);
		COMMIT;
		SELECT pg_logical_emit_message(false, 'audit', '{"n": "between"}');
		BEGIN;
		SELECT pg_logical_emit_message(false, 'audit', '{"n": "rolled back"}');
		ROLLBACK;
		INSERT INTO todo VALUES (2)`)
	tell(t, a, "primary_key, context, defect", "1", "2")
}

func TestContextPrefixIsConfigurable(t *testing.T) {
	t.Parallel()
	a := audittest.New(t, audit.Config{ContextPrefix: "shop"}, "CREATE TABLE todo (id int PRIMARY KEY)")
	a.Exec(t, `
		SELECT pg_logical_emit_message(true, 'shop', '{"n": 1}');
		SELECT pg_logical_emit_message(true, 'office', '{"n": 2}');
		INSERT INTO todo VALUES (1)`)
	// What audit.Stamp writes is understood as well.
	a.Exec(t, `
		SELECT pg_logical_emit_message(true, 'audit', '{"n": 3}');
		INSERT INTO todo VALUES (2)`)
	tell(t, a, "primary_key, context", `1 {"n": 1}`, `2 {"n": 3}`)
}

// Bemi's clients emit a message just before each row or statement.
func TestBemiMessagesPerRow(t *testing.T) {
	t.Parallel()
	a := audittest.New(t, audit.Config{}, "CREATE TABLE todo (id int PRIMARY KEY)")
	a.Exec(t, `
		BEGIN;
		SELECT pg_logical_emit_message(true, '_bemi', '{"user_id": 1, "SQL": "INSERT ... ''%s''"}');
		INSERT INTO todo VALUES (1);
		SELECT pg_logical_emit_message(true, '_bemi', '{"user_id": 2}');
		INSERT INTO todo VALUES (2), (3);
		SELECT pg_logical_emit_message(true, '_bemi', '[{"user_id": 3}]');
		INSERT INTO todo VALUES (4);
		SELECT pg_logical_emit_message(true, '_bemi', '{}');
		INSERT INTO todo VALUES (5);
		SELECT pg_logical_emit_message(true, '_bemi', '{"endpoint": "%2Ftodo%3Fq%3D100%25", "SQL": "... LIKE ''100%%'' AND n = %(n)s"}');
		INSERT INTO todo VALUES (6);
		SELECT pg_logical_emit_message(true, '_bemi_heartbeat', '{"user_id": "nobody"}');
		INSERT INTO todo VALUES (7);
		COMMIT`)
	const quoted = `{"SQL": "... LIKE '100%%' AND n = %(n)s", "endpoint": "%2Ftodo%3Fq%3D100%25"}`
	tell(t, a, "primary_key, context",
		`1 {"SQL": "INSERT ... '%s'", "user_id": 1}`, `2 {"user_id": 2}`, `3 {"user_id": 2}`, `4 [{"user_id": 3}]`, `5 {}`, `6 `+quoted, `7 `+quoted)
}

// Programs that commit at the same time have their rows side by side in the WAL.
// Each message belongs to its own transaction, a savepoint that is rolled back
// takes its messages along, and what was stamped in one that is not holds on.
func TestMessagesOfInterleavedTransactionsAndSavepoints(t *testing.T) {
	t.Parallel()
	a := audittest.New(t, audit.Config{}, "CREATE TABLE todo (id int PRIMARY KEY)")
	one, two := a.Connect(t), a.Connect(t)
	for _, step := range []struct {
		conn *pgx.Conn
		sql  string
	}{
		{one, "BEGIN"},
		{two, "BEGIN"},
		{one, `SELECT pg_logical_emit_message(true, 'audit', '{"n": 1}')`},
		{two, `SELECT pg_logical_emit_message(true, '_bemi', '{"n": 2}')`},
		{one, "INSERT INTO todo VALUES (10)"},
		{two, "INSERT INTO todo VALUES (20)"},
		{one, `SAVEPOINT s; SELECT pg_logical_emit_message(true, '_bemi', '{"n": 3}'); INSERT INTO todo VALUES (11)`},
		{two, `SAVEPOINT s; SELECT pg_logical_emit_message(true, 'audit', '{"n": 4}'); INSERT INTO todo VALUES (21)`},
		{one, "ROLLBACK TO s; INSERT INTO todo VALUES (12)"},
		{two, "RELEASE s; INSERT INTO todo VALUES (22)"},
		{two, "COMMIT"},
		{one, "COMMIT"},
	} {
		if _, err := step.conn.Exec(t.Context(), step.sql); err != nil {
			t.Fatalf("%s: %v", step.sql, err)
		}
	}
	tell(t, a, "primary_key, context", `20 {"n": 2}`, `21 {"n": 4}`, `22 {"n": 4}`, `10 {"n": 1}`, `12 {"n": 1}`)
}

func TestTransactionsWithMessagesOnlyLeaveNothingBehind(t *testing.T) {
	t.Parallel()
	a := audittest.New(t, audit.Config{}, "CREATE TABLE todo (id int PRIMARY KEY)")
	for n := range 50 {
		a.Exec(t, fmt.Sprintf(`SELECT pg_logical_emit_message(true, 'audit', '{"n": %d}')`, n))
	}
	a.Exec(t, "INSERT INTO todo VALUES (1)")
	tell(t, a, "primary_key, context, defect", "1")
}

// strange are the contents of context messages that no client of ours sends,
// with what history has in their place.
var strange = map[string]struct {
	content string
	context string // what is stored; "" is nothing
	defect  bool
}{
	"nothing":                      {"", "", true},
	"not JSON":                     {"user=1", "", true},
	"half an object":               {`{"userId": 1`, "", true},
	"an object and more":           {`{"userId": 1} {}`, "", true},
	"a single quoted object":       {`{'userId': 1}`, "", true},
	"a trailing comma":             {`{"userId": 1,}`, "", true},
	"NaN":                          {`{"n": NaN}`, "", true},
	"a NUL byte":                   {"{\"n\": \"\x00\"}", "", true},
	"NUL bytes alone":              {"\x00\x00", "", true},
	"a byte order mark":            {"\ufeff{}", "", true},
	"invalid UTF-8":                {"{\"n\": \"\xff\"}", "", true},
	"a surrogate in UTF-8":         {"{\"n\": \"\xed\xa0\x80\"}", "", true},
	"the escape of NUL":            {`{"n": "\u0000"}`, "", true},
	"an escaped lone surrogate":    {`{"n": "\ud800 x"}`, "", true},
	"surrogates in wrong order":    {`{"n": "\udc00\ud800"}`, "", true},
	"a bad name":                   {`{"\u0000": 1}`, "", true},
	"a number":                     {"1", "", true},
	"a string":                     {`"userId"`, "", true},
	"null":                         {"null", "", true},
	"true":                         {"true", "", true},
	"a huge exponent":              {`{"n": 1e1000000}`, "", true},
	"a number of many digits":      {`{"n": 1` + strings.Repeat("0", 200_000) + `}`, "", true},
	"a number too fine":            {`{"n": 0.` + strings.Repeat("1", 9_000) + `e-9000}`, "", true},
	"an array of deep arrays":      {strings.Repeat("[", 20_000) + strings.Repeat("]", 20_000), "", true},
	"a deeply nested object":       {strings.Repeat(`{"a":`, 20_000) + "1" + strings.Repeat("}", 20_000), "", true},
	"1 MB in one member":           {`{"userId": 7, "big": "` + strings.Repeat("x", 1<<20) + `"}`, `{"userId": 7}`, true},
	"1 MB of an array":             {"[" + strings.TrimSuffix(strings.Repeat("1,", 1<<19), ",") + "]", "", true},
	"1 MB of numbers":              {`{"userId": "u", "n": [` + strings.TrimSuffix(strings.Repeat("1,", 1<<19), ",") + "]}", `{"userId": "u"}`, true},
	"a user too long for an index": {`{"userId": "` + noise(5000) + `", "requestId": "r"}`, `{"requestId": "r"}`, true},
	"a user that grows":            {`{"userId": [` + growing(130) + `], "requestId": "r"}`, "", true},
	"an array":                     {`[1, "two"]`, `[1, "two"]`, false},
	"an empty array":               {"[]", "[]", false},
	"an empty object":              {" {} ", "{}", false},
	"a repeated name":              {`{"a": 1, "a": 2}`, `{"a": 2}`, false},
	"a pair of surrogates":         {`{"n": "\ud83d\ude00"}`, `{"n": "😀"}`, false},
	"SQL injection":                {`{"n": "'); DROP TABLE audit.changes; -- \\'' */"}`, `{"n": "'); DROP TABLE audit.changes; -- \\'' */"}`, false},
	"nested a little":              {strings.Repeat(`{"a":`, 100) + "1" + strings.Repeat("}", 100), strings.Repeat(`{"a": `, 100) + "1" + strings.Repeat("}", 100), false},
	"exact numbers":                {`{"n": 12345678901234567890.10}`, `{"n": 12345678901234567890.10}`, false},
}

// noise is text that does not compress.
func noise(n int) string {
	random := rand.New(rand.NewPCG(1, 2))
	text := make([]byte, n)
	for i := range text {
		text[i] = byte('a' + random.IntN(26))
	}
	return string(text)
}

// growing is JSON of short numbers whose digits are many.
func growing(n int) string {
	var numbers []string
	for i := range n {
		numbers = append(numbers, fmt.Sprintf("%de%d", 1+i*7%10, 9000+i*13%999))
	}
	return strings.Join(numbers, ",")
}

// A strange context is recorded as such with every row it covers, those before
// it included, and never costs a row, the next context or the capture.
func TestStrangeContextsAreRecordedAndStopNothing(t *testing.T) {
	t.Parallel()
	for name, c := range strange {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			a := audittest.New(t, audit.Config{}, "CREATE TABLE todo (id int PRIMARY KEY)")
			a.Exec(t, "INSERT INTO todo VALUES (0)")
			conn := a.Connect(t)
			tx, err := conn.Begin(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			for _, sql := range []string{
				"INSERT INTO todo VALUES (1)",
				"", // the message
				"INSERT INTO todo VALUES (2)",
				`SELECT pg_logical_emit_message(true, 'audit', '{"n": "good"}')`,
				"INSERT INTO todo VALUES (3)",
			} {
				if sql == "" {
					_, err = tx.Exec(t.Context(), "SELECT pg_logical_emit_message(true, 'audit', $1::bytea)", []byte(c.content))
				} else {
					_, err = tx.Exec(t.Context(), sql)
				}
				if err != nil {
					t.Fatalf("%s: %v", sql, err)
				}
			}
			if err := tx.Commit(t.Context()); err != nil {
				t.Fatal(err)
			}
			a.Exec(t, "INSERT INTO todo VALUES (4)")

			bad := strings.TrimSpace(fmt.Sprintf("%v %s", c.defect, c.context))
			tell(t, a, `primary_key, CASE WHEN defect LIKE 'context%' THEN 'true' ELSE 'false' END, context`,
				"0 false", "1 "+bad, "2 "+bad, `3 false {"n": "good"}`, "4 false")
		})
	}
}

// A defect says in words what is wrong, and holds nothing of the context.
func TestDefectOfAContextDoesNotQuoteIt(t *testing.T) {
	t.Parallel()
	a := audittest.New(t, audit.Config{}, "CREATE TABLE todo (id int PRIMARY KEY)")
	a.Exec(t, `
		SELECT pg_logical_emit_message(true, 'audit', '{"password": "hunter2"');
		INSERT INTO todo VALUES (1)`)
	tell(t, a, "primary_key, context, defect", "1 context is not JSON (22 bytes)")
}

// A store that is not in UTF-8 cannot hold every character of a context. That costs
// those characters, and not the request id beside them.
func TestContextThatTheStoresEncodingRefuses(t *testing.T) {
	t.Parallel()
	for encoding, want := range map[string]string{"SQL_ASCII": "Łukasz 😀 r ", "LATIN1": "?ukasz ? r context: 2 characters that the store's encoding lacks are question marks"} {
		t.Run(encoding, func(t *testing.T) {
			t.Parallel()
			a := inEncoding(t, encoding, "CREATE TABLE todo (id int PRIMARY KEY)")
			ctx := audit.WithContext(t.Context(), audit.Context{UserID: "Łukasz 😀", RequestID: "r"})
			for _, sql := range []string{"INSERT INTO todo VALUES (1)", "UPDATE todo SET id = 2"} {
				tx, err := a.Connect(t).Begin(t.Context())
				if err != nil {
					t.Fatal(err)
				}
				if err := audit.Stamp(ctx, tx); err != nil {
					t.Fatal(err)
				}
				if _, err := tx.Exec(t.Context(), sql); err != nil {
					t.Fatal(err)
				}
				if err := tx.Commit(t.Context()); err != nil {
					t.Fatal(err)
				}
			}
			a.Exec(t, "INSERT INTO todo VALUES (3)")
			tell(t, a, "operation, primary_key, previous_key, before, after",
				`CREATE 1 {} {"id": 1}`, `UPDATE 2 1 {"id": 1} {"id": 2}`, `CREATE 3 {} {"id": 3}`)
			for _, id := range []int{1, 2} {
				got := audittest.Value[string](t, a.Database, "SELECT concat_ws(' ', context ->> 'userId', context ->> 'requestId', coalesce(defect, '')) FROM audit.changes WHERE primary_key = $1::int::text", id)
				if got != want {
					t.Errorf("the change of row %d has %q, want %q", id, got, want)
				}
			}
		})
	}
}

// inEncoding is audittest.New for a database that is not in UTF-8.
func inEncoding(t *testing.T, encoding string, setup ...string) *audittest.Audited {
	t.Helper()
	db := databaseIn(t, encoding)
	for _, sql := range setup {
		db.Exec(t, sql)
	}
	return capturing(t, db, audit.Config{})
}

// databaseIn makes a database in the given encoding.
func databaseIn(t *testing.T, encoding string) *audittest.Database {
	t.Helper()
	db := audittest.NewDatabase(t)
	admin, err := pgx.Connect(t.Context(), db.Server().URL("postgres"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = admin.Close(t.Context()) }()
	for _, sql := range []string{
		"DROP DATABASE " + db.Name(),
		"CREATE DATABASE " + db.Name() + " ENCODING '" + encoding + "' LC_COLLATE 'C' LC_CTYPE 'C' TEMPLATE template0",
		"ALTER DATABASE " + db.Name() + " SET client_encoding = " + map[bool]string{true: "'SQL_ASCII'", false: "'UTF8'"}[encoding == "SQL_ASCII"], // else the database's
	} {
		if _, err := admin.Exec(t.Context(), sql); err != nil {
			t.Fatalf("%s: %v", sql, err)
		}
	}
	return db
}

// capturing starts capture of a database, as audittest.New does of an empty one.
func capturing(t *testing.T, db *audittest.Database, cfg audit.Config) *audittest.Audited {
	t.Helper()
	a := audittest.Open(t, db, cfg)
	if err := a.Client.Start(context.WithoutCancel(t.Context())); err != nil {
		t.Fatalf("start capture: %v", err)
	}
	t.Cleanup(func() {
		if !t.Failed() {
			a.Check(t)
		}
		a.Stop(t)
	})
	return a
}

func TestStampedContextComesBackAsItWas(t *testing.T) {
	t.Parallel()
	a := audittest.New(t, audit.Config{}, "CREATE TABLE todo (id int PRIMARY KEY)")
	given := audit.Context{UserID: "Łukasz 😀", RequestID: "r\t\"1\"", Endpoint: "POST /todo", Params: map[string]any{"title": "\x00\x1f<&>\u2028"}}
	conn := a.Connect(t)
	tx, err := conn.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := audit.Stamp(audit.WithContext(t.Context(), given), tx); err != nil {
		t.Fatal(err)
	}
	if _, err := tx.Exec(t.Context(), "INSERT INTO todo VALUES (1)"); err != nil {
		t.Fatal(err)
	}
	if err := tx.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	a.Sync(t)
	c, err := a.Client.Changes().First(context.WithoutCancel(t.Context()))
	if err != nil {
		t.Fatal(err)
	}
	want, err := json.Marshal(given)
	if err != nil {
		t.Fatal(err)
	}
	var wanted audit.Context
	if err := json.Unmarshal(want, &wanted); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(wanted, c.Context); diff != "" || !c.Stamped || c.Defect != "" {
		t.Errorf("stamped %v, defect %q, context (-want +got):\n%s", c.Stamped, c.Defect, diff)
	}
}
