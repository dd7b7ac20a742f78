package audit_test

import (
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/hindsight-go/audit"
	"github.com/hindsight-go/audit/audittest"
	"github.com/hindsight-go/audit/internal/faulttest"
)

// AUDIT_TEST_DDL_SECONDS sets for how long the simulation of DDL goes on,
// AUDIT_TEST_DDL_SEED repeats a run from the story that it names.
const (
	ddlSecondsEnv = "AUDIT_TEST_DDL_SECONDS"
	ddlSeedEnv    = "AUDIT_TEST_DDL_SEED"
)

// Random tables are altered in every way between random changes of their rows, with
// capture at a random distance behind, with and without event triggers: whatever is
// asked of any moment is what a copy of then held, or is refused.
func TestDDLSimulation(t *testing.T) {
	t.Parallel()
	seed := faulttest.EnvNumber(t, ddlSeedEnv, 20261126)
	var told verdict
	stories := 0
	for end := time.Now().Add(time.Duration(faulttest.EnvNumber(t, ddlSecondsEnv, 5)) * time.Second); stories == 0 || time.Now().Before(end); stories++ {
		if !t.Run(fmt.Sprintf("%s=%d", ddlSeedEnv, seed), func(t *testing.T) { newDDLSimulation(t, seed).run(t, &told) }) {
			break
		}
		seed++
	}
	t.Logf("%d stories: %d answers are equal, %d are refused", stories, told.equal, told.refused)
}

type ddlSimulation struct {
	*rand.Rand
	a      *audittest.Audited
	conn   *pgx.Conn
	traced bool
	copies []copied
	done   []string // what the server took
	names  int
}

func newDDLSimulation(t *testing.T, seed uint64) *ddlSimulation {
	t.Helper()
	s := &ddlSimulation{Rand: rand.New(rand.NewPCG(seed, 11))} //nolint:gosec // It is to be repeatable.
	s.traced = s.IntN(2) == 0
	db := audittest.NewDatabase(t)
	s.conn = db.Connect(t)
	for _, sql := range []string{
		"CREATE SCHEMA other", "CREATE TYPE mood AS ENUM ('sad', 'ok', 'glad')", "CREATE TYPE pair AS (x int, y text)", "CREATE DOMAIN small AS int CHECK (VALUE < 100)",
		"CREATE TABLE a (id int PRIMARY KEY, v int, w text)",
		"CREATE TABLE b (x int, y int, n numeric, m mood, PRIMARY KEY (x, y))",
		"CREATE TABLE c (v int, w text, p pair)",
		"CREATE TABLE g (id int PRIMARY KEY, v int, d small, twice int GENERATED ALWAYS AS (v * 2) STORED)",
		"CREATE TABLE t (id int, part int, v text, PRIMARY KEY (id, part)) PARTITION BY LIST (part)",
		"CREATE TABLE t_1 PARTITION OF t FOR VALUES IN (1)", "CREATE TABLE t_2 (v text, part int NOT NULL, id int NOT NULL)", "ALTER TABLE t ATTACH PARTITION t_2 FOR VALUES IN (2)",
	} {
		db.Exec(t, sql)
	}
	for range 15 {
		s.try(t, s.write(t))
	}
	s.a = audittest.Open(t, db, audit.Config{NoEventTrigger: !s.traced, RefreshInterval: -1})
	mustStart(t, s.a)
	t.Cleanup(func() { s.a.Stop(t) })
	return s
}

func (s *ddlSimulation) run(t *testing.T, told *verdict) {
	t.Helper()
	defer func() {
		if t.Failed() {
			t.Logf("traced: %t\n%s", s.traced, strings.Join(s.done, ";\n"))
		}
	}()
	s.copy(t)
	for range 3 + s.IntN(3) {
		if s.IntN(3) == 0 {
			s.done = append(s.done, "-- capture is behind")
			restart(t, s.a, func() { s.act(t, false) })
			s.done = append(s.done, "-- capture goes on")
		} else {
			s.act(t, true)
		}
	}
	s.a.Sync(t)
	s.refresh(t)
	s.copy(t) // the last one has the tables, and their keys, as they are when they are asked for
	s.a.Sync(t)
	for _, c := range s.copies {
		c.compare(t, told)
	}
	compareHistories(t, s.copies, told)
	for range 3 {
		i, j := s.IntN(len(s.copies)), s.IntN(len(s.copies))
		if i != j {
			s.copies[min(i, j)].compareDifference(t, s.copies[max(i, j)], told)
		}
	}
	s.copies[s.IntN(len(s.copies))].compareFork(t, s.conn, told)
}

