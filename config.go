package audit

import (
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"log/slog"
	"regexp"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
	"go.opentelemetry.io/otel/metric"
	"go.opentelemetry.io/otel/trace"

	"github.com/hindsight-go/audit/capture"
	"github.com/hindsight-go/audit/store"
)

// GapPolicy says what capture does when it finds that a part of the history can
// never be had, because the replication slot was lost, dropped or moved.
type GapPolicy int

// What to do at a gap. Either way it is reported: Changes lists what there is,
// Status.Gaps what is missing.
const (
	// ContinueAfterGap captures what follows the gap.
	ContinueAfterGap GapPolicy = iota
	// StopAtGap ends capture with a *GapError, for those who must look first.
	StopAtGap
)

// Config configures a Client. The zero value of every field but SourceURL is a
// sensible default.
type Config struct {
	// SourceURL is the connection string (URL or keyword/value) of the database
	// whose changes are captured. Required. Capture cannot go through a pooler,
	// everything else can.
	SourceURL string

	// StoreURL is the connection string of the database that holds the history.
	// Default: SourceURL. A store of its own keeps the cost of writing history
	// off the source.
	StoreURL string

	// Schema is the schema of the store's tables, made if it is not there.
	// Default: "audit". In a database of its own it can be "public".
	Schema string

	// StoreRoles, if its Owner is set, is a store with least rights: a role that nobody logs
	// in as owns it, and the program's may add to the history, but not change what is
	// stored. A DBA makes it once, with the script that [Client.SetupSQL] returns.
	// Default: the role of StoreURL owns the store, and Start makes it.
	StoreRoles StoreRoles

	// Tables says which tables are tracked: "public.*", "billing.invoices",
	// "!public.sessions" (see capture.Pattern). Exclusions win. Tables made
	// later join by themselves. Tables of migration tools and job queues, such as
	// schema_migrations and river_job, are only tracked if a pattern says more of their
	// names than *: "public.river_job", "public.river_*" (see docs/operations.md). Start
	// logs which it leaves out. Default: "public.*".
	Tables []string

	// NeverRestored names columns that no revert restores, and that count in no conflict:
	// nobody's work, such as times of updates and counters that triggers keep.
	// "*.updated_at" is a column of any table, "page.views" one of tables of that name,
	// "billing.invoice.*_count" some of one table (see capture.ColumnPattern). Rows that
	// were deleted come back with them. [Reversal.Columns] and [Reversal.AllColumns]
	// restore them nevertheless. Default: "*.updated_at", "*.updatedAt", "*.modified_at"
	// and "*.modifiedAt"; an empty list that is not nil: none.
	NeverRestored []string

	// VersionColumns names, as NeverRestored does, the columns by which a program notices
	// that a row was written to since it was read (optimistic locks). They are never
	// restored and count in no conflict either. Reverts count a number on by one in every
	// row that they restore columns of, and set a timestamp to the time of the revert, so
	// that whoever has read the row before cannot save over the revert. Values of other
	// types stay. Default: "*.lock_version", "*.lockVersion" and "*.row_version"; an empty
	// list that is not nil: none.
	VersionColumns []string

	// Columns says of which columns the history does not store the values, but nothing
	// ([ExcludeColumn]), a digest ([DigestColumn]) or a mask ([MaskColumn]). The first
	// rule that names a column counts. Default: columns whose names look like secrets
	// (password, api_token, ...) are excluded, which Start logs; [KeepColumn] stores
	// them. What a policy was is recorded with the history.
	Columns []ColumnRule

	// DigestKey is the secret key of digests, at least 16 bytes. Whoever has it can try
	// values. With another key all values look changed. Default: none.
	DigestKey []byte

	// Environment is recorded with every change, for instance "production".
	// Default: none.
	Environment string

	// Slot is the name of the replication slot. Slot names are shared by all
	// databases of a cluster. Default: derived from the database's name.
	Slot string

	// Publication is the name of the publication. Default: "audit", or derived
	// from Schema where that is set.
	Publication string

	// ContextPrefix is the prefix of the logical messages that carry context.
	// Default: "audit", which Stamp writes and which is understood beside another
	// one. So are the messages of Bemi's clients ("_bemi").
	ContextPrefix string

	// MaxContextBytes is the size from which a context is cut down to its short
	// members, since it is stored with every change it covers; so is one of more than
	// 1 KiB once a transaction's changes have taken 64 times as much. Default: 64 KiB;
	// at most 1 MiB.
	MaxContextBytes int

	// MaxRowBytes bounds what is kept of one version of a row, in bytes of its values
	// as text, and so the memory of capture, which is about six times as much while
	// such rows come. Of a larger row values are left out until the rest fits, which
	// the change's defect says. Default: 16 MiB; at most 200 MiB.
	MaxRowBytes int

	// Retention is how long history is kept. It is dropped a month at a time, so
	// up to a month more is there. Default: forever. At least 24 hours.
	Retention time.Duration

	// ReadURL is the connection string that the past is read with, for a role with
	// fewer rights in the source: it needs SELECT on the tracked tables and TEMPORARY
	// on the database. Default: SourceURL.
	ReadURL string

	// TrustOwners lets questions about the past run functions that other roles own,
	// in views, queries and generated columns, with the rights of the role that reads
	// the past. Functions of that role itself, of superusers and of extensions always
	// may. Default: such functions are refused.
	TrustOwners bool

	// BeforeConnect, if set, is called before every connection to the source, with its
	// settings as the connection string has them, and may change them: Password for
	// tokens that expire (IAM, Vault), TLSConfig, DialFunc for a connector. It is called
	// from several goroutines, also long after Start; an error fails that connection,
	// which is tried again as if the server were away.
	BeforeConnect func(ctx context.Context, config *pgconn.Config) error

	// StoreBeforeConnect is BeforeConnect for the store. Default: BeforeConnect where
	// StoreURL is empty, else none.
	StoreBeforeConnect func(ctx context.Context, config *pgconn.Config) error

	// OnGap says what to do when history was lost. Default: ContinueAfterGap.
	OnGap GapPolicy

	// RequireWALBound makes Start refuse a source whose max_slot_wal_keep_size is -1:
	// there, a slot that nobody reads from fills the disk, which stops the source.
	// Default: Start warns.
	RequireWALBound bool

	// MaxRetainedWAL bounds the WAL, in bytes, that the source keeps while nobody
	// captures, for those who cannot set max_slot_wal_keep_size: an instance that is
	// started, and waits or cannot reach the store, drops the slot beyond it. What was
	// not captured by then is a recorded gap. Default: no bound. At least 64 MiB.
	MaxRetainedWAL int64

	// RefreshInterval is how often the catalog is asked for new tables, which costs
	// one statement where nothing was written since the last time, and some milliseconds
	// for each thousand tables where there was no DDL. Client.Refresh asks at once. Default: 2 seconds. Negative: never.
	RefreshInterval time.Duration

	// NoEventTrigger keeps Start from making the event triggers by which the history
	// knows at which place of it a table was altered. Start makes them where its role
	// is a superuser. They fire for DDL only, and cannot fail it. Without them tables
	// are looked at every RefreshInterval, or, if they are many, every 30 seconds, and
	// moments between two looks that disagree are refused where the stream does not
	// decide.
	NoEventTrigger bool

	// Logger gets the events of capture. Default: slog.Default().
	Logger *slog.Logger

	// MeterProvider, if set, gets metrics: audit.changes, audit.batches,
	// audit.batch.duration, audit.errors, audit.streaming, audit.lag.bytes, audit.lag.time,
	// audit.slot.retained, audit.slot.bound and audit.slot.safe.
	MeterProvider metric.MeterProvider

	// TracerProvider, if set, gets spans: audit.capture.batch of each store transaction with
	// changes; audit.revert.plan, apply and dry_run; audit.past.row, rows, count, view,
	// history, blame, diff, fork and baseline of questions about the past. They are children
	// of the span of the caller's ctx, those of capture have a trace each. They have no values
	// of rows, and of errors the kind and not the text. Default: no spans.
	TracerProvider trace.TracerProvider
}

