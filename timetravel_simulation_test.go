package audit_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/hindsight-go/audit"
	"github.com/hindsight-go/audit/audittest"
	"github.com/hindsight-go/audit/internal/faulttest"
)

// The simulation does random things to tables of odd shapes and keeps every
// version of them, as the database itself told it right after each commit.
// AUDIT_TEST_PAST_SEED repeats a run, AUDIT_TEST_PAST_STEPS makes it longer.
const (
	pastSeedEnv  = "AUDIT_TEST_PAST_SEED"
	pastStepsEnv = "AUDIT_TEST_PAST_STEPS"
)

// simTable is a table of the simulation.
type simTable struct {
	name    string // quoted
	columns []simColumn
	key     []string // quoted; nil where there is none
	// fixed reports whether its columns are not to be altered.
	fixed   bool
	noTrunc bool
}

// simColumn is a column with the SQL of values to choose from.
type simColumn struct {
	name   string // quoted
	typ    string
	values []string
}

var (
	texts = []string{`'a'`, `'b b'`, `''`, `'["x"]'`, `'tab	and
line'`, `'quote''s "here" \ back'`, `'ünïcödé 🐘'`, `'null'`, `NULL`, `repeat('long', 900)`, `'{}'`}
	numbers = []string{"0", "1", "-5", "2147483647", "NULL", "7"}
)

func simTables() []*simTable {
	return []*simTable{
		{name: `plain`, key: []string{`id`}, columns: []simColumn{
			{`id`, `int`, []string{"1", "2", "3", "4", "5", "6"}}, {`task`, `text`, texts}, {`n`, `bigint`, numbers},
		}},
		{name: `"Odd Name"`, key: []string{`"Key Two"`, `"select"`}, columns: []simColumn{
			{`"select"`, `int`, []string{"1", "2", "3"}},
			{`"Key Two"`, `text`, []string{`'a'`, `'["a","b"]'`, `'it''s'`, `'"'`, `''`, `'ß, \'`, `'new
line'`}},
			{`"Wert"`, `numeric`, []string{"1.50", "1.5", "'NaN'", "NULL", "12345678901234567890.123456789"}},
		}},
		{name: `typed`, key: []string{`k`}, columns: []simColumn{
			{`k`, `uuid`, []string{`'00000000-0000-0000-0000-000000000001'`, `'00000000-0000-0000-0000-000000000002'`, `'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11'`}},
			{`j`, `json`, []string{`'{"b" : 1,  "a": [1, 2.50]}'`, `'null'`, `NULL`, `'"text"'`, `'[]'`, `' {"a":1, "a":2}'`}},
			{`jb`, `jsonb`, []string{`'{"b": 1, "a": [1, 2.50, null]}'`, `NULL`, `'"text"'`, `'12345678901234567890.10'`}},
			{`arr`, `text[]`, []string{`'{}'`, `'{a,"b c",NULL,"NULL"}'`, `NULL`, `'{{a,b},{c,d}}'`, `'[2:3]={x,y}'`, `'{true,1,"",null}'`, `'{"\"q\"","\\"}'`}},
			{`nums`, `numeric(8,2)[]`, []string{`'{1.10,2}'`, `NULL`, `'{}'`}},
			{`b`, `bytea`, []string{`'\x'`, `'\x00ff10'`, `NULL`}},
			{`iv`, `interval`, []string{`'1 mon 2 days 03:04:05.678'`, `'-1 day'`, `NULL`}},
			{`at`, `timestamptz`, []string{`'2024-02-29 12:34:56.789012+03'`, `'infinity'`, `'0044-03-15 BC'`, `NULL`}},
			{`d`, `date`, []string{`'2024-02-29'`, `'12345-01-01'`, `NULL`}},
			{`f`, `float8`, []string{`0.1`, `'-Infinity'`, `1e300`, `'NaN'`, `NULL`, `1e15`, `123456789012345`, `1e-5`}},
			{`c`, `char(4)`, []string{`'ab'`, `NULL`, `'abcd'`}},
			{`ok`, `boolean`, []string{`true`, `false`, `NULL`}},
			{`r`, `int4range`, []string{`'[1,5)'`, `'empty'`, `NULL`}},
			{`m`, `mood`, []string{`'glad'`, `'Sad One'`, `NULL`}},
			{`x`, `pair`, []string{`'(1,"a,b")'`, `NULL`, `'(,)'`}},
		}},
		{name: `by_time`, key: []string{`at`}, columns: []simColumn{
			{`at`, `timestamptz`, []string{`'2024-01-01 00:00:00+00'`, `'2024-01-01 00:00:00.000001+00'`, `'2024-06-01 12:00:00+02'`, `'infinity'`}},
			{`n`, `int`, numbers},
		}},
		{name: `by_enum`, key: []string{`m`, `n`}, columns: []simColumn{
			{`m`, `mood`, []string{`'glad'`, `'Sad One'`}},
			{`n`, `positive`, []string{"1", "2", "3"}},
			{`v`, `text`, texts},
		}},
		{name: `by_number`, key: []string{`n`}, columns: []simColumn{
			{`n`, `numeric`, []string{"1", "1.0", "1.00", "2.5", "'NaN'", "100"}},
			{`v`, `text`, texts},
		}},
		{name: `by_long`, key: []string{`k`}, columns: []simColumn{
			{`k`, `text`, []string{`repeat('k', 2100)`, `repeat('k', 2100) || 'x'`, `'k'`, `'md5:k'`, `'x' || repeat('y', 999)`, `repeat('y', 1000)`}},
			{`n`, `int`, numbers},
		}},
		{name: `bag`, noTrunc: false, columns: []simColumn{
			{`line`, `text`, []string{`'a'`, `'b'`, `NULL`}}, {`n`, `int`, []string{"1", "NULL"}}, {`j`, `json`, []string{`'{"a": 1}'`, `'{"a":1}'`, `NULL`}}, {`l`, `text[]`, []string{`'{a,b}'`, `NULL`, `'{"a b"}'`}},
		}},
		{name: `part`, key: []string{`k`, `id`}, fixed: true, columns: []simColumn{
			{`k`, `int`, []string{"0", "1", "2"}}, {`id`, `int`, []string{"1", "2", "3"}}, {`v`, `text`, texts},
		}},
		{name: `computed`, key: []string{`id`}, fixed: true, columns: []simColumn{
			{`id`, `int`, []string{"1", "2", "3", "4"}}, {`a`, `int`, []string{"1", "2", "NULL"}}, {`t`, `text`, texts},
		}},
	}
}

