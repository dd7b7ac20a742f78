package auditpgx_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5"

	"github.com/hindsight-go/audit/auditpgx"
	"github.com/hindsight-go/audit/audittest"
)

// deallocations take away what is prepared on a connection, seen by pgx or not.
var deallocations = []struct {
	name string
	run  func(ctx context.Context, conn *pgx.Conn) error
}{
	{"DISCARD ALL", execs("DISCARD ALL")},
	{"DEALLOCATE ALL", execs("DEALLOCATE ALL")},
	{"DEALLOCATE of the stamps", execs(`DO $$ DECLARE n text; BEGIN
		FOR n IN SELECT name FROM pg_prepared_statements WHERE name LIKE 'auditpgx_stamp%' LOOP EXECUTE 'DEALLOCATE ' || quote_ident(n); END LOOP; END $$`)},
	{"DeallocateAll", func(ctx context.Context, conn *pgx.Conn) error { return conn.DeallocateAll(ctx) }},
	{"the connection's own", func(ctx context.Context, conn *pgx.Conn) error {
		_, err := conn.PgConn().Exec(ctx, "DEALLOCATE ALL").ReadAll()
		return err
	}},
}

func execs(sql string) func(context.Context, *pgx.Conn) error {
	return func(ctx context.Context, conn *pgx.Conn) error {
		_, err := conn.Exec(ctx, sql)
		return err
	}
}

// TestDeallocated_WritesAreStamped takes the prepared stamps away, in the ways there
// are, and writes on, alone, in transactions and in batches.
func TestDeallocated_WritesAreStamped(t *testing.T) {
	t.Parallel()
	db := audittest.NewDatabase(t)
	db.Exec(t, todoSQL)
	ctx := by(t.Context(), "ann")
	shapes := []struct {
		name  string
		write func(conn *auditpgx.Conn, put func(auditpgx.Querier) error) error
	}{
		{"alone", func(conn *auditpgx.Conn, put func(auditpgx.Querier) error) error { return put(conn) }},
		{"in a transaction", func(conn *auditpgx.Conn, put func(auditpgx.Querier) error) error {
			return pgx.BeginTxFunc(ctx, conn, pgx.TxOptions{IsoLevel: pgx.Serializable}, func(tx pgx.Tx) error {
				if err := put(tx); err != nil {
					return err
				}
				var level string
				err := tx.QueryRow(ctx, "SELECT current_setting('transaction_isolation')", pgx.QueryExecModeSimpleProtocol).Scan(&level)
				if err == nil && level != "serializable" {
					err = errors.New("the transaction is " + level)
				}
				return err
			})
		}},
		{"behind a read", func(conn *auditpgx.Conn, put func(auditpgx.Querier) error) error {
			return pgx.BeginFunc(ctx, conn, func(tx pgx.Tx) error {
				var n int
				return errors.Join(tx.QueryRow(ctx, "SELECT 1", pgx.QueryExecModeSimpleProtocol).Scan(&n), put(tx))
			})
		}},
	}
	for _, mode := range modes {
		for _, d := range deallocations {
			for _, shape := range shapes {
				for _, way := range []string{"exec", "query", "batch"} {
					name := fmt.Sprint(mode, ", ", d.name, ", ", shape.name, ", ", way)
					raw := connectMode(t, db, mode, nil)
					conn := auditpgx.Config{Logger: slog.New(slog.DiscardHandler)}.WrapConn(raw)
					id := 0
					put := func(q auditpgx.Querier) error {
						id++
						// A statement that no cache knows, so that nothing but a stamp can be missing.
						sql := fmt.Sprintf("INSERT INTO todo VALUES ($1, $2) RETURNING %d", id)
						return writeIn(ctx, q, way, sql, name, id)
					}
					for range 3 {
						if err := shape.write(conn, put); err != nil {
							t.Fatalf("%s: %v", name, err)
						}
					}
					if err := d.run(ctx, raw); err != nil {
						t.Fatalf("%s: %v", name, err)
					}
					for range 2 {
						if err := shape.write(conn, put); err != nil {
							t.Errorf("%s: %v", name, err)
						}
					}
					if diff := cmp.Diff(auditpgx.Stats{Stamped: 5}, conn.Stats()); diff != "" {
						t.Errorf("%s: %s", name, diff)
					}
					_ = raw.Close(ctx)
				}
			}
		}
	}
}

func writeIn(ctx context.Context, q auditpgx.Querier, way, sql string, args ...any) error {
	switch way {
	case "exec":
		_, err := q.Exec(ctx, sql, args...)
		return err
	case "query":
		var n int
		return q.QueryRow(ctx, sql, args...).Scan(&n)
	}
	var b pgx.Batch
	b.Queue(fmt.Sprintf("SELECT '%s'", args[1:]))
	b.Queue(sql, args...)
	br := q.SendBatch(ctx, &b)
	_, err := br.Exec()
	tag, err2 := br.Exec()
	if err2 == nil && tag.RowsAffected() != 1 {
		err2 = errors.New("tag " + tag.String())
	}
	return errors.Join(err, err2, br.Close())
}

// TestDeallocated_StatementsFareAsBare compares the outcomes of a statement that was
// known before everything was deallocated.
func TestDeallocated_StatementsFareAsBare(t *testing.T) {
	t.Parallel()
	db := audittest.NewDatabase(t)
	db.Exec(t, todoSQL)
	ctx := by(t.Context(), "ann")
	for _, tracer := range []pgx.QueryTracer{nil, new(fullTracer)} {
		for _, mode := range modes {
			for _, d := range deallocations {
				for _, inTx := range []bool{false, true} {
					fares := func(wrap bool) (list []string) {
						raw := connectMode(t, db, mode, func(c *pgx.ConnConfig) { c.Tracer = tracer })
						defer func() { _ = raw.Close(ctx) }()
						var q auditpgx.Querier = raw
						if wrap {
							q = auditpgx.WrapConn(raw)
						}
						put := func(id int) {
							one := func(q auditpgx.Querier) error {
								_, err := q.Exec(ctx, insert, "c", id)
								return err
							}
							var err error
							if inTx {
								err = pgx.BeginFunc(ctx, q, func(tx pgx.Tx) error { return one(tx) })
							} else {
								err = one(q)
							}
							list = append(list, outcomeCode(err))
						}
						for i := range 6 {
							if i == 3 {
								if err := d.run(ctx, raw); err != nil {
									t.Fatal(err)
								}
							}
							put(i)
						}
						db.Exec(t, "TRUNCATE todo")
						return list
					}
					want, got := fares(false), fares(true)
					for i := range got {
						if tracer != nil && got[i] == "ok" {
							want[i] = "ok" // what has no name cannot be deallocated
						}
					}
					if diff := cmp.Diff(want, got); diff != "" {
						t.Errorf("%s, %s, tracer %v, transaction %v: %s", mode, d.name, tracer != nil, inTx, diff)
					}
				}
			}
		}
	}
}
