//go:build unix

package audit_test

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5"

	"github.com/hindsight-go/audit"
	"github.com/hindsight-go/audit/audittest"
	"github.com/hindsight-go/audit/internal/faulttest"
)

// clientQuestion is one thing that a program asks a client.
type clientQuestion struct {
	name string
	ask  func(ctx context.Context, c *audit.Client) (any, error)
}

var forks atomic.Int64

// questions are of everything that a client answers, about table item with the row 1.
func questions(then time.Time) []clientQuestion {
	table := func(point func(c *audit.Client) audit.Point) func(context.Context, *audit.Client) (any, error) {
		return func(ctx context.Context, c *audit.Client) (any, error) {
			var rows []map[string]any
			err := point(c).Table("item").OrderBy("id").List(ctx, &rows)
			return rows, err
		}
	}
	return []clientQuestion{
		{"List", func(ctx context.Context, c *audit.Client) (any, error) {
			changes, err := c.Changes().List(ctx)
			return len(changes), err
		}},
		{"CountBy", func(ctx context.Context, c *audit.Client) (any, error) {
			groups, err := c.Changes().CountBy(ctx, audit.PerTable)
			return len(groups), err
		}},
		{"TransactionsPage", func(ctx context.Context, c *audit.Client) (any, error) {
			page, err := c.Changes().TransactionsPage(ctx, 10)
			return len(page.Transactions), err
		}},
		{"Status", func(ctx context.Context, c *audit.Client) (any, error) {
			status, err := c.Status(ctx)
			return status.Database, err
		}},
		{"Table as of", table(func(c *audit.Client) audit.Point { return c.AsOf(then) })},
		{"Table now", table(func(c *audit.Client) audit.Point { return c.Now() })},
		{"Load", func(ctx context.Context, c *audit.Client) (any, error) {
			return c.AsOf(then).Row(ctx, "item", 1)
		}},
		{"Load from table", func(ctx context.Context, c *audit.Client) (any, error) {
			row := map[string]any{}
			err := c.AsOf(then).Table("item").Load(ctx, &row, 1)
			return row, err
		}},
		{"View", func(ctx context.Context, c *audit.Client) (any, error) {
			var n, sum int
			err := c.AsOf(then).View(ctx, func(tx pgx.Tx) error {
				return tx.QueryRow(ctx, "SELECT count(*), sum(n) FROM item WHERE at > $1", time.Date(2024, 1, 1, 0, 0, 0, 0, time.UTC)).Scan(&n, &sum)
			})
			return [2]int{n, sum}, err
		}},
		{"History", func(ctx context.Context, c *audit.Client) (any, error) {
			versions, err := c.History("item", 1).List(ctx)
			return len(versions), err
		}},
		{"Blame", func(ctx context.Context, c *audit.Client) (any, error) {
			blames, err := c.Blame(ctx, "item", 1)
			return len(blames), err
		}},
		{"Diff", func(ctx context.Context, c *audit.Client) (any, error) {
			n := 0
			for _, err := range c.DiffBetween(c.AsOf(then), c.Now()).All(ctx) {
				if err != nil {
					return n, err
				}
				n++
			}
			return n, nil
		}},
		{"Into", func(ctx context.Context, c *audit.Client) (any, error) {
			result, err := c.AsOf(then).Into(fmt.Sprintf("fork_%d", forks.Add(1))).Run(ctx)
			if err != nil {
				return nil, err
			}
			return result.Rows, nil
		}},
		{"Baseline", func(ctx context.Context, c *audit.Client) (any, error) { return nil, c.Baseline(ctx, nil) }},
		{"Plan", func(ctx context.Context, c *audit.Client) (any, error) {
			plan, err := c.RevertRow(c.AsOf(then), "item", 1).Plan(ctx)
			if err != nil {
				return nil, err
			}
			return plan.String(), nil
		}},
		{"Sync", func(ctx context.Context, c *audit.Client) (any, error) { return nil, c.Sync(ctx) }},
		{"Token", func(ctx context.Context, c *audit.Client) (any, error) {
			token, err := c.Token(ctx)
			if err != nil {
				return nil, err
			}
			return nil, c.WaitFor(ctx, token)
		}},
	}
}

