package audit

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hindsight-go/audit/capture"
	"github.com/hindsight-go/audit/internal/deadpeer"
	"github.com/hindsight-go/audit/store"
)

// run is one capture, from Start to Stop.
type run struct {
	reader  *capture.Reader
	facts   capture.Facts
	cancel  context.CancelFunc
	done    chan struct{} // closed when everything has ended
	err     error         // why capture ended for good; set before done is closed
	settled chan struct{} // closed at the first state that says how it goes
	streams chan struct{} // told when this instance begins to stream
	caution store.Caution
	until   capture.LSN
	// undecodable is up to where the store held everything when the server could not
	// go on with the slot: it is of no use unless it was made anew behind that.
	undecodable capture.LSN
	// unsendable is the transaction that the server failed at sending last, failures
	// how often, and why.
	unsendable capture.LSN
	failures   int
	why        string
	// holder, shapes and seen belong to whoever has the client's turn to set up. holder is
	// who says what is covered, shapes what the tracked tables looked like last.
	holder store.SetupHolder
	shapes map[uint32]string
	// seen is the catalog as it was then, seed of its fingerprints. Until structuresDue,
	// none is taken of the structures without need.
	seen          catalogSeen
	seed          int64
	structuresDue time.Time
	looks         looks
	// rest is where the source's WAL ended when the last look at the tables began, if that
	// left nothing to do and saw all that was committed; else 0.
	rest atomic.Uint64
}

// Start checks the source, sets up what is missing, and then captures in the
// background until Stop or Close is called. ctx bounds the start-up alone: it may
// have a deadline and may end as soon as Start has returned. If it ends before,
// Start returns an error and nothing captures. [Client.Run] captures as long as its
// ctx lives.
//
// Everything that would keep capture from working is found out here: the error
// is a *SetupError that lists all of it with the SQL that sets it right, a
// *SlotBlockedError, a *ForeignSlotError, a *SourceMismatchError, or that of a
// connection: a server that says nothing for 20 seconds is an error, too. What goes
// wrong later is logged, shown by Status and retried. An end that nobody asked for is
// logged as an error and stays in Status.Err.
//
// Where another instance of the program captures already, Start returns nil and
// this instance waits, to take over when the other ends. Start on a started
// client does nothing.
func (c *Client) Start(ctx context.Context) error {
	c.starting.Lock()
	defer c.starting.Unlock()
	if r := c.running(); r != nil {
		if c.state() != capture.Failed {
			return nil
		}
		<-r.done // or a capture that is ending would pass for one that runs
	}
	startCtx, cancelStart := context.WithCancel(ctx)
	defer cancelStart()
	runCtx, cancelRun := context.WithCancel(context.WithoutCancel(ctx))
	c.mu.Lock()
	if err := c.open(); err != nil {
		c.mu.Unlock()
		cancelRun()
		return err
	}
	c.abort = func() { cancelStart(); cancelRun() }
	c.last = view{state: capture.Starting}
	c.mu.Unlock()
	c.history.Store.Reset() // connections from before a restart of the server are no reason to fail
	facts, err := c.prepareSource(deadpeer.Impatient(startCtx))
	if err != nil {
		cancelRun()
		c.mu.Lock()
		c.last.state, c.last.err = capture.Stopped, err
		c.mu.Unlock()
		return err
	}
	r := &run{facts: facts, seed: rand.Int64(), cancel: cancelRun, done: make(chan struct{}), settled: make(chan struct{}), streams: make(chan struct{}, 1)}
	r.reader = c.newReader(r)
	c.mu.Lock()
	c.run, c.last.facts = r, facts
	c.mu.Unlock()
	go c.capture(deadpeer.Impatient(runCtx), r)

	// The first attempt to stream is part of starting: what fails for good is
	// said here and not in a log.
	select {
	case <-r.settled:
	case <-r.done:
	case <-startCtx.Done():
	}
	if err := startCtx.Err(); err != nil {
		cancelRun()
		<-r.done
		return fmt.Errorf("audit: start: %w", err)
	}
	if c.state() == capture.Failed {
		<-r.done // or the next Start would take this capture for one that runs
		return r.err
	}
	return nil
}

// drainTime bounds how long Run finishes what was read, once its ctx has ended.
const drainTime = 10 * time.Second

