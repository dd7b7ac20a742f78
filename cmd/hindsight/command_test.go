package main

import (
	"bytes"
	"context"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5"

	"github.com/hindsight-go/audit"
	"github.com/hindsight-go/audit/audittest"
)

// command is a command line that is to be run.
type command struct {
	url         string
	env         map[string]string
	in          string
	interactive bool
	width       int
}

// run gives what the command prints and its exit code.
func (c command) run(ctx context.Context, args ...string) (stdout, stderr string, code int) {
	var out, err bytes.Buffer
	code = c.start(ctx, &out, &err, args...)
	return out.String(), err.String(), code
}

func (c command) start(ctx context.Context, out, err io.Writer, args ...string) int {
	return run(ctx, args, streams{
		in: strings.NewReader(c.in), out: out, err: err, terminal: c.interactive || c.width > 0, interactive: c.interactive, width: c.width,
		getenv: func(name string) string {
			if value, ok := c.env[name]; ok {
				return value
			}
			return map[string]string{"DATABASE_URL": c.url, "TZ": "UTC", "PAGER": "cat", "NO_COLOR": "1"}[name]
		},
	})
}

// must runs a command that has to succeed and returns what it prints.
func (c command) must(t *testing.T, args ...string) string {
	t.Helper()
	out, err, code := c.run(t.Context(), args...)
	if code != 0 {
		t.Fatalf("hindsight %s: exit code %d\n%s%s", strings.Join(args, " "), code, out, err)
	}
	return out
}

const itemTable = "CREATE TABLE item (id int PRIMARY KEY, note text)"

// newItems is an audited database with a table item, of which the row 1 was changed.
func newItems(t *testing.T, setup ...string) (*audittest.Audited, command) {
	t.Helper()
	a := audittest.New(t, audit.Config{Tables: []string{"public.*"}}, append([]string{itemTable, "INSERT INTO item VALUES (1, 'one')"}, setup...)...)
	a.Exec(t, "UPDATE item SET note = 'two' WHERE id = 1")
	a.Sync(t)
	return a, command{url: a.URL()}
}

// lines collects what is written, for a test to wait for.
type lines struct {
	mu   sync.Mutex
	text strings.Builder
	came chan struct{}
}

func newLines() *lines { return &lines{came: make(chan struct{}, 1)} }

func (l *lines) Write(text []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.text.Write(text)
	select {
	case l.came <- struct{}{}:
	default:
	}
	return len(text), nil
}

func (l *lines) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

// await waits until what was written has a match, and returns it.
func (l *lines) await(t *testing.T, form string) []string {
	t.Helper()
	deadline := time.After(time.Minute)
	for {
		if match := regexp.MustCompile(form).FindStringSubmatch(l.String()); match != nil {
			return match
		}
		select {
		case <-l.came:
		case <-deadline:
			t.Fatalf("nothing like %s was written, but\n%s", form, l)
		}
	}
}

func TestRevert_AsksOnATerminal(t *testing.T) {
	t.Parallel()
	a, c := newItems(t)
	c.interactive = true
	unit := audittest.Value[string](t, a.Database, "SELECT 'tx:' || max(transaction_id) FROM audit.changes")
	for _, answer := range []string{"n\n", "\n", ""} {
		c.in = answer
		if out, err, code := c.run(t.Context(), "revert", unit); code != exitError || !strings.HasSuffix(out, "Undo this? [y/N] ") || !strings.Contains(err, "Nothing was written.") {
			t.Errorf("answered %q: code %d\n%s%s", answer, code, out, err)
		}
	}
	if note := audittest.Value[string](t, a.Database, "SELECT note FROM item"); note != "two" {
		t.Errorf("the row was undone without a yes: %q", note)
	}
	c.in = "y\n"
	if out := c.must(t, "revert", unit); !strings.Contains(out, "Done: 0 rows put back, 1 restored, 0 removed.") {
		t.Error(out)
	}
	if note := audittest.Value[string](t, a.Database, "SELECT note FROM item"); note != "one" {
		t.Errorf("the row was not undone: %q", note)
	}
}

