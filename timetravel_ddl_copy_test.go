package audit_test

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/hindsight-go/audit"
	"github.com/hindsight-go/audit/audittest"
	"github.com/hindsight-go/audit/capture"
)

// copied is what all tables held at a moment, read from the tables themselves.
type copied struct {
	step     string
	client   *audit.Client
	position audit.Position
	point    audit.Point
	tables   map[string]copiedTable // by schema.table
}

type copiedTable struct {
	columns []string
	key     []int // where the columns of the primary key stand
	rows    []string
	// made reports whether there are columns of types that somebody made, and may alter.
	made  bool
	byKey map[string]string
	keys  map[string][]any
	cells map[string][]string // every value of the rows in byKey
	// structure is what every statement that alters the table or writes it anew changes.
	structure string
}

// copyTables reads all tables of the application.
func copyTables(t *testing.T, a *audittest.Audited, step string) copied {
	t.Helper()
	ctx := t.Context()
	conn := a.Connect(t)
	if _, err := conn.Exec(ctx, "SET timezone = 'UTC'; SET datestyle = 'ISO'; SET intervalstyle = 'postgres'; SET bytea_output = 'hex'; SET extra_float_digits = 1"); err != nil {
		t.Fatal(err) // the past is told by these, whatever the database has
	}
	c := copied{step: step, client: a.Client, tables: make(map[string]copiedTable)}
	rows, err := conn.Query(ctx, `
		SELECT format('%I.%I', n.nspname, c.relname), (
			SELECT CASE WHEN `+capture.KeyIsSent+` THEN coalesce(array_agg(a.attname::text ORDER BY k.n), '{}') ELSE '{}' END
			FROM pg_index i, unnest((i.indkey::int2[])[0:i.indnkeyatts - 1]) WITH ORDINALITY k (attnum, n)
			JOIN pg_attribute a ON a.attnum = k.attnum
			WHERE i.indrelid = c.oid AND i.indisprimary AND a.attrelid = c.oid), (
			SELECT format('%s %s %s', c.oid, c.relfilenode, array_agg((a.attnum, a.attname, a.atttypid, a.atttypmod) ORDER BY a.attnum))
			FROM pg_attribute a WHERE a.attrelid = c.oid AND a.attnum > 0)
		FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
		WHERE c.relkind IN ('r', 'p') AND NOT c.relispartition AND n.nspname NOT LIKE 'pg\_%' AND n.nspname NOT LIKE 'audit%' AND n.nspname <> 'information_schema'`)
	if err != nil {
		t.Fatal(err)
	}
	type named struct {
		Name      string
		Key       []string
		Structure string
	}
	tables, err := pgx.CollectRows(rows, pgx.RowToStructByPos[named])
	if err != nil {
		t.Fatal(err)
	}
	for _, table := range tables {
		rows, err := conn.Query(ctx, "SELECT * FROM "+table.Name, pgx.QueryExecModeExec, pgx.QueryResultFormats{pgx.TextFormatCode})
		if err != nil {
			t.Fatal(err)
		}
		held := copiedTable{byKey: make(map[string]string), keys: make(map[string][]any), cells: make(map[string][]string), structure: fmt.Sprint(table.Structure, table.Key)}
		for _, f := range rows.FieldDescriptions() {
			held.columns = append(held.columns, f.Name)
			held.made = held.made || f.DataTypeOID >= 16384
		}
		for _, name := range table.Key {
			held.key = append(held.key, slices.Index(held.columns, name))
		}
		for rows.Next() {
			values := rows.RawValues()
			text := rowText(values)
			held.rows = append(held.rows, text)
			if len(held.key) == 0 {
				continue
			}
			var key []any
			for _, at := range held.key {
				key = append(key, string(values[at]))
			}
			held.byKey[fmt.Sprint(key)], held.keys[fmt.Sprint(key)] = text, key
			for _, v := range values {
				held.cells[fmt.Sprint(key)] = append(held.cells[fmt.Sprint(key)], rowText([][]byte{v}))
			}
		}
		if err := rows.Err(); err != nil {
			t.Fatal(err)
		}
		slices.Sort(held.rows)
		c.tables[table.Name] = held
	}
	c.position = must(audit.ParsePosition(audittest.Value[string](t, a.Database, "SELECT pg_current_wal_insert_lsn()::text")))
	c.point = a.Client.AtPosition(c.position)
	return c
}

// refused reports whether an error says that the past cannot be told.
func refused(err error) bool {
	var history *audit.HistoryError
	var view *audit.ViewError
	return errors.As(err, &history) || errors.As(err, &view)
}

