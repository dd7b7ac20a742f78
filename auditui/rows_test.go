package auditui_test

import (
	"bufio"
	"context"
	"html"
	"net/http"
	"net/url"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/hindsight-go/audit"
	"github.com/hindsight-go/audit/auditui"
)

// link is the address that a page gives in a link with an attribute, relative to it.
func link(t *testing.T, page, before string) string {
	t.Helper()
	m := regexp.MustCompile(before + `[^>]*?href="([^"]*)"`).FindStringSubmatch(page)
	if m == nil {
		t.Fatalf("no link with %s on the page:\n%s", before, excerpt(page))
	}
	return html.UnescapeString(m[1])
}

// follow is the page behind a link of a page.
func (s *site) follow(from, to string) string {
	s.t.Helper()
	base, err := url.Parse(s.url + from)
	if err != nil {
		s.t.Fatal(err)
	}
	next, err := base.Parse(to)
	if err != nil {
		s.t.Fatal(err)
	}
	return s.page(strings.TrimPrefix(next.String(), s.url))
}

func TestRow(t *testing.T) {
	t.Parallel()
	s := newShop(t, "INSERT INTO product VALUES (1, 'Chair', 2800, 'x')",
		`CREATE SCHEMA "odd.schema"`, `CREATE TABLE "odd.schema"."odd table" (a text, "b/c" text, v int, PRIMARY KEY (a, "b/c"))`)
	s.write(t, by("ada", "req-1", "PATCH /product"), "UPDATE product SET price = 3200 WHERE id = 1")
	s.write(t, by("bob", "req-2", "PATCH /product"), "UPDATE product SET name = 'Stool' WHERE id = 1")
	s.write(t, by("eve", "req-3", "DELETE /product"), "DELETE FROM product WHERE id = 1")
	s.write(t, by("bob", "req-4", "POST /product"), "INSERT INTO product VALUES (1, 'Bench', 9, 'x')", "UPDATE product SET id = 2 WHERE id = 1")
	s.write(t, by("ada", "req-5", ""), `INSERT INTO "odd.schema"."odd table" VALUES ('..', 'x/"y"', 1)`)
	s.write(t, by("bob", "req-6", ""), `UPDATE "odd.schema"."odd table" SET v = 2`)
	s.Sync(t)
	ui := s.serve(t, auditui.Config{})
	changes, err := s.Client.Changes().ForTable("product").OldestFirst().List(t.Context())
	if err != nil {
		t.Fatal(err)
	}

	t.Run("versions and blame", func(t *testing.T) {
		page := ui.page("/rows/public.product/1?v=" + positionOf(changes[1]))
		wantIn(t, page, "Stool", "Version 3 of", "Restore this version", "the same")
		// The price is ada's, the name bob's, and the secret was there.
		for column, who := range map[string]string{"price": "ada", "name": "bob", "secret": "there when tracking began"} {
			row := regexp.MustCompile(`(?s)<th scope="row">` + column + `.*?</tr>`).FindString(page)
			if !strings.Contains(row, who) {
				t.Errorf("%s was set by %s, and the page says: %s", column, who, row)
			}
		}
		wantIn(t, ui.page("/rows/public.product/1?v=start"), "as it was when tracking began", "2800")
		wantIn(t, ui.page("/rows/public.product/1?v="+positionOf(changes[2])), "No row", "eve")
	})
	t.Run("the newest is shown first, under its new key", func(t *testing.T) {
		wantIn(t, ui.page("/rows/product/2"), "Bench", "the newest")
		wantNotIn(t, ui.page("/rows/product/2"), "Restore this version")
	})
	t.Run("any two versions compared", func(t *testing.T) {
		page := ui.page("/rows/public.product/1?v=" + positionOf(changes[1]) + "&with=start")
		if n := strings.Count(page, `class="changed"`); n != 2 {
			t.Errorf("%d columns are marked, want price and name", n)
		}
	})
	t.Run("at a moment", func(t *testing.T) {
		wantIn(t, ui.page("/rows/public.product/1?at="+url.QueryEscape(changes[0].CommittedAt.Format(time.RFC3339Nano))), "Version 2 of", "3200")
		a := ui.get("/rows/public.product/1?at=2001-01-01")
		if a.code != http.StatusUnprocessableEntity || !strings.Contains(a.body, "Before the history begins") {
			t.Errorf("before tracking: %d\n%s", a.code, excerpt(a.body))
		}
		wantIn(t, ui.follow("/rows/public.product/1?at=2001-01-01", link(t, a.body, `class="button"`)), "2800")
		for at, code := range map[string]int{"yesterday": 400, "mark:none": 404, "2999-01-01": 422} {
			if a := ui.get("/rows/public.product/1?at=" + at); a.code != code {
				t.Errorf("at %s: %d, want %d", at, a.code, code)
			}
		}
	})
	t.Run("odd names", func(t *testing.T) {
		list := ui.page("/?user=bob&request=req-6")
		page := ui.follow("/", link(t, list, `class="key row-link"`))
		wantIn(t, page, "odd table", "Version 2 of 2")
		previous := link(t, page, `rel="prev"`)
		from := link(t, list, `class="key row-link"`)
		base, err := url.Parse("/" + strings.TrimPrefix(from, "./"))
		if err != nil {
			t.Fatal(err)
		}
		wantIn(t, ui.follow(base.String(), previous), "Version 1 of 2")
	})
	t.Run("what is not there", func(t *testing.T) {
		for _, path := range []string{"/rows/public.product/77", "/rows/none/1", "/rows/public.product/1?v=FF.FF.1", "/rows/public.product/1?v=start&with=x"} {
			if a := ui.get(path); a.code != http.StatusNotFound {
				t.Errorf("%s: %d, want 404", path, a.code)
			}
		}
	})
	t.Run("access", func(t *testing.T) {
		as := func(access auditui.Access) *site {
			return s.serve(t, auditui.Config{Access: func(*http.Request) (auditui.Access, error) { return access, nil }})
		}
		scope := func(q audit.Query) audit.Query { return q.ByUser("ada") }
		tables := func(table string) bool { return table != "public.product" }
		for name, ui := range map[string]*site{
			"scope":                as(auditui.Access{Values: true, Scope: scope}),
			"scope and other rows": as(auditui.Access{Values: true, Scope: scope, RowAllowed: func(_ context.Context, table, key string) bool { return key != "1" }}),
			"tables":               as(auditui.Access{Values: true, Tables: tables}),
		} {
			for _, path := range []string{"/rows/public.product/1", "/rows/product/1", "/tables/product?as-of=mark:x", "/rows/%22product%22/1"} {
				if name == "scope and other rows" && strings.HasPrefix(path, "/tables") {
					continue
				}
				if a := ui.get(path); a.code != http.StatusNotFound {
					t.Errorf("%s: %s: %d, want 404", name, path, a.code)
				}
			}
		}
		wantNotIn(t, as(auditui.Access{}).page("/rows/public.product/1?v="+positionOf(changes[1])), "Stool", "3200", "undo?")
		masked := s.serve(t, auditui.Config{Mask: func(_, column string) bool { return column == "price" }})
		wantNotIn(t, masked.page("/rows/public.product/1?v="+positionOf(changes[1])), "3200", "2800")
		wantNotIn(t, masked.page("/tables/product?as-of="+positionOf(changes[0])), "3200")
		wantNotIn(t, masked.page("/tables/product?from="+positionOf(changes[0])), "3200")
	})
}

