package audit

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// ViewError is returned by a query in a [Point.View] that would not see the past,
// or not only. It was not run, and the view goes on.
type ViewError struct {
	// Asked is the Point in words.
	Asked string
	// Object is the table, view or function that the query reads, or empty.
	Object string
	// Reason says why it was refused, and what to write instead.
	Reason string
}

func (e *ViewError) Error() string {
	if e.Object == "" {
		return "audit: view as of " + e.Asked + ": " + e.Reason
	}
	return "audit: view as of " + e.Asked + ": " + e.Object + ": " + e.Reason
}

// guard looks at the plan of each query before it runs: it is where a table that
// is read can no longer hide behind a name, a view or an inlined function. What a
// plan does not show, the body of a function, it reads as text.
type guard struct {
	view *pastView
	// checked are the queries that were found to read nothing but the past.
	checked map[string]bool
	// tracked are the tables of the view by the names that they have now, their
	// partitions included.
	tracked map[string]*viewTable
	// parts are partitions, by their plain names.
	parts map[string]*viewTable
	// allowed are the tables that may be read as they are now.
	allowed map[string]bool
	// functions are those of users, by name; nil until one may have been called.
	functions map[string][]function
	relations map[string]bool // names of untracked tables, read with functions
	plans     int
	// implicit are calls of functions that run without their names being written:
	// behind operators, casts, aggregates and domains.
	implicit []string
	// folds tells that there are functions which the planner computes where their
	// arguments are constants.
	folds bool
}

type function struct {
	schema, name, language, body, config string
	atomic                               bool
}

func newGuard(v *pastView) *guard {
	return &guard{view: v, checked: make(map[string]bool), tracked: make(map[string]*viewTable), parts: make(map[string]*viewTable), allowed: make(map[string]bool)}
}

// learn reads which tables there are.
func (g *guard) learn(ctx context.Context) error {
	tx := g.view.snapshot.tx
	var oids []uint32
	byOID := make(map[uint32]*viewTable)
	for _, t := range g.view.tables {
		if t.live != nil {
			oids = append(oids, t.oid)
			byOID[t.oid] = t
		}
	}
	rows, err := tx.Query(ctx, `
		SELECT t.oid, n.nspname, c.relname
		FROM pg_catalog.unnest($1::oid[]) t (oid)
		CROSS JOIN LATERAL (
			SELECT t.oid AS relid
			UNION
			SELECT p.relid FROM pg_catalog.pg_partition_tree(t.oid) p) part
		JOIN pg_catalog.pg_class c ON c.oid = part.relid
		JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace`, oids)
	if err != nil {
		return wrap("read tables", err)
	}
	var oid uint32
	var schema, name string
	_, err = pgx.ForEachRow(rows, []any{&oid, &schema, &name}, func() error {
		t := byOID[oid]
		g.tracked[qualifiedName(schema, name)] = t
		if name != t.live.name || schema != t.live.schema {
			g.parts[name] = t
		}
		return nil
	})
	if err != nil {
		return wrap("read tables", err)
	}
	rows, err = tx.Query(ctx, `
		WITH implicit (oid) AS (
			SELECT o.oprcode::oid FROM pg_catalog.pg_operator o WHERE o.oid >= 16384
			UNION
			SELECT c.castfunc FROM pg_catalog.pg_cast c WHERE c.oid >= 16384
			UNION
			SELECT pg_catalog.unnest(ARRAY[a.aggtransfn, a.aggfinalfn, a.aggcombinefn, a.aggmtransfn, a.aggminvtransfn, a.aggmfinalfn]::oid[])
			FROM pg_catalog.pg_aggregate a
			WHERE a.aggfnoid::oid >= 16384
			UNION
			SELECT d.refobjid
			FROM pg_catalog.pg_constraint c
			JOIN pg_catalog.pg_depend d ON d.objid = c.oid AND d.classid = 'pg_catalog.pg_constraint'::regclass
			WHERE c.contypid <> 0 AND d.refclassid = 'pg_catalog.pg_proc'::regclass)
		SELECT DISTINCT pg_catalog.quote_ident(p.proname) || '('
		FROM implicit i
		JOIN pg_catalog.pg_proc p ON p.oid = i.oid
		JOIN pg_catalog.pg_language l ON l.oid = p.prolang
		WHERE l.lanname NOT IN ('c', 'internal') AND p.pronamespace <> 'pg_catalog'::regnamespace`)
	if err != nil {
		return wrap("read functions", err)
	}
	if g.implicit, err = pgx.CollectRows(rows, pgx.RowTo[string]); err != nil {
		return wrap("read functions", err)
	}
	err = tx.QueryRow(ctx, `
		SELECT EXISTS (
			SELECT FROM pg_catalog.pg_proc p
			JOIN pg_catalog.pg_language l ON l.oid = p.prolang
			WHERE p.provolatile = 'i' AND l.lanname NOT IN ('c', 'internal')
			  AND p.pronamespace NOT IN ('pg_catalog'::regnamespace, 'information_schema'::regnamespace))`).Scan(&g.folds)
	if err != nil {
		return wrap("read functions", err)
	}
	for _, name := range g.view.point.live {
		parsed, err := parseTable(name)
		if err != nil {
			return &FilterError{Filter: "WithLive", Reason: err.Error(), cause: err}
		}
		g.allowed[qualifiedName(parsed.schema, parsed.table)] = true
	}
	return nil
}

