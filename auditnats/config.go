package auditnats

import (
	"cmp"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/hindsight-go/audit"
)

// LossPolicy says what to do where changes are missing in the history itself.
type LossPolicy int

const (
	// StopAtLoss ends Run with a [*LossError], for those who must look first.
	StopAtLoss LossPolicy = iota
	// PublishLoss publishes a [Loss] on the subject <prefix>.loss, in its place among the
	// changes, and goes on behind it.
	PublishLoss
)

// OversizePolicy says what to do with a change that is too large for a message.
type OversizePolicy int

const (
	// StopAtOversize ends Run with an [*OversizeError].
	StopAtOversize OversizePolicy = iota
	// OmitImages publishes the change without before and after, and with the header
	// Audit-Omitted: images. The history has them.
	OmitImages
)

// Config configures a Sink. Client, JetStream and Stream are required.
type Config struct {
	// Client is a client of the history. It need not be started: the sink may run in
	// another program than capture does.
	Client *audit.Client

	// JetStream is the broker. Let its connection reconnect for ever
	// (nats.MaxReconnects(-1)): when it is closed, Run ends.
	JetStream jetstream.JetStream

	// Stream is the name of the stream, which belongs to this sink alone. One that is not
	// there is made, on <Prefix>.>, in files, without limits of its own. Make it yourself for
	// replicas, MaxAge or other subjects.
	Stream string

	// Prefix is what subjects begin with. Default: "audit".
	Prefix string

	// Subject returns the subject of a change; the stream must have it. Default:
	// <Prefix>.<schema>.<table>, see [Token].
	Subject func(audit.Change) string

	// Filter narrows down what is published, by filters alone:
	//
	//	func(q audit.Query) audit.Query { return q.ForTable("orders") }
	//
	// Default: every change of the client's source.
	Filter func(audit.Query) audit.Query

	// Since is where a stream without messages begins: with what was committed then.
	// Default: everything that the history holds.
	Since time.Time

	// MaxPending bounds the messages that are on their way: beyond it the sink waits for the
	// broker. Default: 256.
	MaxPending int

	// MaxPendingBytes bounds them by their size; one alone may be larger. Default: 8 MiB.
	MaxPendingBytes int

	// AckWait is how long the broker may take to confirm a message before it is asked what it
	// has. Default: 10 seconds.
	AckWait time.Duration

	// OnLoss says what to do where the history has lost changes. Default: StopAtLoss.
	OnLoss LossPolicy

	// OnOversize says what to do with a change that is larger than the broker takes.
	// Default: StopAtOversize.
	OnOversize OversizePolicy

	// Bucket is the key-value bucket that keeps the cursor as well. It is made if it is
	// not there. Default: "audit_sinks".
	Bucket string

	// Logger gets what the sink does about failures. Default: slog.Default().
	Logger *slog.Logger
}

// New checks cfg and returns a Sink. It does not connect. The error joins all problems.
func New(cfg Config) (*Sink, error) {
	var problems []error
	bad := func(field, format string, args ...any) {
		problems = append(problems, &ConfigError{Field: field, Problem: fmt.Sprintf(format, args...)})
	}
	if cfg.Client == nil {
		bad("Client", "is nil: give what audit.Open returned")
	}
	if cfg.JetStream == nil {
		bad("JetStream", "is nil: give what jetstream.New returned")
	}
	if cfg.Stream == "" || strings.ContainsAny(cfg.Stream, " .*>/\\\t\r\n") {
		bad("Stream", "%q is no name of a stream: it needs letters, digits, - and _", cfg.Stream)
	}
	cfg.Prefix = cmp.Or(cfg.Prefix, "audit")
	if err := validSubject(cfg.Prefix); err != nil {
		bad("Prefix", "%q %v", cfg.Prefix, err)
	}
	if cfg.MaxPending < 0 {
		bad("MaxPending", "%d: must be at least 1, or 0 for the default", cfg.MaxPending)
	}
	if cfg.MaxPendingBytes < 0 {
		bad("MaxPendingBytes", "%d: must be at least 1, or 0 for the default", cfg.MaxPendingBytes)
	}
	if cfg.AckWait < 0 {
		bad("AckWait", "%s: must be positive, or 0 for the default", cfg.AckWait)
	}
	if cfg.OnLoss != StopAtLoss && cfg.OnLoss != PublishLoss {
		bad("OnLoss", "%d: must be StopAtLoss or PublishLoss", cfg.OnLoss)
	}
	if cfg.OnOversize != StopAtOversize && cfg.OnOversize != OmitImages {
		bad("OnOversize", "%d: must be StopAtOversize or OmitImages", cfg.OnOversize)
	}
	cfg.MaxPending = cmp.Or(cfg.MaxPending, 256)
	cfg.MaxPendingBytes = cmp.Or(cfg.MaxPendingBytes, 8<<20)
	cfg.AckWait = cmp.Or(cfg.AckWait, 10*time.Second)
	cfg.Bucket = cmp.Or(cfg.Bucket, "audit_sinks")
	if cfg.Subject == nil {
		cfg.Subject = func(c audit.Change) string {
			return cfg.Prefix + "." + Token(c.Schema) + "." + Token(c.Table)
		}
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.Default()
	}
	if err := errors.Join(problems...); err != nil {
		return nil, err
	}
	return &Sink{cfg: cfg}, nil
}
