package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/spf13/cobra"

	"github.com/hindsight-go/audit"
)

type exportOptions struct {
	filters
	file                string
	resume, spreadsheet bool
	newest              bool
}

func (a *app) exportCommand() *cobra.Command {
	var o exportOptions
	cmd := &cobra.Command{
		Use:   "export [TABLE [KEY...]]",
		Short: "Write changes into a file, oldest first",
		Long: `Write changes as JSON lines (-o jsonl, the default) or CSV, oldest first, with everything
that is known of each, in memory that does not grow.

An export into a --file that was interrupted goes on where it ended with --resume, if it
is one of JSON lines.`,
		Example: `  hindsight export --until 2026-11-01 --file october.jsonl
  hindsight export orders -o csv --spreadsheet > orders.csv`,
		Annotations:       map[string]string{"formats": "table jsonl csv"},
		ValidArgsFunction: a.tableNames,
		RunE: func(cmd *cobra.Command, args []string) error {
			client, err := a.open(cmd.Context())
			if err != nil {
				return err
			}
			q, err := o.apply(a, client.Changes(), args)
			if err != nil {
				return err
			}
			if !o.newest {
				q = q.OldestFirst()
			}
			return a.export(cmd.Context(), q, o)
		},
	}
	o.register(cmd)
	cmd.Flags().StringVar(&o.file, "file", "", "where to (default: standard output)")
	cmd.Flags().BoolVar(&o.resume, "resume", false, "go on with the file")
	cmd.Flags().BoolVar(&o.spreadsheet, "spreadsheet", false, "CSV in which no field is taken for a formula")
	cmd.Flags().BoolVar(&o.newest, "newest", false, "newest first")
	return cmd
}

func (a *app) export(ctx context.Context, q audit.Query, o exportOptions) error {
	format := audit.JSONL
	switch {
	case a.flags.output == formatCSV && o.spreadsheet:
		format = audit.SpreadsheetCSV
	case a.flags.output == formatCSV:
		format = audit.CSV
	case o.spreadsheet:
		return usagef("--spreadsheet goes with -o csv")
	}
	if o.resume && (o.file == "" || format != audit.JSONL) {
		return usagef("--resume goes with --file and JSON lines")
	}
	if a.flags.noValues && format != audit.JSONL {
		return usagef("--no-values goes with JSON lines")
	}
	out := a.writer()
	if o.file != "" {
		file, rest, err := openExport(o, q)
		if err != nil {
			return err
		}
		defer func() { _ = file.Close() }() // an error of which Sync has told
		q, out = rest, file
	}
	written := &counter{w: out, tell: func(n int64) { a.progress("%s written", shortBytes(n)) }}
	var n int64
	var err error
	if a.flags.noValues {
		n, err = a.exportMasked(ctx, q, written)
	} else {
		n, err = q.Export(ctx, written, format)
	}
	a.progressDone()
	if file, ok := out.(*os.File); ok && o.file != "" && err == nil {
		err = errors.Join(file.Sync(), file.Close())
	}
	if err != nil {
		var stopped *audit.ExportError
		if errors.As(err, &stopped) && o.file != "" && format == audit.JSONL && !isBrokenPipe(err) {
			a.note("%s written; --resume goes on from there.", plural(n, "change"))
		}
		return err
	}
	if o.file != "" {
		a.note("%s written.", plural(n, "change"))
	}
	return nil
}

// exportMasked writes JSON lines without values.
func (a *app) exportMasked(ctx context.Context, q audit.Query, w io.Writer) (n int64, err error) {
	out := &linesPrinter{w: w}
	for change, err := range q.All(ctx) {
		if err != nil {
			return n, err
		}
		if err := out.add(nil, a.shown(change)); err != nil {
			return n, err
		}
		n++
	}
	return n, nil
}

// openExport opens the file, and with --resume cuts off a line that is not whole and
// goes on behind the last that is.
func openExport(o exportOptions, q audit.Query) (*os.File, audit.Query, error) {
	if !o.resume {
		file, err := os.OpenFile(o.file, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
		if errors.Is(err, os.ErrExist) {
			return nil, q, usagef("%s is there already: --resume goes on with it", o.file)
		}
		return file, q, err
	}
	file, err := os.OpenFile(o.file, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, q, err
	}
	end, last, err := lastLine(file)
	if err == nil && last != nil {
		var change audit.Change
		if json.Unmarshal(last, &change) != nil || change.Position.IsZero() {
			err = usagef("%s is no export of JSON lines", o.file)
		} else {
			q = q.After(q.CursorAfter(change))
		}
	}
	if err == nil {
		err = file.Truncate(end)
	}
	if err == nil {
		_, err = file.Seek(end, io.SeekStart)
	}
	if err != nil {
		_ = file.Close()
		return nil, q, err
	}
	return file, q, nil
}

// lastLine reads a file for the last of its whole lines and where it ends.
func lastLine(file *os.File) (end int64, last []byte, err error) {
	reader := bufio.NewReaderSize(file, 1<<20)
	var line []byte
	for {
		part, err := reader.ReadSlice('\n')
		line = append(line, part...)
		switch {
		case err == nil:
			end += int64(len(line))
			last, line = append(last[:0], bytes.TrimSpace(line)...), line[:0]
		case errors.Is(err, bufio.ErrBufferFull):
		case errors.Is(err, io.EOF):
			return end, last, nil
		default:
			return 0, nil, fmt.Errorf("read %s: %w", file.Name(), err)
		}
	}
}

// counter counts what is written.
type counter struct {
	w    io.Writer
	n    int64
	tell func(int64)
}

func (c *counter) Write(text []byte) (int, error) {
	n, err := c.w.Write(text)
	c.n += int64(n)
	c.tell(c.n)
	return n, err
}
