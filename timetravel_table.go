package audit

import (
	"context"
	"fmt"
	"iter"
	"reflect"
	"slices"
	"strconv"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgtype"

	"github.com/hindsight-go/audit/internal/history"
	"github.com/hindsight-go/audit/internal/pgcatalog"
	"github.com/hindsight-go/audit/internal/rowimage"
	"github.com/hindsight-go/audit/store"
)

// PastTable is a table as it was at a [Point]. It is an immutable value; its
// methods may be called concurrently.
type PastTable struct {
	point Point
	name  string
	err   error
	where []condition
	order string
	limit int
}

type condition struct {
	sql  string
	args []any
}

// Table is the table of the given name, as "todo", "billing.invoices" or, with
// odd characters, `"My Table"`. It may be the name that the table had then, or
// one that it had before or has since. Without a schema, the first of
// [Point.SearchPath] comes first.
func (p Point) Table(name string) PastTable { return PastTable{point: p, name: name} }

// Where keeps the rows for which a condition in SQL is true. It is applied to the
// rows as they were, never to choose which version is looked at:
//
//	audit.AsOf(t).Table("todo").Where("is_completed AND user_id = $1", 7)
//
// Column names are those of then; placeholders are numbered from $1 in each
// Where. Several conditions have to hold at once.
func (t PastTable) Where(sql string, args ...any) PastTable {
	if strings.TrimSpace(sql) == "" && t.err == nil {
		t.err = &FilterError{Filter: "Where", Reason: "the condition is empty"}
	}
	t.where = append(slices.Clip(t.where), condition{sql, args})
	return t
}

// OrderBy sorts the rows by an ORDER BY list in SQL, as "priority DESC, id".
// Without it they come in no order.
func (t PastTable) OrderBy(sql string) PastTable {
	t.order = sql
	return t
}

// Limit bounds the number of rows. It has to be at least 1.
func (t PastTable) Limit(n int) PastTable {
	if n < 1 && t.err == nil {
		t.err = &FilterError{Filter: "Limit", Reason: "the limit must be at least 1"}
	}
	t.limit = n
	return t
}

// Load reads one row into the struct that dst points to, by its primary key. See
// [Point.Load]. A row is found by its key alone: a Where is a [*FilterError].
func (t PastTable) Load(ctx context.Context, dst any, key ...any) error {
	row, err := t.one(ctx, key)
	if err != nil {
		return err
	}
	return row.Decode(dst)
}

// Row returns one row by its primary key. See [Point.Row].
func (t PastTable) Row(ctx context.Context, key ...any) (map[string]any, error) {
	row, err := t.one(ctx, key)
	if err != nil {
		return nil, err
	}
	return row.Map()
}

// One returns one row by its primary key, with its values as PostgreSQL prints them.
// See [Point.Row].
func (t PastTable) One(ctx context.Context, key ...any) (PastRow, error) { return t.one(ctx, key) }

func (t PastTable) one(ctx context.Context, key []any) (_ PastRow, err error) {
	ctx, span := t.point.span(ctx, spanRow, t.name)
	defer func() { span.end(err) }()
	p, err := t.open(ctx)
	if err != nil {
		return PastRow{}, err
	}
	if len(t.where) > 0 {
		return PastRow{}, &FilterError{Filter: "Where", Reason: "a row is found by its key: use List for conditions"}
	}
	values, _, err := p.locate(ctx, key)
	if err != nil {
		return PastRow{}, err
	}
	return p.result(values), nil
}

// open finds the table.
func (t PastTable) open(ctx context.Context) (*pastTable, error) {
	if t.err != nil {
		return nil, t.err
	}
	travel, err := t.point.travel(ctx)
	if err != nil {
		return nil, err
	}
	return travel.table(ctx, t.name)
}

// All returns the rows one by one. The live table is read through a cursor, in
// pages, in a transaction that ends with the loop; what has changed since the
// moment is held in memory.
//
// Each pair is a value and nil, or a zero value and an error; after an error the
// sequence ends. Each range runs the query again.
func (t PastTable) All(ctx context.Context) iter.Seq2[PastRow, error] {
	return func(yield func(PastRow, error) bool) {
		err := t.each(ctx, func(row PastRow) error {
			if !yield(row, nil) {
				return errStop
			}
			return nil
		})
		if err != nil && err != errStop { //nolint:errorlint // it is ours, and never wrapped
			yield(PastRow{}, err)
		}
	}
}

