package audit

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/hindsight-go/audit/capture"
	"github.com/hindsight-go/audit/internal/pgcatalog"
)

// target is a table that a revert writes to, as it is now.
type target struct {
	*pgcatalog.Table
	// except are the names of columns that the revert leaves out; withheld are those of
	// them of which history does not store the values.
	except, withheld []string
	// named are those that it restores whatever else is said.
	named []string
	// former are names that columns had once, and that no column has now.
	former map[int][]string
	// pastTypes are types that columns had once.
	pastTypes []pastType
	// unrestored are the columns that it leaves out by themselves, leftOut those of them
	// that the selection changed.
	unrestored map[string]UnrestoredReason
	never      []capture.ColumnPattern // those of columns that are gone included
	leftOut    map[string]bool
	constraints
	// keyAt says where the key's columns stand.
	keyAt []int
	// keyless tells that there is no primary key: rows are found by their place.
	keyless bool
	// rank orders the tables: parents before children.
	rank int
}

// label is the table's name for people and for filters.
func (t *target) label() string { return pgcatalog.Qualified(t.Schema, t.Name) }

// printsOtherwise tells that keys may be equal and have different texts.
func (t *target) printsOtherwise() bool {
	return !t.keyless && slices.ContainsFunc(t.keyAt, func(at int) bool {
		return t.Columns.List[at].PrintsOtherwise()
	})
}

// noteFormer notes a name that a column had once.
func (t *target) noteFormer(at int, name string) {
	if _, taken := t.Columns.Index[name]; taken || slices.Contains(t.former[at], name) {
		return
	}
	if t.former == nil {
		t.former = make(map[int][]string)
	}
	t.former[at] = append(t.former[at], name)
}

// isNamed tells that a column has one of the names, or had it where no other has it now.
func (t *target) isNamed(at int, names []string) bool {
	return slices.Contains(names, t.Columns.List[at].Name) ||
		slices.ContainsFunc(t.former[at], func(former string) bool { return slices.Contains(names, former) })
}

// from names the table in FROM, UPDATE and DELETE. What inherits from it has
// rows, and keys, of its own.
func (t *target) from() string {
	if t.Kind == "p" {
		return t.Ident()
	}
	return "ONLY " + t.Ident()
}

// constraints are what the catalog says of a table beyond its columns: what rows of it have to
// meet, and what happens when they are written.
type constraints struct {
	// keyOperators are the equality operators of the primary key's columns, in key order:
	// that of a type in another schema is not found by its bare name.
	keyOperators []string
	// triggers reports whether the application has triggers on the table, or on a partition
	// of it, unenforced whether triggers are off by which the server enforces a foreign key.
	triggers, unenforced bool
	// rowSecurity reports whether row-level security may keep rows of it from the role.
	rowSecurity bool
	// parents are the foreign keys of this table, children those of others (or its
	// own) that reference it.
	parents, children []*foreignKey
	unique            []*uniqueIndex
	checks            []check
}

