package uitest

import (
	"fmt"
	"html"
	"io"
	"net/http"
	"net/http/httputil"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/chromedp/chromedp"

	"github.com/hindsight-go/audit"
	"github.com/hindsight-go/audit/auditui"
)

// 1. Wherever it is mounted, every link and asset works, and so does the redirect behind a
// revert.
func TestMounts(t *testing.T) {
	s := newShop(t)
	ui := s.handler(t, auditui.Config{})
	bare := serve(t, ui)
	target, err := url.Parse(bare)
	if err != nil {
		t.Fatal(err)
	}
	stripped := http.NewServeMux()
	stripped.Handle("/a/b/", http.StripPrefix("/a/b", ui))
	proxied := http.NewServeMux()
	proxied.Handle("/proxied/", http.StripPrefix("/proxied", &httputil.ReverseProxy{Rewrite: func(r *httputil.ProxyRequest) { r.SetURL(target) }}))
	for i, mount := range []string{bare + "/", serve(t, stripped) + "/a/b/", serve(t, proxied) + "/proxied/"} {
		request := fmt.Sprintf("req/%d", i) // an id that looks like a path
		s.write(t, by("ada", request), "UPDATE product SET price = price + 1 WHERE id = 1")
		b := newTab(t)
		b.open(mount)
		if got := eval[string](b, "getComputedStyle(document.querySelector('header')).display"); got != "flex" {
			t.Errorf("%s: the stylesheet does not apply", mount)
		}
		crawled := eval[struct {
			Pages  int
			Broken []string
		}](b, `(async () => {
			const root = location.href, seen = new Set(), queue = [root], broken = [];
			while (queue.length && seen.size < 70) {
				const at = queue.shift().split('#')[0];
				if (seen.has(at)) continue;
				seen.add(at);
				if (!at.startsWith(root)) { broken.push('outside: ' + at); continue; }
				const response = await fetch(at);
				if (!response.ok) broken.push(response.status + ' ' + at);
				if (!response.headers.get('content-type')?.startsWith('text/html')) continue;
				const page = new DOMParser().parseFromString(await response.text(), 'text/html');
				for (const e of page.querySelectorAll('a[href], link[href], script[src], form[action]')) {
					const to = e.getAttribute('href') ?? e.getAttribute('src') ?? e.getAttribute('action');
					if (e.method !== 'post' && !to.includes('format=')) queue.push(new URL(to, at).href);
				}
			}
			return { Pages: seen.size, Broken: broken };
		})()`)
		if crawled.Pages < 20 || len(crawled.Broken) > 0 {
			t.Errorf("%s: %d pages, broken: %v", mount, crawled.Pages, crawled.Broken)
		}
		b.open(mount + "undo?unit=request&id=" + url.QueryEscape(request))
		b.fill("textarea", "mounted")
		if code := b.follow(".apply button"); code != http.StatusOK || !strings.HasPrefix(b.where(), mount+"reverts/") {
			t.Errorf("%s: a revert leads to %d %s", mount, code, b.where())
		}
	}
}

