package audit_test

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5"

	"github.com/hindsight-go/audit"
	"github.com/hindsight-go/audit/audittest"
)

// told waits until everything is stored and returns a line for each change, in
// the order of history: the given expressions over audit.changes with a space in
// between, those that are NULL left out.
func told(t testing.TB, a *audittest.Audited, expressions string) []string {
	t.Helper()
	a.Sync(t)
	return audittest.Value[[]string](t, a.Database, `
		SELECT coalesce(array_agg(concat_ws(' ', `+expressions+`) ORDER BY position, sequence), '{}')
		FROM audit.changes`)
}

// tell is told, compared with the lines wanted.
func tell(t testing.TB, a *audittest.Audited, expressions string, want ...string) {
	t.Helper()
	if diff := cmp.Diff(want, told(t, a, expressions)); diff != "" {
		t.Errorf("history (-want +got):\n%s", diff)
	}
}

// restart stops capture, does what is given, and starts capture again: what was
// done is decoded later, with the catalog as it is then.
func restart(t testing.TB, a *audittest.Audited, meanwhile func()) {
	t.Helper()
	a.Sync(t)
	a.Stop(t)
	meanwhile()
	if err := a.Client.Start(context.WithoutCancel(t.Context())); err != nil {
		t.Fatalf("start capture again: %v", err)
	}
}

// refresh makes tables that were made meanwhile tracked.
func refresh(t testing.TB, a *audittest.Audited) {
	t.Helper()
	if err := a.Client.Refresh(t.Context()); err != nil {
		t.Fatalf("refresh: %v", err)
	}
}

// unchecked is audittest.New without the check at the end, for tests in which
// the source itself keeps something from history.
func unchecked(t *testing.T, cfg audit.Config, setup ...string) *audittest.Audited {
	t.Helper()
	db := audittest.NewDatabase(t)
	for _, sql := range setup {
		db.Exec(t, sql)
	}
	a := audittest.Open(t, db, cfg)
	if err := a.Client.Start(context.WithoutCancel(t.Context())); err != nil {
		t.Fatalf("start capture: %v", err)
	}
	t.Cleanup(func() { a.Stop(t) })
	return a
}

// byHand is the configuration of a client that looks for new tables only when
// told to: what a test does to a table's replica identity then stays.
var byHand = audit.Config{RefreshInterval: -1}

func TestRolledBackSavepointTakesItsRowsAndMessages(t *testing.T) {
	t.Parallel()
	a := audittest.New(t, audit.Config{}, "CREATE TABLE todo (id int PRIMARY KEY)")
	a.Exec(t, `
		BEGIN;
		SELECT pg_logical_emit_message(true, 'audit', '{"n": 1}');
		INSERT INTO todo VALUES (1);
		SAVEPOINT s;
		SELECT pg_logical_emit_message(true, 'audit', '{"n": 2}');
		INSERT INTO todo VALUES (2);
		ROLLBACK TO s;
		INSERT INTO todo VALUES (3);
		SAVEPOINT s;
		SELECT pg_logical_emit_message(true, 'audit', '{"n": 4}');
		INSERT INTO todo VALUES (4);
		RELEASE s;
		INSERT INTO todo VALUES (5);
		COMMIT;
		BEGIN;
		INSERT INTO todo VALUES (6);
		ROLLBACK`)
	tell(t, a, "sequence, primary_key, context",
		`1 1 {"n": 1}`, `2 3 {"n": 1}`, `3 4 {"n": 4}`, `4 5 {"n": 4}`)
}

func TestRowsOfOneCopyHavePositionsOfTheirOwn(t *testing.T) {
	t.Parallel()
	a := audittest.New(t, audit.Config{}, "CREATE TABLE todo (id int PRIMARY KEY, title text)")
	const n = 5000
	var rows [][]any
	var want []string
	for i := range n {
		rows = append(rows, []any{i, "title " + strconv.Itoa(i)})
		want = append(want, fmt.Sprintf("%d %d", i+1, i))
	}
	conn := a.Connect(t)
	if _, err := conn.CopyFrom(t.Context(), pgx.Identifier{"todo"}, []string{"id", "title"}, pgx.CopyFromRows(rows)); err != nil {
		t.Fatal(err)
	}
	tell(t, a, "sequence, primary_key", want...)
	if got := audittest.Value[int](t, a.Database, "SELECT count(DISTINCT position) FROM audit.changes"); got != 1 {
		t.Errorf("one transaction has %d positions", got)
	}
}

