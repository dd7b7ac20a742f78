package audit_test

import (
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/hindsight-go/audit"
)

// Between the plan and its Apply, rows may move; what matters is what they hold.
func TestPlanWithoutAKeyIsAppliedLater(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		meanwhile string
		stale     bool
	}{
		"Nothing":           {"SELECT 1", false},
		"RowsMoved":         {"UPDATE visit SET hits = hits", false},
		"TableRewritten":    {"VACUUM FULL visit", false},
		"OthersMade":        {"INSERT INTO visit VALUES ('home', 2, NULL)", false},
		"RowChanged":        {"UPDATE visit SET note = 'later' WHERE page = 'shop'", true},
		"OneOfTwoDeleted":   {"DELETE FROM visit WHERE ctid = (SELECT min(ctid) FROM visit WHERE page = 'home')", true},
		"ReplacedByAnEqual": {"WITH gone AS (DELETE FROM visit WHERE page = 'shop' RETURNING *) INSERT INTO visit SELECT * FROM gone", false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			u := newUndo(t, visits)
			before := u.state(t)
			u.request(t, "r", "UPDATE visit SET hits = hits + 1", "INSERT INTO visit VALUES ('new', 0, NULL)")
			plan, err := u.Client.RevertRequest("r").Plan(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			u.Exec(t, c.meanwhile)
			now := u.state(t)
			_, err = plan.Apply(t.Context())
			if c.stale {
				var stale *audit.StaleError
				if !errors.As(err, &stale) {
					t.Errorf("applying it gives %v", err)
				}
				u.want(t, "it wrote something", now)
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if name == "OthersMade" {
				before = append(before, "visit (home,2,)")
				slices.Sort(before)
			}
			u.want(t, "after it", before)
		})
	}
}

// A hash stands for what rows hold, not for where they are.
func TestHashOfAPlanWithoutAKey(t *testing.T) {
	t.Parallel()
	u := newUndo(t, visits)
	before := u.state(t)
	u.request(t, "r", "UPDATE visit SET hits = hits + 1")
	plan, err := u.Client.RevertRequest("r").Plan(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	u.Exec(t, "VACUUM FULL visit")
	apply(t, u.Client.RevertRequest("r").IfHash(plan.Hash))
	u.want(t, "after the revert", before)
}

func TestRowWithoutAKeyChangedWhileTheRevertWaitsForIt(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		work string
		done bool
	}{
		"Changed":           {"UPDATE visit SET hits = 100 WHERE page = 'shop'", false},
		"Deleted":           {"DELETE FROM visit WHERE page = 'shop'", false},
		"Moved":             {"UPDATE visit SET hits = hits WHERE page = 'shop'", true},
		"Locked":            {"SELECT FROM visit FOR UPDATE", true},
		"ReplacedByAnEqual": {"WITH gone AS (DELETE FROM visit WHERE page = 'shop' RETURNING *) INSERT INTO visit SELECT * FROM gone", true},
	} {
		for _, planned := range []bool{false, true} {
			t.Run(name+map[bool]string{true: "/AfterPlan", false: "/AtOnce"}[planned], func(t *testing.T) {
				t.Parallel()
				u := newUndo(t, visits)
				before := u.state(t)
				u.request(t, "r", "UPDATE visit SET hits = hits + 1")
				plan, err := u.Client.RevertRequest("r").Plan(t.Context())
				if err != nil {
					t.Fatal(err)
				}
				do := u.Client.RevertRequest("r").Apply
				if planned {
					do = plan.Apply
				}
				tx := u.holding(t, c.work)
				done := inBackground(func() (*audit.Result, error) { return do(t.Context()) })
				u.awaitLock(t)
				if err := tx.Commit(t.Context()); err != nil {
					t.Fatal(err)
				}
				now := u.state(t)
				err = <-done
				if c.done {
					if err != nil {
						t.Fatal(err)
					}
					u.want(t, "after the revert", before)
					return
				}
				var stale *audit.StaleError
				var blocked *audit.ConflictError
				if planned && !errors.As(err, &stale) || !planned && !errors.As(err, &blocked) {
					t.Errorf("the revert gives %v", err)
				}
				u.want(t, "it wrote something", now)
			})
		}
	}
}

