package audit

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/hindsight-go/audit/capture"
	"github.com/hindsight-go/audit/internal/history"
	"github.com/hindsight-go/audit/store"
)

// State is what capture is doing; see the constants of package capture.
type State = capture.State

// LSN is a position in the source's write-ahead log.
type LSN = capture.LSN

// Status is how capture and its history stand. Positions and lags are of the
// moment the source was asked.
type Status struct {
	// State is that of this instance; Err why it retries or has failed.
	State State `json:"state"`
	Err   error `json:"error,omitempty"`
	// Database is the source database's name, Slot that of the replication slot.
	Database string `json:"database"`
	// Position is up to where the store holds everything; SourcePosition is
	// where the source is. LagBytes is the WAL in between, which may hold nothing
	// that concerns us.
	Position       LSN   `json:"position"`
	SourcePosition LSN   `json:"sourcePosition"`
	LagBytes       int64 `json:"lagBytes"`
	// CommittedAt is the latest commit time that the store has seen.
	CommittedAt time.Time `json:"committedAt,omitzero"`
	// Changes counts the changes stored since the history began.
	Changes int64      `json:"changes"`
	Slot    SlotStatus `json:"slot"`
	// Warnings say what is not wrong yet, or keeps a part of the work waiting.
	Warnings []Warning `json:"warnings,omitempty"`
	// Gaps are the holes in the history, oldest first.
	Gaps []Gap `json:"gaps"`
	// Tables are the tables tracked now, those waiting for a lock, and those that
	// were tracked once.
	Tables []TableStatus `json:"tables"`
}

// Warning is a state that an operator should know of. Capture goes on.
type Warning struct {
	Code WarningCode `json:"code"`
	// Text says what it is, and how to mend it.
	Text string `json:"text"`
}

// WarningCode is the kind of a Warning.
type WarningCode string

// The kinds of warnings.
const (
	// WarningSetupWaits: new tables and lost slots wait for the lock on setting up,
	// which somebody else holds.
	WarningSetupWaits WarningCode = "setup-waits"
	// WarningWALUnbounded: nothing keeps the slot from filling the source's disk with
	// WAL while nobody captures, which stops the source.
	WarningWALUnbounded WarningCode = "wal-unbounded"
	// WarningWALNearBound: the source is about to give up the slot, which leaves a gap.
	WarningWALNearBound WarningCode = "wal-near-bound"
	// WarningHolderStalls: the instance that captures makes no progress, though there is
	// something to capture. An instance that waits sees it.
	WarningHolderStalls WarningCode = "holder-stalls"
	// WarningIdleSlot: the source gives up a slot that nobody reads from for a while.
	WarningIdleSlot WarningCode = "idle-slot-timeout"
)

// walWarnings are what the state of a slot, and the bounds of the server, warn of.
func walWarnings(slot capture.Slot) (warnings []Warning) {
	warn := func(code WarningCode, format string, args ...any) {
		warnings = append(warnings, Warning{Code: code, Text: fmt.Sprintf(format, args...)})
	}
	switch {
	case slot.Bound < 0:
		warn(WarningWALUnbounded, "max_slot_wal_keep_size is -1: while nobody captures, slot %q fills the source's disk with WAL, which stops the source: set it, for instance to a third of the disk, or Config.MaxRetainedWAL", slot.Name)
	case slot.Status == "unreserved" || slot.Safe >= 0 && slot.Safe < slot.Bound/5:
		warn(WarningWALNearBound, "the source keeps %d bytes of WAL for slot %q and gives it up at about %d (max_slot_wal_keep_size): what is not captured by then is a gap", slot.Retained, slot.Name, slot.Bound)
	}
	if slot.IdleTimeout > 0 {
		warn(WarningIdleSlot, "idle_replication_slot_timeout is %s: after so long without capture the source gives up slot %q, which leaves a gap", slot.IdleTimeout, slot.Name)
	}
	return warnings
}

// SlotStatus is the state of the replication slot.
type SlotStatus struct {
	Name   string `json:"name"`
	Exists bool   `json:"exists"`
	// Active reports whether some instance streams from it.
	Active bool `json:"active"`
	// Status is pg_replication_slots.wal_status: reserved, extended, unreserved,
	// lost.
	Status string `json:"status"`
	// RetainedBytes is the WAL that the source keeps for the slot. A long open
	// transaction anywhere in the cluster holds it, too.
	RetainedBytes int64 `json:"retainedBytes"`
	// BoundBytes is max_slot_wal_keep_size: beyond it the source gives up the slot. -1
	// without a bound. SafeBytes is how much WAL there may be until then, or -1.
	BoundBytes int64 `json:"boundBytes"`
	SafeBytes  int64 `json:"safeBytes"`
}

