package auditsql_test

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5"

	"github.com/hindsight-go/audit"
	"github.com/hindsight-go/audit/auditsql"
	"github.com/hindsight-go/audit/audittest"
)

// serveMany runs requests of many users at once. Each writes rows whose task
// names the user, in one of several ways; some fail, some roll back, and some
// have no user.
//
// The shared statement is nil where statements cannot be prepared for long.
func serveMany(t *testing.T, db *sql.DB, shared *sql.Stmt, requests int) {
	t.Helper()
	var wg sync.WaitGroup
	work := make(chan int)
	for range 16 {
		wg.Go(func() {
			for i := range work {
				if err := serveOne(t.Context(), db, shared, i); err != nil {
					t.Errorf("request %d: %v", i, err)
				}
			}
		})
	}
	for i := range requests {
		work <- i
	}
	close(work)
	wg.Wait()
}

const putSQL = "INSERT INTO todo VALUES ($1, $2, $3)"

func serveOne(ctx context.Context, db *sql.DB, shared *sql.Stmt, i int) error {
	user := fmt.Sprintf("user %d", i)
	if i%7 == 0 {
		user = "" // psql and the like
	} else {
		ctx = audit.WithContext(ctx, audit.Context{UserID: user, RequestID: fmt.Sprint(i)})
	}
	put := func(q querier, n int) error {
		_, err := q.ExecContext(ctx, putSQL, fmt.Sprint(i), n, user)
		return err
	}
	r := rand.New(rand.NewPCG(1, uint64(i)))
	ways := 7
	if shared == nil {
		ways = 5
	}
	switch r.IntN(ways) {
	case 0:
		return put(db, 1)
	case 1:
		return theValue(db.QueryRowContext(ctx, putSQL+" RETURNING id", fmt.Sprint(i), 1, user), 1)
	case 2:
		return transact(ctx, db, func(tx *sql.Tx) error {
			return errors.Join(put(tx, 1), put(tx, 2),
				run(ctx, tx, "SAVEPOINT x"), isCode(put(tx, 1), "23505"), run(ctx, tx, "ROLLBACK TO SAVEPOINT x"),
				put(tx, 3))
		})
	case 3:
		return transact(ctx, db, func(tx *sql.Tx) error { return errors.Join(put(tx, 1), errRollback) })
	case 5:
		_, err := shared.ExecContext(ctx, fmt.Sprint(i), 1, user)
		return err
	case 6:
		return transact(ctx, db, func(tx *sql.Tx) error {
			inside := tx.StmtContext(ctx, shared)
			defer func() { _ = inside.Close() }()
			_, err := inside.ExecContext(ctx, fmt.Sprint(i), 1, user)
			return errors.Join(err, put(tx, 2))
		})
	default:
		rows, err := db.QueryContext(ctx, putSQL+" RETURNING id", fmt.Sprint(i), 1, user)
		return errors.Join(theRow(rows, err, 1), isCode(put(db, 1), "23505"), put(db, 2))
	}
}

// checkUsers looks whether every change is by the user that its row names.
func checkUsers(t *testing.T, a *audittest.Audited) {
	t.Helper()
	a.Sync(t)
	n := 0
	for change, err := range a.Client.Changes().OldestFirst().All(t.Context()) {
		if err != nil {
			t.Fatal(err)
		}
		var row struct{ Task string }
		if err := change.DecodeAfter(&row); err != nil {
			t.Fatal(err)
		}
		if row.Task != change.Context.User() || change.Stamped != (row.Task != "") {
			t.Errorf("the row of %q is by %q", row.Task, change.Context.User())
		}
		n++
	}
	if n < 1000 {
		t.Errorf("only %d changes", n)
	}
}

func TestContextsDoNotLeak(t *testing.T) {
	t.Parallel()
	for _, d := range []aDriver{ofPgx, other} {
		t.Run(d.name, func(t *testing.T) {
			t.Parallel()
			a := audittest.New(t, audit.Config{}, todoSQL)
			db, connector := d.open(t, parse(t, a.Database, nil))
			db.SetMaxOpenConns(4)
			db.SetMaxIdleConns(4)
			shared, err := db.PrepareContext(t.Context(), putSQL)
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = shared.Close() }()
			serveMany(t, db, shared, 3000)
			if stats := connector.Stats(); stats.Lost != 0 {
				t.Errorf("%+v", stats)
			}
			checkUsers(t, a)
		})
	}
}

