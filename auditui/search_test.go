package auditui_test

import (
	"fmt"
	"html"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/hindsight-go/audit"
	"github.com/hindsight-go/audit/auditui"
)

// What was not looked at is not said to be nothing: a list that ends early says where, and
// leads on.
func TestPages_SearchFurther(t *testing.T) {
	t.Parallel()
	s := newShop(t)
	s.write(t, audit.Context{}, insertProducts(20), "UPDATE product SET secret = NULL WHERE id = 3")
	for range 3 {
		s.write(t, audit.Context{}, "UPDATE product SET price = price + 1 FROM generate_series(1, 1) WHERE id <= 20", "INSERT INTO staff SELECT i + coalesce((SELECT max(id) FROM staff), 0), 'x' FROM generate_series(1, 4000) i")
	}
	s.write(t, audit.Context{}, "UPDATE product SET name = 'newest' WHERE id = 7")
	s.Sync(t)
	ui := s.serve(t, auditui.Config{SearchTime: time.Nanosecond})
	link := func(page, rel string) string {
		m := regexp.MustCompile(`rel="` + rel + `" href="([^"]+)"`).FindStringSubmatch(page)
		if m == nil {
			return ""
		}
		return strings.ReplaceAll(m[1], "&amp;", "&")
	}
	// The twenty rows were made before everything else.
	page := ui.page("/?column=name&table=product&op=CREATE")
	if n := lines(page); n != 20 { // few enough changes of the table to look at all
		t.Errorf("%d lines of a small table, want 20", n)
	}
	wantNotIn(t, page, "not looked at yet")
	page = ui.page("/?column=name")
	wantIn(t, page, "Looked back to", "What is older was not looked at yet", "1 change so far", "newest")
	wantNotIn(t, page, "Nothing matches", "1 change<")
	page = ui.page("/?column=secret&value=nobody")
	wantIn(t, page, "Looked back to", "0 changes so far")
	wantNotIn(t, page, "Nothing matches")
	// Whoever searches further finds it, and comes back from there.
	page = ui.page("/" + link(ui.page("/?column=name"), "search"))
	if n := lines(page); n != 20 {
		t.Errorf("%d lines further back, want 20:\n%s", n, excerpt(page))
	}
	wantNotIn(t, page, "not looked at yet")
	back := ui.page("/" + link(page, "prev"))
	wantIn(t, back, "Looked forward to", "What is newer was not looked at yet", "0 changes so far")
	if page = ui.page("/" + link(back, "search")); lines(page) != 1 {
		t.Errorf("%d lines on the way back, want the newest:\n%s", lines(page), excerpt(page))
	}
	wantIn(t, page, "newest")
	page = ui.page("/" + link(ui.page("/?column=secret&value=nobody"), "search"))
	wantIn(t, page, "Nothing matches")
}

// The list of requests leads forwards and back.
func TestRequests_ForwardAndBack(t *testing.T) {
	t.Parallel()
	s := newShop(t)
	const n = 120
	for i := range n {
		s.write(t, by("ada", fmt.Sprint("req-", i), "POST /staff"), fmt.Sprintf("INSERT INTO staff VALUES (%d)", i))
	}
	s.Sync(t)
	ui := s.serve(t, auditui.Config{})
	id := regexp.MustCompile(`class="open request"[^>]*><bdi>([^<]+)<`)
	next, prev := regexp.MustCompile(`rel="next" href="([^"]+)"`), regexp.MustCompile(`rel="prev" href="([^"]+)"`)
	read := func(page string) (ids []string) {
		for _, m := range id.FindAllStringSubmatch(page, -1) {
			ids = append(ids, m[1])
		}
		return ids
	}
	lead := func(page string, link *regexp.Regexp) string {
		if m := link.FindStringSubmatch(page); m != nil {
			return ui.page("/requests" + html.UnescapeString(m[1]))
		}
		return ""
	}
	page := ui.page("/requests")
	if prev.MatchString(page) {
		t.Error("the first page has one before it")
	}
	forward := read(page)
	for at := lead(page, next); at != ""; at = lead(page, next) {
		page = at
		forward = append(forward, read(page)...)
		s.write(t, by("bob", "later", ""), "UPDATE staff SET iban = 'x' WHERE id = 1") // moves to the top of a new list
	}
	if len(forward) != n || forward[0] != "req-119" || forward[n-1] != "req-0" {
		t.Errorf("forwards: %d requests, %v", len(forward), forward)
	}
	back := read(page)
	for at := lead(page, prev); at != ""; at = lead(page, prev) {
		page = at
		back = append(read(page), back...)
	}
	if !slices.Equal(back, forward) {
		t.Errorf("back: %d requests %v", len(back), back)
	}
}
