package audit

import (
	"context"
	"regexp"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/hindsight-go/audit/internal/history"
	"github.com/hindsight-go/audit/internal/pgcatalog"
)

// function is one that a query may call.
type function struct {
	oid                              uint32
	schema, name, language, body     string
	signature, volatility, extension string
	config, calls                    []string
	atomic, builtin, single, trusted bool
}

// implicitCall is a function that runs without its name being written: behind an
// operator, a cast, the domain of a value, the order of a type.
type implicitCall struct{ operator, domain, schema, name string }

// callScope says how a function reads plain names.
type callScope struct {
	path []string
	// temporary reports whether our names come first.
	temporary bool
}

func (g *guard) top() callScope { return callScope{g.view.schemas, true} }

func (s callScope) String() string {
	text := strings.Join(s.path, "\x00")
	if s.temporary {
		text = "pg_temp\x00" + text
	}
	return text
}

// readImplicit reads which functions run without their names being written.
func (g *guard) readImplicit(ctx context.Context) error {
	rows, err := g.view.client.history.Source.Query(ctx, `
		WITH implicit (operator, domain, oid) AS (
			SELECT o.oprname, '', o.oprcode::oid FROM pg_catalog.pg_operator o WHERE o.oid >= 16384
			UNION
			SELECT '', '', c.castfunc FROM pg_catalog.pg_cast c WHERE c.oid >= 16384
			UNION
			SELECT '', '', a.amproc::oid FROM pg_catalog.pg_amproc a WHERE a.oid >= 16384
			UNION
			SELECT '', '', r.rngsubdiff::oid FROM pg_catalog.pg_range r WHERE r.rngtypid >= 16384
			UNION
			SELECT '', t.typname, d.refobjid
			FROM pg_catalog.pg_constraint c
			JOIN pg_catalog.pg_type t ON t.oid = c.contypid
			JOIN pg_catalog.pg_depend d ON d.objid = c.oid AND d.classid = 'pg_catalog.pg_constraint'::regclass
			WHERE c.contypid <> 0 AND d.refclassid = 'pg_catalog.pg_proc'::regclass)
		SELECT i.operator, i.domain, n.nspname, p.proname
		FROM implicit i
		JOIN pg_catalog.pg_proc p ON p.oid = i.oid
		JOIN pg_catalog.pg_namespace n ON n.oid = p.pronamespace
		JOIN pg_catalog.pg_language l ON l.oid = p.prolang
		WHERE l.lanname NOT IN ('c', 'internal') AND p.oid >= 16384`)
	if err != nil {
		return history.OpError("read functions", err)
	}
	g.implicit, err = pgx.CollectRows(rows, func(row pgx.CollectableRow) (c implicitCall, err error) {
		err = row.Scan(&c.operator, &c.domain, &c.schema, &c.name)
		return c, err
	})
	return history.OpError("read functions", err)
}

// readFunctions reads all functions of the names.
func (g *guard) readFunctions(ctx context.Context, names []string) error {
	names = slices.DeleteFunc(names, func(name string) bool { _, ok := g.functions[name]; return ok })
	if len(names) == 0 {
		return nil
	}
	for _, name := range names {
		g.functions[name] = nil
	}
	rows, err := g.view.client.history.Source.Query(ctx, `
		SELECT p.oid, n.nspname, p.proname, l.lanname, p.provolatile::text, p.oid < 16384,
			CASE WHEN p.prokind = 'a' THEN '' WHEN pg_catalog.to_jsonb(p) ->> 'prosqlbody' IS NULL THEN coalesce(p.prosrc, '') ELSE pg_catalog.pg_get_functiondef(p.oid) END,
			(pg_catalog.to_jsonb(p) ->> 'prosqlbody') IS NOT NULL,
			CASE WHEN p.prokind = 'a' THEN '' ELSE pg_catalog.pg_get_function_arguments(p.oid) || ' ' || coalesce(pg_catalog.pg_get_function_result(p.oid), '') END,
			coalesce(p.proconfig, '{}'),
			p.pronargs >= 1 AND p.pronargs - p.pronargdefaults <= 1,
			pg_catalog.pg_has_role(p.proowner, $2::pg_catalog.name, 'MEMBER'),
			coalesce((SELECT e.extname::text FROM pg_catalog.pg_depend d JOIN pg_catalog.pg_extension e ON e.oid = d.refobjid
				WHERE d.classid = 'pg_catalog.pg_proc'::regclass AND d.objid = p.oid AND d.deptype = 'e' AND d.refclassid = 'pg_catalog.pg_extension'::regclass LIMIT 1), ''),
			array(SELECT pg_catalog.format('%I.%I()', tn.nspname, t.proname)
				FROM pg_catalog.pg_aggregate a
				JOIN pg_catalog.pg_proc t ON t.oid IN (a.aggtransfn, a.aggfinalfn, a.aggcombinefn, a.aggmtransfn, a.aggminvtransfn, a.aggmfinalfn)
				JOIN pg_catalog.pg_namespace tn ON tn.oid = t.pronamespace
				WHERE a.aggfnoid::oid = p.oid)
		FROM pg_catalog.pg_proc p
		JOIN pg_catalog.pg_namespace n ON n.oid = p.pronamespace
		JOIN pg_catalog.pg_language l ON l.oid = p.prolang
		WHERE p.proname = ANY ($1)`, names, g.view.role)
	if err != nil {
		return history.OpError("read functions", err)
	}
	_, err = pgx.CollectRows(rows, func(row pgx.CollectableRow) (*function, error) {
		f := &function{}
		err := row.Scan(&f.oid, &f.schema, &f.name, &f.language, &f.volatility, &f.builtin, &f.body, &f.atomic, &f.signature, &f.config, &f.single, &f.trusted, &f.extension, &f.calls)
		g.functions[f.name] = append(g.functions[f.name], f)
		return f, err
	})
	return history.OpError("read functions", err)
}

