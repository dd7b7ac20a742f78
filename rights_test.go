package audit_test

import (
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/hindsight-go/audit"
	"github.com/hindsight-go/audit/audittest"
	"github.com/hindsight-go/audit/internal/faulttest"
)

// leastRights is a history whose store has an owner that nobody logs in as, made by the
// script of SetupSQL: the program owns its tables, and writes the history as another role.
type leastRights struct {
	*audittest.Database
	client                 *audit.Client
	cfg                    audit.Config
	program, owner, writer string
	reader                 string
}

const rightsTables = `
	CREATE TABLE todo (id int PRIMARY KEY, task text);
	CREATE TABLE note (id int PRIMARY KEY, todo int REFERENCES todo ON DELETE CASCADE, body text);
	INSERT INTO todo SELECT n, 'before' FROM generate_series(1, 20) n`

// setUpLeastRights runs the script as a superuser and does not start.
func setUpLeastRights(t *testing.T, cfg audit.Config) *leastRights {
	t.Helper()
	db := audittest.NewDatabase(t)
	l := &leastRights{Database: db, cfg: cfg}
	l.program = newRole(t, db, "REPLICATION")
	l.owner, l.writer, l.reader = "o_"+db.Name(), "w_"+db.Name(), "q_"+db.Name()
	t.Cleanup(func() {
		for _, role := range []string{l.reader, l.writer, l.owner} {
			db.Exec(t, fmt.Sprintf(`DO $$ BEGIN IF EXISTS (SELECT FROM pg_roles WHERE rolname = '%s') THEN DROP OWNED BY %[1]s CASCADE; DROP ROLE %[1]s; END IF; END $$`, role))
		}
	})
	db.Exec(t, "GRANT CREATE ON SCHEMA public TO "+l.program)
	db.Exec(t, "SET ROLE "+l.program+";"+rightsTables+"; RESET ROLE")
	l.cfg.SourceURL, l.cfg.StoreURL = asRole(t, db, l.program), asRole(t, db, l.writer)
	l.cfg.StoreRoles = audit.StoreRoles{Owner: l.owner, Writer: l.writer, Reader: l.reader}
	if l.cfg.Schema == "" {
		l.cfg.Schema = "audit"
	}
	admin := l.cfg
	admin.SourceURL, admin.StoreURL = db.URL(), db.URL()
	script, err := openClient(t, admin).SetupSQL(t.Context(), l.program)
	if err != nil {
		t.Fatal(err)
	}
	runScript(t, db, script)
	db.Exec(t, "ALTER PUBLICATION audit OWNER TO "+l.program) // so that it may add tables of its own later
	l.client = openClient(t, l.cfg)
	return l
}

// start starts capture, and stops it when the test ends.
func (l *leastRights) start(t *testing.T) {
	t.Helper()
	if err := l.client.Start(t.Context()); err != nil {
		t.Fatalf("start: %v", err)
	}
	t.Cleanup(l.client.Close)
}

