package audit_test

import "testing"

// Requests that can only be undone in one order of statements, or in none without
// a detour.
var orders = map[string]struct {
	schema  string
	request []string
}{
	"ChildComesToANewKey": {
		"CREATE TABLE a (id int PRIMARY KEY); CREATE TABLE b (id int PRIMARY KEY, a int REFERENCES a); INSERT INTO a VALUES (1), (2); INSERT INTO b VALUES (1, NULL), (2, 2)",
		[]string{"UPDATE a SET id = 10 WHERE id = 1", "UPDATE b SET a = 10"},
	},
	"ChildGoesWithTheKey": {
		"CREATE TABLE a (id int PRIMARY KEY); CREATE TABLE b (id int PRIMARY KEY, a int REFERENCES a); INSERT INTO a VALUES (1), (2); INSERT INTO b VALUES (1, 1)",
		[]string{"UPDATE b SET a = 2", "UPDATE a SET id = 10 WHERE id = 1", "UPDATE b SET a = 10"},
	},
	"ChildThatCannotBeNullComesToANewKey": {
		"CREATE TABLE a (id int PRIMARY KEY); CREATE TABLE b (id int PRIMARY KEY, a int NOT NULL REFERENCES a); INSERT INTO a VALUES (1), (2); INSERT INTO b VALUES (1, 2)",
		[]string{"UPDATE a SET id = 10 WHERE id = 1", "UPDATE b SET a = 10"},
	},
	"ChildOfTwoColumnsComesToANewKey": {
		"CREATE TABLE a (x int, y int, PRIMARY KEY (x, y)); CREATE TABLE b (id int PRIMARY KEY, x int, y int, FOREIGN KEY (x, y) REFERENCES a ON UPDATE RESTRICT); INSERT INTO a VALUES (1, 1), (2, 1); INSERT INTO b VALUES (1, 2, 1)",
		[]string{"UPDATE a SET x = 10 WHERE x = 1", "UPDATE b SET x = 10"},
	},
	"RemovedChildOfAnOldKey": {
		"CREATE TABLE a (id int PRIMARY KEY); CREATE TABLE b (id int PRIMARY KEY, a int NOT NULL REFERENCES a); INSERT INTO a VALUES (1); INSERT INTO b VALUES (1, 1)",
		[]string{"DELETE FROM b", "UPDATE a SET id = 10"},
	},
	"RemovedChildOfAnOldKeyAndAnotherOfARemovedParent": {
		"CREATE TABLE a (id int PRIMARY KEY); CREATE TABLE b (id int PRIMARY KEY, a int REFERENCES a); INSERT INTO a VALUES (1), (2); INSERT INTO b VALUES (1, 1), (2, 2)",
		[]string{"DELETE FROM b WHERE id = 1", "UPDATE a SET id = 10 WHERE id = 1", "UPDATE b SET a = NULL", "DELETE FROM a WHERE id = 2"},
	},
	"ChildComesToANewKeyThatIsRestricted": {
		"CREATE TABLE a (id int PRIMARY KEY); CREATE TABLE b (id int PRIMARY KEY, a int REFERENCES a ON UPDATE RESTRICT DEFERRABLE INITIALLY DEFERRED); INSERT INTO a VALUES (1), (2); INSERT INTO b VALUES (1, NULL), (2, 2)",
		[]string{"UPDATE a SET id = 10 WHERE id = 1", "UPDATE b SET a = 10"},
	},
	"ChildOfTwoColumnsLeavesAKeyThatSetsItNull": {
		"CREATE TABLE a (x int, y int, PRIMARY KEY (x, y)); CREATE TABLE b (id int PRIMARY KEY, x int, y int, FOREIGN KEY (x, y) REFERENCES a ON UPDATE SET NULL); INSERT INTO a VALUES (1, 1), (2, 1); INSERT INTO b VALUES (1, 2, 1)",
		[]string{"UPDATE a SET x = 10 WHERE x = 1", "UPDATE b SET x = 10"},
	},
	"ChildOfTwoColumnsLeavesAKeyThatTakesItAlong": {
		"CREATE TABLE a (x int, y int, PRIMARY KEY (x, y)); CREATE TABLE b (id int PRIMARY KEY, x int, y int, FOREIGN KEY (x, y) REFERENCES a ON UPDATE CASCADE); INSERT INTO a VALUES (1, 1), (2, 7), (3, 7); INSERT INTO b VALUES (1, 2, 7), (2, 1, 1)",
		[]string{"UPDATE a SET y = 7 WHERE x = 1", "UPDATE b SET x = 1 WHERE id = 1"},
	},
	"OwnParentUnderANewKey": {
		"CREATE TABLE a (id int PRIMARY KEY, a int REFERENCES a ON UPDATE RESTRICT); CREATE TABLE b (id int PRIMARY KEY, a int REFERENCES a); INSERT INTO a VALUES (7, NULL), (13, 7); INSERT INTO b VALUES (1, 13)",
		[]string{"DELETE FROM b", "UPDATE a SET id = 41 WHERE id = 13", "UPDATE a SET a = 41 WHERE id = 41", "DELETE FROM a WHERE id = 7"},
	},
	"KeysInACircle": {
		"CREATE TABLE a (id int PRIMARY KEY, b int); CREATE TABLE b (id int PRIMARY KEY, a int REFERENCES a ON UPDATE CASCADE); ALTER TABLE a ADD FOREIGN KEY (b) REFERENCES b ON UPDATE CASCADE; INSERT INTO a VALUES (1, NULL), (2, NULL); INSERT INTO b VALUES (1, 1), (2, 2); UPDATE a SET b = id",
		[]string{"UPDATE b SET id = 10 WHERE id = 1", "UPDATE a SET id = 20 WHERE id = 2", "UPDATE a SET b = 2", "UPDATE b SET a = 1"},
	},
	"NewChildOfANewKeyAndAnotherOfANewParent": {
		"CREATE TABLE a (id int PRIMARY KEY); CREATE TABLE b (id int PRIMARY KEY, a int REFERENCES a); INSERT INTO a VALUES (1), (2); INSERT INTO b VALUES (2, 2)",
		[]string{"UPDATE a SET id = 10 WHERE id = 1", "INSERT INTO b VALUES (1, 10)", "INSERT INTO a VALUES (3)", "UPDATE b SET a = 3 WHERE id = 2"},
	},
}

func TestOrderOfStatements(t *testing.T) {
	t.Parallel()
	for name, o := range orders {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			newUndo(t, o.schema).roundTrip(t, o.request...)
		})
	}
}

// A circle of foreign keys that can neither wait nor be empty is in nobody's way who
// leaves them as they are.
func TestPlainColumnsOfTablesInACircle(t *testing.T) {
	t.Parallel()
	u := newUndo(t, `
		CREATE TABLE a (id int PRIMARY KEY, b int NOT NULL, v int);
		CREATE TABLE b (id int PRIMARY KEY, a int NOT NULL REFERENCES a, v int);
		INSERT INTO a VALUES (1, 2, 0), (3, 4, 0); INSERT INTO b VALUES (2, 1, 0), (4, 3, 0);
		ALTER TABLE a ADD FOREIGN KEY (b) REFERENCES b`)
	before := u.state(t)
	u.request(t, "plain", "UPDATE a SET v = 9", "UPDATE b SET v = 9")
	apply(t, u.Client.RevertRequest("plain"))
	u.want(t, "after the revert", before)
	u.request(t, "one side", "UPDATE a SET b = 2, v = 8", "UPDATE b SET v = 8")
	apply(t, u.Client.RevertRequest("one side"))
	u.want(t, "after the revert of one side's references", before)
}
