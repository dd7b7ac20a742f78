package audit_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/hindsight-go/audit"
	"github.com/hindsight-go/audit/audittest"
	"github.com/hindsight-go/audit/internal/faulttest"
)

// waysToAsk are the questions about a table, each by the way it is answered.
func waysToAsk(ctx context.Context, p audit.Point, table string, id int) map[string]func() (int64, error) {
	return map[string]func() (int64, error){
		"list":  func() (int64, error) { return p.Table(table).Count(ctx) },
		"where": func() (int64, error) { return p.Table(table).Where("true").Count(ctx) },
		"view": func() (n int64, err error) {
			err = p.View(ctx, func(tx pgx.Tx) error {
				n, err = scan(ctx, tx, "SELECT count(*) FROM "+table)
				return err
			})
			return n, err
		},
		"row": func() (int64, error) {
			_, err := p.Row(ctx, table, id)
			if errors.Is(err, audit.ErrNoRow) {
				return 0, nil
			}
			return 1, err
		},
	}
}

// wantRefused checks that no question about the table is answered, for one of the
// reasons, and that the nearest moment that is named has an answer.
func wantRefused(t *testing.T, p audit.Point, table string, reasons ...error) {
	t.Helper()
	for way, ask := range waysToAsk(t.Context(), p, table, 1) {
		n, err := ask()
		refusedFor := false
		for _, reason := range reasons {
			refusedFor = refusedFor || errors.Is(err, reason)
		}
		if !refusedFor {
			t.Errorf("%s as of %s: %d, %v, want %v", way, p, n, err, reasons)
			continue
		}
		var history *audit.HistoryError
		if !errors.As(err, &history) {
			t.Errorf("%s: %T is no *HistoryError", way, err)
			continue
		}
		if history.Asked == "" {
			t.Errorf("%s: the error does not say what was asked: %v", way, err)
		}
	}
}

// wantCount checks that all questions are answered: n rows, and that of id there
// or not.
func wantCount(t *testing.T, p audit.Point, table string, n int64, id int, there bool) {
	t.Helper()
	for way, ask := range waysToAsk(t.Context(), p, table, id) {
		want := n
		if way == "row" {
			want = map[bool]int64{true: 1}[there]
		}
		if got, err := ask(); err != nil || got != want {
			t.Errorf("%s as of %s: %d, %v, want %d", way, p, got, err, want)
		}
	}
}

// earliest is the moment that an error names.
func earliest(t *testing.T, a *audittest.Audited, err error) audit.Point {
	t.Helper()
	var history *audit.HistoryError
	if !errors.As(err, &history) || history.Earliest.IsZero() {
		t.Fatalf("%v names no moment", err)
	}
	return a.Client.AtPosition(history.Earliest)
}

func TestBeforeTheTableWasTracked(t *testing.T) {
	t.Parallel()
	db := audittest.NewDatabase(t)
	db.Exec(t, todoTable+"; INSERT INTO todo VALUES (1, 'old')")
	started := audittest.Value[time.Time](t, db, "SELECT clock_timestamp()")
	position := must(audit.ParsePosition(audittest.Value[string](t, db, "SELECT pg_current_wal_insert_lsn()::text")))
	db.Exec(t, "UPDATE todo SET task = 'before'; INSERT INTO todo VALUES (7, 'before')")
	a := audittest.Open(t, db, audit.Config{})
	if _, err := a.Client.Now().Table("todo").Count(t.Context()); !errors.Is(err, audit.ErrNoHistory) {
		t.Errorf("before anything was set up: %v", err)
	}
	mustStart(t, a)
	db.Exec(t, "UPDATE todo SET task = 'new'; INSERT INTO todo VALUES (2, 'new')")
	a.Sync(t)
	for _, p := range []audit.Point{a.Client.AsOf(started), a.Client.AtPosition(position), a.Client.AsOf(started.Add(-time.Hour)), a.Client.Before(started)} {
		wantRefused(t, p, "todo", audit.ErrBeforeHistory)
		_, err := p.Table("todo").Count(t.Context())
		if err != nil {
			wantCount(t, earliest(t, a, err), "todo", 2, 2, false)
		}
	}
	// A table made later was not there, and is not told to have been empty.
	between := here(t, a)
	db.Exec(t, "CREATE TABLE other (id int PRIMARY KEY)")
	if err := a.Client.Refresh(t.Context()); err != nil {
		t.Fatal(err)
	}
	db.Exec(t, "INSERT INTO other VALUES (1)")
	wantRefused(t, between, "other", audit.ErrBeforeHistory)
	wantCount(t, a.Client.Now(), "other", 1, 1, true)
	wantCount(t, between, "todo", 3, 2, true)
}