// TestInjection stamps contexts that are made of SQL, and of what ends comments
// and literals.
func TestInjection(t *testing.T) {
	t.Parallel()
	a := audittest.New(t, audit.Config{}, todoSQL)
	nasty := []string{
		`'; DROP TABLE todo; --`, `*/ DROP TABLE todo; /*`, `\'; DROP TABLE todo; --`, `$1`, `$$; DROP TABLE todo; $$`, `$tag$`, `; COMMIT; DROP TABLE todo`,
		`"quoted"`, `back\slash`, `\\`, `\u0027`, `%27`, `E'\''`, "line\nbreak\r\ttab", "ünïcödé 漢字 \U0001F600", "nul\x00byte", "\xff", `{"json": "x"}`, `:name @name ?`,
	}
	var want []string
	id := 0
	for _, d := range drivers {
		db, _ := d.open(t, parse(t, a.Database, nil))
		for _, text := range nasty {
			ctx := audit.WithContext(t.Context(), audit.Context{UserID: text, Params: map[string]any{text: text}})
			for _, w := range writers {
				id++
				err := transact(ctx, db, func(tx *sql.Tx) error { return w.write(ctx, tx, "c", id) })
				id++
				if err := errors.Join(err, w.write(ctx, db, "c", id)); err != nil {
					t.Errorf("%s, %s, %q: %v", d.name, w.name, text, err)
				}
				text := strings.ReplaceAll(strings.ToValidUTF8(text, "\uFFFD"), "\x00", "\uFFFD")
				want = append(want, fmt.Sprintf("%d %s %s", id-1, text, text), fmt.Sprintf("%d %s %s", id, text, text))
			}
		}
	}
	a.Sync(t)
	var got []string
	for change, err := range a.Client.Changes().OldestFirst().All(t.Context()) {
		if err != nil {
			t.Fatal(err)
		}
		for name, value := range change.Context.Params {
			if name != value {
				t.Errorf("parameter %q: %q", name, value)
			}
			got = append(got, fmt.Sprintf("%s %s %s", change.KeyParts()[1], change.Context.User(), name))
		}
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

func TestFunctionsThatWrite(t *testing.T) {
	t.Parallel()
	a := audittest.New(t, audit.Config{}, todoSQL, "CREATE FUNCTION add(c text, i int) RETURNS int LANGUAGE sql AS $$ INSERT INTO todo VALUES (c, i) RETURNING i $$",
		"CREATE PROCEDURE put(c text, i int) LANGUAGE sql AS $$ INSERT INTO todo VALUES (c, i) $$")
	want := map[string][]string{}
	for _, d := range drivers {
		db, connector := d.open(t, parse(t, a.Database, nil))
		ctx := by(t.Context(), "ann")
		err := transact(ctx, db, func(tx *sql.Tx) error {
			_, err := tx.ExecContext(ctx, "CALL put('"+d.name+"', 4)")
			return err
		})
		for i, c := range []context.Context{ctx, auditsql.AsWrite(ctx), auditsql.AsWrite(t.Context())} {
			err = errors.Join(err, theValue(db.QueryRowContext(c, "SELECT add($1, $2)", d.name, i+1), i+1))
		}
		err = errors.Join(err, transact(auditsql.AsWrite(ctx), db, func(tx *sql.Tx) error {
			return theValue(tx.QueryRowContext(auditsql.AsWrite(t.Context()), "SELECT add($1, $2)", d.name, 6), 6)
		}), run(ctx, db, "CALL put('"+d.name+"', 5)"))
		if err != nil {
			t.Error(d.name, err)
		}
		want[d.name] = []string{"4 ann", "1", "2 ann", "3", "6 ann", "5"}
		if diff := cmp.Diff(auditsql.Stats{Stamped: 3, Lost: 1}, connector.Stats()); diff != "" {
			t.Error(d.name, diff)
		}
	}
	if diff := cmp.Diff(want, whoWrote(t, a)); diff != "" {
		t.Error(diff)
	}
}

func TestIdentityIsTheDatabasesOwn(t *testing.T) {
	t.Parallel()
	a := audittest.New(t, audit.Config{ContextPrefix: `mi'ne\`}, todoSQL)
	for _, d := range drivers {
		config := parse(t, a.Database, func(c *pgx.ConnConfig) { c.RuntimeParams["application_name"] = "till" })
		db := auditsql.Config{Identity: true, Prefix: `mi'ne\`}.OpenDB(d.connector(config))
		ctx := audit.WithContext(t.Context(), audit.Context{UserID: "ann", Extra: map[string]any{"db": map[string]any{"user": "forged"}}})
		err := errors.Join(
			writers[0].write(ctx, db, d.name, 1),
			transact(ctx, db, func(tx *sql.Tx) error { return run(ctx, tx, "UPDATE todo SET id = 2 WHERE cell = '"+d.name+"'") }),
			db.Close())
		if err != nil {
			t.Fatal(err)
		}
	}
	user := audittest.Value[string](t, a.Database, "SELECT session_user::text")
	a.Sync(t)
	n := 0
	for change, err := range a.Client.Changes().All(t.Context()) {
		if err != nil {
			t.Fatal(err)
		}
		n++
		identity, _ := change.Context.Extra["db"].(map[string]any)
		if change.Context.User() != "ann" || identity["user"] != user || identity["application"] != "till" {
			t.Errorf("%s", change.RawContext)
		}
	}
	if n != 2*len(drivers) {
		t.Errorf("%d changes", n)
	}
}

// TestStatementsOfTheDatabaseInTransactions uses statements that were prepared
// outside.
func TestStatementsOfTheDatabaseInTransactions(t *testing.T) {
	t.Parallel()
	a := audittest.New(t, audit.Config{}, todoSQL)
	want := map[string][]string{}
	for _, d := range drivers {
		db, _ := d.open(t, parse(t, a.Database, nil))
		stmt, err := db.PrepareContext(t.Context(), insert)
		if err != nil {
			t.Fatal(err)
		}
		err = transact(t.Context(), db, func(tx *sql.Tx) error {
			inside := tx.StmtContext(t.Context(), stmt)
			defer func() { _ = inside.Close() }()
			_, err := inside.ExecContext(by(t.Context(), "ann"), d.name, 1)
			_, again := inside.ExecContext(by(t.Context(), "ann"), d.name, 2)
			_, changed := inside.ExecContext(by(t.Context(), "bob"), d.name, 3)
			return errors.Join(err, again, changed)
		})
		_, after := stmt.ExecContext(by(t.Context(), "cem"), d.name, 4)
		if err := errors.Join(err, after, stmt.Close()); err != nil {
			t.Errorf("%s: %v", d.name, err)
		}
		want[d.name] = []string{"1 ann", "2 ann", "3 bob", "4 cem"}
	}
	if diff := cmp.Diff(want, whoWrote(t, a)); diff != "" {
		t.Error(diff)
	}
}
