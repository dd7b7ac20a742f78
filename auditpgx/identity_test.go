package auditpgx_test

import (
	"errors"
	"fmt"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/hindsight-go/audit"
	"github.com/hindsight-go/audit/auditpgx"
	"github.com/hindsight-go/audit/audittest"
)

// TestIdentityCannotBeForged claims to be somebody else in every form that a
// context can take.
func TestIdentityCannotBeForged(t *testing.T) {
	t.Parallel()
	a := audittest.New(t, audit.Config{}, todoSQL)
	forgeries := map[string]any{
		"object": map[string]any{"user": "forged", "application": "forged", "address": "203.0.113.1", "more": true},
		"text":   "forged", "number": 1, "list": []any{"forged"}, "null": nil, "escaped": `","db":{"user":"forged"},"x":"`,
	}
	claim := func(name string, forged any) audit.Context {
		return audit.Context{UserID: name, Params: map[string]any{"db": forged}, Extra: map[string]any{
			"db": forged, "DB": forged, `db":{"user":"forged"},"x`: forged, "d\u0062\x00": forged,
		}}
	}
	n := 0
	for _, mode := range modes {
		db := auditpgx.Config{Identity: true}.Wrap(newPool(t, a.Database, func(c *pgxpool.Config) {
			c.ConnConfig.DefaultQueryExecMode = mode
			c.ConnConfig.RuntimeParams["application_name"] = `till "7"`
		}))
		for name, forged := range forgeries {
			ctx := audit.WithContext(t.Context(), claim(name, forged))
			n += 3
			_, err := db.Exec(ctx, insert, mode.String()+name, 1)
			_, simple := db.Exec(ctx, fmt.Sprintf("INSERT INTO todo VALUES ('%s', 2)", mode.String()+name))
			inTx := pgx.BeginFunc(ctx, db, func(tx pgx.Tx) error {
				// Neither the role nor a guard changes who logged in.
				_, err := tx.Exec(ctx, "SET LOCAL ROLE pg_write_all_data")
				_, err2 := tx.Exec(ctx, insert, mode.String()+name, 3)
				return errors.Join(err, err2)
			})
			if err := errors.Join(err, simple, inTx); err != nil {
				t.Errorf("%s, %s: %v", mode, name, err)
			}
		}
		if stats := db.Stats(); stats.Lost != 0 {
			t.Errorf("%s: %+v", mode, stats)
		}
	}
	want := map[string]any{"user": audittest.Value[string](t, a.Database, "SELECT session_user::text"), "application": `till "7"`}
	a.Sync(t)
	for change, err := range a.Client.Changes().All(t.Context()) {
		if err != nil {
			t.Fatal(err)
		}
		n--
		// Over a socket of the machine there is no address.
		if diff := cmp.Diff(want, change.Context.Extra["db"]); diff != "" || change.Context.User() == "" {
			t.Errorf("%s: %s", change.RawContext, diff)
		}
	}
	if n != 0 {
		t.Errorf("%d changes are missing", n)
	}
}

// TestWritesWithoutContextAreFound finds what was written past the application
// among what it wrote.
func TestWritesWithoutContextAreFound(t *testing.T) {
	t.Parallel()
	a := audittest.New(t, audit.Config{}, todoSQL)
	db := auditpgx.Config{Identity: true}.Wrap(newPool(t, a.Database, nil))
	ann := by(t.Context(), "ann")
	_, err := db.Exec(ann, insert, "c", 1)
	a.Exec(t, "UPDATE todo SET task = 'by hand' WHERE id = 1") // psql
	_, without := db.Exec(t.Context(), insert, "c", 2)         // no context
	_, past := db.Pool().Exec(ann, insert, "c", 3)             // past the wrapper
	inTx := pgx.BeginFunc(ann, db, func(tx pgx.Tx) error {
		_, err := tx.Exec(t.Context(), insert, "c", 4) // takes the context of what follows
		_, err2 := tx.Exec(ann, insert, "c", 5)
		return errors.Join(err, err2)
	})
	if err := errors.Join(err, without, past, inTx); err != nil {
		t.Fatal(err)
	}
	a.Sync(t)
	var got []string
	for change, err := range a.Client.Changes().WithoutContext().OldestFirst().All(t.Context()) {
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, fmt.Sprint(change.Operation, " ", change.KeyParts()[1]))
	}
	if diff := cmp.Diff([]string{"UPDATE 1", "CREATE 2", "CREATE 3"}, got); diff != "" {
		t.Error(diff)
	}
}