func TestRevert_CtrlCWhileItAsks(t *testing.T) {
	t.Parallel()
	a, _ := newItems(t)
	unit := audittest.Value[string](t, a.Database, "SELECT 'tx:' || max(transaction_id) FROM audit.changes")
	ctx, cancel := context.WithCancel(t.Context())
	in, typed := io.Pipe() // in which nobody types
	defer typed.Close()
	out, code := newLines(), make(chan int, 1)
	go func() {
		code <- run(ctx, []string{"revert", unit}, streams{in: in, out: out, err: out, terminal: true, interactive: true, getenv: func(name string) string {
			return map[string]string{"DATABASE_URL": a.URL(), "PAGER": "cat", "NO_COLOR": "1"}[name]
		}})
	}()
	out.await(t, `\[y/N\] $`)
	cancel()
	if got := <-code; got != exitInterrupted {
		t.Errorf("exit code %d, want %d\n%s", got, exitInterrupted, out)
	}
	if note := audittest.Value[string](t, a.Database, "SELECT note FROM item"); note != "two" {
		t.Errorf("the row was undone: %q", note)
	}
}

func TestRevert_KeylessRowIsMasked(t *testing.T) {
	t.Parallel()
	a, c := newItems(t, "CREATE TABLE loose (note text)")
	a.Exec(t, "INSERT INTO loose VALUES ('geheim')")
	a.Sync(t)
	unit := audittest.Value[string](t, a.Database, "SELECT 'tx:' || max(transaction_id) FROM audit.changes")
	for _, format := range []string{"table", "json"} {
		out, err, _ := c.run(t.Context(), "revert", unit, "--no-values", "-o", format)
		if strings.Contains(out+err, "geheim") || !strings.Contains(out, masked) {
			t.Errorf("%s:\n%s%s", format, out, err)
		}
	}
}

func TestLog_FollowsAndGoesOnAtTheCursor(t *testing.T) {
	t.Parallel()
	a, c := newItems(t)
	file := filepath.Join(t.TempDir(), "cursor")
	follow := func(args ...string) (*lines, func()) {
		ctx, cancel := context.WithCancel(t.Context())
		out, code := newLines(), make(chan int, 1)
		go func() {
			code <- c.start(ctx, out, out, append([]string{"log", "-f", "--cursor-file", file, "-o", "jsonl"}, args...)...)
		}()
		return out, func() {
			cancel()
			if got := <-code; got != exitInterrupted {
				t.Errorf("exit code %d, want %d\n%s", got, exitInterrupted, out)
			}
		}
	}
	out, stop := follow("item")
	out.await(t, `"note":"two"`) // what is there
	a.Exec(t, "UPDATE item SET note = 'three'")
	out.await(t, `"note":"three"`)
	// Written behind the event, so that a crash in between shows it twice rather than never.
	kept := func() bool { text, err := os.ReadFile(file); return err == nil && len(text) > 0 }
	for deadline := time.Now().Add(time.Minute); !kept() && time.Now().Before(deadline); {
		a.Sync(t)
	}
	stop()
	a.Exec(t, "UPDATE item SET note = 'four'")
	out, stop = follow("item")
	out.await(t, `"note":"four"`)
	a.Exec(t, "UPDATE item SET note = 'five'")
	out.await(t, `"note":"five"`)
	stop()
	if strings.Contains(out.String(), `"after":{"id":1,"note":"three"}`) || strings.Count(out.String(), "\n") != 3 {
		t.Errorf("the second time it does not go on behind the first:\n%s", out)
	}
	if _, err, code := c.run(t.Context(), "log", "-f", "-o", "json"); code != exitUsage {
		t.Errorf("-f -o json: %d %s", code, err)
	}
}

