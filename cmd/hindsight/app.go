package main

import (
	"bufio"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/user"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/hindsight-go/audit"
)

// streams is what the program reads from and writes to.
type streams struct {
	in       io.Reader
	out, err io.Writer
	// terminal reports whether out is one, interactive whether people can be asked, and
	// errTerminal that progress can be shown.
	terminal, interactive, errTerminal bool
	// width is that of the terminal, 0 without one.
	width  int
	getenv func(string) string
}

func terminalStreams() streams {
	s := streams{in: os.Stdin, out: os.Stdout, err: os.Stderr, getenv: os.Getenv}
	s.terminal = term.IsTerminal(int(os.Stdout.Fd()))
	s.interactive = s.terminal && term.IsTerminal(int(os.Stdin.Fd()))
	s.errTerminal = term.IsTerminal(int(os.Stderr.Fd()))
	if s.terminal {
		s.width, _, _ = term.GetSize(int(os.Stdout.Fd()))
		if s.width <= 0 {
			s.width = 80
		}
	}
	return s
}

// app is one run of the command.
type app struct {
	streams
	flags  globals
	asked  *bufio.Reader // of in, for answers
	client *audit.Client
	page   *pager
	zone   *time.Location
	now    func() time.Time
	// begun reports whether the command line was understood.
	begun bool
	// progressing reports whether progress stands on the terminal, progressed since when.
	progressing bool
	progressed  time.Time
	// keyless are the tables whose rows are known by their values, for --no-values.
	keyless map[string]bool
}

// globals are the flags of every command.
type globals struct {
	databaseURL, storeURL, schema string
	slot, publication             string
	tables                        []string
	output                        string
	json                          bool
	color                         string
	noPager                       bool
	noValues                      bool
	trustOwners                   bool
	as, reason                    string
}

// The formats of output.
const (
	formatTable = "table"
	formatJSON  = "json"
	formatJSONL = "jsonl"
	formatCSV   = "csv"
	formatSQL   = "sql"
)

// run carries out one command line and returns the exit code.
func run(ctx context.Context, args []string, s streams) int {
	a := &app{streams: s, asked: bufio.NewReader(s.in), zone: zoneOf(s.getenv), now: time.Now}
	a.progressed = a.now() // so that quick work shows none
	root := a.command()
	root.SetArgs(args)
	cmd, err := root.ExecuteContextC(ctx)
	err = errors.Join(err, a.close())
	if err == nil {
		return exitDone
	}
	if ctx.Err() != nil && !a.isCoded(err) {
		err = context.Canceled // whatever it broke
	}
	code := exitCode(err)
	if !a.begun && code == exitError {
		code = exitUsage // of cobra's: an unknown command, a wrong number of arguments
	}
	if text := errorText(err); text != "" && code != exitDone {
		fmt.Fprintln(s.err, "hindsight: "+withoutPasswords(text, a.passwords()...))
		if code == exitUsage {
			fmt.Fprintf(s.err, "See %s --help.\n", cmd.CommandPath())
		}
	}
	return code
}

// isCoded reports whether the command has decided on the exit code itself.
func (a *app) isCoded(err error) bool {
	var coded *exitCodeError
	return errors.As(err, &coded)
}

// zoneOf is the zone of the times that are read and shown.
func zoneOf(getenv func(string) string) *time.Location {
	if name := getenv("TZ"); name != "" {
		if zone, err := time.LoadLocation(strings.TrimPrefix(name, ":")); err == nil {
			return zone
		}
	}
	return time.Local
}

func (a *app) command() *cobra.Command {
	root := &cobra.Command{
		Use:   "hindsight",
		Short: "Ask and undo the history of a PostgreSQL database",
		Long: `Ask and undo the history of a PostgreSQL database: who changed a row, what a
request did, how a table was yesterday, and back.

Moments:   2h, 3d12h (ago); now; 14:00; "yesterday 14:00"; 2026-11-26; RFC 3339;
           0/1A2B3C8 (a position); mark:NAME;
           req:ID, tx:ID (just before it); after:req:ID, after:tx:ID (just after it)
Units:     req:ID, tx:ID, trace:ID, revert:ID, or the position of a change, 0/1A2B3C8#1
Keys:      one argument for each column of the primary key

Exit code: 0 done, 1 error, 2 usage, 3 nothing found, 4 conflict or stale plan,
           5 history cannot tell (a gap, before tracking, retention), 6 not healthy

Without --database-url: DATABASE_URL, or else PGHOST, PGUSER and their kin.
Times are in the zone of TZ; JSON and CSV have them in UTC.`,
		SilenceErrors: true,
		SilenceUsage:  true,
		PersistentPreRunE: func(cmd *cobra.Command, _ []string) error {
			a.begun = true
			return a.checkFlags(cmd)
		},
	}
	f := root.PersistentFlags()
	f.StringVar(&a.flags.databaseURL, "database-url", "", "the source database (default $DATABASE_URL, or PGHOST and its kin)")
	f.StringVar(&a.flags.storeURL, "store-url", "", "the database that holds the history (default $AUDIT_STORE_URL, or the source)")
	f.StringVar(&a.flags.schema, "schema", "audit", "the schema of the history")
	f.StringVarP(&a.flags.output, "output", "o", formatTable, "table, json, jsonl, csv; sql for doctor and plans")
	f.BoolVar(&a.flags.json, "json", false, "short for -o json")
	f.StringVar(&a.flags.color, "color", "auto", "auto, always or never; NO_COLOR turns it off")
	f.BoolVar(&a.flags.noPager, "no-pager", false, "do not page on a terminal")
	f.BoolVar(&a.flags.noValues, "no-values", false, "mask the values of rows")
	f.StringVar(&a.flags.as, "as", "", "who you are, for what writes (default: your login)")
	f.StringVar(&a.flags.reason, "reason", "", "why, for what writes")
	// The script of completions goes where output goes at this moment.
	root.SetIn(a.in)
	root.SetOut(a.out)
	root.SetErr(a.err)
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return &usageError{flagErrorText(err)} })
	root.AddGroup(
		&cobra.Group{ID: "ask", Title: "Ask:"},
		&cobra.Group{ID: "undo", Title: "Undo:"},
		&cobra.Group{ID: "watch", Title: "Look after it:"},
		&cobra.Group{ID: "setup", Title: "Set up, and give out:"},
	)
	add := func(group string, commands ...*cobra.Command) {
		for _, c := range commands {
			c.GroupID = group
			root.AddCommand(c)
		}
	}
	add("ask", a.logCommand(), a.showCommand(), a.historyCommand(), a.blameCommand(), a.asOfCommand(), a.diffCommand())
	add("undo", a.revertCommand(), a.redoCommand(), a.restoreCommand(), a.revertsCommand())
	add("watch", a.statusCommand(), a.doctorCommand(), a.verifyCommand(), a.markCommand(), a.marksCommand(), a.baselineCommand(), a.refreshCommand(), a.syncCommand())
	add("setup", a.captureCommand(), a.setupCommand(), a.migrateCommand(), a.uninstallCommand(), a.exportCommand(), a.uiCommand())
	root.InitDefaultCompletionCmd()
	return root
}