// The script changes just one row with each statement, equal ones or not.
func TestPlanWithoutAKeyAsSQL(t *testing.T) {
	t.Parallel()
	u := newUndo(t, `CREATE TABLE a (n int UNIQUE DEFERRABLE, f float8, j json, arr text[], w text);
		INSERT INTO a VALUES (1, 0.1, '{"a":1}', '{x,NULL}', 'it''s \'), (NULL, NULL, NULL, NULL, NULL), (NULL, NULL, NULL, NULL, NULL), (2, 'NaN', '[]', '{}', '')`)
	before := u.state(t)
	u.request(t, "r", "UPDATE a SET n = 3 - n WHERE n IS NOT NULL", "UPDATE a SET w = 'null' WHERE n IS NULL", "INSERT INTO a (w) VALUES ('null'), ('null')", "DELETE FROM a WHERE f = 'NaN'")
	plan, err := u.Client.RevertRequest("r").Plan(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	u.Exec(t, "SET DateStyle = 'German, DMY'; SET extra_float_digits = 0;"+plan.SQL())
	u.want(t, "after the script", before)
}

// What people see of a row without a key is what it holds.
func TestPlanWithoutAKeyInWords(t *testing.T) {
	t.Parallel()
	u := newUndo(t, visits)
	u.request(t, "r", "UPDATE visit SET hits = 6 WHERE page = 'shop'", "INSERT INTO visit VALUES ('"+strings.Repeat("long ", 100)+"', 1, NULL)", "DELETE FROM visit WHERE page = 'help'")
	plan, err := u.Client.RevertRequest("r").Plan(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		"  ~ public.visit[shop,6,x] hits: \"6\" -> \"5\"\n", "  + public.visit[help,7,NULL] page: \"help\", hits: \"7\", note: NULL\n", "  - public.visit[long long ",
	} {
		if !strings.Contains(plan.String(), want) {
			t.Errorf("no %q in\n%s", want, plan)
		}
	}
	if strings.Contains(plan.String(), "(0,") {
		t.Errorf("a place is shown:\n%s", plan)
	}
}

func TestRevertWithoutAKeyAfterTheColumnsHaveChanged(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		request, alter string
		want           []string
	}{
		"Added":   {"UPDATE a SET n = 5 WHERE n = 1", "ALTER TABLE a ADD extra int", []string{"a (1,x,)", "a (2,y,)", "a (2,y,)"}},
		"Renamed": {"UPDATE a SET n = 5 WHERE n = 2", "ALTER TABLE a RENAME n TO number", []string{"a (1,x)", "a (2,y)", "a (2,y)"}},
		"Table":   {"DELETE FROM a WHERE n = 2", "ALTER TABLE a RENAME TO b", []string{"b (1,x)", "b (2,y)", "b (2,y)"}},
		"Dropped": {"UPDATE a SET n = 5 WHERE n = 2", "ALTER TABLE a DROP w", []string{"a (1)", "a (2)", "a (2)"}},
		"Retyped": {"UPDATE a SET n = 5 WHERE n = 2", "ALTER TABLE a ALTER n TYPE numeric(9,2)", []string{"a (1.00,x)", "a (2.00,y)", "a (2.00,y)"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			u := newUndo(t, "CREATE TABLE a (n int, w text); INSERT INTO a VALUES (1, 'x'), (2, 'y'), (2, 'y')")
			u.request(t, "r", c.request)
			u.Sync(t)
			u.Exec(t, c.alter)
			apply(t, u.Client.RevertRequest("r"))
			u.want(t, "after the revert", c.want)
		})
	}
}

// A column that was added between two of the changes.
func TestRevertWithoutAKeyAcrossAnAddedColumn(t *testing.T) {
	t.Parallel()
	u := newUndo(t, "CREATE TABLE a (n int, w text); INSERT INTO a VALUES (1, 'x'), (2, 'y')")
	u.request(t, "r", "UPDATE a SET n = 10 WHERE n = 1", "INSERT INTO a VALUES (3, 'z')")
	u.Exec(t, "ALTER TABLE a ADD extra int")
	u.request(t, "r", "UPDATE a SET n = 11 WHERE n = 10", "UPDATE a SET extra = 8 WHERE n = 3", "DELETE FROM a WHERE n = 2")
	apply(t, u.Client.RevertRequest("r"))
	u.want(t, "after the revert", []string{"a (1,x,)", "a (2,y,)"})
}

func TestRevertWithoutAKeyWithTriggers(t *testing.T) {
	t.Parallel()
	u := newUndo(t, `CREATE TABLE a (n int, changed text);
		CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
			IF NEW.n = 13 THEN RETURN NULL; END IF;
			NEW.changed := 'by trigger'; RETURN NEW; END $$;
		INSERT INTO a VALUES (1, 'once'), (2, 'once'), (13, 'once')`)
	u.request(t, "r", "UPDATE a SET n = n + 100", "DELETE FROM a WHERE n = 102")
	u.Exec(t, "CREATE TRIGGER note BEFORE INSERT OR UPDATE ON a FOR EACH ROW EXECUTE FUNCTION note()")
	u.Exec(t, "UPDATE a SET changed = 'later' WHERE n = 101")
	result := apply(t, u.Client.RevertRequest("r"))
	u.want(t, "after the revert", []string{"a (1,\"by trigger\")", "a (113,once)", "a (2,\"by trigger\")"})
	var adjusted []string
	for _, row := range result.Adjusted {
		adjusted = append(adjusted, row.String())
	}
	// The one that the trigger would not let go, and the one that was put back.
	slices.Sort(adjusted)
	if diff := cmp.Diff([]string{"public.a[113,once]", "public.a[2,once]"}, adjusted); diff != "" {
		t.Errorf("adjusted (-want +got):\n%s", diff)
	}
}

func TestRevertWithoutAKeyStopsAtMaxRows(t *testing.T) {
	t.Parallel()
	u := newUndo(t, visits)
	u.request(t, "r", "UPDATE visit SET hits = hits + 1")
	var tooMany *audit.TooManyRowsError
	if _, err := u.Client.RevertRequest("r").MaxRows(3).Plan(t.Context()); !errors.As(err, &tooMany) {
		t.Errorf("%v", err)
	}
}
