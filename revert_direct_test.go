package audit_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/hindsight-go/audit"
)

const (
	accountsAndEntries = `
		CREATE TABLE account (id int PRIMARY KEY, code text UNIQUE, owner text, balance numeric, seen timestamptz, score float8, tags text[], doc jsonb, raw json);
		CREATE TABLE entry (id int PRIMARY KEY, account int REFERENCES account, amount numeric);
		INSERT INTO account SELECT i, 'c' || i, CASE WHEN i % 3 > 0 THEN 'o' || i END, i / 7.0, now() - i * interval '1 hour', i / 3.0,
			ARRAY['a', NULL, 'b,' || i], jsonb_build_object('n', i, 'x', NULL), '{"a": 1}' FROM generate_series(1, 700) i;
		INSERT INTO entry SELECT i, i, i FROM generate_series(1, 50) i;`
	// plainWork changes nothing that anything depends on.
	plainWork = `UPDATE account SET owner = CASE WHEN id % 2 = 0 THEN 'new' END, balance = balance + 1, seen = NULL, score = -score, tags = tags || 'c'::text, doc = doc || '{"y": 2}'`
)

// directly does work on accounts that is to be undone. looking tells of a revert
// whether it looked at the rows before it wrote.
func directly(t *testing.T, work ...string) (u *undo, before []string, looking func(audit.Reversal) (audit.Reversal, *bool)) {
	t.Helper()
	u = newUndo(t, accountsAndEntries)
	before = u.state(t)
	u.request(t, "work", work...)
	return u, before, func(r audit.Reversal) (audit.Reversal, *bool) {
		did := new(bool)
		return r.Progress(func(p audit.Progress) { *did = *did || p.Step == "compare" }), did
	}
}

