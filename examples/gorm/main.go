// Command gorm writes through GORM and prints the history of what it wrote:
// which rows, by whom, at which endpoint.
//
//	cd examples/gorm && go run .
//
// It needs nothing but Go and PostgreSQL's server binaries: the database is a throwaway one that is gone when the program ends.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"

	"gorm.io/driver/postgres"
	"gorm.io/gorm"

	"github.com/hindsight-go/audit"
	"github.com/hindsight-go/audit/auditgorm"
	"github.com/hindsight-go/audit/audittest"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "gorm:", err)
		stop()
		os.Exit(1)
	}
}

// User and Todo are models like any other.
type User struct {
	ID    int64
	Name  string
	Todos []Todo
}

// Todo is deleted softly.
type Todo struct {
	ID        int64
	UserID    int64
	Task      string
	Done      bool
	DeletedAt gorm.DeletedAt
}

// run is the program: a database, GORM on it, some writes and their history.
func run(ctx context.Context, out io.Writer) (err error) {
	database, err := audittest.StartDatabase(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, database.Close()) }()

	db, err := gorm.Open(postgres.Open(database.URL()), &gorm.Config{})
	if err != nil {
		return err
	}
	if pool, err := db.DB(); err == nil {
		defer func() { _ = pool.Close() }()
	}
	// This is all that it takes.
	if err := db.Use(auditgorm.New(auditgorm.Config{})); err != nil {
		return err
	}
	if err := db.WithContext(ctx).AutoMigrate(&User{}, &Todo{}); err != nil {
		return err
	}

	history, err := audit.Open(ctx, audit.Config{
		SourceURL: database.URL(),
		Tables:    []string{"public.*"},
		Logger:    slog.New(slog.DiscardHandler), // for a clean picture
	})
	if err != nil {
		return err
	}
	defer history.Close()
	if err := history.Start(ctx); err != nil {
		return err
	}
	if err := useService(ctx, db); err != nil {
		return err
	}
	if err := printHistory(ctx, out, history); err != nil {
		return err
	}
	return history.Stop(ctx)
}