// callsOfRows reports whether there is a function of the user's that takes one row.
func (g *guard) callsOfRows(ctx context.Context, tokens []sqlToken) bool {
	calls := sqlCalls(tokens)
	names := make([]string, len(calls))
	for i, call := range calls {
		names[i] = call.name
	}
	if g.readFunctions(ctx, names) != nil {
		return false
	}
	return slices.ContainsFunc(calls, func(call sqlCall) bool {
		return slices.ContainsFunc(g.functions[call.name], func(f *function) bool { return !f.builtin && f.single })
	})
}

// checkCalls looks at the functions that a text calls, or may.
func (g *guard) checkCalls(ctx context.Context, tokens []sqlToken, scope callScope) error {
	calls := sqlCalls(tokens)
	operators := operatorsOf(tokens)
	words := sqlNames(tokens)
	for _, i := range g.implicit {
		// A domain is written where a value becomes one, or is a column's by %TYPE.
		if strings.Contains(operators, i.operator) && (i.domain == "" || slices.Contains(words, i.domain) || slices.Contains(words, "type") || slices.Contains(words, "rowtype")) {
			calls = append(calls, sqlCall{schema: i.schema, name: i.name})
		}
	}
	names := make([]string, len(calls))
	for i, call := range calls {
		names[i] = call.name
	}
	if err := g.readFunctions(ctx, names); err != nil {
		return err
	}
	for _, call := range calls {
		for _, f := range g.functions[call.name] {
			switch {
			case call.schema != "" && call.schema != f.schema,
				call.attribute && (!f.single || f.builtin),
				call.schema == "" && f.schema != "pg_catalog" && !slices.Contains(scope.path, f.schema):
				continue
			}
			if err := g.checkFunction(ctx, f, scope); err != nil {
				return err
			}
		}
	}
	for _, t := range tokens {
		if t.kind == tokenQuoted && slices.ContainsFunc(tokens, func(o sqlToken) bool { return o.is("uescape") }) {
			return g.refuse("", "it writes names with UESCAPE, so what it reads cannot be told")
		}
	}
	return nil
}

// operatorsOf returns the marks of a text, with blanks where they do not adjoin.
func operatorsOf(tokens []sqlToken) string {
	var b strings.Builder
	end := -1
	for _, t := range tokens {
		if t.kind != tokenMark {
			continue
		}
		if t.begin != end {
			b.WriteByte(' ')
		}
		b.WriteString(t.text)
		end = t.end
	}
	return b.String()
}

// harmless are functions of the server that are volatile, and neither change
// anything that lasts nor run SQL: of chance, time, sizes and statistics.
var harmless = regexp.MustCompile(`^(bernoulli|system|random|random_normal|gen_random_uuid|uuidv4|uuidv7|clock_timestamp|timeofday|pg_sleep(_for|_until)?|currval|lastval|pg_is_in_recovery|pg_(current|last)_wal_.*|pg_(relation|total_relation|table|indexes|database|tablespace)_size|pg_stat_get_.*|pg_lock_status|pg_blocking_pids|pg_safe_snapshot_blocking_pids|pg_isolation_test_session_is_blocked|pg_show_all_settings|pg_cursor|pg_prepared_.*|pg_timezone_.*|pg_xact_commit_timestamp.*|pg_last_committed_xact|pg_input_error_info|pg_collation_actual_version|pg_database_collation_actual_version|row_security_active|pg_get_.*|pg_index.*_has_property|pg_control_.*)$`)

