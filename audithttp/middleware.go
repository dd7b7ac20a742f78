package audithttp

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"encoding/hex"
	"net"
	"net/http"
	"strings"
	"time"

	"go.opentelemetry.io/otel/trace"

	"github.com/hindsight-go/audit"
)

const (
	// maxRequestID is how long a request id of others may be.
	maxRequestID = 128
	// maxUserAgent is to how many bytes a user agent is cut.
	maxUserAgent = 256
)

// Config says what of a request goes into the audit context. The zero value is
// request id, endpoint and trace.
type Config struct {
	// RequestIDHeader is the header in which request ids come and go. The response
	// carries the id that was made. One that comes is kept beside it, as
	// "clientRequestId", if it has at most 128 letters, digits and the marks
	// - _ . : / + = @: whoever sends the request chooses it, and may choose that of
	// somebody else, so nothing is undone by it. Default: "X-Request-Id".
	RequestIDHeader string

	// TrustRequestID reports whether the sender of a request is one whose request id
	// and trace are believed, such as a gateway that makes them: then they are those
	// of the context. It goes by what cannot be made up, as the certificate of the
	// connection or the address of the peer. Default: nobody.
	TrustRequestID func(*http.Request) bool

	// NewRequestID makes the id of a request. Default: a random UUID of version 7.
	NewRequestID func() string

	// Routes tells the pattern of a request: an *http.ServeMux somewhere behind
	// the middleware. Default: the next handler, if it is one.
	Routes Router

	// Pattern tells the pattern of a request's route, or "" if there is none,
	// where no *http.ServeMux does: with chi, for instance,
	//
	//	func(r *http.Request) string { return router.Find(chi.NewRouteContext(), r.Method, r.URL.Path) }
	//
	// It goes before Routes. Routers that set the Pattern of the request need
	// none behind the route. Default: none.
	Pattern func(*http.Request) string

	// Endpoint tells the endpoint of a request where it is more than method and route,
	// as the operation of GraphQL is, or "". It goes before all else, and must not read
	// the body without putting it back. Default: none.
	Endpoint func(*http.Request) string

	// User tells who makes the request, or nil. It is called before the next
	// handler; an authentication further in says the user with audit.WithContext
	// itself. Of a user that is an object in JSON, secrets are redacted as in Params.
	// Default: nobody.
	User func(*http.Request) any

	// Params tells the parameters worth keeping. PathValue of the request knows what a
	// mux inside will find, if Routes tells the pattern. It must not read the body
	// without putting it back. Values under names that look like passwords,
	// tokens, keys and the like are redacted at every depth, also within texts that
	// are JSON, queries or URLs: "user_password" and "stripeSecretKey" as well as
	// "password". Default: none.
	Params func(*http.Request) map[string]any

	// Redact adds names to those whose values are redacted in Params. A name is
	// found as a part of others, too: "diagnosis" redacts "patientDiagnosis". Case,
	// hyphens and underscores make no difference. Default: none.
	Redact []string

	// Allow lists names whose values are kept although they look like secrets, each
	// as the whole name: "cookie_jar_id". It goes before Redact. Default: none.
	Allow []string

	// RemoteAddress records the address that the request came from, without the
	// port, as "remoteAddress". Behind a proxy that is the proxy. Default: off.
	RemoteAddress bool

	// UserAgent records the User-Agent header, cut to 256 bytes, as "userAgent".
	// Default: off.
	UserAgent bool
}

// Router finds the route of a request. *http.ServeMux is one.
type Router interface {
	Handler(r *http.Request) (h http.Handler, pattern string)
}

// Middleware returns a handler that puts what the zero [Config] asks for into
// the context of requests and hands them to next.
func Middleware(next http.Handler) http.Handler { return Config{}.Middleware(next) }

// Middleware returns a handler that puts what c asks for into the context of
// requests and hands them to next. What the context holds already stays, where
// the request does not say otherwise; its request id stays in any case.
func (c Config) Middleware(next http.Handler) http.Handler {
	if c.RequestIDHeader == "" {
		c.RequestIDHeader = "X-Request-Id"
	}
	if c.NewRequestID == nil {
		c.NewRequestID = newUUID
	}
	if mux, ok := next.(*http.ServeMux); ok && c.Routes == nil {
		c.Routes = mux
	}
	redact := c.redactor()
	return http.HandlerFunc(func(w http.ResponseWriter, outer *http.Request) {
		r := outer.WithContext(outer.Context()) // a copy
		defer func() { handBack(outer, r) }()
		ctx := audit.WithContext(r.Context(), c.context(r, redact))
		// The response carries the id even if the handler panics or hijacks.
		if said, _ := audit.FromContext(ctx); said.RequestID != "" {
			w.Header().Set(c.RequestIDHeader, said.RequestID)
		}
		r = r.WithContext(ctx)
		next.ServeHTTP(w, r)
	})
}

