package audit

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"
)

// View calls fn with a transaction in which every tracked table is as it was at
// the moment: any query in SQL, joins, aggregates, views and functions, and
// generated code such as sqlc's, runs in it unchanged.
//
//	err := audit.AsOf(t).View(ctx, func(tx pgx.Tx) error {
//		return tx.QueryRow(ctx, "SELECT count(*) FROM todo JOIN users USING (user_id)").Scan(&n)
//	})
//
// In it the plain name of a table means its past, with the columns it had. Tables
// that have not changed since are the live ones; of the others, the rows that
// changed since are laid over the live table, so that its indexes still serve.
// Their number is what setting up a table costs, at the first query that reads
// it.
//
// Before a query runs, its plan is looked at. What would read the present of a
// table that has changed since, as a name with its schema does, is refused with a
// [*ViewError] that says what to write instead, and so is a table that is not
// tracked, unless [Point.WithLive] names it. Only queries can be run: SELECT,
// VALUES, TABLE and WITH.
//
// The transaction is read-only and is rolled back at the end. View returns fn's
// error, or a [*HistoryError] where a table that a query reads has no such past.
// The role needs the right to make temporary tables in the source. While View
// runs it holds the lightest lock on the tracked tables, like a SELECT: ALTER
// TABLE and TRUNCATE wait for it.
func (p Point) View(ctx context.Context, fn func(tx pgx.Tx) error) error {
	t, err := p.travel(ctx)
	if err != nil {
		return err
	}
	v, err := t.view(ctx)
	if err != nil {
		return err
	}
	defer v.snapshot.close()
	custom := v.snapshot.conn.Conn().PgConn().CustomData()
	custom[guardKey] = v.guard
	defer delete(custom, guardKey)
	return fn(&viewTx{Tx: v.snapshot.tx, view: v})
}

// pastView is a transaction in which tables are as they were.
type pastView struct {
	*travel
	snapshot *snapshot
	tables   []*viewTable
	// alias is what the live tables are called inside of our views, so that a plan
	// tells our reading of them from others'. No two views have the same.
	alias   string
	guard   *guard
	missing map[string]error // why the table of a plain name has no past
}

// viewTable is a table in a view.
type viewTable struct {
	*pastTable
	base base
	mode viewMode
	n    int    // tells its temporary tables from others'
	name string // what to write for it; quoted
	err  error  // why it has no past
	keys []string
	full bool // its temporary tables are filled
}

type viewMode int

const (
	// viewLive: nothing has changed since; the live table is the past.
	viewLive viewMode = iota
	// viewOverlay: the rows that changed since are laid over the live table.
	viewOverlay
	// viewCopy: the whole table is rebuilt.
	viewCopy
	// viewBroken: there is no past.
	viewBroken
)

// covered returns the stays in coverage that the moment is in.
func (t *travel) covered() []string {
	var names []string
	for _, cov := range t.facts.Coverage {
		name := qualifiedName(cov.Schema, cov.Table)
		if !slices.Contains(names, name) {
			names = append(names, name)
		}
	}
	return names
}

// view sets up a view of all tables. They are locked before anything is found out
// about them.
func (t *travel) view(ctx context.Context) (*pastView, error) {
	v := &pastView{travel: t, missing: make(map[string]error)}
	live, err := t.liveTables(ctx)
	if err != nil {
		return nil, err
	}
	if v.snapshot, err = t.snapshot(ctx, live, pgx.ReadWrite); err != nil {
		return nil, err
	}
	for _, name := range t.covered() {
		if err = v.add(ctx, name); err != nil {
			break
		}
	}
	if err == nil {
		err = v.setUp(ctx)
	}
	if err != nil {
		v.snapshot.close()
		return nil, err
	}
	return v, nil
}

// liveTables returns the tables that were ever tracked and are there now, by their
// names of now.
func (t *travel) liveTables(ctx context.Context) ([]*sourceTable, error) {
	var oids []uint32
	for _, cov := range t.facts.Coverage {
		oids = append(oids, cov.RelationID)
	}
	rows, err := t.client.source.Query(ctx, `
		SELECT n.nspname, c.relname
		FROM pg_catalog.pg_class c
		JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
		WHERE c.oid = ANY ($1) AND pg_catalog.has_table_privilege(c.oid, 'SELECT')`, oids)
	if err != nil {
		return nil, wrap("look for the live tables", err)
	}
	tables, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (*sourceTable, error) {
		table := &sourceTable{}
		return table, row.Scan(&table.schema, &table.name)
	})
	return tables, wrap("look for the live tables", err)
}

