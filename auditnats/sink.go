package auditnats

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/hindsight-go/audit"
)

const (
	// The sink tries again after the shorter time, and after up to the longer one where that
	// goes wrong again.
	retrySoon = 100 * time.Millisecond
	retryLate = 5 * time.Second

	// An instance that waits looks this often whether another one publishes, and tries for
	// itself when it has not seen anything for so many looks.
	standbyLook  = time.Second
	standbyLooks = 3

	// drainTime bounds how long Run waits for what is on its way when ctx has ended.
	drainTime = 10 * time.Second
)

// Sink publishes the history of a source. Its methods may be called from several goroutines.
type Sink struct {
	cfg     Config
	running atomic.Bool

	// Of the goroutine of Run.
	subjects   []string // that the stream takes
	maxMsgSize int      // of the stream; 0 and less: none of its own
	refusals   int      // by the stream, of messages out of turn, since one was confirmed
	failing    string   // what is said to be wrong, until a message is confirmed
}

var (
	// errRefused is for a stream that was not where the session took it to be.
	errRefused = errors.New("the stream has gone on meanwhile")
	errLate    = errors.New("the broker has not confirmed a message in time")
)

// Run publishes until ctx ends, and then waits for what is on its way, for up to ten seconds, and
// returns nil. While the broker or the database is away it tries again, for ever. It returns an
// error for what trying again does not mend: a [*LossError], [*OversizeError], [*SubjectError] or
// [*StreamError], [ErrConnectionClosed] or [audit.ErrClosed]. After any of them, and after a kill, the
// next Run goes on where the stream ends.
func (s *Sink) Run(ctx context.Context) error {
	if !s.running.CompareAndSwap(false, true) {
		return errors.New("auditnats: the sink is running already")
	}
	defer s.running.Store(false)
	s.refusals, s.failing = 0, ""
	wait := retrySoon
	for {
		begun := time.Now()
		err := s.session(ctx)
		switch {
		case permanent(err):
			return err
		case ctx.Err() != nil:
			return nil
		case errors.Is(err, errRefused):
			if s.refusals++; s.refusals > 1 {
				s.standBy(ctx)
			}
			continue
		}
		if time.Since(begun) > time.Minute {
			wait = retrySoon
		}
		if text := err.Error(); text != s.failing {
			s.failing = text
			s.cfg.Logger.WarnContext(ctx, "auditnats: publishing was interrupted and is tried again", "stream", s.cfg.Stream, "error", err)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(wait/2 + rand.N(wait/2)): //nolint:gosec // It is no secret.
		}
		wait = min(wait*2, retryLate)
	}
}

// permanent tells what trying again does not mend.
func permanent(err error) bool {
	var loss *LossError
	var oversize *OversizeError
	var subject *SubjectError
	var stream *StreamError
	var cursor *audit.CursorError
	var filter *audit.FilterError
	return errors.As(err, &loss) || errors.As(err, &oversize) || errors.As(err, &subject) || errors.As(err, &stream) ||
		errors.As(err, &cursor) || errors.As(err, &filter) || errors.Is(err, ErrConnectionClosed) || errors.Is(err, audit.ErrClosed)
}

// standBy waits until nobody else seems to publish.
func (s *Sink) standBy(ctx context.Context) {
	s.cfg.Logger.InfoContext(ctx, "auditnats: another instance publishes, this one waits", "stream", s.cfg.Stream)
	var last uint64
	for quiet := 0; quiet < standbyLooks; {
		select {
		case <-ctx.Done():
			return
		case <-time.After(standbyLook/2 + rand.N(standbyLook)): //nolint:gosec // It is no secret.
		}
		stream, err := s.cfg.JetStream.Stream(ctx, s.cfg.Stream)
		if err != nil {
			return // the session says what is wrong
		}
		if now := stream.CachedInfo().State.LastSeq; now != last {
			last, quiet = now, 0
		} else {
			quiet++
		}
	}
}

// open finds the stream and the bucket, or makes them.
func (s *Sink) open(ctx context.Context) (jetstream.Stream, jetstream.KeyValue, error) {
	js := s.cfg.JetStream
	stream, err := js.Stream(ctx, s.cfg.Stream)
	if errors.Is(err, jetstream.ErrStreamNotFound) {
		stream, err = js.CreateStream(ctx, jetstream.StreamConfig{
			Name: s.cfg.Stream, Description: "changes of a database, by auditnats", Subjects: []string{s.cfg.Prefix + ".>"}, Storage: jetstream.FileStorage,
		})
		if api := (*jetstream.APIError)(nil); errors.As(err, &api) && api.Code == 400 && !errors.Is(err, jetstream.ErrStreamNameAlreadyInUse) {
			return nil, nil, &StreamError{s.cfg.Stream, "is not there and cannot be made: " + api.Description}
		}
	}
	if err != nil {
		return nil, nil, s.brokerError("look for the stream", err)
	}
	bucket, err := js.KeyValue(ctx, s.cfg.Bucket)
	if errors.Is(err, jetstream.ErrBucketNotFound) {
		bucket, err = js.CreateKeyValue(ctx, jetstream.KeyValueConfig{
			Bucket: s.cfg.Bucket, Description: "cursors of auditnats", Storage: jetstream.FileStorage, Replicas: stream.CachedInfo().Config.Replicas,
		})
	}
	if err != nil {
		return nil, nil, s.brokerError("look for the bucket", err)
	}
	return stream, bucket, nil
}

// brokerError says what was done when the broker failed.
func (s *Sink) brokerError(doing string, err error) error {
	if errors.Is(err, nats.ErrConnectionClosed) {
		return ErrConnectionClosed
	}
	return fmt.Errorf("auditnats: %s: %w", doing, err)
}