func TestTable(t *testing.T) {
	t.Parallel()
	s := newShop(t, insertProducts(5), "ALTER TABLE product ADD password text", "UPDATE product SET password = 'hunter2'")
	if _, err := s.Client.Mark(t.Context(), "before the import"); err != nil {
		t.Fatal(err)
	}
	s.write(t, by("import", "req-1", ""), "UPDATE product SET price = 99 WHERE id IN (2, 3)", "DELETE FROM product WHERE id = 4", "INSERT INTO product VALUES (6, 'new')")
	s.Sync(t)
	ui := s.serve(t, auditui.Config{})
	wantIn(t, ui.page("/tables"), "public.product", "before the import")

	now := ui.page("/tables/product")
	wantIn(t, now, "99", "as it is now", "time-slider")
	wantNotIn(t, now, "hunter2")
	then := ui.page("/tables/public.product?as-of=mark:before+the+import")
	wantIn(t, then, "4 rows are", "product 4", "changed since", "gone since")
	if n := strings.Count(then, "changed since"); n != 2 {
		t.Errorf("%d rows are marked as changed, want 2", n)
	}
	wantIn(t, ui.follow("/tables/public.product", link(t, then, `rel="next"`)), "as of", "99")
	difference := ui.page("/tables/public.product?from=mark:before+the+import&to=now")
	wantIn(t, difference, "4 rows differ", "gone", "added", "Put the table back")
	if n := lines(difference); n != 4 {
		t.Errorf("%d lines, want 4:\n%s", n, excerpt(difference))
	}
	for path, code := range map[string]int{"/tables/none": 404, "/tables/product?as-of=2001-01-01": 422, "/tables/product?as-of=mark:x": 404, "/tables/product?from=2001-01-01": 422, "/tables/product?as-of=soon": 400} {
		if a := ui.get(path); a.code != code {
			t.Errorf("%s: %d, want %d\n%s", path, a.code, code, excerpt(a.body))
		}
	}
	// What history does not store is not shown as if the table did not have it.
	for _, page := range []string{now, then} {
		wantIn(t, page, "History does not store <bdi>password</bdi>", "left out")
		wantNotIn(t, page, "hunter2")
	}
	allowed := s.serve(t, auditui.Config{Access: func(*http.Request) (auditui.Access, error) {
		return auditui.Access{
			User: "x", Values: true, Scope: func(q audit.Query) audit.Query { return q },
			RowAllowed: func(_ context.Context, _, key string) bool { return key != "4" && key != "3" },
		}, nil
	}})
	for _, path := range []string{"/tables/product?as-of=mark:before+the+import", "/tables/product?from=mark:before+the+import"} {
		page := allowed.page(path)
		wantNotIn(t, page, "product 4", "product 3")
		wantIn(t, page, "not yours to see")
	}
}