func TestInterleavedTransactionsStandInCommitOrder(t *testing.T) {
	t.Parallel()
	a := audittest.New(t, audit.Config{}, "CREATE TABLE todo (id int PRIMARY KEY)")
	first, second := a.Connect(t), a.Connect(t)
	for _, step := range []struct {
		conn *pgx.Conn
		sql  string
	}{
		{first, "BEGIN; INSERT INTO todo VALUES (11)"},
		{second, "BEGIN; INSERT INTO todo VALUES (21)"},
		{first, "INSERT INTO todo VALUES (12)"},
		{second, "INSERT INTO todo VALUES (22)"},
		{second, "COMMIT"},
		{first, "INSERT INTO todo VALUES (13); COMMIT"},
	} {
		if _, err := step.conn.PgConn().Exec(t.Context(), step.sql).ReadAll(); err != nil {
			t.Fatalf("%s: %v", step.sql, err)
		}
	}
	tell(t, a, "sequence, primary_key", "1 21", "2 22", "1 11", "2 12", "3 13")
}

func TestRacingCommitsAreAllThereAndWhole(t *testing.T) {
	t.Parallel()
	a := audittest.New(t, audit.Config{}, "CREATE TABLE todo (id int, part int, xid xid8, PRIMARY KEY (id, part))")
	const sessions, transactions = 8, 100
	var group sync.WaitGroup
	for s := range sessions {
		conn := a.Connect(t)
		group.Go(func() {
			for n := range transactions {
				_, err := conn.Exec(t.Context(), "INSERT INTO todo SELECT $1, part, pg_current_xact_id() FROM generate_series(1, 2) part", s*transactions+n)
				if err != nil {
					t.Errorf("insert: %v", err)
					return
				}
			}
		})
	}
	group.Wait()
	a.Sync(t)
	// A transaction is one position with its two rows, once.
	got := audittest.Value[string](t, a.Database, `
		SELECT concat_ws(' ', count(*), sum(rows), min(rows), max(rows), max(ids), bool_and(matches))
		FROM (SELECT count(*) AS rows, count(DISTINCT after ->> 'id') AS ids, bool_and((after ->> 'xid')::bigint = transaction_id) AS matches
			FROM audit.changes GROUP BY position) p`)
	if want := "800 1600 2 2 1 t"; got != want {
		t.Errorf("transactions, rows, least and most of a transaction: %s, want %s", got, want)
	}
}

func TestTransactionIDIsTheSourcesOwn(t *testing.T) {
	t.Parallel()
	a := audittest.New(t, audit.Config{}, "CREATE TABLE todo (id xid8 PRIMARY KEY)")
	for range 3 {
		a.Exec(t, "INSERT INTO todo VALUES (pg_current_xact_id())")
	}
	want := audittest.Value[[]string](t, a.Database, "SELECT array_agg(id || ' ' || id ORDER BY id) FROM todo")
	tell(t, a, "primary_key, transaction_id", want...)
}

func TestUnloggedAndTemporaryTablesAreSilent(t *testing.T) {
	t.Parallel()
	a := audittest.New(t, audit.Config{},
		"CREATE TABLE todo (id int PRIMARY KEY)", "CREATE UNLOGGED TABLE scratch (id int PRIMARY KEY)")
	a.Exec(t, `
		CREATE TEMPORARY TABLE mine (id int PRIMARY KEY);
		CREATE UNLOGGED TABLE later (id int PRIMARY KEY)`)
	refresh(t, a)
	a.Exec(t, `
		INSERT INTO scratch VALUES (1);
		INSERT INTO mine VALUES (1);
		INSERT INTO later VALUES (1);
		INSERT INTO todo VALUES (1)`)
	tell(t, a, `"table"`, "todo")
}

func TestUpdateWithoutEffectIsRecorded(t *testing.T) {
	t.Parallel()
	a := audittest.New(t, audit.Config{}, "CREATE TABLE todo (id int PRIMARY KEY, done bool)", "INSERT INTO todo VALUES (1, false)")
	a.Exec(t, "UPDATE todo SET done = done")
	tell(t, a, "operation, primary_key, before, after", `UPDATE 1 {"id": 1, "done": false} {"id": 1, "done": false}`)
}

func TestTruncateNamesEveryTable(t *testing.T) {
	t.Parallel()
	a := audittest.New(t, audit.Config{}, `
		CREATE TABLE users (id int PRIMARY KEY);
		CREATE TABLE todo (id int PRIMARY KEY, user_id int REFERENCES users);
		CREATE TABLE note (id int PRIMARY KEY, todo_id int REFERENCES todo);
		CREATE TABLE other (id int PRIMARY KEY);
		INSERT INTO users VALUES (1);
		INSERT INTO todo VALUES (1, 1)`)
	a.Exec(t, `
		SELECT pg_logical_emit_message(true, 'audit', '{"n": 1}');
		TRUNCATE users, other CASCADE;
		INSERT INTO users VALUES (2)`)
	lines := told(t, a, `sequence, operation, primary_key, before, after, context, defect`)
	tables := audittest.Value[[]string](t, a.Database, `SELECT array_agg("table" ORDER BY "table") FROM audit.changes WHERE operation = 'TRUNCATE'`)
	if diff := cmp.Diff([]string{"note", "other", "todo", "users"}, tables); diff != "" {
		t.Errorf("truncated (-want +got):\n%s", diff)
	}
	want := []string{
		`1 TRUNCATE {} {} {"n": 1}`, `2 TRUNCATE {} {} {"n": 1}`, `3 TRUNCATE {} {} {"n": 1}`, `4 TRUNCATE {} {} {"n": 1}`,
		`5 CREATE 2 {} {"id": 2} {"n": 1}`,
	}
	if diff := cmp.Diff(want, lines); diff != "" {
		t.Errorf("history (-want +got):\n%s", diff)
	}
}

