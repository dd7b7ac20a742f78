package audittest

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgtype"

	"github.com/hindsight-go/audit"
)

// Audited is a database whose changes are captured.
type Audited struct {
	*Database
	Client *audit.Client
}

// New makes an empty database, runs the setup statements in it, and captures its
// changes from then on into its schema audit. When the test ends, and has not
// failed, New checks that history tells what the tables hold (see
// [Audited.Check]), and stops capture.
//
// cfg is that of the client; SourceURL is filled in, and Tables is "*.*" if it
// names none.
func New(t testing.TB, cfg audit.Config, setup ...string) *Audited {
	t.Helper()
	db := newSource(t, cfg)
	for _, sql := range setup {
		db.Exec(t, sql)
	}
	a := Open(t, db, cfg)
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

// Open opens a client on db without starting it, and closes it when the test
// ends. cfg is treated as by [New].
func Open(t testing.TB, db *Database, cfg audit.Config) *Audited {
	t.Helper()
	cfg.SourceURL = db.URL()
	if len(cfg.Tables) == 0 {
		cfg.Tables = []string{"*.*"}
	}
	cfg = leastRights(t, db, cfg)
	client, err := audit.Open(context.WithoutCancel(t.Context()), cfg)
	if err != nil {
		t.Fatalf("open client: %v", err)
	}
	t.Cleanup(client.Close)
	return &Audited{Database: db, Client: client}
}

// patience bounds what a test waits for; it is long because test machines are
// slow, and no test passes by it.
const patience = 2 * time.Minute

// Stop ends capture in order. Capture may be started again.
func (a *Audited) Stop(t testing.TB) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), patience)
	defer cancel()
	if err := a.Client.Stop(ctx); err != nil {
		t.Errorf("stop capture: %v", err)
	}
}

// Sync waits until history holds everything committed before the call.
func (a *Audited) Sync(t testing.TB) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), patience)
	defer cancel()
	if err := a.Client.Sync(ctx); err != nil {
		t.Fatalf("sync: %v", err)
	}
}

// Check verifies that history and tables agree: the last version that history
// has of every row is the row that is there, and rows that history saw deleted
// are gone. Rows that never changed since capture began are not in history and
// not looked at. The past as of now is compared with all rows of the tables, of
// those with more than 10,000 with their number. It needs the store in the
// database itself, in schema audit.
func (a *Audited) Check(t testing.TB) {
	t.Helper()
	a.Sync(t)
	ctx := context.WithoutCancel(t.Context()) // a cleanup's is over
	conn, err := pgx.Connect(ctx, a.URL())
	if err != nil {
		t.Fatalf("check history: %v", err)
	}
	defer func() { _ = conn.Close(ctx) }()
	// Nothing of what was just written has statistics, so the planner would take
	// 50,000 versions for one and compare each of them with every row.
	if _, err := conn.Exec(ctx, "SET enable_nestloop = off"); err != nil {
		t.Fatalf("check history: %v", err)
	}
	tables, err := trackedTables(ctx, conn)
	if err != nil {
		t.Fatalf("check history: %v", err)
	}
	for _, table := range tables {
		problems, err := table.compare(ctx, conn)
		if err != nil {
			t.Errorf("check history of %s: %v", table.name, err)
		}
		if table.inherited {
			continue // its past is refused
		}
		past, err := a.compareNow(ctx, conn, table)
		if err != nil {
			t.Errorf("check the past of %s as of now: %v", table.name, err)
		}
		for _, p := range append(problems, past...) {
			t.Errorf("history of %s does not tell what the table holds: %s", table.name, p)
		}
	}
}

type trackedTable struct {
	oid           uint32
	schema, table string
	name          string // quoted
	from          string // the position from which it is covered
	columns       []string
	key           []string
	// deferrable reports whether two rows may have had one key in the midst of a
	// transaction.
	deferrable bool
	// inherited reports whether other tables inherit from it.
	inherited bool
	// all are the names of its columns, withheld those of which history does not store
	// the values, as an array in SQL: see [audit.Config.Columns].
	all      []string
	withheld string
}

