package main

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/hindsight-go/audit"
)

func (a *app) revertsCommand() *cobra.Command {
	var n int
	var since string
	cmd := &cobra.Command{
		Use:   "reverts",
		Short: "List what was undone, latest first",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			client, err := a.open(cmd.Context())
			if err != nil {
				return err
			}
			q := client.Changes().Reverts()
			if since != "" {
				t, err := a.time(since)
				if err != nil {
					return err
				}
				q = q.Since(t)
			}
			return a.reverts(cmd.Context(), client, q, n)
		},
	}
	cmd.Flags().IntVarP(&n, "number", "n", 50, "how many; 0: all")
	cmd.Flags().StringVar(&since, "since", "", "since this moment")
	return cmd
}

func (a *app) reverts(ctx context.Context, client *audit.Client, q audit.Query, n int) error {
	if n > 0 {
		q = q.Limit(n)
	}
	a.paged()
	out := a.printer([]string{"id", "committed_at", "user", "of", "changes", "tables", "reason"}, false, 5, 4, 3)
	found := 0
	for tx, err := range q.Transactions(ctx) {
		if err != nil {
			return err
		}
		change, err := client.Changes().InTransaction(tx.ID).InDatabase(tx.Database).Reverts().First(ctx)
		if err != nil {
			return err
		}
		revert, ok := change.Revert()
		if !ok {
			continue // somebody claims it, and nobody knows of it
		}
		found++
		cells := []cell{
			styled(printable(revert.ID), styleYellow),
			{text: a.shortTime(tx.CommittedAt), csv: tx.CommittedAt.UTC().Format(time.RFC3339Nano), style: styleDim},
			styled(printable(revert.User), styleCyan), plain(printable(revert.Of.String())), plain(plural(tx.Total(), "change")),
			plain(strings.Join(tableNames(tx.Tables), " ")), plain(printable(revert.Reason)),
		}
		if a.flags.output == formatCSV {
			cells[4] = plain(fmt.Sprint(tx.Total()))
		}
		if err := out.add(cells, revert); err != nil {
			return err
		}
	}
	if err := out.close(); err != nil {
		return err
	}
	if found == 0 {
		return exitf(exitNothing, "nothing was undone")
	}
	return nil
}

func tableNames(names []string) []string {
	short := make([]string, len(names))
	for i, name := range names {
		short[i] = tableName(name)
	}
	return short
}
