package uitest

import (
	"context"
	"fmt"
	"net/http"
	"strings"
	"testing"

	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/cdproto/input"
	"github.com/chromedp/chromedp"
	"github.com/chromedp/chromedp/kb"

	"github.com/hindsight-go/audit"
	"github.com/hindsight-go/audit/audittest"
	"github.com/hindsight-go/audit/auditui"
)

// 5. and 6. The page of a row, and its slider.
func TestRowAndSlider(t *testing.T) {
	s := newShop(t, `CREATE SCHEMA "odd.schema"; CREATE TABLE "odd.schema"."odd table" (a text, "b" int, v text, PRIMARY KEY (a, b))`)
	for i := range 4 {
		s.write(t, by("ada", fmt.Sprintf("req-%d", i)), fmt.Sprintf("UPDATE product SET price = %d WHERE id = 1", 100+i))
	}
	s.write(t, by("bob", "gone"), "DELETE FROM product WHERE id = 1")
	s.write(t, by("bob", "again"), "INSERT INTO product VALUES (1, 'again', 7)")
	s.write(t, by("eve", "key"), "UPDATE product SET id = 77 WHERE id = 2")
	s.write(t, by("eve", "odd"), `INSERT INTO "odd.schema"."odd table" VALUES ('a/"b', 1, 'x'), ('..', 2, 'y')`)
	ui := s.serve(t, auditui.Config{})
	b := newTab(t)

	// Odd names are reached from the list, as people do.
	b.open(ui + "?request=odd")
	for _, want := range []string{"x", "y"} {
		b.open(ui + "?request=odd")
		b.run(chromedp.Evaluate(fmt.Sprintf(`[...document.querySelectorAll('tr[data-line]')].find((r) => r.querySelector('.cols').textContent.includes('v %s')).querySelector('a.row-link').id = 'wanted'`, want), nil))
		if code := b.follow("#wanted"); code != http.StatusOK {
			t.Errorf("an odd key: %d at %s", code, b.where())
		}
		b.want("odd.schema", "Version 1 of 1", want)
	}
	b.open(ui + "rows/product/77")
	b.want("Version 2 of 2", "eve")
	b.open(ui + "rows/product/2")
	b.want("No row")

	b.open(ui + "rows/product/1")
	n := b.count("a[data-version]")
	if n != 7 {
		t.Fatalf("%d versions, want 7", n)
	}
	b.want("Version 7 of 7", "again")
	addresses := eval[[]string](b, `[...document.querySelectorAll('a[data-version]')].map((a) => a.href)`)
	b.run(chromedp.Focus("#slider", chromedp.ByQuery))
	for i := n - 2; i >= 0; i-- {
		b.run(chromedp.KeyEvent(kb.ArrowLeft))
		b.wait(fmt.Sprintf("document.querySelector('h2').textContent.includes('Version %d of 7')", i+1))
		if b.where() != addresses[i] {
			t.Errorf("version %d is at %s, want %s", i+1, b.where(), addresses[i])
		}
	}
	b.want("tracked since", "as it was when tracking began")
	b.run(chromedp.Evaluate("history.back()", nil))
	b.wait("document.querySelector('h2').textContent.includes('Version 2 of 7')")
	// By mouse, in the middle of the track.
	box := eval[[]float64](b, `(() => { const r = document.querySelector('#slider').getBoundingClientRect(); return [r.left, r.top + r.height / 2, r.width]; })()`)
	b.run(input.DispatchMouseEvent(input.MousePressed, box[0]+box[2]/2, box[1]).WithButton(input.Left).WithClickCount(1),
		input.DispatchMouseEvent(input.MouseReleased, box[0]+box[2]/2, box[1]).WithButton(input.Left).WithClickCount(1))
	b.wait("document.querySelector('h2').textContent.includes('Version 4 of 7')")
	b.want("102", "ada")
	// Blame: the price is of the third request, and the name was there.
	rows := eval[map[string]string](b, `Object.fromEntries([...document.querySelectorAll('.blame tbody tr')].map((r) => [r.querySelector('th').firstChild.textContent, r.lastElementChild.textContent]))`)
	if !strings.Contains(rows["price"], "req-2") || !strings.Contains(rows["name"], "when tracking began") {
		t.Errorf("blame: %v", rows)
	}
	// Before tracking it says so, and offers the nearest moment.
	b.fill("[name=at]", "2001-01-01")
	if code := b.follow("form.inline-form button"); code != http.StatusUnprocessableEntity {
		t.Errorf("before tracking: %d", code)
	}
	b.want("Before the history begins")
	b.follow("a.button")
	b.want("Version 1 of 7")

	// The slider of a table goes over time.
	if _, err := s.Client.Mark(t.Context(), "noon"); err != nil {
		t.Fatal(err)
	}
	s.write(t, by("ada", "later"), "UPDATE product SET price = 55 WHERE id = 5")
	b.open(ui + "tables/product")
	b.follow("a.mark-link")
	b.want("1 row is not as now", "changed since")
	b.open(ui + "tables/product?from=mark:noon&to=now")
	b.want("1 row differs", "55")
	b.open(ui + "tables/product")
	b.run(chromedp.Focus("#time-slider", chromedp.ByQuery), chromedp.KeyEvent(kb.Home))
	b.wait("location.search.includes('as-of=')")
	b.wait("document.querySelector('h1').textContent.includes('as of')")
}

