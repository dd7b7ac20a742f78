package auditconnect

import (
	"context"
	"net/http"

	"connectrpc.com/connect"

	"github.com/hindsight-go/audit"
	"github.com/hindsight-go/audit/internal/incoming"
	"github.com/hindsight-go/audit/internal/redact"
)

// Config says what of a call goes into the audit context. The zero value is request id,
// procedure and trace. The headers that its functions get must not be changed.
type Config struct {
	// RequestIDHeader is the header in which request ids come and go. The response
	// carries the id that was made. One that comes is kept beside it, as
	// "clientRequestId", if it has at most 128 letters, digits and the marks
	// - _ . : / + = @: whoever calls chooses it, and may choose that of somebody else,
	// so nothing is undone by it. Default: "X-Request-Id".
	RequestIDHeader string

	// TrustRequestID reports whether a caller is one whose request id and trace are
	// believed, such as a gateway that makes them: then they are those of the context.
	// It goes by what cannot be made up, as the address of the peer, or what a middleware
	// of net/http has put into ctx about the connection's certificate. Default: nobody.
	TrustRequestID func(ctx context.Context, peer connect.Peer) bool

	// NewRequestID makes the id of a call. Default: a random UUID of version 7.
	NewRequestID func() string

	// User tells who calls, or nil. It is called before the handler; an authentication
	// further in says the user with audit.WithContext itself. Default: nobody.
	User func(ctx context.Context, header http.Header) any

	// Params tells the parameters of a unary call that are worth keeping. Values under
	// names that look like passwords, tokens, keys and the like are redacted at every
	// depth, as in package audithttp. Default: none.
	Params func(ctx context.Context, request connect.AnyRequest) map[string]any

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

	// UserAgent records the User-Agent header, cut to 256 bytes, as "userAgent".
	// Default: off.
	UserAgent bool
}

// Interceptor is a connect.Interceptor for handlers. It is safe for concurrent use.
type Interceptor struct {
	config   Config
	redactor redact.Redactor
}

var _ connect.Interceptor = (*Interceptor)(nil)

// NewInterceptor returns an interceptor for connect.WithInterceptors. What the context
// holds already stays, where the call does not say otherwise; its request id stays in any
// case.
func NewInterceptor(config Config) *Interceptor {
	if config.RequestIDHeader == "" {
		config.RequestIDHeader = "X-Request-Id"
	}
	return &Interceptor{config, redact.New(config.Redact, config.Allow)}
}

// WrapUnary is of connect.Interceptor.
func (i *Interceptor) WrapUnary(next connect.UnaryFunc) connect.UnaryFunc {
	return func(ctx context.Context, request connect.AnyRequest) (connect.AnyResponse, error) {
		if request.Spec().IsClient {
			return next(ctx, request)
		}
		said := i.context(ctx, request.Spec(), request.Peer(), request.Header())
		if i.config.Params != nil {
			said.Params = i.redactor.Params(i.config.Params(ctx, request))
		}
		// With these headers an error is answered, too. That of the handler may be one for
		// all calls, so that its own must not be written to.
		if call, ok := connect.CallInfoForHandlerContext(ctx); ok {
			call.ResponseHeader().Set(i.config.RequestIDHeader, said.RequestID)
		}
		return next(audit.WithContext(ctx, said), request)
	}
}

// WrapStreamingClient is of connect.Interceptor. It returns next.
func (i *Interceptor) WrapStreamingClient(next connect.StreamingClientFunc) connect.StreamingClientFunc {
	return next
}

// WrapStreamingHandler is of connect.Interceptor. Streams have no Params.
func (i *Interceptor) WrapStreamingHandler(next connect.StreamingHandlerFunc) connect.StreamingHandlerFunc {
	return func(ctx context.Context, conn connect.StreamingHandlerConn) error {
		said := i.context(ctx, conn.Spec(), conn.Peer(), conn.RequestHeader())
		conn.ResponseHeader().Set(i.config.RequestIDHeader, said.RequestID)
		return next(audit.WithContext(ctx, said), conn)
	}
}

// context returns what a call says, but for Params.
func (i *Interceptor) context(ctx context.Context, spec connect.Spec, peer connect.Peer, header http.Header) audit.Context {
	said := incoming.Request{
		Header: header.Get, IDHeader: i.config.RequestIDHeader, NewID: i.config.NewRequestID,
		Trusted: i.config.TrustRequestID != nil && i.config.TrustRequestID(ctx, peer),
	}.Context(ctx)
	said.Endpoint = spec.Procedure
	if i.config.User != nil {
		said.UserID = i.redactor.User(i.config.User(ctx, header))
	}
	if i.config.RemoteAddress {
		incoming.AddRemoteAddress(&said, peer.Addr)
	}
	if i.config.UserAgent {
		incoming.AddUserAgent(&said, header.Get("User-Agent"))
	}
	return said
}
