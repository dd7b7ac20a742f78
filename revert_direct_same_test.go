package audit_test

import (
	"errors"
	"fmt"
	"regexp"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5"

	"github.com/hindsight-go/audit"
)

// outcome is everything that came of a revert, but for where changes are in the log.
func outcome(result *audit.Result, err error) []string {
	var out []string
	var blocked *audit.ConflictError
	switch {
	case errors.As(err, &blocked):
		out = append(out, lines(blocked.Conflicts))
	case err != nil:
		out = append(out, fmt.Sprintf("%T: %v", err, err))
	default:
		out = append(out, fmt.Sprintf("%d %d %d %d %d adjusted %v, hash %s", result.Inserted, result.Updated, result.Deleted,
			result.Unchanged, result.Skipped, result.Adjusted, result.Plan.Hash), result.Plan.String())
	}
	for i, line := range out {
		out[i] = regexp.MustCompile("[0-9A-F]+/[0-9A-F]+").ReplaceAllString(line, "LSN")
	}
	return out
}

// Whether a revert is tried directly or not, the same comes of it.
func TestDirectUndoIsLikeAnyOther(t *testing.T) {
	t.Parallel()
	const (
		plain  = "CREATE TABLE a (id int PRIMARY KEY, v int, w text); INSERT INTO a VALUES (1, 1, 'x'), (2, 2, NULL), (3, 3, '')"
		parts  = "CREATE TABLE a (id int PRIMARY KEY, v int) PARTITION BY RANGE (id); CREATE TABLE a1 PARTITION OF a FOR VALUES FROM (0) TO (2); CREATE TABLE a2 PARTITION OF a DEFAULT; INSERT INTO a VALUES (1, 1), (2, 2)"
		circle = `CREATE TABLE a (id int PRIMARY KEY, b int NOT NULL, v int); CREATE TABLE b (id int PRIMARY KEY, a int NOT NULL REFERENCES a, v int);
			INSERT INTO a VALUES (1, 1, 1); INSERT INTO b VALUES (1, 1, 1); ALTER TABLE a ADD FOREIGN KEY (b) REFERENCES b`
		computed = "CREATE TABLE p (id int PRIMARY KEY); CREATE TABLE a (id int PRIMARY KEY, v int, g int GENERATED ALWAYS AS (v * 2) STORED REFERENCES p %s); INSERT INTO p VALUES (2), (4), (6); INSERT INTO a VALUES (1, 1), (2, 2)"
		family   = "CREATE TABLE p (id int PRIMARY KEY, w text); CREATE TABLE a (id int PRIMARY KEY, p int REFERENCES p %s, v int); INSERT INTO p VALUES (1, 'x'), (2, 'y'); INSERT INTO a VALUES (1, 1, 1), (2, 2, 2)"
		after    = "CREATE FUNCTION f() RETURNS trigger LANGUAGE plpgsql AS '%s'; CREATE TRIGGER f %s ON a FOR EACH ROW EXECUTE FUNCTION f()"
		adjusts  = "CREATE FUNCTION f() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN NEW.v := 77; RETURN NEW; END'; CREATE TRIGGER f BEFORE UPDATE ON %s FOR EACH ROW EXECUTE FUNCTION f()"
		set      = "UPDATE a SET v = 9"
	)
	for name, h := range map[string]struct {
		setup, work, later, session string
		with                        func(audit.Reversal) audit.Reversal
		level                       pgx.TxIsoLevel
	}{
		"InsteadNothing":      {setup: plain, work: set, later: "CREATE RULE r AS ON UPDATE TO a DO INSTEAD NOTHING"},
		"Also":                {setup: plain + "; CREATE TABLE b (id serial PRIMARY KEY, v int)", work: set, later: "CREATE RULE r AS ON UPDATE TO a DO ALSO INSERT INTO b (v) VALUES (NEW.v)"},
		"TriggerOfPartition":  {setup: parts, work: set, later: fmt.Sprintf(adjusts, "a2")},
		"TriggerOfReplicas":   {setup: plain, work: set, later: fmt.Sprintf(adjusts, "a") + "; ALTER TABLE a ENABLE REPLICA TRIGGER f", session: "SET LOCAL session_replication_role = replica"},
		"UniqueInPartition":   {setup: parts, work: "UPDATE a SET v = v + 20", later: "CREATE UNIQUE INDEX ON a2 (v); INSERT INTO a VALUES (3, 2)"},
		"PartialUnique":       {setup: plain + "; CREATE UNIQUE INDEX ON a (v) WHERE w IS NULL", work: "UPDATE a SET w = 'y'", later: "INSERT INTO a VALUES (4, 2, NULL)"},
		"ComputedReference":   {setup: fmt.Sprintf(computed, ""), work: "UPDATE a SET v = 3", later: "DELETE FROM p WHERE id = 2"},
		"ComputedAndDeferred": {setup: fmt.Sprintf(computed, "DEFERRABLE INITIALLY DEFERRED"), work: "UPDATE a SET v = 3", later: "DELETE FROM p WHERE id = 2"},
		"CircleInConflict":    {setup: circle, work: set + "; UPDATE b SET v = 9", later: "UPDATE a SET v = 8"},
		"CircleSkipped":       {setup: circle, work: set + "; UPDATE b SET v = 9", later: "UPDATE a SET v = 8", with: func(r audit.Reversal) audit.Reversal { return r.OnConflict(audit.Skip) }},
		"Columns":             {setup: plain, work: "UPDATE a SET id = id + 10, v = 9, w = 'z'", with: func(r audit.Reversal) audit.Reversal { return r.Columns("w") }},
		"SomeColumns":         {setup: plain, work: "UPDATE a SET v = NULL WHERE id < 3; UPDATE a SET w = NULL WHERE id > 2; UPDATE a SET w = '' WHERE id = 2"},
		"Serializable":        {setup: plain, work: set, level: pgx.Serializable},
		"Deleted":             {setup: fmt.Sprintf(family, ""), work: "DELETE FROM a; DELETE FROM p WHERE id = 1"},
		"DeletedAndChanged":   {setup: fmt.Sprintf(family, ""), work: "UPDATE a SET v = 7, p = 2; DELETE FROM p WHERE id = 1; DELETE FROM a WHERE id = 2"},
		"DeletedMadeAnew":     {setup: plain, work: "DELETE FROM a", later: "INSERT INTO a VALUES (2, 2, NULL)"},
		"DeletedAndTaken":     {setup: plain + "; CREATE UNIQUE INDEX ON a (w)", work: "DELETE FROM a WHERE id < 3", later: "INSERT INTO a VALUES (9, 9, 'x')"},
		"DeletedParent":       {setup: fmt.Sprintf(family, ""), work: "DELETE FROM a", later: "DELETE FROM p WHERE id = 1"},
		"DeletedDeferred":     {setup: fmt.Sprintf(family, "DEFERRABLE INITIALLY DEFERRED"), work: "DELETE FROM a", later: "DELETE FROM p WHERE id = 1"},
		"DeletedUnenforced":   {setup: fmt.Sprintf(family, ""), work: "DELETE FROM a", later: "DELETE FROM p WHERE id = 1; ALTER TABLE a DISABLE TRIGGER ALL"},
		"DeletedAsReplica":    {setup: fmt.Sprintf(family, ""), work: "DELETE FROM a", later: "DELETE FROM p WHERE id = 1", session: "SET LOCAL session_replication_role = replica"},
		"DeletedCircle":       {setup: circle, work: "ALTER TABLE b ALTER CONSTRAINT b_a_fkey DEFERRABLE; SET CONSTRAINTS ALL DEFERRED; DELETE FROM a; DELETE FROM b; SET CONSTRAINTS ALL IMMEDIATE", later: "ALTER TABLE b ALTER CONSTRAINT b_a_fkey NOT DEFERRABLE"},
		"DeletedInsteadOf":    {setup: plain, work: "DELETE FROM a", later: "CREATE RULE r AS ON INSERT TO a DO INSTEAD NOTHING"},
		"DeletedByParts":      {setup: parts, work: "DELETE FROM a", later: "DROP TABLE a1"},
		"DeletedTrigger":      {setup: plain, work: "DELETE FROM a", later: fmt.Sprintf(after, "BEGIN NEW.v := 5; RETURN NEW; END", "BEFORE INSERT")},
		"DeletedDeferrable":   {setup: plain + "; ALTER TABLE a DROP CONSTRAINT a_pkey, ADD PRIMARY KEY (id) DEFERRABLE", work: "DELETE FROM a WHERE id = 1; UPDATE a SET id = 1, v = 1, w = 'x' WHERE id = 2"},
		"DeletedDefault": {
			setup: plain, work: "DELETE FROM a", session: "SET LOCAL timezone = 'Asia/Kathmandu'; SET LOCAL datestyle = 'SQL, DMY'",
			later: "ALTER TABLE a ADD said text DEFAULT ('2024-01-01 00:00+00'::timestamptz)::text",
		},
		"Remade":           {setup: plain, work: set, later: "DELETE FROM a WHERE id = 2; INSERT INTO a VALUES (2, 9, NULL)"},
		"RemadeByTruncate": {setup: plain, work: set, later: "TRUNCATE a; INSERT INTO a VALUES (1, 9, 'x'), (2, 9, NULL), (3, 9, '')"},
		"Swapped":          {setup: plain, work: set, later: "UPDATE a SET id = 20 WHERE id = 2; UPDATE a SET id = 2 WHERE id = 3"},
		"KeyRemade":        {setup: plain, work: "UPDATE a SET id = id + 10", later: "DELETE FROM a WHERE id = 12; INSERT INTO a VALUES (12, 0, 'theirs')"},
		"Key":              {setup: plain, work: "UPDATE a SET id = id + 10"},
		"KeyTaken":         {setup: plain, work: "UPDATE a SET id = id + 10", later: "INSERT INTO a VALUES (2, 2, 'other')"},
		"KeyShifted":       {setup: plain, work: "UPDATE a SET id = 4 WHERE id = 3; UPDATE a SET id = 3 WHERE id = 2"},
		"KeyDeferrable":    {setup: plain + "; ALTER TABLE a DROP CONSTRAINT a_pkey, ADD PRIMARY KEY (id) DEFERRABLE", work: "UPDATE a SET id = id + 1"},
		"KeyReferenced":    {setup: fmt.Sprintf(family, "") + "; INSERT INTO p VALUES (3, 'z')", work: "UPDATE p SET id = id + 10 WHERE id = 3", later: "INSERT INTO a VALUES (3, 13, 3)"},
		"KeyCascades":      {setup: fmt.Sprintf(family, "ON UPDATE CASCADE"), work: "UPDATE p SET id = id + 10", later: "INSERT INTO a VALUES (3, 11, 3); UPDATE a SET v = 9"},
		"KeySetsNull":      {setup: fmt.Sprintf(family, "ON UPDATE SET NULL"), work: "UPDATE p SET id = id + 10", later: "INSERT INTO a VALUES (3, 11, 3)"},
		"Reference":        {setup: fmt.Sprintf(family, ""), work: "UPDATE a SET p = 2", later: "DELETE FROM p WHERE id = 1"},
		"TriggerAfter":     {setup: plain, work: set, later: fmt.Sprintf(after, "BEGIN UPDATE a SET w = w || ''!'' WHERE id = NEW.id AND w NOT LIKE ''%%!''; RETURN NULL; END", "AFTER UPDATE")},
		"TriggerKeepsOut":  {setup: plain, work: set, later: fmt.Sprintf(after, "BEGIN IF NEW.id = 2 THEN RETURN NULL; END IF; RETURN NEW; END", "BEFORE UPDATE")},
		"TriggerRefuses":   {setup: plain, work: set, later: fmt.Sprintf(after, "BEGIN IF NEW.id = 2 THEN RAISE ''no''; END IF; RETURN NEW; END", "AFTER UPDATE")},
		"TriggerAdjusts":   {setup: plain, work: set + ", w = 'z'", later: fmt.Sprintf(after, "BEGIN IF NEW.id = 2 THEN NEW.v := 55; END IF; RETURN NEW; END", "BEFORE UPDATE")},
		"TriggerOfOthers":  {setup: plain, work: set, later: fmt.Sprintf(after, "BEGIN UPDATE a SET v = v + 100 WHERE id = NEW.id - 1 AND v < 100; RETURN NULL; END", "AFTER UPDATE")},
		"TriggerOfTwo":     {setup: fmt.Sprintf(family, ""), work: set + "; UPDATE p SET w = 'z'", later: fmt.Sprintf(after, "BEGIN UPDATE p SET w = ''touched'' WHERE id = NEW.p; RETURN NEW; END", "BEFORE UPDATE")},
		"TriggerSettings": {
			setup: plain, work: "UPDATE a SET w = 'z'", session: "SET LOCAL timezone = 'Asia/Kathmandu'; SET LOCAL datestyle = 'SQL, DMY'",
			later: fmt.Sprintf(after, "BEGIN IF NEW.id < 3 THEN NEW.w := ''2024-01-01 00:00+00''::timestamptz::text; END IF; RETURN NEW; END", "BEFORE UPDATE"),
		},
		"Hash": {setup: plain, work: set, with: func(r audit.Reversal) audit.Reversal { return r.IfHash("another") }},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var got [2][]string
			for i, rows := range []int{1, 1000} {
				u := newUndo(t, h.setup)
				audit.DirectRows(u.Client, rows)
				u.request(t, "work", strings.Split(h.work, "; ")...)
				u.request(t, "later", h.later)
				r := u.Client.RevertRequest("work")
				if h.with != nil {
					r = h.with(r)
				}
				_ = pgx.BeginTxFunc(t.Context(), u.Connect(t), pgx.TxOptions{IsoLevel: h.level}, func(tx pgx.Tx) error {
					if _, err := tx.Exec(t.Context(), h.session); err != nil {
						t.Error(err)
					}
					result, err := r.ApplyTx(t.Context(), tx)
					got[i] = append(outcome(result, err), fmt.Sprintf("status %c", tx.Conn().PgConn().TxStatus()))
					return err
				})
				got[i] = append(got[i], u.state(t)...)
				u.Check(t)
			}
			if diff := cmp.Diff(got[1], got[0]); diff != "" {
				t.Errorf("ordinary (-), direct (+):\n%s", diff)
			}
		})
	}
}
