package pgcatalog

import (
	"context"

	"github.com/jackc/pgx/v5"

	"github.com/hindsight-go/audit/capture"
)

// Check is a condition on the values of a row: a CHECK constraint, or one of a domain.
type Check struct {
	Name string
	// Expression is empty for a column that is NOT NULL and has no default.
	Expression string
	Columns    []string
	// DomainBase is the type that VALUE has in the expression of a domain; empty: it is a
	// constraint of the table.
	DomainBase string
	// CallsOthers reports whether it calls functions or operators that are not the server's own.
	CallsOthers bool
}

// callsOthers reports of a constraint k that it calls what is not the server's own, of which
// no dependencies are recorded.
const callsOthers = `EXISTS (SELECT FROM pg_catalog.pg_depend own WHERE own.classid = 'pg_catalog.pg_constraint'::pg_catalog.regclass AND own.objid = k.oid
				AND own.refclassid IN ('pg_catalog.pg_proc'::pg_catalog.regclass, 'pg_catalog.pg_operator'::pg_catalog.regclass))`

// readChecks finds the conditions that rows have to meet. Those over whole rows, system
// columns and generated columns are left to the server.
func readChecks(ctx context.Context, db capture.Querier, oids []uint32, all map[uint32]*Constraints) error {
	rows, err := db.Query(ctx, `
		WITH RECURSIVE domains (relid, attnum, attname, oid, base, nulls) AS (
			SELECT a.attrelid, a.attnum, a.attname, t.oid, t.typbasetype, NOT t.typnotnull
			FROM pg_catalog.pg_attribute a
			JOIN pg_catalog.pg_type t ON t.oid = a.atttypid
			WHERE a.attrelid = ANY($1::oid[]) AND a.attnum > 0 AND NOT a.attisdropped AND a.attgenerated = '' AND t.typtype = 'd'
			UNION ALL
			SELECT d.relid, d.attnum, d.attname, t.oid, t.typbasetype, NOT t.typnotnull
			FROM domains d
			JOIN pg_catalog.pg_type t ON t.oid = d.base
			WHERE t.typtype = 'd'),
		bases AS (SELECT d.relid, d.attnum, d.base FROM domains d JOIN pg_catalog.pg_type t ON t.oid = d.base WHERE t.typtype <> 'd')
		SELECT k.conrelid, k.conname::text, pg_catalog.pg_get_expr(k.conbin, k.conrelid),
			array(SELECT a.attname::text FROM pg_catalog.pg_attribute a WHERE a.attrelid = k.conrelid AND a.attnum = ANY(k.conkey)), '', `+callsOthers+`
		FROM pg_catalog.pg_constraint k
		WHERE k.conrelid = ANY($1::oid[]) AND k.contype = 'c' AND coalesce((pg_catalog.to_jsonb(k) ->> 'conenforced')::bool, true) AND k.conkey IS NOT NULL
		  AND NOT EXISTS (SELECT FROM unnest(k.conkey) n LEFT JOIN pg_catalog.pg_attribute a ON a.attrelid = k.conrelid AND a.attnum = n
				WHERE n <= 0 OR a.attgenerated <> '')
		UNION ALL
		SELECT d.relid, c.name, c.expression, ARRAY[d.attname::text], pg_catalog.format_type(b.base, -1), c.calls
		FROM domains d
		JOIN bases b ON b.relid = d.relid AND b.attnum = d.attnum,
		LATERAL (
			SELECT k.conname::text, pg_catalog.pg_get_expr(k.conbin, 0), `+callsOthers+` FROM pg_catalog.pg_constraint k WHERE k.contypid = d.oid AND k.contype = 'c'
			UNION ALL SELECT '', 'VALUE IS NOT NULL', false WHERE NOT d.nulls) AS c (name, expression, calls)
		UNION ALL
		SELECT a.attrelid, '', '', ARRAY[a.attname::text], '', false
		FROM pg_catalog.pg_attribute a
		JOIN pg_catalog.pg_type t ON t.oid = a.atttypid
		WHERE a.attrelid = ANY($1::oid[]) AND a.attnum > 0 AND NOT a.attisdropped AND a.attnotnull
		  AND NOT a.atthasdef AND a.attidentity = '' AND a.attgenerated = '' AND t.typdefault IS NULL
		ORDER BY 1, 2`, oids)
	if err != nil {
		return err
	}
	var oid uint32
	var c Check
	_, err = pgx.ForEachRow(rows, []any{&oid, &c.Name, &c.Expression, &c.Columns, &c.DomainBase, &c.CallsOthers}, func() error {
		all[oid].Checks = append(all[oid].Checks, c)
		c = Check{}
		return nil
	})
	return err
}
