package audit_test

import (
	"errors"
	"testing"
	"time"

	"github.com/hindsight-go/audit"
	"github.com/hindsight-go/audit/audittest"
)

// A transaction that commits an hour ahead of the clock hides, from who asks by time,
// all that commits before the hour has passed.
func TestClockJump_TimesInBetweenAreRefused(t *testing.T) {
	t.Parallel()
	db := audittest.NewDatabase(t)
	db.Exec(t, todoTable)
	a := audittest.Open(t, db, audit.Config{})
	mustStart(t, a)
	t.Cleanup(func() { a.Stop(t) })
	db.Exec(t, "INSERT INTO todo VALUES (1, 'one')")
	before := audittest.Value[time.Time](t, db, "SELECT clock_timestamp()")

	// A commit record takes its time from the origin that it is replayed from.
	ahead := jump(t, db, "INSERT INTO todo VALUES (2, 'from the future')", time.Hour)
	db.Exec(t, "INSERT INTO todo SELECT n, 'n' FROM generate_series(3, 8) n")
	within := audittest.Value[time.Time](t, db, "SELECT clock_timestamp()")
	db.Exec(t, "INSERT INTO todo VALUES (9, 'nine')")
	a.Sync(t)

	count := func(p audit.Point) (int64, error) { return p.Table("todo").Count(t.Context()) }
	for name, at := range map[string]time.Time{"within": within, "half an hour": before.Add(30 * time.Minute), "just before": ahead.Add(-time.Microsecond)} {
		var history *audit.HistoryError
		if n, err := count(a.Client.AsOf(at)); !errors.Is(err, audit.ErrClockJumped) || !errors.As(err, &history) {
			t.Errorf("%s: %d rows, %v", name, n, err)
		}
	}
	if n, err := count(a.Client.AsOf(before)); n != 1 || err != nil {
		t.Errorf("before: %d rows, %v", n, err)
	}
	if n, err := count(a.Client.Now()); n != 9 || err != nil {
		t.Errorf("now: %d rows, %v", n, err)
	}
	// The second hour is as good as any: nothing committed in it but this.
	jump(t, db, "INSERT INTO todo VALUES (10, 'ten')", 2*time.Hour)
	jump(t, db, "INSERT INTO todo VALUES (11, 'eleven')", 2*time.Hour+time.Second/2)
	a.Sync(t)
	if _, err := count(a.Client.AsOf(before.Add(90 * time.Minute))); !errors.Is(err, audit.ErrClockJumped) {
		t.Errorf("ninety minutes: %v", err)
	}
}

// jump runs sql in a transaction whose commit time is by ahead of the clock, and returns
// that time.
func jump(t *testing.T, db *audittest.Database, sql string, ahead time.Duration) time.Time {
	t.Helper()
	conn := db.Connect(t)
	origin := "origin_" + db.Name()
	var at time.Time
	if err := conn.QueryRow(t.Context(), "SELECT clock_timestamp() + $1::text::interval", ahead.String()).Scan(&at); err != nil {
		t.Fatal(err)
	}
	for _, do := range []string{
		"SELECT pg_replication_origin_create('" + origin + "')",
		"SELECT pg_replication_origin_session_setup('" + origin + "')",
		"BEGIN", "SELECT pg_replication_origin_xact_setup('0/1', '" + at.Format(time.RFC3339Nano) + "')", sql, "COMMIT",
		"SELECT pg_replication_origin_session_reset()",
		"SELECT pg_replication_origin_drop('" + origin + "')",
	} {
		if _, err := conn.Exec(t.Context(), do); err != nil {
			t.Fatalf("%s: %v", do, err)
		}
	}
	return at
}
