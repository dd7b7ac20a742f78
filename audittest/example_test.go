package audittest_test

import (
	"context"
	"fmt"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/hindsight-go/audit/audittest"
)

// A program that anyone can run, with nothing set up.
func ExampleStartDatabase() {
	ctx := context.Background()
	db, err := audittest.StartDatabase(ctx)
	if err != nil {
		fmt.Println(err)
		return
	}
	defer db.Close()

	conn, err := pgx.Connect(ctx, db.URL())
	if err != nil {
		fmt.Println(err)
		return
	}
	defer conn.Close(ctx)
	var level string
	if err := conn.QueryRow(ctx, "SHOW wal_level").Scan(&level); err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println("wal_level:", level)
	// Output: wal_level: logical
}

func ExampleNewDatabase() {
	// This is the body of a test: func TestTodo(t *testing.T).
	var t *testing.T

	db := audittest.NewDatabase(t)
	db.Exec(t, "CREATE TABLE todo (id int PRIMARY KEY, task text)")
	db.Exec(t, "INSERT INTO todo VALUES ($1, $2)", 26, "Walk the dog")

	task := audittest.Value[string](t, db, "SELECT task FROM todo WHERE id = $1", 26)
	if task != "Walk the dog" {
		t.Errorf("task: %q", task)
	}
}

// What happens to a program when its database crashes?
func ExampleNewServer() {
	var t *testing.T

	server := audittest.NewServer(t, audittest.ServerOptions{
		Settings: map[string]string{"max_slot_wal_keep_size": "16MB"},
	})
	db := server.NewDatabase(t)
	db.Exec(t, "CREATE TABLE todo (id int PRIMARY KEY)")

	server.Kill(t)
	server.StartAgain(t)

	db.Exec(t, "INSERT INTO todo VALUES (1)")
}
