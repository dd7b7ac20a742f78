package audit

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"go.opentelemetry.io/otel/trace"

	"github.com/hindsight-go/audit/capture"
	"github.com/hindsight-go/audit/internal/deadpeer"
	"github.com/hindsight-go/audit/internal/history"
	"github.com/hindsight-go/audit/store"
)

// Client is the handle on one source and its history: it captures, and it
// answers. All its methods are safe for concurrent use.
//
// A Client need not be started to ask for history, so a separate program can
// serve it.
type Client struct {
	cfg     resolved
	history *history.History
	links   connections // of all pools
	// sourceLink and storeLink tell whether there is a pooler in between.
	sourceLink, storeLink *sessionLink

	setup   *capture.Setup
	metrics *instruments
	tracer  trace.Tracer // nil: nobody wants spans

	starting sync.Mutex // held by Start throughout, so that two calls are one

	mu      sync.Mutex
	run     *run // guarded by mu: the latest capture, nil before Start
	last    view // guarded by mu: what Status shows
	types   columnTypes
	abort   context.CancelFunc // guarded by mu: ends the latest Start, whatever it is doing
	closing chan struct{}      // closed by the first Close, under mu

	directRows int // from how many rows on reverts are tried directly

	stored   *broadcast // told whenever something was stored
	barriers barriers
	tail     tail
	poke     chan struct{}
	turn     chan struct{} // of one place: whose turn it is to set up
}

// Open checks cfg and returns a Client. It does not connect: a server that is
// away is no reason for the program not to start. Close it when done.
//
// The error joins a *ConfigError for every problem of cfg.
func Open(ctx context.Context, cfg Config) (*Client, error) {
	r, err := cfg.resolve()
	if err != nil {
		return nil, err
	}
	c := &Client{cfg: r, history: &history.History{Schema: r.Schema}, directRows: directRows, closing: make(chan struct{}), stored: newBroadcast(), poke: make(chan struct{}, 1), turn: make(chan struct{}, 1)}
	c.last.state = capture.Stopped
	c.tail.client, c.tail.feeding = c, make(chan struct{}, 1)
	if c.metrics, err = newInstruments(r.MeterProvider, c); err != nil {
		return nil, err
	}
	if r.TracerProvider != nil {
		c.tracer = r.TracerProvider.Tracer("github.com/hindsight-go/audit")
	}
	// Sessions of our own, so that the settings they need disturb nobody.
	pools := []*pgxpool.Config{r.source, r.store}
	if r.read != nil {
		pools = append(pools, r.read)
	}
	for _, pool := range pools {
		for name, value := range sessionSettings {
			pool.ConnConfig.RuntimeParams[name] = value
		}
		deadpeer.Guard(&pool.ConnConfig.Config)
		pool.ConnConfig.Tracer = deadpeer.Tracer{}
		pool.PingTimeout = deadpeer.ConnectTimeout
	}
	// A part of history must not pass for the whole of it.
	r.store.ConnConfig.RuntimeParams["row_security"] = "off"
	c.sourceLink, c.storeLink = linkSession(r.source), linkSession(r.store)
	if r.read != nil {
		linkSession(r.read)
	}
	c.links.open = make(map[*pgx.Conn]struct{})
	for _, config := range []*pgxpool.Config{r.source, r.store, r.read} {
		if config != nil {
			c.links.follow(config)
		}
	}
	r.source.MaxConns = 4
	// Questions to the source are few. Asking first whether the connection is
	// still there spares the caller an error after a restart of the server.
	r.source.ShouldPing = func(context.Context, pgxpool.ShouldPingParams) bool { return true }
	if c.history.Source, err = pgxpool.NewWithConfig(ctx, r.source); err != nil {
		return nil, fmt.Errorf("audit: open source: %w", err)
	}
	if c.history.Store, err = pgxpool.NewWithConfig(ctx, r.store); err != nil {
		c.history.Source.Close()
		return nil, fmt.Errorf("audit: open store: %w", err)
	}
	if err := c.openLongHeld(ctx); err != nil {
		c.history.Source.Close()
		c.history.Store.Close()
		return nil, err
	}
	c.history.Kinds = capture.NewKinds(c.history.Source)
	c.history.Records = store.New(c.history.Store, r.Schema, store.Roles{Owner: r.StoreRoles.Owner})
	c.setup = &capture.Setup{
		DB: c.history.Source, Slot: r.Slot, Publication: r.Publication, Patterns: r.patterns,
		StoreSchema: r.Schema, Logger: r.Logger,
	}
	return c, nil
}

// longHeld bounds the questions about the past that are answered at one time.
const longHeld = 16