const simSetup = `
	CREATE TYPE mood AS ENUM ('glad', 'Sad One'); CREATE DOMAIN positive AS int NOT NULL CHECK (VALUE > 0); CREATE TYPE pair AS (a int, b text);
	CREATE TABLE part (k int, id int, v text, PRIMARY KEY (k, id)) PARTITION BY LIST (k);
	CREATE TABLE part_0 PARTITION OF part FOR VALUES IN (0);
	CREATE TABLE part_1 (v text, id int NOT NULL, gone int, k int NOT NULL);
	ALTER TABLE part_1 DROP COLUMN gone; ALTER TABLE part ATTACH PARTITION part_1 FOR VALUES IN (1);
	CREATE TABLE part_2 PARTITION OF part DEFAULT;
	CREATE TABLE computed (id int PRIMARY KEY, a int, doubled int GENERATED ALWAYS AS (a * 2) STORED, t text, size int GENERATED ALWAYS AS (length(t)) STORED);`

// simVersion is the state of all tables right behind a commit.
type simVersion struct {
	point  audit.Position
	tables map[string]simState
}

type simState struct {
	columns string
	rows    []string // sorted
}

type simulation struct {
	*rand.Rand
	a                 *audittest.Audited
	conn              *pgx.Conn
	tables            []*simTable
	versions          []simVersion
	log               []string
	refused, answered int
	added             int  // columns and names so far
	running           bool // capture runs
}

func newSimulation(t *testing.T) *simulation {
	t.Helper()
	seed := faulttest.EnvNumber(t, pastSeedEnv, 20261121)
	t.Logf("seed: %s=%d", pastSeedEnv, seed)
	s := &simulation{Rand: rand.New(rand.NewPCG(seed, 4)), tables: simTables(), running: true} //nolint:gosec // It is to be repeatable.
	setup := []string{simSetup}
	for _, table := range s.tables {
		if table.fixed {
			continue
		}
		var columns []string
		for _, c := range table.columns {
			columns = append(columns, c.name+" "+c.typ)
		}
		if table.key != nil {
			columns = append(columns, "PRIMARY KEY ("+strings.Join(table.key, ", ")+")")
		}
		setup = append(setup, "CREATE TABLE "+table.name+" ("+strings.Join(columns, ", ")+")")
	}
	// Rows from before tracking.
	for range 12 {
		setup = append(setup, s.insert(s.table()))
	}
	// Not audittest.New: its check takes a table for what it was at the beginning.
	db := audittest.NewDatabase(t)
	for _, sql := range setup {
		db.Exec(t, sql)
	}
	s.a = audittest.Open(t, db, audit.Config{})
	mustStart(t, s.a)
	s.conn = s.a.Connect(t)
	for _, setting := range []string{"timezone = 'UTC'", "extra_float_digits = 3"} {
		if _, err := s.conn.Exec(t.Context(), "SET "+setting); err != nil {
			t.Fatal(err)
		}
	}
	return s
}