// Events come as they are stored, and the place in them survives a reconnect.
func TestTail(t *testing.T) {
	t.Parallel()
	s := newShop(t)
	s.write(t, by("old", "", ""), "INSERT INTO product VALUES (1, 'before')")
	s.Sync(t)
	ui := s.serve(t, auditui.Config{MaxStreams: 1})
	wantIn(t, ui.page("/tail?table=product"), "tail/events?table=product")
	stream := func(id string) (next func() (event, id string), done func()) {
		ctx, cancel := context.WithCancel(t.Context())
		request, err := http.NewRequestWithContext(ctx, http.MethodGet, ui.url+"/tail/events?table=product", nil)
		if err != nil {
			t.Fatal(err)
		}
		if id != "" {
			request.Header.Set("Last-Event-ID", id)
		}
		response, err := ui.client.Do(request)
		if err != nil || response.StatusCode != http.StatusOK {
			t.Fatalf("tail: %v %v", response, err)
		}
		text := bufio.NewScanner(response.Body)
		return func() (event, id string) {
			for text.Scan() {
				switch name, value, _ := strings.Cut(text.Text(), ": "); {
				case name == "id":
					id = value
				case name == "data":
					event = value
				case name == "" && event != "":
					return event, id
				}
			}
			t.Fatalf("the stream ended: %v", text.Err())
			return "", ""
		}, func() { cancel(); _ = response.Body.Close() }
	}
	next, done := stream("")
	if event, id := next(); event != "{}" || id == "" {
		t.Fatalf("the stream begins with %q %q", event, id)
	}
	if a := ui.get("/tail/events"); a.code != http.StatusServiceUnavailable {
		t.Errorf("one stream too many: %d", a.code)
	}
	s.write(t, by("ada", "", ""), "INSERT INTO staff VALUES (1, 'no')", "INSERT INTO product VALUES (2, 'first')")
	event, id := next()
	wantIn(t, event, `"first"`, `"User":"ada"`)
	wantNotIn(t, event, `"no"`, "before")
	done()
	s.write(t, by("ada", "", ""), "INSERT INTO product VALUES (3, 'second')")
	s.Sync(t)
	for deadline := time.Now().Add(30 * time.Second); ; { // until the first stream has ended
		if a := ui.get("/tail/events?op=X"); a.code == http.StatusBadRequest || time.Now().After(deadline) {
			break
		}
	}
	next, done = stream(id)
	defer done()
	next()
	event, _ = next()
	wantIn(t, event, `"second"`)
	wantNotIn(t, event, `"first"`)
}
