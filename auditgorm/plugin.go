package auditgorm

import (
	"database/sql"
	"fmt"
	"log/slog"
	"sync"

	"gorm.io/gorm"

	"github.com/hindsight-go/audit"
	"github.com/hindsight-go/audit/auditsql"
	"github.com/hindsight-go/audit/internal/stamp"
)

// Config says how to stamp. Its zero value is what most programs need.
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
	// call WithContext of GORM, and whether there is one. It is asked for each statement
	// that writes, by the goroutine that runs it, and has to be safe for concurrent use.
	// What ctx says goes before it. Default: none.
	Context func() (audit.Context, bool)
}

// Plugin stamps what is written through the *gorm.DB that uses it. All its methods are
// safe for concurrent use.
type Plugin struct {
	connections *auditsql.Connector // wraps what a connector lends it
	s           *stamp.Stamper      // for transactions that are not of a pool of ours
	pools       sync.Map            // of *sql.DB to *pool, where it is not the DB's own
	prepared    sync.Map            // of *sql.DB to *gorm.PreparedStmtDB over the pool in pools
}

// New returns a plugin for db.Use. One plugin may be used by several DBs, whose counts
// add up.
func New(config Config) *Plugin {
	s := stamp.New(config.Prefix, config.Identity, config.Logger)
	s.Ask = config.Context
	return &Plugin{connections: auditsql.Config(config).Wrap(lent{}).(*auditsql.Connector), s: s}
}

// Name is of gorm.Plugin.
func (p *Plugin) Name() string { return "audit" }

// Initialize is of gorm.Plugin. It does not connect.
func (p *Plugin) Initialize(db *gorm.DB) error {
	switch conn := db.ConnPool.(type) {
	case *sql.DB:
		db.ConnPool = newPool(p.connections, conn)
		db.Statement.ConnPool = db.ConnPool
	case *gorm.PreparedStmtDB:
		bare, ok := conn.ConnPool.(*sql.DB)
		if !ok {
			return &PoolError{Type: fmt.Sprintf("%T", conn.ConnPool)}
		}
		conn.ConnPool = newPool(p.connections, bare)
		conn.Close() // what is prepared already would not be stamped
	case *sql.Conn, *sql.Tx: // for the callbacks
	default:
		return &PoolError{Type: fmt.Sprintf("%T", conn)}
	}
	return p.register(db)
}

// pool returns the pool of ours over one that is not the DB's own.
func (p *Plugin) pool(bare *sql.DB) *pool {
	if known, ok := p.pools.Load(bare); ok {
		return known.(*pool)
	}
	made := newPool(p.connections, bare)
	known, raced := p.pools.LoadOrStore(bare, made)
	if raced {
		_ = made.stamping.Close()
	}
	return known.(*pool)
}

// preparing returns the pool of ours over one that is not the DB's own, and prepares
// statements.
func (p *Plugin) preparing(bare *sql.DB, config *gorm.Config) *gorm.PreparedStmtDB {
	known, ok := p.prepared.Load(bare)
	if !ok {
		known, _ = p.prepared.LoadOrStore(bare, gorm.NewPreparedStmtDB(p.pool(bare), config.PrepareStmtMaxSize, config.PrepareStmtTTL))
	}
	return known.(*gorm.PreparedStmtDB)
}

// Stats counts what became of the contexts that went through the plugin.
func (p *Plugin) Stats() auditsql.Stats {
	total, others := p.connections.Stats(), p.s.Stats()
	total.Stamped += others.Stamped
	total.Cut += others.Cut
	total.Lost += others.Lost
	total.Without += others.Without
	return total
}

// PoolError is returned by Use when GORM has a pool that the plugin cannot stamp
// through.
type PoolError struct {
	Type string // the type of the pool
}

// Error names the pool and what to do.
func (e *PoolError) Error() string {
	return fmt.Sprintf("auditgorm: cannot stamp through a pool of type %s: open a *sql.DB with auditsql.Open and give it to GORM as postgres.Config.Conn, or use the plugin before what wraps the pool", e.Type)
}
