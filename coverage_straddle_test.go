package audit_test

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/hindsight-go/audit"
	"github.com/hindsight-go/audit/audittest"
	"github.com/hindsight-go/audit/store"
)

// A transaction that had begun to write before a table came into the publication is in
// the stream from there on only. The table is covered from behind it, whoever published
// the table, and whatever part of it.
func TestCoverage_TransactionThatStraddles(t *testing.T) {
	t.Parallel()
	for name, publish := range map[string]struct{ setup, publish string }{
		"table published by somebody else": {
			"CREATE TABLE late (id int PRIMARY KEY, v int); ALTER TABLE late REPLICA IDENTITY FULL", "ALTER PUBLICATION audit ADD TABLE late",
		},
		"partitions published by somebody else": {
			"CREATE TABLE late (id int PRIMARY KEY, v int) PARTITION BY LIST (id); CREATE TABLE late_1 PARTITION OF late FOR VALUES IN (1, 2, 3); CREATE TABLE late_2 PARTITION OF late DEFAULT;" +
				"ALTER TABLE late_1 REPLICA IDENTITY FULL; ALTER TABLE late_2 REPLICA IDENTITY FULL",
			"ALTER PUBLICATION audit ADD TABLE late_1, late_2",
		},
		"table out of the publication for a while": {
			"CREATE TABLE late (id int PRIMARY KEY, v int)", "ALTER PUBLICATION audit DROP TABLE late; ALTER PUBLICATION audit ADD TABLE late",
		},
		"table out of the publication for a while, and renamed meanwhile": {
			"CREATE TABLE early (id int PRIMARY KEY, v int)", "ALTER PUBLICATION audit DROP TABLE late; ALTER PUBLICATION audit ADD TABLE late",
		},
		"one partition published by somebody else": {
			"CREATE TABLE late (id int PRIMARY KEY, v int) PARTITION BY LIST (id); CREATE TABLE late_1 PARTITION OF late FOR VALUES IN (1, 2, 3, 4, 5, 6); ALTER TABLE late_1 REPLICA IDENTITY FULL", "ALTER PUBLICATION audit ADD TABLE late_1",
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			a := audittest.Open(t, audittest.NewDatabase(t), audit.Config{NoEventTrigger: true, RefreshInterval: -1})
			a.Exec(t, "CREATE TABLE other (id int PRIMARY KEY)")
			mustStart(t, a)
			t.Cleanup(func() { a.Stop(t) })
			a.Exec(t, publish.setup)
			if strings.Contains(publish.publish, "DROP") {
				refresh(t, a)
			}
			if strings.Contains(publish.setup, "early") {
				a.Exec(t, "ALTER TABLE early RENAME TO late")
			}
			writer := a.Connect(t)
			if _, err := writer.Exec(t.Context(), "BEGIN; INSERT INTO late SELECT i, i FROM generate_series(1, 5) i"); err != nil {
				t.Fatal(err)
			}
			a.Exec(t, publish.publish)
			if _, err := writer.Exec(t.Context(), "INSERT INTO late VALUES (6, 6)"); err != nil {
				t.Fatal(err)
			}
			if err := a.Client.Refresh(t.Context()); err == nil || !strings.Contains(err.Error(), "late") {
				t.Errorf("refresh: %v", err)
			}
			before := must(audit.ParsePosition(audittest.Value[string](t, a.Database, "SELECT pg_current_wal_insert_lsn()::text")))
			if _, err := writer.Exec(t.Context(), "COMMIT"); err != nil {
				t.Fatal(err)
			}
			refresh(t, a)
			a.Exec(t, "UPDATE late SET v = 0 WHERE id = 1")
			a.Sync(t)
			if n, err := a.Client.AtPosition(before).Table("late").Count(t.Context()); !refused(err) && (n != 0 || err != nil) {
				t.Errorf("%d rows before the commit, %v", n, err)
			}
			if n, err := a.Client.Now().Table("late").Count(t.Context()); n != 6 || err != nil {
				t.Errorf("%d rows now, %v", n, err)
			}
		})
	}
}

// Times of coverage and of gaps are compared with commit times: they are the source's,
// whatever the store's clock says.
func TestCoverage_TimesOfTheSource(t *testing.T) {
	t.Parallel()
	ctx, history := t.Context(), bareStore(t, audittest.NewDatabase(t))
	day := func(n int) time.Time { return time.Date(2001, 1, n, 0, 0, 0, 0, time.UTC) }
	checkpoint := store.Checkpoint{Database: "shop", Slot: "s", SystemIdentifier: "1", Timeline: 1, Position: 100}
	_, holder, release, err := history.LockSetup(ctx, "shop", time.Minute, func(*store.SetupLockedError) {})
	if err != nil {
		t.Fatal(err)
	}
	defer release()
	if err := errors.Join(
		history.CreateCheckpoint(ctx, checkpoint, day(1)),
		history.OpenCoverage(ctx, holder, store.Coverage{Schema: "public", Table: "todo", From: 100, FromTime: day(2), RelationID: 7}),
		history.CloseCoverage(ctx, holder, 7, 200, day(3)),
		history.RecordGap(ctx, "shop", checkpoint, 300, day(4), "test"),
	); err != nil {
		t.Fatal(err)
	}
	covered, err := history.Coverage(ctx, "shop")
	if err != nil || len(covered) != 1 || !covered[0].FromTime.Equal(day(2)) || !covered[0].UntilTime.Equal(day(3)) {
		t.Errorf("coverage is %v, %v", covered, err)
	}
	gaps, err := history.Gaps(ctx, "shop")
	if err != nil || len(gaps) != 1 || !gaps[0].FromTime.Equal(day(1)) || !gaps[0].ToTime.Equal(day(4)) {
		t.Errorf("gaps are %v, %v", gaps, err)
	}
}
