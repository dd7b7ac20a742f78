package main

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/hindsight-go/audit"
)

func (a *app) statusCommand() *cobra.Command {
	var watch bool
	var every time.Duration
	cmd := &cobra.Command{
		Use:   "status",
		Short: "Show how capture and the history stand",
		Long: `Show how capture and the history stand. The exit code is 6 where nobody captures, the
replication slot is gone or lost, or a source or store does not answer.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			client, err := a.open(cmd.Context())
			if err != nil {
				return err
			}
			if !watch {
				return a.status(cmd.Context(), client)
			}
			return a.watchStatus(cmd.Context(), client, every)
		},
	}
	cmd.Flags().BoolVarP(&watch, "watch", "w", false, "show it again and again, until Ctrl-C")
	cmd.Flags().DurationVar(&every, "every", 2*time.Second, "how often, with --watch")
	a.registerNames(cmd)
	return cmd
}

// registerNames adds the flags for what a program can give another name.
func (a *app) registerNames(cmd *cobra.Command) {
	cmd.Flags().StringVar(&a.flags.slot, "slot", "", "the replication slot (default: derived from the database, as the program does)")
	cmd.Flags().StringVar(&a.flags.publication, "publication", "", "the publication (default: derived from --schema)")
	cmd.Flags().StringSliceVar(&a.flags.tables, "tables", nil, "which tables are tracked, as the program has it (default public.*)")
}

func (a *app) watchStatus(ctx context.Context, client *audit.Client, every time.Duration) error {
	if every < 100*time.Millisecond {
		return usagef("--every %s: at least 100ms", every)
	}
	ticker := time.NewTicker(every)
	defer ticker.Stop()
	for {
		if a.terminal && a.flags.output == formatTable {
			if err := a.writef("\x1b[H\x1b[2J"); err != nil {
				return err
			}
		}
		if err := a.status(ctx, client); err != nil && exitCode(err) != exitUnhealthy {
			a.note("%s", withoutPasswords(errorText(err), a.passwords()...))
		}
		select {
		case <-ctx.Done():
			return nil // which is how it ends
		case <-ticker.C:
		}
	}
}

func (a *app) status(ctx context.Context, client *audit.Client) error {
	status, err := client.Status(ctx)
	if err != nil {
		return err
	}
	problem := unhealthy(status)
	switch a.flags.output {
	case formatJSON, formatJSONL:
		err = a.document(status)
	case formatCSV:
		err = a.statusTables(status)
	default:
		if err = a.statusText(status, problem); err == nil {
			err = a.statusTables(status)
		}
	}
	if err == nil && problem != "" {
		err = exitf(exitUnhealthy, "%s", problem)
	}
	return err
}

// unhealthy says why nothing is captured, or nothing.
func unhealthy(s audit.Status) string {
	switch {
	case s.Position == 0 && s.Changes == 0 && !s.Slot.Exists:
		return "nothing was ever captured here: start the program that does, or see --schema and --slot"
	case !s.Slot.Exists:
		return fmt.Sprintf("there is no replication slot %s: start the program that captures, which records a gap and goes on", s.Slot.Name)
	case s.Slot.Status == "lost":
		return fmt.Sprintf("replication slot %s is lost: start the program that captures, which records a gap and goes on", s.Slot.Name)
	case !s.Slot.Active:
		return fmt.Sprintf("nobody reads from replication slot %s: start the program that captures", s.Slot.Name)
	}
	return ""
}

func (a *app) statusText(s audit.Status, problem string) error {
	var b strings.Builder
	line := func(name, format string, args ...any) {
		fmt.Fprintf(&b, "%-10s  %s\n", name, fmt.Sprintf(format, args...))
	}
	capturing := a.paint("running", styleGreen)
	if problem != "" {
		capturing = a.paint("not running", styleRed)
	}
	line("database", "%s", printable(s.Database))
	line("capture", "%s", capturing)
	line("history", "%s up to %s, the source is at %s (%s behind)", plural(s.Changes, "change"), s.Position, s.SourcePosition, shortBytes(s.LagBytes))
	if !s.CommittedAt.IsZero() {
		line("latest", "%s", a.shortTime(s.CommittedAt))
	}
	slot := "not there"
	if s.Slot.Exists {
		slot = fmt.Sprintf("%s, keeps %s of WAL", s.Slot.Status, shortBytes(s.Slot.RetainedBytes))
		if s.Slot.BoundBytes >= 0 {
			slot += " of at most " + shortBytes(s.Slot.BoundBytes)
		}
	}
	line("slot", "%s: %s", s.Slot.Name, slot)
	for _, g := range s.Gaps {
		line("gap", "%s to %s, %s to %s: %s", g.From, g.To, a.shortTime(g.FromTime), a.shortTime(g.ToTime), g.Reason)
	}
	for _, w := range s.Warnings {
		line("warning", "%s", w.Text)
	}
	return a.writef("%s", b.String())
}

func (a *app) statusTables(s audit.Status) error {
	out := a.printer([]string{"table", "state", "from", "until"}, false, 1)
	for _, t := range s.Tables {
		name := audit.Change{Schema: t.Schema, Table: t.Table}.TableName()
		text, state, style := "since "+a.shortTime(t.FromTime), "tracked", styleNone
		switch {
		case t.Pending != nil:
			text, state, style = "waits: "+printable(t.Pending.Error()), "pending", styleRed
		case t.Until != 0:
			text, state, style = a.shortTime(t.FromTime)+" to "+a.shortTime(t.UntilTime), "past", styleDim
		}
		if a.flags.output == formatCSV {
			until := ""
			if t.Until != 0 {
				until = t.UntilTime.UTC().Format(time.RFC3339Nano)
			}
			if err := out.add([]cell{plain(name), plain(state), plain(t.FromTime.UTC().Format(time.RFC3339Nano)), plain(until)}, nil); err != nil {
				return err
			}
			continue
		}
		if err := out.add([]cell{plain("table     "), styled(tableName(name), styleBold), styled(text, style)}, nil); err != nil {
			return err
		}
	}
	return out.close()
}
