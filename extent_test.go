package audit_test

import (
	"encoding/json"
	"errors"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/hindsight-go/audit"
	"github.com/hindsight-go/audit/audittest"
)

func TestExtent_TellsGapsAndWhatRetentionDropped(t *testing.T) {
	t.Parallel()
	a := audittest.New(t, audit.Config{}, "CREATE TABLE todo (id int PRIMARY KEY)")
	extent := func() audit.Extent {
		t.Helper()
		e, err := a.Client.Extent(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return e
	}
	a.Exec(t, "INSERT INTO todo VALUES (1)")
	a.Sync(t)
	old, err := a.Client.Changes().First(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	e := extent()
	if e.Database != a.Name() || e.Stored < old.Position.LSN || e.Dropped != 0 || !e.DroppedUntil.IsZero() || len(e.Gaps) != 0 || !e.AskedAt.After(old.CreatedAt) {
		t.Errorf("extent %+v, behind the change %s stored at %s", e, old.Position, old.CreatedAt)
	}

	age(t, a, 100)
	a.Exec(t, "SELECT audit.drop_before(now() - interval '40 days')")
	if e = extent(); e.Dropped != old.Position.LSN || e.DroppedUntil.Before(old.CommittedAt.AddDate(0, 0, -100)) || e.DroppedUntil.After(e.AskedAt.AddDate(0, 0, -40)) {
		t.Errorf("retention has dropped %s, and the extent says %s until %s", old.Position, e.Dropped, e.DroppedUntil)
	}

	a.Stop(t)
	here := audittest.Value[audit.LSN](t, a.Database, "SELECT pg_current_wal_insert_lsn()::text")
	from := audittest.Value[audit.LSN](t, a.Database, "SELECT position::text FROM audit.checkpoints")
	a.Exec(t, "SELECT audit.record_gap(database, position, pg_current_wal_insert_lsn(), slot, now(), 'a test') FROM audit.checkpoints")
	e = extent()
	if len(e.Gaps) != 1 || e.Gaps[0].From != from || e.Gaps[0].To < here || e.Gaps[0].Reason != "a test" || e.Stored != e.Gaps[0].To {
		t.Errorf("behind a gap from %s: %+v", from, e)
	}

	text, err := json.Marshal(e)
	if err != nil {
		t.Fatal(err)
	}
	var back audit.Extent
	if err := json.Unmarshal(text, &back); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(e, back); diff != "" {
		t.Errorf("as JSON %s it comes back as another: %s", text, diff)
	}
	if err := a.Client.Start(t.Context()); err != nil { // for the check at the end
		t.Fatal(err)
	}
}

func TestExtent_WithoutHistory(t *testing.T) {
	t.Parallel()
	a := audittest.Open(t, audittest.NewDatabase(t), audit.Config{})
	if _, err := a.Client.Extent(t.Context()); !errors.Is(err, audit.ErrNoHistory) {
		t.Errorf("the error is %v", err)
	}
	a.Client.Close()
	if _, err := a.Client.Extent(t.Context()); !errors.Is(err, audit.ErrClosed) {
		t.Errorf("the error of a closed client is %v", err)
	}
}