// StoreRoles are the roles of a store with least rights. Roles are shared by all databases
// of a cluster: several histories may have the same Owner, and each a Writer of its own.
type StoreRoles struct {
	// Owner owns the schema of the store and all in it. It must not log in, and the role
	// of StoreURL must not be a member of it. SetupSQL makes it if it is not there.
	Owner string
	// Writer is the role of StoreURL, for SetupSQL, which makes it if it is not there.
	// Default: the role that SetupSQL is called with.
	Writer string
	// Reader, for SetupSQL, is a role that may read the history, for people and reports.
	// Default: none.
	Reader string
}

// ConfigError is one problem of a Config. Open returns all problems at once,
// joined.
type ConfigError struct {
	Field   string
	Problem string
	cause   error
}

func (e *ConfigError) Error() string { return "audit: Config." + e.Field + ": " + e.Problem }

// Unwrap returns the cause, if there is one.
func (e *ConfigError) Unwrap() error { return e.cause }

// resolved is a Config with its defaults filled in and its texts read.
type resolved struct {
	Config
	source, store *pgxpool.Config
	read          *pgxpool.Config // nil: source
	path          string          // the search_path that SourceURL asks for
	patterns      capture.Patterns
	// neverRestored and versions are those of NeverRestored and VersionColumns.
	neverRestored, versions []capture.ColumnPattern
	columnRules             []columnRule
}