func TestDirectUndo(t *testing.T) {
	t.Parallel()
	u, before, looking := directly(t, plainWork, "UPDATE account SET balance = balance * 2 WHERE id <= 600", "UPDATE entry SET amount = 0")
	after := u.state(t)
	r, looked := looking(u.Client.RevertRequest("work"))
	result := apply(t, r.Reason("it was wrong"))
	u.want(t, "after the revert", before)
	if *looked || result.Updated != 750 || result.Unchanged != 0 || result.Plan.Updates != 750 || len(slices.Collect(result.Plan.Rows())) != 750 {
		t.Errorf("looked first: %t; %+v", *looked, result)
	}
	if !strings.Contains(result.Plan.SQL(), `UPDATE`) {
		t.Errorf("the plan has no SQL: %s", result.Plan.SQL())
	}
	if err := u.Client.WaitFor(t.Context(), result.Token); err != nil {
		t.Fatal(err)
	}
	changes, err := u.Client.Changes().InRevert(result.ID).List(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if len(changes) != 750 {
		t.Errorf("%d changes are stamped with the revert", len(changes))
	}
	if again := apply(t, u.Client.RevertRequest("work")); again.Already == nil || again.Already.Reason != "it was wrong" {
		t.Errorf("the second time: %+v", again)
	}
	redo, looked := looking(u.Client.Redo(result.ID))
	apply(t, redo)
	u.want(t, "after redo", after)
	if *looked {
		t.Error("redo looked first")
	}
	u.Check(t)
}

// A direct revert gives the same plan, with the same hash, as one that looks first.
func TestDirectUndoHasTheHashOfThePlan(t *testing.T) {
	t.Parallel()
	u, before, looking := directly(t, plainWork)
	plan, err := u.Client.RevertRequest("work").Plan(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var stale *audit.StaleError
	if _, err := u.Client.RevertRequest("work").IfHash("another").Apply(t.Context()); !errors.As(err, &stale) {
		t.Errorf("with another hash: %v", err)
	}
	r, looked := looking(u.Client.RevertRequest("work").IfHash(plan.Hash))
	if _, err := r.DryRun(t.Context()); err != nil || *looked {
		t.Errorf("a dry run: %v, looked first: %t", err, *looked)
	}
	apply(t, r)
	u.want(t, "after the revert", before)
	if *looked {
		t.Error("it looked first")
	}
}

// What stands in the way of a direct revert is found by looking, and nothing else is
// different then.
func TestDirectUndoThatCannotBe(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		work, later        string
		policy             audit.Policy
		refused            string // what the error, or its first conflict, says
		updated, unchanged int
		direct             bool
	}{
		"LaterWork":   {work: plainWork, later: "UPDATE account SET balance = 5 WHERE id = 7", refused: `public.account[7] balance: column changed`},
		"LaterNull":   {work: plainWork, later: "UPDATE account SET score = NULL WHERE id = 8", refused: `public.account[8] score: column changed`},
		"Gone":        {work: plainWork, later: "DELETE FROM account WHERE id = 77", refused: "public.account[77]"},
		"Check":       {work: plainWork, later: "ALTER TABLE account ADD CHECK (score < 0) NOT VALID", refused: "score: value refused: account_score_check does not take"},
		"UniqueTaken": {work: "UPDATE account SET code = 'd' || id", later: "UPDATE account SET code = 'c2' WHERE id = 1", refused: `public.account[1] code: column changed`},
		"OtherColumn": {work: "UPDATE account SET balance = 0", later: "UPDATE account SET owner = 'eve'", updated: 700, direct: true},
		"Skip":        {work: plainWork, later: "UPDATE account SET balance = 5 WHERE id = 7", policy: audit.Skip, updated: 699},
		"Overwrite":   {work: plainWork, later: "UPDATE account SET balance = 5 WHERE id = 7", policy: audit.Overwrite, updated: 700},
		"Done":        {work: "UPDATE account SET owner = 'x'", later: "UPDATE account SET owner = NULL WHERE id = 3", policy: audit.Overwrite, updated: 699, unchanged: 1},
		"Unique":      {work: "UPDATE account SET code = 'd' || id", updated: 700, direct: true},
		"JSON":        {work: `UPDATE account SET raw = '{"a":1,   "b": 2}'`, updated: 700},
		"Reference":   {work: "UPDATE entry SET account = 1; " + plainWork, updated: 749, direct: true},
		"Insert":      {work: plainWork + "; INSERT INTO account (id) VALUES (1000)", updated: 700},
		"Trigger": {
			work: plainWork, later: `CREATE FUNCTION loud() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN NEW.seen := 'epoch'; RETURN NEW; END $$;
				CREATE TRIGGER loud BEFORE UPDATE ON account FOR EACH ROW EXECUTE FUNCTION loud()`, updated: 700,
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			u, before, looking := directly(t, strings.Split(c.work, "; ")...)
			if c.later != "" {
				u.request(t, "later", c.later)
			}
			now := u.state(t)
			r, looked := looking(u.Client.RevertRequest("work"))
			if c.policy != nil {
				r = r.OnConflict(c.policy)
			}
			result, err := r.Apply(t.Context())
			if *looked == c.direct {
				t.Errorf("looked first: %t", *looked)
			}
			if c.refused != "" {
				said := fmt.Sprint(err)
				var blocked *audit.ConflictError
				if errors.As(err, &blocked) {
					said = blocked.Conflicts[0].String()
					if sql := blocked.Plan.SQL(); sql != "" {
						t.Errorf("the blocked plan has a script: %.200s", sql)
					}
				}
				if !strings.Contains(said, c.refused) {
					t.Errorf("it says %s", said)
				}
				u.want(t, "something was written", now)
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if result.Updated != c.updated || result.Unchanged != c.unchanged {
				t.Errorf("%+v", result)
			}
			if c.later == "" {
				u.want(t, "after the revert", before)
			}
			u.Check(t)
		})
	}
}

// A change that commits while the statement waits for its row is seen, and decides.
func TestDirectUndoMeetsAWriter(t *testing.T) {
	t.Parallel()
	for name, commit := range map[string]bool{"Commit": true, "Rollback": false} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			u, before, _ := directly(t, plainWork)
			tx := u.holding(t, "UPDATE account SET balance = 5 WHERE id = 350")
			done := inBackground(func() (*audit.Result, error) { return u.Client.RevertRequest("work").Apply(t.Context()) })
			u.awaitLock(t)
			if !commit {
				if err := tx.Rollback(t.Context()); err != nil {
					t.Fatal(err)
				}
				if err := <-done; err != nil {
					t.Fatal(err)
				}
				u.want(t, "after the revert", before)
				return
			}
			if err := tx.Commit(t.Context()); err != nil {
				t.Fatal(err)
			}
			now := u.state(t)
			var blocked *audit.ConflictError
			if err := <-done; !errors.As(err, &blocked) || len(blocked.Conflicts) != 1 || !slices.Equal(blocked.Conflicts[0].Key, []string{"350"}) {
				t.Errorf("the revert gives %v", err)
			}
			u.want(t, "something was written", now)
			u.Check(t)
		})
	}
}

