package audit

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/hindsight-go/audit/internal/history"
	"github.com/hindsight-go/audit/internal/pgcatalog"
)

// Fork is the past as real tables, see [Point.Into].
type Fork struct {
	point    Point
	schema   string
	tables   []string
	progress func(ForkProgress)
}

// ForkProgress is how far a fork has come.
type ForkProgress struct {
	// Table is the table being written, Rows how many of its rows are.
	Table string `json:"table"`
	Rows  int64  `json:"rows"`
	// Done reports whether the table is complete.
	Done bool `json:"done"`
}

// ForkResult says what a fork holds.
type ForkResult struct {
	// Completeness is what the fork rests on.
	Completeness Completeness `json:"completeness"`
	// Rows is the number of rows by table, as "schema.table" of the source.
	Rows map[string]int64 `json:"rows"`
	// Skipped are the indexes and foreign keys of today that the rows of then do not
	// comply with, each with the server's reason.
	Skipped []string `json:"skipped,omitempty"`
}

// ErrSchemaExists is returned by [Fork.Run] when there is a schema of the name.
var ErrSchemaExists = errors.New("audit: the schema for the fork exists already: choose another name, or drop it")

// Into asks for the past as real tables, with keys, indexes and foreign keys, in a
// schema of its own in the source: for inspecting, reporting and comparing for
// longer than a [Point.View] should last. The schema must not exist. [Fork.Run]
// makes it.
func (p Point) Into(schema string) Fork { return Fork{point: p, schema: schema} }

// Tables restricts the fork to the named tables. Default: all that were tracked at
// the moment.
func (f Fork) Tables(names ...string) Fork {
	f.tables = append(slices.Clip(f.tables), names...)
	return f
}

// Progress has Run call a function every few thousand rows and at the end of each
// table, from Run's own goroutine.
func (f Fork) Progress(call func(ForkProgress)) Fork {
	f.progress = call
	return f
}

// Run makes the fork, in one transaction: either the schema is there, whole, or it
// is not. The tables are UNLOGGED: they write no WAL, are not tracked, and are
// emptied by a crash of the server; the fork can be made again. Drop the schema
// when done with it.
//
// Tables of the same name in two schemas cannot be in one fork. The role needs
// the right to create a schema in the source. The error is [ErrSchemaExists], or a
// [*HistoryError] where a table has no such past.
func (f Fork) Run(ctx context.Context) (_ *ForkResult, err error) {
	ctx, span := f.point.span(ctx, spanFork)
	defer func() { span.end(err) }()
	c, err := f.point.ready()
	if err != nil {
		return nil, err
	}
	if f.schema == "" || strings.HasPrefix(f.schema, "pg_") {
		return nil, &FilterError{Filter: "Into", Reason: "a schema needs a name that does not begin with pg_"}
	}
	t, err := c.travel(ctx, f.point)
	if err != nil {
		return nil, err
	}
	names := f.tables
	if names == nil {
		names = t.coveredThen()
	}
	var tables []*pastTable
	for _, name := range names {
		past, err := t.table(ctx, name)
		if err != nil {
			return nil, err
		}
		if slices.ContainsFunc(tables, func(o *pastTable) bool { return o.name == past.name }) {
			return nil, &FilterError{Filter: "Into", Reason: fmt.Sprintf("two tables are called %q: choose with Tables", past.name)}
		}
		tables = append(tables, past)
	}
	result := &ForkResult{Completeness: t.completeness(nil), Rows: make(map[string]int64)}
	conn, err := c.history.SourceLong.Acquire(ctx)
	if err != nil {
		return nil, history.OpError("connect to the source", err)
	}
	defer conn.Release()
	err = pgx.BeginTxFunc(ctx, conn, pgx.TxOptions{AccessMode: pgx.ReadWrite}, func(tx pgx.Tx) error { return f.run(ctx, tx, tables, result) })
	if history.IsStandby(err) {
		return nil, history.OpError("make fork", err)
	}
	if history.IsCode(err, "42P06") {
		return nil, ErrSchemaExists
	}
	if err != nil {
		return nil, err
	}
	return result, nil
}

