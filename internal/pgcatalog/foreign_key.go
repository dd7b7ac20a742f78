package pgcatalog

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/hindsight-go/audit/capture"
)

// ForeignKey is a foreign key constraint.
type ForeignKey struct {
	Name                      string
	ChildOID, ParentOID       uint32
	ChildSchema, ChildTable   string
	ParentSchema, ParentTable string
	ChildKind, ParentKind     string
	Columns, References       []string
	ReferenceTypes            []string
	Operators                 []string // between the referenced and the referencing column
	OnDelete, OnUpdate        string   // a: no action, r: restrict, c: cascade, n: set null, d: set default
	Deferrable, Deferred      bool
	Nullable                  bool     // every referencing column can be NULL
	ChildKey, ParentKey       []string // the primary keys of the two tables
	Schema                    string
	// Period reports whether the last column is a PERIOD: the referenced rows have to cover
	// that of the referencing one together.
	Period bool
}

func onlyIdent(schema, name, kind string) string {
	if kind == "p" {
		return pgx.Identifier{schema, name}.Sanitize()
	}
	return "ONLY " + pgx.Identifier{schema, name}.Sanitize()
}

// canDefer reports whether a constraint k can be deferred by its name, which others in the
// schema may have: if one of them cannot be deferred, none of them can.
const canDefer = `(k.condeferrable AND NOT EXISTS (SELECT FROM pg_catalog.pg_constraint o
				WHERE o.conname = k.conname AND o.connamespace = k.connamespace AND NOT o.condeferrable))`

func readForeignKeys(ctx context.Context, db capture.Querier, oids []uint32, all map[uint32]*Constraints) error {
	rows, err := db.Query(ctx, `
		SELECT k.conname, kn.nspname, k.conrelid, k.confrelid, fn.nspname, f.relname, tn.nspname, t.relname, f.relkind::text, t.relkind::text,
			k.confdeltype::text, k.confupdtype::text, `+canDefer+`, k.condeferred, cols.names, cols.refs, cols.types, cols.ops, cols.nullable,
			keys.from_key, keys.to_key, coalesce((to_jsonb(k) ->> 'conperiod')::bool, false)
		FROM pg_catalog.pg_constraint k
		JOIN pg_catalog.pg_namespace kn ON kn.oid = k.connamespace
		JOIN pg_catalog.pg_class f ON f.oid = k.conrelid
		JOIN pg_catalog.pg_namespace fn ON fn.oid = f.relnamespace
		JOIN pg_catalog.pg_class t ON t.oid = k.confrelid
		JOIN pg_catalog.pg_namespace tn ON tn.oid = t.relnamespace,
		LATERAL (
			SELECT array_agg(a.attname::text ORDER BY c.n) AS names, array_agg(r.attname::text ORDER BY c.n) AS refs,
				array_agg(pg_catalog.format_type(r.atttypid, r.atttypmod) ORDER BY c.n) AS types,
				array_agg('OPERATOR(' || pg_catalog.quote_ident(n.nspname) || '.' || o.oprname || ')' ORDER BY c.n) AS ops,
				bool_and(NOT a.attnotnull) AS nullable
			FROM unnest(k.conkey, k.confkey, k.conpfeqop) WITH ORDINALITY c(con, conf, op, n)
			JOIN pg_catalog.pg_attribute a ON a.attrelid = k.conrelid AND a.attnum = c.con
			JOIN pg_catalog.pg_attribute r ON r.attrelid = k.confrelid AND r.attnum = c.conf
			JOIN pg_catalog.pg_operator o ON o.oid = c.op
			JOIN pg_catalog.pg_namespace n ON n.oid = o.oprnamespace) cols,
		LATERAL (
			SELECT coalesce((SELECT array_agg(a.attname::text ORDER BY x.n)
					FROM pg_catalog.pg_index i, unnest((i.indkey::int2[])[0:i.indnkeyatts - 1]) WITH ORDINALITY x(attnum, n)
					JOIN pg_catalog.pg_attribute a ON a.attnum = x.attnum
					WHERE i.indrelid = k.conrelid AND i.indisprimary AND a.attrelid = k.conrelid), '{}') AS from_key,
				coalesce((SELECT array_agg(a.attname::text ORDER BY x.n)
					FROM pg_catalog.pg_index i, unnest((i.indkey::int2[])[0:i.indnkeyatts - 1]) WITH ORDINALITY x(attnum, n)
					JOIN pg_catalog.pg_attribute a ON a.attnum = x.attnum
					WHERE i.indrelid = k.confrelid AND i.indisprimary AND a.attrelid = k.confrelid), '{}') AS to_key) keys
		WHERE k.contype = 'f' AND k.conparentid = 0 AND coalesce((to_jsonb(k) ->> 'conenforced')::bool, true) AND (k.conrelid = ANY($1::oid[]) OR k.confrelid = ANY($1::oid[]))
		ORDER BY k.conrelid, k.conname`, oids)
	if err != nil {
		return err
	}
	keys, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (*ForeignKey, error) {
		f := &ForeignKey{}
		err := row.Scan(&f.Name, &f.Schema, &f.ChildOID, &f.ParentOID, &f.ChildSchema, &f.ChildTable, &f.ParentSchema, &f.ParentTable, &f.ChildKind, &f.ParentKind,
			&f.OnDelete, &f.OnUpdate, &f.Deferrable, &f.Deferred, &f.Columns, &f.References, &f.ReferenceTypes, &f.Operators, &f.Nullable, &f.ChildKey, &f.ParentKey, &f.Period)
		return f, err
	})
	for _, f := range keys {
		if t := all[f.ChildOID]; t != nil {
			t.Parents = append(t.Parents, f)
		}
		if t := all[f.ParentOID]; t != nil {
			t.Children = append(t.Children, f)
		}
	}
	return err
}

