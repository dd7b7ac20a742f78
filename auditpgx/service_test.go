package auditpgx_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/hindsight-go/audit"
	"github.com/hindsight-go/audit/auditpgx"
	"github.com/hindsight-go/audit/audittest"
	"github.com/hindsight-go/audit/internal/faulttest"
)

// serveMany runs requests of many users at once. Each writes rows whose task
// names the user, in one of several ways; some fail, some roll back, and some
// have no user.
func serveMany(t *testing.T, db *auditpgx.DB, requests int) {
	t.Helper()
	var wg sync.WaitGroup
	work := make(chan int)
	for range 16 {
		wg.Go(func() {
			for i := range work {
				if err := serveOne(t.Context(), db, i); err != nil {
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

func serveOne(ctx context.Context, db *auditpgx.DB, i int) error {
	user := fmt.Sprintf("user %d", i)
	if i%7 == 0 {
		user = "" // psql and the like
	} else {
		ctx = audit.WithContext(ctx, audit.Context{UserID: user, RequestID: fmt.Sprint(i)})
	}
	const sql = "INSERT INTO todo VALUES ($1, $2, $3)"
	put := func(q auditpgx.Querier, n int) error {
		_, err := q.Exec(ctx, sql, fmt.Sprint(i), n, user)
		return err
	}
	r := rand.New(rand.NewPCG(1, uint64(i)))
	switch r.IntN(6) {
	case 0:
		return put(db, 1)
	case 1:
		var n int
		return db.QueryRow(ctx, sql+" RETURNING id", fmt.Sprint(i), 1, user).Scan(&n)
	case 2:
		return pgx.BeginFunc(ctx, db, func(tx pgx.Tx) error {
			err := errors.Join(put(tx, 1), put(tx, 2))
			if failed := pgx.BeginFunc(ctx, tx, func(tx pgx.Tx) error { return put(tx, 1) }); code(failed) != "23505" {
				return fmt.Errorf("the same again: %w", failed)
			}
			return errors.Join(err, put(tx, 3))
		})
	case 3:
		err := pgx.BeginFunc(ctx, db, func(tx pgx.Tx) error { return errors.Join(put(tx, 1), errRollback) })
		return rolledBack(err)
	case 4:
		var batch pgx.Batch
		for n := range 3 {
			batch.Queue(sql, fmt.Sprint(i), n, user)
		}
		return db.SendBatch(ctx, &batch).Close()
	default:
		var batch pgx.Batch
		batch.Queue(sql, fmt.Sprint(i), 1, user)
		batch.Queue(sql, fmt.Sprint(i), 1, user)
		if err := db.SendBatch(ctx, &batch).Close(); code(err) != "23505" {
			return fmt.Errorf("the same twice: %w", err)
		}
		return put(db, 2)
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
	a := audittest.New(t, audit.Config{}, todoSQL)
	config := auditpgx.Config{}
	db := config.Wrap(newPool(t, a.Database, func(c *pgxpool.Config) { c.MaxConns = 4 }))
	serveMany(t, db, 3000)
	if stats := db.Stats(); stats.Lost != 0 {
		t.Errorf("%+v", stats)
	}
	checkUsers(t, a)
}

// TestThroughPgBouncer needs the program pgbouncer, which Debian and others have
// as a package of that name.
func TestThroughPgBouncer(t *testing.T) {
	t.Parallel()
	// The modes that go with a pooler that does not know prepared statements.
	poolerModes := []pgx.QueryExecMode{pgx.QueryExecModeCacheDescribe, pgx.QueryExecModeExec, pgx.QueryExecModeSimpleProtocol}
	pooler, settings := faulttest.FindPgBouncer(t), []string{"ignore_startup_parameters = extra_float_digits"}
	if pooler.KnowsPrepared {
		settings = append(settings, "max_prepared_statements = 100")
		poolerModes = append(poolerModes, pgx.QueryExecModeCacheStatement, pgx.QueryExecModeDescribeExec)
	}
	for _, mode := range poolerModes {
		t.Run(mode.String(), func(t *testing.T) {
			t.Parallel()
			a := audittest.New(t, audit.Config{}, todoSQL)
			config, err := pgxpool.ParseConfig(a.URL())
			if err != nil {
				t.Fatal(err)
			}
			config.ConnConfig, config.MaxConns = pooler.Start(t, a.Database, settings...), 12
			config.ConnConfig.DefaultQueryExecMode = mode
			pool, err := pgxpool.NewWithConfig(context.WithoutCancel(t.Context()), config)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(pool.Close)
			wrap := auditpgx.Config{}
			db := wrap.Wrap(pool)
			serveMany(t, db, 1000)
			if stats := db.Stats(); stats.Lost != 0 {
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
		`'; DROP TABLE todo; --`, `*/ DROP TABLE todo; /*`, `\'; DROP TABLE todo; --`, `$1`, `$$; DROP TABLE todo; $$`, `$tag$`,
		`"quoted"`, `back\slash`, `\\`, `\u0027`, `%27`, `E'\''`, "line\nbreak\r\ttab", "ünïcödé 漢字 \U0001F600", "nul\x00byte", "\xff", `{"json": "x"}`, `:name @name ?`,
	}
	var want []string
	id := 0
	for _, mode := range modes {
		db := auditpgx.Wrap(newPool(t, a.Database, func(c *pgxpool.Config) { c.ConnConfig.DefaultQueryExecMode = mode }))
		for _, text := range nasty {
			ctx := audit.WithContext(t.Context(), audit.Context{UserID: text, Params: map[string]any{text: text}})
			for _, w := range writers() {
				id++
				if err := w.write(ctx, db, "c", id); err != nil {
					t.Errorf("%s, %s, %q: %v", mode, w.name, text, err)
				}
				text := strings.ReplaceAll(strings.ToValidUTF8(text, "\uFFFD"), "\x00", "\uFFFD")
				want = append(want, fmt.Sprintf("%d %s %s", id, text, text))
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
		}
		got = append(got, fmt.Sprintf("%s %s %s", change.KeyParts()[1], change.Context.User(), slices.Collect(keys(change.Context.Params))[0]))
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

func keys(m map[string]any) func(func(string) bool) {
	return func(yield func(string) bool) {
		for key := range m {
			if !yield(key) {
				return
			}
		}
	}
}

func TestFunctionsThatWrite(t *testing.T) {
	t.Parallel()
	a := audittest.New(t, audit.Config{}, todoSQL, "CREATE FUNCTION add(i int) RETURNS void LANGUAGE sql AS $$ INSERT INTO todo VALUES ('c', i) $$",
		"CREATE PROCEDURE put(i int) LANGUAGE sql AS $$ INSERT INTO todo VALUES ('c', i) $$")
	config := auditpgx.Config{}
	db := config.Wrap(newPool(t, a.Database, nil))
	ctx := by(t.Context(), "ann")
	err := pgx.BeginFunc(ctx, db, func(tx pgx.Tx) error {
		_, err := tx.Exec(ctx, "CALL put(4)")
		return err
	})
	for i, c := range []context.Context{ctx, auditpgx.AsWrite(ctx), auditpgx.AsWrite(t.Context())} {
		_, execErr := db.Exec(c, "SELECT add($1)", i+1)
		err = errors.Join(err, execErr)
	}
	_, execErr := db.Exec(ctx, "CALL put(5)")
	if err = errors.Join(err, execErr); err != nil {
		t.Fatal(err)
	}
	a.Sync(t)
	var got []string
	for change, err := range a.Client.Changes().OldestFirst().All(t.Context()) {
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, strings.TrimSpace(change.KeyParts()[1]+" "+change.Context.User()))
	}
	if diff := cmp.Diff([]string{"4 ann", "1", "2 ann", "3", "5"}, got); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff(auditpgx.Stats{Stamped: 2, Lost: 1}, db.Stats()); diff != "" {
		t.Error(diff)
	}
}

func TestIdentityIsTheDatabasesOwn(t *testing.T) {
	t.Parallel()
	a := audittest.New(t, audit.Config{ContextPrefix: "mine"}, todoSQL)
	for _, mode := range modes {
		db := auditpgx.Config{Identity: true, Prefix: "mine"}.Wrap(newPool(t, a.Database, func(c *pgxpool.Config) {
			c.ConnConfig.DefaultQueryExecMode = mode
			c.ConnConfig.RuntimeParams["application_name"] = "till"
		}))
		ctx := audit.WithContext(t.Context(), audit.Context{UserID: "ann", Extra: map[string]any{"db": map[string]any{"user": "forged"}}})
		if _, err := db.Exec(ctx, insert, mode.String(), 1); err != nil {
			t.Fatal(err)
		}
		if _, err := db.Exec(ctx, fmt.Sprintf("UPDATE todo SET id = 2 WHERE cell = '%s'", mode)); err != nil {
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
	if n != 10 {
		t.Errorf("%d changes", n)
	}
}

// tracer notes what it is told.
type tracer struct{ notes []string }

func (tr *tracer) TraceQueryStart(ctx context.Context, _ *pgx.Conn, data pgx.TraceQueryStartData) context.Context {
	tr.notes = append(tr.notes, fmt.Sprintf("start %s %v", data.SQL, len(data.Args)))
	return ctx
}

func (tr *tracer) TraceQueryEnd(_ context.Context, _ *pgx.Conn, data pgx.TraceQueryEndData) {
	tr.notes = append(tr.notes, fmt.Sprintf("end %s %v", data.CommandTag, data.Err))
}

func TestTracersSeeTheStatement(t *testing.T) {
	t.Parallel()
	db := audittest.NewDatabase(t)
	db.Exec(t, todoSQL)
	for _, mode := range modes {
		var notes [2][]string
		for i := range notes {
			db.Exec(t, "DELETE FROM todo")
			var tr tracer
			pool := newPool(t, db, func(c *pgxpool.Config) {
				c.ConnConfig.DefaultQueryExecMode = mode
				c.ConnConfig.Tracer = &tr
			})
			var q auditpgx.Querier = pool
			if i == 1 {
				q = auditpgx.Wrap(pool)
			}
			for id, w := range writers() {
				if strings.Contains(w.name, "batch") || copies(w.name) || w.name == "exec without arguments" || w.name == "named arguments" ||
					mode == pgx.QueryExecModeSimpleProtocol || strings.HasSuffix(w.name, "in simple protocol") {
					continue
				}
				for range 2 {
					_ = w.write(by(t.Context(), "ann"), q, "c", id) // the second time it fails
				}
			}
			notes[i] = tr.notes
		}
		if diff := cmp.Diff(notes[0], notes[1]); diff != "" {
			t.Errorf("%s: %s", mode, diff)
		}
	}
}