func TestTheFutureIsNotAnswered(t *testing.T) {
	t.Parallel()
	a := audittest.New(t, audit.Config{}, todoTable)
	a.Exec(t, "INSERT INTO todo VALUES (1, 'x')")
	here := must(audit.ParsePosition(audittest.Value[string](t, a.Database, "SELECT (pg_current_wal_insert_lsn() + 1000000)::text")))
	for _, p := range []audit.Point{a.Client.AsOf(time.Now().Add(time.Hour)), a.Client.Before(time.Now().Add(time.Hour)), a.Client.AtPosition(here)} {
		wantRefused(t, p, "todo", audit.ErrFuture)
	}
	if err := a.Client.WaitFor(t.Context(), audit.Token(here.LSN.String())); !errors.Is(err, audit.ErrFuture) {
		t.Errorf("a token of the future: %v", err)
	}
	var wrong *audit.PointError
	for _, token := range []audit.Token{"x", "0/", "1", "0/1/2", "-1/0"} {
		if err := a.Client.WaitFor(t.Context(), token); !errors.As(err, &wrong) {
			t.Errorf("the token %q: %v", token, err)
		}
	}
	for _, p := range []audit.Point{{}, a.Client.AtMark("none"), a.Client.AtMark(""), a.Client.BeforeRequest("none"), a.Client.AfterTransaction(1), a.Client.AsOf(time.Time{})} {
		if _, err := p.Table("todo").Count(t.Context()); !errors.As(err, &wrong) && !errors.Is(err, audit.ErrNoDefaultClient) {
			t.Errorf("%s: %v", p, err)
		}
	}
}

func TestTablesThatAreNotTracked(t *testing.T) {
	t.Parallel()
	a := audittest.New(t, audit.Config{Tables: []string{"public.todo"}}, todoTable, "CREATE TABLE other (id int PRIMARY KEY); INSERT INTO other VALUES (1)")
	a.Exec(t, "INSERT INTO todo VALUES (1, 'x')")
	p := here(t, a)
	for way, ask := range waysToAsk(t.Context(), p, "other", 1) {
		if n, err := ask(); !errors.Is(err, audit.ErrNotTracked) && way != "view" {
			t.Errorf("%s: %d, %v", way, n, err)
		} else if err == nil {
			t.Errorf("%s: the present was read", way)
		}
	}
	for way, ask := range waysToAsk(t.Context(), p, "nowhere", 1) {
		if n, err := ask(); err == nil {
			t.Errorf("%s of a table that nobody knows: %d", way, n)
		}
	}
	var n int64
	err := p.WithLive("other").View(t.Context(), func(tx pgx.Tx) (err error) {
		n, err = scan(t.Context(), tx, "SELECT count(*) FROM todo CROSS JOIN other")
		return err
	})
	if err != nil || n != 1 {
		t.Errorf("WithLive: %d, %v", n, err)
	}
}

// Nobody captures, and the tables go on: that may not be taken for the past.
func TestCaptureHasStopped(t *testing.T) {
	t.Parallel()
	db := audittest.NewDatabase(t)
	db.Exec(t, todoTable+"; INSERT INTO todo VALUES (1, 'old'), (2, 'old')")
	a := audittest.Open(t, db, audit.Config{})
	mustStart(t, a)
	db.Exec(t, "UPDATE todo SET task = 'new' WHERE id = 1")
	then := here(t, a)
	a.Sync(t) // the store holds everything up to then
	a.Stop(t)
	db.Exec(t, "UPDATE todo SET task = 'newest'; DELETE FROM todo WHERE id = 2; INSERT INTO todo VALUES (3, 'newest')")
	ctx, cancel := context.WithTimeout(t.Context(), faulttest.Patience)
	defer cancel()
	for name, p := range map[string]audit.Point{"now": a.Client.Now(), "then": then, "by time": a.Client.AsOf(time.Now())} {
		for way, ask := range waysToAsk(ctx, p, "todo", 2) {
			if name != "then" && way != "row" {
				continue // each takes a while
			}
			n, err := ask()
			switch {
			case errors.Is(err, audit.ErrNotCaptured):
			case err == nil && name == "then" && (n == 2 || way == "row" && n == 1):
			default:
				t.Errorf("%s of %s: %d, %v", way, name, n, err)
			}
		}
	}
	if row, err := then.Row(ctx, "todo", 1); err != nil || row["task"] != "new" {
		t.Errorf("what history knows by itself: %v, %v", row, err)
	}
	if ctx.Err() != nil {
		t.Error("the questions waited until their context ended")
	}
	token := must(a.Client.Token(t.Context()))
	if err := a.Client.WaitFor(ctx, token); !errors.Is(err, audit.ErrNotCaptured) {
		t.Errorf("WaitFor: %v", err)
	}
	mustStart(t, a)
	if err := a.Client.WaitFor(t.Context(), token); err != nil {
		t.Error(err)
	}
	wantCount(t, then, "todo", 2, 2, true)
	wantCount(t, a.Client.Now(), "todo", 2, 2, false)
}

