package docs

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/hindsight-go/audit"
)

// undoPanel has the two handlers of an undo in an admin panel: one shows what it would
// do, the other does just that.
type undoPanel struct {
	client *audit.Client
	userOf func(*http.Request) string
}

// preview answers with the plan: rows, conflicts and hash.
func (p undoPanel) preview(w http.ResponseWriter, r *http.Request) {
	plan, err := p.client.RevertRequest(r.PathValue("id")).Plan(r.Context())
	if err != nil {
		http.Error(w, "no plan", http.StatusUnprocessableEntity) // audit.ErrNothingSelected: no such request
		return
	}
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(plan)
}

// apply carries out the plan that was shown, or nothing.
func (p undoPanel) apply(w http.ResponseWriter, r *http.Request) {
	revert := p.client.RevertRequest(r.PathValue("id")).
		IfHash(r.FormValue("hash")).
		Actor(p.userOf(r)).
		Reason(r.FormValue("reason"))
	if r.FormValue("skip") != "" {
		revert = revert.OnConflict(audit.Skip) // rows that somebody has worked on since stay as they are
	}
	result, err := revert.Apply(r.Context())
	var conflict *audit.ConflictError
	var stale *audit.StaleError
	switch {
	case errors.As(err, &conflict):
		http.Error(w, conflict.Error(), http.StatusConflict) // who is in the way; nothing was written
	case errors.As(err, &stale):
		http.Error(w, "the rows have changed since: look at the plan again", http.StatusConflict)
	case err != nil:
		http.Error(w, "the undo has failed", http.StatusInternalServerError)
	default:
		fmt.Fprintln(w, result.ID) // what Redo takes
	}
}

func TestUndoInAnAdminPanel(t *testing.T) {
	t.Parallel()
	s := newShop(t)
	panel := undoPanel{client: s.client, userOf: func(*http.Request) string { return "support" }}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /undo/{id}", panel.preview)
	mux.HandleFunc("POST /undo/{id}", panel.apply)
	call := func(method, target string) *httptest.ResponseRecorder {
		w := httptest.NewRecorder()
		mux.ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), method, target, nil))
		return w
	}
	hashOf := func(request string) string {
		var plan struct {
			Hash      string           `json:"hash"`
			Conflicts []audit.Conflict `json:"conflicts"`
		}
		if w := call(http.MethodGet, "/undo/"+request); json.Unmarshal(w.Body.Bytes(), &plan) != nil || plan.Hash == "" {
			t.Fatalf("preview: %d %s", w.Code, w.Body)
		}
		return plan.Hash
	}
	if w := call(http.MethodGet, "/undo/req-9"); w.Code != http.StatusUnprocessableEntity {
		t.Errorf("preview of no request: %d", w.Code)
	}
	// Somebody has raised the price again since.
	if w := call(http.MethodPost, "/undo/req-1?hash="+hashOf("req-1")); w.Code != http.StatusConflict || !strings.Contains(w.Body.String(), "product") {
		t.Errorf("undo over later work: %d %s", w.Code, w.Body)
	}
	if w := call(http.MethodPost, "/undo/req-2?hash=another"); w.Code != http.StatusConflict {
		t.Errorf("undo of another plan: %d %s", w.Code, w.Body)
	}
	if w := call(http.MethodPost, "/undo/req-2?reason=mistake&hash="+hashOf("req-2")); w.Code != http.StatusOK {
		t.Errorf("undo: %d %s", w.Code, w.Body)
	}
	if err := s.client.Sync(t.Context()); err != nil {
		t.Fatal(err)
	}
	done, err := s.client.Changes().Reverts().ByUser("support").List(t.Context())
	if err != nil || len(done) != 3 {
		t.Errorf("%d changes by the undo, %v", len(done), err)
	}
}

// stream is a live tail over server-sent events. The browser sends the id of the last
// event that it got when it connects again, and goes on behind it.
func stream(w http.ResponseWriter, r *http.Request, client *audit.Client) {
	w.Header().Set("Content-Type", "text/event-stream")
	flush := http.NewResponseController(w).Flush
	if flush() != nil { // the headers, so that the browser knows that it is connected
		return
	}
	last := audit.Cursor(r.Header.Get("Last-Event-ID"))
	for event, err := range client.Changes().After(last).Watch(r.Context()) {
		if err != nil {
			return // the browser has gone, or connects again
		}
		change, err := json.Marshal(event.Change)
		if err != nil {
			return
		}
		fmt.Fprintf(w, "id: %s\ndata: %s\n\n", event.Cursor, change)
		if flush() != nil {
			return
		}
	}
}

func TestStreamResumesBehindTheLastEvent(t *testing.T) {
	t.Parallel()
	s := newShop(t)
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { stream(w, r, s.client) }))
	t.Cleanup(server.Close)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	// next connects, and reads one event.
	next := func(last string) (id, data string) {
		ctx, stop := context.WithCancel(ctx)
		defer stop()
		r, err := http.NewRequestWithContext(ctx, http.MethodGet, server.URL, nil)
		if err != nil {
			t.Fatal(err)
		}
		r.Header.Set("Last-Event-ID", last)
		response, err := http.DefaultClient.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = response.Body.Close() }()
		lines := bufio.NewScanner(response.Body)
		for lines.Scan() {
			if text, found := strings.CutPrefix(lines.Text(), "id: "); found {
				id = text
			}
			if text, found := strings.CutPrefix(lines.Text(), "data: "); found {
				return id, text
			}
		}
		t.Fatal("the stream has ended: ", lines.Err())
		return "", ""
	}
	page, err := s.client.Changes().OldestFirst().Page(ctx, 1)
	if err != nil {
		t.Fatal(err)
	}
	changes, err := s.client.Changes().OldestFirst().List(ctx)
	if err != nil {
		t.Fatal(err)
	}
	// A connection for each event, as if every one broke.
	last := string(page.Next)
	for _, want := range changes[1:] {
		id, data := next(last)
		var got audit.Change
		if err := json.Unmarshal([]byte(data), &got); err != nil || got.Position != want.Position {
			t.Errorf("event %s, %v, want %s", data, err, want)
		}
		last = id
	}
}
