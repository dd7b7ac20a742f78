package audithttp

import (
	"context"
	"net/http"
	"strings"

	"github.com/hindsight-go/audit"
	"github.com/hindsight-go/audit/internal/incoming"
	"github.com/hindsight-go/audit/internal/redact"
)

// Redacted stands where a value was taken out.
const Redacted = redact.Mark

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
	if mux, ok := next.(*http.ServeMux); ok && c.Routes == nil {
		c.Routes = mux
	}
	redactor := redact.New(c.Redact, c.Allow)
	return http.HandlerFunc(func(w http.ResponseWriter, outer *http.Request) {
		r := outer.WithContext(outer.Context()) // a copy
		defer func() { handBack(outer, r) }()
		ctx := audit.WithContext(r.Context(), c.context(r, redactor))
		// The response carries the id even if the handler panics or hijacks.
		if said, _ := audit.FromContext(ctx); said.RequestID != "" {
			w.Header().Set(c.RequestIDHeader, said.RequestID)
		}
		r = r.WithContext(ctx)
		next.ServeHTTP(w, r)
	})
}

// context returns what the request says.
func (c Config) context(r *http.Request, redactor redact.Redactor) audit.Context {
	// The pattern first: User and Params may ask for what a mux finds in the path.
	endpoint := c.endpoint(r)
	said := incoming.Request{
		Header: r.Header.Get, IDHeader: c.RequestIDHeader, NewID: c.NewRequestID,
		Trusted: c.TrustRequestID != nil && c.TrustRequestID(r),
	}.Context(r.Context())
	said.Endpoint = endpoint
	if c.User != nil {
		said.UserID = redactor.User(c.User(r))
	}
	if c.Params != nil {
		said.Params = redactor.Params(c.Params(r))
	}
	if c.RemoteAddress {
		incoming.AddRemoteAddress(&said, r.RemoteAddr)
	}
	if c.UserAgent {
		incoming.AddUserAgent(&said, r.UserAgent())
	}
	return said
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

// RequestID returns the request id in ctx, or "".
func RequestID(ctx context.Context) string {
	c, _ := audit.FromContext(ctx)
	return c.RequestID
}
