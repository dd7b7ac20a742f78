package audithttp

import (
	"net/http"
	"net/url"
	"strings"
)

// handBack gives a request what its copy has learned behind the middleware, as it would
// know without: the server removes the files of a multipart form by the request that it
// has made, and who logs requests outside asks for their pattern.
func handBack(outer, inner *http.Request) {
	if inner.Form != nil {
		outer.Form = inner.Form
	}
	if inner.PostForm != nil {
		outer.PostForm = inner.PostForm
	}
	if inner.MultipartForm != nil {
		outer.MultipartForm = inner.MultipartForm
	}
	if inner.Pattern == "" || inner.Pattern == outer.Pattern {
		return
	}
	outer.Pattern = inner.Pattern
	for _, segment := range strings.Split(inner.Pattern, "/") {
		if name, _ := wildcard(segment); name != "" {
			outer.SetPathValue(name, inner.PathValue(name))
		}
	}
}

// setPathValues sets what a pattern of an *http.ServeMux that matches the request finds
// in its path.
func setPathValues(r *http.Request, pattern string) {
	_, pattern, found := strings.Cut(pattern, "/")
	path := strings.TrimPrefix(r.URL.EscapedPath(), "/")
	for found {
		var segment string
		segment, pattern, found = strings.Cut(pattern, "/")
		name, rest := wildcard(segment)
		value, behind, _ := strings.Cut(path, "/")
		if rest {
			value = path
		}
		path = behind
		if name == "" {
			continue
		}
		if unescaped, err := url.PathUnescape(value); err == nil {
			value = unescaped
		}
		r.SetPathValue(name, value)
	}
}

// wildcard returns the name of a wildcard that is a segment of a pattern, and whether it
// stands for the rest of the path. It is "" for others.
func wildcard(segment string) (name string, rest bool) {
	if len(segment) < 3 || segment[0] != '{' || segment[len(segment)-1] != '}' {
		return "", false
	}
	name, rest = strings.CutSuffix(segment[1:len(segment)-1], "...")
	if name == "$" {
		return "", false
	}
	return name, rest
}

// route returns the pattern of a request, also where one mux is mounted in another.
func route(routes Router, r *http.Request) string {
	handler, pattern := routes.Handler(r)
	if inner, ok := handler.(Router); ok && strings.HasSuffix(pattern, "/") {
		if within := route(inner, r); within != "" {
			return within
		}
	}
	return pattern
}

// isProcedure reports whether a path is that of a procedure of gRPC or Connect:
// /package.Service/Method.
func isProcedure(path string) bool {
	service, method, found := strings.Cut(strings.TrimPrefix(path, "/"), "/")
	if !found || !strings.Contains(service, ".") || !isName(method) {
		return false
	}
	for part := range strings.SplitSeq(service, ".") {
		if !isName(part) {
			return false
		}
	}
	return true
}

// isName reports whether a text is a name in protocol buffers.
func isName(text string) bool {
	if text == "" || text[0] >= '0' && text[0] <= '9' {
		return false
	}
	for _, b := range []byte(text) {
		switch {
		case b >= 'a' && b <= 'z', b >= 'A' && b <= 'Z', b >= '0' && b <= '9', b == '_':
		default:
			return false
		}
	}
	return true
}
