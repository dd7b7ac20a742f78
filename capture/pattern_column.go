package capture

import (
	"fmt"
	"strings"
)

// ColumnPattern says which columns are meant. In its text form it is table.column or
// schema.table.column, where each part may hold asterisks and is quoted as in a
// [Pattern]:
//
//	*.updated_at              in whatever table of whatever schema
//	page.views                in the tables of that name
//	billing.invoice.*_count   in one table
type ColumnPattern struct {
	Schema, Table, Column Name
	text                  string
}

// ColumnPatternError is returned for a pattern of columns that cannot be read.
type ColumnPatternError struct{ Pattern, Reason string }

func (e *ColumnPatternError) Error() string {
	return fmt.Sprintf("column pattern %q: %s; write table.column or schema.table.column, for instance *.updated_at", e.Pattern, e.Reason)
}

// ParseColumnPattern reads the text form of a ColumnPattern.
func ParseColumnPattern(text string) (ColumnPattern, error) {
	p := ColumnPattern{Schema: Name{Text: "*", Glob: true}, text: text}
	names, err := cutNames(strings.TrimSpace(text))
	switch {
	case err != "":
		return p, &ColumnPatternError{Pattern: text, Reason: err}
	case len(names) == 3:
		p.Schema = names[0]
	case len(names) != 2:
		return p, &ColumnPatternError{Pattern: text, Reason: "it has not two or three parts; quote a name that holds a dot"}
	}
	p.Table, p.Column = names[len(names)-2], names[len(names)-1]
	return p, nil
}

// String returns the pattern as it was written.
func (p ColumnPattern) String() string { return p.text }

// Match reports whether the pattern means a column.
func (p ColumnPattern) Match(schema, table, column string) bool {
	return p.Schema.matches(schema) && p.Table.matches(table) && p.Column.matches(column)
}