// flagErrorText is what pflag says, without what was typed behind the flag's name: it
// may be a connection string.
func flagErrorText(err error) string {
	text := err.Error()
	if strings.HasPrefix(text, "unknown shorthand flag: ") {
		text, _, _ = strings.Cut(text, " in -")
	}
	return text
}

// checkFlags refuses values of flags that mean nothing.
func (a *app) checkFlags(cmd *cobra.Command) error {
	if a.flags.json {
		if cmd.Flags().Changed("output") && a.flags.output != formatJSON {
			return usagef("--json and --output %s do not go together", a.flags.output)
		}
		a.flags.output = formatJSON
	}
	formats := []string{formatTable, formatJSON, formatJSONL, formatCSV}
	if cmd.Annotations["formats"] != "" {
		formats = strings.Fields(cmd.Annotations["formats"])
	}
	if !slices.Contains(formats, a.flags.output) {
		return usagef("--output %s is not one of %s", a.flags.output, strings.Join(formats, ", "))
	}
	if !slices.Contains([]string{"auto", "always", "never"}, a.flags.color) {
		return usagef("--color %s is not one of auto, always, never", a.flags.color)
	}
	return nil
}

// sourceURL is the connection string of the source. A string that says nothing lets
// pgx look at the PG variables.
func (a *app) sourceURL() string {
	return cmp.Or(a.flags.databaseURL, a.getenv("DATABASE_URL"), "application_name=hindsight")
}

func (a *app) storeURL() string { return cmp.Or(a.flags.storeURL, a.getenv("AUDIT_STORE_URL")) }

// passwords are those of the connection strings, to be kept out of output.
func (a *app) passwords() (known []string) {
	for _, url := range []string{a.sourceURL(), a.storeURL()} {
		if config, err := pgx.ParseConfig(url); err == nil && len(config.Password) > 3 {
			known = append(known, config.Password)
		}
	}
	return known
}

// open returns the client, which the run closes.
func (a *app) open(ctx context.Context) (*audit.Client, error) {
	if a.client != nil {
		return a.client, nil
	}
	client, err := audit.Open(ctx, a.config())
	if err != nil {
		return nil, configText(err)
	}
	a.client = client
	return client, nil
}

func (a *app) config() audit.Config {
	return audit.Config{
		SourceURL: a.sourceURL(), StoreURL: a.storeURL(), Schema: a.flags.schema, Tables: a.flags.tables,
		Slot: a.flags.slot, Publication: a.flags.publication, TrustOwners: a.flags.trustOwners, Logger: slog.New(slog.DiscardHandler),
	}
}

// configText says problems of the configuration by the names of the flags.
func configText(err error) error {
	text := strings.NewReplacer(
		"audit: Config.SourceURL:", "--database-url:", "audit: Config.StoreURL:", "--store-url:", "audit: Config.Schema:", "--schema:",
		"audit: Config.Tables:", "--tables:", "audit: Config.Slot:", "--slot:", "audit: Config.Publication:", "--publication:", "audit: Config.", "",
	).Replace(err.Error())
	return &usageError{text}
}

// close ends what the run has opened, the pager first.
func (a *app) close() error {
	var err error
	if a.page != nil {
		err = a.page.close()
	}
	if a.client != nil {
		a.client.Close()
	}
	return err
}

// note tells people something beside the output.
func (a *app) note(format string, args ...any) {
	fmt.Fprintf(a.err, format+"\n", args...)
}

// plural is a number with its noun.
func plural(n int64, noun string) string {
	text := strconv.FormatInt(n, 10) + " " + noun
	if n == 1 {
		return text
	}
	return text + "s"
}

// actor is who writes.
func (a *app) actor() string {
	if a.flags.as != "" {
		return a.flags.as
	}
	if u, err := user.Current(); err == nil && u.Username != "" {
		return u.Username
	}
	return "unknown"
}
