package audit_test

import (
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/hindsight-go/audit"
)

// A query that the planner answers without reading a table, because of what the table
// is now, does not pass the present for a past that cannot be told.
func TestView_TableThatThePlanDoesNotRead(t *testing.T) {
	t.Parallel()
	a := unchecked(
		t, audit.Config{NoEventTrigger: true},
		"CREATE TABLE parted (id int, part int, PRIMARY KEY (id, part)) PARTITION BY LIST (part)", "CREATE TABLE parted_1 PARTITION OF parted FOR VALUES IN (1)",
		"CREATE VIEW shown AS SELECT * FROM parted", "CREATE VIEW outer_shown AS SELECT s.id FROM shown s",
		"CREATE FUNCTION counted() RETURNS bigint LANGUAGE sql STABLE AS 'SELECT count(*) FROM parted'", "CREATE FUNCTION looped() RETURNS bigint LANGUAGE plpgsql STABLE AS 'BEGIN RETURN (SELECT count(*) FROM parted); END'",
		"CREATE TABLE other (id int PRIMARY KEY)", "INSERT INTO parted VALUES (1, 1)", "INSERT INTO other VALUES (1)",
	)
	at := must(a.Client.Mark(t.Context(), "before"))
	a.Exec(t, "INSERT INTO parted VALUES (2, 1); UPDATE other SET id = 2")
	a.Exec(t, "DROP TABLE parted_1")
	refresh(t, a)
	a.Sync(t)
	for name, c := range map[string]struct {
		sql     string
		refused bool
	}{
		"table":                {"SELECT count(*) FROM parted", true},
		"with its schema":      {"SELECT count(*) FROM public.parted", true},
		"joined":               {"SELECT count(*) FROM other o LEFT JOIN parted p ON p.id = o.id", true},
		"after a comma":        {"SELECT count(*) FROM other, parted", true},
		"ONLY":                 {"SELECT count(*) FROM ONLY parted", true},
		"in a subquery":        {"SELECT (SELECT max(id) FROM parted)", true},
		"EXISTS":               {"SELECT EXISTS (SELECT FROM parted WHERE id = 1)", true},
		"TABLE":                {"TABLE parted", true},
		"view":                 {"SELECT count(*) FROM shown", true},
		"view over a view":     {"SELECT count(*) FROM outer_shown", true},
		"function":             {"SELECT counted()", true},
		"PL/pgSQL":             {"SELECT looped()", true},
		"WITH query of a name": {"WITH parted AS (SELECT id FROM other) SELECT count(*) FROM parted", false},
		"another table":        {"SELECT count(*) FROM other", false},
		"DISTINCT FROM":        {"SELECT count(*) FROM (SELECT id AS parted FROM other) o WHERE 9 IS DISTINCT FROM parted", false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var n any
			err := a.Client.AtPosition(at).View(t.Context(), func(tx pgx.Tx) error {
				return tx.QueryRow(t.Context(), c.sql).Scan(&n)
			})
			switch {
			case c.refused && !refused(err):
				t.Errorf("the answer is %v, %v: want it to be refused", n, err)
			case !c.refused && err != nil:
				t.Error(err)
			}
		})
	}
}
