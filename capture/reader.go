package capture

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"strings"
	"sync"
	"time"

	"github.com/jackc/pglogrepl"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/hindsight-go/audit/internal/deadpeer"
	"github.com/hindsight-go/audit/internal/wal"
)

const (
	// defaultPrefix is what package audit stamps with. It is understood even where
	// another prefix is configured, for the services that have one of their own.
	defaultPrefix = "audit"

	// bemiPrefix is the prefix of the context messages of Bemi's published
	// clients, so that services in other languages feed the same history.
	bemiPrefix = "_bemi"

	// SyncSuffix behind the context prefix makes the prefix of a transactional
	// message that asks capture to store the checkpoint.
	SyncSuffix = "_sync"
	// RefreshSuffix behind the context prefix makes the prefix of a
	// non-transactional message that asks capture to look for new tables at once.
	RefreshSuffix = "_refresh"
)

const (
	// leaseRetry is how often a waiting instance asks for the slot.
	leaseRetry = 500 * time.Millisecond
	retryMin   = 200 * time.Millisecond
	retryMax   = 15 * time.Second
)

// Querier is what capture needs of a connection to the source's catalog.
type Querier interface {
	Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error)
	QueryRow(ctx context.Context, sql string, args ...any) pgx.Row
}

// State is what a Reader is doing.
type State string

// The states of a Reader.
const (
	Stopped   State = "stopped"
	Starting  State = "starting"
	Waiting   State = "waiting"   // another instance holds the slot
	Streaming State = "streaming" // this instance holds the slot
	Retrying  State = "retrying"  // something failed; it will be tried again
	Failed    State = "failed"    // something failed for good
)

// Config configures a Reader. All fields without a note are required.
type Config struct {
	// Connect holds the settings of a connection to the source; replication is
	// asked for by the Reader.
	Connect *pgconn.Config
	// BeforeConnect, optional, may change a copy of them before each connection.
	BeforeConnect func(ctx context.Context, config *pgconn.Config) error
	// Catalog answers questions about the source's tables.
	Catalog     Querier
	Slot        string
	Publication string
	// Prefix is that of the context messages, "audit" by default.
	Prefix string
	// MaxContext is how many bytes are kept of a context message that does not fit
	// into the read buffer of a megabyte: the default is 64 KiB.
	MaxContext int
	// MaxRow is how many bytes are kept of the values of one version of a row that
	// does not fit into the read buffer. The default is 16 MiB.
	MaxRow int
	// Wanted, optional, reports whether a table's changes are to be captured, whatever
	// the publication sends. Those of a schema that holds a history never are.
	Wanted func(schema, table string) bool
	// Policy, optional, tells how much of a column is stored.
	Policy wal.PolicyFunc
	// Prepare is called before every attempt to stream. It makes sure that there
	// is a slot to stream from and returns the checkpoint, with the system
	// identifier it belongs to.
	Prepare func(ctx context.Context) (Resume, error)
	// Open is called once the slot is held. It takes the store over and returns
	// the sink and the position up to which it holds everything. progress is to
	// be called after each piece of work the sink has done.
	Open func(ctx context.Context, progress func()) (Sink, LSN, error)
	// Structures, optional, returns what is known of the tables at the position that Open
	// returned, by OID, and the tokens by which our own messages about structures
	// are known. It is called after Open.
	Structures func(ctx context.Context) (known map[uint32]*Structure, tokens []string, err error)
	// Seen, optional, returns the last position until a given one at which all
	// tables were looked at, 0 if there was none.
	Seen func(until LSN) LSN
	// Recover, optional, is told the error that ended a session. It may return
	// another error, or wrap this one with Permanent.
	Recover func(ctx context.Context, err error) error
	// OnState, optional, is told of every change of state.
	OnState func(State, error)
	// OnRefresh, optional, is called when the stream carries a refresh message.
	OnRefresh func()
	// Logger is slog.Default() if nil.
	Logger *slog.Logger
}

// Resume is where streaming goes on.
type Resume struct {
	Position         LSN
	SystemIdentifier string
	// Timeline is that of the server that was looked at, or 0 if nobody looked.
	Timeline int32
	// Before, unless 0, ends the session in front of the transaction that committed
	// there, with an *UnsendableError once the sink holds what came earlier.
	Before LSN
	// Held reports whether another session streams from the slot at the moment. Asking
	// for it would only fill the server's log with errors.
	Held bool
}