func (c Config) resolve() (resolved, error) {
	r := resolved{Config: c}
	var problems []error
	bad := func(field, format string, args ...any) {
		problems = append(problems, &ConfigError{Field: field, Problem: fmt.Sprintf(format, args...)})
	}
	parse := func(field, url string) *pgxpool.Config {
		if url == "" {
			bad(field, "is empty: give a connection string such as postgres://user@host:5432/database")
			return nil
		}
		config, err := pgxpool.ParseConfig(url)
		if err != nil {
			problems = append(problems, &ConfigError{Field: field, Problem: "is not a connection string: " + withoutDSN(err)})
			return nil
		}
		return config
	}
	r.source = parse("SourceURL", c.SourceURL)
	if c.ReadURL != "" {
		r.read = parse("ReadURL", c.ReadURL)
	}
	if r.source != nil {
		r.path = searchPath(r.source.ConnConfig.RuntimeParams)
	}
	if r.StoreURL == "" {
		r.StoreURL = c.SourceURL
	}
	if c.StoreURL != "" {
		r.store = parse("StoreURL", c.StoreURL)
	} else if r.source != nil {
		r.store = r.source.Copy()
	}
	if c.StoreURL == "" && c.StoreBeforeConnect == nil {
		r.StoreBeforeConnect = c.BeforeConnect
	}
	askBefore(r.source, r.BeforeConnect)
	askBefore(r.read, r.BeforeConnect)
	askBefore(r.store, r.StoreBeforeConnect)
	name := func(field string, value *string, otherwise string) {
		if *value == "" {
			*value = otherwise
		}
		if len(*value) > 63 {
			bad(field, "%q has %d bytes, names in PostgreSQL have at most 63", *value, len(*value))
		}
		if strings.ContainsRune(*value, 0) {
			bad(field, "holds a NUL byte")
		}
	}
	name("Schema", &r.Schema, store.DefaultSchema)
	publication := "audit"
	if r.Schema != store.DefaultSchema {
		publication = shortName("audit_" + r.Schema)
	}
	name("Publication", &r.Publication, publication)
	if r.source != nil {
		name("Slot", &r.Slot, slotName(r.source.ConnConfig.Database, r.Schema))
	}
	if strings.Trim(r.Slot, "abcdefghijklmnopqrstuvwxyz0123456789_") != "" {
		bad("Slot", "%q: the name of a slot has only lower-case letters, digits and underscores", r.Slot)
	}
	if strings.HasPrefix(r.Schema, "pg_") {
		bad("Schema", "%q: the prefix pg_ is PostgreSQL's own", r.Schema)
	}
	name("ContextPrefix", &r.ContextPrefix, "audit")
	r.resolveRoles(bad)
	if len(r.Tables) == 0 {
		r.Tables = []string{"public.*"}
	}
	for _, text := range r.Tables {
		p, err := capture.ParsePattern(text)
		if err != nil {
			problems = append(problems, &ConfigError{Field: "Tables", Problem: err.Error(), cause: err})
			continue
		}
		r.patterns = append(r.patterns, p)
	}
	r.patterns = append(r.patterns, capture.Machinery()...)
	columns := func(field string, texts *[]string, otherwise ...string) (patterns []capture.ColumnPattern) {
		if *texts == nil {
			*texts = otherwise
		}
		for _, text := range *texts {
			p, err := capture.ParseColumnPattern(text)
			if err != nil {
				problems = append(problems, &ConfigError{Field: field, Problem: err.Error(), cause: err})
				continue
			}
			patterns = append(patterns, p)
		}
		return patterns
	}
	r.neverRestored = columns("NeverRestored", &r.NeverRestored, "*.updated_at", "*.updatedAt", "*.modified_at", "*.modifiedAt")
	r.versions = columns("VersionColumns", &r.VersionColumns, "*.lock_version", "*.lockVersion", "*.row_version")
	r.resolveColumns(bad)
	if r.MaxContextBytes == 0 {
		r.MaxContextBytes = 64 << 10
	}
	if r.MaxContextBytes < 0 || r.MaxContextBytes > 1<<20 {
		bad("MaxContextBytes", "%d: must be between 1 and %d", r.MaxContextBytes, 1<<20)
	}
	if strings.ContainsRune(r.Environment, 0) || !utf8.ValidString(r.Environment) {
		bad("Environment", "holds a NUL byte or is not UTF-8: no text of PostgreSQL can hold it")
	}
	if r.MaxRowBytes == 0 {
		r.MaxRowBytes = 16 << 20
	}
	if r.MaxRowBytes < 1<<20 || r.MaxRowBytes > store.MaxImage {
		bad("MaxRowBytes", "%d: must be between %d and %d", r.MaxRowBytes, 1<<20, store.MaxImage)
	}
	if r.Retention < 0 || r.Retention > 0 && r.Retention < 24*time.Hour {
		bad("Retention", "%s: must be 0 (forever) or at least 24h", r.Retention)
	}
	if r.MaxRetainedWAL < 0 || r.MaxRetainedWAL > 0 && r.MaxRetainedWAL < 64<<20 {
		bad("MaxRetainedWAL", "%d: must be 0 (no bound) or at least %d", r.MaxRetainedWAL, 64<<20)
	}
	if r.OnGap != ContinueAfterGap && r.OnGap != StopAtGap {
		bad("OnGap", "%d: must be ContinueAfterGap or StopAtGap", r.OnGap)
	}
	if r.RefreshInterval == 0 {
		r.RefreshInterval = 2 * time.Second
	}
	if r.Logger == nil {
		r.Logger = slog.Default()
	}
	return r, errors.Join(problems...)
}

