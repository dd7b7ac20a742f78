package audit

import (
	"context"

	"github.com/jackc/pgx/v5"
)

// dependentView is a view of the database over tracked tables.
type dependentView struct{ schema, name, definition string }

// dependentViews returns the views over tables that are not shown by the live
// one, those that others need first, as the application's names spell them.
func (v *pastView) dependentViews(ctx context.Context) ([]dependentView, error) {
	var shown []uint32
	for _, t := range v.tables {
		if t.live != nil && (t.mode == viewOverlay || t.mode == viewCopy) {
			shown = append(shown, t.oid)
		}
	}
	if len(shown) == 0 {
		return nil, nil
	}
	rows, err := v.snapshot.tx.Query(ctx, `
		WITH RECURSIVE dependent AS (
			SELECT r.ev_class AS oid, 1 AS depth
			FROM pg_catalog.pg_depend d
			JOIN pg_catalog.pg_rewrite r ON r.oid = d.objid AND d.classid = 'pg_catalog.pg_rewrite'::regclass
			WHERE d.refclassid = 'pg_catalog.pg_class'::regclass AND d.refobjid = ANY ($1) AND r.ev_class <> d.refobjid
			UNION
			SELECT r.ev_class, depth + 1
			FROM dependent o
			JOIN pg_catalog.pg_depend d ON d.refclassid = 'pg_catalog.pg_class'::regclass AND d.refobjid = o.oid
			JOIN pg_catalog.pg_rewrite r ON r.oid = d.objid AND d.classid = 'pg_catalog.pg_rewrite'::regclass
			WHERE r.ev_class <> o.oid AND depth < 50)
		SELECT n.nspname, c.relname, pg_catalog.pg_get_viewdef(c.oid)
		FROM (SELECT oid, max(depth) AS depth FROM dependent GROUP BY oid) o
		JOIN pg_catalog.pg_class c ON c.oid = o.oid AND c.relkind = 'v'
		JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
		WHERE n.nspname <> 'pg_catalog' AND n.nspname NOT LIKE 'pg\_temp%'
		ORDER BY o.depth, n.nspname, c.relname`, shown)
	if err != nil {
		return nil, wrap("read views", err)
	}
	views, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (d dependentView, err error) {
		err = row.Scan(&d.schema, &d.name, &d.definition)
		return d, err
	})
	return views, wrap("read views", err)
}

// repeatViews makes the views of the database anew, over the past. One that
// cannot be is left as it is: what reads it is refused.
func (v *pastView) repeatViews(ctx context.Context, views []dependentView) {
	for _, d := range views {
		_ = pgx.BeginFunc(ctx, v.snapshot.tx, func(tx pgx.Tx) error {
			_, err := tx.Exec(ctx, "CREATE TEMPORARY VIEW "+pgx.Identifier{d.name}.Sanitize()+" AS "+d.definition)
			return err
		})
	}
}
