package capture

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/hindsight-go/audit/internal/wal"
)

// lookupTimeout bounds a look into the catalog in the midst of the stream.
const lookupTimeout = 10 * time.Second

// lookupError marks an error of the catalog connection, not of the stream.
type lookupError struct{ err error }

func (e *lookupError) Error() string { return e.err.Error() }
func (e *lookupError) Unwrap() error { return e.err }

// describe makes a relation of a Relation message and of what only the catalog
// knows: the primary key (with REPLICA IDENTITY FULL the message flags every
// column), the root of a partition, the kinds of types that are not built in.
//
// The catalog is that of now, the message that of then. A table that is gone
// is described by the message alone, and the store supplies the key it had.
func (s *session) describe(ctx context.Context, m relationMessage) (*wal.Relation, error) {
	ctx, cancel := context.WithTimeout(ctx, lookupTimeout)
	defer cancel()
	rel := &wal.Relation{OID: m.OID, Schema: m.Schema, Table: m.Table, ReplicaIdentity: m.ReplicaIdentity, Columns: m.Columns}
	facts, err := lookUpColumns(ctx, s.cfg.Catalog, m.OID)
	if err != nil {
		return nil, &lookupError{fmt.Errorf("look up table %s.%s: %w", m.Schema, m.Table, err)}
	}
	for i := range rel.Columns {
		c := &rel.Columns[i]
		if c.Kind, err = s.kinds.Of(ctx, c.TypeOID); err != nil {
			return nil, &lookupError{fmt.Errorf("look up type %d of column %s.%s.%s: %w", c.TypeOID, m.Schema, m.Table, c.Name, err)}
		}
		if f, ok := facts.columns[c.Name]; ok {
			c.Attnum, c.Generated, c.AttIdentity = f.attnum, f.generated, f.identity
			if f.typeOID == c.TypeOID {
				c.Type = f.typeName
			}
		}
	}
	if facts.exists {
		// Only a partition takes its name from the catalog: a table renamed since
		// had the name that the message says.
		if facts.partition {
			rel.Partition = pgx.Identifier{m.Schema, m.Table}.Sanitize()
			rel.Schema, rel.Table = facts.rootSchema, facts.rootTable
			rel.Root, rel.Leaves = facts.root, facts.leaves
		}
		rel.Key = keyIndexes(rel.Columns, facts.key)
		// A key with other columns than those of then, renamed since, is not that
		// of then.
		rel.Known = len(rel.Key) == len(facts.key)
	}
	if rel.Key == nil && m.ReplicaIdentity == 'd' {
		// With the default identity the flags are the primary key.
		for i, c := range rel.Columns {
			if c.Identity {
				rel.Key = append(rel.Key, i)
			}
		}
	}
	return rel, nil
}

// keyIndexes returns where the key's columns stand, or nil if one was added to
// the key since.
func keyIndexes(columns []wal.Column, key []string) []int {
	var at []int
	for _, name := range key {
		i := slices.IndexFunc(columns, func(c wal.Column) bool { return c.Name == name })
		if i < 0 {
			return nil
		}
		at = append(at, i)
	}
	return at
}

type tableFacts struct {
	exists, partition     bool
	rootSchema, rootTable string
	root                  uint32
	leaves                int
	key                   []string
	columns               map[string]columnFacts
}

type columnFacts struct {
	attnum              int16
	typeOID             uint32
	typeName            string
	generated, identity string
}

func lookUpColumns(ctx context.Context, db Querier, oid uint32) (tableFacts, error) {
	facts := tableFacts{columns: make(map[string]columnFacts)}
	err := db.QueryRow(ctx, `
		SELECT n.nspname, c.relname, leaf.relispartition, c.oid,
			CASE WHEN leaf.relispartition THEN (SELECT count(*) FROM pg_catalog.pg_partition_tree(c.oid) t WHERE t.isleaf) ELSE 0 END
		FROM pg_catalog.pg_class leaf
		JOIN pg_catalog.pg_class c ON c.oid = CASE WHEN leaf.relispartition THEN pg_catalog.pg_partition_root(leaf.oid) ELSE leaf.oid END
		JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
		WHERE leaf.oid = $1`, oid).Scan(&facts.rootSchema, &facts.rootTable, &facts.partition, &facts.root, &facts.leaves)
	if errors.Is(err, pgx.ErrNoRows) {
		return facts, nil
	}
	if err != nil {
		return facts, err
	}
	facts.exists = true
	rows, err := db.Query(ctx, `
		SELECT a.attname, a.attnum, a.atttypid, pg_catalog.format_type(a.atttypid, a.atttypmod), a.attgenerated::text, a.attidentity::text,
			coalesce(array_position((i.indkey::int2[])[0:i.indnkeyatts - 1], a.attnum), -1)
		FROM pg_catalog.pg_attribute a
		LEFT JOIN pg_catalog.pg_index i ON i.indrelid = a.attrelid AND i.indisprimary
		WHERE a.attrelid = $1 AND a.attnum > 0 AND NOT a.attisdropped
		ORDER BY 7`, oid)
	if err != nil {
		return facts, err
	}
	defer rows.Close()
	for rows.Next() {
		var name string
		var f columnFacts
		var inKey int
		if err := rows.Scan(&name, &f.attnum, &f.typeOID, &f.typeName, &f.generated, &f.identity, &inKey); err != nil {
			return facts, err
		}
		facts.columns[name] = f
		if inKey >= 0 {
			facts.key = append(facts.key, name)
		}
	}
	return facts, rows.Err()
}