// coveredThen returns the tables that were tracked at the moment, by their names
// then.
func (t *travel) coveredThen() []string {
	var names []string
	for _, cov := range t.facts.Coverage {
		if cov.From <= t.through && (cov.Until == 0 || t.through < cov.Until) {
			names = append(names, pgcatalog.Qualified(cov.Schema, cov.Table))
		}
	}
	slices.Sort(names)
	return slices.Compact(names)
}

func (f Fork) run(ctx context.Context, tx pgx.Tx, tables []*pastTable, result *ForkResult) error {
	schema := pgx.Identifier{f.schema}.Sanitize()
	if _, err := tx.Exec(ctx, "CREATE SCHEMA "+schema); err != nil {
		return history.OpError("make fork", err)
	}
	for _, past := range tables {
		table, err := f.plain(ctx, tx, past)
		if err != nil {
			return err
		}
		if _, err := tx.Exec(ctx, f.createSQL(table)); err != nil {
			return history.OpError("make "+table.qualified(), err)
		}
		n, err := f.load(ctx, tx, table)
		if err != nil {
			return err
		}
		result.Rows[table.qualified()] = n
		if err := f.finish(ctx, tx, past, result); err != nil {
			return err
		}
	}
	for _, table := range tables {
		if err := f.reference(ctx, tx, table, tables, result); err != nil {
			return err
		}
	}
	return nil
}

func (f Fork) ident(name string) string { return pgx.Identifier{f.schema, name}.Sanitize() }

// isLike reports whether the table of now has the columns of then.
func (p *pastTable) isLike() bool { return p.live != nil && p.columns.Same(p.live.Columns) }

// createSQL makes the table. What is checked of rows may be younger than they are,
// so it comes later, or not at all.
func (f Fork) createSQL(table *forkTable) string {
	ident := f.ident(table.name)
	if table.types != nil || !table.isLike() {
		var columns []string
		for i, c := range table.columns.List {
			typeName := c.TypeName
			if table.types != nil {
				typeName = table.types[i]
			}
			columns = append(columns, pgx.Identifier{c.Name}.Sanitize()+" "+typeName)
		}
		return "CREATE UNLOGGED TABLE " + ident + " (" + strings.Join(columns, ", ") + ")"
	}
	statement := "CREATE UNLOGGED TABLE " + ident + " (LIKE " + table.live.Ident() + " INCLUDING GENERATED INCLUDING DEFAULTS INCLUDING COMMENTS INCLUDING STORAGE)"
	for _, c := range table.columns.List {
		if c.NotNull {
			statement += "; ALTER TABLE " + ident + " ALTER COLUMN " + pgx.Identifier{c.Name}.Sanitize() + " DROP NOT NULL"
		}
	}
	return statement
}

// forkTable is a table of a fork. types are those of its columns where they are not
// just the live table's: then it has no generated columns either, but their values.
type forkTable struct {
	*pastTable
	types []string
}

// plain decides whether the table can be like the live one: not if it would run the
// code of another role, as checks of domains and generated columns do.
func (f Fork) plain(ctx context.Context, tx pgx.Tx, past *pastTable) (*forkTable, error) {
	table := &forkTable{pastTable: past}
	types := make([]string, len(past.columns.List))
	same := true
	for i, c := range past.columns.List {
		base, err := baseType(ctx, tx, c.TypeOID)
		if err != nil {
			return nil, err
		}
		if types[i] = c.TypeName; base != "" {
			types[i], same = base, false
		}
	}
	if !same {
		table.types = types
	}
	return table, past.checkDomains(ctx, false)
}

func (f Fork) load(ctx context.Context, tx pgx.Tx, table *forkTable) (int64, error) {
	like := table.isLike() && table.types == nil
	var names []string
	for _, c := range table.columns.List {
		if c.GeneratedKind == "" || !like {
			names = append(names, pgx.Identifier{c.Name}.Sanitize())
		}
	}
	columns := table.columns.List
	if !like {
		columns = nil
	}
	rows := newCopier(tx.Conn(), f.ident(table.name), names)
	var n int64
	err := table.rows(ctx, func(values [][]byte) error {
		if n++; n%5000 == 0 {
			f.report(table.pastTable, n, false)
		}
		return rows.add(ctx, columns, values)
	})
	if err == nil {
		err = rows.flush(ctx)
	}
	if err != nil {
		return n, table.misfit(err)
	}
	f.report(table.pastTable, n, true)
	return n, nil
}