func (s *simulation) table() *simTable { return s.tables[s.IntN(len(s.tables))] }

func (s *simulation) one(of []string) string { return of[s.IntN(len(of))] }

func (s *simulation) insert(t *simTable) string {
	var names, values, set []string
	for _, c := range t.columns {
		names = append(names, c.name)
		values = append(values, s.one(c.values))
		set = append(set, c.name+" = excluded."+c.name)
	}
	sql := "INSERT INTO " + t.name + " (" + strings.Join(names, ", ") + ") VALUES (" + strings.Join(values, ", ") + ")"
	switch {
	case t.key == nil:
		return sql
	case s.IntN(2) == 0:
		return sql + " ON CONFLICT DO NOTHING"
	default:
		return sql + " ON CONFLICT (" + strings.Join(t.key, ", ") + ") DO UPDATE SET " + strings.Join(set, ", ")
	}
}

// where is a condition that often holds of few rows.
func (s *simulation) where(t *simTable) string {
	c := t.columns[s.IntN(len(t.columns))]
	if t.key != nil && s.IntN(3) > 0 {
		c = t.columns[0]
	}
	if c.typ == "json" || c.typ == "" {
		return "true"
	}
	return c.name + " IS NOT DISTINCT FROM (" + s.one(c.values) + ")::" + c.typ
}

func (s *simulation) statement(t *simTable) string {
	switch n := s.IntN(20); {
	case n < 6:
		return s.insert(t)
	case n < 12:
		c := t.columns[s.IntN(len(t.columns))]
		return "UPDATE " + t.name + " SET " + c.name + " = " + s.one(c.values) + " WHERE " + s.where(t)
	case n < 13:
		c := t.columns[s.IntN(len(t.columns))]
		return "UPDATE " + t.name + " SET " + c.name + " = " + c.name
	case n < 16:
		return "DELETE FROM " + t.name + " WHERE " + s.where(t)
	case n < 17:
		return "DELETE FROM " + t.name
	case n < 18 && t.name == "plain":
		return s.one([]string{
			"UPDATE plain SET id = id + 100; UPDATE plain SET id = 107 - id WHERE id > 100; UPDATE plain SET id = id - 100 WHERE id > 100",
			"INSERT INTO plain SELECT n, 'bulk' FROM generate_series(50, 120) n ON CONFLICT (id) DO UPDATE SET task = 'again' || plain.task",
			"DELETE FROM plain WHERE id >= 50",
		})
	default:
		return s.insert(t)
	}
}

// ddl alters a table, and returns statements, if the table can be altered.
func (s *simulation) ddl(t *simTable) []string {
	if t.fixed {
		return nil
	}
	isKey := func(c simColumn) bool { return slices.Contains(t.key, c.name) }
	c := &t.columns[s.IntN(len(t.columns))]
	s.added++
	switch s.IntN(6) {
	case 0:
		added := simColumn{fmt.Sprintf("added_%d", s.added), "text", texts}
		t.columns = append(t.columns, added)
		return []string{"ALTER TABLE " + t.name + " ADD COLUMN " + added.name + " text" + s.one([]string{"", " DEFAULT 'by default'", " NOT NULL DEFAULT 'x'"})}
	case 1:
		if isKey(*c) || len(t.columns) < 3 {
			return nil
		}
		name := c.name
		t.columns = slices.DeleteFunc(slices.Clone(t.columns), func(o simColumn) bool { return o.name == name })
		return []string{"ALTER TABLE " + t.name + " DROP COLUMN " + name}
	case 2:
		from, to := c.name, fmt.Sprintf(`"Renamed %d"`, s.added)
		if isKey(*c) {
			t.key = slices.Clone(t.key)
			t.key[slices.Index(t.key, from)] = to
		}
		c.name = to
		return []string{"ALTER TABLE " + t.name + " RENAME COLUMN " + from + " TO " + to}
	case 3:
		from := t.name
		t.name = fmt.Sprintf(`"Table %d"`, s.added)
		return []string{"ALTER TABLE " + from + " RENAME TO " + t.name}
	case 4:
		if c.typ != "int" && c.typ != "text" || c.name == "n" && t.key != nil && isKey(*c) {
			return nil
		}
		to := map[string]string{"int": "bigint", "text": "varchar"}[c.typ]
		c.typ = to
		return []string{"ALTER TABLE " + t.name + " ALTER COLUMN " + c.name + " TYPE " + to}
	default:
		if isKey(*c) || c.typ != "bigint" && c.typ != "int" {
			return nil
		}
		c.typ, c.values = "text", texts
		return []string{"ALTER TABLE " + t.name + " ALTER COLUMN " + c.name + " TYPE text USING 'was ' || " + c.name}
	}
}

