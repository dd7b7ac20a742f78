package audit

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/hindsight-go/audit/internal/history"
	"github.com/hindsight-go/audit/internal/pgcatalog"
)

// SearchPath says in which schemas plain names of tables are looked for, first to
// last, in the question: in a [Point.View], and where [Point.Table] is given a name
// without a schema. Default: the search_path that Config.SourceURL sets, or else
// that of the role or the database, or else public.
func (p Point) SearchPath(schemas ...string) Point {
	p.schemas = slices.Clone(schemas)
	return p
}

// applicationPath returns the search_path that a session of the application has.
func (c *Client) applicationPath(ctx context.Context, p Point) (string, error) {
	if p.schemas != nil {
		quoted := make([]string, len(p.schemas))
		for i, schema := range p.schemas {
			quoted[i] = pgx.Identifier{schema}.Sanitize()
		}
		return strings.Join(quoted, ", "), nil
	}
	if c.cfg.path != "" {
		return c.cfg.path, nil
	}
	var path string
	err := c.history.Source.QueryRow(ctx, `
		SELECT coalesce((
			SELECT pg_catalog.substr(setting, pg_catalog.length('search_path=') + 1)
			FROM pg_catalog.pg_db_role_setting s
			CROSS JOIN LATERAL pg_catalog.unnest(s.setconfig) setting
			WHERE setting LIKE 'search\_path=%'
			  AND s.setdatabase IN (0, (SELECT d.oid FROM pg_catalog.pg_database d WHERE d.datname = pg_catalog.current_database()))
			  AND s.setrole IN (0, (SELECT r.oid FROM pg_catalog.pg_roles r WHERE r.rolname = session_user))
			ORDER BY s.setrole <> 0 DESC, s.setdatabase <> 0 DESC
			LIMIT 1), '"$user", public')`).Scan(&path)
	return path, history.OpError("read search_path", err)
}

// need makes everything ready that may be meant by one of the names, and says
// whether that was anything new.
func (v *pastView) need(ctx context.Context, names []string) error {
	for len(names) > 0 {
		names = slices.DeleteFunc(slices.Clone(names), func(name string) bool { return v.sought[name] })
		if len(names) == 0 {
			return nil
		}
		for _, name := range names {
			v.sought[name] = true
		}
		if err := v.look(ctx, names); err != nil {
			return err
		}
		added, err := v.addNamed(ctx, names)
		if err != nil {
			return err
		}
		// A table may have had another name then, of which there may be others.
		names = nil
		for _, t := range added {
			names = append(names, t.pastTable.name)
		}
		if err := v.need(ctx, names); err != nil {
			return err
		}
		for _, t := range added {
			if err := v.make(ctx, t); err != nil {
				return err
			}
		}
		names = nil
	}
	return nil
}

// look reads what the source has of the names now.
func (v *pastView) look(ctx context.Context, names []string) error {
	rows, err := v.client.history.Source.Query(ctx, `
		SELECT c.oid, n.nspname, c.relname, c.relkind::text,
			CASE WHEN c.relkind = 'v' THEN coalesce(pg_catalog.pg_get_viewdef(c.oid), '') ELSE '' END,
			array(
				WITH RECURSIVE above (oid) AS (
					SELECT i.inhparent FROM pg_catalog.pg_inherits i WHERE i.inhrelid = c.oid
					UNION
					SELECT i.inhparent FROM above a JOIN pg_catalog.pg_inherits i ON i.inhrelid = a.oid)
				SELECT a.oid FROM above a)
		FROM pg_catalog.pg_class c
		JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
		WHERE c.relname = ANY ($1) AND c.relkind IN ('r', 'p', 'v', 'm', 'f')
		  AND n.nspname NOT IN ('pg_catalog', 'information_schema') AND n.nspname NOT LIKE 'pg\_t%'`, names)
	if err != nil {
		return history.OpError("look for tables", err)
	}
	_, err = pgx.CollectRows(rows, func(row pgx.CollectableRow) (*relation, error) {
		r := &relation{}
		err := row.Scan(&r.oid, &r.schema, &r.name, &r.kind, &r.definition, &r.ancestors)
		v.relations[r.name] = append(v.relations[r.name], r)
		return r, err
	})
	return history.OpError("look for tables", err)
}