// readConstraints reads the constraints of tables, by their OIDs. db may be a transaction, or
// the pool.
func readConstraints(ctx context.Context, db capture.Querier, oids []uint32) (map[uint32]*constraints, error) {
	all := make(map[uint32]*constraints, len(oids))
	for _, oid := range oids {
		all[oid] = &constraints{}
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

// foreignKey is a foreign key constraint.
type foreignKey struct {
	name                 string
	from, to             uint32
	fromSchema, fromName string
	toSchema, toName     string
	fromKind, toKind     string
	columns, refs        []string
	refTypes             []string
	ops                  []string // between the referenced and the referencing column
	onDelete, onUpdate   string   // a: no action, r: restrict, c: cascade, n: set null, d: set default
	deferrable, deferred bool
	nullable             bool     // every referencing column can be NULL
	fromKey, toKey       []string // the primary keys of the two tables
	conSchema            string
	// period tells that the last column is a PERIOD: the referenced rows have to cover
	// that of the referencing one together.
	period bool
}

func (f *foreignKey) fromIdent() string { return onlyIdent(f.fromSchema, f.fromName, f.fromKind) }
func (f *foreignKey) toIdent() string   { return onlyIdent(f.toSchema, f.toName, f.toKind) }
func (f *foreignKey) child() string     { return pgcatalog.Qualified(f.fromSchema, f.fromName) }
func (f *foreignKey) parent() string    { return pgcatalog.Qualified(f.toSchema, f.toName) }
func (f *foreignKey) constraint() string {
	return pgx.Identifier{f.conSchema, f.name}.Sanitize()
}

func onlyIdent(schema, name, kind string) string {
	if kind == "p" {
		return pgx.Identifier{schema, name}.Sanitize()
	}
	return "ONLY " + pgx.Identifier{schema, name}.Sanitize()
}

// uniqueIndex is a unique index or an exclusion constraint. Its expressions name
// columns without their table, and say themselves what the server computes into
// generated columns.
type uniqueIndex struct {
	name        string
	constraint  string // quoted, with schema; empty if it is no constraint
	expressions []string
	ops         []string
	predicate   string
	columns     []string // those that it is about
	// conditions are those of them that only the predicate of a partial index names.
	conditions []string
	// nulls tells that NULL counts as a value (NULLS NOT DISTINCT).
	nulls      bool
	primary    bool
	deferrable bool
	deferred   bool
}

// byTexts tells that just those rows cannot both be there that have the same texts in
// the columns.
func (u *uniqueIndex) byTexts(columns *pgcatalog.Columns) bool {
	if u.nulls || u.predicate != "" || slices.ContainsFunc(u.columns, func(c string) bool { return columns.List[columns.Index[c]].PrintsOtherwise() }) || len(u.expressions) != len(u.columns) {
		return false
	}
	return !slices.ContainsFunc(u.expressions, func(e string) bool {
		return !slices.ContainsFunc(u.columns, func(c string) bool { return e == c || e == pgx.Identifier{c}.Sanitize() })
	}) && !slices.ContainsFunc(u.ops, func(op string) bool { return !strings.HasSuffix(op, ".=)") })
}

// describeTargets reads from the catalog all that a revert has to know of the
// tables.
func (c *Client) describeTargets(ctx context.Context, db capture.Querier, targets map[uint32]*target) error {
	oids := make([]uint32, 0, len(targets))
	for oid := range targets {
		oids = append(oids, oid)
	}
	slices.Sort(oids)
	all, err := readConstraints(ctx, db, oids)
	if err != nil {
		return wrap("read constraints", err)
	}
	for oid, t := range targets {
		if t.constraints = *all[oid]; !t.keyless {
			continue
		}
		t.keyOperators = placeOps
		for _, f := range t.parents {
			f.fromKey = t.Key
		}
		for _, f := range t.children {
			f.toKey = t.Key
		}
	}
	return nil
}

// readKeys finds the operators of the primary keys, and whether there are
// triggers, on partitions, too.
func readKeys(ctx context.Context, db capture.Querier, oids []uint32, all map[uint32]*constraints) error {
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
		all[oid].triggers, all[oid].unenforced, all[oid].rowSecurity, all[oid].keyOperators = triggers, unenforced, hidden, ops
		ops = nil
		return nil
	})
	return err
}

// canDefer tells that a constraint k can be deferred by its name, which others in the
// schema may have: if one of them cannot be deferred, none of them can.
const canDefer = `(k.condeferrable AND NOT EXISTS (SELECT FROM pg_catalog.pg_constraint o
				WHERE o.conname = k.conname AND o.connamespace = k.connamespace AND NOT o.condeferrable))`

