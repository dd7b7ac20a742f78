package audit

import (
	"encoding/json"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"
	"time"

	sq "github.com/Masterminds/squirrel"
	"github.com/jackc/pgx/v5/pgtype"

	"github.com/hindsight-go/audit/internal/pgcatalog"
	"github.com/hindsight-go/audit/internal/rowimage"
	"github.com/hindsight-go/audit/store"
)

// ForTable keeps the changes of a table, or of any of several. A name without a
// schema is the table of that name in any schema; "billing.invoices" is the one
// in billing. Names are taken as the catalog has them, upper case included, and
// are not folded as SQL would. A part that holds a dot or a quote goes in double
// quotes: `"odd.schema"."odd table"`. A table that is not in the history has no
// changes; that is no error. The name is the one that a table had when it was changed:
// of a table that was renamed, give all names. [Query.Warnings] says both.
func (q Query) ForTable(names ...string) Query {
	if len(names) == 0 {
		return q.refuse("ForTable", "no table given", nil)
	}
	var anyOf sq.Or
	for _, name := range names {
		parsed, err := pgcatalog.ParseName(name)
		if err != nil {
			return q.refuse("ForTable", fmt.Sprintf("the name %q has %v", clip(name, 130), err), err)
		}
		q.tables = append(slices.Clip(q.tables), parsed)
		if parsed.Schema == "" {
			anyOf = append(anyOf, sq.Expr(`c."table" = ?`, parsed.Table))
		} else {
			anyOf = append(anyOf, sq.Expr(`(c."table" = ? AND c.schema = ?)`, parsed.Table, parsed.Schema))
		}
	}
	given := q.tables[len(q.tables)-len(names):]
	isOne := func(c *Change) bool {
		return slices.ContainsFunc(given, func(name pgcatalog.Name) bool {
			return c.Table == name.Table && (name.Schema == "" || c.Schema == name.Schema)
		})
	}
	if len(anyOf) == 1 {
		return q.filter(exactly(anyOf[0], isOne))
	}
	return q.filter(exactly(anyOf, isOne))
}

// NotTable leaves out the changes of tables, by names as in [Query.ForTable]. To revert
// all of a unit but some tables, use [Reversal.ExceptTable].
func (q Query) NotTable(names ...string) Query {
	if len(names) == 0 {
		return q.refuse("NotTable", "no table given", nil)
	}
	for _, name := range names {
		parsed, err := pgcatalog.ParseName(name)
		switch {
		case err != nil:
			return q.refuse("NotTable", fmt.Sprintf("the name %q has %v", clip(name, 130), err), err)
		case parsed.Schema == "":
			q = q.scan(sq.Expr(`c."table" <> ?`, parsed.Table))
		default:
			q = q.scan(sq.Expr(`(c."table" <> ? OR c.schema <> ?)`, parsed.Table, parsed.Schema))
		}
	}
	return q
}

// ForRow keeps the changes of one row, by its primary key: one value, or one for
// each column of the key in key order. It needs [Query.ForTable]. A change
// matches by the key that the row has after it, and also by the key it had
// before, if the change gave it another.
//
// The values are compared by the text that PostgreSQL prints. Integers, strings,
// booleans, UUIDs, []byte for bytea, time.Time and whatever has a MarshalText or
// Value method are turned into it; a string is taken as that text.
func (q Query) ForRow(key ...any) Query {
	if len(key) == 0 {
		return q.refuse("ForRow", "no key given", nil)
	}
	alternatives := [][]string{nil}
	for i, part := range key {
		texts, err := columnTexts(part)
		if err != nil {
			return q.refuse("ForRow", fmt.Sprintf("part %d of the key: %v", i+1, err), err)
		}
		var longer [][]string
		for _, begun := range alternatives {
			for _, text := range texts {
				longer = append(longer, append(slices.Clip(begun), text))
			}
		}
		if len(longer) > 256 {
			return q.refuse("ForRow", "too many times in the key: give them as the text that PostgreSQL prints", nil)
		}
		alternatives = longer
	}
	keys := make([]string, len(alternatives))
	for i, parts := range alternatives {
		keys[i] = store.KeyText(parts...)
	}
	q.hasRow, q.rare = true, true
	return q.filter(exactly(sq.Expr(`(c.primary_key = ANY(?::text[]) OR c.previous_key = ANY(?::text[]))`, keys, keys), func(c *Change) bool {
		return c.HasKey && slices.Contains(keys, c.PrimaryKey) || c.KeyChanged && slices.Contains(keys, c.PreviousKey)
	}))
}

