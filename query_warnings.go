package audit

import (
	"context"
	"errors"
	"fmt"
	"slices"

	sq "github.com/Masterminds/squirrel"
	"github.com/jackc/pgx/v5"

	"github.com/hindsight-go/audit/internal/history"
	"github.com/hindsight-go/audit/internal/pgcatalog"
)

// UnknownNameError is a warning: a query asks for a name of which the history knows
// nothing, so that an empty answer may mean a misspelling rather than that nothing
// happened. [Query.First] returns it in the place of a bare [ErrNotFound], which it is.
type UnknownNameError struct {
	// Kind is table, column or user.
	Kind string
	// Name is what was asked for, a table in the form that ForTable reads.
	Name string
}

func (e *UnknownNameError) Error() string {
	return fmt.Sprintf("audit: the history knows no %s %q", e.Kind, clip(e.Name, 130))
}

// Unwrap returns [ErrNotFound].
func (e *UnknownNameError) Unwrap() error { return ErrNotFound }

// RenamedTableError is a warning: a table that the query asks for has had other names, and
// its changes from then stand under these. [Query.ForTable] takes several names, and
// [Client.History] follows a row by itself.
type RenamedTableError struct {
	// Table is the name that was asked for, Others the ones that were not, sorted, in the
	// form that ForTable reads.
	Table  string
	Others []string
}

func (e *RenamedTableError) Error() string {
	return fmt.Sprintf("audit: the table %q has had other names, under which a part of its changes stands: ForTable(%q) and also %q", clip(e.Table, 130), clip(e.Table, 130), e.Others)
}

// Warnings returns what makes an answer to the query less than it seems: a
// [*UnknownNameError] for each table, column and user of which the history knows nothing,
// and a [*RenamedTableError] for each table with changes under another name. It is nil if
// there is nothing to say, or if the role may read nothing but the changes.
func (q Query) Warnings(ctx context.Context) ([]error, error) {
	client, err := q.ready()
	if err != nil {
		return nil, err
	}
	warnings, err := q.tableWarnings(ctx, client)
	if err != nil {
		return nil, err
	}
	if len(warnings) == 0 || !slices.ContainsFunc(warnings, isUnknownName) {
		columns, err := q.columnWarnings(ctx, client)
		if err != nil {
			return nil, err
		}
		warnings = append(warnings, columns...)
	}
	for _, user := range q.users {
		_, err := client.Changes().filter(userMember.is(user)).first(ctx)
		if errors.Is(err, ErrNotFound) {
			warnings = append(warnings, &UnknownNameError{"user", user})
		} else if err != nil {
			return nil, err
		}
	}
	return warnings, nil
}

func isUnknownName(err error) bool {
	var unknown *UnknownNameError
	return errors.As(err, &unknown)
}

// tableWarnings looks for tables that are unknown, and for those with other names.
func (q Query) tableWarnings(ctx context.Context, client *Client) ([]error, error) {
	if len(q.tables) == 0 {
		return nil, nil
	}
	schemas, tables := q.tableNames()
	statement := `
		WITH names AS (
			SELECT r.database, r.relation_id, r.schema, r."table" FROM ` + client.history.Relation("relations") + ` AS r
			UNION
			SELECT v.database, v.relation_id, v.schema, v."table" FROM ` + client.history.Relation("coverage") + ` AS v
		)
		SELECT EXISTS (SELECT FROM names AS n WHERE n."table" = u."table" AND u.schema IN ('', n.schema))
				OR EXISTS (SELECT FROM ` + client.history.Relation("changes") + ` AS c WHERE c."table" = u."table" AND u.schema IN ('', c.schema)),
			coalesce((SELECT array_agg(DISTINCT ARRAY[o.schema, o."table"]::text[])
				FROM names AS n
				JOIN names AS o USING (database, relation_id)
				WHERE n."table" = u."table" AND u.schema IN ('', n.schema) AND (o.schema, o."table") <> (n.schema, n."table")
				  AND NOT EXISTS (SELECT FROM unnest(?::text[], ?::text[]) AS a (schema, "table") WHERE a."table" = o."table" AND a.schema IN ('', o.schema))), '{}')
		FROM unnest(?::text[], ?::text[]) WITH ORDINALITY AS u (schema, "table", n)
		ORDER BY u.n`
	b, err := sq.Dollar.ReplacePlaceholders(statement)
	if err != nil {
		return nil, err
	}
	type found struct {
		known  bool
		others [][]string
	}
	answers, err := collect(ctx, client, "look for tables", sq.Expr(b, schemas, tables, schemas, tables), func(row pgx.CollectableRow) (f found, err error) {
		err = row.Scan(&f.known, &f.others)
		return f, err
	})
	if err != nil {
		return nil, unlessDenied(err)
	}
	var warnings []error
	for i, answer := range answers {
		name := pgcatalog.Qualified(q.tables[i].Schema, q.tables[i].Table)
		switch {
		case !answer.known:
			warnings = append(warnings, &UnknownNameError{"table", name})
		case len(answer.others) > 0:
			e := &RenamedTableError{Table: name}
			for _, other := range answer.others {
				e.Others = append(e.Others, pgcatalog.Qualified(other[0], other[1]))
			}
			slices.Sort(e.Others)
			warnings = append(warnings, e)
		}
	}
	return warnings, nil
}

func (q Query) tableNames() (schemas, tables []string) {
	for _, name := range q.tables {
		schemas, tables = append(schemas, name.Schema), append(tables, name.Table)
	}
	return schemas, tables
}

// columnWarnings looks for columns that no known version of the query's tables, or of any
// table, has.
func (q Query) columnWarnings(ctx context.Context, client *Client) ([]error, error) {
	if len(q.columns) == 0 {
		return nil, nil
	}
	schemas, tables := q.tableNames()
	statement, err := sq.Dollar.ReplacePlaceholders(`
		WITH versions AS (
			SELECT r.columns FROM ` + client.history.Relation("relations") + ` AS r
			WHERE cardinality(?::text[]) = 0
			   OR EXISTS (SELECT FROM unnest(?::text[], ?::text[]) AS a (schema, "table") WHERE a."table" = r."table" AND a.schema IN ('', r.schema))
		)
		SELECT u.name
		FROM unnest(?::text[]) AS u (name)
		WHERE EXISTS (SELECT FROM versions)
		  AND NOT EXISTS (SELECT FROM versions AS v WHERE v.columns @> jsonb_build_array(jsonb_build_object('name', u.name)))`)
	if err != nil {
		return nil, err
	}
	if schemas == nil {
		schemas, tables = []string{}, []string{}
	}
	names, err := collect(ctx, client, "look for columns", sq.Expr(statement, tables, schemas, tables, q.columns), pgx.RowTo[string])
	var warnings []error
	for _, name := range names {
		warnings = append(warnings, &UnknownNameError{"column", name})
	}
	return warnings, unlessDenied(err)
}

// unlessDenied is nil for a role that may read the changes and nothing else, which gets
// no warnings.
func unlessDenied(err error) error {
	if history.IsCode(err, "42501") {
		return nil
	}
	return err
}
