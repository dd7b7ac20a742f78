// Package stamp is what auditpgx and auditsql have in common: the message that
// carries a context into the WAL, and the account of what became of it.
package stamp

import (
	"context"
	"errors"
	"log/slog"
	"strings"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/hindsight-go/audit"
	"github.com/hindsight-go/audit/internal/sqltext"
)

// On a standby the function would fail, and there is nothing to stamp: whatever
// runs there changes nothing. So the stamp is harmless in every transaction.
const (
	plainSQL = `SELECT CASE WHEN pg_catalog.pg_is_in_recovery() THEN NULL ELSE pg_catalog.pg_logical_emit_message(true, $1::pg_catalog.text, $2::pg_catalog.text) END`

	identitySQL = `SELECT CASE WHEN pg_catalog.pg_is_in_recovery() THEN NULL ELSE pg_catalog.pg_logical_emit_message(true, $1::pg_catalog.text, ($2::pg_catalog.text::pg_catalog.jsonb OPERATOR(pg_catalog.||) pg_catalog.jsonb_build_object('db', pg_catalog.jsonb_strip_nulls(pg_catalog.jsonb_build_object('user', session_user, 'application', pg_catalog.current_setting('application_name'), 'address', pg_catalog.host(pg_catalog.inet_client_addr())))))::pg_catalog.text) END`
)

// paddingSQL is a second column of a stamp in a savepoint: an empty message, which
// no one reads. In the merge of a transaction with its savepoints the server puts
// a message where its record ends, and a row where its begins, so that a row right
// behind a savepoint may come out before the last message in it.
const paddingSQL = `, CASE WHEN pg_catalog.pg_is_in_recovery() THEN NULL ELSE pg_catalog.pg_logical_emit_message(true, '', '') END`

// Stamper makes stamps and counts them. Its methods are safe for concurrent use.
type Stamper struct {
	// Patience is for how long a connection that refused a stamp is not asked
	// again. It is for tests to change.
	Patience time.Duration

	// Ask tells the context of a write whose ctx has none. It may be nil.
	Ask func() (audit.Context, bool)

	prefix      string
	plain, safe statement
	logger      *slog.Logger
	texts       texts

	stamped, cut, lost, without atomic.Uint64

	logged, loggedWithout atomic.Int64 // Unix time of the last log line, in seconds
}

// statement is one that emits a message, with the name it is prepared under.
type statement struct{ sql, name string }

// New returns a Stamper. An empty prefix is audit.StampPrefix, a nil logger
// slog.Default().
func New(prefix string, identity bool, logger *slog.Logger) *Stamper {
	s := &Stamper{Patience: time.Minute, prefix: prefix, plain: statement{plainSQL, "auditpgx_stamp"}, logger: logger}
	if s.prefix == "" {
		s.prefix = audit.StampPrefix
	}
	// In the simple protocol a NUL would end the statement.
	s.prefix = strings.ReplaceAll(strings.ToValidUTF8(s.prefix, "\uFFFD"), "\x00", "\uFFFD")
	if identity {
		s.plain = statement{identitySQL, "auditpgx_stamp_identity"}
	}
	s.safe = statement{s.plain.sql + paddingSQL, s.plain.name + "_in_savepoint"}
	return s
}

// Stats counts what became of contexts.
type Stats struct{ Stamped, Cut, Lost, Without uint64 }

// Stats returns the counts.
func (s *Stamper) Stats() Stats {
	return Stats{Stamped: s.stamped.Load(), Cut: s.cut.Load(), Lost: s.lost.Load(), Without: s.without.Load()}
}

// Content returns what to stamp for ctx, or nil.
func (s *Stamper) Content(ctx context.Context) []byte {
	content, err := audit.StampContent(ctx)
	if err == nil {
		return content
	}
	// Better most of a context than none. Each round takes out one member.
	c, _ := audit.FromContext(ctx)
	for range 100 {
		var bad *audit.ContextError
		if !errors.As(err, &bad) {
			break
		}
		c = without(c, bad.Key)
		if content, err = audit.StampContent(audit.WithContext(context.Background(), c)); err == nil {
			s.cut.Add(1)
			if s.isTimeToLog() {
				s.log().WarnContext(ctx, "a member of the audit context cannot be written as JSON and was left out", "error", bad, "cut", s.cut.Load())
			}
			return content
		}
	}
	s.Lose(ctx, err)
	return nil
}

// without returns c without the member that key names.
func without(c audit.Context, key string) audit.Context {
	c.Truncated = append(c.Truncated[:len(c.Truncated):len(c.Truncated)], key)
	if name, ok := strings.CutPrefix(key, "params."); ok {
		before := len(c.Params)
		delete(c.Params, name)
		if len(c.Params) == before {
			c.Params = nil // the name was cut
		}
		return c
	}
	if key == "userId" && c.UserID != nil {
		c.UserID = nil
		return c
	}
	delete(c.Extra, key)
	return c
}

// Took takes note of a stamp that the server accepted.
func (s *Stamper) Took() { s.stamped.Add(1) }

