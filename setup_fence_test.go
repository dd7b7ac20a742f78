package audit_test

import (
	"bytes"
	"errors"
	"sync"
	"testing"
	"time"

	"github.com/hindsight-go/audit"
	"github.com/hindsight-go/audit/audittest"
	"github.com/hindsight-go/audit/internal/faulttest"
	"github.com/hindsight-go/audit/store"
)

// endSetup ends the sessions that hold the lock on setting up, as a server does whose client
// says nothing for long. The client finds out when it uses the session again.
func endSetup(t *testing.T, store *audittest.Database) {
	t.Helper()
	faulttest.Poll(t, faulttest.Patience, "a session holds the lock on setting up", func() error {
		if audittest.Value[int](t, store, "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE application_name = 'audit setup' AND datname = current_database()") == 0 {
			return errors.New("none does")
		}
		return nil
	})
	faulttest.Poll(t, faulttest.Patience, "it has ended", func() error {
		if audittest.Value[bool](t, store, "SELECT EXISTS (SELECT FROM pg_stat_activity WHERE application_name = 'audit setup' AND datname = current_database())") {
			return errors.New("it has not")
		}
		return nil
	})
}

// An instance that has lost the lock on setting up, and does not know, publishes a table and
// stands still. Another one takes the table out meanwhile. The first must not say that the
// table is covered.
func TestSetupFence_LoserOfTheLockCoversNothing(t *testing.T) {
	t.Parallel()
	db := audittest.NewDatabase(t)
	db.Exec(t, gapTable)
	history := audittest.NewDatabase(t)
	proxy := faulttest.NewProxy(t, db.URL())
	loser := openClient(t, audit.Config{SourceURL: proxy.URL(), StoreURL: history.URL(), Tables: []string{"public.*"}, RefreshInterval: -1})
	if err := loser.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	db.Exec(t, "CREATE TABLE late (id int PRIMARY KEY)")
	// It stands still behind its last look at the tables.
	joined, release := make(chan struct{}), make(chan struct{})
	next, once := [][]byte{[]byte("ALTER PUBLICATION\x00"), []byte("COMMIT\x00"), []byte("late")}, sync.Once{}
	var mu sync.Mutex
	proxy.Rewrite(func(answer []byte) {
		if len(answer) == 0 || answer[0] == 'd' { // the stream
			return
		}
		mu.Lock()
		wait := len(next) == 0
		if !wait && bytes.Contains(answer, next[0]) {
			next = next[1:]
		}
		mu.Unlock()
		if wait {
			once.Do(func() { close(joined); <-release })
		}
	})
	refreshed := make(chan error, 1)
	go func() { refreshed <- loser.Refresh(t.Context()) }()
	<-joined
	endSetup(t, history)
	other := openClient(t, audit.Config{SourceURL: db.URL(), StoreURL: history.URL(), Tables: []string{"public.*", "!public.late"}, RefreshInterval: -1})
	if err := other.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	close(release)
	if err := <-refreshed; err == nil {
		t.Error("the loser's Refresh returned nil")
	}
	if audittest.Value[bool](t, db, "SELECT EXISTS (SELECT FROM pg_publication_tables WHERE tablename = 'late')") {
		t.Fatal("the table is published: this test shows nothing")
	}
	if audittest.Value[bool](t, history, `SELECT EXISTS (SELECT FROM audit.coverage WHERE "table" = 'late' AND until_position IS NULL)`) {
		t.Error("a table that is not published is covered")
	}
	// Who sets up next, sets it right.
	if err := loser.Refresh(t.Context()); err != nil {
		t.Fatal(err)
	}
	if !audittest.Value[bool](t, history, `SELECT EXISTS (SELECT FROM audit.coverage WHERE "table" = 'late' AND until_position IS NULL)`) {
		t.Error("the table did not join with the next refresh")
	}
}

