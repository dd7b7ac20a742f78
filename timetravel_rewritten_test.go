package audit_test

import (
	"fmt"
	"slices"
	"testing"
)

// computedAnew are statements behind which the values of a column mean something else than
// before, although its type says the same, or more.
var computedAnew = map[string]ddlStory{
	"the same type": {
		steps: []string{"ALTER TABLE t ALTER price TYPE int USING price * 100"},
	},
	"a longer type": {
		steps: []string{"ALTER TABLE t ALTER COLUMN price SET DATA TYPE bigint USING price * 100"},
	},
	"and back": {
		steps: []string{"ALTER TABLE t ALTER price TYPE bigint USING price * 100", "UPDATE t SET v = 'between' WHERE id = 2", "ALTER TABLE t ALTER price TYPE int USING price / 100"},
	},
	"by a function": {
		setup: []string{"CREATE FUNCTION migrate() RETURNS void LANGUAGE plpgsql AS $$ BEGIN EXECUTE 'ALTER TABLE t ALTER price TYPE int ' || 'USING price * 100'; END $$"},
		steps: []string{"SELECT migrate()"},
	},
	"in a DO block": {
		steps: []string{"DO $$ BEGIN ALTER TABLE t ALTER price TYPE int USING price * 100; EXCEPTION WHEN division_by_zero THEN NULL; END $$"},
	},
	"one column of two": {
		steps: []string{"ALTER TABLE t ALTER price TYPE int USING price * 100, ALTER v TYPE text USING v"},
	},
	"a cast of another column": {
		setup: []string{"ALTER TABLE t ADD other int DEFAULT 5"},
		steps: []string{"ALTER TABLE t ALTER price TYPE int USING other::int"},
	},
	"more than a cast": {
		steps: []string{"ALTER TABLE t ALTER price TYPE bigint USING price::bigint * 100"},
	},
	"a cast to something else": {
		steps: []string{"ALTER TABLE t ALTER v TYPE text USING v::char(1)"},
	},
	"a quoted name": {
		setup: []string{`ALTER TABLE t RENAME price TO "Price, in euro"`},
		steps: []string{`ALTER TABLE t ALTER "Price, in euro" TYPE int USING "Price, in euro" * 100`},
	},
	"a column whose name differs by case only": {
		setup: []string{`ALTER TABLE t ADD "Price" int DEFAULT 5`},
		steps: []string{`ALTER TABLE t ALTER "price" TYPE int USING "Price"`},
	},
	"a type whose name differs by case only": {
		setup: []string{`CREATE DOMAIN "Word" AS text`, `CREATE DOMAIN word AS varchar(1)`, `ALTER TABLE t ALTER v TYPE "Word"`},
		steps: []string{`ALTER TABLE t ALTER v TYPE "Word" USING v::"word"`},
	},
	"in a transaction with changes on both sides": {
		steps: []string{"BEGIN; UPDATE t SET price = 11 WHERE id = 1; SAVEPOINT s; ALTER TABLE t ALTER price TYPE int USING price * 100; RELEASE s; UPDATE t SET price = 7 WHERE id = 2; COMMIT"},
	},
	"rolled back": {
		steps: []string{"BEGIN; UPDATE t SET price = 11 WHERE id = 1; SAVEPOINT s; ALTER TABLE t ALTER price TYPE int USING price * 100; ROLLBACK TO s; UPDATE t SET price = 7 WHERE id = 2; COMMIT"},
	},
	"a column of the key": {
		steps: []string{"ALTER TABLE t ALTER id TYPE int USING id + 1"},
		later: []string{"UPDATE t SET v = 'later' WHERE id = 3"},
	},
	"of a table without a key": {
		setup: []string{"ALTER TABLE t DROP CONSTRAINT t_pkey"},
		steps: []string{"ALTER TABLE t ALTER price TYPE int USING price * 100"},
	},
	"another column beside it": {
		steps: []string{"BEGIN; ALTER TABLE t ADD w text; ALTER TABLE t ALTER price TYPE int USING price * 100, ALTER w TYPE text USING w::text; COMMIT"},
	},
	"a name with escapes": {
		steps: []string{`ALTER TABLE t ALTER U&"pr\0069ce" TYPE int USING U&"pr\0069ce" * 100`},
	},
	"in a multi-statement string": {
		steps: []string{"CREATE INDEX ON t USING btree (v); ALTER TABLE t ALTER price TYPE bigint USING price * 100"},
	},
	"of partitions": {
		setup: []string{
			"DROP TABLE t", "CREATE TABLE t (id int PRIMARY KEY, price int, v text) PARTITION BY RANGE (id)",
			"CREATE TABLE t_1 PARTITION OF t FOR VALUES FROM (0) TO (2)", "CREATE TABLE t_2 PARTITION OF t FOR VALUES FROM (2) TO (100)", "INSERT INTO t SELECT n, n, 'v' || n FROM generate_series(1, 3) n",
		},
		steps: []string{"ALTER TABLE t ALTER price TYPE int USING price * 100"},
		later: []string{"ALTER TABLE t DETACH PARTITION t_1", "UPDATE t SET price = 13", "CREATE TABLE t_3 PARTITION OF t FOR VALUES FROM (100) TO (200)", "INSERT INTO t VALUES (150, 1, 'x')", "UPDATE t SET price = 2 WHERE id = 150"},
	},
}

// Values that an ALTER TABLE computed anew are never told as those of before.
func TestPast_ComputedAnew(t *testing.T) {
	t.Parallel()
	for name, story := range computedAnew {
		story.setup = append([]string{"CREATE TABLE t (id int PRIMARY KEY, price int, v text)", "INSERT INTO t SELECT n, n, 'v' || n FROM generate_series(1, 3) n"}, story.setup...)
		story.steps = slices.Concat([]string{"UPDATE t SET v = 'changed' WHERE id = 1"}, story.steps, []string{"UPDATE t SET v = 'after' WHERE id = 2"})
		story.refusals = true
		for _, behind := range []bool{false, true} {
			if behind && story.later == nil {
				continue // capture reads the same messages
			}
			t.Run(fmt.Sprintf("%s, behind=%t", name, behind), func(t *testing.T) {
				t.Parallel()
				story.run(t, true, behind)
			})
		}
	}
}

// What USING says is often what would be done without: such values are told.
func TestPast_PlainlyCast(t *testing.T) {
	t.Parallel()
	var story ddlStory
	for i, alter := range []string{
		"ALTER price TYPE bigint", "ALTER price TYPE bigint USING price::bigint", `ALTER COLUMN "price" TYPE bigint USING "price"::bigint`,
		"alter column price set data type int8 using price :: INT8", "ALTER price TYPE bigint USING CAST(price AS bigint)",
		"ALTER price TYPE bigint USING price", `ALTER "price" TYPE "int8" USING "price"::"int8"`, "ALTER Price TYPE BigInt USING price::bigint", "ALTER price TYPE bigint USING price::bigint, ALTER v TYPE text USING v::text",
	} {
		table := fmt.Sprintf("t%d", i)
		story.setup = append(story.setup, "CREATE TABLE "+table+" (id int PRIMARY KEY, price int, v text)", "INSERT INTO "+table+" SELECT n, n, 'v' || n FROM generate_series(1, 3) n")
		story.steps = append(story.steps, "ALTER TABLE "+table+" "+alter)
	}
	story.run(t, true, false)
}