// verdict counts the answers of one comparison, and keeps why the last one was refused.
type verdict struct {
	equal, refused int
	why            error
}

// gone reports whether a table is not there any more.
func (c copied) gone(t *testing.T, name string) bool {
	t.Helper()
	_, err := c.client.Now().Table(name).Count(t.Context())
	return errors.Is(err, audit.ErrNotTracked)
}

// compare asks for every table of a copy in every way: an answer is the copy, or
// it is refused.
func (c copied) compare(t *testing.T, told *verdict) {
	t.Helper()
	for _, name := range slices.Sorted(maps.Keys(c.tables)) {
		c.compareTable(t, name, told)
	}
}

// askedRows is of how many rows of a table a copy's rows are asked for by their key.
const askedRows = 100

func (c copied) compareTable(t *testing.T, name string, told *verdict) {
	t.Helper()
	want := c.tables[name]
	judge := func(way string, got, want any, err error) {
		t.Helper()
		switch {
		case refused(err):
			told.refused, told.why = told.refused+1, err
			t.Logf("%s of %s after %q is refused: %v", way, name, c.step, err)
		case err != nil:
			t.Errorf("%s of %s after %q: %v", way, name, c.step, err)
		default:
			told.equal++
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("%s of %s after %q (-want +got):\n%s", way, name, c.step, diff)
			}
		}
	}
	ctx := t.Context()
	table := c.point.Table(name)
	for way, table := range map[string]audit.PastTable{
		"Table": table, "Table by scanning": audit.Searching(c.point, true).Table(name), "Table by probing": audit.Searching(c.point, false).Table(name),
		"Table with a condition": table.Where("true"),
	} {
		var columns, rows []string
		var err error
		for row, rowErr := range table.All(ctx) {
			if rowErr != nil {
				err = rowErr
				break
			}
			columns, rows = nil, append(rows, rowText(row.RawValues()))
			for _, f := range row.FieldDescriptions() {
				columns = append(columns, f.Name)
			}
		}
		slices.Sort(rows)
		judge(way, rows, want.rows, err)
		if err == nil && len(rows) > 0 && !slices.Equal(columns, want.columns) {
			t.Errorf("%s of %s after %q has the columns %v, want %v", way, name, c.step, columns, want.columns)
		}
	}
	n, err := table.Count(ctx)
	judge("Count", n, int64(len(want.rows)), err)
	rows, err := viewRows(ctx, c.point, name)
	if unknown := new(pgconn.PgError); errors.As(err, &unknown) && unknown.Code == "42P01" && c.gone(t, name) {
		err = &audit.HistoryError{Table: name, Reason: audit.ErrNotTracked} // nobody knew it: the statement fails
	}
	judge("View", rows, want.rows, err)
	asked := 0
	for key, text := range want.byKey { // of many, some of them
		if asked++; asked > askedRows {
			break
		}
		got, err := rowAt(ctx, table, want.keys[key])
		if unread := new(audit.FilterError); want.made && errors.As(err, &unread) {
			continue // a key of a type that was altered is no value of the type of now
		}
		judge("Row "+key, got, text, err)
	}
	if len(want.key) > 0 {
		got, err := rowAt(ctx, table, absentKey(want))
		if errors.Is(err, audit.ErrNoRow) {
			err = nil
		}
		var filter *audit.FilterError
		if !errors.As(err, &filter) { // no value of the key's type
			judge("Row of nobody", got, "", err)
		}
	}
}

func absentKey(table copiedTable) []any {
	key := make([]any, len(table.key))
	for i := range key {
		key[i] = "987654"
	}
	return key
}

func rowAt(ctx context.Context, table audit.PastTable, key []any) (string, error) {
	var text string
	row, err := audit.RawRow(ctx, table, key...)
	if err == nil {
		text = rowText(row.RawValues())
	}
	return text, err
}

// viewRows reads a table in a View, by the plain name or, where another schema's
// hides it, by its own.
func viewRows(ctx context.Context, p audit.Point, name string) ([]string, error) {
	var found []string
	err := p.View(ctx, func(tx pgx.Tx) error {
		rows, err := tx.Query(ctx, "SELECT * FROM "+strings.TrimPrefix(name, "public."), pgx.QueryResultFormats{pgx.TextFormatCode})
		if err != nil {
			return err
		}
		defer rows.Close()
		for rows.Next() {
			found = append(found, rowText(rows.RawValues()))
		}
		return rows.Err()
	})
	slices.Sort(found)
	return found, err
}
