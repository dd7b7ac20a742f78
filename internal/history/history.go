package history

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/hindsight-go/audit/capture"
	"github.com/hindsight-go/audit/internal/pgcatalog"
	"github.com/hindsight-go/audit/internal/wal"
	"github.com/hindsight-go/audit/store"
)

// History is what every question about the history needs: the pools, what the store and the
// catalog say, remembered for a moment. It is safe for concurrent use.
type History struct {
	Source *pgxpool.Pool
	Store  *pgxpool.Pool
	// Whoever holds one of their connections for longer asks the pools above
	// meanwhile: of one pool, a few at once would wait for each other.
	SourceLong *pgxpool.Pool // of the source
	StoreLong  *pgxpool.Pool // of the store
	// Reading is source, or of the role of Config.ReadURL: for what runs code of the
	// source's.
	Reading *pgxpool.Pool
	// Listings is of the store, for what a role lists of it: row-level security
	// applies there, and is an error in the others.
	Listings *pgxpool.Pool
	Records  *store.Store
	Kinds    *capture.Kinds // of the source's types
	Schema   string         // of the store

	mu sync.Mutex
	// guarded by mu: what time travel asks for again and again
	database string
	known    remembered
}

// factsAge is how long what the store knows beside the changes may be used again.
// Nothing of it changes for moments that are long past, but for coverage that
// turns out to have ended: that is found out every few seconds.
const factsAge = time.Second

// remembered is the facts at some moment, and what the source's catalog said of
// tables since, by OID.
type remembered struct {
	facts  *store.Facts
	read   time.Time
	tables map[uint32]*pgcatalog.Table
}

// Forget has the next question read the facts anew.
func (h *History) Forget() {
	h.mu.Lock()
	h.known = remembered{}
	h.mu.Unlock()
}

// Relation returns the name of one of the store's tables, for use in SQL.
func (h *History) Relation(name string) string {
	return pgx.Identifier{h.Schema, name}.Sanitize()
}

// SourceTime returns the time by the source's clock, which commit times are by.
func (h *History) SourceTime(ctx context.Context) (time.Time, error) {
	var now time.Time
	if err := h.Source.QueryRow(ctx, "SELECT pg_catalog.clock_timestamp()").Scan(&now); err != nil {
		return now, fmt.Errorf("read the source's clock: %w", err)
	}
	return now, nil
}

// Position returns where the source is.
func (h *History) Position(ctx context.Context) (wal.LSN, error) {
	var here wal.LSN
	if err := h.Source.QueryRow(ctx, "SELECT pg_catalog.pg_current_wal_insert_lsn()::text").Scan(&here); err != nil {
		return 0, fmt.Errorf("read position: %w", err)
	}
	return here, nil
}

// Database returns the name of the source's database, the key of everything
// in the store. It never changes.
func (h *History) Database(ctx context.Context) (string, error) {
	h.mu.Lock()
	name := h.database
	h.mu.Unlock()
	if name != "" {
		return name, nil
	}
	if err := h.Source.QueryRow(ctx, "SELECT pg_catalog.current_database()").Scan(&name); err != nil {
		return "", OpError("ask the source for its name", err)
	}
	h.mu.Lock()
	h.database = name
	h.mu.Unlock()
	return name, nil
}

// Facts returns the facts as of a moment ago.
func (h *History) Facts(ctx context.Context, database string) (*store.Facts, error) {
	h.mu.Lock()
	known := h.known
	h.mu.Unlock()
	if known.facts != nil && time.Since(known.read) < factsAge {
		return known.facts, nil
	}
	return h.FreshFacts(ctx, database)
}

// FreshFacts reads the facts.
func (h *History) FreshFacts(ctx context.Context, database string) (*store.Facts, error) {
	read := time.Now()
	facts, err := h.Records.Facts(ctx, database)
	switch {
	case errors.Is(err, store.ErrNoCheckpoint), IsUndefined(err):
		return nil, ErrNoHistory
	case err != nil:
		return nil, OpError("read facts of history", err)
	}
	h.mu.Lock()
	h.known = remembered{facts: &facts, read: read, tables: make(map[uint32]*pgcatalog.Table)}
	h.mu.Unlock()
	return &facts, nil
}

// Table describes a table as it was a moment ago; nil if it is gone.
func (h *History) Table(ctx context.Context, oid uint32) (*pgcatalog.Table, error) {
	h.mu.Lock()
	table, ok := h.known.tables[oid]
	h.mu.Unlock()
	if ok {
		return table, nil
	}
	return h.FreshTable(ctx, oid)
}

// FreshTable describes a table as it is; nil if it is gone.
func (h *History) FreshTable(ctx context.Context, oid uint32) (*pgcatalog.Table, error) {
	table, err := pgcatalog.Describe(ctx, h.Source, h.Kinds, oid)
	if err != nil && !errors.Is(err, pgcatalog.ErrNoTable) {
		return nil, OpError("describe table", err)
	}
	h.mu.Lock()
	if h.known.tables != nil {
		h.known.tables[oid] = table
	}
	h.mu.Unlock()
	return table, nil
}
