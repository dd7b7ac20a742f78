package auditnats

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/hindsight-go/audit"
)

const (
	keepEvery = time.Second      // the bucket is told where the sink is
	idleEvery = 15 * time.Second // and that there was nothing to publish
)

// Codes of errors for which older versions of nats.go have no name.
const (
	messageTooLarge jetstream.ErrorCode = 10054
	// What newer servers say of a replicated stream.
	wrongLastSequenceOfReplicas jetstream.ErrorCode = 10164
)

// session publishes from where the stream ends until something goes wrong. It belongs to one
// goroutine.
type session struct {
	*Sink
	bucket jetstream.KeyValue
	extent audit.Extent
	skip   uint64 // so many messages were in the stream already

	sent   place // behind the message sent last
	acked  place // behind the message confirmed last
	kept   place // as the bucket has it
	flight []flying
	bytes  int // in flight
}

// flying is a message that was sent and not confirmed.
type flying struct {
	jetstream.PubAckFuture
	place place
	size  int
	due   time.Time
}

// watched is what the watch gave.
type watched struct {
	event audit.Event
	err   error
}

// session runs one.
func (s *Sink) session(ctx context.Context) error {
	stream, bucket, err := s.open(ctx)
	if err != nil {
		return err
	}
	from, err := s.resume(ctx, stream, bucket)
	if err != nil {
		return s.unlessOurs("find out where to go on", err)
	}
	x := &session{Sink: s, bucket: bucket, skip: from.skip, sent: from.place, acked: from.place, kept: from.place}
	if x.extent, err = s.cfg.Client.Extent(ctx); err != nil {
		return err
	}
	if err := x.fits(); err != nil {
		return err
	}
	if !from.inBucket {
		// Before anything is published: should the messages be gone before the bucket is told
		// of them, their number still says where to go on.
		if err := x.keep(ctx, bucket, x.acked); err != nil {
			return x.brokerError("keep the cursor", err)
		}
	}
	watching, stop := context.WithCancel(ctx)
	events := make(chan watched)
	go func() {
		defer close(events)
		for event, err := range x.behind(x.sent.Cursor).Watch(watching) {
			select {
			case events <- watched{event, err}:
			case <-watching.Done():
				return
			}
		}
	}()
	defer func() {
		stop()
		for range events { //nolint:revive // It ends when the watch has.
		}
	}()
	return x.loop(ctx, events)
}

// unlessOurs is brokerError for errors that may be of this package.
func (s *Sink) unlessOurs(doing string, err error) error {
	if permanent(err) {
		return err
	}
	return s.brokerError(doing, err)
}

// fits checks that stream and history go together.
func (x *session) fits() error {
	switch {
	case x.sent.Database != "" && x.sent.Database != x.extent.Database:
		return &StreamError{x.cfg.Stream, fmt.Sprintf("has the changes of %q, and the client is one of %q: give each source a stream of its own", x.sent.Database, x.extent.Database)}
	case x.sent.reached() > x.extent.Stored:
		return &StreamError{x.cfg.Stream, fmt.Sprintf("has changes up to %s, and the history reaches to %s: the history is behind what was published, as after a restore from a backup. Begin a new stream and tell consumers", x.sent.reached(), x.extent.Stored)}
	}
	x.sent.Database, x.acked.Database = x.extent.Database, x.extent.Database
	return nil
}

// query is what is published.
func (x *session) query() audit.Query {
	q := x.cfg.Client.Changes().InDatabase(x.extent.Database)
	if x.cfg.Filter != nil {
		q = x.cfg.Filter(q)
	}
	return q.OldestFirst()
}

// behind is what is published behind a cursor, or from the beginning.
func (x *session) behind(cursor audit.Cursor) audit.Query {
	if cursor != "" {
		return x.query().After(cursor)
	}
	since := x.cfg.Since
	if since.IsZero() {
		since = time.Unix(0, 0) // before any change
	}
	return x.query().Since(since)
}

