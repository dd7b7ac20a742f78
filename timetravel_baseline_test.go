package audit_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5"

	"github.com/hindsight-go/audit"
	"github.com/hindsight-go/audit/audittest"
)

// A baseline that was interrupted goes on where it ended, at the moment at which
// it began.
func TestAnInterruptedBaselineGoesOn(t *testing.T) {
	t.Parallel()
	a := audittest.New(t, audit.Config{}, todoTable, "INSERT INTO todo SELECT n, 'task ' || n FROM generate_series(1, 12000) n")
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	err := a.Client.Baseline(ctx, &audit.BaselineOptions{Progress: func(audit.BaselineProgress) { cancel() }})
	if !errors.Is(err, context.Canceled) {
		t.Fatalf("an interrupted baseline: %v", err)
	}
	a.Exec(t, "UPDATE todo SET task = 'changed meanwhile' WHERE id IN (1, 6000, 12000)")
	a.Exec(t, "DELETE FROM todo WHERE id IN (2, 6001)")
	var rows []int64
	err = a.Client.Baseline(t.Context(), &audit.BaselineOptions{Progress: func(p audit.BaselineProgress) { rows = append(rows, p.Rows) }})
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]int64{10000, 12000}, rows); diff != "" {
		t.Errorf("it did not go on where it ended: %s", diff)
	}
	changed := here(t, a)
	a.Exec(t, "TRUNCATE todo")
	n, err := changed.Table("todo").Count(t.Context())
	if n != 11998 || err != nil {
		t.Errorf("%d rows before the truncation, %v", n, err)
	}
	n, err = changed.Table("todo").Where("task = 'changed meanwhile'").Count(t.Context())
	if n != 3 || err != nil {
		t.Errorf("%d rows were changed meanwhile, %v", n, err)
	}
}

// What history knows whole it goes on knowing behind the horizon of retention.
func TestRetentionCarriesKeyframesAlong(t *testing.T) {
	t.Parallel()
	a := audittest.New(t, audit.Config{Retention: 24 * time.Hour}, todoTable, "INSERT INTO todo VALUES (1, 'old'), (2, 'untouched')")
	if err := a.Client.Baseline(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	a.Exec(t, "UPDATE todo SET task = 'new' WHERE id = 1")
	a.Sync(t)
	early := here(t, a)
	// History as if all this had been two months ago.
	a.Exec(t, "SELECT audit.ensure_partition(now() - interval '70 days')")
	a.Exec(t, "UPDATE audit.changes SET committed_at = committed_at - interval '70 days'")
	a.Exec(t, "UPDATE audit.commit_times SET committed_at = committed_at - interval '70 days'")
	if err := audit.KeepPartitions(t.Context(), a.Client); err != nil {
		t.Fatal(err)
	}
	if n := audittest.Value[int](t, a.Database, "SELECT count(*)::int FROM audit.changes"); n != 0 {
		t.Fatalf("retention left %d changes", n)
	}
	a.Exec(t, "DELETE FROM todo WHERE id = 1")
	late := here(t, a)
	a.Exec(t, "TRUNCATE todo")
	var got []pastTodo
	if err := late.Table("todo").List(t.Context(), &got); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]pastTodo{{2, "untouched", false}}, got); diff != "" {
		t.Error(diff)
	}
	if err := early.Table("todo").List(t.Context(), &got); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"new", "untouched"}, []string{got[0].Task, got[1].Task}); diff != "" && got[0].Task != "untouched" {
		t.Error(diff)
	}
	before := a.Client.AtPosition(audit.Position{LSN: 1})
	var refused *audit.HistoryError
	if err := before.Table("todo").List(t.Context(), &got); !errors.As(err, &refused) {
		t.Errorf("before it all: %v", err)
	}
}

// The null of JSON is a value, in a keyframe, too.
func TestBaselineTellsTheNullOfJSONFromNULL(t *testing.T) {
	t.Parallel()
	u := newUndo(t, `CREATE TABLE item (id int PRIMARY KEY, a jsonb, b json, c text); INSERT INTO item VALUES (1, 'null', ' null ', 'null'), (2, NULL, NULL, NULL), (3, '{"x": null}', 'null', ''), (4, 'null', ' null ', 'null')`)
	if err := u.Client.Baseline(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	u.request(t, "rename", "ALTER TABLE item RENAME a TO \"A\"")
	u.Exec(t, "UPDATE item SET b = 'null' WHERE id = 1")
	before := u.state(t)
	u.request(t, "truncate", "TRUNCATE item")
	apply(t, u.Client.RevertRequest("truncate"))
	u.want(t, "after the revert of the truncation", before)
	u.Exec(t, "TRUNCATE item")
	if err := u.Client.Sync(t.Context()); err != nil {
		t.Fatal(err)
	}
	err := u.Client.BeforeRequest("truncate").View(t.Context(), func(tx pgx.Tx) error {
		var n int
		err := tx.QueryRow(t.Context(), `SELECT count(*) FROM item WHERE "A" = 'null' AND b IS NOT NULL AND c = 'null'`).Scan(&n)
		if n != 2 {
			t.Errorf("a View finds %d rows with the null of JSON", n)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}