// TableStatus says from when, and until when, a table is tracked.
type TableStatus struct {
	Schema   string    `json:"schema"`
	Table    string    `json:"table"`
	From     LSN       `json:"from,omitzero"`
	FromTime time.Time `json:"fromTime,omitzero"`
	// Until is zero while the table is tracked.
	Until     LSN       `json:"until,omitzero"`
	UntilTime time.Time `json:"untilTime,omitzero"`
	// Pending is why the table is not tracked yet, or nil.
	Pending error `json:"pending,omitempty"`
}

// Gap is a hole in the history that cannot be filled.
type Gap = store.Gap

// view is what Status shows of the running capture.
type view struct {
	state   capture.State
	err     error
	facts   capture.Facts
	durable LSN
	lag     int64
	lagTime time.Duration
	slot    capture.Slot
	pending []capture.Pending
	// setup is who keeps this instance from setting up, or nil.
	setup *store.SetupLockedError
	// stall is how the holder of the slot stood when it was seen last.
	stall stall
	// published tells until when tables were seen to be published.
	published publishedUntil
	// straddled are, by OID of tables that are not covered yet, the transactions that
	// were writing to them when they were first seen in the publication.
	straddled map[uint32][]string
}

func (c *Client) state() State {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.last.state
}

func (c *Client) setPending(pending []capture.Pending) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.last.pending = pending
}

func (c *Client) durable() LSN {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.last.durable
}

func (c *Client) setDurable(lsn LSN) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.last.durable = max(c.last.durable, lsn)
}

func (c *Client) onStored(b store.Batch) {
	c.barriers.stored(b.Barriers)
	c.mu.Lock()
	c.last.durable = max(c.last.durable, b.To)
	if b.Changes > 0 {
		c.last.lagTime = max(0, time.Since(b.Committed))
	}
	c.mu.Unlock()
	c.metrics.stored(b)
	c.spanOfBatch(b, nil)
}

// Status asks the source and the store how capture and its history stand. It
// works on a client that was not started, too. Where the source or the store
// does not answer, it returns what is known and the error.
func (c *Client) Status(ctx context.Context) (Status, error) {
	if err := c.open(); err != nil {
		return Status{State: capture.Stopped}, err
	}
	c.mu.Lock()
	v := c.last
	v.pending = slices.Clone(v.pending)
	c.mu.Unlock()
	s := Status{State: v.state, Err: v.err, Position: v.durable, Slot: SlotStatus{Name: c.cfg.Slot}}
	if err := c.history.Source.QueryRow(ctx, "SELECT current_database(), (CASE WHEN pg_catalog.pg_is_in_recovery() THEN pg_catalog.pg_last_wal_replay_lsn() ELSE pg_catalog.pg_current_wal_flush_lsn() END)::text").Scan(&s.Database, &s.SourcePosition); err != nil {
		return s, fmt.Errorf("audit: status: ask the source: %w", err)
	}
	if v.setup != nil {
		s.Warnings = append(s.Warnings, Warning{Code: WarningSetupWaits, Text: v.setup.Error()})
	}
	if v.stall.warning != "" {
		s.Warnings = append(s.Warnings, Warning{Code: WarningHolderStalls, Text: v.stall.warning})
	}
	slot, err := c.setup.SlotState(ctx)
	if err != nil && !errors.Is(err, capture.ErrNoSlot) {
		return s, fmt.Errorf("audit: status: %w", err)
	}
	s.Slot.Exists = err == nil
	s.Slot.Active, s.Slot.Status, s.Slot.RetainedBytes = slot.Active, slot.Status, slot.Retained
	s.Slot.BoundBytes, s.Slot.SafeBytes = slot.Bound, slot.Safe
	if s.Slot.Exists {
		s.Warnings = append(s.Warnings, walWarnings(slot)...)
	}

	checkpoint, err := c.history.Records.Checkpoint(ctx, s.Database)
	if errors.Is(err, store.ErrNoCheckpoint) || history.IsUndefined(err) {
		return s, nil // nothing was ever captured
	}
	if err != nil {
		return s, fmt.Errorf("audit: status: %w", err)
	}
	s.Position, s.CommittedAt, s.Changes = checkpoint.Position, checkpoint.CommittedAt, checkpoint.Changes
	if s.SourcePosition > s.Position {
		s.LagBytes = int64(s.SourcePosition - s.Position)
	}
	if s.Gaps, err = c.history.Records.Gaps(ctx, s.Database); err != nil {
		return s, fmt.Errorf("audit: status: %w", err)
	}
	covered, err := c.history.Records.Coverage(ctx, s.Database)
	if err != nil {
		return s, fmt.Errorf("audit: status: %w", err)
	}
	for _, cov := range covered {
		s.Tables = append(s.Tables, TableStatus{Schema: cov.Schema, Table: cov.Table, From: cov.From, FromTime: cov.FromTime, Until: cov.Until, UntilTime: cov.UntilTime})
	}
	for _, p := range v.pending {
		s.Tables = append(s.Tables, TableStatus{Schema: p.Schema, Table: p.Name, Pending: p.Reason})
	}
	return s, nil
}

