//go:build unix

package audit_test

import (
	"errors"
	"fmt"
	"slices"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/hindsight-go/audit"
	"github.com/hindsight-go/audit/audittest"
	"github.com/hindsight-go/audit/internal/faulttest"
	"github.com/hindsight-go/audit/internal/wal"
	"github.com/hindsight-go/audit/store"
)

// takeover is within what time another instance has to capture. Tests only log
// what they measure, and wait longer: a busy test machine proves nothing.
const takeover = 5 * time.Second

// fleet is three programs that share one slot.
type fleet struct {
	db       *audittest.Database
	programs map[string]*faulttest.Program
	probes   int
}

// newFleet starts the programs on a server of their own, with a table for the
// probes.
func newFleet(t *testing.T, db *audittest.Database) *fleet {
	t.Helper()
	db.Exec(t, "CREATE TABLE probe (id int PRIMARY KEY)")
	f := &fleet{db: db, programs: make(map[string]*faulttest.Program)}
	for _, name := range []string{"a", "b", "c"} {
		f.start(t, name)
	}
	for _, p := range f.programs {
		p.WaitStarted(t)
	}
	return f
}

func (f *fleet) start(t *testing.T, name string) {
	t.Helper()
	f.programs[name] = faulttest.StartProgram(t, faulttest.ProgramConfig{Name: name, SourceURL: f.db.URL()})
}

// captured writes a row and returns which program captured it, and after what
// time the row was in history.
func (f *fleet) captured(t *testing.T) (name string, after time.Duration) {
	t.Helper()
	f.probes++
	f.db.Exec(t, "INSERT INTO probe VALUES ($1)", f.probes)
	after = faulttest.Poll(t, faulttest.Patience, "capture of a probe", func() error {
		found := audittest.Value[[]string](t, f.db, `
			SELECT coalesce(array_agg(environment), '{}') FROM audit.changes WHERE "table" = 'probe' AND primary_key = $1::int::text`, f.probes)
		if len(found) == 0 {
			return errors.New("it is not in history")
		}
		name = found[0]
		return nil
	})
	return name, after
}

// walsender returns the process of the server that streams from the slot, and
// waits for one.
func (f *fleet) walsender(t *testing.T) int {
	t.Helper()
	var pid int
	faulttest.Poll(t, faulttest.Patience, "a holder of the slot", func() error {
		pid = audittest.Value[int](t, f.db, "SELECT coalesce(max(active_pid), 0) FROM pg_replication_slots WHERE database = current_database()")
		if pid == 0 {
			return errors.New("nobody holds it")
		}
		return nil
	})
	return pid
}

// expectWaiting waits until a program waits for the slot again.
func (f *fleet) expectWaiting(t *testing.T, name string) {
	t.Helper()
	faulttest.Poll(t, faulttest.Patience, "program "+name+" goes back to waiting", func() error {
		answer, err := f.programs[name].Ask(faulttest.Patience)
		if err == nil && answer.State != audit.State("waiting") {
			err = fmt.Errorf("it is %s: %s", answer.State, answer.Err)
		}
		return err
	})
}

// expectProbesOnce checks that every probe is in history once, in order.
func (f *fleet) expectProbesOnce(t *testing.T) {
	t.Helper()
	want := make([]int, f.probes)
	for i := range want {
		want[i] = i + 1
	}
	got := audittest.Value[[]int](t, f.db, `
		SELECT array_agg(primary_key::int ORDER BY position, sequence) FROM audit.changes WHERE "table" = 'probe'`)
	if !slices.Equal(got, want) {
		t.Errorf("history has the probes %v, want %v", got, want)
	}
}