// refuse makes the error for something that a query reads.
func (g *guard) refuse(object, reason string) error {
	return &ViewError{Asked: g.view.point.String(), Object: object, Reason: reason}
}

// check tells that a query reads nothing but the past, and loads what it reads.
func (g *guard) check(ctx context.Context, sql string) error {
	if g.checked[sql] {
		return nil
	}
	plan, err := g.explain(ctx, sql)
	if err != nil {
		return err
	}
	for _, scan := range plan.scans {
		if err := g.checkScan(ctx, scan); err != nil {
			return err
		}
	}
	if plan.writes {
		return g.refuse("", "it would write: only queries can be run in the past")
	}
	// What the planner has computed already is not in the plan.
	texts := append(plan.texts, sql)
	definitions, err := g.definitions(ctx, sql)
	if err != nil {
		return err
	}
	texts = append(texts, definitions...)
	if err := g.checkFunctions(ctx, append(texts, g.implicit...), make(map[string]bool)); err != nil {
		return err
	}
	g.checked[sql] = true
	return nil
}

// scan is a table that a plan reads.
type scan struct{ schema, name, alias string }

type queryPlan struct {
	scans  []scan
	texts  []string // expressions
	writes bool
}

// explain plans a query for any parameters. It is prepared as the caller's own
// will be, so that what is wrong with it is said in the server's words.
func (g *guard) explain(ctx context.Context, sql string) (*queryPlan, error) {
	conn := g.view.snapshot.tx.Conn().PgConn()
	g.plans++
	name := fmt.Sprintf("audit_plan_%d", g.plans)
	if _, err := conn.Exec(ctx, "SAVEPOINT audit_plan").ReadAll(); err != nil {
		return nil, err
	}
	results, err := g.plan(ctx, conn, name, sql)
	if err != nil {
		// The view goes on after a query that was refused.
		_, rollbackErr := conn.Exec(ctx, "ROLLBACK TO SAVEPOINT audit_plan; RELEASE SAVEPOINT audit_plan").ReadAll()
		_ = conn.Deallocate(ctx, name)
		return nil, errors.Join(g.explained(sql, err), rollbackErr)
	}
	var plan queryPlan
	for _, result := range results {
		for _, row := range result.Rows {
			var document []map[string]any
			if len(row) == 1 && json.Unmarshal(row[0], &document) == nil && len(document) == 1 && document[0]["Plan"] != nil {
				plan.read(document[0])
				return &plan, nil
			}
		}
	}
	return nil, g.refuse("", notAQuery)
}

// notAQuery is why a statement without a plan is refused.
const notAQuery = "it is not a query whose plan can be looked at: only SELECT, VALUES, TABLE and WITH can be run in the past"

