package audit_test

import (
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"runtime"
	"strconv"
	"testing"
	"time"

	"github.com/hindsight-go/audit"
	"github.com/hindsight-go/audit/audittest"
	"github.com/hindsight-go/audit/internal/faulttest"
)

// TestMain lets this binary be a program that captures, for tests to kill.
func TestMain(m *testing.M) {
	if faulttest.IsProgram() {
		os.Exit(faulttest.RunProgram())
	}
	waitMoreThanCompute()
	os.Exit(m.Run())
}

// waitMoreThanCompute runs more tests at once than there are cores, unless -parallel
// says how many: these tests wait for a server most of the time.
func waitMoreThanCompute() {
	flag.Parse()
	chosen := false
	flag.Visit(func(f *flag.Flag) { chosen = chosen || f.Name == "test.parallel" })
	if !chosen {
		_ = flag.Set("test.parallel", strconv.Itoa(3*runtime.GOMAXPROCS(0)))
	}
}

// crashRoundsEnv sets the number of faults of each kill test, and crashSeedEnv
// repeats a run.
const (
	crashRoundsEnv = "AUDIT_TEST_CRASH_ROUNDS"
	crashSeedEnv   = "AUDIT_TEST_CRASH_SEED"
)

// crashRun is one kill test: a source and a store under load, and a program that
// captures and does not live long.
type crashRun struct {
	source  *audittest.Database
	store   *audittest.Database // the source itself, or on a server of its own
	config  faulttest.ProgramConfig
	load    *faulttest.Load
	rand    *rand.Rand
	program *faulttest.Program
	// disturbed reports whether a server went down during the life of the program,
	// which is a reason for Start to fail.
	disturbed bool
	killed    int
	crashed   int
}

func newCrashRun(t *testing.T, ownStore bool) *crashRun {
	t.Helper()
	seed := faulttest.EnvNumber(t, crashSeedEnv, rand.Uint64()) //nolint:gosec // It is to be repeatable.
	t.Logf("seed: %s=%d", crashSeedEnv, seed)
	r := &crashRun{rand: rand.New(rand.NewPCG(seed, 0))} //nolint:gosec // It is to be repeatable.
	r.source = audittest.NewServer(t, audittest.ServerOptions{}).NewDatabase(t)
	r.store = r.source
	r.config = faulttest.ProgramConfig{Name: "killed", SourceURL: r.source.URL()}
	if ownStore {
		r.store = audittest.NewServer(t, audittest.ServerOptions{}).NewDatabase(t)
		r.config.StoreURL = r.store.URL()
	}
	r.load = faulttest.NewLoad(t, r.source, seed)
	return r
}

// revive starts the program again if it does not run. It may have ended by
// itself only because a server was away while it started.
func (r *crashRun) revive(t *testing.T) {
	t.Helper()
	if r.program != nil {
		if r.program.Alive() {
			return
		}
		if r.program.Log.Count("program: has ended") > 0 && !r.disturbed {
			t.Fatalf("the program has ended by itself:\n%s", r.program.Log.Text())
		}
	}
	r.disturbed = false
	r.program = faulttest.StartProgram(t, r.config)
}

// strike does one thing that must not matter.
func (r *crashRun) strike(t *testing.T) {
	t.Helper()
	down := func(db *audittest.Database) {
		r.crashed++
		r.disturbed = true
		if r.rand.IntN(4) == 0 {
			db.Server().Kill(t)
		} else {
			db.Server().StopImmediate(t)
		}
	}
	up := func(db *audittest.Database) {
		faulttest.Pause(t, time.Duration(r.rand.IntN(100))*time.Millisecond)
		db.Server().StartAgain(t)
	}
	kill := func() {
		r.killed++
		r.program.Kill()
	}
	switch n := r.rand.IntN(20); {
	case n < 3:
		down(r.source)
		up(r.source)
	case n < 5:
		down(r.source)
		kill()
		up(r.source)
	case n < 7 && r.store != r.source:
		down(r.store)
		up(r.store)
	default:
		kill()
	}
}

// lifetime is how long the program is left alone: often hardly to its start,
// sometimes long enough to catch up.
func (r *crashRun) lifetime() time.Duration {
	if r.rand.IntN(5) == 0 {
		return time.Duration(500+r.rand.IntN(1500)) * time.Millisecond
	}
	return time.Duration(r.rand.IntN(500)) * time.Millisecond
}

func testHistorySurvivesKills(t *testing.T, ownStore bool) {
	t.Helper()
	r := newCrashRun(t, ownStore)
	// The first start makes the slot, and so the beginning of history.
	r.revive(t)
	r.program.WaitStarted(t)
	r.load.Run(t, 4)
	for range faulttest.EnvNumber(t, crashRoundsEnv, 24) {
		r.revive(t)
		faulttest.Pause(t, r.lifetime())
		r.strike(t)
	}
	r.load.Stop()
	// Start may still meet a server that is shutting its crashed sessions down.
	faulttest.Poll(t, faulttest.Patience, "last start of the program", func() error {
		r.revive(t)
		if r.program.Log.Count("program: has started") == 0 {
			return fmt.Errorf("its log is:\n%s", r.program.Log.Text())
		}
		return nil
	})

	a := audittest.Open(t, r.source, audit.Config{StoreURL: r.config.StoreURL})
	syncAgain(t, a) // the program has started, and may still be connecting
	if !ownStore {
		a.Check(t)
	}
	tally := r.load.Check(t, r.store.URL())
	t.Logf("%d kills of the program, %d crashes of a server: %d transactions confirmed, %d with %d changes in history",
		r.killed, r.crashed, r.load.Committed(), tally.Transactions, tally.Changes)
	if tally.Transactions < 100 {
		t.Errorf("the load wrote only %d transactions: nothing was tested", tally.Transactions)
	}
}

// The capturing process is killed, and the server stopped in the midst of
// things, again and again under load.
func TestHistorySurvivesKillsOfProgramAndServer(t *testing.T) {
	t.Parallel()
	testHistorySurvivesKills(t, false)
}

// The store is on a server of its own, which crashes as well.
func TestHistorySurvivesKillsWithAStoreOfItsOwn(t *testing.T) {
	t.Parallel()
	testHistorySurvivesKills(t, true)
}
