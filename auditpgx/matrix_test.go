package auditpgx_test

import (
	"context"
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

const todoSQL = `CREATE TABLE todo (cell text, id int, task text, PRIMARY KEY (cell, id))`

func by(ctx context.Context, user string) context.Context {
	return audit.WithContext(ctx, audit.Context{UserID: user})
}

// newPool connects a pool whose connections run statements in a mode.
func newPool(t testing.TB, db *audittest.Database, change func(*pgxpool.Config)) *pgxpool.Pool {
	t.Helper()
	config, err := pgxpool.ParseConfig(db.URL())
	if err != nil {
		t.Fatal(err)
	}
	if change != nil {
		change(config)
	}
	pool, err := pgxpool.NewWithConfig(context.WithoutCancel(t.Context()), config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(pool.Close)
	return pool
}

var modes = []pgx.QueryExecMode{
	pgx.QueryExecModeCacheStatement, pgx.QueryExecModeCacheDescribe, pgx.QueryExecModeDescribeExec,
	pgx.QueryExecModeExec, pgx.QueryExecModeSimpleProtocol,
}

// writer writes one row in one of the ways that pgx has.
type writer struct {
	name  string
	write func(ctx context.Context, q auditpgx.Querier, cell string, id int) error
}

const insert = "INSERT INTO todo VALUES ($1, $2, 'x')"

func writers() []writer {
	list := []writer{
		{"exec", func(ctx context.Context, q auditpgx.Querier, cell string, id int) error {
			tag, err := q.Exec(ctx, insert, cell, id)
			if err == nil && (tag.RowsAffected() != 1 || !tag.Insert()) {
				return fmt.Errorf("command tag %s", tag)
			}
			return err
		}},
		{"exec without arguments", func(ctx context.Context, q auditpgx.Querier, cell string, id int) error {
			tag, err := q.Exec(ctx, fmt.Sprintf("INSERT INTO todo VALUES ('%s', %d, 'x')", cell, id))
			if err == nil && tag.RowsAffected() != 1 {
				return fmt.Errorf("command tag %s", tag)
			}
			return err
		}},
		{"named arguments", func(ctx context.Context, q auditpgx.Querier, cell string, id int) error {
			_, err := q.Exec(ctx, "INSERT INTO todo VALUES (@cell, @id, 'x')", pgx.NamedArgs{"cell": cell, "id": id})
			return err
		}},
		{"query row", func(ctx context.Context, q auditpgx.Querier, cell string, id int) error {
			var got int
			err := q.QueryRow(ctx, insert+" RETURNING id", cell, id).Scan(&got)
			if err == nil && got != id {
				return fmt.Errorf("got %d", got)
			}
			return err
		}},
		{"query", func(ctx context.Context, q auditpgx.Querier, cell string, id int) error {
			rows, _ := q.Query(ctx, insert+" RETURNING id", cell, id)
			got, err := pgx.CollectExactlyOneRow(rows, pgx.RowTo[int])
			if err == nil && (got != id || rows.CommandTag().RowsAffected() != 1 || rows.FieldDescriptions()[0].Name != "id") {
				return fmt.Errorf("got %d, %s", got, rows.CommandTag())
			}
			return err
		}},
		{"query closed early", func(ctx context.Context, q auditpgx.Querier, cell string, id int) error {
			rows, err := q.Query(ctx, insert+" RETURNING id", cell, id)
			if err != nil {
				return err
			}
			rows.Close()
			return rows.Err()
		}},
		{"batch", func(ctx context.Context, q auditpgx.Querier, cell string, id int) error {
			var batch pgx.Batch
			batch.Queue("SELECT 7")
			batch.Queue(insert, cell, id)
			batch.Queue("SELECT 8")
			br := q.SendBatch(ctx, &batch)
			var first, last int
			err := br.QueryRow().Scan(&first)
			if err == nil {
				_, err = br.Exec()
			}
			if err == nil {
				err = br.QueryRow().Scan(&last)
			}
			if err == nil && (first != 7 || last != 8) {
				err = fmt.Errorf("results %d and %d", first, last)
			}
			return errors.Join(err, br.Close())
		}},
		{"batch with callbacks", func(ctx context.Context, q auditpgx.Querier, cell string, id int) error {
			var batch pgx.Batch
			var got int
			batch.Queue(insert+" RETURNING id", cell, id).QueryRow(func(row pgx.Row) error { return row.Scan(&got) })
			err := q.SendBatch(ctx, &batch).Close()
			if err == nil && got != id {
				err = fmt.Errorf("got %d", got)
			}
			return err
		}},
		{"copy", func(ctx context.Context, q auditpgx.Querier, cell string, id int) error {
			n, err := q.CopyFrom(ctx, pgx.Identifier{"todo"}, []string{"cell", "id"}, pgx.CopyFromRows([][]any{{cell, id}}))
			if err == nil && n != 1 {
				return fmt.Errorf("copied %d", n)
			}
			return err
		}},
	}
	list = append(list, generatedWriters()...)
	for _, mode := range modes {
		list = append(list,
			writer{"exec in " + mode.String(), func(ctx context.Context, q auditpgx.Querier, cell string, id int) error {
				_, err := q.Exec(ctx, insert, mode, cell, id)
				return err
			}},
			writer{"query in " + mode.String(), func(ctx context.Context, q auditpgx.Querier, cell string, id int) error {
				var got int
				err := q.QueryRow(ctx, insert+" RETURNING id", mode, cell, id).Scan(&got)
				if err == nil && got != id {
					return fmt.Errorf("got %d", got)
				}
				return err
			}})
	}
	return append(list, writer{"query with formats", func(ctx context.Context, q auditpgx.Querier, cell string, id int) error {
		rows, err := q.Query(ctx, insert+" RETURNING id", pgx.QueryResultFormats{pgx.TextFormatCode}, cell, id)
		if err != nil {
			return err
		}
		defer rows.Close()
		for rows.Next() {
			if text := string(rows.RawValues()[0]); text != fmt.Sprint(id) && rows.FieldDescriptions()[0].Format == pgx.TextFormatCode {
				return fmt.Errorf("got %q", text)
			}
		}
		return rows.Err()
	}})
}

// step is what a scenario does.
type scenario struct {
	name string
	run  func(ctx context.Context, q auditpgx.Querier, write func(ctx context.Context, q auditpgx.Querier, id int) error) error
	want []string // the rows and who made them
}

var errRollback = errors.New("roll back")

func rolledBack(err error) error {
	if errors.Is(err, errRollback) {
		return nil
	}
	return errors.Join(errors.New("not rolled back"), err)
}

func scenarios() []scenario {
	type writing = func(ctx context.Context, q auditpgx.Querier, id int) error
	// in runs the writes id by id; the user is by the letter.
	in := func(ctx context.Context, q auditpgx.Querier, write writing, users string, from int) error {
		for i, user := range users {
			c := ctx
			if user != '-' {
				c = by(ctx, string(user))
			}
			if err := write(c, q, from+i); err != nil {
				return err
			}
		}
		return nil
	}
	return []scenario{
		{"autocommit", func(ctx context.Context, q auditpgx.Querier, write writing) error {
			return in(ctx, q, write, "ab-a", 1)
		}, []string{"1 a", "2 b", "3", "4 a"}},
		{"transaction", func(ctx context.Context, q auditpgx.Querier, write writing) error {
			return pgx.BeginFunc(ctx, q, func(tx pgx.Tx) error { return in(ctx, tx, write, "aaa", 1) })
		}, []string{"1 a", "2 a", "3 a"}},
		{"without context", func(ctx context.Context, q auditpgx.Querier, write writing) error {
			return pgx.BeginFunc(ctx, q, func(tx pgx.Tx) error { return in(ctx, tx, write, "--", 1) })
		}, []string{"1", "2"}},
		{"context changed in mid-transaction", func(ctx context.Context, q auditpgx.Querier, write writing) error {
			return pgx.BeginFunc(ctx, q, func(tx pgx.Tx) error { return in(ctx, tx, write, "abbac-", 1) })
		}, []string{"1 a", "2 b", "3 b", "4 a", "5 c", "6 c"}},
		{"rolled back", func(ctx context.Context, q auditpgx.Querier, write writing) error {
			return errors.Join(
				rolledBack(pgx.BeginFunc(ctx, q, func(tx pgx.Tx) error { return errors.Join(in(ctx, tx, write, "aa", 1), errRollback) })),
				in(ctx, q, write, "b-", 3))
		}, []string{"3 b", "4"}},
		{"nested", func(ctx context.Context, q auditpgx.Querier, write writing) error {
			return pgx.BeginFunc(ctx, q, func(tx pgx.Tx) error {
				return errors.Join(
					pgx.BeginFunc(ctx, tx, func(tx pgx.Tx) error { return in(ctx, tx, write, "a", 1) }),
					in(ctx, tx, write, "a", 2),
					pgx.BeginFunc(ctx, tx, func(tx pgx.Tx) error { return in(ctx, tx, write, "b", 3) }),
					in(ctx, tx, write, "b", 4))
			})
		}, []string{"1 a", "2 a", "3 b", "4 b"}},
		{"rolled-back savepoint took the stamp", func(ctx context.Context, q auditpgx.Querier, write writing) error {
			return pgx.BeginFunc(ctx, q, func(tx pgx.Tx) error {
				return errors.Join(
					rolledBack(pgx.BeginFunc(ctx, tx, func(tx pgx.Tx) error { return errors.Join(in(ctx, tx, write, "aa", 1), errRollback) })),
					in(ctx, tx, write, "a", 3))
			})
		}, []string{"3 a"}},
		{"rolled-back savepoint took a change of context", func(ctx context.Context, q auditpgx.Querier, write writing) error {
			return pgx.BeginFunc(ctx, q, func(tx pgx.Tx) error {
				return errors.Join(
					in(ctx, tx, write, "a", 1),
					rolledBack(pgx.BeginFunc(ctx, tx, func(tx pgx.Tx) error {
						return errors.Join(
							pgx.BeginFunc(ctx, tx, func(tx pgx.Tx) error { return in(ctx, tx, write, "b", 2) }),
							in(ctx, tx, write, "b", 3), errRollback)
					})),
					in(ctx, tx, write, "ab", 4))
			})
		}, []string{"1 a", "4 a", "5 b"}},
		{"statement failed in a savepoint", func(ctx context.Context, q auditpgx.Querier, write writing) error {
			return pgx.BeginFunc(ctx, q, func(tx pgx.Tx) error {
				err := pgx.BeginFunc(ctx, tx, func(tx pgx.Tx) error { return in(ctx, tx, write, "b", 1) })
				if err != nil {
					return err
				}
				err = pgx.BeginFunc(ctx, tx, func(tx pgx.Tx) error { return in(ctx, tx, write, "a", 1) })
				if code(err) != "23505" {
					return fmt.Errorf("the second of the same: %w", err)
				}
				return in(ctx, tx, write, "a", 2)
			})
		}, []string{"1 b", "2 a"}},
		{"statement failed alone", func(ctx context.Context, q auditpgx.Querier, write writing) error {
			err := in(ctx, q, write, "a", 1)
			if failed := in(ctx, q, write, "b", 1); code(failed) != "23505" {
				return fmt.Errorf("the second of the same: %w", failed)
			}
			return errors.Join(err, in(ctx, q, write, "-b", 2))
		}, []string{"1 a", "2", "3 b"}},
	}
}

// wrapsTx is a DB whose transactions are begun by pgx and wrapped then.
type wrapsTx struct {
	*auditpgx.DB
	config auditpgx.Config
}

func (w wrapsTx) Begin(ctx context.Context) (pgx.Tx, error) {
	tx, err := w.Pool().Begin(ctx)
	if err != nil {
		return nil, err
	}
	return w.config.WrapTx(tx), nil
}

// TestEveryWayOfWriting runs every way of writing in every mode of execution, on
// a pool, a connection and a transaction, through every course that a
// transaction can take, and looks who made the rows.
func TestEveryWayOfWriting(t *testing.T) {
	t.Parallel()
	a := audittest.New(t, audit.Config{}, todoSQL)
	want := map[string][]string{}
	for _, mode := range modes {
		pool := newPool(t, a.Database, func(c *pgxpool.Config) { c.ConnConfig.DefaultQueryExecMode = mode })
		config := auditpgx.Config{}
		db := config.Wrap(pool)
		conn, err := db.Acquire(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(conn.Release)
		raw, err := pgx.ConnectConfig(t.Context(), pool.Config().ConnConfig)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = raw.Close(context.WithoutCancel(t.Context())) })
		surfaces := map[string]auditpgx.Querier{"pool": db, "conn": conn, "wrapped conn": config.WrapConn(raw), "wrapped tx": wrapsTx{db, config}}
		for _, w := range writers() {
			for _, s := range scenarios() {
				for surface, q := range surfaces {
					cell := fmt.Sprintf("%s, %s, %s, %s", mode, surface, w.name, s.name)
					write := func(ctx context.Context, q auditpgx.Querier, id int) error { return w.write(ctx, q, cell, id) }
					if err := s.run(t.Context(), q, write); err != nil {
						t.Errorf("%s: %v", cell, err)
					}
					want[cell] = s.want
				}
			}
		}
		if stats := db.Stats(); stats.Lost != 0 || stats.Cut != 0 {
			t.Errorf("%s: %+v", mode, stats)
		}
	}
	a.Sync(t)
	got := map[string][]string{}
	for change, err := range a.Client.Changes().OldestFirst().All(t.Context()) {
		if err != nil {
			t.Fatal(err)
		}
		key := change.KeyParts()
		text := key[1]
		if change.Stamped {
			text += " " + change.Context.User()
		}
		got[key[0]] = append(got[key[0]], text)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}
