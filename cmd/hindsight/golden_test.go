package main

import (
	"bytes"
	"context"
	"flag"
	"fmt"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5"

	"github.com/hindsight-go/audit"
	"github.com/hindsight-go/audit/audittest"
)

var update = flag.Bool("update", false, "write what the commands print into the golden files and docs")

// A script is text that shows a terminal: behind "$ hindsight ..." stands what that
// prints, and behind "$ echo $?" with which code it ended.

// story is a database with a known history, in which scripts are played.
type story struct {
	*audittest.Audited
	db *pgx.Conn
	// names are stable names of what differs from run to run.
	hashes map[string]string
}

// newStory is a shop: somebody archives the wrong customer, and somebody else goes on
// with one of the orders.
func newStory(t *testing.T, more ...string) *story {
	t.Helper()
	db := audittest.NewServer(t, audittest.ServerOptions{Settings: map[string]string{"max_slot_wal_keep_size": "10GB"}}).NewDatabase(t)
	s := &story{hashes: make(map[string]string)}
	db.Exec(t, `
		CREATE TABLE customer (id int PRIMARY KEY, name text, state text);
		CREATE TABLE orders (id int PRIMARY KEY, customer int REFERENCES customer, state text, total numeric(10,2));
		CREATE TABLE line_item ("order" int, n int, what text, PRIMARY KEY ("order", n));
		INSERT INTO customer VALUES (1, 'Ann', 'active'), (2, 'Bob', 'active');
		INSERT INTO orders VALUES (10, 1, 'paid', 12.50), (11, 2, 'paid', 99.00), (12, 2, 'open', 7.25), (13, 2, 'cart', NULL);
		INSERT INTO line_item VALUES (11, 1, 'lamp'), (11, 2, 'bulb')`)
	for _, sql := range more {
		db.Exec(t, sql)
	}
	s.Audited = audittest.Open(t, db, audit.Config{Environment: "production", Tables: []string{"public.*", `"odd.schema".*`}, RefreshInterval: -1})
	if err := s.Client.Start(context.WithoutCancel(t.Context())); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Stop(t) })
	s.db = db.Connect(t)
	s.request(t, "u-17", "req-1", "PATCH /customer/{id}", "UPDATE customer SET name = 'Anne' WHERE id = 1")
	s.request(t, "u-17", "req-2", "POST /customer/{id}/archive",
		"UPDATE customer SET state = 'archived' WHERE id = 2",
		"UPDATE orders SET state = 'closed' WHERE customer = 2 AND state <> 'cart'",
		"DELETE FROM orders WHERE id = 13")
	s.request(t, "u-42", "req-3", "POST /order/{id}/refund", "UPDATE orders SET state = 'refunded' WHERE id = 11")
	s.request(t, "", "", "", "UPDATE orders SET total = 12.00 WHERE id = 10")
	s.request(t, "u-42", "req-4", "PUT /item", "UPDATE line_item SET what = 'bulb, E27' WHERE n = 2")
	s.Sync(t)
	return s
}

