package auditui

import (
	"bytes"
	"context"
	"crypto/cipher"
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"errors"
	"fmt"
	"html/template"
	"io"
	"io/fs"
	"net/http"
	"net/url"
	"path"
	"slices"
	"strings"
	"sync"
	"time"
	"unicode/utf8"

	"github.com/hindsight-go/audit"
)

//go:embed templates/*.html
var templateFiles embed.FS

//go:embed assets/ui.css assets/ui.js
var assetFiles embed.FS

// Handler is the UI of one client's history. It is an [http.Handler], made by [New].
type Handler struct {
	client  *audit.Client
	cfg     Config
	mux     *http.ServeMux
	pages   map[string]*template.Template
	assets  map[string]asset
	streams chan struct{}
	origins *http.CrossOriginProtection
	sealer  cipher.AEAD
	facts   facts
}

type asset struct {
	content     []byte
	contentType string
	version     string
}

// New makes the UI of a client's history. The error joins a [*ConfigError] for every
// problem of cfg.
func New(client *audit.Client, cfg Config) (*Handler, error) {
	cfg, err := cfg.complete()
	if client == nil {
		err = errors.Join(&ConfigError{Field: "client", Problem: "it is nil"}, err)
	}
	if err != nil {
		return nil, err
	}
	h := &Handler{client: client, cfg: cfg, mux: http.NewServeMux(), streams: make(chan struct{}, cfg.MaxStreams), origins: http.NewCrossOriginProtection()}
	if h.sealer, err = newSealer(cfg.Secret); err != nil {
		return nil, fmt.Errorf("auditui: %w", err)
	}
	if h.assets, err = readAssets(); err != nil {
		return nil, err
	}
	if h.pages, err = h.parseTemplates(); err != nil {
		return nil, err
	}
	h.route()
	return h, nil
}

func readAssets() (map[string]asset, error) {
	types := map[string]string{".css": "text/css; charset=utf-8", ".js": "text/javascript; charset=utf-8"}
	assets := make(map[string]asset)
	entries, err := fs.ReadDir(assetFiles, "assets")
	if err != nil {
		return nil, fmt.Errorf("auditui: read assets: %w", err)
	}
	for _, entry := range entries {
		content, err := fs.ReadFile(assetFiles, path.Join("assets", entry.Name()))
		if err != nil {
			return nil, fmt.Errorf("auditui: read assets: %w", err)
		}
		sum := sha256.Sum256(content)
		assets[entry.Name()] = asset{content, types[path.Ext(entry.Name())], hex.EncodeToString(sum[:6])}
	}
	return assets, nil
}

// parseTemplates makes one template of the layout, the shared parts and each page.
func (h *Handler) parseTemplates() (map[string]*template.Template, error) {
	shared := template.New("layout.html").Funcs(template.FuncMap{
		"asset": func(name string) string { return "assets/" + name + "?v=" + h.assets[name].version },
		"utc":   utcText,
		// Names are shown as values are: none may look like another.
		"visible": visible,
		"iso":     isoText,
		"count":   groupedNumber,
		"bytes":   byteText,
		"inc":     func(n int) int { return n + 1 },
		"list":    func(items ...any) []any { return items },
	})
	shared, err := shared.ParseFS(templateFiles, "templates/layout.html", "templates/parts.html")
	if err != nil {
		return nil, fmt.Errorf("auditui: %w", err)
	}
	names, err := fs.Glob(templateFiles, "templates/*.html")
	if err != nil {
		return nil, fmt.Errorf("auditui: %w", err)
	}
	pages := make(map[string]*template.Template)
	for _, name := range names {
		base := path.Base(name)
		if base == "layout.html" || base == "parts.html" {
			continue
		}
		page, err := shared.Clone()
		if err == nil {
			page, err = page.ParseFS(templateFiles, name)
		}
		if err != nil {
			return nil, fmt.Errorf("auditui: %w", err)
		}
		pages[strings.TrimSuffix(base, ".html")] = page
	}
	return pages, nil
}

// route names every address that there is.
func (h *Handler) route() {
	for pattern, page := range map[string]func(*request) error{
		"GET /{$}":                      (*request).changesPage,
		"GET /changes/{position}":       (*request).changePage,
		"GET /changes/{position}/value": (*request).valuePage,
		"GET /requests":                 (*request).requestsPage,
		"GET /requests/{id}":            (*request).unitPage,
		"GET /transactions/{id}":        (*request).unitPage,
		"GET /traces/{id}":              (*request).unitPage,
		"GET /rows/{table}/{key}":       (*request).rowPage,
		"GET /tables":                   (*request).tablesPage,
		"GET /tables/{table}":           (*request).tablePage,
		"GET /tail":                     (*request).tailPage,
		"GET /tail/events":              (*request).tailEvents,
		"GET /undo":                     (*request).undoPage,
		"POST /undo":                    (*request).applyPage,
		"GET /reverts":                  (*request).revertsPage,
		"GET /reverts/{id}":             (*request).revertPage,
		"GET /status":                   (*request).statusPage,
		"GET /status.json":              (*request).statusJSON,
		"GET /export":                   (*request).export,
		"GET /assets/{name}":            (*request).asset,
	} {
		h.mux.Handle(pattern, h.serve(page))
	}
	h.mux.Handle("/", h.serve(func(*request) error { return errNoPage }))
}

