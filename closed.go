package audit

import (
	"context"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
)

// open returns ErrClosed once the client is closed.
func (c *Client) open() error {
	select {
	case <-c.closing:
		return ErrClosed
	default:
		return nil
	}
}

// closePatience is for how long Close lets a server answer what it was asked before.
const closePatience = 5 * time.Second

// connections are those of the client's pools, to be closed under whatever waits for
// them: a pool would wait itself.
type connections struct {
	mu   sync.Mutex
	open map[*pgx.Conn]struct{} // guarded by mu
}

// follow has the pools that are made with config tell of their connections.
func (c *connections) follow(config *pgxpool.Config) {
	after, before := config.AfterConnect, config.BeforeClose
	config.AfterConnect = func(ctx context.Context, conn *pgx.Conn) error {
		if after != nil {
			if err := after(ctx, conn); err != nil {
				return err // the pool closes it, and does not say so
			}
		}
		c.mu.Lock()
		defer c.mu.Unlock()
		c.open[conn] = struct{}{}
		return nil
	}
	config.BeforeClose = func(conn *pgx.Conn) {
		c.mu.Lock()
		delete(c.open, conn)
		c.mu.Unlock()
		if before != nil {
			before(conn)
		}
	}
}

// cut closes them as they are.
func (c *connections) cut() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for conn := range c.open {
		_ = conn.PgConn().Conn().Close()
	}
}