// 2. Filters show what Query gives, and their addresses show it again.
func TestFilters(t *testing.T) {
	s := newShop(t)
	tx := s.write(t, audit.Context{UserID: "ada", Tenant: "north", RequestID: "req-1", TraceID: "tr-1", Endpoint: "POST /price", Worker: "w1"},
		"UPDATE product SET price = 3200 WHERE id = 1", "INSERT INTO orders VALUES (1, 1, 'open')")
	s.write(t, by("bob", "req-2"), "UPDATE product SET name = 'Stool' WHERE id = 1", "DELETE FROM product WHERE id = 20")
	s.write(t, audit.Context{}, "TRUNCATE staff", "UPDATE product SET price = 1 WHERE id = 2")
	all := s.Client.Changes()
	ui := s.serve(t, auditui.Config{})
	type filter struct {
		fields map[string]string
		narrow func(audit.Query) audit.Query
	}
	filters := []filter{
		{map[string]string{"[name=op][value=UPDATE]": "on"}, func(q audit.Query) audit.Query { return q.Operations(audit.Update) }},
		{map[string]string{"[name=table]": "product"}, func(q audit.Query) audit.Query { return q.ForTable("product") }},
		{map[string]string{"[name=key]": "1", "[name=table]": "product"}, func(q audit.Query) audit.Query { return q.ForTable("product").ForRow("1") }},
		{map[string]string{"[name=env]": "test"}, func(q audit.Query) audit.Query { return q.InEnvironment("test") }},
		{map[string]string{"[name=user]": "ada"}, func(q audit.Query) audit.Query { return q.ByUser("ada") }},
		{map[string]string{"[name=tenant]": "north"}, func(q audit.Query) audit.Query { return q.ByTenant("north") }},
		{map[string]string{"[name=request]": "req-2"}, func(q audit.Query) audit.Query { return q.InRequest("req-2") }},
		{map[string]string{"[name=trace]": "tr-1"}, func(q audit.Query) audit.Query { return q.InTrace("tr-1") }},
		{map[string]string{"[name=endpoint]": "POST /price"}, func(q audit.Query) audit.Query { return q.ByEndpoint("POST /price") }},
		{map[string]string{"[name=worker]": "w1"}, func(q audit.Query) audit.Query { return q.ByWorker("w1") }},
		{map[string]string{"[name=column]": "price"}, func(q audit.Query) audit.Query { return q.Changed("price") }},
		{map[string]string{"[name=column]": "price", "[name=value]": "3200"}, func(q audit.Query) audit.Query { return q.ChangedTo("price", "3200") }},
		{map[string]string{"[name=nocontext]": "on"}, func(q audit.Query) audit.Query { return q.WithoutContext() }},
		{map[string]string{"[name=defects]": "on"}, func(q audit.Query) audit.Query { return q.WithDefect() }},
		{map[string]string{"[name=tx]": fmt.Sprint(tx)}, func(q audit.Query) audit.Query { return q.InTransaction(tx) }},
	}
	for i := range 4 {
		for j := i + 1; j < 4; j++ {
			both := filter{map[string]string{}, func(q audit.Query) audit.Query { return filters[j].narrow(filters[i].narrow(q)) }}
			for _, f := range []filter{filters[i], filters[j]} {
				for name, value := range f.fields {
					both.fields[name] = value
				}
			}
			filters = append(filters, both)
		}
	}
	b, fresh := newTab(t), newTab(t)
	for _, f := range filters {
		want := list(t, f.narrow(all))
		b.open(ui)
		for field, value := range f.fields {
			b.fill(field, value)
		}
		if code := b.follow(".filters button.primary"); code != http.StatusOK {
			t.Errorf("%v: %d", f.fields, code)
		}
		if got := b.positions(); !slices.Equal(got, want) {
			t.Errorf("%v: the page shows %v, and Query gives %v", f.fields, got, want)
		}
		if strings.Contains(b.where(), "=&") || strings.HasSuffix(b.where(), "=") {
			t.Errorf("%v: fields that are empty stand in the address: %s", f.fields, b.where())
		}
		fresh.open(b.where())
		if got := fresh.positions(); !slices.Equal(got, want) {
			t.Errorf("%v: %s shows %v in a fresh browser, want %v", f.fields, b.where(), got, want)
		}
	}
	// A chip takes its filter away.
	b.open(ui + "?table=product&user=ada")
	b.follow(".chips li:nth-child(2) a")
	if got, want := b.positions(), list(t, all.ForTable("product")); !slices.Equal(got, want) {
		t.Errorf("without the chip of the user: %v, want %v", got, want)
	}
	// A filter is kept under a name.
	b.run(chromedp.Evaluate(`window.prompt = () => 'prices'`, nil), chromedp.Click("#saved button:last-child", chromedp.ByQuery))
	b.open(ui)
	b.follow("#saved a")
	if !strings.HasSuffix(b.where(), "?table=product") {
		t.Errorf("the saved filter leads to %s", b.where())
	}
}

