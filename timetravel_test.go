package audit_test

import (
	"errors"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5"

	"github.com/hindsight-go/audit"
	"github.com/hindsight-go/audit/audittest"
)

type pastTodo struct {
	ID   int    `db:"id"`
	Task string `db:"task"`
	Done bool   `db:"is_completed"`
}

const todoTable = `CREATE TABLE todo (id int PRIMARY KEY, task text NOT NULL, is_completed boolean NOT NULL DEFAULT false)`

// mark is a position between what was written before and what comes after.
func here(t *testing.T, a *audittest.Audited) audit.Point {
	t.Helper()
	a.Sync(t)
	return a.Client.AtPosition(must(audit.ParsePosition(audittest.Value[string](t, a.Database, "SELECT pg_current_wal_insert_lsn()::text"))))
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

func TestARowAsItWas(t *testing.T) {
	t.Parallel()
	a := audittest.New(t, audit.Config{}, todoTable, "INSERT INTO todo VALUES (1, 'old'), (2, 'untouched'), (3, 'deleted later')")
	begin := here(t, a)
	a.Exec(t, "UPDATE todo SET task = 'new', is_completed = true WHERE id = 1")
	a.Exec(t, "INSERT INTO todo VALUES (4, 'made later')")
	middle := here(t, a)
	a.Exec(t, "DELETE FROM todo WHERE id IN (3, 4)")
	a.Exec(t, "UPDATE todo SET id = 10 WHERE id = 1")
	end := here(t, a)

	type step struct {
		point audit.Point
		id    int
		want  *pastTodo
	}
	for i, s := range []step{
		{begin, 1, &pastTodo{1, "old", false}},
		{begin, 2, &pastTodo{2, "untouched", false}},
		{begin, 3, &pastTodo{3, "deleted later", false}},
		{begin, 4, nil},
		{begin, 10, nil},
		{middle, 1, &pastTodo{1, "new", true}},
		{middle, 3, &pastTodo{3, "deleted later", false}},
		{middle, 4, &pastTodo{4, "made later", false}},
		{middle, 10, nil},
		{end, 1, nil},
		{end, 2, &pastTodo{2, "untouched", false}},
		{end, 3, nil},
		{end, 10, &pastTodo{10, "new", true}},
		{a.Client.Now(), 10, &pastTodo{10, "new", true}},
		{a.Client.AsOf(time.Now()), 10, &pastTodo{10, "new", true}},
	} {
		var got pastTodo
		err := s.point.Table("todo").Load(t.Context(), &got, s.id)
		if s.want == nil {
			if !errors.Is(err, audit.ErrNoRow) {
				t.Errorf("%d: row %d: %v, %+v", i, s.id, err, got)
			}
			continue
		}
		if err != nil {
			t.Errorf("%d: row %d: %v", i, s.id, err)
		} else if diff := cmp.Diff(*s.want, got); diff != "" {
			t.Errorf("%d: row %d (-want +got):\n%s", i, s.id, diff)
		}
	}
}

func TestATableAsItWas(t *testing.T) {
	t.Parallel()
	a := audittest.New(t, audit.Config{}, todoTable, "INSERT INTO todo VALUES (1, 'old'), (2, 'untouched'), (3, 'deleted later')")
	begin := here(t, a)
	a.Exec(t, "UPDATE todo SET task = 'new', is_completed = true WHERE id = 1")
	a.Exec(t, "INSERT INTO todo VALUES (4, 'made later')")
	a.Exec(t, "DELETE FROM todo WHERE id = 3")
	a.Exec(t, "UPDATE todo SET id = 10 WHERE id = 1")
	want := []pastTodo{{1, "old", false}, {2, "untouched", false}, {3, "deleted later", false}}

	var got []pastTodo
	if err := begin.Table("todo").OrderBy("id").List(t.Context(), &got); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	n, err := begin.Table("todo").Count(t.Context())
	if err != nil || n != 3 {
		t.Errorf("count %d, %v", n, err)
	}
	err = begin.Table("todo").Where("id > $1", 1).Where("task <> $1", "x").OrderBy("id").List(t.Context(), &got)
	if diff := cmp.Diff(want[1:], got); diff != "" || err != nil {
		t.Error(diff, err)
	}
	err = begin.View(t.Context(), func(tx pgx.Tx) error {
		rows, _ := tx.Query(t.Context(), "SELECT * FROM todo ORDER BY id")
		got, err = pgx.CollectRows(rows, pgx.RowToStructByName[pastTodo])
		return err
	})
	if diff := cmp.Diff(want, got); diff != "" || err != nil {
		t.Error(diff, err)
	}
	err = begin.View(t.Context(), func(tx pgx.Tx) error {
		rows, _ := tx.Query(t.Context(), "SELECT * FROM public.todo ORDER BY public.todo.id")
		got, err = pgx.CollectRows(rows, pgx.RowToStructByName[pastTodo])
		return err
	})
	if diff := cmp.Diff(want, got); diff != "" || err != nil {
		t.Error("by its name with the schema:", diff, err)
	}
}

func TestHistoryBlameAndDifference(t *testing.T) {
	t.Parallel()
	a := audittest.New(t, audit.Config{}, todoTable, "INSERT INTO todo VALUES (1, 'old'), (2, 'untouched')")
	begin := here(t, a)
	a.Exec(t, "UPDATE todo SET task = 'new' WHERE id = 1")
	a.Exec(t, "UPDATE todo SET is_completed = true WHERE id = 1")
	a.Exec(t, "UPDATE todo SET id = 10 WHERE id = 1")
	a.Exec(t, "INSERT INTO todo VALUES (3, 'comes and goes')")
	a.Exec(t, "DELETE FROM todo WHERE id IN (2, 3)")
	end := here(t, a)

	versions, err := a.Client.History("todo", 10).List(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, v := range versions {
		got = append(got, v.Row.String())
	}
	want := []string{
		`{"id": 1, "task": "old", "is_completed": false}`,
		`{"id": 1, "task": "new", "is_completed": false}`,
		`{"id": 1, "task": "new", "is_completed": true}`,
		`{"id": 10, "task": "new", "is_completed": true}`,
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	blames, err := a.Client.Blame(t.Context(), "todo", 10)
	if err != nil {
		t.Fatal(err)
	}
	for i, b := range blames {
		if b.Change == nil || b.Change.Position != versions[[]int{3, 1, 2}[i]].From {
			t.Errorf("%s is blamed on %+v", b.Column, b.Change)
		}
	}
	diffs, err := a.Client.DiffBetween(begin, end).List(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	nets := map[string]audit.Operation{}
	for _, d := range diffs {
		nets[d.PrimaryKey] = d.Operation
	}
	if diff := cmp.Diff(map[string]audit.Operation{"1": audit.Delete, "2": audit.Delete, "10": audit.Create}, nets); diff != "" {
		t.Error(diff)
	}
}

func TestBaselineOutlivesTruncateAndDrop(t *testing.T) {
	t.Parallel()
	a := audittest.New(t, audit.Config{}, todoTable, "INSERT INTO todo VALUES (1, 'old'), (2, 'untouched')")
	unknown := here(t, a)
	if err := a.Client.Baseline(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	a.Exec(t, "UPDATE todo SET task = 'new' WHERE id = 1")
	begin := here(t, a)
	a.Exec(t, "TRUNCATE todo")
	a.Exec(t, "INSERT INTO todo VALUES (5, 'after')")
	after := here(t, a)
	check := func(point audit.Point, want ...pastTodo) {
		t.Helper()
		var got []pastTodo
		if err := point.Table("todo").OrderBy("id").List(t.Context(), &got); err != nil {
			t.Error(err)
		} else if diff := cmp.Diff(want, got); diff != "" {
			t.Error(diff)
		}
		if err := point.Table("todo").List(t.Context(), &got); err != nil || len(got) != len(want) {
			t.Error(len(got), err)
		}
	}
	check(begin, pastTodo{1, "new", false}, pastTodo{2, "untouched", false})
	check(after, pastTodo{5, "after", false})
	check(unknown, pastTodo{1, "old", false}, pastTodo{2, "untouched", false})
	a.Exec(t, "DROP TABLE todo")
	if err := a.Client.Refresh(t.Context()); err != nil {
		t.Fatal(err)
	}
	check(begin, pastTodo{1, "new", false}, pastTodo{2, "untouched", false})
	check(after, pastTodo{5, "after", false})
}

// Two rows may have the same key in the midst of a transaction.
func TestKeysThatMoveUnderADeferrableKey(t *testing.T) {
	t.Parallel()
	a := audittest.New(t, audit.Config{},
		"CREATE TABLE todo (id int PRIMARY KEY DEFERRABLE, task text NOT NULL, is_completed boolean NOT NULL DEFAULT false)",
		"INSERT INTO todo VALUES (1, 'a'), (2, 'b'), (3, 'c')")
	begin := here(t, a)
	a.Exec(t, "UPDATE todo SET id = id + 1")
	middle := here(t, a)
	a.Exec(t, "UPDATE todo SET id = id - 1")
	for i, point := range []audit.Point{begin, middle, a.Client.Now()} {
		shift := i % 2
		want := []pastTodo{{1 + shift, "a", false}, {2 + shift, "b", false}, {3 + shift, "c", false}}
		var got []pastTodo
		if err := point.Table("todo").OrderBy("id").List(t.Context(), &got); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Error(i, diff)
		}
		for _, w := range want {
			var one pastTodo
			if err := point.Table("todo").Load(t.Context(), &one, w.ID); err != nil || one != w {
				t.Errorf("%d: %+v, want %+v: %v", i, one, w, err)
			}
		}
	}
}

func TestAForkIsThePastAsTables(t *testing.T) {
	t.Parallel()
	a := audittest.New(t, audit.Config{Tables: []string{"public.*"}},
		"CREATE TABLE users (id int PRIMARY KEY, email text UNIQUE NOT NULL, initial text GENERATED ALWAYS AS (left(email, 1)) STORED)",
		"CREATE TABLE todo (id int PRIMARY KEY, user_id int NOT NULL REFERENCES users, task text)",
		"CREATE INDEX todo_task_idx ON todo (lower(task))",
		"INSERT INTO users VALUES (1, 'ann'), (2, 'bob')",
		"INSERT INTO todo VALUES (1, 1, 'sleep'), (2, 2, 'eat')")
	begin := here(t, a)
	a.Exec(t, "UPDATE users SET email = 'zoe' WHERE id = 1")
	a.Exec(t, "DELETE FROM todo")
	result, err := begin.Into("last tuesday").Run(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(map[string]int64{"public.users": 2, "public.todo": 2}, result.Rows); diff != "" || len(result.Skipped) > 0 {
		t.Error(diff, result.Skipped)
	}
	got := audittest.Value[string](t, a.Database, `SELECT string_agg(initial || ':' || task, ',' ORDER BY t.id) FROM "last tuesday".todo t JOIN "last tuesday".users u ON u.id = t.user_id`)
	if got != "a:sleep,b:eat" {
		t.Errorf("the fork holds %s", got)
	}
	indexes := audittest.Value[int](t, a.Database, `SELECT count(*)::int FROM pg_indexes WHERE schemaname = 'last tuesday'`)
	references := audittest.Value[int](t, a.Database, `SELECT count(*)::int FROM pg_constraint WHERE contype = 'f' AND connamespace = '"last tuesday"'::regnamespace`)
	if indexes != 4 || references != 1 {
		t.Errorf("%d indexes, %d foreign keys", indexes, references)
	}
	if _, err := begin.Into("last tuesday").Run(t.Context()); !errors.Is(err, audit.ErrSchemaExists) {
		t.Errorf("a second fork into the schema: %v", err)
	}
}

func TestARowHasTheColumnsItHad(t *testing.T) {
	t.Parallel()
	a := audittest.New(t, audit.Config{}, todoTable, "INSERT INTO todo VALUES (1, 'old'), (2, 'untouched')")
	begin := here(t, a)
	a.Exec(t, "ALTER TABLE todo ADD COLUMN priority int DEFAULT 7")
	if err := a.Client.Refresh(t.Context()); err != nil {
		t.Fatal(err)
	}
	added := here(t, a)
	a.Exec(t, "UPDATE todo SET priority = 8 WHERE id = 1")
	a.Exec(t, "ALTER TABLE todo RENAME COLUMN task TO title")
	if err := a.Client.Refresh(t.Context()); err != nil {
		t.Fatal(err)
	}
	renamed := here(t, a)
	a.Exec(t, "UPDATE todo SET title = 'new' WHERE id = 1")
	a.Exec(t, "ALTER TABLE todo RENAME TO tasks")
	if err := a.Client.Refresh(t.Context()); err != nil {
		t.Fatal(err)
	}
	a.Exec(t, "UPDATE tasks SET title = 'newer' WHERE id = 1")
	for name, step := range map[string]struct {
		point audit.Point
		want  []map[string]any
	}{
		"begin":   {begin, []map[string]any{{"id": int32(1), "task": "old", "is_completed": false}, {"id": int32(2), "task": "untouched", "is_completed": false}}},
		"added":   {added, []map[string]any{{"id": int32(1), "task": "old", "is_completed": false, "priority": int32(7)}, {"id": int32(2), "task": "untouched", "is_completed": false, "priority": int32(7)}}},
		"renamed": {renamed, []map[string]any{{"id": int32(1), "title": "old", "is_completed": false, "priority": int32(8)}, {"id": int32(2), "title": "untouched", "is_completed": false, "priority": int32(7)}}},
	} {
		for _, table := range []string{"todo", "tasks"} {
			var got []map[string]any
			if err := step.point.Table(table).OrderBy("id").List(t.Context(), &got); err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			if diff := cmp.Diff(step.want, got); diff != "" {
				t.Errorf("%s: %s", name, diff)
			}
			one, err := step.point.Row(t.Context(), table, 1)
			if diff := cmp.Diff(step.want[0], one); diff != "" || err != nil {
				t.Errorf("%s: row: %v %s", name, err, diff)
			}
		}
	}
	var mismatch *audit.ColumnsError
	var strict []pastTodo
	if err := added.Table("todo").List(t.Context(), &strict); !errors.As(err, &mismatch) || !cmp.Equal(mismatch.Unused, []string{"priority"}) {
		t.Errorf("a struct without a field for a column: %v", err)
	}
	if err := added.Lax().Table("todo").List(t.Context(), &strict); err != nil || len(strict) != 2 {
		t.Errorf("lax: %v", err)
	}
	if err := added.Columns("id", "task", "is_completed").Table("todo").List(t.Context(), &strict); err != nil || len(strict) != 2 {
		t.Errorf("some columns: %v", err)
	}
}