// Lose takes note of a write without its context.
func (s *Stamper) Lose(ctx context.Context, cause error) {
	s.lost.Add(1)
	if s.isTimeToLog() {
		s.log().WarnContext(ctx, "a write goes without its audit context", "error", cause, "lost", s.lost.Load(), "stamped", s.stamped.Load())
	}
}

// isTimeToLog is true at most once a minute.
func (s *Stamper) isTimeToLog() bool { return isTime(&s.logged) }

func isTime(logged *atomic.Int64) bool {
	now := time.Now().Unix()
	last := logged.Load()
	return now-last >= 60 && logged.CompareAndSwap(last, now)
}

// Asked returns ctx with a context to stamp, if it has one or if there is one to be
// asked for, and whether it has.
func (s *Stamper) Asked(ctx context.Context) (context.Context, bool) {
	if InContext(ctx) {
		return ctx, true
	}
	if s.Ask == nil {
		return ctx, false
	}
	c, ok := s.Ask()
	if !ok {
		return ctx, false
	}
	ctx = audit.WithContext(ctx, c)
	return ctx, InContext(ctx)
}

// Enter is Asked for a statement. One that writes without is counted, unless an
// earlier stamp of its transaction covers it.
func (s *Stamper) Enter(ctx context.Context, sql string, covered bool) (context.Context, bool) {
	if InContext(ctx) {
		return ctx, true
	}
	text := s.Parse(sql)
	if !Wants(ctx, text) {
		return ctx, false
	}
	ctx, ok := s.Asked(ctx)
	if !ok && !covered && IsWrite(text) {
		s.Without(ctx)
	}
	return ctx, ok
}

// IsWrite reports whether a text changes rows for certain, and may not be the name of
// something that reads.
func IsWrite(text sqltext.Text) bool {
	return text.Executes == "" && (text.Class == sqltext.Write || text.Class == sqltext.Procedure)
}

// CopyFrom stands for the text of a COPY that a driver makes.
const CopyFrom = "COPY t FROM STDIN"

// Without takes note of a write whose ctx has no context.
func (s *Stamper) Without(ctx context.Context) {
	s.without.Add(1)
	if isTime(&s.loggedWithout) {
		s.log().WarnContext(ctx, "a write came without an audit context: its ctx is not that of the request", "without", s.without.Load())
	}
}

func (s *Stamper) log() *slog.Logger {
	if s.logger != nil {
		return s.logger
	}
	return slog.Default()
}

func (s *Stamper) statement(inSavepoint bool) statement {
	if inSavepoint {
		return s.safe
	}
	return s.plain
}

// SQL returns the statement of a stamp, whose parameters are prefix and content,
// both text. It differs for one in a savepoint.
func (s *Stamper) SQL(inSavepoint bool) string { return s.statement(inSavepoint).sql }

// Name returns a name under which SQL can be prepared.
func (s *Stamper) Name(inSavepoint bool) string { return s.statement(inSavepoint).name }

// Prefix returns the prefix of the messages.
func (s *Stamper) Prefix() string { return s.prefix }

// Text returns the statement of a stamp without parameters, for outside a
// savepoint. The content is JSON in ASCII, in which quotes and dollar signs can be
// written as escapes.
func (s *Stamper) Text(content []byte) string { return s.text(content, false) }

// TextInSavepoint is Text for a stamp in a savepoint.
func (s *Stamper) TextInSavepoint(content []byte) string { return s.text(content, true) }

func (s *Stamper) text(content []byte, inSavepoint bool) string {
	head, rest, _ := strings.Cut(s.SQL(inSavepoint), "$1")
	middle, tail, _ := strings.Cut(rest, "$2")
	return head + `E'` + inPrefix.Replace(s.prefix) + `'` + middle + `E'` + inContent.Replace(string(content)) + `'` + tail
}

// inPrefix and inContent write what must not stand in an E string by itself.
var (
	inPrefix  = strings.NewReplacer(`\`, `\\`, `'`, `''`)
	inContent = strings.NewReplacer(`'`, `\\u0027`, `$`, `\\u0024`, `\`, `\\`)
)

// Question is a text, or the beginning of one, that a connection which stamps answers
// itself, with [Answer] rows affected: it runs nothing of it. For all others it is a
// comment. So it gets through whatever is wrapped around such a connection.
const (
	Question = "/* audit: is this stamped? */"
	Answer   = -1
)

type asWriteKey struct{}

// AsWrite returns a ctx in which every statement counts as one that changes
// rows.
func AsWrite(ctx context.Context) context.Context { return context.WithValue(ctx, asWriteKey{}, true) }

// IsAsWrite reports whether ctx comes from AsWrite.
func IsAsWrite(ctx context.Context) bool { return ctx.Value(asWriteKey{}) != nil }

// InContext reports whether ctx carries a context to stamp.
func InContext(ctx context.Context) bool {
	content, err := audit.StampContent(ctx)
	return content != nil || err != nil
}

// Prepared is an argument of Exec and Query of package auditpgx: the description
// of the statement, which was prepared under its own text.
type Prepared struct{ SD *pgconn.StatementDescription }
