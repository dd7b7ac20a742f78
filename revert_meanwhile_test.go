package audit_test

import (
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/hindsight-go/audit"
	"github.com/hindsight-go/audit/audittest"
)

// meanwhile is what became of a value or a row after a request, and what stands in
// the way of the request's revert then.
var meanwhile = map[string]struct {
	version        int
	schema         string
	request, later string
	conflicts      []string
	other          string // the row that has what would be restored
	skipped        string // what holds under Skip
}{
	"UniqueOfSeveralColumns": {
		0,
		"CREATE TABLE a (id int PRIMARY KEY, x int, y text, UNIQUE (x, y)); INSERT INTO a VALUES (1, 1, 'p'), (2, 1, 'q')",
		"UPDATE a SET y = id::text", "INSERT INTO a VALUES (3, 1, 'p')",
		[]string{"unique value taken public.a[1]"},
		"3", "(SELECT array_agg(y ORDER BY id) = '{1,q,p}' FROM a)",
	},
	"UniqueIndexThatIsNoConstraint": {
		0,
		"CREATE TABLE a (id int PRIMARY KEY, n text); CREATE UNIQUE INDEX ON a (n); INSERT INTO a VALUES (1, 'p'), (2, 'q')",
		"DELETE FROM a", "INSERT INTO a VALUES (3, 'p')",
		[]string{"unique value taken public.a[1]"},
		"3", "(SELECT array_agg(n ORDER BY id) = '{q,p}' FROM a)",
	},
	"UniqueIndexThatIncludesMore": {
		0,
		"CREATE TABLE a (id int PRIMARY KEY, n text, m text); CREATE UNIQUE INDEX ON a (n) INCLUDE (m); INSERT INTO a VALUES (1, 'p', 'x'), (2, 'q', 'y')",
		"UPDATE a SET n = '', m = '' WHERE id = 1", "INSERT INTO a VALUES (3, 'p', 'other')",
		[]string{"unique value taken public.a[1]"},
		"3", "(SELECT array_agg(n ORDER BY id) = '{\"\",q,p}' FROM a)",
	},
	"PartialUnique": {
		0,
		"CREATE TABLE a (id int PRIMARY KEY, n text, gone timestamptz); CREATE UNIQUE INDEX ON a (n) WHERE gone IS NULL; INSERT INTO a VALUES (1, 'p'), (2, 'q')",
		"UPDATE a SET gone = now()", "INSERT INTO a VALUES (3, 'p', NULL), (4, 'q', now())",
		[]string{"unique value taken public.a[1]"},
		"3", "(SELECT array_agg(gone IS NULL ORDER BY id) = '{f,t,t,f}' FROM a)",
	},
	"UniqueExpression": {
		0,
		"CREATE TABLE a (id int PRIMARY KEY, n text, m int); CREATE UNIQUE INDEX ON a (lower(n), abs(m)); INSERT INTO a VALUES (1, 'P', 1), (2, 'q', 2)",
		"UPDATE a SET m = 9", "INSERT INTO a VALUES (3, 'p', -1)",
		[]string{"unique value taken public.a[1]"},
		"3", "(SELECT array_agg(m ORDER BY id) = '{9,2,-1}' FROM a)",
	},
	"UniqueNullsNotDistinct": {
		150000,
		"CREATE TABLE a (id int PRIMARY KEY, n text UNIQUE NULLS NOT DISTINCT); INSERT INTO a VALUES (1, NULL), (2, 'q')",
		"UPDATE a SET n = 'x' || id", "INSERT INTO a VALUES (3, NULL)",
		[]string{"unique value taken public.a[1]"},
		"3", "(SELECT array_agg(n ORDER BY id) = '{x1,q,NULL}' FROM a)",
	},
	"UniqueNullsAreDistinct": {
		0,
		"CREATE TABLE a (id int PRIMARY KEY, n text, m text, UNIQUE (n, m)); INSERT INTO a VALUES (1, NULL, 'p'), (2, 'q', 'p')",
		"UPDATE a SET n = 'x' || id", "INSERT INTO a VALUES (3, NULL, 'p')",
		nil, "", "(SELECT array_agg(n ORDER BY id) = '{NULL,q,NULL}' FROM a)",
	},
	"UniqueGeneratedColumn": {
		0,
		"CREATE TABLE a (id int PRIMARY KEY, n int, twice int GENERATED ALWAYS AS (n * 2) STORED UNIQUE); INSERT INTO a VALUES (1, 1), (2, 2)",
		"UPDATE a SET n = n + 10", "INSERT INTO a VALUES (3, 1)",
		[]string{"unique value taken public.a[1]"},
		"3", "(SELECT array_agg(n ORDER BY id) = '{11,2,1}' FROM a)",
	},
	"ExclusionOfRanges": {
		0,
		"CREATE TABLE a (id int PRIMARY KEY, rooms int4range, during daterange, cancelled bool DEFAULT false, EXCLUDE USING gist (rooms WITH &&, during WITH &&) WHERE (NOT cancelled)); INSERT INTO a VALUES (1, '[1,3)', '[2024-01-01,2024-01-05)'), (2, '[5,6)', '[2024-01-01,2024-01-05)')",
		"UPDATE a SET cancelled = true", "INSERT INTO a VALUES (3, '[2,4)', '[2024-01-04,)'), (4, '[5,6)', '[2024-01-05,)')",
		[]string{"unique value taken public.a[1]"},
		"3", "(SELECT array_agg(cancelled ORDER BY id) = '{t,f,f,f}' FROM a)",
	},
	"UniqueAddedSince": {
		0,
		"CREATE TABLE a (id int PRIMARY KEY, n int); INSERT INTO a VALUES (1, 7), (2, 7)",
		"UPDATE a SET n = id", "ALTER TABLE a ADD UNIQUE (n)",
		[]string{"unique value taken public.a[1]"},
		"2", "(SELECT array_agg(n ORDER BY id) = '{1,7}' FROM a)",
	},
	"UniqueExpressionAddedSince": {
		0,
		"CREATE TABLE a (id int PRIMARY KEY, n text); INSERT INTO a VALUES (1, 'p'), (2, 'P')",
		"UPDATE a SET n = id::text", "CREATE UNIQUE INDEX ON a (lower(n))",
		[]string{"unique value taken public.a[1]"},
		"2", "(SELECT array_agg(n ORDER BY id) = '{1,P}' FROM a)",
	},
	"ReferenceAddedSince": {
		0,
		"CREATE TABLE a (id int PRIMARY KEY, b int); CREATE TABLE b (id int PRIMARY KEY); INSERT INTO b VALUES (1); INSERT INTO a VALUES (1, 7), (2, 1)",
		"UPDATE a SET b = NULL", "ALTER TABLE a ADD CONSTRAINT a_b FOREIGN KEY (b) REFERENCES b NOT VALID",
		[]string{"parent missing public.a[1]"},
		"7", "(SELECT array_agg(b ORDER BY id) = '{NULL,1}' FROM a)",
	},
	"ReferenceToItAddedSince": {
		0,
		"CREATE TABLE a (id int PRIMARY KEY); CREATE TABLE b (id int PRIMARY KEY, a int)",
		"INSERT INTO a VALUES (1), (2); INSERT INTO b VALUES (9, 1)", "ALTER TABLE b ADD FOREIGN KEY (a) REFERENCES a; INSERT INTO b VALUES (10, 2)",
		[]string{"row referenced public.a[2]"},
		"10", "(SELECT array_agg(id) = '{2}' FROM a) AND (SELECT array_agg(id) = '{10}' FROM b)",
	},
	"MovedToAnotherSchema": {
		0,
		"CREATE SCHEMA app; CREATE TABLE a (id int PRIMARY KEY, n text UNIQUE); INSERT INTO a VALUES (1, 'p'), (2, 'q')",
		"UPDATE a SET n = 'x' || id", "ALTER TABLE a SET SCHEMA app; UPDATE app.a SET n = 'later' WHERE id = 2; INSERT INTO app.a VALUES (3, 'p')",
		[]string{"column changed app.a[2] n", "unique value taken app.a[1]"},
		"3", "(SELECT array_agg(n ORDER BY id) = '{x1,later,p}' FROM app.a)",
	},
	"PartitionDetached": {
		0,
		"CREATE TABLE a (id int PRIMARY KEY, n text) PARTITION BY RANGE (id); CREATE TABLE a_1 PARTITION OF a FOR VALUES FROM (0) TO (10); CREATE TABLE a_2 PARTITION OF a FOR VALUES FROM (10) TO (20); INSERT INTO a VALUES (1, 'p'), (11, 'q')",
		"UPDATE a SET n = 'x'", "ALTER TABLE a DETACH PARTITION a_2",
		[]string{"row gone public.a[11]"},
		"", "(SELECT n = 'p' FROM a) AND (SELECT n = 'x' FROM a_2)",
	},
	"PartitionDropped": {
		0,
		"CREATE TABLE a (id int PRIMARY KEY, n text) PARTITION BY RANGE (id); CREATE TABLE a_1 PARTITION OF a FOR VALUES FROM (0) TO (10); CREATE TABLE a_2 PARTITION OF a FOR VALUES FROM (10) TO (20); INSERT INTO a VALUES (1, 'p'), (11, 'q')",
		"UPDATE a SET n = 'x' WHERE id = 1; UPDATE a SET n = 'x' WHERE id = 11", "DROP TABLE a_2",
		[]string{"row gone public.a[11]"},
		"", "(SELECT n = 'p' FROM a)",
	},
	"ColumnsOfPartitionsSwapped": {
		0,
		"CREATE TABLE a (id int PRIMARY KEY, n text, m text) PARTITION BY RANGE (id); CREATE TABLE a_1 PARTITION OF a FOR VALUES FROM (0) TO (10); CREATE TABLE a_2 (m text, gone int, id int PRIMARY KEY, n text); ALTER TABLE a_2 DROP gone; ALTER TABLE a ATTACH PARTITION a_2 FOR VALUES FROM (10) TO (20); INSERT INTO a VALUES (1, 'n1', 'm1'), (11, 'n11', 'm11')",
		"UPDATE a SET n = 'x'; DELETE FROM a WHERE id = 11", "ALTER TABLE a RENAME n TO t; ALTER TABLE a RENAME m TO n; ALTER TABLE a RENAME t TO m",
		nil, "", "(SELECT array_agg(concat(id, n, m) ORDER BY id) = '{1m1n1,11m11n11}' FROM a)",
	},
	"PartitionAttached": {
		0,
		"CREATE TABLE a (id int PRIMARY KEY, n text) PARTITION BY RANGE (id); CREATE TABLE a_1 PARTITION OF a FOR VALUES FROM (0) TO (10); CREATE TABLE a_2 (n text, id int PRIMARY KEY); INSERT INTO a VALUES (1, 'p'); INSERT INTO a_2 VALUES ('q', 11), ('r', 12)",
		"UPDATE a SET n = 'x'; UPDATE a_2 SET n = 'x' WHERE id = 11; DELETE FROM a_2 WHERE id = 12", "ALTER TABLE a ATTACH PARTITION a_2 FOR VALUES FROM (10) TO (20)",
		nil, "", "(SELECT array_agg(n ORDER BY id) = '{p,q,r}' FROM a)",
	},
	"EnumValueAddedSince": {
		0,
		"CREATE TYPE mood AS ENUM ('sad', 'happy'); CREATE TABLE a (id int PRIMARY KEY, m mood, ms mood[]); INSERT INTO a VALUES (1, 'sad', '{sad}'), (2, 'happy', NULL)",
		"UPDATE a SET m = 'happy', ms = '{happy,NULL}' WHERE id = 1; DELETE FROM a WHERE id = 2", "ALTER TYPE mood ADD VALUE 'ok' BEFORE 'happy'; ALTER TYPE mood RENAME VALUE 'sad' TO 'blue'; INSERT INTO a VALUES (3, 'ok', '{ok}')",
		nil, "", "",
	},
}

