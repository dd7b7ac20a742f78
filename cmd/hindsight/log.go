package main

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/hindsight-go/audit"
)

// completionPatience is how long a completion of names may take.
const completionPatience = 2 * time.Second

type logOptions struct {
	filters
	n          int
	follow     bool
	oldest     bool
	cursorFile string
}

func (a *app) logCommand() *cobra.Command {
	var o logOptions
	cmd := &cobra.Command{
		Use:     "log [TABLE [KEY...]]",
		Aliases: []string{"changes"},
		Short:   "List changes, newest first",
		Long: `List changes, newest first: of everything, of a table, of a row. All filters have
to hold at once.

With -f it goes on with what comes, until Ctrl-C; with --cursor-file it goes on where
it ended the last time, and misses nothing in between.`,
		Example: `  hindsight log orders 11 --since 2d
  hindsight log --user u-17 --op update,delete
  hindsight log --no-context -n 0 -o jsonl
  hindsight log -f --cursor-file ~/.orders-seen orders`,
		ValidArgsFunction: a.tableNames,
		RunE: func(cmd *cobra.Command, args []string) error {
			if o.n < 0 {
				return usagef("-n %d: give a number of changes, or 0 for all", o.n)
			}
			if o.cursorFile != "" && !o.follow {
				return usagef("--cursor-file goes with -f")
			}
			if o.follow && o.oldest {
				return usagef("--oldest and -f do not go together")
			}
			client, err := a.open(cmd.Context())
			if err != nil {
				return err
			}
			q, err := o.apply(a, client.Changes(), args)
			if err != nil {
				return err
			}
			if o.follow {
				return a.follow(cmd, q, o)
			}
			return a.list(cmd.Context(), q, o)
		},
	}
	o.register(cmd)
	cmd.Flags().IntVarP(&o.n, "number", "n", 50, "how many; 0: all")
	cmd.Flags().BoolVarP(&o.follow, "follow", "f", false, "go on with what comes")
	cmd.Flags().BoolVar(&o.oldest, "oldest", false, "oldest first")
	cmd.Flags().StringVar(&o.cursorFile, "cursor-file", "", "a file that keeps where -f is")
	return cmd
}

var changeHeader = []string{"position", "committed_at", "operation", "table", "key", "changes", "user", "where", "request"}

// list prints what a query gives.
func (a *app) list(ctx context.Context, q audit.Query, o logOptions) error {
	if o.oldest {
		q = q.OldestFirst()
	}
	limited := q
	if o.n > 0 {
		limited = q.Limit(o.n + 1)
	}
	a.paged()
	out := a.changePrinter()
	n := 0
	for change, err := range limited.All(ctx) {
		if err != nil {
			return err
		}
		if n++; o.n > 0 && n > o.n {
			break
		}
		if err := out.add(a.changeCells(change), a.shown(change)); err != nil {
			return err
		}
	}
	if err := out.close(); err != nil {
		return err
	}
	if n == 0 {
		return a.nothing(ctx, q)
	}
	if o.n > 0 && n > o.n && a.flags.output == formatTable {
		a.note("There are more: -n 0 lists all.")
	}
	return nil
}

// narrow is the width from which on a change goes on one line.
const narrow = 80

func (a *app) changePrinter() printer {
	if a.flags.output == formatTable && a.width > 0 && a.width < narrow {
		return &stackedPrinter{a}
	}
	return a.printer(changeHeader, false, 4, 6, 3, 7)
}

