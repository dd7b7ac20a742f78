// Package store keeps the history: the changes table and what belongs to it.
//
// It makes and migrates its own schema ([Store.Migrate]), appends what capture
// reads exactly once ([Store.NewWriter]), and answers for how far the history
// reaches: checkpoints, the coverage of each table, gaps and retention. It knows
// nothing of replication; package capture knows nothing of tables. The record
// they share is internal/wal.
package store

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/hindsight-go/audit/internal/deadpeer"
	"github.com/hindsight-go/audit/internal/wal"
)

// DefaultSchema is the schema of a store that is not told another.
const DefaultSchema = "audit"

// Store is a history in one schema of one database. It is safe for concurrent
// use.
type Store struct {
	pool   *pgxpool.Pool
	name   string
	schema string // quoted
	roles  Roles

	mu         sync.Mutex
	characters map[rune]bool          // guarded by mu: beyond ASCII, of an encoding of one byte
	holders    map[string]SetupHolder // guarded by mu: as which this process set up last, by database
}

// New returns the store in the given schema of the pool's database. roles are those of a
// store with least rights, of which the Writer is the pool's. It does not connect.
func New(pool *pgxpool.Pool, schema string, roles Roles) *Store {
	return &Store{pool: pool, name: schema, schema: pgx.Identifier{schema}.Sanitize(), roles: roles, holders: make(map[string]SetupHolder)}
}

// Checkpoint is the position up to which the store holds everything of a source.
type Checkpoint struct {
	Database         string
	Slot             string
	SystemIdentifier string
	Timeline         int32
	Position         wal.LSN
	Epoch            int64
	// Verified is a position at which all covered tables were seen in the publication, or 0.
	Verified wal.LSN
	// CommittedAt is the running maximum of commit times; zero before the first
	// change.
	CommittedAt time.Time
	Changes     int64
	UpdatedAt   time.Time
}

// ErrNoCheckpoint is returned when the store holds nothing of a source yet.
var ErrNoCheckpoint = errors.New("store: no checkpoint")

// Checkpoint returns the checkpoint of a source database, or ErrNoCheckpoint.
func (s *Store) Checkpoint(ctx context.Context, database string) (Checkpoint, error) {
	c := Checkpoint{Database: database}
	var committed *time.Time
	err := s.pool.QueryRow(ctx, `
		SELECT slot, system_identifier, timeline, position::text, epoch, coalesce(verified, '0/0')::text, committed_at, changes, updated_at
		FROM `+s.schema+`.checkpoints
		WHERE database = $1`, database).
		Scan(&c.Slot, &c.SystemIdentifier, &c.Timeline, &c.Position, &c.Epoch, &c.Verified, &committed, &c.Changes, &c.UpdatedAt)
	if errors.Is(err, pgx.ErrNoRows) {
		return c, ErrNoCheckpoint
	}
	if err != nil {
		return c, fmt.Errorf("read checkpoint of %q: %w", database, err)
	}
	if committed != nil {
		c.CommittedAt = *committed
	}
	return c, nil
}

// Checkpoints returns, of the checkpoint of each source database, what tells it from
// others.
func (s *Store) Checkpoints(ctx context.Context) ([]Checkpoint, error) {
	rows, err := s.pool.Query(ctx, "SELECT database, slot, system_identifier FROM "+s.schema+".checkpoints ORDER BY database")
	if err != nil {
		return nil, fmt.Errorf("read checkpoints: %w", err)
	}
	all, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (c Checkpoint, err error) {
		err = row.Scan(&c.Database, &c.Slot, &c.SystemIdentifier)
		return c, err
	})
	if err != nil {
		return nil, fmt.Errorf("read checkpoints: %w", err)
	}
	return all, nil
}

