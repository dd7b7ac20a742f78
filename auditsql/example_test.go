package auditsql_test

import (
	"context"
	"database/sql"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/stdlib"

	"github.com/hindsight-go/audit"
	"github.com/hindsight-go/audit/auditpgx"
	"github.com/hindsight-go/audit/auditsql"
	"github.com/hindsight-go/audit/audittest"
)

func ExampleOpen() {
	ctx := context.Background()
	database, err := audittest.StartDatabase(ctx)
	if err != nil {
		fmt.Println(err)
		return
	}
	defer func() { _ = database.Close() }()

	db, err := auditsql.Open("pgx", database.URL())
	if err != nil {
		fmt.Println(err)
		return
	}
	defer func() { _ = db.Close() }()
	if _, err := db.ExecContext(ctx, "CREATE TABLE todo (id int PRIMARY KEY, task text)"); err != nil {
		fmt.Println(err)
		return
	}

	ctx = audit.WithContext(ctx, audit.Context{UserID: 187234, Endpoint: "POST /todo"})
	var id int
	err = db.QueryRowContext(ctx, "INSERT INTO todo VALUES ($1, $2) RETURNING id", 26, "Sleep").Scan(&id)
	fmt.Println(id, err)
	// Output: 26 <nil>
}

// The counts tell whether contexts get through.
func ExampleConnector_Stats() {
	ctx := context.Background()
	database, err := audittest.StartDatabase(ctx)
	if err != nil {
		fmt.Println(err)
		return
	}
	defer func() { _ = database.Close() }()
	config, err := pgx.ParseConfig(database.URL())
	if err != nil {
		fmt.Println(err)
		return
	}

	connector := auditsql.Config{}.Wrap(stdlib.GetConnector(*config)).(*auditsql.Connector)
	db := sql.OpenDB(connector)
	defer func() { _ = db.Close() }()
	if _, err := db.ExecContext(ctx, "CREATE TABLE todo (id int PRIMARY KEY, task text)"); err != nil {
		fmt.Println(err)
		return
	}

	// The context of a transaction holds for all that is written in it.
	ctx = audit.WithContext(ctx, audit.Context{UserID: 187234, Worker: "import"})
	tx, err := db.BeginTx(ctx, nil)
	if err != nil {
		fmt.Println(err)
		return
	}
	_, first := tx.Exec("INSERT INTO todo VALUES (1, 'Sleep')")         //nolint:noctx // there are such
	_, second := tx.Exec("INSERT INTO todo VALUES (2, 'Walk the dog')") //nolint:noctx // there are such
	fmt.Println(errors.Join(first, second, tx.Commit()), connector.Stats().Stamped, "stamp")
	// Output: <nil> 1 stamp
}

// COPY goes through pgx itself.
func ExampleUnwrap() {
	ctx := context.Background()
	database, err := audittest.StartDatabase(ctx)
	if err != nil {
		fmt.Println(err)
		return
	}
	defer func() { _ = database.Close() }()
	db, err := auditsql.Open("pgx", database.URL())
	if err != nil {
		fmt.Println(err)
		return
	}
	defer func() { _ = db.Close() }()
	if _, err := db.ExecContext(ctx, "CREATE TABLE todo (id int PRIMARY KEY, task text)"); err != nil {
		fmt.Println(err)
		return
	}
	conn, err := db.Conn(ctx)
	if err != nil {
		fmt.Println(err)
		return
	}
	defer func() { _ = conn.Close() }()

	ctx = audit.WithContext(ctx, audit.Context{UserID: 187234})
	err = conn.Raw(func(c any) error {
		stamping := auditpgx.WrapConn(auditsql.Unwrap(c).(*stdlib.Conn).Conn())
		n, err := stamping.CopyFrom(ctx, pgx.Identifier{"todo"}, []string{"id", "task"}, pgx.CopyFromRows([][]any{{1, "Sleep"}, {2, "Eat"}}))
		fmt.Println(n)
		return err
	})
	fmt.Println(err)
	// Output:
	// 2
	// <nil>
}
