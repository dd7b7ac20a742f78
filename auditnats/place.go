package auditnats

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/hindsight-go/audit"
)

// The headers of a message, beside Nats-Msg-Id.
const (
	// HeaderCursor is the audit.Cursor behind the change.
	HeaderCursor = "Audit-Cursor"
	// HeaderPosition is the change's position.
	HeaderPosition = "Audit-Position"
	// HeaderDatabase is the name of the source, escaped as in a URL.
	HeaderDatabase = "Audit-Database"
	// HeaderCommittedAt is the commit time.
	HeaderCommittedAt = "Audit-Committed-At"
	// HeaderOperation is the operation: CREATE, UPDATE, DELETE, TRUNCATE, or LOSS for a [Loss].
	HeaderOperation = "Audit-Operation"
	// HeaderOmitted is "images" where these were too large.
	HeaderOmitted = "Audit-Omitted"
)

const operationLoss = "LOSS"

// place is up to where the history is in the stream.
type place struct {
	// Sequence is the stream's, of the message that Cursor is of.
	Sequence uint64 `json:"sequence"`
	// Cursor goes on behind it. It is empty where there is no change in the stream.
	Cursor      audit.Cursor   `json:"cursor"`
	Database    string         `json:"database"`
	Position    audit.Position `json:"position"`
	CommittedAt time.Time      `json:"committedAt,omitzero"`
	// Through is up to where there is nothing behind Position that would have to be
	// published, or what is missing was reported.
	Through audit.Position `json:"through,omitzero"`
}

// reached is up to where nothing is missing in the stream.
func (p place) reached() audit.LSN { return max(p.Position.LSN, p.Through.LSN) }

// header is that of the message which leads to the place.
func (p place) header(id, operation string) nats.Header {
	h := nats.Header{}
	h.Set(jetstream.MsgIDHeader, id)
	h.Set(HeaderCursor, string(p.Cursor))
	h.Set(HeaderDatabase, url.PathEscape(p.Database))
	h.Set(HeaderPosition, p.Position.String())
	h.Set(HeaderCommittedAt, p.CommittedAt.UTC().Format(time.RFC3339Nano))
	h.Set(HeaderOperation, operation)
	if operation == operationLoss {
		h.Set(headerThrough, p.Through.String())
	}
	return h
}

// headerThrough is up to where a message tells of a loss.
const headerThrough = "Audit-Through"

// placeOf reads the place from the last message of the stream.
func placeOf(stream string, m *jetstream.RawStreamMsg) (place, error) {
	foreign := func(why string) error {
		return &StreamError{stream, fmt.Sprintf("has a message (sequence %d, subject %q) that is no sink's (%s): give the sink a stream of its own", m.Sequence, m.Subject, why)}
	}
	if m.Header.Get(HeaderOperation) == "" {
		return place{}, foreign("no header " + HeaderOperation)
	}
	p := place{Sequence: m.Sequence, Cursor: audit.Cursor(m.Header.Get(HeaderCursor))}
	var err error
	if p.Database, err = url.PathUnescape(m.Header.Get(HeaderDatabase)); err != nil {
		return place{}, foreign(HeaderDatabase)
	}
	if p.Position, err = audit.ParsePosition(m.Header.Get(HeaderPosition)); err != nil {
		return place{}, foreign(HeaderPosition)
	}
	if p.CommittedAt, err = time.Parse(time.RFC3339Nano, m.Header.Get(HeaderCommittedAt)); err != nil {
		return place{}, foreign(HeaderCommittedAt)
	}
	if text := m.Header.Get(headerThrough); text != "" {
		if p.Through, err = audit.ParsePosition(text); err != nil {
			return place{}, foreign(headerThrough)
		}
	}
	return p, nil
}

// resume is where to go on.
type resume struct {
	place
	// skip is how many messages behind the cursor are in the stream, or were.
	skip uint64
	// inBucket reports whether the bucket has a place, this or an earlier one.
	inBucket bool
}

// resume asks the stream, and where its last message is gone the bucket, where to go on.
func (s *Sink) resume(ctx context.Context, stream jetstream.Stream, bucket jetstream.KeyValue) (resume, error) {
	info, err := stream.Info(ctx)
	if err != nil {
		return resume{}, fmt.Errorf("ask for stream %q: %w", s.cfg.Stream, err)
	}
	s.subjects, s.maxMsgSize = info.Config.Subjects, int(info.Config.MaxMsgSize)
	kept, err := s.kept(ctx, bucket)
	if err != nil {
		return resume{}, err
	}
	last := info.State.LastSeq
	if last > 0 {
		m, err := stream.GetMsg(ctx, last)
		if err == nil {
			p, err := placeOf(s.cfg.Stream, m)
			if kept != nil && kept.Sequence == p.Sequence {
				p.Through = kept.Through // it has been idle since
			}
			return resume{place: p, inBucket: kept != nil}, err
		}
		if !errors.Is(err, jetstream.ErrMsgNotFound) {
			return resume{}, fmt.Errorf("read the last message of stream %q: %w", s.cfg.Stream, err)
		}
	}
	switch {
	case kept == nil && last == 0:
		return resume{}, nil
	case kept == nil:
		return resume{}, &StreamError{s.cfg.Stream, fmt.Sprintf("has had %d messages, the last of which is gone, and bucket %q has no key %q that would say what they were: make the stream anew to begin with Config.Since", last, s.cfg.Bucket, s.cfg.Stream)}
	case kept.Sequence > last:
		return resume{}, &StreamError{s.cfg.Stream, fmt.Sprintf("ends at sequence %d and was published to up to %d: it was made anew or restored. Delete key %q of bucket %q to publish again, from Config.Since on", last, kept.Sequence, s.cfg.Stream, s.cfg.Bucket)}
	}
	r := resume{place: *kept, skip: last - kept.Sequence, inBucket: true}
	r.Sequence = last
	return r, nil
}

// kept reads the place in the bucket; nil if there is none.
func (s *Sink) kept(ctx context.Context, bucket jetstream.KeyValue) (*place, error) {
	entry, err := bucket.Get(ctx, s.cfg.Stream)
	if errors.Is(err, jetstream.ErrKeyNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read key %q of bucket %q: %w", s.cfg.Stream, s.cfg.Bucket, err)
	}
	var p place
	if err := json.Unmarshal(entry.Value(), &p); err != nil {
		return nil, &StreamError{s.cfg.Stream, fmt.Sprintf("has in key %q of bucket %q what no sink has put there: give the sink a bucket of its own", s.cfg.Stream, s.cfg.Bucket)}
	}
	return &p, nil
}

// keep writes the place into the bucket, unless it has a later one by then: another
// instance's.
func (s *Sink) keep(ctx context.Context, bucket jetstream.KeyValue, p place) error {
	text, err := json.Marshal(p)
	if err != nil {
		return err
	}
	entry, err := bucket.Get(ctx, s.cfg.Stream)
	switch {
	case errors.Is(err, jetstream.ErrKeyNotFound):
		_, err = bucket.Create(ctx, s.cfg.Stream, text)
	case err == nil:
		var there place
		if json.Unmarshal(entry.Value(), &there) == nil && there.Sequence > p.Sequence {
			return nil
		}
		_, err = bucket.Update(ctx, s.cfg.Stream, text, entry.Revision())
	}
	if err != nil {
		return fmt.Errorf("keep the cursor in bucket %q: %w", s.cfg.Bucket, err)
	}
	return nil
}