// 3. A list is read to its end and back while others write: nothing twice, nothing missing.
// The browser follows the first and the last pages of each way, plain requests the rest.
func TestForwardAndBack(t *testing.T) {
	s := newShop(t)
	n := sizeOf(t, "AUDIT_TEST_UI_PAGED", 10_000)
	s.write(t, audit.Context{}, fmt.Sprintf("INSERT INTO staff SELECT i, 'x' FROM generate_series(1, %d) i", n))
	want := list(t, s.Client.Changes())
	written := 0
	b := newTab(t)
	b.open(s.serve(t, auditui.Config{}))
	way := func(rel string) (pages [][]string) {
		t.Helper()
		read := []listed{{b.where(), b.positions(), ""}}
		for range 3 {
			b.follow("a[rel=" + rel + "]")
			read = append(read, listed{b.where(), b.positions(), ""})
		}
		for at := fetchList(t, b.where(), rel); at.lead != ""; {
			if len(read)%20 == 0 {
				written++
				s.write(t, audit.Context{}, fmt.Sprintf("INSERT INTO staff VALUES (%d)", n+written))
			}
			at = fetchList(t, at.lead, rel)
			read = append(read, at)
		}
		b.open(read[len(read)-3].url)
		for i, page := range read[len(read)-3:] {
			if i > 0 {
				b.follow("a[rel=" + rel + "]")
			}
			if got := b.positions(); !slices.Equal(got, page.positions) {
				t.Errorf("%s: the browser shows %v, the page has %v", page.url, got, page.positions)
			}
		}
		if b.count("a[rel="+rel+"]") > 0 {
			t.Errorf("%s: the last page leads on", b.where())
		}
		for _, page := range read {
			pages = append(pages, page.positions)
		}
		return pages
	}
	if forward := slices.Concat(way("next")...); !slices.Equal(forward, want) {
		t.Errorf("forward: %d changes, want %d", len(forward), len(want))
	}
	back := way("prev")
	slices.Reverse(back)
	// Those that were written meanwhile come at the end of the way back.
	whole := list(t, s.Client.Changes())
	if got := slices.Concat(back...); !slices.Equal(got, whole) || len(whole) == len(want) {
		t.Errorf("back: %d changes, want %d", len(got), len(whole))
	}
}

// listed is a page of a list, and the page that it leads to.
type listed struct {
	url       string
	positions []string
	lead      string
}

var (
	listedPosition = regexp.MustCompile(`class="open" href="[^"]*changes/([^"?]+)`)
	listedLead     = regexp.MustCompile(`rel="(\w+)" href="([^"]+)"`)
)

// fetchList reads a page of a list without a browser.
func fetchList(t *testing.T, address, rel string) listed {
	t.Helper()
	response, err := http.Get(address) //nolint:noctx // The test has a time-out.
	if err != nil {
		t.Fatal(err)
	}
	body, err := io.ReadAll(response.Body)
	_ = response.Body.Close()
	if err != nil || response.StatusCode != http.StatusOK {
		t.Fatalf("%s: %d, %v", address, response.StatusCode, err)
	}
	page := listed{url: address}
	for _, m := range listedPosition.FindAllStringSubmatch(string(body), -1) {
		page.positions = append(page.positions, m[1])
	}
	for _, m := range listedLead.FindAllStringSubmatch(string(body), -1) {
		if m[1] == rel {
			to, err := response.Request.URL.Parse(html.UnescapeString(m[2]))
			if err != nil {
				t.Fatal(err)
			}
			page.lead = to.String()
		}
	}
	return page
}

