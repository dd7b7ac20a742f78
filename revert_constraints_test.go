package audit_test

import (
	"errors"
	"testing"

	"github.com/hindsight-go/audit"
	"github.com/hindsight-go/audit/audittest"
)

// involved are schemas, and requests in them, that take care to revert: more of
// those in hard, and each in the variant that is not easy.
var involved = map[string]struct {
	version int // the first major of PostgreSQL that has it
	schema  string
	request []string
}{
	"UniqueOfSeveralColumnsRotates": {
		0,
		`CREATE TABLE a (id int PRIMARY KEY, x int NOT NULL, y text NOT NULL, UNIQUE (x, y)); INSERT INTO a VALUES (1, 1, 'p'), (2, 1, 'q'), (3, 2, 'p')`,
		[]string{"UPDATE a SET y = '-' WHERE id = 1", "UPDATE a SET y = 'p' WHERE id = 2", "UPDATE a SET x = 1, y = 'q' WHERE id = 3", "UPDATE a SET x = 2, y = 'p' WHERE id = 1"},
	},
	"PartialUniqueChangesHands": {
		0,
		`CREATE TABLE a (id int PRIMARY KEY, n int NOT NULL, live bool NOT NULL); CREATE UNIQUE INDEX ON a (n) WHERE live; INSERT INTO a VALUES (1, 1, true), (2, 1, false), (3, 1, false)`,
		[]string{"UPDATE a SET live = false WHERE id = 1", "UPDATE a SET live = true WHERE id = 2"},
	},
	"SoftDeletedChangesHands": {
		0,
		`CREATE TABLE a (id int PRIMARY KEY, email text NOT NULL, deleted_at timestamptz); CREATE UNIQUE INDEX ON a (email) WHERE deleted_at IS NULL; INSERT INTO a VALUES (1, 'x', NULL), (2, 'x', '2024-01-01')`,
		[]string{"UPDATE a SET deleted_at = now() WHERE id = 1", "UPDATE a SET deleted_at = NULL WHERE id = 2"},
	},
	"UniqueIndexThatIsNoConstraint": {
		0,
		`CREATE TABLE a (id int PRIMARY KEY, n text NOT NULL, m int); CREATE UNIQUE INDEX ON a (n, m); INSERT INTO a VALUES (1, 'x', 1), (2, 'y', 1)`,
		[]string{"UPDATE a SET n = '-' WHERE id = 1", "UPDATE a SET n = 'x' WHERE id = 2", "INSERT INTO a VALUES (3, 'y', 1)"},
	},
	"UniqueExpressionSwaps": {
		0,
		`CREATE TABLE a (id int PRIMARY KEY, n text NOT NULL, m text NOT NULL); CREATE UNIQUE INDEX ON a (lower(n), (m || '!')); INSERT INTO a VALUES (1, 'X', 'm'), (2, 'Y', 'm')`,
		[]string{"UPDATE a SET n = '-' WHERE id = 1", "UPDATE a SET n = 'x' WHERE id = 2", "UPDATE a SET n = 'y' WHERE id = 1"},
	},
	"UniqueNullsNotDistinctChangeHands": {
		150000,
		`CREATE TABLE a (id int PRIMARY KEY, n text UNIQUE NULLS NOT DISTINCT); INSERT INTO a VALUES (1, NULL), (2, 'y'), (3, 'z')`,
		[]string{"UPDATE a SET n = 'x' WHERE id = 1", "UPDATE a SET n = NULL WHERE id = 2"},
	},
	"UniqueNullsNotDistinctRotate": {
		150000,
		`CREATE TABLE a (id int PRIMARY KEY, n text, UNIQUE NULLS NOT DISTINCT (n)); INSERT INTO a VALUES (1, NULL), (2, 'y'), (3, 'z')`,
		[]string{"UPDATE a SET n = '-' WHERE id = 1", "UPDATE a SET n = NULL WHERE id = 2", "UPDATE a SET n = 'y' WHERE id = 3", "UPDATE a SET n = 'z' WHERE id = 1"},
	},
	"UniqueGeneratedColumnSwaps": {
		0,
		`CREATE TABLE a (id int PRIMARY KEY, n int NOT NULL, half int GENERATED ALWAYS AS (n / 2) STORED UNIQUE); INSERT INTO a VALUES (1, 2), (2, 4)`,
		[]string{"UPDATE a SET n = 9 WHERE id = 1", "UPDATE a SET n = 3 WHERE id = 2", "UPDATE a SET n = 5 WHERE id = 1"},
	},
	"UniqueGeneratedColumnFreed": {
		0,
		`CREATE TABLE a (id int PRIMARY KEY, n int NOT NULL, twice int GENERATED ALWAYS AS (n * 2) STORED UNIQUE); INSERT INTO a VALUES (1, 1), (2, 2)`,
		[]string{"DELETE FROM a WHERE id = 1", "UPDATE a SET n = 1 WHERE id = 2", "INSERT INTO a VALUES (3, 2)"},
	},
	"ExclusionOfTwoRanges": {
		0,
		`CREATE TABLE a (id int PRIMARY KEY, rooms int4range, during daterange NOT NULL, cancelled bool NOT NULL DEFAULT false, EXCLUDE USING gist (rooms WITH &&, during WITH &&) WHERE (NOT cancelled));
		INSERT INTO a VALUES (1, '[1,3)', '[2024-01-01,2024-01-05)', false), (2, '[3,5)', '[2024-01-01,2024-01-05)', false), (3, '[1,3)', '[2024-01-02,2024-01-03)', true)`,
		[]string{"UPDATE a SET cancelled = true WHERE id = 1", "UPDATE a SET rooms = '[1,5)' WHERE id = 2", "UPDATE a SET during = 'empty' WHERE id = 2", "UPDATE a SET cancelled = false WHERE id = 3"},
	},
	"ExclusionDeferrable": {
		0,
		`CREATE TABLE a (id int PRIMARY KEY, during int4range, EXCLUDE USING gist (during WITH &&) DEFERRABLE); INSERT INTO a VALUES (1, '[1,5)'), (2, '[5,9)')`,
		[]string{"SET CONSTRAINTS ALL DEFERRED", "UPDATE a SET during = '[5,9)' WHERE id = 1", "UPDATE a SET during = '[1,5)' WHERE id = 2"},
	},
	"UniqueIncludesAColumn": {
		0,
		`CREATE TABLE a (id int PRIMARY KEY, note text, email text NOT NULL); CREATE UNIQUE INDEX ON a (email) INCLUDE (note); INSERT INTO a VALUES (1, 'x', 'a'), (2, 'y', 'b')`,
		[]string{"UPDATE a SET email = 'c', note = '1' WHERE id = 1", "UPDATE a SET email = 'a', note = '2' WHERE id = 2", "UPDATE a SET email = 'b' WHERE id = 1"},
	},
	"ExclusionOfMultiranges": {
		0,
		`CREATE TABLE a (id int PRIMARY KEY, during int4multirange NOT NULL, EXCLUDE USING gist (during WITH &&)); INSERT INTO a VALUES (1, '{[1,2)}'), (2, '{[3,4)}')`,
		[]string{"UPDATE a SET during = '{[8,9)}' WHERE id = 1", "UPDATE a SET during = '{[1,2)}' WHERE id = 2", "UPDATE a SET during = '{[3,4)}' WHERE id = 1"},
	},
	"DeferrableUnderTheNameOfAnother": {
		0,
		`CREATE TABLE p (id int PRIMARY KEY); CREATE TABLE a (id int PRIMARY KEY, p int CONSTRAINT p_fk REFERENCES p DEFERRABLE); CREATE TABLE b (id int PRIMARY KEY, p int CONSTRAINT p_fk REFERENCES p);
		INSERT INTO p VALUES (1); INSERT INTO a VALUES (1, 1); INSERT INTO b VALUES (1, 1)`,
		[]string{"UPDATE a SET p = NULL", "DELETE FROM b", "DELETE FROM p"},
	},
	"ReferenceThatIsNotEnforced": {
		180000,
		`CREATE TABLE p (id int PRIMARY KEY); CREATE TABLE a (id int PRIMARY KEY, p int REFERENCES p NOT ENFORCED); INSERT INTO a VALUES (1, 7), (2, NULL)`,
		[]string{"DELETE FROM a WHERE id = 1", "INSERT INTO p VALUES (8)", "UPDATE a SET p = 8"},
	},
	"KeyShifts": {
		0,
		`CREATE TABLE a (id int PRIMARY KEY, n text); INSERT INTO a SELECT i, i FROM generate_series(1, 9) i`,
		[]string{"UPDATE a SET id = -id", "UPDATE a SET id = -id + 1", "UPDATE a SET id = 1 WHERE id = 10"},
	},
	"UpdateCascadesOverTwoLevels": {
		0,
		`CREATE TABLE a (x int, y int, PRIMARY KEY (y, x)); CREATE TABLE b (x int, y int, z int, n text, PRIMARY KEY (x, y, z), FOREIGN KEY (y, x) REFERENCES a ON UPDATE CASCADE);
		CREATE TABLE c (id int PRIMARY KEY, x int, y int, z int, FOREIGN KEY (x, y, z) REFERENCES b ON UPDATE CASCADE ON DELETE CASCADE);
		INSERT INTO a VALUES (1, 1), (2, 2); INSERT INTO b VALUES (1, 1, 1, 'p'), (1, 1, 2, 'q'), (2, 2, 1, 'r'); INSERT INTO c VALUES (1, 1, 1, 1), (2, 1, 1, 2), (3, 2, 2, 1)`,
		[]string{"UPDATE a SET x = 10 WHERE x = 1", "UPDATE b SET n = 'changed' WHERE x = 10 AND z = 2", "DELETE FROM b WHERE x = 10 AND z = 1"},
	},
	"OnUpdateSetNullAndDefault": {
		0,
		`CREATE TABLE a (id int PRIMARY KEY); CREATE TABLE b (id int PRIMARY KEY, a int REFERENCES a ON UPDATE SET NULL, d int DEFAULT 2 REFERENCES a ON UPDATE SET DEFAULT);
		INSERT INTO a VALUES (1), (2); INSERT INTO b VALUES (1, 1, 1), (2, 2, 2)`,
		[]string{"UPDATE a SET id = 10 WHERE id = 1"},
	},
	"OnDeleteSetNullOfOneColumn": {
		150000,
		`CREATE TABLE a (tenant int, id int, PRIMARY KEY (tenant, id)); CREATE TABLE b (tenant int NOT NULL, id int, a int, PRIMARY KEY (tenant, id), FOREIGN KEY (tenant, a) REFERENCES a ON DELETE SET NULL (a));
		INSERT INTO a VALUES (1, 1), (1, 2); INSERT INTO b VALUES (1, 1, 1), (1, 2, 2)`,
		[]string{"DELETE FROM a WHERE id = 1"},
	},
	"MatchFull": {
		0,
		`CREATE TABLE a (x int, y int, UNIQUE (x, y), id int PRIMARY KEY); CREATE TABLE b (id int PRIMARY KEY, x int, y int, FOREIGN KEY (x, y) REFERENCES a (x, y) MATCH FULL);
		INSERT INTO a VALUES (1, 1, 1), (NULL, 2, 2); INSERT INTO b VALUES (1, 1, 1), (2, NULL, NULL)`,
		[]string{"UPDATE b SET x = NULL, y = NULL WHERE id = 1", "DELETE FROM a", "INSERT INTO a VALUES (3, 3, 3)", "UPDATE b SET x = 3, y = 3 WHERE id = 2"},
	},
	"ReferenceToAUniqueColumn": {
		0,
		`CREATE TABLE a (id int PRIMARY KEY, code text NOT NULL UNIQUE); CREATE TABLE b (id int PRIMARY KEY, code text REFERENCES a (code) ON UPDATE CASCADE ON DELETE CASCADE);
		INSERT INTO a VALUES (1, 'x'), (2, 'y'); INSERT INTO b VALUES (1, 'x'), (2, 'y'), (3, 'y')`,
		[]string{"UPDATE a SET code = 'z' WHERE id = 1", "DELETE FROM a WHERE id = 2", "INSERT INTO b VALUES (4, 'z')"},
	},
	"SelfReferenceCascades": {
		0,
		`CREATE TABLE a (id int PRIMARY KEY, parent int REFERENCES a ON DELETE CASCADE ON UPDATE CASCADE); INSERT INTO a VALUES (1, NULL), (2, 1), (3, 2), (5, NULL), (6, 5), (7, 6)`,
		[]string{"DELETE FROM a WHERE id = 2", "UPDATE a SET id = 50 WHERE id = 5"},
	},
	"SelfReferenceInARing": {
		0,
		`CREATE TABLE a (id int PRIMARY KEY, next int NOT NULL REFERENCES a); INSERT INTO a VALUES (1, 2), (2, 3), (3, 1)`,
		[]string{"INSERT INTO a VALUES (4, 5), (5, 4)", "DELETE FROM a WHERE id < 4"},
	},
	"CircleOfThree": {
		0,
		`CREATE TABLE a (id int PRIMARY KEY, c int); CREATE TABLE b (id int PRIMARY KEY, a int NOT NULL REFERENCES a); CREATE TABLE c (id int PRIMARY KEY, b int NOT NULL REFERENCES b);
		ALTER TABLE a ADD FOREIGN KEY (c) REFERENCES c; INSERT INTO a VALUES (1, NULL); INSERT INTO b VALUES (1, 1); INSERT INTO c VALUES (1, 1); UPDATE a SET c = 1`,
		[]string{"UPDATE a SET c = NULL", "DELETE FROM c", "DELETE FROM b", "DELETE FROM a", "INSERT INTO a VALUES (2, NULL)", "INSERT INTO b VALUES (2, 2)", "INSERT INTO c VALUES (2, 2)", "UPDATE a SET c = 2"},
	},
	"PartitionsWithReferences": {
		0,
		`CREATE TABLE a (id int, region text, PRIMARY KEY (region, id)) PARTITION BY LIST (region); CREATE TABLE a_eu PARTITION OF a FOR VALUES IN ('eu'); CREATE TABLE a_rest PARTITION OF a DEFAULT PARTITION BY RANGE (id);
		CREATE TABLE a_rest_1 PARTITION OF a_rest FOR VALUES FROM (0) TO (100); CREATE TABLE a_rest_2 PARTITION OF a_rest FOR VALUES FROM (100) TO (200);
		CREATE TABLE b (id int PRIMARY KEY, region text, a int, FOREIGN KEY (region, a) REFERENCES a ON DELETE CASCADE ON UPDATE CASCADE);
		INSERT INTO a VALUES (1, 'eu'), (2, 'us'), (3, 'us'), (150, 'jp'); INSERT INTO b VALUES (1, 'eu', 1), (2, 'us', 2), (3, 'us', 3), (4, 'jp', 150)`,
		[]string{"UPDATE a SET id = 99 WHERE id = 2", "DELETE FROM a WHERE id = 150", "DELETE FROM b WHERE a = 1", "UPDATE a SET region = 'us' WHERE id = 1", "INSERT INTO a VALUES (101, 'nz')", "INSERT INTO b VALUES (9, 'nz', 101)"},
	},
	"PartitionedChild": {
		0,
		`CREATE TABLE a (id int PRIMARY KEY); CREATE TABLE b (id int, a int REFERENCES a ON DELETE CASCADE, PRIMARY KEY (id)) PARTITION BY HASH (id);
		CREATE TABLE b_0 PARTITION OF b FOR VALUES WITH (MODULUS 2, REMAINDER 0); CREATE TABLE b_1 PARTITION OF b FOR VALUES WITH (MODULUS 2, REMAINDER 1); INSERT INTO a VALUES (1), (2); INSERT INTO b SELECT i, i % 2 + 1 FROM generate_series(1, 8) i`,
		[]string{"DELETE FROM a WHERE id = 1", "UPDATE b SET id = id + 101"},
	},
	"InheritanceChildren": {
		0,
		`CREATE TABLE a (id int PRIMARY KEY, n int); CREATE TABLE a_child (extra text, PRIMARY KEY (id)) INHERITS (a); INSERT INTO a VALUES (1, 1), (2, 2); INSERT INTO a_child VALUES (1, 100, 'x'), (3, 3, 'y')`,
		[]string{"UPDATE a SET n = n + 1", "DELETE FROM a WHERE id = 1", "INSERT INTO a_child VALUES (2, 7, 'z')"},
	},
	"ReplicaIdentityFullAndGenerated": {
		0,
		`CREATE TABLE a (n int, id int GENERATED BY DEFAULT AS IDENTITY PRIMARY KEY, twice int GENERATED ALWAYS AS (n * 2) STORED); ALTER TABLE a REPLICA IDENTITY FULL; INSERT INTO a VALUES (1), (2)`,
		[]string{"UPDATE a SET id = 7, n = 3 WHERE id = 1", "DELETE FROM a WHERE id = 2", "INSERT INTO a VALUES (4)"},
	},
	"OnlyAKey": {
		0,
		`CREATE TABLE a (id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY); CREATE TABLE b (a int REFERENCES a ON DELETE CASCADE, c text, PRIMARY KEY (a, c)); INSERT INTO a DEFAULT VALUES; INSERT INTO b VALUES (1, ''), (1, ',')`,
		[]string{"DELETE FROM a", "INSERT INTO a DEFAULT VALUES", `INSERT INTO b VALUES (2, '"'), (2, ']')`},
	},
	"KeyWithoutOverlaps": {
		180000,
		`CREATE TABLE a (room int4range, during daterange, n text, PRIMARY KEY (room, during WITHOUT OVERLAPS)); INSERT INTO a VALUES ('[1,2)', '[2024-01-01,2024-02-01)', 'x'), ('[1,2)', '[2024-02-01,2024-03-01)', 'y'), ('[2,3)', '[2024-01-01,2024-03-01)', 'z')`,
		[]string{"UPDATE a SET n = 'xx' WHERE n = 'x'", "UPDATE a SET during = '[2024-02-01,2024-02-15)' WHERE n = 'y'", "DELETE FROM a WHERE n = 'z'", "INSERT INTO a VALUES ('[1,2)', '[2024-02-15,2024-03-01)', 'new')"},
	},
	"TheSameRequestInManyWays": {
		0,
		`CREATE TABLE a (id int PRIMARY KEY, n text UNIQUE, "t" int, "s" int, "new" text, "w" int, "h" int, "~n" int, "~key" text, "k0" int, "e1" int, "r1" int, "m" int);
		CREATE UNIQUE INDEX ON a ("new", ("t" + "s"), ("w" + "h")); INSERT INTO a SELECT i, i, i, i, i, i, i, i, i, i, i, i, i FROM generate_series(1, 4) i`,
		[]string{`UPDATE a SET n = NULL, "new" = '-', "t" = 0, "~n" = 0, "k0" = 0 WHERE id = 1`, `UPDATE a SET n = '1', "new" = '1', "s" = 1, "~key" = '', "t" = 1, "w" = 1, "h" = 1 WHERE id = 2`, `UPDATE a SET "r1" = 0, "e1" = NULL, "m" = 0 WHERE id = 3`, "DELETE FROM a WHERE id = 4", "INSERT INTO a (id, n) VALUES (5, '4')"},
	},
}

