package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"regexp"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/spf13/cobra"

	"github.com/hindsight-go/audit"
)

type asOfOptions struct {
	where, orderBy string
	columns, live  []string
	n              int
}

func (a *app) asOfCommand() *cobra.Command {
	var o asOfOptions
	cmd := &cobra.Command{
		Use:   `as-of MOMENT {"SQL" | TABLE [KEY...]}`,
		Short: "Show a table, a row or the answer to any query as of a moment",
		Long: `Show a table or a row as it was, or run a query over the database as it was: joins,
aggregates, views. The past is read only.`,
		Example: `  hindsight as-of "yesterday 14:00" orders 11
  hindsight as-of req:req-2 orders --where "customer = 2" --order-by id
  hindsight as-of mark:release-7 "SELECT state, count(*) FROM orders GROUP BY state"`,
		Args: cobra.MinimumNArgs(2),
		ValidArgsFunction: func(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
			if len(args) != 1 {
				return nil, cobra.ShellCompDirectiveNoFileComp
			}
			return a.completeTables(cmd)
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			ctx := cmd.Context()
			client, err := a.open(ctx)
			if err != nil {
				return err
			}
			point, err := a.point(client, args[0])
			if err != nil {
				return err
			}
			if len(o.live) > 0 {
				point = point.WithLive(o.live...)
			}
			if writings.MatchString(args[1]) {
				return usagef("the past is read only: give a query that begins with SELECT, WITH, VALUES or TABLE, or the name of a table")
			}
			if isQuery(args[1]) {
				if len(args) > 2 || o.where != "" || o.orderBy != "" || len(o.columns) > 0 {
					return usagef("a query stands alone: put conditions into it, and quote it as one argument")
				}
				return a.asOfQuery(ctx, point, args[1])
			}
			if len(o.columns) > 0 {
				point = point.Columns(o.columns...)
			}
			return a.asOfTable(ctx, point, args[1], args[2:], o)
		},
	}
	cmd.Flags().StringVar(&o.where, "where", "", "a condition in SQL, of the rows as they were")
	cmd.Flags().StringVar(&o.orderBy, "order-by", "", "as in SQL: \"priority DESC, id\"")
	cmd.Flags().StringSliceVar(&o.columns, "columns", nil, "some of the columns only")
	cmd.Flags().StringSliceVar(&o.live, "live", nil, "tables that a query may read as they are now")
	cmd.Flags().BoolVar(&a.flags.trustOwners, "trust-owners", false, "let a query run functions that other roles own")
	cmd.Flags().IntVarP(&o.n, "number", "n", 0, "how many rows; 0: all")
	return cmd
}

// queries is how a statement begins that can be asked of the past. The name of a table
// that looks like it has to be quoted anyway.
var queries = regexp.MustCompile(`(?is)^\s*(\(|(select|with|values|table|explain)[\s(*]|--|/\*)`)

func isQuery(text string) bool { return queries.MatchString(text) }

// writings are how statements begin that write.
var writings = regexp.MustCompile(`(?is)^\s*(insert|update|delete|truncate|merge|create|alter|drop|copy|set|begin|do|call|grant|vacuum)\s+\S+\s+\S`)

func (a *app) asOfTable(ctx context.Context, point audit.Point, name string, key []string, o asOfOptions) error {
	table := point.Table(name)
	if len(key) > 0 {
		if o.where != "" || o.orderBy != "" {
			return usagef("a row is found by its key: --where and --order-by are for tables")
		}
		return a.asOfRow(ctx, table, key)
	}
	if o.where != "" {
		table = table.Where(o.where)
	}
	if o.orderBy != "" {
		table = table.OrderBy(o.orderBy)
	}
	if o.n > 0 {
		table = table.Limit(o.n)
	}
	a.paged()
	rows := &rowWriter{app: a}
	for row, err := range table.All(ctx) {
		var pg *pgconn.PgError
		if errors.As(err, &pg) {
			pg.Position = 0 // of a statement that is not the caller's
		}
		if err != nil {
			return err
		}
		if err := rows.add(row.FieldDescriptions(), row.RawValues()); err != nil {
			return err
		}
	}
	if rows.out == nil {
		if a.flags.output == formatJSON {
			return a.writef("[]\n")
		}
		return exitf(exitNothing, "no rows")
	}
	return rows.out.close()
}

func (a *app) asOfRow(ctx context.Context, table audit.PastTable, key []string) error {
	row, err := table.One(ctx, keyOf(key)...)
	if err != nil {
		return err
	}
	return (&rowWriter{app: a}).addOne(row.FieldDescriptions(), row.RawValues())
}

// rowWriter prints rows as the server gives them.
type rowWriter struct {
	app *app
	out printer
}

// add prints a row as a line.
func (w *rowWriter) add(fields []pgconn.FieldDescription, values [][]byte) error {
	if w.out == nil {
		header := make([]string, len(fields))
		flexible := make([]int, len(fields))
		for i, f := range fields {
			header[i], flexible[len(fields)-1-i] = f.Name, i
			if w.app.flags.output == formatTable {
				header[i] = printable(f.Name)
			}
		}
		w.out = w.app.printer(header, true, flexible...)
	}
	cells := make([]cell, len(fields))
	for i, value := range values {
		cells[i] = w.app.valueCell(value)
	}
	return w.out.add(cells, w.app.rowJSON(fields, values))
}

// valueCell is a value that the server printed.
func (a *app) valueCell(value []byte) cell {
	switch {
	case value == nil:
		return cell{text: "NULL", style: styleDim}
	case a.flags.noValues:
		return plain(masked)
	}
	text := string(value)
	return cell{text: printable(shortRaw(text, lineValue)), csv: text}
}

