package store

import (
	"encoding/json"
	"slices"
	"strings"

	"github.com/hindsight-go/audit/internal/wal"
)

// Column describes a column of a version of a table, as relations holds it.
type Column struct {
	Name      string `json:"name"`
	Type      string `json:"type,omitempty"`
	TypeOID   uint32 `json:"typeOid"`
	TypeMod   int32  `json:"typeMod"`
	Attnum    int16  `json:"attnum,omitempty"`
	Generated string `json:"generated,omitempty"`
	Identity  string `json:"identity,omitempty"`
}

// relationVersion is what relations holds of a version of a table, but for the
// position from which it is valid.
type relationVersion struct {
	oid      uint32
	name     string // schema, NUL, table
	identity string
	columns  []Column
	key      []string
}

func newRelationVersion(rel *wal.Relation) relationVersion {
	v := relationVersion{oid: rel.OID, name: rel.Schema + "\x00" + rel.Table, identity: string(rel.ReplicaIdentity)}
	for _, c := range rel.Columns {
		v.columns = append(v.columns, Column{
			Name: c.Name, Type: c.Type, TypeOID: c.TypeOID, TypeMod: c.TypeMod,
			Attnum: c.Attnum, Generated: c.Generated, Identity: c.AttIdentity,
		})
	}
	for _, i := range rel.Key {
		v.key = append(v.key, rel.Columns[i].Name)
	}
	return v
}

func (v relationVersion) equal(o relationVersion) bool {
	return v.oid == o.oid && v.name == o.name && v.identity == o.identity && slices.Equal(v.key, o.key) && slices.Equal(v.columns, o.columns)
}

// mergeColumns gives the columns of a version that the catalog no longer knew
// the facts that an earlier version of the same table had.
func (v relationVersion) mergeColumns(bare relationVersion) []Column {
	merged := slices.Clone(bare.columns)
	for i, c := range merged {
		for _, before := range v.columns {
			if before.Name == c.Name && before.TypeOID == c.TypeOID {
				merged[i] = before
				merged[i].TypeMod = c.TypeMod
			}
		}
	}
	return merged
}

// keyIndexes returns where the key's columns stand in rel, or nil if one of them
// is not there.
func (v relationVersion) keyIndexes(rel *wal.Relation) []int {
	var key []int
	for _, name := range v.key {
		i := slices.IndexFunc(rel.Columns, func(c wal.Column) bool { return c.Name == name })
		if i < 0 {
			return nil
		}
		key = append(key, i)
	}
	return key
}

func (v relationVersion) insertSQL(schema, database string, rel *wal.Relation, position wal.LSN) string {
	columns, err := json.Marshal(v.columns)
	if err != nil {
		panic("store: columns are plain strings and numbers: " + err.Error())
	}
	return strings.Join([]string{
		"INSERT INTO ", schema, `.relations (database, schema, "table", position, relation_id, replica_identity, columns, primary_key) VALUES (`,
		quoteLiteral(database), ", ", quoteLiteral(rel.Schema), ", ", quoteLiteral(rel.Table), ", '", position.String(), "', ",
		uintText(v.oid), ", ", quoteLiteral(v.identity), ", ", quoteLiteral(string(columns)), ", ", arrayLiteral(v.key),
		`) ON CONFLICT (database, schema, "table", position) DO UPDATE SET relation_id = excluded.relation_id, replica_identity = excluded.replica_identity, columns = excluded.columns, primary_key = excluded.primary_key`,
	}, "")
}
