package audit

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/hindsight-go/audit/capture"
	"github.com/hindsight-go/audit/internal/history"
	"github.com/hindsight-go/audit/store"
)

// Sync returns when everything that was committed on the source before the call
// is in the store and can be asked for. It is a barrier, not a sleep: it writes
// a message into the source's WAL and waits until capture, in whichever instance
// of the program it runs, has stored everything up to it.
//
// It needs a connection to the source that may write. While capture does not run
// anywhere it returns an [ErrNotRunning] at once. So it may on a client that was not
// started, for the seconds in which one instance takes over from another.
func (c *Client) Sync(ctx context.Context) error {
	b, err := c.barrier(ctx)
	if err != nil {
		return history.OpError("sync", err)
	}
	_, err = c.waitFor(ctx, b, c.capturedElsewhere)
	return history.OpError("sync", err)
}

// barrier is a message in the source's WAL: whatever was committed before the call that
// wrote it is before it. It is known by a nonce, since not every server says the same of
// where it stands as its stream does. Where it does not come, it is written again.
type barrier struct {
	database string
	nonces   []string
	written  LSN // as the server said
}

// barriers are those that calls on this client wait for.
type barriers struct {
	mu    sync.Mutex
	known map[string]LSN // guarded by mu: by nonce, where they stand; 0 until they are stored
}

func (b *barriers) expect(nonce string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.known == nil {
		b.known = make(map[string]LSN)
	}
	b.known[nonce] = 0
}

func (b *barriers) forget(nonces []string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, nonce := range nonces {
		delete(b.known, nonce)
	}
}

// stored notes where barriers stand, if somebody waits for them.
func (b *barriers) stored(all []store.Barrier) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, s := range all {
		if _, ok := b.known[s.Nonce]; ok {
			b.known[s.Nonce] = s.Position
		}
	}
}

// reached returns where the first of some barriers stands that is stored, or 0.
func (b *barriers) reached(nonces []string) LSN {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, nonce := range nonces {
		if at := b.known[nonce]; at != 0 {
			return at
		}
	}
	return 0
}

// barrier writes a barrier. Whoever asks for one waits for it with waitFor.
func (c *Client) barrier(ctx context.Context) (*barrier, error) {
	if err := c.open(); err != nil {
		return nil, err
	}
	b := &barrier{}
	if err := c.writeBarrier(ctx, b); err != nil {
		c.barriers.forget(b.nonces)
		return nil, fmt.Errorf("mark the source's WAL: %w", err)
	}
	return b, nil
}

func (c *Client) writeBarrier(ctx context.Context, b *barrier) error {
	nonce := make([]byte, 16)
	_, _ = rand.Read(nonce) // which never fails
	text := hex.EncodeToString(nonce)
	b.nonces = append(b.nonces, text)
	c.barriers.expect(text)
	write := func() error {
		return c.history.Source.QueryRow(ctx, "SELECT current_database(), pg_catalog.pg_logical_emit_message(true, $1, $2)::text WHERE NOT pg_catalog.pg_is_in_recovery()", c.cfg.ContextPrefix+capture.SyncSuffix, text).Scan(&b.database, &b.written)
	}
	err := write()
	if pgconn.SafeToRetry(err) { // the pool's connection was from before a restart
		err = write()
	}
	if errors.Is(err, pgx.ErrNoRows) {
		err = ErrStandby
	}
	return err
}

const (
	// barrierAgain is after how long a barrier that has not come is written again, the
	// first time: it may have gone down in a gap.
	barrierAgain = 2 * time.Second
	// barrierAgainMost is the longest time between two of them.
	barrierAgainMost = time.Minute
	// barrierLook is how often the store is asked for a barrier while this instance
	// captures, and knows by itself: another may have stored it just before.
	barrierLook = time.Second
)

// waitFor returns where a barrier stands, once the store holds everything that committed
// before it. idle is asked whether to go on where this instance does not capture.
func (c *Client) waitFor(ctx context.Context, b *barrier, idle func(ctx context.Context, slot string) error) (LSN, error) {
	defer func() { c.barriers.forget(b.nonces) }()
	// Here the writer says when; elsewhere only the store does.
	poll := time.NewTicker(10 * time.Millisecond)
	defer poll.Stop()
	looked := time.Now()
	written, again := time.Now(), barrierAgain
	for {
		stored := c.stored.next()
		c.mu.Lock()
		v := c.last
		c.mu.Unlock()
		if at := c.barriers.reached(b.nonces); at != 0 {
			return at, nil
		}
		switch {
		case v.state == capture.Failed:
			return 0, fmt.Errorf("capture has failed: %w", v.err)
		case v.state != capture.Streaming || time.Since(looked) > barrierLook:
			looked = time.Now()
			at, err := c.history.Records.Barrier(ctx, b.database, b.nonces)
			// An error because ctx has ended is told below, in other words.
			// That of a connection from before a restart of the server passes.
			if err != nil && ctx.Err() == nil && (history.IsClosed(err) || !history.IsUndefined(err) && !isConnectionLost(err)) {
				return 0, err
			}
			if at != 0 {
				return at, nil
			}
			// An instance that was started captures, will, or has said why not.
			if v.state == capture.Stopped {
				if err := c.idle(ctx, b.database, idle); err != nil {
					return 0, err
				}
			}
		}
		if time.Since(written) > again {
			written, again = time.Now(), min(2*again, barrierAgainMost)
			if err := c.writeBarrier(ctx, b); err != nil && history.IsClosed(err) {
				return 0, err
			}
		}
		select {
		case <-stored:
		case <-poll.C:
		case <-c.closing:
			return 0, ErrClosed
		case <-ctx.Done():
			return 0, fmt.Errorf("the store holds everything up to %s, not yet up to %s (capture is %s): %w", v.durable, b.written, v.state, ctx.Err())
		}
	}
}

// idle asks whether to go on although this instance does not capture.
func (c *Client) idle(ctx context.Context, database string, ask func(ctx context.Context, slot string) error) error {
	at, err := c.history.Records.Checkpoint(ctx, database)
	if err != nil && ctx.Err() == nil && (history.IsClosed(err) || !errors.Is(err, store.ErrNoCheckpoint) && !history.IsUndefined(err) && !isConnectionLost(err)) {
		return err
	}
	return ask(ctx, at.Slot)
}

// capturedElsewhere returns ErrNotRunning if nobody streams from the slot of the
// history. What else keeps it from looking passes, or is told by others.
func (c *Client) capturedElsewhere(ctx context.Context, slot string) error {
	if slot == "" {
		slot = c.cfg.Slot
	}
	var active bool
	err := c.history.Source.QueryRow(ctx, "SELECT EXISTS (SELECT FROM pg_catalog.pg_replication_slots s WHERE s.slot_name = $1 AND s.active)", slot).Scan(&active)
	if err == nil && !active && c.state() == capture.Stopped {
		return fmt.Errorf("nobody streams from slot %q: %w", slot, ErrNotRunning)
	}
	return nil
}

// isConnectionLost reports whether it was the connection that failed, or the server
// that is about to stop or to start.
func isConnectionLost(err error) bool {
	var pgErr *pgconn.PgError
	return !errors.As(err, &pgErr) || history.IsCode(err, "57P01", "57P02", "57P03")
}