func (s *shop) price(t *testing.T, id int) string {
	t.Helper()
	return audittest.Value[string](t, s.Database, "SELECT price::text FROM product WHERE id = $1", id)
}

// 7. Undo, from the list to the revert and back.
func TestUndoInTheBrowser(t *testing.T) {
	s := newShop(t)
	ui := s.serve(t, auditui.Config{Names: func(context.Context, []string) map[string]string { return map[string]string{"bob": "Bob Kahn"} }})
	b := newTab(t)

	s.write(t, by("ada", "req-1"), "UPDATE product SET price = 3200 WHERE id = 1", "DELETE FROM product WHERE id = 2")
	b.open(ui + "requests/req-1")
	b.follow("a.undo")
	b.want("put back", "restore", "3200")
	b.fill("textarea", "a wrong price")
	b.follow(".apply button")
	b.want("a wrong price", "boss", "request req-1")
	if got := s.price(t, 1); got != "1" {
		t.Errorf("the price is %s, want 1", got)
	}
	b.follow("a.undo")
	b.fill("textarea", "it was right")
	b.follow(".apply button")
	if got := s.price(t, 1); got != "3200" {
		t.Errorf("the price is %s after redo, want 3200", got)
	}

	// Somebody writes between plan and click: nothing is written, and the new plan names
	// who it was.
	s.write(t, by("ada", "req-2"), "UPDATE product SET price = 1000 WHERE id IN (3, 4)")
	b.open(ui + "undo?unit=request&id=req-2")
	s.write(t, by("bob", "req-3"), "UPDATE product SET price = 555 WHERE id = 4")
	b.fill("textarea", "late")
	if code := b.follow(".apply button"); code != http.StatusConflict {
		t.Errorf("a stale plan: %d", code)
	}
	b.want("Nothing was written", "Bob Kahn", "the later change", "1 in the way")
	if got := s.price(t, 3) + s.price(t, 4); got != "1000555" {
		t.Errorf("prices are %s: something was written", got)
	}
	// The conflict is decided for the one row: overwriting asks again.
	b.run(chromedp.Evaluate(`document.querySelector('.conflict-list select').value = 'overwrite'`, nil))
	b.follow(".conflicts button")
	b.want("type the number of rows, 2")
	if got := eval[string](b, "document.querySelector('textarea').value"); got != "late" {
		t.Errorf("the reason was lost: %q", got)
	}
	b.open(ui + "undo?unit=request&id=req-2&policy=skip")
	b.want("skipped", "all decided")
	b.fill("textarea", "all but what Bob did")
	b.follow(".apply button")
	if got := s.price(t, 3) + s.price(t, 4); got != "3555" {
		t.Errorf("prices are %s, want 3 and 555", got)
	}

	// A double click in one tab and a click in another: one revert.
	s.write(t, by("ada", "req-7"), "UPDATE product SET price = 77 WHERE id = 7")
	other := newTab(t)
	for _, tab := range []*tab{b, other} {
		tab.open(ui + "undo?unit=request&id=req-7")
		tab.fill("textarea", "twice")
	}
	b.leads("double click", chromedp.DoubleClick(".apply button", chromedp.ByQuery))
	other.follow(".apply button")
	s.Sync(t)
	if n, err := s.Client.Changes().RevertsOf(audit.Unit{Kind: "request", ID: "req-7"}).Count(t.Context()); err != nil || n != 1 {
		t.Errorf("%d reverts, want 1 (%v)", n, err)
	}
	if got := s.price(t, 7); got != "7" {
		t.Errorf("the price is %s, want 7", got)
	}
}

