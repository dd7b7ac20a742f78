package audit_test

import (
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/hindsight-go/audit"
)

// A trigger that suppresses what is written has the last word, and the result says
// which rows are not as they should be: none is passed over in silence.
func TestSuppressedRowsAreReported(t *testing.T) {
	t.Parallel()
	for name, h := range map[string]struct {
		event   string
		request []string
		row     string
	}{
		"Insert": {"INSERT", []string{"DELETE FROM a WHERE id = 1", "UPDATE a SET n = 7 WHERE id = 3"}, "public.a[1]"},
		"Update": {"UPDATE", []string{"UPDATE a SET n = 7 WHERE id IN (1, 3)"}, "public.a[1]"},
		"Delete": {"DELETE", []string{"INSERT INTO a VALUES (4, 1), (5, 2)", "UPDATE a SET n = 7 WHERE id = 3"}, "public.a[4]"},
		// A row that is only marked as deleted is there.
		"MarkedAsDeleted": {"DELETE", []string{"INSERT INTO a VALUES (4, 1), (5, 2)"}, "public.a[4]"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			mark := ""
			if name == "MarkedAsDeleted" {
				mark = "UPDATE a SET gone = true WHERE id = OLD.id;"
			}
			u := newUndo(t, "CREATE TABLE a (id int PRIMARY KEY, n int, gone bool); INSERT INTO a VALUES (1, 1), (2, 2), (3, 3)")
			u.request(t, "first", h.request...)
			u.Exec(t, `CREATE FUNCTION keep() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
				IF coalesce(OLD.id, NEW.id) IN (1, 4) THEN `+mark+` RETURN NULL; END IF;
				RETURN coalesce(NEW, OLD); END $$;
				CREATE TRIGGER keep BEFORE `+h.event+` ON a FOR EACH ROW EXECUTE FUNCTION keep()`)
			result := apply(t, u.Client.RevertRequest("first"))
			var adjusted []string
			for _, r := range result.Adjusted {
				adjusted = append(adjusted, r.RowRef.String())
			}
			if diff := cmp.Diff([]string{h.row}, adjusted); diff != "" {
				t.Errorf("adjusted (-want +got):\n%s", diff)
			}
			u.holds(t, "NOT EXISTS (SELECT FROM a WHERE n = 7 AND id <> 1) AND NOT EXISTS (SELECT FROM a WHERE id = 5)")
		})
	}
}

// Rules rewrite statements: what does not happen to the row itself is an error, and
// what happens besides is the application's.
func TestRulesOfATable(t *testing.T) {
	t.Parallel()
	for name, h := range map[string]struct{ rule, holds string }{
		"InsteadNothing": {"CREATE RULE r AS ON %s TO a DO INSTEAD NOTHING", ""},
		"AlsoLog":        {"CREATE RULE r AS ON %s TO a DO ALSO INSERT INTO log DEFAULT VALUES", "(SELECT count(*) > 0 FROM log)"},
	} {
		for _, event := range []string{"INSERT", "UPDATE", "DELETE"} {
			t.Run(name+event, func(t *testing.T) {
				t.Parallel()
				u := newUndo(t, "CREATE TABLE a (id int PRIMARY KEY, n int); CREATE TABLE log (id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY); INSERT INTO a VALUES (1, 1), (2, 2), (3, 3)")
				u.request(t, "first", "UPDATE a SET n = 7 WHERE id = 1", "DELETE FROM a WHERE id = 2", "INSERT INTO a VALUES (4, 4)")
				u.Exec(t, strings.Replace(h.rule, "%s", event, 1))
				now := u.state(t)
				_, err := u.Client.RevertRequest("first").Apply(t.Context())
				if h.holds == "" {
					if err == nil {
						t.Error("the rule was not noticed")
					}
					u.want(t, "something was written", now)
					return
				}
				if err != nil {
					t.Fatal(err)
				}
				u.holds(t, h.holds+" AND (SELECT array_agg(n ORDER BY id) = '{1,2,3}' FROM a)")
			})
		}
	}
}