// add finds a table and whether there is a past of it.
func (v *pastView) add(ctx context.Context, name string) error {
	past, err := v.lookedUp(ctx, name)
	var history *HistoryError
	var columns *ColumnsError
	if errors.As(err, &history) || errors.As(err, &columns) {
		parsed, _ := parseTable(name)
		v.missing[parsed.table] = err
		return nil
	}
	if err != nil {
		return err
	}
	if slices.ContainsFunc(v.tables, func(t *viewTable) bool { return t.oid == past.oid }) {
		return nil // the same table by another name of it
	}
	table := &viewTable{pastTable: past, n: len(v.tables) + 1}
	table.base, err = past.base(ctx)
	if errors.As(err, &history) {
		table.mode, table.err, err = viewBroken, err, nil
		v.missing[past.name] = table.err
	}
	v.tables = append(v.tables, table)
	return err
}

// setUp decides how each table is shown, and makes what it takes.
func (v *pastView) setUp(ctx context.Context) error {
	for _, table := range v.tables {
		if err := v.choose(ctx, table); err != nil {
			return err
		}
	}
	tx := v.snapshot.tx
	path, err := applicationPath(ctx, tx)
	if err != nil {
		return err
	}
	if err := tx.QueryRow(ctx, "SELECT 'audit_live_' || pg_catalog.substr(pg_catalog.md5(pg_catalog.random()::text), 1, 8)").Scan(&v.alias); err != nil {
		return wrap("set up view", err)
	}
	if _, err := tx.Exec(ctx, "SELECT pg_catalog.set_config('search_path', $1, true)", path); err != nil {
		return wrap("set up view", err)
	}
	dependent, err := v.dependentViews(ctx)
	if err != nil {
		return err
	}
	if err := v.name(ctx); err != nil {
		return err
	}
	// What was prepared or planned in this session before does not know of our views.
	if err := tx.Conn().DeallocateAll(ctx); err != nil {
		return wrap("set up view", err)
	}
	script := []string{"DISCARD PLANS"}
	for _, table := range v.tables {
		statements, err := v.statements(ctx, table)
		if err != nil {
			return err
		}
		script = append(script, statements...)
	}
	if _, err := tx.Exec(ctx, strings.Join(script, ";\n")); err != nil {
		return wrap("set up view", err)
	}
	v.repeatViews(ctx, dependent)
	if _, err := tx.Exec(ctx, "SET TRANSACTION READ ONLY"); err != nil {
		return wrap("set up view", err)
	}
	v.guard = newGuard(v)
	return v.guard.learn(ctx)
}

// choose decides how a table is shown.
func (v *pastView) choose(ctx context.Context, t *viewTable) error {
	if t.mode == viewBroken {
		return nil
	}
	t.mode = viewCopy
	if t.base.kind != baseLive {
		return nil
	}
	changed, err := t.changedSince(ctx)
	if err != nil {
		return err
	}
	unseen, err := t.unseen(ctx, v.snapshot)
	if err != nil {
		return err
	}
	renamed := t.live.schema != t.schema || t.live.name != t.pastTable.name
	asNow := !renamed && t.columns.same(t.live.columns)
	switch {
	case !changed && len(unseen) == 0 && asNow && (len(t.key) > 0 || len(v.snapshot.hidden) == 0):
		t.mode = viewLive
	case len(t.key) > 0 && len(t.absent) == 0:
		t.mode = viewOverlay
	}
	return nil
}

// changedSince tells whether anything of the table has changed after the moment.
func (p *pastTable) changedSince(ctx context.Context) (bool, error) {
	for _, span := range p.names {
		from, to := side{from: p.through, to: maxLSN}.clip(span)
		if from >= to {
			continue
		}
		var changed bool
		err := p.client.store.QueryRow(ctx, `
			SELECT EXISTS (
				SELECT FROM `+p.client.table("changes")+` c
				WHERE c."table" = $1 AND c.schema = $2 AND c.database = $3
				  AND c.position > $4 AND c.position <= $5)`, span.name, span.schema, p.database, from.String(), to.String()).Scan(&changed)
		if err != nil || changed {
			return changed, wrap("look for changes", err)
		}
	}
	return false, nil
}