func TestAcrossAGap(t *testing.T) {
	t.Parallel()
	db := audittest.NewDatabase(t)
	db.Exec(t, todoTable+"; INSERT INTO todo VALUES (1, 'old'), (2, 'old'), (9, 'old'); CREATE TABLE quiet (id int PRIMARY KEY); INSERT INTO quiet VALUES (1)")
	a := audittest.Open(t, db, audit.Config{})
	mustStart(t, a)
	db.Exec(t, "UPDATE todo SET task = 'new' WHERE id = 1")
	then := here(t, a)
	thenTime := audittest.Value[time.Time](t, db, "SELECT clock_timestamp()")
	a.Sync(t)
	a.Stop(t)
	waitInactive(t, db)
	db.Exec(t, "SELECT pg_drop_replication_slot($1)", slotOf(db))
	db.Exec(t, "UPDATE todo SET task = 'lost'; DELETE FROM todo WHERE id = 2")
	within := audittest.Value[time.Time](t, db, "SELECT clock_timestamp()")
	withinAt := must(audit.ParsePosition(audittest.Value[string](t, db, "SELECT pg_current_wal_insert_lsn()::text")))
	db.Exec(t, "INSERT INTO todo VALUES (3, 'lost')")
	mustStart(t, a)
	db.Exec(t, "INSERT INTO todo VALUES (4, 'behind'); UPDATE todo SET task = 'behind' WHERE id = 9")
	a.Sync(t)
	for name, p := range map[string]audit.Point{"before": then, "before, by time": a.Client.AsOf(thenTime), "within": a.Client.AsOf(within), "within, by position": a.Client.AtPosition(withinAt)} {
		for way, ask := range waysToAsk(t.Context(), p, "todo", 2) {
			n, err := ask()
			if !errors.Is(err, audit.ErrInGap) {
				t.Errorf("%s, %s: %d, %v", name, way, n, err)
			} else if way == "list" {
				wantCount(t, earliest(t, a, err), "todo", 3, 9, true)
			}
		}
		if _, err := p.Row(t.Context(), "todo", 9); !errors.Is(err, audit.ErrInGap) {
			t.Errorf("%s: row 9, changed behind the gap: %v", name, err)
		}
		var c audit.Completeness
		if _, err := p.Report(&c).Table("todo").Count(t.Context()); err == nil || len(c.Gaps) != 1 || c.CoveredFrom.LSN < c.Gaps[0].To && name != "before" && name != "before, by time" {
			t.Errorf("%s: the report is %+v", name, c)
		}
	}
	if row, err := then.Row(t.Context(), "todo", 1); err != nil || row["task"] != "new" {
		t.Errorf("what history knows from before the gap: %v, %v", row, err)
	}
	if row, err := a.Client.AsOf(within).Row(t.Context(), "todo", 1); !errors.Is(err, audit.ErrInGap) {
		t.Errorf("what may have changed in the gap: %v, %v", row, err)
	}
	wantCount(t, a.Client.Now(), "todo", 4, 2, false)
}

// A table leaves the publication, is written to, and comes back.
func TestATableThatWasAwayForAWhile(t *testing.T) {
	t.Parallel()
	a := audittest.New(t, audit.Config{RefreshInterval: -1}, todoTable, "INSERT INTO todo VALUES (1, 'old'), (2, 'old'), (9, 'old')")
	a.Exec(t, "UPDATE todo SET task = 'new' WHERE id = 1")
	then := here(t, a)
	a.Exec(t, "ALTER PUBLICATION audit DROP TABLE todo")
	a.Exec(t, "UPDATE todo SET task = 'lost'; DELETE FROM todo WHERE id = 2; INSERT INTO todo VALUES (3, 'lost')")
	within := must(audit.ParsePosition(audittest.Value[string](t, a.Database, "SELECT pg_current_wal_insert_lsn()::text")))
	if err := a.Client.Refresh(t.Context()); err != nil {
		t.Fatal(err)
	}
	back := here(t, a)
	a.Exec(t, "INSERT INTO todo VALUES (4, 'behind'); UPDATE todo SET task = 'behind' WHERE id = 9")
	a.Sync(t)
	for name, p := range map[string]audit.Point{"before": then, "within": a.Client.AtPosition(within)} {
		for way, ask := range waysToAsk(t.Context(), p, "todo", 2) {
			var history *audit.HistoryError
			if n, err := ask(); !errors.As(err, &history) {
				t.Errorf("%s, %s: %d, %v", name, way, n, err)
			}
		}
		if row, err := p.Row(t.Context(), "todo", 9); err == nil {
			t.Errorf("%s: row 9, changed behind: %v", name, row)
		}
	}
	wantCount(t, back, "todo", 3, 2, false)
	wantCount(t, a.Client.Now(), "todo", 4, 4, true)
}

