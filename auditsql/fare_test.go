package auditsql_test

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/hindsight-go/audit/auditsql"
	"github.com/hindsight-go/audit/audittest"
)

// outcome is what a caller can see of an error.
func outcome(err error) string {
	var pgErr *pgconn.PgError
	if errors.As(err, &pgErr) {
		return fmt.Sprintf("%s|%s|position %d", err, pgErr.Code, pgErr.Position)
	}
	return fmt.Sprint(err)
}

// seenOfExec is what a caller can see of Exec.
func seenOfExec(result sql.Result, err error) []string {
	if err != nil {
		return []string{outcome(err)}
	}
	n, err := result.RowsAffected()
	id, idErr := result.LastInsertId()
	return []string{fmt.Sprint(n, err, id, idErr)}
}

// seenOfQuery is what a caller can see of Query.
func seenOfQuery(rows *sql.Rows, err error) []string {
	if err != nil {
		return []string{outcome(err)}
	}
	defer func() { _ = rows.Close() }()
	var seen []string
	for more := true; more; more = rows.NextResultSet() {
		columns, err := rows.ColumnTypes()
		seen = append(seen, outcome(err))
		for _, c := range columns {
			length, hasLength := c.Length()
			nullable, hasNullable := c.Nullable()
			precision, scale, hasScale := c.DecimalSize()
			seen = append(seen, fmt.Sprint(c.Name(), c.DatabaseTypeName(), c.ScanType(), length, hasLength, nullable, hasNullable, precision, scale, hasScale))
		}
		for rows.Next() {
			row := make([]any, len(columns))
			for i := range row {
				row[i] = new(any)
			}
			err := rows.Scan(row...)
			for i := range row {
				value := *row[i].(*any)
				seen = append(seen, fmt.Sprintf("%T %v", value, value))
			}
			seen = append(seen, outcome(err))
		}
	}
	return append(seen, outcome(rows.Err()), outcome(rows.Close()))
}

type statement struct {
	sql  string
	args []any
}

var odd = []statement{
	{"INSERT INTO todo VALUES ('a', 1), ('a', 2)", nil},
	{"INSERT INTO todo VALUES ($1, 1), ($1, 2) RETURNING *", []any{"a"}},
	{"INSERT INTO todo VALUES ($1, 1), ($1, 1) RETURNING id", []any{"a"}},
	{"INSERT INTO todo VALUES ('a', 1), ('a', 1)", nil},
	{"INSERT INTO todo VALUES ($1, 1), ($1)", []any{"a"}},
	{"INSERT INTO todo VALUS ($1)", []any{"a"}},
	{"INSERT INTO todo VALUS (1)", nil},
	{"INSERT INTO todo VALUES ($1, 1) 'open", []any{"a"}},
	{"INSERT INTO nothing VALUES ($1)", []any{"a"}},
	{"INSERT INTO nothing VALUES (1)", nil},
	{"INSERT INTO todo VALUES ('a', 'x')", nil},
	{"INSERT INTO todo VALUES ('ä', $1::int)", []any{"x"}},
	{"INSERT INTO todo VALUES ($1, $2)", []any{"a"}},
	{"INSERT INTO todo VALUES ($1)", []any{struct{}{}}},
	{"INSERT INTO todo VALUES ($1, 1)", []any{sql.Named("name", "a")}},
	{"INSERT INTO todo VALUES ($1, 1)", []any{sql.NullString{String: "a", Valid: true}}},
	{"INSERT INTO todo SELECT unnest($1::text[]), 1", []any{[]string{"a", "b"}}},
	{"INSERT INTO todo VALUES ('a', 1); UPDATE todo SET id = 7; SELECT 1", nil},
	{"INSERT INTO todo VALUES ('a', 1); SELECT 1/0", nil},
	{"BEGIN; INSERT INTO todo VALUES ('a', 1); COMMIT; INSERT INTO todo VALUES ('a', 1)", nil},
	{"INSERT INTO todo VALUES ('a', 1); COMMIT", nil},
	{"INSERT INTO todo VALUES ('a', 1); ROLLBACK; INSERT INTO todo VALUES ('a', 2)", nil},
	{"/* comment ' */ (WITH x AS (DELETE FROM todo RETURNING 1) SELECT * FROM x)", nil},
	{"UPDATE todo SET id = id + $1", []any{1}},
	{"INSERT INTO child VALUES ($1)", []any{1}},
	{"INSERT INTO child VALUES ($1) RETURNING id", []any{1}},
	{"INSERT INTO child VALUES (1)", nil},
	{"INSERT INTO todo SELECT 'a', 10 / (3 - n) FROM generate_series(1, 5) n RETURNING id", nil},
	{"CALL commits()", nil},
	{"DO $$ BEGIN INSERT INTO todo VALUES ('d', 1); COMMIT; END $$", nil},
	{"SELECT add('s', 1)", nil},
	{"SELECT add($1, 1)", []any{"s"}},
	{"VACUUM todo", nil},
	{"CREATE INDEX CONCURRENTLY ON todo (id)", nil},
	{"CREATE TABLE more AS SELECT * FROM todo", nil},
	{"SELECT * INTO more FROM todo", nil},
	{"EXPLAIN (ANALYZE, COSTS OFF, TIMING OFF, SUMMARY OFF, BUFFERS OFF) INSERT INTO todo VALUES ('a', 1)", nil},
	{"SAVEPOINT x", nil},
	{"RELEASE SAVEPOINT audit_stamp", nil},
	{"ROLLBACK TO SAVEPOINT audit_stamp", nil},
	{"TRUNCATE todo, parent CASCADE", nil},
	{"COPY todo FROM '/nowhere/at/all'", nil},
	{"INSERT INTO todo VALUES " + strings.Repeat("($1, $2),", 40) + "($1, $65536)", make([]any, 65536)},
	{"noSuchName", nil},
	{"", nil},
	{";", nil},
}

