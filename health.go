package audit

import (
	"context"
	"encoding/json"
	"net/http"
	"slices"
	"sync"
	"time"

	"github.com/hindsight-go/audit/capture"
)

// Healthy reports whether the changes of the source are being captured: by this instance,
// or by another that holds the slot while this one waits. A client that was not started is
// not healthy, nor is one that has just begun, that tries again after a failure, or that
// waits while nobody captures.
//
// Gaps do not count, which are for good, nor do warnings that say what may come, tables
// that wait for a lock, and how far capture is behind: these are for alerts.
func (s Status) Healthy() bool { return s.problem() == "" }

// problem says why changes are not being captured, or nothing if they are. It is for
// everybody who may ask a probe, and so tells no names.
func (s Status) problem() string {
	switch s.State {
	case capture.Streaming, capture.Waiting:
	case capture.Starting:
		return "capture is starting"
	case capture.Retrying:
		return "capture was interrupted, and is tried again"
	case capture.Failed:
		return "capture has failed"
	default:
		return "capture is not running"
	}
	stalls := func(w Warning) bool { return w.Code == WarningHolderStalls }
	switch {
	case !s.Slot.Exists:
		return "the replication slot does not exist"
	case s.Slot.Status == "lost":
		return "the source has given up the replication slot"
	case s.State == capture.Waiting && !s.Slot.Active:
		return "no instance captures"
	case slices.ContainsFunc(s.Warnings, stalls):
		return "the instance that captures makes no progress"
	}
	return ""
}

const (
	// healthTimeout bounds the question how capture stands. A probe waits for a second,
	// as a rule.
	healthTimeout = 2 * time.Second
	// healthFresh is for how long an answer is given again.
	healthFresh = time.Second
)

// health answers probes.
type health struct {
	client *Client

	// mu lets one request ask, and guards what it was told.
	mu     sync.Mutex
	until  time.Time
	code   int
	answer []byte
}

// healthAnswer is the body of an answer.
type healthAnswer struct {
	Healthy bool `json:"healthy"`
	// Problem says why not.
	Problem  string        `json:"problem,omitempty"`
	State    State         `json:"state"`
	LagBytes int64         `json:"lagBytes"`
	Gaps     int           `json:"gaps"`
	Warnings []WarningCode `json:"warnings,omitempty"`
}

// Health returns a handler for probes: it answers 200 if the client's Status is
// [Status.Healthy], and 503 if not, or if the source or the store does not say within two
// seconds. The body is a JSON object that says which, and why: healthy, problem, state,
// lagBytes, gaps (how many) and warnings (their codes).
//
// It names no table, server or error, so it may be open to those who may reach the probes
// of a program, and asks at most once a second, however often it is asked. What it does not
// tell is in [Client.Status] and the log.
//
// Mind what the answer does. A program that only captures may be restarted for it. A
// service whose requests do not need the history should not, nor be taken out of its load
// balancer: its writes are kept in the WAL of the source meanwhile. Have such a one watched.
func (c *Client) Health() http.Handler { return &health{client: c} }

// Health is [Client.Health] of the client that is the default when it is asked.
func Health() http.Handler {
	var mu sync.Mutex
	var current *health
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		client := defaultClient.Load()
		if client == nil {
			writeHealth(w, http.StatusServiceUnavailable, healthBody(healthAnswer{Problem: "there is no client", State: capture.Stopped}))
			return
		}
		mu.Lock()
		if current == nil || current.client != client {
			current = &health{client: client}
		}
		h := current
		mu.Unlock()
		h.ServeHTTP(w, r)
	})
}

// ServeHTTP implements http.Handler.
func (h *health) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	code, answer := h.ask(r.Context())
	writeHealth(w, code, answer)
}

// ask returns the answer. The prober that happens to be the one for whom it is looked up
// may hang up; the others shall have it all the same.
func (h *health) ask(ctx context.Context) (code int, answer []byte) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if time.Now().Before(h.until) {
		return h.code, h.answer
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), healthTimeout)
	defer cancel()
	s, err := h.client.Status(ctx)
	a := healthAnswer{Problem: s.problem(), State: s.State, LagBytes: s.LagBytes, Gaps: len(s.Gaps)}
	for _, w := range s.Warnings {
		a.Warnings = append(a.Warnings, w.Code)
	}
	if err != nil && (s.State == capture.Streaming || s.State == capture.Waiting) {
		// What it says of the slot is what was not asked any more.
		a.Problem = "the source or the store does not answer"
	}
	a.Healthy = a.Problem == ""
	h.code = http.StatusOK
	if !a.Healthy {
		h.code = http.StatusServiceUnavailable
	}
	h.answer, h.until = healthBody(a), time.Now().Add(healthFresh)
	return h.code, h.answer
}

func healthBody(a healthAnswer) []byte {
	body, err := json.Marshal(a)
	if err != nil {
		return nil // it is texts and numbers
	}
	return append(body, '\n')
}

func writeHealth(w http.ResponseWriter, code int, body []byte) {
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(code)
	_, _ = w.Write(body) // whoever has hung up does not read it
}