// Which row is whose parent says the operator of the foreign key: equal keys may have
// different texts. Only where the texts are the same nobody has to be asked.

// Operator is the operator between the i-th referenced and referencing columns.
func (f *ForeignKey) Operator(i int) string {
	if f.Period && i == len(f.Columns)-1 {
		return "OPERATOR(pg_catalog.&&)"
	}
	return f.Operators[i]
}

// Match is the condition that a row with the referenced columns is the parent of one
// with the referencing columns.
func (f *ForeignKey) Match(parent, child string) string {
	parts := make([]string, len(f.Columns))
	for i := range f.Columns {
		parts[i] = fmt.Sprintf("%s %s %s", ColumnIdent(parent, f.References[i]), f.Operator(i), ColumnIdent(child, f.Columns[i]))
	}
	return strings.Join(parts, " AND ")
}

// Texts is the SQL of the referencing columns' texts, given that of none being NULL.
func (f *ForeignKey) Texts(child string) (texts, given string) {
	parts, conditions := make([]string, len(f.Columns)), make([]string, len(f.Columns))
	for i, name := range f.Columns {
		parts[i] = "pg_catalog.concat(" + ColumnIdent(child, name) + ")"
		conditions[i] = ColumnIdent(child, name) + " IS NOT NULL"
	}
	return "ARRAY[" + strings.Join(parts, ", ") + "]::text[]", strings.Join(conditions, " AND ")
}

// ParentKeyOf returns the parent's primary key if that is what is referenced.
func (f *ForeignKey) ParentKeyOf(values []string) []string {
	key := make([]string, len(f.ParentKey))
	for i, name := range f.ParentKey {
		at := slices.Index(f.References, name)
		if at < 0 {
			return nil
		}
		key[i] = values[at]
	}
	return slices.Clone(key)
}

// ChildIdent names the referencing table in FROM, quoted, without what inherits from it.
func (f *ForeignKey) ChildIdent() string { return onlyIdent(f.ChildSchema, f.ChildTable, f.ChildKind) }

// ParentIdent names the referenced table in FROM, quoted, without what inherits from it.
func (f *ForeignKey) ParentIdent() string {
	return onlyIdent(f.ParentSchema, f.ParentTable, f.ParentKind)
}

// ChildName is the referencing table's name for people and for filters.
func (f *ForeignKey) ChildName() string { return Qualified(f.ChildSchema, f.ChildTable) }

// ParentName is the referenced table's name for people and for filters.
func (f *ForeignKey) ParentName() string { return Qualified(f.ParentSchema, f.ParentTable) }

// Constraint is the name of the constraint, quoted, with its schema.
func (f *ForeignKey) Constraint() string {
	return pgx.Identifier{f.Schema, f.Name}.Sanitize()
}
