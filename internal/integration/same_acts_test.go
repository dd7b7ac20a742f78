package integration_test

import (
	"context"
	"database/sql"
	sqldriver "database/sql/driver"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/lib/pq"
)

// seen describes rows: columns with their types, and values.
func seen(rows *sql.Rows, err error) (lines []string) {
	if err != nil {
		return []string{"query: " + err.Error()}
	}
	defer func() { _ = rows.Close() }()
	for more := true; more; more = rows.NextResultSet() {
		columns, err := rows.ColumnTypes()
		if err != nil {
			return append(lines, "columns: "+err.Error())
		}
		values := make([]any, len(columns))
		for i, c := range columns {
			length, hasLength := c.Length()
			precision, scale, hasSize := c.DecimalSize()
			nullable, knowsNullable := c.Nullable()
			lines = append(lines, fmt.Sprint(c.Name(), " ", c.DatabaseTypeName(), " ", c.ScanType(), length, hasLength, precision, scale, hasSize, nullable, knowsNullable))
			values[i] = new(any)
		}
		for rows.Next() {
			if err := rows.Scan(values...); err != nil {
				lines = append(lines, "scan: "+err.Error())
			}
			for _, v := range values {
				lines = append(lines, fmt.Sprintf("%T %[1]v", *v.(*any)))
			}
		}
	}
	if err := rows.Err(); err != nil {
		lines = append(lines, "rows: "+err.Error())
	}
	if err := rows.Close(); err != nil {
		lines = append(lines, "close: "+err.Error())
	}
	return lines
}

func seeValue(ctx context.Context, db *sql.DB, query string, args ...any) []string {
	rows, err := db.QueryContext(ctx, query, args...)
	lines := seen(rows, err)
	_, err = db.ExecContext(ctx, query, args...)
	return append(lines, fmt.Sprint("exec: ", err))
}

func seePrepared(ctx context.Context, db *sql.DB, query string, args ...any) []string {
	stmt, err := db.PrepareContext(ctx, query)
	if err != nil {
		return []string{"prepare: " + err.Error()}
	}
	defer func() { _ = stmt.Close() }()
	var lines []string
	for range 2 {
		rows, err := stmt.QueryContext(ctx, args...)
		lines = append(lines, seen(rows, err)...)
		_, err = stmt.ExecContext(ctx, args...)
		lines = append(lines, fmt.Sprint("exec: ", err))
	}
	return lines
}

func seeColumns(ctx context.Context, db *sql.DB) []string {
	rows, err := db.QueryContext(ctx, "INSERT INTO seen (name, size, at) VALUES ('a', 1.5, '2024-01-02Z'), (NULL, NULL, NULL) RETURNING name, size, at, name::varchar(9) AS short")
	lines := seen(rows, err)
	rows, err = db.QueryContext(ctx, "DELETE FROM seen WHERE false RETURNING *")
	return append(lines, seen(rows, err)...)
}

func seeResults(ctx context.Context, db *sql.DB) (lines []string) {
	for _, query := range []string{
		"INSERT INTO seen (name) SELECT n FROM generate_series(1, 3) AS n", "UPDATE seen SET name = 'b' WHERE name = '2'",
		"DELETE FROM seen WHERE name = 'b'", "CREATE TABLE made AS SELECT 1 AS n", "INSERT INTO seen (name) VALUES ('x'); DELETE FROM seen WHERE name IN ('1', '3')",
		"-- nothing", "", "DROP TABLE made", "DO $$ BEGIN PERFORM 1; END $$", "SELECT 1",
	} {
		result, err := db.ExecContext(ctx, query)
		if err != nil {
			lines = append(lines, fmt.Sprintf("%q: %v", query, err))
			continue
		}
		n, err := result.RowsAffected()
		_, without := result.LastInsertId()
		lines = append(lines, fmt.Sprintf("%q: %d, %v, %v", query, n, err, without))
	}
	return lines
}

func seeResultSets(ctx context.Context, db *sql.DB) []string {
	rows, err := db.QueryContext(ctx, "INSERT INTO seen (name) VALUES ('m') RETURNING name; DELETE FROM seen WHERE name = 'm' RETURNING name, v; SELECT 1 AS n")
	return seen(rows, err)
}