func TestCascadedDeleteFollowsItsParent(t *testing.T) {
	t.Parallel()
	a := audittest.New(t, audit.Config{}, `
		CREATE TABLE users (id int PRIMARY KEY);
		CREATE TABLE todo (id int PRIMARY KEY, user_id int REFERENCES users ON DELETE CASCADE);
		CREATE TABLE note (id int PRIMARY KEY, user_id int REFERENCES users ON DELETE SET NULL);
		INSERT INTO users VALUES (1);
		INSERT INTO todo VALUES (1, 1), (2, 1);
		INSERT INTO note VALUES (1, 1)`)
	a.Exec(t, "DELETE FROM users")
	lines := told(t, a, `operation, "table", primary_key, before, after`)
	if len(lines) != 4 || lines[0] != `DELETE users 1 {"id": 1} {}` {
		t.Fatalf("the parent's DELETE is not first: %q", lines)
	}
	rest := strings.Join(lines[1:], "\n")
	for _, want := range []string{
		`DELETE todo 1 {"id": 1, "user_id": 1} {}`, `DELETE todo 2 {"id": 2, "user_id": 1} {}`,
		`UPDATE note 1 {"id": 1, "user_id": 1} {"id": 1, "user_id": null}`,
	} {
		if !strings.Contains(rest, want) {
			t.Errorf("history lacks %s:\n%s", want, rest)
		}
	}
}

func TestChangesAreCapturedHoweverTheyAreMade(t *testing.T) {
	t.Parallel()
	a := audittest.New(t, audit.Config{}, `
		CREATE TABLE todo (id int PRIMARY KEY, title text);
		CREATE TABLE log (id int PRIMARY KEY GENERATED ALWAYS AS IDENTITY, what text);
		CREATE FUNCTION add(title text) RETURNS void LANGUAGE sql AS $$ INSERT INTO todo SELECT coalesce(max(id), 0) + 1, $1 FROM todo $$;
		CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
			INSERT INTO log (what) VALUES (TG_OP); NEW.title := upper(NEW.title); RETURN NEW; END $$;
		CREATE TRIGGER note BEFORE INSERT OR UPDATE ON todo FOR EACH ROW EXECUTE FUNCTION note();
		CREATE PROCEDURE twice() LANGUAGE plpgsql AS $$ BEGIN
			PERFORM add('p1'); COMMIT; PERFORM add('p2'); END $$;
		CREATE VIEW open AS SELECT * FROM todo;
		CREATE TABLE source AS SELECT 7 AS id, 'merged' AS title`)
	a.Exec(t, "SELECT add('f')")
	a.Exec(t, "CALL twice()")
	a.Exec(t, "UPDATE open SET title = 'v' WHERE id = 1")
	a.Exec(t, "WITH gone AS (DELETE FROM todo WHERE id = 2 RETURNING *) INSERT INTO todo SELECT 20, title FROM gone")
	a.Exec(t, "INSERT INTO todo VALUES (1, 'c') ON CONFLICT (id) DO UPDATE SET title = excluded.title")
	a.Exec(t, "PREPARE p AS INSERT INTO todo VALUES (5, 'prepared'); EXECUTE p")
	a.Exec(t, "DO $$ BEGIN INSERT INTO todo SELECT * FROM source; END $$")
	tell(t, a, `operation, "table", primary_key, after ->> 'title', after ->> 'what'`,
		"CREATE log 1 INSERT", "CREATE todo 1 F",
		"CREATE log 2 INSERT", "CREATE todo 2 P1",
		"CREATE log 3 INSERT", "CREATE todo 3 P2",
		"CREATE log 4 UPDATE", "UPDATE todo 1 V",
		"DELETE todo 2", "CREATE log 5 INSERT", "CREATE todo 20 P1",
		"CREATE log 6 INSERT", "CREATE log 7 UPDATE", "UPDATE todo 1 C",
		"CREATE log 8 INSERT", "CREATE todo 5 PREPARED",
		"CREATE log 9 INSERT", "CREATE todo 7 MERGED")
}

