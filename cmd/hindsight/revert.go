package main

import (
	"context"
	"errors"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/hindsight-go/audit"
)

// revertOptions say how to go about an undo.
type revertOptions struct {
	dryRun, yes, sql             bool
	acrossUsers, asStored        bool
	allColumns, withoutTriggers  bool
	onConflict, ifHash           string
	columns, except, exceptTable []string
	maxRows                      int
	// title says what is put back, where the unit's name does not.
	title string
}

func (o *revertOptions) register(cmd *cobra.Command) {
	f := cmd.Flags()
	f.BoolVar(&o.dryRun, "dry-run", false, "carry it out, with triggers and constraints, and roll it back")
	f.BoolVarP(&o.yes, "yes", "y", false, "do not ask")
	f.BoolVar(&o.sql, "sql", false, "print the plan as SQL, and do nothing")
	f.StringVar(&o.onConflict, "on-conflict", "abort", "abort, skip, cascade, cascade-requests or overwrite")
	f.StringVar(&o.ifHash, "if-hash", "", "only if the plan still has this hash; it is not asked then")
	f.StringSliceVar(&o.columns, "columns", nil, "these columns only")
	f.StringSliceVar(&o.except, "except", nil, "all but these columns")
	f.StringSliceVar(&o.exceptTable, "except-table", nil, "all but these tables")
	f.BoolVar(&o.acrossUsers, "across-users", false, "also if several users have changes in it")
	f.BoolVar(&o.allColumns, "all-columns", false, "with columns that are left as they are otherwise, such as updated_at")
	f.BoolVar(&o.asStored, "as-stored", false, "take history as it is, where nobody captures")
	f.BoolVar(&o.withoutTriggers, "without-triggers", false, "with the triggers of the tables off")
	f.IntVar(&o.maxRows, "max-rows", audit.DefaultMaxRows, "how many rows it may touch")
	cmd.Annotations = map[string]string{"formats": "table json jsonl sql"}
}

// policies are those of --on-conflict.
var policies = map[string]audit.Resolution{
	"abort": audit.Abort, "skip": audit.Skip, "cascade": audit.Cascade, "cascade-requests": audit.CascadeRequests, "overwrite": audit.Overwrite,
}

// apply gives the options to a revert.
func (o *revertOptions) apply(a *app, r audit.Reversal) (audit.Reversal, error) {
	policy, ok := policies[o.onConflict]
	if !ok {
		return r, usagef("--on-conflict %q is not one of abort, skip, cascade, cascade-requests, overwrite", o.onConflict)
	}
	if o.sql {
		a.flags.output = formatSQL
	}
	r = r.OnConflict(policy).MaxRows(o.maxRows).Actor(a.actor()).Progress(a.revertProgress())
	if a.flags.reason != "" {
		r = r.Reason(a.flags.reason)
	}
	if len(o.columns) > 0 {
		r = r.Columns(o.columns...)
	}
	if len(o.except) > 0 {
		r = r.Except(o.except...)
	}
	if len(o.exceptTable) > 0 {
		r = r.ExceptTable(o.exceptTable...)
	}
	for _, each := range []struct {
		wanted bool
		with   func() audit.Reversal
	}{
		{o.acrossUsers, func() audit.Reversal { return r.AcrossUsers() }},
		{o.allColumns, func() audit.Reversal { return r.AllColumns() }},
		{o.asStored, func() audit.Reversal { return r.AsStored() }},
		{o.withoutTriggers, func() audit.Reversal { return r.WithoutTriggers() }},
	} {
		if each.wanted {
			r = each.with()
		}
	}
	return r, nil
}

func (a *app) revertCommand() *cobra.Command {
	var o revertOptions
	var f filters
	var table string
	cmd := &cobra.Command{
		Use:     "revert {UNIT | --user ID --since MOMENT ...}",
		Aliases: []string{"undo"},
		Short:   "Undo a request, a transaction, a change, or what filters select",
		Long: `Undo a request, a transaction, a trace, one change, or everything that filters
select: in all tables, in one transaction, itself recorded and revertible.

The plan is shown first, and who has worked on the same rows since. Where somebody has,
nothing is written unless --on-conflict says what to do: skip leaves these rows alone,
cascade undoes the later work as well, overwrite writes over it.

On a terminal it asks. Without one it needs --yes, or --if-hash with the hash of a plan
that somebody has looked at: it does just that, or nothing.`,
		Example: `  hindsight revert req:req-2 --reason "wrong customer, ticket 4711"
  hindsight revert req:req-2 --on-conflict skip --dry-run
  hindsight revert --user u-17 --since 2h --table orders
  hindsight revert tx:7301 --sql > undo.sql`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			ctx := cmd.Context()
			client, err := a.open(ctx)
			if err != nil {
				return err
			}
			if len(args) == 0 {
				var row []string
				if table != "" {
					row = []string{table}
				}
				if !f.any() && table == "" {
					return usagef("say what to undo: a unit such as req:ID, or filters")
				}
				q, err := f.apply(a, client.Changes(), row)
				if err != nil {
					return err
				}
				return a.revert(ctx, client, client.Revert(q), o)
			}
			if f.any() || table != "" {
				return usagef("a unit and filters do not go together; --except-table and --columns narrow a unit")
			}
			reversal, err := a.unit(ctx, client, args[0])
			if err != nil {
				return err
			}
			return a.revert(ctx, client, reversal, o)
		},
	}
	o.register(cmd)
	f.register(cmd)
	cmd.Flags().StringVar(&table, "table", "", "of this table")
	return cmd
}