func seeErrors(ctx context.Context, db *sql.DB) (lines []string) {
	for _, query := range []string{
		"INSERT INTO seen (v) VALUES ('refused')", "INSERT INTO seen (v) VALUES ($1)", "INSERT INTO seen VALUES ($1, $3)",
		"INSERT INTO nowhere VALUES (1)", "DELETE seen", "INSERT INTO seen (id) VALUES (1), (1) RETURNING 1/0",
		"UPDATE seen SET size = 1e9 WHERE name = 'a'",
	} {
		for _, args := range [][]any{nil, {"refused"}, {1, 2}} {
			rows, err := db.QueryContext(ctx, query, args...)
			lines = append(lines, seen(rows, err)...)
			_, err = db.ExecContext(ctx, query, args...)
			lines = append(lines, fmt.Sprintf("%s, %T: %[2]v, %s", query, err, details(err)))
		}
	}
	return lines
}

// details are what a server says of an error beside the message.
func details(err error) string {
	if e, ok := errors.AsType[*pgconn.PgError](err); ok {
		return fmt.Sprint(e.Code, e.Position, e.InternalPosition, e.Detail, e.Hint, e.Where, e.TableName, e.ConstraintName)
	}
	if e, ok := errors.AsType[*pq.Error](err); ok {
		return fmt.Sprint(e.Code, e.Position, e.InternalPosition, e.Detail, e.Hint, e.Where, e.Table, e.Constraint)
	}
	return ""
}

func seeFailedTransaction(ctx context.Context, db *sql.DB) []string {
	tx, err := db.BeginTx(ctx, nil)
	if err != nil {
		return []string{err.Error()}
	}
	_, first := tx.ExecContext(ctx, "INSERT INTO seen (v) VALUES ('refused')")
	_, second := tx.ExecContext(ctx, "INSERT INTO seen (v) VALUES ('fine')")
	_, third := tx.QueryContext(ctx, "SELECT 1") //nolint:rowserrcheck,sqlclosecheck // it fails
	lines := []string{fmt.Sprint(first, second, third)}
	return append(lines, fmt.Sprint(tx.Commit()), fmt.Sprint(tx.Rollback()))
}

func seeOptions(ctx context.Context, db *sql.DB) (lines []string) {
	for _, options := range []*sql.TxOptions{
		{ReadOnly: true}, {Isolation: sql.LevelSerializable}, {Isolation: sql.LevelRepeatableRead, ReadOnly: true}, {Isolation: sql.LevelLinearizable},
	} {
		tx, err := db.BeginTx(ctx, options)
		if err != nil {
			lines = append(lines, err.Error())
			continue
		}
		var isolation, readOnly string
		err = errors.Join(
			tx.QueryRowContext(ctx, "SHOW transaction_isolation").Scan(&isolation),
			tx.QueryRowContext(ctx, "SHOW transaction_read_only").Scan(&readOnly))
		_, write := tx.ExecContext(ctx, "INSERT INTO seen (v) VALUES ('option')")
		lines = append(lines, fmt.Sprint(isolation, readOnly, err, write, tx.Rollback()))
	}
	return lines
}

// byHand runs statements on one connection and says what came of each.
func byHand(ctx context.Context, db *sql.DB, queries ...string) (lines []string) {
	conn, err := db.Conn(ctx)
	if err != nil {
		return []string{err.Error()}
	}
	defer func() { _ = conn.Close() }()
	for _, query := range queries {
		if _, err := conn.ExecContext(ctx, query); err != nil {
			lines = append(lines, fmt.Sprintf("%s: %v", query, err))
		}
		rows, err := conn.QueryContext(ctx, "SELECT string_agg(name, ', ' ORDER BY id) FROM seen WHERE name LIKE 'hand%'")
		lines = append(lines, seen(rows, err)...)
	}
	return lines
}

