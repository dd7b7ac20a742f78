package audit_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/hindsight-go/audit"
	"github.com/hindsight-go/audit/audittest"
	"github.com/hindsight-go/audit/internal/faulttest"
)

// A rule for a column holds for that column, whatever becomes of its name, of its table's
// and of its schema's.
func TestColumns_RuleFollowsTheTable(t *testing.T) {
	t.Parallel()
	for _, traced := range []bool{true, false} {
		t.Run(fmt.Sprintf("event triggers %t", traced), func(t *testing.T) {
			t.Parallel()
			db := audittest.NewDatabase(t)
			db.Exec(t, `CREATE SCHEMA elsewhere;
				CREATE TABLE at_once (id int PRIMARY KEY, note text, n int); CREATE TABLE stopped (id int PRIMARY KEY, note text, n int);
				CREATE TABLE moved (id int PRIMARY KEY, note text, n int); CREATE TABLE pair (id int PRIMARY KEY, note text, n int);
				CREATE TABLE again (id int PRIMARY KEY, note text, n int); CREATE TABLE kept (id int PRIMARY KEY, note text, n int);
				CREATE TABLE root (id int PRIMARY KEY, note text, n int) PARTITION BY RANGE (id);
				CREATE TABLE root_1 PARTITION OF root FOR VALUES FROM (0) TO (100);
				CREATE TABLE loose (id int PRIMARY KEY, note text, n int) PARTITION BY RANGE (id);
				CREATE TABLE loose_1 PARTITION OF loose FOR VALUES FROM (0) TO (100);
				CREATE TABLE swap (id int PRIMARY KEY, note text, n int); CREATE TABLE swap_new (id int PRIMARY KEY, note text, n int)`)
			log := faulttest.NewLog(t)
			cfg := audit.Config{NoEventTrigger: !traced, Logger: log.Logger(), Columns: []audit.ColumnRule{
				{Columns: "public.at_once.note", Policy: audit.ExcludeColumn},
				{Columns: "public.stopped.note", Policy: audit.ExcludeColumn},
				{Columns: "public.moved.note", Policy: audit.ExcludeColumn},
				{Columns: "public.pair.note", Policy: audit.ExcludeColumn},
				{Columns: "public.again.note", Policy: audit.ExcludeColumn},
				{Columns: "public.kept.note", Policy: audit.ExcludeColumn},
				{Columns: "public.root.note", Policy: audit.ExcludeColumn},
				{Columns: "public.loose.note", Policy: audit.ExcludeColumn},
				{Columns: "public.swap.note", Policy: audit.ExcludeColumn},
				{Columns: "*.kept*.*", Policy: audit.KeepColumn},
			}}
			a := audittest.Open(t, db, cfg)
			mustStart(t, a)
			db.Exec(t, "BEGIN; INSERT INTO at_once VALUES (1, 'hidden', 1); ALTER TABLE at_once RENAME TO at_once_2; UPDATE at_once_2 SET note = 'hidden 2'; COMMIT")
			db.Exec(t, "INSERT INTO stopped VALUES (1, 'hidden', 1)")
			db.Exec(t, "INSERT INTO moved VALUES (1, 'hidden', 1)")
			db.Exec(t, "ALTER TABLE moved SET SCHEMA elsewhere")
			db.Exec(t, "UPDATE elsewhere.moved SET note = 'hidden 2'")
			db.Exec(t, "ALTER TABLE pair RENAME TO pair_2; ALTER TABLE pair_2 RENAME note TO remark")
			db.Exec(t, "INSERT INTO pair_2 VALUES (1, 'hidden', 1)")
			db.Exec(t, "ALTER TABLE pair_2 RENAME TO pair_3")
			db.Exec(t, "UPDATE pair_3 SET remark = 'hidden 2'")
			db.Exec(t, "ALTER TABLE again RENAME TO again_2; CREATE TABLE again (note text, id int PRIMARY KEY, n int)")
			db.Exec(t, "INSERT INTO again_2 VALUES (1, 'hidden', 1)")
			db.Exec(t, "ALTER TABLE kept RENAME TO kept_2")
			db.Exec(t, "INSERT INTO kept_2 VALUES (1, 'hidden', 1)")
			db.Exec(t, "INSERT INTO root VALUES (1, 'hidden', 1); ALTER TABLE root RENAME TO root_2; CREATE TABLE root_new PARTITION OF root_2 FOR VALUES FROM (100) TO (200)")
			if err := a.Client.Refresh(t.Context()); err != nil {
				t.Fatal(err)
			}
			db.Exec(t, "INSERT INTO root_2 VALUES (2, 'hidden', 1), (102, 'hidden', 1)")
			db.Exec(t, "INSERT INTO again VALUES ('hidden', 1, 1)")
			db.Exec(t, "INSERT INTO loose VALUES (1, 'hidden', 1); ALTER TABLE loose DETACH PARTITION loose_1")
			db.Exec(t, "UPDATE loose_1 SET note = 'hidden 2'")
			a.Sync(t)
			a.Stop(t)
			db.Exec(t, "UPDATE stopped SET note = 'hidden 2'; ALTER TABLE stopped RENAME TO stopped_2; UPDATE stopped_2 SET note = 'hidden 3'")
			// The table of tomorrow is filled under another name: that is nobody's rule.
			db.Exec(t, "INSERT INTO swap VALUES (1, 'hidden', 1)")
			db.Exec(t, "ALTER TABLE swap RENAME TO swap_old; ALTER TABLE swap_new RENAME TO swap")
			db.Exec(t, "INSERT INTO swap VALUES (2, 'hidden', 1); UPDATE swap_old SET note = 'hidden 2'")
			mustStart(t, a)
			db.Exec(t, "UPDATE stopped_2 SET note = 'hidden 4'; UPDATE at_once_2 SET n = 2; UPDATE swap_old SET n = 2; UPDATE swap SET n = 2")
			a.Sync(t)
			if err := a.Client.Baseline(t.Context(), nil); err != nil {
				t.Fatal(err)
			}
			db.Exec(t, "UPDATE pair_3 SET n = 2; UPDATE kept_2 SET n = 2; UPDATE again SET n = 2")
			a.Sync(t)
			for _, table := range []string{"changes", "keyframe_rows"} {
				found := audittest.Value[[]string](t, db, "SELECT coalesce(array_agg(x::text), '{}') FROM audit."+table+" x WHERE x::text LIKE '%hidden%'")
				if len(found) > 0 {
					t.Errorf("%s has\n%s", table, strings.Join(found, "\n"))
				}
			}
			if n := audittest.Value[int](t, db, "SELECT count(*) FROM audit.changes WHERE after ->> 'n' = '2' OR after ->> 'note' = 'excluded' OR after ->> 'remark' = 'excluded'"); n < 20 {
				t.Errorf("only %d changes withhold something", n)
			}
			if !strings.Contains(log.Text(), "by the names that they or their table had") {
				t.Error("nobody was told to mend the rules")
			}
			a.Stop(t)
		})
	}
}

// A rule that names no column that is there is likely for one that was renamed before
// capture began: Start says so.
func TestColumns_RuleForNothing(t *testing.T) {
	t.Parallel()
	db := audittest.NewDatabase(t)
	db.Exec(t, "CREATE TABLE people (id int PRIMARY KEY, note text)")
	log := faulttest.NewLog(t)
	a := audittest.Open(t, db, audit.Config{Logger: log.Logger(), Columns: []audit.ColumnRule{
		{Columns: "public.users.note", Policy: audit.ExcludeColumn}, {Columns: "people.note", Policy: audit.ExcludeColumn}, {Columns: "*.ssn", Policy: audit.ExcludeColumn},
	}})
	mustStart(t, a)
	a.Stop(t)
	if text := log.Text(); !strings.Contains(text, "names no column") || !strings.Contains(text, "public.users.note") || strings.Contains(text, "*.ssn") {
		t.Errorf("the log says\n%s", text)
	}
}
