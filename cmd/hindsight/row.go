package main

import (
	"cmp"
	"context"
	"time"

	"github.com/spf13/cobra"

	"github.com/hindsight-go/audit"
)

func (a *app) historyCommand() *cobra.Command {
	var asOf string
	var n int
	cmd := &cobra.Command{
		Use:               "history TABLE KEY...",
		Short:             "List the versions of a row, newest first",
		Example:           "  hindsight history orders 11\n  hindsight history line_item 7 2 --as-of yesterday",
		Args:              cobra.MinimumNArgs(2),
		ValidArgsFunction: a.tableNames,
		RunE: func(cmd *cobra.Command, args []string) error {
			client, err := a.open(cmd.Context())
			if err != nil {
				return err
			}
			return a.history(cmd.Context(), client, args, asOf, n)
		},
	}
	cmd.Flags().StringVar(&asOf, "as-of", "", "the versions up to this moment")
	cmd.Flags().IntVarP(&n, "number", "n", 50, "how many; 0: all")
	return cmd
}

func (a *app) history(ctx context.Context, client *audit.Client, args []string, asOf string, n int) error {
	query := client.History(args[0], keyOf(args[1:])...)
	until := audit.Position{}
	if asOf != "" {
		point, err := a.point(client, asOf)
		if err != nil {
			return err
		}
		resolved, err := point.Resolve(ctx)
		if err != nil {
			return err
		}
		until = resolved.Position
	}
	versions, err := query.List(ctx)
	if err != nil {
		return err
	}
	a.paged()
	out := a.printer([]string{"from", "from_time", "until_time", "operation", "changes", "user", "where", "request", "row"}, false, 3, 5, 6)
	shown := 0
	for i := len(versions) - 1; i >= 0; i-- {
		v := versions[i]
		if asOf != "" && v.From.LSN > until.LSN {
			continue
		}
		if n > 0 && shown == n {
			break
		}
		shown++
		cells, item := a.version(v)
		if err := out.add(cells, item); err != nil {
			return err
		}
	}
	if err := out.close(); err != nil {
		return err
	}
	if shown == 0 {
		return exitf(exitNothing, "there was no row %s %s", tableName(args[0]), keyText(args[1:]))
	}
	return nil
}

// version is a version of a row as a line.
func (a *app) version(v audit.RowVersion) ([]cell, audit.RowVersion) {
	operation, diff, user, place, request := "-", "", "-", "as it was when tracking began", ""
	style := styleNone
	if c := v.Change; c != nil {
		operation, diff, user, place, request = string(c.Operation), a.diffText(c.Operation, c.Diff()), who(*c), where(*c), printable(c.Context.RequestID)
		style = operationStyle(c.Operation)
		if revert, ok := c.Revert(); ok {
			request = "revert of " + printable(revert.Of.String())
		}
		shown := a.shown(*c)
		v.Change = &shown
	} else if v.Exists() {
		diff = a.imageText(v.Row)
	}
	if v.AfterGap {
		place += " (after a gap)"
	}
	if a.flags.noValues {
		v.Row = maskImage(v.Row)
	}
	from := v.From.String()
	if v.From.IsZero() {
		from = ""
	}
	if a.flags.output == formatCSV {
		times := func(t time.Time) string {
			if t.IsZero() {
				return ""
			}
			return t.UTC().Format(time.RFC3339Nano)
		}
		return []cell{
			plain(from), plain(times(v.FromTime)), plain(times(v.UntilTime)), plain(operation), plain(diff),
			plain(user), plain(place), plain(request), plain(v.Row.String()),
		}, v
	}
	return []cell{
		styled(cmp.Or(from, "-"), styleYellow), styled(a.shortTime(v.FromTime), styleDim), styled(operation, style), plain(diff),
		styled(user, styleCyan), plain(place), plain(request),
	}, v
}

// imageText is a whole row in a line.
func (a *app) imageText(image audit.Image) string {
	var columns []audit.ColumnChange
	for _, name := range image.Columns() {
		raw, _ := image.Get(name)
		columns = append(columns, audit.ColumnChange{Column: name, New: raw})
	}
	return a.diffText(audit.Create, columns)
}

func (a *app) blameCommand() *cobra.Command {
	var asOf string
	cmd := &cobra.Command{
		Use:               "blame TABLE KEY...",
		Short:             "Say which change gave each column of a row its value",
		Example:           "  hindsight blame orders 11\n  hindsight blame orders 11 --as-of 2d",
		Args:              cobra.MinimumNArgs(2),
		ValidArgsFunction: a.tableNames,
		RunE: func(cmd *cobra.Command, args []string) error {
			ctx := cmd.Context()
			client, err := a.open(ctx)
			if err != nil {
				return err
			}
			point := client.Now()
			if asOf != "" {
				if point, err = a.point(client, asOf); err != nil {
					return err
				}
			}
			columns, err := point.Blame(ctx, args[0], keyOf(args[1:])...)
			if err != nil {
				return err
			}
			a.paged()
			return a.blame(columns)
		},
	}
	cmd.Flags().StringVar(&asOf, "as-of", "", "the row as of this moment")
	return cmd
}

func (a *app) blame(columns []audit.ColumnBlame) error {
	out := a.printer([]string{"column", "value", "position", "committed_at", "user", "where", "request"}, false, 1, 5)
	for _, column := range columns {
		cells := []cell{styled(printable(column.Column), styleBold), {text: a.imageValue(column.Value, lineValue), csv: a.imageValue(column.Value, 0)}}
		if c := column.Change; c != nil {
			request := printable(c.Context.RequestID)
			if revert, ok := c.Revert(); ok {
				request = "revert of " + printable(revert.Of.String())
			}
			cells = append(cells, styled(c.Position.String(), styleYellow),
				cell{text: a.shortTime(c.CommittedAt), csv: c.CommittedAt.UTC().Format(time.RFC3339Nano), style: styleDim},
				styled(who(*c), styleCyan), plain(where(*c)), plain(request))
			shown := a.shown(*c)
			column.Change = &shown
		} else {
			cells = append(cells, plain("-"), plain("-"), plain("-"), plain("from before tracking began"), plain(""))
		}
		if a.flags.noValues {
			column.Value = []byte(`"` + masked + `"`)
		}
		if err := out.add(cells, column); err != nil {
			return err
		}
	}
	return out.close()
}
