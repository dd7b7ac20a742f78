package main

import (
	"context"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/hindsight-go/audit"
	"github.com/hindsight-go/audit/audittest"
	"github.com/hindsight-go/audit/internal/telemetry"
)

// get asks for a page of the sidecar.
func get(t *testing.T, url string) (code int, body string) {
	t.Helper()
	request, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, http.NoBody)
	if err != nil {
		t.Fatal(err)
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return 0, err.Error()
	}
	defer response.Body.Close()
	text, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatal(err)
	}
	return response.StatusCode, string(text)
}

// untilPage asks until the page has a text.
func untilPage(t *testing.T, url, want string) string {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); ; {
		code, body := get(t, url)
		if code == http.StatusOK && strings.Contains(body, want) {
			return body
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s says (%d)\n%s\nand never %q", url, code, body, want)
		}
		<-time.After(20 * time.Millisecond)
	}
}

func TestCapture_CapturesUntilItIsStopped(t *testing.T) {
	t.Parallel()
	server := audittest.NewServer(t, audittest.ServerOptions{Settings: map[string]string{"max_slot_wal_keep_size": "1GB"}})
	db := server.NewDatabase(t)
	db.Exec(t, itemTable+"; CREATE TABLE session (id int PRIMARY KEY)")
	c := command{url: db.URL(), env: map[string]string{"HINDSIGHT_TABLES": "public.*,!public.session", "HINDSIGHT_ENVIRONMENT": "not this one", "HINDSIGHT_LOG": "json"}}
	ctx, stop := context.WithCancel(context.WithoutCancel(t.Context()))
	defer stop()
	said := newLines()
	ended := make(chan int, 1)
	go func() {
		ended <- c.start(ctx, newLines(), said, "capture", "--listen", "127.0.0.1:0", "--environment", "production", "--retention", "400d")
	}()
	url := "http://" + said.await(t, `http://(\S+)/metrics`)[1]
	untilPage(t, url+"/metrics", "\naudit_streaming 1\n")
	untilPage(t, url+"/healthz", `"healthy":true`)
	db.Exec(t, "INSERT INTO item VALUES (1, 'x'), (2, 'y'); INSERT INTO session VALUES (1)")
	untilPage(t, url+"/metrics", "\naudit_changes_total 2\n")
	// The gauges of the slot are read every ten seconds.
	page := untilPage(t, url+"/metrics", telemetry.SlotBound.Prometheus())
	for _, m := range telemetry.All {
		name := m.Prometheus()
		if m.Kind == telemetry.Histogram {
			name += "_bucket"
		}
		if !strings.Contains(page, "\n"+name+" ") && !strings.Contains(page, "\n"+name+"{") {
			t.Errorf("there is no %s in\n%s", name, page)
		}
	}
	stop()
	if code := <-ended; code != exitDone {
		t.Errorf("exit code %d:\n%s", code, said)
	}
	client := audittest.Open(t, db, audit.Config{}).Client
	for change, err := range client.Changes().All(t.Context()) {
		if err != nil {
			t.Fatal(err)
		}
		if change.Table != "item" || change.Environment != "production" {
			t.Errorf("a change of %s, environment %q", change.Table, change.Environment)
		}
	}
	if text := said.String(); !strings.Contains(text, `"msg":"audit: capturing"`) {
		t.Errorf("the log is not JSON:\n%s", text)
	}
	if code, _ := get(t, url+"/healthz"); code != 0 {
		t.Errorf("it goes on serving: %d", code)
	}
}

func TestCapture_UsageErrors(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		env  map[string]string
		args []string
		says string
	}{
		"log":           {nil, []string{"--log", "xml"}, "--log xml"},
		"retention":     {nil, []string{"--retention", "soon"}, "--retention"},
		"a boolean":     {map[string]string{"HINDSIGHT_STOP_AT_GAP": "perhaps-s3cret"}, nil, "HINDSIGHT_STOP_AT_GAP"},
		"tables":        {map[string]string{"HINDSIGHT_TABLES": "a.b.c.d"}, nil, "--tables"},
		"no connection": {nil, []string{"--database-url", "postgres://u:s3cret@h:x/d"}, "--database-url"},
	} {
		_, said, code := command{url: "postgres://localhost/none", env: test.env}.run(t.Context(), append([]string{"capture"}, test.args...)...)
		if code != exitUsage || !strings.Contains(said, test.says) || strings.Contains(said, "s3cret") {
			t.Errorf("%s: exit code %d, %s", name, code, said)
		}
	}
	_, said, code := command{url: "postgres://u:s3cret@127.0.0.1:1/none"}.run(t.Context(), "capture", "--listen", "127.0.0.1:0")
	if code != exitError || strings.Contains(said, "s3cret") {
		t.Errorf("without a server: exit code %d, %s", code, said)
	}
}