// Triggers of the application find what they find in any of its transactions: its
// search_path, its time zone, whatever role and database have for defaults.
func TestTriggersRunInTheApplicationsEnvironment(t *testing.T) {
	t.Parallel()
	for name, trigger := range map[string]string{
		"Before":    "CREATE TRIGGER note BEFORE UPDATE ON a FOR EACH ROW EXECUTE FUNCTION note()",
		"Statement": "CREATE TRIGGER note AFTER UPDATE ON a EXECUTE FUNCTION note()",
		"Deferred":  "CREATE CONSTRAINT TRIGGER note AFTER UPDATE ON a DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION note()",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			u := newUndo(t, `CREATE SCHEMA app; SET search_path = app; CREATE TABLE a (id int PRIMARY KEY, n int); CREATE TABLE log (id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, line text); INSERT INTO a VALUES (1, 1);
				CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
					INSERT INTO log (line) SELECT string_agg(current_setting(n), ' ' ORDER BY n) FROM unnest('{datestyle,intervalstyle,timezone,extra_float_digits,bytea_output,search_path}'::text[]) n;
					RETURN NEW; END $$`)
			for _, setting := range []string{"search_path = app, public", "timezone = 'Asia/Tokyo'", "datestyle = 'German, DMY'", "intervalstyle = 'iso_8601'", "extra_float_digits = 0", "bytea_output = 'escape'"} {
				u.Exec(t, "ALTER DATABASE "+u.Name()+" SET "+setting)
			}
			u.conn = u.Connect(t)
			u.Exec(t, "SET search_path = app; "+trigger)
			u.request(t, "first", "UPDATE app.a SET n = 2")
			apply(t, u.Client.RevertRequest("first").Columns("n"))
			u.holds(t, "(SELECT n = 1 FROM app.a)")
			lines := allRows(t, u.conn)
			lines = slices.DeleteFunc(lines, func(l string) bool { return !strings.HasPrefix(l, "log ") })
			if len(lines) != 2 || strings.TrimLeft(lines[0], "log (0123456789,") != strings.TrimLeft(lines[1], "log (0123456789,") {
				t.Errorf("the trigger saw these settings:\n%s", strings.Join(lines, "\n"))
			}
		})
	}
}

// Deferred constraint triggers are constraints: also a dry run runs into them.
func TestDryRunFiresDeferredTriggers(t *testing.T) {
	t.Parallel()
	u := newUndo(t, `CREATE TABLE a (id int PRIMARY KEY, n int); INSERT INTO a VALUES (1, 1)`)
	u.request(t, "first", "UPDATE a SET n = 2")
	u.Exec(t, `CREATE FUNCTION no() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'no more'; END $$;
		CREATE CONSTRAINT TRIGGER no AFTER UPDATE ON a DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION no()`)
	for what, do := range map[string]func() (*audit.Result, error){
		"Apply":  func() (*audit.Result, error) { return u.Client.RevertRequest("first").Apply(t.Context()) },
		"DryRun": func() (*audit.Result, error) { return u.Client.RevertRequest("first").DryRun(t.Context()) },
	} {
		var refused *audit.ApplyError
		if _, err := do(); !errors.As(err, &refused) {
			t.Errorf("%s gives %v", what, err)
		}
	}
	u.holds(t, "(SELECT n = 2 FROM a)")
	apply(t, u.Client.RevertRequest("first").WithoutTriggers())
	u.holds(t, "(SELECT n = 1 FROM a)")
}