func seeTransactionsByHand(ctx context.Context, db *sql.DB) []string {
	return byHand(ctx, db,
		"BEGIN", "INSERT INTO seen (name) VALUES ('hand 1')", "ROLLBACK",
		"BEGIN; INSERT INTO seen (name) VALUES ('hand 2')", "INSERT INTO seen (name) VALUES ('hand 3')", "ROLLBACK",
		"INSERT INTO seen (name) VALUES ('hand 4'); BEGIN; INSERT INTO seen (name) VALUES ('hand 5')", "ROLLBACK",
		"BEGIN", "INSERT INTO seen (name) VALUES ('hand 6'); COMMIT; INSERT INTO seen (name) VALUES ('hand 7')", "ROLLBACK",
		"BEGIN", "INSERT INTO seen (name) VALUES ('hand 8'); SELECT 1/0", "INSERT INTO seen (name) VALUES ('hand 9')", "COMMIT",
		"/* a comment */ start transaction", "INSERT INTO seen (name) VALUES ('hand 10')", "ABORT",
		"DO $$ BEGIN IF 1 = 1 THEN COMMIT; END IF; END $$", "INSERT INTO seen (name) VALUES ('hand 11')",
		"BEGIN", "SAVEPOINT s", "INSERT INTO seen (name) VALUES ('hand 12')", "ROLLBACK TO s", "INSERT INTO seen (name) VALUES ('hand 13')", "COMMIT AND CHAIN",
		"INSERT INTO seen (name) VALUES ('hand 14')", "ROLLBACK", "DELETE FROM seen WHERE name LIKE 'hand%'")
}

func seeDeferred(ctx context.Context, db *sql.DB) []string {
	lines := byHand(ctx, db,
		"CREATE TABLE parents (id int PRIMARY KEY)",
		"CREATE TABLE children (id int PRIMARY KEY, parent int REFERENCES parents DEFERRABLE INITIALLY DEFERRED)",
		"INSERT INTO children VALUES (1, 1)", "INSERT INTO children VALUES (1, NULL)")
	const query = "INSERT INTO children VALUES (2, $1) RETURNING id"
	lines = append(lines, seePrepared(ctx, db, query, 7)...)
	var id int
	lines = append(lines, fmt.Sprint(db.QueryRowContext(ctx, query, 8).Scan(&id)))
	return append(lines, byHand(ctx, db, "DROP TABLE children, parents")...)
}

func seeReadOnlySession(ctx context.Context, db *sql.DB) []string {
	return byHand(ctx, db, "SET default_transaction_read_only = on", "INSERT INTO seen (name) VALUES ('hand r')", "SELECT 1", "RESET ALL")
}

func seeWritesWhileReading(ctx context.Context, db *sql.DB) (lines []string) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	if _, err := db.ExecContext(ctx, "INSERT INTO seen (name) SELECT 'r' || n FROM generate_series(1, 5) AS n"); err != nil {
		return []string{err.Error()}
	}
	rows, err := db.QueryContext(ctx, "UPDATE seen SET at = 'epoch' WHERE name LIKE 'r%' RETURNING id")
	if err != nil {
		return []string{err.Error()}
	}
	defer func() { _ = rows.Close() }()
	for rows.Next() {
		var id int
		err := rows.Scan(&id)
		_, written := db.ExecContext(ctx, "UPDATE seen SET size = 1 WHERE id = $1", id)
		lines = append(lines, fmt.Sprint(id, err, written))
	}
	return append(lines, fmt.Sprint(rows.Err()))
}

// onThrowaway does something on a connection that is not used again. There are
// errors after which lib/pq keeps connections that are of no use any more.
func onThrowaway(ctx context.Context, db *sql.DB, see func(*sql.Conn) []string) []string {
	conn, err := db.Conn(ctx)
	if err != nil {
		return []string{err.Error()}
	}
	defer func() { _ = conn.Raw(func(any) error { return sqldriver.ErrBadConn }) }()
	return see(conn)
}

// seeBusy is refused by every driver. Which message it meets is up to the driver,
// even without a stamp.
func seeBusy(ctx context.Context, db *sql.DB) []string {
	return onThrowaway(ctx, db, func(conn *sql.Conn) []string {
		tx, err := conn.BeginTx(ctx, nil)
		if err != nil {
			return []string{err.Error()}
		}
		defer func() { _ = tx.Rollback() }()
		rows, err := tx.QueryContext(ctx, "SELECT n FROM generate_series(1, 3) AS n WHERE n <> $1", 2)
		if err != nil {
			return []string{err.Error()}
		}
		defer func() { _ = rows.Close() }()
		read := rows.Next()
		_, write := tx.ExecContext(ctx, "INSERT INTO seen (name) VALUES ($1)", "busy")
		_ = rows.Err() // is up to the driver, too
		return []string{fmt.Sprint(read, write != nil)}
	})
}