func (x *session) loop(ctx context.Context, events <-chan watched) error {
	every := time.NewTicker(keepEvery)
	defer every.Stop()
	idle := time.NewTicker(idleEvery)
	defer idle.Stop()
	for {
		var confirmed <-chan *jetstream.PubAck
		var refused <-chan error
		if len(x.flight) > 0 {
			confirmed, refused = x.flight[0].Ok(), x.flight[0].Err()
		}
		incoming := events
		if len(x.flight) >= x.cfg.MaxPending || x.bytes >= x.cfg.MaxPendingBytes {
			incoming = nil // until the broker has caught up
		}
		var err error
		select {
		case <-ctx.Done():
			return x.drain(ctx)
		case w, more := <-incoming:
			switch {
			case !more:
				err = errors.New("auditnats: the watch has ended")
			case w.err != nil:
				err = w.err
			default:
				err = x.take(ctx, w.event)
			}
		case ack := <-confirmed:
			err = x.confirm(ctx, ack)
		case err = <-refused:
			err = x.refusal(err)
		case now := <-every.C:
			if len(x.flight) > 0 && now.After(x.flight[0].due) {
				err = errLate
			} else {
				err = x.keepPlace(ctx)
			}
		case <-idle.C:
			err = x.lookAround(ctx)
		}
		if permanent(err) {
			_ = x.drain(ctx) // what was sent before is not the reason
		}
		if err != nil {
			_ = x.keepPlace(ctx) // if it can be; else what the bucket has will do
			return err
		}
	}
}

// take publishes an event.
func (x *session) take(ctx context.Context, e audit.Event) error {
	if e.CreatedAt.After(x.extent.AskedAt) || day(e.CommittedAt) != day(x.sent.CommittedAt) {
		// There may be a gap before it that was not known then, or retention may have
		// come in between: it drops whole days.
		var err error
		if x.extent, err = x.cfg.Client.Extent(ctx); err != nil {
			return err
		}
	}
	if err := x.reportLosses(ctx, e.Position.LSN); err != nil {
		return err
	}
	next := place{Cursor: e.Cursor, Database: e.Database, Position: e.Position, CommittedAt: e.CommittedAt, Through: x.sent.Through}
	m, err := x.message(e.Change, next)
	if err != nil {
		return err
	}
	return x.publish(m, next)
}

func day(t time.Time) int64 { return t.Unix() / (24 * 60 * 60) }

// reportLosses reports what is missing between what was sent and a position.
func (x *session) reportLosses(ctx context.Context, until audit.LSN) error {
	e := x.extent
	if x.sent.Cursor != "" && e.DroppedUntil.After(x.sent.CommittedAt) && e.Dropped < until &&
		(e.Dropped > x.sent.reached() || e.Dropped == x.sent.Position.LSN && e.Dropped > x.sent.Through.LSN) {
		err := x.report(ctx, Loss{To: audit.Position{LSN: e.Dropped}, ToTime: e.DroppedUntil, Reason: "retention has dropped them (Config.Retention of the client)"})
		if err != nil {
			return err
		}
	}
	for _, gap := range e.Gaps {
		if gap.To <= x.sent.reached() || gap.To > until || x.sent.Cursor == "" && gap.ToTime.Before(x.cfg.Since) {
			continue
		}
		err := x.report(ctx, Loss{To: audit.Position{LSN: gap.To}, ToTime: gap.ToTime, Reason: "the history has a gap: " + gap.Reason})
		if err != nil {
			return err
		}
	}
	return nil
}

func (x *session) report(ctx context.Context, loss Loss) error {
	loss.Database, loss.From = x.extent.Database, x.sent.Position
	if x.sent.Through.LSN > loss.From.LSN {
		loss.From = x.sent.Through
	}
	if x.cfg.OnLoss == StopAtLoss {
		return &LossError{loss}
	}
	x.cfg.Logger.ErrorContext(ctx, "auditnats: changes are missing in the history, which consumers are told", "stream", x.cfg.Stream, "from", loss.From.String(), "to", loss.To.String(), "reason", loss.Reason)
	next := x.sent
	next.Through = loss.To
	m, err := x.lossMessage(loss, next)
	if err != nil {
		return err
	}
	return x.publish(m, next)
}

