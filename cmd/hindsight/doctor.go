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

// The levels of findings.
const (
	levelOK   = "ok"
	levelWarn = "warn"
	levelFail = "fail"
)

// finding is something that the doctor says.
type finding struct {
	Code  string `json:"code"`
	Level string `json:"level"`
	Text  string `json:"text"`
	// SQL is what ends it, Setting what has to be set elsewhere.
	SQL     []string `json:"sql,omitempty"`
	Setting string   `json:"setting,omitempty"`
}

// doctor looks at everything and collects findings.
type doctor struct {
	app      *app
	client   *audit.Client
	options  doctorOptions
	findings []finding
	status   audit.Status
	// captured reports whether there is a history.
	captured bool
}

type doctorOptions struct {
	olderThan, retention string
	older, keep          time.Duration
	maxLag               int64
	strict               bool
}

func (a *app) doctorCommand() *cobra.Command {
	var o doctorOptions
	cmd := &cobra.Command{
		Use:   "doctor",
		Short: "Look for what keeps history from being whole, and say what ends it",
		Long: `Look at the source, the slot, the tables and the store for what keeps history from being
whole, or will. Each finding comes with the SQL or the setting that ends it; -o sql prints
nothing but the SQL. It changes nothing.

Run it with the connection string of the program that captures: rights are those of the
role that asks. The exit code is 6 if something fails, with --strict also for warnings.`,
		Example:     "  hindsight doctor\n  hindsight doctor --tables 'public.*,!public.sessions'\n  hindsight doctor -o sql",
		Annotations: map[string]string{"formats": "table json jsonl csv sql"},
		Args:        cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			var err error
			if o.older, err = parseDuration(o.olderThan); err != nil {
				return usagef("--older-than %v", err)
			}
			if o.retention != "" {
				if o.keep, err = parseDuration(o.retention); err != nil {
					return usagef("--retention %v", err)
				}
			}
			if _, err := a.patterns(); err != nil {
				return err
			}
			client, err := a.open(cmd.Context())
			if err != nil {
				return err
			}
			d := &doctor{app: a, client: client, options: o}
			if err := d.examine(cmd.Context()); err != nil {
				return err
			}
			return d.report()
		},
	}
	f := cmd.Flags()
	f.StringVar(&o.olderThan, "older-than", "5m", "from which age on open transactions are found")
	f.StringVar(&o.retention, "retention", "", "how long history is to be kept, as the program has it: 90d")
	f.Int64Var(&o.maxLag, "max-lag", 256<<20, "how many bytes of WAL history may be behind")
	f.BoolVar(&o.strict, "strict", false, "warnings end with code 6, too")
	a.registerNames(cmd)
	return cmd
}

func (d *doctor) add(code, level, text string, sql ...string) {
	d.findings = append(d.findings, finding{Code: code, Level: level, Text: text, SQL: sql})
}

// set is add for what no SQL ends.
func (d *doctor) set(code, level, text, setting string) {
	d.findings = append(d.findings, finding{Code: code, Level: level, Text: text, Setting: setting})
}

// examine makes all examinations. Those that cannot be made for want of a server or a
// right are findings themselves.
func (d *doctor) examine(ctx context.Context) error {
	for _, server := range []struct {
		name, flag string
		on         func(context.Context, func(*pgx.Conn) error) error
	}{{"source", "--database-url", d.app.onSource}, {"store", "--store-url", d.app.onStore}} {
		err := server.on(ctx, func(conn *pgx.Conn) error { return conn.Ping(ctx) })
		var usage *usageError
		if errors.As(err, &usage) || ctx.Err() != nil {
			return err
		}
		if err != nil {
			d.set(server.name, levelFail, "the "+server.name+" does not answer: "+errorText(err), server.flag+" has to lead to a server that runs and lets the role in")
			return nil
		}
	}
	for _, part := range []struct {
		code    string
		examine func(context.Context) error
	}{
		{"setup", d.setup},
		{"capture", d.capture},
		{"bound", d.bound},
		{"transactions", d.transactions},
		{"tables", d.tables},
		{"store", d.store},
		{"secrets", d.secrets},
		{"context", d.context},
	} {
		err := part.examine(ctx)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err != nil {
			d.set(part.code, levelFail, "cannot look at "+part.code+": "+errorText(err), "see docs/permissions.md for what the role needs")
		}
	}
	return nil
}

// marks are the levels as they are shown.
var marks = map[string]struct {
	text  string
	style style
}{levelOK: {"ok", styleGreen}, levelWarn: {"warn", styleYellow}, levelFail: {"FAIL", styleRed}}

// report prints the findings.
func (d *doctor) report() error {
	a := d.app
	failed, warned := 0, 0
	for _, f := range d.findings {
		switch f.Level {
		case levelFail:
			failed++
		case levelWarn:
			warned++
		}
	}
	if err := d.print(); err != nil {
		return err
	}
	if failed > 0 || d.options.strict && warned > 0 {
		if a.flags.output != formatTable {
			return exitf(exitUnhealthy, "%s failed, %s", plural(int64(failed), "examination"), plural(int64(warned), "warning"))
		}
		return exitf(exitUnhealthy, "")
	}
	return nil
}

func (d *doctor) print() error {
	a := d.app
	switch a.flags.output {
	case formatTable, formatSQL:
		var b strings.Builder
		for _, f := range d.findings {
			d.write(&b, f)
		}
		return a.writef("%s", withoutPasswords(b.String(), a.passwords()...))
	}
	out := a.printer([]string{"code", "level", "text", "sql", "setting"}, false)
	for _, f := range d.findings {
		f.Text = withoutPasswords(f.Text, a.passwords()...)
		cells := []cell{plain(f.Code), plain(f.Level), plain(f.Text), plain(script(f.SQL)), plain(f.Setting)}
		if err := out.add(cells, f); err != nil {
			return err
		}
	}
	return out.close()
}

// write writes a finding for people, or its SQL.
func (d *doctor) write(b *strings.Builder, f finding) {
	a := d.app
	if a.flags.output == formatSQL {
		if len(f.SQL) > 0 {
			fmt.Fprintf(b, "-- %s\n%s", strings.ReplaceAll(f.Text, "\n", " "), script(f.SQL))
		}
		return
	}
	mark := marks[f.Level]
	fmt.Fprintf(b, "%s%s  %s\n", a.paint(mark.text, mark.style), strings.Repeat(" ", len("FAIL")-len(mark.text)), f.Text)
	for _, sql := range f.SQL {
		for line := range strings.Lines(strings.TrimRight(sql, "; \n") + ";\n") {
			fmt.Fprintf(b, "      %s", line)
		}
	}
	if f.Setting != "" {
		fmt.Fprintf(b, "      %s\n", f.Setting)
	}
}
