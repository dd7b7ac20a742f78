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
	// allowed are the tables that may be read as they are now.
	allowed map[string]bool
	// functions are those of users, by name; nil until one may have been called.
	functions map[string][]function
	relations map[string]bool // names of untracked tables, read with functions
	plans     int
}

type function struct {
	schema, name, language, body, config string
	atomic                               bool
}

func newGuard(v *pastView) *guard {
	return &guard{view: v, checked: make(map[string]bool), tracked: make(map[string]*viewTable), allowed: make(map[string]bool)}
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
		g.tracked[qualifiedName(schema, name)] = byOID[oid]
		return nil
	})
	if err != nil {
		return wrap("read tables", err)
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
	if err := g.checkFunctions(ctx, plan.texts, make(map[string]bool)); err != nil {
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
	conn := g.view.snapshot.tx.Conn()
	g.plans++
	name := fmt.Sprintf("audit_plan_%d", g.plans)
	description, err := conn.PgConn().Prepare(ctx, name, sql, nil)
	if err != nil {
		var pgErr *pgconn.PgError
		switch {
		case errors.As(err, &pgErr) && pgErr.Code == "42P01":
			return nil, g.explainMissing(sql, err)
		case errors.As(err, &pgErr) && pgErr.Code == "42601" && strings.Contains(pgErr.Message, "multiple commands"):
			return nil, g.refuse("", "it is several statements in one string: run them one by one")
		}
		return nil, err
	}
	arguments := ""
	if n := len(description.ParamOIDs); n > 0 {
		arguments = "(" + strings.TrimSuffix(strings.Repeat("NULL, ", n), ", ") + ")"
	}
	// In the plan for any parameters nothing is pruned by their values.
	results, err := conn.PgConn().Exec(ctx, "SET LOCAL plan_cache_mode = force_generic_plan; EXPLAIN (VERBOSE, COSTS OFF, FORMAT JSON) EXECUTE "+name+arguments+"; SET LOCAL plan_cache_mode = auto; DEALLOCATE "+name).ReadAll()
	if err != nil {
		var pgErr *pgconn.PgError
		if errors.As(err, &pgErr) && (pgErr.Code == "42601" || pgErr.Code == "0A000" || pgErr.Code == "42P14") {
			return nil, g.refuse("", "it is not a query whose plan can be looked at: only SELECT, VALUES, TABLE and WITH can be run in the past")
		}
		return nil, err
	}
	var plan queryPlan
	for _, result := range results {
		for _, row := range result.Rows {
			var document []map[string]any
			if len(row) == 1 && json.Unmarshal(row[0], &document) == nil {
				for _, d := range document {
					plan.read(d)
				}
			}
		}
	}
	return &plan, nil
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

// checkFunctions reads the functions that the expressions call.
func (g *guard) checkFunctions(ctx context.Context, texts []string, visited map[string]bool) error {
	for _, text := range texts {
		for _, match := range called.FindAllStringSubmatch(text, -1) {
			name := unquoted(match[1])
			if visited[name] {
				continue
			}
			visited[name] = true
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
	tx := g.view.snapshot.tx
	rows, err := tx.Query(ctx, `
		SELECT n.nspname, p.proname, l.lanname, coalesce(p.prosrc, ''), coalesce(p.proconfig::text, ''),
			(pg_catalog.to_jsonb(p) ->> 'prosqlbody') IS NOT NULL
		FROM pg_catalog.pg_proc p
		JOIN pg_catalog.pg_namespace n ON n.oid = p.pronamespace
		JOIN pg_catalog.pg_language l ON l.oid = p.prolang
		WHERE n.nspname NOT IN ('pg_catalog', 'information_schema') AND l.lanname NOT IN ('c', 'internal')`)
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
