package auditpgx_test

import (
	"context"
	"errors"
	"fmt"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/hindsight-go/audit/auditpgx"
	"github.com/hindsight-go/audit/audittest"
)

// batches begin and end transactions by themselves.
var batches = [][]string{
	{"INSERT INTO todo VALUES ('c', 1)", "INSERT INTO todo VALUES ('c', 2)"},
	{"SELECT 1", "INSERT INTO todo VALUES ('c', 1) RETURNING id", "SELECT 2"},
	{"BEGIN", "INSERT INTO todo VALUES ('c', 1)", "COMMIT"},
	{"BEGIN ISOLATION LEVEL SERIALIZABLE", "SHOW transaction_isolation", "INSERT INTO todo VALUES ('c', 1)", "SHOW transaction_isolation", "COMMIT"},
	{"SET LOCAL work_mem = '1MB'", "INSERT INTO todo VALUES ('c', 1)", "SHOW work_mem"},
	{"BEGIN", "SET LOCAL work_mem = '1MB'", "INSERT INTO todo VALUES ('c', 1)", "SHOW work_mem", "COMMIT", "INSERT INTO todo VALUES ('c', 2)", "SHOW work_mem"},
	{"INSERT INTO todo VALUES ('c', 1)", "BEGIN", "INSERT INTO todo VALUES ('c', 2)", "ROLLBACK", "INSERT INTO todo VALUES ('c', 3)"},
	{"SELECT 1", "BEGIN", "SELECT 2", "INSERT INTO todo VALUES ('c', 1)", "SAVEPOINT s", "INSERT INTO todo VALUES ('c', 2)", "ROLLBACK TO s", "INSERT INTO todo VALUES ('c', 3)", "COMMIT"},
	{"CREATE TABLE made (id int)", "INSERT INTO todo VALUES ('c', 1)", "DROP TABLE made"},
	{"BEGIN", "CREATE TABLE made (id int)", "COMMIT", "INSERT INTO todo VALUES ('c', 1)", "DROP TABLE made"},
	{"BEGIN", "INSERT INTO todo VALUES ('c', 1)", "INSERT INTO todo VALUES ('c', 1)", "COMMIT"},
	{"BEGIN", "INSERT INTO todo VALUES ('c', 1)", "COMMIT AND CHAIN", "INSERT INTO todo VALUES ('c', 2)", "COMMIT"},
	{"DELETE FROM todo", "SELECT 1", "BEGIN", "INSERT INTO todo VALUES ('c', 1)", "COMMIT", "SELECT 2", "INSERT INTO todo VALUES ('c', 1)", "SELECT 3"},
	{"SHOW work_mem", "INSERT INTO todo VALUES ('c', 1)", "SELECT 1/0", "INSERT INTO todo VALUES ('c', 2)"},
}

// TestBatchesFareAsWithoutUs compares all results of batches with those of pgx.
func TestBatchesFareAsWithoutUs(t *testing.T) {
	t.Parallel()
	db := audittest.NewDatabase(t)
	db.Exec(t, todoSQL)
	for _, mode := range modes {
		config := auditpgx.Config{}
		q := config.Wrap(newPool(t, db, func(c *pgxpool.Config) {
			c.MaxConns = 1
			c.ConnConfig.DefaultQueryExecMode = mode
		}))
		compareBatches(t, db, q)
		if stats := q.Stats(); stats.Lost != 0 || stats.Stamped == 0 {
			t.Errorf("%s: %+v", mode, stats)
		}
		q.Close()
	}
}

// compareBatches sends the batches through q and past it, alone and in a
// transaction that has begun to work.
func compareBatches(t *testing.T, db *audittest.Database, q *auditpgx.DB) {
	t.Helper()
	ctx := by(t.Context(), "ann")
	for _, statements := range batches {
		for _, begin := range []bool{false, true} {
			for _, read := range []reading{oneByOne, byCallbacks, byFailingCallbacks, closing} {
				run := func(on auditpgx.Querier) (seen []string) {
					db.Exec(t, "DELETE FROM todo")
					if begin {
						tx, err := on.Begin(ctx)
						if err != nil {
							t.Fatal(err)
						}
						if _, err := tx.Exec(ctx, "SELECT 1"); err != nil {
							t.Fatal(err)
						}
						seen = sendAll(ctx, tx, statements, read)
						if err := tx.Commit(ctx); err != nil && !errors.Is(err, pgx.ErrTxCommitRollback) {
							seen = append(seen, err.Error())
						}
					} else {
						seen = sendAll(ctx, on, statements, read)
					}
					return append(seen, audittest.Value[string](t, db, "SELECT coalesce(string_agg(id::text, ' ' ORDER BY id), '') FROM todo"))
				}
				if diff := cmp.Diff(run(q.Pool()), run(q)); diff != "" {
					t.Errorf("%s, %q, in a transaction %v, %s: %s", q.Pool().Config().ConnConfig.DefaultQueryExecMode, statements, begin, read, diff)
				}
			}
		}
	}
}

// reading is how the results of a batch are read.
type reading string

const (
	oneByOne           reading = "one by one"
	byCallbacks        reading = "by callbacks"
	byFailingCallbacks reading = "by callbacks of which one fails"
	closing            reading = "by Close"
)

var errCallback = errors.New("a callback failed")

// sendAll sends a batch and returns everything that there is to see of it.
func sendAll(ctx context.Context, q auditpgx.Querier, statements []string, read reading) (seen []string) {
	note := func(row []any, tag pgconn.CommandTag, err error) error {
		seen = append(seen, fmt.Sprint(row, tag, code(err)))
		return err
	}
	rowsOf := func(rows pgx.Rows) error {
		var last []any
		for rows.Next() {
			last, _ = rows.Values()
		}
		rows.Close()
		err := note(last, rows.CommandTag(), rows.Err())
		if err == nil && read == byFailingCallbacks && len(seen) == len(statements)/2 {
			return errCallback
		}
		return err
	}
	var batch pgx.Batch
	for _, sql := range statements {
		queued := batch.Queue(sql)
		if read == byCallbacks || read == byFailingCallbacks {
			queued.Query(rowsOf)
		}
	}
	br := q.SendBatch(ctx, &batch)
	if read == oneByOne {
		for range statements {
			rows, _ := br.Query()
			if rowsOf(rows) != nil {
				break
			}
		}
	}
	for range 2 { // Close is safe to call again
		err := br.Close()
		seen = append(seen, code(err), fmt.Sprint(errors.Is(err, errCallback)))
	}
	return seen
}