func (f Fork) report(table *pastTable, n int64, done bool) {
	if f.progress != nil {
		f.progress(ForkProgress{Table: table.qualified(), Rows: n, Done: done})
	}
}

// finish adds the key, and the indexes of today where the table is as it is today.
func (f Fork) finish(ctx context.Context, tx pgx.Tx, table *pastTable, result *ForkResult) error {
	ident := f.ident(table.name)
	if len(table.key) > 0 {
		definition, err := periodKey(ctx, tx, table)
		if err != nil {
			return history.OpError("read key", err)
		}
		if _, err := tx.Exec(ctx, "ALTER TABLE "+ident+" ADD "+definition); err != nil {
			return history.OpError("make key of "+table.qualified(), err)
		}
	}
	if !table.isLike() {
		return nil
	}
	rows, err := tx.Query(ctx, `
		SELECT c.relname, pg_catalog.pg_get_indexdef(i.indexrelid), i.indexrelid,
			coalesce((SELECT pg_catalog.pg_get_constraintdef(k.oid) FROM pg_catalog.pg_constraint k
				WHERE k.conindid = i.indexrelid AND k.contype = 'u' AND (to_jsonb(k) ->> 'conperiod')::bool), '')
		FROM pg_catalog.pg_index i
		JOIN pg_catalog.pg_class c ON c.oid = i.indexrelid
		WHERE i.indrelid = $1 AND NOT i.indisprimary AND i.indisvalid AND pg_catalog.pg_get_indexdef(i.indexrelid) IS NOT NULL
		ORDER BY c.relname`, table.oid)
	if err != nil {
		return history.OpError("read indexes", err)
	}
	type index struct {
		Name, Definition string
		OID              uint32
		Period           string // a UNIQUE constraint WITHOUT OVERLAPS is made as one
	}
	indexes, err := pgx.CollectRows(rows, pgx.RowToStructByPos[index])
	if err != nil {
		return history.OpError("read indexes", err)
	}
	for _, x := range indexes {
		if owner, err := f.foreignCode(ctx, tx, x.OID); err != nil || owner != "" {
			if err != nil {
				return err
			}
			result.Skipped = append(result.Skipped, fmt.Sprintf("index %s: it calls %s, which another role owns: see Config.TrustOwners", x.Name, owner))
			continue
		}
		definition := x.Definition
		for _, on := range []string{" ON ONLY " + table.live.Ident() + " ", " ON " + table.live.Ident() + " ", " ON ONLY " + table.live.Printed() + " ", " ON " + table.live.Printed() + " "} {
			definition = strings.Replace(definition, on, " ON "+ident+" ", 1)
		}
		if x.Period != "" {
			definition = "ALTER TABLE " + ident + " ADD CONSTRAINT " + pgx.Identifier{x.Name}.Sanitize() + " " + x.Period
		}
		if err := f.try(ctx, tx, definition); err != nil {
			result.Skipped = append(result.Skipped, fmt.Sprintf("index %s: %v", x.Name, err))
		}
	}
	return nil
}

// periodKey defines the primary key, WITHOUT OVERLAPS if the live table's is so.
func periodKey(ctx context.Context, tx pgx.Tx, table *pastTable) (string, error) {
	plain := "PRIMARY KEY (" + quotedList(table.key) + ")"
	if !table.isLike() || !slices.Equal(table.key, table.live.Key) {
		return plain, nil
	}
	var definition string
	err := tx.QueryRow(ctx, `
		SELECT coalesce((SELECT pg_catalog.pg_get_constraintdef(k.oid) FROM pg_catalog.pg_constraint k
			WHERE k.conrelid = $1 AND k.contype = 'p' AND (to_jsonb(k) ->> 'conperiod')::bool), $2)`, table.oid, plain).Scan(&definition)
	return definition, err
}

