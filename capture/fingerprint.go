package capture

import (
	"context"
	"fmt"
)

// Fingerprint stands for catalog rows: it is another after any of them was written, made or
// removed. Every version of a row has its own xmin, which VACUUM does not change.
type Fingerprint string

// rowVersions is a fingerprint of rows, given what names one of them and its xmin.
func rowVersions(row, from string) string {
	return "coalesce((SELECT pg_catalog.bit_xor(pg_catalog.hash_record_extended(ROW(" + row + "), $1)) FROM pg_catalog." + from + "), 0)"
}

// permanentTable is a condition on pg_class c: its rows may have a history. Temporary tables
// come and go all the time.
const permanentTable = `c.relkind IN ('r', 'p', 'c') AND c.relpersistence <> 't'`

// ofTables is a part of a FROM clause that leaves the rows of permanent tables.
func ofTables(column string) string {
	return " JOIN pg_catalog.pg_class c ON c.oid = " + column + " AND " + permanentTable
}

// tablesSQL is a fingerprint of what says which tables there are, which of them are
// published, and with what replica identity.
var tablesSQL = fingerprintSQL(
	rowVersions("c.oid, c.xmin", "pg_class c WHERE c.relkind IN ('r', 'p') AND c.relpersistence <> 't'"),
	rowVersions("n.oid, n.xmin", "pg_namespace n WHERE n.nspname !~ '^pg_(toast_)?temp_'"),
	rowVersions("p.oid, p.xmin", "pg_publication p"),
	rowVersions("r.oid, r.xmin", "pg_publication_rel r"),
	rowVersions("i.inhrelid, i.inhparent, i.xmin", "pg_inherits i"),
	rowVersions("m.roleid, m.member, m.xmin", "pg_auth_members m"),
	// What belongs to an extension, or to a history, is not tracked.
	rowVersions("d.objid, d.refobjid, d.xmin", "pg_depend d WHERE d.refclassid = 'pg_catalog.pg_extension'::regclass AND d.classid = 'pg_catalog.pg_class'::regclass AND d.deptype = 'e'"),
	rowVersions("f.oid, f.xmin", "pg_proc f WHERE f.proname = 'trace_ddl'"),
	"(SELECT r.rolsuper FROM pg_catalog.pg_roles r WHERE r.rolname = current_user)",
)

// structuresSQL is a fingerprint of all else that says what a table looks like.
var structuresSQL = fingerprintSQL(
	rowVersions("a.attrelid, a.attnum, a.xmin", "pg_attribute a"+ofTables("a.attrelid")+" WHERE a.attnum > 0"),
	rowVersions("d.oid, d.xmin", "pg_attrdef d"+ofTables("d.adrelid")),
	rowVersions("i.indexrelid, i.xmin", "pg_index i"+ofTables("i.indrelid")),
	rowVersions("k.oid, k.xmin", "pg_constraint k"+ofTables("k.conrelid")+" WHERE k.contype = 'p'"),
	rowVersions("t.oid, t.xmin", "pg_type t JOIN pg_catalog.pg_namespace n ON n.oid = t.typnamespace AND n.nspname !~ '^pg_(toast_)?temp_'"),
	rowVersions("e.oid, e.xmin", "pg_enum e"),
	rowVersions("r.rngtypid, r.xmin", "pg_range r"),
	// Expressions of generated columns are printed with their names.
	rowVersions("f.oid, f.xmin", "pg_proc f WHERE f.oid >= 16384"),
)

func fingerprintSQL(parts ...string) string {
	sql := "SELECT pg_catalog.concat_ws(' '"
	for _, part := range parts {
		sql += ",\n\t" + part
	}
	return sql + ")"
}

// TablesFingerprint returns a fingerprint of what Join looks at, but for what
// StructuresFingerprint has. seed keeps others from making two of them alike.
func (s *Setup) TablesFingerprint(ctx context.Context, seed int64) (Fingerprint, error) {
	return s.fingerprint(ctx, tablesSQL, seed)
}

// StructuresFingerprint returns a fingerprint of what structures are made of. It costs
// several times as much: most of a catalog is columns.
func (s *Setup) StructuresFingerprint(ctx context.Context, seed int64) (Fingerprint, error) {
	return s.fingerprint(ctx, structuresSQL, seed)
}

func (s *Setup) fingerprint(ctx context.Context, sql string, seed int64) (f Fingerprint, err error) {
	if err := s.DB.QueryRow(ctx, sql, seed).Scan(&f); err != nil {
		return "", fmt.Errorf("look whether the catalog has changed: %w", err)
	}
	return f, nil
}
