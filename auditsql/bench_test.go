package auditsql_test

import (
	"context"
	"database/sql"
	"testing"

	"github.com/hindsight-go/audit"
	"github.com/hindsight-go/audit/auditsql"
	"github.com/hindsight-go/audit/audittest"
)

// BenchmarkStamp compares writes with and without a stamp, on a server that
// forces its commits to disk.
func BenchmarkStamp(b *testing.B) {
	server := audittest.NewServer(b, audittest.ServerOptions{Settings: map[string]string{"fsync": "on"}})
	database := server.NewDatabase(b)
	database.Exec(b, "CREATE TABLE todo (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, task text)")
	ctx := audit.WithContext(b.Context(), audit.Context{
		UserID: 187234, RequestID: "5f1c8a52-6c3b-4d53-9a53-9d3f5a1c2b3e", Endpoint: "POST /todo/{id}",
		TraceID: "4bf92f3577b34da6a3ce929d0e0e4736", SpanID: "00f067aa0ba902b7",
	})
	const text = "INSERT INTO todo (task) VALUES ($1)"
	shapes := []struct {
		name string
		run  func(ctx context.Context, db *sql.DB) error
	}{
		{"lone INSERT", func(ctx context.Context, db *sql.DB) error {
			_, err := db.ExecContext(ctx, text, "Sleep")
			return err
		}},
		{"lone INSERT RETURNING", func(ctx context.Context, db *sql.DB) error {
			var id int64
			return db.QueryRowContext(ctx, text+" RETURNING id", "Sleep").Scan(&id)
		}},
		{"transaction of 6", func(ctx context.Context, db *sql.DB) error {
			return transact(ctx, db, func(tx *sql.Tx) error {
				for range 6 {
					if _, err := tx.ExecContext(ctx, text, "Sleep"); err != nil {
						return err
					}
				}
				return nil
			})
		}},
		{"read", func(ctx context.Context, db *sql.DB) error {
			_, err := db.ExecContext(ctx, "SELECT task FROM todo WHERE id = $1", 1)
			return err
		}},
	}
	for _, d := range []aDriver{ofPgx, other} {
		plain := sql.OpenDB(d.connector(parse(b, database, nil)))
		stamped := auditsql.OpenDB(d.connector(parse(b, database, nil)))
		for _, shape := range shapes {
			for name, db := range map[string]*sql.DB{"plain": plain, "stamped": stamped} {
				b.Run(d.name+"/"+shape.name+"/"+name, func(b *testing.B) {
					b.ReportAllocs()
					for b.Loop() {
						if err := shape.run(ctx, db); err != nil {
							b.Fatal(err)
						}
					}
				})
			}
		}
		_, _ = plain.Close(), stamped.Close()
	}
}