// List reads all rows into the slice of structs, or of maps from column to any,
// that dst points to. What it held is replaced.
func (t PastTable) List(ctx context.Context, dst any) error {
	v := reflect.ValueOf(dst)
	if v.Kind() != reflect.Pointer || v.IsNil() || v.Elem().Kind() != reflect.Slice {
		return &DecodeError{Reason: fmt.Sprintf("the destination must be a non-nil pointer to a slice, not %T", dst)}
	}
	list := reflect.MakeSlice(v.Elem().Type(), 0, 0)
	err := t.each(ctx, func(row PastRow) error {
		element := reflect.New(list.Type().Elem())
		if err := row.Decode(element.Interface()); err != nil {
			return err
		}
		list = reflect.Append(list, element.Elem())
		return nil
	})
	if err != nil {
		return err
	}
	v.Elem().Set(list)
	return nil
}

// Count returns the number of rows.
func (t PastTable) Count(ctx context.Context) (n int64, err error) {
	ctx, span := t.point.span(ctx, spanCount, t.name)
	defer func() { span.end(err) }()
	if t.plain() {
		err := t.read(ctx, func(PastRow) error {
			n++
			return nil
		})
		return n, err
	}
	err = t.query(ctx, "count(*)", func(rows pgx.Rows, _ *pastTable) error {
		for rows.Next() {
			if err := rows.Scan(&n); err != nil {
				return history.OpError("count rows", err)
			}
		}
		return rows.Err()
	})
	return n, err
}

// plain reports whether all rows are asked for, for which no SQL is needed.
func (t PastTable) plain() bool { return len(t.where) == 0 && t.order == "" && t.limit == 0 }

// each is read for callers that ask for the rows.
func (t PastTable) each(ctx context.Context, yield func(PastRow) error) (err error) {
	ctx, span := t.point.span(ctx, spanRows, t.name)
	n := 0
	defer func() { span.end(unlessStopped(err), rowsReturned(n)) }()
	return t.read(ctx, func(row PastRow) error {
		n++
		return yield(row)
	})
}

// unlessStopped is nil where the caller wants no more.
func unlessStopped(err error) error {
	if err == errStop { //nolint:errorlint // it is ours, and never wrapped
		return nil
	}
	return err
}

// read calls yield for every row.
func (t PastTable) read(ctx context.Context, yield func(PastRow) error) error {
	if !t.plain() {
		return t.query(ctx, "*", func(rows pgx.Rows, p *pastTable) error {
			for rows.Next() {
				if err := yield(p.result(cloneValues(rows.RawValues()))); err != nil {
					return err
				}
			}
			return rows.Err()
		})
	}
	p, err := t.open(ctx)
	if err != nil {
		return err
	}
	return p.rows(ctx, func(values [][]byte) error { return yield(p.result(values)) })
}

// PastRow is a row as it was. It is a pgx.CollectableRow, so that pgx's own
// functions read it:
//
//	todo, err := pgx.RowToStructByName[Todo](row)
//
// Its values are in PostgreSQL's text format.
type PastRow struct {
	table  *pastTable
	values [][]byte
}

var _ pgx.CollectableRow = PastRow{}

// result makes a row of the values of the columns that were asked for.
func (p *pastTable) result(values [][]byte) PastRow {
	if p.point.columns != nil && len(p.point.columns) != len(values) {
		picked := make([][]byte, 0, len(p.point.columns))
		for i, c := range p.columns.List {
			if slices.Contains(p.point.columns, c.Name) {
				picked = append(picked, values[i])
			}
		}
		values = picked
	}
	return PastRow{p, values}
}

// columns are those of the row.
func (r PastRow) columns() []pgcatalog.Column {
	if r.table == nil {
		return nil
	}
	list := r.table.columns.List
	if wanted := r.table.point.columns; wanted != nil {
		list = slices.DeleteFunc(slices.Clone(list), func(c pgcatalog.Column) bool { return !slices.Contains(wanted, c.Name) })
	}
	return list
}

