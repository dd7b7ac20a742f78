package audit_test

import (
	"errors"
	"fmt"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/hindsight-go/audit"
	"github.com/hindsight-go/audit/audittest"
)

// toldOf is a row's history in short: what made each version, and the column v.
func toldOf(t *testing.T, a *audittest.Audited, table string, key ...any) []string {
	t.Helper()
	versions, err := a.Client.History(table, key...).List(t.Context())
	if err != nil {
		t.Fatalf("history of %s %v: %v", table, key, err)
	}
	words := []string{}
	for i, v := range versions {
		made, value := "nothing", "gone"
		if v.Change != nil {
			made = string(v.Change.Operation)
		}
		if text, ok := v.Row.Text("v"); ok {
			value = text
		}
		if v.AfterGap {
			value += ", perhaps"
		}
		words = append(words, made+": "+value)
		if i+1 < len(versions) && (v.Until.IsZero() || v.Until != versions[i+1].From) {
			t.Errorf("history of %s %v: %s lasts until %s, and the next is from %s", table, key, words[i], v.Until, versions[i+1].From)
		}
	}
	return words
}

func wantTold(t *testing.T, a *audittest.Audited, table string, key []any, want ...string) {
	t.Helper()
	if diff := cmp.Diff(want, toldOf(t, a, table, key...)); diff != "" {
		t.Errorf("history of %s %v (-want +got):\n%s", table, key, diff)
	}
}

// Rows that leave a table, or come to it, together with a partition have no changes of
// it, and the others keep theirs.
func TestHistory_PartitionsThatComeAndGo(t *testing.T) {
	t.Parallel()
	for _, traced := range []bool{true, false} {
		t.Run(fmt.Sprintf("traced %t", traced), func(t *testing.T) {
			t.Parallel()
			db := audittest.NewDatabase(t)
			for _, sql := range []string{
				"CREATE TABLE t (id int, part int, v text, PRIMARY KEY (id, part)) PARTITION BY LIST (part)",
				"CREATE TABLE t_1 PARTITION OF t FOR VALUES IN (1)", "CREATE TABLE t_2 PARTITION OF t FOR VALUES IN (2)",
				"INSERT INTO t VALUES (1, 1, 'a'), (2, 2, 'x'), (3, 2, 'p'), (4, 1, 'never'), (9, 1, 'deleted')",
			} {
				db.Exec(t, sql)
			}
			a := audittest.Open(t, db, audit.Config{NoEventTrigger: !traced, RefreshInterval: -1})
			mustStart(t, a)
			t.Cleanup(func() { a.Stop(t) })
			step := func(statements ...string) {
				t.Helper()
				for _, sql := range statements {
					a.Exec(t, sql)
				}
				a.Sync(t)
				if err := a.Client.Refresh(t.Context()); err != nil {
					t.Fatal(err)
				}
			}
			step("UPDATE t SET v = 'b' WHERE id = 1", "UPDATE t SET v = 'y' WHERE id = 2", "INSERT INTO t VALUES (5, 2, 'new')", "DELETE FROM t WHERE id = 9")
			step("ALTER TABLE t DETACH PARTITION t_2")
			wantTold(t, a, "t", []any{1, 1}, "nothing: a", "UPDATE: b")
			wantTold(t, a, "t", []any{2, 2}, "nothing: x", "UPDATE: y", "nothing: gone")
			wantTold(t, a, "t", []any{5, 2}, "CREATE: new", "nothing: gone")
			wantTold(t, a, "t", []any{9, 1}, "nothing: deleted", "DELETE: gone")
			blamed(t, a, []any{1, 1}, "v", "UPDATE")
			step("INSERT INTO t_2 VALUES (6, 2, 'came')", "UPDATE t_2 SET v = 'z' WHERE id = 2")
			step("ALTER TABLE t ATTACH PARTITION t_2 FOR VALUES IN (2)")
			step("UPDATE t SET v = v || '+'")
			// Nobody can tell that it was not in the partition that was away for a while.
			wantTold(t, a, "t", []any{1, 1}, "nothing: a", "UPDATE: b", "UPDATE: b+, perhaps")
			wantTold(t, a, "t", []any{4, 1}, "nothing: never, perhaps", "UPDATE: never+")
			wantTold(t, a, "t", []any{2, 2}, "nothing: x", "UPDATE: y", "nothing: gone", "nothing: z", "UPDATE: z+")
			wantTold(t, a, "t", []any{6, 2}, "nothing: came, perhaps", "UPDATE: came+")
			blamed(t, a, []any{2, 2}, "v", "UPDATE")
			blamed(t, a, []any{2, 2}, "id", "")
			step("DROP TABLE t_1")
			wantTold(t, a, "t", []any{1, 1}, "nothing: a", "UPDATE: b", "UPDATE: b+, perhaps", "nothing: gone")
			step("CREATE TABLE t_1 PARTITION OF t FOR VALUES IN (1)")
			step("INSERT INTO t VALUES (1, 1, 'again')")
			wantTold(t, a, "t", []any{1, 1}, "nothing: a", "UPDATE: b", "UPDATE: b+, perhaps", "nothing: gone", "CREATE: again")
			blamed(t, a, []any{1, 1}, "id", "CREATE")
		})
	}
}

