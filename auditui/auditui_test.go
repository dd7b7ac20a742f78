package auditui_test

import (
	"context"
	"encoding/json"
	"errors"
	"html"
	"net/http"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/hindsight-go/audit"
	"github.com/hindsight-go/audit/auditui"
)

func TestNew_ReportsEveryProblem(t *testing.T) {
	t.Parallel()
	_, err := auditui.New(nil, auditui.Config{Secret: []byte("short"), Timeout: -1, ConfirmRows: -1})
	for _, want := range []string{"Config.Access", "Config.Secret", "Config.Timeout", "Config.ConfirmRows", "Config.client"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("New: %v, which does not name %s", err, want)
		}
	}
	var problem *auditui.ConfigError
	if !errors.As(err, &problem) {
		t.Errorf("New: %T is no *ConfigError", err)
	}
}

// The pages that read, over one history.
func TestPages(t *testing.T) {
	t.Parallel()
	s := newShop(t, "INSERT INTO product VALUES (1, 'Chair', 2800, 'x')")
	setPrice := s.write(t, audit.Context{UserID: "187234", RequestID: "req/1", Endpoint: "PATCH /product/1", Tenant: "north", TraceID: "trace-1", Params: map[string]any{"price": 3200}},
		"UPDATE product SET price = 3200 WHERE id = 1", "INSERT INTO orders VALUES (7, 1, 'open', 'north')")
	s.write(t, by("42", "req-2", "POST /staff"), "INSERT INTO staff VALUES (1, 'DE99')")
	s.write(t, audit.Context{}, "UPDATE product SET name = 'Stool' WHERE id = 1")
	s.Sync(t)
	ui := s.serve(t, auditui.Config{Names: func(_ context.Context, users []string) map[string]string {
		return map[string]string{"187234": "Ada Lovelace"}
	}})

	t.Run("changes", func(t *testing.T) {
		page := ui.page("/")
		wantIn(t, page, "4 changes", "Ada Lovelace", `?user=187234`, "public.product", "2800", "3200", "no context", "Tracked since", "No gaps")
		if n := lines(page); n != 4 {
			t.Errorf("%d lines, want 4", n)
		}
	})

	t.Run("filters give what Query gives", func(t *testing.T) {
		all := s.Client.Changes()
		for query, q := range map[string]audit.Query{
			"op=UPDATE":                              all.Operations(audit.Update),
			"op=UPDATE&op=CREATE":                    all.Operations(audit.Update, audit.Create),
			"table=product":                          all.ForTable("product"),
			"table=public.product&key=1":             all.ForTable("product").ForRow(1),
			"env=test":                               all.InEnvironment("test"),
			"env=other":                              all.InEnvironment("other"),
			"user=187234":                            all.ByUser("187234"),
			"tenant=north":                           all.ByTenant("north"),
			"request=req%2F1":                        all.InRequest("req/1"),
			"trace=trace-1":                          all.InTrace("trace-1"),
			"endpoint=PATCH+%2Fproduct%2F1":          all.ByEndpoint("PATCH /product/1"),
			"worker=none":                            all.ByWorker("none"),
			"column=price":                           all.Changed("price"),
			"column=price&value=3200":                all.ChangedTo("price", "3200"),
			"nocontext=1":                            all.WithoutContext(),
			"defects=1":                              all.WithDefect(),
			"tx=" + strconv.FormatUint(setPrice, 10): all.InTransaction(setPrice),
			"from=2000-01-01&until=2001-01-01":       all.ForTable("nothing"),
		} {
			want, err := q.List(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			page := ui.page("/?" + query)
			if n := lines(page); n != len(want) {
				t.Errorf("%s: %d lines, and Query gives %d changes", query, n, len(want))
			}
			for _, c := range want {
				wantIn(t, page, "changes/"+positionOf(c))
			}
		}
	})

	t.Run("filters that do not work say so", func(t *testing.T) {
		for query, text := range map[string]string{
			"op=DESTROY": "none of CREATE", "key=1": "choose a table", "value=5": "which column", "from=yesterday": "has to look like",
			"from=2024-02-01&until=2024-01-01": "ends before it begins", "tx=x": "is a number", "table=%22": "The filter does not work",
		} {
			a := ui.get("/?" + query)
			if a.code != http.StatusBadRequest || !strings.Contains(a.body, text) {
				t.Errorf("%s: %d, want 400 with %q:\n%s", query, a.code, text, a.body)
			}
		}
		if a := ui.get("/?after=damaged"); a.code != http.StatusBadRequest {
			t.Errorf("a damaged cursor: %d", a.code)
		}
	})

	t.Run("change", func(t *testing.T) {
		c := first(t, s.Client.Changes().ForTable("product").Changed("price"))
		page := ui.page("/changes/" + positionOf(c))
		wantIn(t, page, "2800", "3200", "trace-1", "north", c.Position.String(), "Beside it in the transaction", "public.orders", "parameters")
		for _, path := range []string{"/changes/FF.FF.1", "/changes/x", "/changes/" + positionOf(audit.Change{Position: audit.Position{LSN: c.Position.LSN}})} {
			if a := ui.get(path); a.code != http.StatusNotFound {
				t.Errorf("%s: %d, want 404", path, a.code)
			}
		}
	})

	t.Run("units", func(t *testing.T) {
		wantIn(t, ui.page("/requests"), "req/1", "req-2", "Ada Lovelace")
		// The id of a request may be anything, also what looks like a path.
		link := regexp.MustCompile(`requests/~\?[^"]+`).FindString(ui.page("/requests"))
		wantIn(t, ui.page("/"+html.UnescapeString(link)), "Request <bdi>req/1", "public.orders", "public.product", "Ada Lovelace")
		wantIn(t, ui.page("/transactions/"+strconv.FormatUint(setPrice, 10)), "Transaction", "public.orders")
		wantIn(t, ui.page("/traces/trace-1"), "Trace", "public.orders")
		for _, path := range []string{"/requests/none", "/transactions/1", "/transactions/x", "/traces/none"} {
			if a := ui.get(path); a.code != http.StatusNotFound {
				t.Errorf("%s: %d, want 404", path, a.code)
			}
		}
	})

	t.Run("status", func(t *testing.T) {
		wantIn(t, ui.page("/status"), "History is being kept", "public.product", "of the newest")
		var status struct {
			Ready  bool
			Status audit.Status
		}
		if err := json.Unmarshal([]byte(ui.page("/status.json")), &status); err != nil || !status.Ready || len(status.Status.Tables) != 3 {
			t.Errorf("status.json: %+v, %v", status, err)
		}
	})

	t.Run("export", func(t *testing.T) {
		if n := strings.Count(ui.page("/export?format=jsonl&table=product"), "\n"); n != 2 {
			t.Errorf("%d lines of JSONL, want 2", n)
		}
		wantIn(t, ui.page("/export?format=csv"), "committed_at,position", `""iban"": ""DE99""`)
		if a := ui.get("/export?format=xls"); a.code != http.StatusBadRequest {
			t.Errorf("an unknown format: %d", a.code)
		}
	})

	t.Run("nothing else is there", func(t *testing.T) {
		for _, path := range []string{"/none", "/changes", "/requests/", "//", "/../x", "/assets/none", ""} {
			if a := ui.get(path); a.code != http.StatusNotFound {
				t.Errorf("GET %q: %d, want 404", path, a.code)
			}
		}
	})

	t.Run("headers", func(t *testing.T) {
		a := ui.get("/")
		for name, want := range map[string]string{
			"Cache-Control": "no-store", "Referrer-Policy": "same-origin", "X-Content-Type-Options": "nosniff", "X-Frame-Options": "DENY",
			"Content-Security-Policy": "default-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'; object-src 'none'",
		} {
			if got := a.header.Get(name); got != want {
				t.Errorf("%s: %q, want %q", name, got, want)
			}
		}
		wantNotIn(t, a.body, "<style", " style=", "onclick", "javascript:", `href="/`, `src="/`, "//cdn")
		if n := strings.Count(a.body, "<script"); n != 1 {
			t.Errorf("%d scripts, want the one file", n)
		}
		for _, asset := range regexp.MustCompile(`assets/[^"]+`).FindAllString(a.body, -1) {
			if got := ui.get("/" + html.UnescapeString(asset)); got.code != http.StatusOK || !strings.Contains(got.header.Get("Cache-Control"), "immutable") {
				t.Errorf("%s: %d %v", asset, got.code, got.header)
			}
		}
	})
}

// The list is read to the end and back while others write.
func TestPages_ForwardAndBack(t *testing.T) {
	t.Parallel()
	s := newShop(t)
	const n = 120
	s.write(t, audit.Context{}, insertProducts(n))
	s.Sync(t)
	ui := s.serve(t, auditui.Config{})
	seen := map[string]int{}
	position := regexp.MustCompile(`class="open" href="\./changes/([^"]+)"`)
	link := func(page, rel string) string {
		m := regexp.MustCompile(`rel="` + rel + `" href="([^"]+)"`).FindStringSubmatch(page)
		if m == nil {
			return ""
		}
		return html.UnescapeString(m[1])
	}
	page := ui.page("/")
	wantIn(t, page, "120 changes")
	var newer string
	for i := 0; ; i++ {
		for _, m := range position.FindAllStringSubmatch(page, -1) {
			seen[m[1]]++
		}
		next := link(page, "next")
		if next == "" {
			break
		}
		s.write(t, audit.Context{}, "INSERT INTO product VALUES ("+strconv.Itoa(1000+i)+")")
		page = ui.page("/" + next)
		newer = link(page, "prev")
	}
	if len(seen) != n {
		t.Errorf("forward: %d changes, want %d", len(seen), n)
	}
	for newer != "" {
		page = ui.page("/" + newer)
		for _, m := range position.FindAllStringSubmatch(page, -1) {
			seen[m[1]]++
		}
		newer = link(page, "prev")
	}
	for at, times := range seen {
		if times > 2 {
			t.Errorf("%s was shown %d times", at, times)
		}
	}
	s.Sync(t)
	if all := lines(ui.page("/")); all != 50 {
		t.Errorf("%d lines on the first page", all)
	}
}

// Values of every kind are shown as they are, and nothing of them runs.
func TestValues(t *testing.T) {
	t.Parallel()
	s := newShop(t, `CREATE TABLE "odd.schema" (id text PRIMARY KEY, a text, b bytea, n numeric(60, 20))`)
	s.write(t, audit.Context{UserID: `<script>alert(1)</script>`, Endpoint: `"'><img src=x onerror=alert(1)>`},
		`INSERT INTO "odd.schema" VALUES ('<b>', '<script>alert(2)</script>', '\xdeadbeef', 1234567890123456789012345678901234567890.5)`,
		`INSERT INTO "odd.schema" VALUES ('null', 'null'), ('empty', ''), ('NULL', NULL), ('rtl', 'שלום'), ('override', E'a\u202Eb'), ('large', repeat('x', 1000000) || 'END')`)
	s.Sync(t)
	ui := s.serve(t, auditui.Config{})
	page := ui.page("/")
	wantNotIn(t, page, "<script>alert", "<img src=x", "<b>")
	wantIn(t, page, "&lt;script&gt;alert(2)", `\xdeadbeef`, "1234567890123456789012345678901234567890.5", `class="v null">NULL`, "empty text", "שלום", "202E⟩b", "976.6 kB")
	if len(page) > 100_000 {
		t.Errorf("the list has %d bytes", len(page))
	}
	large := first(t, s.Client.Changes().ForTable(`"odd.schema"`).ForRow("large"))
	page = ui.page("/changes/" + positionOf(large))
	link := regexp.MustCompile(`class="more" href="([^"]+)"`).FindStringSubmatch(page)
	if link == nil {
		t.Fatalf("no link to all of a large value:\n%s", page)
	}
	wantIn(t, ui.page("/changes/"+html.UnescapeString(strings.TrimPrefix(link[1], "../changes/"))), "xEND</bdi>")
}

// Who may see what.
func TestAccess(t *testing.T) {
	t.Parallel()
	s := newShop(t)
	s.write(t, audit.Context{UserID: "n", Tenant: "north", RequestID: "req-n", TraceID: "tr-n", Params: map[string]any{"x": "topsecret"}, SQL: "UPDATE topsecret"},
		"INSERT INTO product VALUES (1, 'Chair', 2800, 'topsecret')", "INSERT INTO orders VALUES (1, 1, 'topsecret', 'north')")
	southern := s.write(t, audit.Context{UserID: "s", Tenant: "south", RequestID: "req-s", TraceID: "tr-s"}, "INSERT INTO staff VALUES (1, 'DE99')", "UPDATE product SET price = 1 WHERE id = 1")
	s.Sync(t)
	foreign := first(t, s.Client.Changes().ByTenant("south"))
	staff := first(t, s.Client.Changes().ForTable("staff"))
	pages := []string{"/", "/requests", "/requests/req-n", "/requests/req-s", "/traces/tr-n", "/status", "/changes/" + positionOf(foreign), "/export?format=csv", "/export?format=jsonl"}

	t.Run("nobody", func(t *testing.T) {
		for name, access := range map[string]struct {
			err  error
			code int
		}{"unauthorized": {auditui.ErrUnauthorized, 401}, "forbidden": {auditui.ErrForbidden, 403}, "error": {errors.New("topsecret"), 500}} {
			ui := s.serve(t, auditui.Config{Access: func(*http.Request) (auditui.Access, error) { return auditui.Access{}, access.err }})
			for _, path := range append(pages, "/assets/ui.css", "/none", "/status.json") {
				a := ui.get(path)
				if a.code != access.code || a.body != http.StatusText(access.code)+"\n" {
					t.Errorf("%s: %s: %d %q", name, path, a.code, a.body)
				}
			}
			wantNotIn(t, ui.log.String(), "topsecret")
		}
	})

	t.Run("panic", func(t *testing.T) {
		ui := s.serve(t, auditui.Config{Access: func(*http.Request) (auditui.Access, error) { panic("topsecret") }})
		if a := ui.get("/"); a.code != 500 || a.body != "Internal Server Error\n" {
			t.Errorf("%d %q", a.code, a.body)
		}
		wantIn(t, ui.log.String(), "panicked")
		wantNotIn(t, ui.log.String(), "topsecret")
	})

	t.Run("no values", func(t *testing.T) {
		ui := s.serve(t, auditui.Config{Access: func(*http.Request) (auditui.Access, error) { return auditui.Access{User: "x", Export: true}, nil }})
		for _, path := range pages {
			wantNotIn(t, ui.page(path), "topsecret", "2800", "DE99", "Chair")
		}
		wantIn(t, ui.page("/"), "price", "hidden")
		if a := ui.get("/?column=price&value=2800"); a.code != http.StatusBadRequest {
			t.Errorf("a filter by value: %d, which tells values", a.code)
		}
		if a := ui.get("/changes/" + positionOf(foreign) + "/value?side=after&column=price"); strings.Contains(a.body, `<bdi>1</bdi>`) {
			t.Errorf("the page of a value shows it:\n%s", a.body)
		}
	})

	t.Run("masked columns", func(t *testing.T) {
		var asked []string
		ui := s.serve(t, auditui.Config{Mask: func(table, column string) bool {
			asked = append(asked, table+"."+column)
			return column == "secret" || column == "state" || table == "public.staff" && column == "iban"
		}})
		for _, path := range pages {
			wantNotIn(t, ui.page(path), "topsecret", "DE99")
		}
		wantIn(t, ui.page("/"), "masked", "Chair")
		for _, query := range []string{"column=secret&value=topsecret", "column=iban&value=DE99"} {
			page := ui.get("/?" + query)
			if lines(page.body) > 0 {
				t.Errorf("%s: a filter by a masked value finds it", query)
			}
		}
		if len(asked) == 0 || !strings.Contains(asked[0], "public.") {
			t.Errorf("Mask was asked of %v", asked)
		}
	})

	t.Run("tables", func(t *testing.T) {
		ui := s.serve(t, auditui.Config{Access: func(*http.Request) (auditui.Access, error) {
			return auditui.Access{User: "x", Values: true, Export: true, Tables: func(table string) bool { return table == "public.product" }}, nil
		}})
		for _, path := range []string{"/", "/status", "/status.json", "/requests/req-n", "/requests/req-s", "/export?format=jsonl", "/requests"} {
			wantNotIn(t, ui.page(path), "staff", "DE99", "orders")
		}
		for _, path := range []string{"/changes/" + positionOf(staff), "/changes/" + positionOf(staff) + "/value?side=after&column=iban"} {
			if a := ui.get(path); a.code != http.StatusNotFound {
				t.Errorf("%s: %d, want 404", path, a.code)
			}
		}
		if page := ui.page("/?table=staff"); lines(page) != 0 {
			t.Errorf("a filter leads to a table that may not be seen")
		}
	})

	t.Run("scope", func(t *testing.T) {
		ui := s.serve(t, auditui.Config{Access: func(*http.Request) (auditui.Access, error) {
			return auditui.Access{User: "x", Values: true, Export: true, Scope: func(q audit.Query) audit.Query { return q.ByTenant("north") }}, nil
		}})
		wantIn(t, ui.page("/"), "req-n")
		for _, path := range []string{"/", "/requests", "/export?format=csv", "/export?format=jsonl"} {
			wantNotIn(t, ui.page(path), "req-s", "DE99")
		}
		for _, path := range []string{"/requests/req-s", "/traces/tr-s", "/transactions/" + strconv.FormatUint(southern, 10), "/changes/" + positionOf(foreign)} {
			if a := ui.get(path); a.code != http.StatusNotFound {
				t.Errorf("%s: %d, want 404", path, a.code)
			}
		}
	})

	t.Run("no export", func(t *testing.T) {
		ui := s.serve(t, auditui.Config{Access: func(*http.Request) (auditui.Access, error) { return auditui.Access{User: "x", Values: true}, nil }})
		wantNotIn(t, ui.page("/"), "export?")
		if a := ui.get("/export?format=csv"); a.code != http.StatusNotFound {
			t.Errorf("%d, want 404", a.code)
		}
	})

	t.Run("views", func(t *testing.T) {
		var seen []auditui.View
		ui := s.serve(t, auditui.Config{OnView: func(_ *http.Request, v auditui.View) { seen = append(seen, v) }})
		ui.page("/?table=staff")
		ui.page("/changes/" + positionOf(staff))
		ui.page("/export?format=csv&table=staff")
		if len(seen) != 3 || seen[0].Page != "changes" || seen[0].Rows != 1 || seen[0].User != "boss" || seen[1].Key != "1" || seen[2].Page != "export" || seen[2].Tables[0] != "staff" {
			t.Errorf("OnView saw %+v", seen)
		}
	})
}

// What a spreadsheet would run is text in a CSV file.
func TestExport_Formulas(t *testing.T) {
	t.Parallel()
	s := newShop(t)
	s.write(t, audit.Context{UserID: "=cmd()", Endpoint: "+1", Worker: "@x"}, "INSERT INTO product VALUES (-5, '=1+1')")
	s.Sync(t)
	wantIn(t, s.serve(t, auditui.Config{}).page("/export?format=csv"), ",'-5,", ",'=cmd(),", ",'+1,", ",'@x,")
}

// A store that is away or slow is a page that says so, in the time that a page has.
func TestErrors_StoreAway(t *testing.T) {
	t.Parallel()
	client, err := audit.Open(t.Context(), audit.Config{SourceURL: "postgres://topsecretuser:pw@127.0.0.1:1/none"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(client.Close)
	ui := serveClient(t, client, auditui.Config{})
	for _, path := range []string{"/", "/requests", "/status", "/status.json", "/changes/1.1.1"} {
		a := ui.get(path)
		if a.code != http.StatusServiceUnavailable || !strings.Contains(a.body, "away") {
			t.Errorf("%s: %d\n%s", path, a.code, a.body)
		}
		wantNotIn(t, a.body, "topsecretuser")
	}
	wantNotIn(t, ui.log.String(), "topsecretuser")
}