// Run is Start that returns when capture has ended, for an errgroup or a supervisor.
// When ctx ends, Run stops capture in order, as Stop does, for up to ten seconds, and
// returns nil; so it does after Stop. It returns an error where Start would, where
// capture has failed for good, and where the ten seconds were too few: nothing is
// lost by that. On a started client it takes over that capture.
func (c *Client) Run(ctx context.Context) error {
	if err := c.Start(ctx); err != nil {
		return err
	}
	c.mu.Lock()
	r := c.run
	c.mu.Unlock()
	select {
	case <-r.done:
		return r.err
	case <-ctx.Done():
	}
	drain, cancel := context.WithTimeout(context.WithoutCancel(ctx), drainTime)
	defer cancel()
	if err := c.Stop(drain); err != nil {
		return err
	}
	return r.err
}

// running returns the capture in progress, or nil.
func (c *Client) running() *run {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.run == nil {
		return nil
	}
	select {
	case <-c.run.done:
		return nil
	default:
		return c.run
	}
}

// capture owns the goroutines of a run and waits for all of them.
func (c *Client) capture(ctx context.Context, r *run) {
	defer close(r.done)
	defer r.cancel()
	var others sync.WaitGroup
	others.Go(func() { c.maintain(ctx, r) })
	others.Go(func() { c.keepStatistics(deadpeer.Patient(ctx)) })
	others.Go(func() { c.watchHealth(ctx, r) })
	others.Go(func() { c.keepHistory(deadpeer.Patient(ctx), r) })
	err := r.reader.Run(ctx)
	r.cancel()
	others.Wait()
	if r.err = err; err != nil {
		c.cfg.Logger.Error("audit: capture has ended and will not be tried again", "error", err)
	}
	c.stored.send() // whoever waits sees that there is nothing to wait for
}

// Stop ends capture in order: what was read is stored and confirmed. It waits
// for that until ctx ends, and then ends capture abruptly and returns ctx's
// error; nothing is lost by it. It may be called before Start, twice, and from
// several goroutines. Queries go on working.
func (c *Client) Stop(ctx context.Context) error {
	r := c.running()
	if r == nil {
		return nil
	}
	r.reader.Stop()
	select {
	case <-r.done:
		return nil
	case <-ctx.Done():
	}
	r.cancel()
	<-r.done
	return fmt.Errorf("audit: stop capture: %w", ctx.Err())
}

// wanted reports whether changes of a table are to be captured.
func (c *Client) wanted(schema, table string) bool {
	track, _ := c.setup.Patterns.Match(schema, table)
	return track && (schema != c.setup.StoreSchema || c.setup.StoreSchema == "")
}

func (c *Client) newReader(r *run) *capture.Reader {
	return capture.New(capture.Config{
		Connect:       &c.cfg.source.ConnConfig.Config,
		BeforeConnect: c.cfg.BeforeConnect,
		Catalog:       c.history.Source,
		Slot:          c.cfg.Slot,
		Publication:   c.cfg.Publication,
		Prefix:        c.cfg.ContextPrefix,
		MaxContext:    c.cfg.MaxContextBytes,
		MaxRow:        c.cfg.MaxRowBytes,
		Wanted:        c.wanted,
		Policy:        c.cfg.policyOf,
		Prepare:       func(ctx context.Context) (capture.Resume, error) { return c.prepareSlot(ctx, r) },
		Open: func(ctx context.Context, progress func()) (capture.Sink, capture.LSN, error) {
			return c.openWriter(ctx, r, progress)
		},
		Structures: func(ctx context.Context) (map[uint32]*capture.Structure, []string, error) {
			return c.structures(ctx, r)
		},
		Seen:      r.looks.until,
		Recover:   func(ctx context.Context, err error) error { return c.recover(ctx, r, err) },
		OnState:   func(s capture.State, err error) { c.onState(r, s, err) },
		OnRefresh: c.requestRefresh,
		Logger:    c.cfg.Logger,
	})
}