const oddSQL = todoSQL + `;
	CREATE TABLE parent (id int PRIMARY KEY);
	CREATE TABLE child (id int REFERENCES parent DEFERRABLE INITIALLY DEFERRED);
	CREATE PROCEDURE commits() LANGUAGE plpgsql AS $$ BEGIN INSERT INTO todo VALUES ('p', 1); COMMIT; DELETE FROM todo; COMMIT; END $$;
	CREATE FUNCTION add(c text, i int) RETURNS int LANGUAGE sql AS $$ INSERT INTO todo VALUES (c, i) RETURNING id $$`

// TestStatementsFareAsWithoutUs runs each statement with and without a wrapper,
// from the same state, and compares all there is to see.
func TestStatementsFareAsWithoutUs(t *testing.T) {
	t.Parallel()
	for _, d := range drivers {
		t.Run(d.name, func(t *testing.T) {
			t.Parallel()
			database := audittest.NewDatabase(t)
			database.Exec(t, oddSQL)
			config := parse(t, database, nil)
			plain, wrapped := openDB(t, d.connector(config)), auditsql.OpenDB(d.connector(config))
			t.Cleanup(func() { _ = wrapped.Close() })
			direct := database.Connect(t)
			compareAll(t, direct, plain, wrapped, odd)
		})
	}
}

// compareAll runs statements in all ways and compares what is seen and what is left.
func compareAll(t *testing.T, direct *pgx.Conn, plain, wrapped *sql.DB, statements []statement) {
	t.Helper()
	for _, s := range statements {
		for begin, hows := range map[string][]string{
			"":            {"exec", "query", "query row", "prepared query"},
			"transaction": {"exec", "prepared exec", "query"},
			"read only":   {"exec"},
			"BEGIN":       {"prepared query"},
		} {
			for _, how := range hows {
				seen := func(db *sql.DB) []string {
					seen := fare(t, db, s, how, begin)
					rows, _ := direct.Query(t.Context(), "WITH t AS (DELETE FROM todo RETURNING cell || id AS row), p AS (DELETE FROM parent), c AS (DELETE FROM child) SELECT row FROM t ORDER BY 1")
					left, err := pgx.CollectRows(rows, pgx.RowTo[string])
					if strings.Contains(s.sql, "more") || strings.Contains(s.sql, "INDEX") {
						_, dropErr := direct.Exec(t.Context(), "DROP TABLE IF EXISTS more; DROP INDEX IF EXISTS todo_id_idx")
						err = errors.Join(err, dropErr)
					}
					return append(seen, fmt.Sprint(left, err))
				}
				if diff := cmp.Diff(seen(plain), seen(wrapped)); diff != "" {
					t.Errorf("%s of %q with %d arguments in %q: %s", how, s.sql, len(s.args), begin, diff)
				}
			}
		}
	}
}

