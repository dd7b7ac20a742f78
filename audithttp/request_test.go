package audithttp_test

import (
	"bytes"
	"fmt"
	"io"
	"mime/multipart"
	"net/http"
	"net/http/httptest"
	"os"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/hindsight-go/audit"
	"github.com/hindsight-go/audit/audithttp"
)

// TestMultipart_FilesAreRemoved uploads what does not fit into memory, through one
// middleware and through two, to handlers that return and that panic.
func TestMultipart_FilesAreRemoved(t *testing.T) {
	// Not parallel: where the files go is an environment variable.
	t.Setenv("TMPDIR", t.TempDir())
	upload := http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		if err := r.ParseMultipartForm(1 << 10); err != nil {
			t.Error(err)
		}
		if files, _ := os.ReadDir(os.TempDir()); len(files) == 0 {
			t.Error("the upload is in memory")
		}
		if r.URL.Path == "/panic" {
			panic(http.ErrAbortHandler)
		}
	})
	params := audithttp.Config{Params: func(r *http.Request) map[string]any {
		_ = r.ParseMultipartForm(1 << 10)
		return nil
	}}
	for name, handler := range map[string]http.Handler{
		"once":      audithttp.Middleware(upload),
		"twice":     audithttp.Middleware(audithttp.Middleware(upload)),
		"by Params": params.Middleware(upload),
	} {
		server := httptest.NewServer(handler)
		for _, path := range []string{"/", "/panic"} {
			var body bytes.Buffer
			form := multipart.NewWriter(&body)
			part, err := form.CreateFormFile("file", "file")
			if err == nil {
				_, err = part.Write(make([]byte, 1<<20))
			}
			if err != nil {
				t.Fatal(err)
			}
			_ = form.Close()
			request, err := http.NewRequestWithContext(t.Context(), http.MethodPost, server.URL+path, &body)
			if err != nil {
				t.Fatal(err)
			}
			request.Header.Set("Content-Type", form.FormDataContentType())
			response, err := http.DefaultClient.Do(request)
			if err == nil {
				_, _ = io.Copy(io.Discard, response.Body)
				_ = response.Body.Close()
			}
		}
		server.Close() // waits for the requests
		files, err := os.ReadDir(os.TempDir())
		if err != nil {
			t.Fatal(err)
		}
		// net/http itself removes none after a panic.
		if want := 1; len(files) > want {
			t.Errorf("%s: %d files are left", name, len(files))
		}
		for _, file := range files {
			_ = os.Remove(os.TempDir() + "/" + file.Name())
		}
	}
}

// TestRequest_OutsideKnowsTheRoute looks at a request outside of the middleware when it
// is served, as a log of requests does.
func TestRequest_OutsideKnowsTheRoute(t *testing.T) {
	t.Parallel()
	serve := func(wrap func(http.Handler) http.Handler, path string) (seen string) {
		mux := http.NewServeMux()
		mux.HandleFunc("POST /todo/{id}/items/{rest...}", func(_ http.ResponseWriter, r *http.Request) { _ = r.ParseForm() })
		mux.HandleFunc("POST /panic/{id}", func(http.ResponseWriter, *http.Request) { panic("as told") })
		r := httptest.NewRequest(http.MethodPost, path, nil)
		before := r.Context()
		func() {
			defer func() {
				seen = fmt.Sprintf("%q %q %q %v %v %v", r.Pattern, r.PathValue("id"), r.PathValue("rest"), r.Form, recover(), r.Context() == before)
			}()
			wrap(mux).ServeHTTP(httptest.NewRecorder(), r)
		}()
		return seen
	}
	bare := func(h http.Handler) http.Handler { return h }
	for _, path := range []string{"/todo/a%2Fb/items/x/y%20z?q=1", "/panic/7", "/nowhere"} {
		want := serve(bare, path)
		for name, wrap := range map[string]func(http.Handler) http.Handler{
			"once":      audithttp.Middleware,
			"twice":     func(h http.Handler) http.Handler { return audithttp.Middleware(audithttp.Middleware(h)) },
			"no routes": func(h http.Handler) http.Handler { return audithttp.Middleware(http.HandlerFunc(h.ServeHTTP)) },
		} {
			if diff := cmp.Diff(want, serve(wrap, path)); diff != "" {
				t.Errorf("%s, %s: %s", path, name, diff)
			}
		}
	}
}

// TestParams_SeePathValues asks for the path values of the mux inside, before it has
// looked for them.
func TestParams_SeePathValues(t *testing.T) {
	t.Parallel()
	names := []string{"id", "rest", "host"}
	var inside, asked map[string]any
	values := func(r *http.Request) map[string]any {
		found := map[string]any{}
		for _, name := range names {
			found[name] = r.PathValue(name)
		}
		return found
	}
	mux := http.NewServeMux()
	handler := func(_ http.ResponseWriter, r *http.Request) {
		inside = values(r)
		c, _ := audit.FromContext(r.Context())
		asked = c.Params
	}
	for _, pattern := range []string{"/todo/{id}", "PUT /todo/{id}/x/{rest...}", "example.org/host/{id}/{$}", "/tree/{rest...}", "GET /literal/%2f/{id}", "/plain/"} {
		mux.HandleFunc(pattern, handler)
	}
	wrapped := audithttp.Config{Params: values}.Middleware(mux)
	for _, target := range []string{
		"GET http://example.com/todo/26", "GET http://example.com/todo/a%2Fb%20c", "PUT http://example.com/todo/1/x/a/b%2Fc/", "PUT http://example.com/todo/1/x/",
		"GET http://example.org/host/9/", "GET http://example.com/tree/", "GET http://example.com/tree/a//b", "GET http://example.com/literal/%2f/5",
		"GET http://example.com/plain/deep/er", "GET http://example.com/todo/%E2%82%AC",
	} {
		inside, asked = nil, nil
		method, url, _ := bytes.Cut([]byte(target), []byte(" "))
		wrapped.ServeHTTP(httptest.NewRecorder(), httptest.NewRequest(string(method), string(url), nil))
		if diff := cmp.Diff(inside, asked); diff != "" {
			t.Errorf("%s: %s", target, diff)
		}
	}
}