func (c *Client) openWriter(ctx context.Context, r *run, progress func()) (capture.Sink, capture.LSN, error) {
	w, from, err := c.history.Records.NewWriter(ctx, store.WriterConfig{
		Database: r.facts.Database, Environment: c.cfg.Environment, MaxContext: c.cfg.MaxContextBytes, MaxRow: c.cfg.MaxRowBytes,
		DigestKey: c.cfg.DigestKey,
		Caution:   r.caution, CautionUntil: r.until,
		Progress: progress,
		Stored: func(b store.Batch) {
			c.onStored(b)
			c.stored.send()
		},
		Failed: c.spanOfBatch,
	})
	if err != nil {
		return nil, 0, err
	}
	c.setDurable(from)
	return w, from, nil
}

// recover turns the error that ended a session into what to do about it.
func (c *Client) recover(ctx context.Context, r *run, err error) error {
	var refused *store.RefusedError
	var unsendable *capture.UnsendableError
	switch {
	case errors.As(err, &unsendable) && unsendable.Stored:
		reason := fmt.Sprintf("the server cannot send the transaction at %s: %s", unsendable.Position, r.why)
		// Behind the beginning of its commit record, and before the next transaction's.
		return c.leaveOut(ctx, r, unsendable.Position+1, reason, err)
	case errors.As(err, &unsendable):
		if r.unsendable != unsendable.Position {
			r.unsendable, r.failures = unsendable.Position, 0
		}
		r.failures++
		r.why = unsendable.Cause.Error()
	case errors.As(err, &refused) && refused.Caution == store.CautionBare:
		// Each transaction is alone since the first level of care, so this is one.
		return c.leaveOut(ctx, r, refused.To, fmt.Sprintf("the store refused the transaction before %s: %v", refused.To, refused.Cause), err)
	case errors.As(err, &refused):
		// Not the whole batch may suffer for one row: first every transaction
		// alone, then the one at fault with less and less.
		r.caution, r.until = min(refused.Caution+1, store.CautionBare), refused.To
		c.cfg.Logger.Warn("audit: the store refused data; it is tried again with more care", "from", refused.From, "to", refused.To, "care", int(r.caution), "error", refused.Cause)
	case capture.IsPublicationLost(err):
		// Whatever was written without a publication cannot be decoded any more:
		// the slot has to begin anew, and the history has a gap.
		c.cfg.Logger.Error("audit: the publication was dropped under the slot", "publication", c.cfg.Publication)
		r.undecodable = c.durable()
	case errors.Is(err, capture.ErrTimeline):
		c.history.Source.Reset() // its connections are to the server of before
	}
	return err
}

// leaveOut records that the one transaction behind the checkpoint cannot be had, and
// goes on behind it: all that follows would otherwise never be.
func (c *Client) leaveOut(ctx context.Context, r *run, to capture.LSN, reason string, cause error) error {
	checkpoint, err := c.history.Records.Checkpoint(ctx, r.facts.Database)
	if err != nil {
		return errors.Join(cause, err)
	}
	if checkpoint.Position >= to {
		return cause // another instance has done it
	}
	gap := &GapError{Gap: Gap{From: checkpoint.Position, To: to, FromTime: checkpoint.CommittedAt, Reason: reason}}
	if c.cfg.OnGap == StopAtGap {
		return capture.Permanent(gap)
	}
	now, err := c.history.SourceTime(ctx)
	if err != nil {
		return errors.Join(cause, err)
	}
	if err := c.history.Records.RecordGap(ctx, r.facts.Database, checkpoint, to, now, reason); err != nil {
		return errors.Join(cause, err)
	}
	r.caution, r.until, r.unsendable, r.failures = store.CautionNone, 0, 0, 0
	c.metrics.failed(gap)
	c.cfg.Logger.Error("audit: history has a gap", "from", checkpoint.Position, "to", to, "reason", reason)
	return cause
}

// onState follows the reader's states.
func (c *Client) onState(r *run, s capture.State, err error) {
	c.mu.Lock()
	before := c.last.state
	if s == capture.Starting && (before == capture.Waiting || before == capture.Retrying) {
		// One more attempt. Until it goes otherwise, Status shows how the last went.
		c.mu.Unlock()
		return
	}
	c.last.state, c.last.err = s, err
	c.mu.Unlock()
	switch s {
	case capture.Streaming, capture.Waiting, capture.Failed, capture.Retrying:
		select {
		case <-r.settled:
		default:
			close(r.settled)
		}
	case capture.Starting, capture.Stopped:
	}
	switch {
	case s == capture.Retrying:
		c.metrics.failed(err)
		c.cfg.Logger.Warn("audit: capture was interrupted and will be tried again", "error", err)
	case s == capture.Waiting && before != capture.Waiting:
		c.cfg.Logger.Info("audit: another instance captures, this one waits", "slot", c.cfg.Slot)
	case s == capture.Streaming:
		select {
		case r.streams <- struct{}{}:
		default:
		}
		c.cfg.Logger.Info("audit: capturing", "database", r.facts.Database, "slot", c.cfg.Slot)
	}
	c.stored.send()
}