// newUnchecked is newUndo without the check at the end, which knows nothing of rows
// that join or leave a table with a partition, nor of domains that have become
// stricter.
func newUnchecked(t *testing.T, setup ...string) *undo {
	t.Helper()
	db := audittest.NewDatabase(t)
	for _, sql := range setup {
		db.Exec(t, sql)
	}
	a := audittest.Open(t, db, audit.Config{Tables: []string{"public.*", "app.*"}})
	mustStart(t, a)
	t.Cleanup(func() { a.Stop(t) })
	return &undo{Audited: a, conn: a.Connect(t)}
}

func TestWhatCameMeanwhileIsInConflict(t *testing.T) {
	t.Parallel()
	version := audittest.NewDatabase(t).Server().Version()
	for name, h := range meanwhile {
		if version < h.version {
			continue
		}
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			u := newUnchecked(t, h.schema)
			u.request(t, "first", strings.Split(h.request, "; ")...)
			u.Sync(t)
			for _, sql := range strings.Split(h.later, "; ") {
				u.Exec(t, sql)
			}
			now := u.state(t)
			revert := u.Client.RevertRequest("first")
			if h.skipped == "" { // refused for what can be restored no more
				if _, err := revert.OnConflict(audit.Skip).Apply(t.Context()); !refusedByTheSource(err) {
					t.Errorf("the revert gives %v", err)
				}
				u.want(t, "something was written", now)
				return
			}
			wantConflicts(t, revert, h.conflicts...)
			var blocked *audit.ConflictError
			switch _, err := revert.DryRun(t.Context()); {
			case h.conflicts == nil && err != nil, h.conflicts != nil && !errors.As(err, &blocked):
				t.Errorf("the revert gives %v", err)
			case h.other != "":
				var others []string
				for _, c := range blocked.Conflicts {
					if c.Other != nil {
						others = append(others, c.Other.Key...)
					}
				}
				if diff := cmp.Diff([]string{h.other}, others); diff != "" {
					t.Errorf("in the way (-want +got):\n%s", diff)
				}
			}
			u.want(t, "something was written", now)
			apply(t, revert.OnConflict(audit.Skip))
			u.holds(t, h.skipped)
		})
	}
}

