package audit_test

import (
	"fmt"
	"testing"
)

// retypedAndBack are types that a column gets, and gets back, and values that do not
// survive it.
var retypedAndBack = []struct{ is, by, values string }{
	{"text", "int USING v::int", "('007'), ('08'), ('9')"},
	{"numeric(10,2)", "numeric(10,1)", "(1.25), (1.27), (2)"},
	{"varchar(5)", "char(5)", "('a  '), ('abcde'), ('x')"},
	{"int", "bool USING v::bool", "(1), (2), (3)"},
	{"timestamptz", "timestamptz(0)", "('2024-01-01 00:00:00.5Z'), ('2024-01-01 00:00:00.125Z'), ('2024-01-01Z')"},
}

// A column that was given another type and its own again says what it said before, and its
// values may be others: they are not told as those of before.
func TestPast_RetypedAndBack(t *testing.T) {
	t.Parallel()
	for _, together := range []bool{false, true} {
		story := ddlStory{refusals: true}
		var there, back string
		for i, c := range retypedAndBack {
			table := fmt.Sprintf("t%d", i)
			story.setup = append(story.setup, fmt.Sprintf("CREATE TABLE %s (id int PRIMARY KEY, v %s)", table, c.is),
				fmt.Sprintf("INSERT INTO %s SELECT row_number() OVER (), v::%s FROM (VALUES %s) given (v)", table, c.is, c.values))
			there += fmt.Sprintf("UPDATE %[1]s SET v = v WHERE id = 1; ALTER TABLE %[1]s ALTER v TYPE %[2]s;", table, c.by)
			back += fmt.Sprintf("ALTER TABLE %[1]s ALTER v TYPE %[2]s USING v::%[2]s; DELETE FROM %[1]s WHERE id = 2;", table, c.is)
		}
		story.steps = []string{there, back}
		if together {
			story.steps = []string{there + back}
		}
		t.Run(fmt.Sprintf("together=%t", together), func(t *testing.T) {
			t.Parallel()
			story.run(t, true, false)
		})
	}
}
