package auditpgx

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"strings"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/hindsight-go/audit"
)

// Config says how to stamp. Its zero value is what [Wrap], [WrapConn] and
// [WrapTx] use.
type Config struct {
	// Prefix is the prefix of the messages. Default: audit.StampPrefix. It has to
	// be the ContextPrefix of the client that captures.
	Prefix string

	// Identity lets the database add what it knows by itself: session user,
	// application name and client address, as the member "db" of the context,
	// which the application's own claims cannot forge. It costs the server a few
	// microseconds a stamp. Through a pooler, name and address are the pooler's.
	// Default: off.
	Identity bool

	// Logger is told of contexts that were lost, at most once a minute.
	// Default: slog.Default().
	Logger *slog.Logger
}

// Wrap returns a DB over pool. The pool goes on belonging to the caller.
func (c Config) Wrap(pool *pgxpool.Pool) *DB { return &DB{pool: pool, s: newStamper(c)} }

// WrapConn returns a Conn over conn.
func (c Config) WrapConn(conn *pgx.Conn) *Conn { return newConn(conn, newStamper(c)) }

// WrapTx returns a transaction that stamps what is written through it from now
// on. tx is to be used through the result only, Commit and Rollback included.
func (c Config) WrapTx(tx pgx.Tx) *Tx { return wrapTx(tx, newStamper(c)) }

// standard is what the package-level functions use, so that their counts add up.
var standard = newStamper(Config{})

// Wrap returns a DB over pool, with the defaults of [Config].
func Wrap(pool *pgxpool.Pool) *DB { return &DB{pool: pool, s: standard} }

// WrapConn returns a Conn over conn, with the defaults of [Config].
func WrapConn(conn *pgx.Conn) *Conn { return newConn(conn, standard) }

// WrapTx returns a transaction that stamps what is written through it from now
// on, with the defaults of [Config]. tx is to be used through the result only,
// Commit and Rollback included.
func WrapTx(tx pgx.Tx) *Tx { return wrapTx(tx, standard) }

// Stats counts what became of contexts.
type Stats struct {
	// Stamped is the number of stamps that the server took. Some of them were
	// rolled back later, with what they were for.
	Stamped uint64
	// Cut is the number of stamps with members left out since they are no JSON.
	Cut uint64
	// Lost is the number of statements, batches and copies that were run without
	// the context they should have had.
	Lost uint64
}

type asWriteKey struct{}

// AsWrite returns a ctx in which every statement counts as one that changes
// rows. It is for a SELECT that calls a function that writes.
func AsWrite(ctx context.Context) context.Context { return context.WithValue(ctx, asWriteKey{}, true) }

// stamper is a Config at work.
type stamper struct {
	prefix      string
	prefixBytes []byte
	sql         string
	logger      *slog.Logger

	stamped, cut, lost atomic.Uint64
	logged             atomic.Int64 // Unix time of the last log line, in seconds
}

// On a standby the function would fail, and there is nothing to stamp: whatever
// runs there changes nothing. So the stamp is harmless in every transaction.
const (
	stampSQL = `SELECT CASE WHEN pg_catalog.pg_is_in_recovery() THEN NULL ELSE pg_catalog.pg_logical_emit_message(true, $1::text, $2::text) END`

	identitySQL = `SELECT CASE WHEN pg_catalog.pg_is_in_recovery() THEN NULL ELSE pg_catalog.pg_logical_emit_message(true, $1::text, ($2::text::jsonb || pg_catalog.jsonb_build_object('db', pg_catalog.jsonb_strip_nulls(pg_catalog.jsonb_build_object('user', session_user, 'application', pg_catalog.current_setting('application_name'), 'address', pg_catalog.host(pg_catalog.inet_client_addr())))))::text) END`
)

func newStamper(c Config) *stamper {
	s := &stamper{prefix: c.Prefix, sql: stampSQL, logger: c.Logger}
	if s.prefix == "" {
		s.prefix = audit.StampPrefix
	}
	s.prefixBytes = []byte(s.prefix)
	if c.Identity {
		s.sql = identitySQL
	}
	return s
}