// 4. Values are shown as they are, and nothing of them runs.
func TestValuesInTheBrowser(t *testing.T) {
	s := newShop(t, `CREATE TABLE kind (id text PRIMARY KEY, v text, b bytea, n numeric)`)
	values := map[string]string{
		"script": `<script>window.hacked = true</script>`, "image": `"'><img src=x onerror="window.hacked=true">`, "rtl": "שלום עולם", "emoji": "👩‍👩‍👧 🏳️‍🌈",
		"template": "{{.}} ${1} `x`", "lines": "a\n  b\tc",
	}
	for id, v := range values {
		s.write(t, audit.Context{UserID: v, Endpoint: v, RequestID: v}, fmt.Sprintf("INSERT INTO kind VALUES ('%s', '%s')", id, strings.ReplaceAll(v, "'", "''")))
	}
	s.write(t, audit.Context{}, `INSERT INTO kind VALUES ('null', NULL), ('text', 'null'), ('empty', '')`, `INSERT INTO kind VALUES ('bytes', '1', '\x00ff10', -1234567890123456789012345678901234567890)`,
		`INSERT INTO kind VALUES ('large', repeat('0123456789', 100000))`)
	ui := s.serve(t, auditui.Config{})
	b := newTab(t)
	b.open(ui)
	cell := func(id string) string {
		return eval[string](b, fmt.Sprintf(`(() => { const row = [...document.querySelectorAll('tr[data-line]')].find((r) => r.querySelector('.key')?.textContent === %s);
			const c = [...row.querySelectorAll('.col')].find((c) => c.querySelector('.name').textContent === 'v'); return c.querySelector('.v').className + '|' + c.querySelector('.v').textContent; })()`, quoted(id)))
	}
	for id, v := range values {
		if got := cell(id); got != "v|"+v {
			t.Errorf("%s is shown as %q, want %q", id, got, v)
		}
	}
	for id, want := range map[string]string{"null": "v null|NULL", "text": "v|null", "empty": "v note|empty text"} {
		if got := cell(id); got != want {
			t.Errorf("%s is shown as %q, want %q", id, got, want)
		}
	}
	b.want(`\x00ff10`, "-1234567890123456789012345678901234567890")
	change, err := s.Client.Changes().ForTable("kind").ForRow("large").First(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	b.open(ui + "changes/" + segment(change.Position))
	b.follow("a.more")
	if got := eval[int](b, "document.querySelector('pre.whole').textContent.length"); got != 1_000_000 {
		t.Errorf("a large value has %d characters on its page", got)
	}
	for _, path := range []string{"?user=" + url.QueryEscape(values["script"]), "requests", "requests/" + url.PathEscape("x"), "tables/kind", "rows/kind/script", "tail?endpoint=" + url.QueryEscape(values["image"])} {
		b.open(ui + path)
	}
	if eval[bool](b, "'hacked' in window") {
		t.Error("a value was executed")
	}
}

// 14. What it brings along, and how large it is.
func TestWeight(t *testing.T) {
	modules := func(path string) []string {
		return goList(t, "-deps", "-f", "{{with .Module}}{{.Path}}{{end}}", path)
	}
	core := modules(".")
	for _, m := range modules("./auditui") {
		if !slices.Contains(core, m) {
			t.Errorf("auditui needs the module %s, and the core does not", m)
		}
	}
	s := newShop(t)
	b := newTab(t)
	b.open(s.serve(t, auditui.Config{}))
	size := eval[int](b, `Promise.all([...document.querySelectorAll('link[href], script[src]')].map(async (e) => (await (await fetch(e.href ?? e.src)).arrayBuffer()).byteLength)).then((all) => all.reduce((a, b) => a + b, 0))`)
	script := eval[int](b, `fetch(document.querySelector('script').src).then((r) => r.text()).then((t) => t.length)`)
	if size == 0 || size > 60<<10 || script > 25<<10 {
		t.Errorf("the assets have %d bytes, of which the script %d", size, script)
	}
	t.Logf("assets: %d bytes, script: %d bytes", size, script)
}
