package main

import (
	"context"
	"fmt"
	"io"
	"strings"
	"unicode/utf8"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
)

// changesSQL is all it takes without any Go: the history is a table.
const changesSQL = `
	SELECT primary_key, "table", operation, before::text, after::text, context::text,
		to_char(committed_at AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI:SS"+00"') AS committed_at
	FROM audit.changes
	ORDER BY position, sequence`

// printTable prints the rows of a query of texts as psql would.
func printTable(ctx context.Context, out io.Writer, db *pgxpool.Pool, sql string) error {
	rows, err := db.Query(ctx, sql)
	if err != nil {
		return fmt.Errorf("read changes: %w", err)
	}
	var names []string
	for _, field := range rows.FieldDescriptions() {
		names = append(names, field.Name)
	}
	lines, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) ([]string, error) {
		line := make([]string, len(names))
		targets := make([]any, len(names))
		for i := range line {
			targets[i] = &line[i]
		}
		return line, row.Scan(targets...)
	})
	if err != nil {
		return fmt.Errorf("read changes: %w", err)
	}

	widths := make([]int, len(names))
	for _, line := range append(lines, names) {
		for i, cell := range line {
			widths[i] = max(widths[i], utf8.RuneCountInString(cell))
		}
	}
	header, rule := make([]string, len(names)), make([]string, len(names))
	for i, name := range names {
		left := (widths[i] - utf8.RuneCountInString(name)) / 2
		header[i] = strings.Repeat(" ", left) + name
		rule[i] = strings.Repeat("-", widths[i]+2)
	}
	printLine(out, header, widths)
	fmt.Fprintln(out, strings.Join(rule, "+"))
	for _, line := range lines {
		printLine(out, line, widths)
	}
	fmt.Fprintf(out, "(%d rows)\n", len(lines))
	return nil
}

func printLine(out io.Writer, cells []string, widths []int) {
	padded := make([]string, len(cells))
	for i, cell := range cells {
		padded[i] = fmt.Sprintf(" %-*s ", widths[i], cell)
	}
	fmt.Fprintln(out, strings.TrimRight(strings.Join(padded, "|"), " "))
}