// Whatever is said of coverage, the store refuses it from an instance that another one has
// followed; also when the first has come back since.
func TestSetupFence_StoreRefusesTheOneBefore(t *testing.T) {
	t.Parallel()
	ctx, db := t.Context(), audittest.NewDatabase(t)
	a, b := bareStore(t, db), bareStore(t, db)
	lock := func(of *store.Store) (store.SetupHolder, func()) {
		t.Helper()
		_, holder, release, err := of.LockSetup(ctx, "shop", faulttest.Patience, func(*store.SetupLockedError) {})
		if err != nil {
			t.Fatal(err)
		}
		release = sync.OnceFunc(release)
		t.Cleanup(release)
		return holder, release
	}
	now := time.Now()
	if err := a.CreateCheckpoint(ctx, store.Checkpoint{Database: "shop", Slot: "s", SystemIdentifier: "1", Timeline: 1, Position: 100}, now); err != nil {
		t.Fatal(err)
	}
	table := store.Coverage{Schema: "public", Table: "todo", From: 100, FromTime: now, RelationID: 7, Membership: "1"}
	claims := map[string]func(store.SetupHolder) error{
		"open": func(by store.SetupHolder) error {
			return a.OpenCoverage(ctx, by, store.Coverage{Schema: "public", Table: "late", From: 100, FromTime: now, RelationID: 8})
		},
		"membership": func(by store.SetupHolder) error { return a.SetMembership(ctx, by, 7, "2") },
		"verified":   func(by store.SetupHolder) error { return a.SetVerified(ctx, by, 500) },
		"identities": func(by store.SetupHolder) error { return a.ForgetIdentities(ctx, by, map[uint32]string{7: "d"}) },
		"close":      func(by store.SetupHolder) error { return a.CloseCoverage(ctx, by, 7, 200, now) },
	}
	first, release := lock(a)
	if err := errors.Join(a.OpenCoverage(ctx, first, table), a.RememberIdentities(ctx, "shop", map[uint32]string{7: "d"})); err != nil {
		t.Fatal(err)
	}
	release()
	again, release := lock(a)
	if again != first {
		t.Error("nobody came in between, and the holder is another")
	}
	endSetup(t, db) // and a does not know
	other, releaseOther := lock(b)
	state := func() string {
		return audittest.Value[string](t, db, `
			SELECT coalesce(string_agg(c::text, ' '), '-') || (SELECT coalesce(string_agg(i::text, ''), '-') FROM audit.replica_identities i) || (SELECT coalesce(verified::text, '-') FROM audit.checkpoints) FROM audit.coverage c`)
	}
	before := state()
	refused := func() {
		t.Helper()
		for name, claim := range claims {
			if err := claim(first); !errors.Is(err, store.ErrSetupTaken) {
				t.Errorf("%s: %v, want ErrSetupTaken", name, err)
			}
		}
		if now := state(); now != before {
			t.Errorf("the store has\n%s\nwant\n%s", now, before)
		}
	}
	refused()
	release()
	releaseOther()
	refused()
	back, _ := lock(a)
	if back == first || back == other {
		t.Error("who comes back is who it was")
	}
	refused()
	for name, claim := range claims {
		if err := claim(back); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// A claim that is being written when the next instance comes is there before that looks.
func TestSetupFence_NextWaitsForWhatIsBeingWritten(t *testing.T) {
	t.Parallel()
	ctx, db := t.Context(), audittest.NewDatabase(t)
	a, b := bareStore(t, db), bareStore(t, db)
	_, first, release, err := a.LockSetup(ctx, "shop", faulttest.Patience, func(*store.SetupLockedError) {})
	if err != nil {
		t.Fatal(err)
	}
	defer release()
	writing := faulttest.Connect(t, db.URL())
	// As a session of the first that the server has not finished yet.
	if _, err := writing.Exec(ctx, "BEGIN; SELECT FROM audit.setup_holders WHERE database = 'shop' FOR SHARE"); err != nil {
		t.Fatal(err)
	}
	endSetup(t, db)
	taken := make(chan error, 1)
	go func() {
		_, _, release, err := b.LockSetup(ctx, "shop", faulttest.Patience, func(*store.SetupLockedError) {})
		if err == nil {
			release()
		}
		taken <- err
	}()
	faulttest.Poll(t, faulttest.Patience, "the next waits", func() error {
		if !audittest.Value[bool](t, db, "SELECT EXISTS (SELECT FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query LIKE '%take_setup%')") {
			return errors.New("it does not")
		}
		return nil
	})
	if err := a.SetVerified(ctx, first, 500); err != nil {
		t.Errorf("before the next has come: %v", err)
	}
	if _, err := writing.Exec(ctx, "COMMIT"); err != nil {
		t.Fatal(err)
	}
	if err := <-taken; err != nil {
		t.Fatal(err)
	}
	if err := a.SetVerified(ctx, first, 600); !errors.Is(err, store.ErrSetupTaken) {
		t.Errorf("after it: %v, want ErrSetupTaken", err)
	}
}
