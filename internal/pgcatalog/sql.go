package pgcatalog

import (
	"fmt"
	"strings"

	"github.com/jackc/pgx/v5"
)

// ColumnIdent returns the quoted name of a column, with an alias before it.
func ColumnIdent(alias, name string) string {
	if alias == "" {
		return pgx.Identifier{name}.Sanitize()
	}
	return alias + "." + pgx.Identifier{name}.Sanitize()
}

// TextOf is the SQL of a value's text as PostgreSQL prints it, NULL for NULL. A
// cast to text would say something else for bool, char(n), inet and others.
func TextOf(expression string) string {
	return "CASE WHEN " + expression + " IS NOT DISTINCT FROM NULL THEN NULL ELSE pg_catalog.concat(" + expression + ") END"
}

// KeyArray is the SQL of the texts of a key, as an array.
func KeyArray(alias string, key []string) string {
	parts := make([]string, len(key))
	for i, name := range key {
		parts[i] = "pg_catalog.concat(" + ColumnIdent(alias, name) + ")"
	}
	return fmt.Sprintf("ARRAY[%s]::text[]", strings.Join(parts, ", "))
}