// maintain does what has to be done now and then, while this instance captures.
func (c *Client) maintain(ctx context.Context, r *run) {
	refresh := time.Hour
	if c.cfg.RefreshInterval > 0 {
		refresh = c.cfg.RefreshInterval
	}
	tables := time.NewTicker(refresh)
	defer tables.Stop()
	for {
		var err error
		select {
		case <-ctx.Done():
			return
		case <-tables.C:
			if c.cfg.RefreshInterval > 0 && c.state() == capture.Streaming {
				err = c.refreshIfChanged(ctx, r)
			}
		case <-c.poke:
			err = c.refreshTables(ctx, r, true)
		}
		c.maintenanceFailed(ctx, err)
	}
}

// keepHistory makes partitions and drops what is past its retention: once this
// instance streams, and every hour. Of several instances only that one does, since two
// would drop what the other has just carried along. It takes as long as it takes, and
// nobody waits for it.
func (c *Client) keepHistory(ctx context.Context, r *run) {
	hourly := time.NewTicker(time.Hour)
	defer hourly.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-r.streams:
		case <-hourly.C:
		}
		if c.state() == capture.Streaming {
			c.maintenanceFailed(ctx, c.keepPartitions(ctx))
		}
	}
}

// keepStatistics has the store's planner know a partition soon after its first changes:
// autovacuum comes when it comes, and until then it takes a large partition for a small
// one. It looks every ten seconds, while this instance streams.
func (c *Client) keepStatistics(ctx context.Context) {
	tick := time.NewTicker(10 * time.Second)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			if c.state() == capture.Streaming {
				c.maintenanceFailed(ctx, c.history.Records.AnalyzeNew(ctx))
			}
		}
	}
}

func (c *Client) maintenanceFailed(ctx context.Context, err error) {
	if err != nil && ctx.Err() == nil {
		c.metrics.failed(err)
		c.cfg.Logger.Warn("audit: maintenance", "error", err)
	}
}

// watchHealth looks at the source every ten seconds, whatever else waits for what, and
// every five while another instance captures.
func (c *Client) watchHealth(ctx context.Context, r *run) {
	tick := time.NewTicker(5 * time.Second)
	defer tick.Stop()
	for n := 1; ; n++ {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			if n%2 == 0 || c.state() == capture.Waiting {
				c.maintenanceFailed(ctx, c.observe(ctx, r))
			}
		}
	}
}

func (c *Client) requestRefresh() {
	select {
	case c.poke <- struct{}{}:
	default:
	}
}

func (c *Client) keepPartitions(ctx context.Context) error {
	if err := c.history.Records.EnsurePartitions(ctx); err != nil {
		return err
	}
	if c.cfg.Retention == 0 {
		return nil
	}
	locked, release, err := c.history.Records.LockRetention(ctx)
	if errors.Is(err, store.ErrRetentionLocked) {
		return nil // which does it
	}
	if err != nil {
		return err
	}
	defer release()
	before := time.Now().Add(-c.cfg.Retention)
	for range 3 {
		// Changes may come that are older than what was carried along is: once more.
		if err = c.retain(locked, before); !errors.Is(err, store.ErrHorizonMoved) {
			break
		}
	}
	return err
}

// retain drops what is past its retention, once keyframes hold what is needed of it. It
// may end at any place, and goes on from there the next time.
func (c *Client) retain(ctx context.Context, before time.Time) error {
	horizon, err := c.carryKeyframes(ctx, before)
	if err != nil {
		return err // what they are made of must not be dropped
	}
	dropped, err := c.history.Records.DropBefore(ctx, before, horizon)
	if err != nil {
		return err
	}
	for _, name := range dropped {
		c.cfg.Logger.Info("audit: dropped history past its retention", "partition", name)
	}
	if len(dropped) > 0 {
		c.history.Forget()
	}
	return c.dropKeyframes(ctx)
}