// blamed checks which kind of change gave a column of t its value.
func blamed(t *testing.T, a *audittest.Audited, key []any, column, want string) {
	t.Helper()
	blames, err := a.Client.Blame(t.Context(), "t", key...)
	if err != nil {
		t.Fatal(err)
	}
	i := slices.IndexFunc(blames, func(b audit.ColumnBlame) bool { return b.Column == column })
	got := ""
	if c := blames[i].Change; c != nil {
		got = string(c.Operation)
	}
	if got != want {
		t.Errorf("blame of t %v: %s by %q, want %q", key, column, got, want)
	}
}

// A partition that comes without rows leaves the past as it was; one that comes with some
// may have brought a row, whatever else the transaction does.
func TestHistory_RowsOfPartitionsThatCome(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		sql     []string
		perhaps bool
	}{
		"made":                        {sql: []string{"CREATE TABLE t_2 PARTITION OF t FOR VALUES IN (2)"}},
		"made before, empty":          {sql: []string{"CREATE TABLE t_2 (LIKE t INCLUDING ALL)", "ALTER TABLE t ATTACH PARTITION t_2 FOR VALUES IN (2)"}},
		"made in the same, empty":     {sql: []string{"CREATE TABLE t_2 (LIKE t INCLUDING ALL); ALTER TABLE t ATTACH PARTITION t_2 FOR VALUES IN (2)"}},
		"with rows":                   {sql: []string{"CREATE TABLE t_2 (LIKE t INCLUDING ALL); INSERT INTO t_2 VALUES (7, 2, 'x'); ALTER TABLE t ATTACH PARTITION t_2 FOR VALUES IN (2)"}, perhaps: true},
		"with rows, in a savepoint":   {sql: []string{"BEGIN; SAVEPOINT s; CREATE TABLE t_2 (LIKE t INCLUDING ALL); INSERT INTO t_2 VALUES (7, 2, 'x'); ALTER TABLE t ATTACH PARTITION t_2 FOR VALUES IN (2); RELEASE s; COMMIT"}, perhaps: true},
		"with rows, then made others": {sql: []string{"CREATE TABLE t_2 (LIKE t INCLUDING ALL); INSERT INTO t_2 VALUES (7, 2, 'x'); ALTER TABLE t ATTACH PARTITION t_2 FOR VALUES IN (2); CREATE TABLE t_3 PARTITION OF t FOR VALUES IN (3)"}, perhaps: true},
		"with parts that have rows":   {sql: []string{"CREATE TABLE t_2 (LIKE t INCLUDING ALL) PARTITION BY LIST (id); CREATE TABLE t_2_7 PARTITION OF t_2 FOR VALUES IN (7); INSERT INTO t_2 VALUES (7, 2, 'x'); ALTER TABLE t ATTACH PARTITION t_2 FOR VALUES IN (2)"}, perhaps: true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			a := audittest.New(t, audit.Config{RefreshInterval: -1},
				"CREATE TABLE t (id int, part int, v text, PRIMARY KEY (id, part)) PARTITION BY LIST (part)",
				"CREATE TABLE t_1 PARTITION OF t FOR VALUES IN (1)", "INSERT INTO t VALUES (1, 1, 'never')")
			restart(t, a, func() {
				conn := a.Connect(t).PgConn()
				for _, sql := range c.sql {
					if _, err := conn.Exec(t.Context(), sql).ReadAll(); err != nil {
						t.Fatal(err)
					}
				}
			})
			a.Sync(t)
			want := "nothing: never"
			if c.perhaps {
				want += ", perhaps"
			}
			wantTold(t, a, "t", []any{1, 1}, want)
		})
	}
}