// ErrSlotInUse is returned by an attempt to stream while another session, as a
// rule another instance of the program, holds the slot.
var ErrSlotInUse = errors.New("capture: slot is in use")

// ErrTimeline is returned by an attempt to stream from a server on another timeline
// than the one that was prepared: there was a failover in between.
var ErrTimeline = errors.New("capture: the server is on another timeline than a moment ago")

// ErrPublicationLost is returned when the server could not send changes because the
// publication did not exist when they were made.
var ErrPublicationLost = errors.New("capture: the publication did not exist when changes were made")

// UnsendableError is returned when the server fails at sending a change of the
// transaction that committed at Position. It will again, and never comes to what
// follows: somebody has to begin behind it.
type UnsendableError struct {
	Position LSN
	// Stored reports whether the sink holds everything that committed before.
	Stored bool
	Cause  error
}

func (e *UnsendableError) Error() string {
	return fmt.Sprintf("capture: the server cannot send the transaction at %s: %v", e.Position, e.Cause)
}

func (e *UnsendableError) Unwrap() error { return e.Cause }

// RetryAtOnce reports whether waiting is of no use.
func (e *UnsendableError) RetryAtOnce() bool { return e.Stored }

// SlotMovedError is returned when the slot that streams begins behind what the sink
// holds: somebody made it anew, or moved it, since it was looked at. What lies in
// between would be missing without a trace.
type SlotMovedError struct {
	Slot                string
	Confirmed, Position LSN
}

func (e *SlotMovedError) Error() string {
	return fmt.Sprintf("capture: slot %q begins at %s, the history ends at %s: the slot was made anew or moved", e.Slot, e.Confirmed, e.Position)
}

// SourceMismatchError is returned when the server is not the one that the
// checkpoint was made on: another cluster, or one restored to an earlier state.
// Going on would mix two histories, so capture stops.
type SourceMismatchError struct {
	Reason string
	Fix    string
}

func (e *SourceMismatchError) Error() string { return "capture: " + e.Reason + ": " + e.Fix }

// permanentError marks an error that trying again will not mend.
type permanentError struct{ err error }

func (e *permanentError) Error() string { return e.err.Error() }
func (e *permanentError) Unwrap() error { return e.err }

// Permanent marks an error that ends Run instead of being retried.
func Permanent(err error) error {
	if err == nil {
		return nil
	}
	return &permanentError{err}
}

// Reader keeps a stream from the source flowing into a sink: it takes the slot
// when it is free, streams, and starts over after a failure. It is used once.
type Reader struct {
	cfg      Config
	stopping chan struct{}
	stopOnce sync.Once
	advanced bool // the last session has stored something

	mu     sync.Mutex
	stream *stream // guarded by mu: of the session in progress
}

// New returns a Reader. Run starts it.
func New(cfg Config) *Reader {
	if cfg.Prefix == "" {
		cfg.Prefix = defaultPrefix
	}
	if cfg.MaxContext <= 0 {
		cfg.MaxContext = 64 << 10
	}
	if cfg.MaxRow <= 0 {
		cfg.MaxRow = 16 << 20
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.Default()
	}
	return &Reader{cfg: cfg, stopping: make(chan struct{})}
}

// Stop asks Run to end in order: nothing more is read but the rest of the open
// transaction, what was read is stored and confirmed. It does not wait.
func (r *Reader) Stop() { r.stopOnce.Do(func() { close(r.stopping) }) }

// Run captures until Stop is called or ctx ends. It returns nil after an orderly
// end, and an error only where trying again is of no use.
func (r *Reader) Run(ctx context.Context) error {
	backoff := retryMin
	for {
		r.state(Starting, nil)
		r.advanced = false
		err := r.session(ctx)
		if err == nil || ctx.Err() != nil || errors.Is(err, errStopped) {
			r.state(Stopped, nil)
			return nil //nolint:nilerr // what ctx has ended is no failure
		}
		if r.cfg.Recover != nil {
			err = r.cfg.Recover(ctx, err)
		}
		var permanent *permanentError
		if errors.As(err, &permanent) {
			r.state(Failed, permanent.err)
			return permanent.err
		}
		wait := leaseRetry
		var again interface{ RetryAtOnce() bool }
		switch {
		case errors.Is(err, ErrSlotInUse):
			r.state(Waiting, nil)
		case errors.As(err, &again) && again.RetryAtOnce():
			// Nothing is broken: the sink asks for the same again, to take it
			// differently.
			wait = time.Millisecond
			r.state(Retrying, err)
		default:
			if r.advanced {
				backoff = retryMin
			}
			wait, backoff = backoff, min(backoff*2, retryMax)
			r.state(Retrying, err)
		}
		// Jitter keeps many instances from asking in step.
		wait = wait/2 + rand.N(wait)
		timer := time.NewTimer(wait)
		select {
		case <-timer.C:
		case <-r.stopping:
			timer.Stop()
			r.state(Stopped, nil)
			return nil
		case <-ctx.Done():
			timer.Stop()
			r.state(Stopped, nil)
			return nil
		}
	}
}

