package uitest

import (
	"context"
	"encoding/csv"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/chromedp/chromedp"

	"github.com/hindsight-go/audit"
	"github.com/hindsight-go/audit/auditui"
)

// 9. The live tail keeps up, pauses and goes on without a loss, survives the server, and
// ends with its tab.
func TestLiveTail(t *testing.T) {
	s := newShop(t)
	var streams atomic.Int32
	ui := s.handler(t, auditui.Config{})
	counted := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/tail/events" {
			streams.Add(1)
			defer streams.Add(-1)
		}
		ui.ServeHTTP(w, r)
	})
	server := httptest.NewServer(counted)
	address := server.Listener.Addr().String()
	b := newTab(t)
	b.expected = []string{"ERR_"}
	b.open(server.URL + "/tail?table=staff")
	b.wait("document.querySelector('#tail-state').textContent === 'Following.'")
	// The longest time that the page did not come to draw.
	b.run(chromedp.Evaluate(`window.longest = 0; { let last = performance.now(); const tick = (now) => { longest = Math.max(longest, now - last); last = now; requestAnimationFrame(tick); }; requestAnimationFrame(tick); }`, nil))
	id := 0
	write := func(n, each int) {
		t.Helper()
		for range n / each {
			s.Exec(t, fmt.Sprintf("INSERT INTO staff SELECT i, '<b>' || i FROM generate_series(%d, %d) i", id+1, id+each))
			id += each
		}
	}
	seen := func(n int) string {
		return fmt.Sprintf("Number(document.querySelector('#tail-count').textContent.replaceAll(',', '').split(' ')[0]) === %d", n)
	}
	begin := time.Now()
	write(3000, 10)
	written := time.Since(begin)
	b.wait(seen(3000))
	longest := eval[float64](b, "longest")
	t.Logf("3,000 changes in %v, the longest time without a frame %v ms", written.Round(time.Millisecond), longest)
	if longest > 5000 {
		t.Errorf("the tab stood still for %v ms", longest)
	}
	if n := b.count("#tail tbody tr"); n != 300 {
		t.Errorf("%d lines, want the newest 300", n)
	}
	if got := b.text("#tail tbody tr .key"); got != "3000" {
		t.Errorf("the first line is %q, want the newest", got)
	}
	b.run(chromedp.Click("#pause", chromedp.ByQuery))
	write(20, 1)
	s.Sync(t)
	if !eval[bool](b, seen(3000)) {
		t.Error("it goes on while paused")
	}
	b.run(chromedp.Click("#pause", chromedp.ByQuery))
	b.wait(seen(3020))

	// The server goes, and another one comes at its address.
	server.CloseClientConnections()
	server.Close()
	write(5, 1)
	listener, err := new(net.ListenConfig).Listen(t.Context(), "tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	server = &httptest.Server{Listener: listener, Config: &http.Server{Handler: counted, ReadHeaderTimeout: time.Minute}}
	server.Start()
	t.Cleanup(func() { server.CloseClientConnections(); server.Close() })
	b.wait(seen(3025))
	b.wantNot("<b>1</b>")

	b.run(chromedp.Navigate("about:blank"))
	for deadline := time.Now().Add(30 * time.Second); streams.Load() > 0; {
		if time.Now().After(deadline) {
			t.Fatalf("%d streams go on after their page has gone", streams.Load())
		}
		runtime.Gosched()
	}
}

// 10. A store that is away, and one that does not answer: the page says so, in time.
func TestStoreAwayAndSlow(t *testing.T) {
	silent, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = silent.Close() })
	b := newTab(t)
	b.expected = []string{"status of 503", "status of 504"}
	for name, c := range map[string]struct {
		url, text string
		code      int
	}{
		"away":   {"postgres://x@127.0.0.1:1/x", "The database is away", 503},
		"silent": {"postgres://x@" + silent.Addr().String() + "/x", "took too long", 504},
	} {
		client, err := audit.Open(t.Context(), audit.Config{SourceURL: c.url, Logger: slog.New(slog.DiscardHandler)})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(client.Close)
		ui := serve(t, handlerOf(t, client, auditui.Config{Timeout: 2 * time.Second}))
		for _, path := range []string{"/", "/requests", "/requests/x"} {
			begin := time.Now()
			code := b.open(ui + path)
			took := time.Since(begin)
			if code != c.code || !strings.Contains(b.text("main"), c.text) || took > 4*time.Second {
				t.Errorf("%s: %s: %d after %v:\n%s", name, path, code, took, b.text("main"))
			}
		}
	}
}

// 10. and 13. A large history: pages are quick, nothing is counted to its end, and an
// export streams.
func TestLargeHistory(t *testing.T) {
	s := newShop(t)
	n := sizeOf(t, "AUDIT_TEST_UI_CHANGES", 100_000)
	s.large(t, n)
	b := newTab(t)
	b.open(s.serve(t, auditui.Config{}))
	b.want("10,000+ changes")
	ui := s.serve(t, auditui.Config{SearchTime: 200 * time.Millisecond})
	for _, query := range []string{
		"", "op=UPDATE", "op=DELETE", "table=past_3", "table=none", "table=past_3&key=7", "env=test", "env=none", "user=7", "user=nobody", "tenant=none",
		"request=request-7", "request=none", "trace=trace-7", "trace=none", "endpoint=POST+/e1", "endpoint=none", "worker=w1", "worker=none", "nocontext=1", "defects=1",
		"column=state", "column=none", "table=past_3&column=none", "column=state&value=%3Dpaid", "column=state&value=none", "from=2001-01-01&until=2001-01-02", "tx=20", "tx=1",
	} {
		times := make([]time.Duration, 3)
		for i := range times {
			begin := time.Now()
			response, err := http.Get(ui + "?" + query) //nolint:noctx // The test has a time-out.
			if err != nil {
				t.Fatal(err)
			}
			_, _ = io.Copy(io.Discard, response.Body)
			_ = response.Body.Close()
			times[i] = time.Since(begin)
			if response.StatusCode != http.StatusOK {
				t.Errorf("%s: %d after %v", query, response.StatusCode, times[i])
			}
		}
		t.Logf("%8.1f ms  ?%s", float64(min(times[0], times[1], times[2]).Microseconds())/1000, query)
	}

	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, ui+"export?format=csv", nil)
	if err != nil {
		t.Fatal(err)
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = response.Body.Close() }()
	lines := csv.NewReader(response.Body)
	lines.ReuseRecord = true
	var most uint64
	var memory runtime.MemStats
	count := -1
	for ; ; count++ {
		record, err := lines.Read()
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		for _, field := range record {
			if strings.HasPrefix(field, "=") {
				t.Fatalf("line %d has a formula", count)
			}
		}
		if count%10_000 == 0 {
			runtime.GC()
			runtime.ReadMemStats(&memory)
			most = max(most, memory.HeapAlloc)
		}
	}
	if count != n {
		t.Errorf("the export has %d changes, want %d", count, n)
	}
	t.Logf("export of %d changes: at most %d MB of heap", count, most>>20)
	if most > 100<<20 {
		t.Errorf("the export takes %d MB of heap", most>>20)
	}
}
