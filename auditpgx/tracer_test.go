package auditpgx_test

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/hindsight-go/audit/auditpgx"
	"github.com/hindsight-go/audit/audittest"
)

// fullTracer is a tracer of everything that happens on a connection.
type fullTracer struct{ tracer }

func (tr *fullTracer) note(format string, args ...any) {
	tr.notes = append(tr.notes, fmt.Sprintf(format, args...))
}

func (tr *fullTracer) TraceBatchStart(ctx context.Context, _ *pgx.Conn, data pgx.TraceBatchStartData) context.Context {
	tr.note("batch of %d", data.Batch.Len())
	return ctx
}

func (tr *fullTracer) TraceBatchQuery(_ context.Context, _ *pgx.Conn, data pgx.TraceBatchQueryData) {
	tr.note("batch query %s %v %v", data.SQL, data.CommandTag, data.Err)
}

func (tr *fullTracer) TraceBatchEnd(_ context.Context, _ *pgx.Conn, data pgx.TraceBatchEndData) {
	tr.note("batch end %v", data.Err)
}

func (tr *fullTracer) TraceCopyFromStart(ctx context.Context, _ *pgx.Conn, data pgx.TraceCopyFromStartData) context.Context {
	tr.note("copy to %s", data.TableName.Sanitize())
	return ctx
}

func (tr *fullTracer) TraceCopyFromEnd(_ context.Context, _ *pgx.Conn, data pgx.TraceCopyFromEndData) {
	tr.note("copy end %s %v", data.CommandTag, data.Err)
}

func (tr *fullTracer) TracePrepareStart(ctx context.Context, _ *pgx.Conn, data pgx.TracePrepareStartData) context.Context {
	tr.note("prepare %s", data.SQL)
	return ctx
}

func (tr *fullTracer) TracePrepareEnd(_ context.Context, _ *pgx.Conn, data pgx.TracePrepareEndData) {
	tr.note("prepare end, prepared before %v, %v", data.AlreadyPrepared, data.Err)
}

var stampText = regexp.MustCompile(`(?s)SELECT CASE WHEN pg_catalog\.pg_is_in_recovery\(\).* END`)