// Operations keeps the changes of these kinds.
func (q Query) Operations(operations ...Operation) Query {
	if len(operations) == 0 {
		return q.refuse("Operations", "no operation given", nil)
	}
	names := make([]string, len(operations))
	for i, operation := range operations {
		if !operation.valid() {
			return q.refuse("Operations", fmt.Sprintf("%q is none of CREATE, UPDATE, DELETE and TRUNCATE", clip(string(operation), 40)), nil)
		}
		names[i] = string(operation)
	}
	return q.scanSparsely(exactly(sq.Expr(`c.operation IN ('`+strings.Join(names, "', '")+`')`), func(c *Change) bool {
		return slices.Contains(names, string(c.Operation))
	}))
}

// Since keeps the changes committed at t or later, by the clock of the source.
// History whose time is over by then is not even looked at.
func (q Query) Since(t time.Time) Query {
	t = ceilMicro(t)
	q.dated = true
	if t.After(q.since) {
		q.since = t
	}
	return q.filter(exactly(sq.Expr(`c.committed_at >= ?`, storeTime(t)), func(c *Change) bool { return !c.CommittedAt.Before(t) }))
}

// Until keeps the changes committed before t, by the clock of the source. What
// was committed at t itself is left out, so that windows can follow one another
// without overlap.
func (q Query) Until(t time.Time) Query {
	if t.IsZero() {
		return q.refuse("Until", "the time is zero", nil)
	}
	t = ceilMicro(t)
	if q.until.IsZero() || t.Before(q.until) {
		q.until = t
	}
	return q.filter(sq.Expr(`c.committed_at < ?`, storeTime(t)))
}

// Between keeps the changes committed from one time (included) until another
// (left out): it is Since(from).Until(until). Of several windows, what they have in
// common counts, which may be nothing.
func (q Query) Between(from, until time.Time) Query {
	if clampTime(until).Before(clampTime(from)) {
		return q.refuse("Between", "the window ends before it begins", nil)
	}
	return q.Since(from).Until(until)
}

// ceilMicro rounds up to the microseconds of PostgreSQL, which keeps both "at t
// or later" and "before t" exact.
func ceilMicro(t time.Time) time.Time {
	t = clampTime(t)
	rounded := t.Truncate(time.Microsecond)
	if rounded.Before(t) {
		rounded = rounded.Add(time.Microsecond)
	}
	return rounded
}

// The times of PostgreSQL end where these begin.
var (
	beforeAll = time.Date(-4713, 11, 23, 0, 0, 0, 0, time.UTC)
	behindAll = time.Date(294277, 1, 1, 0, 0, 0, 0, time.UTC)
)

// clampTime keeps a time between the two. It goes by the seconds since 1970: neither the
// order nor the year is right of all times that a time.Time can hold.
func clampTime(t time.Time) time.Time {
	switch seconds := t.Unix(); {
	case seconds >= behindAll.Unix():
		return behindAll
	case seconds < beforeAll.Unix():
		return beforeAll
	}
	return t
}

// storeTime is a time to compare with what the store holds. PostgreSQL has none before
// November 24 of 4714 BC and none behind 294276; pgx would send another in the place of
// such a one.
func storeTime(t time.Time) pgtype.Timestamptz {
	switch t = clampTime(t); {
	case t.Before(beforeAll.AddDate(0, 0, 1)):
		return pgtype.Timestamptz{InfinityModifier: pgtype.NegativeInfinity, Valid: true}
	case t.Equal(behindAll):
		return pgtype.Timestamptz{InfinityModifier: pgtype.Infinity, Valid: true}
	}
	return pgtype.Timestamptz{Time: t, Valid: true}
}

// InTransaction keeps the changes of the source transaction with this 64-bit id.
func (q Query) InTransaction(id uint64) Query {
	q.rare = true
	return q.filter(exactly(sq.Expr(`c.transaction_id = ?`, int64(id)), func(c *Change) bool { return c.TransactionID == id }))
}

// AtPosition keeps the one change at p, or with Sequence 0 all changes of the
// transaction that committed there.
func (q Query) AtPosition(p Position) Query {
	if p.Sequence == 0 {
		return q.filter(sq.Expr(`c.position = ?::pg_lsn`, p.LSN.String()))
	}
	return q.filter(sq.Expr(`(c.position = ?::pg_lsn AND c.sequence = ?::bigint)`, p.LSN.String(), p.Sequence))
}

// InEnvironment keeps the changes captured by a program of this environment, or with an
// empty one, by a program that has none.
func (q Query) InEnvironment(environment string) Query {
	if environment == "" {
		return q.scanSparsely(sq.Expr(`(c.environment IS NULL OR c.environment = '')`))
	}
	if isWord(environment) {
		// A plan that serves every environment would walk history for the one that most
		// changes are of.
		return q.scanSparsely(sq.Expr(`c.environment = '` + environment + `'`))
	}
	return q.scanSparsely(sq.Expr(`c.environment = ?`, environment))
}