func TestInvolvedCases(t *testing.T) {
	t.Parallel()
	version := audittest.NewDatabase(t).Server().Version()
	for name, h := range involved {
		if version < h.version {
			continue
		}
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			newUndo(t, h.schema).roundTrip(t, h.request...)
		})
	}
}

// The script of a plan does what Apply does, also where the order of rows matters
// and where a statement moves rows of others.
func TestPlanAsSQLInInvolvedCases(t *testing.T) {
	t.Parallel()
	version := audittest.NewDatabase(t).Server().Version()
	all := make(map[string][]string)
	for _, name := range []string{"SelfReference", "SelfReferenceRestrict", "OnUpdateCascade", "CircleNullable", "UniqueSwapNotNull", "OddNames"} {
		all[name] = append([]string{hard[name].schema}, hard[name].request...)
	}
	for _, name := range []string{
		"SelfReferenceInARing", "SelfReferenceCascades", "UpdateCascadesOverTwoLevels", "PartitionsWithReferences", "UniqueOfSeveralColumnsRotates",
		"SoftDeletedChangesHands", "KeyShifts", "InheritanceChildren", "OnlyAKey", "KeyWithoutOverlaps",
	} {
		if h := involved[name]; version >= h.version {
			all[name] = append([]string{h.schema}, h.request...)
		}
	}
	for name, h := range all {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			u := newUndo(t, h[0])
			before := u.state(t)
			u.request(t, "first", h[1:]...)
			runPlanSQL(t, u.Connect(t), u.Client.RevertRequest("first"))
			u.want(t, "after the script", before)
		})
	}
}