func trackedTables(ctx context.Context, conn *pgx.Conn) ([]trackedTable, error) {
	rows, err := conn.Query(ctx, `
		WITH withheld AS (
			SELECT DISTINCT coalesce(r.root_id, r.relation_id) AS relation, col ->> 'name' AS name
			FROM audit.relations r, jsonb_array_elements(r.columns) col
			WHERE r.database = current_database() AND col ? 'policy')
		SELECT c.oid, v.schema, v."table", v.from_position::text,
			array(SELECT CASE WHEN a.atttypid = 'json'::regtype THEN quote_ident(a.attname) || '::jsonb' ELSE quote_ident(a.attname) END
				FROM pg_attribute a WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped AND a.attgenerated = '' AND NOT EXISTS (SELECT FROM withheld w WHERE w.relation = c.oid AND w.name = a.attname) ORDER BY a.attnum),
			array(SELECT quote_ident(a.attname)
				FROM pg_index i, unnest((i.indkey::int2[])[0:i.indnkeyatts - 1]) WITH ORDINALITY k(attnum, n)
				JOIN pg_attribute a ON a.attnum = k.attnum
				WHERE i.indrelid = c.oid AND i.indisprimary AND a.attrelid = c.oid ORDER BY k.n),
			EXISTS (SELECT FROM pg_index i WHERE i.indrelid = c.oid AND i.indisprimary AND NOT i.indimmediate),
			c.relkind = 'r' AND EXISTS (SELECT FROM pg_inherits i WHERE i.inhparent = c.oid),
			array(SELECT quote_ident(a.attname) FROM pg_attribute a WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
				AND NOT EXISTS (SELECT FROM withheld w WHERE w.relation = c.oid AND w.name = a.attname) ORDER BY a.attnum),
			(SELECT quote_literal(coalesce(array_agg(w.name), '{}')) || '::text[]' FROM withheld w WHERE w.relation = c.oid)
		FROM audit.coverage v
		JOIN pg_class c ON c.oid = v.relation_id
		JOIN pg_namespace n ON n.oid = c.relnamespace AND n.nspname = v.schema
		WHERE v.until_position IS NULL AND c.relname = v."table" AND v.database = current_database()`)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, func(row pgx.CollectableRow) (t trackedTable, err error) {
		err = row.Scan(&t.oid, &t.schema, &t.table, &t.from, &t.columns, &t.key, &t.deferrable, &t.inherited, &t.all, &t.withheld)
		t.name = pgx.Identifier{t.schema, t.table}.Sanitize()
		return t, err
	})
}

// compare returns in what history and table differ, in words without values.
func (t trackedTable) compare(ctx context.Context, conn *pgx.Conn) ([]string, error) {
	// Everything since the last TRUNCATE, which leaves no rows behind, and since
	// coverage began: before, there may have been another table of the name.
	changes := `
		SELECT ch.database, ch.schema, ch."table", ch.position, ch.sequence, ch.operation, ch.primary_key, ch.previous_key, ch.defect,
			ch.before - ` + t.withheld + ` AS before, ch.after - ` + t.withheld + ` AS after
		FROM audit.changes ch
		WHERE ch.database = current_database() AND ch.schema = $1 AND ch."table" = $2 AND ch.operation <> 'TRUNCATE'
		  AND ch.position >= $3::text::pg_lsn
		  AND (ch.position, ch.sequence) > coalesce((
			SELECT (tr.position, tr.sequence) FROM audit.changes tr
			WHERE tr.database = current_database() AND tr.schema = $1 AND tr."table" = $2 AND tr.operation = 'TRUNCATE'
			ORDER BY tr.position DESC, tr.sequence DESC LIMIT 1), ('0/0'::pg_lsn, 0))`
	columns := strings.Join(t.columns, ", ")
	row := func(of string) string {
		if len(t.columns) == 0 {
			return "''"
		}
		var parts []string
		for _, c := range t.columns {
			parts = append(parts, of+"."+c)
		}
		return "(" + "ROW(" + strings.Join(parts, ", ") + "))::text"
	}
	checks := map[string]string{}
	certain := "true"
	if t.deferrable { // which of several changes was of which row cannot be told by the key
		certain = "times = 1"
	}
	if len(t.key) > 0 {
		past := fmt.Sprintf(`
			WITH changes AS (%s),
			touched AS (
				SELECT primary_key AS key, position, sequence, operation <> 'DELETE' AS alive, after, defect FROM changes
				UNION ALL
				SELECT previous_key, position, sequence, false, '{}', NULL FROM changes WHERE previous_key IS NOT NULL),
			last AS (
				SELECT DISTINCT ON (key) *, count(*) OVER (PARTITION BY key, position) AS times FROM touched ORDER BY key, position DESC, sequence DESC, alive),
			past AS (
				SELECT (jsonb_populate_record(NULL::%s, after)).* FROM last WHERE alive AND `+certain+` AND (defect IS NULL OR defect LIKE 'context%%'))`, changes, t.name)
		checks["rows whose last version is not what is there"] = past + fmt.Sprintf(`
			SELECT count(*) FROM past p WHERE NOT EXISTS (SELECT FROM %s l WHERE %s = %s)`, t.name, row("l"), row("p"))
		gone := fmt.Sprintf(`
			WITH changes AS (%s),
			touched AS (
				SELECT primary_key AS key, position, sequence, operation <> 'DELETE' AS alive, before AS image FROM changes
				UNION ALL
				SELECT previous_key, position, sequence, false, before FROM changes WHERE previous_key IS NOT NULL),
			last AS (
				SELECT DISTINCT ON (key) *, count(*) OVER (PARTITION BY key, position) AS times FROM touched ORDER BY key, position DESC, sequence DESC, alive DESC),
			gone AS (
				SELECT (jsonb_populate_record(NULL::%s, image)).* FROM last WHERE NOT alive AND `+certain+`)`, changes, t.name)
		var equal []string
		for _, k := range t.key {
			equal = append(equal, "l."+k+" = g."+k)
		}
		checks["rows that were deleted and are there"] = gone + fmt.Sprintf(`
			SELECT count(*) FROM gone g WHERE EXISTS (SELECT FROM %s l WHERE %s)`, t.name, strings.Join(equal, " AND "))
	} else if partial, err := t.partial(ctx, conn, changes); err != nil {
		return nil, fmt.Errorf("look for columns that were added: %w", err)
	} else if columns != "" && !partial {
		checks["rows that history has more often than the table"] = fmt.Sprintf(`
			WITH changes AS (%s),
			versions AS (
				SELECT 1 AS "~n", after AS "~image" FROM changes WHERE operation IN ('CREATE', 'UPDATE')
				UNION ALL
				SELECT -1, before FROM changes WHERE operation IN ('UPDATE', 'DELETE')),
			past AS (SELECT "~n", (jsonb_populate_record(NULL::%[2]s, "~image")).* FROM versions),
			net AS (SELECT %[3]s AS image, sum("~n") AS n FROM past p GROUP BY 1),
			live AS (SELECT %[4]s AS image, count(*) AS n FROM %[2]s l GROUP BY 1)
			SELECT count(*) FROM net LEFT JOIN live USING (image) WHERE net.n > coalesce(live.n, 0)`, changes, t.name, row("p"), row("l"))
	}
	var problems []string
	for what, sql := range checks {
		var n int
		if err := conn.QueryRow(ctx, sql, t.schema, t.table, t.from).Scan(&n); err != nil {
			return problems, fmt.Errorf("look for %s: %w", what, err)
		}
		if n > 0 {
			problems = append(problems, fmt.Sprintf("%d %s", n, what))
		}
	}
	return problems, nil
}

