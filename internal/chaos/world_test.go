//go:build unix

package chaos_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/hindsight-go/audit"
	"github.com/hindsight-go/audit/audittest"
	"github.com/hindsight-go/audit/internal/faulttest"
)

// world is two clusters, three instances and what writes.
type world struct {
	rand          *rand.Rand
	length        time.Duration // of the run
	source, store *audittest.Database
	disk          *disk // of the store's tables, or nil
	passwordFile  string
	passwords     int
	instances     []*instance
	load          *load
	probes        *session
	probe         int64
	slot          string
	traced        bool // there are event triggers
	finish        context.CancelFunc
	supervisors   sync.WaitGroup
}

// asProgram makes a connection string one of the program's role.
func asProgram(t testing.TB, of string) string {
	t.Helper()
	u, err := url.Parse(of)
	if err != nil {
		t.Fatal(err)
	}
	u.User = url.User("program")
	return u.String()
}

const firstPassword = "secret 0"

func newWorld(t *testing.T, seed uint64, pace time.Duration) *world {
	t.Helper()
	w := &world{rand: rand.New(rand.NewPCG(seed, 0)), traced: seed%2 == 0} //nolint:gosec // It is to be repeatable.
	w.source = audittest.NewServer(t, audittest.ServerOptions{Settings: map[string]string{"max_wal_size": "64MB", "min_wal_size": "32MB"}}).NewDatabase(t)
	w.store = audittest.NewServer(t, audittest.ServerOptions{}).NewDatabase(t)
	w.slot = "audit_" + w.source.Name()
	for _, db := range []*audittest.Database{w.source, w.store} {
		db.Exec(t, "CREATE ROLE program LOGIN REPLICATION PASSWORD '"+firstPassword+"'; ALTER DATABASE "+db.Name()+" OWNER TO program; GRANT CREATE ON SCHEMA public TO program")
		hba := "local all program scram-sha-256\nlocal all all trust\nlocal replication all trust\n"
		if err := os.WriteFile(filepath.Join(db.Server().DataDir(), "pg_hba.conf"), []byte(hba), 0o600); err != nil {
			t.Fatal(err)
		}
		db.Exec(t, "SELECT pg_reload_conf()")
	}
	w.passwordFile = filepath.Join(t.TempDir(), "password")
	w.writePassword(t, firstPassword)
	if w.disk = mountDisk(t, w.store.Server().DataDir()); w.disk != nil {
		w.store.Exec(t, "CREATE TABLESPACE small LOCATION '"+w.disk.dir+"'")
		w.store.Exec(t, "GRANT CREATE ON TABLESPACE small TO program; ALTER ROLE program SET default_tablespace = 'small'")
	}
	w.load = newLoad(t, w.source, seed, pace)
	w.probes = w.load.session(2000)
	if w.traced {
		w.trace(t)
	}
	for n := range 3 {
		w.instances = append(w.instances, newInstance(t, fmt.Sprintf("instance %d", n), w.source.URL(), w.store.URL(), w.passwordFile))
	}
	ctx, cancel := context.WithCancel(context.Background())
	w.finish = func() {
		cancel()
		w.supervisors.Wait()
	}
	t.Cleanup(w.finish)
	for _, i := range w.instances {
		w.supervisors.Go(func() { i.supervise(ctx) })
		if i == w.instances[0] {
			w.untilStreaming(t) // which makes the beginning of history
		}
	}
	w.supervisors.Go(func() {
		for ctx.Err() == nil {
			for _, i := range w.instances {
				i.ask()
			}
			wait(ctx, 250*time.Millisecond)
		}
	})
	return w
}

// trace makes the event triggers, as a DBA would.
func (w *world) trace(t *testing.T) {
	t.Helper()
	dba, err := audit.Open(t.Context(), audit.Config{SourceURL: w.source.URL(), StoreURL: w.store.URL()})
	if err != nil {
		t.Fatal(err)
	}
	defer dba.Close()
	script, err := dba.SetupSQL(t.Context(), "program")
	if err != nil {
		t.Fatal(err)
	}
	_, script, found := strings.Cut(script, "-- Optional")
	if !found {
		t.Fatal("the script has no part for event triggers")
	}
	w.source.Exec(t, "-- Optional"+script)
}

func (w *world) untilStreaming(t *testing.T) {
	t.Helper()
	faulttest.Poll(t, faulttest.Patience, "an instance that captures", func() error {
		for _, i := range w.instances {
			i.ask()
			if i.streams() {
				return nil
			}
		}
		return errors.New("there is none: " + w.lastWords())
	})
}