// openLongHeld opens the pools whose connections are held while others are used.
// They connect when they are needed.
func (c *Client) openLongHeld(ctx context.Context) (err error) {
	source := c.cfg.source.Copy()
	if c.cfg.read != nil {
		source = c.cfg.read.Copy()
	}
	c.history.Reading = c.history.Source
	if c.cfg.read != nil {
		reading := source.Copy()
		reading.MaxConns = 4
		if c.history.Reading, err = pgxpool.NewWithConfig(ctx, reading); err != nil {
			return fmt.Errorf("audit: open source: %w", err)
		}
	}
	source.MaxConns = longHeld
	source.ConnConfig.Tracer = viewTracer{}
	if c.history.SourceLong, err = pgxpool.NewWithConfig(ctx, source); err != nil {
		return fmt.Errorf("audit: open source: %w", err)
	}
	store := c.cfg.store.Copy()
	store.MaxConns = longHeld
	if c.history.StoreLong, err = pgxpool.NewWithConfig(ctx, store); err != nil {
		c.history.SourceLong.Close()
		return fmt.Errorf("audit: open store: %w", err)
	}
	listings := c.cfg.store.Copy()
	listings.ConnConfig.RuntimeParams["row_security"] = "on"
	if c.history.Listings, err = pgxpool.NewWithConfig(ctx, listings); err != nil {
		c.history.SourceLong.Close()
		c.history.StoreLong.Close()
		return fmt.Errorf("audit: open store: %w", err)
	}
	return nil
}

// reader is the role that the past is read with.
func (c *Client) reader() string {
	if c.cfg.read != nil {
		return c.cfg.read.ConnConfig.User
	}
	return c.cfg.source.ConnConfig.User
}

// sessionSettings pin what a role or a database may have for its default, and
// what would then turn against us.
var sessionSettings = map[string]string{
	"application_name":                    "audit",
	"timezone":                            "UTC",
	"datestyle":                           "ISO",
	"client_encoding":                     "UTF8",
	"standard_conforming_strings":         "on",
	"statement_timeout":                   "0",
	"lock_timeout":                        "0",
	"idle_in_transaction_session_timeout": "0",
	"default_transaction_read_only":       "off",
	"default_transaction_isolation":       "read committed",
	"search_path":                         "pg_catalog",
	"quote_all_identifiers":               "off",
	"array_nulls":                         "on",
	"xmloption":                           "content",
	// Compiling is dear, and what we ask looks dearer to the planner than it is.
	"jit": "off",
}

// Close stops capture at once if it runs, and closes all connections. Stop first
// for an orderly end. What waits for capture returns [ErrClosed], and so does everything
// that is asked from then on; Close waits for what is being answered, for five seconds
// at most, and what then still waits for a server returns [ErrClosed], too. A revert that
// this happens to is rolled back, unless it was already committing.
func (c *Client) Close() {
	late := time.AfterFunc(closePatience, c.links.cut)
	defer late.Stop()
	c.mu.Lock()
	if c.open() == nil {
		close(c.closing)
	}
	if c.abort != nil {
		c.abort()
	}
	c.mu.Unlock()
	c.starting.Lock() // a Start in progress ends first
	defer c.starting.Unlock()
	if r := c.running(); r != nil {
		<-r.done
	}
	c.metrics.close()
	if c.history.Reading != c.history.Source {
		c.history.Reading.Close()
	}
	for _, pool := range []*pgxpool.Pool{c.history.Source, c.history.Store, c.history.SourceLong, c.history.StoreLong, c.history.Listings} {
		pool.Close()
	}
}

var defaultClient atomic.Pointer[Client]

// SetDefault makes client the one that the package-level functions work on.
func SetDefault(client *Client) { defaultClient.Store(client) }

// Default returns the client that SetDefault set, or nil.
func Default() *Client { return defaultClient.Load() }

func withDefault(do func(*Client) error) error {
	c := Default()
	if c == nil {
		return ErrNoDefaultClient
	}
	return do(c)
}

// Start is Client.Start on the default client.
func Start(ctx context.Context) error {
	return withDefault(func(c *Client) error { return c.Start(ctx) })
}

// Run is Client.Run on the default client.
func Run(ctx context.Context) error {
	return withDefault(func(c *Client) error { return c.Run(ctx) })
}

// Stop is Client.Stop on the default client.
func Stop(ctx context.Context) error {
	return withDefault(func(c *Client) error { return c.Stop(ctx) })
}

// Sync is Client.Sync on the default client.
func Sync(ctx context.Context) error {
	return withDefault(func(c *Client) error { return c.Sync(ctx) })
}

// Refresh is Client.Refresh on the default client.
func Refresh(ctx context.Context) error {
	return withDefault(func(c *Client) error { return c.Refresh(ctx) })
}

// CurrentStatus is Client.Status on the default client.
func CurrentStatus(ctx context.Context) (Status, error) {
	var s Status
	err := withDefault(func(c *Client) (err error) {
		s, err = c.Status(ctx)
		return err
	})
	return s, err
}

// broadcast wakes everybody who waits for the next of a series of events.
type broadcast struct {
	mu sync.Mutex
	ch chan struct{} // guarded by mu: closed and replaced at every event
}

func newBroadcast() *broadcast { return &broadcast{ch: make(chan struct{})} }

// next returns a channel that is closed at the next event.
func (b *broadcast) next() <-chan struct{} {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.ch
}

func (b *broadcast) send() {
	b.mu.Lock()
	defer b.mu.Unlock()
	close(b.ch)
	b.ch = make(chan struct{})
}
