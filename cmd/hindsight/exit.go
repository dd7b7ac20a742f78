package main

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/hindsight-go/audit"
)

// The exit codes, which scripts rely on.
const (
	exitDone        = 0
	exitError       = 1
	exitUsage       = 2
	exitNothing     = 3 // nothing found
	exitConflict    = 4 // a conflict with later work, or a plan that is stale
	exitCannotTell  = 5 // a gap, before tracking began, past retention
	exitUnhealthy   = 6
	exitInterrupted = 130
)

// usageError is a command line that cannot be carried out.
type usageError struct{ text string }

func (e *usageError) Error() string { return e.text }

func usagef(format string, args ...any) error { return &usageError{fmt.Sprintf(format, args...)} }

// exitError ends the program with a code; its text, if any, is for people.
type exitCodeError struct {
	code int
	text string
}

func (e *exitCodeError) Error() string { return e.text }

func exitf(code int, format string, args ...any) error {
	return &exitCodeError{code, fmt.Sprintf(format, args...)}
}

// exitCode is the code for an error.
func exitCode(err error) int {
	var usage *usageError
	var coded *exitCodeError
	var filter *audit.FilterError
	var cursor *audit.CursorError
	var revert *audit.RevertError
	var config *audit.ConfigError
	var history *audit.HistoryError
	var conflict *audit.ConflictError
	var stale *audit.StaleError
	var several *audit.SeveralUsersError
	var setup *audit.SetupError
	switch {
	case err == nil, isBrokenPipe(err):
		return exitDone
	case errors.Is(err, context.Canceled):
		return exitInterrupted
	case errors.As(err, &coded):
		return coded.code
	case errors.As(err, &usage), errors.As(err, &filter), errors.As(err, &cursor), errors.As(err, &revert), errors.As(err, &config):
		return exitUsage
	case errors.Is(err, audit.ErrNotFound), errors.Is(err, audit.ErrNoRow), errors.Is(err, audit.ErrNothingSelected):
		return exitNothing
	case errors.As(err, &conflict), errors.As(err, &stale), errors.As(err, &several):
		return exitConflict
	case errors.As(err, &history):
		return exitCannotTell
	case errors.Is(err, audit.ErrNotRunning), errors.As(err, &setup):
		return exitUnhealthy
	}
	return exitError
}

// isBrokenPipe reports whether who reads our output has seen enough of it.
func isBrokenPipe(err error) bool { return errors.Is(err, syscall.EPIPE) }

// errorText says an error in the words of the command rather than in those of Go.
func errorText(err error) string {
	var history *audit.HistoryError
	var several *audit.SeveralUsersError
	var rows *audit.TooManyRowsError
	var memory *audit.TooLargeError
	var pg *pgconn.PgError
	var apply *audit.ApplyError
	switch {
	case errors.Is(err, context.Canceled):
		return "interrupted"
	case errors.Is(err, audit.ErrNoHistory):
		return "there is no history in this database and schema: see --database-url, --store-url and --schema; a program with package audit has to capture it"
	case errors.Is(err, audit.ErrNotRunning):
		return "nobody captures: start the program that does"
	case errors.As(err, &history):
		return historyText(history)
	case errors.As(err, &several):
		return inWords(strings.TrimPrefix(several.Error(), "audit: "))
	case errors.As(err, &rows):
		return fmt.Sprintf("the selection has changes of more than %d rows: narrow it, or raise --max-rows", rows.Max)
	case errors.As(err, &memory):
		return fmt.Sprintf("the rows of the selection take more than %d bytes of memory: narrow it", memory.Max)
	case errors.As(err, &apply):
		return inWords(strings.TrimPrefix(apply.Error(), "audit: "))
	case errors.As(err, &pg):
		return serverText(pg)
	}
	return inWords(strings.ReplaceAll(strings.TrimPrefix(err.Error(), "audit: "), ": audit: ", ": "))
}

// points are the moments as the library names them.
var points = regexp.MustCompile(`\b(At|AsOf|Before|AtPosition|BeforeTransaction|AfterTransaction|BeforeRequest|AfterRequest|AtMark|Now)\(([^()]*)\)`)

// flags are what the library calls by the names of Go, as the command line has it.
var flags = strings.NewReplacer(
	"call Client.Start", "start the program that captures", "AsStored reverts", "--as-stored undoes", "Client.Baseline", "hindsight baseline",
	"WithLive", "--live", "Point.Columns", "--columns", "Config.TrustOwners", "--trust-owners", "WithoutTriggers", "--without-triggers",
	"MaxRows", "--max-rows", "AcrossUsers", "--across-users", "OnConflict", "--on-conflict",
)

// inWords names moments and flags as the command line does.
func inWords(text string) string {
	text = flags.Replace(text)
	return points.ReplaceAllStringFunc(text, func(call string) string {
		parts := points.FindStringSubmatch(call)
		argument := parts[2]
		if name, err := strconv.Unquote(argument); err == nil {
			argument = printable(name)
		}
		prefix := map[string]string{
			"BeforeTransaction": "tx:", "AfterTransaction": "after:tx:", "BeforeRequest": "req:", "AfterRequest": "after:req:", "AtMark": "mark:", "Now": "now",
		}
		return prefix[parts[1]] + argument
	})
}

// historyText says why the past cannot be told, and the nearest moment for which
// it can, in the form that a moment is given in.
func historyText(e *audit.HistoryError) string {
	text := fmt.Sprintf("as of %s: %s", inWords(e.Asked), strings.TrimPrefix(e.Reason.Error(), "audit: "))
	if e.Table != "" {
		text = printable(e.Table) + " " + text
	}
	if e.Detail != "" {
		text += ": " + inWords(e.Detail)
	}
	if !e.Earliest.IsZero() {
		text += "; the nearest moment with an answer is " + e.Earliest.LSN.String()
		if !e.EarliestTime.IsZero() {
			text += ", about " + e.EarliestTime.UTC().Format(time.RFC3339)
		}
	}
	return text
}

// quoted is what stands in quotes in a message of the server.
var quoted = regexp.MustCompile(`"[^"]*"`)

// serverText is what the server said, without what may be a value of a row: messages
// about data quote it, and what functions raise can be anything.
func serverText(e *pgconn.PgError) string {
	message := e.Message
	switch {
	case strings.HasPrefix(e.Code, "22"), strings.HasPrefix(e.Code, "23"):
		message = quoted.ReplaceAllString(message, `"…"`)
	case strings.HasPrefix(e.Code, "P0"):
		message = "a function or a trigger has raised an exception"
	}
	text := fmt.Sprintf("the server says: %s (SQLSTATE %s)", message, e.Code)
	if e.Code == "42501" {
		text += "; docs/permissions.md says what the role needs"
	}
	if e.Position > 0 {
		text += fmt.Sprintf(" at character %d", e.Position)
	}
	return text
}

// secrets are the forms in which a password stands in connection strings.
var secrets = []*regexp.Regexp{
	regexp.MustCompile(`(?i)(://[^/\s:@]*:)(\S+)(@)`),
	regexp.MustCompile(`(?i)(\bpassword\s*=\s*)('[^']*'|"[^"]*"|[^\s&'"]+)()`),
}

// withoutPasswords hides passwords, and those that are known to be ones wherever
// they stand.
func withoutPasswords(text string, known ...string) string {
	for _, form := range secrets {
		text = form.ReplaceAllString(text, "${1}xxxxx${3}")
	}
	for _, password := range known {
		if password != "" {
			text = strings.ReplaceAll(text, password, "xxxxx")
		}
	}
	return text
}
