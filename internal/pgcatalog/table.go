// Package pgcatalog describes tables as the source's catalog has them: their names, columns and
// keys, and which alteration of a type leaves its values' texts as they are.
package pgcatalog

import (
	"context"
	"errors"
	"slices"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgtype"

	"github.com/hindsight-go/audit/capture"
	"github.com/hindsight-go/audit/internal/wal"
	"github.com/hindsight-go/audit/store"
)

// Column is a column of a table as it is, or as it was at some position.
type Column struct {
	Name    string
	Attnum  int16
	TypeOID uint32
	TypeMod int32
	// TypeName is the type as SQL, with its modifier.
	TypeName string
	Kind     wal.Kind
	// Generated reports whether the server computes the value (a stored or virtual
	// generated column), so that images need not hold it. GeneratedKind is
	// attgenerated, Identity attidentity.
	Generated               bool
	GeneratedKind, Identity string
	NotNull                 bool
	// Nondeterministic reports whether different texts are equal by the column's collation, which
	// is named then.
	Nondeterministic bool
	Collation        string
	// Labels are those of an enum.
	Labels []string
	// Expression is that of a generated column; Definition is what its type itself
	// can be altered in.
	Expression, Definition string
	// Rewritten is the transaction that computed its values anew last, see
	// [store.Column.Rewritten].
	Rewritten wal.LSN
}

// Columns is the columns of a version of a table, in the table's order.
type Columns struct {
	List  []Column
	Index map[string]int // by name
}

// NewColumns makes a set of columns, which are in the table's order.
func NewColumns(list []Column) *Columns {
	set := &Columns{List: list, Index: make(map[string]int, len(list))}
	for i, c := range list {
		set.Index[c.Name] = i
	}
	return set
}

// Names returns the names of the columns.
func (s *Columns) Names() []string {
	names := make([]string, len(s.List))
	for i, c := range s.List {
		names[i] = c.Name
	}
	return names
}

// Same reports whether a row of one version is a row of the other.
func (s *Columns) Same(o *Columns) bool {
	return slices.EqualFunc(s.List, o.List, func(a, b Column) bool {
		return a.Name == b.Name && a.TypeOID == b.TypeOID && a.TypeMod == b.TypeMod && a.Attnum == b.Attnum &&
			a.GeneratedKind == b.GeneratedKind && a.Expression == b.Expression && a.Definition == b.Definition && a.Rewritten == b.Rewritten
	})
}

// RewrittenAs returns the columns with what a version of the table knows of when their
// values were computed anew, which the catalog does not.
func (s *Columns) RewrittenAs(newest *store.Version) *Columns {
	list := slices.Clone(s.List)
	for i := range list {
		for _, c := range newest.Columns {
			if c.Attnum == list[i].Attnum {
				list[i].Rewritten = c.Rewritten
			}
		}
	}
	return NewColumns(list)
}

// HasDerived reports whether there is a column that the server computes.
func (s *Columns) HasDerived() bool {
	return slices.ContainsFunc(s.List, func(c Column) bool { return c.Generated })
}

// Table is a table of the source as its catalog describes it now.
type Table struct {
	OID          uint32
	Schema, Name string
	// Kind is pg_class.relkind: r, p, ...
	Kind    string
	Columns *Columns
	// Key holds the names of the primary key's columns, in key order.
	Key []string
	// Parts are the leaves of a partitioned table, or the children of one that others
	// inherit from.
	Parts []uint32
	// Deferrable reports whether two rows may have the same key in the midst of a
	// transaction.
	Deferrable bool
}

// Ident returns the table's name, quoted.
func (t *Table) Ident() string { return pgx.Identifier{t.Schema, t.Name}.Sanitize() }

// KeyNumbers returns the attribute numbers of the key's columns, in key order.
func (t *Table) KeyNumbers() []int16 {
	var numbers []int16
	for _, name := range t.Key {
		numbers = append(numbers, t.Columns.List[t.Columns.Index[name]].Attnum)
	}
	return numbers
}

// ErrNoTable is returned by Describe when there is no such table now.
var ErrNoTable = errors.New("no such table")

// Describe reads what the source's catalog says of a table now. db may be a
// transaction, or the pool, and kinds is of the same database.
func Describe(ctx context.Context, db capture.Querier, kinds *capture.Kinds, oid uint32) (*Table, error) {
	t := &Table{OID: oid}
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
		WHERE c.oid = $1`, oid).Scan(&t.Schema, &t.Name, &t.Kind, &t.Key, &t.Deferrable)
	if errors.Is(err, pgx.ErrNoRows) {
		return nil, ErrNoTable
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
	list, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (col Column, err error) {
		err = row.Scan(&col.Name, &col.Attnum, &col.TypeOID, &col.TypeMod, &col.TypeName, &col.GeneratedKind, &col.Identity, &col.NotNull, &col.Nondeterministic, &col.Collation, &col.Labels)
		col.Generated = col.GeneratedKind != ""
		return col, err
	})
	if err != nil {
		return nil, err
	}
	for i := range list {
		if list[i].Kind, err = kinds.Of(ctx, list[i].TypeOID); err != nil {
			return nil, err
		}
	}
	t.Columns = NewColumns(list)
	structure, err := capture.LookUpStructure(ctx, db, oid)
	if err != nil {
		return nil, err
	}
	if structure == nil {
		return nil, ErrNoTable
	}
	t.Parts = structure.Parts
	for _, a := range structure.Columns {
		if at, ok := t.Columns.Index[a.Name]; ok {
			t.Columns.List[at].Expression, t.Columns.List[at].Definition = a.Expression, a.Definition
		}
	}
	return t, nil
}

// PrintsWithoutSettings reports whether no setting says how the values of a column print.
func (c *Column) PrintsWithoutSettings() bool {
	switch c.TypeOID {
	case 16, 20, 21, 23, 25, 1042, 1043, 1700, 2950, pgtype.JSONBOID: // bool, integers, texts, numeric, uuid, jsonb
		return true
	}
	return len(c.Labels) > 0 // an enum
}

// HasSeveralTexts reports whether a value may be written otherwise in an image than the
// type prints it.
func (c *Column) HasSeveralTexts(retyped bool) bool {
	return retyped || c.Kind.Base == wal.Array || c.TypeOID == 700 || c.TypeOID == 701 ||
		c.Kind.Base == wal.Number && c.TypeOID >= 16384 // a domain, perhaps over a float
}

// PrintsOtherwise reports whether values may be equal and have different texts.
func (c *Column) PrintsOtherwise() bool {
	switch c.TypeOID {
	case 16, 17, 20, 21, 23, 26, 1082, 1114, 1184, 2950: // bool, bytea, integers, oid, date, timestamps, uuid
		return false
	case 25, 1043: // text, varchar
		return c.Nondeterministic
	}
	return true
}

// Keeps reports whether altering a column, or its type, left the texts of its
// values as they were.
func (c Column) Keeps(to Column) bool {
	return c.Rewritten == to.Rewritten && keeps(sqlType{c.TypeOID, c.TypeMod}, sqlType{to.TypeOID, to.TypeMod}) && DefinitionKeeps(c.Definition, to.Definition)
}

// Printed is the table's name as the server prints it, with quotes only where
// they are needed.
func (t *Table) Printed() string { return QuoteIdent(t.Schema) + "." + QuoteIdent(t.Name) }