// applicationPath returns the search_path that a session of the application
// would have.
func applicationPath(ctx context.Context, tx pgx.Tx) (string, error) {
	var path string
	err := tx.QueryRow(ctx, `
		SELECT coalesce((
			SELECT pg_catalog.substr(setting, pg_catalog.length('search_path=') + 1)
			FROM pg_catalog.pg_db_role_setting s
			CROSS JOIN LATERAL pg_catalog.unnest(s.setconfig) setting
			WHERE setting LIKE 'search\_path=%'
			  AND s.setdatabase IN (0, (SELECT d.oid FROM pg_catalog.pg_database d WHERE d.datname = pg_catalog.current_database()))
			  AND s.setrole IN (0, (SELECT r.oid FROM pg_catalog.pg_roles r WHERE r.rolname = session_user))
			ORDER BY s.setrole <> 0 DESC, s.setdatabase <> 0 DESC
			LIMIT 1), '"$user", public')`).Scan(&path)
	return path, wrap("read search_path", err)
}

// name decides what to write for each table: its plain name, if that is what its
// plain name means to the application, or if there is no other of the name.
func (v *pastView) name(ctx context.Context) error {
	var path []string
	if err := v.snapshot.tx.QueryRow(ctx, "SELECT pg_catalog.current_schemas(false)::text[]").Scan(&path); err != nil {
		return wrap("read search_path", err)
	}
	rank := func(t *viewTable) int {
		if at := slices.Index(path, t.schema); at >= 0 {
			return at
		}
		return len(path)
	}
	for _, t := range v.tables {
		t.name = pgx.Identifier{t.pastTable.name}.Sanitize()
		for _, o := range v.tables {
			if o != t && o.pastTable.name == t.pastTable.name && (rank(o) < rank(t) || rank(o) == rank(t) && o.n < t.n) {
				t.name = pgx.Identifier{t.schema + "." + t.pastTable.name}.Sanitize()
			}
		}
	}
	return nil
}

func (t *viewTable) temp(what string) string { return fmt.Sprintf("pg_temp.audit_%s_%d", what, t.n) }

// statements makes the temporary tables of a table, empty, and its view.
func (v *pastView) statements(ctx context.Context, t *viewTable) ([]string, error) {
	switch t.mode {
	case viewOverlay:
		return v.overlay(ctx, t)
	case viewCopy:
		return t.copyStatements(), nil
	case viewLive, viewBroken:
	}
	return nil, nil
}

// overlay lays the rows that changed since over the live table. The live table
// stands by itself in one arm of a plain UNION ALL, without a condition, so that
// the planner treats the two arms like the parts of a partitioned table and looks
// into the live table's indexes also for joins. Rows that changed since are taken
// out of the live arm outside of the union, by their key; in the other arm that
// key is NULL.
func (v *pastView) overlay(ctx context.Context, t *viewTable) ([]string, error) {
	var now, names, keysNow, probes, on, keyNames, types []string
	for i, c := range t.columns.list {
		quoted := pgx.Identifier{c.name}.Sanitize()
		names = append(names, quoted)
		live := pgx.Identifier{t.live.columns.list[t.liveAt[i]].name}.Sanitize()
		now = append(now, v.alias+"."+live+" AS "+quoted)
	}
	for i, at := range t.keyAt {
		expression := v.alias + "." + pgx.Identifier{t.live.columns.list[t.liveAt[at]].name}.Sanitize()
		base, err := baseType(ctx, v.snapshot.tx, t.columns.list[at].typeOID)
		if err != nil {
			return nil, err
		}
		types = append(types, t.columns.list[at].typeName)
		if base != "" {
			expression += "::" + base
			types[i] = base
		}
		probe := fmt.Sprintf("audit_key_%d", i+1)
		keysNow = append(keysNow, expression+" AS "+probe)
		probes = append(probes, probe)
		on = append(on, "k."+probe+" = u."+probe)
		keyNames = append(keyNames, pgx.Identifier{t.columns.list[at].name}.Sanitize())
	}
	t.keys = probes
	from := " FROM " + t.live.ident() + " AS " + v.alias
	rows := "CREATE TEMPORARY TABLE " + t.temp("rows") + " ON COMMIT DROP AS SELECT " + strings.Join(slices.Concat(now, keysNow), ", ") + from + " WITH NO DATA"
	statements := []string{rows}
	if t.columns.hasDerived() {
		statements = t.likeStatements(types)
	}
	arms := "SELECT " + strings.Join(slices.Concat(now, keysNow), ", ") + from +
		" UNION ALL SELECT " + strings.Join(slices.Concat(names, probes), ", ") + " FROM " + t.temp("rows")
	return append(statements,
		"CREATE TEMPORARY TABLE "+t.temp("keys")+" ON COMMIT DROP AS SELECT "+strings.Join(keysNow, ", ")+from+" WITH NO DATA",
		"CREATE INDEX ON "+t.temp("keys")+" ("+strings.Join(probes, ", ")+")",
		"CREATE INDEX ON "+t.temp("rows")+" ("+strings.Join(keyNames, ", ")+")",
		"CREATE TEMPORARY VIEW "+t.name+" AS SELECT "+strings.Join(prefixed("u.", names), ", ")+" FROM ("+arms+") u WHERE NOT EXISTS (SELECT FROM "+t.temp("keys")+" k WHERE "+strings.Join(on, " AND ")+")",
	), nil
}