// What the role or the database has for its settings does not make values look the
// same that are not, nor the other way round.
func TestDirectUndoWhateverTheSettings(t *testing.T) {
	t.Parallel()
	u, before, looking := directly(t, "UPDATE account SET score = 0.3, seen = '2026-01-01 12:00+00', balance = 0")
	u.Exec(t, `DO $$ BEGIN
		EXECUTE format('ALTER DATABASE %I SET extra_float_digits = 0', current_database());
		EXECUTE format('ALTER DATABASE %I SET timezone = %L', current_database(), 'Asia/Tokyo');
		EXECUTE format('ALTER DATABASE %I SET datestyle = %L', current_database(), 'German'); END $$`)
	u.request(t, "later", "UPDATE account SET score = 0.1::float8 + 0.2 WHERE id = 7")
	wantConflicts(t, u.Client.RevertRequest("work"), "column changed public.account[7] score")
	r, looked := looking(u.Client.RevertRequest("work"))
	var blocked *audit.ConflictError
	if _, err := r.Apply(t.Context()); !errors.As(err, &blocked) || len(blocked.Conflicts) != 1 || !*looked {
		t.Errorf("it gives %v, looked first: %t", err, *looked)
	}
	u.request(t, "later still", "UPDATE account SET score = 0.3 WHERE id = 7")
	r, looked = looking(u.Client.RevertRequest("work"))
	apply(t, r)
	u.want(t, "after the revert", before)
	if *looked {
		t.Error("it looked first")
	}
}