func (w *world) writePassword(t *testing.T, password string) {
	t.Helper()
	// At once: an instance may be reading it.
	if err := os.WriteFile(w.passwordFile+".new", []byte(password), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(w.passwordFile+".new", w.passwordFile); err != nil {
		t.Fatal(err)
	}
}

// holder returns the instance that captures, or any.
func (w *world) holder() *instance {
	for _, i := range w.instances {
		if i.streams() {
			return i
		}
	}
	return w.any()
}

func (w *world) any() *instance { return w.instances[w.rand.IntN(len(w.instances))] }

// do runs statements as a superuser, again until they work: sessions are ended, and
// servers come back.
func (w *world) do(t *testing.T, db *audittest.Database, statements ...string) {
	t.Helper()
	faulttest.Poll(t, faulttest.Patience, "run as superuser: "+strings.Join(statements, "; "), func() error {
		conn, err := pgx.Connect(t.Context(), db.URL())
		if err != nil {
			return err
		}
		defer func() { _ = conn.Close(context.WithoutCancel(t.Context())) }()
		for _, sql := range statements {
			if _, err := conn.PgConn().Exec(t.Context(), sql).ReadAll(); err != nil {
				return fmt.Errorf("%.200s: %w", sql, err)
			}
		}
		return nil
	})
}

// mark commits a row and returns its key.
func (w *world) mark(ctx context.Context) (int64, error) {
	w.probe++
	id := w.probe
	return id, w.probes.transact(ctx, func(a *act) error {
		return a.write("probe", "CREATE", "INSERT INTO public.probe AS t VALUES ($1, 'here') RETURNING '{}', to_jsonb(t)::text", id)
	})
}

// untilCaptured writes a row and returns when history has it. One that lies in a gap
// never comes, so that it writes another one now and then.
func (w *world) untilCaptured(t *testing.T, within time.Duration) time.Duration {
	t.Helper()
	began := time.Now()
	first := w.probe + 1
	store, err := pgx.Connect(t.Context(), w.store.URL())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = store.Close(context.WithoutCancel(t.Context())) }()
	var marked time.Time
	for time.Since(began) < within {
		if time.Since(marked) > time.Second {
			if _, err := w.mark(t.Context()); err != nil {
				w.probes.close()
				pause(t, 100*time.Millisecond)
				continue
			}
			marked = time.Now()
		}
		var found bool
		if err := store.QueryRow(t.Context(), `SELECT EXISTS (SELECT FROM audit.changes WHERE "table" = 'probe' AND primary_key = ANY (SELECT n::text FROM generate_series($1::bigint, $2::bigint) n))`, first, w.probe).Scan(&found); err != nil {
			t.Fatalf("look for a probe: %v", err)
		}
		if found {
			return time.Since(began)
		}
		pause(t, 50*time.Millisecond)
	}
	t.Errorf("nothing new is in history after %s; %s", within, w.lastWords())
	return time.Since(began)
}

// untilTracked waits for the last tables, and the last partitions, to join: until then their
// past is refused, and coverage does not say yet what was missed.
func (w *world) untilTracked(t *testing.T) {
	t.Helper()
	conn, source := faulttest.Connect(t, w.store.URL()), faulttest.Connect(t, w.source.URL())
	faulttest.Poll(t, againBound, "all tables are tracked", func() error {
		var unpublished int
		if err := source.QueryRow(t.Context(), `
			SELECT count(*) FROM pg_class c
			WHERE relnamespace = 'public'::regnamespace AND relkind = 'r' AND NOT EXISTS (SELECT FROM pg_publication_rel WHERE prrelid = c.oid)`).Scan(&unpublished); err != nil {
			return err
		}
		if unpublished > 0 {
			return fmt.Errorf("%d are not published; %s", unpublished, w.lastWords())
		}
		var open int
		err := conn.QueryRow(t.Context(), `SELECT count(*) FROM audit.coverage WHERE schema = 'public' AND "table" = ANY ($1) AND until_position IS NULL`, lastingTables).Scan(&open)
		if err == nil && open < len(lastingTables) {
			err = fmt.Errorf("%d of %d are; %s", open, len(lastingTables), w.lastWords())
		}
		return err
	})
}

// lastWords are what the instances say.
func (w *world) lastWords() string {
	var b strings.Builder
	for _, i := range w.instances {
		i.mu.Lock()
		fmt.Fprintf(&b, "\n%s (frozen %t, running %t): %+v", i.name, i.frozen, i.process != nil, i.last)
		for _, s := range i.said[max(0, len(i.said)-3):] {
			fmt.Fprintf(&b, "\n    %s %d %.160s", s.at.Format(time.TimeOnly), s.way, s.text)
		}
		i.mu.Unlock()
	}
	return b.String()
}
