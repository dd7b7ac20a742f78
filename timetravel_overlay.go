package audit

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/hindsight-go/audit/capture"
	"github.com/hindsight-go/audit/internal/history"
)

// findTypes finds the types of the columns in our temporary tables: those under
// domains, whose checks are younger than the rows, and somebody's code.
func (v *pastView) findTypes(ctx context.Context, t *viewTable) error {
	t.types = make([]string, len(t.columns.List))
	for i, c := range t.columns.List {
		base, err := baseType(ctx, v.snapshot.tx, c.TypeOID)
		if err != nil {
			return err
		}
		if t.types[i] = c.TypeName; base != "" {
			t.types[i] = base
		}
	}
	return t.checkDomains(ctx, false)
}

// checkDomains refuses columns whose values run code of other roles when they are
// read from text: the checks of domains within arrays, composites and ranges and,
// with whole, of the domains that the columns are of.
func (p *pastTable) checkDomains(ctx context.Context, whole bool) error {
	var oids []uint32
	for _, c := range p.columns.List {
		oids = append(oids, c.TypeOID)
	}
	if p.client.cfg.TrustOwners {
		return nil
	}
	rows, err := p.client.history.Reading.Query(ctx, `
		WITH RECURSIVE parts (root, oid, inner_) AS (
			SELECT t.oid, t.oid, false FROM pg_catalog.unnest($1::oid[]) t (oid)
			UNION
			SELECT p.root, x.oid, p.inner_ OR t.typtype <> 'd'
			FROM parts p
			JOIN pg_catalog.pg_type t ON t.oid = p.oid
			CROSS JOIN LATERAL (
				SELECT t.typelem WHERE t.typelem <> 0 AND t.typlen = -1
				UNION ALL
				SELECT t.typbasetype WHERE t.typbasetype <> 0
				UNION ALL
				SELECT r.rngsubtype FROM pg_catalog.pg_range r WHERE r.rngtypid = t.oid OR r.rngmultitypid = t.oid
				UNION ALL
				SELECT a.atttypid FROM pg_catalog.pg_attribute a WHERE t.typrelid <> 0 AND a.attrelid = t.typrelid AND a.attnum > 0 AND NOT a.attisdropped) x (oid))
		SELECT DISTINCT p.root
		FROM parts p
		JOIN pg_catalog.pg_constraint c ON c.contypid = p.oid
		JOIN pg_catalog.pg_depend d ON d.classid = 'pg_catalog.pg_constraint'::regclass AND d.objid = c.oid
		LEFT JOIN pg_catalog.pg_operator o ON d.refclassid = 'pg_catalog.pg_operator'::regclass AND o.oid = d.refobjid
		JOIN pg_catalog.pg_proc f ON f.oid = CASE WHEN d.refclassid = 'pg_catalog.pg_proc'::regclass THEN d.refobjid ELSE o.oprcode::oid END
		WHERE f.oid >= 16384 AND (p.inner_ OR $2) AND NOT pg_catalog.pg_has_role(f.proowner, current_user, 'MEMBER')
		  AND NOT EXISTS (
			SELECT FROM pg_catalog.pg_depend e
			WHERE e.classid = 'pg_catalog.pg_proc'::regclass AND e.objid = f.oid AND e.deptype = 'e')`, oids, whole)
	if err != nil {
		return history.OpError("look up type", err)
	}
	foreign, err := pgx.CollectRows(rows, pgx.RowTo[uint32])
	if err != nil {
		return history.OpError("look up type", err)
	}
	for _, c := range p.columns.List {
		if slices.Contains(foreign, c.TypeOID) {
			return p.refuse(ErrUntrusted, fmt.Sprintf("a check of a domain in column %q calls a function that another role owns: leave the column out with Point.Columns, or say with Config.TrustOwners that such code may run", c.Name), 0)
		}
	}
	return nil
}

