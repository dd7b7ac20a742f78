package capture

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"time"
	"unicode/utf8"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgproto3"

	"github.com/hindsight-go/audit/internal/wal"
)

const (
	// behindBy tells a backlog from the tail of the log: so far in the past, by
	// the server's own clock, a transaction was committed when it was sent.
	behindBy = int64(250 * time.Millisecond / time.Microsecond)
	// Under a backlog, a dry moment is no reason to store yet: it has to last. There
	// is no pause to let small reads gather, though: a socket's buffer holds only
	// some hundred small messages, so a sleeping reader stops the server.
	dryFor = 10 * time.Millisecond
)

// session reads one stream into one sink, from START_REPLICATION until either
// fails. It runs on one goroutine.
type session struct {
	cfg    *Config
	stream *stream
	sink   Sink
	start  LSN // transactions that committed before it are stored already

	progress chan struct{}
	stopping <-chan struct{}

	relations  map[uint32]*relationState
	structures map[uint32]*wal.Structure // what is known of tables at this place of the stream
	tokens     []string                  // by which our own messages are known
	warned     map[uint32]bool           // by OID: that its changes are dropped was said
	kinds      *Kinds
	rows       rowDecoder
	lastOID    uint32
	lastState  *relationState

	charset   *charset
	before    LSN // the transaction to end in front of, or 0
	position  LSN // of the transaction at hand
	inTx      bool
	skip      bool
	xid       uint64 // the newest 64-bit transaction id seen
	readTime  int64
	sent      int64 // the server's clock when it sent the message at hand
	committed int64 // commit time of the transaction at hand
	through   LSN   // everything before it was read

	confirmed  LSN
	statusSent time.Time
	reply      bool
}

// relationState is a table as the stream described it last.
type relationState struct {
	message relationMessage
	// relation is nil until the first row that the message is for.
	relation *wal.Relation
	excluded bool // its changes are none of ours
}

// run reads until the stream or the sink fails, stopping is closed, or ctx ends.
// It returns nil only after an orderly stop.
func (s *session) run(ctx context.Context) error {
	stop := context.AfterFunc(ctx, s.stream.wake)
	defer stop()
	wakeOnStop := make(chan struct{})
	defer close(wakeOnStop)
	go func() {
		select {
		case <-s.stopping:
			s.stream.wake()
		case <-wakeOnStop:
		}
	}()
	for {
		if err := s.drain(ctx); err != nil {
			return err
		}
		select {
		case <-s.stopping:
			if !s.inTx {
				return s.finish(ctx)
			}
			// In the midst of a transaction: its rows may be on their way together
			// with whole transactions before it, so it is read to its end.
		default:
		}
		deadline := s.statusSent.Add(statusInterval)
		if s.behind() {
			deadline = time.Now().Add(dryFor)
		} else {
			s.sink.Flush()
		}
		if err := s.keepAlive(); err != nil {
			return err
		}
		s.stream.lastRead = 0
		dry, err := s.stream.fill(deadline)
		if err != nil {
			return streamEnded(err)
		}
		switch {
		case s.stream.lastRead > 0:
			s.stream.heard = time.Now()
		case dry && s.behind():
			s.committed = s.sent // not behind any more: what there is is stored
		}
		if time.Since(s.stream.heard) > silence {
			return fmt.Errorf("read replication stream: the server has said nothing for %s", silence)
		}
	}
}

func streamEnded(err error) error {
	if errors.Is(err, io.EOF) {
		return fmt.Errorf("read replication stream: the server closed the connection: %w", io.ErrUnexpectedEOF)
	}
	return fmt.Errorf("read replication stream: %w", err)
}

// behind reports whether what is being read is a backlog.
func (s *session) behind() bool { return s.sent-s.committed > behindBy && s.committed != 0 }