// plan prepares a query and asks for its plan.
func (g *guard) plan(ctx context.Context, conn *pgconn.PgConn, name, sql string) ([]*pgconn.Result, error) {
	description, err := conn.Prepare(ctx, name, sql, nil)
	if err != nil {
		return nil, err
	}
	arguments := ""
	if n := len(description.ParamOIDs); n > 0 {
		arguments = "(" + strings.TrimSuffix(strings.Repeat("NULL, ", n), ", ") + ")"
	}
	// A plan for any parameters, from which nothing is pruned.
	return conn.Exec(ctx, `
		SET LOCAL plan_cache_mode = force_generic_plan;
		SET LOCAL enable_partition_pruning = off;
		SET LOCAL constraint_exclusion = off;
		EXPLAIN (VERBOSE, COSTS OFF, FORMAT JSON) EXECUTE `+name+arguments+`;
		SET LOCAL plan_cache_mode = auto;
		SET LOCAL enable_partition_pruning = on;
		SET LOCAL constraint_exclusion = partition;
		DEALLOCATE `+name+`;
		RELEASE SAVEPOINT audit_plan`).ReadAll()
}

// explained says in our words what keeps a query from being looked at.
func (g *guard) explained(sql string, err error) error {
	var pgErr *pgconn.PgError
	if !errors.As(err, &pgErr) {
		return err
	}
	switch {
	case isRowSecurity(err):
		return wrap("read the past", err)
	case pgErr.Code == "42P01":
		return g.explainMissing(sql, err)
	case pgErr.Code == "42601" && strings.Contains(pgErr.Message, "multiple commands"):
		return g.refuse("", "it is several statements in one string: run them one by one")
	case pgErr.Code == "0A000", pgErr.Code == "42P14", pgErr.Code == "42601" && strings.Contains(pgErr.Message, "EXPLAIN"),
		strings.Contains(pgErr.Message, "prepared statement is not"), pgErr.Code == "42809":
		return g.refuse("", notAQuery)
	}
	return err
}

// explainMissing says why a table is not there: it may be one that history knows.
func (g *guard) explainMissing(sql string, err error) error {
	for name, reason := range g.view.missing {
		if mentions(sql, name) {
			return reason
		}
	}
	return err
}

// read gathers what a plan's node, and those below it, read.
func (p *queryPlan) read(node map[string]any) {
	if kind, _ := node["Node Type"].(string); kind == "ModifyTable" {
		p.writes = true
	}
	if name, ok := node["Relation Name"].(string); ok {
		schema, _ := node["Schema"].(string)
		alias, _ := node["Alias"].(string)
		p.scans = append(p.scans, scan{schema, name, alias})
	}
	for key, value := range node {
		switch key {
		case "Node Type", "Relation Name", "Schema", "Alias", "Query Text":
			continue
		}
		p.readValue(value)
	}
}

func (p *queryPlan) readValue(value any) {
	switch v := value.(type) {
	case string:
		p.texts = append(p.texts, v)
	case []any:
		for _, item := range v {
			p.readValue(item)
		}
	case map[string]any:
		p.read(v)
	}
}

// definitions returns those of the views that a text mentions, and of the views
// in them, where there are functions that the planner may compute.
func (g *guard) definitions(ctx context.Context, sql string) ([]string, error) {
	if !g.folds {
		return nil, nil
	}
	var texts []string
	seen := make(map[string]bool)
	for texts = []string{sql}; ; {
		var names []string
		for _, text := range texts {
			for _, w := range identifiers(text) {
				if !seen[w.name] {
					seen[w.name] = true
					names = append(names, w.name)
				}
			}
		}
		rows, err := g.view.snapshot.tx.Query(pass(ctx), `
			SELECT pg_catalog.pg_get_viewdef(c.oid)
			FROM pg_catalog.pg_class c
			WHERE c.relkind = 'v' AND c.relname = ANY ($1) AND c.relnamespace NOT IN ('pg_catalog'::regnamespace, 'information_schema'::regnamespace)`, names)
		if err != nil {
			return nil, wrap("read views", err)
		}
		found, err := pgx.CollectRows(rows, pgx.RowTo[string])
		if err != nil || len(found) == 0 {
			return texts, wrap("read views", err)
		}
		texts = append(texts, found...)
	}
}

