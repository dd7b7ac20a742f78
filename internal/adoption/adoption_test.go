package adoption

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"sync"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/hindsight-go/audit"
	"github.com/hindsight-go/audit/audittest"
)

const schemaSQL = `
	CREATE TABLE project (id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, name text, owner text, issues int NOT NULL DEFAULT 0);
	CREATE TABLE issue (id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, project int REFERENCES project, title text)`

// TestAdoption_EveryWriteSaysWho serves many users at once, and asks that each change
// has the user who made it, the endpoint, and the id of just that request.
func TestAdoption_EveryWriteSaysWho(t *testing.T) {
	t.Parallel()
	for name, program := range map[string]func(t *testing.T, url string) http.Handler{
		"without_ctx.go": func(t *testing.T, url string) http.Handler {
			t.Helper()
			config, err := pgx.ParseConfig(url)
			if err != nil {
				t.Fatal(err)
			}
			handler, db := newWithoutCtx(config)
			t.Cleanup(func() { _ = db.Close() })
			return handler
		},
		"with_ctx.go": func(t *testing.T, url string) http.Handler {
			t.Helper()
			pool, err := pgxpool.New(t.Context(), url)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(pool.Close)
			return newWithCtx(pool)
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			a := audittest.New(t, audit.Config{}, schemaSQL)
			served := serveUsers(t, program(t, a.URL()))
			a.Sync(t)
			n := 0
			for c, err := range a.Client.Changes().All(t.Context()) {
				if err != nil {
					t.Fatal(err)
				}
				n++
				want, ok := served[c.Context.RequestID]
				if got := c.Context.User() + " " + c.Context.Endpoint; !ok || got != want {
					t.Errorf("%s is by %q, of request %q, which was %q", c, got, c.Context.RequestID, want)
				}
			}
			if n < 8*20 {
				t.Errorf("there are %d changes", n)
			}
		})
	}
}

// serveUsers returns who asked for what, by the ids of the requests.
func serveUsers(t *testing.T, handler http.Handler) map[string]string {
	t.Helper()
	served := make(map[string]string)
	var mu sync.Mutex
	ask := func(user, endpoint string, in input) string {
		method, path, _ := strings.Cut(endpoint, " ")
		body, err := json.Marshal(in)
		if err != nil {
			t.Error(err)
		}
		r := httptest.NewRequestWithContext(t.Context(), method, path, strings.NewReader(string(body)))
		r.Header.Set("X-Signed-In", user)
		w := httptest.NewRecorder()
		handler.ServeHTTP(w, r)
		if w.Code != http.StatusOK {
			t.Errorf("%s: %d %s", endpoint, w.Code, w.Body)
		}
		mu.Lock()
		defer mu.Unlock()
		served[w.Header().Get("X-Request-Id")] = user + " " + endpoint
		return strings.TrimSpace(w.Body.String())
	}
	var users sync.WaitGroup
	for u := range 8 {
		users.Go(func() {
			user := fmt.Sprintf("user-%d", u)
			for range 3 {
				var from, to int
				_, err := fmt.Sscan(ask(user, "POST /project", input{Name: "a", Owner: user})+" "+ask(user, "POST /project", input{Name: "b", Owner: user}), &from, &to)
				if err != nil {
					t.Error(err)
				}
				ask(user, "PUT /project", input{ID: from, Name: "c"})
				ask(user, "POST /issue", input{ID: from, Name: "broken"})
				ask(user, "POST /issue", input{ID: from, Name: "slow"})
				ask(user, "POST /project/move", input{ID: from, To: to})
				ask(user, "DELETE /project", input{ID: to})
			}
		})
	}
	users.Wait()
	return served
}

// The guide says how many lines it takes.
func TestAdoption_LinesAreCounted(t *testing.T) {
	t.Parallel()
	guide, err := os.ReadFile("../../docs/context.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"without_ctx.go", "with_ctx.go"} {
		source, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		marked, all := strings.Count(string(source), "// +audit\n"), strings.Count(string(source), "\n")
		if row := fmt.Sprintf("internal/adoption/%s) | %d of %d |", name, marked, all); !strings.Contains(string(guide), row) {
			t.Errorf("docs/context.md does not say %q", row)
		}
	}
}