// drain handles every whole message in the buffer, waiting for the sink where it
// is full. The server is held back by TCP meanwhile, and kept informed.
func (s *session) drain(ctx context.Context) error {
	s.readTime = wal.Microseconds(time.Now())
	for {
		if err := s.sink.Err(); err != nil {
			return err
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		for s.sink.Full() {
			if err := s.waitForSink(ctx); err != nil {
				return err
			}
		}
		kind, body, ok, err := s.stream.next()
		if err != nil || !ok {
			return err
		}
		if err := s.message(ctx, kind, body); err != nil {
			return err
		}
	}
}

func (s *session) waitForSink(ctx context.Context) error {
	timer := time.NewTimer(time.Second)
	defer timer.Stop()
	select {
	case <-s.progress:
	case <-timer.C:
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	// The server cannot get through to ask for a reply while we do not read.
	s.stream.heard = time.Now()
	if err := s.keepAlive(); err != nil {
		return err
	}
	return s.sink.Err()
}

// keepAlive confirms what is durable when that is news, asked for, or due.
func (s *session) keepAlive() error {
	durable := s.sink.Durable()
	since := time.Since(s.statusSent)
	news := durable > s.confirmed && since > 100*time.Millisecond
	if !news && !s.reply && since < statusInterval {
		return nil
	}
	if err := s.stream.confirm(durable); err != nil {
		return fmt.Errorf("confirm position: %w", err)
	}
	s.confirmed, s.reply, s.statusSent = durable, false, time.Now()
	return nil
}

func (s *session) message(ctx context.Context, kind byte, body []byte) error {
	switch kind {
	case 'd':
		if len(body) == 0 {
			return &DecodeError{Message: kind, Reason: errShort}
		}
		return s.copyData(ctx, body[0], body[1:])
	case 'E':
		return s.failed(serverError(body))
	case 'N':
		return s.notice(ctx, body)
	case 'S': // a parameter status
		return nil
	case 'c', 'C', 'Z':
		return errors.New("read replication stream: the server ended it")
	}
	return &DecodeError{Message: kind, Reason: errors.New("not part of the replication protocol")}
}

// failed tells an error about what is being sent from one about the connection or the
// server: data that has no equivalent in our encoding (22), a row larger than a message
// can be (54), what the server finds corrupt (XX).
func (s *session) failed(err error) error {
	var pgErr *pgconn.PgError
	if !s.inTx || s.skip || !errors.As(err, &pgErr) || len(pgErr.Code) != 5 {
		return err
	}
	switch pgErr.Code[:2] {
	case "22", "54", "XX":
		return &UnsendableError{Position: s.position, Cause: withoutValues(pgErr)}
	}
	return err
}

// withoutValues drops what of an error of the server may quote a row.
func withoutValues(e *pgconn.PgError) *pgconn.PgError {
	c := *e
	c.Detail, c.Where = "", ""
	return &c
}

// endBefore ends the session in front of a transaction that the server cannot send,
// when the sink has stored what came before it.
func (s *session) endBefore(ctx context.Context) error {
	s.inTx = false
	s.sink.Finish()
	for !s.sink.Idle() {
		if err := s.sink.Err(); err != nil {
			return err
		}
		select {
		case <-s.progress:
		case <-time.After(time.Second):
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	if err := s.sink.Err(); err != nil {
		return err
	}
	return &UnsendableError{Position: s.position, Stored: true, Cause: errors.New("its changes are left out")}
}

// notice heeds the warnings of the server. From 18 on it goes on with one where the
// publication did not exist when a change was made, and leaves the change out.
func (s *session) notice(ctx context.Context, body []byte) error {
	var m pgproto3.NoticeResponse
	if err := m.Decode(body); err != nil {
		return &DecodeError{Message: 'N', Reason: err}
	}
	if m.Code == "55000" && m.SeverityUnlocalized == "WARNING" {
		return fmt.Errorf("%w: %s", ErrPublicationLost, m.Message)
	}
	s.cfg.Logger.WarnContext(ctx, "audit: the source warns", "code", m.Code, "message", m.Message)
	return nil
}

func (s *session) copyData(ctx context.Context, kind byte, body []byte) error {
	switch kind {
	case 'w': // XLogData: start, end of WAL, clock, payload
		if len(body) < 25 {
			return &DecodeError{Message: kind, Reason: errShort}
		}
		s.sent = int64(binary.BigEndian.Uint64(body[16:]))
		if err := s.change(ctx, body[24], body[25:]); err != nil {
			return err
		}
		return nil
	case 'k': // keepalive: end of WAL, clock, whether a reply is asked for
		if len(body) < 17 {
			return &DecodeError{Message: kind, Reason: errShort}
		}
		if lsn := LSN(binary.BigEndian.Uint64(body)); !s.inTx {
			s.through = max(s.through, lsn)
			s.sink.Advance(lsn)
		}
		if body[16] != 0 {
			s.reply = true
			if !s.inTx {
				// A server that wants to stop asks until everything is confirmed, and
				// waits for that. What there is to confirm is stored now; and if the
				// store is gone, being on that server itself, this finds out, and the
				// stream ends.
				s.sink.Finish()
			}
		}
		return nil
	}
	return &DecodeError{Message: kind, Reason: errors.New("unknown replication message")}
}

// change handles one pgoutput message.
func (s *session) change(ctx context.Context, kind byte, body []byte) error {
	var err error
	switch kind {
	case msgInsert, msgUpdate, msgDelete:
		err = s.row(ctx, kind, body)
	case msgBegin:
		if err = s.begin(body); err == nil && s.before != 0 && s.position >= s.before {
			return s.endBefore(ctx)
		}
	case msgCommit:
		err = s.commit(body)
	case msgMessage:
		err = s.logicalMessage(body)
	case msgRelation:
		err = s.relation(body)
	case msgTruncate:
		err = s.truncate(ctx, body)
	case msgOrigin, msgType, msgStreamAbort:
		return nil
	default:
		err = errors.New("unknown message type")
	}
	if err == nil {
		return nil
	}
	var lookup *lookupError
	if errors.As(err, &lookup) {
		return err
	}
	return &DecodeError{Message: kind, Reason: err}
}

func (s *session) begin(body []byte) error {
	m, err := decodeBegin(body)
	if err != nil {
		return err
	}
	if s.inTx {
		return errors.New("transaction inside a transaction")
	}
	s.inTx, s.committed, s.position = true, m.CommitTime, m.FinalLSN
	if s.before != 0 && m.FinalLSN >= s.before {
		return nil
	}
	// What committed before the checkpoint is stored. The server skips it by
	// itself unless the checkpoint moved between reading it and starting.
	if s.skip = m.FinalLSN < s.start; s.skip {
		return nil
	}
	s.sink.Begin(wal.Transaction{XID: s.widen(m.XID), CommitLSN: m.FinalLSN, CommitTime: m.CommitTime, ReadTime: s.readTime})
	return nil
}

// widen makes a 64-bit transaction id of the 32 bits on the wire: of all ids
// that end in them, the one nearest to the newest known.
func (s *session) widen(xid uint32) uint64 {
	const epoch = 1 << 32
	wide := s.xid&^(epoch-1) | uint64(xid)
	switch {
	case wide > s.xid+epoch/2 && wide >= epoch:
		wide -= epoch
	case wide+epoch/2 < s.xid:
		wide += epoch
	}
	s.xid = max(s.xid, wide)
	return wide
}

func (s *session) commit(body []byte) error {
	m, err := decodeCommit(body)
	if err != nil {
		return err
	}
	if !s.inTx {
		return errors.New("commit outside a transaction")
	}
	s.inTx = false
	s.through = max(s.through, m.EndLSN)
	if !s.skip {
		s.sink.Commit(m.EndLSN)
	}
	s.skip = false
	return nil
}

func (s *session) row(ctx context.Context, kind byte, body []byte) error {
	oid, err := relationOID(body)
	if err != nil {
		return err
	}
	if !s.inTx {
		return errors.New("change outside a transaction")
	}
	if s.skip {
		return nil
	}
	state, err := s.state(ctx, oid)
	if err != nil {
		return err
	}
	row, err := s.rows.decode(kind, body, state.relation)
	if err != nil {
		return err
	}
	if state.excluded {
		return nil
	}
	if s.charset != nil {
		s.charset.row(row)
	}
	s.sink.Row(row)
	return nil
}

// state returns the table that a row is of, and tells the sink of it first.
func (s *session) state(ctx context.Context, oid uint32) (*relationState, error) {
	if oid == s.lastOID && s.lastState != nil {
		return s.lastState, nil
	}
	state := s.relations[oid]
	if state == nil {
		return nil, fmt.Errorf("relation %d was never described", oid)
	}
	if state.relation == nil {
		rel, err := s.describe(ctx, state.message)
		if err != nil {
			return nil, err
		}
		if s.cfg.Wanted != nil {
			if state.excluded, err = s.excluded(ctx, rel); err != nil {
				return nil, err
			}
		}
		if state.excluded && !s.warned[oid] {
			s.warned[oid] = true
			s.cfg.Logger.WarnContext(ctx, "audit: the publication sends a table that is not tracked; its changes are dropped", "schema", rel.Schema, "table", rel.Table)
		}
		state.relation = rel
		if !state.excluded {
			s.sink.Relation(rel)
		}
	}
	s.lastOID, s.lastState = oid, state
	return state, nil
}

// truncate handles the one message that names all relations of a TRUNCATE. A
// partition in it is emptied on its own, unless its root, or every partition of
// that, is named as well.
func (s *session) truncate(ctx context.Context, body []byte) error {
	if !s.inTx {
		return errors.New("change outside a transaction")
	}
	if s.skip {
		return nil
	}
	var states []*relationState
	whole := make(map[uint32]bool) // by OID: said to be empty as a whole
	leaves := make(map[uint32]int) // by root: partitions named
	err := decodeTruncate(body, func(oid uint32) error {
		state, err := s.state(ctx, oid)
		if err != nil {
			return err
		}
		if state.excluded {
			return nil
		}
		states = append(states, state)
		if rel := state.relation; rel.Partition == "" {
			whole[oid] = true
		} else {
			leaves[rel.Root]++
		}
		return nil
	})
	if err != nil {
		return err
	}
	emptied := make(map[uint32]bool) // by root: every partition is named
	for root, named := range leaves {
		n, err := s.leaves(ctx, root)
		if err != nil {
			return err
		}
		emptied[root] = named >= n
	}
	for _, state := range states {
		rel := state.relation
		row := &wal.Row{Operation: wal.Truncate, Relation: rel}
		switch {
		case rel.Partition == "":
		case whole[rel.Root]:
			continue
		case emptied[rel.Root]:
			whole[rel.Root] = true // the first of them stands for all
		default:
			row.Partition = rel.Partition
		}
		s.sink.Row(row)
	}
	return nil
}

func (s *session) logicalMessage(body []byte) error {
	m, err := decodeMessage(body)
	if err != nil {
		return err
	}
	prefix := string(m.Prefix)
	if !m.Transactional {
		// Such a message belongs to no transaction and comes from rolled back
		// ones, too: it is nobody's context.
		if prefix == s.cfg.Prefix+RefreshSuffix && s.cfg.OnRefresh != nil {
			s.cfg.OnRefresh()
		}
		return nil
	}
	switch {
	case !s.inTx:
		return errors.New("transactional message outside a transaction")
	case s.skip:
	case prefix == s.cfg.Prefix, prefix == defaultPrefix, prefix == bemiPrefix:
		if s.charset != nil && m.Size == len(m.Content) { // the server does not convert it
			m.Content = s.charset.name(m.Content)
			m.Size = len(m.Content)
		}
		s.sink.Stamp(m.Content, m.Size)
	case prefix == s.cfg.Prefix+SyncSuffix:
		s.sink.Barrier(string(m.Content))
	case prefix == s.cfg.Prefix+StructureSuffix:
		content := m.Content
		if s.charset != nil {
			content = s.charset.name(content)
		}
		if !utf8.Valid(content) {
			return nil // of an encoding that nobody converts: the next look at the catalog tells
		}
		return s.structure(content)
	}
	return nil
}

func (s *session) relation(body []byte) error {
	m, err := decodeRelation(body)
	if err != nil {
		return err
	}
	if s.charset != nil {
		s.charset.relation(&m)
	}
	s.relations[m.OID] = &relationState{message: m}
	s.lastState = nil
	return nil
}

// finish stores what was read, confirms it, and ends the stream.
func (s *session) finish(ctx context.Context) error {
	s.sink.Finish()
	for !s.sink.Idle() {
		if err := s.waitForSink(ctx); err != nil {
			return err
		}
	}
	if err := s.sink.Err(); err != nil {
		return err
	}
	if err := s.stream.confirm(s.sink.Durable()); err != nil {
		return fmt.Errorf("confirm position: %w", err)
	}
	s.stream.finish()
	return nil
}