// addNamed adds the tables that have one of the names, or had it.
func (v *pastView) addNamed(ctx context.Context, names []string) (added []*viewTable, err error) {
	oids := make(map[uint32]bool)
	for _, name := range names {
		for _, r := range v.relations[name] {
			oids[r.oid] = true
			for _, oid := range r.ancestors {
				oids[oid] = true
			}
		}
	}
	for _, cov := range v.facts.Coverage {
		oids[cov.RelationID] = oids[cov.RelationID] || slices.Contains(names, cov.Table)
	}
	for _, version := range v.facts.Versions {
		oids[version.RelationID] = oids[version.RelationID] || slices.Contains(names, version.Table)
	}
	seen := make(map[string]bool)
	for _, cov := range v.facts.Coverage {
		then := v.nameThen(cov)
		name := pgcatalog.Qualified(then.Schema, then.Table)
		if !oids[cov.RelationID] || seen[name] {
			continue
		}
		seen[name] = true
		t, err := v.add(ctx, name)
		if err != nil {
			return nil, err
		}
		if t != nil {
			added = append(added, t)
		}
		if refused := v.missing[then]; refused != nil {
			v.missByAnyName(cov.RelationID, refused)
		}
	}
	return added, nil
}

// missByAnyName notes why a table has no past under every name that it ever had.
func (v *pastView) missByAnyName(oid uint32, refused error) {
	for _, version := range v.facts.Versions {
		name := pgcatalog.Name{Schema: version.Schema, Table: version.Table}
		if version.RelationID == oid && v.missing[name] == nil {
			v.missing[name] = refused
		}
	}
}

// meant is what a name means: a table of the view, or what the source has now.
type meant struct {
	table *viewTable
	live  *relation
}

// in finds what a name with its schema meant then.
func (v *pastView) in(schema, name string) (m meant, ok bool) {
	for _, t := range v.tables {
		if t.schema == schema && t.pastTable.name == name {
			return meant{table: t}, true
		}
	}
	for _, r := range v.relations[name] {
		if r.schema != schema {
			continue
		}
		if slices.ContainsFunc(v.tables, func(t *viewTable) bool { return t.oid == r.oid }) {
			continue // it had another name then
		}
		return meant{live: r}, true
	}
	return meant{}, false
}

// on finds what a plain name means on a path.
func (v *pastView) on(path []string, name string) (meant, bool) {
	for _, schema := range path {
		if m, ok := v.in(schema, name); ok {
			return m, true
		}
	}
	return meant{}, false
}

// make makes the temporary tables of a table, empty.
func (v *pastView) make(ctx context.Context, t *viewTable) error {
	m, ok := v.on(v.schemas, t.pastTable.name)
	t.plain = ok && m.table == t
	t.temp = t.pastTable.name
	if !t.plain {
		t.temp = fmt.Sprintf("%s_table_%d", v.alias, t.n)
	}
	if !t.changed() {
		return nil
	}
	return v.prepare(ctx, func(ctx context.Context) error {
		if err := v.findTypes(ctx, t); err != nil {
			return err
		}
		statements := v.copyStatements(t)
		if t.mode == viewOverlay {
			var err error
			if statements, err = v.overlay(ctx, t); err != nil {
				return err
			}
		}
		return v.script(ctx, statements...)
	})
}

