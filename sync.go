package audit

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/hindsight-go/audit/capture"
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
	database, target, err := c.barrier(ctx)
	if err != nil {
		return wrap("sync", err)
	}
	return wrap("sync", c.waitFor(ctx, database, target, c.capturedElsewhere))
}

// barrier writes a message into the source's WAL and returns where: whatever was
// committed before the call is before it.
func (c *Client) barrier(ctx context.Context) (database string, at LSN, err error) {
	if err := c.open(); err != nil {
		return "", 0, err
	}
	mark := func() error {
		return c.source.QueryRow(ctx, "SELECT current_database(), pg_catalog.pg_logical_emit_message(true, $1, '')::text WHERE NOT pg_catalog.pg_is_in_recovery()", c.cfg.ContextPrefix+capture.SyncSuffix).Scan(&database, &at)
	}
	err = mark()
	if pgconn.SafeToRetry(err) { // the pool's connection was from before a restart
		err = mark()
	}
	if errors.Is(err, pgx.ErrNoRows) {
		err = ErrStandby
	}
	if err != nil {
		return "", 0, fmt.Errorf("mark the source's WAL: %w", err)
	}
	return database, at, nil
}

// waitFor returns when the store holds everything that committed before target.
// idle is asked whether to go on where this instance does not capture.
func (c *Client) waitFor(ctx context.Context, database string, target LSN, idle func(ctx context.Context, slot string) error) error {
	// Here the writer says when; elsewhere only the checkpoint does.
	poll := time.NewTicker(10 * time.Millisecond)
	defer poll.Stop()
	for {
		stored := c.stored.next()
		c.mu.Lock()
		v := c.last
		c.mu.Unlock()
		reached := v.durable
		switch {
		case reached >= target:
			return nil
		case v.state == capture.Failed:
			return fmt.Errorf("capture has failed: %w", v.err)
		case v.state != capture.Streaming:
			at, err := c.history.Checkpoint(ctx, database)
			// An error because ctx has ended is told below, in other words.
			// That of a connection from before a restart of the server passes.
			if err != nil && ctx.Err() == nil && (isClosed(err) || !errors.Is(err, store.ErrNoCheckpoint) && !isUndefined(err) && !isConnectionLost(err)) {
				return err
			}
			if reached = max(reached, at.Position); reached >= target {
				return nil
			}
			// An instance that was started captures, will, or has said why not.
			if v.state == capture.Stopped {
				if err := idle(ctx, at.Slot); err != nil {
					return err
				}
			}
		}
		select {
		case <-stored:
		case <-poll.C:
		case <-c.closing:
			return ErrClosed
		case <-ctx.Done():
			return fmt.Errorf("the store holds everything up to %s, not yet up to %s (capture is %s): %w", reached, target, v.state, ctx.Err())
		}
	}
}

// capturedElsewhere returns ErrNotRunning if nobody streams from the slot of the
// history. What else keeps it from looking passes, or is told by others.
func (c *Client) capturedElsewhere(ctx context.Context, slot string) error {
	if slot == "" {
		slot = c.cfg.Slot
	}
	var active bool
	err := c.source.QueryRow(ctx, "SELECT EXISTS (SELECT FROM pg_catalog.pg_replication_slots s WHERE s.slot_name = $1 AND s.active)", slot).Scan(&active)
	if err == nil && !active && c.state() == capture.Stopped {
		return fmt.Errorf("nobody streams from slot %q: %w", slot, ErrNotRunning)
	}
	return nil
}

// isConnectionLost tells that it was the connection that failed, or the server
// that is about to stop or to start.
func isConnectionLost(err error) bool {
	var pgErr *pgconn.PgError
	return !errors.As(err, &pgErr) || isCode(err, "57P01", "57P02", "57P03")
}
