package auditgrpc

import (
	"context"
	"strings"

	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"

	"github.com/hindsight-go/audit"
	"github.com/hindsight-go/audit/internal/incoming"
	"github.com/hindsight-go/audit/internal/redact"
)

// Config says what of a call goes into the audit context. The zero value is request id,
// method and trace. The ctx that its functions get is that of the call, with its metadata
// and its peer.
type Config struct {
	// RequestIDKey is the key of the metadata in which request ids come and go. The
	// response's header has the id that was made. One that comes is kept beside it, as
	// "clientRequestId", if it has at most 128 letters, digits and the marks
	// - _ . : / + = @: whoever calls chooses it, and may choose that of somebody else,
	// so nothing is undone by it. Default: "x-request-id".
	RequestIDKey string

	// TrustRequestID reports whether a caller is one whose request id and trace are
	// believed, such as a gateway that makes them: then they are those of the context.
	// It goes by what cannot be made up, as the certificate or the address in the peer.
	// Default: nobody.
	TrustRequestID func(ctx context.Context) bool

	// NewRequestID makes the id of a call. Default: a random UUID of version 7.
	NewRequestID func() string

	// User tells who calls, or nil. It is called before the handler; an authentication
	// further in says the user with audit.WithContext itself. Default: nobody.
	User func(ctx context.Context) any

	// Params tells the parameters of a unary call that are worth keeping. Values under
	// names that look like passwords, tokens, keys and the like are redacted at every
	// depth, as in package audithttp. Default: none.
	Params func(ctx context.Context, request any) map[string]any

	// Redact adds names to those whose values are redacted in Params. A name is
	// found as a part of others, too: "diagnosis" redacts "patientDiagnosis". Case,
	// hyphens and underscores make no difference. Default: none.
	Redact []string

	// Allow lists names whose values are kept although they look like secrets, each
	// as the whole name: "cookie_jar_id". It goes before Redact. Default: none.
	Allow []string

	// RemoteAddress records the address that the call came from, without the port, as
	// "remoteAddress". Behind a proxy that is the proxy. Default: off.
	RemoteAddress bool

	// UserAgent records the caller's user agent, cut to 256 bytes, as "userAgent".
	// Default: off.
	UserAgent bool
}

// UnaryServerInterceptor returns an interceptor for unary calls. What the context holds
// already stays, where the call does not say otherwise; its request id stays in any case.
func UnaryServerInterceptor(config Config) grpc.UnaryServerInterceptor {
	i := newInterceptor(config)
	return func(ctx context.Context, request any, info *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
		said := i.context(ctx, info.FullMethod)
		if config.Params != nil {
			said.Params = i.redactor.Params(config.Params(ctx, request))
		}
		ctx = audit.WithContext(ctx, said)
		_ = grpc.SetHeader(ctx, i.header(said)) // fails only if headers are sent already
		return handler(ctx, request)
	}
}

// StreamServerInterceptor returns an interceptor for streams, as [UnaryServerInterceptor]
// is one for unary calls. It knows no Params.
func StreamServerInterceptor(config Config) grpc.StreamServerInterceptor {
	i := newInterceptor(config)
	return func(server any, stream grpc.ServerStream, info *grpc.StreamServerInfo, handler grpc.StreamHandler) error {
		said := i.context(stream.Context(), info.FullMethod)
		ctx := audit.WithContext(stream.Context(), said)
		_ = stream.SetHeader(i.header(said)) // fails only if headers are sent already
		return handler(server, serverStream{stream, ctx})
	}
}

// serverStream is a stream with another context.
type serverStream struct {
	grpc.ServerStream
	ctx context.Context //nolint:containedctx // a stream has its context with it
}

// Context is of grpc.ServerStream.
func (s serverStream) Context() context.Context { return s.ctx }

type interceptor struct {
	Config
	redactor redact.Redactor
}

func newInterceptor(config Config) interceptor {
	if config.RequestIDKey == "" {
		config.RequestIDKey = "x-request-id"
	}
	return interceptor{config, redact.New(config.Redact, config.Allow)}
}

// context returns what a call says, but for Params.
func (i interceptor) context(ctx context.Context, method string) audit.Context {
	said := incoming.Request{
		Header:   func(name string) string { return first(ctx, name) },
		IDHeader: i.RequestIDKey, NewID: i.NewRequestID,
		Trusted: i.TrustRequestID != nil && i.TrustRequestID(ctx),
	}.Context(ctx)
	said.Endpoint = method
	if i.User != nil {
		said.UserID = i.redactor.User(i.User(ctx))
	}
	if from, ok := peer.FromContext(ctx); ok && i.RemoteAddress && from.Addr != nil {
		incoming.AddRemoteAddress(&said, from.Addr.String())
	}
	if i.UserAgent {
		incoming.AddUserAgent(&said, first(ctx, "user-agent"))
	}
	return said
}

func (i interceptor) header(said audit.Context) metadata.MD {
	return metadata.Pairs(strings.ToLower(i.RequestIDKey), said.RequestID)
}

// first returns the first value of a key of the call's metadata, or "".
func first(ctx context.Context, key string) string {
	values := metadata.ValueFromIncomingContext(ctx, key)
	if len(values) == 0 {
		return ""
	}
	return values[0]
}