// Whoever captures is killed, again and again, and another of the three goes on
// within seconds.
func TestAnotherInstanceTakesOverFromAKilledOne(t *testing.T) {
	t.Parallel()
	db := audittest.NewServer(t, audittest.ServerOptions{}).NewDatabase(t)
	load := faulttest.NewLoad(t, db, 1)
	load.Throttle(10 * time.Millisecond)
	f := newFleet(t, db)
	load.Run(t, 3)

	for round := range 5 {
		holder, _ := f.captured(t)
		f.programs[holder].Kill()
		next, after := f.captured(t)
		t.Logf("round %d: %s was killed, %s captured after %s", round, holder, next, after.Round(time.Millisecond))
		if next == holder {
			t.Errorf("round %d: the change after the kill was captured by %s, which was dead", round, next)
		}
		if after > takeover {
			t.Logf("round %d: longer than %s", round, takeover)
		}
		f.start(t, holder)
		f.programs[holder].WaitStarted(t)
	}
	load.Stop()
	a := audittest.Open(t, db, audit.Config{})
	a.Check(t)
	// The probes are not in the control.
	f.expectProbesOnce(t)
	db.Exec(t, `
		INSERT INTO control.log (xid, tbl, op, before, after)
		SELECT transaction_id, "table", operation, before, after FROM audit.changes WHERE "table" = 'probe' ORDER BY position`)
	load.Check(t, db.URL())
}

// A holder that sleeps keeps the slot until the server gives it up. When it
// wakes up, another captures, and what it had read may not get into history.
func TestStaleHolderIsFencedWhenItWakesUp(t *testing.T) {
	t.Parallel()
	db := audittest.NewServer(t, audittest.ServerOptions{}).NewDatabase(t)
	f := newFleet(t, db)
	holder, _ := f.captured(t)
	stale := f.programs[holder]

	stale.Signal(t, syscall.SIGSTOP)
	// This comes to its socket, and is what it finds when it wakes up.
	sender := f.walsender(t)
	f.probes++
	db.Exec(t, "INSERT INTO probe VALUES ($1)", f.probes)
	db.Exec(t, "SELECT pg_terminate_backend($1)", sender)

	next, after := f.captured(t)
	t.Logf("%s captured after %s", next, after.Round(time.Millisecond))
	if next == holder {
		t.Fatalf("the probe was captured by %s, which sleeps", next)
	}
	stale.Signal(t, syscall.SIGCONT)
	f.expectWaiting(t, holder)
	f.captured(t)
	f.expectProbesOnce(t)
	if n := audittest.Value[int](t, db, "SELECT count(*) FROM audit.gaps"); n != 0 {
		t.Errorf("history has %d gaps", n)
	}
	audittest.Open(t, db, audit.Config{}).Check(t)
}

// Nobody helps: the server itself gives up the holder that does not answer.
func TestServerDropsASleepingHolder(t *testing.T) {
	t.Parallel()
	db := audittest.NewServer(t, audittest.ServerOptions{}).NewDatabase(t)
	f := newFleet(t, db)
	holder, _ := f.captured(t)

	f.programs[holder].Signal(t, syscall.SIGSTOP)
	next, after := f.captured(t)
	t.Logf("%s captured after %s", next, after.Round(time.Millisecond))
	if next == holder {
		t.Fatalf("the probe was captured by %s, which sleeps", next)
	}
	f.programs[holder].Signal(t, syscall.SIGCONT)
	f.expectWaiting(t, holder)
	f.captured(t)
	f.expectProbesOnce(t)
}

