package audit_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/hindsight-go/audit"
	"github.com/hindsight-go/audit/audittest"
)

// ddlStory is a database that is altered while it is written to.
type ddlStory struct {
	setup []string
	// steps are statements; after each of them all tables are copied. later are those that
	// follow when capture goes on, where it was behind.
	steps, later []string
	// refusals says that some of the past cannot be told, whatever saw the statements.
	refusals bool
	least    int // PostgreSQL's major version
}

// lookAgain is a step of a story in which tables are looked at.
const lookAgain = "look again"

var ddlStories = map[string]ddlStory{
	"primary key moved to more columns": {
		setup: []string{"CREATE TABLE p (id int PRIMARY KEY, tenant int NOT NULL DEFAULT 7, v int)", "INSERT INTO p VALUES (1, 7, 10), (2, 7, 20)"},
		steps: []string{
			"INSERT INTO p VALUES (3, 7, 30)", "ALTER TABLE p DROP CONSTRAINT p_pkey, ADD PRIMARY KEY (tenant, id)", "UPDATE p SET v = 12 WHERE id = 1",
			"INSERT INTO p VALUES (1, 8, 80)", "DELETE FROM p WHERE tenant = 7 AND id = 2", "UPDATE p SET id = 2 WHERE id = 3",
		},
	},
	"primary key moved to another column whose values cross": {
		setup: []string{"CREATE TABLE p (a int PRIMARY KEY, b int NOT NULL, v text)", "INSERT INTO p VALUES (1, 2, 'one'), (2, 1, 'two'), (3, 3, 'three')"},
		steps: []string{
			"UPDATE p SET v = v || '+' WHERE a = 1", "ALTER TABLE p DROP CONSTRAINT p_pkey, ADD PRIMARY KEY (b)", "UPDATE p SET v = 'uno' WHERE b = 1",
			"UPDATE p SET a = 9 WHERE b = 2", "DELETE FROM p WHERE b = 3", "ALTER TABLE p DROP CONSTRAINT p_pkey, ADD PRIMARY KEY (a)", "UPDATE p SET v = 'end'",
		},
	},
	"primary key moved to a generated column": {
		setup: []string{"CREATE TABLE g (id int PRIMARY KEY, v int, twice int GENERATED ALWAYS AS (v * 2) STORED)", "INSERT INTO g (id, v) VALUES (1, 1), (2, 2)"},
		steps: []string{
			"UPDATE g SET v = 3 WHERE id = 1", "ALTER TABLE g DROP CONSTRAINT g_pkey, ADD PRIMARY KEY (twice)", "INSERT INTO g (id, v) VALUES (3, 5)",
			"UPDATE g SET v = 7 WHERE id = 2", "DELETE FROM g WHERE id = 1", "ALTER TABLE g DROP CONSTRAINT g_pkey, ADD PRIMARY KEY (id)", "UPDATE g SET v = v + 1",
		},
	},
	"primary key dropped": {
		setup: []string{"CREATE TABLE p (id int PRIMARY KEY, v int)", "INSERT INTO p VALUES (1, 10), (2, 20)"},
		steps: []string{
			"ALTER TABLE p DROP CONSTRAINT p_pkey", "UPDATE p SET v = 13 WHERE id = 1", "INSERT INTO p VALUES (1, 10)", "DELETE FROM p WHERE v = 13",
			"ALTER TABLE p ADD PRIMARY KEY (id)", "UPDATE p SET v = 14 WHERE id = 1",
		},
	},
	"primary key swapped in one transaction with rows": {
		setup: []string{"CREATE TABLE p (a int PRIMARY KEY, b int NOT NULL, v int)", "INSERT INTO p VALUES (1, 2, 1), (2, 1, 2)"},
		steps: []string{"UPDATE p SET v = 3 WHERE a = 1; ALTER TABLE p DROP CONSTRAINT p_pkey, ADD PRIMARY KEY (b); UPDATE p SET v = 4 WHERE b = 1", "UPDATE p SET v = v + 1"},
	},
	"columns swapped by renames": {
		setup: []string{"CREATE TABLE s (id int PRIMARY KEY, a text, b text)", "INSERT INTO s VALUES (1, 'a1', 'b1'), (2, 'a2', 'b2')"},
		steps: []string{
			"UPDATE s SET a = 'a1x' WHERE id = 1",
			"ALTER TABLE s RENAME a TO c; ALTER TABLE s RENAME b TO a; ALTER TABLE s RENAME c TO b",
			"UPDATE s SET a = 'new a' WHERE id = 1", "DELETE FROM s WHERE id = 2",
		},
	},
	"key columns swapped by renames": {
		setup: []string{"CREATE TABLE s (a int, b int, v int, PRIMARY KEY (a, b))", "INSERT INTO s VALUES (1, 2, 0), (2, 1, 0)"},
		steps: []string{
			"ALTER TABLE s RENAME a TO c; ALTER TABLE s RENAME b TO a; ALTER TABLE s RENAME c TO b", "UPDATE s SET v = 1 WHERE a = 1", "INSERT INTO s (a, b, v) VALUES (5, 6, 7)",
		},
	},
	"column dropped and made anew": {
		setup: []string{"CREATE TABLE d (id int PRIMARY KEY, a text, n int)", "INSERT INTO d VALUES (1, 'x', 1), (2, 'y', 2)"},
		steps: []string{
			"UPDATE d SET a = 'xx' WHERE id = 1", "UPDATE d SET a = 'yy' WHERE id = 2", "ALTER TABLE d DROP a; ALTER TABLE d ADD a text DEFAULT 'def'",
			"UPDATE d SET n = n + 1", "UPDATE d SET a = 'z' WHERE id = 1", "DELETE FROM d WHERE id = 2",
		},
		refusals: true, // the values of the dropped column for rows that did not change
	},
	"name taken over by another table": {
		setup: []string{"CREATE TABLE a (id int PRIMARY KEY, v int)", "CREATE TABLE a_new (id int PRIMARY KEY, v int, extra text)", "INSERT INTO a VALUES (1, 1), (2, 2)"},
		steps: []string{
			"INSERT INTO a_new SELECT id, v * 100, 'e' FROM a", "UPDATE a SET v = 3 WHERE id = 1",
			"ALTER TABLE a RENAME TO a_old; ALTER TABLE a_new RENAME TO a", "UPDATE a SET v = 999 WHERE id = 1", "UPDATE a_old SET v = 5 WHERE id = 2", "DROP TABLE a_old", "DELETE FROM a WHERE id = 2",
		},
		refusals: true, // a_old is gone
	},
	"schema changed": {
		setup: []string{"CREATE SCHEMA other", "CREATE TABLE m (id int PRIMARY KEY, v int)", "INSERT INTO m VALUES (1, 1)"},
		steps: []string{"UPDATE m SET v = 2", "ALTER TABLE m SET SCHEMA other", "UPDATE other.m SET v = 3", "CREATE TABLE m (id int PRIMARY KEY, w text)", "ALTER TABLE other.m RENAME TO n", "UPDATE other.n SET v = 4"},
	},
	"label of an enum renamed": {
		setup: []string{"CREATE TYPE mood AS ENUM ('sad', 'ok')", "CREATE TABLE e (id int PRIMARY KEY, m mood)", "INSERT INTO e VALUES (1, 'sad'), (2, 'ok')"},
		steps: []string{
			"UPDATE e SET m = 'ok' WHERE id = 1", "ALTER TYPE mood ADD VALUE 'glad'", "UPDATE e SET m = 'glad' WHERE id = 2", "ALTER TYPE mood RENAME VALUE 'ok' TO 'fine'", "INSERT INTO e VALUES (3, 'fine')", "UPDATE e SET m = 'sad' WHERE id = 1",
		},
		refusals: true,
	},
	"types altered, column added, then dropped": {
		setup: []string{"CREATE TYPE mood AS ENUM ('sad', 'ok')", "CREATE TABLE e (id int PRIMARY KEY, m mood)", "CREATE TYPE pair AS (x int, y int)", "CREATE TABLE k (id int PRIMARY KEY, p pair)", "CREATE TABLE n (id int PRIMARY KEY, a text)"},
		steps: []string{
			"INSERT INTO e VALUES (1, 'sad'); INSERT INTO k VALUES (1, '(1,2)'); INSERT INTO n VALUES (1, 'a')", "ALTER TYPE mood RENAME VALUE 'sad' TO 'blue'", "ALTER TYPE pair DROP ATTRIBUTE y",
			"ALTER TABLE n ADD b text DEFAULT 'later'", "DROP TABLE e, k, n", "CREATE TABLE e (id int PRIMARY KEY, m mood); INSERT INTO e VALUES (1, 'blue')",
		},
		refusals: true,
	},
	"name of a table that was dropped": {
		setup:    []string{"CREATE TABLE n (x int, y int, PRIMARY KEY (x, y))", "INSERT INTO n VALUES (5, 4)"},
		steps:    []string{"INSERT INTO n VALUES (1, 2)", "DROP TABLE n; CREATE TABLE n (id int PRIMARY KEY, v int)"},
		later:    []string{"INSERT INTO n VALUES (6, 1)", "INSERT INTO n VALUES (2, 2)", "DELETE FROM n WHERE id = 6"},
		refusals: true,
	},
	"name of a dropped table given to a partition": {
		setup: []string{
			"CREATE TABLE n (id int PRIMARY KEY, v int)", "CREATE TABLE t (id int, part int, v text, PRIMARY KEY (id, part)) PARTITION BY LIST (part)",
			"CREATE TABLE t_1 PARTITION OF t FOR VALUES IN (1)", "INSERT INTO t VALUES (1, 1, 'a')",
		},
		steps: []string{
			"INSERT INTO n VALUES (1, 1), (2, 2)", "ALTER TABLE n DROP CONSTRAINT n_pkey, ADD PRIMARY KEY (v, id)", "INSERT INTO t VALUES (2, 1, 'b')",
			"DROP TABLE n", "ALTER TABLE t_1 RENAME TO n", "DELETE FROM t WHERE id = 1",
		},
		refusals: true,
	},
	"name of a table given to a partition": {
		setup: []string{
			"CREATE TABLE n (id int PRIMARY KEY, v int)", "CREATE TABLE t (id int, part int, v text, PRIMARY KEY (id, part)) PARTITION BY LIST (part)",
			"CREATE TABLE t_1 PARTITION OF t FOR VALUES IN (1)", "INSERT INTO t VALUES (1, 1, 'a')",
		},
		steps: []string{"INSERT INTO n VALUES (1, 1), (2, 2)", "INSERT INTO t VALUES (2, 1, 'b')"},
		later: []string{"ALTER TABLE t_1 RENAME TO swap; ALTER TABLE n RENAME TO t_1; ALTER TABLE swap RENAME TO n", "DELETE FROM t WHERE id = 1", "INSERT INTO t_1 VALUES (3, 3)"},

		refusals: true,
	},
	"name of a table that came later": {
		setup: []string{"CREATE TABLE b (id int PRIMARY KEY, v int)", "INSERT INTO b VALUES (1, 1)"},
		steps: []string{"UPDATE b SET v = 2", "CREATE TABLE n (id int, w text)", "INSERT INTO b VALUES (2, 2)"},
		later: []string{lookAgain, "ALTER TABLE n RENAME TO swap; ALTER TABLE b RENAME TO n; ALTER TABLE swap RENAME TO b", "UPDATE n SET v = 3 WHERE id = 1", "INSERT INTO b VALUES (1, 'x')"},

		refusals: true,
	},
	"column replaced by another of its name": {
		setup: []string{"CREATE TYPE pair AS (x int, y int)", "CREATE TABLE g (id int PRIMARY KEY, v int, twice int GENERATED ALWAYS AS (v * 2) STORED, w int)", "INSERT INTO g (id, v, w) VALUES (1, 1, 1), (2, 2, 2)"},
		steps: []string{
			"UPDATE g SET v = 10 WHERE id = 1", "ALTER TABLE g DROP twice; ALTER TABLE g ADD twice pair", "INSERT INTO g (id) VALUES (3)",
			"ALTER TABLE g DROP w; ALTER TABLE g ADD w int DEFAULT 7", "UPDATE g SET w = 8 WHERE id = 1",
		},
		refusals: true,
	},
	"attributes of a composite type": {
		setup: []string{"CREATE TYPE pair AS (x int, y int)", "CREATE TABLE k (id int PRIMARY KEY, p pair)", "INSERT INTO k VALUES (1, '(1,2)'), (2, '(3,4)')"},
		steps: []string{
			"UPDATE k SET p = '(5,6)' WHERE id = 1", "ALTER TYPE pair DROP ATTRIBUTE y", "UPDATE k SET id = 3 WHERE id = 2", "ALTER TYPE pair ADD ATTRIBUTE z text", "UPDATE k SET p = '(7,seven)' WHERE id = 1",
		},
		refusals: true,
	},
	"generated column made plain": {
		setup: []string{"CREATE TABLE g (id int PRIMARY KEY, v int, twice int GENERATED ALWAYS AS (v * 2) STORED, half int GENERATED ALWAYS AS (v / 2) STORED)", "INSERT INTO g (id, v) VALUES (1, 1), (2, 2)"},
		steps: []string{
			"UPDATE g SET v = 10 WHERE id = 1", "ALTER TABLE g ALTER twice DROP EXPRESSION", "UPDATE g SET twice = 99 WHERE id = 1", "UPDATE g SET v = 5 WHERE id = 2", "DELETE FROM g WHERE id = 1",
		},
	},
	"expression of a generated column": {
		setup: []string{"CREATE TABLE g (id int PRIMARY KEY, v int, twice int GENERATED ALWAYS AS (v * 2) STORED)", "INSERT INTO g (id, v) VALUES (1, 1), (2, 2)"},
		steps: []string{"UPDATE g SET v = 10 WHERE id = 1", "ALTER TABLE g ALTER twice SET EXPRESSION AS (v * 3)", "UPDATE g SET v = 11 WHERE id = 1"},
		least: 17,
	},
	"column with a name of ours": {
		setup: []string{`CREATE TABLE o (id int PRIMARY KEY, audit_key_1 int, "audit_key_2" text)`, "INSERT INTO o VALUES (1, 1, 'x'), (2, 2, 'y')"},
		steps: []string{"UPDATE o SET audit_key_1 = 5 WHERE id = 1", "ALTER TABLE o ADD audit_key_3 int", "UPDATE o SET audit_key_3 = 1"},
	},
	"partition detached": {
		setup: []string{
			"CREATE TABLE t (id int, at date NOT NULL, v text, PRIMARY KEY (id, at)) PARTITION BY RANGE (at)",
			"CREATE TABLE t_1 PARTITION OF t FOR VALUES FROM ('2024-01-01') TO ('2024-02-01')", "CREATE TABLE t_2 PARTITION OF t FOR VALUES FROM ('2024-02-01') TO ('2024-03-01')",
			"INSERT INTO t VALUES (1, '2024-01-05', 'a'), (2, '2024-02-05', 'b')",
		},
		steps: []string{
			"UPDATE t SET v = 'aa' WHERE id = 1", "CREATE TABLE t_3 PARTITION OF t FOR VALUES FROM ('2024-03-01') TO ('2024-04-01')", "INSERT INTO t VALUES (3, '2024-03-05', 'c')",
			"ALTER TABLE t DETACH PARTITION t_1", "UPDATE t SET v = 'bb' WHERE id = 2", "DROP TABLE t_2", "INSERT INTO t VALUES (4, '2024-03-06', 'd')",
		},
		refusals: true,
	},
	"partitions without a key truncated, then others come and go": {
		setup: []string{
			"CREATE TABLE w (id int, a text) PARTITION BY LIST (id)", "CREATE TABLE w_1 PARTITION OF w FOR VALUES IN (1)", "CREATE TABLE w_2 PARTITION OF w FOR VALUES IN (2)",
			"CREATE TABLE w_3 PARTITION OF w FOR VALUES IN (3)", "INSERT INTO w VALUES (1, 'a'), (2, 'b'), (3, 'c')",
		},
		steps: []string{
			"INSERT INTO w VALUES (3, 'cc'), (1, 'aa')", "TRUNCATE w_1, w_2", "INSERT INTO w VALUES (1, 'x')", "ALTER TABLE w DETACH PARTITION w_3",
			"TRUNCATE w_1, w_2", "INSERT INTO w VALUES (2, 'y')", "CREATE TABLE w_4 PARTITION OF w FOR VALUES IN (4)", "INSERT INTO w VALUES (4, 'd')", "TRUNCATE w", "INSERT INTO w VALUES (4, 'e')",
		},
		refusals: true,
	},
	"partition dropped": {
		setup: []string{
			"CREATE TABLE t (id int, part int, v text, PRIMARY KEY (id, part)) PARTITION BY LIST (part)",
			"CREATE TABLE t_1 PARTITION OF t FOR VALUES IN (1)", "CREATE TABLE t_2 PARTITION OF t FOR VALUES IN (2)", "INSERT INTO t VALUES (1, 1, 'a'), (4, 2, 'b')",
		},
		steps:    []string{"UPDATE t SET v = 'aa' WHERE id = 1", "DROP TABLE t_2", "UPDATE t SET v = 'aaa'", "ALTER TABLE t ALTER v SET DEFAULT 'd'", "INSERT INTO t VALUES (2, 1, 'c')"},
		refusals: true,
	},
	"partition attached with rows": {
		setup: []string{
			"CREATE TABLE t (id int, at date NOT NULL, v text, PRIMARY KEY (id, at)) PARTITION BY RANGE (at)",
			"CREATE TABLE t_1 PARTITION OF t FOR VALUES FROM ('2024-01-01') TO ('2024-02-01')", "INSERT INTO t VALUES (1, '2024-01-05', 'a')",
			"CREATE TABLE t_2 (id int NOT NULL, at date NOT NULL, v text)", "INSERT INTO t_2 VALUES (2, '2024-02-05', 'b'), (3, '2024-02-06', 'c')",
		},
		steps:    []string{"UPDATE t SET v = 'aa' WHERE id = 1", "ALTER TABLE t ATTACH PARTITION t_2 FOR VALUES FROM ('2024-02-01') TO ('2024-03-01')", "UPDATE t SET v = 'bb' WHERE id = 2", "INSERT INTO t VALUES (4, '2024-02-07', 'd')"},
		refusals: true,
	},
	"partitions without a key, columns in another order": {
		setup: []string{
			"CREATE TABLE w (id int, a text, b text) PARTITION BY LIST (id)", "CREATE TABLE w_1 (b text, a text, id int)",
			"ALTER TABLE w ATTACH PARTITION w_1 FOR VALUES IN (1)", "CREATE TABLE w_2 PARTITION OF w FOR VALUES IN (2)",
			"INSERT INTO w VALUES (1, 'a1', 'b1'), (2, 'a2', 'b2')",
		},
		steps: []string{"UPDATE w SET a = 'a1x' WHERE id = 1", "UPDATE w SET b = 'b2x' WHERE id = 2", "ALTER TABLE w RENAME a TO c", "ALTER TABLE w ADD n int", "UPDATE w SET c = 'c1', n = 5", "DELETE FROM w WHERE id = 1"},
	},
	"names exchanged in the transaction that changed rows": {
		setup: []string{
			"CREATE TABLE g (id int PRIMARY KEY, v int)", "INSERT INTO g VALUES (3, NULL)", "CREATE TABLE t (id int, part int, v text, PRIMARY KEY (id, part)) PARTITION BY LIST (part)",
			"CREATE TABLE t_1 PARTITION OF t FOR VALUES IN (1)", "INSERT INTO t VALUES (1, 1, 'a')",
		},
		steps: []string{"UPDATE g SET v = 1; ALTER TABLE t RENAME TO swap; ALTER TABLE g RENAME TO t; ALTER TABLE swap RENAME TO g; UPDATE t SET v = 2", "DELETE FROM g", "UPDATE t SET v = 3"},
	},
	"names exchanged and given back in one transaction": {
		setup: []string{"CREATE TABLE a (id int PRIMARY KEY, v int)", "CREATE TABLE b (id int PRIMARY KEY, v int)", "INSERT INTO a VALUES (1, 1), (2, 2)", "INSERT INTO b VALUES (1, 10), (2, 20)"},
		steps: []string{
			"UPDATE a SET v = v + 1 WHERE id = 1; ALTER TABLE a RENAME TO x; ALTER TABLE b RENAME TO a; UPDATE a SET v = v + 1 WHERE id = 1; ALTER TABLE a RENAME TO b; ALTER TABLE x RENAME TO a; UPDATE a SET v = v + 1 WHERE id = 2",
			"DELETE FROM a", "DELETE FROM b",
		},
	},
	"table filled and put in the place of another": {
		setup: []string{"CREATE TABLE a (id int PRIMARY KEY, v int)", "INSERT INTO a SELECT n, n FROM generate_series(1, 3) n", "CREATE TABLE a_new (id int PRIMARY KEY, v int, w int)"},
		steps: []string{
			"UPDATE a SET v = 10 WHERE id = 1",
			"DELETE FROM a WHERE id = 3; INSERT INTO a_new SELECT id, v, 0 FROM a; UPDATE a SET v = 20; ALTER TABLE a RENAME TO a_old; ALTER TABLE a_new RENAME TO a; UPDATE a SET w = 1 WHERE id = 1; DELETE FROM a_old WHERE id = 1",
			"UPDATE a SET v = 30", "DELETE FROM a_old",
		},
	},
	"the same without keys": {
		setup: []string{"CREATE TABLE a (id int, v int)", "INSERT INTO a SELECT n, n FROM generate_series(1, 3) n", "CREATE TABLE a_new (id int, v int)"},
		steps: []string{
			"INSERT INTO a_new SELECT id, v FROM a; UPDATE a SET v = 20; ALTER TABLE a RENAME TO a_old; ALTER TABLE a_new RENAME TO a; UPDATE a SET v = 1 WHERE id = 1; DELETE FROM a_old WHERE id = 1",
			"UPDATE a SET v = 30", "DELETE FROM a_old",
		},
	},
	"no columns of its own": {
		setup:    []string{"CREATE TABLE z ()", "INSERT INTO z DEFAULT VALUES", "CREATE TABLE g (a int GENERATED ALWAYS AS (1) STORED)", "INSERT INTO g DEFAULT VALUES"},
		steps:    []string{"INSERT INTO z DEFAULT VALUES; INSERT INTO g DEFAULT VALUES", "DELETE FROM z; DELETE FROM g", "ALTER TABLE z ADD v int", "INSERT INTO z VALUES (1)"},
		refusals: true,
	},
	"composite type that loses its last attribute": {
		setup:    []string{"CREATE TYPE pair AS (x int, y text)", "CREATE TABLE t (id int PRIMARY KEY, p pair)", "INSERT INTO t VALUES (1, '(1,a)'), (2, '(2,b)')"},
		steps:    []string{"UPDATE t SET p = '(3,c)' WHERE id = 1", "ALTER TYPE pair DROP ATTRIBUTE x", "INSERT INTO t VALUES (3, '(d)')", "ALTER TYPE pair DROP ATTRIBUTE y", "ALTER TABLE t ALTER p SET DEFAULT '()'"},
		refusals: true,
	},
	"inheritance": {
		setup: []string{
			"CREATE TABLE city (id int PRIMARY KEY, name text)", "CREATE TABLE capital (PRIMARY KEY (id)) INHERITS (city)",
			"INSERT INTO city VALUES (1, 'Lyon')", "INSERT INTO capital VALUES (2, 'Paris')",
		},
		steps:    []string{"UPDATE city SET name = upper(name)", "DELETE FROM capital", "ALTER TABLE capital NO INHERIT city", "UPDATE city SET name = 'x'"},
		refusals: true,
	},
}

