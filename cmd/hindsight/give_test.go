package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/cookiejar"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/hindsight-go/audit"
	"github.com/hindsight-go/audit/audittest"
)

func TestExport(t *testing.T) {
	t.Parallel()
	a, c := newItems(t)
	a.Exec(t, "INSERT INTO item SELECT n, '=1+' || n FROM generate_series(2, 500) n")
	a.Sync(t)
	file := filepath.Join(t.TempDir(), "changes.jsonl")
	c.must(t, "export", "--file", file)
	whole, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var first audit.Change
	if err := json.Unmarshal(bytes.SplitN(whole, []byte("\n"), 2)[0], &first); err != nil || first.Operation != audit.Update || bytes.Count(whole, []byte("\n")) != 500 {
		t.Errorf("%d lines, the first: %v %v", bytes.Count(whole, []byte("\n")), first, err)
	}
	if _, err, code := c.run(t.Context(), "export", "--file", file); code != exitUsage || !strings.Contains(err, "is there already") {
		t.Errorf("over a file: %d %s", code, err)
	}
	// Cut off anywhere, in a line or behind one, it becomes whole again.
	for _, size := range []int{0, 1, 1000, len(whole) / 2, len(whole) - 1, len(whole)} {
		if err := os.WriteFile(file, whole[:size], 0o600); err != nil {
			t.Fatal(err)
		}
		c.must(t, "export", "--file", file, "--resume")
		if got, err := os.ReadFile(file); err != nil || !bytes.Equal(got, whole) {
			t.Errorf("resumed at %d of %d bytes: %d bytes, %v", size, len(whole), len(got), err)
		}
	}
	if err := os.WriteFile(file, []byte("something else\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err, code := c.run(t.Context(), "export", "--file", file, "--resume"); code != exitUsage {
		t.Errorf("resumed on no export: %d %s", code, err)
	}
	if out := c.must(t, "export", "item", "2", "-o", "csv", "--spreadsheet"); !strings.Contains(out, "operation") {
		t.Error(out)
	}
	if out := c.must(t, "export", "item", "--no-values"); strings.Contains(out, "one") || strings.Count(out, "\n") != 500 || !strings.Contains(out, masked) {
		t.Error(out[:300])
	}
	if out := c.must(t, "export", "item", "1"); out != string(whole[:bytes.IndexByte(whole, '\n')+1]) {
		t.Error(out)
	}
}

// runScript runs a script as psql does: making the slot cannot go with what is before
// it in one transaction.
func runScript(t *testing.T, db *audittest.Database, script string) {
	t.Helper()
	slot := regexp.MustCompile(`(?m)^SELECT pg_create_logical_replication_slot.*$`)
	parts := slot.Split(script, 2)
	if len(parts) != 2 {
		t.Fatal("the script makes no slot")
	}
	db.Exec(t, parts[0])
	db.Exec(t, slot.FindString(script))
	db.Exec(t, parts[1])
}

// What setup prints lets a role capture, and what uninstall prints leaves nothing.
func TestSetupAndUninstall(t *testing.T) {
	t.Parallel()
	db := audittest.NewDatabase(t)
	db.Exec(t, itemTable)
	role := "r_" + db.Name()
	db.Exec(t, "CREATE ROLE "+role+" LOGIN")
	t.Cleanup(func() { db.Exec(t, fmt.Sprintf("DROP OWNED BY %s; DROP ROLE %[1]s", role)) })
	c := command{url: db.URL()}
	runScript(t, db, c.must(t, "setup", "--sql", role))
	address, err := url.Parse(db.URL())
	if err != nil {
		t.Fatal(err)
	}
	address.User = url.User(role)
	client, err := audit.Open(t.Context(), audit.Config{SourceURL: address.String()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(client.Close)
	if err := client.Check(t.Context()); err != nil {
		t.Error(err)
	}
	if err := client.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	db.Exec(t, "INSERT INTO item VALUES (1, 'one')")
	if err := client.Sync(t.Context()); err != nil {
		t.Fatal(err)
	}
	if out := c.must(t, "log", "item", "1"); !strings.Contains(out, "CREATE") {
		t.Error(out)
	}
	if err := client.Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	db.Exec(t, c.must(t, "uninstall", "--sql"))
	if n := audittest.Value[int](t, db, `SELECT (SELECT count(*) FROM pg_publication) + (SELECT count(*) FROM pg_replication_slots WHERE database = current_database()) + (SELECT count(*) FROM pg_namespace WHERE nspname LIKE 'audit%')`); n != 0 {
		t.Errorf("%d things are left", n)
	}
	for _, args := range [][]string{{"setup"}, {"uninstall"}, {"migrate"}, {"setup", "--sql", role, "--retention", "soon"}} {
		if out, err, code := c.run(t.Context(), args...); code != exitUsage || out != "" {
			t.Errorf("%v: %d\n%s%s", args, code, out, err)
		}
	}
}

// oldStore is the script of SetupSQL as it was before the newest migration.
func oldStore(t *testing.T, db *audittest.Database, role string) string {
	t.Helper()
	script := (command{url: db.URL()}).must(t, "setup", "--sql", role, "--no-event-trigger")
	return regexp.MustCompile(`(?s)\n-- 002_past\n.*?VALUES \(2, '002_past'\);\n`).ReplaceAllString(script, "\n")
}

func TestMigrate(t *testing.T) {
	t.Parallel()
	db := audittest.NewDatabase(t)
	db.Exec(t, itemTable)
	c := command{url: db.URL()}
	if _, err, code := c.run(t.Context(), "migrate", "--sql"); code != exitError || !strings.Contains(err, "no history") {
		t.Errorf("without a store: %d %s", code, err)
	}
	role := audittest.Value[string](t, db, "SELECT current_user::text")
	runScript(t, db, oldStore(t, db, role))
	db.Exec(t, c.must(t, "migrate", "--sql"))
	if _, err, code := c.run(t.Context(), "migrate", "--sql"); code != exitNothing || !strings.Contains(err, "up to date") {
		t.Errorf("once more: %d %s", code, err)
	}
	a := audittest.Open(t, db, audit.Config{Tables: []string{"public.*"}})
	if err := a.Client.Start(context.WithoutCancel(t.Context())); err != nil {
		t.Fatal(err)
	}
	db.Exec(t, "INSERT INTO item VALUES (1, 'one')")
	a.Check(t)
	a.Stop(t)
}

func TestUI(t *testing.T) {
	t.Parallel()
	_, c := newItems(t)
	get := func(client *http.Client, address string) (int, string) {
		t.Helper()
		r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, address, nil)
		if err != nil {
			t.Fatal(err)
		}
		answer, err := client.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		defer answer.Body.Close()
		text, err := io.ReadAll(answer.Body)
		if err != nil {
			t.Fatal(err)
		}
		return answer.StatusCode, string(text)
	}
	for _, revert := range []bool{false, true} {
		ctx, cancel := context.WithCancel(t.Context())
		out, code := newLines(), make(chan int, 1)
		args := []string{"ui", "--listen", "127.0.0.1:0"}
		if revert {
			args = append(args, "--allow-revert")
		}
		go func() { code <- c.start(ctx, out, out, args...) }()
		match := out.await(t, `(http://[^/]+/)\?key=\S+`)
		jar, err := cookiejar.New(nil)
		if err != nil {
			t.Fatal(err)
		}
		stranger, mine := &http.Client{}, &http.Client{Jar: jar}
		for _, address := range []string{match[1], match[1] + "?key=guess", match[1] + "status"} {
			if status, text := get(stranger, address); status != http.StatusUnauthorized || strings.Contains(text, "item") {
				t.Errorf("%s without the key: %d\n%s", address, status, text)
			}
		}
		if status, text := get(mine, match[0]); status != http.StatusOK || !strings.Contains(text, "item") || !strings.Contains(text, "two") {
			t.Errorf("with the key: %d\n%s", status, text)
		}
		if status, _ := get(mine, match[1]+"undo?unit=tx:1"); (status == http.StatusNotFound) == revert && !revert {
			t.Errorf("undo: %d with --allow-revert %t", status, revert)
		}
		cancel()
		if got := <-code; got != exitDone {
			t.Errorf("exit code %d\n%s", got, out)
		}
	}
	if _, err, code := c.run(t.Context(), "ui", "--listen", "nonsense"); code != exitError {
		t.Errorf("a wrong address: %d %s", code, err)
	}
}
