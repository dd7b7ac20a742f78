package docs

import (
	"context"
	"net/http"
	"net/http/httptest"
	"net/url"
	"testing"

	"github.com/hindsight-go/audit"
	"github.com/hindsight-go/audit/audittest"
	"github.com/hindsight-go/audit/auditui"
)

// login is a session of a program that has its own idea of rights.
type login struct {
	UserID string
	rights map[string]bool
}

func (l login) Can(right string) bool { return l.rights[right] }

// mountUI mounts the pages as docs/ui.md does.
func mountUI(mux *http.ServeMux, client *audit.Client, sessionOf func(*http.Request) (login, bool), requireLogin func(http.Handler) http.Handler) error {
	ui, err := auditui.New(client, auditui.Config{
		Access: func(r *http.Request) (auditui.Access, error) {
			s, ok := sessionOf(r)
			switch {
			case !ok:
				return auditui.Access{}, auditui.ErrUnauthorized // 401
			case !s.Can("audit.read"):
				return auditui.Access{}, auditui.ErrForbidden // 403
			}
			return auditui.Access{
				User:   s.UserID,
				Values: s.Can("audit.values"),
				Export: s.Can("audit.export"),
				Revert: s.Can("audit.revert"),
			}, nil
		},
	})
	if err != nil {
		return err
	}
	mux.Handle("/admin/audit/", http.StripPrefix("/admin/audit", requireLogin(ui)))
	return nil
}

func TestUIOfTheGuideAsksWhoItIs(t *testing.T) {
	t.Parallel()
	a := audittest.New(t, audit.Config{}, todoSQL)
	sessions := map[string]login{
		"ann": {UserID: "ann", rights: map[string]bool{"audit.read": true}},
		"bob": {UserID: "bob"},
	}
	mux := http.NewServeMux()
	err := mountUI(mux, a.Client, func(r *http.Request) (login, bool) {
		s, ok := sessions[r.Header.Get("X-User")]
		return s, ok
	}, func(next http.Handler) http.Handler { return next })
	if err != nil {
		t.Fatal(err)
	}
	for user, want := range map[string]int{"": http.StatusUnauthorized, "bob": http.StatusForbidden, "ann": http.StatusOK} {
		r := httptest.NewRequestWithContext(t.Context(), http.MethodGet, "/admin/audit/", nil)
		r.Header.Set("X-User", user)
		w := httptest.NewRecorder()
		mux.ServeHTTP(w, r)
		if w.Code != want {
			t.Errorf("%q sees %d, want %d", user, w.Code, want)
		}
	}
}

// namesAndLinks is what docs/ui.md says of masks, names and links.
func namesAndLinks(namesOf func(context.Context, []string) map[string]string) auditui.Config {
	return auditui.Config{
		Access: func(*http.Request) (auditui.Access, error) {
			return auditui.Access{User: "ann", Values: true, Revert: true}, nil
		},
		Mask:  func(table, column string) bool { return table == "public.customer" && column == "iban" },
		Names: namesOf, // func(ctx context.Context, users []string) map[string]string, once a page
		Links: auditui.Links{
			Row:     func(table, key string) string { return "/admin/" + table + "/" + url.PathEscape(key) },
			Request: func(id string) string { return "https://logs.example/?q=" + url.QueryEscape(id) },
			Trace:   func(id string) string { return "https://jaeger.example/trace/" + url.PathEscape(id) },
		},
	}
}

func TestMasksNamesAndLinksOfTheUIGuide(t *testing.T) {
	t.Parallel()
	a := audittest.New(t, audit.Config{}, "CREATE TABLE customer (id int PRIMARY KEY, iban text)")
	a.Exec(t, `BEGIN; SELECT pg_logical_emit_message(true, 'audit', '{"userId": "u-17", "requestId": "req-9"}');
		INSERT INTO customer VALUES (7, 'DE02120300000000202051'); COMMIT`)
	a.Sync(t)
	ui, err := auditui.New(a.Client, namesAndLinks(func(_ context.Context, users []string) map[string]string {
		names := map[string]string{}
		for _, u := range users {
			names[u] = "Mister " + u
		}
		return names
	}))
	if err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]struct{ has, hasNot string }{
		"/":                       {has: "Mister u-17", hasNot: "DE0212"},
		"/requests/req-9":         {has: "https://logs.example/?q=req-9", hasNot: "DE0212"},
		"/rows/public.customer/7": {has: "/admin/public.customer/7", hasNot: "DE0212"},
	} {
		w := httptest.NewRecorder()
		ui.ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), http.MethodGet, path, nil))
		if body := w.Body.String(); w.Code != http.StatusOK || !contains(body, want.has) || contains(body, want.hasNot) {
			t.Errorf("%s: %d, has %q: %t, has %q: %t", path, w.Code, want.has, contains(body, want.has), want.hasNot, contains(body, want.hasNot))
		}
	}
}