func TestLog_OnTerminals(t *testing.T) {
	t.Parallel()
	a, c := newItems(t)
	a.Exec(t, "UPDATE item SET note = repeat('世界 ', 40)")
	a.Sync(t)
	c.width = 100
	for line := range strings.Lines(c.must(t, "log")) {
		if n := len([]rune(strings.TrimSuffix(line, "\n"))); n > 100 {
			t.Errorf("%d runes: %s", n, line)
		}
	}
	c.width = 40
	out := c.must(t, "log")
	for line := range strings.Lines(out) {
		if w := wide(strings.TrimSuffix(line, "\n")); w > 40 {
			t.Errorf("%d wide: %s", w, line)
		}
	}
	if !strings.Contains(out, "UPDATE item 1\n  note: one → two\n") {
		t.Errorf("on a narrow terminal:\n%s", out)
	}
	for _, width := range []int{1, 3, 10, 40} {
		c.width = width
		for _, args := range [][]string{{"history", "item", "1"}, {"blame", "item", "1"}, {"as-of", "now", "item"}, {"status"}, {"show", "tx:1"}} {
			if _, err, code := c.run(t.Context(), args...); code != 0 && code != exitNothing {
				t.Errorf("%v at %d: %s", args, width, err)
			}
		}
	}
	// Colours: on terminals only, and never with NO_COLOR.
	c.width = 100
	for _, each := range []struct {
		env  map[string]string
		args []string
		tty  bool
		want bool
	}{
		{map[string]string{"NO_COLOR": ""}, nil, true, true},
		{map[string]string{"NO_COLOR": ""}, nil, false, false},
		{map[string]string{"NO_COLOR": "1"}, nil, true, false},
		{map[string]string{"NO_COLOR": "", "TERM": "dumb"}, nil, true, false},
		{map[string]string{"NO_COLOR": "1"}, []string{"--color", "always"}, false, true},
		{map[string]string{"NO_COLOR": ""}, []string{"--color", "never"}, true, false},
	} {
		c.env, c.width = each.env, 0
		if each.tty {
			c.width = 100
		}
		if out := c.must(t, append([]string{"log"}, each.args...)...); strings.Contains(out, "\x1b[") != each.want {
			t.Errorf("%+v: colours %t, want %t\n%q", each, !each.want, each.want, out)
		}
	}
}

func TestPager(t *testing.T) {
	t.Parallel()
	_, c := newItems(t)
	c.interactive = true
	for pager, want := range map[string]string{
		"sed s/two/paged/":  "paged",
		"head -c 0":         "", // who has seen enough
		"exit 3":            "",
		"there-is-no-pager": "",
	} {
		c.env = map[string]string{"PAGER": pager}
		out, err, code := c.run(t.Context(), "log")
		if strings.Contains(pager, "no-pager") || pager == "exit 3" {
			continue // it says so itself
		}
		if code != 0 || !strings.Contains(out, want) || strings.Contains(out, "two") {
			t.Errorf("%s: code %d\n%s%s", pager, code, out, err)
		}
	}
	c.env = map[string]string{"PAGER": "sed s/two/paged/"}
	if out := c.must(t, "log", "--no-pager"); !strings.Contains(out, "two") {
		t.Error(out)
	}
}

func TestMarksRefreshSyncAndBaseline(t *testing.T) {
	t.Parallel()
	a, c := newItems(t)
	if _, err, code := c.run(t.Context(), "marks"); code != exitNothing {
		t.Errorf("no marks: %d %s", code, err)
	}
	if out := c.must(t, "mark", "before import"); !strings.HasPrefix(out, "mark:'before import' is 0/") {
		t.Error(out)
	}
	if _, err, code := c.run(t.Context(), "mark", "before import"); code != exitError || !strings.Contains(err, "already") {
		t.Errorf("a name twice: %d %s", code, err)
	}
	a.Exec(t, "UPDATE item SET note = 'three'")
	if out := c.must(t, "diff", "mark:before import.."); out != "~  item 1  note: two → three\n" {
		t.Error(out)
	}
	if out := c.must(t, "as-of", "mark:before import", "item", "1"); out != "id    1\nnote  two\n" {
		t.Error(out)
	}
	if out := c.must(t, "marks", "-o", "csv"); !strings.HasPrefix(out, "name,position,marked_at\nbefore import,0/") {
		t.Error(out)
	}

	c.must(t, "sync")
	a.Exec(t, "CREATE TABLE late (id int PRIMARY KEY)")
	if _, err, code := c.run(t.Context(), "refresh"); code != 0 || err != "2 tables tracked.\n" {
		t.Errorf("refresh: %d %s", code, err)
	}
	a.Exec(t, "INSERT INTO late VALUES (1)")
	a.Sync(t)
	if out := c.must(t, "log", "late"); !strings.Contains(out, "CREATE  late 1") {
		t.Error(out)
	}
	if out := c.must(t, "baseline", "item"); out != "item  1 row\n" {
		t.Error(out)
	}
	if _, err, code := c.run(t.Context(), "baseline", "nothing"); code != exitCannotTell {
		t.Errorf("baseline of no table: %d %s", code, err)
	}
	if _, err, code := c.run(t.Context(), "refresh", "--tables", "elsewhere.*,public.*", "--timeout", "10s"); code != 0 {
		t.Errorf("refresh: %d %s", code, err)
	}
	a.Exec(t, "CREATE SCHEMA elsewhere; CREATE TABLE elsewhere.t (id int PRIMARY KEY)")
	if _, err, code := c.run(t.Context(), "refresh", "--tables", "elsewhere.*", "--timeout", "1s"); code != exitUnhealthy || !strings.Contains(err, "not tracked: elsewhere.t") {
		t.Errorf("refresh of what is not tracked: %d %s", code, err)
	}

	a.Stop(t)
	for _, args := range [][]string{{"sync"}, {"refresh"}, {"status"}} {
		if out, err, code := c.run(t.Context(), args...); code != exitUnhealthy {
			t.Errorf("%v while nobody captures: %d\n%s%s", args, code, out, err)
		}
	}
	if err := a.Client.Start(context.WithoutCancel(t.Context())); err != nil {
		t.Fatal(err)
	}
}

