package auditpgx_test

import (
	"context"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/hindsight-go/audit"
	"github.com/hindsight-go/audit/auditpgx"
	"github.com/hindsight-go/audit/audittest"
)

// BenchmarkStamp compares writes with and without a stamp, on a server that
// forces its commits to disk, and on one that does not, where there is least for
// the stamp to hide behind.
func BenchmarkStamp(b *testing.B) {
	for _, fsync := range []string{"on", "off"} {
		b.Run("fsync "+fsync, func(b *testing.B) {
			server := audittest.NewServer(b, audittest.ServerOptions{Settings: map[string]string{"fsync": fsync}})
			benchmarkStamp(b, server.NewDatabase(b))
		})
	}
}

func benchmarkStamp(b *testing.B, db *audittest.Database) {
	b.Helper()
	db.Exec(b, "CREATE TABLE todo (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, task text)")
	pool := newPool(b, db, func(c *pgxpool.Config) { c.MaxConns = 4 })
	ctx := audit.WithContext(b.Context(), audit.Context{
		UserID: 187234, RequestID: "5f1c8a52-6c3b-4d53-9a53-9d3f5a1c2b3e", Endpoint: "POST /todo/{id}",
		TraceID: "4bf92f3577b34da6a3ce929d0e0e4736", SpanID: "00f067aa0ba902b7",
	})
	const sql = "INSERT INTO todo (task) VALUES ($1)"
	shapes := []struct {
		name string
		run  func(ctx context.Context, q auditpgx.Querier) error
	}{
		{"lone INSERT", func(ctx context.Context, q auditpgx.Querier) error {
			_, err := q.Exec(ctx, sql, "Sleep")
			return err
		}},
		{"transaction of 6", func(ctx context.Context, q auditpgx.Querier) error {
			return pgx.BeginFunc(ctx, q, func(tx pgx.Tx) error {
				for range 6 {
					if _, err := tx.Exec(ctx, sql, "Sleep"); err != nil {
						return err
					}
				}
				return nil
			})
		}},
		{"batch of 100", func(ctx context.Context, q auditpgx.Querier) error {
			var batch pgx.Batch
			for range 100 {
				batch.Queue(sql, "Sleep")
			}
			return q.SendBatch(ctx, &batch).Close()
		}},
		{"read", func(ctx context.Context, q auditpgx.Querier) error {
			_, err := q.Exec(ctx, "SELECT task FROM todo WHERE id = $1", 1)
			return err
		}},
	}
	queriers := []struct {
		name string
		q    auditpgx.Querier
	}{
		{"pgx", pool},
		{"stamped", auditpgx.Wrap(pool)},
		{"stamped with identity", auditpgx.Config{Identity: true}.Wrap(pool)},
	}
	for _, shape := range shapes {
		for _, with := range queriers {
			b.Run(shape.name+"/"+with.name, func(b *testing.B) {
				b.ReportAllocs()
				for b.Loop() {
					if err := shape.run(ctx, with.q); err != nil {
						b.Fatal(err)
					}
				}
			})
		}
	}
}