// The holder falls asleep in the midst of a large transaction, half of which is
// in the store and not committed. Whoever takes over writes the same rows, and
// may not wait for the sleeper.
func TestHolderThatSleepsInALargeTransactionHoldsNobodyUp(t *testing.T) {
	t.Parallel()
	db := audittest.NewServer(t, audittest.ServerOptions{}).NewDatabase(t)
	db.Exec(t, "CREATE TABLE big (id int PRIMARY KEY, filler text)")
	f := newFleet(t, db)
	holder, _ := f.captured(t)

	const rows = 200_000
	db.Exec(t, "INSERT INTO big SELECT n, repeat('x', 200) FROM generate_series(1, $1) n", rows)
	faulttest.Poll(t, faulttest.Patience, "a store transaction in progress", func() error {
		// Rows that are in the partition and not committed.
		if audittest.Value[int64](t, db, "SELECT coalesce(sum(pg_relation_size(relid)), 0)::bigint FROM pg_partition_tree('audit.changes')") > 4<<20 {
			return nil
		}
		return errors.New("it has not begun")
	})
	f.programs[holder].Signal(t, syscall.SIGSTOP)
	if n := audittest.Value[int](t, db, `SELECT count(*) FROM audit.changes WHERE "table" = 'big'`); n != 0 {
		t.Fatalf("the transaction was stored already: %d rows", n)
	}
	// Not pg_terminate_backend: a walsender that is told to end while its socket is
	// full waits to say so. Its own timeout, 20 s, ends it without a word.
	next, after := f.captured(t)
	t.Logf("%s captured everything after %s", next, after.Round(time.Millisecond))

	f.programs[holder].Signal(t, syscall.SIGCONT)
	f.expectWaiting(t, holder)
	f.expectProbesOnce(t)
	if n := audittest.Value[int](t, db, `SELECT count(*) FROM audit.changes WHERE "table" = 'big' AND environment <> $1`, holder); n != rows {
		t.Errorf("history has %d rows of the large transaction from those who took over, want %d", n, rows)
	}
}

// A writer of an earlier epoch gets an error of its own, and nothing of what it
// wrote stays.
func TestWriterOfAnEarlierEpochIsFenced(t *testing.T) {
	t.Parallel()
	db := audittest.NewDatabase(t)
	history := bareStore(t, db)
	if err := history.CreateCheckpoint(t.Context(), store.Checkpoint{Database: "shop", Slot: "s", SystemIdentifier: "1", Timeline: 1, Position: 100}, time.Now()); err != nil {
		t.Fatal(err)
	}
	open := func() (*store.Writer, <-chan struct{}) {
		progress := make(chan struct{}, 1)
		w, from, err := history.NewWriter(t.Context(), store.WriterConfig{Database: "shop", Progress: func() {
			select {
			case progress <- struct{}{}:
			default:
			}
		}})
		if err != nil {
			t.Fatal(err)
		}
		if from != 100 {
			t.Errorf("the writer goes on at %s, want 0/64", from)
		}
		t.Cleanup(w.Close)
		return w, progress
	}
	relation := &wal.Relation{
		OID: 1, Schema: "public", Table: "todo", ReplicaIdentity: 'f',
		Columns: []wal.Column{{Name: "id", TypeOID: 23, Kind: wal.Kind{Base: wal.Number}}}, Key: []int{0},
	}
	write := func(w *store.Writer, progress <-chan struct{}) error {
		now := wal.Microseconds(time.Now())
		w.Begin(wal.Transaction{XID: 7, CommitLSN: 150, CommitTime: now, ReadTime: now})
		w.Relation(relation)
		w.Row(&wal.Row{Operation: wal.Insert, Relation: relation, New: wal.Tuple{{State: wal.Text, Text: []byte("1")}}})
		w.Commit(200)
		w.Finish()
		return w.Wait(t.Context(), progress)
	}
	stale, staleProgress := open()
	next, nextProgress := open()
	if err := write(stale, staleProgress); !errors.Is(err, store.ErrFenced) {
		t.Errorf("the stale writer's error is %v, want ErrFenced", err)
	}
	if n := audittest.Value[int](t, db, "SELECT count(*) FROM audit.changes"); n != 0 {
		t.Errorf("the stale writer left %d changes", n)
	}
	if err := write(next, nextProgress); err != nil {
		t.Errorf("the writer that took over: %v", err)
	}
	if n := audittest.Value[int](t, db, "SELECT count(*) FROM audit.changes"); n != 1 {
		t.Errorf("history has %d changes, want 1", n)
	}
}

// bareStore makes the store's schema in a database, for a test of the store alone.
func bareStore(t *testing.T, db *audittest.Database) *store.Store {
	t.Helper()
	pool, err := pgxpool.New(t.Context(), db.URL())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(pool.Close)
	history := store.New(pool, "audit", store.Roles{})
	if err := history.Migrate(t.Context()); err != nil {
		t.Fatal(err)
	}
	return history
}
