package capture

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgproto3"

	"github.com/hindsight-go/audit/internal/deadpeer"
	"github.com/hindsight-go/audit/internal/wal"
)

const (
	readBuffer = 1 << 20
	// senderTimeout is the server's wal_sender_timeout for our session. It is how
	// long a holder that vanished without closing its connection keeps the slot.
	senderTimeout = 20 * time.Second
	// statusInterval keeps well inside the server's timeout.
	statusInterval = 5 * time.Second
	// silence is how long the server may say nothing: before 15 it does while it
	// decodes a huge transaction that does not concern us, and giving up on it
	// would only make it begin again. A peer that is dead is found by TCP
	// keepalive long before.
	silence      = 30 * time.Minute
	writeTimeout = 30 * time.Second
)

// stream is a connection in copy-both mode. One goroutine owns it; only wake and fail
// may be called from others.
type stream struct {
	conn     net.Conn
	buf      []byte
	from, to int // the unread part of buf
	limits   limits
	charset  *charset   // nil where nothing has to be converted
	large    *condenser // of the message at hand, if that is larger than buf
	woken    atomic.Bool
	waking   sync.Mutex
	finished bool                  // guarded by waking: wake may not touch the deadline any more
	broken   atomic.Pointer[error] // why fail was called
	pid      int                   // of the server's process, guarded by the reader's mu
	lastRead int
	heard    time.Time
	status   [1 + 4 + 1 + 8 + 8 + 8 + 8 + 1]byte
}

// replicationConfig returns the settings of a replication connection. Everything
// that changes the text of a value is pinned: the same row must give the same
// bytes whatever the role, the database or the server have as their defaults.
func replicationConfig(base *pgconn.Config) *pgconn.Config {
	config := base.Copy()
	for name, value := range map[string]string{
		"replication":           "database",
		"application_name":      "audit capture",
		"client_encoding":       "UTF8",
		"client_min_messages":   "warning",
		"datestyle":             "ISO",
		"intervalstyle":         "postgres",
		"timezone":              "UTC",
		"search_path":           "pg_catalog", // names in regclass and the like get their schema
		"extra_float_digits":    "3",
		"bytea_output":          "hex",
		"quote_all_identifiers": "off",
		"statement_timeout":     "0",
		"lock_timeout":          "0",
		"wal_sender_timeout":    fmt.Sprintf("%dms", senderTimeout.Milliseconds()),
	} {
		config.RuntimeParams[name] = value
	}
	deadpeer.Guard(config)
	return config
}