// likeStatements makes the table of rows so that the server computes its
// generated columns. The rest of the columns' constraints may be younger than the
// rows.
func (t *viewTable) likeStatements(types []string) []string {
	statements := []string{
		"CREATE TEMPORARY TABLE " + t.temp("rows") + " (LIKE " + t.live.ident() + " INCLUDING GENERATED) ON COMMIT DROP",
	}
	var changes []string
	for _, c := range t.columns.list {
		if c.notNull {
			changes = append(changes, "ALTER COLUMN "+pgx.Identifier{c.name}.Sanitize()+" DROP NOT NULL")
		}
	}
	if len(changes) > 0 {
		statements = append(statements, "ALTER TABLE "+t.temp("rows")+" "+strings.Join(changes, ", "))
	}
	for i := range t.keyAt {
		statements = append(statements, fmt.Sprintf("ALTER TABLE %s ADD COLUMN audit_key_%d %s", t.temp("rows"), i+1, types[i]))
	}
	return statements
}

// copyStatements makes a table for the whole past of one.
func (t *viewTable) copyStatements() []string {
	var columns, names, key []string
	for _, c := range t.columns.list {
		quoted := pgx.Identifier{c.name}.Sanitize()
		names = append(names, quoted)
		columns = append(columns, quoted+" "+c.typeName)
	}
	for _, name := range t.key {
		key = append(key, pgx.Identifier{name}.Sanitize())
	}
	statements := []string{"CREATE TEMPORARY TABLE " + t.temp("copy") + " (" + strings.Join(columns, ", ") + ") ON COMMIT DROP"}
	if len(key) > 0 {
		statements = append(statements, "CREATE INDEX ON "+t.temp("copy")+" ("+strings.Join(key, ", ")+")")
	}
	return append(statements, "CREATE TEMPORARY VIEW "+t.name+" AS SELECT "+strings.Join(names, ", ")+" FROM "+t.temp("copy"))
}

func prefixed(prefix string, names []string) []string {
	out := make([]string, len(names))
	for i, name := range names {
		out[i] = prefix + name
	}
	return out
}

// baseType returns the type under a domain, or nothing if it is none: a domain
// may forbid NULL.
func baseType(ctx context.Context, tx pgx.Tx, oid uint32) (string, error) {
	if oid < 16384 {
		return "", nil
	}
	var base string
	err := tx.QueryRow(ctx, `
		WITH RECURSIVE t AS (
			SELECT t.oid, t.typtype, t.typbasetype, t.typtypmod, 0 AS depth FROM pg_catalog.pg_type t WHERE t.oid = $1
			UNION ALL
			SELECT b.oid, b.typtype, b.typbasetype, CASE WHEN b.typtype = 'd' THEN b.typtypmod ELSE t.typtypmod END, depth + 1
			FROM t JOIN pg_catalog.pg_type b ON b.oid = t.typbasetype
			WHERE t.typtype = 'd')
		SELECT CASE WHEN depth > 0 THEN pg_catalog.format_type(t.oid, NULL) ELSE '' END FROM t ORDER BY depth DESC LIMIT 1`, oid).Scan(&base)
	return base, wrap("look up type", err)
}

// lookedUp is table behind the locks: what was known of it before may be out of
// date.
func (v *pastView) lookedUp(ctx context.Context, name string) (*pastTable, error) {
	past, err := v.table(ctx, name)
	if err != nil {
		return nil, err
	}
	return past, past.refresh(ctx)
}
