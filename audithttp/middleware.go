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
	// RequestIDHeader is the header in which a request id comes and goes. An id
	// that comes is taken if it has at most 128 letters, digits and the marks
	// - _ . : / + = @ and is replaced otherwise: whoever sends the request chooses
	// it. Default: "X-Request-Id".
	RequestIDHeader string

	// NewRequestID makes the id of a request without one.
	// Default: a random UUID of version 7.
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

	// User tells who makes the request, or nil. It is called before the next
	// handler; an authentication further in says the user with audit.WithContext
	// itself. Of a user that is an object in JSON, secrets are redacted as in Params.
	// Default: nobody.
	User func(*http.Request) any

	// Params tells the parameters worth keeping. It must not read the body
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
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		ctx := audit.WithContext(r.Context(), c.context(r, redact))
		// The response carries the id even if the handler panics or hijacks.
		if said, _ := audit.FromContext(ctx); said.RequestID != "" {
			w.Header().Set(c.RequestIDHeader, said.RequestID)
		}
		next.ServeHTTP(w, r.WithContext(ctx))
	})
}

// context returns what the request says.
func (c Config) context(r *http.Request, redact redactor) audit.Context {
	said := audit.Context{RequestID: c.requestID(r), Endpoint: c.endpoint(r)}
	said.TraceID, said.SpanID = traceOf(r)
	if c.User != nil {
		said.UserID = redact.user(c.User(r))
	}
	if c.Params != nil {
		said.Params = redact.params(c.Params(r))
	}
	extra := map[string]any{}
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

func (c Config) requestID(r *http.Request) string {
	if outer, _ := audit.FromContext(r.Context()); outer.RequestID != "" {
		return outer.RequestID
	}
	if id := r.Header.Get(c.RequestIDHeader); isRequestID(id) {
		return id
	}
	return c.NewRequestID()
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
	if pattern == "" {
		return r.Method + " " + r.URL.Path
	}
	// A pattern may begin with a method, and GET stands for HEAD as well.
	if _, path, found := strings.Cut(pattern, " "); found {
		pattern = strings.TrimLeft(path, " \t")
	}
	return r.Method + " " + pattern
}

func (c Config) pattern(r *http.Request) string {
	if c.Pattern != nil {
		if pattern := c.Pattern(r); pattern != "" {
			return pattern
		}
	}
	if c.Routes != nil {
		if _, pattern := c.Routes.Handler(r); pattern != "" {
			return pattern
		}
	}
	return r.Pattern
}

// traceOf returns the ids of the trace that the request belongs to: those of the
// span in its context, or of its traceparent header.
func traceOf(r *http.Request) (traceID, spanID string) {
	if span := trace.SpanContextFromContext(r.Context()); span.IsValid() {
		return span.TraceID().String(), span.SpanID().String()
	}
	return parseTraceparent(r.Header.Get("Traceparent"))
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
