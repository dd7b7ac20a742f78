package audit_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5"

	"github.com/hindsight-go/audit"
	"github.com/hindsight-go/audit/audittest"
)

// openUndo is newUndo with a configuration.
func openUndo(t *testing.T, cfg audit.Config, setup ...string) *undo {
	t.Helper()
	a := audittest.New(t, cfg, setup...)
	return &undo{Audited: a, conn: a.Connect(t)}
}

const stampedPage = `
	CREATE TABLE page (id int PRIMARY KEY, title text, body text, updated_at timestamptz NOT NULL DEFAULT 'epoch', lock_version int NOT NULL DEFAULT 0);
	INSERT INTO page VALUES (1, 'old', 'body', '2020-01-01Z', 5)`

// touch is an UPDATE as programs with optimistic locks write it.
func touch(set string) string {
	return "UPDATE page SET " + set + ", updated_at = clock_timestamp(), lock_version = lock_version + 1 WHERE id = 1"
}

func unrestored(t *testing.T, r audit.Reversal) []string {
	t.Helper()
	plan, err := r.Plan(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, c := range plan.Unrestored {
		names = append(names, c.String())
		if !strings.Contains(plan.String(), "\n  = "+c.String()+"\n") {
			t.Errorf("the plan does not name %s:\n%s", c, plan)
		}
	}
	return names
}

// The time of the last update and the version of a row are nobody's work: others may
// have written to the row, and it can be undone and done again as often as one likes.
func TestRevert_UpdatedAtAndLockVersion(t *testing.T) {
	t.Parallel()
	for _, direct := range []uint64{0, 1} {
		u := newUndo(t, stampedPage).direct(direct)
		u.by(t, "ann", "r1", touch("title = 'new'"))
		u.by(t, "bob", "r2", touch("body = 'bob'"))
		u.by(t, "bob", "r3", "UPDATE page SET updated_at = clock_timestamp()")
		version := 7
		r := u.Client.RevertRequest("r1")
		wantConflicts(t, r)
		if diff := cmp.Diff([]string{"public.page lock_version (version)", "public.page updated_at (config)"}, unrestored(t, r)); diff != "" {
			t.Errorf("unrestored (-want +got):\n%s", diff)
		}
		for range 4 {
			result := apply(t, r)
			version++
			u.holds(t, fmt.Sprintf("(SELECT title = 'old' AND body = 'bob' AND updated_at > '2020-01-02Z' AND lock_version = %d FROM page)", version))
			apply(t, u.Client.Redo(result.ID))
			version++
			u.holds(t, fmt.Sprintf("(SELECT title = 'new' AND body = 'bob' AND lock_version = %d FROM page)", version))
		}
	}
}

// Whoever has read a row before it was restored, at any time, cannot save it over that:
// neither after a row was changed back, nor after one came back that the unit itself had
// changed first.
func TestRevert_StaleClientOfLockVersion(t *testing.T) {
	t.Parallel()
	for name, story := range map[string]struct {
		statements []string
		policy     audit.Policy
		later      []string
	}{
		"updated":                   {statements: []string{touch("title = 'new'")}},
		"updated and deleted":       {statements: []string{touch("title = 'new'"), "DELETE FROM page"}},
		"updated, deleted by other": {statements: []string{touch("title = 'new'")}, policy: audit.Overwrite, later: []string{"DELETE FROM page"}},
		"deleted, made anew": {
			statements: []string{touch("title = 'new'"), "DELETE FROM page"}, policy: audit.Overwrite,
			later: []string{"INSERT INTO page VALUES (1, 'theirs', 'theirs', now(), 9)"},
		},
		"updated by others, too": {statements: []string{touch("title = 'new'")}, policy: audit.Overwrite, later: []string{touch("title = 'theirs'")}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			u := newUndo(t, stampedPage)
			u.by(t, "ann", "r1", story.statements...)
			u.by(t, "bob", "r2", append(story.later, "SELECT")...)
			r := u.Client.RevertRequest("r1")
			if story.policy != nil {
				r = r.OnConflict(story.policy)
			}
			apply(t, r)
			rows, err := u.conn.Query(t.Context(), `SELECT coalesce(max((after ->> 'lock_version')::int), 0) FROM audit.changes WHERE context ->> 'requestId' IN ('r1', 'r2')`)
			if err != nil {
				t.Fatal(err)
			}
			given, err := pgx.CollectExactlyOneRow(rows, pgx.RowTo[int])
			if err != nil {
				t.Fatal(err)
			}
			u.holds(t, fmt.Sprintf("(SELECT title = 'old' AND lock_version > %d FROM page)", given))
		})
	}
}

