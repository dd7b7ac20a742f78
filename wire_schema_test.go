package audit_test

import (
	"slices"
	"strings"
	"testing"

	"github.com/hindsight-go/audit"
	"github.com/hindsight-go/audit/audittest"
)

// toasted is SQL for a text that is stored out of line.
const toasted = "(SELECT string_agg(md5(n::text), '') FROM generate_series(1, 1000) n)"

// short shows an image with its long value cut.
const short = "CASE WHEN %[1]s ? 'body' THEN jsonb_set(%[1]s, '{body}', to_jsonb(left(%[1]s ->> 'body', 4) || length(%[1]s ->> 'body'))) ELSE %[1]s END"

func shortImages() string {
	return strings.ReplaceAll(short, "%[1]s", "before") + ", " + strings.ReplaceAll(short, "%[1]s", "after")
}

func TestUnchangedToastedValueIsInTheImage(t *testing.T) {
	t.Parallel()
	a := audittest.New(t, audit.Config{}, "CREATE TABLE todo (id int PRIMARY KEY, body text, done bool)", "ALTER TABLE todo ALTER body SET STORAGE EXTERNAL")
	a.Exec(t, `
		INSERT INTO todo VALUES (1, `+toasted+`, false);
		UPDATE todo SET done = true;
		UPDATE todo SET body = 'now ' || body;
		UPDATE todo SET id = 2;
		DELETE FROM todo`)
	tell(t, a, "operation, primary_key, "+shortImages()+", defect",
		`CREATE 1 {} {"id": 1, "body": "c4ca32000", "done": false}`,
		`UPDATE 1 {"id": 1, "body": "c4ca32000", "done": false} {"id": 1, "body": "c4ca32000", "done": true}`,
		`UPDATE 1 {"id": 1, "body": "c4ca32000", "done": true} {"id": 1, "body": "now 32004", "done": true}`,
		`UPDATE 2 {"id": 1, "body": "now 32004", "done": true} {"id": 2, "body": "now 32004", "done": true}`,
		`DELETE 2 {"id": 2, "body": "now 32004", "done": true} {}`)
}

// Somebody sets the replica identity back: what the stream leaves out is taken
// from the last stored image.
func TestReplicaIdentityDefaultIsFilledFromHistory(t *testing.T) {
	t.Parallel()
	a := audittest.New(t, audit.Config{RefreshInterval: -1, NoEventTrigger: true}, "CREATE TABLE todo (id int PRIMARY KEY, body text, done bool)", "INSERT INTO todo VALUES (9, "+toasted+", true)")
	a.Exec(t, `
		INSERT INTO todo VALUES (1, `+toasted+`, false), (2, 'two', false);
		ALTER TABLE todo REPLICA IDENTITY DEFAULT`)
	a.Exec(t, "UPDATE todo SET done = true WHERE id = 1")
	a.Exec(t, `
		UPDATE todo SET done = NULL WHERE id = 1;
		UPDATE todo SET id = 10 WHERE id = 1`)
	a.Exec(t, "DELETE FROM todo WHERE id = 10")
	a.Exec(t, "DELETE FROM todo WHERE id = 2")
	// Of this row nothing was ever stored.
	a.Exec(t, "UPDATE todo SET done = false WHERE id = 9")
	a.Exec(t, "UPDATE todo SET done = true WHERE id = 9")
	const incomplete, unknown = "before: incomplete, the table was not REPLICA IDENTITY FULL", "after: unchanged values not in the stream: body"
	tell(t, a, "operation, primary_key, previous_key, "+shortImages()+", defect",
		`CREATE 1 {} {"id": 1, "body": "c4ca32000", "done": false}`, `CREATE 2 {} {"id": 2, "body": "two3", "done": false}`,
		`UPDATE 1 {"id": 1, "body": "c4ca32000", "done": false} {"id": 1, "body": "c4ca32000", "done": true}`,
		`UPDATE 1 {"id": 1, "body": "c4ca32000", "done": true} {"id": 1, "body": "c4ca32000", "done": null}`,
		`UPDATE 10 1 {"id": 1, "body": "c4ca32000", "done": null} {"id": 10, "body": "c4ca32000", "done": null}`,
		`DELETE 10 {"id": 10, "body": "c4ca32000", "done": null} {}`,
		`DELETE 2 {"id": 2, "body": "two3", "done": false} {}`,
		`UPDATE 9 {} {"id": 9, "done": false} `+incomplete+`; `+unknown,
		`UPDATE 9 {"id": 9, "done": false} {"id": 9, "done": true} `+unknown)
}