// unit reads what to undo.
func (a *app) unit(ctx context.Context, client *audit.Client, text string) (audit.Reversal, error) {
	if isPosition(text) {
		p, err := audit.ParsePosition(text)
		if err != nil {
			return audit.Reversal{}, usagef("%q is no position", text)
		}
		if p.Sequence > 0 {
			return client.RevertChange(p), nil
		}
		change, err := client.Changes().AtPosition(p).First(ctx)
		if errors.Is(err, audit.ErrNotFound) {
			return audit.Reversal{}, exitf(exitNothing, "history has no transaction at %s", text)
		}
		return client.RevertTransaction(change.TransactionID), err
	}
	kind, id, _ := strings.Cut(text, ":")
	switch {
	case id == "":
	case kind == "req":
		return client.RevertRequest(id), nil
	case kind == "trace":
		return client.RevertTrace(id), nil
	case kind == "revert":
		return client.Redo(id), nil
	case kind == "tx":
		q, err := unitQuery(ctx, client, text)
		if err != nil {
			return audit.Reversal{}, err
		}
		change, err := q.First(ctx)
		if errors.Is(err, audit.ErrNotFound) {
			return audit.Reversal{}, exitf(exitNothing, "history has no transaction %s", printable(id))
		}
		return client.RevertTransaction(change.TransactionID), err
	}
	return audit.Reversal{}, usagef("%q is no unit: give req:ID, tx:ID, trace:ID, revert:ID or the position of a change, 0/1A2B3C8#1", text)
}

func (a *app) redoCommand() *cobra.Command {
	var o revertOptions
	cmd := &cobra.Command{
		Use:     "redo REVERT",
		Short:   "Undo an undo",
		Long:    "Undo an undo, by the id that it printed and that hindsight reverts lists.",
		Example: "  hindsight redo 8d3f2c1e5b7a4960",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			client, err := a.open(cmd.Context())
			if err != nil {
				return err
			}
			return a.revert(cmd.Context(), client, client.Redo(strings.TrimPrefix(args[0], "revert:")), o)
		},
	}
	o.register(cmd)
	return cmd
}

func (a *app) restoreCommand() *cobra.Command {
	var o revertOptions
	var asOf string
	cmd := &cobra.Command{
		Use:   "restore TABLE [KEY...] --as-of MOMENT",
		Short: "Put a row, or a table, back to what it was at a moment",
		Example: `  hindsight restore orders 13 --as-of 2h
  hindsight restore orders --as-of mark:before-import`,
		Args:              cobra.MinimumNArgs(1),
		ValidArgsFunction: a.tableNames,
		RunE: func(cmd *cobra.Command, args []string) error {
			client, err := a.open(cmd.Context())
			if err != nil {
				return err
			}
			if asOf == "" {
				return usagef("say to which moment: --as-of")
			}
			point, err := a.point(client, asOf)
			if err != nil {
				return err
			}
			o.title = strings.TrimSpace(tableName(args[0])+" "+keyText(args[1:])) + " to " + printable(asOf)
			if len(args) == 1 {
				return a.revert(cmd.Context(), client, client.RevertTables(point, args[0]), o)
			}
			return a.revert(cmd.Context(), client, client.RevertRow(point, args[0], keyOf(args[1:])...), o)
		},
	}
	o.register(cmd)
	cmd.Flags().StringVar(&asOf, "as-of", "", "the moment")
	return cmd
}

