package uitest

import (
	"bufio"
	"context"
	_ "embed"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/chromedp"
)

//go:embed testdata/axe-core/axe.min.js
var axe string

// example runs examples/ui, and returns the address of its history, where the tab is
// logged in as support.
func example(t *testing.T, b *tab) string {
	t.Helper()
	binary := filepath.Join(t.TempDir(), "ui")
	build := exec.CommandContext(t.Context(), "go", "build", "-o", binary, "./examples/ui")
	build.Dir = "../.."
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build: %v\n%s", err, out)
	}
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	command := exec.CommandContext(ctx, binary, "-listen", "127.0.0.1:0", "-quiet")
	command.Cancel = func() error { return command.Process.Signal(os.Interrupt) }
	command.Stderr = os.Stderr
	out, err := command.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := command.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cancel()
		_ = command.Wait()
	})
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	address := regexp.MustCompile(`http://[^ ]+/`).FindString(line)
	b.open(address)
	b.follow("button[value='9001']")
	return address + "history/"
}

// pictured are the pages of which the documentation has pictures.
var pictured = []string{"changes", "row", "undo", "difference"}

// checked is what axe finds wrong with a page.
func (b *tab) checked() []string {
	b.t.Helper()
	b.run(chromedp.Evaluate(axe, nil))
	return eval[[]string](b, `axe.run(document, { resultTypes: ['violations'] }).then((r) => r.violations.map((v) => v.id + ': ' + v.help + ': ' + v.nodes.slice(0, 3).map((n) => n.html.slice(0, 200)).join(' | ')))`)
}

// 11. axe finds nothing on any page, light and dark; nothing is wider than a narrow
// screen, nor at twice the size. And the three tasks of the shop are done with clicks.
func TestLookOfEveryPage(t *testing.T) {
	b := newTab(t)
	b.expected = []string{"status of 404", "status of 422", "status of 503"}
	ui := example(t, b)
	pictures := os.Getenv("AUDIT_UI_SCREENSHOTS")
	clicks := 0
	click := func(selector string) { clicks++; b.follow(selector) }

	// Who set this price to 3200, and what else did they touch then?
	b.open(ui)
	b.fill("[name=column]", "price")
	b.fill("[name=value]", "3200")
	click(".filters button.primary")
	b.want("Bob Kahn", "3200")
	click("a.request")
	b.want("Bob Kahn", "public.product")
	b.open(ui + "?column=price&value=3200")
	request := eval[string](b, "document.querySelector('a.request').getAttribute('href')")
	t.Logf("task 1, who set this price: %d clicks", clicks)

	// Give the customer back the order that was archived by mistake, although somebody has
	// refunded a part since.
	clicks = 0
	b.open(ui)
	b.fill("[name=table]", "order")
	b.fill("[name=key]", "101")
	click(".filters button.primary")
	b.run(chromedp.Evaluate(`[...document.querySelectorAll('tr[data-line]')].find((r) => r.querySelector('.cols').textContent.includes('archived') && r.textContent.includes('Ada')).querySelector('a.request').id = 'wanted'`, nil))
	click("#wanted")
	b.want("public.line", "archived")
	click("a.undo")
	b.want("Bob Kahn", "somebody has changed this column since", "part refunded")
	conflict := b.where()

	pages := map[string]string{
		"changes": ui, "changes-filtered": ui + "?table=product&nocontext=1", "change": ui + "?table=product", "requests": ui + "requests", "request": ui + strings.TrimPrefix(request, "./"), "row": ui + "rows/public.product/2",
		"tables": ui + "tables", "table": ui + "tables/public.product?as-of=mark:before+Friday%27s+import", "difference": ui + "tables/public.product?from=mark:before+Friday%27s+import&to=now",
		"undo": conflict, "plan": conflict + "&policy=skip", "reverts": ui + "reverts", "status": ui + "status", "live": ui + "tail", "nothing": ui + "requests/none", "before": ui + "rows/public.product/2?at=2001-01-01", "wrong": ui + "?op=X",
	}
	for name, address := range pages {
		b.open(address)
		if name == "change" {
			b.follow("a.open")
		}
		for _, dark := range []bool{false, true} {
			b.dark(dark)
			for _, problem := range b.checked() {
				t.Errorf("%s, dark %v: %s", name, dark, problem)
			}
			if pictures != "" && slices.Contains(pictured, name) {
				var image []byte
				b.run(chromedp.FullScreenshot(&image, 100))
				scheme := map[bool]string{false: "light", true: "dark"}[dark]
				if err := os.WriteFile(filepath.Join(pictures, "ui-"+name+"-"+scheme+".png"), image, 0o644); err != nil {
					t.Fatal(err)
				}
			}
		}
		b.dark(false)
		// 640 is 1280 at 200 %.
		for _, width := range []int64{375, 640} {
			b.run(emulation.SetDeviceMetricsOverride(width, 800, 1, false))
			if got := eval[int64](b, "document.documentElement.scrollWidth"); got > width {
				t.Errorf("%s: %d wide on a screen of %d", name, got, width)
			}
		}
		b.run(emulation.SetDeviceMetricsOverride(1280, 900, 1, false))
	}

	// The task goes on: the row in conflict stays as Bob left it, the lines come back.
	b.open(conflict)
	b.run(chromedp.Evaluate(`document.querySelector('[name=policy]').value = 'skip'`, nil))
	click(".conflicts button")
	b.want("put back")
	b.fill("textarea", "archived by mistake")
	click(".apply button")
	b.want("archived by mistake", "public.line", "Support")
	t.Logf("task 2, the order that was archived: %d clicks", clicks)
	for _, problem := range b.checked() {
		t.Errorf("revert: %s", problem)
	}

	// How was this table before Friday's import, and which rows differ?
	clicks = 0
	b.open(ui)
	click("header nav a:nth-child(3)")
	b.run(chromedp.Evaluate(`[...document.querySelectorAll('a.open')].find((a) => a.textContent === 'public.product').id = 'wanted'`, nil))
	click("#wanted")
	click("a.mark-link")
	b.want("changed since", "gone since", "rows are not as now")
	click("p.actions a.button:nth-child(2)")
	b.want("rows differ")
	t.Logf("task 3, before the import: %d clicks", clicks)
	if code := b.open(ui + "none"); code != http.StatusNotFound {
		t.Errorf("a page that is not there: %d", code)
	}
}
