package pgcatalog

import (
	"context"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/hindsight-go/audit/capture"
)

// UniqueIndex is a unique index or an exclusion constraint. Its expressions name
// columns without their table, and say themselves what the server computes into
// generated columns.
type UniqueIndex struct {
	Name        string
	Constraint  string // quoted, with schema; empty if it is no constraint
	Expressions []string
	Operators   []string
	Predicate   string
	Columns     []string // those that it is about
	// Conditions are those of them that only the predicate of a partial index names.
	Conditions []string
	// NullsNotDistinct reports whether NULL counts as a value (NULLS NOT DISTINCT).
	NullsNotDistinct bool
	Primary          bool
	Deferrable       bool
	Deferred         bool
}

func readUniqueIndexes(ctx context.Context, db capture.Querier, oids []uint32, all map[uint32]*Constraints) error {
	rows, err := db.Query(ctx, `
		SELECT i.indrelid, c.relname, i.indisprimary, coalesce(pg_catalog.quote_ident(n.nspname) || '.' || pg_catalog.quote_ident(k.conname), ''),
			coalesce(`+canDefer+`, false), coalesce(k.condeferred, false), coalesce(pg_catalog.pg_get_expr(i.indpred, i.indrelid), ''),
			e.expressions, e.ops,
			array(SELECT a.attname::text
				FROM pg_catalog.pg_attribute a
				WHERE a.attrelid = i.indrelid AND a.attnum > 0 AND (a.attnum = ANY(e.keys) OR a.attnum IN (
					SELECT d.refobjsubid
					FROM pg_catalog.pg_depend d
					WHERE d.refclassid = 'pg_catalog.pg_class'::regclass AND d.refobjid = i.indrelid AND (
						d.classid = 'pg_catalog.pg_class'::regclass AND (d.objid = i.indexrelid AND (i.indexprs IS NOT NULL OR i.indpred IS NOT NULL) OR d.objid = i.indrelid AND d.objsubid = ANY(e.keys))
						OR d.classid = 'pg_catalog.pg_attrdef'::regclass AND d.objid IN (
							SELECT g.oid FROM pg_catalog.pg_attrdef g JOIN pg_catalog.pg_attribute ga ON ga.attrelid = g.adrelid AND ga.attnum = g.adnum
							WHERE g.adrelid = i.indrelid AND g.adnum = ANY(e.keys) AND ga.attgenerated <> ''))))
				ORDER BY a.attnum),
			CASE WHEN i.indexprs IS NULL THEN array(SELECT DISTINCT a.attname::text
				FROM pg_catalog.pg_depend d
				JOIN pg_catalog.pg_attribute a ON a.attrelid = d.refobjid AND a.attnum = d.refobjsubid
				WHERE d.classid = 'pg_catalog.pg_class'::regclass AND d.objid = i.indexrelid AND d.refclassid = 'pg_catalog.pg_class'::regclass
				  AND d.refobjid = i.indrelid AND a.attnum <> ALL(i.indkey::int2[])) ELSE '{}' END,
			coalesce((to_jsonb(i) ->> 'indnullsnotdistinct')::bool, false)
		FROM pg_catalog.pg_index i
		JOIN pg_catalog.pg_class c ON c.oid = i.indexrelid
		JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
		LEFT JOIN pg_catalog.pg_constraint k ON k.conindid = i.indexrelid AND k.contype IN ('p', 'u', 'x'),
		LATERAL (
			SELECT array_agg(coalesce('(' || pg_catalog.pg_get_expr(g.adbin, g.adrelid) || ')', pg_catalog.pg_get_indexdef(i.indexrelid, x.n::int, false)) ORDER BY x.n) AS expressions,
				array_agg('OPERATOR(' || pg_catalog.quote_ident(os.nspname) || '.' || o.oprname || ')' ORDER BY x.n) AS ops,
				(i.indkey::int2[])[0:i.indnkeyatts - 1] AS keys -- without those that are only included
			FROM unnest(i.indclass::oid[]) WITH ORDINALITY x(class, n)
			LEFT JOIN pg_catalog.pg_attribute ga ON ga.attrelid = i.indrelid AND ga.attnum = i.indkey[x.n - 1] AND ga.attgenerated <> ''
			LEFT JOIN pg_catalog.pg_attrdef g ON g.adrelid = ga.attrelid AND g.adnum = ga.attnum
			JOIN pg_catalog.pg_opclass oc ON oc.oid = x.class
			LEFT JOIN pg_catalog.pg_amop a ON NOT i.indisexclusion AND a.amopfamily = oc.opcfamily AND a.amopstrategy = 3 AND a.amoplefttype = oc.opcintype AND a.amoprighttype = oc.opcintype
			JOIN pg_catalog.pg_operator o ON o.oid = coalesce(a.amopopr, k.conexclop[x.n])
			JOIN pg_catalog.pg_namespace os ON os.oid = o.oprnamespace) e
		WHERE i.indrelid = ANY($1::oid[]) AND (i.indisunique OR i.indisexclusion) AND i.indisvalid
		ORDER BY i.indrelid, c.relname`, oids)
	if err != nil {
		return err
	}
	_, err = pgx.CollectRows(rows, func(row pgx.CollectableRow) (struct{}, error) {
		u := &UniqueIndex{}
		var oid uint32
		err := row.Scan(&oid, &u.Name, &u.Primary, &u.Constraint, &u.Deferrable, &u.Deferred, &u.Predicate, &u.Expressions, &u.Operators, &u.Columns, &u.Conditions, &u.NullsNotDistinct)
		if err == nil {
			all[oid].Unique = append(all[oid].Unique, u)
		}
		return struct{}{}, err
	})
	return err
}

// ByTexts reports whether just those rows cannot both be there that have the same texts in
// the columns.
func (u *UniqueIndex) ByTexts(columns *Columns) bool {
	if u.NullsNotDistinct || u.Predicate != "" || slices.ContainsFunc(u.Columns, func(c string) bool { return columns.List[columns.Index[c]].PrintsOtherwise() }) || len(u.Expressions) != len(u.Columns) {
		return false
	}
	return !slices.ContainsFunc(u.Expressions, func(e string) bool {
		return !slices.ContainsFunc(u.Columns, func(c string) bool { return e == c || e == pgx.Identifier{c}.Sanitize() })
	}) && !slices.ContainsFunc(u.Operators, func(op string) bool { return !strings.HasSuffix(op, ".=)") })
}
