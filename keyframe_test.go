package audit_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/hindsight-go/audit"
	"github.com/hindsight-go/audit/audittest"
	"github.com/hindsight-go/audit/internal/faulttest"
)

// What an interrupted baseline has left is no part of the state of a table that was
// found empty when it joined again.
func TestBaseline_InterruptedThenTruncatedAndRejoined(t *testing.T) {
	t.Parallel()
	for name, empty := range map[string]string{"truncated": "TRUNCATE todo", "rewritten empty": "DELETE FROM todo; VACUUM todo"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			db := audittest.NewDatabase(t)
			db.Exec(t, todoTable)
			db.Exec(t, "CREATE TABLE other (id int PRIMARY KEY)")
			db.Exec(t, "INSERT INTO todo SELECT n, 'task ' || n FROM generate_series(1, 12000) n")
			first := audittest.Open(t, db, audit.Config{})
			mustStart(t, first)
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			err := first.Client.Baseline(ctx, &audit.BaselineOptions{Tables: []string{"todo"}, Progress: func(audit.BaselineProgress) { cancel() }})
			if !errors.Is(err, context.Canceled) {
				t.Fatalf("an interrupted baseline: %v", err)
			}
			first.Stop(t)
			without := audittest.Open(t, db, audit.Config{Tables: []string{"public.other"}})
			mustStart(t, without)
			without.Stop(t)
			conn := db.Connect(t)
			for _, sql := range strings.Split(empty, ";") {
				if _, err := conn.Exec(t.Context(), sql); err != nil {
					t.Fatal(err)
				}
			}
			// VACUUM gives the pages back once no session needs them.
			faulttest.Poll(t, faulttest.Patience, "the pages are given back", func() error {
				if _, err := conn.Exec(t.Context(), "VACUUM todo"); err != nil {
					return err
				}
				if n := audittest.Value[int](t, db, "SELECT pg_relation_size('todo')::int"); n > 0 {
					return fmt.Errorf("todo has %d bytes", n)
				}
				return nil
			})
			again := audittest.Open(t, db, audit.Config{})
			mustStart(t, again)
			db.Exec(t, "INSERT INTO todo VALUES (20001, 'new'), (20002, 'new'), (20003, 'new')")
			then := here(t, again)
			db.Exec(t, "TRUNCATE todo")
			if n, err := then.Table("todo").Count(t.Context()); n != 3 || err != nil {
				t.Errorf("%d rows, %v, want 3", n, err)
			}
			if n := audittest.Value[int](t, db, "SELECT count(*)::int FROM audit.keyframes k WHERE k.complete AND k.done <> (SELECT count(*) FROM audit.keyframe_rows r WHERE r.keyframe = k.id)"); n != 0 {
				t.Errorf("%d complete keyframes have other rows than they say", n)
			}
			if n := audittest.Value[int](t, db, "SELECT coalesce(max(k.done), 0)::int FROM audit.keyframes k WHERE k.complete"); n != 0 {
				t.Errorf("a complete keyframe has %d rows", n)
			}
		})
	}
}