// fare runs a statement, in a transaction of a kind or in none.
func fare(t *testing.T, db *sql.DB, s statement, how, begin string) (seen []string) {
	t.Helper()
	ctx := by(t.Context(), "ann")
	conn, err := db.Conn(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	end := func() error { return nil }
	var q querier = conn
	switch begin {
	case "transaction", "read only":
		tx, err := conn.BeginTx(ctx, &sql.TxOptions{ReadOnly: begin == "read only"})
		if err != nil {
			return []string{outcome(err)} // some drivers have no read-only ones
		}
		q, end = tx, tx.Commit
	case "BEGIN":
		if err := run(ctx, conn, "BEGIN"); err != nil {
			t.Fatal(err)
		}
		end = func() error { return run(ctx, conn, "COMMIT") }
	}
	seen = seenOf(ctx, q, s, how)
	seen = append(seen, outcome(end()))
	// Whatever has come of it, the connection is to be as good as before.
	return append(seen, seenOfQuery(conn.QueryContext(t.Context(), "SELECT 1"))...)
}

func seenOf(ctx context.Context, q querier, s statement, how string) []string {
	switch how {
	case "exec":
		return seenOfExec(q.ExecContext(ctx, s.sql, s.args...))
	case "query":
		return seenOfQuery(q.QueryContext(ctx, s.sql, s.args...))
	case "query row":
		var got any
		err := q.QueryRowContext(ctx, s.sql, s.args...).Scan(&got)
		return []string{fmt.Sprint(got), outcome(err)}
	}
	stmt, err := q.PrepareContext(ctx, s.sql)
	if err != nil {
		return []string{outcome(err)}
	}
	defer func() { _ = stmt.Close() }()
	var seen []string
	for range 2 {
		if how == "prepared exec" {
			seen = append(seen, seenOfExec(stmt.ExecContext(ctx, s.args...))...)
		} else {
			seen = append(seen, seenOfQuery(stmt.QueryContext(ctx, s.args...))...)
		}
	}
	return seen
}

// TestValuesAreThoseOfTheDriver reads values of many types from a statement with
// and without a stamp.
func TestValuesAreThoseOfTheDriver(t *testing.T) {
	t.Parallel()
	database := audittest.NewDatabase(t)
	database.Exec(t, todoSQL+`; CREATE TYPE mood AS ENUM ('ok'); CREATE DOMAIN positive AS int CHECK (VALUE > 0); SET timezone TO 'Asia/Kolkata'`)
	expressions := []string{
		"true", "1::int2", "2::int4", "3::int8", "'4'::oid", "'5'::xid", "'6'::cid", "1.5::float4", "2.5::float8", "'NaN'::float8", "'Infinity'::float4",
		"1.10::numeric", "1.10::numeric(9,3)", "'NaN'::numeric", "'text'::text", "'v'::varchar", "'v'::varchar(7)", "'c'::char(3)", `'x'::"char"`, "'n'::name",
		`'\x0001ff'::bytea`, "''::bytea", `'{"a": 1.10}'::json`, `'{"a": 1.10}'::jsonb`, "'<a/>'::xml", "'a8098c1a-f86e-11da-bd1a-00112444be1e'::uuid",
		"'2024-02-29'::date", "'infinity'::date", "'0044-03-15 BC'::date", "'2024-02-29 12:34:56.789012'::timestamp", "'-infinity'::timestamp",
		"'2024-02-29 12:34:56.789012+05:30'::timestamptz", "'infinity'::timestamptz", "'12:34:56'::time", "'12:34:56+01'::timetz", "'1 day 2 hours'::interval",
		"ARRAY[1, 2]", "ARRAY['a', NULL]", "'[1,5)'::int4range", "'10.0.0.1'::inet", "'10.0.0.0/8'::cidr", "'08:00:2b:01:02:03'::macaddr", "B'101'", "'101'::varbit(5)",
		"'ok'::mood", "7::positive", "ROW(1, 'a')", "'(1,2)'::point", "'a b'::tsvector", "'12.34'::money", "NULL::int", "NULL::text", "NULL::bytea", "NULL",
		"'todo'::regclass", "'pg_catalog'::regnamespace",
	}
	query := "INSERT INTO todo VALUES ($1, $2) RETURNING " + strings.Join(expressions, ", ")
	for i, d := range drivers {
		db, connector := d.open(t, parse(t, database, nil))
		seen := func(ctx context.Context, id int) []string {
			return seenOfQuery(db.QueryContext(ctx, query, d.name, id))
		}
		plain, stamped := seen(t.Context(), 2*i), seen(by(t.Context(), "ann"), 2*i+1)
		if diff := cmp.Diff(plain, stamped); diff != "" {
			t.Errorf("%s: %s", d.name, diff)
		}
		if len(plain) != 2*len(expressions)+4 || connector.Stats().Stamped != 1 {
			t.Errorf("%s: saw %d things, %+v", d.name, len(plain), connector.Stats())
		}
	}
}

// TestReadOnlySessions writes where nothing can be written.
func TestReadOnlySessions(t *testing.T) {
	t.Parallel()
	database := audittest.NewDatabase(t)
	database.Exec(t, oddSQL)
	for _, d := range []aDriver{ofPgx, other} {
		config := parse(t, database, func(c *pgx.ConnConfig) { c.RuntimeParams["default_transaction_read_only"] = "on" })
		wrapped, connector := d.open(t, config)
		compareAll(t, database.Connect(t), openDB(t, d.connector(config)), wrapped, append(odd[:6:6], statement{"SELECT 1", nil}, statement{"SELECT add('s', 1)", nil}))
		if stats := connector.Stats(); stats.Lost != 0 {
			t.Errorf("%s: %+v", d.name, stats)
		}
	}
}
