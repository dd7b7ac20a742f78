package auditui_test

import (
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/hindsight-go/audit"
	"github.com/hindsight-go/audit/auditui"
)

// Whatever stands in an address, and by whatever method it comes, it is answered and not
// stumbled over.
func TestHostile_Addresses(t *testing.T) {
	t.Parallel()
	s := newShop(t, insertProducts(3))
	s.write(t, by("ada", "req-1", "POST /x"), "UPDATE product SET price = 7 WHERE id = 1")
	s.Sync(t)
	ui := s.serve(t, auditui.Config{})
	change := "/changes/" + positionOf(first(t, s.Client.Changes()))
	for _, text := range []string{"\x00", "\xff\xfe", "a\x00b", "%", "'; DROP TABLE product; --", `"`, `\`, "../../etc/passwd", "\u202e", "🏳️‍🌈", strings.Repeat("x", 5000), "[\"a\",\"b\"]", "-1", "1e999", "9999999999999999999999"} {
		segment, value := url.PathEscape(text), url.QueryEscape(text)
		var paths []string
		for _, name := range []string{"op", "table", "key", "env", "user", "tenant", "request", "trace", "endpoint", "worker", "column", "from", "until", "tx", "database", "after", "before"} {
			paths = append(paths, "/?"+name+"="+value, "/requests?"+name+"="+value, "/export?format=csv&"+name+"="+value)
		}
		paths = append(paths, "/?table=product&key="+value, "/?column=price&value="+value, "/?column="+value+"&value=1", "/changes/"+segment, change+"/value?side=after&column="+value, change+"?database="+value,
			"/requests/"+segment, "/transactions/"+segment, "/traces/"+segment, "/reverts/"+segment, "/requests/~?~1="+value, "/reverts?after="+value,
			"/rows/"+segment+"/1", "/rows/product/"+segment, "/rows/product/~?~2="+value, "/rows/product/1?v="+value, "/rows/product/1?at="+value, "/rows/product/1?with="+value, "/rows/product/1?at=mark:"+value,
			"/tables/"+segment, "/tables/product?as-of="+value, "/tables/product?as-of=mark:"+value, "/tables/product?from="+value+"&to=now", "/tables/product?rows="+value,
			"/undo?unit="+value, "/undo?unit=request&id="+value, "/undo?unit=trace&id="+value, "/undo?unit=transaction&id="+value, "/undo?unit=change&id="+value, "/undo?unit=revert&id="+value,
			"/undo?unit=row&table=product&key="+value+"&to=now", "/undo?unit=row&table=product&key=1&to="+value, "/undo?unit=request&id=req-1&except="+value, "/undo?unit=request&id=req-1&policy="+value,
			"/undo?unit=tables&table="+value+"&to=now", "/tail/events?user="+value+"&op=X", "/assets/"+segment, "/"+segment)
		for _, path := range paths {
			if a := ui.get(path); a.code >= 500 {
				t.Errorf("GET %.200q: %d", path, a.code)
			} else if strings.Contains(a.body, "SQLSTATE") || strings.Contains(a.body, "ERROR:") {
				t.Errorf("GET %.200q shows what the server says: %s", path, excerpt(a.body))
			}
		}
	}
	for _, path := range []string{"/", "/requests", change, change + "/value?side=after&column=price", "/requests/req-1", "/rows/product/1", "/tables", "/tables/product", "/tail", "/tail/events", "/undo?unit=request&id=req-1", "/reverts", "/status", "/status.json", "/export?format=csv", "/export?format=jsonl"} {
		for _, method := range []string{http.MethodHead, http.MethodPost, http.MethodPut, http.MethodDelete, http.MethodOptions, http.MethodPatch, "PROPFIND"} {
			ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
			request, err := http.NewRequestWithContext(ctx, method, ui.url+path, nil)
			if err != nil {
				t.Fatal(err)
			}
			begun := time.Now()
			a := ui.do(request)
			cancel()
			want := http.StatusNotFound
			switch {
			case method == http.MethodHead:
				want = http.StatusOK
			case method == http.MethodPost && strings.HasPrefix(path, "/undo"):
				want = http.StatusForbidden // there is no form
			}
			if a.code != want || method == http.MethodHead && a.body != "" {
				t.Errorf("%s %s: %d after %v, want %d", method, path, a.code, time.Since(begun), want)
			}
		}
	}
}

// A page that another part of the program gives up on does not look like an empty one.
func TestHostile_DeadlineOfOthers(t *testing.T) {
	t.Parallel()
	s := newShop(t)
	ui, err := auditui.New(s.Client, auditui.Config{Access: everything})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Nanosecond)
	defer cancel()
	for _, path := range []string{"/", "/requests", "/rows/product/1", "/export?format=csv"} {
		w := httptest.NewRecorder()
		ui.ServeHTTP(w, httptest.NewRequestWithContext(ctx, http.MethodGet, path, nil))
		if w.Code < 500 {
			t.Errorf("%s: %d %q", path, w.Code, w.Body)
		}
	}
}

// What somebody may not see is not told by an answer being another than for what is not
// there.
func TestHostile_Oracles(t *testing.T) {
	t.Parallel()
	s := newShop(t, "CREATE TABLE account (number text PRIMARY KEY, owner text)", "CREATE TABLE card (bank text, number text, digits int, PRIMARY KEY (bank, number))", insertProducts(3))
	s.write(t, audit.Context{UserID: "secretive", Tenant: "south", RequestID: "south-1"}, "INSERT INTO staff VALUES (1, 'DE1')", "INSERT INTO account VALUES ('DE4711', 'Ada')", "INSERT INTO card VALUES ('b', 'DE4711', 1)")
	s.write(t, audit.Context{UserID: "ada", Tenant: "north", RequestID: "north-1"}, "UPDATE account SET owner = 'Eve'", "UPDATE product SET price = 3 WHERE id = 1", "UPDATE card SET digits = 2")
	s.Sync(t)
	page := func(ui *site, path string) string {
		a := ui.get(path)
		return regexp.MustCompile(`(?s)<p class="complete.*?</p>`).ReplaceAllString(fmt.Sprint(a.code, excerpt(a.body)), "")
	}
	same := func(ui *site, what, path, there, none string) {
		t.Helper()
		is, not := page(ui, strings.ReplaceAll(path, "X", there)), page(ui, strings.ReplaceAll(path, "X", none))
		if is, not = strings.ReplaceAll(is, there, "X"), strings.ReplaceAll(not, none, "X"); is != not {
			t.Errorf("%s: %s tells %s from %s:\n%s\n---\n%s", what, path, there, none, is, not)
		}
	}
	scoped := s.serve(t, auditui.Config{Access: func(*http.Request) (auditui.Access, error) {
		return auditui.Access{User: "x", Values: true, Revert: true, Scope: func(q audit.Query) audit.Query { return q.ByTenant("north") }}, nil
	}})
	same(scoped, "a user of others", "/?user=X", "secretive", "nobodyyyy")
	same(scoped, "a request of others", "/requests/X", "south-1", "south-9")
	same(scoped, "a request of others to undo", "/undo?unit=request&id=X", "south-1", "south-9")
	tables := s.serve(t, auditui.Config{Access: func(*http.Request) (auditui.Access, error) {
		return auditui.Access{User: "x", Values: true, Tables: func(table string) bool { return table == "public.product" }}, nil
	}})
	for _, path := range []string{"/?table=X", "/?table=public.X", "/requests?table=X", "/rows/X/1", "/tables/X", "/?table=X&key=1"} {
		same(tables, "a table", path, "staff", "stuff")
	}
	same(tables, "a column of another table", "/?column=X", "iban", "ibon")

	// A key that is masked cannot be asked for.
	masked := s.serve(t, auditui.Config{Mask: func(_, column string) bool { return column == "number" }})
	for _, path := range []string{"/?table=account&key=X", "/rows/account/X", "/requests?table=public.account&key=X", "/undo?unit=row&table=account&key=X&to=now", "/export?format=csv&table=account&key=X"} {
		same(masked, "a masked key", path, "DE4711", "DE4712")
	}
	for _, path := range []string{"/", "/tables/card", "/tables/account", "/requests/north-1", "/undo?unit=request&id=north-1", "/export?format=jsonl", "/?table=product&key=1"} {
		a := masked.get(path)
		if a.code != http.StatusOK || strings.Contains(a.body, "DE4711") {
			t.Errorf("%s: %d, with a masked key in it: %v", path, a.code, strings.Contains(a.body, "DE4711"))
		}
	}
}