// A database whose defaults are other than those that we need.
const itemSQL = `
	CREATE TABLE item (id int PRIMARY KEY, n int, at timestamptz DEFAULT '2024-02-03 04:05:06+00', raw bytea DEFAULT '\x00ff', span interval DEFAULT '1 day 2 hours');
	INSERT INTO item VALUES (1, 10), (2, 20);
	DO $$ BEGIN
		EXECUTE format('ALTER DATABASE %I SET datestyle = ''German''', current_database());
		EXECUTE format('ALTER DATABASE %I SET timezone = ''Asia/Tokyo''', current_database());
		EXECUTE format('ALTER DATABASE %I SET bytea_output = ''escape''', current_database());
		EXECUTE format('ALTER DATABASE %I SET intervalstyle = ''sql_standard''', current_database());
		EXECUTE format('ALTER DATABASE %I SET default_transaction_isolation = ''serializable''', current_database());
	END $$`

// newItems is a history of items, and the moment before the last changes.
func newItems(t *testing.T, db *audittest.Database) (a *audittest.Audited, then time.Time) {
	t.Helper()
	db.Exec(t, itemSQL)
	a = audittest.Open(t, db, audit.Config{Tables: []string{"public.*"}})
	if err := a.Client.Start(context.WithoutCancel(t.Context())); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { a.Stop(t) })
	db.Exec(t, "UPDATE item SET n = n + 1")
	a.Sync(t)
	then = audittest.Value[time.Time](t, db, "SELECT max(committed_at) FROM audit.changes")
	db.Exec(t, "UPDATE item SET n = n + 100 WHERE id = 1; DELETE FROM item WHERE id = 2; INSERT INTO item VALUES (3, 30)")
	a.Sync(t)
	return a, then
}

func urlOf(config *pgx.ConnConfig) string {
	return fmt.Sprintf("postgres://%s@/%s?host=%s&port=%d", config.User, config.Database, config.Host, config.Port)
}

// Through a pooler, whatever it does with our settings, every question has the answer
// that it has on a direct connection, and others that share its sessions find theirs as
// they left them.
func TestPooler_EveryQuestionHasTheSameAnswer(t *testing.T) {
	t.Parallel()
	a, then := newItems(t, audittest.NewDatabase(t))
	pooler := faulttest.FindPgBouncer(t)
	const allOfThem = "search_path, row_security, intervalstyle, default_transaction_isolation, default_transaction_read_only, jit, xmloption, array_nulls, " +
		"quote_all_identifiers, statement_timeout, lock_timeout, idle_in_transaction_session_timeout, tcp_keepalives_idle, tcp_keepalives_interval, tcp_keepalives_count, tcp_user_timeout, extra_float_digits"
	for name, settings := range map[string][]string{
		// A question holds up to three sessions at a time.
		"refuses our settings": {"default_pool_size = 60"},
		"ignores our settings": {"default_pool_size = 60", "ignore_startup_parameters = " + allOfThem},
		"keeps a session":      {"default_pool_size = 60", "pool_mode = session"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			config := pooler.Start(t, a.Database, settings...)
			client := openClient(t, audit.Config{SourceURL: urlOf(config)})
			var refused *audit.PoolerError
			if err := client.Start(t.Context()); !errors.As(err, &refused) || refused.Field != "SourceURL" {
				t.Errorf("Start says %v", err)
			}
			other, err := pgx.ConnectConfig(t.Context(), config)
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = other.Close(context.WithoutCancel(t.Context())) }()
			var wg sync.WaitGroup
			for _, q := range questions(then) {
				if q.name == "Baseline" { // two at once would be one
					continue
				}
				wg.Go(func() {
					want, err := q.ask(t.Context(), a.Client)
					if err != nil {
						t.Errorf("%s: directly: %v", q.name, err)
					}
					got, err := q.ask(t.Context(), client)
					if diff := cmp.Diff(want, got); err != nil || diff != "" {
						t.Errorf("%s: %v %s", q.name, err, diff)
					}
				})
				var path, style, zone, security string
				err := other.QueryRow(t.Context(), "SELECT current_setting('search_path'), current_setting('intervalstyle'), current_setting('timezone'), current_setting('row_security')",
					pgx.QueryExecModeSimpleProtocol).Scan(&path, &style, &zone, &security)
				if err != nil || path != `"$user", public` || style != "sql_standard" || zone != "Asia/Tokyo" || security != "on" {
					t.Errorf("somebody else finds search_path %s, intervalstyle %s, timezone %s, row_security %s: %v", path, style, zone, security, err)
				}
			}
			wg.Wait()
		})
	}
}