func (r *Reader) state(s State, err error) {
	if r.cfg.OnState != nil {
		r.cfg.OnState(s, err)
	}
}

// session holds the slot once, for as long as it goes well.
func (r *Reader) session(ctx context.Context) error {
	resume, stream, err := r.begin(ctx)
	if err != nil {
		return err
	}
	defer stream.close()
	r.hold(stream)
	defer r.hold(nil)

	s := &session{
		cfg: &r.cfg, stream: stream,
		progress: make(chan struct{}, 1), stopping: r.stopping,
		charset: stream.charset, before: resume.Before, relations: make(map[uint32]*relationState), warned: make(map[uint32]bool), kinds: NewKinds(r.cfg.Catalog),
	}
	if err := r.cfg.Catalog.QueryRow(ctx, "SELECT pg_catalog.pg_snapshot_xmax(pg_catalog.pg_current_snapshot())::text::bigint").Scan(&s.xid); err != nil {
		return fmt.Errorf("read the current transaction id: %w", err)
	}
	s.sink, s.start, err = r.cfg.Open(ctx, func() {
		select {
		case s.progress <- struct{}{}:
		default:
		}
		stream.wake()
	})
	if err != nil {
		return err
	}
	defer s.sink.Close()
	s.confirmed, s.through = s.start, s.start
	if err := r.checkHeld(ctx, stream, s.start); err != nil {
		return err
	}
	s.structures = make(map[uint32]*wal.Structure)
	if r.cfg.Structures != nil {
		s.structures, s.tokens, err = r.cfg.Structures(ctx)
	}
	if err != nil {
		return err
	}
	r.state(Streaming, nil)
	err = s.run(ctx)
	r.advanced = s.sink.Durable() > s.start
	return err
}

// errStopped ends what Stop came in the midst of, while there was nothing to finish.
var errStopped = errors.New("capture: stopped")

// begin takes the slot. It may have to be made, which takes as long as others write:
// Stop does not wait for that.
func (r *Reader) begin(ctx context.Context) (Resume, *stream, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	begun := make(chan struct{})
	defer cancel(nil)
	defer close(begun)
	go func() {
		select {
		case <-r.stopping:
			cancel(errStopped)
		case <-begun:
		}
	}()
	resume, err := r.cfg.Prepare(ctx)
	if err == nil && resume.Held {
		err = ErrSlotInUse
	}
	var stream *stream
	if err == nil {
		stream, err = r.connect(ctx, resume)
	}
	if err != nil && errors.Is(context.Cause(ctx), errStopped) {
		err = errStopped
	}
	return resume, stream, err
}

func (r *Reader) hold(s *stream) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.stream = s
}

// checkHeld looks at the slot once nobody else can move it. What was seen of it
// before may have been another slot of the name, which begins later: the server
// streams from where a slot begins, whatever it is asked for.
func (r *Reader) checkHeld(ctx context.Context, held *stream, from LSN) error {
	var confirmed LSN
	var pid int
	err := r.cfg.Catalog.QueryRow(ctx, `
		SELECT coalesce(s.confirmed_flush_lsn, '0/0')::text, coalesce(s.active_pid, 0)
		FROM pg_catalog.pg_replication_slots s
		WHERE s.slot_name = $1`, r.cfg.Slot).Scan(&confirmed, &pid)
	if errors.Is(err, pgx.ErrNoRows) {
		return ErrNoSlot
	}
	if err != nil {
		return fmt.Errorf("look at slot %q: %w", r.cfg.Slot, err)
	}
	if confirmed > from {
		return &SlotMovedError{Slot: r.cfg.Slot, Confirmed: confirmed, Position: from}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	held.pid = pid
	return nil
}

// Holder returns the process of the server that streams to us, or 0.
func (r *Reader) Holder() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.stream == nil {
		return 0
	}
	return r.stream.pid
}

