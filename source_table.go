package audit

import (
	"context"
	"errors"
	"slices"

	"github.com/jackc/pgx/v5"

	"github.com/hindsight-go/audit/capture"
	"github.com/hindsight-go/audit/internal/wal"
	"github.com/hindsight-go/audit/store"
)

// column is a column of a table as it is, or as it was at some position.
type column struct {
	name    string
	attnum  int16
	typeOID uint32
	typeMod int32
	// typeName is the type as SQL, with its modifier.
	typeName string
	kind     wal.Kind
	// derived tells that the server computes the value (a stored or virtual
	// generated column), so that images need not hold it; generated is
	// attgenerated, identity attidentity.
	derived             bool
	generated, identity string
	notNull             bool
	// loose tells that different texts are equal by the column's collation, which is
	// named then.
	loose     bool
	collation string
	// labels are those of an enum.
	labels []string
	// expression is that of a generated column; definition is what its type itself
	// can be altered in.
	expression, definition string
	// rewritten is the transaction that computed its values anew last, see
	// [store.Column.Rewritten].
	rewritten wal.LSN
}

// columnSet is the columns of a version of a table, in the table's order.
type columnSet struct {
	list  []column
	index map[string]int // by name
}

func newColumnSet(list []column) *columnSet {
	set := &columnSet{list: list, index: make(map[string]int, len(list))}
	for i, c := range list {
		set.index[c.name] = i
	}
	return set
}

// names returns the names of the columns.
func (s *columnSet) names() []string {
	names := make([]string, len(s.list))
	for i, c := range s.list {
		names[i] = c.name
	}
	return names
}

// same tells that a row of one version is a row of the other.
func (s *columnSet) same(o *columnSet) bool {
	return slices.EqualFunc(s.list, o.list, func(a, b column) bool {
		return a.name == b.name && a.typeOID == b.typeOID && a.typeMod == b.typeMod && a.attnum == b.attnum &&
			a.generated == b.generated && a.expression == b.expression && a.definition == b.definition && a.rewritten == b.rewritten
	})
}

// rewrittenAs returns the columns with what a version of the table knows of when their
// values were computed anew, which the catalog does not.
func (s *columnSet) rewrittenAs(newest *store.Version) *columnSet {
	list := slices.Clone(s.list)
	for i := range list {
		for _, c := range newest.Columns {
			if c.Attnum == list[i].attnum {
				list[i].rewritten = c.Rewritten
			}
		}
	}
	return newColumnSet(list)
}

// hasDerived tells that there is a column that the server computes.
func (s *columnSet) hasDerived() bool {
	return slices.ContainsFunc(s.list, func(c column) bool { return c.derived })
}

// sourceTable is a table of the source as its catalog describes it now.
type sourceTable struct {
	oid          uint32
	schema, name string
	// kind is pg_class.relkind: r, p, ...
	kind    string
	columns *columnSet
	// key holds the names of the primary key's columns, in key order.
	key []string
	// parts are the leaves of a partitioned table, or the children of one that others
	// inherit from.
	parts []uint32
	// deferrable tells that two rows may have the same key in the midst of a
	// transaction.
	deferrable bool
}

// ident returns the table's name, quoted.
func (t *sourceTable) ident() string { return pgx.Identifier{t.schema, t.name}.Sanitize() }

// keyNumbers returns the attribute numbers of the key's columns, in key order.
func (t *sourceTable) keyNumbers() []int16 {
	var numbers []int16
	for _, name := range t.key {
		numbers = append(numbers, t.columns.list[t.columns.index[name]].attnum)
	}
	return numbers
}

// errNoTable is returned by describeTable when there is no such table now.
var errNoTable = errors.New("no such table")

// describeTable reads what the source's catalog says of a table now. db may be a
// transaction, or the pool, and kinds is of the same database.
func describeTable(ctx context.Context, db capture.Querier, kinds *capture.Kinds, oid uint32) (*sourceTable, error) {
	t := &sourceTable{oid: oid}
	err := db.QueryRow(ctx, `
		SELECT n.nspname, c.relname, c.relkind::text,
			coalesce((SELECT array_agg(a.attname::text ORDER BY k.n)
				FROM pg_catalog.pg_index i, unnest((i.indkey::int2[])[0:i.indnkeyatts - 1]) WITH ORDINALITY k(attnum, n)
				JOIN pg_catalog.pg_attribute a ON a.attnum = k.attnum
				WHERE i.indrelid = c.oid AND i.indisprimary AND a.attrelid = c.oid
				HAVING `+capture.KeyIsSent+`), '{}'),
			EXISTS (SELECT FROM pg_catalog.pg_index i WHERE i.indrelid = c.oid AND i.indisprimary AND NOT i.indimmediate)
		FROM pg_catalog.pg_class c
		JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
		WHERE c.oid = $1`, oid).Scan(&t.schema, &t.name, &t.kind, &t.key, &t.deferrable)
	if errors.Is(err, pgx.ErrNoRows) {
		return nil, errNoTable
	}
	if err != nil {
		return nil, err
	}
	rows, err := db.Query(ctx, `
		SELECT a.attname, a.attnum, a.atttypid, a.atttypmod, pg_catalog.format_type(a.atttypid, a.atttypmod),
			a.attgenerated::text, a.attidentity::text, a.attnotnull, coalesce(NOT c.collisdeterministic, false),
			coalesce(CASE WHEN NOT c.collisdeterministic THEN (SELECT pg_catalog.quote_ident(n.nspname) FROM pg_catalog.pg_namespace n WHERE n.oid = c.collnamespace) || '.' || pg_catalog.quote_ident(c.collname) END, ''),
			array(SELECT e.enumlabel::text FROM pg_catalog.pg_enum e WHERE e.enumtypid = a.atttypid)
		FROM pg_catalog.pg_attribute a
		LEFT JOIN pg_catalog.pg_collation c ON c.oid = a.attcollation
		WHERE a.attrelid = $1 AND a.attnum > 0 AND NOT a.attisdropped
		ORDER BY a.attnum`, oid)
	if err != nil {
		return nil, err
	}
	list, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (col column, err error) {
		err = row.Scan(&col.name, &col.attnum, &col.typeOID, &col.typeMod, &col.typeName, &col.generated, &col.identity, &col.notNull, &col.loose, &col.collation, &col.labels)
		col.derived = col.generated != ""
		return col, err
	})
	if err != nil {
		return nil, err
	}
	for i := range list {
		if list[i].kind, err = kinds.Of(ctx, list[i].typeOID); err != nil {
			return nil, err
		}
	}
	t.columns = newColumnSet(list)
	structure, err := capture.LookUpStructure(ctx, db, oid)
	if err != nil {
		return nil, err
	}
	if structure == nil {
		return nil, errNoTable
	}
	t.parts = structure.Parts
	for _, a := range structure.Columns {
		if at, ok := t.columns.index[a.Name]; ok {
			t.columns.list[at].expression, t.columns.list[at].definition = a.Expression, a.Definition
		}
	}
	return t, nil
}