// 8. Who may not see, does not see; and other sites cannot write.
func TestAccessInTheBrowser(t *testing.T) {
	s := newShop(t)
	s.write(t, audit.Context{UserID: "ada", Tenant: "north", RequestID: "north-1"}, "UPDATE product SET name = 'topsecret' WHERE id = 1")
	s.write(t, audit.Context{UserID: "bob", Tenant: "south", RequestID: "south-1", TraceID: "trace-s"}, "UPDATE product SET name = 'southern' WHERE id = 2")
	foreign, err := s.Client.Changes().ByTenant("south").First(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	as := func(access auditui.Access) string {
		access.User = "x"
		return s.serve(t, auditui.Config{Access: func(*http.Request) (auditui.Access, error) { return access, nil }})
	}
	b := newTab(t)
	b.expected = []string{"status of 4", "status of 5"}

	blind := as(auditui.Access{Export: true})
	for _, path := range []string{"", "requests", "requests/north-1", "rows/product/1", "tables/product", "changes/" + segment(foreign.Position), "status", "tail"} {
		if code := b.open(blind + path); code != http.StatusOK {
			t.Errorf("%s: %d", path, code)
		}
		b.wantNot("topsecret", "southern", "undo?")
	}
	if got := eval[int](b, `fetch('undo?unit=request&id=north-1', { method: 'POST' }).then((r) => r.status)`); got != http.StatusNotFound {
		t.Errorf("POST without the right: %d, want 404", got)
	}
	scoped := as(auditui.Access{Values: true, Revert: true, Scope: func(q audit.Query) audit.Query { return q.ByTenant("north") }})
	b.open(scoped)
	b.want("topsecret")
	b.wantNot("southern")
	for _, path := range []string{"changes/" + segment(foreign.Position), "requests/south-1", "traces/trace-s", fmt.Sprintf("transactions/%d", foreign.TransactionID), "rows/product/2", "tables/product", "undo?unit=request&id=south-1", "export?format=csv"} {
		if code := b.open(scoped + path); code != http.StatusNotFound {
			t.Errorf("scope: %s: %d, want 404", path, code)
		}
	}
	for code, access := range map[int]func(*http.Request) (auditui.Access, error){
		401: func(*http.Request) (auditui.Access, error) { return auditui.Access{}, auditui.ErrUnauthorized },
		500: func(*http.Request) (auditui.Access, error) { panic("topsecret") },
	} {
		if got := b.open(s.serve(t, auditui.Config{Access: access})); got != code || strings.TrimSpace(b.text("body")) != http.StatusText(code) {
			t.Errorf("%d %q, want %d and nothing else", got, b.text("body"), code)
		}
	}

	// Another site sends the form, signature and all.
	ui := s.serve(t, auditui.Config{})
	b.open(ui + "undo?unit=request&id=north-1")
	form := eval[string](b, "document.querySelector('form.apply').outerHTML")
	action := eval[string](b, "document.querySelector('form.apply').action")
	evil := serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/html")
		_, _ = fmt.Fprint(w, strings.Replace(form, `action="`, `target="_self" data-was="`, 1))
	}))
	evil = strings.Replace(evil, "127.0.0.1", "localhost", 1)
	b.open(evil)
	b.run(chromedp.Evaluate(fmt.Sprintf(`document.forms[0].action = %s; document.forms[0].querySelector('textarea').value = 'evil'`, quoted(action)), nil))
	if code := b.follow("button"); code != http.StatusForbidden {
		t.Errorf("a form of another site: %d, want 403", code)
	}
	b.open(evil)
	b.run(chromedp.Evaluate(fmt.Sprintf(`fetch(%s, { method: 'POST', mode: 'no-cors', body: new URLSearchParams(new FormData(document.forms[0])) }).catch(() => 1)`, quoted(action)), nil))
	s.Sync(t)
	if n, err := s.Client.Changes().Reverts().Count(t.Context()); err != nil || n != 0 {
		t.Errorf("another site has reverted something: %d (%v)", n, err)
	}
}