// The form of a plan gives nothing away by which a value could be guessed: what stands in it
// differs for two that do the same to the same.
func TestHostile_FormsTellNothing(t *testing.T) {
	t.Parallel()
	s := newShop(t)
	s.write(t, audit.Context{UserID: "ada", RequestID: "insert"}, "INSERT INTO staff VALUES (1, 'DE1')")
	s.write(t, by("ada", "req-1", ""), "UPDATE staff SET iban = 'DE2' WHERE id = 1")
	s.write(t, by("bob", "req-2", ""), "UPDATE staff SET iban = 'DE3' WHERE id = 1")
	s.Sync(t)
	plan, err := s.Client.RevertRequest("req-2").Plan(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	cfg := func() auditui.Config {
		return auditui.Config{Mask: func(_, column string) bool { return column == "iban" }}
	}
	a, b := s.serve(t, cfg()), s.serve(t, cfg())
	_, one := form(t, a.page("/undo?unit=request&id=req-2"), "")
	_, two := form(t, b.page("/undo?unit=request&id=req-2"), "")
	for name, values := range one {
		if name != "need" && name != "reason" && name != "expires" && values[0] != "" && values[0] == two.Get(name) {
			t.Errorf("%s is %q for two secrets", name, values[0])
		}
		if values[0] == plan.Hash {
			t.Errorf("%s is the hash of the plan", name)
		}
	}
	id := regexp.MustCompile(`name="(c\.[0-9a-f]+)"`)
	if x, y := id.FindString(a.page("/undo?unit=request&id=req-1")), id.FindString(b.page("/undo?unit=request&id=req-1")); x == "" || x == y {
		t.Errorf("a conflict is %q under two secrets, and %q", x, y)
	}
	// The form still does what it says.
	a.apply(a.page("/undo?unit=request&id=req-2"), "sealed")
}

// A right that is taken away is taken away from plans that were shown before, too.
func TestHostile_RightsTakenAway(t *testing.T) {
	t.Parallel()
	s := newShop(t, insertProducts(3))
	s.write(t, by("ada", "req-1", ""), "UPDATE product SET price = 100 WHERE id = 1")
	s.write(t, audit.Context{UserID: "bob", Tenant: "south", RequestID: "req-2"}, "UPDATE product SET price = 200 WHERE id = 1", "INSERT INTO staff VALUES (1, 'x')")
	s.Sync(t)
	access := auditui.Access{User: "x", Values: true, Revert: true}
	ui := s.serve(t, auditui.Config{Access: func(*http.Request) (auditui.Access, error) { return access, nil }})
	action, fields := form(t, ui.page("/undo?unit=request&id=req-1&policy=cascade"), "both")
	fields.Set("confirm", fields.Get("need"))
	access.Tables = func(table string) bool { return table == "public.product" }
	if a := ui.post("/undo"+action, fields); a.code != http.StatusForbidden {
		t.Errorf("a plan that takes along what may not be seen: %d\n%s", a.code, excerpt(a.body))
	}
	if got := price(t, s, "1"); got != "200" {
		t.Errorf("the price is %s: something was written", got)
	}
	access.Tables, access.Revert = nil, false
	if a := ui.post("/undo"+action, fields); a.code != http.StatusNotFound {
		t.Errorf("without the right: %d", a.code)
	}
}