// revert shows the plan, and carries it out if that is wanted.
func (a *app) revert(ctx context.Context, client *audit.Client, r audit.Reversal, o revertOptions) error {
	r, err := o.apply(a, r)
	if err != nil {
		return err
	}
	ctx = audit.WithContext(ctx, audit.Context{Worker: "hindsight"})
	plan, err := r.Plan(ctx)
	a.progressDone()
	if err != nil {
		return err
	}
	if err := a.learnKeyless(ctx, client, plan); err != nil {
		return err
	}
	stop, err := a.judge(ctx, client, plan, o)
	if stop || err != nil {
		return err
	}
	if o.dryRun {
		result, err := plan.DryRun(ctx)
		a.progressDone()
		if err != nil {
			return err
		}
		if a.flags.output != formatTable {
			return a.masked(result)
		}
		return a.writef("%s\nIt was carried out and rolled back: nothing was written.\n", a.resultText(result))
	}
	if err := a.confirm(ctx, plan, o); err != nil {
		return err
	}
	result, err := plan.Apply(ctx)
	a.progressDone()
	if err != nil {
		return err
	}
	a.awaitHistory(ctx, client, result.Token)
	if a.flags.output != formatTable {
		return a.masked(result)
	}
	if result.Already != nil {
		return a.writef("%s\n", a.alreadyText(result.Already))
	}
	return a.writef("%s\nhindsight redo %s takes it back.\n", a.resultText(result), result.ID)
}

// learnKeyless finds out which tables of a plan have no key: what names their rows are
// their values.
func (a *app) learnKeyless(ctx context.Context, client *audit.Client, plan *audit.Plan) error {
	a.keyless = make(map[string]bool)
	if !a.flags.noValues {
		return nil
	}
	for row := range plan.Rows() {
		if _, known := a.keyless[row.Table]; known {
			continue
		}
		change, err := client.Changes().ForTable(row.Table).Operations(audit.Create, audit.Update, audit.Delete).First(ctx)
		if err != nil {
			return err
		}
		a.keyless[row.Table] = !change.HasKey
	}
	return nil
}

// judge prints the plan and tells whether that is the end of it.
func (a *app) judge(ctx context.Context, client *audit.Client, plan *audit.Plan, o revertOptions) (stop bool, err error) {
	refused := plan.Refused()
	blocked := len(plan.Blocked())
	over := refused != nil || blocked > 0 || plan.Empty() || plan.Already != nil
	switch a.flags.output {
	case formatSQL:
		if refused == nil && blocked == 0 {
			return true, plan.WriteSQL(a.writer())
		}
	case formatTable:
		err = a.printPlan(ctx, client, plan, o)
	default:
		if over || !o.yes && o.ifHash == "" && !o.dryRun { // else the result has it
			err = a.masked(plan)
		}
	}
	switch {
	case err != nil:
		return true, err
	case plan.Already != nil:
		return true, a.saysOnly(a.alreadyText(plan.Already))
	case refused != nil:
		return true, refused
	case blocked > 0:
		return true, a.blockedError(plan)
	case o.ifHash != "" && o.ifHash != plan.Hash:
		return true, exitf(exitConflict, "the plan has another hash than --if-hash says: the rows have changed since, or it was asked for otherwise. Nothing was written.")
	case plan.Empty():
		return true, a.saysOnly("There is nothing to undo.")
	}
	return false, nil
}

// saysOnly prints a line for people.
func (a *app) saysOnly(text string) error {
	if a.flags.output != formatTable {
		return nil
	}
	return a.writef("%s\n", text)
}

// confirm asks, where there is somebody to ask.
func (a *app) confirm(ctx context.Context, plan *audit.Plan, o revertOptions) error {
	if o.yes || o.ifHash != "" {
		return nil
	}
	if !a.interactive || a.flags.output != formatTable {
		return usagef("nothing was written: without a terminal to ask, give --yes, or --if-hash %s", plan.Hash)
	}
	if err := a.writef("Undo this? [y/N] "); err != nil {
		return err
	}
	answer := make(chan string, 1)
	go func() { // which ends with the program where nobody answers
		line, _ := a.asked.ReadString('\n')
		answer <- strings.ToLower(strings.TrimSpace(line))
	}()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case text := <-answer:
		if text != "y" && text != "yes" {
			return exitf(exitError, "Nothing was written.")
		}
	}
	return nil
}

// historyPatience is how long a revert waits for being in history itself.
const historyPatience = 5 * time.Second

// awaitHistory waits until history has a revert, so that the next command sees it.
// What was done is done, whether or not somebody captures.
func (a *app) awaitHistory(ctx context.Context, client *audit.Client, token audit.Token) {
	ctx, cancel := context.WithTimeout(ctx, historyPatience)
	defer cancel()
	if client.WaitFor(ctx, token) != nil {
		a.note("It is done; history has not caught up with it yet (hindsight status).")
	}
}

// plannedRows is how many rows and conflicts a plan shows.
const plannedRows = 200