func (s *stamper) stats() Stats {
	return Stats{Stamped: s.stamped.Load(), Cut: s.cut.Load(), Lost: s.lost.Load()}
}

// content returns what to stamp for ctx, or nil.
func (s *stamper) content(ctx context.Context) []byte {
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
	s.lose(ctx, err)
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

// lose takes note of a write without its context.
func (s *stamper) lose(ctx context.Context, cause error) {
	s.lost.Add(1)
	if s.isTimeToLog() {
		s.log().WarnContext(ctx, "a write goes without its audit context", "error", cause, "lost", s.lost.Load(), "stamped", s.stamped.Load())
	}
}

// isTimeToLog is true at most once a minute.
func (s *stamper) isTimeToLog() bool {
	now := time.Now().Unix()
	last := s.logged.Load()
	return now-last >= 60 && s.logged.CompareAndSwap(last, now)
}

func (s *stamper) log() *slog.Logger {
	if s.logger != nil {
		return s.logger
	}
	return slog.Default()
}

// text returns the stamp as SQL without parameters. The content is JSON in
// ASCII, in which quotes and dollar signs can be written as escapes.
func (s *stamper) text(content []byte) string {
	literal := strings.NewReplacer(`'`, `\\u0027`, `$`, `\\u0024`, `\`, `\\`).Replace(string(content))
	prefix := `E'` + strings.NewReplacer(`\`, `\\`, `'`, `\'`).Replace(s.prefix) + `'`
	return strings.NewReplacer("$1", prefix, "$2", `E'`+literal+`'`).Replace(s.sql)
}

// errRefused is the cause of a loss on a connection that refused a stamp before.
var errRefused = errors.New("auditpgx: the server refused an earlier stamp on this connection")

// connState is what is known of a connection. It is used by who uses the
// connection.
type connState struct {
	mode   pgx.QueryExecMode // the connection's default
	tracer pgx.QueryTracer   // nil if there is none
	// tracesBatches says that tracer does so by itself.
	tracesBatches bool
	// proven says that the server took a stamp on this connection. Until then a
	// stamp in a transaction is guarded by a savepoint.
	proven bool
	// refused says that it did not.
	refused bool
	// prepared are the statements that were sent with a stamp, and described
	// those that were in the modes that do not prepare. pgx's own caches cannot be
	// reached.
	prepared, described cache
}

func stateOf(conn *pgx.Conn) *connState {
	const key = "auditpgx"
	data := conn.PgConn().CustomData()
	if st, ok := data[key].(*connState); ok {
		return st
	}
	config := conn.Config()
	st := &connState{
		mode: config.DefaultQueryExecMode, tracer: config.Tracer,
		prepared: cache{limit: config.StatementCacheCapacity}, described: cache{limit: config.DescriptionCacheCapacity},
	}
	_, st.tracesBatches = config.Tracer.(pgx.BatchTracer)
	data[key] = st
	return st
}

// txState is which stamps a transaction holds. It is shared by the nested ones.
type txState struct {
	savepoints int // made so far
	stamps     []txStamp
}

type txStamp struct {
	after   int // the number of savepoints made before it
	content []byte
}

func (t *txState) holds(content []byte) bool {
	return t != nil && len(t.stamps) > 0 && bytes.Equal(t.stamps[len(t.stamps)-1].content, content)
}

func (t *txState) add(content []byte) {
	if t != nil {
		t.stamps = append(t.stamps, txStamp{t.savepoints, content})
	}
}

// rolledBack forgets what went with a savepoint.
func (t *txState) rolledBack(savepoint int) {
	for len(t.stamps) > 0 && t.stamps[len(t.stamps)-1].after >= savepoint {
		t.stamps = t.stamps[:len(t.stamps)-1]
	}
}

// forget forgets all stamps, when it cannot be known which ones are still there.
func (t *txState) forget() {
	if t != nil {
		t.stamps = nil
	}
}