func (s *ddlSimulation) copy(t *testing.T) {
	t.Helper()
	s.done = append(s.done, fmt.Sprintf("-- copy %d", len(s.copies)))
	s.copies = append(s.copies, copyTables(t, s.a, fmt.Sprintf("copy %d", len(s.copies))))
}

// refresh lets tables join; some can never be tracked, and are pending then.
func (s *ddlSimulation) refresh(t *testing.T) {
	t.Helper()
	s.done = append(s.done, "-- refresh")
	if err := s.a.Client.Refresh(t.Context()); err != nil {
		t.Errorf("refresh: %v", err)
	}
}

// act does a few transactions, and copies the tables now and then.
func (s *ddlSimulation) act(t *testing.T, captured bool) {
	t.Helper()
	for range 2 + s.IntN(4) {
		var parts []string
		for range 1 + s.IntN(3) {
			if s.IntN(2) == 0 {
				parts = append(parts, s.write(t))
			} else {
				parts = append(parts, s.alter(t))
			}
			if s.IntN(3) > 0 { // each by itself
				s.try(t, parts...)
				parts = nil
			}
		}
		s.try(t, parts...)
		if captured && s.IntN(3) == 0 {
			s.refresh(t)
		}
		if s.IntN(2) == 0 {
			s.copy(t)
		}
	}
}

// try runs statements in one transaction. The server may refuse them, as it would the
// host's, but not because of us.
func (s *ddlSimulation) try(t *testing.T, statements ...string) {
	t.Helper()
	sql := strings.Join(slices.DeleteFunc(statements, func(s string) bool { return s == "" }), "; ")
	if sql == "" {
		return
	}
	_, err := s.conn.PgConn().Exec(t.Context(), sql).ReadAll()
	var refusal *pgconn.PgError
	switch {
	case err == nil:
		s.done = append(s.done, sql)
	case errors.As(err, &refusal) && strings.Contains(refusal.Error(), "replica identity") && strings.Contains(strings.Join(s.done, ";"), "REPLICA IDENTITY DEFAULT"):
		// Which was asked for.
	case !errors.As(err, &refusal) || strings.Contains(refusal.Error(), "audit") || strings.Contains(refusal.Error(), "replica identity"):
		t.Errorf("%s: %v", sql, err)
	}
}

// pick returns one of the first column of a query, or an empty text.
func (s *ddlSimulation) pick(t *testing.T, sql string, args ...any) string {
	t.Helper()
	rows, err := s.conn.Query(t.Context(), sql+" ORDER BY 1", args...)
	if err != nil {
		t.Fatal(err)
	}
	all, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		t.Fatal(err)
	}
	if len(all) == 0 {
		return ""
	}
	return all[s.IntN(len(all))]
}

const simulatedTables = `SELECT format('%I.%I', n.nspname, c.relname) FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE n.nspname IN ('public', 'other') AND c.relkind `

func (s *ddlSimulation) table(t *testing.T) string {
	t.Helper()
	return s.pick(t, simulatedTables+"IN ('r', 'p')")
}

func (s *ddlSimulation) column(t *testing.T, table string) string {
	t.Helper()
	return s.pick(t, "SELECT attname::text FROM pg_attribute WHERE attrelid = $1::text::regclass AND attnum > 0 AND NOT attisdropped", table)
}

func (s *ddlSimulation) typeOf(t *testing.T, table, column string) string {
	t.Helper()
	return s.pick(t, "SELECT t.typname::text FROM pg_attribute a JOIN pg_type t ON t.oid = a.atttypid WHERE a.attrelid = $1::text::regclass AND a.attname = $2", table, column)
}