// checkScan decides about one table that a plan reads.
func (g *guard) checkScan(ctx context.Context, s scan) error {
	if strings.HasPrefix(s.schema, "pg_temp") {
		return g.fillTemp(ctx, s.name)
	}
	if s.schema == "pg_catalog" || s.schema == "information_schema" || s.schema == "pg_toast" {
		return nil
	}
	name := qualifiedName(s.schema, s.name)
	t, ok := g.tracked[name]
	switch {
	case ok && (t.mode == viewLive || t.mode == viewOverlay && strings.HasPrefix(s.alias, g.view.alias)):
		return nil
	case g.allowed[name] || g.allowed[s.name]:
		return nil
	case ok && t.mode == viewBroken:
		return t.err
	case ok:
		return g.refuse(name, "the query reads the table as it is now: by its name with the schema, or in a view or function that does; write it as "+t.name)
	}
	if err, ok := g.view.missing[s.name]; ok {
		return err
	}
	return g.refuse(name, "it is not tracked, so there is only its present: if that will do, say so with WithLive")
}

// fillTemp loads the table that a temporary one belongs to.
func (g *guard) fillTemp(ctx context.Context, name string) error {
	for _, t := range g.view.tables {
		for _, what := range []string{"rows", "keys", "copy"} {
			if t.temp(what) == "pg_temp."+name {
				return g.view.fill(ctx, t)
			}
		}
	}
	return nil
}

// called finds what may be the name of a function in an expression.
var called = regexp.MustCompile(`("(?:[^"]|"")+"|[\pL_][\pL\pN_$]*)\s*\(`)

// runsText are functions of the server and its extensions that run SQL given as
// text, or change what names mean.
var runsText = regexp.MustCompile(`^(set_config|(query|cursor|table|schema|database)_to_xml.*|ts_stat|ts_rewrite|dblink.*|crosstab.*|connectby|xpath_table)$`)