// What goes and comes may have parts itself, and may come to another table.
func TestHistory_PartsOfPartsAndOfOthers(t *testing.T) {
	t.Parallel()
	for _, traced := range []bool{true, false} {
		t.Run(fmt.Sprintf("traced %t", traced), func(t *testing.T) {
			t.Parallel()
			db := audittest.NewDatabase(t)
			for _, sql := range []string{
				"CREATE TABLE t (id int, part int, v text, PRIMARY KEY (id, part)) PARTITION BY LIST (part)",
				"CREATE TABLE t_1 PARTITION OF t FOR VALUES IN (1)", "CREATE TABLE t_2 PARTITION OF t FOR VALUES IN (2) PARTITION BY RANGE (id)",
				"CREATE TABLE t_2_a PARTITION OF t_2 FOR VALUES FROM (0) TO (10)", "CREATE TABLE t_2_b PARTITION OF t_2 FOR VALUES FROM (10) TO (20)",
				"CREATE TABLE u (id int, part int, v text, PRIMARY KEY (id, part)) PARTITION BY LIST (part)", "CREATE TABLE u_1 PARTITION OF u FOR VALUES IN (1)",
				"INSERT INTO t VALUES (1, 1, 'a'), (2, 2, 'x'), (12, 2, 'p')",
			} {
				db.Exec(t, sql)
			}
			a := audittest.Open(t, db, audit.Config{NoEventTrigger: !traced, RefreshInterval: -1})
			mustStart(t, a)
			t.Cleanup(func() { a.Stop(t) })
			step := func(statements ...string) {
				t.Helper()
				for _, sql := range statements {
					a.Exec(t, sql)
				}
				a.Sync(t)
				if err := a.Client.Refresh(t.Context()); err != nil {
					t.Fatal(err)
				}
			}
			step("UPDATE t SET v = 'b' WHERE id = 1", "UPDATE t SET v = 'y' WHERE id = 2", "UPDATE t SET v = 'q' WHERE id = 12")
			step("ALTER TABLE t_2 DETACH PARTITION t_2_b")
			wantTold(t, a, "t", []any{12, 2}, "nothing: p", "UPDATE: q", "nothing: gone")
			wantTold(t, a, "t", []any{2, 2}, "nothing: x", "UPDATE: y")
			step("ALTER TABLE t DETACH PARTITION t_2")
			wantTold(t, a, "t", []any{1, 1}, "nothing: a", "UPDATE: b")
			wantTold(t, a, "t", []any{2, 2}, "nothing: x", "UPDATE: y", "nothing: gone")
			step("ALTER TABLE u ATTACH PARTITION t_2 FOR VALUES IN (2)")
			step("UPDATE u SET v = 'z' WHERE id = 2")
			wantTold(t, a, "u", []any{2, 2}, "nothing: y, perhaps", "UPDATE: z")
			wantTold(t, a, "t", []any{2, 2}, "nothing: x", "UPDATE: y", "nothing: gone")
			step("ALTER TABLE t_2 ATTACH PARTITION t_2_b FOR VALUES FROM (10) TO (20)")
			step("DELETE FROM u WHERE id = 12", "UPDATE u SET v = 'end' WHERE id = 2")
			wantTold(t, a, "u", []any{12, 2}, "nothing: q, perhaps", "DELETE: gone")
			wantTold(t, a, "t", []any{1, 1}, "nothing: a", "UPDATE: b")
		})
	}
}