// Under a key that is deferrable two rows have the same key for a moment. They are
// told apart by what they hold.
func TestKeysThatShiftUnderADeferrableKey(t *testing.T) {
	t.Parallel()
	for name, request := range map[string][]string{
		"Up":         {"UPDATE a SET id = id + 1"},
		"Down":       {"UPDATE a SET id = id - 1"},
		"Round":      {"UPDATE a SET id = id % 9 + 1"},
		"Twice":      {"UPDATE a SET id = id + 1", "UPDATE a SET id = id + 1, n = n || '!'"},
		"ThereAgain": {"UPDATE a SET id = id + 1", "UPDATE a SET id = id - 1", "UPDATE a SET n = 'z' WHERE id = 4"},
		"WithOthers": {"UPDATE a SET id = id + 1", "DELETE FROM a WHERE id = 5", "INSERT INTO a VALUES (5, 'new'), (1, 'first')", "UPDATE a SET n = 'z' WHERE id = 3"},
		"InBetween":  {"INSERT INTO a VALUES (3, 'new')", "UPDATE a SET id = 30 WHERE n = '3'", "DELETE FROM a WHERE n = '4'", "UPDATE a SET id = 4 WHERE n = 'new'"},
		"Swap":       {"UPDATE a SET id = 3 - id WHERE id < 3"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			// The check at the end takes the last change with a key for that of its row.
			u := newUnchecked(t, "CREATE TABLE a (id int PRIMARY KEY DEFERRABLE INITIALLY DEFERRED, n text); INSERT INTO a SELECT i, i FROM generate_series(1, 9) i")
			u.roundTrip(t, request...)
			before := u.state(t)
			u.request(t, "again", request...)
			runPlanSQL(t, u.Connect(t), u.Client.RevertRequest("again"))
			u.want(t, "after the script", before)
		})
	}
}

// Half of what a transaction did to such rows is refused rather than mixed up.
func TestHalfOfAShiftIsRefused(t *testing.T) {
	t.Parallel()
	u := newUnchecked(t, "CREATE TABLE a (id int PRIMARY KEY DEFERRABLE INITIALLY DEFERRED, n text, m int); INSERT INTO a SELECT i, i, 0 FROM generate_series(1, 3) i")
	u.request(t, "first", "UPDATE a SET id = id + 1, m = 1", "DELETE FROM a WHERE n = '3'", "INSERT INTO a VALUES (4, 'new', 0)", "UPDATE a SET id = 5 WHERE n = 'new'")
	before := u.state(t)
	revert := u.Client.Revert(u.Client.Changes().InRequest("first").Operations(audit.Update))
	var refused *audit.UnrevertableError
	var blocked *audit.ConflictError
	if _, err := revert.Apply(t.Context()); !errors.As(err, &refused) && !errors.As(err, &blocked) {
		t.Errorf("the revert gives %v", err)
	}
	u.want(t, "something was written", before)
}
