package auditnats

import (
	"errors"
	"fmt"
	"time"

	"github.com/hindsight-go/audit"
)

// ConfigError is one problem of a Config. New returns all problems at once, joined.
type ConfigError struct{ Field, Problem string }

func (e *ConfigError) Error() string { return "auditnats: Config." + e.Field + ": " + e.Problem }

// Loss is a part of the history that can never be published.
type Loss struct {
	// Database is the source.
	Database string `json:"database"`
	// From is where the sink was, To up to where changes may be missing.
	From audit.Position `json:"from"`
	To   audit.Position `json:"to"`
	// ToTime is the commit time up to which they may be.
	ToTime time.Time `json:"toTime,omitzero"`
	// Reason is why.
	Reason string `json:"reason"`
}

// LossError is returned by [Sink.Run] where the history has lost changes that were not
// published, and [Config.OnLoss] is StopAtLoss.
type LossError struct{ Loss Loss }

func (e *LossError) Error() string {
	return fmt.Sprintf("auditnats: changes of %q from %s to %s cannot be published: %s: set Config.OnLoss to PublishLoss to tell consumers so and go on behind them",
		e.Loss.Database, e.Loss.From, e.Loss.To, e.Loss.Reason)
}

// OversizeError is returned by [Sink.Run] for a change that is too large for a message, where
// [Config.OnOversize] is StopAtOversize or does not make it small enough.
type OversizeError struct {
	Position    audit.Position
	Bytes, Most int
}

func (e *OversizeError) Error() string {
	return fmt.Sprintf("auditnats: the message of change %s has %d bytes, and the broker takes %d: raise max_payload of the server and MaxMsgSize of the stream, or set Config.OnOversize to OmitImages", e.Position, e.Bytes, e.Most)
}

// SubjectError is returned by [Sink.Run] for a subject that cannot be published on.
type SubjectError struct {
	Subject string
	// Stream is the stream that does not have the subject, or empty where no stream could.
	Stream string
	reason string
}

func (e *SubjectError) Error() string {
	if e.Stream != "" {
		return fmt.Sprintf("auditnats: stream %q does not take subject %q: add it to the subjects of the stream, or change Config.Prefix or Config.Subject", e.Stream, e.Subject)
	}
	return fmt.Sprintf("auditnats: Config.Subject gave %q, which %s", e.Subject, e.reason)
}

// StreamError is returned by [Sink.Run] when the stream is not what the sink has made of
// it, so that where to go on cannot be told.
type StreamError struct {
	Stream string
	Reason string
}

func (e *StreamError) Error() string {
	return fmt.Sprintf("auditnats: stream %q %s", e.Stream, e.Reason)
}

// ErrConnectionClosed is returned by [Sink.Run] when the connection to the broker was closed
// for good.
var ErrConnectionClosed = errors.New("auditnats: the connection to the broker is closed: connect with nats.MaxReconnects(-1), and close it behind Run")