// context returns what the request says.
func (c Config) context(r *http.Request, redact redactor) audit.Context {
	said := audit.Context{Endpoint: c.endpoint(r)}
	extra := map[string]any{}
	c.identify(r, &said, extra)
	if c.User != nil {
		said.UserID = redact.user(c.User(r))
	}
	if c.Params != nil {
		said.Params = redact.params(c.Params(r))
	}
	if c.RemoteAddress && r.RemoteAddr != "" {
		host, _, err := net.SplitHostPort(r.RemoteAddr)
		if err != nil {
			host = r.RemoteAddr
		}
		extra["remoteAddress"] = host
	}
	if agent := r.UserAgent(); c.UserAgent && agent != "" {
		extra["userAgent"] = agent[:min(len(agent), maxUserAgent)]
	}
	if len(extra) > 0 {
		said.Extra = extra
	}
	return said
}

// identify says which request it is, and of which trace. What a stranger has sent goes
// into extra, where it can be searched for, and undoes nothing.
func (c Config) identify(r *http.Request, said *audit.Context, extra map[string]any) {
	trusted := c.TrustRequestID != nil && c.TrustRequestID(r)
	outer, _ := audit.FromContext(r.Context())
	id := r.Header.Get(c.RequestIDHeader)
	switch {
	case outer.RequestID != "":
		said.RequestID = outer.RequestID
	case trusted && isRequestID(id):
		said.RequestID = id
	default:
		said.RequestID = c.NewRequestID()
		if isRequestID(id) {
			extra["clientRequestId"] = id
		}
	}
	if local := audit.FromSpan(r.Context()); local.TraceID != "" {
		said.TraceID, said.SpanID = local.TraceID, local.SpanID
		return
	}
	span := trace.SpanContextFromContext(r.Context())
	traceID, spanID := parseTraceparent(r.Header.Get("Traceparent"))
	if span.IsValid() {
		// Extracted from the request, and no span of ours begun.
		traceID, spanID = span.TraceID().String(), span.SpanID().String()
	}
	switch {
	case traceID == "":
	case trusted:
		said.TraceID, said.SpanID = traceID, spanID
	case outer.TraceID == "":
		extra["clientTraceId"], extra["clientSpanId"] = traceID, spanID
	}
}

func isRequestID(id string) bool {
	if id == "" || len(id) > maxRequestID {
		return false
	}
	for _, b := range []byte(id) {
		switch {
		case b >= 'a' && b <= 'z', b >= 'A' && b <= 'Z', b >= '0' && b <= '9', strings.IndexByte("-_.:/+=@", b) >= 0:
		default:
			return false
		}
	}
	return true
}

func (c Config) endpoint(r *http.Request) string {
	pattern := c.pattern(r)
	if c.Endpoint != nil {
		if endpoint := c.Endpoint(r); endpoint != "" {
			return endpoint
		}
	}
	if pattern == "" || strings.HasSuffix(pattern, "/") {
		// A pattern that ends in a slash is where a router of others is mounted, which
		// has not been asked.
		if isProcedure(r.URL.Path) {
			return r.URL.Path
		}
		return r.Method + " " + r.URL.Path
	}
	// A pattern may begin with a method, and GET stands for HEAD as well.
	if _, path, found := strings.Cut(pattern, " "); found {
		pattern = strings.TrimLeft(path, " \t")
	}
	return r.Method + " " + pattern
}

// pattern returns the pattern of a request's route. What a mux will find in the path
// is there for Params and User, too.
func (c Config) pattern(r *http.Request) string {
	if c.Pattern != nil {
		if pattern := c.Pattern(r); pattern != "" {
			return pattern
		}
	}
	if c.Routes != nil {
		if pattern := route(c.Routes, r); pattern != "" {
			setPathValues(r, pattern)
			return pattern
		}
	}
	return r.Pattern
}

// parseTraceparent reads the header of W3C Trace Context.
func parseTraceparent(header string) (traceID, spanID string) {
	header = strings.TrimSpace(header)
	if len(header) < 55 || len(header) > 55 && (header[:2] == "00" || header[55] != '-') {
		return "", ""
	}
	if header[2] != '-' || header[35] != '-' || header[52] != '-' {
		return "", ""
	}
	version, flags := header[:2], header[53:55]
	traceID, spanID = header[3:35], header[36:52]
	if version == "ff" || !isHex(version) || !isHex(flags) || !isHex(traceID) || !isHex(spanID) ||
		strings.Trim(traceID, "0") == "" || strings.Trim(spanID, "0") == "" {
		return "", ""
	}
	return traceID, spanID
}

func isHex(text string) bool { return strings.Trim(text, "0123456789abcdef") == "" }

// newUUID makes a UUID of version 7: milliseconds, then chance.
func newUUID() string {
	var id [16]byte
	_, _ = rand.Read(id[:]) // never fails
	var now [8]byte
	binary.BigEndian.PutUint64(now[:], uint64(time.Now().UnixMilli()))
	copy(id[:6], now[2:])
	id[6] = id[6]&0x0f | 0x70
	id[8] = id[8]&0x3f | 0x80
	text := hex.EncodeToString(id[:])
	return text[:8] + "-" + text[8:12] + "-" + text[12:16] + "-" + text[16:20] + "-" + text[20:]
}

// RequestID returns the request id in ctx, or "".
func RequestID(ctx context.Context) string {
	c, _ := audit.FromContext(ctx)
	return c.RequestID
}