// repeatView makes a view of the database anew over the past, if it reads what has
// changed since.
func (v *pastView) repeatView(ctx context.Context, r *relation) error {
	if r.remade || r.kind != "v" {
		return nil
	}
	r.remade = true
	tokens := scanSQL(r.definition)
	if err := v.needAll(ctx, tokens); err != nil {
		return err
	}
	definition := v.rewrite(r.definition)
	if definition == r.definition {
		return nil
	}
	if m, ok := v.on(v.schemas, r.name); ok && m.live == r {
		r.temp = r.name
	} else {
		v.serial++
		r.temp = fmt.Sprintf("%s_view_%d", v.alias, v.serial)
	}
	create := func(ctx context.Context) error {
		return v.script(ctx, "CREATE TEMPORARY VIEW "+pgx.Identifier{r.temp}.Sanitize()+" AS "+strings.TrimSuffix(strings.TrimSpace(definition), ";"))
	}
	err := v.prepare(ctx, create)
	if history.IsCode(err, "42803") {
		if err = v.materializeAll(ctx, tokens); err == nil {
			r.remade, r.temp = false, ""
			if definition = v.rewrite(r.definition); definition != r.definition {
				return v.repeatMaterialized(ctx, r)
			}
		}
	}
	if err != nil {
		r.temp = ""
		r.err = v.guard.refuse("view "+pgcatalog.Qualified(r.schema, r.name), "it cannot be had over the tables as they were: it may read a column that they did not have, or of a type that has changed; write its query with the columns of then")
	}
	return nil
}

// repeatMaterialized is repeatView over real tables.
func (v *pastView) repeatMaterialized(ctx context.Context, r *relation) error {
	for _, named := range v.relations {
		for _, o := range named {
			if o != r {
				if err := v.repeatView(ctx, o); err != nil {
					return err
				}
			}
		}
	}
	return v.repeatView(ctx, r)
}

// needAll makes ready what the tokens name, and the views in it.
func (v *pastView) needAll(ctx context.Context, tokens []sqlToken) error {
	names := sqlNames(tokens)
	if err := v.need(ctx, names); err != nil {
		return err
	}
	for _, name := range names {
		for _, r := range slices.Clone(v.relations[name]) {
			if err := v.repeatView(ctx, r); err != nil {
				return err
			}
		}
	}
	return nil
}

// temporary returns what a name with its schema is called in pg_temp, or nothing
// if it is not there.
func (v *pastView) temporary(schema, name string) string {
	m, _ := v.in(schema, name)
	switch {
	case m.table != nil && m.table.changed():
		return m.table.temp
	case m.live != nil:
		return m.live.temp
	}
	return ""
}

// rewrite writes the names with their schemas of what is not the live table as our
// names. Whatever it makes of a text is looked at before it runs, like any other.
func (v *pastView) rewrite(sql string) string {
	tokens := scanSQL(sql)
	var b strings.Builder
	at := 0
	for i := 0; i+2 < len(tokens); i++ {
		schema, name := tokens[i], tokens[i+2]
		if !schema.isName() || !tokens[i+1].is(".") || !name.isName() {
			continue
		}
		if i > 0 && (tokens[i-1].is(".") || tokens[i-1].is(":") || tokens[i-1].is("as")) {
			continue // the end of a longer name, or a type
		}
		temp := v.temporary(schema.text, name.text)
		next := sqlToken{}
		if i+3 < len(tokens) {
			next = tokens[i+3]
		}
		if temp == "" || next.is("(") {
			continue
		}
		alias := pgx.Identifier{name.text}.Sanitize()
		b.WriteString(sql[at:schema.begin])
		switch {
		case next.is("."):
			b.WriteString(alias)
		case temp == name.text || next.kind == tokenQuoted || next.kind == tokenName && !bareAliasStops[next.text]:
			b.WriteString("pg_temp." + pgx.Identifier{temp}.Sanitize())
		default:
			b.WriteString("pg_temp." + pgx.Identifier{temp}.Sanitize() + " AS " + alias)
		}
		at = name.end
		i += 2
	}
	if at == 0 {
		return sql
	}
	return b.String() + sql[at:]
}

// materializeAll makes real tables, with their keys, of what the tokens name.
func (v *pastView) materializeAll(ctx context.Context, tokens []sqlToken) error {
	names := sqlNames(tokens)
	found := false
	for _, t := range v.tables {
		if t.mode == viewOverlay && (slices.Contains(names, t.pastTable.name) || slices.Contains(names, t.temp)) {
			found = true
			if err := v.materialize(ctx, t); err != nil {
				return err
			}
		}
	}
	if !found {
		return errNothingToMaterialize
	}
	return nil
}

// errNothingToMaterialize says that real tables are no help to a query.
var errNothingToMaterialize = errors.New("audit: no table to materialize")