func (l *leastRights) sync(t *testing.T) {
	t.Helper()
	if err := l.client.Sync(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// The whole library works where the program's role of the store owns nothing.
func TestLeastRights_EndToEnd(t *testing.T) {
	t.Parallel()
	log := new(faulttest.Log)
	l := setUpLeastRights(t, audit.Config{Retention: months, Logger: log.Logger()})
	l.start(t)
	ctx := t.Context()
	app := faulttest.Connect(t, asRole(t, l.Database, l.program))
	exec := func(sql string, args ...any) {
		t.Helper()
		if _, err := app.Exec(ctx, sql, args...); err != nil {
			t.Fatalf("%s: %v", sql, err)
		}
	}
	marks := 0
	at := func() audit.Position {
		t.Helper()
		marks++
		p, err := l.client.Mark(ctx, fmt.Sprint("mark ", marks))
		if err != nil {
			t.Fatal(err)
		}
		return p
	}
	stamp := func(c audit.Context, late bool, sql string) {
		t.Helper()
		err := pgx.BeginFunc(ctx, app, func(tx pgx.Tx) error {
			if late {
				if _, err := tx.Exec(ctx, sql); err != nil {
					return err
				}
			}
			if err := audit.Stamp(audit.WithContext(ctx, c), tx); err != nil {
				return err
			}
			if !late {
				_, err := tx.Exec(ctx, sql)
				return err
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	exec("INSERT INTO todo VALUES (100, 'first')")
	before := at()

	// Context, also one that comes after the rows.
	stamp(audit.Context{UserID: "ann", RequestID: "r-1"}, false, "UPDATE todo SET task = 'ann' WHERE id <= 10")
	stamp(audit.Context{UserID: "bob", RequestID: "r-2"}, true, "UPDATE todo SET task = 'bob' WHERE id > 10")
	l.sync(t)
	for user, want := range map[string]int64{"ann": 10, "bob": 11} {
		if n, err := l.client.Changes().ByUser(user).Count(ctx); err != nil || n != want {
			t.Errorf("changes of %s: %d, %v, want %d", user, n, err, want)
		}
	}
	// What the stream leaves out is filled in.
	exec("ALTER TABLE todo REPLICA IDENTITY DEFAULT")
	exec("UPDATE todo SET task = 'thrice' WHERE id = 100")
	l.sync(t)
	// Structure, and a table that comes later.
	exec("ALTER TABLE todo ADD COLUMN due date DEFAULT '2026-01-01'")
	exec("CREATE TABLE later (id int PRIMARY KEY); INSERT INTO later VALUES (1)")
	if err := l.client.Refresh(ctx); err != nil {
		t.Fatal(err)
	}
	exec("INSERT INTO later VALUES (2)")

	// The past, marks, baselines.
	var task string
	if err := l.client.AtPosition(before).View(ctx, func(tx pgx.Tx) error {
		return tx.QueryRow(ctx, "SELECT string_agg(DISTINCT task, ',' ORDER BY task) FROM todo").Scan(&task)
	}); err != nil || task != "before,first" {
		t.Errorf("the past says %q, %v", task, err)
	}
	if err := l.client.Baseline(ctx, nil); err != nil {
		t.Fatal(err)
	}
	// Undo, and what it registers.
	result, err := l.client.RevertRequest("r-1").Apply(audit.WithContext(ctx, audit.Context{UserID: "cat"}))
	if err != nil {
		t.Fatal(err)
	}
	l.sync(t)
	if n := audittest.Value[int](t, l.Database, "SELECT count(*) FROM todo WHERE task = 'before'"); n != 10 {
		t.Errorf("%d rows were restored, want 10", n)
	}
	if n := audittest.Value[int](t, l.Database, "SELECT count(*) FROM audit.reverts WHERE done_position IS NOT NULL"); n != 1 {
		t.Errorf("the register has %d reverts, want 1 (%v)", n, result)
	}
	// Retention, which carries the baseline along.
	l.Exec(t, "SELECT audit.ensure_partition(now() - n * interval '1 day') FROM generate_series(1, 121, 20) n")
	l.Exec(t, "UPDATE audit.changes SET committed_at = committed_at - interval '100 days'")
	l.Exec(t, "UPDATE audit.commit_times SET committed_at = committed_at - interval '100 days'")
	if err := audit.KeepPartitions(ctx, l.client); err != nil {
		t.Fatal(err)
	}
	if dropped := audittest.Value[[]string](t, l.Database, "SELECT array_agg(DISTINCT dropped_by) FROM audit.retention"); len(dropped) != 1 || dropped[0] != l.writer {
		t.Errorf("the months were dropped by %v, want %s", dropped, l.writer)
	}
	// Restarts, with all there.
	if err := l.client.Stop(ctx); err != nil {
		t.Fatal(err)
	}
	exec("UPDATE todo SET task = 'while stopped' WHERE id = 1")
	l.start(t)
	now := at()
	exec("TRUNCATE note, todo")
	l.sync(t)
	if n, err := l.client.AtPosition(now).Table("todo").Count(ctx); err != nil || n != 21 {
		t.Errorf("before it was truncated the table had %d rows, %v, want 21", n, err)
	}
	if text := log.Text(); strings.Contains(text, "permission denied") || strings.Contains(text, "must be owner") {
		t.Errorf("something lacks rights:\n%s", text)
	}

	// The reader reads what it was given, by list.
	readerURL := asRole(t, l.Database, l.reader)
	l.Exec(t, "ALTER ROLE "+l.reader+" LOGIN")
	reader := openClient(t, audit.Config{SourceURL: readerURL})
	if n, err := reader.Changes().ByUser("bob").Count(ctx); err != nil || n != 0 {
		t.Errorf("the reader counts %d changes, %v, want 0: retention has dropped them", n, err)
	}
	if n, err := reader.Changes().Count(ctx); err != nil || n == 0 {
		t.Errorf("the reader counts %d changes, %v", n, err)
	}
	if _, err := faulttest.Connect(t, readerURL).Exec(ctx, "SELECT FROM audit.tokens"); err == nil {
		t.Error("the reader reads the tokens")
	}
}

// ownStore skips a test that takes a store of its client's own where all tests run with
// least rights (make least-rights).
func ownStore(t *testing.T, why string) {
	t.Helper()
	if os.Getenv("AUDIT_TEST_LEAST_RIGHTS") != "" {
		t.Skip("not with least rights: " + why)
	}
}