// Errors of the library come in the words of the command.
func TestErrors_NameFlags(t *testing.T) {
	t.Parallel()
	a, c := newItems(t, "CREATE TABLE loose (note text)")
	for _, user := range []string{"ann", "bob"} {
		ctx := audit.WithContext(t.Context(), audit.Context{UserID: user, RequestID: "shared"})
		err := pgx.BeginFunc(ctx, a.Connect(t), func(tx pgx.Tx) error {
			if err := audit.Stamp(ctx, tx); err != nil {
				return err
			}
			_, err := tx.Exec(ctx, "UPDATE item SET note = $1", user)
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	a.Sync(t)
	for _, each := range []struct {
		args []string
		code int
		want string
	}{
		{[]string{"revert", "req:shared"}, exitConflict, "--across-users"},
		{[]string{"revert", "--user", "ann", "--max-rows", "0"}, exitUsage, "--max-rows"},
		{[]string{"as-of", "now", "SELECT count(*) FROM pg_class"}, exitDone, ""},
	} {
		out, err, code := c.run(t.Context(), each.args...)
		if code != each.code || !strings.Contains(err, each.want) || strings.Contains(err, "audit:") {
			t.Errorf("%v: code %d\n%s%s", each.args, code, out, err)
		}
	}
	a.Stop(t)
	for _, args := range [][]string{{"history", "item", "1"}, {"revert", "req:shared", "--across-users"}} {
		if _, err, code := c.run(t.Context(), args...); code != exitCannotTell || !strings.Contains(err, "start the program that captures") || strings.Contains(err, "Client.") || strings.Contains(err, "AsStored") {
			t.Errorf("%v: code %d %s", args, code, err)
		}
	}
	if out := c.must(t, "revert", "req:shared", "--across-users", "--as-stored", "--yes"); !strings.Contains(out, "Done: 0 rows put back, 1 restored") {
		t.Error(out)
	}
	if err := a.Client.Start(context.WithoutCancel(t.Context())); err != nil {
		t.Fatal(err)
	}
}

func TestCompletion(t *testing.T) {
	t.Parallel()
	_, c := newItems(t, `CREATE TABLE "odd table" (id int PRIMARY KEY)`)
	for _, shell := range []string{"bash", "zsh", "fish", "powershell"} {
		if out := c.must(t, "completion", shell); !strings.Contains(out, "hindsight") {
			t.Errorf("%s: %q", shell, out)
		}
	}
	want := "item\n'odd table'\n:4\n"
	for _, args := range [][]string{{"log", ""}, {"blame", ""}, {"as-of", "now", ""}, {"verify", ""}} {
		out := c.must(t, append([]string{"__complete"}, args...)...)
		if diff := cmp.Diff(want, out); diff != "" {
			t.Errorf("%v (-want +got):\n%s", args, diff)
		}
	}
	c.url = "host=/nowhere"
	if out := c.must(t, "__complete", "log", ""); out != ":4\n" {
		t.Errorf("without a server: %q", out)
	}
}
