package audit_test

import (
	"bufio"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/hindsight-go/audit"
	"github.com/hindsight-go/audit/audittest"
)

// AUDIT_TEST_REGRESS_SOURCE names an unpacked source tree of PostgreSQL: its tests
// are the load then. make regress fetches one.
const regressSourceEnv = "AUDIT_TEST_REGRESS_SOURCE"

// regressDiffers are the tests whose output may differ under capture, with the reason.
var regressDiffers = map[string]string{
	"publication":   "it lists all publications",
	"event_trigger": "it lists all event triggers",
	"opr_sanity":    "it lists all functions with their owner's rights, and that of the event triggers is one",
	"alter_table":   "it lists all locks of a transaction, those of the event triggers on their own tables too",
}

// regressUnstable are lines that say by themselves that a table is captured: \d+ shows
// the publication and the replica identity.
var regressUnstable = regexp.MustCompile(`(?m)^(Publications:|    "audit[^"]*"|Replica Identity: FULL)\n`)

// PostgreSQL's own tests run under capture: what they print is what they print without,
// and whatever is asked of a table that is left, of the moments between the tests, is
// what a copy of then held, or is refused.
func TestRegression(t *testing.T) {
	t.Parallel()
	source := os.Getenv(regressSourceEnv)
	if source == "" {
		t.Skip("a load that takes many minutes: make regress")
	}
	for _, suite := range []regressSuite{
		{name: "regress", driver: "regress/pg_regress", schedule: "parallel_schedule", library: true, parts: 4},
		{name: "isolation", driver: "isolation/pg_isolation_regress", schedule: "isolation_schedule", parts: 4},
	} {
		t.Run(suite.name, func(t *testing.T) {
			t.Parallel()
			suite.source = filepath.Join(source, "src", "test", suite.name)
			suite.run(t)
		})
	}
}

// regressSuite is one of PostgreSQL's directories of tests.
type regressSuite struct {
	name, driver, schedule string
	source                 string
	library                bool // it needs regress.so
	parts                  int  // in how many the schedule is run
}

// regressRun is a server of its own on which the tests run.
type regressRun struct {
	suite    regressSuite
	server   *audittest.Server
	database *audittest.Database
	bin      string
	dir      string // of the outputs
}

func (s regressSuite) start(t *testing.T) *regressRun {
	t.Helper()
	r := &regressRun{suite: s, dir: worldWritable(t)}
	r.server = audittest.NewServer(t, audittest.ServerOptions{Settings: map[string]string{
		"lc_messages": "C", "log_autovacuum_min_duration": "-1", "max_prepared_transactions": "2", "autovacuum": "off",
	}})
	r.database = r.server.NewDatabase(t)
	r.bin = filepath.Dir(must(filepath.EvalSymlinks(filepath.Join(r.server.BinDir(), "postgres"))))
	for _, setting := range []string{"lc_messages TO 'C'", "lc_monetary TO 'C'", "lc_numeric TO 'C'", "lc_time TO 'C'", "bytea_output TO 'hex'", "timezone_abbreviations TO 'Default'"} {
		r.database.Exec(t, "ALTER DATABASE "+r.database.Name()+" SET "+setting)
	}
	if s.library {
		r.compile(t)
	}
	return r
}

func worldWritable(t *testing.T) string {
	t.Helper()
	dir := must(os.MkdirTemp("", "audit-regress-"))
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	for _, name := range []string{"", "results", "expected", "sql", "specs", "testtablespace", "lib"} {
		if err := os.MkdirAll(filepath.Join(dir, name), 0o777); err != nil { //nolint:gosec // The server runs as somebody else.
			t.Fatal(err)
		}
		if err := os.Chmod(filepath.Join(dir, name), 0o777); err != nil { //nolint:gosec // As above.
			t.Fatal(err)
		}
	}
	return dir
}

// pgConfig asks the server's pg_config.
func (r *regressRun) pgConfig(t *testing.T, what string) string {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), filepath.Join(r.bin, "pg_config"), what).Output()
	if err != nil {
		t.Fatalf("pg_config %s: %v; the server's development package has it, Debian's is postgresql-server-dev", what, err)
	}
	return strings.TrimSpace(string(out))
}

// compile makes the library that the tests load, which no package has.
func (r *regressRun) compile(t *testing.T) {
	t.Helper()
	lib := filepath.Join(r.dir, "lib")
	//nolint:gosec // It compiles what the caller names.
	out, err := exec.CommandContext(t.Context(), "cc", "-O1", "-w", "-fPIC", "-shared", "-I"+r.pgConfig(t, "--includedir-server"), "-o", filepath.Join(lib, "regress.so"), filepath.Join(r.suite.source, "regress.c")).CombinedOutput()
	if err != nil {
		t.Fatalf("compile regress.c: %v\n%s", err, out)
	}
	for _, name := range []string{"autoinc.so", "refint.so"} {
		if err := os.Symlink(filepath.Join(r.pgConfig(t, "--pkglibdir"), name), filepath.Join(lib, name)); err != nil {
			t.Fatal(err)
		}
	}
}