func seeClosedEarly(ctx context.Context, db *sql.DB) (lines []string) {
	for _, query := range []string{
		"INSERT INTO seen (name) SELECT 'early' FROM generate_series(1, 5000) RETURNING name, repeat('x', 1000)", // more than fits into buffers
		"INSERT INTO seen (name) SELECT 'early' FROM generate_series(1, 3) RETURNING name; DELETE FROM seen WHERE name = 'early'",
	} {
		rows, err := db.QueryContext(ctx, query)
		if err != nil {
			lines = append(lines, err.Error())
			continue
		}
		lines = append(lines, fmt.Sprint(rows.Next(), rows.Close(), rows.Err())) //nolint:sqlclosecheck // it is what is tested
		var n int
		err = db.QueryRowContext(ctx, "SELECT count(*) FROM seen WHERE name = 'early'").Scan(&n)
		lines = append(lines, fmt.Sprint(n, err))
	}
	return lines
}

func seeProcedure(ctx context.Context, db *sql.DB) []string {
	return byHand(ctx, db, `
		CREATE PROCEDURE twice() LANGUAGE plpgsql AS $$ BEGIN
			PERFORM 1;
			COMMIT;
		END $$`, "CALL twice()", "DROP PROCEDURE twice")
}

func seeLoners(ctx context.Context, db *sql.DB) []string {
	return byHand(ctx, db, "VACUUM seen", "CREATE INDEX CONCURRENTLY seen_name ON seen (name)", "DROP INDEX CONCURRENTLY seen_name", "SAVEPOINT s", "LOCK TABLE seen",
		"SET LOCAL work_mem = '1MB'", "DECLARE c CURSOR FOR SELECT 1", "COMMIT", "ROLLBACK")
}

func seePgxArguments(ctx context.Context, db *sql.DB) (lines []string) {
	for _, args := range [][]any{
		{pgx.NamedArgs{"name": "named"}},
		{pgx.QueryExecModeSimpleProtocol, "simple"},
		{pgx.QueryExecModeExec, "executed"},
		{pgx.QueryResultFormats{pgx.TextFormatCode}, "text"},
		{pgx.QueryResultFormatsByOID{25: 0}, "text"},
	} {
		lines = append(lines, seeValue(ctx, db, "INSERT INTO seen (name) VALUES ($1) RETURNING name", args...)...)
		lines = append(lines, seeValue(ctx, db, "INSERT INTO seen (name) VALUES (@name) RETURNING name", args...)...)
	}
	return lines
}

func seeAlteredTable(ctx context.Context, db *sql.DB) (lines []string) {
	lines = byHand(ctx, db, "CREATE TABLE altered (id int PRIMARY KEY)")
	id := 0
	insert := func() {
		for range 4 {
			id++
			rows, err := db.QueryContext(ctx, "INSERT INTO altered VALUES ($1) RETURNING *", id)
			lines = append(lines, seen(rows, err)...)
		}
	}
	insert()
	lines = append(lines, byHand(ctx, db, "ALTER TABLE altered ADD COLUMN more text DEFAULT 'more'")...)
	insert()
	return append(lines, byHand(ctx, db, "DROP TABLE altered")...)
}

func seeTooManyArguments(ctx context.Context, db *sql.DB) []string {
	args := make([]any, 1<<16)
	for i := range args {
		args[i] = "a"
	}
	return onThrowaway(ctx, db, func(conn *sql.Conn) []string {
		_, err := conn.ExecContext(ctx, "INSERT INTO seen (name) VALUES ($1"+strings.Repeat("), ($1", len(args)-1)+")", args...)
		return []string{fmt.Sprint(err)}
	})
}

func seeInterrupted(ctx context.Context, db *sql.DB) []string {
	soon, cancel := context.WithTimeout(ctx, 100*time.Millisecond)
	defer cancel()
	_, err := db.ExecContext(soon, "INSERT INTO seen (name) SELECT 'interrupted' FROM pg_sleep(30)")
	over, cancel := context.WithCancel(ctx)
	cancel()
	_, never := db.ExecContext(over, "INSERT INTO seen (name) VALUES ('interrupted')")
	var n int
	counted := db.QueryRowContext(ctx, "SELECT count(*) FROM seen WHERE name = 'interrupted'").Scan(&n)
	// How it is interrupted is a race in any driver.
	return []string{fmt.Sprint(err != nil, never, n, counted)}
}