// A row is under the key that its table had when it was written, also where the partition
// is heard of for the first time when the table has another one; and TRUNCATE of another
// partition does not take it away.
func TestHistory_OfPartitionsHeardOfLate(t *testing.T) {
	t.Parallel()
	db := audittest.NewDatabase(t)
	for _, sql := range []string{
		"CREATE TABLE t (id int, part int, v text, PRIMARY KEY (id, part)) PARTITION BY LIST (part)",
		"CREATE TABLE t_1 PARTITION OF t FOR VALUES IN (1)", "CREATE TABLE t_2 (v text, part int NOT NULL, id int NOT NULL)",
		"ALTER TABLE t ATTACH PARTITION t_2 FOR VALUES IN (2)", "INSERT INTO t VALUES (1, 1, 'a')",
	} {
		db.Exec(t, sql)
	}
	a := audittest.Open(t, db, audit.Config{RefreshInterval: -1})
	mustStart(t, a)
	t.Cleanup(func() { a.Stop(t) })
	var then copied
	restart(t, a, func() {
		a.Exec(t, "INSERT INTO t VALUES (6, 2, 'x'), (2, 1, 'b')")
		a.Exec(t, "TRUNCATE t_1")
		then = copyTables(t, a, "emptied")
		a.Exec(t, "ALTER TABLE t DROP CONSTRAINT t_pkey, ADD PRIMARY KEY (part)")
	})
	a.Sync(t)
	if key := audittest.Value[string](t, db, "SELECT string_agg(primary_key, ' ' ORDER BY sequence) FROM audit.changes WHERE operation = 'CREATE'"); key != `["6","2"] ["2","1"]` {
		t.Errorf("the rows are stored under %s", key)
	}
	blames, err := then.point.Blame(t.Context(), "t", 6, 2)
	if err != nil {
		t.Fatal(err)
	}
	for _, b := range blames {
		if b.Change == nil || b.Change.Operation != audit.Create {
			t.Errorf("%s was set by %v", b.Column, b.Change)
		}
	}
	a.Exec(t, "UPDATE t SET v = 'y'")
	a.Sync(t)
	wantTold(t, a, "t", []any{2}, "CREATE: x", "UPDATE: y")
}

// A row that was gone before its table got another primary key, or the same anew while
// nobody saw it, is not one that never was.
func TestHistory_GoneBeforeAnotherKey(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		alter  string
		traced bool
		told   bool
	}{
		"the same, unseen": {alter: "DROP CONSTRAINT p_pkey, ADD PRIMARY KEY (id)"},
		"the same, seen":   {alter: "DROP CONSTRAINT p_pkey, ADD PRIMARY KEY (id)", traced: true, told: true},
		"another":          {alter: "DROP CONSTRAINT p_pkey, ADD PRIMARY KEY (v)", traced: true},
		"another, unseen":  {alter: "DROP CONSTRAINT p_pkey, ADD PRIMARY KEY (v)"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			a := audittest.New(t, audit.Config{NoEventTrigger: !c.traced, RefreshInterval: -1}, "CREATE TABLE p (id int PRIMARY KEY, v int)")
			a.Exec(t, "INSERT INTO p VALUES (1, 1), (2, 2)")
			a.Exec(t, "DELETE FROM p WHERE id = 1")
			a.Exec(t, "ALTER TABLE p "+c.alter)
			refresh(t, a)
			a.Exec(t, "UPDATE p SET v = 3 WHERE id = 2")
			a.Sync(t)
			versions, err := a.Client.History("p", 1).List(t.Context())
			switch {
			case c.told && (err != nil || len(versions) != 2 || versions[1].Exists()):
				t.Errorf("%d versions: %v; want its insertion and its end", len(versions), err)
			case !c.told && !errors.Is(err, audit.ErrIncomplete):
				t.Errorf("%d versions: %v; want ErrIncomplete", len(versions), err)
			}
			if _, err := a.Client.History("p", 77).List(t.Context()); c.told && err != nil {
				t.Errorf("a row that never was: %v", err)
			}
		})
	}
}