// What a change means is what the table was then: every table is at every moment
// what a copy of it held, or is refused; and where event triggers saw the
// statements and nothing is gone, it is told.
func TestDDLStories(t *testing.T) {
	t.Parallel()
	for name, story := range ddlStories {
		for _, traced := range []bool{true, false} {
			for _, behind := range []bool{false, true} {
				t.Run(fmt.Sprintf("%s, traced=%t, behind=%t", name, traced, behind), func(t *testing.T) {
					t.Parallel()
					story.run(t, traced, behind)
				})
			}
		}
	}
}

func (s ddlStory) run(t *testing.T, traced, behind bool) {
	t.Helper()
	db := audittest.NewDatabase(t)
	if db.Server().Version() < s.least*10000 {
		return // the statement is not there yet
	}
	for _, sql := range s.setup {
		db.Exec(t, sql)
	}
	a := audittest.Open(t, db, audit.Config{NoEventTrigger: !traced, RefreshInterval: -1})
	mustStart(t, a)
	t.Cleanup(func() { a.Stop(t) })
	copies := []copied{copyTables(t, a, "the beginning")}
	act := func(steps []string) {
		for _, step := range steps {
			if step == lookAgain {
				a.Sync(t)
				refresh(t, a)
				continue
			}
			a.Exec(t, step)
			if !behind && strings.Contains(step, "CREATE TABLE") {
				refresh(t, a)
			}
			copies = append(copies, copyTables(t, a, step))
		}
	}
	if behind {
		restart(t, a, func() { act(s.steps) })
	} else {
		act(s.steps)
	}
	act(s.later)
	a.Sync(t)
	refresh(t, a)
	a.Sync(t)
	var told, differences verdict
	for _, c := range copies {
		c.compare(t, &told)
	}
	for i := range copies[1:] {
		copies[i].compareDifference(t, copies[i+1], &differences)
		copies[0].compareDifference(t, copies[i+1], &differences)
	}
	if traced && !s.refusals && !behind && told.refused > 0 {
		t.Errorf("%d of %d answers were refused", told.refused, told.refused+told.equal)
	}
	t.Logf("equal %d, refused %d", told.equal, told.refused)
}
