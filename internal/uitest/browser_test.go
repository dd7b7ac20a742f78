package uitest

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/cdproto/log"
	"github.com/chromedp/cdproto/page"
	"github.com/chromedp/cdproto/runtime"
	"github.com/chromedp/chromedp"
)

var (
	allocator    context.Context //nolint:containedctx // The browser of all tests.
	firstBrowser context.Context //nolint:containedctx // See above.
	errBrowser   error
)

func TestMain(m *testing.M) {
	var cancel context.CancelFunc
	path := os.Getenv("CHROMIUM")
	for _, name := range []string{"chromium", "chromium-browser", "google-chrome"} {
		if found, err := exec.LookPath(name); err == nil && path == "" {
			path = found
		}
	}
	options := append(chromedp.DefaultExecAllocatorOptions[:], chromedp.NoSandbox, chromedp.ExecPath(path), chromedp.WSURLReadTimeout(time.Minute),
		chromedp.Flag("disable-dev-shm-usage", true), chromedp.Flag("lang", "en-US"))
	allocator, cancel = chromedp.NewExecAllocator(context.Background(), options...)
	firstBrowser, _ = chromedp.NewContext(allocator)
	if path == "" {
		errBrowser = fmt.Errorf("there is no chromium: install Debian's package chromium, or set CHROMIUM")
	} else {
		errBrowser = chromedp.Run(firstBrowser)
	}
	code := m.Run()
	cancel()
	os.Exit(code)
}

// patience bounds what a tab may take; test machines are slow.
const patience = 3 * time.Minute

// tab is a tab of the browser. What a page must not do in it fails the test: throw, open a
// dialog, or break its Content-Security-Policy.
type tab struct {
	t   *testing.T
	ctx context.Context //nolint:containedctx // A tab is one.

	mu       sync.Mutex
	problems []string
	// expected are texts of problems that the test is about.
	expected []string
}

func newTab(t *testing.T) *tab {
	t.Helper()
	if errBrowser != nil {
		t.Fatal(errBrowser)
	}
	ctx, cancel := chromedp.NewContext(firstBrowser)
	ctx, stop := context.WithTimeout(ctx, patience)
	b := &tab{t: t, ctx: ctx}
	chromedp.ListenTarget(ctx, func(event any) {
		switch e := event.(type) {
		case *runtime.EventExceptionThrown:
			b.problem("exception: " + e.ExceptionDetails.Error())
		case *page.EventJavascriptDialogOpening:
			b.problem("dialog: " + e.Message)
		case *log.EventEntryAdded:
			if e.Entry.Source == log.SourceSecurity || strings.Contains(e.Entry.Text, "Content Security Policy") {
				b.problem(e.Entry.Text)
			}
		}
	})
	t.Cleanup(func() {
		stop()
		cancel()
		b.mu.Lock()
		defer b.mu.Unlock()
		for _, p := range b.problems {
			known := false
			for _, text := range b.expected {
				known = known || strings.Contains(p, text)
			}
			if !known {
				t.Errorf("in the browser: %s", p)
			}
		}
	})
	b.run(chromedp.EmulateViewport(1280, 900))
	return b
}

func (b *tab) problem(text string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.problems = append(b.problems, text)
}

func (b *tab) run(actions ...chromedp.Action) {
	b.t.Helper()
	if err := chromedp.Run(b.ctx, actions...); err != nil {
		b.t.Fatalf("in the browser at %s: %v", b.where(), err)
	}
}

func (b *tab) where() (url string) {
	_ = chromedp.Run(b.ctx, chromedp.Location(&url))
	return url
}

// open opens an address, and returns the status that it answers with.
func (b *tab) open(url string) int {
	b.t.Helper()
	response, err := chromedp.RunResponse(b.ctx, chromedp.Navigate(url))
	if err != nil {
		b.t.Fatalf("open %s: %v", url, err)
	}
	return int(response.Status)
}

// follow clicks on something, and waits for the page that it leads to.
func (b *tab) follow(selector string) int {
	b.t.Helper()
	return b.leads(selector, chromedp.Click(selector, chromedp.ByQuery))
}

// leads does what leads to another page.
func (b *tab) leads(what string, actions ...chromedp.Action) int {
	b.t.Helper()
	response, err := chromedp.RunResponse(b.ctx, actions...)
	if err != nil {
		b.t.Fatalf("%s at %s: %v\n%s", what, b.where(), err, b.text("main"))
	}
	if response == nil {
		return 0
	}
	return int(response.Status)
}

// eval is the value of an expression in the page.
func eval[T any](b *tab, expression string) (v T) {
	b.t.Helper()
	b.run(chromedp.Evaluate(expression, &v, func(p *runtime.EvaluateParams) *runtime.EvaluateParams { return p.WithAwaitPromise(true) }))
	return v
}

func quoted(text string) string {
	q, _ := json.Marshal(text)
	return string(q)
}

// text is that of the first element of a selector, or "".
func (b *tab) text(selector string) string {
	b.t.Helper()
	return eval[string](b, `document.querySelector(`+quoted(selector)+`)?.innerText ?? ""`)
}

func (b *tab) count(selector string) int {
	b.t.Helper()
	return eval[int](b, `document.querySelectorAll(`+quoted(selector)+`).length`)
}

// wait waits until an expression is true.
func (b *tab) wait(expression string) {
	b.t.Helper()
	for deadline := time.Now().Add(time.Minute); time.Now().Before(deadline); {
		// Between two pages there is nothing to ask.
		var is bool
		if err := chromedp.Run(b.ctx, chromedp.Evaluate(expression, &is)); err == nil && is {
			return
		}
		if err := chromedp.Run(b.ctx, chromedp.Sleep(20*time.Millisecond)); err != nil {
			b.t.Fatalf("wait until %s: %v", expression, err)
		}
	}
	b.t.Fatalf("at %s: %s did not become true; the page says:\n%s", b.where(), expression, b.text("main"))
}

// fill types into a field of a form.
func (b *tab) fill(selector, value string) {
	b.t.Helper()
	b.run(chromedp.Evaluate(fmt.Sprintf(`{ const f = document.querySelector(%s); f.closest('details')?.setAttribute('open', ''); if (f.type === 'checkbox') f.checked = true; else f.value = %s; }`, quoted(selector), quoted(value)), nil))
}

func (b *tab) want(texts ...string) {
	b.t.Helper()
	page := eval[string](b, "document.body.textContent")
	for _, text := range texts {
		if !strings.Contains(page, text) {
			b.t.Errorf("%s lacks %q:\n%s", b.where(), text, b.text("main"))
		}
	}
}

func (b *tab) wantNot(texts ...string) {
	b.t.Helper()
	page := eval[string](b, "document.documentElement.outerHTML")
	for _, text := range texts {
		if strings.Contains(page, text) {
			b.t.Errorf("%s has %q in it", b.where(), text)
		}
	}
}

// dark makes the browser prefer dark colours, or light ones.
func (b *tab) dark(on bool) {
	b.t.Helper()
	scheme := "light"
	if on {
		scheme = "dark"
	}
	b.run(emulation.SetEmulatedMedia().WithFeatures([]*emulation.MediaFeature{{Name: "prefers-color-scheme", Value: scheme}}))
}

// sizeOf is a size that the environment may set.
func sizeOf(t *testing.T, name string, usual int) int {
	t.Helper()
	text := os.Getenv(name)
	if text == "" {
		return usual
	}
	n, err := strconv.Atoi(text)
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	return n
}