// baseType returns the type under a domain, or nothing if it is none.
func baseType(ctx context.Context, db capture.Querier, oid uint32) (string, error) {
	if oid < 16384 {
		return "", nil
	}
	var base string
	err := db.QueryRow(ctx, `
		WITH RECURSIVE t AS (
			SELECT t.oid, t.typtype, t.typbasetype, t.typtypmod, 0 AS depth FROM pg_catalog.pg_type t WHERE t.oid = $1
			UNION ALL
			SELECT b.oid, b.typtype, b.typbasetype, CASE WHEN b.typtype = 'd' THEN b.typtypmod ELSE t.typtypmod END, depth + 1
			FROM t JOIN pg_catalog.pg_type b ON b.oid = t.typbasetype
			WHERE t.typtype = 'd')
		SELECT CASE WHEN depth > 0 THEN pg_catalog.format_type(t.oid, t.typtypmod) ELSE '' END FROM (
			SELECT t.oid, t.depth, (SELECT d.typtypmod FROM t d WHERE d.typtype = 'd' ORDER BY d.depth DESC LIMIT 1) AS typtypmod
			FROM t ORDER BY t.depth DESC LIMIT 1) t`, oid).Scan(&base)
	return base, history.OpError("look up type", err)
}

// overlay lays the rows that changed since over the live table. The live table
// stands by itself in one arm of a plain UNION ALL, without a condition, so that
// the planner treats the two arms like the parts of a partitioned table and looks
// into the live table's indexes also for joins. Rows that changed since are taken
// out of the live arm outside of the union, by their key; in the other arm that
// key is NULL.
func (v *pastView) overlay(ctx context.Context, t *viewTable) ([]string, error) {
	now := make([]string, len(t.columns.List))
	names := make([]string, len(t.columns.List))
	expressions := make([]string, len(t.columns.List))
	for i, c := range t.columns.List {
		names[i] = pgx.Identifier{c.Name}.Sanitize()
		expressions[i] = v.alias + "." + pgx.Identifier{t.live.Columns.List[t.liveAt[i]].Name}.Sanitize()
		if t.types[i] != c.TypeName {
			expressions[i] += "::" + t.types[i]
		}
		now[i] = expressions[i] + " AS " + names[i]
	}
	var keysNow, on, keyNames []string
	t.keys = nil
	for i, at := range t.keyAt {
		equal, err := v.equality(ctx, t.columns.List[at].TypeOID)
		if err != nil {
			return nil, err
		}
		probe := fmt.Sprintf("%s_%d", v.alias, i+1)
		t.keys = append(t.keys, probe)
		keysNow = append(keysNow, expressions[at]+" AS "+probe)
		on = append(on, "k."+probe+" "+equal+" u."+probe)
		keyNames = append(keyNames, names[at])
	}
	from := " FROM " + t.live.Ident() + " AS " + v.alias
	arms := "SELECT " + strings.Join(slices.Concat(now, keysNow), ", ") + from +
		" UNION ALL SELECT " + strings.Join(slices.Concat(names, t.keys), ", ") + " FROM " + t.store("rows")
	return []string{
		"CREATE TEMPORARY TABLE " + t.store("rows") + " ON COMMIT DROP AS SELECT " + strings.Join(slices.Concat(now, keysNow), ", ") + from + " WITH NO DATA",
		"CREATE TEMPORARY TABLE " + t.store("keys") + " ON COMMIT DROP AS SELECT " + strings.Join(keysNow, ", ") + from + " WITH NO DATA",
		"CREATE INDEX ON " + t.store("keys") + " (" + strings.Join(t.keys, ", ") + ")",
		"CREATE INDEX ON " + t.store("rows") + " (" + strings.Join(keyNames, ", ") + ")",
		"CREATE TEMPORARY VIEW " + pgx.Identifier{t.temp}.Sanitize() + " AS SELECT " + strings.Join(prefixed("u.", names), ", ") + " FROM (" + arms + ") u WHERE NOT EXISTS (SELECT FROM " + t.store("keys") + " k WHERE " + strings.Join(on, " AND ") + ")",
	}, nil
}