// startStream takes the connection over and starts replication on it. It does so
// before START_REPLICATION: what the driver reads ahead after it would be lost.
func startStream(ctx context.Context, pg *pgconn.PgConn, slot, publication string, start LSN, l limits) (*stream, error) {
	h, err := pg.Hijack()
	if err != nil {
		return nil, err
	}
	s := &stream{conn: h.Conn, buf: make([]byte, readBuffer), limits: l, heard: time.Now()}
	stop := context.AfterFunc(ctx, func() { _ = s.conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	sql := fmt.Sprintf("START_REPLICATION SLOT %s LOGICAL %s (proto_version '1', publication_names %s, messages 'true')",
		pgx.Identifier{slot}.Sanitize(), start, quoteLiteral(pgx.Identifier{publication}.Sanitize()))
	message := binary.BigEndian.AppendUint32([]byte{'Q'}, uint32(len(sql)+5))
	message = append(append(message, sql...), 0)
	if _, err := s.conn.Write(message); err != nil {
		s.close()
		return nil, err
	}
	for {
		kind, body, ok, err := s.next()
		if err == nil && !ok {
			if _, err = s.fill(time.Time{}); err == nil {
				continue
			}
		}
		switch {
		case err != nil:
			s.close()
			if ctx.Err() != nil {
				return nil, ctx.Err()
			}
			return nil, err
		case kind == 'W':
			return s, nil
		case kind == 'E':
			err := serverError(body)
			s.close()
			return nil, err
		}
	}
}

func (s *stream) close() { _ = s.conn.Close() }

// wake makes a read in progress, or the next one, return at once.
func (s *stream) wake() {
	s.woken.Store(true)
	s.waking.Lock()
	defer s.waking.Unlock()
	if !s.finished {
		_ = s.conn.SetReadDeadline(time.Unix(1, 0))
	}
}

// fail makes the session end with the given error.
func (s *stream) fail(reason error) {
	s.broken.CompareAndSwap(nil, &reason)
	_ = s.conn.Close()
}

// next returns the next whole message. Of one that is larger than the buffer it is
// the condensed form.
func (s *stream) next() (kind byte, body []byte, ok bool, err error) {
	if s.large != nil {
		return s.condense()
	}
	if s.to-s.from < 5 {
		return 0, nil, false, nil
	}
	size := int(binary.BigEndian.Uint32(s.buf[s.from+1:]))
	if size < 4 {
		return 0, nil, false, &DecodeError{Message: s.buf[s.from], Reason: errShort}
	}
	if size+1 > len(s.buf) {
		s.large = newCondenser(s.limits, s.buf[s.from], size-4)
		s.from += 5
		return s.condense()
	}
	if s.to-s.from < size+1 {
		return 0, nil, false, nil
	}
	kind = s.buf[s.from]
	body = s.buf[s.from+5 : s.from+1+size]
	s.from += size + 1
	return kind, body, true, nil
}

func (s *stream) condense() (kind byte, body []byte, ok bool, err error) {
	used, done, err := s.large.feed(s.buf[s.from:s.to])
	s.from += used
	if err != nil || !done {
		return 0, nil, false, err
	}
	kind, body = s.large.kind, s.large.out
	s.large = nil
	return kind, body, true, nil
}

// fill reads what there is, waiting until deadline. It returns nil without
// having read anything if the deadline passed, which dry tells, or wake was
// called.
func (s *stream) fill(deadline time.Time) (dry bool, err error) {
	if s.from == s.to {
		s.from, s.to = 0, 0
	} else if s.from > 0 && len(s.buf)-s.to < len(s.buf)/4 {
		s.to = copy(s.buf, s.buf[s.from:s.to])
		s.from = 0
	}
	if err := s.conn.SetReadDeadline(deadline); err != nil {
		return false, s.reason(err)
	}
	if s.woken.Swap(false) {
		return false, nil
	}
	n, err := s.conn.Read(s.buf[s.to:])
	s.to += n
	s.lastRead = n
	if n > 0 {
		return false, nil
	}
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return !s.woken.Swap(false), nil
	}
	return false, s.reason(err)
}

// reason returns why the connection was broken, if it was from here.
func (s *stream) reason(err error) error {
	if broken := s.broken.Load(); broken != nil {
		return *broken
	}
	return err
}

// confirm tells the server up to where everything is stored for good.
//
// Source: PostgreSQL documentation, "Streaming Replication Protocol", Standby
// status update.
func (s *stream) confirm(lsn LSN) error {
	b := s.status[:]
	b[0] = 'd'
	binary.BigEndian.PutUint32(b[1:], uint32(len(b)-1))
	b[5] = 'r'
	for _, at := range []int{6, 14, 22} { // written, flushed, applied
		binary.BigEndian.PutUint64(b[at:], uint64(lsn))
	}
	binary.BigEndian.PutUint64(b[30:], uint64(wal.Microseconds(time.Now())))
	b[38] = 0
	if err := s.conn.SetWriteDeadline(time.Now().Add(writeTimeout)); err != nil {
		return err
	}
	_, err := s.conn.Write(b)
	return s.reason(err)
}

// finish ends the copy from our side, so that the server logs no error, and waits
// until the server has read that and hangs up. A connection that is closed with
// something unread is reset, and what was confirmed last is lost with it.
func (s *stream) finish() {
	defer s.close()
	s.waking.Lock()
	s.finished = true
	_ = s.conn.SetDeadline(time.Now().Add(time.Second))
	s.waking.Unlock()
	if _, err := s.conn.Write([]byte{'c', 0, 0, 0, 4, 'X', 0, 0, 0, 4}); err == nil {
		_, _ = io.Copy(io.Discard, s.conn)
	}
}

func serverError(body []byte) error {
	var m pgproto3.ErrorResponse
	if err := m.Decode(body); err != nil {
		return &DecodeError{Message: 'E', Reason: err}
	}
	return pgconn.ErrorResponseToPgError(&m)
}

func quoteLiteral(s string) string { return "'" + strings.ReplaceAll(s, "'", "''") + "'" }
