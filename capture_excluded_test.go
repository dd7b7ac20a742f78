package audit_test

import (
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/hindsight-go/audit"
	"github.com/hindsight-go/audit/audittest"
	"github.com/hindsight-go/audit/internal/faulttest"
)

// A publication that sends what nobody asked for is refused, and says how to mend it.
func TestPublication_OfMoreThanTables(t *testing.T) {
	t.Parallel()
	for name, what := range map[string]string{"all tables": "FOR ALL TABLES", "a schema": "FOR TABLES IN SCHEMA public"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			db := audittest.NewDatabase(t)
			if strings.Contains(what, "SCHEMA") && db.Server().Version() < 150000 {
				return // schemas came with 15
			}
			db.Exec(t, gapTable+"; CREATE PUBLICATION audit "+what)
			a := audittest.Open(t, db, audit.Config{})
			var setup *audit.SetupError
			if err := a.Client.Start(t.Context()); !errors.As(err, &setup) || !strings.Contains(err.Error(), what) {
				t.Fatalf("Start returned %v", err)
			}
			for _, sql := range strings.Split(strings.TrimSpace(setup.SQL()), ";\n") {
				db.Exec(t, sql)
			}
			mustStart(t, a)
			expectCapturing(t, a, 1)
			a.Check(t)
		})
	}
}

// Whatever somebody adds to the publication while capture runs: what the patterns
// exclude is dropped, and the store does not feed itself.
func TestPublication_SendsExcludedTables(t *testing.T) {
	t.Parallel()
	db := audittest.NewDatabase(t)
	db.Exec(t, gapTable+"; CREATE TABLE secret (id int PRIMARY KEY); CREATE TABLE parted (id int PRIMARY KEY) PARTITION BY RANGE (id); CREATE TABLE part PARTITION OF parted DEFAULT")
	a := audittest.Open(t, db, audit.Config{Tables: []string{"public.*", "!public.secret", "!public.part"}, RefreshInterval: -1})
	mustStart(t, a)
	db.Exec(t, "ALTER PUBLICATION audit ADD TABLE secret, audit.changes, audit.checkpoints, audit.commit_times")
	db.Exec(t, "ALTER TABLE audit.checkpoints REPLICA IDENTITY FULL")
	db.Exec(t, "INSERT INTO secret VALUES (1)")
	db.Exec(t, "INSERT INTO parted VALUES (1)") // its root is tracked, whatever the partition is called
	for id := range 3 {
		db.Exec(t, "INSERT INTO todo VALUES ($1, 'x')", id)
		a.Sync(t)
	}
	got := audittest.Value[string](t, db, `SELECT string_agg("table", ' ' ORDER BY position, sequence) FROM audit.changes`)
	if diff := cmp.Diff("parted todo todo todo", got); diff != "" {
		t.Errorf("history (-want +got):\n%s", diff)
	}
}

// Two histories of everything in one database do not feed each other.
func TestHistories_TwoOfEverything(t *testing.T) {
	t.Parallel()
	db := audittest.NewDatabase(t)
	db.Exec(t, gapTable)
	one := audittest.Open(t, db, audit.Config{})
	mustStart(t, one)
	other := audittest.Open(t, db, audit.Config{Schema: "other"})
	mustStart(t, other)
	if err := one.Client.Refresh(t.Context()); err != nil {
		t.Fatal(err)
	}
	for id := range 3 {
		db.Exec(t, "INSERT INTO todo VALUES ($1, 'x')", id)
		one.Sync(t)
		other.Sync(t)
	}
	for _, schema := range []string{"audit", "other"} {
		if n := audittest.Value[int](t, db, "SELECT count(*) FROM "+schema+".changes"); n != 3 {
			t.Errorf("history %s has %d changes, want 3", schema, n)
		}
	}
	other.Stop(t)
	faulttest.Poll(t, faulttest.Patience, "drop the slot of the other history", func() error {
		_, err := db.Connect(t).Exec(t.Context(), "SELECT pg_drop_replication_slot($1)", slotOf(db)+"_other")
		return err
	})
	one.Stop(t)
}