// changeCells is a change as a line.
func (a *app) changeCells(c audit.Change) []cell {
	row := tableName(c.TableName())
	if c.HasKey {
		row += " " + keyText(c.KeyParts())
	}
	diff := a.diffText(c.Operation, c.Diff())
	user, request := who(c), printable(c.Context.RequestID)
	if a.flags.output == formatCSV {
		return []cell{
			plain(c.Position.String()), plain(c.CommittedAt.UTC().Format(time.RFC3339Nano)), plain(string(c.Operation)), plain(c.TableName()),
			plain(c.PrimaryKey), plain(diff), plain(c.Context.User()), plain(where(c)), plain(c.Context.RequestID),
		}
	}
	if revert, ok := c.Revert(); ok {
		request = "revert of " + printable(revert.Of.String())
	}
	if c.Defect != "" {
		request = strings.TrimSpace(request + " (defect: " + printable(c.Defect) + ")")
	}
	return []cell{
		styled(c.Position.String(), styleYellow), styled(a.shortTime(c.CommittedAt), styleDim), styled(string(c.Operation), operationStyle(c.Operation)),
		styled(row, styleBold), plain(diff), styled(user, styleCyan), plain(where(c)), plain(request),
	}
}

func operationStyle(o audit.Operation) style {
	switch o {
	case audit.Create:
		return styleGreen
	case audit.Update:
		return styleYellow
	}
	return styleRed
}

// stackedPrinter shows changes one below the other, for narrow terminals.
type stackedPrinter struct{ app *app }

func (p *stackedPrinter) add(c []cell, _ any) error {
	line := func(cells ...cell) string {
		var parts []string
		left := p.app.width
		for _, each := range cells {
			text := clip(each.text, left)
			if each.text == "" || left <= 0 {
				continue
			}
			parts = append(parts, p.app.paint(text, each.style))
			left -= len([]rune(text)) + 1
		}
		return strings.Join(parts, " ")
	}
	text := line(c[0], c[2], c[3]) + "\n"
	if c[4].text != "" {
		text += "  " + clip(c[4].text, p.app.width-2) + "\n"
	}
	return p.app.writef("%s  %s\n", text, clip(strings.Join([]string{c[1].text, c[5].text, c[6].text, c[7].text}, " "), p.app.width-2))
}

func (p *stackedPrinter) close() error { return nil }

// shownBefore is how many changes -f shows of those that are there.
const shownBefore = 10

// follow prints what is there and what comes.
func (a *app) follow(cmd *cobra.Command, q audit.Query, o logOptions) error {
	ctx := cmd.Context()
	out := a.changePrinter()
	if table, ok := out.(*tablePrinter); ok {
		table.unaligned = true
	}
	if a.flags.output == formatJSON {
		return usagef("-f has no end, and so no -o json: take -o jsonl")
	}
	n := shownBefore
	if cmd.Flags().Changed("number") {
		n = o.n
	}
	watch := q
	if o.cursorFile != "" {
		text, err := os.ReadFile(o.cursorFile)
		switch {
		case err == nil && len(strings.TrimSpace(string(text))) > 0:
			watch, n = q.After(audit.Cursor(strings.TrimSpace(string(text)))), 0
		case err != nil && !errors.Is(err, os.ErrNotExist):
			return err
		}
	}
	if o.since != "" {
		n = 0 // Watch begins there
	}
	if n > 0 {
		changes, err := q.Limit(n).List(ctx)
		if err != nil {
			return err
		}
		slices.Reverse(changes)
		for _, change := range changes {
			if err := out.add(a.changeCells(change), a.shown(change)); err != nil {
				return err
			}
			watch = q.OldestFirst().After(q.OldestFirst().CursorAfter(change))
		}
	}
	for event, err := range watch.Watch(ctx) {
		if err != nil {
			return err
		}
		if err := out.add(a.changeCells(event.Change), a.shown(event.Change)); err != nil {
			return err
		}
		if o.cursorFile != "" {
			if err := keepCursor(o.cursorFile, event.Cursor); err != nil {
				return err
			}
		}
	}
	return nil
}

// keepCursor replaces the file as a whole, so that a crash leaves one or the other.
func keepCursor(name string, cursor audit.Cursor) error {
	file, err := os.CreateTemp(filepath.Dir(name), ".hindsight-*")
	if err != nil {
		return err
	}
	_, err = file.WriteString(string(cursor) + "\n")
	err = errors.Join(err, file.Close())
	if err == nil {
		err = os.Rename(file.Name(), name)
	}
	if err != nil {
		_ = os.Remove(file.Name())
	}
	return err
}
