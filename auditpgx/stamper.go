package auditpgx

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/hindsight-go/audit"
	"github.com/hindsight-go/audit/internal/sqltext"
	"github.com/hindsight-go/audit/internal/stamp"
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

	// Logger is told of contexts that were lost, and of writes without one, each at
	// most once a minute. Default: slog.Default().
	Logger *slog.Logger

	// Context tells the context of a write whose ctx has none, in programs that do not
	// pass the ctx of the request down to the database, and whether there is one. It is
	// asked for each statement that writes, by the goroutine that runs it, and has to
	// be safe for concurrent use. What ctx says goes before it.
	// Default: none.
	Context func() (audit.Context, bool)
}

// Wrap returns a DB over pool. The pool goes on belonging to the caller.
func (c Config) Wrap(pool *pgxpool.Pool) *DB { return &DB{pool: pool, s: c.stamper()} }

// WrapConn returns a Conn over conn.
func (c Config) WrapConn(conn *pgx.Conn) *Conn { return newConn(conn, c.stamper()) }

// WrapTx returns a transaction that stamps what is written through it from now
// on. tx is to be used through the result only, Commit and Rollback included. A *Tx
// is returned as it is.
func (c Config) WrapTx(tx pgx.Tx) *Tx { return wrapTx(tx, c.stamper()) }

func (c Config) stamper() *stamp.Stamper {
	s := stamp.New(c.Prefix, c.Identity, c.Logger)
	s.Ask = c.Context
	return s
}

// standard is what the package-level functions use, so that their counts add up.
var standard = Config{}.stamper()

// Wrap returns a DB over pool, with the defaults of [Config].
func Wrap(pool *pgxpool.Pool) *DB { return &DB{pool: pool, s: standard} }

// WrapConn returns a Conn over conn, with the defaults of [Config].
func WrapConn(conn *pgx.Conn) *Conn { return newConn(conn, standard) }

// WrapTx returns a transaction that stamps what is written through it from now
// on, with the defaults of [Config]. tx is to be used through the result only,
// Commit and Rollback included. A *Tx is returned as it is.
func WrapTx(tx pgx.Tx) *Tx { return wrapTx(tx, standard) }

// Stats counts what became of contexts.
type Stats struct {
	// Stamped is the number of stamps that the server took. Some of them were
	// rolled back later, with what they were for.
	Stamped uint64 `json:"stamped"`
	// Cut is the number of stamps with members left out since they are no JSON.
	Cut uint64 `json:"cut"`
	// Lost is the number of statements, batches and copies that were run without
	// the context they should have had.
	Lost uint64 `json:"lost"`
	// Without is the number of statements, batches and copies that write and whose ctx
	// had no context, in transactions without a stamp.
	Without uint64 `json:"without"`
}

// AsWrite returns a ctx in which every statement counts as one that changes
// rows. It is for a SELECT that calls a function that writes.
func AsWrite(ctx context.Context) context.Context { return stamp.AsWrite(ctx) }

// errRefused is the cause of a loss on a connection that has just refused a stamp.
var errRefused = errors.New("auditpgx: the server refused an earlier stamp on this connection")

// connState is what is known of a connection. It is used by who uses the
// connection.
type connState struct {
	mode   pgx.QueryExecMode // the connection's default
	tracer pgx.QueryTracer   // nil if there is none
	// tracesBatches says that tracer does so by itself.
	tracesBatches bool
	// proven says that the server took a stamp on this connection before.
	proven bool
	// refused is when it refused one last.
	refused time.Time
	// prepared are the statements that were sent with a stamp, and described
	// those that were in the modes that do not prepare. pgx's own caches cannot be
	// reached.
	prepared, described cache
	// names is what is known of prepared statements that are called by their names.
	names map[string]sqltext.Text
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
	// used says that something may have run in the transaction since it began.
	used bool
	// exposed says that what runs on the connection may not go through here.
	exposed bool
	options pgx.TxOptions // with which it was begun, if it is not used
}

// restart is what takes the place of a transaction in which nothing has run.
func (t *txState) restart() string {
	var b pgx.Batch
	b.BeginTx(t.options) // pgx writes the statement
	return "ROLLBACK;" + b.QueuedQueries[0].SQL
}

type txStamp struct {
	after   int // the number of savepoints made before it
	content []byte
}

func (t *txState) holds(content []byte) bool {
	return t != nil && !t.exposed && len(t.stamps) > 0 && bytes.Equal(t.stamps[len(t.stamps)-1].content, content)
}

// covers reports whether there is a stamp that holds for what comes without one.
func (t *txState) covers() bool { return len(t.stamps) > 0 && !t.exposed }

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
