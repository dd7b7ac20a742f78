package auditpgx_test

import (
	"context"
	"fmt"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/hindsight-go/audit"
	"github.com/hindsight-go/audit/auditpgx"
	"github.com/hindsight-go/audit/audittest"
)

// DBTX is what sqlc generates, with everything it can ask for.
type DBTX interface {
	Exec(context.Context, string, ...interface{}) (pgconn.CommandTag, error)
	Query(context.Context, string, ...interface{}) (pgx.Rows, error)
	QueryRow(context.Context, string, ...interface{}) pgx.Row
	CopyFrom(ctx context.Context, tableName pgx.Identifier, columnNames []string, rowSrc pgx.CopyFromSource) (int64, error)
	SendBatch(context.Context, *pgx.Batch) pgx.BatchResults
}

var (
	_ DBTX   = (*auditpgx.DB)(nil)
	_ DBTX   = (*auditpgx.Conn)(nil)
	_ DBTX   = (*auditpgx.Tx)(nil)
	_ pgx.Tx = (*auditpgx.Tx)(nil)
)

func ExampleWrap() {
	ctx := context.Background()
	database, err := audittest.StartDatabase(ctx)
	if err != nil {
		fmt.Println(err)
		return
	}
	defer func() { _ = database.Close() }()
	pool, err := pgxpool.New(ctx, database.URL())
	if err != nil {
		fmt.Println(err)
		return
	}
	defer pool.Close()

	config := auditpgx.Config{} // auditpgx.Wrap(pool) counts with all others
	db := config.Wrap(pool)
	_, err = db.Exec(ctx, "CREATE TABLE todo (id int PRIMARY KEY, task text)")
	if err != nil {
		fmt.Println(err)
		return
	}

	ctx = audit.WithContext(ctx, audit.Context{UserID: 187234, Endpoint: "POST /todo"})
	tag, err := db.Exec(ctx, "INSERT INTO todo VALUES ($1, $2)", 26, "Sleep")
	fmt.Println(tag, err)

	err = pgx.BeginFunc(ctx, db, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, "UPDATE todo SET task = $1", "Walk the dog"); err != nil {
			return err
		}
		_, err := tx.Exec(ctx, "DELETE FROM todo WHERE id = $1", 27)
		return err
	})
	fmt.Println(err, db.Stats().Stamped, "stamps")
	// Output:
	// INSERT 0 1 <nil>
	// <nil> 2 stamps
}