// TestTracersSeeWhatIsDocumented tells what a tracer of everything sees without
// a wrapper and with one.
func TestTracersSeeWhatIsDocumented(t *testing.T) {
	t.Parallel()
	db := audittest.NewDatabase(t)
	db.Exec(t, todoSQL)
	ctx := by(t.Context(), "ann")
	steps := []struct {
		name          string
		run           func(q auditpgx.Querier) error
		want, wrapped string // "" is the same
	}{
		{"the first time", func(q auditpgx.Querier) error {
			_, err := q.Exec(ctx, insert, "c", 1)
			return err
		}, `
			start INSERT 2
			prepare INSERT
			prepare end, prepared before false, <nil>
			end INSERT 0 1 <nil>`, ""},
		{"the second time", func(q auditpgx.Querier) error {
			_, err := q.Exec(ctx, insert, "c", 2)
			return err
		}, `
			start INSERT 2
			end INSERT 0 1 <nil>`, ""},
		{"a query", func(q auditpgx.Querier) error {
			var n int
			return q.QueryRow(ctx, insert+" RETURNING id", "c", 3).Scan(&n)
		}, `
			start INSERT RETURNING id 2
			prepare INSERT RETURNING id
			prepare end, prepared before false, <nil>
			end INSERT 0 1 <nil>`, ""},
		{"a transaction", func(q auditpgx.Querier) error {
			return pgx.BeginFunc(ctx, q, func(tx pgx.Tx) error {
				_, err := tx.Exec(ctx, insert, "c", 4)
				_, err2 := tx.Exec(by(ctx, "bob"), insert, "c", 5)
				return errors.Join(err, err2)
			})
		}, `
			start begin 0
			end BEGIN <nil>
			start INSERT 2
			end INSERT 0 1 <nil>
			start INSERT 2
			end INSERT 0 1 <nil>
			start commit 0
			end COMMIT <nil>`, ""},
		{"a failure", func(q auditpgx.Querier) error {
			_, err := q.Exec(ctx, insert, "c", 1)
			if code(err) != "23505" {
				return fmt.Errorf("the same again: %w", err)
			}
			return nil
		}, `
			start INSERT 2
			end  ERROR: duplicate key value violates unique constraint "todo_pkey" (SQLSTATE 23505)`, ""},
		{"the simple protocol", func(q auditpgx.Querier) error {
			_, err := q.Exec(ctx, "INSERT INTO todo VALUES ('c', 6, 'x')")
			return err
		}, `
			start INSERT INTO todo VALUES ('c', 6, 'x') 0
			end INSERT 0 1 <nil>`, ""},
		{"a batch", func(q auditpgx.Querier) error {
			var batch pgx.Batch
			batch.Queue("INSERT INTO todo VALUES ('c', 7)")
			batch.Queue("INSERT INTO todo VALUES ('c', 8)")
			return q.SendBatch(ctx, &batch).Close()
		}, `
			batch of 2
			batch query INSERT INTO todo VALUES ('c', 7) INSERT 0 1 <nil>
			batch query INSERT INTO todo VALUES ('c', 8) INSERT 0 1 <nil>
			batch end <nil>`, `
			batch of 3
			batch query STAMP SELECT 1 <nil>
			batch query INSERT INTO todo VALUES ('c', 7) INSERT 0 1 <nil>
			batch query INSERT INTO todo VALUES ('c', 8) INSERT 0 1 <nil>
			batch end <nil>`},
		{"a copy", func(q auditpgx.Querier) error {
			_, err := q.CopyFrom(ctx, pgx.Identifier{"todo"}, []string{"cell", "id"}, pgx.CopyFromRows([][]any{{"c", 9}}))
			return err
		}, `
			copy to "todo"
			prepare select "cell", "id" from "todo"
			prepare end, prepared before false, <nil>
			copy end COPY 1 <nil>`, `
			start BEGIN;STAMP 0
			end SELECT 1 <nil>
			copy to "todo"
			prepare select "cell", "id" from "todo"
			prepare end, prepared before false, <nil>
			copy end COPY 1 <nil>
			start COMMIT 0
			end COMMIT <nil>`},
		{"a copy in a transaction", func(q auditpgx.Querier) error {
			return pgx.BeginFunc(ctx, q, func(tx pgx.Tx) error {
				_, err := tx.CopyFrom(ctx, pgx.Identifier{"todo"}, []string{"cell", "id"}, pgx.CopyFromRows([][]any{{"c", 10}}))
				return err
			})
		}, `
			start begin 0
			end BEGIN <nil>
			copy to "todo"
			copy end COPY 1 <nil>
			start commit 0
			end COMMIT <nil>`, `
			start begin 0
			end BEGIN <nil>
			start STAMP; 0
			end SELECT 1 <nil>
			copy to "todo"
			copy end COPY 1 <nil>
			start commit 0
			end COMMIT <nil>`},
	}
	for _, wrap := range []bool{false, true} {
		db.Exec(t, "DELETE FROM todo")
		var tr fullTracer
		pool := newPool(t, db, func(c *pgxpool.Config) {
			c.MaxConns = 1
			c.ConnConfig.Tracer = &tr
		})
		var q auditpgx.Querier = pool
		if wrap {
			q = auditpgx.Wrap(pool)
		}
		for _, step := range steps {
			tr.notes = nil
			if err := step.run(q); err != nil {
				t.Fatalf("%s: %v", step.name, err)
			}
			want := step.want
			if wrap && step.wrapped != "" {
				want = step.wrapped
			}
			got := strings.ReplaceAll(strings.Join(tr.notes, "\n"), insert, "INSERT")
			got = strings.TrimSpace(stampText.ReplaceAllString(got, "STAMP"))
			if diff := cmp.Diff(strings.TrimSpace(strings.ReplaceAll(want, "\t", "")), strings.ReplaceAll(got, ";\n ", "; ")); diff != "" {
				t.Errorf("%s, wrapped %v: %s", step.name, wrap, diff)
			}
		}
	}
}

// TestNotificationsComeThrough listens on a connection that stamps, and notifies
// beside writes that are stamped.
func TestNotificationsComeThrough(t *testing.T) {
	t.Parallel()
	db := audittest.NewDatabase(t)
	db.Exec(t, todoSQL)
	ctx := by(t.Context(), "ann")
	for i, mode := range modes {
		q := auditpgx.Wrap(newPool(t, db, func(c *pgxpool.Config) { c.ConnConfig.DefaultQueryExecMode = mode }))
		conn, err := q.Acquire(ctx)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := conn.Exec(ctx, "LISTEN todo"); err != nil {
			t.Fatal(err)
		}
		err = pgx.BeginFunc(ctx, q, func(tx pgx.Tx) error {
			_, err := tx.Exec(ctx, insert, "c", 10*i)
			_, err2 := tx.Exec(ctx, "NOTIFY todo, 'in a transaction'")
			_, err3 := tx.Exec(ctx, "SELECT pg_notify('todo', $1)", "by a function")
			return errors.Join(err, err2, err3)
		})
		_, alone := q.Exec(ctx, "NOTIFY todo, 'alone'")
		if err := errors.Join(err, alone); err != nil {
			t.Fatal(err)
		}
		// What comes with the answer to a write is not lost either.
		if _, err := conn.Exec(ctx, insert, "c", 10*i+1); err != nil {
			t.Fatal(err)
		}
		var got []string
		for range 3 {
			n, err := conn.Conn().WaitForNotification(ctx)
			if err != nil {
				t.Fatalf("%s: after %q: %v", mode, got, err)
			}
			got = append(got, n.Payload)
		}
		if diff := cmp.Diff([]string{"in a transaction", "by a function", "alone"}, got); diff != "" {
			t.Errorf("%s: %s", mode, diff)
		}
		if _, err := conn.Exec(ctx, "UNLISTEN *"); err != nil {
			t.Error(err)
		}
		conn.Release()
	}
}