// isWord reports whether a short text has nothing but letters, digits, - and _ in it.
func isWord(text string) bool {
	return len(text) <= 64 && !strings.ContainsFunc(text, func(r rune) bool {
		return (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && (r < '0' || r > '9') && r != '-' && r != '_'
	})
}

// InDatabase keeps the changes of one source, where the store holds several.
func (q Query) InDatabase(name string) Query {
	return q.scan(exactly(sq.Expr(`c.database = ?`, name), func(c *Change) bool { return c.Database == name }))
}

// WithDefect keeps the changes that could not be recorded faithfully.
func (q Query) WithDefect() Query {
	return q.filter(sq.Expr(`c.defect IS NOT NULL`))
}

// Changed keeps the changes that changed any of the columns, in the sense of
// [Change.Diff]: an UPDATE that gave one another value, a CREATE and a DELETE of
// a row that has one. Add Operations(Update) to see no more than the updates.
func (q Query) Changed(columns ...string) Query {
	if len(columns) == 0 {
		return q.refuse("Changed", "no column given", nil)
	}
	var anyOf sq.Or
	for _, column := range columns {
		if err := checkColumn(column); err != nil {
			return q.refuseFor("Changed", err)
		}
		anyOf = append(anyOf, changedColumn(column))
	}
	q.columns = append(slices.Clip(q.columns), columns...)
	return q.scan(anyOf)
}

// ChangedTo keeps the changes that gave the column this value: an UPDATE from
// another value, or the CREATE of a row with it. Nil is NULL. A value that has a
// Value method (sql.Null, the types of pgtype, decimals) is what that method gives.
// Strings, numbers, booleans, times, intervals, ranges and lists of them are compared with
// what stands in the column, numbers and times by value, so that the text "5" finds the
// number 5 as well. A time.Time is a moment for a timestamptz, and for a timestamp or date
// what the clock of its zone says, which is what drivers write there. Any other value is
// compared by its JSON, for a json or jsonb column.
func (q Query) ChangedTo(column string, value any) Query {
	if err := checkColumn(column); err != nil {
		return q.refuseFor("ChangedTo", err)
	}
	f, err := imageForms(value)
	if err != nil {
		return q.refuseFor("ChangedTo", err)
	}
	var anyOf sq.Or
	for _, document := range f.documents {
		anyOf = append(anyOf, sq.Expr(`c.after -> ?::text = ?::jsonb`, column, document))
	}
	for _, text := range f.texts {
		anyOf = append(anyOf, sq.Expr(`c.after -> ?::text = to_jsonb(?::text)`, column, text))
	}
	q.columns = append(slices.Clip(q.columns), column)
	var rows []map[string]json.RawMessage
	for _, document := range f.documents {
		rows = append(rows, map[string]json.RawMessage{column: json.RawMessage(document)})
	}
	for _, text := range f.texts {
		rows = append(rows, map[string]json.RawMessage{column: rowimage.AppendSafeJSON(nil, rowimage.Quote(text))})
	}
	return q.scan(changedColumn(column)).scan(holding(anyOf, true, rows))
}

func checkColumn(column string) error {
	if column == "" {
		return pgcatalog.ErrEmptyName
	}
	if strings.IndexByte(column, 0) >= 0 {
		return errNUL
	}
	return nil
}

// changedColumn is the condition of Change.Diff for one column: an UPDATE whose
// new row does not have the column left it alone.
func changedColumn(column string) sq.Sqlizer {
	return sq.Expr(`((c.before -> ?::text) IS DISTINCT FROM (c.after -> ?::text)
		AND (c.operation <> 'UPDATE' OR c.after -> ?::text IS NOT NULL))`, column, column, column)
}

// WhereBefore keeps the changes whose row before contains value: a map of columns, or a
// struct whose fields are columns under the names that encoding/json gives them. A
// value is compared as by [Query.ChangedTo], but for strings and numbers of Go, which
// are nothing but a string and a number in the row. (The method is not called Before, as
// its twin would be After, which continues from a cursor.)
func (q Query) WhereBefore(value any) Query {
	return q.containing("WhereBefore", "c.before", value)
}

// WhereAfter keeps the changes whose row after contains value. See
// [Query.WhereBefore].
func (q Query) WhereAfter(value any) Query {
	return q.containing("WhereAfter", "c.after", value)
}

// containing keeps the changes of which an image contains the columns of value.
func (q Query) containing(filter, image string, value any) Query {
	rows, err := rowForms(value)
	if err != nil {
		return q.refuseFor(filter, err)
	}
	var anyOf sq.Or
	var objects []map[string]json.RawMessage
	for _, row := range rows {
		anyOf = append(anyOf, sq.Expr(image+` @> ?::jsonb`, row))
		var object map[string]json.RawMessage
		if err := json.Unmarshal([]byte(row), &object); err != nil {
			return q.refuseFor(filter, err)
		}
		objects = append(objects, object)
	}
	if columns, ok := columnsOf(reflect.ValueOf(value)); ok {
		q.columns = slices.AppendSeq(slices.Clip(q.columns), maps.Keys(columns))
	}
	return q.scan(holding(anyOf, image == "c.after", objects))
}