// Many rows in one transaction: the completion runs in batches, and between the
// rows it needs.
func TestReplicaIdentityDefaultInALargeTransaction(t *testing.T) {
	t.Parallel()
	a := audittest.New(t, byHand, "CREATE TABLE todo (id int PRIMARY KEY, body text, done int)")
	a.Exec(t, `
		INSERT INTO todo SELECT n, repeat('x', 100), 0 FROM generate_series(1, 1000) n;
		ALTER TABLE todo REPLICA IDENTITY DEFAULT`)
	a.Exec(t, `
		BEGIN;
		UPDATE todo SET done = 1;
		UPDATE todo SET done = 2;
		DELETE FROM todo WHERE id % 2 = 0;
		SELECT pg_logical_emit_message(true, 'audit', '{"n": 1}');
		COMMIT`)
	a.Sync(t)
	got := audittest.Value[[]string](t, a.Database, `
		SELECT array_agg(line ORDER BY line) FROM (
			SELECT concat_ws(' ', operation, before -> 'done', after -> 'done', context, defect, count(*)) AS line
			FROM audit.changes WHERE operation <> 'CREATE' AND before ->> 'body' = repeat('x', 100)
			GROUP BY operation, before -> 'done', after -> 'done', context, defect) l`)
	want := `DELETE 2 {"n": 1} 500|UPDATE 0 1 {"n": 1} 1000|UPDATE 1 2 {"n": 1} 1000`
	if strings.Join(got, "|") != want {
		t.Errorf("history: %q", got)
	}
}

// With an index as the identity the stream does not know the key of a row that
// is deleted: what is not known has to be said.
func TestReplicaIdentityUsingIndex(t *testing.T) {
	t.Parallel()
	a := unchecked(t, audit.Config{RefreshInterval: -1, NoEventTrigger: true}, "CREATE TABLE todo (id int PRIMARY KEY, code text NOT NULL, title text)", "CREATE UNIQUE INDEX by_code ON todo (code)")
	a.Exec(t, `
		INSERT INTO todo VALUES (1, 'a', 'x'), (2, 'b', 'y');
		ALTER TABLE todo REPLICA IDENTITY USING INDEX by_code`)
	a.Exec(t, "UPDATE todo SET title = 'xx' WHERE id = 1")
	a.Exec(t, "UPDATE todo SET code = 'aa' WHERE id = 1")
	a.Exec(t, "UPDATE todo SET id = 20 WHERE id = 2")
	a.Exec(t, "DELETE FROM todo WHERE id = 1")
	tell(t, a, "operation, coalesce(primary_key, '-'), previous_key, before, after, defect",
		`CREATE 1 {} {"id": 1, "code": "a", "title": "x"}`, `CREATE 2 {} {"id": 2, "code": "b", "title": "y"}`,
		`UPDATE 1 {"id": 1, "code": "a", "title": "x"} {"id": 1, "code": "a", "title": "xx"}`,
		`UPDATE 1 {"id": 1, "code": "a", "title": "xx"} {"id": 1, "code": "aa", "title": "xx"}`,
		`UPDATE 20 {} {"id": 20, "code": "b", "title": "y"} before: incomplete, the table was not REPLICA IDENTITY FULL`,
		`DELETE - {"code": "aa"} {} before: incomplete, the table was not REPLICA IDENTITY FULL`)
	// Capture sets it right by itself when it next looks.
	refresh(t, a)
	a.Exec(t, "DELETE FROM todo")
	lines := told(t, a, "operation, primary_key, before, defect")
	if got := lines[len(lines)-1]; got != `DELETE 20 {"id": 20, "code": "b", "title": "y"}` {
		t.Errorf("after a refresh: %s", got)
	}
}