// The script of a plan counts versions on, too.
func TestRevert_LockVersionInScript(t *testing.T) {
	t.Parallel()
	u := newUndo(t, stampedPage)
	u.by(t, "ann", "r1", touch("title = 'new'"))
	plan, err := u.Client.RevertRequest("r1").Plan(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := u.conn.Exec(t.Context(), plan.SQL()); err != nil {
		t.Fatal(err)
	}
	u.holds(t, "(SELECT title = 'old' AND lock_version = 7 FROM page)")
}

// The configuration names the columns, none if it says so, and what a revert names itself
// is restored nevertheless.
func TestRevert_UnrestoredColumnsByName(t *testing.T) {
	t.Parallel()
	setup := `CREATE SCHEMA app; CREATE TABLE app.page (id int PRIMARY KEY, title text, views int, seen timestamptz, revision timestamptz, updated_at int, lock_version int);
		INSERT INTO app.page VALUES (1, 'old', 0, 'epoch', 'epoch', 0, 0)`
	cfg := audit.Config{Tables: []string{"app.*"}, NeverRestored: []string{"app.page.view*", "*.seen"}, VersionColumns: []string{"page.revision"}}
	u := openUndo(t, cfg, setup)
	before := u.state(t)
	u.by(t, "ann", "r1", "UPDATE app.page SET title = 'new', views = 1, seen = 'now', revision = 'now', updated_at = 1, lock_version = 1")
	u.by(t, "bob", "r2", "UPDATE app.page SET views = 2, seen = clock_timestamp(), revision = clock_timestamp()")
	r := u.Client.RevertRequest("r1")
	wantConflicts(t, r)
	wantConflicts(t, r.AllColumns(), "column changed app.page[1] revision", "column changed app.page[1] seen", "column changed app.page[1] views")
	wantConflicts(t, r.Columns("views", "title"), "column changed app.page[1] views")
	want := []string{"app.page revision (version)", "app.page seen (config)", "app.page views (config)"}
	if diff := cmp.Diff(want, unrestored(t, r)); diff != "" {
		t.Errorf("unrestored (-want +got):\n%s", diff)
	}
	if left := unrestored(t, r.AllColumns()); left != nil {
		t.Errorf("all columns but %s", left)
	}
	apply(t, r)
	u.holds(t, `(SELECT title = 'old' AND views = 2 AND seen > '2020-01-01' AND updated_at = 0 AND lock_version = 0
		AND revision > (SELECT (after ->> 'revision')::timestamptz FROM audit.changes WHERE context ->> 'requestId' = 'r2') FROM app.page)`)
	apply(t, u.Client.RevertTables(u.Client.BeforeRequest("r1"), "app.page").AllColumns())
	u.want(t, "back at the beginning, exactly", before)

	u = openUndo(t, audit.Config{NeverRestored: []string{}, VersionColumns: []string{}}, stampedPage)
	before = u.state(t)
	u.by(t, "ann", "r1", touch("title = 'new'"))
	apply(t, u.Client.RevertRequest("r1"))
	u.want(t, "with no columns left out", before)
}

// A row that is removed takes along what others did to such columns alone, and a plan is
// not stale because of them.
func TestRevert_UnrestoredColumnsOfRemovedRow(t *testing.T) {
	t.Parallel()
	u := newUndo(t, stampedPage)
	u.by(t, "ann", "r1", "INSERT INTO page VALUES (2, 'mine')")
	plan, err := u.Client.RevertRequest("r1").Plan(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	u.by(t, "bob", "r2", "UPDATE page SET updated_at = now(), lock_version = 3 WHERE id = 2")
	wantConflicts(t, u.Client.RevertRequest("r1"))
	again, err := u.Client.RevertRequest("r1").Plan(t.Context())
	if err != nil || again.Hash != plan.Hash {
		t.Errorf("another hash, or %v", err)
	}
	if _, err := plan.Apply(t.Context()); err != nil {
		t.Fatal(err)
	}
	u.holds(t, "NOT EXISTS (SELECT FROM page WHERE id = 2)")
}

// A column of that name that is gone is in nobody's way.
func TestRevert_UnrestoredColumnThatIsGone(t *testing.T) {
	t.Parallel()
	u := newUndo(t, stampedPage)
	u.by(t, "ann", "r1", touch("title = 'new'"))
	u.by(t, "bob", "r2", "ALTER TABLE page DROP updated_at, DROP lock_version")
	wantConflicts(t, u.Client.RevertRequest("r1"))
	apply(t, u.Client.RevertRequest("r1"))
	u.holds(t, "(SELECT title = 'old' FROM page)")
}