// runsText are functions of the server that are not volatile, and read tables that
// they are given the names of.
var runsText = regexp.MustCompile(`_to_xml(schema|_and_xmlschema)?$`)

// plainExtensions are those whose functions in C read nothing but their arguments.
var plainExtensions = strings.Fields(`btree_gin btree_gist citext cube dict_int dict_xsyn earthdistance fuzzystrmatch h3 hstore
	intarray isn ltree pg_trgm pgcrypto postgis postgis_raster postgis_sfcgal rum seg unaccent uuid-ossp vector`)

// checkFunction decides about one function, called with a scope.
func (g *guard) checkFunction(ctx context.Context, f *function, scope callScope) error {
	object := "function " + pgcatalog.Qualified(f.schema, f.name)
	if f.builtin {
		return g.checkBuiltin(f, object)
	}
	if !f.trusted && f.extension == "" && !g.view.client.cfg.TrustOwners {
		return g.refuse(object, "its owner is another role, whose code must not run with the rights of this one: let Config.ReadURL be of a role with few rights, or say with Config.TrustOwners that it may")
	}
	for _, call := range f.calls { // of an aggregate
		if err := g.checkCalls(ctx, scanSQL(call), scope); err != nil {
			return err
		}
	}
	switch f.language {
	case "c", "internal":
		if f.volatility == "i" || slices.Contains(plainExtensions, f.extension) {
			return nil
		}
		return g.refuse(object, "what a function in C reads cannot be told")
	case "sql", "plpgsql":
	default:
		return g.refuse(object, "what a function in "+f.language+" reads cannot be told")
	}
	own, err := g.scopeOf(f, object, scope)
	if err != nil {
		return err
	}
	visit := object + "\x00" + f.body + "\x00" + own.String()
	if g.visited[visit] {
		return nil
	}
	g.visited[visit] = true
	// What was found wrong has to be found again.
	if err := g.checkBody(ctx, f, object, own, scope); err != nil {
		delete(g.visited, visit)
		return err
	}
	return nil
}

func (g *guard) checkBuiltin(f *function, object string) error {
	switch {
	case runsText.MatchString(f.name), f.volatility == "v" && !harmless.MatchString(f.name):
		return g.refuse(object, "it has effects outside of the query, changes how names are read, or runs SQL given as text, so it is not called in the past")
	}
	return nil
}

// scopeOf returns the scope that a function's body has: its own search_path, or its
// caller's.
func (g *guard) scopeOf(f *function, object string, caller callScope) (callScope, error) {
	scope := caller
	for _, setting := range f.config {
		name, value, _ := strings.Cut(setting, "=")
		switch strings.ToLower(name) {
		case "search_path":
			scope = callScope{temporary: true}
			for _, t := range scanSQL(value) {
				switch {
				case t.isName() && t.text == "pg_temp":
					scope.temporary = scope.temporary && len(scope.path) == 0
					scope.path = append(scope.path, t.text)
				case t.isName() && t.text == "$user":
					scope.path = append(scope.path, g.view.role)
				case t.isName():
					scope.path = append(scope.path, t.text)
				}
			}
		case "role", "session_authorization", "standard_conforming_strings":
			return scope, g.refuse(object, "it sets "+name+", so what it reads cannot be told")
		}
	}
	return scope, nil
}

// checkBody reads the text of a function.
func (g *guard) checkBody(ctx context.Context, f *function, object string, scope, caller callScope) error {
	// Defaults were resolved when the function was made, and are printed with schemas.
	signature := scanSQL(f.signature)
	if err := g.view.needAll(ctx, signature); err != nil {
		return err
	}
	if err := g.checkCalls(ctx, signature, caller); err != nil {
		return err
	}
	tokens := scanSQL(f.body)
	if reason := untellable(tokens, f.language); reason != "" {
		return g.refuse(object, reason)
	}
	if err := g.view.needAll(ctx, tokens); err != nil {
		return err
	}
	for _, r := range sqlRelations(tokens) {
		if err := g.checkName(ctx, f, r, object, scope); err != nil {
			return err
		}
	}
	return g.checkCalls(ctx, tokens, scope)
}

