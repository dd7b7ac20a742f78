package auditui_test

import (
	"html"
	"net/http"
	"net/url"
	"regexp"
	"strings"
	"sync"
	"testing"

	"github.com/hindsight-go/audit"
	"github.com/hindsight-go/audit/audittest"
	"github.com/hindsight-go/audit/auditui"
)

// form is the form of a plan, with what is typed into it.
func form(t *testing.T, page, reason string) (action string, fields url.Values) {
	t.Helper()
	fields = url.Values{"reason": {reason}}
	at := strings.Index(page, `<form method="post"`)
	if at < 0 {
		t.Fatalf("the page has no form:\n%s", excerpt(page))
	}
	action = html.UnescapeString(regexp.MustCompile(`action="([^"]*)"`).FindStringSubmatch(page[at:])[1])
	for _, m := range regexp.MustCompile(`type="hidden" name="([^"]*)" value="([^"]*)"`).FindAllStringSubmatch(page[at:], -1) {
		fields.Set(m[1], html.UnescapeString(m[2]))
	}
	return action, fields
}

func (s *site) post(path string, fields url.Values, headers ...string) answer {
	s.t.Helper()
	request, err := http.NewRequestWithContext(s.t.Context(), http.MethodPost, s.url+path, strings.NewReader(fields.Encode()))
	if err != nil {
		s.t.Fatal(err)
	}
	request.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	for i := 0; i+1 < len(headers); i += 2 {
		request.Header.Set(headers[i], headers[i+1])
	}
	return s.do(request)
}

// apply sends the form of a page, and returns the page of the revert.
func (s *site) apply(page, reason string) (path, revert string) {
	s.t.Helper()
	action, fields := form(s.t, page, reason)
	a := s.post("/undo"+action, fields)
	if a.code != http.StatusSeeOther {
		s.t.Fatalf("POST: %d\n%s\nlog:\n%s", a.code, excerpt(a.body), s.log)
	}
	path = "/" + strings.TrimPrefix(a.header.Get("Location"), "./")
	return path, s.page(path)
}

func price(t *testing.T, s *shop, id string) string {
	t.Helper()
	return audittest.Value[string](t, s.Database, "SELECT coalesce(price::text, 'NULL') FROM product WHERE id = "+id)
}