// publish sends a message which leads to a place: behind the last one, or nowhere.
func (x *session) publish(m *nats.Msg, next place) error {
	if x.skip > 0 { // its message is gone, and was published
		next.Sequence = x.sent.Sequence
		if x.sent, x.skip = next, x.skip-1; x.skip == 0 {
			x.acked = next
		}
		return nil
	}
	future, err := x.cfg.JetStream.PublishMsgAsync(m,
		jetstream.WithExpectStream(x.cfg.Stream), jetstream.WithExpectLastSequence(x.sent.Sequence), jetstream.WithRetryAttempts(0))
	if err != nil {
		return x.brokerError("publish", err)
	}
	next.Sequence = x.sent.Sequence + 1
	x.sent = next
	size := m.Size()
	x.flight = append(x.flight, flying{future, next, size, time.Now().Add(x.cfg.AckWait)})
	x.bytes += size
	return nil
}

// confirm takes note that the stream has the oldest message in flight.
func (x *session) confirm(ctx context.Context, ack *jetstream.PubAck) error {
	head := x.flight[0]
	if ack.Duplicate || ack.Sequence != head.place.Sequence {
		return errRefused // it went elsewhere, by another instance
	}
	x.flight, x.bytes = x.flight[1:], x.bytes-head.size
	x.acked, x.refusals = head.place, 0
	if x.failing != "" {
		x.failing = ""
		x.cfg.Logger.InfoContext(ctx, "auditnats: publishing again", "stream", x.cfg.Stream)
	}
	return nil
}

// refusal is what became of the oldest message in flight. Those behind it are refused for
// being out of turn, if they come at all.
func (x *session) refusal(err error) error {
	var api *jetstream.APIError
	if errors.As(err, &api) {
		switch api.ErrorCode {
		case jetstream.JSErrCodeStreamWrongLastSequence, wrongLastSequenceOfReplicas:
			return errRefused
		case messageTooLarge:
			return &OversizeError{x.flight[0].place.Position, x.flight[0].size, x.maxMsgSize}
		}
	}
	return x.brokerError("publish", err)
}

// drain waits for what is on its way, and keeps where the stream ends.
func (x *session) drain(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), drainTime)
	defer cancel()
	for len(x.flight) > 0 {
		select {
		case ack := <-x.flight[0].Ok():
			if err := x.confirm(ctx, ack); err != nil {
				return err
			}
		case err := <-x.flight[0].Err():
			return x.refusal(err)
		case <-ctx.Done():
			return errLate
		}
	}
	return x.keepPlace(ctx)
}

// keepPlace tells the bucket where the stream ends.
func (x *session) keepPlace(ctx context.Context) error {
	if x.acked == x.kept || x.acked.Sequence == 0 {
		return nil
	}
	if err := x.keep(ctx, x.bucket, x.acked); err != nil {
		return x.brokerError("keep the cursor", err)
	}
	x.kept = x.acked
	return nil
}

// lookAround finds out, when there was nothing to publish, up to where that holds, and
// whether anything is missing by now.
func (x *session) lookAround(ctx context.Context) error {
	if len(x.flight) > 0 || x.skip > 0 {
		return nil
	}
	extent, err := x.cfg.Client.Extent(ctx)
	if err != nil {
		return err
	}
	if extent.Stored <= x.sent.reached() {
		return nil
	}
	q := x.behind("")
	if x.sent.Cursor != "" {
		q = x.query()
		q = q.After(q.CursorAfter(audit.Change{Database: x.sent.Database, Position: x.sent.Position}))
	}
	switch _, err := q.First(ctx); {
	case err == nil:
		return nil // the watch is about to give it
	case !errors.Is(err, audit.ErrNotFound):
		return err
	}
	x.extent = extent
	if err := x.reportLosses(ctx, extent.Stored); err != nil {
		return err
	}
	x.sent.Through = audit.Position{LSN: extent.Stored}
	if len(x.flight) == 0 {
		x.acked.Through = x.sent.Through
	}
	return x.keepPlace(ctx)
}