// ServeHTTP answers what [Config.Access] allows.
func (h *Handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	header := w.Header()
	header.Set("Content-Security-Policy", "default-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'; object-src 'none'")
	header.Set("Cache-Control", "no-store")
	header.Set("Referrer-Policy", "same-origin")
	header.Set("X-Content-Type-Options", "nosniff")
	header.Set("X-Frame-Options", "DENY")
	header.Set("Cross-Origin-Opener-Policy", "same-origin")
	header.Set("Cross-Origin-Resource-Policy", "same-origin")
	// The mux would redirect to the path that it takes for the right one, without the
	// prefix that was stripped.
	if clean := path.Clean(r.URL.Path); r.URL.Path != clean || !strings.HasPrefix(r.URL.Path, "/") {
		h.serve(func(*request) error { return errNoPage }).ServeHTTP(w, r)
		return
	}
	h.mux.ServeHTTP(w, r)
}

// request is one request of somebody who was let in.
type request struct {
	*Handler
	w      http.ResponseWriter
	r      *http.Request
	query  url.Values
	begun  time.Time
	access Access
	// users are those whose names the page shows.
	users map[string]bool
	// status is how history stands, or nil if that is not known; statusErr is why.
	status    *audit.Status
	statusErr error
	// from, until and tables are what the page is about, for what it says of how complete
	// it is.
	from, until time.Time
	tables      []string
	// keys are what is known of the keys of tables.
	keys map[string]tableKey
	// sent reports whether the answer has begun.
	sent bool
}

// serve asks for access, and makes a page of whatever comes of it, a panic included.
func (h *Handler) serve(page func(*request) error) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		q := &request{Handler: h, w: w, r: r, begun: time.Now(), users: make(map[string]bool)}
		defer func() {
			failure := recover()
			if failure == nil {
				return
			}
			if failure == http.ErrAbortHandler { //nolint:errorlint // It is panicked with as it is.
				panic(failure)
			}
			// What was panicked with may hold a value.
			h.cfg.Logger.ErrorContext(r.Context(), "auditui: a page panicked", "route", r.Pattern, "type", fmt.Sprintf("%T", failure))
			if q.sent {
				panic(http.ErrAbortHandler)
			}
			q.refuse(http.StatusInternalServerError)
		}()
		access, err := h.cfg.Access(r)
		switch {
		case errors.Is(err, ErrUnauthorized):
			q.refuse(http.StatusUnauthorized)
			return
		case errors.Is(err, ErrForbidden):
			q.refuse(http.StatusForbidden)
			return
		case err != nil:
			h.cfg.Logger.ErrorContext(r.Context(), "auditui: Config.Access returned an error", "type", fmt.Sprintf("%T", err))
			q.refuse(http.StatusInternalServerError)
			return
		}
		if access.Revert && access.User == "" {
			h.cfg.Logger.ErrorContext(r.Context(), "auditui: Config.Access gives the right to revert to nobody: set Access.User")
			access.Revert = false
		}
		q.access = access
		// What changes something has to come from a page of this host. A form has a
		// signature besides.
		if err := h.origins.Check(r); err != nil {
			q.refuse(http.StatusForbidden)
			return
		}
		if q.query, err = url.ParseQuery(r.URL.RawQuery); err != nil || !storable(q.query) {
			q.query = url.Values{}
			q.fail(&requestError{"The address is damaged."})
			return
		}
		if !storable(url.Values{r.URL.Path: nil}) {
			q.fail(errNoPage) // no database has such a name
			return
		}
		if err := page(q); err != nil {
			q.fail(err)
		}
	})
}

// refuse answers without saying anything.
func (q *request) refuse(code int) {
	q.sent = true
	http.Error(q.w, http.StatusText(code), code)
}

// context is that of the request with a bound on its time, from its beginning on.
func (q *request) context(timeout time.Duration) (context.Context, context.CancelFunc) {
	return context.WithDeadlineCause(q.r.Context(), q.begun.Add(timeout), errTimeout)
}

// storable reports whether all names and values are texts that a database takes.
func storable(values url.Values) bool {
	fine := func(text string) bool { return utf8.ValidString(text) && strings.IndexByte(text, 0) < 0 }
	for name, all := range values {
		if !fine(name) || slices.ContainsFunc(all, func(text string) bool { return !fine(text) }) {
			return false
		}
	}
	return true
}

// page is what the layout shows around every page.
type page struct {
	Title  string
	Nav    string
	Base   string
	Access Access
	// Complete says how complete history is, if that is known.
	Complete *completeness
	Body     any
	// People are the names of the users on the page.
	People map[string]string
}

// Name is the name of a user.
func (p *page) Name(user string) string {
	if name := p.People[user]; name != "" {
		return name
	}
	return user
}

