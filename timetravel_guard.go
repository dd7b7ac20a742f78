package audit

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/hindsight-go/audit/internal/history"
	"github.com/hindsight-go/audit/internal/pgcatalog"
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

// guard looks at each query before it runs: at the functions that it calls, whose
// bodies it reads, and at its plan, which is where a table that is read can no
// longer hide behind a name, a view or an inlined function.
type guard struct {
	view *pastView
	// checked are the queries that were found to read nothing but the past, with
	// what is sent for each; prepared those that have a name.
	checked  map[string]string
	prepared map[string]string
	// allowed are the tables that may be read as they are now.
	allowed map[string]bool
	// functions are those that were looked for, by name.
	functions map[string][]*function
	implicit  []implicitCall
	visited   map[string]bool
	plans     int
}

func newGuard(ctx context.Context, v *pastView) (*guard, error) {
	g := &guard{
		view: v, checked: make(map[string]string), prepared: make(map[string]string), allowed: make(map[string]bool),
		functions: make(map[string][]*function), visited: make(map[string]bool),
	}
	for _, name := range v.point.live {
		parsed, err := pgcatalog.ParseName(name)
		if err != nil {
			return nil, &FilterError{Filter: "WithLive", Reason: err.Error(), cause: err}
		}
		g.allowed[pgcatalog.Qualified(parsed.Schema, parsed.Table)] = true
	}
	return g, g.readImplicit(ctx)
}

// refuse makes the error for something that a query reads.
func (g *guard) refuse(object, reason string) error {
	return &ViewError{Asked: g.view.point.String(), Object: object, Reason: reason}
}

// check reports whether a query reads nothing but the past, loads what it reads, and
// returns what to send for it.
func (g *guard) check(ctx context.Context, sql string) (string, error) {
	if g.view.snapshot.conn.Conn().PgConn().TxStatus() == 'E' {
		return "", &pgconn.PgError{Severity: "ERROR", Code: "25P02", Message: "current transaction is aborted, commands ignored until it is rolled back"}
	}
	if sent, ok := g.checked[sql]; ok {
		return sent, nil
	}
	query := explained(sql)
	tokens := scanSQL(sql[query:])
	if err := g.view.needAll(ctx, tokens); err != nil {
		return "", err
	}
	if err := g.checkSystemColumns(tokens); err != nil {
		return "", err
	}
	// Before the planner computes what it can.
	if err := g.checkCalls(ctx, tokens, g.top()); err != nil {
		return "", err
	}
	if err := g.checkViews(ctx, tokens); err != nil {
		return "", err
	}
	for range 20 {
		sent, again, err := g.checkPlan(ctx, sql[query:], tokens)
		if err != nil {
			return "", err
		}
		if !again {
			g.checked[sql] = sql[:query] + sent
			return g.checked[sql], nil
		}
	}
	return "", g.refuse("", "what it reads cannot be told")
}

// checkPlan looks at a query's plan; again says that something was made ready for
// it meanwhile.
func (g *guard) checkPlan(ctx context.Context, sql string, tokens []sqlToken) (sent string, again bool, err error) {
	sent = g.view.rewrite(sql)
	plan, err := g.explain(ctx, sent)
	if err != nil && sent != sql && history.IsCode(err, "42P01", "42601", "42703", "42704") {
		if other, otherErr := g.explain(ctx, sql); otherErr == nil {
			sent, plan, err = sql, other, nil
		}
	}
	if err != nil {
		return g.recover(ctx, tokens, err)
	}
	for _, scan := range plan.scans {
		made, err := g.checkScan(ctx, scan)
		if err != nil {
			return "", false, err
		}
		again = again || made
	}
	if !again {
		if err := g.checkUnread(tokens, plan, make(map[*relation]bool)); err != nil {
			return "", false, err
		}
	}
	if plan.writes {
		return "", false, g.refuse("", "it would write: only queries can be run in the past")
	}
	for _, text := range plan.texts {
		if err := g.checkCalls(ctx, scanSQL(text), g.top()); err != nil {
			return "", false, err
		}
	}
	return sent, again, nil
}

