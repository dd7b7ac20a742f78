package uitest

import (
	"errors"
	"fmt"
	"net/http"
	"testing"
	"time"

	"github.com/chromedp/chromedp"
	"github.com/chromedp/chromedp/kb"
	"github.com/jackc/pgx/v5"

	"github.com/hindsight-go/audit"
	"github.com/hindsight-go/audit/auditui"
)

// makeGap drops the slot under the reader while a transaction is open and others write, and
// then commits it: no slot that is made meanwhile has that transaction.
func (s *shop) makeGap(t *testing.T, lost string) audit.Gap {
	t.Helper()
	ctx := t.Context()
	writing, stop := make(chan error), make(chan struct{})
	other := s.Connect(t)
	go func() {
		for i := 0; ; i++ {
			select {
			case <-stop:
				writing <- nil
				return
			default:
			}
			if _, err := other.Exec(ctx, fmt.Sprintf("UPDATE product SET price = %d WHERE id = 3", 1000+i)); err != nil {
				writing <- err
				return
			}
		}
	}()
	err := pgx.BeginFunc(ctx, s.conn, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, lost); err != nil {
			return err
		}
		conn := s.Connect(t)
		for deadline := time.Now().Add(time.Minute); ; {
			_, _ = conn.Exec(ctx, "SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE database = current_database() AND active")
			tag, err := conn.Exec(ctx, "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE database = current_database()")
			if err == nil && tag.RowsAffected() == 1 {
				return conn.Close(ctx)
			}
			if time.Now().After(deadline) {
				return errors.Join(errors.New("the slot cannot be dropped"), err)
			}
		}
	})
	close(stop)
	if err := errors.Join(err, <-writing); err != nil {
		t.Fatal(err)
	}
	s.Sync(t)
	status, err := s.Client.Status(ctx)
	if err != nil || len(status.Gaps) != 1 {
		t.Fatalf("there are %d gaps, want 1: %v", len(status.Gaps), err)
	}
	return status.Gaps[0]
}

// 6. Where history has a gap, every page says so: none shows what is behind it as if nothing
// were missing.
func TestGapInTheBrowser(t *testing.T) {
	s := newShop(t)
	s.write(t, by("ada", "before"), "UPDATE product SET price = 100 WHERE id IN (1, 4)")
	if _, err := s.Client.Mark(t.Context(), "before it"); err != nil {
		t.Fatal(err)
	}
	s.Sync(t)
	early := time.Now().UTC()
	gap := s.makeGap(t, "UPDATE product SET price = 321 WHERE id IN (1, 4)")
	s.write(t, by("bob", "behind"), "UPDATE product SET price = 500 WHERE id IN (1, 3)")
	// Not all of the storm's writes are lost, but this one is.
	if found := list(t, s.Client.Changes().ForTable("product").ChangedTo("price", 321)); len(found) > 0 {
		t.Fatalf("what should be lost is in history: %v", found)
	}
	ui := s.serve(t, auditui.Config{})
	b := newTab(t)
	b.expected = []string{"status of 422"}
	inside := segment(audit.Position{LSN: gap.From + 1})

	// The lists say so, unless they are about the time before.
	for _, path := range []string{"", "?table=product", "requests", "requests/behind", "status", "tables/product", "rows/product/1"} {
		b.open(ui + path)
		b.want("Gap", gap.Reason)
		if path != "status" {
			b.wantNot("No gaps")
		}
	}
	b.open(ui + "?until=" + early.Add(-time.Second).Format(time.RFC3339Nano))
	b.want("No gaps")

	// The row: its slider shows the gap, and steps over it to what is known.
	b.open(ui + "rows/product/1")
	b.want("Version 3 of 3", "gap before it", "History has a gap just before this version", "500")
	if n := b.count(".slider rect.gap"); n != 1 {
		t.Errorf("the slider of the row shows %d gaps", n)
	}
	b.run(chromedp.Focus("#slider", chromedp.ByQuery), chromedp.KeyEvent(kb.ArrowLeft))
	b.wait("document.querySelector('h2').textContent.includes('Version 2 of 3')")
	b.want("100", "ada")
	b.wantNot("History has a gap just before this version")
	// A moment in the gap has no version; the nearest moment has.
	b.open(ui + "rows/product/1")
	b.fill("[name=at]", inside)
	if code := b.follow("form.inline-form button"); code != http.StatusUnprocessableEntity {
		t.Errorf("a moment in the gap: %d", code)
	}
	b.want("In a gap")
	b.follow("a.button")
	b.want("of 3")

	// The table: its slider shows the gap, and a moment across it is refused.
	b.open(ui + "tables/product")
	if n := b.count(".slider rect.gap"); n != 1 {
		t.Errorf("the slider of the table shows %d gaps", n)
	}
	b.want("500")
	for _, path := range []string{"tables/product?as-of=mark:before+it", "tables/product?as-of=" + inside, "tables/product?from=mark:before+it&to=now"} {
		if code := b.open(ui + path); code != http.StatusUnprocessableEntity {
			t.Errorf("%s: %d", path, code)
		}
		b.want("In a gap", "a guess")
		if code := b.follow("a.button"); code != http.StatusOK {
			t.Errorf("%s: the nearest moment: %d at %s", path, code, b.where())
		}
	}

	// An undo from before the gap does not write over what it cannot know: neither over what
	// was done behind the gap, nor over what was done in it.
	if code := b.open(ui + "undo?unit=request&id=before"); code != http.StatusOK || b.count(".apply") != 0 {
		t.Errorf("an undo across the gap: %d\n%s", code, b.text("main"))
	}
	b.want("Gap", "2 in the way", "There is 500 now", "There is 321 now", "the later change")
	b.open(ui + "undo?unit=request&id=behind")
	b.want("Gap", "321", "restore")
	s.write(t, by("bob", "again"), "UPDATE product SET price = 4 WHERE id = 4") // which history knows at the end
}
