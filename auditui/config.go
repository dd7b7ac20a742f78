package auditui

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"time"

	"github.com/hindsight-go/audit"
)

// Config configures a [Handler]. Access is required; the zero value of every other field
// is a sensible default.
type Config struct {
	// Access says who asks and what they may see. It is called once for every request,
	// from several goroutines. An error that is [ErrUnauthorized] or [ErrForbidden] answers
	// 401 or 403, any other error and a panic answer 500; neither its text nor anything
	// else of it is shown. Required.
	Access func(r *http.Request) (Access, error)
	// Mask reports whether the values of a column are hidden from everybody, in pages,
	// events and exports. Names are as in [audit.Query.ForTable]. Nobody can filter by the
	// value of such a column, and where there is one, statements and parameters of
	// contexts are not shown. Default: none.
	//
	// What should not be stored at all belongs into [audit.Config.Columns].
	Mask func(table, column string) bool
	// Names gives the display names of users. It is called once for a page, with the ids
	// that the page shows; ids without a name are shown as they are. Default: none.
	Names func(ctx context.Context, users []string) map[string]string
	// Links are addresses outside of this UI. Default: none.
	Links Links
	// OnView, if set, is called before values leave: who looked at what.
	OnView func(r *http.Request, v View)
	// Secret signs the forms that revert something, at least 32 bytes. Where several
	// instances of a program serve the UI, they need the same. Default: a random one.
	Secret []byte
	// Timeout is how long a page may take to be read from history; then it says so.
	// Default: 2 seconds.
	Timeout time.Duration
	// SearchTime is about how long a list looks for changes that no index finds, such as those
	// of a column. Then it says how far it came, and whoever looks may search further.
	// Default: 200 milliseconds.
	SearchTime time.Duration
	// RevertTimeout is how long a plan, a revert and the past of a whole table may take.
	// Default: 30 seconds.
	RevertTimeout time.Duration
	// ConfirmRows is from how many rows on a revert has to be confirmed by typing that
	// number. One that overwrites later work always has to be. Default: 20.
	ConfirmRows int
	// MaxRevertRows is how many rows a revert may touch. Default: 10,000.
	MaxRevertRows int
	// MaxStreams is how many live tails and exports may run at once. Default: 64.
	MaxStreams int
	// Logger gets the failures. Default: slog.Default().
	Logger *slog.Logger
}

// Access is what somebody may see and do. The zero value sees which rows of which tables
// changed when, who changed them and in which columns, but no values.
type Access struct {
	// User is who asks: the actor of reverts, as [audit.Query.ByUser] takes it. Needed for
	// Revert.
	User string
	// Tables reports whether the changes of a table may be seen; names are as in
	// [audit.Query.ForTable]. Default: all.
	Tables func(table string) bool
	// Scope narrows every question: q.ByTenant(tenant). A revert is refused unless all
	// that it touches, and all that is in its way, is within. Default: everything.
	Scope func(q audit.Query) audit.Query
	// RowAllowed reports whether a row may be seen at any time of its history, where Scope
	// is set: Scope says something of changes and not of rows. Without it, the pages of
	// rows and tables are off for whoever has a Scope.
	RowAllowed func(ctx context.Context, table, key string) bool
	// Values shows the values of rows, and parameters and statements of contexts. Keys are
	// shown without it.
	Values bool
	// Export gives out files of changes.
	Export bool
	// Revert undoes and redoes. Without it, these pages are not there.
	Revert bool
}

// Errors for [Config.Access] to return.
var (
	// ErrUnauthorized is for somebody who has not logged in: 401.
	ErrUnauthorized = errors.New("auditui: not logged in")
	// ErrForbidden is for somebody who may see nothing of the history: 403.
	ErrForbidden = errors.New("auditui: no access to the history")
)

// Links are addresses outside of the UI that a page links to. A nil function and an empty
// address are no link. Only http and https addresses, and paths, are used.
type Links struct {
	// Row is where the program itself shows a row.
	Row func(table, key string) string
	// Request is where the logs of a request are.
	Request func(id string) string
	// Trace is where a distributed trace is shown.
	Trace func(id string) string
}

// View is what somebody is about to see.
type View struct {
	// User is that of the [Access].
	User string
	// Page is the kind of page: "changes", "change", "value", "requests", "request",
	// "transaction", "trace", "row", "table", "difference", "undo", "reverts", "revert",
	// "export" or "tail".
	Page string
	// Tables are the tables of which something is shown. Of an export and a tail it is
	// what was asked for, since they begin before anything is read; empty means all.
	Tables []string
	// Key is that of the row, where the page is about one.
	Key string
	// Unit is what the page is about, where it is a request and so on.
	Unit string
	// Rows is how many changes or rows are shown; 0 of an export and a tail.
	Rows int
}

// ConfigError is one problem of a [Config]. [New] returns all of them at once, joined.
type ConfigError struct {
	Field   string
	Problem string
}

func (e *ConfigError) Error() string { return "auditui: Config." + e.Field + ": " + e.Problem }

// Defaults and bounds of a Config.
const (
	defaultTimeout       = 2 * time.Second
	defaultSearchTime    = 200 * time.Millisecond
	defaultRevertTimeout = 30 * time.Second
	defaultConfirmRows   = 20
	defaultMaxRevertRows = 10_000
	defaultMaxStreams    = 64
	minSecret            = 32
)

// complete fills in defaults, and returns everything that is wrong.
func (cfg Config) complete() (Config, error) {
	var problems []error
	refuse := func(field, problem string) {
		problems = append(problems, &ConfigError{Field: field, Problem: problem})
	}
	if cfg.Access == nil {
		refuse("Access", "it is required: pages that show every row ever deleted have no open default")
	}
	if len(cfg.Secret) > 0 && len(cfg.Secret) < minSecret {
		refuse("Secret", fmt.Sprintf("it has %d bytes, and needs at least %d", len(cfg.Secret), minSecret))
	}
	if len(cfg.Secret) == 0 {
		cfg.Secret = make([]byte, minSecret)
		_, _ = rand.Read(cfg.Secret) // never fails
	}
	for _, d := range []struct {
		field string
		value *time.Duration
		zero  time.Duration
	}{
		{"Timeout", &cfg.Timeout, defaultTimeout},
		{"SearchTime", &cfg.SearchTime, defaultSearchTime},
		{"RevertTimeout", &cfg.RevertTimeout, defaultRevertTimeout},
	} {
		if *d.value < 0 {
			refuse(d.field, "it is negative")
		}
		if *d.value == 0 {
			*d.value = d.zero
		}
	}
	for _, n := range []struct {
		field string
		value *int
		zero  int
	}{
		{"ConfirmRows", &cfg.ConfirmRows, defaultConfirmRows},
		{"MaxRevertRows", &cfg.MaxRevertRows, defaultMaxRevertRows},
		{"MaxStreams", &cfg.MaxStreams, defaultMaxStreams},
	} {
		if *n.value < 0 {
			refuse(n.field, "it is negative")
		}
		if *n.value == 0 {
			*n.value = n.zero
		}
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.Default()
	}
	return cfg, errors.Join(problems...)
}
