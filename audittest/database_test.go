package audittest_test

import (
	"context"
	"errors"
	"regexp"
	"strconv"
	"sync"
	"testing"

	"github.com/jackc/pglogrepl"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/hindsight-go/audit/audittest"
)

func TestDatabasesAreIsolated(t *testing.T) {
	t.Parallel()
	var (
		mu    sync.Mutex
		names = map[string]bool{}
	)
	t.Run("group", func(t *testing.T) {
		for i := range 8 {
			t.Run(strconv.Itoa(i), func(t *testing.T) {
				t.Parallel()
				db := audittest.NewDatabase(t)
				db.Exec(t, "CREATE TABLE mine (n int); INSERT INTO mine VALUES (1), (2)")
				db.Exec(t, "INSERT INTO mine VALUES ($1)", i)
				if n := audittest.Value[int](t, db, "SELECT count(*) FROM mine"); n != 3 {
					t.Errorf("%d rows, want 3", n)
				}
				if name := audittest.Value[string](t, db, "SELECT current_database()"); name != db.Name() {
					t.Errorf("connected to %s, want %s", name, db.Name())
				}
				mu.Lock()
				defer mu.Unlock()
				names[db.Name()] = true
			})
		}
	})
	if len(names) != 8 {
		t.Errorf("%d different names, want 8", len(names))
	}
	witness := audittest.NewDatabase(t)
	for name := range names {
		// Slot names are made of it, and they allow nothing else.
		if !regexp.MustCompile(`^[a-z0-9_]{1,50}$`).MatchString(name) {
			t.Errorf("the name %q does not make a slot name", name)
		}
		if exists(t, witness, name) {
			t.Errorf("%s outlives its test", name)
		}
	}
}

func exists(t *testing.T, witness *audittest.Database, name string) bool {
	t.Helper()
	return audittest.Value[bool](t, witness, "SELECT EXISTS (SELECT FROM pg_database WHERE datname = $1)", name)
}

func slots(t *testing.T, witness *audittest.Database, database string) int {
	t.Helper()
	return audittest.Value[int](t, witness, "SELECT count(*) FROM pg_replication_slots WHERE database = $1", database)
}

// replicate streams from a slot until its session is ended, and says so. Again
// tells whether to make a new session then, as a capture does that has lost its
// server.
func replicate(ctx context.Context, url, slot string, started func(), again bool) error {
	for {
		err := replicateOnce(ctx, url, slot, started)
		var pgErr *pgconn.PgError
		ok := errors.As(err, &pgErr)
		if !again || ok && pgErr.Code == "3D000" || ok && pgErr.Code == "55000" {
			return err // The database takes no sessions any more, or is gone.
		}
	}
}

func replicateOnce(ctx context.Context, url, slot string, started func()) error {
	conn, err := pgconn.Connect(ctx, url+"&replication=database")
	if err != nil {
		return err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	err = pglogrepl.StartReplication(ctx, conn, slot, 0, pglogrepl.StartReplicationOptions{
		PluginArgs: []string{"proto_version '1'", "publication_names 'p'"},
	})
	if err != nil {
		return err
	}
	started()
	for {
		message, err := conn.ReceiveMessage(ctx)
		if err != nil {
			return err
		}
		_ = message
	}
}

func TestDropsWithAnActiveSlot(t *testing.T) {
	t.Parallel()
	for name, again := range map[string]bool{"once": false, "reconnecting": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var (
				dropped string
				ended   = make(chan error, 1)
			)
			t.Run("inner", func(t *testing.T) {
				db := audittest.NewDatabase(t)
				dropped = db.Name()
				db.Exec(t, "CREATE PUBLICATION p FOR ALL TABLES")
				for _, slot := range []string{"_active", "_idle"} {
					db.Exec(t, "SELECT pg_create_logical_replication_slot($1, 'pgoutput')", db.Name()+slot)
				}
				var once sync.Once
				streaming := make(chan struct{})
				ctx := context.WithoutCancel(t.Context()) // It must be the drop that ends it.
				go func() {
					ended <- replicate(ctx, db.URL(), db.Name()+"_active", func() { once.Do(func() { close(streaming) }) }, again)
				}()
				select {
				case <-streaming:
				case err := <-ended:
					t.Fatalf("replicate: %v", err)
				}
				// A session in a transaction is in the way, too.
				conn := db.Connect(t)
				if _, err := conn.Exec(t.Context(), "BEGIN; CREATE TABLE half_done (n int)"); err != nil {
					t.Fatal(err)
				}
			})
			if err := <-ended; err == nil {
				t.Error("the replication session was not ended")
			}
			witness := audittest.NewDatabase(t)
			if exists(t, witness, dropped) {
				t.Error("the database is still there")
			}
			if n := slots(t, witness, dropped); n != 0 {
				t.Errorf("%d slots are still there", n)
			}
		})
	}
}

// New client code is to be stopped by a cleanup function of its own, before
// the database is dropped.
func TestCleanupsOfTheTestRunBeforeTheDrop(t *testing.T) {
	t.Parallel()
	t.Run("inner", func(t *testing.T) {
		db := audittest.NewDatabase(t)
		t.Cleanup(func() {
			if audittest.Value[int](t, db, "SELECT 1") != 1 {
				t.Error("the database does not answer")
			}
		})
	})
}

func TestDatabaseThatTheTestDropped(t *testing.T) {
	t.Parallel()
	witness := audittest.NewDatabase(t)
	t.Run("inner", func(t *testing.T) {
		db := witness.Server().NewDatabase(t)
		witness.Exec(t, "DROP DATABASE "+pgx.Identifier{db.Name()}.Sanitize())
	})
}

func TestCloseTwice(t *testing.T) {
	t.Parallel()
	db := audittest.NewDatabase(t)
	witness := audittest.NewDatabase(t)
	for range 2 {
		if err := db.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if exists(t, witness, db.Name()) {
		t.Error("the database is still there")
	}
}

func TestFailuresFailTheTest(t *testing.T) {
	t.Parallel()
	db := audittest.NewDatabase(t)
	for name, do := range map[string]func(testing.TB){
		"Exec":          func(t testing.TB) { db.Exec(t, "SELECT 1; SELEC 2") },
		"Exec args":     func(t testing.TB) { db.Exec(t, "SELECT $1::int", "x") },
		"Value none":    func(t testing.TB) { audittest.Value[int](t, db, "SELECT 1 WHERE false") },
		"Value many":    func(t testing.TB) { audittest.Value[int](t, db, "SELECT generate_series(1, 2)") },
		"Value type":    func(t testing.TB) { audittest.Value[int](t, db, "SELECT 'x'") },
		"Restart":       func(t testing.TB) { db.Server().Restart(t) },
		"StopImmediate": func(t testing.TB) { db.Server().StopImmediate(t) },
	} {
		if !fails(t, do) {
			t.Errorf("%s: the test did not fail", name)
		}
	}
	if audittest.Value[int](t, db, "SELECT 1") != 1 {
		t.Error("the session is of no use after a failure")
	}
}

// recorder is a test of which it is noted that it failed.
type recorder struct {
	testing.TB
	failed bool
}

func (r *recorder) Fatalf(string, ...any) {
	r.failed = true
	panic(r)
}

// fails says whether a function fails the test that it is given.
func fails(t *testing.T, do func(testing.TB)) bool {
	t.Helper()
	r := &recorder{TB: t}
	func() {
		defer func() {
			if p := recover(); p != nil && p != any(r) {
				panic(p)
			}
		}()
		do(r)
	}()
	return r.failed
}