// step runs one transaction and keeps what it led to.
func (s *simulation) step(t *testing.T) {
	t.Helper()
	ctx := t.Context()
	var script []string
	var touched []*simTable
	for range 1 + s.IntN(5) {
		table := s.table()
		if s.IntN(4) > 0 && len(touched) > 0 {
			table = touched[0]
		}
		touched = append(touched, table)
		script = append(script, s.statement(table))
	}
	switch s.IntN(16) {
	case 0:
		script = append(script, "TRUNCATE "+touched[0].name, s.insert(touched[0]))
	case 1, 2:
		table := s.table()
		if ddl := s.ddl(table); ddl != nil {
			// A change lets the stream tell of it. The statements of before know the
			// names of before.
			script = append(script, ddl...)
			script = append(script, "DELETE FROM "+table.name+" WHERE false", s.describe(table))
			s.run(t, script, true)
			s.keep(ctx, t)
			// The name that a table has got is known to capture from then on.
			if err := s.a.Client.Refresh(ctx); err != nil && s.running {
				t.Fatal(err)
			}
			return
		}
	}
	s.run(t, script, false)
	s.keep(ctx, t)
}

// describe changes a row for sure, so that the new columns are in the stream.
func (s *simulation) describe(t *simTable) string {
	if t.key == nil {
		return s.insert(t)
	}
	return "WITH gone AS (DELETE FROM " + t.name + " WHERE " + t.key[0] + " = " + s.columnOf(t, t.key[0]).values[0] + ") SELECT;" +
		strings.Split(s.insert(t), " ON CONFLICT")[0] + " ON CONFLICT DO NOTHING; UPDATE " + t.name + " SET " + t.key[0] + " = " + t.key[0]
}

func (s *simulation) columnOf(t *simTable, name string) simColumn {
	return t.columns[slices.IndexFunc(t.columns, func(c simColumn) bool { return c.name == name })]
}

// run runs statements in one transaction, with savepoints around those that may
// fail, and sometimes rolls parts, or everything, back.
func (s *simulation) run(t *testing.T, script []string, must bool) {
	t.Helper()
	ctx := t.Context()
	if !must && s.IntN(10) == 0 {
		script = append(script, "ROLLBACK")
	}
	exec := func(sql string) error {
		_, err := s.conn.PgConn().Exec(ctx, sql).ReadAll()
		return err
	}
	if err := exec("BEGIN"); err != nil {
		t.Fatal(err)
	}
	for i, sql := range script {
		s.log = append(s.log, fmt.Sprintf("%d: %.300s", len(s.versions), sql))
		if sql == "ROLLBACK" {
			break
		}
		undo := !must && s.IntN(8) == 0
		err := exec("SAVEPOINT s")
		if err == nil {
			err = exec(sql)
		}
		switch {
		case err != nil && strings.HasPrefix(sql, "ALTER"):
			t.Fatalf("%s: %v", sql, err)
		case err != nil, undo && i > 0:
			s.log = append(s.log, fmt.Sprint("  undone ", err))
			err = exec("ROLLBACK TO s")
		}
		if err == nil {
			err = exec("RELEASE s")
		}
		if err != nil {
			t.Fatalf("%s: %v", sql, err)
		}
	}
	end := "COMMIT"
	if script[len(script)-1] == "ROLLBACK" {
		end = "ROLLBACK"
	}
	if err := exec(end); err != nil {
		t.Fatal(err)
	}
}