func TestUndo(t *testing.T) {
	t.Parallel()
	s := newShop(t, insertProducts(40))
	ui := s.serve(t, auditui.Config{ConfirmRows: 10})

	t.Run("without a conflict, and redo", func(t *testing.T) {
		s.write(t, by("ada", "req-1", "PATCH /product"), "UPDATE product SET price = 3200 WHERE id = 1", "DELETE FROM product WHERE id = 2")
		s.Sync(t)
		page := ui.follow("/requests/req-1", link(t, ui.page("/requests/req-1"), `class="button undo"`))
		wantIn(t, page, "Undo <bdi>request req-1", "3200", "put back", "restore", "BEGIN;", "ada")
		_, revert := ui.apply(page, "a wrong price")
		wantIn(t, revert, "a wrong price", "boss", "request req-1", "Redo…")
		if got := price(t, s, "1"); got != "1" {
			t.Errorf("the price is %s, want 1", got)
		}
		wantIn(t, ui.page("/reverts"), "a wrong price", "boss")
		wantIn(t, ui.page("/undo?unit=request&id=req-1"), "was undone before")
		_, redone := ui.apply(ui.follow("/reverts/x", link(t, revert, `class="button undo"`)), "it was right")
		wantIn(t, redone, "it was right")
		if got := price(t, s, "1"); got != "3200" {
			t.Errorf("the price is %s after redo, want 3200", got)
		}
	})

	t.Run("somebody writes between plan and click", func(t *testing.T) {
		s.write(t, by("ada", "req-2", ""), "UPDATE product SET price = 1000 WHERE id IN (3, 4)")
		s.Sync(t)
		action, fields := form(t, ui.page("/undo?unit=request&id=req-2"), "stale")
		s.write(t, by("bob", "req-3", ""), "UPDATE product SET price = 555 WHERE id = 4")
		s.Sync(t)
		a := ui.post("/undo"+action, fields)
		if a.code != http.StatusConflict {
			t.Fatalf("%d, want 409\n%s", a.code, excerpt(a.body))
		}
		wantIn(t, a.body, "Nothing was written", "bob", "the later change", "555", `<span class="flag">new</span>`, "1 in the way", "stale")
		if got := price(t, s, "3") + price(t, s, "4"); got != "1000555" {
			t.Errorf("prices are %s: something was written", got)
		}
		wantNotIn(t, a.body, `<form method="post"`)

		t.Run("skip", func(t *testing.T) {
			page := ui.page("/undo?unit=request&id=req-2&policy=skip")
			wantIn(t, page, "all decided", "skipped", "Undo 1 row")
			_, revert := ui.apply(page, "skip")
			wantIn(t, revert, "in part")
			if got := price(t, s, "3") + price(t, s, "4"); got != "3555" {
				t.Errorf("prices are %s, want 3 and 555", got)
			}
		})
		t.Run("overwrite one conflict asks again", func(t *testing.T) {
			page := ui.page("/undo?unit=request&id=req-2")
			id := regexp.MustCompile(`name="(c\.[0-9a-f]+)"`).FindStringSubmatch(page)[1]
			page = ui.page("/undo?unit=request&id=req-2&" + id + "=overwrite")
			action, fields := form(t, page, "overwrite")
			if a := ui.post("/undo"+action, fields); a.code != http.StatusUnprocessableEntity || !strings.Contains(a.body, "To confirm") {
				t.Errorf("without confirmation: %d", a.code)
			}
			fields.Set("need", "")
			if a := ui.post("/undo"+action, fields); a.code != http.StatusForbidden {
				t.Errorf("with the need taken out of the form: %d", a.code)
			}
			_, fields = form(t, page, "overwrite")
			fields.Set("confirm", fields.Get("need"))
			if a := ui.post("/undo"+action, fields); a.code != http.StatusSeeOther {
				t.Errorf("confirmed: %d\n%s", a.code, excerpt(a.body))
			}
			if got := price(t, s, "4"); got != "4" {
				t.Errorf("the price is %s, want 4", got)
			}
		})
	})

	t.Run("cascade lists what is undone as well", func(t *testing.T) {
		s.write(t, by("ada", "req-4", ""), "UPDATE product SET price = 100 WHERE id = 5")
		s.write(t, by("bob", "req-5", ""), "UPDATE product SET price = 200 WHERE id = 5")
		s.Sync(t)
		page := ui.page("/undo?unit=request&id=req-4&policy=cascade")
		wantIn(t, page, "Later changes that are undone as well", "req-5")
		ui.apply(page, "both")
		if got := price(t, s, "5"); got != "5" {
			t.Errorf("the price is %s, want 5", got)
		}
	})

	t.Run("a row to a version, and a column left out", func(t *testing.T) {
		s.write(t, by("ada", "", ""), "UPDATE product SET price = 1, name = 'changed' WHERE id = 6")
		s.Sync(t)
		page := ui.follow("/rows/public.product/6", link(t, ui.page("/rows/public.product/6?v=start"), `class="button undo"`))
		wantIn(t, page, "changed", "product 6")
		_, fields := form(t, page, "x")
		if fields.Get("need") != "" {
			t.Errorf("one row has to be confirmed")
		}
		at := link(t, ui.page("/rows/public.product/6?v=start"), `class="button undo"`)
		ui.apply(ui.follow("/rows/public.product/6", at+"&except=price"), "the name only")
		if got := audittest.Value[string](t, s.Database, "SELECT name || price FROM product WHERE id = 6"); got != "product 61" {
			t.Errorf("the row is %s", got)
		}
	})

	t.Run("many rows have to be confirmed", func(t *testing.T) {
		s.write(t, by("ada", "req-6", ""), "UPDATE product SET price = 0 WHERE id > 20")
		s.Sync(t)
		page := ui.page("/undo?unit=request&id=req-6")
		wantIn(t, page, "type the number of rows, 20")
		action, fields := form(t, page, "")
		if a := ui.post("/undo"+action, fields); a.code != http.StatusUnprocessableEntity || !strings.Contains(a.body, "Say why") {
			t.Errorf("without a reason: %d", a.code)
		}
	})

	t.Run("double click and two tabs", func(t *testing.T) {
		s.write(t, by("ada", "req-7", ""), "UPDATE product SET price = 77 WHERE id = 7")
		s.Sync(t)
		action, fields := form(t, ui.page("/undo?unit=request&id=req-7"), "twice")
		_, other := form(t, ui.page("/undo?unit=request&id=req-7"), "twice")
		var clicks sync.WaitGroup
		codes := make([]string, 4)
		for i := range codes {
			clicks.Go(func() {
				sent := fields
				if i >= 2 {
					sent = other
				}
				a := ui.post("/undo"+action, sent)
				codes[i] = a.header.Get("Location")
				if a.code != http.StatusSeeOther && a.code != http.StatusConflict {
					t.Errorf("click %d: %d\n%s", i, a.code, excerpt(a.body))
				}
			})
		}
		clicks.Wait()
		s.Sync(t)
		reverts, err := s.Client.Changes().RevertsOf(audit.Unit{Kind: "request", ID: "req-7"}).Count(t.Context())
		if err != nil || reverts != 1 {
			t.Errorf("%d changes of reverts, want 1 (%v), %v", reverts, err, codes)
		}
	})

	t.Run("several users", func(t *testing.T) {
		s.write(t, by("ada", "req-8", ""), "UPDATE product SET price = 88 WHERE id = 8")
		s.write(t, by("bob", "req-8", ""), "UPDATE product SET price = 99 WHERE id = 9")
		s.Sync(t)
		wantIn(t, ui.page("/requests/req-8"), "More than one hand")
		page := ui.page("/undo?unit=request&id=req-8")
		wantIn(t, page, "Several users are in it")
		wantNotIn(t, page, `<form method="post"`)
		wantIn(t, ui.page("/undo?unit=request&id=req-8&across=1"), `<form method="post"`)
	})

	t.Run("errors", func(t *testing.T) {
		for path, code := range map[string]int{
			"/undo": 404, "/undo?unit=request&id=none": 404, "/undo?unit=transaction&id=x": 404, "/undo?unit=row&table=product&key=1&to=2001-01-01": 422,
			"/undo?unit=row&table=none&key=1": 404, "/undo?unit=tables&table=product&to=2001-01-01": 422, "/undo?unit=request&id=req-6&except=nonsense": 400, "/reverts/none": 404,
		} {
			if a := ui.get(path); a.code != code {
				t.Errorf("%s: %d, want %d\n%s", path, a.code, code, excerpt(a.body))
			}
		}
	})

	t.Run("forms of others", func(t *testing.T) {
		page := ui.page("/undo?unit=request&id=req-6")
		action, fields := form(t, page, "x")
		fields.Set("confirm", fields.Get("need"))
		for name, headers := range map[string][]string{
			"another site":   {"Sec-Fetch-Site", "cross-site"},
			"a sister site":  {"Sec-Fetch-Site", "same-site"},
			"another origin": {"Origin", "https://evil.example"},
		} {
			if a := ui.post("/undo"+action, fields, headers...); a.code != http.StatusForbidden {
				t.Errorf("%s: %d, want 403", name, a.code)
			}
		}
		for name, change := range map[string]func(url.Values){
			"no token": func(v url.Values) { v.Del("token") }, "another hash": func(v url.Values) { v.Set("hash", "x") },
			"another key": func(v url.Values) { v.Set("key", "x") }, "another end": func(v url.Values) { v.Set("expires", "99999999999") },
		} {
			changed := url.Values{}
			for k, v := range fields {
				changed[k] = v
			}
			change(changed)
			if a := ui.post("/undo"+action, changed); a.code != http.StatusForbidden {
				t.Errorf("%s: %d, want 403", name, a.code)
			}
		}
		if a := ui.post("/undo?unit=request&id=req-8&across=1", fields); a.code != http.StatusForbidden {
			t.Errorf("the form of another plan: %d, want 403", a.code)
		}
		somebodyElse := s.serve(t, auditui.Config{Access: func(*http.Request) (auditui.Access, error) {
			return auditui.Access{User: "mallory", Values: true, Revert: true}, nil
		}})
		if a := somebodyElse.post("/undo"+action, fields); a.code != http.StatusForbidden {
			t.Errorf("the form of somebody else: %d, want 403", a.code)
		}
		if got := price(t, s, "21"); got != "0" {
			t.Errorf("the price is %s: something was written", got)
		}
	})

	t.Run("access", func(t *testing.T) {
		as := func(access auditui.Access) *site {
			access.User = "x"
			return s.serve(t, auditui.Config{Access: func(*http.Request) (auditui.Access, error) { return access, nil }})
		}
		none := as(auditui.Access{Values: true})
		if a := none.post("/undo?unit=request&id=req-6", url.Values{"reason": {"x"}}); a.code != http.StatusNotFound {
			t.Errorf("POST without the right: %d, want 404", a.code)
		}
		if a := none.get("/undo?unit=request&id=req-6"); a.code != http.StatusNotFound {
			t.Errorf("GET without the right: %d, want 404", a.code)
		}
		wantNotIn(t, none.page("/requests/req-6"), "undo?")

		s.write(t, audit.Context{UserID: "ada", Tenant: "north", RequestID: "req-9"}, "UPDATE product SET price = 9999 WHERE id = 10")
		s.write(t, audit.Context{UserID: "bob", Tenant: "south", RequestID: "req-10"}, "UPDATE product SET price = 4242 WHERE id = 10", "INSERT INTO staff VALUES (9, 'DE42')")
		s.write(t, audit.Context{UserID: "eve", Tenant: "north", RequestID: "req-10"}, "UPDATE product SET price = 7 WHERE id = 11")
		s.Sync(t)
		scoped := as(auditui.Access{Values: true, Revert: true, Scope: func(q audit.Query) audit.Query { return q.ByTenant("north") }})
		for path, code := range map[string]int{
			"/undo?unit=request&id=req-9": 403, "/undo?unit=request&id=req-10": 403, "/undo?unit=request&id=req-6": 404, "/undo?unit=row&table=product&key=1&to=now": 404, "/undo?unit=tables&table=product&to=now": 404,
		} {
			a := scoped.get(path)
			if a.code != code {
				t.Errorf("%s: %d, want %d", path, a.code, code)
			}
			wantNotIn(t, a.body, "4242", "bob")
		}
		narrow := as(auditui.Access{Values: true, Revert: true, Tables: func(table string) bool { return table == "public.product" }})
		if a := narrow.get("/undo?unit=request&id=req-10&across=1"); a.code != http.StatusForbidden || strings.Contains(a.body, "DE42") {
			t.Errorf("a unit with a table that may not be seen: %d", a.code)
		}

		s.write(t, by("ada", "req-11", ""), "UPDATE staff SET iban = 'DE55' WHERE id = 9", "UPDATE product SET price = 11 WHERE id = 12")
		s.Sync(t)
		masked := s.serve(t, auditui.Config{Mask: func(_, column string) bool { return column == "iban" }})
		page := masked.page("/undo?unit=request&id=req-11")
		wantNotIn(t, page, "DE42", "DE55", "BEGIN;")
		wantIn(t, page, "masked", "may not see")
		blind := as(auditui.Access{Revert: true})
		page = blind.page("/undo?unit=request&id=req-11")
		wantNotIn(t, page, "DE42", "DE55", "BEGIN;")
		blind.apply(page, "without seeing")
		if got := audittest.Value[string](t, s.Database, "SELECT iban FROM staff WHERE id = 9"); got != "DE42" {
			t.Errorf("iban is %s", got)
		}
	})
}