// FieldDescriptions describes the columns, in the table's order.
func (r PastRow) FieldDescriptions() []pgconn.FieldDescription {
	columns := r.columns()
	fields := make([]pgconn.FieldDescription, len(columns))
	for i, c := range columns {
		fields[i] = pgconn.FieldDescription{
			Name: c.Name, DataTypeOID: c.TypeOID, TypeModifier: c.TypeMod, TableAttributeNumber: uint16(c.Attnum),
			DataTypeSize: -1, Format: pgtype.TextFormatCode,
		}
	}
	return fields
}

// PrimaryKey returns the text of the row's key, in the form of [Change.PrimaryKey]. It is
// empty if the table has none, and if a column of it was not asked for.
func (r PastRow) PrimaryKey() string {
	if r.table == nil || len(r.table.key) == 0 {
		return ""
	}
	columns := r.columns()
	parts := make([]string, 0, len(r.table.key))
	for _, name := range r.table.key {
		at := slices.IndexFunc(columns, func(c pgcatalog.Column) bool { return c.Name == name })
		if at < 0 {
			return ""
		}
		parts = append(parts, string(r.values[at]))
	}
	return store.KeyText(parts...)
}

// RawValues returns the texts of the values, nil for NULL. They must not be
// changed.
func (r PastRow) RawValues() [][]byte { return r.values }

// Scan reads the values, in the order of the columns, into what dest points to,
// by pgx's rules. A nil leaves its column out.
func (r PastRow) Scan(dest ...any) error {
	columns := r.columns()
	if len(dest) != len(columns) {
		return &DecodeError{Reason: fmt.Sprintf("the row has %d columns and there are %d destinations", len(columns), len(dest))}
	}
	m := rowimage.TypeMaps.Get().(*pgtype.Map)
	defer rowimage.TypeMaps.Put(m)
	for i, c := range columns {
		if dest[i] == nil {
			continue
		}
		if err := rowimage.ScanText(m, c.Name, c.TypeOID, r.values[i], dest[i]); err != nil {
			return decodeError(err)
		}
	}
	return nil
}

// Values returns the values in the Go types that pgx gives them by default, nil
// for NULL. Types that pgx does not know are strings.
func (r PastRow) Values() ([]any, error) {
	m := rowimage.TypeMaps.Get().(*pgtype.Map)
	defer rowimage.TypeMaps.Put(m)
	columns := r.columns()
	values := make([]any, len(columns))
	for i, c := range columns {
		if r.values[i] == nil {
			continue
		}
		value, err := rowimage.DefaultValue(m, c.Name, c.TypeOID, r.values[i])
		if err != nil {
			return nil, decodeError(err)
		}
		values[i] = value
	}
	return values, nil
}

// Map returns the values by column. See [PastRow.Values].
func (r PastRow) Map() (map[string]any, error) {
	values, err := r.Values()
	if err != nil {
		return nil, err
	}
	m := make(map[string]any, len(values))
	for i, c := range r.columns() {
		m[c.Name] = values[i]
	}
	return m, nil
}

// Decode reads the row into the struct, or the map from string to any, that dst
// points to. See [Point.Load].
func (r PastRow) Decode(dst any) error {
	v, err := rowimage.Destination(dst)
	if err != nil {
		return decodeError(err)
	}
	if m, ok := v.Addr().Interface().(*map[string]any); ok {
		values, err := r.Map()
		*m = values
		return err
	}
	if v.Kind() != reflect.Struct {
		return &DecodeError{Reason: fmt.Sprintf("the destination must point to a struct or a map[string]any, not to %s", v.Type())}
	}
	return decodeError(r.decodeStruct(v))
}

func (r PastRow) decodeStruct(v reflect.Value) error {
	m := rowimage.TypeMaps.Get().(*pgtype.Map)
	defer rowimage.TypeMaps.Put(m)
	fields := rowimage.FieldsOf(v.Type())
	columns := r.columns()
	if err := r.checkFields(fields, columns); err != nil {
		return err
	}
	indexes := fields.Match(columnNamesOf(columns))
	for i, c := range columns {
		if indexes[i] == nil {
			continue
		}
		field, err := rowimage.FieldByIndex(v, indexes[i], c.Name)
		if err != nil {
			return err
		}
		if err := rowimage.ScanColumn(m, c.Name, rowimage.Type{OID: c.TypeOID, Base: store.Column{Definition: c.Definition}.Base()}.Under(), r.values[i], field); err != nil {
			return err
		}
	}
	return nil
}