// A plan that was made before is carried out directly, unless it is stale.
func TestDirectUndoOfAPlan(t *testing.T) {
	t.Parallel()
	u, before, looking := directly(t, plainWork)
	u.request(t, "later", "UPDATE account SET balance = -1 WHERE id = 5")
	r, _ := looking(u.Client.RevertRequest("work").OnConflict(audit.Overwrite))
	stale, err := r.Plan(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	u.request(t, "later still", "UPDATE account SET balance = -2 WHERE id = 5")
	now := u.state(t)
	var old *audit.StaleError
	if _, err := stale.Apply(t.Context()); !errors.As(err, &old) || old.Table != "public.account" || !slices.Equal(old.Key, []string{"5"}) {
		t.Errorf("a stale plan gives %v", err)
	}
	u.want(t, "the stale plan wrote something", now)
	plan, err := r.Plan(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if result, err := plan.Apply(t.Context()); err != nil || result.Updated != 700 {
		t.Fatalf("%+v, %v", result, err)
	}
	u.want(t, "after the revert", before)
	if again, err := plan.Apply(t.Context()); err != nil || again.Already == nil {
		t.Errorf("the second time: %+v, %v", again, err)
	}
	u.Check(t)
}

// In the caller's transaction, a direct revert leaves what the caller wrote and set,
// also if it comes to nothing.
func TestDirectUndoInTheCallersTransaction(t *testing.T) {
	t.Parallel()
	u, before, _ := directly(t, plainWork)
	ctx := audit.WithContext(t.Context(), audit.Context{RequestID: "caller"})
	inTx := func(want error, conflict bool) {
		t.Helper()
		err := pgx.BeginFunc(ctx, u.conn, func(tx pgx.Tx) error {
			exec := func(sql string) {
				if _, err := tx.Exec(ctx, sql); err != nil {
					t.Fatal(err)
				}
			}
			if err := audit.Stamp(ctx, tx); err != nil {
				return err
			}
			exec("SET LOCAL timezone = 'Asia/Tokyo'")
			exec("UPDATE entry SET amount = amount + 100 WHERE id = 1")
			var blocked *audit.ConflictError
			if _, err := u.Client.RevertRequest("work").ApplyTx(ctx, tx); errors.As(err, &blocked) != conflict || err != nil && !conflict {
				t.Errorf("ApplyTx: %v", err)
			}
			exec("UPDATE entry SET amount = amount - 100 WHERE id = 1")
			var zone string
			if err := tx.QueryRow(ctx, "SHOW timezone").Scan(&zone); err != nil || zone != "Asia/Tokyo" {
				t.Errorf("the time zone is %s, %v", zone, err)
			}
			return want
		})
		if !errors.Is(err, want) {
			t.Fatal(err)
		}
	}
	rollback := errors.New("rollback")
	inTx(rollback, false)
	u.request(t, "later", "UPDATE account SET balance = 5 WHERE id = 7")
	inTx(nil, true)
	u.request(t, "later", "UPDATE account SET balance = (SELECT balance FROM account WHERE id = 8) - 1/7.0 WHERE id = 7")
	u.Exec(t, "UPDATE account SET balance = 1::numeric + 7 / 7.0 WHERE id = 7")
	inTx(nil, false)
	u.want(t, "after the revert", before)
	if err := u.Client.Sync(t.Context()); err != nil {
		t.Fatal(err)
	}
	changes, err := u.Client.Changes().InRequest("caller").ForTable("entry").List(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if len(changes) != 4 {
		t.Errorf("%d changes of the caller's have its context", len(changes))
	}
	u.Check(t)
}

// Selected changes that do not lie in the store as they came are put in order.
func TestUndoOfChangesOutOfOrder(t *testing.T) {
	t.Parallel()
	u, before, _ := directly(t, plainWork, "UPDATE account SET balance = balance * 2")
	if err := u.Client.Sync(t.Context()); err != nil {
		t.Fatal(err)
	}
	// A row that is written again lies behind all others.
	u.Exec(t, "UPDATE audit.changes SET queued_at = queued_at WHERE primary_key = '350' AND sequence <= 700")
	apply(t, u.Client.RevertRequest("work"))
	u.want(t, "after the revert", before)
	u.Check(t)
}

func TestUndoStopsAtMaxMemory(t *testing.T) {
	t.Parallel()
	u := newUndo(t, "CREATE TABLE big (id int PRIMARY KEY, body text); CREATE TABLE bag (body text); INSERT INTO big SELECT i, repeat(md5(i::text), 4000) FROM generate_series(1, 40) i; INSERT INTO bag SELECT body FROM big")
	u.request(t, "update", "UPDATE big SET body = 'small'")
	u.request(t, "back", "UPDATE big SET body = repeat(md5(id::text), 4000)")
	u.request(t, "delete", "DELETE FROM bag")
	u.request(t, "live", "UPDATE big SET id = id, body = 'small'")
	u.request(t, "later", "UPDATE big SET body = repeat(md5('x' || id), 4000)")
	const size = 40 * 128_000
	for _, id := range []string{"update", "back", "delete"} {
		var large *audit.TooLargeError
		if _, err := u.Client.RevertRequest(id).MaxMemory(size).Plan(t.Context()); !errors.As(err, &large) || large.Max != size {
			t.Errorf("%s: %v", id, err)
		}
	}
	// What is there in the place of the small values is large.
	var large *audit.TooLargeError
	if _, err := u.Client.RevertRequest("back").OnConflict(audit.Overwrite).MaxMemory(2*size - size/2).Plan(t.Context()); !errors.As(err, &large) {
		t.Errorf("live values: %v", err)
	}
	if _, err := u.Client.RevertRequest("delete").MaxMemory(3 * size).Plan(context.WithoutCancel(t.Context())); err != nil {
		t.Error(err)
	}
	var wrong *audit.RevertError
	if _, err := u.Client.RevertRequest("delete").MaxMemory(0).Plan(t.Context()); !errors.As(err, &wrong) || wrong.Method != "MaxMemory" {
		t.Errorf("no memory at all: %v", err)
	}
}

// Values that are too large for one statement go into several.
func TestUndoOfLargeValues(t *testing.T) {
	t.Parallel()
	u := newUndo(t, "CREATE TABLE big (id int PRIMARY KEY, code int UNIQUE, body text); INSERT INTO big SELECT i, -i, md5(i::text) || repeat('x', 400000) FROM generate_series(1, 60) i")
	before := u.state(t)
	u.request(t, "work", "UPDATE big SET body = 'y' || body, code = 1000 - id WHERE id % 2 = 0", "DELETE FROM big WHERE id % 3 = 0", "INSERT INTO big SELECT i, -i, md5(i::text) || repeat('z', 400000) FROM generate_series(61, 90) i")
	statements := 0
	apply(t, u.Client.RevertRequest("work").Progress(func(p audit.Progress) {
		if p.Step == "compare" {
			statements++
		}
	}))
	u.want(t, "after the revert", before)
	if statements < 4 {
		t.Errorf("%d statements compared about 50 MB", statements)
	}
	u.Check(t)
}