func (a *app) rowJSON(fields []pgconn.FieldDescription, values [][]byte) ordered {
	object := ordered{}
	for i, f := range fields {
		value := sqlJSON(f.DataTypeOID, values[i])
		if a.flags.noValues && values[i] != nil {
			value = json.RawMessage(`"` + masked + `"`)
		}
		object.names, object.values = append(object.names, f.Name), append(object.values, value)
	}
	return object
}

// addOne prints a row alone: a column a line.
func (w *rowWriter) addOne(fields []pgconn.FieldDescription, values [][]byte) error {
	a := w.app
	if a.flags.output == formatJSON || a.flags.output == formatJSONL {
		return a.document(a.rowJSON(fields, values))
	}
	if a.flags.output == formatCSV {
		if err := w.add(fields, values); err != nil {
			return err
		}
		return w.out.close()
	}
	out := a.printer([]string{"column", "value"}, false, 1)
	for i, f := range fields {
		value := a.valueCell(values[i])
		if values[i] != nil && !a.flags.noValues {
			value.text = printable(string(values[i]))
		}
		if err := out.add([]cell{styled(printable(f.Name), styleBold), value}, nil); err != nil {
			return err
		}
	}
	return out.close()
}

// asOfQuery runs a query of the caller's over the past.
func (a *app) asOfQuery(ctx context.Context, point audit.Point, sql string) error {
	a.paged()
	writer := &rowWriter{app: a}
	var fields []pgconn.FieldDescription
	err := point.View(ctx, func(tx pgx.Tx) error {
		rows, err := tx.Query(ctx, strings.TrimRight(strings.TrimSpace(sql), ";"), pgx.QueryResultFormats{pgx.TextFormatCode})
		if err != nil {
			return err
		}
		defer rows.Close()
		for rows.Next() {
			fields = rows.FieldDescriptions()
			if err := writer.add(fields, rows.RawValues()); err != nil {
				return err
			}
		}
		return rows.Err()
	})
	if err != nil {
		return err
	}
	if writer.out == nil {
		if a.flags.output == formatJSON {
			return a.writef("[]\n")
		}
		return exitf(exitNothing, "no rows")
	}
	return writer.out.close()
}

func (a *app) diffCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "diff {A..B | req:ID | tx:ID} [TABLE...]",
		Short: "Show the net changes between two moments",
		Long: `Show how the rows of two moments differ, whatever happened in between: what was
changed and changed back is not shown. A.. is until now. For a request or a transaction
alone, the moments just before and just after it; what others committed while the
request went on is in it, too.`,
		Example: `  hindsight diff 2h..now
  hindsight diff mark:before-import.. orders
  hindsight diff req:req-2`,
		Args: cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			client, err := a.open(cmd.Context())
			if err != nil {
				return err
			}
			from, to, err := a.between(client, args[0])
			if err != nil {
				return err
			}
			difference := client.DiffBetween(from, to)
			if len(args) > 1 {
				difference = difference.Tables(args[1:]...)
			}
			return a.diff(cmd.Context(), difference)
		},
	}
	return cmd
}

// between reads two moments.
func (a *app) between(client *audit.Client, text string) (from, to audit.Point, err error) {
	first, second, found := strings.Cut(text, "..")
	switch kind, _, _ := strings.Cut(text, ":"); {
	case !found && (kind == "req" || kind == "tx"):
		first, second = text, "after:"+text
	case !found:
		return from, to, usagef("%q: give two moments, A..B, or req:ID or tx:ID", text)
	case first == "":
		return from, to, usagef("%q: the first moment is missing", text)
	case second == "":
		second = "now"
	}
	if from, err = a.point(client, first); err != nil {
		return from, to, err
	}
	to, err = a.point(client, second)
	return from, to, err
}

func (a *app) diff(ctx context.Context, difference audit.Difference) error {
	a.paged()
	out := a.printer([]string{"operation", "table", "key", "changes"}, false, 2)
	all, err := difference.List(ctx)
	if err != nil {
		return err
	}
	slices.SortStableFunc(all, func(x, y audit.RowDiff) int {
		return cmp.Or(strings.Compare(x.TableName(), y.TableName()), compareKeys(x.PrimaryKey, y.PrimaryKey))
	})
	for _, d := range all {
		sign, style := signOf(d.Operation)
		row := tableName(d.TableName())
		if d.PrimaryKey != "" {
			row += " " + keyText(audit.Change{PrimaryKey: d.PrimaryKey, HasKey: true}.KeyParts())
		}
		diff := a.diffText(d.Operation, d.Diff())
		cells := []cell{styled(sign, style), styled(row, styleBold), plain(diff)}
		if a.flags.output == formatCSV {
			cells = []cell{plain(string(d.Operation)), plain(d.TableName()), plain(d.PrimaryKey), plain(diff)}
		}
		if a.flags.noValues {
			d.Before, d.After = maskImage(d.Before), maskImage(d.After)
		}
		if err := out.add(cells, d); err != nil {
			return err
		}
	}
	if err := out.close(); err != nil {
		return err
	}
	if len(all) == 0 && a.flags.output == formatTable {
		a.note("No row differs.")
	}
	return nil
}

// compareKeys orders numbers as such, and all else as text.
func compareKeys(x, y string) int {
	if len(x) != len(y) && digits(x) && digits(y) {
		return len(x) - len(y)
	}
	return strings.Compare(x, y)
}

func digits(text string) bool { return text != "" && strings.Trim(text, "0123456789") == "" }

// signOf is the sign of a row in a diff.
func signOf(o audit.Operation) (string, style) {
	switch o {
	case audit.Create:
		return "+", styleGreen
	case audit.Delete:
		return "-", styleRed
	}
	return "~", styleYellow
}
