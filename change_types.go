package audit

import (
	"context"
	"maps"
	"slices"
	"sync"

	"github.com/jackc/pgx/v5"

	"github.com/hindsight-go/audit/internal/history"
	"github.com/hindsight-go/audit/store"
)

// ColumnType is the type of a column, as the stream of changes named it.
type ColumnType struct {
	// Name is the type as DDL writes it, "numeric(12,2)". It is empty for a type of the
	// database's own that was gone when it was looked up.
	Name string `json:"name"`
	// OID identifies the type. It means the same everywhere for types that PostgreSQL
	// ships, and only in the source for others.
	OID uint32 `json:"oid"`
	// Base is the OID of the type under a domain, and 0 for other types.
	Base uint32 `json:"base,omitempty"`
}

// tableVersion is what the columns of a table were from a position on.
type tableVersion struct {
	from  LSN
	types map[string]ColumnType
	// withheld are the columns of which the values are not stored, nil if there are none.
	withheld map[string]ColumnPolicy
}

// columnTypes remembers the types of the tables that changes were read of.
type columnTypes struct {
	mu     sync.Mutex
	tables map[tableKey]knownVersions // guarded by mu
}

type tableKey struct{ database, schema, table string }

// knownVersions are the versions of a table that changes up to a position can have.
type knownVersions struct {
	upTo     LSN
	versions []tableVersion // in the order of their positions
}

// maxKnownTables bounds what is remembered.
const maxKnownTables = 10_000

// describeColumns sets the types of the changes. Those that the store does not tell, or
// not to this role, stay unknown.
func (c *Client) describeColumns(ctx context.Context, changes []Change) error {
	newest := make(map[tableKey]LSN)
	for i := range changes {
		key := tableKey{changes[i].Database, changes[i].Schema, changes[i].Table}
		newest[key] = max(newest[key], changes[i].Position.LSN)
	}
	known := c.types.of(newest)
	read, err := c.readVersions(ctx, newest)
	if err != nil && !history.IsCode(err, "42501") && !history.IsUndefined(err) {
		return history.OpError("read changes", err)
	}
	c.types.add(read)
	maps.Copy(known, read)
	for i := range changes {
		change := &changes[i]
		for _, v := range known[tableKey{change.Database, change.Schema, change.Table}].versions {
			if change.Types == nil || v.from <= change.Position.LSN {
				change.Types, change.Withheld = v.types, v.withheld
			}
		}
	}
	return nil
}

// of returns what is known of the tables up to the positions, and takes these out.
func (t *columnTypes) of(upTo map[tableKey]LSN) map[tableKey]knownVersions {
	t.mu.Lock()
	defer t.mu.Unlock()
	found := make(map[tableKey]knownVersions)
	for key, position := range upTo {
		if known, ok := t.tables[key]; ok && known.upTo >= position {
			found[key] = known
			delete(upTo, key)
		}
	}
	return found
}

func (t *columnTypes) add(read map[tableKey]knownVersions) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.tables == nil || len(t.tables) > maxKnownTables {
		t.tables = make(map[tableKey]knownVersions)
	}
	for key, known := range read {
		if t.tables[key].upTo <= known.upTo {
			t.tables[key] = known
		}
	}
}

// readVersions reads the versions of tables.
func (c *Client) readVersions(ctx context.Context, upTo map[tableKey]LSN) (map[tableKey]knownVersions, error) {
	if len(upTo) == 0 {
		return nil, nil
	}
	var databases, schemas, tables []string
	for key := range upTo {
		databases, schemas, tables = append(databases, key.database), append(schemas, key.schema), append(tables, key.table)
	}
	rows, err := c.history.Listings.Query(ctx, `
		SELECT r.database, r.schema, r."table", r.position, r.columns
		FROM unnest($1::text[], $2::text[], $3::text[]) AS u (database, schema, "table")
		JOIN `+c.history.Relation("relations")+` AS r USING (database, schema, "table")
		ORDER BY r.position`, databases, schemas, tables)
	if err != nil {
		return nil, err
	}
	read := make(map[tableKey]knownVersions)
	for key, position := range upTo {
		read[key] = knownVersions{upTo: position}
	}
	var key tableKey
	var from lsnText
	var columns []store.Column
	_, err = pgx.ForEachRow(rows, []any{&key.database, &key.schema, &key.table, &from, &columns}, func() error {
		v := tableVersion{from: LSN(from), types: make(map[string]ColumnType, len(columns))}
		for _, column := range columns {
			if column.Policy != "" {
				if v.withheld == nil {
					v.withheld = make(map[string]ColumnPolicy)
				}
				v.withheld[column.Name] = columnPolicy(column.Policy)
			}
			v.types[column.Name] = ColumnType{column.Type, column.TypeOID, column.Base()}
		}
		known := read[key]
		known.versions = append(slices.Clip(known.versions), v)
		read[key], columns = known, nil
		return nil
	})
	if err != nil {
		return nil, err
	}
	return read, nil
}