func TestColumnsChangeInMidStream(t *testing.T) {
	t.Parallel()
	steps := []string{
		"INSERT INTO todo VALUES (1, 'a')",
		"ALTER TABLE todo ADD done bool",
		"INSERT INTO todo VALUES (2, 'b', true)",
		"ALTER TABLE todo RENAME title TO name",
		"UPDATE todo SET name = upper(name)",
		"ALTER TABLE todo ALTER done TYPE int USING done::int",
		"INSERT INTO todo VALUES (3, 'c', 3)",
		"ALTER TABLE todo DROP name",
		"DELETE FROM todo WHERE id = 1",
		"ALTER TABLE todo ADD name jsonb",
		`INSERT INTO todo VALUES (4, 4, '{"x": 1.10}')`,
	}
	want := []string{
		`CREATE 1 {} {"id": 1, "title": "a"}`,
		`CREATE 2 {} {"id": 2, "done": true, "title": "b"}`,
		`UPDATE 1 {"id": 1, "done": null, "name": "a"} {"id": 1, "done": null, "name": "A"}`,
		`UPDATE 2 {"id": 2, "done": true, "name": "b"} {"id": 2, "done": true, "name": "B"}`,
		`CREATE 3 {} {"id": 3, "done": 3, "name": "c"}`,
		`DELETE 1 {"id": 1, "done": null} {}`,
		`CREATE 4 {} {"id": 4, "done": 4, "name": {"x": 1.10}}`,
	}
	columns := []string{"id,title", "id,title,done", "id,name,done", "id,name,done", "id,done", "id,done,name"}
	for name, run := range map[string]func(t *testing.T, a *audittest.Audited){
		"as it comes":     func(t *testing.T, a *audittest.Audited) { each(t, a, steps, func(testing.TB) {}) },
		"one transaction": func(t *testing.T, a *audittest.Audited) { a.Exec(t, strings.Join(steps, ";")) },
		"step by step":    func(t *testing.T, a *audittest.Audited) { each(t, a, steps, a.Sync) },
		"after the events": func(t *testing.T, a *audittest.Audited) {
			t.Helper()
			restart(t, a, func() { each(t, a, steps, func(testing.TB) {}) })
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			// An ALTER that rewrites rows is not in the stream.
			a := unchecked(t, audit.Config{}, "CREATE TABLE todo (id int PRIMARY KEY, title text)")
			run(t, a)
			tell(t, a, "operation, primary_key, before, after, defect", want...)
			if name == "one transaction" {
				return // its versions have one position
			}
			got := audittest.Value[[]string](t, a.Database, `
				SELECT array_agg((SELECT string_agg(c ->> 'name', ',') FROM jsonb_array_elements(columns) c) ORDER BY position) FROM audit.relations`)
			// The look into the catalog, now and then, may have noted one before the stream.
			got, columns := slices.Compact(got), slices.Compact(slices.Clone(columns))
			if strings.Join(got, " ") != strings.Join(columns, " ") {
				t.Errorf("versions of the table: %q, want %q", got, columns)
			}
		})
	}
}

func each(t testing.TB, a *audittest.Audited, steps []string, after func(testing.TB)) {
	t.Helper()
	for _, sql := range steps {
		a.Exec(t, sql)
		after(t)
	}
}

// What was written under the old name stays there.
func TestTableIsRenamed(t *testing.T) {
	t.Parallel()
	steps := []string{
		"INSERT INTO todo VALUES (1)",
		"ALTER TABLE todo RENAME TO task",
		"INSERT INTO task VALUES (2)",
		"CREATE SCHEMA work",
		"ALTER TABLE task SET SCHEMA work",
		"INSERT INTO work.task VALUES (3)",
	}
	for name, run := range map[string]func(t *testing.T, a *audittest.Audited){
		"as it comes":  func(t *testing.T, a *audittest.Audited) { each(t, a, steps, func(testing.TB) {}) },
		"step by step": func(t *testing.T, a *audittest.Audited) { each(t, a, steps, a.Sync) },
		"after the events": func(t *testing.T, a *audittest.Audited) {
			t.Helper()
			restart(t, a, func() { each(t, a, steps, func(testing.TB) {}) })
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			a := audittest.New(t, audit.Config{}, "CREATE TABLE todo (id int PRIMARY KEY)")
			run(t, a)
			tell(t, a, `schema, "table", primary_key, defect`, "public todo 1", "public task 2", "work task 3")
		})
	}
}