// keep reads all tables as they are, and where in the WAL that is. Nobody else
// writes to them.
func (s *simulation) keep(ctx context.Context, t *testing.T) {
	t.Helper()
	v := simVersion{tables: make(map[string]simState)}
	err := pgx.BeginTxFunc(ctx, s.conn, pgx.TxOptions{IsoLevel: pgx.RepeatableRead}, func(tx pgx.Tx) error {
		for _, table := range s.tables {
			state, err := readState(ctx, tx, table.name)
			if err != nil {
				return err
			}
			v.tables[table.name] = state
		}
		var text string
		err := tx.QueryRow(ctx, "SELECT pg_current_wal_insert_lsn()::text").Scan(&text)
		v.point = must(audit.ParsePosition(text))
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	s.versions = append(s.versions, v)
}

func readState(ctx context.Context, tx pgx.Tx, table string) (simState, error) {
	rows, err := tx.Query(ctx, "SELECT * FROM "+table, pgx.QueryExecModeExec, pgx.QueryResultFormats{pgx.TextFormatCode})
	if err != nil {
		return simState{}, err
	}
	defer rows.Close()
	state := simState{rows: []string{}}
	var isJSON []bool
	for _, f := range rows.FieldDescriptions() {
		state.columns += f.Name + "|"
		isJSON = append(isJSON, f.DataTypeOID == 114)
	}
	for rows.Next() {
		state.rows = append(state.rows, simText(rows.RawValues(), isJSON))
	}
	slices.Sort(state.rows)
	return state, rows.Err()
}

// simText is a row as one string. Of json, history keeps what it means, not its
// blanks.
func simText(values [][]byte, isJSON []bool) string {
	values = slices.Clone(values)
	for i, v := range values {
		if isJSON[i] && v != nil {
			var value any
			decoder := json.NewDecoder(bytes.NewReader(v))
			decoder.UseNumber()
			if decoder.Decode(&value) == nil {
				values[i], _ = json.Marshal(value)
			}
		}
	}
	return rowText(values)
}

func TestThePastAgainstAModelOfEveryVersion(t *testing.T) {
	t.Parallel()
	s := newSimulation(t)
	steps := int(faulttest.EnvNumber(t, pastStepsEnv, 60))
	for i := range steps {
		s.step(t)
		if i%8 == 7 {
			s.ask(t)
		}
		if i%37 == 36 {
			s.a.Stop(t)
			s.running = false
			s.step(t)
			if err := s.a.Client.Start(context.WithoutCancel(t.Context())); err != nil {
				t.Fatal(err)
			}
			s.running = true
		}
		if t.Failed() {
			t.Logf("what happened:\n%s", strings.Join(s.log, "\n"))
			t.Logf("versions:\n%s", strings.Join(audittest.Value[[]string](t, s.a.Database, `
				SELECT array_agg(position || ' ' || "table" || ' ' || relation_id || ' ' || array(SELECT c ->> 'name' FROM jsonb_array_elements(columns) c)::text ORDER BY position) FROM audit.relations`), "\n"))
			t.Logf("coverage:\n%s", strings.Join(audittest.Value[[]string](t, s.a.Database, `
				SELECT array_agg(from_position || ' to ' || coalesce(until_position::text, '') || ' ' || "table" || ' ' || relation_id ORDER BY from_position) FROM audit.coverage`), "\n"))
			for i, v := range s.versions {
				t.Logf("%d: %s", i, v.point.LSN)
			}
			t.Logf("changes:\n%s", strings.Join(audittest.Value[[]string](t, s.a.Database, `
				SELECT array_agg(format('%s %s %s %s %s %s %s %s', position, sequence, "table", left(primary_key, 50), operation, left(before::text, 100), left(after::text, 100), defect) ORDER BY position, sequence) FROM audit.changes`), "\n"))
			return
		}
	}
	s.step(t)
	now := s.versions[len(s.versions)-1]
	for name, want := range now.tables {
		got, err := past(t.Context(), s.a.Client.Now().Table(name))
		if err != nil {
			t.Errorf("now, %s: %v", name, err)
		}
		s.compare(t, "now, "+name, want, got, err)
	}
	t.Logf("%d answered, %d refused", s.answered, s.refused)
	if s.refused > s.answered*2 {
		t.Error("most was refused, so little was tested")
	}
}