// A trigger that makes rows which the revert puts back as well is run into, not
// over; with triggers off the rows come back.
func TestTriggerThatMakesTheRowsThatComeBack(t *testing.T) {
	t.Parallel()
	u := newUndo(t, `CREATE TABLE a (id int PRIMARY KEY); CREATE TABLE profile (a int PRIMARY KEY REFERENCES a ON DELETE CASCADE, bio text NOT NULL DEFAULT '');
		CREATE FUNCTION make() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN INSERT INTO profile (a) VALUES (NEW.id); RETURN NULL; END $$;
		CREATE TRIGGER make AFTER INSERT ON a FOR EACH ROW EXECUTE FUNCTION make();
		INSERT INTO a VALUES (1), (2); UPDATE profile SET bio = 'long' WHERE a = 1`)
	before := u.state(t)
	u.request(t, "first", "DELETE FROM a WHERE id = 1")
	now := u.state(t)
	var refused *audit.ApplyError
	if _, err := u.Client.RevertRequest("first").Apply(t.Context()); !errors.As(err, &refused) || refused.Constraint != "profile_pkey" {
		t.Errorf("with triggers: %v", err)
	}
	u.want(t, "something was written", now)
	apply(t, u.Client.RevertRequest("first").WithoutTriggers())
	u.want(t, "after the revert", before)
}

// Statement triggers see the rows of the one statement.
func TestStatementTriggersSeeAllRows(t *testing.T) {
	t.Parallel()
	u := newUndo(t, `CREATE TABLE a (id int PRIMARY KEY, n int); CREATE TABLE total (id int PRIMARY KEY, n bigint); INSERT INTO total VALUES (1, 6); INSERT INTO a VALUES (1, 1), (2, 2), (3, 3);
		CREATE FUNCTION sum_up() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN UPDATE total SET n = (SELECT coalesce(sum(n), 0) FROM a); RETURN NULL; END $$;
		CREATE TRIGGER sum_up AFTER INSERT OR UPDATE OR DELETE ON a EXECUTE FUNCTION sum_up()`)
	u.roundTrip(t, "UPDATE a SET n = 10 WHERE id = 1", "DELETE FROM a WHERE id = 2", "INSERT INTO a VALUES (4, 40)")
}

// References in a circle are left empty at first and set afterwards: what is looked
// at in the end, because there are triggers, is what the rows are to be then.
func TestReferencesInACircleWithTriggers(t *testing.T) {
	t.Parallel()
	u := newUndo(t, `CREATE TABLE a (id int PRIMARY KEY, b int); CREATE TABLE b (id int PRIMARY KEY, a int NOT NULL REFERENCES a); ALTER TABLE a ADD FOREIGN KEY (b) REFERENCES b;
		CREATE FUNCTION pass() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RETURN NEW; END $$;
		CREATE TRIGGER pass BEFORE INSERT OR UPDATE ON a FOR EACH ROW EXECUTE FUNCTION pass();
		INSERT INTO a VALUES (1, NULL); INSERT INTO b VALUES (5, 1); UPDATE a SET b = 5`)
	u.roundTrip(t, "UPDATE a SET b = NULL", "DELETE FROM b", "DELETE FROM a")
}

// What is left of an UPDATE to rows that have moved with their parent is written in
// the application's environment as well, also where rows are found by what they hold.
func TestTriggersOfRowsThatMoveWithTheirParent(t *testing.T) {
	t.Parallel()
	for name, key := range map[string]string{"Key": "PRIMARY KEY (p, n)", "NoKey": "CHECK (n > 0)"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			u := newUndo(t, `CREATE TABLE p (id int PRIMARY KEY); CREATE TABLE c (p int REFERENCES p ON UPDATE CASCADE, n int, v int, `+key+`); ALTER TABLE c REPLICA IDENTITY FULL;
				CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN INSERT INTO log DEFAULT VALUES; RETURN NEW; END $$;
				INSERT INTO p VALUES (1); INSERT INTO c VALUES (1, 1, 1), (1, 2, 2)`)
			u.request(t, "first", "UPDATE p SET id = 2", "UPDATE c SET v = 9")
			u.Exec(t, "CREATE TABLE log (id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY); CREATE TRIGGER note BEFORE UPDATE ON c FOR EACH ROW EXECUTE FUNCTION note()")
			apply(t, u.Client.RevertRequest("first"))
			u.holds(t, "(SELECT array_agg(p || ' ' || v ORDER BY n) = '{1 1,1 2}' FROM c) AND (SELECT count(*) >= 2 FROM log)")
		})
	}
}