// checkUnread refuses a query that names a partition, or a table without a past which
// the plan does not read: that of now is known to have no rows for it, by its constraints
// or because it has no partition any more, and that of then is not.
func (g *guard) checkUnread(tokens []sqlToken, plan *queryPlan, looked map[*relation]bool) error {
	for _, named := range sqlRelations(tokens) {
		if !slices.ContainsFunc(plan.scans, func(s scan) bool { return s.name == named.name }) {
			for _, r := range g.view.relations[named.name] {
				err, ok := g.view.missing[pgcatalog.Name{Schema: r.schema, Table: named.name}]
				meant := named.schema == r.schema || named.schema == "" && slices.Contains(g.view.schemas, r.schema)
				if !ok || !meant || g.allowed[named.name] || g.allowed[pgcatalog.Qualified(r.schema, named.name)] {
					continue
				}
				if named.certain || named.listed && r.kind == "p" {
					return err
				}
			}
		}
		// Where it may be something else, it is one that the plan reads.
		if named.certain || slices.ContainsFunc(plan.scans, func(s scan) bool { return s.name == named.name }) {
			if err := g.checkPart(named.schema, named.name); err != nil {
				return err
			}
		}
		for _, r := range g.view.relations[named.name] {
			if r.kind != "v" || looked[r] || named.schema != "" && named.schema != r.schema {
				continue
			}
			looked[r] = true
			if err := g.checkUnread(scanSQL(r.definition), plan, looked); err != nil {
				return err
			}
		}
	}
	return nil
}

// checkPart refuses the name of a partition: history has the rows of the whole table, and
// not what its partitions were called. Another table may have had the name.
func (g *guard) checkPart(schema, name string) error {
	path := g.view.schemas
	if schema != "" {
		path = []string{schema}
	}
	m, ok := g.view.on(path, name)
	if !ok || m.live == nil {
		return nil
	}
	qualified := pgcatalog.Qualified(m.live.schema, name)
	t := g.view.holder(m.live.schema, name)
	switch {
	case t == nil, t.oid == m.live.oid, g.allowed[name], g.allowed[qualified]:
		return nil
	case g.view.missing[pgcatalog.Name{Schema: m.live.schema, Table: name}] != nil:
		return g.view.missing[pgcatalog.Name{Schema: m.live.schema, Table: name}]
	}
	return g.refuse(qualified, "it is a partition, and what was called so then is not in history: write "+t.written()+", or say WithLive if its present will do")
}

// checkSystemColumns refuses what the server says of where and when it stored a
// row: of a past row it is not in history, and our temporary tables have their own.
func (g *guard) checkSystemColumns(tokens []sqlToken) error {
	names := sqlNames(tokens)
	for _, name := range names {
		switch name {
		case "ctid", "tableoid", "xmin", "xmax", "cmin", "cmax":
		default:
			continue
		}
		for _, t := range g.view.tables {
			if t.changed() && slices.Contains(names, t.pastTable.name) {
				return g.refuse(t.qualified(), "its rows have changed since, and "+name+" of a past row is not in history")
			}
		}
	}
	return nil
}

// checkViews looks at what the views that a text names call: what the planner can
// compute of it is not in the plan.
func (g *guard) checkViews(ctx context.Context, tokens []sqlToken) error {
	for _, named := range sqlRelations(tokens) {
		for _, r := range g.view.relations[named.name] {
			if r.kind != "v" || r.looked || named.schema != "" && named.schema != r.schema {
				continue
			}
			r.looked = true
			inner := scanSQL(r.definition)
			err := g.checkCalls(ctx, inner, g.top())
			if err == nil {
				err = g.checkViews(ctx, inner)
			}
			if err != nil {
				r.looked = false
				return err
			}
		}
	}
	return nil
}

// recover makes real tables for a query that needs them, or says in our words what
// keeps it from being looked at.
func (g *guard) recover(ctx context.Context, tokens []sqlToken, err error) (string, bool, error) {
	var pgErr *pgconn.PgError
	if !errors.As(err, &pgErr) {
		return "", false, err
	}
	names := sqlNames(tokens)
	changed := slices.ContainsFunc(g.view.tables, func(t *viewTable) bool { return t.changed() && slices.Contains(names, t.pastTable.name) })
	sample := slices.Contains(names, "tablesample")
	if pgErr.Code == "42803" || sample && (pgErr.Code == "42809" || pgErr.Code == "0A000") {
		made := g.view.materializeAll(ctx, tokens)
		if errors.Is(made, errNothingToMaterialize) {
			return "", false, err
		}
		if made == nil {
			made = g.view.needAll(ctx, tokens)
		}
		if made == nil {
			for name := range g.view.relations {
				names = append(names, name)
			}
			for _, name := range names {
				for _, r := range g.view.relations[name] {
					if made == nil {
						made = g.view.repeatView(ctx, r)
					}
				}
			}
		}
		return "", made == nil, made
	}
	switch {
	case changed && (pgErr.Code == "42883" || pgErr.Code == "42703") && g.callsOfRows(ctx, tokens):
		return "", false, g.refuse("", "it calls a function over the row of a table, and the rows of then have no such type: write f(ROW(t.*)::schema.table) for f(t) and t.f")
	case history.IsRowSecurity(err):
		return "", false, history.OpError("read the past", err)
	case pgErr.Code == "42P01":
		return "", false, g.explainMissing(names, err)
	case pgErr.Code == "55000" && slices.ContainsFunc(names, func(n string) bool { return n == "delete" || n == "update" || n == "insert" || n == "merge" }):
		return "", false, g.refuse("", "it would write: only queries can be run in the past")
	case pgErr.Code == "42601" && strings.Contains(pgErr.Message, "multiple commands"):
		return "", false, g.refuse("", "it is several statements in one string: run them one by one")
	case pgErr.Code == "0A000", pgErr.Code == "42P14", pgErr.Code == "42601" && strings.Contains(pgErr.Message, "EXPLAIN"),
		strings.Contains(pgErr.Message, "prepared statement is not"), pgErr.Code == "42809":
		return "", false, g.refuse("", notAQuery)
	}
	return "", false, err
}

