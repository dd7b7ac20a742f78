package auditecho4

import (
	"net/http"

	"github.com/labstack/echo/v4"

	"github.com/hindsight-go/audit/audithttp"
)

// Config says what of a request goes into the audit context. The zero value is request
// id, endpoint and trace.
type Config struct {
	// HTTP is what package audithttp knows: which request ids are believed, what is
	// redacted, and the rest. It needs no Pattern and no Routes: the router knows.
	HTTP audithttp.Config

	// User tells who makes the request, or nil. A middleware that has found it out goes
	// before this one. Default: HTTP.User.
	User func(c echo.Context) any

	// Params tells the parameters worth keeping, which are redacted as audithttp does it.
	// Default: HTTP.Params.
	Params func(c echo.Context) map[string]any
}

// bind returns the configuration for a request.
func (config Config) bind(c echo.Context) audithttp.Config {
	h := config.HTTP
	h.Endpoint = func(r *http.Request) string {
		if config.HTTP.Endpoint != nil {
			if endpoint := config.HTTP.Endpoint(r); endpoint != "" {
				return endpoint
			}
		}
		if route := c.Path(); route != "" {
			return r.Method + " " + route
		}
		return ""
	}
	if config.User != nil {
		h.User = func(*http.Request) any { return config.User(c) }
	}
	if config.Params != nil {
		h.Params = func(*http.Request) map[string]any { return config.Params(c) }
	}
	return h
}

// Middleware returns a middleware for Use of a router, a group or a route. In Pre, the
// route is not known yet.
func Middleware(config Config) echo.MiddlewareFunc {
	return func(next echo.HandlerFunc) echo.HandlerFunc {
		return func(c echo.Context) (err error) {
			// The response goes through as it is: one wrapped anew would not know what
			// was written.
			handler := http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
				c.SetRequest(r)
				err = next(c)
			})
			config.bind(c).Middleware(handler).ServeHTTP(c.Response(), c.Request())
			return err
		}
	}
}
