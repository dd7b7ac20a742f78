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
// under the lock uses the context that it returns, which ends if the lock is lost, and what
// is said of coverage is said as r.holder, whom the store refuses then, too.
// Nobody waits for the stream under it.
func (c *Client) lockSetup(ctx context.Context, r *run, patience time.Duration) (locked context.Context, release func(), err error) {
	if err := c.takeTurn(ctx, patience); err != nil {
		return nil, nil, err
	}
	begun, said := time.Now(), false
	locked, holder, unlock, err := c.history.Records.LockSetup(ctx, r.facts.Database, patience, func(held *store.SetupLockedError) {
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
	r.holder = holder
	return locked, func() {
		unlock()
		<-c.turn
	}, nil
}

// takeTurn makes a call the only one on this client that sets up: each of them would hold
// a connection while it waits for the lock, and the one that has it needs more.
func (c *Client) takeTurn(ctx context.Context, patience time.Duration) error {
	timer := time.NewTimer(patience)
	defer timer.Stop()
	select {
	case c.turn <- struct{}{}:
		return nil
	case <-timer.C:
		return &store.SetupLockedError{Schema: c.cfg.Schema, Waited: patience, Cause: context.DeadlineExceeded}
	case <-ctx.Done():
		return &store.SetupLockedError{Schema: c.cfg.Schema, Waited: patience, Cause: ctx.Err()}
	}
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