func TestKeyColumnIsRenamed(t *testing.T) {
	t.Parallel()
	steps := []string{
		"INSERT INTO todo VALUES (1, 'a')",
		"UPDATE todo SET title = 'b'",
		"ALTER TABLE todo RENAME id TO number",
		"UPDATE todo SET number = 2",
		"DELETE FROM todo",
	}
	for name, run := range map[string]func(t *testing.T, a *audittest.Audited){
		"step by step": func(t *testing.T, a *audittest.Audited) { each(t, a, steps, a.Sync) },
		"after the events": func(t *testing.T, a *audittest.Audited) {
			t.Helper()
			restart(t, a, func() { each(t, a, steps, func(testing.TB) {}) })
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			a := audittest.New(t, audit.Config{}, "CREATE TABLE todo (id int PRIMARY KEY, title text)")
			a.Exec(t, "INSERT INTO todo VALUES (0, 'known'); DELETE FROM todo")
			run(t, a)
			tell(t, a, "operation, primary_key, previous_key", "CREATE 0", "DELETE 0", "CREATE 1", "UPDATE 1", "UPDATE 2 1", "DELETE 2")
		})
	}
}

// The table, its types and its schema are gone when its changes are read.
func TestTableIsDroppedBeforeItsChangesAreRead(t *testing.T) {
	t.Parallel()
	a := audittest.New(t, audit.Config{}, `
		CREATE SCHEMA old;
		CREATE TYPE old.mood AS ENUM ('sad', 'happy');
		CREATE DOMAIN old.amount AS numeric(10, 2);
		CREATE TABLE old.todo (id int, code text, mood old.mood, moods old.mood[], amount old.amount, PRIMARY KEY (code, id));
		CREATE TABLE old.fresh (id int PRIMARY KEY);
		CREATE TABLE kept (id int PRIMARY KEY)`)
	a.Exec(t, "INSERT INTO old.todo VALUES (1, 'a', 'sad', '{sad,happy}', 1.10)")
	a.Exec(t, "INSERT INTO kept VALUES (1)")
	restart(t, a, func() {
		a.Exec(t, "UPDATE old.todo SET mood = 'happy', amount = 2.20")
		a.Exec(t, "INSERT INTO old.fresh VALUES (1)")
		a.Exec(t, "DELETE FROM old.todo")
		a.Exec(t, "DROP SCHEMA old CASCADE")
		a.Exec(t, "INSERT INTO kept VALUES (2)")
		// The same name again, another table.
		a.Exec(t, "CREATE SCHEMA old; CREATE TABLE old.todo (name text PRIMARY KEY)")
	})
	a.Exec(t, "INSERT INTO old.todo VALUES ('n')")
	tell(t, a, `schema, "table", operation, primary_key, after`,
		`old todo CREATE ["a","1"] {"id": 1, "code": "a", "mood": "sad", "moods": ["sad", "happy"], "amount": 1.10}`,
		`public kept CREATE 1 {"id": 1}`,
		// The types are gone: the text is kept.
		`old todo UPDATE ["a","1"] {"id": 1, "code": "a", "mood": "happy", "moods": "{sad,happy}", "amount": "2.20"}`,
		// What its key was had been noted when it began to be tracked.
		`old fresh CREATE 1 {"id": 1}`,
		`old todo DELETE ["a","1"] {}`,
		`public kept CREATE 2 {"id": 2}`,
		`old todo CREATE n {"name": "n"}`)
}

func TestTableIsMadeAnewUnderItsName(t *testing.T) {
	t.Parallel()
	a := unchecked(t, audit.Config{}, "CREATE TABLE todo (id int PRIMARY KEY)")
	a.Exec(t, "INSERT INTO todo VALUES (1)")
	a.Sync(t)
	a.Exec(t, "DROP TABLE todo; CREATE TABLE todo (id text PRIMARY KEY, title text)")
	refresh(t, a)
	a.Exec(t, "INSERT INTO todo VALUES ('x', 'y')")
	tell(t, a, "operation, primary_key, after", `CREATE 1 {"id": 1}`, `CREATE x {"id": "x", "title": "y"}`)
}
