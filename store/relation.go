package store

import (
	"context"
	"encoding/json"
	"fmt"
	"strconv"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/hindsight-go/audit/internal/wal"
)

// Column describes a column of a version of a table, as relations holds it.
type Column struct {
	Name    string `json:"name"`
	Type    string `json:"type,omitempty"`
	TypeOID uint32 `json:"typeOid"`
	TypeMod int32  `json:"typeMod"`
	// Attnum is 0 where the catalog could not be asked.
	Attnum     int16  `json:"attnum,omitempty"`
	Generated  string `json:"generated,omitempty"`
	Expression string `json:"expression,omitempty"`
	Identity   string `json:"identity,omitempty"`
	// Definition is what the type itself can be altered in: the labels of an enum,
	// the attributes of a composite type.
	Definition string `json:"definition,omitempty"`
	// Rewritten is the transaction that computed the values anew last, by ALTER TABLE
	// ... USING: values from before mean something else.
	Rewritten wal.LSN `json:"rewritten,omitempty"`
	// Policy is how much of the values is stored.
	Policy wal.Policy `json:"policy,omitempty"`
}

// Base is the OID of the type under a domain, and 0 for other types.
func (c Column) Base() uint32 {
	var entries []string
	if !strings.Contains(c.Definition, `"base `) || json.Unmarshal([]byte(c.Definition), &entries) != nil {
		return 0
	}
	for _, entry := range entries {
		if oid, ok := strings.CutPrefix(entry, "base "); ok {
			n, _ := strconv.ParseUint(oid, 10, 32)
			return uint32(n)
		}
	}
	return 0
}

// keyNames returns the names of the key's columns.
func keyNames(s *wal.Structure) []string {
	names := []string{}
	for _, attnum := range s.Key {
		for _, a := range s.Columns {
			if a.Attnum == attnum {
				names = append(names, a.Name)
			}
		}
	}
	return names
}

// insertStructure records a version of a table behind the first sequence changes
// of the transaction at position.
func insertStructure(schema, database string, s *wal.Structure, position wal.LSN, sequence int32) string {
	columns, err := json.Marshal(append([]wal.Attribute{}, s.Columns...))
	if err != nil {
		panic("store: columns are plain strings and numbers: " + err.Error())
	}
	after, root := "NULL", "NULL"
	if s.After != 0 {
		after = "'" + s.After.String() + "'"
	}
	if s.Root != 0 {
		root = uintText(s.Root)
	}
	parts := make([]string, len(s.Parts))
	for i, oid := range s.Parts {
		parts[i] = uintText(oid)
	}
	name, table := s.Schema, s.Table
	if s.Root != 0 {
		name, table = s.RootSchema, s.RootTable // which is where its changes stand
	}
	return strings.Join([]string{
		"SELECT ", schema, ".record_structure(",
		quoteLiteral(database), ", ", uintText(s.OID), ", '", position.String(), "', ", fmt.Sprint(sequence), ", ", after, ", ",
		quoteLiteral(name), ", ", quoteLiteral(table), ", ", quoteLiteral(s.Kind), ", ", root, ", '{", strings.Join(parts, ","), "}', ",
		quoteLiteral(string(columns)), ", ", arrayLiteral(keyNames(s)), ", ", fmt.Sprint(s.Dropped), ", ", fmt.Sprint(s.Guessed), ", ", fmt.Sprint(s.Attached), ", ", uintText(s.KeyConstraint),
		")",
	}, "")
}

// Structures returns the newest structure of each relation that the store knows,
// by OID: with it capture goes on where it left off.
func (s *Store) Structures(ctx context.Context, database string) (map[uint32]*wal.Structure, error) {
	rows, err := s.pool.Query(ctx, `
		SELECT DISTINCT ON (relation_id) relation_id, position::text, schema, "table", kind, coalesce(root_id, 0), parts, columns, primary_key, key_constraint, dropped, guessed
		FROM `+s.schema+`.relations
		WHERE database = $1
		ORDER BY relation_id, relations.position DESC, sequence DESC`, database)
	if err != nil {
		return nil, fmt.Errorf("read relations of %q: %w", database, err)
	}
	known := make(map[uint32]*wal.Structure)
	var oid, root, constraint int64
	var at wal.LSN
	var schema, table, kind string
	var parts []int64
	var columns []wal.Attribute
	var key []string
	var dropped, guessed bool
	_, err = pgx.ForEachRow(rows, []any{&oid, &at, &schema, &table, &kind, &root, &parts, &columns, &key, &constraint, &dropped, &guessed}, func() error {
		v := &wal.Structure{OID: uint32(oid), Schema: schema, Table: table, Kind: kind, Root: uint32(root), Columns: columns, Dropped: dropped, Guessed: guessed, KeyConstraint: uint32(constraint), At: at}
		if root != 0 {
			v.RootSchema, v.RootTable = schema, table
		}
		for _, p := range parts {
			v.Parts = append(v.Parts, uint32(p))
		}
		for _, name := range key {
			for _, a := range columns {
				if a.Name == name {
					v.Key = append(v.Key, a.Attnum)
				}
			}
		}
		known[v.OID] = v
		columns = nil
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("read relations of %q: %w", database, err)
	}
	return known, nil
}

// Token returns the word by which capture knows its own messages about
// structures, and makes it if there is none.
func (s *Store) Token(ctx context.Context, database string) (string, error) {
	var token string
	err := s.pool.QueryRow(ctx, `
		WITH made AS (
			INSERT INTO `+s.schema+`.tokens (database, token)
			SELECT $1, pg_catalog.replace(pg_catalog.gen_random_uuid()::text || pg_catalog.gen_random_uuid()::text, '-', '')
			WHERE NOT EXISTS (SELECT FROM `+s.schema+`.tokens WHERE database = $1)
			ON CONFLICT DO NOTHING
			RETURNING token)
		SELECT token FROM made UNION ALL SELECT token FROM `+s.schema+`.tokens WHERE database = $1`, database).Scan(&token)
	if err != nil {
		return "", fmt.Errorf("read token of %q: %w", database, err)
	}
	return token, nil
}