// Start says so of a store behind a pooler, too.
func TestPooler_StartWithTheStoreBehindOne(t *testing.T) {
	t.Parallel()
	source, store := audittest.NewDatabase(t), audittest.NewDatabase(t)
	config := faulttest.FindPgBouncer(t).Start(t, store)
	client := openClient(t, audit.Config{SourceURL: source.URL(), StoreURL: urlOf(config)})
	var refused *audit.PoolerError
	if err := client.Start(t.Context()); !errors.As(err, &refused) || refused.Field != "StoreURL" {
		t.Errorf("Start says %v", err)
	}
}

// An error in a query alone, and a caller who leaves it early, leave no transaction open.
func TestPooler_FailedAndCancelledQueries(t *testing.T) {
	t.Parallel()
	a, then := newItems(t, audittest.NewDatabase(t))
	client := openClient(t, audit.Config{SourceURL: urlOf(faulttest.FindPgBouncer(t).Start(t, a.Database))})
	for range 20 {
		ctx, cancel := context.WithCancel(t.Context())
		for range client.Changes().All(ctx) {
			cancel()
			break
		}
		cancel()
		if _, err := client.AsOf(then).Row(t.Context(), "nothing", 1); err == nil {
			t.Error("a table that is not there has a row")
		}
		if _, err := client.Changes().List(t.Context()); err != nil {
			t.Error(err)
		}
	}
	faulttest.Poll(t, faulttest.Patience, "no transaction is open", func() error {
		n := audittest.Value[int](t, a.Database, "SELECT count(*)::int FROM pg_stat_activity WHERE datname = current_database() AND state LIKE 'idle in transaction%'")
		if n > 0 {
			return fmt.Errorf("%d are", n)
		}
		return nil
	})
}

// A revert through a pooler is a revert.
func TestPooler_Revert(t *testing.T) {
	t.Parallel()
	a, then := newItems(t, audittest.NewDatabase(t))
	client := openClient(t, audit.Config{SourceURL: urlOf(faulttest.FindPgBouncer(t).Start(t, a.Database))})
	result, err := client.RevertTables(client.AsOf(then), "item").Apply(t.Context())
	if err != nil || result.Updated != 1 || result.Inserted != 1 || result.Deleted != 1 {
		t.Fatalf("%+v %v", result, err)
	}
	if err := client.WaitFor(t.Context(), result.Token); err != nil {
		t.Error(err)
	}
	if got := audittest.Value[string](t, a.Database, "SELECT string_agg(id || '=' || n, ' ' ORDER BY id) FROM item"); got != "1=11 2=21" {
		t.Errorf("the rows are %s", got)
	}
}

// On a standby each question has an answer, or the error that says what it is.
func TestStandby_EveryQuestion(t *testing.T) {
	t.Parallel()
	db := audittest.NewServer(t, audittest.ServerOptions{}).NewDatabase(t)
	a, then := newItems(t, db)
	a.Stop(t)
	db.Exec(t, fmt.Sprintf("ALTER DATABASE %q RESET default_transaction_isolation", db.Name())) // no standby knows it
	client := openClient(t, audit.Config{SourceURL: urlOf(faulttest.StartStandby(t, db, "item"))})
	answered := map[string]bool{"List": true, "CountBy": true, "TransactionsPage": true, "Status": true}
	for _, q := range append(questions(then),
		clientQuestion{"Mark", func(ctx context.Context, c *audit.Client) (any, error) { return c.Mark(ctx, "here") }},
		clientQuestion{"Apply", func(ctx context.Context, c *audit.Client) (any, error) {
			return c.RevertTables(c.AsOf(then), "item").Apply(ctx)
		}},
	) {
		answer, err := q.ask(t.Context(), client)
		switch {
		case answered[q.name] && err != nil:
			t.Errorf("%s: %v", q.name, err)
		case err != nil && !errors.Is(err, audit.ErrStandby):
			t.Errorf("%s: not a typed error: %v", q.name, err)
		default:
			t.Logf("%s: %v %v", q.name, answer, err)
		}
	}
	var setup *audit.SetupError
	if err := client.Start(t.Context()); !errors.As(err, &setup) {
		t.Errorf("Start says %v", err)
	}
}