func columnNamesOf(columns []pgcatalog.Column) []string {
	names := make([]string, len(columns))
	for i, c := range columns {
		names[i] = c.Name
	}
	return names
}

// checkFields says where fields and columns do not go together.
func (r PastRow) checkFields(fields rowimage.Fields, columns []pgcatalog.Column) error {
	if r.table == nil || r.table.point.lax {
		return nil
	}
	e := &ColumnsError{Table: r.table.qualified(), Asked: r.table.point.String()}
	taken := make(map[string]bool)
	e.Columns = columnNamesOf(columns)
	for i, index := range fields.Match(e.Columns) {
		if index == nil {
			e.Unused = append(e.Unused, e.Columns[i])
			continue
		}
		taken[fmt.Sprint(index)] = true
	}
	if r.table.point.columns == nil {
		e.Missing = fields.Others(taken)
	}
	if len(e.Missing)+len(e.Unused) == 0 {
		return nil
	}
	return e
}

// query runs a SELECT over the table in a view of its own.
func (t PastTable) query(ctx context.Context, list string, read func(pgx.Rows, *pastTable) error) error {
	if t.err != nil {
		return t.err
	}
	travel, err := t.point.travel(ctx)
	if err != nil {
		return err
	}
	past, err := travel.table(ctx, t.name)
	if err != nil {
		return err
	}
	v, err := travel.view(ctx)
	if err != nil {
		return err
	}
	defer v.close()
	if err := v.need(ctx, []string{past.name}); err != nil {
		return err
	}
	i := slices.IndexFunc(v.tables, func(o *viewTable) bool { return o.oid == past.oid })
	if i < 0 {
		if err := v.missing[pgcatalog.Name{Schema: past.schema, Table: past.name}]; err != nil {
			return err
		}
		return past.refuse(ErrNotTracked, "", 0)
	}
	if v.tables[i].err != nil {
		return v.tables[i].err
	}
	sql, args := t.statement(v.tables[i], list)
	rows, err := (&viewTx{Tx: v.snapshot.tx, view: v}).Query(ctx, sql, append([]any{pgx.QueryResultFormats{pgx.TextFormatCode}}, args...)...)
	if err != nil {
		return err
	}
	defer rows.Close()
	return read(rows, v.tables[i].pastTable)
}

// renumber adds to the numbers of a condition's parameters.
func renumber(sql string, offset int) string {
	var b strings.Builder
	at := 0
	for _, token := range scanSQL(sql) {
		n, err := strconv.Atoi(strings.TrimPrefix(token.text, "$"))
		if token.kind != tokenParameter || err != nil {
			continue
		}
		b.WriteString(sql[at:token.begin])
		b.WriteString("$" + strconv.Itoa(n+offset))
		at = token.end
	}
	return b.String() + sql[at:]
}

// statement is the SELECT. Every Where numbers its placeholders from 1.
func (t PastTable) statement(table *viewTable, list string) (string, []any) {
	var where []string
	var args []any
	for _, c := range t.where {
		where = append(where, "("+renumber(c.sql, len(args))+"\n)")
		args = append(args, c.args...)
	}
	from := table.tempIdent()
	if table.mode == viewLive {
		from = table.live.Ident()
	}
	from += " AS " + pgx.Identifier{table.pastTable.name}.Sanitize()
	if list == "*" {
		var names []string
		for _, c := range table.columns.List {
			names = append(names, pgx.Identifier{c.Name}.Sanitize())
		}
		list = strings.Join(names, ", ")
	}
	if list != "count(*)" || t.limit == 0 {
		return t.tail("SELECT "+list+" FROM "+from, where), args
	}
	return "SELECT count(*) FROM (" + t.tail("SELECT FROM "+from, where) + ") counted", args
}

// tail adds the clauses behind FROM.
func (t PastTable) tail(sql string, where []string) string {
	if len(where) > 0 {
		sql += " WHERE " + strings.Join(where, " AND ")
	}
	if t.order != "" && !strings.Contains(sql, "count(*)") {
		sql += " ORDER BY " + t.order
	}
	if t.limit > 0 {
		sql += " LIMIT " + strconv.Itoa(t.limit)
	}
	return sql
}