// base is the way from the page to the root.
func (q *request) base() string {
	depth := strings.Count(q.r.URL.EscapedPath(), "/") - 1
	if depth <= 0 {
		return "./"
	}
	return strings.Repeat("../", depth)
}

// link is the address of a page, relative to this one. A segment of a path is escaped;
// one that a browser or a proxy would take for something else goes into the query.
func (q *request) link(kind string, segments []string, query url.Values) string {
	return q.base() + address(kind, segments, query)
}

func address(kind string, segments []string, query url.Values) string {
	to := kind
	for i, segment := range segments {
		if fragile(segment) {
			if len(query) == 0 {
				query = make(url.Values)
			}
			query.Set(fmt.Sprintf("~%d", i+1), segment)
			segment = "~"
		}
		to += "/" + url.PathEscape(segment)
	}
	if len(query) > 0 {
		to += "?" + query.Encode()
	}
	return to
}

// fragile reports whether a text does not survive as a segment of a path everywhere.
func fragile(segment string) bool {
	return segment == "" || segment == "." || segment == ".." || segment == "~" || len(segment) > 500 ||
		strings.ContainsAny(segment, "/\\%;?#") || strings.ContainsFunc(segment, func(r rune) bool { return r < ' ' })
}

// segment is a part of the path that link has put there.
func (q *request) segment(name string, number int) string {
	text := q.r.PathValue(name)
	if text == "~" {
		return q.query.Get(fmt.Sprintf("~%d", number))
	}
	return text
}

// render writes a page. Nothing is written before all of it is made.
func (q *request) render(code int, name, nav, title string, view View, body any) error {
	q.users[q.access.User] = true
	p := &page{Title: title, Nav: nav, Base: q.base(), Access: q.access, Body: body, People: q.names()}
	p.Complete = q.completeness()
	var b bytes.Buffer
	if err := q.pages[name].ExecuteTemplate(&b, "layout.html", p); err != nil {
		return fmt.Errorf("auditui: make page %s: %w", name, err)
	}
	q.view(view)
	q.write(code, "text/html; charset=utf-8", b.Bytes())
	return nil
}

// view reports what is about to be shown.
func (q *request) view(view View) {
	if q.cfg.OnView != nil && view.Page != "" {
		view.User = q.access.User
		q.cfg.OnView(q.r, view)
	}
}

func (q *request) write(code int, contentType string, content []byte) {
	q.sent = true
	q.w.Header().Set("Content-Type", contentType)
	q.w.WriteHeader(code)
	_, _ = io.Copy(q.w, bytes.NewReader(content)) // whoever asked has gone
}

// names asks for the names of the users on the page.
func (q *request) names() map[string]string {
	delete(q.users, "")
	if q.cfg.Names == nil || len(q.users) == 0 {
		return nil
	}
	users := make([]string, 0, len(q.users))
	for user := range q.users {
		users = append(users, user)
	}
	// A plan may have taken longer than a page.
	ctx, cancel := context.WithTimeoutCause(q.r.Context(), q.cfg.Timeout, errTimeout)
	defer cancel()
	return q.cfg.Names(ctx, users)
}

// asset is a file of the UI itself.
func (q *request) asset() error {
	a, ok := q.assets[q.r.PathValue("name")]
	if !ok {
		return errNoPage
	}
	if q.query.Get("v") == a.version {
		q.w.Header().Set("Cache-Control", "private, max-age=31536000, immutable")
	}
	q.write(http.StatusOK, a.contentType, a.content)
	return nil
}

// facts are what many pages ask about history, kept for a moment.
type facts struct {
	mu     sync.Mutex // guards what follows
	at     time.Time
	status *audit.Status
	err    error
	asking chan struct{}
}

// statusAge is for how long a status serves other pages, too.
const statusAge = time.Second

// loadStatus asks how history stands, at most once a second for all pages, and waits for
// the answer for half of what a page may take.
func (q *request) loadStatus() {
	ctx, cancel := q.context(q.cfg.Timeout / 2)
	defer cancel()
	q.status, q.statusErr = q.facts.get(ctx, q.client, q.cfg.Timeout)
}

func (f *facts) get(ctx context.Context, client *audit.Client, timeout time.Duration) (*audit.Status, error) {
	f.mu.Lock()
	if time.Since(f.at) < statusAge {
		defer f.mu.Unlock()
		return f.status, f.err
	}
	if f.asking == nil {
		f.asking = make(chan struct{})
		go f.ask(context.WithoutCancel(ctx), client, timeout)
	}
	asking := f.asking
	f.mu.Unlock()
	select {
	case <-asking:
		f.mu.Lock()
		defer f.mu.Unlock()
		return f.status, f.err
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

// ask serves all that wait, and so is not ended by the first of them going away.
func (f *facts) ask(ctx context.Context, client *audit.Client, timeout time.Duration) {
	ctx, cancel := context.WithTimeoutCause(ctx, timeout, errTimeout)
	defer cancel()
	status, err := client.Status(ctx)
	f.mu.Lock()
	defer f.mu.Unlock()
	f.at, f.err = time.Now(), err
	f.status = &status
	if err != nil {
		f.status = nil
	}
	close(f.asking)
	f.asking = nil
}