// stall is a holder of the slot that confirms nothing.
type stall struct {
	confirmed, here LSN // of the slot, and where the source was, since then
	since           time.Time
	warning         string // empty as long as it need not mean anything
}

const (
	// stallPatience is how long the holder may confirm nothing, while the source writes
	// more than stallWAL: it confirms every few seconds what it has stored, and in steps of a
	// megabyte what does not concern it.
	stallPatience = 9 * time.Second
	stallWAL      = 2 << 20
)

// watchHolder lets an instance that waits say that the one that captures does not: frozen, or
// cut off from here or from the store, that one may be able to tell nobody.
func (c *Client) watchHolder(slot capture.Slot, here LSN, now time.Time) {
	c.mu.Lock()
	s := c.last.stall
	switch {
	case c.last.state != capture.Waiting || !slot.Active:
		s = stall{}
	case s.since.IsZero() || slot.Confirmed != s.confirmed:
		s = stall{confirmed: slot.Confirmed, here: here, since: now}
	case s.warning == "" && here >= s.here+stallWAL && now.Sub(s.since) >= stallPatience:
		s.warning = fmt.Sprintf("the instance that captures (process %d of the source has slot %q) has confirmed nothing behind %s for %s: it is frozen, cut off, or in the middle of a large transaction; another takes over when the source ends its session", slot.ActivePID, slot.Name, slot.Confirmed, now.Sub(s.since).Round(time.Second))
	default:
		c.mu.Unlock()
		return
	}
	c.last.stall = s
	c.mu.Unlock()
	if s.warning != "" {
		c.metrics.failed(errors.New(s.warning))
		c.cfg.Logger.Warn("audit: the instance that captures makes no progress", "warning", s.warning)
	}
}

// observeTimeout bounds a look at the source, which may be gone without a word.
const observeTimeout = 5 * time.Second

// observe refreshes what the metrics show, in every state, since a capture that has
// stopped is when WAL gathers. It warns of what an operator should know before it
// hurts, and breaks the session whose slot the server does not give to us any more.
func (c *Client) observe(ctx context.Context, r *run) error {
	ctx, cancel := context.WithTimeout(ctx, observeTimeout)
	defer cancel()
	holder := r.reader.Holder()
	slot, err := c.setup.SlotState(ctx)
	if err != nil && !errors.Is(err, capture.ErrNoSlot) {
		return err
	}
	exists := err == nil
	if holder != 0 && slot.ActivePID != holder {
		r.reader.Break(holder, fmt.Errorf("the server does not stream to us any more: slot %q is held by process %d, not %d", slot.Name, slot.ActivePID, holder))
	}
	var here LSN
	if err := c.history.Source.QueryRow(ctx, "SELECT pg_catalog.pg_current_wal_flush_lsn()::text").Scan(&here); err != nil {
		return fmt.Errorf("read position: %w", err)
	}
	c.mu.Lock()
	c.last.slot = slot
	if c.last.durable != 0 {
		c.last.lag = int64(here - min(here, c.last.durable))
	}
	c.mu.Unlock()
	c.watchHolder(slot, here, time.Now())
	for _, w := range walWarnings(slot) {
		if w.Code == WarningWALNearBound {
			c.cfg.Logger.Error("audit: the source is about to drop WAL that was not captured yet", "slot", slot.Name, "retained", slot.Retained, "bound", slot.Bound)
		}
	}
	if most := c.cfg.MaxRetainedWAL; exists && most > 0 && slot.Retained > most && !slot.Active {
		// Where the history ends is in the store: whoever captures next finds the slot
		// gone, makes another, and records the gap.
		if err := c.setup.DropSlot(ctx, slot); err != nil {
			return err
		}
		c.cfg.Logger.Error("audit: dropped the replication slot, which held more WAL than Config.MaxRetainedWAL; history will have a gap", "slot", slot.Name, "retained", slot.Retained)
	}
	return nil
}
