package auditgin

import (
	"net/http"

	"github.com/gin-gonic/gin"

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
	User func(c *gin.Context) any

	// Params tells the parameters worth keeping, which are redacted as audithttp does it.
	// Default: HTTP.Params.
	Params func(c *gin.Context) map[string]any
}

// bind returns the configuration for a request.
func (config Config) bind(c *gin.Context) audithttp.Config {
	h := config.HTTP
	h.Endpoint = func(r *http.Request) string {
		if config.HTTP.Endpoint != nil {
			if endpoint := config.HTTP.Endpoint(r); endpoint != "" {
				return endpoint
			}
		}
		if route := c.FullPath(); route != "" {
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

// Middleware returns a middleware for Use of an engine, a group or a route.
func Middleware(config Config) gin.HandlerFunc {
	return func(c *gin.Context) {
		next := http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
			c.Request = r
			c.Next()
		})
		config.bind(c).Middleware(next).ServeHTTP(c.Writer, c.Request)
	}
}
