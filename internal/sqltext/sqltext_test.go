package sqltext_test

import (
	"strings"
	"testing"

	"github.com/hindsight-go/audit/internal/sqltext"
)

// wants reports whether a statement is stamped: alone, and in a transaction.
func wants(sql string) (alone, inTransaction bool) {
	c := sqltext.Classify(sql)
	return c == sqltext.Write || c == sqltext.Unknown, c >= sqltext.Write
}

func TestWritesAreRecognised(t *testing.T) {
	t.Parallel()
	for sql, want := range map[string]string{
		"INSERT INTO t VALUES (1)":                                                      "write",
		"insert into t values (1)":                                                      "write",
		"\n\t-- SELECT\n/* a /* nested */ SELECT */UPDATE t SET a = 1":                  "write",
		"DELETE FROM t":                                                                 "write",
		"TRUNCATE t":                                                                    "write",
		"MERGE INTO t USING s ON true WHEN MATCHED THEN DO NOTHING":                     "write",
		"COPY t FROM '/x'":                                                              "write",
		"COPY (SELECT 1 FROM t) TO STDOUT":                                              "read",
		"COPY (DELETE FROM t RETURNING *) TO STDOUT":                                    "write",
		"WITH x AS (INSERT INTO t VALUES (1) RETURNING *) SELECT * FROM x":              "write",
		"(WITH x AS (DELETE FROM t RETURNING *) SELECT * FROM x)":                       "write",
		"WITH x AS (SELECT 1) INSERT INTO t SELECT * FROM x":                            "write",
		"WITH x AS (SELECT 1) SELECT * FROM x":                                          "read",
		"WITH x AS (SELECT * FROM t FOR UPDATE) SELECT * FROM x FOR NO KEY UPDATE":      "read",
		"WITH x AS (SELECT 'DELETE', \"update\" FROM t) SELECT $$INSERT$$, $a$MERGE$a$": "read",
		"WITH x AS (SELECT 1) SELECT /* DELETE */ 1 -- UPDATE":                          "read",
		"SELECT 1":                                 "read",
		"((SELECT 1))":                             "read",
		"SELECT * FROM t FOR UPDATE":               "read",
		"SELECT 'it''s; DELETE FROM t'":            "read",
		`SELECT E'it\'s; DELETE FROM t'`:           "read",
		`SELECT 'a\'; DELETE FROM t`:               "write",
		"SELECT $1; DELETE FROM t":                 "write",
		"SELECT 1; SELECT 2;":                      "read",
		"SELECT * INTO x FROM t":                   "write",
		"VALUES (1)":                               "read",
		"TABLE t":                                  "read",
		"SHOW ALL":                                 "read",
		"EXPLAIN INSERT INTO t VALUES (1)":         "read",
		"EXPLAIN ANALYZE INSERT INTO t VALUES (1)": "write",
		"EXPLAIN (VERBOSE, ANALYZE) DELETE FROM t": "write",
		"EXPLAIN ANALYZE SELECT 1":                 "read",
		"CALL p()":                                 "procedure",
		"DO $$ BEGIN DELETE FROM t; END $$":        "procedure",
		"EXECUTE p(1)":                             "write",
		"PREPARE p AS DELETE FROM t":               "read",
		"BEGIN":                                    "read",
		"begin isolation level serializable":       "read",
		"SAVEPOINT insert_1":                       "read",
		"COMMIT":                                   "read",
		"VACUUM":                                   "read",
		"VACUUM FULL t":                            "read",
		"CREATE INDEX CONCURRENTLY i ON t (a)":     "read",
		"CREATE DATABASE d":                        "read",
		"CREATE RULE r AS ON INSERT TO t DO ALSO (INSERT INTO l VALUES (1); DELETE FROM m)": "read",
		"ALTER TABLE t ADD c int; UPDATE t SET c = 1":                                       "write",
		"REFRESH MATERIALIZED VIEW v":                                                       "read",
		"insert_todo":                                                                       "write", // the name of a prepared statement
		`"my statement"`:                                                                    "write",
		"":                                                                                  "read",
		" ; ;; -- nothing":                                                                  "read",
		"\xff\xfe":                                                                          "write",
		"€uro":                                                                              "write",
	} {
		alone, inTransaction := wants(sql)
		got := map[[2]bool]string{{false, false}: "read", {true, true}: "write", {false, true}: "procedure"}[[2]bool{alone, inTransaction}]
		if got != want {
			t.Errorf("%q: %s, want %s", sql, got, want)
		}
	}
	for sql, want := range map[string]bool{
		"COMMIT": true, "commit and chain": true, "ROLLBACK TO x": true, "END": true, "ABORT": true,
		"INSERT INTO t VALUES (1); COMMIT": true, "PREPARE TRANSACTION 'x'": true, "PREPARE x AS SELECT 1": false,
		"SELECT 'COMMIT'": false, "RELEASE x": false, "SELECT 1 -- ; COMMIT": false,
	} {
		if got := sqltext.EndsTransaction(sql); got != want {
			t.Errorf("%q ends a transaction: %t", sql, got)
		}
	}
}