// 11. By keyboard alone, from the list to the undone request.
func TestKeyboard(t *testing.T) {
	s := newShop(t)
	s.write(t, by("ada", "req-1"), "UPDATE product SET price = 3200 WHERE id = 1")
	s.write(t, by("bob", "req-2"), "UPDATE product SET price = 4 WHERE id = 4")
	b := newTab(t)
	b.open(s.serve(t, auditui.Config{}))
	b.run(chromedp.KeyEvent("/"))
	if id := eval[string](b, "document.activeElement.id"); id != "first-filter" {
		t.Errorf("/ goes to %q", id)
	}
	b.fill("#first-filter", "")                                    // the driver types the key also where the page has taken it
	b.run(chromedp.KeyEvent("product"), chromedp.KeyEvent(kb.Tab)) // the first Enter would be for the list of tables
	press := func(key, until string) {
		t.Helper()
		b.run(chromedp.KeyEvent(key))
		b.wait("document.readyState === 'complete' && " + until)
	}
	press(kb.Enter, "location.search === '?table=product'")
	b.run(chromedp.KeyEvent("j"), chromedp.KeyEvent("j"), chromedp.KeyEvent("k"), chromedp.KeyEvent("j"))
	if at := eval[string](b, "document.activeElement.className"); at != "open" {
		t.Errorf("j and k lead to %q", at)
	}
	press(kb.Enter, "document.querySelector('h1').textContent.includes('UPDATE')")
	b.want("Before and after", "3200")
	press("u", "document.querySelector('h1').textContent.includes('Undo change')")
	b.run(chromedp.Focus("textarea", chromedp.ByQuery), chromedp.KeyEvent("by keyboard"), chromedp.KeyEvent(kb.Tab))
	press(kb.Enter, "document.querySelector('h1').textContent.includes('Revert')")
	b.want("by keyboard")
	if got := s.price(t, 1); got != "1" {
		t.Errorf("the price is %s, want 1", got)
	}
	b.run(chromedp.KeyEvent("?"))
	b.wait("document.querySelector('#help').open")
}

// 12. Without JavaScript: filter, page, row, plan, apply.
func TestWithoutJavaScript(t *testing.T) {
	s := newShop(t)
	s.write(t, by("ada", "req-1"), "UPDATE product SET price = 3200 WHERE id = 1")
	s.write(t, audit.Context{}, "INSERT INTO staff SELECT i FROM generate_series(1, 60) i")
	b := newTab(t)
	b.run(emulation.SetScriptExecutionDisabled(true))
	ui := s.serve(t, auditui.Config{})
	b.open(ui)
	b.follow("a[rel=next]")
	if b.count("tr[data-line]") == 0 {
		t.Error("the second page is empty")
	}
	b.open(ui)
	b.run(chromedp.SendKeys("[name=table]", "product", chromedp.ByQuery))
	b.follow(".filters button.primary")
	b.want("1 change", "3200")
	if b.count("#help-button:not([hidden])") > 0 {
		t.Error("JavaScript runs")
	}
	b.follow("a.row-link")
	b.want("Version 2 of 2")
	b.follow("a[rel=prev]")
	b.want("Version 1 of 2")
	b.follow("a.undo")
	b.run(chromedp.SendKeys("textarea", "without scripts", chromedp.ByQuery))
	b.follow(".apply button")
	b.want("without scripts")
	if got := s.price(t, 1); got != "1" {
		t.Errorf("the price is %s, want 1", got)
	}
}
