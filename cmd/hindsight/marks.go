package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/spf13/cobra"

	"github.com/hindsight-go/audit"
)

func (a *app) markCommand() *cobra.Command {
	return &cobra.Command{
		Use:     "mark NAME",
		Short:   "Give the present moment a name",
		Long:    "Give the present moment a name, so that mark:NAME finds it again: before a migration, an import, a release. A name can be given once.",
		Example: "  hindsight mark before-import\n  hindsight diff mark:before-import..",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			client, err := a.open(cmd.Context())
			if err != nil {
				return err
			}
			position, err := client.Mark(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			if a.flags.output == formatTable {
				return a.writef("mark:%s is %s\n", word(args[0]), position.LSN)
			}
			return a.document(map[string]any{"name": args[0], "position": position})
		},
	}
}

func (a *app) marksCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "marks",
		Short: "List the moments that have a name, latest first",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			client, err := a.open(cmd.Context())
			if err != nil {
				return err
			}
			marks, err := client.Marks(cmd.Context())
			if err != nil {
				return err
			}
			a.paged()
			out := a.printer([]string{"name", "position", "marked_at"}, false, 0)
			for _, m := range marks {
				cells := []cell{
					styled("mark:"+word(m.Name), styleBold), styled(m.Position.LSN.String(), styleYellow),
					{text: a.shortTime(m.MarkedAt), csv: m.MarkedAt.UTC().Format(time.RFC3339Nano), style: styleDim},
				}
				if a.flags.output == formatCSV {
					cells[0] = plain(m.Name)
				}
				if err := out.add(cells, m); err != nil {
					return err
				}
			}
			if err := out.close(); err != nil {
				return err
			}
			if len(marks) == 0 {
				return exitf(exitNothing, "no moment has a name")
			}
			return nil
		},
	}
}

func (a *app) baselineCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "baseline [TABLE...]",
		Short: "Store all rows of tables as they are, for tables that may be truncated or dropped",
		Long: `Store all rows of tables as they are now, in the store. History needs it only of tables
that may be truncated or dropped: all else is told from the live table. It costs the
space of the rows once more. What was interrupted goes on the next time.`,
		ValidArgsFunction: func(cmd *cobra.Command, _ []string, _ string) ([]string, cobra.ShellCompDirective) {
			return a.completeTables(cmd)
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			client, err := a.open(cmd.Context())
			if err != nil {
				return err
			}
			done := a.printer([]string{"table", "rows"}, false)
			var failed error
			err = client.Baseline(cmd.Context(), &audit.BaselineOptions{Tables: args, Progress: func(p audit.BaselineProgress) {
				a.progress("%s: %s", tableName(p.Table), plural(p.Rows, "row"))
				if p.Done && failed == nil {
					a.progressDone()
					failed = done.add([]cell{
						{text: tableName(p.Table), csv: p.Table, style: styleBold},
						{text: plural(p.Rows, "row"), csv: fmt.Sprint(p.Rows)},
					}, p)
				}
			}})
			a.progressDone()
			return errors.Join(err, failed, done.close())
		},
	}
}

func (a *app) refreshCommand() *cobra.Command {
	var timeout time.Duration
	cmd := &cobra.Command{
		Use:   "refresh",
		Short: "Have the program that captures look for new tables now",
		Long: `Have the program that captures look for new tables now, and wait until history covers all
that match --tables: for the end of a migration. The exit code is 6 where it does not
come to that.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx, cancel := context.WithTimeout(cmd.Context(), timeout)
			defer cancel()
			client, err := a.open(ctx)
			if err != nil {
				return err
			}
			if err := a.onSource(ctx, func(conn *pgx.Conn) error {
				_, err := conn.Exec(ctx, "SELECT pg_catalog.pg_logical_emit_message(false, 'audit_refresh', '')")
				return err
			}); err != nil {
				return err
			}
			if err := a.sync(ctx, client); err != nil {
				return err
			}
			return a.awaitTables(ctx, client)
		},
	}
	cmd.Flags().DurationVar(&timeout, "timeout", time.Minute, "how long to wait")
	a.registerNames(cmd)
	return cmd
}

// refreshEvery is how often it is looked whether new tables are tracked.
const refreshEvery = 50 * time.Millisecond

// awaitTables waits until history covers all tables that are wanted.
func (a *app) awaitTables(ctx context.Context, client *audit.Client) error {
	ticker := time.NewTicker(refreshEvery)
	defer ticker.Stop()
	var missing []sourceTable
	for {
		wanted, err := a.wantedTables(ctx)
		var status audit.Status
		if err == nil {
			status, err = client.Status(ctx)
		}
		if err != nil && ctx.Err() == nil {
			return err
		}
		if err == nil {
			missing = untracked(wanted, status)
		}
		if err == nil && len(missing) == 0 {
			if a.flags.output == formatTable {
				a.note("%s tracked.", plural(int64(len(wanted)), "table"))
			}
			return nil
		}
		select {
		case <-ticker.C:
		case <-ctx.Done():
			if errors.Is(ctx.Err(), context.Canceled) {
				return ctx.Err()
			}
			names := make([]string, len(missing))
			for i, t := range missing {
				names[i] = tableName(t.full())
			}
			return exitf(exitUnhealthy, "not tracked: %s; hindsight doctor says why", strings.Join(names, ", "))
		}
	}
}

func (a *app) syncCommand() *cobra.Command {
	var timeout time.Duration
	cmd := &cobra.Command{
		Use:   "sync",
		Short: "Wait until history has everything that was committed so far",
		Long: `Wait until history has everything that was committed before the call: for tests and
deployments. The exit code is 6 where nobody captures.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx, cancel := context.WithTimeout(cmd.Context(), timeout)
			defer cancel()
			client, err := a.open(ctx)
			if err != nil {
				return err
			}
			return a.sync(ctx, client)
		},
	}
	cmd.Flags().DurationVar(&timeout, "timeout", time.Minute, "how long to wait")
	return cmd
}

func (a *app) sync(ctx context.Context, client *audit.Client) error {
	err := client.Sync(ctx)
	if errors.Is(err, context.DeadlineExceeded) {
		return exitf(exitUnhealthy, "history has not come up to here in time: see hindsight status, and --timeout")
	}
	return err
}

// onSource gives a connection to the source for what the library has no call for.
func (a *app) onSource(ctx context.Context, do func(conn *pgx.Conn) error) error {
	return onServer(ctx, a.sourceURL(), do)
}

// onStore is onSource for the store.
func (a *app) onStore(ctx context.Context, do func(conn *pgx.Conn) error) error {
	url := a.storeURL()
	if url == "" {
		url = a.sourceURL()
	}
	return onServer(ctx, url, do)
}

// connectPatience is how long a server may take to answer.
const connectPatience = 20 * time.Second

func onServer(ctx context.Context, url string, do func(conn *pgx.Conn) error) error {
	config, err := pgx.ParseConfig(url)
	if err != nil {
		return usagef("the connection string cannot be read") // its text may be in the error
	}
	config.RuntimeParams["application_name"] = "hindsight"
	// Nothing is left in a session that a pooler gives to others.
	config.DefaultQueryExecMode = pgx.QueryExecModeExec
	connecting, cancel := context.WithTimeout(ctx, connectPatience)
	defer cancel()
	conn, err := pgx.ConnectConfig(connecting, config)
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close(context.WithoutCancel(ctx)) }()
	return do(conn)
}
