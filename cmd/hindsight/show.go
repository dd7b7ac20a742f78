package main

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/hindsight-go/audit"
)

func (a *app) showCommand() *cobra.Command {
	var n int
	cmd := &cobra.Command{
		Use:   "show ID",
		Short: "Show a change, a request, a transaction, a trace or a revert with its full diff",
		Long: `Show a change (0/1A2B3C8#1), a transaction by its position (0/1A2B3C8), or req:ID,
tx:ID, trace:ID, revert:ID. A bare ID is looked for as that of a request, of a revert,
of a trace, and of a transaction.`,
		Example: `  hindsight show 0/1A2B3C8#1
  hindsight show req-3
  hindsight show tx:7301`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			client, err := a.open(cmd.Context())
			if err != nil {
				return err
			}
			q, err := unitQuery(cmd.Context(), client, args[0])
			if err != nil {
				return err
			}
			return a.show(cmd.Context(), q.OldestFirst(), args[0], n)
		},
	}
	cmd.Flags().IntVarP(&n, "number", "n", 1000, "how many changes; 0: all")
	return cmd
}

// unitQuery is the query for the changes of a unit.
func unitQuery(ctx context.Context, client *audit.Client, id string) (audit.Query, error) {
	if isPosition(id) {
		p, err := audit.ParsePosition(id)
		if err != nil {
			return audit.Query{}, usagef("%q is no position", id)
		}
		return client.Changes().AtPosition(p), nil
	}
	number, numberErr := strconv.ParseUint(strings.TrimPrefix(id, "tx:"), 10, 64)
	kind, rest, found := strings.Cut(id, ":")
	if found && rest != "" {
		switch kind {
		case "req":
			return client.Changes().InRequest(rest), nil
		case "trace":
			return client.Changes().InTrace(rest), nil
		case "revert":
			return client.Changes().InRevert(rest), nil
		case "tx":
			if numberErr != nil {
				return audit.Query{}, usagef("%q: the id of a transaction is a number", id)
			}
			return client.Changes().InTransaction(number), nil
		}
	}
	candidates := []audit.Query{client.Changes().InRequest(id), client.Changes().InRevert(id), client.Changes().InTrace(id)}
	if numberErr == nil {
		candidates = append(candidates, client.Changes().InTransaction(number))
	}
	for _, q := range candidates {
		switch _, err := q.First(ctx); {
		case err == nil:
			return q, nil
		case !errors.Is(err, audit.ErrNotFound):
			return q, err
		}
	}
	return audit.Query{}, exitf(exitNothing, "history has no request, revert, trace or transaction %s", printable(id))
}

// show prints changes with all that is known of them.
func (a *app) show(ctx context.Context, q audit.Query, id string, n int) error {
	if n > 0 {
		q = q.Limit(n + 1)
	}
	a.paged()
	if a.flags.output != formatTable {
		return a.list(ctx, q, logOptions{n: n, oldest: true})
	}
	shown := 0
	var transaction uint64
	for c, err := range q.All(ctx) {
		if err != nil {
			return err
		}
		if shown++; n > 0 && shown > n {
			a.note("There are more: -n 0 shows all.")
			break
		}
		if c.TransactionID != transaction {
			if err := a.showOrigin(c, shown > 1); err != nil {
				return err
			}
			transaction = c.TransactionID
		}
		if err := a.showChange(c); err != nil {
			return err
		}
	}
	if shown == 0 {
		return exitf(exitNothing, "history has no change %s", printable(id))
	}
	return nil
}

// showOrigin prints what the changes of a transaction have in common.
func (a *app) showOrigin(c audit.Change, more bool) error {
	var b strings.Builder
	if more {
		b.WriteByte('\n')
	}
	fmt.Fprintf(&b, "%s\n", a.paint(fmt.Sprintf("transaction %d at %s", c.TransactionID, c.Position.LSN), styleYellow))
	line := func(name, value string) {
		if value != "" {
			fmt.Fprintf(&b, "%-12s %s\n", name, value)
		}
	}
	line("When:", a.longTime(c.CommittedAt))
	if !c.Stamped {
		line("Who:", "(no context)")
	}
	line("Who:", printable(c.Context.User()))
	line("Tenant:", printable(c.Context.Tenant))
	line("Where:", printable(c.Context.Endpoint))
	line("Worker:", printable(c.Context.Worker))
	line("Request:", printable(c.Context.RequestID))
	line("Trace:", printable(c.Context.TraceID))
	line("Environment:", printable(c.Environment))
	if revert, ok := c.Revert(); ok {
		line("Revert:", printable(revert.ID)+" of "+printable(revert.Of.String()))
		line("Reason:", printable(revert.Reason))
	}
	if c.RevertClaimed {
		line("Revert:", "claimed, but not registered")
	}
	if !a.flags.noValues {
		if len(c.Context.Params) > 0 {
			if text, err := marshal(c.Context.Params, ""); err == nil {
				line("Params:", printable(string(text)))
			}
		}
		line("SQL:", printable(c.Context.SQL))
	}
	b.WriteByte('\n')
	return a.writef("%s", b.String())
}

// showChange prints one change, a column a line.
func (a *app) showChange(c audit.Change) error {
	var b strings.Builder
	row := tableName(c.TableName())
	if c.HasKey {
		row += " " + keyText(c.KeyParts())
	}
	if c.KeyChanged {
		row += " (key was " + keyText(c.PreviousKeyParts()) + ")"
	}
	fmt.Fprintf(&b, "%s %s  %s\n", a.paint(string(c.Operation), operationStyle(c.Operation)), a.paint(row, styleBold), a.paint(c.Position.String(), styleYellow))
	if c.Defect != "" {
		fmt.Fprintf(&b, "  %s\n", a.paint("defect: "+printable(c.Defect), styleRed))
	}
	diff := c.Diff()
	width := 0
	for _, d := range diff {
		width = max(width, len([]rune(printable(d.Column))))
	}
	for _, d := range diff {
		name := printable(d.Column)
		fmt.Fprintf(&b, "  %s%s  ", name, strings.Repeat(" ", width-len([]rune(name))))
		if c.Operation == audit.Update {
			b.WriteString(a.paint(a.imageValue(d.Old, 0), styleRed) + " → " + a.paint(a.imageValue(d.New, 0), styleGreen))
		} else if d.New != nil {
			b.WriteString(a.paint(a.imageValue(d.New, 0), styleGreen))
		} else {
			b.WriteString(a.paint(a.imageValue(d.Old, 0), styleRed))
		}
		b.WriteByte('\n')
	}
	return a.writef("%s", b.String())
}
