package audit_test

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/csv"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/hindsight-go/audit"
)

func TestPagesFollowOneAnother(t *testing.T) {
	t.Parallel()
	h := newHistory(t)
	var all []audit.Change
	for n := range 10 {
		for sequence := 1; sequence <= 3; sequence++ {
			all = append(all, change(n, sequence))
			if n == 4 { // the same position in another database
				all = append(all, change(n, sequence, func(c *audit.Change) { c.Database = "archive" }))
			}
		}
	}
	h.store(t, all...)
	for _, q := range []audit.Query{h.client.Changes(), h.client.Changes().OldestFirst()} {
		whole, err := q.List(t.Context())
		if err != nil || len(whole) != 33 {
			t.Fatalf("%d changes, %v", len(whole), err)
		}
		for size := 1; size <= 34; size += 5 {
			var got []audit.Change
			var next audit.Cursor
			for {
				page, err := q.After(next).Limit(1).Page(t.Context(), size)
				if err != nil || len(page.Changes) > size || page.More && len(page.Changes) < size {
					t.Fatalf("page of %d: %d, more %t, %v", size, len(page.Changes), page.More, err)
				}
				got, next = append(got, page.Changes...), page.Next
				if !page.More {
					break
				}
			}
			if diff := cmp.Diff(places(whole), places(got)); diff != "" {
				t.Errorf("pages of %d: %s", size, diff)
			}
			last, err := q.After(next).Page(t.Context(), size)
			if err != nil || len(last.Changes) != 0 || last.Next != next || last.More {
				t.Errorf("behind the end: %+v, %v", last, err)
			}
		}
		rest, err := q.After(q.CursorAfter(whole[20])).List(t.Context())
		if diff := cmp.Diff(places(whole[21:]), places(rest)); err != nil || diff != "" {
			t.Error(err, diff)
		}
		if n, err := q.After(q.CursorAfter(whole[20])).Limit(5).Count(t.Context()); n != 5 || err != nil {
			t.Errorf("Count = %d, %v", n, err)
		}
	}
}

func TestCursorsAreChecked(t *testing.T) {
	t.Parallel()
	client := &audit.Client{}
	newest, oldest := client.Changes(), client.Changes().OldestFirst()
	good := newest.CursorAfter(change(1, 1))
	raw, err := base64.RawURLEncoding.DecodeString(string(good))
	if err != nil {
		t.Fatal(err)
	}
	raw[2] ^= 1
	for name, q := range map[string]audit.Query{
		"damaged":        newest.After(audit.Cursor(base64.RawURLEncoding.EncodeToString(raw))),
		"cut":            newest.After(good[:len(good)-2]),
		"nonsense":       newest.After("nonsense"),
		"padded":         newest.After(good + "="),
		"long":           newest.After(audit.Cursor(strings.Repeat("A", 1<<20))),
		"other order":    oldest.After(good),
		"order switched": newest.After(good).OldestFirst(),
	} {
		var cursorErr *audit.CursorError
		if _, err := q.List(t.Context()); !errors.As(err, &cursorErr) {
			t.Errorf("%s: %v", name, err)
		}
	}
	var cursorErr *audit.CursorError
	if _, err := newest.After(good).TransactionsPage(t.Context(), 1); !errors.As(err, &cursorErr) {
		t.Errorf("transactions after a change: %v", err)
	}
	for _, err := range newest.After(good).Watch(t.Context()) {
		if err == nil {
			t.Error("a watch after the cursor of a page, newest first")
		}
		break
	}
}

func TestLeavingTheLoopEarlyFreesTheConnection(t *testing.T) {
	t.Parallel()
	h := newHistory(t)
	var all []audit.Change
	for n := range 300 {
		all = append(all, change(n, 1))
	}
	h.store(t, all...)
	for i := range 50 {
		for c, err := range h.client.Changes().All(t.Context()) {
			if err != nil {
				t.Fatal(err)
			}
			// A query inside the loop needs no second connection.
			if _, err := h.client.Changes().AtPosition(c.Position).First(t.Context()); err != nil {
				t.Fatal(i, err)
			}
			break
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	n := 0
	for _, err := range h.client.Changes().All(ctx) {
		if n++; n == 1 {
			cancel()
		}
		if err != nil {
			if !errors.Is(err, context.Canceled) {
				t.Errorf("after cancel: %v", err)
			}
			break
		}
	}
	if n >= 300 {
		t.Errorf("%d changes after ctx was canceled", n)
	}
	twice := h.client.Changes().Limit(2).All(t.Context())
	for range 2 {
		n = 0
		for range twice {
			n++
		}
		if n != 2 {
			t.Errorf("a range of the same sequence gave %d", n)
		}
	}
}

func TestExport(t *testing.T) {
	t.Parallel()
	h := newHistory(t)
	var all []audit.Change
	for n := range 200 {
		all = append(all, change(n, 1, with(fmt.Sprintf(`{"userId": %d, "note": "a\n\"b\",c"}`, n))))
	}
	h.store(t, all...)
	want, err := h.client.Changes().List(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var lines bytes.Buffer
	if n, err := h.client.Changes().Export(t.Context(), &lines, audit.JSONL); n != 200 || err != nil {
		t.Fatalf("Export = %d, %v", n, err)
	}
	var back []audit.Change
	for decoder := json.NewDecoder(&lines); decoder.More(); {
		var c audit.Change
		if err := decoder.Decode(&c); err != nil {
			t.Fatal(err)
		}
		back = append(back, c)
	}
	ignoreSpace := cmp.Transformer("text", func(c audit.Change) string { text, _ := json.Marshal(c); return string(text) })
	if diff := cmp.Diff(want, back, ignoreSpace); diff != "" {
		t.Error(diff)
	}
	var table bytes.Buffer
	if n, err := h.client.Changes().Limit(3).Export(t.Context(), &table, audit.CSV); n != 3 || err != nil {
		t.Fatalf("Export = %d, %v", n, err)
	}
	records, err := csv.NewReader(&table).ReadAll()
	if err != nil || len(records) != 4 || records[0][0] != "position" || records[1][12] != string(want[0].RawContext) {
		t.Errorf("%v, %v", records, err)
	}
	full := &fullDisk{left: 100}
	if _, err := h.client.Changes().Export(t.Context(), full, audit.JSONL); !errors.Is(err, errFull) {
		t.Errorf("a writer that fails: %v", err)
	}
}

// TestALargeRequestIsReadWhole reads more than the pages that are found by the
// index of the context, and goes on in the order of positions.
func TestALargeRequestIsReadWhole(t *testing.T) {
	t.Parallel()
	h := newHistory(t)
	var all []audit.Change
	var want []string
	for n := range 4000 {
		if n%4 == 3 {
			all = append(all, change(n/7, n%7+1))
			continue
		}
		all = append(all, change(n/7, n%7+1, with(`{"requestId": "import"}`)))
		want = append(want, rowOf(all[n]))
	}
	h.store(t, all...)
	q := h.client.Changes().InRequest("import").OldestFirst()
	got, err := q.List(t.Context())
	if diff := cmp.Diff(want, rowsOf(got)); err != nil || diff != "" {
		t.Error(err, diff)
	}
	got, err = q.NewestFirst().Limit(2500).List(t.Context())
	slices.Reverse(got)
	if diff := cmp.Diff(want[500:], rowsOf(got)); err != nil || diff != "" {
		t.Error(err, diff)
	}
}
