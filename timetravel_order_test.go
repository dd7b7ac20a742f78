package audit_test

import (
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/hindsight-go/audit"
	"github.com/hindsight-go/audit/audittest"
	"github.com/hindsight-go/audit/internal/faulttest"
)

// The same point gives the same, whatever comes: more writes, a restart of
// capture and of the server, retention. Behind the horizon there is no answer.
func TestTheSamePointGivesTheSameForGood(t *testing.T) {
	t.Parallel()
	db := audittest.NewServer(t, audittest.ServerOptions{}).NewDatabase(t)
	db.Exec(t, todoTable+"; INSERT INTO todo SELECT n, 'old' FROM generate_series(1, 20) n; CREATE TABLE log (line text); INSERT INTO log VALUES ('a'), ('a')")
	a := audittest.Open(t, db, audit.Config{})
	mustStart(t, a)
	type answers map[string][]string
	ask := func(p audit.Point) answers {
		all := answers{}
		for _, table := range []string{"todo", "log"} {
			for way, rows := range allWays(t, p, table) {
				all[table+" "+way] = rows
			}
		}
		return all
	}
	var points []audit.Point
	var first []answers
	write := func(n int) {
		a.Exec(t, "UPDATE todo SET task = 'changed ' || $1::int WHERE id % 3 = $1::int % 3", n)
		a.Exec(t, "DELETE FROM todo WHERE id = $1", n)
		a.Exec(t, "INSERT INTO todo VALUES (100 + $1::int, 'new')", n)
		a.Exec(t, "INSERT INTO log VALUES ('a' || $1::int)", n)
		a.Exec(t, "DELETE FROM log WHERE ctid = (SELECT min(ctid) FROM log)")
	}
	keep := func(p audit.Point) {
		points, first = append(points, p), append(first, ask(p))
	}
	check := func(when string) {
		t.Helper()
		for i, p := range points {
			if diff := cmp.Diff(first[i], ask(p)); diff != "" {
				t.Errorf("%s: %s (-first +now):\n%s", when, p, diff)
			}
		}
	}
	for n := range 4 {
		write(n)
		keep(here(t, a))
		keep(a.Client.AsOf(audittest.Value[time.Time](t, db, "SELECT clock_timestamp()")))
		keep(a.Client.AsOf(audittest.Value[time.Time](t, db, "SELECT max(committed_at) FROM audit.changes")))
		keep(a.Client.Before(audittest.Value[time.Time](t, db, "SELECT max(committed_at) FROM audit.changes")))
		keep(a.Client.AsOf(audittest.Value[time.Time](t, db, "SELECT max(committed_at) FROM audit.changes").Add(500 * time.Nanosecond)))
	}
	if _, err := a.Client.Mark(t.Context(), "here"); err != nil {
		t.Fatal(err)
	}
	keep(a.Client.AtMark("here"))
	if diff := cmp.Diff(first[len(first)-1], ask(a.Client.Now())); diff != "" {
		t.Errorf("the mark is not now (-mark +now):\n%s", diff)
	}
	write(7)
	check("more writes")
	a.Stop(t)
	write(8)
	mustStart(t, a)
	check("restart of capture")
	db.Server().StopImmediate(t)
	db.Server().StartAgain(t)
	syncAgain(t, a)
	for range 20 { // the connections of before end with an error
		_, _ = a.Client.Now().Table("todo").Where("true").Count(t.Context())
	}
	check("restart of the server")
	again := audittest.Open(t, db, audit.Config{})
	for i, p := range points[:4] {
		_ = p
		points[i] = again.Client.AtPosition(must(resolved(t.Context(), points[i])))
	}
	mustStart(t, a)
	check("another client")

	// Everything until now is dropped, as if it were of long ago.
	horizon := here(t, a)
	past := slices.Clone(points)
	for _, p := range points {
		past = append(past, a.Client.AtPosition(must(resolved(t.Context(), p))))
	}
	a.Sync(t)
	db.Exec(t, "SELECT audit.drop_before(now() + interval '10 years')")
	db.Exec(t, "SELECT audit.ensure_partition(now())")
	fresh := audittest.Open(t, db, audit.Config{})
	db.Exec(t, "UPDATE todo SET task = 'behind the horizon' WHERE id = 4")
	faulttest.Poll(t, faulttest.Patience, "history behind the horizon", func() error { return fresh.Client.WaitFor(t.Context(), must(fresh.Client.Token(t.Context()))) })
	for i, p := range past {
		if i%5 == 0 {
			wantRefused(t, p, "todo", audit.ErrPastRetention)
		}
	}
	want := ask(a.Client.AtPosition(must(resolved(t.Context(), horizon))))
	db.Exec(t, "DELETE FROM todo")
	if diff := cmp.Diff(want, ask(fresh.Client.AtPosition(must(resolved(t.Context(), horizon))))); diff != "" {
		t.Errorf("at the horizon (-first +now):\n%s", diff)
	}
}

// Of two times the later one sees what the earlier one sees, and each commit is
// seen from its own time on, to the microsecond.
func TestTimesAreInOrder(t *testing.T) {
	t.Parallel()
	a := audittest.New(t, audit.Config{}, "CREATE TABLE line (id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, n int)")
	var group workers
	for n := range 4 {
		conn := a.Connect(t)
		group.Go(func() error {
			for range 25 {
				if _, err := conn.Exec(t.Context(), "INSERT INTO line (n) VALUES ($1)", n); err != nil {
					return err
				}
			}
			return nil
		})
	}
	if err := group.Wait(); err != nil {
		t.Fatal(err)
	}
	a.Sync(t)
	times := audittest.Value[[]time.Time](t, a.Database, "SELECT array_agg(committed_at ORDER BY committed_at) FROM audit.changes")
	before := int64(-1)
	var position audit.Position
	for i, at := range times {
		if i%7 != 0 {
			continue
		}
		var c audit.Completeness
		n, err := a.Client.AsOf(at).Report(&c).Table("line").Count(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if n < before || c.Position.LSN < position.LSN {
			t.Errorf("%s sees %d rows up to %s, the time before it %d up to %s", at, n, c.Position, before, position)
		}
		before, position = n, c.Position
		// The running maximum decides: those behind a later commit are not seen.
		want := audittest.Value[int64](t, a.Database, `SELECT count(*) FROM (SELECT max(committed_at) OVER (ORDER BY position) AS m FROM audit.changes) c WHERE m <= $1`, at)
		if n != want {
			t.Errorf("%s sees %d rows, want %d", at, n, want)
		}
		just, err := a.Client.Before(at).Table("line").Count(t.Context())
		want = audittest.Value[int64](t, a.Database, `SELECT count(*) FROM (SELECT max(committed_at) OVER (ORDER BY position) AS m FROM audit.changes) c WHERE m < $1`, at)
		if err != nil || just != want {
			t.Errorf("just before %s: %d rows, %v, want %d", at, just, err, want)
		}
		between, err := a.Client.Before(at.Add(300 * time.Nanosecond)).Table("line").Count(t.Context())
		if err != nil || between != n {
			t.Errorf("between microseconds: %d rows, %v, want %d", between, err, n)
		}
	}
}