func TestTablesThatWereDroppedOrTruncated(t *testing.T) {
	t.Parallel()
	a := audittest.New(t, audit.Config{}, todoTable, "INSERT INTO todo VALUES (1, 'old'), (2, 'old')", "CREATE TABLE gone (id int PRIMARY KEY); INSERT INTO gone VALUES (1), (2)",
		"CREATE TABLE emptied (id int PRIMARY KEY)")
	a.Exec(t, "UPDATE todo SET task = 'new' WHERE id = 1; INSERT INTO gone VALUES (3); INSERT INTO emptied VALUES (1)")
	then := here(t, a)
	a.Exec(t, "TRUNCATE todo, emptied, gone; INSERT INTO todo VALUES (5, 'behind'); INSERT INTO gone VALUES (4), (5)")
	between := here(t, a)
	a.Exec(t, "DELETE FROM gone WHERE id = 4; DROP TABLE gone; UPDATE todo SET task = 'last'; TRUNCATE todo; INSERT INTO todo VALUES (6, 'last')")
	a.Sync(t)
	for _, p := range []audit.Point{then} {
		for way, ask := range waysToAsk(t.Context(), p, "todo", 2) {
			n, err := ask()
			if !errors.Is(err, audit.ErrIncomplete) {
				t.Errorf("%s of a truncated table: %d, %v", way, n, err)
			} else {
				wantCount(t, earliest(t, a, err), "todo", 1, 5, true)
			}
		}
		if row, err := p.Row(t.Context(), "todo", 1); err != nil || row["task"] != "new" {
			t.Errorf("a row that history knows: %v, %v", row, err)
		}
		if row, err := p.Row(t.Context(), "gone", 3); err != nil || row["id"] != int32(3) {
			t.Errorf("a row of a dropped table: %v, %v", row, err)
		}
		if row, err := p.Row(t.Context(), "gone", 2); !errors.Is(err, audit.ErrIncomplete) {
			t.Errorf("a row of a dropped table that history does not know: %v, %v", row, err)
		}
	}
	wantCount(t, between, "todo", 1, 5, true)
	wantCount(t, between, "emptied", 0, 1, false)
	// Since it was truncated, all of a dropped table is in history.
	wantCount(t, between, "gone", 2, 4, true)
	for way, ask := range waysToAsk(t.Context(), a.Client.Now(), "gone", 5) {
		if n, err := ask(); err == nil {
			t.Errorf("%s of a dropped table, now: %d", way, n)
		}
	}
}

func resolved(ctx context.Context, p audit.Point) (audit.Position, error) {
	c, err := p.Resolve(ctx)
	return c.Position, err
}

// A program that has just written reads its write.
func TestReadYourWrites(t *testing.T) {
	t.Parallel()
	a := audittest.New(t, audit.Config{}, todoTable)
	reader := audittest.Open(t, a.Database, audit.Config{})
	for n := range 20 {
		a.Exec(t, "INSERT INTO todo VALUES ($1, 'x')", n)
		token := must(a.Client.Token(t.Context()))
		if err := reader.Client.WaitFor(t.Context(), token); err != nil {
			t.Fatal(err)
		}
		if got := audittest.Value[int](t, a.Database, "SELECT count(*) FROM audit.changes"); got != n+1 {
			t.Fatalf("behind the token of write %d history has %d changes", n, got)
		}
		var c audit.Completeness
		rows, err := reader.Client.Now().Report(&c).Table("todo").Count(t.Context())
		if err != nil || rows != int64(n+1) || c.Position.IsZero() || c.CoveredFrom.IsZero() || c.CoveredTo.LSN < c.Position.LSN && c.Lag == 0 {
			t.Fatalf("now: %d rows, %v, %+v", rows, err, c)
		}
	}
}