// CreateCheckpoint records where the history of a source begins, and when, by the
// source's clock. It does nothing if there is a checkpoint already.
func (s *Store) CreateCheckpoint(ctx context.Context, c Checkpoint, at time.Time) error {
	_, err := s.pool.Exec(ctx, `
		INSERT INTO `+s.schema+`.checkpoints (database, slot, system_identifier, timeline, position, created_at)
		VALUES ($1, $2, $3, $4, $5, $6)
		ON CONFLICT (database) DO NOTHING`,
		c.Database, c.Slot, c.SystemIdentifier, c.Timeline, c.Position.String(), at)
	if err != nil {
		return fmt.Errorf("create checkpoint of %q: %w", c.Database, err)
	}
	return nil
}

// SetTimeline records that the source goes on on another timeline.
func (s *Store) SetTimeline(ctx context.Context, database string, timeline int32) error {
	_, err := s.pool.Exec(ctx, `SELECT `+s.schema+`.set_timeline($1, $2)`, database, timeline)
	if err != nil {
		return fmt.Errorf("record timeline of %q: %w", database, err)
	}
	return nil
}

// SetVerified records that all covered tables were in the publication at a position. An
// earlier one than is recorded changes nothing.
func (s *Store) SetVerified(ctx context.Context, by SetupHolder, at wal.LSN) error {
	_, err := s.pool.Exec(ctx, `SELECT `+s.schema+`.set_verified($1, $2, $3)`, by.Database, by.token, at.String())
	if err != nil {
		return fmt.Errorf("record what was seen of %q: %w", by.Database, fenced(err))
	}
	return nil
}

// NewWriter takes the source over from whoever wrote before and returns a
// writer that goes on at the returned position. Earlier writers are fenced from
// then on.
func (s *Store) NewWriter(ctx context.Context, cfg WriterConfig) (*Writer, wal.LSN, error) {
	if cfg.MaxContext <= 0 {
		cfg.MaxContext = 64 << 10
	}
	if cfg.MaxRow <= 0 || cfg.MaxRow > MaxImage {
		cfg.MaxRow = MaxImage
	}
	w := &Writer{
		cfg: cfg, enc: encoder{limit: cfg.MaxRow, secret: cfg.DigestKey}, store: s, schema: s.schema,
		plans: make(map[uint32]*relationPlan),
		work:  make(chan step, 64), free: make(chan []byte, chunks),
		done: make(chan struct{}),
	}
	var committed *time.Time
	var ended int
	// The writer before may be asleep in the midst of a COPY, with rows that ours
	// would wait for: its session is ended, which its role may do.
	err := s.pool.QueryRow(ctx, `
		SELECT t.at::text, t.held, t.through_time, (
			SELECT count(pg_catalog.pg_terminate_backend(a.pid))
			FROM pg_catalog.pg_stat_activity a
			WHERE a.pid = t.pid AND a.backend_start = t.started AND a.usename = current_user)
		FROM `+s.schema+`.take_over($1) t`, cfg.Database).
		Scan(&w.from, &w.epoch, &committed, &ended)
	if errors.Is(err, pgx.ErrNoRows) {
		return nil, 0, ErrNoCheckpoint
	}
	if err != nil {
		return nil, 0, fmt.Errorf("take over checkpoint of %q: %w", cfg.Database, err)
	}
	w.batch = openBatch{to: w.from, committed: noTime}
	if committed != nil {
		w.batch.committed = wal.Microseconds(*committed)
	}
	w.durable.Store(uint64(w.from))
	for range chunks {
		w.free <- make([]byte, 0, chunkSize+chunkSize/4)
	}
	config, err := s.writerConfig(ctx)
	if err != nil {
		return nil, 0, fmt.Errorf("connect writer to the store: %w", err)
	}
	connecting, connected := deadpeer.Bound(ctx)
	w.conn, err = newCopyConn(connecting, config, "COPY "+s.schema+".changes ("+copyColumns+") FROM STDIN (FORMAT binary)")
	connected()
	if err != nil {
		return nil, 0, fmt.Errorf("connect writer to the store: %w", err)
	}
	w.conn.working = s.sessionWorks
	w.enc.literal = w.conn.encoding == "SQL_ASCII"
	if w.characters, err = s.knownCharacters(ctx, w.conn.encoding); err != nil {
		w.conn.abort()
		return nil, 0, err
	}
	_, err = s.pool.Exec(ctx, `
		SELECT `+s.schema+`.name_writer($1, $2, a.pid, a.backend_start)
		FROM pg_catalog.pg_stat_activity a
		WHERE a.pid = $3`, cfg.Database, w.epoch, w.conn.pid)
	if err != nil {
		w.conn.abort()
		return nil, 0, fmt.Errorf("take over checkpoint of %q: %w", cfg.Database, err)
	}
	go w.run()
	return w, w.from, nil
}