// value is SQL for a value of a type.
func (s *ddlSimulation) value(t *testing.T, typ string) string {
	t.Helper()
	if s.IntN(8) == 0 {
		return "NULL"
	}
	switch typ {
	case "mood":
		return "'" + s.pick(t, "SELECT enumlabel::text FROM pg_enum WHERE enumtypid = 'mood'::regtype") + "'"
	case "pair":
		var fields []string
		for range s.attributes(t) {
			fields = append(fields, fmt.Sprint(s.IntN(5)))
		}
		return "'(" + strings.Join(fields, ",") + ")'"
	case "numeric":
		return []string{"1", "1.0", "1.50", "2.5", "-3"}[s.IntN(5)]
	case "text", "varchar":
		return []string{"'a'", "'b'", "''", "'7'", "repeat('long', 700)"}[s.IntN(5)]
	case "bool":
		return []string{"true", "false"}[s.IntN(2)]
	default:
		return fmt.Sprint(1 + s.IntN(6))
	}
}

func (s *ddlSimulation) attributes(t *testing.T) (n int) {
	t.Helper()
	if err := s.conn.QueryRow(t.Context(), "SELECT count(*) FROM pg_attribute a JOIN pg_type t ON t.typrelid = a.attrelid WHERE t.oid = 'pair'::regtype AND a.attnum > 0 AND NOT a.attisdropped").Scan(&n); err != nil {
		t.Fatal(err)
	}
	return n
}

// write is a change of rows.
func (s *ddlSimulation) write(t *testing.T) string {
	t.Helper()
	table := s.table(t)
	if table == "" {
		return ""
	}
	where := []string{"", fmt.Sprintf(" WHERE ctid IN (SELECT ctid FROM %s ORDER BY 1 LIMIT %d)", table, 1+s.IntN(2))}[s.IntN(2)]
	switch s.IntN(10) {
	case 0:
		return "DELETE FROM " + table + fmt.Sprintf(" WHERE ctid IN (SELECT ctid FROM %s ORDER BY 1 LIMIT 1)", table)
	case 1:
		if s.IntN(4) == 0 {
			return "TRUNCATE " + table
		}
		fallthrough
	case 2, 3, 4, 5:
		rows, err := s.conn.Query(t.Context(), "SELECT attname::text FROM pg_attribute WHERE attrelid = $1::text::regclass AND attnum > 0 AND NOT attisdropped AND attgenerated = '' ORDER BY attnum", table)
		if err != nil {
			t.Fatal(err)
		}
		columns, err := pgx.CollectRows(rows, pgx.RowTo[string])
		if err != nil || len(columns) == 0 {
			return ""
		}
		var values []string
		for _, c := range columns {
			values = append(values, s.value(t, s.typeOf(t, table, c)))
		}
		return fmt.Sprintf("INSERT INTO %s (%s) VALUES (%s)", table, strings.Join(columns, ", "), strings.Join(values, ", "))
	default:
		column := s.column(t, table)
		if column == "" {
			return ""
		}
		return fmt.Sprintf("UPDATE %s SET %s = %s%s", table, column, s.value(t, s.typeOf(t, table, column)), where)
	}
}