// untellable says why a body's words do not say what it reads, or nothing.
func untellable(tokens []sqlToken, language string) string {
	for i, t := range tokens {
		begins := i == 0 || tokens[i-1].is(";") || slices.Contains([]string{"begin", "then", "else", "loop", "atomic"}, tokens[i-1].text)
		switch {
		case t.isName() && t.text == "search_path", t.is("uescape"), begins && (t.is("set") || t.is("reset") || t.is("discard")):
			return "it changes how names are read, so what it reads cannot be told"
		case t.is("execute") && (language == "plpgsql" || begins), begins && (t.is("do") || t.is("prepare") || t.is("call")):
			return "it runs SQL that it makes itself, so what it reads cannot be told"
		}
	}
	return ""
}

// checkName decides about a name of a table in a function's body: whether the
// server takes for it the past of what the application means by it.
func (g *guard) checkName(ctx context.Context, f *function, r sqlRelation, object string, scope callScope) error {
	v := g.view
	if r.schema != "" {
		if r.schema == "pg_temp" || r.schema == "pg_catalog" || r.schema == "information_schema" {
			return nil
		}
		m, ok := v.in(r.schema, r.name)
		if !ok || m.table != nil && m.table.mode == viewLive {
			return g.checkGone(r.schema, r.name, object, ok)
		}
		return g.inFunction(object, g.checkNow(r.schema, r.name, m))
	}
	m, ok := v.on(scope.path, r.name)
	temp := v.tempNamed(r.name)
	if scope.temporary && !f.atomic && temp.name != "" {
		if ok && (m.table != temp.table || m.live != temp.live) {
			return g.refuse(object, "by its own search_path it means another "+r.name+" than the query does, which cannot be had at the same time")
		}
		if temp.table != nil {
			return v.fill(ctx, temp.table)
		}
		return v.fillView(ctx, temp.live)
	}
	if !ok || m.table != nil && m.table.mode == viewLive {
		return nil
	}
	schema := ""
	if m.table != nil {
		schema = m.table.schema
	} else {
		schema = m.live.schema
	}
	return g.inFunction(object, g.checkNow(schema, r.name, m))
}

// fillView loads the tables that a view over the past reads.
func (v *pastView) fillView(ctx context.Context, r *relation) error {
	for _, named := range sqlRelations(scanSQL(r.definition)) {
		m, _ := v.in(named.schema, named.name)
		var err error
		switch {
		case m.table != nil:
			err = v.fill(ctx, m.table)
		case m.live != nil && m.live.temp != "":
			err = v.fillView(ctx, m.live)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// checkGone is for a name with a schema that had no table then.
func (g *guard) checkGone(schema, name, object string, known bool) error {
	if known || g.view.holder(schema, name) == nil {
		return nil
	}
	return g.inFunction(object, g.checkLive(schema, name, false))
}

// checkNow decides about reading the present of what a name means.
func (g *guard) checkNow(schema, name string, m meant) error {
	if m.live != nil && m.live.kind == "v" && m.live.temp == "" && m.live.err == nil {
		// It reads nothing that has changed, but maybe something untracked.
		for _, r := range sqlRelations(scanSQL(m.live.definition)) {
			if r.schema == "" {
				continue
			}
			if inner, ok := g.view.in(r.schema, r.name); ok && !(inner.table != nil && inner.table.mode == viewLive) {
				if err := g.checkNow(r.schema, r.name, inner); err != nil {
					return err
				}
			}
		}
		return nil
	}
	if m.table != nil && m.table.live == nil {
		return m.table.err // dropped: nothing of the name can be read
	}
	if m.table != nil && m.table.changed() {
		return g.refuse(pgcatalog.Qualified(schema, name), "it is read as it is now; write "+m.table.written())
	}
	if err := g.checkPart(schema, name); err != nil {
		return err
	}
	return g.checkLive(schema, name, false)
}

// inFunction says that it is a function that reads.
func (g *guard) inFunction(object string, err error) error {
	refused, ok := err.(*ViewError) //nolint:errorlint // it was made just now
	if !ok {
		return err
	}
	return g.refuse(object, "it reads "+refused.Object+", with a search_path of its own or by a name with the schema: "+refused.Reason)
}

// tempThing is what a plain name means in pg_temp.
type tempThing struct {
	name string
	meant
}

// tempNamed returns what a plain name means in pg_temp.
func (v *pastView) tempNamed(name string) tempThing {
	for _, t := range v.tables {
		if t.changed() && t.temp == name {
			return tempThing{name, meant{table: t}}
		}
	}
	for _, r := range v.relations[name] {
		if r.temp == name {
			return tempThing{name, meant{live: r}}
		}
	}
	return tempThing{}
}