// request writes in one transaction, in a second of its own.
func (s *story) request(t *testing.T, user, id, endpoint string, statements ...string) {
	t.Helper()
	s.nextSecond(t)
	ctx := t.Context()
	if user != "" {
		ctx = audit.WithContext(ctx, audit.Context{UserID: user, RequestID: id, Endpoint: endpoint})
	}
	err := pgx.BeginFunc(ctx, s.db, func(tx pgx.Tx) error {
		if err := audit.Stamp(ctx, tx); err != nil {
			return err
		}
		for _, sql := range statements {
			if _, err := tx.Exec(ctx, sql); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// nextSecond waits for it, so that times tell transactions apart.
func (s *story) nextSecond(t *testing.T) {
	t.Helper()
	if _, err := s.db.Exec(t.Context(), "SELECT pg_sleep_for(date_trunc('second', clock_timestamp()) + '1.02 s' - clock_timestamp())"); err != nil {
		t.Fatal(err)
	}
}

// environment is that of the command.
func (s *story) environment(name string) string {
	return map[string]string{"DATABASE_URL": s.URL(), "TZ": "UTC"}[name]
}

// output is what a command prints, stable from run to run, and its exit code.
func (s *story) output(t *testing.T, args ...string) (string, int) {
	t.Helper()
	args = s.actual(t, args)
	if slices.Contains(args, "--yes") || args[0] == "mark" {
		s.nextSecond(t)
	}
	var out bytes.Buffer
	code := run(t.Context(), args, streams{in: strings.NewReader(""), out: &out, err: &out, getenv: s.environment})
	s.Sync(t) // so that history has what it names
	return s.stable(t, out.String()), code
}

// begin is when the story begins, for readers.
var begin = time.Date(2026, 11, 26, 1, 20, 0, 0, time.UTC)

var (
	anyLSN   = regexp.MustCompile(`\b[0-9A-F]{1,8}/[0-9A-F]{6,8}\b`)
	anyHash  = regexp.MustCompile(`\b([0-9a-f]{64}|[0-9a-f]{32}|[0-9a-f]{24})\b|\b[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}\b`)
	anyTime  = regexp.MustCompile(`\b(\d{4}-)?\d\d-\d\d[ T]\d\d:\d\d:\d\d(\.\d+)?( [+-]\d\d:\d\d|Z)?`)
	anyBytes = regexp.MustCompile(`\b\d+(\.\d+)? (B|kB|MB)\b`)
	// When capture came to a change, which may be in the second of the next one.
	anyQueued = regexp.MustCompile(`("(?:queuedAt|createdAt)": ?")[^"]*`)
	anyServer = regexp.MustCompile(`PostgreSQL \d+\.\d+`)
	// The latest commit that the store has seen may be one that changed nothing tracked.
	latest    = regexp.MustCompile(`(latest      )\S+ \S+|("committedAt": ")[^"]*(",\s*"changes")`)
	anyNumber = regexp.MustCompile(`("(?:lagBytes|retainedBytes|safeBytes)": )\d+`)
)

// stable replaces what differs from run to run: positions, transactions, times, ids.
func (s *story) stable(t *testing.T, text string) string {
	t.Helper()
	transactions, err := s.transactions(t)
	if err != nil {
		t.Fatal(err)
	}
	lsns, times := make(map[string]string), make(map[string]time.Time)
	for i, tx := range transactions {
		lsns[tx.Position.String()] = fmt.Sprintf("0/1A%05X", 0x1000*(i+1))
		text = regexp.MustCompile(fmt.Sprintf(`(\btransaction |\btx:|"transactionId": ?|"kind": ?"transaction",\s*"id": ?")%d\b`, tx.ID)).ReplaceAllString(text, fmt.Sprintf("${1}%d", 701+i))
		times[tx.CommittedAt.Format("01-02 15:04:05")] = begin.Add(time.Duration(i) * time.Minute)
	}
	text = anyLSN.ReplaceAllStringFunc(text, func(lsn string) string {
		if name, ok := lsns[lsn]; ok {
			return name
		}
		return "0/1A00000"
	})
	text = anyTime.ReplaceAllStringFunc(text, func(at string) string {
		parts := anyTime.FindStringSubmatch(at)
		clock := strings.Replace(strings.TrimPrefix(at, parts[1]), "T", " ", 1)[:len("01-02 15:04:05")]
		known, ok := times[clock]
		if !ok {
			known = begin.Add(-20 * time.Minute)
		}
		form := "01-02 15:04:05"
		if strings.Contains(at, "T") {
			form = "01-02T15:04:05"
		}
		if parts[1] != "" {
			form = "2006-" + form
		}
		return known.Format(form) + parts[3]
	})
	text = anyHash.ReplaceAllStringFunc(text, func(hash string) string {
		if s.hashes[hash] == "" {
			s.hashes[hash] = fmt.Sprintf("%0*d", len(hash), len(s.hashes)+1)
		}
		return s.hashes[hash]
	})
	text = anyNumber.ReplaceAllString(text, "${1}0")
	text = anyQueued.ReplaceAllString(text, "${1}2026-11-26T01:00:00Z")
	text = latest.ReplaceAllStringFunc(text, func(at string) string {
		if parts := latest.FindStringSubmatch(at); parts[1] == "" {
			return parts[2] + "2026-11-26T01:00:00Z" + parts[3]
		}
		return "latest      11-26 01:00:00"
	})
	text = anyServer.ReplaceAllString(text, "PostgreSQL 17.2")
	text = anyBytes.ReplaceAllString(text, "0 B")
	return strings.ReplaceAll(text, s.Name(), "shop")
}

func (s *story) transactions(t *testing.T) (all []audit.Transaction, err error) {
	t.Helper()
	for tx, err := range s.Client.Changes().OldestFirst().Transactions(t.Context()) {
		if err != nil {
			return nil, err
		}
		all = append(all, tx)
	}
	return all, nil
}

// actual puts what a script calls by a stable name back.
func (s *story) actual(t *testing.T, args []string) []string {
	t.Helper()
	transactions, err := s.transactions(t)
	if err != nil {
		t.Fatal(err)
	}
	replaced := make([]string, len(args))
	for i, arg := range args {
		for n, tx := range transactions {
			arg = strings.ReplaceAll(arg, fmt.Sprintf("0/1A%05X", 0x1000*(n+1)), tx.Position.String())
			arg = regexp.MustCompile(fmt.Sprintf(`tx:%d\b`, 701+n)).ReplaceAllString(arg, fmt.Sprintf("tx:%d", tx.ID))
		}
		for hash, name := range s.hashes {
			arg = strings.ReplaceAll(arg, name, hash)
		}
		replaced[i] = arg
	}
	return replaced
}

// arguments splits a command line as a shell does.
func arguments(line string) (args []string) {
	var word strings.Builder
	var quote rune
	begun := false
	for _, r := range line {
		switch {
		case quote != 0 && r == quote:
			quote = 0
		case quote != 0:
			word.WriteRune(r)
		case r == '"' || r == '\'':
			quote, begun = r, true
		case r == ' ':
			if begun {
				args = append(args, word.String())
				word.Reset()
			}
			begun = false
		default:
			word.WriteRune(r)
			begun = true
		}
	}
	if begun {
		args = append(args, word.String())
	}
	return args
}

// play runs the commands of a script and returns it as it went. Lines that begin with
// "# " say what follows; a blank line before one, or before a command, stays.
func (s *story) play(t *testing.T, script string) string {
	t.Helper()
	var played strings.Builder
	code, before := 0, "$"
	for line := range strings.Lines(script) {
		line = strings.TrimSuffix(line, "\n")
		command, ok := strings.CutPrefix(line, "$ ")
		if ok || strings.HasPrefix(line, "# ") {
			if before == "" {
				played.WriteByte('\n')
			}
			played.WriteString(line + "\n")
		}
		before = line
		switch {
		case !ok:
		case command == "echo $?":
			fmt.Fprintf(&played, "%d\n", code)
		case strings.HasPrefix(command, "hindsight "):
			var out string
			out, code = s.output(t, arguments(strings.TrimPrefix(command, "hindsight "))...)
			played.WriteString(out)
		default:
			t.Fatalf("a script cannot run %q", command)
		}
	}
	return played.String()
}

// golden plays a file.
func (s *story) golden(t *testing.T, name string) {
	t.Helper()
	text, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	played := s.play(t, string(text))
	if *update {
		if err := os.WriteFile(name, []byte(played), 0o600); err != nil {
			t.Fatal(err)
		}
		return
	}
	if diff := cmp.Diff(string(text), played); diff != "" {
		t.Errorf("%s (-want +got; write it anew with go test -update):\n%s", name, diff)
	}
}

// Scripts that write come last, each with its own story.
func TestGolden(t *testing.T) {
	t.Parallel()
	s := newStory(t, `CREATE SCHEMA "odd.schema"; CREATE TABLE "odd.schema"."odd table" ("the key" text PRIMARY KEY, "a b" bytea, note text)`)
	s.request(t, "", "", "", `INSERT INTO "odd.schema"."odd table" VALUES ('it''s', '\x00ff', E'two\nlines')`)
	s.Sync(t)
	for _, name := range []string{"log", "show", "row", "past", "formats", "errors"} {
		s.golden(t, "testdata/"+name+".golden")
	}
}

func TestGoldenRevert(t *testing.T) {
	t.Parallel()
	newStory(t).golden(t, "testdata/revert.golden")
}
