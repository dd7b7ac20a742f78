package audit_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/hindsight-go/audit"
	"github.com/hindsight-go/audit/audittest"
	"github.com/hindsight-go/audit/internal/faulttest"
)

// A whole table as of a moment costs the changes since, or its rows, and not their
// square, while the planner knows nothing of either: just after an import, or where
// autovacuum is off.
func TestAsOf_TableWithoutStatistics(t *testing.T) {
	ownStore(t, "it sets a parameter that only a superuser may set")
	t.Parallel()
	for _, search := range []string{"chosen", "in order", "row by row"} {
		t.Run(search, func(t *testing.T) {
			t.Parallel()
			small, large := blocksWithoutStatistics(t, search, 1000), blocksWithoutStatistics(t, search, 4000)
			t.Logf("%d blocks for 1,000 rows, %d for 4,000", small, large)
			if large > 8*small {
				t.Errorf("%d blocks for 1,000 rows, %d for 4,000", small, large)
			}
		})
	}
}

func blocksWithoutStatistics(t *testing.T, search string, rows int) int {
	t.Helper()
	a := audittest.Open(t, audittest.NewDatabase(t), audit.Config{})
	a.Exec(t, "CREATE TABLE item (id int PRIMARY KEY, stock int) WITH (autovacuum_enabled = off)")
	if err := a.Client.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	withoutAutovacuum(t, a)
	a.Exec(t, fmt.Sprintf("INSERT INTO item SELECT i, 0 FROM generate_series(1, %d) i", rows))
	at, err := a.Client.Mark(t.Context(), "before")
	if err != nil {
		t.Fatal(err)
	}
	for range 12 { // more changes than it takes to go row by row
		a.Exec(t, "UPDATE item SET stock = stock + 1")
	}
	a.Sync(t)
	p := a.Client.AtPosition(at)
	if search != "chosen" {
		p = audit.Searching(p, search == "in order")
	}
	h := &history{client: a.Client}
	o := h.explained(t)
	found := 0
	for row, err := range p.Table("item").All(t.Context()) {
		if err != nil {
			t.Fatal(err)
		}
		if stock := string(row.RawValues()[1]); stock != "0" {
			t.Fatalf("stock is %s", stock)
		}
		found++
	}
	if found != rows {
		t.Fatalf("%d of %d rows", found, rows)
	}
	blocks, _ := o.blocks(t)
	return blocks
}

// withoutAutovacuum leaves the partitions of the history without statistics.
func withoutAutovacuum(t *testing.T, a *audittest.Audited) {
	t.Helper()
	a.Exec(t, `DO $$
		DECLARE p regclass;
		BEGIN
			FOR p IN SELECT inhrelid FROM pg_inherits WHERE inhparent = 'audit.changes'::regclass LOOP
				EXECUTE format('ALTER TABLE %s SET (autovacuum_enabled = off)', p);
			END LOOP;
		END $$`)
}

// The instance that captures sees to it that a partition has statistics.
func TestCapture_AnalysesNewPartitions(t *testing.T) {
	t.Parallel()
	a := audittest.Open(t, audittest.NewDatabase(t), audit.Config{})
	a.Exec(t, "CREATE TABLE item (id int PRIMARY KEY, note text)")
	if err := a.Client.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	withoutAutovacuum(t, a)
	a.Exec(t, "INSERT INTO item SELECT i, repeat('x', 500) FROM generate_series(1, 5000) i")
	a.Sync(t)
	faulttest.Poll(t, 2*time.Minute, "statistics of the partition", func() error {
		known := audittest.Value[int](t, a.Database, `
			SELECT max(c.reltuples)::int FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
			WHERE i.inhparent = 'audit.changes'::regclass`)
		if known < 5000 {
			return fmt.Errorf("%d rows are known", known)
		}
		return nil
	})
}