func TestTransactionsAreFollowed(t *testing.T) {
	t.Parallel()
	for sql, want := range map[string]sqltext.Session{
		"BEGIN": sqltext.InTransaction, "begin work": sqltext.InTransaction, "START TRANSACTION READ ONLY": sqltext.InTransaction,
		"COMMIT": sqltext.Idle, "END WORK": sqltext.Idle, "ROLLBACK": sqltext.Idle, "abort": sqltext.Idle, "PREPARE TRANSACTION 'x'": sqltext.Idle,
		"COMMIT AND CHAIN": sqltext.InTransaction, "ROLLBACK WORK AND CHAIN": sqltext.InTransaction, "COMMIT AND NO CHAIN": sqltext.Idle,
		"ROLLBACK TO x": sqltext.AsItWas, "ROLLBACK TRANSACTION TO SAVEPOINT x": sqltext.AsItWas, "SAVEPOINT x": sqltext.AsItWas,
		"RELEASE x": sqltext.AsItWas, "COMMIT PREPARED 'x'": sqltext.AsItWas, "ROLLBACK PREPARED 'x'": sqltext.AsItWas,
		"BEGIN; DELETE FROM t": sqltext.InTransaction, "BEGIN; DELETE FROM t; COMMIT": sqltext.Idle, "COMMIT; BEGIN": sqltext.InTransaction,
		"SELECT 'BEGIN'": sqltext.AsItWas, "CREATE FUNCTION f() RETURNS int BEGIN ATOMIC SELECT CASE WHEN true THEN 1 END; END": sqltext.AsItWas,
		"CREATE FUNCTION f() RETURNS int BEGIN ATOMIC SELECT 1; END; COMMIT": sqltext.Idle,
		"CREATE TABLE t (begin int, atomic int); COMMIT":                     sqltext.Idle,
		"DO $$ BEGIN COMMIT; END $$":                                         sqltext.AsItWas, "": sqltext.AsItWas, "x": sqltext.AsItWas,
	} {
		if got := sqltext.Parse(sql).Leaves; got != want {
			t.Errorf("%q leaves %d, want %d", sql, got, want)
		}
	}
	for sql, want := range map[string]sqltext.Copy{
		"COPY t FROM STDIN": sqltext.CopyFrom, "copy t (a) from stdin": sqltext.CopyFrom, "COPY t FROM '/x'": sqltext.CopyFrom,
		"COPY (DELETE FROM t RETURNING *) TO STDOUT": sqltext.CopyOut, "copy (insert into t values (1) returning *) to stdin": sqltext.CopyOut,
		"COPY (WITH d AS (DELETE FROM t RETURNING *) SELECT * FROM d) TO STDOUT (FORMAT csv)": sqltext.CopyOut,
		"COPY (DELETE FROM t RETURNING stdout) TO '/x'":                                       sqltext.NoCopy,
		"COPY (DELETE FROM t RETURNING *) TO PROGRAM 'x'":                                     sqltext.NoCopy,
		"COPY t TO STDOUT": sqltext.NoCopy, "COPY (SELECT * FROM t) TO STDOUT": sqltext.NoCopy, "INSERT INTO copy SELECT * FROM t": sqltext.NoCopy,
	} {
		if got := sqltext.Parse(sql).Copies; got != want {
			t.Errorf("%q copies %d, want %d", sql, got, want)
		}
	}
}

func FuzzWritesAreRecognised(f *testing.F) {
	for _, seed := range []string{
		"SELECT 1", "/* /* */", "$a$", "$1", "$", "'", `E'\`, `"`, "((;))", "--", "e'\\'", "WITH a AS (", "\x00", "$é$x$é$", "a.b.c;;COMMIT",
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		wants(text)
		sqltext.EndsTransaction(text)
		// What stands in a comment or a literal decides nothing.
		plain := strings.NewReplacer("*/", "", "/*", "", "*", "", "/", "").Replace(text)
		if _, stamped := wants("/* " + plain + " */ SELECT 1"); stamped {
			t.Errorf("the comment %q makes a write", plain)
		}
		plain = strings.NewReplacer("'", "''").Replace(text)
		if _, stamped := wants("SELECT '" + plain + "'"); stamped {
			t.Errorf("the literal %q makes a write", plain)
		}
		plain = strings.ReplaceAll(text, "$q$", "")
		if !strings.HasSuffix(plain, "$") && !strings.HasSuffix(plain, "$q") && !strings.Contains(plain, "$q$") {
			if _, stamped := wants("SELECT $q$" + plain + "$q$"); stamped {
				t.Errorf("the literal %q makes a write", plain)
			}
		}
		// And what follows them does.
		plain = strings.NewReplacer("'", "''").Replace(text)
		if _, stamped := wants("SELECT '" + plain + "'; DELETE FROM t"); !stamped {
			t.Errorf("the literal %q hides a write", plain)
		}
	})
}
