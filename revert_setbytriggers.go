package audit

import (
	"context"
	"maps"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/hindsight-go/audit/capture"
)

// What a trigger did to a row cannot be told from its changes: the stream has the row
// that came out. What can be told is which columns the triggers of today set in every
// UPDATE whatever the statement says. Nobody writes to such a column, and restoring it
// would come to nothing.

// columnsSetByTriggers lists the columns of a table that its triggers set in every UPDATE.
func columnsSetByTriggers(ctx context.Context, db capture.Querier, oid uint32) ([]string, error) {
	rows, err := db.Query(ctx, `
		SELECT p.proname, n.nspname, l.lanname, p.prosrc,
			pg_catalog.convert_from(pg_catalog.substring(g.tgargs, 1, greatest(pg_catalog.position(g.tgargs, pg_catalog.decode('00', 'hex')) - 1, 0)), pg_catalog.getdatabaseencoding()),
			g.tgqual IS NOT NULL OR g.tgattr::text <> ''
		FROM pg_catalog.pg_trigger g
		JOIN pg_catalog.pg_proc p ON p.oid = g.tgfoid
		JOIN pg_catalog.pg_namespace n ON n.oid = p.pronamespace
		JOIN pg_catalog.pg_language l ON l.oid = p.prolang
		WHERE g.tgrelid = $1 AND NOT g.tgisinternal AND g.tgenabled IN ('O', 'A')
		  AND g.tgtype & 19 = 19 -- BEFORE UPDATE FOR EACH ROW
		ORDER BY g.tgname`, oid)
	if err != nil {
		return nil, err
	}
	var assigned triggerAssignments
	var name, schema, language, source, argument string
	var sometimes bool
	_, err = pgx.ForEachRow(rows, []any{&name, &schema, &language, &source, &argument, &sometimes}, func() error {
		switch {
		case language == "plpgsql":
			assigned.read(source, sometimes)
		case language == "internal" && schema == "pg_catalog" && strings.HasPrefix(name, "tsvector_update_trigger"),
			language == "c" && name == "moddatetime":
			assigned.add(argument, nil, sometimes)
		}
		return nil
	})
	if err != nil || len(assigned.from) == 0 {
		return nil, err
	}
	// What the value of a key or a reference will be has to be planned.
	constrained, err := constrainedColumns(ctx, db, oid)
	return slices.DeleteFunc(assigned.always(), func(name string) bool { return slices.Contains(constrained, name) }), err
}

// constrainedColumns lists the columns of a table that are in a unique index, an exclusion
// constraint or a foreign key, from or to it.
func constrainedColumns(ctx context.Context, db capture.Querier, oid uint32) ([]string, error) {
	rows, err := db.Query(ctx, `
		SELECT a.attname::text
		FROM pg_catalog.pg_attribute a
		WHERE a.attrelid = $1 AND a.attnum > 0 AND NOT a.attisdropped AND (
			EXISTS (SELECT FROM pg_catalog.pg_index i
				WHERE i.indrelid = a.attrelid AND (i.indisunique OR i.indisexclusion)
				  AND (a.attnum = ANY(i.indkey::int2[]) OR i.indexprs IS NOT NULL OR i.indpred IS NOT NULL))
			OR EXISTS (SELECT FROM pg_catalog.pg_constraint k
				WHERE k.contype = 'f' AND (k.conrelid = a.attrelid AND a.attnum = ANY(k.conkey) OR k.confrelid = a.attrelid AND a.attnum = ANY(k.confkey))))`, oid)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, pgx.RowTo[string])
}

// triggerAssignments are the columns that triggers assign to, and which columns of the
// new row each value comes from.
type triggerAssignments struct {
	from      map[string]map[string]bool
	sometimes map[string]bool // columns that a trigger may leave as the statement sets them
}

func (a *triggerAssignments) add(column string, from []string, sometimes bool) {
	if a.from == nil {
		a.from, a.sometimes = make(map[string]map[string]bool), make(map[string]bool)
	}
	if a.from[column] == nil {
		a.from[column] = make(map[string]bool)
	}
	for _, name := range from {
		a.from[column][name] = true
	}
	a.sometimes[column] = a.sometimes[column] || sometimes
}

// always lists the columns that are set whatever the statement says. A value that comes
// from a column which triggers assign to may be what the statement said: in
// NEW.mail := lower(NEW.mail), it is.
func (a *triggerAssignments) always() (columns []string) {
	for column, from := range a.from {
		if a.sometimes[column] || from[wholeRow] || slices.ContainsFunc(slices.Collect(maps.Keys(from)), func(name string) bool { return a.from[name] != nil }) {
			continue
		}
		columns = append(columns, column)
	}
	return columns
}

// wholeRow stands for all columns of the new row.
const wholeRow = "*"

// read takes the assignments of a function that does nothing but assign to columns of
// NEW, one after the other, and return it. Of any other function it notes every column
// that it may assign to.
func (a *triggerAssignments) read(source string, sometimes bool) {
	tokens := scanSQL(source)
	statements, ok := straightLine(tokens)
	if !ok {
		for i := range tokens {
			if column, ok := newColumn(tokens[i:]); ok {
				a.add(column, []string{wholeRow}, true)
			}
		}
		return
	}
	for _, s := range statements {
		if column, ok := newColumn(s); ok {
			a.add(column, newColumns(s[4:]), sometimes)
		}
	}
}

// straightLine cuts the body of a function into its statements, if there are only
// assignments to columns of NEW, and RETURN NEW at the end.
func straightLine(tokens []sqlToken) (statements [][]sqlToken, ok bool) {
	if n := len(tokens); n > 0 && tokens[n-1].is(";") {
		tokens = tokens[:n-1]
	}
	if len(tokens) < 2 || !tokens[0].is("begin") || !tokens[len(tokens)-1].is("end") {
		return nil, false
	}
	tokens = tokens[1 : len(tokens)-1]
	for len(tokens) > 0 {
		end := slices.IndexFunc(tokens, func(t sqlToken) bool { return t.is(";") })
		if end < 0 {
			return nil, false
		}
		statement := tokens[:end]
		tokens = tokens[end+1:]
		if len(statement) == 2 && statement[0].is("return") && statement[1].is("new") && len(tokens) == 0 {
			return statements, true
		}
		if !isAssignment(statement) {
			return nil, false
		}
		statements = append(statements, statement)
	}
	return nil, false
}

// isAssignment reports whether a statement assigns to a column of NEW: := or =.
func isAssignment(s []sqlToken) bool {
	_, ok := newColumn(s)
	return ok && len(s) > 4 && (s[3].is("=") || s[3].is(":") && s[4].is("=") || s[3].is(":="))
}

// newColumn is the column of NEW that tokens begin with.
func newColumn(s []sqlToken) (column string, ok bool) {
	if len(s) < 3 || !s[0].is("new") || !s[1].is(".") || !s[2].isName() {
		return "", false
	}
	return s[2].text, true
}

// newColumns lists the columns of NEW that an expression names.
func newColumns(s []sqlToken) (columns []string) {
	for i := range s {
		if column, ok := newColumn(s[i:]); ok {
			columns = append(columns, column)
		} else if s[i].is("new") {
			columns = append(columns, wholeRow)
		}
	}
	return columns
}