// sessionWorks reports whether a session is at work, and not waiting for us.
func (s *Store) sessionWorks(ctx context.Context, pid int) (works bool, err error) {
	err = s.pool.QueryRow(ctx, `
		SELECT EXISTS (
			SELECT FROM pg_catalog.pg_stat_activity
			WHERE pid = $1 AND state = 'active' AND coalesce(wait_event_type, '') <> 'Client')`, pid).Scan(&works)
	if err != nil {
		return false, fmt.Errorf("look at the writer's session: %w", err)
	}
	return works, nil
}

// knownCharacters returns the characters beyond ASCII of an encoding of one byte a
// character, or nil for others.
func (s *Store) knownCharacters(ctx context.Context, encoding string) (map[rune]bool, error) {
	switch encoding {
	case "UTF8", "SQL_ASCII", "EUC_JP", "EUC_CN", "EUC_KR", "EUC_TW", "EUC_JIS_2004", "MULE_INTERNAL":
		return nil, nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.characters != nil {
		return s.characters, nil
	}
	known := make(map[rune]bool)
	for code := 0x80; code <= 0xff; code++ {
		var char string
		err := s.pool.QueryRow(ctx, "SELECT pg_catalog.chr($1)", code).Scan(&char)
		var pgErr *pgconn.PgError
		switch {
		case errors.As(err, &pgErr) && pgErr.Code == "22P05":
		case err != nil:
			return nil, fmt.Errorf("ask for the characters of the store's encoding: %w", err)
		default:
			for _, r := range char {
				known[r] = true
			}
		}
	}
	s.characters = known
	return known, nil
}

func quoteLiteral(s string) string {
	// standard_conforming_strings is pinned on the writer's connection.
	return "'" + strings.ReplaceAll(s, "'", "''") + "'"
}

func arrayLiteral(items []string) string {
	quoted := make([]string, len(items))
	for i, item := range items {
		quoted[i] = quoteLiteral(item)
	}
	return "ARRAY[" + strings.Join(quoted, ", ") + "]::text[]"
}

func timeLiteral(micros int64) string {
	return "'" + wal.Time(micros).Format("2006-01-02 15:04:05.000000+00") + "'"
}

func uintText(v uint32) string { return strconv.FormatUint(uint64(v), 10) }

// writerConfig returns the connection settings of the writer, with everything
// pinned that a role or database default could turn against it.
func (s *Store) writerConfig(ctx context.Context) (*pgconn.Config, error) {
	pool := s.pool.Config()
	if pool.BeforeConnect != nil {
		if err := pool.BeforeConnect(ctx, pool.ConnConfig); err != nil {
			return nil, err
		}
	}
	config := pool.ConnConfig.Config.Copy()
	dial := config.DialFunc
	for name, value := range map[string]string{
		"application_name":                    "audit writer",
		"client_encoding":                     "UTF8",
		"standard_conforming_strings":         "on",
		"search_path":                         "pg_catalog",
		"datestyle":                           "ISO",
		"statement_timeout":                   "0",
		"lock_timeout":                        "0",
		"idle_in_transaction_session_timeout": "0",
		"default_transaction_read_only":       "off",
		"default_transaction_isolation":       "read committed",
	} {
		config.RuntimeParams[name] = value
	}
	deadpeer.Guard(config)
	config.DialFunc = dial // the pool's, which is guarded, or the caller's own
	return config, nil
}