func TestChildrenOfInheritanceStandUnderTheirOwnNames(t *testing.T) {
	t.Parallel()
	a := audittest.New(t, audit.Config{}, `
		CREATE TABLE city (id int PRIMARY KEY, name text);
		CREATE TABLE capital (country text, PRIMARY KEY (id)) INHERITS (city);
		INSERT INTO city VALUES (1, 'Bern');
		INSERT INTO capital VALUES (2, 'Rome', 'IT')`)
	a.Exec(t, "UPDATE city SET name = upper(name)")
	a.Exec(t, "DELETE FROM city WHERE id = 2")
	tell(t, a, `operation, "table", primary_key, before, after`,
		`UPDATE city 1 {"id": 1, "name": "Bern"} {"id": 1, "name": "BERN"}`,
		`UPDATE capital 2 {"id": 2, "name": "Rome", "country": "IT"} {"id": 2, "name": "ROME", "country": "IT"}`,
		`DELETE capital 2 {"id": 2, "name": "ROME", "country": "IT"} {}`)
}

func TestPreparedTransactionArrivesWhenItCommits(t *testing.T) {
	t.Parallel()
	server := audittest.NewServer(t, audittest.ServerOptions{Settings: map[string]string{"max_prepared_transactions": "5"}})
	db := server.NewDatabase(t)
	db.Exec(t, "CREATE TABLE todo (id int PRIMARY KEY)")
	a := capturing(t, db, audit.Config{})
	a.Exec(t, `
		BEGIN;
		SELECT pg_logical_emit_message(true, 'audit', '{"n": 1}');
		INSERT INTO todo VALUES (1);
		PREPARE TRANSACTION 'one'`)
	a.Exec(t, "BEGIN; INSERT INTO todo VALUES (9); PREPARE TRANSACTION 'nine'")
	a.Exec(t, "INSERT INTO todo VALUES (2)")
	tell(t, a, "primary_key, context", "2")
	a.Exec(t, "ROLLBACK PREPARED 'nine'")
	a.Exec(t, "COMMIT PREPARED 'one'")
	tell(t, a, "primary_key, context", "2", `1 {"n": 1}`)
}

// The store is in the source: what is written there must not come back.
func TestTheStoreDoesNotFeedBack(t *testing.T) {
	t.Parallel()
	a := audittest.New(t, audit.Config{}, "CREATE TABLE todo (id int PRIMARY KEY)")
	a.Exec(t, "INSERT INTO todo SELECT generate_series(1, 100)")
	for range 3 {
		a.Sync(t)
		refresh(t, a)
	}
	a.Exec(t, "INSERT INTO todo VALUES (101)")
	a.Sync(t)
	if got := audittest.Value[string](t, a.Database, `SELECT count(*) || ' ' || count(*) FILTER (WHERE schema = 'audit') FROM audit.changes`); got != "101 0" {
		t.Errorf("changes, and those of the store: %s", got)
	}
	if got := audittest.Value[int](t, a.Database, "SELECT count(*) FROM pg_publication_tables WHERE schemaname = 'audit'"); got != 0 {
		t.Errorf("%d tables of the store are published", got)
	}
	status, err := a.Client.Status(t.Context())
	if err != nil || status.Changes != 101 {
		t.Errorf("status counts %d changes, error %v", status.Changes, err)
	}
}

// A source whose writes do not concern us must not hold back WAL.
func TestUnrelatedWritesLetTheSlotAdvance(t *testing.T) {
	t.Parallel()
	a := audittest.New(t, audit.Config{Tables: []string{"public.*", "!public.noise"}},
		"CREATE TABLE todo (id int PRIMARY KEY)", "CREATE TABLE noise (id int, filler text)")
	a.Exec(t, "INSERT INTO noise SELECT n, repeat('x', 1000) FROM generate_series(1, 5000) n")
	end := audittest.Value[string](t, a.Database, "SELECT pg_current_wal_insert_lsn()::text")
	until(t, "the slot is confirmed behind what concerns nobody", func() bool {
		// A further commit makes the server send a keepalive, as any cluster has.
		a.Exec(t, "INSERT INTO noise VALUES (0)")
		return audittest.Value[bool](t, a.Database, "SELECT confirmed_flush_lsn + (1 << 20) >= $1::pg_lsn FROM pg_replication_slots WHERE database = current_database()", end)
	})
	if got := told(t, a, "primary_key"); len(got) != 0 {
		t.Errorf("history has changes of a table that is excluded: %q", got)
	}
}

// until polls with a deadline.
func until(t testing.TB, what string, reached func() bool) {
	t.Helper()
	deadline := time.NewTimer(30 * time.Second)
	defer deadline.Stop()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for !reached() {
		select {
		case <-deadline.C:
			t.Fatalf("not within 30 s: %s", what)
		case <-tick.C:
		}
	}
}
