package audit

import (
	"context"
	"errors"
	"time"

	"github.com/hindsight-go/audit/store"
)

const (
	// setupPatience is how long Start, and a capture that lacks its slot, wait for
	// whoever sets up.
	setupPatience = time.Minute
	// refreshPatience is how long a look for new tables does.
	refreshPatience = 5 * time.Second
)

// lockSetup keeps other instances from setting up at the same time. What is done
// under the lock uses the context that it returns, which ends if the lock is lost.
// Nobody waits for the stream under it.
func (c *Client) lockSetup(ctx context.Context, patience time.Duration) (locked context.Context, release func(), err error) {
	// First among the calls on this client: each of them would hold a connection
	// while it waits for the lock, and the one that has it needs more.
	timer := time.NewTimer(patience)
	defer timer.Stop()
	select {
	case c.turn <- struct{}{}:
	case <-timer.C:
		return nil, nil, &store.SetupLockedError{Schema: c.cfg.Schema, Waited: patience, Cause: context.DeadlineExceeded}
	case <-ctx.Done():
		return nil, nil, &store.SetupLockedError{Schema: c.cfg.Schema, Waited: patience, Cause: ctx.Err()}
	}
	begun, said := time.Now(), false
	locked, unlock, err := c.history.LockSetup(ctx, patience, func(held *store.SetupLockedError) {
		c.noteSetup(held)
		if !said && time.Since(begun) > 2*time.Second {
			said = true
			c.cfg.Logger.Warn("audit: setting up waits for the lock of another session", "error", held)
		}
	})
	if err != nil {
		<-c.turn
		var held *store.SetupLockedError
		if errors.As(err, &held) {
			c.noteSetup(held)
		}
		return nil, nil, err
	}
	c.noteSetup(nil)
	return locked, func() {
		unlock()
		<-c.turn
	}, nil
}

func (c *Client) noteSetup(held *store.SetupLockedError) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.last.setup = held
}

// setupBlocked shows which tables wait because somebody else holds the lock.
func (c *Client) setupBlocked(ctx context.Context, err error) {
	var held *store.SetupLockedError
	if !errors.As(err, &held) || ctx.Err() != nil {
		return
	}
	if pending, err := c.setup.Waiting(ctx, held); err == nil {
		c.setPending(pending)
	}
}