// alter is a statement that alters a table or a type.
func (s *ddlSimulation) alter(t *testing.T) string {
	t.Helper()
	table := s.table(t)
	if table == "" {
		return ""
	}
	column, other := s.column(t, table), s.column(t, table)
	alter, schema := "ALTER TABLE "+table+" ", strings.Split(table, ".")[0]
	constraint := s.pick(t, "SELECT conname::text FROM pg_constraint WHERE conrelid = $1::text::regclass AND contype = 'p'", table)
	columnName := []string{"v", "w", "n1", "n2", "m", "id"}[s.IntN(6)]
	tableName := []string{"a", "b", "c", "new_1", "new_2"}[s.IntN(5)]
	typ := []string{"int", "bigint", "text", "numeric", "varchar(5000)", "bool", "mood", "pair", "small"}[s.IntN(9)]
	s.names++
	statements := []func() string{
		func() string {
			return alter + "ADD " + columnName + " " + typ + []string{"", " DEFAULT " + s.value(t, strings.TrimSuffix(typ, "(5000)"))}[s.IntN(2)]
		},
		func() string {
			return alter + "ADD " + columnName + " int GENERATED ALWAYS AS (length('" + column + "') + 1) STORED"
		},
		func() string { return alter + "DROP " + column },
		func() string { return alter + "RENAME " + column + " TO " + columnName },
		func() string {
			return fmt.Sprintf("%[1]sRENAME %[2]s TO swap; %[1]sRENAME %[3]s TO %[2]s; %[1]sRENAME swap TO %[3]s", alter, column, other)
		},
		func() string { return fmt.Sprintf("%[1]sDROP %[2]s; %[1]sADD %[2]s %[3]s", alter, column, typ) },
		func() string {
			return fmt.Sprintf("%sALTER %s TYPE %s USING %s::text::%s", alter, column, typ, column, strings.Split(typ, "(")[0])
		},
		func() string {
			is := s.typeOf(t, table, column)
			if !s.traced { // nobody would see that values are others
				return fmt.Sprintf("%sALTER %s TYPE %s", alter, column, is)
			}
			return fmt.Sprintf("%[1]sALTER %[2]s TYPE %[3]s USING CASE WHEN %[2]s IS NULL THEN %[4]s ELSE NULL END", alter, column, is, s.value(t, is))
		},
		func() string {
			return fmt.Sprintf("%sALTER %s SET DEFAULT %s", alter, column, s.value(t, s.typeOf(t, table, column)))
		},
		func() string { return alter + "DROP CONSTRAINT " + constraint },
		func() string { return alter + "ADD PRIMARY KEY (" + column + ")" },
		func() string {
			return alter + "DROP CONSTRAINT " + constraint + ", ADD PRIMARY KEY (" + other + ", " + column + ")"
		},
		func() string {
			return alter + "DROP CONSTRAINT " + constraint + ", ADD PRIMARY KEY (" + other + ")"
		},
		func() string { return alter + "RENAME TO " + tableName },
		func() string {
			second := s.table(t)
			_, name, _ := strings.Cut(table, ".")
			_, secondName, _ := strings.Cut(second, ".")
			return fmt.Sprintf("ALTER TABLE %s RENAME TO swap; ALTER TABLE %s RENAME TO %s; ALTER TABLE %s.swap RENAME TO %s", table, second, name, schema, secondName)
		},
		func() string { return alter + "SET SCHEMA " + []string{"other", "public"}[s.IntN(2)] },
		func() string {
			return "DROP TABLE " + table + "; CREATE TABLE " + table + " (id int PRIMARY KEY, " + columnName + " " + typ + ")"
		},
		func() string {
			return "CREATE TABLE " + tableName + " (" + columnName + " " + typ + ", id int" + []string{"", " PRIMARY KEY"}[s.IntN(2)] + ")"
		},
		func() string { return "DROP TABLE " + table },
		func() string { return alter + "INHERIT " + s.table(t) },
		func() string {
			parent := s.table(t)
			return fmt.Sprintf("CREATE TABLE %s.child_%d (extra int) INHERITS (%s)", schema, s.names, parent)
		},
		func() string {
			parent := s.pick(t, "SELECT inhparent::regclass::text FROM pg_inherits WHERE inhrelid = $1::text::regclass", table)
			return alter + "NO INHERIT " + parent
		},
		func() string {
			leaf := s.pick(t, simulatedTables+"= 'r' AND c.relispartition")
			root := s.pick(t, "SELECT inhparent::regclass::text FROM pg_inherits WHERE inhrelid = to_regclass(nullif($1, ''))", leaf)
			return []string{"ALTER TABLE " + root + " DETACH PARTITION " + leaf, "DROP TABLE " + leaf, "TRUNCATE " + leaf}[s.IntN(3)]
		},
		func() string {
			root := s.pick(t, simulatedTables+"= 'p'")
			return fmt.Sprintf("CREATE TABLE t_new_%d PARTITION OF %s FOR VALUES IN (%d)", s.names, root, 1+s.IntN(6))
		},
		func() string {
			root := s.pick(t, simulatedTables+"= 'p'")
			return fmt.Sprintf("ALTER TABLE %s ATTACH PARTITION %s FOR VALUES IN (%d)", root, table, 1+s.IntN(6))
		},
		func() string { return fmt.Sprintf("ALTER TYPE mood ADD VALUE 'mood_%d'", s.names) },
		func() string {
			label := s.pick(t, "SELECT enumlabel::text FROM pg_enum WHERE enumtypid = 'mood'::regtype")
			return fmt.Sprintf("ALTER TYPE mood RENAME VALUE '%s' TO 'mood_%d'", label, s.names)
		},
		func() string { return fmt.Sprintf("ALTER TYPE pair ADD ATTRIBUTE x%d int", s.names) },
		func() string {
			attribute := s.pick(t, "SELECT attname::text FROM pg_attribute WHERE attrelid = 'pair'::regclass AND attnum > 0 AND NOT attisdropped")
			return []string{"ALTER TYPE pair DROP ATTRIBUTE " + attribute, fmt.Sprintf("ALTER TYPE pair RENAME ATTRIBUTE %s TO x%d", attribute, s.names)}[s.IntN(2)]
		},
		func() string {
			return []string{"ALTER DOMAIN small ADD CHECK (VALUE > 1) NOT VALID", "ALTER DOMAIN small SET NOT NULL", "ALTER DOMAIN small DROP NOT NULL"}[s.IntN(3)]
		},
		func() string { return alter + "ALTER " + column + " DROP EXPRESSION" },
		func() string { return alter + "ALTER " + column + " SET EXPRESSION AS (7)" },
		func() string { return alter + "REPLICA IDENTITY DEFAULT" },
	}
	return statements[s.IntN(len(statements))]()
}