// explained returns where the query of an EXPLAIN begins; 0 if it is none.
func explained(sql string) int {
	tokens := scanSQL(sql)
	if len(tokens) < 2 || !tokens[0].is("explain") {
		return 0
	}
	i := 1
	if tokens[i].is("(") {
		for i < len(tokens) && !tokens[i].is(")") {
			i++
		}
		i++
	}
	for i < len(tokens) && (tokens[i].is("analyze") || tokens[i].is("analyse") || tokens[i].is("verbose")) {
		i++
	}
	if i >= len(tokens) {
		return 0
	}
	switch tokens[i].text {
	case "select", "with", "values", "table", "(":
		return tokens[i].begin
	}
	return 0
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
		if rollbackErr != nil {
			return nil, errors.Join(err, rollbackErr)
		}
		return nil, err
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

// explainMissing says why a table is not there: it may be one that history knows.
func (g *guard) explainMissing(names []string, err error) error {
	for name, reason := range g.view.missing {
		if slices.Contains(names, name.Table) {
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

// checkScan decides about one table that a plan reads. made says that it was not
// known until then.
func (g *guard) checkScan(ctx context.Context, s scan) (made bool, err error) {
	if strings.HasPrefix(s.schema, "pg_temp") {
		return false, g.fillTemp(ctx, s.name)
	}
	if s.schema == "pg_catalog" || s.schema == "information_schema" || s.schema == "pg_toast" {
		return false, nil
	}
	made = !g.view.sought[s.name]
	if err := g.view.need(ctx, []string{s.name}); err != nil {
		return false, err
	}
	return made, g.checkLive(s.schema, s.name, strings.HasPrefix(s.alias, g.view.alias))
}

// checkLive decides about reading what the source has now. ours tells that one of
// our views does.
func (g *guard) checkLive(schema, name string, ours bool) error {
	qualified := pgcatalog.Qualified(schema, name)
	t := g.view.holder(schema, name)
	switch {
	case t != nil && (t.mode == viewLive || t.mode == viewOverlay && ours):
		return nil
	case g.allowed[qualified] || g.allowed[name]:
		return nil
	case t != nil && t.mode == viewBroken:
		return t.err
	case t != nil:
		return g.refuse(qualified, "it is read as it is now, as a view, a function or another name of it does; write "+t.written())
	}
	for _, r := range g.view.relations[name] {
		if r.schema == schema && r.err != nil {
			return r.err
		}
	}
	if err, ok := g.view.missing[pgcatalog.Name{Schema: schema, Table: name}]; ok {
		return err
	}
	return g.refuse(qualified, "it is not tracked, so there is only its present: if that will do, say so with WithLive")
}

// holder returns the table that a live one is, or is a part of.
func (v *pastView) holder(schema, name string) *viewTable {
	for _, r := range v.relations[name] {
		if r.schema != schema {
			continue
		}
		for _, t := range v.tables {
			if t.oid == r.oid {
				return t
			}
		}
		for _, t := range v.tables {
			if slices.Contains(r.ancestors, t.oid) {
				return t
			}
		}
	}
	return nil
}

// fillTemp loads the table that a temporary one belongs to.
func (g *guard) fillTemp(ctx context.Context, name string) error {
	for _, t := range g.view.tables {
		if t.temp == name {
			return g.view.fill(ctx, t)
		}
		for _, what := range []string{"rows", "keys"} {
			if t.store(what) == "pg_temp."+name {
				return g.view.fill(ctx, t)
			}
		}
	}
	return nil
}