// resolveRoles checks the roles of the store.
func (r *resolved) resolveRoles(bad func(field, format string, args ...any)) {
	roles := r.StoreRoles
	if roles == (StoreRoles{}) {
		return
	}
	if roles.Owner == "" {
		bad("StoreRoles", "has no Owner: name a role that owns the history, such as audit_owner")
	}
	if r.Schema == "public" {
		bad("StoreRoles", "needs a Schema of its own: others may create in public")
	}
	for _, role := range []string{roles.Owner, roles.Writer, roles.Reader} {
		if len(role) > 63 || strings.ContainsRune(role, 0) || strings.HasPrefix(role, "pg_") {
			bad("StoreRoles", "%q is no name for a role", role)
		}
	}
	if roles.Writer == roles.Owner && roles.Owner != "" || roles.Reader == roles.Owner && roles.Owner != "" || roles.Reader == roles.Writer && roles.Reader != "" {
		bad("StoreRoles", "Owner, Writer and Reader must be different roles")
	}
}

// askBefore makes a pool ask for the settings of each connection.
func askBefore(pool *pgxpool.Config, ask func(context.Context, *pgconn.Config) error) {
	if pool == nil || ask == nil {
		return
	}
	pool.BeforeConnect = func(ctx context.Context, config *pgx.ConnConfig) error {
		if err := ask(ctx, &config.Config); err != nil {
			return fmt.Errorf("audit: Config.BeforeConnect: %w", err)
		}
		return nil
	}
}

// connConfig returns the settings of a connection beside those of the pool, without
// some of its startup parameters.
func connConfig(ctx context.Context, pool *pgxpool.Config, without ...string) (*pgx.ConnConfig, error) {
	config := pool.ConnConfig.Copy()
	for _, name := range without {
		delete(config.RuntimeParams, name)
	}
	if pool.BeforeConnect != nil {
		if err := pool.BeforeConnect(ctx, config); err != nil {
			return nil, err
		}
	}
	return config, nil
}

// pathOption finds the search_path among the options for the server.
var pathOption = regexp.MustCompile(`(?:^|\s)(?:-c\s*|--)search_path=((?:[^\s\\]|\\.)*)`)

// searchPath returns the search_path that a connection string asks for, or nothing.
func searchPath(params map[string]string) string {
	if path := params["search_path"]; path != "" {
		return path
	}
	if match := pathOption.FindStringSubmatch(params["options"]); match != nil {
		return strings.ReplaceAll(match[1], `\ `, " ")
	}
	return ""
}

// withoutDSN gives the reason why a connection string could not be read, without
// the string.
func withoutDSN(err error) string {
	var parse *pgconn.ParseConfigError
	if errors.As(err, &parse) {
		// What the parser says can quote a piece of the password.
		return "it cannot be parsed; in a URL, special characters in the user, the password and the database have to be percent-encoded"
	}
	return "it cannot be read"
}

// slotName derives the name of the slot from that of the database, since slots
// are shared by the whole cluster, and from the schema, since each history needs
// a slot of its own.
func slotName(database, schema string) string {
	plain := "audit_" + database
	if schema != store.DefaultSchema {
		plain += "_" + schema
	}
	var b strings.Builder
	for _, c := range []byte(strings.ToLower(plain)) {
		if c >= 'a' && c <= 'z' || c >= '0' && c <= '9' || c == '_' {
			b.WriteByte(c)
		} else {
			b.WriteByte('_')
		}
	}
	if b.String() == plain && len(plain) <= 63 {
		return plain
	}
	h := fnv.New32a()
	_, _ = h.Write([]byte(plain))
	return fmt.Sprintf("%.54s_%08x", b.String(), h.Sum32())
}

func shortName(name string) string {
	if len(name) <= 63 {
		return name
	}
	h := fnv.New32a()
	_, _ = h.Write([]byte(name))
	return fmt.Sprintf("%s_%08x", strings.ToValidUTF8(name[:54], ""), h.Sum32())
}