// compareDifference looks whether the rows that differ between two moments are those
// that the copies have differently. A label that was renamed is none of a row.
func (c copied) compareDifference(t *testing.T, to copied, told *verdict) {
	t.Helper()
	for _, name := range slices.Sorted(maps.Keys(c.tables)) {
		was, is := c.tables[name], to.tables[name]
		if !slices.Equal(was.columns, is.columns) || !slices.Equal(was.key, is.key) || len(was.key) == 0 || was.made {
			continue
		}
		want := 0
		for key, row := range was.byKey {
			if is.byKey[key] != row {
				want++
			}
		}
		for key := range is.byKey {
			if _, ok := was.byKey[key]; !ok {
				want++
			}
		}
		got, err := c.client.DiffBetween(c.point, to.point).Tables(name).List(t.Context())
		switch {
		case refused(err):
			told.refused++
		case err != nil:
			t.Errorf("difference of %s from %q to %q: %v", name, c.step, to.step, err)
		case len(got) != want:
			t.Errorf("difference of %s from %q to %q: %d rows, want %d: %v\nfrom %v\nto %v", name, c.step, to.step, len(got), want, got, was.rows, is.rows)
		default:
			told.equal++
		}
	}
}

// compareFork makes tables of the past.
func (c copied) compareFork(t *testing.T, conn *pgx.Conn, told *verdict) {
	t.Helper()
	for i, name := range slices.Sorted(maps.Keys(c.tables)) {
		schema := fmt.Sprintf("audit_fork_%d", i)
		_, err := c.point.Into(schema).Tables(name).Run(t.Context())
		if refused(err) {
			told.refused++
			continue
		}
		if err != nil {
			t.Errorf("fork of %s after %q: %v", name, c.step, err)
			continue
		}
		_, table, _ := strings.Cut(name, ".")
		rows, err := conn.Query(t.Context(), "SELECT * FROM "+schema+"."+table, pgx.QueryExecModeExec, pgx.QueryResultFormats{pgx.TextFormatCode})
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for rows.Next() {
			got = append(got, rowText(rows.RawValues()))
		}
		if err := rows.Err(); err != nil {
			t.Fatal(err)
		}
		slices.Sort(got)
		if !slices.Equal(got, c.tables[name].rows) {
			t.Errorf("fork of %s after %q: %v, want %v", name, c.step, got, c.tables[name].rows)
		}
		told.equal++
	}
}
