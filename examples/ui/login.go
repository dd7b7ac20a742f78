package main

import (
	"crypto/rand"
	"html/template"
	"net/http"
	"sync"

	"github.com/hindsight-go/audit/auditui"
)

// The people who work here.
const (
	ada     = "187234"
	bob     = "187235"
	support = "9001"
	auditor = "9002"
)

var people = map[string]string{ada: "Ada Lovelace", bob: "Bob Kahn", support: "Support", auditor: "Auditor", "import": "Price import"}

// logins are the sessions of a browser. A real program has its own.
type logins struct {
	mu    sync.Mutex // guards users
	users map[string]string
}

func newLogins() *logins { return &logins{users: make(map[string]string)} }

const cookie = "session"

// session is who is logged in, or "".
func (l *logins) session(r *http.Request) string {
	c, err := r.Cookie(cookie)
	if err != nil {
		return ""
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.users[c.Value]
}

// user is who makes a request, for the history: an employee's program says so in a header.
func (l *logins) user(r *http.Request) any {
	if id := l.session(r); id != "" {
		return id
	}
	return r.Header.Get("X-User")
}

// access is what somebody may see of the history. Employees see none of it.
func (l *logins) access(r *http.Request) (auditui.Access, error) {
	switch id := l.session(r); id {
	case support:
		return auditui.Access{User: id, Values: true, Export: true, Revert: true}, nil
	case auditor:
		return auditui.Access{User: id}, nil
	case "":
		return auditui.Access{}, auditui.ErrUnauthorized
	}
	return auditui.Access{}, auditui.ErrForbidden
}

var loginPage = template.Must(template.New("login").Parse(`<!doctype html><html lang="en"><meta charset="utf-8"><title>Shop</title>
<body><h1>The shop</h1>{{with .}}<p>You are {{.}}. <a href="history/">The history</a></p>{{end}}
<form method="post" action="login">
<p><button name="as" value="9001">Log in as support</button> sees everything but phone numbers, and undoes what went wrong</p>
<p><button name="as" value="9002">Log in as auditor</button> sees who changed what and when, but no values</p>
<p><button name="as" value="187234">Log in as Ada, who works here</button> may not see the history</p>
</form>`))

func (l *logins) register(mux *http.ServeMux) {
	mux.HandleFunc("GET /{$}", func(w http.ResponseWriter, r *http.Request) {
		_ = loginPage.Execute(w, people[l.session(r)]) // whoever asked has gone
	})
	mux.HandleFunc("POST /login", func(w http.ResponseWriter, r *http.Request) {
		token := rand.Text()
		l.mu.Lock()
		l.users[token] = r.PostFormValue("as")
		l.mu.Unlock()
		http.SetCookie(w, &http.Cookie{Name: cookie, Value: token, Path: "/", HttpOnly: true, SameSite: http.SameSiteLaxMode})
		http.Redirect(w, r, "history/", http.StatusSeeOther)
	})
}