// Break ends the session in progress with an error, if it is the one that the given
// process of the server streams to: somebody has found out that it does not any
// more. The session is tried again like after any other error.
func (r *Reader) Break(holder int, reason error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.stream != nil && r.stream.pid == holder && holder != 0 {
		r.stream.fail(reason)
	}
}

// connect starts streaming from the slot, which is what holding it means.
func (r *Reader) connect(ctx context.Context, resume Resume) (*stream, error) {
	ctx, cancel := deadpeer.Bound(ctx)
	defer cancel()
	config := replicationConfig(r.cfg.Connect)
	if r.cfg.BeforeConnect != nil {
		if err := r.cfg.BeforeConnect(ctx, config); err != nil {
			return nil, fmt.Errorf("connect for replication: %w", err)
		}
	}
	pg, err := pgconn.ConnectConfig(ctx, config)
	if err != nil {
		return nil, fmt.Errorf("connect for replication: %w", err)
	}
	system, err := pglogrepl.IdentifySystem(ctx, pg)
	if err != nil {
		_ = pg.Close(context.WithoutCancel(ctx))
		return nil, fmt.Errorf("identify system: %w", err)
	}
	if err := CheckSource(system.SystemID, system.XLogPos, resume); err != nil {
		_ = pg.Close(context.WithoutCancel(ctx))
		return nil, Permanent(err)
	}
	if resume.Timeline != 0 && system.Timeline != resume.Timeline {
		_ = pg.Close(context.WithoutCancel(ctx))
		return nil, fmt.Errorf("%w: %d, not %d", ErrTimeline, system.Timeline, resume.Timeline)
	}
	charset, err := readCharset(ctx, pg)
	if err != nil {
		_ = pg.Close(context.WithoutCancel(ctx))
		return nil, err
	}
	if encoding := pg.ParameterStatus("server_encoding"); charset != nil || encoding == "SQL_ASCII" {
		// A SQL_ASCII database takes any bytes, others have bytes that UTF-8 has no
		// character for. The server would stop there, if it were asked for UTF-8.
		if _, err := pg.Exec(ctx, "SET client_encoding = "+quoteLiteral(encoding)).ReadAll(); err != nil {
			_ = pg.Close(context.WithoutCancel(ctx))
			return nil, fmt.Errorf("set encoding for replication: %w", err)
		}
	}
	stream, err := startStream(ctx, pg, r.cfg.Slot, r.cfg.Publication, resume.Position,
		limits{row: r.cfg.MaxRow, context: r.cfg.MaxContext, prefixes: []string{r.cfg.Prefix, defaultPrefix, bemiPrefix}})
	var pgErr *pgconn.PgError
	if errors.As(err, &pgErr) && pgErr.Code == "55006" {
		return nil, fmt.Errorf("%w: %w", ErrSlotInUse, err)
	}
	if err != nil {
		return nil, fmt.Errorf("start replication from slot %q: %w", r.cfg.Slot, err)
	}
	stream.charset = charset
	return stream, nil
}

// CheckSource returns a *SourceMismatchError unless a server with the given
// system identifier, whose WAL ends at end, is one on which to go on.
func CheckSource(systemIdentifier string, end LSN, resume Resume) error {
	switch {
	case resume.SystemIdentifier != systemIdentifier:
		return &SourceMismatchError{
			Reason: fmt.Sprintf("the history was captured from the cluster with system identifier %s, this server is %s", resume.SystemIdentifier, systemIdentifier),
			Fix:    "point SourceURL at the cluster that the history belongs to, or keep this cluster's history in a schema of its own (Config.Schema)",
		}
	case resume.Position > end:
		// The server accepts such a position silently and then skips whatever it
		// writes up to there.
		return &SourceMismatchError{
			Reason: fmt.Sprintf("the history reaches to %s, the server's WAL only to %s: it was restored to an earlier state", resume.Position, end),
			Fix:    "keep what follows in a schema of its own (Config.Schema); what the old history says after the restored moment did not happen here",
		}
	}
	return nil
}

// IsPublicationLost reports whether the server could not decode because the
// publication did not exist when the change was made: it was dropped, or
// recreated, under the slot.
func IsPublicationLost(err error) bool {
	var pgErr *pgconn.PgError
	return errors.Is(err, ErrPublicationLost) || errors.As(err, &pgErr) && pgErr.Code == "42704" && strings.HasPrefix(pgErr.Message, "publication ")
}
