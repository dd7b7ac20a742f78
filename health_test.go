package audit_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/hindsight-go/audit"
	"github.com/hindsight-go/audit/audittest"
	"github.com/hindsight-go/audit/capture"
	"github.com/hindsight-go/audit/internal/faulttest"
)

// probe asks a handler as a prober does.
func probe(t *testing.T, handler http.Handler) (code int, body map[string]any) {
	t.Helper()
	w := httptest.NewRecorder()
	handler.ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), http.MethodGet, "/healthz", nil))
	if err := json.Unmarshal(w.Body.Bytes(), &body); err != nil || w.Header().Get("Content-Type") != "application/json" {
		t.Errorf("the answer is %q, error %v", w.Body, err)
	}
	if (w.Code == http.StatusOK) != (body["healthy"] == true) || (body["healthy"] == true) != (body["problem"] == nil) {
		t.Errorf("the answer is %d %s", w.Code, w.Body)
	}
	return w.Code, body
}

// wantProbe waits until a handler answers so.
func wantProbe(t *testing.T, handler http.Handler, code int, state, problem string) {
	t.Helper()
	faulttest.Poll(t, faulttest.Patience, fmt.Sprintf("the answer is %d, %s, %q", code, state, problem), func() error {
		got, body := probe(t, handler)
		said, _ := body["problem"].(string)
		if got != code || body["state"] != state || said != problem {
			return fmt.Errorf("it is %d %v", got, body)
		}
		return nil
	})
}

func TestHealth_FollowsCapture(t *testing.T) {
	t.Parallel()
	db := audittest.NewDatabase(t)
	db.Exec(t, gapTable)
	first, second := audittest.Open(t, db, audit.Config{}), audittest.Open(t, db, audit.Config{})
	one, two := first.Client.Health(), second.Client.Health()
	wantProbe(t, one, 503, "stopped", "capture is not running")
	mustStart(t, first)
	wantProbe(t, one, 200, "streaming", "")
	mustStart(t, second)
	wantProbe(t, two, 200, "waiting", "")
	if s := statusOf(t, second); !s.Healthy() {
		t.Errorf("the one that waits is not healthy: %+v", s)
	}
	first.Stop(t)
	wantProbe(t, one, 503, "stopped", "capture is not running")
	wantProbe(t, two, 200, "streaming", "")
	second.Client.Close()
	wantProbe(t, two, 503, "stopped", "capture is not running")
}

// Behind a proxy that lets nothing through, a probe is answered, and without names.
func TestHealth_StoreAway(t *testing.T) {
	t.Parallel()
	db, store := audittest.NewDatabase(t), audittest.NewDatabase(t)
	db.Exec(t, gapTable)
	proxy := faulttest.NewProxy(t, store.URL())
	client, err := audit.Open(t.Context(), audit.Config{SourceURL: db.URL(), StoreURL: proxy.URL()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(client.Close)
	if err := client.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	handler := client.Health()
	wantProbe(t, handler, 200, "streaming", "")
	proxy.Freeze()
	proxy.Cut()
	db.Exec(t, "INSERT INTO todo VALUES (1, 'x')")
	faulttest.Poll(t, faulttest.Patience, "the answer is 503", func() error {
		code, body := probe(t, handler)
		if text := fmt.Sprint(body); strings.Contains(text, store.Name()) || strings.Contains(text, "127.0.0.1") {
			t.Errorf("the answer gives away %s", text)
		}
		if code != 503 {
			return errors.New("it is not")
		}
		return nil
	})
	proxy.Thaw()
	wantProbe(t, handler, 200, "streaming", "")
}

// Those who may ask a probe as often as they like do not make the source work for it.
func TestHealth_ManyProbersAskOnce(t *testing.T) {
	t.Parallel()
	server := audittest.NewServer(t, audittest.ServerOptions{Settings: map[string]string{"log_statement": "all"}})
	a := audittest.Open(t, server.NewDatabase(t), audit.Config{})
	handler := a.Client.Health()
	var probers sync.WaitGroup
	for range 50 {
		probers.Go(func() {
			for range 20 {
				probe(t, handler)
			}
		})
	}
	probers.Wait()
	// The first question of Status.
	if n := strings.Count(server.Log(), "SELECT current_database(), (CASE WHEN"); n < 1 || n > 20 {
		t.Errorf("1000 probes asked the source %d times", n)
	}
}

func TestStatus_Healthy(t *testing.T) {
	t.Parallel()
	slot := audit.SlotStatus{Exists: true, Active: true, Status: "reserved"}
	lost, idle := slot, slot
	lost.Status, idle.Active = "lost", false
	stalls := []audit.Warning{{Code: audit.WarningHolderStalls}}
	ahead := []audit.Warning{{Code: audit.WarningWALUnbounded}, {Code: audit.WarningWALNearBound}, {Code: audit.WarningSetupWaits}, {Code: audit.WarningIdleSlot}}
	got := map[string]bool{}
	for name, s := range map[string]audit.Status{
		"streams": {State: capture.Streaming, Slot: slot, Gaps: []audit.Gap{{}}, Warnings: ahead}, "waits": {State: capture.Waiting, Slot: slot},
		"waits for nobody": {State: capture.Waiting, Slot: idle}, "waits for one that stalls": {State: capture.Waiting, Slot: slot, Warnings: stalls},
		"lost": {State: capture.Streaming, Slot: lost}, "no slot": {State: capture.Streaming}, "failed": {State: capture.Failed, Slot: slot},
		"retries": {State: capture.Retrying, Slot: slot}, "starts": {State: capture.Starting, Slot: slot}, "stopped": {State: capture.Stopped, Slot: slot}, "zero": {},
	} {
		if s.Healthy() {
			got[name] = true
		}
	}
	if diff := cmp.Diff(map[string]bool{"streams": true, "waits": true}, got); diff != "" {
		t.Errorf("healthy differ (-want +got):\n%s", diff)
	}
}