// foreignCode returns the function of another role that an index calls, or nothing.
func (f Fork) foreignCode(ctx context.Context, tx pgx.Tx, index uint32) (string, error) {
	c, err := f.point.ready()
	if err != nil || c.cfg.TrustOwners {
		return "", err
	}
	var function *string
	err = tx.QueryRow(ctx, `
		SELECT (SELECT f.oid::regprocedure::text
			FROM pg_catalog.pg_depend d
			LEFT JOIN pg_catalog.pg_operator o ON d.refclassid = 'pg_catalog.pg_operator'::regclass AND o.oid = d.refobjid
			JOIN pg_catalog.pg_proc f ON f.oid = CASE WHEN d.refclassid = 'pg_catalog.pg_proc'::regclass THEN d.refobjid ELSE o.oprcode::oid END
			WHERE d.classid = 'pg_catalog.pg_class'::regclass AND d.objid = $1 AND f.oid >= 16384
			  AND NOT pg_catalog.pg_has_role(f.proowner, current_user, 'MEMBER')
			LIMIT 1)`, index).Scan(&function)
	return text(function), history.OpError("read indexes", err)
}

// try runs a statement that may fail.
func (f Fork) try(ctx context.Context, tx pgx.Tx, statement string) error {
	return pgx.BeginFunc(ctx, tx, func(tx pgx.Tx) error {
		_, err := tx.Exec(ctx, statement)
		return err
	})
}

// reference adds the foreign keys of today between tables of the fork.
func (f Fork) reference(ctx context.Context, tx pgx.Tx, table *pastTable, tables []*pastTable, result *ForkResult) error {
	if !table.isLike() {
		return nil
	}
	rows, err := tx.Query(ctx, `
		SELECT c.conname, c.confrelid,
			array(SELECT a.attname::text FROM pg_catalog.unnest(c.conkey) WITH ORDINALITY k(attnum, n)
				JOIN pg_catalog.pg_attribute a ON a.attrelid = c.conrelid AND a.attnum = k.attnum ORDER BY k.n),
			array(SELECT a.attname::text FROM pg_catalog.unnest(c.confkey) WITH ORDINALITY k(attnum, n)
				JOIN pg_catalog.pg_attribute a ON a.attrelid = c.confrelid AND a.attnum = k.attnum ORDER BY k.n),
			coalesce((to_jsonb(c) ->> 'conperiod')::bool, false), coalesce((to_jsonb(c) ->> 'conenforced')::bool, true)
		FROM pg_catalog.pg_constraint c
		WHERE c.conrelid = $1 AND c.contype = 'f' AND c.conparentid = 0
		ORDER BY c.conname`, table.oid)
	if err != nil {
		return history.OpError("read foreign keys", err)
	}
	type key struct {
		Name             string
		Referenced       uint32
		Columns, Foreign []string
		Period, Enforced bool
	}
	keys, err := pgx.CollectRows(rows, pgx.RowToStructByPos[key])
	if err != nil {
		return history.OpError("read foreign keys", err)
	}
	for _, k := range keys {
		at := slices.IndexFunc(tables, func(o *pastTable) bool { return o.oid == k.Referenced })
		if at < 0 {
			continue
		}
		statement := "ALTER TABLE " + f.ident(table.name) + " ADD CONSTRAINT " + pgx.Identifier{k.Name}.Sanitize() +
			" FOREIGN KEY (" + keyList(k.Columns, k.Period) + ") REFERENCES " + f.ident(tables[at].name) + " (" + keyList(k.Foreign, k.Period) + ")"
		if !k.Enforced {
			statement += " NOT ENFORCED"
		}
		err := f.try(ctx, tx, statement)
		if err != nil {
			result.Skipped = append(result.Skipped, fmt.Sprintf("foreign key %s: %v", k.Name, err))
		}
	}
	return nil
}

// keyList is quotedList of a foreign key, the last column of which may be a PERIOD.
func keyList(names []string, period bool) string {
	if !period {
		return quotedList(names)
	}
	last := len(names) - 1
	return quotedList(names[:last]) + ", PERIOD " + quotedList(names[last:])
}

func quotedList(names []string) string {
	quoted := make([]string, len(names))
	for i, name := range names {
		quoted[i] = pgx.Identifier{name}.Sanitize()
	}
	return strings.Join(quoted, ", ")
}