// refusedByTheSource tells that a revert failed with the error for what the source
// does not take, or that cannot be had any more.
func refusedByTheSource(err error) bool {
	var apply *audit.ApplyError
	var unrevertable *audit.UnrevertableError
	return errors.As(err, &apply) || errors.As(err, &unrevertable)
}

// What the source has been forbidden since is not forced upon it: the revert fails
// as a whole, with the name of the constraint and without values.
func TestWhatIsForbiddenSinceIsRefused(t *testing.T) {
	t.Parallel()
	const schema = `CREATE DOMAIN small AS int; CREATE DOMAIN smalls AS int[]; CREATE DOMAIN whole AS int; CREATE DOMAIN lone AS whole;
		CREATE TABLE a (id int PRIMARY KEY, n int, d small, ds smalls, da small[], e whole, t text, f lone); CREATE TABLE other (id int PRIMARY KEY, n int);
		INSERT INTO a VALUES (1, 11, 12, '{13}', '{14}', 15, 'secret', 16), (2, 21, 22, '{23}', '{24}', NULL, NULL, 26); INSERT INTO other VALUES (1, 1)`
	for name, h := range map[string]struct {
		since, constraint string
		conflicts         []string
	}{
		"Check":                     {"UPDATE a SET n = 0; ALTER TABLE a ADD CONSTRAINT few CHECK (n < 10)", "few", []string{"column changed public.a[1] n", "value refused public.a[1] n", "value refused public.a[2] n"}},
		"CheckNotValid":             {"ALTER TABLE a ADD CONSTRAINT few CHECK (n < 10) NOT VALID", "few", []string{"value refused public.a[1] n", "value refused public.a[2] n"}},
		"NotNull":                   {"UPDATE a SET t = ''; ALTER TABLE a ALTER t SET NOT NULL", "", []string{"column changed public.a[1] t", "value refused public.a[2] t"}},
		"DomainCheck":               {"UPDATE a SET f = 0; ALTER DOMAIN lone ADD CONSTRAINT few CHECK (VALUE < 10) NOT VALID", "few", []string{"column changed public.a[1] f", "value refused public.a[1] f", "value refused public.a[2] f"}},
		"DomainCheckInArray":        {"UPDATE a SET d = 0; ALTER DOMAIN small ADD CONSTRAINT few CHECK (VALUE < 10) NOT VALID", "few", nil},
		"DomainNotNull":             {"UPDATE a SET e = 0; ALTER DOMAIN whole SET NOT NULL", "", []string{"value refused public.a[2] e"}},
		"DomainOverArray":           {"ALTER DOMAIN smalls ADD CONSTRAINT few CHECK (VALUE[1] < 10) NOT VALID", "few", []string{"value refused public.a[1] ds", "value refused public.a[2] ds"}},
		"ColumnAddedWithoutDefault": {"ALTER TABLE a ADD extra int NOT NULL DEFAULT 1; ALTER TABLE a ALTER extra DROP DEFAULT", "", []string{"value refused public.a[2] extra"}},
		"Trigger":                   {"CREATE FUNCTION no() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'no more of % here', NEW.t; END $$; CREATE TRIGGER no BEFORE INSERT OR UPDATE ON a FOR EACH ROW EXECUTE FUNCTION no()", "", nil},
		"StatementTrigger":          {"CREATE FUNCTION no() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'no more'; END $$; CREATE TRIGGER no AFTER INSERT ON a EXECUTE FUNCTION no()", "", nil},
		"DeferredConstraintTrigger": {"CREATE FUNCTION no() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'no more' USING CONSTRAINT = 'none'; END $$; CREATE CONSTRAINT TRIGGER no AFTER INSERT ON a DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION no()", "none", nil},
		"DeferredTriggerUnnamed":    {"CREATE FUNCTION no() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'no more'; END $$; CREATE CONSTRAINT TRIGGER no AFTER INSERT ON a DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION no()", "", nil},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			u := newUnchecked(t, schema)
			u.request(t, "first", "UPDATE other SET n = 2", "DELETE FROM a WHERE id = 2", "UPDATE a SET n = 1, d = 2, ds = '{3}', da = '{4}', t = NULL, f = 5 WHERE id = 1")
			u.Sync(t)
			for _, sql := range splitSQL(h.since) {
				u.Exec(t, sql)
			}
			u.Sync(t)
			now := u.state(t)
			revert := u.Client.RevertRequest("first").OnConflict(audit.Overwrite)
			if h.conflicts != nil {
				wantConflicts(t, revert, h.conflicts...)
				for _, c := range u.refused(t, revert).Conflicts {
					if c.Kind == audit.ValueRefused && c.Constraint != h.constraint {
						t.Errorf("it names %q in %s", c.Constraint, c)
					}
				}
				apply(t, revert.OnConflict(audit.Skip))
				u.holds(t, "(SELECT n = 1 FROM other)")
				return
			}
			for what, do := range map[string]func() (*audit.Result, error){
				"Apply":  func() (*audit.Result, error) { return revert.Apply(t.Context()) },
				"DryRun": func() (*audit.Result, error) { return revert.DryRun(t.Context()) },
			} {
				var refused *audit.ApplyError
				switch _, err := do(); {
				case !errors.As(err, &refused):
					t.Errorf("%s gives %v", what, err)
				case refused.Constraint != h.constraint:
					t.Errorf("%s names %q in %v", what, refused.Constraint, refused)
				case strings.Contains(err.Error(), "secret") || strings.Contains(err.Error(), "21"):
					t.Errorf("the error has values: %v", err)
				}
				u.want(t, what+" wrote something", now)
			}
		})
	}
}

// splitSQL cuts statements apart, but not the bodies of functions.
func splitSQL(script string) []string {
	var statements []string
	for i, part := range strings.Split(script, "$$") {
		if i%2 == 1 {
			statements[len(statements)-1] += "$$" + part + "$$"
			continue
		}
		pieces := strings.Split(part, "; ")
		if i > 0 {
			statements[len(statements)-1] += pieces[0]
			pieces = pieces[1:]
		}
		statements = append(statements, pieces...)
	}
	return statements
}