// TestMixedFleet writes through pgx and as Bemi's clients do, in the same
// transactions and at once.
func TestMixedFleet(t *testing.T) {
	t.Parallel()
	a := audittest.New(t, audit.Config{}, todoSQL)
	pool := newPool(t, a.Database, nil)
	db := auditpgx.Wrap(pool)
	ann := by(t.Context(), "ann")
	const bemi = `SELECT pg_logical_emit_message(true, '_bemi', $1)`
	err := pgx.BeginFunc(ann, db, func(tx pgx.Tx) error {
		_, err := tx.Exec(ann, insert, "c", 1)
		_, err2 := tx.Exec(t.Context(), bemi, `{"user_id": "bob", "SQL": "INSERT ... LIKE '100%%' -- %27%28 %s %(name)s"}`)
		_, err3 := tx.Exec(t.Context(), insert, "c", 2)
		_, err4 := tx.Exec(ann, insert, "c", 3)
		err5 := audit.Stamp(by(t.Context(), "cid"), tx)
		_, err6 := tx.Exec(t.Context(), insert, "c", 4)
		_, err7 := tx.Exec(ann, insert, "c", 5)
		return errors.Join(err, err2, err3, err4, err5, err6, err7)
	})
	if err != nil {
		t.Fatal(err)
	}
	// Another program's transaction, open at the same time.
	one, err := db.Begin(ann)
	if err != nil {
		t.Fatal(err)
	}
	two, err := pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for i := range 3 {
		_, err := one.Exec(ann, insert, "c", 10+i)
		_, err2 := two.Exec(t.Context(), bemi, fmt.Sprintf(`{"user_id": "dan", "n": %d}`, i))
		_, err3 := two.Exec(t.Context(), insert, "c", 20+i)
		if err := errors.Join(err, err2, err3); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(one.Commit(t.Context()), two.Commit(t.Context())); err != nil {
		t.Fatal(err)
	}
	want := []string{"1 ann", "2 bob", "3 ann", "4 cid", "5 ann", "10 ann", "11 ann", "12 ann", "20 dan", "21 dan", "22 dan"}
	if diff := cmp.Diff(want, whoWrote(t, a)); diff != "" {
		t.Error(diff)
	}
	bobs, err := a.Client.Changes().ByUser("bob").List(t.Context())
	if err != nil || len(bobs) != 1 || bobs[0].Context.SQL != "INSERT ... LIKE '100%%' -- %27%28 %s %(name)s" {
		t.Errorf("%v, %v", bobs, err)
	}
	dans, err := a.Client.Changes().ByUser("dan").OldestFirst().List(t.Context())
	if err != nil || len(dans) != 3 || fmt.Sprint(dans[2].Context.Extra["n"]) != "2" {
		t.Errorf("%v, %v", dans, err)
	}
}

// A stamp means the server's types and operators, whatever stands in front of them on
// the application's search_path: what others make there is not run by it.
func TestStamp_SearchPathOfOthers(t *testing.T) {
	t.Parallel()
	a := audittest.New(t, audit.Config{}, todoSQL, `
		CREATE SCHEMA x;
		CREATE DOMAIN x.text AS pg_catalog.text CHECK (false);
		CREATE DOMAIN x.jsonb AS pg_catalog.jsonb CHECK (false);
		CREATE FUNCTION x.joined(pg_catalog.jsonb, pg_catalog.jsonb) RETURNS pg_catalog.jsonb LANGUAGE plpgsql AS 'BEGIN RAISE ''run as %'', current_user; END';
		CREATE OPERATOR x.|| (LEFTARG = pg_catalog.jsonb, RIGHTARG = pg_catalog.jsonb, FUNCTION = x.joined)`)
	wrote := 0
	for _, mode := range modes {
		for _, identity := range []bool{false, true} {
			q := auditpgx.Config{Identity: identity}.Wrap(newPool(t, a.Database, func(c *pgxpool.Config) {
				c.ConnConfig.DefaultQueryExecMode = mode
				c.ConnConfig.RuntimeParams["search_path"] = "x, pg_catalog, public"
			}))
			ctx := by(t.Context(), "ann")
			_, err := q.Exec(ctx, insert, fmt.Sprint(mode, identity), 1)
			inTx := pgx.BeginFunc(ctx, q, func(tx pgx.Tx) error {
				if err := audit.Stamp(ctx, tx); err != nil {
					return err
				}
				_, err := tx.Exec(ctx, insert, fmt.Sprint(mode, identity), 2)
				return err
			})
			if wrote += 2; errors.Join(err, inTx) != nil {
				t.Errorf("%s, identity %t: %v", mode, identity, errors.Join(err, inTx))
			}
		}
	}
	a.Sync(t)
	for change, err := range a.Client.Changes().All(t.Context()) {
		if err != nil {
			t.Fatal(err)
		}
		if wrote--; change.Context.UserID != "ann" {
			t.Errorf("unstamped: %s", change.After)
		}
	}
	if wrote != 0 {
		t.Errorf("%d changes are missing", wrote)
	}
}