// checkFunctions reads the functions that the expressions call.
func (g *guard) checkFunctions(ctx context.Context, texts []string, visited map[string]bool) error {
	for _, text := range texts {
		for _, match := range called.FindAllStringSubmatch(text, -1) {
			name := unquoted(match[1])
			if visited[name] {
				continue
			}
			visited[name] = true
			if runsText.MatchString(name) {
				return g.refuse("function "+name, "it runs SQL given as text, or changes how names are read, so what is read cannot be told")
			}
			if err := g.readFunctions(ctx); err != nil {
				return err
			}
			for _, f := range g.functions[name] {
				if err := g.checkFunction(ctx, f, visited); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

func unquoted(name string) string {
	if strings.HasPrefix(name, `"`) {
		return strings.ReplaceAll(name[1:len(name)-1], `""`, `"`)
	}
	return strings.ToLower(name)
}

// readFunctions reads the functions of users, and the names of the tables that
// they may not read.
func (g *guard) readFunctions(ctx context.Context) error {
	if g.functions != nil {
		return nil
	}
	tx, ctx := g.view.snapshot.tx, pass(ctx)
	rows, err := tx.Query(ctx, `
		SELECT n.nspname, p.proname, l.lanname,
			CASE WHEN pg_catalog.to_jsonb(p) ->> 'prosqlbody' IS NULL THEN coalesce(p.prosrc, '') ELSE pg_catalog.pg_get_functiondef(p.oid) END,
			coalesce(p.proconfig::text, ''),
			(pg_catalog.to_jsonb(p) ->> 'prosqlbody') IS NOT NULL
		FROM pg_catalog.pg_proc p
		JOIN pg_catalog.pg_namespace n ON n.oid = p.pronamespace
		JOIN pg_catalog.pg_language l ON l.oid = p.prolang
		WHERE n.nspname NOT IN ('pg_catalog', 'information_schema') AND l.lanname NOT IN ('c', 'internal') AND p.prokind <> 'a'`)
	if err != nil {
		return wrap("read functions", err)
	}
	g.functions = make(map[string][]function)
	_, err = pgx.CollectRows(rows, func(row pgx.CollectableRow) (f function, err error) {
		err = row.Scan(&f.schema, &f.name, &f.language, &f.body, &f.config, &f.atomic)
		g.functions[f.name] = append(g.functions[f.name], f)
		return f, err
	})
	if err != nil {
		return wrap("read functions", err)
	}
	rows, err = tx.Query(ctx, `
		SELECT n.nspname, c.relname
		FROM pg_catalog.pg_class c
		JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
		WHERE c.relkind IN ('r', 'p', 'v', 'm', 'f') AND n.nspname NOT IN ('pg_catalog', 'information_schema') AND n.nspname NOT LIKE 'pg\_t%'`)
	if err != nil {
		return wrap("read functions", err)
	}
	g.relations = make(map[string]bool)
	var schema, name string
	_, err = pgx.ForEachRow(rows, []any{&schema, &name}, func() error {
		qualified := qualifiedName(schema, name)
		if g.tracked[qualified] == nil && !g.allowed[qualified] && !g.allowed[name] {
			g.relations[name] = true
		}
		return nil
	})
	return wrap("read functions", err)
}

// checkFunction reads a function's body. It runs with our names in front of the
// search path, so that plain names in it mean the past.
func (g *guard) checkFunction(ctx context.Context, f function, visited map[string]bool) error {
	object := "function " + qualifiedName(f.schema, f.name)
	if f.language != "sql" && f.language != "plpgsql" {
		return g.refuse(object, "what a function in "+f.language+" reads cannot be told")
	}
	words := identifiers(f.body)
	if strings.Contains(strings.ToLower(f.body), `u&"`) || slices.ContainsFunc(words, func(w word) bool { return w.name == "search_path" }) {
		return g.refuse(object, "it writes names in a way, or changes how they are read, that what it reads cannot be told")
	}
	for _, w := range words {
		if t := g.parts[w.name]; t != nil && t.mode != viewLive {
			return g.refuse(object, "it reads "+w.name+", a partition, as it is now; write "+t.name)
		}
	}
	if f.language == "plpgsql" && slices.ContainsFunc(words, func(w word) bool { return w.name == "execute" }) {
		return g.refuse(object, "it runs SQL that it makes itself, so what it reads cannot be told")
	}
	for _, t := range g.view.tables {
		for _, w := range words {
			if w.name != t.pastTable.name && (t.live == nil || w.name != t.live.name) {
				continue
			}
			switch {
			case t.mode == viewLive:
			case t.mode == viewBroken:
				return t.err
			case w.qualifier != "" && (w.qualifier == t.schema || t.live != nil && w.qualifier == t.live.schema), f.atomic, strings.Contains(f.config, "search_path="):
				return g.refuse(object, "it reads "+t.qualified()+" as it is now: by its name with the schema, or with a search_path of its own; write "+t.name+" in a function without")
			}
			if err := g.view.fill(ctx, t); err != nil {
				return err
			}
		}
	}
	for _, w := range words {
		if g.relations[w.name] && !slices.ContainsFunc(g.view.tables, func(t *viewTable) bool { return t.pastTable.name == w.name }) {
			return g.refuse(object, "it reads "+w.name+", of which there is only the present: if that will do, say so with WithLive")
		}
	}
	return g.checkFunctions(ctx, []string{f.body}, visited)
}

// word is an identifier in a text, with what stands before it and a dot.
type word struct{ qualifier, name string }

var identifier = regexp.MustCompile(`(?:("(?:[^"]|"")+"|[\pL_][\pL\pN_$]*)\s*\.\s*)?("(?:[^"]|"")+"|[\pL_][\pL\pN_$]*)`)

// identifiers returns the words of a text, those in comments and literals, too.
func identifiers(text string) []word {
	var words []word
	for _, match := range identifier.FindAllStringSubmatch(text, -1) {
		w := word{name: unquoted(match[2])}
		if match[1] != "" {
			w.qualifier = unquoted(match[1])
			words = append(words, word{name: w.qualifier})
		}
		words = append(words, w)
	}
	return words
}

func mentions(sql, name string) bool {
	return slices.ContainsFunc(identifiers(sql), func(w word) bool { return w.name == name })
}