// parts returns the lines of the schedule, in parts.
func (s regressSuite) partsOfSchedule(t *testing.T) [][]string {
	t.Helper()
	file, err := os.Open(filepath.Join(s.source, s.schedule))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = file.Close() }()
	var lines []string
	for scanner := bufio.NewScanner(file); scanner.Scan(); {
		if line := scanner.Text(); strings.HasPrefix(line, "test:") {
			lines = append(lines, line)
		}
	}
	return slices.Collect(slices.Chunk(lines, len(lines)/s.parts+1))
}

// run runs tests. Whether PostgreSQL expects what they print is nothing to us.
func (r *regressRun) run(t *testing.T, lines []string) {
	t.Helper()
	schedule := filepath.Join(r.dir, "schedule")
	if err := os.WriteFile(schedule, []byte(strings.Join(lines, "\n")+"\n"), 0o644); err != nil { //nolint:gosec // It is read by anybody.
		t.Fatal(err)
	}
	driver := filepath.Join(filepath.Dir(r.pgConfig(t, "--pgxs")), "..", "test", r.suite.driver)
	at := must(pgconn.ParseConfig(r.database.URL()))
	//nolint:gosec // It runs what the caller names.
	cmd := exec.CommandContext(t.Context(), driver, "--use-existing", "--dbname="+r.database.Name(), "--bindir="+r.bin, "--inputdir="+r.suite.source, "--outputdir="+r.dir,
		"--dlpath="+filepath.Join(r.dir, "lib"), "--schedule="+schedule, "--host="+at.Host, fmt.Sprintf("--port=%d", at.Port), "--user="+at.User)
	cmd.Env = append(os.Environ(), "PGPASSWORD="+at.Password)
	cmd.Dir = r.dir
	out, err := cmd.CombinedOutput()
	if !strings.Contains(string(out), "tests passed") && !strings.Contains(string(out), "tests failed") {
		t.Fatalf("%s: %v\n%s", driver, err, out)
	}
}

func (s regressSuite) bare(t *testing.T) map[string]string {
	t.Helper()
	r := s.start(t)
	for _, lines := range s.partsOfSchedule(t) {
		r.run(t, lines)
	}
	return r.outputs(t)
}

// run runs the tests twice without capture and once under it, and compares the past of
// the moments between their parts.
func (s regressSuite) run(t *testing.T) {
	t.Helper()
	first, second := s.bare(t), s.bare(t)
	r := s.start(t)
	a := audittest.Open(t, r.database, audit.Config{
		StoreURL: r.server.NewDatabase(t).URL(), Columns: []audit.ColumnRule{{Columns: "*.customer.passwd", Policy: audit.KeepColumn}},
	})
	mustStart(t, a)
	t.Cleanup(func() { a.Stop(t) })
	var copies []copied
	for i, lines := range s.partsOfSchedule(t) {
		r.run(t, lines)
		a.Sync(t)
		copies = append(copies, copyTables(t, a, fmt.Sprintf("part %d", i)))
	}
	s.compare(t, first, second, r.outputs(t))
	told := make(map[string]int)
	for _, c := range copies {
		for _, name := range slices.Sorted(maps.Keys(c.tables)) {
			var of verdict
			c.compareTable(t, name, &of)
			why := "equal"
			if of.refused > 0 {
				why = "refused: " + regressWhy(of.why)
			}
			told[why]++
		}
	}
	for _, why := range slices.Sorted(maps.Keys(told)) {
		t.Logf("%s: tables of %d copies, %s: %d", s.name, len(copies), why, told[why])
	}
}

// regressWhy is the reason of a refusal without what differs from table to table.
func regressWhy(err error) string {
	if history := new(audit.HistoryError); errors.As(err, &history) {
		return regexp.MustCompile(`[0-9A-F]+/[0-9A-F]+|"[^"]*"`).ReplaceAllString(fmt.Sprint(history.Reason, ", ", history.Detail), "…")
	}
	return "a View cannot show it"
}

// outputs returns what every test printed.
func (r *regressRun) outputs(t *testing.T) map[string]string {
	t.Helper()
	outputs := make(map[string]string)
	for _, name := range must(filepath.Glob(filepath.Join(r.dir, "results", "*.out"))) {
		text := string(must(os.ReadFile(name))) //nolint:gosec // Of our directory.
		outputs[strings.TrimSuffix(filepath.Base(name), ".out")] = strings.NewReplacer(r.dir, "DIR", r.database.Name(), "DATABASE").Replace(regressUnstable.ReplaceAllString(text, ""))
	}
	return outputs
}

// compare looks for tests that print something else under capture only.
func (s regressSuite) compare(t *testing.T, first, second, captured map[string]string) {
	t.Helper()
	same, unstable := 0, 0
	for name, want := range first {
		switch got := captured[name]; {
		case got == want || got == second[name]:
			same++
		case regressDiffers[name] != "":
			t.Logf("%s differs: %s", name, regressDiffers[name])
		case want != second[name]:
			unstable++
			t.Logf("%s differs from run to run without capture, too", name)
		default:
			t.Errorf("%s prints something else under capture (-bare +captured):\n%s", name, cmp.Diff(strings.Split(want, "\n"), strings.Split(got, "\n")))
		}
	}
	t.Logf("%s: of %d tests %d print the same, %d are not the same twice", s.name, len(first), same, unstable)
}
