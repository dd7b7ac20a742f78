package store

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgproto3"
)

var errClosed = errors.New("store: writer is closed")

// copyConn speaks the simple query protocol on a connection it has taken over,
// so that BEGIN, COPY, its rows, the checkpoint and COMMIT go out without a
// round trip between them: one wait for a batch.
//
// A COPY that fails leaves the transaction aborted. The server then ignores the
// rows that are still on their way, and the query with the COMMIT fails as a
// whole, because the statements before the COMMIT do.
//
// Source: PostgreSQL documentation, "Message Flow": Simple Query, COPY
// Operations.
type copyConn struct {
	conn     net.Conn
	frontend *pgproto3.Frontend
	copySQL  string
	pid      int
	encoding string // the store's

	out     []byte // messages not sent yet
	copying bool   // inside a COPY
	queries int    // answers to wait for
	open    bool   // inside a transaction
	failed  error  // what the store said first, in the midst of the transaction
	begun   time.Time

	// working reports whether the session at the other end is at work on something,
	// as another session sees it.
	working func(ctx context.Context, pid int) (bool, error)

	abortOnce sync.Once
	aborted   chan struct{}
	dead      atomic.Pointer[error] // why the connection was taken for dead
}

func newCopyConn(ctx context.Context, config *pgconn.Config, copySQL string) (*copyConn, error) {
	pg, err := pgconn.ConnectConfig(ctx, config)
	if err != nil {
		return nil, err
	}
	// A store that acknowledges before it is durable would let the source drop
	// WAL that nobody has.
	_, err = pg.Exec(ctx, `SELECT set_config('synchronous_commit', 'on', false) WHERE current_setting('synchronous_commit') IN ('off', 'local')`).ReadAll()
	if err != nil {
		_ = pg.Close(context.WithoutCancel(ctx))
		return nil, err
	}
	h, err := pg.Hijack()
	if err != nil {
		return nil, err
	}
	return &copyConn{conn: h.Conn, frontend: h.Frontend, copySQL: copySQL, pid: int(h.PID), encoding: h.ParameterStatuses["server_encoding"], aborted: make(chan struct{})}, nil
}

// abort cuts the connection, whatever it is doing.
func (c *copyConn) abort() {
	c.abortOnce.Do(func() {
		close(c.aborted)
		_ = c.conn.Close()
	})
}

const (
	// stall is how long the store may say or take nothing before somebody looks.
	stall = 15 * time.Second
	// lookTimeout bounds the look.
	lookTimeout = 10 * time.Second
)

// watched does something that waits for the store. If that takes long, another
// session looks whether the store is at work: a commit may take its time, while a
// connection that leads nowhere any more would be waited for for ever.
func (c *copyConn) watched(do func() error) error {
	ended := make(chan struct{})
	defer close(ended)
	timer := time.AfterFunc(stall, func() { c.watch(ended) })
	defer timer.Stop()
	err := do()
	if cause := c.dead.Load(); cause != nil && err != nil {
		return *cause
	}
	return err
}

func (c *copyConn) watch(ended <-chan struct{}) {
	for misses := 0; ; {
		ctx, cancel := context.WithTimeout(context.Background(), lookTimeout)
		working, err := c.working(ctx, c.pid)
		cancel()
		if misses++; working {
			misses = 0
		}
		select {
		case <-ended:
			return
		default:
		}
		if misses > 1 { // what was seen once may have been a moment
			cause := fmt.Errorf("the store has taken and said nothing for %s, and its session waits for us or is gone: %w", stall, os.ErrDeadlineExceeded)
			if err != nil {
				cause = fmt.Errorf("the store has taken and said nothing for %s: %w", stall, err)
			}
			c.dead.Store(&cause)
			_ = c.conn.Close()
			return
		}
		select {
		case <-ended:
			return
		case <-time.After(stall / 3):
		}
	}
}

func (c *copyConn) query(sql string) {
	c.out = append(c.out, 'Q')
	c.out = binary.BigEndian.AppendUint32(c.out, uint32(len(sql)+5))
	c.out = append(c.out, sql...)
	c.out = append(c.out, 0)
	c.queries++
}

func (c *copyConn) data(payload string) {
	c.out = append(c.out, 'd')
	c.out = binary.BigEndian.AppendUint32(c.out, uint32(len(payload)+4))
	c.out = append(c.out, payload...)
}

func (c *copyConn) endCopy() {
	c.data(copyTrailer)
	c.out = append(c.out, 'c', 0, 0, 0, 4)
	c.copying = false
}

func (c *copyConn) send() error {
	err := c.write(c.out)
	c.out = c.out[:0]
	return err
}

func (c *copyConn) write(b []byte) error {
	return c.watched(func() error {
		_, err := c.conn.Write(b)
		return err
	})
}

// begin returns what a statement needs in front of it to be part of the batch.
func (c *copyConn) begin() string {
	if c.open {
		return ""
	}
	c.open, c.begun = true, time.Now()
	return "BEGIN; "
}

// copyData sends a CopyData message, beginning the transaction and the COPY if
// need be. Small ones wait for the commit, so that all goes in one write.
func (c *copyConn) copyData(message []byte) error {
	if !c.copying {
		c.query(c.begin() + c.copySQL)
		c.data(copyHeader)
		c.copying = true
	}
	if len(message) < 32<<10 {
		c.out = append(c.out, message...)
		return nil
	}
	if err := c.send(); err != nil {
		return err
	}
	return c.write(message)
}

// between runs statements inside the store transaction after the rows so far. What
// the store has against them, commit says. The answers are read here: with many of
// them unread the store would wait for us to listen, as we do for it.
func (c *copyConn) between(sql string) error {
	if c.copying {
		c.endCopy()
	}
	c.query(c.begin() + sql)
	if err := c.send(); err != nil {
		return err
	}
	_, err := c.receive()
	return err
}

// commit ends the COPY, runs sql, which has the COMMIT in it, and waits for all
// answers. It returns when the batch began.
func (c *copyConn) commit(sql string) (time.Time, error) {
	if c.copying {
		c.endCopy()
	}
	c.query(c.begin() + sql)
	if err := c.send(); err != nil {
		return c.begun, err
	}
	return c.begun, c.end()
}

// run executes sql on its own, outside a batch.
func (c *copyConn) run(sql string) error {
	c.query(sql)
	if err := c.send(); err != nil {
		return err
	}
	return c.end()
}

// receive reads the answers to every query sent. It returns the error of the
// connection, and notes the first of the store.
func (c *copyConn) receive() (txStatus byte, err error) {
	for c.queries > 0 {
		var message pgproto3.BackendMessage
		err := c.watched(func() (err error) {
			message, err = c.frontend.Receive()
			return err
		})
		if err != nil {
			return 0, errors.Join(c.failed, err)
		}
		switch m := message.(type) {
		case *pgproto3.ReadyForQuery:
			c.queries--
			txStatus = m.TxStatus
		case *pgproto3.ErrorResponse:
			if c.failed == nil {
				c.failed = pgconn.ErrorResponseToPgError(m)
			}
		}
	}
	return txStatus, nil
}

// end reads the answers that are still to come and returns the first error.
func (c *copyConn) end() error {
	status, err := c.receive()
	if err == nil {
		err = c.failed
	}
	if err == nil && status != 'I' {
		err = fmt.Errorf("transaction is still open (%c)", status)
	}
	c.open, c.failed = false, nil
	return err
}
