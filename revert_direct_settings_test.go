package audit_test

import (
	"errors"
	"slices"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/hindsight-go/audit"
)

// A later write is found in conflict whatever the settings of the application say
// about how values are printed.
func TestDirectUndoComparesWhatIsThere(t *testing.T) {
	t.Parallel()
	const setup = `
		CREATE TYPE pair AS (a float8, b float4);
		CREATE TABLE reading (id int PRIMARY KEY, x float8, y float4, list float8[], duo pair, at timestamptz, span interval, raw bytea);
		INSERT INTO reading SELECT i, i, i, ARRAY[i], '(1,1)', '2024-01-01 00:00+00', interval '1 hour', '\x00' FROM generate_series(1, 3) i`
	for name, h := range map[string]struct{ work, later string }{
		"Float8":    {"UPDATE reading SET x = 0.3", "UPDATE reading SET x = 0.1::float8 + 0.2::float8 WHERE id = 2"},
		"Float4":    {"UPDATE reading SET y = 0.3", "UPDATE reading SET y = 0.3000001 WHERE id = 2"},
		"Array":     {"UPDATE reading SET list = '{0.3}'", "UPDATE reading SET list = ARRAY[0.1::float8 + 0.2::float8] WHERE id = 2"},
		"Composite": {"UPDATE reading SET duo = '(0.3,0.3)'", "UPDATE reading SET duo = '(0.30000000000000004,0.3)' WHERE id = 2"},
		"Instant":   {"UPDATE reading SET at = '2024-06-01 10:00+00'", "UPDATE reading SET at = '2024-06-01 04:15+00' WHERE id = 2"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			u := newUndo(t, setup)
			audit.DirectRows(u.Client, 1)
			u.request(t, "work", h.work)
			u.request(t, "later", h.later)
			now := u.state(t)
			conn := u.Connect(t)
			if _, err := conn.Exec(t.Context(), "SET extra_float_digits = -5; SET timezone = 'Asia/Kathmandu'; SET datestyle = 'SQL, DMY'"); err != nil {
				t.Fatal(err)
			}
			err := pgx.BeginFunc(t.Context(), conn, func(tx pgx.Tx) error {
				var blocked *audit.ConflictError
				_, err := u.Client.RevertRequest("work").ApplyTx(t.Context(), tx)
				if !errors.As(err, &blocked) || len(blocked.Conflicts) != 1 || !slices.Equal(blocked.Conflicts[0].Key, []string{"2"}) {
					t.Errorf("the revert gives %v", err)
				}
				return nil
			})
			if err != nil {
				t.Fatal(err)
			}
			u.want(t, "something was written", now)
		})
	}
}

// The settings of the database do not keep a revert from being direct.
func TestDirectUndoWhereValuesArePrintedOtherwise(t *testing.T) {
	t.Parallel()
	u := newUndo(t, `
		CREATE TABLE event (id int PRIMARY KEY, at timestamptz, day date, span interval, raw bytea, list timestamptz[]);
		INSERT INTO event SELECT i, '2024-01-01 00:00+00', '2024-01-02', interval '1 day 01:00', '\x00', '{2024-01-01 00:00+00}' FROM generate_series(1, 3) i`)
	u.Exec(t, `DO $$ BEGIN EXECUTE 'ALTER DATABASE ' || quote_ident(current_database()) || ' SET timezone = ''Asia/Kathmandu'''; END $$`)
	u.Exec(t, `DO $$ BEGIN EXECUTE 'ALTER DATABASE ' || quote_ident(current_database()) || ' SET datestyle = ''SQL, DMY'''; END $$`)
	u.Exec(t, `DO $$ BEGIN EXECUTE 'ALTER DATABASE ' || quote_ident(current_database()) || ' SET bytea_output = ''escape'''; END $$`)
	audit.DirectRows(u.Client, 1)
	before := u.state(t)
	u.request(t, "work", `UPDATE event SET at = at + interval '1 hour', day = day + 1, span = span * 2, raw = '\xff', list = list || at`)
	looked := false
	apply(t, u.Client.RevertRequest("work").Progress(func(p audit.Progress) { looked = looked || p.Step == "compare" }))
	if looked {
		t.Error("it looked first")
	}
	u.want(t, "after the revert", before)
	u.Check(t)
}

// Functions that constraints, generated columns and indexes call find what they name
// by the search_path of the application.
func TestDirectUndoFindsWhatFunctionsName(t *testing.T) {
	t.Parallel()
	u := newUndo(t, `
		CREATE FUNCTION twice(n int) RETURNS int LANGUAGE plpgsql IMMUTABLE AS 'BEGIN RETURN 2 * n; END';
		CREATE FUNCTION doubled(n int) RETURNS int LANGUAGE plpgsql IMMUTABLE AS 'BEGIN RETURN twice(n); END';
		CREATE TABLE item (id int PRIMARY KEY, n int CHECK (doubled(n) < 100), m int GENERATED ALWAYS AS (doubled(n)) STORED);
		CREATE INDEX ON item (doubled(n));
		INSERT INTO item SELECT i, i FROM generate_series(1, 5) i`)
	audit.DirectRows(u.Client, 1)
	before := u.state(t)
	u.request(t, "work", "UPDATE item SET n = n + 10")
	looked := false
	apply(t, u.Client.RevertRequest("work").Progress(func(p audit.Progress) { looked = looked || p.Step == "compare" }))
	if looked {
		t.Error("it looked first")
	}
	u.want(t, "after the revert", before)
	u.Check(t)
}

// Operators of the application's own do not decide what is equal.
func TestDirectUndoComparesWithTheServersOperators(t *testing.T) {
	t.Parallel()
	u := newUndo(t, "CREATE TABLE item (id int PRIMARY KEY, v text); INSERT INTO item VALUES (1, 'a'), (2, 'a')")
	audit.DirectRows(u.Client, 1)
	u.request(t, "work", "UPDATE item SET v = 'b'")
	u.request(t, "later", "UPDATE item SET v = 'c' WHERE id = 2")
	u.Exec(t, `
		CREATE SCHEMA lenient;
		CREATE FUNCTION lenient.always(text, text) RETURNS bool LANGUAGE sql IMMUTABLE AS 'SELECT true';
		CREATE OPERATOR lenient.= (LEFTARG = text, RIGHTARG = text, FUNCTION = lenient.always)`)
	now := u.state(t)
	err := pgx.BeginFunc(t.Context(), u.Connect(t), func(tx pgx.Tx) error {
		if _, err := tx.Exec(t.Context(), "SET LOCAL search_path = lenient, pg_catalog, public"); err != nil {
			return err
		}
		var blocked *audit.ConflictError
		if _, err := u.Client.RevertRequest("work").ApplyTx(t.Context(), tx); !errors.As(err, &blocked) {
			t.Errorf("the revert gives %v", err)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	u.want(t, "something was written", now)
}