// partial reports whether images of the changes do not have all columns of now: what a
// column that was added since has in rows from before is not in them.
func (t trackedTable) partial(ctx context.Context, conn *pgx.Conn, changes string) (partial bool, err error) {
	err = conn.QueryRow(ctx, `
		SELECT EXISTS (
			SELECT FROM (`+changes+`) ch
			JOIN pg_attribute a ON a.attrelid = $4 AND a.attnum > 0 AND NOT a.attisdropped AND a.attgenerated = '' AND a.attname <> ALL (`+t.withheld+`)
			WHERE NOT CASE ch.operation WHEN 'DELETE' THEN ch.before ELSE ch.after END ? a.attname)`, t.schema, t.table, t.from, t.oid).Scan(&partial)
	return partial, err
}

// comparedRows is up to how many rows are compared one by one.
const comparedRows = 10_000

// compareNow returns in what the past as of now is not the table, in words
// without values. If somebody writes meanwhile, it says nothing.
func (a *Audited) compareNow(ctx context.Context, conn *pgx.Conn, t trackedTable) ([]string, error) {
	before, n, err := t.rows(ctx, conn)
	if err != nil {
		return nil, err
	}
	past := make(map[string]int)
	var m int64
	for row, err := range a.Client.Now().Table(t.name).All(ctx) {
		if err != nil {
			return nil, err
		}
		if m++; before != nil {
			past[rowText(row.FieldDescriptions(), row.RawValues())]++
		}
	}
	after, still, err := t.rows(ctx, conn)
	if err != nil || still != n || !maps.Equal(before, after) {
		return nil, err
	}
	var problems []string
	if m != n {
		problems = append(problems, fmt.Sprintf("as of now it has %d rows, the table %d", m, n))
	}
	for row, n := range before {
		if past[row] != n {
			problems = append(problems, "a row that is there is not so as of now")
			break
		}
	}
	return problems, nil
}

// rows returns how often the table has which row, and how many there are. Of many
// only the number is returned.
func (t trackedTable) rows(ctx context.Context, conn *pgx.Conn) (counts map[string]int, n int64, err error) {
	if err := conn.QueryRow(ctx, "SELECT count(*) FROM "+t.name).Scan(&n); err != nil || n > comparedRows {
		return nil, n, err
	}
	if _, err := conn.Exec(ctx, "SET timezone = 'UTC'; SET datestyle = 'ISO'; SET intervalstyle = 'postgres'; SET extra_float_digits = 3; SET bytea_output = 'hex'"); err != nil {
		return nil, 0, err
	}
	rows, err := conn.Query(ctx, "SELECT "+strings.Join(t.all, ", ")+" FROM "+t.name, pgx.QueryExecModeExec, pgx.QueryResultFormats{pgx.TextFormatCode})
	if err != nil {
		return nil, 0, err
	}
	defer rows.Close()
	counts = make(map[string]int)
	for rows.Next() {
		counts[rowText(rows.FieldDescriptions(), rows.RawValues())]++
	}
	return counts, n, rows.Err()
}

// rowText is a row as one string. Of json, history keeps what it means, not its
// blanks and the order of its members.
func rowText(fields []pgconn.FieldDescription, values [][]byte) string {
	var b strings.Builder
	for i, v := range values {
		if fields[i].DataTypeOID == pgtype.JSONOID && v != nil {
			decoder := json.NewDecoder(bytes.NewReader(v))
			decoder.UseNumber()
			var document any
			if decoder.Decode(&document) == nil {
				v, _ = json.Marshal(document)
			}
		}
		fmt.Fprintf(&b, "%t%q,", v == nil, v)
	}
	return b.String()
}