func readForeignKeys(ctx context.Context, db capture.Querier, oids []uint32, all map[uint32]*constraints) error {
	rows, err := db.Query(ctx, `
		SELECT k.conname, kn.nspname, k.conrelid, k.confrelid, fn.nspname, f.relname, tn.nspname, t.relname, f.relkind::text, t.relkind::text,
			k.confdeltype::text, k.confupdtype::text, `+canDefer+`, k.condeferred, cols.names, cols.refs, cols.types, cols.ops, cols.nullable,
			keys.from_key, keys.to_key, coalesce((to_jsonb(k) ->> 'conperiod')::bool, false)
		FROM pg_catalog.pg_constraint k
		JOIN pg_catalog.pg_namespace kn ON kn.oid = k.connamespace
		JOIN pg_catalog.pg_class f ON f.oid = k.conrelid
		JOIN pg_catalog.pg_namespace fn ON fn.oid = f.relnamespace
		JOIN pg_catalog.pg_class t ON t.oid = k.confrelid
		JOIN pg_catalog.pg_namespace tn ON tn.oid = t.relnamespace,
		LATERAL (
			SELECT array_agg(a.attname::text ORDER BY c.n) AS names, array_agg(r.attname::text ORDER BY c.n) AS refs,
				array_agg(pg_catalog.format_type(r.atttypid, r.atttypmod) ORDER BY c.n) AS types,
				array_agg('OPERATOR(' || pg_catalog.quote_ident(n.nspname) || '.' || o.oprname || ')' ORDER BY c.n) AS ops,
				bool_and(NOT a.attnotnull) AS nullable
			FROM unnest(k.conkey, k.confkey, k.conpfeqop) WITH ORDINALITY c(con, conf, op, n)
			JOIN pg_catalog.pg_attribute a ON a.attrelid = k.conrelid AND a.attnum = c.con
			JOIN pg_catalog.pg_attribute r ON r.attrelid = k.confrelid AND r.attnum = c.conf
			JOIN pg_catalog.pg_operator o ON o.oid = c.op
			JOIN pg_catalog.pg_namespace n ON n.oid = o.oprnamespace) cols,
		LATERAL (
			SELECT coalesce((SELECT array_agg(a.attname::text ORDER BY x.n)
					FROM pg_catalog.pg_index i, unnest((i.indkey::int2[])[0:i.indnkeyatts - 1]) WITH ORDINALITY x(attnum, n)
					JOIN pg_catalog.pg_attribute a ON a.attnum = x.attnum
					WHERE i.indrelid = k.conrelid AND i.indisprimary AND a.attrelid = k.conrelid), '{}') AS from_key,
				coalesce((SELECT array_agg(a.attname::text ORDER BY x.n)
					FROM pg_catalog.pg_index i, unnest((i.indkey::int2[])[0:i.indnkeyatts - 1]) WITH ORDINALITY x(attnum, n)
					JOIN pg_catalog.pg_attribute a ON a.attnum = x.attnum
					WHERE i.indrelid = k.confrelid AND i.indisprimary AND a.attrelid = k.confrelid), '{}') AS to_key) keys
		WHERE k.contype = 'f' AND k.conparentid = 0 AND coalesce((to_jsonb(k) ->> 'conenforced')::bool, true) AND (k.conrelid = ANY($1::oid[]) OR k.confrelid = ANY($1::oid[]))
		ORDER BY k.conrelid, k.conname`, oids)
	if err != nil {
		return err
	}
	keys, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (*foreignKey, error) {
		f := &foreignKey{}
		err := row.Scan(&f.name, &f.conSchema, &f.from, &f.to, &f.fromSchema, &f.fromName, &f.toSchema, &f.toName, &f.fromKind, &f.toKind,
			&f.onDelete, &f.onUpdate, &f.deferrable, &f.deferred, &f.columns, &f.refs, &f.refTypes, &f.ops, &f.nullable, &f.fromKey, &f.toKey, &f.period)
		return f, err
	})
	for _, f := range keys {
		if t := all[f.from]; t != nil {
			t.parents = append(t.parents, f)
		}
		if t := all[f.to]; t != nil {
			t.children = append(t.children, f)
		}
	}
	return err
}

func readUniqueIndexes(ctx context.Context, db capture.Querier, oids []uint32, all map[uint32]*constraints) error {
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
		u := &uniqueIndex{}
		var oid uint32
		err := row.Scan(&oid, &u.name, &u.primary, &u.constraint, &u.deferrable, &u.deferred, &u.predicate, &u.expressions, &u.ops, &u.columns, &u.conditions, &u.nulls)
		if err == nil {
			all[oid].unique = append(all[oid].unique, u)
		}
		return struct{}{}, err
	})
	return err
}

// columnIdent returns the quoted name of a column, with an alias before it.
func columnIdent(alias, name string) string {
	if alias == "" {
		return pgx.Identifier{name}.Sanitize()
	}
	return alias + "." + pgx.Identifier{name}.Sanitize()
}

// textOf is the SQL of a value's text as PostgreSQL prints it, NULL for NULL. A
// cast to text would say something else for bool, char(n), inet and others.
func textOf(expression string) string {
	return "CASE WHEN " + expression + " IS NOT DISTINCT FROM NULL THEN NULL ELSE pg_catalog.concat(" + expression + ") END"
}

// keyArray is the SQL of the texts of a key, as an array.
func keyArray(alias string, key []string) string {
	parts := make([]string, len(key))
	for i, name := range key {
		parts[i] = "pg_catalog.concat(" + columnIdent(alias, name) + ")"
	}
	return fmt.Sprintf("ARRAY[%s]::text[]", strings.Join(parts, ", "))
}