// equality returns the operator that a type's key is compared by, with its schema:
// nobody's but the type's own.
func (v *pastView) equality(ctx context.Context, typeOID uint32) (string, error) {
	if typeOID < 16384 {
		return "OPERATOR(pg_catalog.=)", nil
	}
	var operator string
	err := v.snapshot.tx.QueryRow(ctx, `
		WITH RECURSIVE t AS (
			SELECT t.oid, t.typtype, t.typbasetype FROM pg_catalog.pg_type t WHERE t.oid = $1
			UNION ALL
			SELECT b.oid, b.typtype, b.typbasetype FROM t JOIN pg_catalog.pg_type b ON b.oid = t.typbasetype WHERE t.typtype = 'd')
		SELECT coalesce((
			SELECT pg_catalog.format('OPERATOR(%I.%s)', n.nspname, o.oprname)
			FROM t
			JOIN pg_catalog.pg_opclass c ON c.opcintype = t.oid AND c.opcdefault
			JOIN pg_catalog.pg_am m ON m.oid = c.opcmethod AND m.amname = 'btree'
			JOIN pg_catalog.pg_amop a ON a.amopfamily = c.opcfamily AND a.amoplefttype = t.oid AND a.amoprighttype = t.oid AND a.amopstrategy = 3
			JOIN pg_catalog.pg_operator o ON o.oid = a.amopopr
			JOIN pg_catalog.pg_namespace n ON n.oid = o.oprnamespace
			LIMIT 1), 'OPERATOR(pg_catalog.=)')`, typeOID).Scan(&operator)
	return operator, history.OpError("look up type", err)
}

// columnDefinitions are those of a temporary table for rows of the table.
func (t *viewTable) columnDefinitions() string {
	definitions := make([]string, len(t.columns.List))
	for i, c := range t.columns.List {
		definitions[i] = pgx.Identifier{c.Name}.Sanitize() + " " + t.types[i]
	}
	return strings.Join(definitions, ", ")
}

// copyStatements makes a table for the whole past of one, with its key.
func (v *pastView) copyStatements(t *viewTable) []string {
	statements := []string{"CREATE TEMPORARY TABLE " + pgx.Identifier{t.temp}.Sanitize() + " (" + t.columnDefinitions() + ") ON COMMIT DROP"}
	if len(t.key) > 0 {
		statements = append(statements, "ALTER TABLE "+t.tempIdent()+" ADD PRIMARY KEY ("+quotedList(t.key)+")")
	}
	return statements
}

// materialize makes a real table, with its key, of one that is laid over the live
// one: for the planner a view has no key.
func (v *pastView) materialize(ctx context.Context, t *viewTable) error {
	if t.mode != viewOverlay {
		return nil
	}
	if err := v.fill(ctx, t); err != nil {
		return err
	}
	err := v.prepare(ctx, func(ctx context.Context) error {
		for _, named := range v.relations {
			for _, r := range named {
				if r.temp == "" {
					continue
				}
				if err := v.script(ctx, "DROP VIEW IF EXISTS pg_temp."+pgx.Identifier{r.temp}.Sanitize()+" CASCADE"); err != nil {
					return err
				}
			}
		}
		names := quotedList(t.columns.Names())
		return v.script(ctx,
			"CREATE TEMPORARY TABLE "+t.store("table")+" ("+t.columnDefinitions()+") ON COMMIT DROP",
			"INSERT INTO "+t.store("table")+" ("+names+") SELECT "+names+" FROM "+t.tempIdent(),
			"ALTER TABLE "+t.store("table")+" ADD PRIMARY KEY ("+quotedList(t.key)+")",
			"ANALYZE "+t.store("table"),
			"DROP VIEW "+t.tempIdent(),
			"ALTER TABLE "+t.store("table")+" RENAME TO "+pgx.Identifier{t.temp}.Sanitize())
	})
	if err != nil {
		return err
	}
	t.mode, t.full = viewCopy, true
	for _, named := range v.relations {
		for _, r := range named {
			if r.temp != "" {
				r.temp, r.remade = "", false
			}
		}
	}
	clear(v.guard.checked)
	return nil
}

func prefixed(prefix string, names []string) []string {
	out := make([]string, len(names))
	for i, name := range names {
		out[i] = prefix + name
	}
	return out
}
