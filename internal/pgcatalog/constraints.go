package pgcatalog

import (
	"context"
	"fmt"

	"github.com/jackc/pgx/v5"

	"github.com/hindsight-go/audit/capture"
)

// Constraints are what the catalog says of a table beyond its columns: what rows of it have to
// meet, and what happens when they are written.
type Constraints struct {
	// KeyOperators are the equality operators of the primary key's columns, in key order:
	// that of a type in another schema is not found by its bare name.
	KeyOperators []string
	// Triggers reports whether the application has triggers on the table, or on a partition
	// of it, Unenforced whether triggers are off by which the server enforces a foreign key.
	Triggers, Unenforced bool
	// RowSecurity reports whether row-level security may keep rows of it from the role.
	RowSecurity bool
	// Parents are the foreign keys of this table, Children those of others (or its
	// own) that reference it.
	Parents, Children []*ForeignKey
	Unique            []*UniqueIndex
	Checks            []Check
}

// ReadConstraints reads the constraints of tables, by their OIDs. db may be a transaction, or
// the pool.
func ReadConstraints(ctx context.Context, db capture.Querier, oids []uint32) (map[uint32]*Constraints, error) {
	all := make(map[uint32]*Constraints, len(oids))
	for _, oid := range oids {
		all[oid] = &Constraints{}
	}
	if err := readKeys(ctx, db, oids, all); err != nil {
		return nil, fmt.Errorf("read keys: %w", err)
	}
	if err := readForeignKeys(ctx, db, oids, all); err != nil {
		return nil, fmt.Errorf("read foreign keys: %w", err)
	}
	if err := readUniqueIndexes(ctx, db, oids, all); err != nil {
		return nil, fmt.Errorf("read unique indexes: %w", err)
	}
	if err := readChecks(ctx, db, oids, all); err != nil {
		return nil, fmt.Errorf("read check constraints: %w", err)
	}
	return all, nil
}

// readKeys finds the operators of the primary keys, and whether there are
// triggers, on partitions, too.
func readKeys(ctx context.Context, db capture.Querier, oids []uint32, all map[uint32]*Constraints) error {
	rows, err := db.Query(ctx, `
		SELECT c.oid, triggers.own, triggers.off,
			pg_catalog.row_security_active(c.oid),
			coalesce((SELECT array_agg('OPERATOR(' || pg_catalog.quote_ident(n.nspname) || '.' || o.oprname || ')' ORDER BY k.n)
				FROM pg_catalog.pg_index i, unnest(i.indclass::oid[]) WITH ORDINALITY k(class, n)
				JOIN pg_catalog.pg_opclass oc ON oc.oid = k.class
				JOIN pg_catalog.pg_am m ON m.oid = oc.opcmethod
				JOIN pg_catalog.pg_amop a ON a.amopfamily = oc.opcfamily AND a.amoplefttype = oc.opcintype AND a.amoprighttype = oc.opcintype
				JOIN pg_catalog.pg_operator o ON o.oid = a.amopopr AND CASE m.amname WHEN 'btree' THEN a.amopstrategy = 3 ELSE o.oprname = '=' END -- keys WITHOUT OVERLAPS are in a gist
				JOIN pg_catalog.pg_namespace n ON n.oid = o.oprnamespace
				WHERE i.indrelid = c.oid AND i.indisprimary), '{}')
		FROM pg_catalog.pg_class c,
		LATERAL (
			SELECT coalesce(bool_or(NOT g.tgisinternal AND g.tgenabled IN ('O', 'A')), false) AS own,
				coalesce(bool_or(g.tgisinternal AND g.tgenabled NOT IN ('O', 'A')), false) AS off
			FROM pg_catalog.pg_trigger g
			WHERE g.tgrelid = c.oid OR c.relkind = 'p' AND g.tgrelid IN (SELECT relid FROM pg_catalog.pg_partition_tree(c.oid))) AS triggers
		WHERE c.oid = ANY($1::oid[])`, oids)
	if err != nil {
		return err
	}
	var oid uint32
	var triggers, unenforced, hidden bool
	var ops []string
	_, err = pgx.ForEachRow(rows, []any{&oid, &triggers, &unenforced, &hidden, &ops}, func() error {
		all[oid].Triggers, all[oid].Unenforced, all[oid].RowSecurity, all[oid].KeyOperators = triggers, unenforced, hidden, ops
		ops = nil
		return nil
	})
	return err
}
